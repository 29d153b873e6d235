//! Empties namespaces that are being deleted, then lets them go.
//!
//! Pods first, since they may still use what else is there; then everything
//! else of the table of resources, whatever its kind. What remains is told in
//! `status.conditions`.

use std::sync::Arc;
use std::time::Duration;

use api::resource::{Storage, Verb};
use api::time::rfc3339;
use api::{ObjectKey, Value, meta};
use futures::stream::{self, StreamExt as _};
use serde_json::json;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Kind, Part, Propagation, ignore_not_found,
    kinds, modify,
};
use crate::projection::{Namespace, Pod};
use crate::runner::{Action, Sender};

/// The finalizer of namespaces that this controller removes.
const FINALIZER: &str = "kubernetes";
/// Time between two looks at a namespace that is not empty yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Deletes in flight.
const CONCURRENCY: usize = 32;

/// Asks for a look at namespaces that are being deleted.
pub fn feed(namespaces: &Cache<Namespace>, pods: &Cache<Pod>, queue: &Sender<String>) {
    let sender = queue.clone();
    namespaces.on_change(move |_, after| {
        if let Some(namespace) = after
            && namespace.meta.is_deleting()
        {
            sender.add(namespace.meta.key.name.clone());
        }
    });
    let (sender, namespaces) = (queue.clone(), namespaces.clone());
    pods.on_change(move |before, after| {
        if let (Some(pod), None) = (before, after) {
            let key = ObjectKey::new("", &pod.meta.key.namespace);
            if namespaces.get(&key).is_some_and(|namespace| namespace.meta.is_deleting()) {
                sender.add(key.name);
            }
        }
    });
}

/// Takes one namespace a step towards being gone.
///
/// # Errors
/// Whatever the cluster answers; what was deleted stays so.
pub async fn reconcile<C: Cluster>(
    cluster: &Arc<C>,
    clock: Clock,
    namespace: &str,
) -> Result<Action, ClusterError> {
    let key = ObjectKey::new("", namespace);
    let Some(mut object) = cluster.get(kinds::namespaces(), &key).await? else {
        return Ok(Action::AwaitChange);
    };
    if !meta::is_terminating(&object) || !has_finalizer(&object) {
        return Ok(Action::AwaitChange);
    }
    let mut left: Vec<(Kind, usize)> = Vec::new();
    for resource in in_order() {
        let n_left = empty(&**cluster, resource, namespace).await?;
        if n_left > 0 {
            left.push((resource, n_left));
        }
        // Pods first: what they use stays until they have stopped.
        if resource.kind == "Pod" && n_left > 0 {
            break;
        }
    }
    if !left.is_empty() {
        tell(&**cluster, clock, &object, &left).await?;
        return Ok(Action::RequeueAfter(LOOK_AGAIN));
    }
    if let Some(finalizers) = object.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
        finalizers.retain(|finalizer| finalizer.as_str() != Some(FINALIZER));
    }
    ignore_not_found(cluster.finalize_namespace(object).await)?;
    Ok(Action::AwaitChange)
}

fn has_finalizer(namespace: &Value) -> bool {
    let finalizers = namespace.pointer("/spec/finalizers").and_then(Value::as_array);
    finalizers.is_some_and(|list| list.iter().any(|f| f.as_str() == Some(FINALIZER)))
}

/// Everything that lives in namespaces: pods first, events last, since deleting
/// the others makes some.
fn in_order() -> Vec<Kind> {
    let mut all: Vec<Kind> = api::resource::all()
        .iter()
        .filter(|resource| {
            resource.namespaced
                && resource.storage != Storage::Virtual
                && resource.allows(Verb::Delete)
        })
        .collect();
    all.sort_by_key(|resource| match resource.kind {
        "Pod" => 0,
        "Event" => 2,
        _ => 1,
    });
    all
}

/// Deletes every object of a resource in a namespace; returns how many are left.
async fn empty<C: Cluster>(
    cluster: &C,
    resource: Kind,
    namespace: &str,
) -> Result<usize, ClusterError> {
    let mut found: Vec<(ObjectKey, String, bool)> = Vec::new();
    let mut note = |object: Value| {
        let uid = meta::uid(&object).to_owned();
        found.push((meta::object_key(&object), uid, meta::is_terminating(&object)));
    };
    cluster.list(resource, Some(namespace), &mut note).await?;
    let n_found = found.len();
    let mut deletes = Vec::new();
    for (key, uid, terminating) in found {
        if !terminating {
            deletes.push(delete(cluster, resource, key, uid));
        }
    }
    let n_terminating = n_found - deletes.len();
    let results: Vec<Result<(), ClusterError>> =
        stream::iter(deletes).buffer_unordered(CONCURRENCY).collect().await;
    let n_deleted = results.len();
    results.into_iter().collect::<Result<(), ClusterError>>()?;
    if n_deleted == 0 {
        return Ok(n_terminating);
    }
    let mut n_left = 0;
    cluster.list(resource, Some(namespace), &mut |_| n_left += 1).await?;
    Ok(n_left)
}

async fn delete<C: Cluster>(
    cluster: &C,
    resource: Kind,
    key: ObjectKey,
    uid: String,
) -> Result<(), ClusterError> {
    let propagation = Some(Propagation::Background);
    let options = DeleteOptions { propagation, ..DeleteOptions::of_uid(&uid) };
    match cluster.delete(resource, &key, options).await {
        // Another object of that name by now: the next look finds it.
        Err(ClusterError::Conflict(_)) => Ok(()),
        other => ignore_not_found(other),
    }
}

/// Says in the namespace's status what keeps it from going.
async fn tell<C: Cluster>(
    cluster: &C,
    clock: Clock,
    namespace: &Value,
    left: &[(Kind, usize)],
) -> Result<(), ClusterError> {
    let left: Vec<String> = left
        .iter()
        .map(|(resource, n)| format!("{}. has {n} resource instances", resource.qualified_plural()))
        .collect();
    let message = format!("Some resources are remaining: {}", left.join(", "));
    let now = rfc3339(clock.now());
    let change = |object: &mut Value| {
        let conditions = &mut object["status"]["conditions"];
        if !conditions.is_array() {
            *conditions = json!([]);
        }
        let list = conditions.as_array_mut().expect("just made one");
        let kind = "NamespaceContentRemaining";
        let known = list.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
        match known {
            Some(known) if known.get("message") == Some(&message.as_str().into()) => return false,
            Some(known) => known["message"] = message.as_str().into(),
            None => list.push(json!({
                "type": kind,
                "status": "True",
                "reason": "SomeResourcesRemain",
                "message": message,
                "lastTransitionTime": now,
            })),
        }
        true
    };
    let identity = Identity { uid: meta::uid(namespace), revision: None };
    let key = meta::object_key(namespace);
    let kind = kinds::namespaces();
    match modify(cluster, kind, &key, identity, Part::Status, change).await {
        Ok(_) | Err(ClusterError::Conflict(_)) => Ok(()),
        Err(error) => ignore_not_found(Err(error)),
    }
}

#[cfg(test)]
mod tests;
