//! The transitions: what a step's beginning, its result, and a look at a
//! container change in the state of a pod.

use std::time::Duration;

use wire::Uid;
use wire::status::{PhaseV1, TerminatedV1};

use super::Desired;
use super::backoff;
use super::plan::{Signal, Step};
use super::state::{
    Container, ContainerStop, Failure, Image, ImagePhase, Leftover, PodState, Run, Sandbox,
    Versions, Why,
};
use crate::clock::Now;
use crate::id;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod's address, or why it has none.
    Sandbox(Result<String, String>),
    /// The volumes show these versions, or why not.
    Volumes(Result<Versions, String>),
    /// A container's image is on disk.
    Pulled {
        /// The container.
        container: String,
        /// `sha256:…`, or reason and message.
        result: Result<String, (String, String)>,
    },
    /// A run began.
    Started {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
        /// Milliseconds since 1970, or reason and message.
        result: Result<u64, (String, String)>,
    },
    /// A run was signalled.
    Stopped {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// What a run left is gone.
    Removed {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
        /// Or why not.
        result: Result<(), String>,
    },
    /// The final phase is on disk.
    Recorded(PhaseV1, Result<(), String>),
    /// Namespaces, volumes and cgroup are gone.
    TornDown(Result<(), String>),
}

/// What a look at a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing of it exists.
    Absent,
    /// It is being built.
    Starting,
    /// It runs since, in milliseconds since 1970.
    Running(u64),
    /// It ended.
    Exited(runtime::Exit),
    /// It is gone and nothing saw how it ended.
    Lost,
}

impl From<runtime::Observed> for Seen {
    fn from(observed: runtime::Observed) -> Self {
        match observed {
            runtime::Observed::Absent => Self::Absent,
            runtime::Observed::Starting => Self::Starting,
            runtime::Observed::Running(running) => Self::Running(running.started_ms),
            runtime::Observed::Exited(exit) => Self::Exited(exit),
            runtime::Observed::Lost => Self::Lost,
        }
    }
}

/// Something worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// The container it is about; empty for the pod.
    pub container: String,
    /// Whether something went wrong.
    pub warning: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Happening {
    fn normal(container: &str, reason: &'static str, message: String) -> Self {
        Self { container: container.to_owned(), warning: false, reason, message }
    }
}

impl PodState {
    /// Marks a step as in flight. Called right before its work begins.
    pub fn begin(&mut self, desired: &Desired, step: &Step, now: Now) -> Vec<Happening> {
        match step {
            Step::SetUpSandbox => self.sandbox = Sandbox::SettingUp,
            Step::SetUpVolumes(_) => self.volumes.is_working = true,
            Step::Record(_) => self.is_recording = true,
            Step::TearDown => self.is_tearing_down = true,
            Step::Forget => {}
            Step::Pull { container } => {
                let reference = desired.container(container).map(|wanted| wanted.image.clone());
                if let (Some(container), Some(reference)) =
                    (self.container_mut(container), reference)
                {
                    let failure = (container.image.reference == reference)
                        .then(|| container.image.failure.take())
                        .flatten();
                    container.image = Image { reference, phase: ImagePhase::Pulling, failure };
                }
            }
            Step::Start { container, attempt } => {
                if let Some(container) = self.container_mut(container) {
                    container.begin_start(*attempt);
                }
            }
            Step::Remove { container, attempt } => {
                if let Some(leftover) = self.leftover_mut(container, *attempt) {
                    leftover.is_removing = true;
                }
            }
            Step::Stop { container, signal, why, .. } => {
                if let Some(container) = self.container_mut(container) {
                    return container.begin_stop(*signal, *why, now.mono);
                }
            }
        }
        Vec::new()
    }

