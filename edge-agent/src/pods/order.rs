//! Which container of a pod waits for which, when it comes up and when it goes.
//!
//! ```text
//! up:    init ─ended with 0─► sidecar ─up─► init ─ended with 0─► all main ones
//! down:  all but the sidecars ─ended─► last sidecar ─ended─► the one before it …
//! ```
//!
//! Ephemeral containers wait for nobody, and nobody waits for them.

use wire::pod::ContainerV1;

use super::Desired;
use super::plan::will_restart;
use super::state::{Container, Health, Hook, PodState, Role, Run};

/// Whether every init container is done, so that the main ones may start.
#[must_use]
pub fn is_initialized(state: &PodState) -> bool {
    let first_main = state.containers.iter().position(|c| !c.role.is_init());
    (0..first_main.unwrap_or(state.containers.len())).all(|index| is_done(state, index))
}

/// Whether a container's turn has come, as far as the others go.
pub(super) fn may_start(state: &PodState, index: usize) -> bool {
    match state.containers[index].role {
        Role::Init => !is_done(state, index) && (0..index).all(|before| is_done(state, before)),
        Role::Sidecar => (0..index).all(|before| is_done(state, before)),
        Role::Main => is_initialized(state),
        Role::Ephemeral => state.containers[index].n_runs == 0,
    }
}

/// Whether an init container failed for good.
#[must_use]
fn has_failed(desired: &Desired, container: &Container) -> bool {
    container.role == Role::Init
        && matches!(&container.run, Run::Exited { end, .. } if end.exit_code != 0)
        && !will_restart(desired.restart_policy(container), &container.run)
}

/// Whether what the pod is for has ended: its main containers, or an init
/// container without which they never start. Sidecars may still run.
#[must_use]
pub fn is_over(desired: &Desired, state: &PodState) -> bool {
    let has_ended = |container: &Container| {
        matches!(container.run, Run::Exited { .. })
            && !will_restart(desired.restart_policy(container), &container.run)
    };
    let mut main = state.containers.iter().filter(|c| c.role == Role::Main).peekable();
    main.peek().is_some() && main.all(has_ended)
        || state.containers.iter().any(|container| has_failed(desired, container))
}

/// Whether a container of a pod that stops is asked to end now: a sidecar waits
/// for what it serves.
pub(super) fn may_end(state: &PodState, index: usize) -> bool {
    state.containers[index].role != Role::Sidecar
        || state.containers.iter().enumerate().all(|(other, container)| {
            let is_served = match container.role {
                Role::Init | Role::Main => true,
                Role::Sidecar => other > index,
                Role::Ephemeral => false,
            };
            !(is_served && container.run.is_live())
        })
}

/// Whether an init container keeps nobody waiting any more.
fn is_done(state: &PodState, index: usize) -> bool {
    let container = &state.containers[index];
    let is_done = match container.role {
        Role::Sidecar => container.was_up,
        _ => {
            matches!(&container.run, Run::Exited { end, before_boot: false, .. } if end.exit_code == 0)
        }
    };
    // What was lost with a damaged file is told by those that came after.
    is_done
        || state.containers[index + 1..]
            .iter()
            .any(|later| later.role != Role::Ephemeral && has_run(later))
}

/// Whether it ran since the machine booted.
fn has_run(container: &Container) -> bool {
    match &container.run {
        Run::Starting { .. } | Run::Running { .. } => true,
        Run::Exited { before_boot, .. } => !before_boot,
        Run::None => container.last.is_some(),
    }
}

/// Whether a container is up: its hook and its startup probe are through.
#[must_use]
pub fn is_up(wanted: &ContainerV1, container: &Container) -> bool {
    let Run::Running { health, .. } = &container.run else { return false };
    is_past_hook(wanted, health) && (wanted.probes.startup.is_none() || health.startup_passed)
}

/// Whether it may be sent work.
#[must_use]
pub fn is_ready(wanted: &ContainerV1, container: &Container) -> bool {
    let Run::Running { health, .. } = &container.run else { return false };
    is_up(wanted, container) && (wanted.probes.readiness.is_none() || health.readiness_passed)
}

/// Whether the hook after the start is through, or there is none.
pub(super) fn is_past_hook(wanted: &ContainerV1, health: &Health) -> bool {
    wanted.lifecycle.post_start.is_none() || health.post_start == Hook::Done
}
