//! The fleet as the scheduler knows it: nodes, what runs on them, and the
//! decision for one more pod.
//!
//! Kept up to date piece by piece; a decision visits every node once and does
//! a few multiplications there. What does not depend on the pods that run (the
//! filters of [`crate::filter::fixed`], taints and images in the score) is
//! remembered per [`Demand`] and node, and worked out again when the node
//! changes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::demand::Demand;
use crate::filter::{self, Rejection};
use crate::node::Node;
use crate::resources::Resources;
use crate::score::{self, Scale};
use crate::volumes::Claims;

/// Most demands whose fixed part is remembered.
const CLASSES_MAX: usize = 256;

/// The outcome for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Bind the pod to this node.
    Bind(Arc<str>),
    /// No node can run it: every node by name, with the reasons.
    Unschedulable(Vec<(Arc<str>, Vec<Rejection>)>),
}

/// Nodes, and the pods that are bound or about to be.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, usize>,
    pods: HashMap<Arc<str>, Placed>,
    owners: HashMap<Arc<str>, HashMap<usize, u32>>,
    classes: HashMap<usize, Class>,
    versions: u64,
}

/// A node and what is taken on it. A pod may be seen before its node: then the
/// slot has no node yet.
#[derive(Debug)]
struct Slot {
    name: Arc<str>,
    node: Option<Node>,
    /// Changes with the node, so that what was remembered about it is dropped.
    version: u64,
    scale: Scale,
    used: Resources,
    /// What runs there as the score counts it.
    counted: (u64, u64),
    n_pods: u64,
}

#[derive(Debug)]
struct Placed {
    slot: usize,
    demand: Arc<Demand>,
    owner: Option<Arc<str>>,
}

/// The fixed part of one demand, by slot.
#[derive(Debug)]
struct Class {
    /// Keeps the address, which is the key, from being given to another demand.
    demand: Arc<Demand>,
    verdicts: Vec<Verdict>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Verdict {
    version: u64,
    allowed: bool,
    score: u64,
}

impl Snapshot {
    /// A fleet without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of nodes.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.slots.iter().filter(|slot| slot.node.is_some()).count()
    }

    /// Adds a node or changes it. Returns whether anything about it changed.
    pub fn set_node(&mut self, node: Node) -> bool {
        let at = self.slot(&node.name);
        if self.slots[at].node.as_ref() == Some(&node) {
            return false;
        }
        self.versions += 1;
        let slot = &mut self.slots[at];
        slot.version = self.versions;
        slot.scale = Scale::new(&node.allocatable);
        slot.node = Some(node);
        true
    }

