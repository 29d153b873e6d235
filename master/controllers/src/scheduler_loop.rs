//! Binds pods to the nodes the [`scheduler`] chooses.
//!
//! ```text
//!  pods, nodes ──change──► snapshot, queue ──next pod──► decide
//!                              ▲                        │      │
//!                              │         bind, Scheduled ◄──┘      └──► FailedScheduling,
//!                              └── failed ──┘                       retry on a change
//! ```
//!
//! One task owns the snapshot. A pod whose binding is on its way is counted on
//! its node at once and until the projection shows it there, so that no node is
//! over-committed; a binding that fails takes the pod back.

mod binding;
mod queue;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, Value};
use scheduler::{Decision, Demand, Snapshot, summary};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::cluster::{Cluster, ClusterError, Identity, Part, ignore_not_found, kinds, modify};
use crate::events::{Involved, Record, Recorder};
use crate::image::Settled;
use crate::projection::Pod;
use crate::runner::{Receiver, Sender};
use crate::volumes::Caches;

use binding::{BindError, Wanted};
use queue::Queue;

/// The name pods ask for, and the component of its events.
const NAME: &str = "default-scheduler";
/// Longest wait for the first look at a pod's images.
const IMAGES_WITHIN: Duration = Duration::from_secs(1);
/// Writes in flight.
const WRITES_MAX: usize = 256;
/// Pods decided before the loop looks at what else happened.
const BATCH_MAX: usize = 64;
/// Time after which pods without a node are tried again though nothing changed.
const RETRY_ALL: Duration = Duration::from_mins(5);

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A pod, or what is known of its images.
    Pod(ObjectKey),
    /// A node.
    Node(String),
    /// A volume, claim or class.
    Storage,
}

/// Asks for a look at what changed.
pub fn feed(storage: &Caches, queue: &Sender<Key>) {
    let sender = queue.clone();
    storage.volumes.on_change(move |_, _| sender.add(Key::Storage));
    let sender = queue.clone();
    storage.claims.on_change(move |_, _| sender.add(Key::Storage));
    let sender = queue.clone();
    storage.classes.on_change(move |_, _| sender.add(Key::Storage));
    let sender = queue.clone();
    storage.pods.on_change(move |before, after| {
        if let Some(pod) = after.or(before) {
            sender.add(Key::Pod(pod.key().clone()));
        }
    });
    let sender = queue.clone();
    storage.nodes.on_change(move |before, after| {
        if let Some(node) = after.or(before) {
            sender.add(Key::Node(node.meta.key.name.clone()));
        }
    });
}

/// What the loop works with.
#[derive(Debug)]
pub struct Parts<C> {
    /// Where pods are bound.
    pub cluster: Arc<C>,
    /// The time of day, for conditions.
    pub clock: Clock,
    /// Every pod and node, and the volumes that pods ask for.
    pub storage: Caches,
    /// For people.
    pub recorder: Recorder,
    /// Pods whose images were looked for.
    pub settled: Settled,
}

/// Schedules until `shutdown`. The caches must be synced, or nodes would seem
/// emptier than they are.
pub async fn run<C: Cluster>(
    parts: Parts<C>,
    mut changes: Receiver<Key>,
    shutdown: CancellationToken,
) {
    let mut state = State {
        parts,
        snapshot: Snapshot::new(),
        queue: Queue::default(),
        seen: HashMap::new(),
        assumed: HashSet::new(),
        binding: HashSet::new(),
        writes: JoinSet::new(),
        retry_all: Instant::now() + RETRY_ALL,
    };
    loop {
        while let Some(key) = changes.try_recv() {
            state.changed(key);
        }
        let more = state.decide_some();
        // With every write in flight, only the end of one matters.
        let due = if state.is_full() { state.retry_all } else { state.next_due() };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(written) = state.writes.join_next() => match written {
                Ok(written) => state.written(written),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            },
            key = changes.recv() => state.changed(key),
            () = tokio::time::sleep_until(due) => {}
            () = tokio::task::yield_now(), if more => {}
        }
    }
    while state.writes.join_next().await.is_some() {}
}

/// A pod the snapshot or the queue may know.
#[derive(Debug)]
struct Seen {
    uid: Arc<str>,
    first: Instant,
    /// What it asked for when last seen.
    demand: Arc<Demand>,
}

/// A write that has ended.
struct Written {
    pod: Arc<Pod>,
    /// The node, for a binding.
    node: Option<Arc<str>>,
    /// Claims that were bound first.
    claims: Vec<ObjectKey>,
    result: Result<(), BindError>,
}

