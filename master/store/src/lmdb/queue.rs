//! The bounded queue in front of the writer thread: async on one side, a thread
//! on the other, which takes all that waits at once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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

    /// Waits until there is something, and takes all of it. Empty when the queue
    /// is closed and nothing is left.
    pub(crate) fn take(&self) -> VecDeque<T> {
        let mut waiting = self
            .arrived
            .wait_while(self.lock(), |w| w.items.is_empty() && !w.closed)
            .unwrap_or_else(PoisonError::into_inner);
        let items = std::mem::take(&mut waiting.items);
        drop(waiting);
        self.room.add_permits(items.len());
        items
    }

    /// Lets nothing in any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
