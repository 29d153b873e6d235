//! The transitions: what a step's beginning, its result, and a look at a
//! container change in the state of a pod.

mod container;

use std::time::Duration;

use wire::Uid;
use wire::pod::RestartPolicyV1;
use wire::status::PhaseV1;

use self::container::{lost, never_ran};
use super::Desired;
use super::backoff;
use super::plan::{Signal, Step};
use super::state::{
    ContainerStop, Failure, Hook, Image, ImagePhase, Leftover, PodState, Role, Run, Sandbox,
    Versions, Why,
};
use crate::clock::Now;
use crate::progress::Progress;

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
        /// What it is, or reason and message.
        result: Result<Pulled, (String, String)>,
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
    /// The hook after the start of a run is through.
    PostStarted {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
        /// Or why it failed.
        result: Result<(), String>,
    },
    /// The hook before the stop of a run is through.
    PreStopped {
        /// The container.
        container: String,
        /// Which run.
        attempt: u32,
        /// Or why it failed.
        result: Result<(), String>,
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
    /// How far the pod is, is on disk.
    Kept(Progress, Result<(), String>),
    /// The final phase is on disk.
    Recorded(PhaseV1, Result<(), String>),
    /// Namespaces, volumes and cgroup are gone.
    TornDown(Result<(), String>),
}

/// An image that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// `sha256:…`.
    pub id: String,
    /// Number of the signal that it wants to be stopped with.
    pub stop_signal: Option<u8>,
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
    /// It ended, with these last words.
    Exited(runtime::Exit, String),
    /// It is gone and nothing saw how it ended.
    Lost,
}

