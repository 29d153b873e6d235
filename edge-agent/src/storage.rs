//! Folders that this node makes for PersistentVolumes: `state/storage/<volume>`.
//!
//! A folder is made when the first pod mounts its volume, outlives pods, agents
//! and power loss, and is removed when the master asks for that, after the last
//! pod that uses it has ended. The master asks in every set until it has heard
//! that the folder is gone, so a node that was away removes it when it is back.
//!
//! Nothing but a direct child of the storage folder is ever made or removed, no
//! link is followed, and what is mounted below a folder keeps it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use wire::pod::{PodV1, VolumeSourceV1};
use wire::set::{BodyV1, SnapshotV1};

use crate::config::Folders;
use crate::{recover, set, volumes};

/// Wait before a folder that is in use or cannot be removed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest such wait.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Longest name of a PersistentVolume.
const NAME_BYTES_MAX: usize = 253;

/// How far the removal of folders is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removals {
    /// Volumes that are to be removed and are not there any more.
    pub removed: Vec<String>,
    /// Why others still are.
    pub problems: Vec<String>,
}

/// The folder of a volume.
///
/// # Errors
/// The name would lead elsewhere.
pub fn folder(storage: &Path, volume: &str) -> io::Result<PathBuf> {
    let mut parts = Path::new(volume).components();
    let is_child = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(name)), None) if name == volume
    );
    if !is_child || volume.len() > NAME_BYTES_MAX || volume.contains('\0') {
        return Err(io::Error::other(format!("{volume:?} is no name of a volume")));
    }
    Ok(storage.join(volume))
}

