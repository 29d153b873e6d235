//! Services on three boards, as users and pods meet them: stable addresses, names,
//! load balancing, the clients' own addresses, with real agents and both runtimes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, name, node};
use crate::harness::process::{Output, Process, run};
use crate::harness::wait::{check, until};

/// A web server that says which pod it is and whom it sees.
const WEB: &str = "mkdir -p /tmp/www/cgi-bin && cd /tmp/www && \
     printf '#!/bin/sh\\necho; echo \"$(hostname) $REMOTE_ADDR\"\\n' > cgi-bin/who && \
     chmod +x cgi-bin/who && exec httpd -f -p 8080 -h /tmp/www";

/// A pod that serves [`WEB`], ready once it answers.
fn web_pod(world: &World) -> Value {
    let image = world.registry().push_busybox("web:1", &[]);
    let mut pod = pods::pod("web", &image, &["/bin/sh", "-c", WEB], &[]);
    let container = &mut pod["spec"]["containers"][0];
    container["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    container["readinessProbe"] =
        json!({"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 1});
    pod
}

/// Puts one pod of [`WEB`] on each of these boards, all with the label `app=web`.
fn serve_on(world: &World, boards: &[&str]) {
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
fn client_on(world: &World, board: &str) -> Client {
    let image = world.registry().push_busybox("client:1", &[]);
    let name = format!("client-{board}");
    let mut pod = pods::pod(&name, &image, &["/bin/sh", "-c", "while true; do sleep 1; done"], &[]);
    pod["spec"]["nodeName"] = json!(board);
    pod["metadata"]["labels"] = json!({"app": "client"});
    world.create_pod(&pod);
    let pod = world.pod_becomes_ready(&name);
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let run_dir = world.agents[world.at(board)].run_dir();
    let address = pod["status"]["podIP"].as_str().unwrap().to_owned();
    Client { name, net: run_dir.join(format!("pods/{uid}/ns/net")), address }
}

/// A pod to ask from.
struct Client {
    name: String,
    /// Its network.
    net: PathBuf,
    address: String,
}

impl Client {
    /// Runs a program of this machine in the pod's network.
    fn run(&self, line: &str) -> Output {
        run(self.command(line))
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.net.display()));
        command.args(["sh", "-c", line]);
        command
    }

    /// What `GET url` answers from inside the pod's container, by name.
    fn get(&self, world: &World, url: &str) -> Output {
        world.kubectl(&format!("exec {} -- wget -q -T 5 -O - {url}", self.name))
    }

    /// Pod and client that the server names; asked until it answers.
    fn who(&self, url: &str) -> (String, String) {
        until(&format!("{} gets {url}", self.name), || {
            let answer = self.run(&format!("curl -s -m 5 http://{url}/cgi-bin/who"));
            let mut words = answer.out.split_whitespace();
            match (words.next(), words.next()) {
                (Some(pod), Some(client)) => Ok((pod.to_owned(), client.to_owned())),
                _ => Err(format!("{} {}", answer.out, answer.err)),
            }
        })
    }
}

/// Creates a Service and returns it.
fn service(world: &World, name: &str, spec: Value) -> Value {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec,
    });
    world.api.create("/api/v1/namespaces/default/services", &object).ok()
}

fn web_service(world: &World) -> String {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    service(world, "web", spec)["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

#[test]
fn a_service_leads_from_every_board_to_pods_on_every_board_which_see_the_client() {
    let world = World::with_nodes(3);
    let boards = ["node-1", "node-2", "node-3"];
    serve_on(&world, &boards);
    let address = web_service(&world);
    for board in boards {
        let client = client_on(&world, board);
        let mut seen = BTreeSet::new();
        until(&format!("{board} has met all three"), || {
            let (pod, by) = client.who(&address);
            assert_eq!(by, client.address, "{pod} sees another client");
            seen.insert(pod);
            check(seen.len() == 3, || format!("{seen:?}"))
        });
        // By name, from the container itself, with its own resolver.
        for name in ["web", "web.default", "web.default.svc.cluster.local"] {
            let answer = client.get(&world, &format!("http://{name}/cgi-bin/who")).ok();
            assert!(answer.contains(&client.address), "{name}: {answer}");
        }
        // A pod on another board, by its own address.
        for pod in world.pods_of("web") {
            let ip = pod["status"]["podIP"].as_str().unwrap();
            let (server, by) = client.who(&format!("{ip}:8080"));
            assert_eq!((server, by), (name(&pod), client.address.clone()), "on {}", node(&pod));
        }
    }
    let paths = world.pinnace("net").ok();
    assert!(paths.contains("quic"), "{paths}");
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
    let _ignored: Option<Process> = None;
    until("only the other is met", || {
        let (pod, _) = client.who(&address);
        check(pod == "web-node-2", || pod)
    });
    for _ in 0..20 {
        assert_eq!(client.who(&address).0, "web-node-2");
    }
}
