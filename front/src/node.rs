//! The streams of containers as a node serves them, in frames of [`wire::stream`],
//! turned into what [`crate::upgrade`] and `log` give to clients.
//!
//! Whoever answers the client dials the node, and this speaks on the connection. It
//! does not know what a connection is made of: the master's comes over TLS, an
//! agent's that serves its own board stays in the process.

mod command;
mod forward;
mod frames;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use wire::Uid;
use wire::command::{AttachV1, ExecV1, LogsV1, PortForwardV1, StreamEndV1, StreamV1};
use wire::stream::Frame;

use crate::logs::{LogRequest, LogStream};
use crate::status::Status;
use crate::streams::{CommandRequest, CommandStream, Forwarder};

/// Frames read ahead of a slow user.
const FRAMES_AHEAD: usize = 4;

/// A connection to a node that serves one stream.
pub type NodeStream = Box<dyn Connection>;

/// Bytes both ways.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// What to ask a node for, to run a command in a container of pod `uid` or attach to it.
#[must_use]
pub fn command_stream(uid: Uid, request: CommandRequest) -> StreamV1 {
    let CommandRequest { target, args, stdin, tty, .. } = request;
    let container = target.container;
    match args {
        Some(args) => StreamV1::Exec(ExecV1 { uid, container, args, stdin, tty }),
        None => StreamV1::Attach(AttachV1 { uid, container, stdin }),
    }
}

/// Serves the process behind a connection, in a task that ends with either side.
#[must_use]
pub fn command(stream: NodeStream) -> CommandStream {
    command::start(stream)
}

/// What to ask a node for, to reach the ports of pod `uid`.
#[must_use]
pub fn forward_stream(uid: Uid) -> StreamV1 {
    StreamV1::PortForward(PortForwardV1 { uid })
}

/// Serves the ports behind a connection, in a task that ends with either side.
#[must_use]
pub fn forward(stream: NodeStream) -> Arc<dyn Forwarder> {
    Arc::new(forward::start(stream))
}

/// What to ask a node for, to read a log of pod `uid`; `now_ms` is the reader's
/// clock, in milliseconds since 1970.
///
/// # Errors
/// `BadRequest`: `sinceTime` is no time.
pub fn log_stream(uid: Uid, request: &LogRequest, now_ms: i64) -> Result<StreamV1, Status> {
    let since_ms = match (&request.since_time, request.since_seconds) {
        (Some(time), _) => {
            let bad =
                || Status::bad_request(format!("sinceTime: {time:?} is not an RFC 3339 time"));
            let time = api::time::parse(time).ok_or_else(bad)?;
            Some(u64::try_from(time.as_millisecond()).unwrap_or(0))
        }
        (None, Some(seconds)) => {
            let since = now_ms.saturating_sub(seconds.saturating_mul(1000));
            Some(u64::try_from(since).unwrap_or(0))
        }
        (None, None) => None,
    };
    Ok(StreamV1::Logs(LogsV1 {
        uid,
        container: request.container.clone(),
        follow: request.follow,
        previous: request.previous,
        timestamps: request.timestamps,
        tail_lines: request.tail_lines,
        since_ms,
        limit_bytes: request.limit_bytes,
    }))
}

/// Reads the log behind a connection, once it has begun; `name` is the pod's.
///
/// # Errors
/// There is no such log, or the node is lost before its first word.
pub async fn log(mut stream: NodeStream, name: &str) -> Result<LogStream, Status> {
    // The first frame tells whether there is such a log at all.
    let first = match read(&mut stream).await {
        Ok(Said::End(end)) => match end {
            StreamEndV1::Done | StreamEndV1::Exited(_) => {
                return Ok(Box::pin(futures::stream::empty()) as LogStream);
            }
            StreamEndV1::NotFound(what) => return Err(Status::bad_request(what)),
            StreamEndV1::Failed(what) => return Err(Status::internal(what)),
        },
        Ok(Said::Data(bytes)) => bytes,
        Err(err) => return Err(Status::unavailable(format!("log of {name}: {err}"))),
    };
    let (sender, receiver) = mpsc::channel(FRAMES_AHEAD);
    tokio::spawn(pass_on(stream, first, sender));
    let lines = futures::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    Ok(Box::pin(lines) as LogStream)
}

/// Copies frames until the log ends or nobody reads any more.
async fn pass_on(mut stream: NodeStream, first: Bytes, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut said = Ok(Said::Data(first));
    loop {
        let sent = match said {
            Ok(Said::Data(bytes)) => sender.send(Ok(bytes)).await,
            Ok(Said::End(StreamEndV1::Done | StreamEndV1::Exited(_))) => return,
            Ok(Said::End(StreamEndV1::NotFound(what) | StreamEndV1::Failed(what))) => {
                // The status line is out already; the text tells the user why it ends.
                let _ = sender.send(Err(io::Error::other(what))).await;
                return;
            }
            Err(err) => {
                let _ = sender.send(Err(err)).await;
                return;
            }
        };
        if sent.is_err() {
            return;
        }
        said = tokio::select! {
            said = read(&mut stream) => said,
            () = sender.closed() => return,
        };
    }
}

/// What a stream of one channel says: bytes, then how it ended.
#[derive(Debug)]
pub enum Said {
    /// Some bytes.
    Data(Bytes),
    /// The last word.
    End(StreamEndV1),
}

/// The next word of a stream of one channel.
///
/// # Errors
/// The connection is broken, or something else is spoken on it.
pub async fn read(stream: &mut NodeStream) -> io::Result<Said> {
    loop {
        match frames::read_patiently(stream).await? {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => return Ok(Said::Data(bytes.into())),
            Frame::End(end) => return Ok(Said::End(end)),
            _ => {}
        }
    }
}