/// Makes the folder of a volume, for every user to write, as `emptyDir` is. One
/// that is there stays as it is.
///
/// # Errors
/// It cannot be made, or something else is in its place.
pub fn make(storage: &Path, volume: &str) -> io::Result<()> {
    let path = folder(storage, volume)?;
    match fs::create_dir(&path) {
        Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(0o777)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(&path)?.is_dir() { Ok(()) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

/// Removes the folder of a volume and all that is in it. One that is gone is fine.
///
/// # Errors
/// It cannot be removed, or something is mounted in it.
pub fn remove(storage: &Path, volume: &str) -> io::Result<()> {
    let path = folder(storage, volume)?;
    if volumes::has_mounts_below(&path) {
        return Err(io::Error::other("something is mounted in it"));
    }
    match fs::symlink_metadata(&path) {
        // Goes by descriptors and removes links themselves.
        Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
        Ok(_) => fs::remove_file(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Volumes that a pod uses.
fn used_by(pod: &PodV1) -> impl Iterator<Item = &str> {
    pod.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSourceV1::Made { volume, .. } => Some(volume.as_str()),
        _ => None,
    })
}

/// Volumes that pods use which have not ended: those of the set, and those that
/// are here still.
fn in_use(set: &SnapshotV1, folders: &Folders) -> BTreeSet<String> {
    let mut used: BTreeSet<String> = BTreeSet::new();
    for item in &set.items {
        if let BodyV1::Pod(pod) = &item.body
            && pod.ended.is_none()
        {
            used.extend(used_by(pod).map(str::to_owned));
        }
    }
    for pod in recover::unfinished(folders) {
        used.extend(used_by(&pod).map(str::to_owned));
    }
    used
}

/// Removes what a set asks to be removed, as far as that can be now. Blocks on the disk.
fn clear(set: &SnapshotV1, folders: &Folders) -> Removals {
    let mut found = Removals::default();
    // The store may be older than what is on this disk.
    let wanted = set::node_config(set).filter(|_| !set::holds_unknown(set));
    let Some(wanted) = wanted.filter(|config| !config.remove_volumes.is_empty()) else {
        return found;
    };
    let used = in_use(set, folders);
    for volume in &wanted.remove_volumes {
        if used.contains(volume) {
            continue;
        }
        match remove(&folders.storage(), volume) {
            Ok(()) => found.removed.push(volume.clone()),
            Err(error) => {
                tracing::warn!(volume, %error, "the folder of a volume is not removed");
                found.problems.push(format!("{volume}: {error}"));
            }
        }
    }
    found
}

/// Follows the sets, until dropped.
pub async fn run(
    folders: Folders,
    first: Option<Arc<SnapshotV1>>,
    mut sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
    removals: watch::Sender<Removals>,
) {
    let mut set = first;
    let mut again = AGAIN;
    loop {
        let mut is_done = true;
        if let Some(set) = set.clone() {
            let folders = folders.clone();
            let n_wanted = set::node_config(&set).map_or(0, |config| config.remove_volumes.len());
            let found = tokio::task::spawn_blocking(move || clear(&set, &folders))
                .await
                .expect("removing folders does not panic");
            is_done = found.removed.len() == n_wanted;
            removals.send_if_modified(|known| {
                let is_new = *known != found;
                *known = found;
                is_new
            });
        }
        tokio::select! {
            () = tokio::time::sleep(again), if !is_done => again = (again * 2).min(AGAIN_MAX),
            changed = sets.changed() => {
                if changed.is_err() { return; }
                set = sets.borrow_and_update().clone().or(set);
                again = AGAIN;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::Locks;
    use crate::pods::tests::{container, pod};
    use wire::pod::VolumeV1;
    use wire::set::{ItemV1, NodeConfigV1};

    fn folders(folder: &Path) -> (Folders, Locks) {
        Folders::open(&folder.join("state"), &folder.join("run")).unwrap()
    }

    fn set(remove: &[&str], used: Option<&str>, hold_unknown: bool) -> SnapshotV1 {
        let mut one = pod(vec![container("c")]);
        one.volumes.extend(used.map(|volume| VolumeV1 {
            name: "v".into(),
            source: VolumeSourceV1::Made { volume: volume.into(), read_only: false },
        }));
        let config = NodeConfigV1 {
            pod_cidr: String::new(),
            heartbeat_s: 10,
            artifact_key: [0; 32],
            hold_unknown,
            image_policies: Vec::new(),
            prepull: Vec::new(),
            remove_volumes: remove.iter().map(|name| (*name).to_owned()).collect(),
            cluster: wire::network::ClusterV1::default(),
            ext: Vec::new(),
        };
        let item = |uid, body| ItemV1 { uid, generation: 1, body };
        SnapshotV1 {
            epoch: 1,
            revision: 1,
            items: vec![
                item([1; 16], BodyV1::Node(config)),
                item([2; 16], BodyV1::Pod(Box::new(one))),
            ],
        }
    }

    #[test]
    fn a_folder_is_made_once_and_removed_with_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) = folders(folder.path());
        let storage = folders.storage();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        make(&storage, "pvc-1").unwrap();
        fs::write(storage.join("pvc-1/data"), "x").unwrap();
        fs::create_dir_all(storage.join("pvc-1/a/b")).unwrap();
        symlink(&outside, storage.join("pvc-1/a/link")).unwrap();
        make(&storage, "pvc-1").unwrap();
        assert_eq!(fs::read_to_string(storage.join("pvc-1/data")).unwrap(), "x");
        let mode = fs::metadata(storage.join("pvc-1")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
        make(&storage, "pvc-2").unwrap();
        remove(&storage, "pvc-1").unwrap();
        remove(&storage, "pvc-1").unwrap();
        assert!(!storage.join("pvc-1").exists() && storage.join("pvc-2").exists());
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
    }

    #[test]
    fn no_name_and_no_link_leads_out_of_the_storage_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) = folders(folder.path());
        let storage = folders.storage();
        fs::write(folders.state.join("precious"), "x").unwrap();
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in
            ["", ".", "..", "../precious", "/etc", "a/b", "a/../..", "a/", "./a", "\0", &long]
        {
            assert!(make(&storage, name).is_err(), "{name:?}");
            assert!(remove(&storage, name).is_err(), "{name:?}");
        }
        symlink(&folders.state, storage.join("pvc-1")).unwrap();
        assert!(make(&storage, "pvc-1").is_err(), "a link is no folder");
        remove(&storage, "pvc-1").unwrap();
        assert!(folders.state.join("precious").exists());
        fs::symlink_metadata(storage.join("pvc-1")).unwrap_err();
    }

    #[test]
    fn what_is_mounted_in_a_folder_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) = folders(folder.path());
        let storage = folders.storage();
        make(&storage, "pvc-1").unwrap();
        let inside = storage.join("pvc-1/mnt");
        fs::create_dir(&inside).unwrap();
        volumes::mount_tmpfs(&inside, 1 << 16, "0755").unwrap();
        fs::write(inside.join("other"), "x").unwrap();
        let kept = remove(&storage, "pvc-1").map_err(|error| error.to_string());
        let is_there = inside.join("other").exists();
        volumes::unmount_below(&storage).unwrap();
        assert_eq!((kept.unwrap_err().as_str(), is_there), ("something is mounted in it", true));
        remove(&storage, "pvc-1").unwrap();
    }

    #[test]
    fn a_pod_that_is_stopping_keeps_its_folder_until_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) = folders(folder.path());
        make(&folders.storage(), "a").unwrap();
        let used = set(&[], Some("a"), false);
        let BodyV1::Pod(pod) = &used.items[1].body else { panic!("a pod") };
        let mut kept = crate::pods::worker::Kept {
            pod: (**pod).clone(),
            generation: 1,
            state: crate::pods::PodState::new(pod, 0),
        };
        let path = folders.pod(&pod.uid, &pod.namespace, &pod.name).run;
        fs::create_dir_all(&path).unwrap();
        kept.store(&path).unwrap();
        // The set no longer holds it, and its containers still run.
        let asked = set(&["a"], None, false);
        assert_eq!(clear(&asked, &folders), Removals::default());
        kept.state.finished = Some(wire::status::PhaseV1::Succeeded);
        kept.store(&path).unwrap();
        assert_eq!(clear(&asked, &folders).removed, ["a"]);
    }

    #[test]
    fn only_what_is_asked_for_and_unused_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) = folders(folder.path());
        let storage = folders.storage();
        for name in ["a", "b", "c"] {
            make(&storage, name).unwrap();
        }
        let there = || ["a", "b", "c"].map(|name| storage.join(name).exists());
        assert_eq!(clear(&set(&["a", "b"], Some("a"), true), &folders), Removals::default());
        assert_eq!(there(), [true; 3], "a restored store may be older than the disk");
        let found = clear(&set(&["a", "b"], Some("a"), false), &folders);
        assert_eq!((found.removed, there()), (vec!["b".to_owned()], [true, false, true]));
        // A master that has not heard of it asks again.
        let found = clear(&set(&["a", "b"], None, false), &folders);
        assert_eq!(found.removed, ["a", "b"]);
        assert_eq!(there(), [false, false, true]);
    }
}
