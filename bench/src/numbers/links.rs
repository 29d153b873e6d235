//! What each way between two nodes costs beside plain TCP: `pinnace-proxy`'s example
//! `lanes`, with its two nodes in namespaces of their own at a switch. Each node's
//! part is a thread on processor 1, the processor time of the two is what counts
//! (`CLOCK_THREAD_CPUTIME_ID`); client, pod and what stands for the master are on
//! processor 0 and not counted. Every way, plain TCP too, takes a client's TCP
//! connection at one node, copies to the other, and from there to the pod over TCP.
//! A connection carries one byte each way. The links are there already.

use std::process::Command;

use anyhow::{Context, ensure};

use crate::report::{Samples, note, value};
use crate::world::{Host, World, line, program, run};

/// As `lanes` prints them.
const WAYS: [&str; 4] = ["tcp", "quic", "tls", "relay"];

pub(crate) fn measure(
    world: &mut World,
    rounds: usize,
    megabytes: usize,
    connections: usize,
) -> anyhow::Result<()> {
    ensure!(rounds > 0, "at least one round");
    let nodes = [node(world, "near", 11)?, node(world, "far", 12)?];
    let mut values: [[Vec<f64>; 3]; 4] = Default::default();
    for _ in 0..rounds {
        let mut command = Command::new(program("lanes")?);
        command.args([megabytes.to_string(), connections.to_string()]);
        for (host, address) in &nodes {
            command.arg(host.path()).arg(address);
        }
        let text = run(&mut command)?;
        for (way, values) in WAYS.into_iter().zip(&mut values) {
            let line = text.lines().find_map(|line| line.strip_prefix(way));
            let line = line.with_context(|| format!("no {way} in {text:?}"))?;
            let numbers: Vec<f64> =
                line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            ensure!(numbers.len() == values.len(), "lanes says {line:?}");
            values.iter_mut().zip(numbers).for_each(|(all, one)| all.push(one));
        }
    }
    note(&format!("medians of {rounds} rounds, both nodes together"));
    for (way, [s_gb, gbit_s, us]) in WAYS.into_iter().zip(&values) {
        let median = |all: &Vec<f64>| Samples::new(all.clone()).median();
        note(&format!(
            "{way:5} {:.2} s/GB, {:.2} Gbit/s, {:.0} us of processor a new connection",
            median(s_gb),
            median(gbit_s),
            median(us)
        ));
    }
    let [tcp, quic, tls, _] = &values;
    let against = |what: &str, ours: &[f64], tcp: &[f64], bar: f64| {
        let ratio = Samples::new(ours.iter().zip(tcp).map(|(ours, tcp)| ours / tcp).collect());
        let shown =
            format!("{:.2} x (min {:.2}, max {:.2})", ratio.median(), ratio.min(), ratio.max());
        value(what, &shown, &format!("<= {bar} x"), ratio.median() <= bar);
    };
    against("quic, processor a new connection, of plain TCP's", &quic[2], &tcp[2], 0.7);
    against("tls, processor a GB, of plain TCP's", &tls[0], &tcp[0], 2.0);
    Ok(())
}

/// A node at the switch.
fn node(world: &World, name: &str, number: u8) -> anyhow::Result<(Host, String)> {
    let host = world.host(name)?;
    let address = format!("10.98.0.{number}");
    line(&format!("ip link set {name} master hub up"))?;
    host.line(&format!("ip addr add {address}/24 dev eth0"))?;
    host.line("ip link set eth0 up")?;
    Ok((host, address))
}
