//! Files that are old or new, never half: framed, checksummed, replaced by rename.
//!
//! ```text
//! 8 bytes   what it is, such as "PNset\0\0\x01" (the last byte is the version)
//! 8 bytes   length of the body, little-endian
//! 32 bytes  SHA-256 of the body
//! body      postcard
//! ```
//!
//! A file that does not read back is as good as missing: the caller asks the
//! master again. Every file is 0600, for some hold Secrets.
//!
//! Every file that the agent trusts, and what follows where it is damaged or gone:
//!
//! | file | written by | damaged or missing |
//! | --- | --- | --- |
//! | `state/set` | [`write_sealed`] | what runs goes on; the master sends it again; after a cold boot nothing starts before that |
//! | `state/tokens`, `run/tokens` | [`write_sealed`] | pods go on with the tokens they show; a new pod waits until the master gives them again |
//! | `state/results/<uid>` | [`write`] | said; the master, who has the pod's status, does not send a finished pod as live |
//! | `state/identity/*` | beside and renamed | the agent does not start, and names the file: join again. Pods go on |
//! | `state/identity/seal.key` | beside and renamed | another is made; as a damaged set |
//! | `state/machine-id` | [`write_text`] | made anew, where the system has none |
//! | `state/images/**` | `image::store`, checked by digest | pulled again |
//! | `state/artifacts/**` | `artifacts`, checked by SHA-256 at every start of a guest | fetched again |
//! | `state/logs/**` | shims, appended | lines are lost; counts of restarts follow from the names |
//! | `run/boot` | [`write_text`] | the run folder is emptied as after a boot, unless something runs |
//! | `run/pods/<uid>/state` | [`write`] | rebuilt from `run/containers` |
//! | `run/local-api` | [`write`] | made anew, with another key and token |
//! | `run/kubeconfig` | [`write_private`] | written at every start |
//! | `run/containers/<id>/*` | `runtime::dir`, beside and renamed | the run is over, its end unknown |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::seal::Seal;

const HEADER_BYTES: usize = 8 + 8 + 32;

/// What the name of a file ends with that is being written.
const TEMPORARY: &str = "tmp";

/// What a file holds, in its first bytes.
pub type Magic = [u8; 8];

/// Whether a file must survive a power cut, or only the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Flushed to the disk before the call returns.
    ThroughPowerLoss,
    /// On tmpfs: nothing to flush.
    ThroughRestart,
}

/// A file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// A system call failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is there and its content is not what was written.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: &'static str,
    },
}

/// Replaces the file by `value`.
///
/// # Errors
/// The folder cannot be written; the old content is still there then.
pub fn write(
    path: &Path,
    magic: Magic,
    value: &impl Serialize,
    keep: Keep,
) -> Result<(), DurableError> {
    let body = postcard::to_stdvec(value).expect("our own structs have a fixed postcard form");
    write_body(path, magic, &body, keep)
}

/// The same, and nobody reads it without the key.
///
/// # Errors
/// As [`write`].
pub fn write_sealed(
    path: &Path,
    magic: Magic,
    value: &impl Serialize,
    keep: Keep,
    seal: &Seal,
) -> Result<(), DurableError> {
    let body = postcard::to_stdvec(value).expect("our own structs have a fixed postcard form");
    write_body(path, magic, &seal.seal(&magic, body), keep)
}

/// Replaces a small file that is plain text, for others to read.
///
/// # Errors
/// As [`write`].
pub fn write_text(path: &Path, text: &str, keep: Keep) -> Result<(), DurableError> {
    replace(path, text.as_bytes(), 0o644, keep)
}

/// Writes text that only root may read.
///
/// # Errors
/// The disk is full or broken; the file before is still there then.
pub fn write_private(path: &Path, text: &str, keep: Keep) -> Result<(), DurableError> {
    replace(path, text.as_bytes(), 0o600, keep)
}

