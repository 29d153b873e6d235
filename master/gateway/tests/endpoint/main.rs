//! The node port against real clients and hostile ones, over TCP and TLS on the
//! loopback device.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by where it panics")]

mod pki;

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use pinnace_gateway::{
    Attempt, Config, Gateway, GatewayEvent, SendError, StreamKind, TlsProvider, Violation,
};
use pki::{Identity, Pki};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, DisconnectReasonCode, LastWill, Packet, PubAckReason, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::topic::{Channel, Topic, down_filter};

/// Far beyond what anything takes here: only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(30);

struct Port {
    pki: Pki,
    gateway: Gateway,
    events: mpsc::Receiver<GatewayEvent>,
}

impl Port {
    async fn open(config: Config) -> Self {
        let pki = Pki::new();
        let server = pki.server_config();
        let tls: TlsProvider = Arc::new(move || server.clone());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (gateway, events) = Gateway::bind(any, tls, config).await.unwrap();
        Self { pki, gateway, events }
    }

    async fn next(&mut self) -> GatewayEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("the gateway runs")
    }

    async fn connected(&mut self) -> (String, u64) {
        match self.next().await {
            GatewayEvent::Connected { node, conn, .. } => (node.to_string(), conn),
            other => panic!("{other:?}"),
        }
    }

    async fn message(&mut self) -> (String, String, Vec<u8>) {
        match self.next().await {
            GatewayEvent::Message { node, topic, bytes, .. } => {
                (node.to_string(), topic, bytes.to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    async fn violation(&mut self) -> Violation {
        match self.next().await {
            GatewayEvent::Violation(violation) => violation,
            other => panic!("{other:?}"),
        }
    }

    async fn disconnected(&mut self) -> (String, String) {
        match self.next().await {
            GatewayEvent::Disconnected { node, reason, .. } => (node.to_string(), reason),
            other => panic!("{other:?}"),
        }
    }

    fn options(&self, client: &str, identity: Option<&Identity>) -> MqttOptions {
        // The certificate's name and the address differ: as for agents, only the name
        // counts, so the test's client resolves it by itself.
        let mut options = MqttOptions::new(client, "127.0.0.1", self.gateway.address().port());
        let config = self.pki.client_config(identity, &[]);
        let config = Arc::new(named(&config));
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)))
            .set_keep_alive(Duration::from_secs(30))
            .set_outgoing_inflight_upper_limit(32)
            .set_max_packet_size(Some(1 << 20));
        options
    }

    fn client(&self, name: &str, identity: Option<&Identity>) -> Client {
        Client::new(self.options(name, identity))
    }

    async fn tls(&self, identity: Option<&Identity>, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.gateway.address()).await.unwrap();
        let connector = TlsConnector::from(self.pki.client_config(identity, alpn));
        let name = ServerName::try_from(wire::MASTER_SERVER_NAME).unwrap();
        connector.connect(name, stream).await.unwrap()
    }
}

/// Verifies the fixed name whatever address was dialled, as the agent's link does.
fn named(config: &rustls::ClientConfig) -> rustls::ClientConfig {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, UnixTime};

    #[derive(Debug)]
    struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);
    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            unreachable!("only TLS 1.3 is offered")
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let mut config = config.clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    config.dangerous().set_certificate_verifier(Arc::new(AnyCertificate(provider)));
    config
}

struct Client {
    client: AsyncClient,
    events: EventLoop,
}

impl Client {
    fn new(options: MqttOptions) -> Self {
        let (client, events) = AsyncClient::new(options, 64);
        Self { client, events }
    }

    async fn poll(&mut self) -> Result<Event, ConnectionError> {
        timeout(PATIENCE, self.events.poll()).await.expect("something happens")
    }

    /// The next packet that `wanted` makes something of.
    async fn until<T>(&mut self, wanted: impl Fn(&Packet) -> Option<T>) -> T {
        loop {
            if let Event::Incoming(packet) = self.poll().await.expect("still connected")
                && let Some(found) = wanted(&packet)
            {
                return found;
            }
        }
    }

