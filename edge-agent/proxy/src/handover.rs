//! Hands everything over to a successor: sockets, the program, established
//! connections and flows. Nobody notices but by a pause of some milliseconds.
//!
//! ```text
//! predecessor                              successor
//!   listens at proxy-handover.sock  ◄────── connects, says which format it knows
//!   accepts no more, pauses connections
//!   pieces, with their descriptors ───────►
//!                                  ◄─────── a byte for each
//!                                           assembles, applies the table, goes on
//!                                  ◄─────── a byte: it serves
//!   gives up the lock, ends what could not move
//! ```
//!
//! A piece is `u32 length (LE), postcard`, its descriptors sent with the length. One
//! piece at a time: descriptors on their way count against the user's limit.
//! Connections through other nodes cannot move; they end with the predecessor, which
//! waits for them.
//!
//! Two locks in the run folder keep proxies apart: who starts, and who serves.

mod lock;
mod wire;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

pub(crate) use self::lock::{DRAIN_LOCK, Lock, START_LOCK};
use crate::capture::Live;
use crate::control::Capture;
use crate::plane::Moving;
use crate::ports::Bind;
use crate::table::{Protocol, Table};
use crate::udp::MovingFlow;

/// The socket on which a successor asks, in the run folder.
pub(crate) const SOCKET: &str = "proxy-handover.sock";

/// The format of the pieces. One that does not know it gets nothing: it starts as
/// if there were nobody, while what is open goes on with the one before.
const FORMAT: u8 = 1;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);

/// Things in a piece; each has at most two descriptors, and a message takes 253.
const CHUNK: usize = 100;

/// What is handed over, apart from what there is many of.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Which program hands over.
    pub(crate) version: String,
    /// How traffic is captured.
    pub(crate) capture: Capture,
    /// Why not better.
    pub(crate) degraded: String,
    /// Which sockets there are; their descriptors come first.
    pub(crate) sockets: Vec<u32>,
    /// The map's live addresses.
    pub(crate) live: Vec<(IpAddr, u16, Protocol)>,
    /// What is in force.
    pub(crate) table: Option<Box<Table>>,
}

/// A connection: where it leads, and which directions have ended.
#[derive(Debug, Serialize, Deserialize)]
struct Connection {
    backend: SocketAddr,
    ended: (bool, bool),
}

#[derive(Debug, Serialize, Deserialize)]
enum Piece {
    Ports(Vec<Bind>),
    Connections(Vec<Connection>),
    Flows(Vec<crate::udp::FlowState>),
    End,
}

/// All that is handed over.
#[derive(Debug)]
pub(crate) struct Estate<C, F> {
    pub(crate) hello: Hello,
    /// The sockets and what capturing needs, in this order.
    pub(crate) capture: Vec<OwnedFd>,
    pub(crate) ports: Vec<(Bind, OwnedFd)>,
    pub(crate) connections: Vec<C>,
    pub(crate) flows: Vec<F>,
}

/// A connection as it arrives.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) near: OwnedFd,
    pub(crate) far: OwnedFd,
    pub(crate) backend: SocketAddr,
    pub(crate) ended: (bool, bool),
}

/// What a predecessor gives away; it keeps it until the successor serves.
pub(crate) type Leaving = Estate<Moving, MovingFlow>;

/// What a successor gets.
pub(crate) type Coming = Estate<Arrived, (crate::udp::FlowState, OwnedFd)>;

/// Whether the successor knows the format.
pub(crate) async fn is_understood(stream: &mut UnixStream) -> io::Result<bool> {
    let format = tokio::time::timeout(PATIENCE, stream.read_u8());
    format.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(|n| n == FORMAT)
}

impl Leaving {
    /// Sends everything and waits until the successor serves. On an error everything
    /// is still here, and the predecessor goes on.
    pub(crate) async fn send(self, to: UnixStream) -> (Self, io::Result<()>) {
        let result = to.into_std();
        let sending = tokio::task::spawn_blocking(move || {
            let result = result.and_then(|stream| self.send_blocking(&stream));
            (self, result)
        });
        sending.await.expect("sending does not panic and is not cancelled")
    }

