//! The name server as its clients see it, and name servers behind it that do what
//! servers do: lose, mix up, cut, refuse, and go away.

use std::net::Ipv4Addr;
use std::sync::{Mutex, OnceLock};

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::fixture::{ask, ask_edns, show, table};
use super::message::{opt, u16_at};
use super::*;

/// What a name server behind ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Silent,
    Failing,
    Refusing,
    Garbage,
    /// Half of an answer.
    Broken,
    /// From a port that was not asked.
    OtherSource,
    /// Not to the question with that number, not to that question, and then so.
    MixedUp,
    /// Knows no OPT records.
    OldFashioned,
    /// Cut over UDP, whole over TCP.
    Large,
    /// Cut over UDP, and nothing over TCP.
    LargeWithoutTcp,
    /// Says that there is none.
    Empty,
    /// Waits for [`Behind::gate`].
    Slow,
    /// Asks [`Behind::next`].
    Forwards,
}

/// A name server behind ours.
#[derive(Debug)]
struct Behind {
    fault: Mutex<Fault>,
    gate: Notify,
    ttl: Mutex<u32>,
    asked: Mutex<Vec<String>>,
    /// Where it asks in turn, with [`Fault::Forwards`].
    next: OnceLock<Dns>,
}

impl Behind {
    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn answer(&self, question: &[u8], over_tcp: bool) -> Vec<u8> {
        let query = Query::read(question).unwrap();
        let fault = *self.fault.lock().unwrap();
        let ttl = *self.ttl.lock().unwrap();
        let rcode = match fault {
            Fault::Failing => Rcode::SERVER_FAILED,
            Fault::Refusing => Rcode::REFUSED,
            Fault::OldFashioned if query.edns.is_some() => Rcode::FORMAT,
            Fault::Empty => Rcode::NO_NAME,
            _ => Rcode::OK,
        };
        let mut writer = Writer::new(&query, over_tcp, flag::AUTHENTIC, rcode);
        if rcode == Rcode::OK {
            let n_records =
                if matches!(fault, Fault::Large | Fault::LargeWithoutTcp) { 200 } else { 1 };
            let record =
                |n| Record { owner: None, ttl, data: Data::Address([192, 0, 2, n].into()) };
            let records: Vec<Record> = (0..n_records).map(record).collect();
            writer.answers(&records);
        }
        writer.finish()
    }

    async fn serve_udp(&self, socket: UdpSocket) {
        let mut buffer = [0; 4096];
        loop {
            let (n_bytes, client) = socket.recv_from(&mut buffer).await.unwrap();
            let question = &buffer[..n_bytes];
            let name = Query::read(question).unwrap().name.to_string();
            self.asked.lock().unwrap().push(name);
            let answer = self.answer(question, false);
            let fault = *self.fault.lock().unwrap();
            let mut answers = vec![answer.clone()];
            match fault {
                Fault::Silent => answers.clear(),
                Fault::Garbage => answers = vec![b"garbage".to_vec(), vec![0xff; 600], Vec::new()],
                Fault::Broken => answers[0].truncate(n_bytes + 3),
                Fault::OtherSource => {
                    let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                    other.send_to(&answer, client).await.unwrap();
                    answers.clear();
                }
                Fault::MixedUp => {
                    let mut number = answer.clone();
                    number[0] ^= 1;
                    let mut name = answer.clone();
                    name[13] ^= 1;
                    answers = vec![number, name, b"garbage".to_vec(), answer];
                }
                Fault::Slow => self.gate.notified().await,
                Fault::Forwards => {
                    let next = self.next.get().unwrap().clone();
                    answers = next.answer(question, false).await.into_iter().collect();
                }
                _ => {}
            }
            for answer in answers {
                socket.send_to(&answer, client).await.unwrap();
            }
        }
    }

    async fn serve_tcp(&self, listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if *self.fault.lock().unwrap() == Fault::LargeWithoutTcp {
                continue;
            }
            let question = read_message(&mut stream).await.unwrap();
            let answer = self.answer(&question, true);
            upstream::write_message(&mut stream, &answer).await.unwrap();
        }
    }
}

/// Our server, with name servers behind it.
struct World {
    dns: Dns,
    behind: Vec<Arc<Behind>>,
}

