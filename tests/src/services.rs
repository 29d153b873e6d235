//! Services on three boards, as users and pods meet them: stable addresses, names,
//! load balancing, the clients' own addresses, with real agents and both runtimes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pods::{self, name, node};
use crate::harness::process::{Output, Process, run};
use crate::harness::wait::{check, until};
use crate::harness::{World, run_program};

/// A web server that says which pod it is and whom it sees.
const WEB: &str = "mkdir -p /tmp/www/cgi-bin && cd /tmp/www && echo yes > ready && \
     printf '#!/bin/sh\\necho; echo \"$(hostname) $REMOTE_ADDR\"\\n' > cgi-bin/who && \
     chmod +x cgi-bin/who && exec httpd -f -p 8080 -h /tmp/www";

/// A pod that serves [`WEB`], ready once it answers.
pub(crate) fn web_pod(world: &World) -> Value {
    let image = world.registry().push_busybox("web:1", &[]);
    let mut pod = pods::pod("web", &image, &["/bin/sh", "-c", WEB], &[]);
    let container = &mut pod["spec"]["containers"][0];
    container["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1});
    pod
}

/// Puts one pod of [`WEB`] on each of these boards, all with the label `app=web`.
pub(crate) fn serve_on(world: &World, boards: &[&str]) {
    let pod = web_pod(world);
    for board in boards {
        let mut pod = pod.clone();
        pod["metadata"]["name"] = json!(format!("web-{board}"));
        pod["spec"]["nodeName"] = json!(board);
        world.create_pod(&pod);
    }
    for board in boards {
        world.pod_becomes_ready(&format!("web-{board}"));
    }
}

/// A pod that does nothing, on a board, to ask from.
pub(crate) fn client_on(world: &World, board: &str) -> Client {
    idle_on(world, board, "client")
}

/// A pod that does nothing, on a board, with this value of the label `app`.
pub(crate) fn idle_on(world: &World, board: &str, app: &str) -> Client {
    let image = world.registry().push_busybox("client:1", &[]);
    let name = format!("{app}-{board}");
    let mut pod = pods::pod(&name, &image, &["/bin/sh", "-c", "while true; do sleep 1; done"], &[]);
    pod["spec"]["nodeName"] = json!(board);
    pod["metadata"]["labels"] = json!({"app": app});
    world.create_pod(&pod);
    let pod = world.pod_becomes_ready(&name);
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let run_dir = world.agents[world.at(board)].run_dir();
    let address = pod["status"]["podIP"].as_str().unwrap().to_owned();
    Client { name, dir: run_dir.join("pods").join(uid), address }
}

/// A pod to ask from.
pub(crate) struct Client {
    pub(crate) name: String,
    /// Its run folder.
    pub(crate) dir: PathBuf,
    pub(crate) address: String,
}

impl Client {
    /// Runs a program of this machine in the pod's network.
    pub(crate) fn run(&self, line: &str) -> Output {
        run(self.command(line))
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.dir.join("ns/net").display()));
        command.args(["sh", "-c", line]);
        command
    }

    /// Runs a program of this machine with the pod's network and its resolver's file.
    pub(crate) fn run_named(&self, line: &str) -> Output {
        let resolv = self.dir.join("resolv.conf");
        let mount = format!("mount --bind {} /etc/resolv.conf", resolv.display());
        self.run(&format!("unshare -m --propagation private sh -c '{mount} && {line}'"))
    }

    /// Pod and client that the server names; asked until it answers.
    pub(crate) fn who(&self, url: &str) -> (String, String) {
        until(&format!("{} gets {url}", self.name), || {
            let answer = self.run(&format!("curl -s -m 5 http://{url}/cgi-bin/who"));
            let mut words = answer.out.split_whitespace();
            match (words.next(), words.next()) {
                (Some(pod), Some(client)) => {
                    // The server listens on IPv6 too.
                    let client = client.trim_start_matches("[::ffff:").trim_end_matches(']');
                    Ok((pod.to_owned(), client.to_owned()))
                }
                _ => Err(format!("{} {}", answer.out, answer.err)),
            }
        })
    }
}

/// Creates a Service and returns it.
pub(crate) fn service(world: &World, name: &str, spec: Value) -> Value {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec,
    });
    world.api.create("/api/v1/namespaces/default/services", &object).ok()
}

