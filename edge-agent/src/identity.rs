//! Who this node is: its key, its certificate, the CA it believes, and where the
//! master is. Made by [`crate::join`], read at every start.
//!
//! | file in `<state_dir>/identity/` (0700) | content |
//! | --- | --- |
//! | `key.pem` (0600) | the private key, PKCS #8; it never leaves the board |
//! | `certificate.pem` | the certificate, whose common name is the node |
//! | `ca.pem` | the CAs that may sign the master's certificate |
//! | `node.json` | name, endpoints, artifact key, labels |
//!
//! | `seal.key` (0600) | what seals the set, see [`crate::seal`] |
//!
//! The folder appears whole or not at all: it is written beside and renamed. A
//! renewed identity changes places with the old one in one step, and takes the
//! key of the seal along.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use wire::token::is_endpoint;
use wire::topic::check_node_name;

/// The folder's name below the state folder.
pub const FOLDER: &str = "identity";
/// Most bytes of any of its files.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// A node's identity.
pub struct Identity {
    /// The node's name.
    pub node: String,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
    /// The certificate for it.
    pub certificate: CertificateDer<'static>,
    /// The CAs that may sign the master's certificate.
    pub cas: Vec<CertificateDer<'static>>,
    /// Where the master is, as `host:port`, best first.
    pub endpoints: Vec<String>,
    /// The Ed25519 public key that signs WASM artifacts.
    pub artifact_key: [u8; 32],
    /// Labels that the token gave.
    pub labels: Vec<(String, String)>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            node: self.node.clone(),
            key: self.key.clone_key(),
            certificate: self.certificate.clone(),
            cas: self.cas.clone(),
            endpoints: self.endpoints.clone(),
            artifact_key: self.artifact_key,
            labels: self.labels.clone(),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The board has not joined yet.
    #[error(
        "{} does not exist: join first, with `pinnace-agent join TOKEN --state-dir {}`",
        folder.display(),
        folder.parent().unwrap_or(folder).display()
    )]
    Missing {
        /// Where it would be.
        folder: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is there, but not what it should be.
    #[error("{} is damaged ({why}): remove the folder it is in and join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct NodeFile {
    node: String,
    endpoints: Vec<String>,
    /// Base64.
    artifact_key: String,
    labels: Vec<(String, String)>,
}

impl Identity {
    /// Whether the board has joined.
    #[must_use]
    pub fn exists(state_dir: &Path) -> bool {
        state_dir.join(FOLDER).exists()
    }

    /// Reads the identity.
    ///
    /// # Errors
    /// Where there is none, or a file of it is missing or damaged.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let folder = state_dir.join(FOLDER);
        if !folder.is_dir() {
            return Err(IdentityError::Missing { folder });
        }
        let path = folder.join("node.json");
        let node: NodeFile = serde_json::from_slice(&read(&path)?)
            .map_err(|error| damaged(&path, error.to_string()))?;
        check_node_name(&node.node).map_err(|error| damaged(&path, error.to_string()))?;
        if node.endpoints.is_empty() || node.endpoints.iter().any(|text| !is_endpoint(text)) {
            return Err(damaged(&path, "an endpoint is not host:port".into()));
        }
        let artifact_key = STANDARD.decode(&node.artifact_key).ok();
        let artifact_key = artifact_key
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| damaged(&path, "the artifact key is not 32 bytes of base64".into()))?;
        let path = folder.join("key.pem");
        let key = PrivateKeyDer::from_pem_slice(&read(&path)?)
            .map_err(|error| damaged(&path, error.to_string()))?;
        let path = folder.join("certificate.pem");
        let certificate = CertificateDer::from_pem_slice(&read(&path)?)
            .map_err(|error| damaged(&path, error.to_string()))?;
        let path = folder.join("ca.pem");
        let cas: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(&path)?)
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(&path, error.to_string()))?;
        if cas.is_empty() {
            return Err(damaged(&path, "no certificate in it".into()));
        }
        let NodeFile { node, endpoints, labels, .. } = node;
        Ok(Self { node, key, certificate, cas, endpoints, artifact_key, labels })
    }

    /// Writes the identity, whole or not at all. There must be none yet.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        make_folder(state_dir)?;
        let folder = state_dir.join(FOLDER);
        let beside = self.write_beside(state_dir)?;
        fs::rename(&beside, &folder).map_err(io_error("rename to", &folder))?;
        sync_folder(state_dir)
    }

    /// Puts a renewed identity in the place of the old one, in one step. What the
    /// node has sealed stays readable.
    ///
    /// # Errors
    /// Where the folder cannot be written; the old identity is still there then.
    pub fn replace(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let folder = state_dir.join(FOLDER);
        let beside = self.write_beside(state_dir)?;
        let seal = folder.join(crate::seal::KEY_FILE);
        if seal.exists() {
            write_secret(&beside.join(crate::seal::KEY_FILE), &read(&seal)?)?;
            sync_folder(&beside)?;
        }
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &beside, here, &folder, exchange)
            .map_err(io::Error::from)
            .map_err(io_error("change places with", &folder))?;
        sync_folder(state_dir)?;
        // The old one, with a key that is of no use any more.
        fs::remove_dir_all(&beside).map_err(io_error("remove", &beside))
    }

    fn write_beside(&self, state_dir: &Path) -> Result<PathBuf, IdentityError> {
        let beside = state_dir.join(format!("{FOLDER}.new"));
        if let Err(source) = fs::remove_dir_all(&beside)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(IdentityError::Io { operation: "remove", path: beside, source });
        }
        make_folder(&beside)?;
        let node = NodeFile {
            node: self.node.clone(),
            endpoints: self.endpoints.clone(),
            artifact_key: STANDARD.encode(self.artifact_key),
            labels: self.labels.clone(),
        };
        let node = serde_json::to_vec_pretty(&node).expect("strings are what JSON holds");
        let cas: String = self.cas.iter().map(|ca| pem("CERTIFICATE", ca)).collect();
        write_secret(
            &beside.join("key.pem"),
            pem(key_label(&self.key), self.key.secret_der()).as_bytes(),
        )?;
        write(&beside.join("certificate.pem"), pem("CERTIFICATE", &self.certificate).as_bytes())?;
        write(&beside.join("ca.pem"), cas.as_bytes())?;
        write(&beside.join("node.json"), &node)?;
        sync_folder(&beside)?;
        Ok(beside)
    }
}

