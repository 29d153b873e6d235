//! The writer thread: group commit.
//!
//! ```text
//! take all that waits ─► decide: check expectations, give revisions, make values
//!                        ─► durable: one transaction, one commit (two flushes)
//!                        ─► publish: volatile and memory objects, ring, revision
//!                        ─► answer everyone
//! ```
//!
//! A request that fails its expectations fails alone. While a commit runs the
//! next batch gathers, so the disk sets the size of a batch and a lone request
//! waits for nobody.
//!
//! Revisions of volatile and memory transactions are not written down one by
//! one. They stay at or below a durable *ceiling*, which is raised by
//! [`CEILING_STEP`] when it is reached; a start resumes at the ceiling.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::lmdb::config::{Class, Retention};
use crate::lmdb::queue::Taken;
use crate::lmdb::record::State;
use crate::lmdb::shared::{Shared, add};
use crate::types::check_value;
use crate::{Event, EventKind, Revision, StoreError, Value, Versioned, Write};

/// Revisions that are reserved at once for what is not written down. At 100
/// heartbeats per second it is one commit in three hours.
const CEILING_STEP: u64 = 1 << 20;

/// Log records that an explicit compaction removes in one transaction.
const FORGET_AT_ONCE: u64 = 4096;

/// The pages of the map that a commit touched are given back this long after.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// What the thread is asked for.
#[derive(Debug)]
pub(crate) enum Command {
    Write(Request),
    Compact { before: Revision, answer: oneshot::Sender<Result<(), StoreError>> },
}

/// A validated transaction of one class.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) class: Class,
    pub(crate) writes: Vec<Write>,
    pub(crate) answer: oneshot::Sender<Result<Revision, StoreError>>,
}

/// A request with its outcome, if all goes well.
struct Decided {
    class: Class,
    answer: oneshot::Sender<Result<Revision, StoreError>>,
    outcome: Result<Change, StoreError>,
}

