//! UDP: flows of datagrams between a client, and where its datagrams lead.
//!
//! ```text
//! client ─► captured, or a port of the node ─► flow ─┬─► its own connected socket
//!    ▲                                               └─► another node
//!    └──── raw socket, from the address that was asked ◄──── answers
//! ```
//!
//! Everything but waiting is done at once, on the task that received: a datagram
//! that cannot go on is dropped. A flow ends in silence, when its endpoint is one
//! no more, or when its endpoint refuses; the next datagram begins another.

mod flows;
mod packet;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::flows::{FLOWS_MAX, Flows};
use crate::balance::Active;
use crate::dial;
use crate::links::{Flow, QUESTIONS_MAX};
use crate::plane::{Plane, TRIES};
use crate::ports::Entry;
use crate::table::Protocol;
use crate::view::{Place, Port, Scope, View, Way};

/// Bytes of the largest datagram.
const DATAGRAM_BYTES: usize = 65_535;

/// How many datagrams a socket hands over before others have their turn.
const BURST: usize = 64;

/// How often silent flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// The protocol number of raw sockets that are given whole packets.
const RAW: i32 = 255;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; DATAGRAM_BYTES].into_boxed_slice());
    static PACKET: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static CONTROL: RefCell<Vec<u8>> = RefCell::new(nix::cmsg_space!(libc::sockaddr_in6));
}

/// A flow as a successor needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowState {
    client: SocketAddr,
    asked: SocketAddr,
    peer: Option<String>,
    to: SocketAddr,
    chosen: Option<(u64, Scope)>,
}

/// A flow that a successor takes over.
#[derive(Debug)]
pub(crate) struct MovingFlow {
    pub(crate) state: FlowState,
    pub(crate) socket: Arc<UdpSocket>,
}

/// Whose flow: the client, where it sends to, and the node that it is on, where that
/// is another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: SocketAddr,
    asked: SocketAddr,
    peer: Option<Arc<str>>,
}

/// A flow that is open.
#[derive(Debug)]
struct Open {
    out: Out,
    /// The port of the Service that it was chosen for.
    chosen: Option<(u64, Scope)>,
    active: Active,
}

#[derive(Debug)]
enum Out {
    Socket(Arc<UdpSocket>, AbortHandle),
    Peer(Arc<str>, Flow),
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Out::Socket(_, reader) = &self.out {
            reader.abort();
        }
    }
}

