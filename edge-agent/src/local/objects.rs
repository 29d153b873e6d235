//! What the agent knows, as Kubernetes' objects: its pods, its node, what happened,
//! and the namespaces that follow from the pods. Pure but for reading what the
//! sources hold now.

use api::Value;
use jiff::Timestamp;
use serde_json::json;
use wire::Uid;
use wire::status::{PhaseV1, PodStatusV1, StateV1};

use super::Sources;
use super::diary::Entry;
use crate::id;
use crate::pods::owner::Wanted;

impl Sources {
    /// Every pod of this node, by namespace and name.
    pub(super) fn pods(&self) -> Vec<(Uid, Value)> {
        let board = self.board.borrow().clone();
        let mut wanted: Vec<(Uid, Wanted)> =
            self.roster.borrow().iter().map(|(uid, one)| (*uid, one.clone())).collect();
        wanted.sort_by(|(_, a), (_, b)| {
            (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name))
        });
        let object = |(uid, wanted): (Uid, Wanted)| {
            let object = pod(&wanted, board.get(&uid), &self.node, &self.host_ip);
            (uid, object)
        };
        wanted.into_iter().map(object).collect()
    }

    /// This node. That it answers is what makes it ready here.
    pub(super) fn node(&self) -> Value {
        let info = self.info.borrow().clone();
        let mut node = json!({
            "kind": "Node", "apiVersion": "v1", "metadata": {"name": self.node}, "spec": {},
        });
        for (key, value) in &info.labels {
            node["metadata"]["labels"][key] = json!(value);
        }
        lower::node::set_labels(&mut node, &info);
        let mut info = info;
        if info.address.is_empty() {
            info.address.clone_from(&self.host_ip);
        }
        node["status"] = lower::node::status(&node, &info, Timestamp::UNIX_EPOCH);
        for condition in node["status"]["conditions"].as_array_mut().into_iter().flatten() {
            if condition["type"] == "Ready" {
                condition["message"] = json!("the agent runs; this is what it says of itself");
            }
            // Since when is the master's to know.
            condition["lastTransitionTime"] = Value::Null;
            condition["lastHeartbeatTime"] = Value::Null;
        }
        node
    }

    /// What happened lately, the oldest first.
    pub(super) fn events(&self) -> Vec<Value> {
        self.diary.entries().iter().map(|entry| event(entry, &self.node)).collect()
    }

    /// The namespaces that have a pod here.
    pub(super) fn namespaces(&self) -> Vec<Value> {
        let mut names: Vec<String> =
            self.roster.borrow().values().map(|one| one.pod.namespace.clone()).collect();
        names.push("default".to_owned());
        names.sort();
        names.dedup();
        let namespace = |name: String| {
            json!({
                "kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name},
                "spec": {}, "status": {"phase": "Active"},
            })
        };
        names.into_iter().map(namespace).collect()
    }
}

/// A node's time, in milliseconds since 1970.
fn timestamp(ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The Pod with its status. Equal input gives equal output: times come from the pod.
fn pod(wanted: &Wanted, status: Option<&PodStatusV1>, node: &str, host_ip: &str) -> Value {
    let pod = &wanted.pod;
    let mut object = lower::raise(pod, node);
    let first = PodStatusV1 {
        started_ms: status.map_or(0, |status| status.started_ms),
        ..PodStatusV1::new(pod.uid, &pod.namespace, &pod.name)
    };
    let status = status.unwrap_or(&first);
    let metadata = &mut object["metadata"];
    if status.started_ms > 0 {
        metadata["creationTimestamp"] = json!(api::time::rfc3339(timestamp(status.started_ms)));
    }
    if let Some(going_ms) = wanted.going_ms {
        metadata["deletionTimestamp"] = json!(api::time::rfc3339(timestamp(going_ms)));
        let grace = pod.deletion_grace_s.unwrap_or(pod.termination_grace_s);
        metadata["deletionGracePeriodSeconds"] = json!(grace);
    }
    // First as it was when it came, so that conditions keep the time of their change.
    let class = api::strategy::qos_class(&object);
    let waiting = PodStatusV1 {
        phase: PhaseV1::Pending,
        reason: String::new(),
        message: String::new(),
        pod_ip: String::new(),
        containers: waiting(&status.containers),
        init_containers: waiting(&status.init_containers),
        ephemeral_containers: Vec::new(),
        ..status.clone()
    };
    object["status"] = lower::pod_status(&object, &waiting, host_ip, timestamp(status.started_ms));
    object["status"] =
        lower::pod_status(&object, status, host_ip, timestamp(last_change_ms(status)));
    object["status"]["qosClass"] = json!(class);
    object
}

fn waiting(containers: &[wire::status::ContainerStatusV1]) -> Vec<wire::status::ContainerStatusV1> {
    let waiting = |container: &wire::status::ContainerStatusV1| {
        let state = StateV1::Waiting { reason: String::new(), message: String::new() };
        let mut container = container.clone();
        (container.ready, container.started, container.last) = (false, false, None);
        container.state = state;
        container
    };
    containers.iter().map(waiting).collect()
}

/// When something of the pod changed last that it tells the time of.
fn last_change_ms(status: &PodStatusV1) -> u64 {
    let of = |state: &StateV1| match state {
        StateV1::Waiting { .. } => 0,
        StateV1::Running { started_ms } => *started_ms,
        StateV1::Terminated(end) => end.finished_ms,
    };
    let containers = status.all_containers().flat_map(|container| {
        [of(&container.state), container.last.as_ref().map_or(0, |last| last.finished_ms)]
    });
    containers.max().unwrap_or(0).max(status.started_ms)
}

fn event(entry: &Entry, node: &str) -> Value {
    let event = &entry.event;
    let is_of_node = event.name.is_empty();
    let (namespace, name) = if is_of_node {
        ("default", node)
    } else {
        (event.namespace.as_str(), event.name.as_str())
    };
    let mut object = if is_of_node {
        json!({"kind": "Node", "name": node, "uid": node})
    } else {
        json!({
            "kind": "Pod", "namespace": namespace, "name": name,
            "uid": id::uid_text(&event.uid), "apiVersion": "v1",
        })
    };
    if !event.container.is_empty() {
        object["fieldPath"] = json!(format!("spec.containers{{{}}}", event.container));
    }
    let time = |ms| api::time::rfc3339(timestamp(ms));
    json!({
        "kind": "Event", "apiVersion": "v1",
        "metadata": {
            "name": format!("{name}.{:x}", entry.number), "namespace": namespace,
            "creationTimestamp": time(entry.first_ms),
        },
        "involvedObject": object,
        "reason": event.reason, "message": event.message,
        "type": if event.warning { "Warning" } else { "Normal" },
        "count": entry.count,
        "firstTimestamp": time(entry.first_ms), "lastTimestamp": time(event.at_ms),
        "eventTime": null, "source": {"component": "pinnace-agent", "host": node},
        "reportingComponent": "pinnace-agent", "reportingInstance": node,
    })
}