impl Seen {
    /// What was observed; `last_words` is asked for those of a run that ended.
    pub fn new(
        observed: runtime::Observed,
        last_words: impl FnOnce(&runtime::Exit) -> String,
    ) -> Self {
        match observed {
            runtime::Observed::Absent => Self::Absent,
            runtime::Observed::Starting => Self::Starting,
            runtime::Observed::Running(running) => Self::Running(running.started_ms),
            runtime::Observed::Exited(exit) => {
                let message = last_words(&exit);
                Self::Exited(exit, message)
            }
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
    pub(super) fn normal(container: &str, reason: &'static str, message: String) -> Self {
        Self { container: container.to_owned(), warning: false, reason, message }
    }

    fn warning(container: &str, reason: &'static str, message: String) -> Self {
        Self { container: container.to_owned(), warning: true, reason, message }
    }
}

impl PodState {
    /// Marks a step as in flight. Called right before its work begins.
    pub fn begin(&mut self, desired: &Desired, step: &Step, now: Now) -> Vec<Happening> {
        match step {
            Step::SetUpSandbox => self.sandbox = Sandbox::SettingUp,
            Step::SetUpVolumes(_) => self.volumes.is_working = true,
            Step::Keep(_) => self.is_keeping = true,
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
            Step::PostStart { container, .. } => {
                if let Some(Run::Running { health, .. }) =
                    self.container_mut(container).map(|container| &mut container.run)
                {
                    health.post_start = Hook::InFlight;
                }
            }
            Step::PreStop { container, why, .. } => {
                return self.begin_stop(desired, container, *why, now.mono, |stop| {
                    stop.hook = Hook::InFlight;
                });
            }
            Step::Stop { container, signal, why, .. } => {
                return self.begin_stop(desired, container, *why, now.mono, |stop| {
                    let at = Some(now.mono);
                    match signal {
                        Signal::Term => stop.signalled_at = at,
                        Signal::Kill => stop.killed_at = at,
                    }
                });
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
            Outcome::PostStarted { container, attempt, result } => {
                return self.post_started(&container, attempt, result);
            }
            Outcome::PreStopped { container, attempt, result } => {
                return self.pre_stopped(&container, attempt, &result);
            }
            Outcome::Kept(progress, result) => {
                self.is_keeping = false;
                match result {
                    Ok(()) => {
                        self.progress = progress;
                        self.keep_failure = None;
                    }
                    Err(message) => {
                        self.keep_failure = Some(Failure::next(
                            self.keep_failure.as_ref(),
                            "",
                            message,
                            at,
                            backoff::node,
                        ));
                    }
                }
            }
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

    /// Somebody asked for the pod to begin anew: what runs is stopped gracefully and
    /// started again whatever its restart policy, and what waits for its next try
    /// tries now. Containers that are done stay so.
    pub fn restart(&mut self, at: Duration) {
        let at_once = |failure: &mut Option<Failure>| {
            if let Some(failure) = failure {
                failure.retry_at = failure.retry_at.min(at);
            }
        };
        at_once(&mut self.sandbox_failure);
        at_once(&mut self.volumes.failure);
        for container in &mut self.containers {
            at_once(&mut container.create_failure);
            at_once(&mut container.image.failure);
            let goes_on = matches!(container.role, Role::Main | Role::Sidecar);
            match &mut container.run {
                Run::Running { health, .. } if goes_on => {
                    health.fault.get_or_insert(Why::Restarted);
                }
                Run::Exited { retry_at, .. } => *retry_at = at.min(*retry_at),
                _ => {}
            }
        }
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
            (Run::Starting { .. } | Run::Running { .. }, Seen::Exited(exit, message)) => {
                container.exited(uid, exit, message, now);
                Vec::new()
            }
            (Run::Running { .. }, Seen::Lost | Seen::Absent) => {
                container.exited(uid, lost(now.wall_ms), String::new(), now);
                Vec::new()
            }
        }
    }

    /// The stop of a run goes on, or begins.
    fn begin_stop(
        &mut self,
        desired: &Desired,
        name: &str,
        why: Why,
        at: Duration,
        change: impl FnOnce(&mut ContainerStop),
    ) -> Vec<Happening> {
        let Some(container) = self.container_mut(name) else { return Vec::new() };
        let is_first = container.stop.is_none();
        let stop = container.stop.get_or_insert(ContainerStop {
            since: at,
            hook: Hook::Due,
            signalled_at: None,
            killed_at: None,
            why,
        });
        stop.why = why;
        change(stop);
        if !is_first {
            return Vec::new();
        }
        let again = match desired.restart_policy(container) {
            RestartPolicyV1::Never => "",
            RestartPolicyV1::Always | RestartPolicyV1::OnFailure => ", will be restarted",
        };
        let message = match why {
            Why::PodStops => format!("Stopping container {name}"),
            Why::Replaced => format!("Container {name} definition changed, will be restarted"),
            Why::Unhealthy(kind) => {
                format!("Container {name} failed {} probe{again}", kind.word())
            }
            Why::HookFailed => "FailedPostStartHook".to_owned(),
            Why::Restarted => format!("Container {name} was told to restart"),
        };
        vec![Happening::normal(name, "Killing", message)]
    }

    fn post_started(
        &mut self,
        name: &str,
        attempt: u32,
        result: Result<(), String>,
    ) -> Vec<Happening> {
        let Some(container) = self.container_mut(name) else { return Vec::new() };
        let Run::Running { attempt: runs, health, .. } = &mut container.run else {
            return Vec::new();
        };
        if *runs != attempt {
            return Vec::new();
        }
        health.post_start = Hook::Done;
        let Err(why) = result else { return Vec::new() };
        health.fault.get_or_insert(Why::HookFailed);
        let message = format!("PostStartHook failed: {why}");
        vec![Happening::warning(name, "FailedPostStartHook", message)]
    }

    fn pre_stopped(
        &mut self,
        name: &str,
        attempt: u32,
        result: &Result<(), String>,
    ) -> Vec<Happening> {
        let Some(container) = self.container_mut(name) else { return Vec::new() };
        if container.run.attempt() != Some(attempt) {
            return Vec::new();
        }
        if let Some(stop) = &mut container.stop {
            stop.hook = Hook::Done;
        }
        match result {
            // The run may have ended by itself, with its hook in it.
            Err(why) if container.run.is_live() => {
                let message = format!("PreStopHook failed: {why}");
                vec![Happening::warning(name, "FailedPreStopHook", message)]
            }
            _ => Vec::new(),
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
                let exit = never_ran(&reason, message, now.wall_ms);
                container.exited(uid, exit, String::new(), now);
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