pub(crate) fn web_service(world: &World) -> String {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    service(world, "web", spec)["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// Every board reaches every pod, through the Service and directly, by address and by
/// name; with `sees_clients` servers see who asks.
pub(crate) fn all_reach_all(world: &World, boards: &[&str], sees_clients: bool) {
    serve_on(world, boards);
    let address = web_service(world);
    for board in boards {
        let client = client_on(world, board);
        let mut seen = BTreeSet::new();
        until(&format!("{board} has met all"), || {
            let (pod, by) = client.who(&address);
            assert!(
                !sees_clients || by == client.address,
                "{pod} sees {by}, not {}",
                client.address
            );
            seen.insert(pod);
            check(seen.len() == boards.len(), || format!("{seen:?}"))
        });
        for name in ["web", "web.default", "web.default.svc.cluster.local"] {
            let answer = client.run_named(&format!("curl -s -m 5 http://{name}/cgi-bin/who")).ok();
            assert!(answer.contains("web-node-"), "{name}: {answer}");
        }
        if !sees_clients {
            continue;
        }
        for pod in world.pods_of("web") {
            let ip = pod["status"]["podIP"].as_str().unwrap();
            let (server, by) = client.who(&format!("{ip}:8080"));
            assert_eq!((server, by), (name(&pod), client.address.clone()), "on {}", node(&pod));
        }
    }
}

/// Has a board drop what comes in and fits.
pub(crate) fn drop_on(world: &World, board: u8, what: &str) {
    let on = |line: &str| world.network.output_on_board(board, line).ok();
    on("nft add table inet test");
    on("nft add chain inet test in { type filter hook input priority -200 ; }");
    on(&format!("nft add rule inet test in {what} drop"));
}

/// The paths between nodes, as `pinnace net` shows them: from, to and lane.
pub(crate) fn paths(world: &World) -> BTreeSet<(String, String, String)> {
    let table = world.pinnace("net").ok();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|words| words.len() > 2)
        .map(|words| (words[0].to_owned(), words[1].to_owned(), words[2].to_owned()))
        .collect()
}

pub(crate) const BOARDS: [&str; 3] = ["node-1", "node-2", "node-3"];

#[test]
fn a_service_leads_from_every_board_to_pods_on_every_board_which_see_the_client() {
    let world = World::with_nodes(3);
    all_reach_all(&world, &BOARDS, true);
    let paths = paths(&world);
    assert!(paths.iter().all(|(_, _, lane)| lane == "quic") && paths.len() >= 3, "{paths:?}");
}

#[test]
fn without_bpf_services_do_the_same_by_rules_of_their_own_table() {
    let world = World::with_nodes_that(3, "--capture=tproxy");
    all_reach_all(&world, &BOARDS, true);
    let tables = world.network.output_on_board(world.agents[0].number, "nft list tables").ok();
    assert!(tables.contains("pinnace"), "{tables}");
}

#[test]
fn with_neither_services_still_lead_to_pods_on_every_board() {
    let world = World::with_nodes_that(2, "--capture=listeners");
    all_reach_all(&world, &BOARDS[..2], false);
    let node = world.api.get("/api/v1/nodes/node-1").ok();
    assert_eq!(pods::condition(&node, "DataPlaneDegraded"), "True", "{}", node["status"]);
}

#[test]
fn where_udp_is_blocked_nodes_speak_over_tls_and_else_through_the_master() {
    let world = World::with_nodes(2);
    serve_on(&world, &["node-2"]);
    let address = web_service(&world);
    let client = client_on(&world, "node-1");
    let drop = |what: &str| {
        for agent in &world.agents {
            drop_on(&world, agent.number, &format!("{what} dport 7443"));
        }
    };
    drop("udp");
    assert_eq!(client.who(&address), ("web-node-2".to_owned(), client.address.clone()));
    let lane = |lane: &str| {
        let expected = ("node-1".to_owned(), "node-2".to_owned(), lane.to_owned());
        until(&format!("the path is {lane}"), || {
            let paths = paths(&world);
            check(paths.contains(&expected), || format!("{paths:?}"))
        });
    };
    lane("tls");
    drop("tcp");
    assert_eq!(client.who(&address), ("web-node-2".to_owned(), client.address.clone()));
    lane("relay");
}

#[test]
fn clients_from_outside_reach_the_port_of_any_node_and_are_seen() {
    let world = World::with_nodes(2);
    serve_on(&world, &["node-2"]);
    let spec = json!({
        "type": "NodePort", "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": "http"}],
    });
    let made = service(&world, "web", spec);
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    for agent in &world.agents {
        let board = crate::harness::network::Network::address(agent.number);
        let answer = until(&format!("{board}:{port} answers"), || {
            let url = format!("http://{board}:{port}/cgi-bin/who");
            let answer = run_program("curl", &["-s", "-m", "5", &url]);
            check(answer.out.contains("web-node-2"), || answer.err.clone())?;
            Ok(answer.out)
        });
        assert!(answer.contains(crate::harness::network::HUB), "{answer}");
    }
}

