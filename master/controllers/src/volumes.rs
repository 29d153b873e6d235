//! Gives claims their volumes, and takes volumes back.
//!
//! ```text
//!  claims, volumes, classes, pods, nodes ──change──► key
//!                                                     │
//!            write, in the plan's order ◄── plan ◄── look
//! ```
//!
//! [`plan`] decides, [`matching`] says what fits; here is what reads and writes.
//! One key at a time: two claims must not be given the same volume. It does not
//! know how a folder is made or removed: that is the node's, and a volume made
//! there keeps the finalizer `pinnace.io/local-path` until the node has said so.

pub mod matching;
pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::strategy::VOLUME_PROTECTION;
use api::{ObjectKey, Value, meta, storage};
use serde_json::{Map, json};

use crate::cache::Cache;
use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Kind, Part, ignore_not_found, kinds, modify,
    revision_of,
};
use crate::events::{Involved, Record, Recorder};
use crate::projection::{Claim, Class, Holder, Meta, Node, Pod, Term, Volume};
use crate::runner::{Action, Sender};

use matching::Stock;
use plan::{NewVolume, Place, Step};

/// Who tells people.
const COMPONENT: &str = "persistentvolume-controller";
/// Time between two words about a claim that waits.
const LOOK_AGAIN: Duration = Duration::from_mins(5);
/// Label of a node's host name.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A claim.
    Claim(ObjectKey),
    /// A volume, by name.
    Volume(String),
}

/// What the controller sees.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Every volume.
    pub volumes: Cache<Volume>,
    /// Every claim.
    pub claims: Cache<Claim>,
    /// Every class.
    pub classes: Cache<Class>,
    /// Every pod.
    pub pods: Cache<Pod>,
    /// Every node.
    pub nodes: Cache<Node>,
}

impl Caches {
    /// Every volume and class, as they are now.
    #[must_use]
    pub fn stock(&self) -> Stock {
        Stock { volumes: self.volumes.all(), classes: self.classes.all() }
    }
}

/// The controller.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    caches: Caches,
    recorder: Recorder,
}

/// Asks for a look at what a change may concern.
pub fn feed(caches: &Caches, queue: &Sender<Key>) {
    let waiting =
        |claims: &Cache<Claim>, queue: &Sender<Key>, concerned: &dyn Fn(&Claim) -> bool| {
            for claim in claims.all() {
                if !claim.is_bound && concerned(&claim) {
                    queue.add(Key::Claim(claim.meta.key.clone()));
                }
            }
        };
    let (sender, all, volumes) = (queue.clone(), caches.claims.clone(), caches.volumes.clone());
    caches.claims.on_change(move |before, after| {
        let Some(claim) = after.or(before) else { return };
        sender.add(Key::Claim(claim.meta.key.clone()));
        if !claim.volume.is_empty() {
            sender.add(Key::Volume(claim.volume.to_string()));
        }
        for volume in volumes.find(&Term::Claim(claim.meta.key.clone())) {
            sender.add(Key::Volume(volume.name().to_owned()));
        }
    });
    let sender = queue.clone();
    caches.volumes.on_change(move |before, after| {
        for volume in [before, after].into_iter().flatten() {
            if let Some(holder) = &volume.claim {
                sender.add(Key::Claim(holder.key.clone()));
            }
        }
        let Some(volume) = after.or(before) else { return };
        sender.add(Key::Volume(volume.name().to_owned()));
        waiting(&all, &sender, &|claim| {
            *claim.volume == *volume.name()
                || (volume.claim.is_none() && claim.class.as_deref() == Some(&*volume.class))
        });
        // One that is bound to what is gone now.
        if after.is_none() {
            for claim in all.all().iter().filter(|claim| *claim.volume == *volume.name()) {
                sender.add(Key::Claim(claim.meta.key.clone()));
            }
        }
    });
    let (sender, claims) = (queue.clone(), caches.claims.clone());
    caches.classes.on_change(move |_, after| {
        let Some(class) = after else { return };
        let name = class.meta.key.name.as_str();
        waiting(&claims, &sender, &|claim| {
            claim.class.as_deref() == Some(name) || (class.is_default && claim.class.is_none())
        });
    });
    let (sender, claims) = (queue.clone(), caches.claims.clone());
    let volumes = caches.volumes.clone();
    caches.nodes.on_change(move |before, after| {
        let said = |node: Option<&Arc<Node>>| node.map(|node| Arc::clone(&node.storage_folder));
        if said(before) == said(after) {
            return;
        }
        let name = after.or(before).map_or("", |node| node.meta.key.name.as_str());
        waiting(&claims, &sender, &|claim| claim.selected_node.as_deref() == Some(name));
        for volume in volumes.all() {
            if volume.is_local_path && volume.meta.is_deleting() {
                sender.add(Key::Volume(volume.name().to_owned()));
            }
        }
    });
    let sender = queue.clone();
    caches.pods.on_change(move |before, after| {
        let is_over = after.is_none_or(|pod| pod.is_finished());
        let Some(pod) = after.or(before).filter(|_| is_over) else { return };
        for claim in &pod.claims {
            sender.add(Key::Claim(ObjectKey::new(&pod.meta.key.namespace, claim)));
        }
    });
}

