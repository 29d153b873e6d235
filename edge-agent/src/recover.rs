//! What an agent finds when it starts, and what it clears away.
//!
//! ```text
//! another boot than the run folder's?  ─► empty the run folder (its mounts are gone)
//! run/pods/<uid>/state                 ─► the pod goes on from there
//! run/containers/<id> without a state  ─► taken over from its own folder
//! in no set                            ─► stopped and removed, if the set is known
//! links, cgroups, folders of no pod    ─► removed, if the set is known
//! ```
//!
//! An agent that does not know its set (a damaged file, a new disk) removes
//! nothing and stops nothing: what runs goes on until the master has spoken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use runtime::dir::ContainerDir;
use wire::Uid;
use wire::set::SnapshotV1;

use crate::clock::Now;
use crate::config::Folders;
use crate::durable::{self, Keep};
use crate::hooks::{
    Hooks, cgroup_folders, chain, remove_cgroup, remove_folder, remove_root_cgroup,
};
use crate::id;
use crate::network::Network;
use crate::pods::owner::Found;
use crate::pods::worker::Kept;
use crate::pods::{Container, Desired, KeySet, Leftover, PodState, Run, fresh_state};
use crate::seal::Seal;
use crate::{sandbox, set, volumes};

/// Empties the run folder if it is of another boot of the machine: what it names
/// is gone, and its numbers mean other processes now.
///
/// # Errors
/// The folder cannot be read or emptied.
pub fn check_boot(folders: &Folders) -> io::Result<()> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let marker = folders.run.join("boot");
    let seen = fs::read(&marker).unwrap_or_default();
    if seen == boot.as_bytes() {
        return Ok(());
    }
    if !is_boot_id(&seen) && is_of_this_boot(folders) {
        tracing::warn!("{} is damaged: what runs shows which boot it is", marker.display());
        return mark(&marker, &boot);
    }
    for below in ["pods", "containers"] {
        let folder = folders.run.join(below);
        volumes::unmount_below(&folder)?;
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // How old they are, is counted from the boot.
    durable::remove(&folders.run.join("tokens"))?;
    fs::create_dir_all(folders.run.join("pods"))?;
    mark(&marker, &boot)
}

fn mark(marker: &Path, boot: &str) -> io::Result<()> {
    durable::write_text(marker, boot, Keep::ThroughRestart)
        .map_err(|error| io::Error::other(chain(&error)))
}

fn is_boot_id(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| uuid::Uuid::try_parse(text.trim()).is_ok())
}

/// Whether something shows that the run folder is of this boot: a mount, which no
/// boot survives, or a container that runs.
fn is_of_this_boot(folders: &Folders) -> bool {
    let containers = fs::read_dir(folders.run.join("containers")).into_iter().flatten().flatten();
    volumes::has_mounts_below(&folders.run.join("pods"))
        || containers.into_iter().any(|entry| ContainerDir::new(entry.path()).is_live())
}

/// Reads the set; a damaged one is as good as none.
#[must_use]
pub fn load_set(folders: &Folders, seal: &Seal) -> Option<Arc<SnapshotV1>> {
    match set::load(&folders.set(), seal) {
        Ok(set) => set.map(Arc::new),
        Err(error) => {
            tracing::error!(error = chain(&error), "the set is asked of the master again");
            None
        }
    }
}

/// A run of a container whose folder was found.
struct Trace {
    id: String,
    uid: Option<Uid>,
    container: String,
    attempt: u32,
}