impl World {
    /// One with a server behind it for each fault, in this order.
    async fn new(faults: &[Fault]) -> Self {
        Self::with(faults, table()).await
    }

    async fn with(faults: &[Fault], mut table: Table) -> Self {
        let (port, sockets) = sockets(faults.len()).await;
        let settings = Settings {
            upstream_port: port,
            attempt: Duration::from_millis(150),
            deadline: Duration::from_secs(3),
            stale_after: Duration::from_millis(400),
            tcp_connections_max: 3,
            ..Settings::default()
        };
        let mut behind = Vec::new();
        for (fault, (address, udp, tcp)) in faults.iter().zip(sockets) {
            table.node.upstreams.push(address);
            let server = Arc::new(Behind {
                fault: Mutex::new(*fault),
                gate: Notify::new(),
                ttl: Mutex::new(60),
                asked: Mutex::default(),
                next: OnceLock::new(),
            });
            behind.push(Arc::clone(&server));
            tokio::spawn(async move { tokio::join!(server.serve_udp(udp), server.serve_tcp(tcp)) });
        }
        let dns = Dns::new(settings);
        assert_eq!(dns.set_table(Arc::new(table)), []);
        Self { dns, behind }
    }

    /// The answer as text.
    async fn ask(&self, name: &str) -> String {
        show(&self.dns.answer(&ask(name, kind::A), false).await.unwrap())
    }

    fn n_asked(&self) -> Vec<usize> {
        self.behind.iter().map(|server| server.asked().len()).collect()
    }
}

/// One port that is free on so many addresses of this host, over UDP and TCP.
async fn sockets(n: usize) -> (u16, Vec<(IpAddr, UdpSocket, TcpListener)>) {
    'again: for _ in 0..100 {
        let port = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
            Ok(listener) => listener.local_addr().unwrap().port(),
            Err(error) => panic!("{error}"),
        };
        let mut found = Vec::new();
        for last in (1..=n).map(|n| u8::try_from(n).unwrap()) {
            let address = IpAddr::from([127, 0, 0, last]);
            let udp = UdpSocket::bind((address, port)).await;
            let tcp = TcpListener::bind((address, port)).await;
            let (Ok(udp), Ok(tcp)) = (udp, tcp) else { continue 'again };
            found.push((address, udp, tcp));
        }
        return (port, found);
    }
    panic!("no port is free on {n} addresses");
}

const ANSWER: &str = "NOERROR ad\nAnswer a.com. 60 A 192.0.2.0\n";

#[tokio::test]
async fn names_elsewhere_are_asked_once_and_kept() {
    let world = World::new(&[Fault::None, Fault::None]).await;
    assert_eq!(world.ask("a.com").await, ANSWER);
    assert_eq!(world.ask("A.com").await, ANSWER);
    assert_eq!(world.n_asked(), [1, 0]);
    let asked = ask_edns("a.com", kind::A);
    let answer = world.dns.answer_at_once(&asked, false).unwrap().unwrap();
    assert_eq!(show(&answer), format!("{ANSWER}Additional OPT 1232\n"));
    // Another kind of record is another question.
    assert!(world.dns.answer_at_once(&ask("a.com", kind::AAAA), false).is_none());
}

#[tokio::test]
async fn names_of_the_cluster_are_never_asked_elsewhere() {
    let world = World::new(&[Fault::None]).await;
    for name in [
        "web.default.svc.cluster.local",
        "nothing.default.svc.cluster.local",
        "www.example.com.default.svc.cluster.local",
        "cluster.local",
        "1.2.42.10.in-addr.arpa",
        "1.2.43.10.in-addr.arpa",
    ] {
        world.ask(name).await;
    }
    assert_eq!(world.n_asked(), [0]);
}

#[tokio::test]
async fn a_server_that_does_not_do_is_followed_by_the_next() {
    for fault in [
        Fault::Silent,
        Fault::Failing,
        Fault::Refusing,
        Fault::Garbage,
        Fault::Broken,
        Fault::OtherSource,
    ] {
        let world = World::new(&[fault, Fault::None]).await;
        assert_eq!(world.ask("a.com").await, ANSWER, "{fault:?}");
        assert_eq!(world.n_asked(), [1, 1], "{fault:?}");
    }
}

