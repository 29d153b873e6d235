//! Sockets: a component has the pod's network, and no other.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use runtime::{Mount, Runtime};

use crate::node::Node;

tests! {
    a_component_serves_and_dials,
    datagrams_come_and_go,
    names_are_looked_up_in_the_pods_files,
    the_machines_own_network_is_out_of_reach,
}

async fn a_component_serves_and_dials(node: &Node<'_>) {
    let runtime = node.runtime();
    for address in ["0.0.0.0:4711", "127.0.0.1:4712"] {
        let spec = node.spec(&node.guests.component, &["serve", address]);
        let id = spec.id.clone();
        let _ = fs::remove_file(node.path("guest.log"));
        runtime.start(spec).await.unwrap();
        node.until_log("listening on").await;
        let port = address.rsplit(':').next().unwrap().to_owned();
        let answer = node.in_pod(move || {
            let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
            stream.write_all(b"ping").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(answer.await, "pong");
        assert_eq!(node.until_exit(&runtime, &id).await.code, 0, "{}", node.log());
        assert!(node.log().contains("serve: done"), "{}", node.log());
        runtime.remove(&id).await.unwrap();
    }
    let server = node.in_pod(|| TcpListener::bind("127.0.0.1:0").unwrap()).await;
    let address = server.local_addr().unwrap().to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut ping = [0; 4];
        stream.read_exact(&mut ping).unwrap();
        stream.write_all(b"pong").unwrap();
    });
    let (exit, log) = node.run(node.spec(&node.guests.component, &["dial", &address])).await;
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.contains("received pong"), "{log}");
    answering.join().unwrap();
}

async fn datagrams_come_and_go(node: &Node<'_>) {
    let runtime = node.runtime();
    let spec = node.spec(&node.guests.component, &["udp-serve", "0.0.0.0:4713"]);
    let id = spec.id.clone();
    runtime.start(spec).await.unwrap();
    node.until_log("waiting on").await;
    let answer = node.in_pod(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"ping", "127.0.0.1:4713").unwrap();
        let mut answer = [0; 16];
        let (n, _) = socket.recv_from(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    });
    assert_eq!(answer.await, "pong");
    assert_eq!(node.until_exit(&runtime, &id).await.code, 0, "{}", node.log());
    runtime.remove(&id).await.unwrap();
}

async fn names_are_looked_up_in_the_pods_files(node: &Node<'_>) {
    fs::write(node.path("hosts"), "127.0.0.9 somewhere\n").unwrap();
    let mut spec =
        node.spec(&node.guests.component, &["resolve", "somewhere", "resolve", "nowhere"]);
    spec.mounts.push(Mount {
        source: node.path("hosts"),
        destination: "/etc/hosts".to_owned(),
        read_only: true,
        ..Default::default()
    });
    let (exit, log) = node.run(spec).await;
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.contains("resolved [127.0.0.9:80]"), "{log}");
    assert!(log.contains("resolve: "), "{log}");
}

async fn the_machines_own_network_is_out_of_reach(node: &Node<'_>) {
    // On the host's loopback: the pod has another.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (_, log) = node.run(node.spec(&node.guests.component, &["dial", &address])).await;
    assert!(log.contains("dial: ConnectionRefused"), "{log}");
    // Preview 1 has no sockets to open.
    let (_, log) = node.run(node.spec(&node.guests.module, &["dial", &address])).await;
    assert!(log.contains("dial: Unsupported"), "{log}");
}