/// What a transaction changes; nothing, perhaps.
struct Change {
    revision: Revision,
    events: Vec<Arc<Event>>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// Wakes watchers; dropped with the thread, which closes them.
    head: watch::Sender<Revision>,
    /// The newest revision that was given and shown.
    revision: Revision,
    /// What the last durable commit left in the database.
    state: State,
    ages: Ages,
    buffer: Vec<u8>,
    /// When pages of the map are to be given back, if some were touched.
    release_at: Option<Instant>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, head: watch::Sender<Revision>, state: State) -> Writer {
        let revision = *head.borrow();
        let ages = Ages::default();
        Writer { shared, head, revision, state, ages, buffer: Vec::new(), release_at: None }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Serves the queue until it is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            let patience = self.release_at.map(|at| at.duration_since(Instant::now()));
            if patience.is_some_and(|patience| patience.is_zero()) {
                self.shared.durable.environment.release_pages();
                self.release_at = None;
                continue;
            }
            let commands = match self.shared.queue.take(patience) {
                Taken::Items(commands) => commands,
                Taken::Nothing => continue,
                Taken::Closed => break,
            };
            let mut batch = Vec::with_capacity(commands.len());
            for command in commands {
                match command {
                    Command::Write(request) => batch.push(request),
                    Command::Compact { before, answer } => {
                        self.write(std::mem::take(&mut batch));
                        // Who asked may have gone: the result stands anyway.
                        let _ = answer.send(self.compact(before));
                    }
                }
            }
            self.write(batch);
            if self.buffer.capacity() > 1 << 20 {
                self.buffer = Vec::new();
            }
        }
        if let Some(volatile) = &self.shared.volatile
            && let Err(error) = volatile.close()
        {
            tracing::warn!(error = %error, "volatile objects may be discarded at the next start");
        }
    }

    fn write(&mut self, batch: Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        self.ages.note(Instant::now(), self.revision, self.shared.config.retention);
        let mut decided = Decider::new(&self.shared, self.revision).decide(batch);
        if let Err(error) = self.commit(&decided) {
            let ceiling = self.state.ceiling;
            for one in &mut decided {
                let above = one.outcome.as_ref().is_ok_and(|c| c.revision > ceiling);
                if one.class == Class::Durable || above {
                    one.outcome = Err(error.clone());
                }
            }
        }
        self.publish(&mut decided);
        for one in decided {
            let answer = one.outcome.map(|change| change.revision);
            let _ = one.answer.send(answer);
        }
    }

    /// Makes the durable part of a batch durable, and the ceiling with it.
    fn commit(&mut self, decided: &[Decided]) -> Result<(), StoreError> {
        let changes = |durable: bool| {
            let of_class = move |one: &&Decided| (one.class == Class::Durable) == durable;
            let made = decided.iter().filter(of_class).filter_map(|one| one.outcome.as_ref().ok());
            made.filter(|change| !change.events.is_empty())
        };
        let needed = changes(false).map(|change| change.revision).max().unwrap_or_default();
        let newest = changes(true).map(|change| change.revision).max().unwrap_or_default();
        if newest == 0 && needed <= self.state.ceiling {
            return Ok(());
        }
        let reserves = needed > 0 || self.state.ceiling > self.state.revision;
        let mut ceiling = self.state.ceiling.max(newest);
        if needed > ceiling || (reserves && ceiling - newest.max(needed) < CEILING_STEP / 2) {
            ceiling = newest.max(needed) + CEILING_STEP;
        }
        let (durable, retention) = (&self.shared.durable, self.shared.config.retention);
        let (buffer, old, before) = (&mut self.buffer, self.ages.old(), self.state);
        let written = durable.environment.write(|txn| {
            let (mut state, mut bytes, mut n_changes) = (before, 0, 0);
            for change in changes(true) {
                bytes += durable.put_changes(
                    txn,
                    &mut state,
                    change.revision,
                    &change.events,
                    buffer,
                )?;
                n_changes += 1;
            }
            let n_records = durable.n_log_records(txn)?;
            let mut overdue = Overdue::new(retention, n_records, &state, old, n_changes);
            let n_forgotten = durable.forget(txn, &mut state, |revision, state| {
                revision <= before.revision && overdue.next(revision, state)
            })?;
            state.ceiling = ceiling;
            durable.put_state(txn, state)?;
            Ok((state, bytes, n_forgotten))
        });
        let (state, bytes, n_forgotten) = written?;
        self.note_commit(state, bytes, n_forgotten);
        Ok(())
    }

    /// Makes a batch visible, and what is not durable with it.
    fn publish(&mut self, decided: &mut [Decided]) {
        let counters = &self.shared.counters;
        let mut live = self.shared.live_mut();
        let volatile_events: Vec<_> = decided
            .iter()
            .filter(|one| one.class == Class::Volatile)
            .filter_map(|one| one.outcome.as_ref().ok())
            .flat_map(|change| change.events.iter().cloned())
            .collect();
        if let Some(volatile) = &self.shared.volatile
            && !volatile_events.is_empty()
            && let Err(error) = volatile.write(&volatile_events)
        {
            for one in decided.iter_mut().filter(|one| one.class == Class::Volatile) {
                one.outcome = Err(error.clone());
            }
        }
        for one in decided.iter() {
            match &one.outcome {
                Ok(change) if !change.events.is_empty() => {
                    if one.class == Class::Memory {
                        change.events.iter().for_each(|event| live.apply(event));
                    }
                    live.ring.push(&change.events);
                    self.revision = change.revision;
                    add(&counters.transactions, 1);
                    add(&counters.changes, change.events.len() as u64);
                }
                Err(StoreError::Conflict { .. }) => add(&counters.conflicts, 1),
                Ok(_) | Err(_) => {}
            }
        }
        self.shared.published.store(self.revision, Release);
        drop(live);
        let revision = self.revision;
        self.head.send_if_modified(|head| std::mem::replace(head, revision) != revision);
    }

    fn compact(&mut self, before: Revision) -> Result<(), StoreError> {
        if before > self.revision {
            return Err(StoreError::Future { requested: before, current: self.revision });
        }
        while self.state.compacted < before {
            let durable = &self.shared.durable;
            let old = self.state;
            let written = durable.environment.write(|txn| {
                let (mut state, mut n) = (old, 0);
                let n_forgotten = durable.forget(txn, &mut state, |revision, _| {
                    n += 1;
                    revision <= before && n <= FORGET_AT_ONCE
                })?;
                if n_forgotten < FORGET_AT_ONCE {
                    state.compacted = before;
                }
                state.ceiling = state.ceiling.max(state.compacted);
                durable.put_state(txn, state)?;
                Ok((state, n_forgotten))
            });
            let (state, n_forgotten) = written?;
            self.note_commit(state, 0, n_forgotten);
        }
        Ok(())
    }

    fn note_commit(&mut self, state: State, bytes: u64, n_forgotten: u64) {
        self.state = state;
        self.shared.compacted.store(state.compacted, Relaxed);
        let counters = &self.shared.counters;
        add(&counters.commits, 1);
        add(&counters.bytes_durable, bytes);
        add(&counters.compacted, n_forgotten);
        self.release_at.get_or_insert_with(|| Instant::now() + RELEASE_AFTER);
    }
}

/// Decides a batch against the objects as they are, and as the requests before
/// leave them.
struct Decider<'a> {
    shared: &'a Shared,
    revision: Revision,
    /// What the batch changed so far.
    changed: HashMap<String, Option<Versioned>>,
    /// Volatile objects, once that matters.
    n_volatile: Option<u64>,
}

