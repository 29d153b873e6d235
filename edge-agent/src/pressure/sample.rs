//! How much is left, and who uses it: reads /proc, statvfs and cgroups.
//!
//! What is looked at every time is one small file and two system calls. Pods are
//! only measured when one has to go, or where one has a limit on its disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use runtime::cgroup::Hierarchies;
use wire::pod::VolumeSourceV1;

use super::decide::{ContainerUse, Level, Levels, LocalUse, PodUse};
use super::threshold::Signal;
use crate::config::Folders;
use crate::id;
use crate::pods::worker::Kept;
use crate::pods::{PodState, Run};

/// Most files and folders of a pod that are looked at: a bound, not a limit on pods.
const ENTRIES_MAX: u32 = 1_000_000;

/// How much is left on this node.
#[must_use]
pub fn levels(folders: &Folders) -> Levels {
    let mut levels = Levels::new();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    levels.extend(memory(&meminfo).map(|level| (Signal::MemoryAvailable, level)));
    let images = folders.state.join("images");
    for (folder, space, inodes) in [
        (&folders.state, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (&images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ] {
        let Ok(info) = rustix::fs::statvfs(folder) else { continue };
        let bytes = |blocks: u64| blocks.saturating_mul(info.f_frsize);
        let level = Level { available: bytes(info.f_bavail), capacity: bytes(info.f_blocks) };
        levels.insert(space, level);
        // A file system that makes them as needed has none.
        if info.f_files > 0 {
            let level = Level { available: info.f_ffree, capacity: info.f_files };
            levels.insert(inodes, level);
        }
    }
    let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let most = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = [most("/proc/sys/kernel/pid_max"), most("/proc/sys/kernel/threads-max")];
    if let (Some(most), Some(used)) = (most.into_iter().flatten().min(), threads(&loadavg)) {
        let level = Level { available: most.saturating_sub(used), capacity: most };
        levels.insert(Signal::PidAvailable, level);
    }
    levels
}

/// `MemAvailable`: what the kernel reckons programs can get without swapping.
pub(crate) fn memory(meminfo: &str) -> Option<Level> {
    let of = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib.saturating_mul(1024))
    };
    Some(Level { available: of("MemAvailable:")?, capacity: of("MemTotal:")? })
}

/// How many threads there are: `0.20 0.18 0.12 1/80 11206` has 80.
fn threads(loadavg: &str) -> Option<u64> {
    loadavg.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

/// A pod that can be evicted: it is neither over nor going.
#[derive(Debug)]
pub struct Candidate {
    kept: Kept,
}

impl Candidate {
    /// Every pod of the node that can be evicted.
    #[must_use]
    pub fn all(folders: &Folders) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(folders.run.join("pods")) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| Kept::load(&entry.path()).ok().flatten())
            .filter(|kept| is_candidate(&kept.state))
            .map(|kept| Self { kept })
            .collect()
    }

    /// Whether a limit on the disk has to be kept watch over.
    #[must_use]
    pub fn has_local_limit(&self) -> bool {
        let is_limited = |source: &VolumeSourceV1| {
            matches!(source, VolumeSourceV1::EmptyDir { memory: false, limit_bytes: 1.. })
        };
        self.kept.pod.volumes.iter().any(|volume| is_limited(&volume.source))
            || self.kept.pod.containers.iter().any(|c| c.resources.disk_limit_bytes > 0)
    }

    /// What the pod uses of what is short.
    #[must_use]
    pub fn usage(&self, signal: Signal, folders: &Folders, hierarchies: &Hierarchies) -> PodUse {
        let pod = &self.kept.pod;
        let cgroup = folders.pod_cgroup(&pod.uid);
        let containers: Vec<ContainerUse> = pod
            .containers
            .iter()
            .map(|container| {
                let cgroup = self.run_of(&container.name, &cgroup);
                let (used, requested) = match signal {
                    Signal::MemoryAvailable => {
                        let used = cgroup.map_or(0, |group| memory_used(hierarchies, &group));
                        (used, container.resources.memory_request_bytes)
                    }
                    Signal::PidAvailable => {
                        let n = cgroup.map_or(0, |group| hierarchies.processes(&group).len());
                        (u64::try_from(n).unwrap_or(u64::MAX), 0)
                    }
                    Signal::NodefsAvailable | Signal::ImagefsAvailable => (
                        self.container_disk(folders, &container.name).bytes,
                        container.resources.disk_request_bytes,
                    ),
                    Signal::NodefsInodesFree | Signal::ImagefsInodesFree => {
                        (self.container_disk(folders, &container.name).entries, 0)
                    }
                };
                ContainerUse { name: container.name.clone(), used, requested }
            })
            .collect();
        let of_containers: u64 = containers.iter().map(|container| container.used).sum();
        let used = match signal {
            // Volumes in memory are the pod's, and in no container's group for sure.
            Signal::MemoryAvailable => of_containers.max(memory_used(hierarchies, &cgroup)),
            Signal::PidAvailable => of_containers,
            Signal::NodefsAvailable | Signal::ImagefsAvailable => {
                of_containers + self.volumes_disk(folders).bytes
            }
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => {
                of_containers + self.volumes_disk(folders).entries
            }
        };
        PodUse { uid: pod.uid, priority: pod.priority, used, containers }
    }

    /// What the pod writes to the disk, against its limits.
    #[must_use]
    pub fn local(&self, folders: &Folders) -> LocalUse {
        let pod = &self.kept.pod;
        let dirs = folders.pod(&pod.uid, &pod.namespace, &pod.name);
        let volumes = pod.volumes.iter().filter_map(|volume| match volume.source {
            VolumeSourceV1::EmptyDir { memory: false, limit_bytes } => {
                let used = measure(&dirs.disk.join("volumes").join(&volume.name));
                Some((volume.name.clone(), used.bytes, limit_bytes))
            }
            _ => None,
        });
        let containers = pod.containers.iter().map(|container| {
            let used = self.container_disk(folders, &container.name).bytes;
            (container.name.clone(), used, container.resources.disk_limit_bytes)
        });
        LocalUse { uid: pod.uid, volumes: volumes.collect(), containers: containers.collect() }
    }

    /// The cgroup of a container's current run.
    fn run_of(&self, container: &str, pod_cgroup: &str) -> Option<String> {
        let attempt = self.kept.state.container(container)?.run.attempt()?;
        Some(format!("{pod_cgroup}/{container}-{attempt}"))
    }

    /// What a container writes: its root's upper layer and its logs.
    fn container_disk(&self, folders: &Folders, container: &str) -> Used {
        let pod = &self.kept.pod;
        let dirs = folders.pod(&pod.uid, &pod.namespace, &pod.name);
        let mut used = measure(&dirs.logs.join(container));
        if let Some(attempt) = self.kept.state.container(container).and_then(|c| c.run.attempt()) {
            let run = id::container_id(&pod.uid, container, attempt);
            used.add(measure(&dirs.disk.join("containers").join(run)));
        }
        used
    }

    fn volumes_disk(&self, folders: &Folders) -> Used {
        let pod = &self.kept.pod;
        measure(&folders.pod(&pod.uid, &pod.namespace, &pod.name).disk.join("volumes"))
    }
}

