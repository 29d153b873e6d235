//! A node, its pods and a neighbour as network namespaces, with the plane running in
//! the node's, and servers that say whom they see.
//!
//! Namespaces have no names: they go with the test. Needs root.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use proxy::control::{self, Capture, FromProxy, Status, ToProxy};
use proxy::links::{Acceptor, BoxFuture, Connection, Flow, Links, Names, Uplink};
use proxy::table::{Endpoint, Node, Peer, Pod, Protocol, Service, ServicePort, Table};
use proxy::{Parts, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// Nothing takes this long that is right.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace; it lives as long as this, and the sockets in it.
pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Self {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            run("ip link set lo up");
            Self(namespace.into())
        })
        .join()
        .unwrap()
    }

    /// Works in the namespace; what it starts is in there too.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn run(&self, commands: &str) {
        self.within(|| commands.lines().map(str::trim).filter(|l| !l.is_empty()).for_each(run));
    }

    /// What a command says.
    pub fn output(&self, command: &str) -> String {
        self.within(|| {
            let mut words = command.split_whitespace();
            let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
    }

    fn fd(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Joins two namespaces by a pair of links.
pub fn join(a: &Namespace, name_a: &str, b: &Namespace, name_b: &str) {
    let fd = b.fd();
    a.within(move || {
        use std::os::fd::AsRawFd;
        let pid = std::process::id();
        let there = format!("/proc/{pid}/fd/{}", fd.as_raw_fd());
        run(&format!("ip link add {name_a} type veth peer name {name_b} netns {there}"));
        run(&format!("ip link set {name_a} up"));
    });
    b.run(&format!("ip link set {name_b} up"));
}

/// A program that one test starts holds all that is open for a moment, until it is
/// another program: then a port of another test would be closed and still taken.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A node with three pods, and a neighbour on its network.
pub struct World {
    _turn: MutexGuard<'static, ()>,
    pub node: Namespace,
    pub outside: Namespace,
    pub pods: Vec<Namespace>,
}

pub const NODE: &str = "192.0.2.1";
pub const OUTSIDE: &str = "192.0.2.9";
pub const GATEWAY: &str = "10.42.1.1";

pub fn pod_address(n: usize) -> IpAddr {
    format!("10.42.1.{}", 11 + n).parse().unwrap()
}

pub fn pod_address6(n: usize) -> IpAddr {
    format!("fd42:0:0:1::{}", 11 + n).parse().unwrap()
}

impl World {
    pub fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (node, outside) = (Namespace::new(), Namespace::new());
        join(&node, "eth0", &outside, "eth0");
        node.run(&format!("ip addr add {NODE}/24 dev eth0"));
        outside.run(&format!("ip addr add {OUTSIDE}/24 dev eth0"));
        let pods = (0..3)
            .map(|n| {
                let pod = Namespace::new();
                let link = format!("pn{n}");
                join(&node, &link, &pod, "eth0");
                let (four, six) = (pod_address(n), pod_address6(n));
                // As the agent has them.
                node.run(&format!(
                    "ip addr add {GATEWAY}/32 dev {link}
                     ip addr add 169.254.1.1/32 dev {link} scope host
                     ip route add {four}/32 dev {link} scope link src {GATEWAY}
                     sysctl -qw net.ipv4.conf.{link}.rp_filter=1
                     ip -6 addr add fe80::1/64 dev {link} nodad
                     ip -6 route add {six}/128 dev {link}"
                ));
                pod.run(&format!(
                    "ip addr add {four}/32 dev eth0
                     ip route add 169.254.1.1 dev eth0 scope link
                     ip route add default via 169.254.1.1
                     ip -6 addr add {six}/128 dev eth0 nodad
                     ip -6 route add default via fe80::1 dev eth0"
                ));
                pod
            })
            .collect();
        Self { _turn: turn, node, outside, pods }
    }
}

/// Serves TCP: says whom it sees, then echoes.
pub fn serve_tcp(at: &Namespace, address: SocketAddr) -> SocketAddr {
    let listener = at.within(|| TcpListener::bind(address).unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = writeln!(stream, "{peer}");
                let mut piece = [0; 65536];
                while let Ok(n) = stream.read(&mut piece) {
                    if n == 0 || stream.write_all(&piece[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Serves UDP: answers with whom it sees, and what that sent.
pub fn serve_udp(at: &Namespace, address: SocketAddr) -> SocketAddr {
    let socket = at.within(|| UdpSocket::bind(address).unwrap());
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65536];
        while let Ok((n, peer)) = socket.recv_from(&mut bytes) {
            let mut answer = format!("{} ", peer.ip()).into_bytes();
            answer.extend(&bytes[..n]);
            let _ = socket.send_to(&answer, peer);
        }
    });
    address
}

/// Connects, exchanges a few bytes, and returns whom the server sees.
pub fn ask(from: &Namespace, to: &str) -> io::Result<String> {
    let stream = connect(from, to)?;
    talk(stream)
}

pub fn connect(from: &Namespace, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from.within(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub fn talk(stream: TcpStream) -> io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    echo(&mut reader, b"hello")?;
    Ok(line.trim().to_owned())
}

pub fn echo(reader: &mut BufReader<TcpStream>, text: &[u8]) -> io::Result<()> {
    reader.get_mut().write_all(text)?;
    let mut echo = vec![0; text.len()];
    reader.read_exact(&mut echo)?;
    assert_eq!(echo, text);
    Ok(())
}

/// Sends a datagram from a connected socket, which takes answers from nobody else,
/// and returns the answer.
pub fn ask_udp(from: &Namespace, to: &str, text: &[u8]) -> io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = from.within(|| UdpSocket::bind(any))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    from.within(|| socket.connect(to))?;
    socket.send(text)?;
    let mut answer = vec![0; 65536];
    let n = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

/// Other nodes, the master, and names, all made up.
#[derive(Debug, Default)]
pub struct Others {
    pub acceptor: Mutex<Option<Arc<dyn Acceptor>>>,
    pub sent: Mutex<Vec<(String, Flow, Vec<u8>)>>,
}

impl Links for Others {
    fn open<'a>(
        &'a self,
        peer: &'a str,
        flow: Flow,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            if flow.destination.port() == 1 {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let head = format!("{} at {peer}\n", flow.source.ip());
            Ok(Box::new(echoing(head)) as Box<dyn Connection>)
        })
    }

    /// The other node answers at once.
    fn send(&self, peer: &str, flow: Flow, datagram: &[u8]) -> bool {
        self.sent.lock().unwrap().push((peer.to_owned(), flow, datagram.to_vec()));
        let back = Flow { source: flow.destination, destination: flow.source, ..flow };
        let mut answer = format!("{} at {peer} ", flow.source.ip()).into_bytes();
        answer.extend(datagram);
        let acceptor = self.acceptor.lock().unwrap().clone().unwrap();
        if flow.destination.port() != 9 {
            acceptor.datagram(peer, back, &answer);
        }
        true
    }
}

fn echoing(head: String) -> tokio::io::DuplexStream {
    let (near, mut far) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let mut piece = [0; 4096];
        let _ = far.write_all(head.as_bytes()).await;
        while let Ok(n) = far.read(&mut piece).await {
            if n == 0 || far.write_all(&piece[..n]).await.is_err() {
                return;
            }
        }
    });
    near
}

impl Uplink for Others {
    fn dial<'a>(&'a self, alpn: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let head = format!("master {}\n", String::from_utf8_lossy(alpn));
        Box::pin(async move { Ok(Box::new(echoing(head)) as Box<dyn Connection>) })
    }
}

