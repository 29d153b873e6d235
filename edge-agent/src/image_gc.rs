//! Keeps the disk from filling with images: once more than the high mark of it
//! is used, those that no pod needs go, the one used longest ago first, until
//! less than the low mark is used. OCI images and compiled modules alike.
//!
//! What stays: whatever the node's set or the wishes of the master name, what a
//! container is mounted from, and what was asked for within two minutes.
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#container-image-lifecycle>.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image::{Digest, InUse, Reference};
use runtime::Workload;
use runtime::dir::ContainerDir;
use wire::set::{BodyV1, SnapshotV1};

use crate::registries::Registries;

/// How often the disk is looked at, as the kubelet does.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// When it is first looked at: a board may start with a full disk.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How long an image stays after it was asked for.
pub const AGE_MIN: Duration = Duration::from_secs(120);

/// Between which marks the disk is kept, in percent of what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Above it, images go.
    pub high: u64,
    /// Until less than this is used.
    pub low: u64,
}

impl Default for Marks {
    /// The kubelet's.
    fn default() -> Self {
        Self { high: 85, low: 80 }
    }
}

/// Everything that must stay, OCI and WASM.
#[derive(Clone, Debug, Default)]
pub struct Needed {
    /// OCI images and layers.
    pub images: InUse,
    /// `sha256:…` of modules.
    pub modules: BTreeSet<String>,
    /// Files that guests are mapped from.
    pub artifacts: BTreeSet<PathBuf>,
}

/// What a set and the containers of a node need.
#[must_use]
pub fn needed(set: Option<&SnapshotV1>, containers: &Path) -> Needed {
    let mut needed = Needed::default();
    let mut name = |image: &str, digest: &str| {
        if let Ok(reference) = image.parse::<Reference>() {
            needed.images.digests.extend(reference.digest);
            needed.images.names.insert(reference.to_string());
        }
        needed.images.digests.extend(digest.parse::<Digest>().ok());
        needed.modules.insert(digest.to_owned());
    };
    for item in set.into_iter().flat_map(|set| &set.items) {
        match &item.body {
            BodyV1::Pod(pod) => {
                let containers = pod
                    .init_containers
                    .iter()
                    .chain(&pod.containers)
                    .chain(&pod.ephemeral_containers);
                containers.for_each(|container| name(&container.image, &container.digest));
            }
            BodyV1::Node(config) => {
                config.prepull.iter().for_each(|wish| name(&wish.image, ""));
            }
            _ => {}
        }
    }
    for entry in std::fs::read_dir(containers).into_iter().flatten().flatten() {
        let Ok(spec) = ContainerDir::new(entry.path()).spec() else { continue };
        name(&spec.image, "");
        match spec.workload {
            Workload::Oci { layers, .. } => needed.images.layers.extend(layers),
            Workload::Wasm { artifact, .. } => {
                needed.artifacts.insert(artifact);
            }
        }
    }
    needed
}

/// How much of the disk below a folder is used, in percent, as the kubelet counts.
///
/// # Errors
/// The disk does not answer.
pub fn used_percent(folder: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    let total = disk.f_blocks.max(1);
    let available = disk.f_bavail.min(total);
    Ok(100 - available.saturating_mul(100) / total)
}

/// Looks again and again, until dropped.
pub async fn run(images: Arc<Registries>) {
    let mut wait = FIRST_LOOK;
    loop {
        tokio::time::sleep(wait).await;
        wait = LOOK_EVERY;
        images.collect_if_full().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{container, pod};
    use wire::set::{ItemV1, NodeConfigV1, PrepullV1};

    #[test]
    fn what_the_set_names_is_needed() {
        let digest = Digest::of(b"x").to_string();
        let mut main = container("a");
        (main.image, main.digest) = ("team/app:1".into(), digest.clone());
        let mut module = container("b");
        (module.image, module.digest) = ("r.io/m:1".into(), Digest::of(b"m").to_string());
        let mut wanted = pod(vec![module]);
        wanted.init_containers = vec![main];
        let config = NodeConfigV1 {
            pod_cidr: String::new(),
            heartbeat_s: 60,
            artifact_key: [0; 32],
            hold_unknown: false,
            image_policies: Vec::new(),
            prepull: vec![PrepullV1 {
                namespace: "d".into(),
                image: "soon:1".into(),
                pull_secrets: Vec::new(),
            }],
            remove_volumes: Vec::new(),
            cluster: wire::network::ClusterV1::default(),
            ext: Vec::new(),
        };
        let item = |uid, body| ItemV1 { uid: [uid; 16], generation: 1, body };
        let set = SnapshotV1 {
            epoch: 1,
            revision: 1,
            items: vec![item(1, BodyV1::Node(config)), item(2, BodyV1::Pod(Box::new(wanted)))],
        };
        let folder = tempfile::tempdir().unwrap();
        let needed = needed(Some(&set), folder.path());
        let names: Vec<&str> = needed.images.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["docker.io/library/soon:1", "docker.io/team/app:1", "r.io/m:1"]);
        assert!(needed.images.digests.contains(&Digest::of(b"x")));
        assert!(needed.modules.contains(&Digest::of(b"m").to_string()));
        let used = used_percent(folder.path()).unwrap();
        assert!(used <= 100, "{used}");
    }
}
