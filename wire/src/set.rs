//! What a node is to run: always the whole set, with the store's epoch and a
//! revision that only grows. A delta is an optimisation with a base revision.

use serde::{Deserialize, Serialize};

use crate::network::{ClusterV1, EndpointsV1, PeerV1, PolicyV1, ServiceV1};
use crate::part::Digest;
use crate::pod::{KeysV1, PodV1};
use crate::{Epoch, Ext, Uid};

/// One thing of a node's set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemV1 {
    /// Identity of the object the item was made from.
    pub uid: Uid,
    /// The store revision at which the item last changed. Same uid and same
    /// generation: the same item, and nothing restarts.
    pub generation: u64,
    /// The item itself.
    pub body: BodyV1,
}

/// What an item is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyV1 {
    /// How the node itself is set up. At most one a set.
    Node(NodeConfigV1),
    /// A pod.
    Pod(Box<PodV1>),
    /// A ConfigMap or Secret that a pod of the set uses.
    Keys(KeysV1),
    /// A Service.
    Service(Box<ServiceV1>),
    /// Where a Service leads.
    Endpoints(EndpointsV1),
    /// A node, as the others see it.
    Peer(PeerV1),
    /// Who may speak with whom.
    Policy(PolicyV1),
}

impl BodyV1 {
    /// Whether it is the same in the set of every node.
    #[must_use]
    pub const fn is_common(&self) -> bool {
        match self {
            Self::Node(_) | Self::Pod(_) | Self::Keys(_) => false,
            Self::Service(_) | Self::Endpoints(_) | Self::Peer(_) | Self::Policy(_) => true,
        }
    }
}

/// How the node itself is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfigV1 {
    /// The addresses this node gives to pods, such as `10.42.3.0/24`.
    pub pod_cidr: String,
    /// Time between two heartbeats, in seconds (the node's profile).
    pub heartbeat_s: u32,
    /// The Ed25519 public key that signs WASM artifacts.
    pub artifact_key: [u8; 32],
    /// Keep pods that run and are not in the set: the store was restored from a
    /// backup that may be older than they are, and nobody has confirmed yet.
    pub hold_unknown: bool,
    /// What must hold for an image before it runs, of each namespace that has pods
    /// on the node and asks for more than nothing; sorted by namespace.
    pub image_policies: Vec<ImagePolicyV1>,
    /// Images that the node is to have before any pod names them.
    pub prepull: Vec<PrepullV1>,
    /// Names of PersistentVolumes whose folders on the node are to be removed, once
    /// no pod uses them.
    pub remove_volumes: Vec<String>,
    /// The cluster's network, as this node has it.
    pub cluster: ClusterV1,
    /// Room for later fields.
    pub ext: Ext,
}

/// What must hold for the images of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePolicyV1 {
    /// The namespace.
    pub namespace: String,
    /// What must hold.
    pub rule: ImageRuleV1,
}

/// What must hold for an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ImageRuleV1 {
    /// Its manifest names it by its digest.
    Digest,
    /// One of these keys (PEM, ECDSA on P-256) has signed it.
    Signature(String),
    /// Nothing may run: what the namespace says makes no sense, for this reason.
    Invalid(String),
}

/// An image that a node is to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PrepullV1 {
    /// Where its pull secrets are, and whose policy holds.
    pub namespace: String,
    /// The image.
    pub image: String,
    /// Names of Secrets with credentials, in order; they are items of the set.
    pub pull_secrets: Vec<String>,
}

/// The whole set of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotV1 {
    /// The store this set comes from.
    pub epoch: Epoch,
    /// The store revision at which the set was lowered; only grows within an epoch.
    pub revision: u64,
    /// Every item, sorted by uid.
    pub items: Vec<ItemV1>,
}

/// [`crate::node::HelloV1::set_digest`]: SHA-256 over the digest of the node's own
/// items and the digest of those that all nodes have, cut. In two halves, so that
/// a master hashes the common ones once for the whole fleet.
#[must_use]
pub fn set_digest(items: &[ItemV1], sha256: Digest) -> [u8; 16] {
    let half = |common| {
        let names = items.iter().filter(|item| item.body.is_common() == common);
        sha256(&digest_input(names.map(|item| (item.uid, item.generation))))
    };
    joined_digest(&half(false), &half(true), sha256)
}

/// The digest of a set, from those of its two halves.
#[must_use]
pub fn joined_digest(own: &[u8; 32], common: &[u8; 32], sha256: Digest) -> [u8; 16] {
    let mut both = [0; 64];
    both[..32].copy_from_slice(own);
    both[32..].copy_from_slice(common);
    let [cut @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = sha256(&both);
    cut
}

/// The bytes that the digest of half a set is the hash of: uid and generation of
/// every item, sorted by uid.
#[must_use]
pub fn digest_input(items: impl Iterator<Item = (Uid, u64)>) -> Vec<u8> {
    let mut names: Vec<(Uid, u64)> = items.collect();
    names.sort_unstable();
    let mut bytes = Vec::with_capacity(names.len() * 24);
    for (uid, generation) in names {
        bytes.extend_from_slice(&uid);
        bytes.extend_from_slice(&generation.to_le_bytes());
    }
    bytes
}

/// What changed between two revisions of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaV1 {
    /// The store this set comes from.
    pub epoch: Epoch,
    /// The revision that this delta changes; another one means a gap.
    pub base_revision: u64,
    /// The revision after it.
    pub revision: u64,
    /// Items that are new or changed.
    pub upsert: Vec<ItemV1>,
    /// Items that are gone.
    pub remove: Vec<Uid>,
}

/// One part of a message that is too large for one packet, see [`crate::part`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartV1 {
    /// SHA-256 of the whole message, which also names it.
    pub sha256: [u8; 32],
    /// This part, from 0.
    pub index: u16,
    /// Number of parts.
    pub n_parts: u16,
    /// The bytes of this part.
    pub bytes: Vec<u8>,
}
