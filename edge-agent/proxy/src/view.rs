//! The table, made ready for decisions: where a connection or a flow leads.
//!
//! Built anew from every table; only the [`Backend`]s, with their counts, go from
//! one to the next. Pure: it dials nobody.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::balance::{Backend, Preference, usable};
use crate::capture::{Live, Ranges, gateway};
use crate::policy;
use crate::table::{Net, Pod, Protocol, Service, ServicePort, Table};

/// Where names are answered.
const DNS_PORT: u16 = 53;

/// Where an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A pod of this node.
    Pod,
    /// This node itself.
    Node,
    /// Another node, or a pod of it.
    Peer(Arc<str>),
    /// Anywhere else.
    World,
}

/// Who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// A pod of this node.
    Pod,
    /// This node itself.
    Node,
    /// A pod of another node.
    Cluster,
    /// Anybody else.
    Outside,
}

/// An endpoint that may be asked.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) backend: Arc<Backend>,
    pub(crate) place: Place,
}

/// For whom a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Scope {
    /// Clients in the cluster, at the Service's own address.
    Internal,
    /// Clients from outside.
    External,
    /// Clients in the cluster, at an address for those outside: as upstream, all
    /// endpoints.
    Cluster,
}

/// A port of a Service.
#[derive(Debug)]
pub(crate) struct Port {
    /// The same for the same port in every table.
    pub(crate) id: u64,
    /// The same for all ports of a Service, and for no other's: see [`owner`].
    pub(crate) owner: u64,
    pub(crate) is_api: bool,
    pub(crate) affinity: Option<Duration>,
    /// Who gets in at the addresses for clients outside.
    sources: Option<Box<[Net]>>,
    internal: Arc<[Candidate]>,
    external: Arc<[Candidate]>,
    cluster: Arc<[Candidate]>,
}

/// Names a Service in eight bytes: names in full would be an eighth of what one costs.
pub(crate) fn owner(service: &Service) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&service.namespace, &service.name).hash(&mut hasher);
    hasher.finish()
}

impl Port {
    /// Where a client gets that asks at an address for those outside.
    pub(crate) fn way_from_outside(self: &Arc<Self>, client: IpAddr, scope: Scope) -> Way {
        if self.admits(client) {
            Way::Service(Arc::clone(self), scope)
        } else {
            tracing::debug!(%client, ?scope, "not among the source ranges");
            Way::Refused
        }
    }

    /// Whether a client gets in at the addresses for those outside.
    fn admits(&self, client: IpAddr) -> bool {
        let sources = self.sources.as_deref();
        sources.is_none_or(|nets| nets.iter().any(|net| net.contains(client)))
    }

    pub(crate) fn candidates(&self, scope: Scope) -> &[Candidate] {
        match scope {
            Scope::Internal => &self.internal,
            Scope::External => &self.external,
            Scope::Cluster => &self.cluster,
        }
    }
}

/// Where a connection leads.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// To who answers questions for names.
    Names,
    /// To the master's API.
    Api(Arc<Port>),
    /// To one of a Service's endpoints.
    Service(Arc<Port>, Scope),
    /// Where the client asked for.
    Direct(SocketAddr, Place),
    /// Nowhere.
    Refused,
}

/// Why a connection is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The pod that it comes from may not go there.
    Egress,
    /// The pod that it goes to lets it not in.
    Ingress,
}

type Address = (IpAddr, u16, Protocol);

/// The table, made ready.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) table: Arc<Table>,
    pub(crate) ranges: Ranges,
    pub(crate) live: Live,
    services: HashMap<Address, Arc<Port>>,
    external: HashMap<Address, Arc<Port>>,
    node_ports: HashMap<(u16, Protocol), Arc<Port>>,
    ports: HashMap<u64, Arc<Port>>,
    pods: HashMap<IpAddr, usize>,
    peer_nets: HashMap<Net, Arc<str>>,
    peer_prefixes: BTreeSet<u8>,
    peer_addresses: HashMap<IpAddr, Arc<str>>,
}

/// Backends by address, from one view to the next.
pub(crate) type Backends = HashMap<SocketAddr, Arc<Backend>>;

