//! [`ShimRuntime`]: one shim process a container, and what keeps watch over them.
//!
//! A task waits on each shim's pidfd. When a shim ends, everybody who looks at
//! [`Runtime::changes`] is woken; when it ended before its container did
//! (killed), another shim adopts the container. The agent may end at any time:
//! the next one finds everything in the containers' folders.
//!
//! Where somebody may be killed, and what follows:
//!
//! | killed | left behind | who goes on |
//! |---|---|---|
//! | agent, before the shim has its lock | a folder, a shim on its way | `Lost`: removed; the shim finds the lock taken or the folder gone |
//! | agent, while the shim builds | a shim | the next agent waits for `running.json` |
//! | shim, while it builds | processes in the cgroup | the agent kills the group; the attempt counts as not made |
//! | shim, as the program begins | `begun`, the container | killed; a run whose end is not known, so that what may run once runs once |
//! | shim, after `running.json` | the container | the next shim adopts it, also where the answer never came |
//! | shim, as the container ends | an exit status | the agent's pidfd of the container has it (Linux 6.15), for the next shim |
//! | agent and shim, as the container ends | nothing | `ContainerStatusUnknown`; what was still in the FIFOs is lost |
//! | agent, while it removes | a folder, perhaps renamed | removed again; renamed ones at the next start |

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::PidfdFlags;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::attach;
use crate::cgroup::Hierarchies;
use crate::dir::{ContainerDir, EndedFile, GONE, UNSEEN, is_valid_id};
use crate::exec::{self, ExecHandle, ExecRequest};
use crate::process;
use crate::{
    BoxFuture, ContainerSpec, LaunchError, Observed, Pid, Running, Runtime, RuntimeError, Workload,
};

/// How long a shim may take to build its container: a loaded board with an SD card.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the end of a killed container is waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a state that has no event is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Longest answer of a shim, in bytes.
const STATUS_BYTES_MAX: usize = 64 * 1024;

/// Delays between attempts to adopt a container: doubling between these.
const ADOPT_DELAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// How long a shim may take from its start to its lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);

const SIGKILL: i32 = 9;

/// How a shim is started.
#[derive(Clone, Debug)]
pub struct ShimCommand {
    /// The program.
    pub program: PathBuf,
    /// What comes before the container's folder.
    pub args: Vec<OsString>,
    /// The same for the process of one command, see [`crate::exec`].
    pub exec_args: Vec<OsString>,
}

impl Default for ShimCommand {
    /// This program, as it runs now (also after its file was replaced), with
    /// `shim DIR` and `exec DIR`.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            args: vec!["shim".into()],
            exec_args: vec!["exec".into()],
        }
    }
}

/// Containers behind shims, in `<run_dir>/containers`.
#[derive(Clone, Debug)]
pub struct ShimRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    containers: PathBuf,
    command: ShimCommand,
    hierarchies: Hierarchies,
    changes: watch::Sender<u64>,
}

impl ShimRuntime {
    /// Takes over a folder, with every container found in it.
    ///
    /// Must be called in a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// The folder cannot be made, or /proc is missing.
    pub fn open(run_dir: &Path, command: ShimCommand) -> io::Result<Self> {
        let containers = run_dir.join("containers");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&containers)?;
        let inner = Inner {
            containers,
            command,
            hierarchies: Hierarchies::detect()?,
            changes: watch::Sender::new(0),
        };
        let runtime = Self { inner: Arc::new(inner) };
        for entry in fs::read_dir(&runtime.inner.containers)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == GONE) {
                remove_tree(&path)?;
            }
        }
        for id in runtime.list() {
            tokio::spawn(watch_over(Arc::clone(&runtime.inner), id, None));
        }
        Ok(runtime)
    }
}

impl Runtime for ShimRuntime {
    fn start(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        Box::pin(self.inner.start(spec))
    }

    fn observe(&self, id: &str) -> Observed {
        if !is_valid_id(id) {
            return Observed::Absent;
        }
        let dir = self.inner.dir(id);
        match (dir.observe(), dir.running()) {
            // It ran, and shim and process are gone: the next shim is on its way
            // and will find out how it ended. Until then nothing new is known.
            (Observed::Lost, Ok(file)) => match dir.exit() {
                Ok(exit) => Observed::Exited(exit),
                Err(_) => {
                    Observed::Running(Running { pid: Pid(file.pid), started_ms: file.started_ms })
                }
            },
            (observed, _) => observed,
        }
    }

    fn kill(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        self.inner.kill(id, signal)
    }

