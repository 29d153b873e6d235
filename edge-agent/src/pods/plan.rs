//! The decision: which steps bring one pod from what it is to what it should be.
//!
//! ```text
//!  Run:   sandbox ─┐
//!         volumes ─┼─► its turn ─► image ─► start ─► hook ─► running ─► exited ─┐
//!                  │                          ▲                                 │
//!                  │                          └──── back-off ◄──────────────────┘ restart policy
//!  Stop:  hook ─► its turn ─► signal ─► grace ─► SIGKILL ─► remove runs ─► record ─► tear down ─► forget
//! ```
//!
//! [`up`] plans what runs, [`down`] what ends; whose turn it is, says
//! [`super::order`]. A step that is in flight is marked in the state, so that it
//! is planned once; a step that failed is planned again when its time has come.
//! [`Plan::wake`] says when to look again if nothing else happens.

mod down;
mod up;

use std::time::Duration;

use wire::pod::RestartPolicyV1;
use wire::status::PhaseV1;

use super::deadline::{keep_every, progress, time_left};
use super::desired::Desired;
use super::order;
use super::state::{Container, Failure, PodState, Role, Run, Versions, Why};
use crate::progress::Progress;

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
    /// Run the hook after the start of a run.
    PostStart {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// Run the hook before the stop of a run.
    PreStop {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
        /// How long it may take.
        limit: Duration,
        /// What the run is stopped for.
        why: Why,
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
    /// Write to disk how far the pod is, which goes on.
    Keep(Progress),
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
    /// Ask its first process, with the signal that the container or its image names.
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
        Some(phase) => down::finish(&mut plan, desired, state, phase, now),
        None if desired.is_stopping() || order::is_over(desired, state) => {
            down::stop_all(&mut plan, desired, state, now);
        }
        None => {
            up::run(&mut plan, desired, state, now);
            keep(&mut plan, desired, state, now);
        }
    }
    plan
}

/// The final phase, once nothing of the pod runs and nothing will.
#[must_use]
pub fn finished(desired: &Desired, state: &PodState) -> Option<PhaseV1> {
    if let Some(phase) = state.finished {
        return Some(phase);
    }
    let is_quiet = state.containers.iter().all(|container| !container.run.is_live());
    let is_over = is_quiet && (desired.is_stopping() || order::is_over(desired, state));
    is_over.then(|| finished_phase(state))
}

/// The final phase of a pod of which nothing runs and nothing will: only what the
/// pod is for counts.
#[must_use]
pub fn finished_phase(state: &PodState) -> PhaseV1 {
    let all_succeeded =
        state.containers.iter().filter(|container| container.role == Role::Main).all(
            |container| matches!(&container.run, Run::Exited { end, .. } if end.exit_code == 0),
        );
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

/// Plans what is to be kept of a pod that goes on, and to end it in time.
fn keep(plan: &mut Plan, desired: &Desired, state: &PodState, now: Duration) {
    if let Some(left) = time_left(desired, state, now) {
        plan.wake_at(now + left);
    }
    if state.is_keeping || !plan.is_due(state.keep_failure.as_ref(), now) {
        return;
    }
    let progress = progress(desired, state, now);
    if progress != state.progress {
        plan.step(Step::Keep(progress));
    } else if let Some(deadline_s) = desired.pod.active_deadline_s {
        let again = state.progress.active + keep_every(deadline_s);
        plan.wake_at(now + again.saturating_sub(state.active.time(now)));
    }
}
