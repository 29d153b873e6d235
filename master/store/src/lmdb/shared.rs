//! What the writer thread, readers and watchers of one store share.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use heed::{RoTxn, WithoutTls};

use crate::lmdb::DirLock;
use crate::lmdb::config::{Class, Config};
use crate::lmdb::durable::Durable;
use crate::lmdb::listing::{Listing, Slice, Snapshot, VisitChange, VisitObject};
use crate::lmdb::live::Live;
use crate::lmdb::queue::Queue;
use crate::lmdb::volatile::Volatile;
use crate::lmdb::writer::Command;
use crate::watcher::{Changes, History};
use crate::{Counters, Event, List, ListOptions, Revision, StoreError, Versioned};

/// Events that a watcher takes at once.
const EVENTS_AT_ONCE: usize = 256;

/// After this many bytes listed, the pages of the map are given back.
const RELEASE_EVERY_BYTES: u64 = 8 << 20;

/// A list whose revision is compacted while it is made starts anew this often.
const LIST_ATTEMPTS: usize = 3;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) epoch: u128,
    pub(crate) queue: Queue<Command>,
    pub(crate) durable: Durable,
    pub(crate) volatile: Option<Volatile>,
    /// Taken before a transaction of the volatile database, never after.
    pub(crate) live: RwLock<Live>,
    /// The newest revision that readers see. Stored under `live`.
    pub(crate) published: AtomicU64,
    pub(crate) compacted: AtomicU64,
    pub(crate) counters: SharedCounters,
    pub(crate) listed_since_release: AtomicU64,
    /// Held as long as the databases are open; the last field, so that it is
    /// dropped after them.
    pub(crate) _lock: DirLock,
}

