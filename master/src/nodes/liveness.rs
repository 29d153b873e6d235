//! When each node was last heard of, by the master's own monotonic clock.
//!
//! In memory only: a master that starts has seen nobody yet, and the node
//! lifecycle controller gives every node its time from then on.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use controllers::node_lifecycle::NodeLiveness;
use tokio::time::Instant;

/// Arrival times.
#[derive(Debug)]
pub(crate) struct Liveness {
    seen: Mutex<HashMap<String, Instant>>,
}

impl Liveness {
    pub(crate) fn new() -> Self {
        Self { seen: Mutex::default() }
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
}

impl NodeLiveness for Liveness {
    fn last_seen(&self, node: &str) -> Option<Duration> {
        let seen = self.seen.lock().expect("no panic while it is held");
        seen.get(node).map(Instant::elapsed)
    }
}
