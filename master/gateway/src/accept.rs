//! From a TCP connection to a served one: limits, TLS, and which protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::{ALPN_API, ALPN_BLOB, ALPN_RELAY, ALPN_STREAM};

use crate::connection;
use crate::hub::Hub;
use crate::identity::node_of;
use crate::limits::{Limit, Permit};
use crate::{
    Attempt, Config, GatewayEvent, NodeStream, Peer, StreamKind, TlsProvider, Violation,
    address_key,
};

/// Wait after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection shares.
pub(crate) struct Acceptor {
    pub(crate) hub: Arc<Hub>,
    pub(crate) config: Config,
    pub(crate) events: mpsc::Sender<GatewayEvent>,
    pub(crate) cancel: CancellationToken,
    pub(crate) boots: Arc<Limit>,
    tls: TlsProvider,
    tasks: TaskTracker,
    connections: Arc<Semaphore>,
    handshakes: Arc<Limit>,
}

impl Acceptor {
    pub(crate) fn new(
        hub: Arc<Hub>,
        tls: TlsProvider,
        config: Config,
        events: mpsc::Sender<GatewayEvent>,
        cancel: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::new(Semaphore::new(config.connections_max)),
            handshakes: Limit::new(config.handshakes_max, config.handshakes_per_address_max),
            boots: Limit::new(config.boot_connections_max, config.boot_connections_per_address_max),
            hub,
            config,
            events,
            cancel,
            tls,
            tasks,
        })
    }

    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the node port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(connection) = self.connections.clone().try_acquire_owned() else {
                tracing::warn!(%address, "node port is full");
                continue;
            };
            let Some(handshake) = self.handshakes.try_take(address_key(address)) else {
                tracing::debug!(%address, "too many handshakes at once");
                continue;
            };
            self.tasks.spawn(self.clone().serve(stream, address, connection, handshake));
        }
    }

    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        connection: OwnedSemaphorePermit,
        handshake: Permit,
    ) {
        if let Err(error) = self.prepare(&stream) {
            tracing::debug!(%address, %error, "connection on the node port broke");
            return;
        }
        let deadline = Instant::now() + self.config.handshake_timeout;
        let accepting = TlsAcceptor::from((self.tls)()).accept(stream);
        let stream = tokio::select! {
            () = self.cancel.cancelled() => return,
            accepted = timeout_at(deadline, accepting) => match accepted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "TLS handshake on the node port failed");
                    return;
                }
                Err(_elapsed) => {
                    tracing::debug!(%address, "TLS handshake on the node port took too long");
                    return;
                }
            },
        };
        let (_, tls) = stream.get_ref();
        let kind = match tls.alpn_protocol() {
            Some(name) if name == ALPN_BLOB => Some(StreamKind::Blob),
            Some(name) if name == ALPN_STREAM => Some(StreamKind::Stream),
            Some(name) if name == ALPN_API => Some(StreamKind::Api),
            Some(name) if name == ALPN_RELAY => Some(StreamKind::Relay),
            _ => None,
        };
        let peer = tls.peer_certificates().and_then(|chain| chain.first()).map(node_of);
        match kind {
            Some(kind) => {
                drop(handshake);
                self.hand_over(stream, kind, peer, address, connection).await;
            }
            None => {
                connection::serve(&self, stream, peer, address, deadline, handshake).await;
            }
        }
    }

    fn prepare(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        SockRef::from(stream).set_tcp_user_timeout(Some(self.config.write_timeout))
    }

    async fn hand_over(
        &self,
        stream: TlsStream<TcpStream>,
        kind: StreamKind,
        peer: Option<Result<Peer, String>>,
        address: SocketAddr,
        connection: OwnedSemaphorePermit,
    ) {
        let peer = match peer {
            Some(Ok(peer)) => peer,
            Some(Err(reason)) => {
                self.report(address, "", Attempt::Certificate(reason));
                return;
            }
            None => {
                let reason = String::from("there is none");
                self.report(address, "", Attempt::Certificate(reason));
                return;
            }
        };
        if let Err(reason) = (self.config.admission)(&peer) {
            self.report(address, &peer.node, Attempt::NotAdmitted(reason));
            return;
        }
        let stream = NodeStream { inner: stream, _permit: connection };
        let event = GatewayEvent::Stream { node: peer.node.into(), kind, stream };
        self.tell(event).await;
    }

    /// Hands an event to the master, waiting for room; false where nobody takes it.
    pub(crate) async fn tell(&self, event: GatewayEvent) -> bool {
        tokio::select! {
            biased;
            sent = self.events.send(event) => sent.is_ok(),
            () = self.cancel.cancelled() => false,
        }
    }

    /// Logs and reports what was refused. Never waits: who misbehaves must not be
    /// able to hold anybody up.
    pub(crate) fn report(&self, address: SocketAddr, client: &str, attempt: Attempt) {
        tracing::warn!(%address, client, "{attempt}: refused");
        let violation = Violation { client: client.into(), address, attempt };
        let _full = self.events.try_send(GatewayEvent::Violation(violation));
    }
}
