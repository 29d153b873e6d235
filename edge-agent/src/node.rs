//! The agent's half of the node protocol: events and the time go in, messages
//! and news come out.
//!
//! ```text
//!   connected ──► hello, again after 5 s … 60 s, until answered
//!        snapshot, delta, parts ──► Apply(whole set) ──► driver stores it ──► applied
//!        gap, resync ──► hello
//!   statuses_changed ──► report, one on the way, again until acknowledged
//! ```
//!
//! [`Node`] owns no socket, file or clock: [`crate::link`] moves its messages
//! over MQTT, and `tests::sim` over a simulated link. It does not know what a
//! set means, nor how pods run; a pod whose uid and generation are the same in
//! the next set is the driver's to leave alone.
//!
//! The rules, whatever the link does:
//!
//! 1. Within an epoch the revision never goes back. Another epoch replaces
//!    everything.
//! 2. A delta is applied only to exactly the revision it names; else the node
//!    says hello again.
//! 3. A command runs once: its counter is above every one this boot has seen.
//! 4. Only the newest status of a pod waits; it is sent until it is acknowledged.
//! 5. Tokens of pods are asked for until they come, and again before they expire.

mod reports;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use wire::account::TokensWantedV1;
use wire::command::{CommandEnvelopeV1, CommandV1};
use wire::envelope::{Decoded, EnvelopeError, Kind, Message, decode, decode_assembled, encode};
use wire::node::{AppliedV1, GoneV1, HeartbeatV1, HelloV1, NodeInfoV1, UpToDateV1};
use wire::part::{Assembled, Assembly};
use wire::set::{BodyV1, DeltaV1, ItemV1, PartV1, SnapshotV1};
use wire::status::{EventV1, PodStatusV1};
use wire::topic::Channel;
use wire::{Epoch, PROTOCOL_VERSION, Uid};

use self::reports::Reports;
use self::tokens::Tokens;
use crate::tokens::{Found, Table};

/// First wait for the answer to a hello, doubled to at most [`HELLO_MAX`].
pub const HELLO_FIRST: Duration = Duration::from_secs(5);
/// Longest wait between two hellos that are not answered.
pub const HELLO_MAX: Duration = Duration::from_secs(60);
/// Least time between two hellos, whatever the other side sends.
pub const HELLO_LEAST: Duration = Duration::from_secs(1);
/// Copies without an answer after which a connection is not believed any more.
pub const STALLED_AFTER: u32 = 5;
/// Time between heartbeats before a set says otherwise, in seconds.
pub const HEARTBEAT_DEFAULT_S: u32 = 60;

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Publish `bytes` on this node's topic of `channel`, with its QoS.
    Send {
        /// Which topic.
        channel: Channel,
        /// An envelope.
        bytes: Vec<u8>,
    },
    /// Store this whole set durably, then call [`Node::applied`], and make it so.
    Apply(Arc<SnapshotV1>),
    /// Do this, once.
    Command(CommandV1),
    /// Tokens of pods have come: keep these, and show them.
    Tokens(Arc<Table>),
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// It does not read.
    #[error("cannot read a message of the master")]
    Envelope(#[from] EnvelopeError),
    /// Only a node sends such a message.
    #[error("the master sent a {0:?}, which only a node sends")]
    Direction(Kind),
    /// Something else than a set was sent in parts.
    #[error("a {0:?} was sent in parts, which only a set is")]
    Parts(Kind),
    /// A part that no master makes, or whose whole has another hash.
    #[error("part {index} of {n_parts} is damaged")]
    Damaged {
        /// Its number.
        index: u16,
        /// How many there are.
        n_parts: u16,
    },
}

/// The agent's half of the protocol.
#[derive(Debug)]
pub struct Node {
    boot_id: Uid,
    info: NodeInfoV1,
    running: Vec<(Uid, u64)>,
    /// The newest set taken from the master or from disk.
    set: Option<Arc<SnapshotV1>>,
    /// Epoch and revision of the set on disk.
    applied: (Epoch, u64),
    connection: Option<Connection>,
    conn_seq: u32,
    hello_seq: u32,
    hello_at: Option<Duration>,
    command_counter: u64,
    assembly: Assembly,
    /// Epochs left behind on this connection: what still arrives of them is late.
    retired: Vec<Epoch>,
    reports: Reports,
    tokens: Tokens,
    outputs: Vec<Output>,
}

#[derive(Debug)]
struct Connection {
    /// When to say hello (again); `None` once it is answered.
    hello_due: Option<Duration>,
    /// What the last hello said is not all any more: its answer is none to this.
    has_news: bool,
    hello_wait: Duration,
    n_hellos: u32,
    /// When the last heartbeat was sent, or the connection began. The next one is
    /// due as the set says *then*: a set may shorten the wait that has begun.
    heartbeat_at: Duration,
}

