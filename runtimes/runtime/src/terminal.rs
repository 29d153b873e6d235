//! The shim's end of a container's terminal: output is read from it, input is
//! written to it, and its size is set on it.
//!
//! The other end is kept open too. A container may close its terminal and open
//! it again, and between the two the master would say nothing but "hung up".

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::exec::WindowSize;

/// A terminal, until it is hung up.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    _slave: OwnedFd,
    is_over: bool,
}

impl Terminal {
    /// Takes the master of a terminal that the container has open.
    pub(crate) fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self { master, _slave: slave, is_over: false })
    }

    /// Another descriptor of the master.
    pub(crate) fn input(&self) -> io::Result<OwnedFd> {
        self.master.try_clone()
    }

    /// What becomes readable; `None` once it is hung up.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_over).then(|| self.master.as_fd())
    }

    /// Reads what there is, without waiting.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        match rustix::io::read(&self.master, buffer) {
            Ok(n) if n > 0 => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // Hung up: with its session, or by the container itself.
            _ => {
                self.is_over = true;
                0
            }
        }
    }
}

/// Sets the size of the terminal whose master this is.
pub(crate) fn resize(master: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