struct State<C> {
    parts: Parts<C>,
    snapshot: Snapshot,
    queue: Queue,
    seen: HashMap<ObjectKey, Seen>,
    /// Pods bound by this process that the projection does not show bound yet.
    assumed: HashSet<Arc<str>>,
    /// Claims that are being bound for a pod that is about to be.
    binding: HashSet<ObjectKey>,
    writes: JoinSet<Written>,
    retry_all: Instant,
}

impl<C: Cluster> State<C> {
    fn changed(&mut self, key: Key) {
        match key {
            Key::Node(name) => {
                let changed = match self.parts.storage.nodes.get(&ObjectKey::new("", &name)) {
                    Some(node) => self.snapshot.set_node(node.schedulable.clone()),
                    None => {
                        self.snapshot.remove_node(&name);
                        false
                    }
                };
                if changed {
                    self.queue.something_changed();
                }
            }
            Key::Storage => self.queue.something_changed(),
            Key::Pod(key) => self.pod_changed(&key),
        }
    }

    fn pod_changed(&mut self, key: &ObjectKey) {
        let pod = self.parts.storage.pods.get(key);
        let other = self
            .seen
            .get(key)
            .filter(|seen| pod.as_ref().is_none_or(|pod| pod.meta.uid != seen.uid));
        if let Some(gone) = other.map(|seen| Arc::clone(&seen.uid)) {
            self.forget(key, &gone);
        }
        let Some(pod) = pod else { return };
        let now = Instant::now();
        let (uid, demand) = (Arc::clone(&pod.meta.uid), Arc::clone(&pod.demand));
        let fresh = || Seen { uid, first: now, demand };
        let seen = self.seen.entry(key.clone()).or_insert_with(fresh);
        let first = seen.first;
        if !Arc::ptr_eq(&seen.demand, &pod.demand) {
            // It asks for something else now: its image is known, say.
            seen.demand = Arc::clone(&pod.demand);
            self.queue.pod_changed(key);
        }
        if pod.is_finished() {
            self.queue.remove(key);
            if self.snapshot.remove_pod(&pod.meta.uid) {
                self.queue.something_changed();
            }
        } else if let Some(node) = &pod.node {
            self.assumed.remove(&pod.meta.uid);
            self.queue.remove(key);
            let owner = pod.meta.controller().map(|owner| &owner.uid);
            self.snapshot.place(&pod.meta.uid, node, &pod.demand, owner);
        } else if pod.meta.is_deleting() {
            self.queue.remove(key);
        } else if is_ours(&pod) && !self.assumed.contains(&pod.meta.uid) {
            let wait = first + IMAGES_WITHIN;
            let ready = pod.images_known || self.parts.settled.contains(&pod.meta.uid);
            if ready || now >= wait {
                self.queue.add(key.clone(), pod.priority);
            } else {
                self.queue.wait(key.clone(), pod.priority, wait);
            }
        }
    }

