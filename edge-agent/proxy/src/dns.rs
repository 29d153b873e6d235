//! The cluster's name server, one on each node.
//!
//! ```text
//!            ┌─ name of the cluster ─► zone (the table) ─┬─► answer
//! question ──┤                                           └─ other name of a name elsewhere ─┐
//!            └─ any other name ─► upstream: cache, or the node's own name servers ◄─────────┘
//! ```
//!
//! [`Dns`] takes what arrived and returns what to send; the plane owns the sockets
//! and says who may ask. A new table is swapped in under it: no socket is made
//! anew, no question is lost. It asks no name server that would ask it in turn.

mod cache;
mod message;
mod name;
mod upstream;
mod zone;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::control::Conflict;
use crate::links::{BoxFuture, Connection, Names, QUESTIONS_MAX};
use crate::table::{Net, Node, Table};
use cache::{Age, Question, Reply};
use message::{CLASS_IN, Data, HEADER_BYTES, Query, Rcode, Record, Section, Writer, flag, kind};
use upstream::Upstream;
use zone::{Answer, Index};

/// Longest question over UDP that is read.
const QUESTION_BYTES_MAX: usize = 4096;

/// How it behaves. The default is right for nodes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where other name servers listen.
    pub upstream_port: u16,
    /// How long one of them has for its answer; twice that when it is asked again.
    pub attempt: Duration,
    /// How long all of them have.
    pub deadline: Duration,
    /// After how long an answer that was true once is given instead.
    pub stale_after: Duration,
    /// Most answers of others that are kept.
    pub cache_entries_max: usize,
    /// Most bytes of them.
    pub cache_bytes_max: usize,
    /// After how long without a question a TCP connection is closed.
    pub tcp_idle: Duration,
    /// Most TCP connections.
    pub tcp_connections_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstream_port: 53,
            // A client asks again after 2 s (`options timeout:2` in the pods' files).
            attempt: Duration::from_millis(800),
            deadline: Duration::from_secs(4),
            stale_after: Duration::from_millis(1500),
            cache_entries_max: 4096,
            cache_bytes_max: 2 << 20,
            tcp_idle: Duration::from_secs(10),
            tcp_connections_max: 128,
        }
    }
}

/// The name server. Copies are the same one.
#[derive(Clone, Debug)]
pub struct Dns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    index: RwLock<Arc<Index>>,
    upstream: Arc<Upstream>,
    n_answers: AtomicUsize,
    tcp: Arc<Semaphore>,
}

/// What can be said without asking anybody.
enum Known {
    Answer(Vec<u8>),
    /// This has to be asked; the answers so far, where it is another name for that.
    Ask(Question, Option<Answer>),
}

impl Dns {
    /// One that knows no names yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            index: RwLock::new(Arc::new(Index::new(Arc::default()))),
            upstream: Arc::new(Upstream::new(settings)),
            n_answers: AtomicUsize::new(0),
            tcp: Arc::new(Semaphore::new(settings.tcp_connections_max)),
            settings,
        }))
    }

    /// Answers from this table from now on. Returns what of it cannot be followed.
    pub fn set_table(&self, table: Arc<Table>) -> Vec<Conflict> {
        let (upstreams, conflicts) = upstreams(&table.node);
        self.0.upstream.set_servers(&upstreams);
        let index = Arc::new(Index::new(table));
        *self.0.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        conflicts
    }

    /// Answers a question, a message without length; `None` where it deserves no
    /// answer.
    pub async fn answer(&self, question: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let query = match Query::read(question) {
            Ok(query) => query,
            Err(refusal) => return refusal,
        };
        let (asked, so_far) = match self.known(&query, over_tcp) {
            Known::Answer(answer) => return Some(answer),
            Known::Ask(asked, so_far) => (asked, so_far),
        };
        let resolved = self.0.upstream.resolve(&asked).await;
        Some(told(&query, over_tcp, so_far, resolved))
    }

    /// As [`Self::answer`], where nobody has to be asked for it; the outer `None`
    /// where somebody has.
    #[must_use]
    pub fn answer_at_once(&self, question: &[u8], over_tcp: bool) -> Option<Option<Vec<u8>>> {
        let query = match Query::read(question) {
            Ok(query) => query,
            Err(refusal) => return Some(refusal),
        };
        match self.known(&query, over_tcp) {
            Known::Answer(answer) => Some(Some(answer)),
            Known::Ask(..) => None,
        }
    }

    /// Answers what comes over a stream, one message after the other, each with its
    /// length before it; until the stream ends or nothing comes for a while. Closes
    /// it at once where there are too many.
    pub async fn serve_tcp(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Ok(_place) = self.0.tcp.try_acquire() else { return };
        let idle = self.0.settings.tcp_idle;
        loop {
            let question = match timeout(idle, read_message(&mut stream)).await {
                Ok(Ok(question)) if question.len() >= HEADER_BYTES => question,
                _ => return,
            };
            let Some(answer) = self.answer(&question, true).await else { return };
            let written = timeout(idle, upstream::write_message(&mut stream, &answer)).await;
            if !matches!(written, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Answers what comes to a socket; for where the plane catches no packets.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn serve_udp(&self, socket: Arc<UdpSocket>) -> io::Error {
        let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
        let mut buffer = vec![0; QUESTION_BYTES_MAX];
        loop {
            let (n_bytes, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // Of an answer that was sent before.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            let question = &buffer[..n_bytes];
            if let Some(answer) = self.answer_at_once(question, false) {
                if let Some(answer) = answer {
                    send(&socket, client, &answer).await;
                }
                continue;
            }
            // Beyond that the client asks again.
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let (dns, socket, question) = (self.clone(), Arc::clone(&socket), question.to_vec());
            tokio::spawn(async move {
                if let Some(answer) = dns.answer(&question, false).await {
                    send(&socket, client, &answer).await;
                }
                drop(place);
            });
        }
    }

    fn known(&self, query: &Query<'_>, over_tcp: bool) -> Known {
        let refuse = |rcode| Known::Answer(Writer::new(query, over_tcp, 0, rcode).finish());
        if query.edns.is_some_and(|edns| edns.version != 0) {
            return refuse(Rcode::BAD_VERSION);
        }
        if query.kind == kind::OPT {
            return refuse(Rcode::FORMAT);
        }
        // Nobody gets a whole zone, nor what is no name of the internet.
        if query.class != CLASS_IN || matches!(query.kind, kind::AXFR | kind::IXFR) {
            return refuse(Rcode::REFUSED);
        }
        let index = Arc::clone(&self.0.index.read().unwrap_or_else(PoisonError::into_inner));
        let rotation = self.0.n_answers.fetch_add(1, Ordering::Relaxed);
        let Some(mut answer) = index.lookup(&query.name, query.kind, rotation) else {
            let asked = Question::of(query);
            return match self.0.upstream.fresh(&asked) {
                Some((reply, age)) => Known::Answer(reply.for_client(query, over_tcp, age)),
                None => Known::Ask(asked, None),
            };
        };
        let Some(elsewhere) = answer.elsewhere.take() else {
            return Known::Answer(written(query, over_tcp, &answer));
        };
        let asked = Question { name: elsewhere, ..Question::of(query) };
        match self.0.upstream.fresh(&asked) {
            Some(reply) => Known::Answer(told(query, over_tcp, Some(answer), Some(reply))),
            None => Known::Ask(asked, Some(answer)),
        }
    }
}

impl Names for Dns {
    fn datagram<'a>(
        &'a self,
        _client: SocketAddr,
        question: &'a [u8],
    ) -> BoxFuture<'a, Option<Vec<u8>>> {
        match self.answer_at_once(question, false) {
            Some(answer) => Box::pin(std::future::ready(answer)),
            None => Box::pin(self.answer(question, false)),
        }
    }

    fn stream(&self, _client: SocketAddr, stream: Box<dyn Connection>) -> BoxFuture<'_, ()> {
        Box::pin(self.serve_tcp(stream))
    }
}

