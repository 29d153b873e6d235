//! Metrics of nodes and pods, `metrics.k8s.io/v1beta1`, which `kubectl top` shows.
//!
//! ```text
//! GET …/pods ─► which pods, on which nodes ─► ask the nodes, [`ASKED_MAX`] at a time
//!                                             └► answers of the last 15 s are good enough
//! ```
//!
//! Nodes measure only when they are asked, and nothing is stored. A node that does
//! not answer in time is left out, as upstream leaves out what it has not scraped;
//! so is a pod none of whose containers runs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{Value, meta};
use apiserver::{
    Api, BoxFuture, Identity, ListOptions, MeasuredRequest, MeasuredSource, Reason, Status, Target,
};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};
use wire::Uid;
use wire::usage::{PathV1, PathsV1, PodUseV1, UsageV1, UseV1};

use crate::clock;
use crate::enrol::resource;

/// Nodes that are asked at the same time.
const ASKED_MAX: usize = 256;
/// How long one node may take: it measures for a second.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long all of them may take; what is not there by then is left out.
const OVERALL_TIMEOUT: Duration = Duration::from_secs(25);
/// How long an answer is good enough for the next who asks.
const FRESH: Duration = Duration::from_secs(15);
/// The same where there was none: a node that is away is not waited for each time.
const FRESH_FAILURE: Duration = Duration::from_secs(5);

/// Asks nodes what they use.
pub(crate) trait Nodes: Send + Sync + 'static {
    /// Asks one node.
    fn usage<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<UsageV1, Status>>;

    /// Asks one node how it reaches the others.
    fn paths<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<PathsV1, Status>>;
}

impl Nodes for crate::streams::Streams {
    fn usage<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<UsageV1, Status>> {
        Box::pin(self.usage(node))
    }

    fn paths<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<PathsV1, Status>> {
        Box::pin(self.paths(node))
    }
}

/// What nodes have answered lately, and how to ask them.
pub(crate) struct Usage {
    api: Api,
    who: Identity,
    nodes: Arc<dyn Nodes>,
    asked: Mutex<HashMap<String, Arc<Slot>>>,
}

/// The last answer of one node. Held while it is asked, so that it is asked once.
type Slot = tokio::sync::Mutex<Option<Answered>>;

#[derive(Clone)]
struct Answered {
    until: Instant,
    measured: Option<Arc<Measured>>,
}

/// An answer, and when it was given.
struct Measured {
    at: Timestamp,
    usage: UsageV1,
}

/// A pod whose metrics are wanted.
struct Wanted {
    object: Value,
    node: String,
    uid: Uid,
}

impl Usage {
    pub(crate) fn new(api: Api, nodes: Arc<dyn Nodes>) -> Arc<Self> {
        let who = Identity::master("pinnace:metrics");
        Arc::new(Self { api, who, nodes, asked: Mutex::default() })
    }

    /// The objects of `request`, reduced by `keep` as they are read.
    fn objects<T>(
        &self,
        kind: &str,
        request: &MeasuredRequest,
        keep: impl Fn(Value) -> Option<T>,
    ) -> Result<Vec<T>, Status> {
        let resource = resource(kind);
        if !request.name.is_empty() {
            let target = Target::object(resource, &request.namespace, &request.name);
            return match self.api.get_value(&self.who, &target) {
                Ok(object) => Ok(keep(object).into_iter().collect()),
                // Told by the metrics' own name.
                Err(status) if status.reason == Reason::NotFound => Ok(Vec::new()),
                Err(status) => Err(status),
            };
        }
        let options =
            ListOptions { selection: request.selection.clone(), ..ListOptions::default() };
        let mut pages = self.api.list_pages(&self.who, resource, &request.namespace, &options)?;
        let mut found = Vec::new();
        while let Some(items) = pages.next_page()? {
            found.extend(items.iter().filter_map(|item| keep(item.value())));
        }
        Ok(found)
    }

