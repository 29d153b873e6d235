//! Streams that the master opens through the node's one outbound port: it sends
//! a ticket, the agent dials and serves.
//!
//! ```text
//! command ──► dial, ticket ──► logs          lines of a file
//!                              command       exec and attach: streams of a process
//!                              forward       connections into the pod's network
//!                              usage         processor and memory, measured now
//!                              paths         how the other nodes are reached
//! ```
//!
//! Each stream has a connection of its own, so that none delays a heartbeat or
//! another stream, and ends with it: a command whose connection is lost is killed.

mod command;
mod forward;
mod frames;
mod paths;
mod usage;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use proxy::control::ToProxy;
use runtime::{ExecHandle, ExecRequest, Runtime, RuntimeError};
use tokio::io::DuplexStream;
use tokio::sync::{Semaphore, mpsc};
use wire::Uid;
use wire::command::{
    AttachV1, CommandV1, ExecV1, PortForwardV1, StreamEndV1, StreamHelloV1, StreamV1,
};
use wire::status::StateV1;
use wire::stream::Frame;

use crate::artifacts::{Connection, Dial, send};
use crate::config::Folders;
use crate::hooks::chain;
use crate::pods::owner::Board;
use crate::{id, logs, network, services};

/// Streams served at the same time.
const STREAMS_MAX: usize = 32;
/// Bytes under way to somebody in this process.
const PIPE_BYTES: usize = 32 << 10;

/// Serves streams.
pub struct Streams {
    /// Where the logs are.
    pub logs: PathBuf,
    /// Where the pods' namespaces are.
    pub folders: Folders,
    /// How the pods are.
    pub board: Board,
    /// Runs commands.
    pub runtime: Arc<dyn Runtime>,
    /// Reaches the master.
    pub dial: Arc<dyn Dial>,
    /// The node's data plane.
    pub proxy: services::Handle,
    /// How many may still begin; see [`slots`].
    pub free: Arc<Semaphore>,
}

/// Room for all streams that are served at the same time.
#[must_use]
pub fn slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(STREAMS_MAX))
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("logs", &self.logs).finish_non_exhaustive()
    }
}

impl Streams {
    /// Does what the master asks, until it asks no more.
    pub async fn run(self: Arc<Self>, mut commands: mpsc::Receiver<CommandV1>) {
        let requests = self.proxy.requests.clone();
        while let Some(command) = commands.recv().await {
            let (ticket, stream) = match command {
                CommandV1::OpenStream { ticket, stream } => (ticket, stream),
                CommandV1::Relay { from, ticket } => {
                    // Where too much waits for the proxy, the other node asks again.
                    let _dropped = requests.try_send(ToProxy::Relay { peer: from, ticket });
                    continue;
                }
                // The node's protocol has answered the others itself.
                _ => continue,
            };
            let permit = Arc::clone(&self.free).try_acquire_owned().ok();
            let streams = Arc::clone(&self);
            tokio::spawn(async move {
                let served = match permit {
                    Some(_permit) => streams.serve(ticket, stream).await,
                    None => streams.refuse(ticket).await,
                };
                if let Err(error) = served {
                    tracing::debug!(%error, "a stream ended early");
                }
            });
        }
    }

    async fn connect(&self, ticket: [u8; 16]) -> io::Result<Box<dyn Connection>> {
        let mut connection = self.dial.dial(wire::ALPN_STREAM).await?;
        send(&mut connection, &StreamHelloV1 { ticket }).await?;
        Ok(connection)
    }

    async fn refuse(&self, ticket: [u8; 16]) -> io::Result<()> {
        tracing::warn!("{STREAMS_MAX} streams are open; another one is refused");
        let why = too_many();
        let connection = self.connect(ticket).await?;
        end(connection, StreamEndV1::Failed(why)).await
    }

    async fn serve(&self, ticket: [u8; 16], stream: StreamV1) -> io::Result<()> {
        let connection = self.connect(ticket).await?;
        self.serve_on(connection, stream).await
    }

