//! The status of a ReplicaSet. Pure.

use std::sync::Arc;
use std::time::Duration;

use api::time::{Timestamp, rfc3339};
use api::view::{Condition, ReplicaSetStatus};

use super::Step;
use crate::cluster::ClusterError;
use crate::projection::{Pod, ReplicaSet};

/// What the set's status is now, and when a ready pod next becomes available.
///
/// `failure` is why `step` failed, if it did.
#[must_use]
pub fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<&ClusterError>,
    step: Option<&Step>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let mut status = ReplicaSetStatus {
        observed_generation: set.meta.generation,
        conditions: set.status.conditions.clone(),
        ..ReplicaSetStatus::default()
    };
    let mut available_in: Option<Duration> = None;
    for pod in pods.iter().filter(|pod| pod.is_active()) {
        status.replicas += 1;
        let has = |(key, value): &(Arc<str>, Arc<str>)| pod.meta.label(key) == Some(value);
        if set.template_labels.iter().all(has) {
            status.fully_labeled_replicas += 1;
        }
        let Some(ready_since) = pod.ready_since else { continue };
        status.ready_replicas += 1;
        let available_at = ready_since.as_second().saturating_add(set.min_ready_seconds);
        match u64::try_from(available_at - now.as_second()) {
            Ok(seconds) if seconds > 0 && set.min_ready_seconds > 0 => {
                let wait = Duration::from_secs(seconds);
                available_in = Some(available_in.map_or(wait, |other| other.min(wait)));
            }
            _ => status.available_replicas += 1,
        }
    }
    set_failure(&mut status.conditions, failure, step, now);
    (status, available_in)
}

fn set_failure(
    conditions: &mut Vec<Condition>,
    failure: Option<&ClusterError>,
    step: Option<&Step>,
    now: Timestamp,
) {
    let known = conditions.iter().position(|condition| condition.kind == "ReplicaFailure");
    let Some(failure) = failure else {
        if let Some(at) = known {
            conditions.remove(at);
        }
        return;
    };
    let reason = match step {
        Some(Step::Delete(_)) => "FailedDelete",
        _ => "FailedCreate",
    };
    if known.is_some_and(|at| conditions[at].reason == reason) {
        return;
    }
    if let Some(at) = known {
        conditions.remove(at);
    }
    conditions.push(Condition {
        kind: "ReplicaFailure".to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message: failure.to_string(),
        last_transition_time: Some(rfc3339(now)),
        ..Condition::default()
    });
}
