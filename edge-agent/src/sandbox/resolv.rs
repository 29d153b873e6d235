//! `/etc/resolv.conf` of a pod, and the name servers of its node. Pure but for
//! [`file`] and [`node_upstreams`], which read the node's files.
//!
//! ```text
//! ClusterFirst   the cluster's servers and domains; as Default where there are none
//! Default        the servers and domains of the node
//! None           nothing
//!                … and behind each what the pod's `dnsConfig` says
//! ```
//!
//! The node's search domains never come beside the cluster's: a name of the
//! cluster would be asked for in each of them, outside, too.

use std::fs;
use std::net::IpAddr;

use wire::pod::{DnsPolicyV1, DnsV1};

use crate::network::ClusterDns;

/// Most name servers that a resolver reads.
const NAMESERVERS_MAX: usize = 3;

/// Most search domains, and most characters of them, as the kubelet has it.
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

/// What resolvers are told beside the cluster's server: with five dots or more a
/// name is asked for as it is first, as everywhere on Kubernetes. The server is on
/// the node, so that a lost question is asked again soon.
const CLUSTER_OPTIONS: [&str; 3] = ["ndots:5", "timeout:2", "attempts:2"];

/// The node's own file, and where systemd-resolved says what it asks itself.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The pod's file, from the cluster's servers, if they answer on this node, the
/// node's own file, and what the pod says.
pub(super) fn file(
    dns: &DnsV1,
    host_network: bool,
    namespace: &str,
    cluster: Option<&ClusterDns>,
) -> String {
    // systemd-resolved answers on a loopback address, which a pod cannot reach;
    // what it asks itself is in the second file.
    let texts = FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    let before = match cluster {
        Some(cluster) if dns.policy == DnsPolicyV1::ClusterFirst => of_cluster(cluster, namespace),
        _ if host_network => Config::parse(&texts[0]),
        _ => upstreams(&[&texts[0], &texts[1]]),
    };
    merge(before, dns).text()
}

/// The name servers that the node itself asks, for the proxy, which asks from the
/// node: one on a loopback address is as good as any.
pub(super) fn node_upstreams() -> Vec<IpAddr> {
    let texts = FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    asked_by_node(&texts[0], &texts[1])
}

/// The servers in the node's file; in place of systemd-resolved those that it asks,
/// so that no question goes through two caches, nor in a circle where resolved was
/// told to ask the cluster's server.
fn asked_by_node(own: &str, of_resolved: &str) -> Vec<IpAddr> {
    let servers = |text: &str| -> Vec<IpAddr> {
        // An address with a zone, such as `fe80::1%eth0`, cannot be passed on.
        Config::parse(text).servers.iter().filter_map(|server| server.parse().ok()).collect()
    };
    let mut found = Vec::new();
    for server in servers(own) {
        let is_resolved = STUBS.contains(&server);
        let instead = if is_resolved { servers(of_resolved) } else { vec![server] };
        for server in instead {
            if !found.contains(&server) && !STUBS.contains(&server) {
                found.push(server);
            }
        }
    }
    found
}

/// Where systemd-resolved listens.
const STUBS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 54)),
];

/// What a pod of `namespace` finds the cluster's names with.
fn of_cluster(cluster: &ClusterDns, namespace: &str) -> Config {
    let domain = &cluster.domain;
    let searches = if domain.is_empty() {
        Vec::new()
    } else {
        vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]
    };
    Config {
        servers: cluster.servers.iter().map(ToString::to_string).collect(),
        searches,
        options: CLUSTER_OPTIONS.map(str::to_owned).to_vec(),
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Config {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Config {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => found.servers.extend(words.next()),
                // The last of them counts.
                Some("search") => found.searches = words.collect(),
                Some("options") => found.options.extend(words),
                _ => {}
            }
        }
        found
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for server in self.servers.iter().take(NAMESERVERS_MAX) {
            out.push_str(&format!("nameserver {server}\n"));
        }
        let mut n_chars = 0;
        let fits = |domain: &&String| {
            // One more for the space before the next.
            n_chars += domain.len() + 1;
            n_chars <= SEARCH_CHARS_MAX + 1
        };
        let searches: Vec<_> =
            self.searches.iter().take(SEARCHES_MAX).take_while(fits).cloned().collect();
        for (word, values) in [("search", &searches), ("options", &self.options)] {
            if !values.is_empty() {
                out.push_str(&format!("{word} {}\n", values.join(" ")));
            }
        }
        if self.servers.is_empty() {
            return format!("# the node has no name server that its pods can reach\n{out}");
        }
        out
    }
}

