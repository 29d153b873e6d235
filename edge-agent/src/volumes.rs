//! A pod's volumes, and where they appear in its containers.
//!
//! | volume | where | gone |
//! | --- | --- | --- |
//! | emptyDir | `state_dir/pods/<uid>/volumes/<name>` | with the pod |
//! | emptyDir in memory | tmpfs at `run_dir/pods/<uid>/volumes/<name>` | with the pod |
//! | ConfigMap, Secret, downwardAPI, projected | `run_dir/pods/<uid>/volumes/<name>` (tmpfs) | with the pod |
//! | hostPath, local | where the host has it | never |
//! | made for a claim | `state_dir/storage/<volume>` | when the master says so |
//! | subPath | bind mount at `run_dir/pods/<uid>/subpaths/<container>/<n>` | with the pod |
//!
//! Secrets and tokens never reach the disk: where the run folder is not tmpfs,
//! their volume is a tmpfs of its own. Nothing here follows a link out of a
//! volume, for containers write into them.

mod files;
mod host;
mod keys;
mod owner;
mod subpath;
mod usage;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wire::pod::{
    ContainerV1, MountV1, PodV1, ProjectionV1, PropagationV1, SourceV1, VolumeSourceV1, VolumeV1,
};

use self::owner::Access;
pub use self::usage::{Usage, usage};
use crate::config::PodDirs;
use crate::env::Facts;
use crate::pods::{KeySet, Versions, volume_versions};
use crate::storage;
use crate::tokens::PodTokens;

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
    /// The object went away between the decision and the work, or the host has
    /// not what the volume names.
    #[error("{0}")]
    Missing(String),
}

/// What volumes are made from besides the pod itself.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps and Secrets.
    pub keys: KeySet,
    /// What the downward API says of the node.
    pub facts: Facts,
    /// Tokens of the pod's ServiceAccount.
    pub tokens: PodTokens,
}

/// Sets up the pod's volumes, or brings them to the newest keys.
///
/// # Errors
/// The first volume that fails. May be called again.
pub fn set_up(pod: &PodV1, sources: &Sources, dirs: &PodDirs) -> Result<Versions, VolumeError> {
    for volume in &pod.volumes {
        set_up_one(pod, volume, sources, dirs)?;
    }
    Ok(volume_versions(pod, &sources.keys, &sources.tokens))
}

fn set_up_one(
    pod: &PodV1,
    volume: &VolumeV1,
    sources: &Sources,
    dirs: &PodDirs,
) -> Result<(), VolumeError> {
    let path = folder(volume, dirs);
    let io = |operation| {
        let (volume, path) = (volume.name.clone(), path.clone());
        move |source: io::Error| VolumeError::Io { volume, operation, path, source }
    };
    match &volume.source {
        VolumeSourceV1::EmptyDir { memory, limit_bytes } => {
            fs::create_dir_all(&path).map_err(io("make"))?;
            if *memory && !is_mount(&path) {
                mount_tmpfs(&path, *limit_bytes, "0777").map_err(io("mount a tmpfs at"))?;
            }
            let group = pod.security.fs_group;
            if group.is_none_or(|group| !owner::is_given(&path, group, Access::ReadWrite)) {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o777))
                    .map_err(io("set the mode of"))?;
            }
            give(pod, &path).map_err(io("give to fsGroup"))
        }
        VolumeSourceV1::HostPath { path, kind } => host::prepare(&volume.name, path, *kind),
        VolumeSourceV1::Local { path: local, read_only, volume: name } => {
            host::check_local(name, local)?;
            if *read_only { Ok(()) } else { give(pod, &path).map_err(io("give to fsGroup")) }
        }
        VolumeSourceV1::Made { volume: made, read_only } => {
            storage::make(&dirs.storage, made).map_err(io("make"))?;
            if *read_only { Ok(()) } else { give(pod, &path).map_err(io("give to fsGroup")) }
        }
        VolumeSourceV1::Waits(why) => Err(VolumeError::Missing(why.clone())),
        VolumeSourceV1::Keys { .. }
        | VolumeSourceV1::Downward { .. }
        | VolumeSourceV1::Projected { .. } => {
            fs::create_dir_all(&path).map_err(io("make"))?;
            if is_secret(&volume.source) && !is_tmpfs(&path) {
                mount_tmpfs(&path, 0, "0755").map_err(io("mount a tmpfs at"))?;
            }
            let all = keys::checked(&volume.name, files::of(pod, volume, sources)?)?;
            if let Some(group) = pod.security.fs_group
                && !owner::is_given(&path, group, Access::Read)
            {
                owner::give(&path, group, Access::Read).map_err(io("give to fsGroup"))?;
            }
            keys::write(&path, &all, pod.security.fs_group).map_err(io("write"))
        }
    }
}

/// Gives a volume that containers write to the pod's `fsGroup`, if it has one.
fn give(pod: &PodV1, path: &Path) -> io::Result<()> {
    let Some(group) = pod.security.fs_group else { return Ok(()) };
    let is_settled =
        pod.security.fs_group_on_root_mismatch && owner::is_given(path, group, Access::ReadWrite);
    if is_settled { Ok(()) } else { owner::give(path, group, Access::ReadWrite) }
}

