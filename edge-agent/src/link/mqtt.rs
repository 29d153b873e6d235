//! The link over MQTT 5, on rumqttc.
//!
//! rumqttc 0.25 loses what waits when a connection breaks, can hang for ever
//! after a packet id collides, and does not notice a peer that stopped reading.
//! So each connection gets a client of its own, polled in a task of its own,
//! watched, and thrown away at the first error; what matters is kept and sent
//! again by [`crate::node::Node`].

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, LastWill, Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use wire::PACKET_BYTES_MAX;
use wire::token::split_endpoint;
use wire::topic::{Channel, down_filter};

use super::tls::{MasterVerifier, TlsError, Trust};
use super::{Link, LinkEvent, Session};
use crate::identity::Identity;

/// Messages that wait in each direction.
const QUEUE: usize = 64;
/// Publishes that the master has not acknowledged yet. rumqttc would keep room
/// for 65,535, which is 13 MB.
const WINDOW: u16 = 32;
/// Time for TCP, TLS and CONNECT, in seconds.
const CONNECT_TIMEOUT_S: u64 = 20;
/// Time for the answer to SUBSCRIBE.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to the master's node port, or to a broker in its place.
#[derive(Clone, Debug)]
pub struct MqttLink {
    node: String,
    endpoints: Vec<String>,
    tls: Arc<ClientConfig>,
    verifier: Arc<MasterVerifier>,
}

impl MqttLink {
    /// Connects as `identity`.
    ///
    /// # Errors
    /// Where its key and certificate cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        let verifier = MasterVerifier::new(Trust::Cas(identity.cas.clone()));
        let mut tls = ClientConfig::clone(&*super::tls::node_config(identity, wire::ALPN_MQTT)?);
        tls.dangerous().set_certificate_verifier(verifier.clone());
        Ok(Self {
            node: identity.node.clone(),
            endpoints: identity.endpoints.clone(),
            tls: Arc::new(tls),
            verifier,
        })
    }
}

impl Link for MqttLink {
    fn open(&self, attempt: usize, will: Vec<u8>, keep_alive: Duration) -> Session {
        let endpoint = &self.endpoints[attempt % self.endpoints.len()];
        let (host, port) = split_endpoint(endpoint).unwrap_or((endpoint, 8883));
        let mut options = options(&self.node, host, port, self.tls.clone(), keep_alive);
        let topic = Channel::Will.of(&self.node);
        options.set_last_will(LastWill::new(topic, will, QoS::AtLeastOnce, false, None));
        let (client, events) = AsyncClient::new(options, QUEUE);
        let (event_sender, event_receiver) = mpsc::channel(QUEUE);
        let (message_sender, message_receiver) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(self.node.clone(), client.clone(), message_receiver));
        let poller = Poller {
            node: self.node.clone(),
            endpoint: endpoint.clone(),
            client,
            events: event_sender,
            silence_max: keep_alive * 3,
            verifier: self.verifier.clone(),
        };
        tasks.spawn(poller.run(events));
        Session { events: event_receiver, messages: message_sender, tasks }
    }
}

/// The options that both the link and a board that joins use.
pub(crate) fn options(
    client: &str,
    host: &str,
    port: u16,
    tls: Arc<ClientConfig>,
    keep_alive: Duration,
) -> MqttOptions {
    let mut options = MqttOptions::new(client, host, port);
    let bytes_max = u32::try_from(PACKET_BYTES_MAX).expect("1 MiB");
    // Otherwise a message waits until the one before is acknowledged, which the other
    // end puts off by 40 ms.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_network_options(network)
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
        .set_keep_alive(keep_alive.max(Duration::from_secs(5)))
        .set_clean_start(true)
        .set_outgoing_inflight_upper_limit(WINDOW)
        .set_receive_maximum(Some(WINDOW))
        .set_max_packet_size(Some(bytes_max))
        .set_connection_timeout(CONNECT_TIMEOUT_S);
    options
}

/// Hands messages to the client, as fast as it takes them.
async fn forward(
    node: String,
    client: AsyncClient,
    mut messages: mpsc::Receiver<(Channel, Vec<u8>)>,
) {
    while let Some((channel, bytes)) = messages.recv().await {
        let qos = if channel.qos() == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        if client.publish(channel.of(&node), qos, false, bytes).await.is_err() {
            return;
        }
    }
    // The driver is done: say goodbye, so that no will is published.
    let _gone = client.disconnect().await;
    std::future::pending::<()>().await;
}

struct Poller {
    node: String,
    endpoint: String,
    client: AsyncClient,
    events: mpsc::Sender<LinkEvent>,
    silence_max: Duration,
    verifier: Arc<MasterVerifier>,
}

impl Poller {
    async fn run(self, mut events: EventLoop) {
        let reason = match self.poll(&mut events).await {
            Ok(()) => return,
            Err(reason) => reason,
        };
        let _gone = self.events.send(LinkEvent::Down(reason)).await;
    }

    /// Polls until the connection ends; `Ok` where nobody listens any more.
    async fn poll(&self, events: &mut EventLoop) -> Result<(), String> {
        let mut subscribed = false;
        let mut heard = Instant::now();
        let mut silence_max = Duration::from_secs(CONNECT_TIMEOUT_S) + SUBSCRIBE_TIMEOUT;
        loop {
            // Dropping a poll may lose a packet; the whole client is dropped with it.
            let polled = timeout_at(heard + silence_max, events.poll())
                .await
                .map_err(|_elapsed| format!("{} was silent for too long", self.endpoint))?;
            let packet = match polled {
                Ok(Event::Incoming(packet)) => packet,
                Ok(Event::Outgoing(_)) => continue,
                Err(error) => return Err(self.explain(&error)),
            };
            heard = Instant::now();
            let event = match packet {
                Packet::ConnAck(_) => {
                    let filter = down_filter(&self.node);
                    self.client
                        .try_subscribe(filter, QoS::AtLeastOnce)
                        .map_err(|error| format!("cannot subscribe: {error}"))?;
                    continue;
                }
                Packet::SubAck(ack) => {
                    let granted = ack
                        .return_codes
                        .iter()
                        .all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                    if !granted {
                        return Err(format!(
                            "{} does not let this node subscribe to its own topics",
                            self.endpoint
                        ));
                    }
                    subscribed = true;
                    silence_max = self.silence_max;
                    LinkEvent::Up { endpoint: self.endpoint.clone() }
                }
                Packet::Publish(publish) if subscribed => LinkEvent::Message(publish.payload),
                Packet::PubAck(ack) if ack.reason as u8 >= 0x80 => {
                    // The broker's rules are not ours: nothing would ever arrive.
                    return Err(format!("{} refused a message: {:?}", self.endpoint, ack.reason));
                }
                _ => continue,
            };
            if self.events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }

    fn explain(&self, error: &ConnectionError) -> String {
        let endpoint = &self.endpoint;
        if let Some(reason) = self.verifier.refused() {
            return format!("{endpoint} is not the master: {reason}");
        }
        match error {
            ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => format!(
                "the master at {endpoint} refuses this node: it was deleted or its certificate revoked"
            ),
            ConnectionError::ConnectionRefused(code) => {
                format!("{endpoint} refuses the connection: {code:?}")
            }
            ConnectionError::Timeout(_) => format!("{endpoint} does not answer"),
            other => format!("{endpoint}: {other}"),
        }
    }
}
