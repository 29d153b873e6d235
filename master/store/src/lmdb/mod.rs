//! The store on LMDB.
//!
//! ```text
//! DIR/            0700
//!   lock          held while the store is open
//!   objects/      the durable database: objects, log, meta
//!   volatile/     objects that need no flush, if there are such prefixes
//! ```

pub(crate) mod config;
pub(crate) mod durable;
pub(crate) mod environment;
mod listing;
mod live;
mod queue;
pub(crate) mod record;
mod shared;
mod volatile;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use self::config::Config;
use self::durable::Durable;
use self::environment::make_dir;
use self::live::{Live, Ring};
use self::queue::Queue;
pub(crate) use self::shared::Shared;
use self::shared::SharedCounters;
use self::volatile::Volatile;
use self::writer::{Command, Request, Writer};
use crate::types::validate;
use crate::{
    BoxFuture, Counters, List, ListOptions, Revision, Store, StoreError, Versioned, Watcher, Write,
};

/// Name of the folder of the durable database.
pub(crate) const OBJECTS: &str = "objects";

const VOLATILE: &str = "volatile";

/// Map of the volatile database: it holds little, and grows like the other.
const VOLATILE_MAP_BYTES: usize = 4 << 20;

/// A store in a directory.
///
/// Dropping it answers what is queued, closes the databases once the last
/// watcher is gone too, and frees the directory.
pub struct LmdbStore {
    shared: Arc<Shared>,
    head: watch::Receiver<Revision>,
    writer: Option<JoinHandle<()>>,
}

impl LmdbStore {
    /// Opens the store in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another store has it open,
    /// [`StoreError::Damaged`] when it cannot be read.
    pub fn open(dir: impl AsRef<Path>, config: Config) -> Result<LmdbStore, StoreError> {
        let dir = dir.as_ref();
        make_dir(dir)?;
        let lock = lock(dir)?;
        let map_bytes = (config.map_bytes_initial, config.map_bytes_max);
        let durable = Durable::open(&dir.join(OBJECTS), map_bytes)?;
        let (state, epoch) = durable.read(|txn| Ok((durable.state(txn)?, durable.epoch(txn)?)))?;
        let revision = state.revision.max(state.ceiling).max(state.compacted);
        let volatile = if config.volatile_prefixes.is_empty() {
            None
        } else {
            let map_bytes = (VOLATILE_MAP_BYTES, config.map_bytes_max);
            Some(Volatile::open(&dir.join(VOLATILE), revision, map_bytes)?)
        };
        let ring = Ring::new(revision, config.ring_bytes_max);
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            epoch,
            queue: Queue::new(),
            durable,
            volatile,
            live: RwLock::new(Live { ring, objects: BTreeMap::new() }),
            published: AtomicU64::new(revision),
            compacted: AtomicU64::new(state.compacted),
            counters: SharedCounters::default(),
            listed_since_release: AtomicU64::new(0),
            config,
            _lock: lock,
        });
        let (sender, head) = watch::channel(revision);
        let writer = Writer::new(shared.clone(), sender, state);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                let _abandon = AbandonQueue(writer.shared());
                writer.run();
            })
            .map_err(|e| StoreError::io("start the writer thread of", dir, e))?;
        Ok(LmdbStore { shared, head, writer: Some(writer) })
    }

    /// The directory it is in.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Checks what needs no look at the objects.
    fn request(
        &self,
        writes: Vec<Write>,
        answer: oneshot::Sender<Result<Revision, StoreError>>,
    ) -> Result<Request, StoreError> {
        validate(&writes)?;
        let config = &self.shared.config;
        let class = writes.first().map_or(config::Class::Durable, |w| config.class_of(w.key()));
        if let Some(other) = writes.iter().find(|w| config.class_of(w.key()) != class) {
            let [first, second] = [&writes[0], other].map(|w| w.key().to_owned());
            return Err(StoreError::MixedClasses { first, second });
        }
        Ok(Request { class, writes, answer })
    }
}

impl Store for LmdbStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.shared.get(self.shared.config.class_of(key), key)
    }

    fn list(&self, prefix: &str, options: &ListOptions) -> Result<List, StoreError> {
        self.shared.list(prefix, options)
    }

    fn revision(&self) -> Revision {
        self.shared.revision()
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted.load(Ordering::Relaxed)
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<Result<Revision, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let request = self.request(writes, answer);
        let shared = self.shared.clone();
        Box::pin(async move {
            shared.queue.push(Command::Write(request?)).await?;
            drop(shared);
            answered.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watcher, StoreError> {
        self.shared.check_watch(prefix, from)?;
        Ok(Watcher::new(self.shared.clone(), prefix, from, self.head.clone()))
    }

    fn compact(&self, before: Revision) -> BoxFuture<Result<(), StoreError>> {
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        Box::pin(async move {
            shared.queue.push(Command::Compact { before, answer }).await?;
            drop(shared);
            answered.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn epoch(&self) -> u128 {
        self.shared.epoch
    }

    fn counters(&self) -> Counters {
        self.shared.counters()
    }
}

impl fmt::Debug for LmdbStore {
    // Not what is in it: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LmdbStore")
            .field("dir", &self.shared.dir)
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Drop for LmdbStore {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer thread of the store panicked");
        }
    }
}

/// Whatever ends the writer thread, nobody waits for an answer from it.
struct AbandonQueue(Arc<Shared>);

impl Drop for AbandonQueue {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}

/// Keeps other stores out of a directory for as long as it lives.
#[derive(Debug)]
pub(crate) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Said, not left to closing: a child that this process is just starting
        // may hold a copy of the file for another moment.
        let _ = self.0.unlock();
    }
}

/// How often, and with which pause, a lock is asked for that another has. A store
/// that was killed may have been starting a program, which holds a copy of its files
/// until it runs.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Takes the lock of `dir`.
#[expect(clippy::disallowed_methods, reason = "once, before the store serves anybody")]
pub(crate) fn lock(dir: &Path) -> Result<DirLock, StoreError> {
    let path: PathBuf = dir.join("lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| StoreError::io("open", &path, e))?;
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(DirLock(lock)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", &path, e)),
        }
    }
    Err(StoreError::Locked { dir: dir.to_owned() })
}
