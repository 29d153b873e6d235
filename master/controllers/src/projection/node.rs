//! The projection of a Node.

use std::net::IpAddr;
use std::sync::Arc;

use api::time::Timestamp;
use api::view::{self, NodeView, condition};
use api::{Value, meta};
use scheduler::{Effect, Resources, Taint};

use crate::node_lifecycle::Pressure;

use super::{Meta, Projection, Term, intern, time};

/// Labels that say what a node is.
pub mod labels {
    /// Architecture, as images name it; Kubernetes' label.
    pub const ARCH: &str = "kubernetes.io/arch";
    /// Variant of the architecture: `v7`, `v8`.
    pub const ARCH_VARIANT: &str = "pinnace.io/arch-variant";
    /// `false` where the node cannot run OCI containers.
    pub const RUNTIME_OCI: &str = "pinnace.io/runtime-oci";
    /// `true` where the node can run WASM modules.
    pub const RUNTIME_WASM: &str = "pinnace.io/runtime-wasm";
    /// How often the node is to be heard of: `lan`, `wan` or `cellular`.
    pub const PROFILE: &str = "pinnace.io/link-profile";
}

/// Most pods of a node that does not say.
const PODS_MAX_UNSAID: u64 = 110;

/// A Node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Metadata.
    pub meta: Meta,
    /// What the scheduler needs to know.
    pub schedulable: scheduler::Node,
    /// When each of the taints was added, in the order of the taints.
    pub taints_added: Vec<Option<Timestamp>>,
    /// `status` of the condition `Ready`; empty where there is none.
    pub ready: Arc<str>,
    /// What it says it is short of.
    pub pressures: Vec<Pressure>,
    /// `spec.podCIDR`, or empty.
    pub pod_cidr: Arc<str>,
    /// Its own addresses inside the cluster.
    pub internal: Box<[IpAddr]>,
    /// Where it is reached from outside: its external addresses, or else the others.
    pub reached_at: Box<[IpAddr]>,
    /// The folder for what is made for claims; empty before the node has said it.
    pub storage_folder: Arc<str>,
}

impl Projection for Node {
    fn project(object: &Value) -> Self {
        let read: NodeView = view::read(object).unwrap_or_default();
        let own = Meta::of(object);
        let label = |key: &str| meta::label(object, key);
        let allocatable = |name: &str| read.status.allocatable.get(name).copied();
        let amount = |value: i64| u64::try_from(value).unwrap_or(0);
        let mut extended: Vec<(Arc<str>, u64)> = read
            .status
            .allocatable
            .iter()
            .filter(|(name, _)| {
                !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pods")
            })
            .map(|(name, quantity)| (intern(name), amount(quantity.units())))
            .collect();
        extended.sort();
        let ready = condition(&read.status.conditions, "Ready");
        // A taint with an effect we do not know keeps nothing away, as in Kubernetes.
        let taints: Vec<(Taint, Option<Timestamp>)> = read
            .spec
            .taints
            .iter()
            .filter_map(|taint| {
                let effect = Effect::parse(&taint.effect)?;
                let known = Taint { key: intern(&taint.key), value: intern(&taint.value), effect };
                Some((known, time(taint.time_added.as_deref())))
            })
            .collect();
        let schedulable = scheduler::Node {
            name: intern(meta::name(object)),
            labels: own.labels.to_vec(),
            taints: taints.iter().map(|(taint, _)| taint.clone()).collect(),
            unschedulable: read.spec.unschedulable,
            ready: read.is_ready(),
            allocatable: Resources {
                cpu_millis: amount(allocatable("cpu").unwrap_or_default().millis()),
                memory_bytes: amount(allocatable("memory").unwrap_or_default().units()),
                ephemeral_bytes: amount(
                    allocatable("ephemeral-storage").unwrap_or_default().units(),
                ),
                extended,
            },
            pods_max: allocatable("pods").map_or(PODS_MAX_UNSAID, |pods| amount(pods.units())),
            oci: label(labels::RUNTIME_OCI) != Some("false"),
            wasm: label(labels::RUNTIME_WASM) == Some("true"),
            architecture: intern(
                label(labels::ARCH).unwrap_or(&read.status.node_info.architecture),
            ),
            variant: intern(label(labels::ARCH_VARIANT).unwrap_or_default()),
            images: images(object),
        };
        let addresses = |kind: &str| -> Box<[IpAddr]> {
            let known = read.status.addresses.iter().filter(|address| address.kind == kind);
            known.filter_map(|address| address.address.parse().ok()).collect()
        };
        let (internal, external) = (addresses("InternalIP"), addresses("ExternalIP"));
        Self {
            reached_at: if external.is_empty() { internal.clone() } else { external },
            internal,
            meta: own,
            schedulable,
            taints_added: taints.into_iter().map(|(_, added)| added).collect(),
            pressures: Pressure::ALL
                .into_iter()
                .filter(|pressure| {
                    condition(&read.status.conditions, pressure.condition())
                        .is_some_and(|condition| condition.status == "True")
                })
                .collect(),
            ready: intern(ready.map_or("", |ready| &ready.status)),
            pod_cidr: intern(&read.spec.pod_cidr),
            storage_folder: intern(
                meta::annotation(object, api::storage::STORAGE_FOLDER).unwrap_or_default(),
            ),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, _: &mut dyn FnMut(Term)) {}
}

/// The names in `status.images`, sorted.
fn images(object: &Value) -> Vec<Arc<str>> {
    let images = object.pointer("/status/images").and_then(Value::as_array);
    let names = images.into_iter().flatten().filter_map(|image| image.get("names")?.as_array());
    let mut names: Vec<Arc<str>> = names.flatten().filter_map(Value::as_str).map(intern).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_node_offers_is_read() {
        let node = Node::project(&json!({
            "metadata": {"name": "n1", "labels": {
                "kubernetes.io/arch": "arm", "pinnace.io/arch-variant": "v7", "pinnace.io/runtime-wasm": "true"}},
            "spec": {"podCIDR": "10.42.1.0/24", "unschedulable": true, "taints": [
                {"key": "odd", "effect": "Whatever"},
                {"key": "k", "effect": "NoExecute", "timeAdded": "2026-11-23T07:36:35Z"}]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "50", "gpio/17": 1},
                "conditions": [{"type": "Ready", "status": "True"}],
                "images": [{"names": ["b", "a"]}, {"names": ["a"]}]},
        }));
        let scheduler::Node { ready, oci, wasm, pods_max, unschedulable, .. } = node.schedulable;
        assert!(ready && oci && wasm && unschedulable);
        assert_eq!(pods_max, 50);
        assert_eq!((&*node.schedulable.architecture, &*node.schedulable.variant), ("arm", "v7"));
        assert_eq!(node.schedulable.allocatable.extended("gpio/17"), 1);
        assert_eq!((node.schedulable.taints.len(), node.taints_added.len()), (1, 1));
        assert_eq!(node.schedulable.images, ["a".into(), "b".into()]);
        assert_eq!((&*node.ready, &*node.pod_cidr), ("True", "10.42.1.0/24"));
    }
}