#[tokio::test]
async fn what_is_no_answer_to_the_question_is_passed_over() {
    let world = World::new(&[Fault::MixedUp]).await;
    assert_eq!(world.ask("a.com").await, ANSWER);
    assert_eq!(world.n_asked(), [1]);
}

#[tokio::test]
async fn where_no_server_does_the_question_fails() {
    for (fault, expected) in [
        (Fault::Silent, "SERVFAIL\n"),
        (Fault::Garbage, "SERVFAIL\n"),
        (Fault::Failing, "SERVFAIL ad\n"),
        (Fault::Refusing, "REFUSED ad\n"),
    ] {
        let world = World::new(&[fault, fault]).await;
        assert_eq!(world.ask("a.com").await, expected, "{fault:?}");
        // Nothing of it is kept.
        world.behind[0].set(Fault::None);
        world.behind[1].set(Fault::None);
        assert_eq!(world.ask("a.com").await, ANSWER, "{fault:?}");
    }
    assert_eq!(World::new(&[]).await.ask("a.com").await, "SERVFAIL\n");
}

#[tokio::test]
async fn a_silent_server_is_left_out_until_it_is_back() {
    let world = World::new(&[Fault::Silent, Fault::None]).await;
    for n in 0..5 {
        world.ask(&format!("{n}.com")).await;
    }
    let [silent, other] = world.n_asked()[..] else { panic!() };
    assert_eq!(other, 5);
    assert!(silent < 5, "{silent}");
    world.behind[0].set(Fault::None);
    let back = tokio::time::timeout(Duration::from_secs(20), async {
        for n in 0.. {
            world.ask(&format!("back-{n}.com")).await;
            if !world.behind[0].asked().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    back.await.expect("the server is asked again");
    world.n_asked();
    world.ask("then.com").await;
    assert_eq!(world.n_asked(), [1, 0]);
}

#[tokio::test]
async fn an_answer_that_is_cut_is_fetched_whole_over_tcp() {
    let world = World::new(&[Fault::Large]).await;
    let whole = show(&world.dns.answer(&ask("a.com", kind::A), true).await.unwrap());
    assert_eq!(whole.lines().count(), 201);
    // Over UDP as much as fits, with a note; musl takes it so, glibc asks over TCP.
    let cut = world.ask("a.com").await;
    assert!(cut.starts_with("NOERROR tc ad\n") && cut.lines().count() == 31, "{cut}");
    assert_eq!(world.n_asked(), [1]);

    let world = World::new(&[Fault::LargeWithoutTcp]).await;
    let part = world.ask("a.com").await;
    assert!(part.starts_with("NOERROR tc ad\n") && part.lines().count() > 20, "{part}");
}

#[tokio::test]
async fn a_server_that_knows_no_opt_records_is_asked_without() {
    let world = World::new(&[Fault::OldFashioned]).await;
    assert_eq!(world.ask("a.com").await, ANSWER);
    assert_eq!(world.n_asked(), [2]);
    assert_eq!(world.ask("b.com").await, ANSWER.replace("a.com", "b.com"));
    assert_eq!(world.n_asked(), [1], "that is remembered");
}

#[tokio::test]
async fn a_question_that_is_under_way_is_not_asked_again() {
    let world = World::new(&[Fault::Slow]).await;
    let asking: Vec<_> = (0..20u8)
        .map(|n| {
            let (dns, mut question) = (world.dns.clone(), ask("a.com", kind::A));
            question[1] = n;
            tokio::spawn(async move { dns.answer(&question, false).await.unwrap() })
        })
        .collect();
    while world.behind[0].asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    world.behind[0].gate.notify_one();
    for (n, answer) in (0..).zip(asking) {
        let answer = answer.await.unwrap();
        assert_eq!((answer[1], show(&answer).as_str()), (n, ANSWER));
    }
    assert_eq!(world.n_asked(), [1]);
}

#[tokio::test]
async fn cut_off_from_all_servers_what_was_true_is_told() {
    let world = World::new(&[Fault::None]).await;
    *world.behind[0].ttl.lock().unwrap() = 0;
    assert_eq!(world.ask("a.com").await, ANSWER.replace("60", "0"));
    for fault in [Fault::Silent, Fault::Failing, Fault::Refusing] {
        world.behind[0].set(fault);
        assert_eq!(world.ask("a.com").await, ANSWER.replace("60", "30"), "{fault:?}");
        assert_ne!(world.ask("never-asked.com").await, ANSWER, "{fault:?}");
    }
    // A definite word counts, once it is heard again.
    world.behind[0].set(Fault::Empty);
    let back = tokio::time::timeout(Duration::from_secs(20), async {
        while world.ask("a.com").await.starts_with("NOERROR") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    back.await.expect("the server is heard again");
    // The names of the cluster need nobody.
    assert!(world.ask("web.default.svc.cluster.local").await.starts_with("NOERROR aa\n"));
}

#[tokio::test]
async fn an_external_name_is_followed_elsewhere() {
    let world = World::new(&[Fault::None]).await;
    let expected = "NOERROR aa\n\
        Answer outside.default.svc.cluster.local. 5 CNAME www.example.com.\n\
        Answer www.example.com. 5 A 192.0.2.0\n";
    for _ in 0..2 {
        assert_eq!(world.ask("outside.default.svc.cluster.local").await, expected);
    }
    assert_eq!(world.behind[0].asked(), ["www.example.com."]);
    let world = World::new(&[Fault::Empty]).await;
    let alone = expected.replace("NOERROR", "NXDOMAIN");
    let (alone, _) = alone.split_at(alone.rfind("Answer").unwrap());
    assert_eq!(world.ask("outside.default.svc.cluster.local").await, alone);
    let world = World::new(&[Fault::Silent]).await;
    let failed = alone.replace("NXDOMAIN", "SERVFAIL");
    assert_eq!(world.ask("outside.default.svc.cluster.local").await, failed);
}

#[tokio::test]
async fn a_name_server_that_would_ask_us_is_not_asked() {
    let mut table = table();
    table.node.upstreams = ["10.43.0.10", "10.43.7.7", "10.42.0.1", "0.0.0.0", "192.0.2.53"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    let dns = Dns::new(Settings::default());
    let conflicts = dns.set_table(Arc::new(table.clone()));
    let messages: Vec<&str> =
        conflicts.iter().map(|c| c.message.split(" and is").next().unwrap()).collect();
    assert_eq!(
        messages,
        [
            "name server 10.43.0.10 is the cluster's own",
            "name server 10.43.7.7 is in the range of Services 10.43.0.0/16",
            "name server 10.42.0.1 is this node's address for its pods",
            "name server 0.0.0.0 is no address of a server",
        ]
    );
    assert_eq!(upstreams(&table.node).0, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    // With none left a question fails at once.
    table.node.upstreams.truncate(4);
    dns.set_table(Arc::new(table));
    let answer = dns.answer(&ask("a.com", kind::A), false).await.unwrap();
    assert_eq!(show(&answer), "SERVFAIL\n");
}

#[tokio::test]
async fn a_name_server_that_asks_us_in_turn_ends_in_a_failure_and_not_in_a_storm() {
    let world = World::new(&[Fault::Forwards]).await;
    world.behind[0].next.set(world.dns.clone()).unwrap();
    let answer = world.ask("a.com").await;
    assert!(answer.starts_with("SERVFAIL"), "{answer}");
    let n_asked = world.n_asked()[0];
    assert!(n_asked <= 3, "{n_asked}");
}

#[tokio::test]
async fn a_new_table_counts_from_the_next_question_on() {
    let world = World::new(&[]).await;
    let name = "web.default.svc.cluster.local";
    assert!(world.ask(name).await.contains("10.43.3.4"));
    world.dns.set_table(Arc::default());
    assert_eq!(world.ask(name).await, "SERVFAIL\n");
}

#[tokio::test]
async fn what_nobody_should_ask_is_refused() {
    let world = World::new(&[]).await;
    let name = "web.default.svc.cluster.local";
    let check = async |question: Vec<u8>, expected: &str| {
        let answer = world.dns.answer(&question, false).await.unwrap();
        assert_eq!(show(&answer).lines().next(), Some(expected));
        answer
    };
    check(ask(name, kind::AXFR), "REFUSED").await;
    check(ask("example.com", kind::IXFR), "REFUSED").await;
    check(ask(name, kind::OPT), "FORMERR").await;
    let mut chaos = ask(name, kind::TXT);
    *chaos.last_mut().unwrap() = 3;
    check(chaos, "REFUSED").await;
    let mut version = ask_edns(name, kind::A);
    let at = version.len() - opt(Rcode::OK, false).len() + 6;
    version[at] = 1;
    let answer = check(version, "NOERROR").await;
    // The upper bits of "bad version" are in the OPT record.
    assert_eq!(answer[answer.len() - 6], 1);
    assert_eq!(world.dns.answer(b"short", false).await, None);
    let mut response = ask(name, kind::A);
    response[2] |= 0x80;
    assert_eq!(world.dns.answer(&response, false).await, None);
}

#[tokio::test]
async fn a_tcp_connection_carries_questions_until_it_ends_or_idles() {
    let world = World::new(&[Fault::None]).await;
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let dns = world.dns.clone();
    let serving = tokio::spawn(async move { dns.serve_tcp(server).await });
    // Two at once, the second in pieces.
    let first = ask("a.com", kind::A);
    let second = ask("web.default.svc.cluster.local", kind::A);
    upstream::write_message(&mut client, &first).await.unwrap();
    for byte in u16::try_from(second.len()).unwrap().to_be_bytes().into_iter().chain(second) {
        client.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(show(&read_message(&mut client).await.unwrap()), ANSWER);
    assert!(show(&read_message(&mut client).await.unwrap()).contains("10.43.3.4"));
    client.shutdown().await.unwrap();
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_tcp_connection_that_idles_is_closed() {
    let dns = Dns::new(Settings::default());
    // Nothing, a length without a message, and a message that is none.
    for begun in [&b""[..], b"\x00", b"\x00\x40half", b"\x00\x02xy", b"\x00\x00"] {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(begun).await.unwrap();
        dns.serve_tcp(server).await;
    }
}

#[tokio::test]
async fn beyond_so_many_connections_the_next_is_closed() {
    let world = World::new(&[]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let dns = world.dns.clone();
        tokio::spawn(async move { dns.serve_tcp(server).await });
        let question = ask("web.default.svc.cluster.local", kind::A);
        upstream::write_message(&mut client, &question).await.unwrap();
        read_message(&mut client).await.unwrap();
        open.push(client);
    }
    let (mut client, server) = tokio::io::duplex(1 << 16);
    world.dns.serve_tcp(server).await;
    read_message(&mut client).await.expect_err("it is closed");
    drop(open);
}

#[tokio::test]
async fn plain_sockets_are_served_too() {
    let world = World::new(&[Fault::None]).await;
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
    let dns = world.dns.clone();
    tokio::spawn(async move { dns.serve_udp(socket).await });
    let dns = world.dns.clone();
    tokio::spawn(
        async move { dns.stream(tcp, Box::new(listener.accept().await.unwrap().0)).await },
    );
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(udp).await.unwrap();
    for (name, expected) in [("a.com", "192.0.2.0"), ("web.default.svc.cluster.local", "10.43.3.4")]
    {
        client.send(b"garbage").await.unwrap();
        client.send(&ask(name, kind::A)).await.unwrap();
        let mut buffer = [0; 1500];
        let n_bytes = client.recv(&mut buffer).await.unwrap();
        assert!(show(&buffer[..n_bytes]).contains(expected));
        let answer = world.dns.datagram(udp, &ask(name, kind::A)).await.unwrap();
        assert!(show(&answer).contains(expected));
    }
    let mut stream = TcpStream::connect(tcp).await.unwrap();
    upstream::write_message(&mut stream, &ask("a.com", kind::A)).await.unwrap();
    assert_eq!(show(&read_message(&mut stream).await.unwrap()), ANSWER);
}

#[test]
fn a_set_too_large_for_udp_comes_whole_over_tcp() {
    let mut table = table();
    let service = table.services.iter_mut().find(|service| service.name == "two-ports").unwrap();
    for port in &mut service.ports {
        let one = port.endpoints[0].clone();
        port.endpoints = (0..200)
            .map(|n| crate::table::Endpoint { address: [10, 42, 1, n].into(), ..one.clone() })
            .collect();
    }
    let dns = Dns::new(Settings::default());
    dns.set_table(Arc::new(table));
    let check = |question: Vec<u8>, over_tcp, start: &str, n_lines: usize| {
        let answer = dns.answer_at_once(&question, over_tcp).unwrap().unwrap();
        let text = show(&answer);
        assert!(text.starts_with(start), "{text}");
        assert_eq!(text.lines().count(), n_lines, "{text}");
        answer.len()
    };
    let name = "two-ports.prod.svc.cluster.local";
    assert!(check(ask(name, kind::A), false, "NOERROR aa tc\n", 29) <= 512);
    assert!(check(ask_edns(name, kind::A), false, "NOERROR aa tc\n", 75) <= 1232);
    check(ask(name, kind::A), true, "NOERROR aa\n", 201);
    check(ask(name, kind::SRV), true, "NOERROR aa\n", 601);
    // Half of the set; what only helps is left out first.
    let name = "_a._tcp.two-ports.prod.svc.cluster.local";
    check(ask(name, kind::SRV), true, "NOERROR aa\n", 401);
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_or_none(message in proptest::collection::vec(any::<u8>(), 0..600)) {
        let dns = Dns::new(Settings::default());
        dns.set_table(Arc::new(table()));
        if let Some(Some(answer)) = dns.answer_at_once(&message, false) {
            prop_assert_eq!(&answer[..2], &message[..2]);
        }
    }

    #[test]
    fn every_answer_can_be_read_fits_and_repeats_number_and_question(
        labels in proptest::collection::vec(
            prop_oneof![
                Just("svc"), Just("web"), Just("default"), Just("prod"), Just("db"), Just("db-0"),
                Just("_tcp"), Just("_http"), Just("_pg"), Just("second"), Just("loop-a"),
                Just("two-ports"), Just("10-42-0-7"), Just("pod"), Just("DNS-Version"), Just("early"),
            ],
            0..6,
        ),
        kind in prop_oneof![Just(kind::A), Just(kind::AAAA), Just(kind::SRV), Just(kind::SOA), Just(kind::NS), Just(kind::ANY), any::<u16>()],
        size in proptest::option::of(any::<u16>()),
        id: u16,
        over_tcp: bool,
    ) {
        let dns = Dns::new(Settings::default());
        dns.set_table(Arc::new(table()));
        let name = labels.into_iter().chain(["cluster", "local"]).collect::<Vec<_>>().join(".");
        let mut question = match size {
            Some(_) => ask_edns(&name, kind),
            None => ask(&name, kind),
        };
        question[..2].copy_from_slice(&id.to_be_bytes());
        // As the client writes it, in whatever case.
        question[14] = question[14].to_ascii_uppercase();
        if let Some(size) = size {
            let at = question.len() - 8;
            question[at..at + 2].copy_from_slice(&size.to_be_bytes());
        }
        let answer = dns.answer_at_once(&question, over_tcp).unwrap().unwrap();
        let end = question.len() - if size.is_some() { 11 } else { 0 };
        prop_assert_eq!(u16_at(&answer, 0), Some(id));
        prop_assert_eq!(&answer[HEADER_BYTES..end], &question[HEADER_BYTES..end]);
        let bytes_max = if over_tcp { 65535 } else { size.unwrap_or(512).clamp(512, 1232).into() };
        prop_assert!(answer.len() <= bytes_max);
        // Panics where a record cannot be read.
        let text = show(&answer);
        prop_assert_eq!(text.contains("OPT"), size.is_some());
    }
}

#[tokio::test]
async fn a_question_whose_client_went_away_still_fills_the_cache() {
    let world = World::new(&[Fault::Slow]).await;
    let dns = world.dns.clone();
    let gone = tokio::spawn(async move { dns.answer(&ask("a.com", kind::A), false).await });
    while world.behind[0].asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    gone.abort();
    gone.await.expect_err("it was stopped");
    world.behind[0].gate.notify_one();
    let filled = tokio::time::timeout(Duration::from_secs(20), async {
        while world.dns.answer_at_once(&ask("a.com", kind::A), false).is_none() {
            tokio::task::yield_now().await;
        }
    });
    filled.await.expect("the answer is kept");
}
