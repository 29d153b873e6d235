//! What happened lately on this node, for `kubectl get events` and `describe` on the
//! board. The same thing again is counted, as the master does.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use wire::status::EventV1;

/// Events that are kept.
const EVENTS_MAX: usize = 64;

/// An event, and how often it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The event, the last time.
    pub event: EventV1,
    /// How often.
    pub count: u32,
    /// When first, in milliseconds since 1970.
    pub first_ms: u64,
    /// Names the event; grows.
    pub number: u64,
}

/// The last events, the oldest first.
#[derive(Debug, Default)]
pub struct Diary(Mutex<(u64, VecDeque<Entry>)>);

impl Diary {
    /// Keeps an event.
    pub fn note(&self, event: &EventV1) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, entries) = &mut *inner;
        let is_same = |entry: &Entry| {
            let known = &entry.event;
            (known.uid, &known.container, &known.reason, &known.message, known.warning)
                == (event.uid, &event.container, &event.reason, &event.message, event.warning)
        };
        let known = entries.iter().position(is_same).and_then(|at| entries.remove(at));
        let entry = match known {
            Some(known) => {
                Entry { event: event.clone(), count: known.count.saturating_add(1), ..known }
            }
            None => {
                *number += 1;
                Entry { event: event.clone(), count: 1, first_ms: event.at_ms, number: *number }
            }
        };
        if entries.len() >= EVENTS_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// What is kept.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &str, at_ms: u64) -> EventV1 {
        EventV1 {
            uid: [1; 16],
            namespace: "default".into(),
            name: "web".into(),
            container: String::new(),
            warning: false,
            reason: reason.into(),
            message: String::new(),
            at_ms,
        }
    }

    #[test]
    fn the_same_again_is_counted_and_the_oldest_goes() {
        let diary = Diary::default();
        diary.note(&event("Pulled", 1));
        diary.note(&event("BackOff", 2));
        diary.note(&event("Pulled", 3));
        let kept = diary.entries();
        let shown: Vec<(&str, u32, u64, u64)> = kept
            .iter()
            .map(|e| (e.event.reason.as_str(), e.count, e.first_ms, e.event.at_ms))
            .collect();
        assert_eq!(shown, [("BackOff", 1, 2, 2), ("Pulled", 2, 1, 3)]);
        for n in 0..200 {
            diary.note(&event(&format!("r{n}"), n));
        }
        let kept = diary.entries();
        assert_eq!((kept.len(), kept[0].event.reason.as_str()), (EVENTS_MAX, "r136"));
    }
}
