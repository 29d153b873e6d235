//! The streams of one connection: what was received and not read, what may be
//! sent, and the frames that wait to be written. No I/O.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::task::{Context, Poll, Waker};

use super::{DATA_MAX, OUT_MAX, STREAMS_MAX, WINDOW, WINDOW_MAX, WINDOWS_EXTRA};

const OPEN: u8 = 0;
const DATA: u8 = 1;
const FINISH: u8 = 2;
const RESET: u8 = 3;
const CREDIT: u8 = 4;
pub(super) const DATAGRAM: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const GOODBYE: u8 = 8;
/// A window grows where its half is read within this many round trips.
const FAST_ROUND_TRIPS: u64 = 4;
/// The same where round trips are too short to measure by, in microseconds.
const FAST_US: u64 = 20_000;

/// What a frame means beyond the streams.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    /// An answer waits to be written.
    Answered,
    /// The peer opened the frame's stream.
    Opened,
    /// The content is a datagram.
    Datagram,
    /// The round trip of a ping that was sent then.
    Pong(u64),
    /// The peer ends it, and says why.
    Goodbye(String),
}

/// How one direction of a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Broken,
}

#[derive(Debug)]
struct Entry {
    received: VecDeque<u8>,
    receive_end: Option<End>,
    /// Bytes that the peer may still send.
    granted: u32,
    window: u32,
    /// Bytes that were read since credit was given.
    read: u32,
    credited_us: u64,
    reader: Option<Waker>,
    /// Bytes that may still be sent.
    credit: u32,
    send_end: Option<End>,
    writer: Option<Waker>,
    is_blocked: bool,
}

impl Entry {
    fn new(now_us: u64) -> Self {
        Self {
            received: VecDeque::new(),
            receive_end: None,
            granted: WINDOW,
            window: WINDOW,
            read: 0,
            credited_us: now_us,
            reader: None,
            credit: WINDOW,
            send_end: None,
            writer: None,
            is_blocked: false,
        }
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

#[derive(Debug)]
pub(super) struct State {
    streams: HashMap<u32, Entry>,
    /// The next stream of this side, and the least that the peer may open next.
    next_own: u32,
    next_peer: u32,
    n_peers: usize,
    windows_extra: u32,
    out: Vec<u8>,
    /// Streams whose writers wait for the buffer.
    blocked: Vec<u32>,
    pub(super) ended: Option<String>,
}

/// The peer breaks the rules.
pub(super) fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the peer sent {what}"))
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl State {
    pub(super) fn new(is_dialler: bool) -> Self {
        let (next_own, next_peer) = if is_dialler { (1, 2) } else { (2, 1) };
        Self {
            streams: HashMap::new(),
            next_own,
            next_peer,
            n_peers: 0,
            windows_extra: 0,
            out: Vec::new(),
            blocked: Vec::new(),
            ended: None,
        }
    }

    pub(super) fn end(&mut self, why: &str) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why.to_owned());
        for entry in self.streams.values_mut() {
            // What had come to its end is still read to it.
            if entry.receive_end.is_none() {
                entry.receive_end = Some(End::Broken);
                entry.received = VecDeque::new();
            }
            entry.send_end = Some(End::Broken);
            entry.wake();
        }
        self.blocked.clear();
    }

