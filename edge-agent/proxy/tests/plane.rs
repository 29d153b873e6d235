//! The data plane in network namespaces: a node, three pods and a neighbour, each
//! with its own; once for each way of capturing.
#![allow(clippy::unwrap_used)] // In helpers of tests.

mod world;

use std::io::{self, BufReader};
use std::net::IpAddr;

use proxy::control::Capture;
use proxy::table::{HostPort, Policy, PolicyPeer, Protocol, Rule, Service, Table};

use world::*;

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;

fn is_refused<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    let kind = result.unwrap_err().kind();
    // A pod's connection is accepted before it is known where it leads.
    matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

fn is_refused_at_once<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().kind() == io::ErrorKind::ConnectionRefused
}

fn at(pod: usize, port: u16) -> String {
    format!("{}:{port}", pod_address(pod))
}

fn everything_works_where_pods_are_captured(capture: Capture) {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let before = traces(&world.node);
    let mut plane = Plane::start(&world, folder.path(), capture, true);

    let [client, server, third] = &world.pods[..] else { panic!("three pods") };
    for pod in &world.pods {
        serve_tcp(pod, "[::]:8080".parse().unwrap());
        serve_udp(pod, "0.0.0.0:8053".parse().unwrap());
    }
    serve_tcp(&world.node, "0.0.0.0:2222".parse().unwrap());
    serve_tcp(&world.outside, "0.0.0.0:8080".parse().unwrap());
    serve_udp(&world.outside, "0.0.0.0:8053".parse().unwrap());
    let one = at(1, 8080);
    let node_port = |port, service: Service| {
        let mut service = service;
        service.ports[0].node_port = Some(port);
        service
    };
    let services = vec![
        node_port(30080, service("web", TCP, "10.43.0.20:80", &[&one])),
        service("six", TCP, "[fd43::20]:80", &[&format!("[{}]:8080", pod_address6(1))]),
        service("ssh", TCP, "10.43.0.21:2222", &[&one]),
        service("empty", TCP, "10.43.0.22:80", &[]),
        service("half", TCP, "10.43.0.23:80", &[&at(1, 9), &one, &at(2, 9)]),
        service("self", TCP, "10.43.0.24:80", &[&at(0, 8080)]),
        node_port(30081, service("far", TCP, "10.43.0.25:80", &["10.42.2.7:80"])),
        service("lan", TCP, "10.43.0.26:80", &["192.0.2.9:8080"]),
        node_port(30053, service("dns", UDP, "10.43.0.27:53", &[&at(1, 8053)])),
        node_port(30054, service("udp-far", UDP, "10.43.0.28:53", &["10.42.2.7:53"])),
        service("udp-half", UDP, "10.43.0.29:53", &[&at(1, 9), &at(1, 8053)]),
        Service { is_api: true, ..service("kubernetes", TCP, "10.43.0.1:443", &[]) },
    ];
    let host_port =
        HostPort { protocol: TCP, port: 8088, host_ip: None, pod: pod_address(1), pod_port: 8080 };
    let mut all = Table { host_ports: vec![host_port], ..table(1, services) };
    let status = plane.apply(&all);
    assert_eq!((status.capture, status.degraded.as_str()), (capture, ""));
    assert_eq!(status.conflicts, []);

    let me = pod_address(0).to_string();
    let check = |from, to: &str, sees: &str| {
        let seen = ask(from, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(seen.trim_start_matches("::ffff:"), sees, "{to}");
    };
    // Services, and pods by address: the server sees the client.
    check(client, "10.43.0.20:80", &me);
    check(client, &one, &me);
    check(client, "[fd43::20]:80", &pod_address6(0).to_string());
    check(client, "10.43.0.23:80", &me);
    check(client, "10.43.0.24:80", GATEWAY);
    check(client, "10.43.0.25:80", &format!("{me} at far"));
    check(client, "10.42.2.7:80", &format!("{me} at far"));
    check(client, "10.43.0.26:80", NODE);
    check(client, "192.0.2.9:8080", NODE);
    check(client, "10.43.0.1:443", "master pinnace-api/1");
    check(client, "10.43.0.10:53", &format!("{me} asks"));
    // The node itself.
    check(&world.node, "10.43.0.20:80", GATEWAY);
    check(&world.node, "10.42.2.7:80", &format!("{GATEWAY} at far"));
    check(&world.node, &one, GATEWAY);
    // A neighbour, at the node's ports.
    check(&world.outside, "192.0.2.1:30080", OUTSIDE);
    check(&world.outside, "192.0.2.1:30081", &format!("{OUTSIDE} at far"));
    check(&world.outside, "192.0.2.1:8088", OUTSIDE);
    check(client, "192.0.2.1:30080", &me);
    check(&world.node, "127.0.0.1:30080", GATEWAY);
    // The host's daemons keep their ports; the same port of a Service is another.
    check(&world.outside, "192.0.2.1:2222", OUTSIDE);
    check(client, "192.0.2.1:2222", &me);
    check(client, "10.42.1.1:2222", &me);
    check(client, "10.43.0.21:2222", &me);
    check(&world.node, "10.43.0.21:2222", GATEWAY);
    assert!(is_refused_at_once(ask(client, "10.43.0.20:2222")));
    assert!(is_refused_at_once(ask(&world.node, "10.43.0.99:2222")));
    let nobody = ask(&world.node, "10.42.1.99:2222").unwrap_err();
    assert_eq!(nobody.kind(), io::ErrorKind::HostUnreachable);
    assert!(is_refused(ask(client, "10.42.1.99:2222")));
    // Nobody there.
    assert!(is_refused_at_once(ask(client, "10.43.0.22:80")));
    assert!(is_refused(ask(client, "10.42.2.7:1")));
    assert!(is_refused(ask(client, "10.42.9.7:80")));
    assert!(is_refused(ask(client, &at(1, 9))));
    assert!(is_refused_at_once(ask_udp(client, "10.43.0.22:53", b"?")));

    // Datagrams.
    let check = |from, to: &str, text: &[u8], says: &str| {
        let answer = ask_udp(from, to, text).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(answer, says, "{to}");
    };
    check(client, "10.43.0.27:53", b"a", &format!("{me} a"));
    check(client, &at(1, 8053), b"b", &format!("{me} b"));
    check(&world.node, "10.43.0.27:53", b"c", &format!("{GATEWAY} c"));
    check(&world.node, &at(1, 8053), b"c", &format!("{GATEWAY} c"));
    check(client, "192.0.2.9:8053", b"d", &format!("{NODE} d"));
    check(client, "10.43.0.28:53", b"e", &format!("{me} at far e"));
    check(&world.node, "10.42.2.7:53", b"e", &format!("{GATEWAY} at far e"));
    check(&world.outside, "192.0.2.1:30053", b"f", &format!("{OUTSIDE} f"));
    check(&world.outside, "192.0.2.1:30054", b"g", &format!("{OUTSIDE} at far g"));
    check(client, "10.43.0.10:53", b"name", &format!("{me} asked name"));
    let large = [b'x'; 9000];
    check(client, "10.43.0.27:53", &large, &format!("{me} {}", "x".repeat(9000)));
    check(&world.outside, "192.0.2.1:30053", &large, &format!("{OUTSIDE} {}", "x".repeat(9000)));

    // A policy for the server: only the third pod may come in.
    all.generation = 2;
    let only = PolicyPeer::Pods(vec![pod_address(2)]);
    let ingress = vec![Rule { peers: Some(vec![only]), ports: None }];
    all.policies = vec![Policy { ingress, ..Policy::default() }];
    all.pods[1].ingress = Some(vec![0]);
    let kept = connect(client, "10.43.0.20:80").unwrap();
    let mut kept = BufReader::new(kept);
    let mut line = String::new();
    io::BufRead::read_line(&mut kept, &mut line).unwrap();
    plane.apply(&all);
    assert!(is_refused(ask(client, "10.43.0.20:80")));
    assert!(is_refused(ask(client, &one)));
    assert!(is_refused(ask(&world.outside, "192.0.2.1:30080")));
    let check = |from, to: &str, sees: &str| {
        assert_eq!(ask(from, to).unwrap().trim_start_matches("::ffff:"), sees, "{to}");
    };
    check(third, "10.43.0.20:80", &pod_address(2).to_string());
    check(&world.node, "10.43.0.20:80", GATEWAY);
    check(server, &at(0, 8080), &pod_address(1).to_string());
    echo(&mut kept, b"what was there before goes on").unwrap();

    // What is gone leads nowhere; what is new is there.
    all.generation = 3;
    all.services.retain(|service| service.name != "web");
    all.services.push(service("new", TCP, "10.43.0.50:80", &[&at(0, 8080)]));
    plane.apply(&all);
    assert!(is_refused_at_once(ask(third, "10.43.0.20:80")));
    assert!(is_refused_at_once(ask(&world.outside, "192.0.2.1:30080")));
    check(third, "10.43.0.50:80", &pod_address(2).to_string());

    plane.leave();
    assert_eq!(traces(&world.node), before, "nothing is left behind");
}

/// What of ours is in a namespace.
fn traces(node: &Namespace) -> String {
    let mut text = String::new();
    for command in [
        "ip rule",
        "ip -6 rule",
        "ip route show table all proto 112",
        "ip -6 route show table all proto 112",
        "ip addr show dev lo",
        "nft list tables",
        "ss -Hlntu",
    ] {
        text += &format!("# {command}\n{}", node.output(command));
    }
    // The tests' own servers.
    text.lines().filter(|line| !line.contains(":2222")).collect::<Vec<_>>().join("\n")
}

#[test]
fn everything_works_with_the_program_at_the_socket_lookup() {
    everything_works_where_pods_are_captured(Capture::SkLookup);
}

#[test]
fn everything_works_with_rules() {
    everything_works_where_pods_are_captured(Capture::Tproxy);
}

#[test]
fn services_work_with_listeners() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let before = traces(&world.node);
    let mut plane = Plane::start(&world, folder.path(), Capture::Listeners, true);
    serve_tcp(&world.pods[1], "0.0.0.0:8080".parse().unwrap());
    serve_udp(&world.pods[1], "0.0.0.0:8053".parse().unwrap());
    serve_tcp(&world.node, "0.0.0.0:2222".parse().unwrap());
    let one = at(1, 8080);
    let mut web = service("web", TCP, "10.43.0.20:80", &[&one]);
    web.ports[0].node_port = Some(30080);
    let services = vec![
        web,
        service("ssh", TCP, "10.43.0.21:2222", &[&one]),
        service("empty", TCP, "10.43.0.22:80", &[]),
        service("dns", UDP, "10.43.0.27:53", &[&at(1, 8053)]),
    ];
    let status = plane.apply(&table(1, services));
    assert_eq!(status.capture, Capture::Listeners);
    assert!(!status.degraded.is_empty());
    assert_eq!(status.conflicts.len(), 1, "{:?}", status.conflicts);
    assert!(status.conflicts[0].message.contains("2222"), "{:?}", status.conflicts);
    let client = &world.pods[0];
    assert_eq!(ask(client, "10.43.0.20:80").unwrap(), GATEWAY);
    assert_eq!(ask(&world.node, "10.43.0.20:80").unwrap(), GATEWAY);
    assert_eq!(ask(&world.outside, "192.0.2.1:30080").unwrap(), GATEWAY);
    assert_eq!(ask(&world.outside, "192.0.2.1:2222").unwrap(), OUTSIDE);
    assert!(is_refused_at_once(ask(client, "10.43.0.22:80")));
    assert_eq!(ask_udp(client, "10.43.0.27:53", b"a").unwrap(), format!("{GATEWAY} a"));
    let name = ask_udp(client, "10.43.0.10:53", b"name").unwrap();
    assert_eq!(name, format!("{} asked name", pod_address(0)));
    plane.leave();
    assert_eq!(traces(&world.node), before, "nothing is left behind");
}

