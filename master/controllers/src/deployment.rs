//! Brings each Deployment's newest template to all of its pods, a few at a
//! time, through one ReplicaSet per template.
//!
//! [`plan`] decides, as Kubernetes' deployment controller does, so that
//! `kubectl rollout status|history|undo|restart|pause|resume` work; this module
//! reads, and writes what it says.

pub mod plan;
mod scale;
mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::view::{self, DeploymentStatus, DeploymentView};
use api::{ObjectKey, Value, meta};
use serde_json::json;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Named, Part, ignore_not_found, kinds, modify,
    revision_of,
};
use crate::events::{Involved, Record, Recorder};
use crate::ownership::{add_owner, claim, reference, remove_owner};
use crate::projection::{Deployment, Meta, Pod, ReplicaSet, Term, annotations, intern};
use crate::runner::{Action, Sender};

pub use plan::{Desired, Plan, SetChange, Step, plan};

const COMPONENT: &str = "deployment-controller";
/// Longest list of earlier revisions on a ReplicaSet; Kubernetes' number.
const REVISION_HISTORY_BYTES_MAX: usize = 2000;

/// The controller.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    clock: Clock,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    recorder: Recorder,
    /// By key of the Deployment: the revision its ReplicaSets must be shown at.
    own_writes: Mutex<HashMap<ObjectKey, u64>>,
}

/// Asks for a look at the Deployments that a change is about.
pub fn feed(
    deployments: &Cache<Deployment>,
    sets: &Cache<ReplicaSet>,
    pods: &Cache<Pod>,
    queue: &Sender<ObjectKey>,
) {
    let sender = queue.clone();
    deployments.on_change(move |before, after| {
        if let Some(deployment) = after.or(before) {
            sender.add(deployment.meta.key.clone());
        }
    });
    let (sender, all) = (queue.clone(), deployments.clone());
    sets.on_change(move |before, after| {
        for set in [before, after].into_iter().flatten() {
            if let Some(key) = owner_of(&set.meta) {
                sender.add(key);
            }
        }
        if let Some(set) = after
            && set.meta.controller().is_none()
            && before.is_none_or(|before| {
                before.meta.labels != set.meta.labels || before.meta.controller().is_some()
            })
        {
            for deployment in all.in_namespace(&set.meta.key.namespace) {
                if set.meta.selected_by(&deployment.selector) {
                    sender.add(deployment.meta.key.clone());
                }
            }
        }
    });
    // `Recreate` waits for the old pods to be gone.
    let (sender, sets) = (queue.clone(), sets.clone());
    pods.on_change(move |before, after| {
        let ended = after.is_none_or(|pod| pod.is_finished());
        let Some(pod) = before.filter(|_| ended) else { return };
        if let Some(owner) = pod.meta.controller().filter(|owner| &*owner.kind == "ReplicaSet") {
            let set = sets.get(&ObjectKey::new(&pod.meta.key.namespace, &owner.name));
            if let Some(key) = set.and_then(|set| owner_of(&set.meta)) {
                sender.add(key);
            }
        }
    });
}

