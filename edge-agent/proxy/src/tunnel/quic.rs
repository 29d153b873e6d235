//! QUIC: one UDP socket for all peers, one connection to each, a stream for each
//! TCP connection.
//!
//! A datagram that fits a packet goes as one; a longer one as a stream of its own,
//! one way, so that none waits for another. The connection follows the dialler's
//! address when that changes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{
    Connection, ConnectionError, EndpointConfig, RecvStream, SendStream, TransportConfig, VarInt,
};
use ring::rand::SecureRandom;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, mpsc};

use super::carrier::{Measures, us};
use super::identity::{Keys, SERVER_NAME};
use super::preface::DATAGRAM_BYTES_MAX;

/// Bytes of a connection's name.
pub(super) const ID_BYTES: usize = 8;
/// Bytes that may be under way on one stream.
const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes that may be received and not read on one connection.
const WINDOW: u32 = 32 << 20;
/// Bytes that wait to be sent or acknowledged on one connection.
const SEND_WINDOW: u64 = 8 << 20;
/// Streams that the peer may have open at first: quinn keeps 50 bytes for each,
/// open or not.
const STREAMS_FIRST: u32 = 256;
/// Most streams that the peer may have open; half of what is allowed being used, it
/// is doubled until there.
const STREAMS_MAX: u32 = 8192;
/// Most long datagrams of the peer under way.
const LONG_DATAGRAMS_MAX: u32 = 64;
/// Long datagrams that wait for their stream; more are dropped.
const LONG_WAITING_MAX: usize = 32;
/// Bytes of datagrams that wait to be sent, or to be taken.
const DATAGRAM_BUFFER: usize = 512 << 10;
/// Datagrams that wait to be taken; more are dropped.
const DATAGRAMS_WAITING_MAX: usize = 256;
/// Handshakes of others at once.
const HANDSHAKES_MAX: usize = 256;
/// Time to wait for a stream while the peer allows no more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The end that was asked for.
const CLOSED: VarInt = VarInt::from_u32(0);
/// The peer is not taken.
const REFUSED: VarInt = VarInt::from_u32(1);

/// How connections are kept.
fn transport(keep_alive: Duration) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_FIRST.into())
        .max_concurrent_uni_streams(LONG_DATAGRAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into())
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(keep_alive))
        .max_idle_timeout((keep_alive * 3).try_into().ok())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    Arc::new(config)
}

/// The endpoint for all peers. Names of its connections begin with `mark`.
pub(super) fn endpoint(
    socket: std::net::UdpSocket,
    keys: &Keys,
    keep_alive: Duration,
    mark: u16,
) -> io::Result<quinn::Endpoint> {
    let mut config = EndpointConfig::new(Arc::new(keys.reset_key()));
    // A peer that was restarted is to know soon.
    config.min_reset_interval(Duration::from_millis(1)).cid_generator(move || Box::new(Ids(mark)));
    let server = server_config(keys, keep_alive).map_err(io::Error::other)?;
    quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
}

/// Names of connections: random bytes after the mark of this process, by which its
/// packets find it while another one is on the same port ([`super::steer`]). quinn's
/// own are signed by the process that gave them, and one that finds another's says
/// nothing, where a peer is to learn that this node was restarted.
#[derive(Debug)]
struct Ids(u16);

impl quinn::ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut id = [0; ID_BYTES];
        ring::rand::SystemRandom::new().fill(&mut id).expect("the system has randomness");
        id[..2].copy_from_slice(&self.0.to_be_bytes());
        quinn::ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// How peers are accepted with `keys`.
pub(super) fn server_config(
    keys: &Keys,
    keep_alive: Duration,
) -> Result<quinn::ServerConfig, NoInitialCipherSuite> {
    let crypto = QuicServerConfig::try_from(Arc::clone(&keys.server))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(keep_alive)).max_incoming(HANDSHAKES_MAX).migration(true);
    Ok(config)
}

/// Dials `peer` at `address`.
pub(super) async fn dial(
    endpoint: &quinn::Endpoint,
    keys: &Keys,
    peer: &str,
    address: SocketAddr,
    keep_alive: Duration,
) -> io::Result<Quic> {
    let (tls, refusal) = keys.client(peer).map_err(io::Error::other)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(keep_alive));
    let connecting =
        endpoint.connect_with(config, address, SERVER_NAME).map_err(io::Error::other)?;
    let connected = connecting.await.map_err(|error| refusal.explain(told(&error)));
    connected.map(Quic::start)
}

/// Why a connection ended, for people.
fn told(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "nothing was heard".into(),
        ConnectionError::LocallyClosed => "this node closed it".into(),
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSED => {
            "the peer closed it".into()
        }
        ConnectionError::ApplicationClosed(close) => {
            let why: String = String::from_utf8_lossy(&close.reason).chars().take(120).collect();
            format!("the peer refuses: {why}")
        }
        ConnectionError::Reset => "the peer was restarted".into(),
        other => other.to_string(),
    }
}

/// A connection; closed when it is dropped.
#[derive(Debug)]
pub(super) struct Quic {
    connection: Connection,
    long: mpsc::Sender<Vec<u8>>,
    datagrams: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
    accepted: Arc<Accepted>,
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.close();
    }
}

