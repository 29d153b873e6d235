//! A [`Runtime`] without processes, for the tests of whoever uses one.
//!
//! Containers start at once and run until the test ends them. What shall go
//! differently is said beforehand, by the name of the container.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::process::now_ms;
use crate::{
    BoxFuture, ContainerSpec, Exit, LaunchError, Observed, Pid, Running, Runtime, RuntimeError,
};

/// What a fake container does with SIGTERM and every other signal but SIGKILL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSignal {
    /// Ends with 128 + signal.
    #[default]
    End,
    /// Ends with this code.
    Exit(i32),
    /// Goes on.
    Ignore,
}

/// A runtime whose containers do what the test says.
#[derive(Clone, Debug, Default)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, (ContainerSpec, Observed)>,
    /// By name of the container: failures of its next starts.
    failures: BTreeMap<String, VecDeque<LaunchError>>,
    /// By name of the container.
    on_signal: BTreeMap<String, OnSignal>,
    calls: Vec<String>,
    last_pid: i32,
}

impl FakeRuntime {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// The next start of the container with this name fails.
    pub fn fail_next_start(&self, container: &str, error: LaunchError) {
        self.state().failures.entry(container.to_owned()).or_default().push_back(error);
    }

    /// What containers with this name do with signals.
    pub fn on_signal(&self, container: &str, answer: OnSignal) {
        self.state().on_signal.insert(container.to_owned(), answer);
    }

    /// Ends a container as if its process had exited with `code`.
    ///
    /// # Panics
    /// It does not run.
    pub fn exit(&self, id: &str, code: i32) {
        let mut state = self.state();
        let (_, observed) = state.containers.get_mut(id).expect("the container exists");
        end(observed, code, None);
        drop(state);
        self.changed();
    }

    /// Puts a container into any state.
    ///
    /// # Panics
    /// It was never started.
    pub fn set(&self, id: &str, observed: Observed) {
        self.state().containers.get_mut(id).expect("the container exists").1 = observed;
        self.changed();
    }

    /// The specs of all containers there are, by id.
    #[must_use]
    pub fn specs(&self) -> Vec<ContainerSpec> {
        self.state().containers.values().map(|(spec, _)| spec.clone()).collect()
    }

    /// Every call that changed something so far, such as `start web-0`,
    /// `kill web-0 15`, `remove web-0`.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }
}

fn end(observed: &mut Observed, code: i32, signal: Option<i32>) {
    let Observed::Running(running) = observed else { panic!("not running: {observed:?}") };
    *observed = Observed::Exited(Exit {
        code,
        signal,
        oom_killed: false,
        started_ms: running.started_ms,
        finished_ms: now_ms(),
        error: None,
    });
}

impl Runtime for FakeRuntime {
    fn start(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        let mut state = self.state();
        state.calls.push(format!("start {}", spec.id));
        let result = match state.containers.get(&spec.id) {
            Some((_, Observed::Running(running))) => Ok(*running),
            Some(_) => Err(RuntimeError::AlreadyRan(spec.id)),
            None => {
                let failure = state.failures.get_mut(&spec.container).and_then(VecDeque::pop_front);
                state.last_pid += 1;
                let running = Running { pid: Pid(1000 + state.last_pid), started_ms: now_ms() };
                let observed = match &failure {
                    None => Observed::Running(running),
                    Some(error) => Observed::Exited(Exit {
                        code: 128,
                        signal: None,
                        oom_killed: false,
                        started_ms: 0,
                        finished_ms: now_ms(),
                        error: Some(error.clone()),
                    }),
                };
                state.containers.insert(spec.id.clone(), (spec, observed));
                failure.map_or(Ok(running), |error| Err(error.into()))
            }
        };
        drop(state);
        self.changed();
        Box::pin(std::future::ready(result))
    }

    fn observe(&self, id: &str) -> Observed {
        self.state().containers.get(id).map_or(Observed::Absent, |(_, observed)| observed.clone())
    }

    fn kill(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.calls.push(format!("kill {id} {signal}"));
        let answers = state.on_signal.clone();
        if let Some((spec, observed @ Observed::Running(_))) = state.containers.get_mut(id) {
            let answer = answers.get(&spec.container).copied().unwrap_or_default();
            match answer {
                _ if signal == 9 => end(observed, 137, Some(9)),
                OnSignal::End => end(observed, 128 + signal, Some(signal)),
                OnSignal::Exit(code) => end(observed, code, None),
                OnSignal::Ignore => {}
            }
        }
        drop(state);
        self.changed();
        Ok(())
    }

    fn remove(&self, id: &str) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let mut state = self.state();
        state.calls.push(format!("remove {id}"));
        state.containers.remove(id);
        drop(state);
        self.changed();
        Box::pin(std::future::ready(Ok(())))
    }

    fn list(&self) -> Vec<String> {
        self.state().containers.keys().cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
