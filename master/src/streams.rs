//! Byte streams from nodes, through the one port that nodes dial.
//!
//! ```text
//! user ── GET …/log, exec, attach, portforward ──► ticket ── command ──► agent
//!      ◄── lines, frames ◄─────────────────────── agent dials pinnace-stream/1
//! ```
//!
//! A ticket is random, for one node, good once and for [`TICKET_LIFE`].

mod command;
mod forward;
mod frames;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apiserver::{
    BoxFuture, CommandRequest, CommandStream, Forwarder, LogRequest, LogSource, LogStream, Reason,
    Status, StreamSource, StreamTarget,
};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use wire::command::{
    AttachV1, CommandV1, ExecV1, LogsV1, PortForwardV1, StreamEndV1, StreamHelloV1, StreamV1,
};
use wire::stream::Frame;
use wire::usage::{PathsV1, USAGE_BYTES_MAX, UsageV1};

use crate::pki::random;

/// How long a node has to dial back.
const TICKET_LIFE: Duration = Duration::from_secs(10);
/// Frames read ahead of a slow user.
const FRAMES_AHEAD: usize = 4;
/// Most streams that wait for their node at once.
const WAITING_MAX: usize = 1024;

/// A connection of a node, already authenticated.
pub(crate) type NodeStream = Box<dyn Connection>;

/// Bytes both ways.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type Ticket = [u8; 16];

/// Asks a node to do something at once.
pub(crate) type Commands = mpsc::Sender<(String, CommandV1, oneshot::Sender<bool>)>;

/// Streams that wait for their node, and how to ask for them.
pub(crate) struct Streams {
    waiting: Mutex<HashMap<Ticket, (String, oneshot::Sender<NodeStream>)>>,
    commands: Commands,
}

impl Streams {
    pub(crate) fn new(commands: Commands) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), commands })
    }

    /// Takes a stream connection of `node`: reads its ticket and hands it to
    /// whoever waits for it.
    pub(crate) async fn accept(&self, node: &str, mut stream: NodeStream) -> io::Result<()> {
        let hello = async {
            let len = usize::from(stream.read_u16_le().await?);
            let mut bytes = vec![0; len.min(256)];
            stream.read_exact(&mut bytes).await?;
            postcard::from_bytes::<StreamHelloV1>(&bytes).map_err(io::Error::other)
        };
        let hello = tokio::time::timeout(TICKET_LIFE, hello)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let waiter = {
            let mut waiting = self.waiting.lock().expect("no panic while it is held");
            match waiting.remove(&hello.ticket) {
                // A node cannot use what was given to another.
                Some((owner, waiter)) if owner == node => Some(waiter),
                Some(other) => {
                    waiting.insert(hello.ticket, other);
                    None
                }
                None => None,
            }
        };
        let waiter = waiter.ok_or_else(|| io::Error::other("the ticket is unknown or too old"))?;
        waiter.send(stream).map_err(|_| io::Error::other("nobody waits for the stream any more"))
    }

    /// What `node` uses, measured now.
    pub(crate) async fn usage(&self, node: &str) -> Result<UsageV1, Status> {
        self.ask(node, StreamV1::Usage).await
    }

    /// How `node` reaches the others.
    pub(crate) async fn paths(&self, node: &str) -> Result<PathsV1, Status> {
        self.ask(node, StreamV1::Paths).await
    }

    /// Asks `node` for what it answers at once.
    async fn ask<T: DeserializeOwned>(&self, node: &str, what: StreamV1) -> Result<T, Status> {
        let mut stream = self.dial_back(node, what).await?;
        let broken = |error: io::Error| Status::unavailable(format!("node {node}: {error}"));
        let mut answer = Vec::new();
        loop {
            match read_frame(&mut stream).await.map_err(broken)? {
                LogFrame::Data(bytes) if answer.len() + bytes.len() > USAGE_BYTES_MAX => {
                    return Err(broken(io::Error::other("it says too much")));
                }
                LogFrame::Data(bytes) => answer.extend_from_slice(&bytes),
                LogFrame::End(StreamEndV1::Done) => break,
                LogFrame::End(end) => return Err(broken(io::Error::other(format!("{end:?}")))),
            }
        }
        postcard::from_bytes(&answer).map_err(|error| broken(io::Error::other(error)))
    }

    /// Asks `node` to serve `stream` and waits for its connection.
    async fn dial_back(&self, node: &str, stream: StreamV1) -> Result<NodeStream, Status> {
        let ticket: Ticket = random();
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().expect("no panic while it is held");
            if WAITING_MAX <= waiting.len() {
                return Err(Status::too_many_requests());
            }
            waiting.insert(ticket, (node.to_owned(), sender));
        }
        // Also where nobody waits any more: a user may go at any time.
        let _forget = Forget { streams: self, ticket };
        self.wait(node, CommandV1::OpenStream { ticket, stream }, receiver).await
    }

    async fn wait(
        &self,
        node: &str,
        command: CommandV1,
        stream: oneshot::Receiver<NodeStream>,
    ) -> Result<NodeStream, Status> {
        let unreachable =
            |what: &str| Status::new(Reason::ServiceUnavailable, format!("node \"{node}\" {what}"));
        let (sent, is_sent) = oneshot::channel();
        let stopping = |_| Status::unavailable("the master is stopping");
        self.commands.send((node.to_owned(), command, sent)).await.map_err(|_| stopping(()))?;
        if !is_sent.await.map_err(|_| stopping(()))? {
            return Err(unreachable(
                "is not connected: its containers and their logs are reached once it is back",
            ));
        }
        match tokio::time::timeout(TICKET_LIFE, stream).await {
            Ok(Ok(stream)) => Ok(stream),
            _ => {
                Err(unreachable("did not answer within 10 s: check that it reaches the node port"))
            }
        }
    }
}

