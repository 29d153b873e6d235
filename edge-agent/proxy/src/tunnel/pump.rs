//! Copies bytes between two connections, both ways, each to its own end.
//!
//! No buffer is held while nothing moves: a thread has one, and what a receiver
//! does not take at once is kept until it does. A break of either is a break of
//! both, because both are dropped: an end that was not sent is never passed on as
//! one.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes copied at once.
const BUFFER_BYTES: usize = 64 << 10;
/// Copies in a row before other tasks have their turn.
const BURST: usize = 16;
/// A connection of which one way has ended, and on whose other way nothing moves, is
/// kept for so long.
const HALF_CLOSED: Duration = Duration::from_secs(300);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Copies until both ways have ended.
///
/// # Errors
/// One of the two broke, or half a connection was idle for too long.
pub(super) async fn pump<A, B>(a: A, b: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    Pump { a, b, forth: Way::default(), back: Way::default(), idle: None }.await
}

struct Pump<A, B> {
    a: A,
    b: B,
    forth: Way,
    back: Way,
    /// Set while one way has ended.
    idle: Option<Pin<Box<Sleep>>>,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Read, and not taken yet, from `at` on.
    kept: Vec<u8>,
    at: usize,
    is_read: bool,
    is_over: bool,
    /// Something moved since this was looked at.
    has_moved: bool,
    needs_flush: bool,
}

impl Way {
    /// Copies as much as there is; ready when this way has ended.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.is_over {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..BURST {
            while self.at < self.kept.len() {
                let n_bytes = ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept[self.at..]))?;
                if n_bytes == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.at += n_bytes;
                self.has_moved = true;
                self.needs_flush = true;
            }
            if !self.kept.is_empty() {
                (self.kept, self.at) = (Vec::new(), 0);
            }
            if self.is_read {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                self.is_over = true;
                return Poll::Ready(Ok(()));
            }
            match self.read(cx, reader, writer) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if self.needs_flush {
                        self.needs_flush = Pin::new(&mut *writer).poll_flush(cx)?.is_pending();
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once into the thread's buffer and writes what is taken at once.
    fn read<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // Taken, not borrowed: a reader may be a pump of its own.
        let mut space = BUFFER.take();
        space.resize(BUFFER_BYTES, 0);
        let mut buf = ReadBuf::new(&mut space);
        let polled = Pin::new(reader).poll_read(cx, &mut buf);
        let result = match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                self.is_read = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) => {
                self.has_moved = true;
                let mut rest = buf.filled();
                let written = loop {
                    match Pin::new(&mut *writer).poll_write(cx, rest) {
                        Poll::Pending => break Ok(()),
                        Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                        Poll::Ready(Ok(n_bytes)) => {
                            self.needs_flush = true;
                            rest = &rest[n_bytes..];
                            if rest.is_empty() {
                                break Ok(());
                            }
                        }
                        Poll::Ready(Err(error)) => break Err(error),
                    }
                };
                (self.kept, self.at) = (rest.to_vec(), 0);
                Poll::Ready(written)
            }
        };
        BUFFER.set(space);
        result
    }
}

impl<A, B> Future for Pump<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let forth = this.forth.poll(cx, &mut this.a, &mut this.b)?;
        let back = this.back.poll(cx, &mut this.b, &mut this.a)?;
        if forth.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if forth.is_ready() || back.is_ready() {
            let has_moved = std::mem::take(&mut this.forth.has_moved)
                | std::mem::take(&mut this.back.has_moved);
            if has_moved {
                this.idle = None;
            }
            let sleep = || Box::pin(tokio::time::sleep(HALF_CLOSED));
            ready!(this.idle.get_or_insert_with(sleep).as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_ways_are_copied_and_end_by_themselves() {
        let (mut client, near) = tokio::io::duplex(1000);
        let (far, mut server) = tokio::io::duplex(300);
        let pumping = tokio::spawn(pump(near, far));
        let sent: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let (to_server, to_client) = (sent.clone(), sent.clone());
        let asking = async move {
            client.write_all(&to_server).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        };
        let answering = async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            server.write_all(&to_client).await.unwrap();
            server.shutdown().await.unwrap();
            got
        };
        let (answer, question) = tokio::join!(asking, answering);
        assert!(answer == sent && question == sent);
        pumping.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_connection_is_kept_while_it_is_used_and_not_for_ever() {
        let (mut client, near) = tokio::io::duplex(1000);
        let (far, mut server) = tokio::io::duplex(1000);
        let pumping = tokio::spawn(pump(near, far));
        client.shutdown().await.unwrap();
        for _ in 0..10 {
            tokio::time::sleep(HALF_CLOSED - Duration::from_secs(1)).await;
            server.write_all(b"x").await.unwrap();
            client.read_u8().await.unwrap();
        }
        let error = pumping.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
