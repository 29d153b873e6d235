//! The task that owns the ways to one peer: does what [`Choice`] says, and tells
//! it what came of it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::carrier::Carrier;
use super::choice::{Action, Choice, Lane, Measured, State, Target};
use super::session::Session;
use super::{Core, flows, quic, relay, tls};
use crate::control::Path;

/// Commands that wait for the task.
const COMMANDS_MAX: usize = 64;
/// Datagrams that wait for a way.
const WAITING_MAX: usize = 32;
/// Their bytes.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// Most links to one peer.
const SESSIONS_MAX: usize = 16;
/// Time for one address.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the master, which waits for the peer.
const RELAY_TIMEOUT: Duration = Duration::from_secs(15);
/// Packets between two measurements of loss.
const LOSS_PACKETS: u64 = 200;

/// How a peer is reached.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    /// Nobody wanted to go there.
    Idle,
    Trying,
    Up {
        session: Arc<Session>,
        /// Why not better.
        why: Arc<str>,
    },
    Down {
        why: Arc<str>,
        /// Not tried again before then.
        until: Instant,
    },
}

pub(super) enum Command {
    /// Somebody wants to go there.
    Wanted,
    /// The peer dialled.
    Incoming(Arc<Session>),
    /// A link gives no answer.
    Suspect(u64),
}

/// Where the peer is, and how often this node's own network has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) n_changes: u64,
}

/// What others have of the task.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) name: Arc<str>,
    place: watch::Sender<Place>,
    reach: watch::Receiver<Reach>,
    commands: mpsc::Sender<Command>,
    waiting: Arc<Mutex<Waiting>>,
    gone: CancellationToken,
}

/// Datagrams that wait for a way.
#[derive(Debug, Default)]
struct Waiting {
    datagrams: VecDeque<Vec<u8>>,
    n_bytes: usize,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

impl Handle {
    /// Starts the task of a peer. It ends when the handle is dropped.
    pub(super) fn start(core: &Arc<Core>, name: &str, place: Place) -> Arc<Self> {
        let (place, placed) = watch::channel(place);
        let (reached, reach) = watch::channel(Reach::Idle);
        let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
        let waiting = Arc::<Mutex<Waiting>>::default();
        let gone = core.cancel.child_token();
        let name: Arc<str> = name.into();
        let task = Task {
            choice: Choice::new(core.config.timing(), &core.config.lanes, &core.keys().node, &name),
            core: core.clone(),
            name: name.clone(),
            sessions: HashMap::new(),
            attempts: JoinSet::new(),
            aborts: HashMap::new(),
            ends: JoinSet::new(),
            reached,
            waiting: waiting.clone(),
            n_changes: 0,
        };
        core.spawn(task.run(placed, commanded, gone.clone()));
        Arc::new(Self { name, place, reach, commands, waiting, gone })
    }

    pub(super) fn set_place(&self, place: Place) {
        self.place.send_if_modified(|old| {
            let is_new = *old != place;
            *old = place;
            is_new
        });
    }

    /// A link to the peer, none of `not`; waits until there is one.
    pub(super) async fn session(&self, not: &[u64], deadline: Instant) -> io::Result<Arc<Session>> {
        let mut reach = self.reach.clone();
        loop {
            let now = reach.borrow_and_update().clone();
            match now {
                Reach::Up { session, .. } if !not.contains(&session.id) => return Ok(session),
                Reach::Down { why, until } if Instant::now() < until => {
                    return Err(self.unreachable(io::ErrorKind::HostUnreachable, &why));
                }
                Reach::Idle | Reach::Down { .. } => {
                    let _full = self.commands.try_send(Command::Wanted);
                }
                Reach::Trying | Reach::Up { .. } => {}
            }
            match timeout_at(deadline, reach.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_gone)) => {
                    let why = "it is no node of the cluster any more";
                    return Err(self.unreachable(io::ErrorKind::HostUnreachable, why));
                }
                Err(_elapsed) => {
                    let why = "no way was found in time";
                    return Err(self.unreachable(io::ErrorKind::TimedOut, why));
                }
            }
        }
    }

    fn unreachable(&self, kind: io::ErrorKind, why: &str) -> io::Error {
        io::Error::new(kind, format!("node {} cannot be reached: {why}", self.name))
    }

    /// Sends a datagram, or keeps it until there is a way. False where there is none.
    pub(super) fn send(&self, datagram: Vec<u8>) -> bool {
        match &*self.reach.borrow() {
            Reach::Up { session, .. } => {
                session.is_used();
                return session.carrier.send_datagram(datagram);
            }
            Reach::Down { until, .. } if Instant::now() < *until => return false,
            _ => {}
        }
        {
            let mut waiting = lock(&self.waiting);
            if waiting.datagrams.len() >= WAITING_MAX
                || waiting.n_bytes + datagram.len() > WAITING_BYTES_MAX
            {
                return false;
            }
            waiting.n_bytes += datagram.len();
            waiting.datagrams.push_back(datagram);
        }
        // The task sends what waits whenever it has looked around.
        let _full = self.commands.try_send(Command::Wanted);
        true
    }

    /// The peer dialled.
    pub(super) async fn incoming(&self, session: Arc<Session>) {
        let _gone = self.commands.send(Command::Incoming(session)).await;
    }

    /// A link gives no answer.
    pub(super) async fn suspect(&self, id: u64) {
        let _gone = self.commands.send(Command::Suspect(id)).await;
    }

    /// How it is reached; `None` where nobody tried.
    pub(super) fn path(&self) -> Option<Path> {
        let peer = self.name.to_string();
        match &*self.reach.borrow() {
            Reach::Idle => None,
            Reach::Trying => Some(Path { peer, lane: "none".into(), ..Path::default() }),
            Reach::Down { why, .. } => {
                Some(Path { peer, lane: "none".into(), why: why.to_string(), ..Path::default() })
            }
            Reach::Up { session, why } => {
                let measures = session.measures();
                let loss = measures.n_lost.saturating_mul(10_000) / measures.n_sent.max(1);
                Some(Path {
                    peer,
                    lane: session.lane.to_string(),
                    remote: session.remote().map(|remote| remote.to_string()).unwrap_or_default(),
                    rtt_us: measures.rtt_us,
                    loss_per_10000: u32::try_from(loss).unwrap_or(u32::MAX),
                    tx_bytes: measures.tx_bytes,
                    rx_bytes: measures.rx_bytes,
                    age_s: session.born.elapsed().as_secs(),
                    why: why.to_string(),
                })
            }
        }
    }
}

