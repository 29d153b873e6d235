//! Memory by `/proc/PID/smaps_rollup`: PSS of master and agent; for a pod, the
//! private pages of its shim, and of the guest's process where that is ours
//! (WASM, its linear memory included).

use std::fs;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::time::sleep;

use crate::client::{kube, node_becomes_ready, run_pods};
use crate::proc::{self, memory};
use crate::report::{Samples, note, value};
use crate::world::World;

/// Time for what a start or a change has stirred up to settle.
const SETTLE: Duration = Duration::from_secs(10);

pub(crate) async fn measure(world: &mut World, n_pods: usize) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--link-profile", "lan"]).await?;
    sleep(SETTLE).await;
    pss("master, empty", world.master_pid()?, 15.0)?;
    world.join("north")?;
    world.start_agent("north")?;
    let client = kube(world).await?;
    node_becomes_ready(&client, "north").await?;
    sleep(SETTLE).await;
    let idle = pss("agent, idle, runs OCI and WASM", world.agent_pid("north")?, 12.0)?;
    note("the proxy is a process of its own and not counted here; the bar includes it");
    run_pods(&client, "oci", n_pods).await?;
    run_pods(&client, "wasm", n_pods).await?;
    sleep(SETTLE).await;
    let full = memory(world.agent_pid("north")?)?;
    note(&format!(
        "agent with {n_pods} pods of each kind: {} MB PSS; idle {idle:.1} MB",
        mb(full.pss)
    ));
    note(&format!("master with them: {} MB PSS", mb(memory(world.master_pid()?)?.pss)));
    let mut by_kind: [(Vec<f64>, Vec<f64>); 2] = Default::default();
    for entry in fs::read_dir(world.run_dir("north").join("containers"))?.flatten() {
        let folder = entry.path();
        let read = |name: &str| -> anyhow::Result<Value> {
            Ok(serde_json::from_slice(&fs::read(folder.join(name))?)?)
        };
        let pod = read("config.json")?["pod"].as_str().unwrap_or_default().to_owned();
        let guest = read("running.json")?["pid"].as_u64().context("a container has a process")?;
        let guest = u32::try_from(guest)?;
        let mut ours = proc::find(&[folder.display().to_string()]);
        ours.retain(|pid| *pid != guest);
        let mut private = 0;
        for pid in ours {
            private += memory(pid)?.private;
        }
        let kind = &mut by_kind[usize::from(pod.starts_with("wasm"))];
        kind.0.push(private as f64);
        kind.1.push(memory(guest)?.private as f64);
    }
    let [(oci_shim, oci_guest), (wasm_shim, wasm_guest)] = by_kind;
    let both = wasm_shim.iter().zip(&wasm_guest).map(|(shim, guest)| shim + guest).collect();
    let kib = |all: &Samples| {
        format!(
            "{:.2} MB private (min {:.2}, max {:.2})",
            all.median() / 1000.0 * 1.024,
            all.min() / 1000.0 * 1.024,
            all.max() / 1000.0 * 1.024
        )
    };
    let shims = Samples::new(oci_shim);
    let met = |all: &Samples, bar: f64| all.median() * 1.024 / 1000.0 <= bar;
    value("per OCI pod: shim", &kib(&shims), "<= 1 MB", met(&shims, 1.0));
    note(&format!("and the user's program, busybox sh: {}", kib(&Samples::new(oci_guest))));
    let both = Samples::new(both);
    value(
        "per WASM pod: shim and guest's process",
        &kib(&both),
        "<= 3 MB without the guest's memory",
        met(&both, 3.0),
    );
    note(&format!("of it the shim: {}", kib(&Samples::new(wasm_shim))));
    note(&format!(
        "of it the guest's process with its linear memory: {}",
        kib(&Samples::new(wasm_guest))
    ));
    Ok(())
}

fn mb(kib: u64) -> String {
    format!("{:.1}", kib as f64 * 1.024 / 1000.0)
}

/// Prints the median PSS of five looks a second apart.
fn pss(what: &str, pid: u32, bar: f64) -> anyhow::Result<f64> {
    let mut looks = Vec::new();
    for _ in 0..5 {
        looks.push(memory(pid)?.pss as f64 * 1.024 / 1000.0);
        std::thread::sleep(Duration::from_secs(1));
    }
    let median = Samples::new(looks).median();
    value(what, &format!("{median:.1} MB PSS"), &format!("<= {bar} MB"), median <= bar);
    Ok(median)
}
