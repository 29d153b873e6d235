//! What [`Node`] promises, message by message; `tests::sim` covers the rest.

use wire::node::PartAckV1;
use wire::part::Split;
use wire::set::NodeConfigV1;
use wire::status::{PhaseV1, ReportAckV1, ReportV1};

use super::*;

const BOOT: Uid = [0xb0; 16];

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn item(uid: u8, generation: u64) -> ItemV1 {
    let config = NodeConfigV1 {
        pod_cidr: String::new(),
        heartbeat_s: 10,
        artifact_key: [0; 32],
        hold_unknown: false,
        image_policies: Vec::new(),
        prepull: Vec::new(),
        remove_volumes: Vec::new(),
        cluster: wire::network::ClusterV1::default(),
        ext: Vec::new(),
    };
    ItemV1 { uid: [uid; 16], generation, body: BodyV1::Node(config) }
}

fn set(epoch: Epoch, revision: u64, uids: &[u8]) -> SnapshotV1 {
    SnapshotV1 { epoch, revision, items: uids.iter().map(|uid| item(*uid, 1)).collect() }
}

fn delta(base_revision: u64, revision: u64, upsert: &[u8], remove: &[u8]) -> DeltaV1 {
    DeltaV1 {
        epoch: 1,
        base_revision,
        revision,
        upsert: upsert.iter().map(|uid| item(*uid, 2)).collect(),
        remove: remove.iter().map(|uid| [*uid; 16]).collect(),
    }
}

fn status(uid: u8, message: &str) -> PodStatusV1 {
    PodStatusV1 {
        generation: 1,
        phase: PhaseV1::Running,
        message: message.into(),
        ..PodStatusV1::new([uid; 16], "default", "pod")
    }
}

/// A node with a set of revision 10 on disk that has said hello at 0 s.
fn connected() -> Node {
    let mut node = Node::new(BOOT, Some(Arc::new(set(1, 10, &[1, 2]))), NodeInfoV1::default());
    node.running(Vec::new());
    node.connected(at(0));
    assert!(matches!(sent(&mut node, 0).as_slice(), [Message::Hello(_)]));
    node
}

fn sent(node: &mut Node, now_s: u64) -> Vec<Message> {
    node.poll(at(now_s))
        .into_iter()
        .filter_map(|output| match output {
            Output::Send { bytes, .. } => match decode(&bytes) {
                Ok(Decoded::Message(message)) => Some(message),
                other => panic!("{other:?}"),
            },
            _ => None,
        })
        .collect()
}

fn applies(node: &mut Node, now_s: u64) -> Option<Arc<SnapshotV1>> {
    node.poll(at(now_s)).into_iter().find_map(|output| match output {
        Output::Apply(set) => Some(set),
        _ => None,
    })
}

fn report(messages: &[Message]) -> &ReportV1 {
    match messages {
        [Message::Report(report)] => report,
        other => panic!("{other:?}"),
    }
}

fn uids(set: &SnapshotV1) -> Vec<u8> {
    set.items.iter().map(|item| item.uid[0]).collect()
}

fn uptodate(node: &mut Node) {
    node.receive(at(0), &encode(&UpToDateV1 { epoch: 1, revision: 10 })).unwrap();
}

#[test]
fn hello_is_repeated_with_back_off_until_it_is_answered() {
    let mut node = connected();
    let mut hellos = Vec::new();
    for now_s in 1..200 {
        if sent(&mut node, now_s).iter().any(|message| matches!(message, Message::Hello(_))) {
            hellos.push(now_s);
        }
    }
    assert_eq!(hellos, [5, 15, 35, 75, 135, 195]);
    uptodate(&mut node);
    assert!((200..400).all(|now_s| {
        sent(&mut node, now_s).iter().all(|message| matches!(message, Message::Heartbeat(_)))
    }));
}

#[test]
fn an_answer_for_another_revision_is_none() {
    let mut node = connected();
    node.receive(at(1), &encode(&UpToDateV1 { epoch: 1, revision: 9 })).unwrap();
    node.receive(at(1), &encode(&UpToDateV1 { epoch: 2, revision: 10 })).unwrap();
    assert!(matches!(sent(&mut node, 5).as_slice(), [Message::Hello(_)]));
}

#[test]
fn heartbeats_follow_the_sets_period() {
    let mut node = connected();
    uptodate(&mut node);
    let beats: Vec<u64> = (1..35).filter(|now_s| !sent(&mut node, *now_s).is_empty()).collect();
    assert_eq!(beats, [10, 20, 30]);
    assert_eq!(node.next_due(), Some(at(40)));
}

