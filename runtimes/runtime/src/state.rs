//! What can be said about a container, and the trait that says it.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::ContainerSpec;
use crate::exec::{ExecHandle, ExecRequest};

/// A future on the heap, so that [`Runtime`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A process id, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub i32);

/// The words Kubernetes has for why a container did not start.
pub mod reason {
    /// What the pod asks for cannot be configured on this container.
    pub const CREATE_CONTAINER_CONFIG_ERROR: &str = "CreateContainerConfigError";
    /// The container could not be built.
    pub const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";
    /// The container was built and its process could not be executed.
    pub const START_ERROR: &str = "StartError";
    /// The pod's namespaces are missing or wrong.
    pub const CREATE_POD_SANDBOX_ERROR: &str = "CreatePodSandboxError";
    /// It ended and nothing saw how.
    pub const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
}

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    /// One of [`reason`], for `state.waiting.reason`.
    pub reason: String,
    /// For people; names the container, the command or file, and what to do.
    pub message: String,
}

impl LaunchError {
    /// An error with one of the words in [`reason`].
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal where a signal ended it, 255 where unknown.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed something in it for want of memory.
    pub oom_killed: bool,
    /// Wall clock, in milliseconds since 1970; 0 if it never started.
    pub started_ms: u64,
    /// Wall clock, in milliseconds since 1970.
    pub finished_ms: u64,
    /// Why it never ran, or why its end is not known.
    pub error: Option<LaunchError>,
}

/// A container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its first process.
    pub pid: Pid,
    /// Wall clock, in milliseconds since 1970.
    pub started_ms: u64,
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Nothing of it exists.
    Absent,
    /// A shim builds it.
    Starting,
    /// It runs.
    Running(Running),
    /// It ended, or never started.
    Exited(Exit),
    /// It never ran: the agent or its shim died before it could.
    /// Remove it and start the next attempt.
    Lost,
}

/// An error of [`Runtime`].
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container could not be started, and says why.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// An id that cannot be a folder's name.
    #[error("container id {0:?} is not 1 to 63 of [a-z0-9-]")]
    BadId(String),
    /// The id has been used by a run that is over; remove it first.
    #[error("container {0} has already run")]
    AlreadyRan(String),
    /// The shim did not answer.
    #[error("the shim of container {id} {what}; see {log}")]
    Shim {
        /// The container.
        id: String,
        /// What it did instead of answering.
        what: String,
        /// Where its own messages are.
        log: PathBuf,
    },
    /// A command cannot run in a container that does not.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The container is a WebAssembly module.
    #[error(
        "container \"{container}\" is a WebAssembly module: it has no shell and no second program, \
         so no command can be run in it; use logs, attach or port-forward"
    )]
    ExecUnsupported {
        /// The container's name in its pod.
        container: String,
    },
    /// The exec process was killed, and with it the command and its exit code.
    #[error("the command's exit code is not known: the process that ran it was killed")]
    ExecLost,
    /// A system call on the container's folder, processes or cgroup failed.
    #[error("cannot {operation} of container {id}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The container.
        id: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Starts, watches and ends containers. Every call may be repeated.
pub trait Runtime: Send + Sync + 'static {
    /// Starts a container and waits until it runs.
    ///
    /// An id that already runs is left alone and counts as started.
    fn start(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<Running, RuntimeError>>;

    /// What is known of a container now. Never blocks for long.
    fn observe(&self, id: &str) -> Observed;

    /// Sends a signal to the container's first process; SIGKILL (9) goes to
    /// every process in its cgroup. A container that is gone is fine.
    ///
    /// # Errors
    /// The signal could not be sent.
    fn kill(&self, id: &str, signal: i32) -> Result<(), RuntimeError>;

    /// Kills what is left of a container and removes its folder, cgroup and scratch.
    fn remove(&self, id: &str) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Runs one more command in a container that runs, with what the container
    /// has: namespaces, limits, user, capabilities, seccomp filter, variables.
    /// See [`crate::exec_output`] for a command that is only waited for.
    ///
    /// The command ends with its handle, and with its container.
    fn exec(
        &self,
        id: &str,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecHandle, RuntimeError>>;

    /// The standard streams of a container that runs: what it writes from now
    /// on, and with `stdin` what it reads, where its spec lets it. The handle's
    /// exit code is the container's; dropping it leaves the container alone.
    fn attach(&self, id: &str, stdin: bool) -> BoxFuture<'_, Result<ExecHandle, RuntimeError>>;

    /// Every container there is anything of.
    fn list(&self) -> Vec<String>;

    /// Changes whenever some container may have changed. Level-triggered: look
    /// at every container of interest with [`Runtime::observe`].
    fn changes(&self) -> watch::Receiver<u64>;
}
