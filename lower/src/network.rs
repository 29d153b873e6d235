//! Lowers Services, EndpointSlices, Nodes and NetworkPolicies to what every node
//! is told of the cluster's network.
//!
//! Whatever does not read as an address or a port is left out: validation has
//! been through it, and a table with a hole is better than none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::selector::{LabelSelector, Operator};
use api::{Value, meta};
use wire::network::{
    DistributionV1, EndpointPortV1, EndpointV1, EndpointsV1, OperatorV1, PeerV1, PolicyPeerV1,
    PolicyPortV1, PolicyRuleV1, PolicyV1, PortsV1, RequirementV1, SERVICE_SOURCES, SelectorV1,
    ServicePortV1, ServiceV1, TargetV1,
};
use wire::pod::ProtocolV1;
use wire::set::{BodyV1, ItemV1};

use super::{LowerError, item, uid};

/// The label by which a slice belongs to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The older way to say whom a load balancer lets in.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Where a node is.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Where a node listens for the others.
pub const TUNNEL_PORT: &str = "pinnace.io/tunnel-port";
/// How long a client stays with an endpoint where its Service does not say.
const AFFINITY_DEFAULT_S: u32 = 10_800;

/// Lowers a Service.
///
/// # Errors
/// The uid is not one.
pub fn service(object: &Value) -> Result<ItemV1, LowerError> {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or("ClusterIP");
    let (namespace, name) = (meta::namespace(object), meta::name(object));
    let is_node_port = matches!(kind, "NodePort" | "LoadBalancer");
    let ports = list(&spec["ports"]).filter_map(|port| {
        let number = number(&port["port"])?;
        Some(ServicePortV1 {
            name: text(&port["name"]),
            protocol: protocol(&port["protocol"]),
            port: number,
            target: match (&port["targetPort"], self::number(&port["targetPort"])) {
                (_, Some(number)) => TargetV1::Number(number),
                (Value::String(name), _) => TargetV1::Name(name.clone()),
                _ => TargetV1::Number(number),
            },
            node_port: self::number(&port["nodePort"]).filter(|_| is_node_port).unwrap_or(0),
        })
    });
    let is_external_name = kind == "ExternalName";
    let ext = match sources(object).filter(|_| kind == "LoadBalancer") {
        Some(ranges) => vec![(SERVICE_SOURCES, ranges.join(",").into_bytes())],
        None => Vec::new(),
    };
    let mut external_ips = addresses(&spec["externalIPs"]);
    if kind == "LoadBalancer" {
        let given = list(&object["status"]["loadBalancer"]["ingress"]);
        external_ips.extend(given.filter_map(|one| one["ip"].as_str()?.parse::<IpAddr>().ok()));
    }
    external_ips.sort_unstable();
    external_ips.dedup();
    let affinity = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    let affinity_s = affinity.as_u64().and_then(|s| u32::try_from(s).ok());
    let own_annotation = meta::annotation(object, "service.kubernetes.io/topology-mode");
    let body = ServiceV1 {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster_ips: if is_external_name { Vec::new() } else { cluster_ips(spec) },
        external_name: if is_external_name { text(&spec["externalName"]) } else { String::new() },
        external_ips,
        ports: ports.collect(),
        selector: if is_external_name { Vec::new() } else { labels(&spec["selector"]) },
        affinity_s: match spec["sessionAffinity"].as_str() {
            Some("ClientIP") => affinity_s.unwrap_or(AFFINITY_DEFAULT_S),
            _ => 0,
        },
        internal_local: spec["internalTrafficPolicy"] == "Local",
        external_local: is_node_port && spec["externalTrafficPolicy"] == "Local",
        health_port: number(&spec["healthCheckNodePort"]).unwrap_or(0),
        publish_not_ready: spec["publishNotReadyAddresses"] == true,
        distribution: match spec["trafficDistribution"].as_str() {
            Some("PreferClose" | "PreferSameZone") => DistributionV1::Zone,
            Some("PreferSameNode") => DistributionV1::Node,
            _ if own_annotation == Some("Auto") => DistributionV1::Zone,
            _ => DistributionV1::Any,
        },
        is_api: (namespace, name) == ("default", "kubernetes"),
        ext,
    };
    Ok(item(uid(meta::uid(object))?, BodyV1::Service(Box::new(body))))
}

