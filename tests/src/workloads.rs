//! From a manifest to containers and modules on two boards, and back to the
//! user's screen.

use std::path::Path;

use serde_json::json;

use crate::harness::World;
use crate::harness::pods::{self, name, node, script};
use crate::harness::process::{Process, read_lossy};
use crate::harness::programs::guest;
use crate::harness::wait::{check, until};

/// Two Deployments, of two replicas each, that share a ConfigMap.
const HELLO: &str = include_str!("hello.yaml");

/// The images of [`HELLO`], and the manifest that names them.
fn hello(world: &World) -> String {
    world.registry().push_busybox("shell:1", &["VERSION=1"]);
    world.registry().push_wasm("greeter:1", guest("greeter", "wasip1"));
    HELLO.replace("REGISTRY", &world.registry().host())
}

/// Asks as a user does, in the namespace of [`HELLO`].
fn kubectl(world: &World, words: &str) -> String {
    world.kubectl(&format!("-n hello {words}")).ok()
}

fn hello_becomes_ready(world: &World, n_each: usize) {
    for app in ["shell", "greeter"] {
        until(&format!("{n_each} replicas of {app} are available"), || {
            let path = format!("/apis/apps/v1/namespaces/hello/deployments/{app}");
            let status = world.api.get(&path).ok()["status"].take();
            let pods =
                world.api.list(&format!("/api/v1/namespaces/hello/pods?labelSelector=app%3D{app}"));
            let is_done = status["availableReplicas"].as_u64().unwrap_or(0) == n_each as u64
                && status["updatedReplicas"].as_u64().unwrap_or(0) == n_each as u64
                && pods.len() == n_each;
            check(is_done, || {
                let pods: Vec<_> = pods.iter().map(|pod| pod["status"].to_string()).collect();
                format!("{status} {pods:#?}")
            })
        });
    }
}

#[test]
fn one_manifest_brings_both_kinds_up_on_two_boards_and_takes_them_down_again() {
    let world = World::with_nodes(2);
    let manifest = hello(&world);
    let applied = world.pinnace_with(&["apply", "-f", "-"], &manifest).ok();
    assert!(applied.contains("shell") && applied.contains("greeter"), "{applied}");
    hello_becomes_ready(&world, 2);

    // Both boards have work.
    let pods = world.api.list("/api/v1/namespaces/hello/pods");
    let of = |app: &str| {
        pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == app).collect::<Vec<_>>()
    };
    for board in ["node-1", "node-2"] {
        assert!(pods.iter().any(|pod| node(pod) == board), "nothing on {board}");
    }
    let addresses: std::collections::BTreeSet<_> =
        pods.iter().map(|pod| pod["status"]["podIP"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 4, "each pod has an address of its own");

    // Environment and volume reach both kinds, and both clients read the same.
    for app in ["shell", "greeter"] {
        let pod = name(of(app)[0]);
        let line = until(&format!("{pod} greets"), || {
            let log = kubectl(&world, &format!("logs {pod}"));
            log.lines().next().map(str::to_owned).ok_or(log)
        });
        assert_eq!(line, "Ahoy, crew! (1)");
        let ours = world.pinnace(&format!("-n hello logs {pod}")).ok();
        assert_eq!(ours.lines().next(), Some("Ahoy, crew! (1)"));
    }
    let pod = name(of("shell")[0]);
    let ours = world.pinnace(&format!("-n hello logs {pod}")).ok();
    let theirs = kubectl(&world, &format!("logs {pod}"));
    assert!(theirs.starts_with(&ours), "{ours:?} {theirs:?}");

    // `logs -f` goes on by itself.
    for (program, mut command) in
        [("kubectl", world.kubectl_command()), ("pinnace", world.pinnace_command())]
    {
        let file = world.dir().join(format!("{program}-logs"));
        command.args(["-n", "hello", "logs", "-f", &pod]);
        let follower = Process::start(&mut command, &file);
        let n_lines = || read_lossy(&file).lines().count();
        let first = until("the log begins", || {
            let n = n_lines();
            check(n > 0, || read_lossy(&file))?;
            Ok(n)
        });
        until("the log goes on", || check(n_lines() > first + 1, || read_lossy(&file)));
        drop(follower);
    }

    // What both show.
    let ours = world.pinnace("-n hello get pods -o wide").ok();
    let theirs = kubectl(&world, "get pods -o wide");
    for pod in &pods {
        for text in [&ours, &theirs] {
            let line = text.lines().find(|line| line.starts_with(&name(pod))).unwrap();
            for word in ["Running", "1/1", &node(pod), pod["status"]["podIP"].as_str().unwrap()] {
                assert!(line.contains(word), "{word}: {line}");
            }
        }
    }

    // Scale, with either.
    world.pinnace("-n hello scale deploy/shell --replicas 4").ok();
    kubectl(&world, "scale deployment/greeter --replicas=4");
    hello_becomes_ready(&world, 4);
    world.pinnace("-n hello scale deploy/shell --replicas 1").ok();
    kubectl(&world, "scale deployment/greeter --replicas=1");
    hello_becomes_ready(&world, 1);

    // A new image rolls out, and back.
    let image = world.registry().push_busybox("shell:2", &["VERSION=2"]);
    kubectl(&world, &format!("set image deployment/shell main={image}"));
    kubectl(&world, "rollout status deployment/shell --timeout=120s");
    hello_becomes_ready(&world, 1);
    let newest = || {
        let pods = world.api.list("/api/v1/namespaces/hello/pods?labelSelector=app%3Dshell");
        assert_eq!(pods.len(), 1);
        name(&pods[0])
    };
    until("the new image says so", || {
        let log = kubectl(&world, &format!("logs {}", newest()));
        check(log.contains("version 2"), || log.clone())
    });
    kubectl(&world, "rollout undo deployment/shell");
    world.pinnace("-n hello rollout status deploy/shell --timeout 120s").ok();
    hello_becomes_ready(&world, 1);
    until("the old image is back", || {
        let log = kubectl(&world, &format!("logs {}", newest()));
        check(log.contains("version 1"), || log.clone())
    });

    // Nothing is left on the boards.
    world.pinnace_with(&["delete", "-f", "-"], &manifest).ok();
    until("the namespace is gone", || {
        let found = world.api.find("/api/v1/namespaces/hello");
        check(found.is_none(), || found.unwrap_or_default().to_string())
    });
    for agent in &world.agents {
        agent.becomes_clean(&world.network);
    }
}