/// Streams that the peer has open, and how many it may have.
#[derive(Debug)]
struct Accepted {
    n_open: AtomicU32,
    n_allowed: AtomicU32,
}

impl Quic {
    pub(super) fn start(connection: Connection) -> Self {
        let (long, long_waiting) = mpsc::channel(LONG_WAITING_MAX);
        let (datagrams_to, datagrams) = mpsc::channel(DATAGRAMS_WAITING_MAX);
        tokio::spawn(send_long(connection.clone(), long_waiting));
        tokio::spawn(receive_short(connection.clone(), datagrams_to.clone()));
        tokio::spawn(receive_long(connection.clone(), datagrams_to));
        let accepted =
            Accepted { n_open: AtomicU32::new(0), n_allowed: AtomicU32::new(STREAMS_FIRST) };
        Self { connection, long, datagrams: datagrams.into(), accepted: Arc::new(accepted) }
    }

    /// The certificate of the peer.
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        let chain = self.connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>();
        chain.ok()?.first().cloned()
    }

    /// Where the peer is at the moment.
    pub(super) fn remote(&self) -> SocketAddr {
        plain(self.connection.remote_address())
    }

    pub(super) async fn open(&self) -> io::Result<Stream> {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.connection.open_bi()).await;
        let busy = |_elapsed| {
            let text = format!("{STREAMS_MAX} connections over this link are open already");
            io::Error::new(io::ErrorKind::ResourceBusy, text)
        };
        let lost =
            |error: ConnectionError| io::Error::new(io::ErrorKind::NotConnected, told(&error));
        let (send, receive) = opened.map_err(busy)?.map_err(lost)?;
        Ok(Stream { send, receive, is_finished: false, accepted: None })
    }

    pub(super) async fn accept(&self) -> Option<Stream> {
        let (send, receive) = self.connection.accept_bi().await.ok()?;
        let n_open = self.accepted.n_open.fetch_add(1, Ordering::Relaxed) + 1;
        let n_allowed = self.accepted.n_allowed.load(Ordering::Relaxed);
        if n_allowed < STREAMS_MAX && n_open > n_allowed / 2 {
            let n_allowed = n_allowed * 2;
            self.accepted.n_allowed.store(n_allowed, Ordering::Relaxed);
            self.connection.set_max_concurrent_bi_streams(n_allowed.into());
        }
        let accepted = Some(self.accepted.clone());
        Some(Stream { send, receive, is_finished: false, accepted })
    }

    pub(super) fn send_datagram(&self, bytes: Vec<u8>) -> bool {
        match self.connection.max_datagram_size() {
            Some(max) if bytes.len() <= max => self.connection.send_datagram(bytes.into()).is_ok(),
            _ => bytes.len() <= DATAGRAM_BYTES_MAX && self.long.try_send(bytes).is_ok(),
        }
    }

    pub(super) async fn datagram(&self) -> Option<Bytes> {
        self.datagrams.lock().await.recv().await
    }

    pub(super) async fn closed(&self) -> String {
        told(&self.connection.closed().await)
    }

    pub(super) fn close(&self) {
        self.connection.close(CLOSED, b"");
    }

    /// Why it is over, once it is.
    pub(super) fn ended(&self) -> Option<String> {
        self.connection.close_reason().map(|error| told(&error))
    }

    /// Closes with a reason that the peer is told.
    pub(super) fn refuse(&self, why: &str) {
        self.connection.close(REFUSED, why.as_bytes());
    }

    pub(super) fn measures(&self) -> Measures {
        let stats = self.connection.stats();
        Measures {
            rtt_us: us(stats.path.rtt),
            n_sent: stats.path.sent_packets,
            n_lost: stats.path.lost_packets,
            tx_bytes: stats.udp_tx.bytes,
            rx_bytes: stats.udp_rx.bytes,
        }
    }
}

/// IPv4 as IPv4, also where the socket takes both.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn send_long(connection: Connection, mut waiting: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = waiting.recv().await {
        let Ok(mut stream) = connection.open_uni().await else { return };
        if stream.write_all(&bytes).await.is_ok() {
            let _ = stream.finish();
        }
    }
}

async fn receive_short(connection: Connection, datagrams: mpsc::Sender<Bytes>) {
    while let Ok(datagram) = connection.read_datagram().await {
        let _full = datagrams.try_send(datagram);
    }
}

async fn receive_long(connection: Connection, datagrams: mpsc::Sender<Bytes>) {
    let free = Arc::new(Semaphore::new(LONG_DATAGRAMS_MAX as usize));
    while let Ok(mut stream) = connection.accept_uni().await {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let datagrams = datagrams.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Ok(bytes) = stream.read_to_end(DATAGRAM_BYTES_MAX).await {
                let _full = datagrams.try_send(bytes.into());
            }
        });
    }
}

/// Bytes both ways. Dropped before both ways have come to their end, it breaks.
#[derive(Debug)]
pub(super) struct Stream {
    send: SendStream,
    receive: RecvStream,
    is_finished: bool,
    /// Where it is counted, if the peer opened it.
    accepted: Option<Arc<Accepted>>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_finished = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Left to itself, quinn would end the stream as if all had been sent.
        if !self.is_finished {
            let _ended = self.send.reset(CLOSED);
        }
        if let Some(accepted) = &self.accepted {
            accepted.n_open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