    async fn connect(&mut self) {
        self.until(|packet| matches!(packet, Packet::ConnAck(_)).then_some(())).await;
    }

    async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        self.until(|packet| match packet {
            Packet::SubAck(ack) => Some(ack.return_codes[0]),
            _ => None,
        })
        .await
    }

    async fn publish(&mut self, topic: &str, payload: &str) -> PubAckReason {
        let payload = payload.as_bytes().to_vec();
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        self.until(|packet| match packet {
            Packet::PubAck(ack) => Some(ack.reason),
            _ => None,
        })
        .await
    }

    async fn ended(&mut self) -> ConnectionError {
        loop {
            if let Err(error) = self.poll().await {
                return error;
            }
        }
    }
}

fn server_reason(error: ConnectionError) -> DisconnectReasonCode {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => reason_code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_go_both_ways() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("board");
    let mut client = port.client("board", Some(&identity));
    client.connect().await;
    assert_eq!(port.connected().await.0, "board");
    assert_eq!(
        port.gateway.send("board", "pinnace/1/n/board/d/s", 1, "too early"),
        Err(SendError::NotSubscribed("board".into(), "pinnace/1/n/board/d/s".into()))
    );
    let granted = client.subscribe(&down_filter("board")).await;
    assert_eq!(granted, SubscribeReasonCode::Success(QoS::AtLeastOnce));

    assert_eq!(client.publish(&Channel::Report.of("board"), "up").await, PubAckReason::Success);
    let expected = ("board".into(), String::from("pinnace/1/n/board/u/r"), b"up".to_vec());
    assert_eq!(port.message().await, expected);

    for qos in [0, 1] {
        let topic = Channel::Set.of("board");
        port.gateway.send("board", &topic, qos, format!("down {qos}")).unwrap();
        let received = client
            .until(|packet| match packet {
                Packet::Publish(publish) => Some((publish.qos as u8, publish.payload.clone())),
                _ => None,
            })
            .await;
        assert_eq!(received, (qos, format!("down {qos}").into()));
    }
    client.client.disconnect().await.unwrap();
    client.ended().await;
    assert_eq!(port.disconnected().await, ("board".into(), "said goodbye".into()));
    assert_eq!(port.gateway.connected(), 0);
}

#[tokio::test]
async fn a_window_of_messages_arrives_whole_and_in_order() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("board");
    let mut client = port.client("board", Some(&identity));
    client.connect().await;
    client.subscribe(&down_filter("board")).await;
    let topic = Channel::Set.of("board");
    for number in 0..500u32 {
        port.gateway.send("board", &topic, 1, number.to_be_bytes().to_vec()).unwrap();
    }
    let big = vec![7; 900_000];
    port.gateway.send("board", &topic, 1, big.clone()).unwrap();
    for number in 0..500u32 {
        let payload = client
            .until(|packet| match packet {
                Packet::Publish(publish) => Some(publish.payload.clone()),
                _ => None,
            })
            .await;
        assert_eq!(payload, number.to_be_bytes().to_vec());
    }
    let payload = client
        .until(|packet| match packet {
            Packet::Publish(publish) => Some(publish.payload.clone()),
            _ => None,
        })
        .await;
    assert_eq!(payload, big);
    assert!(matches!(port.next().await, GatewayEvent::Connected { .. }));
}

