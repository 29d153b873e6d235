//! Keeps the number of pods of each ReplicaSet at `spec.replicas`.
//!
//! Split in two, as every controller here: [`plan`] decides and does no I/O;
//! the rest reads the projections, calls [`plan`], and writes what it says.
//! A pod that ended or is being deleted does not count, wherever its node is:
//! so the replacement of a pod on a dead node starts when the pod is evicted.

mod rank;
mod status;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use api::time::Timestamp;
use api::{ObjectKey, Value, meta};
use futures::future::join_all;
use serde_json::json;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Named, Part, ignore_not_found, kinds, modify,
    revision_of,
};
use crate::events::{Involved, Record, Recorder};
use crate::ownership::{add_owner, claim, reference, remove_owner};
use crate::projection::{Pod, ReplicaSet, Term, intern};
use crate::runner::{Action, Sender};

pub use rank::victims;
pub use status::status;

/// Most pods created or deleted in one pass; Kubernetes' number.
const BURST_MAX: usize = 500;
const COMPONENT: &str = "replicaset-controller";

/// What to do about the number of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create this many pods from the template.
    Create(usize),
    /// Delete these pods.
    Delete(Vec<ObjectKey>),
}

/// Decides the step that brings `pods` to `replicas`; `None` where they match.
///
/// `related` counts the pods of related ReplicaSets by node: where one must go,
/// it goes from the fullest. It is asked for only then.
#[must_use]
pub fn plan(
    replicas: i64,
    pods: &[Arc<Pod>],
    now: Timestamp,
    related: impl FnOnce() -> HashMap<Arc<str>, usize>,
) -> Option<Step> {
    let active: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pod.is_active()).collect();
    let wanted = usize::try_from(replicas).unwrap_or(0);
    if active.len() < wanted {
        return Some(Step::Create((wanted - active.len()).min(BURST_MAX)));
    }
    let surplus = (active.len() - wanted).min(BURST_MAX);
    if surplus == 0 {
        return None;
    }
    let chosen = victims(active, surplus, now, &related());
    Some(Step::Delete(chosen.iter().map(|pod| pod.key().clone()).collect()))
}

/// The controller.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    clock: Clock,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    recorder: Recorder,
    /// By uid of the ReplicaSet.
    own_writes: Mutex<HashMap<Arc<str>, OwnWrites>>,
}

/// What was written for a ReplicaSet and may not be shown yet.
#[derive(Clone, Debug, Default)]
struct OwnWrites {
    /// Pods are shown once the projection is at this revision.
    revision: u64,
    /// Pods deleted: they count as gone whatever the projection says.
    deleted: HashSet<Arc<str>>,
}

/// Asks for a look at the ReplicaSets that a change of a pod or set is about.
pub fn feed(sets: &Cache<ReplicaSet>, pods: &Cache<Pod>, queue: &Sender<ObjectKey>) {
    let all = sets.clone();
    let sender = queue.clone();
    pods.on_change(move |before, after| {
        let mut controlled = false;
        for pod in [before, after].into_iter().flatten() {
            if let Some(owner) = pod.meta.controller()
                && &*owner.kind == "ReplicaSet"
            {
                sender.add(ObjectKey::new(&pod.meta.key.namespace, &owner.name));
                controlled = true;
            }
        }
        // A pod of nobody's is offered to every set that selects it.
        if let Some(pod) = after
            && pod.meta.controller().is_none()
            && (controlled || before.is_none_or(|before| before.meta.labels != pod.meta.labels))
        {
            for set in all.in_namespace(&pod.meta.key.namespace) {
                if pod.meta.selected_by(&set.selector) {
                    sender.add(set.meta.key.clone());
                }
            }
        }
    });
    let sender = queue.clone();
    sets.on_change(move |before, after| {
        if let Some(set) = after.or(before) {
            sender.add(set.meta.key.clone());
        }
    });
}

impl<C: Cluster> Controller<C> {
    /// A controller over these projections.
    #[must_use]
    pub fn new(
        cluster: Arc<C>,
        clock: Clock,
        sets: Cache<ReplicaSet>,
        pods: Cache<Pod>,
        recorder: Recorder,
    ) -> Self {
        Self { cluster, clock, sets, pods, recorder, own_writes: Mutex::default() }
    }

