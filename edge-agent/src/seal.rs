//! Seals what holds Secrets before it goes to the disk: the node's set.
//!
//! ```text
//! key   32 random bytes in identity/seal.key (0600), or the content of --seal-key-file
//! file  32 bytes salt, then ChaCha20-Poly1305 under HKDF-SHA256(key, salt), nonce 0
//! ```
//!
//! The salt is new for every write, so that the key of a file is used once. The
//! key is no part of the certificate's key pair: a renewed certificate changes
//! nothing here, and [`crate::identity`] takes the key along where it replaces
//! the folder.
//!
//! What this keeps: the Secrets in a copy of the state folder without
//! `identity/` (a backup, a support bundle, blocks that a worn card never
//! erased). What it does not: a copy of the whole card, unless the key is kept
//! elsewhere. Whoever has `identity/` is the node, and may ask the master for
//! the same Secrets. `docs/decisions/` says more.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ring::aead;
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};

use crate::identity;

/// Name of the key's file in the identity folder.
pub const KEY_FILE: &str = "seal.key";
const KEY_BYTES: usize = 32;
const SALT_BYTES: usize = 32;
/// Fewest and most bytes of a key file that somebody else has made.
const OWN_KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64 << 10;
const PURPOSE: &[&[u8]] = &[b"pinnace set v1"];

/// The key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file given on the command line cannot be used.
    #[error("--seal-key-file {}: {why}", path.display())]
    Own {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The node's own key file cannot be read or made.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What seals and opens.
pub struct Seal {
    key: Vec<u8>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// The key in `own`, or else the node's, which is made where it is missing.
    ///
    /// # Errors
    /// The file cannot be read, or the node's not be made.
    pub fn open(state_dir: &Path, own: Option<&Path>) -> Result<Self, SealError> {
        match own {
            Some(path) => Self::given(path),
            None => Self::of_node(&state_dir.join(identity::FOLDER).join(KEY_FILE)),
        }
    }

    fn given(path: &Path) -> Result<Self, SealError> {
        let wrong = |why: String| SealError::Own { path: path.to_owned(), why };
        let key = read(path).map_err(|error| wrong(error.to_string()))?;
        if !OWN_KEY_BYTES.contains(&key.len()) {
            return Err(wrong(format!("{} bytes, not 16 to 65536", key.len())));
        }
        Ok(Self { key })
    }

    fn of_node(path: &Path) -> Result<Self, SealError> {
        let failed = |source| SealError::Io { path: path.to_owned(), source };
        match read(path) {
            Ok(key) if key.len() == KEY_BYTES => return Ok(Self { key }),
            Ok(_) => tracing::error!(
                path = %path.display(),
                "the key that seals the set is damaged: another is made, and the set is asked of \
                 the master again"
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut key = vec![0; KEY_BYTES];
        fill(&mut key);
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let temporary = path.with_extension("tmp");
        let make = || -> io::Result<()> {
            identity::make_folder(folder).map_err(io::Error::other)?;
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            identity::write_secret(&temporary, &key).map_err(io::Error::other)?;
            fs::rename(&temporary, path)?;
            File::open(folder)?.sync_all()
        };
        make().map_err(failed)?;
        Ok(Self { key })
    }

    /// Seals bytes; `kind` is what they are, and must be the same to open them.
    #[must_use]
    pub fn seal(&self, kind: &[u8], mut bytes: Vec<u8>) -> Vec<u8> {
        let mut sealed = vec![0; SALT_BYTES];
        fill(&mut sealed);
        self.key_of(&sealed)
            .seal_in_place_append_tag(nonce(), aead::Aad::from(kind), &mut bytes)
            .expect("a set is far below what one key may seal");
        sealed.append(&mut bytes);
        sealed
    }

    /// Opens what [`Seal::seal`] made. `None` under another key, or where a bit differs.
    #[must_use]
    pub fn unseal(&self, kind: &[u8], bytes: &[u8]) -> Option<Vec<u8>> {
        let (salt, sealed) = bytes.split_at_checked(SALT_BYTES)?;
        let mut sealed = sealed.to_vec();
        let n = self
            .key_of(salt)
            .open_in_place(nonce(), aead::Aad::from(kind), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(n);
        Some(sealed)
    }

    /// The key of one file.
    fn key_of(&self, salt: &[u8]) -> aead::LessSafeKey {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.key);
        let key = secret
            .expand(PURPOSE, &aead::CHACHA20_POLY1305)
            .expect("32 bytes are within what HKDF gives");
        aead::LessSafeKey::new(key.into())
    }
}

/// Each key seals one file, so the nonce never repeats under it.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

fn fill(bytes: &mut [u8]) {
    SystemRandom::new().fill(bytes).expect("the kernel has randomness");
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(OWN_KEY_BYTES.end() + 1).unwrap_or(u64::MAX);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_is_hidden_and_opens_only_with_its_key_and_kind() {
        let folder = tempfile::tempdir().unwrap();
        let seal = Seal::open(folder.path(), None).unwrap();
        let text = b"open-sesame".repeat(10);
        let sealed = seal.seal(b"set", text.clone());
        assert!(!sealed.windows(4).any(|part| part == b"open"));
        assert_ne!(sealed, seal.seal(b"set", text.clone()), "a new salt each time");
        assert_eq!(seal.unseal(b"set", &sealed), Some(text.clone()));
        assert_eq!(seal.unseal(b"other", &sealed), None);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(seal.unseal(b"set", &bad), None, "byte {at}");
            assert_eq!(seal.unseal(b"set", &sealed[..at]), None, "{at} bytes");
        }
        let other = tempfile::tempdir().unwrap();
        assert_eq!(Seal::open(other.path(), None).unwrap().unseal(b"set", &sealed), None);
    }

    #[test]
    fn the_key_is_made_once_stays_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let sealed = Seal::open(folder.path(), None).unwrap().seal(b"k", vec![1]);
        let again = Seal::open(folder.path(), None).unwrap();
        assert_eq!(again.unseal(b"k", &sealed), Some(vec![1]));
        let path = folder.path().join("identity").join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // A damaged one is replaced: the set has to come from the master then.
        for bad in [&b""[..], b"short"] {
            fs::write(&path, bad).unwrap();
            let new = Seal::open(folder.path(), None).unwrap();
            assert_eq!(new.unseal(b"k", &sealed), None);
            assert_eq!(fs::metadata(&path).unwrap().len(), 32);
        }
    }

    #[test]
    fn a_key_from_elsewhere_is_used_and_never_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let error = Seal::open(folder.path(), Some(&path)).unwrap_err().to_string();
        assert!(error.contains("--seal-key-file") && error.contains("No such file"), "{error}");
        assert!(!path.exists());
        fs::write(&path, "too short").unwrap();
        let error = Seal::open(folder.path(), Some(&path)).unwrap_err().to_string();
        assert!(error.contains("9 bytes"), "{error}");
        fs::write(&path, [7; 48]).unwrap();
        let sealed = Seal::open(folder.path(), Some(&path)).unwrap().seal(b"k", vec![1]);
        let again = Seal::open(folder.path(), Some(&path)).unwrap();
        assert_eq!(again.unseal(b"k", &sealed), Some(vec![1]));
        assert!(!folder.path().join("identity").exists());
    }
}