#[tokio::test]
async fn anothers_topics_are_refused_and_reported() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let mut client = port.client("a", Some(&identity));
    client.connect().await;
    port.connected().await;
    for topic in ["pinnace/1/n/b/u/r", "pinnace/1/n/a/d/s", "pinnace/1/boot/abcdefgh/req", "x"] {
        assert_eq!(client.publish(topic, "forged").await, PubAckReason::NotAuthorized, "{topic}");
        let violation = port.violation().await;
        assert_eq!(violation.client, "a");
        assert_eq!(violation.attempt, Attempt::Publish(topic.into()));
    }
    for filter in ["pinnace/1/n/b/d/#", "pinnace/1/n/+/d/#", "#", "pinnace/1/n/a/u/#"] {
        let answer = client.subscribe(filter).await;
        assert_eq!(answer, SubscribeReasonCode::NotAuthorized, "{filter}");
        assert_eq!(port.violation().await.attempt, Attempt::Subscribe(filter.into()));
    }
    let answer = client.publish(&Channel::Report.of("a"), "mine").await;
    assert_eq!(answer, PubAckReason::Success, "the connection goes on");
    assert_eq!(port.message().await.2, b"mine");
    for _attempt in 0..8 {
        client.client.publish("x", QoS::AtLeastOnce, false, "again").await.unwrap();
    }
    assert_eq!(server_reason(client.ended().await), DisconnectReasonCode::NotAuthorized);
}

#[tokio::test]
async fn a_name_other_than_the_certificates_is_refused() {
    let mut port = Port::open(Config::default()).await;
    for (client, identity) in [
        ("b", port.pki.node("a")),
        ("admin", port.pki.client("system:masters", "admin")),
        ("UPPER", port.pki.node("UPPER")),
    ] {
        let error = port.client(client, Some(&identity)).ended().await;
        assert!(
            matches!(error, ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized)),
            "{client}: {error:?}"
        );
        let attempt = port.violation().await.attempt;
        assert!(
            matches!(attempt, Attempt::ClientId(_) | Attempt::Certificate(_)),
            "{client}: {attempt:?}"
        );
    }
    assert_eq!(port.gateway.connected(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_ca_does_not_connect() {
    let mut port = Port::open(Config::default()).await;
    let stranger = Pki::new().node("a");
    let error = port.client("a", Some(&stranger)).ended().await;
    assert!(
        matches!(
            error,
            ConnectionError::Io(_) | ConnectionError::Tls(_) | ConnectionError::MqttState(_)
        ),
        "{error:?}"
    );
    let identity = port.pki.node("a");
    let mut client = port.client("a", Some(&identity));
    client.connect().await;
    assert_eq!(port.connected().await.0, "a", "the stranger left no trace");
}

#[tokio::test]
async fn a_node_that_is_not_admitted_is_refused_and_a_kicked_one_leaves() {
    let config = Config {
        admission: Arc::new(|peer| match peer.node.as_str() {
            "revoked" if !peer.serial.is_empty() => Err("its certificate is revoked".into()),
            _ => Ok(()),
        }),
        ..Config::default()
    };
    let mut port = Port::open(config).await;
    let revoked = port.pki.node("revoked");
    let error = port.client("revoked", Some(&revoked)).ended().await;
    assert!(matches!(error, ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized)));
    let attempt = port.violation().await.attempt;
    assert_eq!(attempt, Attempt::NotAdmitted("its certificate is revoked".into()));

    let identity = port.pki.node("good");
    let mut client = port.client("good", Some(&identity));
    client.connect().await;
    port.connected().await;
    port.gateway.kick("good");
    assert_eq!(server_reason(client.ended().await), DisconnectReasonCode::AdministrativeAction);
    assert_eq!(port.disconnected().await.0, "good");
}

#[tokio::test]
async fn the_newest_connection_of_a_node_takes_over() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let mut first = port.client("a", Some(&identity));
    first.connect().await;
    let (_, first_conn) = port.connected().await;
    let mut second = port.client("a", Some(&identity));
    second.connect().await;
    assert_eq!(server_reason(first.ended().await), DisconnectReasonCode::SessionTakenOver);
    let mut newest = 0;
    let mut ended = None;
    while newest == 0 || ended.is_none() {
        match port.next().await {
            GatewayEvent::Connected { conn, .. } => newest = conn,
            GatewayEvent::Disconnected { conn, .. } => ended = Some(conn),
            other => panic!("{other:?}"),
        }
    }
    assert!(newest > first_conn);
    assert_eq!(ended, Some(first_conn));
    assert_eq!(port.gateway.connected(), 1);
    assert_eq!(second.publish(&Channel::Report.of("a"), "x").await, PubAckReason::Success);
}

