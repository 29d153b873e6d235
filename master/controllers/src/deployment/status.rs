//! The status of a Deployment, with Kubernetes' reasons and sentences. Pure.

use std::time::Duration;

use api::time::{Timestamp, parse, rfc3339};
use api::view::{Condition, DeploymentStatus, condition};

use super::plan::{Desired, Sets};

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// How the newest template's set came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It was there.
    Existing,
    /// It is created now.
    Created,
}

/// The counts, and whether enough pods are available.
pub(super) fn count(status: &mut DeploymentStatus, desired: &Desired, sets: &Sets, now: Timestamp) {
    let sum = |of: fn(&api::view::ReplicaSetStatus) -> i64| -> i64 {
        sets.all().map(|sized| of(&sized.set.status)).sum()
    };
    status.observed_generation = desired.generation;
    status.replicas = sum(|s| s.replicas);
    status.ready_replicas = sum(|s| s.ready_replicas);
    status.available_replicas = sum(|s| s.available_replicas);
    status.updated_replicas = sets.new.as_ref().map_or(0, |new| new.set.status.replicas);
    status.unavailable_replicas = (sets.n_pods() - status.available_replicas).max(0);
    let enough = status.available_replicas >= desired.replicas - desired.max_unavailable;
    let (reason, message) = if enough {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(status, AVAILABLE, enough, reason, message.to_owned(), now);
}

/// Says that the rollout is paused, or goes on.
pub(super) fn pause(status: &mut DeploymentStatus, desired: &Desired, now: Timestamp) {
    if desired.deadline_seconds.is_none() {
        return;
    }
    let current = condition(&status.conditions, PROGRESSING);
    if current.is_some_and(|current| current.reason == TIMED_OUT) {
        return;
    }
    let paused = current.is_some_and(|current| current.reason == PAUSED);
    let (reason, message) = match (desired.paused, paused) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => (RESUMED, "Deployment is resumed"),
        _ => return,
    };
    set_unknown(status, PROGRESSING, reason, message.to_owned(), now);
}

/// Says that the newest template has its set.
pub(super) fn found(
    status: &mut DeploymentStatus,
    desired: &Desired,
    sets: &Sets,
    found: Found,
    now: Timestamp,
) {
    let (Some(name), Some(_)) = (sets.new_name(), desired.deadline_seconds) else {
        return;
    };
    match found {
        Found::Created => {
            let message = format!("Created new replica set \"{name}\"");
            set(status, PROGRESSING, true, "NewReplicaSetCreated", message, now);
        }
        Found::Existing if condition(&status.conditions, PROGRESSING).is_none() => {
            let message = format!("Found new replica set \"{name}\"");
            set(status, PROGRESSING, true, "FoundNewReplicaSet", message, now);
        }
        Found::Existing => {}
    }
}

/// Says whether the rollout gets on, is done, or is stuck, and why pods are not made.
pub(super) fn progress(
    status: &mut DeploymentStatus,
    desired: &Desired,
    sets: &Sets,
    now: Timestamp,
) {
    if desired.deadline_seconds.is_none() {
        remove(status, PROGRESSING);
    } else {
        let current = condition(&status.conditions, PROGRESSING).cloned();
        let done = status.replicas == status.updated_replicas
            && current.as_ref().is_some_and(|current| current.reason == DONE);
        let name = sets.new_name().unwrap_or(&desired.name);
        if !done {
            if is_complete(desired, status) {
                let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
                set(status, PROGRESSING, true, DONE, message, now);
            } else if gets_on(&desired.status, status) {
                let message = format!("ReplicaSet \"{name}\" is progressing.");
                let since = current
                    .filter(Condition::is_true)
                    .and_then(|current| current.last_transition_time);
                // Every step of progress renews the time it is measured from.
                remove(status, PROGRESSING);
                set(status, PROGRESSING, true, "ReplicaSetUpdated", message, now);
                if let (Some(since), Some(last)) = (since, status.conditions.last_mut()) {
                    last.last_transition_time = Some(since);
                }
            } else if timed_out(status, desired, now) {
                let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
                set(status, PROGRESSING, false, TIMED_OUT, message, now);
            }
        }
    }
    let failure = sets.new.iter().chain(&sets.old).find_map(|sized| sized.set.failure().cloned());
    match failure {
        Some(failure) => {
            set(status, REPLICA_FAILURE, true, &failure.reason, failure.message.clone(), now);
        }
        None => remove(status, REPLICA_FAILURE),
    }
}

/// Whether every pod is of the newest template and available.
#[must_use]
pub(super) fn is_complete(desired: &Desired, status: &DeploymentStatus) -> bool {
    status.updated_replicas == desired.replicas
        && status.replicas == desired.replicas
        && status.available_replicas == desired.replicas
        && status.observed_generation >= desired.generation
}

fn gets_on(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    new.updated_replicas > old.updated_replicas
        || new.replicas - new.updated_replicas < old.replicas - old.updated_replicas
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

fn timed_out(status: &DeploymentStatus, desired: &Desired, now: Timestamp) -> bool {
    let Some(current) = condition(&status.conditions, PROGRESSING) else {
        return false;
    };
    match current.reason.as_str() {
        DONE => false,
        TIMED_OUT => true,
        _ => deadline(current, desired).is_some_and(|deadline| deadline < now.as_second()),
    }
}

/// The second at which a rollout without progress counts as stuck.
fn deadline(current: &Condition, desired: &Desired) -> Option<i64> {
    let from = parse(current.last_update_time.as_deref()?)?;
    Some(from.as_second().saturating_add(desired.deadline_seconds?))
}

/// Time until a rollout that does not get on is to be looked at again.
#[must_use]
pub(super) fn stuck_in(
    status: &DeploymentStatus,
    desired: &Desired,
    now: Timestamp,
) -> Option<Duration> {
    let current = condition(&status.conditions, PROGRESSING)?;
    if is_complete(desired, status) || matches!(current.reason.as_str(), TIMED_OUT | DONE | PAUSED)
    {
        return None;
    }
    let left = deadline(current, desired)? - now.as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1))
}

/// Sets the condition `Progressing`.
pub(super) fn set_progressing(
    status: &mut DeploymentStatus,
    holds: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    set(status, PROGRESSING, holds, reason, message, now);
}

fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    put(status, kind, if holds { "True" } else { "False" }, reason, message, now);
}

fn set_unknown(
    status: &mut DeploymentStatus,
    kind: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    put(status, kind, "Unknown", reason, message, now);
}

/// Kubernetes' rule: the same status and reason change nothing; the same status
/// keeps the time of transition.
fn put(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let current = condition(&status.conditions, kind);
    if current.is_some_and(|current| current.status == value && current.reason == reason) {
        return;
    }
    let since = current
        .filter(|current| current.status == value)
        .and_then(|current| current.last_transition_time.clone());
    remove(status, kind);
    let now = rfc3339(now);
    status.conditions.push(Condition {
        kind: kind.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
        last_update_time: Some(now),
        ..Condition::default()
    });
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    status.conditions.retain(|condition| condition.kind != kind);
}
