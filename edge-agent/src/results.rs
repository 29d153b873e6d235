//! What must outlive a power cut of a pod: that it is finished, and how.
//!
//! One file a pod, `results/<uid>`, written once when the pod is over, so that a
//! finished pod never runs again. A pod that the master has removed leaves its
//! file as a tombstone, for a master restored from an old backup may send it
//! again; only the newest [`TOMBSTONES_MAX`] are kept.
//!
//! Restart counts need no file: each run has a log file with its number.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use wire::Uid;
use wire::pod::PodV1;
use wire::status::{PhaseV1, TerminatedV1};

use crate::durable::{self, DurableError, Keep, Magic};
use crate::id;
use crate::pods::{Container, Eviction, PodState, Run, finished_phase};

/// Most tombstones kept.
pub const TOMBSTONES_MAX: usize = 512;

const MAGIC: Magic = *b"PNres\0\0\x01";
const BYTES_MAX: u64 = 1 << 20;

/// How a pod ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Namespace, for people.
    pub namespace: String,
    /// Name, for people.
    pub name: String,
    /// The final phase.
    pub phase: PhaseV1,
    /// The node ended the pod, and why.
    pub eviction: Option<Eviction>,
    /// When the node first saw the pod, in milliseconds since 1970.
    pub first_seen_ms: u64,
    /// Its containers.
    pub containers: Vec<ContainerRecord>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container.
    pub name: String,
    /// Number of its last run.
    pub attempt: u32,
    /// How many runs it had.
    pub n_runs: u32,
    /// The image as the manifest named it.
    pub image: String,
    /// `sha256:…`.
    pub image_id: String,
    /// How its last run ended; `None` if it never ran.
    pub end: Option<TerminatedV1>,
}

impl Record {
    /// The record of a pod that is over.
    #[must_use]
    pub fn of(state: &PodState, pod: &PodV1) -> Self {
        let containers = state.containers.iter().map(ContainerRecord::of).collect();
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            phase: finished_phase(state),
            eviction: state.eviction.clone(),
            first_seen_ms: state.first_seen_ms,
            containers,
        }
    }

    /// Puts what is known of a finished pod into a fresh state.
    pub fn restore(&self, state: &mut PodState) {
        state.finished = Some(self.phase);
        state.eviction.clone_from(&self.eviction);
        state.first_seen_ms = self.first_seen_ms;
        for record in &self.containers {
            if let Some(container) = state.containers.iter_mut().find(|c| c.name == record.name) {
                record.restore(container);
            }
        }
    }
}

impl ContainerRecord {
    /// How a container ended.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let (attempt, image, image_id, end) = match &container.run {
            Run::Exited { attempt, image, image_id, end, .. } => {
                (*attempt, image.clone(), image_id.clone(), Some(end.clone()))
            }
            _ => (0, container.image.reference.clone(), String::new(), None),
        };
        let (name, n_runs) = (container.name.clone(), container.n_runs);
        Self { name, attempt, n_runs, image, image_id, end }
    }

    /// Puts it into a container of which nothing else is known.
    pub fn restore(&self, container: &mut Container) {
        container.n_runs = self.n_runs;
        container.next_attempt = self.attempt.saturating_add(1);
        if let Some(end) = &self.end {
            container.run = Run::ended(self.attempt, &self.image, &self.image_id, end.clone());
        }
    }
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub struct Results {
    folder: PathBuf,
    /// Time of the newest record. The files' times give their order, so they only
    /// grow, whatever the clock does.
    newest: Arc<Mutex<SystemTime>>,
}

impl Results {
    /// Opens the folder, and makes it where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        durable::sweep(folder)?;
        let mut newest = SystemTime::UNIX_EPOCH;
        for entry in fs::read_dir(folder)? {
            newest = newest.max(entry?.metadata()?.modified()?);
        }
        Ok(Self { folder: folder.to_owned(), newest: Arc::new(Mutex::new(newest)) })
    }

    /// The record of a pod, if it is finished.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn get(&self, uid: &Uid) -> Result<Option<Record>, DurableError> {
        durable::read(&self.path(uid), MAGIC, BYTES_MAX)
    }

    /// Writes a record. Blocks until it is on the disk.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn put(&self, uid: &Uid, record: &Record) -> Result<(), DurableError> {
        let path = self.path(uid);
        durable::write(&path, MAGIC, record, Keep::ThroughPowerLoss)?;
        self.put_last(&path);
        Ok(())
    }

    /// Gives a record a time after that of every other, where the clock went back.
    fn put_last(&self, path: &Path) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let written = fs::metadata(path).and_then(|file| file.modified());
        let Ok(written) = written else { return };
        if written > *newest {
            *newest = written;
            return;
        }
        *newest += Duration::from_secs(1);
        // If it fails, a tombstone may go before its time.
        let _ = File::open(path).and_then(|file| file.set_modified(*newest));
    }

    /// Removes the oldest records of pods for which `is_known` says no, until
    /// [`TOMBSTONES_MAX`] are left. Called when a pod is forgotten.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn prune(&self, is_known: impl Fn(&Uid) -> bool) -> io::Result<()> {
        let mut tombstones = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let uid = entry.file_name().to_str().and_then(id::parse_uid);
            if uid.is_some_and(|uid| !is_known(&uid)) {
                tombstones.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        let n_surplus = tombstones.len().saturating_sub(TOMBSTONES_MAX);
        tombstones.sort();
        for (_, path) in tombstones.into_iter().take(n_surplus) {
            durable::remove(&path)?;
        }
        Ok(())
    }

    fn path(&self, uid: &Uid) -> PathBuf {
        self.folder.join(id::uid_text(uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_old_tombstones_go() {
        let folder = tempfile::tempdir().unwrap();
        let results = Results::open(folder.path()).unwrap();
        let record = Record {
            namespace: "n".into(),
            name: "p".into(),
            phase: PhaseV1::Failed,
            eviction: None,
            first_seen_ms: 3,
            containers: vec![],
        };
        let uid = |n: usize| {
            let mut uid = [0; 16];
            uid[..8].copy_from_slice(&n.to_le_bytes());
            uid
        };
        for n in 0..TOMBSTONES_MAX + 3 {
            // Not flushed: 500 flushes would be the whole test.
            durable::write(&results.path(&uid(n)), MAGIC, &record, Keep::ThroughRestart).unwrap();
        }
        results.put(&uid(0), &record).unwrap();
        assert_eq!(results.get(&uid(0)).unwrap(), Some(record));
        results.prune(|other| *other == uid(0)).unwrap();
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, TOMBSTONES_MAX + 1);
        assert!(results.get(&uid(0)).unwrap().is_some(), "a known pod's record stays");
    }

    #[test]
    fn records_keep_their_order_when_the_clock_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record {
            namespace: "n".into(),
            name: "p".into(),
            phase: PhaseV1::Failed,
            eviction: None,
            first_seen_ms: 3,
            containers: vec![],
        };
        let results = Results::open(folder.path()).unwrap();
        results.put(&[1; 16], &record).unwrap();
        // Ten years ahead, and back.
        let ahead = SystemTime::now() + Duration::from_secs(10 * 365 * 86_400);
        let first = File::open(results.path(&[1; 16])).unwrap();
        first.set_modified(ahead).unwrap();
        let results = Results::open(folder.path()).unwrap();
        results.put(&[2; 16], &record).unwrap();
        results.put(&[3; 16], &record).unwrap();
        let time = |n| fs::metadata(results.path(&[n; 16])).unwrap().modified().unwrap();
        assert!(time(1) < time(2) && time(2) < time(3));
    }
}
