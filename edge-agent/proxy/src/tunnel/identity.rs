//! Who this node is to the other nodes, and how it knows who they are.
//!
//! Nodes have the certificates of their enrolment, which are made for clients:
//! both ends of a link verify the other as a client of the cluster. A chain must
//! end in one of the cluster's CAs, the organisation must be `system:nodes`, and
//! the common name is the node. Who dials requires the name that it dialled; who
//! accepts takes any node's and looks it up in its table.
//!
//! Boards have no clock, so certificates are judged at the latest time that is
//! known to be past: what the program says ([`Identity::known_past`]), and the day
//! on which the CA or the certificate itself was made.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The protocol of links between nodes.
pub(super) const ALPN_LINK: &[u8] = b"pinnace-link/1";
/// What a link is dialled as; who answers is known by its common name.
pub(super) const SERVER_NAME: &str = "pinnace-node";
/// The organisation of nodes, as Kubernetes names it.
const NODES: &str = "system:nodes";

/// Who this node is.
pub struct Identity {
    /// Its certificate, and what is between that and the CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the certificate.
    pub key: PrivateKeyDer<'static>,
    /// The CAs of the cluster.
    pub cas: Vec<CertificateDer<'static>>,
    /// The latest time that is known to be past: the clock's where something keeps
    /// it right, when the program was built otherwise.
    pub known_past: fn() -> UnixTime,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            cas: self.cas.clone(),
            known_past: self.known_past,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("n_cas", &self.cas.len()).finish_non_exhaustive()
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key does not fit the certificate, or one of them is damaged.
    #[error("cannot use the node's certificate and key: remove the folder and join again")]
    Certificate(#[source] rustls::Error),
    /// It names no node.
    #[error("the node's certificate names no node: {0}")]
    Name(String),
}

/// What TLS and QUIC need of an [`Identity`].
pub(super) struct Keys {
    identity: Identity,
    provider: Arc<CryptoProvider>,
    /// For those who dial this node.
    pub(super) server: Arc<ServerConfig>,
    /// The name in the certificate.
    pub(super) node: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Keys {
    pub(super) fn new(identity: Identity) -> Result<Self, IdentityError> {
        let leaf = identity.chain.first().ok_or_else(|| IdentityError::Name("it is empty".into()));
        let node = node_name(leaf?).map_err(IdentityError::Name)?;
        let has_aes = has_aes();
        let provider = Arc::new(provider(has_aes));
        let verifier = Verifier::new(&identity, &provider, None);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::Certificate)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(IdentityError::Certificate)?;
        server.alpn_protocols = vec![ALPN_LINK.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // Whoever of the two has no AES in its processor decides.
        server.ignore_client_order = !has_aes;
        Ok(Self { identity, provider, server: Arc::new(server), node })
    }

    /// For dialling `peer`, and nobody else.
    pub(super) fn client(&self, peer: &str) -> Result<(ClientConfig, Refusal), rustls::Error> {
        let verifier = Verifier::new(&self.identity, &self.provider, Some(peer.to_owned()));
        let refusal = verifier.refusal.clone();
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.identity.chain.clone(), self.identity.key.clone_key())?;
        config.alpn_protocols = vec![ALPN_LINK.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok((config, refusal))
    }

    /// A key that is the same after a restart, for QUIC's stateless resets: a peer
    /// learns from the first packet it sends that this node has forgotten it.
    pub(super) fn reset_key(&self) -> ring::hmac::Key {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.identity.key.secret_der());
        let derived = ring::hmac::sign(&key, b"pinnace-link stateless reset");
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref())
    }
}

