//! The process between the agent and one container.
//!
//! ```text
//! lock → FIFOs → launch (or adopt) → running.json → "OK" → relay output … → exit.json
//! ```
//!
//! One thread, no async runtime: it may fork at any time and stays small. It
//! outlives the agent. If it is killed itself, the container goes on: it holds
//! its FIFOs open for reading too, so writes wait instead of failing, and the
//! agent starts another shim that adopts the container. Output is copied out of
//! a FIFO before it is taken from it, so a batch may be logged twice but never
//! lost. A terminal is the shim's alone: it hangs up if the shim is killed.
//!
//! The status goes to standard output, a pipe of the agent's: one line,
//! `OK <pid> <started_ms>` or `ERR <LaunchError as JSON>`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use rustix::process::{PidfdFlags, WaitOptions};

use crate::attach::{STDIN_FIFO, Tee, Wait};
use crate::cgroup::Hierarchies;
use crate::dir::{ContainerDir, RunningFile};
use crate::exec::{Admit, Entered, ExecRequest, ExecStdio};
use crate::log::{FILE_BYTES_MAX, Lines, LogFile, Stream};
use crate::partial::Partial;
use crate::process::{self, now_ms};
use crate::state::reason;
use crate::terminal::Terminal;
use crate::{ContainerSpec, Exit, LaunchError, Pid, Workload};

/// Exit code of a container whose process never ran, as containerd has it.
const CODE_NOT_STARTED: i32 = 128;

/// Exit code where nobody knows.
pub(crate) const CODE_UNKNOWN: i32 = 255;

/// Most bytes copied out of a FIFO at a time; a pipe holds 64 KiB.
const BATCH_BYTES_MAX: usize = 32 * 1024;

/// Most batches taken from one stream after the container has ended: more than
/// a pipe holds, so only a process that escaped the container can reach it.
const DRAIN_BATCHES_MAX: usize = 64;

