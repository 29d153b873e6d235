//! TCP: from an accepted connection to the one that it leads to.
//!
//! ```text
//! accept ─► where to? ─► dial, the next endpoint where one fails ─► carry bytes
//!               │                       │
//!               └── nowhere ────────────┴──► reset
//! ```
//!
//! The client's bytes are not touched before somebody has answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::error::SendError;

use crate::balance::Active;
use crate::dial;
use crate::links::{ALPN_API, Connection};
use crate::plane::{Moving, Plane, TRIES};
use crate::ports::Entry;
use crate::pump::{End, relay, relay_stream};
use crate::table::Protocol;
use crate::view::{Place, Port, Scope, View, Way};

/// How long to wait where no descriptor is left.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the master may take.
const UPLINK_TIMEOUT: Duration = Duration::from_secs(15);

/// Accepts until it is aborted.
pub(crate) async fn accept(plane: Arc<Plane>, listener: Arc<TcpListener>, entry: Entry) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let (plane, entry) = (Arc::clone(&plane), entry.clone());
                // Counted from here on: a task that waits for its turn is one, too.
                let opening = Counted::opening(&plane);
                tokio::spawn(serve(plane, opening, stream, client, entry));
            }
            // One that is gone already. Everything else is a want of descriptors or
            // memory, which passes.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Counts a connection, at one of the plane's counters, until it is dropped.
struct Counted(Arc<Plane>, fn(&Plane) -> &AtomicUsize);

impl Counted {
    /// One that is being opened.
    fn opening(plane: &Arc<Plane>) -> Self {
        Self::at(plane, |plane| &plane.n_opening)
    }

    /// One that cannot move to a successor.
    fn fixed(plane: &Arc<Plane>) -> Self {
        Self::at(plane, |plane| &plane.n_fixed)
    }

    fn at(plane: &Arc<Plane>, counter: fn(&Plane) -> &AtomicUsize) -> Self {
        counter(plane).fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(plane), counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a connection goes on.
enum Far {
    Tcp(TcpStream),
    Stream(Box<dyn Connection>),
}

async fn serve(
    plane: Arc<Plane>,
    opening: Counted,
    stream: TcpStream,
    client: SocketAddr,
    entry: Entry,
) {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let Ok(asked) = stream.local_addr() else { return };
    let view = plane.view();
    let way = entry.way(&view, Protocol::Tcp, client.ip(), asked);
    let opened = match way {
        Some(Way::Names) => {
            if let Ok(parts) = plane.parts() {
                let names = Arc::clone(&parts.names);
                let _fixed = Counted::fixed(&plane);
                drop((view, opening, plane));
                names.stream(client, Box::new(stream)).await;
            }
            return;
        }
        Some(Way::Api(port)) => open_api(&plane, &view, &port, client, asked).await,
        Some(Way::Service(port, scope)) => open_service(&plane, &view, &port, scope, client).await,
        Some(Way::Direct(to, place)) => {
            let active = plane.begin(to);
            open(&plane, &view, client, to, &place).await.map(|far| (far, active))
        }
        Some(Way::Refused) | None => Err(io::ErrorKind::ConnectionRefused.into()),
    };
    match opened {
        // A task of its own: it lives as long as the connection, and holds less.
        Ok((Far::Tcp(far), active)) => carry(&plane, stream, far, active, (false, false)),
        Ok((Far::Stream(far), active)) => {
            let fixed = Counted::fixed(&plane);
            drop(tokio::spawn(async move {
                let _ = relay_stream(stream, far).await;
                drop((active, fixed));
            }));
        }
        Err(error) => {
            tracing::debug!(%client, %asked, %error, "a connection leads nowhere");
            let _ = stream.set_zero_linger();
        }
    }
    drop(opening);
}

/// Carries the bytes of a connection from a task of its own; also of one that a
/// predecessor began, of which some directions may have `ended` already.
pub(crate) fn carry(
    plane: &Arc<Plane>,
    mut near: TcpStream,
    mut far: TcpStream,
    active: Active,
    mut ended: (bool, bool),
) {
    let (plane, backend) = (Arc::clone(plane), active.address());
    let mut entry = plane.relays.enter(backend);
    tokio::spawn(async move {
        while let Ok(End::Paused(left, right, over)) = relay(near, far, entry, ended).await {
            // Counted again before it is given away or goes on here.
            entry = plane.relays.enter(backend);
            (near, far, ended) = (left, right, over);
            let Some(moving) = plane.moving() else { continue };
            match moving.send(Moving { near, far, backend, ended }).await {
                Ok(()) => break,
                Err(SendError(back)) => (near, far) = (back.near, back.far),
            }
        }
        drop(active);
    });
}

async fn open_service(
    plane: &Plane,
    view: &View,
    port: &Port,
    scope: Scope,
    client: SocketAddr,
) -> io::Result<(Far, Active)> {
    let mut tried = Vec::new();
    let mut error = io::Error::from(io::ErrorKind::ConnectionRefused);
    while tried.len() < TRIES {
        let Some(candidate) = plane.pick(port, scope, client.ip(), &tried) else { break };
        let address = candidate.backend.address;
        let active = candidate.backend.begin();
        match open(plane, view, client, address, &candidate.place).await {
            Ok(far) => {
                plane.reached(port, client.ip(), address, true);
                return Ok((far, active));
            }
            Err(problem) => error = problem,
        }
        plane.reached(port, client.ip(), address, false);
        // As upstream: the endpoint is chosen, then it is asked whether one may go there.
        if error.kind() == io::ErrorKind::PermissionDenied {
            break;
        }
        tried.push(address);
    }
    Err(error)
}

async fn open(
    plane: &Plane,
    view: &View,
    client: SocketAddr,
    to: SocketAddr,
    place: &Place,
) -> io::Result<Far> {
    if let Err(denied) = view.allows(Protocol::Tcp, client.ip(), to) {
        tracing::debug!(%client, %to, ?denied, "a policy forbids a connection");
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match place {
        Place::Peer(peer) => {
            let flow = Plane::flow(view, Protocol::Tcp, client, to);
            plane.parts()?.links.open(peer, flow).await.map(Far::Stream)
        }
        Place::Pod | Place::Node | Place::World => {
            let source = plane.source(view, client.ip(), to.ip(), place);
            dial::connect(source, to).await.map(Far::Tcp)
        }
    }
}

async fn open_api(
    plane: &Plane,
    view: &View,
    port: &Port,
    client: SocketAddr,
    asked: SocketAddr,
) -> io::Result<(Far, Active)> {
    if !view.allows_api(client.ip(), asked, port) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let dialling = plane.parts()?.uplink.dial(ALPN_API);
    match tokio::time::timeout(UPLINK_TIMEOUT, dialling).await {
        Ok(stream) => Ok((Far::Stream(stream?), plane.begin(asked))),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
