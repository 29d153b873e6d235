//! What the names of the cluster mean, read from the [`Table`] at each question.
//!
//! ```text
//! <zone>                                SOA, NS
//! dns-version.<zone>                    TXT
//! ns.dns.<zone>                         A: where names are answered
//! <service>.<ns>.svc.<zone>             A of the Service, or of the ready endpoints
//!                                       of a headless one; SRV of every port; CNAME
//! _<port>._<proto>.<service>.<ns>.svc…  SRV
//! <hostname or a-b-c-d>.<service>.<ns>.svc…   A and SRV of one endpoint
//! a-b-c-d.<ns>.pod.<zone>               A, for addresses of pods and nodes
//! d.c.b.a.in-addr.arpa, ip6.arpa        PTR of Services, endpoints and own pods
//! ```
//!
//! As Kubernetes' DNS specification 1.1.0 and CoreDNS have it, and stricter with
//! what a resolver may conclude: a name that exists never gets `NXDOMAIN` for a
//! type it lacks, since musl takes that for both address families. Pure. An index
//! holds what a sorted table does not give by itself: names by address, eight
//! bytes an endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::message::{Data, Rcode, Record, kind};
use super::name::Name;
use crate::table::{Endpoint, Net, Protocol, Service, ServicePort, Table};

/// For how many seconds an answer is true, as CoreDNS has it for Kubernetes.
pub(super) const TTL_S: u32 = 5;

/// Most other names that are followed for one question.
pub(super) const ALIASES_MAX: usize = 8;

/// Most records of an answer: what fits in the longest message.
const RECORDS_MAX: usize = 4096;

/// Version of the specification that is followed.
const VERSION: &str = "1.1.0";

/// A table, and what makes it quick to ask.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) table: Arc<Table>,
    /// What names of the cluster end in; `None` where there is none.
    zone: Option<Name>,
    arpa4: Name,
    arpa6: Name,
    /// (address, index of the Service), sorted.
    by_v4: Vec<(Ipv4Addr, u32)>,
    by_v6: Vec<(Ipv6Addr, u32)>,
}

/// What there is to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) rcode: Rcode,
    pub(super) answers: Vec<Record>,
    pub(super) additional: Vec<Record>,
    /// Says for how long there is nothing, where there is nothing.
    pub(super) authority: Option<Record>,
    /// The answers end in another name for this, which is not of the cluster.
    pub(super) elsewhere: Option<Name>,
}

impl Index {
    /// Of a table whose lists are sorted.
    pub(super) fn new(table: Arc<Table>) -> Self {
        debug_assert!(
            table.services.is_sorted_by_key(|service| (&service.namespace, &service.name)),
            "Services are found by their order"
        );
        let domain = &table.node.cluster_domain;
        let zone = Name::from_text(domain).filter(|zone| *zone != Name::root());
        let text = |text| Name::from_text(text).unwrap_or_else(Name::root);
        let (mut by_v4, mut by_v6) = (Vec::new(), Vec::new());
        for (service, n) in table.services.iter().zip(0u32..) {
            let endpoints = endpoints(service).map(|endpoint| endpoint.address);
            for address in service.cluster_ips.iter().copied().chain(endpoints) {
                match address {
                    IpAddr::V4(v4) => by_v4.push((v4, n)),
                    IpAddr::V6(v6) => by_v6.push((v6, n)),
                }
            }
        }
        by_v4.sort_unstable();
        by_v4.dedup();
        by_v4.shrink_to_fit();
        by_v6.sort_unstable();
        by_v6.dedup();
        by_v6.shrink_to_fit();
        let (arpa4, arpa6) = (text("in-addr.arpa"), text("ip6.arpa"));
        Self { table, zone, arpa4, arpa6, by_v4, by_v6 }
    }

