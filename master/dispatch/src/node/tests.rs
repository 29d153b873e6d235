//! What [`NodeDispatcher`] promises, message by message; `tests::sim` covers the rest.

use wire::node::NodeInfoV1;
use wire::pod::{KeysV1, SourceV1};
use wire::set::{BodyV1, ItemV1};

use super::*;

const EPOCH: Epoch = 7;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn set(revision: u64, uids: &[u8]) -> SnapshotV1 {
    let item = |uid: &u8| ItemV1 {
        uid: [*uid; 16],
        generation: 1,
        body: BodyV1::Keys(KeysV1 {
            namespace: "default".into(),
            source: SourceV1::ConfigMap("c".into()),
            data: Vec::new(),
            ext: Vec::new(),
        }),
    };
    SnapshotV1 { epoch: EPOCH, revision, items: uids.iter().map(item).collect() }
}

/// A hello of a boot that knows nothing but the set it has.
pub(crate) fn hello(boot: u8, hello_seq: u32, epoch: Epoch, have_revision: u64) -> HelloV1 {
    HelloV1 {
        boot_id: [boot; 16],
        conn_seq: 1,
        hello_seq,
        epoch,
        have_revision,
        set_digest: [0; 16],
        report_acked: 0,
        command_counter: 0,
        proto_min: 1,
        proto_max: 1,
        caps: 0,
        info: NodeInfoV1::default(),
        running: Vec::new(),
    }
}

fn heartbeat(boot: u8, revision: u64, report_seq: u64) -> HeartbeatV1 {
    HeartbeatV1 { boot_id: [boot; 16], conn_seq: 1, epoch: EPOCH, revision, report_seq }
}

fn report(boot: u8, seq: u64) -> ReportV1 {
    ReportV1 {
        boot_id: [boot; 16],
        seq,
        full: false,
        pods: Vec::new(),
        events: Vec::new(),
        ext: Vec::new(),
    }
}

/// What the dispatcher sends, and what it tells its caller.
fn work(node: &mut NodeDispatcher, now_s: u64) -> (Vec<Message>, Vec<Output>) {
    let (mut sent, mut told) = (Vec::new(), Vec::new());
    for output in node.poll(at(now_s)) {
        match output {
            Output::Send { bytes, .. } => match decode(&bytes) {
                Ok(Decoded::Message(message)) => sent.push(message),
                other => panic!("{other:?}"),
            },
            other => told.push(other),
        }
    }
    (sent, told)
}

fn receive(node: &mut NodeDispatcher, now_s: u64, bytes: &[u8]) -> (Vec<Message>, Vec<Output>) {
    node.receive(at(now_s), bytes).unwrap();
    work(node, now_s)
}

/// A dispatcher with a set of revision 10, and a node that has it.
fn connected() -> NodeDispatcher {
    let mut node = NodeDispatcher::new(EPOCH);
    node.set(&set(10, &[1, 2])).unwrap();
    let (sent, _) = receive(&mut node, 0, &encode(&hello(1, 1, EPOCH, 10)));
    assert_eq!(sent, [Message::UpToDate(UpToDateV1 { epoch: EPOCH, revision: 10 })]);
    node
}

#[test]
fn a_hello_is_answered_with_what_the_node_lacks() {
    for (epoch, have, digest, expected) in [
        (0, 0, false, "Snapshot"),
        (EPOCH + 1, 20, false, "Snapshot"),
        (EPOCH, 5, false, "Snapshot"),
        (EPOCH, 20, false, "UpToDate"),
        (EPOCH, 5, true, "UpToDate"),
    ] {
        let mut node = NodeDispatcher::new(EPOCH);
        let newest = set(20, &[1, 2]);
        node.set(&newest).unwrap();
        let mut hello = hello(1, 1, epoch, have);
        if digest {
            hello.set_digest = crate::set_digest(&newest.items);
        }
        let (sent, told) = receive(&mut node, 0, &encode(&hello));
        let kinds: Vec<String> =
            sent.iter().map(|message| format!("{:?}", message.kind())).collect();
        assert_eq!(kinds, [expected], "{epoch} {have} {digest}");
        assert_eq!(told, [Output::Hello(Box::new(hello))]);
    }
}

#[test]
fn a_hello_before_the_first_set_is_answered_once_there_is_one() {
    let mut node = NodeDispatcher::new(EPOCH);
    assert!(receive(&mut node, 0, &encode(&hello(1, 1, 0, 0))).0.is_empty());
    node.set(&set(3, &[])).unwrap();
    assert!(matches!(work(&mut node, 1).0.as_slice(), [Message::Snapshot(_)]));
}

