//! The views of a pod's volumes.

use serde::Deserialize;

use super::pod::{FieldRef, ResourceFieldRef};
use crate::quantity::Quantity;

/// A volume; one source is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// Files from a ConfigMap.
    pub config_map: Option<VolumeConfigMap>,
    /// Files from a Secret.
    pub secret: Option<VolumeSecret>,
    /// An empty folder that lives as long as the pod.
    pub empty_dir: Option<EmptyDir>,
    /// A file or folder of the node.
    pub host_path: Option<HostPath>,
    /// Fields of the pod.
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<VolumeDownward>,
    /// Several sources in one folder.
    pub projected: Option<VolumeProjected>,
    /// A PersistentVolumeClaim of the pod's namespace.
    pub persistent_volume_claim: Option<VolumeClaim>,
}

/// Files from a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeConfigMap {
    /// The ConfigMap's name.
    pub name: String,
    /// Which keys; all where it is empty.
    pub items: Vec<KeyToPath>,
    /// Mode of the files.
    pub default_mode: Option<u32>,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// Files from a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeSecret {
    /// The Secret's name.
    pub secret_name: String,
    /// Which keys; all where it is empty.
    pub items: Vec<KeyToPath>,
    /// Mode of the files.
    pub default_mode: Option<u32>,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// One key as one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeyToPath {
    /// The key.
    pub key: String,
    /// The file, below the volume.
    pub path: String,
    /// Mode of the file.
    pub mode: Option<u32>,
}

/// An empty folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EmptyDir {
    /// Empty for the disk, `Memory` for tmpfs.
    pub medium: String,
    /// How large it may become.
    pub size_limit: Option<Quantity>,
}

/// A file or folder of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostPath {
    /// Its absolute path.
    pub path: String,
    /// What must be there, or is made; empty for anything.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeClaim {
    /// Its name.
    pub claim_name: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Fields of the pod as files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeDownward {
    /// The files.
    pub items: Vec<DownwardItem>,
    /// Mode of the files.
    pub default_mode: Option<u32>,
}

/// A field of the pod as a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownwardItem {
    /// The file, below the volume.
    pub path: String,
    /// Mode of the file.
    pub mode: Option<u32>,
    /// A field of the pod.
    pub field_ref: Option<FieldRef>,
    /// A container's request or limit.
    pub resource_field_ref: Option<ResourceFieldRef>,
}

/// Several sources in one folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeProjected {
    /// The sources, in order.
    pub sources: Vec<Projection>,
    /// Mode of the files.
    pub default_mode: Option<u32>,
}

/// One source of a projected volume; one of them is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Projection {
    /// Keys of a ConfigMap.
    pub config_map: Option<ProjectedKeys>,
    /// Keys of a Secret.
    pub secret: Option<ProjectedKeys>,
    /// Fields of the pod.
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<VolumeDownward>,
    /// A token of the pod's ServiceAccount.
    pub service_account_token: Option<ProjectedToken>,
}

/// Keys of a ConfigMap or Secret in a projected volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProjectedKeys {
    /// The object's name.
    pub name: String,
    /// Which keys; all where it is empty.
    pub items: Vec<KeyToPath>,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// A token of the pod's ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectedToken {
    /// Whom it is for; empty for the API server.
    pub audience: String,
    /// Seconds it is good for.
    pub expiration_seconds: Option<i64>,
    /// The file, below the volume.
    pub path: String,
}
