//! The API behind TLS: connections, limits, and what becomes of a request.
//!
//! ```text
//! accept ─► TLS ─► HTTP/1.1 or 2 ─► who asks ─► route ─► verb of `Api` ─► answer
//! ```
//!
//! Everything a client can hold on to is bounded: connections, handshakes,
//! headers, bodies, requests at once, and how long a peer that does not read is
//! waited for. A client that goes away takes its watches with it. It does not
//! know what an object is; that is the verbs' business.

mod authenticate;
mod body;
mod health;
mod mounts;
mod openapi;
mod requests;
mod resources;
mod reviews;
mod streams;
mod watch;

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use authenticate::TokenAuthenticator;
pub use health::HealthCheck;

use crate::download::Download;
use crate::mount::Mount;
use crate::verbs::Api;
use health::Metrics;

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for its headers, and stay idle on HTTP/1.1.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// How often an HTTP/2 client is asked whether it is there, and how long it may take.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long sent bytes may stay unacknowledged before the peer counts as gone.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause after the system refused to accept, for lack of descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest headers of a request, in bytes.
const HEADER_BYTES_MAX: u32 = 128 * 1024;
/// Requests and watches of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 250;

/// How much the server takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Requests at once; watches and logs count until they begin.
    pub requests_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_max: 2048, requests_max: 400 }
    }
}

/// The HTTP side of an [`Api`].
#[derive(Clone)]
pub struct Server {
    state: Arc<State>,
}

/// What every request may use.
struct State {
    api: Api,
    tokens: Option<Arc<dyn TokenAuthenticator>>,
    checks: Vec<Arc<dyn HealthCheck>>,
    downloads: Vec<Arc<dyn Download>>,
    mounts: Vec<Arc<dyn Mount>>,
    requests: Semaphore,
    limits: Limits,
    metrics: Metrics,
    /// Connections that have become something else than HTTP.
    streams: TaskTracker,
    shutdown: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("api", &self.state.api).finish_non_exhaustive()
    }
}

/// How a [`Server`] is put together.
#[derive(Default)]
pub struct ServerOptions {
    /// Knows bearer tokens; without it there are none.
    pub tokens: Option<Arc<dyn TokenAuthenticator>>,
    /// What `/readyz` and `/healthz` ask.
    pub checks: Vec<Arc<dyn HealthCheck>>,
    /// Files beside the API.
    pub downloads: Vec<Arc<dyn Download>>,
    /// What is below paths of its own.
    pub mounts: Vec<Arc<dyn Mount>>,
    /// How much it takes on.
    pub limits: Limits,
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// A server of `api` that ends its answers once `shutdown` is cancelled.
    #[must_use]
    pub fn new(api: Api, options: ServerOptions, shutdown: CancellationToken) -> Self {
        let ServerOptions { tokens, checks, downloads, mounts, limits } = options;
        let requests = Semaphore::new(limits.requests_max);
        let metrics = Metrics::default();
        let streams = TaskTracker::new();
        let state = State {
            api,
            tokens,
            checks,
            downloads,
            mounts,
            requests,
            limits,
            metrics,
            streams,
            shutdown,
        };
        Self { state: Arc::new(state) }
    }

    /// Serves until the shutdown, and returns once every connection has ended.
    ///
    /// `tls` verifies client certificates, if it does, and need not name a
    /// protocol: HTTP/2 and HTTP/1.1 are offered.
    pub async fn serve(&self, listener: TcpListener, tls: Arc<ServerConfig>) {
        let mut tls = ServerConfig::clone(&tls);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let state = &self.state;
        let slots = Arc::new(Semaphore::new(state.limits.connections_max));
        let tracker = TaskTracker::new();
        loop {
            let (stream, peer) = tokio::select! {
                () = state.shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                state.metrics.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (state, acceptor) = (Arc::clone(state), acceptor.clone());
            tracker.spawn(async move {
                let _counted = Counted::new(&state, |metrics| &metrics.connections);
                connection(&state, stream, peer, &acceptor).await;
                drop(slot);
            });
        }
        tracker.close();
        tracker.wait().await;
        state.streams.close();
        state.streams.wait().await;
    }
}

async fn connection(
    state: &Arc<State>,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
) {
    configure(&stream);
    let accepted = tokio::select! {
        () = state.shutdown.cancelled() => return,
        accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => accepted,
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "TLS handshake took too long");
            return;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(<[_]>::first);
    let identity = certificate.and_then(authenticate::certificate_identity).map(Arc::new);
    let service = service_fn(|request| {
        let (state, identity) = (Arc::clone(state), identity.clone());
        async move { Ok::<_, Infallible>(requests::handle(state, identity, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = state.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// A peer that vanished or does not read is noticed by the kernel.
fn configure(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive =
        socket2::TcpKeepalive::new().with_time(PING_INTERVAL).with_interval(PING_TIMEOUT);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT)));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set socket options");
    }
}

/// Counts one in a gauge for as long as it lives.
struct Counted {
    state: Arc<State>,
    gauge: fn(&Metrics) -> &AtomicU64,
}

impl Counted {
    fn new(state: &Arc<State>, gauge: fn(&Metrics) -> &AtomicU64) -> Self {
        gauge(&state.metrics).fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), gauge }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.gauge)(&self.state.metrics).fetch_sub(1, Ordering::Relaxed);
    }
}
