//! A cluster in memory, for tests of whole controllers under paused time.
//!
//! [`FakeCluster`] keeps the API server's promises as far as controllers rely on
//! them: resource versions, generations, uids, generated names, graceful
//! deletion, finalizers, watches that can expire. It does not validate,
//! authorise or set defaults. [`FakeNodes`] plays the nodes: it runs the pods
//! bound to the nodes that live, and stops those that are deleted.

mod nodes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::resource::Storage;
use api::{ObjectKey, Value, meta};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::cluster::{
    Change, ChangeStream, Cluster, ClusterError, DeleteOptions, Kind, Named, Propagation,
    WatchItem, revision_of,
};

pub use nodes::FakeNodes;

/// A cluster in memory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FakeCluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct State {
    /// By qualified plural and key.
    objects: BTreeMap<(String, ObjectKey), Value>,
    revision: u64,
    n_uids: u64,
    log: VecDeque<Logged>,
    /// Nothing at or before this revision can be watched from.
    compacted: u64,
    /// Watches made before this count end.
    watch_epoch: u64,
    /// Writes of these resources fail, in this order.
    faults: VecDeque<(&'static str, ClusterError)>,
    /// How long watches of a resource are behind, by plural.
    lags: BTreeMap<&'static str, Duration>,
}

#[derive(Clone, Debug)]
struct Logged {
    plural: String,
    change: Change,
    at: Instant,
}

impl Default for FakeCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeCluster {
    /// An empty cluster whose clock follows tokio's.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            revision: watch::Sender::new(0),
            clock: Clock::paused(),
        }))
    }

    /// The clock its times come from.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.0.clock
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Waits until `condition` holds, looking again after every write.
    pub async fn until(&self, mut condition: impl FnMut(&Self) -> bool) {
        let mut revision = self.0.revision.subscribe();
        while !condition(self) {
            // The sender lives as long as `self`.
            let _ = revision.changed().await;
        }
    }

    /// A signal that a write happened.
    #[must_use]
    pub fn writes(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    /// Every object of a resource, by key.
    #[must_use]
    pub fn objects(&self, resource: Kind) -> Vec<Value> {
        let plural = resource.qualified_plural();
        let state = self.lock();
        state.of(&plural).map(|(_, object)| object.clone()).collect()
    }

    /// One object.
    #[must_use]
    pub fn object(&self, resource: Kind, key: &ObjectKey) -> Option<Value> {
        self.lock().objects.get(&(resource.qualified_plural(), key.clone())).cloned()
    }

    /// The next write of this resource fails with this error.
    pub fn fail_next_write(&self, resource: Kind, error: ClusterError) {
        self.lock().faults.push_back((resource.plural, error));
    }

    /// From now on watches of this resource are that far behind.
    pub fn set_lag(&self, resource: Kind, lag: Duration) {
        self.lock().lags.insert(resource.plural, lag);
    }

    /// Ends every watch.
    pub fn break_watches(&self) {
        self.lock().watch_epoch += 1;
        self.0.revision.send_modify(|_| ());
    }

    /// Forgets the log: only what changes from now on can be watched.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.log.clear();
        state.compacted = state.revision;
    }

    /// Changes an object past every rule: what an operator, a node or another
    /// program does in a test. Returns whether the object exists.
    pub fn edit(&self, resource: Kind, key: &ObjectKey, change: impl FnOnce(&mut Value)) -> bool {
        let Some(mut object) = self.object(resource, key) else {
            return false;
        };
        let before = object.clone();
        change(&mut object);
        self.write(resource, |state| {
            bump_generation(&before, &mut object);
            state.put(resource, object);
            Ok(())
        })
        .is_ok()
    }

    /// Removes an object at once, whatever holds it: what a node reports for a
    /// pod that has stopped.
    pub fn remove(&self, resource: Kind, key: &ObjectKey) {
        let _ = self.write(resource, |state| {
            state.drop_object(resource, key);
            Ok(())
        });
    }

    /// Forgets an object, and what was told of it, without telling anybody: for
    /// programs that measure what others keep.
    pub fn remove_silently(&self, resource: Kind, key: &ObjectKey) {
        let mut state = self.lock();
        state.objects.remove(&(resource.qualified_plural(), key.clone()));
        state.log.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<R>(
        &self,
        resource: Kind,
        write: impl FnOnce(&mut State) -> Result<R, ClusterError>,
    ) -> Result<R, ClusterError> {
        let mut state = self.lock();
        let fault = state.faults.iter().position(|(plural, _)| *plural == resource.plural);
        if let Some((_, error)) = fault.and_then(|at| state.faults.remove(at)) {
            return Err(error);
        }
        let result = write(&mut state);
        let revision = state.revision;
        drop(state);
        self.0.revision.send_replace(revision);
        result
    }

    fn replace(
        &self,
        resource: Kind,
        object: Value,
        merge: impl FnOnce(&Value, Value) -> Value,
    ) -> Result<Value, ClusterError> {
        self.write(resource, |state| {
            let key = meta::object_key(&object);
            let named = || Named::new(resource, &key);
            let before =
                state.get(resource, &key).ok_or_else(|| ClusterError::NotFound(named()))?;
            let version = revision_of(&object);
            let uid = meta::uid(&object);
            let other = !uid.is_empty() && uid != meta::uid(before);
            if version != 0 && version != revision_of(before) || other {
                return Err(ClusterError::Conflict(named()));
            }
            let mut merged = merge(before, object);
            bump_generation(before, &mut merged);
            let mut old = before.clone();
            set_revision(&mut old, 0);
            set_revision(&mut merged, 0);
            if old == merged {
                return Ok(before.clone());
            }
            Ok(state.put(resource, merged))
        })
    }
}

