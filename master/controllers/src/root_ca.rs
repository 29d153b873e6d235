//! Publishes who vouches for the API server as the ConfigMap `kube-root-ca.crt` of
//! every namespace, and keeps it as it is: the token volume of every pod shows it.

use std::sync::Arc;

use api::meta::{ROOT_CA_KEY, ROOT_CA_NAME};
use api::{ObjectKey, meta};
use serde_json::json;

use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterError, kinds};
use crate::projection::{Meta, Namespace};
use crate::runner::{Action, Sender};

/// As upstream says it.
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
     using internal endpoints such as the internal service IP or kubernetes.default.svc. No other \
     usage is guaranteed across distributions of Kubernetes clusters.";

/// Asks for a look at new namespaces, and at those whose ConfigMap changed.
pub fn feed(namespaces: &Cache<Namespace>, maps: &Cache<Meta>, queue: &Sender<String>) {
    let sender = queue.clone();
    namespaces.on_change(move |before, after| {
        if let (None, Some(namespace)) = (before, after) {
            sender.add(namespace.meta.key.name.clone());
        }
    });
    let sender = queue.clone();
    maps.on_change(move |before, after| {
        if let Some(map) = after.or(before)
            && map.key.name == ROOT_CA_NAME
        {
            sender.add(map.key.namespace.clone());
        }
    });
}

/// Makes the ConfigMap of one namespace what it should be.
///
/// # Errors
/// Whatever the cluster answers.
pub async fn reconcile<C: Cluster>(
    cluster: &Arc<C>,
    namespaces: &Cache<Namespace>,
    root_ca: &str,
    namespace: &str,
) -> Result<Action, ClusterError> {
    let known = namespaces.get(&ObjectKey::new("", namespace));
    if known.is_none_or(|namespace| namespace.meta.is_deleting()) {
        return Ok(Action::AwaitChange);
    }
    let kind = kinds::config_maps();
    let data = json!({ROOT_CA_KEY: root_ca});
    let written = match cluster.get(kind, &ObjectKey::new(namespace, ROOT_CA_NAME)).await? {
        Some(map) if meta::is_terminating(&map) => return Ok(Action::AwaitChange),
        Some(map) if map["data"] == data && map["binaryData"].is_null() => {
            return Ok(Action::AwaitChange);
        }
        Some(mut map) => {
            map["data"] = data;
            if let Some(map) = map.as_object_mut() {
                map.remove("binaryData");
            }
            cluster.update(kind, map).await
        }
        None => {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA_NAME, "namespace": namespace,
                    "annotations": {"kubernetes.io/description": DESCRIPTION},
                },
                "data": data,
            });
            cluster.create(kind, namespace, map).await
        }
    };
    match written {
        Ok(_) | Err(ClusterError::AlreadyExists(_) | ClusterError::NamespaceTerminating(_)) => {
            Ok(Action::AwaitChange)
        }
        Err(error) => Err(error),
    }
}