/// Finds every pod there is something of, and what is wanted of it by the set
/// and by the manifests of the board itself (`local`).
#[must_use]
pub fn find(
    hooks: &Hooks,
    set: Option<&SnapshotV1>,
    local: BTreeMap<Uid, Desired>,
    now: Now,
) -> Vec<Found> {
    let mut wanted = set.map(set::pods).unwrap_or_default();
    wanted.extend(local);
    let traces = traces(hooks);
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (uid, kept) in kept(&hooks.folders) {
        let mut state = kept.state;
        state.resume();
        let desired = wanted.remove(&uid).unwrap_or_else(|| Desired {
            pod: Arc::new(kept.pod),
            generation: kept.generation,
            // Without a set, or with one of a store that may be too old, nothing is
            // known to be unwanted.
            present: set.is_none_or(set::holds_unknown),
            keys: KeySet::new(),
            tokens: crate::tokens::Held::default(),
            eviction: None,
            restarts: 0,
        });
        add_traces(&mut state, &traces, &uid, false);
        seen.insert(uid);
        found.push(Found { desired, state });
    }
    for (uid, desired) in wanted {
        let mut state = fresh_state(hooks, &desired.pod, now.wall_ms);
        add_traces(&mut state, &traces, &uid, true);
        seen.insert(uid);
        found.push(Found { desired, state });
    }
    found
}

/// Gives the network the addresses that pods hold.
pub fn adopt_addresses(hooks: &Hooks, network: &Network, found: &[Found]) {
    for pod in found {
        if let Some(address) = sandbox::held_address(&hooks.dirs(&pod.desired.pod)) {
            network.adopt(pod.desired.pod.uid, address);
        }
    }
}

/// Removes what belongs to no pod. Only for an agent that knows its set.
pub async fn clear_strays(hooks: &Arc<Hooks>, network: &Network, known: &[Uid]) {
    for trace in traces(hooks) {
        if trace.uid.is_none_or(|uid| !known.contains(&uid)) {
            tracing::warn!(container = trace.id, "a container of no pod is removed");
            if let Err(error) = hooks.runtime.remove(&trace.id).await {
                tracing::warn!(container = trace.id, error = chain(&error), "cannot remove it");
            }
        }
    }
    match network.remove_strays(known).await {
        Ok(links) if links.is_empty() => {}
        Ok(links) => tracing::info!(?links, "links of no pod are removed"),
        Err(error) => tracing::warn!(error = chain(&error), "cannot remove links of no pod"),
    }
    let (hooks, known) = (Arc::clone(hooks), known.to_vec());
    let cleared = tokio::task::spawn_blocking(move || clear_folders(&hooks.folders, &known));
    for failure in cleared.await.expect("removing folders does not panic") {
        tracing::warn!("{failure}");
    }
}

fn clear_folders(folders: &Folders, known: &[Uid]) -> Vec<String> {
    let mut failures = Vec::new();
    let is_known = |uid: &Uid| known.contains(uid);
    for base in [folders.run.join("pods"), folders.state.join("pods")] {
        for (uid, path) in entries(&base, id::parse_uid) {
            if !is_known(&uid) {
                failures.extend(remove_folder(&path).err());
            }
        }
    }
    let of_log = |name: &str| id::parse_uid(name.rsplit_once('_')?.1);
    for (uid, path) in entries(&folders.state.join("logs"), of_log) {
        if !is_known(&uid) {
            failures.extend(remove_folder(&path).err());
        }
    }
    failures.extend(clear_cgroups(folders, known));
    failures
}

/// Removes the cgroups of all pods but the known; says what could not be removed.
pub(crate) fn clear_cgroups(folders: &Folders, known: &[Uid]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut cgroups = BTreeSet::new();
    for hierarchy in cgroup_folders(&folders.cgroup()) {
        cgroups.extend(
            entries(&hierarchy, |name| id::parse_uid(name.strip_prefix("pod")?))
                .into_iter()
                .map(|(uid, _)| uid),
        );
    }
    for uid in cgroups.iter().filter(|uid| !known.contains(uid)) {
        failures.extend(remove_cgroup(&folders.pod_cgroup(uid)).err());
    }
    if known.is_empty() {
        remove_root_cgroup(folders);
    }
    failures
}