impl Node {
    /// A node that starts. `boot_id` is random; `stored` is the set on disk.
    #[must_use]
    pub fn new(boot_id: Uid, stored: Option<Arc<SnapshotV1>>, info: NodeInfoV1) -> Self {
        let mut tokens = Tokens::new(&boot_id);
        if let Some(set) = &stored {
            tokens.set(set);
        }
        Self {
            boot_id,
            info,
            running: Vec::new(),
            applied: stored.as_ref().map_or((0, 0), |set| (set.epoch, set.revision)),
            set: stored,
            connection: None,
            conn_seq: 0,
            hello_seq: 0,
            hello_at: None,
            command_counter: 0,
            assembly: Assembly::new(sha256),
            retired: Vec::new(),
            reports: Reports::new(boot_id),
            tokens,
            outputs: Vec::new(),
        }
    }

    /// With the tokens that were kept. The time at which it is polled starts at 0.
    #[must_use]
    pub fn with_tokens(mut self, found: &Found) -> Self {
        self.tokens.found(found, self.set.as_deref());
        self
    }

    /// The link is up and subscribed.
    pub fn connected(&mut self, now: Duration) {
        self.conn_seq += 1;
        self.connection = Some(Connection {
            hello_due: Some(now),
            has_news: false,
            hello_wait: HELLO_FIRST,
            n_hellos: 0,
            heartbeat_at: now,
        });
        self.retired.clear();
        self.reports.send_again(now);
        self.tokens.connected(now);
    }

    /// The link is down: what was to be sent is dropped, and made anew later.
    pub fn disconnected(&mut self) {
        self.connection = None;
        self.outputs.retain(|output| !matches!(output, Output::Send { .. }));
    }

    /// The will of the next connection, on [`Channel::Will`].
    #[must_use]
    pub fn will(&self) -> Vec<u8> {
        encode(&GoneV1 { boot_id: self.boot_id, conn_seq: self.conn_seq + 1 })
    }

    /// Takes one message of the master.
    ///
    /// # Errors
    /// Where it does not read, or is none that a master sends. Nothing changes then.
    pub fn receive(&mut self, now: Duration, bytes: &[u8]) -> Result<(), ReceiveError> {
        let Decoded::Message(message) = decode(bytes)? else {
            return Ok(());
        };
        match message {
            Message::Snapshot(set) => self.snapshot(now, set),
            Message::Delta(delta) => self.delta(now, delta),
            Message::Part(part) => return self.part(now, &part),
            Message::UpToDate(answer) => self.up_to_date(answer),
            Message::Command(command) => self.command(now, command),
            Message::ReportAck(ack) => self.reports.acknowledged(&ack),
            Message::Tokens(answer) => {
                if answer.boot_id == self.boot_id && self.tokens.answered(now, answer) {
                    self.outputs.retain(|output| !matches!(output, Output::Tokens(_)));
                    self.outputs.push(Output::Tokens(Arc::new(self.tokens.table().clone())));
                }
            }
            other => return Err(ReceiveError::Direction(other.kind())),
        }
        Ok(())
    }

    /// The driver has stored the set of this revision durably.
    pub fn applied(&mut self, epoch: Epoch, revision: u64) {
        let known = self.set.as_ref().is_some_and(|set| set.epoch == epoch);
        if !known || (self.applied.0 == epoch && revision <= self.applied.1) {
            return;
        }
        self.applied = (epoch, revision);
        self.say_applied();
    }

    /// Statuses that are new or changed. Those of pods that run when the agent
    /// starts come here too, before [`Node::running`] is called first.
    pub fn statuses_changed(&mut self, statuses: Vec<PodStatusV1>) {
        for status in statuses {
            self.reports.changed(status);
        }
    }

    /// Something happened, for people. Best effort: the newest 32 wait for a report.
    pub fn event(&mut self, event: EventV1) {
        self.reports.event(event);
    }

    /// The pods that run, as (uid, generation), for the next hello. The first call
    /// says that all statuses are known, so that a full report can be made.
    pub fn running(&mut self, running: Vec<(Uid, u64)>) {
        self.running = running;
        self.reports.complete();
    }

    /// What the node is changed: the master learns it with a new hello. The address
    /// stays what [`Self::set_address`] made it.
    pub fn info_changed(&mut self, now: Duration, mut info: NodeInfoV1) {
        info.address.clone_from(&self.info.address);
        if self.info != info {
            self.info = info;
            self.say_hello_soon(now);
        }
    }

    /// The address of the link's local end, for the next hello.
    pub fn set_address(&mut self, address: String) {
        self.info.address = address;
    }