impl<C: Cluster> Controller<C> {
    /// A controller over these projections.
    #[must_use]
    pub fn new(cluster: Arc<C>, caches: Caches, recorder: Recorder) -> Self {
        Self { cluster, caches, recorder }
    }

    /// Takes one claim or volume where it should be.
    ///
    /// # Errors
    /// Whatever the cluster answers; what was written stays so.
    pub async fn reconcile(&self, key: &Key) -> Result<Action, ClusterError> {
        let stock = self.caches.stock();
        let about = match key {
            Key::Claim(key) => self.caches.claims.get(key).map(About::Claim),
            Key::Volume(name) => stock.volume(name).cloned().map(About::Volume),
        };
        let Some(about) = about else { return Ok(Action::AwaitChange) };
        let steps = match &about {
            About::Claim(claim) => {
                let place = |name: &str| self.place(name);
                plan::claim(claim, &stock, self.is_used(claim).await?, place)
            }
            About::Volume(volume) => {
                let claim = volume.claim.as_ref();
                let claim = claim.and_then(|holder| self.caches.claims.get(&holder.key));
                plan::volume(volume, claim.as_deref(), self.has_node(volume))
            }
        };
        let is_waiting = steps.iter().any(|step| matches!(step, Step::Tell { .. }));
        let mut work = Work { about: &about, stock: &stock, revisions: HashMap::new() };
        for step in steps {
            self.perform(&mut work, step).await?;
        }
        // The next plan is made from what these steps wrote.
        for ((kind, _), revision) in &work.revisions {
            if *kind == kinds::volumes().plural {
                self.caches.volumes.reached(*revision).await?;
            } else {
                self.caches.claims.reached(*revision).await?;
            }
        }
        Ok(if is_waiting { Action::RequeueAfter(LOOK_AGAIN) } else { Action::AwaitChange })
    }

    /// Whether a pod on a node uses a claim that is to go; asked of the store, since
    /// what the caches do not show yet would lose its data.
    async fn is_used(&self, claim: &Claim) -> Result<bool, ClusterError> {
        if !claim.meta.is_deleting() {
            return Ok(false);
        }
        let uses = |pod: &Pod| {
            pod.node.is_some()
                && !pod.is_finished()
                && pod.claims.iter().any(|name| **name == *claim.name())
        };
        let namespace = &claim.meta.key.namespace;
        if self.caches.pods.find(&Term::Claim(claim.meta.key.clone())).iter().any(|pod| uses(pod)) {
            return Ok(true);
        }
        let mut is_used = false;
        let mut look = |pod: Value| {
            is_used |= uses(&crate::projection::Projection::project(&pod));
        };
        self.cluster.list(kinds::pods(), Some(namespace), &mut look).await?;
        Ok(is_used)
    }

    fn place(&self, name: &str) -> Option<Place> {
        let node = self.caches.nodes.get(&ObjectKey::new("", name))?;
        let host = node.schedulable.label(HOSTNAME).unwrap_or(name).to_owned();
        Some(Place { host, folder: node.storage_folder.to_string() })
    }

    /// Whether a node is there that a volume can be reached from.
    fn has_node(&self, volume: &Volume) -> bool {
        self.caches.nodes.all().iter().any(|node| node.schedulable.meets(&volume.affinity))
    }