    /// Takes in how a step ended.
    pub fn apply(&mut self, uid: &Uid, outcome: Outcome, now: Now) -> Vec<Happening> {
        let at = now.mono;
        match outcome {
            Outcome::Sandbox(Ok(ip)) => {
                self.sandbox = Sandbox::Ready { ip };
                self.sandbox_failure = None;
            }
            Outcome::Sandbox(Err(message)) => {
                self.sandbox_failed(message, at);
            }
            Outcome::Volumes(Ok(versions)) => {
                self.volumes.is_working = false;
                self.volumes.failure = None;
                self.volumes.versions = Some(versions);
            }
            Outcome::Volumes(Err(message)) => {
                self.volumes.is_working = false;
                self.volumes.failure = Some(Failure::next(
                    self.volumes.failure.as_ref(),
                    "FailedMount",
                    message,
                    at,
                    backoff::node,
                ));
            }
            Outcome::Pulled { container, result } => {
                if let Some(container) = self.container_mut(&container) {
                    container.image.pulled(result, at);
                }
            }
            Outcome::Started { container, attempt, result } => {
                return self.started(uid, &container, attempt, result, now);
            }
            Outcome::Stopped { .. } => {}
            Outcome::Removed { container, attempt, result } => {
                self.removed(&container, attempt, result, at);
            }
            Outcome::Recorded(phase, result) => {
                self.is_recording = false;
                match result {
                    Ok(()) => self.finished = Some(phase),
                    Err(message) => {
                        self.record_failure = Some(Failure::next(
                            self.record_failure.as_ref(),
                            "",
                            message,
                            at,
                            backoff::node,
                        ));
                    }
                }
            }
            Outcome::TornDown(result) => {
                self.is_tearing_down = false;
                self.sandbox = Sandbox::Absent;
                self.volumes.versions = None;
                match result {
                    Ok(()) => self.torn_down = true,
                    Err(message) => {
                        self.tear_down_failure = Some(Failure::next(
                            self.tear_down_failure.as_ref(),
                            "",
                            message,
                            at,
                            backoff::node,
                        ));
                    }
                }
            }
        }
        Vec::new()
    }

    /// The run to look at, for each container that has one and waits for no result.
    pub fn to_observe(&self) -> impl Iterator<Item = (&str, u32)> {
        self.containers.iter().filter_map(|container| match container.run {
            Run::Running { attempt, .. } | Run::Starting { attempt, in_flight: false, .. } => {
                Some((container.name.as_str(), attempt))
            }
            _ => None,
        })
    }

    /// Takes in what a look at a container's current run showed.
    pub fn observe(
        &mut self,
        uid: &Uid,
        container: &str,
        attempt: u32,
        seen: Seen,
        now: Now,
    ) -> Vec<Happening> {
        let Some(container) = self.container_mut(container) else { return Vec::new() };
        if container.run.attempt() != Some(attempt) {
            return Vec::new();
        }
        match (&container.run, seen) {
            (Run::Starting { in_flight: true, .. } | Run::None | Run::Exited { .. }, _)
            | (Run::Starting { .. } | Run::Running { .. }, Seen::Starting)
            | (Run::Running { .. }, Seen::Running(_)) => Vec::new(),
            // The agent ended before it had begun to start it.
            (Run::Starting { .. }, Seen::Absent) => {
                container.run = Run::None;
                Vec::new()
            }
            (Run::Starting { .. }, Seen::Lost) => {
                container.leave(attempt);
                container.run = Run::None;
                Vec::new()
            }
            (Run::Starting { .. }, Seen::Running(started_ms)) => {
                container.runs(attempt, started_ms, now.mono)
            }
            (Run::Starting { .. } | Run::Running { .. }, Seen::Exited(exit)) => {
                container.exited(uid, exit, now);
                Vec::new()
            }
            (Run::Running { .. }, Seen::Lost | Seen::Absent) => {
                container.exited(uid, lost(now.wall_ms), now);
                Vec::new()
            }
        }
    }

    fn leftover_mut(&mut self, container: &str, attempt: u32) -> Option<&mut Leftover> {
        self.container_mut(container)?.leftovers.iter_mut().find(|l| l.attempt == attempt)
    }

    fn sandbox_failed(&mut self, message: String, at: Duration) {
        let previous = self.sandbox_failure.take();
        self.sandbox_failure = Some(Failure::next(
            previous.as_ref(),
            "FailedCreatePodSandBox",
            message,
            at,
            backoff::node,
        ));
        self.sandbox = Sandbox::Failed;
    }

