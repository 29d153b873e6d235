//! Connections and datagrams over links: those that this node opens, and those
//! that its peers send.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Core;
use super::guard;
use super::peer::Handle;
use super::preface::{Answer, decode_datagram, read_answer, read_flow, write_answer, write_flow};
use super::pump::pump;
use super::session::{Counted, Session};
use crate::links::{Connection, Flow};
use crate::table::Protocol;

/// Time to find a way, open, and hear from the far end that it is connected.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Links that are tried for one connection.
const TRIES: usize = 3;
/// A link on which nothing at all is heard for so long, and some round trips, may
/// be dead.
const SILENCE: Duration = Duration::from_secs(2);
/// Time for a peer to say which flow a stream is.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a pod to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection over a link.
enum Failed {
    /// The peer has answered, or the link is full: another link changes nothing.
    Answered(io::Error),
    /// The link is dead, or seems so.
    Lost(io::Error),
}

/// Connects to a flow's destination on a peer.
pub(super) async fn open(handle: &Handle, flow: Flow) -> io::Result<Box<dyn Connection>> {
    let deadline = Instant::now() + OPEN_TIMEOUT;
    let mut lost = Vec::new();
    loop {
        let session = handle.session(&lost, deadline).await?;
        let id = session.id;
        match open_over(session, &handle.name, flow, deadline).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(Failed::Answered(error)) => return Err(error),
            Err(Failed::Lost(error)) => {
                handle.suspect(id).await;
                lost.push(id);
                if lost.len() >= TRIES {
                    return Err(error);
                }
            }
        }
    }
}

async fn open_over(
    session: Arc<Session>,
    peer: &str,
    flow: Flow,
    deadline: Instant,
) -> Result<Counted, Failed> {
    let before = session.measures();
    let stream = session.carrier.open().await.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => Failed::Answered(error),
        _ => Failed::Lost(error),
    })?;
    let mut stream = Counted::new(stream, session.clone());
    // A stream that broke on a link that did not: the far end was there, and has gone.
    let broken = |error: io::Error| match session.carrier.ended() {
        Some(why) => Failed::Lost(io::Error::new(io::ErrorKind::NotConnected, why)),
        None => Failed::Answered(error),
    };
    write_flow(&mut stream, &flow).await.map_err(broken)?;
    let silence = SILENCE + Duration::from_micros(before.rtt_us.into()) * 4;
    let answer = {
        let mut answering = std::pin::pin!(timeout_at(deadline, read_answer(&mut stream)));
        tokio::select! {
            answer = &mut answering => answer,
            () = sleep(silence) => {
                if session.measures().rx_bytes == before.rx_bytes {
                    let text = format!("nothing is heard from node {peer}");
                    return Err(Failed::Lost(io::Error::new(io::ErrorKind::TimedOut, text)));
                }
                answering.await
            }
        }
    };
    let late = |_elapsed| {
        let text = format!("node {peer} does not say whether it is connected");
        Failed::Answered(io::Error::new(io::ErrorKind::TimedOut, text))
    };
    match answer.map_err(late)?.map_err(broken)?.error(peer, &flow) {
        None => Ok(stream),
        Some(error) => Err(Failed::Answered(error)),
    }
}

/// Takes what a peer sends over a link, until that ends.
pub(super) async fn serve(core: Arc<Core>, peer: Arc<str>, session: Arc<Session>) {
    let streams = async {
        while let Some(stream) = session.carrier.accept().await {
            let stream = Counted::new(stream, session.clone());
            let (core, peer) = (core.clone(), peer.clone());
            tokio::spawn(async move {
                if let Err(error) = accept(&core, &peer, stream).await {
                    tracing::trace!(peer = &*peer, %error, "a connection of a peer broke");
                }
            });
        }
    };
    let datagrams = async {
        while let Some(bytes) = session.carrier.datagram().await {
            session.is_used();
            take_datagram(&core, &peer, &bytes);
        }
    };
    tokio::join!(streams, datagrams);
}

async fn accept(core: &Core, peer: &str, mut stream: Counted) -> io::Result<()> {
    let late = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
    let flow = timeout(PREFACE_TIMEOUT, read_flow(&mut stream)).await.map_err(late)??;
    let connecting = async {
        check(core, peer, &flow, Protocol::Tcp)?;
        timeout(CONNECT_TIMEOUT, core.acceptor.connect(peer, flow)).await.map_err(late)?
    };
    match connecting.await {
        Ok(connection) => {
            write_answer(&mut stream, Answer::Connected).await?;
            pump(stream, connection).await
        }
        Err(error) => {
            write_answer(&mut stream, Answer::of_error(&error)).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await
        }
    }
}

fn take_datagram(core: &Core, peer: &str, bytes: &[u8]) {
    let Some((flow, datagram)) = decode_datagram(bytes) else { return };
    if check(core, peer, &flow, Protocol::Udp).is_ok() {
        core.acceptor.datagram(peer, flow, datagram);
    }
}

fn check(core: &Core, peer: &str, flow: &Flow, protocol: Protocol) -> io::Result<()> {
    let view = core.view();
    let forbidden = |why: String| {
        core.count_rejected();
        tracing::debug!(peer, ?flow, why, "a flow of a peer is refused");
        io::Error::new(io::ErrorKind::PermissionDenied, why)
    };
    let known =
        view.peers.get(peer).ok_or_else(|| forbidden("it is no node of the cluster".into()))?;
    if flow.protocol != protocol {
        return Err(forbidden(format!("{} as {protocol}", flow.protocol)));
    }
    guard::check(flow, &view.node, &known.peer).map_err(|why| forbidden(why.to_string()))
}
