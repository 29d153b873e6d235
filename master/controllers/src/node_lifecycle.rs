//! What follows when a node is not heard of: it becomes NotReady, is tainted,
//! and its pods are evicted once they have tolerated that for long enough.
//!
//! ```text
//!  heard of ──silent for its grace──► Ready=Unknown ──► taint NoSchedule
//!     ▲                                                     │ one node per 10 s
//!     └── heard of again: taints go, evictions stop ◄── taint NoExecute ──► pods evicted
//! ```
//!
//! - Liveness is how long ago the master heard of the node, by the master's own
//!   monotonic clock ([`NodeLiveness`]); clocks of nodes never matter, and no
//!   timer here depends on the wall clock.
//! - After a start of the master every node counts as just seen, and every
//!   toleration starts anew.
//! - Where at least three nodes, and more than half of all, vanished together,
//!   it is the network: nothing is evicted until most are back.
//! - An evicted pod is marked for deletion. Only its node, or an operator by
//!   force, says that it is gone; its ReplicaSet replaces it at once.

mod evict;
mod mark;
mod plan;
mod profile;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::ObjectKey;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Part, ignore_not_found, kinds, modify,
};
use crate::events::{Involved, Record, Recorder};
use crate::projection::{Node, Pod, Term, intern, labels};
use crate::runner::{Action, Sender};

pub use evict::evict_in;
pub(crate) use mark::NODE_LOST;
pub use plan::{Facts, Pressure, Ready, Step, plan};
pub use profile::Profile;

const COMPONENT: &str = "node-controller";
/// How long the count of silent nodes is used again.
const COUNT_FOR: Duration = Duration::from_millis(500);
/// Fewer silent nodes than this are never a network that broke.
const VANISHED_MIN: usize = 3;

/// How long ago the master heard of a node. Implemented by the master over the link.
pub trait NodeLiveness: Send + Sync + 'static {
    /// Time since the last sign of life, by a monotonic clock; `None` where
    /// there was none since the master started.
    fn last_seen(&self, node: &str) -> Option<Duration>;
}

/// How nodes are judged.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The profile of a node that names none.
    pub default_profile: Profile,
    /// Nodes that may be given up at once.
    pub evictions_burst: f64,
    /// Nodes that may be given up per second after that.
    pub evictions_per_second: f64,
}

impl Default for Config {
    /// `wan`; one node at once and then one every ten seconds, as in Kubernetes.
    fn default() -> Self {
        Self { default_profile: Profile::Wan, evictions_burst: 1.0, evictions_per_second: 0.1 }
    }
}

/// The controller.
#[derive(Debug)]
pub struct Controller<C, L> {
    cluster: Arc<C>,
    clock: Clock,
    config: Config,
    liveness: Arc<L>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    recorder: Recorder,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// When each node was first seen by this process, and since when it has
    /// each of its `NoExecute` taints.
    nodes: HashMap<String, Seen>,
    /// Tokens for giving nodes up, and when they were last counted.
    tokens: Option<(f64, Instant)>,
    /// Whether too many nodes are silent, and when that was counted.
    disrupted: Option<(bool, Instant)>,
}

#[derive(Debug)]
struct Seen {
    first: Instant,
    tainted: HashMap<Arc<str>, Instant>,
}

/// Asks for a look at the nodes that a change is about.
pub fn feed(nodes: &Cache<Node>, pods: &Cache<Pod>, queue: &Sender<String>) {
    let sender = queue.clone();
    nodes.on_change(move |before, after| {
        if let Some(node) = after.or(before) {
            sender.add(node.meta.key.name.clone());
        }
    });
    // A pod bound to a node that is given up must go too.
    let (sender, nodes) = (queue.clone(), nodes.clone());
    pods.on_change(move |before, after| {
        let Some(pod) = after else { return };
        let Some(name) = &pod.node else { return };
        let new = before.is_none_or(|before| before.node.is_none());
        let troubled = || {
            let node = nodes.get(&ObjectKey::new("", name));
            node.is_some_and(|node| &*node.ready != "True" || !node.schedulable.taints.is_empty())
        };
        if new && troubled() {
            sender.add(name.as_ref().to_owned());
        }
    });
}