    /// Answers a question about `name`; `None` where the cluster has no say. Of
    /// several addresses the first is `rotation`'s choice.
    pub(super) fn lookup(&self, name: &Name, kind: u16, rotation: usize) -> Option<Answer> {
        let mut answer = Answer::default();
        let found = self.find(name)?;
        let mut zone = found.zone;
        let mut meaning = found.meaning;
        while let Some(Meaning::Alias(target)) = meaning {
            let owner = answer.answers.last().and_then(|record| match &record.data {
                Data::Name(_, target) => Some(target.clone()),
                _ => None,
            });
            let data = Data::Name(kind::CNAME, target.clone());
            answer.answers.push(Record { owner, ttl: TTL_S, data });
            if kind == kind::CNAME {
                return Some(answer);
            }
            if answer.answers.len() >= ALIASES_MAX {
                answer.rcode = Rcode::SERVER_FAILED;
                return Some(answer);
            }
            let Some(next) = self.find(&target) else {
                answer.elsewhere = Some(target);
                return Some(answer);
            };
            (zone, meaning) = (next.zone, next.meaning);
        }
        let n_aliases = answer.answers.len();
        let owner = match answer.answers.last().map(|record| &record.data) {
            Some(Data::Name(_, target)) => Some(target.clone()),
            _ => None,
        };
        match &meaning {
            Some(meaning) => self.records(meaning, kind, owner.as_ref(), &mut answer),
            None => answer.rcode = Rcode::NO_NAME,
        }
        let found = &mut answer.answers[n_aliases..];
        if found.is_empty() {
            answer.authority = Some(self.soa(Some(zone)));
        } else if kind != kind::SRV {
            let by = rotation % found.len();
            found.rotate_left(by);
        }
        Some(answer)
    }

