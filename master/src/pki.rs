//! The cluster's keys: its certificate authority, the certificates it signs,
//! and the keys that sign WASM artifacts and tokens of ServiceAccounts.
//!
//! | file in `pki/` | what |
//! | --- | --- |
//! | `ca.crt`, `ca.key` | the certificate authority; made once |
//! | `server.crt`, `server.key` | this master, for both ports; made anew when its names change or a third of its life is left |
//! | `admin.crt`, `admin.key` | the administrator, group `system:masters` |
//! | `artifact.key` | Ed25519, signs compiled WASM code; made once |
//! | `service-account.key` | P-256, signs tokens of ServiceAccounts; made once |
//!
//! Every file is 0600 in a folder of 0700. Knows nothing of enrolment or nodes'
//! objects: who may get a certificate is decided elsewhere.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use apiserver::TokenKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};

use crate::clock;

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFE: Duration = Duration::from_secs(86_400 * 3650);
const SERVER_LIFE: Duration = Duration::from_secs(86_400 * 365);
const ADMIN_LIFE: Duration = Duration::from_secs(86_400 * 365);
/// How long a node's certificate is valid.
const NODE_LIFE: Duration = Duration::from_secs(86_400 * 365);

/// Why keys or certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is damaged: {reason}; restore it from a backup")]
    Damaged { path: PathBuf, reason: String },
    #[error("cannot sign a certificate for {name}: {reason}")]
    Sign { name: String, reason: String },
}

/// The cluster's keys, read once at the start.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) ca_pem: String,
    pub(crate) server_chain: Vec<CertificateDer<'static>>,
    server_key_pem: String,
    pub(crate) admin_cert_pem: String,
    pub(crate) admin_key_pem: String,
    artifact: Ed25519KeyPair,
    /// PKCS#8 of the key that signs tokens of ServiceAccounts.
    token_key: Vec<u8>,
}

impl Pki {
    /// Reads the keys in `dir`, and makes those that are missing or no longer fit
    /// `names`: the host names and addresses of this master.
    pub(crate) fn open(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| file_error("make", dir, source))?;
        let (ca_pem, ca_key) = load_or_make(dir, "ca", |_| true, make_ca)?;
        let damaged =
            |name: &str, reason: String| PkiError::Damaged { path: dir.join(name), reason };
        let key = KeyPair::from_pem(&ca_key).map_err(|e| damaged("ca.key", e.to_string()))?;
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|e| damaged("ca.crt", e.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_der(&ca, key).map_err(|e| damaged("ca.crt", e.to_string()))?;

        let now = clock::now();
        let server_fits = |pem: &str| fits(pem, now, names);
        let (server_pem, server_key_pem) = load_or_make(dir, "server", server_fits, || {
            make_leaf(&issuer, &server_params(names), SERVER_LIFE)
        })?;
        let server = CertificateDer::from_pem_slice(server_pem.as_bytes())
            .map_err(|e| damaged("server.crt", e.to_string()))?;
        let admin_fits = |pem: &str| fits(pem, now, &[]);
        let (admin_cert_pem, admin_key_pem) = load_or_make(dir, "admin", admin_fits, || {
            make_leaf(&issuer, &client_params("admin", "system:masters"), ADMIN_LIFE)
        })?;
        let artifact = artifact_key(dir)?;
        let token_key = token_key(dir)?;
        Ok(Self {
            issuer,
            // The authority goes with it, so that a joining board finds its pin.
            server_chain: vec![server, ca.clone()],
            ca,
            ca_pem,
            server_key_pem,
            admin_cert_pem,
            admin_key_pem,
            artifact,
            token_key,
        })
    }

