//! The second database, for objects that are many, small and not worth a flush:
//! Kubernetes Events.
//!
//! LMDB's flags hold for a whole environment, so it has its own, without
//! flushes. After the end of the process the page cache still has all of it;
//! after a loss of power the file may be anything, and LMDB does not survive
//! reading garbage. So a file beside it says who used it last:
//!
//! | `state` | the database is |
//! |---|---|
//! | `clean <bytes>`, the length of the file | flushed and closed: used |
//! | `open <boot id>`, of this boot | as the page cache has it: used |
//! | anything else | discarded |
//!
//! It holds no log: changes are known as long as the ring has them. The table
//! `order` (revision BE, key → nothing) finds the oldest object.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Bound;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heed::{RwTxn, WithoutTls};

use crate::lmdb::environment::{
    DATA_FILE, Environment, Sync, Table, WriteError, scan_from, sync_dir,
};
use crate::lmdb::record::{decode_key, decode_object, encode_object};
use crate::{Event, EventKind, Revision, StoreError};

type Txn<'a> = heed::RoTxn<'a, WithoutTls>;

#[derive(Debug)]
pub(crate) struct Volatile {
    environment: Environment,
    objects: Table,
    order: Table,
    state_file: PathBuf,
}

impl Volatile {
    /// Opens the database in `dir`. Discards what is there if it may be damaged.
    ///
    /// No object in it may be newer than `revision`.
    pub(crate) fn open(
        dir: &Path,
        revision: Revision,
        map_bytes: (usize, usize),
    ) -> Result<Volatile, StoreError> {
        let boot = boot_id();
        if let Some(reason) = distrust(dir, &boot) {
            discard(dir, reason)?;
        }
        let volatile = match Volatile::try_open(dir, revision, map_bytes) {
            Err(error @ (StoreError::Damaged { .. } | StoreError::Database { .. })) => {
                discard(dir, &error.to_string())?;
                Volatile::try_open(dir, revision, map_bytes)?
            }
            other => other?,
        };
        volatile.mark(&open_in(&boot))?;
        Ok(volatile)
    }

    fn try_open(
        dir: &Path,
        revision: Revision,
        map_bytes: (usize, usize),
    ) -> Result<Volatile, StoreError> {
        let (environment, [objects, order]) =
            Environment::open(dir, ["objects", "order"], Sync::Never, map_bytes)?;
        let state_file = dir.join("state");
        let volatile = Volatile { environment, objects, order, state_file };
        volatile.check(revision)?;
        Ok(volatile)
    }

    /// Walks the order and looks up every object.
    fn check(&self, revision_max: Revision) -> Result<(), StoreError> {
        let damaged = |detail: &str| Err(self.environment.damaged(detail));
        self.environment.read(|txn| {
            let fail = |e| self.environment.fail("read", e);
            let mut n_ordered = 0;
            for entry in self.order.iter(txn).map_err(fail)? {
                let (place, _) = entry.map_err(fail)?;
                n_ordered += 1;
                let Some((revision, key)) = decode_place(place) else {
                    return damaged("the order has a place that cannot be decoded");
                };
                let found = self.get(txn, key)?.map(|(revision, _)| revision);
                if found != Some(revision) || revision > revision_max {
                    return damaged(&format!("{key} is not as the order says"));
                }
            }
            if n_ordered != self.objects.len(txn).map_err(fail)? {
                return damaged("objects and order differ");
            }
            Ok(())
        })
    }