    /// Whether names of this kind are answered here or nowhere.
    fn find(&self, name: &Name) -> Option<Found<'_>> {
        if let Some(zone) = &self.zone
            && let Some(labels) = name.before(zone)
        {
            return Some(Found { zone: zone.clone(), meaning: self.meaning(&labels) });
        }
        let (reverse, n_bits) = self.reverse(name)?;
        let n_bits_all = if reverse.address.is_ipv4() { 32 } else { 128 };
        if reverse.is_whole && n_bits == n_bits_all {
            let names = self.names_of(reverse.address);
            if !names.is_empty() {
                return Some(Found { zone: name.clone(), meaning: Some(Meaning::Names(names)) });
            }
        }
        let node = &self.table.node;
        let mut ours = node.service_cidrs.iter().chain(&node.cluster_cidrs).chain(&node.pod_cidrs);
        let is_in = |net: &&Net| u32::from(net.prefix()) <= n_bits && net.contains(reverse.address);
        let net = ours.find(is_in)?;
        // A zone ends where an octet, or half of one, does.
        let per_label = if reverse.address.is_ipv4() { 8 } else { 4 };
        let zone = name.last(2 + usize::from(net.prefix() / per_label));
        let is_between = reverse.is_whole && n_bits < n_bits_all;
        Some(Found { zone, meaning: is_between.then_some(Meaning::Nothing) })
    }

    /// The address that a reverse name begins to say, and how many of its bits.
    fn reverse(&self, name: &Name) -> Option<(Reverse, u32)> {
        if let Some(labels) = name.before(&self.arpa4) {
            let mut octets = [0; 4];
            let mut n_read = 0;
            for (octet, label) in octets.iter_mut().zip(labels.iter().rev()) {
                let text = std::str::from_utf8(label).unwrap_or_default();
                // `1`, not `01`: one name for an address.
                let Some(value) = text.parse().ok().filter(|value: &u8| value.to_string() == text)
                else {
                    break;
                };
                *octet = value;
                n_read += 1;
            }
            let is_whole = n_read == labels.len();
            let n_bits = 8 * u32::try_from(n_read).ok()?;
            return Some((Reverse { address: Ipv4Addr::from(octets).into(), is_whole }, n_bits));
        }
        let labels = name.before(&self.arpa6)?;
        let (mut bits, mut n_read) = (0u128, 0u32);
        for label in labels.iter().rev().take(32) {
            let &[digit] = *label else { break };
            let Some(digit) = char::from(digit).to_digit(16) else { break };
            bits |= u128::from(digit) << (124 - 4 * n_read);
            n_read += 1;
        }
        let is_whole = usize::try_from(n_read).is_ok_and(|n_read| n_read == labels.len());
        Some((Reverse { address: Ipv6Addr::from_bits(bits).into(), is_whole }, 4 * n_read))
    }

    fn meaning(&self, labels: &[&[u8]]) -> Option<Meaning<'_>> {
        match labels {
            [] => Some(Meaning::Apex),
            [b"dns-version"] => Some(Meaning::Version),
            [b"dns"] | [b"svc"] | [b"pod"] | [_, b"pod"] => Some(Meaning::Nothing),
            [b"ns", b"dns"] => Some(Meaning::Server),
            [namespace, b"svc"] => self.has_namespace(namespace).then_some(Meaning::Nothing),
            [service, namespace, b"svc"] => {
                let service = self.service(namespace, service)?;
                if let Some(target) = &service.external_name {
                    // As CoreDNS: an address is no name.
                    let is_address = target.parse::<IpAddr>().is_ok();
                    let target = Name::from_text(target).filter(|_| !is_address);
                    return Some(target.map_or(Meaning::Nothing, Meaning::Alias));
                }
                if !service.cluster_ips.is_empty() {
                    return Some(Meaning::Service(service, None));
                }
                // So the specification: without ready endpoints there is no name.
                let has_some = published(service).next().is_some();
                has_some.then_some(Meaning::Headless(service, None, None))
            }
            [[b'_', proto @ ..], service, namespace, b"svc"] => {
                let service = self.service(namespace, service)?;
                let protocol = protocol(proto)?;
                let has_one = service.ports.iter().any(|port| port.protocol == protocol);
                has_one.then_some(Meaning::Nothing)
            }
            [host, service, namespace, b"svc"] => {
                let service = self.service(namespace, service)?;
                published(service)
                    .any(|endpoint| is_named(endpoint, host))
                    .then(|| Meaning::Headless(service, Some(host.to_vec()), None))
            }
            [[b'_', port @ ..], [b'_', proto @ ..], service, namespace, b"svc"] => {
                let service = self.service(namespace, service)?;
                let protocol = protocol(proto)?;
                let port = service.ports.iter().find(|candidate| {
                    candidate.protocol == protocol
                        && !port.is_empty()
                        && candidate.name.as_bytes().eq_ignore_ascii_case(port)
                })?;
                if !service.cluster_ips.is_empty() {
                    return Some(Meaning::Service(service, Some(port)));
                }
                let is_published = |endpoint: &&Endpoint| is_published(service, endpoint);
                let has_some = port.endpoints.iter().any(|endpoint| is_published(&endpoint));
                has_some.then_some(Meaning::Headless(service, None, Some(port)))
            }
            [dashed, _, b"pod"] => {
                let address = undashed(dashed)?;
                self.is_of_pods(address).then_some(Meaning::Pod(address))
            }
            _ => None,
        }
    }

    fn records(&self, meaning: &Meaning<'_>, kind: u16, owner: Option<&Name>, into: &mut Answer) {
        let owner = owner.cloned();
        let record = |data| Record { owner: owner.clone(), ttl: TTL_S, data };
        let addresses = |addresses: &mut dyn Iterator<Item = IpAddr>| -> Vec<Record> {
            let mut found: Vec<IpAddr> =
                addresses.filter(|address| family(*address) == kind).collect();
            found.sort_unstable();
            found.dedup();
            found.truncate(RECORDS_MAX);
            found.into_iter().map(|address| record(Data::Address(address))).collect()
        };
        match meaning {
            Meaning::Nothing | Meaning::Alias(_) => {}
            Meaning::Apex if kind == kind::SOA => {
                into.answers.extend(self.zone.clone().map(|zone| {
                    let soa = self.soa(Some(zone));
                    Record { owner: owner.clone(), ..soa }
                }));
            }
            Meaning::Apex if kind == kind::NS => {
                let server = self.server();
                into.additional.extend(self.table.node.dns_addresses.iter().map(|address| {
                    let data = Data::Address(*address);
                    Record { owner: Some(server.clone()), ttl: TTL_S, data }
                }));
                into.answers.push(record(Data::Name(kind::NS, server)));
            }
            Meaning::Apex => {}
            Meaning::Version if kind == kind::TXT => into.answers.push(record(Data::Txt(VERSION))),
            Meaning::Version => {}
            Meaning::Server => {
                into.answers.extend(addresses(&mut self.table.node.dns_addresses.iter().copied()));
            }
            Meaning::Pod(address) => into.answers.extend(addresses(&mut [*address].into_iter())),
            Meaning::Names(names) if kind == kind::PTR => {
                let names = names.iter().take(RECORDS_MAX).cloned();
                into.answers.extend(names.map(|name| record(Data::Name(kind::PTR, name))));
            }
            Meaning::Names(_) => {}
            Meaning::Service(service, port) if kind == kind::SRV => {
                let ports = service.ports.iter().filter(|candidate| is_meant(*port, candidate));
                let mut ports: Vec<u16> = ports.map(|port| port.port).collect();
                ports.sort_unstable();
                ports.dedup();
                let Some(target) = self.name_of(None, service) else { return };
                let weight = weight(ports.len());
                into.answers.extend(
                    ports
                        .into_iter()
                        .map(|port| record(Data::Srv { weight, port, target: target.clone() })),
                );
                into.additional.extend(service.cluster_ips.iter().map(|address| Record {
                    owner: Some(target.clone()),
                    ttl: TTL_S,
                    data: Data::Address(*address),
                }));
            }
            Meaning::Service(service, _) => {
                into.answers.extend(addresses(&mut service.cluster_ips.iter().copied()));
            }
            Meaning::Headless(service, host, port) => {
                let mut found = match port {
                    Some(port) => port.endpoints.iter().collect(),
                    None => endpoints(service).collect::<Vec<_>>(),
                };
                found.retain(|endpoint| {
                    let is_meant = host.as_ref().is_none_or(|host| is_named(endpoint, host));
                    is_meant && is_published(service, endpoint)
                });
                if kind == kind::SRV {
                    self.headless_srv(service, &found, owner.as_ref(), into);
                } else {
                    let mut found = found.into_iter().map(|endpoint| endpoint.address);
                    into.answers.extend(addresses(&mut found));
                }
            }
        }
    }

    fn headless_srv(
        &self,
        service: &Service,
        found: &[&Endpoint],
        owner: Option<&Name>,
        into: &mut Answer,
    ) {
        // Sorted by what is said, so that one endpoint in two ports is said once.
        let mut said: Vec<(Name, u16, IpAddr)> = found
            .iter()
            .filter(|endpoint| endpoint.port != 0)
            .take(RECORDS_MAX)
            .filter_map(|endpoint| {
                let target = self.name_of(Some(endpoint), service)?;
                Some((target, endpoint.port, endpoint.address))
            })
            .collect();
        said.sort_unstable();
        said.dedup();
        let mut targets: Vec<(&Name, u16)> =
            said.iter().map(|(name, port, _)| (name, *port)).collect();
        targets.dedup();
        let weight = weight(targets.len());
        into.answers.extend(targets.into_iter().map(|(target, port)| Record {
            owner: owner.cloned(),
            ttl: TTL_S,
            data: Data::Srv { weight, port, target: target.clone() },
        }));
        let mut hosts: Vec<(&Name, IpAddr)> =
            said.iter().map(|(name, _, address)| (name, *address)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        into.additional.extend(hosts.into_iter().map(|(name, address)| Record {
            owner: Some(name.clone()),
            ttl: TTL_S,
            data: Data::Address(address),
        }));
    }

    /// The names of an address: of the Service, else of every Service it is an
    /// endpoint of, else of the pod on this node.
    fn names_of(&self, address: IpAddr) -> Vec<Name> {
        let services: Vec<&Service> = match address {
            IpAddr::V4(v4) => at(&self.by_v4, v4),
            IpAddr::V6(v6) => at(&self.by_v6, v6),
        }
        .filter_map(|n| self.table.services.get(usize::try_from(n).ok()?))
        .collect();
        let owner = services.iter().find(|service| service.cluster_ips.contains(&address));
        if let Some(service) = owner {
            return self.name_of(None, service).into_iter().collect();
        }
        let mut names: Vec<Name> = services
            .iter()
            .filter_map(|service| {
                let endpoint = published(service).find(|endpoint| endpoint.address == address)?;
                self.name_of(Some(endpoint), service)
            })
            .collect();
        if names.is_empty()
            && let Some(zone) = &self.zone
            && let Some(pod) = self.table.pods.iter().find(|pod| pod.addresses.contains(&address))
        {
            let dashed = dashed(address);
            let labels = [dashed.as_bytes(), pod.namespace.as_bytes(), b"pod"];
            names.extend(Name::join(labels, zone));
        }
        names
    }

    fn name_of(&self, endpoint: Option<&Endpoint>, service: &Service) -> Option<Name> {
        let host = endpoint.map(|endpoint| match endpoint.hostname.as_str() {
            "" => dashed(endpoint.address),
            hostname => hostname.to_owned(),
        });
        let labels = [service.name.as_bytes(), service.namespace.as_bytes(), b"svc"];
        Name::join(
            host.as_deref().map(str::as_bytes).into_iter().chain(labels),
            self.zone.as_ref()?,
        )
    }

    fn server(&self) -> Name {
        let zone = self.zone.clone().unwrap_or_else(Name::root);
        Name::join([&b"ns"[..], b"dns"], &zone).unwrap_or_else(Name::root)
    }

    fn soa(&self, owner: Option<Name>) -> Record {
        let zone = self.zone.clone().unwrap_or_else(Name::root);
        let [_, _, _, _, serial @ ..] = self.table.generation.to_be_bytes();
        let data = Data::Soa {
            server: self.server(),
            mailbox: Name::join([&b"hostmaster"[..]], &zone).unwrap_or_else(Name::root),
            serial: u32::from_be_bytes(serial),
            negative_ttl: TTL_S,
        };
        Record { owner, ttl: TTL_S, data }
    }

    fn service(&self, namespace: &[u8], name: &[u8]) -> Option<&Service> {
        let services = &self.table.services;
        let key = |service: &Service| {
            (service.namespace.as_bytes(), service.name.as_bytes()).cmp(&(namespace, name))
        };
        services.binary_search_by(key).ok().and_then(|at| services.get(at))
    }

    fn has_namespace(&self, namespace: &[u8]) -> bool {
        let services = &self.table.services;
        let at = services.partition_point(|service| service.namespace.as_bytes() < namespace);
        services.get(at).is_some_and(|service| service.namespace.as_bytes() == namespace)
            || self.table.pods.iter().any(|pod| pod.namespace.as_bytes() == namespace)
    }

    /// Whether pods have such addresses, their own or their node's.
    fn is_of_pods(&self, address: IpAddr) -> bool {
        let node = &self.table.node;
        node.cluster_cidrs.iter().chain(&node.pod_cidrs).any(|net| net.contains(address))
            || node.addresses.contains(&address)
            || self.table.peers.iter().any(|peer| peer.addresses.contains(&address))
    }
}

