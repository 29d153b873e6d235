//! Each node's Lease in `kube-node-lease`: where Kubernetes' users look for its
//! heartbeat. It lives in memory, and nothing here depends on it: liveness is
//! when messages arrive ([`super::Liveness`]).

use std::time::Duration;

use api::resource::{Resource, by_kind};
use apiserver::{Api, DeleteOptions, Identity, Reason, Status, Target, WriteOptions};
use serde_json::json;
use tracing::debug;

use crate::clock;

/// Least time between two renewals of a Lease: a node that reports a lot does not
/// write more of them.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(9);

const NAMESPACE: &str = "kube-node-lease";

fn leases() -> &'static Resource {
    by_kind("coordination.k8s.io", "Lease").expect("Lease is in the table of resources")
}

/// Renews a node's Lease, as that node and beside the caller; `heartbeat_s` is how
/// often it is heard from.
pub(super) fn renew(api: Api, node: String, heartbeat_s: u32) {
    tokio::spawn(async move {
        if let Err(status) = try_renew(&api, &node, heartbeat_s).await {
            debug!(node, error = status.message, "Lease not renewed");
        }
    });
}

async fn try_renew(api: &Api, node: &str, heartbeat_s: u32) -> Result<(), Status> {
    let who = Identity::node(node);
    // Without a field manager: who manages a heartbeat is not worth its bytes.
    let options = WriteOptions::default();
    let target = Target::object(leases(), NAMESPACE, node);
    let renewed = json!(api::time::rfc3339_micros(clock::timestamp()));
    match api.get_value(&who, &target) {
        Ok(mut lease) => {
            lease["spec"]["renewTime"] = renewed;
            lease["spec"]["leaseDurationSeconds"] = json!(heartbeat_s);
            api.update(&who, &target, lease, &options).await?;
        }
        Err(status) if status.reason == Reason::NotFound => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": node, "namespace": NAMESPACE},
                "spec": {
                    "holderIdentity": node,
                    "leaseDurationSeconds": heartbeat_s,
                    "renewTime": renewed,
                },
            });
            api.create(&who, leases(), NAMESPACE, lease, &options).await?;
        }
        Err(status) => return Err(status),
    }
    Ok(())
}

/// Removes the Lease of a node that was deleted.
pub(super) fn remove(api: Api, node: String) {
    tokio::spawn(async move {
        let who = Identity::master("pinnace:nodes");
        let target = Target::object(leases(), NAMESPACE, &node);
        match api.delete(&who, &target, &DeleteOptions::default()).await {
            Err(status) if status.reason != Reason::NotFound => {
                debug!(node, error = status.message, "Lease not removed");
            }
            _ => (),
        }
    });
}
