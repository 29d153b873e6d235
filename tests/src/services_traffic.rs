//! Where the traffic of Services goes on three boards: who is asked, from where, and
//! what happens when boards are cut off or get other addresses. Every scenario is
//! told how boards get at what pods send, and how they reach each other.
//!
//! The usual run has each scenario once, and one for each fallback;
//! `PINNACE_FALLBACKS=all` has every scenario in every fallback.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::harness::network::{HUB, Network};
use crate::harness::pods;
use crate::harness::wait::{block_on, check, until};
use crate::harness::{World, run_program};
use crate::services::{
    BOARDS, Client, all_reach_all, client_on, drop_on, idle_on, modules_are_like_other_pods,
    names_are_answered, policies_decide, serve_on, service, web_pod, web_service,
};

/// How boards get at what pods send, and how they reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plane {
    /// The usual one: BPF, and QUIC between nodes.
    Usual,
    /// Rules of nftables in place of BPF.
    Rules,
    /// Neither: Services only.
    Listeners,
    /// No UDP from node to node.
    NoUdp,
}

impl Plane {
    fn world(self) -> World {
        let options = match self {
            Self::Usual | Self::NoUdp => "",
            Self::Rules => "--capture=tproxy",
            Self::Listeners => "--capture=listeners",
        };
        let world = World::with_nodes_that(3, options);
        if self == Self::NoUdp {
            for agent in &world.agents {
                drop_on(&world, agent.number, "udp dport 7443");
            }
        }
        world
    }

    /// Whether what pods send is captured: servers see clients, and pods reach pods.
    fn captures(self) -> bool {
        self != Self::Listeners
    }
}

