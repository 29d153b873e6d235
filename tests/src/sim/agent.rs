//! A board: what is on its disk, the pods that run on it, and the agent, which
//! comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use edge_agent::node::{Node, Output};
use wire::command::CommandV1;
use wire::node::NodeInfoV1;
use wire::set::{BodyV1, SnapshotV1};
use wire::status::{PhaseV1, PodStatusV1};
use wire::topic::Channel;
use wire::{Epoch, Uid};

use super::ledger::{Ledger, pods_of};
use super::rng::Rng;

/// Longest time to store a set durably.
const STORE_MS_MAX: u64 = 3_000;

#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) name: String,
    pub(crate) disk: Disk,
    /// The pods that run: they outlive the agent, but not the disk.
    pub(crate) pods: BTreeMap<Uid, Pod>,
    pub(crate) agent: Option<Agent>,
    /// Which connection stands, as the board sees it.
    pub(crate) connection: Option<u64>,
    pub(crate) connect_at: u64,
    pub(crate) start_at: u64,
    /// Nothing passes until then.
    pub(crate) partition_until: u64,
    /// (uid, generation) started since the disk was new, and not stopped by a set since.
    started: BTreeSet<(Uid, u64)>,
    pub(crate) n_starts: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) set: Option<Arc<SnapshotV1>>,
    /// Pods that were stopped on request, until no set names them any more.
    pub(crate) terminated: BTreeMap<Uid, PodStatusV1>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) generation: u64,
    pub(crate) change: u64,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) node: Node,
    /// A set being written to the disk, and when it will be there.
    storing: Option<(u64, Arc<SnapshotV1>)>,
}

