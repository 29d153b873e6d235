//! Runs OCI images through libcontainer, as a [`runtime::Launcher`].
//!
//! ```text
//! shim ── overlay in a mount namespace of its own
//!      ── libcontainer: namespaces, mounts, user, capabilities (created, not started)
//!      ── device rules on the cgroup (v1 controller or a BPF program)
//!      ── start: seccomp filter, last capabilities dropped, execve
//!      ── back to the host's mount namespace: the host never sees a mount
//! ```
//!
//! Everything happens in the shim, which has one thread: libcontainer clones
//! without care for other threads. Knows nothing of images beyond the unpacked
//! layers it is given, nor of pods beyond their namespaces.

mod capabilities;
mod config;
pub mod devices;
mod exec;
mod executor;
mod launcher;
mod propagate;
mod rootfs;
pub mod seccomp;
mod user;

pub use devices::{DeviceRules, probe_device_rules};
pub use launcher::OciLauncher;
pub use runtime::cgroup::CgroupSupport;

/// Which limits and device rules this machine can enforce, for the node's
/// conditions and `doctor`.
///
/// # Errors
/// /proc is not mounted.
pub fn probe_cgroups() -> std::io::Result<(CgroupSupport, DeviceRules)> {
    let hierarchies = runtime::cgroup::Hierarchies::detect()?;
    Ok((hierarchies.support(), probe_device_rules(&hierarchies)))
}
