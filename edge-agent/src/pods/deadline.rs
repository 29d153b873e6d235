//! What follows for a pod from time and wishes alone: containers that were
//! added, its deadline, that it is to stop.
//!
//! The deadline counts the time that the pod was active while the machine ran.
//! It is measured on the monotonic clock and kept on disk now and then; the
//! wall clock may be wrong. A boot counts as one whole interval between two
//! writes, so that a board that boots over and over comes to the deadline too.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::desired::{Desired, Eviction};
use super::plan::will_restart;
use super::state::{Container, PodState, Role, Run};
use super::{Happening, order};
use crate::clock::Now;
use crate::progress::Progress;
use crate::results::ContainerRecord;

/// Longest time between two writes of how long a pod has been active.
const KEEP_EVERY_MAX: Duration = Duration::from_secs(60);
/// Shortest such time.
const KEEP_EVERY_MIN: Duration = Duration::from_secs(1);

/// How long a pod has been active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// On boots before this one.
    pub before: Duration,
    /// Since when on this boot; `None` before it was looked at.
    pub since: Option<Duration>,
}

impl Active {
    /// How long it has been active.
    #[must_use]
    pub fn time(&self, now: Duration) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// Time between two writes of how long a pod with this deadline has been active.
#[must_use]
pub fn keep_every(deadline_s: u32) -> Duration {
    (Duration::from_secs(u64::from(deadline_s)) / 10).clamp(KEEP_EVERY_MIN, KEEP_EVERY_MAX)
}

impl PodState {
    /// Takes in what follows from the wish and the time. Called before each plan.
    pub fn settle(&mut self, desired: &mut Desired, now: Now) -> Vec<Happening> {
        self.add_containers(desired);
        for container in &mut self.containers {
            if let Some(wanted) = desired.container(&container.name) {
                container.was_up |= order::is_up(wanted, container);
            }
        }
        self.active.since.get_or_insert(now.mono);
        let was_ended = self.eviction.is_some();
        if !desired.is_stopping() && is_past_deadline(desired, self, now.mono) {
            desired.eviction = Some(Eviction {
                reason: "DeadlineExceeded".to_owned(),
                message: "Pod was active on the node longer than the specified deadline".to_owned(),
                grace_max_s: u32::MAX,
            });
        }
        desired.settle_eviction(self);
        if desired.is_stopping() || self.finished.is_some() || order::is_over(desired, self) {
            self.stopping_since.get_or_insert(now.mono);
        }
        let Some(end) = self.eviction.as_ref().filter(|_| !was_ended) else { return Vec::new() };
        let (reason, warning) = match end.reason.as_str() {
            "DeadlineExceeded" => ("DeadlineExceeded", false),
            "SysctlForbidden" => ("SysctlForbidden", true),
            "PrivilegedForbidden" => ("PrivilegedForbidden", true),
            _ => ("Evicted", true),
        };
        let (container, message) = (String::new(), end.message.clone());
        vec![Happening { container, warning, reason, message }]
    }

    /// Ephemeral containers are added to pods that run.
    fn add_containers(&mut self, desired: &Desired) {
        for (role, wanted) in Desired::roles(&desired.pod) {
            if self.container(&wanted.name).is_none() {
                self.containers.push(Container::new(role, wanted));
            }
        }
    }
}

fn is_past_deadline(desired: &Desired, state: &PodState, now: Duration) -> bool {
    let is_over = state.finished.is_some() || order::is_over(desired, state);
    !is_over && time_left(desired, state, now) == Some(Duration::ZERO)
}

/// Time until the deadline; `None` without one.
pub(super) fn time_left(desired: &Desired, state: &PodState, now: Duration) -> Option<Duration> {
    let deadline = Duration::from_secs(u64::from(desired.pod.active_deadline_s?));
    Some(deadline.saturating_sub(state.active.time(now)))
}

/// What of the pod must outlive a power cut while it goes on: how long it has
/// been active, where that counts, and which main containers ended for good.
#[must_use]
pub fn progress(desired: &Desired, state: &PodState, now: Duration) -> Progress {
    let active = match desired.pod.active_deadline_s {
        None => Duration::ZERO,
        Some(deadline_s) => {
            let kept = state.progress.active;
            // Never zero, which stands for nothing on disk: the first boot counts too.
            let active = state.active.time(now).max(Duration::from_millis(1));
            let is_due = kept.is_zero() || active >= kept + keep_every(deadline_s);
            if is_due { active } else { kept }
        }
    };
    let ended = state
        .containers
        .iter()
        .filter(|container| {
            container.role == Role::Main
                && matches!(container.run, Run::Exited { .. })
                && !will_restart(desired.restart_policy(container), &container.run)
        })
        .map(ContainerRecord::of)
        .collect();
    Progress { active, ended }
}