/// All flows, and the sockets that answer.
#[derive(Debug)]
pub(crate) struct Datagrams {
    flows: Mutex<Flows<Key, Arc<Open>>>,
    /// By what comes back from a peer: client and endpoint.
    by_answer: Mutex<HashMap<(SocketAddr, SocketAddr), Key>>,
    raw4: Socket,
    raw6: Option<Socket>,
    fragment: AtomicU32,
    questions: Arc<Semaphore>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Datagrams {
    /// # Errors
    /// `CAP_NET_RAW` is missing.
    pub(crate) fn new() -> io::Result<Self> {
        let raw = |domain| {
            Socket::new(domain, Type::RAW.nonblocking(), Some(socket2::Protocol::from(RAW)))
        };
        Ok(Self {
            flows: Mutex::new(Flows::new(FLOWS_MAX)),
            by_answer: Mutex::default(),
            raw4: raw(Domain::IPV4)?,
            raw6: raw(Domain::IPV6).ok(),
            fragment: AtomicU32::new(1),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        })
    }

    /// Ends the flows whose endpoints are no longer among those of their Service, and
    /// those of clients that it lets in no longer.
    pub(crate) fn follow(&self, view: &View) {
        let gone = lock(&self.flows).keep(|key, flow| {
            flow.chosen.is_none_or(|(id, scope)| {
                view.has(id, scope, flow.active.address())
                    && !view.is_shut_out(key.client.ip(), key.asked, Protocol::Udp)
            })
        });
        self.forget(&gone);
    }

    /// Ends all flows; those with a socket go on at a successor.
    pub(crate) fn hand_over(&self) -> Vec<MovingFlow> {
        lock(&self.by_answer).clear();
        let all = lock(&self.flows).take();
        let moving = all.into_iter().filter_map(|(key, open)| match &open.out {
            Out::Socket(socket, _) => Some(MovingFlow {
                state: FlowState {
                    client: key.client,
                    asked: key.asked,
                    peer: key.peer.as_deref().map(ToOwned::to_owned),
                    to: open.active.address(),
                    chosen: open.chosen,
                },
                socket: Arc::clone(socket),
            }),
            Out::Peer(..) => None,
        });
        moving.collect()
    }

    fn forget(&self, gone: &[Arc<Open>]) {
        let mut by_answer = lock(&self.by_answer);
        for flow in gone {
            if let Out::Peer(_, flow) = &flow.out {
                by_answer.remove(&(flow.source, flow.destination));
            }
        }
    }

    /// Sends an answer to a client, from the address that it asked.
    fn answer(&self, asked: SocketAddr, client: SocketAddr, bytes: &[u8]) {
        let raw = if client.is_ipv4() { Some(&self.raw4) } else { self.raw6.as_ref() };
        let Some(raw) = raw else { return };
        PACKET.with_borrow_mut(|whole| {
            if !packet::write(whole, asked, client, bytes) {
                return;
            }
            let to = SockAddr::from(SocketAddr::new(client.ip(), 0));
            match raw.send_to(whole, &to) {
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    let id = self.fragment.fetch_add(1, Ordering::Relaxed);
                    for piece in packet::fragments(whole, id) {
                        let _ = raw.send_to(&piece, &to);
                    }
                }
                Err(error) => tracing::debug!(%client, %asked, %error, "an answer is lost"),
                Ok(_) => (),
            }
        });
    }
}

/// Ends silent flows, and gives memory back, until it is aborted.
pub(crate) async fn sweep(plane: Arc<Plane>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let gone = lock(&plane.datagrams.flows).expire(Instant::now());
        plane.datagrams.forget(&gone);
        let has_freed = plane.has_freed.swap(false, Ordering::Relaxed);
        if plane.relays.has_shrunk() || has_freed {
            crate::heap::give_back();
        }
    }
}

/// Receives until it is aborted.
pub(crate) async fn receive(plane: Arc<Plane>, socket: Arc<UdpSocket>, entry: Entry) {
    loop {
        if let Err(error) = socket.readable().await {
            tracing::warn!(%error, "a socket for datagrams is broken");
            return;
        }
        for _ in 0..BURST {
            let received = BUFFER.with_borrow_mut(|buffer| {
                let (n, client, asked) =
                    socket.try_io(Interest::READABLE, || receive_one(&socket, buffer))?;
                arrived(&plane, &entry, client, asked, &buffer[..n]);
                Ok::<_, io::Error>(())
            });
            match received {
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => tracing::debug!(%error, "a datagram is lost"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// How long it is, who sent it, and where to.
fn receive_one(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    CONTROL.with_borrow_mut(|control| {
        let mut into = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut into,
            Some(control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let client = message.address.as_ref().and_then(plain).ok_or_else(invalid)?;
        let asked = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4OrigDstAddr(to) => Some(SocketAddr::from((
                Ipv4Addr::from(u32::from_be(to.sin_addr.s_addr)),
                u16::from_be(to.sin_port),
            ))),
            ControlMessageOwned::Ipv6OrigDstAddr(to) => Some(SocketAddr::from((
                Ipv6Addr::from(to.sin6_addr.s6_addr),
                u16::from_be(to.sin6_port),
            ))),
            _ => None,
        });
        Ok((message.bytes, client, asked.ok_or_else(invalid)?))
    })
}

fn plain(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port())))
}

/// A client's datagram.
fn arrived(plane: &Arc<Plane>, entry: &Entry, client: SocketAddr, asked: SocketAddr, bytes: &[u8]) {
    let key = Key { client, asked, peer: None };
    let mut tried = Vec::new();
    match send_on(plane, &key, bytes) {
        Some(Ok(())) => return,
        Some(Err(refused)) => tried.push(refused),
        None => (),
    }
    let view = plane.view();
    match entry.way(&view, Protocol::Udp, client.ip(), asked) {
        Some(Way::Names) => ask_names(plane, client, asked, bytes),
        Some(Way::Service(port, scope)) => {
            to_service(plane, &view, &key, (&port, scope), tried, bytes);
        }
        Some(Way::Direct(to, place)) if tried.is_empty() => {
            if view.allows(Protocol::Udp, client.ip(), to).is_ok() {
                let active = plane.begin(to);
                let _ = begin(plane, &view, &key, &place, active, None, bytes);
            }
        }
        Some(Way::Direct(..) | Way::Api(_) | Way::Refused) | None => (),
    }
}

/// Sends a datagram on by the flow that it belongs to. `None` where there is none;
/// an error with the endpoint's address where that refuses, and the flow is ended.
fn send_on(plane: &Plane, key: &Key, bytes: &[u8]) -> Option<Result<(), SocketAddr>> {
    let flow = Arc::clone(lock(&plane.datagrams.flows).sent(key, Instant::now())?);
    let sent = match &flow.out {
        Out::Socket(socket, _) => socket.try_send(bytes),
        Out::Peer(peer, flow) => {
            let is_sent = plane.parts().is_ok_and(|parts| parts.links.send(peer, *flow, bytes));
            tracing::trace!(%peer, is_sent, "a datagram");
            return Some(Ok(()));
        }
    };
    match sent {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let gone = lock(&plane.datagrams.flows).end(key);
            plane.datagrams.forget(gone.as_slice());
            Some(Err(flow.active.address()))
        }
        _ => Some(Ok(())),
    }
}

