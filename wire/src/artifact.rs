//! How a node fetches compiled WASM code, and parts of OCI images, from the
//! master, on connections of its own (ALPN `pinnace-blob/1`) that never block the
//! control link.
//!
//! ```text
//! agent → master   u16 length (LE), postcard of BlobRequestV1
//! master → agent   u16 length (LE), postcard of BlobResponseV1
//! master → agent   the bytes from `offset` on, if Ready or Bytes
//! ```
//!
//! One request a connection. The master compiles on the first request for a
//! (module, target) and says [`BlobResponseV1::Wait`] while it does; the agent
//! asks again. Of images it gives what is in its own registry, and what it
//! fetches from others for a node that cannot reach them.

use serde::{Deserialize, Serialize};

use crate::Uid;
use crate::node::WasmTargetV1;

/// What a node asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobRequestV1 {
    /// The compiled code of one container's module.
    Artifact(ArtifactRequestV1),
    /// A part of an image that a pod of this node names, or that it is to have.
    Image(ImageRequestV1),
}

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequestV1 {
    /// The image in full, with the digest or the tag of what is asked for.
    pub image: String,
    /// `sha256:…` of a blob of its repository; empty for the index or manifest that
    /// `image` names.
    pub blob: String,
    /// First byte wanted, to go on after a cut.
    pub offset: u64,
}

/// Asks for the compiled code of one container's module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRequestV1 {
    /// A pod of this node; the master serves only what its pods name. All zero for
    /// an image that the node is to have before any pod names it.
    pub pod: Uid,
    /// The container whose image is asked for; without a pod, the image.
    pub container: String,
    /// What the node can map.
    pub target: WasmTargetV1,
    /// First byte wanted, to go on after a cut.
    pub offset: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobResponseV1 {
    /// The compiled code follows.
    Ready(ArtifactV1),
    /// The part of the image follows, up to the connection's end.
    Bytes,
    /// It is being resolved or compiled: ask again after this many milliseconds.
    Wait(u32),
    /// It cannot be had: a reason (`ErrImagePull`, `InvalidModule`, `Forbidden`, …) and a
    /// sentence for people.
    Failed(String, String),
}

/// Compiled code, described and signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactV1 {
    /// `sha256:…` of the portable module.
    pub module: String,
    /// What it was compiled for.
    pub target: WasmTargetV1,
    /// How it is run.
    pub world: WorldV1,
    /// SHA-256 of the compiled bytes.
    pub sha256: [u8; 32],
    /// Number of compiled bytes.
    pub size: u64,
    /// Ed25519 over [`ArtifactV1::signed_bytes`], by the cluster's artifact key.
    pub signature: Vec<u8>,
}

/// How a module is run: what it exports decides, and the master looks at it once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorldV1 {
    /// A program: WASI preview 1's `_start`, or `wasi:cli/run`.
    #[default]
    Command,
    /// A server of HTTP requests: `wasi:http/incoming-handler`.
    Http,
}

impl ArtifactV1 {
    /// What the signature covers: a domain tag, and every other field with its length.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let profile = self.target.profile.to_le_bytes();
        let size = self.size.to_le_bytes();
        let world = match self.world {
            WorldV1::Command => b"command".as_slice(),
            WorldV1::Http => b"http".as_slice(),
        };
        let parts: [&[u8]; 7] = [
            self.module.as_bytes(),
            self.target.engine.as_bytes(),
            self.target.target.as_bytes(),
            &profile,
            world,
            &self.sha256,
            &size,
        ];
        let mut bytes = b"pinnace-artifact-1\0".to_vec();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}
