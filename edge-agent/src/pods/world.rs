//! A machine for the tests of the state machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use expect_test::Expect;
use wire::pod::PodV1;
use wire::status::{PodStatusV1, StateV1};

use super::*;
use crate::clock::Now;
use crate::progress::Progress;

/// A machine that does what steps say, and fails where it is told to.
pub(super) struct World {
    pub(super) desired: Desired,
    pub(super) state: PodState,
    pub(super) now: Now,
    /// Runs that exist: id of the container and attempt → how it is seen.
    pub(super) runs: BTreeMap<(String, u32), Seen>,
    pub(super) steps: Vec<String>,
    pub(super) happenings: Vec<String>,
    pub(super) status: Option<PodStatusV1>,
    pub(super) forgotten: bool,
    pub(super) pull_error: Option<(String, String)>,
    pub(super) start_error: Option<(String, String)>,
    pub(super) sandbox_error: Option<String>,
    pub(super) record_error: Option<String>,
    pub(super) ignores_term: bool,
    pub(super) code_on_term: i32,
    /// Hooks that do not come back until they are told to.
    pub(super) slow_hooks: bool,
    pub(super) hook_error: Option<String>,
    /// What probes say; `Success` where nothing is said.
    pub(super) answers: BTreeMap<(String, ProbeKind), Answer>,
    pub(super) probing: Probing,
    /// What would be on disk.
    pub(super) kept: Progress,
}

impl World {
    pub(super) fn new(pod: PodV1) -> Self {
        let state = PodState::new(&pod, 5);
        let desired = Desired {
            pod: Arc::new(pod),
            generation: 1,
            present: true,
            keys: KeySet::new(),
            tokens: crate::tokens::Held::default(),
            eviction: None,
            restarts: 0,
        };
        Self {
            desired,
            state,
            now: Now { mono: Duration::from_secs(1000), wall_ms: 1_000_000 },
            runs: BTreeMap::new(),
            steps: vec![],
            happenings: vec![],
            status: None,
            forgotten: false,
            pull_error: None,
            start_error: None,
            sandbox_error: None,
            record_error: None,
            ignores_term: false,
            code_on_term: 143,
            slow_hooks: false,
            hook_error: None,
            answers: BTreeMap::new(),
            probing: Probing::default(),
            kept: Progress::default(),
        }
    }

    pub(super) fn edit(&mut self, edit: impl FnOnce(&mut PodV1)) {
        edit(Arc::make_mut(&mut self.desired.pod));
        self.desired.generation += 1;
    }

    pub(super) fn exit(&mut self, container: &str, code: i32) {
        let attempt = self.state.container(container).unwrap().run.attempt().unwrap();
        let exit = runtime::Exit {
            code,
            signal: None,
            oom_killed: false,
            started_ms: 1,
            finished_ms: 2,
            error: None,
        };
        self.runs.insert((container.into(), attempt), Seen::Exited(exit, String::new()));
    }

    pub(super) fn advance(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall_ms += u64::try_from(time.as_millis()).unwrap();
    }

    /// Observes, plans and does until nothing is left to do now. Panics if it does not end.
    pub(super) fn settle(&mut self) -> &mut Self {
        for _ in 0..100 {
            if self.forgotten {
                return self;
            }
            self.look();
            let happened = self.state.settle(&mut self.desired, self.now);
            self.note(happened);
            let plan = plan(&self.desired, &self.state, self.now.mono);
            self.report();
            if plan.steps.is_empty() {
                assert!(plan.wake.is_none_or(|at| at > self.now.mono), "a wake in the past");
                if !self.ask() {
                    return self;
                }
            }
            for step in plan.steps {
                self.perform(&step);
            }
        }
        panic!("does not settle: {:?}", self.steps);
    }

