//! Many streams and datagrams over one connection of bytes, for where UDP does not
//! pass: over TLS to the peer, and over TLS through the master.
//!
//! ```text
//! u32 stream, u8 kind, u24 length (all LE), content
//! ```
//!
//! | kind | content |
//! | --- | --- |
//! | 0 open | none: the sender's next stream (odd numbers: who dialled; even: who accepted) |
//! | 1 data | bytes |
//! | 2 finish | none: no more bytes come this way |
//! | 3 reset | none: the stream is broken, both ways |
//! | 4 credit | u32: so many more bytes may be sent on the stream |
//! | 5 datagram | its bytes; stream 0 |
//! | 6 ping, 7 pong | u64 of the asker; stream 0 |
//! | 8 goodbye | why the connection ends, as text; stream 0 |
//!
//! Flow control is per stream, so that a slow reader holds up nobody else. A
//! stream begins with a window of [`WINDOW`] and gets a larger one where its reader
//! is fast, out of what all streams of the connection share ([`WINDOWS_EXTRA`]).
//! Frames go out of one buffer in the order they were written: a stream puts at
//! most [`DATA_MAX`] into it at a time, and waits while it is full.
//!
//! What a peer sends past its window, on a stream that never was, or in frames too
//! long ends the connection. A broken connection breaks every stream: an end of
//! bytes that its writer did not send is never read as one.

mod state;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::state::{Heard, State};
pub(super) use self::stream::Stream;
use super::preface::DATAGRAM_BYTES_MAX;

/// Bytes that may be under way on a new stream.
pub(super) const WINDOW: u32 = 64 << 10;
/// The largest window of a stream.
const WINDOW_MAX: u32 = 1 << 20;
/// What the streams of one connection may have beyond [`WINDOW`] each, in all.
const WINDOWS_EXTRA: u32 = 16 << 20;
/// Most streams that the peer may have open.
const STREAMS_MAX: usize = 2048;
/// Most bytes of a data frame.
pub(super) const DATA_MAX: usize = 16 << 10;
/// Bytes that wait to be written, beyond which streams wait.
const OUT_MAX: usize = 128 << 10;
/// The same for what is answered at once; a peer that asks for more is not read.
const ANSWERS_MAX: usize = OUT_MAX + (128 << 10);
/// Datagrams that wait to be taken; more are dropped.
const DATAGRAMS_WAITING_MAX: usize = 256;
/// Bytes in front of a frame's content.
const HEAD_BYTES: usize = 8;
/// Bytes read at once.
const READ_BYTES: usize = 32 << 10;
/// Time for the last frames of a connection that is closed.
const GOODBYE: Duration = Duration::from_secs(2);

