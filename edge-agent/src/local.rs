//! The board's own door: the Kubernetes API of this node alone, on loopback, for
//! whoever is root here, whether or not the master is there.
//!
//! ```text
//! kubectl, pinnace ──HTTPS, loopback──► who asks ─► route ─┬─► pods, node, events: what the agent knows
//!   kubeconfig (0600, run folder)                          ├─► log, exec, …: the streams the master uses
//!                                                          └─► delete: the pod begins anew
//! ```
//!
//! It shows and touches the pods of this node and nothing else, and it changes no
//! wish: what is to run is the master's word. While nobody asks it does nothing; it
//! keeps a listening socket, the last events, and a few bytes a pod once a list was
//! asked for. A port that is taken costs the door only, never the agent.

mod credentials;
mod diary;
mod ledger;
mod objects;
mod requests;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch as changes};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::node::NodeInfoV1;

use self::credentials::{Credentials, CredentialsError};
pub use self::diary::Diary;
use self::ledger::Ledger;
use crate::hooks::chain;
use crate::pods::owner::{Board, Restarter, Roster};
use crate::streams::Streams;

/// Where it listens if nothing else is said: no port of a kubelet, of k3s or of the
/// master, and below those that the kernel gives out.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6460);
/// The file for clients, below the run folder.
pub const KUBECONFIG: &str = "kubeconfig";
/// Why there is no such file, beside it.
const PROBLEM: &str = "kubeconfig.problem";

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for its headers, and stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest headers of a request, in bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// How often a port that was taken is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(60);
/// Pause after the system refused to accept, for lack of descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What the door shows and reaches.
pub struct Sources {
    /// This node's name.
    pub node: String,
    /// The node's address; may be empty.
    pub host_ip: String,
    /// How the pods are.
    pub board: Board,
    /// Which pods there are to be.
    pub roster: Roster,
    /// What the node says of itself.
    pub info: changes::Receiver<NodeInfoV1>,
    /// What happened lately.
    pub diary: Arc<Diary>,
    /// Reaches into containers.
    pub streams: Arc<Streams>,
    /// Begins pods anew.
    pub restarter: Restarter,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The door, open.
struct Door {
    sources: Sources,
    ledger: Mutex<Ledger>,
    token: credentials::Token,
    /// Connections that have become something else than HTTP.
    upgraded: TaskTracker,
    stop: CancellationToken,
}

/// Why the door is shut.
#[derive(Debug, thiserror::Error)]
enum DoorError {
    #[error("it must be an address of this machine alone, such as {ADDRESS}, and not {0}")]
    NotLocal(SocketAddr),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Serves until `stop`. Where it cannot, it says so and tries again.
pub async fn run(address: SocketAddr, run_dir: PathBuf, sources: Sources, stop: CancellationToken) {
    let mut said = None;
    let (listener, credentials) = loop {
        match open(address, &run_dir, &sources.node).await {
            Ok(open) => break open,
            Err(error) => {
                let why = chain(&error);
                if said.as_ref() != Some(&why) {
                    tracing::warn!("the board has no API of its own: {why}");
                    note_problem(&run_dir, &why);
                }
                said = Some(why);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    };
    let path = run_dir.join(KUBECONFIG);
    tracing::info!(kubeconfig = %path.display(), "the board's own API is open");
    let acceptor = TlsAcceptor::from(credentials.tls);
    let ledger = Mutex::new(Ledger::new(crate::clock::system().mono));
    let upgraded = TaskTracker::new();
    let door = Door { sources, ledger, token: credentials.token, upgraded, stop };
    serve(Arc::new(door), listener, acceptor).await;
}

/// Says that there is no door on purpose: an old kubeconfig would only mislead.
pub fn remove(run_dir: &Path) {
    for name in [KUBECONFIG, PROBLEM] {
        let _ = crate::durable::remove(&run_dir.join(name));
    }
}

/// Why the door of the agent with this run folder is shut, if it is.
#[must_use]
pub fn problem(run_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(run_dir.join(PROBLEM)).ok()?;
    Some(text.trim().to_owned())
}

/// The file for clients, if the door is open.
#[must_use]
pub fn kubeconfig(run_dir: &Path) -> Option<PathBuf> {
    Some(run_dir.join(KUBECONFIG)).filter(|path| path.exists())
}

fn note_problem(run_dir: &Path, why: &str) {
    // A client is told by the file's absence; the doctor reads why.
    let _ = crate::durable::remove(&run_dir.join(KUBECONFIG));
    let text = format!("{why}\n");
    let path = run_dir.join(PROBLEM);
    if let Err(error) =
        crate::durable::write_text(&path, &text, crate::durable::Keep::ThroughRestart)
    {
        tracing::warn!(error = chain(&error), "cannot say why there is no API of the board");
    }
}

async fn open(
    address: SocketAddr,
    run_dir: &Path,
    node: &str,
) -> Result<(TcpListener, Credentials), DoorError> {
    if !address.ip().is_loopback() {
        return Err(DoorError::NotLocal(address));
    }
    let listen = |source| DoorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let credentials = Credentials::open(run_dir, node, address)?;
    let _ = crate::durable::remove(&run_dir.join(PROBLEM));
    Ok((listener, credentials))
}

/// The objects of a kind that is served, and the revision of this moment.
fn objects_of(door: &Door, kind: &str) -> (Vec<api::Value>, u64) {
    let (items, revision) = door.items();
    let sources = &door.sources;
    let mut objects = match kind {
        "Pod" => return (items.into_iter().map(|item| item.object).collect(), revision),
        "Node" => vec![sources.node()],
        "Event" => sources.events(),
        _ => sources.namespaces(),
    };
    for object in &mut objects {
        object["metadata"]["resourceVersion"] = serde_json::json!(revision.to_string());
    }
    (objects, revision)
}

async fn serve(door: Arc<Door>, listener: TcpListener, acceptor: TlsAcceptor) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tracker = TaskTracker::new();
    loop {
        // Who comes while all are taken waits in the kernel's queue.
        let slot = tokio::select! {
            () = door.stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot.expect("it is never closed"),
        };
        let stream = tokio::select! {
            () = door.stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the board's API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (door, acceptor) = (Arc::clone(&door), acceptor.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = door.stop.cancelled() => {}
                () = connection(&door, stream, &acceptor) => {}
            }
            drop(slot);
        });
    }
    tracker.close();
    tracker.wait().await;
    door.upgraded.close();
    door.upgraded.wait().await;
}

async fn connection(door: &Arc<Door>, stream: TcpStream, acceptor: &TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
        tracing::debug!("a TLS handshake with the board's API failed");
        return;
    };
    let service = service_fn(|request| {
        let door = Arc::clone(door);
        async move { Ok::<_, Infallible>(requests::handle(&door, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection to the board's API ended");
    }
}