    async fn of_nodes(&self, request: &MeasuredRequest) -> Result<Vec<Value>, Status> {
        let nodes = self.objects("Node", request, |node| Some(head(&node)))?;
        let names = nodes.iter().map(|node| meta::name(node).to_owned()).collect();
        let answers = self.ask(names).await;
        let metrics = nodes.into_iter().filter_map(|node| {
            let measured = answers.get(meta::name(&node))?;
            let mut metrics = describe("NodeMetrics", &node, measured);
            metrics["usage"] = amounts(&measured.usage.node);
            Some(metrics)
        });
        Ok(metrics.collect())
    }

    async fn of_pods(&self, request: &MeasuredRequest) -> Result<Vec<Value>, Status> {
        let pods = self.objects("Pod", request, |pod| {
            let node = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())?;
            let uid = lower::uid(meta::uid_on_node(&pod)).ok()?;
            (pod["status"]["phase"] == "Running").then(|| Wanted {
                object: head(&pod),
                node: node.to_owned(),
                uid,
            })
        })?;
        let answers = self.ask(pods.iter().map(|pod| pod.node.clone()).collect()).await;
        let by_uid: HashMap<(&str, Uid), &PodUseV1> = answers
            .iter()
            .flat_map(|(node, measured)| {
                measured.usage.pods.iter().map(move |pod| ((node.as_str(), pod.uid), pod))
            })
            .collect();
        let metrics = pods.iter().filter_map(|pod| {
            let measured = answers.get(&pod.node)?;
            // A node can only speak of what is bound to it.
            let usage = by_uid.get(&(pod.node.as_str(), pod.uid))?;
            let mut metrics = describe("PodMetrics", &pod.object, measured);
            let containers = usage.containers.iter().map(
                |container| json!({"name": container.name, "usage": amounts(&container.usage)}),
            );
            metrics["containers"] = containers.collect();
            Some(metrics)
        });
        Ok(metrics.collect())
    }

    /// How nodes reach each other, asked now: a path may change at any time.
    async fn of_paths(&self, request: &MeasuredRequest) -> Result<Vec<Value>, Status> {
        let nodes = self.objects("Node", request, |node| Some(head(&node)))?;
        let deadline = Instant::now() + OVERALL_TIMEOUT;
        let mut asked = futures::stream::iter(nodes)
            .map(|node| async move {
                let paths = timeout(NODE_TIMEOUT, self.nodes.paths(meta::name(&node))).await;
                Some(paths_object(node, &paths.ok()?.ok()?))
            })
            .buffer_unordered(ASKED_MAX);
        let mut objects = Vec::new();
        while let Ok(Some(object)) = timeout_at(deadline, asked.next()).await {
            objects.extend(object);
        }
        objects.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
        Ok(objects)
    }

    /// Asks the nodes that have not said it lately, all at once within bounds.
    async fn ask(&self, names: BTreeSet<String>) -> HashMap<String, Arc<Measured>> {
        let deadline = Instant::now() + OVERALL_TIMEOUT;
        let mut answers = HashMap::new();
        let mut asked = futures::stream::iter(names)
            .map(|name| async move {
                let measured = self.one(&name).await;
                (name, measured)
            })
            .buffer_unordered(ASKED_MAX);
        while let Ok(Some((name, measured))) = timeout_at(deadline, asked.next()).await {
            answers.extend(measured.map(|measured| (name, measured)));
        }
        answers
    }

    async fn one(&self, name: &str) -> Option<Arc<Measured>> {
        let slot = self.slot(name);
        let mut answered = slot.lock().await;
        if let Some(known) = answered.as_ref().filter(|known| Instant::now() < known.until) {
            return known.measured.clone();
        }
        let measured = match timeout(NODE_TIMEOUT, self.nodes.usage(name)).await {
            Ok(Ok(usage)) => {
                let at = clock::timestamp();
                Some(Arc::new(Measured { at, usage }))
            }
            Ok(Err(status)) => {
                tracing::debug!(node = name, error = status.message, "no metrics");
                None
            }
            Err(_) => None,
        };
        let fresh = if measured.is_some() { FRESH } else { FRESH_FAILURE };
        let until = Instant::now() + fresh;
        *answered = Some(Answered { until, measured: measured.clone() });
        measured
    }

    /// The place for a node's answer. Old ones go, so that nothing is kept for long
    /// after the last who asked.
    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = asked.get(name) {
            return Arc::clone(slot);
        }
        let now = Instant::now();
        asked.retain(|_, slot| {
            // One that is being asked is locked.
            slot.try_lock().map_or(true, |answered| {
                Arc::strong_count(slot) > 1
                    || answered.as_ref().is_some_and(|answered| now < answered.until)
            })
        });
        Arc::clone(asked.entry(name.to_owned()).or_default())
    }
}