/// A board's address.
fn address_of(world: &World, board: &str) -> String {
    Network::address(world.agents[world.at(board)].number)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A client that meets exactly these pods at `url`: all of them, and then no other.
#[track_caller]
fn meets(client: &Client, url: &str, expected: &[&str]) {
    let expected = set(expected);
    until(&format!("{} meets {expected:?} at {url}", client.name), || {
        let met: BTreeSet<String> = (0..6 * expected.len()).map(|_| client.who(url).0).collect();
        check(met == expected, || format!("{met:?}"))
    });
    for _ in 0..10 {
        let (met, _) = client.who(url);
        assert!(expected.contains(&met), "{} met {met} at {url}", client.name);
    }
}

/// A client that is let in nowhere at `url`.
#[track_caller]
fn is_refused(client: &Client, url: &str) {
    until(&format!("{} is refused at {url}", client.name), || {
        let answer = client.run(&format!("curl -s -m 3 http://{url}/cgi-bin/who"));
        check(answer.code != 0, || answer.out.clone())
    });
}

/// What a client at the hub, outside of the cluster, is answered: pod and address seen.
fn asked_from_outside(url: &str) -> Result<(String, String), String> {
    let answer =
        run_program("curl", &["-s", "-m", "5", "-S", &format!("http://{url}/cgi-bin/who")]);
    let mut words = answer.out.split_whitespace();
    match (words.next(), words.next()) {
        (Some(pod), Some(seen)) => {
            let seen = seen.trim_start_matches("[::ffff:").trim_end_matches(']');
            Ok((pod.to_owned(), seen.to_owned()))
        }
        _ => Err(format!("{} {}", answer.out, answer.err)),
    }
}

fn delete_pod(world: &World, name: &str) {
    world.kubectl(&format!("delete pod {name} --grace-period=0 --force")).ok();
}

fn cluster_ip(made: &Value) -> String {
    made["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// A Service of the web pods, on port 80, with these fields; returns its address.
fn web_service_that(world: &World, name: &str, fields: &Value) -> Value {
    let mut spec =
        json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    for (field, value) in fields.as_object().unwrap() {
        spec[field] = value.clone();
    }
    service(world, name, spec)
}

/// Policies of traffic, affinity, preferences, and clients outside.
fn traffic_goes_where_its_service_says(plane: Plane) {
    let world = plane.world();
    for (board, zone) in [("node-1", "barn"), ("node-2", "barn"), ("node-3", "mill")] {
        world.kubectl(&format!("label node {board} topology.kubernetes.io/zone={zone}")).ok();
    }
    serve_on(&world, &BOARDS);
    let all = ["web-node-1", "web-node-2", "web-node-3"];
    let clients = BOARDS.map(|board| client_on(&world, board));
    let made = |name: &str, fields: Value| {
        let made = web_service_that(&world, name, &fields);
        (cluster_ip(&made), made)
    };

    // A client stays with its pod; after a while of silence it is chosen anew.
    let (stays, _) = made("stays", json!({"sessionAffinity": "ClientIP"}));
    let mut kept = Vec::new();
    for client in &clients {
        let (first, _) = client.who(&stays);
        for _ in 0..12 {
            assert_eq!(client.who(&stays).0, first, "{} stays", client.name);
        }
        kept.push(first);
    }
    let brief = json!({"clientIP": {"timeoutSeconds": 1}});
    let (brief, _) =
        made("brief", json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": brief}));
    let mut met = BTreeSet::new();
    until("another pod is met after a silence", || {
        met.insert(clients[0].who(&brief).0);
        // The silence itself is what is tried.
        block_on(async { tokio::time::sleep(Duration::from_millis(1200)).await });
        check(met.len() > 1, || format!("{met:?}"))
    });

    // Clients in the cluster: their own node alone, rather, or their own site.
    let (inner, _) = made("inner", json!({"internalTrafficPolicy": "Local"}));
    let (near, _) = made("near", json!({"trafficDistribution": "PreferSameNode"}));
    let (site, _) = made("site", json!({"trafficDistribution": "PreferSameZone"}));
    for (client, own) in clients.iter().zip(all) {
        meets(client, &inner, &[own]);
        meets(client, &near, &[own]);
    }
    for (client, expected) in clients.iter().zip([&all[..2], &all[..2], &all[2..]]) {
        meets(client, &site, expected);
    }

    // Clients outside: the balancer has every node's address, or those with pods.
    let ports = |port: u16| json!([{"port": port, "targetPort": "http"}]);
    let front =
        web_service_that(&world, "front", &json!({"type": "LoadBalancer", "ports": ports(8081)}));
    let front_cluster_ip = format!("{}:8081", cluster_ip(&front));
    let front_port = front["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let (_, outer) = made(
        "outer",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports(8082)}),
    );
    let node_port = outer["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let health_port = outer["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let is_reached_at = |name: &str, boards: &[&str]| {
        let expected: BTreeSet<String> =
            boards.iter().map(|board| address_of(&world, board)).collect();
        until(&format!("{name} is reached at {boards:?}"), || {
            let made = world.api.get(&format!("/api/v1/namespaces/default/services/{name}")).ok();
            let shown = made["status"]["loadBalancer"]["ingress"].as_array();
            let shown: BTreeSet<String> = shown
                .into_iter()
                .flatten()
                .filter_map(|one| one["ip"].as_str().map(str::to_owned))
                .collect();
            check(shown == expected, || format!("{shown:?}"))
        });
    };
    is_reached_at("front", &BOARDS);
    is_reached_at("outer", &BOARDS);
    for board in BOARDS {
        let front = format!("{}:8081", address_of(&world, board));
        let mut met = BTreeSet::new();
        until(&format!("{front} leads to every pod"), || {
            let (pod, seen) = asked_from_outside(&front)?;
            assert!(!plane.captures() || seen == HUB, "{pod} saw {seen}");
            met.insert(pod);
            check(met == set(&all), || format!("{met:?}"))
        });
    }
    // The balancer lets in whom it should; other ways to the Service stay open.
    let front_at = format!("{}:8081", address_of(&world, "node-2"));
    let lets_in = |ranges: Value, is_let_in: bool| {
        let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}}).to_string();
        world.kubectl_with(&["patch", "service", "front", "-p", &patch], "").ok();
        until(&format!("from outside, with {patch}: {is_let_in}"), || {
            let answer = asked_from_outside(&front_at);
            check(answer.is_ok() == is_let_in, || format!("{answer:?}"))
        });
    };
    lets_in(json!(["192.0.2.0/24"]), false);
    if plane.captures() {
        is_refused(&clients[0], &front_at);
    }
    meets(&clients[0], &front_cluster_ip, &all);
    asked_from_outside(&format!("{}:{front_port}", address_of(&world, "node-2"))).unwrap();
    lets_in(json!(["192.0.2.0/24", format!("{HUB}/32")]), true);
    lets_in(json!(null), true);
    let leads_only_here = |board: &str| {
        let address = address_of(&world, board);
        for port in [8082, node_port] {
            let url = format!("{address}:{port}");
            until(&format!("{url} leads to its own pod"), || asked_from_outside(&url));
            for _ in 0..6 {
                let (pod, seen) = asked_from_outside(&url).unwrap();
                assert_eq!(pod, format!("web-{board}"));
                assert!(!plane.captures() || seen == HUB, "{pod} saw {seen}");
            }
        }
    };
    BOARDS.iter().for_each(|board| leads_only_here(board));
    let health = |board: &str, expected: &str| {
        let url = format!("http://{}:{health_port}/healthz", address_of(&world, board));
        until(&format!("{url} says {expected}"), || {
            let said = run_program(
                "curl",
                &["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url],
            );
            check(said.out == expected, || format!("{} {}", said.out, said.err))
        });
    };
    BOARDS.iter().for_each(|board| health(board, "200"));
    if plane.captures() {
        // A pod may ask at the balancer's address, too, and has all of its pods.
        meets(&clients[0], &format!("{}:8082", address_of(&world, "node-3")), &all);
    }

    // One board has no pod any more.
    delete_pod(&world, "web-node-3");
    is_reached_at("outer", &BOARDS[..2]);
    health("node-3", "503");
    health("node-1", "200");
    is_refused(&clients[2], &inner);
    meets(&clients[2], &near, &all[..2]);
    meets(&clients[2], &site, &all[..2]);
    meets(&clients[0], &inner, &all[..1]);
    let third = format!("{}:{node_port}", address_of(&world, "node-3"));
    until("the third board turns clients outside away", || {
        let answer = asked_from_outside(&third);
        check(answer.is_err(), || format!("{answer:?}"))
    });
    BOARDS[..2].iter().for_each(|board| leads_only_here(board));
    for (client, kept) in clients.iter().zip(kept) {
        let (now, _) = client.who(&stays);
        assert!(kept == now || kept == "web-node-3", "{} left {kept} for {now}", client.name);
        for _ in 0..5 {
            assert_eq!(client.who(&stays).0, now, "{} stays again", client.name);
        }
    }
}

/// Makes something in the network that this file names.
fn in_network<T: Send + 'static>(namespace: &Path, make: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(namespace).expect("it is there");
    let made = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        make()
    });
    made.join().unwrap()
}

