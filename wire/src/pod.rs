//! A pod as a node needs it: resolved from the Pod object by the master, with
//! every default applied. ConfigMaps and Secrets travel beside it as items of
//! their own, so that one change is sent once.

use serde::{Deserialize, Serialize};

use crate::status::PhaseV1;
use crate::{Ext, Uid};

/// One pod that a node is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodV1 {
    /// The pod's identity. A pod with another uid is another pod, whatever its name.
    pub uid: Uid,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// The pod's labels, for the downward API.
    pub labels: Vec<(String, String)>,
    /// The pod's annotations, for the downward API.
    pub annotations: Vec<(String, String)>,
    /// The host name inside the pod.
    pub hostname: String,
    /// Its name with the domain it is in; empty where it is in none.
    pub fqdn: String,
    /// The ServiceAccount's name, for the downward API.
    pub service_account: String,
    /// Containers that run before the others, one after another. One whose own
    /// restart policy is [`RestartPolicyV1::Always`] is a sidecar: the next one
    /// waits only until it has started, and it runs as long as the pod.
    pub init_containers: Vec<ContainerV1>,
    /// The containers, in the order of the manifest.
    pub containers: Vec<ContainerV1>,
    /// Containers that a user added to the running pod to look into it. They
    /// start once, are never started again, and do not count for the phase.
    pub ephemeral_containers: Vec<ContainerV1>,
    /// The volumes that containers mount by name.
    pub volumes: Vec<VolumeV1>,
    /// Namespaces of the host that the pod uses, and what its containers share.
    pub namespaces: NamespacesV1,
    /// What the pod's files belong to, and kernel settings of its namespaces.
    pub security: PodSecurityV1,
    /// Lines for `/etc/hosts`.
    pub host_aliases: Vec<HostAliasV1>,
    /// What goes into `/etc/resolv.conf`.
    pub dns: DnsV1,
    /// Others than its node have a say in whether it is ready (`readinessGates`).
    pub is_gated: bool,
    /// Whether its containers get variables that name the Services of its namespace.
    pub service_links: bool,
    /// Names of the Secrets, in order, whose registry credentials pulls may use.
    pub pull_secrets: Vec<String>,
    /// The pod's priority: under pressure, lower ones are evicted first.
    pub priority: i32,
    /// Most seconds the pod may be active, from when the node first saw it.
    pub active_deadline_s: Option<u32>,
    /// What happens after a container exits.
    pub restart_policy: RestartPolicyV1,
    /// Time between the stop signal and SIGKILL, in seconds.
    pub termination_grace_s: u32,
    /// The pod's final phase, once the master has stored it: it never runs again,
    /// also on a node that has lost its own record of that.
    pub ended: Option<PhaseV1>,
    /// Set once the pod is being deleted: stop it, with this many seconds of grace.
    pub deletion_grace_s: Option<u32>,
    /// Room for later fields.
    pub ext: Ext,
}

impl PodV1 {
    /// A pod of which nothing but its name is said: no containers, restarted always.
    #[must_use]
    pub fn new(uid: Uid, namespace: &str, name: &str) -> Self {
        Self {
            uid,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Vec::new(),
            annotations: Vec::new(),
            hostname: name.to_owned(),
            fqdn: String::new(),
            service_account: "default".to_owned(),
            init_containers: Vec::new(),
            containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            volumes: Vec::new(),
            namespaces: NamespacesV1::default(),
            security: PodSecurityV1::default(),
            host_aliases: Vec::new(),
            dns: DnsV1::default(),
            is_gated: false,
            service_links: true,
            pull_secrets: Vec::new(),
            priority: 0,
            active_deadline_s: None,
            restart_policy: RestartPolicyV1::Always,
            termination_grace_s: 30,
            ended: None,
            deletion_grace_s: None,
            ext: Vec::new(),
        }
    }

    /// All containers: init, main, ephemeral.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerV1> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }
}

/// When a container is started again after it exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicyV1 {
    /// After every exit.
    Always,
    /// After an exit with a code other than 0.
    OnFailure,
    /// Never.
    Never,
}

