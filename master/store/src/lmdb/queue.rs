//! The bounded queue in front of the writer thread: async on one side, a thread
//! on the other, which takes all that waits at once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::StoreError;

/// Requests that may wait; further ones wait to get in.
const WAITING_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    arrived: Condvar,
    room: Semaphore,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// What [`Queue::take`] found.
#[derive(Debug)]
pub(crate) enum Taken<T> {
    Items(VecDeque<T>),
    /// Nothing came for as long as the caller was willing to wait.
    Nothing,
    /// Nothing is left, and nothing will come.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Queue<T> {
        Queue {
            waiting: Mutex::new(Waiting { items: VecDeque::new(), closed: false }),
            arrived: Condvar::new(),
            room: Semaphore::new(WAITING_MAX),
        }
    }

    /// Waits for room, and adds `item`.
    pub(crate) async fn push(&self, item: T) -> Result<(), StoreError> {
        self.room.acquire().await.map_err(|_| StoreError::Closed)?.forget();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(StoreError::Closed);
        }
        waiting.items.push_back(item);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits until there is something, at most for `patience`, and takes all.
    pub(crate) fn take(&self, patience: Option<Duration>) -> Taken<T> {
        let nothing = |waiting: &mut Waiting<T>| waiting.items.is_empty() && !waiting.closed;
        let mut waiting = match patience {
            Some(patience) => {
                let waited = self.arrived.wait_timeout_while(self.lock(), patience, nothing);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.arrived.wait_while(self.lock(), nothing);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
        if waiting.items.is_empty() {
            return if waiting.closed { Taken::Closed } else { Taken::Nothing };
        }
        let items = std::mem::take(&mut waiting.items);
        drop(waiting);
        self.room.add_permits(items.len());
        Taken::Items(items)
    }

    /// Lets nothing in any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.arrived.notify_one();
    }

    /// Closes, and drops what waits: nobody serves it any more.
    pub(crate) fn abandon(&self) {
        self.close();
        let abandoned = std::mem::take(&mut self.lock().items);
        drop(abandoned);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
