//! Real namespaces, links and rules, in a network namespace made for the test.
//! They need root, as the agent does.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::links::Netlink;
use super::*;

const UID_A: Uid = [1; 16];
const UID_B: Uid = [2; 16];

/// Runs a test on a thread whose network namespace is its own; every thread and
/// program it starts is in there too.
fn in_own_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests of the agent run as root");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let host = Netlink::open().unwrap();
                let lo = host.index("lo").await.unwrap().unwrap();
                host.up(lo).await.unwrap();
                test().await;
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `work` in the namespace of a pod.
fn inside<T: Send>(paths: &NamespacePaths, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let net = std::fs::File::open(&paths.net).unwrap();
                setns(net.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

/// Connects, and returns who the listener says has connected.
fn peer_seen(listener: &TcpListener, connect: impl FnOnce(SocketAddr) -> TcpStream) -> IpAddr {
    let stream = connect(listener.local_addr().unwrap());
    listener.set_nonblocking(false).unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let mut text = String::new();
    let mut stream = stream;
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    peer.ip()
}

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap()
}

fn paths(folder: &Path, name: &str) -> NamespacePaths {
    NamespacePaths::in_folder(&folder.join(name))
}

fn network() -> Network {
    let network = Network::new("t1");
    network.set_cidr(Some("10.99.1.0/24".parse().unwrap()));
    network
}

#[test]
fn pods_reach_each_other_the_node_and_beyond() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    in_own_namespace(|| async {
        let network = network();
        let (a, b) = (paths(folder, "a"), paths(folder, "b"));
        let ip_a = network.attach(&UID_A, &a, "pod-a").await.unwrap();
        let ip_b = network.attach(&UID_B, &b, "pod-b").await.unwrap();
        assert_ne!(ip_a, ip_b);
        assert_eq!(network.masquerade_error(), None);

        let in_a = inside(&a, || TcpListener::bind((ip_a, 0)).unwrap());
        assert_eq!(peer_seen(&in_a, |to| inside(&b, || connect(to))), IpAddr::V4(ip_b));
        let gateway = IpAddr::V4("10.99.1.1".parse().unwrap());
        assert_eq!(peer_seen(&in_a, connect), gateway, "the node has an address to pods");
        let on_node = TcpListener::bind((gateway, 0)).unwrap();
        assert_eq!(peer_seen(&on_node, |to| inside(&b, || connect(to))), IpAddr::V4(ip_b));
        let local = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            peer_seen(&local, connect),
            IpAddr::V4([127, 0, 0, 1].into()),
            "the rule leaves the node alone"
        );
        inside(&a, || {
            let own = TcpListener::bind("127.0.0.1:0").unwrap();
            peer_seen(&own, connect);
        });

        // A machine beyond the node, on a link that is none of ours.
        let out = paths(folder, "out");
        let beyond = Attachment {
            mtu: None,
            host_link: "up0".into(),
            address: [192, 0, 2, 2].into(),
            gateway: [192, 0, 2, 1].into(),
        };
        namespaces::create(&out, "out", &beyond).unwrap();
        let outside = inside(&out, || TcpListener::bind("192.0.2.2:0").unwrap());
        assert_eq!(
            peer_seen(&outside, |to| inside(&a, || connect(to))),
            IpAddr::V4([192, 0, 2, 1].into()),
            "beyond the node, pods have the node's address"
        );
        namespaces::remove(&out).unwrap();
        network.detach(&UID_A, &a).await.unwrap();
        network.detach(&UID_B, &b).await.unwrap();
    });
}