#[tokio::test]
async fn the_will_comes_when_the_connection_breaks_and_not_after_a_goodbye() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let with_will = |topic: &str| {
        let mut options = port.options("a", Some(&identity));
        options.set_last_will(LastWill::new(topic, "gone", QoS::AtLeastOnce, false, None));
        Client::new(options)
    };
    let (mut breaks, mut leaves, mut foreign) = (
        with_will(&Channel::Will.of("a")),
        with_will(&Channel::Will.of("a")),
        with_will(&Channel::Will.of("b")),
    );
    breaks.connect().await;
    port.connected().await;
    drop(breaks);
    assert_eq!(port.message().await, ("a".into(), Channel::Will.of("a"), b"gone".to_vec()));
    assert_eq!(port.disconnected().await.0, "a");

    leaves.connect().await;
    port.connected().await;
    leaves.client.disconnect().await.unwrap();
    leaves.ended().await;
    assert_eq!(port.disconnected().await.1, "said goodbye");

    let error = foreign.ended().await;
    assert!(matches!(error, ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized)));
    assert_eq!(port.violation().await.attempt, Attempt::Will(Channel::Will.of("b")));
}

#[tokio::test]
async fn a_board_without_a_certificate_asks_and_is_answered_and_may_do_nothing_else() {
    let mut port = Port::open(Config::default()).await;
    let mut client = port.client("board123", None);
    client.connect().await;
    let response = Topic::JoinResponse { client: "board123" }.to_string();
    let request = Topic::JoinRequest { client: "board123" }.to_string();
    assert_eq!(client.subscribe(&response).await, SubscribeReasonCode::Success(QoS::AtLeastOnce));
    for other in ["pinnace/1/boot/+/rsp", "pinnace/1/n/a/d/#"] {
        assert_eq!(client.subscribe(other).await, SubscribeReasonCode::NotAuthorized, "{other}");
        assert!(matches!(port.violation().await.attempt, Attempt::Subscribe(_)));
    }
    for other in ["pinnace/1/boot/other123/req", "pinnace/1/n/a/u/r"] {
        assert_eq!(client.publish(other, "x").await, PubAckReason::NotAuthorized, "{other}");
        assert!(matches!(port.violation().await.attempt, Attempt::Publish(_)));
    }
    assert_eq!(client.publish(&request, "please").await, PubAckReason::Success);
    let GatewayEvent::Join { client: id, bytes, reply, .. } = port.next().await else {
        panic!("no join request")
    };
    assert_eq!((id.as_str(), &bytes[..]), ("board123", &b"please"[..]));
    reply.send("welcome");
    let (topic, payload) = client
        .until(|packet| match packet {
            Packet::Publish(publish) => Some((publish.topic.clone(), publish.payload.clone())),
            _ => None,
        })
        .await;
    assert_eq!((&topic[..], &payload[..]), (response.as_bytes(), &b"welcome"[..]));
    assert_eq!(port.gateway.connected(), 0, "it is no node");

    let error = port.client("a/+", None).ended().await;
    assert!(matches!(
        error,
        ConnectionError::ConnectionRefused(ConnectReturnCode::ClientIdentifierNotValid)
    ));
}

#[tokio::test]
async fn a_board_has_little_time_and_few_connections() {
    let config = Config {
        boot_lifetime: Duration::from_millis(300),
        boot_connections_per_address_max: 1,
        ..Config::default()
    };
    let port = Port::open(config).await;
    let mut first = port.client("board123", None);
    first.connect().await;
    let error = port.client("board456", None).ended().await;
    assert!(matches!(error, ConnectionError::ConnectionRefused(ConnectReturnCode::ServerBusy)));
    assert_eq!(server_reason(first.ended().await), DisconnectReasonCode::MaximumConnectTime);
    port.client("board456", None).connect().await;
}

