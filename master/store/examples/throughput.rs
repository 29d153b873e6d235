//! Durable writes per second of the store alone: one client, and many.
//!
//! `cargo run --release -p pinnace-store --example throughput -- DIR [CLIENTS] [WRITES]`
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use pinnace_store::{Config, Expect, LmdbStore, Store, Write};
use tokio::time::Instant;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().expect("usage: throughput DIR [CLIENTS] [WRITES]");
    let mut number = |default: usize| {
        arguments.next().map_or(default, |n| n.parse().expect("CLIENTS and WRITES are numbers"))
    };
    let (n_clients, n_writes) = (number(100), number(20_000));
    let store = Arc::new(LmdbStore::open(&dir, Config::default()).expect("the store opens"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("the runtime starts");
    let started = Instant::now();
    let mut latencies = runtime.block_on(async {
        let clients: Vec<_> = (0..n_clients)
            .map(|client| tokio::spawn(write(store.clone(), client, n_writes / n_clients)))
            .collect();
        let mut latencies = Vec::with_capacity(n_writes);
        for client in clients {
            latencies.extend(client.await.expect("a client ends"));
        }
        latencies
    });
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let percentile = |p: usize| latencies[(latencies.len() - 1) * p / 100];
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "clients {n_clients}: {:.0} writes/s, p50 {} us, p99 {} us, {:?}, load {}",
        latencies.len() as f64 / seconds,
        percentile(50),
        percentile(99),
        store.counters(),
        load.trim(),
    );
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    for line in rollup.lines().filter(|line| line.starts_with("Pss")) {
        println!("{line}");
    }
}

/// Writes 1 KiB objects one after the other; returns what each took, in µs.
async fn write(store: Arc<LmdbStore>, client: usize, n_writes: usize) -> Vec<u128> {
    let mut latencies = Vec::with_capacity(n_writes);
    for n in 0..n_writes {
        let started = Instant::now();
        let put = Write::put(format!("/pods/{client}/{}", n % 100), Expect::Any, vec![b'x'; 1024]);
        store.write(vec![put]).await.expect("a write succeeds");
        latencies.push(started.elapsed().as_micros());
    }
    latencies
}
