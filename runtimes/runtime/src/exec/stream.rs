//! The agent's ends of a command's streams, for its event loop.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::{ExecReader, ExecWriter};

/// What a terminal's master says once nobody has the terminal open any more.
const TERMINAL_GONE: i32 = libc::EIO;

/// Reads a pipe's end or a terminal's master.
pub(super) fn reader(fd: OwnedFd) -> io::Result<ExecReader> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Box::new(Output(Receiver::from_owned_fd_unchecked(fd)?)))
}

/// Writes to a pipe's end or a terminal's master.
pub(super) fn writer(fd: OwnedFd) -> io::Result<ExecWriter> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Box::new(Sender::from_owned_fd_unchecked(fd)?))
}

struct Output(Receiver);

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(context, buffer) {
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(TERMINAL_GONE) => {
                Poll::Ready(Ok(()))
            }
            result => result,
        }
    }
}
