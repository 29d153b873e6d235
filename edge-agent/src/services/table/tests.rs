//! The table in words: what a node is told, and what it makes of it.

use super::*;

use wire::network::{ClusterV1, EndpointPortV1, OperatorV1, PeerV1, RequirementV1, SelectorV1};
use wire::pod::{ContainerV1, PortV1};
use wire::set::ItemV1;

fn pairs(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn own_pod(number: u8, labels: &[(&str, &str)]) -> OwnPod {
    let mut container = ContainerV1::new("main", "web:1");
    container.ports.push(PortV1 {
        name: "http".into(),
        port: 8000 + u16::from(number),
        protocol: ProtocolV1::Tcp,
        host_port: 0,
        host_ip: String::new(),
    });
    let mut pod = PodV1::new([number; 16], "default", &format!("web-{number}"));
    pod.labels = pairs(labels);
    pod.containers.push(container);
    OwnPod {
        pod: Arc::new(pod),
        addresses: vec![[10, 42, 3, number].into()],
        is_ready: true,
        is_over: false,
    }
}

fn with(pod: OwnPod, edit: impl FnOnce(&mut PodV1)) -> OwnPod {
    let mut pod = pod;
    edit(Arc::make_mut(&mut pod.pod));
    pod
}

fn web() -> ServiceV1 {
    ServiceV1 {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec![[10, 43, 0, 7].into()],
        selector: pairs(&[("app", "web")]),
        ports: vec![ServicePortV1 {
            name: "http".into(),
            protocol: ProtocolV1::Tcp,
            port: 80,
            target: TargetV1::Name("http".into()),
            node_port: 0,
        }],
        ..ServiceV1::default()
    }
}

fn told(pod: u8, node: &str, last: u8) -> EndpointV1 {
    EndpointV1 {
        addresses: vec![[10, 42, last, pod].into()],
        node: node.into(),
        pod: [pod; 16],
        ready: true,
        serving: true,
        ..EndpointV1::default()
    }
}

fn slice(endpoints: Vec<EndpointV1>) -> BodyV1 {
    BodyV1::Endpoints(EndpointsV1 {
        namespace: "default".into(),
        service: "web".into(),
        ports: vec![EndpointPortV1 { name: "http".into(), protocol: ProtocolV1::Tcp, port: 8080 }],
        endpoints,
        ext: vec![],
    })
}

fn made(bodies: Vec<BodyV1>, pods: &[OwnPod]) -> Table {
    let config = NodeConfigV1 {
        pod_cidr: "10.42.3.0/24".into(),
        heartbeat_s: 60,
        artifact_key: [0; 32],
        hold_unknown: false,
        image_policies: vec![],
        prepull: vec![],
        remove_volumes: vec![],
        cluster: ClusterV1 {
            pod_cidrs: vec!["10.42.0.0/16".into()],
            service_cidrs: vec!["10.43.0.0/16".into()],
            dns: vec![[10, 43, 0, 10].into()],
            domain: "cluster.local".into(),
            more_pod_cidrs: vec![],
            zone: "barn".into(),
        },
        ext: vec![],
    };
    let bodies = [vec![BodyV1::Node(config)], bodies].concat();
    let items = (0_u8..).zip(bodies);
    let items = items.map(|(at, body)| ItemV1 { uid: [at; 16], generation: 1, body });
    let set = SnapshotV1 { epoch: 1, revision: 1, items: items.collect() };
    let own = Own { name: "pi".into(), tunnel_port: 7443, ..Own::default() };
    table(&set, &own, pods).expect("the set names a network")
}

/// Address, port and the three conditions of each endpoint.
fn endpoints_of(table: &Table) -> Vec<(String, bool, bool, bool)> {
    let all = table.services[0].ports[0].endpoints.iter();
    all.map(|e| (format!("{}:{}", e.address, e.port), e.ready, e.serving, e.terminating)).collect()
}

fn at(text: &str, ready: bool, serving: bool, terminating: bool) -> (String, bool, bool, bool) {
    (text.to_owned(), ready, serving, terminating)
}

#[test]
fn a_set_without_a_network_makes_no_table() {
    let set = SnapshotV1 { epoch: 1, revision: 1, items: vec![] };
    assert!(table(&set, &Own::default(), &[]).is_none());
}

#[test]
fn of_its_own_pods_a_node_knows_better_than_the_master() {
    let service = || BodyV1::Service(Box::new(web()));
    let old_news = slice(vec![told(9, "pi", 3), told(1, "pi", 3), told(5, "elsewhere", 4)]);
    let unready = OwnPod { is_ready: false, ..own_pod(2, &[("app", "web")]) };
    let going = with(own_pod(3, &[("app", "web")]), |pod| pod.deletion_grace_s = Some(5));
    let over = OwnPod { is_over: true, ..own_pod(4, &[("app", "web")]) };
    let pods = [
        own_pod(1, &[("app", "web"), ("tier", "1")]),
        unready,
        going,
        over,
        own_pod(6, &[("app", "other")]),
        with(own_pod(7, &[("app", "web")]), |pod| pod.namespace = "ops".into()),
    ];
    let table = made(vec![service(), old_news], &pods);
    let expected = [
        at("10.42.3.1:8001", true, true, false),
        at("10.42.3.2:8002", false, false, false),
        at("10.42.3.3:8003", false, true, true),
        at("10.42.4.5:8080", true, true, false),
    ];
    assert_eq!(endpoints_of(&table), expected);
    assert_eq!(table.services[0].ports[0].endpoints[0].zone, "barn");
}

#[test]
fn others_have_a_say_in_a_pod_with_gates() {
    let gated = with(own_pod(1, &[("app", "web")]), |pod| pod.is_gated = true);
    let service = || BodyV1::Service(Box::new(web()));
    let table = made(vec![service()], std::slice::from_ref(&gated));
    assert_eq!(endpoints_of(&table), [at("10.42.3.1:8001", false, false, false)]);
    let table = made(vec![service(), slice(vec![told(1, "pi", 3)])], &[gated]);
    assert_eq!(endpoints_of(&table), [at("10.42.3.1:8001", true, true, false)]);
}

#[test]
fn endpoints_made_by_hand_are_taken_as_they_are() {
    let by_hand = ServiceV1 { selector: vec![], ..web() };
    let outside = EndpointV1 {
        addresses: vec![[192, 0, 2, 1].into()],
        ready: true,
        serving: true,
        ..EndpointV1::default()
    };
    let bodies = vec![BodyV1::Service(Box::new(by_hand)), slice(vec![outside, told(1, "pi", 3)])];
    let table = made(bodies, &[own_pod(1, &[("app", "web")])]);
    let found: Vec<String> = endpoints_of(&table).into_iter().map(|one| one.0).collect();
    assert_eq!(found, ["10.42.3.1:8080", "192.0.2.1:8080"]);
}

#[test]
fn a_headless_service_names_its_pods() {
    let headless =
        ServiceV1 { cluster_ips: vec![], ports: vec![], publish_not_ready: true, ..web() };
    let named = with(own_pod(1, &[("app", "web")]), |pod| {
        pod.fqdn = "web-0.web.default.svc.cluster.local".into();
    });
    let elsewhere = with(own_pod(2, &[("app", "web")]), |pod| {
        pod.fqdn = "a.b.default.svc.cluster.local".into()
    });
    let elsewhere = OwnPod { is_ready: false, ..elsewhere };
    let mut remote = told(5, "other", 4);
    remote.hostname = "web-5".into();
    let bodies = vec![BodyV1::Service(Box::new(headless)), slice(vec![remote])];
    let table = made(bodies, &[named, elsewhere]);
    let found: Vec<(&str, bool)> = table.services[0]
        .bare_endpoints
        .iter()
        .map(|endpoint| (endpoint.hostname.as_str(), endpoint.ready))
        .collect();
    assert_eq!(found, [("web-0", true), ("", true), ("web-5", true)]);
}

#[test]
fn other_nodes_are_peers_and_the_node_itself_is_not() {
    let peer = |name: &str| {
        BodyV1::Peer(PeerV1 {
            node: name.into(),
            pod_cidrs: vec!["10.42.4.0/24".into(), "nonsense".into()],
            port: 7443,
            ..PeerV1::default()
        })
    };
    let table = made(vec![peer("z"), peer("pi"), peer("a")], &[]);
    let names: Vec<&str> = table.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["a", "z"]);
    assert_eq!(table.peers[0].pod_cidrs.len(), 1);
    assert_eq!(table.node.zone, "barn");
}

