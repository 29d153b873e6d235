//! Nodes for tests: certificates, an echo in place of pods, a relay in place of the
//! master, and network namespaces.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proxy::control::Path;
use proxy::links::{Acceptor, BoxFuture, Connection, Flow, Links, Uplink};
use proxy::table::{Net, Node as TableNode, Peer, Protocol, Table};
use proxy::tunnel::{ALPN_RELAY, Config, Identity, Tunnel};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Far beyond what anything takes here: only a hang gets there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What answers at a pod.
pub(crate) const ECHO: u16 = 7;
/// Nobody listens there.
pub(crate) const REFUSED: u16 = 9;
/// Reads to the end, then says how many bytes it was.
pub(crate) const COUNT: u16 = 10;
/// Says half a word and breaks.
pub(crate) const BREAK: u16 = 11;
/// Says how many bytes it has so far, for each.
pub(crate) const TALLY: u16 = 12;

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// As the master makes them at enrolment.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Identity {
            chain: vec![leaf],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            cas: vec![self.certificate.clone()],
            known_past: || UnixTime::since_unix_epoch(Duration::ZERO),
        }
    }
}

/// The pods of a node.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// Datagrams are answered through it.
    links: Mutex<Option<Tunnel>>,
    pub(crate) flows: Mutex<Vec<(String, Flow)>>,
    pub(crate) datagrams: Mutex<Vec<(String, Flow, Vec<u8>)>>,
    pub(crate) n_open: Arc<AtomicUsize>,
}

impl Acceptor for Pods {
    fn connect(&self, peer: &str, flow: Flow) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        self.flows.lock().unwrap().push((peer.to_owned(), flow));
        let n_open = self.n_open.clone();
        Box::pin(async move {
            if flow.destination.port() == REFUSED {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = tokio::io::duplex(64 << 10);
            n_open.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let _broken = serve(flow.destination.port(), far).await;
                n_open.fetch_sub(1, Ordering::SeqCst);
            });
            // In place of a reset, which `duplex` does not know.
            let breaks = flow.destination.port() == BREAK;
            Ok(Box::new(Breaking { stream: near, breaks }) as Box<dyn Connection>)
        })
    }

    fn datagram(&self, peer: &str, flow: Flow, datagram: &[u8]) {
        self.datagrams.lock().unwrap().push((peer.to_owned(), flow, datagram.to_vec()));
        if flow.destination.port() == ECHO {
            let back = Flow { source: flow.destination, destination: flow.source, ..flow };
            if let Some(links) = &*self.links.lock().unwrap() {
                links.send(peer, back, datagram);
            }
        }
    }
}

async fn serve(port: u16, mut stream: DuplexStream) -> io::Result<()> {
    match port {
        COUNT => {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            stream.write_all(bytes.len().to_string().as_bytes()).await
        }
        BREAK => stream.write_all(b"half").await,
        TALLY => {
            let mut n_bytes = 0_u64;
            let mut space = [0; 4096];
            loop {
                n_bytes += stream.read(&mut space).await? as u64;
                stream.write_all(&n_bytes.to_le_bytes()).await?;
            }
        }
        _ => {
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        }
    }
}

struct Breaking {
    stream: DuplexStream,
    breaks: bool,
}

impl tokio::io::AsyncRead for Breaking {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = std::task::ready!(std::pin::Pin::new(&mut self.stream).poll_read(cx, buf));
        if self.breaks && buf.filled().len() == before {
            return std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        std::task::Poll::Ready(read)
    }
}

impl tokio::io::AsyncWrite for Breaking {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// In place of the master: passes bytes between two nodes, and looks at them.
#[derive(Debug, Default)]
pub(crate) struct Master {
    nodes: Mutex<HashMap<String, Tunnel>>,
    waiting: Mutex<HashMap<[u8; 16], oneshot::Sender<DuplexStream>>>,
    n_tickets: AtomicU64,
    pub(crate) seen: Arc<Mutex<Vec<u8>>>,
}

/// A node's way to it.
#[derive(Debug)]
struct Way {
    master: Arc<Master>,
    node: String,
}

impl Uplink for Way {
    fn dial<'a>(&'a self, alpn: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        assert_eq!(alpn, ALPN_RELAY);
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(self.master.clone().serve(self.node.clone(), far));
        Box::pin(async { Ok(Box::new(near) as Box<dyn Connection>) })
    }
}

