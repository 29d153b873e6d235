//! Makes the ServiceAccount `default` of every namespace, which pods that name
//! none run under.

use std::sync::Arc;

use api::ObjectKey;
use serde_json::json;

use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterError, kinds};
use crate::projection::{Meta, Namespace};
use crate::runner::{Action, Sender};

const NAME: &str = "default";

/// Asks for a look at new namespaces, and at those that lost the account.
pub fn feed(namespaces: &Cache<Namespace>, accounts: &Cache<Meta>, queue: &Sender<String>) {
    let sender = queue.clone();
    namespaces.on_change(move |before, after| {
        if let (None, Some(namespace)) = (before, after) {
            sender.add(namespace.meta.key.name.clone());
        }
    });
    let sender = queue.clone();
    accounts.on_change(move |before, after| {
        if let (Some(account), None) = (before, after)
            && account.key.name == NAME
        {
            sender.add(account.key.namespace.clone());
        }
    });
}

/// Makes the account of one namespace where it is missing.
///
/// # Errors
/// Whatever the cluster answers.
pub async fn reconcile<C: Cluster>(
    cluster: &Arc<C>,
    namespaces: &Cache<Namespace>,
    accounts: &Cache<Meta>,
    namespace: &str,
) -> Result<Action, ClusterError> {
    let known = namespaces.get(&ObjectKey::new("", namespace));
    let active = known.is_some_and(|namespace| !namespace.meta.is_deleting());
    if !active || accounts.get(&ObjectKey::new(namespace, NAME)).is_some() {
        return Ok(Action::AwaitChange);
    }
    let account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": NAME, "namespace": namespace},
    });
    match cluster.create(kinds::service_accounts(), namespace, account).await {
        Ok(_) | Err(ClusterError::AlreadyExists(_) | ClusterError::NamespaceTerminating(_)) => {
            Ok(Action::AwaitChange)
        }
        Err(error) => Err(error),
    }
}