#[test]
fn one_set_at_a_time_and_again_until_it_is_shown() {
    let mut node = connected();
    node.set(&set(11, &[1])).unwrap();
    let (sent, _) = work(&mut node, 1);
    let [Message::Delta(delta)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((delta.base_revision, delta.revision, delta.remove.len()), (10, 11, 1));
    node.set(&set(12, &[])).unwrap();
    assert!(work(&mut node, 2).0.is_empty(), "the first is on the way");
    assert_eq!(node.next_due(), Some(at(16)));
    let (sent, _) = work(&mut node, 16);
    assert!(matches!(sent.as_slice(), [Message::Snapshot(set)] if set.revision == 12));
    let (sent, told) = receive(&mut node, 17, &encode(&heartbeat(1, 12, 0)));
    assert_eq!((sent, told), (Vec::new(), vec![Output::Applied { revision: 12 }]));
    assert_eq!(node.next_due(), None);
}

#[test]
fn nothing_is_kept_for_a_node_that_is_away() {
    let mut node = connected();
    node.set(&set(11, &[])).unwrap();
    node.disconnected();
    assert!(work(&mut node, 1).0.is_empty());
    assert_eq!(node.command(CommandV1::ReportAll), Err(NotConnected));
    assert_eq!(node.next_due(), None);
    let (sent, _) = receive(&mut node, 900, &encode(&hello(1, 2, EPOCH, 10)));
    assert!(matches!(sent.as_slice(), [Message::Delta(_)]), "one message, whatever was missed");
}

#[test]
fn a_report_is_acknowledged_only_when_it_is_stored() {
    let mut node = connected();
    let (sent, told) = receive(&mut node, 1, &encode(&report(1, 1)));
    assert_eq!((sent.len(), told), (0, vec![Output::Report(report(1, 1))]));
    assert_eq!(receive(&mut node, 2, &encode(&report(1, 1))), (Vec::new(), Vec::new()));
    let (_, told) = receive(&mut node, 7, &encode(&report(1, 1)));
    assert_eq!(told.len(), 1, "the caller could not store it, it seems");
    node.report_stored([9; 16], 1);
    node.report_stored([1; 16], 2);
    assert!(work(&mut node, 8).0.is_empty(), "of another boot, or never taken");
    node.report_stored([1; 16], 1);
    let acknowledged = Message::ReportAck(ReportAckV1 { boot_id: [1; 16], seq: 1 });
    assert_eq!(work(&mut node, 8).0, std::slice::from_ref(&acknowledged));
    let again = receive(&mut node, 9, &encode(&report(1, 1)));
    assert_eq!(again, (vec![acknowledged], Vec::new()), "the first may be lost");
}

#[test]
fn a_late_report_of_before_the_masters_restart_is_dropped() {
    let mut node = NodeDispatcher::new(EPOCH);
    node.set(&set(10, &[])).unwrap();
    let hello = HelloV1 { report_acked: 5, ..hello(1, 1, EPOCH, 10) };
    receive(&mut node, 0, &encode(&hello));
    assert_eq!(receive(&mut node, 1, &encode(&report(1, 4))).1, []);
    assert_eq!(receive(&mut node, 1, &encode(&report(1, 6))).1, [Output::Report(report(1, 6))]);
}

#[test]
fn a_report_that_stays_missing_is_asked_for() {
    let mut node = connected();
    for (now_s, expected) in [(10, 0), (20, 0), (30, 1), (40, 0), (50, 1)] {
        let (sent, _) = receive(&mut node, now_s, &encode(&heartbeat(1, 10, 3)));
        let asked = sent.iter().filter(|message| {
            matches!(message, Message::Command(envelope)
                if envelope.command == CommandV1::ReportAll)
        });
        assert_eq!(asked.count(), expected, "{now_s} s");
    }
}

#[test]
fn commands_go_on_above_what_the_boot_has_seen() {
    let mut node = NodeDispatcher::new(EPOCH);
    node.set(&set(10, &[])).unwrap();
    receive(&mut node, 0, &encode(&HelloV1 { command_counter: 41, ..hello(1, 1, EPOCH, 10) }));
    node.command(CommandV1::ReportAll).unwrap();
    let (sent, _) = work(&mut node, 1);
    let [Message::Command(envelope)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((envelope.epoch, envelope.boot_id, envelope.counter), (EPOCH, [1; 16], 42));
}

#[test]
fn a_boot_that_has_not_said_hello_is_asked_to_but_not_too_often() {
    let mut node = NodeDispatcher::new(EPOCH);
    let (sent, told) = receive(&mut node, 0, &encode(&report(1, 9)));
    let [Message::Command(envelope)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((envelope.command.clone(), envelope.counter), (CommandV1::Resync, 0));
    assert!(told.is_empty(), "a report of an unknown boot is not taken");
    assert!(receive(&mut node, 4, &encode(&heartbeat(1, 0, 0))).0.is_empty());
    assert_eq!(receive(&mut node, 5, &encode(&heartbeat(1, 0, 0))).0.len(), 1);
    assert_eq!(node.last_seen(), Some(at(5)));
}

#[test]
fn a_cloned_identity_is_found_and_gets_nothing_for_a_while() {
    let mut node = connected();
    let mut found = None;
    for round in 1..=4u32 {
        for boot in [2, 1] {
            let (sent, told) =
                receive(&mut node, u64::from(round), &encode(&hello(boot, round + 1, EPOCH, 10)));
            if told.iter().any(|output| matches!(output, Output::Finding(_))) {
                assert!(sent.is_empty());
                found.get_or_insert(round);
            }
        }
    }
    assert_eq!(found, Some(2), "the second return settles it");
    node.set(&set(11, &[])).unwrap();
    assert!(work(&mut node, 5).0.is_empty());
    assert_eq!(node.command(CommandV1::ReportAll), Err(NotConnected));
    // One of them was taken away: after the pause the other is served again.
    let (sent, _) = receive(&mut node, 400, &encode(&hello(1, 9, EPOCH, 10)));
    assert!(matches!(sent.as_slice(), [Message::Delta(_)]), "{sent:?}");
}

#[test]
fn a_node_that_is_ahead_or_speaks_another_version_is_a_finding() {
    let mut node = connected();
    let (sent, told) = receive(&mut node, 1, &encode(&hello(1, 2, EPOCH, 99)));
    assert!(sent.is_empty());
    assert!(told.contains(&Output::Finding(Finding::Ahead { node: 99, master: 10 })));

    let newer = HelloV1 { proto_min: 2, proto_max: 3, ..hello(2, 1, EPOCH, 10) };
    let (sent, told) = receive(&mut node, 2, &encode(&newer));
    assert!(sent.is_empty());
    assert_eq!(told, [Output::Finding(Finding::Version { min: 2, max: 3 })]);
}

#[test]
fn a_will_counts_only_for_the_connection_it_was_left_on() {
    let mut node = connected();
    let will = |boot: u8, conn_seq| encode(&GoneV1 { boot_id: [boot; 16], conn_seq });
    for late in [will(1, 0), will(2, 1)] {
        assert!(receive(&mut node, 1, &late).1.is_empty());
        assert!(node.is_connected());
    }
    assert_eq!(receive(&mut node, 1, &will(1, 1)).1, [Output::Gone]);
    assert!(!node.is_connected());
}

#[test]
fn what_a_node_must_not_send_is_refused() {
    let mut node = connected();
    let error = node.receive(at(1), &encode(&set(1, &[]))).unwrap_err();
    assert_eq!(error, ReceiveError::Direction(Kind::Snapshot));
    assert!(matches!(node.receive(at(1), b"garbage"), Err(ReceiveError::Envelope(_))));
    assert!(node.is_connected());
}

#[test]
fn a_node_is_lost_after_one_and_a_half_heartbeats() {
    for (text, heartbeat_s, lost_after_s) in
        [("lan", 10, 15), ("wan", 60, 90), ("cellular", 300, 450)]
    {
        let profile = Profile::parse(text).unwrap();
        assert_eq!((profile.heartbeat_s(), profile.lost_after()), (heartbeat_s, at(lost_after_s)));
    }
    assert_eq!(Profile::parse("LAN"), None);
}

#[test]
fn tokens_go_to_the_boot_that_asked_for_them() {
    use wire::account::{PODS_MAX, PodTokensV1, TokensV1, TokensWantedV1};
    let mut node = connected();
    let boot_id = hello(1, 1, EPOCH, 10).boot_id;
    let pods = vec![[1; 16]; PODS_MAX + 1];
    let asked = encode(&TokensWantedV1 { boot_id, pods: pods.clone() });
    let wanted = Output::Tokens { boot_id, pods: pods[1..].to_vec() };
    assert_eq!(receive(&mut node, 1, &asked), (Vec::new(), vec![wanted]));
    let made = vec![PodTokensV1 { pod: [1; 16], tokens: vec![], problem: "none".into() }];
    node.tokens_made([0xee; 16], made.clone());
    node.tokens_made(boot_id, Vec::new());
    assert_eq!(work(&mut node, 1), (Vec::new(), Vec::new()));
    node.tokens_made(boot_id, made.clone());
    let expected = Message::Tokens(TokensV1 { boot_id, pods: made.clone() });
    assert_eq!(work(&mut node, 1).0, [expected]);
    // A node that has not said hello is asked to, and one that is gone gets nothing.
    node.disconnected();
    node.tokens_made(boot_id, made);
    let (sent, told) = receive(&mut node, 2, &asked);
    assert!(told.is_empty() && matches!(sent.as_slice(), [Message::Command(_)]), "{sent:?}");
}
