//! A machine of the profile `lan` loses power, at a random moment between two of
//! its heartbeats: from there until a watch shows its node not Ready; and from
//! there, less the toleration of 2 s, until a Deployment's replacement is
//! Running on the other node, image present.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{is_running, kube, node_becomes_ready, pod, pods, readiness, watch_pods};
use crate::report::{Samples, note, value};
use crate::world::{World, until};

const TOLERATION: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(120);
const BOARDS: [&str; 2] = ["north", "south"];

pub(crate) async fn measure(world: &mut World, rounds: usize) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--link-profile", "lan"]).await?;
    let client = kube(world).await?;
    for board in BOARDS {
        world.join(board)?;
        world.start_agent(board)?;
        node_becomes_ready(&client, board).await?;
    }
    // Two replicas, so that each node has the image.
    create_deployment(&client).await?;
    let (mut lost, mut replaced) = (Vec::new(), Vec::new());
    for n in 0..rounds {
        let pods = pods(&client);
        until("two replicas run", 60, async || {
            let list = pods.list(&ListParams::default()).await?.items;
            let settled = list.len() == 2 && list.iter().all(is_running);
            Ok(settled.then_some(()))
        })
        .await?;
        // Wherever more run, so that there is something to replace.
        let list = pods.list(&ListParams::default()).await?.items;
        let on = |board: &str| {
            let of = |pod: &&k8s_openapi::api::core::v1::Pod| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(board)
            };
            list.iter().filter(of).count()
        };
        let board = if on(BOARDS[0]) >= on(BOARDS[1]) { BOARDS[0] } else { BOARDS[1] };
        // Spread over the heartbeat of 10 s.
        sleep(Duration::from_millis(u64::try_from(n * 3_700 % 10_000)?)).await;
        let (not_ready, running) = one(world, &client, board).await?;
        lost.push(not_ready);
        replaced.push(running);
        world.start_agent(board)?;
        node_becomes_ready(&client, board).await?;
    }
    let lost = Samples::of_durations(&lost);
    let shown = |all: &Samples| {
        format!(
            "median {:.2} s, min {:.2}, max {:.2}",
            all.median() / 1000.0,
            all.min() / 1000.0,
            all.max() / 1000.0
        )
    };
    value(
        "node lost to NotReady, lan",
        &shown(&lost),
        "<= 16 s (the slowest counts)",
        lost.max() <= 16_000.0,
    );
    let replaced = Samples::of_durations(&replaced);
    value(
        "then, after the toleration, to the replacement's Running",
        &shown(&replaced),
        "<= 2 s",
        replaced.median() <= 2000.0,
    );
    note(&format!("{rounds} rounds"));
    Ok(())
}

/// Kills the board's machine; returns the time to NotReady, and from there plus
/// the toleration to the replacement's Running.
async fn one(
    world: &mut World,
    client: &kube::Client,
    board: &str,
) -> anyhow::Result<(Duration, Duration)> {
    let nodes: Api<Node> = Api::all(client.clone());
    let revision = nodes.list(&ListParams::default()).await?.metadata.resource_version;
    let revision = revision.context("a list has a revision")?;
    let mut node_events = nodes.watch(&WatchParams::default(), &revision).await?.boxed();
    let pods = pods(client);
    let known: Vec<String> =
        pods.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
    let mut pod_events = watch_pods(&pods).await?;
    let died = Instant::now();
    world.lose_power(board)?;
    let lost = async {
        while let Some(event) = node_events.next().await {
            match event? {
                WatchEvent::Modified(node)
                    if node.name_any() == board && readiness(&node) != "True" =>
                {
                    return Ok(Instant::now());
                }
                WatchEvent::Error(status) => bail!("the watch ended: {status:?}"),
                _ => {}
            }
        }
        bail!("the watch ended")
    };
    let lost = timeout(LIMIT, lost).await.context("the node stays Ready")??;
    let replaced = async {
        while let Some(event) = pod_events.next().await {
            match event? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod)
                    if !known.contains(&pod.name_any()) && is_running(&pod) =>
                {
                    return Ok(Instant::now());
                }
                WatchEvent::Error(status) => bail!("the watch ended: {status:?}"),
                _ => {}
            }
        }
        bail!("the watch ended")
    };
    let running = timeout(LIMIT, replaced).await.context("nothing was replaced")??;
    Ok((lost - died, running.saturating_duration_since(lost + TOLERATION)))
}

async fn create_deployment(client: &kube::Client) -> anyhow::Result<()> {
    let mut template = serde_json::to_value(pod("oci", "web")?)?;
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION.as_secs()});
    template["spec"]["tolerations"] = json!([
        tolerate("node.kubernetes.io/not-ready"),
        tolerate("node.kubernetes.io/unreachable"),
    ]);
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"kind": "oci"}},
            "template": {"metadata": {"labels": {"kind": "oci"}}, "spec": template["spec"]},
        },
    });
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    Ok(())
}
