//! Nodes that run pods in no time, or after a given one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{ObjectKey, Value, meta};
use serde_json::json;
use tokio::time::Instant;

use super::FakeCluster;
use crate::cluster::{Cluster as _, kinds};
use crate::node_lifecycle::NodeLiveness;

/// Plays the nodes of a [`FakeCluster`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FakeNodes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: FakeCluster,
    ready_after: Duration,
    state: Mutex<State>,
    changed: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct State {
    live: BTreeSet<String>,
    /// Nodes that stopped, and when.
    gone: Vec<(String, Instant)>,
}

impl FakeNodes {
    /// Nodes whose pods become ready after `ready_after`. Runs until the test ends.
    #[must_use]
    pub fn start(cluster: &FakeCluster, ready_after: Duration) -> Self {
        let nodes = Self(Arc::new(Inner {
            cluster: cluster.clone(),
            ready_after,
            state: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }));
        tokio::spawn(nodes.clone().run());
        nodes
    }

    /// Creates a ready Node of 4 cores and 4 GiB that lives.
    pub async fn join(&self, name: &str) {
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        });
        // A node that is there already joins again.
        let _ = self.0.cluster.create(kinds::nodes(), "", node).await;
        self.revive(name);
    }

    /// The node falls silent: nothing on it changes any more.
    pub fn kill(&self, name: &str) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.live.remove(name) {
            state.gone.push((name.to_owned(), Instant::now()));
        }
    }

    /// The node is back, says it is ready, and catches up with what it missed.
    pub fn revive(&self, name: &str) {
        {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.live.insert(name.to_owned());
            state.gone.retain(|(gone, _)| gone != name);
        }
        let now = self.0.cluster.clock().text();
        self.0.cluster.edit(kinds::nodes(), &ObjectKey::new("", name), |node| {
            node["status"]["conditions"] = json!([
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now}
            ]);
        });
        self.0.changed.notify_one();
    }

    /// A new master has heard of nobody yet.
    pub fn forget_silence(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).gone.clear();
    }

    fn is_live(&self, name: &str) -> bool {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).live.contains(name)
    }

    async fn run(self) {
        let mut writes = self.0.cluster.writes();
        loop {
            for pod in self.0.cluster.objects(kinds::pods()) {
                let node =
                    pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
                if self.is_live(node) {
                    self.look_at(&pod);
                }
            }
            tokio::select! {
                _ = writes.changed() => {}
                () = self.0.changed.notified() => {}
            }
        }
    }

    fn look_at(&self, pod: &Value) {
        let key = meta::object_key(pod);
        if meta::is_terminating(pod) {
            self.0.cluster.remove(kinds::pods(), &key);
            return;
        }
        let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
        let started = pod.pointer("/status/startTime").is_some();
        if phase != "Pending" || started {
            return;
        }
        let fake = &self.0.cluster;
        let started = fake.clock().text();
        fake.edit(kinds::pods(), &key, |pod| pod["status"]["startTime"] = started.into());
        let (nodes, uid) = (self.clone(), meta::uid(pod).to_owned());
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        tokio::spawn(async move {
            tokio::time::sleep(nodes.0.ready_after).await;
            let fake = &nodes.0.cluster;
            let same = fake.object(kinds::pods(), &key).is_some_and(|pod| meta::uid(&pod) == uid);
            if !same || !nodes.is_live(&node) {
                return;
            }
            let now = fake.clock().text();
            fake.edit(kinds::pods(), &key, |pod| {
                pod["status"]["phase"] = "Running".into();
                pod["status"]["conditions"] =
                    json!([{"type": "Ready", "status": "True", "lastTransitionTime": now}]);
            });
        });
    }
}

impl NodeLiveness for FakeNodes {
    fn last_seen(&self, node: &str) -> Option<Duration> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.live.contains(node) {
            return Some(Duration::ZERO);
        }
        let gone = state.gone.iter().find(|(name, _)| name == node);
        gone.map(|(_, since)| since.elapsed())
    }
}
