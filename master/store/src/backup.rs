//! Backups: all durable objects of one revision, as a stream of bytes.
//!
//! [`create`] writes to anything and [`restore`] reads from anything, and both
//! touch no byte beyond the backup, so that it may be a part of an archive.
//! Volatile and memory objects, and the log of changes, are not in it.
//!
//! All numbers are little-endian; a checksum is the CRC-32 of what the column
//! says.
//!
//! | part | bytes | checksum of |
//! |---|---|---|
//! | head | magic (16), version (4), epoch (16), revision (8), checksum (4) | the head |
//! | object, in key order | 1 (1), key length (2), value length (4), key, value, checksum (4) | the object |
//! | tail | 2 (1), number of objects (8), checksum (4) | everything before |

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use crc32fast::Hasher;

use crate::lmdb::config::Config;
use crate::lmdb::durable::Durable;
use crate::lmdb::environment::{make_dir, sync_dir};
use crate::lmdb::record::State;
use crate::lmdb::{OBJECTS, lock};
use crate::types::check_value;
use crate::{KEY_BYTES_MAX, LmdbStore, Revision, StoreError, VALUE_BYTES_MAX};

const MAGIC: &[u8; 16] = b"pinnace-backup\r\n";
const VERSION: u32 = 1;
const OBJECT: u8 = 1;
const TAIL: u8 = 2;

/// A restore jumps to a multiple of this, at least this far ahead: no client has
/// seen so high a revision.
const REVISION_STEP: u64 = 1 << 32;

/// A restore writes about this much in one transaction.
const RESTORE_AT_ONCE: usize = 4 << 20;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Objects in it.
    pub n_objects: u64,
    /// The revision that it shows.
    pub revision: Revision,
    /// The epoch of the store that it was made of.
    pub epoch: u128,
}

