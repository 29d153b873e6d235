//! Static pods: manifests in a folder of the board, run whatever the master says.
//!
//! ```text
//! *.yaml, *.yml, *.json ──► defaults, validation, lowering ──► items of the node's own
//!                                                         └──► mirrors, for the master to show
//! ```
//!
//! The folder is watched, not polled. A file that cannot be read hides no other;
//! what is wrong with it becomes a finding of the node. A pod's uid follows from
//! the node, the file's name and the manifest, so a changed file is another pod,
//! and a restart of the agent or the board changes nothing. As with the kubelet,
//! a static pod names nothing that only the master has: no ConfigMap, Secret,
//! claim or ServiceAccount. Modules need the master's compiler, so images are OCI.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::schema::{self, strict, types};
use api::{resource, validation};
use rustix::fs::inotify;
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use wire::Uid;
use wire::node::{STATIC_BYTES_MAX, StaticPodV1};
use wire::pod::{PodV1, ProjectionV1, RuntimeV1, SourceV1, VolumeSourceV1};
use wire::set::{BodyV1, ItemV1};

use crate::id;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most files that are read.
const FILES_MAX: usize = 64;
/// How long the folder must be quiet before it is read: editors write in steps.
const QUIET: Duration = Duration::from_millis(300);

/// The annotation that names a static pod's identity on its node.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

/// What the folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// The pods, lowered.
    pub items: Vec<ItemV1>,
    /// The same for the master.
    pub mirrors: Vec<StaticPodV1>,
    /// What could not be read, one sentence each, the file first.
    pub problems: Vec<String>,
}

/// Reads the folder. One that does not exist holds nothing.
#[must_use]
pub fn read(folder: &Path, node: &str) -> Manifests {
    let mut manifests = Manifests::default();
    let files = match files(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return manifests,
        Err(error) => {
            manifests.problems.push(format!("{}: {error}", folder.display()));
            return manifests;
        }
    };
    let mut names: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut n_bytes = 0;
    for path in files {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let taken =
            read_file(&path).and_then(|text| pod(&text, &file, node)).and_then(|(item, mirror)| {
                n_bytes += mirror.manifest.len();
                if n_bytes > STATIC_BYTES_MAX {
                    return Err(format!(
                        "the manifests of all files have more than {STATIC_BYTES_MAX} bytes"
                    ));
                }
                let BodyV1::Pod(pod) = &item.body else { return Ok((item, mirror)) };
                let name = (pod.namespace.clone(), pod.name.clone());
                match names.insert(name, file.clone()) {
                    Some(other) => {
                        Err(format!("pod {}/{} is in {other} too", pod.namespace, pod.name))
                    }
                    None => Ok((item, mirror)),
                }
            });
        match taken {
            Ok((item, mirror)) => {
                manifests.items.push(item);
                manifests.mirrors.push(mirror);
            }
            Err(problem) => manifests.problems.push(format!("{file}: {problem}")),
        }
    }
    manifests
}

/// The manifests of the folder, in the order of their names.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_manifest =
            path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if is_manifest && !is_hidden {
            files.push(path);
        }
    }
    files.sort();
    files.truncate(FILES_MAX);
    Ok(files)
}

