//! The view of a Node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Condition, condition};
use crate::meta::ObjectMeta;
use crate::quantity::Quantity;

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What operators set.
    pub spec: NodeSpec,
    /// What the node reports.
    pub status: NodeStatus,
}

impl NodeView {
    /// Whether its `Ready` condition is true.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(Condition::is_true)
    }
}

/// What operators set on a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpec {
    /// Addresses its pods get.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// Whether it was cordoned.
    pub unschedulable: bool,
    /// What keeps pods away.
    pub taints: Vec<Taint>,
}

/// Keeps pods away that do not tolerate it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Taint {
    /// A label key.
    pub key: String,
    /// A label value.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// When a `NoExecute` taint was added, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// What a node reports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// What it has.
    pub capacity: BTreeMap<String, Quantity>,
    /// What pods may ask for.
    pub allocatable: BTreeMap<String, Quantity>,
    /// `Ready` and others.
    pub conditions: Vec<Condition>,
    /// Where it is reached.
    pub addresses: Vec<NodeAddress>,
    /// What it is.
    pub node_info: NodeInfo,
}

/// An address of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The address itself.
    pub address: String,
}

/// What a node is; written whole, since clients require every field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeInfo {
    /// `/etc/machine-id`.
    #[serde(rename = "machineID")]
    pub machine_id: String,
    /// The board's serial number, where there is one.
    #[serde(rename = "systemUUID")]
    pub system_uuid: String,
    /// Changes with each boot.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// The agent's runtimes and versions.
    pub container_runtime_version: String,
    /// The agent's version.
    pub kubelet_version: String,
    /// Kept for old clients.
    pub kube_proxy_version: String,
    /// `linux`.
    pub operating_system: String,
    /// GOARCH: `arm64`, `arm`, `amd64`.
    pub architecture: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view;

    #[test]
    fn a_node_is_read() {
        let node: NodeView = view::read(&json!({
            "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.42.1.0/24", "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "allocatable": {"cpu": "3900m", "memory": "1Gi", "pods": 110},
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"architecture": "arm64"},
            },
        }))
        .unwrap();
        assert!(node.is_ready());
        assert_eq!(node.spec.pod_cidr, "10.42.1.0/24");
        assert_eq!(node.status.allocatable["cpu"].millis(), 3900);
        assert_eq!(node.status.allocatable["pods"].units(), 110);
        assert_eq!(
            serde_json::to_value(NodeInfo::default()).unwrap().as_object().unwrap().len(),
            10
        );
    }
}
