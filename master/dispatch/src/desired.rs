//! The newest set of one node, and what changed in it since which revision.
//!
//! Not earlier sets are kept but, for each item, the revision at which it came
//! into the set or changed, and for the last [`REMOVED_MAX`] items that left it,
//! when. That is enough for a delta from any base since this master started (or
//! since the oldest removal it still knows), at 40 bytes an item. Of the sets of
//! an earlier run of the master only one is known: the one a node was found to
//! have that is equal to the newest.
//!
//! The items that all nodes have ([`Common`]) are kept, hashed and encoded once
//! for the whole fleet.

use std::collections::VecDeque;
use std::sync::Arc;

use wire::encoded::{EncodedItem, encoded_delta, encoded_snapshot};
use wire::set::{ItemV1, SnapshotV1, digest_input, joined_digest};
use wire::{Epoch, Uid};

/// Removals remembered for deltas; a node further behind gets the whole set.
pub const REMOVED_MAX: usize = 256;

/// Items, and what changed in them when.
#[derive(Clone, Debug)]
struct Items {
    /// Sorted by uid.
    entries: Vec<Entry>,
    /// What left, and at which revision; oldest first.
    removed: VecDeque<(u64, Uid)>,
    /// Removals up to this revision are forgotten.
    forgotten: u64,
    digest: [u8; 32],
}

#[derive(Clone, Debug)]
struct Entry {
    uid: Uid,
    generation: u64,
    /// The revision at which the item came into the set in this form.
    since: u64,
    encoded: EncodedItem,
}

impl Default for Items {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            removed: VecDeque::new(),
            forgotten: 0,
            digest: crate::sha256(&[]),
        }
    }
}

impl Items {
    fn new(items: &[ItemV1], revision: u64) -> Result<Self, SetError> {
        let mut entries: Vec<Entry> = items
            .iter()
            .map(|item| Entry {
                uid: item.uid,
                generation: item.generation,
                since: revision,
                encoded: EncodedItem::new(item),
            })
            .collect();
        entries.sort_by_key(|entry| entry.uid);
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].uid == pair[1].uid) {
            return Err(SetError::Twice(u128::from_be_bytes(pair[0].uid)));
        }
        let names = entries.iter().map(|entry| (entry.uid, entry.generation));
        let digest = crate::sha256(&digest_input(names));
        Ok(Self { entries, digest, ..Self::default() })
    }

    /// These items with what `items` change, at `revision`; `None` where they are the same.
    fn replaced(&self, items: &[ItemV1], revision: u64) -> Result<Option<Self>, SetError> {
        let mut new = Self::new(items, revision)?;
        let mut changed = new.entries.len() != self.entries.len();
        for entry in &mut new.entries {
            match self.entry(&entry.uid) {
                Some(old)
                    if (old.generation, &old.encoded) == (entry.generation, &entry.encoded) =>
                {
                    entry.since = old.since;
                    // The same bytes once, in whichever copy of the items.
                    entry.encoded = old.encoded.clone();
                }
                _ => changed = true,
            }
        }
        if !changed {
            return Ok(None);
        }
        new.removed.clone_from(&self.removed);
        new.forgotten = self.forgotten;
        let gone = self.entries.iter().filter(|old| new.entry(&old.uid).is_none());
        let gone: Vec<(u64, Uid)> = gone.map(|old| (revision, old.uid)).collect();
        new.removed.extend(gone);
        while new.removed.len() > REMOVED_MAX {
            if let Some((revision, _)) = new.removed.pop_front() {
                new.forgotten = new.forgotten.max(revision);
            }
        }
        Ok(Some(new))
    }

    fn entry(&self, uid: &Uid) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.uid.cmp(uid)).ok()?;
        self.entries.get(at)
    }

    fn upserted(&self, base: u64) -> impl Iterator<Item = &EncodedItem> {
        self.entries.iter().filter(move |entry| entry.since > base).map(|entry| &entry.encoded)
    }

    fn removed(&self, base: u64) -> impl Iterator<Item = Uid> {
        self.removed
            .iter()
            .filter(move |(revision, uid)| *revision > base && self.entry(uid).is_none())
            .map(|(_, uid)| *uid)
    }
}