#[test]
fn names_are_answered_as_everywhere_and_pods_reach_the_api() {
    let world = World::with_nodes(2);
    names_are_answered(&world);
}

/// Names of all kinds, and the API, from a pod.
pub(crate) fn names_are_answered(world: &World) {
    serve_on(world, &["node-1", "node-2"]);
    let address = web_service(world);
    let spec = json!({
        "clusterIP": "None", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 8080, "targetPort": "http"}],
    });
    service(world, "all", spec);
    let client = client_on(world, "node-1");
    let dig = |question: &str| client.run(&format!("dig +short @10.43.0.10 {question}")).ok();
    let lines = |question: &str| dig(question).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let pods: BTreeSet<String> = world
        .pods_of("web")
        .iter()
        .map(|pod| pod["status"]["podIP"].as_str().unwrap().to_owned())
        .collect();
    until("the headless Service names both pods", || {
        let found = lines("all.default.svc.cluster.local");
        check(found == pods, || format!("{found:?} {pods:?}"))
    });
    assert_eq!(dig("web.default.svc.cluster.local").trim(), address);
    assert_eq!(dig("+tcp web.default.svc.cluster.local").trim(), address);
    assert_eq!(dig(&format!("-x {address}")).trim(), "web.default.svc.cluster.local.");
    let services = dig("SRV _http._tcp.all.default.svc.cluster.local");
    assert_eq!(services.lines().count(), 2, "{services}");
    assert!(dig("kubernetes.default.svc.cluster.local").contains("10.43.0.1"));

    let version = client.run_named("curl -s -m 5 -k https://kubernetes.default/version").ok();
    assert!(version.contains("gitVersion"), "{version}");
    let variables = world.kubectl(&format!("exec {} -- env", client.name)).ok();
    assert!(variables.contains("KUBERNETES_SERVICE_HOST=10.43.0.1"), "{variables}");
    assert!(variables.contains(&format!("WEB_SERVICE_HOST={address}")), "{variables}");
    // Its certificate is for that address, and the pod has the CA and a token.
    let token = world.kubectl(&format!(
        "exec {} -- cat /var/run/secrets/kubernetes.io/serviceaccount/token",
        client.name
    ));
    let ca = world.dir().join("ca.crt");
    let read =
        format!("exec {} -- cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt", client.name);
    std::fs::write(&ca, world.kubectl(&read).ok()).unwrap();
    let me = client.run(&format!(
        "curl -s -m 5 --cacert {} -H \"Authorization: Bearer {}\" https://10.43.0.1/api",
        ca.display(),
        token.ok()
    ));
    assert!(me.ok().contains("APIVersions"));
}

#[test]
fn modules_are_servers_and_clients_like_any_other_pod() {
    let world = World::with_nodes(2);
    modules_are_like_other_pods(&world);
}