impl View {
    /// Makes a table ready. `backends` are brought to those of this table.
    pub(crate) fn new(table: Arc<Table>, backends: &mut Backends) -> Self {
        let mut view = Self { ranges: Ranges::new(&table.node), ..Self::default() };
        for (n, pod) in table.pods.iter().enumerate() {
            view.pods.extend(pod.addresses.iter().map(|address| (*address, n)));
        }
        for peer in &table.peers {
            let name: Arc<str> = peer.name.as_str().into();
            for net in &peer.pod_cidrs {
                view.peer_nets.insert(*net, Arc::clone(&name));
                view.peer_prefixes.insert(net.prefix());
            }
            let addresses = peer.addresses.iter().map(|address| (*address, Arc::clone(&name)));
            view.peer_addresses.extend(addresses);
        }
        let mut now = Backends::new();
        for service in &table.services {
            for port in &service.ports {
                let made = Arc::new(view.port(&table, service, port, backends, &mut now));
                view.enter(service, port, &made);
            }
        }
        for address in &table.node.dns_addresses {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                view.live.insert((*address, DNS_PORT, protocol));
            }
        }
        *backends = now;
        view.table = table;
        view
    }

    fn port(
        &self,
        table: &Table,
        service: &Service,
        port: &ServicePort,
        before: &Backends,
        now: &mut Backends,
    ) -> Port {
        let mut candidates = |only_here| -> Arc<[Candidate]> {
            let preference = Preference {
                node: &table.node.name,
                zone: &table.node.zone,
                only_here,
                not_ready: service.publish_not_ready,
                distribution: service.distribution,
            };
            let found = usable(&port.endpoints, preference).into_iter().map(|n| {
                let endpoint = &port.endpoints[n];
                let address = SocketAddr::new(endpoint.address, endpoint.port);
                let backend = now.entry(address).or_insert_with(|| {
                    before.get(&address).cloned().unwrap_or_else(|| Backend::new(address))
                });
                let place = self.place(endpoint.address);
                Candidate { backend: Arc::clone(backend), place }
            });
            found.collect()
        };
        let cluster = candidates(false);
        let here = (service.internal_local || service.external_local).then(|| candidates(true));
        let of = |is_local: bool| match &here {
            Some(here) if is_local => Arc::clone(here),
            _ => Arc::clone(&cluster),
        };
        let mut hasher = DefaultHasher::new();
        (&service.namespace, &service.name, &port.name, port.protocol).hash(&mut hasher);
        Port {
            id: hasher.finish(),
            owner: owner(service),
            is_api: service.is_api,
            affinity: service.affinity_s.map(|s| Duration::from_secs(s.into())),
            sources: service.sources.as_deref().map(Into::into),
            internal: of(service.internal_local),
            external: of(service.external_local),
            cluster,
        }
    }

    fn enter(&mut self, service: &Service, port: &ServicePort, made: &Arc<Port>) {
        let key = |address: &IpAddr| (*address, port.port, port.protocol);
        self.ports.insert(made.id, Arc::clone(made));
        for address in &service.cluster_ips {
            self.services.insert(key(address), Arc::clone(made));
            if made.is_api || !made.internal.is_empty() {
                self.live.insert(key(address));
            }
        }
        for address in &service.external_ips {
            self.external.entry(key(address)).or_insert_with(|| Arc::clone(made));
        }
        if let Some(number) = port.node_port {
            self.node_ports.entry((number, port.protocol)).or_insert_with(|| Arc::clone(made));
        }
    }

    /// The port of a Service that an address for clients outside leads to.
    pub(crate) fn external(&self, address: Address) -> Option<&Arc<Port>> {
        self.external.get(&address)
    }

    /// The port of a Service that a port of the node leads to.
    pub(crate) fn node_port(&self, port: u16, protocol: Protocol) -> Option<&Arc<Port>> {
        self.node_ports.get(&(port, protocol))
    }

    /// Whether a client of an address for those outside is let in no longer.
    pub(crate) fn is_shut_out(
        &self,
        client: IpAddr,
        asked: SocketAddr,
        protocol: Protocol,
    ) -> bool {
        let port = self.external.get(&(asked.ip(), asked.port(), protocol));
        port.is_some_and(|port| !port.admits(client))
    }

    /// Whether a port of a Service still leads to this backend.
    pub(crate) fn has(&self, port_id: u64, scope: Scope, backend: SocketAddr) -> bool {
        self.ports
            .get(&port_id)
            .is_some_and(|port| port.candidates(scope).iter().any(|c| c.backend.address == backend))
    }

    /// Where an address is.
    pub(crate) fn place(&self, address: IpAddr) -> Place {
        if self.ranges.own.contains(&address) || address.is_loopback() {
            return Place::Node;
        }
        if self.ranges.pods.iter().any(|net| net.contains(address)) {
            return Place::Pod;
        }
        let by_net = self
            .peer_prefixes
            .iter()
            .rev()
            .find_map(|prefix| self.peer_nets.get(&Net::new(address, *prefix)?));
        match by_net.or_else(|| self.peer_addresses.get(&address)) {
            Some(peer) => Place::Peer(Arc::clone(peer)),
            None => Place::World,
        }
    }

    /// Who has this address.
    pub(crate) fn who(&self, address: IpAddr) -> Who {
        match self.place(address) {
            Place::Pod => Who::Pod,
            Place::Node => Who::Node,
            _ if self.ranges.cluster.iter().any(|net| net.contains(address)) => Who::Cluster,
            Place::Peer(_) | Place::World => Who::Outside,
        }
    }

    /// Where what was sent to `destination`, and captured, leads.
    pub(crate) fn way(&self, protocol: Protocol, client: IpAddr, destination: SocketAddr) -> Way {
        let address = destination.ip();
        let key = (address, destination.port(), protocol);
        if destination.port() == DNS_PORT && self.table.node.dns_addresses.contains(&address) {
            return Way::Names;
        }
        if let Some(port) = self.services.get(&key) {
            return if port.is_api {
                Way::Api(Arc::clone(port))
            } else {
                Way::Service(Arc::clone(port), Scope::Internal)
            };
        }
        let who = self.who(client);
        if let Some(port) = self.external.get(&key) {
            let scope = if who == Who::Outside { Scope::External } else { Scope::Cluster };
            return port.way_from_outside(client, scope);
        }
        let is_in = |nets: &[Net]| nets.iter().any(|net| net.contains(address));
        if is_in(&self.ranges.services) {
            return Way::Refused;
        }
        match self.place(address) {
            // A peer's own address is reached as any other.
            Place::Peer(_) if !is_in(&self.ranges.cluster) => self.world(who, destination),
            Place::World if is_in(&self.ranges.cluster) => Way::Refused,
            Place::World => self.world(who, destination),
            // Loopback addresses leave no pod: this is the plane's own listener.
            Place::Node if address.is_loopback() => Way::Refused,
            Place::Node => self.world(who, destination),
            place => Way::Direct(destination, place),
        }
    }

    /// Only pods have the plane dial for them: it relays for no stranger.
    fn world(&self, who: Who, destination: SocketAddr) -> Way {
        let address = destination.ip();
        if who != Who::Pod || address.is_multicast() || address.is_unspecified() {
            return Way::Refused;
        }
        let place = if self.ranges.own.contains(&address) { Place::Node } else { Place::World };
        Way::Direct(destination, place)
    }

    /// A pod of this node.
    pub(crate) fn pod(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.get(&address).and_then(|n| self.table.pods.get(*n))
    }

    /// Whether policies let `source` reach an endpoint. The node reaches its pods, its
    /// pods reach it, and a pod reaches itself, whatever policies say.
    pub(crate) fn allows(
        &self,
        protocol: Protocol,
        source: IpAddr,
        destination: SocketAddr,
    ) -> Result<(), Denied> {
        let address = destination.ip();
        let node = |address| self.place(address) == Place::Node;
        if source == address || node(source) || node(address) {
            return Ok(());
        }
        let (policies, there) = (&self.table.policies, self.pod(address));
        if let Some(pod) = self.pod(source)
            && !policy::releases(policies, pod, destination, protocol, there)
        {
            return Err(Denied::Egress);
        }
        match there {
            Some(pod) if !policy::admits(policies, pod, source, destination, protocol) => {
                Err(Denied::Ingress)
            }
            _ => Ok(()),
        }
    }

    /// Whether a pod may go to the API. Rules may name the Service's address or its
    /// endpoints.
    pub(crate) fn allows_api(&self, source: IpAddr, asked: SocketAddr, port: &Port) -> bool {
        let mut to = port.cluster.iter().map(|c| c.backend.address).chain([asked]);
        to.any(|address| self.allows(Protocol::Tcp, source, address).is_ok())
    }

    /// The address that a dial to `place` has as its source: the client's own, where
    /// what a pod of this node answers comes back here. `None` is the node's.
    pub(crate) fn source(
        &self,
        client: IpAddr,
        destination: IpAddr,
        place: &Place,
    ) -> Option<IpAddr> {
        let is_plain = *place != Place::Pod
            || client == destination
            || client.is_ipv4() != destination.is_ipv4()
            || self.who(client) == Who::Node;
        (!is_plain).then_some(client)
    }

    /// What another node is told of a client: the node itself speaks from its gateway.
    pub(crate) fn source_for_peer(&self, client: SocketAddr) -> SocketAddr {
        let own = self.ranges.pods.iter().map(gateway).find(|a| a.is_ipv4() == client.is_ipv4());
        match (self.who(client.ip()), own) {
            (Who::Node, Some(own)) => SocketAddr::new(own, client.port()),
            _ => client,
        }
    }
}

/// All addresses that are endpoints, ready or not.
pub(crate) fn endpoints(table: &Table) -> HashSet<SocketAddr> {
    let ports = table.services.iter().flat_map(|service| &service.ports);
    ports
        .flat_map(|port| &port.endpoints)
        .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
        .collect()
}

/// Addresses that were endpoints of a Service, and of that Service and all others
/// are no more. Of a Service that is gone as a whole nothing is said: its pods may
/// well go on, and so do their connections.
pub(crate) fn gone(before: &Table, after: &Table) -> HashSet<SocketAddr> {
    let name = |service: &Service| (service.namespace.clone(), service.name.clone());
    let left: HashSet<(String, String)> = after.services.iter().map(name).collect();
    let there = endpoints(after);
    let pods: HashSet<IpAddr> =
        after.pods.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let services = before.services.iter().filter(|service| left.contains(&name(service)));
    services
        .flat_map(|service| service.ports.iter().flat_map(|port| &port.endpoints))
        .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
        .filter(|address| !there.contains(address) && !pods.contains(&address.ip()))
        .collect()
}

#[cfg(test)]
mod tests;