impl<C: Cluster, L: NodeLiveness> Controller<C, L> {
    /// A controller over these projections.
    #[must_use]
    pub fn new(
        cluster: Arc<C>,
        clock: Clock,
        config: Config,
        liveness: Arc<L>,
        nodes: Cache<Node>,
        pods: Cache<Pod>,
        recorder: Recorder,
    ) -> Self {
        let known = Mutex::default();
        Self { cluster, clock, config, liveness, nodes, pods, recorder, known }
    }

    /// Judges one node and does what follows.
    ///
    /// # Errors
    /// Whatever the cluster answers; the next try judges again.
    pub async fn reconcile(&self, name: &str) -> Result<Action, ClusterError> {
        let key = ObjectKey::new("", name);
        let Some(node) = self.nodes.get(&key) else {
            self.known().nodes.remove(name);
            return Ok(Action::AwaitChange);
        };
        let now = Instant::now();
        let silence = self.silence(name, now);
        let grace = self.profile(&node).grace();
        let silent = silence >= grace;
        let facts = Facts {
            ready: node.ready.as_ref().into(),
            silent,
            cordoned: node.schedulable.unschedulable,
            disrupted: self.disrupted(now),
            pressures: &node.pressures,
            taints: &node.schedulable.taints,
        };
        let mut look_again = if silent { COUNT_FOR * 10 } else { grace - silence };
        for step in plan(&facts) {
            match step {
                Step::MarkUnknown => {
                    self.mark_unknown(&node).await?;
                    // The change brings the node back here.
                    return Ok(Action::RequeueAfter(look_again));
                }
                Step::Taint { add, remove } => {
                    let gives_up = plan::gives_up(&add);
                    if gives_up && !self.take_token(now) {
                        let wait = 1.0 / self.config.evictions_per_second.max(0.001);
                        look_again = look_again.min(Duration::from_secs_f64(wait.min(10.0)));
                        let add: Vec<_> =
                            add.into_iter().filter(|taint| !plan::evicts(taint)).collect();
                        self.taint(&node, &add, &remove).await?;
                    } else {
                        self.taint(&node, &add, &remove).await?;
                    }
                }
            }
        }
        let pods = self.pods.find(&Term::Node(intern(name)));
        self.mark_pods(&node, &pods).await?;
        if let Some(wait) = self.evict(&node, &pods, silent, facts.disrupted, now).await? {
            look_again = look_again.min(wait);
        }
        Ok(Action::RequeueAfter(look_again))
    }

    /// Evicts the pods whose time is up; returns the time until the next one's is.
    async fn evict(
        &self,
        node: &Node,
        pods: &[Arc<Pod>],
        silent: bool,
        disrupted: bool,
        now: Instant,
    ) -> Result<Option<Duration>, ClusterError> {
        let tainted = self.tainted_for(node, now);
        if tainted.is_empty() {
            return Ok(None);
        }
        // Given up only while it is silent now, not because it once was.
        let given_up = node.schedulable.taints.iter().any(|t| &*t.key == plan::UNREACHABLE);
        if given_up && (disrupted || !silent) {
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for pod in pods.iter().filter(|pod| pod.is_active()) {
            match evict_in(&pod.demand.tolerations, &node.schedulable.taints, &tainted) {
                None => {}
                Some(Duration::ZERO) => self.delete(pod).await?,
                Some(wait) => next = Some(next.map_or(wait, |next| next.min(wait))),
            }
        }
        Ok(next)
    }

    async fn delete(&self, pod: &Pod) -> Result<(), ClusterError> {
        let options = DeleteOptions::of_uid(&pod.meta.uid);
        let deleted = self.cluster.delete(kinds::pods(), pod.key(), options).await;
        match deleted {
            // Another pod of that name by now.
            Err(ClusterError::Conflict(_)) => return Ok(()),
            other => ignore_not_found(other)?,
        }
        self.recorder.record(Record {
            involved: Involved::of(kinds::pods(), &pod.meta),
            reason: "TaintManagerEviction",
            message: format!("Marking for deletion Pod {}", pod.key()),
            warning: false,
            component: "taint-eviction-controller",
        });
        Ok(())
    }

    async fn mark_unknown(&self, node: &Node) -> Result<(), ClusterError> {
        let now = self.clock.text();
        let change = |object: &mut api::Value| mark::unknown(object, &now);
        let identity = Identity { uid: &node.meta.uid, revision: Some(node.meta.revision) };
        let key = &node.meta.key;
        let written =
            modify(&*self.cluster, kinds::nodes(), key, identity, Part::Status, change).await;
        if written?.is_some() {
            self.recorder.record(Record {
                involved: Involved::of(kinds::nodes(), &node.meta),
                reason: "NodeNotReady",
                message: format!("Node {} status is now: NodeNotReady", key.name),
                warning: true,
                component: COMPONENT,
            });
        }
        Ok(())
    }

    async fn taint(
        &self,
        node: &Node,
        add: &[scheduler::Taint],
        remove: &[scheduler::Taint],
    ) -> Result<(), ClusterError> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let now = self.clock.text();
        let change = |object: &mut api::Value| mark::taints(object, add, remove, &now);
        let identity = Identity { uid: &node.meta.uid, revision: None };
        let key = &node.meta.key;
        let written =
            modify(&*self.cluster, kinds::nodes(), key, identity, Part::Main, change).await;
        ignore_not_found(written.map(|_| ()))
    }

