//! The folder where agent and shim meet.
//!
//! | file | written by | meaning |
//! |---|---|---|
//! | `config.json` | agent | the [`ContainerSpec`] |
//! | `shim.lock` | shim | locked while it lives |
//! | `begun` | launcher | from here on the user's program may have run |
//! | `running.json` | shim | the container's process: pid, start time, boot |
//! | `exit.json` | shim | how it ended; written once, then nothing changes |
//! | `out`, `err`, `in` | both | FIFOs of the container's standard streams |
//! | `attach.sock` | shim | where clients of these streams connect |
//! | `partial.*` | shim | the unfinished line, for the shim's successor; see [`crate::partial`] |
//! | `ended.json` | agent | how it ended, seen by the agent after its shim was killed |
//! | `shim.log` | shim | its own messages |
//! | `state/` | launcher | whatever the backend keeps |
//!
//! Files are replaced whole, so that a reader sees all of one or nothing.
//!
//! Whoever removes the folder holds `shim.lock` meanwhile and renames the folder
//! to `<id>.gone` before its files go: a shim that was on its way into it finds
//! the lock taken, or no folder. The lock says that nothing of the container is
//! being built, the name that nothing will be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process;
use crate::shim::CODE_UNKNOWN;
use crate::state::reason;
use crate::{ContainerSpec, Exit, LaunchError, Observed, Pid, Running};

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

/// `ended.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedFile {
    /// The wait status.
    pub(crate) status: i32,
}

/// What a folder's name ends with once it is being removed. No id has a dot.
pub(crate) const GONE: &str = "gone";

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

    /// Notes that the user's program is about to run: whoever is killed from here
    /// on, it counts as one that ran. Called by launchers, right before.
    ///
    /// # Errors
    /// The folder cannot be written, or is gone.
    pub fn begin(&self) -> io::Result<()> {
        File::create(self.file("begun")).map(drop)
    }

    /// Whether the user's program may have run.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.file("begun").exists()
    }

    /// How it ended, where the agent saw it and no shim did.
    pub(crate) fn ended(&self) -> Option<EndedFile> {
        self.read("ended.json").ok()
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
            Ok(()) => Ok(self.is_in_place(&file)?.then_some(file)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps shims out, so that the folder can be removed. `None` while one is in.
    pub(crate) fn lock_out(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.file("shim.lock"))?;
        let is_ours = process::lock_descriptor(&file)? && self.is_in_place(&file)?;
        Ok(is_ours.then_some(file))
    }

    /// Whether this is still the lock of this folder, now that it is locked: the
    /// folder may have been removed between the opening and the locking.
    fn is_in_place(&self, lock: &File) -> io::Result<bool> {
        let ours = lock.metadata()?;
        match fs::metadata(self.file("shim.lock")) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the folder out of its place; what is left can be removed at leisure.
    pub(crate) fn retire(&self) -> io::Result<PathBuf> {
        let gone = self.path.with_extension(GONE);
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&self.path, &gone)?;
        Ok(gone)
    }

    /// The process that holds the shim's lock: the container's shim.
    #[must_use]
    pub fn shim(&self) -> Option<i32> {
        let file = File::open(self.file("shim.lock")).ok()?;
        process::lock_holder(&file).ok()?
    }

    /// Whether the container's process lives, shim or not.
    pub(crate) fn live_process(&self) -> Option<RunningFile> {
        let running = self.running().ok()?;
        (running.boot_id == process::boot_id()
            && process::open(running.pid, running.start_ticks).is_ok())
        .then_some(running)
    }

    /// The namespace of process ids that the container's processes are in. It is
    /// the container's for sure: its process lived before and after the look.
    ///
    /// # Errors
    /// It does not run, or has no such namespace of its own.
    pub fn process_namespace(&self) -> io::Result<OwnedFd> {
        let ended = || io::Error::new(io::ErrorKind::NotFound, "it does not run");
        let running = self.running().map_err(|_| ended())?;
        if running.boot_id != process::boot_id() {
            return Err(ended());
        }
        let pidfd = process::open(running.pid, running.start_ticks).map_err(|_| ended())?;
        let namespace = File::open(format!("/proc/{}/ns/pid", running.pid))?;
        if process::has_ended(&pidfd) {
            return Err(ended());
        }
        let (own, theirs) = (fs::metadata("/proc/self/ns/pid")?, namespace.metadata()?);
        if (own.dev(), own.ino()) == (theirs.dev(), theirs.ino()) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it has no process ids of its own",
            ));
        }
        Ok(namespace.into())
    }

    /// Whether the container's process lives.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live_process().is_some()
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
            None if self.has_begun() && self.running().is_err() => Observed::Exited(unseen()),
            None if self.path.is_dir() => Observed::Lost,
            None => Observed::Absent,
        }
    }
}

fn running(file: &RunningFile) -> Observed {
    Observed::Running(Running { pid: Pid(file.pid), started_ms: file.started_ms })
}

/// The end of a container that may have run, and whose shim was killed before it
/// could write down which process it was.
fn unseen() -> Exit {
    Exit {
        code: CODE_UNKNOWN,
        signal: None,
        oom_killed: false,
        started_ms: process::now_ms(),
        finished_ms: process::now_ms(),
        error: Some(LaunchError::new(reason::CONTAINER_STATUS_UNKNOWN, UNSEEN)),
    }
}

/// Why it is not known how a container ended that had just begun.
pub(crate) const UNSEEN: &str =
    "its shim was killed as the container began: it may have run, and was ended";

/// Whether an id may be a folder's name: 1 to 63 of `[a-z0-9-]`.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    (1..=63).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