    fn remove(&self, id: &str) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let id = id.to_owned();
        Box::pin(async move { self.inner.remove(&id).await })
    }

    fn exec(
        &self,
        id: &str,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecHandle, RuntimeError>> {
        let id = id.to_owned();
        Box::pin(async move {
            if !is_valid_id(&id) {
                return Err(RuntimeError::BadId(id));
            }
            exec::exec(&self.inner.command, self.inner.dir(&id), id, request).await
        })
    }

    fn attach(&self, id: &str, stdin: bool) -> BoxFuture<'_, Result<ExecHandle, RuntimeError>> {
        let result = if is_valid_id(id) {
            let (runtime, observed) = (self.clone(), id.to_owned());
            let observe = move || runtime.observe(&observed);
            attach::attach(self.inner.dir(id), id.to_owned(), stdin, observe, self.changes())
        } else {
            Err(RuntimeError::BadId(id.to_owned()))
        };
        Box::pin(std::future::ready(result))
    }

    fn list(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.inner.containers) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<String> = names.filter(|name| is_valid_id(name)).collect();
        ids.sort_unstable();
        ids
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

fn io_error(operation: &'static str, id: &str) -> impl FnOnce(io::Error) -> RuntimeError {
    let id = id.to_owned();
    move |source| RuntimeError::Io { operation, id, source }
}

impl Inner {
    fn dir(&self, id: &str) -> ContainerDir {
        ContainerDir::new(self.containers.join(id))
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    async fn start(self: &Arc<Self>, spec: ContainerSpec) -> Result<Running, RuntimeError> {
        let id = spec.id.clone();
        if !is_valid_id(&id) {
            return Err(RuntimeError::BadId(id));
        }
        let dir = self.dir(&id);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match dir.observe() {
                Observed::Absent => break,
                Observed::Running(running) => return Ok(running),
                Observed::Exited(exit) => {
                    return Err(exit.error.map_or(RuntimeError::AlreadyRan(id), Into::into));
                }
                Observed::Lost => return Err(RuntimeError::AlreadyRan(id)),
                Observed::Starting if Instant::now() > deadline => {
                    return Err(self.shim_error(&id, "has not started it in time"));
                }
                Observed::Starting => sleep(POLL).await,
            }
        }
        let hierarchies = self.hierarchies.clone();
        tokio::task::spawn_blocking(move || hierarchies.expect_moves());
        dir.create(&spec).map_err(io_error("write the folder", &id))?;
        dir.make_fifos().map_err(io_error("make the FIFOs", &id))?;
        let (child, answer) = self.spawn(&dir).map_err(io_error("start the shim", &id))?;
        let shim = rustix::process::Pid::from_child(&child);
        tokio::spawn(watch_over(Arc::clone(self), id.clone(), Some(child)));
        let result = self.answer(&id, answer).await;
        if matches!(result, Err(RuntimeError::Shim { .. }))
            && let Some(file) = dir.live_process()
        {
            // Only the shim was killed, between writing it down and saying so.
            self.changed();
            return Ok(Running { pid: Pid(file.pid), started_ms: file.started_ms });
        }
        if matches!(result, Err(RuntimeError::Shim { .. })) {
            // Whatever it is doing, it must not go on unwatched.
            let _ = rustix::process::kill_process(shim, rustix::process::Signal::KILL);
            self.hierarchies.kill(&spec.cgroup);
            if dir.has_begun() {
                self.changed();
                let reason = crate::state::reason::CONTAINER_STATUS_UNKNOWN;
                return Err(LaunchError::new(reason, UNSEEN).into());
            }
        }
        self.changed();
        result
    }

    fn shim_error(&self, id: &str, what: &str) -> RuntimeError {
        let log = self.dir(id).file("shim.log");
        RuntimeError::Shim { id: id.to_owned(), what: what.to_owned(), log }
    }

    /// Starts a shim, which launches or adopts by what it finds in the folder.
    fn spawn(&self, dir: &ContainerDir) -> io::Result<(Child, OwnedFd)> {
        let (answer, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let messages =
            OpenOptions::new().create(true).append(true).mode(0o600).open(dir.file("shim.log"))?;
        let child = Command::new(&self.command.program)
            .args(&self.command.args)
            .arg(dir.path())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(messages)
            .spawn()?;
        Ok((child, answer))
    }

    async fn answer(&self, id: &str, pipe: OwnedFd) -> Result<Running, RuntimeError> {
        rustix::io::ioctl_fionbio(&pipe, true)
            .map_err(|e| io_error("read the shim's answer", id)(e.into()))?;
        let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)
            .map_err(io_error("read the shim's answer", id))?;
        let mut line = Vec::new();
        let read = async {
            let mut chunk = [0; 1024];
            while !line.ends_with(b"\n") && line.len() < STATUS_BYTES_MAX {
                match pipe.read(&mut chunk).await? {
                    0 => break,
                    n => line.extend_from_slice(&chunk[..n]),
                }
            }
            io::Result::Ok(())
        };
        match timeout(START_TIMEOUT, read).await {
            Err(_) => return Err(self.shim_error(id, "has not started it in time")),
            Ok(result) => result.map_err(io_error("read the shim's answer", id))?,
        }
        parse_answer(&String::from_utf8_lossy(&line))
            .unwrap_or_else(|| Err(self.shim_error(id, "ended without an answer")))
    }

