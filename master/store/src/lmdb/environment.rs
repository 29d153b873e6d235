//! One LMDB environment: opening, transactions, and growing its memory map.
//!
//! The only module that calls what LMDB cannot check: that nobody else changes
//! the file under the map, and that no transaction is active while the map is
//! replaced. It knows neither revisions nor what the tables hold.
#![allow(unsafe_code)]

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::{Bound, Range};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};

use crate::StoreError;

/// A table of bytes; of the environment that made it, which LMDB checks.
pub(crate) type Table = heed::Database<'static, Raw, Raw>;

/// Growing doubles the map up to this step.
const GROWTH_BYTES_MAX: usize = 256 << 20;

/// Slots for concurrent read transactions (64 bytes each in the lock file): more
/// than a tokio runtime has threads.
const READERS_MAX: u32 = 1024;

/// A disk with less than this is taken for full when a write was cut short: more
/// than the writer commits at once.
const NO_ROOM_BYTES: u64 = 16 << 20;

/// The data file is extended when fewer zeros than this are left.
const AHEAD_BYTES_MIN: u64 = 128 << 10;

/// It is extended by at most this at once.
const AHEAD_BYTES_MAX: u64 = 4 << 20;

/// Name of LMDB's data file.
pub(crate) const DATA_FILE: &str = "data.mdb";

#[derive(Debug)]
pub(crate) struct Environment {
    env: Env<WithoutTls>,
    /// Where the map is, if that is known. Held for reading by every transaction,
    /// for writing while the map is replaced.
    map: RwLock<Option<Range<usize>>>,
    dir: PathBuf,
    map_bytes_max: usize,
    /// The data file, to be extended ahead of the commits; `None` without flushes.
    ahead: Option<Mutex<Ahead>>,
}

/// The zeros after the pages in use.
///
/// A commit that makes the file longer costs the file system a second journal
/// entry, which on flash is most of what a small commit writes. So the file
/// grows in larger strides, and not within a commit.
#[derive(Debug)]
struct Ahead {
    file: File,
    bytes: u64,
}

/// Whether commits wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Durable,
    Never,
}

impl Environment {
    /// Opens the environment in `dir`, or makes it, with the named tables.
    ///
    /// The caller holds the lock of the store, so that no other process or store
    /// uses `dir`.
    pub(crate) fn open<const N: usize>(
        dir: &Path,
        tables: [&str; N],
        sync: Sync,
        map_bytes: (usize, usize),
    ) -> Result<(Environment, [Table; N]), StoreError> {
        make_dir(dir)?;
        let (initial, map_bytes_max) = map_bytes;
        let file_bytes = match fs::metadata(dir.join(DATA_FILE)) {
            Ok(metadata) => usize::try_from(metadata.size()).unwrap_or(usize::MAX),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(StoreError::io("read", dir.join(DATA_FILE), error)),
        };
        let fail = |error| failure("open", dir, error);
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options
            .map_size(round_to_page(initial.max(file_bytes)))
            .max_dbs(u32::try_from(N).expect("a handful of tables"))
            .max_readers(READERS_MAX);
        if sync == Sync::Never {
            // SAFETY: without flushes a loss of power may damage the file. The
            // caller discards such a file after one (see `volatile`).
            unsafe { options.flags(EnvFlags::NO_SYNC) };
        }
        // SAFETY: the caller's lock keeps other processes away from the files,
        // and LMDB's own lock file guards the readers of this one.
        let env = unsafe { options.open(dir) }.map_err(fail)?;
        let transaction = env.write_txn().map_err(fail)?;
        let tables = env
            .create_databases_and_commit(transaction, |opener, transaction| {
                let mut made = Vec::with_capacity(N);
                for name in tables {
                    made.push(opener.create_database::<Raw, Raw>(transaction, Some(name))?);
                }
                let made: [_; N] = made.try_into().expect("one table for each name");
                heed::Result::Ok(CommitOrAbort::<_, ()>::Commit(made))
            })
            .map_err(fail)?
            .commit()
            .expect("the closure commits");
        if file_bytes == 0 {
            sync_dir(dir)?;
        }
        let ahead = match sync {
            Sync::Never => None,
            Sync::Durable => Some(Mutex::new(Ahead::of(&dir.join(DATA_FILE))?)),
        };
        let dir = dir.to_owned();
        let map = RwLock::new(find_map(&dir.join(DATA_FILE)));
        Ok((Environment { env, map, dir, map_bytes_max, ahead }, tables))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `read` on a snapshot. Must be short: pages that it may see are not
    /// reused meanwhile, and the map cannot grow. Must not nest.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&RoTxn<'_, WithoutTls>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let transaction = self.env.read_txn().map_err(|e| self.fail("read", e))?;
        read(&transaction)
    }