    /// The private key of `server_chain`.
    pub(crate) fn server_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.server_key_pem.as_bytes())
            .expect("it was made or read by `open`")
    }

    /// Signs the public key of a node's request, and nothing else of it.
    pub(crate) fn sign_node(
        &self,
        node: &str,
        csr: &[u8],
    ) -> Result<CertificateDer<'static>, PkiError> {
        let failed =
            |e: rcgen::Error| PkiError::Sign { name: node.to_owned(), reason: e.to_string() };
        // Checks the request's own signature: the board holds the private key.
        let mut request = CertificateSigningRequestParams::from_der(
            &CertificateSigningRequestDer::from(csr.to_vec()),
        )
        .map_err(failed)?;
        request.params = dated(client_params(node, "system:nodes"), NODE_LIFE);
        let certificate = request.signed_by(&self.issuer).map_err(failed)?;
        Ok(certificate.der().clone())
    }

    /// The key that signs tokens of ServiceAccounts.
    pub(crate) fn token_key(&self) -> TokenKey {
        TokenKey::from_pkcs8(&self.token_key).expect("it was made or read by `open`")
    }

    /// The public half of the key that signs artifacts.
    pub(crate) fn artifact_public_key(&self) -> [u8; 32] {
        let bytes = self.artifact.public_key().as_ref();
        bytes.try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// Signs `bytes` with the artifact key.
    pub(crate) fn sign_artifact(&self, bytes: &[u8]) -> Vec<u8> {
        self.artifact.sign(bytes).as_ref().to_vec()
    }
}

/// SHA-256, as bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has randomness");
    bytes
}

fn file_error(operation: &'static str, path: &Path, source: std::io::Error) -> PkiError {
    PkiError::File { operation, path: path.to_owned(), source }
}

/// The certificate and key `name`, as PEM.
fn load_or_make(
    dir: &Path,
    name: &str,
    fits: impl Fn(&str) -> bool,
    make: impl FnOnce() -> Result<(String, String), PkiError>,
) -> Result<(String, String), PkiError> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let read = |path: &Path| match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(file_error("read", path, err)),
    };
    if let (Some(cert), Some(key)) = (read(&cert_path)?, read(&key_path)?)
        && fits(&cert)
    {
        return Ok((cert, key));
    }
    let (cert, key) = make()?;
    // The key first: a certificate without its key would be useless and look complete.
    write_private(&key_path, key.as_bytes())?;
    write_private(&cert_path, cert.as_bytes())?;
    Ok((cert, key))
}

/// Replaces `path` by `bytes`, mode 0600: afterwards it is old or new, never half.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    let failed = |source| file_error("write", path, source);
    // The parent of a bare file name is the empty path.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or_else(|| Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = dir.join(name);
    // A leftover may have other permissions.
    match fs::remove_file(&new) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(failed(err)),
        _ => (),
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Valid from a day ago, for boards whose clock is behind, and for `life`.
fn dated(mut params: CertificateParams, life: Duration) -> CertificateParams {
    let now = clock::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(SerialNumber::from(random::<16>().to_vec()));
    params.use_authority_key_identifier_extension = true;
    params
}