#[derive(Debug, Default)]
pub(crate) struct SharedCounters {
    pub(crate) commits: AtomicU64,
    pub(crate) transactions: AtomicU64,
    pub(crate) changes: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) bytes_durable: AtomicU64,
    pub(crate) compacted: AtomicU64,
    pub(crate) events_from_log: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Shared {
    pub(crate) fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn live_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn revision(&self) -> Revision {
        self.published.load(Acquire)
    }

    pub(crate) fn counters(&self) -> Counters {
        let c = &self.counters;
        Counters {
            commits: c.commits.load(Relaxed),
            transactions: c.transactions.load(Relaxed),
            changes: c.changes.load(Relaxed),
            conflicts: c.conflicts.load(Relaxed),
            bytes_durable: c.bytes_durable.load(Relaxed),
            compacted: c.compacted.load(Relaxed),
            events_from_log: c.events_from_log.load(Relaxed),
        }
    }

    pub(crate) fn get(&self, class: Class, key: &str) -> Result<Option<Versioned>, StoreError> {
        let copy = |(revision, value): (Revision, &[u8])| Versioned {
            key: key.to_owned(),
            revision,
            value: Bytes::copy_from_slice(value),
        };
        // LMDB refuses keys that no write lets in.
        if key.is_empty() || key.len() > crate::KEY_BYTES_MAX {
            return Ok(None);
        }
        match (class, &self.volatile) {
            (Class::Durable, _) => {
                self.durable.read(|txn| Ok(self.durable.get(txn, key)?.map(copy)))
            }
            (Class::Volatile, None) => Ok(None),
            (Class::Volatile, Some(volatile)) => {
                let _live = self.live();
                volatile.read(|txn| Ok(volatile.get(txn, key)?.map(copy)))
            }
            (Class::Memory, _) => Ok(self.live().objects.get(key).map(|(revision, value)| {
                Versioned { key: key.to_owned(), revision: *revision, value: value.clone() }
            })),
        }
    }

    /// Refuses a revision that no commit has reached.
    fn refuse_future(&self, requested: Revision) -> Result<(), StoreError> {
        // A reader may see a commit just before it is published.
        let current = self.revision();
        if requested <= current
            || requested <= self.durable.read(|txn| self.durable.state(txn))?.revision
        {
            return Ok(());
        }
        Err(StoreError::Future { requested, current })
    }

    pub(crate) fn list(&self, prefix: &str, options: &ListOptions) -> Result<List, StoreError> {
        if let Some(revision) = options.at_revision {
            self.refuse_future(revision)?;
            return self.list_at(prefix, options, revision);
        }
        let mut attempts = 1;
        loop {
            match self.list_at(prefix, options, self.revision()) {
                Err(StoreError::Expired { .. }) if attempts < LIST_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    fn list_at(
        &self,
        prefix: &str,
        options: &ListOptions,
        revision: Revision,
    ) -> Result<List, StoreError> {
        let limit = options.limit.unwrap_or(usize::MAX);
        let mut list = List { items: Vec::new(), revision, more: false };
        for class in self.config.classes_below(prefix) {
            let mut listing = Listing::new(prefix, options.start_after.as_deref(), limit, revision);
            while !self.list_step(class, &mut listing)? {}
            let (items, more) = listing.finish();
            list.more |= more;
            if list.items.is_empty() {
                list.items = items;
            } else if !items.is_empty() {
                list.items.extend(items);
                list.items.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            }
        }
        if list.items.len() > limit {
            list.items.truncate(limit);
            list.more = true;
        }
        self.note_listed(&list.items);
        Ok(list)
    }

    fn list_step(&self, class: Class, listing: &mut Listing<'_>) -> Result<bool, StoreError> {
        let budget = self.config.read_bytes_max;
        match (class, &self.volatile) {
            (Class::Durable, _) => self.durable.read(|txn| {
                let durable = &self.durable;
                listing.step(&DurableSnapshot { durable, txn }, budget)
            }),
            (Class::Volatile, None) => Ok(true),
            (Class::Volatile, Some(volatile)) => {
                let live = self.live();
                volatile.read(|txn| {
                    listing.step(
                        &VolatileSnapshot { shared: self, live: &live, volatile, txn },
                        budget,
                    )
                })
            }
            (Class::Memory, _) => {
                listing.step(&MemorySnapshot { shared: self, live: &self.live() }, budget)
            }
        }
    }

    /// Visits all durable objects as they were at `revision`.
    pub(crate) fn walk_durable<E: From<StoreError>>(
        &self,
        revision: Revision,
        visit: &mut dyn FnMut(Versioned) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut listing = Listing::new("", None, usize::MAX, revision);
        loop {
            let complete = self.list_step(Class::Durable, &mut listing)?;
            let items = listing.take_items();
            self.note_listed(&items);
            items.into_iter().try_for_each(&mut *visit)?;
            if complete {
                return Ok(());
            }
        }
    }

    fn note_listed(&self, items: &[Versioned]) {
        let bytes: usize = items.iter().map(|item| item.value.len()).sum();
        let listed = self.listed_since_release.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        if listed >= RELEASE_EVERY_BYTES {
            self.listed_since_release.store(0, Relaxed);
            self.durable.environment.release_pages();
        }
    }

    /// Refuses a position from which changes below `prefix` are already
    /// forgotten.
    pub(crate) fn check_watch(&self, prefix: &str, from: Revision) -> Result<(), StoreError> {
        self.refuse_future(from)?;
        let compacted = self.compacted.load(Relaxed);
        if from < compacted {
            return Err(StoreError::Expired { requested: from, compacted });
        }
        let ring_start = self.live().ring.start();
        self.refuse_forgotten(prefix, from, ring_start)
    }

    /// Only the ring has the changes of volatile and memory objects.
    fn refuse_forgotten(
        &self,
        prefix: &str,
        position: Revision,
        ring_start: Revision,
    ) -> Result<(), StoreError> {
        let durable_only = self.config.classes_below(prefix) == [Class::Durable];
        if position < ring_start && !durable_only {
            return Err(StoreError::Expired { requested: position, compacted: ring_start });
        }
        Ok(())
    }

    fn read_ring(&self, prefix: &str, position: Revision) -> Result<Option<Changes>, StoreError> {
        let live = self.live();
        let Some(changes) = live.ring.after(position) else {
            self.refuse_forgotten(prefix, position, live.ring.start())?;
            return Ok(None);
        };
        let mut read = Changes { events: Default::default(), through: self.revision() };
        for event in changes {
            let last = read.events.back().map_or(0, |e: &Arc<Event>| e.revision);
            if read.events.len() >= EVENTS_AT_ONCE && event.revision > last {
                read.through = last;
                break;
            }
            if event.key.starts_with(prefix) {
                read.events.push_back(event.clone());
            }
        }
        Ok(Some(read))
    }

    fn read_log(&self, prefix: &str, position: Revision) -> Result<Changes, StoreError> {
        // Taken before the snapshot, which therefore holds all up to it.
        let published = self.revision();
        let mut read = Changes { events: Default::default(), through: position };
        let mut bytes = 0;
        let mut complete = true;
        self.durable.read(|txn| {
            self.durable.changes_after(txn, position, &mut |revision, change| {
                let full =
                    bytes >= self.config.read_bytes_max || read.events.len() >= EVENTS_AT_ONCE;
                if full && revision > read.through {
                    complete = false;
                    return false;
                }
                read.through = revision;
                bytes += 64 + change.bytes();
                if change.key.starts_with(prefix) {
                    read.events.push_back(Arc::new(change.to_event(revision)));
                }
                true
            })
        })?;
        if complete {
            read.through = read.through.max(published);
        }
        add(&self.counters.events_from_log, read.events.len() as u64);
        Ok(read)
    }
}

impl History for Shared {
    fn read_after(&self, prefix: &str, position: Revision) -> Result<Changes, StoreError> {
        match self.read_ring(prefix, position)? {
            Some(changes) => Ok(changes),
            None => self.read_log(prefix, position),
        }
    }
}

struct DurableSnapshot<'a, 't> {
    durable: &'a Durable,
    txn: &'a RoTxn<'t, WithoutTls>,
}

impl Snapshot for DurableSnapshot<'_, '_> {
    fn changes_after(
        &self,
        position: Revision,
        visit: &mut VisitChange<'_>,
    ) -> Result<(), StoreError> {
        self.durable.changes_after(self.txn, position, &mut |revision, change| {
            let previous = change.previous.map(|(r, value)| (r, Slice::Borrowed(value)));
            visit(revision, change.key, previous)
        })
    }

    fn objects_from(
        &self,
        from: Bound<&str>,
        visit: &mut VisitObject<'_>,
    ) -> Result<(), StoreError> {
        self.durable.objects_from(self.txn, from, &mut |key, revision, value| {
            visit(key, revision, Slice::Borrowed(value))
        })
    }
}

struct VolatileSnapshot<'a, 't> {
    shared: &'a Shared,
    live: &'a Live,
    volatile: &'a Volatile,
    txn: &'a RoTxn<'t, WithoutTls>,
}

impl Snapshot for VolatileSnapshot<'_, '_> {
    fn changes_after(
        &self,
        position: Revision,
        visit: &mut VisitChange<'_>,
    ) -> Result<(), StoreError> {
        self.shared.visit_ring(self.live, Class::Volatile, position, visit)
    }

    fn objects_from(
        &self,
        from: Bound<&str>,
        visit: &mut VisitObject<'_>,
    ) -> Result<(), StoreError> {
        self.volatile.objects_from(self.txn, from, &mut |key, revision, value| {
            visit(key, revision, Slice::Borrowed(value))
        })
    }
}

struct MemorySnapshot<'a> {
    shared: &'a Shared,
    live: &'a Live,
}

impl Snapshot for MemorySnapshot<'_> {
    fn changes_after(
        &self,
        position: Revision,
        visit: &mut VisitChange<'_>,
    ) -> Result<(), StoreError> {
        self.shared.visit_ring(self.live, Class::Memory, position, visit)
    }

    fn objects_from(
        &self,
        from: Bound<&str>,
        visit: &mut VisitObject<'_>,
    ) -> Result<(), StoreError> {
        for (key, (revision, value)) in self.live.objects.range::<str, _>((from, Bound::Unbounded))
        {
            if !visit(key, *revision, Slice::Shared(value)) {
                break;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Visits the changes of one class that are in the ring.
    fn visit_ring(
        &self,
        live: &Live,
        class: Class,
        position: Revision,
        visit: &mut VisitChange<'_>,
    ) -> Result<(), StoreError> {
        let expired = || StoreError::Expired { requested: position, compacted: live.ring.start() };
        for event in live.ring.after(position).ok_or_else(expired)? {
            let previous = event.previous.as_ref();
            let previous = previous.map(|p| (p.revision, Slice::Shared(&p.value)));
            if self.config.class_of(&event.key) == class
                && !visit(event.revision, &event.key, previous)
            {
                break;
            }
        }
        Ok(())
    }
}
