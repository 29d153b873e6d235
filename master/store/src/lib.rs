//! What etcd promises, for one small master: keys and bytes under one global
//! revision, compare-and-write, lists at a revision, and watches that miss
//! nothing and repeat nothing.
//!
//! ```text
//! write ──► queue ──► writer thread ──► one LMDB transaction ──► commit ──► all answered
//!                                                                  │
//!                                            ring of recent events ├──► watchers
//!                                            log on disk ──────────┘    (ring, else log, else Expired)
//! ```
//!
//! * [`Store`] is the contract, [`LmdbStore`] keeps it on disk, and
//!   [`MemoryStore`] is the plain model of it, for tests and for those who need
//!   a store without a directory.
//! * A transaction has **one** revision for all it changes, and all of it
//!   happens or nothing. `write` resolves after the commit is on the disk.
//! * [`backup`] copies a store to a stream, and makes a new one out of it.
//!
//! This crate knows no Kubernetes kind and does not look into a value. A value
//! that carries its own revision is made by [`Write::put_with`], which is told
//! the revision of the transaction.

pub mod archive;
pub mod backup;
mod error;
mod lmdb;
mod memory;
mod types;
mod watcher;

use std::fmt::Debug;
use std::pin::Pin;

pub use self::error::StoreError;
pub use self::lmdb::LmdbStore;
pub use self::lmdb::config::{Config, Retention};
pub use self::memory::MemoryStore;
pub use self::types::{
    Counters, Event, EventKind, Expect, KEY_BYTES_MAX, List, ListOptions, Revision,
    VALUE_BYTES_MAX, Value, Versioned, Write,
};
pub use self::watcher::Watcher;

/// A boxed future that owns what it needs, so that it can be spawned.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Keys, bytes and one revision counter.
///
/// Reads are short, return copies and never wait for a writer: call them from
/// async code. Keys are ordered by their bytes.
pub trait Store: Debug + Send + Sync + 'static {
    /// The object at `key` as the last commit left it.
    ///
    /// # Errors
    /// Only when the database cannot be read.
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// The objects whose keys begin with `prefix`, in key order, all as they
    /// were at one revision, which is in the answer. A watch from it misses
    /// nothing.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when [`ListOptions::at_revision`] was compacted,
    /// [`StoreError::Future`] when it was not reached yet.
    fn list(&self, prefix: &str, options: &ListOptions) -> Result<List, StoreError>;

    /// The revision of the newest change that readers can see.
    fn revision(&self) -> Revision;

    /// Changes at and below this revision are no longer known: the oldest
    /// revision that a watch may start from and a list may ask for.
    fn compacted(&self) -> Revision;

    /// Does all of `writes` in one transaction, or nothing.
    ///
    /// Resolves with the revision of the transaction after it is durable. The
    /// transaction happens even if the future is dropped once it was polled. A
    /// transaction that changes nothing (it is empty, or deletes only what does
    /// not exist) takes no revision and answers with the current one.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an [`Expect`] does not hold; the others
    /// when a key or value is refused or the disk fails.
    fn write(&self, writes: Vec<Write>) -> BoxFuture<Result<Revision, StoreError>>;

    /// The changes below `prefix` with a revision greater than `from`.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when changes after `from` are already forgotten,
    /// [`StoreError::Future`] when `from` was not reached yet.
    fn watch(&self, prefix: &str, from: Revision) -> Result<Watcher, StoreError>;

    /// Forgets the changes at and below `before`; the state at `before` stays
    /// readable. Does nothing when they are already forgotten.
    ///
    /// # Errors
    /// [`StoreError::Future`] when `before` was not reached yet.
    fn compact(&self, before: Revision) -> BoxFuture<Result<(), StoreError>>;

    /// Identity of this history. A restored backup has another: revisions of
    /// two epochs cannot be compared.
    fn epoch(&self) -> u128;

    /// What was done since the store was opened.
    fn counters(&self) -> Counters;
}
