//! `kubectl top` and `pinnace top`, measured on boards that run.

use serde_json::json;

use crate::harness::World;
use crate::harness::pods::{self, script};
use crate::harness::programs::guest;
use crate::harness::wait::{check, until};

/// The number before `unit` in the column of the row that begins with `name`.
fn cell(table: &str, name: &str, column: usize, unit: &str) -> Option<u64> {
    let row = table.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    row.split_whitespace().nth(column)?.strip_suffix(unit)?.parse().ok()
}

#[test]
fn what_pods_and_nodes_use_is_shown() {
    let mut world = World::with_nodes(2);
    world.registry().push_busybox("box:1", &[]);
    let image = world.registry().image("box:1");
    let on = |mut pod: serde_json::Value, node: &str| {
        pod["spec"]["nodeName"] = json!(node);
        pod
    };
    // Half a processor, and forty MiB in a volume of memory.
    let busy = "dd if=/dev/zero of=/memory/big bs=1M count=40 2>/dev/null; echo full\n\
                while true; do :; done";
    let mut pod = pods::pod("busy", &image, &["/bin/sh", "-c", busy], &[]);
    let container = &mut pod["spec"]["containers"][0];
    container["resources"] = json!({"limits": {"cpu": "200m"}});
    container["volumeMounts"] = json!([{"name": "memory", "mountPath": "/memory"}]);
    pod["spec"]["volumes"] = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    world.create_pod(&on(pod, "node-1"));
    let idle = script("echo ready");
    let idle: Vec<&str> = idle.iter().map(String::as_str).collect();
    world.create_pod(&on(pods::pod("idle", &image, &idle, &[]), "node-2"));
    let module = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    world.create_pod(&on(pods::pod("module", &module, &[], &["spin"]), "node-2"));
    for name in ["busy", "idle", "module"] {
        world.pod_becomes_ready(name);
    }
    world.log_holds("busy", "full");

    let table = until("all are measured", || {
        let table = world.kubectl("top pods").ok();
        let millis = |name| cell(&table, name, 1, "m").unwrap_or(0);
        let memory = cell(&table, "busy", 2, "Mi").unwrap_or(0);
        let holds = millis("busy") >= 20 && millis("module") >= 20 && memory >= 40;
        check(holds, || table.clone()).map(|()| table.clone())
    });
    assert!(cell(&table, "busy", 1, "m") < Some(600), "{table}");
    assert!(cell(&table, "idle", 2, "Mi").is_some(), "{table}");
    let one = world.kubectl("top pod busy --containers").ok();
    assert!(one.contains("main"), "{one}");
    let chosen = world.kubectl("top pods -l app=idle").ok();
    assert!(chosen.contains("idle") && !chosen.contains("busy"), "{chosen}");
    let ours = world.pinnace("top pods --containers --sort-by cpu").ok();
    assert!(ours.starts_with("POD"), "{ours}");
    assert!(world.pinnace("top pods -A").ok().contains("default"), "all namespaces");

    for table in [world.kubectl("top nodes").ok(), world.pinnace("top nodes").ok()] {
        for node in ["node-1", "node-2"] {
            assert!(cell(&table, node, 3, "Mi") > Some(100), "{table}");
            assert!(cell(&table, node, 4, "%").is_some(), "{table}");
        }
    }
    let path = "/apis/metrics.k8s.io/v1beta1/nodes/node-1";
    let node = world.api.get(path).ok();
    assert_eq!(node["kind"], "NodeMetrics", "{node}");
    assert!(node["usage"]["cpu"].is_string() && node["window"].is_string(), "{node}");
    let message = world.api.get("/apis/metrics.k8s.io/v1beta1/nodes/none").refused(404, "NotFound");
    assert!(message.contains("nodes.metrics.k8s.io \"none\" not found"), "{message}");
    // Shown, and not changed; and only to those who may.
    world.api.delete(path).refused(405, "MethodNotAllowed");
    let nobody = crate::harness::api::Api::nobody(&world.master.kubeconfig());
    assert!(matches!(nobody.get(path).status, 401 | 403));
    // Pods are still pods.
    assert!(world.kubectl("get pods").ok().contains("Running"));

    // A node that is away is left out, and what is there is shown.
    world.agents[1].kill();
    until("the other is shown alone", || {
        let table = world.pinnace("top nodes").ok();
        let alone = cell(&table, "node-1", 1, "m").is_some() && table.contains("<unknown>");
        check(alone, || table)
    });
}
