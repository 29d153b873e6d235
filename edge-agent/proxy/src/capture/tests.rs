//! The program decides as its header says: the kernel runs it, on made-up packets.

use std::net::SocketAddr;

use super::sockets::Sockets;
use super::*;

/// A `struct bpf_sk_lookup`. Where the packet came from the kernel lets nobody make up:
/// it is no interface, thus not the loopback.
fn context(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> [u8; 72] {
    let mut context = [0; 72];
    let mut put = |at: usize, bytes: &[u8]| context[at..at + bytes.len()].copy_from_slice(bytes);
    let number: u32 = if protocol == Protocol::Tcp { 6 } else { 17 };
    put(12, &number.to_ne_bytes());
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            put(8, &2_u32.to_ne_bytes());
            put(16, &from.octets());
            put(40, &to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            put(8, &10_u32.to_ne_bytes());
            put(20, &from.octets());
            put(44, &to.octets());
        }
        _ => panic!("one family"),
    }
    put(36, &from.port().to_be_bytes());
    put(60, &u32::from(to.port()).to_ne_bytes());
    context
}

fn ranges() -> Ranges {
    Ranges {
        pods: vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()],
        cluster: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
        services: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
        own: ["10.42.1.1", "192.0.2.1", "fd42:0:0:1::1"].map(|a| a.parse().unwrap()).into(),
    }
}

#[test]
fn what_is_captured_is_what_pods_send_and_what_pods_and_live_services_are_sent() {
    let sockets = Sockets::new().unwrap();
    let way = SkLookup::new(&sockets).expect("the tests of the plane run as root, with BPF");
    let live = Live::from([
        ("10.43.0.10".parse().unwrap(), 53, Protocol::Udp),
        ("10.43.1.1".parse().unwrap(), 80, Protocol::Tcp),
        ("fd43::7".parse().unwrap(), 80, Protocol::Tcp),
    ]);
    way.apply((&Ranges::default(), &Live::new()), (&ranges(), &live)).unwrap();
    let (program, with_interface) = load(&ranges(), way.maps(), true).unwrap();
    assert!(with_interface);
    let check = |protocol, from: &str, to: &str, expected: &str| {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let context = context(protocol, from, to);
        let (returned, cookie) = bpf::trial(program.as_fd(), &context).unwrap();
        let answer = match (returned, cookie) {
            (0, 0) => "refused",
            (1, 0) => "as ever",
            (1, _) => "ours",
            _ => "?",
        };
        assert_eq!(answer, expected, "{protocol} {from} -> {to}");
    };
    use Protocol::{Tcp, Udp};
    // What a pod sends, whatever its destination; Services only where they are live.
    check(Tcp, "10.42.1.7:1000", "8.8.8.8:443", "ours");
    check(Udp, "10.42.1.7:1000", "10.42.1.9:53", "ours");
    check(Tcp, "10.42.1.7:1000", "10.42.2.9:80", "ours");
    check(Tcp, "10.42.1.7:1000", "10.43.1.1:80", "ours");
    check(Udp, "10.42.1.7:1000", "10.43.1.1:80", "refused");
    check(Tcp, "10.42.1.7:1000", "10.43.1.1:22", "refused");
    check(Udp, "10.42.1.7:1000", "10.43.0.10:53", "ours");
    // The node's own daemons keep every port, for pods too.
    check(Tcp, "10.42.1.7:1000", "192.0.2.1:22", "as ever");
    check(Tcp, "10.42.1.7:1000", "10.42.1.1:22", "as ever");
    check(Tcp, "192.0.2.9:1000", "192.0.2.1:22", "as ever");
    check(Tcp, "127.0.0.1:1000", "127.0.0.1:22", "as ever");
    // What the node itself sends.
    check(Tcp, "10.42.1.1:1000", "10.43.1.1:80", "ours");
    check(Tcp, "10.42.1.1:1000", "10.42.2.9:80", "ours");
    check(Tcp, "10.42.1.1:1000", "10.42.1.99:80", "refused");
    check(Tcp, "10.42.1.1:1000", "10.42.1.1:22", "as ever");
    // A neighbour of the node reaches Services, as with a router to them.
    check(Tcp, "192.0.2.9:1000", "10.43.1.1:80", "ours");
    check(Tcp, "192.0.2.9:1000", "10.43.1.1:22", "refused");
    // IPv6 alike.
    check(Tcp, "[fd42:0:0:1::7]:1", "[2001:db8::1]:443", "ours");
    check(Tcp, "[fd42:0:0:1::7]:1", "[fd42:0:0:1::1]:22", "as ever");
    check(Tcp, "[fd42:0:0:1::7]:1", "[fd43::7]:80", "ours");
    check(Tcp, "[fd42:0:0:1::7]:1", "[fd43::7]:81", "refused");
    check(Tcp, "[fd42:0:0:1::1]:1", "[fd42:0:0:2::7]:80", "ours");
    check(Tcp, "[2001:db8::9]:1", "[2001:db8::1]:22", "as ever");

    // What is live no more is refused, and what is a range no more is as ever.
    let none = Live::new();
    way.apply((&ranges(), &live), (&ranges(), &none)).unwrap();
    check(Tcp, "10.42.1.7:1000", "10.43.1.1:80", "refused");
    let (program, _) = load(&Ranges::default(), way.maps(), true).unwrap();
    let context = context(Tcp, "10.42.1.7:1".parse().unwrap(), "8.8.8.8:443".parse().unwrap());
    assert_eq!(bpf::trial(program.as_fd(), &context).unwrap(), (1, 0));
}

#[test]
fn without_interfaces_the_kernel_takes_the_program_too() {
    let sockets = Sockets::new().unwrap();
    let way = SkLookup::new(&sockets).unwrap();
    assert!(load(&ranges(), way.maps(), false).is_ok_and(|(_, with_interface)| !with_interface));
}

#[test]
fn a_gateway_is_the_first_address_of_its_range() {
    for (net, expected) in [("10.42.1.0/24", "10.42.1.1"), ("fd42:0:0:1::/64", "fd42:0:0:1::1")] {
        assert_eq!(gateway(&net.parse().unwrap()).to_string(), expected);
    }
}