/// The ranges of the clients that a load balancer lets in; the annotation counts where
/// the field is empty.
fn sources(object: &Value) -> Option<Vec<String>> {
    let mut ranges: Vec<String> = list(&object["spec"]["loadBalancerSourceRanges"])
        .map(|range| text(range).trim().to_owned())
        .collect();
    if ranges.is_empty() {
        let given = meta::annotation(object, SOURCE_RANGES).unwrap_or_default();
        ranges.extend(given.split(',').map(|range| range.trim().to_owned()));
    }
    ranges.retain(|range| !range.is_empty());
    (!ranges.is_empty()).then_some(ranges)
}

/// Lowers an EndpointSlice; `None` for one that belongs to no Service, or whose
/// endpoints are names.
///
/// # Errors
/// The uid is not one.
pub fn endpoints(object: &Value) -> Result<Option<ItemV1>, LowerError> {
    let Some(service) = meta::label(object, SERVICE_NAME) else { return Ok(None) };
    if object["addressType"] == "FQDN" {
        return Ok(None);
    }
    let ports = list(&object["ports"]).map(|port| EndpointPortV1 {
        name: text(&port["name"]),
        protocol: protocol(&port["protocol"]),
        port: number(&port["port"]).unwrap_or(0),
    });
    let endpoints = list(&object["endpoints"]).map(|endpoint| {
        let conditions = &endpoint["conditions"];
        // What is not said is true, of being ready and serving.
        let ready = conditions["ready"].as_bool().unwrap_or(true);
        let target = &endpoint["targetRef"];
        let pod = target["uid"].as_str().filter(|_| target["kind"] == "Pod");
        EndpointV1 {
            addresses: addresses(&endpoint["addresses"]),
            hostname: text(&endpoint["hostname"]),
            node: text(&endpoint["nodeName"]),
            zone: text(&endpoint["zone"]),
            pod: pod.and_then(|pod| uid(pod).ok()).unwrap_or_default(),
            ready,
            serving: conditions["serving"].as_bool().unwrap_or(ready),
            terminating: conditions["terminating"].as_bool().unwrap_or(false),
        }
    });
    let body = EndpointsV1 {
        namespace: meta::namespace(object).to_owned(),
        service: service.to_owned(),
        ports: ports.collect(),
        endpoints: endpoints.filter(|endpoint| !endpoint.addresses.is_empty()).collect(),
        ext: Vec::new(),
    };
    Ok(Some(item(uid(meta::uid(object))?, BodyV1::Endpoints(body))))
}

/// Lowers a Node, as the others see it; `None` for one that gives no addresses yet.
///
/// # Errors
/// The uid is not one.
pub fn peer(object: &Value) -> Result<Option<ItemV1>, LowerError> {
    let pod_cidrs = pod_cidrs(&object["spec"]);
    if pod_cidrs.is_empty() {
        return Ok(None);
    }
    let addresses = list(&object["status"]["addresses"])
        .filter(|address| address["type"] == "InternalIP" || address["type"] == "ExternalIP")
        .filter_map(|address| address["address"].as_str()?.parse().ok());
    let port = meta::annotation(object, TUNNEL_PORT).and_then(|port| port.parse().ok());
    let body = PeerV1 {
        node: meta::name(object).to_owned(),
        pod_cidrs,
        addresses: addresses.collect(),
        port: port.unwrap_or(0),
        zone: meta::label(object, ZONE).unwrap_or_default().to_owned(),
        ext: Vec::new(),
    };
    // The Node's own uid names what it is told of itself.
    let mut derived = b"peer".to_vec();
    derived.extend(uid(meta::uid(object))?);
    let digest = ring::digest::digest(&ring::digest::SHA256, &derived);
    let derived = digest.as_ref()[..16].try_into().expect("16 of 32 bytes");
    Ok(Some(item(derived, BodyV1::Peer(body))))
}

/// The ranges that a Node gives to its pods.
#[must_use]
pub fn pod_cidrs(spec: &Value) -> Vec<String> {
    let all: Vec<String> = list(&spec["podCIDRs"]).map(text).collect();
    let one = text(&spec["podCIDR"]);
    if all.is_empty() && !one.is_empty() { vec![one] } else { all }
}