    /// Lets time pass until the plan's next wake, and settles.
    pub(super) fn wake(&mut self) -> Option<Duration> {
        self.settle();
        let planned = plan(&self.desired, &self.state, self.now.mono).wake;
        let (questions, asked) = self.probing.due(&self.desired, &self.state, self.now.mono);
        assert_eq!(questions, [], "asked already");
        let wake = planned.into_iter().chain(asked).min()?;
        let passed = wake - self.now.mono;
        self.advance(passed);
        self.settle();
        Some(passed)
    }

    /// Asks the probes that are due; says whether there were any.
    pub(super) fn ask(&mut self) -> bool {
        let (questions, _) = self.probing.due(&self.desired, &self.state, self.now.mono);
        for question in &questions {
            let key = (question.container.clone(), question.kind);
            let answer = self.answers.get(&key).cloned().unwrap_or(Answer::Success);
            let wanted = self.desired.container(&question.container).unwrap();
            let probe = question.kind.of(wanted).unwrap();
            let (happened, passed) = self.probing.answer(question, probe, &answer);
            self.note(happened.into_iter().collect());
            if let Some(passed) = passed {
                self.state.probed(question, passed);
            }
        }
        !questions.is_empty()
    }

    pub(super) fn look(&mut self) {
        let runs: Vec<(String, u32)> =
            self.state.to_observe().map(|(name, attempt)| (name.to_owned(), attempt)).collect();
        for (name, attempt) in runs {
            let seen = self.runs.get(&(name.clone(), attempt)).cloned().unwrap_or(Seen::Absent);
            let happened = self.state.observe(&[7; 16], &name, attempt, seen, self.now);
            self.note(happened);
        }
    }

    pub(super) fn report(&mut self) {
        let new = status(&self.desired, &self.state, self.now);
        if self.status.as_ref() != Some(&new) {
            let happened = happenings(&self.desired, self.status.as_ref(), &new);
            self.note(happened);
            self.status = Some(new);
        }
    }

    pub(super) fn note(&mut self, happened: Vec<Happening>) {
        self.happenings
            .extend(happened.into_iter().map(|h| format!("{}: {}", h.reason, h.message)));
    }

    pub(super) fn perform(&mut self, step: &Step) {
        let happened = self.state.begin(&self.desired, step, self.now);
        self.note(happened);
        let before = (self.state.clone(), self.desired.clone());
        assert!(
            !plan(&before.1, &before.0, self.now.mono).steps.contains(step)
                || matches!(step, Step::Forget),
            "{step:?} is planned again while it is in flight"
        );
        let (text, outcome) = self.outcome(step);
        self.steps.push(text);
        let is_hook = matches!(step, Step::PostStart { .. } | Step::PreStop { .. });
        if let Some(outcome) = outcome.filter(|_| !(is_hook && self.slow_hooks)) {
            let happened = self.state.apply(&[7; 16], outcome, self.now);
            self.note(happened);
        }
    }

