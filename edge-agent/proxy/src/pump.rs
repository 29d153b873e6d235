//! Carries bytes between two connections, both ways, until both have ended.
//!
//! What it costs while nothing happens is what matters on a small board: a pair
//! holds neither a buffer nor a pipe then. Bytes are copied through one buffer a
//! thread; a direction that has carried [`BULK_BYTES`] in large pieces is spliced
//! through a pipe instead, taken from a pool and given back when it is empty.
//!
//! The end of one direction leaves the other open, for as long as it carries
//! something now and then. An error ends both, with a reset, as it would without
//! anybody in between.
//!
//! [`relay`] is for two TCP connections: it can be cut, and paused for a successor
//! to take it over. [`relay_stream`] is for what comes or goes another way.

mod half;
mod pipe;
mod stream;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use self::half::Half;
pub(crate) use self::stream::relay_stream;

/// How long one direction may stay open in silence after the other has ended.
const HALF_OPEN: Duration = Duration::from_secs(300);

/// What a direction carries in large pieces before it is spliced.
const BULK_BYTES: usize = 128 << 10;

/// Bytes of the buffer of a thread.
const BUFFER_BYTES: usize = 64 << 10;

/// Most pieces that a pair moves before others have their turn.
const BURST: u32 = 32;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

const CUT: u8 = 1;
const PAUSE: u8 = 2;

/// How a pair is reached from outside.
#[derive(Debug)]
struct Slot {
    asked: AtomicU8,
    waker: AtomicWaker,
    backend: SocketAddr,
}

/// All pairs of TCP connections.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    slots: Mutex<HashMap<u64, Arc<Slot>>>,
    next: AtomicU64,
    /// Many have ended since this was asked for.
    has_shrunk: AtomicBool,
    is_paused: AtomicBool,
}

impl Relays {
    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots().len()
    }

    /// Whether many have ended since this was last asked.
    pub(crate) fn has_shrunk(&self) -> bool {
        self.has_shrunk.swap(false, Ordering::Relaxed)
    }

    /// Resets those that lead to `backend`.
    pub(crate) fn cut(&self, backend: SocketAddr) {
        self.ask(CUT, |slot| slot.backend == backend);
    }

    /// Has each return at the next moment at which it holds no bytes, those that are
    /// yet to begin, too.
    pub(crate) fn pause(&self) {
        self.is_paused.store(true, Ordering::Release);
        self.ask(PAUSE, |_| true);
    }

    /// Takes the pause back; those that it did not reach go on.
    pub(crate) fn resume(&self) {
        self.is_paused.store(false, Ordering::Release);
        for slot in self.slots().values() {
            slot.asked.fetch_and(!PAUSE, Ordering::Release);
            slot.waker.wake();
        }
    }

    fn ask(&self, what: u8, whom: impl Fn(&Slot) -> bool) {
        for slot in self.slots().values().filter(|slot| whom(slot)) {
            slot.asked.fetch_or(what, Ordering::Release);
            slot.waker.wake();
        }
    }

    /// Counts a pair, which then can be cut by `backend`, and paused.
    pub(crate) fn enter(self: &Arc<Self>, backend: SocketAddr) -> Entry {
        let asked = if self.is_paused.load(Ordering::Acquire) { PAUSE } else { 0 };
        let slot =
            Arc::new(Slot { asked: AtomicU8::new(asked), waker: AtomicWaker::new(), backend });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.slots().insert(id, Arc::clone(&slot));
        Entry { relays: Arc::clone(self), id, slot }
    }

    fn leave(&self, id: u64) {
        let mut slots = self.slots();
        slots.remove(&id);
        // What a burst of connections took is given back.
        if slots.capacity() > 1024 && slots.len() < slots.capacity() / 8 {
            slots.shrink_to_fit();
            self.has_shrunk.store(true, Ordering::Relaxed);
        }
    }
}

/// A pair among all; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    relays: Arc<Relays>,
    id: u64,
    slot: Arc<Slot>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.relays.leave(self.id);
    }
}

/// How carrying bytes came to its end.
#[derive(Debug)]
pub(crate) enum End {
    /// Both directions ended.
    Done,
    /// It was told to pause: both connections, and whether each direction has ended
    /// (towards the second, towards the first).
    Paused(TcpStream, TcpStream, (bool, bool)),
}

/// Carries bytes between two TCP connections, as the pair that has entered. `ended`
/// says which directions have ended already.
///
/// # Errors
/// Either connection broke; both are reset.
pub(crate) async fn relay(
    near: TcpStream,
    far: TcpStream,
    entry: Entry,
    ended: (bool, bool),
) -> io::Result<End> {
    let mut pair =
        Pair { near, far, up: Half::new(ended.0), down: Half::new(ended.1), reaper: None };
    let result = poll_fn(|cx| pair.poll(cx, &entry.slot)).await;
    match result {
        Ok(true) => Ok(End::Done),
        Ok(false) => {
            Ok(End::Paused(pair.near, pair.far, (pair.up.has_ended(), pair.down.has_ended())))
        }
        Err(error) => {
            // The other end learns that this was no orderly end.
            let _ = pair.near.set_zero_linger();
            let _ = pair.far.set_zero_linger();
            Err(error)
        }
    }
}

struct Pair {
    near: TcpStream,
    far: TcpStream,
    up: Half,
    down: Half,
    reaper: Option<Reaper>,
}

impl Pair {
    /// True at the end of both directions, false where it pauses.
    fn poll(&mut self, cx: &mut Context<'_>, slot: &Slot) -> Poll<io::Result<bool>> {
        slot.waker.register(cx.waker());
        let asked = slot.asked.load(Ordering::Acquire);
        if asked & CUT != 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut has_moved = false;
        let is_paused = asked & PAUSE != 0;
        let up = self.up.poll(&self.near, &self.far, is_paused, cx, &mut has_moved)?;
        let down = self.down.poll(&self.far, &self.near, is_paused, cx, &mut has_moved)?;
        match (up.is_ready(), down.is_ready()) {
            (true, true) => {
                return Poll::Ready(Ok(self.up.has_ended() && self.down.has_ended()));
            }
            (false, false) => return Poll::Pending,
            _ if is_paused => return Poll::Pending,
            _ => (),
        }
        poll_reaper(&mut self.reaper, has_moved, cx)?;
        Poll::Pending
    }
}

type Reaper = Pin<Box<Sleep>>;

/// Arms and asks the clock of a pair of which one direction has ended.
fn poll_reaper(
    reaper: &mut Option<Reaper>,
    has_moved: bool,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    let reaper = reaper.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_OPEN)));
    if has_moved {
        reaper.as_mut().reset(Instant::now() + HALF_OPEN);
    }
    match reaper.as_mut().poll(cx) {
        Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
        Poll::Pending => Ok(()),
    }
}