    fn started(
        &mut self,
        uid: &Uid,
        name: &str,
        attempt: u32,
        result: Result<u64, (String, String)>,
        now: Now,
    ) -> Vec<Happening> {
        let Some(container) = self.container_mut(name) else { return Vec::new() };
        let is_this = matches!(&container.run, Run::Starting { attempt: a, .. } if *a == attempt);
        if !is_this {
            return Vec::new();
        }
        match result {
            Ok(started_ms) => container.runs(attempt, started_ms, now.mono),
            Err((reason, message)) => {
                container.exited(uid, never_ran(&reason, message, now.wall_ms), now);
                if reason == runtime::reason::CREATE_POD_SANDBOX_ERROR {
                    self.sandbox = Sandbox::Absent;
                }
                Vec::new()
            }
        }
    }

    fn removed(&mut self, name: &str, attempt: u32, result: Result<(), String>, at: Duration) {
        match result {
            Ok(()) => {
                if let Some(container) = self.container_mut(name) {
                    container.leftovers.retain(|leftover| leftover.attempt != attempt);
                }
            }
            Err(message) => {
                if let Some(leftover) = self.leftover_mut(name, attempt) {
                    leftover.is_removing = false;
                    leftover.failure = Some(Failure::next(
                        leftover.failure.as_ref(),
                        "",
                        message,
                        at,
                        backoff::node,
                    ));
                }
            }
        }
    }
}

impl Image {
    fn pulled(&mut self, result: Result<String, (String, String)>, at: Duration) {
        match result {
            Ok(id) => {
                self.phase = ImagePhase::Ready { id };
                self.failure = None;
            }
            Err((reason, message)) => {
                self.phase = ImagePhase::Unknown;
                self.failure = Some(Failure::next(
                    self.failure.as_ref(),
                    &reason,
                    message,
                    at,
                    backoff::retry,
                ));
            }
        }
    }
}

impl Container {
    fn begin_start(&mut self, attempt: u32) {
        let ImagePhase::Ready { id } = &self.image.phase else { return };
        let image_id = id.clone();
        let image = self.image.reference.clone();
        let run = Run::Starting { attempt, image, image_id, in_flight: true };
        if let Run::Exited { end, .. } = std::mem::replace(&mut self.run, run) {
            self.last = Some(end);
        }
        self.next_attempt = attempt.saturating_add(1);
        self.stop = None;
    }

    fn begin_stop(&mut self, signal: Signal, why: Why, at: Duration) -> Vec<Happening> {
        let is_first = self.stop.is_none();
        let stop = self.stop.get_or_insert(ContainerStop { since: at, killed_at: None, why });
        stop.why = why;
        if signal == Signal::Kill {
            stop.killed_at = Some(at);
        }
        if !is_first {
            return Vec::new();
        }
        let message = match why {
            Why::PodStops => format!("Stopping container {}", self.name),
            Why::Replaced => {
                format!("Container {} definition changed, will be restarted", self.name)
            }
        };
        vec![Happening::normal(&self.name, "Killing", message)]
    }

    /// The run that was starting runs.
    fn runs(&mut self, attempt: u32, started_ms: u64, since: Duration) -> Vec<Happening> {
        let Run::Starting { image, image_id, .. } = &self.run else { return Vec::new() };
        let (image, image_id) = (image.clone(), image_id.clone());
        self.run = Run::Running { attempt, image, image_id, started_ms, since };
        self.n_runs = self.n_runs.saturating_add(1);
        self.create_failure = None;
        vec![
            Happening::normal(&self.name, "Created", format!("Created container: {}", self.name)),
            Happening::normal(&self.name, "Started", format!("Started container {}", self.name)),
        ]
    }

