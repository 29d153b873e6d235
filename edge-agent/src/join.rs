//! Makes a board a node: `pinnace-agent join TOKEN --state-dir DIR`.
//!
//! ```text
//! token ──► key made here ──► TLS to the master, known by the CA hash in the token
//!       ──► subscribe to the answer ──► request with proof ──► answer with proof
//!       ──► identity written, whole or not at all
//! ```
//!
//! The key never leaves the board, nor does the token's secret: both sides only
//! prove that they know it (HMAC-SHA256). Key and request are kept in
//! `<state_dir>/join/` until the identity is written, so that a board that lost
//! power, or the answer, asks for the same again and gets the same certificate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, PubAckReason, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};
use wire::enrol::{JoinRequestV1, JoinResponseV1, TokenV1};
use wire::envelope::{Decoded, EnvelopeError, Message, decode, encode};
use wire::token::{TokenError, issued_mac_input, split_endpoint};
use wire::topic::{NodeNameError, Topic, check_node_name};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{
    FOLDER, Identity, IdentityError, io_error, make_folder, pkcs8, read, sync_folder, write_secret,
};
use crate::link::mqtt::options;
use crate::link::tls::{MasterVerifier, Trust, join_config};

/// Time for one endpoint to connect and answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The request is sent again after this time without an answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Where key and request wait.
const PENDING: &str = "join";

/// Why the board is no node yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token does not read.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The name is none.
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    /// There is an identity already.
    #[error("this board has joined as node \"{node}\": to join again, remove {}", folder.display())]
    AlreadyJoined {
        /// Its name.
        node: String,
        /// What to remove.
        folder: PathBuf,
    },
    /// The server is not the master that made the token.
    #[error("{endpoint} is not the master that made this token: {reason}")]
    NotTheMaster {
        /// Where it is.
        endpoint: String,
        /// What its certificate lacks.
        reason: String,
    },
    /// No endpoint was reached.
    #[error("cannot reach the master at {endpoint}: {reason}")]
    Unreachable {
        /// The last one tried.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The master said no.
    #[error("the master refused: {0}")]
    Denied(String),
    /// The answer is not what a master sends.
    #[error("the answer of {endpoint} is not usable: {reason}")]
    Answer {
        /// Where it came from.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Key or identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No key or request could be made.
    #[error("cannot make a key and a certificate request")]
    Key(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// The name a board takes where none is given: its host name, as a DNS label.
#[must_use]
pub fn default_node_name(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or("");
    let name: String = label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(wire::topic::NODE_NAME_MAX)
        .collect();
    name.trim_matches('-').to_owned()
}

/// Joins with the token's line, as `node`, and keeps the identity in `state_dir`.
///
/// # Errors
/// Says what went wrong and what to do; nothing is left half done.
pub async fn join(token: &str, node: &str, state_dir: &Path) -> Result<Identity, JoinError> {
    let token = TokenV1::from_text(token)?;
    check_node_name(node)?;
    if Identity::exists(state_dir) {
        let node = Identity::load(state_dir)?.node;
        return Err(JoinError::AlreadyJoined { node, folder: state_dir.join(FOLDER) });
    }
    let pending = Pending::take_up(state_dir)?;
    let request = request(&token, node, &pending.csr)?;
    let mut result = None;
    for endpoint in &token.endpoints {
        let asked = ask(&token, endpoint, &request).await;
        // A refusal is an answer; anything else may be better elsewhere.
        let stop = matches!(asked, Ok(_) | Err(JoinError::Denied(_)));
        result = Some(asked);
        if stop {
            break;
        }
    }
    let answer = result.expect("a token has at least one endpoint")?;
    let identity = Identity {
        node: node.into(),
        key: pkcs8(pending.key.serialize_der()),
        certificate: answer.certificate,
        cas: vec![answer.ca],
        endpoints: token.endpoints,
        artifact_key: answer.artifact_key,
        labels: answer.labels,
    };
    check_certificate(&identity, &pending.key)?;
    identity.store(state_dir)?;
    Pending::forget(state_dir)?;
    Ok(identity)
}

/// Key and request, kept until the identity is.
struct Pending {
    key: KeyPair,
    csr: Vec<u8>,
}

impl Pending {
    /// Those of an earlier try, or new ones.
    fn take_up(state_dir: &Path) -> Result<Self, JoinError> {
        let folder = state_dir.join(PENDING);
        let (key_path, csr_path) = (folder.join("key.der"), folder.join("request.der"));
        if csr_path.exists() {
            let key = KeyPair::try_from(read(&key_path)?.as_slice());
            let csr = read(&csr_path)?;
            if let Ok(key) = key
                && !csr.is_empty()
            {
                return Ok(Self { key, csr });
            }
        }
        Self::forget(state_dir)?;
        make_folder(&folder)?;
        // P-256: every board verifies it fast, and every TLS library knows it.
        let key = KeyPair::generate()?;
        let csr = CertificateParams::new(Vec::new())?.serialize_request(&key)?.der().to_vec();
        write_secret(&key_path, &key.serialize_der())?;
        // The request comes last: where it is, the key is whole.
        write_secret(&csr_path, &csr)?;
        sync_folder(&folder)?;
        Ok(Self { key, csr })
    }

    fn forget(state_dir: &Path) -> Result<(), IdentityError> {
        let folder = state_dir.join(PENDING);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &folder)(error))
            }
            _ => Ok(()),
        }
    }
}

