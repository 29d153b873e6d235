//! The views of persistent storage: volumes, claims and their classes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::HostPath;
use crate::meta::ObjectMeta;
use crate::quantity::Quantity;

/// A PersistentVolume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PersistentVolumeView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it is.
    pub spec: VolumeSpec,
    /// Where it is in its life.
    pub status: Phased,
}

/// What a volume is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeSpec {
    /// How much it holds, under `storage`.
    pub capacity: BTreeMap<String, Quantity>,
    /// How it may be mounted.
    pub access_modes: Vec<String>,
    /// `Retain` or `Delete`.
    pub persistent_volume_reclaim_policy: String,
    /// Its class; empty for none.
    pub storage_class_name: String,
    /// `Filesystem`.
    pub volume_mode: String,
    /// The claim it is, or is to be, bound to.
    pub claim_ref: Option<ClaimRef>,
    /// A folder of the nodes that `node_affinity` names.
    pub local: Option<LocalFolder>,
    /// A folder of whichever node.
    pub host_path: Option<HostPath>,
    /// Where it can be reached from, as written.
    pub node_affinity: Option<Value>,
}

/// The claim a volume is, or is to be, bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimRef {
    /// The claim's namespace.
    pub namespace: String,
    /// The claim's name.
    pub name: String,
    /// The claim's identity; empty for whichever has that name.
    pub uid: String,
}

/// A folder of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LocalFolder {
    /// Its absolute path.
    pub path: String,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PersistentVolumeClaimView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it asks for.
    pub spec: ClaimSpec,
    /// Where it is in its life.
    pub status: Phased,
}

/// What a claim asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSpec {
    /// How it wants to be mounted.
    pub access_modes: Vec<String>,
    /// How much it wants, under `requests.storage`.
    pub resources: super::ResourceRequirements,
    /// The class; `None` for the default, empty for none.
    pub storage_class_name: Option<String>,
    /// `Filesystem`.
    pub volume_mode: String,
    /// The volume it is, or is to be, bound to; empty for any.
    pub volume_name: String,
    /// Which volumes may be taken, as written.
    pub selector: Option<Value>,
}

/// A status that is a phase, with what else is said of a volume or claim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Phased {
    /// `Available`, `Bound`, `Released`, `Failed`; `Pending`, `Bound`, `Lost`.
    pub phase: String,
    /// Why, for people.
    pub message: String,
    /// What a claim has, under `storage`.
    pub capacity: BTreeMap<String, Quantity>,
    /// How a claim may be mounted.
    pub access_modes: Vec<String>,
}

/// A StorageClass.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StorageClassView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Who makes its volumes.
    pub provisioner: String,
    /// What becomes of a volume it made once the claim is gone.
    pub reclaim_policy: String,
    /// `Immediate` or `WaitForFirstConsumer`.
    pub volume_binding_mode: String,
    /// Where its volumes may be, as written; empty for anywhere.
    pub allowed_topologies: Vec<Value>,
}
