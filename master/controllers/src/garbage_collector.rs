//! Deletes objects whose owners are gone, by `ownerReferences`, over every
//! resource of the table.
//!
//! | an owner is deleted | its dependents |
//! |---|---|
//! | in the background | are deleted once it is gone |
//! | in the foreground (finalizer `foregroundDeletion`) | are deleted first; it goes once those that block it are gone |
//! | with orphans (finalizer `orphan`) | lose the reference and stay |
//!
//! An owner counts as gone only after a read of the store said so: a projection
//! may be behind. References to kinds that are not served, and from
//! cluster-scoped objects to namespaced ones, keep an object alive.

mod classify;
mod objects;

use std::sync::Arc;

use api::{ObjectKey, Value, meta};
use futures::stream::{self, StreamExt as _};

use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Kind, Part, ignore_not_found, modify,
};
use crate::ownership::remove_owner;
use crate::projection::{Meta, Owner};
use crate::runner::{Action, Sender};

pub use classify::{OwnerState, Step, plan};
pub use objects::{MetaHandler, Objects};

/// The finalizer of an owner whose dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner whose dependents stay.
pub const ORPHAN: &str = "orphan";
/// Writes in flight for one object.
const CONCURRENCY: usize = 16;

/// An object of any resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// Its place in the list of sources.
    source: usize,
    /// Its key.
    key: ObjectKey,
}

/// The projections of every resource whose objects own or are owned.
pub type Sources = Arc<Vec<Box<dyn Objects>>>;

/// Asks for a look at objects that have owners, and at dependents of objects
/// that are or will be gone.
pub fn feed(sources: &Sources, queue: &Sender<Item>) {
    for (at, source) in sources.iter().enumerate() {
        let (sender, all) = (queue.clone(), Arc::downgrade(sources));
        source.on_change(Box::new(move |before, after| {
            if let Some(object) = after
                && concerns(before, object)
            {
                sender.add(Item { source: at, key: object.key.clone() });
            }
            let (Some(object), None) = (before, after) else { return };
            let Some(all) = all.upgrade() else { return };
            // Its dependents have one owner less.
            for (source, objects) in all.iter().enumerate() {
                for dependent in objects.of_owner(&object.uid) {
                    sender.add(Item { source, key: dependent.key });
                }
            }
            // An owner that waits for it may go.
            for owner in object.owners.iter().filter(|owner| owner.blocks) {
                if let Some(item) = item_of(&all, owner, &object.key.namespace) {
                    sender.add(item);
                }
            }
        }));
    }
}

/// Whether a change of an object is one the collector acts on.
fn concerns(before: Option<&Meta>, after: &Meta) -> bool {
    let held = after.finalizers.iter().any(|f| matches!(&**f, FOREGROUND | ORPHAN));
    let Some(before) = before else {
        return !after.owners.is_empty() || held;
    };
    before.owners != after.owners && !after.owners.is_empty()
        || held
            && (before.deletion.is_none() != after.deletion.is_none()
                || before.finalizers != after.finalizers)
        || before.uid != after.uid
}

/// The object an owner reference means, where its kind is served.
fn item_of(sources: &Sources, owner: &Owner, namespace: &str) -> Option<Item> {
    let resource = api::resource::by_api_version(&owner.api_version, &owner.kind)?;
    let source = sources.iter().position(|source| std::ptr::eq(source.resource(), resource))?;
    let namespace = if resource.namespaced { namespace } else { "" };
    Some(Item { source, key: ObjectKey::new(namespace, &owner.name) })
}

/// The controller.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    sources: Sources,
}

impl<C: Cluster> Controller<C> {
    /// A collector over these objects.
    #[must_use]
    pub fn new(cluster: Arc<C>, sources: Sources) -> Self {
        Self { cluster, sources }
    }

    /// Looks at one object: whether it is still wanted, and whether what it
    /// waits for is gone.
    ///
    /// # Errors
    /// Whatever the cluster answers.
    pub async fn reconcile(&self, item: &Item) -> Result<Action, ClusterError> {
        let source = &self.sources[item.source];
        let Some(object) = source.get(&item.key) else {
            return Ok(Action::AwaitChange);
        };
        let resource = source.resource();
        if object.is_deleting() {
            return self.finish(resource, &object).await;
        }
        let mut owners = Vec::with_capacity(object.owners.len());
        for owner in &object.owners {
            owners.push((owner.clone(), self.state_of(resource, &object, owner).await?));
        }
        let step = plan(&object, &owners, self.has_dependents(&object));
        self.apply(resource, object, step).await?;
        Ok(Action::AwaitChange)
    }

    /// Does what an object that is being deleted waits for.
    async fn finish(&self, resource: Kind, object: &Meta) -> Result<Action, ClusterError> {
        let has = |finalizer: &str| object.finalizers.iter().any(|f| &**f == finalizer);
        if has(ORPHAN) {
            let mut writes = Vec::new();
            for (kind, dependent) in self.dependents(object) {
                writes.push(self.forget(kind, dependent, vec![Arc::clone(&object.uid)]));
            }
            all(writes).await?;
            self.remove_finalizer(resource, object, ORPHAN).await?;
        } else if has(FOREGROUND) {
            let dependents = self.dependents(object);
            let mut blocked = false;
            let mut writes = Vec::new();
            for (kind, dependent) in dependents {
                let mut references = dependent.owners.iter();
                blocked |= references.any(|owner| owner.uid == object.uid && owner.blocks);
                if !dependent.is_deleting() {
                    writes.push(self.delete_before(kind, dependent, object));
                }
            }
            if !blocked {
                drop(writes);
                self.remove_finalizer(resource, object, FOREGROUND).await?;
                return Ok(Action::AwaitChange);
            }
            all(writes).await?;
        }
        Ok(Action::AwaitChange)
    }