fn read_file(path: &Path) -> Result<String, String> {
    let read = || {
        let file = fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// One manifest as the node runs it and as the master shows it.
fn pod(text: &str, file: &str, node: &str) -> Result<(ItemV1, StaticPodV1), String> {
    let mut object: Value = serde_saphyr::from_str(text).map_err(|error| {
        // The lines below the first show the place once more.
        let error = error.to_string();
        format!("it is not YAML: {}", error.lines().next().unwrap_or_default())
    })?;
    let kind = (object["apiVersion"].as_str(), object["kind"].as_str());
    if kind != (Some("v1"), Some("Pod")) {
        return Err("a static pod has apiVersion \"v1\" and kind \"Pod\"".to_owned());
    }
    let pods = resource::by_kind("", "Pod").expect("in the table of resources");
    let of = schema::table().kind("", "v1", "Pod").expect("in the table of types");
    let problem = |error: &dyn std::fmt::Display| error.to_string();
    if let Some(error) = types::check(of, &object).first() {
        return Err(problem(error));
    }
    if let Some(error) = strict::check(of, &object).first() {
        return Err(problem(error));
    }
    let uid = uid(node, file, &object);
    own(&mut object, node, &uid)?;
    api::defaults::apply(pods, &mut object);
    let unsupported = validation::unsupported::check(pods, &object);
    if let Some(error) = validation::create(pods, &object).iter().chain(&unsupported.refused).next()
    {
        return Err(error.to_string());
    }
    let lowered = lower::pod(&object).map_err(|error| error.to_string())?;
    if let BodyV1::Pod(pod) = &lowered.item.body {
        needs_no_master(pod)?;
    }
    if let Some(source) = lowered.sources.first() {
        let (kind, name) = match source {
            SourceV1::ConfigMap(name) => ("ConfigMap", name),
            SourceV1::Secret(name) => ("Secret", name),
        };
        return Err(format!(
            "a static pod cannot use {kind} {name:?}: only the master has it; use files of the board"
        ));
    }
    // The master gives the mirror a uid of its own.
    let mut mirror = object;
    if let Some(metadata) = mirror["metadata"].as_object_mut() {
        metadata.remove("uid");
    }
    Ok((lowered.item, StaticPodV1 { uid, manifest: mirror.to_string() }))
}

/// What needs the master to run.
fn needs_no_master(pod: &PodV1) -> Result<(), String> {
    if let Some(module) = pod.all_containers().find(|c| c.runtime == RuntimeV1::Wasm) {
        return Err(format!(
            "container {:?}: a static pod cannot run a module: the master compiles it",
            module.name
        ));
    }
    if !pod.service_account.is_empty() {
        return Err(format!(
            "a static pod cannot run as ServiceAccount {:?}: only the master has it",
            pod.service_account
        ));
    }
    let has_token = |source: &ProjectionV1| matches!(source, ProjectionV1::Token { .. });
    let volume = pod.volumes.iter().find(|volume| match &volume.source {
        VolumeSourceV1::Projected { sources, .. } => sources.iter().any(has_token),
        VolumeSourceV1::Local { .. } | VolumeSourceV1::Made { .. } | VolumeSourceV1::Waits(_) => {
            true
        }
        _ => false,
    });
    match volume {
        Some(volume) => Err(format!(
            "volume {:?}: a static pod has neither tokens nor claims: the master gives them",
            volume.name
        )),
        None => Ok(()),
    }
}

/// Identity of a pod: the same file on the same node is the same pod.
fn uid(node: &str, file: &str, object: &Value) -> Uid {
    let text = format!("{node}\n{file}\n{object}");
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let bytes: Uid = digest.as_ref()[..16].try_into().expect("16 of 32 bytes");
    *uuid::Builder::from_custom_bytes(bytes).into_uuid().as_bytes()
}

/// Says in the object whose it is, as the kubelet does.
fn own(object: &mut Value, node: &str, uid: &Uid) -> Result<(), String> {
    let metadata = object["metadata"].as_object_mut().ok_or("metadata is missing")?;
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    let name = format!("{name}-{node}");
    let uid = id::uid_text(uid);
    metadata.insert("name".to_owned(), json!(name));
    metadata.entry("namespace").or_insert_with(|| json!("default"));
    metadata.insert("uid".to_owned(), json!(uid));
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    let annotations = annotations.as_object_mut().ok_or("metadata.annotations is no object")?;
    annotations.insert("kubernetes.io/config.source".to_owned(), json!("file"));
    annotations.insert(HASH_ANNOTATION.to_owned(), json!(uid));
    let spec = object["spec"].as_object_mut().ok_or("spec is missing")?;
    spec.insert("nodeName".to_owned(), json!(node));
    // Nothing of the scheduler's or the eviction controller's moves it.
    spec.insert("tolerations".to_owned(), json!([{"operator": "Exists", "effect": "NoExecute"}]));
    Ok(())
}

/// Watches the folder for as long as anybody listens, and makes it where it is missing.
pub async fn watch(folder: PathBuf, node: String, out: watch::Sender<Arc<Manifests>>) {
    let events = match watcher(&folder) {
        Ok(events) => events,
        Err(error) => {
            let problem = format!("{}: changes are not seen: {error}", folder.display());
            out.send_modify(|now| Arc::make_mut(now).problems.push(problem));
            return;
        }
    };
    loop {
        let (at, of) = (folder.clone(), node.clone());
        let new = tokio::task::spawn_blocking(move || read(&at, &of)).await;
        let new = Arc::new(new.expect("reading does not panic"));
        out.send_if_modified(|old| {
            let is_new = *old != new;
            old.clone_from(&new);
            is_new
        });
        tokio::select! {
            () = out.closed() => return,
            () = changed(&events) => {}
        }
    }
}

fn watcher(folder: &Path) -> io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    fs::create_dir_all(folder)?;
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let what = inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&events, folder, what)?;
    // SAFETY: an OwnedFd is one descriptor for as long as it lives, and nothing
    // here replaces or closes it while the reactor has it.
    Ok(unsafe { AsyncFd::register(events) }?)
}