/// A UDP socket in a pod's network.
fn socket_in(pod: &Client, port: u16) -> UdpSocket {
    in_network(&pod.dir.join("ns/net"), move || {
        UdpSocket::bind(("0.0.0.0", port)).expect("the pod's ports are free")
    })
}

/// Answers datagrams in a pod's network: with the pod's name, and whom it sees.
struct Responder {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    fn start(pod: &Client, port: u16) -> Self {
        let socket = socket_in(pod, port);
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (name, is_over) = (pod.name.clone(), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(format!("{name} {client}").as_bytes(), client);
                }
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Asks once: the pod that answers, and whom it sees.
fn datagram(socket: &UdpSocket, to: &str) -> Result<(String, String), String> {
    // Late answers to earlier questions count for nothing.
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    while socket.recv_from(&mut buffer).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(b"who", to).map_err(|error| error.to_string())?;
    let (n, from) = socket.recv_from(&mut buffer).map_err(|error| error.to_string())?;
    assert_eq!(from.to_string(), to, "it is answered from where it asked");
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
    let (pod, seen) = text.split_once(' ').unwrap();
    Ok((pod.to_owned(), seen.to_owned()))
}

/// Flows of datagrams: one stays with its pod, and moves on when that is gone.
fn datagrams_go_on_when_their_pod_is_replaced(plane: Plane) {
    let world = plane.world();
    let mut servers: Vec<(Client, Responder)> = BOARDS
        .iter()
        .map(|board| {
            let pod = idle_on(&world, board, "echo");
            let responder = Responder::start(&pod, 5000);
            (pod, responder)
        })
        .collect();
    let made = service(
        &world,
        "echo",
        json!({
            "type": "NodePort", "selector": {"app": "echo"},
            "ports": [{"port": 53, "targetPort": 5000, "protocol": "UDP"}],
        }),
    );
    let inside = format!("{}:53", cluster_ip(&made));
    let node_port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let outside = format!("{}:{node_port}", address_of(&world, "node-2"));
    let client = client_on(&world, "node-1");
    let near = socket_in(&client, 0);
    let far = UdpSocket::bind((HUB, 0)).unwrap();
    while !servers.is_empty() {
        for (socket, to, own) in [(&near, &inside, client.address.as_str()), (&far, &outside, HUB)]
        {
            let (first, _) = until(&format!("{to} answers"), || datagram(socket, to));
            for _ in 0..5 {
                let (pod, seen) = until(&format!("{to} answers"), || datagram(socket, to));
                assert_eq!(pod, first, "a flow stays with its pod");
                let (seen, _port) = seen.rsplit_once(':').unwrap();
                assert!(!plane.captures() || seen == own, "{pod} sees {seen}, not {own}");
            }
        }
        // The pod that answers inside goes; both flows are then with those that are left.
        let (gone, _) = until("it answers", || datagram(&near, &inside));
        delete_pod(&world, &gone);
        servers.retain(|(pod, _)| pod.name != gone);
        if servers.is_empty() {
            break;
        }
        for (socket, to) in [(&near, &inside), (&far, &outside)] {
            until(&format!("the flow to {to} has moved"), || {
                let (pod, _) = datagram(socket, to)?;
                check(pod != gone, || pod.clone())
            });
        }
    }
    // Another one comes.
    let pod = idle_on(&world, "node-2", "echo");
    let _responder = Responder::start(&pod, 5000);
    for (socket, to) in [(&near, &inside), (&far, &outside)] {
        let (met, _) = until(&format!("{to} answers again"), || datagram(socket, to));
        assert_eq!(met, pod.name);
    }
}

/// Services whose endpoints are not simply the ready pods of a selector.
fn services_lead_where_they_are_told(plane: Plane) {
    let world = plane.world();
    serve_on(&world, &BOARDS[1..2]);
    let mut late = web_pod(&world);
    late["metadata"] = json!({"name": "late", "labels": {"app": "late"}});
    late["spec"]["nodeName"] = json!("node-3");
    late["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["false"]}, "periodSeconds": 1});
    world.create_pod(&late);
    let late = world.pod_becomes("late", "runs", |pod| pod["status"]["phase"] == "Running");
    let clients = BOARDS.map(|board| client_on(&world, board));

    // Not ready, and given out all the same.
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let early = service(
        &world,
        "early",
        json!({"selector": {"app": "late"}, "ports": ports, "publishNotReadyAddresses": true}),
    );
    let later = service(&world, "later", json!({"selector": {"app": "late"}, "ports": ports}));
    service(
        &world,
        "all",
        json!({
            "selector": {"app": "late"}, "ports": ports, "publishNotReadyAddresses": true,
            "clusterIP": "None",
        }),
    );
    for client in &clients {
        meets(client, &cluster_ip(&early), &["late"]);
        is_refused(client, &cluster_ip(&later));
        let found = client.run("dig +short @10.43.0.10 all.default.svc.cluster.local").ok();
        assert_eq!(found.trim(), late["status"]["podIP"], "{}", client.name);
    }

    // What is behind it is written by hand: a server outside, then a pod.
    let by_hand = cluster_ip(&service(&world, "by-hand", json!({"ports": ports})));
    let slice = |address: &str, port: u16| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "by-hand-1", "labels": {"kubernetes.io/service-name": "by-hand"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": port}],
            "endpoints": [{"addresses": [address]}],
        })
    };
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let registry = world.registry().host();
    let (host, port) = registry.split_once(':').unwrap();
    world.api.create(path, &slice(host, port.parse().unwrap())).ok();
    for client in &clients {
        until(&format!("{} gets to the server outside", client.name), || {
            let answer = client.run(&format!("curl -s -S -m 5 http://{by_hand}/v2/"));
            check(answer.code == 0, || answer.err.clone())
        });
    }
    world.delete(&format!("{path}/by-hand-1"));
    let web = world.find_pod("web-node-2").unwrap();
    world.api.create(path, &slice(web["status"]["podIP"].as_str().unwrap(), 8080)).ok();
    for client in &clients {
        meets(client, &by_hand, &["web-node-2"]);
    }