/// A name that the cluster has a say in.
struct Found<'a> {
    zone: Name,
    /// `None` where it does not exist.
    meaning: Option<Meaning<'a>>,
}

struct Reverse {
    address: IpAddr,
    /// Nothing but the address is in the name.
    is_whole: bool,
}

/// What a name stands for.
enum Meaning<'a> {
    /// There are names below it, or nothing more.
    Nothing,
    Apex,
    Version,
    Server,
    /// A Service with addresses; of one port, or of all.
    Service(&'a Service, Option<&'a ServicePort>),
    /// Endpoints of a Service; those with a name, those of a port, or all.
    Headless(&'a Service, Option<Vec<u8>>, Option<&'a ServicePort>),
    Alias(Name),
    Pod(IpAddr),
    Names(Vec<Name>),
}

/// The numbers that a sorted list has for an address.
fn at<A: Ord + Copy>(sorted: &[(A, u32)], address: A) -> Box<dyn Iterator<Item = u32> + '_> {
    let from = sorted.partition_point(|(candidate, _)| *candidate < address);
    let found = sorted[from..].iter().take_while(move |(candidate, _)| *candidate == address);
    Box::new(found.map(|(_, n)| *n))
}

fn endpoints(service: &Service) -> impl Iterator<Item = &Endpoint> {
    service.ports.iter().flat_map(|port| &port.endpoints).chain(&service.bare_endpoints)
}

