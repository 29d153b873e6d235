//! The newest set of one node, and what changed in it since which revision.
//!
//! Not earlier sets are kept but, for each item, the revision at which it came
//! into the set or changed, and for the last [`REMOVED_MAX`] items that left it,
//! when. That is enough for a delta from any base since this master started (or
//! since the oldest removal it still knows), at 40 bytes an item. Of the sets of
//! an earlier run of the master only one is known: the one a node was found to
//! have that is equal to the newest.

use std::collections::VecDeque;

use wire::encoded::{EncodedItem, encoded_delta, encoded_snapshot};
use wire::set::SnapshotV1;
use wire::{Epoch, Uid};

/// Removals remembered for deltas; a node further behind gets the whole set.
pub const REMOVED_MAX: usize = 256;

/// The newest set of a node.
#[derive(Debug)]
pub struct DesiredSet {
    epoch: Epoch,
    revision: u64,
    /// The revision of the first set of this run: all since are known.
    started: u64,
    /// The same, or the older one under which a node has that first set.
    first: u64,
    /// Removals up to this revision are forgotten.
    forgotten: u64,
    /// Sorted by uid.
    entries: Vec<Entry>,
    /// What left the set, and at which revision; oldest first.
    removed: VecDeque<(u64, Uid)>,
    digest: [u8; 16],
}

#[derive(Debug)]
struct Entry {
    uid: Uid,
    generation: u64,
    /// The revision at which the item came into the set in this form.
    since: u64,
    encoded: EncodedItem,
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
    /// The first set of a node in this run of the master.
    ///
    /// # Errors
    /// Where a uid is in the set twice.
    pub fn new(set: &SnapshotV1) -> Result<Self, SetError> {
        let mut first = Self {
            epoch: set.epoch,
            revision: set.revision,
            started: set.revision,
            first: set.revision,
            forgotten: 0,
            entries: Vec::new(),
            removed: VecDeque::new(),
            digest: crate::set_digest(&set.items),
        };
        first.entries = entries(set)?;
        Ok(first)
    }

    /// Takes a newer set; false where it has the same items, which then keep
    /// their revision, so that nothing is sent.
    ///
    /// # Errors
    /// Where it is older, of another store, or other under the same revision.
    pub fn replace(&mut self, set: &SnapshotV1) -> Result<bool, SetError> {
        if set.epoch != self.epoch {
            return Err(SetError::Epoch { given: set.epoch, expected: self.epoch });
        }
        if set.revision < self.revision {
            return Err(SetError::Older { given: set.revision, newest: self.revision });
        }
        let mut entries = entries(set)?;
        let mut changed = entries.len() != self.entries.len();
        for entry in &mut entries {
            match self.entry(&entry.uid) {
                Some(old)
                    if (old.generation, &old.encoded) == (entry.generation, &entry.encoded) =>
                {
                    entry.since = old.since;
                }
                _ => changed = true,
            }
        }
        if !changed {
            return Ok(false);
        }
        if set.revision == self.revision {
            return Err(SetError::SameRevision(set.revision));
        }
        let gone =
            |old: &&Entry| entries.binary_search_by(|entry| entry.uid.cmp(&old.uid)).is_err();
        let removed: Vec<Uid> = self.entries.iter().filter(gone).map(|old| old.uid).collect();
        self.removed.extend(removed.into_iter().map(|uid| (set.revision, uid)));
        while self.removed.len() > REMOVED_MAX {
            if let Some((revision, _)) = self.removed.pop_front() {
                self.forgotten = self.forgotten.max(revision);
            }
        }
        self.entries = entries;
        self.revision = set.revision;
        self.digest = crate::set_digest(&set.items);
        Ok(true)
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
        self.removed.clear();
        for entry in &mut self.entries {
            entry.since = revision;
        }
    }

