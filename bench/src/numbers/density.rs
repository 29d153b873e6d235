//! Many WASM pods on a board with little memory: the agent, the shims and the
//! guests' processes in one memory cgroup, which has a limit. What counts is
//! that all run, that none was killed, and what the cgroup held at most, page
//! cache of the agent's file included.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::client::{kube, node_becomes_ready, run_pods};
use crate::proc::memory;
use crate::report::{Samples, note, value};
use crate::world::World;

/// Time for what a start has stirred up to settle.
const SETTLE: Duration = Duration::from_secs(10);

pub(crate) async fn measure(world: &mut World, n_pods: usize, limit_mb: u64) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--link-profile", "lan"]).await?;
    world.join("north")?;
    let budget = Budget::new(&world.cgroup("north"), limit_mb * 1_000_000)?;
    let home = budget.enter()?;
    let started = world.start_agent("north");
    budget.leave(&home)?;
    started?;
    let client = kube(world).await?;
    node_becomes_ready(&client, "north").await?;
    sleep(SETTLE).await;
    note(&format!("the agent alone: {:.1} MB in the cgroup", mb(budget.usage()?)));
    let began = Instant::now();
    run_pods(&client, "wasm", n_pods).await?;
    note(&format!(
        "all {n_pods} run {:.1} s after the first was made",
        began.elapsed().as_secs_f64()
    ));
    sleep(SETTLE).await;
    let usage = mb(budget.usage()?);
    let kills = budget.oom_kills()?;
    value(
        &format!("{n_pods} WASM pods and the agent in {limit_mb} MB"),
        &format!("{usage:.1} MB, at most {:.1} MB, {kills} killed", mb(budget.peak()?)),
        &format!("<= {limit_mb} MB, 0 killed"),
        kills == 0 && usage <= limit_mb as f64,
    );
    let mut private = Vec::new();
    for entry in fs::read_dir(world.run_dir("north").join("containers"))?.flatten() {
        let folder = entry.path();
        let running: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("running.json"))?)?;
        let guest = running["pid"].as_u64().context("a container has a process")?;
        let guest = u32::try_from(guest)?;
        let mut sum = memory(guest)?.private;
        for shim in crate::proc::find(&[folder.display().to_string()]) {
            if shim != guest {
                sum += memory(shim)?.private;
            }
        }
        private.push(sum as f64 * 1.024 / 1000.0);
    }
    let private = Samples::new(private);
    note(&format!(
        "per pod, shim and guest's process: {:.2} MB private (min {:.2}, max {:.2})",
        private.median(),
        private.min(),
        private.max()
    ));
    note(&format!(
        "the agent: {:.1} MB PSS",
        memory(world.agent_pid("north")?)?.pss as f64 / 976.6
    ));
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The memory cgroup above the agent's pods, with the agent in a part of it.
struct Budget {
    folder: PathBuf,
    is_v1: bool,
}

impl Budget {
    fn new(cgroup: &str, bytes: u64) -> anyhow::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let is_v1 = root.join("memory/cgroup.procs").exists();
        let folder = if is_v1 { root.join("memory") } else { root.to_owned() }.join(cgroup);
        let agent = folder.join("agent");
        fs::create_dir_all(&agent).with_context(|| format!("cannot make {}", agent.display()))?;
        let name = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        let file = folder.join(name);
        fs::write(&file, bytes.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { folder, is_v1 })
    }

    /// Moves this process there, so that what it starts is there from its first
    /// page on; returns where it was.
    fn enter(&self) -> anyhow::Result<PathBuf> {
        let all = fs::read_to_string("/proc/self/cgroup")?;
        let prefix = if self.is_v1 { ":memory:" } else { "0::" };
        let line = all.lines().find_map(|line| Some(line.split_once(prefix)?.1));
        let path = line.context("this process has no memory cgroup")?.trim_start_matches('/');
        let mount = if self.is_v1 { "/sys/fs/cgroup/memory" } else { "/sys/fs/cgroup" };
        let home = Path::new(mount).join(path);
        fs::write(self.folder.join("agent/cgroup.procs"), "0")?;
        Ok(home)
    }

    fn leave(&self, home: &Path) -> anyhow::Result<()> {
        fs::write(home.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot go back to {}", home.display()))
    }

    fn read(&self, v1: &str, v2: &str) -> anyhow::Result<String> {
        let path = self.folder.join(if self.is_v1 { v1 } else { v2 });
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn usage(&self) -> anyhow::Result<u64> {
        Ok(self.read("memory.usage_in_bytes", "memory.current")?.trim().parse()?)
    }

    fn peak(&self) -> anyhow::Result<u64> {
        Ok(self.read("memory.max_usage_in_bytes", "memory.peak")?.trim().parse()?)
    }

    fn oom_kills(&self) -> anyhow::Result<u64> {
        let text = self.read("memory.oom_control", "memory.events")?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.unwrap_or("0").trim().parse()?)
    }
}
