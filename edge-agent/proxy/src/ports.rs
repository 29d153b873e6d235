//! Ports of the node: NodePorts, host ports, addresses for clients outside, health
//! checks; and, without capturing, the Services' own addresses.
//!
//! Real listeners, opened where the table asks for them and closed where it does
//! no longer. What another program has is left alone: it is a [`Conflict`], tried
//! again with every table. What is to be open is decided in [`wanted`]; opening is
//! below.

mod health;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use crate::capture::sockets;
use crate::control::Conflict;
use crate::plane::Plane;
use crate::table::{Protocol, Service};
use crate::view::{Place, Scope, View, Way, Who};
use crate::{tcp, udp};

/// Where something listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
}

/// What a port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// What the destination of each connection says.
    Asked,
    /// A NodePort.
    NodePort(u16),
    /// An address for clients outside.
    External(IpAddr, u16),
    /// A host port.
    Pod(SocketAddr),
    /// Whether the node has endpoints of a Service: its namespace and name.
    Health(String, String),
}

impl Entry {
    /// Where a connection or a flow that came in here leads; `None` where the table
    /// has nothing for it by now.
    pub(crate) fn way(
        &self,
        view: &View,
        protocol: Protocol,
        client: IpAddr,
        asked: SocketAddr,
    ) -> Option<Way> {
        let scope = || match view.who(client) {
            Who::Outside => Scope::External,
            Who::Pod | Who::Node | Who::Cluster => Scope::Cluster,
        };
        match self {
            Self::Asked => Some(view.way(protocol, client, asked)),
            Self::NodePort(number) => {
                let port = view.node_port(*number, protocol)?;
                Some(Way::Service(Arc::clone(port), scope()))
            }
            Self::External(address, number) => {
                let port = view.external((*address, *number, protocol))?;
                Some(port.way_from_outside(client, scope()))
            }
            Self::Pod(address) => Some(Way::Direct(*address, Place::Pod)),
            Self::Health(..) => None,
        }
    }
}

/// What is to be open, who asks for it, and what cannot be because two ask.
pub(crate) type Wanted = BTreeMap<Bind, (Entry, Owner)>;

/// For whom a port is open: namespace and name of a Service, or empty.
pub(crate) type Owner = (String, String);

/// What is to be open for this table. `is_captured` is false where Services need
/// listeners of their own.
pub(crate) fn wanted(view: &View, is_captured: bool) -> (Wanted, Vec<Conflict>) {
    let mut open = Wanted::new();
    let mut conflicts = Vec::new();
    let mut want = |bind: Bind, entry: Entry, owner: &Owner| {
        let holder = open.entry(bind).or_insert_with(|| (entry.clone(), owner.clone()));
        if holder.0 != entry {
            let text = format!(
                "port {}/{} of the node is asked for by {} already",
                bind.address.port(),
                bind.protocol,
                said(&holder.1),
            );
            conflicts.push(conflict(owner, text));
        }
    };
    for service in &view.table.services {
        services_ports(view, service, &mut want);
    }
    let nobody = Owner::default();
    for port in &view.table.host_ports {
        let any = unspecified(port.pod.is_ipv6());
        let address = SocketAddr::new(port.host_ip.unwrap_or(any), port.port);
        let entry = Entry::Pod(SocketAddr::new(port.pod, port.pod_port));
        want(Bind { protocol: port.protocol, address }, entry, &nobody);
    }
    if !is_captured {
        for (address, number, protocol) in &view.live {
            let address = SocketAddr::new(*address, *number);
            want(Bind { protocol: *protocol, address }, Entry::Asked, &nobody);
        }
    }
    (open, conflicts)
}

fn services_ports(view: &View, service: &Service, want: &mut impl FnMut(Bind, Entry, &Owner)) {
    let owner = (service.namespace.clone(), service.name.clone());
    let mut families: Vec<bool> = service.cluster_ips.iter().map(IpAddr::is_ipv6).collect();
    families.sort_unstable();
    families.dedup();
    for port in &service.ports {
        let protocol = port.protocol;
        // Two Services that ask for one NodePort: the first has it, and what follows
        // finds out that the entry leads elsewhere.
        if let Some(number) = port.node_port
            && let Some(made) = view.node_port(number, protocol)
        {
            let is_ours = made.owner == crate::view::owner(service);
            let answers = !made.candidates(Scope::External).is_empty();
            for is_ipv6 in families.iter().copied().filter(|_| is_ours && answers) {
                let address = SocketAddr::new(unspecified(is_ipv6), number);
                want(Bind { protocol, address }, Entry::NodePort(number), &owner);
            }
        }
        for address in &service.external_ips {
            // Elsewhere nothing can be listened at; pods of this node are captured.
            let is_here = view.table.node.addresses.contains(address);
            let key = (*address, port.port, protocol);
            let answers =
                view.external(key).is_some_and(|made| !made.candidates(Scope::External).is_empty());
            if is_here && answers {
                let bind = Bind { protocol, address: SocketAddr::new(*address, port.port) };
                want(bind, Entry::External(*address, port.port), &owner);
            }
        }
    }
    if let Some(number) = service.health_port {
        for is_ipv6 in families {
            let address = SocketAddr::new(unspecified(is_ipv6), number);
            let entry = Entry::Health(service.namespace.clone(), service.name.clone());
            want(Bind { protocol: Protocol::Tcp, address }, entry, &owner);
        }
    }
}