/// What a pod shares with its host, and its containers with one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacesV1 {
    /// The host's network instead of one of its own.
    pub host_network: bool,
    /// The host's processes are visible.
    pub host_pid: bool,
    /// The host's System V IPC and POSIX queues.
    pub host_ipc: bool,
    /// All containers of the pod see one another's processes.
    pub share_process: bool,
}

/// What holds for a pod as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSecurityV1 {
    /// Group that owns the files of volumes that can be given to one, and that
    /// every process is in.
    pub fs_group: Option<u32>,
    /// Leave a volume alone whose root belongs to `fs_group` already.
    pub fs_group_on_root_mismatch: bool,
    /// Groups that every process is in.
    pub supplemental_groups: Vec<u32>,
    /// Kernel settings of the pod's namespaces, as (name, value).
    pub sysctls: Vec<(String, String)>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAliasV1 {
    /// The address.
    pub ip: String,
    /// The names it has.
    pub names: Vec<String>,
}

/// How a pod's names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsV1 {
    /// Where the servers come from.
    pub policy: DnsPolicyV1,
    /// Servers after those of the policy.
    pub nameservers: Vec<String>,
    /// Search domains after those of the policy.
    pub searches: Vec<String>,
    /// Options as `name` or `name:value`, after those of the policy.
    pub options: Vec<String>,
}

/// Where a pod's name servers come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsPolicyV1 {
    /// The cluster's DNS, where the node has one; else as `Default`.
    #[default]
    ClusterFirst,
    /// The node's own upstreams.
    Default,
    /// Only what [`DnsV1`] names.
    None,
}

/// Which backend runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RuntimeV1 {
    /// An OCI image, through libcontainer.
    Oci,
    /// A WebAssembly module or component, through wasmtime.
    Wasm,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicyV1 {
    /// Asked for at every start; a local copy of the same digest is used.
    Always,
    /// Only where no local copy exists.
    IfNotPresent,
    /// Never; a missing image is an error.
    Never,
}

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerV1 {
    /// Name, unique in the pod.
    pub name: String,
    /// The image as the manifest names it.
    pub image: String,
    /// What `image` resolved to on the master, as `sha256:…`: the image index or
    /// manifest of an OCI image, or the module itself of a WASM image. Empty
    /// where the master could not resolve it (yet): then the node asks the registry.
    pub digest: String,
    /// Which backend runs it.
    pub runtime: RuntimeV1,
    /// When the image is fetched.
    pub pull_policy: PullPolicyV1,
    /// Replaces the image's entrypoint where not empty.
    pub command: Vec<String>,
    /// Replaces the image's command where not empty.
    pub args: Vec<String>,
    /// Working directory; empty for the image's.
    pub working_dir: String,
    /// ConfigMaps and Secrets whose keys become variables, in order.
    pub env_from: Vec<EnvFromV1>,
    /// Variables, in order; `$(NAME)` in a literal is expanded by the node.
    pub env: Vec<EnvV1>,
    /// Where volumes appear in the container.
    pub mounts: Vec<MountV1>,
    /// What the container may use.
    pub resources: ResourcesV1,
    /// Devices and other resources that are counted, as (name, how many).
    pub devices: Vec<(String, u32)>,
    /// When the container itself is started again; `None` for the pod's policy.
    pub restart_policy: Option<RestartPolicyV1>,
    /// The container that an ephemeral one looks into; empty for none.
    pub target: String,
    /// How its health is asked for.
    pub probes: ProbesV1,
    /// What runs after its start and before its stop.
    pub lifecycle: LifecycleV1,
    /// Its standard input and terminal.
    pub stdio: StdioV1,
    /// Where its last words are read.
    pub termination_message: TerminationMessageV1,
    /// Who the container runs as and what it may do.
    pub security: SecurityV1,
    /// Ports the container says it listens on. Nothing opens or closes by them.
    pub ports: Vec<PortV1>,
    /// Room for later fields.
    pub ext: Ext,
}