/// A pod, for the rules that name pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Names of its ports.
    pub ports: Vec<(String, ProtocolV1, u16)>,
}

/// What policies are read against: labels of namespaces, and all pods.
#[derive(Clone, Copy, Debug)]
pub struct Population<'a> {
    /// Labels of each namespace.
    pub namespaces: &'a BTreeMap<String, Vec<(String, String)>>,
    /// Every pod that has an address of its own and has not ended.
    pub pods: &'a [&'a PolicyPod],
}

/// Reads a Pod as rules see it; `None` while it has no address, on the host's
/// network, and once it has ended.
#[must_use]
pub fn policy_pod(object: &Value) -> Option<PolicyPod> {
    let status = &object["status"];
    let has_ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    if has_ended || object["spec"]["hostNetwork"] == true {
        return None;
    }
    let mut addresses: Vec<IpAddr> =
        list(&status["podIPs"]).filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(status["podIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    let ports = list(&object["spec"]["containers"]).flat_map(|container| list(&container["ports"]));
    let ports = ports.filter_map(|port| {
        let name = port["name"].as_str().filter(|name| !name.is_empty())?;
        Some((name.to_owned(), protocol(&port["protocol"]), number(&port["containerPort"])?))
    });
    (!addresses.is_empty()).then(|| PolicyPod {
        namespace: meta::namespace(object).to_owned(),
        labels: labels(&object["metadata"]["labels"]),
        addresses,
        ports: ports.collect(),
    })
}

/// Lowers a NetworkPolicy.
///
/// # Errors
/// The uid is not one, or a selector does not read.
pub fn policy(object: &Value, population: Population<'_>) -> Result<ItemV1, LowerError> {
    let spec = &object["spec"];
    let namespace = meta::namespace(object);
    let types: BTreeSet<&str> =
        list(&spec["policyTypes"]).filter_map(|kind| kind.as_str()).collect();
    let has_egress = spec["egress"].is_array();
    let is_type = |name: &str, default: bool| {
        if types.is_empty() { default } else { types.contains(name) }
    };
    let rules = |field: &str, other: &str| -> Result<Vec<PolicyRuleV1>, LowerError> {
        list(&spec[field]).map(|one| rule(one, other, namespace, population)).collect()
    };
    let body = PolicyV1 {
        namespace: namespace.to_owned(),
        name: meta::name(object).to_owned(),
        pods: selector(&spec["podSelector"])?,
        ingress: is_type("Ingress", true).then(|| rules("ingress", "from")).transpose()?,
        egress: is_type("Egress", has_egress).then(|| rules("egress", "to")).transpose()?,
        ext: Vec::new(),
    };
    Ok(item(uid(meta::uid(object))?, BodyV1::Policy(body)))
}

fn rule(
    rule: &Value,
    other: &str,
    namespace: &str,
    population: Population<'_>,
) -> Result<PolicyRuleV1, LowerError> {
    let mut selected: Vec<&PolicyPod> = Vec::new();
    let mut peers = Vec::new();
    for peer in list(&rule[other]) {
        if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
            let except = list(&peer["ipBlock"]["except"]).map(text).collect();
            peers.push(PolicyPeerV1::Block { cidr: cidr.to_owned(), except });
            continue;
        }
        let namespaces: Vec<String> = match &peer["namespaceSelector"] {
            Value::Null => vec![namespace.to_owned()],
            given => {
                let wanted = selector(given)?;
                let all = population.namespaces.iter();
                all.filter(|(_, labels)| wanted.matches(labels))
                    .map(|(name, _)| name.clone())
                    .collect()
            }
        };
        let pods = selector(&peer["podSelector"])?;
        let fits =
            |pod: &&&PolicyPod| namespaces.contains(&pod.namespace) && pods.matches(&pod.labels);
        let found: Vec<&PolicyPod> = population.pods.iter().filter(fits).copied().collect();
        let mut addresses: Vec<IpAddr> =
            found.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        selected.extend(found);
        peers.push(PolicyPeerV1::Pods { namespaces, pods, addresses });
    }
    let is_everybody = list(&rule[other]).next().is_none();
    if is_everybody {
        selected.extend(population.pods.iter().copied());
    }
    let ports = list(&rule["ports"]).map(|port| {
        let protocol = protocol(&port["protocol"]);
        let ports = match (&port["port"], number(&port["port"])) {
            (_, Some(first)) => PortsV1::Range(first, number(&port["endPort"]).unwrap_or(first)),
            (Value::String(name), _) => {
                let mut known: Vec<(IpAddr, u16)> = selected
                    .iter()
                    .flat_map(|pod| {
                        let named =
                            pod.ports.iter().filter(|one| one.0 == *name && one.1 == protocol);
                        named.flat_map(|one| pod.addresses.iter().map(|ip| (*ip, one.2)))
                    })
                    .collect();
                known.sort_unstable();
                known.dedup();
                PortsV1::Named(name.clone(), known)
            }
            _ => PortsV1::Any,
        };
        PolicyPortV1 { protocol, ports }
    });
    let ports: Vec<PolicyPortV1> = ports.collect();
    Ok(PolicyRuleV1 {
        peers: (!is_everybody).then_some(peers),
        ports: (!ports.is_empty()).then_some(ports),
    })
}

fn selector(value: &Value) -> Result<SelectorV1, LowerError> {
    if value.is_null() {
        return Ok(SelectorV1::default());
    }
    let read = LabelSelector::from_object(value)
        .map_err(|error| LowerError::Unreadable(error.to_string()))?;
    let requirements = read.requirements.into_iter().map(|one| {
        let operator = match one.operator {
            Operator::In => OperatorV1::In,
            Operator::NotIn => OperatorV1::NotIn,
            Operator::Exists => OperatorV1::Exists,
            Operator::DoesNotExist => OperatorV1::DoesNotExist,
            other => return Err(LowerError::Unreadable(format!("{other:?} compares no labels"))),
        };
        Ok(RequirementV1 { key: one.key, operator, values: one.values })
    });
    Ok(SelectorV1 { requirements: requirements.collect::<Result<_, _>>()? })
}

fn cluster_ips(spec: &Value) -> Vec<IpAddr> {
    // A headless Service says `None`, which is no address.
    let all = addresses(&spec["clusterIPs"]);
    if !all.is_empty() {
        return all;
    }
    spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok()).into_iter().collect()
}

