//! The road between master and node, for real: a board joins with a token over
//! the gateway, its link comes up, and dispatcher and node talk over it. Only the
//! store and the pods are missing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dispatch::enrol::{Decision, Issued, TokenRecord, check_request, denied, issued, make_token};
use dispatch::{Dispatcher, Output};
use edge_agent::identity::Identity;
use edge_agent::join::{JoinError, join};
use edge_agent::link::{Dialer, LinkHandle, LinkOutputs, MqttLink, drive};
use edge_agent::node::Node;
use gateway::{ClockFloor, Config, Gateway, GatewayEvent, StreamKind, TlsProvider, server_config};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use wire::command::{CommandV1, LogsV1, StreamV1};
use wire::envelope::{Decoded, Message, decode, encode};
use wire::node::NodeInfoV1;
use wire::pod::{KeysV1, SourceV1};
use wire::set::{BodyV1, ItemV1, SnapshotV1};
use wire::status::{PhaseV1, PodStatusV1};

/// Far beyond what anything takes here: only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);
const EPOCH: u128 = 7;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "test ca");
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn tls(&self) -> TlsProvider {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![wire::MASTER_SERVER_NAME.into()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let cas = [self.certificate.clone()];
        let chain = vec![leaf, self.certificate.clone()];
        let config = server_config(chain, key, cas, ClockFloor { floor_s: 0 }).unwrap();
        Arc::new(move || config.clone())
    }

    /// Signs the request's key, and nothing else of it.
    fn sign(&self, node: &str, csr: &[u8]) -> Vec<u8> {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, node);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        csr.params = params;
        csr.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// A master without a store.
struct Master {
    ca: Ca,
    gateway: Gateway,
    events: mpsc::Receiver<GatewayEvent>,
    dispatcher: Dispatcher,
    token: TokenRecord,
    token_text: String,
    start: Instant,
    reports: Vec<PodStatusV1>,
    streams: Vec<(String, StreamKind)>,
}

impl Master {
    async fn start(ca: Ca, address: SocketAddr) -> Self {
        let (gateway, events) = Gateway::bind(address, ca.tls(), Config::default()).await.unwrap();
        let endpoint = gateway.address().to_string();
        let token = make_token(vec![endpoint], &ca.certificate, [9; 24]);
        let record = TokenRecord {
            id: token.id.clone(),
            secret: token.secret,
            expires_s: 1000,
            uses_left: 1,
            node_names: Vec::new(),
            labels: vec![("zone".into(), "a".into())],
            issued: Vec::new(),
        };
        Self {
            ca,
            gateway,
            events,
            dispatcher: Dispatcher::new(EPOCH),
            token: record,
            token_text: token.to_text(),
            start: Instant::now(),
            reports: Vec::new(),
            streams: Vec::new(),
        }
    }

    fn any_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// Serves until `done` holds.
    async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.work();
            if done(self) {
                return;
            }
            assert!(Instant::now() < deadline, "it never came to it");
            let due = self.dispatcher.next_due().map_or(deadline, |due| self.start + due);
            let event = tokio::select! {
                event = self.events.recv() => event.expect("the gateway runs"),
                () = tokio::time::sleep_until(due.min(Instant::now() + Duration::from_millis(50))) => continue,
            };
            self.take(event).await;
        }
    }

    /// Serves while `other` runs.
    async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            self.work();
            tokio::select! {
                result = &mut other => return result,
                event = self.events.recv() => self.take(event.expect("the gateway runs")).await,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    }

    async fn take(&mut self, event: GatewayEvent) {
        let now = self.start.elapsed();
        match event {
            GatewayEvent::Message { topic, bytes, .. } => {
                self.dispatcher.receive(now, &topic, &bytes).unwrap();
            }
            GatewayEvent::Disconnected { node, .. } => self.dispatcher.disconnected(&node),
            GatewayEvent::Connected { .. } => {}
            GatewayEvent::Join { bytes, reply, .. } => {
                let Ok(Decoded::Message(Message::JoinRequest(request))) = decode(&bytes) else {
                    panic!("no request")
                };
                let decision = check_request(Some(&self.token), &request, 10, false);
                let response = match decision {
                    Decision::Issue => {
                        let certificate = self.ca.sign(&request.node, &request.csr);
                        self.token.uses_left -= 1;
                        self.token.issued.push(Issued {
                            node: request.node.clone(),
                            csr_sha256: dispatch::sha256(&request.csr),
                            certificate: certificate.clone(),
                        });
                        let ca = self.ca.certificate.to_vec();
                        issued(&self.token, &request, certificate, ca, [5; 32])
                    }
                    Decision::Repeat(certificate) => {
                        let ca = self.ca.certificate.to_vec();
                        issued(&self.token, &request, certificate, ca, [5; 32])
                    }
                    Decision::Deny(denial) => denied(&denial),
                };
                reply.send(encode(&response));
            }
            GatewayEvent::Stream { node, kind, mut stream } => {
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
                self.streams.push((node.to_string(), kind));
            }
            GatewayEvent::Violation(violation) => panic!("{violation:?}"),
        }
    }

    fn work(&mut self) {
        let now = self.start.elapsed();
        for (node, output) in self.dispatcher.poll(now) {
            match output {
                Output::Send { channel, bytes } => {
                    // Where it is gone, it says hello again.
                    let _gone = self.gateway.send(&node, &channel.of(&node), channel.qos(), bytes);
                }
                Output::Report(report) => {
                    self.dispatcher.report_stored(&node, report.boot_id, report.seq);
                    self.reports.extend(report.pods);
                }
                Output::Hello(_) | Output::Applied { .. } | Output::Gone => {}
                Output::Finding(finding) => panic!("{finding}"),
                Output::Tokens { .. } => panic!("no pod wants tokens"),
            }
        }
    }

    fn applied(&self, node: &str) -> Option<u64> {
        self.dispatcher.node(node)?.applied()
    }
}