    fn kill(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        if !is_valid_id(id) {
            return Err(RuntimeError::BadId(id.to_owned()));
        }
        let dir = self.dir(id);
        if signal == SIGKILL
            && let Ok(spec) = dir.spec()
        {
            self.hierarchies.kill(&spec.cgroup);
        }
        if dir.exit().is_ok() {
            return Ok(());
        }
        let Some(running) = dir.live_process() else { return Ok(()) };
        match process::open(running.pid, running.start_ticks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("find the process", id)(error)),
            Ok(pidfd) => {
                process::signal(&pidfd, signal).map_err(io_error("signal the process", id))
            }
        }
    }

    async fn remove(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        if !is_valid_id(id) {
            return Err(RuntimeError::BadId(id.to_owned()));
        }
        let dir = self.dir(id);
        let deadline = Instant::now() + KILL_TIMEOUT;
        let mut delay = Duration::from_millis(1);
        let lock = loop {
            match dir.observe() {
                Observed::Absent => return Ok(()),
                // The shim goes on for a moment after the exit is known.
                Observed::Exited(_) if dir.shim().is_some() => {}
                Observed::Exited(_) | Observed::Lost => match dir.lock_out() {
                    Ok(Some(lock)) => break lock,
                    // A shim was on its way.
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(io_error("lock the folder", id)(error)),
                },
                Observed::Starting => self.kill_shim(&dir),
                Observed::Running(_) => self.kill(id, SIGKILL)?,
            }
            if Instant::now() > deadline {
                self.kill_shim(&dir);
                let source = io::Error::new(io::ErrorKind::TimedOut, "it does not die");
                return Err(io_error("kill the processes", id)(source));
            }
            sleep(delay).await;
            delay = (delay * 2).min(POLL);
        };
        let spec = dir.spec().ok();
        if let Some(spec) = &spec {
            self.remove_cgroup(id, &spec.cgroup, deadline).await?;
        }
        let removal = tokio::task::spawn_blocking(move || {
            if let Some(ContainerSpec { workload: Workload::Oci { scratch, .. }, .. }) = &spec {
                remove_tree(scratch)?;
            }
            unmount_below(dir.path())?;
            let gone = dir.retire()?;
            drop(lock);
            remove_tree(&gone)
        });
        let removed = removal.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        removed.map_err(io_error("remove the files", id))?;
        self.changed();
        Ok(())
    }

    /// Kills and removes a group; the kernel needs a moment between the two.
    async fn remove_cgroup(
        &self,
        id: &str,
        cgroup: &str,
        deadline: Instant,
    ) -> Result<(), RuntimeError> {
        loop {
            self.hierarchies.kill(cgroup);
            match self.hierarchies.remove(cgroup) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(io_error("remove the cgroup", id)(error));
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    fn kill_shim(&self, dir: &ContainerDir) {
        let Some(pidfd) = shim_of(dir) else { return };
        let _ = process::signal(&pidfd, SIGKILL);
    }
}

/// A pidfd of the shim that holds the folder's lock.
fn shim_of(dir: &ContainerDir) -> Option<OwnedFd> {
    let pid = dir.shim()?;
    let raw = rustix::process::Pid::from_raw(pid)?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()?;
    // Still the holder after the pidfd was taken: it is the same process.
    (dir.shim()? == pid).then_some(pidfd)
}

/// `OK <pid> <started_ms>` or `ERR <json>`; `None` for anything else.
fn parse_answer(line: &str) -> Option<Result<Running, RuntimeError>> {
    let line = line.trim_end();
    if let Some(json) = line.strip_prefix("ERR ") {
        let error: LaunchError = serde_json::from_str(json).ok()?;
        return Some(Err(error.into()));
    }
    let (pid, started_ms) = line.strip_prefix("OK ")?.split_once(' ')?;
    Some(Ok(Running { pid: Pid(pid.parse().ok()?), started_ms: started_ms.parse().ok()? }))
}

/// Waits for the end of a container's shims, one after the other.
async fn watch_over(inner: Arc<Inner>, id: String, mut child: Option<Child>) {
    let dir = inner.dir(&id);
    if child.is_none() {
        await_shim(&dir).await;
    }
    let mut delay = ADOPT_DELAY.0;
    // What is written while there is no shim stays in the FIFOs as long as
    // somebody has them open; the container itself may be gone by then.
    let mut held = None;
    // And how it ended stays known as long as somebody has its pidfd.
    let mut container = None;
    loop {
        if held.is_none() {
            held = dir.hold_streams().ok();
        }
        let pidfd = match &child {
            Some(child) => {
                let pid = rustix::process::Pid::from_child(child);
                rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
            }
            None => shim_of(&dir),
        };
        if let Some(pidfd) = pidfd {
            let began = Instant::now();
            if container.is_none() {
                container = await_container(&inner, &dir, &pidfd).await;
            }
            if let Err(error) = process::ended(pidfd).await {
                tracing::error!(container = id, %error, "cannot watch the shim");
            }
            if began.elapsed() > ADOPT_DELAY.1 {
                delay = ADOPT_DELAY.0;
            }
        }
        if let Some(mut child) = child.take() {
            // It has ended, so this does not wait.
            let _ = child.wait();
        }
        inner.changed();
        if dir.exit().is_ok() || dir.running().is_err() {
            return;
        }
        // The shim is gone and the container's end is not known: another shim
        // finds out, or stays with it. One may be there already (two agents never
        // share a folder, but a new agent may find the shim its predecessor started).
        sleep(delay).await;
        delay = (delay * 2).min(ADOPT_DELAY.1);
        if dir.shim().is_some() || dir.spec().is_err() {
            continue;
        }
        if container.as_ref().is_some_and(process::has_ended)
            && let Some(pidfd) = container.take()
        {
            keep_status(&dir, pidfd).await;
        }
        tracing::warn!(container = id, "the shim was killed; starting another");
        match inner.spawn(&dir) {
            Ok((shim, _answer)) => child = Some(shim),
            Err(error) => tracing::error!(container = id, %error, "cannot start a shim"),
        }
    }
}

/// A shim that the agent before started may not have its lock yet: waits a little
/// for it, for nobody else would notice what becomes of it.
async fn await_shim(dir: &ContainerDir) {
    let deadline = Instant::now() + LOCK_WAIT;
    while Instant::now() < deadline
        && dir.path().is_dir()
        && dir.shim().is_none()
        && dir.running().is_err()
        && dir.exit().is_err()
    {
        sleep(POLL * 5).await;
    }
}

/// Waits until the shim has written down which process the container is, or has
/// ended; gives a pidfd of it.
async fn await_container(inner: &Inner, dir: &ContainerDir, shim: &OwnedFd) -> Option<OwnedFd> {
    let mut delay = POLL;
    loop {
        if let Ok(running) = dir.running() {
            inner.changed();
            return process::open(running.pid, running.start_ticks).ok();
        }
        if process::has_ended(shim) {
            return None;
        }
        sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(1));
    }
}

