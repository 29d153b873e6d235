//! Serves the names of a made-up cluster over UDP and TCP, to measure with a load
//! generator such as `dnsperf`.
//!
//! ```text
//! cargo run --release -p pinnace-proxy --example dns -- 127.0.0.1:5353 10000 [upstream]
//! ```
//!
//! Services are `svc-<n>.ns-<n / 100>.svc.cluster.local`, each with ten endpoints;
//! every tenth is headless. With `names` in place of an address it prints what to
//! ask, one `name kind` a line, and ends. Prints its own memory on standard error.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use proxy::dns::{Dns, Settings};
use proxy::table::{Endpoint, Node, Protocol, Service, ServicePort, Table};
use tokio::net::{TcpListener, UdpSocket};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, n_services, rest @ ..] = arguments.as_slice() else {
        bail!("usage: dns <address:port | names> <services> [upstream]");
    };
    let n_services = n_services.parse().context("how many Services")?;
    if listen == "names" {
        return names(n_services);
    }
    let listen: SocketAddr = listen.parse().context("where to listen")?;
    let upstream = rest.first().map(|text| text.parse()).transpose().context("the upstream")?;
    let table = Arc::new(table(n_services, upstream));
    memory("the table")?;
    // One thread, as a small board would give it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dns = Dns::new(Settings::default());
        dns.set_table(table);
        memory("the table and its names")?;
        let socket = Arc::new(UdpSocket::bind(listen).await?);
        let listener = TcpListener::bind(listen).await?;
        let of_streams = dns.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let dns = of_streams.clone();
                tokio::spawn(async move { dns.serve_tcp(stream).await });
            }
        });
        Err(dns.serve_udp(socket).await.into())
    })
}

fn name(n: u32) -> (String, String) {
    (format!("ns-{:04}", n / 100), format!("svc-{n:05}"))
}

/// Sorted as the names are made.
fn table(n_services: u32, upstream: Option<IpAddr>) -> Table {
    let service = |n: u32| {
        let (namespace, name) = name(n);
        let [_, high, middle, low] = n.to_be_bytes();
        let mut endpoints: Vec<Endpoint> = (0..10u8)
            .map(|k| Endpoint {
                address: IpAddr::from([10, 42, low.wrapping_mul(7) ^ k, middle]),
                port: 8080,
                node: format!("node-{k}"),
                zone: String::new(),
                hostname: String::new(),
                ready: true,
                serving: true,
                terminating: false,
            })
            .collect();
        endpoints.sort();
        let port = ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            endpoints,
        };
        let is_headless = n % 10 == 9;
        let address = IpAddr::from([10, 43 + high, middle, low]);
        Service {
            namespace,
            name,
            cluster_ips: if is_headless { Vec::new() } else { vec![address] },
            ports: vec![port],
            ..Service::default()
        }
    };
    Table {
        generation: 1,
        node: Node {
            name: "node-0".to_owned(),
            cluster_cidrs: ["10.42.0.0/16".parse()].into_iter().flatten().collect(),
            service_cidrs: ["10.43.0.0/16".parse()].into_iter().flatten().collect(),
            dns_addresses: vec![IpAddr::from([10, 43, 0, 10])],
            cluster_domain: "cluster.local".to_owned(),
            upstreams: upstream.into_iter().collect(),
            ..Node::default()
        },
        services: (0..n_services).map(service).collect(),
        ..Table::default()
    }
}

/// What pods ask, in a mix: both families, a name of the search path that is none,
/// a port.
fn names(n_services: u32) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for n in 0..n_services {
        // Spread, so that neighbours are not asked one after the other.
        let (namespace, name) = name(n.wrapping_mul(7919) % n_services);
        let full = format!("{name}.{namespace}.svc.cluster.local");
        match n % 5 {
            0 | 1 => writeln!(out, "{full} A")?,
            2 => writeln!(out, "{full} AAAA")?,
            3 => writeln!(out, "{full}.default.svc.cluster.local A")?,
            _ => writeln!(out, "_http._tcp.{full} SRV")?,
        }
    }
    Ok(())
}

fn memory(what: &str) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("?");
    writeln!(std::io::stderr(), "{}, with {what}", line.trim())?;
    Ok(())
}
