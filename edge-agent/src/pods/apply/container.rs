//! The transitions of one container: its image, its start, its end.

use std::time::Duration;

use wire::Uid;
use wire::status::TerminatedV1;

use super::{Happening, Pulled};
use crate::clock::Now;
use crate::id;
use crate::pods::backoff;
use crate::pods::state::{Container, Failure, Health, Image, ImagePhase, Leftover, Run, Why};

impl Image {
    pub(super) fn pulled(&mut self, result: Result<Pulled, (String, String)>, at: Duration) {
        match result {
            Ok(Pulled { id, stop_signal }) => {
                self.phase = ImagePhase::Ready { id, stop_signal };
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
    pub(super) fn begin_start(&mut self, attempt: u32) {
        let ImagePhase::Ready { id, stop_signal } = &self.image.phase else { return };
        let (image_id, stop_signal) = (id.clone(), *stop_signal);
        let image = self.image.reference.clone();
        let run = Run::Starting { attempt, image, image_id, stop_signal, in_flight: true };
        if let Run::Exited { end, .. } = std::mem::replace(&mut self.run, run) {
            self.last = Some(end);
        }
        self.next_attempt = attempt.saturating_add(1);
        self.stop = None;
    }

    /// The run that was starting runs.
    pub(super) fn runs(
        &mut self,
        attempt: u32,
        started_ms: u64,
        since: Duration,
    ) -> Vec<Happening> {
        let Run::Starting { image, image_id, stop_signal, .. } = &self.run else {
            return Vec::new();
        };
        self.run = Run::Running {
            attempt,
            image: image.clone(),
            image_id: image_id.clone(),
            started_ms,
            since,
            stop_signal: *stop_signal,
            health: Health::default(),
        };
        self.n_runs = self.n_runs.saturating_add(1);
        self.create_failure = None;
        vec![
            Happening::normal(&self.name, "Created", format!("Created container: {}", self.name)),
            Happening::normal(&self.name, "Started", format!("Started container {}", self.name)),
        ]
    }

    /// The current run is over.
    pub(super) fn exited(&mut self, uid: &Uid, exit: runtime::Exit, last_words: String, now: Now) {
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
        let why = self.stop.take().map(|stop| stop.why);
        let replaced = matches!(why, Some(Why::Replaced | Why::Restarted));
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
            end: terminated(exit, last_words, id::container_id(uid, &self.name, attempt)),
            at: now.mono,
            retry_at: now.mono + delay,
            replaced,
            never_ran,
            fault: why.filter(|why| matches!(why, Why::Unhealthy(_) | Why::HookFailed)),
            before_boot: false,
        };
    }

    pub(super) fn leave(&mut self, attempt: u32) {
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

pub(super) fn never_ran(reason: &str, message: String, wall_ms: u64) -> runtime::Exit {
    runtime::Exit {
        code: 128,
        signal: None,
        oom_killed: false,
        started_ms: 0,
        finished_ms: wall_ms,
        error: Some(runtime::LaunchError::new(reason, message)),
    }
}

pub(super) fn lost(wall_ms: u64) -> runtime::Exit {
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

fn terminated(exit: runtime::Exit, last_words: String, container_id: String) -> TerminatedV1 {
    let (reason, mut message) = match exit.error {
        Some(error) => (error.reason, error.message),
        None if exit.oom_killed => ("OOMKilled".to_owned(), String::new()),
        None if exit.code == 0 => ("Completed".to_owned(), String::new()),
        None => ("Error".to_owned(), String::new()),
    };
    if message.is_empty() {
        message = last_words;
    }
    TerminatedV1 {
        exit_code: exit.code,
        reason,
        message,
        started_ms: exit.started_ms,
        finished_ms: exit.finished_ms,
        container_id,
    }
}