#[test]
fn everything_may_be_repeated_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    in_own_namespace(|| async {
        let network = network();
        let a = paths(folder, "a");
        let ip = network.attach(&UID_A, &a, "pod-a").await.unwrap();
        let link = network.host_link(&UID_A);
        let host = Netlink::open().unwrap();
        let before = host.index(&link).await.unwrap();
        assert!(before.is_some());
        assert_eq!(network.attach(&UID_A, &a, "pod-a").await.unwrap(), ip);
        assert_eq!(host.index(&link).await.unwrap(), before, "the link is left as it is");

        // An agent that starts anew knows the address from the run folder.
        let again = self::network();
        again.adopt(UID_A, ip);
        assert_eq!(again.attach(&UID_A, &a, "pod-a").await.unwrap(), ip);
        // A pod whose link was lost gets a new one.
        let lost = link.clone();
        blocking(move || links::remove_host_link(&lost)).await.unwrap();
        again.attach(&UID_A, &a, "pod-a").await.unwrap();
        assert!(host.index(&link).await.unwrap().is_some());

        for _ in 0..2 {
            again.detach(&UID_A, &a).await.unwrap();
            assert_eq!(host.index(&link).await.unwrap(), None);
            assert!(!a.net.exists() && !a.uts.exists() && !a.ipc.exists());
        }
        again.close().await;
        let rules = std::process::Command::new(masquerade::program().expect("nft is installed"))
            .args(["list", "ruleset"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(rules.stdout).unwrap(), "");
    });
}

#[test]
fn agents_of_one_machine_keep_out_of_each_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    in_own_namespace(|| async {
        let (one, two) = (network(), Network::new("t2"));
        two.set_cidr(Some("10.99.2.0/24".parse().unwrap()));
        let (a, b) = (paths(folder, "a"), paths(folder, "b"));
        one.attach(&UID_A, &a, "pod-a").await.unwrap();
        two.attach(&UID_B, &b, "pod-b").await.unwrap();
        assert_eq!(one.remove_strays(&[UID_A]).await.unwrap(), Vec::<String>::new());
        assert_eq!(one.remove_strays(&[]).await.unwrap(), [one.host_link(&UID_A)]);
        one.detach(&UID_A, &a).await.unwrap();
        one.close().await;
        let rules = || async {
            let nft = masquerade::program().expect("nft is installed");
            let output =
                tokio::process::Command::new(nft).args(["list", "ruleset"]).output().await.unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let left = rules().await;
        assert!(left.contains("postrouting_t2") && !left.contains("postrouting_t1"), "{left}");
        let ip_b = "10.99.2.2".parse::<Ipv4Addr>().unwrap();
        let in_b = inside(&b, || TcpListener::bind((ip_b, 0)).unwrap());
        assert_eq!(peer_seen(&in_b, connect), IpAddr::V4("10.99.2.1".parse().unwrap()));
        two.detach(&UID_B, &b).await.unwrap();
        two.close().await;
        assert_eq!(rules().await, "");
    });
}

#[test]
fn a_pod_has_its_own_host_name_and_no_address_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    in_own_namespace(|| async {
        let network = network();
        let a = paths(folder, "a");
        network.attach(&UID_A, &a, "pod-a").await.unwrap();
        let name = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let uts = std::fs::File::open(&a.uts).unwrap();
                    setns(uts.as_fd(), CloneFlags::CLONE_NEWUTS).unwrap();
                    rustix::system::uname().nodename().to_string_lossy().into_owned()
                })
                .join()
                .unwrap()
        });
        assert_eq!(name, "pod-a");
        network.detach(&UID_A, &a).await.unwrap();

        network.set_cidr(None);
        let error = network.attach(&UID_A, &a, "pod-a").await.unwrap_err();
        assert!(matches!(error, NetworkError::NoCidr));
        network.set_cidr(Some("10.99.9.0/30".parse().unwrap()));
        network.attach(&UID_A, &a, "pod-a").await.unwrap();
        let error = network.attach(&UID_B, &paths(folder, "b"), "pod-b").await.unwrap_err();
        assert_eq!(error.to_string(), "no address is left in 10.99.9.0/30");
        network.detach(&UID_A, &a).await.unwrap();
    });
}