fn unspecified(is_ipv6: bool) -> IpAddr {
    if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn said((namespace, service): &Owner) -> String {
    if service.is_empty() {
        "a host port".to_owned()
    } else {
        format!("the Service {namespace}/{service}")
    }
}

fn conflict((namespace, service): &Owner, message: String) -> Conflict {
    Conflict { namespace: namespace.clone(), service: service.clone(), message }
}

#[derive(Debug)]
enum Listening {
    Tcp(Arc<TcpListener>),
    Udp(Arc<UdpSocket>),
}

#[derive(Debug)]
struct Open {
    entry: Entry,
    socket: Listening,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The ports that are open.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    open: BTreeMap<Bind, Open>,
    /// Sockets of a predecessor that no table has asked for yet.
    inherited: BTreeMap<Bind, OwnedFd>,
}

impl Ports {
    /// With the sockets of a predecessor, which are taken as they are asked for.
    pub(crate) fn inherit(inherited: BTreeMap<Bind, OwnedFd>) -> Self {
        Self { open: BTreeMap::new(), inherited }
    }

    /// Closes what is wanted no more and opens what is new. Returns what another
    /// program has.
    pub(crate) async fn apply(&mut self, plane: &Arc<Plane>, wanted: Wanted) -> Vec<Conflict> {
        let old: Vec<_> = self.open.extract_if(.., |bind, _| !wanted.contains_key(bind)).collect();
        for (_, mut open) in old {
            open.stop().await;
        }
        let mut conflicts = Vec::new();
        for (bind, (entry, owner)) in wanted {
            if let Some(open) = self.open.get_mut(&bind) {
                if open.entry != entry {
                    open.lead_to(plane, entry).await;
                }
                continue;
            }
            match open(plane, bind, entry, self.inherited.remove(&bind)) {
                Ok(made) => {
                    self.open.insert(bind, made);
                }
                Err(error) => {
                    let (port, protocol) = (bind.address.port(), bind.protocol);
                    let text = match error.kind() {
                        io::ErrorKind::AddrInUse => format!(
                            "port {port}/{protocol} of the node is taken by another program"
                        ),
                        _ => format!("cannot listen at {} for {protocol}: {error}", bind.address),
                    };
                    conflicts.push(conflict(&owner, text));
                }
            }
        }
        // The table has been told whole: nobody will ask for the rest.
        self.inherited.clear();
        conflicts
    }

    /// The sockets, for a successor.
    pub(crate) fn sockets(&self) -> Vec<(Bind, BorrowedFd<'_>)> {
        self.open
            .iter()
            .map(|(bind, open)| {
                let fd = match &open.socket {
                    Listening::Tcp(listener) => listener.as_fd(),
                    Listening::Udp(socket) => socket.as_fd(),
                };
                (*bind, fd)
            })
            .collect()
    }

    /// Accepts again.
    pub(crate) fn restart(&mut self, plane: &Arc<Plane>) {
        for open in self.open.values_mut() {
            open.task = start(plane, &open.socket, open.entry.clone());
        }
    }

    /// Accepts no more; what waits in the sockets is the successor's.
    pub(crate) async fn stop(&mut self) {
        for open in self.open.values_mut() {
            open.stop().await;
        }
    }
}

impl Open {
    /// The same socket, another end: nobody who waits at it is turned away.
    async fn lead_to(&mut self, plane: &Arc<Plane>, entry: Entry) {
        self.stop().await;
        self.task = start(plane, &self.socket, entry.clone());
        self.entry = entry;
    }

    /// Accepts no more once this returns, and the task holds the socket no longer.
    async fn stop(&mut self) {
        self.task.abort();
        if !self.task.is_finished() {
            let _cancelled = (&mut self.task).await;
        }
    }
}

fn open(
    plane: &Arc<Plane>,
    bind: Bind,
    entry: Entry,
    inherited: Option<OwnedFd>,
) -> io::Result<Open> {
    let socket = match (inherited, bind.protocol) {
        (Some(fd), _) => socket2::Socket::from(fd),
        (None, Protocol::Tcp) => sockets::listener(bind.address, false)?,
        (None, Protocol::Udp) => sockets::datagrams(bind.address, false)?,
    };
    let socket = match bind.protocol {
        Protocol::Tcp => Listening::Tcp(Arc::new(TcpListener::from_std(socket.into())?)),
        Protocol::Udp => Listening::Udp(Arc::new(UdpSocket::from_std(socket.into())?)),
    };
    let task = start(plane, &socket, entry.clone());
    Ok(Open { entry, socket, task })
}

fn start(plane: &Arc<Plane>, socket: &Listening, entry: Entry) -> JoinHandle<()> {
    let plane = Arc::clone(plane);
    match (socket, entry) {
        (Listening::Tcp(listener), Entry::Health(namespace, name)) => {
            tokio::spawn(health::serve(plane, Arc::clone(listener), namespace, name))
        }
        (Listening::Tcp(listener), entry) => {
            tokio::spawn(tcp::accept(plane, Arc::clone(listener), entry))
        }
        (Listening::Udp(socket), entry) => {
            tokio::spawn(udp::receive(plane, Arc::clone(socket), entry))
        }
    }
}
