//! Real clients ask the name server: glibc (`getent`, Python), musl, and `dig`, in
//! a network namespace of their own with a pod's `resolv.conf`.
//!
//! Needs root, `dig`, `python3`, and the Rust target of this machine with musl
//! (`scripts/setup` installs them).

#![allow(clippy::unwrap_used)] // the functions around the tests are tests, too

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use proxy::dns::{Dns, Settings};
use proxy::table::{Endpoint, Node, Protocol, Service, ServicePort, Table};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

/// Where the servers listen, inside the namespace.
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 10));
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Asks by the C library it is built with.
const LOOKUP: &str = r#"
use std::net::ToSocketAddrs;
fn main() {
    for name in std::env::args().skip(1) {
        match (name.as_str(), 80u16).to_socket_addrs() {
            Ok(found) => {
                let mut found: Vec<String> = found.map(|a| a.ip().to_string()).collect();
                found.sort();
                println!("{name} {}", found.join(" "));
            }
            Err(error) => println!("{name}: {error}"),
        }
    }
}
"#;

const PYTHON: &str = r#"
import socket, sys
for name in sys.argv[1:]:
    try:
        found = {a[4][0] for a in socket.getaddrinfo(name, 80)}
        print(name, " ".join(sorted(found)))
    except socket.gaierror as error:
        print(f"{name}: {error.args[0]}")
"#;

fn endpoint(address: [u8; 4], port: u16, hostname: &str) -> Endpoint {
    Endpoint {
        address: address.into(),
        port,
        node: "pi".to_owned(),
        zone: String::new(),
        hostname: hostname.to_owned(),
        ready: true,
        serving: true,
        terminating: false,
    }
}

fn service(namespace: &str, name: &str, addresses: &[&str], endpoints: Vec<Endpoint>) -> Service {
    let port = ServicePort {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        endpoints,
    };
    Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster_ips: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ports: vec![port],
        ..Service::default()
    }
}

/// The cluster that the pod is in; names elsewhere are asked at [`BEHIND`].
fn table() -> Table {
    let hosts = (0..3).map(|n| endpoint([10, 42, 0, 10 + n], 5432, &format!("db-{n}"))).collect();
    let many = (0..150).map(|n| endpoint([10, 42, 7, n], 80, "")).collect();
    let mut outside = service("default", "outside", &[], Vec::new());
    outside.external_name = Some("ns.dns.test".to_owned());
    let web = vec![endpoint([10, 42, 0, 7], 8080, "")];
    Table {
        generation: 1,
        node: Node {
            name: "pi".to_owned(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
            dns_addresses: vec![OURS],
            cluster_domain: "cluster.local".to_owned(),
            upstreams: vec![BEHIND],
            ..Node::default()
        },
        services: vec![
            service("default", "both", &["10.43.0.6", "fd43::6"], Vec::new()),
            service("default", "many", &[], many),
            outside,
            service("default", "web", &["10.43.0.5"], web),
            service("prod", "db", &[], hosts),
        ],
        ..Table::default()
    }
}

/// What the network around the cluster calls things: `ns.dns.test` is the one name,
/// since its server is another one of ours, with a domain of its own.
fn around() -> Table {
    let mut table = Table::default();
    table.node.cluster_domain = "test".to_owned();
    table.node.dns_addresses = vec!["192.0.2.80".parse().unwrap()];
    table
}

async fn serve(dns: Dns, address: IpAddr) {
    let socket = Arc::new(UdpSocket::bind((address, 53)).await.expect("the namespace is empty"));
    let listener = TcpListener::bind((address, 53)).await.expect("the namespace is empty");
    let of_streams = dns.clone();
    let streams = async move {
        loop {
            let (stream, _) = listener.accept().await.expect("the listener stands");
            let dns = of_streams.clone();
            tokio::spawn(async move { dns.serve_tcp(stream).await });
        }
    };
    tokio::select! {
        error = dns.serve_udp(socket) => panic!("{error}"),
        () = streams => {}
    }
}

/// Runs `clients` in a network namespace in which the servers listen.
fn with_servers(clients: impl FnOnce() + Send + 'static) {
    // Namespaces belong to threads: what this one starts is in the same.
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (dns, behind) = (Dns::new(Settings::default()), Dns::new(Settings::default()));
        assert_eq!(dns.set_table(Arc::new(table())), []);
        behind.set_table(Arc::new(around()));
        let (done, is_done) = oneshot::channel();
        let in_it = fs::File::open("/proc/thread-self/ns/net").unwrap();
        let clients = thread::spawn(move || {
            nix::sched::setns(in_it, CloneFlags::CLONE_NEWNET).unwrap();
            clients();
            done.send(()).unwrap();
        });
        runtime.block_on(async {
            tokio::spawn(serve(dns, OURS));
            tokio::spawn(serve(behind, BEHIND));
            is_done.await.ok();
        });
        clients.join().expect("the clients got what they asked for");
    })
    .join()
    .expect("the servers ran");
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}

/// What a program says that finds a pod's `resolv.conf` in `/etc`.
fn as_pod(folder: &Path, program: &[&str], names: &[&str]) -> String {
    let file = folder.join("resolv.conf");
    let text = "nameserver 127.0.0.10\n\
        search default.svc.cluster.local svc.cluster.local cluster.local\n\
        options ndots:5 timeout:2 attempts:2\n";
    fs::write(&file, text).unwrap();
    let hosts = folder.join("nsswitch.conf");
    fs::write(&hosts, "hosts: files dns\n").unwrap();
    let script = "mount --bind \"$1\" \"$(readlink -f /etc/resolv.conf)\" && \
        mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&file).arg(&hosts);
    command.args(program).args(names);
    String::from_utf8(run(&mut command).stdout).unwrap()
}

