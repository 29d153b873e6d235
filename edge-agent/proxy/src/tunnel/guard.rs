//! Which flows a node takes from another: what comes from that node's pods, from
//! the node itself, or through it from outside, and goes to a pod of this node or
//! to this node.
//!
//! Pure. A node that is broken into speaks for its own pods and for nobody else's.

use std::net::{IpAddr, SocketAddr};

use crate::links::Flow;
use crate::table::{Net, Node, Peer, Protocol};

/// Why a flow is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not an address of the peer's pods, nor of the peer.
    #[error("{0} is no address of that node or its pods")]
    Source(IpAddr),
    /// Said to be outside, and is not.
    #[error("{0} is said to be outside the cluster, and is not")]
    NotExternal(IpAddr),
    /// Not an address of this node or its pods.
    #[error("{0} is no address of this node or its pods")]
    Destination(SocketAddr),
    /// IPv4 one way and IPv6 the other, or IPv4 that is dressed as IPv6.
    #[error("{0} and {1} are not of one family")]
    Family(IpAddr, IpAddr),
}

/// Whether a flow may come from `peer`.
///
/// # Errors
/// It may not.
pub fn check(flow: &Flow, own: &Node, peer: &Peer) -> Result<(), Rejected> {
    let (source, destination) = (flow.source.ip(), flow.destination.ip());
    let is_plain = |address: IpAddr| address.to_canonical() == address;
    if source.is_ipv4() != destination.is_ipv4() || !is_plain(source) || !is_plain(destination) {
        return Err(Rejected::Family(source, destination));
    }
    if is_answer(flow, own, peer) {
        return Ok(());
    }
    let to_us = is_in(&own.pod_cidrs, destination) || own.addresses.contains(&destination);
    if !to_us || !is_usable(destination) || flow.destination.port() == 0 {
        return Err(Rejected::Destination(flow.destination));
    }
    if flow.is_external {
        let is_ours = is_in(&own.cluster_cidrs, source)
            || is_in(&own.service_cidrs, source)
            || is_in(&own.pod_cidrs, source)
            || is_in(&peer.pod_cidrs, source);
        if is_ours || !is_usable(source) {
            return Err(Rejected::NotExternal(source));
        }
    } else if !is_in(&peer.pod_cidrs, source) && !peer.addresses.contains(&source) {
        return Err(Rejected::Source(source));
    }
    Ok(())
}

/// Whether it is the answer of an endpoint over there to a client of ours outside the
/// cluster. The plane knows whether anybody has asked.
fn is_answer(flow: &Flow, own: &Node, peer: &Peer) -> bool {
    let (source, destination) = (flow.source.ip(), flow.destination.ip());
    let inside = [&own.cluster_cidrs, &own.service_cidrs, &own.pod_cidrs, &peer.pod_cidrs];
    flow.protocol == Protocol::Udp
        && flow.is_external
        && (is_in(&peer.pod_cidrs, source) || peer.addresses.contains(&source))
        && !inside.iter().any(|nets| is_in(nets, destination))
        && !own.addresses.contains(&destination)
        && is_usable(destination)
        && flow.destination.port() != 0
}

fn is_in(nets: &[Net], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(address))
}