/// Why a certificate was refused: what TLS and QUIC make of it is hard to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    /// The error for people.
    pub(super) fn explain(&self, error: impl fmt::Display) -> io::Error {
        let why = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match why {
            Some(why) => io::Error::new(io::ErrorKind::PermissionDenied, why),
            None => io::Error::other(error.to_string()),
        }
    }

    fn remember(&self, error: &rustls::Error) {
        let why = match error {
            // Two clusters' CAs may have the same name; then only the signature differs.
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => "its certificate is of another cluster".into(),
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => "its certificate has expired (or this board's clock is ahead)".into(),
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
            other => other.to_string(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// ChaCha20 first where the processor has no AES. AES-128-GCM stays: the first
/// packets of QUIC need it.
fn provider(has_aes: bool) -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let (chacha, aes) = (TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256);
    provider.cipher_suites = if has_aes {
        vec![aes, chacha, TLS13_AES_256_GCM_SHA384]
    } else {
        vec![chacha, aes, TLS13_AES_256_GCM_SHA384]
    };
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    return false;
}

/// The node that a certificate names, or why it names none.
pub(super) fn node_name(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("it does not read: {error}"))?;
    let subject = certificate.subject();
    let names: Vec<&str> =
        subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let [name] = names.as_slice() else {
        return Err(format!("it has {} common names", names.len()));
    };
    let shown: String = name.chars().take(80).collect();
    if !subject.iter_organization().any(|name| name.as_str() == Ok(NODES)) {
        return Err(format!("\"{shown}\" is not of the organisation {NODES}"));
    }
    if name.is_empty() || name.len() > 253 {
        return Err(format!("\"{shown}\" is no name of a node"));
    }
    Ok((*name).to_owned())
}

/// Verifies the other end of a link, whichever of the two dialled.
struct Verifier {
    cas: Vec<CertificateDer<'static>>,
    /// Who it must be; any node where it is not said.
    expected: Option<String>,
    known_past: fn() -> UnixTime,
    provider: Arc<CryptoProvider>,
    refusal: Refusal,
}

/// Why a certificate that is right by itself was refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Verifier {
    fn new(identity: &Identity, provider: &Arc<CryptoProvider>, expected: Option<String>) -> Self {
        Self {
            cas: identity.cas.clone(),
            expected,
            known_past: identity.known_past,
            provider: provider.clone(),
            refusal: Refusal::default(),
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let verified = self.verify_chain(leaf, chain);
        verified.inspect_err(|error| self.refusal.remember(error))
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let mut result = Err(refused("no CA of the cluster is known".into()));
        for ca in &self.cas {
            let now = [(self.known_past)(), not_before(ca), not_before(leaf)];
            let now = now.iter().map(UnixTime::as_secs).max().unwrap_or(0);
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            let mut roots = RootCertStore::empty();
            roots.add(ca.clone())?;
            let provider = self.provider.clone();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            result = verifier.verify_client_cert(leaf, chain, now).map(|_| ());
            if result.is_ok() {
                break;
            }
        }
        result?;
        let name = node_name(leaf).map_err(refused)?;
        match &self.expected {
            Some(expected) if *expected != name => {
                let shown: String = name.chars().take(80).collect();
                Err(refused(format!("node \"{shown}\" answers where \"{expected}\" should")))
            }
            _ => Ok(()),
        }
    }
}

fn refused(why: String) -> rustls::Error {
    let why = OtherError(Arc::new(Refused(why)));
    rustls::Error::InvalidCertificate(CertificateError::Other(why))
}

fn not_before(certificate: &CertificateDer<'_>) -> UnixTime {
    let seconds = X509Certificate::from_der(certificate)
        .ok()
        .and_then(|(_, read)| u64::try_from(read.validity.not_before.timestamp()).ok());
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.unwrap_or(0)))
}