/// A module that serves a client elsewhere, and asks a Service itself.
pub(crate) fn modules_are_like_other_pods(world: &World) {
    let mut module = crate::modules::server(world, "module", Some(8080));
    module["metadata"]["labels"] = json!({"app": "module"});
    module["spec"]["nodeName"] = json!("node-2");
    world.create_pod(&module);
    serve_on(world, &["node-1"]);
    let address = web_service(world);
    let module = world.pod_becomes_ready("module");
    let module_address = module["status"]["podIP"].as_str().unwrap();
    let spec = json!({"selector": {"app": "module"}, "ports": [{"port": 80, "targetPort": 8080}]});
    let modules = service(world, "module", spec)["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let client = client_on(world, "node-1");
    until("the module asks the Service of the other board and is seen as itself", || {
        let url = format!("http://{modules}/fetch/{address}:80/cgi-bin/who");
        let answer = client.run(&format!("curl -s -m 5 {url}"));
        let expected = answer.out.contains("web-node-1") && answer.out.contains(module_address);
        check(expected, || format!("{} {}", answer.out, answer.err))
    });
}

#[test]
fn policies_decide_who_comes_in_and_where_pods_go() {
    let world = World::with_nodes(2);
    policies_decide(&world);
}

/// Policies for pods that serve, and for pods that ask.
pub(crate) fn policies_decide(world: &World) {
    serve_on(world, &["node-2"]);
    let address = web_service(world);
    let (near, far) = (client_on(world, "node-2"), client_on(world, "node-1"));
    let is_let_in = |client: &Client| {
        client.run(&format!("curl -s -m 2 http://{address}/cgi-bin/who")).code == 0
    };
    let becomes = |what: &str, client: &Client, expected: bool| {
        until(what, || check(is_let_in(client) == expected, || format!("{}", !expected)));
    };
    becomes("the near one is let in", &near, true);
    becomes("the far one is let in", &far, true);
    let policy = |name: &str, spec: Value| {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name}, "spec": spec,
        });
        world
            .api
            .create("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &object)
            .ok()
    };
    policy(
        "closed",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}),
    );
    becomes("the near one is kept out", &near, false);
    becomes("the far one is kept out", &far, false);
    policy(
        "clients",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                "ports": [{"port": "http"}],
            }],
        }),
    );
    becomes("the near one is let in again", &near, true);
    becomes("the far one is let in again", &far, true);
    policy(
        "nowhere",
        json!({
            "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        }),
    );
    becomes("the near one may go nowhere", &near, false);
    becomes("the far one may go nowhere", &far, false);
}

#[test]
fn without_the_master_a_node_goes_on_and_knows_its_own_pods() {
    let mut world = World::with_nodes(2);
    serve_on(&world, &["node-1", "node-2"]);
    let address = web_service(&world);
    let client = client_on(&world, "node-1");
    let both = |client: &Client| {
        let mut seen = BTreeSet::new();
        until("both are met", || {
            seen.insert(client.who(&address).0);
            check(seen.len() == 2, || format!("{seen:?}"))
        });
    };
    both(&client);
    world.master.kill();
    both(&client);
    let dig = client.run("dig +short @10.43.0.10 web.default.svc.cluster.local").ok();
    assert_eq!(dig.trim(), address);

    // Its own pod stops to answer: the node sees that itself.
    let at = world.at("node-1");
    let web = world.agents[at].running().into_iter().find(|one| one.pod == "web-node-1").unwrap();
    let stop = nix::sys::signal::Signal::SIGSTOP;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(web.pid).unwrap()), stop)
        .unwrap();
    until("only the other board's is met", || {
        let met: BTreeSet<String> = (0..6).map(|_| client.who(&address).0).collect();
        check(met == BTreeSet::from(["web-node-2".to_owned()]), || format!("{met:?}"))
    });
    let go_on = nix::sys::signal::Signal::SIGCONT;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(web.pid).unwrap()), go_on)
        .unwrap();
    both(&client);

    // The board loses power; the master is still away.
    world.lose_power(at);
    world.boot(at);
    let client = again(&world, client, "node-1");
    until("the Service answers after the boot", || {
        let answer = client.run(&format!("curl -s -m 3 http://{address}/cgi-bin/who"));
        check(answer.out.contains("web-node-"), || format!("{} {}", answer.out, answer.err))
    });
    let dig = client.run("dig +short @10.43.0.10 web.default.svc.cluster.local").ok();
    assert_eq!(dig.trim(), address);
}

/// A client whose board has booted.
fn again(world: &World, client: Client, board: &str) -> Client {
    let agent = &world.agents[world.at(board)];
    until(&format!("{} runs again", client.name), || {
        check(agent.running().iter().any(|one| one.pod == client.name), || agent.log())
    });
    client
}