fn to_service(
    plane: &Arc<Plane>,
    view: &View,
    key: &Key,
    (port, scope): (&Port, Scope),
    mut tried: Vec<SocketAddr>,
    bytes: &[u8],
) {
    let client = key.client.ip();
    for refused in &tried {
        plane.reached(port, client, *refused, false);
    }
    let mut candidate = plane.pick(port, scope, client, &tried);
    if candidate.is_none() {
        // All have refused: perhaps they do no longer.
        tried.clear();
        candidate = plane.pick(port, scope, client, &tried);
    }
    while let Some(found) = candidate {
        let address = found.backend.address;
        if view.allows(Protocol::Udp, client, address).is_err() {
            return;
        }
        let active = found.backend.begin();
        let chosen = Some((port.id, scope));
        let begun = begin(plane, view, key, &found.place, active, chosen, bytes);
        plane.reached(port, client, address, begun.is_ok());
        tried.push(address);
        if begun.is_ok() || tried.len() >= TRIES {
            return;
        }
        candidate = plane.pick(port, scope, client, &tried);
    }
}

/// Begins a flow with its first datagram.
fn begin(
    plane: &Arc<Plane>,
    view: &View,
    key: &Key,
    place: &Place,
    active: Active,
    chosen: Option<(u64, Scope)>,
    bytes: &[u8],
) -> io::Result<()> {
    let to = active.address();
    let out = match place {
        Place::Peer(peer) => {
            let flow = Plane::flow(view, Protocol::Udp, key.client, to);
            // First, for the answer may be quick.
            let answer = (flow.source, to);
            lock(&plane.datagrams.by_answer).insert(answer, key.clone());
            if !plane.parts()?.links.send(peer, flow, bytes) {
                lock(&plane.datagrams.by_answer).remove(&answer);
                return Err(io::ErrorKind::NetworkUnreachable.into());
            }
            Out::Peer(Arc::clone(peer), flow)
        }
        Place::Pod | Place::Node | Place::World => {
            let source = plane.source(view, key.client.ip(), to.ip(), place);
            let socket = Arc::new(dial::flow(source, to)?);
            // Not through the runtime, which has not seen yet that it can be written.
            socket2::SockRef::from(&*socket).send(bytes)?;
            let reader =
                tokio::spawn(read_answers(Arc::clone(plane), Arc::clone(&socket), key.clone(), to));
            Out::Socket(socket, reader.abort_handle())
        }
    };
    let open = Arc::new(Open { out, chosen, active });
    let gone = lock(&plane.datagrams.flows).begin(key.clone(), open, Instant::now());
    plane.datagrams.forget(&gone);
    Ok(())
}

