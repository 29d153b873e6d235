//! A master with many nodes and pods, all through its API. Pods are created by
//! 50 clients; binds a second are counted from the first pod to the last as a
//! watch shows `spec.nodeName`, so creation, scheduling and both durable writes
//! share the machine. Then every pod gets a status as an agent would report it,
//! and the master's PSS is read. The nodes are objects only, no agent is
//! connected to the master.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams, WatchEvent};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Admin, kube, pods, watch_pods};
use crate::proc::memory;
use crate::report::{note, value};
use crate::world::{World, image};

const N_CLIENTS: usize = 50;

pub(crate) async fn measure(
    world: &mut World,
    n_nodes: usize,
    n_pods: usize,
) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--pod-cidr", "10.128.0.0/9"]).await?;
    let client = kube(world).await?;
    make_nodes(&client, n_nodes).await?;
    let pods = pods(&client);
    let mut events = watch_pods(&pods).await?;
    let admin = Admin::read(&world.kubeconfig())?;
    let started = Instant::now();
    let creating = tokio::spawn(create_pods(admin, n_pods));
    let mut bound = HashSet::new();
    let (mut first, mut last) = (None, started);
    let watching = async {
        while bound.len() < n_pods {
            let event = events.next().await.context("the watch ended")??;
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                if let WatchEvent::Error(status) = event {
                    bail!("the watch ended: {status:?}");
                }
                continue;
            };
            if pod.spec.is_some_and(|spec| spec.node_name.is_some())
                && bound.insert(pod.metadata.name.unwrap_or_default())
            {
                last = Instant::now();
                first.get_or_insert(last);
            }
        }
        Ok(())
    };
    timeout(Duration::from_secs(300), watching).await.context("not bound within 300 s")??;
    let created = creating.await??;
    let span = last - first.unwrap_or(started);
    let rate = n_pods as f64 / span.as_secs_f64();
    value(
        "durable binds, end to end",
        &format!("{rate:.0} binds/s"),
        ">= 5000 binds/s",
        rate >= 5000.0,
    );
    note(&format!(
        "{n_pods} pods on {n_nodes} nodes; created in {:.1} s ({:.0}/s), bound {:.1} s after the first bind",
        created.as_secs_f64(),
        n_pods as f64 / created.as_secs_f64(),
        span.as_secs_f64()
    ));
    report_running(&pods, n_pods).await?;
    sleep(Duration::from_secs(10)).await;
    let pss = memory(world.master_pid()?)?.pss as f64 * 1.024 / 1000.0;
    value(
        &format!("master with {n_nodes} nodes and {n_pods} pods"),
        &format!("{pss:.1} MB PSS"),
        "<= 110 MB",
        pss <= 110.0,
    );
    Ok(())
}

async fn make_nodes(client: &kube::Client, n_nodes: usize) -> anyhow::Result<()> {
    // The one that the image in the registry is for.
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let nodes: Api<Node> = Api::all(client.clone());
    stream::iter(0..n_nodes)
        .map(|n| {
            let nodes = nodes.clone();
            async move {
                let name = format!("board-{n:04}");
                let node = json!({
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": name, "labels": {
                        "kubernetes.io/arch": architecture, "kubernetes.io/os": "linux",
                        "kubernetes.io/hostname": name, "pinnace.io/runtime-wasm": "true"}},
                });
                nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
                let amounts = json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
                let status = json!({"status": {
                    "capacity": amounts, "allocatable": amounts,
                    "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady"}],
                    "nodeInfo": {"architecture": architecture, "operatingSystem": "linux",
                        "kernelVersion": "6.12.0", "osImage": "Debian GNU/Linux 13",
                        "kubeletVersion": "v1.35.0", "kubeProxyVersion": "", "machineID": "",
                        "systemUUID": "", "bootID": "", "containerRuntimeVersion": ""},
                }});
                let params = PatchParams::default();
                nodes.patch_status(&name, &params, &Patch::Merge(status)).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(N_CLIENTS)
        .try_collect()
        .await
}

async fn create_pods(admin: Admin, n_pods: usize) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let clients: Vec<usize> = (0..N_CLIENTS).collect();
    futures::future::try_join_all(clients.into_iter().map(|client| {
        let admin = admin.clone();
        async move {
            let mut connection = admin.connect().await?;
            for n in (client..n_pods).step_by(N_CLIENTS) {
                let pod = json!({
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": format!("app-{:03}-{n:05}", n / 100),
                        "labels": {"app": format!("app-{:03}", n / 100)}},
                    "spec": {"containers": [{
                        "name": "main", "image": image("oci"),
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                    }]},
                });
                connection.create("/api/v1/namespaces/default/pods", &pod).await?;
            }
            anyhow::Ok(())
        }
    }))
    .await?;
    Ok(started.elapsed())
}

async fn report_running(pods: &Api<Pod>, n_pods: usize) -> anyhow::Result<()> {
    stream::iter(0..n_pods)
        .map(|n| {
            let pods = pods.clone();
            async move {
                let name = format!("app-{:03}-{n:05}", n / 100);
                let address = format!("10.128.{}.{}", n / 250, n % 250 + 1);
                let time = "2026-01-01T00:00:00Z";
                let ready = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": time});
                let status = json!({"status": {
                    "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                    "startTime": time,
                    "conditions": [ready("Initialized"), ready("Ready"), ready("ContainersReady"), ready("PodScheduled")],
                    "containerStatuses": [{
                        "name": "main", "ready": true, "started": true, "restartCount": 0,
                        "image": image("oci"), "imageID": "sha256:0",
                        "containerID": format!("pinnace://{n:064}"),
                        "state": {"running": {"startedAt": time}},
                    }],
                }});
                pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(N_CLIENTS)
        .try_collect()
        .await
}
