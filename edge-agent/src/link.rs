//! Keeps the connection to the master and moves the messages of
//! [`Node`](crate::node::Node) over it.
//!
//! ```text
//!   agent ──LinkHandle──► driver ──► Node ──► Session ──► master
//!   agent ◄─LinkOutputs── driver ◄── Node ◄── Session ◄── master
//! ```
//!
//! One task, the driver, owns the node. What the agent says goes in through a
//! bounded channel and is taken whether the link is up or not; sets come out
//! through a `watch`, since only the newest matters, and commands through a
//! bounded channel. Between two connections it waits, 1 s at first, doubled to
//! 60 s, a random part of it, so that a fleet does not return at once.

pub mod dial;
pub mod mqtt;
pub mod tls;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use wire::Epoch;
use wire::Uid;
use wire::command::CommandV1;
use wire::node::NodeInfoV1;
use wire::set::SnapshotV1;
use wire::status::{EventV1, PodStatusV1};
use wire::topic::Channel;

use crate::node::{Node, Output};
use crate::tokens::Table;

pub use self::dial::{DialError, Dialer};
pub use self::mqtt::MqttLink;

/// First wait between two connections, doubled to at most [`BACK_OFF_MAX`].
pub const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two connections.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// A connection that held this long makes the next wait short again.
pub const STEADY_AFTER: Duration = Duration::from_secs(60);
/// Time for the last messages when the agent stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// Requests of the agent, and commands for it, that wait.
const QUEUE: usize = 64;

/// What happens on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected and subscribed.
    Up {
        /// With whom.
        endpoint: String,
    },
    /// A message of the master.
    Message(Bytes),
    /// It ended, and nothing follows.
    Down(String),
}

/// One connection, from its first attempt to its end.
#[derive(Debug)]
pub struct Session {
    /// What happens on it.
    pub events: mpsc::Receiver<LinkEvent>,
    /// Takes what is to be sent; what does not fit is dropped and made anew later.
    pub messages: mpsc::Sender<(Channel, Vec<u8>)>,
    /// What serves it; aborted when the session is dropped.
    pub tasks: JoinSet<()>,
}

/// A way to reach the master.
pub trait Link: Send + Sync + 'static {
    /// Begins a connection. `attempt` counts the attempts since the last that
    /// held, to go through the endpoints; `will` is published if it breaks.
    fn open(&self, attempt: usize, will: Vec<u8>, keep_alive: Duration) -> Session;
}

/// Whether the master is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Whether a connection stands.
    pub connected: bool,
    /// Why the last one ended or failed.
    pub last_error: Option<String>,
}

/// Where the agent says what happens on the node.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<LinkState>,
}

/// What the master wants of the node.
#[derive(Debug)]
pub struct LinkOutputs {
    /// The newest set: store it durably, say [`LinkHandle::applied`], make it so.
    /// Starts with the set that the node had on disk.
    pub sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
    /// What to do once.
    pub commands: mpsc::Receiver<CommandV1>,
    /// The tokens of pods, once some have come.
    pub tokens: watch::Receiver<Arc<Table>>,
}

#[derive(Debug)]
enum Request {
    Applied(Epoch, u64),
    Statuses(Vec<PodStatusV1>),
    Event(EventV1),
    Running(Vec<(Uid, u64)>),
    Info(Box<NodeInfoV1>),
    Gone(Vec<IpAddr>),
}

impl LinkHandle {
    /// The set of this revision is stored durably.
    pub async fn applied(&self, epoch: Epoch, revision: u64) {
        self.request(Request::Applied(epoch, revision)).await;
    }

    /// Statuses that are new or changed, see [`Node::statuses_changed`].
    pub async fn statuses_changed(&self, statuses: Vec<PodStatusV1>) {
        self.request(Request::Statuses(statuses)).await;
    }

    /// Something happened, for people. Dropped where too much waits.
    pub fn event(&self, event: EventV1) {
        let _dropped = self.requests.try_send(Request::Event(event));
    }

    /// The pods that run, see [`Node::running`].
    pub async fn running(&self, running: Vec<(Uid, u64)>) {
        self.request(Request::Running(running)).await;
    }

