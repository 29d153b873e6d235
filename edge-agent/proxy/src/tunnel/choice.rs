//! Which way to a peer is used, and when another is tried.
//!
//! ```text
//! idle ── somebody wants to go there ──► race ── one answers ──► up ── idle for minutes ──► idle
//!                                         │                      │ ▲
//!                                         └─ none ──► down       │ └── a better one answers
//!                                              (backs off)       └ review: tries the better ones
//! ```
//!
//! A race tries QUIC at every address, TLS a little later, and the master's relay
//! when neither has answered for a while. The first that answers is used at once;
//! attempts at better ones go on. What is used and not the best is reviewed after a
//! minute, then less often, and at once when addresses change. A way that is no
//! longer used is closed once nothing is on it.
//!
//! Pure: events and the time go in, actions come out. What an action does is the
//! peer's task's.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// How a peer is reached, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tls,
    /// Through the master.
    Relay,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
            Self::Relay => "relay",
        })
    }
}

/// Something to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) lane: Lane,
    /// None through the master.
    pub(super) address: Option<SocketAddr>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} {address}", self.lane),
            None => write!(f, "{}", self.lane),
        }
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Between two addresses.
    pub(super) next_address: Duration,
    /// From QUIC to TLS.
    pub(super) tls_after: Duration,
    /// From the start to the relay.
    pub(super) relay_after: Duration,
    /// From a race to the review of what it found.
    pub(super) review: Duration,
    /// After the first race that found nothing; doubles.
    pub(super) backoff: Duration,
    /// At most.
    pub(super) backoff_max: Duration,
    /// A way that nobody has used for so long is closed.
    pub(super) idle: Duration,
    /// The same where there is a better one.
    pub(super) spare: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            next_address: Duration::from_millis(150),
            tls_after: Duration::from_millis(300),
            relay_after: Duration::from_millis(1500),
            review: Duration::from_secs(60),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            idle: Duration::from_secs(180),
            spare: Duration::from_secs(10),
        }
    }
}

/// How often ways are measured.
const MEASURE: Duration = Duration::from_secs(5);
/// Of more addresses, the likeliest are tried.
const ADDRESSES_MAX: usize = 8;
/// A review is put off at most by this factor, as a power of two.
const REVIEWS_MAX: u32 = 3;
/// QUIC that loses more, of 10,000 packets, is worse than TLS.
const LOSS_MAX: u32 = 1000;
/// Failures that are remembered of one race.
const FAILURES_MAX: usize = 17;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Try; say how it went with this number.
    Dial(u32, Target),
    /// Stop trying.
    Abort(u32),
    /// Close this way.
    Close(u64),
}

/// A way that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) id: u64,
    pub(super) lane: Lane,
    /// Where the peer is; none through the master.
    pub(super) remote: Option<SocketAddr>,
    pub(super) is_dialled: bool,
    pub(super) rtt_us: u32,
}

/// What is measured of a way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    pub(super) rtt_us: u32,
    /// Of 10,000 packets lately.
    pub(super) loss: u32,
    pub(super) n_streams: usize,
    /// When it was last used.
    pub(super) used: Duration,
    /// Whether the peer was heard since the last time.
    pub(super) is_heard: bool,
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Trying,
    Up(u64),
    /// Nothing answered; not tried again before then.
    Down(Duration),
}

#[derive(Debug)]
struct Known {
    way: Way,
    loss: u32,
    n_streams: usize,
    used: Duration,
    /// It may be dead: not used unless it is heard again.
    is_suspect: bool,
    /// The peer asked to open nothing new on it.
    is_leaving: bool,
    /// Another address of the same lane is faster.
    is_slower: bool,
}

#[derive(Debug, Default)]
struct Race {
    /// What is to be tried, and when, soonest first.
    waiting: Vec<(Duration, Target)>,
    running: Vec<(u32, Target)>,
    failures: Vec<String>,
    /// Only what is better than what was there is tried.
    is_narrow: bool,
}

