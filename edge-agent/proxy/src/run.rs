//! The process: from its first table to its end.
//!
//! ```text
//!  table on the disk ──┐
//!  agent ── tables ────┴─► apply: others, routes, view, capture, ports ─► status ─► agent
//!  agent says leave, or a signal ─► all is removed
//!  a successor asks ─► it gets everything, connections too; what cannot move ends here
//! ```
//!
//! One agent at a time is listened to: the last that came.

mod agent;
mod succession;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::agent::Agent;
use crate::capture::sockets::Sockets;
use crate::capture::{self, Capturing, Ranges};
use crate::control::{Capture, Status, ToProxy};
use crate::handover::{self, Coming, DRAIN_LOCK, Lock, START_LOCK};
use crate::links::Acceptor;
use crate::plane::{Entrance, Parts, Plane};
use crate::ports::{self, Entry, Ports};
use crate::routes::{self, RoutesError};
use crate::table::Table;
use crate::{confine, persist, tcp, udp};

/// The socket on which the agent speaks, in the run folder.
pub const SOCKET: &str = "proxy.sock";

/// How often the table is written to the disk at most: flash has only so many writes.
const PERSIST_EVERY: Duration = Duration::from_secs(600);

/// How often a table is tried again of which not everything could be put in force.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// With so many Services a table leaves memory behind that is worth giving back.
const MANY_SERVICES: usize = 500;

/// How long a predecessor may take to give up its lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// How the proxy is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where its sockets are.
    pub run_dir: PathBuf,
    /// The file in which the last table is kept.
    pub table_file: PathBuf,
    /// The only way of capturing that is tried; `None` for the best that works.
    pub capture: Option<Capture>,
    /// Which program it is: the agent replaces another one.
    pub version: String,
    /// How long connections to an endpoint go on that is gone.
    pub grace: Duration,
    /// Folders that the program writes to besides `run_dir` and that of `table_file`,
    /// where it is to give up root's powers; `None` to keep them (tests in one process).
    pub confine: Option<Vec<PathBuf>>,
}

/// Why the proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A system call failed.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Two would take from each other.
    #[error("another proxy is starting in this run folder; let it")]
    Starting,
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Io { operation, source }
}

/// Runs until it is told to leave, with `assemble` making the other parts of the
/// program from the plane as other nodes are to reach it.
///
/// # Errors
/// It cannot begin. Later on, what fails is said in its status.
pub async fn run(
    settings: Settings,
    assemble: impl FnOnce(Arc<dyn Acceptor>) -> io::Result<Parts>,
) -> Result<(), RunError> {
    confine::raise_limits();
    if let Some(others) = &settings.confine {
        let mut writable = others.clone();
        writable.push(settings.run_dir.clone());
        writable.extend(settings.table_file.parent().map(ToOwned::to_owned));
        confine::confine(&writable).map_err(failed("give up privileges"))?;
    }
    let folder = settings.run_dir.clone();
    let start = Lock::try_take(&folder, START_LOCK).map_err(failed("lock the run folder"))?;
    let start = start.ok_or(RunError::Starting)?;
    let (lock, coming) = succession::begin(&folder).await.map_err(failed("succeed the proxy"))?;
    let (mut running, predecessor) = Running::new(settings, coming, assemble).await?;
    let lock = match (lock, predecessor) {
        (Some(lock), _) => lock,
        (None, predecessor) => {
            if let Some(stream) = predecessor {
                handover::serves(&stream).map_err(failed("tell the predecessor"))?;
            }
            Lock::serve(&folder, LOCK_PATIENCE).await.map_err(failed("succeed the proxy"))?
        }
    };
    let control = listen(&folder, SOCKET)?;
    let successors = listen(&folder, handover::SOCKET)?;
    drop(start);
    let has_successor = running.serve(control, successors).await?;
    if has_successor {
        // Where another one drains already, its lock says enough.
        let _draining = Lock::try_take(&folder, DRAIN_LOCK);
        drop(lock);
        running.drain().await;
    } else {
        running.leave().await;
    }
    Ok(())
}

/// A socket in the run folder, for root alone. It takes the place of a predecessor's
/// at once: who connects meets one or the other.
fn listen(folder: &Path, name: &str) -> Result<UnixListener, RunError> {
    let path = folder.join(format!("{name}.new"));
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the old socket")(error));
        }
        _ => (),
    }
    let listener = agent::bind(&path).map_err(failed("listen in the run folder"))?;
    std::fs::rename(&path, folder.join(name)).map_err(failed("listen in the run folder"))?;
    Ok(listener)
}

/// Whether a proxy of this run folder has given its place away and still carries
/// connections that could not move. One more would be too many: the kernel leads what
/// other nodes send to two processes on one port, not to three.
///
/// # Errors
/// The folder is missing.
pub fn is_draining(run_dir: &Path) -> io::Result<bool> {
    Ok(Lock::try_take(run_dir, DRAIN_LOCK)?.is_none())
}

