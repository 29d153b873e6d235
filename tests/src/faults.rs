//! Boards that vanish, programs that are killed, links that are cut: what runs
//! goes on running, and what is lost is replaced.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::agent::Agent;
use crate::harness::pods::{self, condition, name, node, restarts};
use crate::harness::programs::guest;
use crate::harness::wait::{check, throughout, until};

/// How long "nothing happens" is watched. A bug that restarts pods does so as
/// soon as the two sides have spoken.
const QUIET: Duration = Duration::from_secs(3);

/// Counts in the log of every shell pod, ten lines a second.
const COUNT: &str = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.1; done";

/// Containers of all boards and the processes they have.
type Processes = BTreeMap<(String, String), (i64, i64)>;

/// A cluster in which a Deployment of each kind runs on every board, and leaves
/// a lost board after Kubernetes' usual five minutes.
fn busy(n_nodes: u8) -> World {
    busy_and(n_nodes, |_| ())
}

/// The same with the Deployments changed.
fn busy_and(n_nodes: u8, change: impl Fn(&mut Value)) -> World {
    let world = World::with_nodes(n_nodes);
    let shell = world.registry().push_busybox("shell:1", &[]);
    let greeter = world.registry().push_wasm("greeter:1", guest("greeter", "wasip1"));
    let replicas = u32::from(n_nodes);
    let count = ["/bin/sh", "-c", COUNT];
    for (app, pod) in [
        ("oci", pods::pod("", &shell, &count, &[])),
        ("wasm", pods::pod("", &greeter, &[], &["/nothing"])),
    ] {
        let mut deployment = pods::deployment(app, replicas, pod);
        change(&mut deployment);
        world.create_deployment(&deployment);
    }
    for app in ["oci", "wasm"] {
        world.app_becomes_ready(app, usize::from(n_nodes));
    }
    world
}

fn processes(world: &World) -> Processes {
    let all: Processes = world.agents.iter().flat_map(Agent::processes_by_container).collect();
    assert!(!all.is_empty(), "nothing runs");
    all
}

/// Names and uids of all pods.
fn identities(world: &World) -> BTreeMap<String, Value> {
    let pods = world.api.list("/api/v1/namespaces/default/pods");
    pods.iter().map(|pod| (name(pod), pod["metadata"]["uid"].clone())).collect()
}

/// Nothing has been restarted or replaced since, and nothing is.
#[track_caller]
fn nothing_restarted(world: &World, before: &Processes, pods: &BTreeMap<String, Value>) {
    throughout("no container is touched", QUIET, || {
        let now = processes(world);
        check(now == *before, || format!("{before:?} became {now:?}"))
    });
    assert_eq!(identities(world), *pods);
    for pod in world.api.list("/api/v1/namespaces/default/pods") {
        assert_eq!(restarts(&pod), 0, "{pod}");
        assert_eq!(pod["status"]["phase"], "Running", "{pod}");
    }
}

/// Whether a log has the lines 1, 2, 3, … without a gap.
fn is_complete(log: &str) -> Result<usize, String> {
    let mut n_lines = 0;
    for (at, line) in log.lines().enumerate() {
        check(line == format!("line {}", at + 1), || format!("{line:?} at line {}", at + 1))?;
        n_lines = at + 1;
    }
    Ok(n_lines)
}

/// The log of a pod grows from where it is, and every line is there.
#[track_caller]
fn log_goes_on(world: &World, pod: &str) {
    let now = || is_complete(&world.log_of(pod)?);
    let first = until("the log can be read", now);
    until("the log goes on", || {
        let n = now()?;
        check(n > first, || format!("{n} lines"))
    });
}

