//! Who may in: the certificate that the door shows, the token that it asks for, and
//! the kubeconfig that names both to whoever is root.
//!
//! | file | holds |
//! | --- | --- |
//! | `run/kubeconfig` | address, certificate, token |
//! | `run/local-api` | key, certificate and token, as [`Kept`] |
//!
//! Both are 0600 and on tmpfs: made anew after a boot, kept over restarts of the
//! agent, so that a shell that uses them goes on. The certificate is good for every
//! time that a clock can show, because a board may have none.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use ring::rand::SecureRandom as _;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::KUBECONFIG;
use crate::durable::{self, DurableError, Keep, Magic};

const MAGIC: Magic = *b"PNdoor\0\x01";
/// Largest file of [`Kept`], in bytes.
const BYTES_MAX: u64 = 64 << 10;
/// Bytes of a token, before it is text.
const TOKEN_BYTES: usize = 32;

/// The door has no key.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    /// A certificate cannot be made.
    #[error("cannot make a certificate for the board's own API")]
    Certificate(#[from] rcgen::Error),
    /// The certificate cannot be used.
    #[error("cannot use the certificate of the board's own API")]
    Tls(#[from] rustls::Error),
    /// The kernel gives no randomness.
    #[error("the system gives no random bytes")]
    Random,
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] DurableError),
}

/// What the door is opened with.
pub(super) struct Credentials {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) token: Token,
}

/// The word that lets in. Only its hash is kept, so that comparing it tells nothing.
#[derive(Clone)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn new(text: &str) -> Self {
        Self(hash(text))
    }

    /// Whether `text` is it.
    pub(super) fn is(&self, text: &str) -> bool {
        // What the time of this comparison tells is about a hash, which helps nobody.
        self.0 == hash(text)
    }
}

fn hash(text: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What outlives the agent.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// The address that the certificate names.
    ip: IpAddr,
    /// PKCS #8.
    key: Vec<u8>,
    /// DER.
    certificate: Vec<u8>,
    token: String,
}

impl Credentials {
    /// Those of the agent before, or new ones, and the kubeconfig that names them.
    pub(super) fn open(
        run_dir: &Path,
        node: &str,
        address: SocketAddr,
    ) -> Result<Self, CredentialsError> {
        let path = run_dir.join("local-api");
        let known = durable::read::<Kept>(&path, MAGIC, BYTES_MAX).unwrap_or_else(|error| {
            tracing::warn!(error = crate::hooks::chain(&error), "the board's API has a new key");
            None
        });
        let known = known.filter(|kept| kept.ip == address.ip());
        let (kept, tls) = match known.and_then(|kept| Some((tls(&kept).ok()?, kept))) {
            Some((tls, kept)) => (kept, tls),
            None => {
                let kept = make(node, address.ip())?;
                let tls = tls(&kept)?;
                durable::write(&path, MAGIC, &kept, Keep::ThroughRestart)?;
                (kept, tls)
            }
        };
        let text = kubeconfig(node, address, &kept);
        write_kubeconfig(run_dir.join(KUBECONFIG), &text)?;
        Ok(Self { tls: Arc::new(tls), token: Token::new(&kept.token) })
    }
}

fn write_kubeconfig(path: PathBuf, text: &str) -> Result<(), CredentialsError> {
    Ok(durable::write_private(&path, text, Keep::ThroughRestart)?)
}

fn make(node: &str, ip: IpAddr) -> Result<Kept, CredentialsError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(ip));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{node} local API"));
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let certificate = params.self_signed(&key)?.der().to_vec();
    let mut token = [0; TOKEN_BYTES];
    ring::rand::SystemRandom::new().fill(&mut token).map_err(|_| CredentialsError::Random)?;
    Ok(Kept { ip, key: key.serialize_der(), certificate, token: URL_SAFE_NO_PAD.encode(token) })
}

fn tls(kept: &Kept) -> Result<ServerConfig, rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(kept.key.clone()));
    let certificate = CertificateDer::from(kept.certificate.clone());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The file for clients. Names are quoted as JSON strings, which YAML takes.
fn kubeconfig(node: &str, address: SocketAddr, kept: &Kept) -> String {
    let pem = pem(&kept.certificate);
    let ca = STANDARD.encode(pem);
    let (node, token) = (serde_json::json!(node), serde_json::json!(kept.token));
    format!(
        "# The API of this board alone, written by pinnace-agent at its start.\n\
         apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {node}\n\
         \x20 cluster:\n\
         \x20   server: https://{address}\n\
         \x20   certificate-authority-data: {ca}\n\
         users:\n\
         - name: {node}\n\
         \x20 user:\n\
         \x20   token: {token}\n\
         contexts:\n\
         - name: {node}\n\
         \x20 context:\n\
         \x20   cluster: {node}\n\
         \x20   user: {node}\n\
         current-context: {node}\n"
    )
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token_of(folder: &Path) -> String {
        let text = std::fs::read_to_string(folder.join(KUBECONFIG)).unwrap();
        let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(config["current-context"], "pi");
        config["users"][0]["user"]["token"].as_str().unwrap().to_owned()
    }

    #[test]
    fn what_lets_in_outlives_the_agent_and_is_roots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let first = Credentials::open(folder.path(), "pi", address).unwrap();
        let token = token_of(folder.path());
        assert!(first.token.is(&token));
        assert!(!first.token.is("") && !first.token.is(&token[1..]));
        for name in [KUBECONFIG, "local-api"] {
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        // The next agent, on another port.
        let address: SocketAddr = "127.0.0.1:2".parse().unwrap();
        let second = Credentials::open(folder.path(), "pi", address).unwrap();
        assert!(second.token.is(&token));
        let text = std::fs::read_to_string(folder.path().join(KUBECONFIG)).unwrap();
        assert!(text.contains("https://127.0.0.1:2\n"), "{text}");
        // Garbage is replaced.
        std::fs::write(folder.path().join("local-api"), b"PNdoor\0\x01 and what not").unwrap();
        let third = Credentials::open(folder.path(), "pi", address).unwrap();
        assert!(!third.token.is(&token));
        assert!(third.token.is(&token_of(folder.path())));
    }

    #[test]
    fn the_certificate_is_good_whatever_the_clock_says() {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let kept = make("pi", IpAddr::from([127, 0, 0, 1])).unwrap();
        let (_, certificate) = X509Certificate::from_der(&kept.certificate).unwrap();
        let validity = certificate.validity();
        assert_eq!(validity.not_before.timestamp(), 0);
        assert!(validity.not_after.timestamp() > 253_000_000_000);
        assert!(!certificate.is_ca());
    }
}
