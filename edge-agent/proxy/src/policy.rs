//! Whether a pod may be spoken to, and where it may go: NetworkPolicy, decided when
//! a connection or a flow begins. Answers are never asked about.
//!
//! As upstream: a pod that no policy selects is open; one that some select is open
//! to what any of them names. Egress is asked about the endpoint, not about the
//! Service. Who is the pod's own node is the caller's to know. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::table::{Pod, Policy, PolicyPeer, PolicyPort, PortRange, Protocol, Rule};

/// Whether `source` may reach this port of a pod of this node.
pub(crate) fn admits(
    policies: &[Policy],
    pod: &Pod,
    source: IpAddr,
    destination: SocketAddr,
    protocol: Protocol,
) -> bool {
    let Some(selected) = &pod.ingress else { return true };
    let to = Destination { address: destination, protocol, pod: Some(pod) };
    chosen(policies, selected).flat_map(|policy| &policy.ingress).any(|rule| fits(rule, source, to))
}

/// Whether a pod of this node may go to `destination`, which is `there` where it is
/// a pod of this node, too.
pub(crate) fn releases(
    policies: &[Policy],
    pod: &Pod,
    destination: SocketAddr,
    protocol: Protocol,
    there: Option<&Pod>,
) -> bool {
    let Some(selected) = &pod.egress else { return true };
    let to = Destination { address: destination, protocol, pod: there };
    chosen(policies, selected)
        .flat_map(|policy| &policy.egress)
        .any(|rule| fits(rule, destination.ip(), to))
}

/// An index that is in no table selects nobody: the pod stays closed.
fn chosen<'a>(policies: &'a [Policy], indices: &'a [u32]) -> impl Iterator<Item = &'a Policy> {
    indices.iter().filter_map(|n| policies.get(usize::try_from(*n).ok()?))
}

#[derive(Clone, Copy)]
struct Destination<'a> {
    address: SocketAddr,
    protocol: Protocol,
    pod: Option<&'a Pod>,
}

fn fits(rule: &Rule, peer: IpAddr, to: Destination<'_>) -> bool {
    let names_port = |ports: &Vec<PolicyPort>| ports.iter().any(|port| fits_port(port, to));
    let names_peer = |peers: &Vec<PolicyPeer>| peers.iter().any(|entry| fits_peer(entry, peer));
    rule.ports.as_ref().is_none_or(names_port) && rule.peers.as_ref().is_none_or(names_peer)
}

fn fits_peer(entry: &PolicyPeer, peer: IpAddr) -> bool {
    match entry {
        PolicyPeer::Pods(addresses) => addresses.binary_search(&peer).is_ok(),
        PolicyPeer::Block { net, except } => {
            net.contains(peer) && !except.iter().any(|net| net.contains(peer))
        }
    }
}