/// A Deployment of [`WEB`] that ends as programs should: what it has begun it finishes.
fn web_deployment(world: &World, replicas: u32) -> Value {
    let mut pod = web_pod(world);
    let graceful = format!("{} & trap 'sleep 1; exit 0' TERM; wait", WEB.replace("exec ", ""));
    pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", graceful]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    let mut deployment = pods::deployment("web", replicas, pod);
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    deployment
}

#[test]
fn no_request_is_lost_in_rolling_updates_and_while_agents_and_proxies_are_replaced() {
    let mut world = World::with_nodes(3);
    world.create_deployment(&web_deployment(&world, 3));
    world.app_becomes_ready("web", 3);
    let address = web_service(&world);
    let clients: Vec<Client> = BOARDS.iter().map(|board| client_on(&world, board)).collect();
    for client in &clients {
        client.who(&address);
    }
    // One line a request that failed, and at the end how many there were.
    let load = format!(
        "trap 'echo asked $n; exit' TERM; n=0; while true; do n=$((n+1)); \
         curl -s -S -m 10 -o /dev/null http://{address}/cgi-bin/who 2>&1 || \
         echo \"failed at $(date -u +%T.%N)\"; done"
    );
    let mut loads: Vec<Process> = clients
        .iter()
        .map(|client| {
            let log = world.dir().join(format!("{}.load", client.name));
            Process::start(&mut client.command(&load), &log)
        })
        .collect();
    let rounds = std::env::var("PINNACE_UPGRADES").ok().and_then(|text| text.parse().ok());
    for round in 0..rounds.unwrap_or(3) {
        world.kubectl("rollout restart deployment/web").ok();
        world.kubectl("rollout status deployment/web --timeout=120s").ok();
        let (killed, upgraded) = (round % 3, (round + 1) % 3);
        let before = world.agents[killed].proxies();
        world.agents[killed].kill();
        world.start_agent(killed);
        assert_eq!(world.agents[killed].proxies(), before, "the agent takes none along");
        let before = world.agents[upgraded].proxies();
        world.agents[upgraded].stop();
        world.agents[upgraded].upgrade();
        world.start_agent(upgraded);
        until("another proxy serves", || {
            let now = world.agents[upgraded].proxies();
            check(now.len() == 1 && now != before, || format!("{before:?} {now:?}"))
        });
    }
    for (client, load) in clients.iter().zip(&mut loads) {
        load.signal(nix::sys::signal::Signal::SIGTERM);
        load.ended();
        let said = load.log();
        let asked = said.lines().find_map(|line| line.strip_prefix("asked "));
        let asked: u32 = asked.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        let failed = said.lines().filter(|line| line.contains("failed")).count();
        assert!(asked > 100 && failed == 0, "{}: {failed} of {asked} failed:\n{said}", client.name);
        eprintln!("{}: {asked} requests", client.name);
    }
}

#[test]
fn with_its_pods_and_its_agent_gone_nothing_of_the_data_plane_is_left() {
    let mut world = World::with_nodes(1);
    serve_on(&world, &["node-1"]);
    let address = web_service(&world);
    client_on(&world, "node-1").who(&address);
    assert!(!world.agents[0].traces_of_proxy(&world.network).is_empty());
    // The agent alone goes: the pods and the Services stay.
    world.agents[0].stop();
    assert_eq!(world.agents[0].proxies().len(), 1);
    world.start_agent(0);
    world.kubectl("delete pod --all --wait=true").ok();
    world.agents[0].becomes_clean(&world.network);
    world.agents[0].stop();
    until("the board is as it was", || {
        let traces = world.agents[0].traces_of_proxy(&world.network);
        check(traces.is_empty(), || traces.join("\n"))
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once_and_a_dead_one_is_never_met() {
    let world = World::with_nodes(2);
    let address = web_service(&world);
    let client = client_on(&world, "node-1");
    until("it refuses", || {
        let answer = client.run(&format!("curl -s -m 5 http://{address}/"));
        // 7: refused, or reset before anything was said.
        check(answer.code == 7, || format!("{} {}", answer.out, answer.err))
    });
    serve_on(&world, &["node-1", "node-2"]);
    client.who(&address);
    world.kubectl("delete pod web-node-1 --grace-period=0 --force").ok();
    until("only the other is met", || {
        let (pod, _) = client.who(&address);
        check(pod == "web-node-2", || pod)
    });
    for _ in 0..20 {
        assert_eq!(client.who(&address).0, "web-node-2");
    }
}
