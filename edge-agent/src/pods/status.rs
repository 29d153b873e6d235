//! What the agent says about a pod, in the kubelet's words.

use std::time::Duration;

use wire::pod::ContainerV1;
use wire::status::{ContainerStatusV1, PhaseV1, PodStatusV1, StateV1, TerminatedV1};

use super::plan::{SHOW_PULL_ERROR, finished, will_restart};
use super::state::{Container, Failure, ImagePhase, PodState, Role, Run};
use super::{Desired, backoff, order};
use crate::clock::Now;
use crate::{env, id};

/// Why a container waits, where nothing is wrong.
pub(super) const CREATING: &str = "ContainerCreating";
/// The same, in a pod that has init containers.
pub(super) const INITIALIZING: &str = "PodInitializing";

/// The status of a pod.
#[must_use]
pub fn status(desired: &Desired, state: &PodState, now: Now) -> PodStatusV1 {
    let pod = &desired.pod;
    let list = |wanted: &[ContainerV1]| {
        wanted
            .iter()
            .filter_map(|wanted| {
                let container = state.container(&wanted.name)?;
                Some(container_status(desired, state, wanted, container, now.mono))
            })
            .collect()
    };
    PodStatusV1 {
        uid: pod.uid,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        generation: desired.generation,
        phase: phase(desired, state),
        reason: state.eviction.as_ref().map(|end| end.reason.clone()).unwrap_or_default(),
        message: state.eviction.as_ref().map(|end| end.message.clone()).unwrap_or_default(),
        pod_ip: state.ip().to_owned(),
        started_ms: state.first_seen_ms,
        init_containers: list(&pod.init_containers),
        containers: list(&pod.containers),
        ephemeral_containers: list(&pod.ephemeral_containers),
        terminated: state.torn_down && state.is_quiet(),
    }
}

/// The pod's phase.
#[must_use]
pub fn phase(desired: &Desired, state: &PodState) -> PhaseV1 {
    if let Some(phase) = finished(desired, state) {
        return phase;
    }
    if !order::is_initialized(state) {
        return PhaseV1::Pending;
    }
    let has_begun = |container: &Container| match &container.run {
        Run::None | Run::Starting { .. } => container.last.is_some() || container.n_runs > 0,
        Run::Running { .. } => container.n_runs > 1 || !is_in_hook(desired, container),
        Run::Exited { .. } => true,
    };
    let mut main = state.containers.iter().filter(|c| c.role == Role::Main);
    if main.all(has_begun) { PhaseV1::Running } else { PhaseV1::Pending }
}

/// Whether its hook after the start is not through: it does not count as running yet.
fn is_in_hook(desired: &Desired, container: &Container) -> bool {
    let Run::Running { health, .. } = &container.run else { return false };
    desired.container(&container.name).is_some_and(|wanted| !order::is_past_hook(wanted, health))
}

/// Why the container cannot be configured, as the kubelet says it; `None` if it can.
#[must_use]
pub fn config_error(desired: &Desired, container: &ContainerV1) -> Option<String> {
    env::missing(&desired.pod, container, &desired.keys)
}

fn container_status(
    desired: &Desired,
    state: &PodState,
    wanted: &ContainerV1,
    container: &Container,
    now: Duration,
) -> ContainerStatusV1 {
    let pod = &desired.pod;
    let creating = || (waiting(creating_word(desired), String::new()), container.last.clone());
    let (state_of, last) = match &container.run {
        Run::Running { .. } if is_in_hook(desired, container) => creating(),
        Run::Running { started_ms, .. } => {
            (StateV1::Running { started_ms: *started_ms }, container.last.clone())
        }
        Run::Exited { end, .. } => exited(desired, state, container, end, now),
        Run::Starting { .. } if container.create_failure.is_none() => creating(),
        Run::None if container.role == Role::Init && order::is_initialized(state) => {
            (completed_unseen(), container.last.clone())
        }
        Run::None if finished(desired, state).is_some() => {
            let was_due = order::is_initialized(state) || container.role.is_init();
            if was_due && !container_waits(state, container) {
                (never_seen(), container.last.clone())
            } else {
                creating()
            }
        }
        Run::Starting { .. } | Run::None if container_waits(state, container) => creating(),
        Run::Starting { .. } | Run::None => {
            let (reason, message) = why_waiting(desired, state, wanted, container, now);
            (waiting(&reason, message), container.last.clone())
        }
    };
    let (image, image_id) = match &container.run {
        Run::Starting { image, image_id, .. }
        | Run::Running { image, image_id, .. }
        | Run::Exited { image, image_id, .. } => (image.clone(), image_id.clone()),
        Run::None => (
            wanted.image.clone(),
            match &container.image.phase {
                ImagePhase::Ready { id, .. } => id.clone(),
                _ => String::new(),
            },
        ),
    };
    let container_id = match container.run.attempt() {
        Some(attempt) => id::container_id(&pod.uid, &container.name, attempt),
        None => container.last.as_ref().map(|end| end.container_id.clone()).unwrap_or_default(),
    };
    ContainerStatusV1 {
        name: container.name.clone(),
        image,
        image_id,
        runtime: wanted.runtime,
        container_id,
        restarts: container.restarts(),
        started: order::is_up(wanted, container),
        ready: match container.role {
            Role::Init => {
                matches!(&state_of, StateV1::Terminated(end) if end.exit_code == 0)
            }
            _ => order::is_ready(wanted, container),
        },
        state: state_of,
        last,
    }
}

