//! A node, as the scheduler sees it.

use std::sync::Arc;

use api::selector::Requirement;

use crate::demand::Effect;
use crate::resources::Resources;

/// One of `spec.taints`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taint {
    /// Key.
    pub key: Arc<str>,
    /// Value, or empty.
    pub value: Arc<str>,
    /// What it keeps away.
    pub effect: Effect,
}

/// What a node is and offers, without what runs on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's name, unique in the cluster.
    pub name: Arc<str>,
    /// Labels, sorted by key.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`, as `kubectl cordon` sets it.
    pub unschedulable: bool,
    /// Whether its condition `Ready` is `True`.
    pub ready: bool,
    /// What pods may take.
    pub allocatable: Resources,
    /// Most pods.
    pub pods_max: u64,
    /// Whether OCI containers can run.
    pub oci: bool,
    /// Whether WASM modules can run.
    pub wasm: bool,
    /// `amd64`, `arm64`, `arm`; empty where unknown.
    pub architecture: Arc<str>,
    /// `v7`, `v8` or empty.
    pub variant: Arc<str>,
    /// Images the node holds, sorted.
    pub images: Vec<Arc<str>>,
}

/// Conditions on a node: one of these lists must hold; empty for any node.
pub type Affinity = Vec<Vec<Requirement>>;

impl Node {
    /// Whether the node is one of those that `affinity` names.
    #[must_use]
    pub fn meets(&self, affinity: &[Vec<Requirement>]) -> bool {
        let holds = |term: &Vec<Requirement>| {
            term.iter().all(|requirement| match requirement.key.as_str() {
                // `matchFields` knows only this field.
                "metadata.name" => requirement.matches(Some(&self.name)),
                key => requirement.matches(self.label(key)),
            })
        };
        affinity.is_empty() || affinity.iter().any(holds)
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }
}
