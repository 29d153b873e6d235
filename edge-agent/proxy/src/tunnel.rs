//! The links between nodes: QUIC first, TLS over TCP where UDP is blocked, through
//! the master where two nodes do not reach each other.
//!
//! ```text
//!                    ┌ quic ─────────── one UDP socket ──────────┐
//!  open, send ─► peer┤ tls ─► mux ──── TCP, the same port ───────┼─► listen ─► flows ─► Acceptor
//!             (choice)└ tls ─► mux ──── Uplink ─► master (relay) ─┘     guard
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | `identity` | certificates: who the other end is |
//! | `guard` | which flows are taken from a peer |
//! | `preface` | what stands in front of streams and datagrams |
//! | `carrier`, `quic`, `mux`, `tls`, `relay` | streams and datagrams over each kind of connection |
//! | `choice` | which way is used, and what is tried when; pure |
//! | `peer` | the task that does so, one a peer |
//! | `session`, `flows`, `pump`, `listen` | links, and what runs over them |
//! | `steer` | two processes on one port, while one succeeds the other |
//!
//! Nothing is dialled before somebody wants to go there, and what nobody uses is
//! closed: a metered link stays quiet. Either end's connection serves both
//! directions, so a node behind NAT is reached over the one that it dialled.

mod carrier;
mod choice;
mod flows;
mod guard;
mod identity;
mod listen;
mod mux;
mod peer;
mod preface;
mod pump;
mod quic;
mod relay;
mod session;
mod steer;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::choice::Lane;
use self::choice::Timing;
pub use self::guard::{Rejected, check};
use self::identity::Keys;
pub use self::identity::{Identity, IdentityError};
use self::peer::{Handle, Place};
pub use self::relay::ALPN_RELAY;
use crate::control::Path;
use crate::links::{Acceptor, BoxFuture, Connection, Flow, Links, Uplink};
use crate::table::{self, Table};

/// Connections through the master that are fetched at once.
const FETCHES_MAX: usize = 16;
/// Ports that are tried where any will do.
const PORT_TRIES: usize = 16;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;
/// Bytes of packets that wait in the kernel; it gives less where it allows less.
const SOCKET_BUFFER: usize = 2 << 20;

/// How links are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen: UDP for QUIC, TCP for TLS. Port 0 picks one that is free for
    /// both. `[::]` serves IPv4 too, and falls back to it where there is no IPv6.
    pub listen: SocketAddr,
    /// A link that is open says so as often; after three times as long without a
    /// word the peer is gone. Longer is cheaper where bytes are paid for; NAT forgets
    /// UDP after 30 s in the worst case.
    pub keep_alive: Duration,
    /// A link that nobody has used for so long is closed.
    pub idle: Duration,
    /// How soon something better is looked for, where a link is not the best.
    pub review: Duration,
    /// What is dialled. Peers may come another way, and are served on it.
    pub lanes: Vec<Lane>,
}

impl Config {
    /// The usual, on this port.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        let timing = Timing::default();
        let keep_alive = Duration::from_secs(15);
        let lanes = vec![Lane::Quic, Lane::Tls, Lane::Relay];
        Self { listen, keep_alive, idle: timing.idle, review: timing.review, lanes }
    }

    fn timing(&self) -> Timing {
        Timing { idle: self.idle, review: self.review, ..Timing::default() }
    }
}

/// Why there are no links.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The port is taken, or may not be used.
    #[error("cannot listen for other nodes on {address} ({transport})")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// UDP or TCP.
        transport: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The links of this node.
#[derive(Clone, Debug)]
pub struct Tunnel {
    core: Arc<Core>,
    /// Ends with the last of the clones.
    _owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner(CancellationToken);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What all parts share.
#[derive(Debug)]
struct Core {
    config: Config,
    keys: RwLock<Arc<Keys>>,
    view: RwLock<Arc<View>>,
    endpoint: quinn::Endpoint,
    uplink: Arc<dyn Uplink>,
    acceptor: Arc<dyn Acceptor>,
    n_sessions: AtomicU64,
    n_rejected: AtomicU64,
    /// Connections over links.
    n_streams: Arc<AtomicUsize>,
    changes: watch::Sender<u64>,
    fetches: Arc<Semaphore>,
    /// Ends everything.
    cancel: CancellationToken,
    /// Ends what accepts.
    leave: CancellationToken,
    tasks: TaskTracker,
    /// Where all of it runs, whoever calls.
    runtime: Runtime,
    started: Instant,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
struct View {
    node: table::Node,
    peers: HashMap<String, Known>,
    /// How often the node's own addresses have changed.
    n_changes: u64,
}

#[derive(Debug)]
struct Known {
    peer: table::Peer,
    handle: Arc<Handle>,
}

impl Core {
    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn next_session(&self) -> u64 {
        self.n_sessions.fetch_add(1, Ordering::Relaxed)
    }

