//! Locks that keep proxies of one run folder apart. The kernel gives them up with
//! the process, so nothing stale is ever left.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// Who starts.
pub(crate) const START_LOCK: &str = "proxy-start.lock";
/// Who carries what is left, after it served.
pub(crate) const DRAIN_LOCK: &str = "proxy-drain.lock";
/// Who serves.
const SERVE_LOCK: &str = "proxy.lock";

const RETRY: Duration = Duration::from_millis(2);

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes the lock; `None` where somebody else has it.
    ///
    /// # Errors
    /// The folder is missing.
    pub(crate) fn try_take(folder: &Path, name: &str) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join(name))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The lock of who serves; `None` where somebody else does.
    ///
    /// # Errors
    /// The folder is missing.
    pub(crate) fn try_serve(folder: &Path) -> io::Result<Option<Self>> {
        Self::try_take(folder, SERVE_LOCK)
    }

    /// Waits for the lock of who serves.
    ///
    /// # Errors
    /// The folder is missing, or somebody else keeps it.
    pub(crate) async fn serve(folder: &Path, patience: Duration) -> io::Result<Self> {
        let taking = async {
            loop {
                if let Some(lock) = Self::try_serve(folder)? {
                    return Ok(lock);
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "another proxy keeps serving");
        tokio::time::timeout(patience, taking).await.unwrap_or_else(|_| Err(late()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_lock_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::try_serve(folder.path()).unwrap();
        assert!(first.is_some());
        assert!(Lock::try_serve(folder.path()).unwrap().is_none());
        drop(first);
        assert!(Lock::try_serve(folder.path()).unwrap().is_some());
    }
}
