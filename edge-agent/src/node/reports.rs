//! Which statuses the master does not have yet, and the report on its way.
//!
//! Only the newest status of each pod is kept, and one report is on the way at
//! a time, so the memory is bounded by the pods of the node however long the
//! master is away. A pod is forgotten when the report that says it is
//! terminated was acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wire::Uid;
use wire::envelope::encode;
use wire::status::{EventV1, PodStatusV1, ReportAckV1, ReportV1, StateV1, TerminatedV1};

/// First wait for an acknowledgement, doubled to at most [`RESEND_MAX`].
pub(super) const RESEND_FIRST: Duration = Duration::from_secs(10);
/// Longest wait before a report is sent again.
pub(super) const RESEND_MAX: Duration = Duration::from_secs(60);
/// Most events that wait, and most of one report.
pub(super) const EVENTS_MAX: usize = 32;
/// Where a report ends and the next begins, in bytes of statuses.
const REPORT_BYTES: usize = 192 << 10;
/// Most bytes of a sentence for people.
const TEXT_BYTES_MAX: usize = 1024;
/// Longest last words of a container, in bytes, as Kubernetes has it.
const LAST_WORDS_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Reports {
    boot_id: Uid,
    /// Number of the newest report made, and of the newest acknowledged.
    newest: u64,
    acked: u64,
    pods: BTreeMap<Uid, Tracked>,
    n_changes: u64,
    events: VecDeque<EventV1>,
    want_full: bool,
    complete: bool,
    on_the_way: Option<OnTheWay>,
}

#[derive(Debug)]
struct Tracked {
    status: PodStatusV1,
    /// Number of its last change; acknowledged up to which.
    change: u64,
    acked: u64,
}

#[derive(Debug)]
struct OnTheWay {
    seq: u64,
    bytes: Vec<u8>,
    /// Which change of which pods it tells.
    tells: Vec<(Uid, u64)>,
    wait: Duration,
    resend_at: Duration,
    n_copies: u32,
}

impl Reports {
    pub(super) fn new(boot_id: Uid) -> Self {
        Self {
            boot_id,
            newest: 0,
            acked: 0,
            pods: BTreeMap::new(),
            n_changes: 0,
            events: VecDeque::new(),
            want_full: false,
            complete: false,
            on_the_way: None,
        }
    }

    pub(super) fn changed(&mut self, mut status: PodStatusV1) {
        shorten_status(&mut status);
        if self.pods.get(&status.uid).is_some_and(|tracked| tracked.status == status) {
            return;
        }
        self.n_changes += 1;
        let acked = self.pods.get(&status.uid).map_or(0, |tracked| tracked.acked);
        let tracked = Tracked { change: self.n_changes, acked, status };
        self.pods.insert(tracked.status.uid, tracked);
    }

    pub(super) fn event(&mut self, mut event: EventV1) {
        shorten(&mut event.message, TEXT_BYTES_MAX);
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// All statuses of the node are known from now on.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    pub(super) fn want_full(&mut self) {
        self.want_full = true;
    }

    /// Another store asks: what the one before acknowledges does not count any more.
    pub(super) fn other_store(&mut self) {
        self.want_full = true;
        self.on_the_way = None;
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    /// A new connection: what is on the way is sent again at once.
    pub(super) fn send_again(&mut self, now: Duration) {
        if let Some(on_the_way) = &mut self.on_the_way {
            on_the_way.wait = RESEND_FIRST;
            on_the_way.resend_at = now;
            on_the_way.n_copies = 0;
        }
    }

    pub(super) fn acknowledged(&mut self, ack: &ReportAckV1) {
        let told = ack.boot_id == self.boot_id
            && self.on_the_way.as_ref().is_some_and(|on_the_way| on_the_way.seq == ack.seq);
        let Some(on_the_way) = self.on_the_way.take_if(|_| told) else { return };
        self.acked = ack.seq;
        for (uid, change) in on_the_way.tells {
            let Some(tracked) = self.pods.get_mut(&uid) else { continue };
            tracked.acked = change;
            if tracked.change == change && tracked.status.terminated {
                self.pods.remove(&uid);
            }
        }
    }

    /// The report to send now: a new one, or the one on the way again.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Vec<u8>> {
        if let Some(on_the_way) = &mut self.on_the_way {
            if now < on_the_way.resend_at {
                return None;
            }
            on_the_way.resend_at = now + on_the_way.wait;
            on_the_way.wait = RESEND_MAX.min(on_the_way.wait * 2);
            on_the_way.n_copies += 1;
            return Some(on_the_way.bytes.clone());
        }
        if self.want_full && self.complete {
            self.want_full = false;
            if self.pods.values().map(|tracked| size(&tracked.status)).sum::<usize>()
                <= REPORT_BYTES
            {
                return Some(self.make(now, true));
            }
            // Too many for one report: all of them, in several that are not full.
            for tracked in self.pods.values_mut() {
                self.n_changes += 1;
                tracked.change = self.n_changes;
            }
        }
        let news = !self.events.is_empty()
            || self.pods.values().any(|tracked| tracked.change > tracked.acked);
        news.then(|| self.make(now, false))
    }

    /// How often the report on its way was sent on this connection.
    pub(super) fn n_copies(&self) -> u32 {
        self.on_the_way.as_ref().map_or(0, |on_the_way| on_the_way.n_copies)
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.on_the_way.as_ref().map(|on_the_way| on_the_way.resend_at)
    }

    fn make(&mut self, now: Duration, full: bool) -> Vec<u8> {
        let mut told: Vec<&Tracked> =
            self.pods.values().filter(|tracked| full || tracked.change > tracked.acked).collect();
        // The longest waiting first, as far as they fit.
        told.sort_by_key(|tracked| tracked.change);
        let mut n_bytes = 0;
        told.retain(|tracked| {
            let first = n_bytes == 0;
            n_bytes += size(&tracked.status);
            full || first || n_bytes <= REPORT_BYTES
        });
        self.newest += 1;
        let report = ReportV1 {
            boot_id: self.boot_id,
            seq: self.newest,
            full,
            pods: told.iter().map(|tracked| tracked.status.clone()).collect(),
            events: self.events.drain(..).collect(),
            ext: Vec::new(),
        };
        let bytes = encode(&report);
        self.on_the_way = Some(OnTheWay {
            seq: report.seq,
            bytes: bytes.clone(),
            tells: told.iter().map(|tracked| (tracked.status.uid, tracked.change)).collect(),
            wait: RESEND_FIRST * 2,
            resend_at: now + RESEND_FIRST,
            n_copies: 1,
        });
        bytes
    }
}

fn size(status: &PodStatusV1) -> usize {
    postcard::to_stdvec(status).map_or(0, |bytes| bytes.len())
}

fn shorten_status(status: &mut PodStatusV1) {
    let shorten_end = |end: &mut TerminatedV1| shorten(&mut end.message, LAST_WORDS_BYTES_MAX);
    shorten(&mut status.message, TEXT_BYTES_MAX);
    let lists =
        [&mut status.init_containers, &mut status.containers, &mut status.ephemeral_containers];
    for container in lists.into_iter().flatten() {
        match &mut container.state {
            StateV1::Waiting { message, .. } => shorten(message, TEXT_BYTES_MAX),
            StateV1::Running { .. } => {}
            StateV1::Terminated(end) => shorten_end(end),
        }
        if let Some(end) = &mut container.last {
            shorten_end(end);
        }
    }
}

fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
}
