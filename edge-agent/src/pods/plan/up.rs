//! Plans what a pod needs to run: sandbox, volumes, images, starts, hooks.

use std::time::Duration;

use super::{Plan, SHOW_PULL_ERROR, Step, down, will_restart};
use crate::pods::desired::Desired;
use crate::pods::order;
use crate::pods::state::{Container, Hook, ImagePhase, PodState, Role, Run, Sandbox, Why};
use crate::pods::status::config_error;

pub(super) fn run(plan: &mut Plan, desired: &Desired, state: &PodState, now: Duration) {
    if state.is_tearing_down {
        return;
    }
    let has_sandbox = match &state.sandbox {
        Sandbox::Ready { .. } => true,
        Sandbox::SettingUp => false,
        Sandbox::Absent => {
            plan.step(Step::SetUpSandbox);
            false
        }
        Sandbox::Failed => {
            if plan.is_due(state.sandbox_failure.as_ref(), now) {
                plan.step(Step::SetUpSandbox);
            }
            false
        }
    };
    let has_volumes = volumes(plan, desired, state, now);
    for (index, container) in state.containers.iter().enumerate() {
        // A container that is no longer in the pod cannot be: the API refuses it.
        let Some(wanted) = desired.container(&container.name) else { continue };
        let go = Go {
            turn: order::may_start(state, index),
            ready: has_sandbox && has_volumes && config_error(desired, wanted).is_none(),
        };
        run_container(plan, desired, container, go, now);
    }
}

/// What a container that is to start has.
#[derive(Clone, Copy)]
struct Go {
    /// Those it waits for are done.
    turn: bool,
    /// All it needs but its image is there.
    ready: bool,
}

/// Plans the volumes; says whether containers may start on them.
fn volumes(plan: &mut Plan, desired: &Desired, state: &PodState, now: Duration) -> bool {
    let volumes = &state.volumes;
    let wanted = desired.volume_versions();
    let is_current = volumes.versions.as_ref() == Some(&wanted);
    let is_possible = desired.volumes_missing().is_none();
    if !is_current
        && is_possible
        && !volumes.is_working
        && plan.is_due(volumes.failure.as_ref(), now)
    {
        plan.step(Step::SetUpVolumes(wanted));
    }
    // An object that vanished under a pod that runs leaves the files as they were,
    // and a restart of one of its containers goes on with them, as the kubelet does.
    volumes.versions.is_some()
}

fn run_container(plan: &mut Plan, desired: &Desired, container: &Container, go: Go, now: Duration) {
    let Some(wanted) = desired.container(&container.name) else { return };
    let image = wanted.image.as_str();
    match &container.run {
        Run::Starting { .. } => {}
        Run::Running { attempt, image: runs, health, .. } => {
            let may_change = matches!(container.role, Role::Main | Role::Sidecar);
            if let Some(why) = health.fault {
                down::stop_one(plan, desired, container, why, now);
            } else if may_change && (runs != image || container.stop.is_some()) {
                // The new image comes first, so that the gap is short.
                if pull(plan, container, image, now) || container.stop.is_some() {
                    down::stop_one(plan, desired, container, Why::Replaced, now);
                }
            } else if wanted.lifecycle.post_start.is_some() && health.post_start == Hook::Due {
                let container = container.name.clone();
                plan.step(Step::PostStart { container, attempt: *attempt });
            }
        }
        Run::Exited { retry_at, .. } => {
            if !go.turn || !will_restart(desired.restart_policy(container), &container.run) {
                return;
            }
            if now < *retry_at {
                plan.wake_at(*retry_at);
            } else {
                start(plan, container, image, go.ready, now);
            }
        }
        Run::None if go.turn => start(plan, container, image, go.ready, now),
        Run::None => {}
    }
}

fn start(plan: &mut Plan, container: &Container, image: &str, is_ready: bool, now: Duration) {
    let is_due = plan.is_due(container.create_failure.as_ref(), now);
    if is_due && pull(plan, container, image, now) && is_ready {
        plan.step(Step::Start {
            container: container.name.clone(),
            attempt: container.next_attempt,
        });
    }
}

/// Whether the image is on disk; if not, plans what is due.
fn pull(plan: &mut Plan, container: &Container, image: &str, now: Duration) -> bool {
    let step = Step::Pull { container: container.name.clone() };
    let state = &container.image;
    match &state.phase {
        ImagePhase::Pulling => false,
        _ if state.reference != image => {
            plan.step(step);
            false
        }
        ImagePhase::Ready { .. } => true,
        ImagePhase::Unknown => {
            if plan.is_due(state.failure.as_ref(), now) {
                plan.step(step);
            } else if let Some(failure) = &state.failure
                && now < failure.at + SHOW_PULL_ERROR
            {
                // The status changes its word then.
                plan.wake_at(failure.at + SHOW_PULL_ERROR);
            }
            false
        }
    }
}
