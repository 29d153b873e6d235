//! Does what a pod's plan says: each [`Step`] becomes calls of the runtime, the
//! image store, the network and the file system, and ends as an [`Outcome`].
//!
//! A hook decides nothing and tries nothing twice. Every one may be repeated.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use runtime::{ContainerSpec, Resources, Runtime, RuntimeError, Security, User, Workload};
use tokio::sync::Semaphore;
use wire::Uid;
use wire::pod::{ContainerV1, PodV1, ResourcesV1, SourceV1};
use wire::status::PhaseV1;

use crate::config::{Folders, PodDirs};
use crate::env::{self, Facts};
use crate::images::{ImageContent, ImageRequest, Images, Progress, ReadyImage};
use crate::pods::{Desired, Outcome, PodState, Signal, Step};
use crate::results::{Record, Results};
use crate::sandbox::{self, PodNetwork};
use crate::{id, logs, volumes};

/// Steps of all pods that work at the same time. Pulls have a bound of their own.
const WORKING_MAX: usize = 8;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// What the agent runs pods with.
pub struct Hooks {
    /// Where things are.
    pub folders: Folders,
    /// Starts and stops containers.
    pub runtime: Arc<dyn Runtime>,
    /// Has images on disk.
    pub images: Arc<dyn Images>,
    /// Gives pods namespaces and addresses.
    pub network: Arc<dyn PodNetwork>,
    /// Keeps how pods ended.
    pub results: Results,
    /// What containers can learn about the node.
    pub node: RwLock<Facts>,
    /// Bounds the work at one time.
    pub working: Semaphore,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").field("folders", &self.folders).finish_non_exhaustive()
    }
}

/// What came of a step.
#[derive(Debug)]
pub struct Done {
    /// For the state machine.
    pub outcome: Outcome,
    /// The image, after a pull that succeeded.
    pub image: Option<(String, ReadyImage)>,
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, image: None }
    }
}

/// What a step needs to know besides itself.
#[derive(Clone, Debug)]
pub struct Context {
    /// The pod.
    pub desired: Desired,
    /// Its state when the step began.
    pub state: PodState,
    /// The image of the container that the step is about.
    pub image: Option<ReadyImage>,
}