fn write_body(path: &Path, magic: Magic, body: &[u8], keep: Keep) -> Result<(), DurableError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(sha256(body).as_ref());
    bytes.extend_from_slice(body);
    replace(path, &bytes, 0o600, keep)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, keep: Keep) -> Result<(), DurableError> {
    let io =
        |operation| move |source| DurableError::Io { operation, path: path.to_owned(), source };
    let temporary = path.with_extension(TEMPORARY);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io("create"))?;
    let written = file.write_all(bytes).and_then(|()| match keep {
        Keep::ThroughPowerLoss => file.sync_all(),
        Keep::ThroughRestart => Ok(()),
    });
    if let Err(source) = written {
        // Half a file would hold space that a full disk needs.
        let _ = fs::remove_file(&temporary);
        return Err(io("write")(source));
    }
    fs::rename(&temporary, path).map_err(io("replace"))?;
    if keep == Keep::ThroughPowerLoss {
        sync_folder(path).map_err(io("flush the folder of"))?;
    }
    Ok(())
}

/// Reads a file of at most `bytes_max` bytes; `None` if there is none.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn read<T: DeserializeOwned>(
    path: &Path,
    magic: Magic,
    bytes_max: u64,
) -> Result<Option<T>, DurableError> {
    let Some(bytes) = read_bytes(path, bytes_max)? else { return Ok(None) };
    let read = body(&bytes, magic).and_then(decode);
    read.map(Some).map_err(|why| DurableError::Damaged { path: path.into(), why })
}

/// Reads what [`write_sealed`] wrote.
///
/// # Errors
/// It cannot be read, is damaged, or was sealed with another key.
pub fn read_sealed<T: DeserializeOwned>(
    path: &Path,
    magic: Magic,
    bytes_max: u64,
    seal: &Seal,
) -> Result<Option<T>, DurableError> {
    let Some(bytes) = read_bytes(path, bytes_max)? else { return Ok(None) };
    let read = body(&bytes, magic)
        .and_then(|body| seal.unseal(&magic, body).ok_or("it was sealed with another key"))
        .and_then(|body| decode(&body));
    read.map(Some).map_err(|why| DurableError::Damaged { path: path.into(), why })
}

fn read_bytes(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, DurableError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(DurableError::Io { operation: "open", path: path.to_owned(), source });
        }
    };
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(|source| DurableError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(bytes))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, &'static str> {
    postcard::from_bytes(body).map_err(|_| "its content does not decode")
}

fn body(bytes: &[u8], magic: Magic) -> Result<&[u8], &'static str> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or("it is too short")?;
    if header[..8] != magic {
        return Err("it is another kind or version of file");
    }
    let length = u64::from_le_bytes(header[8..16].try_into().expect("the slice has 8 bytes"));
    if length != body.len() as u64 {
        return Err("its length is not the one written");
    }
    if &header[16..] != sha256(body).as_ref() {
        return Err("its checksum does not match");
    }
    Ok(body)
}

/// Removes a file; one that is gone is fine.
///
/// # Errors
/// The folder cannot be written.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what a writer that was killed has left beside its files in a folder.
///
/// # Errors
/// The folder cannot be read or written.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == TEMPORARY) && path.is_file() {
            remove(&path)?;
        }
    }
    Ok(())
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}

fn sha256(bytes: &[u8]) -> ring::digest::Digest {
    ring::digest::digest(&ring::digest::SHA256, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: Magic = *b"PNtest\0\x01";

    #[test]
    fn every_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let value: Vec<u32> = (0..100).collect();
        write(&path, MAGIC, &value, Keep::ThroughPowerLoss).unwrap();
        assert_eq!(read(&path, MAGIC, 1 << 20).unwrap(), Some(value.clone()));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let got = read::<Vec<u32>>(&path, MAGIC, 1 << 20);
            assert!(matches!(got, Err(DurableError::Damaged { .. })), "byte {at}: {got:?}");
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(read::<Vec<u32>>(&path, MAGIC, 1 << 20).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_missing_file_is_none_and_a_failed_write_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(read::<u8>(&path, MAGIC, 100).unwrap(), None);
        write(&path, MAGIC, &7_u8, Keep::ThroughRestart).unwrap();
        fs::create_dir(folder.path().join("file.tmp")).unwrap();
        assert!(write(&path, MAGIC, &8_u8, Keep::ThroughRestart).is_err());
        assert_eq!(read::<u8>(&path, MAGIC, 100).unwrap(), Some(7));
    }
}
