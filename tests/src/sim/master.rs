//! The master: what is in its store, and the dispatcher, which comes and goes.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use dispatch::Dispatcher;
use dispatch::node::{Finding, Output};
use wire::command::{CommandV1, LogsV1, StreamV1};
use wire::envelope::{Decoded, Message, decode};
use wire::pod::{KeysV1, PodV1, SourceV1};
use wire::set::{BodyV1, ItemV1, NodeConfigV1, SnapshotV1};
use wire::status::{PodStatusV1, ReportV1};
use wire::topic::Channel;
use wire::{Epoch, Uid};

use super::ledger::Ledger;
use super::rng::Rng;

/// Longest time to store a report.
const STORE_MS_MAX: u64 = 8_000;
/// How far a restore jumps, as `pinnace backup restore` does.
const RESTORE_JUMP: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct Master {
    pub(crate) store: Store,
    backup: Option<Store>,
    pub(crate) dispatcher: Option<Dispatcher>,
    /// Reports being stored: a crash loses them.
    storing: Vec<(u64, String, ReportV1)>,
    pub(crate) start_at: u64,
    /// Bytes of an item that make sets too large for one packet; 0 for none.
    large_bytes: usize,
}

/// What survives the master.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) epoch: Epoch,
    pub(crate) revision: u64,
    pub(crate) nodes: BTreeMap<String, NodeState>,
    /// What every node is told: Services, with their generations.
    pub(crate) services: BTreeMap<Uid, u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) pods: BTreeMap<Uid, Desired>,
    pub(crate) statuses: BTreeMap<Uid, PodStatusV1>,
}

#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) generation: u64,
    pub(crate) leaving: bool,
}

/// What goes to a node.
pub(crate) struct ToNode {
    pub(crate) node: String,
    pub(crate) channel: Channel,
    pub(crate) bytes: Vec<u8>,
}

impl Master {
    pub(crate) fn new(epoch: Epoch, nodes: &[String], large_bytes: usize) -> Self {
        let nodes = nodes.iter().map(|name| (name.clone(), NodeState::default())).collect();
        Self {
            store: Store { epoch, revision: 1, nodes, services: BTreeMap::new() },
            backup: None,
            dispatcher: None,
            storing: Vec::new(),
            start_at: 0,
            large_bytes,
        }
    }

    pub(crate) fn start(&mut self, ledger: &mut Ledger) {
        self.dispatcher = Some(Dispatcher::new(self.store.epoch));
        for node in self.store.nodes.keys().cloned().collect::<Vec<_>>() {
            self.lower(&node, ledger);
        }
        self.lower_common(ledger);
    }

    pub(crate) fn kill(&mut self) {
        self.dispatcher = None;
        self.storing.clear();
    }

    pub(crate) fn back_up(&mut self) {
        self.backup = Some(self.store.clone());
    }

    /// Goes back to the backup, where there is one, under a new epoch.
    pub(crate) fn restore(&mut self, rng: &mut Rng) {
        let Some(backup) = self.backup.clone() else { return };
        self.store = backup;
        self.store.epoch = Epoch::from(rng.next()) << 64 | Epoch::from(rng.next());
        self.store.revision += RESTORE_JUMP;
    }

    /// Adds, changes or removes a pod of a node.
    pub(crate) fn change_a_set(&mut self, rng: &mut Rng, node: &str, ledger: &mut Ledger) {
        self.store.revision += 1 + rng.below(3);
        let revision = self.store.revision;
        let Some(state) = self.store.nodes.get_mut(node) else { return };
        let picked = state.pods.len().max(1) as u64;
        let picked = usize::try_from(rng.below(picked)).unwrap();
        let picked = state.pods.keys().nth(picked).copied();
        match (rng.below(6), picked) {
            (0, Some(uid)) => {
                // Gone at once, as after a forced deletion.
                state.pods.remove(&uid);
                state.statuses.remove(&uid);
            }
            (1, Some(uid)) => {
                if let Some(pod) = state.pods.get_mut(&uid).filter(|pod| !pod.leaving) {
                    *pod = Desired { generation: revision, leaving: true };
                }
            }
            (2, Some(uid)) => {
                if let Some(pod) = state.pods.get_mut(&uid).filter(|pod| !pod.leaving) {
                    pod.generation = revision;
                }
            }
            _ if state.pods.len() < 6 => {
                state.pods.insert(rng.uid(), Desired { generation: revision, leaving: false });
            }
            _ => {}
        }
        self.lower(node, ledger);
    }

