//! The folder where agent and shim meet.
//!
//! | file | written by | meaning |
//! |---|---|---|
//! | `config.json` | agent | the [`ContainerSpec`] |
//! | `shim.lock` | shim | locked while it lives |
//! | `running.json` | shim | the container's process: pid, start time, boot |
//! | `exit.json` | shim | how it ended; written once, then nothing changes |
//! | `out`, `err`, `in` | both | FIFOs of the container's standard streams |
//! | `attach.sock` | shim | where clients of these streams connect |
//! | `partial.*` | shim | the unfinished line, for the shim's successor |
//! | `shim.log` | shim | its own messages |
//! | `state/` | launcher | whatever the backend keeps |
//!
//! Files are replaced whole, so that a reader sees all of one or nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{Flock, FlockType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process;
use crate::{ContainerSpec, Exit, Observed, Pid, Running};

/// Longest file of the folder that is read, in bytes: a spec with Secrets in its variables.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// `running.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningFile {
    /// The container's first process.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Which boot that was.
    pub boot_id: String,
    /// Wall clock at the start, in milliseconds since 1970.
    pub started_ms: u64,
}

/// One container's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDir {
    path: PathBuf,
}

impl ContainerDir {
    /// Names a folder; does not touch it.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder (0700) and writes the spec.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn create(&self, spec: &ContainerSpec) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        self.write("config.json", spec)
    }

    /// The spec.
    ///
    /// # Errors
    /// The file is missing or not a spec.
    pub fn spec(&self) -> io::Result<ContainerSpec> {
        self.read("config.json")
    }

    /// The container's process, if it ever started.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn running(&self) -> io::Result<RunningFile> {
        self.read("running.json")
    }

    /// How it ended.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn exit(&self) -> io::Result<Exit> {
        self.read("exit.json")
    }

    /// Replaces a file with the JSON of `value`.
    pub(crate) fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let temporary = self.file(&format!("{name}.tmp"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.file(name))?;
        File::open(&self.path)?.sync_all()
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let path = self.file(name);
        let mut bytes = Vec::new();
        File::open(&path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        })
    }

    /// Makes the FIFOs of the standard streams, if need be.
    pub(crate) fn make_fifos(&self) -> io::Result<()> {
        for name in ["out", "err", crate::attach::STDIN_FIFO] {
            match rustix::fs::mkfifoat(rustix::fs::CWD, self.file(name), 0o600.into()) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens a FIFO, for reading as well as writing: no end ever sees the other gone.
    pub(crate) fn open_fifo(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(OpenOptions::new().read(true).write(true).open(self.file(name))?.into())
    }

    /// Keeps what is in the FIFOs from being lost while nobody else has them open.
    pub(crate) fn hold_streams(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.open_fifo("out")?, self.open_fifo("err")?])
    }

    /// Takes the shim's lock. `None` if another shim has it.
    ///
    /// A record lock, not `flock`: children never hold it, and it can be looked
    /// at without taking it. It is lost if the process closes any descriptor of
    /// the file, so a shim opens it once.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.file("shim.lock"))?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The process that holds the shim's lock: the container's shim.
    #[must_use]
    pub fn shim(&self) -> Option<i32> {
        let file = File::open(self.file("shim.lock")).ok()?;
        let wanted = Flock::from(FlockType::WriteLock);
        let held = rustix::process::fcntl_getlk(&file, &wanted).ok()??;
        Some(held.pid?.as_raw_nonzero().get())
    }

    /// Whether the container's process lives, shim or not.
    pub(crate) fn live_process(&self) -> Option<RunningFile> {
        let running = self.running().ok()?;
        (running.boot_id == process::boot_id()
            && process::open(running.pid, running.start_ticks).is_ok())
        .then_some(running)
    }

    /// What can be said of the container from its folder alone.
    #[must_use]
    pub fn observe(&self) -> Observed {
        if let Ok(exit) = self.exit() {
            return Observed::Exited(exit);
        }
        if self.shim().is_some() {
            return match self.running() {
                Ok(file) => running(&file),
                Err(_) => Observed::Starting,
            };
        }
        // The shim may have written exit.json and gone between the two looks.
        if let Ok(exit) = self.exit() {
            return Observed::Exited(exit);
        }
        match self.live_process() {
            Some(file) => running(&file),
            None if self.path.is_dir() => Observed::Lost,
            None => Observed::Absent,
        }
    }
}

fn running(file: &RunningFile) -> Observed {
    Observed::Running(Running { pid: Pid(file.pid), started_ms: file.started_ms })
}

/// Whether an id may be a folder's name: 1 to 63 of `[a-z0-9-]`.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    (1..=63).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