impl Master {
    async fn serve(self: Arc<Self>, node: String, mut stream: DuplexStream) {
        let length = stream.read_u16_le().await.unwrap();
        let mut hello = vec![0; length.into()];
        stream.read_exact(&mut hello).await.unwrap();
        if hello[0] == 1 {
            let waiter = self.waiting.lock().unwrap().remove(&hello[1..17]);
            stream.write_all(&[0]).await.unwrap();
            let _gone = waiter.unwrap().send(stream);
            return;
        }
        let peer = String::from_utf8(hello[2..].to_vec()).unwrap();
        let found = self.nodes.lock().unwrap().get(&peer).cloned();
        let Some(found) = found else {
            stream.write_all(&[1]).await.unwrap();
            return;
        };
        let mut ticket = [0; 16];
        let n_ticket = self.n_tickets.fetch_add(1, Ordering::SeqCst);
        ticket[..8].copy_from_slice(&n_ticket.to_le_bytes());
        let (fetched, fetching) = oneshot::channel();
        self.waiting.lock().unwrap().insert(ticket, fetched);
        found.relay(&node, ticket);
        let Ok(other) = fetching.await else { return };
        stream.write_all(&[0]).await.unwrap();
        let (mut a_read, mut a_write) = tokio::io::split(stream);
        let (mut b_read, mut b_write) = tokio::io::split(other);
        let forth = copy(&mut a_read, &mut b_write, &self.seen);
        let back = copy(&mut b_read, &mut a_write, &self.seen);
        tokio::select! {
            _ = forth => {}
            _ = back => {}
        }
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    seen: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let mut space = [0; 4096];
    loop {
        let n_bytes = from.read(&mut space).await?;
        if n_bytes == 0 {
            return Ok(());
        }
        seen.lock().unwrap().extend_from_slice(&space[..n_bytes]);
        to.write_all(&space[..n_bytes]).await?;
    }
}

/// A node, with a runtime on a thread of its own, in a namespace of its own or not.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) tunnel: Tunnel,
    pub(crate) pods: Arc<Pods>,
    pub(crate) number: u8,
    master: Arc<Master>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How a node is started.
pub(crate) struct Setup<'a> {
    pub(crate) ca: &'a Ca,
    pub(crate) master: &'a Arc<Master>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) listen: SocketAddr,
    pub(crate) review: Duration,
    pub(crate) keep_alive: Duration,
    pub(crate) idle: Duration,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(ca: &'a Ca, master: &'a Arc<Master>) -> Self {
        let default = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        Self {
            ca,
            master,
            namespace: None,
            listen: default.listen,
            review: default.review,
            keep_alive: default.keep_alive,
            idle: default.idle,
        }
    }

    pub(crate) fn at(mut self, address: [u8; 4]) -> Self {
        self.listen = SocketAddr::from((address, 0));
        self
    }

    pub(crate) fn within(mut self, namespace: &'a str) -> Self {
        self.namespace = Some(namespace);
        self
    }

    pub(crate) fn listen(mut self, listen: &str) -> Self {
        self.listen = listen.parse().unwrap();
        self
    }

    pub(crate) fn review(mut self, review: Duration) -> Self {
        self.review = review;
        self
    }

    /// Starts node `node-N`, whose pods are `10.42.N.0/24`.
    pub(crate) fn start(self, number: u8) -> Node {
        let name = format!("node-{number}");
        self.start_as(number, &name)
    }