/// The items that every node has, beside its own.
#[derive(Clone, Debug, Default)]
pub struct Common {
    revision: u64,
    items: Items,
}

impl Common {
    /// These items with what `items` change, at `revision`; `None` where they are the
    /// same.
    ///
    /// # Errors
    /// Where a uid is among them twice, or the revision is none after the last.
    pub fn replaced(&self, items: &[ItemV1], revision: u64) -> Result<Option<Self>, SetError> {
        let Some(items) = self.items.replaced(items, revision)? else { return Ok(None) };
        match revision.cmp(&self.revision) {
            std::cmp::Ordering::Less => {
                Err(SetError::Older { given: revision, newest: self.revision })
            }
            std::cmp::Ordering::Equal => Err(SetError::SameRevision(revision)),
            std::cmp::Ordering::Greater => Ok(Some(Self { revision, items })),
        }
    }
}

/// The newest set of a node.
#[derive(Debug)]
pub struct DesiredSet {
    epoch: Epoch,
    /// Of the node's own items and the common ones together.
    revision: u64,
    /// The revision of the first set of this run: all since are known.
    started: u64,
    /// The same, or the older one under which a node has that first set.
    first: u64,
    /// The revision of the common items in that first set.
    common_first: u64,
    own: Items,
    common: Arc<Common>,
    digest: [u8; 16],
}

/// Why a set cannot replace the one before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// The set comes from another store.
    #[error("set of epoch {given:032x}, but the dispatcher serves {expected:032x}")]
    Epoch {
        /// Epoch of the set.
        given: Epoch,
        /// Epoch of the dispatcher.
        expected: Epoch,
    },
    /// The set is older than the one the node may already have.
    #[error("set of revision {given}, but the newest is {newest}")]
    Older {
        /// Revision of the set.
        given: u64,
        /// Newest revision.
        newest: u64,
    },
    /// Other items under the same revision: a node could not tell them apart.
    #[error("another set of revision {0}: only stored state may change a set")]
    SameRevision(u64),
    /// Two items have the same uid.
    #[error("uid {0:032x} is twice in the set")]
    Twice(u128),
}

impl DesiredSet {
    /// The first set of a node in this run of the master: its own items, and those
    /// that every node has.
    ///
    /// # Errors
    /// Where a uid is in the set twice.
    pub fn new(set: &SnapshotV1, common: Arc<Common>) -> Result<Self, SetError> {
        let revision = set.revision.max(common.revision);
        let own = Items::new(&set.items, revision)?;
        Ok(Self {
            epoch: set.epoch,
            revision,
            started: revision,
            first: revision,
            common_first: common.revision,
            digest: joined_digest(&own.digest, &common.items.digest, crate::sha256),
            own,
            common,
        })
    }

    /// Takes newer items of the node's own; false where they are the same, which then
    /// keep their revision, so that nothing is sent.
    ///
    /// # Errors
    /// Where they are older, of another store, or other under the same revision.
    pub fn replace(&mut self, set: &SnapshotV1) -> Result<bool, SetError> {
        if set.epoch != self.epoch {
            return Err(SetError::Epoch { given: set.epoch, expected: self.epoch });
        }
        if set.revision < self.revision {
            return Err(SetError::Older { given: set.revision, newest: self.revision });
        }
        let Some(own) = self.own.replaced(&set.items, set.revision)? else { return Ok(false) };
        if set.revision == self.revision {
            return Err(SetError::SameRevision(set.revision));
        }
        self.own = own;
        self.moved(set.revision);
        Ok(true)
    }

    /// Takes newer common items. Their revision must be above that of every set that a
    /// node was told of.
    pub fn set_common(&mut self, common: &Arc<Common>) {
        if common.revision > self.common.revision {
            debug_assert!(common.revision >= self.revision, "the set would become older");
            self.common = Arc::clone(common);
            self.moved(common.revision);
        }
    }