impl Names for Others {
    fn datagram<'a>(
        &'a self,
        client: SocketAddr,
        question: &'a [u8],
    ) -> BoxFuture<'a, Option<Vec<u8>>> {
        let answer = format!("{} asked {}", client.ip(), String::from_utf8_lossy(question));
        Box::pin(async move { Some(answer.into_bytes()) })
    }

    fn stream(&self, client: SocketAddr, mut stream: Box<dyn Connection>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _ = stream.write_all(format!("{} asks\n", client.ip()).as_bytes()).await;
            let (mut from, mut to) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut from, &mut to).await;
        })
    }
}

pub fn settings(folder: &Path, capture: Capture) -> Settings {
    Settings {
        run_dir: folder.to_owned(),
        table_file: folder.join("table"),
        capture: Some(capture),
        version: "test".into(),
        grace: Duration::from_millis(200),
        confine: None,
    }
}

/// A plane that runs in the node's namespace, on a thread of its own.
pub struct Plane {
    pub others: Arc<Others>,
    runtime: tokio::runtime::Runtime,
    control: tokio::net::UnixStream,
    last: Status,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Plane {
    pub fn start(world: &World, folder: &Path, capture: Capture, confine: bool) -> Self {
        let confine = confine.then(Vec::new);
        Self::with(world, Settings { confine, ..settings(folder, capture) })
    }

    pub fn with(world: &World, settings: Settings) -> Self {
        let others = Arc::new(Others::default());
        let (parts_of, namespace) = (Arc::clone(&others), world.node.fd());
        let (folder, version) = (settings.run_dir.clone(), settings.version.clone());
        let thread = std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime
                .block_on(proxy::run(settings, |acceptor| {
                    *parts_of.acceptor.lock().unwrap() = Some(acceptor);
                    // Nothing changes here: the sender may go.
                    let (_, changes) = watch::channel(0);
                    Ok(Parts {
                        links: Arc::clone(&parts_of) as Arc<dyn Links>,
                        uplink: Arc::clone(&parts_of) as Arc<dyn Uplink>,
                        names: parts_of as Arc<dyn Names>,
                        table: Box::new(|_| ()),
                        changes,
                        leave: Box::new(|| ()),
                        n_linked: Box::new(|| 0),
                        close: Box::new(|| Box::pin(async {})),
                        paths: Box::new(Vec::new),
                        relay: Box::new(|_, _| ()),
                    })
                }))
                .unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = folder.join(proxy::SOCKET);
        let (control, first) = runtime.block_on(async {
            let connecting = async {
                loop {
                    // Until a successor serves, this may be its predecessor.
                    if let Ok(mut stream) = tokio::net::UnixStream::connect(&socket).await
                        && let Ok(Some(FromProxy::Status(said))) = control::read(&mut stream).await
                        && said.version == version
                    {
                        return (stream, said);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, connecting).await.expect("it listens for the agent")
        });
        Self { others, runtime, control, last: first, thread: Some(thread) }
    }

    /// Puts a table in force, and returns how it is then.
    pub fn apply(&mut self, table: &Table) -> Status {
        let said = ToProxy::Table(Box::new(table.clone()));
        self.runtime.block_on(control::write(&mut self.control, &said)).unwrap();
        self.status(|status| status.generation == table.generation)
    }

    /// Waits until it is as it should be.
    pub fn status(&mut self, is_right: impl Fn(&Status) -> bool) -> Status {
        if is_right(&self.last) {
            return self.last.clone();
        }
        self.last = self.runtime.block_on(async {
            let hearing = async {
                loop {
                    let said = control::read(&mut self.control).await.unwrap();
                    let FromProxy::Status(status) = said.expect("it still is there");
                    if is_right(&status) {
                        return status;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, hearing).await.expect("the status is as awaited")
        });
        self.last.clone()
    }

    /// Has it leave, and waits for its end.
    pub fn leave(mut self) {
        self.runtime.block_on(control::write(&mut self.control, &ToProxy::Leave)).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    /// Waits for its end, which something else brings about.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn endpoint(address: &str) -> Endpoint {
    let address: SocketAddr = address.parse().unwrap();
    let is_far = address.ip().to_string().starts_with("10.42.2.");
    Endpoint {
        address: address.ip(),
        port: address.port(),
        node: if is_far { "far" } else { "me" }.into(),
        zone: String::new(),
        hostname: String::new(),
        ready: true,
        serving: true,
        terminating: false,
    }
}

/// A Service at `address` with these endpoints; its port is the address's.
pub fn service(name: &str, protocol: Protocol, address: &str, endpoints: &[&str]) -> Service {
    let address: SocketAddr = address.parse().unwrap();
    Service {
        namespace: "default".into(),
        name: name.into(),
        cluster_ips: vec![address.ip()],
        ports: vec![ServicePort {
            name: String::new(),
            protocol,
            port: address.port(),
            node_port: None,
            endpoints: endpoints.iter().map(|e| endpoint(e)).collect(),
        }],
        ..Service::default()
    }
}

pub fn table(generation: u64, services: Vec<Service>) -> Table {
    let pods = (0..3_u8)
        .map(|n| Pod {
            uid: [n; 16],
            namespace: "default".into(),
            name: format!("p{n}"),
            addresses: vec![pod_address(n.into()), pod_address6(n.into())],
            ports: vec![],
            ingress: None,
            egress: None,
        })
        .collect();
    let peer = Peer {
        name: "far".into(),
        pod_cidrs: vec!["10.42.2.0/24".parse().unwrap()],
        addresses: vec!["192.0.2.2".parse().unwrap()],
        port: 1,
        zone: String::new(),
    };
    Table {
        generation,
        node: Node {
            name: "me".into(),
            addresses: vec![NODE.parse().unwrap()],
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
            dns_addresses: vec!["10.43.0.10".parse().unwrap()],
            ..Node::default()
        },
        services,
        pods,
        peers: vec![peer],
        ..Table::default()
    }
}
