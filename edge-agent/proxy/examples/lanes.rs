//! What each way between two nodes costs, beside plain TCP: processor seconds a
//! gigabyte and a connection, of both ends and of what sends and receives, all in
//! this process on one thread.
//!
//! `cargo run --release -p pinnace-proxy --example lanes [megabytes] [connections]`

#![allow(clippy::cast_precision_loss, reason = "numbers for people")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proxy::links::{Acceptor, BoxFuture, Connection, Flow, Links, Uplink};
use proxy::table::{Net, Node, Peer, Protocol, Table};
use proxy::tunnel::{Config, Identity, Lane, Tunnel};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const PIECE: usize = 64 << 10;

/// A pod that takes all bytes, then says that it has.
async fn sink(mut stream: impl Connection) -> io::Result<()> {
    let mut space = vec![0; PIECE];
    while stream.read(&mut space).await? > 0 {}
    stream.write_all(&[1]).await?;
    stream.shutdown().await
}

/// Leads to the pod, over TCP as the plane does.
#[derive(Debug)]
struct Pods(SocketAddr);

impl Acceptor for Pods {
    fn connect(&self, _: &str, _: Flow) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async {
            let stream = TcpStream::connect(self.0).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }

    fn datagram(&self, _: &str, _: Flow, _: &[u8]) {}
}

/// The master, as far as a relay goes; it works on this thread, too.
#[derive(Debug, Default)]
struct Master {
    target: Mutex<Option<(Tunnel, String)>>,
    waiting: Mutex<Option<tokio::io::DuplexStream>>,
}

#[derive(Debug)]
struct Way(Arc<Master>);

impl Uplink for Way {
    fn dial<'a>(&'a self, _: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let (near, mut far) = tokio::io::duplex(PIECE);
        let master = self.0.clone();
        tokio::spawn(async move {
            let length = far.read_u16_le().await?;
            let mut hello = vec![0; length.into()];
            far.read_exact(&mut hello).await?;
            far.write_all(&[0]).await?;
            if hello[0] == 0 {
                let Some((target, from)) = master.target.lock().expect("no panic").clone() else {
                    return Ok(());
                };
                *master.waiting.lock().expect("no panic") = Some(far);
                target.relay(&from, [0; 16]);
                return Ok(());
            }
            let other = master.waiting.lock().expect("no panic").take();
            let Some(mut other) = other else { return Ok(()) };
            tokio::io::copy_bidirectional(&mut far, &mut other).await.map(|_| ())
        });
        Box::pin(async { Ok(Box::new(near) as Box<dyn Connection>) })
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

type Open<'a> = &'a dyn Fn() -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;

async fn measure(
    name: &str,
    n_bytes: usize,
    n_connections: usize,
    open: Open<'_>,
) -> io::Result<()> {
    // The link is there before it is measured.
    send(open, 1).await?;
    let (begun, before) = (Instant::now(), cpu());
    send(open, n_bytes).await?;
    let gigabytes = n_bytes as f64 / 1e9;
    let per_gb = (cpu() - before).as_secs_f64() / gigabytes;
    let gbit_s = gigabytes * 8.0 / begun.elapsed().as_secs_f64();
    let before = cpu();
    for _ in 0..n_connections {
        send(open, 1).await?;
    }
    let per_connection = (cpu() - before).as_secs_f64() * 1e6 / n_connections as f64;
    let line = format!(
        "{name:6} {per_gb:6.2} s/GB {gbit_s:6.2} Gbit/s {per_connection:7.0} µs/connection\n"
    );
    tokio::io::stdout().write_all(line.as_bytes()).await
}

async fn send(open: Open<'_>, n_bytes: usize) -> io::Result<()> {
    let mut stream = open().await?;
    let piece = vec![7; PIECE];
    let mut left = n_bytes;
    while left > 0 {
        let n_now = left.min(PIECE);
        stream.write_all(&piece[..n_now]).await?;
        left -= n_now;
    }
    stream.shutdown().await?;
    stream.read_u8().await.map(|_| ())
}

fn identities(names: [&str; 2]) -> Result<[Identity; 2], rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = params.self_signed(&key)?.der().clone();
    let issuer = Issuer::new(params, key);
    let make = |name: &str| {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok::<_, rcgen::Error>(Identity {
            chain: vec![params.signed_by(&key, &issuer)?.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            cas: vec![ca.clone()],
            known_past: || UnixTime::since_unix_epoch(Duration::ZERO),
        })
    };
    Ok([make(names[0])?, make(names[1])?])
}

fn table(number: u8, port: u16) -> Table {
    let other = 3 - number;
    let local = IpAddr::from([127, 0, 0, 1]);
    let pods = |number| vec![Net::new(IpAddr::from([10, 42, number, 0]), 24).expect("a range")];
    Table {
        node: Node { addresses: vec![local], pod_cidrs: pods(number), ..Node::default() },
        peers: vec![Peer {
            name: format!("node-{other}"),
            pod_cidrs: pods(other),
            addresses: vec![local],
            port,
            zone: String::new(),
        }],
        ..Table::default()
    }
}

async fn run(n_bytes: usize, n_connections: usize) -> Result<(), Box<dyn std::error::Error>> {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let pod = TcpListener::bind(local).await?;
    let pod_address = pod.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = pod.accept().await {
            tokio::spawn(sink(stream));
        }
    });
    // In place of both proxies: one that copies.
    let plain = TcpListener::bind(local).await?;
    let plain_address = plain.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            tokio::spawn(async move {
                let mut pod = TcpStream::connect(pod_address).await?;
                tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut pod, PIECE, PIECE).await
            });
        }
    });
    let open: Open<'_> = &|| {
        Box::pin(async move {
            Ok(Box::new(TcpStream::connect(plain_address).await?) as Box<dyn Connection>)
        })
    };
    measure("tcp", n_bytes, n_connections, open).await?;
    for lane in [Lane::Quic, Lane::Tls, Lane::Relay] {
        let master = Arc::<Master>::default();
        let [a, b] = identities(["node-1", "node-2"])?;
        let config = Config { lanes: vec![lane], ..Config::new(local) };
        let start = |identity| {
            let (way, pods) = (Arc::new(Way(master.clone())), Arc::new(Pods(pod_address)));
            Tunnel::start(identity, config.clone(), way, pods)
        };
        let (a, b) = (start(a)?, start(b)?);
        *master.target.lock().expect("no panic") = Some((b.clone(), "node-1".into()));
        a.set_table(&table(1, b.port()));
        b.set_table(&table(2, a.port()));
        let flow = Flow {
            protocol: Protocol::Tcp,
            source: SocketAddr::from(([10, 42, 1, 5], 40_000)),
            destination: SocketAddr::from(([10, 42, 2, 5], 80)),
            is_external: false,
        };
        let open: Open<'_> = &|| a.open("node-2", flow);
        measure(&lane.to_string(), n_bytes, n_connections, open).await?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<usize>().ok());
    let n_bytes = numbers.next().unwrap_or(500).max(1) * 1_000_000;
    let n_connections = numbers.next().unwrap_or(2000).max(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(n_bytes, n_connections))
}
