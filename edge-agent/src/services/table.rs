//! What the proxy is told: the cluster's network as the master last told it, with
//! what this node knows better of its own pods. Pure.
//!
//! Of a Service with a selector, endpoints on this node are made here, from the
//! pods that run here and how they are now; those on other nodes are the
//! master's word. So the node is right about itself when it is cut off, and
//! does not wait for the master to hear of a probe.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proxy::table::{
    Distribution, Endpoint, HostPort, Net, Node, Peer, Pod, Policy, PolicyPeer, PolicyPort,
    PortRange, Protocol, Rule, Service, ServicePort, Table,
};
use wire::network::{
    DistributionV1, EndpointV1, EndpointsV1, PolicyPeerV1, PolicyPortV1, PolicyRuleV1, PolicyV1,
    PortsV1, ServicePortV1, ServiceV1, TargetV1,
};
use wire::pod::{PodV1, ProtocolV1};
use wire::set::{BodyV1, NodeConfigV1, SnapshotV1};

/// A pod of this node, as it is now.
#[derive(Clone, Debug)]
pub struct OwnPod {
    /// What was asked for.
    pub pod: Arc<PodV1>,
    /// Its addresses; none before it has one.
    pub addresses: Vec<IpAddr>,
    /// All of its containers are ready.
    pub is_ready: bool,
    /// It has ended, or is cleaned up already.
    pub is_over: bool,
}

/// What the node knows of itself.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The name servers it uses itself.
    pub upstreams: Vec<IpAddr>,
    /// Where it listens for other nodes.
    pub tunnel_port: u16,
}

