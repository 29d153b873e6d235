//! What each way between two nodes costs, beside plain TCP: processor seconds a
//! gigabyte and a connection, of the two nodes' parts alone.
//!
//! ```text
//!  client ─TCP─► A: copies ─way─► B: copies ─TCP─► pod       A, B: a thread each, on processor 1
//! ```
//!
//! Client, pod and the master are a thread on processor 0, and not counted. With
//! namespaces named, A and the client are in one, B and the pod in the other:
//!
//! `lanes <megabytes> <connections> [<namespace A> <address A> <namespace B> <address B>]`
//!
//! Prints a line a way: its name, s/GB, Gbit/s, µs a connection.

#![allow(clippy::cast_precision_loss, reason = "numbers for people")]

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;
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
use tokio::runtime::Handle;
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

/// The master, as far as a relay goes.
#[derive(Debug)]
struct Master {
    thread: Handle,
    target: Mutex<Option<(Tunnel, String)>>,
    waiting: Mutex<Option<tokio::io::DuplexStream>>,
}

#[derive(Debug)]
struct Way(Arc<Master>);

impl Uplink for Way {
    fn dial<'a>(&'a self, _: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let (near, mut far) = tokio::io::duplex(PIECE);
        let master = self.0.clone();
        self.0.thread.spawn(async move {
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
            tokio::io::copy_bidirectional_with_sizes(&mut far, &mut other, PIECE, PIECE)
                .await
                .map(|_| ())
        });
        Box::pin(async { Ok(Box::new(near) as Box<dyn Connection>) })
    }
}

/// A thread in a network namespace, on one processor, that runs tasks.
#[derive(Clone, Debug)]
struct Place {
    tasks: Handle,
    address: IpAddr,
}

impl Place {
    /// The thread lives as long as the program.
    fn start(namespace: Option<PathBuf>, address: IpAddr, processor: usize) -> io::Result<Self> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let begin = || {
                if let Some(path) = namespace {
                    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
                }
                let n_processors = std::thread::available_parallelism()?.get();
                let mut processors = CpuSet::new();
                processors.set(processor.min(n_processors - 1))?;
                sched_setaffinity(Pid::from_raw(0), &processors)?;
                tokio::runtime::Builder::new_current_thread().enable_all().build()
            };
            match begin() {
                Ok(runtime) => {
                    let _ = tell.send(Ok(runtime.handle().clone()));
                    runtime.block_on(std::future::pending::<()>());
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        let tasks = told.recv().map_err(io::Error::other)??;
        Ok(Self { tasks, address })
    }

    /// Works on the thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        self.tasks.spawn(work).await.map_err(io::Error::other)
    }

    /// Processor time of the thread.
    async fn cpu(&self) -> io::Result<Duration> {
        self.run(async {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
            Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
        })
        .await
    }

    /// Takes connections, and copies each to what `open` opens.
    async fn relay<F>(&self, open: impl Fn() -> F + Send + Sync + 'static) -> io::Result<SocketAddr>
    where
        F: Future<Output = io::Result<Box<dyn Connection>>> + Send + 'static,
    {
        let address = self.address;
        self.run(async move {
            let listener = TcpListener::bind((address, 0)).await?;
            let here = listener.local_addr()?;
            tokio::spawn(async move {
                while let Ok((mut near, _)) = listener.accept().await {
                    let opening = open();
                    tokio::spawn(async move {
                        near.set_nodelay(true)?;
                        let mut far = opening.await?;
                        tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, PIECE, PIECE)
                            .await
                    });
                }
            });
            Ok(here)
        })
        .await?
    }
}

/// What takes part.
#[derive(Clone, Debug)]
struct Stage {
    a: Place,
    b: Place,
    client: Place,
}

impl Stage {
    async fn measure(
        &self,
        name: &str,
        n_bytes: usize,
        n_connections: usize,
        to: SocketAddr,
    ) -> io::Result<()> {
        let cpu = async || Ok::<_, io::Error>(self.a.cpu().await? + self.b.cpu().await?);
        // The link is there before it is measured.
        self.client.run(send(to, 1)).await??;
        let (begun, before) = (Instant::now(), cpu().await?);
        self.client.run(send(to, n_bytes)).await??;
        let gigabytes = n_bytes as f64 / 1e9;
        let gbit_s = gigabytes * 8.0 / begun.elapsed().as_secs_f64();
        let per_gb = (cpu().await? - before).as_secs_f64() / gigabytes;
        let before = cpu().await?;
        let connect = async move {
            for _ in 0..n_connections {
                send(to, 1).await?;
            }
            io::Result::Ok(())
        };
        self.client.run(connect).await??;
        let per_connection = (cpu().await? - before).as_secs_f64() * 1e6 / n_connections as f64;
        let line = format!("{name} {per_gb:.3} {gbit_s:.2} {per_connection:.0}\n");
        let mut out = tokio::io::stdout();
        out.write_all(line.as_bytes()).await?;
        out.flush().await
    }
}