    async fn perform(&self, work: &mut Work<'_>, step: Step) -> Result<(), ClusterError> {
        match step {
            Step::SetAside { volume, claim, by_controller } => {
                let change = move |object: &mut Value| set_aside(object, &claim, by_controller);
                self.volume(work, &volume, Part::Main, change).await
            }
            Step::Free { volume, keep_name } => {
                let change = move |object: &mut Value| {
                    let Some(spec) = object["spec"].as_object_mut() else { return false };
                    if keep_name {
                        for field in ["uid", "resourceVersion"] {
                            remove(spec.get_mut("claimRef"), field);
                        }
                    } else {
                        spec.shift_remove("claimRef");
                    }
                    remove(
                        object.pointer_mut("/metadata/annotations"),
                        storage::BOUND_BY_CONTROLLER,
                    );
                    true
                };
                self.volume(work, &volume, Part::Main, change).await
            }
            Step::VolumePhase { volume, phase, message } => {
                let change = move |object: &mut Value| {
                    let mut status = Map::new();
                    status.insert("phase".to_owned(), phase.into());
                    if !message.is_empty() {
                        status.insert("message".to_owned(), message.into());
                        status.insert("reason".to_owned(), "VolumeFailedDelete".into());
                    }
                    object["status"] = Value::Object(status);
                    true
                };
                self.volume(work, &volume, Part::Status, change).await
            }
            Step::DeleteVolume { volume, claim } => self.delete(work, &volume, &claim).await,
            Step::Provision(new) => self.provision(work, &new).await,
            Step::Bind { volume, by_controller } => {
                let change = move |object: &mut Value| {
                    meta::set_annotation(object, storage::BIND_COMPLETED, "yes");
                    if by_controller {
                        meta::set_annotation(object, storage::BOUND_BY_CONTROLLER, "yes");
                    }
                    object["spec"]["volumeName"] = volume.into();
                    true
                };
                self.claim(work, Part::Main, change).await
            }
            Step::ClaimPhase { phase, has } => {
                let change = move |object: &mut Value| {
                    object["status"] = match has {
                        Some((capacity, modes)) => {
                            let modes: Vec<&str> = modes.iter().map(AsRef::as_ref).collect();
                            json!({
                                "phase": phase, "accessModes": modes,
                                "capacity": {"storage": &*capacity},
                            })
                        }
                        None => json!({"phase": phase}),
                    };
                    true
                };
                self.claim(work, Part::Status, change).await
            }
            Step::GiveClass(class) => {
                let change = move |object: &mut Value| {
                    object["spec"]["storageClassName"] = class.into();
                    true
                };
                self.claim(work, Part::Main, change).await
            }
            Step::AskProvisioner(provisioner) => {
                let change = move |object: &mut Value| {
                    meta::set_annotation(object, storage::PROVISIONER, &provisioner);
                    true
                };
                self.claim(work, Part::Main, change).await
            }
            Step::ForgetNode => {
                let change = |object: &mut Value| {
                    remove(object.pointer_mut("/metadata/annotations"), storage::SELECTED_NODE)
                };
                self.claim(work, Part::Main, change).await
            }
            Step::Protect(finalizer) => self.finalizer(work, finalizer, true).await,
            Step::Unprotect(finalizer) => self.finalizer(work, finalizer, false).await,
            Step::Tell { warning, reason, message } => {
                let involved = work.about.involved();
                let component = COMPONENT;
                self.recorder.record(Record { involved, reason, message, warning, component });
                Ok(())
            }
        }
    }

    async fn finalizer(
        &self,
        work: &mut Work<'_>,
        finalizer: &'static str,
        is_wanted: bool,
    ) -> Result<(), ClusterError> {
        let change = move |object: &mut Value| {
            let list = meta::metadata_mut(object).entry("finalizers").or_insert_with(|| json!([]));
            let Some(list) = list.as_array_mut() else { return false };
            let before = list.len();
            list.retain(|known| known != finalizer);
            if is_wanted {
                list.push(finalizer.into());
            }
            list.len() != before
        };
        match work.about {
            About::Claim(_) => self.claim(work, Part::Main, change).await,
            About::Volume(volume) => {
                let name = volume.name().to_owned();
                self.volume(work, &name, Part::Main, change).await
            }
        }
    }

    /// Writes the claim that the work is about.
    async fn claim(
        &self,
        work: &mut Work<'_>,
        part: Part,
        change: impl FnOnce(&mut Value) -> bool + Send,
    ) -> Result<(), ClusterError> {
        let About::Claim(claim) = work.about else { return Ok(()) };
        self.write(work, kinds::claims(), &claim.meta, part, change).await
    }

    /// Writes a volume.
    async fn volume(
        &self,
        work: &mut Work<'_>,
        name: &str,
        part: Part,
        change: impl FnOnce(&mut Value) -> bool + Send,
    ) -> Result<(), ClusterError> {
        let Some(volume) = work.stock.volume(name).cloned() else { return Ok(()) };
        self.write(work, kinds::volumes(), &volume.meta, part, change).await
    }

