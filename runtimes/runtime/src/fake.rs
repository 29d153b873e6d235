//! A [`Runtime`] without processes, for the tests of whoever uses one.
//!
//! Containers start at once and run until the test ends them. What shall go
//! differently is said beforehand, by the name of the container.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::exec::{ExecControl, ExecHandle, ExecReader, ExecRequest, ExecWriter, WindowSize};
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

/// What a command in a fake container does.
#[derive(Clone, Debug, Default)]
pub struct FakeExec {
    /// What it writes to standard output.
    pub stdout: Vec<u8>,
    /// What it writes to standard error.
    pub stderr: Vec<u8>,
    /// Its exit code; `None` if it never ends by itself.
    pub code: Option<i32>,
    /// Give back on standard output what comes on standard input, and end with it.
    pub echo: bool,
    /// Why it cannot be started.
    pub error: Option<LaunchError>,
}

impl FakeExec {
    /// Ends at once with this code.
    #[must_use]
    pub fn exit(code: i32) -> Self {
        Self { code: Some(code), ..Self::default() }
    }
}

type OnExec = Arc<dyn Fn(&ExecRequest) -> FakeExec + Send + Sync>;

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
    on_exec: Option<ExecAnswer>,
    calls: Vec<String>,
    last_pid: i32,
}

struct ExecAnswer(OnExec);

impl std::fmt::Debug for ExecAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecAnswer")
    }
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

    /// What commands do in containers; without it they end at once with 0.
    pub fn on_exec(&self, answer: impl Fn(&ExecRequest) -> FakeExec + Send + Sync + 'static) {
        self.state().on_exec = Some(ExecAnswer(Arc::new(answer)));
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

/// A command without a process.
fn fake_command(what: FakeExec, request: &ExecRequest) -> ExecHandle {
    let (exit, exited) = watch::channel(what.code.filter(|_| !what.echo));
    let exit = Arc::new(exit);
    let boxed = |bytes: Vec<u8>| -> ExecReader { Box::new(std::io::Cursor::new(bytes)) };
    let (stdin, stdout): (Option<ExecWriter>, ExecReader) = if what.echo {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut input, mut output) = tokio::io::split(far);
        let code = what.code.unwrap_or(0);
        let ended = Arc::clone(&exit);
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut input, &mut output).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut output).await;
            ended.send_replace(Some(code));
        });
        let (output, input) = tokio::io::split(near);
        (request.stdin.then(|| Box::new(input) as ExecWriter), Box::new(output))
    } else {
        let input = request.stdin.then(|| Box::new(tokio::io::sink()) as ExecWriter);
        (input, boxed(what.stdout))
    };
    let stderr = (!request.tty).then(|| boxed(what.stderr));
    ExecHandle::new((stdin, Some(stdout), stderr), exited, Box::new(FakeControl { exit }))
}

struct FakeControl {
    exit: Arc<watch::Sender<Option<i32>>>,
}

impl ExecControl for FakeControl {
    fn resize(&self, _: WindowSize) -> std::io::Result<()> {
        Ok(())
    }

    fn kill(&self) {
        self.exit.send_if_modified(|code| {
            let lives = code.is_none();
            code.get_or_insert(137);
            lives
        });
    }
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

    fn exec(
        &self,
        id: &str,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecHandle, RuntimeError>> {
        let mut state = self.state();
        state.calls.push(format!("exec {id} {}", request.args.join(" ")));
        let is_running = matches!(state.containers.get(id), Some((_, Observed::Running(_))));
        let answer = state.on_exec.as_ref().map(|answer| Arc::clone(&answer.0));
        drop(state);
        let result = if is_running {
            let what = answer.map_or_else(|| FakeExec::exit(0), |answer| answer(&request));
            match what.error {
                Some(error) => Err(error.into()),
                None => Ok(fake_command(what, &request)),
            }
        } else {
            Err(RuntimeError::NotRunning(id.to_owned()))
        };
        Box::pin(std::future::ready(result))
    }

    /// Says what it hears, as long as the container runs.
    fn attach(&self, id: &str, stdin: bool) -> BoxFuture<'_, Result<ExecHandle, RuntimeError>> {
        let mut state = self.state();
        state.calls.push(format!("attach {id}"));
        let is_running = matches!(state.containers.get(id), Some((_, Observed::Running(_))));
        let request = ExecRequest { stdin, ..ExecRequest::default() };
        let what = FakeExec { echo: true, ..FakeExec::default() };
        Box::pin(std::future::ready(if is_running {
            Ok(fake_command(what, &request))
        } else {
            Err(RuntimeError::NotRunning(id.to_owned()))
        }))
    }

    fn list(&self) -> Vec<String> {
        self.state().containers.keys().cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
