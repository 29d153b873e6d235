//! A reader of changes that goes at its own speed.
//!
//! A watcher is a position in the history and a prefix. It pulls: each time it
//! has delivered what it holds, it fetches the next few changes after its
//! position from the store, so a slow watcher costs nothing but its position,
//! and one that was overtaken by compaction learns that it is `Expired`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::{Event, Revision, StoreError};

/// Where a watcher reads on.
pub(crate) trait History: Send + Sync + 'static {
    /// The next changes below `prefix` after `position`, some but not all
    /// perhaps, and the revision up to which that is all. Never splits a
    /// revision.
    fn read_after(&self, prefix: &str, position: Revision) -> Result<Changes, StoreError>;
}

/// A part of the history.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) events: VecDeque<Arc<Event>>,
    /// There is no other change at or below this revision.
    pub(crate) through: Revision,
}

/// Delivers every change below a prefix, once, in order of revision.
pub struct Watcher {
    history: Arc<dyn History>,
    prefix: String,
    /// Everything at or below was fetched.
    position: Revision,
    pending: VecDeque<Arc<Event>>,
    head: watch::Receiver<Revision>,
}

impl Watcher {
    pub(crate) fn new(
        history: Arc<dyn History>,
        prefix: &str,
        from: Revision,
        head: watch::Receiver<Revision>,
    ) -> Watcher {
        let prefix = prefix.to_owned();
        Watcher { history, prefix, position: from, pending: VecDeque::new(), head }
    }

    /// Waits for the next change.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when compaction overtook this watcher,
    /// [`StoreError::Closed`] when the store was closed and all was delivered.
    pub async fn next(&mut self) -> Result<Arc<Event>, StoreError> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            self.head.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    /// The next change if there is one now.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, StoreError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            let head = *self.head.borrow_and_update();
            if self.position >= head {
                return Ok(None);
            }
            let changes = self.history.read_after(&self.prefix, self.position)?;
            debug_assert!(changes.through > self.position, "a fetch makes progress");
            self.pending = changes.events;
            self.position = changes.through;
        }
    }

    /// Every change at or below this revision was delivered: what a bookmark
    /// may say. Moves on when `next` or `try_next` is polled, also when there
    /// is nothing to deliver.
    pub fn progress(&self) -> Revision {
        match self.pending.front() {
            Some(event) => event.revision - 1,
            None => self.position,
        }
    }

    /// The prefix that is watched.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("prefix", &self.prefix)
            .field("progress", &self.progress())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}