/// Asks the kernel how the container ended, for the shim that is to say it.
async fn keep_status(dir: &ContainerDir, container: OwnedFd) {
    let asked =
        tokio::task::spawn_blocking(move || process::exit_status_of_stranger(&container)).await;
    if let Ok(Some(status)) = asked
        && let Err(error) = dir.write("ended.json", &EndedFile { status })
    {
        tracing::warn!(%error, "an exit code is lost");
    }
}

/// Removes a folder of ours and everything in it, but never what is mounted there.
fn remove_tree(path: &Path) -> io::Result<()> {
    unmount_below(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Detaches mounts at and below a folder.
///
/// There should be none: containers are mounted in namespaces of their own.
/// But a removal that descends into a volume would destroy a user's data.
fn unmount_below(path: &Path) -> io::Result<()> {
    let below = |line: &str| {
        let point = line.split(' ').nth(4)?.replace("\\040", " ");
        Path::new(&point).starts_with(path).then(|| PathBuf::from(point))
    };
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = mountinfo.lines().filter_map(below).collect();
    points.reverse();
    for point in points {
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&point, flags)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::reason;

    #[test]
    fn answers_are_read() {
        let ok = parse_answer("OK 12 34\n").unwrap().unwrap();
        assert_eq!(ok, Running { pid: Pid(12), started_ms: 34 });
        let error = LaunchError::new(reason::START_ERROR, "no such file");
        let line = format!("ERR {}\n", serde_json::to_string(&error).unwrap());
        match parse_answer(&line).unwrap() {
            Err(RuntimeError::Launch(found)) => assert_eq!(found, error),
            other => panic!("{other:?}"),
        }
        for bad in ["", "OK", "OK 1", "OK x 2", "ERR", "ERR {}"] {
            assert!(parse_answer(bad).is_none(), "{bad}");
        }
    }
}
