//! Takes the links that other nodes make: over QUIC, over TLS, and through the
//! master.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::carrier::Carrier;
use super::choice::Lane;
use super::identity::node_name;
use super::quic::Quic;
use super::session::Session;
use super::{Core, relay, tls};

/// Handshakes at once, of each kind.
const HANDSHAKES_MAX: usize = 128;
/// With more than these under way, who dials has to show that its address is its own.
const HANDSHAKES_TRUSTED: usize = 32;
/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the master and the handshake through it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Wait after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a node that is not in the table is told.
const UNKNOWN: &str = "the node is not known there (yet)";

/// Accepts over QUIC until `stop`.
pub(super) async fn run_quic(core: Arc<Core>, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => return,
            incoming = core.endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let n_busy = HANDSHAKES_MAX - free.available_permits();
        if n_busy > HANDSHAKES_TRUSTED && incoming.may_retry() {
            let _gone = incoming.retry();
            continue;
        }
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let core = core.clone();
        tokio::spawn(async move {
            let address = incoming.remote_address();
            match timeout(HANDSHAKE_TIMEOUT, accept_quic(&core, incoming, permit)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%address, %error, "no link over QUIC"),
                Err(_elapsed) => tracing::debug!(%address, "no link over QUIC: it takes too long"),
            }
        });
    }
}

async fn accept_quic(
    core: &Arc<Core>,
    incoming: quinn::Incoming,
    permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    let connection = incoming.accept().map_err(io::Error::other)?;
    let quic = Quic::start(connection.await.map_err(io::Error::other)?);
    let certificate = quic.certificate();
    let name = certificate.as_ref().map_or_else(|| Err("there is none".to_owned()), node_name);
    let name = name.map_err(|why| io::Error::new(io::ErrorKind::PermissionDenied, why))?;
    welcome(core, &name, Lane::Quic, Carrier::Quic(quic), permit).await
}

/// Accepts over TLS until `stop`, and then who waits already: a listener that is
/// closed resets them.
pub(super) async fn run_tls(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a link of another node");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
            tracing::debug!(%address, "too many handshakes at once");
            continue;
        };
        let core = core.clone();
        tokio::spawn(async move {
            let accepting = accept_tls(&core, stream, address, permit);
            match timeout(HANDSHAKE_TIMEOUT, accepting).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%address, %error, "no link over TLS"),
                Err(_elapsed) => tracing::debug!(%address, "no link over TLS: it takes too long"),
            }
        });
    }
}

async fn accept_tls(
    core: &Arc<Core>,
    stream: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    let keep_alive = core.config.keep_alive;
    tls::prepare(&stream, keep_alive)?;
    let (mux, name) = tls::accept_over(stream, &core.keys(), keep_alive).await?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    welcome(core, &name, Lane::Tls, Carrier::Mux(mux, Some(address)), permit).await
}

/// Fetches the connection of `peer` that waits at the master.
pub(super) async fn fetch(core: Arc<Core>, peer: String, ticket: [u8; 16]) {
    let Ok(permit) = Arc::clone(&core.fetches).try_acquire_owned() else {
        tracing::debug!(peer, "too many wait at the master");
        return;
    };
    let fetching = async {
        let connection = relay::fetch(&*core.uplink, ticket).await?;
        let (mux, name) =
            tls::accept_over(connection, &core.keys(), core.config.keep_alive).await?;
        if name != peer {
            let text = format!("node {name} waits there, not {peer}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        welcome(&core, &name, Lane::Relay, Carrier::Mux(mux, None), permit).await
    };
    match timeout(FETCH_TIMEOUT, fetching).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(peer, %error, "no link through the master"),
        Err(_elapsed) => tracing::debug!(peer, "no link through the master: it takes too long"),
    }
}

/// Says hello to a node that is in the table, and hands the link to its task.
async fn welcome(
    core: &Arc<Core>,
    name: &str,
    lane: Lane,
    carrier: Carrier,
    permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    let handle = core.view().peers.get(name).map(|known| known.handle.clone());
    let unknown = || {
        io::Error::new(io::ErrorKind::PermissionDenied, format!("node {name} is not in the table"))
    };
    let handle = handle.ok_or_else(unknown).inspect_err(|_| carrier.refuse(UNKNOWN))?;
    let session = Session::accepted(core, lane, carrier).await?;
    drop(permit);
    handle.incoming(Arc::new(session)).await;
    Ok(())
}
