//! One [`NodeDispatcher`] for each node, addressed by topic.
//!
//! A poll touches only the nodes that something happened to or whose time has
//! come, so that a quiet fleet costs nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use wire::account::PodTokensV1;
use wire::command::CommandV1;
use wire::set::{ItemV1, SnapshotV1};
use wire::topic::{Channel, Topic};
use wire::{Epoch, Uid};

use crate::desired::{Common, SetError};
use crate::node::{NodeDispatcher, NotConnected, Output, ReceiveError};

/// The master's half of the protocol with all nodes.
#[derive(Debug)]
pub struct Dispatcher {
    epoch: Epoch,
    common: Arc<Common>,
    /// Newest revision of any set.
    newest: u64,
    /// The same at the last poll: no node has heard of a newer one.
    told: u64,
    nodes: HashMap<Arc<str>, Slot>,
    touched: BTreeSet<Arc<str>>,
    due: BTreeSet<(Duration, Arc<str>)>,
}

#[derive(Debug)]
struct Slot {
    node: NodeDispatcher,
    due: Option<Duration>,
}

impl Dispatcher {
    /// No node yet. `epoch` is the identity of the store.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            common: Arc::default(),
            newest: 0,
            told: 0,
            nodes: HashMap::new(),
            touched: BTreeSet::new(),
            due: BTreeSet::new(),
        }
    }

    /// Takes the newest set of `node`; false where it has the same items as before.
    ///
    /// # Errors
    /// As [`crate::desired::DesiredSet::replace`].
    pub fn set(&mut self, node: &str, set: &SnapshotV1) -> Result<bool, SetError> {
        let dispatcher = self.touch(node);
        let taken = dispatcher.set(set);
        let revision = dispatcher.revision();
        self.newest = self.newest.max(revision);
        taken
    }

    /// Takes the newest items that every node has; false where they are the same as
    /// before.
    ///
    /// # Errors
    /// As [`Common::replaced`], and where a node may have been told of a set of that
    /// revision already.
    pub fn set_common(&mut self, items: &[ItemV1], revision: u64) -> Result<bool, SetError> {
        let Some(common) = self.common.replaced(items, revision)? else { return Ok(false) };
        if revision <= self.told {
            return Err(SetError::SameRevision(revision));
        }
        self.newest = self.newest.max(revision);
        self.common = Arc::new(common);
        for (name, slot) in &mut self.nodes {
            slot.node.set_common(&self.common);
            self.touched.insert(name.clone());
        }
        Ok(true)
    }

    /// Takes a message that arrived on `topic`.
    ///
    /// # Errors
    /// Where topic or message are none of a node's.
    pub fn receive(
        &mut self,
        now: Duration,
        topic: &str,
        bytes: &[u8],
    ) -> Result<(), ReceiveError> {
        match Topic::parse(topic) {
            Some(Topic::Node {
                node,
                channel: Channel::Heartbeat | Channel::Report | Channel::Will,
            }) => self.touch(node).receive(now, bytes),
            _ => Err(ReceiveError::Topic(topic.chars().take(128).collect())),
        }
    }

    /// The connection of `node` ended.
    pub fn disconnected(&mut self, node: &str) {
        if self.nodes.contains_key(node) {
            self.touch(node).disconnected();
        }
    }

    /// A report of `node` is stored: it is acknowledged.
    pub fn report_stored(&mut self, node: &str, boot_id: Uid, seq: u64) {
        if self.nodes.contains_key(node) {
            self.touch(node).report_stored(boot_id, seq);
        }
    }

    /// Tokens that `node` asked for are made: they are sent.
    pub fn tokens_made(&mut self, node: &str, boot_id: Uid, pods: Vec<PodTokensV1>) {
        if self.nodes.contains_key(node) {
            self.touch(node).tokens_made(boot_id, pods);
        }
    }

    /// Asks `node` to do something, once.
    ///
    /// # Errors
    /// Where it is away.
    pub fn command(&mut self, node: &str, command: CommandV1) -> Result<(), NotConnected> {
        if !self.nodes.contains_key(node) {
            return Err(NotConnected);
        }
        self.touch(node).command(command)
    }

    /// What is known of `node`.
    #[must_use]
    pub fn node(&self, node: &str) -> Option<&NodeDispatcher> {
        self.nodes.get(node).map(|slot| &slot.node)
    }

    /// Forgets `node`, whose Node object is gone.
    pub fn remove(&mut self, node: &str) {
        if let Some((name, slot)) = self.nodes.remove_entry(node) {
            self.touched.remove(&name);
            if let Some(due) = slot.due {
                self.due.remove(&(due, name));
            }
        }
    }

    /// What there is to do now, and for which node.
    pub fn poll(&mut self, now: Duration) -> Vec<(Arc<str>, Output)> {
        self.told = self.newest;
        let later = self.due.split_off(&(now + Duration::from_nanos(1), Arc::from("")));
        let due = std::mem::replace(&mut self.due, later);
        let mut names = std::mem::take(&mut self.touched);
        for (_, name) in due {
            if let Some(slot) = self.nodes.get_mut(&name) {
                slot.due = None;
            }
            names.insert(name);
        }
        let mut outputs = Vec::new();
        for name in names {
            let Some(slot) = self.nodes.get_mut(&name) else { continue };
            outputs.extend(slot.node.poll(now).into_iter().map(|output| (name.clone(), output)));
            let next = slot.node.next_due();
            if next == slot.due {
                continue;
            }
            if let Some(old) = std::mem::replace(&mut slot.due, next) {
                self.due.remove(&(old, name.clone()));
            }
            if let Some(next) = next {
                self.due.insert((next, name));
            }
        }
        outputs
    }

    /// When to poll again at the latest, if nothing happens before.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    fn touch(&mut self, node: &str) -> &mut NodeDispatcher {
        let name = match self.nodes.get_key_value(node) {
            Some((name, _)) => name.clone(),
            None => Arc::from(node),
        };
        self.touched.insert(name.clone());
        let (epoch, common) = (self.epoch, &self.common);
        let slot = self.nodes.entry(name).or_insert_with(|| {
            let mut node = NodeDispatcher::new(epoch);
            node.set_common(common);
            Slot { node, due: None }
        });
        &mut slot.node
    }
}

#[cfg(test)]
mod tests {
    use wire::set::BodyV1;

    use super::*;

    fn item(uid: u8, generation: u64) -> ItemV1 {
        ItemV1 { uid: [uid; 16], generation, body: BodyV1::Service(Box::default()) }
    }

    #[test]
    fn common_items_get_a_revision_that_no_node_has_heard_of() {
        let mut fleet = Dispatcher::new(7);
        let own = SnapshotV1 { epoch: 7, revision: 10, items: vec![item(1, 1)] };
        fleet.set("a", &own).unwrap();
        // Made in one go with the node's own items.
        assert_eq!(fleet.set_common(&[item(2, 1)], 10), Ok(true));
        assert_eq!(fleet.set_common(&[item(2, 1)], 10), Ok(false), "the same");
        fleet.poll(Duration::ZERO);
        assert_eq!(fleet.set_common(&[item(2, 2)], 10), Err(SetError::SameRevision(10)));
        assert_eq!(fleet.set_common(&[item(2, 2)], 11), Ok(true));
        assert_eq!(fleet.node("a").map(NodeDispatcher::revision), Some(11));
        // A node that comes later has them from the start.
        let late = SnapshotV1 { epoch: 7, revision: 5, items: vec![] };
        fleet.set("b", &late).unwrap();
        assert_eq!(fleet.node("b").map(NodeDispatcher::revision), Some(11));
    }
}
