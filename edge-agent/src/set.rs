//! The node's set on disk, and what it says about each pod.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use wire::Uid;
use wire::pod::SourceV1;
use wire::set::{BodyV1, NodeConfigV1, SnapshotV1};

use crate::durable::{self, DurableError, Keep, Magic};
use crate::pods::{Desired, KeySet, Keys};
use crate::seal::Seal;

const MAGIC: Magic = *b"PNset\0\0\x02";

/// Largest set, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// Stores a set, sealed, for it holds Secrets. Blocks until it is on the disk.
///
/// # Errors
/// The disk is full or broken; the set before is still there then.
pub fn store(path: &Path, set: &SnapshotV1, seal: &Seal) -> Result<(), DurableError> {
    durable::write_sealed(path, MAGIC, set, Keep::ThroughPowerLoss, seal)
}

/// Reads the set back; `None` if there is none.
///
/// # Errors
/// It is damaged, or the key is another: the master is to send it again.
pub fn load(path: &Path, seal: &Seal) -> Result<Option<SnapshotV1>, DurableError> {
    durable::read_sealed(path, MAGIC, BYTES_MAX, seal)
}

/// How the node is set up, if the set says so.
#[must_use]
pub fn node_config(set: &SnapshotV1) -> Option<&NodeConfigV1> {
    set.items.iter().find_map(|item| match &item.body {
        BodyV1::Node(config) => Some(config),
        _ => None,
    })
}

/// Whether pods that the set does not name are kept: its store was restored from
/// a backup, and no operator has confirmed yet.
#[must_use]
pub fn holds_unknown(set: &SnapshotV1) -> bool {
    node_config(set).is_some_and(|config| config.hold_unknown)
}

/// Every pod of the set, with the ConfigMaps and Secrets it uses.
#[must_use]
pub fn pods(set: &SnapshotV1) -> BTreeMap<Uid, Desired> {
    let mut objects: BTreeMap<(&str, &SourceV1), Keys> = BTreeMap::new();
    for item in &set.items {
        if let BodyV1::Keys(keys) = &item.body {
            let data = Arc::new(keys.clone());
            objects.insert(
                (&keys.namespace, &keys.source),
                Keys { uid: item.uid, generation: item.generation, data },
            );
        }
    }
    set.items
        .iter()
        .filter_map(|item| {
            let BodyV1::Pod(pod) = &item.body else { return None };
            let pull = pod.pull_secrets.iter().map(|name| SourceV1::Secret(name.clone()));
            let pull: Vec<SourceV1> = pull.collect();
            let keys: KeySet = Desired::sources(pod)
                .chain(&pull)
                .filter_map(|source| {
                    let keys = objects.get(&(pod.namespace.as_str(), source))?;
                    Some((source.clone(), keys.clone()))
                })
                .collect();
            let desired = Desired {
                pod: Arc::new((**pod).clone()),
                generation: item.generation,
                present: true,
                keys,
                tokens: crate::tokens::Held::default(),
                eviction: None,
                restarts: 0,
            };
            Some((pod.uid, desired))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{container, pod};
    use wire::pod::{EnvFromV1, KeysV1};
    use wire::set::ItemV1;

    fn keys_item(namespace: &str, name: &str) -> ItemV1 {
        ItemV1 {
            uid: [2; 16],
            generation: 4,
            body: BodyV1::Keys(KeysV1 {
                namespace: namespace.into(),
                source: SourceV1::ConfigMap(name.into()),
                data: vec![("k".into(), b"v".to_vec())],
                ext: vec![],
            }),
        }
    }

    fn set() -> SnapshotV1 {
        let mut c = container("a");
        c.env_from.push(EnvFromV1 {
            prefix: String::new(),
            source: SourceV1::ConfigMap("used".into()),
            optional: false,
        });
        SnapshotV1 {
            epoch: 1,
            revision: 9,
            items: vec![
                ItemV1 { uid: [7; 16], generation: 3, body: BodyV1::Pod(Box::new(pod(vec![c]))) },
                keys_item("default", "used"),
                keys_item("default", "other"),
                keys_item("elsewhere", "used"),
            ],
        }
    }

    #[test]
    fn a_pod_gets_the_objects_of_its_namespace_that_it_names() {
        let all = pods(&set());
        let pod = &all[&[7; 16]];
        assert_eq!(pod.generation, 3);
        let names: Vec<&SourceV1> = pod.keys.keys().collect();
        assert_eq!(names, [&SourceV1::ConfigMap("used".into())]);
        assert_eq!(pod.keys.values().next().unwrap().get("k"), Some(&b"v"[..]));
    }

    #[test]
    fn a_stored_set_reads_back_and_a_damaged_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        let seal = Seal::open(folder.path(), None).unwrap();
        assert!(load(&path, &seal).unwrap().is_none());
        store(&path, &set(), &seal).unwrap();
        assert_eq!(load(&path, &seal).unwrap(), Some(set()));
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(4).any(|part| part == b"used"), "a name can be read");
        let other = tempfile::tempdir().unwrap();
        let other = Seal::open(other.path(), None).unwrap();
        let error = load(&path, &other).unwrap_err().to_string();
        assert!(error.contains("another key"), "{error}");
        let last = bytes.len() - 1;
        bytes[last] ^= 0x80;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(load(&path, &seal), Err(DurableError::Damaged { .. })));
    }
}