/// A connection with many streams; closed when it is dropped.
#[derive(Debug)]
pub(super) struct Mux {
    shared: Arc<Shared>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<u32>>,
    datagrams: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the end has come.
    write: Notify,
    /// The buffer has been taken to be written.
    taken: Notify,
    /// Why the connection is over, once it is.
    ended: CancellationToken,
    tx: AtomicU64,
    rx: AtomicU64,
    /// Smoothed round trip, in microseconds.
    rtt_us: AtomicU64,
    started: Instant,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything; the first reason stays.
    fn end(&self, why: &str) {
        self.state().end(why);
        self.ended.cancel();
        self.write.notify_one();
        self.taken.notify_one();
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn measured(&self, sent_us: u64) {
        let sample = self.now_us().saturating_sub(sent_us);
        let old = self.rtt_us.load(Ordering::Relaxed);
        let new = if old == 0 { sample } else { old - old / 8 + sample / 8 };
        self.rtt_us.store(new.max(1), Ordering::Relaxed);
    }
}

/// Where frames come from and go to once they are taken off the wire.
struct Inbox {
    accepted: mpsc::Sender<u32>,
    datagrams: mpsc::Sender<Bytes>,
}

impl Mux {
    /// Runs over `connection`. A peer that is not heard for three times `keep_alive`
    /// is gone.
    pub(super) fn start<C>(connection: C, is_dialler: bool, keep_alive: Duration) -> Self
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (accepted_to, accepted) = mpsc::channel(STREAMS_MAX);
        let (datagrams_to, datagrams) = mpsc::channel(DATAGRAMS_WAITING_MAX);
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(is_dialler)),
            write: Notify::new(),
            taken: Notify::new(),
            ended: CancellationToken::new(),
            tx: AtomicU64::new(0),
            rx: AtomicU64::new(0),
            rtt_us: AtomicU64::new(0),
            started: Instant::now(),
        });
        let (read, write) = tokio::io::split(connection);
        let inbox = Inbox { accepted: accepted_to, datagrams: datagrams_to };
        tokio::spawn(run_reader(shared.clone(), read, inbox, keep_alive));
        tokio::spawn(run_writer(shared.clone(), write));
        tokio::spawn(run_pings(shared.clone(), keep_alive));
        let (accepted, datagrams) = (accepted.into(), datagrams.into());
        Self { shared, accepted, datagrams }
    }

    /// Opens a stream. Does not wait for the peer.
    pub(super) fn open(&self) -> io::Result<Stream> {
        let id = self.shared.state().open()?;
        self.shared.write.notify_one();
        Ok(Stream::new(self.shared.clone(), id))
    }

    /// The next stream that the peer opens; `None` once the connection is over.
    pub(super) async fn accept(&self) -> Option<Stream> {
        let mut accepted = self.accepted.lock().await;
        let id = tokio::select! {
            biased;
            () = self.shared.ended.cancelled() => return None,
            id = accepted.recv() => id?,
        };
        Some(Stream::new(self.shared.clone(), id))
    }

    /// Sends a datagram, unless the connection is full.
    pub(super) fn send_datagram(&self, bytes: &[u8]) -> bool {
        let is_sent = self.shared.state().send_datagram(bytes);
        self.shared.write.notify_one();
        is_sent
    }

    /// The next datagram; `None` once the connection is over.
    pub(super) async fn datagram(&self) -> Option<Bytes> {
        let mut datagrams = self.datagrams.lock().await;
        tokio::select! {
            biased;
            () = self.shared.ended.cancelled() => None,
            datagram = datagrams.recv() => datagram,
        }
    }

    /// Waits for the end, and says why.
    pub(super) async fn closed(&self) -> String {
        self.shared.ended.cancelled().await;
        self.shared.state().ended.clone().unwrap_or_default()
    }

    /// Says goodbye and ends.
    pub(super) fn close(&self) {
        self.shared.state().goodbye("");
        self.shared.end("this node closed it");
    }

    /// As [`Mux::close`], with a reason that the peer is told.
    pub(super) fn refuse(&self, why: &str) {
        self.shared.state().goodbye(why);
        self.shared.end("this node refused it");
    }

    /// Why it is over, once it is.
    pub(super) fn ended(&self) -> Option<String> {
        self.shared.state().ended.clone()
    }

    /// Bytes sent, bytes received, round trip in microseconds.
    pub(super) fn measures(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.shared.tx), load(&self.shared.rx), load(&self.shared.rtt_us))
    }
}

async fn run_reader<C: AsyncRead>(
    shared: Arc<Shared>,
    mut read: ReadHalf<C>,
    inbox: Inbox,
    keep_alive: Duration,
) {
    let why = tokio::select! {
        () = shared.ended.cancelled() => return,
        why = read_frames(&shared, &mut read, &inbox, keep_alive * 3) => why,
    };
    let text = match why.kind() {
        io::ErrorKind::UnexpectedEof => "the peer ended it".to_owned(),
        _ => why.to_string(),
    };
    shared.end(&text);
}

