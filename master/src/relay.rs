//! Passes bytes between two nodes that do not reach each other.
//!
//! ```text
//! A ── Reach B ──► ticket ── command ──► B
//!                                        │
//! A ◄═════════════ splice ══════════════ B ── Fetch, ticket
//! ```
//!
//! Only enrolled nodes get here, each as itself: A's name is what its certificate
//! says, and a ticket is good once, for the node it was made for, and for
//! [`TICKET_LIFE`]. What passes is TLS between the two nodes, verified by both; this
//! can hold it up or cut it, and reads nothing.
//!
//! A slow receiver slows its sender: there is one small buffer each way.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, info};
use wire::command::CommandV1;
use wire::relay::{HELLO_BYTES_MAX, RelayAnswer, RelayHelloV1};

use crate::pki::random;
use crate::streams::Commands;

/// How long a node has to say what it wants, and the other to come.
const TICKET_LIFE: Duration = Duration::from_secs(10);
/// Connections of one node at once, those it asked for and those it was asked for.
const PER_NODE_MAX: usize = 32;
/// Connections at once.
const IN_ALL_MAX: usize = 1024;
/// Bytes that wait for a receiver, each way.
const BUFFER_BYTES: usize = 16 << 10;
/// A connection on which nothing has moved for so long is over. The nodes say
/// something more often while they are there.
const IDLE: Duration = Duration::from_secs(300);

type Ticket = [u8; 16];

/// A connection of a node, as it arrives.
type Fetched = Box<dyn Stream>;

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connections between nodes.
pub(crate) struct Relay {
    commands: Commands,
    state: Mutex<State>,
    n_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: HashMap<Ticket, Waiting>,
    /// Connections of each node.
    used: HashMap<String, usize>,
    in_all: usize,
}

/// A node that was asked to come.
struct Waiting {
    node: String,
    fetched: oneshot::Sender<Fetched>,
}

impl Relay {
    pub(crate) fn new(commands: Commands) -> Arc<Self> {
        Arc::new(Self { commands, state: Mutex::default(), n_bytes: AtomicU64::new(0) })
    }

    /// Serves a relay connection of `node`, to its end.
    pub(crate) async fn serve(
        &self,
        node: &str,
        mut stream: impl Stream + 'static,
    ) -> io::Result<()> {
        let late = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
        match timeout(TICKET_LIFE, read_hello(&mut stream)).await.map_err(late)?? {
            RelayHelloV1::Fetch { ticket } => self.fetch(node, ticket, stream).await,
            RelayHelloV1::Reach { node: wanted } => self.reach(node, &wanted, stream).await,
        }
    }

    /// Hands the connection of a node that was asked to come to who asked.
    async fn fetch(
        &self,
        node: &str,
        ticket: Ticket,
        mut stream: impl Stream + 'static,
    ) -> io::Result<()> {
        let waiting = {
            let mut state = self.state();
            // A node cannot use what was given to another.
            let is_own = state.waiting.get(&ticket).is_some_and(|waiting| waiting.node == node);
            if is_own { state.waiting.remove(&ticket) } else { None }
        };
        match waiting {
            Some(waiting) => {
                let gone = |_stream| io::Error::other("nobody waits for it any more");
                waiting.fetched.send(Box::new(stream)).map_err(gone)
            }
            None => answer(&mut stream, RelayAnswer::UnknownTicket).await,
        }
    }

    async fn reach(&self, node: &str, wanted: &str, mut stream: impl Stream) -> io::Result<()> {
        if node == wanted {
            return answer(&mut stream, RelayAnswer::NotConnected).await;
        }
        let Some(_permit) = self.take(node, wanted) else {
            debug!(node, wanted, "too much is relayed already");
            return answer(&mut stream, RelayAnswer::Busy).await;
        };
        let mut other = match self.call(node, wanted).await {
            Ok(other) => other,
            Err(why) => return answer(&mut stream, why).await,
        };
        answer(&mut stream, RelayAnswer::Connected).await?;
        answer(&mut other, RelayAnswer::Connected).await?;
        info!(node, wanted, "relayed: they do not reach each other directly");
        let moved = splice(stream, other).await;
        let n_bytes = self.n_bytes.fetch_add(moved, Ordering::Relaxed) + moved;
        info!(node, wanted, bytes = moved, bytes_in_all = n_bytes, "relayed no more");
        Ok(())
    }