#[test]
fn a_set_that_asks_for_more_heartbeats_shortens_the_wait_that_has_begun() {
    let mut node = Node::new(BOOT, None, NodeInfoV1::default());
    node.running(Vec::new());
    node.connected(at(0));
    let is_heartbeat = |message: &Message| matches!(message, Message::Heartbeat(_));
    sent(&mut node, 0);
    node.receive(at(1), &encode(&set(1, 10, &[1]))).unwrap();
    node.applied(1, 10);
    assert!(!sent(&mut node, 9).iter().any(is_heartbeat));
    assert!(sent(&mut node, 10).iter().any(is_heartbeat));
}

#[test]
fn a_set_is_acknowledged_only_once_it_is_stored() {
    let mut node = connected();
    node.receive(at(1), &encode(&set(1, 11, &[3]))).unwrap();
    let apply = applies(&mut node, 1).unwrap();
    assert_eq!(uids(&apply), [3]);
    assert_eq!(node.applied_revision(), (1, 10));
    assert!(sent(&mut node, 2).is_empty());
    node.applied(1, 11);
    let expected = AppliedV1 { epoch: 1, revision: 11, boot_id: BOOT };
    assert_eq!(sent(&mut node, 2), [Message::Applied(expected)]);
    node.receive(at(3), &encode(&set(1, 11, &[3]))).unwrap();
    assert_eq!(sent(&mut node, 3), [Message::Applied(expected)], "the first may be lost");
}

#[test]
fn an_older_set_changes_nothing_and_another_epoch_everything() {
    let mut node = connected();
    node.receive(at(1), &encode(&set(1, 9, &[]))).unwrap();
    node.receive(at(1), &encode(&delta(8, 9, &[], &[1]))).unwrap();
    assert_eq!(applies(&mut node, 1), None);
    node.receive(at(1), &encode(&set(2, 5, &[7]))).unwrap();
    let outputs = node.poll(at(1));
    let [Output::Apply(set), Output::Send { bytes, .. }] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    assert_eq!(uids(set), [7]);
    let Ok(Decoded::Message(message)) = decode(bytes) else { panic!("no message") };
    assert!(report(&[message]).full, "a restored master may have forgotten");
    node.applied(2, 5);
    assert_eq!(node.applied_revision(), (2, 5));
}

#[test]
fn a_late_set_of_a_store_left_behind_changes_nothing_until_the_next_connection() {
    let mut node = connected();
    node.receive(at(1), &encode(&set(2, 5, &[7]))).unwrap();
    node.receive(at(1), &encode(&set(1, 11, &[8]))).unwrap();
    assert_eq!(node.set().unwrap().epoch, 2);
    node.disconnected();
    node.connected(at(2));
    node.receive(at(2), &encode(&set(1, 11, &[8]))).unwrap();
    assert_eq!(node.set().unwrap().epoch, 1, "somebody brought the old store back");
}

#[test]
fn a_delta_applies_only_to_its_base() {
    let mut node = connected();
    uptodate(&mut node);
    node.receive(at(2), &encode(&delta(10, 12, &[2, 3], &[1]))).unwrap();
    let apply = applies(&mut node, 2).unwrap();
    assert_eq!(uids(&apply), [2, 3]);
    assert!(apply.items.iter().all(|item| item.generation == 2));
    node.receive(at(3), &encode(&delta(13, 14, &[9], &[]))).unwrap();
    let messages = node.poll(at(3));
    assert!(
        matches!(messages.as_slice(), [Output::Send { channel: Channel::Report, .. }]),
        "a gap: hello, and no set"
    );
    assert_eq!(node.set().unwrap().revision, 12);
}

#[test]
fn gaps_do_not_make_hellos_faster_than_one_a_second() {
    let mut node = connected();
    for _message in 0..50 {
        node.receive(at(0), &encode(&delta(99, 100, &[], &[]))).unwrap();
        assert!(sent(&mut node, 0).is_empty());
    }
    assert!(matches!(sent(&mut node, 1).as_slice(), [Message::Hello(_)]));
}

