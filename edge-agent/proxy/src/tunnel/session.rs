//! A link to one peer: what carries it, what runs over it, and how it does.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Core;
use super::carrier::{Carrier, Measures, Stream};
use super::choice::{Lane, Way};
use super::preface::{NOTICE_LEAVING, read_hello, write_hello};

/// Time to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A link. It ends when it is dropped, and breaks what runs over it.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) lane: Lane,
    pub(super) is_dialled: bool,
    pub(super) carrier: Carrier,
    pub(super) born: Instant,
    n_streams: AtomicUsize,
    /// The streams of all links.
    n_all: Arc<AtomicUsize>,
    /// Milliseconds from `born` to the last use.
    used_ms: AtomicU64,
    /// Where notices are sent.
    notices: Mutex<WriteHalf<Stream>>,
    heard: Mutex<Option<ReadHalf<Stream>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, lane, is_dialled, .. } = self;
        f.debug_struct("Session")
            .field("id", id)
            .field("lane", lane)
            .field("is_dialled", is_dialled)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Says hello on a link that this node dialled. The peer answers once it knows
    /// who dials.
    pub(super) async fn dialled(core: &Core, lane: Lane, carrier: Carrier) -> io::Result<Self> {
        let hello = async {
            let mut stream = carrier.open().await?;
            write_hello(&mut stream).await?;
            read_hello(&mut stream).await?;
            Ok(stream)
        };
        let why = |error| carrier.ended().map_or(error, io::Error::other);
        let stream = in_time(hello).await.map_err(why)?;
        Ok(Self::new(core, lane, true, carrier, stream))
    }

    /// Answers the hello of a peer that is known.
    pub(super) async fn accepted(core: &Core, lane: Lane, carrier: Carrier) -> io::Result<Self> {
        let hello = async {
            let stream = carrier.accept().await;
            let mut stream = stream.ok_or_else(|| io::Error::other("it ended at once"))?;
            read_hello(&mut stream).await?;
            write_hello(&mut stream).await?;
            Ok(stream)
        };
        let stream = in_time(hello).await?;
        Ok(Self::new(core, lane, false, carrier, stream))
    }

    fn new(core: &Core, lane: Lane, is_dialled: bool, carrier: Carrier, stream: Stream) -> Self {
        let (heard, notices) = tokio::io::split(stream);
        Self {
            id: core.next_session(),
            n_all: Arc::clone(&core.n_streams),
            lane,
            is_dialled,
            carrier,
            born: Instant::now(),
            n_streams: AtomicUsize::new(0),
            used_ms: AtomicU64::new(0),
            notices: Mutex::new(notices),
            heard: Mutex::new(Some(heard)),
        }
    }

    /// Waits until the peer asks to open nothing new here; never returns otherwise.
    pub(super) async fn leaving(&self) {
        let heard = self.heard.lock().await.take();
        if let Some(mut heard) = heard {
            while let Ok(notice) = heard.read_u8().await {
                if notice == NOTICE_LEAVING {
                    return;
                }
            }
        }
        std::future::pending().await
    }

    /// Asks the peer to open nothing new here.
    pub(super) async fn leave(&self) {
        let mut notices = self.notices.lock().await;
        // A peer that is gone already needs no notice.
        let _gone = notices.write_all(&[NOTICE_LEAVING]).await;
        let _gone = notices.flush().await;
    }

    pub(super) fn way(&self) -> Way {
        Way {
            id: self.id,
            lane: self.lane,
            remote: self.remote(),
            is_dialled: self.is_dialled,
            rtt_us: self.carrier.measures().rtt_us,
        }
    }

    /// Where the peer is; none through the master.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        match (&self.carrier, self.lane) {
            (_, Lane::Relay) => None,
            (Carrier::Quic(quic), _) => Some(quic.remote()),
            (Carrier::Mux(_, remote), _) => *remote,
        }
    }

    pub(super) fn n_streams(&self) -> usize {
        self.n_streams.load(Ordering::Relaxed)
    }

    pub(super) fn is_used(&self) {
        let used_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_ms.store(used_ms, Ordering::Relaxed);
    }

    /// When it was last used.
    pub(super) fn used(&self) -> Instant {
        self.born + Duration::from_millis(self.used_ms.load(Ordering::Relaxed))
    }

    pub(super) fn measures(&self) -> Measures {
        self.carrier.measures()
    }
}

async fn in_time(hello: impl Future<Output = io::Result<Stream>>) -> io::Result<Stream> {
    let late = |_elapsed| io::Error::new(io::ErrorKind::TimedOut, "it does not say hello in time");
    timeout(HELLO_TIMEOUT, hello).await.map_err(late)?
}

/// A stream that counts as a use of its link.
#[derive(Debug)]
pub(super) struct Counted {
    stream: Stream,
    session: Arc<Session>,
}

impl Counted {
    pub(super) fn new(stream: Stream, session: Arc<Session>) -> Self {
        session.n_streams.fetch_add(1, Ordering::Relaxed);
        session.n_all.fetch_add(1, Ordering::Relaxed);
        session.is_used();
        Self { stream, session }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.session.is_used();
        self.session.n_streams.fetch_sub(1, Ordering::Relaxed);
        self.session.n_all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