fn entries(folder: &Path, uid: impl Fn(&str) -> Option<Uid>) -> Vec<(Uid, std::path::PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((uid(entry.file_name().to_str()?)?, entry.path())))
        .collect()
}

fn kept(folders: &Folders) -> BTreeMap<Uid, Kept> {
    entries(&folders.run.join("pods"), id::parse_uid)
        .into_iter()
        .filter_map(|(uid, path)| match Kept::load(&path) {
            Ok(kept) => kept.filter(|kept| kept.pod.uid == uid).map(|kept| (uid, kept)),
            Err(error) => {
                tracing::error!(error = chain(&error), "a pod's state is rebuilt");
                None
            }
        })
        .collect()
}

/// Pods of which something is here and that have not ended.
#[must_use]
pub fn unfinished(folders: &Folders) -> Vec<wire::pod::PodV1> {
    let all = kept(folders).into_values();
    all.filter(|kept| kept.state.finished.is_none()).map(|kept| kept.pod).collect()
}

fn traces(hooks: &Hooks) -> Vec<Trace> {
    let containers = hooks.folders.run.join("containers");
    hooks
        .runtime
        .list()
        .into_iter()
        .map(|id| match ContainerDir::new(containers.join(&id)).spec() {
            Ok(spec) => Trace {
                uid: id::parse_uid(&spec.pod_uid),
                container: spec.container,
                attempt: spec.attempt,
                id,
            },
            // Its folder was made and nothing was started.
            Err(_) => Trace { id, uid: None, container: String::new(), attempt: 0 },
        })
        .collect()
}

/// Brings a state to the runs that were found. `is_fresh` where the state knows
/// of none: the newest run is looked at, those before are cleared away.
fn add_traces(state: &mut PodState, traces: &[Trace], uid: &Uid, is_fresh: bool) {
    for container in &mut state.containers {
        let mut runs: Vec<&Trace> = traces
            .iter()
            .filter(|trace| trace.uid == Some(*uid) && trace.container == container.name)
            .collect();
        runs.sort_by_key(|trace| trace.attempt);
        if let Some(last) = runs.last() {
            container.next_attempt = container.next_attempt.max(last.attempt.saturating_add(1));
        }
        if is_fresh
            && state.finished.is_none()
            && let Some(newest) = runs.pop()
        {
            container.run = Run::Starting {
                attempt: newest.attempt,
                image: container.image.reference.clone(),
                image_id: String::new(),
                stop_signal: None,
                in_flight: false,
            };
            // It is counted again when it is seen.
            container.n_runs = container.n_runs.min(newest.attempt);
        }
        leave(container, runs.iter().map(|trace| trace.attempt));
    }
}

fn leave(container: &mut Container, attempts: impl Iterator<Item = u32>) {
    for attempt in attempts {
        let is_current = container.run.is_live() && container.run.attempt() == Some(attempt);
        let is_known = container.leftovers.iter().any(|leftover| leftover.attempt == attempt);
        if !is_current && !is_known {
            container.leftovers.push(Leftover { attempt, is_removing: false, failure: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_folder_of_another_boot_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) =
            Folders::open(&folder.path().join("state"), &folder.path().join("run")).unwrap();
        check_boot(&folders).unwrap();
        let state = folders.run.join("pods/x/state");
        let container = folders.run.join("containers/y/config.json");
        for path in [&state, &container] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        check_boot(&folders).unwrap();
        assert!(state.exists() && container.exists(), "the same boot");
        // Damaged, and nothing shows that it is this boot.
        for marker in ["another", "", "6e2f6f7e-0000-4000-8000-000000000000\n"] {
            fs::create_dir_all(state.parent().unwrap()).unwrap();
            fs::write(&state, "").unwrap();
            fs::write(folders.run.join("boot"), marker).unwrap();
            check_boot(&folders).unwrap();
            assert!(!state.exists() && !container.exists(), "{marker:?}");
        }
        assert!(folders.run.join("pods").is_dir());
    }
}
