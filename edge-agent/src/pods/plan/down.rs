//! Plans how containers and pods end.
//!
//! A pod has one grace period for everything: all hooks begin at once, then all
//! containers but the sidecars are signalled, then one sidecar after the other,
//! the last first. Whoever is signalled late has [`LAST_CHANCE`] at least.

use std::time::Duration;

use wire::status::PhaseV1;

use super::{Plan, Signal, Step};
use crate::pods::desired::Desired;
use crate::pods::order;
use crate::pods::state::{Container, Hook, PodState, Run, Sandbox, Why};

/// How long after SIGKILL a container may take to go before it is sent again.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// Between the stop signal and SIGKILL, for a container whose hook or whose turn
/// took the rest of the grace period; as the kubelet has it.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// How a container is stopped.
struct Ending {
    why: Why,
    since: Duration,
    grace: Duration,
    /// Those that are to end before it have.
    turn: bool,
}

/// Stops all containers of a pod, in order.
pub(super) fn stop_all(plan: &mut Plan, desired: &Desired, state: &PodState, now: Duration) {
    for (index, container) in state.containers.iter().enumerate() {
        let ending = Ending {
            why: Why::PodStops,
            since: state.stopping_since.unwrap_or(now),
            grace: seconds(desired.grace_s()),
            turn: order::may_end(state, index),
        };
        stop(plan, desired, container, &ending, now);
    }
}

/// Stops one container of a pod that goes on.
pub(super) fn stop_one(
    plan: &mut Plan,
    desired: &Desired,
    container: &Container,
    why: Why,
    now: Duration,
) {
    let wanted = desired.container(&container.name);
    let of_probe = match why {
        Why::Unhealthy(kind) => {
            wanted.and_then(|wanted| kind.of(wanted)).and_then(|probe| probe.termination_grace_s)
        }
        _ => None,
    };
    let ending = Ending {
        why,
        since: container.stop.as_ref().map_or(now, |stop| stop.since),
        grace: seconds(of_probe.unwrap_or(desired.pod.termination_grace_s)),
        turn: true,
    };
    stop(plan, desired, container, &ending, now);
}

fn stop(plan: &mut Plan, desired: &Desired, container: &Container, ending: &Ending, now: Duration) {
    let Run::Running { attempt, .. } = container.run else { return };
    let deadline = ending.since + ending.grace;
    let stop = container.stop.as_ref();
    let (why, name) = (ending.why, || container.name.clone());
    if let Some(killed_at) = stop.and_then(|stop| stop.killed_at)
        && now < killed_at + KILL_AGAIN
    {
        return plan.wake_at(killed_at + KILL_AGAIN);
    }
    let kill = Step::Stop { container: name(), attempt, signal: Signal::Kill, why };
    if ending.grace.is_zero() || stop.is_some_and(|stop| stop.killed_at.is_some()) {
        return plan.step(kill);
    }
    if let Some(signalled_at) = stop.and_then(|stop| stop.signalled_at) {
        let was_late = signalled_at > ending.since;
        let kill_at = if was_late { deadline.max(signalled_at + LAST_CHANCE) } else { deadline };
        return if now < kill_at { plan.wake_at(kill_at) } else { plan.step(kill) };
    }
    let has_hook = desired
        .container(&container.name)
        .is_some_and(|wanted| wanted.lifecycle.pre_stop.is_some());
    let hook = stop.map_or(Hook::Due, |stop| stop.hook);
    if has_hook && hook == Hook::Due && now < deadline {
        let limit = deadline - now;
        return plan.step(Step::PreStop { container: name(), attempt, limit, why });
    }
    let is_held = !ending.turn || has_hook && hook == Hook::InFlight;
    if is_held && now < deadline {
        return plan.wake_at(deadline);
    }
    plan.step(Step::Stop { container: name(), attempt, signal: Signal::Term, why });
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds))
}

pub(super) fn finish(
    plan: &mut Plan,
    desired: &Desired,
    state: &PodState,
    phase: PhaseV1,
    now: Duration,
) {
    if state.finished.is_none()
        && !state.is_recording
        && plan.is_due(state.record_failure.as_ref(), now)
    {
        plan.step(Step::Record(phase));
    }
    // A pod that is over has nothing that runs; if it has, that is stopped.
    stop_all(plan, desired, state, now);
    // A full disk does not keep a pod's memory and address; but nothing is
    // taken down before its end was written, or writing it was tried.
    let was_recorded = state.finished.is_some() || state.record_failure.is_some();
    let is_settled =
        state.sandbox != Sandbox::SettingUp && !state.volumes.is_working && !state.is_keeping;
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
