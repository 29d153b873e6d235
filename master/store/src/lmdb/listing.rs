//! A list of objects as they were at one revision, made in short steps.
//!
//! Each step looks at a fresh snapshot, which may be newer than the revision
//! wanted. First it reads the changes in between and remembers what each
//! changed key held before the first of them; then it merges that with the
//! objects of the snapshot. After about [`Config::read_bytes_max`] a step ends, so that no read
//! transaction keeps pages from being reused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use bytes::Bytes;

#[cfg(doc)]
use crate::Config;
use crate::{Revision, StoreError, Versioned};

/// Bytes of a snapshot: borrowed from the map of the database, or shared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice<'a> {
    Borrowed(&'a [u8]),
    Shared(&'a Bytes),
}

impl Slice<'_> {
    fn len(&self) -> usize {
        match self {
            Slice::Borrowed(bytes) => bytes.len(),
            Slice::Shared(bytes) => bytes.len(),
        }
    }

    fn to_bytes(self) -> Bytes {
        match self {
            Slice::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Slice::Shared(bytes) => bytes.clone(),
        }
    }
}

/// Visits the revision and key of a change and what was there before it; `false`
/// ends the visit.
pub(crate) type VisitChange<'v> =
    dyn FnMut(Revision, &str, Option<(Revision, Slice<'_>)>) -> bool + 'v;

/// Visits an object; `false` ends the visit.
pub(crate) type VisitObject<'v> = dyn FnMut(&str, Revision, Slice<'_>) -> bool + 'v;

/// The objects of one class at one moment, and the changes that led there.
pub(crate) trait Snapshot {
    /// The changes after `position`, oldest first. `Expired` when they are not
    /// known any more.
    fn changes_after(
        &self,
        position: Revision,
        visit: &mut VisitChange<'_>,
    ) -> Result<(), StoreError>;

    /// The objects in key order.
    fn objects_from(
        &self,
        from: Bound<&str>,
        visit: &mut VisitObject<'_>,
    ) -> Result<(), StoreError>;
}

/// A list in the making.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    prefix: &'a str,
    limit: usize,
    /// Changes above the wanted revision and up to this one are in `before`.
    undone: Revision,
    /// What keys held at the wanted revision that were changed since.
    before: BTreeMap<String, Option<(Revision, Bytes)>>,
    /// Keys up to this one are done.
    after: Option<String>,
    items: Vec<Versioned>,
    more: bool,
}

impl<'a> Listing<'a> {
    pub(crate) fn new(
        prefix: &'a str,
        start_after: Option<&str>,
        limit: usize,
        revision: Revision,
    ) -> Listing<'a> {
        Listing {
            prefix,
            limit,
            undone: revision,
            before: BTreeMap::new(),
            after: start_after.map(str::to_owned),
            items: Vec::new(),
            more: false,
        }
    }

    /// The items, and whether there are more after them.
    pub(crate) fn finish(self) -> (Vec<Versioned>, bool) {
        (self.items, self.more)
    }

    /// The items of the steps since the last call.
    pub(crate) fn take_items(&mut self) -> Vec<Versioned> {
        std::mem::take(&mut self.items)
    }

    /// Goes on with a snapshot, at least as new as that of the step before.
    /// Reads about `budget` bytes. Returns whether the list is complete.
    pub(crate) fn step(
        &mut self,
        snapshot: &dyn Snapshot,
        mut budget: usize,
    ) -> Result<bool, StoreError> {
        if !self.undo(snapshot, &mut budget)? || budget == 0 {
            return Ok(false);
        }
        self.scan(snapshot, &mut budget)
    }

    fn undo(&mut self, snapshot: &dyn Snapshot, budget: &mut usize) -> Result<bool, StoreError> {
        let mut complete = true;
        let (prefix, after) = (self.prefix, self.after.as_deref());
        let (before, undone) = (&mut self.before, &mut self.undone);
        snapshot.changes_after(*undone, &mut |revision, key, previous| {
            // Only between transactions: the next step starts after `undone`.
            if revision > *undone && *budget == 0 {
                complete = false;
                return false;
            }
            *undone = revision;
            *budget = budget.saturating_sub(key.len() + previous.map_or(0, |(_, v)| v.len()));
            let wanted = key.starts_with(prefix) && after.is_none_or(|after| key > after);
            if wanted && let Entry::Vacant(entry) = before.entry(key.to_owned()) {
                entry.insert(previous.map(|(revision, value)| (revision, value.to_bytes())));
            }
            true
        })?;
        Ok(complete)
    }

    fn scan(&mut self, snapshot: &dyn Snapshot, budget: &mut usize) -> Result<bool, StoreError> {
        let Listing { prefix, limit, before, after, items, more, .. } = self;
        let mut emit = |key: &str, revision, value: Slice<'_>| {
            *more = items.len() == *limit;
            if !*more {
                items.push(Versioned { key: key.to_owned(), revision, value: value.to_bytes() });
            }
            !*more
        };
        let start_after = after.take();
        let from = match &start_after {
            Some(key) if key.as_str() >= *prefix => Bound::Excluded(key.as_str()),
            _ => Bound::Included(*prefix),
        };
        let mut changed = before.range::<str, _>((from, Bound::Unbounded)).peekable();
        let mut full = false;
        snapshot.objects_from(from, &mut |key, revision, value| {
            if !key.starts_with(*prefix) {
                return false;
            }
            if *budget == 0 {
                return false;
            }
            let mut replaced = false;
            while let Some((changed_key, held)) = changed.next_if(|(k, _)| k.as_str() <= key) {
                replaced = changed_key == key;
                if let Some((revision, value)) = held
                    && !emit(changed_key, *revision, Slice::Shared(value))
                {
                    full = true;
                    return false;
                }
            }
            if !replaced && !emit(key, revision, value) {
                full = true;
                return false;
            }
            *budget = budget.saturating_sub(64 + key.len() + value.len());
            if *budget == 0 {
                *after = Some(key.to_owned());
            }
            true
        })?;
        if full {
            return Ok(true);
        }
        if after.is_some() {
            return Ok(false);
        }
        for (key, held) in changed {
            if let Some((revision, value)) = held
                && !emit(key, *revision, Slice::Shared(value))
            {
                break;
            }
        }
        Ok(true)
    }
}