    /// Forgets a node. Its pods stay counted in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(&at) = self.by_name.get(name) {
            self.versions += 1;
            self.slots[at].version = self.versions;
            self.slots[at].node = None;
        }
    }

    /// Counts a pod on a node, bound or assumed. Told again, it moves.
    pub fn place(
        &mut self,
        uid: &Arc<str>,
        node: &Arc<str>,
        demand: &Arc<Demand>,
        owner: Option<&Arc<str>>,
    ) {
        let at = self.slot(node);
        if let Some(placed) = self.pods.get(uid)
            && placed.slot == at
            && Arc::ptr_eq(&placed.demand, demand)
        {
            return;
        }
        self.remove_pod(uid);
        let slot = &mut self.slots[at];
        slot.used.add(&demand.requests);
        let counted = score::counted(&demand.requests);
        slot.counted = (slot.counted.0 + counted.0, slot.counted.1 + counted.1);
        slot.n_pods += 1;
        if let Some(owner) = owner {
            *self.owners.entry(Arc::clone(owner)).or_default().entry(at).or_insert(0) += 1;
        }
        let placed = Placed { slot: at, demand: Arc::clone(demand), owner: owner.cloned() };
        self.pods.insert(Arc::clone(uid), placed);
    }

    /// Counts a pod no longer. Returns whether it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(placed) = self.pods.remove(uid) else {
            return false;
        };
        let slot = &mut self.slots[placed.slot];
        slot.used.subtract(&placed.demand.requests);
        let counted = score::counted(&placed.demand.requests);
        slot.counted = (slot.counted.0 - counted.0, slot.counted.1 - counted.1);
        slot.n_pods -= 1;
        if let Some(owner) = placed.owner
            && let Some(nodes) = self.owners.get_mut(&owner)
        {
            if let Some(n_pods) = nodes.get_mut(&placed.slot) {
                *n_pods -= 1;
                if *n_pods == 0 {
                    nodes.remove(&placed.slot);
                }
            }
            if nodes.is_empty() {
                self.owners.remove(&owner);
            }
        }
        true
    }

    /// The node a pod is counted on.
    #[must_use]
    pub fn node_of(&self, uid: &str) -> Option<&Arc<str>> {
        self.pods.get(uid).map(|placed| &self.slots[placed.slot].name)
    }

    /// What is taken on a node, and the number of pods there.
    #[must_use]
    pub fn used(&self, node: &str) -> (Resources, u64) {
        match self.by_name.get(node) {
            Some(&at) => (self.slots[at].used.clone(), self.slots[at].n_pods),
            None => (Resources::default(), 0),
        }
    }

    /// Chooses a node for one more pod of `owner`. Changes nothing but what is
    /// remembered to be quicker: the caller tells with [`Snapshot::place`] that
    /// the pod is bound.
    pub fn schedule(&mut self, demand: &Arc<Demand>, owner: Option<&str>) -> Decision {
        self.schedule_with(demand, owner, &Claims::default())
    }

    /// As [`Snapshot::schedule`], for a pod with persistent volumes.
    pub fn schedule_with(
        &mut self,
        demand: &Arc<Demand>,
        owner: Option<&str>,
        claims: &Claims,
    ) -> Decision {
        let key = Arc::as_ptr(demand).addr();
        if self.classes.len() >= CLASSES_MAX && !self.classes.contains_key(&key) {
            self.classes.clear();
        }
        let class = self
            .classes
            .entry(key)
            .or_insert_with(|| Class { demand: Arc::clone(demand), verdicts: Vec::new() });
        debug_assert!(Arc::ptr_eq(&class.demand, demand), "the class keeps its demand alive");
        class.verdicts.resize(self.slots.len(), Verdict::default());
        let siblings = owner.and_then(|owner| self.owners.get(owner));
        let most = siblings.and_then(|nodes| nodes.values().max()).copied().unwrap_or(0);
        let asked = score::counted(&demand.requests);

        let mut best: Option<(u64, usize)> = None;
        for (at, (slot, verdict)) in self.slots.iter().zip(&mut class.verdicts).enumerate() {
            if verdict.version != slot.version {
                *verdict = slot.verdict(demand);
            }
            let Some(node) = slot.node.as_ref().filter(|_| verdict.allowed) else {
                continue;
            };
            if !filter::fits(demand, node, &slot.used, slot.n_pods) {
                continue;
            }
            if claims.choose(node).is_err() {
                continue;
            }
            let mut score = verdict.score + slot.scale.resources(slot.counted, asked);
            if let Some(siblings) = siblings {
                let here = siblings.get(&at).copied().unwrap_or(0);
                score += score::spread(here, most);
            }
            let better = match best {
                None => true,
                Some((most, other)) => {
                    score > most || (score == most && slot.name < self.slots[other].name)
                }
            };
            if better {
                best = Some((score, at));
            }
        }
        match best {
            Some((_, at)) => Decision::Bind(Arc::clone(&self.slots[at].name)),
            None => Decision::Unschedulable(self.rejections(demand, claims)),
        }
    }

    /// Why each node cannot run a pod, by name of the node.
    fn rejections(&self, demand: &Demand, claims: &Claims) -> Vec<(Arc<str>, Vec<Rejection>)> {
        let mut rejections: Vec<(Arc<str>, Vec<Rejection>)> = Vec::new();
        for slot in &self.slots {
            let Some(node) = &slot.node else { continue };
            let mut reasons = match filter::fixed(demand, node) {
                Some(reason) => vec![reason],
                None => filter::short(demand, node, &slot.used, slot.n_pods),
            };
            if reasons.is_empty() {
                reasons.extend(claims.choose(node).err());
            }
            rejections.push((Arc::clone(&slot.name), reasons));
        }
        rejections.sort_by(|a, b| a.0.cmp(&b.0));
        rejections
    }

    fn slot(&mut self, name: &Arc<str>) -> usize {
        if let Some(&at) = self.by_name.get(name) {
            return at;
        }
        self.versions += 1;
        let fresh = Slot {
            name: Arc::clone(name),
            node: None,
            version: self.versions,
            scale: Scale::default(),
            used: Resources::default(),
            counted: (0, 0),
            n_pods: 0,
        };
        // A slot that nothing refers to any more is used again.
        let empty = self.slots.iter().position(|slot| slot.node.is_none() && slot.n_pods == 0);
        let at = match empty {
            Some(at) => {
                self.by_name.remove(&self.slots[at].name);
                self.slots[at] = fresh;
                at
            }
            None => {
                self.slots.push(fresh);
                self.slots.len() - 1
            }
        };
        self.by_name.insert(Arc::clone(name), at);
        at
    }
}

impl Slot {
    fn verdict(&self, demand: &Demand) -> Verdict {
        let Some(node) = &self.node else {
            return Verdict { version: self.version, allowed: false, score: 0 };
        };
        Verdict {
            version: self.version,
            allowed: filter::fixed(demand, node).is_none(),
            score: score::fixed(demand, node),
        }
    }
}
