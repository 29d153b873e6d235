//! Between a TCP connection and what comes or goes another way.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{BUFFER, BURST, poll_reaper};
use crate::links::Connection;

/// Carries bytes both ways until both directions have ended.
///
/// # Errors
/// Either broke; the TCP connection is reset.
pub(crate) async fn relay_stream(
    mut near: TcpStream,
    mut far: Box<dyn Connection>,
) -> io::Result<()> {
    let (mut up, mut down, mut reaper) = (Half::default(), Half::default(), None);
    let result = poll_fn(|cx| -> Poll<io::Result<()>> {
        let mut has_moved = false;
        let is_up = up.poll(&mut near, &mut far, cx, &mut has_moved)?.is_ready();
        let is_down = down.poll(&mut far, &mut near, cx, &mut has_moved)?.is_ready();
        if is_up && is_down {
            return Poll::Ready(Ok(()));
        }
        if is_up != is_down {
            poll_reaper(&mut reaper, has_moved, cx)?;
        }
        Poll::Pending
    })
    .await;
    if result.is_err() {
        let _ = near.set_zero_linger();
    }
    result
}

#[derive(Debug, Default)]
struct Half {
    rest: Vec<u8>,
    taken: usize,
    is_ending: bool,
    has_ended: bool,
    /// Something was written since the last flush.
    is_unflushed: bool,
}

impl Half {
    fn poll(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        has_moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        let mut left = BURST;
        loop {
            while self.taken < self.rest.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.taken..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.taken += n,
                }
            }
            (self.rest, self.taken) = (Vec::new(), 0);
            if self.has_ended {
                return Poll::Ready(Ok(()));
            }
            if self.is_ending {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.has_ended = true;
                return Poll::Ready(Ok(()));
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            left -= 1;
            match self.copy(from, to, cx)? {
                Poll::Ready(0) => self.is_ending = true,
                Poll::Ready(_) => *has_moved = true,
                Poll::Pending => {
                    if self.is_unflushed && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
                        self.is_unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Copies one piece; what the destination does not take is held.
    fn copy(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<usize>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut into = ReadBuf::new(buffer);
            match Pin::new(from).poll_read(cx, &mut into) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(read) => read?,
            }
            let bytes = into.filled();
            let n = bytes.len();
            let mut written = 0;
            while written < n {
                self.is_unflushed = true;
                match Pin::new(&mut *to).poll_write(cx, &bytes[written..]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(more)) => written += more,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => {
                        self.rest = bytes[written..].to_vec();
                        break;
                    }
                }
            }
            Ok(Poll::Ready(n))
        })
    }
}
