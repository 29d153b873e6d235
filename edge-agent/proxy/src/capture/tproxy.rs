//! The way without BPF: TPROXY rules in an nftables table of our own.
//!
//! They decide as [`super::program`] does, at the same sockets. The table is
//! written as a whole, in one transaction, whenever ranges or live addresses change.

use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Live, Ranges, gateway};
use crate::table::Net;

/// Name of our table.
const TABLE: &str = "pinnace_proxy";
/// Name of the table that shows whether the kernel has what is needed.
const PROBE: &str = "pinnace_proxy_probe";
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// Where the sockets are, on the loopback addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) tcp4: u16,
    pub(crate) udp4: u16,
    /// TCP and UDP of IPv6.
    pub(crate) six: Option<(u16, u16)>,
}

/// Whether the kernel takes such rules; leaves nothing behind.
pub(super) async fn probe(ports: &Ports) -> io::Result<()> {
    let script = format!(
        "{}delete table inet {PROBE}\n",
        script(PROBE, ports, &Ranges::default(), &Live::new())
    );
    run(&script).await
}

/// Brings the rules to these ranges and live addresses.
pub(super) async fn apply(ports: &Ports, ranges: &Ranges, live: &Live) -> io::Result<()> {
    run(&script(TABLE, ports, ranges, live)).await
}