#[test]
fn a_large_set_comes_in_parts_and_each_is_acknowledged() {
    let mut node = connected();
    let mut noise = 1u32;
    let mut large = set(1, 11, &[]);
    for uid in 0..40 {
        let bytes = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        });
        let keys = wire::pod::KeysV1 {
            namespace: "default".into(),
            source: wire::pod::SourceV1::Secret("s".into()),
            data: vec![("k".into(), bytes.take(50_000).collect())],
            ext: Vec::new(),
        };
        large.items.push(ItemV1 { uid: [uid; 16], generation: 1, body: BodyV1::Keys(keys) });
    }
    let mut split = Split::new(encode(&large), sha256).unwrap();
    let mut n_parts = 0;
    while let Some(part) = split.next_part() {
        node.receive(at(1), &encode(&part)).unwrap();
        n_parts += 1;
        let outputs = node.poll(at(1));
        for output in outputs {
            match output {
                Output::Send { bytes, .. } => {
                    let Ok(Decoded::Message(Message::PartAck(ack))) = decode(&bytes) else {
                        panic!("not an acknowledgement")
                    };
                    assert_eq!(ack, PartAckV1 { sha256: part.sha256, n_have: n_parts });
                    split.acknowledge(&ack);
                }
                Output::Apply(set) => assert_eq!(*set, large),
                Output::Command(_) | Output::Tokens(_) => panic!("none was sent"),
            }
        }
    }
    assert!(n_parts > 8, "{n_parts} parts");
    assert_eq!(node.set().unwrap().revision, 11);
}

#[test]
fn a_damaged_part_or_a_message_of_a_node_is_refused() {
    let mut node = connected();
    let part = PartV1 { sha256: [0; 32], index: 0, n_parts: 1, bytes: vec![1] };
    assert_eq!(
        node.receive(at(1), &encode(&part)),
        Err(ReceiveError::Damaged { index: 0, n_parts: 1 })
    );
    let bytes = encode(&UpToDateV1 { epoch: 1, revision: 1 });
    let part = PartV1 { sha256: sha256(&bytes), index: 0, n_parts: 1, bytes };
    assert_eq!(node.receive(at(1), &encode(&part)), Err(ReceiveError::Parts(Kind::UpToDate)));
    let gone = encode(&GoneV1 { boot_id: BOOT, conn_seq: 1 });
    assert_eq!(node.receive(at(1), &gone), Err(ReceiveError::Direction(Kind::Gone)));
    assert!(matches!(node.receive(at(1), b"garbage"), Err(ReceiveError::Envelope(_))));
}

#[test]
fn a_command_runs_once_and_only_for_this_boot_and_store() {
    let mut node = connected();
    let open = CommandV1::OpenStream {
        ticket: [1; 16],
        stream: wire::command::StreamV1::Logs(Default::default()),
    };
    let ran = |node: &mut Node, epoch, boot_id, counter| {
        let envelope = CommandEnvelopeV1 { epoch, boot_id, counter, command: open.clone() };
        node.receive(at(1), &encode(&envelope)).unwrap();
        let outputs = node.poll(at(1));
        outputs.iter().filter(|output| matches!(output, Output::Command(_))).count()
    };
    assert_eq!(ran(&mut node, 1, BOOT, 5), 1);
    assert_eq!(ran(&mut node, 1, BOOT, 5), 0, "repeated");
    assert_eq!(ran(&mut node, 1, BOOT, 4), 0, "late");
    assert_eq!(ran(&mut node, 1, [1; 16], 6), 0, "for another boot");
    assert_eq!(ran(&mut node, 2, BOOT, 6), 0, "of another store");
    assert_eq!(ran(&mut node, 1, BOOT, 6), 1);
    let resync =
        CommandEnvelopeV1 { epoch: 9, boot_id: BOOT, counter: 0, command: CommandV1::Resync };
    node.receive(at(2), &encode(&resync)).unwrap();
    let messages = sent(&mut node, 2);
    let [Message::Hello(hello)] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!(hello.command_counter, 6);
}

#[test]
fn a_report_is_sent_until_it_is_acknowledged_and_only_the_newest_status_waits() {
    let mut node = connected();
    uptodate(&mut node);
    node.statuses_changed(vec![status(1, "a")]);
    let messages = sent(&mut node, 1);
    assert_eq!(report(&messages).seq, 1);
    for message in ["b", "c", "d"] {
        node.statuses_changed(vec![status(1, message)]);
    }
    assert!(sent(&mut node, 2).is_empty(), "one at a time");
    let again = sent(&mut node, 11);
    assert_eq!(
        again.iter().find(|message| matches!(message, Message::Report(_))),
        messages.first()
    );
    node.receive(at(12), &encode(&ReportAckV1 { boot_id: [9; 16], seq: 1 })).unwrap();
    node.receive(at(12), &encode(&ReportAckV1 { boot_id: BOOT, seq: 2 })).unwrap();
    assert!(sent(&mut node, 12).is_empty(), "acknowledgements of something else");
    node.receive(at(12), &encode(&ReportAckV1 { boot_id: BOOT, seq: 1 })).unwrap();
    let messages = sent(&mut node, 12);
    assert_eq!(report(&messages).pods, [status(1, "d")]);
    node.receive(at(13), &encode(&ReportAckV1 { boot_id: BOOT, seq: 2 })).unwrap();
    node.statuses_changed(vec![status(1, "d")]);
    assert!(sent(&mut node, 13).is_empty(), "nothing changed");
}