    /// What the node is changed.
    pub async fn info_changed(&self, info: NodeInfoV1) {
        self.request(Request::Info(Box::new(info))).await;
    }

    /// The machine has these addresses no longer: a connection from one of them hears
    /// nothing any more, and is made anew at once.
    pub async fn addresses_gone(&self, gone: Vec<IpAddr>) {
        self.request(Request::Gone(gone)).await;
    }

    /// Whether the master is reached, now and when it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Only waits while the driver is busy; it takes requests without a link too.
    async fn request(&self, request: Request) {
        let _driver_ended = self.requests.send(request).await;
    }
}

/// Makes the driver of `node`; it runs while its future is polled, until `cancel`.
pub fn drive(
    link: impl Link,
    node: Node,
    cancel: CancellationToken,
) -> (LinkHandle, LinkOutputs, impl Future<Output = ()> + Send + 'static) {
    let (request_sender, requests) = mpsc::channel(QUEUE);
    let (state_sender, state) = watch::channel(LinkState::default());
    let (sets_sender, sets) = watch::channel(node.set().cloned());
    let (commands_sender, commands) = mpsc::channel(QUEUE);
    let (tokens_sender, tokens) = watch::channel(Arc::default());
    let driver = Driver {
        link,
        node,
        requests,
        state: state_sender,
        sets: sets_sender,
        commands: commands_sender,
        tokens: tokens_sender,
        start: Instant::now(),
        session: None,
        keep_alive: Duration::ZERO,
        up_since: None,
        attempt: 0,
        connect_at: Instant::now(),
        local: None,
    };
    let handle = LinkHandle { requests: request_sender, state };
    (handle, LinkOutputs { sets, commands, tokens }, driver.run(cancel))
}

struct Driver<L> {
    link: L,
    node: Node,
    requests: mpsc::Receiver<Request>,
    state: watch::Sender<LinkState>,
    sets: watch::Sender<Option<Arc<SnapshotV1>>>,
    commands: mpsc::Sender<CommandV1>,
    tokens: watch::Sender<Arc<Table>>,
    start: Instant,
    session: Option<Session>,
    /// What the session was opened with.
    keep_alive: Duration,
    up_since: Option<Instant>,
    attempt: u32,
    connect_at: Instant,
    /// The address that the session has here.
    local: Option<IpAddr>,
}