/// An address that one host has, and that is not this host by nature.
fn is_usable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !is_broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Node {
        Node {
            name: "pi-1".into(),
            addresses: vec!["192.168.7.1".parse().unwrap(), "fd07::1".parse().unwrap()],
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
            ..Node::default()
        }
    }

    fn peer() -> Peer {
        Peer {
            name: "pi-2".into(),
            pod_cidrs: vec!["10.42.2.0/24".parse().unwrap(), "fd42:0:0:2::/64".parse().unwrap()],
            addresses: vec!["192.168.7.2".parse().unwrap(), "fd07::2".parse().unwrap()],
            port: 7443,
            zone: String::new(),
        }
    }

    #[test]
    fn a_node_speaks_for_its_pods_and_for_outside_only() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        // source, destination, from outside, whether it is taken
        let cases = [
            ("10.42.2.9:4000", "10.42.1.5:80", false, true),
            ("192.168.7.2:4000", "10.42.1.5:80", false, true),
            ("10.42.2.9:4000", "192.168.7.1:6443", false, true),
            ("[fd42:0:0:2::9]:1", "[fd42:0:0:1::5]:80", false, true),
            ("203.0.113.9:4000", "10.42.1.5:80", true, true),
            ("192.168.7.1:4000", "10.42.1.5:80", true, true),
            ("[2001:db8::1]:1", "[fd42:0:0:1::5]:80", true, true),
            // Of another node's pods, of this node's, a Service, another node, itself.
            ("10.42.3.9:4000", "10.42.1.5:80", false, false),
            ("10.42.1.9:4000", "10.42.1.5:80", false, false),
            ("10.43.0.9:4000", "10.42.1.5:80", false, false),
            ("192.168.7.3:4000", "10.42.1.5:80", false, false),
            ("192.168.7.1:4000", "10.42.1.5:80", false, false),
            ("203.0.113.9:4000", "10.42.1.5:80", false, false),
            // Said to be outside.
            ("10.42.2.9:4000", "10.42.1.5:80", true, false),
            ("10.42.1.9:4000", "10.42.1.5:80", true, false),
            ("10.43.0.9:4000", "10.42.1.5:80", true, false),
            ("127.0.0.1:4000", "10.42.1.5:80", true, false),
            ("0.0.0.0:4000", "10.42.1.5:80", true, false),
            ("224.0.0.1:4000", "10.42.1.5:80", true, false),
            ("255.255.255.255:4000", "10.42.1.5:80", true, false),
            ("[::1]:4000", "[fd42:0:0:1::5]:80", true, false),
            ("[fd42:0:0:7::9]:1", "[fd42:0:0:1::5]:80", true, false),
            // Elsewhere.
            ("10.42.2.9:4000", "10.42.2.8:80", false, false),
            ("10.42.2.9:4000", "10.42.3.8:80", false, false),
            ("10.42.2.9:4000", "10.43.0.10:53", false, false),
            ("10.42.2.9:4000", "127.0.0.1:80", false, false),
            ("10.42.2.9:4000", "192.168.7.2:80", false, false),
            ("10.42.2.9:4000", "10.42.1.5:0", false, false),
            // IPv4 as IPv6.
            ("[::ffff:10.42.1.9]:1", "[fd42:0:0:1::5]:80", true, false),
            ("[::ffff:203.0.113.9]:1", "[fd42:0:0:1::5]:80", true, false),
            ("[::ffff:10.42.2.9]:1", "10.42.1.5:80", false, false),
            ("10.42.2.9:4000", "[fd42:0:0:1::5]:80", false, false),
        ];
        for (source, destination, is_external, expected) in cases {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let flow = Flow {
                    protocol,
                    source: address(source),
                    destination: address(destination),
                    is_external,
                };
                let got = check(&flow, &own(), &peer());
                assert_eq!(got.is_ok(), expected, "{source} {destination} {is_external}: {got:?}");
            }
        }
    }

    #[test]
    fn an_endpoint_over_there_answers_clients_outside_in_datagrams() {
        let cases = [
            ("10.42.2.9:53", "203.0.113.9:4000", true),
            ("192.168.7.2:53", "203.0.113.9:4000", true),
            ("10.42.3.9:53", "203.0.113.9:4000", false),
            ("10.42.2.9:53", "192.168.7.1:4000", false),
            ("10.42.2.9:53", "10.42.1.5:4000", false),
            ("10.42.2.9:53", "10.43.0.10:53", false),
            ("10.42.2.9:53", "127.0.0.1:4000", false),
            ("10.42.2.9:53", "203.0.113.9:0", false),
        ];
        for (source, destination, expected) in cases {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
                let flow = Flow { protocol, source, destination, is_external: true };
                let expected = expected && protocol == Protocol::Udp;
                assert_eq!(check(&flow, &own(), &peer()).is_ok(), expected, "{flow:?}");
            }
        }
    }

    #[test]
    fn an_address_listed_as_loopback_is_still_not_this_hosts() {
        let own = Node { addresses: vec!["127.0.0.1".parse().unwrap()], ..own() };
        let flow = Flow {
            protocol: Protocol::Tcp,
            source: "10.42.2.9:1".parse().unwrap(),
            destination: "127.0.0.1:22".parse().unwrap(),
            is_external: false,
        };
        assert!(check(&flow, &own, &peer()).is_err());
    }
}