/// What the node asks itself: the first text with a server that a pod can reach.
fn upstreams(candidates: &[&str]) -> Config {
    let is_loopback = |server: &str| server.starts_with("127.") || server == "::1";
    for text in candidates {
        let mut found = Config::parse(text);
        found.servers.retain(|server| !is_loopback(server));
        if !found.servers.is_empty() {
            return found;
        }
    }
    Config::default()
}

/// What the policy gives with the pod's words behind it; of an option the pod's counts.
fn merge(of_policy: Config, dns: &DnsV1) -> Config {
    let mut all = if dns.policy == DnsPolicyV1::None { Config::default() } else { of_policy };
    let add = |list: &mut Vec<String>, more: &[String]| {
        for one in more {
            if !list.contains(one) {
                list.push(one.clone());
            }
        }
    };
    add(&mut all.servers, &dns.nameservers);
    add(&mut all.searches, &dns.searches);
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    all.options.retain(|option| !dns.options.iter().any(|own| name(own) == name(option)));
    all.options.extend(dns.options.iter().cloned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_ask_the_nodes_upstreams_and_never_a_stub() {
        let none = "# the node has no name server that its pods can reach\n";
        let table = [
            (["nameserver 9.9.9.9\nsearch lan\n", ""], "nameserver 9.9.9.9\nsearch lan\n"),
            (
                ["nameserver 127.0.0.53\noptions edns0 trust-ad\n", "nameserver 192.0.2.1\n"],
                "nameserver 192.0.2.1\n",
            ),
            (
                ["nameserver ::1\nnameserver 192.0.2.2\noptions ndots:2\n", "nameserver 1.1.1.1"],
                "nameserver 192.0.2.2\noptions ndots:2\n",
            ),
            (
                ["nameserver a\nnameserver b\nnameserver c\nnameserver d", ""],
                "nameserver a\nnameserver b\nnameserver c\n",
            ),
            (["", ""], none),
        ];
        for (texts, expected) in table {
            assert_eq!(merge(upstreams(&texts), &DnsV1::default()).text(), expected);
        }
    }

    #[test]
    fn the_pods_words_follow_the_nodes() {
        let node = || Config::parse("nameserver 1.1.1.1\nsearch lan\noptions ndots:1 rotate\n");
        let mut dns = DnsV1 {
            policy: DnsPolicyV1::Default,
            nameservers: vec!["1.1.1.1".into(), "2.2.2.2".into()],
            searches: vec!["example.com".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            merge(node(), &dns).text(),
            "nameserver 1.1.1.1\nnameserver 2.2.2.2\nsearch lan example.com\noptions rotate ndots:5\n"
        );
        dns.policy = DnsPolicyV1::None;
        assert_eq!(
            merge(node(), &dns).text(),
            "nameserver 1.1.1.1\nnameserver 2.2.2.2\nsearch example.com\noptions ndots:5\n"
        );
    }
    fn cluster() -> ClusterDns {
        let servers = ["10.43.0.10", "fd43::a"].map(|text| text.parse().unwrap()).to_vec();
        ClusterDns { servers, domain: "cluster.local".into() }
    }

    #[test]
    fn pods_ask_the_cluster_where_it_answers_and_never_in_the_nodes_domains() {
        let check = |policy, host_network, cluster: Option<&ClusterDns>| {
            let dns = DnsV1 { policy, ..DnsV1::default() };
            file(&dns, host_network, "prod", cluster)
        };
        let expected = "nameserver 10.43.0.10\nnameserver fd43::a\n\
            search prod.svc.cluster.local svc.cluster.local cluster.local\n\
            options ndots:5 timeout:2 attempts:2\n";
        let cluster = cluster();
        for host_network in [false, true] {
            let said = check(DnsPolicyV1::ClusterFirst, host_network, Some(&cluster));
            assert_eq!(said, expected);
            // The other policies do not ask it, and without it all is as before.
            let other = check(DnsPolicyV1::Default, host_network, Some(&cluster));
            assert!(!other.contains("10.43.0.10"), "{other}");
            assert_eq!(other, check(DnsPolicyV1::Default, host_network, None));
            assert_eq!(other, check(DnsPolicyV1::ClusterFirst, host_network, None));
        }
        let none = check(DnsPolicyV1::None, false, Some(&cluster));
        assert!(!none.contains("10.43.0.10"), "{none}");
        let nameless = ClusterDns { domain: String::new(), ..cluster };
        let said = check(DnsPolicyV1::ClusterFirst, false, Some(&nameless));
        assert_eq!(
            said,
            expected.replace("search prod.svc.cluster.local svc.cluster.local cluster.local\n", "")
        );
    }

    #[test]
    fn the_pods_words_follow_the_clusters() {
        let dns = DnsV1 {
            policy: DnsPolicyV1::ClusterFirst,
            nameservers: vec!["1.1.1.1".into(), "10.43.0.10".into(), "2.2.2.2".into()],
            searches: vec!["example.com".into(), "svc.cluster.local".into()],
            options: vec!["ndots:2".into(), "edns0".into()],
        };
        assert_eq!(
            file(&dns, false, "prod", Some(&cluster())),
            "nameserver 10.43.0.10\nnameserver fd43::a\nnameserver 1.1.1.1\n\
             search prod.svc.cluster.local svc.cluster.local cluster.local example.com\n\
             options timeout:2 attempts:2 ndots:2 edns0\n"
        );
    }

    #[test]
    fn no_more_search_domains_are_written_than_a_resolver_reads() {
        let n_searches = |searches: Vec<String>| {
            let text = Config { searches, ..Config::default() }.text();
            let line = text.lines().find_map(|line| line.strip_prefix("search ")).unwrap();
            assert!(line.len() <= SEARCH_CHARS_MAX, "{}", line.len());
            line.split(' ').count()
        };
        assert_eq!(n_searches((0..40).map(|n| format!("d{n}")).collect()), 32);
        assert_eq!(n_searches((0..20).map(|n| format!("{n:0>255}")).collect()), 8);
        assert_eq!(n_searches((0..20).map(|n| format!("{n:0>127}")).collect()), 16);
    }

    #[test]
    fn the_proxy_asks_what_the_node_asks() {
        let table = [
            ("nameserver 9.9.9.9\nnameserver 9.9.9.9\n", "nameserver 1.1.1.1\n", &["9.9.9.9"][..]),
            // What resolved asks, in its place and order.
            (
                "nameserver 127.0.0.53\n",
                "nameserver 192.0.2.1\nnameserver 2001:db8::1",
                &["192.0.2.1", "2001:db8::1"],
            ),
            ("nameserver 127.0.0.53\nnameserver 9.9.9.9", "", &["9.9.9.9"]),
            ("nameserver 127.0.0.53\n", "nameserver 127.0.0.53\n", &[]),
            // Another server on the node, such as dnsmasq.
            ("nameserver 127.0.0.1\nnameserver ::1\n", "nameserver 1.1.1.1", &["127.0.0.1", "::1"]),
            ("nameserver fe80::1%eth0\nnameserver nonsense\nnameserver", "", &[]),
            ("", "nameserver 1.1.1.1", &[]),
        ];
        for (own, of_resolved, expected) in table {
            let found: Vec<String> =
                asked_by_node(own, of_resolved).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{own:?} {of_resolved:?}");
        }
    }
}