    /// Asks a node to come, and waits for it.
    async fn call(&self, from: &str, wanted: &str) -> Result<Fetched, RelayAnswer> {
        let ticket: Ticket = random();
        let (fetched, fetching) = oneshot::channel();
        let waiting = Waiting { node: wanted.to_owned(), fetched };
        self.state().waiting.insert(ticket, waiting);
        // Also where who asked goes meanwhile.
        let _forget = Forget { relay: self, ticket };
        let (sent, is_sent) = oneshot::channel();
        let command = CommandV1::Relay { from: from.to_owned(), ticket };
        let sending = self.commands.send((wanted.to_owned(), command, sent)).await;
        if sending.is_err() || !is_sent.await.unwrap_or(false) {
            return Err(RelayAnswer::NotConnected);
        }
        match timeout(TICKET_LIFE, fetching).await {
            Ok(Ok(other)) => Ok(other),
            _ => Err(RelayAnswer::TimedOut),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection, where neither of the two nodes has too many.
    fn take<'a>(&'a self, a: &str, b: &str) -> Option<Permit<'a>> {
        let mut state = self.state();
        let used = |state: &State, node: &str| state.used.get(node).copied().unwrap_or(0);
        if state.in_all >= IN_ALL_MAX
            || used(&state, a) >= PER_NODE_MAX
            || used(&state, b) >= PER_NODE_MAX
        {
            return None;
        }
        state.in_all += 1;
        let nodes = [a.to_owned(), b.to_owned()];
        nodes.iter().for_each(|node| *state.used.entry(node.clone()).or_default() += 1);
        Some(Permit { relay: self, nodes })
    }
}

/// A connection between two nodes; counted until it is dropped.
struct Permit<'a> {
    relay: &'a Relay,
    nodes: [String; 2],
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.relay.state();
        state.in_all -= 1;
        for node in &self.nodes {
            let Some(used) = state.used.get_mut(node) else { continue };
            *used -= 1;
            if *used == 0 {
                state.used.remove(node);
            }
        }
    }
}

/// Takes a ticket back.
struct Forget<'a> {
    relay: &'a Relay,
    ticket: Ticket,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.relay.state().waiting.remove(&self.ticket);
    }
}