#[test]
fn a_full_report_holds_every_pod_but_those_the_master_knows_are_gone() {
    let mut node = connected();
    uptodate(&mut node);
    let gone = PodStatusV1 { terminated: true, ..status(2, "") };
    node.statuses_changed(vec![status(1, ""), gone, status(3, "")]);
    let messages = sent(&mut node, 1);
    assert_eq!(report(&messages).pods.len(), 3);
    node.receive(at(2), &encode(&ReportAckV1 { boot_id: BOOT, seq: 1 })).unwrap();
    let ask =
        CommandEnvelopeV1 { epoch: 1, boot_id: BOOT, counter: 1, command: CommandV1::ReportAll };
    node.receive(at(3), &encode(&ask)).unwrap();
    let messages = sent(&mut node, 3);
    let report = report(&messages);
    assert!(report.full);
    assert_eq!(report.pods.iter().map(|pod| pod.uid[0]).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn what_the_store_before_acknowledged_is_told_to_the_restored_one() {
    let mut node = connected();
    uptodate(&mut node);
    let gone = PodStatusV1 { terminated: true, ..status(2, "") };
    node.statuses_changed(vec![gone.clone()]);
    assert_eq!(report(&sent(&mut node, 1)).seq, 1);
    node.receive(at(2), &encode(&set(2, 5, &[2]))).unwrap();
    node.receive(at(2), &encode(&ReportAckV1 { boot_id: BOOT, seq: 1 })).unwrap();
    let messages = sent(&mut node, 2);
    let report = report(&messages);
    assert!(report.full && report.seq == 2);
    assert_eq!(report.pods, [gone]);
}

#[test]
fn no_full_report_before_every_status_is_known() {
    let mut node = Node::new(BOOT, Some(Arc::new(set(1, 10, &[]))), NodeInfoV1::default());
    node.connected(at(0));
    node.receive(at(0), &encode(&set(2, 1, &[]))).unwrap();
    assert!(!sent(&mut node, 1).iter().any(|message| matches!(message, Message::Report(_))));
    node.running(Vec::new());
    assert!(sent(&mut node, 1).iter().any(|message| matches!(message, Message::Report(_))));
}

#[test]
fn reports_stay_below_a_packet_whatever_the_pods_say() {
    let mut node = connected();
    uptodate(&mut node);
    let long = "ä".repeat(100_000);
    node.statuses_changed(
        (0..=255)
            .flat_map(|uid| (0..4).map(move |other| (uid, other)))
            .map(|(uid, other)| {
                let mut status = status(uid, "");
                status.uid[1] = other;
                status
            })
            .map(|status| PodStatusV1 { message: long.clone(), ..status })
            .collect(),
    );
    let mut told = 0;
    for seq in 1.. {
        let outputs = node.poll(at(1));
        let Some(Output::Send { bytes, .. }) = outputs.first() else { break };
        let Ok(Decoded::Message(Message::Report(report))) = decode(bytes) else {
            panic!("report {seq} does not read")
        };
        told += report.pods.len();
        node.receive(at(1), &encode(&ReportAckV1 { boot_id: BOOT, seq })).unwrap();
    }
    assert_eq!(told, 1024);
}

#[test]
fn events_wait_for_a_report_and_the_oldest_are_dropped() {
    let mut node = connected();
    uptodate(&mut node);
    for at_ms in 0..100 {
        node.event(EventV1 {
            uid: [0; 16],
            namespace: String::new(),
            name: String::new(),
            container: String::new(),
            warning: false,
            reason: "Pulled".into(),
            message: String::new(),
            at_ms,
        });
    }
    let messages = sent(&mut node, 1);
    let times: Vec<u64> = report(&messages).events.iter().map(|event| event.at_ms).collect();
    assert_eq!(times, (68..100).collect::<Vec<_>>());
}

#[test]
fn a_changed_node_says_so_once_and_keeps_the_address_of_its_link() {
    let mut node = connected();
    uptodate(&mut node);
    node.set_address("10.0.0.7".into());
    let hellos = |node: &mut Node, now_s| -> Vec<NodeInfoV1> {
        let messages = sent(node, now_s).into_iter();
        messages
            .filter_map(
                |message| if let Message::Hello(hello) = message { Some(hello.info) } else { None },
            )
            .collect()
    };
    let info = NodeInfoV1 { os_image: "new".into(), ..NodeInfoV1::default() };
    node.info_changed(at(2), info.clone());
    let told = hellos(&mut node, 10);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].os_image.as_str(), told[0].address.as_str()), ("new", "10.0.0.7"));
    uptodate(&mut node);
    node.info_changed(at(20), info);
    assert_eq!(hellos(&mut node, 21), []);
}