struct Task {
    core: Arc<Core>,
    name: Arc<str>,
    choice: Choice,
    sessions: HashMap<u64, Metered>,
    attempts: JoinSet<(u32, io::Result<Session>)>,
    aborts: HashMap<u32, AbortHandle>,
    /// What becomes of links.
    ends: JoinSet<(u64, End)>,
    reached: watch::Sender<Reach>,
    waiting: Arc<Mutex<Waiting>>,
    n_changes: u64,
}

enum End {
    Closed(String),
    Leaving,
}

/// A link, and what was measured of it last.
struct Metered {
    session: Arc<Session>,
    n_sent: u64,
    n_lost: u64,
    rx_bytes: u64,
    loss: u32,
}

impl Task {
    async fn run(
        mut self,
        mut placed: watch::Receiver<Place>,
        mut commanded: mpsc::Receiver<Command>,
        gone: CancellationToken,
    ) {
        placed.mark_changed();
        loop {
            self.measure();
            self.act();
            self.publish();
            let now = self.now();
            let due = self.choice.next_due(now).map(|due| self.core.started + due);
            tokio::select! {
                biased;
                () = gone.cancelled() => break,
                Ok(()) = placed.changed() => {
                    let place = placed.borrow_and_update().clone();
                    self.place(place);
                }
                Some(ended) = self.ends.join_next() => match ended {
                    Ok((id, End::Closed(why))) => {
                        tracing::debug!(peer = &*self.name, why, "a link ended");
                        self.sessions.remove(&id);
                        self.choice.closed(self.now(), id, &why);
                    }
                    Ok((id, End::Leaving)) => self.choice.leaving(id),
                    Err(_aborted) => {}
                },
                Some(attempted) = self.attempts.join_next() => {
                    // An attempt that was stopped says nothing.
                    if let Ok((number, result)) = attempted {
                        self.attempted(number, result);
                    }
                }
                Some(command) = commanded.recv() => self.command(command),
                () = sleep_till(due) => {}
            }
        }
        for metered in self.sessions.values() {
            metered.session.carrier.close();
        }
    }

    fn now(&self) -> Duration {
        self.core.started.elapsed()
    }

    fn place(&mut self, place: Place) {
        let now = self.now();
        if self.n_changes != place.n_changes {
            self.n_changes = place.n_changes;
            self.measure();
            self.choice.network_changed(now);
        }
        self.choice.set_addresses(now, place.addresses);
    }

