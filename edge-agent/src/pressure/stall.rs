//! The kernel's word that tasks wait for memory (pressure stall information).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Some task stalled for memory for 150 ms within 2 s.
const TRIGGER: &[u8] = b"some 150000 2000000\0";

/// The kernel's word that tasks wait for memory (PSI).
#[derive(Debug)]
pub(super) struct Stalls {
    file: AsyncFd<File>,
}

impl Stalls {
    /// `None` where the kernel has no PSI, or it is off (`psi=0`).
    pub(super) fn open() -> Option<Self> {
        let open = || -> io::Result<Self> {
            let mut file =
                OpenOptions::new().read(true).write(true).open("/proc/pressure/memory")?;
            file.write_all(TRIGGER)?;
            // SAFETY: a File is one descriptor for as long as it lives, and nothing
            // here replaces or closes it while the reactor has it.
            let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?;
            Ok(Self { file })
        };
        open().ok()
    }
}

/// Returns when memory stalls; never where nobody says so.
pub(super) async fn stalled(stalls: &mut Option<Stalls>) {
    let Some(Stalls { file }) = stalls else { return std::future::pending().await };
    match file.ready(Interest::PRIORITY).await {
        Ok(mut guard) => guard.clear_ready(),
        Err(error) => {
            tracing::debug!(%error, "the kernel's pressure cannot be waited for");
            *stalls = None;
        }
    }
}
