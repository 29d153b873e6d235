//! What changes of pods cost the controller of Services' endpoints, among many
//! pods and Services of one namespace. Prints, asserts nothing.
//!
//! `cargo run --release -p pinnace-controllers --example services [pods] [services]`

use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;
use pinnace_controllers::cache::Cache;
use pinnace_controllers::cluster::{Cluster, ClusterError, kinds};
use pinnace_controllers::fake::FakeCluster;
use pinnace_controllers::service_endpoints::{Caches, Controller, feed};
use pinnace_controllers::{projection, runner};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Changes that are timed; few, since the fake's watches look through its whole log.
const CHANGES: usize = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClusterError> {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<usize>().expect("a number"));
    let n_pods = numbers.next().unwrap_or(10_000);
    let n_services = numbers.next().unwrap_or(1_000);
    let cluster = Arc::new(FakeCluster::new());
    let shutdown = CancellationToken::new();
    let caches = Caches {
        services: Cache::new(kinds::services()),
        slices: Cache::new(kinds::endpoint_slices()),
        endpoints: Cache::new(kinds::endpoints()),
        pods: Cache::new(kinds::pods()),
        nodes: Cache::new(kinds::nodes()),
    };
    for n in 0..n_services {
        cluster.create(kinds::services(), "default", service(n)).await?;
    }
    for n in 0..n_pods {
        cluster.create(kinds::pods(), "default", pod(n, n_services)).await?;
    }
    let begin = Instant::now();
    follow(&caches.services, &cluster, &shutdown).await;
    follow(&caches.slices, &cluster, &shutdown).await;
    follow(&caches.endpoints, &cluster, &shutdown).await;
    follow(&caches.nodes, &cluster, &shutdown).await;
    let listed = begin.elapsed();
    let (sender, receiver) = runner::queue();
    let members = feed(&caches, &sender);
    follow(&caches.pods, &cluster, &shutdown).await;
    let indexed = begin.elapsed();
    let controller = Arc::new(Controller::new(Arc::clone(&cluster), caches.clone(), members));
    let run = runner::run("services", runner::Config::default(), receiver, shutdown.clone(), {
        move |key: ObjectKey| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        }
    });
    let run = tokio::spawn(run);
    settle(&cluster, 2 * n_services).await;
    let converged = begin.elapsed();
    cluster.compact();
    let before = cluster.revision();
    let begin = Instant::now();
    for n in 0..CHANGES {
        let key = ObjectKey::new("default", &format!("pod-{}", n % n_pods));
        cluster.edit(kinds::pods(), &key, |pod| {
            pod["status"]["conditions"][0]["status"] = "False".into();
        });
        caches.pods.reached(cluster.revision()).await?;
    }
    let followed = begin.elapsed();
    #[allow(clippy::print_stdout)]
    {
        println!(
            "pods={n_pods} services={n_services} list_ms={} index_ms={} converge_ms={} \
             us_per_pod_change={} writes={}",
            listed.as_millis(),
            (indexed - listed).as_millis(),
            (converged - indexed).as_millis(),
            followed.as_micros() / CHANGES as u128,
            cluster.revision() - before - CHANGES as u64,
        );
    }
    shutdown.cancel();
    let _ = run.await;
    Ok(())
}

async fn follow<T: projection::Projection>(
    cache: &Cache<T>,
    cluster: &Arc<FakeCluster>,
    shutdown: &CancellationToken,
) {
    tokio::spawn(cache.clone().run(Arc::clone(cluster), shutdown.clone()));
    cache.synced().await;
}

/// Waits until there are that many slices and Endpoints, and nothing is written.
async fn settle(cluster: &FakeCluster, n_objects: usize) {
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let made = cluster.objects(kinds::endpoint_slices()).len()
            + cluster.objects(kinds::endpoints()).len();
        if made >= n_objects && cluster.revision() == last {
            return;
        }
        last = cluster.revision();
    }
}

fn service(n: usize) -> api::Value {
    json!({
        "metadata": {"name": format!("web-{n}")},
        "spec": {"type": "ClusterIP", "ipFamilies": ["IPv4"],
            "selector": {"app": format!("web-{n}"), "tier": "backend"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
    })
}

fn pod(n: usize, n_services: usize) -> api::Value {
    let set = n % n_services;
    json!({
        "metadata": {"name": format!("pod-{n}"), "labels": {"app": format!("web-{set}"),
            "tier": "backend", "pod-template-hash": "7f9c6d5b4d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": format!("web-{set}-7f9c6d5b4d"), "uid": format!("uid-{set}")}]},
        "spec": {"nodeName": format!("board-{:04}", n % 1000),
            "containers": [{"name": "main", "image": format!("registry.local/web-{set}:1.0")}]},
        "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", n / 200, n % 200 + 2),
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}