/// The ways to one peer.
#[derive(Debug)]
pub(super) struct Choice {
    timing: Timing,
    /// Of two ways alike, both ends prefer the one that this node dialled.
    prefers_own: bool,
    /// What may be dialled.
    lanes: Vec<Lane>,
    addresses: Vec<SocketAddr>,
    ways: Vec<Known>,
    race: Option<Race>,
    n_attempts: u32,
    is_wanted: bool,
    n_failures: u32,
    retry_at: Duration,
    review_at: Duration,
    n_reviews: u32,
    why: String,
}

/// How good a way is, the least the best.
fn rank(lane: Lane, loss: u32) -> u8 {
    match lane {
        Lane::Quic if loss <= LOSS_MAX => 0,
        Lane::Tls => 1,
        Lane::Quic => 2,
        Lane::Relay => 3,
    }
}

impl Choice {
    /// Nothing is known of `peer` yet.
    pub(super) fn new(timing: Timing, lanes: &[Lane], node: &str, peer: &str) -> Self {
        Self {
            timing,
            prefers_own: node < peer,
            lanes: lanes.to_vec(),
            addresses: Vec::new(),
            ways: Vec::new(),
            race: None,
            n_attempts: 0,
            is_wanted: false,
            n_failures: 0,
            retry_at: Duration::ZERO,
            review_at: Duration::ZERO,
            n_reviews: 0,
            why: String::new(),
        }
    }

    pub(super) fn state(&self, now: Duration) -> State {
        if let Some(best) = self.best() {
            return State::Up(best.way.id);
        }
        if self.race.is_some() || self.is_wanted {
            return State::Trying;
        }
        if now < self.retry_at { State::Down(self.retry_at) } else { State::Idle }
    }

    /// Why it is not reached, or not better.
    pub(super) fn why(&self) -> &str {
        match self.best() {
            Some(best) if rank(best.way.lane, best.loss) == 0 => "",
            _ => &self.why,
        }
    }

    fn best(&self) -> Option<&Known> {
        let usable = self.ways.iter().filter(|known| !known.is_suspect && !known.is_leaving);
        usable.min_by_key(|known| {
            let is_preferred = known.way.is_dialled == self.prefers_own;
            let rank = rank(known.way.lane, known.loss);
            (rank, known.is_slower, !is_preferred, Reverse(known.way.id))
        })
    }

    /// Somebody wants to go there.
    pub(super) fn wanted(&mut self, now: Duration) {
        if self.best().is_some() {
            return;
        }
        if self.race.is_some() {
            self.widen(now);
        } else if self.retry_at <= now {
            self.is_wanted = true;
        }
    }

    /// What there was is gone: a race for something better becomes one for anything.
    fn widen(&mut self, now: Duration) {
        let plan = self.plan(now, None);
        let Some(race) = self.race.as_mut().filter(|race| race.is_narrow) else { return };
        race.is_narrow = false;
        race.waiting = plan;
        let running = &race.running;
        race.waiting.retain(|(_, target)| !running.iter().any(|(_, other)| other == target));
    }

    /// These are the peer's addresses, the likeliest first.
    pub(super) fn set_addresses(&mut self, now: Duration, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(ADDRESSES_MAX);
        if addresses == self.addresses {
            return;
        }
        let new: Vec<SocketAddr> =
            addresses.iter().filter(|address| !self.addresses.contains(address)).copied().collect();
        self.addresses = addresses;
        self.forgive(now);
        let addresses = &self.addresses;
        for known in &mut self.ways {
            let is_gone = known.way.remote.is_some_and(|remote| !addresses.contains(&remote));
            if known.way.is_dialled && is_gone {
                known.is_suspect = true;
                self.is_wanted |= known.n_streams > 0;
            }
        }
        if let Some(race) = &mut self.race {
            let lanes = self.lanes.iter().filter(|lane| **lane != Lane::Relay);
            let targets = new.iter().flat_map(|&address| {
                let target = move |&lane| (now, Target { lane, address: Some(address) });
                lanes.clone().map(target)
            });
            race.waiting.splice(0..0, targets);
        }
    }

    /// This node's own addresses changed.
    pub(super) fn network_changed(&mut self, now: Duration) {
        self.forgive(now);
        for known in &mut self.ways {
            // QUIC follows who dialled; the rest has to prove that it lives.
            if known.way.lane != Lane::Quic || !known.way.is_dialled {
                known.is_suspect = true;
                self.is_wanted |= known.n_streams > 0;
            }
        }
    }

