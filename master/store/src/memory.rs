//! The plain model of a store: maps in memory, one lock, no limits on history.
//!
//! What [`LmdbStore`](crate::LmdbStore) does must not be told apart from this,
//! and the property tests try. It shares no code with it but the types, the
//! checks of a request and the [`Watcher`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::types::{check_value, validate};
use crate::watcher::{Changes, History};
use crate::{
    BoxFuture, Counters, Event, EventKind, List, ListOptions, Revision, Store, StoreError, Value,
    Versioned, Watcher, Write,
};

/// A store that forgets everything when it is dropped.
pub struct MemoryStore {
    model: Arc<Model>,
    head: watch::Sender<Revision>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore { model: Arc::default(), head: watch::Sender::new(0) }
    }

    fn write_now(&self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        validate(&writes)?;
        let mut state = self.model.lock();
        let result = state.apply(writes);
        match &result {
            Ok(revision) => {
                self.head.send_replace(*revision);
            }
            Err(StoreError::Conflict { .. }) => state.counters.conflicts += 1,
            Err(_) => {}
        }
        result
    }
}

impl fmt::Debug for MemoryStore {
    // Not what is in it: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

#[derive(Debug, Default)]
struct Model(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Revision, Bytes)>,
    history: BTreeMap<Revision, Vec<Arc<Event>>>,
    revision: Revision,
    compacted: Revision,
    counters: Counters,
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn get(&self, key: &str) -> Option<Versioned> {
        let (revision, value) = self.objects.get(key)?;
        Some(Versioned { key: key.to_owned(), revision: *revision, value: value.clone() })
    }

    fn apply(&mut self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        for write in &writes {
            write.expect().check(write.key(), self.get(write.key()).as_ref())?;
        }
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for write in writes {
            let previous = self.get(write.key());
            match write {
                Write::Put { key, value, .. } => {
                    let value = match value {
                        Value::Bytes(bytes) => bytes,
                        Value::Render(render) => render(revision),
                    };
                    check_value(&key, &value)?;
                    let kind = EventKind::Put;
                    events.push(Event { kind, key, revision, value, previous });
                }
                Write::Delete { key, .. } => {
                    let Some(previous) = previous else { continue };
                    let value = previous.value.clone();
                    let kind = EventKind::Delete;
                    events.push(Event { kind, key, revision, value, previous: Some(previous) });
                }
            }
        }
        if events.is_empty() {
            return Ok(self.revision);
        }
        for event in &events {
            match event.kind {
                EventKind::Put => {
                    self.objects.insert(event.key.clone(), (revision, event.value.clone()));
                }
                EventKind::Delete => {
                    self.objects.remove(&event.key);
                }
            }
        }
        self.counters.transactions += 1;
        self.counters.changes += events.len() as u64;
        self.history.insert(revision, events.into_iter().map(Arc::new).collect());
        self.revision = revision;
        Ok(revision)
    }

    /// The whole state as it was, undoing one transaction after the other.
    fn at(&self, revision: Revision) -> BTreeMap<String, (Revision, Bytes)> {
        let mut objects = self.objects.clone();
        for events in self.history.range(revision + 1..).rev().map(|(_, events)| events) {
            for event in events {
                match &event.previous {
                    Some(p) => objects.insert(event.key.clone(), (p.revision, p.value.clone())),
                    None => objects.remove(&event.key),
                };
            }
        }
        objects
    }
}

impl History for Model {
    fn read_after(&self, prefix: &str, position: Revision) -> Result<Changes, StoreError> {
        let state = self.lock();
        if position < state.compacted {
            return Err(StoreError::Expired { requested: position, compacted: state.compacted });
        }
        let events: VecDeque<_> = state
            .history
            .range(position + 1..)
            .flat_map(|(_, events)| events)
            .filter(|event| event.key.starts_with(prefix))
            .cloned()
            .collect();
        Ok(Changes { events, through: state.revision })
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        Ok(self.model.lock().get(key))
    }

    fn list(&self, prefix: &str, options: &ListOptions) -> Result<List, StoreError> {
        let state = self.model.lock();
        let revision = options.at_revision.unwrap_or(state.revision);
        if revision > state.revision {
            return Err(StoreError::Future { requested: revision, current: state.revision });
        }
        if revision < state.compacted {
            return Err(StoreError::Expired { requested: revision, compacted: state.compacted });
        }
        let mut items: Vec<Versioned> = state
            .at(revision)
            .into_iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| options.start_after.as_ref().is_none_or(|after| key > after))
            .map(|(key, (revision, value))| Versioned { key, revision, value })
            .collect();
        let limit = options.limit.unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(List { items, revision, more })
    }

    fn revision(&self) -> Revision {
        self.model.lock().revision
    }

    fn compacted(&self) -> Revision {
        self.model.lock().compacted
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<Result<Revision, StoreError>> {
        let result = self.write_now(writes);
        Box::pin(async move { result })
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watcher, StoreError> {
        let state = self.model.lock();
        if from > state.revision {
            return Err(StoreError::Future { requested: from, current: state.revision });
        }
        if from < state.compacted {
            return Err(StoreError::Expired { requested: from, compacted: state.compacted });
        }
        Ok(Watcher::new(self.model.clone(), prefix, from, self.head.subscribe()))
    }

    fn compact(&self, before: Revision) -> BoxFuture<Result<(), StoreError>> {
        let mut state = self.model.lock();
        let result = if before > state.revision {
            Err(StoreError::Future { requested: before, current: state.revision })
        } else {
            state.history.retain(|revision, _| *revision > before);
            state.compacted = state.compacted.max(before);
            Ok(())
        };
        Box::pin(async move { result })
    }

    fn epoch(&self) -> u128 {
        0
    }

    fn counters(&self) -> Counters {
        self.model.lock().counters
    }
}
