//! A table with a Service of every kind, questions, and answers as text, for tests.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::message::{self, HEADER_BYTES, Records, flag, kind, u16_at, u32_at};
use super::name::Name;
use crate::table::{Endpoint, Node, Peer, Pod, Protocol, Service, ServicePort, Table};

pub(super) const KINDS: [(&str, u16); 10] = [
    ("A", kind::A),
    ("NS", kind::NS),
    ("CNAME", kind::CNAME),
    ("SOA", kind::SOA),
    ("PTR", kind::PTR),
    ("MX", kind::MX),
    ("TXT", kind::TXT),
    ("AAAA", kind::AAAA),
    ("SRV", kind::SRV),
    ("ANY", kind::ANY),
];

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(text: &str, port: u16, hostname: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: address(text),
        port,
        node: "pi".into(),
        zone: String::new(),
        hostname: hostname.into(),
        ready,
        serving: ready,
        terminating: false,
    }
}

fn port(name: &str, protocol: Protocol, port: u16, endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port: None, endpoints }
}

fn service(namespace: &str, name: &str, addresses: &[&str]) -> Service {
    Service {
        namespace: namespace.into(),
        name: name.into(),
        cluster_ips: addresses.iter().map(|text| address(text)).collect(),
        ..Service::default()
    }
}

fn alias(namespace: &str, name: &str, target: &str) -> Service {
    Service { external_name: Some(target.into()), ..service(namespace, name, &[]) }
}