#[test]
fn a_change_after_a_hello_is_told_though_that_one_is_answered() {
    let mut node = connected();
    node.info_changed(at(0), NodeInfoV1 { os_image: "new".into(), ..NodeInfoV1::default() });
    uptodate(&mut node);
    let told: Vec<Message> = sent(&mut node, 5);
    let is_told = |message: &Message| matches!(message, Message::Hello(hello) if hello.info.os_image == "new");
    assert_eq!(told.iter().filter(|message| is_told(message)).count(), 1, "{told:?}");
    uptodate(&mut node);
    assert!(!sent(&mut node, 8).iter().any(is_told));
}

#[test]
fn nothing_is_sent_while_the_link_is_down() {
    let mut node = connected();
    node.disconnected();
    node.statuses_changed(vec![status(1, "a")]);
    node.applied(1, 10);
    assert_eq!(node.poll(at(500)), []);
    assert_eq!(node.next_due(), None);
    node.connected(at(501));
    let messages = sent(&mut node, 501);
    assert!(matches!(messages.as_slice(), [Message::Hello(hello), Message::Report(_)]
        if hello.conn_seq == 2));
}

/// A set with one pod that shows a token.
fn set_with_token(revision: u64, uid: u8) -> SnapshotV1 {
    use wire::pod::{ProjectionV1, VolumeSourceV1, VolumeV1};
    let token =
        ProjectionV1::Token { audience: String::new(), expiration_s: 3607, path: "token".into() };
    let source = VolumeSourceV1::Projected { sources: vec![token], default_mode: 0o644 };
    let mut pod = wire::pod::PodV1::new([uid; 16], "default", "pod");
    pod.volumes = vec![VolumeV1 { name: "api".into(), source }];
    let body = BodyV1::Pod(Box::new(pod));
    SnapshotV1 { epoch: 1, revision, items: vec![ItemV1 { uid: [uid; 16], generation: 1, body }] }
}

#[test]
fn tokens_are_asked_for_with_the_set_that_names_the_pod_and_told_once() {
    let mut node = connected();
    node.receive(at(1), &encode(&set_with_token(11, 3))).unwrap();
    let wanted = Message::TokensWanted(TokensWantedV1 { boot_id: BOOT, pods: vec![[3; 16]] });
    assert_eq!(
        sent(&mut node, 1),
        std::slice::from_ref(&wanted),
        "at once, before the set is stored"
    );
    let token = |text: &str, boot_id| {
        let token = wire::account::TokenV1 {
            audience: String::new(),
            expiration_s: 3607,
            lifetime_s: 3607,
            token: text.into(),
        };
        let pod = wire::account::PodTokensV1 {
            pod: [3; 16],
            tokens: vec![token],
            problem: String::new(),
        };
        encode(&wire::account::TokensV1 { boot_id, pods: vec![pod] })
    };
    let told = |node: &mut Node, now_s| -> Vec<String> {
        let outputs = node.poll(at(now_s)).into_iter();
        outputs
            .filter_map(|output| match output {
                Output::Tokens(table) => {
                    Some(table[&[3; 16]].tokens.values().next().unwrap().clone())
                }
                _ => None,
            })
            .collect()
    };
    node.receive(at(2), &token("of another start", [1; 16])).unwrap();
    assert_eq!(told(&mut node, 2), Vec::<String>::new());
    node.receive(at(2), &token("a", BOOT)).unwrap();
    node.receive(at(2), &token("b", BOOT)).unwrap();
    assert_eq!(told(&mut node, 2), ["a"]);
    // The link goes and comes, and the master's clock jumps.
    node.disconnected();
    node.connected(at(3));
    assert!(!sent(&mut node, 3).contains(&wanted));
    let command = CommandV1::RefreshTokens;
    let refresh = CommandEnvelopeV1 { epoch: 1, boot_id: BOOT, counter: 1, command };
    node.receive(at(4), &encode(&refresh)).unwrap();
    assert_eq!(sent(&mut node, 4), [wanted]);
}
