//! `/etc/resolv.conf` of a pod. Pure but for [`file`], which reads the node's.

use std::fs;

use wire::pod::{DnsPolicyV1, DnsV1};

/// Most name servers that a resolver reads.
const NAMESERVERS_MAX: usize = 3;

/// The pod's file, from the node's own and what the pod says.
pub(super) fn file(dns: &DnsV1, host_network: bool) -> String {
    // systemd-resolved answers on a loopback address, which a pod cannot reach;
    // what it asks itself is in the second file.
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let texts = files.map(|path| fs::read_to_string(path).unwrap_or_default());
    let of_node =
        if host_network { Config::parse(&texts[0]) } else { upstreams(&[&texts[0], &texts[1]]) };
    merge(of_node, dns).text()
}

/// The name servers that the node itself asks, but none that only it can reach.
pub(super) fn node_upstreams() -> Vec<std::net::IpAddr> {
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let texts = files.map(|path| fs::read_to_string(path).unwrap_or_default());
    let found = upstreams(&[&texts[0], &texts[1]]);
    found.servers.iter().filter_map(|server| server.parse().ok()).collect()
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
        for (word, values) in [("search", &self.searches), ("options", &self.options)] {
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

/// The node's with the pod's behind it; of an option the pod's word counts.
fn merge(of_node: Config, dns: &DnsV1) -> Config {
    let mut all = if dns.policy == DnsPolicyV1::None { Config::default() } else { of_node };
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
}
