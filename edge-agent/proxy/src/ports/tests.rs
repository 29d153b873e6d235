//! Which ports a table asks for.

use expect_test::{Expect, expect};

use super::*;
use crate::table::{Endpoint, HostPort, Node, ServicePort, Table};
use crate::view::Backends;

fn endpoint(node: &str) -> Endpoint {
    Endpoint {
        address: "10.42.1.7".parse().unwrap(),
        port: 8080,
        node: node.into(),
        zone: String::new(),
        hostname: String::new(),
        ready: true,
        serving: true,
        terminating: false,
    }
}

fn service(name: &str, node_port: u16, node: &str) -> Service {
    Service {
        namespace: "default".into(),
        name: name.into(),
        cluster_ips: vec!["10.43.0.2".parse().unwrap()],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(node_port),
            endpoints: vec![endpoint(node)],
        }],
        ..Service::default()
    }
}

fn check(services: Vec<Service>, host_ports: Vec<HostPort>, is_captured: bool, expected: Expect) {
    let node = Node {
        name: "me".into(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        dns_addresses: vec!["10.43.0.10".parse().unwrap()],
        ..Node::default()
    };
    let table = Table { node, services, host_ports, ..Table::default() };
    let view = View::new(Arc::new(table), &mut Backends::new());
    let (open, conflicts) = wanted(&view, is_captured);
    let mut text = String::new();
    for (bind, (entry, _)) in open {
        text += &format!("{} {} {entry:?}\n", bind.protocol, bind.address);
    }
    for conflict in conflicts {
        text += &format!("conflict of {:?}: {}\n", conflict.service, conflict.message);
    }
    expected.assert_eq(&text);
}

#[test]
fn node_ports_are_open_where_something_answers() {
    check(
        vec![service("web", 30080, "far")],
        vec![],
        true,
        expect![[r#"
            TCP 0.0.0.0:30080 NodePort(30080)
        "#]],
    );
    let mut empty = service("web", 30080, "far");
    empty.ports[0].endpoints.clear();
    check(vec![empty], vec![], true, expect![""]);
}

#[test]
fn with_the_policy_local_they_are_open_where_an_endpoint_is_and_the_check_always() {
    let of = |node: &str| Service {
        external_local: true,
        health_port: Some(31000),
        ..service("web", 30080, node)
    };
    check(
        vec![of("far")],
        vec![],
        true,
        expect![[r#"
            TCP 0.0.0.0:31000 Health("default", "web")
        "#]],
    );
    check(
        vec![of("me")],
        vec![],
        true,
        expect![[r#"
            TCP 0.0.0.0:30080 NodePort(30080)
            TCP 0.0.0.0:31000 Health("default", "web")
        "#]],
    );
}

#[test]
fn addresses_for_clients_outside_are_open_where_they_are_the_nodes() {
    let mut service = service("web", 30080, "me");
    service.cluster_ips = vec!["10.43.0.2".parse().unwrap(), "fd43::2".parse().unwrap()];
    service.external_ips = vec!["192.0.2.1".parse().unwrap(), "203.0.113.9".parse().unwrap()];
    check(
        vec![service],
        vec![],
        true,
        expect![[r#"
            TCP 0.0.0.0:30080 NodePort(30080)
            TCP 192.0.2.1:80 External(192.0.2.1, 80)
            TCP [::]:30080 NodePort(30080)
        "#]],
    );
}

#[test]
fn the_first_that_asks_has_a_port_and_the_other_is_told() {
    let port = |pod: &str| HostPort {
        protocol: Protocol::Tcp,
        port: 30080,
        host_ip: None,
        pod: pod.parse().unwrap(),
        pod_port: 80,
    };
    check(
        vec![service("web", 30080, "me")],
        vec![port("10.42.1.7")],
        true,
        expect![[r#"
            TCP 0.0.0.0:30080 NodePort(30080)
            conflict of "": port 30080/TCP of the node is asked for by the Service default/web already
        "#]],
    );
}

#[test]
fn without_capturing_services_have_listeners_of_their_own() {
    check(
        vec![service("web", 30080, "me")],
        vec![],
        false,
        expect![[r#"
            TCP 0.0.0.0:30080 NodePort(30080)
            TCP 10.43.0.2:80 Asked
            TCP 10.43.0.10:53 Asked
            UDP 10.43.0.10:53 Asked
        "#]],
    );
}
