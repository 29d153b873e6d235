//! What a container is, in the form both the agent and the shim read.
//!
//! Everything is resolved before it gets here: image configuration merged,
//! variables expanded, volumes materialised. A spec is written to
//! `config.json` (0600, it may hold secrets) and never changed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One run of one container.
#[derive(Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique per run, at most 63 of `[a-z0-9-]`.
    pub id: String,
    /// Identity of the pod.
    pub pod_uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container in the pod.
    pub container: String,
    /// Which run of the container this is, from 0.
    pub attempt: u32,
    /// The image as the manifest names it, for messages.
    pub image: String,
    /// What runs.
    pub workload: Workload,
    /// The command, its path first.
    pub args: Vec<String>,
    /// Variables, in order; a later one of the same name wins.
    pub env: Vec<(String, String)>,
    /// Working directory; empty for `/`.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Files and folders of the host that appear in the container, in order.
    pub mounts: Vec<Mount>,
    /// What it may use.
    pub resources: Resources,
    /// What it may do.
    pub security: Security,
    /// The container's standard input and terminal.
    #[serde(default)]
    pub stdio: Stdio,
    /// The pod's namespaces.
    pub sandbox: Sandbox,
    /// Absolute path in every cgroup hierarchy: `/pinnace/pod<uid>/<container>-<attempt>`.
    pub cgroup: String,
    /// Log file, one line a line: `<RFC 3339 with nanoseconds> stdout|stderr F|P <line>`.
    pub log: PathBuf,
}

// Arguments and variables may hold secrets, so only their number is shown.
impl std::fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerSpec")
            .field("id", &self.id)
            .field("pod", &format_args!("{}/{}", self.namespace, self.pod))
            .field("container", &self.container)
            .field("attempt", &self.attempt)
            .field("image", &self.image)
            .field("workload", &self.workload)
            .field("n_args", &self.args.len())
            .field("n_env", &self.env.len())
            .field("user", &self.user)
            .field("mounts", &self.mounts)
            .field("resources", &self.resources)
            .field("security", &self.security)
            .field("cgroup", &self.cgroup)
            .finish_non_exhaustive()
    }
}

/// What runs in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workload {
    /// An unpacked OCI image.
    Oci {
        /// Layers in overlay form, lowest first.
        layers: Vec<PathBuf>,
        /// Folder of this run alone; what the container writes lives below it.
        scratch: PathBuf,
    },
    /// Compiled WebAssembly.
    Wasm {
        /// The compiled file.
        artifact: PathBuf,
        /// SHA-256 of the compiled file.
        sha256: [u8; 32],
        /// What the cluster signed about it.
        signature: ArtifactSignature,
        /// Ed25519 public key that must have signed it.
        key: [u8; 32],
        /// Where a module that answers HTTP requests listens, on every address of the pod.
        http_port: u16,
    },
}

/// The signed description of compiled code, as `wire::artifact::ArtifactV1` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactSignature {
    /// `sha256:…` of the portable module.
    pub module: String,
    /// Version of wasmtime it was compiled with.
    pub engine: String,
    /// Target triple or `pulley32`, `pulley64`.
    pub target: String,
    /// Version of the engine settings.
    pub profile: u32,
    /// How it is run.
    pub world: World,
    /// Number of compiled bytes.
    pub size: u64,
    /// Ed25519 signature.
    pub bytes: Vec<u8>,
}

/// How a WebAssembly module is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum World {
    /// Once, from its start to its end.
    #[default]
    Command,
    /// As an HTTP server: an instance of it for each request.
    Http,
}

/// Who a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The image's `USER` (`name`, `uid`, `name:group`, `uid:gid`); empty for root.
    pub name: String,
    /// Replaces the image's user.
    pub uid: Option<u32>,
    /// Replaces the image's group.
    pub gid: Option<u32>,
    /// Refuse to start as user 0.
    pub non_root: bool,
    /// Groups it is in besides the image's.
    pub groups: Vec<u32>,
}

