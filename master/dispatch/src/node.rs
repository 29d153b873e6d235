//! The protocol with one node.
//!
//! ```text
//!                 hello                     applied, heartbeat
//!   (away) ───────────────► set on the way ───────────────────► at rest
//!      ▲                     │   ▲      │                          │
//!      │ disconnected, gone  │   └──────┘ not shown in time        │ newer set
//!      └─────────────────────┴──────── from every state ◄──────────┘
//! ```
//!
//! What the node has is known only from what it says. The answer to a hello is
//! "up to date", a delta where [`DesiredSet`] still knows what changed, or the
//! whole set, in parts where it is large.

use std::sync::Arc;
use std::time::Duration;

use wire::account::{PODS_MAX, PodTokensV1, TokensV1, TokensWantedV1};
use wire::command::{CommandEnvelopeV1, CommandV1};
use wire::envelope::{Decoded, EnvelopeError, Kind, Message, decode, encode};
use wire::node::{AppliedV1, GoneV1, HeartbeatV1, HelloV1, PartAckV1, UpToDateV1};
use wire::part::{Split, needs_parts};
use wire::set::SnapshotV1;
use wire::status::{ReportAckV1, ReportV1};
use wire::topic::Channel;
use wire::{Epoch, PROTOCOL_VERSION, Uid};

use crate::boots::{Boots, Heard};
use crate::desired::{Common, DesiredSet, SetError};

/// First wait for a set to be shown as applied, doubled to at most [`RESEND_MAX`].
pub const RESEND_FIRST: Duration = Duration::from_secs(15);
/// Longest wait before a set is sent again.
pub const RESEND_MAX: Duration = Duration::from_secs(60);
/// A report that the caller has not stored is handed out again after this time.
pub const STORE_WAIT: Duration = Duration::from_secs(5);
/// A newer report must be missing this long before the node is asked for all.
pub const MISSING_WAIT: Duration = Duration::from_secs(20);
/// Least time between two resync commands.
pub const RESYNC_EVERY: Duration = Duration::from_secs(5);
/// How long a node with a duplicate identity gets nothing.
pub const DUPLICATE_PAUSE: Duration = Duration::from_secs(300);

/// How often a node says that it lives, and when silence means that it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Every 10 s.
    Lan,
    /// Every 60 s.
    #[default]
    Wan,
    /// Every 300 s.
    Cellular,
}

impl Profile {
    /// Time between two heartbeats, in seconds.
    #[must_use]
    pub const fn heartbeat_s(self) -> u32 {
        match self {
            Profile::Lan => 10,
            Profile::Wan => 60,
            Profile::Cellular => 300,
        }
    }

    /// Silence after which the node counts as lost: one and a half heartbeats.
    #[must_use]
    pub const fn lost_after(self) -> Duration {
        Duration::from_secs(self.heartbeat_s() as u64 * 3 / 2)
    }

    /// Reads `lan`, `wan` or `cellular`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "lan" => Some(Profile::Lan),
            "wan" => Some(Profile::Wan),
            "cellular" => Some(Profile::Cellular),
            _ => None,
        }
    }
}

/// What the caller has to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send `bytes` to the node, on `channel`.
    Send {
        /// Which of the node's topics.
        channel: Channel,
        /// An envelope.
        bytes: Vec<u8>,
    },
    /// The node is there and says what it is and what runs on it.
    Hello(Box<HelloV1>),
    /// This revision of its set is on the node's disk.
    Applied {
        /// The revision.
        revision: u64,
    },
    /// Store these statuses, then call [`NodeDispatcher::report_stored`]. A node's
    /// reports are to be stored in the order they come.
    Report(ReportV1),
    /// The broker says that the node's connection broke (its will).
    Gone,
    /// Make the tokens of these pods, as far as they are the node's, then call
    /// [`NodeDispatcher::tokens_made`].
    Tokens {
        /// Which boot of the agent asks.
        boot_id: Uid,
        /// The pods, at most [`PODS_MAX`].
        pods: Vec<Uid>,
    },
    /// Something an operator should see.
    Finding(Finding),
}

