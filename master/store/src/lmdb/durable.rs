//! The durable database: objects, the log of changes, and the counters.
//!
//! Functions on an open transaction; [`writer`](super::writer) and the readers
//! decide when there is one.

use std::path::Path;

use heed::{RoTxn, RwTxn, WithoutTls};

use crate::lmdb::environment::{Environment, Sync, Table, WriteError, scan_from};
use crate::lmdb::record::{
    self, Change, FORMAT, Malformed, State, decode_changes, decode_log_key, decode_object,
};
use crate::{Event, EventKind, Revision, StoreError};

type Txn<'a> = RoTxn<'a, WithoutTls>;

const STATE: &[u8] = b"state";
const EPOCH: &[u8] = b"epoch";
const FORMAT_KEY: &[u8] = b"format";

#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) environment: Environment,
    objects: Table,
    log: Table,
    meta: Table,
}

impl Durable {
    /// Opens the database in `dir`, or makes an empty one with a new epoch.
    pub(crate) fn open(dir: &Path, map_bytes: (usize, usize)) -> Result<Durable, StoreError> {
        let (environment, [objects, log, meta]) =
            Environment::open(dir, ["objects", "log", "meta"], Sync::Durable, map_bytes)?;
        let durable = Durable { environment, objects, log, meta };
        let format = durable.read(|txn| Ok(durable.meta_get(txn, FORMAT_KEY)?.map(<[u8]>::to_vec)));
        match format? {
            Some(found) if found == FORMAT.to_le_bytes() => {}
            Some(found) => {
                let detail = format!("its format is {found:?}, this program reads {FORMAT}");
                return Err(durable.environment.damaged(detail));
            }
            None => durable.initialize(State::default())?,
        }
        Ok(durable)
    }

