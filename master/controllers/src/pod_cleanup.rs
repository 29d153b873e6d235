//! Deletes pods bound to nodes that no longer exist.
//!
//! A node that is only silent keeps its pods: those wait for it, or for an
//! operator. A node whose object was deleted never says that a pod has
//! stopped, so its pods go, after a while in which it may be made again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::ObjectKey;
use tokio::time::Instant;
use tracing::info;

use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterError, DeleteOptions, ignore_not_found, kinds};
use crate::projection::{Node, Pod, Term, intern};
use crate::runner::{Action, Sender};

/// How long a node must be gone; Kubernetes' time.
const QUARANTINE: Duration = Duration::from_secs(40);

/// The controller, by name of the node.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    missing: Mutex<HashMap<String, Instant>>,
}

/// Asks for a look at nodes that pods name and nobody knows.
pub fn feed(nodes: &Cache<Node>, pods: &Cache<Pod>, queue: &Sender<String>) {
    let sender = queue.clone();
    nodes.on_change(move |before, after| {
        if let (Some(node), None) = (before, after) {
            sender.add(node.meta.key.name.clone());
        }
    });
    let (sender, nodes) = (queue.clone(), nodes.clone());
    pods.on_change(move |_, after| {
        if let Some(name) = after.and_then(|pod| pod.node.as_ref())
            && nodes.get(&ObjectKey::new("", name)).is_none()
        {
            sender.add(name.as_ref().to_owned());
        }
    });
}

impl<C: Cluster> Controller<C> {
    /// A controller over these projections.
    #[must_use]
    pub fn new(cluster: Arc<C>, nodes: Cache<Node>, pods: Cache<Pod>) -> Self {
        Self { cluster, nodes, pods, missing: Mutex::default() }
    }

    /// Deletes the pods of a node that has been gone for long enough.
    ///
    /// # Errors
    /// Whatever the cluster answers.
    pub async fn reconcile(&self, name: &str) -> Result<Action, ClusterError> {
        let key = ObjectKey::new("", name);
        let pods = self.pods.find(&Term::Node(intern(name)));
        if pods.is_empty() || self.nodes.get(&key).is_some() {
            self.missing().remove(name);
            return Ok(Action::AwaitChange);
        }
        let since = *self.missing().entry(name.to_owned()).or_insert_with(Instant::now);
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        // Not because the projection of nodes is behind.
        if self.cluster.get(kinds::nodes(), &key).await?.is_some() {
            self.missing().remove(name);
            return Ok(Action::AwaitChange);
        }
        for pod in pods {
            info!(pod = %pod.key(), node = name, "deleting a pod whose node no longer exists");
            let options =
                DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::of_uid(&pod.meta.uid) };
            match self.cluster.delete(kinds::pods(), pod.key(), options).await {
                // Another pod of that name by now.
                Err(ClusterError::Conflict(_)) => {}
                other => ignore_not_found(other)?,
            }
        }
        Ok(Action::AwaitChange)
    }

    fn missing(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
