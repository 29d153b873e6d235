//! Where things lead, on one table with all kinds of endpoints.

use super::*;
use crate::table::{Endpoint, Node, Peer, Policy};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(address: &str, node: &str, ready: bool) -> Endpoint {
    let address: SocketAddr = address.parse().unwrap();
    Endpoint {
        address: address.ip(),
        port: address.port(),
        node: node.to_owned(),
        zone: String::new(),
        hostname: String::new(),
        ready,
        serving: ready,
        terminating: false,
    }
}

fn service(name: &str, cluster_ip: &str, endpoints: Vec<Endpoint>) -> Service {
    Service {
        namespace: "default".into(),
        name: name.into(),
        cluster_ips: vec![ip(cluster_ip)],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
            endpoints,
        }],
        ..Service::default()
    }
}

/// The name of the Service that a port belongs to.
fn name_of<'a>(view: &'a View, port: &Port) -> &'a str {
    &view.table.services.iter().find(|service| owner(service) == port.owner).unwrap().name
}

fn table() -> Table {
    let pod = |n: u8, ingress| Pod {
        uid: [n; 16],
        namespace: "default".into(),
        name: format!("p{n}"),
        addresses: vec![IpAddr::from([10, 42, 1, n])],
        ports: vec![],
        ingress,
        egress: None,
    };
    Table {
        node: Node {
            name: "me".into(),
            addresses: vec![ip("192.0.2.1")],
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            dns_addresses: vec![ip("10.43.0.10")],
            ..Node::default()
        },
        services: vec![
            service("empty", "10.43.0.3", vec![endpoint("10.42.1.7:1", "me", false)]),
            Service { is_api: true, ..service("kubernetes", "10.43.0.1", vec![]) },
            Service {
                external_local: true,
                external_ips: vec![ip("203.0.113.5")],
                sources: Some(vec![
                    "198.51.100.0/24".parse().unwrap(),
                    "10.42.1.8/32".parse().unwrap(),
                ]),
                ..service(
                    "web",
                    "10.43.0.2",
                    vec![
                        endpoint("10.42.1.7:8080", "me", true),
                        endpoint("10.42.2.7:8080", "far", true),
                        endpoint("192.0.2.2:8080", "far", true),
                        endpoint("198.51.100.1:8080", "", true),
                    ],
                )
            },
        ],
        pods: vec![pod(7, Some(vec![0])), pod(8, None)],
        peers: vec![Peer {
            name: "far".into(),
            pod_cidrs: vec!["10.42.2.0/24".parse().unwrap()],
            addresses: vec![ip("192.0.2.2")],
            port: 1,
            zone: String::new(),
        }],
        policies: vec![Policy::default()],
        ..Table::default()
    }
}

fn view() -> View {
    View::new(Arc::new(table()), &mut Backends::new())
}

#[test]
fn what_is_captured_leads_where_its_destination_says() {
    let view = view();
    let check = |client: &str, destination: &str, expected: &str| {
        let way = view.way(Protocol::Tcp, ip(client), destination.parse().unwrap());
        let text = match way {
            Way::Names => "names".to_owned(),
            Way::Api(_) => "api".to_owned(),
            Way::Service(port, scope) => format!("{} {scope:?}", name_of(&view, &port)),
            Way::Direct(to, place) => format!("{to} {place:?}"),
            Way::Refused => "refused".to_owned(),
        };
        assert_eq!(text, expected, "{client} -> {destination}");
    };
    check("10.42.1.8", "10.43.0.10:53", "names");
    check("10.42.1.8", "10.43.0.1:80", "api");
    check("10.42.1.8", "10.43.0.2:80", "web Internal");
    check("192.0.2.1", "10.43.0.2:80", "web Internal");
    check("10.42.1.8", "10.43.0.2:81", "refused");
    check("10.42.1.8", "203.0.113.5:80", "web Cluster");
    check("198.51.100.9", "203.0.113.5:80", "web External");
    check("198.51.101.9", "203.0.113.5:80", "refused");
    check("10.42.1.7", "203.0.113.5:80", "refused");
    check("10.42.1.7", "10.43.0.2:80", "web Internal");
    check("10.42.1.8", "10.42.1.7:9", "10.42.1.7:9 Pod");
    check("10.42.1.8", "10.42.2.7:9", "10.42.2.7:9 Peer(\"far\")");
    check("10.42.1.1", "10.42.2.7:9", "10.42.2.7:9 Peer(\"far\")");
    check("10.42.1.8", "10.42.3.7:9", "refused");
    check("10.42.1.8", "8.8.8.8:443", "8.8.8.8:443 World");
    check("10.42.1.8", "192.0.2.2:22", "192.0.2.2:22 World");
    check("10.42.1.8", "127.0.0.1:4000", "refused");
    check("198.51.100.9", "8.8.8.8:443", "refused");
    check("127.0.0.1", "127.0.0.1:4000", "refused");
}

