//! A board loses power while the master is dead, and its agent is started again:
//! from that start until each of its pods has a process, by the agent's own
//! record on its tmpfs. The time of the last pod of a kind counts.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::client::{kube, node_becomes_ready, run_pods};
use crate::proc::is_alive;
use crate::report::{Samples, note, value};
use crate::world::World;

pub(crate) async fn measure(world: &mut World, rounds: usize, n_pods: usize) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--link-profile", "lan"]).await?;
    world.join("north")?;
    world.start_agent("north")?;
    let client = kube(world).await?;
    node_becomes_ready(&client, "north").await?;
    run_pods(&client, "oci", n_pods).await?;
    run_pods(&client, "wasm", n_pods).await?;
    drop(client);
    world.kill_master()?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        world.lose_power("north")?;
        let run_dir = world.run_dir("north");
        let started = Instant::now();
        world.start_agent("north")?;
        let mut ended: [Option<Duration>; 2] = [None, None];
        while ended.iter().any(Option::is_none) {
            let n_running = running(&run_dir.join("containers"));
            for (ended, n_running) in ended.iter_mut().zip(n_running) {
                if n_running == n_pods {
                    ended.get_or_insert_with(|| started.elapsed());
                }
            }
            ensure!(
                started.elapsed() < Duration::from_secs(60),
                "{n_running:?} of {n_pods} pods run after 60 s"
            );
            sleep(Duration::from_millis(2)).await;
        }
        for (times, ended) in times.iter_mut().zip(ended) {
            times.extend(ended);
        }
    }
    for ((what, bar), times) in [("OCI", 2000.0), ("WASM", 500.0)].into_iter().zip(&times) {
        let all = Samples::of_durations(times);
        let shown =
            format!("median {:.0} ms, min {:.0}, max {:.0}", all.median(), all.min(), all.max());
        value(
            &format!("cold boot without master, {n_pods} {what} pods"),
            &shown,
            &format!("<= {bar} ms"),
            all.median() <= bar,
        );
    }
    note(&format!("{rounds} rounds; both kinds start at the same time"));
    Ok(())
}

/// How many OCI and WASM containers have a process.
fn running(folder: &Path) -> [usize; 2] {
    let mut counts = [0, 0];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let read = |name: &str| -> Option<Value> {
            serde_json::from_slice(&fs::read(entry.path().join(name)).ok()?).ok()
        };
        let (Some(config), Some(file)) = (read("config.json"), read("running.json")) else {
            continue;
        };
        let pid = file["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        if pid.is_some_and(is_alive) {
            let pod = config["pod"].as_str().unwrap_or_default();
            counts[usize::from(pod.starts_with("wasm"))] += 1;
        }
    }
    counts
}
