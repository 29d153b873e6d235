//! Does what a pod's plan says: each [`Step`] becomes calls of the runtime, the
//! image store, the network and the file system, and ends as an [`Outcome`].
//!
//! A hook decides nothing and tries nothing twice. Every one may be repeated.

mod handler;
mod last_words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use runtime::{ContainerSpec, Resources, Runtime, RuntimeError, Security, Stdio, User, Workload};
use tokio::sync::Semaphore;
use wire::Uid;
use wire::pod::{ContainerV1, PodV1, ProtocolV1, ResourcesV1, SeccompV1, SourceV1};
use wire::set::{BodyV1, SnapshotV1};
use wire::status::PhaseV1;

use crate::config::{Folders, PodDirs};
use crate::devices::Devices;
use crate::env::{self, Facts};
use crate::images::{ImageContent, ImageRequest, Images, Progress, ReadyImage};
use crate::pods::{Desired, Outcome, PodState, Pulled, Run, Signal, Step};
use crate::policy::Policy;
use crate::results::{Record, Results};
use crate::sandbox::{self, PodNetwork};
use crate::seal::Seal;
use crate::{id, logs, service_env, volumes};

/// Steps of all pods that work at the same time. Pulls have a bound of their own.
const WORKING_MAX: usize = 8;

/// Probes of all pods that are asked at the same time.
const ASKING_MAX: usize = 64;

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
    /// Seals what holds Secrets before it goes to the disk.
    pub seal: Arc<Seal>,
    /// What containers can learn about the node.
    pub node: RwLock<Facts>,
    /// What pods may do here.
    pub policy: Policy,
    /// Gives devices to containers.
    pub devices: Devices,
    /// Bounds the work at one time.
    pub working: Semaphore,
    /// Bounds the probes that are asked at one time.
    pub asking: Semaphore,
    /// The newest set, for the Services that containers are told of.
    set: RwLock<Option<Arc<SnapshotV1>>>,
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
        seal: Arc<Seal>,
        node: Facts,
    ) -> Self {
        let (working, asking) = (Semaphore::new(WORKING_MAX), Semaphore::new(ASKING_MAX));
        let node = RwLock::new(node);
        let (policy, devices) = (Policy::default(), Devices::default());
        Self {
            folders,
            runtime,
            images,
            network,
            results,
            seal,
            node,
            policy,
            devices,
            working,
            asking,
            set: RwLock::default(),
        }
    }

    /// What the newest set is.
    pub fn set_is(&self, set: &Arc<SnapshotV1>) {
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(set));
    }

    /// The variables that name Services to a pod's containers.
    fn services(&self, pod: &PodV1) -> Vec<(String, String)> {
        let set = self.set.read().unwrap_or_else(PoisonError::into_inner).clone();
        let items = set.iter().flat_map(|set| &set.items);
        let services = items.filter_map(|item| match &item.body {
            BodyV1::Service(service) => Some(&**service),
            _ => None,
        });
        service_env::variables(services, &pod.namespace, pod.service_links)
    }

    /// With what the operator of this board lets pods do.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.devices = Devices::open(self.folders.state.join("devices"), policy.devices.clone());
        self.policy = policy;
        self
    }

    /// What containers can learn about the node, now.
    fn facts(&self) -> Facts {
        self.node.read().unwrap_or_else(PoisonError::into_inner).clone()
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
                Outcome::Sandbox(self.set_up_sandbox(pod).await).into()
            }
            Step::SetUpVolumes(_) => {
                let _working = self.work().await;
                let dirs = self.dirs(pod);
                let pod = Arc::clone(&context.desired.pod);
                let sources = volumes::Sources {
                    keys: context.desired.keys.clone(),
                    facts: self.facts(),
                    tokens: (*context.desired.tokens.tokens).clone(),
                };
                let result = blocking(move || volumes::set_up(&pod, &sources, &dirs)).await;
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
            Step::PostStart { container, attempt } => {
                let result = self.post_start(&context, &container, attempt).await;
                Outcome::PostStarted { container, attempt, result }.into()
            }
            Step::PreStop { container, attempt, limit, .. } => {
                let result = self.pre_stop(&context, &container, attempt, limit).await;
                Outcome::PreStopped { container, attempt, result }.into()
            }
            Step::Stop { container, attempt, signal, .. } => {
                self.stop(&context, &container, attempt, signal);
                Outcome::Stopped { container, attempt }.into()
            }
            Step::Remove { container, attempt } => {
                let _working = self.work().await;
                let run = id::container_id(&pod.uid, &container, attempt);
                let removed = self.runtime.remove(&run).await.map_err(|error| chain(&error));
                let words = last_words::folder(&self.dirs(pod), &container, attempt);
                let result = removed.and_then(|()| remove_folder(&words));
                Outcome::Removed { container, attempt, result }.into()
            }
            Step::Keep(progress) => {
                let result = self.keep(pod, progress.clone()).await;
                Outcome::Kept(progress, result).into()
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

    async fn set_up_sandbox(&self, pod: &PodV1) -> Result<String, String> {
        let cgroup = self.folders.pod_cgroup(&pod.uid);
        let limits = pod_resources(pod, self.policy.pod_pids_max);
        // Before the first process of the pod: what a container is given is a share
        // of what its pod is given.
        blocking(move || runtime::cgroup::Hierarchies::detect()?.create(&cgroup, &limits))
            .await
            .map_err(|error| format!("cannot set the pod's limits: {error}"))?;
        sandbox::set_up(pod, &self.dirs(pod), &*self.network, &self.facts())
            .await
            .map_err(|error| chain(&error))
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
                let (id, stop_signal) = (image.id.clone(), image.config.stop_signal);
                let result = Ok(Pulled { id, stop_signal });
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
        let facts = Facts {
            pod_ip: context.state.ip().to_owned(),
            services: self.services(pod),
            ..self.facts()
        };
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
        let sub_paths =
            env::sub_paths(pod, container, &context.desired.keys, &facts).map_err(config)?;
        let cgroup = self.folders.pod_cgroup(&pod.uid);
        if pod.namespaces.share_process && !pod.namespaces.host_pid {
            let (run, cgroup) = (dirs.run.clone(), cgroup.clone());
            let held = blocking(move || sandbox::pause::ensure(&run, &cgroup)).await;
            held.map_err(|error| create(chain(&error)))?;
        }
        let devices = self.devices.give(pod, container).map_err(config)?;
        let of_volumes = {
            let (pod, container, dirs) =
                (Arc::clone(&context.desired.pod), container.clone(), dirs.clone());
            blocking(move || volumes::mounts(&pod, &container, &sub_paths, &dirs)).await
        };
        mounts.extend(of_volumes.map_err(|error| config(chain(&error)))?);
        mounts.extend(last_words::mount(container, &dirs, attempt, &mounts).map_err(create)?);
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
            workload: workload(&image.content, &scratch, http_port(container)),
            args: command.args,
            env: command.env,
            cwd: command.cwd,
            user: User {
                name: image.config.user.clone(),
                uid: container.security.run_as_user,
                gid: container.security.run_as_group,
                non_root: container.security.run_as_non_root,
                groups: groups(pod),
            },
            mounts,
            resources: resources(pod, container, facts.memory_bytes),
            security: Security {
                read_only_root: container.security.read_only_root,
                no_new_privileges: container.security.no_new_privileges,
                capabilities_add: container.security.capabilities_add.clone(),
                capabilities_drop: container.security.capabilities_drop.clone(),
                privileged: container.security.privileged,
                seccomp: self.seccomp(container).map_err(create)?,
                unmasked_proc: container.security.unmasked_proc,
                devices,
            },
            stdio: Stdio {
                stdin: container.stdio.stdin,
                stdin_once: container.stdio.stdin_once,
                tty: container.stdio.tty,
            },
            sandbox: sandbox_of(context, container, &dirs).map_err(create)?,
            cgroup: format!("{cgroup}/{name}-{attempt}"),
            log,
        };
        match self.runtime.start(spec).await {
            Ok(running) => Ok(running.started_ms),
            Err(RuntimeError::Launch(error)) => Err((error.reason, error.message)),
            Err(error) => Err(create(chain(&error))),
        }
    }

    /// A profile of the node is looked for below one folder and nowhere else.
    fn seccomp(&self, container: &ContainerV1) -> Result<runtime::Seccomp, String> {
        Ok(match &container.security.seccomp {
            SeccompV1::RuntimeDefault => runtime::Seccomp::Default,
            SeccompV1::Unconfined => runtime::Seccomp::Unconfined,
            SeccompV1::Localhost(path) => {
                let is_plain = Path::new(path)
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_)));
                if path.is_empty() || !is_plain {
                    return Err(format!("seccomp profile {path:?} is not below the node's folder"));
                }
                runtime::Seccomp::File(self.folders.state.join("seccomp").join(path))
            }
        })
    }

    fn stop(&self, context: &Context, name: &str, attempt: u32, signal: Signal) {
        let run = id::container_id(&context.desired.pod.uid, name, attempt);
        let number = match signal {
            Signal::Term => stop_signal(context, name),
            Signal::Kill => SIGKILL,
        };
        // A signal that does not arrive is sent again as SIGKILL when its time comes.
        if let Err(error) = self.runtime.kill(&run, number) {
            tracing::warn!(container = run, error = chain(&error), "cannot signal");
        }
    }

    async fn keep(&self, pod: &PodV1, progress: crate::progress::Progress) -> Result<(), String> {
        let disk = self.dirs(pod).disk;
        blocking(move || progress.store(&disk)).await.map_err(|error| chain(&error))
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
        failures.extend(self.devices.take_back(&pod.uid).err());
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

/// Where a module that answers HTTP requests listens: the first TCP port that
/// its container names, or 8080.
fn http_port(container: &ContainerV1) -> u16 {
    let of_tcp = container.ports.iter().find(|port| port.protocol == ProtocolV1::Tcp);
    of_tcp.map_or(8080, |port| port.port)
}

/// The pod's namespaces as a container joins them: with the processes of the
/// container that it looks into, where it names one and the pod does not share them.
fn sandbox_of(
    context: &Context,
    container: &ContainerV1,
    dirs: &PodDirs,
) -> Result<runtime::Sandbox, String> {
    let pod = &*context.desired.pod;
    let mut sandbox = sandbox::of(pod, dirs);
    let target = &container.target;
    if target.is_empty() || sandbox.pid != runtime::PidNamespace::Own {
        return Ok(sandbox);
    }
    match context.state.container(target).map(|target| &target.run) {
        Some(Run::Running { attempt, .. }) => {
            let id = id::container_id(&pod.uid, target, *attempt);
            sandbox.pid = runtime::PidNamespace::Container(id);
            Ok(sandbox)
        }
        Some(_) => Err(format!("target container {target:?} does not run")),
        None => Err(format!("unable to find target container {target:?}")),
    }
}

/// What the container is asked to stop with: what the manifest says, else the
/// image it runs.
fn stop_signal(context: &Context, name: &str) -> i32 {
    let wanted = context.desired.container(name).and_then(|wanted| wanted.lifecycle.stop_signal);
    let image = context.state.container(name).and_then(|container| match container.run {
        Run::Running { stop_signal, .. } => stop_signal,
        _ => None,
    });
    wanted.or(image).map_or(SIGTERM, i32::from)
}

fn workload(content: &ImageContent, scratch: &Path, http_port: u16) -> Workload {
    match content {
        ImageContent::Oci { layers } => {
            Workload::Oci { layers: layers.clone(), scratch: scratch.to_owned() }
        }
        ImageContent::Wasm { artifact, sha256, signature, key } => Workload::Wasm {
            artifact: artifact.clone(),
            sha256: *sha256,
            signature: signature.clone(),
            key: *key,
            http_port,
        },
    }
}

/// Groups that every process of the pod is in.
fn groups(pod: &PodV1) -> Vec<u32> {
    let security = &pod.security;
    security.supplemental_groups.iter().copied().chain(security.fs_group).collect()
}

/// What a pod as a whole gets: its share of the CPU is what its containers ask
/// for together, or one of its init containers alone.
fn pod_resources(pod: &PodV1, pids_max: u64) -> Resources {
    let request = |container: &ContainerV1| container.resources.cpu_request_millis;
    let together: u64 = pod.containers.iter().map(request).sum();
    let alone = pod.init_containers.iter().map(request).max().unwrap_or(0);
    Resources { cpu_request_millis: together.max(alone), pids_max, ..Resources::default() }
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
    // Ephemeral containers have no resources, and change nothing of the pod's class.
    let mut all = pod.init_containers.iter().chain(&pod.containers);
    let guaranteed = all.clone().all(|c| is_bounded(&c.resources));
    let best_effort = !all.any(|c| asks(&c.resources));
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

/// Removes a pod's cgroup in every hierarchy, and what is still in it: by now
/// nothing of the pod may run, whoever was killed while starting it.
pub(crate) fn remove_cgroup(cgroup: &str) -> Result<(), String> {
    runtime::cgroup::Hierarchies::detect()
        .and_then(|hierarchies| {
            hierarchies.kill(cgroup);
            hierarchies.remove(cgroup)
        })
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
