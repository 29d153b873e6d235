//! One stream of a connection with many.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;

/// Bytes both ways. Dropped before both ways have come to their end, it breaks.
#[derive(Debug)]
pub(in crate::tunnel) struct Stream {
    shared: Arc<Shared>,
    id: u32,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.shared;
        let rtt_us = shared.rtt_us.load(Ordering::Relaxed);
        let read = shared.state().read(self.id, cx, shared.now_us(), rtt_us, |first, second| {
            let n_first = first.len().min(buf.remaining());
            buf.put_slice(&first[..n_first]);
            let n_second = second.len().min(buf.remaining());
            buf.put_slice(&second[..n_second]);
            n_first + n_second
        });
        match read {
            Poll::Ready(Ok(is_answered)) => {
                if is_answered {
                    shared.write.notify_one();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.shared.state().write(self.id, cx, bytes);
        if written.is_ready() {
            self.shared.write.notify_one();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written goes out by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let finished = self.shared.state().finish(self.id);
        self.shared.write.notify_one();
        Poll::Ready(finished)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.state().forget(self.id);
        self.shared.write.notify_one();
    }
}
