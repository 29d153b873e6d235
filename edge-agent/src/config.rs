//! Where an agent keeps its things, and that nobody else does.
//!
//! | folder | holds | survives |
//! | --- | --- | --- |
//! | `state/identity` | key, certificate, CA, endpoints | power loss |
//! | `state/set` | the last applied set | power loss |
//! | `state/tokens` | tokens of pods' ServiceAccounts, sealed | power loss |
//! | `state/results` | how finished pods ended | power loss |
//! | `state/images`, `state/artifacts` | OCI layers, compiled WASM | power loss |
//! | `state/pods/<uid>` | what containers write, emptyDir | power loss |
//! | `state/storage/<volume>` | what is made for PersistentVolumes | power loss |
//! | `state/logs` | container logs | power loss |
//! | `run/containers/<id>` | where agent and shim meet | the agent |
//! | `run/pods/<uid>` | namespaces, small files, Secrets | the agent |
//!
//! Several agents may run on one machine, each with folders of its own; what
//! they share with the machine (cgroups, links, rules) carries [`Folders::tag`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use wire::Uid;

use crate::id;

/// Where the state is kept if nothing else is said.
pub const STATE_DIR: &str = "/var/lib/pinnace";
/// Where the run folder is if nothing else is said.
pub const RUN_DIR: &str = "/run/pinnace";

/// Below the state folder: what the node makes for PersistentVolumes.
const STORAGE: &str = "storage";

/// The folders cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FoldersError {
    /// A folder cannot be made or opened.
    #[error("cannot use {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another agent has it.
    #[error("{} is in use by another agent", .0.display())]
    InUse(PathBuf),
    /// Two agents would not see that they share it.
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
}

/// The folders of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// Survives power loss.
    pub state: PathBuf,
    /// On tmpfs: survives a restart of the agent, not of the machine.
    pub run: PathBuf,
}

/// The folders of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDirs {
    /// In the run folder.
    pub run: PathBuf,
    /// In the state folder.
    pub disk: PathBuf,
    /// Its logs.
    pub logs: PathBuf,
    /// Where the node makes volumes, for all pods.
    pub storage: PathBuf,
}

/// Keeps other agents out for as long as it lives.
#[derive(Debug)]
pub struct Locks {
    _state: File,
    _run: File,
}

impl Folders {
    /// Makes the folders and takes them.
    ///
    /// # Errors
    /// They cannot be made, or another agent has them.
    pub fn open(state: &Path, run: &Path) -> Result<(Self, Locks), FoldersError> {
        let folders = Self { state: make(state)?, run: make(run)? };
        let locks = Locks { _state: lock(&folders.state)?, _run: lock(&folders.run)? };
        for below in ["results", "pods", "logs", "artifacts", STORAGE] {
            make(&folders.state.join(below))?;
        }
        make(&folders.run.join("pods"))?;
        Ok((folders, locks))
    }

    /// Names what this agent shares with the machine: 4 hex of the state folder's hash,
    /// since links have room for no more.
    #[must_use]
    pub fn tag(&self) -> String {
        self.hash(2)
    }

    fn hash(&self, length: usize) -> String {
        let path = self.state.as_os_str().as_encoded_bytes();
        id::hex(&ring::digest::digest(&ring::digest::SHA256, path).as_ref()[..length])
    }

    /// The cgroup above all pods, in every hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> String {
        if self.state == Path::new(STATE_DIR) {
            "/pinnace".to_owned()
        } else {
            format!("/pinnace-{}", self.hash(8))
        }
    }

    /// The cgroup of a pod.
    #[must_use]
    pub fn pod_cgroup(&self, uid: &Uid) -> String {
        format!("{}/pod{}", self.cgroup(), id::uid_text(uid))
    }

    /// The set on disk.
    #[must_use]
    pub fn set(&self) -> PathBuf {
        self.state.join("set")
    }

    /// The folder for volumes that the node makes.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.state.join(STORAGE)
    }

    /// The folders of a pod.
    #[must_use]
    pub fn pod(&self, uid: &Uid, namespace: &str, name: &str) -> PodDirs {
        let uid = id::uid_text(uid);
        PodDirs {
            run: self.run.join("pods").join(&uid),
            disk: self.state.join("pods").join(&uid),
            logs: self.state.join("logs").join(format!("{namespace}_{name}_{uid}")),
            storage: self.storage(),
        }
    }
}

fn make(path: &Path) -> Result<PathBuf, FoldersError> {
    if !path.is_absolute() {
        return Err(FoldersError::Relative(path.to_owned()));
    }
    let made = DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.and_then(|()| fs::canonicalize(path))
        .map_err(|source| FoldersError::Io { path: path.to_owned(), source })
}

fn lock(folder: &Path) -> Result<File, FoldersError> {
    let path = folder.join("agent.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| FoldersError::Io { path: path.clone(), source })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FoldersError::InUse(folder.to_owned())),
        Err(error) => Err(FoldersError::Io { path, source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_cannot_share_a_folder() {
        let a = tempfile::tempdir().unwrap();
        let b = tempfile::tempdir().unwrap();
        let c = tempfile::tempdir().unwrap();
        let (folders, locks) = Folders::open(a.path(), b.path()).unwrap();
        for (state, run) in [(a.path(), c.path()), (c.path(), b.path())] {
            assert!(matches!(Folders::open(state, run), Err(FoldersError::InUse(_))));
        }
        drop(locks);
        let (again, _locks) = Folders::open(a.path(), b.path()).unwrap();
        assert_eq!(again, folders);
        let (other, _locks) = Folders::open(c.path(), &c.path().join("run")).unwrap();
        assert_ne!(other.tag(), folders.tag());
        assert_ne!(other.cgroup(), folders.cgroup());
        assert!(matches!(Folders::open(Path::new("x"), c.path()), Err(FoldersError::Relative(_))));
    }
}