async fn read_hello(stream: &mut impl Stream) -> io::Result<RelayHelloV1> {
    let length = usize::from(stream.read_u16_le().await?);
    if length > HELLO_BYTES_MAX {
        return Err(io::Error::other(format!("a hello of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Says how it is. Who is refused reads the answer, then the end.
async fn answer(stream: &mut impl Stream, answer: RelayAnswer) -> io::Result<()> {
    stream.write_all(&[answer as u8]).await?;
    stream.flush().await?;
    if answer == RelayAnswer::Connected { Ok(()) } else { stream.shutdown().await }
}

/// Passes bytes on until either side ends, or nothing moves any more. Returns how
/// many it was.
async fn splice(a: impl Stream, b: impl Stream) -> u64 {
    let n_bytes = AtomicU64::new(0);
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let watch = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(IDLE).await;
            let now = n_bytes.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    };
    // TLS inside says goodbye by itself; half a connection is of no use to it.
    tokio::select! {
        _ended = pass(&mut a_read, &mut b_write, &n_bytes) => {}
        _ended = pass(&mut b_read, &mut a_write, &n_bytes) => {}
        () = watch => {}
    }
    n_bytes.load(Ordering::Relaxed)
}

async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    n_bytes: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n_read = from.read(&mut buffer).await?;
        if n_read == 0 {
            to.flush().await?;
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n_read]).await?;
        to.flush().await?;
        n_bytes.fetch_add(n_read as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;

    use super::*;

    type Commanded = mpsc::Receiver<(String, CommandV1, oneshot::Sender<bool>)>;

    fn relay() -> (Arc<Relay>, Commanded) {
        let (commands, commanded) = mpsc::channel(8);
        (Relay::new(commands), commanded)
    }

    /// A connection of a node that says this.
    async fn dial(relay: &Arc<Relay>, node: &str, hello: &RelayHelloV1) -> DuplexStream {
        let (mut near, far) = tokio::io::duplex(64 << 10);
        let bytes = postcard::to_stdvec(hello).unwrap();
        near.write_u16_le(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        near.write_all(&bytes).await.unwrap();
        let (relay, node) = (relay.clone(), node.to_owned());
        tokio::spawn(async move { relay.serve(&node, far).await });
        near
    }

    fn reach(node: &str) -> RelayHelloV1 {
        RelayHelloV1::Reach { node: node.into() }
    }

    /// What the node is commanded, which is connected or not.
    async fn commanded(commands: &mut Commanded, is_connected: bool) -> (String, Ticket) {
        let (node, command, sent) = commands.recv().await.unwrap();
        sent.send(is_connected).unwrap();
        let CommandV1::Relay { from, ticket } = command else { panic!("{command:?}") };
        (format!("{from} -> {node}"), ticket)
    }

    #[tokio::test]
    async fn two_nodes_are_connected_and_end_together() {
        let (relay, mut commands) = relay();
        let mut a = dial(&relay, "a", &reach("b")).await;
        let (what, ticket) = commanded(&mut commands, true).await;
        assert_eq!(what, "a -> b");
        let mut b = dial(&relay, "b", &RelayHelloV1::Fetch { ticket }).await;
        assert_eq!((a.read_u8().await.unwrap(), b.read_u8().await.unwrap()), (0, 0));
        a.write_all(b"to b").await.unwrap();
        b.write_all(b"to a").await.unwrap();
        let (mut at_a, mut at_b) = ([0; 4], [0; 4]);
        a.read_exact(&mut at_a).await.unwrap();
        b.read_exact(&mut at_b).await.unwrap();
        assert_eq!((&at_a, &at_b), (b"to a", b"to b"));
        assert_eq!(relay.state().used.len(), 2);
        drop(a);
        assert_eq!(b.read(&mut at_b).await.unwrap(), 0);
        drop(b);
        while relay.state().in_all > 0 {
            tokio::task::yield_now().await;
        }
        assert!(relay.state().used.is_empty() && relay.state().waiting.is_empty());
        assert_eq!(relay.n_bytes.load(Ordering::Relaxed), 8);
    }

    #[tokio::test]
    async fn a_ticket_is_good_for_its_node_and_once() {
        let (relay, mut commands) = relay();
        let mut a = dial(&relay, "a", &reach("b")).await;
        let (_, ticket) = commanded(&mut commands, true).await;
        for (node, ticket) in [("c", ticket), ("a", ticket), ("b", [0; 16])] {
            let mut other = dial(&relay, node, &RelayHelloV1::Fetch { ticket }).await;
            assert_eq!(other.read_u8().await.unwrap(), 4, "{node}");
        }
        let mut b = dial(&relay, "b", &RelayHelloV1::Fetch { ticket }).await;
        assert_eq!((b.read_u8().await.unwrap(), a.read_u8().await.unwrap()), (0, 0));
        let mut again = dial(&relay, "b", &RelayHelloV1::Fetch { ticket }).await;
        assert_eq!(again.read_u8().await.unwrap(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_not_there_or_does_not_come_is_told_of() {
        let (relay, mut commands) = relay();
        let mut a = dial(&relay, "a", &reach("b")).await;
        commanded(&mut commands, false).await;
        assert_eq!(a.read_u8().await.unwrap(), 1);
        let mut a = dial(&relay, "a", &reach("b")).await;
        let (_, ticket) = commanded(&mut commands, true).await;
        assert_eq!(a.read_u8().await.unwrap(), 2);
        let mut late = dial(&relay, "b", &RelayHelloV1::Fetch { ticket }).await;
        assert_eq!(late.read_u8().await.unwrap(), 4);
        let mut itself = dial(&relay, "a", &reach("a")).await;
        assert_eq!(itself.read_u8().await.unwrap(), 1);
        // One that says nothing is not waited for.
        let (mut near, far) = tokio::io::duplex(64);
        assert!(relay.serve("a", far).await.is_err());
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_node_has_so_many_and_no_more() {
        let (relay, mut commands) = relay();
        let mut open = Vec::new();
        for _ in 0..PER_NODE_MAX {
            open.push(dial(&relay, "a", &reach("b")).await);
            commanded(&mut commands, true).await;
        }
        for (node, wanted) in [("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")] {
            let mut one_more = dial(&relay, node, &reach(wanted)).await;
            assert_eq!(one_more.read_u8().await.unwrap(), 3, "{node}");
        }
        dial(&relay, "c", &reach("d")).await;
        assert_eq!(commanded(&mut commands, true).await.0, "c -> d");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_move_any_more_is_ended() {
        let (mut a, a_far) = tokio::io::duplex(64);
        let (mut b, b_far) = tokio::io::duplex(64);
        let splicing = tokio::spawn(splice(a_far, b_far));
        for _ in 0..10 {
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            a.write_all(b"x").await.unwrap();
            b.read_u8().await.unwrap();
        }
        assert_eq!(splicing.await.unwrap(), 10);
        assert_eq!(a.read(&mut [0]).await.unwrap(), 0);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut near, mut far) = tokio::io::duplex(1 << 20);
                near.write_all(&bytes).await.unwrap();
                drop(near);
                let _ = read_hello(&mut far).await;
            });
        }
    }
}