/// Removes the table; it may be gone already.
pub(super) async fn remove() -> io::Result<()> {
    run(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")).await
}

/// The table, in the language of `nft`. The old one goes in the same transaction.
fn script(table: &str, ports: &Ports, ranges: &Ranges, live: &Live) -> String {
    let mut text = format!("add table inet {table}\ndelete table inet {table}\n");
    let _ = writeln!(text, "table inet {table} {{");
    for is_ipv6 in [false, true] {
        sets(&mut text, is_ipv6, ranges, live);
    }
    text.push_str("  chain ours {\n");
    let mut ours = |family: &str, protocol: &str, address: &str, port: u16| {
        let _ = writeln!(
            text,
            "    meta nfproto {} meta l4proto {protocol} tproxy {family} to {address}:{port} accept",
            if family == "ip" { "ipv4" } else { "ipv6" },
        );
    };
    ours("ip", "tcp", "127.0.0.1", ports.tcp4);
    ours("ip", "udp", "127.0.0.1", ports.udp4);
    if let Some((tcp6, udp6)) = ports.six {
        ours("ip6", "tcp", "[::1]", tcp6);
        ours("ip6", "udp", "[::1]", udp6);
    }
    text.push_str("  }\n");
    // What belongs to a connection of ours goes on to it, whatever the table says now.
    text.push_str(
        "  chain arriving {\n    type filter hook prerouting priority mangle; policy accept;\n    \
         meta l4proto != { tcp, udp } accept\n    socket transparent 1 accept\n",
    );
    for net in &ranges.services {
        let (ip, n) = family(net);
        let _ = writeln!(
            text,
            "    {ip} daddr {net} {ip} daddr . meta l4proto . th dport @live{n} goto ours"
        );
        let _ = writeln!(text, "    {ip} daddr {net} accept");
    }
    for net in &ranges.pods {
        let (ip, n) = family(net);
        let _ = writeln!(
            text,
            "    iifname != \"lo\" {ip} saddr {net} {ip} saddr != {} {ip} daddr != @own{n} goto ours",
            gateway(net)
        );
    }
    for net in &ranges.pods {
        let (ip, _) = family(net);
        let _ = writeln!(text, "    {ip} daddr {net} accept");
    }
    for net in &ranges.cluster {
        let (ip, _) = family(net);
        let _ = writeln!(text, "    {ip} daddr {net} goto ours");
    }
    text.push_str("  }\n");
    // The node's own stack would give these to daemons that listen on every address.
    text.push_str(
        "  chain refused {\n    type filter hook input priority filter; policy accept;\n    \
         meta l4proto != { tcp, udp } accept\n    socket transparent 1 accept\n",
    );
    for net in ranges.services.iter().chain(&ranges.pods) {
        let (ip, n) = family(net);
        for (protocol, answer) in [("tcp", "tcp reset"), ("udp", "icmpx port-unreachable")] {
            let _ = writeln!(
                text,
                "    {ip} daddr {net} {ip} daddr != @own{n} meta l4proto {protocol} reject with {answer}"
            );
        }
    }
    text.push_str("  }\n}\n");
    text
}

fn sets(text: &mut String, is_ipv6: bool, ranges: &Ranges, live: &Live) {
    let (n, kind) = if is_ipv6 { ("6", "ipv6_addr") } else { ("4", "ipv4_addr") };
    let of_family = |address: &IpAddr| address.is_ipv6() == is_ipv6;
    let own = ranges.own.iter().filter(|a| of_family(a)).map(IpAddr::to_string);
    let live =
        live.iter().filter(|(address, ..)| of_family(address)).map(|(address, port, protocol)| {
            format!("{address} . {} . {port}", protocol.to_string().to_lowercase())
        });
    set(text, &format!("own{n}"), kind, own.collect());
    set(text, &format!("live{n}"), &format!("{kind} . inet_proto . inet_service"), live.collect());
}

fn set(text: &mut String, name: &str, kind: &str, elements: Vec<String>) {
    let _ = write!(text, "  set {name} {{ type {kind};");
    if !elements.is_empty() {
        let _ = write!(text, " elements = {{ {} }};", elements.join(", "));
    }
    text.push_str(" }\n");
}

fn family(net: &Net) -> (&'static str, char) {
    if net.address().is_ipv6() { ("ip6", '6') } else { ("ip", '4') }
}

async fn run(script: &str) -> io::Result<()> {
    let program: PathBuf = (FOLDERS.iter().map(|folder| Path::new(folder).join("nft")))
        .find(|path| path.is_file())
        .ok_or_else(|| io::Error::other("nft is not installed; install the package nftables"))?;
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(text.lines().next().unwrap_or("nft failed").trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Protocol;
    use expect_test::expect;

    #[test]
    fn the_rules_decide_in_the_order_of_the_program() {
        let ranges = Ranges {
            pods: vec!["10.42.1.0/24".parse().unwrap()],
            cluster: vec!["10.42.0.0/16".parse().unwrap()],
            services: vec!["10.43.0.0/16".parse().unwrap()],
            own: ["10.42.1.1", "192.0.2.1"].map(|a| a.parse().unwrap()).into(),
        };
        let live = Live::from([("10.43.0.10".parse().unwrap(), 53, Protocol::Udp)]);
        let ports = Ports { tcp4: 1, udp4: 2, six: None };
        expect![[r#"
            add table inet t
            delete table inet t
            table inet t {
              set own4 { type ipv4_addr; elements = { 10.42.1.1, 192.0.2.1 }; }
              set live4 { type ipv4_addr . inet_proto . inet_service; elements = { 10.43.0.10 . udp . 53 }; }
              set own6 { type ipv6_addr; }
              set live6 { type ipv6_addr . inet_proto . inet_service; }
              chain ours {
                meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:1 accept
                meta nfproto ipv4 meta l4proto udp tproxy ip to 127.0.0.1:2 accept
              }
              chain arriving {
                type filter hook prerouting priority mangle; policy accept;
                meta l4proto != { tcp, udp } accept
                socket transparent 1 accept
                ip daddr 10.43.0.0/16 ip daddr . meta l4proto . th dport @live4 goto ours
                ip daddr 10.43.0.0/16 accept
                iifname != "lo" ip saddr 10.42.1.0/24 ip saddr != 10.42.1.1 ip daddr != @own4 goto ours
                ip daddr 10.42.1.0/24 accept
                ip daddr 10.42.0.0/16 goto ours
              }
              chain refused {
                type filter hook input priority filter; policy accept;
                meta l4proto != { tcp, udp } accept
                socket transparent 1 accept
                ip daddr 10.43.0.0/16 ip daddr != @own4 meta l4proto tcp reject with tcp reset
                ip daddr 10.43.0.0/16 ip daddr != @own4 meta l4proto udp reject with icmpx port-unreachable
                ip daddr 10.42.1.0/24 ip daddr != @own4 meta l4proto tcp reject with tcp reset
                ip daddr 10.42.1.0/24 ip daddr != @own4 meta l4proto udp reject with icmpx port-unreachable
              }
            }
        "#]]
        .assert_eq(&script("t", &ports, &ranges, &live));
    }
}