fn is_candidate(state: &PodState) -> bool {
    state.finished.is_none()
        && state.eviction.is_none()
        && state.containers.iter().any(|c| !matches!(c.run, Run::None))
}

/// Memory of a group, or of its processes where the kernel counts none.
pub(crate) fn memory_used(hierarchies: &Hierarchies, cgroup: &str) -> u64 {
    hierarchies.memory_used(cgroup).unwrap_or_else(|| {
        let resident = |pid: i32| -> Option<u64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
        };
        hierarchies.processes(cgroup).into_iter().filter_map(resident).sum()
    })
}

/// Space and inodes of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    bytes: u64,
    entries: u64,
}

impl Used {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.entries = self.entries.saturating_add(other.entries);
    }
}

/// What is in a folder, as far as it is on the folder's own file system.
fn measure(folder: &Path) -> Used {
    let Ok(root) = fs::symlink_metadata(folder) else { return Used::default() };
    let mut used = Used::default();
    let mut waiting = vec![folder.to_owned()];
    let mut left = ENTRIES_MAX;
    while let Some(folder) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Some(next) = left.checked_sub(1) else { return used };
            left = next;
            // Of the link itself, never of what it names.
            let Ok(found) = entry.metadata() else { continue };
            if found.dev() != root.dev() {
                continue;
            }
            // A file with several names is counted once, as far as names are here.
            let share = if found.is_dir() { 1 } else { found.nlink().max(1) };
            used.add(Used { bytes: found.blocks() * 512 / share, entries: 1 });
            if found.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let text = "MemTotal:  948316 kB\nMemFree:  1000 kB\nMemAvailable:   204800 kB\n";
        let level = Level { available: 204_800 << 10, capacity: 948_316 << 10 };
        assert_eq!(memory(text), Some(level));
        assert_eq!(memory("MemTotal: 5 kB\n"), None);
        assert_eq!(threads("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert_eq!(threads(""), None);
    }

    #[test]
    fn this_machine_has_levels() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders { state: folder.path().into(), run: folder.path().join("run") };
        let levels = levels(&folders);
        for signal in [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::PidAvailable] {
            let level = levels[&signal];
            assert!(
                level.available > 0 && level.available <= level.capacity,
                "{signal:?} {level:?}"
            );
        }
    }

    #[test]
    fn a_folder_is_measured_without_following_links() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("big"), vec![1; 1 << 20]).unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(folder.path().join("a/file"), folder.path().join("a/same")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("out")).unwrap();
        let used = measure(folder.path());
        assert_eq!(used.entries, 4);
        assert!((100_000..200_000).contains(&used.bytes), "{used:?}");
        assert_eq!(measure(&folder.path().join("missing")), Used::default());
    }
}
