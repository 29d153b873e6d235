//! Clients of a container's own standard streams.
//!
//! ```text
//! container ── FIFO ──► shim ── log file
//!     ▲                  │ └──► attach.sock ──► agent ──► whoever is attached
//!     └── FIFO `in` ◄────┴──────────────┘
//! ```
//!
//! The socket keeps messages apart; the first byte of each is its channel:
//!
//! | channel | direction | content |
//! |---|---|---|
//! | 0 | agent → shim | standard input |
//! | 1, 2 | shim → agent | standard output, standard error |
//! | 4 | agent → shim | size of the terminal: u16 columns, u16 rows, little-endian |
//! | 5 | agent → shim | standard input has ended |
//!
//! The shim never waits for a client and keeps nothing for it: what does not
//! fit into the socket is skipped, and the client is told how much. The log has
//! all of it. Input is taken from a client only as fast as the container reads.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Interest};
use tokio::net::UnixDatagram;
use tokio::sync::watch;

use crate::ContainerSpec;
use crate::dir::ContainerDir;
use crate::exec::{ExecControl, ExecHandle, ExecReader, ExecWriter, WindowSize};
use crate::log::Stream;
use crate::{Observed, RuntimeError, terminal};

/// Clients of one container at a time.
const CLIENTS_MAX: usize = 8;
/// Longest message, in bytes; the first is the channel.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 + 1;
/// Bytes between the socket and the agent's reader.
const BUFFER_BYTES: usize = 32 * 1024;
/// How long a container without its shim is waited for.
const SHIM_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a shim that is not there is looked for.
const POLL: Duration = Duration::from_millis(20);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const RESIZE: u8 = 4;
const STDIN_END: u8 = 5;

const SOCKET: &str = "attach.sock";
/// The FIFO of standard input.
pub(crate) const STDIN_FIFO: &str = "in";

/// The end of standard input that a container gets, if it wants one.
///
/// Where input never ends, it is open for writing too, so that it stays when
/// the shim and the agent are gone. With a terminal it is that, and not this.
///
/// # Errors
/// The FIFO cannot be made or opened.
pub fn container_stdin(spec: &ContainerSpec, dir: &Path) -> io::Result<Option<OwnedFd>> {
    if !spec.stdio.stdin || spec.stdio.tty {
        return Ok(None);
    }
    let path = dir.join(STDIN_FIFO);
    let file = OpenOptions::new()
        .read(true)
        .write(!spec.stdio.stdin_once)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(Some(file.into()))
}

/// The shim's side.
pub(crate) struct Tee {
    listener: Option<OwnedFd>,
    clients: Vec<Client>,
    stdin: Option<Stdin>,
    terminal: Option<OwnedFd>,
    message: Vec<u8>,
}

struct Client {
    socket: OwnedFd,
    skipped: u64,
    /// Whether it has sent input: `stdin_once` ends with it.
    wrote: bool,
}

struct Stdin {
    fifo: OwnedFd,
    pending: Vec<u8>,
    once: bool,
}

/// What a shim waits for on behalf of clients.
pub(crate) enum Wait {
    Accept,
    Client(usize),
    Stdin,
}

