//! How the agent knows that it talks to its master.
//!
//! The name is always `pinnace-master`, whatever address was dialled, and the
//! chain must end in a CA that the node has pinned. Boards start without a
//! clock, or years ahead, so certificates are judged at the latest time that is
//! known to be past: the build, the day on which the CA or the master's
//! certificate itself was made, and the system's clock while the kernel says that
//! it is kept right. "Not valid yet" is then never the answer, whatever the
//! clock says; "expired" is, where the clock is right.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use wire::MASTER_SERVER_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::Identity;

/// When this program was built, in seconds since 1970, where the build says so.
const BUILT_S: Option<&str> = option_env!("SOURCE_DATE_EPOCH");

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key does not fit the certificate, or one of them is damaged.
    #[error("cannot use the node's certificate and key: remove the folder and join again")]
    Identity(#[source] rustls::Error),
}

/// What the master's chain must end in.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// One of these CAs.
    Cas(Vec<CertificateDer<'static>>),
    /// The CA with this SHA-256, which the server sends along.
    Pin([u8; 32]),
}

/// The configuration for a node that has joined.
pub(crate) fn node_config(identity: &Identity, alpn: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = MasterVerifier::new(Trust::Cas(identity.cas.clone()));
    let config = builder(verifier)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .map_err(TlsError::Identity)?;
    Ok(finished(config, alpn))
}

/// The configuration for a board that joins.
pub(crate) fn join_config(verifier: Arc<MasterVerifier>) -> Arc<ClientConfig> {
    finished(builder(verifier).with_no_client_auth(), wire::ALPN_MQTT)
}

