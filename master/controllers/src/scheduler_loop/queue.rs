//! Which pod is scheduled next. Pure: the time comes in.
//!
//! ```text
//!            add                     next
//!  pods ─────────────► active ────────────────► decided
//!          wait │        ▲ due                     │ no node
//!               ▼        │      something changed  ▼
//!             waiting ───┘◄──────────────── unschedulable
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use api::ObjectKey;
use tokio::time::Instant;

/// Wait before the second try of a pod.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait between two tries of a pod after something changed.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The larger priority first, then who came first.
type Place = (Reverse<i64>, u64);

#[derive(Debug, Default)]
pub(super) struct Queue {
    active: BTreeMap<Place, ObjectKey>,
    waiting: BTreeSet<(Instant, ObjectKey)>,
    /// Pods no node can run; in this order they are tried again.
    unschedulable: BTreeSet<ObjectKey>,
    pods: HashMap<ObjectKey, Entry>,
    n_added: u64,
}

#[derive(Debug)]
struct Entry {
    at: At,
    priority: i64,
    tries: u32,
    /// Not tried again before.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Active(Place),
    Waiting(Instant),
    Unschedulable,
    /// Taken out by [`Queue::next`].
    Out,
}

impl Queue {
    /// A pod may be scheduled now. One that no node can run waits for a change.
    pub(super) fn add(&mut self, key: ObjectKey, priority: i64) {
        match self.pods.get(&key).map(|entry| entry.at) {
            Some(At::Active(_) | At::Unschedulable) => {}
            // Not before its time after a failure.
            Some(At::Waiting(_)) if self.pods[&key].not_before.is_some() => {}
            _ => self.activate(key, priority),
        }
    }

    /// A pod is to be scheduled at `due`, unless it is added before.
    pub(super) fn wait(&mut self, key: ObjectKey, priority: i64, due: Instant) {
        if !self.pods.contains_key(&key) {
            self.put(key, priority, At::Waiting(due), None);
        }
    }

    /// Forgets a pod.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.take_out(key);
        self.pods.remove(key);
    }

    /// Takes the next pod whose turn it is.
    pub(super) fn next(&mut self, now: Instant) -> Option<ObjectKey> {
        while let Some((due, key)) = self.waiting.first().cloned()
            && due <= now
        {
            self.waiting.pop_first();
            let priority = self.pods.get(&key).map_or(0, |entry| entry.priority);
            self.activate(key, priority);
        }
        let (_, key) = self.active.pop_first()?;
        if let Some(entry) = self.pods.get_mut(&key) {
            entry.at = At::Out;
        }
        Some(key)
    }

    /// When a waiting pod's turn comes; at once where one is active.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// No node can run a pod: it waits for a change.
    pub(super) fn unschedulable(&mut self, key: ObjectKey, priority: i64, now: Instant) {
        let not_before = now + self.backoff(&key);
        self.put(key, priority, At::Unschedulable, Some(not_before));
    }

    /// A pod could not be bound: it is tried again after a while.
    pub(super) fn failed(&mut self, key: ObjectKey, priority: i64, now: Instant) {
        let due = now + self.backoff(&key);
        self.put(key, priority, At::Waiting(due), Some(due));
    }

    /// Something changed that may let pods run: each is tried again, but not
    /// more often than its back-off allows.
    pub(super) fn something_changed(&mut self) {
        for key in std::mem::take(&mut self.unschedulable) {
            self.try_again(key);
        }
    }

    /// As [`Queue::something_changed`], for one pod that asks for something else.
    pub(super) fn pod_changed(&mut self, key: &ObjectKey) {
        if self.unschedulable.remove(key) {
            self.try_again(key.clone());
        }
    }

    fn try_again(&mut self, key: ObjectKey) {
        if let Some(entry) = self.pods.get_mut(&key)
            && let Some(due) = entry.not_before
        {
            entry.at = At::Waiting(due);
            self.waiting.insert((due, key));
        }
    }

    fn backoff(&self, key: &ObjectKey) -> Duration {
        let tries = self.pods.get(key).map_or(0, |entry| entry.tries);
        BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(tries)).min(BACKOFF_MAX)
    }

    fn activate(&mut self, key: ObjectKey, priority: i64) {
        self.n_added += 1;
        self.put(key, priority, At::Active((Reverse(priority), self.n_added)), None);
    }

    fn put(&mut self, key: ObjectKey, priority: i64, at: At, not_before: Option<Instant>) {
        self.take_out(&key);
        match at {
            At::Active(place) => {
                self.active.insert(place, key.clone());
            }
            At::Waiting(due) => {
                self.waiting.insert((due, key.clone()));
            }
            At::Unschedulable => {
                self.unschedulable.insert(key.clone());
            }
            At::Out => {}
        }
        let tries = self.pods.get(&key).map_or(0, |entry| entry.tries);
        let tries = if not_before.is_some() { tries.saturating_add(1) } else { tries };
        self.pods.insert(key, Entry { at, priority, tries, not_before });
    }

    fn take_out(&mut self, key: &ObjectKey) {
        match self.pods.get(key).map(|entry| entry.at) {
            Some(At::Active(place)) => {
                self.active.remove(&place);
            }
            Some(At::Waiting(due)) => {
                self.waiting.remove(&(due, key.clone()));
            }
            Some(At::Unschedulable) => {
                self.unschedulable.remove(key);
            }
            Some(At::Out) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    fn take(queue: &mut Queue, now: Instant) -> String {
        queue.next(now).map_or_else(String::new, |key| key.name)
    }

    #[tokio::test(start_paused = true)]
    async fn the_larger_priority_goes_first_then_the_first_to_come() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("a", 0)] {
            queue.add(key(name), priority);
        }
        let order: Vec<String> = (0..4).map(|_| take(&mut queue, now)).collect();
        assert_eq!(order, ["b", "a", "c", ""]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_without_a_node_waits_for_a_change_and_its_back_off() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add(key("a"), 0);
        assert_eq!(take(&mut queue, now), "a");
        queue.unschedulable(key("a"), 0, now);
        queue.add(key("a"), 0);
        assert_eq!((take(&mut queue, now + BACKOFF_MAX), queue.next_due()), (String::new(), None));
        queue.something_changed();
        assert_eq!(queue.next_due(), Some(now + BACKOFF_MIN));
        queue.add(key("a"), 0);
        assert_eq!(take(&mut queue, now), "");
        assert_eq!(take(&mut queue, now + BACKOFF_MIN), "a");
        queue.failed(key("a"), 0, now);
        assert_eq!(queue.next_due(), Some(now + 2 * BACKOFF_MIN));
        queue.remove(&key("a"));
        assert_eq!(queue.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_waits_for_its_images_can_be_brought_forward() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let due = now + Duration::from_secs(1);
        queue.wait(key("a"), 0, due);
        queue.wait(key("b"), 0, due);
        queue.add(key("b"), 0);
        assert_eq!((take(&mut queue, now), take(&mut queue, now)), ("b".into(), String::new()));
        assert_eq!(take(&mut queue, due), "a");
    }
}
