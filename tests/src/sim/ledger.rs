//! What must be true, whatever happens: kept outside master and boards, and
//! checked at every step.

use std::collections::{BTreeMap, BTreeSet};

use wire::set::{BodyV1, SnapshotV1};
use wire::{Epoch, Uid};

/// The pods of a set, as uid → generation.
pub(crate) fn pods_of(set: &SnapshotV1) -> BTreeMap<Uid, u64> {
    set.items
        .iter()
        .filter(|item| matches!(item.body, BodyV1::Pod(_)))
        .map(|item| (item.uid, item.generation))
        .collect()
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Every set that a master has made, by node, epoch and revision.
    made: BTreeMap<(String, Epoch, u64), BTreeMap<Uid, u64>>,
    /// Reports that were in a store, by boot.
    stored: BTreeSet<(Uid, u64)>,
    executed: BTreeSet<[u8; 16]>,
    pub(crate) n_executed: u64,
    /// The first thing that went wrong.
    pub(crate) broken: Option<String>,
}

impl Ledger {
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(otherwise());
        }
    }

    /// A master has made this set.
    pub(crate) fn made(&mut self, node: &str, set: &SnapshotV1) {
        self.made.insert((node.into(), set.epoch, set.revision), all_of(set));
    }

    /// A board has taken this set: it must be one that was made, item by item.
    pub(crate) fn check_applied(&mut self, node: &str, set: &SnapshotV1) {
        let made = self.made.get(&(node.into(), set.epoch, set.revision)) == Some(&all_of(set));
        self.check(made, || {
            format!("{node}: set {} of epoch {:x} was never made so", set.revision, set.epoch)
        });
    }

    pub(crate) fn stored(&mut self, boot_id: Uid, seq: u64) {
        self.stored.insert((boot_id, seq));
    }

    pub(crate) fn check_acknowledged(&mut self, boot_id: Uid, seq: u64) {
        let stored = self.stored.contains(&(boot_id, seq));
        self.check(stored, || format!("report {seq} of {boot_id:?} acknowledged, not stored"));
    }

    pub(crate) fn executed(&mut self, node: &str, ticket: [u8; 16]) {
        self.n_executed += 1;
        let first = self.executed.insert(ticket);
        self.check(first, || format!("{node}: command {ticket:?} ran twice"));
    }
}

fn all_of(set: &SnapshotV1) -> BTreeMap<Uid, u64> {
    set.items.iter().map(|item| (item.uid, item.generation)).collect()
}