/// The table for a node with this set and these pods; `None` while the set says
/// nothing of a network. Its generation is left at 0.
#[must_use]
pub fn table(set: &SnapshotV1, own: &Own, pods: &[OwnPod]) -> Option<Table> {
    let config = crate::set::node_config(set)?;
    let node = node(config, own)?;
    let pods: Vec<&OwnPod> = pods.iter().filter(|pod| !pod.is_over).collect();
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointsV1>> = BTreeMap::new();
    let mut services: Vec<&ServiceV1> = Vec::new();
    let mut policies: Vec<&PolicyV1> = Vec::new();
    let mut peers: Vec<Peer> = Vec::new();
    for item in &set.items {
        match &item.body {
            BodyV1::Service(service) => services.push(service),
            BodyV1::Endpoints(slice) => {
                slices.entry((&slice.namespace, &slice.service)).or_default().push(slice);
            }
            BodyV1::Policy(policy) => policies.push(policy),
            BodyV1::Peer(peer) if peer.node != own.name => peers.push(Peer {
                name: peer.node.clone(),
                pod_cidrs: nets(&peer.pod_cidrs),
                addresses: peer.addresses.clone(),
                port: peer.port,
                zone: peer.zone.clone(),
            }),
            _ => {}
        }
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let services = services
        .into_iter()
        .map(|one| {
            let slices = slices.get(&(one.namespace.as_str(), one.name.as_str()));
            service(one, slices.map_or(&[][..], Vec::as_slice), &node, &pods)
        })
        .collect();
    // The host's own pods have no network of their own to guard.
    let mut own_pods: Vec<&OwnPod> =
        pods.iter().copied().filter(|one| !one.pod.namespaces.host_network).collect();
    own_pods.sort_by_key(|one| one.pod.uid);
    let selects = |policy: &&PolicyV1| own_pods.iter().any(|one| is_selected(policy, &one.pod));
    let policies: Vec<&PolicyV1> = policies.into_iter().filter(selects).collect();
    let mut host_ports: Vec<HostPort> = own_pods.iter().flat_map(|one| host_ports(one)).collect();
    host_ports.sort_by_key(|one| (one.port, one.protocol, one.host_ip));
    Some(Table {
        generation: 0,
        services,
        pods: own_pods.iter().map(|one| pod(one, &policies)).collect(),
        peers,
        policies: policies.iter().map(|one| policy(one, &node, &own_pods)).collect(),
        host_ports,
        node,
    })
}

fn node(config: &NodeConfigV1, own: &Own) -> Option<Node> {
    let cluster = &config.cluster;
    let service_cidrs = nets(&cluster.service_cidrs);
    if service_cidrs.is_empty() {
        return None;
    }
    let mut pod_cidrs: Vec<Net> = config.pod_cidr.parse().into_iter().collect();
    pod_cidrs.extend(nets(&cluster.more_pod_cidrs));
    Some(Node {
        name: own.name.clone(),
        zone: cluster.zone.clone(),
        addresses: own.addresses.clone(),
        pod_cidrs,
        cluster_cidrs: nets(&cluster.pod_cidrs),
        service_cidrs,
        dns_addresses: cluster.dns.clone(),
        cluster_domain: cluster.domain.clone(),
        upstreams: own.upstreams.clone(),
        tunnel_port: own.tunnel_port,
    })
}

fn service(one: &ServiceV1, slices: &[&EndpointsV1], node: &Node, pods: &[&OwnPod]) -> Service {
    let local: Vec<&OwnPod> = if one.selector.is_empty() {
        Vec::new()
    } else {
        let fits = |pod: &&&OwnPod| {
            pod.pod.namespace == one.namespace && has_all(&pod.pod.labels, &one.selector)
        };
        pods.iter().filter(fits).copied().collect()
    };
    // The master's word on a pod of this node counts only for what others decide.
    let is_ours = |endpoint: &EndpointV1| {
        !one.selector.is_empty() && endpoint.node == node.name && endpoint.pod != [0; 16]
    };
    let told = |pod: &OwnPod| {
        let all = slices.iter().flat_map(|slice| &slice.endpoints);
        all.filter(|endpoint| endpoint.pod == pod.pod.uid).any(|endpoint| endpoint.ready)
    };
    let local: Vec<(&OwnPod, EndpointV1)> =
        local.into_iter().map(|pod| (pod, own_endpoint(one, pod, node, told(pod)))).collect();
    let remote = |wanted: Option<&ServicePortV1>| -> Vec<Endpoint> {
        let mut found = Vec::new();
        for slice in slices {
            let port = match wanted {
                Some(wanted) => slice
                    .ports
                    .iter()
                    .find(|port| port.name == wanted.name && port.protocol == wanted.protocol),
                None => None,
            };
            let number = match (wanted, port) {
                (Some(_), None) => continue,
                (_, port) => port.map_or(0, |port| port.port),
            };
            for endpoint in slice.endpoints.iter().filter(|endpoint| !is_ours(endpoint)) {
                found.extend(endpoints(endpoint, number, one.publish_not_ready));
            }
        }
        found
    };
    let sorted = |mut all: Vec<Endpoint>| {
        all.sort_unstable();
        all.dedup_by(|a, b| (a.address, a.port) == (b.address, b.port));
        all
    };
    let ports = one.ports.iter().filter_map(|port| {
        let protocol = protocol(port.protocol)?;
        let mut all = remote(Some(port));
        for (pod, endpoint) in &local {
            if let Some(number) = target(&pod.pod, port) {
                all.extend(endpoints(endpoint, number, one.publish_not_ready));
            }
        }
        Some(ServicePort {
            name: port.name.clone(),
            protocol,
            port: port.port,
            node_port: Some(port.node_port).filter(|port| *port != 0),
            endpoints: sorted(all),
        })
    });
    let ports: Vec<ServicePort> = ports.collect();
    let bare_endpoints = if ports.is_empty() {
        let own = local.iter().flat_map(|(_, one_of)| endpoints(one_of, 0, one.publish_not_ready));
        let own: Vec<Endpoint> = own.collect();
        sorted(remote(None).into_iter().chain(own).collect())
    } else {
        Vec::new()
    };
    Service {
        namespace: one.namespace.clone(),
        name: one.name.clone(),
        cluster_ips: one.cluster_ips.clone(),
        external_name: Some(one.external_name.clone()).filter(|name| !name.is_empty()),
        ports,
        bare_endpoints,
        affinity_s: Some(one.affinity_s).filter(|seconds| *seconds != 0),
        internal_local: one.internal_local,
        external_local: one.external_local,
        external_ips: one.external_ips.clone(),
        // A range that does not read lets nobody in.
        sources: one.sources().map(|ranges| nets(&ranges)),
        health_port: Some(one.health_port).filter(|port| *port != 0),
        publish_not_ready: one.publish_not_ready,
        distribution: match one.distribution {
            DistributionV1::Any => Distribution::Any,
            DistributionV1::Zone => Distribution::Zone,
            DistributionV1::Node => Distribution::Node,
        },
        is_api: one.is_api,
    }
}

/// A pod of this node as an endpoint, by the rules of the endpoint slice controller.
fn own_endpoint(one: &ServiceV1, own: &OwnPod, node: &Node, is_told_ready: bool) -> EndpointV1 {
    let is_ready = own.is_ready && (!own.pod.is_gated || is_told_ready);
    let terminating = own.pod.deletion_grace_s.is_some();
    let mut labels = own.pod.fqdn.split('.');
    let (hostname, subdomain) = (labels.next(), labels.next());
    EndpointV1 {
        addresses: own.addresses.clone(),
        hostname: hostname.filter(|_| subdomain == Some(&one.name)).unwrap_or_default().to_owned(),
        node: node.name.clone(),
        zone: node.zone.clone(),
        pod: own.pod.uid,
        ready: is_ready && !terminating,
        serving: is_ready,
        terminating,
    }
}

fn endpoints(
    endpoint: &EndpointV1,
    port: u16,
    publish_not_ready: bool,
) -> impl Iterator<Item = Endpoint> {
    endpoint.addresses.iter().map(move |address| Endpoint {
        address: *address,
        port,
        node: endpoint.node.clone(),
        zone: endpoint.zone.clone(),
        hostname: endpoint.hostname.clone(),
        ready: endpoint.ready || publish_not_ready,
        serving: endpoint.serving || publish_not_ready,
        terminating: endpoint.terminating,
    })
}

/// The number of a Service's port at a pod.
fn target(pod: &PodV1, port: &ServicePortV1) -> Option<u16> {
    match &port.target {
        TargetV1::Number(number) => Some(*number),
        TargetV1::Name(name) => {
            let sidecars = pod.init_containers.iter().filter(|one| one.restart_policy.is_some());
            let mut ports = pod.containers.iter().chain(sidecars).flat_map(|one| &one.ports);
            ports.find(|one| one.name == *name && one.protocol == port.protocol).map(|one| one.port)
        }
    }
}

fn pod(own: &OwnPod, policies: &[&PolicyV1]) -> Pod {
    let ports = own.pod.containers.iter().flat_map(|container| &container.ports);
    let ports = ports
        .filter(|port| !port.name.is_empty())
        .filter_map(|port| Some((port.name.clone(), protocol(port.protocol)?, port.port)));
    let guarded_by = |restricts: fn(&PolicyV1) -> bool| {
        let by: Vec<u32> = (0_u32..)
            .zip(policies)
            .filter(|(_, policy)| restricts(policy) && is_selected(policy, &own.pod))
            .map(|(at, _)| at)
            .collect();
        (!by.is_empty()).then_some(by)
    };
    Pod {
        uid: own.pod.uid,
        namespace: own.pod.namespace.clone(),
        name: own.pod.name.clone(),
        addresses: own.addresses.clone(),
        ports: ports.collect(),
        ingress: guarded_by(|policy| policy.ingress.is_some()),
        egress: guarded_by(|policy| policy.egress.is_some()),
    }
}

fn host_ports(own: &OwnPod) -> impl Iterator<Item = HostPort> {
    let pod = own.addresses.first().copied();
    let ports = own.pod.containers.iter().flat_map(|container| &container.ports);
    ports.filter(|port| port.host_port != 0).filter_map(move |port| {
        Some(HostPort {
            protocol: protocol(port.protocol)?,
            port: port.host_port,
            host_ip: port.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
            pod: pod?,
            pod_port: port.port,
        })
    })
}

fn is_selected(policy: &PolicyV1, pod: &PodV1) -> bool {
    policy.namespace == pod.namespace && policy.pods.matches(&pod.labels)
}

fn policy(one: &PolicyV1, node: &Node, pods: &[&OwnPod]) -> Policy {
    let rules = |rules: &Option<Vec<PolicyRuleV1>>| {
        rules.iter().flatten().map(|one| rule(one, node, pods)).collect()
    };
    Policy {
        namespace: one.namespace.clone(),
        name: one.name.clone(),
        ingress: rules(&one.ingress),
        egress: rules(&one.egress),
    }
}

fn rule(one: &PolicyRuleV1, node: &Node, pods: &[&OwnPod]) -> Rule {
    let is_own = |address: &IpAddr| node.pod_cidrs.iter().any(|net| net.contains(*address));
    let peer = |peer: &PolicyPeerV1| match peer {
        PolicyPeerV1::Pods { namespaces, pods: selector, addresses } => {
            let elsewhere = addresses.iter().filter(|address| !is_own(address)).copied();
            let here = pods.iter().filter(|one| {
                namespaces.contains(&one.pod.namespace) && selector.matches(&one.pod.labels)
            });
            let here = here.flat_map(|one| one.addresses.iter().copied());
            let all: BTreeSet<IpAddr> = elsewhere.chain(here).collect();
            Some(PolicyPeer::Pods(all.into_iter().collect()))
        }
        // A range that does not read lets nobody in.
        PolicyPeerV1::Block { cidr, except } => {
            let except = except.iter().map(|one| one.parse()).collect::<Result<_, _>>();
            Some(PolicyPeer::Block { net: cidr.parse().ok()?, except: except.ok()? })
        }
    };
    let port = |port: &PolicyPortV1| {
        Some(PolicyPort {
            protocol: protocol(port.protocol)?,
            ports: match &port.ports {
                PortsV1::Any => PortRange::Any,
                PortsV1::Range(first, last) => PortRange::Range(*first, *last),
                PortsV1::Named(name, elsewhere) => {
                    let known = elsewhere.iter().filter(|(address, _)| !is_own(address));
                    PortRange::Named(name.clone(), known.copied().collect())
                }
            },
        })
    };
    Rule {
        peers: one.peers.as_ref().map(|peers| peers.iter().filter_map(peer).collect()),
        ports: one.ports.as_ref().map(|ports| ports.iter().filter_map(port).collect()),
    }
}

fn has_all(labels: &[(String, String)], wanted: &[(String, String)]) -> bool {
    wanted.iter().all(|pair| labels.contains(pair))
}

fn nets(texts: &[String]) -> Vec<Net> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// SCTP is nobody's here.
fn protocol(protocol: ProtocolV1) -> Option<Protocol> {
    match protocol {
        ProtocolV1::Tcp => Some(Protocol::Tcp),
        ProtocolV1::Udp => Some(Protocol::Udp),
        ProtocolV1::Sctp => None,
    }
}

#[cfg(test)]
mod tests;
