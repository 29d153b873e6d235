//! What all parts of the data plane share: the table in force, the counts of its
//! endpoints, who stays where, and the way to other parts of the program.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::affinity::Affinity;
use crate::balance::{Active, Backend, choose};
use crate::control::Path;
use crate::dial;
use crate::links::{Acceptor, BoxFuture, Connection, Flow, Links, Names, Uplink};
use crate::pump::Relays;
use crate::random::Random;
use crate::table::{Protocol, Table};
use crate::udp::Datagrams;
use crate::view::{Backends, Candidate, Place, Port, Scope, View, Who, gone};

/// How many endpoints are tried before a client is turned away.
pub(crate) const TRIES: usize = 3;

/// Hears of a table.
pub type OnTable = Box<dyn Fn(&Arc<Table>) + Send + Sync>;

/// The other parts of the program.
pub struct Parts {
    /// The way to other nodes.
    pub links: Arc<dyn Links>,
    /// The way to the master.
    pub uplink: Arc<dyn Uplink>,
    /// Who answers questions for names.
    pub names: Arc<dyn Names>,
    /// Hears of every table, before the plane goes by it.
    pub table: OnTable,
    /// Changes whenever a path does.
    pub changes: watch::Receiver<u64>,
    /// Accepts no more links from other nodes, which are told, since a successor does.
    pub leave: Box<dyn Fn() + Send + Sync>,
    /// How many connections there are over links, either way.
    pub n_linked: Box<dyn Fn() -> usize + Send + Sync>,
    /// Ends the links, and waits until the other nodes have been told.
    pub close: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// How the other nodes are reached, for [`crate::control::Status`].
    pub paths: Box<dyn Fn() -> Vec<Path> + Send + Sync>,
    /// Fetches a connection that waits at the master: the peer, and the ticket.
    pub relay: Box<dyn Fn(String, [u8; 16]) + Send + Sync>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { links, uplink, names, .. } = self;
        f.debug_struct("Parts")
            .field("links", links)
            .field("uplink", uplink)
            .field("names", names)
            .finish_non_exhaustive()
    }
}

/// A connection that a successor takes over.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) near: TcpStream,
    pub(crate) far: TcpStream,
    pub(crate) backend: SocketAddr,
    pub(crate) ended: (bool, bool),
}