impl ContainerV1 {
    /// A container of which nothing but its image is said.
    #[must_use]
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            digest: String::new(),
            runtime: RuntimeV1::Oci,
            pull_policy: PullPolicyV1::IfNotPresent,
            command: Vec::new(),
            args: Vec::new(),
            working_dir: String::new(),
            env_from: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            resources: ResourcesV1::default(),
            devices: Vec::new(),
            restart_policy: None,
            target: String::new(),
            probes: ProbesV1::default(),
            lifecycle: LifecycleV1::default(),
            stdio: StdioV1::default(),
            termination_message: TerminationMessageV1::default(),
            security: SecurityV1::default(),
            ports: Vec::new(),
            ext: Vec::new(),
        }
    }
}

/// How a container's health is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbesV1 {
    /// Holds the other two back until it has succeeded.
    pub startup: Option<ProbeV1>,
    /// Its failure ends the run.
    pub liveness: Option<ProbeV1>,
    /// Its failure makes the pod not ready.
    pub readiness: Option<ProbeV1>,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeV1 {
    /// What is asked.
    pub handler: HandlerV1,
    /// Seconds between the start and the first question.
    pub initial_delay_s: u32,
    /// Seconds an answer may take; at least 1.
    pub timeout_s: u32,
    /// Seconds between two questions; at least 1.
    pub period_s: u32,
    /// Successes in a row after a failure that count as one; at least 1.
    pub success_threshold: u32,
    /// Failures in a row that count as one; at least 1.
    pub failure_threshold: u32,
    /// Seconds of grace for a run that the probe ends; `None` for the pod's.
    pub termination_grace_s: Option<u32>,
}

/// What a probe asks or a hook does. Ports are numbers: names are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandlerV1 {
    /// Runs a command in the container; exit code 0 is success.
    Exec(Vec<String>),
    /// `GET`; 200 to 399 is success.
    Http {
        /// Empty for the pod's address.
        host: String,
        /// Port.
        port: u16,
        /// Path with query, beginning with `/`.
        path: String,
        /// TLS, whatever its certificate.
        https: bool,
        /// Header fields.
        headers: Vec<(String, String)>,
    },
    /// A connection that is accepted is success.
    Tcp {
        /// Empty for the pod's address.
        host: String,
        /// Port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` that answers `SERVING` is success.
    Grpc {
        /// Port.
        port: u16,
        /// The service asked about; may be empty.
        service: String,
    },
    /// Waits so many seconds (hooks only).
    Sleep(u32),
}

/// What runs after a container's start and before its stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleV1 {
    /// Right after the start; its failure ends the run.
    pub post_start: Option<HandlerV1>,
    /// Before the stop signal, within the grace period.
    pub pre_stop: Option<HandlerV1>,
    /// Number of the signal that asks it to stop; `None` for the image's, or SIGTERM.
    pub stop_signal: Option<u8>,
}

/// A container's standard input and terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioV1 {
    /// Standard input stays open and can be attached to.
    pub stdin: bool,
    /// Standard input ends with the first client that attached.
    pub stdin_once: bool,
    /// Standard streams are a terminal.
    pub tty: bool,
}

/// Where a container's last words are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminationMessageV1 {
    /// Absolute path of a file in the container; empty for `/dev/termination-log`.
    pub path: String,
    /// If the file is empty and the run failed, the end of the log is taken.
    pub or_logs: bool,
}

/// All keys of a ConfigMap or Secret as variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFromV1 {
    /// What is put in front of each key.
    pub prefix: String,
    /// Where the keys come from.
    pub source: SourceV1,
    /// Whether a missing source is fine.
    pub optional: bool,
}