    fn count_rejected(&self) {
        self.n_rejected.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tunnel {
    /// Listens, and serves from tasks of its own on the runtime that this is called on. Knows nobody until
    /// [`Tunnel::set_table`].
    ///
    /// # Errors
    /// The identity cannot be used, or the port is taken.
    pub fn start(
        identity: Identity,
        config: Config,
        uplink: Arc<dyn Uplink>,
        acceptor: Arc<dyn Acceptor>,
    ) -> Result<Self, StartError> {
        let keys = Keys::new(identity)?;
        let mark = steer::mark();
        let n_before = steer::n_on_port(config.listen.port());
        let (udp, tcp) = bind(config.listen)?;
        if config.listen.port() != 0
            && let Err(error) = steer::attach(&udp, mark, n_before)
        {
            tracing::warn!(%error, "links do not outlive an upgrade of this program");
        }
        let address = config.listen;
        let listen = |transport| move |source| StartError::Listen { address, transport, source };
        let endpoint =
            quic::endpoint(udp.into(), &keys, config.keep_alive, mark).map_err(listen("UDP"))?;
        let listener = TcpListener::from_std(tcp.into()).map_err(listen("TCP"))?;
        let cancel = CancellationToken::new();
        let core = Arc::new(Core {
            config,
            keys: RwLock::new(Arc::new(keys)),
            view: RwLock::default(),
            endpoint,
            uplink,
            acceptor,
            n_sessions: AtomicU64::new(1),
            n_rejected: AtomicU64::new(0),
            n_streams: Arc::default(),
            changes: watch::Sender::new(0),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
            leave: cancel.child_token(),
            tasks: TaskTracker::new(),
            runtime: Runtime::current(),
            cancel: cancel.clone(),
            started: Instant::now(),
        });
        core.spawn(listen::run_quic(core.clone(), core.leave.clone()));
        core.spawn(listen::run_tls(core.clone(), listener, core.leave.clone()));
        Ok(Self { core, _owner: Arc::new(Owner(cancel)) })
    }

    /// The port that it listens on, UDP and TCP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.core.endpoint.local_addr().map_or(0, |address| address.port())
    }

    /// Uses another certificate for links that are made from now on.
    ///
    /// # Errors
    /// It cannot be used; the one before is kept.
    pub fn set_identity(&self, identity: Identity) -> Result<(), IdentityError> {
        let keys = Keys::new(identity)?;
        let config = quic::server_config(&keys, self.core.config.keep_alive);
        let config = config.map_err(|error| {
            IdentityError::Certificate(rustls::Error::General(error.to_string()))
        })?;
        self.core.endpoint.set_server_config(Some(config));
        *self.core.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// These are the nodes from now on. A node that is not in the table any more is
    /// cut off.
    pub fn set_table(&self, table: &Table) {
        let mut view = self.core.view.write().unwrap_or_else(PoisonError::into_inner);
        let has_moved = view.node.addresses != table.node.addresses;
        let n_changes = view.n_changes + u64::from(has_moved);
        let mut peers = HashMap::new();
        for peer in &table.peers {
            let at = |&address| SocketAddr::new(address, peer.port);
            let place = Place { addresses: peer.addresses.iter().map(at).collect(), n_changes };
            let handle = match view.peers.get(&peer.name) {
                Some(known) => {
                    known.handle.set_place(place);
                    known.handle.clone()
                }
                None => Handle::start(&self.core, &peer.name, place),
            };
            peers.insert(peer.name.clone(), Known { peer: peer.clone(), handle });
        }
        *view = Arc::new(View { node: table.node.clone(), peers, n_changes });
    }

    /// A node that does not reach this one waits at the master: fetches its
    /// connection.
    pub fn relay(&self, peer: &str, ticket: [u8; 16]) {
        if self.core.leave.is_cancelled() {
            return;
        }
        let fetching = listen::fetch(self.core.clone(), peer.to_owned(), ticket);
        let cancel = self.core.cancel.clone();
        self.core.spawn(async move {
            cancel.run_until_cancelled(fetching).await;
        });
    }

    /// How the other nodes are reached, those that were tried, sorted by name.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        let view = self.core.view();
        let mut paths: Vec<Path> =
            view.peers.values().filter_map(|known| known.handle.path()).collect();
        paths.sort_by(|a, b| a.peer.cmp(&b.peer));
        paths
    }

    /// Changes whenever a path does, other than in its measurements.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.core.changes.subscribe()
    }

