//! The view of a Pod: what the scheduler counts, what lowering sends to the
//! node, what reports write back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Condition, Taint, condition};
use crate::meta::ObjectMeta;
use crate::quantity::Quantity;

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: PodSpec,
    /// What was last seen.
    pub status: PodStatus,
}

impl PodView {
    /// Whether it has ended for good.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether its `Ready` condition is true.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(Condition::is_true)
    }
}

/// What a pod asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Its node, once it is bound.
    pub node_name: String,
    /// What runs in it, in order.
    pub containers: Vec<Container>,
    /// What runs before; not honoured yet, counted by the scheduler.
    pub init_containers: Vec<Container>,
    /// What containers may mount.
    pub volumes: Vec<Volume>,
    /// `Always`, `OnFailure` or `Never`.
    pub restart_policy: String,
    /// Seconds between the signal and the kill.
    pub termination_grace_period_seconds: Option<i64>,
    /// Host name in the pod; its name where it is empty.
    pub hostname: String,
    /// `oci`, `wasm`, or none for the image's own.
    pub runtime_class_name: Option<String>,
    /// Labels its node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints it does not mind.
    pub tolerations: Vec<Toleration>,
    /// Larger goes first.
    pub priority: Option<i64>,
    /// Who binds it.
    pub scheduler_name: String,
    /// The account it runs under.
    pub service_account_name: String,
    /// What holds for all its containers.
    pub security_context: PodSecurityContext,
    /// What the pod costs beside its containers.
    pub overhead: BTreeMap<String, Quantity>,
}

impl PodSpec {
    /// What the scheduler counts of `resource`: the containers' sum, the
    /// largest init container where that is more, and the overhead.
    ///
    /// A request that is absent is the limit, as defaulting makes it.
    #[must_use]
    pub fn requested(&self, resource: &str) -> Quantity {
        let of = |container: &Container| {
            let resources = &container.resources;
            let found = resources.requests.get(resource).or_else(|| resources.limits.get(resource));
            found.copied().unwrap_or_default()
        };
        let sum = self.containers.iter().map(of).fold(Quantity::ZERO, Quantity::plus);
        let before = self.init_containers.iter().map(of).max().unwrap_or_default();
        sum.max(before).plus(self.overhead.get(resource).copied().unwrap_or_default())
    }

    /// CPU the scheduler counts, in millicores.
    #[must_use]
    pub fn cpu_millis(&self) -> i64 {
        self.requested("cpu").millis()
    }

    /// Memory the scheduler counts, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> i64 {
        self.requested("memory").units()
    }

    /// Names of everything its containers ask for.
    #[must_use]
    pub fn requested_resources(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .containers
            .iter()
            .chain(&self.init_containers)
            .flat_map(|c| c.resources.requests.keys().chain(c.resources.limits.keys()))
            .chain(self.overhead.keys())
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A taint a pod does not mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's key; empty with `Exists` means every taint.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// `Equal`, which is also the empty text, or `Exists`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator: String,
    /// The taint's value, for `Equal`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// The taint's effect; empty means every effect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub effect: String,
    /// How long a `NoExecute` taint is borne; for ever where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether it covers `taint`.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key.is_empty() || self.key == taint.key;
        let value = match self.operator.as_str() {
            "Exists" => true,
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
            _ => false,
        };
        effect && key && value
    }
}

/// One container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Replaces the image's entrypoint; `$(NAME)` is expanded.
    pub command: Vec<String>,
    /// Replaces the image's arguments; `$(NAME)` is expanded.
    pub args: Vec<String>,
    /// Working directory; the image's where it is empty.
    pub working_dir: String,
    /// Ports it says it listens on.
    pub ports: Vec<ContainerPort>,
    /// Variables one by one; later ones win, and win over `env_from`.
    pub env: Vec<EnvVar>,
    /// Variables from whole ConfigMaps and Secrets.
    pub env_from: Vec<EnvFrom>,
    /// What it asks for and may use.
    pub resources: ResourceRequirements,
    /// Which volumes it sees, and where.
    pub volume_mounts: Vec<VolumeMount>,
    /// What holds for this container; wins over the pod's.
    pub security_context: SecurityContext,
    /// File the container may leave its last words in.
    pub termination_message_path: String,
    /// Whether standard input stays open.
    pub stdin: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
}