    pub(super) fn outcome(&mut self, step: &Step) -> (String, Option<Outcome>) {
        let outcome = match step {
            Step::SetUpSandbox => Outcome::Sandbox(match &self.sandbox_error {
                Some(error) => Err(error.clone()),
                None => Ok("10.42.0.2".into()),
            }),
            Step::SetUpVolumes(versions) => Outcome::Volumes(Ok(versions.clone())),
            Step::Pull { container } => Outcome::Pulled {
                container: container.clone(),
                result: match &self.pull_error {
                    Some(error) => Err(error.clone()),
                    None => Ok(Pulled { id: "sha256:aa".into(), stop_signal: None }),
                },
            },
            Step::Start { container, attempt } => {
                let result = match &self.start_error {
                    Some(error) => Err(error.clone()),
                    None => {
                        let old = self
                            .runs
                            .insert((container.clone(), *attempt), Seen::Running(self.now.wall_ms));
                        assert_eq!(old, None, "{container} {attempt} is used twice");
                        let n_live = self
                            .runs
                            .iter()
                            .filter(|((c, _), seen)| {
                                c == container && matches!(seen, Seen::Running(_))
                            })
                            .count();
                        assert_eq!(n_live, 1, "two runs of {container} at once");
                        Ok(self.now.wall_ms)
                    }
                };
                Outcome::Started { container: container.clone(), attempt: *attempt, result }
            }
            Step::Stop { container, attempt, signal, .. } => {
                if *signal == Signal::Kill || !self.ignores_term {
                    let code = if *signal == Signal::Kill { 137 } else { self.code_on_term };
                    self.exit(container, code);
                }
                Outcome::Stopped { container: container.clone(), attempt: *attempt }
            }
            Step::PostStart { container, attempt } => Outcome::PostStarted {
                container: container.clone(),
                attempt: *attempt,
                result: self.hook_error.clone().map_or(Ok(()), Err),
            },
            Step::PreStop { container, attempt, .. } => Outcome::PreStopped {
                container: container.clone(),
                attempt: *attempt,
                result: self.hook_error.clone().map_or(Ok(()), Err),
            },
            Step::Keep(progress) => {
                self.kept = progress.clone();
                Outcome::Kept(progress.clone(), Ok(()))
            }
            Step::Remove { container, attempt } => {
                self.runs.remove(&(container.clone(), *attempt));
                Outcome::Removed { container: container.clone(), attempt: *attempt, result: Ok(()) }
            }
            Step::Record(phase) => Outcome::Recorded(
                *phase,
                match &self.record_error {
                    Some(error) => Err(error.clone()),
                    None => Ok(()),
                },
            ),
            Step::TearDown => {
                assert!(self.runs.is_empty(), "torn down under {:?}", self.runs);
                Outcome::TornDown(Ok(()))
            }
            Step::Forget => {
                self.forgotten = true;
                return ("forget".into(), None);
            }
        };
        let text = match step {
            Step::SetUpSandbox => "sandbox".into(),
            Step::SetUpVolumes(_) => "volumes".into(),
            Step::Pull { container } => format!("pull {container}"),
            Step::Start { container, attempt } => format!("start {container} {attempt}"),
            Step::Stop { container, attempt, signal, why } => {
                format!("{signal:?} {container} {attempt} {why:?}")
            }
            Step::PostStart { container, attempt } => format!("post-start {container} {attempt}"),
            Step::PreStop { container, attempt, why, .. } => {
                format!("pre-stop {container} {attempt} {why:?}")
            }
            Step::Keep(progress) => {
                format!("keep {:?} {}", progress.active, progress.ended.len())
            }
            Step::Remove { container, attempt } => format!("remove {container} {attempt}"),
            Step::Record(phase) => format!("record {phase:?}"),
            Step::TearDown => "tear down".into(),
            Step::Forget => unreachable!(),
        };
        (text, Some(outcome))
    }

    pub(super) fn check(&mut self, expected: Expect) {
        let mut text = String::new();
        for step in self.steps.drain(..) {
            text.push_str(&format!("{step}\n"));
        }
        for happening in self.happenings.drain(..) {
            text.push_str(&format!("! {happening}\n"));
        }
        let status = status(&self.desired, &self.state, self.now);
        text.push_str(&format!("{:?} terminated={}\n", status.phase, status.terminated));
        for c in status.all_containers() {
            let state = match &c.state {
                StateV1::Waiting { reason, message } => format!("waiting {reason} {message}"),
                StateV1::Running { .. } => "running".into(),
                StateV1::Terminated(end) => format!("terminated {} {}", end.exit_code, end.reason),
            };
            let last = c.last.as_ref().map(|end| format!(" last={} {}", end.exit_code, end.reason));
            text.push_str(&format!(
                "{}: {} restarts={}{}\n",
                c.name,
                state.trim(),
                c.restarts,
                last.unwrap_or_default()
            ));
        }
        expected.assert_eq(&text);
    }

    pub(super) fn container_state(&self) -> StateV1 {
        status(&self.desired, &self.state, self.now).containers[0].state.clone()
    }
}