    /// Brings one ReplicaSet's pods to the number its spec asks for.
    ///
    /// # Errors
    /// Whatever the cluster answers; the steps already done stay, and the next
    /// try plans from what it then finds.
    pub async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ClusterError> {
        let Some(set) = self.sets.get(key) else {
            return Ok(Action::AwaitChange);
        };
        let writes = self.with_writes(&set, |writes| writes.clone());
        self.pods.reached(writes.revision).await?;
        let mut pods = self.claim(&set).await?;
        self.forget_gone(&set, &pods);
        pods.retain(|pod| !writes.deleted.contains(&pod.meta.uid));

        let now = self.clock.now();
        let step = if set.meta.is_deleting() {
            None
        } else {
            plan(set.replicas, &pods, now, || self.related(&set))
        };
        let done = match &step {
            Some(Step::Create(n_pods)) => self.create(&set, *n_pods).await,
            Some(Step::Delete(keys)) => self.delete(&set, &pods, keys).await,
            None => Ok(()),
        };
        let (status, available_in) = status(&set, &pods, done.as_ref().err(), step.as_ref(), now);
        if status != set.status {
            self.write_status(&set, status).await?;
        }
        done?;
        Ok(available_in.map_or(Action::AwaitChange, Action::RequeueAfter))
    }

