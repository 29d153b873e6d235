//! What a node says about itself and about the link.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Epoch, Ext, Uid};

/// The first message on every connection, and again until it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloV1 {
    /// Made anew at every start of the agent.
    pub boot_id: Uid,
    /// Grows with every connection of this boot.
    pub conn_seq: u32,
    /// Grows with every hello of this boot, so that a late one is known as late.
    pub hello_seq: u32,
    /// The store the node's set came from; 0 for none.
    pub epoch: Epoch,
    /// The revision of the set the node has applied and stored; 0 for none.
    pub have_revision: u64,
    /// [`crate::set::set_digest`] of that set. A master
    /// that restarted sends nothing to a node whose set it would only repeat.
    pub set_digest: [u8; 16],
    /// Newest report of this boot that was acknowledged: older ones are late copies.
    pub report_acked: u64,
    /// Newest command counter this boot has seen: the master goes on above it.
    pub command_counter: u64,
    /// Oldest protocol version the agent speaks.
    pub proto_min: u8,
    /// Newest protocol version the agent speaks.
    pub proto_max: u8,
    /// Optional abilities, one bit each; none is given out yet.
    pub caps: u64,
    /// What the node is.
    pub info: NodeInfoV1,
    /// Pods that run on the node, as (uid, generation): for a master whose
    /// store was restored.
    pub running: Vec<(Uid, u64)>,
}

/// What the node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfoV1 {
    /// Version of the agent.
    pub agent_version: String,
    /// `amd64`, `arm64`, `arm`, … as images name it.
    pub arch: String,
    /// `v7`, `v8` or empty.
    pub arch_variant: String,
    /// Kernel release.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// `/etc/machine-id`, or what the agent made in its place.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub kernel_boot_id: String,
    /// The machine's host name.
    pub hostname: String,
    /// The address of the link's local end.
    pub address: String,
    /// The node's other addresses on its networks, at most [`ADDRESSES_MAX`].
    pub more_addresses: Vec<IpAddr>,
    /// Where it listens for other nodes; 0 where it does not.
    pub tunnel_port: u16,
    /// Cores, in millicores.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Disk under the state folder, in bytes.
    pub disk_bytes: u64,
    /// Most pods.
    pub pods_max: u32,
    /// Further resources that are counted, as (name, how many): devices.
    pub resources: Vec<(String, u64)>,
    /// Whether OCI containers can run.
    pub oci: bool,
    /// What WASM code the node runs; `None` where it cannot.
    pub wasm: Option<WasmTargetV1>,
    /// The board's name; empty where unknown.
    pub board: String,
    /// What is missing or wrong on the board, as (condition, message).
    pub findings: Vec<(String, String)>,
    /// Images on the disk, the largest first, at most [`IMAGES_MAX`].
    pub images: Vec<NodeImageV1>,
    /// Labels that the token gave.
    pub labels: Vec<(String, String)>,
    /// Pods that the node runs of its own accord, all of them: the master shows
    /// each as a mirror. At most [`STATIC_BYTES_MAX`] of manifests.
    pub static_pods: Vec<StaticPodV1>,
    /// The folder for what is made for claims.
    pub storage_folder: String,
    /// Of the volumes that are to be removed, those that are not there any more.
    pub removed_volumes: Vec<String>,
    /// Room for later fields.
    pub ext: Ext,
}

/// Most bytes of all manifests of a node's static pods: they travel in one hello.
pub const STATIC_BYTES_MAX: usize = 32 << 10;
/// Most addresses that a node tells of, beside the link's.
pub const ADDRESSES_MAX: usize = 8;
/// Most images that a node tells of, as the kubelet.
pub const IMAGES_MAX: usize = 50;

/// A pod from a folder of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticPodV1 {
    /// The pod's identity on the node; follows from the node and the manifest.
    pub uid: Uid,
    /// The Pod, with every default applied, as JSON.
    pub manifest: String,
}

/// An image on a node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeImageV1 {
    /// Names by which it is known, such as `host/name:tag` and `host/name@sha256:…`.
    pub names: Vec<String>,
    /// What it takes, in bytes.
    pub size_bytes: u64,
}

/// Which compiled WASM code a node can map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WasmTargetV1 {
    /// Version of wasmtime on the node.
    pub engine: String,
    /// `x86_64-unknown-linux-gnu`, `aarch64-unknown-linux-gnu`, `pulley32`, …
    pub target: String,
    /// Version of the engine settings that both sides compile with.
    pub profile: u32,
}

/// Answer to a [`HelloV1`] whose set is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpToDateV1 {
    /// The store.
    pub epoch: Epoch,
    /// The revision both sides have.
    pub revision: u64,
}

/// The node has applied a set and stored it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedV1 {
    /// The store.
    pub epoch: Epoch,
    /// The revision now on the node's disk.
    pub revision: u64,
    /// Which boot of the agent: another may have lost the disk since.
    pub boot_id: Uid,
}

/// How much of a message in parts has arrived, see [`crate::part`]. The master
/// keeps a window of parts on the way, so no queue holds a whole large set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartAckV1 {
    /// The message.
    pub sha256: [u8; 32],
    /// Parts that arrived, counted from the first without a gap.
    pub n_have: u16,
}

/// The node lives. Without acknowledgement (QoS 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatV1 {
    /// Which boot of the agent.
    pub boot_id: Uid,
    /// The connection it is sent on.
    pub conn_seq: u32,
    /// The store of the applied set.
    pub epoch: Epoch,
    /// The revision on the node's disk.
    pub revision: u64,
    /// Newest report the node has made; the master asks where it has not seen it.
    pub report_seq: u64,
}

/// The link ended without a goodbye (the MQTT will).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneV1 {
    /// Which boot of the agent.
    pub boot_id: Uid,
    /// The connection that ended.
    pub conn_seq: u32,
}