/// What all parts share.
#[derive(Debug)]
pub(crate) struct Plane {
    view: Mutex<Arc<View>>,
    backends: Mutex<Backends>,
    affinity: Mutex<Affinity>,
    random: Mutex<Random>,
    is_transparent: AtomicBool,
    parts: OnceLock<Parts>,
    grace: Duration,
    pub(crate) relays: Arc<Relays>,
    pub(crate) datagrams: Datagrams,
    /// Where connections go that are paused.
    moving: Mutex<Option<mpsc::Sender<Moving>>>,
    /// How many connections there are that cannot move.
    pub(crate) n_fixed: AtomicUsize,
    /// How many connections are being opened.
    pub(crate) n_opening: AtomicUsize,
    /// A large table has gone, and its memory is to be given back.
    pub(crate) has_freed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plane {
    /// `grace` is how long connections to an endpoint go on that is gone.
    ///
    /// # Errors
    /// There are no raw sockets for answers to datagrams.
    pub(crate) fn new(grace: Duration) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            view: Mutex::default(),
            backends: Mutex::default(),
            affinity: Mutex::default(),
            random: Mutex::new(Random::new()),
            is_transparent: AtomicBool::new(false),
            parts: OnceLock::new(),
            grace,
            relays: Arc::default(),
            datagrams: Datagrams::new()?,
            moving: Mutex::default(),
            n_fixed: AtomicUsize::new(0),
            n_opening: AtomicUsize::new(0),
            has_freed: AtomicBool::new(false),
        }))
    }

    /// Said once, before anything is accepted.
    pub(crate) fn set_parts(&self, parts: Parts) {
        let _ = self.parts.set(parts);
    }

    pub(crate) fn parts(&self) -> io::Result<&Parts> {
        self.parts.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Whether answers to another's address come back here.
    pub(crate) fn set_transparent(&self, is_transparent: bool) {
        self.is_transparent.store(is_transparent, Ordering::Relaxed);
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&lock(&self.view))
    }

    /// Where paused connections go from now on.
    pub(crate) fn set_moving(&self, to: Option<mpsc::Sender<Moving>>) {
        *lock(&self.moving) = to;
    }

    pub(crate) fn moving(&self) -> Option<mpsc::Sender<Moving>> {
        lock(&self.moving).clone()
    }

    /// Puts a table in force.
    pub(crate) fn set_table(self: &Arc<Self>, table: Arc<Table>) -> Arc<View> {
        let view = Arc::new(View::new(table, &mut lock(&self.backends)));
        let before = std::mem::replace(&mut *lock(&self.view), Arc::clone(&view));
        self.datagrams.follow(&view);
        let gone = gone(&before.table, &view.table);
        if !gone.is_empty() {
            let plane = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(plane.grace).await;
                let there: HashSet<SocketAddr> = crate::view::endpoints(&plane.view().table);
                for address in gone.difference(&there) {
                    plane.relays.cut(*address);
                }
            });
        }
        view
    }

    /// An endpoint for a client that has not been tried.
    pub(crate) fn pick(
        &self,
        port: &Port,
        scope: Scope,
        client: IpAddr,
        tried: &[SocketAddr],
    ) -> Option<Candidate> {
        let candidates = port.candidates(scope);
        let is_tried = |candidate: &Candidate| tried.contains(&candidate.backend.address);
        if port.affinity.is_some()
            && let Some(kept) = lock(&self.affinity).get((port.id, client), Instant::now())
            && let Some(found) = candidates.iter().find(|c| c.backend.address == kept)
            && !is_tried(found)
        {
            return Some(found.clone());
        }
        let n = choose(
            candidates.len(),
            |n| is_tried(&candidates[n]),
            |n| candidates[n].backend.active(),
            lock(&self.random).next(),
        )?;
        candidates.get(n).cloned()
    }

    /// The client has reached this endpoint, or has not.
    pub(crate) fn reached(&self, port: &Port, client: IpAddr, at: SocketAddr, is_reached: bool) {
        let Some(timeout) = port.affinity else { return };
        let mut affinity = lock(&self.affinity);
        if is_reached {
            affinity.keep((port.id, client), at, timeout, Instant::now());
        } else {
            affinity.forget((port.id, client), at);
        }
    }

    /// A backend to count a connection at that no Service led to.
    pub(crate) fn begin(&self, address: SocketAddr) -> Active {
        match lock(&self.backends).get(&address) {
            Some(backend) => backend.begin(),
            None => Backend::new(address).begin(),
        }
    }

    /// The source that a dial has.
    pub(crate) fn source(
        &self,
        view: &View,
        client: IpAddr,
        to: IpAddr,
        place: &Place,
    ) -> Option<IpAddr> {
        let is_transparent = self.is_transparent.load(Ordering::Relaxed);
        is_transparent.then(|| view.source(client, to, place)).flatten()
    }

    /// What another node is told of a connection.
    pub(crate) fn flow(
        view: &View,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Flow {
        let is_external = view.who(client.ip()) == Who::Outside;
        Flow { protocol, source: view.source_for_peer(client), destination, is_external }
    }
}

/// The plane as other nodes reach it.
#[derive(Debug)]
pub(crate) struct Entrance(pub(crate) Arc<Plane>);

impl Acceptor for Entrance {
    fn connect(&self, peer: &str, flow: Flow) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        let peer = peer.to_owned();
        Box::pin(async move {
            let view = self.0.view();
            let (client, to) = (flow.source.ip(), flow.destination);
            let place = view.place(to.ip());
            if !matches!(place, Place::Pod | Place::Node) {
                tracing::debug!(%peer, %to, "a connection to nobody of this node");
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            if view.allows(flow.protocol, client, to).is_err() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let source = self.0.source(&view, client, to.ip(), &place);
            let stream = dial::connect(source, to).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }

    fn datagram(&self, peer: &str, flow: Flow, datagram: &[u8]) {
        crate::udp::from_peer(&self.0, peer, flow, datagram);
    }
}
