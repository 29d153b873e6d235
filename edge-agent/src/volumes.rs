//! A pod's volumes, and where they appear in its containers.
//!
//! | volume | where | gone |
//! | --- | --- | --- |
//! | emptyDir | `state_dir/pods/<uid>/volumes/<name>` | with the pod |
//! | emptyDir in memory | tmpfs at `run_dir/pods/<uid>/volumes/<name>` | with the pod |
//! | ConfigMap, Secret | `run_dir/pods/<uid>/volumes/<name>` (tmpfs) | with the pod |
//! | subPath | bind mount at `run_dir/pods/<uid>/subpaths/<container>/<n>` | with the pod |
//!
//! Secrets never reach the disk: where the run folder is not tmpfs, a Secret's
//! volume is a tmpfs of its own. Nothing here follows a link out of a volume,
//! for containers write into them.

mod keys;
mod subpath;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wire::pod::{ContainerV1, PodV1, SourceV1, VolumeSourceV1, VolumeV1};

use crate::config::PodDirs;
use crate::pods::{KeySet, Versions};

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A volume could not be set up, mounted or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A system call failed.
    #[error("volume \"{volume}\": cannot {operation} {}: {source}", path.display())]
    Io {
        /// The volume, or what stands for it.
        volume: String,
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A path that would leave its volume.
    #[error("volume \"{volume}\": path {path:?} leaves the volume")]
    Escape {
        /// The volume.
        volume: String,
        /// The path as given.
        path: String,
    },
    /// A container mounts a volume that the pod does not have.
    #[error("volume \"{0}\" is not a volume of the pod")]
    Unknown(String),
    /// A kind of volume that this agent does not make. Admission refuses it or warns.
    #[error("volume \"{0}\": this agent cannot make a volume of its kind")]
    Kind(String),
    /// The object went away between the decision and the work.
    #[error("{0}")]
    Missing(String),
}

/// Sets up the pod's volumes, or brings them to the newest keys.
///
/// # Errors
/// The first volume that fails. May be called again.
pub fn set_up(pod: &PodV1, keys: &KeySet, dirs: &PodDirs) -> Result<Versions, VolumeError> {
    let mut versions = Versions::new();
    for volume in &pod.volumes {
        let path = folder(volume, dirs);
        let io = |operation| {
            let (volume, path) = (volume.name.clone(), path.clone());
            move |source: io::Error| VolumeError::Io { volume, operation, path, source }
        };
        fs::create_dir_all(&path).map_err(io("make"))?;
        match &volume.source {
            VolumeSourceV1::EmptyDir { memory, limit_bytes } => {
                if *memory && !is_mount(&path) {
                    mount_tmpfs(&path, *limit_bytes, "0777").map_err(io("mount a tmpfs at"))?;
                }
                fs::set_permissions(&path, fs::Permissions::from_mode(0o777))
                    .map_err(io("set the mode of"))?;
            }
            VolumeSourceV1::Keys { source, items, default_mode, optional } => {
                if matches!(source, SourceV1::Secret(_)) && !is_tmpfs(&path) {
                    mount_tmpfs(&path, 0, "0755").map_err(io("mount a tmpfs at"))?;
                }
                let object = keys.get(source);
                if let Some(object) = object {
                    versions.insert(source.clone(), (object.uid, object.generation));
                } else if !optional {
                    return Err(VolumeError::Missing(crate::pods::missing(source)));
                }
                let files = keys::files(&volume.name, object, items, *default_mode, *optional)?;
                keys::write(&path, &files).map_err(io("write"))?;
            }
            _ => return Err(VolumeError::Kind(volume.name.clone())),
        }
    }
    Ok(versions)
}

/// What a container mounts, in the order of the manifest.
///
/// # Errors
/// A volume that does not exist, or a subPath that leaves it or cannot be made.
pub fn mounts(
    pod: &PodV1,
    container: &ContainerV1,
    dirs: &PodDirs,
) -> Result<Vec<runtime::Mount>, VolumeError> {
    let mut all = Vec::with_capacity(container.mounts.len());
    for (index, wanted) in container.mounts.iter().enumerate() {
        let volume = pod
            .volumes
            .iter()
            .find(|volume| volume.name == wanted.volume)
            .ok_or_else(|| VolumeError::Unknown(wanted.volume.clone()))?;
        let root = folder(volume, dirs);
        let is_keys = matches!(volume.source, VolumeSourceV1::Keys { .. });
        let source = if wanted.sub_path.is_empty() {
            root
        } else {
            let target = dirs.run.join("subpaths").join(&container.name).join(index.to_string());
            subpath::bind(&volume.name, &root, &wanted.sub_path, &target, !is_keys)?;
            target
        };
        all.push(runtime::Mount {
            source,
            destination: wanted.path.clone(),
            // Ours to update in place, so never the container's to write.
            read_only: wanted.read_only || is_keys,
        });
    }
    Ok(all)
}

