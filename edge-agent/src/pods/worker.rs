//! One pod at work: observes, plans, does, reports, waits.
//!
//! ```text
//! loop: observe runs ─► plan ─► mark steps ─► keep the state ─► start the steps ─► report
//!         ▲                                                                          │
//!         └── a step's result, a new wish, a change of a container, time ◄────────────┘
//! ```
//!
//! A worker is told that something changed, never what. Steps run beside it, so
//! that a slow pull holds nothing up. The state is written to the run folder
//! before a step begins: an agent that takes over knows what may be in flight.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use wire::Uid;
use wire::pod::{PodV1, SourceV1};
use wire::status::{EventV1, PodStatusV1};

use super::{
    Answer, Desired, Happening, PodState, Probing, Question, Seen, Step, happenings, plan, status,
};
use crate::clock::Clock;
use crate::durable::{self, DurableError, Keep, Magic};
use crate::hooks::{Context, Done, Hooks, chain};
use crate::id;
use crate::images::ReadyImage;

const MAGIC: Magic = *b"PNpod\0\0\x01";
const BYTES_MAX: u64 = 8 << 20;

/// Results of steps that wait for the worker, at most.
const DONE_MAX: usize = 16;

/// What a pod says to the owner of all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPod {
    /// Its status is new or changed.
    Status(PodStatusV1),
    /// Something happened, for people.
    Event(EventV1),
    /// Nothing of it is left.
    Gone(Uid),
}

/// What is kept of a pod in the run folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The pod as it was last wanted.
    pub pod: PodV1,
    /// Generation of its item.
    pub generation: u64,
    /// What is known of it.
    pub state: PodState,
}

impl Kept {
    /// Reads what was kept of a pod; `None` if nothing was.
    ///
    /// # Errors
    /// It is damaged.
    pub fn load(run_dir: &std::path::Path) -> Result<Option<Self>, DurableError> {
        durable::read(&run_dir.join("state"), MAGIC, BYTES_MAX)
    }

    /// Writes it where the next agent finds it.
    ///
    /// # Errors
    /// The disk takes it not.
    pub fn store(&self, run_dir: &std::path::Path) -> Result<(), DurableError> {
        durable::write(&run_dir.join("state"), MAGIC, self, Keep::ThroughRestart)
    }
}

/// Runs one pod.
pub struct Worker {
    hooks: Arc<Hooks>,
    clock: Clock,
    desired: Desired,
    state: PodState,
    images: HashMap<String, ReadyImage>,
    kept: Option<PodState>,
    status: Option<PodStatusV1>,
    path: PathBuf,
    out: mpsc::Sender<FromPod>,
    done: mpsc::Sender<Return>,
    probing: Probing,
}

/// What a task of the worker comes back with.
#[derive(Debug)]
enum Return {
    Step(Box<Done>),
    Probe(Question, Answer),
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("pod", &self.desired.pod.name).finish_non_exhaustive()
    }
}