fn only_tls13() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, chain).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, chain).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
        IsCa, Issuer, KeyPair,
    };

    use super::*;

    const DAY_S: i64 = 86_400;
    /// 1 January 2026.
    const MADE_S: i64 = 1_767_225_600;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        certificate: CertificateDer<'static>,
    }

    fn time(seconds: i64) -> time::OffsetDateTime {
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        (params.not_before, params.not_after) = (time(MADE_S), time(MADE_S + 3650 * DAY_S));
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Ca { issuer: Issuer::new(params, key), certificate }
    }

    fn leaf(
        ca: &Ca,
        group: &str,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (time(MADE_S), time(MADE_S + 365 * DAY_S));
        params.signed_by(&KeyPair::generate().unwrap(), &ca.issuer).unwrap().der().clone()
    }

    fn at<const SECONDS: u64>() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(SECONDS))
    }

    fn verify(
        cas: &[&Ca],
        expected: Option<&str>,
        known_past: fn() -> UnixTime,
        leaf: &CertificateDer<'static>,
    ) -> Result<(), String> {
        let verifier = Verifier {
            cas: cas.iter().map(|ca| ca.certificate.clone()).collect(),
            expected: expected.map(str::to_owned),
            known_past,
            provider: Arc::new(provider(true)),
            refusal: Refusal::default(),
        };
        let dialled = ServerName::try_from(SERVER_NAME).unwrap();
        let now = at::<0>();
        let as_server = verifier.verify_server_cert(leaf, &[], &dialled, &[], now).map(|_| ());
        let as_client = verifier.verify_client_cert(leaf, &[], now).map(|_| ());
        let (as_server, as_client) = (format!("{as_server:?}"), format!("{as_client:?}"));
        assert_eq!(as_server, as_client, "both ends judge alike");
        if as_server == "Ok(())" { Ok(()) } else { Err(as_server) }
    }

    #[test]
    fn a_node_is_known_by_chain_organisation_and_name_and_nobody_else_is() {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let (ours, old, theirs) = (ca(), ca(), ca());
        const NOW: u64 = 1_767_225_600 + 86_400;
        const LATER: u64 = 1_767_225_600 + 366 * 86_400;
        let node = || leaf(&ours, NODES, "pi-1", ClientAuth);
        let cases = [
            ("right", Some("pi-1"), at::<NOW>(), node(), ""),
            ("any node", None, at::<NOW>(), node(), ""),
            ("of the CA before", None, at::<NOW>(), leaf(&old, NODES, "x", ClientAuth), ""),
            ("without a clock", Some("pi-1"), at::<0>(), node(), ""),
            ("another node", Some("pi-2"), at::<NOW>(), node(), "should"),
            ("a stranger", None, at::<NOW>(), leaf(&theirs, NODES, "pi-1", ClientAuth), "BadSig"),
            ("expired", None, at::<LATER>(), node(), "Expired"),
            ("a user", None, at::<NOW>(), leaf(&ours, "dev", "pi-1", ClientAuth), NODES),
            ("the master", None, at::<NOW>(), leaf(&ours, NODES, "m", ServerAuth), "Purpose"),
            ("nameless", None, at::<NOW>(), leaf(&ours, NODES, "", ClientAuth), "no name"),
            ("garbage", None, at::<NOW>(), CertificateDer::from(vec![0x30, 3, 1]), "Bad"),
        ];
        for (what, expected, now, leaf, error) in cases {
            let past: fn() -> UnixTime = match now.as_secs() {
                NOW => at::<NOW>,
                LATER => at::<LATER>,
                _ => at::<0>,
            };
            let got = verify(&[&ours, &old], expected, past, &leaf);
            match (error, &got) {
                ("", Ok(())) => {}
                ("", Err(_)) | (_, Ok(())) => panic!("{what}: {got:?}"),
                (error, Err(got)) => assert!(got.contains(error), "{what}: {got}"),
            }
        }
    }

    #[test]
    fn a_certificate_made_after_the_program_is_not_too_new() {
        let ours = ca();
        let node = leaf(&ours, NODES, "pi-1", ExtendedKeyUsagePurpose::ClientAuth);
        assert_eq!(verify(&[&ours], None, at::<1_000_000_000>, &node), Ok(()));
        assert!(verify(&[], None, at::<0>, &node).unwrap_err().contains("no CA"));
    }

    #[test]
    fn without_aes_in_the_processor_chacha_is_first_and_quic_still_begins() {
        for (has_aes, first) in
            [(true, TLS13_AES_128_GCM_SHA256), (false, TLS13_CHACHA20_POLY1305_SHA256)]
        {
            let provider = provider(has_aes);
            assert_eq!(provider.cipher_suites[0], first);
            assert!(provider.cipher_suites.contains(&TLS13_AES_128_GCM_SHA256));
        }
    }
}
