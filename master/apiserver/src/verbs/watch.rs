//! Watches: every change of the objects that are selected, once and in order,
//! from a revision on.
//!
//! ```text
//! [what is there now ─► ADDED…] ─► [bookmark: initial events end] ─► changes, bookmarks ─► timeout
//! ```
//!
//! A watch pulls from the store at the speed of its client, and holds no more
//! than one piece of the history at a time: a slow client costs a position, and
//! learns that it is expired when compaction overtakes it. With a selector, an
//! object that begins to match is ADDED, and one that ceases to is DELETED.

use std::collections::VecDeque;
use std::time::Duration;

use api::resource::{Resource, Verb};
use bytes::Bytes;
use serde_json::{Value, json};
use store::{EventKind, StoreError, Watcher};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::read::Filter;
use super::{Api, Item, ListPages, Target, store_error, stored};
use crate::identity::Identity;
use crate::object;
use crate::options::{ListOptions, WatchOptions};
use crate::status::Status;

/// How often a client that asks for bookmarks hears the revision.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// What marks the bookmark after the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// It is there, or begins to be selected.
    Added(Item),
    /// It changed.
    Modified {
        /// As it is now.
        item: Item,
        /// As it was.
        previous: Bytes,
    },
    /// It is gone, or ceases to be selected: its last state, at the revision of that change.
    Deleted(Item),
    /// Everything up to the revision was delivered.
    Bookmark {
        /// Where a watch may go on.
        revision: u64,
        /// What was there at the start was delivered.
        initial_events_end: bool,
    },
    /// The watch ends because of this.
    Error(Status),
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    filter: Filter,
    pages: Option<ListPages>,
    pending: VecDeque<Item>,
    end_bookmark: bool,
    start: u64,
    watcher: Watcher,
    bookmarks: Option<Interval>,
    deadline: Option<Instant>,
    ended: bool,
}

impl Api {
    /// Watches the objects of a resource, in one namespace or (where empty) in all.
    ///
    /// # Errors
    /// `Forbidden`, `BadRequest` for a selector that cannot be, `Expired` where
    /// changes since the revision are forgotten.
    pub fn watch(
        &self,
        who: &Identity,
        resource: &'static Resource,
        namespace: &str,
        options: &WatchOptions,
    ) -> Result<Watch, Status> {
        let target = Target::object(resource, namespace, "");
        self.authorize_selected(who, Verb::Watch, &target, Some(&options.selection))?;
        stored(resource)?;
        let filter = Filter::new(resource, options.selection.clone())?;
        let prefix = filter.prefix(namespace);
        let asked = options.resource_version.unwrap_or(0);
        let mut pages = None;
        let mut pending = VecDeque::new();
        let mut start = asked;
        if asked == 0 || options.send_initial_events {
            let list = ListOptions {
                selection: options.selection.clone(),
                resource_version: options.resource_version,
                ..ListOptions::default()
            };
            let mut first = self.list_unchecked(&filter, namespace, &list)?;
            pending.extend(first.next_page()?.unwrap_or_default());
            start = first.revision();
            pages = Some(first);
        }
        let watcher = self.inner.store.watch(&prefix, start).map_err(|e| store_error(&e))?;
        let bookmarks = options.bookmarks.then(|| {
            let mut ticks = interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Ok(Watch {
            filter,
            pages,
            pending,
            end_bookmark: options.send_initial_events,
            start,
            watcher,
            bookmarks,
            deadline: options.timeout.map(|timeout| Instant::now() + timeout),
            ended: false,
        })
    }
}

impl Watch {
    /// The next event; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(item) = self.pending.pop_front() {
                return Some(WatchEvent::Added(item));
            }
            if let Some(pages) = &mut self.pages {
                match pages.next_page() {
                    Ok(Some(items)) => self.pending.extend(items),
                    Ok(None) => self.pages = None,
                    Err(status) => return self.fail(status),
                }
                continue;
            }
            if std::mem::take(&mut self.end_bookmark) {
                let revision = self.start;
                return Some(WatchEvent::Bookmark { revision, initial_events_end: true });
            }
            if self.ended {
                return None;
            }
            let changed = tokio::select! {
                biased;
                changed = self.watcher.next() => changed,
                () = due(self.deadline) => {
                    self.ended = true;
                    // The client goes on from here without listing again.
                    let revision = self.watcher.progress();
                    let bookmark = WatchEvent::Bookmark { revision, initial_events_end: false };
                    return self.bookmarks.as_ref().map(|_| bookmark);
                }
                () = tick(&mut self.bookmarks) => {
                    let revision = self.watcher.progress();
                    return Some(WatchEvent::Bookmark { revision, initial_events_end: false });
                }
            };
            match changed {
                Ok(event) => {
                    if let Some(event) = self.select(&event) {
                        return Some(event);
                    }
                }
                Err(StoreError::Closed) => {
                    self.ended = true;
                    return None;
                }
                Err(error) => return self.fail(store_error(&error)),
            }
        }
    }

    /// The revision up to which everything was delivered.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.watcher.progress()
    }

    /// The resource that is watched.
    #[must_use]
    pub fn resource(&self) -> &'static Resource {
        self.filter.resource
    }

    fn fail(&mut self, status: Status) -> Option<WatchEvent> {
        self.ended = true;
        self.pages = None;
        self.end_bookmark = false;
        Some(WatchEvent::Error(status))
    }

    /// What a change means to this watch; `None` where it is about nothing selected.
    fn select(&self, event: &store::Event) -> Option<WatchEvent> {
        let revision = event.revision;
        let now = event.kind == EventKind::Put && self.filter.matches(&event.key, &event.value);
        let before = event
            .previous
            .as_ref()
            .map(|previous| &previous.value)
            .filter(|previous| self.filter.matches(&event.key, previous));
        match (before, now) {
            (None, true) => Some(WatchEvent::Added(Item { revision, object: event.value.clone() })),
            (Some(previous), true) => Some(WatchEvent::Modified {
                item: Item { revision, object: event.value.clone() },
                previous: previous.clone(),
            }),
            (Some(previous), false) => {
                let object = object::at_revision(previous, revision);
                Some(WatchEvent::Deleted(Item { revision, object }))
            }
            (None, false) => None,
        }
    }
}

/// The object of a bookmark: nothing but its type and the revision.
#[must_use]
pub(crate) fn bookmark(resource: &Resource, revision: u64, initial_events_end: bool) -> Value {
    let mut object = json!({
        "kind": resource.kind, "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": revision.to_string()},
    });
    if initial_events_end {
        object["metadata"]["annotations"] = json!({INITIAL_EVENTS_END: "true"});
    }
    object
}

async fn due(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}