#[tokio::test]
async fn streams_and_artifacts_are_handed_over_with_the_nodes_name() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    for (alpn, expected) in [
        (wire::ALPN_BLOB, StreamKind::Blob),
        (wire::ALPN_STREAM, StreamKind::Stream),
        (wire::ALPN_API, StreamKind::Api),
        (wire::ALPN_RELAY, StreamKind::Relay),
    ] {
        let mut ours = port.tls(Some(&identity), &[alpn]).await;
        ours.write_all(b"ping").await.unwrap();
        let GatewayEvent::Stream { node, kind, mut stream } = port.next().await else {
            panic!("no stream")
        };
        assert_eq!((&*node, kind), ("a", expected));
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        stream.write_all(b"pong").await.unwrap();
        stream.flush().await.unwrap();
        ours.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
    }
    let mut nobody = port.tls(None, &[wire::ALPN_BLOB]).await;
    let mut byte = [0];
    let read = timeout(PATIENCE, nobody.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "closed");
    assert!(matches!(port.violation().await.attempt, Attempt::Certificate(_)));
}

#[tokio::test]
async fn an_unknown_alpn_is_refused_and_mqtt_is_known() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let stream = TcpStream::connect(port.gateway.address()).await.unwrap();
    let connector = TlsConnector::from(port.pki.client_config(Some(&identity), &[b"h2"]));
    let name = ServerName::try_from(wire::MASTER_SERVER_NAME).unwrap();
    connector.connect(name, stream).await.unwrap_err();

    let mut mqtt = port.tls(Some(&identity), &[wire::ALPN_MQTT]).await;
    assert_eq!(mqtt.get_ref().1.alpn_protocol(), Some(wire::ALPN_MQTT));
    mqtt.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a").await.unwrap();
    let mut answer = [0; 4];
    mqtt.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0], "3.1.1 is accepted");
    assert_eq!(port.connected().await.0, "a");
}

#[tokio::test]
async fn garbage_ends_only_its_own_connection() {
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |n_bytes: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(n_bytes)
        .collect()
    };
    for round in 0..40 {
        // Not even TLS.
        let mut raw = TcpStream::connect(port.gateway.address()).await.unwrap();
        let _refused = raw.write_all(&noise(200)).await;
        // TLS, but no MQTT.
        let mut tls = port.tls(Some(&identity), &[]).await;
        let _refused = tls.write_all(&noise(300)).await;
        // MQTT, then garbage; or a packet far too large.
        let mut mqtt = port.tls(Some(&identity), &[]).await;
        mqtt.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a").await.unwrap();
        let mut answer = [0; 4];
        mqtt.read_exact(&mut answer).await.unwrap();
        let rest = if round % 2 == 0 { noise(300) } else { vec![0x30, 0xff, 0xff, 0xff, 0x7f] };
        let _refused = mqtt.write_all(&rest).await;
        if round % 2 == 0 {
            // It may be the start of a packet, for the rest of which one waits.
            let _refused = mqtt.shutdown().await;
        }
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, mqtt.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "a packet too large is not waited for");
    }
    let mut client = port.client("a", Some(&identity));
    client.connect().await;
    let answer = client.publish(&Channel::Report.of("a"), "still here").await;
    assert_eq!(answer, PubAckReason::Success);
    while port.message_or_other().await.as_deref() != Some(b"still here") {}
}

