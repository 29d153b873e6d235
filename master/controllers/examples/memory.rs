//! What the projections of a fleet cost. Prints, asserts nothing.
//!
//! `cargo run --release -p pinnace-controllers --example memory [pods] [nodes]`

use std::sync::Arc;

use pinnace_controllers::cache::Cache;
use pinnace_controllers::cluster::{Cluster, ClusterError, kinds};
use pinnace_controllers::fake::FakeCluster;
use pinnace_controllers::projection::Pod;
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClusterError> {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<usize>().expect("a number"));
    let n_pods = numbers.next().unwrap_or(10_000);
    let n_nodes = numbers.next().unwrap_or(1_000);
    // The objects are only shown to the cache, one at a time, and not kept.
    let cluster = Arc::new(FakeCluster::new());
    let cache: Cache<Pod> = Cache::new(kinds::pods());
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(cache.clone().run(Arc::clone(&cluster), shutdown.clone()));
    cache.synced().await;
    let before = anonymous_kib();
    for n in 0..n_pods {
        let created = cluster.create(kinds::pods(), "default", pod(n, n_nodes)).await?;
        cache.reached(pinnace_controllers::cluster::revision_of(&created)).await?;
        cluster.remove_silently(kinds::pods(), &api::meta::object_key(&created));
    }
    let after = anonymous_kib();
    let bytes = (after - before) * 1024 / n_pods;
    #[allow(clippy::print_stdout)]
    {
        println!("pods={} anonymous_kib={} bytes/pod={bytes}", cache.n_objects(), after - before);
    }
    shutdown.cancel();
    let _ = run.await;
    Ok(())
}

fn pod(n: usize, n_nodes: usize) -> api::Value {
    let set = n / 10;
    json!({
        "metadata": {
            "generateName": format!("web-{set}-7f9c6d5b4d-"),
            "labels": {"app": format!("web-{set}"), "pod-template-hash": "7f9c6d5b4d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": format!("web-{set}-7f9c6d5b4d"), "blockOwnerDeletion": true,
                "uid": format!("11111111-0000-4000-8000-{set:012x}")}],
        },
        "spec": {
            "nodeName": format!("board-{:04}", n % n_nodes),
            "schedulerName": "default-scheduler",
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}],
            "containers": [{"name": "main", "image": format!("registry.local/web-{set}:1.0"),
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}],
        },
        "status": {"phase": "Running", "podIP": "10.42.0.7"},
    })
}

fn anonymous_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}