fn builder(
    verifier: Arc<MasterVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has what TLS 1.3 needs")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn finished(mut config: ClientConfig, alpn: &[u8]) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// The latest time that is known to be past, whoever's certificate it is.
pub(crate) fn known_past() -> UnixTime {
    let is_right = crate::clock::is_synchronised();
    let now = if is_right { UnixTime::now() } else { UnixTime::since_unix_epoch(Duration::ZERO) };
    latest([now, built(is_right)])
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Verifies the master's certificate. Remembers why it refused one, since what a
/// client library makes of it is hard to read.
#[derive(Debug)]
pub(crate) struct MasterVerifier {
    trust: Trust,
    /// Whether the system's clock is to be believed.
    is_clock_right: fn() -> bool,
    provider: Arc<CryptoProvider>,
    refused: Mutex<Option<String>>,
    /// The CA that the last chain ended in.
    ca: Mutex<Option<CertificateDer<'static>>>,
}

impl MasterVerifier {
    pub(crate) fn new(trust: Trust) -> Arc<Self> {
        Self::with_clock(trust, crate::clock::is_synchronised)
    }

    fn with_clock(trust: Trust, is_clock_right: fn() -> bool) -> Arc<Self> {
        Arc::new(Self {
            trust,
            is_clock_right,
            provider: provider(),
            refused: Mutex::default(),
            ca: Mutex::default(),
        })
    }

    /// Why the last server was refused; asked once.
    pub(crate) fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The CA that the last accepted chain ended in.
    pub(crate) fn ca(&self) -> Option<CertificateDer<'static>> {
        self.ca.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, rustls::Error> {
        let is_right = (self.is_clock_right)();
        let now = if is_right { now } else { UnixTime::since_unix_epoch(Duration::ZERO) };
        let pinned;
        let cas = match &self.trust {
            Trust::Cas(cas) => cas,
            Trust::Pin(pin) => {
                let ca = chain.iter().find(|ca| sha256(ca) == *pin).ok_or_else(|| {
                    rustls::Error::General("its chain has no CA with the token's hash".into())
                })?;
                pinned = vec![ca.clone().into_owned()];
                &pinned
            }
        };
        let name = ServerName::try_from(MASTER_SERVER_NAME).expect("a DNS name");
        let mut result = Err(rustls::Error::General("no CA is known".into()));
        for ca in cas {
            let now = latest([now, built(is_right), not_before(ca), not_before(leaf)]);
            let mut roots = RootCertStore::empty();
            roots.add(ca.clone())?;
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?;
            match verifier.verify_server_cert(leaf, chain, &name, &[], now) {
                Ok(_) => return Ok(ca.clone()),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

impl ServerCertVerifier for MasterVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.verify(leaf, chain, now) {
            Ok(ca) => {
                *self.ca.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca);
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => {
                let reason = explain(&error);
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                Err(error)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
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

fn explain(error: &rustls::Error) -> String {
    match error {
        // Two clusters' CAs may have the same name; then only the signature differs.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "its certificate is not signed by the CA of this node's master".into(),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("its certificate is not for the name {MASTER_SERVER_NAME}"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired (or this board's clock is ahead)".into(),
        rustls::Error::General(reason) => reason.clone(),
        other => other.to_string(),
    }
}

fn latest<const N: usize>(times: [UnixTime; N]) -> UnixTime {
    let seconds = times.iter().map(UnixTime::as_secs).max().unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// When this program was made: as its build says, or as its file says, which a
/// wrong clock may have dated.
fn built(is_clock_right: bool) -> UnixTime {
    let said = BUILT_S.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let built = said.or_else(|| {
        if !is_clock_right {
            return None;
        }
        let modified = std::fs::metadata("/proc/self/exe").ok()?.modified().ok()?;
        // A file from the future would make every certificate expired.
        let modified = modified.min(SystemTime::now());
        modified.duration_since(UNIX_EPOCH).ok()
    });
    UnixTime::since_unix_epoch(built.unwrap_or_default())
}

fn not_before(certificate: &CertificateDer<'_>) -> UnixTime {
    let seconds = X509Certificate::from_der(certificate)
        .ok()
        .and_then(|(_, certificate)| {
            u64::try_from(certificate.validity.not_before.timestamp()).ok()
        })
        .unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    const DAY_S: i64 = 86_400;
    /// 1 January 2026.
    const MADE_S: i64 = 1_767_225_600;

    struct Master {
        ca: CertificateDer<'static>,
        leaf: CertificateDer<'static>,
    }

    fn master(name: &str, leaf_from_s: i64, days: i64) -> Master {
        let time = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.not_before = time(MADE_S);
        ca.not_after = time(MADE_S + 3650 * DAY_S);
        let ca_der = ca.self_signed(&ca_key).unwrap().der().clone();
        let mut leaf = CertificateParams::new(vec![name.into()]).unwrap();
        leaf.not_before = time(leaf_from_s);
        leaf.not_after = time(leaf_from_s + days * DAY_S);
        let issuer = Issuer::new(ca, ca_key);
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
        Master { ca: ca_der, leaf }
    }

    fn verify(trust: Trust, server: &Master, now_s: i64) -> Result<(), String> {
        verify_by(|| true, trust, server, now_s)
    }

    fn verify_by(
        is_clock_right: fn() -> bool,
        trust: Trust,
        server: &Master,
        now_s: i64,
    ) -> Result<(), String> {
        let verifier = MasterVerifier::with_clock(trust, is_clock_right);
        let now = Duration::from_secs(u64::try_from(now_s).unwrap());
        let dialled = ServerName::try_from("192.0.2.7").unwrap();
        let chain = std::slice::from_ref(&server.ca);
        verifier
            .verify_server_cert(&server.leaf, chain, &dialled, &[], UnixTime::since_unix_epoch(now))
            .map(|_| ())
            .map_err(|_| verifier.refused().unwrap())
    }

    #[test]
    fn the_master_is_known_by_its_fixed_name_at_any_address() {
        let server = master("pinnace-master", MADE_S, 36_500);
        let now_s = MADE_S + DAY_S;
        assert_eq!(verify(Trust::Cas(vec![server.ca.clone()]), &server, now_s), Ok(()));
        assert_eq!(verify(Trust::Pin(sha256(&server.ca)), &server, now_s), Ok(()));
        let other = master("192.0.2.7", MADE_S, 36_500);
        let error = verify(Trust::Cas(vec![other.ca.clone()]), &other, now_s).unwrap_err();
        assert!(error.contains("pinnace-master"), "{error}");
    }

    #[test]
    fn another_ca_is_refused_even_if_it_is_sent_along() {
        let (ours, other) =
            (master("pinnace-master", MADE_S, 9_000), master("pinnace-master", MADE_S, 9_000));
        let error = verify(Trust::Pin(sha256(&ours.ca)), &other, MADE_S).unwrap_err();
        assert!(error.contains("token's hash"), "{error}");
        let error = verify(Trust::Cas(vec![ours.ca.clone()]), &other, MADE_S).unwrap_err();
        assert!(error.contains("not signed by"), "{error}");
        // The pinned CA in the chain does not help a leaf of another CA.
        let mixed = Master { ca: ours.ca.clone(), leaf: other.leaf };
        assert!(verify(Trust::Pin(sha256(&ours.ca)), &mixed, MADE_S).is_err());
    }

    #[test]
    fn either_of_two_cas_will_do_while_the_ca_is_replaced() {
        let (old, new) =
            (master("pinnace-master", MADE_S, 36_500), master("pinnace-master", MADE_S, 36_500));
        let both = || Trust::Cas(vec![old.ca.clone(), new.ca.clone()]);
        assert_eq!(verify(both(), &old, MADE_S + DAY_S), Ok(()));
        assert_eq!(verify(both(), &new, MADE_S + DAY_S), Ok(()));
    }

    #[test]
    fn a_board_without_a_clock_connects_and_an_expired_certificate_does_not() {
        // Made long after this program and the CA, as after a renewal.
        let renewed_s = MADE_S + 1500 * DAY_S;
        let server = master("pinnace-master", renewed_s, 90);
        let trust = || Trust::Cas(vec![server.ca.clone()]);
        assert_eq!(verify(trust(), &server, 0), Ok(()), "1970");
        assert_eq!(verify(trust(), &server, renewed_s + DAY_S), Ok(()));
        let error = verify(trust(), &server, renewed_s + 91 * DAY_S).unwrap_err();
        assert!(error.contains("expired"), "{error}");
        // A clock that nobody keeps right proves nothing, ten years ahead or in 1970.
        for now_s in [0, renewed_s + 3650 * DAY_S] {
            assert_eq!(verify_by(|| false, trust(), &server, now_s), Ok(()), "{now_s}");
        }
    }
}
