//! The decision: which steps bring one pod from what it is to what it should be.
//!
//! ```text
//!  Run:   sandbox ─┐
//!         volumes ─┼─► image of each container ─► start ─► running ─► exited ─┐
//!                  │                                ▲                         │
//!                  │                                └──── back-off ◄──────────┘ restart policy
//!  Stop:  SIGTERM ─► grace ─► SIGKILL ─► remove runs ─► record ─► tear down ─► forget
//! ```
//!
//! A step that is in flight is marked in the state, so that it is planned once;
//! a step that failed is planned again when its time has come. [`Plan::wake`]
//! says when to look again if nothing else happens.

use std::time::Duration;

use wire::pod::RestartPolicyV1;
use wire::status::PhaseV1;

use super::desired::Desired;
use super::state::{
    Container, ContainerStop, Failure, ImagePhase, PodState, Run, Sandbox, Versions, Why,
};
use super::status::config_error;

/// How long after SIGKILL a container may take to go before it is sent again.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// For how long a failed pull is shown as `ErrImagePull`, before `ImagePullBackOff`.
pub(super) const SHOW_PULL_ERROR: Duration = Duration::from_secs(3);

/// What to do now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps. They may run at the same time, in any order.
    pub steps: Vec<Step>,
    /// When to plan again if nothing happens before.
    pub wake: Option<Duration>,
}

/// One thing to do. Each may be repeated and may end half-way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the namespaces, the address and the small files.
    SetUpSandbox,
    /// Set up the volumes, or bring them to these versions.
    SetUpVolumes(Versions),
    /// Have a container's image on disk.
    Pull {
        /// The container.
        container: String,
    },
    /// Start a run of a container.
    Start {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// Signal a run of a container.
    Stop {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
        /// The signal.
        signal: Signal,
        /// What for.
        why: Why,
    },
    /// Remove what a run that is over left behind.
    Remove {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// Write the final phase to disk.
    Record(PhaseV1),
    /// Remove namespaces, address, volumes and cgroup.
    TearDown,
    /// Remove logs and state, and leave a tombstone. The last step of a pod.
    Forget,
}

/// How a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ask its first process (SIGTERM).
    Term,
    /// End everything in it (SIGKILL).
    Kill,
}

impl Plan {
    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Whether `failure` no longer holds its next try back; else wakes when it does not.
    fn is_due(&mut self, failure: Option<&Failure>, now: Duration) -> bool {
        match failure {
            Some(failure) if now < failure.retry_at => {
                self.wake_at(failure.retry_at);
                false
            }
            _ => true,
        }
    }
}

/// Plans the next steps of one pod.
#[must_use]
pub fn plan(desired: &Desired, state: &PodState, now: Duration) -> Plan {
    let mut plan = Plan::default();
    for container in &state.containers {
        remove_leftovers(&mut plan, container, now);
    }
    match finished(desired, state) {
        Some(phase) => finish(&mut plan, desired, state, phase, now),
        None if desired.is_stopping() => {
            for container in &state.containers {
                stop(&mut plan, desired, container, Why::PodStops, now);
            }
        }
        None => run(&mut plan, desired, state, now),
    }
    plan
}

/// The final phase, once nothing of the pod runs and nothing will.
#[must_use]
pub fn finished(desired: &Desired, state: &PodState) -> Option<PhaseV1> {
    if let Some(phase) = state.finished {
        return Some(phase);
    }
    let is_over = if desired.is_stopping() {
        state.containers.iter().all(|container| !container.run.is_live())
    } else {
        state.containers.iter().all(|container| {
            matches!(container.run, Run::Exited { .. })
                && !will_restart(desired.pod.restart_policy, &container.run)
        })
    };
    is_over.then(|| finished_phase(state))
}

/// The final phase of a pod of which nothing runs and nothing will.
#[must_use]
pub fn finished_phase(state: &PodState) -> PhaseV1 {
    let all_succeeded = state
        .containers
        .iter()
        .all(|container| matches!(&container.run, Run::Exited { end, .. } if end.exit_code == 0));
    if all_succeeded && state.eviction.is_none() { PhaseV1::Succeeded } else { PhaseV1::Failed }
}