struct Running {
    settings: Settings,
    plane: Arc<Plane>,
    capturing: Capturing,
    sockets: Sockets,
    /// Why not a better way of capturing.
    degraded: String,
    ports: Ports,
    /// The ranges that routes lead here.
    routed: Option<Ranges>,
    table: Option<Arc<Table>>,
    /// Whether the disk has the table.
    is_written: bool,
    changes: watch::Receiver<u64>,
    /// Whether all of the table is in force.
    is_whole: bool,
    status: watch::Sender<Status>,
    /// What receives; ends with this.
    tasks: JoinSet<()>,
}

impl Running {
    /// Makes all parts, or takes those of a predecessor, and serves the last table.
    async fn new(
        settings: Settings,
        coming: Option<(Coming, std::os::unix::net::UnixStream)>,
        assemble: impl FnOnce(Arc<dyn Acceptor>) -> io::Result<Parts>,
    ) -> Result<(Self, Option<std::os::unix::net::UnixStream>), RunError> {
        let (coming, predecessor) = coming.unzip();
        let (inherited, rest) = coming.map(succession::split).unzip();
        let inherited = inherited.unwrap_or_default();
        let sockets = match inherited.sockets {
            Some(sockets) => sockets,
            None => Sockets::new().map_err(failed("make sockets"))?,
        };
        let way = settings.capture.is_none_or(|forced| forced == inherited.capture);
        let adopted = way.then(|| {
            Capturing::adopt(inherited.capture, &sockets, inherited.descriptors, inherited.live)
        });
        let (capturing, degraded) = match adopted.flatten() {
            Some(capturing) => (capturing, inherited.degraded),
            None => capture::choose(&sockets, settings.capture).await,
        };
        if capturing.capture() != Capture::Tproxy {
            succession::forget_rules(&settings.run_dir).await;
        }
        let plane = Plane::new(settings.grace).map_err(failed("make raw sockets"))?;
        plane.set_transparent(capturing.capture() != Capture::Listeners);
        let parts = assemble(Arc::new(Entrance(Arc::clone(&plane))))
            .map_err(failed("reach other nodes and the master"))?;
        let changes = parts.changes.clone();
        plane.set_parts(parts);
        let mut running = Self {
            status: watch::Sender::new(Status {
                version: settings.version.clone(),
                degraded: degraded.clone(),
                ..Status::default()
            }),
            settings,
            plane,
            capturing,
            sockets,
            degraded,
            ports: Ports::inherit(inherited.ports),
            routed: None,
            table: None,
            is_written: true,
            is_whole: true,
            changes,
            tasks: JoinSet::new(),
        };
        match inherited.table {
            Some(table) => running.apply(Arc::from(table)).await,
            None => running.recall().await,
        }
        if let Some(rest) = rest {
            rest.go_on(&running.plane);
        }
        running.start().map_err(failed("read from the sockets"))?;
        Ok((running, predecessor))
    }

    /// Begins to accept what is captured.
    fn start(&mut self) -> io::Result<()> {
        let Sockets { tcp4, udp4, tcp6, udp6 } = &self.sockets;
        for socket in [Some(tcp4), tcp6.as_ref()].into_iter().flatten() {
            let listener = Arc::new(TcpListener::from_std(socket.try_clone()?.into())?);
            self.tasks.spawn(tcp::accept(Arc::clone(&self.plane), listener, Entry::Asked));
        }
        for socket in [Some(udp4), udp6.as_ref()].into_iter().flatten() {
            let socket = Arc::new(UdpSocket::from_std(socket.try_clone()?.into())?);
            self.tasks.spawn(udp::receive(Arc::clone(&self.plane), socket, Entry::Asked));
        }
        self.tasks.spawn(udp::sweep(Arc::clone(&self.plane)));
        Ok(())
    }

    /// Serves the table of the disk until the agent speaks.
    async fn recall(&mut self) {
        match persist::read(&self.settings.table_file) {
            Ok(Some(table)) => {
                self.apply(Arc::new(table)).await;
                self.is_written = true;
            }
            Ok(None) => (),
            Err(error) => {
                let path = self.settings.table_file.display();
                tracing::warn!(%path, %error, "the last table is lost; the agent's is waited for");
            }
        }
    }

