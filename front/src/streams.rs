//! Where the streams of containers come from: the node that runs them. The
//! master gives the API server a [`StreamSource`] that asks the node.
//!
//! Everything between the two is bounded: a reader that is slow holds up the
//! process it reads from, and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

use crate::logs::BoxFuture;
use crate::status::Status;

/// A container, or a pod where `container` is empty, on the node that runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamTarget {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The node that runs it; never empty.
    pub node: String,
    /// The container's name; empty for the pod as a whole.
    pub container: String,
}

/// Which process, and which of its streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandRequest {
    /// Where.
    pub target: StreamTarget,
    /// The command; `None` for the container's own process.
    pub args: Option<Vec<String>>,
    /// Whether input is sent.
    pub stdin: bool,
    /// Whether output is wanted.
    pub stdout: bool,
    /// Whether errors are wanted.
    pub stderr: bool,
    /// Whether the command gets a terminal.
    pub tty: bool,
}

/// What a user sends to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes.
    Stdin(Bytes),
    /// No more of them.
    StdinEnd,
    /// The terminal's size.
    Resize {
        /// Width, in characters.
        columns: u16,
        /// Height, in characters.
        rows: u16,
    },
}

/// What a process sends to a user.
#[derive(Clone, Debug)]
pub enum Output {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// It has ended with this code. The last message.
    Exited(i32),
    /// It could not be run, or what became of it is not known. The last message.
    Failed(Status),
}

/// The streams of a process. Dropping them ends the command, or the attachment.
#[derive(Debug)]
pub struct CommandStream {
    /// To the process.
    pub input: mpsc::Sender<Input>,
    /// From it.
    pub output: mpsc::Receiver<Output>,
}

/// One connection to a port of a pod.
#[derive(Debug)]
pub struct ForwardedConnection {
    /// Its bytes.
    pub bytes: DuplexStream,
    /// Why it was refused or broke, if it did.
    pub error: oneshot::Receiver<String>,
}

/// Makes connections to ports of one pod. Dropping it ends them all.
pub trait Forwarder: Send + Sync {
    /// Begins a connection; whether the port answers shows in it.
    ///
    /// # Errors
    /// Why there can be no more.
    fn connect(&self, port: u16) -> BoxFuture<'_, Result<ForwardedConnection, String>>;
}

/// Reaches processes and ports on nodes.
pub trait StreamSource: Send + Sync + 'static {
    /// Runs a command, or attaches to a container.
    fn command(&self, request: CommandRequest) -> BoxFuture<'_, Result<CommandStream, Status>>;

    /// Reaches the ports of a pod.
    fn forward(&self, target: StreamTarget) -> BoxFuture<'_, Result<Arc<dyn Forwarder>, Status>>;
}
