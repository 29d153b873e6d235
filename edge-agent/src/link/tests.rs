//! The driver against a scripted connection, in virtual time.

use std::sync::Mutex;

use wire::envelope::{Decoded, Message, decode, encode};
use wire::node::UpToDateV1;
use wire::status::PhaseV1;

use super::*;

/// The far end of each connection the driver opens.
struct FarEnd {
    events: mpsc::Sender<LinkEvent>,
    messages: mpsc::Receiver<(Channel, Vec<u8>)>,
    will: Vec<u8>,
    keep_alive: Duration,
}

#[derive(Clone)]
struct Script {
    opened: mpsc::Sender<FarEnd>,
    attempts: Arc<Mutex<Vec<usize>>>,
}

impl Link for Script {
    fn open(&self, attempt: usize, will: Vec<u8>, keep_alive: Duration) -> Session {
        let (event_sender, events) = mpsc::channel(8);
        let (messages, message_receiver) = mpsc::channel(8);
        self.attempts.lock().unwrap().push(attempt);
        let end = FarEnd { events: event_sender, messages: message_receiver, will, keep_alive };
        self.opened.try_send(end).unwrap();
        Session { events, messages, tasks: JoinSet::new() }
    }
}

struct Setup {
    handle: LinkHandle,
    outputs: LinkOutputs,
    opened: mpsc::Receiver<FarEnd>,
    attempts: Arc<Mutex<Vec<usize>>>,
    cancel: CancellationToken,
}

fn start() -> Setup {
    let (sender, opened) = mpsc::channel(64);
    let attempts = Arc::default();
    let script = Script { opened: sender, attempts: Arc::clone(&attempts) };
    let node = Node::new([7; 16], None, NodeInfoV1::default());
    let cancel = CancellationToken::new();
    let (handle, outputs, driver) = drive(script, node, cancel.clone());
    tokio::spawn(driver);
    Setup { handle, outputs, opened, attempts, cancel }
}

impl FarEnd {
    async fn up(&self) {
        let endpoint = String::from("127.0.0.1:8883");
        self.events.send(LinkEvent::Up { endpoint }).await.unwrap();
    }

    async fn send(&self, bytes: Vec<u8>) {
        self.events.send(LinkEvent::Message(bytes.into())).await.unwrap();
    }

