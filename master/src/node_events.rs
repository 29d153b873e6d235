//! What nodes say happened, and what somebody tried on the node port, as Events.

use std::sync::Arc;

use api::ObjectKey;
use controllers::events::{Involved, Record, Recorder};
use gateway::Violation;
use wire::Uid;
use wire::status::EventV1;

/// The component events of nodes come from.
const COMPONENT: &str = "pinnace-agent";

/// The reason of an Event that is about a Service.
const PORT_CONFLICT: &str = "PortConflict";

/// The words a node may give as reason: an Event's reason is for programs, so a
/// node cannot make up its own.
const REASONS: [&str; 31] = [
    "BackOff",
    "Created",
    "DeadlineExceeded",
    "Evicted",
    "EvictionThresholdMet",
    "DiskFull",
    "Failed",
    "FailedCreatePodSandBox",
    "FailedKillPod",
    "FailedMount",
    "FailedPreStopHook",
    "FailedPostStartHook",
    "FailedSync",
    "FailedValidation",
    "ImageGCFailed",
    "InspectFailed",
    "Killing",
    "NetworkNotReady",
    "NodeNotReady",
    "NodeReady",
    "OOMKilling",
    PORT_CONFLICT,
    "Pulled",
    "Pulling",
    "PrivilegedForbidden",
    "Rebooted",
    "SandboxChanged",
    "Started",
    "SysctlForbidden",
    "Starting",
    "Unhealthy",
];

/// Makes Events of what nodes say.
#[derive(Clone, Debug)]
pub(crate) struct NodeEvents {
    recorder: Recorder,
}

impl NodeEvents {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }

    /// Records what `node` says happened.
    pub(crate) fn record(&self, node: &str, event: &EventV1) {
        let about_node = event.name.is_empty();
        let involved = if about_node {
            involved_node(node)
        } else {
            Involved {
                kind: if event.reason == PORT_CONFLICT { "Service" } else { "Pod" },
                api_version: "v1".to_owned(),
                key: ObjectKey::new(&event.namespace, &event.name),
                uid: text(&event.uid),
            }
        };
        let known = REASONS.iter().find(|reason| **reason == event.reason);
        self.recorder.record(Record {
            involved,
            reason: known.copied().unwrap_or("NodeEvent"),
            message: event.message.clone(),
            warning: event.warning,
            component: COMPONENT,
        });
    }

    /// Records what somebody tried on the node port.
    pub(crate) fn violation(&self, violation: &Violation) {
        // A name that is none has no object to hang an event on.
        if wire::topic::check_node_name(&violation.client).is_err() {
            return;
        }
        self.recorder.record(Record {
            involved: involved_node(&violation.client),
            reason: "Refused",
            message: format!("{} {}", violation.client, violation.attempt),
            warning: true,
            component: "pinnace-master",
        });
    }
}

/// Kubernetes gives events about nodes the node's name as uid.
fn involved_node(name: &str) -> Involved {
    Involved {
        kind: "Node",
        api_version: "v1".to_owned(),
        key: ObjectKey::new("", name),
        uid: Arc::from(name),
    }
}

fn text(uid: &Uid) -> Arc<str> {
    Arc::from(uuid::Uuid::from_bytes(*uid).to_string())
}