/// A port a container listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// Its name, unique in the pod.
    pub name: String,
    /// Its number.
    pub container_port: i64,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port of the node that leads here; 0 for none.
    pub host_port: i64,
}

/// One environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value; `$(NAME)` is expanded.
    pub value: String,
    /// Where its value comes from instead.
    pub value_from: Option<EnvVarSource>,
}

/// Where a variable's value comes from; one of them is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVarSource {
    /// A key of a ConfigMap.
    pub config_map_key_ref: Option<KeyRef>,
    /// A key of a Secret.
    pub secret_key_ref: Option<KeyRef>,
    /// A field of the pod.
    pub field_ref: Option<FieldRef>,
    /// A container's request or limit.
    pub resource_field_ref: Option<ResourceFieldRef>,
}

/// A key of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeyRef {
    /// The ConfigMap's or Secret's name.
    pub name: String,
    /// The key in it.
    pub key: String,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// A field of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FieldRef {
    /// Such as `status.podIP` or `metadata.labels['app']`.
    pub field_path: String,
}

/// A container's request or limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResourceFieldRef {
    /// The container; the variable's own where it is empty.
    pub container_name: String,
    /// Such as `limits.memory`.
    pub resource: String,
    /// What the amount is divided by, rounding up; 1 where it is zero.
    pub divisor: Quantity,
}

/// Variables from a whole ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvFrom {
    /// Put before each key.
    pub prefix: String,
    /// The ConfigMap.
    pub config_map_ref: Option<LocalRef>,
    /// The Secret.
    pub secret_ref: Option<LocalRef>,
}

/// A ConfigMap or Secret of the pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LocalRef {
    /// Its name.
    pub name: String,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// What a container asks for and may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    /// What the scheduler sets aside.
    pub requests: BTreeMap<String, Quantity>,
    /// What the kernel enforces.
    pub limits: BTreeMap<String, Quantity>,
}

/// A volume in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeMount {
    /// The volume's name.
    pub name: String,
    /// Where it appears.
    pub mount_path: String,
    /// A file or folder of the volume instead of all of it.
    pub sub_path: String,
    /// Whether the container may only read.
    pub read_only: bool,
}

/// What a container may do to the machine; absent means the pod's or the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    /// Numeric user.
    pub run_as_user: Option<i64>,
    /// Numeric group.
    pub run_as_group: Option<i64>,
    /// Refuse to start as user 0.
    pub run_as_non_root: Option<bool>,
    /// Whether the image's files cannot be written.
    pub read_only_root_filesystem: Option<bool>,
    /// `false` sets no_new_privs.
    pub allow_privilege_escalation: Option<bool>,
    /// Capabilities beside or without the default ones.
    pub capabilities: Option<Capabilities>,
    /// Which system calls are allowed.
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Capabilities beside or without the default ones, without the `CAP_`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Given.
    pub add: Vec<String>,
    /// Taken away; `ALL` takes every one before `add` is given.
    pub drop: Vec<String>,
}

/// Which system calls are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SeccompProfile {
    /// `RuntimeDefault`; others are refused before they get here.
    #[serde(rename = "type")]
    pub kind: String,
}

/// What holds for all containers of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSecurityContext {
    /// Numeric user.
    pub run_as_user: Option<i64>,
    /// Numeric group.
    pub run_as_group: Option<i64>,
    /// Refuse to start as user 0.
    pub run_as_non_root: Option<bool>,
    /// More groups of the first process.
    pub supplemental_groups: Vec<i64>,
    /// Which system calls are allowed.
    pub seccomp_profile: Option<SeccompProfile>,
}

/// A volume; one source is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// Files from a ConfigMap.
    pub config_map: Option<VolumeConfigMap>,
    /// Files from a Secret.
    pub secret: Option<VolumeSecret>,
    /// An empty folder that lives as long as the pod.
    pub empty_dir: Option<EmptyDir>,
}

/// Files from a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeConfigMap {
    /// The ConfigMap's name.
    pub name: String,
    /// Which keys; all where it is empty.
    pub items: Vec<KeyToPath>,
    /// Mode of the files.
    pub default_mode: Option<u32>,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// Files from a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeSecret {
    /// The Secret's name.
    pub secret_name: String,
    /// Which keys; all where it is empty.
    pub items: Vec<KeyToPath>,
    /// Mode of the files.
    pub default_mode: Option<u32>,
    /// Whether the pod starts without it.
    pub optional: bool,
}

