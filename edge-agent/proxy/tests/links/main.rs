//! Nodes that reach each other: over QUIC, over TLS, through a relay; what each
//! takes of the other, and what becomes of it when the network changes.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by where it panics")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers are below 256"
)]

mod harness;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use harness::{
    BREAK, COUNT, Ca, Cable, ECHO, Master, Node, PATIENCE, REFUSED, Setup, TALLY, echo, firewall,
    flow, inside, introduce, open, path, table_node, until,
};
use proxy::links::{Flow, Links};
use proxy::table::{Protocol, Table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const FIRST: &str = "127.0.0.1";
const SECOND: &str = "127.0.0.2";

fn two_nodes() -> (Ca, Node, Node) {
    let (ca, master) = (Ca::new(), Arc::<Master>::default());
    let a = Setup::new(&ca, &master).at([127, 0, 0, 1]).start(1);
    let b = Setup::new(&ca, &master).at([127, 0, 0, 2]).start(2);
    introduce(&[(&a, FIRST), (&b, SECOND)]);
    (ca, a, b)
}

#[tokio::test]
async fn connections_go_both_ways_over_one_link() {
    let (_ca, a, b) = two_nodes();
    assert!(a.tunnel.paths().is_empty(), "nothing is dialled before it is wanted");
    echo(&a, &b, 3 << 20).await;
    echo(&b, &a, 3 << 20).await;
    for (node, peer) in [(&a, &b), (&b, &a)] {
        let path = path(node, peer);
        assert_eq!((path.lane.as_str(), path.why.as_str()), ("quic", ""));
        assert!(path.rtt_us > 0 && path.tx_bytes > 6 << 20 && path.rx_bytes > 6 << 20, "{path:?}");
    }
    let flows = b.pods.flows.lock().unwrap().clone();
    assert_eq!(flows, [("node-1".to_owned(), flow(1, 2, ECHO))]);
    until("all is closed", || (path(&a, &b).lane == "quic").then_some(())).await;
}

#[tokio::test]
async fn each_direction_ends_by_itself_and_a_break_is_no_end() {
    let (_ca, a, b) = two_nodes();
    let mut stream = open(&a, &b, COUNT).await.unwrap();
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "100000");

    let broken = async {
        let mut answer = Vec::new();
        open(&a, &b, BREAK).await?.read_to_end(&mut answer).await
    };
    let problem = timeout(PATIENCE, broken).await.unwrap().unwrap_err();
    assert_eq!(problem.kind(), io::ErrorKind::ConnectionReset, "{problem}");

    // The other way round: the pod is told that its client has gone.
    let mut stream = open(&a, &b, TALLY).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_u8().await.unwrap();
    drop(stream);
    let n_open = b.pods.n_open.clone();
    let is_over = || (n_open.load(std::sync::atomic::Ordering::SeqCst) == 0).then_some(());
    until("no connection is left", is_over).await;
}