#[test]
fn only_what_has_endpoints_is_live() {
    let live = view().live;
    let live: Vec<String> = live
        .iter()
        .map(|(address, port, protocol)| format!("{address}:{port}/{protocol}"))
        .collect();
    assert_eq!(
        live,
        ["10.43.0.1:80/TCP", "10.43.0.2:80/TCP", "10.43.0.10:53/TCP", "10.43.0.10:53/UDP"]
    );
}

#[test]
fn endpoints_are_where_their_addresses_are() {
    let view = view();
    let port = view.node_port(30080, Protocol::Tcp).map(Arc::clone);
    let port = port.unwrap();
    assert_eq!(name_of(&view, &port), "empty", "the first of two that ask for one port");
    let Way::Service(port, _) =
        view.way(Protocol::Tcp, ip("10.42.1.8"), "10.43.0.2:80".parse().unwrap())
    else {
        panic!("a Service");
    };
    let places = |scope| -> Vec<Place> {
        port.candidates(scope).iter().map(|candidate| candidate.place.clone()).collect()
    };
    let far = || Place::Peer("far".into());
    assert_eq!(places(Scope::Internal), [Place::Pod, far(), far(), Place::World]);
    assert_eq!(places(Scope::External), [Place::Pod], "its policy is Local");
    assert_eq!(places(Scope::Cluster).len(), 4);
    assert!(view.has(port.id, Scope::Internal, "10.42.2.7:8080".parse().unwrap()));
    assert!(!view.has(port.id, Scope::External, "10.42.2.7:8080".parse().unwrap()));
}

#[test]
fn counts_go_from_one_table_to_the_next() {
    let mut backends = Backends::new();
    let _first = View::new(Arc::new(table()), &mut backends);
    let address: SocketAddr = "10.42.1.7:8080".parse().unwrap();
    let held = backends[&address].begin();
    let _second = View::new(Arc::new(table()), &mut backends);
    assert_eq!(backends[&address].active(), 1);
    let mut without = table();
    without.services.clear();
    let _third = View::new(Arc::new(without), &mut backends);
    assert!(backends.is_empty());
    drop(held);
}

#[test]
fn policies_bind_pods_and_never_the_node_or_a_pod_and_itself() {
    let view = view();
    let check = |source: &str, destination: &str, expected| {
        let answer = view.allows(Protocol::Tcp, ip(source), destination.parse().unwrap());
        assert_eq!(answer, expected, "{source} -> {destination}");
    };
    check("10.42.1.8", "10.42.1.7:80", Err(Denied::Ingress));
    check("10.42.2.9", "10.42.1.7:80", Err(Denied::Ingress));
    check("198.51.100.9", "10.42.1.7:80", Err(Denied::Ingress));
    check("10.42.1.7", "10.42.1.8:80", Ok(()));
    check("10.42.1.1", "10.42.1.7:80", Ok(()));
    check("192.0.2.1", "10.42.1.7:80", Ok(()));
    check("10.42.1.7", "10.42.1.7:80", Ok(()));
}

#[test]
fn a_server_sees_the_client_where_its_answers_come_back_here() {
    let view = view();
    let check = |client: &str, destination: &str, expected: Option<&str>| {
        let destination = ip(destination);
        let source = view.source(ip(client), destination, &view.place(destination));
        assert_eq!(source, expected.map(ip), "{client} -> {destination}");
    };
    check("10.42.1.8", "10.42.1.7", Some("10.42.1.8"));
    check("10.42.2.8", "10.42.1.7", Some("10.42.2.8"));
    check("198.51.100.9", "10.42.1.7", Some("198.51.100.9"));
    check("10.42.1.7", "10.42.1.7", None);
    check("10.42.1.1", "10.42.1.7", None);
    check("192.0.2.1", "10.42.1.7", None);
    check("2001:db8::1", "10.42.1.7", None);
    check("10.42.1.8", "8.8.8.8", None);
    assert_eq!(view.source_for_peer("192.0.2.1:5".parse().unwrap()).to_string(), "10.42.1.1:5");
    assert_eq!(view.source_for_peer("10.42.1.8:5".parse().unwrap()).to_string(), "10.42.1.8:5");
}

#[test]
fn an_endpoint_is_gone_when_its_service_goes_on_without_it() {
    let before = table();
    let mut after = table();
    let far: SocketAddr = "10.42.2.7:8080".parse().unwrap();
    let near: SocketAddr = "10.42.1.7:8080".parse().unwrap();
    after.services[2].ports[0].endpoints.retain(|e| e.node == "far" && e.address != far.ip());
    assert!(gone(&before, &after).contains(&far));
    assert!(!gone(&before, &after).contains(&near), "its pod is there");
    after.pods.clear();
    assert!(gone(&before, &after).contains(&near));
    let deleted = Table { services: vec![], ..table() };
    assert!(gone(&before, &deleted).is_empty());
    assert!(gone(&before, &before).is_empty());
}