    fn command(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Wanted => self.choice.wanted(now),
            Command::Suspect(id) => {
                // What was heard before is no sign of life.
                self.measure();
                self.choice.suspect(now, id);
            }
            Command::Incoming(session) if self.sessions.len() < SESSIONS_MAX => {
                self.add(None, session);
            }
            Command::Incoming(_one_too_many) => {}
        }
    }

    fn attempted(&mut self, number: u32, result: io::Result<Session>) {
        let is_wanted = self.aborts.remove(&number).is_some();
        match result {
            // It was stopped, and came through all the same.
            Ok(_session) if !is_wanted => {}
            Ok(session) => self.add(Some(number), Arc::new(session)),
            Err(error) => {
                tracing::debug!(peer = &*self.name, %error, "an attempt failed");
                self.choice.failed(self.now(), number, &error.to_string());
            }
        }
    }

    fn add(&mut self, number: Option<u32>, session: Arc<Session>) {
        let id = session.id;
        let actions = self.choice.connected(self.now(), number, session.way());
        tokio::spawn(flows::serve(self.core.clone(), self.name.clone(), session.clone()));
        let watched = session.clone();
        self.ends.spawn(async move { (id, End::Closed(watched.carrier.closed().await)) });
        let watched = session.clone();
        self.ends.spawn(async move {
            tokio::select! {
                _over = watched.carrier.closed() => std::future::pending().await,
                () = watched.leaving() => (id, End::Leaving),
            }
        });
        tokio::spawn(say_when_leaving(self.core.leave.clone(), session.clone()));
        let metered = Metered { session, n_sent: 0, n_lost: 0, rx_bytes: 0, loss: 0 };
        self.sessions.insert(id, metered);
        self.execute(actions);
    }

    fn act(&mut self) {
        let actions = self.choice.poll(self.now());
        self.execute(actions);
    }

    fn execute(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Dial(number, target) => {
                    let (core, name) = (self.core.clone(), self.name.clone());
                    let dialling =
                        async move { (number, dial_in_time(&core, &name, target).await) };
                    self.aborts.insert(number, self.attempts.spawn(dialling));
                }
                Action::Abort(number) => {
                    let abort = self.aborts.remove(&number);
                    abort.into_iter().for_each(|abort| abort.abort());
                }
                Action::Close(id) => {
                    let closed = self.sessions.remove(&id);
                    closed.into_iter().for_each(|metered| metered.session.carrier.close());
                }
            }
        }
    }

    fn measure(&mut self) {
        for (id, metered) in &mut self.sessions {
            let session = &metered.session;
            let measures = session.measures();
            let n_sent = measures.n_sent.saturating_sub(metered.n_sent);
            if n_sent >= LOSS_PACKETS {
                let n_lost = measures.n_lost.saturating_sub(metered.n_lost);
                metered.loss = u32::try_from(n_lost * 10_000 / n_sent).unwrap_or(u32::MAX);
                (metered.n_sent, metered.n_lost) = (measures.n_sent, measures.n_lost);
            }
            let measured = Measured {
                rtt_us: measures.rtt_us,
                loss: metered.loss,
                n_streams: session.n_streams(),
                used: session.used().saturating_duration_since(self.core.started),
                is_heard: measures.rx_bytes > metered.rx_bytes,
            };
            metered.rx_bytes = measures.rx_bytes;
            self.choice.measured(*id, measured);
        }
    }

    fn publish(&mut self) {
        let why = self.choice.why();
        let new = match self.choice.state(self.now()) {
            State::Idle => Reach::Idle,
            State::Trying => Reach::Trying,
            State::Down(until) => {
                *lock(&self.waiting) = Waiting::default();
                Reach::Down { why: why.into(), until: self.core.started + until }
            }
            State::Up(id) => match self.sessions.get(&id) {
                Some(metered) => {
                    let session = metered.session.clone();
                    Reach::Up { session, why: why.into() }
                }
                None => Reach::Idle,
            },
        };
        let is_new = self.reached.send_if_modified(|old| {
            let is_same = match (&*old, &new) {
                (Reach::Idle, Reach::Idle) | (Reach::Trying, Reach::Trying) => true,
                (Reach::Up { session: a, why: why_a }, Reach::Up { session: b, why: why_b }) => {
                    Arc::ptr_eq(a, b) && why_a == why_b
                }
                (Reach::Down { until: a, .. }, Reach::Down { until: b, .. }) => a == b,
                _ => false,
            };
            *old = new.clone();
            !is_same
        });
        if is_new {
            self.core.changes.send_modify(|n_changes| *n_changes += 1);
        }
        if let Reach::Up { session, .. } = &new {
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            for datagram in waiting.datagrams {
                session.is_used();
                session.carrier.send_datagram(datagram);
            }
        }
    }
}

/// Tells the peer once this node is to open nothing new on a link, unless it ends.
async fn say_when_leaving(leave: CancellationToken, session: Arc<Session>) {
    let telling = async {
        leave.cancelled().await;
        session.leave().await;
    };
    tokio::select! {
        _over = session.carrier.closed() => {}
        () = telling => {}
    }
}

async fn sleep_till(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn dial_in_time(core: &Core, peer: &str, target: Target) -> io::Result<Session> {
    let patience = if target.lane == Lane::Relay { RELAY_TIMEOUT } else { DIAL_TIMEOUT };
    let late = |_elapsed| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    timeout(patience, dial(core, peer, target)).await.map_err(late)?
}

async fn dial(core: &Core, peer: &str, target: Target) -> io::Result<Session> {
    let keys = core.keys();
    let keep_alive = core.config.keep_alive;
    let carrier = match (target.lane, target.address) {
        (Lane::Quic, Some(address)) => {
            Carrier::Quic(quic::dial(&core.endpoint, &keys, peer, address, keep_alive).await?)
        }
        (Lane::Tls, Some(address)) => {
            Carrier::Mux(tls::dial(&keys, peer, address, keep_alive).await?, Some(address))
        }
        _ => {
            let connection = relay::reach(&*core.uplink, peer).await?;
            Carrier::Mux(tls::dial_over(connection, &keys, peer, keep_alive).await?, None)
        }
    };
    Session::dialled(core, target.lane, carrier).await
}