/// Whether a run that ended is followed by another.
pub(super) fn will_restart(policy: RestartPolicyV1, run: &Run) -> bool {
    let Run::Exited { end, replaced, .. } = run else { return false };
    *replaced
        || match policy {
            RestartPolicyV1::Always => true,
            RestartPolicyV1::OnFailure => end.exit_code != 0,
            RestartPolicyV1::Never => false,
        }
}

fn run(plan: &mut Plan, desired: &Desired, state: &PodState, now: Duration) {
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
    for container in &state.containers {
        // A container that is no longer in the pod cannot be: the API refuses it.
        let Some(wanted) = desired.container(&container.name) else { continue };
        let is_ready = has_sandbox && has_volumes && config_error(desired, wanted).is_none();
        run_container(plan, desired, container, &wanted.image, is_ready, now);
    }
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

fn run_container(
    plan: &mut Plan,
    desired: &Desired,
    container: &Container,
    image: &str,
    is_ready: bool,
    now: Duration,
) {
    match &container.run {
        Run::Starting { .. } => {}
        Run::Running { image: runs, .. } => {
            if runs != image || container.stop.is_some() {
                // The new image comes first, so that the gap is short.
                if pull(plan, container, image, now) || container.stop.is_some() {
                    stop(plan, desired, container, Why::Replaced, now);
                }
            }
        }
        Run::Exited { retry_at, .. } => {
            if !will_restart(desired.pod.restart_policy, &container.run) {
                return;
            }
            if now < *retry_at {
                plan.wake_at(*retry_at);
            } else {
                start(plan, container, image, is_ready, now);
            }
        }
        Run::None => start(plan, container, image, is_ready, now),
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

fn stop(plan: &mut Plan, desired: &Desired, container: &Container, why: Why, now: Duration) {
    let Run::Running { attempt, .. } = container.run else { return };
    let grace = Duration::from_secs(u64::from(match why {
        Why::PodStops => desired.grace_s(),
        Why::Replaced => desired.pod.termination_grace_s,
    }));
    let signal = match &container.stop {
        None if grace.is_zero() => Signal::Kill,
        None => Signal::Term,
        Some(ContainerStop { killed_at: Some(at), .. }) if now < *at + KILL_AGAIN => {
            return plan.wake_at(*at + KILL_AGAIN);
        }
        Some(ContainerStop { killed_at: None, since, .. }) if now < *since + grace => {
            return plan.wake_at(*since + grace);
        }
        Some(_) => Signal::Kill,
    };
    plan.step(Step::Stop { container: container.name.clone(), attempt, signal, why });
}

fn remove_leftovers(plan: &mut Plan, container: &Container, now: Duration) {
    for leftover in &container.leftovers {
        if !leftover.is_removing && plan.is_due(leftover.failure.as_ref(), now) {
            plan.step(Step::Remove {
                container: container.name.clone(),
                attempt: leftover.attempt,
            });
        }
    }
}

fn finish(plan: &mut Plan, desired: &Desired, state: &PodState, phase: PhaseV1, now: Duration) {
    if state.finished.is_none()
        && !state.is_recording
        && plan.is_due(state.record_failure.as_ref(), now)
    {
        plan.step(Step::Record(phase));
    }
    // A pod that is over has nothing that runs; if it has, that is stopped.
    for container in &state.containers {
        stop(plan, desired, container, Why::PodStops, now);
    }
    // A full disk does not keep a pod's memory and address; but nothing is
    // taken down before its end was written, or writing it was tried.
    let was_recorded = state.finished.is_some() || state.record_failure.is_some();
    let is_settled = state.sandbox != Sandbox::SettingUp && !state.volumes.is_working;
    if !state.torn_down {
        if was_recorded
            && is_settled
            && state.is_quiet()
            && !state.is_tearing_down
            && plan.is_due(state.tear_down_failure.as_ref(), now)
        {
            plan.step(Step::TearDown);
        }
        return;
    }
    if !desired.present {
        plan.step(Step::Forget);
    }
}