    pub(crate) fn start_as(self, number: u8, name: &str) -> Node {
        let pods = Arc::<Pods>::default();
        let identity = self.ca.identity(name);
        let config = Config {
            keep_alive: self.keep_alive,
            idle: self.idle,
            review: self.review,
            ..Config::new(self.listen)
        };
        let way = Arc::new(Way { master: self.master.clone(), node: name.to_owned() });
        let namespace =
            self.namespace.map(|name| File::open(format!("/run/netns/{name}")).unwrap());
        let (stop, stopped) = oneshot::channel();
        let (started, starting) = std::sync::mpsc::channel();
        let acceptor = pods.clone();
        let thread = std::thread::spawn(move || {
            if let Some(namespace) = namespace {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
            }
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tunnel = Tunnel::start(identity, config, way, acceptor).unwrap();
                started.send(tunnel).unwrap();
                let _dropped = stopped.await;
            });
            // As a process that is killed: nobody is told.
            runtime.shutdown_background();
        });
        let tunnel = starting.recv_timeout(PATIENCE).unwrap();
        *pods.links.lock().unwrap() = Some(tunnel.clone());
        self.master.nodes.lock().unwrap().insert(name.to_owned(), tunnel.clone());
        let name = name.to_owned();
        let master = self.master.clone();
        Node { name, tunnel, pods, master, number, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        self.master.nodes.lock().unwrap().remove(&self.name);
        // The pods hold the tunnel that holds them.
        self.pods.links.lock().unwrap().take();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

pub(crate) fn pods_of(number: u8) -> Net {
    Net::new(IpAddr::from([10, 42, number, 0]), 24).unwrap()
}

pub(crate) fn table_node(number: u8, address: &str) -> TableNode {
    TableNode {
        name: format!("node-{number}"),
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: vec![pods_of(number)],
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
        ..TableNode::default()
    }
}

/// Tells nodes of each other; each is at its address.
pub(crate) fn introduce(nodes: &[(&Node, &str)]) {
    for (node, address) in nodes {
        let peers = nodes.iter().filter(|(other, _)| other.number != node.number);
        let peer = |(other, address): &(&Node, &str)| Peer {
            name: other.name.clone(),
            pod_cidrs: vec![pods_of(other.number)],
            addresses: vec![address.parse().unwrap()],
            port: other.tunnel.port(),
            zone: String::new(),
        };
        let table = Table {
            node: table_node(node.number, address),
            peers: peers.map(peer).collect(),
            ..Table::default()
        };
        node.tunnel.set_table(&table);
    }
}

pub(crate) fn flow(from: u8, to: u8, port: u16) -> Flow {
    Flow {
        protocol: Protocol::Tcp,
        source: SocketAddr::from(([10, 42, from, 5], 40_000)),
        destination: SocketAddr::from(([10, 42, to, 9], port)),
        is_external: false,
    }
}

pub(crate) async fn open(from: &Node, to: &Node, port: u16) -> io::Result<Box<dyn Connection>> {
    from.tunnel.open(&to.name, flow(from.number, to.number, port)).await
}

/// Sends bytes to a pod of another node and expects them back.
pub(crate) async fn echo(from: &Node, to: &Node, n_bytes: usize) {
    let mut stream = open(from, to, ECHO).await.unwrap();
    let sent: Vec<u8> = (0..n_bytes).map(|at| (at % 251) as u8).collect();
    let expected = sent.clone();
    let exchange = async {
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let sending = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(sending, read.read_to_end(&mut got));
        read.unwrap();
        got
    };
    let got = tokio::time::timeout(PATIENCE, exchange).await.unwrap();
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
}

pub(crate) fn path(node: &Node, peer: &Node) -> Path {
    let paths = node.tunnel.paths();
    paths.into_iter().find(|path| path.peer == peer.name).unwrap_or_default()
}

/// Polls until it holds.
pub(crate) async fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two namespaces with a cable between them, removed in the end.
pub(crate) struct Cable {
    pub(crate) a: String,
    pub(crate) b: String,
}

static N_CABLES: AtomicUsize = AtomicUsize::new(0);

impl Cable {
    /// `10.99.0.1` and `10.99.0.2`.
    pub(crate) fn new() -> Self {
        let number = N_CABLES.fetch_add(1, Ordering::SeqCst);
        let name = |end| format!("pt-tunnel-{}-{number}{end}", std::process::id());
        let cable = Self { a: name("a"), b: name("b") };
        for namespace in [&cable.a, &cable.b] {
            run(&format!("ip netns add {namespace}"));
            inside(namespace, "ip link set lo up");
        }
        let (a, b) = (&cable.a, &cable.b);
        inside(a, &format!("ip link add cable type veth peer name cable netns {b}"));
        for (namespace, address) in [(a, "10.99.0.1/24"), (b, "10.99.0.2/24")] {
            inside(namespace, &format!("ip address add {address} dev cable"));
            inside(namespace, "ip link set cable up");
        }
        cable
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.a, &self.b] {
            let _gone = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

pub(crate) fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line} (the tests run as root)");
}

pub(crate) fn inside(namespace: &str, line: &str) {
    run(&format!("nsenter --net=/run/netns/{namespace} {line}"));
}

/// Drops what comes in and fits; `None` lets everything in again.
pub(crate) fn firewall(namespace: &str, rule: Option<&str>) {
    let rule = rule.map_or_else(String::new, |rule| format!("{rule} drop"));
    let rules = format!(
        "add table inet test\ndelete table inet test\ntable inet test {{\nchain input {{\n\
         type filter hook input priority 0\n{rule}\n}}\n}}\n"
    );
    let status = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{namespace}"))
        .args(["nft", &rules])
        .status()
        .unwrap();
    assert!(status.success(), "{rules}");
}