impl Port {
    async fn message_or_other(&mut self) -> Option<Vec<u8>> {
        match self.next().await {
            GatewayEvent::Message { bytes, .. } => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

#[tokio::test]
async fn half_open_connections_are_bounded_and_do_not_lock_out_nodes() {
    let config = Config {
        handshakes_per_address_max: 32,
        handshake_timeout: Duration::from_millis(1500),
        ..Config::default()
    };
    let port = Port::open(config).await;
    let identity = port.pki.node("a");
    let mut flood = Vec::new();
    for _connection in 0..300 {
        flood.push(TcpStream::connect(port.gateway.address()).await.unwrap());
    }
    // All but 32 are closed at once, those after the handshake's time.
    let mut n_closed = 0;
    for stream in &mut flood {
        let mut byte = [0];
        if matches!(timeout(PATIENCE, stream.read(&mut byte)).await, Ok(Ok(0) | Err(_))) {
            n_closed += 1;
        }
    }
    assert_eq!(n_closed, 300);
    port.client("a", Some(&identity)).connect().await;
}

#[tokio::test]
async fn no_more_connections_than_allowed() {
    let mut port = Port::open(Config { connections_max: 2, ..Config::default() }).await;
    let (a, b) = (port.pki.node("a"), port.pki.node("b"));
    let mut first = port.client("a", Some(&a));
    first.connect().await;
    port.connected().await;
    let stream = port.tls(Some(&b), &[wire::ALPN_STREAM]).await;
    let GatewayEvent::Stream { stream: theirs, .. } = port.next().await else { panic!() };
    port.client("b", Some(&b)).ended().await;
    drop((stream, theirs));
    port.client("b", Some(&b)).connect().await;
}

#[tokio::test]
async fn a_node_that_does_not_read_is_disconnected_and_not_queued_for() {
    let config = Config { queue_bytes_max: 1 << 20, ..Config::default() };
    let mut port = Port::open(config).await;
    let identity = port.pki.node("a");
    let mut mqtt = port.tls(Some(&identity), &[]).await;
    mqtt.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a").await.unwrap();
    let mut answer = [0; 4];
    mqtt.read_exact(&mut answer).await.unwrap();
    port.connected().await;
    let filter = down_filter("a");
    let mut subscribe = vec![0x82, u8::try_from(filter.len()).unwrap() + 5, 0, 1, 0];
    subscribe.push(u8::try_from(filter.len()).unwrap());
    subscribe.extend_from_slice(filter.as_bytes());
    subscribe.push(1);
    mqtt.write_all(&subscribe).await.unwrap();
    let mut answer = [0; 5];
    mqtt.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x90, 3, 0, 1, 1]);
    let topic = Channel::Set.of("a");
    let mut sent = 0u64;
    let error = loop {
        match port.gateway.send("a", &topic, 1, vec![0; 100_000]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        tokio::task::yield_now().await;
        assert!(sent < 10_000, "the queue has no bound");
    };
    assert_eq!(error, SendError::Full("a".into()));
    // It does not acknowledge, so at most a window is written and the rest is dropped.
    drop(mqtt);
    assert_eq!(port.disconnected().await.0, "a");
    let error = port.gateway.send("a", &topic, 1, "x").unwrap_err();
    assert_eq!(error, SendError::NotConnected("a".into()));
}

#[tokio::test]
async fn an_uplink_message_is_acknowledged_only_when_the_master_has_room_for_it() {
    let mut port = Port::open(Config { events_max: 2, ..Config::default() }).await;
    let identity = port.pki.node("a");
    let mut client = port.client("a", Some(&identity));
    client.connect().await;
    let topic = Channel::Report.of("a");
    for number in 0..6 {
        let payload = format!("{number}");
        client.client.publish(&topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }
    // Connected and one message fill the channel: one acknowledgement, no more.
    let mut n_acks = 0;
    while let Ok(Ok(event)) = timeout(Duration::from_millis(300), client.events.poll()).await {
        n_acks += usize::from(matches!(event, Event::Incoming(Packet::PubAck(_))));
    }
    assert_eq!(n_acks, 1);
    port.connected().await;
    for number in 0..6 {
        assert_eq!(port.message().await.2, format!("{number}").into_bytes());
    }
    for _message in 1..6 {
        client.until(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_silent_client_is_dropped_and_a_closing_gateway_says_so() {
    let config = Config { keep_alive_max: Duration::from_secs(1), ..Config::default() };
    let mut port = Port::open(config).await;
    let identity = port.pki.node("a");
    let mut mqtt = port.tls(Some(&identity), &[]).await;
    mqtt.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, mqtt.read_to_end(&mut rest)).await.expect("it is dropped").ok();
    port.connected().await;
    assert_eq!(port.disconnected().await.1, "was silent for too long");

    let mut client = port.client("a", Some(&identity));
    client.connect().await;
    let closing = port.gateway.close(PATIENCE);
    let (error, ()) = tokio::join!(client.ended(), closing);
    assert_eq!(server_reason(error), DisconnectReasonCode::ServerShuttingDown);
}

#[tokio::test]
async fn qos_2_and_retained_messages_are_refused_by_name() {
    let port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let topic = Channel::Report.of("a");
    for (qos, retain, expected) in [
        (QoS::ExactlyOnce, false, DisconnectReasonCode::QoSNotSupported),
        (QoS::AtLeastOnce, true, DisconnectReasonCode::RetainNotSupported),
    ] {
        let mut client = port.client("a", Some(&identity));
        client.connect().await;
        client.client.publish(&topic, qos, retain, "x").await.unwrap();
        assert_eq!(server_reason(client.ended().await), expected);
    }
}

/// Debian's mosquitto clients, in both versions of MQTT, where they are installed.
#[tokio::test]
async fn mosquitto_clients_work() {
    let installed = std::process::Command::new("mosquitto_pub")
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if installed.is_err() {
        return;
    }
    let mut port = Port::open(Config::default()).await;
    let identity = port.pki.node("a");
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, label: &str, der: &[u8]| {
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let path = dir.path().join(name);
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
        std::fs::write(&path, pem).unwrap();
        path
    };
    let ca = write("ca.pem", "CERTIFICATE", &port.pki.ca);
    let certificate = write("a.pem", "CERTIFICATE", &identity.certificate);
    let key = write("a.key", "PRIVATE KEY", identity.key_der().secret_der());
    let port_number = port.gateway.address().port().to_string();
    let command = |program: &str, version: &str, topic: &str| {
        let mut command = tokio::process::Command::new(program);
        command
            .args(["-h", "127.0.0.1", "-p", &port_number, "-i", "a", "-q", "1", "--insecure"])
            .args(["-V", version, "-t", topic])
            .arg("--cafile")
            .arg(&ca)
            .arg("--cert")
            .arg(&certificate)
            .arg("--key")
            .arg(&key)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    };
    for version in ["mqttv311", "mqttv5"] {
        let topic = Channel::Report.of("a");
        let mut publish = command("mosquitto_pub", version, &topic);
        let status = timeout(PATIENCE, publish.args(["-m", "hello"]).status()).await;
        assert!(status.unwrap().unwrap().success(), "{version}");
        port.connected().await;
        assert_eq!(port.message().await.2, b"hello");
        assert_eq!(port.disconnected().await.1, "said goodbye");

        let foreign = Channel::Report.of("b");
        let mut publish = command("mosquitto_pub", version, &foreign);
        let output = timeout(PATIENCE, publish.args(["-m", "forged"]).output()).await;
        let output = output.unwrap().unwrap();
        if version == "mqttv5" {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("Not authorized"), "{text}");
        }
        port.connected().await;
        assert_eq!(port.violation().await.attempt, Attempt::Publish(foreign));
        port.disconnected().await;

        let down = down_filter("a");
        let mut subscribe = command("mosquitto_sub", version, &down);
        let child = subscribe.args(["-C", "1", "-W", "20"]).stdout(Stdio::piped()).spawn().unwrap();
        port.connected().await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while port.gateway.send("a", &Channel::Set.of("a"), 1, "news").is_err() {
            assert!(tokio::time::Instant::now() < deadline, "it never subscribed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "news", "{version}");
        port.disconnected().await;
    }
}
