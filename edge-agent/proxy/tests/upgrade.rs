//! One proxy after another: nobody who uses them may notice.
#![allow(clippy::unwrap_used)] // In helpers of tests.

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use proxy::Settings;
use proxy::control::Capture;
use proxy::table::Protocol;

use world::*;

const N_UPGRADES: usize = 5;

fn nobody_notices_an_upgrade(capture: Capture) {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let before = world.node.output("ip rule");
    let server = format!("{}:8080", pod_address(1));
    serve_tcp(&world.pods[1], "0.0.0.0:8080".parse().unwrap());
    serve_udp(&world.pods[1], "0.0.0.0:8053".parse().unwrap());
    let mut web = service("web", Protocol::Tcp, "10.43.0.20:80", &[&server]);
    web.ports[0].node_port = Some(30080);
    let far = service("far", Protocol::Tcp, "10.43.0.25:80", &["10.42.2.7:80"]);
    let dns = format!("{}:8053", pod_address(1));
    let dns = service("dns", Protocol::Udp, "10.43.0.27:53", &[&dns]);
    let all = table(1, vec![web, far, dns]);
    let mut plane = Plane::start(&world, folder.path(), capture, false);
    plane.apply(&all);

    // A connection that talks now and then, one through another node, one that never
    // rests, and a flow.
    let client = &world.pods[0];
    let mut talking = BufReader::new(connect(client, "10.43.0.20:80").unwrap());
    let mut line = String::new();
    talking.read_line(&mut line).unwrap();
    let mut through = BufReader::new(connect(client, "10.43.0.25:80").unwrap());
    through.read_line(&mut line).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let busy = busy(connect(client, "10.43.0.20:80").unwrap(), Arc::clone(&stop));
    let flow = client.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    flow.set_read_timeout(Some(PATIENCE)).unwrap();
    client.within(|| flow.connect("10.43.0.27:53")).unwrap();
    let ask_flow = |text: &str| {
        flow.send(text.as_bytes()).unwrap();
        let mut answer = [0; 100];
        let n = flow.recv(&mut answer).unwrap();
        assert_eq!(&answer[..n], format!("{} {text}", pod_address(0)).as_bytes());
    };
    ask_flow("first");

    // And new ones all the time, from inside and outside.
    let (n_asked, failed) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for (from, to) in [(client, "10.43.0.20:80"), (&world.outside, "192.0.2.1:30080")] {
            let (stop, n_asked, failed) = (&stop, &n_asked, &failed);
            scope.spawn(move || {
                from.within(|| {
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = ask(from, to) {
                            failed.lock().unwrap().push(format!("{to}: {error}"));
                        }
                        n_asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        let upgrading = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 0..N_UPGRADES {
                let asked = n_asked.load(Ordering::Relaxed);
                let version = format!("test {n}");
                let next =
                    Plane::with(&world, Settings { version, ..settings(folder.path(), capture) });
                let old = std::mem::replace(&mut plane, next);
                plane.status(|status| status.generation == 1 && status.capture == capture);
                echo(&mut talking, format!("after upgrade {n}").as_bytes()).unwrap();
                ask_flow(&format!("after {n}"));
                while n_asked.load(Ordering::Relaxed) < asked + 50 {
                    std::thread::yield_now();
                }
                if n > 0 {
                    old.join();
                } else {
                    // The first cannot end before what goes through another node does.
                    echo(&mut through, b"this one stays").unwrap();
                    drop(std::mem::replace(
                        &mut through,
                        BufReader::new(connect(client, "10.43.0.20:80").unwrap()),
                    ));
                    old.join();
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = upgrading {
            std::panic::resume_unwind(panic);
        }
    });
    let (n_asked, failed) = (n_asked.into_inner(), failed.into_inner().unwrap());
    assert_eq!(failed, [""; 0], "of {n_asked} connections");
    assert!(busy.join().unwrap() > 0);
    plane.leave();
    assert_eq!(world.node.output("ip rule"), before);
}

/// Sends and receives without rest until told to stop; returns how many bytes came
/// back, all in order.
fn busy(stream: std::net::TcpStream, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut writer = stream;
    std::thread::spawn(move || {
        let writing = std::thread::spawn(move || {
            let mut n = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                writer.write_all(&n.to_le_bytes().repeat(512)).unwrap();
                n += 1;
            }
            writer.shutdown(std::net::Shutdown::Write).unwrap();
            n
        });
        let mut piece = [0; 4096];
        let mut n = 0_u64;
        while reader.read_exact(&mut piece).is_ok() {
            assert_eq!(piece[..8], n.to_le_bytes(), "piece {n}");
            assert_eq!(piece[4088..], n.to_le_bytes(), "piece {n}");
            n += 1;
        }
        assert_eq!(writing.join().unwrap(), n, "all that was sent came back");
        n * 4096
    })
}

#[test]
fn nobody_notices_an_upgrade_with_the_program() {
    nobody_notices_an_upgrade(Capture::SkLookup);
}

#[test]
fn nobody_notices_an_upgrade_with_rules() {
    nobody_notices_an_upgrade(Capture::Tproxy);
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    serve_tcp(&world.pods[1], "0.0.0.0:8080".parse().unwrap());
    let server = format!("{}:8080", pod_address(1));
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    plane.apply(&table(1, vec![service("web", Protocol::Tcp, "10.43.0.20:80", &[&server])]));
    let client = &world.pods[0];
    let mut talking = BufReader::new(connect(client, "10.43.0.20:80").unwrap());
    let mut line = String::new();
    talking.read_line(&mut line).unwrap();
    for _ in 0..3 {
        let stream =
            std::os::unix::net::UnixStream::connect(folder.path().join("proxy-handover.sock"));
        drop(stream.unwrap());
        assert_eq!(ask(client, "10.43.0.20:80").unwrap(), pod_address(0).to_string());
        echo(&mut talking, b"still here").unwrap();
    }
    plane.leave();
}

#[test]
fn a_successor_of_another_kind_begins_anew_and_what_is_open_goes_on() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    serve_tcp(&world.pods[1], "0.0.0.0:8080".parse().unwrap());
    let server = format!("{}:8080", pod_address(1));
    let mut plane = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    plane.apply(&table(1, vec![service("web", Protocol::Tcp, "10.43.0.20:80", &[&server])]));
    let client = &world.pods[0];
    let mut talking = BufReader::new(connect(client, "10.43.0.20:80").unwrap());
    talking.read_line(&mut String::new()).unwrap();
    let path = folder.path().join("proxy-handover.sock");
    let mut stranger = std::os::unix::net::UnixStream::connect(path).unwrap();
    stranger.write_all(&[200]).unwrap();
    assert_eq!(stranger.read(&mut [0; 8]).unwrap(), 0, "it is given nothing");
    let mut next = Plane::start(&world, folder.path(), Capture::SkLookup, false);
    next.apply(&table(2, vec![service("web", Protocol::Tcp, "10.43.0.20:80", &[&server])]));
    assert_eq!(ask(client, "10.43.0.20:80").unwrap(), pod_address(0).to_string());
    echo(&mut talking, b"with the one before").unwrap();
    assert!(proxy::is_draining(folder.path()).unwrap(), "one more would have to wait");
    drop(talking);
    plane.join();
    assert!(!proxy::is_draining(folder.path()).unwrap());
    assert_eq!(ask(client, "10.43.0.20:80").unwrap(), pod_address(0).to_string());
    next.leave();
}