impl Board {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            disk: Disk::default(),
            pods: BTreeMap::new(),
            agent: None,
            connection: None,
            connect_at: 0,
            start_at: 0,
            partition_until: 0,
            started: BTreeSet::new(),
            n_starts: 0,
        }
    }

    /// The agent starts: it finds the pods that run, and the set on its disk.
    pub(crate) fn start(&mut self, rng: &mut Rng, ledger: &mut Ledger) {
        let boot_id = rng.uid();
        let mut node = Node::new(boot_id, self.disk.set.clone(), NodeInfoV1::default());
        // A crash between storing a set and making it so is mended here.
        self.reconcile(ledger);
        node.statuses_changed(self.statuses());
        node.running(self.running());
        self.agent = Some(Agent { node, storing: None });
    }

    /// The agent is killed; its pods, and what is on disk, stay.
    pub(crate) fn kill(&mut self) {
        self.agent = None;
        self.connection = None;
    }

    /// The board gets a new disk: everything on it is gone.
    pub(crate) fn lose_disk(&mut self) {
        self.kill();
        self.disk = Disk::default();
        self.pods.clear();
        self.started.clear();
    }

    pub(crate) fn applied(&self) -> (Epoch, u64) {
        self.disk.set.as_ref().map_or((0, 0), |set| (set.epoch, set.revision))
    }

    pub(crate) fn running(&self) -> Vec<(Uid, u64)> {
        self.pods.iter().map(|(uid, pod)| (*uid, pod.generation)).collect()
    }

    pub(crate) fn statuses(&self) -> Vec<PodStatusV1> {
        let running = self.pods.iter().map(|(uid, pod)| status(uid, pod, false));
        running.chain(self.disk.terminated.values().cloned()).collect()
    }

    /// Something happens to a pod.
    pub(crate) fn change_a_pod(&mut self, rng: &mut Rng) {
        let Some(agent) = &mut self.agent else { return };
        if self.pods.is_empty() {
            return;
        }
        let at = usize::try_from(rng.below(self.pods.len() as u64)).unwrap();
        if let Some((uid, pod)) = self.pods.iter_mut().nth(at) {
            pod.change += 1;
            agent.node.statuses_changed(vec![status(uid, pod, false)]);
        }
    }

    /// Lets the agent do what is due; returns what it sends.
    pub(crate) fn work(
        &mut self,
        rng: &mut Rng,
        now_ms: u64,
        ledger: &mut Ledger,
    ) -> Vec<(Channel, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let Some(agent) = &mut self.agent else { return sent };
            let stored = agent.storing.take_if(|(at, _)| *at <= now_ms);
            if let Some((_, set)) = stored {
                self.store(set, ledger);
                continue;
            }
            let outputs = agent.node.poll(Duration::from_millis(now_ms));
            if outputs.is_empty() {
                return sent;
            }
            for output in outputs {
                match output {
                    Output::Send { channel, bytes } => sent.push((channel, bytes)),
                    // A newer set replaces one that is still being written.
                    Output::Apply(set) => {
                        agent.storing = Some((now_ms + rng.below(STORE_MS_MAX), set));
                    }
                    Output::Command(CommandV1::OpenStream { ticket, .. }) => {
                        ledger.executed(&self.name, ticket);
                    }
                    Output::Tokens(_) => panic!("no pod of the simulation wants tokens"),
                    Output::Command(other) => panic!("{other:?} is the node's own"),
                }
            }
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        let agent = self.agent.as_ref()?;
        let due = agent.node.next_due().map(|due| u64::try_from(due.as_millis()).unwrap());
        [due, agent.storing.as_ref().map(|(at, _)| *at)].into_iter().flatten().min()
    }

    /// The set is on the disk now: make it so.
    fn store(&mut self, set: Arc<SnapshotV1>, ledger: &mut Ledger) {
        let (before, after) = (self.applied(), (set.epoch, set.revision));
        ledger.check(before.0 != after.0 || before.1 < after.1, || {
            format!("{}: revision went back from {before:?} to {after:?}", self.name)
        });
        ledger.check_applied(&self.name, &set);
        self.disk.set = Some(set);
        self.reconcile(ledger);
        let statuses = self.statuses();
        let running = self.running();
        let Some(agent) = &mut self.agent else { return };
        agent.node.applied(after.0, after.1);
        agent.node.statuses_changed(statuses);
        agent.node.running(running);
    }

    /// Starts and stops pods until they are what the set on disk says. A pod whose
    /// uid and generation match is left alone.
    fn reconcile(&mut self, ledger: &mut Ledger) {
        let Some(set) = &self.disk.set else { return };
        let wanted = pods_of(set);
        let mut leaving = BTreeSet::new();
        for item in &set.items {
            if let BodyV1::Pod(pod) = &item.body
                && pod.deletion_grace_s.is_some()
            {
                leaving.insert(item.uid);
            }
        }
        self.disk.terminated.retain(|uid, _| wanted.contains_key(uid));
        let gone: Vec<Uid> = self
            .pods
            .iter()
            .filter(|(uid, pod)| {
                leaving.contains(*uid) || wanted.get(*uid) != Some(&pod.generation)
            })
            .map(|(uid, _)| *uid)
            .collect();
        for uid in gone {
            if let Some(pod) = self.pods.remove(&uid) {
                self.started.remove(&(uid, pod.generation));
            }
        }
        for (uid, generation) in wanted {
            if leaving.contains(&uid) {
                let pod = Pod { generation, change: 0 };
                self.disk.terminated.insert(uid, status(&uid, &pod, true));
            } else if !self.pods.contains_key(&uid) {
                let first = self.started.insert((uid, generation));
                ledger.check(first, || {
                    format!("{}: pod {uid:?} of generation {generation} started twice", self.name)
                });
                self.n_starts += 1;
                self.disk.terminated.remove(&uid);
                self.pods.insert(uid, Pod { generation, change: 0 });
            }
        }
    }
}

fn status(uid: &Uid, pod: &Pod, terminated: bool) -> PodStatusV1 {
    PodStatusV1 {
        generation: pod.generation,
        phase: if terminated { PhaseV1::Succeeded } else { PhaseV1::Running },
        message: format!("change {}", pod.change),
        terminated,
        ..PodStatusV1::new(*uid, "default", "pod")
    }
}
