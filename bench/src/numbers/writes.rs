//! Durable writes a second: ConfigMaps created through our API (TLS, client
//! certificate, admission, validation, the store's flush), and keys put into an
//! etcd over gRPC in the clear. Both get 1 KiB values under new names from the
//! same HTTP/2 client, a connection for each client, one request at a time on
//! it. Rounds of the two are interleaved, and both keep their data on one disk.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Admin, Connection};
use crate::proc::cpu_time;
use crate::report::{Samples, note, value};
use crate::world::{World, until};

const ETCD: &str = "127.0.0.1:23790";
const VALUE_BYTES: usize = 1024;

#[derive(Debug, Clone)]
enum Server {
    Pinnace(Admin),
    Etcd,
}

pub(crate) async fn measure(world: &mut World, rounds: usize, seconds: u64) -> anyhow::Result<()> {
    world.start_master(&[]).await?;
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(world.dir().join("etcd"))
        .args(["--listen-client-urls", "http://127.0.0.1:23790"])
        .args(["--advertise-client-urls", "http://127.0.0.1:23790"])
        .args(["--listen-peer-urls", "http://127.0.0.1:23800"])
        .args(["--initial-advertise-peer-urls", "http://127.0.0.1:23800"])
        .args(["--initial-cluster", "default=http://127.0.0.1:23800", "--log-level", "error"]);
    let etcd = world.spawn("etcd", &mut command)?;
    until("etcd serves", 30, async || {
        let Ok(mut connection) = Connection::etcd(ETCD).await else { return Ok(None) };
        Ok(connection.etcd_put(b"/first", b"1").await.ok())
    })
    .await?;
    let ours = Server::Pinnace(Admin::read(&world.kubeconfig())?);
    let duration = Duration::from_secs(seconds);
    for n_clients in [1, 100] {
        let mut results = [Vec::new(), Vec::new()];
        let mut latencies = [Vec::new(), Vec::new()];
        let mut cpu = [Duration::ZERO; 2];
        // The first round warms both up.
        for n in 0..=rounds {
            let mut order = [(0, &ours), (1, &Server::Etcd)];
            if n % 2 == 1 {
                order.reverse();
            }
            for (at, server) in order {
                let pid = if at == 0 { world.master_pid()? } else { etcd.id() };
                let before = cpu_time(pid);
                let times = round(server, n_clients, n, duration).await?;
                if n > 0 {
                    cpu[at] += cpu_time(pid).saturating_sub(before);
                    results[at].push(times.len() as f64 / duration.as_secs_f64());
                    latencies[at].extend(times);
                }
            }
        }
        let ratios: Vec<f64> = results[0].iter().zip(&results[1]).map(|(a, b)| a / b).collect();
        let [ours, theirs] = results.map(Samples::new);
        let [our_times, their_times] = latencies.map(|all| Samples::of_durations(&all));
        let ratio = Samples::new(ratios);
        let shown = format!(
            "{:.0} writes/s, etcd {:.0}: {:.2} x (rounds {:.2} to {:.2})",
            ours.median(),
            theirs.median(),
            ratio.median(),
            ratio.min(),
            ratio.max()
        );
        let what = format!("durable writes, {n_clients} client(s)");
        if n_clients == 100 {
            value(&what, &shown, ">= 1.5 x etcd", ratio.median() >= 1.5);
        } else {
            note(&format!("{what}: {shown}, no bar"));
        }
        let [our_cpu, their_cpu] = cpu;
        for (name, rates, times, cpu) in
            [("Pinnace", ours, our_times, our_cpu), ("etcd", theirs, their_times, their_cpu)]
        {
            note(&format!(
                "{name}: {:.0} to {:.0} writes/s; p50 {:.2} ms, p99 {:.2} ms; {:.0} us of processor time a write",
                rates.min(),
                rates.max(),
                times.median(),
                times.percentile(99),
                cpu.as_secs_f64() * 1e6 / times.len() as f64
            ));
        }
    }
    note(&format!("{rounds} rounds of {seconds} s each, interleaved; etcd over gRPC without TLS"));
    World::end(etcd)
}

async fn round(
    server: &Server,
    n_clients: usize,
    n_round: usize,
    duration: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let mut connections = Vec::new();
    for _ in 0..n_clients {
        connections.push(match server {
            Server::Pinnace(admin) => admin.connect().await?,
            Server::Etcd => Connection::etcd(ETCD).await?,
        });
    }
    let end = Instant::now() + duration;
    let mut clients = JoinSet::new();
    for (n, mut connection) in connections.into_iter().enumerate() {
        let is_ours = matches!(server, Server::Pinnace(_));
        clients.spawn(async move {
            let text = "x".repeat(VALUE_BYTES);
            let mut times = Vec::new();
            while Instant::now() < end {
                let name = format!("w-{n_clients}-{n_round}-{n}-{}", times.len());
                let started = Instant::now();
                if is_ours {
                    let object = json!({
                        "apiVersion": "v1",
                        "kind": "ConfigMap",
                        "metadata": {"name": name},
                        "data": {"value": text},
                    });
                    connection.create("/api/v1/namespaces/default/configmaps", &object).await?;
                } else {
                    let key = format!("/registry/configmaps/default/{name}");
                    connection.etcd_put(key.as_bytes(), text.as_bytes()).await?;
                }
                times.push(started.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(times) = clients.join_next().await {
        all.extend(times.context("a client ends")??);
    }
    Ok(all)
}