    fn forget(&mut self, key: &ObjectKey, uid: &Arc<str>) {
        self.seen.remove(key);
        self.queue.remove(key);
        self.assumed.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.something_changed();
        }
    }

    /// Decides for some pods; returns whether more could be decided at once.
    fn decide_some(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.retry_all {
            self.retry_all = now + RETRY_ALL;
            self.queue.something_changed();
        }
        for _ in 0..BATCH_MAX {
            if self.is_full() {
                return false;
            }
            let Some(key) = self.queue.next(now) else {
                return false;
            };
            let open = |pod: &Arc<Pod>| pod.node.is_none() && pod.is_active();
            if let Some(pod) = self.parts.storage.pods.get(&key).filter(open) {
                self.decide(pod, now);
            }
        }
        true
    }

    fn decide(&mut self, pod: Arc<Pod>, now: Instant) {
        let owner = pod.meta.controller().map(|owner| Arc::clone(&owner.uid));
        let wanted = if pod.claims.is_empty() {
            Ok(Wanted::default())
        } else {
            binding::wanted(&self.parts.storage, &pod)
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(why) => {
                let n_nodes = self.snapshot.n_nodes();
                let message = format!("0/{n_nodes} nodes are available: {why}.");
                self.unschedulable(pod, message, now);
                return;
            }
        };
        if wanted.open.iter().any(|claim| self.binding.contains(&claim.meta.key)) {
            // Another pod of the same claim settles where it goes.
            self.queue.failed(pod.key().clone(), pod.priority, now);
            return;
        }
        match self.snapshot.schedule_with(&pod.demand, owner.as_deref(), &wanted.claims) {
            Decision::Bind(node) => {
                self.snapshot.place(&pod.meta.uid, &node, &pod.demand, owner.as_ref());
                self.assumed.insert(Arc::clone(&pod.meta.uid));
                let claims: Vec<ObjectKey> =
                    wanted.open.iter().map(|claim| claim.meta.key.clone()).collect();
                self.binding.extend(claims.iter().cloned());
                let (cluster, storage) =
                    (Arc::clone(&self.parts.cluster), self.parts.storage.clone());
                self.writes.spawn(async move {
                    let volumes = binding::bind_volumes(&*cluster, &storage, &wanted, &node).await;
                    let result = match volumes {
                        Ok(()) => cluster
                            .bind(pod.key(), &pod.meta.uid, &node)
                            .await
                            .map_err(BindError::Cluster),
                        Err(error) => Err(error),
                    };
                    Written { pod, node: Some(node), claims, result }
                });
            }
            Decision::Unschedulable(rejections) => {
                self.unschedulable(pod, summary(&rejections), now);
            }
        }
    }

    /// Says that no node can run a pod, and why.
    fn unschedulable(&mut self, pod: Arc<Pod>, message: String, now: Instant) {
        self.queue.unschedulable(pod.key().clone(), pod.priority, now);
        self.tell(&pod, "FailedScheduling", message.clone(), true);
        if pod.unschedulable.as_deref() == Some(&message) {
            return;
        }
        let (cluster, time) = (Arc::clone(&self.parts.cluster), self.parts.clock.text());
        self.writes.spawn(async move {
            let result = mark_unschedulable(&*cluster, &pod, &message, &time).await;
            let result = result.map_err(BindError::Cluster);
            Written { pod, node: None, claims: Vec::new(), result }
        });
    }

    fn written(&mut self, written: Written) {
        let Written { pod, node, claims, result } = written;
        for claim in &claims {
            self.binding.remove(claim);
        }
        let Some(node) = node else {
            if let Err(error) = result {
                debug!(pod = %pod.key(), %error, "cannot say that a pod has no node");
            }
            return;
        };
        match result {
            Ok(()) => {
                let message = format!("Successfully assigned {} to {node}", pod.key());
                self.tell(&pod, "Scheduled", message, false);
            }
            Err(error) => {
                let seen = self.parts.storage.pods.get(pod.key());
                let bound = seen
                    .as_ref()
                    .is_some_and(|seen| seen.meta.uid == pod.meta.uid && seen.node.is_some());
                self.assumed.remove(&pod.meta.uid);
                if !bound {
                    self.snapshot.remove_pod(&pod.meta.uid);
                }
                match &error {
                    BindError::Volumes(_) => {
                        let message = format!("running PreBind plugin \"VolumeBinding\": {error}");
                        self.tell(&pod, "FailedScheduling", message, true);
                    }
                    BindError::Cluster(ClusterError::NotFound(_) | ClusterError::Conflict(_)) => {
                        debug!(pod = %pod.key(), %error, "a pod could not be bound");
                    }
                    _ => warn!(pod = %pod.key(), %error, "a pod could not be bound"),
                }
                if seen.is_some_and(|seen| seen.meta.uid == pod.meta.uid && seen.node.is_none()) {
                    self.queue.failed(pod.key().clone(), pod.priority, Instant::now());
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.writes.len() >= WRITES_MAX
    }

    fn next_due(&self) -> Instant {
        self.queue.next_due().map_or(self.retry_all, |due| due.min(self.retry_all))
    }

    fn tell(&self, pod: &Pod, reason: &'static str, message: String, warning: bool) {
        let involved = Involved::of(kinds::pods(), &pod.meta);
        self.parts.recorder.record(Record { involved, reason, message, warning, component: NAME });
    }
}

fn is_ours(pod: &Pod) -> bool {
    pod.scheduler_name.is_empty() || &*pod.scheduler_name == NAME
}

async fn mark_unschedulable<C: Cluster>(
    cluster: &C,
    pod: &Pod,
    message: &str,
    now: &str,
) -> Result<(), ClusterError> {
    let change = |object: &mut Value| {
        let bound = object.pointer("/spec/nodeName").and_then(Value::as_str);
        if bound.is_some_and(|node| !node.is_empty()) {
            return false;
        }
        if !object["status"]["conditions"].is_array() {
            object["status"]["conditions"] = json!([]);
        }
        let list = object["status"]["conditions"].as_array_mut().expect("just made one");
        let known = list.iter().position(|c| c.get("type") == Some(&"PodScheduled".into()));
        let old = known.map(|at| list.remove(at));
        let was_false = old.as_ref().filter(|old| old.get("status") == Some(&"False".into()));
        let since = was_false.and_then(|old| old.get("lastTransitionTime")).cloned();
        list.push(json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| now.into()),
        }));
        true
    };
    let identity = Identity { uid: &pod.meta.uid, revision: None };
    let written = modify(cluster, kinds::pods(), pod.key(), identity, Part::Status, change).await;
    ignore_not_found(written.map(|_| ()))
}

#[cfg(test)]
mod tests;