/// Starts containers of one kind. Called in the shim, which has one thread.
pub trait Launcher {
    /// Starts the container with `out` and `err` as its standard streams, or with a
    /// terminal where `spec.stdio.tty` says so, whose master it gives back.
    ///
    /// `dir` is the container's folder; the launcher keeps what it needs in
    /// `dir/state`. The process must be a child of the caller and in
    /// `spec.cgroup` before it runs anything of the user's.
    ///
    /// # Errors
    /// Nothing of the container runs; its cgroup may be left for the caller to remove.
    fn launch(
        &self,
        spec: &ContainerSpec,
        dir: &Path,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Entered, LaunchError>;

    /// Starts one more command in the container whose first process is `inside`.
    /// Called in the exec process, which has one thread.
    ///
    /// `admit` must have taken the new process before it runs anything of the user's.
    ///
    /// # Errors
    /// Nothing of the command runs.
    fn exec(
        &self,
        spec: &ContainerSpec,
        dir: &Path,
        inside: Pid,
        request: &ExecRequest,
        stdio: ExecStdio,
        admit: Admit<'_>,
    ) -> Result<Entered, LaunchError> {
        let _ = (dir, inside, request, stdio, admit);
        let message = format!("container {:?} cannot run a second command", spec.container);
        Err(LaunchError::new(reason::CREATE_CONTAINER_ERROR, message))
    }

    /// Called once after the container ended, before its exit is known to
    /// others. Must be quick; the folder and scratch go with `Runtime::remove`.
    ///
    /// # Errors
    /// Only logged.
    fn cleanup(&self, spec: &ContainerSpec, dir: &Path) -> Result<(), LaunchError> {
        let _ = (spec, dir);
        Ok(())
    }

    /// Whether the container ended for want of memory in a way the kernel does
    /// not count: a WASM guest that reached its own limit.
    fn out_of_memory(&self, dir: &Path) -> bool {
        let _ = dir;
        false
    }
}

/// The shim: all of the process from the hidden subcommand `shim DIR` to its end.
#[must_use]
pub fn shim_main(dir: &Path, launcher_for: impl Fn(&Workload) -> Box<dyn Launcher>) -> ExitCode {
    let mut status = match take_stdout() {
        Ok(status) => status,
        Err(error) => {
            complain(&format!("cannot take the status pipe: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match run(dir, &mut status, launcher_for) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.message);
            let json = serde_json::to_string(&error).unwrap_or_default();
            tell(&mut status, &format!("ERR {json}"));
            ExitCode::FAILURE
        }
    }
}

/// Moves the status pipe away from descriptor 1, so that no child inherits it.
fn take_stdout() -> io::Result<Option<File>> {
    let status = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(Some(File::from(status)))
}

/// Answers the agent, once. It may be gone, which is fine.
fn tell(status: &mut Option<File>, line: &str) {
    if let Some(mut pipe) = status.take() {
        let _ = pipe.write_all(format!("{line}\n").as_bytes());
    }
}

/// Standard error is `shim.log`.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "{} {message}", jiff::Timestamp::now());
}

fn internal(what: &str, error: &dyn std::fmt::Display) -> LaunchError {
    LaunchError::new(reason::CREATE_CONTAINER_ERROR, format!("the shim cannot {what}: {error}"))
}

fn run(
    dir: &Path,
    status: &mut Option<File>,
    launcher_for: impl Fn(&Workload) -> Box<dyn Launcher>,
) -> Result<(), LaunchError> {
    let path = fs::canonicalize(dir).map_err(|e| internal("find its folder", &e))?;
    let dir = ContainerDir::new(path);
    // A session of its own: no signal of the agent's terminal or service reaches it.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    // What the launcher leaves behind becomes our child, and not that of PID 1.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));

    let Some(_lock) = dir.lock().map_err(|e| internal("take its lock", &e))? else {
        return Err(internal("take its lock", &"another shim holds it"));
    };
    if dir.exit().is_ok() {
        return Err(internal("start", &"the container has already ended"));
    }
    let spec = dir.spec().map_err(|e| internal("read config.json", &e))?;
    let hierarchies = Hierarchies::detect().map_err(|e| internal("find the cgroups", &e))?;
    let launcher = launcher_for(&spec.workload);

    dir.make_fifos().map_err(|e| internal("make the FIFOs", &e))?;
    let mut out = Relay::new(&dir, Stream::Stdout).map_err(|e| internal("make a FIFO", &e))?;
    let err = Relay::new(&dir, Stream::Stderr).map_err(|e| internal("make a FIFO", &e))?;
    // Somebody has input open for writing before the container can look for it:
    // to a reader, a FIFO without writers has ended.
    let opened = spec.stdio.stdin.then(|| dir.open_fifo(STDIN_FIFO)).transpose();
    let held = opened.map_err(|e| internal("open a FIFO", &e))?;
    let (mut tee, opened) = Tee::open(&dir);
    let (container, running) = match dir.running() {
        Ok(running) => (adopt(&running), running),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match launch(&*launcher, &spec, &dir, &out, &err) {
                Ok((pidfd, running, terminal)) => {
                    if let Some(terminal) = terminal {
                        let taken = out.take_terminal(terminal);
                        let input = taken.map_err(|e| internal("keep the terminal", &e))?;
                        tee.take_terminal(input, &spec);
                    }
                    (Container::Child(running.pid, pidfd), running)
                }
                Err(error) => {
                    give_up(&dir, &spec, &hierarchies, &error);
                    return Err(error);
                }
            }
        }
        Err(error) => return Err(internal("read running.json", &error)),
    };
    if let Err(error) = opened {
        complain(&format!("nobody can attach: {error}"));
    }
    tee.open_stdin(&dir, &spec);
    drop(held);
    tell(status, &format!("OK {} {}", running.pid, running.started_ms));
    process::trim_heap();

    let mut log = LogFile::open(&spec.log, FILE_BYTES_MAX);
    let mut relays = [out, err];
    if let Some(pidfd) = container.pidfd() {
        relay_until_exit(pidfd, &mut relays, &mut log, &mut tee)
            .map_err(|e| internal("wait for the container", &e))?;
    }
    let exit_status = container.status().or_else(|| dir.ended().map(|ended| ended.status));
    // Without a pid namespace something may still run, and hold the streams open.
    hierarchies.kill(&spec.cgroup);
    for relay in &mut relays {
        relay.drain(&mut log, &mut tee);
    }
    let oom_kills = hierarchies.oom_kills(&spec.cgroup);
    if let Err(error) = launcher.cleanup(&spec, dir.path()) {
        complain(&error.message);
    }
    let mut exit = exit_of(exit_status, oom_kills, running.started_ms);
    exit.oom_killed |= launcher.out_of_memory(dir.path());
    dir.write("exit.json", &exit).map_err(|e| internal("write exit.json", &e))?;
    let _ = hierarchies.remove(&spec.cgroup);
    Ok(())
}

fn exit_of(status: Option<i32>, oom_kills: u64, started_ms: u64) -> Exit {
    let (code, signal) = status.map_or((CODE_UNKNOWN, None), process::decode_status);
    Exit {
        code,
        signal,
        oom_killed: oom_kills > 0 && code != 0,
        started_ms,
        finished_ms: now_ms(),
        error: status.is_none().then(|| {
            LaunchError::new(
                reason::CONTAINER_STATUS_UNKNOWN,
                "the container ended after its shim had been killed, and this kernel does not \
                 keep the exit code",
            )
        }),
    }
}

/// Starts the container and writes down what it is.
fn launch(
    launcher: &dyn Launcher,
    spec: &ContainerSpec,
    dir: &ContainerDir,
    out: &Relay,
    err: &Relay,
) -> Result<(OwnedFd, RunningFile, Option<OwnedFd>), LaunchError> {
    let started_ms = now_ms();
    let writer = |relay: &Relay| relay.writer.try_clone().map_err(|e| internal("open a FIFO", &e));
    let entered = launcher.launch(spec, dir.path(), writer(out)?, writer(err)?)?;
    // libcontainer writes the container's value to its caller as well; the shim
    // should be among the last to be killed. Lowering takes CAP_SYS_RESOURCE.
    if fs::write("/proc/self/oom_score_adj", "-998").is_err() {
        let _ = fs::write("/proc/self/oom_score_adj", "0");
    }
    let recorded = record(dir, entered.pid.0, started_ms);
    let (pidfd, running) = recorded.map_err(|e| internal("write running.json", &e))?;
    Ok((pidfd, running, entered.terminal))
}

fn record(dir: &ContainerDir, pid: i32, started_ms: u64) -> io::Result<(OwnedFd, RunningFile)> {
    let raw = rustix::process::Pid::from_raw(pid)
        .ok_or_else(|| io::Error::other("the launcher gave no process"))?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())?;
    let start_ticks = process::start_ticks(pid)
        .ok_or_else(|| io::Error::other("/proc does not know the process"))?;
    let running = RunningFile { pid, start_ticks, boot_id: process::boot_id(), started_ms };
    dir.write("running.json", &running)?;
    Ok((pidfd, running))
}