impl Tee {
    /// Listens. Without a socket, nobody can attach, and that is all.
    pub(crate) fn open(dir: &ContainerDir) -> (Self, io::Result<()>) {
        let listener = listen(dir.path());
        let (listener, result) = match listener {
            Ok(listener) => (Some(listener), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let (clients, message) = (Vec::new(), Vec::new());
        let tee = Self { listener, clients, stdin: None, terminal: None, message };
        (tee, result)
    }

    /// Opens the shim's end of standard input, once the container has its own.
    pub(crate) fn open_stdin(&mut self, dir: &ContainerDir, spec: &ContainerSpec) {
        // A terminal that this shim has not made is gone with the one that has.
        if !spec.stdio.stdin || spec.stdio.tty {
            return;
        }
        let once = spec.stdio.stdin_once;
        let fifo = OpenOptions::new()
            .read(!once)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(dir.file(STDIN_FIFO));
        self.stdin = fifo.ok().map(|fifo| Stdin { fifo: fifo.into(), pending: Vec::new(), once });
    }

    /// Input and sizes go to the container's terminal.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd, spec: &ContainerSpec) {
        if spec.stdio.stdin {
            let fifo = master.try_clone().ok();
            self.stdin = fifo.map(|fifo| Stdin { fifo, pending: Vec::new(), once: false });
        }
        self.terminal = Some(master);
    }

    /// What to wait for, in addition to the container itself.
    pub(crate) fn waits(&self) -> Vec<(BorrowedFd<'_>, rustix::event::PollFlags, Wait)> {
        use rustix::event::PollFlags;
        let mut waits = Vec::new();
        if let Some(listener) = &self.listener
            && self.clients.len() < CLIENTS_MAX
        {
            waits.push((listener.as_fd(), PollFlags::IN, Wait::Accept));
        }
        let full = self.stdin.as_ref().is_some_and(|stdin| !stdin.pending.is_empty());
        for (n, client) in self.clients.iter().enumerate() {
            // While input waits for the container, only the end of a client is of interest.
            let flags = if full { PollFlags::empty() } else { PollFlags::IN };
            waits.push((client.socket.as_fd(), flags, Wait::Client(n)));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| full) {
            waits.push((stdin.fifo.as_fd(), PollFlags::OUT, Wait::Stdin));
        }
        waits
    }

    /// Does what was waited for. Clients are named by their place before any of this.
    pub(crate) fn handle(&mut self, ready: Vec<Wait>) {
        let mut gone = Vec::new();
        for wait in ready {
            match wait {
                Wait::Accept => self.accept(),
                Wait::Stdin => self.write_stdin(),
                Wait::Client(n) => {
                    if !self.receive(n) {
                        gone.push(n);
                    }
                }
            }
        }
        for n in gone.into_iter().rev() {
            let client = self.clients.swap_remove(n);
            if client.wrote {
                self.end_stdin();
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = rustix::net::accept_with(listener, flags) {
            self.clients.push(Client { socket, skipped: 0, wrote: false });
        }
    }

    /// Takes one message of a client. False if the client is gone.
    fn receive(&mut self, n: usize) -> bool {
        let Some(client) = self.clients.get_mut(n) else { return true };
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let received = rustix::net::recv(&client.socket, &mut bytes[..], RecvFlags::DONTWAIT);
        let n_bytes = match received {
            Ok((n, _)) if n > 0 => n,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            _ => return false,
        };
        match bytes[0] {
            STDIN => {
                client.wrote = true;
                if let Some(stdin) = &mut self.stdin {
                    stdin.pending.extend_from_slice(&bytes[1..n_bytes]);
                    self.write_stdin();
                }
            }
            RESIZE => {
                let size = bytes[1..n_bytes].try_into().ok().map(size_of);
                if let (Some(terminal), Some(size)) = (&self.terminal, size) {
                    let _ = terminal::resize(terminal, size);
                }
            }
            STDIN_END => {
                client.wrote = false;
                self.end_stdin();
            }
            _ => {}
        }
        true
    }

    fn write_stdin(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        while !stdin.pending.is_empty() {
            match rustix::io::write(&stdin.fifo, &stdin.pending) {
                Ok(n) => {
                    stdin.pending.drain(..n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // The container has closed its end.
                    self.stdin = None;
                    return;
                }
            }
        }
    }

    /// The first client's input is all there is, where the container said so.
    fn end_stdin(&mut self) {
        if self.stdin.as_ref().is_some_and(|stdin| stdin.once) {
            self.write_stdin();
            self.stdin = None;
        }
    }

    /// Shows clients what the container wrote. Never waits.
    pub(crate) fn send(&mut self, stream: Stream, bytes: &[u8]) {
        if self.clients.is_empty() || bytes.is_empty() {
            return;
        }
        let channel = match stream {
            Stream::Stdout => STDOUT,
            Stream::Stderr => STDERR,
        };
        // A terminal's client has one stream.
        let aside = if self.terminal.is_some() { STDOUT } else { STDERR };
        self.message.clear();
        self.message.push(channel);
        self.message.extend_from_slice(bytes);
        for client in &mut self.clients {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            if client.skipped > 0 {
                let note = format!(
                    "[pinnace: {} bytes skipped, this client reads too slowly; the log has them]\r\n",
                    client.skipped
                );
                let note = [&[aside], note.as_bytes()].concat();
                if rustix::net::send(&client.socket, &note, flags).is_ok() {
                    client.skipped = 0;
                }
            }
            let sent = client.skipped == 0
                && rustix::net::send(&client.socket, &self.message, flags).is_ok();
            if !sent {
                client.skipped += bytes.len() as u64;
            }
        }
    }
}

fn size_of([a, b, c, d]: [u8; 4]) -> WindowSize {
    WindowSize { columns: u16::from_le_bytes([a, b]), rows: u16::from_le_bytes([c, d]) }
}

fn resize_message(size: WindowSize) -> [u8; 5] {
    let ([a, b], [c, d]) = (size.columns.to_le_bytes(), size.rows.to_le_bytes());
    [RESIZE, a, b, c, d]
}

/// A socket's name may be too long for its address: it is named by the folder's descriptor.
fn address(folder: &OwnedFd) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?)
}

fn open_folder(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let folder = open_folder(dir)?;
    let _ = std::fs::remove_file(dir.join(SOCKET));
    let listener = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::bind(&listener, &address(&folder)?)?;
    rustix::net::listen(&listener, i32::try_from(CLIENTS_MAX).unwrap_or(8))?;
    Ok(listener)
}

/// The agent's side: a handle on the streams of a container that runs.
pub(crate) fn attach(
    dir: ContainerDir,
    id: String,
    stdin: bool,
    observe: impl Fn() -> Observed + Send + Sync + 'static,
    changes: watch::Receiver<u64>,
) -> Result<ExecHandle, RuntimeError> {
    let failed = |operation: &'static str| {
        let id = id.clone();
        move |source: io::Error| RuntimeError::Io { operation, id, source }
    };
    if !matches!(observe(), Observed::Running(_)) {
        return Err(RuntimeError::NotRunning(id));
    }
    let spec = dir.spec().map_err(failed("read config.json"))?;
    let socket = connect(&dir).map_err(failed("reach the shim"))?;
    let (out, stdout) = tokio::io::duplex(BUFFER_BYTES);
    let (err, stderr) = tokio::io::duplex(BUFFER_BYTES);
    let (input, feed) = tokio::io::duplex(BUFFER_BYTES);
    let wants_input = stdin && spec.stdio.stdin;
    let (exit_sender, exit) = watch::channel(None);
    let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
    let (size, sizes) = watch::channel(WindowSize::default());
    let tty = spec.stdio.tty;
    tokio::spawn(async move {
        let streams = Streams { out, err, input: feed, input_open: wants_input, sizes };
        let follow = follow(dir, socket, streams, observe, changes, exit_sender);
        tokio::select! {
            () = follow => {}
            _ = dropped => {}
        }
    });
    let stdin = wants_input.then(|| Box::new(input) as ExecWriter);
    let stderr: Option<ExecReader> = if tty { None } else { Some(Box::new(stderr)) };
    let streams: (_, Option<ExecReader>, _) = (stdin, Some(Box::new(stdout)), stderr);
    Ok(ExecHandle::new(streams, exit, Box::new(Attached { _alive: alive, size })))
}

struct Attached {
    _alive: tokio::sync::oneshot::Sender<()>,
    size: watch::Sender<WindowSize>,
}

impl ExecControl for Attached {
    fn resize(&self, size: WindowSize) -> io::Result<()> {
        self.size.send_replace(size);
        Ok(())
    }