fn request(token: &TokenV1, node: &str, csr: &[u8]) -> Result<JoinRequestV1, JoinError> {
    let mut request = JoinRequestV1 {
        token_id: token.id.clone(),
        node: node.into(),
        nonce: random()?,
        csr: csr.to_vec(),
        mac: [0; 32],
    };
    let mac = hmac::sign(&secret_key(token), &request.mac_input());
    request.mac.copy_from_slice(mac.as_ref());
    Ok(request)
}

fn secret_key(token: &TokenV1) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &token.secret)
}

fn random<const N: usize>() -> Result<[u8; N], JoinError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_unspecified| JoinError::Random)?;
    Ok(bytes)
}

/// What the master gave, its proof checked.
struct Answer {
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    artifact_key: [u8; 32],
    labels: Vec<(String, String)>,
}

async fn ask(
    token: &TokenV1,
    endpoint: &str,
    request: &JoinRequestV1,
) -> Result<Answer, JoinError> {
    let verifier = MasterVerifier::new(Trust::Pin(token.ca_sha256));
    let client_id = format!("join-{}", URL_SAFE_NO_PAD.encode(random::<15>()?));
    let (host, port) = split_endpoint(endpoint).unwrap_or((endpoint, 8883));
    let tls = join_config(verifier.clone());
    let options = options(&client_id, host, port, tls, Duration::from_secs(10));
    let (client, events) = AsyncClient::new(options, 16);
    let mut exchange = Exchange { endpoint, client_id: &client_id, client, events, verifier };
    let bytes = exchange.answer(&encode(request)).await?;
    let unusable = |reason: String| JoinError::Answer { endpoint: endpoint.into(), reason };
    let response = match decode(&bytes) {
        Ok(Decoded::Message(Message::JoinResponse(response))) => response,
        Ok(_) => return Err(unusable("it is another message".into())),
        Err(error) => return Err(unusable(EnvelopeError::to_string(&error))),
    };
    let JoinResponseV1::Issued { certificate, ca, artifact_key, labels, mac } = response else {
        let JoinResponseV1::Denied(reason) = response else {
            return Err(unusable("it is of a newer kind: upgrade the agent".into()));
        };
        return Err(JoinError::Denied(reason.chars().take(500).collect()));
    };
    let input = issued_mac_input(&request.nonce, &certificate, &ca, &artifact_key, &labels);
    hmac::verify(&secret_key(token), &input, &mac)
        .map_err(|_unspecified| unusable("its proof does not fit the token".into()))?;
    let ca = CertificateDer::from(ca);
    if exchange.verifier.ca().as_ref() != Some(&ca) {
        return Err(unusable("its CA is not the one the token names".into()));
    }
    Ok(Answer { certificate: certificate.into(), ca, artifact_key, labels })
}

/// One connection that asks and waits for the answer.
struct Exchange<'a> {
    endpoint: &'a str,
    client_id: &'a str,
    client: AsyncClient,
    events: EventLoop,
    verifier: Arc<MasterVerifier>,
}