/// A file or folder of the host that appears in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether writes are refused in mounts below it too; only with `read_only`.
    pub recursive_read_only: bool,
    /// Which mounts made later are seen on the other side.
    pub propagation: Propagation,
}

/// Which mounts made after the start of a container are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// None.
    #[default]
    None,
    /// Those of the host in the container.
    HostToContainer,
    /// Those of either side on the other.
    Bidirectional,
}

/// What a container may use. 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Share of the CPU under contention, in millicores.
    pub cpu_request_millis: u64,
    /// Most CPU, in millicores.
    pub cpu_limit_millis: u64,
    /// Most memory, in bytes.
    pub memory_limit_bytes: u64,
    /// Most processes and threads.
    pub pids_max: u64,
    /// Who dies first when the board runs out of memory; see [`oom_score_adj`].
    pub oom_score_adj: i32,
}

/// What a container may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// The root file system is read-only.
    pub read_only_root: bool,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// Capabilities added to the default ones (`NET_ADMIN`); `ALL` for every one.
    pub capabilities_add: Vec<String>,
    /// Capabilities taken away; `ALL` for every one.
    pub capabilities_drop: Vec<String>,
    /// All capabilities and devices, no seccomp, nothing hidden or read-only.
    pub privileged: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Nothing in `/proc` and `/sys` is hidden or read-only.
    pub unmasked_proc: bool,
    /// Device nodes of the host that it may open.
    pub devices: Vec<PathBuf>,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Those of the runtime's own profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of a profile in the form of Docker's `seccomp.json`.
    File(PathBuf),
}

/// A container's standard input and terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Standard input stays open and can be attached to; `/dev/null` otherwise.
    pub stdin: bool,
    /// Standard input ends with the first client that has sent any. Not with a
    /// terminal, which never ends.
    pub stdin_once: bool,
    /// All three streams are a terminal of the container's own.
    #[serde(default)]
    pub tty: bool,
}

/// The namespaces of the pod, as nsfs bind mounts, and what its containers share.
/// An empty path is the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The pod's host name (the uts namespace has it already).
    pub hostname: String,
    /// Network namespace.
    pub net: PathBuf,
    /// IPC namespace.
    pub ipc: PathBuf,
    /// UTS namespace.
    pub uts: PathBuf,
    /// Process ids.
    pub pid: PidNamespace,
    /// A tmpfs that becomes `/dev/shm` of every container; empty for one each.
    pub shm: PathBuf,
}

/// Whose processes a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Own,
    /// The host's.
    Host,
    /// The pod's, held by this nsfs bind mount.
    Pod(PathBuf),
    /// Those of another container that runs, named by its id: a debugger's.
    Container(String),
}

/// The `oom_score_adj` the kubelet gives a container.
///
/// A guaranteed pod (every container has limits equal to its requests) gets
/// -997, a pod without requests and limits 1000, any other
/// `1000 - 1000 × request / capacity`, between 2 and 999.
///
/// Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior>.
#[must_use]
pub fn oom_score_adj(
    guaranteed: bool,
    best_effort: bool,
    memory_request_bytes: u64,
    capacity_bytes: u64,
) -> i32 {
    if guaranteed {
        return -997;
    }
    if best_effort || capacity_bytes == 0 {
        return 1000;
    }
    let share = u128::from(memory_request_bytes) * 1000 / u128::from(capacity_bytes);
    (1000 - i32::try_from(share).unwrap_or(1000)).clamp(2, 999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_scores_follow_the_kubelet() {
        let gib = 1 << 30;
        assert_eq!(oom_score_adj(true, false, gib, 4 * gib), -997);
        assert_eq!(oom_score_adj(false, true, 0, 4 * gib), 1000);
        assert_eq!(oom_score_adj(false, false, gib, 4 * gib), 750);
        assert_eq!(oom_score_adj(false, false, 0, 4 * gib), 999);
        assert_eq!(oom_score_adj(false, false, 4 * gib, 4 * gib), 2);
    }
}