    fn moved(&mut self, revision: u64) {
        self.revision = revision;
        self.digest = joined_digest(&self.own.digest, &self.common.items.digest, crate::sha256);
    }

    /// The store it comes from.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What a node with exactly these items puts in its hello.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        self.digest
    }

    /// Gives the first set of this run the revision under which a node already
    /// has it, so that the node stores nothing. Only before any set was sent, else
    /// two revisions of one set would be on the way.
    pub fn adopt(&mut self, revision: u64) {
        debug_assert!(revision <= self.revision, "a node that is ahead is not adopted");
        self.renumber_all(revision);
    }

    /// Takes that back where the node turns out to have `revision`, of which
    /// nothing is known: what it said before was late. False where nothing was
    /// adopted that explains it.
    pub fn disown(&mut self, revision: u64) -> bool {
        let explained = self.revision == self.first && revision <= self.started;
        if explained {
            self.renumber_all(self.started);
        }
        explained
    }

    fn renumber_all(&mut self, revision: u64) {
        self.revision = revision;
        self.first = revision;
        self.common_first = self.common.revision;
        self.own.removed.clear();
        for entry in &mut self.own.entries {
            entry.since = revision;
        }
    }

    /// The whole set, as it travels.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let entries = self.own.entries.iter().chain(&self.common.items.entries);
        let items: Vec<&EncodedItem> = entries.map(|entry| &entry.encoded).collect();
        encoded_snapshot(self.epoch, self.revision, items)
    }

    /// What changed since `base`, as it travels, where that is still known.
    #[must_use]
    pub fn delta(&self, base: u64) -> Option<Vec<u8>> {
        let is_first = base == self.first;
        let known = is_first || base >= self.started;
        let common_base = if is_first { self.common_first } else { base };
        let forgotten = base < self.own.forgotten || common_base < self.common.items.forgotten;
        if !known || forgotten || base >= self.revision {
            return None;
        }
        let common = &self.common.items;
        let upsert: Vec<&EncodedItem> =
            self.own.upserted(base).chain(common.upserted(common_base)).collect();
        let mut remove: Vec<Uid> =
            self.own.removed(base).chain(common.removed(common_base)).collect();
        remove.sort_unstable();
        remove.dedup();
        Some(encoded_delta(self.epoch, base, self.revision, upsert, &remove))
    }

    /// A delta that changes nothing but the revision.
    #[must_use]
    pub fn renumber(&self, base: u64) -> Vec<u8> {
        encoded_delta(self.epoch, base, self.revision, [], &[])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use wire::envelope::{Decoded, Message, decode};
    use wire::set::{BodyV1, ItemV1, NodeConfigV1};

    use super::*;

    fn set(revision: u64, items: &[(u8, u64)]) -> SnapshotV1 {
        let item = |&(uid, generation): &(u8, u64)| ItemV1 {
            uid: [uid; 16],
            generation,
            body: BodyV1::Node(NodeConfigV1 {
                pod_cidr: String::new(),
                heartbeat_s: 60,
                artifact_key: [0; 32],
                hold_unknown: false,
                image_policies: Vec::new(),
                prepull: Vec::new(),
                remove_volumes: Vec::new(),
                cluster: wire::network::ClusterV1::default(),
                ext: Vec::new(),
            }),
        };
        SnapshotV1 { epoch: 7, revision, items: items.iter().map(item).collect() }
    }

    fn message(bytes: &[u8]) -> Message {
        match decode(bytes) {
            Ok(Decoded::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_items_keep_their_revision() {
        let mut desired = DesiredSet::new(&set(10, &[(1, 3), (2, 4)]), Arc::default()).unwrap();
        assert_eq!(desired.replace(&set(20, &[(2, 4), (1, 3)])), Ok(false));
        assert_eq!(desired.revision(), 10);
        assert_eq!(desired.replace(&set(21, &[(1, 3)])), Ok(true));
        assert_eq!(desired.revision(), 21);
    }

    #[test]
    fn a_set_that_would_confuse_a_node_is_refused() {
        let mut desired = DesiredSet::new(&set(10, &[(1, 3)]), Arc::default()).unwrap();
        assert_eq!(desired.replace(&set(9, &[])), Err(SetError::Older { given: 9, newest: 10 }));
        assert_eq!(desired.replace(&set(10, &[(2, 3)])), Err(SetError::SameRevision(10)));
        let other = SnapshotV1 { epoch: 8, ..set(11, &[]) };
        assert!(matches!(desired.replace(&other), Err(SetError::Epoch { .. })));
        assert!(matches!(desired.replace(&set(12, &[(1, 1), (1, 2)])), Err(SetError::Twice(_))));
        assert_eq!(message(&desired.snapshot()), Message::Snapshot(set(10, &[(1, 3)])));
    }

    #[test]
    fn a_node_too_far_behind_gets_no_delta() {
        let mut desired = DesiredSet::new(&set(10, &[(0, 1)]), Arc::default()).unwrap();
        assert_eq!(desired.delta(9), None, "before this run of the master");
        assert_eq!(desired.delta(10), None, "nothing changed");
        for round in 0..300u64 {
            let uid = u8::try_from(round % 200).unwrap() + 1;
            desired.replace(&set(11 + round, &[(uid, round)])).unwrap();
        }
        assert_eq!(desired.delta(10), None, "removals are forgotten");
        assert!(desired.delta(300).is_some());
        assert!(desired.own.removed.len() <= REMOVED_MAX);
    }

    #[test]
    fn an_adopted_set_goes_on_from_the_nodes_revision() {
        let mut desired = DesiredSet::new(&set(100, &[(1, 3), (2, 4)]), Arc::default()).unwrap();
        desired.adopt(60);
        assert_eq!(desired.revision(), 60);
        desired.replace(&set(110, &[(1, 3), (3, 9)])).unwrap();
        let Message::Delta(delta) = message(&desired.delta(60).unwrap()) else {
            panic!("no delta")
        };
        assert_eq!((delta.base_revision, delta.revision), (60, 110));
        assert_eq!(delta.upsert.iter().map(|item| item.uid).collect::<Vec<_>>(), [[3; 16]]);
        assert_eq!(delta.remove, [[2; 16]]);
    }

    #[test]
    fn nothing_is_said_about_a_set_of_an_earlier_run() {
        let mut desired = DesiredSet::new(&set(100, &[(1, 3), (2, 4)]), Arc::default()).unwrap();
        desired.adopt(60);
        desired.replace(&set(110, &[(1, 3)])).unwrap();
        assert_eq!(desired.delta(80), None, "who knows what was in it");
        assert!(desired.delta(60).is_some() && desired.delta(100).is_some());

        let mut desired = DesiredSet::new(&set(100, &[(1, 3)]), Arc::default()).unwrap();
        desired.adopt(60);
        assert!(!desired.disown(101));
        assert!(desired.disown(80), "the node went on before this master started");
        assert_eq!((desired.revision(), desired.delta(60), desired.delta(80)), (100, None, None));
    }

    fn common_items(items: &[(u8, u64)]) -> Vec<ItemV1> {
        let service = |&(uid, generation): &(u8, u64)| ItemV1 {
            uid: [uid; 16],
            generation,
            body: BodyV1::Service(Box::default()),
        };
        items.iter().map(service).collect()
    }

    #[test]
    fn common_items_are_a_part_of_every_set_and_of_its_digest() {
        let (own, shared) = ([(1, 3)], [(200, 1), (201, 1)]);
        let common = Common::default().replaced(&common_items(&shared), 12).unwrap().unwrap();
        let common = Arc::new(common);
        let mut desired = DesiredSet::new(&set(10, &own), Arc::clone(&common)).unwrap();
        assert_eq!(desired.revision(), 12);
        let Message::Snapshot(whole) = message(&desired.snapshot()) else { panic!("no set") };
        assert_eq!(whole.items.len(), 3);
        assert_eq!(desired.digest(), crate::set_digest(&whole.items));

        assert!(common.replaced(&common_items(&shared), 20).unwrap().is_none(), "the same");
        let next = common_items(&[(201, 2), (202, 1)]);
        assert_eq!(common.replaced(&next, 12).unwrap_err(), SetError::SameRevision(12));
        let next = Arc::new(common.replaced(&next, 20).unwrap().unwrap());
        desired.set_common(&next);
        desired.set_common(&common);
        assert_eq!(desired.revision(), 20, "an older one changes nothing");
        let Message::Delta(delta) = message(&desired.delta(12).unwrap()) else {
            panic!("no delta")
        };
        let upsert: Vec<u8> = delta.upsert.iter().map(|item| item.uid[0]).collect();
        assert_eq!((upsert, delta.remove), (vec![201, 202], vec![[200; 16]]));
        assert_eq!(desired.replace(&set(20, &[(2, 1)])), Err(SetError::SameRevision(20)));
    }

    #[test]
    fn both_halves_may_change_at_one_revision() {
        let common = Common::default().replaced(&common_items(&[(200, 1)]), 10).unwrap().unwrap();
        let mut desired = DesiredSet::new(&set(10, &[(1, 3)]), Arc::new(common.clone())).unwrap();
        desired.replace(&set(20, &[(1, 4)])).unwrap();
        let next = common.replaced(&common_items(&[(200, 2)]), 20).unwrap().unwrap();
        desired.set_common(&Arc::new(next));
        let Message::Delta(delta) = message(&desired.delta(10).unwrap()) else {
            panic!("no delta")
        };
        assert_eq!((delta.upsert.len(), delta.revision), (2, 20));
    }

    #[test]
    fn what_an_adopted_set_has_in_common_is_not_sent_again() {
        let common = Common::default().replaced(&common_items(&[(200, 1)]), 90).unwrap().unwrap();
        let mut desired = DesiredSet::new(&set(100, &[(1, 3)]), Arc::new(common.clone())).unwrap();
        desired.adopt(60);
        let next = common.replaced(&common_items(&[(200, 1), (201, 1)]), 110).unwrap().unwrap();
        desired.set_common(&Arc::new(next));
        let Message::Delta(delta) = message(&desired.delta(60).unwrap()) else {
            panic!("no delta")
        };
        assert_eq!(delta.upsert.iter().map(|item| item.uid[0]).collect::<Vec<_>>(), [201]);
    }

    type Items = BTreeMap<u8, u64>;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// From any base, the delta leads to the newest set.
        #[test]
        fn deltas_lead_from_any_base_to_the_newest_set(
            history in proptest::collection::vec(
                proptest::collection::btree_map(0u8..8, 0u64..3, 0..6), 2..12),
        ) {
            let as_list = |items: &Items| items.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>();
            let mut desired = DesiredSet::new(&set(1, &as_list(&history[0])), Arc::default()).unwrap();
            let mut at = vec![(1, history[0].clone())];
            for (step, items) in history.iter().enumerate().skip(1) {
                let revision = step as u64 * 10;
                if desired.replace(&set(revision, &as_list(items))).unwrap() {
                    at.push((revision, items.clone()));
                }
            }
            let (newest, goal) = at.last().unwrap().clone();
            prop_assert_eq!(desired.revision(), newest);
            for (base, items) in &at[..at.len() - 1] {
                let Message::Delta(delta) = message(&desired.delta(*base).unwrap()) else {
                    return Err(TestCaseError::fail("no delta"));
                };
                let mut items = items.clone();
                for uid in &delta.remove {
                    prop_assert!(items.remove(&uid[0]).is_some() || !goal.contains_key(&uid[0]));
                }
                for item in &delta.upsert {
                    items.insert(item.uid[0], item.generation);
                }
                prop_assert_eq!(&items, &goal);
            }
        }
    }
}
