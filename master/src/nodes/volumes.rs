//! What a pod's claims are on its node, and which folders a node is to remove.
//!
//! ```text
//!  claim or volume changes ──► its pods are lowered again
//!  volume is deleted ──► in its node's set ──► the node says it is gone ──► its finalizer goes
//! ```
//!
//! A volume is removed only by the node it is on, and only that node's word
//! counts for it. Who binds and deletes volumes is `controllers::volumes`.

use std::collections::BTreeSet;

use api::strategy::VOLUME_PROTECTION;
use api::{ObjectKey, Value, meta, storage};
use apiserver::{Api, Identity, Reason, Status, Target, WriteOptions};
use controllers::projection::{Node, Projection as _, Volume};
use lower::{Claimed, Claims};
use serde_json::json;
use tracing::{info, warn};

use super::{Changed, Nodes};
use crate::enrol::resource;

/// Tries against other writers of a volume.
const TRIES: usize = 5;

impl Nodes {
    /// What the claims of a pod are now.
    pub(super) fn claims_of(&self, pod: &Value) -> Claims {
        let namespace = meta::namespace(pod);
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let claimed = |name: &str| {
            let key = ObjectKey::new(namespace, name);
            let claim = self.read("PersistentVolumeClaim", &key);
            let volume = claim.as_ref().and_then(|claim| {
                let name = claim["spec"]["volumeName"].as_str().filter(|name| !name.is_empty())?;
                self.read("PersistentVolume", &ObjectKey::new("", name))
            });
            let labels = self.nodes.get(node).map(|state| &state.labels);
            if let Some(volume) = &volume
                && labels.is_some_and(|labels| !is_reached_from(volume, node, labels))
            {
                // Put there past the scheduler: an empty folder would look like lost data.
                let volume = meta::name(volume);
                return Claimed::Waits(format!(
                    "MountVolume.NodeAffinity check failed for volume \"{volume}\" : no matching \
                     NodeSelectorTerms"
                ));
            }
            lower::claimed(namespace, name, claim.as_ref(), |_| volume)
        };
        let names = lower::claim_names(pod).into_iter();
        names.map(|name| (name.clone(), claimed(&name))).collect()
    }

    /// Lowers the pods of a claim again.
    pub(super) fn claim_changed(&mut self, claim: &ObjectKey) {
        for pod in self.index.pods_with_claim(claim) {
            let object = self.read("Pod", &pod).map(Box::new);
            self.changed(Changed::Pod(pod, object));
        }
    }

    /// A volume as it is now, or `None` once it is gone.
    pub(super) fn volume_changed(&mut self, name: &str, volume: Option<&Value>) {
        let before = match volume.and_then(to_remove) {
            Some(node) => self.removals.insert(name.to_owned(), node),
            None => self.removals.remove(name),
        };
        let now = self.removals.get(name).cloned();
        if before != now {
            self.dirty.extend(before);
            self.dirty.extend(now.clone());
        }
        if let Some(node) = now {
            self.settle_removals(&node);
        }
        let claim = volume.map(|volume| &volume["spec"]["claimRef"]);
        if let Some((namespace, claim)) =
            claim.and_then(|claim| Some((claim["namespace"].as_str()?, claim["name"].as_str()?)))
        {
            self.claim_changed(&ObjectKey::new(namespace, claim));
        }
    }

    /// Volumes that a complete list does not name are gone.
    pub(super) fn volumes_listed(&mut self, named: &BTreeSet<ObjectKey>) {
        let gone: Vec<String> = self
            .removals
            .keys()
            .filter(|name| !named.contains(&ObjectKey::new("", name)))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.volume_changed(name, None));
    }

    /// Volumes that a node is to remove.
    pub(super) fn removals_of(&self, node: &str) -> Vec<String> {
        let own = self.removals.iter().filter(|(_, other)| *other == node);
        own.map(|(name, _)| name.clone()).collect()
    }

    /// Lets volumes go whose node has said that their folders are gone.
    pub(super) fn settle_removals(&self, node: &str) {
        let Some(info) = self.nodes.get(node).and_then(|state| state.info.as_ref()) else {
            return;
        };
        for name in &info.removed_volumes {
            // Another node's word does not count.
            if self.removals.get(name).is_some_and(|other| other == node) {
                tokio::spawn(let_go(self.setup.api.clone(), node.to_owned(), name.clone()));
            }
        }
    }
}

