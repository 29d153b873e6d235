//! What every node is told of the cluster's network: Services and where they
//! lead, the other nodes, and who may speak with whom. The same for all nodes,
//! so the master makes these items once ([`crate::set::BodyV1::is_common`]).
//!
//! What a node knows better it puts in the place of what it is told here: its
//! own pods, by the selectors that come along. So it is right when cut off.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::pod::ProtocolV1;
use crate::{Ext, Uid};

/// The ranges and names of the cluster, as one node has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterV1 {
    /// The ranges of all pods, such as `10.42.0.0/16`, one a family. Empty where the
    /// cluster has no Services: then a node has no data plane.
    pub pod_cidrs: Vec<String>,
    /// The ranges of Services, one a family.
    pub service_cidrs: Vec<String>,
    /// Where names are answered, one a family.
    pub dns: Vec<IpAddr>,
    /// What the cluster's names end in.
    pub domain: String,
    /// Further ranges that this node gives to its pods, beside
    /// [`crate::set::NodeConfigV1::pod_cidr`]: of IPv6.
    pub more_pod_cidrs: Vec<String>,
    /// Where this node is: `topology.kubernetes.io/zone`.
    pub zone: String,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceV1 {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, one a family; none where it is headless or another's name.
    pub cluster_ips: Vec<IpAddr>,
    /// The name it is another name for; empty for none.
    pub external_name: String,
    /// Addresses outside the cluster's ranges that lead to it: of nodes, or routed there.
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePortV1>,
    /// Labels of its pods; empty where its endpoints are made by hand.
    pub selector: Vec<(String, String)>,
    /// For how many seconds a client stays with an endpoint; 0 for not.
    pub affinity_s: u32,
    /// Clients in the cluster reach only endpoints on their own node.
    pub internal_local: bool,
    /// Clients from outside reach only endpoints on the node they ask.
    pub external_local: bool,
    /// Where a node says whether it has endpoints; 0 for nowhere.
    pub health_port: u16,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// Which endpoints are preferred.
    pub distribution: DistributionV1,
    /// It is the API of the master, reached through the node's link.
    pub is_api: bool,
    /// Room for later fields: [`SERVICE_SOURCES`].
    pub ext: Ext,
}

/// In [`ServiceV1::ext`]: the ranges of the clients that a load balancer lets in, as
/// text, separated by commas. Not there where it lets in everybody.
pub const SERVICE_SOURCES: u16 = 1;

