//! From a pod's readiness to the connections that follow it: the data plane alone
//! gets a table in which the other one of two pods is ready, and a client connects
//! again and again until that one serves it. Counted from before the table is made
//! to bytes, as the agent does for every change, to the answer on the first
//! connection that followed. With many Services the whole table is larger, since
//! it is always said whole.

use anyhow::ensure;
use proxy::control::ToProxy;
use tokio::time::Instant;

use crate::load::{self, Server, WHO};
use crate::plane::{self, Plane, pod};
use crate::report::{Samples, note, value};
use crate::world::World;

/// The pods that are ready by turns, and by what they are known.
const SERVERS: [u8; 2] = [1, 2];
/// Services besides the one that is asked.
const SERVICES: [u32; 3] = [0, 1_000, 10_000];

pub(crate) async fn measure(world: &mut World, changes: usize) -> anyhow::Result<()> {
    let client = pod(world, "client", 0)?;
    let hosts = [pod(world, "server", 1)?, pod(world, "another", 2)?];
    for (host, name) in hosts.iter().zip(SERVERS) {
        Server::start(host, name)?;
    }
    let mut plane = Plane::start(world)?;
    let mut generation = 0;
    for n_services in SERVICES {
        let table = |generation: u64| {
            let ready = SERVERS[usize::from(generation.is_multiple_of(2))];
            let pods = SERVERS.map(|pod| (pod, pod == ready));
            plane::table(generation, &pods, n_services).map(|table| (ready, table))
        };
        generation += 1;
        let (first, now) = table(generation)?;
        plane.apply(now)?;
        load::until_served_by(&client, plane::service(WHO), first)?;
        let mut times = Vec::new();
        let mut n_before = 0;
        for _ in 0..changes {
            generation += 1;
            let (ready, next) = table(generation)?;
            let next = ToProxy::Table(Box::new(next));
            let begun = Instant::now();
            plane.say(&next)?;
            n_before += load::until_served_by(&client, plane::service(WHO), ready)?;
            times.push(begun.elapsed());
        }
        ensure!(n_before < changes * 1000, "the other pod serves nearly all");
        let times = Samples::of_durations(&times);
        value(
            &format!("endpoint change to use, {} Services", n_services + 1),
            &format!(
                "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {}",
                times.median(),
                times.percentile(99),
                times.max(),
                times.len()
            ),
            "p99 <= 50 ms",
            times.percentile(99) <= 50.0,
        );
        note(&format!("{n_before} connections still went to the pod that was ready before"));
    }
    plane.leave()
}