    /// Whether the master has answered nothing for so long that a new connection
    /// is worth a try: five hellos, or five copies of a report.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        let Some(connection) = &self.connection else { return false };
        let hellos = connection.hello_due.map_or(0, |_| connection.n_hellos);
        hellos > STALLED_AFTER || self.reports.n_copies() > STALLED_AFTER
    }

    /// What there is to do now.
    pub fn poll(&mut self, now: Duration) -> Vec<Output> {
        let Some(connection) = &mut self.connection else {
            return std::mem::take(&mut self.outputs);
        };
        if connection.hello_due.is_some_and(|due| due <= now) {
            connection.has_news = false;
            connection.hello_due = Some(now + connection.hello_wait);
            connection.hello_wait = HELLO_MAX.min(connection.hello_wait * 2);
            connection.n_hellos += 1;
            self.hello_at = Some(now);
            self.hello_seq += 1;
            let hello = self.hello();
            self.send(Channel::Report, encode(&hello));
        }
        if let Some(bytes) = self.reports.poll(now) {
            self.send(Channel::Report, bytes);
        }
        if let Some(pods) = self.tokens.poll(now) {
            let wanted = TokensWantedV1 { boot_id: self.boot_id, pods };
            self.send(Channel::Report, encode(&wanted));
        }
        let every = self.heartbeat_every();
        if let Some(connection) = &mut self.connection
            && connection.heartbeat_at + every <= now
        {
            connection.heartbeat_at = now;
            let heartbeat = HeartbeatV1 {
                boot_id: self.boot_id,
                conn_seq: self.conn_seq,
                epoch: self.applied.0,
                revision: self.applied.1,
                report_seq: self.reports.newest(),
            };
            self.send(Channel::Heartbeat, encode(&heartbeat));
        }
        std::mem::take(&mut self.outputs)
    }

    /// When to poll again at the latest, if nothing happens before.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let connection = self.connection.as_ref()?;
        let heartbeat_due = connection.heartbeat_at + self.heartbeat_every();
        let tokens_due = self.tokens.next_due();
        [connection.hello_due, Some(heartbeat_due), self.reports.next_due(), tokens_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Epoch and revision of the set on disk.
    #[must_use]
    pub fn applied_revision(&self) -> (Epoch, u64) {
        self.applied
    }

    /// The newest set taken, which the driver may still be storing.
    #[must_use]
    pub fn set(&self) -> Option<&Arc<SnapshotV1>> {
        self.set.as_ref()
    }

    /// Time between two heartbeats, as the set says.
    #[must_use]
    pub fn heartbeat_every(&self) -> Duration {
        let items = self.set.iter().flat_map(|set| &set.items);
        let configured = items.into_iter().find_map(|item| match &item.body {
            BodyV1::Node(config) => Some(config.heartbeat_s),
            _ => None,
        });
        let seconds = configured.unwrap_or(HEARTBEAT_DEFAULT_S).clamp(1, 3600);
        Duration::from_secs(u64::from(seconds))
    }

    fn hello(&self) -> HelloV1 {
        let (epoch, have_revision) = self.applied;
        let stored = self.set.as_ref().filter(|set| (set.epoch, set.revision) == self.applied);
        HelloV1 {
            boot_id: self.boot_id,
            conn_seq: self.conn_seq,
            hello_seq: self.hello_seq,
            epoch,
            have_revision,
            // Zero while the newest set is not on disk yet: it fits no set.
            set_digest: stored.map_or([0; 16], |set| set_digest(&set.items)),
            report_acked: self.reports.acked(),
            command_counter: self.command_counter,
            proto_min: PROTOCOL_VERSION,
            proto_max: PROTOCOL_VERSION,
            caps: 0,
            info: self.info.clone(),
            running: self.running.clone(),
        }
    }

    fn snapshot(&mut self, now: Duration, set: SnapshotV1) {
        if self.retired.contains(&set.epoch) {
            // Late, most likely; if not, the hello stays unanswered, and a new
            // connection takes what this one does not.
            self.say_hello_soon(now);
            return;
        }
        if let Some(newest) = &self.set
            && newest.epoch == set.epoch
        {
            if set.revision < newest.revision {
                return;
            }
            if set.revision == newest.revision {
                self.repeated(set.revision);
                return;
            }
        }
        self.take(set);
    }

    fn delta(&mut self, now: Duration, delta: DeltaV1) {
        let Some(newest) = self.set.as_ref().filter(|set| set.epoch == delta.epoch) else {
            self.say_hello_soon(now);
            return;
        };
        if delta.revision <= newest.revision {
            self.repeated(delta.revision);
            return;
        }
        if delta.base_revision != newest.revision {
            self.say_hello_soon(now);
            return;
        }
        let replaced = |item: &&ItemV1| {
            !delta.remove.contains(&item.uid)
                && !delta.upsert.iter().any(|newer| newer.uid == item.uid)
        };
        let mut items: Vec<ItemV1> = newest.items.iter().filter(replaced).cloned().collect();
        items.extend(delta.upsert.iter().cloned());
        items.sort_by_key(|item| item.uid);
        self.take(SnapshotV1 { epoch: delta.epoch, revision: delta.revision, items });
    }

    fn part(&mut self, now: Duration, part: &PartV1) -> Result<(), ReceiveError> {
        let (ack, whole) = match self.assembly.take(part) {
            Assembled::Partial(ack) => (ack, None),
            Assembled::Whole(ack, bytes) => (ack, Some(bytes)),
            Assembled::Damaged => {
                let (index, n_parts) = (part.index, part.n_parts);
                return Err(ReceiveError::Damaged { index, n_parts });
            }
        };
        self.send(Channel::Report, encode(&ack));
        let Some(bytes) = whole else {
            // The answer is on its way: no hello before it stalls.
            if let Some(connection) = &mut self.connection {
                connection.hello_due = Some(now + HELLO_MAX);
            }
            return Ok(());
        };
        match decode_assembled(&bytes)? {
            Decoded::Message(Message::Snapshot(set)) => self.snapshot(now, set),
            Decoded::Message(Message::Delta(delta)) => self.delta(now, delta),
            Decoded::Message(other) => return Err(ReceiveError::Parts(other.kind())),
            Decoded::Ignored { .. } => {}
        }
        Ok(())
    }

    fn up_to_date(&mut self, answer: UpToDateV1) {
        if (answer.epoch, answer.revision) == self.applied {
            self.answered();
        }
    }

    fn command(&mut self, now: Duration, envelope: CommandEnvelopeV1) {
        if envelope.boot_id != self.boot_id {
            return;
        }
        if envelope.command == CommandV1::Resync {
            // Harmless to repeat, and the way a master begins that knows nothing.
            self.command_counter = self.command_counter.max(envelope.counter);
            self.say_hello_soon(now);
            return;
        }
        let epoch = self.set.as_ref().map_or(0, |set| set.epoch);
        if envelope.epoch != epoch || envelope.counter <= self.command_counter {
            return;
        }
        self.command_counter = envelope.counter;
        match envelope.command {
            CommandV1::ReportAll => self.reports.want_full(),
            CommandV1::RefreshTokens => self.tokens.refresh(now),
            command => self.outputs.push(Output::Command(command)),
        }
    }

    /// Takes a set that is newer than all before it.
    fn take(&mut self, set: SnapshotV1) {
        let left = self.set.as_ref().map(|newest| newest.epoch).filter(|epoch| *epoch != set.epoch);
        if let Some(left) = left {
            self.retired.push(left);
            // A restored master may know older statuses, or none.
            self.reports.other_store();
        }
        let set = Arc::new(set);
        self.tokens.set(&set);
        self.set = Some(set.clone());
        // Only the newest set is worth storing.
        self.outputs.retain(|output| !matches!(output, Output::Apply(_)));
        self.outputs.push(Output::Apply(set));
        self.answered();
    }

    /// A set that the node has already: the acknowledgement was lost.
    fn repeated(&mut self, revision: u64) {
        self.answered();
        let epoch = self.set.as_ref().map_or(0, |set| set.epoch);
        if self.applied.0 == epoch && self.applied.1 >= revision {
            self.say_applied();
        }
    }

    fn answered(&mut self) {
        if let Some(connection) = &mut self.connection {
            if !connection.has_news {
                connection.hello_due = None;
            }
            connection.hello_wait = HELLO_FIRST;
            connection.n_hellos = 0;
        }
    }

    fn say_applied(&mut self) {
        let (epoch, revision) = self.applied;
        let applied = AppliedV1 { epoch, revision, boot_id: self.boot_id };
        self.send(Channel::Report, encode(&applied));
    }

    fn say_hello_soon(&mut self, now: Duration) {
        let earliest = self.hello_at.map_or(now, |at| now.max(at + HELLO_LEAST));
        if let Some(connection) = &mut self.connection {
            let due = connection.hello_due.unwrap_or(earliest);
            connection.hello_due = Some(due.min(earliest));
            connection.has_news = true;
        }
    }

    fn send(&mut self, channel: Channel, bytes: Vec<u8>) {
        if self.connection.is_some() {
            self.outputs.push(Output::Send { channel, bytes });
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn set_digest(items: &[ItemV1]) -> [u8; 16] {
    wire::set::set_digest(items, sha256)
}

#[cfg(test)]
mod tests;