    /// What is attached to goes on.
    fn kill(&self) {}
}

fn connect(dir: &ContainerDir) -> io::Result<Arc<UnixDatagram>> {
    let folder = open_folder(dir.path())?;
    let socket = socket(SocketFlags::CLOEXEC)?;
    rustix::net::connect(&socket, &address(&folder)?)?;
    let socket = std::os::unix::net::UnixDatagram::from(socket);
    socket.set_nonblocking(true)?;
    Ok(Arc::new(UnixDatagram::from_std(socket)?))
}

/// The agent's ends of what a client sees and says.
struct Streams {
    out: DuplexStream,
    err: DuplexStream,
    input: DuplexStream,
    input_open: bool,
    sizes: watch::Receiver<WindowSize>,
}

/// Copies until the container has ended. A shim that is replaced is found again.
async fn follow(
    dir: ContainerDir,
    mut socket: Arc<UnixDatagram>,
    mut streams: Streams,
    observe: impl Fn() -> Observed,
    mut changes: watch::Receiver<u64>,
    exit: watch::Sender<Option<i32>>,
) {
    let mut deadline = tokio::time::Instant::now() + SHIM_TIMEOUT;
    loop {
        streams.copy(&socket).await;
        // The shim is gone: with its container, or killed.
        loop {
            if let Observed::Exited(ended) = observe() {
                exit.send_replace(Some(ended.code));
                return;
            }
            if let Ok(again) = connect(&dir) {
                socket = again;
                deadline = tokio::time::Instant::now() + SHIM_TIMEOUT;
                break;
            }
            if tokio::time::Instant::now() > deadline {
                return;
            }
            let _ = tokio::time::timeout(POLL, changes.changed()).await;
        }
    }
}

impl Streams {
    /// Copies both ways until the shim is gone.
    async fn copy(&mut self, socket: &Arc<UnixDatagram>) {
        let Self { out, err, input, input_open, sizes } = self;
        let from_shim = async {
            let mut bytes = vec![0; MESSAGE_BYTES_MAX];
            loop {
                let Ok(n @ 1..) = socket.recv(&mut bytes).await else { return };
                let stream = if bytes[0] == STDERR { &mut *err } else { &mut *out };
                if stream.write_all(&bytes[1..n]).await.is_err() {
                    return;
                }
            }
        };
        let to_shim = async {
            let mut bytes = vec![0; MESSAGE_BYTES_MAX / 2];
            let mut sized = true;
            loop {
                let message = tokio::select! {
                    // What is typed after a change of size comes after it.
                    biased;
                    changed = sizes.changed(), if sized => match changed {
                        Ok(()) => resize_message(*sizes.borrow_and_update()).to_vec(),
                        Err(_) => {
                            sized = false;
                            continue;
                        }
                    },
                    n = input.read(&mut bytes[1..]), if *input_open => {
                        let n = n.unwrap_or(0);
                        bytes[0] = if n == 0 { STDIN_END } else { STDIN };
                        *input_open = n > 0;
                        bytes[..=n].to_vec()
                    }
                    else => return std::future::pending().await,
                };
                let send = || -> io::Result<usize> {
                    Ok(rustix::net::send(socket, &message, SendFlags::NOSIGNAL)?)
                };
                if socket.async_io(Interest::WRITABLE, send).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = from_shim => {}
            () = to_shim => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back() {
        let size = WindowSize { columns: 300, rows: 7 };
        let message = resize_message(size);
        assert_eq!(message[0], RESIZE);
        assert_eq!(size_of(message[1..].try_into().unwrap()), size);
    }
}
