//! The agent's side: starts an exec process and makes a handle of what it says.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::time::timeout;

use super::helper::{self, KILL, Start, Told};
use super::{ExecControl, ExecHandle, ExecReader, ExecRequest, ExecWriter, WindowSize, stream};
use crate::dir::ContainerDir;
use crate::supervise::ShimCommand;
use crate::{Observed, RuntimeError, Workload, process};

/// How long a command may take to begin: a loaded board with an SD card.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest answer of an exec process, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Starts a command in the container of `dir`.
pub(crate) async fn exec(
    program: &ShimCommand,
    dir: ContainerDir,
    id: String,
    request: ExecRequest,
) -> Result<ExecHandle, RuntimeError> {
    let failed = |operation: &'static str| {
        let id = id.clone();
        move |source: io::Error| RuntimeError::Io { operation, id, source }
    };
    if !matches!(dir.observe(), Observed::Running(_)) {
        return Err(RuntimeError::NotRunning(id));
    }
    let spec = dir.spec().map_err(failed("read config.json"))?;
    if matches!(spec.workload, Workload::Wasm { .. }) {
        return Err(RuntimeError::ExecUnsupported { container: spec.container });
    }
    let plumbing = Plumbing::new(&request).map_err(failed("make the streams"))?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed("make the control socket")(error.into()))?;
    let child = spawn(program, &dir, theirs).map_err(failed("start the exec process"))?;
    tokio::spawn(reap(child));
    let has_terminal = request.tty;
    let start = serde_json::to_vec(&Start { request })
        .map_err(|error| failed("write the request")(error.into()))?;
    if start.len() > helper::MESSAGE_BYTES_MAX {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the command is too long");
        return Err(failed("write the request")(source));
    }
    {
        let descriptors: Vec<_> = plumbing.theirs.iter().map(AsFd::as_fd).collect();
        helper::send(&ours, &start, &descriptors)
            .map_err(|error| failed("write the request")(error.into()))?;
    }
    drop(plumbing.theirs);
    let socket = listen(ours).map_err(failed("listen to the exec process"))?;
    let (told, mut descriptors) = match timeout(START_TIMEOUT, next(&socket)).await {
        Ok(result) => result.map_err(failed("read the exec process's answer"))?,
        Err(_) => {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            return Err(failed("start the command")(source));
        }
    };
    match told {
        Told::Started => {}
        Told::Failed(error) => return Err(error.into()),
        Told::Exited(_) => return Err(RuntimeError::ExecLost),
    }
    let terminal = descriptors.pop().filter(|_| has_terminal);
    let streams = match &terminal {
        Some(terminal) => Plumbing::of_terminal(terminal),
        None => plumbing.ours.streams(),
    }
    .map_err(failed("open the streams"))?;
    let (exit_sender, exit) = watch::channel(None);
    tokio::spawn(follow(Arc::clone(&socket), exit_sender));
    Ok(ExecHandle::new(streams, exit, Box::new(Control { socket, terminal })))
}

fn listen(socket: OwnedFd) -> io::Result<Arc<UnixDatagram>> {
    let socket = std::os::unix::net::UnixDatagram::from(socket);
    socket.set_nonblocking(true)?;
    Ok(Arc::new(UnixDatagram::from_std(socket)?))
}

fn spawn(program: &ShimCommand, dir: &ContainerDir, control: OwnedFd) -> io::Result<Child> {
    let messages =
        OpenOptions::new().create(true).append(true).mode(0o600).open(dir.file("shim.log"))?;
    Command::new(&program.program)
        .args(&program.exec_args)
        .arg(dir.path())
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(control)
        .stdout(Stdio::null())
        .stderr(messages)
        .spawn()
}

/// Waits for the exec process, so that nothing of it stays.
async fn reap(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        && let Err(error) = process::ended(pidfd).await
    {
        tracing::error!(%error, "cannot watch an exec process");
    }
    // It has ended, so this does not wait.
    let _ = child.wait();
}

/// The next thing the exec process says.
async fn next(socket: &UnixDatagram) -> io::Result<(Told, Vec<OwnedFd>)> {
    let mut bytes = vec![0; ANSWER_BYTES_MAX];
    let (n, descriptors) =
        socket.async_io(Interest::READABLE, || Ok(helper::receive(socket, &mut bytes)?)).await?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((serde_json::from_slice(&bytes[..n])?, descriptors))
}

/// Waits for the exit code.
async fn follow(socket: Arc<UnixDatagram>, exit: watch::Sender<Option<i32>>) {
    loop {
        match next(&socket).await {
            Ok((Told::Exited(code), _)) => {
                exit.send_replace(Some(code));
                return;
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// The pipes between the agent and a command.
struct Plumbing {
    ours: Ends,
    /// Input, output and errors of the command; none where it gets a terminal.
    theirs: Vec<OwnedFd>,
}

struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

type Streams = (Option<ExecWriter>, Option<ExecReader>, Option<ExecReader>);

impl Plumbing {
    fn new(request: &ExecRequest) -> io::Result<Self> {
        let none = Ends { stdin: None, stdout: None, stderr: None };
        if request.tty {
            return Ok(Self { ours: none, theirs: Vec::new() });
        }
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (stdin, their_stdin) = if request.stdin {
            let (theirs, ours) = pipe()?;
            (Some(ours), theirs)
        } else {
            (None, std::fs::File::open("/dev/null")?.into())
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let ours = Ends { stdin, stdout: Some(stdout), stderr: Some(stderr) };
        Ok(Self { ours, theirs: vec![their_stdin, their_stdout, their_stderr] })
    }

    fn of_terminal(master: &OwnedFd) -> io::Result<Streams> {
        let stdin = stream::writer(master.try_clone()?)?;
        let stdout = stream::reader(master.try_clone()?)?;
        Ok((Some(stdin), Some(stdout), None))
    }
}

impl Ends {
    fn streams(self) -> io::Result<Streams> {
        let stdin = self.stdin.map(stream::writer).transpose()?;
        let stdout = self.stdout.map(stream::reader).transpose()?;
        let stderr = self.stderr.map(stream::reader).transpose()?;
        Ok((stdin, stdout, stderr))
    }
}

struct Control {
    socket: Arc<UnixDatagram>,
    terminal: Option<OwnedFd>,
}

impl ExecControl for Control {
    fn resize(&self, size: WindowSize) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        Ok(rustix::termios::tcsetwinsize(
            terminal,
            rustix::termios::Winsize {
                ws_row: size.rows,
                ws_col: size.columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?)
    }

    fn kill(&self) {
        // If it cannot be sent, the exec process has ended, and the command before it.
        let _ = self.socket.try_send(KILL);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The task that waits for the exit code has the socket too, so that
        // closing this one alone would not be seen.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}