/// Whether the volume may hold what must not reach the disk.
fn is_secret(source: &VolumeSourceV1) -> bool {
    match source {
        VolumeSourceV1::Keys { source, .. } => matches!(source, SourceV1::Secret(_)),
        VolumeSourceV1::Projected { sources, .. } => sources.iter().any(|source| match source {
            ProjectionV1::Keys { source, .. } => matches!(source, SourceV1::Secret(_)),
            ProjectionV1::Token { .. } => true,
            ProjectionV1::Downward(_) => false,
        }),
        _ => false,
    }
}

/// What a container mounts, in the order of the manifest. `sub_paths` are its
/// mounts' own with variables expanded, see [`crate::env::sub_paths`].
///
/// # Errors
/// A volume that does not exist, or a subPath that leaves it or cannot be made.
pub fn mounts(
    pod: &PodV1,
    container: &ContainerV1,
    sub_paths: &[String],
    dirs: &PodDirs,
) -> Result<Vec<runtime::Mount>, VolumeError> {
    let mut all = Vec::with_capacity(container.mounts.len());
    for (index, (wanted, sub_path)) in container.mounts.iter().zip(sub_paths).enumerate() {
        let volume = pod
            .volumes
            .iter()
            .find(|volume| volume.name == wanted.volume)
            .ok_or_else(|| VolumeError::Unknown(wanted.volume.clone()))?;
        let root = folder(volume, dirs);
        let (is_ours, read_only) = match &volume.source {
            VolumeSourceV1::EmptyDir { .. } | VolumeSourceV1::HostPath { .. } => (false, false),
            VolumeSourceV1::Local { read_only, .. } => (false, *read_only),
            VolumeSourceV1::Made { volume: made, read_only } => {
                let name = wanted.volume.clone();
                storage::folder(&dirs.storage, made)
                    .map_err(|_| VolumeError::Escape { volume: name, path: made.clone() })?;
                (false, *read_only)
            }
            VolumeSourceV1::Waits(why) => return Err(VolumeError::Missing(why.clone())),
            // Ours to update in place, so never the container's to write.
            _ => (true, true),
        };
        let source = if sub_path.is_empty() {
            root
        } else {
            let target = dirs.run.join("subpaths").join(&container.name).join(index.to_string());
            subpath::bind(&volume.name, &root, sub_path, &target, !is_ours)?;
            target
        };
        all.push(mount_of(wanted, source, read_only));
    }
    Ok(all)
}