    fn check_alive(&self) -> io::Result<()> {
        match &self.ended {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::NotConnected, why.clone())),
        }
    }

    pub(super) fn n_waiting(&self) -> usize {
        if self.ended.is_some() { 0 } else { self.out.len() }
    }

    /// Swaps what waits to be written with an empty buffer.
    pub(super) fn take_out(&mut self, batch: &mut Vec<u8>) {
        std::mem::swap(&mut self.out, batch);
        for id in self.blocked.drain(..) {
            let Some(entry) = self.streams.get_mut(&id) else { continue };
            entry.is_blocked = false;
            entry.writer.take().into_iter().for_each(Waker::wake);
        }
    }

    fn put(&mut self, id: u32, kind: u8, content: &[u8]) {
        let length = u32::try_from(content.len()).unwrap_or(0).to_le_bytes();
        self.out.extend_from_slice(&id.to_le_bytes());
        self.out.extend_from_slice(&[kind, length[0], length[1], length[2]]);
        self.out.extend_from_slice(content);
    }

    pub(super) fn open(&mut self) -> io::Result<u32> {
        self.check_alive()?;
        let n_own = self.streams.len().saturating_sub(self.n_peers);
        if n_own >= STREAMS_MAX {
            let text = format!("{STREAMS_MAX} connections over this link are open already");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        let id = self.next_own;
        // Two billion streams; then the connection is used up.
        self.next_own = id.checked_add(2).ok_or_else(|| io::Error::other("streams are used up"))?;
        self.streams.insert(id, Entry::new(0));
        self.put(id, OPEN, &[]);
        Ok(id)
    }

    pub(super) fn ping(&mut self, now_us: u64) {
        if self.out.len() < OUT_MAX {
            self.put(0, PING, &now_us.to_le_bytes());
        }
    }

    pub(super) fn goodbye(&mut self, why: &str) {
        if self.ended.is_none() {
            self.put(0, GOODBYE, why.as_bytes());
        }
    }

    pub(super) fn send_datagram(&mut self, bytes: &[u8]) -> bool {
        let is_sent = self.ended.is_none()
            && bytes.len() <= super::DATAGRAM_BYTES_MAX
            && self.out.len() < OUT_MAX;
        if is_sent {
            self.put(0, DATAGRAM, bytes);
        }
        is_sent
    }

    /// Takes a frame.
    pub(super) fn heard(
        &mut self,
        id: u32,
        kind: u8,
        content: &[u8],
        now_us: u64,
    ) -> io::Result<Heard> {
        self.check_alive()?;
        let u64_of = || {
            let bytes: Result<[u8; 8], _> = content.try_into();
            bytes.map_err(|_| broken(format!("a ping of {} bytes", content.len())))
        };
        match kind {
            OPEN => return self.opened(id, now_us),
            DATA | FINISH | RESET | CREDIT => {}
            DATAGRAM => return Ok(Heard::Datagram),
            PING => {
                let asked = u64_of()?;
                self.put(0, PONG, &asked);
                return Ok(Heard::Answered);
            }
            PONG => return Ok(Heard::Pong(u64::from_le_bytes(u64_of()?))),
            GOODBYE if content.is_empty() => {
                return Ok(Heard::Goodbye("the peer closed it".into()));
            }
            GOODBYE => {
                let why: String = String::from_utf8_lossy(content).chars().take(120).collect();
                return Ok(Heard::Goodbye(format!("the peer refuses: {why}")));
            }
            // Of a later version.
            _ => return Ok(Heard::Nothing),
        }
        let is_own = id % 2 == self.next_own % 2;
        let next = if is_own { self.next_own } else { self.next_peer };
        if id == 0 || id >= next {
            return Err(broken(format!("a frame on stream {id}, which was never opened")));
        }
        // One that is over here already: the peer does not know yet.
        let Some(entry) = self.streams.get_mut(&id) else { return Ok(Heard::Nothing) };
        match kind {
            DATA => {
                let n_bytes = u32::try_from(content.len()).unwrap_or(u32::MAX);
                let granted = entry.granted.checked_sub(n_bytes);
                let is_open = entry.receive_end.is_none();
                let granted = granted.filter(|_| is_open || entry.receive_end == Some(End::Broken));
                entry.granted =
                    granted.ok_or_else(|| broken(format!("more on stream {id} than it may")))?;
                if is_open {
                    entry.received.extend(content);
                    entry.reader.take().into_iter().for_each(Waker::wake);
                }
            }
            FINISH => {
                entry.receive_end.get_or_insert(End::Finished);
                entry.reader.take().into_iter().for_each(Waker::wake);
            }
            RESET => {
                if entry.receive_end.is_none() {
                    entry.receive_end = Some(End::Broken);
                    entry.received = VecDeque::new();
                }
                entry.send_end = Some(End::Broken);
                entry.wake();
            }
            _ => {
                let bytes: [u8; 4] = content
                    .try_into()
                    .map_err(|_| broken(format!("credit of {} bytes", content.len())))?;
                let credit = entry.credit.checked_add(u32::from_le_bytes(bytes));
                entry.credit =
                    credit.ok_or_else(|| broken(format!("endless credit on stream {id}")))?;
                entry.writer.take().into_iter().for_each(Waker::wake);
            }
        }
        Ok(Heard::Nothing)
    }

    fn opened(&mut self, id: u32, now_us: u64) -> io::Result<Heard> {
        if id % 2 != self.next_peer % 2 || id < self.next_peer {
            return Err(broken(format!("stream {id} as a new one")));
        }
        let used_up = || broken("more streams than there are".into());
        self.next_peer = id.checked_add(2).ok_or_else(used_up)?;
        if self.n_peers >= STREAMS_MAX {
            self.put(id, RESET, &[]);
            return Ok(Heard::Answered);
        }
        self.n_peers += 1;
        self.streams.insert(id, Entry::new(now_us));
        Ok(Heard::Opened)
    }

    /// Hands what was received to `take`, which says how much of it it took.
    pub(super) fn read(
        &mut self,
        id: u32,
        cx: &Context<'_>,
        now_us: u64,
        rtt_us: u64,
        take: impl FnOnce(&[u8], &[u8]) -> usize,
    ) -> Poll<io::Result<bool>> {
        let Some(entry) = self.streams.get_mut(&id) else { return Poll::Ready(Err(reset())) };
        if entry.received.is_empty() {
            return match entry.receive_end {
                None => {
                    entry.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                Some(End::Finished) => Poll::Ready(Ok(false)),
                Some(End::Broken) => Poll::Ready(Err(reset())),
            };
        }
        let (first, second) = entry.received.as_slices();
        let n_bytes = take(first, second);
        entry.received.drain(..n_bytes);
        if entry.received.is_empty() && entry.received.capacity() > DATA_MAX {
            // An idle stream holds nothing.
            entry.received = VecDeque::new();
        }
        entry.read = entry.read.saturating_add(u32::try_from(n_bytes).unwrap_or(u32::MAX));
        let is_answered = entry.receive_end.is_none() && entry.read >= entry.window / 2;
        if is_answered {
            let is_fast = now_us.saturating_sub(entry.credited_us)
                < FAST_US.max(rtt_us.saturating_mul(FAST_ROUND_TRIPS));
            let more = entry.window.min(WINDOW_MAX - entry.window);
            let more = more.min(WINDOWS_EXTRA.saturating_sub(self.windows_extra));
            let more = if is_fast { more } else { 0 };
            let credit = entry.read + more;
            entry.window += more;
            entry.granted += credit;
            entry.read = 0;
            entry.credited_us = now_us;
            self.windows_extra += more;
            self.put(id, CREDIT, &credit.to_le_bytes());
        }
        Poll::Ready(Ok(is_answered))
    }

    /// Sends as much of `bytes` as may be.
    pub(super) fn write(
        &mut self,
        id: u32,
        cx: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_alive()?;
        let is_full = self.out.len() >= OUT_MAX;
        let Some(entry) = self.streams.get_mut(&id) else { return Poll::Ready(Err(reset())) };
        if entry.send_end.is_some() {
            return Poll::Ready(Err(reset()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if is_full {
            entry.writer = Some(cx.waker().clone());
            if !std::mem::replace(&mut entry.is_blocked, true) {
                self.blocked.push(id);
            }
            return Poll::Pending;
        }
        let n_bytes = bytes.len().min(DATA_MAX).min(entry.credit as usize);
        if n_bytes == 0 {
            entry.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        entry.credit -= u32::try_from(n_bytes).unwrap_or(entry.credit);
        self.put(id, DATA, &bytes[..n_bytes]);
        Poll::Ready(Ok(n_bytes))
    }

    pub(super) fn finish(&mut self, id: u32) -> io::Result<()> {
        self.check_alive()?;
        let entry = self.streams.get_mut(&id).ok_or_else(reset)?;
        match entry.send_end {
            Some(End::Finished) => return Ok(()),
            Some(End::Broken) => return Err(reset()),
            None => entry.send_end = Some(End::Finished),
        }
        self.put(id, FINISH, &[]);
        Ok(())
    }

    /// The stream's owner is gone.
    pub(super) fn forget(&mut self, id: u32) {
        let Some(entry) = self.streams.remove(&id) else { return };
        if id % 2 == self.next_peer % 2 {
            self.n_peers -= 1;
        }
        self.windows_extra -= entry.window - WINDOW;
        let is_whole = entry.receive_end.is_some() && entry.send_end.is_some();
        if !is_whole && self.ended.is_none() {
            self.put(id, RESET, &[]);
        }
    }

    #[cfg(test)]
    pub(super) fn n_streams(&self) -> usize {
        self.streams.len()
    }

    #[cfg(test)]
    pub(super) fn n_buffered(&self) -> usize {
        self.streams.values().map(|entry| entry.received.len()).sum()
    }
}