/// One key as one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeyToPath {
    /// The key.
    pub key: String,
    /// The file, below the volume.
    pub path: String,
    /// Mode of the file.
    pub mode: Option<u32>,
}

/// An empty folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EmptyDir {
    /// Empty for the disk, `Memory` for tmpfs.
    pub medium: String,
    /// How large it may become.
    pub size_limit: Option<Quantity>,
}

/// What was last seen of a pod; written whole from the node's report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// The generation the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// `PodScheduled`, `Initialized`, `ContainersReady`, `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// One word for programs, such as `Evicted`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The node's address.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
    /// The node's addresses.
    #[serde(rename = "hostIPs", skip_serializing_if = "Vec::is_empty")]
    pub host_ips: Vec<PodIp>,
    /// The pod's address.
    #[serde(rename = "podIP", skip_serializing_if = "String::is_empty")]
    pub pod_ip: String,
    /// The pod's addresses.
    #[serde(rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<PodIp>,
    /// When the node took it up, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// One entry a container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    /// `Guaranteed`, `Burstable` or `BestEffort`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub qos_class: String,
}

/// An address in `podIPs` or `hostIPs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// What was last seen of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    /// The container's name.
    pub name: String,
    /// What it does now.
    pub state: ContainerState,
    /// How its last run ended.
    pub last_state: ContainerState,
    /// Whether it can serve.
    pub ready: bool,
    /// Runs after the first.
    pub restart_count: i64,
    /// Image reference as given.
    pub image: String,
    /// Image reference with digest.
    #[serde(rename = "imageID")]
    pub image_id: String,
    /// The runtime's identity of this run.
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Whether it has started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
}

/// What a container does; at most one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct ContainerState {
    /// It waits for something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<StateWaiting>,
    /// It runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<StateRunning>,
    /// It has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated: Option<StateTerminated>,
}

/// A container that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct StateWaiting {
    /// One word: `ContainerCreating`, `CrashLoopBackOff`, `ErrImagePull`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StateRunning {
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
}

/// A container that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StateTerminated {
    /// Exit code; 128 and the signal where one ended it.
    pub exit_code: i64,
    /// The signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i64>,
    /// One word: `Completed`, `Error`, `OOMKilled`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// From when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Until when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// The runtime's identity of that run.
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view;

    #[test]
    fn requests_are_what_the_scheduler_counts() {
        let pod: PodView = view::read(&json!({"spec": {
            "containers": [
                {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
                {"resources": {"limits": {"cpu": 1}}},
            ],
            "initContainers": [{"resources": {"requests": {"memory": "1Gi"}}}],
            "overhead": {"memory": "1Mi"},
        }}))
        .unwrap();
        assert_eq!(pod.spec.cpu_millis(), 1100);
        assert_eq!(pod.spec.memory_bytes(), (1 << 30) + (1 << 20));
        assert_eq!(pod.spec.requested_resources(), ["cpu", "memory"]);
    }

    #[test]
    fn tolerations_match_as_in_kubernetes() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
            time_added: None,
        };
        let toleration = |value| serde_json::from_value::<Toleration>(value).unwrap();
        let all = toleration(json!({"operator": "Exists"}));
        assert!(all.tolerates(&taint("a", "b", "NoExecute")));
        let equal = toleration(json!({"key": "a", "value": "b", "effect": "NoSchedule"}));
        assert!(equal.tolerates(&taint("a", "b", "NoSchedule")));
        assert!(!equal.tolerates(&taint("a", "c", "NoSchedule")));
        assert!(!equal.tolerates(&taint("a", "b", "NoExecute")));
        assert!(!toleration(json!({})).tolerates(&taint("", "", "NoExecute")));
    }

    #[test]
    fn a_pod_status_reads_back() {
        let status = json!({
            "phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "c", "state": {"running": {"startedAt": "2026-11-23T07:36:35Z"}},
                "lastState": {}, "ready": true, "restartCount": 0, "image": "i", "imageID": "",
                "started": true,
            }],
        });
        let pod: PodView = view::read(&json!({"status": status})).unwrap();
        assert!(pod.is_ready() && !pod.is_finished());
        assert_eq!(serde_json::to_value(&pod.status).unwrap(), status);
    }
}