    /// The current run is over.
    fn exited(&mut self, uid: &Uid, exit: runtime::Exit, now: Now) {
        let (attempt, image, image_id, since) = match &self.run {
            Run::Starting { attempt, image, image_id, .. } => (*attempt, image, image_id, None),
            Run::Running { attempt, image, image_id, since, .. } => {
                (*attempt, image, image_id, Some(*since))
            }
            Run::None | Run::Exited { .. } => return,
        };
        let (image, image_id) = (image.clone(), image_id.clone());
        self.leave(attempt);
        // Every run asks for its image anew: it costs a look at the disk, and a
        // policy of Always means it.
        self.image.phase = ImagePhase::Unknown;
        if since.is_none()
            && let Some(error) = &exit.error
            && !is_a_run(&error.reason)
        {
            self.create_failure = Some(Failure::next(
                self.create_failure.as_ref(),
                &error.reason,
                error.message.clone(),
                now.mono,
                backoff::retry,
            ));
            self.run = Run::None;
            return;
        }
        if since.is_none() {
            self.n_runs = self.n_runs.saturating_add(1);
        }
        let never_ran =
            exit.error.as_ref().is_some_and(|e| e.reason == runtime::reason::START_ERROR);
        let replaced = self.stop.take().is_some_and(|stop| stop.why == Why::Replaced);
        let ran_for = since.map_or(Duration::ZERO, |since| now.mono.saturating_sub(since));
        self.exits_in_a_row = match () {
            () if replaced => 0,
            () if ran_for >= backoff::RESET_AFTER => 1,
            () => self.exits_in_a_row.saturating_add(1),
        };
        let delay = if never_ran {
            backoff::retry(self.exits_in_a_row)
        } else {
            backoff::restart(self.exits_in_a_row)
        };
        self.create_failure = None;
        self.run = Run::Exited {
            attempt,
            image,
            image_id,
            end: terminated(exit, id::container_id(uid, &self.name, attempt)),
            at: now.mono,
            retry_at: now.mono + delay,
            replaced,
            never_ran,
        };
    }

    /// Its newest run was cut off when the machine went down: over, end unknown.
    pub(super) fn cut_off(&mut self, uid: &Uid, wall_ms: u64) {
        let attempt = self.next_attempt.saturating_sub(1);
        let mut end = lost(wall_ms);
        if let Some(error) = &mut end.error {
            error.message = "the machine went down while it ran".to_owned();
        }
        self.run = Run::Exited {
            attempt,
            image: self.image.reference.clone(),
            image_id: String::new(),
            end: terminated(end, id::container_id(uid, &self.name, attempt)),
            at: Duration::ZERO,
            retry_at: Duration::ZERO,
            replaced: false,
            never_ran: false,
        };
    }

    fn leave(&mut self, attempt: u32) {
        if !self.leftovers.iter().any(|leftover| leftover.attempt == attempt) {
            self.leftovers.push(Leftover { attempt, is_removing: false, failure: None });
        }
    }
}

/// Whether a container that failed for `reason` counts as a run that ended, as
/// with containerd; anything earlier is tried again without counting.
fn is_a_run(reason: &str) -> bool {
    [runtime::reason::START_ERROR, runtime::reason::CONTAINER_STATUS_UNKNOWN].contains(&reason)
}

fn never_ran(reason: &str, message: String, wall_ms: u64) -> runtime::Exit {
    runtime::Exit {
        code: 128,
        signal: None,
        oom_killed: false,
        started_ms: 0,
        finished_ms: wall_ms,
        error: Some(runtime::LaunchError::new(reason, message)),
    }
}

fn lost(wall_ms: u64) -> runtime::Exit {
    runtime::Exit {
        code: 137,
        signal: None,
        oom_killed: false,
        started_ms: 0,
        finished_ms: wall_ms,
        error: Some(runtime::LaunchError::new(
            runtime::reason::CONTAINER_STATUS_UNKNOWN,
            "the container and its shim ended without leaving an exit code",
        )),
    }
}

fn terminated(exit: runtime::Exit, container_id: String) -> TerminatedV1 {
    let (reason, message) = match exit.error {
        Some(error) => (error.reason, error.message),
        None if exit.oom_killed => ("OOMKilled".to_owned(), String::new()),
        None if exit.code == 0 => ("Completed".to_owned(), String::new()),
        None => ("Error".to_owned(), String::new()),
    };
    TerminatedV1 {
        exit_code: exit.code,
        reason,
        message,
        started_ms: exit.started_ms,
        finished_ms: exit.finished_ms,
        container_id,
    }
}
