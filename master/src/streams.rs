//! Byte streams from nodes, through the one port that nodes dial.
//!
//! ```text
//! user ── GET …/log, exec, attach, portforward ──► ticket ── command ──► agent
//!      ◄── lines, frames ◄─────────────────────── agent dials pinnace-stream/1
//! ```
//!
//! A ticket is random, for one node, good once and for [`TICKET_LIFE`].

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apiserver::{
    BoxFuture, CommandRequest, CommandStream, Forwarder, LogRequest, LogSource, LogStream, Reason,
    Status, StreamSource, StreamTarget,
};
use front::node::{self, NodeStream, Said};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use wire::command::{CommandV1, StreamEndV1, StreamHelloV1, StreamV1};
use wire::usage::{PathsV1, USAGE_BYTES_MAX, UsageV1};

use crate::pki::random;

/// How long a node has to dial back.
const TICKET_LIFE: Duration = Duration::from_secs(10);
/// Most streams that wait for their node at once.
const WAITING_MAX: usize = 1024;

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
            match node::read(&mut stream).await.map_err(broken)? {
                Said::Data(bytes) if answer.len() + bytes.len() > USAGE_BYTES_MAX => {
                    return Err(broken(io::Error::other("it says too much")));
                }
                Said::Data(bytes) => answer.extend_from_slice(&bytes),
                Said::End(StreamEndV1::Done) => break,
                Said::End(end) => return Err(broken(io::Error::other(format!("{end:?}")))),
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
            let (uid, at) = (pod_uid(&request.target.pod_uid)?, request.target.node.clone());
            let stream = node::command_stream(uid, request);
            Ok(node::command(self.dial_back(&at, stream).await?))
        })
    }

    fn forward(&self, target: StreamTarget) -> BoxFuture<'_, Result<Arc<dyn Forwarder>, Status>> {
        Box::pin(async move {
            let stream = node::forward_stream(pod_uid(&target.pod_uid)?);
            Ok(node::forward(self.dial_back(&target.node, stream).await?))
        })
    }
}

fn pod_uid(text: &str) -> Result<wire::Uid, Status> {
    lower::uid(text).map_err(|err| Status::internal(err.to_string()))
}

impl LogSource for Streams {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogStream, Status>> {
        Box::pin(async move {
            let now_ms = crate::clock::timestamp().as_millisecond();
            let stream = node::log_stream(pod_uid(&request.pod_uid)?, &request, now_ms)?;
            let stream = self.dial_back(&request.node, stream).await?;
            node::log(stream, &format!("{}/{}", request.namespace, request.pod)).await
        })
    }
}

#[cfg(test)]
mod tests {
    use wire::stream::Frame;

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
