//! One direction between two TCP connections.

use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use rustix::pipe::{SpliceFlags, splice};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::{PIPE_BYTES, Pipe};
use super::{BUFFER, BULK_BYTES, BURST};

/// Pieces from here on count as bulk.
const LARGE_BYTES: usize = 16 << 10;
/// A smaller piece through the pipe ends the bulk.
const SMALL_BYTES: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The source ended; what is pending, and the end, are still to be passed on.
    Ending,
    Ended,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Half {
    /// Bytes that the destination did not take yet, and how many of them it took.
    rest: Vec<u8>,
    taken: usize,
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    piped: usize,
    /// Bytes carried in large pieces, in a row.
    bulk: usize,
    state: State,
}

impl Half {
    pub(super) fn new(has_ended: bool) -> Self {
        let state = if has_ended { State::Ended } else { State::Open };
        Self { rest: Vec::new(), taken: 0, pipe: None, piped: 0, bulk: 0, state }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Ready when it has ended, or, where `is_paused`, when it holds no bytes.
    pub(super) fn poll(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        is_paused: bool,
        cx: &mut Context<'_>,
        has_moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        let mut left = BURST;
        loop {
            ready!(self.flush(to, cx))?;
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    match SockRef::from(to).shutdown(Shutdown::Write) {
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(error));
                        }
                        _ => self.state = State::Ended,
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Open if is_paused => return Poll::Ready(Ok(())),
                State::Open => (),
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            left -= 1;
            let moved = if self.bulk >= BULK_BYTES { self.fill(from) } else { self.copy(from, to) };
            match moved {
                Ok(0) => self.state = State::Ending,
                Ok(_) => *has_moved = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(pipe) = self.pipe.take() {
                        pipe.give_back();
                    }
                    ready!(from.poll_read_ready(cx))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Passes on what is held. Ready when nothing is.
    fn flush(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = if self.taken < self.rest.len() {
                to.try_write(&self.rest[self.taken..]).inspect(|n| self.taken += n)
            } else if self.piped > 0 {
                self.empty(to)
            } else {
                if !self.rest.is_empty() {
                    self.rest = Vec::new();
                    self.taken = 0;
                }
                return Poll::Ready(Ok(()));
            };
            match written {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(to.poll_write_ready(cx))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Copies one piece. What the destination does not take is held.
    fn copy(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        BUFFER.with_borrow_mut(|buffer| {
            let n = from.try_read(buffer)?;
            if n == 0 {
                return Ok(0);
            }
            self.bulk = if n >= LARGE_BYTES { self.bulk + n } else { 0 };
            let mut written = 0;
            while written < n {
                match to.try_write(&buffer[written..n]) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(more) => written += more,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.rest = buffer[written..n].to_vec();
                        self.taken = 0;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(n)
        })
    }

    /// Moves one piece into the pipe.
    fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let pipe = match self.pipe.take().map_or_else(Pipe::take, Ok) {
            Ok(pipe) => self.pipe.insert(pipe),
            Err(_) => {
                // No descriptor is left: copying needs none.
                self.bulk = 0;
                return Err(io::ErrorKind::Interrupted.into());
            }
        };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let n = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &pipe.write, None, PIPE_BYTES, flags)?)
        })?;
        self.piped = n;
        if n < SMALL_BYTES {
            self.bulk = 0;
        }
        Ok(n)
    }

    /// Moves what the pipe holds on.
    fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let piped = self.piped;
        let n = to
            .try_io(Interest::WRITABLE, || Ok(splice(&pipe.read, None, to, None, piped, flags)?))?;
        self.piped -= n;
        Ok(n)
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // A pipe that still holds bytes is of no use to another pair.
        if self.piped == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipe.give_back();
        }
    }
}
