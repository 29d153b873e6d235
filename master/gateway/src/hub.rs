//! Which node is on which connection, and what waits for it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Most filters of one client; a node needs one.
const FILTERS_MAX: usize = 8;
/// What a queued message costs beyond its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 64;

/// Why a message was not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection, or one that ends.
    #[error("node \"{0}\" is not connected")]
    NotConnected(String),
    /// The node has not subscribed to the topic.
    #[error("node \"{0}\" has not subscribed to \"{1}\"")]
    NotSubscribed(String, String),
    /// Too much waits for it already; its connection ends.
    #[error("node \"{0}\" is too slow: its queue is full, so it is disconnected")]
    Full(String),
}

/// Why the gateway ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    TakenOver,
    Full,
    Kicked,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) qos: u8,
    pub(crate) bytes: Bytes,
}

/// One client that has connected.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    n_bytes: usize,
    filters: Vec<String>,
    end: Option<End>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    NotSubscribed,
    Full,
    Ending,
}

impl Session {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(
        &self,
        queue_bytes_max: usize,
        topic: &str,
        qos: u8,
        bytes: Bytes,
    ) -> Result<(), PushError> {
        let mut queue = self.queue();
        if queue.end.is_some() {
            return Err(PushError::Ending);
        }
        if !queue.filters.iter().any(|filter| matches(filter, topic)) {
            return Err(PushError::NotSubscribed);
        }
        let n_bytes = queue.n_bytes + bytes.len() + MESSAGE_OVERHEAD_BYTES;
        let pushed = if n_bytes > queue_bytes_max {
            queue.end = Some(End::Full);
            queue.messages = VecDeque::new();
            queue.n_bytes = 0;
            Err(PushError::Full)
        } else {
            queue.n_bytes = n_bytes;
            queue.messages.push_back(Message { topic: topic.into(), qos, bytes });
            Ok(())
        };
        drop(queue);
        self.wake.notify_one();
        pushed
    }

    /// The next message; one with QoS 1 only if `window_open`.
    pub(crate) fn pop(&self, window_open: bool) -> Option<Message> {
        let mut queue = self.queue();
        if queue.messages.front()?.qos > 0 && !window_open {
            return None;
        }
        let message = queue.messages.pop_front()?;
        queue.n_bytes -= message.bytes.len() + MESSAGE_OVERHEAD_BYTES;
        if queue.messages.is_empty() {
            // An idle connection holds no buffer.
            queue.messages = VecDeque::new();
        }
        Some(message)
    }

    pub(crate) fn subscribe(&self, filter: &str) -> bool {
        let mut queue = self.queue();
        if queue.filters.iter().any(|known| known == filter) {
            return true;
        }
        let room = queue.filters.len() < FILTERS_MAX;
        if room {
            queue.filters.push(filter.into());
        }
        room
    }

    pub(crate) fn unsubscribe(&self, filters: &[String]) {
        self.queue().filters.retain(|filter| !filters.contains(filter));
    }

    fn finish(&self, end: End) {
        self.queue().end.get_or_insert(end);
        self.wake.notify_one();
    }

    pub(crate) fn end(&self) -> Option<End> {
        self.queue().end
    }

    /// Returns when something was queued or the connection is to end.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

#[derive(Debug)]
pub(crate) struct Hub {
    nodes: Mutex<HashMap<Arc<str>, Arc<Session>>>,
    next_id: AtomicU64,
    queue_bytes_max: usize,
}

impl Hub {
    pub(crate) fn new(queue_bytes_max: usize) -> Self {
        Self { nodes: Mutex::default(), next_id: AtomicU64::new(1), queue_bytes_max }
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Session>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that no node has.
    pub(crate) fn session(&self) -> Arc<Session> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Session { id, queue: Mutex::default(), wake: Notify::new() })
    }

    /// A session of `node`, which replaces the one it had.
    pub(crate) fn connect(&self, node: &Arc<str>) -> Arc<Session> {
        let mut nodes = self.nodes();
        // Under the lock, so that the newest connection has the highest number.
        let session = self.session();
        if let Some(old) = nodes.insert(node.clone(), session.clone()) {
            old.finish(End::TakenOver);
        }
        session
    }

    pub(crate) fn disconnect(&self, node: &str, session: &Session) {
        let mut nodes = self.nodes();
        if nodes.get(node).is_some_and(|current| current.id == session.id) {
            nodes.remove(node);
            if nodes.len() * 4 < nodes.capacity() {
                nodes.shrink_to_fit();
            }
        }
    }

    pub(crate) fn send(
        &self,
        node: &str,
        topic: &str,
        qos: u8,
        bytes: Bytes,
    ) -> Result<(), SendError> {
        let not_connected = || SendError::NotConnected(node.into());
        let session = self.nodes().get(node).cloned().ok_or_else(not_connected)?;
        session.push(self.queue_bytes_max, topic, qos, bytes).map_err(|error| match error {
            PushError::NotSubscribed => SendError::NotSubscribed(node.into(), topic.into()),
            PushError::Full => SendError::Full(node.into()),
            PushError::Ending => not_connected(),
        })
    }

    pub(crate) fn end(&self, node: &str, end: End) {
        if let Some(session) = self.nodes().get(node) {
            session.finish(end);
        }
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.nodes().len()
    }
}

/// Whether an MQTT filter matches a topic.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(filter), Some(topic)) if filter == topic => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_mqtt_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn a_full_queue_ends_the_connection_and_frees_what_waited() {
        let hub = Hub::new(1000);
        let node: Arc<str> = Arc::from("a");
        let session = hub.connect(&node);
        let send = || hub.send("a", "t", 1, Bytes::from(vec![0; 400]));
        assert_eq!(send(), Err(SendError::NotSubscribed("a".into(), "t".into())));
        session.subscribe("t");
        assert_eq!((send(), send()), (Ok(()), Ok(())));
        assert_eq!(send(), Err(SendError::Full("a".into())));
        assert_eq!(session.end(), Some(End::Full));
        assert!(session.pop(true).is_none());
        assert_eq!(send(), Err(SendError::NotConnected("a".into())));
    }

    #[test]
    fn the_newest_connection_has_the_node_and_the_older_one_cannot_take_it_away() {
        let hub = Hub::new(1000);
        let node: Arc<str> = Arc::from("a");
        let (old, new) = (hub.connect(&node), hub.connect(&node));
        assert!(old.id < new.id);
        assert_eq!((old.end(), new.end()), (Some(End::TakenOver), None));
        hub.disconnect("a", &old);
        assert_eq!(hub.n_nodes(), 1);
        hub.disconnect("a", &new);
        assert_eq!(hub.n_nodes(), 0);
        assert_eq!(hub.send("a", "t", 0, Bytes::new()), Err(SendError::NotConnected("a".into())));
    }

    #[test]
    fn filters_are_bounded_and_can_be_given_back() {
        let session = Hub::new(1000).session();
        for at in 0..FILTERS_MAX {
            assert!(session.subscribe(&at.to_string()));
        }
        assert!(session.subscribe("0"), "again");
        assert!(!session.subscribe("more"));
        session.unsubscribe(&["0".into()]);
        assert!(session.subscribe("more"));
    }
}