    // Another name for a name.
    web_service(&world);
    let name = json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"});
    service(&world, "alias", name);
    for client in &clients {
        until(&format!("{} follows the alias", client.name), || {
            let answer = client.run_named("curl -s -S -m 5 http://alias/cgi-bin/who");
            check(answer.out.contains("web-node-2"), || format!("{} {}", answer.out, answer.err))
        });
    }
}

/// A port that a program of the board has already: said of the Service and of the
/// Node, had by all other boards, and by this one as soon as it can be.
fn a_taken_port_is_told(plane: Plane) {
    let world = plane.world();
    let made = web_service_that(&world, "web", &json!({"type": "NodePort"}));
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    // Nobody answers yet, so nothing listens.
    let board = world.network.namespace_of(world.agents[1].number);
    let taken = in_network(&board, move || {
        std::net::TcpListener::bind(("0.0.0.0", u16::try_from(port).unwrap())).unwrap()
    });
    serve_on(&world, &BOARDS[..1]);
    let number = port.to_string();
    world.event_appears("web", &["PortConflict", "node-2", &number, "another program"]);
    let becomes = |expected: &str| {
        until(&format!("PortConflict of node-2 is {expected:?}"), || {
            let node = world.api.get("/api/v1/nodes/node-2").ok();
            let now = pods::condition(&node, "PortConflict");
            check(now == expected, || format!("{now:?}"))
        });
    };
    becomes("True");
    let leads = |board: &str| {
        let url = format!("{}:{port}", address_of(&world, board));
        until(&format!("{url} leads to the pod"), || asked_from_outside(&url));
    };
    leads("node-1");
    leads("node-3");
    drop(taken);
    // Tried again with the next table.
    serve_on(&world, &BOARDS[2..]);
    leads("node-2");
    becomes("");
}

/// Makes a pod of [`web_pod`] ready or not, by the file that its probe asks for.
fn set_ready(world: &World, board: &str, is_ready: bool) {
    let agent = &world.agents[world.at(board)];
    let all = agent.running();
    let web = all.iter().find(|one| one.pod == format!("web-{board}")).unwrap();
    let www = format!("/proc/{}/root/tmp/www", web.pid);
    let (from, to) = if is_ready { ("not", "ready") } else { ("ready", "not") };
    std::fs::rename(format!("{www}/{from}"), format!("{www}/{to}")).unwrap();
}

/// So many requests, none of which fails, and all are answered by these.
#[track_caller]
fn loses_none(client: &Client, url: &str, n: usize, by: &[&str]) {
    for _ in 0..n {
        let answer = client.run(&format!("curl -s -S -m 60 http://{url}/cgi-bin/who"));
        let pod = answer.out.split_whitespace().next().unwrap_or_default().to_owned();
        assert!(by.contains(&pod.as_str()), "{} {url}: {by:?}: {answer}", client.name);
    }
}

/// A board without a cable, then two boards that do not reach each other.
fn a_partition_is_lived_through(plane: Plane) {
    let world = plane.world();
    serve_on(&world, &BOARDS);
    let all = ["web-node-1", "web-node-2", "web-node-3"];
    let address = web_service(&world);
    let clients = BOARDS.map(|board| client_on(&world, board));
    for client in &clients {
        meets(client, &address, &all);
    }

    // The first board has nobody left but itself. It goes on with its own pod, and the
    // others go on without it, all without a failed request.
    let first = world.agents[0].number;
    world.network.cut(first);
    loses_none(&clients[0], &address, 12, &all[..1]);
    loses_none(&clients[1], &address, 12, &all[1..]);
    let dig = clients[0].run("dig +short @10.43.0.10 web.default.svc.cluster.local").ok();
    assert_eq!(dig.trim(), address);
    set_ready(&world, "node-1", false);
    is_refused(&clients[0], &address);
    set_ready(&world, "node-1", true);
    until("its own pod is back", || {
        let answer = clients[0].run(&format!("curl -s -m 60 http://{address}/cgi-bin/who"));
        check(answer.out.contains(all[0]), || format!("{} {}", answer.out, answer.err))
    });
    world.network.mend(first);
    for client in &clients {
        meets(client, &address, &all);
    }

    // Two boards do not hear each other; both hear the master and the third.
    let second = world.agents[1].number;
    drop_on(&world, first, &format!("ip saddr {}", Network::address(second)));
    drop_on(&world, second, &format!("ip saddr {}", Network::address(first)));
    for client in &clients {
        loses_none(client, &address, 12, &all);
        meets(client, &address, &all);
    }
    for agent in &world.agents[..2] {
        world.network.output_on_board(agent.number, "nft delete table inet test").ok();
    }
    if plane == Plane::NoUdp {
        return;
    }
    // The third is lost to the second alone in one direction.
    drop_on(&world, second, &format!("ip saddr {}", Network::address(world.agents[2].number)));
    loses_none(&clients[1], &address, 12, &all);
    loses_none(&clients[2], &address, 12, &all);
}

/// A board's address changes while everything runs.
fn a_nodes_address_may_change(plane: Plane) {
    let world = plane.world();
    serve_on(&world, &BOARDS);
    let all = ["web-node-1", "web-node-2", "web-node-3"];
    let address = web_service(&world);
    let clients = BOARDS.map(|board| client_on(&world, board));
    for client in &clients {
        meets(client, &address, &all);
    }
    let before: Vec<_> =
        world.agents.iter().map(crate::harness::agent::Agent::processes_by_container).collect();

    let moved = &world.agents[1];
    let (old, new) = (Network::address(moved.number), "10.201.0.102");
    let on = |line: &str| world.network.output_on_board(moved.number, line).ok();
    on(&format!("ip addr del {old}/24 dev eth0"));
    on(&format!("ip addr add {new}/24 dev eth0"));
    on(&format!("ip route add default via {HUB}"));
    until("the Node shows the new address, and that alone", || {
        let node = world.api.get("/api/v1/nodes/node-2").ok();
        let shown = node["status"]["addresses"].as_array().unwrap();
        let shown: Vec<_> = shown
            .iter()
            .filter(|one| one["type"] == "InternalIP")
            .map(|one| &one["address"])
            .collect();
        check(shown == [new], || format!("{shown:?}"))
    });
    for (client, board) in clients.iter().zip(BOARDS) {
        meets(client, &address, &all);
        if plane.captures() {
            // By their own addresses, which have not changed.
            for pod in world.pods_of("web") {
                let ip = pod["status"]["podIP"].as_str().unwrap();
                let (met, seen) = client.who(&format!("{ip}:8080"));
                assert_eq!((met, seen), (pods::name(&pod), client.address.clone()), "{board}");
            }
        }
    }
    let after: Vec<_> =
        world.agents.iter().map(crate::harness::agent::Agent::processes_by_container).collect();
    assert_eq!(before, after, "no pod was restarted");
    for client in &clients {
        let pod = world.find_pod(&client.name).unwrap();
        assert_eq!(pod["status"]["podIP"], client.address.as_str(), "{}", client.name);
        assert!(pods::is_ready(&pod), "{}", pod["status"]);
    }
    // Commands get there, too.
    let said = world.kubectl("exec client-node-2 -- echo there").ok();
    assert_eq!(said.trim(), "there");
}

#[test]
fn policies_affinity_and_preferences_say_where_traffic_goes() {
    traffic_goes_where_its_service_says(Plane::Usual);
}

#[test]
fn flows_of_datagrams_go_on_when_their_pod_is_replaced() {
    datagrams_go_on_when_their_pod_is_replaced(Plane::Usual);
}

#[test]
fn endpoints_by_hand_unready_ones_and_other_names_are_led_to() {
    services_lead_where_they_are_told(Plane::Usual);
}

#[test]
fn a_port_that_is_taken_on_a_node_is_told() {
    a_taken_port_is_told(Plane::Usual);
}

#[test]
fn partitions_lose_no_request() {
    a_partition_is_lived_through(Plane::Usual);
}

#[test]
fn a_node_gets_another_address_and_its_pods_keep_theirs() {
    a_nodes_address_may_change(Plane::Usual);
}

type Scenario = (&'static str, fn(Plane));

/// Every scenario, which a fallback has to pass as the usual way does.
const SCENARIOS: [Scenario; 10] = [
    ("reach", |plane| all_reach_all(&plane.world(), &BOARDS, plane.captures())),
    ("names", |plane| names_are_answered(&plane.world())),
    ("modules", |plane| modules_are_like_other_pods(&plane.world())),
    ("policies", |plane| policies_decide(&plane.world())),
    ("traffic", traffic_goes_where_its_service_says),
    ("datagrams", datagrams_go_on_when_their_pod_is_replaced),
    ("endpoints", services_lead_where_they_are_told),
    ("conflict", a_taken_port_is_told),
    ("partition", a_partition_is_lived_through),
    ("address", a_nodes_address_may_change),
];

/// These scenarios in one fallback; all of them where asked for.
fn the_same_in(plane: Plane, usually: &[&str]) {
    let all = std::env::var("PINNACE_FALLBACKS").is_ok_and(|asked| asked == "all");
    let n_known = SCENARIOS.iter().filter(|(name, _)| usually.contains(name)).count();
    assert_eq!(n_known, usually.len(), "{usually:?}");
    for (name, scenario) in SCENARIOS {
        if all || usually.contains(&name) {
            eprintln!("{name} with {plane:?}");
            scenario(plane);
        }
    }
}

#[test]
fn the_same_holds_without_bpf() {
    the_same_in(Plane::Rules, &["traffic"]);
}

#[test]
fn the_same_holds_with_listeners_alone() {
    the_same_in(Plane::Listeners, &["datagrams"]);
}

#[test]
fn the_same_holds_without_udp_between_nodes() {
    the_same_in(Plane::NoUdp, &["datagrams"]);
}
