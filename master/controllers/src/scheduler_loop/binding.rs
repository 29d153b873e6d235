//! Binds the claims of a pod before the pod: to what the chosen node has, or to
//! what is made there.
//!
//! A choice is written into the volume (`claimRef`) or the claim (the selected
//! node), and the volumes' controller ends the binding; the pod waits for that
//! here. Whatever stops half-way is found by the next try, which keeps to it.

use std::sync::Arc;
use std::time::Duration;

use api::{Value, meta, storage};
use scheduler::{Choice, Claims};
use tokio::time::Instant;

use crate::cluster::{Cluster, ClusterError, Identity, Part, kinds, modify};
use crate::projection::{Claim, Holder, Pod, Term};
use crate::volumes::{Caches, matching, set_aside};

/// Longest wait for the volumes of one pod; then it is scheduled anew.
const WITHIN: Duration = Duration::from_secs(30);

/// What a pod's claims ask of its node.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// For the choice of the node.
    pub claims: Claims,
    /// Those to be bound, in the order of `claims.unbound`.
    pub open: Vec<Arc<Claim>>,
}

/// A pod was not bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    /// The cluster refused a write.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Its claims have no volumes.
    #[error("binding volumes: {0}")]
    Volumes(String),
}

/// What the claims of a pod ask of its node.
///
/// # Errors
/// Why no node can run it yet, in Kubernetes' words.
pub(super) fn wanted(caches: &Caches, pod: &Pod) -> Result<Wanted, String> {
    let namespace = &pod.meta.key.namespace;
    let claim = |name: &str| caches.claims.get(&api::ObjectKey::new(namespace, name));
    let used_elsewhere = |claim: &api::ObjectKey| {
        let users = caches.pods.find(&Term::Claim(claim.clone()));
        users.iter().any(|other| {
            other.meta.uid != pod.meta.uid && other.node.is_some() && !other.is_finished()
        })
    };
    let names = pod.claims.iter().map(AsRef::as_ref);
    let (claims, open) = matching::of_pod(names, &caches.stock(), claim, used_elsewhere)?;
    Ok(Wanted { claims, open })
}

/// Gives the open claims what `node` has for them, and waits until they are bound.
pub(super) async fn bind_volumes<C: Cluster>(
    cluster: &C,
    caches: &Caches,
    wanted: &Wanted,
    node: &str,
) -> Result<(), BindError> {
    if wanted.open.is_empty() {
        return Ok(());
    }
    let place = caches.nodes.get(&api::ObjectKey::new("", node));
    let choices = place.and_then(|node| wanted.claims.choose(&node.schedulable).ok());
    let Some(choices) = choices else {
        return Err(BindError::Volumes(format!("node \"{node}\" changed meanwhile")));
    };
    for (claim, choice) in wanted.open.iter().zip(choices) {
        match choice {
            Choice::Volume(volume) => take(cluster, caches, claim, &volume).await?,
            Choice::Provision => select(cluster, claim, node).await?,
        }
    }
    wait(caches, &wanted.open, node).await
}

/// Sets a volume aside for a claim.
async fn take<C: Cluster>(
    cluster: &C,
    caches: &Caches,
    claim: &Claim,
    volume: &str,
) -> Result<(), ClusterError> {
    let Some(volume) = caches.volumes.get(&api::ObjectKey::new("", volume)) else {
        return Ok(());
    };
    // By its user, or by an earlier try.
    if volume.claim.as_ref().is_some_and(|holder| holder.is(claim)) {
        return Ok(());
    }
    let holder = Holder { key: claim.meta.key.clone(), uid: Arc::clone(&claim.meta.uid) };
    let change = move |object: &mut Value| set_aside(object, &holder, true);
    let identity = Identity { uid: &volume.meta.uid, revision: Some(volume.meta.revision) };
    modify(cluster, kinds::volumes(), &volume.meta.key, identity, Part::Main, change).await?;
    Ok(())
}

/// Says on which node a claim's volume is to be made.
async fn select<C: Cluster>(cluster: &C, claim: &Claim, node: &str) -> Result<(), ClusterError> {
    if claim.selected_node.as_deref() == Some(node) {
        return Ok(());
    }
    let change = |object: &mut Value| {
        meta::set_annotation(object, storage::SELECTED_NODE, node);
        true
    };
    let identity = Identity { uid: &claim.meta.uid, revision: Some(claim.meta.revision) };
    modify(cluster, kinds::claims(), &claim.meta.key, identity, Part::Main, change).await?;
    Ok(())
}

/// Waits until every claim is bound.
async fn wait(caches: &Caches, open: &[Arc<Claim>], node: &str) -> Result<(), BindError> {
    let mut changes = caches.claims.changes();
    let deadline = Instant::now() + WITHIN;
    loop {
        changes.mark_unchanged();
        let mut missing = None;
        for claim in open {
            let name = claim.name();
            let now = caches.claims.get(&claim.meta.key);
            match now.filter(|now| now.meta.uid == claim.meta.uid) {
                Some(now) if now.is_bound && !now.volume.is_empty() => {}
                Some(_) => missing = Some(name),
                None => {
                    let why = format!("persistentvolumeclaim \"{name}\" not found");
                    return Err(BindError::Volumes(why));
                }
            }
        }
        let Some(missing) = missing else { return Ok(()) };
        // The sender lives as long as the cache.
        if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
            let why = format!(
                "persistentvolumeclaim \"{missing}\" got no volume on node \"{node}\" within {} s; \
                 kubectl describe pvc {missing} says why",
                WITHIN.as_secs()
            );
            return Err(BindError::Volumes(why));
        }
    }
}