async fn connect(to: SocketAddr) -> io::Result<Box<dyn Connection>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn send(to: SocketAddr, n_bytes: usize) -> io::Result<()> {
    let mut stream = connect(to).await?;
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

fn table(number: u8, addresses: [IpAddr; 2], port: u16) -> Table {
    let other = 3 - number;
    let [here, there] = addresses;
    let pods = |number| vec![Net::new(IpAddr::from([10, 42, number, 0]), 24).expect("a range")];
    Table {
        node: Node { addresses: vec![here], pod_cidrs: pods(number), ..Node::default() },
        peers: vec![Peer {
            name: format!("node-{other}"),
            pod_cidrs: pods(other),
            addresses: vec![there],
            port,
            zone: String::new(),
        }],
        ..Table::default()
    }
}

type Failed = Box<dyn std::error::Error>;

async fn run(
    n_bytes: usize,
    n_connections: usize,
    namespaces: [Option<PathBuf>; 2],
    [address_a, address_b]: [IpAddr; 2],
) -> Result<(), Failed> {
    let [in_a, in_b] = namespaces;
    let stage = Stage {
        a: Place::start(in_a.clone(), address_a, 1)?,
        b: Place::start(in_b.clone(), address_b, 1)?,
        client: Place::start(in_a, address_a, 0)?,
    };
    let pods = Place::start(in_b, address_b, 0)?;
    let take = async move {
        let pod = TcpListener::bind((address_b, 0)).await?;
        let address = pod.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = pod.accept().await {
                tokio::spawn(sink(stream));
            }
        });
        io::Result::Ok(address)
    };
    let pod = pods.run(take).await??;
    let far = stage.b.relay(move || connect(pod)).await?;
    let near = stage.a.relay(move || connect(far)).await?;
    stage.measure("tcp", n_bytes, n_connections, near).await?;
    for lane in [Lane::Quic, Lane::Tls, Lane::Relay] {
        let (target, waiting) = <(Mutex<_>, Mutex<_>)>::default();
        let master = Arc::new(Master { thread: pods.tasks.clone(), target, waiting });
        let [a, b] = identities(["node-1", "node-2"])?;
        let start = async |place: &Place, identity| {
            let config = Config { lanes: vec![lane], ..Config::new((place.address, 0).into()) };
            let (way, pods) = (Arc::new(Way(master.clone())), Arc::new(Pods(pod)));
            place.run(async move { Tunnel::start(identity, config, way, pods) }).await
        };
        let (a, b) = (start(&stage.a, a).await??, start(&stage.b, b).await??);
        *master.target.lock().expect("no panic") = Some((b.clone(), "node-1".into()));
        a.set_table(&table(1, [address_a, address_b], b.port()));
        b.set_table(&table(2, [address_b, address_a], a.port()));
        let flow = Flow {
            protocol: Protocol::Tcp,
            source: SocketAddr::from(([10, 42, 1, 5], 40_000)),
            destination: SocketAddr::from(([10, 42, 2, 5], 80)),
            is_external: false,
        };
        let open = move || {
            let a = a.clone();
            async move { a.open("node-2", flow).await }
        };
        let near = stage.a.relay(open).await?;
        stage.measure(&lane.to_string(), n_bytes, n_connections, near).await?;
    }
    Ok(())
}

fn main() -> Result<(), Failed> {
    let usage =
        "lanes <megabytes> <connections> [<namespace A> <address A> <namespace B> <address B>]";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [megabytes, connections, rest @ ..] = arguments.as_slice() else {
        return Err(usage.into());
    };
    let (n_bytes, n_connections) = (megabytes.parse::<usize>()? * 1_000_000, connections.parse()?);
    let (namespaces, addresses) = match rest {
        [] => ([None, None], [IpAddr::from([127, 0, 0, 1]); 2]),
        [in_a, a, in_b, b] => ([Some(in_a.into()), Some(in_b.into())], [a.parse()?, b.parse()?]),
        _ => return Err(usage.into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(n_bytes, n_connections, namespaces, addresses))
}