/// Whether a node with these labels reaches a volume.
fn is_reached_from(volume: &Value, node: &str, labels: &Value) -> bool {
    let node = Node::project(&json!({"metadata": {"name": node, "labels": labels}}));
    node.schedulable.meets(&Volume::project(volume).affinity)
}

/// The node that is to remove the folder of a volume, if that is its turn: nothing
/// but the folder keeps the volume.
fn to_remove(volume: &Value) -> Option<String> {
    const HOST: &str =
        "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0";
    let finalizers = meta::finalizers(volume);
    let is_due = meta::is_terminating(volume)
        && storage::is_local_path(volume)
        && finalizers.contains(&storage::LOCAL_PATH)
        && !finalizers.contains(&VOLUME_PROTECTION)
        && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
    let host = volume.pointer(HOST).and_then(Value::as_str).filter(|_| is_due)?;
    Some(host.to_owned())
}

/// Takes the finalizer from a volume whose folder is gone.
async fn let_go(api: Api, node: String, name: String) {
    for _ in 0..TRIES {
        match try_let_go(&api, &name).await {
            Ok(()) => {
                info!(node, volume = name, "the folder of a volume is removed");
                return;
            }
            Err(status) if status.reason == Reason::NotFound => return,
            Err(status) if status.reason == Reason::Conflict => {}
            Err(status) => {
                warn!(node, volume = name, error = status.message, "a volume is not let go");
                return;
            }
        }
    }
}

async fn try_let_go(api: &Api, name: &str) -> Result<(), Status> {
    let who = Identity::master("pinnace:nodes");
    let target = Target::object(resource("PersistentVolume"), "", name);
    let mut volume = api.get_value(&who, &target)?;
    if to_remove(&volume).is_none() {
        return Ok(());
    }
    if let Some(list) = volume["metadata"]["finalizers"].as_array_mut() {
        list.retain(|finalizer| finalizer != storage::LOCAL_PATH);
    }
    api.update(&who, &target, volume, &WriteOptions::by("pinnace-nodes")).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_reached_from_its_own_node() {
        let volume = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]}}}});
        assert!(is_reached_from(&volume, "a", &json!({"disk": "ssd"})));
        assert!(!is_reached_from(&volume, "a", &json!({"disk": "sd"})));
        assert!(!is_reached_from(&volume, "a", &Value::Null));
        assert!(is_reached_from(&json!({"spec": {}}), "a", &Value::Null), "a hostPath");
    }

    #[test]
    fn a_folder_is_removed_when_nothing_else_keeps_its_volume() {
        let volume = |change: &dyn Fn(&mut Value)| {
            let mut volume = json!({
                "metadata": {"name": "pvc-1", "deletionTimestamp": "2026-01-01T00:00:00Z",
                    "finalizers": [storage::LOCAL_PATH],
                    "annotations": {storage::PROVISIONED_BY: storage::LOCAL_PATH}},
                "spec": {"persistentVolumeReclaimPolicy": "Delete",
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["pi"]}]}]}}},
            });
            change(&mut volume);
            to_remove(&volume)
        };
        assert_eq!(volume(&|_| ()), Some("pi".to_owned()));
        let kept: [&dyn Fn(&mut Value); 5] = [
            &|v| v["metadata"]["deletionTimestamp"] = Value::Null,
            &|v| v["metadata"]["finalizers"] = json!([storage::LOCAL_PATH, VOLUME_PROTECTION]),
            &|v| v["metadata"]["finalizers"] = json!([]),
            &|v| v["metadata"]["annotations"] = json!({}),
            &|v| v["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain"),
        ];
        for change in kept {
            assert_eq!(volume(change), None);
        }
    }
}