    /// The pods of the set, after it has adopted and let go what it must.
    async fn claim(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, ClusterError> {
        let mut candidates = self.pods.find(&Term::Owner(Arc::clone(&set.meta.uid)));
        let orphans = self.pods.find(&Term::Orphan(intern(&set.meta.key.namespace)));
        candidates.extend(orphans.into_iter().filter(|pod| !pod.is_finished()));
        let mut claims = claim(&set.meta, &set.selector, candidates);
        for pod in &claims.release {
            let uid = Arc::clone(&set.meta.uid);
            self.change_pod(set, pod, move |object| remove_owner(object, &uid)).await?;
        }
        if claims.adopt.is_empty() {
            return Ok(claims.owned);
        }
        // Not with a set that only the projection still shows.
        let fresh = self.cluster.get(kinds::replica_sets(), &set.meta.key).await?;
        let alive = fresh.is_some_and(|fresh| {
            meta::uid(&fresh) == &*set.meta.uid && !meta::is_terminating(&fresh)
        });
        if !alive {
            return Err(ClusterError::Conflict(Named::new(kinds::replica_sets(), &set.meta.key)));
        }
        let owner = reference(kinds::replica_sets(), &set.meta);
        for pod in claims.adopt {
            let owner = owner.clone();
            self.change_pod(set, &pod, move |object| add_owner(object, &owner)).await?;
            claims.owned.push(pod);
        }
        Ok(claims.owned)
    }

    async fn change_pod(
        &self,
        set: &ReplicaSet,
        pod: &Pod,
        change: impl FnOnce(&mut Value) -> bool + Send,
    ) -> Result<(), ClusterError> {
        let identity = Identity { uid: &pod.meta.uid, revision: None };
        let written =
            modify(&*self.cluster, kinds::pods(), pod.key(), identity, Part::Main, change).await;
        match written {
            Ok(Some(written)) => {
                self.wrote(set, revision_of(&written));
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => ignore_not_found(Err(error)),
        }
    }

    /// Creates pods in batches of 1, 2, 4, …: where the first fails, so would a
    /// thousand others.
    async fn create(&self, set: &ReplicaSet, n_pods: usize) -> Result<(), ClusterError> {
        let named = || Named::new(kinds::replica_sets(), &set.meta.key);
        let object = self
            .cluster
            .get(kinds::replica_sets(), &set.meta.key)
            .await?
            .filter(|object| meta::uid(object) == &*set.meta.uid)
            .ok_or_else(|| ClusterError::Conflict(named()))?;
        if revision_of(&object) != set.meta.revision
            && meta::generation(&object) != set.meta.generation
        {
            return Err(ClusterError::Conflict(named()));
        }
        let pod = pod_of(set, &object);
        let mut left = n_pods;
        let mut batch = 1;
        while left > 0 {
            batch = batch.min(left);
            let namespace = &set.meta.key.namespace;
            let create = || self.cluster.create(kinds::pods(), namespace, pod.clone());
            let mut failure = None;
            for result in join_all((0..batch).map(|_| create())).await {
                match result {
                    Ok(created) => {
                        self.wrote(set, revision_of(&created));
                        let name = meta::name(&created);
                        self.tell(set, false, "SuccessfulCreate", format!("Created pod: {name}"));
                    }
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                // Everything in the namespace goes: nothing to retry or to tell.
                Some(ClusterError::NamespaceTerminating(_)) => return Ok(()),
                Some(error) => {
                    self.tell(set, true, "FailedCreate", format!("Error creating: {error}"));
                    return Err(error);
                }
                None => {}
            }
            left -= batch;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(
        &self,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
        keys: &[ObjectKey],
    ) -> Result<(), ClusterError> {
        let chosen = pods.iter().filter(|pod| keys.contains(pod.key()));
        let deletes = chosen.map(|pod| async move {
            let options = DeleteOptions::of_uid(&pod.meta.uid);
            let result = self.cluster.delete(kinds::pods(), pod.key(), options).await;
            (pod, ignore_not_found(result))
        });
        let mut failure = None;
        for (pod, result) in join_all(deletes).await {
            match result {
                Ok(()) => {
                    self.with_writes(set, |writes| {
                        writes.deleted.insert(Arc::clone(&pod.meta.uid));
                    });
                    let name = &pod.key().name;
                    self.tell(set, false, "SuccessfulDelete", format!("Deleted pod: {name}"));
                }
                Err(error) => {
                    self.tell(set, true, "FailedDelete", format!("Error deleting: {error}"));
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        status: api::view::ReplicaSetStatus,
    ) -> Result<(), ClusterError> {
        let identity = Identity { uid: &set.meta.uid, revision: None };
        let value = serde_json::to_value(status).expect("a status is plain data");
        let change = move |object: &mut Value| {
            if object.get("status") == Some(&value) {
                return false;
            }
            object["status"] = value;
            true
        };
        let key = &set.meta.key;
        let written =
            modify(&*self.cluster, kinds::replica_sets(), key, identity, Part::Status, change)
                .await;
        ignore_not_found(written.map(|_| ()))
    }

    /// Active pods by node, of the sets that have the same owner as `set`.
    fn related(&self, set: &ReplicaSet) -> HashMap<Arc<str>, usize> {
        let siblings = match set.meta.controller() {
            Some(owner) => self.sets.find(&Term::Owner(Arc::clone(&owner.uid))),
            None => Vec::new(),
        };
        let mut uids: Vec<Arc<str>> =
            siblings.iter().map(|set| Arc::clone(&set.meta.uid)).collect();
        if uids.is_empty() {
            uids.push(Arc::clone(&set.meta.uid));
        }
        let mut by_node = HashMap::new();
        for uid in uids {
            for pod in self.pods.find(&Term::Owner(uid)) {
                if let Some(node) = pod.node.as_ref().filter(|_| pod.is_active()) {
                    *by_node.entry(Arc::clone(node)).or_insert(0) += 1;
                }
            }
        }
        by_node
    }

    fn tell(&self, set: &ReplicaSet, warning: bool, reason: &'static str, message: String) {
        let involved = Involved::of(kinds::replica_sets(), &set.meta);
        self.recorder.record(Record { involved, reason, message, warning, component: COMPONENT });
    }

    fn wrote(&self, set: &ReplicaSet, revision: u64) {
        self.with_writes(set, |writes| writes.revision = writes.revision.max(revision));
    }

    /// Forgets deleted pods that the projection no longer shows as alive, and
    /// everything about sets that are gone.
    fn forget_gone(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) {
        self.with_writes(set, |writes| {
            writes.deleted.retain(|uid| {
                pods.iter().any(|pod| pod.meta.uid == *uid && !pod.meta.is_deleting())
            });
        });
        let mut all = self.own_writes.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > 2 * self.sets.n_objects() + 64 {
            let known: HashSet<Arc<str>> =
                self.sets.all().iter().map(|set| Arc::clone(&set.meta.uid)).collect();
            all.retain(|uid, _| known.contains(uid));
        }
    }

    fn with_writes<R>(&self, set: &ReplicaSet, with: impl FnOnce(&mut OwnWrites) -> R) -> R {
        let mut all = self.own_writes.lock().unwrap_or_else(PoisonError::into_inner);
        with(all.entry(Arc::clone(&set.meta.uid)).or_default())
    }
}

/// The pod that the set's template describes.
fn pod_of(set: &ReplicaSet, object: &Value) -> Value {
    let template = object.pointer("/spec/template");
    let part = |pointer: &str| template.and_then(|t| t.pointer(pointer)).cloned();
    let mut metadata = json!({
        "generateName": format!("{}-", set.meta.key.name),
        "namespace": set.meta.key.namespace,
        "ownerReferences": [reference(kinds::replica_sets(), &set.meta)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = part(&format!("/metadata/{field}")) {
            metadata[field] = value;
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": part("/spec").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
