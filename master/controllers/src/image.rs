//! Finds out what the images of pods are: digest, platforms, runtime.
//!
//! ```text
//!  pod ──its images──► image queue ──resolve, back-off──► known
//!   ▲                                                       │
//!   └──────── record on the pod (annotation) ◄──────────────┘
//! ```
//!
//! The scheduler filters by what is recorded, and a node's set is lowered from
//! it: only stored state may change a set, so the record is on the Pod. The
//! scheduler waits a moment for a first answer ([`Settled`]); a registry that
//! does not answer never keeps an OCI pod from being bound. A pod that runs is
//! never touched; one that was bound without a record gets one only where its
//! image turns out to be WASM, which its node cannot have started.

mod resolver;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::view::{self, PodView};
use api::{ObjectKey, Value, meta};
use tokio::time::Instant;

use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterError, Identity, Part, kinds, modify};
use crate::events::{Involved, Record as EventRecord, Recorder};
use crate::projection::{Phase, Pod, Runtime, Term, intern};
use crate::runner::{self, Action, Sender};

pub use api::images::{IMAGES_ANNOTATION, ImageRecords, Record, is_digest};
pub use resolver::{ImageRequest, ImageResolver, ResolveError, ResolvedImage};

/// How long an answer is used for other pods. Short, since tags move.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// How long a failure is the answer for a new pod too.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// Longest wait for one answer.
const RESOLVE_WITHIN: Duration = Duration::from_secs(30);
/// Most answers that are remembered.
const KNOWN_MAX: usize = 4096;

/// How the lookups run: a few at once, so that a slow registry does not hold up
/// the others; 1 s to 1 min between two tries.
#[must_use]
pub fn lookup_config() -> runner::Config {
    runner::Config {
        concurrency: 16,
        backoff_min: Duration::from_secs(1),
        backoff_max: Duration::from_mins(1),
    }
}

/// The pods whose images were looked for at least once: the scheduler waits no
/// longer. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Settled(Arc<Mutex<HashSet<Arc<str>>>>);

