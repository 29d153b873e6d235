//! From one proxy to the next, on both sides.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Running;
use crate::capture::sockets::Sockets;
use crate::capture::{self, Live};
use crate::control::Capture;
use crate::handover::{self, Arrived, Coming, Hello, Leaving, Lock};
use crate::plane::{Moving, Plane};
use crate::ports::Bind;
use crate::table::Table;
use crate::{tcp, udp};

/// How long a predecessor that serves may take to listen for successors.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(10);
/// How long connections may take to come to rest; those that do not stay behind.
const REST: Duration = Duration::from_millis(500);
/// How long nothing more comes to rest before it is over.
const QUIET: Duration = Duration::from_millis(5);
/// How long nothing may be open before this ends: what other nodes have begun on
/// links of this process may be under way, and so may the last bytes of what ended.
const LINGER: Duration = Duration::from_secs(3);
/// How long what cannot move goes on here.
const DRAIN: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Says in the run folder that there are rules of ours, for one that finds them.
const RULES_MARKER: &str = "proxy-rules";

/// The lock of who serves, or all that the one who has it hands over.
pub(super) async fn begin(folder: &Path) -> io::Result<(Option<Lock>, Option<(Coming, Blocking)>)> {
    let until = Instant::now() + PREDECESSOR_WAIT;
    loop {
        if let Some(lock) = Lock::try_serve(folder)? {
            return Ok((Some(lock), None));
        }
        if let Some(coming) = handover::receive(folder).await? {
            return Ok((None, Some(coming)));
        }
        if Instant::now() > until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "another proxy serves and does not hand over",
            ));
        }
        // One that begins anew waits for the lock.
        tokio::time::sleep(RETRY).await;
    }
}

/// What the parts of the program are made from, where there was a predecessor.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) capture: Capture,
    pub(super) degraded: String,
    pub(super) live: Live,
    pub(super) table: Option<Box<Table>>,
    pub(super) sockets: Option<Sockets>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) ports: BTreeMap<Bind, OwnedFd>,
}

/// What goes on once there is a plane.
#[derive(Debug)]
pub(super) struct Rest {
    connections: Vec<Arrived>,
    flows: Vec<(udp::FlowState, OwnedFd)>,
}

pub(super) fn split(coming: Coming) -> (Inherited, Rest) {
    let Coming { hello, capture: mut descriptors, ports, connections, flows } = coming;
    let live = hello.live();
    let Hello { capture, degraded, sockets, table, version, .. } = hello;
    tracing::info!(%version, n_connections = connections.len(), "taking over from a proxy");
    let rest = descriptors.split_off(sockets.len().min(descriptors.len()));
    let sockets = Sockets::adopt(sockets.into_iter().zip(descriptors).collect());
    let inherited = Inherited {
        capture,
        degraded,
        live,
        table,
        sockets,
        descriptors: rest,
        ports: ports.into_iter().collect(),
    };
    (inherited, Rest { connections, flows })
}

impl Rest {
    pub(super) fn go_on(self, plane: &Arc<Plane>) {
        for Arrived { near, far, backend, ended } in self.connections {
            match (stream(near), stream(far)) {
                (Ok(near), Ok(far)) => {
                    tcp::carry(plane, near, far, plane.begin(backend), ended);
                }
                (near, far) => tracing::warn!(?near, ?far, "a connection is lost"),
            }
        }
        for (state, socket) in self.flows {
            match UdpSocket::from_std(socket.into()) {
                Ok(socket) => udp::take_over(plane, state, Arc::new(socket)),
                Err(error) => tracing::warn!(%error, "a flow is lost"),
            }
        }
    }
}

fn stream(fd: OwnedFd) -> io::Result<TcpStream> {
    TcpStream::from_std(fd.into())
}