    /// Serves a stream to somebody in this process, until either end is dropped.
    ///
    /// # Errors
    /// Why there can be no more streams.
    pub fn open(self: &Arc<Self>, stream: StreamV1) -> Result<DuplexStream, String> {
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| too_many())?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let streams = Arc::clone(self);
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = streams.serve_on(Box::new(far), stream).await {
                tracing::debug!(%error, "a stream ended early");
            }
        });
        Ok(near)
    }

    async fn serve_on(&self, connection: Box<dyn Connection>, stream: StreamV1) -> io::Result<()> {
        match stream {
            StreamV1::Logs(request) => {
                logs::serve(&self.logs, &self.board, &request, connection).await
            }
            StreamV1::Exec(request) => match self.exec(request).await {
                Ok(handle) => command::serve(handle, connection, StreamEndV1::Exited).await,
                Err(why) => end(connection, why).await,
            },
            StreamV1::Attach(request) => match self.attach(&request).await {
                // How the container ended is in the pod's status: to clients, another
                // end than a good one is a failure to attach.
                Ok(handle) => command::serve(handle, connection, |_| StreamEndV1::Done).await,
                Err(why) => end(connection, why).await,
            },
            StreamV1::PortForward(request) => match self.network_of(&request) {
                Ok(network) => forward::serve(network, connection).await,
                Err(why) => end(connection, why).await,
            },
            StreamV1::Paths => {
                let status = self.proxy.status.borrow().clone();
                paths::serve(status.as_ref(), connection).await
            }
            StreamV1::Usage => usage::serve(&self.folders, &self.board, connection).await,
        }
    }

    async fn exec(&self, request: ExecV1) -> Result<ExecHandle, StreamEndV1> {
        let ExecV1 { uid, container, args, stdin, tty } = request;
        let id = self.running(&uid, &container)?;
        let request = ExecRequest { args, stdin, tty, ..ExecRequest::default() };
        self.runtime.exec(&id, request).await.map_err(|error| failure(&error))
    }

    async fn attach(&self, request: &AttachV1) -> Result<ExecHandle, StreamEndV1> {
        let id = self.running(&request.uid, &request.container)?;
        self.runtime.attach(&id, request.stdin).await.map_err(|error| failure(&error))
    }

    /// The run of a container that runs now.
    fn running(&self, uid: &Uid, container: &str) -> Result<String, StreamEndV1> {
        let board = self.board.borrow();
        let Some(pod) = board.get(uid) else {
            let message = format!("pod {} is not on this node", id::uid_text(uid));
            return Err(StreamEndV1::NotFound(message));
        };
        let found = pod.all_containers().find(|status| status.name == container);
        match found {
            Some(status) if matches!(status.state, StateV1::Running { .. }) => {
                Ok(status.container_id.clone())
            }
            // As the kubelet says it.
            Some(_) => Err(StreamEndV1::NotFound(format!(
                "unable to upgrade connection: container not running ({container})"
            ))),
            None => Err(StreamEndV1::NotFound(format!("container not found (\"{container}\")"))),
        }
    }

    /// The pod's network namespace; `None` where it has the node's.
    fn network_of(&self, request: &PortForwardV1) -> Result<Option<PathBuf>, StreamEndV1> {
        let board = self.board.borrow();
        let running = board.get(&request.uid).filter(|pod| {
            pod.all_containers().any(|status| matches!(status.state, StateV1::Running { .. }))
        });
        if running.is_none() {
            let message = "unable to forward port because pod is not running".to_owned();
            return Err(StreamEndV1::NotFound(message));
        }
        let net = self.folders.pod(&request.uid, "", "").run.join("ns/net");
        Ok(network::is_namespace(&net).then_some(net))
    }
}

fn too_many() -> String {
    format!("{STREAMS_MAX} streams are open on this node already: close one")
}

fn failure(error: &RuntimeError) -> StreamEndV1 {
    StreamEndV1::Failed(chain(error))
}

/// Says how a stream ended that never began.
async fn end(connection: Box<dyn Connection>, why: StreamEndV1) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    frames::write(&mut writer, &Frame::End(why)).await?;
    frames::finish(&mut reader, &mut writer).await
}