    /// What was learnt of the network does not hold any more.
    fn forgive(&mut self, now: Duration) {
        (self.n_failures, self.retry_at) = (0, now);
        (self.n_reviews, self.review_at) = (0, now);
    }

    /// A way is there: by attempt `number`, or the peer dialled.
    pub(super) fn connected(
        &mut self,
        now: Duration,
        number: Option<u32>,
        way: Way,
    ) -> Vec<Action> {
        let mut is_slower = false;
        if number.is_some() {
            // Two addresses of one lane: by the round trip.
            let same = |known: &&mut Known| {
                known.way.lane == way.lane && known.way.is_dialled && !known.is_suspect
            };
            for known in self.ways.iter_mut().filter(same) {
                let is_faster = u64::from(way.rtt_us) * 10 < u64::from(known.way.rtt_us) * 7;
                known.is_slower |= is_faster;
                is_slower |= !is_faster;
            }
        }
        self.ways.push(Known {
            way,
            loss: 0,
            n_streams: 0,
            used: now,
            is_suspect: false,
            is_leaving: false,
            is_slower,
        });
        (self.n_failures, self.retry_at, self.is_wanted) = (0, Duration::ZERO, false);
        let mut actions = Vec::new();
        let reached = rank(way.lane, 0);
        match &mut self.race {
            Some(race) => {
                race.is_narrow = true;
                race.running.retain(|(running, _)| Some(*running) != number);
                race.waiting.retain(|(_, target)| rank(target.lane, 0) < reached);
                race.running.retain(|(running, target)| {
                    let rank = rank(target.lane, 0);
                    // Where both dial at once, neither takes back what the other may
                    // use already: one of the two is left for the other later.
                    let goes_on = rank < reached || (rank == reached && number.is_none());
                    if !goes_on {
                        actions.push(Action::Abort(*running));
                    }
                    goes_on
                });
                self.end_race(now);
            }
            // The peer had to go through the master: it may be reachable from here.
            None if way.lane == Lane::Relay => (self.n_reviews, self.review_at) = (0, now),
            None => self.review_at = now + self.timing.review,
        }
        actions
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, now: Duration, number: u32, why: &str) {
        let Some(race) = &mut self.race else { return };
        let Some(at) = race.running.iter().position(|(running, _)| *running == number) else {
            return;
        };
        let (_, target) = race.running.remove(at);
        if race.failures.len() < FAILURES_MAX {
            let why: String = why.chars().take(160).collect();
            race.failures.push(format!("{target}: {why}"));
        }
        self.end_race(now);
    }

    /// Ends a race in which nothing is left to try.
    fn end_race(&mut self, now: Duration) {
        let is_over = |race: &mut Race| race.waiting.is_empty() && race.running.is_empty();
        let Some(race) = self.race.take_if(is_over) else { return };
        self.why = race.failures.join("; ");
        self.is_wanted = false;
        if self.best().is_none() {
            let backoff = self.timing.backoff * 2_u32.saturating_pow(self.n_failures.min(10));
            self.retry_at = now + backoff.min(self.timing.backoff_max);
            self.n_failures = self.n_failures.saturating_add(1);
        } else {
            self.review_at = now + self.timing.review * 2_u32.pow(self.n_reviews.min(REVIEWS_MAX));
            self.n_reviews = self.n_reviews.saturating_add(1);
        }
    }

    /// A way is over.
    pub(super) fn closed(&mut self, now: Duration, id: u64, why: &str) {
        self.ways.retain(|known| known.way.id != id);
        if self.best().is_none() {
            self.widen(now);
        }
        if self.ways.is_empty() && self.race.is_none() {
            self.why = why.chars().take(160).collect();
        }
    }

    /// A way gives no answer.
    pub(super) fn suspect(&mut self, now: Duration, id: u64) {
        let found = self.ways.iter_mut().find(|known| known.way.id == id);
        let Some(known) = found else { return };
        known.is_suspect = true;
        self.wanted(now);
    }

    /// The peer asks to open nothing new on a way.
    pub(super) fn leaving(&mut self, id: u64) {
        let found = self.ways.iter_mut().find(|known| known.way.id == id);
        found.into_iter().for_each(|known| known.is_leaving = true);
    }