/// Goes on with a flow that a predecessor began.
pub(crate) fn take_over(plane: &Arc<Plane>, state: FlowState, socket: Arc<UdpSocket>) {
    let FlowState { client, asked, peer, to, chosen } = state;
    let key = Key { client, asked, peer: peer.map(Into::into) };
    let answers = read_answers(Arc::clone(plane), Arc::clone(&socket), key.clone(), to);
    let out = Out::Socket(socket, tokio::spawn(answers).abort_handle());
    let open = Arc::new(Open { out, chosen, active: plane.begin(to) });
    let gone = lock(&plane.datagrams.flows).begin(key, open, Instant::now());
    plane.datagrams.forget(&gone);
}

/// Brings answers back, until its flow ends.
async fn read_answers(plane: Arc<Plane>, socket: Arc<UdpSocket>, key: Key, from: SocketAddr) {
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        for _ in 0..BURST {
            let received = BUFFER.with_borrow_mut(|buffer| {
                let n = socket.try_recv(buffer)?;
                answered(&plane, &key, from, &buffer[..n]);
                Ok::<_, io::Error>(())
            });
            match received {
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It refuses: the next datagram looks for another.
                Err(error) => {
                    tracing::debug!(%from, %error, "a flow is refused");
                    let gone = lock(&plane.datagrams.flows).end(&key);
                    plane.datagrams.forget(gone.as_slice());
                    return;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn answered(plane: &Plane, key: &Key, from: SocketAddr, bytes: &[u8]) {
    lock(&plane.datagrams.flows).answered(key, Instant::now());
    match &key.peer {
        None => plane.datagrams.answer(key.asked, key.client, bytes),
        Some(peer) => {
            let is_external = plane.view().who(key.client.ip()) == crate::view::Who::Outside;
            let flow = Flow {
                protocol: Protocol::Udp,
                source: from,
                destination: key.client,
                is_external,
            };
            let _ = plane.parts().is_ok_and(|parts| parts.links.send(peer, flow, bytes));
        }
    }
}

/// Another node's datagram: an answer to one of ours, or one for a pod of ours.
pub(crate) fn from_peer(plane: &Arc<Plane>, peer: &str, flow: Flow, bytes: &[u8]) {
    let back = (flow.destination, flow.source);
    let answered = lock(&plane.datagrams.by_answer).get(&back).cloned();
    if let Some(key) = answered {
        lock(&plane.datagrams.flows).answered(&key, Instant::now());
        plane.datagrams.answer(key.asked, key.client, bytes);
        return;
    }
    let key = Key { client: flow.source, asked: flow.destination, peer: Some(peer.into()) };
    if let Some(Ok(())) = send_on(plane, &key, bytes) {
        return;
    }
    let view = plane.view();
    let place = view.place(flow.destination.ip());
    if !matches!(place, Place::Pod | Place::Node)
        || view.allows(Protocol::Udp, flow.source.ip(), flow.destination).is_err()
    {
        return;
    }
    let active = plane.begin(flow.destination);
    if let Err(error) = begin(plane, &view, &key, &place, active, None, bytes) {
        tracing::debug!(%peer, to = %flow.destination, %error, "a datagram is lost");
    }
}

fn ask_names(plane: &Arc<Plane>, client: SocketAddr, asked: SocketAddr, bytes: &[u8]) {
    let Ok(parts) = plane.parts() else { return };
    let Ok(permit) = Arc::clone(&plane.datagrams.questions).try_acquire_owned() else {
        tracing::debug!(%client, "too many questions wait for their answers");
        return;
    };
    let (names, plane, question) = (Arc::clone(&parts.names), Arc::clone(plane), bytes.to_vec());
    tokio::spawn(async move {
        if let Some(answer) = names.datagram(client, &question).await {
            plane.datagrams.answer(asked, client, &answer);
        }
        drop(permit);
    });
}