    /// Gives an empty database its epoch and where its revisions begin.
    pub(crate) fn initialize(&self, state: State) -> Result<(), StoreError> {
        let epoch = random()?;
        self.environment.write(|txn| {
            self.meta.put(txn, FORMAT_KEY, &FORMAT.to_le_bytes())?;
            self.meta.put(txn, EPOCH, &epoch.to_le_bytes())?;
            self.meta.put(txn, STATE, &state.encode())?;
            Ok(())
        })
    }

    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Txn<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.environment.read(read)
    }

    fn meta_get<'t>(&self, txn: &'t Txn<'_>, key: &[u8]) -> Result<Option<&'t [u8]>, StoreError> {
        self.meta.get(txn, key).map_err(|e| self.environment.fail("read", e))
    }

    pub(crate) fn state(&self, txn: &Txn<'_>) -> Result<State, StoreError> {
        let record = self.meta_get(txn, STATE)?.unwrap_or_default();
        State::decode(record).map_err(|e| self.malformed(e, "the record of its state"))
    }

    pub(crate) fn epoch(&self, txn: &Txn<'_>) -> Result<u128, StoreError> {
        let record = self.meta_get(txn, EPOCH)?.unwrap_or_default();
        let bytes = record.try_into().map_err(|_| self.malformed(Malformed, "its epoch"))?;
        Ok(u128::from_le_bytes(bytes))
    }

    pub(crate) fn get<'t>(
        &self,
        txn: &'t Txn<'_>,
        key: &str,
    ) -> Result<Option<(Revision, &'t [u8])>, StoreError> {
        let record = self.objects.get(txn, key.as_bytes());
        let record = record.map_err(|e| self.environment.fail("read", e))?;
        record.map(decode_object).transpose().map_err(|e| self.malformed(e, key))
    }

    /// Visits objects in key order until `visit` says no.
    pub(crate) fn objects_from(
        &self,
        txn: &Txn<'_>,
        from: std::ops::Bound<&str>,
        visit: &mut dyn FnMut(&str, Revision, &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let fail = |e| self.environment.fail("read", e);
        for entry in self.objects.range(txn, &scan_from(from)).map_err(fail)? {
            let (key, record) = entry.map_err(fail)?;
            let key = record::decode_key(key).map_err(|e| self.malformed(e, "a key"))?;
            let (revision, value) = decode_object(record).map_err(|e| self.malformed(e, key))?;
            if !visit(key, revision, value) {
                break;
            }
        }
        Ok(())
    }

    /// Visits the changes after `position`, oldest first, until `visit` says no.
    pub(crate) fn changes_after(
        &self,
        txn: &Txn<'_>,
        position: Revision,
        visit: &mut dyn FnMut(Revision, Change<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let compacted = self.state(txn)?.compacted;
        if position < compacted {
            return Err(StoreError::Expired { requested: position, compacted });
        }
        let fail = |e| self.environment.fail("read", e);
        let first = position.saturating_add(1).to_be_bytes();
        let range = (std::ops::Bound::Included(&first[..]), std::ops::Bound::Unbounded);
        for entry in self.log.range(txn, &range).map_err(fail)? {
            let (key, record) = entry.map_err(fail)?;
            let revision = decode_log_key(key).map_err(|e| self.malformed(e, "a log key"))?;
            for change in decode_changes(record) {
                let change =
                    change.map_err(|e| self.malformed(e, &format!("log record {revision}")))?;
                if !visit(revision, change) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Writes the changes of one transaction; returns the bytes written.
    pub(crate) fn put_changes(
        &self,
        txn: &mut RwTxn<'_>,
        state: &mut State,
        revision: Revision,
        events: &[std::sync::Arc<Event>],
        buffer: &mut Vec<u8>,
    ) -> Result<u64, WriteError> {
        let mut bytes = 0;
        for event in events {
            let key = event.key.as_bytes();
            match event.kind {
                EventKind::Put => {
                    buffer.clear();
                    record::encode_object(buffer, revision, &event.value);
                    self.objects.put(txn, key, buffer)?;
                    bytes += key.len() + buffer.len();
                }
                EventKind::Delete => {
                    self.objects.delete(txn, key)?;
                }
            }
        }
        buffer.clear();
        for event in events {
            record::encode_change(buffer, event);
        }
        self.log.put(txn, &revision.to_be_bytes(), buffer)?;
        let log_bytes = size_of::<Revision>() + buffer.len();
        state.log_bytes += log_bytes as u64;
        state.revision = revision;
        Ok((bytes + log_bytes) as u64)
    }

    /// Writes an object without a change in the log: for a restore only.
    pub(crate) fn put_object(
        &self,
        txn: &mut RwTxn<'_>,
        key: &str,
        revision: Revision,
        value: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        buffer.clear();
        record::encode_object(buffer, revision, value);
        Ok(self.objects.put(txn, key.as_bytes(), buffer)?)
    }

    pub(crate) fn put_state(&self, txn: &mut RwTxn<'_>, state: State) -> Result<(), WriteError> {
        Ok(self.meta.put(txn, STATE, &state.encode())?)
    }

    pub(crate) fn n_log_records(&self, txn: &Txn<'_>) -> Result<u64, StoreError> {
        self.log.len(txn).map_err(|e| self.environment.fail("read", e))
    }

    /// Removes the oldest log record for as long as `wants` says so of its
    /// revision; returns how many.
    pub(crate) fn forget(
        &self,
        txn: &mut RwTxn<'_>,
        state: &mut State,
        mut wants: impl FnMut(Revision, &State) -> bool,
    ) -> Result<u64, WriteError> {
        let mut n_forgotten = 0;
        while let Some((key, record)) = self.log.first(txn)? {
            let revision = decode_log_key(key).map_err(|e| self.malformed(e, "a log key"))?;
            if !wants(revision, state) {
                break;
            }
            let bytes = (key.len() + record.len()) as u64;
            self.log.delete(txn, &revision.to_be_bytes())?;
            state.log_bytes = state.log_bytes.saturating_sub(bytes);
            state.compacted = revision;
            n_forgotten += 1;
        }
        Ok(n_forgotten)
    }

    fn malformed(&self, _: Malformed, what: &str) -> StoreError {
        self.environment.damaged(format!("{what} cannot be decoded"))
    }
}

/// A number that nobody has drawn before.
fn random() -> Result<u128, StoreError> {
    use std::io::Read;
    let path = "/dev/urandom";
    let mut bytes = [0; 16];
    std::fs::File::open(path)
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|e| StoreError::io("read", path, e))?;
    Ok(u128::from_le_bytes(bytes))
}
