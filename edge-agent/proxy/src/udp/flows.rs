//! The flows of datagrams that are open: who sends to whom, and how long ago.
//!
//! Bounded: where it is full, those go that have been silent longest. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Most flows; each has a descriptor.
pub(super) const FLOWS_MAX: usize = 8192;

/// How long a flow is kept in silence.
const IDLE: Duration = Duration::from_secs(60);

/// How long one is kept whose client has sent a single datagram: a question and its
/// answer.
const IDLE_SINGLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Entry<V> {
    value: V,
    last: Instant,
    n_sent: u32,
}

/// The flows.
#[derive(Debug)]
pub(super) struct Flows<K, V> {
    entries: HashMap<K, Entry<V>>,
    max: usize,
}

impl<K: Hash + Eq + Clone, V> Flows<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), max }
    }

    /// The flow that a client's datagram belongs to.
    pub(super) fn sent(&mut self, key: &K, now: Instant) -> Option<&V> {
        self.entries.get_mut(key).map(|entry| {
            entry.last = now;
            entry.n_sent = entry.n_sent.saturating_add(1);
            &entry.value
        })
    }

    /// An answer was sent.
    pub(super) fn answered(&mut self, key: &K, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.last = now;
        }
    }

    /// Begins a flow. Returns those that had to go for it.
    pub(super) fn begin(&mut self, key: K, value: V, now: Instant) -> Vec<V> {
        let mut gone = Vec::new();
        if self.entries.len() >= self.max && !self.entries.contains_key(&key) {
            // A part of them at once, so that not every new flow looks at all.
            let n = (self.max / 16).max(1);
            let mut ages: Vec<Instant> = self.entries.values().map(|entry| entry.last).collect();
            let (_, last, _) = ages.select_nth_unstable(n - 1);
            let last = *last;
            let mut left = n;
            gone = self.remove_if(|_, entry| {
                let goes = entry.last <= last && left > 0;
                left -= usize::from(goes);
                goes
            });
        }
        gone.extend(
            self.entries.insert(key, Entry { value, last: now, n_sent: 1 }).map(|e| e.value),
        );
        gone
    }

    pub(super) fn end(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|entry| entry.value)
    }

    /// Ends those that have been silent too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<V> {
        self.remove_if(|_, entry| {
            let idle = if entry.n_sent > 1 { IDLE } else { IDLE_SINGLE };
            now.saturating_duration_since(entry.last) >= idle
        })
    }

    /// Ends those that do not fit.
    pub(super) fn keep(&mut self, fits: impl Fn(&K, &V) -> bool) -> Vec<V> {
        self.remove_if(|key, entry| !fits(key, &entry.value))
    }

    /// Ends all.
    pub(super) fn take(&mut self) -> Vec<(K, V)> {
        self.entries.drain().map(|(key, entry)| (key, entry.value)).collect()
    }

    fn remove_if(&mut self, mut goes: impl FnMut(&K, &Entry<V>) -> bool) -> Vec<V> {
        let gone = self.entries.extract_if(|key, entry| goes(key, entry));
        gone.map(|(_, entry)| entry.value).collect()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_flows_end_and_those_with_one_datagram_sooner() {
        let mut flows = Flows::new(10);
        flows.begin(1, "question", Instant::now());
        flows.begin(2, "talk", Instant::now());
        assert_eq!(flows.sent(&2, Instant::now()), Some(&"talk"));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(flows.expire(Instant::now()).is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(flows.expire(Instant::now()), ["question"]);
        tokio::time::advance(Duration::from_secs(20)).await;
        flows.answered(&2, Instant::now());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(flows.expire(Instant::now()).is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(flows.expire(Instant::now()), ["talk"]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_is_full_the_most_silent_ones_go() {
        let mut flows = Flows::new(32);
        for n in 0..32 {
            flows.begin(n, n, Instant::now());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        flows.sent(&0, Instant::now());
        let mut gone = flows.begin(32, 32, Instant::now());
        gone.sort_unstable();
        assert_eq!(gone, [1, 2]);
        for n in 33..500 {
            flows.begin(n, n, Instant::now());
            assert!(flows.len() <= 32);
        }
        assert_eq!(flows.end(&499), Some(499));
    }
}