impl<'a> Decider<'a> {
    fn new(shared: &'a Shared, revision: Revision) -> Decider<'a> {
        Decider { shared, revision, changed: HashMap::new(), n_volatile: None }
    }

    fn decide(mut self, batch: Vec<Request>) -> Vec<Decided> {
        batch
            .into_iter()
            .map(|Request { class, writes, answer }| Decided {
                class,
                answer,
                outcome: self.decide_one(class, writes),
            })
            .collect()
    }

    fn decide_one(&mut self, class: Class, writes: Vec<Write>) -> Result<Change, StoreError> {
        let mut previous = Vec::with_capacity(writes.len());
        for write in &writes {
            let current = self.current(class, write.key())?;
            write.expect().check(write.key(), current.as_ref())?;
            previous.push(current);
        }
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(writes.len());
        for (write, previous) in writes.into_iter().zip(previous) {
            match write {
                Write::Put { key, value, .. } => {
                    let value = match value {
                        Value::Bytes(bytes) => bytes,
                        Value::Render(render) => render(revision),
                    };
                    check_value(&key, &value)?;
                    let kind = EventKind::Put;
                    events.push(Arc::new(Event { kind, key, revision, value, previous }));
                }
                Write::Delete { .. } => {
                    events.extend(previous.map(|previous| deletion(previous, revision)));
                }
            }
        }
        if events.is_empty() {
            return Ok(Change { revision: self.revision, events });
        }
        if class == Class::Volatile {
            self.make_room(&mut events, revision)?;
        }
        for event in &events {
            let left = (event.kind == EventKind::Put).then(|| Versioned {
                key: event.key.clone(),
                revision,
                value: event.value.clone(),
            });
            self.changed.insert(event.key.clone(), left);
        }
        self.revision = revision;
        Ok(Change { revision, events })
    }

    fn current(&self, class: Class, key: &str) -> Result<Option<Versioned>, StoreError> {
        match self.changed.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.shared.get(class, key),
        }
    }

    /// Deletes the oldest volatile objects when `events` make too many.
    fn make_room(
        &mut self,
        events: &mut Vec<Arc<Event>>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let Some(volatile) = &self.shared.volatile else { return Ok(()) };
        let n_before = match self.n_volatile {
            Some(n) => n,
            None => volatile.n_objects()?,
        };
        let created = events.iter().filter(|e| e.previous.is_none()).count() as u64;
        let deleted = events.iter().filter(|e| e.kind == EventKind::Delete).count() as u64;
        let mut n_objects = (n_before + created).saturating_sub(deleted);
        let excess = n_objects.saturating_sub(self.shared.config.volatile_objects_max as u64);
        if excess > 0 {
            let n = usize::try_from(excess).unwrap_or(usize::MAX);
            let touched =
                |key: &str| self.changed.contains_key(key) || events.iter().any(|e| e.key == key);
            for key in volatile.oldest(n, touched)? {
                if let Some(oldest) = self.shared.get(Class::Volatile, &key)? {
                    events.push(deletion(oldest, revision));
                    n_objects -= 1;
                }
            }
        }
        self.n_volatile = Some(n_objects);
        Ok(())
    }
}

fn deletion(previous: Versioned, revision: Revision) -> Arc<Event> {
    Arc::new(Event {
        kind: EventKind::Delete,
        key: previous.key.clone(),
        revision,
        value: previous.value.clone(),
        previous: Some(previous),
    })
}

/// Decides, record by record from the oldest, what a commit forgets.
///
/// Works in bursts: it begins when the log is over its bounds by a sixteenth,
/// and then takes up to [`Overdue::BURST`] records or twice what the commit
/// added, so that it keeps up and does not cost every commit a page.
#[derive(Debug)]
struct Overdue {
    retention: Retention,
    n_records: u64,
    n_left: u64,
    /// Changes up to here are older than [`Retention::age_min`].
    old: Revision,
}

impl Overdue {
    const BURST: u64 = 512;

    fn new(
        retention: Retention,
        n_records: u64,
        state: &State,
        old: Revision,
        n_changes: u64,
    ) -> Overdue {
        let Retention { changes_max, bytes_max, .. } = retention;
        let begins = n_records > changes_max.saturating_add(changes_max / 16)
            || state.log_bytes > bytes_max.saturating_add(bytes_max / 16);
        let n_left = if begins { Overdue::BURST.max(2 * n_changes) } else { 0 };
        Overdue { retention, n_records, n_left, old }
    }

    fn next(&mut self, revision: Revision, state: &State) -> bool {
        let Retention { changes_max, bytes_max, bytes_limit, .. } = self.retention;
        let over = self.n_records > changes_max || state.log_bytes > bytes_max;
        let protected = revision > self.old && state.log_bytes <= bytes_limit;
        let forget = self.n_left > 0 && over && !protected;
        if forget {
            self.n_left -= 1;
            self.n_records -= 1;
        }
        forget
    }
}

/// Which revisions are older than the age that protects them, by samples of
/// (time, newest revision then).
#[derive(Debug, Default)]
struct Ages {
    samples: VecDeque<(Instant, Revision)>,
    old: Revision,
}

impl Ages {
    fn note(&mut self, now: Instant, revision: Revision, retention: Retention) {
        let due = |last: &(Instant, Revision)| now - last.0 >= retention.age_min / 16;
        if self.samples.back().is_none_or(due) {
            self.samples.push_back((now, revision));
        }
        while let Some((_, revision)) =
            self.samples.pop_front_if(|first| now - first.0 >= retention.age_min)
        {
            self.old = revision;
        }
    }

    fn old(&self) -> Revision {
        self.old
    }
}