fn labels(value: &Value) -> Vec<(String, String)> {
    let pairs = value.as_object().into_iter().flatten();
    let mut pairs: Vec<(String, String)> =
        pairs.map(|(key, value)| (key.clone(), text(value))).collect();
    pairs.sort_unstable();
    pairs
}

fn addresses(value: &Value) -> Vec<IpAddr> {
    list(value).filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A port's number; `None` for a name, and for 0.
fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn protocol(value: &Value) -> ProtocolV1 {
    match value.as_str() {
        Some("UDP") => ProtocolV1::Udp,
        Some("SCTP") => ProtocolV1::Sctp,
        _ => ProtocolV1::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UID: &str = "01020304-0506-0708-090a-0b0c0d0e0f10";

    fn object(kind: &str, mut rest: Value) -> Value {
        rest["kind"] = json!(kind);
        let given = rest["metadata"].take();
        rest["metadata"] = json!({"name": "web", "namespace": "default", "uid": UID});
        for (key, value) in given.as_object().into_iter().flatten() {
            rest["metadata"][key] = value.clone();
        }
        rest
    }

    fn lowered(spec: Value) -> ServiceV1 {
        match service(&object("Service", spec)).unwrap().body {
            BodyV1::Service(service) => *service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_is_sent_with_what_leads_to_it() {
        let one = lowered(json!({"spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd43::7"],
            "selector": {"tier": "1", "app": "web"},
            "externalIPs": ["198.51.100.4"],
            "sessionAffinity": "ClientIP",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "trafficDistribution": "PreferSameNode",
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP"},
            ]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "x"}]}},
        }));
        assert_eq!(one.cluster_ips.len(), 2);
        let expected: Vec<IpAddr> = vec![[192, 0, 2, 9].into(), [198, 51, 100, 4].into()];
        assert_eq!(one.external_ips, expected);
        assert_eq!(one.ports[0].target, TargetV1::Name("web".into()));
        assert_eq!((one.ports[1].protocol, one.ports[1].node_port), (ProtocolV1::Udp, 0));
        assert_eq!(one.ports[1].target, TargetV1::Number(53));
        assert_eq!((one.affinity_s, one.health_port), (10_800, 31_000));
        assert!(one.external_local && !one.internal_local && !one.is_api);
        assert_eq!(one.distribution, DistributionV1::Node);
        assert_eq!(one.selector[0].0, "app", "sorted");
        assert_eq!(one.sources(), None, "everybody");
    }

    #[test]
    fn a_load_balancer_is_sent_with_whom_it_lets_in() {
        let ranges = json!([" 192.0.2.0/24", "2001:db8::/32"]);
        let sources = |kind: &str, ranges: &Value, annotation: &str| {
            let metadata = json!({"annotations": {SOURCE_RANGES: annotation}});
            let spec = json!({"type": kind, "loadBalancerSourceRanges": ranges});
            lowered(json!({"metadata": metadata, "spec": spec})).sources()
        };
        let both = Some(vec!["192.0.2.0/24".to_owned(), "2001:db8::/32".to_owned()]);
        assert_eq!(sources("LoadBalancer", &ranges, "198.51.100.0/24"), both);
        assert_eq!(sources("LoadBalancer", &json!([]), "192.0.2.0/24, 2001:db8::/32 "), both);
        assert_eq!(sources("LoadBalancer", &Value::Null, " "), None);
        assert_eq!(sources("NodePort", &ranges, ""), None, "left of an earlier type");
    }

    #[test]
    fn services_without_an_address_have_none() {
        let headless = lowered(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
        assert!(headless.cluster_ips.is_empty() && headless.external_name.is_empty());
        let named = lowered(json!({"spec": {
            "type": "ExternalName", "externalName": "db.example.com", "selector": {"a": "b"},
        }}));
        assert_eq!(named.external_name, "db.example.com");
        assert!(named.selector.is_empty());
        // What is left of an earlier type leads nowhere.
        let cluster = lowered(json!({"spec": {
            "type": "ClusterIP", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}],
        }}));
        assert_eq!((cluster.external_local, cluster.ports[0].node_port), (false, 0));
    }

    #[test]
    fn a_slice_says_of_each_endpoint_whether_it_takes_connections() {
        let slice = object(
            "EndpointSlice",
            json!({
                "metadata": {"labels": {SERVICE_NAME: "web"}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080}, {"name": "any"}],
                "endpoints": [
                    {"addresses": ["10.42.0.2"], "nodeName": "pi", "zone": "barn",
                     "targetRef": {"kind": "Pod", "uid": UID}},
                    {"addresses": ["10.42.0.3"],
                     "conditions": {"ready": false, "serving": true, "terminating": true}},
                    {"addresses": ["10.42.0.4"], "conditions": {"ready": false}},
                    {"addresses": ["no address"]},
                ],
            }),
        );
        let BodyV1::Endpoints(lowered) = endpoints(&slice).unwrap().unwrap().body else {
            panic!("no endpoints")
        };
        let said: Vec<_> =
            lowered.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(said, [(true, true, false), (false, true, true), (false, false, false)]);
        assert_eq!(lowered.endpoints[0].pod[..2], [1, 2]);
        assert_eq!((lowered.ports[0].port, lowered.ports[1].port), (8080, 0));
        let mut other = slice.clone();
        other["addressType"] = json!("FQDN");
        assert_eq!(endpoints(&other).unwrap(), None);
        other = slice;
        other["metadata"]["labels"] = json!({});
        assert_eq!(endpoints(&other).unwrap(), None);
    }

    #[test]
    fn a_node_is_a_peer_once_it_has_addresses_for_pods() {
        let node = object(
            "Node",
            json!({
                "metadata": {"name": "pi", "labels": {ZONE: "barn"},
                    "annotations": {TUNNEL_PORT: "7443"}},
                "spec": {"podCIDR": "10.42.3.0/24"},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": "192.0.2.8"},
                    {"type": "Hostname", "address": "pi"},
                    {"type": "InternalIP", "address": "fd00::8"},
                ]},
            }),
        );
        let lowered = peer(&node).unwrap().unwrap();
        assert_ne!(lowered.uid, uid(UID).unwrap(), "the node's own settings have that");
        let BodyV1::Peer(peer) = lowered.body else { panic!("no peer") };
        assert_eq!((peer.addresses.len(), peer.port, peer.zone.as_str()), (2, 7443, "barn"));
        assert_eq!(peer.pod_cidrs, ["10.42.3.0/24"]);
        assert_eq!(super::peer(&object("Node", json!({"spec": {}}))).unwrap(), None);
    }

    #[test]
    fn a_policy_names_the_pods_that_its_selectors_mean() {
        let pod = |namespace: &str, app: &str, last: u8| PolicyPod {
            namespace: namespace.into(),
            labels: vec![("app".into(), app.into())],
            addresses: vec![[10, 42, 0, last].into()],
            ports: vec![("http".into(), ProtocolV1::Tcp, 8000 + u16::from(last))],
        };
        let pods = [pod("default", "web", 2), pod("default", "db", 3), pod("ops", "web", 4)];
        let namespaces = BTreeMap::from([
            ("default".to_owned(), vec![]),
            ("ops".to_owned(), vec![("team".to_owned(), "ops".to_owned())]),
        ]);
        let pods: Vec<&PolicyPod> = pods.iter().collect();
        let population = Population { namespaces: &namespaces, pods: &pods };
        let lowered = |spec: Value| {
            let object = object("NetworkPolicy", json!({"spec": spec}));
            match policy(&object, population).unwrap().body {
                BodyV1::Policy(policy) => policy,
                other => panic!("{other:?}"),
            }
        };
        let told = lowered(json!({
            "podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [
                {"from": [
                    {"podSelector": {"matchLabels": {"app": "web"}}},
                    {"namespaceSelector": {"matchLabels": {"team": "ops"}}},
                    {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"]}},
                 ],
                 "ports": [{"port": 80}, {"port": 90, "endPort": 99}, {"protocol": "UDP"}]},
                {"ports": [{"port": "http"}]},
            ],
        }));
        assert!(told.egress.is_none());
        let rules = told.ingress.unwrap();
        let peers = rules[0].peers.as_ref().unwrap();
        let addresses = |peer: &PolicyPeerV1| match peer {
            PolicyPeerV1::Pods { addresses, .. } => addresses.clone(),
            PolicyPeerV1::Block { .. } => panic!("a block"),
        };
        assert_eq!(addresses(&peers[0]), [IpAddr::from([10, 42, 0, 2])]);
        assert_eq!(addresses(&peers[1]), [IpAddr::from([10, 42, 0, 4])]);
        assert!(matches!(&peers[2], PolicyPeerV1::Block { except, .. } if except.len() == 1));
        let ports: Vec<PortsV1> =
            rules[0].ports.iter().flatten().map(|port| port.ports.clone()).collect();
        assert_eq!(ports, [PortsV1::Range(80, 80), PortsV1::Range(90, 99), PortsV1::Any]);
        let PortsV1::Named(_, known) = &rules[1].ports.as_ref().unwrap()[0].ports else {
            panic!("no name")
        };
        assert_eq!(known.len(), 3);

        let closed = lowered(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
        assert_eq!((closed.ingress, closed.egress), (Some(vec![]), Some(vec![])));
        let egress = lowered(json!({"podSelector": {}, "egress": [{}]}));
        assert_eq!(egress.ingress, Some(vec![]), "ingress is meant where nothing is said");
        assert_eq!(egress.egress, Some(vec![PolicyRuleV1::default()]));
    }

    #[test]
    fn pods_that_have_ended_or_use_the_hosts_network_are_nobodys_peers() {
        let pod = json!({
            "metadata": {"namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.42.0.2"},
        });
        assert_eq!(policy_pod(&pod).unwrap().ports.len(), 1);
        for (at, value) in [
            ("/status/phase", json!("Failed")),
            ("/status/podIP", json!("")),
            ("/spec/hostNetwork", json!(true)),
        ] {
            let mut other = pod.clone();
            let (parent, key) = at.rsplit_once('/').unwrap();
            other.pointer_mut(parent).unwrap()[key] = value;
            assert_eq!(policy_pod(&other), None, "{at}");
        }
    }
}
