//! A bad line: a relay between a board and the master that delays, stalls or
//! breaks what goes through it. Knows nothing of what that is.
//!
//! Its threads run in the network namespace of the thread that makes it, which
//! is the hub's.
#![allow(clippy::disallowed_methods)] // Threads of its own, which may sleep.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// Largest piece that is passed on at once.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces under way in each direction of a connection.
const PIECES: usize = 16;
/// Between two looks at whether a line that stalls goes on.
const LOOK: Duration = Duration::from_millis(20);

/// The line. Dropping it breaks every connection.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    to: String,
    delay_ms: AtomicU64,
    stalls: AtomicBool,
    is_over: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// A good line from a new port of `host` to the address `to`.
    pub(crate) fn start(host: &str, to: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("the host has ports");
        let address = listener.local_addr().expect("it listens");
        let line = Arc::new(Line {
            to: to.to_owned(),
            delay_ms: AtomicU64::new(0),
            stalls: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            sockets: Mutex::default(),
        });
        let accepting = Arc::clone(&line);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if accepting.is_over.load(Ordering::Relaxed) {
                    return;
                }
                accepting.connect(near);
            }
        });
        Self { address, line }
    }

    /// Where to connect.
    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Everything takes so long, in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).expect("not that long");
        self.line.delay_ms.store(delay, Ordering::Relaxed);
    }

    /// Nothing goes through, and nobody is told.
    pub(crate) fn stall(&self, stalls: bool) {
        self.line.stalls.store(stalls, Ordering::Relaxed);
    }

    /// Breaks every connection, wherever in a message it is.
    pub(crate) fn break_all(&self) {
        for socket in self.line.sockets().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.line.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        self.break_all();
    }
}

impl Line {
    fn sockets(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Self>, near: TcpStream) {
        // The master may be away: then the board sees the connection end.
        let Ok(far) = TcpStream::connect(&self.to) else { return };
        let clone = |socket: &TcpStream| socket.try_clone().expect("there are descriptors");
        self.sockets().extend([clone(&near), clone(&far)]);
        self.carry(clone(&near), clone(&far));
        self.carry(far, near);
    }

    fn carry(self: &Arc<Self>, mut from: TcpStream, mut to: TcpStream) {
        let (sender, receiver) = sync_channel(PIECES);
        let line = Arc::clone(self);
        thread::spawn(move || {
            line.take(&mut from, &sender);
        });
        let line = Arc::clone(self);
        thread::spawn(move || {
            line.give(&receiver, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }

    fn take(&self, from: &mut TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>) {
        let mut bytes = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
            if sender.send((Instant::now() + delay, bytes[..n].to_vec())).is_err() {
                return;
            }
        }
    }

    fn give(&self, receiver: &Receiver<(Instant, Vec<u8>)>, to: &mut TcpStream) {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            while self.stalls.load(Ordering::Relaxed) && !self.is_over.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
            }
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}
