//! From just before a pod is sent to the API server until a watch, open all the
//! time, shows it Running. One board; the image is on it, since the first pod of
//! each kind is not counted. One pod at a time, the kinds in turn; the next is
//! made once the one before is gone; between them a container of `runc` alone. The CPU request is an option, since a pod's
//! processes have its cgroup's share from early in their start.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, WatchEvent};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{is_running, kube, node_becomes_ready, pod, pods, watch_pods};
use crate::report::{Samples, note, value};
use crate::rival::Rival;
use crate::world::World;

const LIMIT: Duration = Duration::from_secs(60);
/// The kernel goes on taking the network of the pod before apart, for some 40 ms.
const PAUSE: Duration = Duration::from_millis(250);

pub(crate) async fn measure(world: &mut World, n_pods: usize, cpu: &str) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--link-profile", "lan"]).await?;
    world.join("north")?;
    world.start_agent("north")?;
    let client = kube(world).await?;
    node_becomes_ready(&client, "north").await?;
    let mut times = [Vec::new(), Vec::new()];
    let mut bound = [Vec::new(), Vec::new()];
    let rival = Rival::new(world.dir(), "pinnace-bench")?;
    let mut alone = Vec::new();
    for n in 0..=n_pods {
        for (at, kind) in ["oci", "wasm"].iter().enumerate() {
            sleep(PAUSE).await;
            let time = one(&client, kind, &format!("{kind}-{n}"), cpu).await?;
            if n > 0 {
                bound[at].push(time.bound);
                times[at].push(time.running);
            }
        }
        sleep(PAUSE).await;
        alone.push(rival.start()?);
    }
    for ((what, bar_p50, bar_p99), (times, bound)) in
        [("OCI", 60.0, 200.0), ("WASM", 20.0, 60.0)].into_iter().zip(times.iter().zip(&bound))
    {
        let all = Samples::of_durations(times);
        let (p50, p99) = (all.median(), all.percentile(99));
        let shown = |p: f64| format!("{p:.1} ms");
        value(
            &format!("apply to Running, {what}, p50"),
            &shown(p50),
            &format!("<= {bar_p50} ms"),
            p50 <= bar_p50,
        );
        value(
            &format!("apply to Running, {what}, p99"),
            &shown(p99),
            &format!("<= {bar_p99} ms"),
            p99 <= bar_p99,
        );
        note(&format!("{} pods, min {:.1} ms, max {:.1} ms", all.len(), all.min(), all.max()));
        note(&format!(
            "of it until it is bound: p50 {:.1} ms",
            Samples::of_durations(bound).median()
        ));
    }
    let alone = Samples::of_durations(&alone[1..]);
    note(&format!(
        "runc alone, start to its container's first line: p50 {:.1} ms, p99 {:.1} ms",
        alone.median(),
        alone.percentile(99)
    ));
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// Until the watch shows the pod on a node.
    bound: Duration,
    running: Duration,
}

async fn one(client: &kube::Client, kind: &str, name: &str, cpu: &str) -> anyhow::Result<Times> {
    let pods = pods(client);
    let mut events = watch_pods(&pods).await?;
    let mut wanted = pod(kind, name)?;
    let containers = wanted.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    for resources in containers.filter_map(|container| container.resources.as_mut()) {
        let requests = resources.requests.get_or_insert_default();
        requests.insert("cpu".to_owned(), Quantity(cpu.to_owned()));
    }
    let started = Instant::now();
    pods.create(&PostParams::default(), &wanted).await?;
    let mut bound = None;
    let mut took = None;
    let work = async {
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(seen) | WatchEvent::Modified(seen)
                    if took.is_none() && seen.name_any() == name =>
                {
                    let now = started.elapsed();
                    if seen.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
                        bound.get_or_insert(now);
                    }
                    if !is_running(&seen) {
                        continue;
                    }
                    took = Some(Times { bound: bound.unwrap_or(now), running: now });
                    pods.delete(name, &DeleteParams::default()).await?;
                }
                WatchEvent::Deleted(seen) if seen.name_any() == name => {
                    return took.with_context(|| format!("{name} went before it ran"));
                }
                WatchEvent::Error(status) => bail!("the watch ended: {status:?}"),
                _ => {}
            }
        }
        bail!("the watch ended");
    };
    timeout(LIMIT, work).await.with_context(|| format!("{name} does not run within {LIMIT:?}"))?
}
