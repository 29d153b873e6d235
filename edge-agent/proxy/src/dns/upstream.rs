//! Asks other name servers, for all names that are not the cluster's.
//!
//! ```text
//! question ─► cache ── fresh ─────────────────────────────► answer
//!               └─ else ─► flight (one a question) ─► server, server, … ─► cache
//!                             └─ none answers ─► what was true once, else nothing
//! ```
//!
//! Each question to a server has a socket, a port and a number of its own, and an
//! answer counts only if it comes from there, with that number and that question.
//! A server that does not answer twice is left out for a while, longer each time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Settings;
use super::cache::{Age, Cache, Question, Reply};
use super::message::{self, Rcode};

/// Most questions that are under way.
const FLIGHTS_MAX: usize = 512;

/// Longest answer over UDP that is read.
const UDP_READ_BYTES: usize = 4096;

/// Most datagrams that are no answer before a server counts as failed.
const STRAY_MAX: usize = 64;

/// After how many failures a server is left out.
const FAILURES_MAX: u32 = 2;

/// For how long it is left out at first, and at most.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What servers said; `None` where none could be asked.
type Outcome = Option<Arc<Reply>>;

/// The other name servers, and what they said.
#[derive(Debug)]
pub(super) struct Upstream {
    settings: Settings,
    random: SystemRandom,
    servers: Mutex<Vec<Server>>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Question, watch::Receiver<Option<Outcome>>>>,
}

#[derive(Clone, Copy, Debug)]
struct Server {
    address: IpAddr,
    /// In a row.
    n_failures: u32,
    left_out_until: Option<Instant>,
    /// It does not understand OPT records.
    is_plain: bool,
}

