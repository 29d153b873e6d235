//! How Services behave while their endpoints change.
#![allow(clippy::unwrap_used)] // In helpers of tests.

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proxy::control::Capture;
use proxy::table::{Endpoint, Protocol, Service, Table};

use world::*;

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;

/// Serves TCP at a pod: says which pod it is, then echoes.
fn serve_named(world: &World, pod: usize) -> String {
    let address = SocketAddr::new(pod_address(pod), 8080);
    let listener = world.pods[pod].within(|| TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let _ = writeln!(stream, "pod {pod}");
                let mut piece = [0; 4096];
                while let Ok(n) = stream.read(&mut piece) {
                    if n == 0 || stream.write_all(&piece[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address.to_string()
}

fn serve_named_udp(world: &World, pod: usize) -> String {
    let address = SocketAddr::new(pod_address(pod), 8053);
    let socket = world.pods[pod].within(|| UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        while let Ok((_, peer)) = socket.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(format!("pod {pod}").as_bytes(), peer);
        }
    });
    address.to_string()
}

/// Everything is there and one thing changes: a Service without an endpoint that had it.
fn changed(table: &Table, generation: u64, change: impl FnOnce(&mut Table)) -> Table {
    let mut table = table.clone();
    table.generation = generation;
    change(&mut table);
    table
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_cannot_be_reached() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let endpoints = [serve_named(&world, 1), serve_named(&world, 2)];
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut web = service("web", TCP, "10.43.0.20:80", &endpoints);
    web.affinity_s = Some(60);
    let all = table(1, vec![web]);
    plane.apply(&all);
    let client = &world.pods[0];
    let first = ask(client, "10.43.0.20:80").unwrap();
    for _ in 0..20 {
        assert_eq!(ask(client, "10.43.0.20:80").unwrap(), first);
    }
    // It is no endpoint any more, then it is one again.
    let without = changed(&all, 2, |table| {
        table.services[0].ports[0].endpoints.retain(|endpoint| {
            format!("pod {}", if endpoint.address == pod_address(1) { 1 } else { 2 }) != first
        });
    });
    plane.apply(&without);
    let second = ask(client, "10.43.0.20:80").unwrap();
    assert_ne!(second, first);
    plane.apply(&changed(&all, 3, |_| ()));
    for _ in 0..20 {
        assert_eq!(ask(client, "10.43.0.20:80").unwrap(), second);
    }
    plane.leave();
}

#[test]
fn connections_go_where_there_are_fewer() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let endpoints = [serve_named(&world, 1), serve_named(&world, 2)];
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    plane.apply(&table(1, vec![service("web", TCP, "10.43.0.20:80", &endpoints)]));
    let mut held = Vec::new();
    let mut at_first = 0;
    for _ in 0..40 {
        let mut stream = BufReader::new(connect(&world.pods[0], "10.43.0.20:80").unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        at_first += u32::from(line.trim() == "pod 1");
        held.push(stream);
    }
    assert_eq!(at_first, 20, "of two endpoints, the one with fewer connections");
    plane.leave();
}

#[test]
fn connections_of_an_endpoint_that_is_gone_end_and_others_do_not() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let endpoints = [serve_named(&world, 1), serve_named(&world, 2)];
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let web = |n: usize| {
        service(["one", "two"][n], TCP, ["10.43.0.21:80", "10.43.0.22:80"][n], &[&endpoints[n]])
    };
    let all = table(1, vec![web(0), web(1)]);
    plane.apply(&all);
    let mut streams = ["10.43.0.21:80", "10.43.0.22:80"].map(|to| {
        let mut stream = BufReader::new(connect(&world.pods[0], to).unwrap());
        stream.read_line(&mut String::new()).unwrap();
        stream
    });
    // Not ready is not gone: its connections go on, new ones are refused.
    plane.apply(&changed(&all, 2, |table| {
        for service in &mut table.services {
            let endpoint = &mut service.ports[0].endpoints[0];
            *endpoint = Endpoint { ready: false, serving: false, ..endpoint.clone() };
        }
    }));
    ask(&world.pods[0], "10.43.0.21:80").unwrap_err();
    for stream in &mut streams {
        echo(stream, b"not ready").unwrap();
    }
    plane.apply(&changed(&all, 3, |table| {
        table.services[0].ports[0].endpoints.clear();
        table.pods.retain(|pod| pod.addresses[0] != pod_address(1));
    }));
    let [gone, stays] = &mut streams;
    let error = gone.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    echo(stays, b"still here").unwrap();
    plane.leave();
}

#[test]
fn datagrams_move_at_once() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let endpoints = [serve_named_udp(&world, 1), serve_named_udp(&world, 2)];
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let dns = |n: usize| service("dns", UDP, "10.43.0.20:53", &[&endpoints[n]]);
    plane.apply(&table(1, vec![dns(0)]));
    let socket = world.pods[0].within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    world.pods[0].within(|| socket.connect("10.43.0.20:53")).unwrap();
    let ask = || {
        socket.send(b"who").unwrap();
        let mut answer = [0; 20];
        let n = socket.recv(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    for generation in 2..12 {
        let n = usize::try_from(generation % 2).unwrap();
        plane.apply(&table(generation, vec![dns(n)]));
        assert_eq!(ask(), format!("pod {}", n + 1));
    }
    plane.leave();
}

#[test]
fn a_rolling_update_loses_no_connection() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let names = [serve_named(&world, 1), serve_named(&world, 2)];
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let of = |generation, first: Option<&str>, second: Option<&str>| {
        let mut endpoints = Vec::new();
        for (name, state) in names.iter().zip([first, second]) {
            let Some(state) = state else { continue };
            endpoints.push(Endpoint {
                ready: state == "ready",
                terminating: state == "ends",
                ..endpoint(name)
            });
        }
        let mut web = service("web", TCP, "10.43.0.20:80", &[]);
        web.ports[0].endpoints = endpoints;
        table(generation, vec![web])
    };
    plane.apply(&of(1, Some("ready"), None));
    let (stop, n_asked) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            world.pods[0].within(|| {
                while !stop.load(Ordering::Relaxed) {
                    ask(&world.pods[0], "10.43.0.20:80").unwrap();
                    n_asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let steps = [
            (Some("ready"), Some("not")),
            (Some("ready"), Some("ready")),
            (Some("ends"), Some("ready")),
            (None, Some("ready")),
            (Some("ready"), Some("ends")),
            (Some("ends"), Some("not")),
            (Some("ready"), None),
        ];
        for (generation, (first, second)) in (2..).zip(steps.into_iter().cycle().take(70)) {
            let asked = n_asked.load(Ordering::Relaxed);
            plane.apply(&of(generation, first, second));
            while n_asked.load(Ordering::Relaxed) < asked + 5 && !asking.is_finished() {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    plane.leave();
}

#[test]
fn clients_outside_are_served_by_local_endpoints_alone_where_the_service_says_so() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let one = serve_named(&world, 1);
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    let of = |generation, endpoints: &[&str]| {
        let mut web = service("web", TCP, "10.43.0.20:80", endpoints);
        web.ports[0].node_port = Some(30080);
        let external_ips = vec![NODE.parse().unwrap()];
        let web = Service { external_local: true, health_port: Some(31000), external_ips, ..web };
        table(generation, vec![web])
    };
    let health = || {
        let mut stream = connect(&world.outside, "192.0.2.1:31000").unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    plane.apply(&of(1, &[&one, "10.42.2.7:80"]));
    for _ in 0..10 {
        assert_eq!(ask(&world.outside, "192.0.2.1:30080").unwrap(), "pod 1");
        assert_eq!(ask(&world.outside, "192.0.2.1:80").unwrap(), "pod 1");
    }
    assert!(health().starts_with("HTTP/1.1 200"), "{}", health());
    assert!(health().contains("\"localEndpoints\": 1"), "{}", health());
    plane.apply(&of(2, &["10.42.2.7:80"]));
    for to in ["192.0.2.1:30080", "192.0.2.1:80"] {
        let error = ask(&world.outside, to).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
    }
    assert!(health().starts_with("HTTP/1.1 503"), "{}", health());
    assert!(ask(&world.pods[0], "10.43.0.20:80").unwrap().ends_with("at far"));
    plane.leave();
}