#[test]
fn pods_of_a_lost_board_are_replaced_and_cleared_away_when_it_returns() {
    let mut world = busy_and(2, pods::leave_at_once);
    let before = identities(&world);
    let lost_pods: Vec<String> = ["oci", "wasm"]
        .iter()
        .flat_map(|app| world.pods_of(app))
        .filter(|pod| node(pod) == "node-2")
        .map(|pod| name(&pod))
        .collect();
    assert!(!lost_pods.is_empty());

    let lost = world.at("node-2");
    world.lose_power(lost);
    assert_eq!(world.agents[lost].running(), []);
    until("node-2 is not Ready", || {
        let ready = world.readiness("node-2");
        check(ready == "Unknown", || ready.clone())
    });
    until("node-2 is tainted", || {
        let taints = world.api.get("/api/v1/nodes/node-2").ok()["spec"]["taints"].take();
        let keys: Vec<&str> =
            taints.as_array().into_iter().flatten().filter_map(|t| t["key"].as_str()).collect();
        check(keys.contains(&"node.kubernetes.io/unreachable"), || format!("{keys:?}"))
    });
    until("both kinds run on the other board", || {
        for app in ["oci", "wasm"] {
            let all = world.pods_of(app);
            let here = all
                .iter()
                .filter(|pod| node(pod) == "node-1" && condition(pod, "Ready") == "True")
                .count();
            check(here == 2, || format!("{app}: {here} of 2"))?;
        }
        Ok(())
    });

    world.boot(lost);
    world.node_becomes_ready("node-2");
    until("the pods of the lost board are gone", || {
        let now = identities(&world);
        let left: Vec<_> = lost_pods.iter().filter(|pod| now.contains_key(*pod)).collect();
        check(left.is_empty(), || format!("{left:?}"))
    });
    world.agents[lost].becomes_clean(&world.network);
    until("the taint goes", || {
        let taints = world.api.get("/api/v1/nodes/node-2").ok()["spec"]["taints"].take();
        check(!taints.to_string().contains("unreachable"), || taints.to_string())
    });
    // Those that did not move were not touched.
    let now = identities(&world);
    for (pod, uid) in before.iter().filter(|(pod, _)| !lost_pods.contains(pod)) {
        assert_eq!(now.get(pod), Some(uid), "{pod}");
    }
}

#[test]
fn an_agent_that_is_killed_finds_its_pods_untouched_and_no_line_is_lost() {
    let mut world = busy(1);
    let (before, pods) = (processes(&world), identities(&world));
    let counter = name(&world.pods_of("oci")[0]);
    for _ in 0..3 {
        world.agents[0].kill();
        // It writes on while nobody looks.
        throughout("containers outlive the agent", Duration::from_secs(1), || {
            let now = processes(&world);
            check(now == before, || format!("{before:?} became {now:?}"))
        });
        world.start_agent(0);
        world.node_becomes_ready("node-1");
        log_goes_on(&world, &counter);
    }
    nothing_restarted(&world, &before, &pods);
    // And it can still do its work.
    let image = world.registry().image("shell:1");
    world.create_pod(&pods::pod("later", &image, &["/bin/sh", "-c", COUNT], &[]));
    world.pod_becomes_ready("later");
    world.delete("/api/v1/namespaces/default/pods/later");
}

#[test]
fn what_happens_while_the_agent_is_away_is_caught_up_with() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let wait = "until [ -e /tmp/go ]; do sleep 0.1; done; exit 5";
    let mut once = pods::pod("once", &image, &["/bin/sh", "-c", wait], &[]);
    once["spec"]["restartPolicy"] = json!("Never");
    world.create_pod(&once);
    world.pod_becomes_ready("once");
    let keeps = pods::pod("deleted", &image, &["/bin/sh", "-c", COUNT], &[]);
    world.create_pod(&keeps);
    world.pod_becomes_ready("deleted");
    let root = {
        let running = world.agents[0].running();
        let once = running.iter().find(|one| one.pod == "once").unwrap();
        format!("/proc/{}/root/tmp/go", once.pid)
    };
    world.agents[0].kill();
    std::fs::write(root, "").unwrap();
    world.api.delete("/api/v1/namespaces/default/pods/deleted").ok();
    until("the container ends", || {
        let running = world.agents[0].running();
        check(running.iter().all(|one| one.pod != "once"), || format!("{running:?}"))
    });
    world.start_agent(0);
    let pod = world.pod_becomes("once", "failed", |pod| pod["status"]["phase"] == "Failed");
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 5, "{pod}");
    until("the deleted pod is gone", || {
        check(world.find_pod("deleted").is_none(), || "it is still there".to_owned())
    });
}