    fn send_blocking(&self, stream: &Blocking) -> io::Result<()> {
        wire::check_peer(stream)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let fds: Vec<_> = self.capture.iter().map(AsFd::as_fd).collect();
        wire::send(stream, &self.hello, &fds)?;
        for chunk in self.ports.chunks(CHUNK) {
            let fds: Vec<_> = chunk.iter().map(|(_, fd)| fd.as_fd()).collect();
            let binds = chunk.iter().map(|(bind, _)| *bind).collect();
            wire::send(stream, &Piece::Ports(binds), &fds)?;
        }
        for chunk in self.connections.chunks(CHUNK) {
            let fds: Vec<_> = chunk.iter().flat_map(|c| [c.near.as_fd(), c.far.as_fd()]).collect();
            let of = |c: &Moving| Connection { backend: c.backend, ended: c.ended };
            wire::send(stream, &Piece::Connections(chunk.iter().map(of).collect()), &fds)?;
        }
        for chunk in self.flows.chunks(CHUNK) {
            let fds: Vec<_> = chunk.iter().map(|flow| flow.socket.as_fd()).collect();
            let states = chunk.iter().map(|flow| flow.state.clone()).collect();
            wire::send(stream, &Piece::Flows(states), &fds)?;
        }
        wire::send(stream, &Piece::End, &[])?;
        // It serves.
        wire::wait(stream)
    }
}

/// Asks the predecessor for everything. `None` where there is none, or where it does
/// not know the format and ends.
///
/// # Errors
/// It does not say what a predecessor says.
pub(crate) async fn receive(folder: &Path) -> io::Result<Option<(Coming, Blocking)>> {
    let path = folder.join(SOCKET);
    let receiving = tokio::task::spawn_blocking(move || {
        let stream = match Blocking::connect(&path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok(receive_blocking(&stream)?.map(|coming| (coming, stream)))
    });
    receiving.await.expect("receiving does not panic and is not cancelled")
}

fn receive_blocking(mut stream: &Blocking) -> io::Result<Option<Coming>> {
    wire::check_peer(stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not a piece that belongs here");
    // It may be about to end: then nobody is there to take over from.
    let is_over = |error: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
    };
    let first = stream.write_all(&[FORMAT]).and_then(|()| wire::receive::<Hello>(stream));
    let (hello, capture) = match first {
        Err(error) if is_over(&error) => return Ok(None),
        other => other?,
    };
    let mut coming =
        Coming { hello, capture, ports: Vec::new(), connections: Vec::new(), flows: Vec::new() };
    loop {
        let (piece, fds): (Piece, _) = wire::receive(stream)?;
        let n_fds = match &piece {
            Piece::Ports(binds) => binds.len(),
            Piece::Connections(connections) => 2 * connections.len(),
            Piece::Flows(states) => states.len(),
            Piece::End => 0,
        };
        if fds.len() != n_fds {
            return Err(invalid());
        }
        let mut fds = fds.into_iter();
        match piece {
            Piece::Ports(binds) => coming.ports.extend(binds.into_iter().zip(fds)),
            Piece::Flows(states) => coming.flows.extend(states.into_iter().zip(fds)),
            Piece::Connections(connections) => {
                for Connection { backend, ended } in connections {
                    if let (Some(near), Some(far)) = (fds.next(), fds.next()) {
                        coming.connections.push(Arrived { near, far, backend, ended });
                    }
                }
            }
            Piece::End => return Ok(Some(coming)),
        }
    }
}

/// Tells the predecessor that everything is served here.
///
/// # Errors
/// It is gone.
pub(crate) fn serves(stream: &Blocking) -> io::Result<()> {
    wire::acknowledge(stream)
}

impl Hello {
    pub(crate) fn live(&self) -> Live {
        self.live.iter().copied().collect()
    }
}