/// Why there is no backup, or no store made of it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The stream took no more.
    #[error("cannot write the backup")]
    Write(#[source] io::Error),
    /// The stream gave no more, for another reason than its end.
    #[error("cannot read the backup at byte {offset}")]
    Read {
        /// Where, from the start of the backup.
        offset: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was read is not a backup, or not a whole one.
    #[error("the backup is damaged at byte {offset}: {detail}: use another one")]
    Damaged {
        /// Where, from the start of the backup.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// It was made by a newer program.
    #[error("the backup has version {version}, this program reads {VERSION}: use a newer one")]
    Version {
        /// The version of the backup.
        version: u32,
    },
    /// There is a store already.
    #[error("{} holds a store already: restore into an empty folder", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes a backup of what `store` holds now to `out`, while it goes on.
///
/// Unbuffered: give it a [`BufWriter`](io::BufWriter). Does not flush.
///
/// # Errors
/// When `out` fails, or so slowly takes the backup that the changes since its
/// start are compacted meanwhile ([`StoreError::Expired`]).
pub fn create(store: &LmdbStore, out: &mut dyn Write) -> Result<Summary, BackupError> {
    let shared = store.shared();
    let revision = shared.revision();
    let mut summary = Summary { n_objects: 0, revision, epoch: shared.epoch };
    let mut out = Checked { stream: out, all: Hasher::new(), part: Hasher::new(), offset: 0 };
    out.write(MAGIC)?;
    out.write(&VERSION.to_le_bytes())?;
    out.write(&summary.epoch.to_le_bytes())?;
    out.write(&revision.to_le_bytes())?;
    out.write_checksum()?;
    shared.walk_durable(revision, &mut |object| {
        let key = u16::try_from(object.key.len()).expect("keys are at most 480 bytes");
        let value = u32::try_from(object.value.len()).expect("values are at most 8 MiB");
        out.write(&[OBJECT])?;
        out.write(&key.to_le_bytes())?;
        out.write(&value.to_le_bytes())?;
        out.write(object.key.as_bytes())?;
        out.write(&object.value)?;
        out.write_checksum()?;
        summary.n_objects += 1;
        Ok::<_, BackupError>(())
    })?;
    out.write(&[TAIL])?;
    out.write(&summary.n_objects.to_le_bytes())?;
    let all = out.all.clone().finalize();
    out.stream.write_all(&all.to_le_bytes()).map_err(BackupError::Write)?;
    Ok(summary)
}

/// Makes a store in `dir` of the backup that `input` gives.
///
/// The new store has a new epoch and a revision far above that of the backup,
/// so no client that knew the old one sees a revision go back. Every object is
/// written anew at that revision; `restamp` is told the key, the bytes and the
/// revision and returns the bytes to store, for values that carry their own
/// revision.
///
/// Unbuffered: give it a [`BufReader`](io::BufReader). Reads all of the backup
/// before there is a store in `dir`; a failure leaves none.
///
/// # Errors
/// When the backup is damaged or cut short, or there is a store in `dir`.
pub fn restore(
    input: &mut dyn Read,
    dir: &Path,
    restamp: &mut dyn FnMut(&str, Bytes, Revision) -> Bytes,
) -> Result<Summary, BackupError> {
    make_dir(dir)?;
    let _lock = lock(dir)?;
    let target = dir.join(OBJECTS);
    if target.exists() {
        return Err(BackupError::Exists { dir: dir.to_owned() });
    }
    let partial = dir.join("objects.restoring");
    remove(&partial)?;
    let restored = restore_into(input, &partial, restamp);
    let Ok(summary) = restored else {
        // What is left over is removed by the next try otherwise.
        let _ = remove(&partial);
        return restored;
    };
    fs::rename(&partial, &target).map_err(|e| StoreError::io("create", &target, e))?;
    sync_dir(dir)?;
    Ok(summary)
}

fn restore_into(
    input: &mut dyn Read,
    dir: &Path,
    restamp: &mut dyn FnMut(&str, Bytes, Revision) -> Bytes,
) -> Result<Summary, BackupError> {
    let mut input = Checked { stream: input, all: Hasher::new(), part: Hasher::new(), offset: 0 };
    let mut summary = input.read_head()?;
    let revision = (summary.revision / REVISION_STEP)
        .checked_add(2)
        .and_then(|steps| steps.checked_mul(REVISION_STEP))
        .ok_or_else(|| input.damaged(format!("no revision follows {}", summary.revision)))?;
    let Config { map_bytes_initial, map_bytes_max, .. } = Config::default();
    let durable = Durable::open(dir, (map_bytes_initial, map_bytes_max))?;
    let mut restoring = Restoring { durable, revision, batch: Vec::new(), bytes: 0 };
    let mut last_key = String::new();
    while let Some((key, value)) = input.read_object(&last_key)? {
        let value = restamp(&key, value, revision);
        check_value(&key, &value)?;
        last_key.clone_from(&key);
        restoring.add(key, value)?;
        summary.n_objects += 1;
    }
    input.read_tail(summary.n_objects)?;
    restoring.finish()?;
    Ok(summary)
}

/// A store in the making.
struct Restoring {
    durable: Durable,
    revision: Revision,
    batch: Vec<(String, Bytes)>,
    bytes: usize,
}

impl Restoring {
    fn add(&mut self, key: String, value: Bytes) -> Result<(), StoreError> {
        self.bytes += key.len() + value.len();
        self.batch.push((key, value));
        if self.bytes >= RESTORE_AT_ONCE {
            self.write(State::default())?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        let Restoring { revision, .. } = self;
        let state = State { revision, ceiling: revision, compacted: revision, log_bytes: 0 };
        self.write(state)
    }

    fn write(&mut self, state: State) -> Result<(), StoreError> {
        let (durable, mut buffer) = (&self.durable, Vec::new());
        durable.environment.write(|txn| {
            for (key, value) in &self.batch {
                durable.put_object(txn, key, self.revision, value, &mut buffer)?;
            }
            durable.put_state(txn, state)
        })?;
        self.batch.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", dir, error))
        }
        _ => Ok(()),
    }
}

/// A stream with the checksums of all and of the current part.
struct Checked<S> {
    stream: S,
    all: Hasher,
    part: Hasher,
    offset: u64,
}

impl<S> Checked<S> {
    fn note(&mut self, bytes: &[u8]) {
        self.all.update(bytes);
        self.part.update(bytes);
        self.offset += bytes.len() as u64;
    }
}

impl Checked<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.stream.write_all(bytes).map_err(BackupError::Write)?;
        self.note(bytes);
        Ok(())
    }

    fn write_checksum(&mut self) -> Result<(), BackupError> {
        let checksum = std::mem::take(&mut self.part).finalize();
        self.write(&checksum.to_le_bytes())?;
        self.part = Hasher::new();
        Ok(())
    }
}

impl Checked<&mut dyn Read> {
    fn read_head(&mut self) -> Result<Summary, BackupError> {
        let damaged = |detail: &str| BackupError::Damaged { offset: 0, detail: detail.to_owned() };
        if &self.read::<16>()? != MAGIC {
            return Err(damaged("it is not a backup of a Pinnace store"));
        }
        let version = u32::from_le_bytes(self.read()?);
        if version != VERSION {
            return Err(BackupError::Version { version });
        }
        let epoch = u128::from_le_bytes(self.read()?);
        let revision = u64::from_le_bytes(self.read()?);
        self.read_checksum(0)?;
        Ok(Summary { n_objects: 0, revision, epoch })
    }

    /// The next object, or `None` where the tail begins. Keys only grow.
    fn read_object(&mut self, last_key: &str) -> Result<Option<(String, Bytes)>, BackupError> {
        let offset = self.offset;
        let damaged = |detail: String| BackupError::Damaged { offset, detail };
        match self.read()? {
            [OBJECT] => {}
            [TAIL] => return Ok(None),
            [other] => return Err(damaged(format!("no part begins with {other}"))),
        }
        let key_bytes = usize::from(u16::from_le_bytes(self.read()?));
        let value_bytes = u32::from_le_bytes(self.read()?) as usize;
        if !(1..=KEY_BYTES_MAX).contains(&key_bytes) || value_bytes > VALUE_BYTES_MAX {
            return Err(damaged(format!(
                "a key of {key_bytes} and a value of {value_bytes} bytes"
            )));
        }
        let key = self.read_vec(key_bytes)?;
        let value = self.read_vec(value_bytes)?;
        self.read_checksum(offset)?;
        let key = String::from_utf8(key).map_err(|_| damaged("the key is not UTF-8".to_owned()))?;
        if key.as_str() <= last_key {
            return Err(damaged(format!("\"{key}\" follows \"{last_key}\"")));
        }
        Ok(Some((key, value.into())))
    }

    fn read_tail(&mut self, n_read: u64) -> Result<(), BackupError> {
        let n_objects = u64::from_le_bytes(self.read()?);
        let expected = self.all.clone().finalize();
        let checksum = u32::from_le_bytes(self.read()?);
        if n_objects != n_read || checksum != expected {
            return Err(self.damaged("the tail does not fit what is before".to_owned()));
        }
        Ok(())
    }

    fn read_checksum(&mut self, part_offset: u64) -> Result<(), BackupError> {
        let expected = std::mem::take(&mut self.part).finalize();
        let checksum = u32::from_le_bytes(self.read()?);
        self.part = Hasher::new();
        if checksum != expected {
            let detail = "the checksum does not fit".to_owned();
            return Err(BackupError::Damaged { offset: part_offset, detail });
        }
        Ok(())
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn read_vec(&mut self, n: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; n];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.stream.read_exact(bytes).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                return self.damaged("it ends early".to_owned());
            }
            BackupError::Read { offset: self.offset, source }
        })?;
        self.note(bytes);
        Ok(())
    }

    fn damaged(&self, detail: String) -> BackupError {
        BackupError::Damaged { offset: self.offset, detail }
    }
}
