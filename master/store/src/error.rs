//! What can go wrong in a store.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{Revision, Versioned};

/// The source of a failure, shared by all requests of one commit.
pub(crate) type Cause = Arc<dyn Error + Send + Sync + 'static>;

/// Why a store refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another writer was first, or the object does not exist (any more).
    #[error("{key} is not as expected: {}", describe(.current.as_ref()))]
    Conflict {
        /// The key whose expectation did not hold.
        key: String,
        /// What is stored there.
        current: Option<Versioned>,
    },
    /// The changes after this revision are forgotten: list again.
    #[error("revision {requested} is too old: changes up to {compacted} are compacted")]
    Expired {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that may be asked for.
        compacted: Revision,
    },
    /// This revision was not reached yet.
    #[error("revision {requested} is in the future: the newest is {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The key is empty or too long.
    #[error("key \"{key}\" must have 1 to {bytes_max} bytes")]
    InvalidKey {
        /// The key.
        key: String,
        /// The limit.
        bytes_max: usize,
    },
    /// One transaction names a key twice.
    #[error("key \"{key}\" is written twice in one transaction")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// One transaction writes keys that are kept in different ways.
    #[error(
        "\"{first}\" and \"{second}\" are kept differently (durable, volatile, memory) \
         and cannot be written in one transaction"
    )]
    MixedClasses {
        /// A key of the transaction.
        first: String,
        /// A key of another class.
        second: String,
    },
    /// The value is too large.
    #[error("{key}: value of {bytes} bytes exceeds {bytes_max}")]
    ValueTooLarge {
        /// The key.
        key: String,
        /// The size of the value.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Another process, or another store of this one, has the directory open.
    #[error("{} is in use by another store: stop the other process first", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no room: nothing was written, and later writes may succeed.
    #[error("no room left for the store in {}: free space and try again", dir.display())]
    Full {
        /// The directory of the database.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// LMDB refused.
    #[error("cannot {operation} the database in {}", dir.display())]
    Database {
        /// What was tried.
        operation: &'static str,
        /// The directory of the database.
        dir: PathBuf,
        /// What LMDB said.
        #[source]
        source: Cause,
    },
    /// The last step of a commit failed, which leaves open what the disk holds:
    /// the database is closed until the store is opened again.
    #[error("the database in {} is closed since a write failed: check the disk and restart", dir.display())]
    Broken {
        /// The directory of the database.
        dir: PathBuf,
    },
    /// A record cannot be decoded.
    #[error("the database in {} is damaged: {detail}: restore a backup", dir.display())]
    Damaged {
        /// The directory of the database.
        dir: PathBuf,
        /// What was found where.
        detail: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> StoreError {
        StoreError::Io { operation, path: path.into(), source: Arc::new(source) }
    }
}

fn describe(current: Option<&Versioned>) -> String {
    current.map_or_else(
        || "it does not exist".to_owned(),
        |current| format!("it has revision {}", current.revision),
    )
}