/// What a container that waits for nothing special says.
fn creating_word(desired: &Desired) -> &'static str {
    if desired.pod.init_containers.is_empty() { CREATING } else { INITIALIZING }
}

/// Whether a container that does not run waits for others of the pod.
fn container_waits(state: &PodState, container: &Container) -> bool {
    let index = state.containers.iter().position(|other| other.name == container.name);
    container.role != Role::Ephemeral && index.is_some_and(|index| !order::may_start(state, index))
}

/// A container that ended: for good, or between two runs.
fn exited(
    desired: &Desired,
    state: &PodState,
    container: &Container,
    end: &TerminatedV1,
    now: Duration,
) -> (StateV1, Option<TerminatedV1>) {
    let stays = (StateV1::Terminated(end.clone()), container.last.clone());
    let policy = desired.restart_policy(container);
    if finished(desired, state).is_some()
        || desired.is_stopping()
        || !will_restart(policy, &container.run)
    {
        return stays;
    }
    let Run::Exited { retry_at, never_ran, replaced, .. } = &container.run else { return stays };
    if *never_ran {
        return (waiting("RunContainerError", end.message.clone()), Some(end.clone()));
    }
    if *replaced {
        return (waiting(creating_word(desired), String::new()), Some(end.clone()));
    }
    if let Some(failure) = &container.image.failure {
        let (reason, message) = pull_failed(&container.image.reference, failure, now);
        return (waiting(&reason, message), Some(end.clone()));
    }
    let wanted = desired.container(&container.name);
    if let Some(message) = wanted.and_then(|wanted| config_error(desired, wanted)) {
        return (waiting("CreateContainerConfigError", message), Some(end.clone()));
    }
    if *retry_at <= now {
        return stays;
    }
    let delay = backoff::restart(container.exits_in_a_row).as_secs();
    let message = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(delay),
        container.name,
        desired.pod.name,
        desired.pod.namespace,
        id::uid_text(&desired.pod.uid),
    );
    (waiting("CrashLoopBackOff", message), Some(end.clone()))
}

fn why_waiting(
    desired: &Desired,
    state: &PodState,
    wanted: &ContainerV1,
    container: &Container,
    now: Duration,
) -> (String, String) {
    if let Some(failure) = &container.image.failure {
        return pull_failed(&container.image.reference, failure, now);
    }
    let creating = |message: String| (creating_word(desired).to_owned(), message);
    if let Some(failure) = &state.sandbox_failure {
        return creating(format!("Failed to create pod sandbox: {}", failure.message));
    }
    if state.volumes.versions.is_none() {
        if let Some(message) = desired.volumes_missing() {
            return creating(message);
        }
        if let Some(failure) = &state.volumes.failure {
            return creating(failure.message.clone());
        }
    }
    if let Some(message) = config_error(desired, wanted) {
        return ("CreateContainerConfigError".to_owned(), message);
    }
    if let Some(failure) = &container.create_failure {
        return (failure.reason.clone(), failure.message.clone());
    }
    creating(String::new())
}

/// `ErrImagePull` while the failure is fresh, `ImagePullBackOff` while it waits.
/// A failure with a word of its own (`ErrImageNeverPull`, …) keeps it.
fn pull_failed(reference: &str, failure: &Failure, now: Duration) -> (String, String) {
    if failure.reason != "ErrImagePull" || now < failure.at + SHOW_PULL_ERROR {
        return (failure.reason.clone(), failure.message.clone());
    }
    (
        "ImagePullBackOff".to_owned(),
        format!("Back-off pulling image \"{reference}\": ErrImagePull: {}", failure.message),
    )
}

fn waiting(reason: &str, message: String) -> StateV1 {
    StateV1::Waiting { reason: reason.to_owned(), message }
}

/// A container of a pod that is over, of which nothing is known.
fn never_seen() -> StateV1 {
    StateV1::Terminated(TerminatedV1 {
        exit_code: 137,
        reason: runtime::reason::CONTAINER_STATUS_UNKNOWN.to_owned(),
        message: "The container could not be located when the pod was terminated".to_owned(),
        started_ms: 0,
        finished_ms: 0,
        container_id: String::new(),
    })
}

/// An init container of a pod that has come past it, of which nothing is known.
fn completed_unseen() -> StateV1 {
    StateV1::Terminated(TerminatedV1 {
        exit_code: 0,
        reason: "Completed".to_owned(),
        message: "Unable to get init container status from container runtime and pod has been initialized".to_owned(),
        started_ms: 0,
        finished_ms: 0,
        container_id: String::new(),
    })
}

/// Seconds as Go prints a duration: `10s`, `2m40s`, `5m0s`.
fn go_duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}