/// A Service of every kind, on a node with two families.
pub(super) fn table() -> Table {
    use Protocol::{Tcp, Udp};
    let both = |number| {
        vec![
            endpoint("10.42.0.7", number, "", true),
            endpoint("10.42.1.9", number, "", true),
            endpoint("10.42.1.10", number, "", false),
        ]
    };
    let hosts = vec![
        endpoint("10.42.0.20", 5432, "db-0", true),
        endpoint("10.42.1.21", 5432, "db-1", true),
        endpoint("10.42.1.22", 5432, "db-2", false),
        endpoint("fd42::20", 5432, "db-0", true),
    ];
    let services = vec![
        Service {
            ports: vec![port("https", Tcp, 443, vec![endpoint("192.168.7.2", 6443, "", true)])],
            is_api: true,
            ..service("default", "kubernetes", &["10.43.0.1"])
        },
        alias("default", "loop-a", "loop-b.default.svc.cluster.local"),
        alias("default", "loop-b", "loop-a.default.svc.cluster.local"),
        alias("default", "number", "192.0.2.1"),
        alias("default", "outside", "www.example.com."),
        alias("default", "second", "web.default.svc.cluster.local"),
        Service {
            ports: vec![
                port("http", Tcp, 80, both(8080)),
                port("dns", Udp, 53, both(5353)),
                port("dns-tcp", Tcp, 53, both(5353)),
            ],
            ..service("default", "web", &["10.43.3.4", "fd43::304"])
        },
        Service {
            bare_endpoints: vec![endpoint("10.42.0.30", 0, "", true)],
            ..service("prod", "bare", &[])
        },
        Service { ports: vec![port("pg", Tcp, 5432, hosts)], ..service("prod", "db", &[]) },
        Service {
            ports: vec![port("x", Tcp, 1, vec![endpoint("10.42.0.31", 1, "", false)])],
            publish_not_ready: true,
            ..service("prod", "early", &[])
        },
        Service {
            ports: vec![port("x", Tcp, 1, vec![endpoint("10.42.0.32", 1, "", false)])],
            ..service("prod", "none-ready", &[])
        },
        Service {
            ports: vec![port("a", Tcp, 1, both(1)), port("b", Tcp, 2, both(2))],
            ..service("prod", "two-ports", &[])
        },
    ];
    Table {
        generation: 9,
        node: Node {
            name: "pi".into(),
            addresses: vec![address("192.168.7.2")],
            pod_cidrs: vec!["10.42.0.0/24".parse().unwrap(), "fd42::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
            dns_addresses: vec![address("10.43.0.10")],
            cluster_domain: "cluster.local".into(),
            ..Node::default()
        },
        services,
        pods: vec![Pod {
            uid: [1; 16],
            namespace: "lonely".into(),
            name: "pod".into(),
            addresses: vec![address("10.42.0.99")],
            ports: Vec::new(),
            ingress: None,
            egress: None,
        }],
        peers: vec![Peer {
            name: "other".into(),
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            addresses: vec![address("192.168.7.3")],
            port: 1,
            zone: String::new(),
        }],
        ..Table::default()
    }
}

/// A table of `n` Services with ten endpoints each, on ports of two kinds.
pub(super) fn large(n: u32) -> Arc<Table> {
    let mut table = table();
    table.services = (0..n)
        .map(|n| {
            let [_, high, middle, low] = n.to_be_bytes();
            let of = |k: u8| IpAddr::from([10, 42 + high, middle ^ k, low]);
            let endpoints =
                (0..10).map(|k| Endpoint { address: of(k), ..endpoint("10.42.0.1", 80, "", true) });
            Service {
                cluster_ips: vec![IpAddr::from([10, 43 + high, middle, low])],
                ports: vec![port("http", Protocol::Tcp, 80, endpoints.collect())],
                ..service(&format!("ns-{:03}", n / 100), &format!("svc-{:02}", n % 100), &[])
            }
        })
        .collect();
    Arc::new(table)
}

/// A question with number 77 over the plain protocol.
pub(super) fn ask(name: &str, kind: u16) -> Vec<u8> {
    message::question(77, &Name::from_text(name).unwrap(), kind, false, None)
}

/// As [`ask`], with an OPT record.
pub(super) fn ask_edns(name: &str, kind: u16) -> Vec<u8> {
    message::question(77, &Name::from_text(name).unwrap(), kind, false, Some(false))
}

/// The number of a kind of record.
pub(super) fn number(kind: &str) -> u16 {
    KINDS.iter().find(|(name, _)| *name == kind).unwrap().1
}

/// An answer as text: flags, then a record a line.
pub(super) fn show(answer: &[u8]) -> String {
    let flags = u16_at(answer, 2).unwrap();
    let rcode = match flags & flag::RCODE {
        0 => "NOERROR".into(),
        1 => "FORMERR".into(),
        2 => "SERVFAIL".into(),
        3 => "NXDOMAIN".into(),
        4 => "NOTIMP".into(),
        5 => "REFUSED".into(),
        other => format!("rcode {other}"),
    };
    let mut text = rcode;
    for (bit, name) in
        [(flag::AUTHORITATIVE, " aa"), (flag::TRUNCATED, " tc"), (flag::AUTHENTIC, " ad")]
    {
        if flags & bit != 0 {
            text.push_str(name);
        }
    }
    text.push('\n');
    let (_, at) = Name::read(answer, HEADER_BYTES).unwrap();
    let mut end = at + 4;
    for record in Records::after_question(answer, at + 4) {
        let record = record.expect("the record is whole");
        end = record.data.end;
        if record.kind == kind::OPT {
            writeln!(text, "{:?} OPT {}", record.section, record.class).unwrap();
            continue;
        }
        let owner = Name::read(answer, record.at).unwrap().0;
        let known = KINDS.iter().find(|(_, number)| *number == record.kind);
        let kind = known.map_or_else(|| format!("TYPE{}", record.kind), |(name, _)| (*name).into());
        let data = &answer[record.data.clone()];
        let name_at = |at| Name::read(answer, at).unwrap().0;
        let said = match record.kind {
            kind::A => IpAddr::from(<[u8; 4]>::try_from(data).unwrap()).to_string(),
            kind::AAAA => IpAddr::from(<[u8; 16]>::try_from(data).unwrap()).to_string(),
            kind::CNAME | kind::NS | kind::PTR => name_at(record.data.start).to_string(),
            kind::SRV => {
                let numbers: Vec<u16> = (0..3).map(|n| u16_at(data, 2 * n).unwrap()).collect();
                let target = name_at(record.data.start + 6);
                format!("{} {} {} {target}", numbers[0], numbers[1], numbers[2])
            }
            kind::SOA => {
                let (server, next) = Name::read(answer, record.data.start).unwrap();
                let (mailbox, next) = Name::read(answer, next).unwrap();
                format!("{server} {mailbox} {}", u32_at(answer, next + 16).unwrap())
            }
            kind::TXT => format!("{:?}", String::from_utf8_lossy(&data[1..])),
            _ => format!("{data:02x?}"),
        };
        writeln!(text, "{:?} {owner} {} {kind} {said}", record.section, record.ttl).unwrap();
    }
    assert_eq!(end, answer.len(), "nothing stands behind the records");
    text
}