/// Unmounts and removes all volumes of a pod. What is gone is fine.
///
/// # Errors
/// A mount that cannot be detached: nothing below it is removed then.
pub fn tear_down(dirs: &PodDirs) -> Result<(), VolumeError> {
    for below in [dirs.run.join("subpaths"), dirs.run.join("volumes"), dirs.disk.join("volumes")] {
        let io = |operation| {
            let path = below.clone();
            move |source| VolumeError::Io { volume: String::new(), operation, path, source }
        };
        unmount_below(&below).map_err(io("unmount what is below"))?;
        match fs::remove_dir_all(&below) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("remove")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Detaches every mount at or below a folder, the newest first.
///
/// # Errors
/// The mounts cannot be read or detached.
pub fn unmount_below(folder: &Path) -> io::Result<()> {
    for target in mounts_below(folder)?.into_iter().rev() {
        match unmount(&target, UnmountFlags::DETACH) {
            // Gone with the one above it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether anything is mounted at or below a folder.
pub(crate) fn has_mounts_below(folder: &Path) -> bool {
    mounts_below(folder).is_ok_and(|all| !all.is_empty())
}

fn mounts_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(folder))
        .collect())
}

/// Reads a path of mountinfo, which writes space, tab, line end and backslash in octal.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Where a volume's content is.
fn folder(volume: &VolumeV1, dirs: &PodDirs) -> PathBuf {
    let base = match &volume.source {
        VolumeSourceV1::EmptyDir { memory: false, .. } => &dirs.disk,
        _ => &dirs.run,
    };
    base.join("volumes").join(&volume.name)
}

/// Mounts a tmpfs; 0 bytes for the kernel's default, half of the memory.
pub(crate) fn mount_tmpfs(path: &Path, bytes_max: u64, mode: &str) -> io::Result<()> {
    let size = if bytes_max == 0 { String::new() } else { format!(",size={bytes_max}") };
    let options = std::ffi::CString::new(format!("mode={mode}{size}")).expect("it holds no NUL");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount("tmpfs", path, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Whether files in a folder stay in memory.
#[must_use]
pub fn is_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|info| {
        // The type of the field differs between architectures.
        #[allow(clippy::unnecessary_cast)]
        let kind = info.f_type as i64;
        kind == TMPFS_MAGIC
    })
}

/// Whether something is mounted exactly here.
pub(crate) fn is_mount(path: &Path) -> bool {
    mounts_below(path).is_ok_and(|all| all.iter().any(|mount| mount == path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::pods::tests::{container, keys, pod};
    use wire::pod::MountV1;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/a\\9"), "/a\\9");
    }

    fn volume(name: &str, source: VolumeSourceV1) -> VolumeV1 {
        VolumeV1 { name: name.into(), source }
    }

    fn of_keys(source: SourceV1, optional: bool) -> VolumeSourceV1 {
        VolumeSourceV1::Keys { source, items: vec![], default_mode: 0o640, optional }
    }

    fn mount_of(volume: &str, sub_path: &str) -> MountV1 {
        let path = format!("/{volume}{sub_path}");
        MountV1 { sub_path: sub_path.into(), ..MountV1::new(volume, &path) }
    }

    fn dirs(folder: &Path) -> PodDirs {
        PodDirs { run: folder.join("run"), disk: folder.join("disk"), logs: folder.join("logs") }
    }

    #[test]
    fn every_kind_is_set_up_mounted_and_torn_down() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = dirs(folder.path());
        let secret = SourceV1::Secret("s".into());
        let mut c = container("c");
        c.mounts = vec![
            mount_of("disk", ""),
            mount_of("disk", "deep/er"),
            mount_of("memory", ""),
            mount_of("secret", ""),
            mount_of("secret", "k"),
            mount_of("none", ""),
        ];
        let mut pod = pod(vec![c.clone()]);
        pod.volumes = vec![
            volume("disk", VolumeSourceV1::EmptyDir { memory: false, limit_bytes: 0 }),
            volume("memory", VolumeSourceV1::EmptyDir { memory: true, limit_bytes: 1 << 20 }),
            volume("secret", of_keys(secret.clone(), false)),
            volume("none", of_keys(SourceV1::ConfigMap("gone".into()), true)),
        ];
        let all = keys(secret.clone(), &[("k", "hidden")]);
        // Twice: an agent that was killed half-way begins again.
        let versions = set_up(&pod, &all, &dirs).unwrap();
        assert_eq!(set_up(&pod, &all, &dirs).unwrap(), versions);
        assert_eq!(versions.keys().collect::<Vec<_>>(), [&secret]);

        let mounts = super::mounts(&pod, &c, &dirs).unwrap();
        assert_eq!(super::mounts(&pod, &c, &dirs).unwrap(), mounts);
        let at = |n: usize| &mounts[n].source;
        assert!(at(0).starts_with(&dirs.disk) && at(2).starts_with(&dirs.run));
        fs::write(at(1).join("x"), "").unwrap();
        assert!(at(0).join("deep/er/x").exists(), "a sub path is part of its volume");
        assert!(is_tmpfs(at(2)));
        assert!(fs::write(at(2).join("large"), vec![0; 2 << 20]).is_err(), "the limit holds");
        assert!(is_tmpfs(at(3)), "a Secret is never on the disk");
        assert_eq!(fs::read_to_string(at(3).join("k")).unwrap(), "hidden");
        assert_eq!(fs::metadata(at(3).join("k")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(at(4)).unwrap(), "hidden");
        assert_eq!(
            mounts.iter().map(|mount| mount.read_only).collect::<Vec<_>>(),
            [false, false, false, true, true, true]
        );

        for _ in 0..2 {
            tear_down(&dirs).unwrap();
            assert!(mounts_below(folder.path()).unwrap().is_empty());
            assert!(!dirs.run.join("volumes").exists() && !dirs.disk.join("volumes").exists());
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = dirs(folder.path());
        let mut c = container("c");
        c.mounts = vec![mount_of("nowhere", "")];
        let mut pod = pod(vec![c.clone()]);
        let error = super::mounts(&pod, &c, &dirs).unwrap_err();
        assert_eq!(error.to_string(), "volume \"nowhere\" is not a volume of the pod");
        pod.volumes = vec![volume("v", of_keys(SourceV1::ConfigMap("gone".into()), false))];
        let error = set_up(&pod, &KeySet::new(), &dirs).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"gone\" not found");
    }
}