/// After a failed start: nothing of it may stay, and the reason is kept.
fn give_up(dir: &ContainerDir, spec: &ContainerSpec, cgroups: &Hierarchies, error: &LaunchError) {
    cgroups.kill(&spec.cgroup);
    let _ = cgroups.remove(&spec.cgroup);
    let exit = Exit {
        code: CODE_NOT_STARTED,
        signal: None,
        oom_killed: false,
        started_ms: 0,
        finished_ms: now_ms(),
        error: Some(error.clone()),
    };
    if let Err(error) = dir.write("exit.json", &exit) {
        complain(&format!("cannot write exit.json: {error}"));
    }
}

/// The container's process, and how its end can be learnt.
enum Container {
    /// Ours to wait for.
    Child(i32, OwnedFd),
    /// Started by the shim before.
    Adopted(OwnedFd),
    /// It ended between two shims.
    Gone,
}

fn adopt(running: &RunningFile) -> Container {
    if running.boot_id != process::boot_id() {
        return Container::Gone;
    }
    match process::open(running.pid, running.start_ticks) {
        Ok(pidfd) => Container::Adopted(pidfd),
        Err(_) => Container::Gone,
    }
}

impl Container {
    fn pidfd(&self) -> Option<&OwnedFd> {
        match self {
            Self::Child(_, pidfd) | Self::Adopted(pidfd) => Some(pidfd),
            Self::Gone => None,
        }
    }

    /// The wait status, once it has ended.
    fn status(&self) -> Option<i32> {
        match self {
            Self::Child(pid, _) => {
                let pid = rustix::process::Pid::from_raw(*pid);
                loop {
                    match rustix::process::waitpid(pid, WaitOptions::empty()) {
                        Err(Errno::INTR) => {}
                        Ok(Some((_, status))) => return Some(status.as_raw()),
                        _ => return None,
                    }
                }
            }
            Self::Adopted(pidfd) => process::exit_status_of_stranger(pidfd),
            Self::Gone => None,
        }
    }
}

/// One standard stream on its way from the container's FIFO to the log.
struct Relay {
    fifo: OwnedFd,
    /// The container's end. Open for reading too, so that it never gets SIGPIPE.
    writer: OwnedFd,
    /// Holds a copy of a batch while the original is still in the FIFO.
    copy: (OwnedFd, OwnedFd),
    lines: Lines,
    stream: Stream,
    /// The unfinished line, kept where the next shim finds it.
    partial: Partial,
    buffer: Vec<u8>,
    /// Where it comes from instead of the FIFO.
    terminal: Option<Terminal>,
}

