//! One MQTT connection, from CONNECT to its end.
//!
//! One task does everything, so nothing is shared but the queue in
//! [`Session`]. Between packets it holds no buffer: bytes are read into the
//! stack, and kept only while a packet is incomplete.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::sync::Arc;
use std::task::ready;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rmqtt_codec::error::DecodeError;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use wire::topic::{Role, Topic, is_boot_client};

use crate::accept::Acceptor;
use crate::hub::{End, Session};
use crate::limits::Permit;
use crate::packet::{Codec, Connect, Goodbye, Incoming, Outgoing, Refusal, Will};
use crate::{Attempt, GatewayEvent, JoinReply, Peer};

/// Most bytes of a CONNECT, and of any packet of a board without a certificate.
const SMALL_PACKET_BYTES_MAX: u32 = 16 << 10;
/// What is encoded before it is written.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes read at once, on the stack.
const READ_BYTES: usize = 4096;
/// Most filters of one SUBSCRIBE.
const FILTERS_PER_PACKET_MAX: usize = 16;
/// Refusals after which a connection is ended.
const REFUSALS_MAX: u32 = 16;
/// Most join requests on one connection.
const JOINS_MAX: u32 = 8;
/// Time for the last words.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a connection ends.
#[derive(Debug)]
enum Ended {
    /// The client said goodbye.
    Clean,
    /// It said goodbye and wants its will published.
    WithWill,
    /// It broke.
    Broken(std::io::Error),
    /// We end it.
    Refused(Goodbye, String),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Ended::Broken(error)
    }
}

impl From<DecodeError> for Ended {
    fn from(error: DecodeError) -> Self {
        let goodbye = match error {
            DecodeError::MaxSizeExceeded { .. } => Goodbye::TooLarge,
            _ => Goodbye::Protocol,
        };
        Ended::Refused(goodbye, format!("sent what is no MQTT packet: {error}"))
    }
}

impl Ended {
    fn refused(goodbye: Goodbye, reason: &str) -> Self {
        Ended::Refused(goodbye, reason.into())
    }

    fn reason(&self) -> String {
        match self {
            Ended::Clean | Ended::WithWill => "said goodbye".into(),
            Ended::Broken(error) => format!("connection broke: {error}"),
            Ended::Refused(_, reason) => reason.clone(),
        }
    }
}

/// Serves MQTT on `io` until it ends.
pub(crate) async fn serve<S>(
    acceptor: &Acceptor,
    io: S,
    peer: Option<Result<Peer, String>>,
    address: SocketAddr,
    deadline: Instant,
    handshake: Permit,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = Wire { io, reader: BytesMut::new(), writer: BytesMut::new() };
    let connecting = timeout_at(deadline, wire.read_connect());
    let connected = tokio::select! {
        () = acceptor.cancel.cancelled() => return,
        connected = connecting => connected,
    };
    let (mut codec, connect) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(ended)) => {
            tracing::debug!(%address, reason = ended.reason(), "no CONNECT on the node port");
            return;
        }
        Err(_elapsed) => {
            tracing::debug!(%address, "CONNECT on the node port took too long");
            return;
        }
    };
    let admitted = admit(acceptor, &connect, peer, address);
    let (role, name, boot) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let refuse = wire.send(&mut codec, Outgoing::Refuse(refusal));
            let _closed = timeout(GOODBYE_TIMEOUT, refuse).await;
            return;
        }
    };
    drop(handshake);
    let session = match role {
        Role::Node(_) => acceptor.hub.connect(&name),
        Role::Boot(_) => acceptor.hub.session(),
    };
    let lifetime_end = match role {
        Role::Node(_) => None,
        Role::Boot(_) => Some(Instant::now() + acceptor.config.boot_lifetime),
    };
    let connection = Connection {
        acceptor,
        wire,
        codec,
        role,
        name,
        session,
        address,
        lifetime_end,
        window: acceptor.config.window.min(connect.receive_max).into(),
        packet_bytes_max: connect.packet_bytes_max,
        in_flight: VecDeque::new(),
        last_id: 0,
        n_refusals: 0,
        n_joins: 0,
    };
    connection.run(*connect).await;
    drop(boot);
}