/// Something an operator should see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A cloned SD card, most likely. The node gets nothing for [`DUPLICATE_PAUSE`].
    #[error("two agents use this node's identity: enrol one of them again with a new name")]
    DuplicateIdentity {
        /// Their boot ids.
        boots: [Uid; 2],
    },
    /// The node has a newer set than this store made.
    #[error(
        "the node has revision {node} of a set of which this store knows {master}: restore the store with `pinnace backup restore`, which starts a new epoch"
    )]
    Ahead {
        /// Revision on the node.
        node: u64,
        /// Newest revision here.
        master: u64,
    },
    /// No common version of the protocol.
    #[error(
        "the agent speaks protocol versions {min} to {max}, the master {PROTOCOL_VERSION}: upgrade the older side"
    )]
    Version {
        /// Oldest the agent speaks.
        min: u8,
        /// Newest the agent speaks.
        max: u8,
    },
    /// The set does not fit in [`wire::ASSEMBLED_BYTES_MAX`].
    #[error("the node's set of {0} bytes is too large to send: bind fewer or smaller objects")]
    TooLarge(usize),
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// It does not read.
    #[error("cannot read a message of the node")]
    Envelope(#[from] EnvelopeError),
    /// Only a master sends such a message.
    #[error("a node sent a {0:?}, which only a master sends")]
    Direction(Kind),
    /// The topic is none that a node writes.
    #[error("no node writes on topic \"{0}\"")]
    Topic(String),
}

/// The node is not connected, so it can be asked nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is not connected")]
pub struct NotConnected;

/// The master's half of the protocol with one node.
#[derive(Debug)]
pub struct NodeDispatcher {
    epoch: Epoch,
    set: Option<DesiredSet>,
    /// What every node has, for the set that is still to come.
    common: Arc<Common>,
    /// Whether this run has sent a set: then no other revision may be adopted.
    sent: bool,
    boots: Boots,
    boot: Option<BootState>,
    session: Option<Session>,
    last_seen: Option<Duration>,
    resynced_at: Option<Duration>,
    duplicate_until: Option<Duration>,
    outputs: Vec<Output>,
}

/// What is counted for one start of the agent, across its connections.
#[derive(Debug)]
struct BootState {
    id: Uid,
    /// Newest report handed to the caller, and when.
    report_taken: u64,
    report_taken_at: Duration,
    /// Newest report the caller has stored.
    report_stored: u64,
    /// Since when the node speaks of a report that has not arrived.
    report_missing: Option<Duration>,
    command_counter: u64,
}

/// What the node said since it connected.
#[derive(Debug)]
struct Session {
    conn_seq: u32,
    /// Revision on the node's disk, where it comes from this store.
    have: Option<u64>,
    /// Digest of the set with that revision, until it changes.
    digest: Option<[u8; 16]>,
    /// A hello waits for its answer.
    unanswered: bool,
    flight: Option<Flight>,
    /// The node said that it is ahead; nothing is sent until the next hello.
    ahead: bool,
}

/// A set on its way.
#[derive(Debug)]
struct Flight {
    revision: u64,
    split: Option<Split>,
    wait: Duration,
    resend_at: Duration,
    n_resends: u32,
}