impl State {
    fn of(&self, plural: &str) -> impl Iterator<Item = (&ObjectKey, &Value)> {
        let from = (plural.to_owned(), ObjectKey::default());
        let plural = plural.to_owned();
        self.objects
            .range(from..)
            .take_while(move |((other, _), _)| *other == plural)
            .map(|((_, key), object)| (key, object))
    }

    fn get(&self, resource: Kind, key: &ObjectKey) -> Option<&Value> {
        self.objects.get(&(resource.qualified_plural(), key.clone()))
    }

    /// Stores an object, or removes it where it is being deleted and nothing
    /// holds it any more.
    fn put(&mut self, resource: Kind, mut object: Value) -> Value {
        self.revision += 1;
        set_revision(&mut object, self.revision);
        let key = meta::object_key(&object);
        let deleting = meta::is_terminating(&object);
        let held = !meta::finalizers(&object).is_empty()
            || object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64)
                > Some(0)
            || resource.kind == "Namespace"
                && object
                    .pointer("/spec/finalizers")
                    .and_then(Value::as_array)
                    .is_some_and(|list| !list.is_empty());
        let plural = resource.qualified_plural();
        let shown = if deleting && !held {
            self.objects.remove(&(plural.clone(), key.clone()));
            None
        } else {
            self.objects.insert((plural.clone(), key.clone()), object.clone());
            Some(object.clone())
        };
        self.note(plural, Change { revision: self.revision, key, object: shown });
        object
    }

    fn note(&mut self, plural: String, change: Change) {
        self.log.push_back(Logged { plural, change, at: Instant::now() });
    }

    fn drop_object(&mut self, resource: Kind, key: &ObjectKey) {
        let plural = resource.qualified_plural();
        if self.objects.remove(&(plural.clone(), key.clone())).is_some() {
            self.revision += 1;
            let change = Change { revision: self.revision, key: key.clone(), object: None };
            self.note(plural, change);
        }
    }
}

fn set_revision(object: &mut Value, revision: u64) {
    meta::metadata_mut(object).insert("resourceVersion".to_owned(), revision.to_string().into());
}

fn bump_generation(before: &Value, after: &mut Value) {
    let generation = meta::generation(before) + i64::from(before.get("spec") != after.get("spec"));
    meta::metadata_mut(after).insert("generation".to_owned(), generation.into());
}

impl Cluster for FakeCluster {
    async fn get(&self, resource: Kind, key: &ObjectKey) -> Result<Option<Value>, ClusterError> {
        Ok(self.object(resource, key))
    }