/// Who the client is, or why it may not connect.
fn admit(
    acceptor: &Acceptor,
    connect: &Connect,
    peer: Option<Result<Peer, String>>,
    address: SocketAddr,
) -> Result<(Role, Arc<str>, Option<Permit>), Refusal> {
    let client: String = connect.client_id.chars().take(80).collect();
    if connect.has_auth_method {
        return Err(Refusal::AuthMethod);
    }
    let (role, boot) = match peer {
        Some(Ok(peer)) => {
            if connect.client_id != peer.node {
                acceptor.report(address, &peer.node, Attempt::ClientId(client));
                return Err(Refusal::NotAuthorized);
            }
            if let Err(reason) = (acceptor.config.admission)(&peer) {
                acceptor.report(address, &peer.node, Attempt::NotAdmitted(reason));
                return Err(Refusal::NotAuthorized);
            }
            (Role::Node(peer.node), None)
        }
        Some(Err(reason)) => {
            acceptor.report(address, &client, Attempt::Certificate(reason));
            return Err(Refusal::NotAuthorized);
        }
        None => {
            if !is_boot_client(&connect.client_id) {
                return Err(Refusal::ClientId);
            }
            let boot = acceptor.boots.try_take(crate::address_key(address)).ok_or(Refusal::Busy)?;
            (Role::Boot(connect.client_id.clone()), Some(boot))
        }
    };
    if let Some(will) = &connect.will
        && !(matches!(role, Role::Node(_)) && role.may_publish(&will.topic))
    {
        let topic = will.topic.chars().take(128).collect();
        acceptor.report(address, &client, Attempt::Will(topic));
        return Err(Refusal::NotAuthorized);
    }
    Ok((role, Arc::from(connect.client_id.as_str()), boot))
}

/// Bytes in and out.
struct Wire<S> {
    io: S,
    reader: BytesMut,
    writer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads once. Returns an error at the end of the stream.
    async fn read(&mut self) -> std::io::Result<()> {
        let Wire { io, reader, .. } = self;
        poll_fn(|cx| {
            // On the stack of this poll, so that a waiting connection holds none of it.
            let mut bytes = [0; READ_BYTES];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return std::task::Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into()));
            }
            reader.extend_from_slice(buf.filled());
            std::task::Poll::Ready(Ok(()))
        })
        .await
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        self.io.write_all_buf(&mut self.writer).await?;
        self.io.flush().await
    }

    async fn send(&mut self, codec: &mut Codec, packet: Outgoing) -> std::io::Result<()> {
        encode(codec, packet, &mut self.writer)?;
        self.flush().await
    }

    async fn read_connect(&mut self) -> Result<(Codec, Box<Connect>), Ended> {
        let mut codec = None;
        loop {
            self.read().await?;
            if codec.is_none() {
                codec = Codec::detect(&mut self.reader, SMALL_PACKET_BYTES_MAX)?;
            }
            if let Some(codec_found) = &mut codec
                && let Some(packet) = codec_found.decode(&mut self.reader)?
            {
                let Incoming::Connect(connect) = packet else {
                    return Err(Ended::refused(Goodbye::Protocol, "began without CONNECT"));
                };
                let codec = codec.take().expect("it has just decoded");
                return Ok((codec, connect));
            }
            if self.reader.len() > SMALL_PACKET_BYTES_MAX as usize + 5 {
                return Err(Ended::refused(Goodbye::TooLarge, "CONNECT is too large"));
            }
        }
    }
}

fn encode(codec: &mut Codec, packet: Outgoing, bytes: &mut BytesMut) -> std::io::Result<()> {
    codec.encode(packet, bytes).map_err(std::io::Error::other)
}