impl Upstream {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            random: SystemRandom::new(),
            servers: Mutex::default(),
            cache: Mutex::new(Cache::new(settings.cache_entries_max, settings.cache_bytes_max)),
            flights: Mutex::default(),
            settings,
        }
    }

    /// Asks these from now on, the first first.
    pub(super) fn set_servers(&self, addresses: &[IpAddr]) {
        let mut servers = lock(&self.servers);
        let known = std::mem::take(&mut *servers);
        for address in addresses {
            if servers.iter().any(|server| server.address == *address) {
                continue;
            }
            let server = known.iter().find(|server| server.address == *address);
            servers.push(server.copied().unwrap_or(Server {
                address: *address,
                n_failures: 0,
                left_out_until: None,
                is_plain: false,
            }));
        }
    }

    /// What is known and true.
    pub(super) fn fresh(&self, question: &Question) -> Option<(Arc<Reply>, Age)> {
        let known = lock(&self.cache).get(question, Instant::now());
        known.filter(|(_, age)| matches!(age, Age::Fresh(_)))
    }

    /// Answers a question; `None` where that cannot be done now.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        question: &Question,
    ) -> Option<(Arc<Reply>, Age)> {
        let known = lock(&self.cache).get(question, Instant::now());
        if let Some((reply, age @ Age::Fresh(_))) = known {
            return Some((reply, age));
        }
        let Some(mut flight) = self.fly(question) else { return known };
        let landed = async {
            // An error means that the task is gone, as at the end of the program.
            flight.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone()?)
        };
        let now = Age::Fresh(Duration::ZERO);
        let Some(stale) = known else { return landed.await.map(|reply| (reply, now)) };
        if self.is_cut_off() {
            return Some(stale);
        }
        match timeout(self.settings.stale_after, landed).await {
            Ok(Some(reply)) if is_definite(&reply) => Some((reply, now)),
            _ => Some(stale),
        }
    }

    /// The question under way, or on its way now; `None` where too many are.
    fn fly(self: &Arc<Self>, question: &Question) -> Option<watch::Receiver<Option<Outcome>>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(question) {
            return Some(flight.clone());
        }
        if flights.len() >= FLIGHTS_MAX {
            return None;
        }
        let (land, flight) = watch::channel(None);
        flights.insert(question.clone(), flight.clone());
        drop(flights);
        let (upstream, question) = (Arc::clone(self), question.clone());
        // A task of its own, since more than one may wait for it, and any of them
        // may go away. It ends by itself: see `Settings::deadline`.
        tokio::spawn(async move {
            let outcome = upstream.ask(&question).await.map(Arc::new);
            if let Some(reply) = &outcome {
                lock(&upstream.cache).put(&question, reply, Instant::now());
            }
            lock(&upstream.flights).remove(&question);
            land.send_replace(Some(outcome));
        });
        Some(flight)
    }

    /// Whether no server has answered of late.
    fn is_cut_off(&self) -> bool {
        lock(&self.servers).iter().all(|server| server.n_failures >= FAILURES_MAX)
    }

    /// Asks one server after the other, and those that were silent once more.
    async fn ask(&self, question: &Question) -> Option<Reply> {
        let deadline = Instant::now() + self.settings.deadline;
        let (mut servers, n_rounds) = self.choose(Instant::now());
        let mut refusal = None;
        for round in 0..n_rounds {
            let mut silent = Vec::new();
            for server in servers {
                let left = deadline.saturating_duration_since(Instant::now());
                let wait = self.settings.attempt * (1 << round);
                if left.is_zero() {
                    return refusal;
                }
                match timeout(wait.min(left), self.ask_server(server, question)).await {
                    Ok(Ok(reply)) => {
                        self.note(server.address, true);
                        if is_definite(&reply) {
                            return Some(reply);
                        }
                        // Another one may know better.
                        refusal = Some(reply);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(server = %server.address, %error, "name server failed");
                        self.note(server.address, false);
                        silent.push(server);
                    }
                    Err(_) => {
                        tracing::debug!(server = %server.address, "name server is silent");
                        self.note(server.address, false);
                        silent.push(server);
                    }
                }
            }
            servers = silent;
        }
        refusal
    }

    /// Whom to ask, in order, and how often. One that is left out is tried again with
    /// one question when its time has passed; where all are left out, all are asked.
    fn choose(&self, now: Instant) -> (Vec<Server>, u32) {
        let mut servers = lock(&self.servers);
        let mut chosen = Vec::new();
        let mut is_hopeless = true;
        for server in servers.iter_mut() {
            match server.left_out_until {
                Some(until) if now < until => continue,
                Some(_) => server.left_out_until = Some(now + backoff(server.n_failures)),
                None => is_hopeless = false,
            }
            chosen.push(*server);
        }
        if chosen.is_empty() {
            chosen.clone_from(&servers);
        }
        (chosen, if is_hopeless { 1 } else { 2 })
    }

    /// Remembers how a server did.
    fn note(&self, address: IpAddr, is_well: bool) {
        let mut servers = lock(&self.servers);
        let Some(server) = servers.iter_mut().find(|server| server.address == address) else {
            return;
        };
        if is_well {
            if server.left_out_until.is_some() {
                tracing::info!(server = %address, "name server answers again");
            }
            (server.n_failures, server.left_out_until) = (0, None);
            return;
        }
        server.n_failures = server.n_failures.saturating_add(1);
        if server.n_failures >= FAILURES_MAX {
            if server.left_out_until.is_none() {
                tracing::warn!(server = %address, "name server does not answer");
            }
            server.left_out_until = Some(Instant::now() + backoff(server.n_failures));
        }
    }

    async fn ask_server(&self, server: Server, question: &Question) -> io::Result<Reply> {
        let mut is_plain = server.is_plain;
        loop {
            let reply = self.ask_udp(server.address, question, is_plain).await?;
            if !is_plain && matches!(reply.rcode(), Rcode::FORMAT | Rcode::NOT_IMPLEMENTED) {
                is_plain = true;
                continue;
            }
            if is_plain && !server.is_plain && is_definite(&reply) {
                let mut servers = lock(&self.servers);
                for known in servers.iter_mut().filter(|known| known.address == server.address) {
                    known.is_plain = true;
                }
            }
            if !reply.is_truncated() {
                return Ok(reply);
            }
            // A part is better than nothing where TCP does not get through.
            let whole = self.ask_tcp(server.address, question, is_plain);
            let whole = timeout(self.settings.attempt / 2, whole).await;
            return Ok(whole.ok().and_then(Result::ok).unwrap_or(reply));
        }
    }

    async fn ask_udp(
        &self,
        server: IpAddr,
        question: &Question,
        is_plain: bool,
    ) -> io::Result<Reply> {
        let any: IpAddr = match server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        // From now on the kernel drops what others send.
        socket.connect(SocketAddr::new(server, self.settings.upstream_port)).await?;
        let (id, text) = self.question(question, is_plain)?;
        socket.send(&text).await?;
        let mut buffer = vec![0; UDP_READ_BYTES];
        for _ in 0..STRAY_MAX {
            let n_bytes = socket.recv(&mut buffer).await?;
            if let Some(reply) = Reply::read(buffer[..n_bytes].to_vec(), id, question) {
                return Ok(reply);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "only datagrams that are no answer"))
    }

    async fn ask_tcp(
        &self,
        server: IpAddr,
        question: &Question,
        is_plain: bool,
    ) -> io::Result<Reply> {
        let to = SocketAddr::new(server, self.settings.upstream_port);
        let mut stream = TcpStream::connect(to).await?;
        let (id, text) = self.question(question, is_plain)?;
        write_message(&mut stream, &text).await?;
        let n_bytes = stream.read_u16().await?;
        let mut answer = vec![0; n_bytes.into()];
        stream.read_exact(&mut answer).await?;
        let no_answer = || io::Error::new(io::ErrorKind::InvalidData, "what came is no answer");
        Reply::read(answer, id, question).ok_or_else(no_answer)
    }

    fn question(&self, question: &Question, is_plain: bool) -> io::Result<(u16, Vec<u8>)> {
        let mut id = [0; 2];
        let no_random = |_| io::Error::other("the kernel gives no random numbers");
        self.random.fill(&mut id).map_err(no_random)?;
        let id = u16::from_be_bytes(id);
        let wishes = (!is_plain).then_some(question.dnssec_ok);
        let is_unchecked = question.checking_disabled;
        Ok((id, message::question(id, &question.name, question.kind, is_unchecked, wishes)))
    }
}

/// Writes a message with its length before it, as one segment.
pub(super) async fn write_message(
    stream: &mut (impl AsyncWriteExt + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let n_bytes = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend(n_bytes.to_be_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Whether another server would not say anything else.
fn is_definite(reply: &Reply) -> bool {
    matches!(reply.rcode(), Rcode::OK | Rcode::NO_NAME)
}

fn backoff(n_failures: u32) -> Duration {
    let [first, longest] = BACKOFF;
    let n_doublings = n_failures.saturating_sub(FAILURES_MAX).min(8);
    (first * (1 << n_doublings)).min(longest)
}

/// A lock that a panic elsewhere does not take away: the values are whole at all
/// times.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
