//! The data plane alone (`pinnace-proxy`'s example `alone`) at the hub, on processor
//! 1, told by this program what agents tell it, with two or three pods beside it.
//!
//! ```text
//! 10.42.1.11 client ┐                 ┌ 10.42.1.12 server
//! 10.60.1.11        ┴ 169.254.1.1 hub ┴ 10.60.1.12        (and .13: another)
//! ```
//!
//! Pods have a second address that the plane does not know: from there others than
//! the plane are reached, and each other by the kernel alone.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::executor::block_on;
use proxy::control::{self, FromProxy, Status, ToProxy};
use proxy::table::{Endpoint, Node, Pod, Protocol, Service, ServicePort, Table};
use tokio::time::Instant;

use crate::load::PORTS;
use crate::world::{HUB, Host, World, line, program};

/// The Service that leads to the servers.
pub(crate) const SERVICE: [u8; 4] = [10, 43, 1, 1];
/// Endpoints of each Service that is only there to be many.
const ENDPOINTS: u8 = 3;
/// Nothing takes this long that is right.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a pod beside the plane; number 0 is the client.
pub(crate) fn pod(world: &World, name: &str, number: u8) -> anyhow::Result<Host> {
    let host = world.host(name)?;
    let (pod, other) = (pod_address(number), other_address(number));
    for rest in [
        format!("ip link set {name} up"),
        format!("ip addr add 169.254.1.1/32 dev {name} scope host"),
        format!("ip addr add 10.42.1.1/32 dev {name}"),
        format!("ip route add {pod}/32 dev {name} scope link src 10.42.1.1"),
        format!("ip addr add 10.60.1.1/32 dev {name}"),
        format!("ip route add {other}/32 dev {name} scope link src 10.60.1.1"),
    ] {
        line(&rest)?;
    }
    for rest in [
        format!("ip addr add {pod}/32 dev eth0"),
        format!("ip addr add {other}/32 dev eth0"),
        "ip link set eth0 up".to_owned(),
        "ip route add 169.254.1.1 dev eth0 scope link".to_owned(),
        format!("ip route add default via 169.254.1.1 src {pod}"),
        format!("ip route add 10.60.0.0/15 via 169.254.1.1 src {other}"),
        format!("ip route add {HUB}/32 via 169.254.1.1 src {other}"),
    ] {
        host.line(&rest)?;
    }
    Ok(host)
}

/// By which the plane knows it.
pub(crate) fn pod_address(number: u8) -> IpAddr {
    IpAddr::from([10, 42, 1, 11 + number])
}

/// By which all others know it.
pub(crate) fn other_address(number: u8) -> IpAddr {
    IpAddr::from([10, 60, 1, 11 + number])
}

/// The data plane, running.
#[derive(Debug)]
pub(crate) struct Plane {
    child: Child,
    control: UnixStream,
    status: Arc<Mutex<Status>>,
}

