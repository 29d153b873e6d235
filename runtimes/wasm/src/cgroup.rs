//! Puts the calling process into its container's cgroup, with the limits set.
//!
//! A controller that the kernel lacks (Raspberry Pi OS ships without the memory
//! one) costs its limit and nothing else; the agent reports it as a condition.

use std::path::Path;

use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager,
};
use nix::unistd::Pid;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};
use runtime::{ContainerSpec, Resources};
use tracing::warn;

/// What the engine itself may use beside the guest's memory, in bytes.
const ENGINE_BYTES: u64 = 16 << 20;

/// Joins the cgroup of `spec`, made where it is missing.
///
/// # Errors
///
/// A sentence, where there is no cgroup to join.
pub(crate) fn join(spec: &ContainerSpec) -> Result<(), String> {
    let manager = create_cgroup_manager(CgroupConfig {
        cgroup_path: Path::new(&spec.cgroup).to_owned(),
        systemd_cgroup: false,
        container_name: spec.id.clone(),
    })
    .map_err(|err| format!("cannot make cgroup {}: {err}", spec.cgroup))?;
    manager
        .add_task(Pid::this())
        .map_err(|err| format!("cannot join cgroup {}: {err}", spec.cgroup))?;
    for (name, limit) in limits(&spec.resources) {
        apply(&manager, name, &limit);
    }
    Ok(())
}

fn apply(manager: &AnyCgroupManager, name: &str, resources: &LinuxResources) {
    let options = ControllerOpt {
        resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    if let Err(err) = manager.apply(&options) {
        warn!(controller = name, %err, "limit not set");
    }
}

/// One set of resources a controller, so that each can fail alone.
fn limits(resources: &Resources) -> Vec<(&'static str, LinuxResources)> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut limits = Vec::new();
    let mut add = |name, builder: LinuxResourcesBuilder| {
        limits.push((name, builder.build().expect("every field has a default")));
    };
    if resources.memory_limit_bytes != 0 {
        let memory = LinuxMemoryBuilder::default()
            .limit(signed(resources.memory_limit_bytes.saturating_add(ENGINE_BYTES)))
            .build()
            .expect("every field has a default");
        add("memory", LinuxResourcesBuilder::default().memory(memory));
    }
    let request = resources.cpu_request_millis;
    let limit = resources.cpu_limit_millis;
    if request != 0 || limit != 0 {
        // 1024 shares are one core; the kernel's least is 2.
        let shares = (if request == 0 { limit } else { request } * 1024 / 1000).max(2);
        let mut cpu = LinuxCpuBuilder::default().shares(shares);
        if limit != 0 {
            // Of a period of 100 ms; the kernel's least quota is 1 ms.
            cpu = cpu.period(100_000_u64).quota(signed(limit.saturating_mul(100)).max(1000));
        }
        let cpu = cpu.build().expect("every field has a default");
        add("cpu", LinuxResourcesBuilder::default().cpu(cpu));
    }
    if resources.pids_max != 0 {
        let pids = LinuxPidsBuilder::default()
            .limit(signed(resources.pids_max))
            .build()
            .expect("every field has a default");
        add("pids", LinuxResourcesBuilder::default().pids(pids));
    }
    limits
}
