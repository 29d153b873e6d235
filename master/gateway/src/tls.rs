//! The TLS side of the node port.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use wire::{ALPN_API, ALPN_BLOB, ALPN_MQTT, ALPN_RELAY, ALPN_STREAM};

/// The system's clock, but never earlier than a time that is known to be past:
/// a board without a battery starts in 1970, and every certificate would be "not
/// valid yet".
#[derive(Clone, Copy, Debug)]
pub struct ClockFloor {
    /// Seconds since 1970: the build's time, or when a certificate was issued.
    pub floor_s: u64,
}

impl TimeProvider for ClockFloor {
    fn current_time(&self) -> Option<UnixTime> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Some(UnixTime::since_unix_epoch(now.max(Duration::from_secs(self.floor_s))))
    }
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// The CA or the certificate is damaged, or the key does not fit it.
    #[error("cannot use the node port's certificate or key")]
    Certificate(#[from] rustls::Error),
    /// Nothing to verify nodes with.
    #[error("cannot verify nodes with the CA certificates given")]
    Roots(#[from] rustls::server::VerifierBuilderError),
}

/// The configuration of the node port: TLS 1.3 only, a client certificate of
/// `node_cas` is verified where one is given, and no session is resumed, so that
/// a revoked certificate is seen at every connection.
///
/// `chain` is the leaf, named `pinnace-master`, and the CA that tokens pin.
///
/// # Errors
/// Where certificates or key cannot be used.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    node_cas: impl IntoIterator<Item = CertificateDer<'static>>,
    clock: ClockFloor,
) -> Result<Arc<ServerConfig>, ServerTlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in node_cas {
        roots.add(ca)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    let names = [ALPN_MQTT, ALPN_BLOB, ALPN_STREAM, ALPN_API, ALPN_RELAY];
    config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