struct Agent {
    handle: LinkHandle,
    outputs: LinkOutputs,
    cancel: CancellationToken,
}

impl Agent {
    fn start(state_dir: &Path) -> Self {
        let identity = Identity::load(state_dir).unwrap();
        let link = MqttLink::new(&identity).unwrap();
        let node = Node::new([7; 16], None, NodeInfoV1::default());
        let cancel = CancellationToken::new();
        let (handle, outputs, driver) = drive(link, node, cancel.clone());
        tokio::spawn(driver);
        Self { handle, outputs, cancel }
    }

    /// Stores the next set (in no time), and returns it.
    async fn apply(&mut self) -> Arc<SnapshotV1> {
        self.outputs.sets.changed().await.unwrap();
        let set = self.outputs.sets.borrow_and_update().clone().unwrap();
        self.handle.applied(set.epoch, set.revision).await;
        set
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Items whose bytes do not deflate.
fn set(revision: u64, n_items: u8, n_bytes: usize) -> SnapshotV1 {
    let mut state = 1u64;
    let mut noise = std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    let items = (0..n_items).map(|uid| ItemV1 {
        uid: [uid; 16],
        generation: revision,
        body: BodyV1::Keys(KeysV1 {
            namespace: "default".into(),
            source: SourceV1::ConfigMap("large".into()),
            data: vec![("key".into(), noise.by_ref().take(n_bytes).collect())],
            ext: Vec::new(),
        }),
    });
    SnapshotV1 { epoch: EPOCH, revision, items: items.collect() }
}

fn status() -> PodStatusV1 {
    PodStatusV1 {
        generation: 1,
        phase: PhaseV1::Running,
        ..PodStatusV1::new([1; 16], "default", "web")
    }
}

#[tokio::test]
async fn a_board_joins_gets_its_set_reports_and_outlives_the_masters_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = Master::start(Ca::new(), Master::any_port()).await;
    let token = master.token_text.clone();
    let identity = master.during(join(&token, "board", dir.path())).await.unwrap();
    assert_eq!((identity.node.as_str(), identity.artifact_key), ("board", [5; 32]));
    assert_eq!(identity.labels, [("zone".into(), "a".into())]);

    let mut agent = Agent::start(dir.path());
    master.dispatcher.set("board", &set(3, 2, 100)).unwrap();
    let applied = master.during(timeout(PATIENCE, agent.apply())).await.unwrap();
    assert_eq!(*applied, set(3, 2, 100));
    master.until(|master| master.applied("board") == Some(3)).await;

    agent.handle.statuses_changed(vec![status()]).await;
    master.until(|master| !master.reports.is_empty()).await;
    assert_eq!(master.reports, [status()]);

    let stream = StreamV1::Logs(LogsV1::default());
    let command = CommandV1::OpenStream { ticket: [1; 16], stream };
    master.dispatcher.command("board", command.clone()).unwrap();
    let received = master.during(timeout(PATIENCE, agent.outputs.commands.recv())).await.unwrap();
    assert_eq!(received, Some(command));

    // 3 MiB go in parts; more than the queue of a connection holds at once.
    master.dispatcher.set("board", &set(4, 60, 100_000)).unwrap();
    let applied = master.during(timeout(PATIENCE, agent.apply())).await.unwrap();
    assert_eq!(applied.items.len(), 60);
    master.until(|master| master.applied("board") == Some(4)).await;

    // The master stops and starts on the same port, with the same store.
    let Master { ca, gateway, events, .. } = master;
    let address = gateway.address();
    gateway.close(PATIENCE).await;
    drop((gateway, events));
    let mut master = Master::start(ca, address).await;
    master.dispatcher.set("board", &set(4, 60, 100_000)).unwrap();
    master.until(|master| master.applied("board") == Some(4)).await;
    assert!(!agent.outputs.sets.has_changed().unwrap(), "nothing was sent twice");
    assert!(agent.handle.state().borrow().connected);
}

#[tokio::test]
async fn streams_and_artifacts_are_dialled_as_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = Master::start(Ca::new(), Master::any_port()).await;
    let token = master.token_text.clone();
    let mut identity = master.during(join(&token, "board", dir.path())).await.unwrap();
    // The first endpoint is dead, as after a move of the master.
    identity.endpoints.insert(0, "127.0.0.1:1".into());
    let dialer = Dialer::new(Arc::new(identity));
    for (alpn, kind) in
        [(wire::ALPN_BLOB, StreamKind::Blob), (wire::ALPN_STREAM, StreamKind::Stream)]
    {
        let mut stream = master.during(dialer.dial(alpn)).await.unwrap();
        let mut text = String::new();
        master.during(stream.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "hello");
        assert_eq!(master.streams.pop(), Some(("board".into(), kind)));
    }
}

