//! A pod as a node needs it: resolved from the Pod object by the master, with
//! every default applied. ConfigMaps and Secrets travel beside it as items of
//! their own, so that one change is sent once.

use serde::{Deserialize, Serialize};

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
    /// The ServiceAccount's name, for the downward API.
    pub service_account: String,
    /// The containers, in the order of the manifest.
    pub containers: Vec<ContainerV1>,
    /// The volumes that containers mount by name.
    pub volumes: Vec<VolumeV1>,
    /// What happens after a container exits.
    pub restart_policy: RestartPolicyV1,
    /// Time between the stop signal and SIGKILL, in seconds.
    pub termination_grace_s: u32,
    /// Set once the pod is being deleted: stop it, with this many seconds of grace.
    pub deletion_grace_s: Option<u32>,
    /// Room for later fields.
    pub ext: Ext,
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
    /// Who the container runs as and what it may do.
    pub security: SecurityV1,
    /// Ports the container says it listens on. Nothing opens or closes by them.
    pub ports: Vec<PortV1>,
    /// Room for later fields.
    pub ext: Ext,
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
    /// Whether writes are refused.
    pub read_only: bool,
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
