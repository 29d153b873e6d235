//! What reaching into a pod costs: a command in a container, from the request to
//! its exit code, beside `runc exec`; and a log, from the container's lines to the
//! file, beside a pipe, and from there to the user.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, LogParams, PostParams};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::client::{kube, node_becomes_ready, pod, pods, run_pods};
use crate::proc;
use crate::report::{Samples, note};
use crate::rival::Rival;
use crate::world::{World, until};

/// Length of a line of the log, its end included.
const LINE_BYTES: usize = 100;

pub(crate) async fn measure(
    world: &mut World,
    n_commands: usize,
    megabytes: usize,
) -> anyhow::Result<()> {
    world.start_registry().await?;
    world.start_master(&["--link-profile", "lan"]).await?;
    world.join("north")?;
    world.start_agent("north")?;
    let client = kube(world).await?;
    node_becomes_ready(&client, "north").await?;
    run_pods(&client, "oci", 1).await?;
    let pods = pods(&client);
    let rival = Rival::new(world.dir(), "pinnace-bench")?;

    let mut ours = Vec::new();
    for _ in 0..n_commands {
        let started = Instant::now();
        command(&pods).await?;
        ours.push(started.elapsed());
    }
    let theirs = rival.execs(n_commands)?;
    for (who, times) in [("through master and agent", &ours), ("runc exec, alone", &theirs)] {
        let all = Samples::of_durations(times);
        note(&format!(
            "a command, {who}: p50 {:.1} ms, p99 {:.1} ms of {}",
            all.median(),
            all.percentile(99),
            all.len()
        ));
    }
    logs(world, &pods, megabytes).await
}

async fn command(pods: &Api<Pod>) -> anyhow::Result<()> {
    let parameters = AttachParams::default().stdout(true).stderr(false);
    let mut process = pods.exec("oci-0", ["/bin/busybox", "true"], &parameters).await?;
    let status = process.take_status().context("a process has a status")?;
    let status = status.await.context("the stream ended early")?;
    ensure!(status.status.as_deref() == Some("Success"), "the command failed: {status:?}");
    Ok(())
}

/// A container that writes a log as fast as it can.
async fn logs(world: &World, pods: &Api<Pod>, megabytes: usize) -> anyhow::Result<()> {
    let n_lines = megabytes * 1_000_000 / LINE_BYTES;
    let line = "x".repeat(LINE_BYTES - 1);
    let script = format!("yes {line} | head -n {n_lines}");
    let mut wanted = pod("oci", "talker")?;
    let spec = wanted.spec.as_mut().context("a pod has a spec")?;
    spec.restart_policy = Some("Never".to_owned());
    spec.containers[0].command =
        Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), format!("{script}; sleep 3600")]);
    pods.create(&PostParams::default(), &wanted).await?;
    let folder = world.run_dir("north").join("containers");
    let shim = until("the container runs", 60, async || {
        let mut found = proc::find(&[folder.display().to_string()]);
        found.retain(|pid| {
            let line = proc::read(format!("/proc/{pid}/cmdline"));
            let config = line.split('\0').find(|word| word.contains("containers/"));
            let config = config.map(|word| proc::read(format!("{word}/config.json")));
            config.is_some_and(|text| text.contains("talker"))
        });
        Ok(found.first().copied())
    })
    .await?;
    let began = Instant::now();
    let bytes = n_lines * LINE_BYTES;
    let written = async || {
        let mut calm = 0;
        let mut last = Duration::ZERO;
        until("the log is written", 600, async || {
            let now = proc::cpu_time(shim);
            calm = if now == last && now > Duration::ZERO { calm + 1 } else { 0 };
            last = now;
            Ok((calm > 25).then_some(()))
        })
        .await
    };
    written().await?;
    let took = began.elapsed().as_secs_f64() - 0.5;
    let cpu = proc::cpu_time(shim).as_secs_f64();
    let mb = bytes as f64 / 1e6;
    note(&format!(
        "a log of {mb:.0} MB in lines of {LINE_BYTES} bytes: {:.1} MB/s into the file, {:.1} ms of \
         the shim's processor time a MB",
        mb / took,
        cpu * 1000.0 / mb
    ));
    let pipe = pipe(&script)?;
    note(&format!("the same lines through a pipe into `cat`, alone: {:.1} MB/s", mb / pipe));

    let began = Instant::now();
    let stream = pods.log_stream("talker", &LogParams::default()).await?;
    let mut stream = std::pin::pin!(tokio_util::compat::FuturesAsyncReadCompatExt::compat(stream));
    let mut buffer = vec![0; 64 << 10];
    let mut n_read = 0;
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        n_read += n;
    }
    note(&format!(
        "what is kept of it, {:.1} MB, to the user: {:.1} MB/s",
        n_read as f64 / 1e6,
        n_read as f64 / 1e6 / began.elapsed().as_secs_f64()
    ));
    ensure!(n_read > 0, "the log is empty");
    Ok(())
}

/// Seconds that the lines take through a pipe.
fn pipe(script: &str) -> anyhow::Result<f64> {
    let began = Instant::now();
    let status = Command::new("/bin/busybox")
        .args(["sh", "-c", &format!("({}) | cat > /dev/null", script)])
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "the pipe ended with {status}");
    Ok(began.elapsed().as_secs_f64())
}