    async fn write(
        &self,
        work: &mut Work<'_>,
        kind: Kind,
        planned: &Meta,
        part: Part,
        change: impl FnOnce(&mut Value) -> bool + Send,
    ) -> Result<(), ClusterError> {
        let slot = (kind.plural, planned.key.clone());
        let revision = work.revisions.get(&slot).copied().unwrap_or(planned.revision);
        let identity = Identity { uid: &planned.uid, revision: Some(revision) };
        let written = modify(&*self.cluster, kind, &planned.key, identity, part, change).await?;
        if let Some(object) = written {
            work.revisions.insert(slot, revision_of(&object));
        }
        Ok(())
    }

    /// Deletes a volume whose claim is gone. What the caches say is asked again:
    /// with the volume goes what is on it.
    async fn delete(
        &self,
        work: &Work<'_>,
        name: &str,
        claim: &Holder,
    ) -> Result<(), ClusterError> {
        let Some(volume) = work.stock.volume(name) else { return Ok(()) };
        let found = self.cluster.get(kinds::claims(), &claim.key).await?;
        let is_there = found.is_some_and(|found| {
            let bound_to = found["spec"]["volumeName"].as_str().unwrap_or_default();
            // One that has found another volume leaves this one.
            meta::uid(&found) == &*claim.uid && (bound_to.is_empty() || bound_to == name)
        });
        if is_there {
            let what = crate::cluster::Named::new(kinds::claims(), &claim.key);
            return Err(ClusterError::Conflict(what));
        }
        let options = DeleteOptions::of_uid(&volume.meta.uid);
        ignore_not_found(self.cluster.delete(kinds::volumes(), &volume.meta.key, options).await)
    }

    async fn provision(&self, work: &mut Work<'_>, new: &NewVolume) -> Result<(), ClusterError> {
        let kind = kinds::volumes();
        match self.cluster.create(kind, "", object_of(new)).await {
            Ok(made) => {
                let slot = (kind.plural, ObjectKey::new("", &new.name));
                work.revisions.insert(slot, revision_of(&made));
                Ok(())
            }
            // By this controller, before the cache shows it.
            Err(ClusterError::AlreadyExists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What a reconcile is about.
#[derive(Debug)]
enum About {
    Claim(Arc<Claim>),
    Volume(Arc<Volume>),
}

impl About {
    fn involved(&self) -> Involved {
        match self {
            Self::Claim(claim) => Involved::of(kinds::claims(), &claim.meta),
            Self::Volume(volume) => Involved::of(kinds::volumes(), &volume.meta),
        }
    }
}

/// One plan on its way.
struct Work<'a> {
    about: &'a About,
    stock: &'a Stock,
    /// The newest revision of what was written, by plural and key.
    revisions: HashMap<(&'static str, ObjectKey), u64>,
}

fn remove(fields: Option<&mut Value>, name: &str) -> bool {
    let fields = fields.and_then(Value::as_object_mut);
    fields.is_some_and(|fields| fields.shift_remove(name).is_some())
}

/// Writes into a volume which claim it is set aside for.
pub(crate) fn set_aside(volume: &mut Value, claim: &Holder, by_controller: bool) -> bool {
    volume["spec"]["claimRef"] = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": claim.key.namespace, "name": claim.key.name, "uid": &*claim.uid,
    });
    if by_controller {
        meta::set_annotation(volume, storage::BOUND_BY_CONTROLLER, "yes");
    }
    true
}

/// A PersistentVolume for a folder that the node makes when the first pod mounts it.
fn object_of(new: &NewVolume) -> Value {
    let modes: Vec<&str> = new.modes.iter().map(AsRef::as_ref).collect();
    json!({
        "metadata": {
            "name": new.name,
            "annotations": {(storage::PROVISIONED_BY): storage::LOCAL_PATH},
            "finalizers": [VOLUME_PROTECTION, storage::LOCAL_PATH],
        },
        "spec": {
            "capacity": {"storage": &*new.capacity},
            "accessModes": modes,
            "persistentVolumeReclaimPolicy":
                if new.is_deleted_with_claim { "Delete" } else { "Retain" },
            "storageClassName": new.class,
            "volumeMode": "Filesystem",
            "local": {"path": new.path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [new.host]}]}]}},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": new.claim.key.namespace, "name": new.claim.key.name,
                "uid": &*new.claim.uid,
            },
        },
    })
}

#[cfg(test)]
mod tests;
