//! What the tests of whole controllers share: a fleet over a fake cluster,
//! under paused time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{ObjectKey, Value};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster as _, kinds};
use crate::fake::{FakeCluster, FakeNodes};
use crate::image::{ImageRequest, ImageResolver, ResolveError, ResolvedImage};
use crate::node_lifecycle::Profile;
use crate::projection::Runtime;
use crate::{Config, Fleet, Parts};

/// A registry in memory: every image is an OCI image for amd64 unless said otherwise.
#[derive(Debug, Default)]
pub(crate) struct FakeRegistry {
    answers: Mutex<HashMap<String, Result<ResolvedImage, ResolveError>>>,
    /// Images asked for, in order.
    pub asked: Mutex<Vec<String>>,
    delay: Mutex<Duration>,
}

impl FakeRegistry {
    pub(crate) fn set(&self, image: &str, answer: Result<ResolvedImage, ResolveError>) {
        self.answers.lock().unwrap().insert(image.to_owned(), answer);
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }
}

pub(crate) fn resolved(runtime: Runtime, platforms: &[&str]) -> ResolvedImage {
    ResolvedImage {
        digest: format!("sha256:{}", "0f".repeat(32)),
        runtime,
        platforms: platforms.iter().map(|text| (*text).to_owned()).collect(),
    }
}

impl ImageResolver for FakeRegistry {
    async fn resolve(&self, request: &ImageRequest) -> Result<ResolvedImage, ResolveError> {
        self.asked.lock().unwrap().push(request.image.clone());
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        let answers = self.answers.lock().unwrap();
        let known = answers.get(&request.image).cloned();
        known.unwrap_or_else(|| Ok(resolved(Runtime::Oci, &["linux/amd64"])))
    }
}

/// A cluster with all of its controllers.
pub(crate) struct World {
    pub cluster: FakeCluster,
    pub nodes: FakeNodes,
    pub registry: Arc<FakeRegistry>,
    pub fleet: Fleet,
    shutdown: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    /// Controllers, these nodes (profile `lan`), and the namespace `ns`; pods
    /// become ready after a second.
    pub(crate) async fn start(nodes: &[&str]) -> Self {
        let cluster = FakeCluster::new();
        let fake_nodes = FakeNodes::start(&cluster, Duration::from_secs(1));
        let registry = Arc::new(FakeRegistry::default());
        for name in nodes {
            fake_nodes.join(name).await;
        }
        let namespace = json!({"metadata": {"name": "ns"}});
        cluster.create(kinds::namespaces(), "", namespace).await.unwrap();
        let shutdown = CancellationToken::new();
        let fleet = Self::run(&cluster, &fake_nodes, &registry, &shutdown);
        Self { cluster, nodes: fake_nodes, registry, fleet, shutdown }
    }

    /// The master dies and starts again: everything in memory is lost.
    pub(crate) fn restart_master(&mut self) {
        self.shutdown.cancel();
        self.shutdown = CancellationToken::new();
        self.nodes.forget_silence();
        self.fleet = Self::run(&self.cluster, &self.nodes, &self.registry, &self.shutdown);
    }

    fn run(
        cluster: &FakeCluster,
        nodes: &FakeNodes,
        registry: &Arc<FakeRegistry>,
        shutdown: &CancellationToken,
    ) -> Fleet {
        let mut config = Config::default();
        config.nodes.default_profile = Profile::Lan;
        let parts = Parts {
            cluster: Arc::new(cluster.clone()),
            liveness: Arc::new(nodes.clone()),
            images: Arc::clone(registry),
            clock: cluster.clock(),
            root_ca: "test CA".into(),
            config,
        };
        Fleet::start(parts, &TaskTracker::new(), shutdown)
    }

    pub(crate) async fn create(&self, resource: crate::cluster::Kind, object: Value) -> Value {
        self.cluster.create(resource, "ns", object).await.unwrap()
    }

    pub(crate) fn get(&self, resource: crate::cluster::Kind, name: &str) -> Option<Value> {
        self.cluster.object(resource, &key_of(resource, name))
    }

    pub(crate) fn edit(
        &self,
        resource: crate::cluster::Kind,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        assert!(self.cluster.edit(resource, &key_of(resource, name), change), "no {name}");
    }

    /// Waits until `condition` holds; fails after ten minutes of paused time.
    pub(crate) async fn until(&self, what: &str, condition: impl FnMut(&FakeCluster) -> bool) {
        let within = Duration::from_mins(10);
        let waited = tokio::time::timeout(within, self.cluster.until(condition)).await;
        if waited.is_err() {
            panic!("not within {within:?}: {what}\n{}", self.dump());
        }
    }

    /// Lets everything that is due within `time` happen.
    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Pods of `ns` that are not being deleted, with their node and phase.
    pub(crate) fn pods(&self) -> Vec<(String, String, String)> {
        pods_of(&self.cluster)
    }

    fn dump(&self) -> String {
        let pods = self.pods();
        let events: Vec<String> = self
            .cluster
            .objects(kinds::events())
            .iter()
            .map(|event| {
                format!(
                    "{} {}: {}",
                    event["involvedObject"]["name"], event["reason"], event["message"]
                )
            })
            .collect();
        format!("pods: {pods:?}\nevents: {events:#?}")
    }
}

fn key_of(resource: crate::cluster::Kind, name: &str) -> ObjectKey {
    ObjectKey::new(if resource.namespaced { "ns" } else { "" }, name)
}

/// Name, node and phase of the pods that are not being deleted.
pub(crate) fn pods_of(cluster: &FakeCluster) -> Vec<(String, String, String)> {
    let text = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    cluster
        .objects(kinds::pods())
        .iter()
        .filter(|pod| !api::meta::is_terminating(pod))
        .map(|pod| {
            (
                api::meta::name(pod).to_owned(),
                text(pod, "/spec/nodeName"),
                text(pod, "/status/phase"),
            )
        })
        .collect()
}

/// A Deployment of one container, with the tolerations admission gives to pods.
pub(crate) fn deployment(name: &str, replicas: i64, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": pod_spec(image),
            },
        },
    })
}

pub(crate) fn pod_spec(image: &str) -> Value {
    json!({
        "containers": [{"name": "main", "image": image,
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}],
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        ],
    })
}

pub(crate) fn events_of(cluster: &FakeCluster, reason: &str) -> Vec<String> {
    cluster
        .objects(kinds::events())
        .iter()
        .filter(|event| event["reason"] == reason)
        .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}