const NAMES: [&str; 10] = [
    "web",
    "web.default",
    "web.default.svc",
    "web.default.svc.cluster.local.",
    "both",
    "db.prod",
    "db-1.db.prod",
    "10-42-0-7.default.pod",
    "outside",
    "nothing",
];

/// What every client finds, but for how it says that there is nothing.
const FOUND: [&str; 9] = [
    "web 10.43.0.5",
    "web.default 10.43.0.5",
    "web.default.svc 10.43.0.5",
    "web.default.svc.cluster.local. 10.43.0.5",
    "both 10.43.0.6 fd43::6",
    "db.prod 10.42.0.10 10.42.0.11 10.42.0.12",
    "db-1.db.prod 10.42.0.11",
    "10-42-0-7.default.pod 10.42.0.7",
    "outside 192.0.2.80",
];

fn check(client: &str, said: &str) {
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..9], FOUND, "{client}");
    assert!(lines[9].starts_with("nothing: ") && lines.len() == 10, "{client}: {}", lines[9]);
}

#[test]
fn glibc_and_musl_find_what_a_pod_asks_for() {
    with_servers(|| {
        let folder = tempfile::tempdir().unwrap();
        check("Python", &as_pod(folder.path(), &["python3", "-c", PYTHON], &NAMES));
        let source = folder.path().join("lookup.rs");
        fs::write(&source, LOOKUP).unwrap();
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        let musl = folder.path().join("musl");
        let mut compile = Command::new("rustc");
        compile.args(["--edition=2024", "--target", &target, "-o"]).arg(&musl).arg(&source);
        run(&mut compile);
        check("musl", &as_pod(folder.path(), &[musl.to_str().unwrap()], &NAMES));
        // More than fits UDP: both ask again over TCP.
        for program in [&["python3", "-c", PYTHON][..], &[musl.to_str().unwrap()]] {
            let said = as_pod(folder.path(), program, &["many"]);
            // musl keeps 48 (`MAXADDRS`).
            let n_found = said.split_whitespace().count() - 1;
            assert!(n_found == 150 || (program.len() == 1 && n_found == 48), "{said}");
        }
        // Names by address, as a server's log has them.
        let said = as_pod(folder.path(), &["getent", "hosts"], &["10.43.0.5", "10.42.0.11"]);
        let names: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(
            names,
            [
                "10.43.0.5",
                "web.default.svc.cluster.local",
                "10.42.0.11",
                "db-1.db.prod.svc.cluster.local"
            ]
        );
    });
}

#[test]
fn dig_reads_every_kind_of_answer() {
    with_servers(|| {
        let dig = |arguments: &[&str]| {
            let mut command = Command::new("dig");
            command.args(["@127.0.0.10", "+nostats", "+nocmd", "+time=2", "+tries=2"]);
            String::from_utf8(run(command.args(arguments)).stdout).unwrap()
        };
        let check = |arguments: &[&str], status: &str, expected: &[&str]| {
            let said = dig(arguments);
            assert!(said.contains(&format!("status: {status}")), "{arguments:?}: {said}");
            assert!(!said.contains("extra bytes") && !said.contains("malformed"), "{said}");
            let lines: Vec<String> = said
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            for line in expected {
                assert!(lines.iter().any(|said| said == line), "{arguments:?}: {said}");
            }
        };
        let web = "web.default.svc.cluster.local";
        let line = "web.default.svc.cluster.local. 5 IN A 10.43.0.5";
        let soa = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";
        check(&[web], "NOERROR", &[line]);
        check(&["+noedns", web], "NOERROR", &[line]);
        check(&["+tcp", "+keepopen", web, web], "NOERROR", &[line, line]);
        check(&[web, "AAAA"], "NOERROR", &[soa]);
        check(&[web, "HINFO"], "NOERROR", &[soa]);
        check(&["no.default.svc.cluster.local"], "NXDOMAIN", &[soa]);
        check(&["cluster.local", "SOA"], "NOERROR", &[soa]);
        check(
            &["_http._tcp.db.prod.svc.cluster.local", "SRV"],
            "NOERROR",
            &[
                "_http._tcp.db.prod.svc.cluster.local. 5 IN SRV 0 33 5432 db-2.db.prod.svc.cluster.local.",
                "db-2.db.prod.svc.cluster.local. 5 IN A 10.42.0.12",
            ],
        );
        check(
            &["-x", "10.43.0.5"],
            "NOERROR",
            &["5.0.43.10.in-addr.arpa. 5 IN PTR web.default.svc.cluster.local."],
        );
        check(&["-x", "10.43.99.99"], "NXDOMAIN", &[]);
        check(
            &["dns-version.cluster.local", "TXT"],
            "NOERROR",
            &["dns-version.cluster.local. 5 IN TXT \"1.1.0\""],
        );
        check(
            &["outside.default.svc.cluster.local"],
            "NOERROR",
            &[
                "outside.default.svc.cluster.local. 5 IN CNAME ns.dns.test.",
                "ns.dns.test. 5 IN A 192.0.2.80",
            ],
        );
        check(&["ns.dns.test"], "NOERROR", &["ns.dns.test. 5 IN A 192.0.2.80"]);
        check(&["+dnssec", "ns.dns.test"], "NOERROR", &["ns.dns.test. 5 IN A 192.0.2.80"]);
        check(&["+edns=1", "+noednsneg", web], "BADVERS", &[]);
        check(&["CH", "version.bind", "TXT"], "REFUSED", &[]);
        check(&["+opcode=notify", web], "NOTIMP", &[]);
        check(
            &["+bufsize=1232", "many.default.svc.cluster.local"],
            "NOERROR",
            &["many.default.svc.cluster.local. 5 IN A 10.42.7.149"],
        );
    });
}