impl Hooks {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        folders: Folders,
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn Images>,
        network: Arc<dyn PodNetwork>,
        results: Results,
        node: Facts,
    ) -> Self {
        let working = Semaphore::new(WORKING_MAX);
        Self { folders, runtime, images, network, results, node: RwLock::new(node), working }
    }

    /// The folders of a pod.
    #[must_use]
    pub fn dirs(&self, pod: &PodV1) -> PodDirs {
        self.folders.pod(&pod.uid, &pod.namespace, &pod.name)
    }

    /// Does one step; `progress` hears of what is worth an Event on the way.
    pub async fn perform(&self, step: Step, context: Context, progress: Progress<'_>) -> Done {
        let pod = &*context.desired.pod;
        match step {
            Step::Pull { container } => self.pull(&context.desired, container, progress).await,
            Step::SetUpSandbox => {
                let _working = self.work().await;
                let result = sandbox::set_up(pod, &self.dirs(pod), &*self.network).await;
                Outcome::Sandbox(match result {
                    Ok(address) => Ok(address.to_string()),
                    Err(error) => Err(chain(&error)),
                })
                .into()
            }
            Step::SetUpVolumes(_) => {
                let _working = self.work().await;
                let dirs = self.dirs(pod);
                let (pod, keys) = (Arc::clone(&context.desired.pod), context.desired.keys.clone());
                let result = blocking(move || volumes::set_up(&pod, &keys, &dirs)).await;
                Outcome::Volumes(
                    result
                        .map_err(|error| format!("MountVolume.SetUp failed for {}", chain(&error))),
                )
                .into()
            }
            Step::Start { container, attempt } => {
                let _working = self.work().await;
                let result = self.start(&context, &container, attempt).await;
                Outcome::Started { container, attempt, result }.into()
            }
            Step::Stop { container, attempt, signal, .. } => {
                self.stop(pod, &container, attempt, signal);
                Outcome::Stopped { container, attempt }.into()
            }
            Step::Remove { container, attempt } => {
                let _working = self.work().await;
                let run = id::container_id(&pod.uid, &container, attempt);
                let result = self.runtime.remove(&run).await.map_err(|error| chain(&error));
                Outcome::Removed { container, attempt, result }.into()
            }
            Step::Record(phase) => {
                let result = self.record(&context, phase).await;
                Outcome::Recorded(phase, result).into()
            }
            Step::TearDown => {
                let _working = self.work().await;
                Outcome::TornDown(self.tear_down(pod).await).into()
            }
            // The worker's own: it ends with it.
            Step::Forget => Outcome::TornDown(Ok(())).into(),
        }
    }

    async fn work(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.working.acquire().await.expect("the semaphore is never closed")
    }

    async fn pull(&self, desired: &Desired, name: String, progress: Progress<'_>) -> Done {
        let Some(container) = desired.container(&name) else {
            let result = Err(("ErrImagePull".to_owned(), "the container is gone".to_owned()));
            return Outcome::Pulled { container: name, result }.into();
        };
        let pod = &desired.pod;
        let secret = |name: &String| desired.keys.get(&SourceV1::Secret(name.clone()));
        let secrets = pod.pull_secrets.iter().filter_map(secret);
        let request = ImageRequest {
            pod: pod.uid,
            namespace: pod.namespace.clone(),
            keyring: crate::prepull::keyring(secrets.map(|keys| &*keys.data)),
            secrets: pod
                .pull_secrets
                .iter()
                .map(|name| format!("{}/{name}", pod.namespace))
                .collect(),
            container: name.clone(),
            reference: container.image.clone(),
            digest: container.digest.clone(),
            runtime: container.runtime,
            policy: container.pull_policy,
        };
        match self.images.get(request, progress).await {
            Ok(image) => {
                let result = Ok(image.id.clone());
                let outcome = Outcome::Pulled { container: name.clone(), result };
                Done { outcome, image: Some((name, image)) }
            }
            Err(error) => {
                let result = Err((error.reason, error.message));
                Outcome::Pulled { container: name, result }.into()
            }
        }
    }

    async fn start(
        &self,
        context: &Context,
        name: &str,
        attempt: u32,
    ) -> Result<u64, (String, String)> {
        let create =
            |message: String| (runtime::reason::CREATE_CONTAINER_ERROR.to_owned(), message);
        let config =
            |message: String| (runtime::reason::CREATE_CONTAINER_CONFIG_ERROR.to_owned(), message);
        let container = context
            .desired
            .container(name)
            .ok_or_else(|| create(format!("container {name} is not in the pod")))?;
        let image =
            context.image.as_ref().ok_or_else(|| create("the image is not on disk".to_owned()))?;
        let pod = &*context.desired.pod;
        let dirs = self.dirs(pod);
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        let facts = Facts { pod_ip: context.state.ip().to_owned(), ..node };
        let mut command =
            env::command(pod, container, &context.desired.keys, &image.config, &facts)
                .map_err(config)?;
        let is_module = !matches!(image.content, ImageContent::Oci { .. });
        if is_module && container.command.is_empty() && image.config.entrypoint.is_empty() {
            // A program's first argument is its own name; a module's image has none to give.
            command.args.insert(0, name.to_owned());
        }
        if command.args.is_empty() {
            return Err(config(format!(
                "no command specified: image \"{}\" has none, and neither has the container",
                container.image
            )));
        }
        let run = id::container_id(&pod.uid, name, attempt);
        let mut mounts = sandbox::file_mounts(container, &dirs);
        let of_volumes = {
            let (pod, container, dirs) =
                (Arc::clone(&context.desired.pod), container.clone(), dirs.clone());
            blocking(move || volumes::mounts(&pod, &container, &dirs)).await
        };
        mounts.extend(of_volumes.map_err(|error| config(chain(&error)))?);
        let log = logs::path(&dirs.logs, name, attempt);
        logs::prepare(&log).map_err(|error| {
            create(format!("cannot make the log folder of {}: {error}", log.display()))
        })?;
        let scratch = dirs.disk.join("containers").join(&run);
        let spec = ContainerSpec {
            id: run.clone(),
            pod_uid: id::uid_text(&pod.uid),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: name.to_owned(),
            attempt,
            image: container.image.clone(),
            workload: workload(&image.content, &scratch),
            args: command.args,
            env: command.env,
            cwd: command.cwd,
            user: User {
                name: image.config.user.clone(),
                uid: container.security.run_as_user,
                gid: container.security.run_as_group,
                non_root: container.security.run_as_non_root,
            },
            mounts,
            resources: resources(pod, container, facts.memory_bytes),
            security: Security {
                read_only_root: container.security.read_only_root,
                no_new_privileges: container.security.no_new_privileges,
                capabilities_add: container.security.capabilities_add.clone(),
                capabilities_drop: container.security.capabilities_drop.clone(),
            },
            sandbox: sandbox::of(pod, &dirs),
            cgroup: format!("{}/{name}-{attempt}", self.folders.pod_cgroup(&pod.uid)),
            log,
        };
        match self.runtime.start(spec).await {
            Ok(running) => Ok(running.started_ms),
            Err(RuntimeError::Launch(error)) => Err((error.reason, error.message)),
            Err(error) => Err(create(chain(&error))),
        }
    }

    fn stop(&self, pod: &PodV1, container: &str, attempt: u32, signal: Signal) {
        let run = id::container_id(&pod.uid, container, attempt);
        let number = match signal {
            Signal::Term => SIGTERM,
            Signal::Kill => SIGKILL,
        };
        // A signal that does not arrive is sent again as SIGKILL when its time comes.
        if let Err(error) = self.runtime.kill(&run, number) {
            tracing::warn!(container = run, error = chain(&error), "cannot signal");
        }
    }

    async fn record(&self, context: &Context, phase: PhaseV1) -> Result<(), String> {
        let mut record = Record::of(&context.state, &context.desired.pod);
        record.phase = phase;
        let (results, uid) = (self.results.clone(), context.desired.pod.uid);
        blocking(move || results.put(&uid, &record)).await.map_err(|error| chain(&error))
    }

    async fn tear_down(&self, pod: &PodV1) -> Result<(), String> {
        let dirs = self.dirs(pod);
        let mut failures = Vec::new();
        if let Err(error) = sandbox::tear_down(&pod.uid, &dirs, &*self.network).await {
            failures.push(chain(&error));
        }
        let cgroup = self.folders.pod_cgroup(&pod.uid);
        let below = dirs.clone();
        failures.extend(
            blocking(move || {
                let volumes = volumes::tear_down(&below).map_err(|error| chain(&error));
                let disk = match &volumes {
                    Ok(()) => remove_folder(&below.disk),
                    // What is still mounted there is not ours to empty.
                    Err(_) => Ok(()),
                };
                [volumes, disk, remove_cgroup(&cgroup)]
            })
            .await
            .into_iter()
            .filter_map(Result::err),
        );
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Removes the last traces of a pod: its logs and its run folder. Its record
    /// stays as a tombstone.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn forget(&self, pod: &PodV1, is_known: impl Fn(&Uid) -> bool) -> Result<(), String> {
        let dirs = self.dirs(pod);
        remove_folder(&dirs.logs)?;
        remove_folder(&dirs.run)?;
        self.results.prune(is_known).map_err(|error| format!("cannot prune results: {error}"))
    }
}