fn mount_of(wanted: &MountV1, source: PathBuf, read_only: bool) -> runtime::Mount {
    runtime::Mount {
        source,
        destination: wanted.path.clone(),
        read_only: wanted.read_only || read_only,
        recursive_read_only: wanted.recursive_read_only,
        propagation: match wanted.propagation {
            PropagationV1::None => runtime::Propagation::None,
            PropagationV1::HostToContainer => runtime::Propagation::HostToContainer,
            PropagationV1::Bidirectional => runtime::Propagation::Bidirectional,
        },
    }
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
        VolumeSourceV1::HostPath { path, .. } | VolumeSourceV1::Local { path, .. } => {
            return PathBuf::from(path);
        }
        VolumeSourceV1::Made { volume, .. } => return dirs.storage.join(volume),
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
    use wire::pod::{DownwardItemV1, EnvValueV1};

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

    fn mounts_in(
        pod: &PodV1,
        container: &ContainerV1,
        dirs: &PodDirs,
    ) -> Result<Vec<runtime::Mount>, VolumeError> {
        let paths: Vec<String> = container.mounts.iter().map(|m| m.sub_path.clone()).collect();
        mounts(pod, container, &paths, dirs)
    }

    fn dirs(folder: &Path) -> PodDirs {
        PodDirs {
            run: folder.join("run"),
            disk: folder.join("disk"),
            logs: folder.join("logs"),
            storage: folder.join("storage"),
        }
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
        let all = Sources { keys: all, ..Sources::default() };
        let versions = set_up(&pod, &all, &dirs).unwrap();
        assert_eq!(set_up(&pod, &all, &dirs).unwrap(), versions);
        assert_eq!(versions.keys().collect::<Vec<_>>(), [&secret]);

        let mounts = mounts_in(&pod, &c, &dirs).unwrap();
        assert_eq!(mounts_in(&pod, &c, &dirs).unwrap(), mounts);
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
        let error = mounts_in(&pod, &c, &dirs).unwrap_err();
        assert_eq!(error.to_string(), "volume \"nowhere\" is not a volume of the pod");
        pod.volumes = vec![volume("v", of_keys(SourceV1::ConfigMap("gone".into()), false))];
        let error = set_up(&pod, &Sources::default(), &dirs).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"gone\" not found");
    }

    #[test]
    fn fields_and_several_sources_become_files_of_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = dirs(folder.path());
        let field = |path: &str, field: &str| DownwardItemV1 {
            path: path.into(),
            mode: None,
            value: EnvValueV1::Field(field.into()),
        };
        let mut c = container("c");
        c.resources.memory_limit_bytes = 3 << 20;
        c.security.run_as_user = Some(1000);
        let mut pod = pod(vec![c]);
        pod.security.fs_group = Some(2000);
        pod.labels = vec![("app".into(), "web".into()), ("b".into(), "q\"x".into())];
        let memory = EnvValueV1::Resource {
            container: "c".into(),
            resource: "limits.memory".into(),
            divisor_millis: 1_048_576_000,
        };
        let source = SourceV1::ConfigMap("cfg".into());
        pod.volumes = vec![
            volume(
                "api",
                VolumeSourceV1::Downward {
                    items: vec![
                        field("labels", "metadata.labels"),
                        field("deep/name", "metadata.name"),
                        DownwardItemV1 { path: "mem".into(), mode: Some(0o400), value: memory },
                    ],
                    default_mode: 0o644,
                },
            ),
            volume(
                "all",
                VolumeSourceV1::Projected {
                    sources: vec![
                        ProjectionV1::Keys {
                            source: source.clone(),
                            items: vec![],
                            optional: false,
                        },
                        ProjectionV1::Downward(vec![field("ns", "metadata.namespace")]),
                        ProjectionV1::Token {
                            audience: String::new(),
                            expiration_s: 3600,
                            path: "token".into(),
                        },
                    ],
                    default_mode: 0o644,
                },
            ),
        ];
        let sources = Sources {
            keys: keys(source, &[("k", "1"), ("ns", "hidden by the later one")]),
            tokens: [((String::new(), 3600), "a.b.c".to_owned())].into(),
            ..Sources::default()
        };
        set_up(&pod, &sources, &dirs).unwrap();
        let at = dirs.run.join("volumes");
        let read = |path: &str| fs::read_to_string(at.join(path)).unwrap();
        let seen = |path: &str| {
            let found = fs::metadata(at.join(path)).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o777)
        };
        assert_eq!(read("api/labels"), "app=\"web\"\nb=\"q\\\"x\"");
        assert_eq!((read("api/deep/name"), read("api/mem")), ("web-0".into(), "3".into()));
        assert_eq!(
            (read("all/k"), read("all/ns"), read("all/token")),
            ("1".into(), "default".into(), "a.b.c".into())
        );
        assert_eq!(seen("api/mem"), (0, 2000, 0o440));
        assert_eq!(seen("all/token"), (1000, 2000, 0o640));
        assert!(is_tmpfs(&at.join("all")));
        // A label changes: the file does, in place.
        let before = volume_versions(&pod, &sources.keys, &sources.tokens);
        pod.labels.truncate(1);
        assert_ne!(volume_versions(&pod, &sources.keys, &sources.tokens), before);
        set_up(&pod, &sources, &dirs).unwrap();
        assert_eq!(read("api/labels"), "app=\"web\"");
        tear_down(&dirs).unwrap();
    }

    #[test]
    fn what_a_group_is_given_stays_given() {
        let folder = tempfile::tempdir().unwrap();
        let (dirs, local) = (dirs(folder.path()), folder.path().join("local"));
        fs::create_dir_all(&local).unwrap();
        fs::write(local.join("old"), "").unwrap();
        let mut pod = pod(vec![container("c")]);
        pod.security.fs_group = Some(2000);
        pod.security.fs_group_on_root_mismatch = true;
        let path = local.display().to_string();
        let of = |read_only| VolumeSourceV1::Local {
            path: path.clone(),
            read_only,
            volume: "pv".into(),
        };
        pod.volumes = vec![
            volume("disk", VolumeSourceV1::EmptyDir { memory: false, limit_bytes: 0 }),
            volume("local", of(false)),
        ];
        let seen = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.gid(), found.mode() & 0o7777)
        };
        set_up(&pod, &Sources::default(), &dirs).unwrap();
        assert_eq!(seen(&dirs.disk.join("volumes/disk")), (2000, 0o2777));
        assert_eq!(seen(&local).0, 2000);
        assert_eq!(seen(&local.join("old")).0, 2000);
        // The root is the group's, so what came later is left alone.
        fs::write(local.join("new"), "").unwrap();
        std::os::unix::fs::chown(local.join("new"), None, Some(0)).unwrap();
        set_up(&pod, &Sources::default(), &dirs).unwrap();
        assert_eq!(seen(&local.join("new")).0, 0);
        pod.security.fs_group_on_root_mismatch = false;
        set_up(&pod, &Sources::default(), &dirs).unwrap();
        assert_eq!(seen(&local.join("new")).0, 2000);
        fs::remove_dir_all(&local).unwrap();
        let error = set_up(&pod, &Sources::default(), &dirs).unwrap_err();
        assert!(error.to_string().ends_with("does not exist"), "{error}");
        tear_down(&dirs).unwrap();
    }
}
