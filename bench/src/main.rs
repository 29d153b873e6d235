//! Measures the numbers Pinnace answers for: `bench NAME` measures one and prints
//! it beside its bar, `bench clean` removes what a killed run has left.
//!
//! Every number comes from the programs as built, started in network namespaces
//! of their own; see [`world`]. Needs root. `scripts/bench` builds and runs all.

#![allow(
    clippy::disallowed_methods,
    reason = "measures from a thread of its own, where sleeping is what is meant"
)]

mod client;
mod load;
mod numbers;
mod plane;
mod proc;
mod report;
mod rival;
mod world;

use std::future::Future;

use anyhow::Context;
use clap::{Parser, Subcommand};

use world::World;

/// Measures one number and prints it beside its bar.
#[derive(Debug, Parser)]
struct Arguments {
    /// Prefix of the namespaces and folders; two runs at a time need two.
    #[arg(long, default_value = "pinnace-bench", global = true)]
    name: String,
    #[command(subcommand)]
    number: Number,
}

#[derive(Debug, Subcommand)]
enum Number {
    /// From the creation of a pod to Running, as a watch sees it; images present
    Apply {
        /// Pods of each kind
        #[arg(long, default_value_t = 100)]
        pods: usize,
        /// CPU request of each pod, which is its weight beside what else runs here
        #[arg(long, default_value = "1")]
        cpu: String,
    },
    /// From the start of the master to an answer of /readyz
    Start {
        #[arg(long, default_value_t = 15)]
        rounds: usize,
    },
    /// Memory of master and agent, empty and with pods, and of each pod
    Memory {
        /// Pods of each kind
        #[arg(long, default_value_t = 5)]
        pods: usize,
    },
    /// Many WASM pods and their agent in one memory cgroup
    Density {
        #[arg(long, default_value_t = 100)]
        pods: usize,
        /// The cgroup's limit, in MB
        #[arg(long, default_value_t = 512)]
        limit: u64,
    },
    /// Sizes of the programs
    Sizes,
    /// Durable writes a second through the API, beside etcd
    Writes {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Length of each round of each server
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// Many nodes and pods: pods bound a second, and the memory of the master
    Fleet {
        #[arg(long, default_value_t = 1_000)]
        nodes: usize,
        #[arg(long, default_value_t = 10_000)]
        pods: usize,
    },
    /// Bytes on the link of idle nodes, one node of each profile
    Idle {
        /// How long to count; 600 gives the slowest profile two heartbeats
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// From the start of an agent whose machine lost power, without a master, to its pods
    ColdBoot {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Pods of each kind
        #[arg(long, default_value_t = 3)]
        pods: usize,
    },
    /// From the death of a machine to NotReady, and to the replacement's Running
    NodeLost {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Bytes of a layer that cross the link twice when it is cut again and again
    PullCut {
        /// Size of the layer
        #[arg(long, default_value_t = 16)]
        mebibytes: usize,
    },
    /// A command in a container and a container's log, beside runc and a pipe
    Reach {
        #[arg(long, default_value_t = 100)]
        commands: usize,
        /// Size of the log, in MB
        #[arg(long, default_value_t = 100)]
        megabytes: usize,
    },
    /// Pod to Service to pod on a node, beside HAProxy, nginx and the kernel's DNAT
    Proxy {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Sent over one connection in each round of each proxy
        #[arg(long, default_value_t = 1_000)]
        megabytes: usize,
        /// Small requests in each round of each proxy
        #[arg(long, default_value_t = 10_000)]
        requests: usize,
        /// New connections in each round of each proxy
        #[arg(long, default_value_t = 4_000)]
        connections: usize,
    },
    /// What each way between two nodes costs, beside plain TCP
    Links {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[arg(long, default_value_t = 500)]
        megabytes: usize,
        #[arg(long, default_value_t = 2_000)]
        connections: usize,
    },
    /// Names answered a second, beside dnsmasq
    Dns {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[arg(long, default_value_t = 10_000)]
        services: u32,
        /// Questions in each round of each server
        #[arg(long, default_value_t = 200_000)]
        queries: usize,
    },
    /// From an endpoint's change to the first new connection that follows it
    Endpoint {
        /// Changes with each number of Services
        #[arg(long, default_value_t = 200)]
        changes: usize,
    },
    /// Removes what a run that was killed has left
    Clean,
}

fn main() -> anyhow::Result<()> {
    let Arguments { name, number } = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Number::Clean = number {
        return world::clean(&name);
    }
    report::begin(&format!("{number:?}"));
    match number {
        Number::Sizes => numbers::sizes::measure()?,
        Number::Start { rounds } => {
            in_world(&name, async move |world| numbers::start::measure(world, rounds).await)?;
        }
        Number::Apply { pods, cpu } => {
            in_world(&name, async move |world| numbers::apply::measure(world, pods, &cpu).await)?;
        }
        Number::Memory { pods } => {
            in_world(&name, async move |world| numbers::memory::measure(world, pods).await)?;
        }
        Number::Density { pods, limit } => {
            in_world(&name, async move |world| numbers::density::measure(world, pods, limit).await)?
        }
        Number::Writes { rounds, seconds } => in_world(&name, async move |world| {
            numbers::writes::measure(world, rounds, seconds).await
        })?,
        Number::Fleet { nodes, pods } => {
            in_world(&name, async move |world| numbers::fleet::measure(world, nodes, pods).await)?;
        }
        Number::Idle { seconds } => {
            in_world(&name, async move |world| numbers::idle::measure(world, seconds).await)?;
        }
        Number::ColdBoot { rounds, pods } => in_world(&name, async move |world| {
            numbers::cold_boot::measure(world, rounds, pods).await
        })?,
        Number::NodeLost { rounds } => {
            in_world(&name, async move |world| numbers::node_lost::measure(world, rounds).await)?;
        }
        Number::PullCut { mebibytes } => {
            in_world(&name, async move |world| numbers::pull_cut::measure(world, mebibytes).await)?
        }
        Number::Reach { commands, megabytes } => in_world(&name, async move |world| {
            numbers::reach::measure(world, commands, megabytes).await
        })?,
        Number::Proxy { rounds, megabytes, requests, connections } => {
            let amount = numbers::proxy::Amount { rounds, megabytes, requests, connections };
            in_world(&name, async move |world| numbers::proxy::measure(world, amount).await)?;
        }
        Number::Links { rounds, megabytes, connections } => in_world(&name, async move |world| {
            numbers::links::measure(world, rounds, megabytes, connections)
        })?,
        Number::Dns { rounds, services, queries } => in_world(&name, async move |world| {
            numbers::dns::measure(world, rounds, services, queries).await
        })?,
        Number::Endpoint { changes } => {
            in_world(&name, async move |world| numbers::endpoint::measure(world, changes).await)?;
        }
        Number::Clean => {}
    }
    report::end();
    Ok(())
}

/// Runs a measurement at the hub of a new world, which ends with it.
fn in_world<F>(name: &str, measure: impl FnOnce(&'static mut World) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    // The threads of the runtime inherit the namespace that the world brings us to.
    let world = Box::leak(Box::new(World::new(name)?));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(measure(world));
    if result.is_err() {
        report::note(&world::log_ends(name));
    }
    drop(runtime);
    world::clean(name)?;
    result
}
