//! `pinnace backup`: a cluster comes back from one file, and what runs meanwhile
//! is not stopped behind the operator's back.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use crate::harness::World;
use crate::harness::pods::{self, name};
use crate::harness::wait::{check, throughout, until};

#[test]
fn a_restored_cluster_keeps_what_runs_until_the_operator_confirms() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let sleep = |name: &str| pods::pod(name, &image, &["/bin/sleep", "10000"], &[]);
    world.create_pod(&sleep("old"));
    world.pod_becomes_ready("old");
    let epoch = |world: &World| {
        let info = world.api.get("/api/v1/namespaces/kube-public/configmaps/cluster-info").ok();
        info["data"]["epoch"].as_str().unwrap().to_owned()
    };
    let epoch_before = epoch(&world);
    let file = world.dir().join("cluster.backup");
    let file_name = file.to_str().unwrap().to_owned();
    world.pinnace_with(&["backup", "create", &file_name], "").ok();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // It replaces nothing unasked.
    let error = world.pinnace_with(&["backup", "create", &file_name], "").failed();
    assert!(error.contains("--overwrite"), "{error}");

    // After the backup: a pod that the backup does not know.
    world.create_pod(&sleep("new"));
    world.pod_becomes_ready("new");
    let before = world.agents[0].processes_by_container();
    assert_eq!(before.len(), 2);

    // The master's disk dies.
    world.master.kill();
    let data = world.master.data_dir();
    std::fs::remove_dir_all(&data).unwrap();
    let data = data.to_str().unwrap().to_owned();
    world.pinnace_with(&["backup", "restore", &file_name, "--data-dir", &data], "").ok();
    world.restart_master();
    assert_ne!(epoch(&world), epoch_before);
    world.node_becomes_ready("node-1");
    let old = world.pod_becomes_ready("old");
    assert_eq!(pods::restarts(&old), 0);
    assert!(world.find_pod("new").is_none());

    throughout("both go on running", Duration::from_secs(3), || {
        let now = world.agents[0].processes_by_container();
        check(now == before, || format!("{before:?} became {now:?}"))
    });
    // What is done meanwhile works.
    world.create_pod(&sleep("newer"));
    world.pod_becomes_ready("newer");
    let held = world.agents[0].processes_by_container();
    assert_eq!(held.len(), 3);
    // An agent that starts anew holds them as well.
    world.agents[0].kill();
    world.start_agent(0);
    world.node_becomes_ready("node-1");
    throughout("all go on running", Duration::from_secs(3), || {
        let now = world.agents[0].processes_by_container();
        check(now == held, || format!("{held:?} became {now:?}"))
    });

    world.pinnace("node confirm --all").ok();
    until("the unknown pod is gone", || {
        let running = world.agents[0].running();
        let names: Vec<_> = running.iter().map(|one| one.pod.as_str()).collect();
        check(names == ["newer", "old"], || format!("{names:?}"))
    });
    let now = world.agents[0].processes_by_container();
    let old_key = ("old".to_owned(), "main".to_owned());
    assert_eq!(now.get(&old_key), before.get(&old_key));
    // Deleting works as ever.
    for pod in world.api.list("/api/v1/namespaces/default/pods") {
        world.delete(&format!("/api/v1/namespaces/default/pods/{}", name(&pod)));
    }
    world.agents[0].becomes_clean(&world.network);
}

#[test]
fn a_restore_never_overwrites_a_cluster() {
    let world = World::master_only();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "precious"}});
    world.api.create("/api/v1/namespaces/default/configmaps", &map).ok();
    let file = world.dir().join("cluster.backup");
    let file = file.to_str().unwrap();
    world.pinnace_with(&["backup", "create", file], "").ok();
    let data = world.master.data_dir();
    let data = data.to_str().unwrap();
    let error = world.pinnace_with(&["backup", "restore", file, "--data-dir", data], "").failed();
    assert!(error.contains(data), "{error}");
    world.api.get("/api/v1/namespaces/default/configmaps/precious").ok();
}
