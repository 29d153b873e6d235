//! Pods from a folder of the board: they need no master, and the master shows them.

use std::fs;

use crate::harness::World;
use crate::harness::pods::{self, condition, is_ready};
use crate::harness::wait::{check, until};

const NAME: &str = "lamp-node-1";

#[test]
fn a_pod_of_the_boards_own_folder_runs_without_the_master_and_is_mirrored() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let folder = world.agents[0].state_dir().join("manifests");
    let pod = pods::pod("lamp", &image, &["/bin/sh", "-c", "echo on; exec sleep 1000"], &[]);
    // As a careful editor does: written beside, then moved.
    let write = |name: &str, text: &str| {
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), folder.join(name)).unwrap();
    };
    write("lamp.json", &pod.to_string());
    let mirror = world.pod_becomes(NAME, "is ready", is_ready);
    assert_eq!(mirror["spec"]["nodeName"], "node-1");
    assert!(mirror["status"]["podIP"].is_string(), "{mirror}");
    let logs = world.kubectl(&format!("logs {NAME}"));
    assert_eq!(logs.ok().trim(), "on");

    // Who deletes the mirror deletes what shows it, not the pod.
    let running = world.agents[0].processes_by_container();
    let uid = mirror["metadata"]["uid"].clone();
    world.kubectl(&format!("delete pod {NAME} --wait=false")).ok();
    world.pod_becomes(NAME, "is shown again", |pod| pod["metadata"]["uid"] != uid && is_ready(pod));
    assert_eq!(world.agents[0].processes_by_container(), running);

    // A file that is wrong is a finding of the node and stops nothing.
    write("wrong.yaml", "kind: Pod\n");
    until("the node says so", || {
        let node = world.api.get("/api/v1/nodes/node-1").ok();
        let said = condition(&node, "StaticPods");
        let names_the_file = node["status"]["conditions"].to_string().contains("wrong.yaml");
        check(said == "True" && names_the_file, || node["status"]["conditions"].to_string())
    });
    assert_eq!(world.agents[0].processes_by_container(), running);

    world.master.kill();
    world.lose_power(0);
    world.boot(0);
    until("it runs again without the master", || {
        let running = world.agents[0].running();
        check(running.len() == 1, || format!("{running:?}"))
    });
    world.restart_master();
    world.node_becomes_ready("node-1");
    world.pod_becomes(NAME, "is ready again", is_ready);

    fs::remove_file(folder.join("lamp.json")).unwrap();
    until("it goes with its file, and its mirror too", || {
        let (running, mirror) = (world.agents[0].running(), world.find_pod(NAME));
        check(running.is_empty() && mirror.is_none(), || format!("{running:?} {mirror:?}"))
    });
}