    /// How many connections and datagrams of peers were refused because they are not
    /// theirs to send.
    #[must_use]
    pub fn n_rejected(&self) -> u64 {
        self.core.n_rejected.load(Ordering::Relaxed)
    }

    /// Accepts no more links, and asks the peers to open nothing new on those that
    /// are there, or are being made. What is open goes on. To be called once a
    /// successor is on the same port, if there is one.
    pub fn leave(&self) {
        self.core.leave.cancel();
        self.core.endpoint.set_server_config(None);
    }

    /// How many connections there are over links, either way.
    #[must_use]
    pub fn n_streams(&self) -> usize {
        self.core.n_streams.load(Ordering::Relaxed)
    }

    /// Ends every link, and waits until the peers have been told, `grace` at most.
    pub async fn close(&self, grace: Duration) {
        self.core.cancel.cancel();
        self.core.tasks.close();
        let told = async {
            self.core.tasks.wait().await;
            self.core.endpoint.close(0_u32.into(), b"");
            self.core.endpoint.wait_idle().await;
        };
        let _elapsed = tokio::time::timeout(grace, told).await;
    }
}

impl Links for Tunnel {
    fn open<'a>(
        &'a self,
        peer: &'a str,
        flow: Flow,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let handle = self.core.view().peers.get(peer).map(|known| known.handle.clone());
        Box::pin(async move {
            let unknown = || {
                let text = format!("node {peer} is not known");
                io::Error::new(io::ErrorKind::HostUnreachable, text)
            };
            let handle = handle.ok_or_else(unknown)?;
            flows::open(&handle, flow).await
        })
    }

    fn send(&self, peer: &str, flow: Flow, datagram: &[u8]) -> bool {
        let view = self.core.view();
        let Some(known) = view.peers.get(peer) else { return false };
        known.handle.send(preface::encode_datagram(&flow, datagram))
    }
}

/// A socket for QUIC and one for TLS, on the same port.
fn bind(listen: SocketAddr) -> Result<(Socket, Socket), StartError> {
    let mut result = bind_once(listen);
    for _ in 1..PORT_TRIES {
        match &result {
            Err(StartError::Listen { source, .. }) if listen.port() == 0 => {
                if source.kind() != io::ErrorKind::AddrInUse {
                    break;
                }
                result = bind_once(listen);
            }
            _ => break,
        }
    }
    match &result {
        Err(StartError::Listen { source, .. })
            if listen.is_ipv6()
                && listen.ip().is_unspecified()
                && source.kind() != io::ErrorKind::AddrInUse =>
        {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port())))
        }
        _ => result,
    }
}

fn bind_once(listen: SocketAddr) -> Result<(Socket, Socket), StartError> {
    let failed =
        |transport| move |source| StartError::Listen { address: listen, transport, source };
    let udp = socket(listen, Type::DGRAM).map_err(failed("UDP"))?;
    let bound = udp.local_addr().ok().and_then(|address| address.as_socket());
    let port = bound.unwrap_or(listen).port();
    let tcp = socket(SocketAddr::new(listen.ip(), port), Type::STREAM).map_err(failed("TCP"))?;
    Ok((udp, tcp))
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let is_tcp = kind == Type::STREAM;
    let protocol = if is_tcp { SocketProtocol::TCP } else { SocketProtocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    // For a successor, which listens before this process has ended. A port that the
    // kernel chooses is to be nobody else's.
    socket.set_reuse_port(address.port() != 0)?;
    if is_tcp {
        socket.set_reuse_address(true)?;
    } else {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    socket.bind(&address.into())?;
    if is_tcp {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}