    /// Deletes a dependent of `owner`, which waits for it; one that other
    /// owners still want only loses this one.
    async fn delete_before(
        &self,
        kind: Kind,
        dependent: Meta,
        waiting: &Meta,
    ) -> Result<(), ClusterError> {
        let mut owners = Vec::with_capacity(dependent.owners.len());
        for owner in &dependent.owners {
            let state = if owner.uid == waiting.uid {
                OwnerState::Waiting
            } else {
                self.state_of(kind, &dependent, owner).await?
            };
            owners.push((owner.clone(), state));
        }
        let step = plan(&dependent, &owners, self.has_dependents(&dependent));
        self.apply(kind, dependent, step).await
    }

    async fn apply(
        &self,
        kind: Kind,
        object: Meta,
        step: Option<Step>,
    ) -> Result<(), ClusterError> {
        match step {
            None => Ok(()),
            Some(Step::Forget(uids)) => self.forget(kind, object, uids).await,
            Some(Step::Delete(propagation)) => {
                // With the revision: nobody may have adopted it meanwhile.
                let options = DeleteOptions {
                    revision: Some(object.revision),
                    propagation: Some(propagation),
                    ..DeleteOptions::of_uid(&object.uid)
                };
                ignore_not_found(self.cluster.delete(kind, &object.key, options).await)
            }
        }
    }

    /// Removes references to owners.
    async fn forget(
        &self,
        kind: Kind,
        object: Meta,
        uids: Vec<Arc<str>>,
    ) -> Result<(), ClusterError> {
        let change = move |value: &mut Value| {
            let mut changed = false;
            for uid in &uids {
                changed |= remove_owner(value, uid);
            }
            changed
        };
        self.change(kind, &object, change).await
    }

    /// Whether an owner is there; asks the store before it says no.
    async fn state_of(
        &self,
        resource: Kind,
        dependent: &Meta,
        owner: &Owner,
    ) -> Result<OwnerState, ClusterError> {
        let Some(kind) = api::resource::by_api_version(&owner.api_version, &owner.kind) else {
            return Ok(OwnerState::Solid);
        };
        if kind.namespaced && !resource.namespaced {
            return Ok(OwnerState::Solid);
        }
        let namespace = if kind.namespaced { dependent.key.namespace.as_str() } else { "" };
        let key = ObjectKey::new(namespace, &owner.name);
        let shown = self.sources.iter().find(|source| std::ptr::eq(source.resource(), kind));
        let shown = shown.and_then(|source| source.get(&key)).filter(|m| m.uid == owner.uid);
        let found = match shown {
            Some(found) => Some(found),
            None => {
                let stored = self.cluster.get(kind, &key).await?;
                stored.filter(|object| meta::uid(object) == &*owner.uid).as_ref().map(Meta::of)
            }
        };
        Ok(match found {
            None => OwnerState::Gone,
            Some(found)
                if found.is_deleting() && found.finalizers.iter().any(|f| &**f == FOREGROUND) =>
            {
                OwnerState::Waiting
            }
            Some(_) => OwnerState::Solid,
        })
    }

    fn dependents(&self, owner: &Meta) -> Vec<(Kind, Meta)> {
        let mut dependents = Vec::new();
        for source in self.sources.iter() {
            let found = source.of_owner(&owner.uid).into_iter();
            dependents.extend(found.map(|meta| (source.resource(), meta)));
        }
        dependents
    }

    fn has_dependents(&self, owner: &Meta) -> bool {
        self.sources.iter().any(|source| source.has_owned(&owner.uid))
    }

    async fn remove_finalizer(
        &self,
        resource: Kind,
        object: &Meta,
        finalizer: &str,
    ) -> Result<(), ClusterError> {
        let change = |value: &mut Value| {
            let fields = meta::metadata_mut(value);
            let list = fields.get_mut("finalizers").and_then(Value::as_array_mut);
            let Some(list) = list else { return false };
            let before = list.len();
            list.retain(|other| other.as_str() != Some(finalizer));
            let changed = list.len() != before;
            if list.is_empty() {
                fields.remove("finalizers");
            }
            changed
        };
        self.change(resource, object, change).await
    }

    async fn change(
        &self,
        resource: Kind,
        object: &Meta,
        change: impl FnOnce(&mut Value) -> bool + Send,
    ) -> Result<(), ClusterError> {
        let identity = Identity { uid: &object.uid, revision: None };
        let key = &object.key;
        let written = modify(&*self.cluster, resource, key, identity, Part::Main, change).await;
        ignore_not_found(written.map(|_| ()))
    }
}

/// Waits for all, and gives the first error.
async fn all<F>(writes: Vec<F>) -> Result<(), ClusterError>
where
    F: Future<Output = Result<(), ClusterError>>,
{
    let results: Vec<Result<(), ClusterError>> =
        stream::iter(writes).buffer_unordered(CONCURRENCY).collect().await;
    results.into_iter().collect()
}

#[cfg(test)]
mod tests;