fn owner_of(set: &Meta) -> Option<ObjectKey> {
    let owner = set.controller().filter(|owner| &*owner.kind == "Deployment")?;
    Some(ObjectKey::new(&set.key.namespace, &owner.name))
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

    /// Takes one Deployment a step on.
    ///
    /// # Errors
    /// Whatever the cluster answers; the steps already done stay, and the next
    /// try plans from what it then finds.
    pub async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ClusterError> {
        let Some(object) = self.cluster.get(kinds::deployments(), key).await? else {
            self.own_writes().remove(key);
            return Ok(Action::AwaitChange);
        };
        let shown_at = self.own_writes().get(key).copied().unwrap_or(0);
        self.sets.reached(shown_at).await?;

        let own = Meta::of(&object);
        let read: DeploymentView = view::read(&object).map_err(|error| ClusterError::Invalid {
            what: Named::new(kinds::deployments(), key),
            message: error.to_string(),
        })?;
        let sets = self.claim(&own, &read).await?;
        let desired = Desired::new(&read);
        let now = self.clock.now();
        let plan = plan(&desired, &sets, |set| self.has_pods(set), now);
        let mut status = plan.status.clone();
        let mut outcome = Ok(());
        for step in &plan.steps {
            outcome = self.apply(&own, &object, step, &mut status).await;
            if outcome.is_err() {
                break;
            }
        }
        if status != read.status {
            self.write_status(&own, status).await?;
        }
        outcome?;
        Ok(plan.look_again.map_or(Action::AwaitChange, Action::RequeueAfter))
    }

    async fn apply(
        &self,
        own: &Meta,
        object: &Value,
        step: &Step,
        status: &mut DeploymentStatus,
    ) -> Result<(), ClusterError> {
        match step {
            Step::Create { name, hash, change } => {
                let set = new_set(own, object, name, hash, change);
                let namespace = &own.key.namespace;
                let created = self.cluster.create(kinds::replica_sets(), namespace, set).await;
                match created {
                    Ok(created) => self.wrote(own, revision_of(&created)),
                    Err(ClusterError::AlreadyExists(named)) => {
                        return self.taken(own, object, named, status).await;
                    }
                    Err(ClusterError::NamespaceTerminating(_)) => return Ok(()),
                    Err(error) => {
                        let message =
                            format!("Failed to create new replica set \"{name}\": {error}");
                        self.tell(own, true, "ReplicaSetCreateError", message.clone());
                        status::set_progressing(
                            status,
                            false,
                            "ReplicaSetCreateError",
                            message,
                            self.clock.now(),
                        );
                        return Err(error);
                    }
                }
                self.tell_scaled(own, name, 0, change.replicas.unwrap_or(0));
            }
            Step::Update { set, change } => {
                let identity = Identity { uid: &set.meta.uid, revision: Some(set.meta.revision) };
                let apply = |value: &mut Value| change.apply(value, &read_annotations(object));
                let key = &set.meta.key;
                let written =
                    modify(&*self.cluster, kinds::replica_sets(), key, identity, Part::Main, apply)
                        .await?;
                if let Some(written) = written {
                    self.wrote(own, revision_of(&written));
                }
                if let Some(replicas) = change.replicas {
                    self.tell_scaled(own, &key.name, set.replicas, replicas);
                }
            }
            Step::Delete(set) => {
                let options = DeleteOptions {
                    revision: Some(set.meta.revision),
                    ..DeleteOptions::of_uid(&set.meta.uid)
                };
                let key = &set.meta.key;
                let deleted = self.cluster.delete(kinds::replica_sets(), key, options).await;
                ignore_not_found(deleted)?;
            }
            Step::SetRevision(revision) => {
                let identity = Identity { uid: &own.uid, revision: None };
                let text = revision.to_string();
                let change = |value: &mut Value| {
                    let changed = meta::annotation(value, annotations::REVISION) != Some(&text);
                    meta::set_annotation(value, annotations::REVISION, &text);
                    changed
                };
                let kind = kinds::deployments();
                modify(&*self.cluster, kind, &own.key, identity, Part::Main, change).await?;
            }
        }
        Ok(())
    }

    /// The name of the new ReplicaSet is taken: by the one we want, which the
    /// projection does not show yet, or by another template with the same hash.
    async fn taken(
        &self,
        own: &Meta,
        object: &Value,
        named: Named,
        status: &mut DeploymentStatus,
    ) -> Result<(), ClusterError> {
        let found = self.cluster.get(kinds::replica_sets(), &named.key).await?;
        let template = |object: &Value| {
            object.pointer("/spec/template").map(crate::projection::template_digest)
        };
        let same = found.as_ref().is_some_and(|found| {
            meta::controller(found).is_some_and(|owner| owner.uid == *own.uid)
                && template(found) == template(object)
        });
        if same {
            self.wrote(own, found.as_ref().map_or(0, revision_of));
        } else if found.is_some() {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
        Err(ClusterError::Conflict(named))
    }

    async fn claim(
        &self,
        own: &Meta,
        read: &DeploymentView,
    ) -> Result<Vec<Arc<ReplicaSet>>, ClusterError> {
        let selector = read.spec.selector().map_err(|error| ClusterError::Invalid {
            what: Named::new(kinds::deployments(), &own.key),
            message: format!("spec.selector: {error}"),
        })?;
        let mut candidates = self.sets.find(&Term::Owner(Arc::clone(&own.uid)));
        candidates.extend(self.sets.find(&Term::Orphan(intern(&own.key.namespace))));
        let mut claims = claim(own, &selector, candidates);
        let owner = reference(kinds::deployments(), own);
        for set in claims.release {
            let uid = Arc::clone(&own.uid);
            self.change_set(own, &set, |object| remove_owner(object, &uid)).await?;
        }
        let adopted = !claims.adopt.is_empty();
        for set in claims.adopt {
            self.change_set(own, &set, |object| add_owner(object, &owner)).await?;
            claims.owned.push(set);
        }
        if adopted {
            // Plan from what the sets are after that.
            let shown_at = self.own_writes().get(&own.key).copied().unwrap_or(0);
            self.sets.reached(shown_at).await?;
            let fresh = claims.owned.iter().filter_map(|set| self.sets.get(&set.meta.key));
            return Ok(fresh.collect());
        }
        Ok(claims.owned)
    }

    async fn change_set(
        &self,
        own: &Meta,
        set: &ReplicaSet,
        change: impl FnOnce(&mut Value) -> bool + Send,
    ) -> Result<(), ClusterError> {
        let identity = Identity { uid: &set.meta.uid, revision: None };
        let kind = kinds::replica_sets();
        let written =
            modify(&*self.cluster, kind, &set.meta.key, identity, Part::Main, change).await;
        match written {
            Ok(Some(written)) => {
                self.wrote(own, revision_of(&written));
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => ignore_not_found(Err(error)),
        }
    }

    /// Whether any pod of the set may still run.
    fn has_pods(&self, set: &ReplicaSet) -> bool {
        let pods = self.pods.find(&Term::Owner(Arc::clone(&set.meta.uid)));
        pods.iter().any(|pod| !pod.is_finished())
    }

    async fn write_status(&self, own: &Meta, status: DeploymentStatus) -> Result<(), ClusterError> {
        let value = serde_json::to_value(status).expect("a status is plain data");
        let change = move |object: &mut Value| {
            if object.get("status") == Some(&value) {
                return false;
            }
            object["status"] = value;
            true
        };
        let identity = Identity { uid: &own.uid, revision: None };
        let kind = kinds::deployments();
        let written = modify(&*self.cluster, kind, &own.key, identity, Part::Status, change).await;
        ignore_not_found(written.map(|_| ()))
    }

    fn tell_scaled(&self, own: &Meta, set: &str, from: i64, to: i64) {
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
            self.tell(own, false, "ScalingReplicaSet", message);
        }
    }

    fn tell(&self, own: &Meta, warning: bool, reason: &'static str, message: String) {
        let involved = Involved::of(kinds::deployments(), own);
        self.recorder.record(Record { involved, reason, message, warning, component: COMPONENT });
    }

    fn wrote(&self, own: &Meta, revision: u64) {
        let mut all = self.own_writes();
        let known = all.entry(own.key.clone()).or_insert(0);
        *known = (*known).max(revision);
    }

    fn own_writes(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, u64>> {
        self.own_writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Deployment's annotations that its ReplicaSets carry too.
fn read_annotations(deployment: &Value) -> Vec<(String, String)> {
    let map = deployment.pointer("/metadata/annotations").and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter(|(key, _)| !crate::projection::own_annotation(key))
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The ReplicaSet for the Deployment's template.
fn new_set(own: &Meta, object: &Value, name: &str, hash: &str, change: &SetChange) -> Value {
    let mut template = object.pointer("/spec/template").cloned().unwrap_or_default();
    template["metadata"]["labels"][annotations::POD_TEMPLATE_HASH] = hash.into();
    let mut selector = object.pointer("/spec/selector").cloned().unwrap_or_default();
    selector["matchLabels"][annotations::POD_TEMPLATE_HASH] = hash.into();
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "namespace": own.key.namespace,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [reference(kinds::deployments(), own)],
        },
        "spec": {"selector": selector, "template": template},
    });
    change.apply(&mut set, &read_annotations(object));
    set
}

#[cfg(test)]
mod tests;