    async fn next(&mut self) -> Message {
        let (_, bytes) = self.messages.recv().await.expect("the driver runs");
        match decode(&bytes) {
            Ok(Decoded::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }
}

fn status() -> PodStatusV1 {
    PodStatusV1 {
        generation: 1,
        phase: PhaseV1::Running,
        ..PodStatusV1::new([1; 16], "default", "web")
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_goes_to_the_agent_and_its_acknowledgement_to_the_master() {
    let mut setup = start();
    let mut end = setup.opened.recv().await.unwrap();
    end.up().await;
    let Message::Hello(hello) = end.next().await else { panic!("no hello") };
    assert_eq!((hello.conn_seq, hello.info.address.as_str()), (1, "127.0.0.1"));
    assert!(setup.handle.state().borrow().connected);

    let set = SnapshotV1 { epoch: 5, revision: 9, items: Vec::new() };
    end.send(encode(&set)).await;
    setup.outputs.sets.changed().await.unwrap();
    assert_eq!(setup.outputs.sets.borrow().as_deref(), Some(&set));
    setup.handle.applied(5, 9).await;
    let Message::Applied(applied) = end.next().await else { panic!("not applied") };
    assert_eq!((applied.epoch, applied.revision), (5, 9));
    setup.handle.statuses_changed(vec![status()]).await;
    let Message::Report(report) = end.next().await else { panic!("no report") };
    assert_eq!(report.pods, [status()]);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_acknowledged_is_sent_on_the_next_connection() {
    let mut setup = start();
    let mut first = setup.opened.recv().await.unwrap();
    first.up().await;
    first.next().await;
    setup.handle.statuses_changed(vec![status()]).await;
    assert!(matches!(first.next().await, Message::Report(_)));
    assert_ne!(first.will, Vec::<u8>::new());
    first.events.send(LinkEvent::Down("cable pulled".into())).await.unwrap();

    let mut second = setup.opened.recv().await.unwrap();
    let state = setup.handle.state().borrow().clone();
    assert_eq!((state.connected, state.last_error.as_deref()), (false, Some("cable pulled")));
    assert_ne!(first.will, second.will, "the will names its connection");
    second.up().await;
    let Message::Hello(hello) = second.next().await else { panic!("no hello") };
    assert_eq!(hello.conn_seq, 2);
    let Message::Report(report) = second.next().await else { panic!("no report") };
    assert_eq!(report.pods, [status()]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_from_an_address_that_is_gone_is_made_anew() {
    let mut setup = start();
    let mut first = setup.opened.recv().await.unwrap();
    first.up().await;
    first.next().await;
    setup.handle.addresses_gone(vec![[192, 0, 2, 7].into()]).await;
    setup.handle.statuses_changed(vec![status()]).await;
    assert!(matches!(first.next().await, Message::Report(_)), "another's address is nothing to it");
    assert!(setup.handle.state().borrow().connected);

    setup.handle.addresses_gone(vec![[192, 0, 2, 7].into(), [127, 0, 0, 1].into()]).await;
    let mut second = setup.opened.recv().await.unwrap();
    assert!(!setup.handle.state().borrow().connected);
    second.up().await;
    assert!(matches!(second.next().await, Message::Hello(_)));
}

#[tokio::test(start_paused = true)]
async fn failures_are_spread_over_time_and_endpoints() {
    let mut setup = start();
    let began = Instant::now();
    for _attempt in 0..10 {
        let end = setup.opened.recv().await.unwrap();
        end.events.send(LinkEvent::Down("refused".into())).await.unwrap();
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(600), "{took:?}");
    assert_eq!(*setup.attempts.lock().unwrap(), (0..10).collect::<Vec<_>>());
    // The agent is served all the while.
    setup.handle.statuses_changed(vec![status()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_master_that_never_answers_is_given_up_and_dialled_again() {
    let mut setup = start();
    let mut end = setup.opened.recv().await.unwrap();
    end.up().await;
    let mut n_hellos = 0;
    while let Some((_, bytes)) = end.messages.recv().await {
        n_hellos += usize::from(matches!(decode(&bytes), Ok(Decoded::Message(Message::Hello(_)))));
    }
    assert_eq!(n_hellos, 6);
    let mut next = setup.opened.recv().await.unwrap();
    next.up().await;
    next.next().await;
    next.send(encode(&UpToDateV1 { epoch: 0, revision: 0 })).await;
    let quiet = tokio::time::timeout(Duration::from_secs(1000), async {
        while matches!(next.next().await, Message::Heartbeat(_)) {}
    });
    assert!(quiet.await.is_err(), "answered, so only heartbeats follow");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_changes_the_time_between_pings_is_followed_by_one_new_connection() {
    let mut setup = start();
    let mut first = setup.opened.recv().await.unwrap();
    first.up().await;
    first.next().await;
    let config = wire::set::NodeConfigV1 {
        pod_cidr: String::new(),
        heartbeat_s: 300,
        artifact_key: [0; 32],
        hold_unknown: false,
        image_policies: Vec::new(),
        prepull: Vec::new(),
        remove_volumes: Vec::new(),
        cluster: wire::network::ClusterV1::default(),
        ext: wire::Ext::default(),
    };
    let item =
        wire::set::ItemV1 { uid: [1; 16], generation: 1, body: wire::set::BodyV1::Node(config) };
    let set = SnapshotV1 { epoch: 5, revision: 9, items: vec![item] };
    first.send(encode(&set)).await;
    setup.outputs.sets.changed().await.unwrap();
    // It ends in order: the queue is closed, and the connection says when it is done.
    while first.messages.recv().await.is_some() {}
    first.events.send(LinkEvent::Down("done".into())).await.unwrap();

    let mut second = setup.opened.recv().await.unwrap();
    assert_eq!((first.keep_alive.as_secs(), second.keep_alive.as_secs()), (300, 1200));
    second.up().await;
    assert!(matches!(second.next().await, Message::Hello(_)));
    setup.handle.applied(5, 9).await;
    assert!(matches!(second.next().await, Message::Applied(_)));
    assert!(setup.opened.try_recv().is_err(), "once");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_driver_ends_its_connection() {
    let mut setup = start();
    let mut end = setup.opened.recv().await.unwrap();
    end.up().await;
    end.next().await;
    setup.cancel.cancel();
    assert_eq!(end.messages.recv().await, None);
    setup.handle.applied(1, 1).await;
}

#[test]
fn back_off_grows_to_a_minute_and_is_never_nothing() {
    for attempt in 0..100 {
        for random in [0, 1, 12345, u64::MAX] {
            let wait = back_off(attempt, random);
            assert!(wait >= Duration::from_millis(100) && wait <= BACK_OFF_MAX, "{wait:?}");
        }
    }
    assert!(back_off(1, u64::MAX - 1) <= BACK_OFF_FIRST);
    assert!(back_off(20, 0) >= Duration::from_secs(6));
}

#[test]
fn pings_are_rarer_than_heartbeats() {
    for (heartbeat_s, expected_s) in [(1, 30), (10, 50), (60, 300), (300, 1200)] {
        let keep_alive = keep_alive(Duration::from_secs(heartbeat_s));
        assert_eq!(keep_alive, Duration::from_secs(expected_s));
    }
}