#[test]
fn a_range_that_the_host_uses_is_refused_by_name() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    world.node.run("ip addr add 10.43.7.1/24 dev eth0");
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let status = plane.apply(&table(1, vec![]));
    assert_eq!(status.capture, Capture::None);
    assert!(status.degraded.contains("10.43.0.0/16"), "{}", status.degraded);
    assert!(status.degraded.contains("10.43.7."), "{}", status.degraded);
    world.node.run("ip addr del 10.43.7.1/24 dev eth0");
    let status = plane.apply(&table(2, vec![]));
    assert_eq!((status.capture, status.degraded.as_str()), (Capture::SkLookup, ""));
    plane.leave();
}

#[test]
fn a_port_that_another_program_has_is_left_to_it_and_taken_when_it_is_free() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    serve_tcp(&world.pods[1], "0.0.0.0:8080".parse().unwrap());
    let holder = world.node.within(|| std::net::TcpListener::bind("0.0.0.0:30080").unwrap());
    let mut web = service("web", TCP, "10.43.0.20:80", &[&at(1, 8080)]);
    web.ports[0].node_port = Some(30080);
    let status = plane.apply(&table(1, vec![web.clone()]));
    let conflict = &status.conflicts[0];
    assert_eq!((conflict.namespace.as_str(), conflict.service.as_str()), ("default", "web"));
    assert!(conflict.message.contains("30080"), "{}", conflict.message);
    drop(holder);
    assert_eq!(plane.apply(&table(2, vec![web])).conflicts, []);
    assert_eq!(ask(&world.outside, "192.0.2.1:30080").unwrap(), OUTSIDE);
    plane.leave();
}

#[test]
fn after_a_restart_it_serves_before_the_agent_has_spoken() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    serve_tcp(&world.pods[1], "0.0.0.0:8080".parse().unwrap());
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    plane.apply(&table(7, vec![service("web", TCP, "10.43.0.20:80", &[&at(1, 8080)])]));
    plane.leave();
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    plane.status(|status| status.generation == 7);
    let seen: IpAddr = ask(&world.pods[0], "10.43.0.20:80").unwrap().parse().unwrap();
    assert_eq!(seen, pod_address(0));
    plane.leave();
}