#[test]
fn policies_are_those_of_the_nodes_pods_with_their_addresses_of_now() {
    let app = |value: &str| SelectorV1 {
        requirements: vec![RequirementV1 {
            key: "app".into(),
            operator: OperatorV1::In,
            values: vec![value.into()],
        }],
    };
    let rule = PolicyRuleV1 {
        peers: Some(vec![
            PolicyPeerV1::Pods {
                namespaces: vec!["default".into()],
                pods: app("client"),
                // One of this node that is gone, and one elsewhere.
                addresses: vec![[10, 42, 3, 99].into(), [10, 42, 4, 8].into()],
            },
            PolicyPeerV1::Block { cidr: "nonsense".into(), except: vec![] },
        ]),
        ports: Some(vec![PolicyPortV1 {
            protocol: ProtocolV1::Tcp,
            ports: PortsV1::Named("http".into(), vec![([10, 42, 4, 8].into(), 80)]),
        }]),
    };
    let named = |name: &str, pods: SelectorV1| {
        BodyV1::Policy(PolicyV1 {
            namespace: "default".into(),
            name: name.into(),
            pods,
            ingress: Some(vec![rule.clone()]),
            egress: None,
            ext: vec![],
        })
    };
    let pods = [own_pod(1, &[("app", "web")]), own_pod(2, &[("app", "client")])];
    let table = made(vec![named("b", app("web")), named("a", app("nobody"))], &pods);
    assert_eq!(table.policies.len(), 1, "one that selects no pod here is left out");
    assert_eq!(
        (table.pods[0].ingress.as_deref(), table.pods[0].egress.as_deref()),
        (Some(&[0][..]), None)
    );
    assert_eq!(table.pods[1].ingress, None);
    let peers = table.policies[0].ingress[0].peers.as_ref().unwrap();
    let expected: Vec<IpAddr> = vec![[10, 42, 3, 2].into(), [10, 42, 4, 8].into()];
    assert_eq!(peers, &[PolicyPeer::Pods(expected)]);
}

#[test]
fn ports_of_the_node_lead_to_pods_with_a_network_of_their_own() {
    let open = |pod: &mut PodV1| {
        let port = &mut pod.containers[0].ports[0];
        (port.host_port, port.host_ip) = (8080, "0.0.0.0".into());
    };
    let on_host = with(with(own_pod(2, &[]), open), |pod| pod.namespaces.host_network = true);
    let table = made(vec![], &[with(own_pod(1, &[]), open), on_host]);
    let [port] = &table.host_ports[..] else { panic!("{:?}", table.host_ports) };
    assert_eq!((port.port, port.pod_port, port.host_ip), (8080, 8001, None));
    assert_eq!(table.pods.len(), 1);
}