/// Returns once something changed and the folder has been quiet for a moment.
async fn changed(events: &AsyncFd<std::os::fd::OwnedFd>) {
    let mut is_first = true;
    loop {
        let ready = events.readable();
        let guard = if is_first {
            ready.await
        } else {
            match tokio::time::timeout(QUIET, ready).await {
                Ok(guard) => guard,
                Err(_) => return,
            }
        };
        // A descriptor that fails stays quiet; the folder is read at the next start.
        let Ok(mut guard) = guard else { return std::future::pending().await };
        is_first = false;
        let mut bytes = [0; 4096];
        let read = guard.try_io(|events| Ok(rustix::io::read(events.get_ref(), &mut bytes)?));
        if matches!(read, Ok(Err(_))) {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: main, image: 'registry.local/web:1'}
";

    fn check(files: &[(&str, &str)], expected: &Expect) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let found = read(folder.path(), "pi");
        let pods = found.items.iter().map(|item| match &item.body {
            BodyV1::Pod(pod) => format!("pod {}/{}\n", pod.namespace, pod.name),
            other => panic!("{other:?}"),
        });
        let problems = found.problems.iter().map(|problem| format!("{problem}\n"));
        expected.assert_eq(&pods.chain(problems).collect::<String>());
    }

    #[test]
    fn each_file_is_a_pod_or_a_problem_of_its_own() {
        let with = |line: &str| format!("{POD}{line}");
        check(
            &[
                ("a.yaml", POD),
                (
                    "b.json",
                    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j","namespace":"n"},
                    "spec":{"containers":[{"name":"c","image":"i"}]}}"#,
                ),
                ("c.yaml", POD),
                ("d.yaml", "{"),
                ("e.yaml", "apiVersion: apps/v1\nkind: Deployment"),
                ("f.yaml", &with("  nodePort: 4\n")),
                (
                    "g.yaml",
                    "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}",
                ),
                (
                    "h.yaml",
                    &with("  volumes: [{name: v, configMap: {name: m}}]\n").replace("web}", "v}"),
                ),
                ("i.yaml", &with("  runtimeClassName: wasm\n").replace("web}", "w}")),
                ("j.txt", "not read"),
                (".k.yaml", "not read"),
                ("l.yaml", &with("  serviceAccountName: build\n").replace("web}", "u}")),
            ],
            &expect![[r#"
                pod default/web-pi
                pod n/j-pi
                c.yaml: pod default/web-pi is in a.yaml too
                d.yaml: it is not YAML: error: line 1 column 1: unclosed bracket '{'
                e.yaml: a static pod has apiVersion "v1" and kind "Pod"
                f.yaml: unknown field "spec.nodePort"
                g.yaml: spec.containers: Required value
                h.yaml: a static pod cannot use ConfigMap "m": only the master has it; use files of the board
                i.yaml: container "main": a static pod cannot run a module: the master compiles it
                l.yaml: a static pod cannot run as ServiceAccount "build": only the master has it
            "#]],
        );
    }

    #[test]
    fn the_same_file_is_the_same_pod_and_a_changed_one_another() {
        let uid = |text: &str, file: &str, node: &str| pod(text, file, node).unwrap().1.uid;
        assert_eq!(uid(POD, "a.yaml", "pi"), uid(POD, "a.yaml", "pi"));
        assert_ne!(uid(POD, "a.yaml", "pi"), uid(POD, "a.yaml", "other"));
        assert_ne!(uid(POD, "a.yaml", "pi"), uid(&POD.replace(":1", ":2"), "a.yaml", "pi"));
        let (item, mirror) = pod(POD, "a.yaml", "pi").unwrap();
        assert_eq!(item.uid, mirror.uid);
        let mirror: Value = serde_json::from_str(&mirror.manifest).unwrap();
        assert_eq!(mirror["metadata"]["annotations"][HASH_ANNOTATION], id::uid_text(&item.uid));
        assert_eq!(mirror["spec"]["nodeName"], "pi");
        assert!(mirror["metadata"]["uid"].is_null());
    }

    #[tokio::test]
    async fn a_change_of_the_folder_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifests");
        let (out, mut seen) = watch::channel(Arc::new(Manifests::default()));
        let watching = tokio::spawn(watch(path.clone(), "pi".to_owned(), out));
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, async {
            while !path.exists() {
                tokio::task::yield_now().await
            }
        })
        .await
        .unwrap();
        fs::write(path.join("a.yaml"), POD).unwrap();
        let has = |n: usize| move |now: &Arc<Manifests>| now.items.len() == n;
        tokio::time::timeout(patience, seen.wait_for(has(1))).await.unwrap().unwrap();
        fs::remove_file(path.join("a.yaml")).unwrap();
        tokio::time::timeout(patience, seen.wait_for(has(0))).await.unwrap().unwrap();
        drop(seen);
        tokio::time::timeout(patience, watching).await.unwrap().unwrap();
    }
}