/// A ConfigMap or Secret of the pod's namespace, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SourceV1 {
    /// A ConfigMap.
    ConfigMap(String),
    /// A Secret.
    Secret(String),
}

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvV1 {
    /// The variable's name.
    pub name: String,
    /// Where its value comes from.
    pub value: EnvValueV1,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValueV1 {
    /// Written in the manifest; `$(NAME)` is expanded.
    Literal(String),
    /// One key of a ConfigMap or Secret.
    Key {
        /// The object.
        source: SourceV1,
        /// The key in it.
        key: String,
        /// Whether a missing object or key leaves the variable out.
        optional: bool,
    },
    /// A field of the pod, as the downward API names it: `metadata.name`,
    /// `metadata.namespace`, `metadata.uid`, `metadata.labels['k']`,
    /// `metadata.annotations['k']`, `spec.nodeName`, `spec.serviceAccountName`,
    /// `status.hostIP`, `status.podIP`.
    Field(String),
    /// A resource of a container of the pod.
    Resource {
        /// The container; empty for the one that holds this variable.
        container: String,
        /// `requests.cpu`, `limits.memory`, …
        resource: String,
        /// What the amount is divided by, in thousandths of the resource's unit
        /// (cores or bytes); 1000 for the default divisor.
        divisor_millis: u64,
    },
}

/// Where a volume appears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountV1 {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// Path inside the volume; empty for all of it. Never leaves the volume.
    pub sub_path: String,
    /// Whether `$(NAME)` in `sub_path` is expanded with the container's variables.
    pub sub_path_expanded: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether writes are refused in mounts below it too.
    pub recursive_read_only: bool,
    /// Which mounts made later are seen on the other side.
    pub propagation: PropagationV1,
}

impl MountV1 {
    /// All of a volume, writable.
    #[must_use]
    pub fn new(volume: &str, path: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            path: path.to_owned(),
            sub_path: String::new(),
            sub_path_expanded: false,
            read_only: false,
            recursive_read_only: false,
            propagation: PropagationV1::None,
        }
    }
}

/// Which mounts made after the start of a container are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PropagationV1 {
    /// None.
    #[default]
    None,
    /// Those of the host in the container.
    HostToContainer,
    /// Those of either side on the other.
    Bidirectional,
}

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeV1 {
    /// Name, unique in the pod.
    pub name: String,
    /// What it holds.
    pub source: VolumeSourceV1,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSourceV1 {
    /// An empty folder that lives as long as the pod.
    EmptyDir {
        /// Whether it lives in memory (tmpfs).
        memory: bool,
        /// Most bytes it may hold; 0 for no limit.
        limit_bytes: u64,
    },
    /// Keys of a ConfigMap or Secret as files.
    Keys {
        /// The object.
        source: SourceV1,
        /// Which keys, as (key, path, mode); empty for all, each under its own name.
        items: Vec<KeyPathV1>,
        /// Permission bits of the files, such as `0o644`.
        default_mode: u32,
        /// Whether a missing object or key is fine.
        optional: bool,
    },
    /// A file or folder of the host.
    HostPath {
        /// Absolute path.
        path: String,
        /// What must be there, or is made.
        kind: HostPathKindV1,
    },
    /// A folder of the host that a PersistentVolume names.
    Local {
        /// Absolute path.
        path: String,
        /// Whether writes are refused.
        read_only: bool,
        /// Name of the PersistentVolume, for messages.
        volume: String,
    },
    /// Fields of the pod as files.
    Downward {
        /// The files.
        items: Vec<DownwardItemV1>,
        /// Permission bits of the files.
        default_mode: u32,
    },
    /// Several of these in one folder.
    Projected {
        /// What it holds; a later one replaces the files of an earlier one.
        sources: Vec<ProjectionV1>,
        /// Permission bits of the files.
        default_mode: u32,
    },
    /// A folder that the node makes for a PersistentVolume and keeps until it is
    /// told to remove it; see [`crate::set::NodeConfigV1::remove_volumes`].
    Made {
        /// Name of the PersistentVolume, and of the folder.
        volume: String,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// A claim that has no volume, with the reason: the pod waits for it.
    Waits(String),
}

/// What a `hostPath` must find, or makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathKindV1 {
    /// Anything; nothing is checked.
    Any,
    /// A folder, made (0755) where nothing is.
    DirectoryOrCreate,
    /// A folder.
    Directory,
    /// A file, made (0644) where nothing is.
    FileOrCreate,
    /// A file.
    File,
    /// A UNIX socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// One source of a projected volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectionV1 {
    /// Keys of a ConfigMap or Secret.
    Keys {
        /// The object.
        source: SourceV1,
        /// Which keys; empty for all, each under its own name.
        items: Vec<KeyPathV1>,
        /// Whether a missing object or key is fine.
        optional: bool,
    },
    /// Fields of the pod.
    Downward(Vec<DownwardItemV1>),
    /// A token of the pod's ServiceAccount, renewed before it expires.
    Token {
        /// Whom it is for; empty for the API server.
        audience: String,
        /// Seconds it is good for; at least 600.
        expiration_s: u32,
        /// Relative path of the file.
        path: String,
    },
}

/// A field of the pod as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardItemV1 {
    /// Relative path of the file.
    pub path: String,
    /// Permission bits, or `None` for the volume's default.
    pub mode: Option<u32>,
    /// What it holds: [`EnvValueV1::Field`] (here `metadata.labels` and
    /// `metadata.annotations` stand for all of them) or [`EnvValueV1::Resource`].
    pub value: EnvValueV1,
}