/// Reads until something is wrong.
async fn read_frames<C: AsyncRead>(
    shared: &Shared,
    read: &mut ReadHalf<C>,
    inbox: &Inbox,
    patience: Duration,
) -> io::Error {
    let mut buffer = bytes::BytesMut::with_capacity(READ_BYTES);
    loop {
        loop {
            let (id, kind, length) = match head(&buffer) {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(error) => return error,
            };
            if buffer.len() < HEAD_BYTES + length {
                break;
            }
            let content = &buffer[HEAD_BYTES..HEAD_BYTES + length];
            let heard = shared.state().heard(id, kind, content, shared.now_us());
            match heard {
                Ok(Heard::Nothing) => {}
                Ok(Heard::Answered) => shared.write.notify_one(),
                // The channel has room for as many as may be open.
                Ok(Heard::Opened) => drop(inbox.accepted.try_send(id)),
                Ok(Heard::Datagram) => {
                    let _full = inbox.datagrams.try_send(Bytes::copy_from_slice(content));
                }
                Ok(Heard::Pong(sent_us)) => shared.measured(sent_us),
                Ok(Heard::Goodbye(why)) => return io::Error::other(why),
                Err(error) => return error,
            }
            bytes::Buf::advance(&mut buffer, HEAD_BYTES + length);
        }
        // A peer that asks and does not listen is not heard further.
        while shared.state().n_waiting() > ANSWERS_MAX {
            shared.taken.notified().await;
        }
        buffer.reserve(READ_BYTES);
        match tokio::time::timeout(patience, read.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(Ok(n_bytes)) => {
                shared.rx.fetch_add(n_bytes as u64, Ordering::Relaxed);
            }
            Ok(Err(error)) => return error,
            Err(_elapsed) => {
                let text = format!("nothing was heard for {} s", patience.as_secs());
                return io::Error::new(io::ErrorKind::TimedOut, text);
            }
        }
    }
}

/// Stream, kind and length of the frame that begins here, where its head is there.
fn head(bytes: &[u8]) -> io::Result<Option<(u32, u8, usize)>> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let [a, b, c, d, kind, x, y, z] = *head;
    let length = u32::from_le_bytes([x, y, z, 0]) as usize;
    let length_max = if kind == state::DATAGRAM { DATAGRAM_BYTES_MAX } else { DATA_MAX };
    if length > length_max {
        return Err(state::broken(format!("a frame of kind {kind} with {length} bytes")));
    }
    Ok(Some((u32::from_le_bytes([a, b, c, d]), kind, length)))
}

async fn run_writer<C: AsyncWrite>(shared: Arc<Shared>, mut write: WriteHalf<C>) {
    let mut batch = Vec::new();
    loop {
        shared.write.notified().await;
        loop {
            batch.clear();
            shared.state().take_out(&mut batch);
            shared.taken.notify_one();
            if batch.is_empty() {
                break;
            }
            let writing = async {
                write.write_all(&batch).await?;
                write.flush().await
            };
            let is_over = shared.ended.is_cancelled();
            let written = tokio::select! {
                biased;
                written = writing => written,
                () = over(&shared, is_over) => Err(io::ErrorKind::TimedOut.into()),
            };
            if let Err(error) = written {
                shared.end(&error.to_string());
                return;
            }
            shared.tx.fetch_add(batch.len() as u64, Ordering::Relaxed);
            if batch.capacity() > 4 * OUT_MAX {
                batch = Vec::new();
            }
        }
        if shared.ended.is_cancelled() {
            let _late = tokio::time::timeout(GOODBYE, write.shutdown()).await;
            return;
        }
    }
}

/// Until the connection is over and some time has passed.
async fn over(shared: &Shared, is_over: bool) {
    if !is_over {
        shared.ended.cancelled().await;
    }
    tokio::time::sleep(GOODBYE).await;
}

async fn run_pings(shared: Arc<Shared>, keep_alive: Duration) {
    // The first at once: it measures.
    let mut every = tokio::time::interval(keep_alive);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.ended.cancelled() => return,
            _ = every.tick() => {
                let now = shared.now_us();
                shared.state().ping(now);
                shared.write.notify_one();
            }
        }
    }
}
