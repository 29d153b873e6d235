//! WASM pods from the master's compiler to the status: servers, hostile modules,
//! and code that was changed on a board.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, script};
use crate::harness::process::Process;
use crate::harness::programs::guest;
use crate::harness::wait::{check, until};

/// A pod that answers HTTP requests on its containerPort.
pub(crate) fn server(world: &World, name: &str, port: Option<u16>) -> Value {
    let image = world.registry().push_wasm("web:1", guest("web", "wasip2"));
    let mut pod = pods::pod(name, &image, &[], &[]);
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!([{"name": "GREETING", "value": "Ahoy"}]);
    if let Some(port) = port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    pod
}

/// A pod that asks a server again and again, and says so where it gets no answer.
fn client(world: &World, name: &str, url: &str) -> Value {
    let image = world.registry().push_busybox("shell:1", &[]);
    let lines = script(&format!(
        "n=0; while true; do wget -q -O - {url} || echo failed; n=$((n+1)); echo asked $n; done"
    ));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    pods::pod(name, &image, &lines, &[])
}

fn address(pod: &Value) -> String {
    pod["status"]["podIP"].as_str().expect("it has an address").to_owned()
}

#[test]
fn a_component_answers_requests_on_its_pods_port() {
    let world = World::with_nodes(1);
    for (name, port) in [("low", Some(80)), ("default", None)] {
        world.create_pod(&server(&world, name, port));
        let ready = world.pod_becomes_ready(name);
        // Ready means that it listens: the first request is answered.
        let url = format!("http://{}:{}/", address(&ready), port.unwrap_or(8080));
        let client_name = format!("client-of-{name}");
        world.create_pod(&client(&world, &client_name, &url));
        let log = world.log_holds(&client_name, "asked 3\n");
        assert!(log.starts_with("Ahoy from /\nasked 1\n"), "{log}");
        assert!(!log.contains("failed"), "{log}");
        // What it prints is its log.
        assert!(world.log_holds(name, "/\n").starts_with("/\n"));
        world.delete(&format!("/api/v1/namespaces/default/pods/{client_name}"));
        world.delete(&format!("/api/v1/namespaces/default/pods/{name}"));
    }
}

#[test]
fn a_modules_port_is_forwarded() {
    let world = World::with_nodes(1);
    world.create_pod(&server(&world, "web", Some(8080)));
    world.pod_becomes_ready("web");
    for web_sockets in ["true", "false"] {
        let log = world.dir().join(format!("forward-{web_sockets}.log"));
        let mut command = world.kubectl_command();
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", web_sockets);
        let forward = Process::start(command.args(["port-forward", "web", ":8080"]), &log);
        let port: u16 = until("the port is open", || {
            let log = forward.log();
            let port = log.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split_once(" -> "));
            port.and_then(|(port, _)| port.parse().ok()).ok_or(log)
        });
        for _ in 0..3 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let head = "Host: web\r\nConnection: close\r\n\r\n";
            write!(stream, "GET / HTTP/1.1\r\n{head}").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.contains("Ahoy from /"), "{text}");
        }
    }
}

#[test]
fn hostile_modules_end_in_a_clear_status_and_a_neighbour_goes_on_serving() {
    let world = World::with_nodes(1);
    world.create_pod(&server(&world, "neighbour", Some(80)));
    let neighbour = world.pod_becomes_ready("neighbour");
    world.create_pod(&client(&world, "client", &format!("http://{}/", address(&neighbour))));
    world.log_holds("client", "asked 2\n");

    let image = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    let hostile = |name: &str, args: &[&str]| {
        let mut pod = pods::pod(name, &image, &[], args);
        pod["spec"]["restartPolicy"] = json!("Never");
        let limits = json!({"memory": "16Mi", "cpu": "500m"});
        pod["spec"]["containers"][0]["resources"] = json!({"limits": limits});
        world.create_pod(&pod);
    };
    let ends = |name: &str, reason: &str, code: u64| {
        let pod = world.pod_becomes(name, "fails", |pod| pod["status"]["phase"] == "Failed");
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!(reason), &json!(code)), "{pod}");
    };
    hostile("memory", &["allocate", "64"]);
    ends("memory", "OOMKilled", 137);
    hostile("stack", &["recurse"]);
    ends("stack", "Error", 134);
    world.log_holds("stack", "call stack exhausted");
    hostile("files", &["open-all", "/etc/hosts", "panic"]);
    ends("files", "Error", 134);
    world.log_holds("files", "times, then ");
    hostile(
        "path",
        &["read", "/etc/shadow", "read", "/proc/1/environ", "write", "/x", "exit", "3"],
    );
    ends("path", "Error", 3);
    assert!(!world.log_of("path").unwrap().contains("root"));
    for (name, verb, said) in [("loop", "spin", "spinning"), ("flood", "flood", "xxxx")] {
        hostile(name, &[verb]);
        world.log_holds(name, said);
        world.delete(&format!("/api/v1/namespaces/default/pods/{name}"));
    }
    // Not even begun: one that is no program, one that is cut short.
    let trial = guest("trial", "wasip1");
    for (name, bytes, why) in [
        ("library", b"\0asm\x01\0\0\0".to_vec(), "exports no function _start"),
        ("cut", trial[..trial.len() / 2].to_vec(), "not a valid module"),
    ] {
        let image = world.registry().push_wasm(&format!("{name}:1"), bytes);
        world.create_pod(&pods::pod(name, &image, &[], &[]));
        world.event_appears(name, &[why]);
        let pod = world.find_pod(name).unwrap();
        assert_eq!(pod["status"]["phase"], "Pending", "{pod}");
    }

    // The neighbour was not restarted, and every request was answered.
    let log = world.log_of("client").unwrap();
    let n_asked = log.lines().filter(|line| line.starts_with("asked ")).count();
    let log = world.log_holds("client", &format!("asked {}\n", n_asked + 3));
    assert!(!log.contains("failed"), "{log}");
    let neighbour = world.find_pod("neighbour").unwrap();
    assert_eq!(pods::restarts(&neighbour), 0, "{neighbour}");
}

#[test]
fn code_that_was_changed_on_a_board_is_not_run_and_fetched_anew() {
    let world = World::with_nodes(1);
    let image = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    let run = |name: &str| {
        let mut pod = pods::pod(name, &image, &[], &["args"]);
        pod["spec"]["restartPolicy"] = json!("Never");
        world.create_pod(&pod);
        let pod = world.pod_becomes(name, "succeeds", |pod| pod["status"]["phase"] == "Succeeded");
        assert_eq!(pods::restarts(&pod), 0, "{pod}");
    };
    run("before");
    let folder = world.agents[0].state_dir().join("artifacts");
    let code = || -> Vec<PathBuf> {
        let entries = fs::read_dir(&folder).expect("it is there").flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "cwasm")).collect()
    };
    let path = code().pop().expect("the code is there");
    let good = fs::read(&path).expect("it can be read");
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    // Replaced and not changed in place, as whoever tampers with it would have to:
    // a running guest has it mapped.
    fs::remove_file(&path).expect("it is ours");
    fs::write(&path, &bad).expect("it is ours");
    run("after");
    world.event_appears("after", &["damaged"]);
    assert_eq!(code(), std::slice::from_ref(&path));
    until("the code is what it was", || {
        let found = fs::read(&path).map_err(|error| error.to_string())?;
        check(found == good, || "it is not".to_owned())
    });
}
