//! Connections into a pod's network, many on one stream.
//!
//! ```text
//! Open ──► socket made in the pod's namespace, connected to its loopback
//! Data ──► queue (≤ window) ──► socket ──► credit back
//! socket ──► as much as there is credit ──► Data … Finish
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::stream::{AGENT_WINDOW, CONNECTIONS_MAX, Credit, DATA_BYTES_MAX, Frame, MASTER_WINDOW};

use super::frames::{self, Sender};

/// How long a port may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection as the reader of frames knows it.
struct Connection {
    input: mpsc::Sender<Option<Vec<u8>>>,
    queued: Arc<AtomicUsize>,
    credit: Arc<watch::Sender<Credit>>,
}

/// Serves connections into `network` (`None`: the node's own) until the stream ends.
///
/// # Errors
/// The other side is gone, or broke the rules.
pub(super) async fn serve(
    network: Option<PathBuf>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (sender, queued) = frames::queue();
    tokio::select! {
        result = listen(&mut reader, network, sender) => result,
        result = frames::pump(queued, &mut writer) => result,
    }
}

async fn listen(
    reader: &mut (impl AsyncRead + Unpin),
    network: Option<PathBuf>,
    sender: Sender,
) -> io::Result<()> {
    // Ends every connection when it is dropped.
    let mut tasks = JoinSet::new();
    let mut connections: HashMap<u16, Connection> = HashMap::new();
    // Reading a frame must not be given up half-way.
    let (frames_in, mut incoming) = mpsc::channel(1);
    let read = async {
        loop {
            let frame = frames::read(reader).await?;
            if frames_in.send(frame).await.is_err() {
                return io::Result::Ok(());
            }
        }
    };
    tokio::pin!(read);
    loop {
        let frame = tokio::select! {
            result = &mut read => return result,
            Some(ended) = tasks.join_next() => {
                if let Ok(number) = ended {
                    connections.remove(&number);
                }
                continue;
            }
            Some(frame) = incoming.recv() => frame,
        };
        match frame {
            Frame::Open { connection, port } => {
                let refused =
                    connections.contains_key(&connection) || connections.len() >= CONNECTIONS_MAX;
                if refused {
                    let why = format!("{CONNECTIONS_MAX} connections are open already");
                    let _ = sender.send(Frame::Reset { connection, why }).await;
                    continue;
                }
                // Each frame has a byte at least: room for all of the window, and for the end.
                let (input, inputs) = mpsc::channel(window() + 1);
                let queued = Arc::new(AtomicUsize::new(0));
                let credit = Arc::new(watch::Sender::new(Credit::new(MASTER_WINDOW)));
                let work = Work {
                    connection,
                    queued: Arc::clone(&queued),
                    credit: Arc::clone(&credit),
                    sender: sender.clone(),
                };
                let network = network.clone();
                tasks.spawn(async move {
                    work.run(network, port, inputs).await;
                    connection
                });
                connections.insert(connection, Connection { input, queued, credit });
            }
            Frame::Data { connection, bytes } => {
                // What comes for one that has just ended is dropped.
                let Some(known) = connections.get(&connection) else { continue };
                let before = known.queued.fetch_add(bytes.len(), Ordering::Relaxed);
                if before + bytes.len() > window() {
                    return Err(io::Error::other("the master sent more than the window"));
                }
                let _ = known.input.try_send(Some(bytes));
            }
            Frame::Finish { connection } => {
                if let Some(known) = connections.get(&connection) {
                    let _ = known.input.try_send(None);
                }
            }
            Frame::Reset { connection, .. } => {
                // Its task sees the end of the queue.
                connections.remove(&connection);
            }
            Frame::ConnectionCredit { connection, bytes } => {
                if let Some(known) = connections.get(&connection) {
                    known.credit.send_modify(|credit| credit.give(bytes));
                }
            }
            _ => {}
        }
    }
}

fn window() -> usize {
    usize::try_from(AGENT_WINDOW).unwrap_or(usize::MAX)
}

/// One connection.
struct Work {
    connection: u16,
    queued: Arc<AtomicUsize>,
    credit: Arc<watch::Sender<Credit>>,
    sender: Sender,
}

impl Work {
    async fn run(
        self,
        network: Option<PathBuf>,
        port: u16,
        input: mpsc::Receiver<Option<Vec<u8>>>,
    ) {
        let connection = self.connection;
        let result = match connect(network.as_deref(), port).await {
            Ok(stream) => self.copy(stream, input).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let why = format!("port {port}: {error}");
            let _ = self.sender.send(Frame::Reset { connection, why }).await;
        }
    }

    async fn copy(
        &self,
        mut stream: TcpStream,
        mut input: mpsc::Receiver<Option<Vec<u8>>>,
    ) -> io::Result<()> {
        let connection = self.connection;
        let (mut from_pod, mut to_pod) = stream.split();
        let down = async {
            loop {
                match input.recv().await {
                    Some(Some(bytes)) => {
                        to_pod.write_all(&bytes).await?;
                        self.queued.fetch_sub(bytes.len(), Ordering::Relaxed);
                        let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                        let credit = Frame::ConnectionCredit { connection, bytes };
                        if self.sender.send(credit).await.is_err() {
                            return Ok(());
                        }
                    }
                    Some(None) => {
                        to_pod.shutdown().await?;
                        return io::Result::Ok(());
                    }
                    // The master has lost interest.
                    None => return Err(io::ErrorKind::ConnectionAborted.into()),
                }
            }
        };
        let up = async {
            let mut left = self.credit.subscribe();
            let mut buffer = vec![0; DATA_BYTES_MAX];
            loop {
                let room = match left.wait_for(|credit| credit.left() > 0).await {
                    Ok(credit) => credit.left().min(DATA_BYTES_MAX),
                    Err(_) => return Ok(()),
                };
                let n = from_pod.read(&mut buffer[..room]).await?;
                let frame = if n == 0 {
                    Frame::Finish { connection }
                } else {
                    self.credit.send_modify(|credit| {
                        // Never more than there was: only this task takes.
                        let _ = credit.take(n);
                    });
                    Frame::Data { connection, bytes: buffer[..n].to_vec() }
                };
                if self.sender.send(frame).await.is_err() || n == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        tokio::try_join!(down, up).map(drop)
    }
}

/// Connects to a port of the pod as something inside it would.
async fn connect(network: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut failed = None;
    for address in loopbacks {
        let socket = match socket(network, address.is_ipv6()) {
            Ok(socket) => socket,
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        };
        match timeout(CONNECT_TIMEOUT, socket.connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => {
                failed.get_or_insert(error);
            }
            Err(elapsed) => {
                failed.get_or_insert_with(|| elapsed.into());
            }
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// A socket belongs to the namespace it was made in, wherever it is used: made
/// by a thread that enters the namespace and ends.
fn socket(network: Option<&Path>, v6: bool) -> io::Result<TcpSocket> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let make = move || -> io::Result<std::os::fd::OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
    };
    let socket = match network {
        None => make()?,
        Some(path) => {
            let namespace = std::fs::File::open(path)?;
            std::thread::Builder::new()
                .name("pod-socket".to_owned())
                .stack_size(64 << 10)
                .spawn(move || {
                    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                    make()
                })?
                .join()
                .expect("the thread does not panic")?
        }
    };
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(socket)))
}
