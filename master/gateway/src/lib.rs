//! The MQTT endpoint for nodes: one port, one firewall rule.
//!
//! | who connects | what answers |
//! | --- | --- |
//! | ALPN none or `mqtt`, certificate of a node | MQTT 3.1.1 and 5, that node's own topics |
//! | ALPN none or `mqtt`, no certificate | MQTT, the two enrolment topics of its client id |
//! | ALPN `pinnace-blob/1`, `pinnace-stream/1`, `pinnace-api/1`, `pinnace-relay/1`, certificate of a node | the bare connection, as [`GatewayEvent::Stream`] |
//!
//! It is no general broker. Every message goes from a node to the master or back,
//! so there are no retained messages, no stored sessions, no QoS 2 and no routing
//! between clients. Identity is the certificate: its common name is the node, the
//! client id must equal it, and [`wire::topic::Role`] says which topics are its
//! own. What a node sends is acknowledged once the master's channel has taken it.
//!
//! Everything has a bound ([`Config`]): connections, handshakes at once and from
//! one address, the time of a handshake, packets, queues and windows. This crate
//! does not know what is in a message.

mod accept;
mod connection;
mod hub;
mod identity;
mod limits;
mod packet;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::hub::SendError;
use self::hub::{End, Hub, Session};
pub use self::tls::{ClockFloor, ServerTlsError, server_config};

/// Gives the TLS configuration for the next handshake, so that certificates can
/// be replaced while the gateway runs.
pub type TlsProvider = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Whether a node may connect: asked after every handshake, with the serial
/// number of its certificate, so that a revoked one is refused.
pub type Admission = Arc<dyn Fn(&Peer) -> Result<(), String> + Send + Sync>;

/// The bounds of the gateway.
#[derive(Clone)]
pub struct Config {
    /// Connections at once.
    pub connections_max: usize,
    /// Handshakes at once.
    pub handshakes_max: usize,
    /// Handshakes at once from one address (one /64 for IPv6).
    pub handshakes_per_address_max: usize,
    /// Connections without a certificate at once, and at once from one address.
    pub boot_connections_max: usize,
    /// See [`Config::boot_connections_max`].
    pub boot_connections_per_address_max: usize,
    /// Time for TLS and CONNECT together.
    pub handshake_timeout: Duration,
    /// Life of a connection without a certificate.
    pub boot_lifetime: Duration,
    /// Time for a write, and for TCP to see what it sent acknowledged.
    pub write_timeout: Duration,
    /// Longest silence a client may ask for.
    pub keep_alive_max: Duration,
    /// Bytes that wait for one client; more ends the connection.
    pub queue_bytes_max: usize,
    /// Messages to one client that are not acknowledged yet.
    pub window: u16,
    /// Bytes of one packet.
    pub packet_bytes_max: u32,
    /// Events that wait for the master.
    pub events_max: usize,
    /// Which nodes may connect.
    pub admission: Admission,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            handshakes_max: 512,
            handshakes_per_address_max: 128,
            boot_connections_max: 64,
            boot_connections_per_address_max: 16,
            handshake_timeout: Duration::from_secs(10),
            boot_lifetime: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            keep_alive_max: Duration::from_secs(1200),
            queue_bytes_max: 4 << 20,
            window: 32,
            packet_bytes_max: 1 << 20,
            events_max: 1024,
            admission: Arc::new(|_peer| Ok(())),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("connections_max", &self.connections_max)
            .field("handshakes_max", &self.handshakes_max)
            .field("queue_bytes_max", &self.queue_bytes_max)
            .finish_non_exhaustive()
    }
}

/// A node as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The common name.
    pub node: String,
    /// The certificate's serial number, big endian.
    pub serial: Vec<u8>,
}