    /// Adds, changes or removes a Service, of which every node is told.
    pub(crate) fn change_the_network(&mut self, rng: &mut Rng, ledger: &mut Ledger) {
        self.store.revision += 1 + rng.below(3);
        let (revision, services) = (self.store.revision, &mut self.store.services);
        let picked = usize::try_from(rng.below(services.len().max(1) as u64)).unwrap();
        let picked = services.keys().nth(picked).copied();
        match (rng.below(3), picked) {
            (0, Some(uid)) => {
                services.remove(&uid);
            }
            (1, Some(uid)) => {
                services.insert(uid, revision);
            }
            _ if services.len() < 6 => {
                services.insert(rng.uid(), revision);
            }
            _ => {}
        }
        self.lower_common(ledger);
    }

    /// Sends a command; where the node is away it is not sent at all.
    pub(crate) fn command(&mut self, rng: &mut Rng, node: &str) {
        let Some(dispatcher) = &mut self.dispatcher else { return };
        let stream = StreamV1::Logs(LogsV1::default());
        let _away = dispatcher.command(node, CommandV1::OpenStream { ticket: rng.uid(), stream });
    }

    /// Lets the dispatcher do what is due; returns what it sends.
    pub(crate) fn work(&mut self, rng: &mut Rng, now_ms: u64, ledger: &mut Ledger) -> Vec<ToNode> {
        let mut sent = Vec::new();
        let stored: Vec<_> = self.storing.extract_if(.., |(at, ..)| *at <= now_ms).collect();
        for (_, node, report) in stored {
            self.store_report(&node, &report, ledger);
        }
        let now = Duration::from_millis(now_ms);
        let Some(dispatcher) = &mut self.dispatcher else { return sent };
        for (node, output) in dispatcher.poll(now) {
            match output {
                Output::Send { channel, bytes } => {
                    if let Ok(Decoded::Message(Message::ReportAck(ack))) = decode(&bytes) {
                        ledger.check_acknowledged(ack.boot_id, ack.seq);
                    }
                    sent.push(ToNode { node: node.to_string(), channel, bytes });
                }
                Output::Report(report) => {
                    // A node's reports are stored in the order they come.
                    let before = self.storing.iter().filter(|(_, name, _)| **name == *node);
                    let last = before.map(|(at, ..)| *at).max().unwrap_or(0);
                    let at = last.max(now_ms + rng.below(STORE_MS_MAX));
                    self.storing.push((at, node.to_string(), report));
                }
                Output::Finding(finding) => {
                    // No simulated board is cloned, and no store goes back unseen.
                    let broken = !matches!(finding, Finding::TooLarge(_));
                    ledger.check(!broken, || format!("{node}: {finding}"));
                }
                Output::Hello(_) | Output::Applied { .. } | Output::Gone => {}
                Output::Tokens { .. } => panic!("no pod of the simulation wants tokens"),
            }
        }
        sent
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        let due = self.dispatcher.as_ref()?.next_due();
        let due = due.map(|due| u64::try_from(due.as_millis()).unwrap());
        let stored = self.storing.iter().map(|(at, ..)| *at).min();
        [due, stored].into_iter().flatten().min()
    }

    pub(crate) fn n_storing(&self) -> usize {
        self.storing.len()
    }

