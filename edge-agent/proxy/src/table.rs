//! All that the proxy is told: one whole table, which replaces the one before.
//!
//! Plain data. Every list is sorted, so that equal states are equal bytes. What
//! is resolved already: a Service's endpoints are addresses, with what this
//! node knows of its own pods in place of what the master last said.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A range of addresses, such as `10.42.3.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

/// Text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses such as 10.42.0.0/16")]
pub struct NetError(String);

impl Net {
    /// The range of `prefix` bits around `address`; `None` where it has more bits
    /// than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            _ => return None,
        };
        Some(Self { address, prefix })
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses share.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self::new(address, self.prefix).is_some_and(|net| net.address == self.address)
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Net {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Self::new(address.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| NetError(text.to_owned()))
    }
}

/// All that the proxy is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Grows with every table of one agent. Not an order between agents: the last
    /// that speaks counts.
    pub generation: u64,
    /// What this node is.
    pub node: Node,
    /// Sorted by namespace and name.
    pub services: Vec<Service>,
    /// The pods on this node that have a network of their own, sorted by uid.
    pub pods: Vec<Pod>,
    /// The other nodes, sorted by name.
    pub peers: Vec<Peer>,
    /// Who may speak with the pods of this node, sorted by namespace and name.
    pub policies: Vec<Policy>,
    /// Ports of the node that lead to its pods, sorted by port.
    pub host_ports: Vec<HostPort>,
}

/// What this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it is: `topology.kubernetes.io/zone`; empty where not said.
    pub zone: String,
    /// The node's own addresses on its networks.
    pub addresses: Vec<IpAddr>,
    /// The ranges it gives to its pods, one a family. The first address of each is
    /// the node's own.
    pub pod_cidrs: Vec<Net>,
    /// The ranges of all pods.
    pub cluster_cidrs: Vec<Net>,
    /// The ranges of Services.
    pub service_cidrs: Vec<Net>,
    /// Where names are answered, one a family.
    pub dns_addresses: Vec<IpAddr>,
    /// What names of the cluster end in, such as `cluster.local`.
    pub cluster_domain: String,
    /// Name servers for all other names, in order.
    pub upstreams: Vec<IpAddr>,
    /// Where the other nodes reach this one: UDP for QUIC, TCP for TLS.
    pub tunnel_port: u16,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, one a family; none where it is headless.
    pub cluster_ips: Vec<IpAddr>,
    /// The name it is another name for (`ExternalName`).
    pub external_name: Option<String>,
    /// Its ports. Of a headless Service without ports: empty, with endpoints in
    /// [`Self::bare_endpoints`].
    pub ports: Vec<ServicePort>,
    /// Endpoints of a headless Service without ports.
    pub bare_endpoints: Vec<Endpoint>,
    /// For how many seconds a client stays with an endpoint; `None` where it does not.
    pub affinity_s: Option<u32>,
    /// Clients in the cluster reach only endpoints on their own node.
    pub internal_local: bool,
    /// Clients from outside reach only endpoints on the node they ask.
    pub external_local: bool,
    /// Addresses of nodes and of `externalIPs` that lead to it, on its own ports.
    pub external_ips: Vec<IpAddr>,
    /// Who gets in at [`Self::external_ips`]; `None` for everybody.
    pub sources: Option<Vec<Net>>,
    /// Where the node says over HTTP whether it has endpoints of the Service.
    pub health_port: Option<u16>,
    /// Names and ports are given for endpoints that are not ready, too.
    pub publish_not_ready: bool,
    /// Which endpoints are preferred.
    pub distribution: Distribution,
    /// Its endpoint is the master's API, reached through the node's link.
    pub is_api: bool,
}

/// Which endpoints are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// All alike.
    #[default]
    Any,
    /// Those of this node's zone, where there are any (`PreferSameZone`, `PreferClose`).
    Zone,
    /// Those of this node, then of its zone (`PreferSameNode`).
    Node,
}

/// A port of a Service, with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the Service's addresses.
    pub port: u16,
    /// The port on every node.
    pub node_port: Option<u16>,
    /// Where it leads, sorted by address and port.
    pub endpoints: Vec<Endpoint>,
}

/// Where a port of a Service leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address of a pod, or of anything else.
    pub address: IpAddr,
    /// Port there; 0 where the Service has no ports.
    pub port: u16,
    /// The node it is on; empty where unknown.
    pub node: String,
    /// Where that node is; empty where not said.
    pub zone: String,
    /// Its name in the Service's DNS, where it has one.
    pub hostname: String,
    /// New connections may go there.
    pub ready: bool,
    /// It answers, be it terminating.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
}

/// A pod on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its identity.
    pub uid: [u8; 16],
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, one a family.
    pub addresses: Vec<IpAddr>,
    /// Names of its ports, for policies that name one: (name, protocol, number).
    pub ports: Vec<(String, Protocol, u16)>,
    /// It lets nobody in but whom [`Policy::ingress`] of these policies names, as
    /// indices of [`Table::policies`]; `None` where nothing restricts it.
    pub ingress: Option<Vec<u32>>,
    /// As `ingress`, for where it may go.
    pub egress: Option<Vec<u32>>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, as in its certificate.
    pub name: String,
    /// The ranges of its pods.
    pub pod_cidrs: Vec<Net>,
    /// Its own addresses, the likeliest first.
    pub addresses: Vec<IpAddr>,
    /// Where it listens, see [`Node::tunnel_port`].
    pub port: u16,
    /// Where it is.
    pub zone: String,
}

/// A NetworkPolicy, with its peers resolved to addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who may come in to the pods it selects; one that fits is enough.
    pub ingress: Vec<Rule>,
    /// Where they may go.
    pub egress: Vec<Rule>,
}

/// One rule of a policy: anybody of `peers`, on any of `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whom; `None` for everybody.
    pub peers: Option<Vec<PolicyPeer>>,
    /// Where; `None` for every port.
    pub ports: Option<Vec<PolicyPort>>,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyPeer {
    /// Pods with these addresses, sorted.
    Pods(Vec<IpAddr>),
    /// Everybody in a range, but not in those.
    Block {
        /// The range.
        net: Net,
        /// Not these.
        except: Vec<Net>,
    },
}

/// Which ports a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which of them.
    pub ports: PortRange,
}

/// Ports by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortRange {
    /// Every one.
    Any,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The port with this name of the pod that is connected to. Numbers that the
    /// name has at pods elsewhere stand beside their addresses.
    Named(String, Vec<(IpAddr, u16)>),
}

/// A port of the node that leads to one of its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the node.
    pub port: u16,
    /// On which of the node's addresses; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// The pod's address.
    pub pod: IpAddr,
    /// The pod's port.
    pub pod_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_addresses_and_no_others() {
        let net: Net = "10.42.3.7/24".parse().unwrap();
        assert_eq!(net.to_string(), "10.42.3.0/24");
        for (address, expected) in
            [("10.42.3.255", true), ("10.42.4.0", false), ("::ffff:10.42.3.1", false)]
        {
            assert_eq!(net.contains(address.parse().unwrap()), expected, "{address}");
        }
        let all: Net = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()) && all.overlaps(&net));
        let six: Net = "fd42::/48".parse().unwrap();
        assert!(six.contains("fd42::1".parse().unwrap()) && !six.overlaps(&all));
        for bad in ["10.42.0.0", "10.42.0.0/33", "x/8", "fd42::/129", "10.42.0.0/-1", ""] {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
    }
}