#[tokio::test]
async fn a_bad_token_is_refused_with_the_masters_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = Master::start(Ca::new(), Master::any_port()).await;
    let token = master.token_text.clone();
    master.during(join(&token, "first", &dir.path().join("first"))).await.unwrap();

    // Used up; and the same again says who joined.
    let second = dir.path().join("second");
    let error = master.during(join(&token, "second", &second)).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Denied(reason) if reason.contains("is used up")),
        "{error}"
    );
    assert!(!Identity::exists(&second));
    let error = join(&token, "first", &dir.path().join("first")).await.unwrap_err();
    assert!(matches!(error, JoinError::AlreadyJoined { .. }), "{error}");

    // The refused board may try again with a new token.
    master.token.uses_left = 1;
    master.during(join(&token, "second", &second)).await.unwrap();

    // A forged secret, a token that expired, and another master's token.
    let third = dir.path().join("third");
    let parsed = wire::enrol::TokenV1::from_text(&token).unwrap();
    let forged = wire::enrol::TokenV1 { secret: [1; 20], ..parsed.clone() };
    let error = master.during(join(&forged.to_text(), "third", &third)).await.unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
    master.token.expires_s = 5;
    let error = master.during(join(&token, "third", &third)).await.unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
    let foreign = wire::enrol::TokenV1 { ca_sha256: [1; 32], ..parsed };
    let error = master.during(join(&foreign.to_text(), "third", &third)).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::NotTheMaster { reason, .. } if reason.contains("hash")),
        "{error}"
    );
    assert!(!Identity::exists(&third));
}
