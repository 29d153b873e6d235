//! Devices that containers hold: given out exclusively, remembered on the disk.
//!
//! A container keeps the units it was given as long as its pod lives, over its
//! restarts, those of the agent and those of the board. One file holds it all:
//! `state_dir/devices`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use wire::Uid;
use wire::pod::{ContainerV1, PodV1};

use crate::durable::{self, Keep, Magic};
use crate::policy::DeviceClass;

const MAGIC: Magic = *b"PNdev\0\0\x01";
const BYTES_MAX: u64 = 1 << 20;

/// One unit, by the name of its class and its first node.
type Unit = (String, PathBuf);
/// Which units each container of each pod holds.
type Held = BTreeMap<Uid, BTreeMap<String, Vec<Unit>>>;

/// The devices of this node.
#[derive(Debug, Default)]
pub struct Devices {
    path: PathBuf,
    classes: BTreeMap<String, DeviceClass>,
    held: Mutex<Held>,
}

impl Devices {
    /// The devices of a configuration, given out as the file says. A file that is
    /// damaged is as good as none: containers that run keep what they opened.
    #[must_use]
    pub fn open(path: PathBuf, classes: BTreeMap<String, DeviceClass>) -> Self {
        let held = match durable::read(&path, MAGIC, BYTES_MAX) {
            Ok(held) => held.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "which container holds which device is not known");
                Held::new()
            }
        };
        Self { path, classes, held: Mutex::new(held) }
    }

    /// How many there are of each name.
    #[must_use]
    pub fn capacity(&self) -> Vec<(String, u64)> {
        self.classes.iter().map(|(name, class)| (name.clone(), class.capacity())).collect()
    }

    /// The device nodes of a container, given to it now or before.
    ///
    /// # Errors
    /// A sentence: the node has not so many, or they are taken.
    pub fn give(&self, pod: &PodV1, container: &ContainerV1) -> Result<Vec<PathBuf>, String> {
        if container.devices.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut units = held
            .get(&pod.uid)
            .and_then(|pod| pod.get(&container.name))
            .cloned()
            .unwrap_or_default();
        for (name, count) in &container.devices {
            let class = self.classes.get(name).ok_or_else(|| {
                format!("this node has no devices {name:?}: its configuration names none")
            })?;
            // What the configuration no longer has cannot be held.
            let exists =
                |unit: &Unit| class.units.iter().any(|nodes| nodes.first() == Some(&unit.1));
            units.retain(|unit| unit.0 != *name || exists(unit));
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            while units.iter().filter(|unit| unit.0 == *name).count() < count {
                let free = free(class, name, &held, &units).ok_or_else(|| {
                    format!("not enough devices {name:?}: {count} asked for, the rest is taken")
                })?;
                units.push(free);
            }
        }
        let nodes = units.iter().flat_map(|unit| self.nodes(unit)).collect();
        let of_pod = held.entry(pod.uid).or_default();
        if of_pod.get(&container.name) != Some(&units) {
            of_pod.insert(container.name.clone(), units);
            self.store(&held)?;
        }
        Ok(nodes)
    }

    /// Takes back what a pod held.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn take_back(&self, uid: &Uid) -> Result<(), String> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.remove(uid).is_some() { self.store(&held) } else { Ok(()) }
    }

    /// Takes back what pods held that are no longer known.
    pub fn keep_only(&self, known: &[Uid]) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held.len();
        held.retain(|uid, _| known.contains(uid));
        if held.len() != before
            && let Err(error) = self.store(&held)
        {
            tracing::warn!("{error}");
        }
    }

    fn store(&self, held: &Held) -> Result<(), String> {
        durable::write(&self.path, MAGIC, held, Keep::ThroughPowerLoss)
            .map_err(|error| format!("cannot write down who holds which device: {error}"))
    }

    fn nodes(&self, (name, first): &Unit) -> Vec<PathBuf> {
        let units = self.classes.get(name).map(|class| class.units.as_slice()).unwrap_or_default();
        units.iter().find(|nodes| nodes.first() == Some(first)).cloned().unwrap_or_default()
    }
}

/// A unit that has room for one more and that `own` does not hold; the emptiest first.
fn free(class: &DeviceClass, name: &str, held: &Held, own: &[Unit]) -> Option<Unit> {
    let n_holders = |first: &PathBuf| {
        let all = held.values().flat_map(BTreeMap::values);
        all.filter(|units| units.iter().any(|unit| unit.0 == name && unit.1 == *first)).count()
    };
    let most = usize::try_from(class.shared).unwrap_or(usize::MAX);
    class
        .units
        .iter()
        .filter_map(|nodes| nodes.first())
        .filter(|first| !own.iter().any(|unit| unit.0 == name && unit.1 == **first))
        .map(|first| (n_holders(first), first))
        .filter(|(n, _)| *n < most)
        .min_by_key(|(n, _)| *n)
        .map(|(_, first)| (name.to_owned(), first.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{container, pod};

    fn classes(shared: u32) -> BTreeMap<String, DeviceClass> {
        let units = vec![vec!["/dev/a".into(), "/dev/a2".into()], vec!["/dev/b".into()]];
        [("x.io/d".to_owned(), DeviceClass { units, shared })].into()
    }

    fn asking(uid: u8, count: u32) -> (PodV1, ContainerV1) {
        let mut container = container("c");
        container.devices = vec![("x.io/d".into(), count)];
        let mut pod = pod(vec![container.clone()]);
        pod.uid = [uid; 16];
        (pod, container)
    }

    #[test]
    fn units_are_exclusive_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devices");
        let devices = Devices::open(path.clone(), classes(1));
        assert_eq!(devices.capacity(), [("x.io/d".to_owned(), 2)]);
        let give = |devices: &Devices, uid, count| {
            let (pod, container) = asking(uid, count);
            devices.give(&pod, &container)
        };
        let nodes = |text: &str| text.split(' ').map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(give(&devices, 1, 1).unwrap(), nodes("/dev/a /dev/a2"));
        assert_eq!(give(&devices, 1, 1).unwrap(), nodes("/dev/a /dev/a2"), "the same again");
        assert_eq!(give(&devices, 2, 1).unwrap(), nodes("/dev/b"));
        assert!(give(&devices, 3, 1).unwrap_err().contains("not enough"));
        // Another agent, after a power cut.
        let devices = Devices::open(path.clone(), classes(1));
        assert_eq!(give(&devices, 2, 1).unwrap(), nodes("/dev/b"));
        devices.take_back(&[1; 16]).unwrap();
        assert_eq!(give(&devices, 3, 1).unwrap(), nodes("/dev/a /dev/a2"));
        devices.keep_only(&[]);
        assert_eq!(give(&devices, 4, 2).unwrap(), nodes("/dev/a /dev/a2 /dev/b"));
        assert!(give(&devices, 5, 3).unwrap_err().contains("not enough"));
        std::fs::write(&path, "garbage").unwrap();
        give(&Devices::open(path, classes(1)), 6, 1).unwrap();
    }

    #[test]
    fn a_shared_unit_has_several_holders() {
        let folder = tempfile::tempdir().unwrap();
        let devices = Devices::open(folder.path().join("devices"), classes(2));
        let give = |uid| {
            let (pod, container) = asking(uid, 1);
            devices.give(&pod, &container).map(|nodes| nodes[0].clone())
        };
        let given: Vec<_> = (1..=4).map(|uid| give(uid).unwrap()).collect();
        assert_eq!(given, ["/dev/a", "/dev/b", "/dev/a", "/dev/b"].map(PathBuf::from));
        give(5).unwrap_err();
    }
}
