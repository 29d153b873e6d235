//! The view of a Pod: what the scheduler counts, what lowering sends to the
//! node, what reports write back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::health::{Lifecycle, Probe};
use super::volume::Volume;
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
    /// What runs before, one after another, and sidecars.
    pub init_containers: Vec<Container>,
    /// What was added to the running pod to look into it.
    pub ephemeral_containers: Vec<Container>,
    /// What containers may mount.
    pub volumes: Vec<Volume>,
    /// `Always`, `OnFailure` or `Never`.
    pub restart_policy: String,
    /// Seconds between the signal and the kill.
    pub termination_grace_period_seconds: Option<i64>,
    /// Host name in the pod; its name where it is empty.
    pub hostname: String,
    /// The domain it is in, below its namespace's.
    pub subdomain: String,
    /// Whether the host name is the whole name.
    #[serde(rename = "setHostnameAsFQDN")]
    pub set_hostname_as_fqdn: bool,
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
    /// Secrets with credentials for registries.
    pub image_pull_secrets: Vec<LocalRef>,
    /// Seconds the pod may be active.
    pub active_deadline_seconds: Option<i64>,
    /// The node's network instead of one of its own.
    pub host_network: bool,
    /// The node's processes.
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    /// The node's IPC.
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    /// Whether its containers see one another's processes.
    pub share_process_namespace: bool,
    /// Lines for `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// `ClusterFirst`, `ClusterFirstWithHostNet`, `Default` or `None`.
    pub dns_policy: String,
    /// Whether containers get variables that name the Services of their namespace.
    pub enable_service_links: Option<bool>,
    /// Additions to `/etc/resolv.conf`.
    pub dns_config: DnsConfig,
}

impl PodSpec {
    /// All its containers: init, main, ephemeral.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }

    /// What the scheduler counts of `resource`: the most that runs at one time,
    /// and the overhead. Containers run beside all sidecars; an init container
    /// runs beside the sidecars before it.
    ///
    /// A request that is absent is the limit, as defaulting makes it.
    /// Source: <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>.
    #[must_use]
    pub fn requested(&self, resource: &str) -> Quantity {
        let of = |container: &Container| {
            let resources = &container.resources;
            let found = resources.requests.get(resource).or_else(|| resources.limits.get(resource));
            found.copied().unwrap_or_default()
        };
        let (mut sidecars, mut most) = (Quantity::ZERO, Quantity::ZERO);
        for container in &self.init_containers {
            most = most.max(sidecars.plus(of(container)));
            if container.is_sidecar() {
                sidecars = sidecars.plus(of(container));
            }
        }
        let sum = self.containers.iter().map(of).fold(sidecars, Quantity::plus);
        sum.max(most).plus(self.overhead.get(resource).copied().unwrap_or_default())
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
    /// `File` or `FallbackToLogsOnError`.
    pub termination_message_policy: String,
    /// Whether standard input stays open.
    pub stdin: bool,
    /// Whether standard input ends with the first client.
    pub stdin_once: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// `Always` makes an init container a sidecar; empty for the pod's.
    pub restart_policy: Option<String>,
    /// The container that an ephemeral one looks into.
    pub target_container_name: String,
    /// Ends the run where it fails.
    pub liveness_probe: Option<Probe>,
    /// Makes the pod not ready where it fails.
    pub readiness_probe: Option<Probe>,
    /// Holds the others back until it succeeds.
    pub startup_probe: Option<Probe>,
    /// What runs after the start and before the stop.
    pub lifecycle: Lifecycle,
}

impl Container {
    /// Whether, among the init containers, it runs as long as the pod.
    #[must_use]
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }
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
    /// On which address of the node; empty for all.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
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
    /// The same with `$(NAME)` expanded.
    pub sub_path_expr: String,
    /// Whether the container may only read.
    pub read_only: bool,
    /// `Disabled`, `IfPossible` or `Enabled`.
    pub recursive_read_only: Option<String>,
    /// `None`, `HostToContainer` or `Bidirectional`.
    pub mount_propagation: Option<String>,
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
    /// All capabilities and devices.
    pub privileged: bool,
    /// `Default` or `Unmasked`.
    pub proc_mount: Option<String>,
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
    /// `RuntimeDefault`, `Unconfined` or `Localhost`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of the profile on the node, for `Localhost`.
    #[serde(rename = "localhostProfile")]
    pub localhost_profile: String,
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
    /// Group that owns the volumes.
    pub fs_group: Option<i64>,
    /// `Always` or `OnRootMismatch`.
    pub fs_group_change_policy: Option<String>,
    /// Kernel settings of the pod's namespaces.
    pub sysctls: Vec<Sysctl>,
    /// Which system calls are allowed.
    pub seccomp_profile: Option<SeccompProfile>,
}

/// A kernel setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Sysctl {
    /// Such as `net.ipv4.ip_unprivileged_port_start`.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostAlias {
    /// The address.
    pub ip: String,
    /// The names it has.
    pub hostnames: Vec<String>,
}

/// Additions to `/etc/resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Addresses of servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<DnsOption>,
}

/// An option of the resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DnsOption {
    /// Such as `ndots`.
    pub name: String,
    /// Such as `2`.
    pub value: Option<String>,
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
    /// One entry an init container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// One entry a container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    /// One entry an ephemeral container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ephemeral_container_statuses: Vec<ContainerStatus>,
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