impl Running {
    /// Hands everything over. False where the successor did not come to serve: then
    /// this goes on as if nothing had been.
    pub(super) async fn hand_over(&mut self, mut to: UnixStream) -> bool {
        tracing::info!("handing over to a successor");
        match handover::is_understood(&mut to).await {
            Ok(true) => (),
            Ok(false) => {
                tracing::warn!("the successor is too different: it begins anew");
                return true;
            }
            Err(error) => {
                tracing::warn!(%error, "the successor went away");
                return false;
            }
        }
        self.tasks.shutdown().await;
        self.ports.stop().await;
        let connections = self.rest().await;
        let flows = self.plane.datagrams.hand_over();
        let (leaving, copied) = self.leaving(connections, flows);
        if let Err(error) = copied {
            tracing::error!(%error, "cannot hand over");
            self.resume(leaving);
            return false;
        }
        let (leaving, result) = leaving.send(to).await;
        match result {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "the successor failed");
                self.resume(leaving);
                false
            }
        }
    }

    /// The connections, once they hold no bytes. Those that do not come to rest stay.
    async fn rest(&self) -> Vec<Moving> {
        let until = Instant::now() + REST;
        let (relays, opening) = (&self.plane.relays, &self.plane.n_opening);
        while opening.load(Ordering::Relaxed) > 0 && Instant::now() < until {
            tokio::time::sleep(QUIET / 5).await;
        }
        let (to, mut moving) = mpsc::channel(64);
        self.plane.set_moving(Some(to));
        relays.pause();
        let mut connections = Vec::new();
        loop {
            match tokio::time::timeout(QUIET, moving.recv()).await {
                Ok(Some(one)) => connections.push(one),
                _ if relays.len() == 0 || Instant::now() > until => break,
                _ => (),
            }
        }
        relays.resume();
        self.plane.set_moving(None);
        while let Some(one) = moving.recv().await {
            connections.push(one);
        }
        connections
    }

    fn leaving(
        &self,
        connections: Vec<Moving>,
        flows: Vec<udp::MovingFlow>,
    ) -> (Leaving, io::Result<()>) {
        let indexed = self.sockets.indexed();
        let hello = Hello {
            version: self.settings.version.clone(),
            capture: self.capturing.capture(),
            degraded: self.degraded.clone(),
            sockets: indexed.iter().map(|(index, _)| *index).collect(),
            live: self.capturing.live().iter().copied().collect(),
            table: self.table.as_deref().cloned().map(Box::new),
        };
        let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let capture = indexed.iter().map(|(_, fd)| *fd).chain(self.capturing.descriptors());
        let capture: io::Result<Vec<_>> = capture.map(own).collect();
        let sockets = self.ports.sockets();
        let ports: io::Result<Vec<_>> =
            sockets.iter().map(|(bind, fd)| Ok((*bind, own(fd.as_fd())?))).collect();
        let copied = capture.and_then(|capture| Ok((capture, ports?)));
        let (copied, result) = match copied {
            Ok(copied) => (copied, Ok(())),
            Err(error) => (Default::default(), Err(error)),
        };
        let (capture, ports) = copied;
        (Leaving { hello, capture, ports, connections, flows }, result)
    }

    /// Goes on where it stopped.
    fn resume(&mut self, leaving: Leaving) {
        for Moving { near, far, backend, ended } in leaving.connections {
            tcp::carry(&self.plane, near, far, self.plane.begin(backend), ended);
        }
        for flow in leaving.flows {
            udp::take_over(&self.plane, flow.state, flow.socket);
        }
        self.ports.restart(&self.plane);
        self.tasks = JoinSet::new();
        if let Err(error) = self.start() {
            tracing::error!(%error, "cannot accept again");
        }
    }

    /// Waits for what could not move, and ends. All else is the successor's.
    pub(super) async fn drain(self) {
        let until = Instant::now() + DRAIN;
        let plane = Arc::clone(&self.plane);
        // Its sockets are closed here; the successor has them, and listens for other
        // nodes, which now hear that they are to go there.
        drop(self);
        let Ok(parts) = plane.parts() else { return };
        (parts.leave)();
        let mut quiet_since = Instant::now();
        loop {
            let n_left = plane.relays.len()
                + plane.n_fixed.load(Ordering::Relaxed)
                + plane.n_opening.load(Ordering::Relaxed)
                + (parts.n_linked)();
            let now = Instant::now();
            if n_left > 0 {
                quiet_since = now;
            }
            if now.saturating_duration_since(quiet_since) > LINGER {
                break;
            }
            if now > until {
                tracing::warn!(n_left, "connections that could not move end with their proxy");
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        (parts.close)().await;
    }
}

/// Removes rules that a proxy left when it was killed, where one says so.
pub(super) async fn forget_rules(folder: &Path) {
    if !folder.join(RULES_MARKER).exists() {
        return;
    }
    match capture::remove_rules().await {
        Ok(()) => forget_marker(folder),
        Err(error) => tracing::warn!(%error, "rules of ours are left behind"),
    }
}

pub(super) fn mark_rules(folder: &Path) {
    let _ = std::fs::write(folder.join(RULES_MARKER), "");
}

pub(super) fn forget_marker(folder: &Path) {
    let _ = std::fs::remove_file(folder.join(RULES_MARKER));
}