/// Takes a ticket back.
struct Forget<'a> {
    streams: &'a Streams,
    ticket: Ticket,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let waiting = self.streams.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner).remove(&self.ticket);
    }
}

impl StreamSource for Streams {
    fn command(&self, request: CommandRequest) -> BoxFuture<'_, Result<CommandStream, Status>> {
        Box::pin(async move {
            let CommandRequest { target, args, stdin, tty, .. } = request;
            let uid = pod_uid(&target.pod_uid)?;
            let container = target.container;
            let stream = match args {
                Some(args) => StreamV1::Exec(ExecV1 { uid, container, args, stdin, tty }),
                None => StreamV1::Attach(AttachV1 { uid, container, stdin }),
            };
            Ok(command::start(self.dial_back(&target.node, stream).await?))
        })
    }

    fn forward(&self, target: StreamTarget) -> BoxFuture<'_, Result<Arc<dyn Forwarder>, Status>> {
        Box::pin(async move {
            let stream = StreamV1::PortForward(PortForwardV1 { uid: pod_uid(&target.pod_uid)? });
            let connection = self.dial_back(&target.node, stream).await?;
            Ok(Arc::new(forward::start(connection)) as Arc<dyn Forwarder>)
        })
    }
}

fn pod_uid(text: &str) -> Result<wire::Uid, Status> {
    lower::uid(text).map_err(|err| Status::internal(err.to_string()))
}

impl LogSource for Streams {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogStream, Status>> {
        Box::pin(async move {
            let logs = logs(&request)?;
            let mut stream = self.dial_back(&request.node, StreamV1::Logs(logs)).await?;
            let name = format!("{}/{}", request.namespace, request.pod);
            // The first frame tells whether there is such a log at all.
            let first = match read_frame(&mut stream).await {
                Ok(LogFrame::End(end)) => match end {
                    StreamEndV1::Done | StreamEndV1::Exited(_) => {
                        return Ok(Box::pin(futures::stream::empty()) as LogStream);
                    }
                    StreamEndV1::NotFound(what) => return Err(Status::bad_request(what)),
                    StreamEndV1::Failed(what) => return Err(Status::internal(what)),
                },
                Ok(LogFrame::Data(bytes)) => bytes,
                Err(err) => return Err(Status::unavailable(format!("log of {name}: {err}"))),
            };
            let (sender, receiver) = mpsc::channel(FRAMES_AHEAD);
            tokio::spawn(forward(stream, first, sender));
            let lines = futures::stream::unfold(receiver, |mut receiver| async move {
                Some((receiver.recv().await?, receiver))
            });
            Ok(Box::pin(lines) as LogStream)
        })
    }
}