    /// Serves until it is told to leave: true where a successor goes on.
    async fn serve(
        &mut self,
        control: UnixListener,
        successors: UnixListener,
    ) -> Result<bool, RunError> {
        let mut changes = self.changes.clone();
        let mut terminate = signal(SignalKind::terminate()).map_err(failed("wait for signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("wait for signals"))?;
        let mut agent: Option<Agent> = None;
        let mut persist_at = Instant::now() + PERSIST_EVERY;
        let mut retry_at = Instant::now() + RETRY_EVERY;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(false),
                _ = interrupt.recv() => return Ok(false),
                said = Agent::next(&mut agent) => match said {
                    Some(ToProxy::Table(table)) => self.apply(Arc::from(table)).await,
                    Some(ToProxy::Relay { peer, ticket }) => {
                        if let Ok(parts) = self.plane.parts() {
                            (parts.relay)(peer, ticket);
                        }
                    }
                    Some(ToProxy::Leave) => return Ok(false),
                    None => agent = None,
                },
                accepted = control.accept() => match accepted {
                    Ok((stream, _)) => agent = Some(Agent::new(stream, self.status.subscribe())),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept the agent");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Ok((stream, _)) = successors.accept() => {
                    if self.hand_over(stream).await {
                        return Ok(true);
                    }
                }
                Ok(()) = changes.changed() => self.say(|_| ()),
                () = tokio::time::sleep_until(retry_at), if !self.is_whole => {
                    if let Some(table) = self.table.clone() {
                        self.apply(table).await;
                    }
                    retry_at = Instant::now() + RETRY_EVERY;
                }
                () = tokio::time::sleep_until(persist_at) => {
                    self.persist().await;
                    persist_at = Instant::now() + PERSIST_EVERY;
                }
            }
        }
    }

    /// Puts a table in force. What fails is said in the status, and tried again.
    async fn apply(&mut self, table: Arc<Table>) {
        if let Ok(parts) = self.plane.parts() {
            (parts.table)(&table);
        }
        let ranges = Ranges::new(&table.node);
        let is_captured = self.capturing.capture() != Capture::Listeners;
        let mut problems = Vec::new();
        if self.routed.as_ref() != Some(&ranges) {
            match routes::apply(&ranges, is_captured).await {
                Ok(()) => self.routed = Some(ranges),
                Err(error) => {
                    // Addresses that are somebody else's are left to them.
                    if matches!(error, RoutesError::Overlap { .. }) && self.routed.take().is_some()
                    {
                        let _ = routes::remove().await;
                    }
                    problems.push(error.to_string());
                }
            }
        }
        let view = self.plane.set_table(Arc::clone(&table));
        let is_routed = problems.is_empty();
        let nothing = (Ranges::default(), capture::Live::new());
        let (ranges, live) =
            if is_routed { (&view.ranges, &view.live) } else { (&nothing.0, &nothing.1) };
        if self.capturing.capture() == Capture::Tproxy {
            succession::mark_rules(&self.settings.run_dir);
        }
        if let Err(error) = self.capturing.apply(ranges, live).await {
            problems.push(format!("cannot capture what is sent to Services: {error}"));
        }
        let (wanted, mut conflicts) = ports::wanted(&view, is_captured || !is_routed);
        conflicts.extend(self.ports.apply(&self.plane, wanted).await);
        conflicts.sort();
        self.is_whole = problems.is_empty() && conflicts.is_empty();
        let capture = if is_routed { self.capturing.capture() } else { Capture::None };
        self.is_written &= self.table.as_ref() == Some(&table);
        let generation = table.generation;
        let before = self.table.replace(table);
        let n_services = before.map_or(0, |before| before.services.len());
        if n_services.max(view.table.services.len()) >= MANY_SERVICES {
            self.plane.has_freed.store(true, Ordering::Relaxed);
        }
        let degraded =
            if problems.is_empty() { self.degraded.clone() } else { problems.join("; ") };
        for problem in problems {
            tracing::error!(%problem, generation, "a table is not wholly in force");
        }
        self.say(|status| {
            status.generation = generation;
            status.capture = capture;
            status.degraded = degraded;
            status.conflicts = conflicts;
        });
    }

    /// Changes the status; the agent hears of it where it is another one.
    fn say(&self, change: impl FnOnce(&mut Status)) {
        let paths = self.plane.parts().map(|parts| (parts.paths)()).unwrap_or_default();
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            status.paths = paths;
            *status != before
        });
    }

    /// Writes the table to the disk, where that has another one.
    async fn persist(&mut self) {
        let Some(table) = self.table.clone().filter(|_| !self.is_written) else { return };
        let path = self.settings.table_file.clone();
        let written = tokio::task::spawn_blocking(move || persist::write(&path, &table)).await;
        match written {
            Ok(Ok(())) => self.is_written = true,
            Ok(Err(error)) => {
                let path = self.settings.table_file.display();
                tracing::warn!(%path, %error, "the table cannot be kept on the disk");
            }
            Err(error) => tracing::error!(%error, "writing the table ended badly"),
        }
    }

    /// Ends, and leaves nothing behind but the table. Goes on past errors.
    async fn leave(mut self) {
        self.persist().await;
        self.tasks.shutdown().await;
        self.ports.stop().await;
        // The program goes first: no packet is led to sockets that are gone.
        if let Err(error) = self.capturing.remove().await {
            tracing::warn!(%error, "rules of ours are left behind");
        }
        if let Err(error) = routes::remove().await {
            tracing::warn!(%error, "routes of ours are left behind");
        }
        for name in [SOCKET, handover::SOCKET] {
            let _ = std::fs::remove_file(self.settings.run_dir.join(name));
        }
        succession::forget_marker(&self.settings.run_dir);
    }
}
