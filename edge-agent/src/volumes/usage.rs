//! How much disk a pod's volumes take: what eviction asks.
//!
//! Sizes are what the file system has given out (`st_blocks`), so a sparse file
//! counts as what it is. A walk is bounded, for a container can make as many
//! files as it likes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use wire::pod::{PodV1, VolumeSourceV1};

use super::folder;
use crate::config::PodDirs;

/// Most files that are looked at for one volume.
const FILES_MAX: u64 = 200_000;
/// Deepest folder that is looked into.
const DEPTH_MAX: usize = 128;

/// What one emptyDir on the disk takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The volume.
    pub volume: String,
    /// Bytes on the disk; at least so many where the walk was cut short.
    pub bytes: u64,
    /// Files and folders.
    pub files: u64,
    /// Most bytes it may take; 0 for no limit.
    pub limit_bytes: u64,
}

/// What each emptyDir of a pod takes on the disk. Those in memory are bounded by
/// the kernel and left out. Blocks on the disk.
#[must_use]
pub fn usage(pod: &PodV1, dirs: &PodDirs) -> Vec<Usage> {
    pod.volumes
        .iter()
        .filter_map(|volume| match &volume.source {
            VolumeSourceV1::EmptyDir { memory: false, limit_bytes } => {
                let (mut bytes, mut files) = (0, 0);
                count(&folder(volume, dirs), 0, &mut bytes, &mut files);
                let (volume, limit_bytes) = (volume.name.clone(), *limit_bytes);
                Some(Usage { volume, bytes, files, limit_bytes })
            }
            _ => None,
        })
        .collect()
}

fn count(at: &Path, depth: usize, bytes: &mut u64, files: &mut u64) {
    let Ok(found) = fs::symlink_metadata(at) else { return };
    *bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
    *files += 1;
    if !found.is_dir() || depth == DEPTH_MAX {
        return;
    }
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if *files >= FILES_MAX {
            return;
        }
        // A mount that a container put there is not ours to count.
        let is_here = entry.metadata().is_ok_and(|below| below.dev() == found.dev());
        if is_here {
            count(&entry.path(), depth + 1, bytes, files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{container, pod};
    use wire::pod::VolumeV1;

    #[test]
    fn what_is_on_the_disk_counts_and_links_do_not_lead_away() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let dirs =
            PodDirs { run: at("run"), disk: at("disk"), logs: at("logs"), storage: at("storage") };
        let mut pod = pod(vec![container("c")]);
        let of = |name: &str, memory| VolumeV1 {
            name: name.into(),
            source: VolumeSourceV1::EmptyDir { memory, limit_bytes: 7 },
        };
        pod.volumes = vec![of("disk", false), of("memory", true)];
        let volume = at("disk/volumes/disk");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/a"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", volume.join("root")).unwrap();
        let sparse = fs::File::create(volume.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let [found] = usage(&pod, &dirs).try_into().unwrap();
        assert_eq!((found.volume.as_str(), found.files, found.limit_bytes), ("disk", 5, 7));
        assert!((100_000..1 << 20).contains(&found.bytes), "{found:?}");
    }
}
