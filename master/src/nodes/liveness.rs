//! When each node was last heard of, by the master's own monotonic clock.
//!
//! In memory only: after a start every node counts as just seen.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Arrival times.
#[derive(Debug)]
pub(crate) struct Liveness {
    started: Instant,
    seen: Mutex<HashMap<String, Instant>>,
}

impl Liveness {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }

    /// A message of `node` arrived.
    pub(crate) fn seen(&self, node: &str) {
        let mut seen = self.seen.lock().expect("no panic while it is held");
        match seen.get_mut(node) {
            Some(at) => *at = Instant::now(),
            None => {
                seen.insert(node.to_owned(), Instant::now());
            }
        }
    }

    /// The connection of `node` ended. It may be back in a moment: an upgrade or a
    /// roaming radio, so this alone changes nothing.
    pub(crate) fn disconnected(&self, node: &str) {
        tracing::debug!(node, "link lost");
    }

    /// The node was deleted.
    pub(crate) fn forget(&self, node: &str) {
        self.seen.lock().expect("no panic while it is held").remove(node);
    }

    /// Time since the last message of `node`, or since the start of this master.
    pub(crate) fn silent_for(&self, node: &str) -> Duration {
        let seen = self.seen.lock().expect("no panic while it is held");
        seen.get(node).copied().unwrap_or(self.started).elapsed()
    }
}