impl Plane {
    /// Starts it; the table is empty.
    pub(crate) fn start(world: &World) -> anyhow::Result<Self> {
        let folder = world.dir().join("plane");
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).arg(program("alone")?).arg(&folder);
        let child = world.spawn("plane", &mut command)?;
        let end = Instant::now() + PATIENCE;
        let control = loop {
            match UnixStream::connect(folder.join(proxy::SOCKET)) {
                Ok(stream) => break stream,
                Err(error) => ensure!(Instant::now() < end, "the plane does not listen: {error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        let status = Arc::<Mutex<Status>>::default();
        let (mut hears, said) = (control.try_clone()?, Arc::clone(&status));
        thread::spawn(move || {
            while let Ok(FromProxy::Status(status)) = hear(&mut hears) {
                *said.lock().unwrap_or_else(PoisonError::into_inner) = status;
            }
        });
        Ok(Self { child, control, status })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a table, as the agent does: makes the bytes of it, and writes them.
    pub(crate) fn say(&mut self, table: &ToProxy) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        block_on(control::write(&mut bytes, table))?;
        Ok(self.control.write_all(&bytes)?)
    }

    /// Says a table and waits until it is in force.
    pub(crate) fn apply(&mut self, table: Table) -> anyhow::Result<Status> {
        let generation = table.generation;
        self.say(&ToProxy::Table(Box::new(table)))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if status.generation == generation {
                ensure!(status.conflicts.is_empty(), "the plane says {:?}", status.conflicts);
                return Ok(status);
            }
            ensure!(Instant::now() < end, "the plane has no table {generation}: {status:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Has it end, and waits until it has removed what it made.
    pub(crate) fn leave(mut self) -> anyhow::Result<()> {
        self.say(&ToProxy::Leave)?;
        self.child.wait()?;
        Ok(())
    }
}

fn hear(stream: &mut UnixStream) -> anyhow::Result<FromProxy> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut bytes = head.to_vec();
    stream.take(u32::from_le_bytes(head).into()).read_to_end(&mut bytes)?;
    block_on(control::read(&mut bytes.as_slice()))?.context("a message")
}

fn endpoint(address: IpAddr, port: u16, is_ready: bool) -> Endpoint {
    Endpoint {
        address,
        port,
        node: "bench".to_owned(),
        zone: String::new(),
        hostname: String::new(),
        ready: is_ready,
        serving: is_ready,
        terminating: false,
    }
}

fn port(number: u16, endpoints: Vec<Endpoint>) -> ServicePort {
    let name = format!("p{number}");
    ServicePort { name, protocol: Protocol::Tcp, port: number, node_port: None, endpoints }
}

/// The Service with the pods `servers`, each ready or not, and `n_more` that nobody asks.
pub(crate) fn table(generation: u64, servers: &[(u8, bool)], n_more: u32) -> anyhow::Result<Table> {
    let to = |number| {
        let ready = |(pod, is_ready): &(u8, bool)| endpoint(pod_address(*pod), number, *is_ready);
        port(number, servers.iter().map(ready).collect())
    };
    let ours = Service {
        namespace: "default".to_owned(),
        name: "ours".to_owned(),
        cluster_ips: vec![SERVICE.into()],
        ports: PORTS.map(to).to_vec(),
        ..Service::default()
    };
    let more = (0..n_more).map(|n| {
        let [_, high, middle, low] = n.to_be_bytes();
        let pods =
            (0..ENDPOINTS).map(|k| IpAddr::from([10, 42, 2 + (low & 0x3f) + 64 * k, middle]));
        Service {
            namespace: format!("many-{:04}", n / 100),
            name: format!("svc-{n:05}"),
            cluster_ips: vec![IpAddr::from([10, 43, 16 + (high << 6) + (middle & 0x3f), low])],
            ports: vec![port(80, pods.map(|pod| endpoint(pod, 8080, true)).collect())],
            ..Service::default()
        }
    });
    let pod = |number: u8| Pod {
        uid: [number; 16],
        namespace: "default".to_owned(),
        name: format!("pod-{number}"),
        addresses: vec![pod_address(number)],
        ports: vec![],
        ingress: None,
        egress: None,
    };
    Ok(Table {
        generation,
        node: Node {
            name: "bench".to_owned(),
            addresses: vec![HUB.parse()?],
            pod_cidrs: vec!["10.42.1.0/24".parse()?],
            cluster_cidrs: vec!["10.42.0.0/16".parse()?],
            service_cidrs: vec!["10.43.0.0/16".parse()?],
            dns_addresses: vec!["10.43.0.10".parse()?],
            cluster_domain: "cluster.local".to_owned(),
            ..Node::default()
        },
        services: std::iter::once(ours).chain(more).collect(),
        pods: (0..3).map(pod).collect(),
        ..Table::default()
    })
}

/// Where the Service's port is.
pub(crate) fn service(port: u16) -> SocketAddr {
    SocketAddr::from((SERVICE, port))
}
