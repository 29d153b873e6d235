//! The values that go into and come out of a [`Store`](crate::Store).

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;

use crate::StoreError;

/// Number of a transaction; it only grows. Kubernetes calls it
/// `resourceVersion`.
pub type Revision = u64;

/// Longest key, in bytes. LMDB's limit is 511; the rest is for the revision
/// that the store puts in front of a key in an index.
pub const KEY_BYTES_MAX: usize = 480;

/// Largest value, in bytes. etcd refuses requests over 1.5 MiB; a value here
/// may be somewhat larger, and the log keeps each twice.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// An object as it was stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Where it is stored.
    pub key: String,
    /// The revision of the transaction that wrote it.
    pub revision: Revision,
    /// What was stored.
    pub value: Bytes,
}

impl fmt::Debug for Versioned {
    // Values may be secrets: their length only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} ({} bytes)", self.key, self.revision, self.value.len())
    }
}

/// What must be true of a key for a [`Write`] to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing is stored there.
    Absent,
    /// The object there was written by the transaction of this revision.
    Revision(Revision),
    /// No expectation: it may exist or not.
    Any,
}

/// The bytes of a put.
pub enum Value {
    /// Known beforehand.
    Bytes(Bytes),
    /// Made once the revision of the transaction is known. Called on the writer
    /// thread, at most once, and only if the expectations hold: it must be quick
    /// and must not fail.
    Render(Box<dyn FnOnce(Revision) -> Bytes + Send>),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Value::Render(_) => f.write_str("rendered"),
        }
    }
}

/// One step of a transaction.
#[derive(Debug)]
pub enum Write {
    /// Stores `value` at `key`.
    Put {
        /// Where; at most [`KEY_BYTES_MAX`] bytes.
        key: String,
        /// What must be true before.
        expect: Expect,
        /// What; at most [`VALUE_BYTES_MAX`] bytes.
        value: Value,
    },
    /// Removes the object at `key`. Changes nothing when there is none and
    /// [`Expect`] allows that.
    Delete {
        /// Where.
        key: String,
        /// What must be true before.
        expect: Expect,
    },
}

impl Write {
    /// A put of bytes that do not depend on the revision.
    pub fn put(key: impl Into<String>, expect: Expect, value: impl Into<Bytes>) -> Write {
        Write::Put { key: key.into(), expect, value: Value::Bytes(value.into()) }
    }

    /// A put whose bytes carry the revision of the transaction.
    pub fn put_with(
        key: impl Into<String>,
        expect: Expect,
        render: impl FnOnce(Revision) -> Bytes + Send + 'static,
    ) -> Write {
        Write::Put { key: key.into(), expect, value: Value::Render(Box::new(render)) }
    }

    /// A delete.
    pub fn delete(key: impl Into<String>, expect: Expect) -> Write {
        Write::Delete { key: key.into(), expect }
    }

    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Write::Put { key, .. } | Write::Delete { key, .. } => key,
        }
    }

    /// What must be true of the key.
    pub fn expect(&self) -> Expect {
        match self {
            Write::Put { expect, .. } | Write::Delete { expect, .. } => *expect,
        }
    }
}

impl Expect {
    /// Whether it holds for what is stored at the key.
    pub(crate) fn check(self, key: &str, current: Option<&Versioned>) -> Result<(), StoreError> {
        let holds = match self {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current.is_some_and(|c| c.revision == revision),
        };
        if holds {
            return Ok(());
        }
        Err(StoreError::Conflict { key: key.to_owned(), current: current.cloned() })
    }
}

/// Refuses what no store accepts: keys that are empty, too long or named twice,
/// and values that are too large.
pub(crate) fn validate(writes: &[Write]) -> Result<(), StoreError> {
    let mut keys = HashSet::with_capacity(writes.len());
    for write in writes {
        let key = write.key();
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(StoreError::InvalidKey { key: key.to_owned(), bytes_max: KEY_BYTES_MAX });
        }
        if !keys.insert(key) {
            return Err(StoreError::DuplicateKey { key: key.to_owned() });
        }
        if let Write::Put { value: Value::Bytes(value), .. } = write {
            check_value(key, value)?;
        }
    }
    Ok(())
}

pub(crate) fn check_value(key: &str, value: &Bytes) -> Result<(), StoreError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(StoreError::ValueTooLarge {
            key: key.to_owned(),
            bytes: value.len(),
            bytes_max: VALUE_BYTES_MAX,
        });
    }
    Ok(())
}

/// Which objects a list returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only keys greater than this one: the last key of the page before.
    pub start_after: Option<String>,
    /// At most this many objects.
    pub limit: Option<usize>,
    /// The state as it was at this revision; the newest without it.
    pub at_revision: Option<Revision>,
}

/// What a list returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The objects, in key order.
    pub items: Vec<Versioned>,
    /// All items are as they were at this revision.
    pub revision: Revision,
    /// Whether there are objects after the last item.
    pub more: bool,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was stored; [`Event::previous`] tells whether it was created.
    Put,
    /// It was removed.
    Delete,
}

/// One change of one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To which key.
    pub key: String,
    /// In which transaction.
    pub revision: Revision,
    /// The new value; for a delete, the last one.
    pub value: Bytes,
    /// What was there before.
    pub previous: Option<Versioned>,
}

impl Event {
    /// Roughly what it takes in memory.
    pub(crate) fn cost_bytes(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |p| p.key.len() + p.value.len());
        // A deletion shares the value with what was there before.
        let value = if self.kind == EventKind::Delete { 0 } else { self.value.len() };
        160 + self.key.len() + value + previous
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}@{} ({} bytes)", self.kind, self.key, self.revision, self.value.len())?;
        match &self.previous {
            Some(previous) => write!(f, " after @{}", previous.revision),
            None => Ok(()),
        }
    }
}

/// What a store did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Durable commits: each costs the disk two flushes.
    pub commits: u64,
    /// Transactions that changed something.
    pub transactions: u64,
    /// Keys put or deleted by them.
    pub changes: u64,
    /// Transactions refused because an expectation did not hold.
    pub conflicts: u64,
    /// Bytes of keys, values and log records handed to durable commits. What
    /// reaches the flash is more: LMDB writes whole pages of 4 KiB.
    pub bytes_durable: u64,
    /// Log records dropped by compaction.
    pub compacted: u64,
    /// Events that watchers had to read from the log on disk, not from memory.
    pub events_from_log: u64,
}