    /// The whole set, as it travels.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        encoded_snapshot(self.epoch, self.revision, self.entries.iter().map(|entry| &entry.encoded))
    }

    /// What changed since `base`, as it travels, where that is still known.
    #[must_use]
    pub fn delta(&self, base: u64) -> Option<Vec<u8>> {
        let known = base == self.first || base >= self.started;
        if !known || base < self.forgotten || base >= self.revision {
            return None;
        }
        let upsert: Vec<&EncodedItem> = self
            .entries
            .iter()
            .filter(|entry| entry.since > base)
            .map(|entry| &entry.encoded)
            .collect();
        let mut remove: Vec<Uid> = self
            .removed
            .iter()
            .filter(|(revision, uid)| *revision > base && self.entry(uid).is_none())
            .map(|(_, uid)| *uid)
            .collect();
        remove.sort_unstable();
        remove.dedup();
        Some(encoded_delta(self.epoch, base, self.revision, upsert, &remove))
    }

    /// A delta that changes nothing but the revision.
    #[must_use]
    pub fn renumber(&self, base: u64) -> Vec<u8> {
        encoded_delta(self.epoch, base, self.revision, [], &[])
    }

    fn entry(&self, uid: &Uid) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.uid.cmp(uid)).ok()?;
        self.entries.get(at)
    }
}

fn entries(set: &SnapshotV1) -> Result<Vec<Entry>, SetError> {
    let mut entries: Vec<Entry> = set
        .items
        .iter()
        .map(|item| Entry {
            uid: item.uid,
            generation: item.generation,
            since: set.revision,
            encoded: EncodedItem::new(item),
        })
        .collect();
    entries.sort_by_key(|entry| entry.uid);
    match entries.windows(2).find(|pair| pair[0].uid == pair[1].uid) {
        Some(pair) => Err(SetError::Twice(u128::from_be_bytes(pair[0].uid))),
        None => Ok(entries),
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
        let mut desired = DesiredSet::new(&set(10, &[(1, 3), (2, 4)])).unwrap();
        assert_eq!(desired.replace(&set(20, &[(2, 4), (1, 3)])), Ok(false));
        assert_eq!(desired.revision(), 10);
        assert_eq!(desired.replace(&set(21, &[(1, 3)])), Ok(true));
        assert_eq!(desired.revision(), 21);
    }

    #[test]
    fn a_set_that_would_confuse_a_node_is_refused() {
        let mut desired = DesiredSet::new(&set(10, &[(1, 3)])).unwrap();
        assert_eq!(desired.replace(&set(9, &[])), Err(SetError::Older { given: 9, newest: 10 }));
        assert_eq!(desired.replace(&set(10, &[(2, 3)])), Err(SetError::SameRevision(10)));
        let other = SnapshotV1 { epoch: 8, ..set(11, &[]) };
        assert!(matches!(desired.replace(&other), Err(SetError::Epoch { .. })));
        assert!(matches!(desired.replace(&set(12, &[(1, 1), (1, 2)])), Err(SetError::Twice(_))));
        assert_eq!(message(&desired.snapshot()), Message::Snapshot(set(10, &[(1, 3)])));
    }

    #[test]
    fn a_node_too_far_behind_gets_no_delta() {
        let mut desired = DesiredSet::new(&set(10, &[(0, 1)])).unwrap();
        assert_eq!(desired.delta(9), None, "before this run of the master");
        assert_eq!(desired.delta(10), None, "nothing changed");
        for round in 0..300u64 {
            let uid = u8::try_from(round % 200).unwrap() + 1;
            desired.replace(&set(11 + round, &[(uid, round)])).unwrap();
        }
        assert_eq!(desired.delta(10), None, "removals are forgotten");
        assert!(desired.delta(300).is_some());
        assert!(desired.removed.len() <= REMOVED_MAX);
    }

    #[test]
    fn an_adopted_set_goes_on_from_the_nodes_revision() {
        let mut desired = DesiredSet::new(&set(100, &[(1, 3), (2, 4)])).unwrap();
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
        let mut desired = DesiredSet::new(&set(100, &[(1, 3), (2, 4)])).unwrap();
        desired.adopt(60);
        desired.replace(&set(110, &[(1, 3)])).unwrap();
        assert_eq!(desired.delta(80), None, "who knows what was in it");
        assert!(desired.delta(60).is_some() && desired.delta(100).is_some());

        let mut desired = DesiredSet::new(&set(100, &[(1, 3)])).unwrap();
        desired.adopt(60);
        assert!(!desired.disown(101));
        assert!(desired.disown(80), "the node went on before this master started");
        assert_eq!((desired.revision(), desired.delta(60), desired.delta(80)), (100, None, None));
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
            let mut desired = DesiredSet::new(&set(1, &as_list(&history[0]))).unwrap();
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