    /// Runs `write` in a transaction and commits it. When the map is full, grows
    /// it and runs `write` again from the same state.
    ///
    /// Only one thread writes.
    pub(crate) fn write<T>(
        &self,
        mut write: impl FnMut(&mut RwTxn<'_>) -> Result<T, WriteError>,
    ) -> Result<T, StoreError> {
        loop {
            let mut attempt = || -> Result<T, WriteError> {
                let _map = self.map.read().unwrap_or_else(PoisonError::into_inner);
                let mut transaction = self.env.write_txn()?;
                let result = write(&mut transaction)?;
                transaction.commit().map_err(WriteError::Commit)?;
                Ok(result)
            };
            match attempt() {
                Ok(result) => {
                    self.extend_ahead();
                    return Ok(result);
                }
                Err(WriteError::Lmdb(e) | WriteError::Commit(e)) if is_map_full(&e) => {
                    self.grow(e)?;
                }
                Err(WriteError::Lmdb(e)) => return Err(self.fail("write", e)),
                Err(WriteError::Commit(e)) => return Err(self.fail("commit", e)),
                Err(WriteError::Store(e)) => return Err(e),
            }
        }
    }

    /// Adds zeros to the data file when those ahead of its pages run out.
    fn extend_ahead(&self) {
        let Some(ahead) = &self.ahead else { return };
        let mut ahead = ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let page_bytes = u64::from(self.env.unnamed_database_stat().page_size);
        let info = self.env.info();
        let used = (info.last_page_number as u64 + 1) * page_bytes;
        if used + AHEAD_BYTES_MIN <= ahead.bytes {
            return;
        }
        let stride = (used / 8).clamp(2 * AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        let wanted = (used + stride).min(info.map_size as u64);
        if let Err(error) = ahead.extend(wanted) {
            // Without it commits are larger, and a full disk speaks up in one.
            tracing::debug!(error = %error, "cannot extend the data file ahead of its use");
        }
    }

    fn grow(&self, full: heed::Error) -> Result<(), StoreError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let size = self.env.info().map_size;
        let grown = round_to_page(size.saturating_add(size.min(GROWTH_BYTES_MAX)))
            .min(round_to_page(self.map_bytes_max));
        if grown <= size {
            return Err(StoreError::Full { dir: self.dir.clone(), source: Arc::new(full) });
        }
        // SAFETY: every transaction holds `map` for reading while it lives, so
        // none is active.
        unsafe { self.env.resize(grown) }.map_err(|e| self.fail("grow", e))?;
        *map = find_map(&self.dir.join(DATA_FILE));
        tracing::debug!(dir = %self.dir.display(), bytes = grown, "the map of the database grew");
        Ok(())
    }

    /// Gives the pages of the map back to the page cache. They are read again
    /// when they are needed; until then the process does not answer for them.
    pub(crate) fn release_pages(&self) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let Some(range) = map.as_ref() else { return };
        let start = std::ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: the range is the map of this environment, which is not replaced
        // while `map` is held. It is a shared map of a file that is only written
        // through the file, so dropping its pages loses nothing.
        unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
    }

    /// Writes all pages to the disk.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.env.force_sync().map_err(|e| self.fail("flush", e))
    }

    pub(crate) fn fail(&self, operation: &'static str, error: heed::Error) -> StoreError {
        failure(operation, &self.dir, error)
    }

    pub(crate) fn damaged(&self, detail: impl Into<String>) -> StoreError {
        StoreError::Damaged { dir: self.dir.clone(), detail: detail.into() }
    }
}

impl Ahead {
    fn of(path: &Path) -> Result<Ahead, StoreError> {
        let fail = |e| StoreError::io("open", path, e);
        let file = File::options().write(true).open(path).map_err(fail)?;
        let bytes = file.metadata().map_err(fail)?.len();
        Ok(Ahead { file, bytes })
    }