/// What another server said, behind what is known here.
fn told(
    query: &Query<'_>,
    over_tcp: bool,
    so_far: Option<Answer>,
    resolved: Option<(Arc<Reply>, Age)>,
) -> Vec<u8> {
    let Some(mut answer) = so_far else {
        return match resolved {
            Some((reply, age)) => reply.for_client(query, over_tcp, age),
            None => Writer::new(query, over_tcp, 0, Rcode::SERVER_FAILED).finish(),
        };
    };
    let Some((reply, age)) = resolved else {
        answer.rcode = Rcode::SERVER_FAILED;
        return written(query, over_tcp, &answer);
    };
    answer.rcode = reply.rcode();
    let (message, records) = reply.answers();
    answer.answers.extend(records.filter(|record| record.class == CLASS_IN).filter_map(|record| {
        let (owner, _) = name::Name::read(message, record.at)?;
        let data = Data::copied(message, &record)?;
        Some(Record { owner: Some(owner), ttl: age.ttl_s(record.ttl).min(zone::TTL_S), data })
    }));
    written(query, over_tcp, &answer)
}

fn written(query: &Query<'_>, over_tcp: bool, answer: &Answer) -> Vec<u8> {
    let mut writer = Writer::new(query, over_tcp, flag::AUTHORITATIVE, answer.rcode);
    writer.answers(&answer.answers);
    if let Some(record) = &answer.authority {
        writer.push(Section::Authority, record);
    }
    writer.additional(&answer.additional);
    writer.finish()
}

/// The name servers that can be asked, and what speaks against the others: an
/// answer of ours would be a question to us.
fn upstreams(node: &Node) -> (Vec<IpAddr>, Vec<Conflict>) {
    let mut conflicts = Vec::new();
    let mut usable = Vec::new();
    let is_gateway = |address| node.pod_cidrs.iter().any(|net| gateway(net) == address);
    for address in &node.upstreams {
        let service = node.service_cidrs.iter().find(|net| net.contains(*address));
        let problem = if node.dns_addresses.contains(address) {
            "is the cluster's own".to_owned()
        } else if let Some(net) = service {
            format!("is in the range of Services {net}")
        } else if is_gateway(*address) {
            "is this node's address for its pods".to_owned()
        } else if address.is_unspecified() || address.is_multicast() {
            "is no address of a server".to_owned()
        } else {
            usable.push(*address);
            continue;
        };
        let message = format!(
            "name server {address} {problem} and is not asked; give the node another one in \
             /etc/resolv.conf"
        );
        tracing::warn!("{message}");
        conflicts.push(Conflict { message, ..Conflict::default() });
    }
    (usable, conflicts)
}

/// A node's own address in the range of its pods.
fn gateway(net: &Net) -> IpAddr {
    match net.address() {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().saturating_add(1).into()),
    }
}

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let n_bytes = stream.read_u16().await?;
    let mut message = Vec::new();
    // As much as came is kept, not as much as was announced.
    stream.take(n_bytes.into()).read_to_end(&mut message).await?;
    if message.len() < usize::from(n_bytes) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

/// Sends an answer, best effort: the client asks again.
async fn send(socket: &UdpSocket, client: SocketAddr, answer: &[u8]) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "an answer could not be sent");
    }
}