    /// How a way does.
    pub(super) fn measured(&mut self, id: u64, measured: Measured) {
        let found = self.ways.iter_mut().find(|known| known.way.id == id);
        let Some(known) = found else { return };
        known.way.rtt_us = measured.rtt_us;
        (known.loss, known.n_streams) = (measured.loss, measured.n_streams);
        known.used = measured.used;
        known.is_suspect &= !measured.is_heard;
    }

    /// What is to be done now.
    pub(super) fn poll(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        self.close_unused(now, &mut actions);
        if self.race.is_none() {
            let waiting = match self.best() {
                None if self.is_wanted && self.retry_at <= now => {
                    let plan = self.plan(now, None);
                    if plan.is_empty() {
                        self.why = "no address of it is known".to_owned();
                        self.is_wanted = false;
                        self.retry_at = now + self.timing.backoff;
                    }
                    plan
                }
                Some(best) if self.review_at <= now && self.is_used(best, now) => {
                    let plan = self.plan(now, Some(best));
                    self.review_at = now + self.timing.review;
                    plan
                }
                _ => Vec::new(),
            };
            if !waiting.is_empty() {
                let is_narrow = self.best().is_some();
                self.race = Some(Race { waiting, is_narrow, ..Race::default() });
            }
        }
        let Some(race) = &mut self.race else { return actions };
        // With nothing under way there is nothing to wait for.
        let mut is_due = race.running.is_empty();
        while let Some(&(at, target)) = race.waiting.first()
            && (is_due || at <= now)
        {
            is_due = false;
            race.waiting.remove(0);
            self.n_attempts = self.n_attempts.wrapping_add(1);
            race.running.push((self.n_attempts, target));
            actions.push(Action::Dial(self.n_attempts, target));
        }
        actions
    }

    fn is_used(&self, known: &Known, now: Duration) -> bool {
        known.n_streams > 0 || now.saturating_sub(known.used) < self.timing.review
    }

    /// What to try, and when; only what may be better than `than`.
    fn plan(&self, now: Duration, than: Option<&Known>) -> Vec<(Duration, Target)> {
        let timing = &self.timing;
        let at = |index: usize| timing.next_address * u32::try_from(index).unwrap_or(u32::MAX);
        let mut plan = Vec::new();
        for (index, &address) in self.addresses.iter().enumerate() {
            let target = |lane| Target { lane, address: Some(address) };
            plan.push((now + at(index), target(Lane::Quic)));
            plan.push((now + timing.tls_after + at(index), target(Lane::Tls)));
        }
        plan.push((now + timing.relay_after, Target { lane: Lane::Relay, address: None }));
        plan.retain(|(_, target)| self.lanes.contains(&target.lane));
        plan.sort_by_key(|(at, target)| (*at, target.lane));
        if let Some(than) = than {
            let least = rank(than.way.lane, than.loss);
            // Who dials compares addresses of one lane.
            let compares = than.way.is_dialled && than.way.lane != Lane::Relay;
            plan.retain(|(_, target)| {
                let is_same = target.lane == than.way.lane && target.address == than.way.remote;
                let rank = rank(target.lane, 0);
                !is_same && (rank < least || (rank == least && compares))
            });
        }
        plan
    }

    fn close_unused(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let best = self.best().map(|best| best.way.id);
        for known in self.ways.iter().filter(|known| known.n_streams == 0) {
            let is_spare = best.is_some_and(|best| best != known.way.id) || known.is_leaving;
            let keep = if is_spare { self.timing.spare } else { self.timing.idle };
            if keep <= now.saturating_sub(known.used) {
                actions.push(Action::Close(known.way.id));
            }
        }
        self.ways.retain(|known| !actions.contains(&Action::Close(known.way.id)));
    }

    /// When to poll again, at the latest.
    pub(super) fn next_due(&self, now: Duration) -> Option<Duration> {
        let race = self.race.as_ref().and_then(|race| race.waiting.first()).map(|(at, _)| *at);
        // What grows old is measured first, now and then.
        let ways = (!self.ways.is_empty()).then_some(now + MEASURE);
        race.into_iter().chain(ways).min()
    }
}