    fn extend(&mut self, wanted: u64) -> io::Result<()> {
        // LMDB may have written beyond what this knew of.
        self.bytes = self.file.metadata()?.len();
        let zeros = [0; 16 << 10];
        while self.bytes < wanted {
            let n =
                usize::try_from(wanted - self.bytes).map_or(zeros.len(), |n| n.min(zeros.len()));
            self.file.write_all_at(&zeros[..n], self.bytes)?;
            self.bytes += n as u64;
        }
        Ok(())
    }
}

/// Why a write transaction ended.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Before the commit: nothing happened.
    Lmdb(heed::Error),
    /// In the commit.
    Commit(heed::Error),
    /// The closure gave up: nothing happened.
    Store(StoreError),
}

impl From<heed::Error> for WriteError {
    fn from(error: heed::Error) -> WriteError {
        WriteError::Lmdb(error)
    }
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> WriteError {
        WriteError::Store(error)
    }
}

fn is_map_full(error: &heed::Error) -> bool {
    matches!(error, heed::Error::Mdb(MdbError::MapFull))
}

/// Names a failure for what the caller can do about it.
///
/// A failed commit leaves the database as it was: LMDB writes to unused pages,
/// flushes them, and only then refers to them. When that last write fails, LMDB
/// itself refuses everything from there on (`Panic`).
fn failure(operation: &'static str, dir: &Path, error: heed::Error) -> StoreError {
    let dir = dir.to_owned();
    match &error {
        heed::Error::Io(io) if no_room(io, &dir) => {
            StoreError::Full { dir, source: Arc::new(error) }
        }
        heed::Error::Mdb(MdbError::Panic) => StoreError::Broken { dir },
        heed::Error::Mdb(
            MdbError::Corrupted
            | MdbError::PageNotFound
            | MdbError::Invalid
            | MdbError::VersionMismatch,
        ) => StoreError::Damaged { dir, detail: error.to_string() },
        _ => StoreError::Database { operation, dir, source: Arc::new(error) },
    }
}

fn no_room(error: &io::Error, dir: &Path) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => true,
        // What LMDB makes of a write that the disk took in part.
        Some(libc::EIO) => bytes_available(dir).is_some_and(|bytes| bytes < NO_ROOM_BYTES),
        _ => false,
    }
}

/// What the file system of `dir` has left for this user.
fn bytes_available(dir: &Path) -> Option<u64> {
    let dir = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: both pointers are valid for the call, and the result is only read
    // when the call says that it is filled in.
    let found = unsafe {
        if libc::statvfs(dir.as_ptr(), found.as_mut_ptr()) != 0 {
            return None;
        }
        found.assume_init()
    };
    // The fields have another width on 32-bit systems.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    let (blocks, block_bytes) = (found.f_bavail as u64, found.f_frsize as u64);
    Some(blocks.saturating_mul(block_bytes))
}

/// Where this process has mapped the file `data`. LMDB does not tell.
fn find_map(data: &Path) -> Option<Range<usize>> {
    let inode = fs::metadata(data).ok()?.ino().to_string();
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, flags, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let found = fields.nth(1)? == inode && fields.next()?.ends_with(DATA_FILE);
        if !found || !flags.ends_with('s') || offset.bytes().any(|b| b != b'0') {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let address = |hex| usize::from_str_radix(hex, 16).ok();
        Some(address(start)?..address(end)?)
    })
}

/// Where a scan begins. LMDB knows no empty key: that is the beginning.
pub(crate) fn scan_from(from: Bound<&str>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let from = match from.map(str::as_bytes) {
        Bound::Included([]) | Bound::Excluded([]) => Bound::Unbounded,
        other => other,
    };
    (from, Bound::Unbounded)
}

fn round_to_page(bytes: usize) -> usize {
    // 64 KiB is a multiple of every page size that Linux uses.
    bytes.div_ceil(64 << 10).saturating_mul(64 << 10)
}

/// Makes a directory that only its owner may enter, and keeps it so.
pub(crate) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    if !dir.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| StoreError::io("create", dir, e))?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
    }
    let metadata = fs::metadata(dir).map_err(|e| StoreError::io("read", dir, e))?;
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(|e| StoreError::io("restrict", dir, e))?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io("flush", dir, e))
}
