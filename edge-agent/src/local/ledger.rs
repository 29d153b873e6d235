//! Revisions for objects that are stored nowhere: which version of a pod a client has
//! seen, and what changed since.
//!
//! Nothing is noted while nobody asks. Whoever does brings the objects of this moment
//! ([`Ledger::revise`]): one that differs from the last time, by its hash, gets a new
//! revision, and one that is missing leaves a line for those who saw it. Pure.
//!
//! Revisions begin at the time since boot, so that those of an agent before are known
//! to be old.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use api::Value;
use serde_json::json;
use wire::Uid;

/// Objects that are gone and still known, at most.
const GONE_MAX: usize = 64;
/// Revisions a millisecond, at most, so that the next agent begins above all of ours.
const PER_MS: u64 = 1000;

/// An object at one revision.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) uid: Uid,
    /// When it was first seen.
    pub(super) made: u64,
    /// When it last changed.
    pub(super) revision: u64,
    /// The object, with its revision in it.
    pub(super) object: Value,
}

/// What is known of one object.
#[derive(Clone, Debug)]
struct Known {
    hash: u64,
    made: u64,
    revision: u64,
    /// What a client needs to forget it.
    metadata: Value,
}

/// What a watch that begins at a revision has missed.
#[derive(Debug, Default)]
pub(super) struct Missed {
    /// Objects that went since, with their metadata only.
    pub(super) gone: Vec<Value>,
}

/// The revisions of all objects.
#[derive(Debug)]
pub(super) struct Ledger {
    revision: u64,
    /// Changes after this are known.
    floor: u64,
    known: BTreeMap<Uid, Known>,
    gone: VecDeque<(u64, Value)>,
}

impl Ledger {
    /// An empty one; `mono` is the time since boot.
    pub(super) fn new(mono: Duration) -> Self {
        let ms = u64::try_from(mono.as_millis()).unwrap_or(u64::MAX / PER_MS).max(1);
        let revision = ms.saturating_mul(PER_MS);
        Self { revision, floor: revision, known: BTreeMap::new(), gone: VecDeque::new() }
    }

    /// The newest revision.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes in what there is now, and gives it back with revisions.
    pub(super) fn revise(&mut self, objects: Vec<(Uid, Value)>) -> Vec<Item> {
        let mut before = std::mem::take(&mut self.known);
        let mut items = Vec::with_capacity(objects.len());
        for (uid, mut object) in objects {
            let hash = hash(&object);
            let known = match before.remove(&uid) {
                Some(known) if known.hash == hash => known,
                other => {
                    self.revision += 1;
                    Known {
                        hash,
                        made: other.map_or(self.revision, |known| known.made),
                        revision: self.revision,
                        metadata: metadata(&object),
                    }
                }
            };
            object["metadata"]["resourceVersion"] = json!(known.revision.to_string());
            items.push(Item { uid, made: known.made, revision: known.revision, object });
            self.known.insert(uid, known);
        }
        for (_, gone) in before {
            self.revision += 1;
            let mut object = gone.metadata;
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            self.gone.push_back((self.revision, object));
        }
        while self.gone.len() > GONE_MAX {
            if let Some((revision, _)) = self.gone.pop_front() {
                self.floor = revision;
            }
        }
        items
    }

    /// What went after `revision`.
    ///
    /// # Errors
    /// The oldest revision from which that is known: `revision` is of an agent before
    /// this, or too much has happened since.
    pub(super) fn since(&self, revision: u64) -> Result<Missed, u64> {
        if revision < self.floor || revision > self.revision {
            return Err(self.floor);
        }
        let gone = self.gone.iter().filter(|(at, _)| *at > revision);
        Ok(Missed { gone: gone.map(|(_, object)| object.clone()).collect() })
    }
}

fn metadata(object: &Value) -> Value {
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "creationTimestamp", "labels"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata[key] = value.clone();
        }
    }
    json!({"kind": object["kind"], "apiVersion": object["apiVersion"], "metadata": metadata})
}

fn hash(object: &Value) -> u64 {
    struct Bytes<'a>(&'a mut std::hash::DefaultHasher);
    impl std::io::Write for Bytes<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = std::hash::DefaultHasher::new();
    if serde_json::to_writer(Bytes(&mut hasher), object).is_err() {
        // A value always serialises.
        0_u8.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, n: u32) -> Value {
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "status": {"n": n}})
    }

    #[test]
    fn only_what_changed_gets_a_new_revision() {
        let mut ledger = Ledger::new(Duration::from_millis(5));
        let first = ledger.revise(vec![([1; 16], object("a", 1)), ([2; 16], object("b", 1))]);
        assert_eq!(first.iter().map(|i| i.revision).collect::<Vec<_>>(), [5001, 5002]);
        assert_eq!(first[1].object["metadata"]["resourceVersion"], "5002");
        let again = ledger.revise(vec![([1; 16], object("a", 1)), ([2; 16], object("b", 1))]);
        assert_eq!((again, ledger.revision()), (first, 5002));
        let changed = ledger.revise(vec![([1; 16], object("a", 2)), ([2; 16], object("b", 1))]);
        assert_eq!((changed[0].made, changed[0].revision), (5001, 5003));
        assert_eq!(changed[1].revision, 5002);
    }

    #[test]
    fn what_went_is_told_to_those_who_saw_it() {
        let mut ledger = Ledger::new(Duration::ZERO);
        ledger.revise(vec![([1; 16], object("a", 1))]);
        let seen = ledger.revision();
        assert!(ledger.revise(Vec::new()).is_empty());
        let missed = ledger.since(seen).unwrap();
        assert_eq!(missed.gone[0]["metadata"]["name"], "a");
        assert!(ledger.since(ledger.revision()).unwrap().gone.is_empty());
        // Of an agent before, of the future, and too long ago.
        assert_eq!(ledger.since(0).unwrap_err(), 1000);
        ledger.since(ledger.revision() + 1).unwrap_err();
        for n in 0..=GONE_MAX {
            ledger.revise(vec![([2; 16], object("b", u32::try_from(n).unwrap()))]);
            ledger.revise(Vec::new());
        }
        ledger.since(seen).unwrap_err();
        assert!(ledger.gone.len() <= GONE_MAX);
    }

    #[test]
    fn the_next_agent_begins_above() {
        let mut ledger = Ledger::new(Duration::from_millis(10));
        for n in 0..100 {
            ledger.revise(vec![([1; 16], object("a", n))]);
        }
        assert!(Ledger::new(Duration::from_millis(11)).revision() > ledger.revision());
    }
}