    /// Makes it safe to open after a loss of power.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        self.environment.flush()?;
        let data = self.environment.dir().join(DATA_FILE);
        let bytes = fs::metadata(&data).map_err(|e| StoreError::io("read", &data, e))?.size();
        self.mark(&clean(bytes))
    }

    fn mark(&self, state: &str) -> Result<(), StoreError> {
        let next = self.state_file.with_extension("next");
        let fail = |e| StoreError::io("write", &next, e);
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&next)
            .map_err(fail)?;
        file.write_all(state.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
        fs::rename(&next, &self.state_file).map_err(fail)?;
        sync_dir(self.environment.dir())
    }

    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Txn<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.environment.read(read)
    }

    pub(crate) fn get<'t>(
        &self,
        txn: &'t Txn<'_>,
        key: &str,
    ) -> Result<Option<(Revision, &'t [u8])>, StoreError> {
        let record = self.objects.get(txn, key.as_bytes());
        let record = record.map_err(|e| self.environment.fail("read", e))?;
        record.map(decode_object).transpose().map_err(|_| self.malformed(key))
    }

    /// Visits objects in key order until `visit` says no.
    pub(crate) fn objects_from(
        &self,
        txn: &Txn<'_>,
        from: Bound<&str>,
        visit: &mut dyn FnMut(&str, Revision, &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let fail = |e| self.environment.fail("read", e);
        for entry in self.objects.range(txn, &scan_from(from)).map_err(fail)? {
            let (key, record) = entry.map_err(fail)?;
            let key = decode_key(key).map_err(|_| self.malformed("a key"))?;
            let (revision, value) = decode_object(record).map_err(|_| self.malformed(key))?;
            if !visit(key, revision, value) {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn n_objects(&self) -> Result<u64, StoreError> {
        self.read(|txn| self.objects.len(txn).map_err(|e| self.environment.fail("read", e)))
    }

    /// The keys of the oldest `n` objects, without those that `skip` names.
    pub(crate) fn oldest(
        &self,
        n: usize,
        skip: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, StoreError> {
        self.read(|txn| {
            let fail = |e| self.environment.fail("read", e);
            let mut keys = Vec::with_capacity(n);
            for entry in self.order.iter(txn).map_err(fail)? {
                if keys.len() == n {
                    break;
                }
                let (place, _) = entry.map_err(fail)?;
                let (_, key) = decode_place(place).ok_or_else(|| self.malformed("the order"))?;
                if !skip(key) {
                    keys.push(key.to_owned());
                }
            }
            Ok(keys)
        })
    }

    /// Applies the changes in one transaction.
    pub(crate) fn write(&self, events: &[Arc<Event>]) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        self.environment.write(|txn| {
            for event in events {
                self.apply(txn, event, &mut buffer)?;
            }
            Ok(())
        })
    }

    fn apply(
        &self,
        txn: &mut RwTxn<'_>,
        event: &Event,
        buffer: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        if let Some(previous) = &event.previous {
            self.order.delete(txn, &encode_place(previous.revision, &event.key))?;
        }
        match event.kind {
            EventKind::Put => {
                buffer.clear();
                encode_object(buffer, event.revision, &event.value);
                self.objects.put(txn, event.key.as_bytes(), buffer)?;
                self.order.put(txn, &encode_place(event.revision, &event.key), &[])?;
            }
            EventKind::Delete => {
                self.objects.delete(txn, event.key.as_bytes())?;
            }
        }
        Ok(())
    }

    fn malformed(&self, what: &str) -> StoreError {
        self.environment.damaged(format!("{what} cannot be decoded"))
    }
}

fn encode_place(revision: Revision, key: &str) -> Vec<u8> {
    [&revision.to_be_bytes()[..], key.as_bytes()].concat()
}

fn decode_place(place: &[u8]) -> Option<(Revision, &str)> {
    let (revision, key) = place.split_first_chunk()?;
    Some((u64::from_be_bytes(*revision), std::str::from_utf8(key).ok()?))
}

/// Why the database in `dir` must not even be opened, if so.
fn distrust(dir: &Path, boot: &str) -> Option<&'static str> {
    let bytes = fs::metadata(dir.join(DATA_FILE)).ok()?.size();
    match fs::read_to_string(dir.join("state")).unwrap_or_default() {
        state if state == clean(bytes) => None,
        state if state.starts_with("clean ") => Some("its length changed"),
        state if !boot.is_empty() && state == open_in(boot) && bytes > 0 => None,
        _ => Some("the machine stopped while it was in use"),
    }
}

fn clean(bytes: u64) -> String {
    format!("clean {bytes}")
}

fn open_in(boot: &str) -> String {
    format!("open {boot}")
}

fn discard(dir: &Path, reason: &str) -> Result<(), StoreError> {
    tracing::warn!(dir = %dir.display(), reason, "discarding the database of volatile objects");
    fs::remove_dir_all(dir).map_err(|e| StoreError::io("remove", dir, e))
}

/// Identifies this boot of the machine; empty where the kernel does not tell.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