impl<L: Link> Driver<L> {
    async fn run(mut self, cancel: CancellationToken) {
        let mut requests_open = true;
        loop {
            self.perform();
            let keep_alive = keep_alive(self.node.heartbeat_every());
            if self.up_since.is_some() && keep_alive != self.keep_alive {
                // A set has changed how often the node is heard from. MQTT agrees on the
                // time between pings when it connects, and pings cost more than all else.
                tracing::info!(
                    seconds = keep_alive.as_secs(),
                    "connecting anew with another time between pings"
                );
                self.goodbye().await;
                self.node.disconnected();
                self.up_since = None;
                self.connect_at = Instant::now();
            }
            if self.session.is_none() && Instant::now() >= self.connect_at {
                self.keep_alive = keep_alive;
                let attempt = usize::try_from(self.attempt).unwrap_or(usize::MAX);
                self.session = Some(self.link.open(attempt, self.node.will(), keep_alive));
            }
            let due = match (&self.session, self.node.next_due()) {
                (Some(_), Some(due)) => Some(self.start + due),
                (Some(_), None) => None,
                (None, _) => Some(self.connect_at),
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                request = self.requests.recv(), if requests_open => match request {
                    Some(request) => self.take(request),
                    None => requests_open = false,
                },
                event = next_event(&mut self.session) => self.happened(event).await,
                () = until(due) => {}
            }
        }
        self.goodbye().await;
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Applied(epoch, revision) => self.node.applied(epoch, revision),
            Request::Statuses(statuses) => self.node.statuses_changed(statuses),
            Request::Event(event) => self.node.event(event),
            Request::Running(running) => self.node.running(running),
            Request::Info(info) => self.node.info_changed(self.now(), *info),
            Request::Gone(gone) if self.local.is_some_and(|local| gone.contains(&local)) => {
                self.down("its address here is gone");
            }
            Request::Gone(_) => {}
        }
    }

    async fn happened(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { endpoint } => {
                tracing::info!(endpoint, "connected to the master");
                self.local = local_address(&endpoint).await;
                if let Some(address) = self.local {
                    self.node.set_address(address.to_string());
                }
                self.node.connected(self.now());
                self.up_since = Some(Instant::now());
                self.state.send_replace(LinkState { connected: true, last_error: None });
            }
            LinkEvent::Message(bytes) => {
                if let Err(error) = self.node.receive(self.now(), &bytes) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "message of the master dropped");
                }
                if self.node.is_stalled() {
                    self.down("the master does not answer");
                }
            }
            LinkEvent::Down(reason) => self.down(&reason),
        }
    }

    fn down(&mut self, reason: &str) {
        self.session = None;
        self.local = None;
        self.node.disconnected();
        let steady = self.up_since.take().is_some_and(|since| since.elapsed() >= STEADY_AFTER);
        self.attempt = if steady { 0 } else { self.attempt.saturating_add(1) };
        let wait = back_off(self.attempt, random());
        self.connect_at = Instant::now() + wait;
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(reason, wait_ms, "no connection to the master");
        let last_error = Some(reason.to_owned());
        self.state.send_replace(LinkState { connected: false, last_error });
    }

    /// Does what the node wants done.
    fn perform(&mut self) {
        for output in self.node.poll(self.now()) {
            match output {
                Output::Send { channel, bytes } => {
                    let Some(session) = &self.session else { continue };
                    if session.messages.try_send((channel, bytes)).is_err() {
                        tracing::debug!(?channel, "link is busy: message dropped, made anew later");
                    }
                }
                Output::Apply(set) => {
                    self.sets.send_replace(Some(set));
                }
                Output::Tokens(table) => {
                    self.tokens.send_replace(table);
                }
                Output::Command(command) => {
                    if self.commands.try_send(command).is_err() {
                        tracing::warn!("too many commands at once: one dropped");
                    }
                }
            }
        }
        if self.session.is_some() && self.node.is_stalled() {
            self.down("the master does not answer");
        }
    }

    /// Ends the connection in order, so that the master does not take it for lost.
    async fn goodbye(&mut self) {
        let Some(Session { mut events, messages, tasks }) = self.session.take() else { return };
        drop(messages);
        let ended = async {
            while let Some(event) = events.recv().await {
                if matches!(event, LinkEvent::Down(_)) {
                    break;
                }
            }
        };
        let _elapsed = tokio::time::timeout(GOODBYE, ended).await;
        drop(tasks);
    }
}

async fn next_event(session: &mut Option<Session>) -> LinkEvent {
    match session {
        None => std::future::pending().await,
        Some(session) => match session.events.recv().await {
            Some(event) => event,
            None => LinkEvent::Down("its task ended".into()),
        },
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Time between two pings. Heartbeats say that the node lives; a ping only finds
/// out that nobody listens, and costs as much as a heartbeat.
#[must_use]
pub fn keep_alive(heartbeat: Duration) -> Duration {
    (heartbeat * 5).clamp(Duration::from_secs(30), Duration::from_secs(1200))
}

/// The wait before the attempt after `attempt` that failed: a random part, at
/// least a tenth, of 1 s doubled with each, at most 60 s.
#[must_use]
pub fn back_off(attempt: u32, random: u64) -> Duration {
    let longest = BACK_OFF_FIRST * 2u32.saturating_pow(attempt.saturating_sub(1).min(10));
    let longest_ms = u64::try_from(longest.min(BACK_OFF_MAX).as_millis()).unwrap_or(u64::MAX);
    let least_ms = longest_ms / 10;
    Duration::from_millis(least_ms + random % (longest_ms - least_ms + 1))
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers there is no TLS either; the wait is then the longest.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_unspecified) => u64::MAX,
    }
}

/// The address from which this machine reaches `endpoint`. Sends nothing.
async fn local_address(endpoint: &str) -> Option<IpAddr> {
    let (host, port) = wire::token::split_endpoint(endpoint)?;
    let remote = tokio::net::lookup_host((host, port)).await.ok()?.next()?;
    let any: IpAddr = match remote.ip() {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(remote).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests;
