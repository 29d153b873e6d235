//! What is kept in memory: the newest changes of all classes, and the objects of
//! the memory class.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::{Event, EventKind, Revision};

/// Behind one lock, so that a change and the revision that shows it appear
/// together.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) ring: Ring,
    pub(crate) objects: BTreeMap<String, (Revision, Bytes)>,
}

impl Live {
    /// Applies a change to the objects of the memory class.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event.kind {
            EventKind::Put => {
                let object = (event.revision, event.value.clone());
                match self.objects.get_mut(&event.key) {
                    Some(slot) => *slot = object,
                    None => _ = self.objects.insert(event.key.clone(), object),
                }
            }
            EventKind::Delete => _ = self.objects.remove(&event.key),
        }
    }
}

/// The newest changes, up to a number of bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    bytes_max: usize,
    /// Every change after this revision is here.
    start: Revision,
}

impl Ring {
    pub(crate) fn new(start: Revision, bytes_max: usize) -> Ring {
        Ring { events: VecDeque::new(), bytes: 0, bytes_max, start }
    }

    pub(crate) fn start(&self) -> Revision {
        self.start
    }

    /// Adds the changes of one transaction, newer than all others.
    pub(crate) fn push(&mut self, events: &[Arc<Event>]) {
        for event in events {
            debug_assert!(event.revision > self.start, "revisions only grow");
            self.bytes += event.cost_bytes();
            self.events.push_back(event.clone());
        }
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.events.front() else { break };
            self.start = oldest.revision;
            // A transaction goes as a whole.
            while let Some(event) = self.events.pop_front_if(|e| e.revision == self.start) {
                self.bytes -= event.cost_bytes();
            }
        }
    }

    /// The changes after `position`, oldest first; `None` when some of them are
    /// not here any more.
    pub(crate) fn after(&self, position: Revision) -> Option<impl Iterator<Item = &Arc<Event>>> {
        if position < self.start {
            return None;
        }
        let first = self.events.partition_point(|event| event.revision <= position);
        Some(self.events.range(first..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: Revision, bytes: usize) -> Arc<Event> {
        let value = Bytes::from(vec![0; bytes]);
        Arc::new(Event {
            kind: EventKind::Put,
            key: format!("k{revision}"),
            revision,
            value,
            previous: None,
        })
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_it_lost() {
        let mut ring = Ring::new(10, 2_000);
        for revision in 11..=20 {
            ring.push(&[event(revision, 200), event(revision, 200)]);
        }
        assert!(ring.bytes <= 2_000);
        assert!(ring.after(10).is_none());
        let revisions =
            |position| Some(ring.after(position)?.map(|e| e.revision).collect::<Vec<_>>());
        assert_eq!(revisions(ring.start() - 1), None);
        assert_eq!(revisions(ring.start()), Some(vec![19, 19, 20, 20]));
        assert_eq!(revisions(20), Some(vec![]));
    }

    #[test]
    fn a_change_larger_than_the_ring_leaves_it_empty() {
        let mut ring = Ring::new(0, 2_000);
        ring.push(&[event(1, 100)]);
        ring.push(&[event(2, 5_000)]);
        assert_eq!((ring.start(), ring.bytes), (2, 0));
        assert!(ring.after(1).is_none());
        assert_eq!(ring.after(2).unwrap().count(), 0);
    }
}