impl Relay {
    fn new(dir: &ContainerDir, stream: Stream) -> io::Result<Self> {
        let (name, partial_name) = match stream {
            Stream::Stdout => ("out", "partial.out"),
            Stream::Stderr => ("err", "partial.err"),
        };
        let (partial, note) = Partial::open(dir.file(partial_name));
        let fifo = dir.open_fifo(name)?;
        let copy = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let writer = dir.open_fifo(name)?;
        let lines = Lines::new(stream, Vec::new());
        let buffer = Vec::new();
        let mut relay = Self { fifo, writer, copy, lines, stream, partial, buffer, terminal: None };
        let n = relay.peek(note.batch_len().min(BATCH_BYTES_MAX));
        let mut left = note.unfinished(&relay.buffer[..n]);
        left.truncate(crate::log::LINE_BYTES_MAX - 1);
        relay.lines = Lines::new(stream, left);
        relay.buffer = Vec::new();
        Ok(relay)
    }

    /// From now on the stream is a terminal's; gives another descriptor of it, for input.
    fn take_terminal(&mut self, master: OwnedFd) -> io::Result<OwnedFd> {
        let terminal = Terminal::new(master)?;
        let input = terminal.input()?;
        self.terminal = Some(terminal);
        Ok(input)
    }

    /// What becomes readable as the container writes; `None` once it cannot any more.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.terminal {
            None => Some(self.fifo.as_fd()),
            Some(terminal) => terminal.source(),
        }
    }

    /// Logs one batch of a terminal. False if there was nothing.
    fn pump_terminal(&mut self, log: &mut LogFile, tee: &mut Tee) -> bool {
        let Some(terminal) = &mut self.terminal else { return false };
        self.buffer.resize(BATCH_BYTES_MAX, 0);
        let n = terminal.read(&mut self.buffer);
        self.lines.feed(&self.buffer[..n], log);
        tee.send(self.stream, &self.buffer[..n]);
        // The batch is taken already: all that is left of it is the unfinished line.
        self.partial.note(Vec::new(), self.lines.partial(), b"");
        n > 0
    }

    /// Copies at most `n_max` bytes into the buffer that stay in the FIFO.
    fn peek(&mut self, n_max: usize) -> usize {
        self.buffer.resize(n_max, 0);
        let flags = SpliceFlags::NONBLOCK;
        let n = match rustix::pipe::tee(&self.fifo, &self.copy.1, n_max, flags) {
            Ok(n) if n > 0 => n,
            _ => return 0,
        };
        let mut done = 0;
        while done < n {
            match rustix::io::read(&self.copy.0, &mut self.buffer[done..n]) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        done
    }

    /// Logs one batch. False if there was nothing.
    fn pump(&mut self, log: &mut LogFile, tee: &mut Tee) -> bool {
        if self.terminal.is_some() {
            return self.pump_terminal(log, tee);
        }
        let n = self.peek(BATCH_BYTES_MAX);
        if n == 0 {
            return false;
        }
        let before = self.lines.partial().to_vec();
        self.lines.feed(&self.buffer[..n], log);
        tee.send(self.stream, &self.buffer[..n]);
        self.partial.note(before, self.lines.partial(), &self.buffer[..n]);
        // Only now is it taken from the FIFO.
        let mut taken = 0;
        while taken < n {
            match rustix::io::read(&self.fifo, &mut self.buffer[..n - taken]) {
                Ok(0) => break,
                Ok(more) => taken += more,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        true
    }

    fn drain(&mut self, log: &mut LogFile, tee: &mut Tee) {
        for _ in 0..DRAIN_BATCHES_MAX {
            if !self.pump(log, tee) {
                break;
            }
        }
        self.lines.finish(log);
        self.partial.note(Vec::new(), b"", b"");
    }
}

fn relay_until_exit(
    pidfd: &OwnedFd,
    relays: &mut [Relay; 2],
    log: &mut LogFile,
    tee: &mut Tee,
) -> io::Result<()> {
    loop {
        let (ended, ready, clients) = {
            let waits = tee.waits();
            // In the place of a stream that has ended stands the container, once more.
            let source = |relay: usize| {
                let source = relays[relay].source().unwrap_or_else(|| pidfd.as_fd());
                PollFd::from_borrowed_fd(source, PollFlags::IN)
            };
            let mut fds = vec![PollFd::new(pidfd, PollFlags::IN), source(0), source(1)];
            fds.extend(waits.iter().map(|(fd, flags, _)| PollFd::from_borrowed_fd(*fd, *flags)));
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let own = (is_ready(&fds[0]), [is_ready(&fds[1]), is_ready(&fds[2])]);
            let ready: Vec<bool> = fds[3..].iter().map(is_ready).collect();
            let clients: Vec<Wait> = waits
                .into_iter()
                .zip(ready)
                .filter_map(|((_, _, wait), is_ready)| is_ready.then_some(wait))
                .collect();
            (own.0, own.1, clients)
        };
        if ended {
            return Ok(());
        }
        for (relay, ready) in relays.iter_mut().zip(ready) {
            if ready {
                relay.pump(log, tee);
            }
        }
        tee.handle(clients);
    }
}