#[tokio::test]
async fn many_connections_at_once() {
    let (_ca, a, b) = two_nodes();
    let echoes = (0..64).map(|at| echo(&a, &b, 10_000 + at * 997));
    let back = (0..64).map(|at| echo(&b, &a, 10_000 + at * 997));
    let echoes = echoes.map(|echo| Box::pin(echo) as std::pin::Pin<Box<dyn Future<Output = ()>>>);
    let back = back.map(|echo| Box::pin(echo) as std::pin::Pin<Box<dyn Future<Output = ()>>>);
    let mut all: Vec<_> = echoes.chain(back).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|echo| echo.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    // More than QUIC allows at first.
    let mut open_ones = Vec::new();
    for _ in 0..600 {
        open_ones.push(open(&a, &b, ECHO).await.unwrap());
    }
    for stream in &mut open_ones {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn what_is_refused_there_is_refused_here() {
    let (_ca, a, b) = two_nodes();
    let refused = open(&a, &b, REFUSED).await.err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(refused.to_string().contains("10.42.2.9:9 on node node-2"), "{refused}");
    let unknown = a.tunnel.open("node-9", flow(1, 9, ECHO)).await.err().unwrap();
    assert_eq!(unknown.kind(), io::ErrorKind::HostUnreachable);
    assert!(unknown.to_string().contains("node-9"), "{unknown}");
}

#[tokio::test]
async fn a_node_speaks_for_its_own_pods_only() {
    let (_ca, a, b) = two_nodes();
    let lies = [
        Flow { source: flow(3, 2, ECHO).source, ..flow(1, 2, ECHO) },
        Flow { source: flow(2, 2, ECHO).source, ..flow(1, 2, ECHO) },
        Flow { is_external: true, ..flow(1, 2, ECHO) },
        flow(1, 3, ECHO),
        Flow { destination: "127.0.0.1:22".parse().unwrap(), ..flow(1, 2, ECHO) },
        Flow { protocol: Protocol::Udp, ..flow(1, 2, ECHO) },
    ];
    for lie in lies {
        let problem = a.tunnel.open("node-2", lie).await.err().unwrap();
        assert_eq!(problem.kind(), io::ErrorKind::PermissionDenied, "{lie:?}: {problem}");
        let lie = Flow {
            protocol: if lie.protocol == Protocol::Udp { Protocol::Tcp } else { Protocol::Udp },
            ..lie
        };
        assert!(a.tunnel.send("node-2", lie, b"lie"));
    }
    assert!(b.pods.flows.lock().unwrap().is_empty());
    until("all are counted", || (b.tunnel.n_rejected() == 12).then_some(())).await;
    assert!(b.pods.datagrams.lock().unwrap().is_empty());
    // From outside through a port of the node, and from the node itself.
    let outside =
        Flow { source: "203.0.113.7:5".parse().unwrap(), is_external: true, ..flow(1, 2, REFUSED) };
    let own = Flow { source: "127.0.0.1:5".parse().unwrap(), ..flow(1, 2, REFUSED) };
    for allowed in [outside, own] {
        let problem = a.tunnel.open("node-2", allowed).await.err().unwrap();
        assert_eq!(problem.kind(), io::ErrorKind::ConnectionRefused, "{problem}");
    }
}

#[tokio::test]
async fn datagrams_arrive_whole_short_and_long_the_first_of_them_too() {
    let (_ca, a, _b) = two_nodes();
    for n_bytes in [0, 1, 512, 1100, 1300, 9000, 65_507] {
        let flow = Flow { protocol: Protocol::Udp, ..flow(1, 2, ECHO) };
        let sent: Vec<u8> = (0..n_bytes).map(|at| (at % 250) as u8).collect();
        assert!(a.tunnel.send("node-2", flow, &sent), "{n_bytes}");
        let back = Flow { source: flow.destination, destination: flow.source, ..flow };
        let expected = ("node-2".to_owned(), back, sent);
        until("the answer is back", || {
            a.pods.datagrams.lock().unwrap().contains(&expected).then_some(())
        })
        .await;
    }
    assert!(!a.tunnel.send("node-9", flow(1, 9, ECHO), b"x"));
}

#[tokio::test]
async fn a_stranger_and_one_that_was_removed_are_not_let_in() {
    let (ca, other_ca, master) = (Ca::new(), Ca::new(), Arc::<Master>::default());
    let a = Setup::new(&ca, &master).at([127, 0, 0, 1]).start(1);
    let b = Setup::new(&ca, &master).at([127, 0, 0, 2]).start(2);
    let stranger = Setup::new(&other_ca, &Arc::default()).at([127, 0, 0, 3]).start_as(3, "node-2");
    // The stranger is at node 2's place, and says that it is node 2.
    let mut fake = Setup::new(&ca, &Arc::default()).at([127, 0, 0, 4]).start_as(2, "node-2");
    introduce(&[(&a, FIRST), (&stranger, "127.0.0.3")]);
    let problem = open(&a, &stranger, ECHO).await.err().unwrap();
    assert!(problem.to_string().contains("quic 127.0.0.3"), "{problem}");
    assert!(problem.to_string().contains("certificate"), "{problem}");
    let problem = open(&stranger, &a, ECHO).await.err().unwrap();
    assert!(problem.to_string().contains("node-1 cannot be reached"), "{problem}");
    // Of the same cluster, but another node.
    fake.number = 3;
    let misnamed = Setup::new(&ca, &Arc::default()).at([127, 0, 0, 5]).start_as(3, "node-3");
    introduce(&[(&a, FIRST), (&misnamed, "127.0.0.4")]);
    let mut table = Table { node: table_node(1, FIRST), ..Table::default() };
    table.peers.push(proxy::table::Peer {
        name: "node-3".into(),
        pod_cidrs: vec![harness::pods_of(3)],
        addresses: vec!["127.0.0.4".parse().unwrap()],
        port: fake.tunnel.port(),
        zone: String::new(),
    });
    a.tunnel.set_table(&table);
    let problem = open(&a, &misnamed, ECHO).await.err().unwrap();
    assert!(problem.to_string().contains("\"node-2\" answers where \"node-3\""), "{problem}");

    introduce(&[(&a, FIRST), (&b, SECOND)]);
    let mut stream = open(&a, &b, ECHO).await.unwrap();
    b.tunnel.set_table(&Table { node: table_node(2, SECOND), ..Table::default() });
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap_err();
    let problem = until("it is known to be gone", || {
        let path = path(&a, &b);
        (path.lane != "quic").then_some(path)
    });
    problem.await;
    let problem = open(&a, &b, ECHO).await.err().unwrap();
    assert!(problem.to_string().contains("not known there"), "{problem}");
}

#[tokio::test]
async fn two_that_dial_each_other_at_once_agree_on_one_link() {
    let (_ca, a, b) = two_nodes();
    tokio::join!(echo(&a, &b, 1000), echo(&b, &a, 1000));
    for _ in 0..4 {
        tokio::join!(echo(&a, &b, 1000), echo(&b, &a, 1000));
    }
    let (near, far) = (path(&a, &b), path(&b, &a));
    assert_eq!((near.lane.as_str(), far.lane.as_str()), ("quic", "quic"));
}

#[tokio::test]
async fn a_link_that_nobody_uses_is_closed_and_made_again() {
    let (ca, master) = (Ca::new(), Arc::<Master>::default());
    let mut setup = Setup::new(&ca, &master).at([127, 0, 0, 1]);
    setup.idle = Duration::from_millis(1);
    let a = setup.start(1);
    let b = Setup::new(&ca, &master).at([127, 0, 0, 2]).start(2);
    introduce(&[(&a, FIRST), (&b, SECOND)]);
    for _ in 0..2 {
        echo(&a, &b, 1000).await;
        until("it is closed", || (path(&a, &b).lane.is_empty()).then_some(())).await;
        until("it is closed there", || (path(&b, &a).lane.is_empty()).then_some(())).await;
    }
}

#[tokio::test]
async fn another_certificate_is_used_for_new_links() {
    let (ca, a, b) = two_nodes();
    echo(&a, &b, 1000).await;
    let (new_ca, master) = (Ca::new(), Arc::<Master>::default());
    // Both believe both while the CA is replaced.
    for node in [&a, &b] {
        let mut identity = new_ca.identity(&node.name);
        identity.cas.extend(ca.identity("x").cas);
        node.tunnel.set_identity(identity).unwrap();
    }
    echo(&a, &b, 1000).await;
    let c = Setup::new(&new_ca, &master).at([127, 0, 0, 3]).start(3);
    introduce(&[(&a, FIRST), (&b, SECOND), (&c, "127.0.0.3")]);
    echo(&a, &c, 1000).await;
    echo(&c, &b, 1000).await;
}

#[tokio::test]
async fn who_leaves_serves_what_is_open_and_gets_nothing_new() {
    let (_ca, a, b) = two_nodes();
    let mut stream = open(&a, &b, ECHO).await.unwrap();
    b.tunnel.leave();
    until("it is known", || (path(&a, &b).lane != "quic").then_some(())).await;
    stream.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");
    let problem = open(&a, &b, ECHO).await.err().unwrap();
    assert!(problem.to_string().contains("node-2 cannot be reached"), "{problem}");
}

fn cabled() -> (Cable, Arc<Master>, Node, Node) {
    let (ca, master) = (Ca::new(), Arc::<Master>::default());
    let cable = Cable::new();
    let soon = Duration::from_secs(1);
    let setup = || Setup::new(&ca, &master).review(soon).listen("0.0.0.0:7443");
    let a = setup().within(&cable.a).start(1);
    let b = setup().within(&cable.b).start(2);
    introduce(&[(&a, "10.99.0.1"), (&b, "10.99.0.2")]);
    (cable, master, a, b)
}

#[tokio::test]
async fn tls_where_udp_is_blocked_and_quic_again_when_it_is_not() {
    let (cable, _master, a, b) = cabled();
    firewall(&cable.b, Some("meta l4proto udp"));
    echo(&a, &b, 3 << 20).await;
    echo(&b, &a, 3 << 20).await;
    let found = path(&a, &b);
    assert_eq!((found.lane.as_str(), found.remote.as_str()), ("tls", "10.99.0.2:7443"));
    let mut stream = open(&a, &b, ECHO).await.unwrap();
    let flow = Flow { protocol: Protocol::Udp, ..flow(1, 2, ECHO) };
    assert!(a.tunnel.send("node-2", flow, &[5; 20_000]));
    until("the datagram is back", || (!a.pods.datagrams.lock().unwrap().is_empty()).then_some(()))
        .await;
    until("it is said why", || path(&a, &b).why.contains("quic 10.99.0.2:7443").then_some(()))
        .await;
    firewall(&cable.b, None);
    until("quic is found", || (path(&a, &b).lane == "quic").then_some(())).await;
    // What was open stays where it is.
    stream.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");
    echo(&a, &b, 1000).await;
}

#[tokio::test]
async fn through_the_master_where_nothing_else_passes_and_it_reads_nothing() {
    let (cable, master, a, b) = cabled();
    firewall(&cable.a, Some("meta l4proto { tcp, udp }"));
    firewall(&cable.b, Some("meta l4proto { tcp, udp }"));
    echo(&a, &b, 1 << 20).await;
    echo(&b, &a, 1000).await;
    let found = path(&b, &a);
    assert_eq!((found.lane.as_str(), found.remote.as_str()), ("relay", ""));
    let secret = b"a secret that is not for the relay";
    let mut stream = open(&a, &b, ECHO).await.unwrap();
    stream.write_all(secret).await.unwrap();
    let mut got = vec![0; secret.len()];
    stream.read_exact(&mut got).await.unwrap();
    let seen = master.seen.lock().unwrap().clone();
    assert!(seen.len() > 2 << 20, "{}", seen.len());
    assert!(!seen.windows(secret.len()).any(|window| window == secret));
    firewall(&cable.a, None);
    firewall(&cable.b, None);
    until("the direct way is found", || (path(&a, &b).lane == "quic").then_some(())).await;
    stream.write_all(secret).await.unwrap();
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, secret);
}

#[tokio::test]
async fn a_node_behind_nat_is_reached_over_what_it_dialled() {
    let (cable, master, a, b) = cabled();
    firewall(&cable.a, Some("ct state new"));
    echo(&a, &b, 1000).await;
    echo(&b, &a, 1000).await;
    assert_eq!(path(&b, &a).lane, "quic");
    assert!(master.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_node_behind_nat_that_is_called_through_the_master_calls_back() {
    let (cable, master, a, b) = cabled();
    firewall(&cable.a, Some("ct state new"));
    echo(&b, &a, 1000).await;
    until("the direct way is found", || (path(&b, &a).lane == "quic").then_some(())).await;
    assert!(!master.seen.lock().unwrap().is_empty());
    echo(&b, &a, 1000).await;
}

#[tokio::test]
async fn connections_outlive_a_new_address_of_who_dialled() {
    let (cable, _master, a, b) = cabled();
    let mut stream = open(&a, &b, TALLY).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u64_le().await.unwrap(), 1);
    inside(&cable.a, "ip address del 10.99.0.1/24 dev cable");
    inside(&cable.a, "ip address add 10.99.0.7/24 dev cable");
    introduce(&[(&a, "10.99.0.7"), (&b, "10.99.0.2")]);
    stream.write_all(b"y").await.unwrap();
    let tally = timeout(PATIENCE, stream.read_u64_le()).await.unwrap().unwrap();
    assert_eq!(tally, 2);
    echo(&a, &b, 100_000).await;
    echo(&b, &a, 100_000).await;
    assert_eq!(path(&b, &a).remote, "10.99.0.7:7443");
}

#[tokio::test]
async fn a_node_is_found_again_where_it_is_now() {
    let (cable, _master, a, b) = cabled();
    echo(&a, &b, 1000).await;
    inside(&cable.b, "ip address del 10.99.0.2/24 dev cable");
    inside(&cable.b, "ip address add 10.99.0.8/24 dev cable");
    introduce(&[(&a, "10.99.0.1"), (&b, "10.99.0.8")]);
    echo(&a, &b, 1000).await;
    echo(&b, &a, 1000).await;
    assert_eq!(path(&a, &b).remote, "10.99.0.8:7443");
}

/// How soon a node that was killed is found again, and what was open is known to be
/// broken.
async fn killed(same_key: bool, blocked: Option<&str>) {
    let (ca, master) = (Ca::new(), Arc::<Master>::default());
    let cable = Cable::new();
    let setup = |name: &'static str| {
        let keep_alive = Duration::from_secs(if same_key { 100 } else { 2 });
        (name, Setup::new(&ca, &master).listen("0.0.0.0:7443").keep_alive(keep_alive))
    };
    let start = |(name, setup): (&str, Setup<'_>), within, number| {
        let setup = Setup { namespace: Some(within), ..setup };
        setup.start_as(number, name)
    };
    let a = start(setup("node-1"), &cable.a, 1);
    let b = start(setup("node-2"), &cable.b, 2);
    firewall(&cable.b, blocked);
    introduce(&[(&a, "10.99.0.1"), (&b, "10.99.0.2")]);
    let mut stream = open(&a, &b, ECHO).await.unwrap();
    inside(&cable.b, "ip link set cable down");
    drop(b);
    inside(&cable.b, "ip link set cable up");
    if !same_key {
        ca.forget("node-2");
    }
    let b = start(setup("node-2"), &cable.b, 2);
    introduce(&[(&a, "10.99.0.1"), (&b, "10.99.0.2")]);
    echo(&a, &b, 1000).await;
    stream.write_all(b"x").await.ok();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_node_that_was_killed_says_at_once_that_it_has_forgotten() {
    killed(true, None).await;
    killed(true, Some("meta l4proto udp")).await;
}

#[tokio::test]
async fn a_node_that_is_made_anew_is_found_by_the_silence_of_the_old_one() {
    killed(false, None).await;
}

#[tokio::test]
async fn connections_outlive_an_upgrade_and_new_ones_go_to_the_successor() {
    let (ca, master) = (Ca::new(), Arc::<Master>::default());
    let cable = Cable::new();
    let setup = || Setup::new(&ca, &master).listen("[::]:7443");
    let a = setup().within(&cable.a).start(1);
    let old = setup().within(&cable.b).start(2);
    introduce(&[(&a, "10.99.0.1"), (&old, "10.99.0.2")]);
    let mut first = open(&a, &old, TALLY).await.unwrap();
    let mut back = open(&old, &a, TALLY).await.unwrap();
    let mut previous = old;
    for n_round in 1..=3 {
        let new = setup().within(&cable.b).start(2);
        introduce(&[(&a, "10.99.0.1"), (&new, "10.99.0.2")]);
        previous.tunnel.leave();
        until("it is known", || path(&a, &previous).lane.is_empty().then_some(())).await;
        for _ in 0..20 {
            echo(&a, &new, 10_000).await;
            echo(&new, &a, 10_000).await;
        }
        assert_eq!(path(&a, &new).lane, "quic");
        assert_eq!(new.pods.flows.lock().unwrap().len(), 20, "all at the successor");
        if n_round == 1 {
            for stream in [&mut first, &mut back] {
                for n_bytes in 1..=20 {
                    stream.write_all(b"x").await.unwrap();
                    let tally = timeout(PATIENCE, stream.read_u64_le()).await.unwrap().unwrap();
                    assert_eq!(tally, n_bytes);
                }
            }
        }
        // What it has is broken by its end, and the next begins.
        previous = new;
    }
}