struct Connection<'a, S> {
    acceptor: &'a Acceptor,
    wire: Wire<S>,
    codec: Codec,
    role: Role,
    name: Arc<str>,
    session: Arc<Session>,
    address: SocketAddr,
    lifetime_end: Option<Instant>,
    window: usize,
    packet_bytes_max: Option<u32>,
    in_flight: VecDeque<NonZeroU16>,
    last_id: u16,
    n_refusals: u32,
    n_joins: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn run(mut self, connect: Connect) {
        let is_node = matches!(self.role, Role::Node(_));
        if is_node {
            let event = GatewayEvent::Connected {
                node: self.name.clone(),
                conn: self.session.id,
                address: self.address,
            };
            self.acceptor.tell(event).await;
        }
        let ended = match self.talk(&connect).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        if is_node {
            self.acceptor.hub.disconnect(&self.name, &self.session);
        }
        let reason = ended.reason();
        tracing::debug!(client = &*self.name, address = %self.address, reason, "connection ended");
        if let Ended::Refused(goodbye, _) = &ended {
            let goodbye = self.wire.send(&mut self.codec, Outgoing::Disconnect(*goodbye));
            let _gone = timeout(GOODBYE_TIMEOUT, goodbye).await;
        }
        let _gone = timeout(GOODBYE_TIMEOUT, self.wire.io.shutdown()).await;
        if !is_node {
            return;
        }
        if let Some(Will { topic, bytes }) = connect.will
            && !matches!(ended, Ended::Clean)
        {
            let bytes = Bytes::copy_from_slice(&bytes);
            self.tell_message(topic, bytes).await;
        }
        let event =
            GatewayEvent::Disconnected { node: self.name.clone(), conn: self.session.id, reason };
        self.acceptor.tell(event).await;
    }

    async fn talk(&mut self, connect: &Connect) -> Result<std::convert::Infallible, Ended> {
        let config = &self.acceptor.config;
        let packet_bytes_max = match self.role {
            Role::Node(_) => config.packet_bytes_max,
            Role::Boot(_) => SMALL_PACKET_BYTES_MAX,
        };
        self.codec.set_packet_bytes_max(packet_bytes_max);
        let longest = u16::try_from(config.keep_alive_max.as_secs()).unwrap_or(u16::MAX).max(1);
        let asked = connect.keep_alive_s;
        let keep_alive_s = if asked == 0 { longest } else { asked.min(longest) };
        let accept = Outgoing::Accept {
            packet_bytes_max,
            receive_max: config.window,
            keep_alive_s: (keep_alive_s != asked).then_some(keep_alive_s),
        };
        encode(&mut self.codec, accept, &mut self.wire.writer)?;

        let silence_max = Duration::from_secs(keep_alive_s.into()) * 3 / 2;
        let mut deadline = Instant::now() + silence_max;
        loop {
            self.handle_all().await?;
            self.write_all().await?;
            match self.session.end() {
                Some(End::TakenOver) => {
                    let reason = "a newer connection of the node replaced it";
                    return Err(Ended::refused(Goodbye::TakenOver, reason));
                }
                Some(End::Full) => {
                    let reason = "took its messages too slowly";
                    return Err(Ended::refused(Goodbye::Quota, reason));
                }
                Some(End::Kicked) => {
                    return Err(Ended::refused(Goodbye::Kicked, "is not admitted any more"));
                }
                None => {}
            }
            if self.wire.reader.is_empty() {
                self.wire.reader = BytesMut::new();
            }
            self.wire.writer = BytesMut::new();
            let give_up = self.lifetime_end.map_or(deadline, |end| end.min(deadline));
            tokio::select! {
                biased;
                () = self.acceptor.cancel.cancelled() => {
                    return Err(Ended::refused(Goodbye::ShuttingDown, "the master stops"));
                }
                () = self.session.woken() => {}
                read = self.wire.read() => {
                    read?;
                    deadline = Instant::now() + silence_max;
                }
                () = sleep_until(give_up) => {
                    return Err(if give_up < deadline {
                        Ended::refused(Goodbye::TimeOver, "joining took too long")
                    } else {
                        Ended::refused(Goodbye::KeepAlive, "was silent for too long")
                    });
                }
            }
        }
    }

    /// Writes what is encoded and what waits, as far as the window allows.
    async fn write_all(&mut self) -> Result<(), Ended> {
        loop {
            while self.wire.writer.len() < WRITE_BYTES
                && let Some(message) = self.session.pop(self.in_flight.len() < self.window)
            {
                let n_bytes = message.bytes.len() + message.topic.len() + 16;
                if self.packet_bytes_max.is_some_and(|max| n_bytes > max as usize) {
                    tracing::warn!(
                        client = &*self.name,
                        n_bytes,
                        "message dropped: larger than the client takes"
                    );
                    continue;
                }
                let id = (message.qos > 0).then(|| self.take_id());
                let packet = Outgoing::Publish { topic: message.topic, id, bytes: message.bytes };
                encode(&mut self.codec, packet, &mut self.wire.writer)?;
            }
            if self.wire.writer.is_empty() {
                return Ok(());
            }
            timeout(self.acceptor.config.write_timeout, self.wire.flush()).await.map_err(
                |_elapsed| Ended::refused(Goodbye::Quota, "did not take what was written to it"),
            )??;
        }
    }

    fn take_id(&mut self) -> NonZeroU16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            // At most `window` of 65,535 are taken.
            if let Some(id) = NonZeroU16::new(self.last_id)
                && !self.in_flight.contains(&id)
            {
                self.in_flight.push_back(id);
                return id;
            }
        }
    }

    async fn handle_all(&mut self) -> Result<(), Ended> {
        while let Some(packet) = self.codec.decode(&mut self.wire.reader)? {
            self.handle(packet).await?;
            if self.wire.writer.len() >= WRITE_BYTES {
                self.write_all().await?;
            }
        }
        Ok(())
    }

    async fn handle(&mut self, packet: Incoming) -> Result<(), Ended> {
        match packet {
            Incoming::Publish { topic, qos, retain, id, bytes } => {
                if qos > 1 {
                    return Err(Ended::refused(Goodbye::QosNotSupported, "published with QoS 2"));
                }
                if retain && self.codec.is_v5() {
                    let reason = "published a retained message";
                    return Err(Ended::refused(Goodbye::RetainNotSupported, reason));
                }
                self.published(topic, id, bytes).await
            }
            Incoming::Acknowledged(id) => {
                if let Some(at) = self.in_flight.iter().position(|known| *known == id) {
                    self.in_flight.remove(at);
                }
                Ok(())
            }
            Incoming::Subscribe { id, filters } => self.subscribed(id, &filters),
            Incoming::Unsubscribe { id, filters } => {
                if filters.len() > FILTERS_PER_PACKET_MAX {
                    return Err(Ended::refused(Goodbye::Quota, "unsubscribed from too much"));
                }
                self.session.unsubscribe(&filters);
                self.answer(Outgoing::Unsubscribed(id, filters.len()))
            }
            Incoming::Ping => self.answer(Outgoing::Pong),
            Incoming::Disconnect { with_will: true } => Err(Ended::WithWill),
            Incoming::Disconnect { with_will: false } => Err(Ended::Clean),
            Incoming::Connect(_) => Err(Ended::refused(Goodbye::Protocol, "sent CONNECT twice")),
            Incoming::Unexpected(what) => {
                Err(Ended::Refused(Goodbye::Protocol, format!("sent {what}")))
            }
        }
    }

    /// The master's channel takes the message before the client gets its answer.
    async fn published(
        &mut self,
        topic: String,
        id: Option<NonZeroU16>,
        bytes: Bytes,
    ) -> Result<(), Ended> {
        if !self.role.may_publish(&topic) {
            let shown = topic.chars().take(128).collect();
            self.refused(Attempt::Publish(shown))?;
            if !self.codec.is_v5() {
                // 3.1.1 has no way to say no.
                let reason = "published on a topic that is not its own";
                return Err(Ended::refused(Goodbye::NotAuthorized, reason));
            }
            return id.map_or(Ok(()), |id| self.answer(Outgoing::Acknowledge(id, false)));
        }
        let taken = match &self.role {
            Role::Node(_) => self.tell_message(topic, bytes).await,
            Role::Boot(client) => {
                self.n_joins += 1;
                if self.n_joins > JOINS_MAX {
                    return Err(Ended::refused(Goodbye::Quota, "asked too often"));
                }
                let reply = JoinReply {
                    session: self.session.clone(),
                    topic: Topic::JoinResponse { client }.to_string(),
                    queue_bytes_max: SMALL_PACKET_BYTES_MAX as usize * 2,
                };
                let client = client.clone();
                let address = self.address;
                self.acceptor.tell(GatewayEvent::Join { client, address, bytes, reply }).await
            }
        };
        if !taken {
            return Err(Ended::refused(Goodbye::ShuttingDown, "the master stops"));
        }
        id.map_or(Ok(()), |id| self.answer(Outgoing::Acknowledge(id, true)))
    }

    async fn tell_message(&mut self, topic: String, bytes: Bytes) -> bool {
        let event =
            GatewayEvent::Message { node: self.name.clone(), conn: self.session.id, topic, bytes };
        self.acceptor.tell(event).await
    }

    fn subscribed(&mut self, id: NonZeroU16, filters: &[(String, u8)]) -> Result<(), Ended> {
        if filters.len() > FILTERS_PER_PACKET_MAX {
            return Err(Ended::refused(Goodbye::Quota, "subscribed to too much"));
        }
        let mut granted = Vec::with_capacity(filters.len());
        for (filter, qos) in filters {
            if self.role.may_subscribe(filter) {
                granted.push(self.session.subscribe(filter).then_some((*qos).min(1)));
            } else {
                let shown = filter.chars().take(128).collect();
                self.refused(Attempt::Subscribe(shown))?;
                granted.push(None);
            }
        }
        self.answer(Outgoing::Subscribed(id, granted))
    }

    fn refused(&mut self, attempt: Attempt) -> Result<(), Ended> {
        self.acceptor.report(self.address, &self.name, attempt);
        self.n_refusals += 1;
        if self.n_refusals >= REFUSALS_MAX {
            return Err(Ended::refused(Goodbye::NotAuthorized, "tried too often what it may not"));
        }
        Ok(())
    }

    fn answer(&mut self, packet: Outgoing) -> Result<(), Ended> {
        encode(&mut self.codec, packet, &mut self.wire.writer)?;
        Ok(())
    }
}