/// Copies frames until the log ends or nobody reads any more.
async fn forward(mut stream: NodeStream, first: Bytes, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut frame = Ok(LogFrame::Data(first));
    loop {
        let sent = match frame {
            Ok(LogFrame::Data(bytes)) => sender.send(Ok(bytes)).await,
            Ok(LogFrame::End(StreamEndV1::Done | StreamEndV1::Exited(_))) => return,
            Ok(LogFrame::End(StreamEndV1::NotFound(what) | StreamEndV1::Failed(what))) => {
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
        frame = tokio::select! {
            frame = read_frame(&mut stream) => frame,
            () = sender.closed() => return,
        };
    }
}

/// What a log stream says: lines, then how it ended.
enum LogFrame {
    Data(Bytes),
    End(StreamEndV1),
}

async fn read_frame(stream: &mut NodeStream) -> io::Result<LogFrame> {
    loop {
        match frames::read_patiently(stream).await? {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => {
                return Ok(LogFrame::Data(Bytes::from(bytes)));
            }
            Frame::End(end) => return Ok(LogFrame::End(end)),
            _ => {}
        }
    }
}

/// The request as the node reads it.
fn logs(request: &LogRequest) -> Result<LogsV1, Status> {
    let uid = pod_uid(&request.pod_uid)?;
    let since_ms = match (&request.since_time, request.since_seconds) {
        (Some(time), _) => {
            let bad =
                || Status::bad_request(format!("sinceTime: {time:?} is not an RFC 3339 time"));
            let time = api::time::parse(time).ok_or_else(bad)?;
            Some(u64::try_from(time.as_millisecond()).unwrap_or(0))
        }
        (None, Some(seconds)) => {
            let now = crate::clock::timestamp().as_millisecond();
            Some(u64::try_from(now - seconds.saturating_mul(1000)).unwrap_or(0))
        }
        (None, None) => None,
    };
    Ok(LogsV1 {
        uid,
        container: request.container.clone(),
        follow: request.follow,
        previous: request.previous,
        timestamps: request.timestamps,
        tail_lines: request.tail_lines,
        since_ms,
        limit_bytes: request.limit_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ticket_goes_with_whoever_waits_for_it() {
        let (commands, mut commanded) = mpsc::channel(1);
        let streams = Streams::new(commands);
        let mut asked = Box::pin(streams.usage("n"));
        tokio::select! {
            _ = &mut asked => panic!("nobody has dialled"),
            command = commanded.recv() => {
                let (node, command, sent) = command.unwrap();
                assert_eq!(node, "n");
                assert!(matches!(command, CommandV1::OpenStream { stream: StreamV1::Usage, .. }));
                sent.send(true).unwrap();
            }
        }
        assert_eq!(streams.waiting.lock().unwrap().len(), 1);
        drop(asked);
        assert!(streams.waiting.lock().unwrap().is_empty());
    }

    /// What a node says, and what the master makes of it.
    async fn answered(frames: Vec<Frame>) -> Result<UsageV1, Status> {
        let (commands, mut commanded) = mpsc::channel(1);
        let streams = Streams::new(commands);
        let node = async {
            let (_, command, sent) = commanded.recv().await.unwrap();
            let CommandV1::OpenStream { ticket, .. } = command else { panic!("{command:?}") };
            sent.send(true).unwrap();
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let hello = postcard::to_stdvec(&StreamHelloV1 { ticket }).unwrap();
            let mut bytes = u16::try_from(hello.len()).unwrap().to_le_bytes().to_vec();
            bytes.extend(hello);
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            tokio::io::AsyncWriteExt::write_all(&mut far, &bytes).await.unwrap();
            streams.accept("n", Box::new(near)).await.unwrap();
        };
        tokio::join!(streams.usage("n"), node).0
    }

    #[tokio::test]
    async fn what_a_node_says_of_its_use_is_bounded_and_checked() {
        let usage = UsageV1 { window_ms: 7, ..UsageV1::default() };
        let bytes = postcard::to_stdvec(&usage).unwrap();
        let pieces = bytes.chunks(2).map(|piece| Frame::Stdout(piece.to_vec()));
        let frames = pieces.chain([Frame::Ping, Frame::End(StreamEndV1::Done)]).collect();
        assert_eq!(answered(frames).await.unwrap(), usage);

        let endless = vec![Frame::Stdout(vec![0; 16 << 10]); 17];
        let problem = answered(endless).await.unwrap_err();
        assert!(problem.message.contains("too much"), "{}", problem.message);
        let garbage = vec![Frame::Stdout(vec![0xff; 40]), Frame::End(StreamEndV1::Done)];
        answered(garbage).await.unwrap_err();
        let failed = StreamEndV1::Failed("no cgroups".into());
        let problem = answered(vec![Frame::End(failed)]).await.unwrap_err();
        assert!(problem.message.contains("no cgroups"), "{}", problem.message);
        answered(vec![Frame::Stdout(vec![1])]).await.unwrap_err();
    }
}