fn make_ca() -> Result<(String, String), PkiError> {
    let failed =
        |e: rcgen::Error| PkiError::Sign { name: "the CA".to_owned(), reason: e.to_string() };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = dated(CertificateParams::default(), CA_LIFE);
    // Two clusters must not have the same issuer name.
    let id: String = random::<4>().iter().map(|b| format!("{b:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("pinnace-ca-{id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn server_params(names: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, wire::MASTER_SERVER_NAME);
    params.subject_alt_names = names
        .iter()
        .filter_map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Some(SanType::IpAddress(address)),
            Err(_) => name.as_str().try_into().ok().map(SanType::DnsName),
        })
        .collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn client_params(name: &str, group: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn make_leaf(
    issuer: &Issuer<'static, KeyPair>,
    params: &CertificateParams,
    life: Duration,
) -> Result<(String, String), PkiError> {
    let failed =
        |e: rcgen::Error| PkiError::Sign { name: "the master".to_owned(), reason: e.to_string() };
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = dated(params.clone(), life).signed_by(&key, issuer).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Whether a certificate has a third of its life left and holds every name.
fn fits(pem: &str, now: SystemTime, names: &[String]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let (start, end) = (
        certificate.validity().not_before.timestamp(),
        certificate.validity().not_after.timestamp(),
    );
    if now < start || end - now < (end - start) / 3 {
        return false;
    }
    let Ok(extension) = certificate.subject_alternative_name() else { return false };
    let held: Vec<String> = extension
        .map(|extension| extension.value.general_names.iter().filter_map(general_name).collect())
        .unwrap_or_default();
    names.iter().all(|name| held.contains(name))
}

fn general_name(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        x509_parser::extensions::GeneralName::IPAddress(bytes) => {
            let v4: Option<[u8; 4]> = (*bytes).try_into().ok();
            let v6: Option<[u8; 16]> = (*bytes).try_into().ok();
            v4.map(IpAddr::from).or_else(|| v6.map(IpAddr::from)).map(|address| address.to_string())
        }
        _ => None,
    }
}

fn artifact_key(dir: &Path) -> Result<Ed25519KeyPair, PkiError> {
    let path = dir.join("artifact.key");
    let bytes = read_or_make(&path, || {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        document.expect("the system has randomness").as_ref().to_vec()
    })?;
    Ed25519KeyPair::from_pkcs8(&bytes)
        .map_err(|err| PkiError::Damaged { path, reason: err.to_string() })
}

fn token_key(dir: &Path) -> Result<Vec<u8>, PkiError> {
    let path = dir.join("service-account.key");
    let bytes = read_or_make(&path, TokenKey::generate)?;
    match TokenKey::from_pkcs8(&bytes) {
        Ok(_) => Ok(bytes),
        Err(err) => Err(PkiError::Damaged { path, reason: err.to_string() }),
    }
}

/// The content of a file, which is made where it is missing.
fn read_or_make(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, PkiError> {
    match fs::read(path) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            let bytes = make();
            write_private(path, &bytes)?;
            Ok(bytes)
        }
        read => read.map_err(|err| file_error("read", path, err)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names() -> Vec<String> {
        vec![wire::MASTER_SERVER_NAME.to_owned(), "127.0.0.1".to_owned()]
    }

    #[test]
    fn keys_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("pki");
        let first = Pki::open(&dir, &names()).unwrap();
        let second = Pki::open(&dir, &names()).unwrap();
        assert_eq!(first.ca, second.ca);
        assert_eq!(first.server_chain, second.server_chain);
        assert_eq!(first.artifact_public_key(), second.artifact_public_key());
        assert_eq!(first.token_key, second.token_key);
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        }
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_new_name_makes_a_new_server_certificate_and_keeps_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names()).unwrap();
        let more = [names(), vec!["pi.local".to_owned()]].concat();
        let second = Pki::open(dir.path(), &more).unwrap();
        assert_eq!(first.ca, second.ca);
        assert_ne!(first.server_chain[0], second.server_chain[0]);
        // Fewer names are no reason.
        let third = Pki::open(dir.path(), &names()).unwrap();
        assert_eq!(second.server_chain, third.server_chain);
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path(), &names()).unwrap();
        for name in ["service-account.key", "artifact.key", "ca.key"] {
            fs::write(dir.path().join(name), "not a key").unwrap();
            let Err(err) = Pki::open(dir.path(), &names()) else { panic!("it opened") };
            assert!(err.to_string().contains(&format!("{name} is damaged")), "{err}");
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "not a key");
        }
    }

    #[test]
    fn only_the_public_key_of_a_request_is_signed() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &names()).unwrap();
        let key = KeyPair::generate().unwrap();
        let wish = client_params("someone-else", "system:masters");
        let csr = wish.serialize_request(&key).unwrap();
        let signed = pki.sign_node("board-1", csr.der()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&signed).unwrap();
        assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=board-1");
        assert!(!certificate.is_ca());
        let mut damaged = csr.der().to_vec();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        pki.sign_node("board-1", &damaged).unwrap_err();
    }
}
