//! Runs containers: the types, the [`Runtime`] the agent uses, and the shim
//! that stands between the agent and each container.
//!
//! ```text
//! agent ── ShimRuntime ──spawn──► shim (one a container, single-threaded)
//!              ▲                    │ Launcher::launch   (oci, wasm)
//!              │ pidfd              ▼
//!              └──── exit.json ◄── container ── stdout, stderr ──► log file
//! ```
//!
//! The agent never builds a container in its own multi-threaded process: the
//! shim is the agent's binary executed anew (`… shim DIR`), so it starts with
//! one thread and a clean heap. Agent and shim meet only in the container's
//! folder ([`dir::ContainerDir`]), so that either may die at any time.
//!
//! Knows nothing of pods, images, registries, restart policies or the master.

pub mod attach;
pub mod cgroup;
pub mod dir;
pub mod exec;
pub mod fake;
mod log;
mod partial;
mod process;
pub mod shim;
mod spec;
mod state;
mod supervise;
mod terminal;

pub use exec::{
    ExecHandle, ExecOutput, ExecRequest, ExecStdio, WindowSize, exec_main, exec_output,
};
pub use process::{default_signals, now_ms};
pub use shim::{Launcher, shim_main};
pub use spec::{
    ArtifactSignature, ContainerSpec, Mount, PidNamespace, Propagation, Resources, Sandbox,
    Seccomp, Security, Stdio, User, Workload, World, oom_score_adj,
};
pub use state::{
    BoxFuture, Exit, LaunchError, Observed, Pid, Running, Runtime, RuntimeError, reason,
};
pub use supervise::{ShimCommand, ShimRuntime};