impl MeasuredSource for Usage {
    fn measure(&self, request: MeasuredRequest) -> BoxFuture<'_, Result<Vec<Value>, Status>> {
        Box::pin(async move {
            match request.resource.kind {
                "NodeMetrics" => self.of_nodes(&request).await,
                "PodMetrics" => self.of_pods(&request).await,
                "NodePaths" => self.of_paths(&request).await,
                other => Err(Status::internal(format!("{other} is not measured"))),
            }
        })
    }
}

/// What metrics show of their object: who it is.
fn head(object: &Value) -> Value {
    let mut metadata = json!({"name": meta::name(object)});
    let namespace = meta::namespace(object);
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    let labels = &object["metadata"]["labels"];
    if labels.is_object() {
        metadata["labels"] = labels.clone();
    }
    json!({"metadata": metadata})
}

fn describe(kind: &str, object: &Value, measured: &Measured) -> Value {
    let at = api::time::rfc3339(measured.at);
    let mut metadata = object["metadata"].clone();
    metadata["creationTimestamp"] = json!(at);
    json!({
        "kind": kind,
        "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": metadata,
        "timestamp": at,
        "window": window(measured.usage.window_ms),
    })
}

/// What a node said of its paths, as an object.
fn paths_object(mut object: Value, paths: &PathsV1) -> Value {
    let path = |path: &PathV1| {
        json!({
            "peer": path.peer,
            "lane": path.lane,
            "remote": path.remote,
            "rttMicroseconds": path.rtt_us,
            "lossPerTenThousand": path.loss_per_10000,
            "sentBytes": path.tx_bytes,
            "receivedBytes": path.rx_bytes,
            "ageSeconds": path.age_s,
            "reason": path.why,
        })
    };
    object["apiVersion"] = json!("net.pinnace.io/v1");
    object["kind"] = json!("NodePaths");
    object["capture"] = json!(paths.capture);
    object["degraded"] = json!(paths.degraded);
    object["paths"] = paths.paths.iter().map(path).collect();
    object
}

/// A duration as Go writes it: `1s`, `1.05s`.
fn window(window_ms: u64) -> String {
    let (seconds, rest) = (window_ms / 1000, window_ms % 1000);
    let fraction = format!("{rest:03}");
    match fraction.trim_end_matches('0') {
        "" => format!("{seconds}s"),
        fraction => format!("{seconds}.{fraction}s"),
    }
}

fn amounts(usage: &UseV1) -> Value {
    json!({
        "cpu": cpu(usage.cpu_nanocores),
        "memory": format!("{}Ki", usage.memory_bytes / 1024),
    })
}

/// Processor as a quantity in its canonical form.
fn cpu(nanocores: u64) -> String {
    match nanocores {
        0 => "0".to_owned(),
        n if n % 1_000_000_000 == 0 => (n / 1_000_000_000).to_string(),
        n if n % 1_000_000 == 0 => format!("{}m", n / 1_000_000),
        n if n % 1000 == 0 => format!("{}u", n / 1000),
        n => format!("{n}n"),
    }
}

#[cfg(test)]
mod tests;
