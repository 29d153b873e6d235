//! When each probe of a pod is asked next, and what its answers mean.
//!
//! ```text
//! start ─ hook ─► startup ─ passed ─► liveness, readiness
//!                   │ failed            │ failed        │ failed, passed
//!                   ▼                   ▼               ▼
//!                 end the run         end the run     ready or not
//! ```
//!
//! Pure, as the rest of the state machine. Counts live as long as the agent; what
//! they have led to is part of the pod's state. A new agent counts anew.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wire::pod::{ContainerV1, ProbeV1};

use super::state::{Container, Health, Role, Run, Why};
use super::{Desired, Happening, PodState, order};

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Holds the other two back.
    Startup,
    /// Ends the run.
    Liveness,
    /// Makes the pod not ready.
    Readiness,
}

impl ProbeKind {
    /// `startup`, `liveness` or `readiness`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The probe of a container.
    #[must_use]
    pub fn of(self, container: &ContainerV1) -> Option<&ProbeV1> {
        match self {
            Self::Startup => container.probes.startup.as_ref(),
            Self::Liveness => container.probes.liveness.as_ref(),
            Self::Readiness => container.probes.readiness.as_ref(),
        }
    }
}

const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

/// A question to a run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The container.
    pub container: String,
    /// Which run.
    pub attempt: u32,
    /// Which probe.
    pub kind: ProbeKind,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is well.
    Success,
    /// It is not, and why.
    Failure(String),
    /// It could not be asked, and why: counts as no answer.
    Unknown(String),
}

/// The probes of one pod.
#[derive(Debug, Default)]
pub struct Probing {
    timers: BTreeMap<(String, ProbeKind), Timer>,
}

#[derive(Debug)]
struct Timer {
    attempt: u32,
    due: Duration,
    in_flight: bool,
    /// The last answer that counted, and how often it came in a row.
    last: Option<bool>,
    n_in_a_row: u32,
    /// Answers in a row that were no success, for Events.
    n_bad: u32,
    /// It has ended the run; there is nothing to ask until the next.
    is_over: bool,
}

impl Probing {
    /// The questions that are due, which count as asked, and when to look again.
    pub fn due(
        &mut self,
        desired: &Desired,
        state: &PodState,
        now: Duration,
    ) -> (Vec<Question>, Option<Duration>) {
        self.timers.retain(|(name, _), timer| {
            let run = state.container(name).map(|container| &container.run);
            matches!(run, Some(Run::Running { attempt, .. }) if *attempt == timer.attempt)
        });
        let (mut questions, mut wake) = (Vec::new(), None);
        for container in &state.containers {
            let Some(wanted) = desired.container(&container.name) else { continue };
            for kind in KINDS {
                let Some(probe) = kind
                    .of(wanted)
                    .filter(|_| is_asked(kind, wanted, container, desired.is_stopping()))
                else {
                    continue;
                };
                let Run::Running { attempt, since, .. } = container.run else { continue };
                let timer = self
                    .timers
                    .entry((container.name.clone(), kind))
                    .or_insert_with(|| Timer::new(attempt, first(probe, since, now)));
                if timer.in_flight || timer.is_over {
                    continue;
                }
                if now < timer.due {
                    wake = Some(wake.map_or(timer.due, |wake: Duration| wake.min(timer.due)));
                    continue;
                }
                timer.in_flight = true;
                timer.due = now + seconds(probe.period_s.max(1));
                let container = container.name.clone();
                questions.push(Question { container, attempt, kind });
            }
        }
        (questions, wake)
    }

    /// Takes in an answer and returns what it is worth saying, and what the probe
    /// now holds: passed or failed, if its threshold was reached.
    pub fn answer(
        &mut self,
        question: &Question,
        probe: &ProbeV1,
        answer: &Answer,
    ) -> (Option<Happening>, Option<bool>) {
        let key = (question.container.clone(), question.kind);
        let Some(timer) = self.timers.get_mut(&key).filter(|t| t.attempt == question.attempt)
        else {
            return (None, None);
        };
        timer.in_flight = false;
        let passed = *answer == Answer::Success;
        timer.n_bad = if passed { 0 } else { timer.n_bad.saturating_add(1) };
        let title = question.kind.title();
        let text = match answer {
            Answer::Success => String::new(),
            Answer::Failure(why) => format!("{title} probe failed: {why}"),
            Answer::Unknown(why) => {
                format!("{title} probe errored and resulted in unknown state: {why}")
            }
        };
        // Said the first time and ever more rarely: a link may be paid by the byte.
        let is_said = timer.n_bad.is_power_of_two() || timer.n_bad == probe.failure_threshold;
        let happening = (!passed && is_said).then(|| Happening {
            container: question.container.clone(),
            warning: true,
            reason: "Unhealthy",
            message: text,
        });
        if matches!(answer, Answer::Unknown(_)) {
            return (happening, None);
        }
        if timer.last == Some(passed) {
            timer.n_in_a_row = timer.n_in_a_row.saturating_add(1);
        } else {
            timer.last = Some(passed);
            timer.n_in_a_row = 1;
        }
        let threshold = if passed { probe.success_threshold } else { probe.failure_threshold };
        if timer.n_in_a_row < threshold {
            return (happening, None);
        }
        if !passed && question.kind != ProbeKind::Readiness {
            timer.is_over = true;
        }
        (happening, Some(passed))
    }
}

impl Timer {
    fn new(attempt: u32, due: Duration) -> Self {
        Self { attempt, due, in_flight: false, last: None, n_in_a_row: 0, n_bad: 0, is_over: false }
    }
}

/// When a probe is asked first: after its delay; at once where that has passed.
fn first(probe: &ProbeV1, since: Duration, now: Duration) -> Duration {
    (since + seconds(probe.initial_delay_s)).max(now)
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds))
}

/// Whether a probe is asked now, as far as the container goes.
fn is_asked(kind: ProbeKind, wanted: &ContainerV1, container: &Container, pod_stops: bool) -> bool {
    let Run::Running { health, .. } = &container.run else { return false };
    if !matches!(container.role, Role::Main | Role::Sidecar) {
        return false;
    }
    let may_end_it = !pod_stops && container.stop.is_none() && health.fault.is_none();
    match kind {
        ProbeKind::Startup => {
            may_end_it && order::is_past_hook(wanted, health) && !health.startup_passed
        }
        ProbeKind::Liveness => may_end_it && order::is_up(wanted, container),
        // Until the end: a pod that stops shows for itself when it takes no more.
        ProbeKind::Readiness => order::is_up(wanted, container),
    }
}

impl PodState {
    /// Takes in what a probe of a container's current run now holds.
    pub fn probed(&mut self, question: &Question, passed: bool) {
        let Some(container) = self.container_mut(&question.container) else { return };
        if container.run.attempt() != Some(question.attempt) {
            return;
        }
        let Run::Running { health, .. } = &mut container.run else { return };
        match (question.kind, passed) {
            (ProbeKind::Readiness, passed) => health.readiness_passed = passed,
            (ProbeKind::Startup, true) => health.startup_passed = true,
            (ProbeKind::Startup | ProbeKind::Liveness, false) => fault(health, question.kind),
            (ProbeKind::Liveness, true) => {}
        }
    }
}

fn fault(health: &mut Health, kind: ProbeKind) {
    health.fault.get_or_insert(Why::Unhealthy(kind));
}