fn fits_port(port: &PolicyPort, to: Destination<'_>) -> bool {
    let number = to.address.port();
    port.protocol == to.protocol
        && match &port.ports {
            PortRange::Any => true,
            PortRange::Range(first, last) => (*first..=*last).contains(&number),
            PortRange::Named(name, elsewhere) => match to.pod {
                Some(pod) => pod.ports.iter().any(|(its_name, protocol, its_number)| {
                    its_name == name && *protocol == to.protocol && *its_number == number
                }),
                None => elsewhere.contains(&(to.address.ip(), number)),
            },
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(addresses: &[&str]) -> PolicyPeer {
        PolicyPeer::Pods(addresses.iter().map(|a| a.parse().unwrap()).collect())
    }

    fn block(net: &str, except: &[&str]) -> PolicyPeer {
        let except = except.iter().map(|n| n.parse().unwrap()).collect();
        PolicyPeer::Block { net: net.parse().unwrap(), except }
    }

    fn port(ports: PortRange) -> PolicyPort {
        PolicyPort { protocol: Protocol::Tcp, ports }
    }

    fn rule(peers: Option<Vec<PolicyPeer>>, ports: Option<Vec<PolicyPort>>) -> Rule {
        Rule { peers, ports }
    }

    fn web() -> Pod {
        Pod {
            uid: [1; 16],
            namespace: "default".into(),
            name: "web".into(),
            addresses: vec!["10.42.1.7".parse().unwrap()],
            ports: vec![("http".into(), Protocol::Tcp, 8080)],
            ingress: Some(vec![0]),
            egress: Some(vec![0]),
        }
    }

    fn check_in(rules: Vec<Rule>, source: &str, port: u16, expected: bool) {
        let policies = [Policy { ingress: rules, ..Policy::default() }];
        let to = SocketAddr::new("10.42.1.7".parse().unwrap(), port);
        let source = source.parse().unwrap();
        let answer = admits(&policies, &web(), source, to, Protocol::Tcp);
        assert_eq!(answer, expected, "{source} -> {port} by {policies:?}");
    }

    #[test]
    fn a_pod_that_nothing_selects_is_open_and_one_that_is_selected_is_closed() {
        let open = Pod { ingress: None, egress: None, ..web() };
        let to = "10.42.1.7:80".parse().unwrap();
        assert!(admits(&[], &open, "203.0.113.1".parse().unwrap(), to, Protocol::Tcp));
        assert!(releases(&[], &open, to, Protocol::Tcp, None));
        check_in(vec![], "10.42.1.9", 80, false);
        assert!(!releases(&[Policy::default()], &web(), to, Protocol::Tcp, None));
        let nowhere = Pod { ingress: Some(vec![9]), ..web() };
        assert!(!admits(&[], &nowhere, "10.42.1.9".parse().unwrap(), to, Protocol::Tcp));
    }

    #[test]
    fn a_rule_asks_for_one_of_its_peers_and_one_of_its_ports() {
        check_in(vec![rule(None, None)], "203.0.113.1", 80, true);
        check_in(vec![rule(Some(vec![]), None)], "10.42.1.9", 80, false);
        let friends = || Some(vec![pods(&["10.42.1.9", "10.42.2.9"])]);
        check_in(vec![rule(friends(), None)], "10.42.2.9", 80, true);
        check_in(vec![rule(friends(), None)], "10.42.2.8", 80, false);
        let ports = || Some(vec![port(PortRange::Range(80, 90))]);
        check_in(vec![rule(friends(), ports())], "10.42.2.9", 90, true);
        check_in(vec![rule(friends(), ports())], "10.42.2.9", 91, false);
        check_in(vec![rule(friends(), ports()), rule(None, None)], "192.0.2.1", 91, true);
        let lan = || Some(vec![block("192.168.0.0/16", &["192.168.7.0/24"])]);
        check_in(vec![rule(lan(), None)], "192.168.1.1", 80, true);
        check_in(vec![rule(lan(), None)], "192.168.7.1", 80, false);
    }

    #[test]
    fn a_named_port_is_the_one_of_the_pod_that_is_reached() {
        let named = |elsewhere: &[(&str, u16)]| {
            let elsewhere = elsewhere.iter().map(|(a, p)| (a.parse().unwrap(), *p)).collect();
            Some(vec![port(PortRange::Named("http".into(), elsewhere))])
        };
        check_in(vec![rule(None, named(&[]))], "10.42.1.9", 8080, true);
        check_in(vec![rule(None, named(&[("10.42.1.7", 80)]))], "10.42.1.9", 80, false);
        let away = |destination: &str| {
            let egress = vec![rule(None, named(&[("10.42.2.5", 9090)]))];
            let policies = [Policy { egress, ..Policy::default() }];
            releases(&policies, &web(), destination.parse().unwrap(), Protocol::Tcp, None)
        };
        assert!(away("10.42.2.5:9090"));
        assert!(!away("10.42.2.5:8080"));
        assert!(!away("10.42.2.6:9090"));
    }

    #[test]
    fn a_rule_for_tcp_says_nothing_of_udp() {
        let egress = vec![rule(None, Some(vec![port(PortRange::Any)]))];
        let policies = [Policy { egress, ..Policy::default() }];
        let to = "10.42.2.5:53".parse().unwrap();
        assert!(releases(&policies, &web(), to, Protocol::Tcp, None));
        assert!(!releases(&policies, &web(), to, Protocol::Udp, None));
    }
}