fn key_label(key: &PrivateKeyDer<'_>) -> &'static str {
    match key {
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        _ => "PRIVATE KEY",
    }
}

/// Creates the folder, readable by its owner only, and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), IdentityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create folder", path))
}

/// Writes a file that only its owner may read, and flushes it.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    write_with(path, bytes, 0o600)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    write_with(path, bytes, 0o644)
}

fn write_with(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(path).map_err(io_error("create", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("flush", path))
}

pub(crate) fn sync_folder(path: &Path) -> Result<(), IdentityError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("flush", path))
}

/// Reads a small file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(io_error("read", path))?;
    Ok(bytes)
}

/// Reads a private key that [`crate::join`] has made.
pub(crate) fn pkcs8(der: Vec<u8>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn damaged(path: &Path, why: String) -> IdentityError {
    IdentityError::Damaged { path: path.into(), why }
}

pub(crate) fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_path_buf();
    move |source| IdentityError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn identity() -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["board".into()]).unwrap().self_signed(&key).unwrap();
        Identity {
            node: "board".into(),
            key: pkcs8(key.serialize_der()),
            certificate: certificate.der().clone(),
            cas: vec![certificate.der().clone(), certificate.der().clone()],
            endpoints: vec!["10.0.0.1:8883".into()],
            artifact_key: [7; 32],
            labels: vec![("zone".into(), "a".into())],
        }
    }

    #[test]
    fn an_identity_reads_back_and_only_its_owner_may_read_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let stored = identity();
        assert!(!Identity::exists(&state_dir));
        stored.store(&state_dir).unwrap();
        let loaded = Identity::load(&state_dir).unwrap();
        assert_eq!(loaded.node, stored.node);
        assert_eq!(loaded.key.secret_der(), stored.key.secret_der());
        assert_eq!(loaded.certificate, stored.certificate);
        assert_eq!(loaded.cas, stored.cas);
        assert_eq!(loaded.endpoints, stored.endpoints);
        assert_eq!(loaded.artifact_key, stored.artifact_key);
        assert_eq!(loaded.labels, stored.labels);
        let mode =
            |path: &str| fs::metadata(state_dir.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(""), 0o700);
        assert_eq!(mode("identity"), 0o700);
        assert_eq!(mode("identity/key.pem"), 0o600);
        assert!(!state_dir.join("identity.new").exists());
    }

    #[test]
    fn a_half_written_identity_is_none_and_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("identity.new")).unwrap();
        fs::write(dir.path().join("identity.new/key.pem"), "half").unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Missing { .. })));
        identity().store(dir.path()).unwrap();
        Identity::load(dir.path()).unwrap();
    }

    #[test]
    fn a_renewed_identity_replaces_the_old_one_and_opens_what_it_sealed() {
        let dir = tempfile::tempdir().unwrap();
        identity().store(dir.path()).unwrap();
        let sealed = crate::seal::Seal::open(dir.path(), None).unwrap().seal(b"k", vec![1, 2]);
        let renewed = identity();
        // An earlier attempt was killed half-way.
        fs::create_dir(dir.path().join("identity.new")).unwrap();
        renewed.replace(dir.path()).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(loaded.key.secret_der(), renewed.key.secret_der());
        let seal = crate::seal::Seal::open(dir.path(), None).unwrap();
        assert_eq!(seal.unseal(b"k", &sealed), Some(vec![1, 2]));
        assert!(!dir.path().join("identity.new").exists());
    }

    #[test]
    fn damage_is_named_by_file() {
        for file in ["key.pem", "certificate.pem", "ca.pem", "node.json"] {
            let dir = tempfile::tempdir().unwrap();
            identity().store(dir.path()).unwrap();
            fs::write(dir.path().join("identity").join(file), "garbage").unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains("join again"), "{error}");
            fs::remove_file(dir.path().join("identity").join(file)).unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
    }

    #[test]
    fn a_debug_print_hides_the_key() {
        let text = format!("{:?}", identity());
        assert!(text.contains("board") && !text.contains("key"), "{text}");
    }
}