/// One key of a ConfigMap or Secret as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPathV1 {
    /// The key.
    pub key: String,
    /// Relative path of the file.
    pub path: String,
    /// Permission bits, or `None` for the volume's default.
    pub mode: Option<u32>,
}

/// What a container asks for and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesV1 {
    /// CPU asked for, in millicores; 0 for none.
    pub cpu_request_millis: u64,
    /// Most CPU, in millicores; 0 for no limit.
    pub cpu_limit_millis: u64,
    /// Memory asked for, in bytes; 0 for none.
    pub memory_request_bytes: u64,
    /// Most memory, in bytes; 0 for no limit.
    pub memory_limit_bytes: u64,
    /// Disk asked for (logs, what the container writes, emptyDir), in bytes; 0 for none.
    pub disk_request_bytes: u64,
    /// Most disk, in bytes; 0 for no limit.
    pub disk_limit_bytes: u64,
}

/// Who a container runs as and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityV1 {
    /// User id; `None` for the image's user.
    pub run_as_user: Option<u32>,
    /// Group id; `None` for the image's.
    pub run_as_group: Option<u32>,
    /// Refuse to run as user 0.
    pub run_as_non_root: bool,
    /// Mount the root file system read-only.
    pub read_only_root: bool,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// Capabilities added to the default ones, such as `NET_ADMIN`.
    pub capabilities_add: Vec<String>,
    /// Capabilities dropped; `ALL` drops every one.
    pub capabilities_drop: Vec<String>,
    /// Everything the host may do: all capabilities and devices, no seccomp.
    pub privileged: bool,
    /// Which system calls it may make.
    pub seccomp: SeccompV1,
    /// Nothing in `/proc` and `/sys` is hidden or read-only.
    pub unmasked_proc: bool,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompV1 {
    /// Those of the runtime's own profile.
    #[default]
    RuntimeDefault,
    /// All.
    Unconfined,
    /// Those of a profile on the node, by its path below the agent's folder for them.
    Localhost(String),
}

/// A port a container says it listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortV1 {
    /// Name, or empty.
    pub name: String,
    /// Port number.
    pub port: u16,
    /// Transport.
    pub protocol: ProtocolV1,
    /// The port on the node that leads to it; 0 for none.
    pub host_port: u16,
    /// On which of the node's addresses; empty for all.
    pub host_ip: String,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProtocolV1 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A ConfigMap or Secret that a pod of the node uses.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysV1 {
    /// Namespace of the object.
    pub namespace: String,
    /// Kind and name of the object.
    pub source: SourceV1,
    /// Keys and their bytes, sorted by key.
    pub data: Vec<(String, Vec<u8>)>,
    /// Room for later fields.
    pub ext: Ext,
}

// The bytes may be secret, so only their sizes are shown.
impl std::fmt::Debug for KeysV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sizes: Vec<(&str, usize)> =
            self.data.iter().map(|(key, bytes)| (key.as_str(), bytes.len())).collect();
        f.debug_struct("KeysV1")
            .field("namespace", &self.namespace)
            .field("source", &self.source)
            .field("data_sizes", &sizes)
            .finish_non_exhaustive()
    }
}