    async fn list(
        &self,
        resource: Kind,
        namespace: Option<&str>,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> Result<u64, ClusterError> {
        let state = self.lock();
        let plural = resource.qualified_plural();
        let in_namespace =
            |key: &ObjectKey| namespace.is_none_or(|namespace| key.namespace == namespace);
        for (key, object) in state.of(&plural) {
            if in_namespace(key) {
                each(object.clone());
            }
        }
        Ok(state.revision)
    }

    async fn create(
        &self,
        resource: Kind,
        namespace: &str,
        mut object: Value,
    ) -> Result<Value, ClusterError> {
        let now = self.0.clock.text();
        self.write(resource, |state| {
            state.n_uids += 1;
            let n = state.n_uids;
            let prefix = meta::generate_name(&object).to_owned();
            let fields = meta::metadata_mut(&mut object);
            if !prefix.is_empty() && !fields.contains_key("name") {
                // Spread the count over the alphabet, so that names look made.
                let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                fields.insert("name".to_owned(), api::names::generate_name(&prefix, random).into());
            }
            if resource.namespaced {
                fields.insert("namespace".to_owned(), namespace.into());
            }
            fields.insert("uid".to_owned(), format!("00000000-0000-4000-8000-{n:012x}").into());
            fields.insert("creationTimestamp".to_owned(), now.clone().into());
            fields.insert("generation".to_owned(), 1.into());
            let key = meta::object_key(&object);
            let named = Named::new(resource, &key);
            if state.get(resource, &key).is_some() {
                return Err(ClusterError::AlreadyExists(named));
            }
            if resource.namespaced && resource.storage == Storage::Durable {
                let namespaces = crate::cluster::kinds::namespaces();
                let home = state.get(namespaces, &ObjectKey::new("", namespace));
                if home.is_some_and(meta::is_terminating) {
                    return Err(ClusterError::NamespaceTerminating(named));
                }
            }
            if resource.kind == "Namespace" && object.pointer("/spec/finalizers").is_none() {
                object["spec"]["finalizers"] = json!(["kubernetes"]);
            }
            if resource.kind == "Pod" && object.pointer("/status/phase").is_none() {
                object["status"]["phase"] = "Pending".into();
            }
            object["apiVersion"] = resource.api_version().into();
            object["kind"] = resource.kind.into();
            Ok(state.put(resource, object))
        })
    }

    async fn update(&self, resource: Kind, object: Value) -> Result<Value, ClusterError> {
        self.replace(resource, object, |before, mut after| {
            if resource.has_status() {
                copy_field(before, &mut after, "status");
            }
            let fields = meta::metadata_mut(&mut after);
            let old = meta::metadata(before).expect("every object has metadata");
            for field in
                ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
            {
                match old.get(field) {
                    Some(value) => fields.insert(field.to_owned(), value.clone()),
                    None => fields.remove(field),
                };
            }
            after
        })
    }

    async fn update_status(&self, resource: Kind, object: Value) -> Result<Value, ClusterError> {
        self.replace(resource, object, |before, after| {
            let mut merged = before.clone();
            copy_field(&after, &mut merged, "status");
            merged
        })
    }

    async fn finalize_namespace(&self, object: Value) -> Result<(), ClusterError> {
        let resource = crate::cluster::kinds::namespaces();
        self.replace(resource, object, |before, after| {
            let mut merged = before.clone();
            copy_field(&after, &mut merged, "spec");
            merged
        })
        .map(|_| ())
    }

    async fn delete(
        &self,
        resource: Kind,
        key: &ObjectKey,
        options: DeleteOptions,
    ) -> Result<(), ClusterError> {
        let now = self.0.clock.now();
        self.write(resource, |state| {
            let named = || Named::new(resource, key);
            let mut object =
                state.get(resource, key).cloned().ok_or_else(|| ClusterError::NotFound(named()))?;
            let other_uid = options.uid.as_deref().is_some_and(|uid| uid != meta::uid(&object));
            let other = options.revision.is_some_and(|revision| revision != revision_of(&object));
            if other_uid || other {
                return Err(ClusterError::Conflict(named()));
            }
            let finalizer = match options.propagation {
                Some(Propagation::Foreground) => Some("foregroundDeletion"),
                Some(Propagation::Orphan) => Some("orphan"),
                _ => None,
            };
            let bound = object
                .pointer("/spec/nodeName")
                .and_then(Value::as_str)
                .is_some_and(|n| !n.is_empty());
            let finished = matches!(
                object.pointer("/status/phase").and_then(Value::as_str),
                Some("Succeeded" | "Failed")
            );
            let grace = if resource.strategy.graceful_deletion && bound && !finished {
                let own = object.pointer("/spec/terminationGracePeriodSeconds");
                let own = own.and_then(Value::as_u64).unwrap_or(30);
                options.grace_seconds.map_or(own, u64::from)
            } else {
                0
            };
            let fields = meta::metadata_mut(&mut object);
            let old_grace = fields.get("deletionGracePeriodSeconds").and_then(Value::as_u64);
            let deleting = fields.contains_key("deletionTimestamp");
            // A second delete only shortens the grace.
            if deleting && old_grace.unwrap_or(0) <= grace && finalizer.is_none() {
                return Ok(());
            }
            if !deleting || old_grace.unwrap_or(0) > grace {
                fields.insert("deletionTimestamp".to_owned(), api::time::rfc3339(now).into());
                fields.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
            }
            if let Some(finalizer) = finalizer {
                let list = fields.entry("finalizers").or_insert_with(|| json!([]));
                let list = list.as_array_mut().expect("finalizers are a list");
                if !list.contains(&finalizer.into()) {
                    list.push(finalizer.into());
                }
            }
            if resource.kind == "Namespace" {
                object["status"]["phase"] = "Terminating".into();
            }
            state.put(resource, object);
            Ok(())
        })
    }

    async fn bind(&self, pod: &ObjectKey, uid: &str, node: &str) -> Result<(), ClusterError> {
        let pods = crate::cluster::kinds::pods();
        self.write(pods, |state| {
            let named = || Named::new(pods, pod);
            let mut object =
                state.get(pods, pod).cloned().ok_or_else(|| ClusterError::NotFound(named()))?;
            let bound =
                object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            if meta::uid(&object) != uid || !bound.is_empty() || meta::is_terminating(&object) {
                return Err(ClusterError::Conflict(named()));
            }
            object["spec"]["nodeName"] = node.into();
            state.put(pods, object);
            Ok(())
        })
    }

    async fn watch(&self, resource: Kind, from: u64) -> Result<ChangeStream, ClusterError> {
        let plural = resource.qualified_plural();
        let epoch = {
            let state = self.lock();
            if from < state.compacted {
                return Err(ClusterError::Expired(from));
            }
            state.watch_epoch
        };
        let writes = self.0.revision.subscribe();
        let start = (self.clone(), writes, plural, from);
        let stream =
            futures::stream::unfold(start, move |(fake, mut writes, plural, seen)| async move {
                loop {
                    let next = {
                        let state = fake.lock();
                        if state.watch_epoch != epoch {
                            return None;
                        }
                        let next = state
                            .log
                            .iter()
                            .find(|entry| entry.plural == plural && entry.change.revision > seen);
                        let lag = state.lags.get(resource.plural).copied().unwrap_or_default();
                        next.cloned().map(|entry| (entry.change, entry.at + lag))
                    };
                    if let Some((change, due)) = next {
                        tokio::time::sleep_until(due).await;
                        let seen = change.revision;
                        let item = Ok(WatchItem::Change(change));
                        return Some((item, (fake, writes, plural, seen)));
                    }
                    if writes.changed().await.is_err() {
                        return None;
                    }
                }
            });
        Ok(stream.boxed())
    }
}

fn copy_field(from: &Value, to: &mut Value, field: &str) {
    let to = to.as_object_mut().expect("an API object is a JSON object");
    match from.get(field) {
        Some(value) => to.insert(field.to_owned(), value.clone()),
        None => to.remove(field),
    };
}