impl NodeDispatcher {
    /// A node of which nothing is known yet.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            set: None,
            common: Arc::default(),
            sent: false,
            boots: Boots::default(),
            boot: None,
            session: None,
            last_seen: None,
            resynced_at: None,
            duplicate_until: None,
            outputs: Vec::new(),
        }
    }

    /// Takes the newest set of the node; false where it has the same items as before.
    ///
    /// # Errors
    /// As [`DesiredSet::replace`].
    pub fn set(&mut self, set: &SnapshotV1) -> Result<bool, SetError> {
        if set.epoch != self.epoch {
            return Err(SetError::Epoch { given: set.epoch, expected: self.epoch });
        }
        if let Some(desired) = &mut self.set {
            return desired.replace(set);
        }
        self.set = Some(DesiredSet::new(set, Arc::clone(&self.common))?);
        Ok(true)
    }

    /// Takes the newest items that every node has. Their revision must be above that of
    /// every set that the node was told of.
    pub fn set_common(&mut self, common: &Arc<Common>) {
        self.common = Arc::clone(common);
        if let Some(set) = &mut self.set {
            set.set_common(common);
        }
    }

    /// The revision of the newest set; 0 where there is none.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.set.as_ref().map_or(0, DesiredSet::revision)
    }

    /// The connection ended. Whatever was on the way is forgotten.
    pub fn disconnected(&mut self) {
        self.session = None;
        self.outputs.retain(|output| !matches!(output, Output::Send { .. }));
    }

    /// Whether the node has said hello on a connection that still stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// When the node was last heard of, by the caller's clock.
    #[must_use]
    pub fn last_seen(&self) -> Option<Duration> {
        self.last_seen
    }

    /// The revision that the node is known to have applied.
    #[must_use]
    pub fn applied(&self) -> Option<u64> {
        self.session.as_ref()?.have
    }

    /// Takes one message of the node.
    ///
    /// # Errors
    /// Where it does not read, or is none that a node sends.
    pub fn receive(&mut self, now: Duration, bytes: &[u8]) -> Result<(), ReceiveError> {
        let message = match decode(bytes)? {
            Decoded::Message(message) => message,
            Decoded::Ignored { kind } => {
                tracing::debug!(kind, "message of an unknown kind ignored");
                return Ok(());
            }
        };
        match message {
            Message::Hello(hello) => self.hello(now, hello),
            Message::Heartbeat(heartbeat) => self.heartbeat(now, &heartbeat),
            Message::Applied(applied) => self.applied_by(now, &applied),
            Message::Report(report) => self.report(now, report),
            Message::Gone(gone) => self.gone(&gone),
            Message::PartAck(ack) => self.part_ack(now, &ack),
            Message::TokensWanted(wanted) => self.tokens_wanted(now, wanted),
            other => return Err(ReceiveError::Direction(other.kind())),
        }
        Ok(())
    }

    /// The caller has stored the report: now it is acknowledged.
    pub fn report_stored(&mut self, boot_id: Uid, seq: u64) {
        let Some(boot) = self.boot.as_mut().filter(|boot| boot.id == boot_id) else { return };
        if seq > boot.report_taken {
            return;
        }
        boot.report_stored = boot.report_stored.max(seq);
        if self.session.is_some() {
            self.send(Channel::Command, encode(&ReportAckV1 { boot_id, seq }));
        }
    }

    /// Sends tokens to the boot that asked for them, if it is still there: else it
    /// asks again.
    pub fn tokens_made(&mut self, boot_id: Uid, pods: Vec<PodTokensV1>) {
        let is_there = self.boot.as_ref().is_some_and(|boot| boot.id == boot_id);
        if is_there && self.session.is_some() && !pods.is_empty() {
            self.send(Channel::Command, encode(&TokensV1 { boot_id, pods }));
        }
    }

    /// Asks the node to do something, once.
    ///
    /// # Errors
    /// Where the node is away: nothing is queued for it.
    pub fn command(&mut self, command: CommandV1) -> Result<(), NotConnected> {
        let (Some(_), Some(boot)) = (&self.session, &mut self.boot) else {
            return Err(NotConnected);
        };
        boot.command_counter += 1;
        let envelope = CommandEnvelopeV1 {
            epoch: self.epoch,
            boot_id: boot.id,
            counter: boot.command_counter,
            command,
        };
        self.send(Channel::Command, encode(&envelope));
        Ok(())
    }

    /// What there is to do now.
    pub fn poll(&mut self, now: Duration) -> Vec<Output> {
        self.advance(now);
        std::mem::take(&mut self.outputs)
    }

    /// When to poll again at the latest, if no message comes before.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        Some(self.session.as_ref()?.flight.as_ref()?.resend_at)
    }

    fn hello(&mut self, now: Duration, hello: HelloV1) {
        match self.boots.hear(now, &hello) {
            Heard::Late => return,
            Heard::Duplicate { boots } => {
                self.duplicate_until = Some(now + DUPLICATE_PAUSE);
                self.session = None;
                self.outputs.push(Output::Finding(Finding::DuplicateIdentity { boots }));
            }
            Heard::Current | Heard::New => {}
        }
        self.last_seen = Some(now);
        if self.duplicate_until.is_some_and(|until| now < until) {
            return;
        }
        self.duplicate_until = None;
        if !(hello.proto_min..=hello.proto_max).contains(&PROTOCOL_VERSION) {
            let (min, max) = (hello.proto_min, hello.proto_max);
            self.session = None;
            self.outputs.push(Output::Finding(Finding::Version { min, max }));
            return;
        }
        let known = self.boot.take().filter(|boot| boot.id == hello.boot_id);
        let mut boot = known.unwrap_or(BootState {
            id: hello.boot_id,
            report_taken: 0,
            report_taken_at: now,
            report_stored: 0,
            report_missing: None,
            command_counter: 0,
        });
        boot.report_taken = boot.report_taken.max(hello.report_acked);
        boot.report_stored = boot.report_stored.max(hello.report_acked);
        boot.command_counter = boot.command_counter.max(hello.command_counter);
        self.boot = Some(boot);
        let ours = hello.epoch == self.epoch;
        self.session = Some(Session {
            conn_seq: hello.conn_seq,
            have: ours.then_some(hello.have_revision),
            digest: ours.then_some(hello.set_digest),
            unanswered: true,
            flight: None,
            ahead: false,
        });
        self.outputs.push(Output::Hello(Box::new(hello)));
    }

    fn heartbeat(&mut self, now: Duration, heartbeat: &HeartbeatV1) {
        if !self.is_of_session(now, &heartbeat.boot_id) {
            return;
        }
        if heartbeat.epoch == self.epoch {
            self.shown(heartbeat.revision);
        } else if self.session.as_ref().is_some_and(|session| session.have.is_some()) {
            // It had a set of ours, and now one of another store: let it say which.
            self.resync(now, heartbeat.boot_id);
        }
        let Some(boot) = &mut self.boot else { return };
        if heartbeat.report_seq <= boot.report_taken {
            boot.report_missing = None;
            return;
        }
        // The node sends what is not acknowledged again by itself. Where a newer
        // report stays missing, another run of the master has taken it.
        match boot.report_missing {
            None => boot.report_missing = Some(now),
            Some(since) if now.saturating_sub(since) >= MISSING_WAIT => {
                boot.report_missing = Some(now);
                let asked = self.command(CommandV1::ReportAll);
                debug_assert!(asked.is_ok(), "the heartbeat is of this session");
            }
            Some(_) => {}
        }
    }

    fn applied_by(&mut self, now: Duration, applied: &AppliedV1) {
        if self.is_of_session(now, &applied.boot_id) && applied.epoch == self.epoch {
            self.shown(applied.revision);
        }
    }

    fn report(&mut self, now: Duration, report: ReportV1) {
        if !self.is_of_session(now, &report.boot_id) {
            return;
        }
        let Some(boot) = &mut self.boot else { return };
        if report.seq < boot.report_stored {
            return;
        }
        if report.seq == boot.report_stored {
            let ack = ReportAckV1 { boot_id: report.boot_id, seq: report.seq };
            self.send(Channel::Command, encode(&ack));
            return;
        }
        let again = report.seq == boot.report_taken
            && now.saturating_sub(boot.report_taken_at) >= STORE_WAIT;
        if report.seq > boot.report_taken || again {
            boot.report_taken = report.seq;
            boot.report_taken_at = now;
            boot.report_missing = None;
            self.outputs.push(Output::Report(report));
        }
    }

    fn tokens_wanted(&mut self, now: Duration, mut wanted: TokensWantedV1) {
        if self.is_of_session(now, &wanted.boot_id) {
            wanted.pods.truncate(PODS_MAX);
            let TokensWantedV1 { boot_id, pods } = wanted;
            self.outputs.push(Output::Tokens { boot_id, pods });
        }
    }

    fn gone(&mut self, gone: &GoneV1) {
        let ours = self.boots.current() == Some(gone.boot_id)
            && self.session.as_ref().is_some_and(|session| session.conn_seq == gone.conn_seq);
        if ours {
            self.disconnected();
            self.outputs.push(Output::Gone);
        }
    }

    fn part_ack(&mut self, now: Duration, ack: &PartAckV1) {
        let Some(flight) = self.session.as_mut().and_then(|session| session.flight.as_mut()) else {
            return;
        };
        self.last_seen = Some(now);
        if flight.split.as_mut().is_some_and(|split| split.acknowledge(ack)) {
            flight.wait = RESEND_FIRST;
            flight.resend_at = now + RESEND_FIRST;
            flight.n_resends = 0;
            self.send_parts();
        }
    }

    /// Whether a message of `boot_id` belongs to the current session; asks a node
    /// that has not said hello to do so.
    fn is_of_session(&mut self, now: Duration, boot_id: &Uid) -> bool {
        if self.boots.is_past(boot_id) {
            // Late, or the hello of a start in between was reordered: it may ask.
            self.resync(now, *boot_id);
            return false;
        }
        self.last_seen = Some(now);
        if self.duplicate_until.is_some_and(|until| now < until) {
            return false;
        }
        if self.boots.current() == Some(*boot_id) && self.session.is_some() {
            return true;
        }
        self.resync(now, *boot_id);
        false
    }

    fn resync(&mut self, now: Duration, boot_id: Uid) {
        if self.resynced_at.is_some_and(|at| now.saturating_sub(at) < RESYNC_EVERY) {
            return;
        }
        self.resynced_at = Some(now);
        let command = CommandV1::Resync;
        let envelope = CommandEnvelopeV1 { epoch: self.epoch, boot_id, counter: 0, command };
        self.send(Channel::Command, encode(&envelope));
    }

    /// The node has shown that `revision` of our epoch is on its disk.
    fn shown(&mut self, revision: u64) {
        let Some(session) = &mut self.session else { return };
        if session.have.is_none_or(|have| have < revision) {
            session.have = Some(revision);
            session.digest = None;
            self.outputs.push(Output::Applied { revision });
        }
        if session.flight.as_ref().is_some_and(|flight| flight.revision <= revision) {
            session.flight = None;
        }
    }

    /// Sends what the node lacks, unless it is on the way already.
    fn advance(&mut self, now: Duration) {
        let (Some(session), Some(set)) = (&mut self.session, &mut self.set) else { return };
        let hello = std::mem::take(&mut session.unanswered);
        let revision = set.revision();
        if let Some(have) = session.have {
            if have > revision && !set.disown(have) {
                if !session.ahead {
                    session.ahead = true;
                    let finding = Finding::Ahead { node: have, master: revision };
                    self.outputs.push(Output::Finding(finding));
                }
                return;
            }
            if !self.sent && have > 0 && have < revision && session.digest == Some(set.digest()) {
                set.adopt(have);
            }
        }
        let revision = set.revision();
        if session.have == Some(revision) {
            session.flight = None;
            if hello {
                let answer = UpToDateV1 { epoch: self.epoch, revision };
                self.send(Channel::Set, encode(&answer));
            }
            return;
        }
        let mut wait = RESEND_FIRST;
        let mut n_resends = 0;
        if let Some(flight) = session.flight.as_mut().filter(|_| !hello) {
            if now < flight.resend_at {
                return;
            }
            flight.wait = RESEND_MAX.min(flight.wait * 2);
            flight.n_resends += 1;
            flight.resend_at = now + flight.wait;
            (wait, n_resends) = (flight.wait, flight.n_resends);
            if flight.n_resends % 3 != 0
                && let Some(split) = &mut flight.split
            {
                split.rewind();
                self.send_parts();
                return;
            }
        }
        // Sent again, it is the whole set: why the delta was not applied is not known.
        let delta = session.have.filter(|_| n_resends == 0).and_then(|have| {
            let same = session.digest == Some(set.digest()) && have > 0;
            if same { Some(set.renumber(have)) } else { set.delta(have) }
        });
        let bytes = delta.unwrap_or_else(|| set.snapshot());
        let mut flight = Flight { revision, split: None, wait, resend_at: now + wait, n_resends };
        self.sent = true;
        if !needs_parts(bytes.len()) {
            session.flight = Some(flight);
            self.send(Channel::Set, bytes);
            return;
        }
        match Split::new(bytes, crate::sha256) {
            Ok(split) => {
                flight.split = Some(split);
                session.flight = Some(flight);
                self.send_parts();
            }
            Err(too_large) => {
                session.flight = Some(flight);
                self.outputs.push(Output::Finding(Finding::TooLarge(too_large.0)));
            }
        }
    }

    fn send_parts(&mut self) {
        let flight = self.session.as_mut().and_then(|session| session.flight.as_mut());
        let Some(split) = flight.and_then(|flight| flight.split.as_mut()) else { return };
        let parts: Vec<_> = std::iter::from_fn(|| split.next_part()).collect();
        for part in parts {
            self.send(Channel::Set, encode(&part));
        }
    }

    fn send(&mut self, channel: Channel, bytes: Vec<u8>) {
        self.outputs.push(Output::Send { channel, bytes });
    }
}

#[cfg(test)]
pub(crate) mod tests;
