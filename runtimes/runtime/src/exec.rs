//! Running one more command in a container that runs: what `kubectl exec`,
//! exec probes and exec hooks need.
//!
//! ```text
//! agent ── ShimRuntime::exec ──spawn──► exec process (one a command, single-threaded)
//!   │  control socket: request + descriptors ►   │ Launcher::exec: fork, join, execve
//!   │                  ◄ started, exited         ▼
//!   └──── pipes or the terminal's master ◄──► command, in the container's
//!                                             namespaces and cgroup
//! ```
//!
//! The agent never forks into a container itself: the exec process is the
//! agent's binary executed anew (`… exec DIR`). It is the command's parent,
//! and kills the command with all its descendants as soon as the agent says so
//! or is gone: the control socket's end is the order.
//!
//! Knows nothing of who asks, nor of how long a command may take.

mod group;
mod helper;
mod spawn;
mod stream;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

pub use helper::exec_main;
pub(crate) use spawn::exec;

use crate::{LaunchError, Pid, Runtime, RuntimeError};

/// How long output may stay away after the command has ended before it counts
/// as complete: a process left in the background may hold the streams for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// A command to run in a container.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The command, its path first; looked for in the container's PATH.
    pub args: Vec<String>,
    /// Variables beside the container's; they win.
    pub env: Vec<(String, String)>,
    /// Whether something will be written to its standard input; `/dev/null` otherwise.
    pub stdin: bool,
    /// Give it a terminal: then there is no standard error of its own.
    pub tty: bool,
}

// Arguments and variables may hold secrets.
impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecRequest")
            .field("n_args", &self.args.len())
            .field("n_env", &self.env.len())
            .field("stdin", &self.stdin)
            .field("tty", &self.tty)
            .finish()
    }
}

impl ExecRequest {
    /// A command without input or terminal.
    #[must_use]
    pub fn new(args: Vec<String>) -> Self {
        Self { args, ..Self::default() }
    }
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

/// Output of a command.
pub type ExecReader = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// Input of a command; dropping it ends the input (not that of a terminal).
pub type ExecWriter = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// Power over a command that runs.
pub trait ExecControl: Send + Sync {
    /// Tells the terminal its size. Without a terminal, nothing happens.
    ///
    /// # Errors
    /// The terminal is gone.
    fn resize(&self, size: WindowSize) -> io::Result<()>;

    /// Kills the command and everything it has started, as far as it still is
    /// where it was started. [`ExecHandle::wait`] tells when it has ended.
    fn kill(&self);
}

/// A command that runs in a container. Dropping it kills the command.
pub struct ExecHandle {
    /// Where the request asked for it.
    pub stdin: Option<ExecWriter>,
    /// Output; all of it with a terminal.
    pub stdout: Option<ExecReader>,
    /// Errors; `None` with a terminal.
    pub stderr: Option<ExecReader>,
    exit: watch::Receiver<Option<i32>>,
    control: Box<dyn ExecControl>,
}

impl fmt::Debug for ExecHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecHandle").field("exit", &self.exit.borrow()).finish_non_exhaustive()
    }
}

impl ExecHandle {
    /// A handle on a command; `exit` becomes its exit code.
    #[must_use]
    pub fn new(
        streams: (Option<ExecWriter>, Option<ExecReader>, Option<ExecReader>),
        exit: watch::Receiver<Option<i32>>,
        control: Box<dyn ExecControl>,
    ) -> Self {
        let (stdin, stdout, stderr) = streams;
        Self { stdin, stdout, stderr, exit, control }
    }

    /// Tells the terminal its size.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        self.control.resize(size)
    }

    /// Kills the command and what it has started.
    pub fn kill(&self) {
        self.control.kill();
    }

    /// Waits for the command to end, and gives its exit code; 128 + signal where
    /// a signal ended it. May be called again, and dropped at any time.
    ///
    /// # Errors
    /// The exec process was killed, and the code with it.
    pub async fn wait(&self) -> Result<i32, RuntimeError> {
        let mut exit = self.exit.clone();
        let code = exit.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        code.ok_or(RuntimeError::ExecLost)
    }
}

/// The descriptors that become the command's standard streams. None of them is
/// the terminal's: that is made inside the container.
#[derive(Debug)]
pub struct ExecStdio {
    /// Input.
    pub stdin: OwnedFd,
    /// Output.
    pub stdout: OwnedFd,
    /// Errors.
    pub stderr: OwnedFd,
}

/// A container or command that a [`crate::Launcher`] has started.
#[derive(Debug)]
pub struct Entered {
    /// Its process, a child of the caller.
    pub pid: Pid,
    /// The master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

impl From<Pid> for Entered {
    /// One without a terminal.
    fn from(pid: Pid) -> Self {
        Self { pid, terminal: None }
    }
}

/// Puts a process that is about to become the command where it is counted and
/// can be killed. The launcher calls it once, before the command runs.
pub type Admit<'a> = &'a mut dyn FnMut(Pid) -> Result<(), LaunchError>;

/// What a command that was waited for has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code; `None` if it took too long and was killed.
    pub code: Option<i32>,
    /// What it wrote to both streams, up to the bound.
    pub output: Vec<u8>,
}

/// Runs a command to its end, as probes and hooks do, and kills it once
/// `time` is over. Output beyond `output_bytes_max` is read and dropped.
///
/// # Errors
/// It could not be started, or its exit code is not known.
pub async fn exec_output(
    runtime: &dyn Runtime,
    id: &str,
    args: Vec<String>,
    time: Duration,
    output_bytes_max: usize,
) -> Result<ExecOutput, RuntimeError> {
    let deadline = Instant::now() + time;
    let Ok(started) = timeout_at(deadline, runtime.exec(id, ExecRequest::new(args))).await else {
        return Ok(ExecOutput { code: None, output: Vec::new() });
    };
    let mut handle = started?;
    let streams = [handle.stdout.take(), handle.stderr.take()];
    let [mut out, mut err] = streams;
    let (mut output, mut exited) = (Vec::new(), None);
    let (mut out_bytes, mut err_bytes) = ([0; 4096], [0; 4096]);
    let mut keep = |bytes: &[u8]| {
        let room = output_bytes_max.saturating_sub(output.len());
        output.extend_from_slice(&bytes[..bytes.len().min(room)]);
    };
    while exited.is_none() || out.is_some() || err.is_some() {
        let next = async {
            tokio::select! {
                n = read(&mut out, &mut out_bytes), if out.is_some() => {
                    keep(&out_bytes[..n]);
                    Ok(None)
                }
                n = read(&mut err, &mut err_bytes), if err.is_some() => {
                    keep(&err_bytes[..n]);
                    Ok(None)
                }
                code = handle.wait(), if exited.is_none() => code.map(Some),
            }
        };
        let step = if exited.is_none() {
            timeout_at(deadline, next).await
        } else {
            timeout(DRAIN_TIMEOUT, next).await
        };
        match step {
            Ok(Ok(Some(code))) => exited = Some(code),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) if exited.is_some() => break,
            Err(_) => {
                handle.kill();
                return Ok(ExecOutput { code: None, output });
            }
        }
    }
    Ok(ExecOutput { code: exited, output })
}

/// Reads once; a stream at its end is dropped.
async fn read(stream: &mut Option<ExecReader>, bytes: &mut [u8]) -> usize {
    let Some(reader) = stream else { return 0 };
    match reader.read(bytes).await {
        Ok(n) if n > 0 => n,
        _ => {
            *stream = None;
            0
        }
    }
}
