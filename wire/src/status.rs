//! What a node says about its pods. The master turns it into the Pod's status.

use serde::{Deserialize, Serialize};

use crate::pod::RuntimeV1;
use crate::{Ext, Uid};

/// Changed statuses, sent again until acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportV1 {
    /// Which boot of the agent sends it.
    pub boot_id: Uid,
    /// Grows by one with every report of this boot; the acknowledgement names it.
    pub seq: u64,
    /// Whether `pods` is every pod on the node, so that others are unknown to it.
    pub full: bool,
    /// The statuses.
    pub pods: Vec<PodStatusV1>,
    /// What happened on the node, for people. Best effort, at most 32.
    pub events: Vec<EventV1>,
    /// Room for later fields.
    pub ext: Ext,
}

/// The status of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatusV1 {
    /// The pod.
    pub uid: Uid,
    /// Namespace and name, so that a pod unknown to the master can be named.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Generation of the item this status was made under.
    pub generation: u64,
    /// The pod's phase.
    pub phase: PhaseV1,
    /// A one-word reason for the phase, such as `Evicted`; empty for none.
    pub reason: String,
    /// A sentence for people; empty for none.
    pub message: String,
    /// The pod's address; empty before it has one.
    pub pod_ip: String,
    /// When the node first saw the pod, in milliseconds since 1970 by the node's clock.
    pub started_ms: u64,
    /// One for each init container, in the order of the pod.
    pub init_containers: Vec<ContainerStatusV1>,
    /// One for each container, in the order of the pod.
    pub containers: Vec<ContainerStatusV1>,
    /// One for each ephemeral container, in the order of the pod.
    pub ephemeral_containers: Vec<ContainerStatusV1>,
    /// Everything of the pod is stopped and cleaned up: the Pod object may go.
    pub terminated: bool,
}

impl PodStatusV1 {
    /// A pod that waits, of which nothing more is known.
    #[must_use]
    pub fn new(uid: Uid, namespace: &str, name: &str) -> Self {
        Self {
            uid,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            generation: 0,
            phase: PhaseV1::Pending,
            reason: String::new(),
            message: String::new(),
            pod_ip: String::new(),
            started_ms: 0,
            init_containers: Vec::new(),
            containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            terminated: false,
        }
    }

    /// All containers: init, main, ephemeral.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerStatusV1> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }
}

/// A pod's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhaseV1 {
    /// Accepted, but not every container has started yet.
    Pending,
    /// At least one container runs, starts or will be restarted.
    Running,
    /// Every container exited with 0 and none will be restarted.
    Succeeded,
    /// Every container exited, at least one with another code, and none will be restarted.
    Failed,
}

/// The status of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatusV1 {
    /// The container's name.
    pub name: String,
    /// The image as it runs.
    pub image: String,
    /// `sha256:…` of what runs; empty before it is known.
    pub image_id: String,
    /// Which backend runs it.
    pub runtime: RuntimeV1,
    /// Identifies this run of the container; empty before the first.
    pub container_id: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it has started: its hook and its startup probe are through.
    pub started: bool,
    /// Whether it has started and its readiness probe, if any, passes.
    pub ready: bool,
    /// What it does now.
    pub state: StateV1,
    /// How its previous run ended.
    pub last: Option<TerminatedV1>,
}

/// What a container does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateV1 {
    /// Not started, or between two runs.
    Waiting {
        /// `ContainerCreating`, `ErrImagePull`, `ImagePullBackOff`, `CrashLoopBackOff`,
        /// `CreateContainerError`, `CreateContainerConfigError`, `RunContainerError`, …
        reason: String,
        /// A sentence for people.
        message: String,
    },
    /// It runs.
    Running {
        /// Since when, in milliseconds since 1970 by the node's clock.
        started_ms: u64,
    },
    /// It ended.
    Terminated(TerminatedV1),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminatedV1 {
    /// Exit code; 128 + signal for a signal.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// When it started, in milliseconds since 1970 by the node's clock; 0 if it never did.
    pub started_ms: u64,
    /// When it ended.
    pub finished_ms: u64,
    /// Which run it was.
    pub container_id: String,
}

/// Something that happened, for people (`kubectl get events`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventV1 {
    /// The pod it is about, or the Service (`PortConflict`); all zero for the node itself.
    pub uid: Uid,
    /// Namespace of the pod; empty for the node.
    pub namespace: String,
    /// Name of the pod; empty for the node.
    pub name: String,
    /// The container it is about; empty for the whole pod.
    pub container: String,
    /// Whether something went wrong.
    pub warning: bool,
    /// One word: `Pulled`, `Created`, `Started`, `Killing`, `BackOff`, `Failed`, …
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// When, in milliseconds since 1970 by the node's clock.
    pub at_ms: u64,
}

/// The master has stored a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAckV1 {
    /// The boot that sent the report.
    pub boot_id: Uid,
    /// The report.
    pub seq: u64,
}