/// The endpoints that have names.
fn published(service: &Service) -> impl Iterator<Item = &Endpoint> {
    endpoints(service).filter(|endpoint| is_published(service, endpoint))
}

fn is_published(service: &Service, endpoint: &Endpoint) -> bool {
    endpoint.ready || service.publish_not_ready
}

fn is_meant(wanted: Option<&ServicePort>, candidate: &ServicePort) -> bool {
    wanted.is_none_or(|wanted| std::ptr::eq(wanted, candidate))
}

fn is_named(endpoint: &Endpoint, label: &[u8]) -> bool {
    if endpoint.hostname.is_empty() {
        return undashed(label) == Some(endpoint.address);
    }
    endpoint.hostname.as_bytes().eq_ignore_ascii_case(label)
}

fn protocol(label: &[u8]) -> Option<Protocol> {
    match label {
        b"tcp" => Some(Protocol::Tcp),
        b"udp" => Some(Protocol::Udp),
        _ => None,
    }
}

fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { kind::A } else { kind::AAAA }
}

/// As CoreDNS shares them out.
fn weight(n_records: usize) -> u16 {
    u16::try_from(100 / n_records.max(1)).unwrap_or(1).max(1)
}

/// `10-42-0-7`, `fd42--7`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let four = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::from);
    four.ok().or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from).ok())
}

#[cfg(test)]
mod tests;