fn workload(content: &ImageContent, scratch: &Path) -> Workload {
    match content {
        ImageContent::Oci { layers } => {
            Workload::Oci { layers: layers.clone(), scratch: scratch.to_owned() }
        }
        ImageContent::Wasm { artifact, sha256, signature, key } => Workload::Wasm {
            artifact: artifact.clone(),
            sha256: *sha256,
            signature: signature.clone(),
            key: *key,
        },
    }
}

fn resources(pod: &PodV1, container: &ContainerV1, capacity_bytes: u64) -> Resources {
    let of = &container.resources;
    let is_bounded = |r: &ResourcesV1| {
        r.cpu_limit_millis > 0
            && r.memory_limit_bytes > 0
            && r.cpu_limit_millis == r.cpu_request_millis
            && r.memory_limit_bytes == r.memory_request_bytes
    };
    let asks = |r: &ResourcesV1| *r != ResourcesV1::default();
    let guaranteed = pod.containers.iter().all(|c| is_bounded(&c.resources));
    let best_effort = !pod.containers.iter().any(|c| asks(&c.resources));
    Resources {
        cpu_request_millis: of.cpu_request_millis,
        cpu_limit_millis: of.cpu_limit_millis,
        memory_limit_bytes: of.memory_limit_bytes,
        pids_max: 0,
        oom_score_adj: runtime::oom_score_adj(
            guaranteed,
            best_effort,
            of.memory_request_bytes,
            capacity_bytes,
        ),
    }
}

/// Removes a pod's cgroup in every hierarchy.
pub(crate) fn remove_cgroup(cgroup: &str) -> Result<(), String> {
    runtime::cgroup::Hierarchies::detect()
        .and_then(|hierarchies| hierarchies.remove(cgroup))
        .map_err(|error| format!("cannot remove the cgroup {cgroup}: {error}"))
}

/// Removes the cgroup above all pods, once none is left. One in use stays.
pub(crate) fn remove_root_cgroup(folders: &Folders) {
    for folder in cgroup_folders(&folders.cgroup()) {
        // Not recursive: a pod that starts meanwhile is not disturbed.
        let _ = fs::remove_dir(folder);
    }
}

/// Folders of a cgroup in every hierarchy that is mounted where it usually is.
pub(crate) fn cgroup_folders(cgroup: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = cgroup.trim_start_matches('/');
    let mut all = vec![root.join(below)];
    if let Ok(hierarchies) = fs::read_dir(root) {
        all.extend(hierarchies.flatten().map(|entry| entry.path().join(below)));
    }
    all.retain(|path| path.is_dir());
    all
}

/// Removes a folder and what is in it, once nothing is mounted there any more.
pub(crate) fn remove_folder(folder: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot remove {}: {error}", folder.display());
    if !folder.exists() {
        return Ok(());
    }
    volumes::unmount_below(folder).map_err(failed)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic and is not cancelled")
}

/// An error and its causes in one line, each said once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
