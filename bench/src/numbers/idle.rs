//! Bytes on the links of idle nodes: one node of each profile with a pod of each
//! kind on it, counted in both directions at the node's port on the switch. The
//! kernel counts whole Ethernet frames: TCP acknowledgements and ARP are in; IPv6
//! is off, whose hosts ask the whole switch for routers. And what the agents and
//! the shims cost meanwhile: processor time, wake-ups, bytes to the disk.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::sleep;

use crate::client::{is_running, kube, node_becomes_ready, pod, pods};
use crate::proc;
use crate::report::{note, value};
use crate::world::{World, until};

/// Profile, board, bar in KB a day.
const PROFILES: [(&str, &str, Option<f64>); 3] =
    [("lan", "north", None), ("wan", "south", Some(300.0)), ("cellular", "east", Some(64.0))];
/// Longer than a heartbeat of the slowest profile takes to be agreed on.
const SETTLE: Duration = Duration::from_secs(30);

pub(crate) async fn measure(world: &mut World, seconds: u64) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&[]).await?;
    let client = kube(world).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    for (profile, board, _) in PROFILES {
        world.join(board)?;
        world.start_agent(board)?;
        node_becomes_ready(&client, board).await?;
        let label = json!({"metadata": {"labels": {"pinnace.io/link-profile": profile}}});
        nodes.patch(board, &PatchParams::default(), &Patch::Merge(label)).await?;
        for kind in ["oci", "wasm"] {
            let name = format!("{kind}-{board}");
            let mut pod = pod(kind, &name)?;
            let spec = pod.spec.as_mut().context("a pod has a spec")?;
            spec.node_selector =
                Some([("kubernetes.io/hostname".to_owned(), board.to_owned())].into());
            let pods = pods(&client);
            pods.create(&PostParams::default(), &pod).await?;
            until(&format!("{name} runs"), 60, async || {
                Ok(pods.get_opt(&name).await?.filter(is_running).map(|_| ()))
            })
            .await?;
        }
    }
    sleep(SETTLE).await;
    let used = PROFILES.map(|(_, board, _)| cost(world, board));
    let before = PROFILES.map(|(_, board, _)| count(board));
    sleep(Duration::from_secs(seconds)).await;
    let after = PROFILES.map(|(_, board, _)| count(board));
    let now = PROFILES.map(|(_, board, _)| cost(world, board));
    for (((profile, _, bar), before), after) in PROFILES.into_iter().zip(before).zip(after) {
        let [bytes, frames] = [0, 1].map(|at| (after[at] - before[at]) as f64);
        let minute = bytes * 60.0 / seconds as f64;
        let day_kb = minute * 1440.0 / 1000.0;
        let shown = format!(
            "{minute:.0} bytes a minute in {:.1} frames, {day_kb:.0} KB a day",
            frames * 60.0 / seconds as f64
        );
        match bar {
            Some(bar) => value(
                &format!("idle link, {profile}"),
                &shown,
                &format!("<= {bar} KB a day"),
                day_kb <= bar,
            ),
            None => note(&format!("idle link, {profile}: {shown}, no bar")),
        }
    }
    for ((profile, board, _), (before, now)) in PROFILES.into_iter().zip(used.into_iter().zip(now))
    {
        let day = 86_400.0 / seconds as f64;
        for ((who, before), (_, now)) in before?.into_iter().zip(now?) {
            let cpu = (now.cpu - before.cpu).as_secs_f64() * day;
            let wake_ups = (now.wake_ups - before.wake_ups) as f64 / seconds as f64;
            let disk = (now.disk - before.disk) as f64 * day / 1000.0;
            let shown = format!(
                "{cpu:.1} s of processor, {disk:.0} KB to the disk a day, {wake_ups:.2} wake-ups a second"
            );
            note(&format!("{profile}, {who} on {board}: {shown}"));
        }
    }
    note(&format!("counted for {seconds} s, scaled to a day; Ethernet frames in both directions"));
    Ok(())
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
struct Cost {
    cpu: Duration,
    wake_ups: u64,
    disk: u64,
}

/// Of a board's agent, and of the shims and guests of its pods together.
fn cost(world: &World, board: &str) -> anyhow::Result<[(&'static str, Cost); 2]> {
    let agent = world.agent_pid(board)?;
    let containers = world.run_dir(board).join("containers").display().to_string();
    let sum = |pids: &[u32]| Cost {
        cpu: pids.iter().map(|pid| proc::cpu_time(*pid)).sum(),
        wake_ups: pids.iter().map(|pid| proc::wake_ups(*pid)).sum(),
        disk: pids.iter().map(|pid| proc::disk_bytes(*pid)).sum(),
    };
    Ok([("the agent", sum(&[agent])), ("shims and guests", sum(&proc::find(&[containers])))])
}

/// Bytes and frames over a port, both directions.
fn count(port: &str) -> [u64; 2] {
    // Not /sys, which shows the namespace it was mounted in.
    let text = proc::read("/proc/thread-self/net/dev");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{port}:")));
    let fields: Vec<u64> = line
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let at = |n: usize| fields.get(n).copied().unwrap_or(0);
    [at(0) + at(8), at(1) + at(9)]
}