impl ServiceV1 {
    /// The ranges of the clients that its load balancer lets in; `None` for everybody.
    #[must_use]
    pub fn sources(&self) -> Option<Vec<String>> {
        let (_, bytes) = self.ext.iter().find(|(tag, _)| *tag == SERVICE_SOURCES)?;
        // Bytes that are no text name no range, and nobody is let in.
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        Some(text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
    }
}

/// Which endpoints are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DistributionV1 {
    /// All alike.
    #[default]
    Any,
    /// Those of the client's zone.
    Zone,
    /// Those of the client's node, then of its zone.
    Node,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortV1 {
    /// Its name; empty for none.
    pub name: String,
    /// Transport.
    pub protocol: ProtocolV1,
    /// The port on the Service's addresses.
    pub port: u16,
    /// The port of the pods.
    pub target: TargetV1,
    /// The port on every node; 0 for none.
    pub node_port: u16,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetV1 {
    /// Its number.
    Number(u16),
    /// The name that its container gives.
    Name(String),
}

/// Where a Service leads: one slice of its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsV1 {
    /// Namespace of both.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// Ports, by the names that the Service gives them.
    pub ports: Vec<EndpointPortV1>,
    /// The endpoints.
    pub endpoints: Vec<EndpointV1>,
    /// Room for later fields.
    pub ext: Ext,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPortV1 {
    /// The name of the Service's port.
    pub name: String,
    /// Transport.
    pub protocol: ProtocolV1,
    /// Number; 0 for every one.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointV1 {
    /// Its addresses; they are one and the same.
    pub addresses: Vec<IpAddr>,
    /// Its name below the Service's; empty for none.
    pub hostname: String,
    /// The node it is on; empty where unknown.
    pub node: String,
    /// Where that is.
    pub zone: String,
    /// The pod it is; zero where it is none.
    pub pod: Uid,
    /// New connections may go there.
    pub ready: bool,
    /// It answers, be it terminating.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
}

/// A node, as the others see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerV1 {
    /// Its name, as in its certificate.
    pub node: String,
    /// The ranges of its pods.
    pub pod_cidrs: Vec<String>,
    /// Its own addresses, the likeliest first.
    pub addresses: Vec<IpAddr>,
    /// Where it listens for the others; 0 where it does not.
    pub port: u16,
    /// Where it is.
    pub zone: String,
    /// Room for later fields.
    pub ext: Ext,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyV1 {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods of its namespace that it restricts.
    pub pods: SelectorV1,
    /// Who may come in; `None` where it restricts nobody.
    pub ingress: Option<Vec<PolicyRuleV1>>,
    /// Where they may go.
    pub egress: Option<Vec<PolicyRuleV1>>,
    /// Room for later fields.
    pub ext: Ext,
}

/// Which pods, by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectorV1 {
    /// All of these hold.
    pub requirements: Vec<RequirementV1>,
}

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequirementV1 {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: OperatorV1,
    /// With what.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorV1 {
    /// It is one of the values.
    In,
    /// It is none of them, or not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl SelectorV1 {
    /// Whether labels fit.
    #[must_use]
    pub fn matches(&self, labels: &[(String, String)]) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.iter().find(|(key, _)| *key == requirement.key).map(|(_, v)| v);
            let is_in = value.is_some_and(|value| requirement.values.contains(value));
            match requirement.operator {
                OperatorV1::In => is_in,
                OperatorV1::NotIn => !is_in,
                OperatorV1::Exists => value.is_some(),
                OperatorV1::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// One rule: anybody of `peers`, on any of `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRuleV1 {
    /// Whom; `None` for everybody.
    pub peers: Option<Vec<PolicyPeerV1>>,
    /// Where; `None` for every port.
    pub ports: Option<Vec<PolicyPortV1>>,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyPeerV1 {
    /// Pods.
    Pods {
        /// Of these namespaces, sorted.
        namespaces: Vec<String>,
        /// With these labels.
        pods: SelectorV1,
        /// Their addresses as the master knows them, sorted. What the node says of its
        /// own pods counts more.
        addresses: Vec<IpAddr>,
    },
    /// Everybody in a range, but not in those.
    Block {
        /// The range.
        cidr: String,
        /// Not these.
        except: Vec<String>,
    },
}

/// Which ports a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPortV1 {
    /// Transport.
    pub protocol: ProtocolV1,
    /// Which of them.
    pub ports: PortsV1,
}

/// Ports by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortsV1 {
    /// Every one.
    Any,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The port with this name, of the pod that is connected to. What the name means
    /// at pods that the rule's peers select stands beside their addresses.
    Named(String, Vec<(IpAddr, u16)>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_asks_all_of_its_requirements() {
        let labels = [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "1".to_owned())];
        let one = |key: &str, operator, values: &[&str]| RequirementV1 {
            key: key.into(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let table = [
            (vec![], true),
            (vec![one("app", OperatorV1::In, &["web", "db"])], true),
            (vec![one("app", OperatorV1::In, &["db"])], false),
            (vec![one("app", OperatorV1::NotIn, &["db"])], true),
            (vec![one("none", OperatorV1::NotIn, &["db"])], true),
            (vec![one("none", OperatorV1::In, &[""])], false),
            (vec![one("tier", OperatorV1::Exists, &[])], true),
            (vec![one("tier", OperatorV1::DoesNotExist, &[])], false),
            (vec![one("app", OperatorV1::Exists, &[]), one("x", OperatorV1::Exists, &[])], false),
        ];
        for (requirements, expected) in table {
            let selector = SelectorV1 { requirements };
            assert_eq!(selector.matches(&labels), expected, "{selector:?}");
        }
    }
}