impl Settled {
    /// Whether there is no point in waiting for a pod's images.
    #[must_use]
    pub fn contains(&self, uid: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    fn insert(&self, uid: &Arc<str>) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(uid))
    }

    fn remove(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// The controller: one queue of pods and one of images.
pub struct Controller<C, R> {
    cluster: Arc<C>,
    resolver: Arc<R>,
    pods: Cache<Pod>,
    recorder: Recorder,
    settled: Settled,
    /// Asks the scheduler to look at a pod again.
    scheduler: Box<dyn Fn(ObjectKey) + Send + Sync>,
    lookups: Sender<ImageRequest>,
    pod_queue: Sender<ObjectKey>,
    known: Mutex<HashMap<ImageRequest, Known>>,
}

impl<C, R> std::fmt::Debug for Controller<C, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("image::Controller").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Known {
    answer: Result<ResolvedImage, ResolveError>,
    at: Instant,
}

/// The queues of a [`Controller`].
#[derive(Clone, Debug)]
pub struct Queues {
    /// Pods to record images on.
    pub pods: Sender<ObjectKey>,
    /// Images to look up.
    pub lookups: Sender<ImageRequest>,
}

/// Asks for a look at pods whose images are not recorded, and forgets pods that are gone.
pub fn feed(pods: &Cache<Pod>, settled: &Settled, queue: &Sender<ObjectKey>) {
    let (sender, settled) = (queue.clone(), settled.clone());
    pods.on_change(move |before, after| match after {
        Some(pod) if is_open(pod) => sender.add(pod.key().clone()),
        Some(_) => {}
        None => {
            if let Some(before) = before {
                settled.remove(&before.meta.uid);
            }
        }
    });
}

/// Whether a pod's images are still to be recorded.
fn is_open(pod: &Pod) -> bool {
    pod.is_active() && !pod.images_known && pod.phase == Phase::Pending
}

impl<C: Cluster, R: ImageResolver> Controller<C, R> {
    /// A controller over these pods. `scheduler` is called with pods that need
    /// no longer wait.
    #[must_use]
    pub fn new(
        cluster: Arc<C>,
        resolver: Arc<R>,
        pods: Cache<Pod>,
        recorder: Recorder,
        settled: Settled,
        scheduler: Box<dyn Fn(ObjectKey) + Send + Sync>,
        queues: Queues,
    ) -> Self {
        let (lookups, pod_queue) = (queues.lookups, queues.pods);
        let known = Mutex::default();
        Self { cluster, resolver, pods, recorder, settled, scheduler, lookups, pod_queue, known }
    }

    /// Looks one image up and tells the pods that wait for it.
    ///
    /// # Errors
    /// The registry's answer, so that it is asked again later.
    pub async fn look_up(&self, request: &ImageRequest) -> Result<Action, ResolveError> {
        let waiting = self.waiting(request);
        if waiting.is_empty() {
            // A failure is remembered only while the lookup is tried again.
            self.known().retain(|known, answer| known != request || answer.answer.is_ok());
            return Ok(Action::AwaitChange);
        }
        if self.answer(request, &waiting[0].meta.uid).is_some_and(|answer| answer.is_ok()) {
            waiting.iter().for_each(|pod| self.pod_queue.add(pod.key().clone()));
            return Ok(Action::AwaitChange);
        }
        let resolved = tokio::time::timeout(RESOLVE_WITHIN, self.resolver.resolve(request)).await;
        let answer = match resolved {
            Ok(Ok(image)) if !is_digest(&image.digest) => {
                Err(ResolveError::Invalid(format!("\"{}\" is no digest", image.digest)))
            }
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::Unreachable("no answer within 30 s".to_owned())),
        };
        self.remember(request, answer.clone());
        for pod in &waiting {
            if let Err(error) = &answer {
                self.tell(pod, request, error);
            }
            self.pod_queue.add(pod.key().clone());
        }
        answer.map(|_| Action::AwaitChange)
    }

    /// Records on one pod what is known of its images, and asks for the rest.
    ///
    /// # Errors
    /// Whatever the cluster answers.
    pub async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ClusterError> {
        let Some(pod) = self.pods.get(key).filter(|pod| is_open(pod)) else {
            return Ok(Action::AwaitChange);
        };
        let Some(object) = self.cluster.get(kinds::pods(), key).await? else {
            return Ok(Action::AwaitChange);
        };
        let read: PodView = view::read(&object).unwrap_or_default();
        let (mut records, mut missing) = (ImageRecords::of(&object), false);
        let class = read.spec.runtime_class_name.as_deref();
        for request in requests(&object, &read) {
            let Some(answer) = self.answer(&request, &pod.meta.uid) else {
                missing = true;
                self.lookups.add(request);
                continue;
            };
            // A lookup that failed is tried again by its own queue.
            let Ok(image) = answer else { continue };
            let named = read.spec.containers.iter().filter(|c| c.image == request.image);
            for container in named {
                records.set(&container.name, image.record(&request.image));
            }
        }
        records.retain(|name| read.spec.containers.iter().any(|c| c.name == name));
        let bound = !read.spec.node_name.is_empty();
        let becomes_wasm = read
            .spec
            .containers
            .iter()
            .any(|container| Runtime::of(class, records.get(container)) == Runtime::Wasm);
        if !missing && (!bound || becomes_wasm) && records != ImageRecords::of(&object) {
            let text = records.text();
            let change = |object: &mut Value| {
                let running = object.pointer("/status/phase").and_then(Value::as_str);
                if running.is_some_and(|phase| phase != "Pending") {
                    return false;
                }
                meta::set_annotation(object, IMAGES_ANNOTATION, &text);
                true
            };
            let revision = Some(crate::cluster::revision_of(&object));
            let identity = Identity { uid: &pod.meta.uid, revision };
            modify(&*self.cluster, kinds::pods(), key, identity, Part::Main, change).await?;
        }
        if !missing && self.settled.insert(&pod.meta.uid) {
            (self.scheduler)(key.clone());
        }
        Ok(Action::AwaitChange)
    }

    /// The pods of the image's namespace that use it and whose images are open.
    fn waiting(&self, request: &ImageRequest) -> Vec<Arc<Pod>> {
        let pods = self.pods.find(&Term::Image(intern(&request.image)));
        let waits = |pod: &Arc<Pod>| pod.key().namespace == request.namespace && is_open(pod);
        pods.into_iter().filter(waits).collect()
    }

    /// What is known of an image, for a pod; `None` where it is to be asked.
    ///
    /// A pod that was never answered does not take an old failure for an answer:
    /// what was wrong may have been put right.
    fn answer(
        &self,
        request: &ImageRequest,
        pod: &str,
    ) -> Option<Result<ResolvedImage, ResolveError>> {
        let known = self.known();
        let known = known.get(request)?;
        let fresh = match &known.answer {
            Ok(_) => known.at.elapsed() < KNOWN_FOR,
            Err(_) => known.at.elapsed() < FAILED_FOR || self.settled.contains(pod),
        };
        fresh.then(|| known.answer.clone())
    }

    fn remember(&self, request: &ImageRequest, answer: Result<ResolvedImage, ResolveError>) {
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| known.at.elapsed() < KNOWN_FOR);
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
        }
        known.insert(request.clone(), Known { answer, at: Instant::now() });
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<ImageRequest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, pod: &Pod, request: &ImageRequest, error: &ResolveError) {
        self.recorder.record(EventRecord {
            involved: Involved::of(kinds::pods(), &pod.meta),
            reason: "ErrImageInspect",
            message: format!(
                "Failed to inspect image \"{}\": {error}; {}",
                request.image,
                error.way_out()
            ),
            warning: true,
            component: "image-controller",
        });
    }
}

/// What is to be looked up for a pod: one request an image that has no record.
fn requests(object: &Value, read: &PodView) -> Vec<ImageRequest> {
    let secrets = object.pointer("/spec/imagePullSecrets").and_then(Value::as_array);
    let secrets = secrets.into_iter().flatten().filter_map(|secret| secret.get("name")?.as_str());
    let secrets: Vec<String> = secrets.map(str::to_owned).collect();
    let records = ImageRecords::of(object);
    let mut requests: Vec<ImageRequest> = Vec::new();
    for container in &read.spec.containers {
        let request = ImageRequest {
            image: container.image.clone(),
            namespace: read.metadata.namespace.clone(),
            pull_secrets: secrets.clone(),
        };
        if records.get(container).is_none() && !requests.contains(&request) {
            requests.push(request);
        }
    }
    requests
}

#[cfg(test)]
mod tests;