impl Worker {
    /// Runs a pod from `state` until nothing of it is left, or `wishes` ends: then
    /// the agent stops, and the pod goes on without it.
    pub async fn run(
        hooks: Arc<Hooks>,
        clock: Clock,
        desired: Desired,
        state: PodState,
        mut wishes: watch::Receiver<Desired>,
        out: mpsc::Sender<FromPod>,
    ) {
        let (done, mut results) = mpsc::channel(DONE_MAX);
        let mut changes = hooks.runtime.changes();
        let path = hooks.dirs(&desired.pod).run.join("state");
        let images = HashMap::new();
        let (kept, status) = (None, None);
        let probing = Probing::default();
        let mut worker =
            Self { hooks, clock, desired, state, images, kept, status, path, out, done, probing };
        loop {
            changes.mark_unchanged();
            let Some(wake) = worker.turn().await else { return };
            let sleep = async {
                match wake {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(result) = results.recv() => {
                    worker.hear(result).await;
                    while let Ok(result) = results.try_recv() {
                        worker.hear(result).await;
                    }
                }
                wish = wishes.changed() => {
                    if wish.is_err() {
                        return;
                    }
                    let wish = wishes.borrow_and_update().clone();
                    if wish.restarts != worker.desired.restarts {
                        worker.state.restart(worker.clock.now().mono);
                    }
                    worker.desired = wish;
                }
                // The sender lives as long as the runtime, which the hooks hold.
                _ = changes.changed() => {}
                () = sleep => {}
            }
        }
    }

    /// One round. Returns how long to wait at most; `None` once the pod is gone.
    #[allow(clippy::option_option)]
    async fn turn(&mut self) -> Option<Option<Duration>> {
        self.look().await;
        let now = self.clock.now();
        let happened = self.state.settle(&mut self.desired, now);
        self.say(happened).await;
        let plan = plan(&self.desired, &self.state, now.mono);
        if plan.steps.contains(&Step::Forget) {
            return self.forget().await;
        }
        let mut steps = Vec::new();
        for step in plan.steps {
            let happened = self.state.begin(&self.desired, &step, now);
            self.say(happened).await;
            if let Step::Stop { .. } = step {
                // At once, and before anything else: it is only a signal.
                let done = self.hooks.perform(step, self.context(None), &|_| {}).await;
                self.take(done).await;
            } else {
                steps.push(step);
            }
        }
        self.keep();
        for step in steps {
            self.start(step);
        }
        self.report().await;
        let asked = self.ask();
        // What was begun changes when to look again.
        let now = self.clock.now();
        let again = super::plan(&self.desired, &self.state, now.mono);
        if again.steps.is_empty() {
            let wake = again.wake.into_iter().chain(asked).min();
            return Some(wake.map(|at| at.saturating_sub(now.mono)));
        }
        Some(Some(Duration::ZERO))
    }

    /// Asks the probes that are due; returns when the next one is.
    fn ask(&mut self) -> Option<Duration> {
        let now = self.clock.now().mono;
        let (questions, wake) = self.probing.due(&self.desired, &self.state, now);
        for question in questions {
            let context = self.context(None);
            let (hooks, done) = (Arc::clone(&self.hooks), self.done.clone());
            tokio::spawn(async move {
                let answer = hooks.ask(&context, &question).await;
                // The worker is gone only when the agent stops.
                let _ = done.send(Return::Probe(question, answer)).await;
            });
        }
        wake
    }

    /// Looks at every run that may have changed.
    async fn look(&mut self) {
        let now = self.clock.now();
        let uid = self.desired.pod.uid;
        let runs: Vec<(String, u32)> =
            self.state.to_observe().map(|(name, attempt)| (name.to_owned(), attempt)).collect();
        for (name, attempt) in runs {
            let run = id::container_id(&uid, &name, attempt);
            let (hooks, pod) = (&self.hooks, &self.desired.pod);
            let seen = Seen::new(hooks.runtime.observe(&run), |exit| {
                hooks.last_words(pod, &name, attempt, exit)
            });
            let happened = self.state.observe(&uid, &name, attempt, seen, now);
            self.say(happened).await;
        }
    }

    fn start(&self, step: Step) {
        let image = match &step {
            Step::Start { container, .. } => self.images.get(container).cloned(),
            _ => None,
        };
        let context = self.context(image);
        let (hooks, done, out) = (Arc::clone(&self.hooks), self.done.clone(), self.out.clone());
        let (pod, clock) = (Arc::clone(&self.desired.pod), self.clock);
        tokio::spawn(async move {
            let progress = |happening: Happening| {
                // Events are best effort: a full queue loses them.
                let _ = out.try_send(FromPod::Event(event(&pod, happening, &clock)));
            };
            let result = hooks.perform(step, context, &progress).await;
            // The worker is gone only when the agent stops.
            let _ = done.send(Return::Step(Box::new(result))).await;
        });
    }

    fn context(&self, image: Option<ReadyImage>) -> Context {
        Context { desired: self.desired.clone(), state: self.state.clone(), image }
    }

    async fn hear(&mut self, result: Return) {
        match result {
            Return::Step(done) => self.take(*done).await,
            Return::Probe(question, answer) => {
                let wanted = self.desired.container(&question.container);
                let Some(probe) = wanted.and_then(|wanted| question.kind.of(wanted)) else {
                    return;
                };
                let (happened, passed) = self.probing.answer(&question, probe, &answer);
                if let Some(passed) = passed {
                    self.state.probed(&question, passed);
                }
                self.say(happened.into_iter().collect()).await;
            }
        }
    }

    async fn take(&mut self, done: Done) {
        if let Some((container, image)) = done.image {
            self.images.insert(container, image);
        }
        if let Some(problem) = problem(&done.outcome) {
            let pod = &self.desired.pod;
            tracing::warn!(pod = format!("{}/{}", pod.namespace, pod.name), "{problem}");
        }
        let uid = self.desired.pod.uid;
        let happened = self.state.apply(&uid, done.outcome, self.clock.now());
        self.say(happened).await;
    }

    /// Writes the state where the next agent finds it, if it changed.
    fn keep(&mut self) {
        if self.kept.as_ref() == Some(&self.state) {
            return;
        }
        let kept = Kept {
            pod: (*self.desired.pod).clone(),
            generation: self.desired.generation,
            state: self.state.clone(),
        };
        let folder = self.path.parent().expect("the path has a folder");
        let written = std::fs::create_dir_all(folder)
            .map_err(|source| DurableError::Io {
                operation: "make the folder of",
                path: self.path.clone(),
                source,
            })
            .and_then(|()| kept.store(folder));
        match written {
            Ok(()) => self.kept = Some(kept.state),
            // The containers' own folders tell most of it again.
            Err(error) => tracing::warn!(error = chain(&error), "cannot keep a pod's state"),
        }
    }

    async fn report(&mut self) {
        let new = status(&self.desired, &self.state, self.clock.now());
        if self.status.as_ref() == Some(&new) {
            return;
        }
        let happened = happenings(&self.desired, self.status.as_ref(), &new);
        self.say(happened).await;
        self.send(FromPod::Status(new.clone())).await;
        self.status = Some(new);
    }

    async fn say(&self, happened: Vec<Happening>) {
        for happening in happened {
            let event = event(&self.desired.pod, happening, &self.clock);
            self.send(FromPod::Event(event)).await;
        }
    }

    async fn send(&self, message: FromPod) {
        // The owner is gone only when the agent stops.
        let _ = self.out.send(message).await;
    }

    #[allow(clippy::option_option)]
    async fn forget(&mut self) -> Option<Option<Duration>> {
        // A last word, for a master that waits for `terminated`.
        self.report().await;
        let pod = Arc::clone(&self.desired.pod);
        let hooks = Arc::clone(&self.hooks);
        let pods = self.hooks.folders.run.join("pods");
        let removed = tokio::task::spawn_blocking(move || {
            hooks.forget(&pod, |uid| *uid != pod.uid && pods.join(id::uid_text(uid)).exists())
        })
        .await
        .expect("removing folders does not panic");
        match removed {
            Ok(()) => {
                self.send(FromPod::Gone(self.desired.pod.uid)).await;
                None
            }
            Err(error) => {
                tracing::warn!(error, "cannot remove what is left of a pod");
                Some(Some(super::backoff::node(4)))
            }
        }
    }
}

/// What is worth a line in the agent's log.
fn problem(outcome: &super::Outcome) -> Option<String> {
    use super::Outcome;
    match outcome {
        Outcome::Sandbox(Err(error)) => Some(format!("no sandbox: {error}")),
        Outcome::Volumes(Err(error)) => Some(format!("no volumes: {error}")),
        Outcome::Pulled { container, result: Err((reason, message)) } => {
            Some(format!("{container}: {reason}: {message}"))
        }
        Outcome::Started { container, result: Err((reason, message)), .. } => {
            Some(format!("{container}: {reason}: {message}"))
        }
        Outcome::Removed { container, attempt, result: Err(error) } => {
            Some(format!("{container}: run {attempt} cannot be removed: {error}"))
        }
        Outcome::Kept(_, Err(error)) => Some(format!("its progress cannot be kept: {error}")),
        Outcome::Recorded(_, Err(error)) => Some(format!("its end cannot be kept: {error}")),
        Outcome::TornDown(Err(error)) => Some(format!("not torn down: {error}")),
        _ => None,
    }
}

fn event(pod: &PodV1, happening: Happening, clock: &Clock) -> EventV1 {
    EventV1 {
        uid: pod.uid,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        container: happening.container,
        warning: happening.warning,
        reason: happening.reason.to_owned(),
        message: happening.message,
        at_ms: clock.now().wall_ms,
    }
}

/// Whether two wishes differ in what a worker looks at.
#[must_use]
pub fn differs(old: &Desired, new: &Desired) -> bool {
    let versions = |desired: &Desired| {
        desired
            .keys
            .iter()
            .map(|(source, keys)| (source.clone(), keys.uid, keys.generation))
            .collect::<Vec<(SourceV1, Uid, u64)>>()
    };
    old.generation != new.generation
        || old.present != new.present
        || old.eviction != new.eviction
        || old.tokens != new.tokens
        || old.restarts != new.restarts
        || old.pod != new.pod
        || versions(old) != versions(new)
}