#[test]
fn a_master_that_is_killed_loses_nothing_and_touches_nothing() {
    let mut world = busy(2);
    let revision = |world: &World| -> u64 {
        let list = world.api.get("/api/v1/configmaps").ok();
        list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    let (before, pods) = (processes(&world), identities(&world));
    for round in 0..3 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("round-{round}")}, "data": {"round": round.to_string()}});
        let made = world.api.create("/api/v1/namespaces/default/configmaps", &map).ok();
        let revision_before = revision(&world);
        world.master.kill();
        throughout("pods outlive the master", Duration::from_secs(1), || {
            check(processes(&world) == before, || "a container changed".to_owned())
        });
        world.restart_master();
        // What was acknowledged is there, as it was.
        let path = format!("/api/v1/namespaces/default/configmaps/round-{round}");
        assert_eq!(world.api.get(&path).ok(), made);
        assert!(revision(&world) >= revision_before);
    }
    for board in ["node-1", "node-2"] {
        world.node_becomes_ready(board);
    }
    nothing_restarted(&world, &before, &pods);
    // New work is done, on what is there.
    let scale = json!({"spec": {"replicas": 4}});
    let path = "/apis/apps/v1/namespaces/default/deployments/oci/scale";
    world.api.merge(path, &scale).ok();
    world.app_becomes_ready("oci", 4);
    for (container, process) in &before {
        assert_eq!(processes(&world).get(container), Some(process), "{container:?}");
    }
}

#[test]
fn a_link_that_is_cut_and_mended_restarts_nothing() {
    let mut world = busy(1);
    let (before, pods) = (processes(&world), identities(&world));
    world.network.cut(world.agents[0].number);
    until("the master misses the node", || {
        let ready = world.readiness("node-1");
        check(ready == "Unknown", || ready.clone())
    });
    assert_eq!(processes(&world), before);
    world.network.mend(world.agents[0].number);
    world.node_becomes_ready("node-1");
    for app in ["oci", "wasm"] {
        world.app_becomes_ready(app, 1);
    }
    nothing_restarted(&world, &before, &pods);
    let counter = name(&world.pods_of("oci")[0]);
    log_goes_on(&world, &counter);
}

#[test]
fn a_board_that_boots_without_its_master_brings_its_pods_back_from_disk() {
    let mut world = busy(1);
    let pods = identities(&world);
    let shape = |all: Vec<crate::harness::agent::Running>| -> Vec<(String, String)> {
        all.into_iter().map(|one| (one.pod, one.container)).collect()
    };
    let before = shape(world.agents[0].running());
    world.master.kill();
    world.lose_power(0);
    assert_eq!(world.agents[0].running(), []);
    world.boot(0);
    until("the same containers run again", || {
        let now = shape(world.agents[0].running());
        check(now == before, || format!("{now:?} instead of {before:?}"))
    });
    world.restart_master();
    world.node_becomes_ready("node-1");
    for app in ["oci", "wasm"] {
        world.app_becomes_ready(app, 1);
    }
    assert_eq!(identities(&world), pods, "the same pods, by uid");
}

#[test]
fn a_finished_pod_does_not_run_again_after_a_power_cut() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let mut pod = pods::pod("once", &image, &["/bin/sh", "-c", "echo ran"], &[]);
    pod["spec"]["restartPolicy"] = json!("Never");
    world.create_pod(&pod);
    world.pod_becomes("once", "succeeds", |pod| pod["status"]["phase"] == "Succeeded");
    let after = world.find_pod("once").unwrap();
    world.lose_power(0);
    world.boot(0);
    world.node_becomes_ready("node-1");
    throughout("it does not run again", QUIET, || {
        let running = world.agents[0].running();
        check(running.is_empty(), || format!("{running:?}"))
    });
    let now = world.find_pod("once").unwrap();
    assert_eq!(now["status"]["phase"], "Succeeded");
    let state = |pod: &Value| pod["status"]["containerStatuses"][0]["state"].clone();
    assert_eq!(state(&now), state(&after));
}

#[test]
fn a_stopped_agent_leaves_its_pods_running() {
    let mut world = busy(1);
    let (before, pods) = (processes(&world), identities(&world));
    let pid = world.agents[0].pid().unwrap();
    let target = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGTERM).unwrap();
    until("the agent ends", || {
        let is_running = world.agents[0].is_running();
        check(!is_running, || "it still runs".to_owned())
    });
    assert_eq!(processes(&world), before);
    world.start_agent(0);
    world.node_becomes_ready("node-1");
    nothing_restarted(&world, &before, &pods);
}