/// What happened on the node port.
// The largest variant is a connection, and events are few and short-lived.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum GatewayEvent {
    /// A node connected. `conn` only grows; a newer connection of a node replaces
    /// the older one.
    Connected {
        /// The node.
        node: Arc<str>,
        /// Which connection.
        conn: u64,
        /// Where it comes from.
        address: SocketAddr,
    },
    /// A message of a node, or the will of a connection that broke.
    Message {
        /// The node.
        node: Arc<str>,
        /// Which connection.
        conn: u64,
        /// One of the node's `u/` topics.
        topic: String,
        /// The payload.
        bytes: Bytes,
    },
    /// A connection of a node ended. It may be reported after a newer one of the
    /// same node connected: compare `conn`.
    Disconnected {
        /// The node.
        node: Arc<str>,
        /// Which connection.
        conn: u64,
        /// Why, for people.
        reason: String,
    },
    /// A board without a certificate asks to join.
    Join {
        /// Its client id.
        client: String,
        /// Where it comes from.
        address: SocketAddr,
        /// The request.
        bytes: Bytes,
        /// Takes the answer.
        reply: JoinReply,
    },
    /// Somebody tried what it may not.
    Violation(Violation),
    /// A node opened a connection for artifacts, a stream, or to another node.
    Stream {
        /// The node.
        node: Arc<str>,
        /// What for.
        kind: StreamKind,
        /// The bare connection.
        stream: NodeStream,
    },
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The node, or the client id of a board without a certificate; empty where unknown.
    pub client: String,
    /// Where it comes from.
    pub address: SocketAddr,
    /// What was tried.
    pub attempt: Attempt,
}

/// What was tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Attempt {
    /// To publish on a topic that is not its own.
    #[error("published on \"{0}\", which is not its topic")]
    Publish(String),
    /// To subscribe to a topic that is not its own.
    #[error("subscribed to \"{0}\", which is not its topic")]
    Subscribe(String),
    /// To leave a will on a topic that is not its own.
    #[error("left a will on \"{0}\", which is not its topic")]
    Will(String),
    /// To use a client id other than the name in its certificate.
    #[error("connected with client id \"{0}\", which is not the name in its certificate")]
    ClientId(String),
    /// A certificate of ours, but none of a node.
    #[error("connected with a certificate that is not one of a node: {0}")]
    Certificate(String),
    /// A node that is not admitted (any more).
    #[error("is not admitted: {0}")]
    NotAdmitted(String),
}

/// What a connection is for, by its ALPN name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// `pinnace-blob/1`
    Blob,
    /// `pinnace-stream/1`
    Stream,
    /// `pinnace-api/1`
    Api,
    /// `pinnace-relay/1`
    Relay,
}

/// Takes the answer to a board that asks to join.
#[derive(Debug)]
pub struct JoinReply {
    session: Arc<Session>,
    topic: String,
    queue_bytes_max: usize,
}

impl JoinReply {
    /// Sends the answer. The board may have gone meanwhile; it asks again then.
    pub fn send(self, bytes: impl Into<Bytes>) {
        let _gone = self.session.push(self.queue_bytes_max, &self.topic, 1, bytes.into());
    }
}

/// A bare TLS connection of a node. Counts as a connection until it is dropped.
#[derive(Debug)]
pub struct NodeStream {
    inner: TlsStream<TcpStream>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for NodeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for nodes on {address}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// The running endpoint.
#[derive(Debug)]
pub struct Gateway {
    hub: Arc<Hub>,
    address: SocketAddr,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Gateway {
    /// Listens on `address` (port 0 picks a free one) and serves from tasks of its
    /// own. The events must be taken: nodes wait when their channel is full.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        tls: TlsProvider,
        config: Config,
    ) -> Result<(Self, mpsc::Receiver<GatewayEvent>), BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let (events, receiver) = mpsc::channel(config.events_max);
        let hub = Arc::new(Hub::new(config.queue_bytes_max));
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let acceptor =
            accept::Acceptor::new(hub.clone(), tls, config, events, cancel.clone(), tasks.clone());
        tasks.spawn(acceptor.run(listener));
        Ok((Self { hub, address: bound, cancel, tasks }, receiver))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queues a message for a node. Never waits: a node whose queue is full is
    /// disconnected, and says hello again when it comes back.
    ///
    /// # Errors
    /// Where the node is not connected, has not subscribed, or is too slow.
    pub fn send(
        &self,
        node: &str,
        topic: &str,
        qos: u8,
        bytes: impl Into<Bytes>,
    ) -> Result<(), SendError> {
        self.hub.send(node, topic, qos, bytes.into())
    }

    /// Ends the connection of a node, which was deleted or revoked.
    pub fn kick(&self, node: &str) {
        self.hub.end(node, End::Kicked);
    }

    /// Nodes that are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.hub.n_nodes()
    }

    /// Says goodbye to every client and waits until they are gone, `grace` at most.
    pub async fn close(&self, grace: Duration) {
        self.cancel.cancel();
        self.tasks.close();
        let _elapsed = tokio::time::timeout(grace, self.tasks.wait()).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The part of an address that one subscriber has: IPv6 networks give a /64 each.
fn address_key(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
    }
}