#[test]
fn a_component_runs_like_a_module() {
    let world = World::with_nodes(1);
    let image = world.registry().push_wasm("trial:2", guest("trial", "wasip2"));
    let mut pod = pods::pod("component", &image, &[], &["args", "env", "COLOR", "exit", "3"]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["env"] = json!([{"name": "COLOR", "value": "red"}]);
    world.create_pod(&pod);
    let pod = world.pod_becomes("component", "ends", |pod| pod["status"]["phase"] == "Failed");
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    // `wasi:cli/exit` of preview 2 knows success and failure, and no numbers.
    assert_eq!(ended["exitCode"], 1, "{pod}");
    let log = world.log_holds("component", "Ok(\"red\")");
    assert!(log.contains("\"exit\", \"3\""), "{log}");
}

#[test]
fn what_succeeds_stays_ended_and_what_fails_is_started_again() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let mut once = pods::pod("once", &image, &["/bin/echo", "done"], &[]);
    once["spec"]["restartPolicy"] = json!("OnFailure");
    world.create_pod(&once);
    let again = pods::pod("again", &image, &["/bin/sh", "-c", "echo $$; exit 7"], &[]);
    world.create_pod(&again);

    let ended = |pod: &serde_json::Value| pod["status"]["phase"] == "Succeeded";
    world.pod_becomes("once", "succeeds", ended);
    let pod = world.pod_becomes("again", "backs off", |pod| {
        pods::restarts(pod) >= 1 && pods::trouble(pod).0 == "CrashLoopBackOff"
    });
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(7), &json!("Error")), "{pod}");
    let once = world.find_pod("once").unwrap();
    assert_eq!(pods::restarts(&once), 0);
    assert!(ended(&once), "{once}");
    // The log of the run before this one.
    let previous = world.kubectl("logs again --previous").ok();
    assert_eq!(previous.lines().count(), 1, "{previous}");
}

#[test]
fn a_pod_has_its_own_network_and_reaches_the_others() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let serve =
        script("mkdir -p /tmp/www; echo ahoy >/tmp/www/index.html; httpd -h /tmp/www -p 80");
    let serve: Vec<&str> = serve.iter().map(String::as_str).collect();
    world.create_pod(&pods::pod("server", &image, &serve, &[]));
    let server = world.pod_becomes_ready("server");
    let address = server["status"]["podIP"].as_str().unwrap();
    let ask =
        format!("until wget -q -O - http://{address}/; do sleep 0.2; done; ip -o addr; hostname");
    let mut client = pods::pod("client", &image, &["/bin/sh", "-c", &ask], &[]);
    client["spec"]["restartPolicy"] = json!("Never");
    world.create_pod(&client);
    world.pod_becomes("client", "succeeds", |pod| pod["status"]["phase"] == "Succeeded");
    let log = world.log_holds("client", "client");
    assert!(log.starts_with("ahoy\n"), "{log}");
    // An address of the node's own part of the pods' addresses, and another than the server's.
    assert!(log.contains(" 10.42.") && !log.contains(&format!(" {address}/")), "{log}");
    assert!(!log.contains("10.201.0."), "the board's own link is not in the pod: {log}");
    assert_eq!(log.lines().last(), Some("client"));
}

#[test]
fn secrets_reach_a_pod_and_stay_off_the_disk() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"},
        "stringData": {"password": "open-sesame-4711"},
    });
    world.api.create("/api/v1/namespaces/default/secrets", &secret).ok();
    let lines = script("cat /key/password; echo; echo $PASSWORD");
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut pod = pods::pod("keeper", &image, &lines, &[]);
    pod["spec"]["volumes"] = json!([{"name": "key", "secret": {"secretName": "key"}}]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "key", "mountPath": "/key", "readOnly": true}]);
    container["env"] = json!([{"name": "PASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "key", "key": "password"}}}]);
    world.create_pod(&pod);
    world.pod_becomes_ready("keeper");
    let log = world.log_holds("keeper", "open-sesame-4711\nopen-sesame-4711");
    assert_eq!(log.lines().count(), 2);
    // Not in any log of ours, nor on the command line of anything.
    let logs = [world.master.log(), world.agents[0].log()].concat();
    assert!(!logs.contains("open-sesame"), "{logs}");
    assert_eq!(crate::harness::process::processes(&["open-sesame"]), Vec::<i32>::new());
    let pods = world.agents[0].state_dir().join("pods");
    let found = crate::harness::run_program("grep", &["-rl", "open-sesame", path_text(&pods)]);
    assert_eq!(found.out, "", "a Secret's file is on the disk");
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("the tests' folders are plain")
}