    fn store_report(&mut self, node: &str, report: &ReportV1, ledger: &mut Ledger) {
        let Some(state) = self.store.nodes.get_mut(node) else { return };
        if report.full {
            state.statuses.retain(|uid, _| report.pods.iter().any(|pod| pod.uid == *uid));
        }
        let mut changed = false;
        for status in &report.pods {
            let Some(pod) = state.pods.get(&status.uid) else { continue };
            if status.terminated && pod.leaving {
                // Stopped and cleaned up: the Pod object may go.
                state.pods.remove(&status.uid);
                state.statuses.remove(&status.uid);
                changed = true;
            } else {
                state.statuses.insert(status.uid, status.clone());
            }
        }
        ledger.stored(report.boot_id, report.seq);
        if changed {
            self.store.revision += 1;
            self.lower(node, ledger);
        }
        if let Some(dispatcher) = &mut self.dispatcher {
            dispatcher.report_stored(node, report.boot_id, report.seq);
        }
    }

    /// Turns what is stored into the node's set.
    fn lower(&mut self, node: &str, ledger: &mut Ledger) {
        let (epoch, revision) = (self.store.epoch, self.store.revision);
        let items = self.own_items(node);
        let Some(dispatcher) = &mut self.dispatcher else { return };
        match dispatcher.set(node, &SnapshotV1 { epoch, revision, items }) {
            Ok(_) => self.record(node, ledger),
            Err(error) => ledger.check(false, || format!("{node}: {error}")),
        }
    }

    /// Turns what is stored into what every node is told.
    fn lower_common(&mut self, ledger: &mut Ledger) {
        let (items, revision) = (self.common_items(), self.store.revision);
        let Some(dispatcher) = &mut self.dispatcher else { return };
        if let Err(error) = dispatcher.set_common(&items, revision) {
            ledger.check(false, || format!("common items: {error}"));
        }
        for node in self.store.nodes.keys() {
            self.record(node, ledger);
        }
    }

    /// Writes down what the node's set is now.
    fn record(&self, node: &str, ledger: &mut Ledger) {
        let known = self.dispatcher.as_ref().and_then(|dispatcher| dispatcher.node(node));
        let Some(revision) = known.map(dispatch::NodeDispatcher::revision) else { return };
        let items = [self.own_items(node), self.common_items()].concat();
        ledger.made(node, &SnapshotV1 { epoch: self.store.epoch, revision, items });
    }

    fn own_items(&self, node: &str) -> Vec<ItemV1> {
        let mut items = vec![config()];
        if self.large_bytes > 0 {
            items.push(large(self.large_bytes));
        }
        let pods = self.store.nodes.get(node).into_iter().flat_map(|state| &state.pods);
        items.extend(pods.map(|(uid, pod)| item(*uid, pod)));
        items
    }

    fn common_items(&self) -> Vec<ItemV1> {
        let service = |(uid, generation): (&Uid, &u64)| ItemV1 {
            uid: *uid,
            generation: *generation,
            body: BodyV1::Service(Box::default()),
        };
        self.store.services.iter().map(service).collect()
    }
}

fn config() -> ItemV1 {
    let config = NodeConfigV1 {
        pod_cidr: "10.42.0.0/24".into(),
        heartbeat_s: 10,
        artifact_key: [0; 32],
        hold_unknown: false,
        image_policies: Vec::new(),
        prepull: Vec::new(),
        remove_volumes: Vec::new(),
        cluster: wire::network::ClusterV1::default(),
        ext: Vec::new(),
    };
    ItemV1 { uid: [0; 16], generation: 1, body: BodyV1::Node(config) }
}

/// Bytes that do not deflate, so that the set goes in parts.
fn large(n_bytes: usize) -> ItemV1 {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = NOISE.get_or_init(|| {
        let mut noise = Rng::new(1);
        std::iter::repeat_with(|| noise.next().to_be_bytes()[0]).take(n_bytes).collect()
    });
    let keys = KeysV1 {
        namespace: "default".into(),
        source: SourceV1::Secret("large".into()),
        data: vec![("key".into(), bytes.clone())],
        ext: Vec::new(),
    };
    ItemV1 { uid: [0xff; 16], generation: 1, body: BodyV1::Keys(keys) }
}

fn item(uid: Uid, pod: &Desired) -> ItemV1 {
    let body =
        PodV1 { deletion_grace_s: pod.leaving.then_some(0), ..PodV1::new(uid, "default", "pod") };
    ItemV1 { uid, generation: pod.generation, body: BodyV1::Pod(Box::new(body)) }
}
