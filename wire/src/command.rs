//! What the master asks of a node at once, and the byte streams that follow.
//!
//! A stream never runs over MQTT by default: the master sends
//! [`CommandV1::OpenStream`] with a one-time ticket, and the agent dials the
//! node port with ALPN `pinnace-stream/1`, presents the ticket, and the two
//! ends talk in frames:
//!
//! ```text
//! agent → master   u16 length (LE), postcard of StreamHelloV1
//! both, then       frames, see [`crate::stream`]
//! ```

use serde::{Deserialize, Serialize};

use crate::{Epoch, Uid};

/// A command and what makes it safe to repeat: a node runs each counter once,
/// and none that was meant for another store or boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnvelopeV1 {
    /// The store of the master that sends it.
    pub epoch: Epoch,
    /// The boot of the agent it is meant for.
    pub boot_id: Uid,
    /// Grows with every command to this boot. 0 only with [`CommandV1::Resync`], which
    /// runs whatever epoch and counter say: it is how a master that knows nothing of
    /// the boot begins.
    pub counter: u64,
    /// What is asked.
    pub command: CommandV1,
}

/// What the master asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandV1 {
    /// Say hello again.
    Resync,
    /// Send a full report.
    ReportAll,
    /// Dial back with `ticket` and serve a stream.
    OpenStream {
        /// Proves to the master which stream the connection is for. Valid once, for 10 s.
        ticket: [u8; 16],
        /// What to serve.
        stream: StreamV1,
    },
    /// Ask for the tokens of all pods anew: the master's clock has jumped, and those
    /// made before are no good by it.
    RefreshTokens,
    /// A node that does not reach this one directly waits at the master: dial with
    /// ALPN `pinnace-relay/1` and fetch its connection, see [`crate::relay`].
    Relay {
        /// Who waits.
        from: String,
        /// Proves to the master which connection is fetched. Valid once, for 10 s.
        ticket: [u8; 16],
    },
}

/// What a stream serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamV1 {
    /// A container's log.
    Logs(LogsV1),
    /// One more command in a container.
    Exec(ExecV1),
    /// The standard streams of a container's own process.
    Attach(AttachV1),
    /// Connections to ports of a pod.
    PortForward(PortForwardV1),
    /// What the node and its containers use: postcard of [`crate::usage::UsageV1`] as
    /// standard output, then the end.
    Usage,
    /// How the node reaches the others: postcard of [`crate::usage::PathsV1`], in the
    /// same way.
    Paths,
}

/// A command to run in a container.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecV1 {
    /// The pod.
    pub uid: Uid,
    /// The container's name.
    pub container: String,
    /// The command.
    pub args: Vec<String>,
    /// Whether standard input is sent.
    pub stdin: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
}

// Arguments may hold secrets.
impl std::fmt::Debug for ExecV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecV1")
            .field("container", &self.container)
            .field("n_args", &self.args.len())
            .field("stdin", &self.stdin)
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// A container whose standard streams are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachV1 {
    /// The pod.
    pub uid: Uid,
    /// The container's name.
    pub container: String,
    /// Whether standard input is sent.
    pub stdin: bool,
}

/// A pod whose ports are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForwardV1 {
    /// The pod.
    pub uid: Uid,
}

/// Which part of a container's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsV1 {
    /// The pod.
    pub uid: Uid,
    /// The container's name.
    pub container: String,
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// The run before the current one.
    pub previous: bool,
    /// Put the time in front of each line.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines written at or after this time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Most bytes sent.
    pub limit_bytes: Option<u64>,
}

/// The first message of the agent on a stream connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHelloV1 {
    /// The ticket of [`CommandV1::OpenStream`].
    pub ticket: [u8; 16],
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamEndV1 {
    /// All was sent.
    Done,
    /// The pod, container or run is not on this node.
    NotFound(String),
    /// It could not be served.
    Failed(String),
    /// The command or container ended with this code.
    Exited(i32),
}