impl Exchange<'_> {
    async fn answer(&mut self, request: &[u8]) -> Result<Vec<u8>, JoinError> {
        let response_topic = Topic::JoinResponse { client: self.client_id }.to_string();
        let request_topic = Topic::JoinRequest { client: self.client_id }.to_string();
        let end = Instant::now() + ANSWER_TIMEOUT;
        let mut ask_again = None;
        loop {
            let polled =
                match timeout_at(ask_again.unwrap_or(end).min(end), self.events.poll()).await {
                    Ok(polled) => polled,
                    Err(_elapsed) if Instant::now() < end => {
                        // An answer, or the question, was lost.
                        self.publish(&request_topic, request)?;
                        ask_again = Some(Instant::now() + ASK_AGAIN);
                        continue;
                    }
                    Err(_elapsed) => return Err(self.unreachable("it does not answer".into())),
                };
            let packet = match polled {
                Ok(Event::Incoming(packet)) => packet,
                Ok(Event::Outgoing(_)) => continue,
                Err(error) => return Err(self.failed(&error)),
            };
            match packet {
                Packet::ConnAck(_) => self
                    .client
                    .try_subscribe(&response_topic, QoS::AtLeastOnce)
                    .map_err(|error| self.unreachable(error.to_string()))?,
                Packet::SubAck(ack) => {
                    // Only now can an answer arrive.
                    if !matches!(ack.return_codes.as_slice(), [SubscribeReasonCode::Success(_)]) {
                        return Err(self.unreachable("it does not let boards join".into()));
                    }
                    self.publish(&request_topic, request)?;
                    ask_again = Some(Instant::now() + ASK_AGAIN);
                }
                Packet::PubAck(ack) if ack.reason == PubAckReason::NotAuthorized => {
                    return Err(self.unreachable("it does not let boards join".into()));
                }
                Packet::Publish(publish) if publish.topic == response_topic => {
                    let _gone = self.client.try_disconnect();
                    return Ok(publish.payload.to_vec());
                }
                _ => {}
            }
        }
    }

    fn publish(&self, topic: &str, request: &[u8]) -> Result<(), JoinError> {
        self.client
            .try_publish(topic, QoS::AtLeastOnce, false, request.to_vec())
            .map_err(|error| self.unreachable(error.to_string()))
    }

    fn failed(&self, error: &ConnectionError) -> JoinError {
        let endpoint = self.endpoint.into();
        if let Some(reason) = self.verifier.refused() {
            return JoinError::NotTheMaster { endpoint, reason };
        }
        let reason = match error {
            ConnectionError::ConnectionRefused(ConnectReturnCode::ServerBusy) => {
                "too many boards join at once: try again in a minute".into()
            }
            ConnectionError::Timeout(_) => "it does not answer".into(),
            ConnectionError::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        JoinError::Unreachable { endpoint, reason }
    }

    fn unreachable(&self, reason: String) -> JoinError {
        JoinError::Unreachable { endpoint: self.endpoint.into(), reason }
    }
}

/// The certificate must be for our key and name, or the link would never come up.
fn check_certificate(identity: &Identity, key: &KeyPair) -> Result<(), JoinError> {
    let unusable = |reason: &str| JoinError::Answer {
        endpoint: identity.endpoints.join(", "),
        reason: reason.into(),
    };
    let (_, certificate) = X509Certificate::from_der(&identity.certificate)
        .map_err(|_error| unusable("its certificate does not read"))?;
    if certificate.tbs_certificate.subject_pki.raw != key.subject_public_key_info() {
        return Err(unusable("its certificate is for another key"));
    }
    let named = certificate
        .subject()
        .iter_common_name()
        .any(|name| name.as_str() == Ok(identity.node.as_str()));
    if named { Ok(()) } else { Err(unusable("its certificate is for another name")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_node_name() {
        for (hostname, expected) in [
            ("board-7", "board-7"),
            ("Board_7.local.lan", "board-7"),
            ("-x-", "x"),
            ("", ""),
            ("raspberrypi", "raspberrypi"),
        ] {
            assert_eq!(default_node_name(hostname), expected);
        }
    }

    #[test]
    fn an_interrupted_join_goes_on_with_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pending::take_up(dir.path()).unwrap();
        let second = Pending::take_up(dir.path()).unwrap();
        assert_eq!(first.csr, second.csr);
        assert_eq!(first.key.serialize_der(), second.key.serialize_der());
        fs::write(dir.path().join("join/key.der"), "damaged").unwrap();
        let third = Pending::take_up(dir.path()).unwrap();
        assert_ne!(first.csr, third.csr);
        Pending::forget(dir.path()).unwrap();
        assert!(!dir.path().join("join").exists());
    }

    #[tokio::test]
    async fn what_is_wrong_before_anything_is_sent_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = join("pn1.x", "board", dir.path()).await.unwrap_err();
        assert!(matches!(error, JoinError::Token(_)), "{error}");
        let token = TokenV1 {
            endpoints: vec!["127.0.0.1:1".into()],
            ca_sha256: [0; 32],
            id: "a1b2c3d4".into(),
            secret: [0; 20],
            ext: Vec::new(),
        };
        let error = join(&token.to_text(), "Board", dir.path()).await.unwrap_err();
        assert!(matches!(error, JoinError::NodeName(_)), "{error}");
        let error = join(&token.to_text(), "board", dir.path()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot reach the master at 127.0.0.1:1"), "{error}");
        assert!(!Identity::exists(dir.path()));
    }
}