    /// Pods of a node that is not ready are not ready either; once it is back,
    /// they are what their containers are.
    async fn mark_pods(&self, node: &Node, pods: &[Arc<Pod>]) -> Result<(), ClusterError> {
        let back = &*node.ready == "True";
        let affected = |pod: &&Arc<Pod>| {
            pod.is_active() && if back { pod.node_was_lost } else { pod.ready_since.is_some() }
        };
        if !back && &*node.ready != "Unknown" {
            return Ok(());
        }
        for pod in pods.iter().filter(affected) {
            let now = self.clock.text();
            let change = |object: &mut api::Value| mark::pod(object, back, &now);
            let identity = Identity { uid: &pod.meta.uid, revision: None };
            let kind = kinds::pods();
            let written =
                modify(&*self.cluster, kind, pod.key(), identity, Part::Status, change).await;
            match written {
                Err(ClusterError::Conflict(_)) => {}
                other => ignore_not_found(other.map(|_| ()))?,
            }
        }
        Ok(())
    }

    fn profile(&self, node: &Node) -> Profile {
        let named = node.meta.label(labels::PROFILE).and_then(Profile::parse);
        named.unwrap_or(self.config.default_profile)
    }

    /// How long the node is silent: never longer than this process knows it.
    fn silence(&self, name: &str, now: Instant) -> Duration {
        let first = {
            let mut known = self.known();
            let fresh = || Seen { first: now, tainted: HashMap::new() };
            known.nodes.entry(name.to_owned()).or_insert_with(fresh).first
        };
        let known_for = now.duration_since(first);
        self.liveness.last_seen(name).map_or(known_for, |seen| seen.min(known_for))
    }

    /// How long this process has seen each of the node's `NoExecute` taints.
    fn tainted_for(&self, node: &Node, now: Instant) -> HashMap<Arc<str>, Duration> {
        let mut known = self.known();
        let Some(seen) = known.nodes.get_mut(&node.meta.key.name) else {
            return HashMap::new();
        };
        let taints: Vec<&Arc<str>> = node
            .schedulable
            .taints
            .iter()
            .filter(|taint| plan::evicts(taint))
            .map(|taint| &taint.key)
            .collect();
        seen.tainted.retain(|key, _| taints.contains(&key));
        let mut tainted = HashMap::new();
        for key in taints {
            let since = *seen.tainted.entry(Arc::clone(key)).or_insert(now);
            tainted.insert(Arc::clone(key), now.duration_since(since));
        }
        tainted
    }

    fn disrupted(&self, now: Instant) -> bool {
        if let Some((disrupted, counted)) = self.known().disrupted
            && now.duration_since(counted) < COUNT_FOR
        {
            return disrupted;
        }
        let nodes = self.nodes.all();
        let silent = |node: &&Arc<Node>| {
            self.silence(&node.meta.key.name, now) >= self.profile(node).grace()
        };
        let n_silent = nodes.iter().filter(silent).count();
        let disrupted = n_silent >= VANISHED_MIN && 2 * n_silent > nodes.len();
        self.known().disrupted = Some((disrupted, now));
        disrupted
    }

    fn take_token(&self, now: Instant) -> bool {
        let mut known = self.known();
        let (tokens, since) = known.tokens.unwrap_or((self.config.evictions_burst, now));
        let refilled = now.duration_since(since).as_secs_f64() * self.config.evictions_per_second;
        let tokens = (tokens + refilled).min(self.config.evictions_burst);
        let taken = tokens >= 1.0;
        known.tokens = Some((if taken { tokens - 1.0 } else { tokens }, now));
        taken
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
