//! Unpacks one layer into a folder of its own, in the form overlayfs stacks.
//!
//! A layer is hostile until shown otherwise. Every path is resolved by the
//! kernel inside the folder (`openat2` with `RESOLVE_IN_ROOT`), files are made
//! anew and never opened through links, device nodes are left out (containers
//! get theirs from us), only harmless extended attributes are kept, and sizes
//! and counts are bounded. The whole runs in a short-lived child of the agent
//! ([`unpack_main`]), so that its memory is bounded and given back.
//!
//! | in the layer | in the folder |
//! |---|---|
//! | `.wh.NAME` | character device 0:0 `NAME`: hides it in the layers below |
//! | `.wh..wh..opq` | `trusted.overlay.opaque=y` on the folder |
//! | block or character device | nothing |

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::digest::Hasher;
use crate::{Digest, Limits};

/// Address space of the child process, in bytes: the zstd window of the format's
/// strictest decoders, the list of folders, and the program itself.
const CHILD_MEMORY_MAX: u64 = 1 << 30;

const OPAQUE: &str = "trusted.overlay.opaque";

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// More than the limit of bytes or entries.
    #[error("it holds more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// Not the bytes that the image's configuration names.
    #[error("its content should be {expected} and is {actual}")]
    DigestMismatch {
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// An entry that is not allowed, or nonsense.
    #[error("{path:?}: {why}")]
    Entry {
        /// Path in the layer.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The archive cannot be read.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The disk refuses.
    #[error("cannot write {path:?}: {source}")]
    Disk {
        /// Path in the layer.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The hidden subcommand that unpacks one layer in a process of its own:
/// `BLOB FOLDER DIFF_ID UNPACKED_BYTES_MAX ENTRIES_MAX`.
///
/// Says what went wrong on standard error.
#[must_use]
pub fn unpack_main(args: &[OsString]) -> ExitCode {
    let limit = rustix::process::Rlimit {
        current: Some(CHILD_MEMORY_MAX),
        maximum: Some(CHILD_MEMORY_MAX),
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::As, limit);
    let result = match args {
        [blob, folder, rest @ ..] => {
            match rest.iter().map(|a| a.to_str()).collect::<Vec<_>>()[..] {
                [Some(diff_id), Some(bytes), Some(entries)] => {
                    match (diff_id.parse(), bytes.parse(), entries.parse()) {
                        (Ok(diff_id), Ok(unpacked_bytes), Ok(entries)) => {
                            let limits = Limits { unpacked_bytes, entries, ..Limits::default() };
                            unpack(Path::new(blob), Path::new(folder), diff_id, &limits)
                                .map_err(|error| error.to_string())
                        }
                        _ => Err("bad arguments".into()),
                    }
                }
                _ => Err("bad arguments".into()),
            }
        }
        _ => Err("bad arguments".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::stderr().write_all(error.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Unpacks the layer in the file `blob` into the empty folder `out`, and checks
/// that its content has the digest `diff_id`. What is there after an error is
/// for the caller to remove.
///
/// # Errors
/// See [`UnpackError`].
pub fn unpack(
    blob: &Path,
    out: &Path,
    diff_id: Digest,
    limits: &Limits,
) -> Result<(), UnpackError> {
    let disk = |path: &Path| {
        let path = path.to_owned();
        move |source| UnpackError::Disk { path, source }
    };
    let file = File::open(blob).map_err(disk(blob))?;
    let reader = decompress(BufReader::with_capacity(64 << 10, file)).map_err(damaged)?;
    std::fs::create_dir_all(out).map_err(disk(out))?;
    let root =
        rustix::fs::open(out, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| disk(out)(error.into()))?;
    let mut counted =
        Counted { reader, hasher: Hasher::default(), n: 0, limit: limits.unpacked_bytes };
    let mut unpacker = Unpacker {
        root,
        folders: BTreeMap::new(),
        whiteouts: HashSet::new(),
        bytes_left: limits.unpacked_bytes,
        limits: *limits,
    };
    let entries_result = unpacker.entries(&mut counted);
    if counted.n > limits.unpacked_bytes {
        return Err(UnpackError::TooLarge { limit: limits.unpacked_bytes, unit: "bytes" });
    }
    entries_result?;
    // What follows the archive's end belongs to the digest.
    let rest = io::copy(&mut counted, &mut io::sink());
    if counted.n > limits.unpacked_bytes {
        return Err(UnpackError::TooLarge { limit: limits.unpacked_bytes, unit: "bytes" });
    }
    rest.map_err(damaged)?;
    let actual = counted.hasher.finish();
    if actual != diff_id {
        return Err(UnpackError::DigestMismatch { expected: diff_id, actual });
    }
    unpacker.finish_folders()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn damaged(error: io::Error) -> UnpackError {
    UnpackError::Damaged(error.to_string())
}

/// Undoes the compression, told by the first bytes: gzip, zstd or none.
///
/// # Errors
/// Nothing can be read, or a zstd frame is damaged.
pub(crate) fn decompress<'a>(mut reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let head = reader.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(Zstd { reader: Some(reader), frame: None })
        }
        _ => Box::new(reader),
    })
}

/// Frames of zstd one after the other, as parallel compressors write them.
struct Zstd<R: BufRead> {
    reader: Option<R>,
    frame: Option<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                match frame.read(buffer)? {
                    0 if !buffer.is_empty() => {}
                    n => return Ok(n),
                }
            }
            if let Some(frame) = self.frame.take() {
                self.reader = Some(frame.into_inner());
            }
            let Some(mut reader) = self.reader.take() else { return Ok(0) };
            // Frames that only carry notes are passed over.
            loop {
                let head = reader.fill_buf()?;
                if head.is_empty() {
                    self.reader = Some(reader);
                    return Ok(0);
                }
                if !matches!(head, [0x50..=0x5f, ..]) {
                    break;
                }
                let mut header = [0; 8];
                reader.read_exact(&mut header)?;
                let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
                let skipped = io::copy(&mut (&mut reader).take(length.into()), &mut io::sink())?;
                if header[1..4] != [0x2a, 0x4d, 0x18] || skipped < length.into() {
                    return Err(io::Error::other("a zstd frame is damaged"));
                }
            }
            let frame = ruzstd::decoding::StreamingDecoder::new(reader);
            self.frame = Some(frame.map_err(io::Error::other)?);
        }
    }
}

/// Counts and hashes what passes.
struct Counted<R> {
    reader: R,
    hasher: Hasher,
    n: u64,
    limit: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.n += n as u64;
        if self.n > self.limit {
            return Err(io::Error::other("too large"));
        }
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// What a folder gets once nothing is made in it any more.
struct Folder {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    xattrs: Vec<(String, Vec<u8>)>,
}

struct Unpacker {
    root: OwnedFd,
    folders: BTreeMap<PathBuf, Folder>,
    /// Paths whiteouts stand at: a folder that takes such a place hides what is below.
    whiteouts: HashSet<PathBuf>,
    bytes_left: u64,
    limits: Limits,
}

/// One entry's metadata.
struct Meta {
    path: PathBuf,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Meta {
    fn bad(&self, why: impl Into<String>) -> UnpackError {
        UnpackError::Entry { path: self.path.clone(), why: why.into() }
    }

    fn disk(&self) -> impl FnOnce(Errno) -> UnpackError + '_ {
        |error| match error {
            // The layer's own fault.
            Errno::NAMETOOLONG
            | Errno::LOOP
            | Errno::NOENT
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::ISDIR => self.bad(io::Error::from(error).to_string()),
            error => UnpackError::Disk { path: self.path.clone(), source: error.into() },
        }
    }
}

impl Unpacker {
    fn entries(&mut self, reader: &mut impl Read) -> Result<(), UnpackError> {
        let mut archive = tar::Archive::new(reader);
        let mut n_entries = 0;
        for entry in archive.entries().map_err(damaged)? {
            n_entries += 1;
            if n_entries > self.limits.entries {
                return Err(UnpackError::TooLarge { limit: self.limits.entries, unit: "entries" });
            }
            self.entry(entry.map_err(damaged)?)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let meta = read_meta(&mut entry)?;
        let kind = entry.header().entry_type();
        let Some(name) = meta.path.file_name().map(OsStr::to_owned) else {
            // "./": the root itself.
            if kind.is_dir() {
                self.keep_folder(meta);
            }
            return Ok(());
        };
        let parent_path = meta.path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        let parent = self.folder(&parent_path).map_err(meta.disk())?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&meta, &parent, &parent_path, hidden);
        }
        match kind {
            tar::EntryType::Directory => return self.directory(meta, &parent, &name),
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                self.clear(&meta, &parent, &name)?;
                self.file(&meta, &parent, &name, &mut entry)?;
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name().map_err(damaged)?;
                let target = target.ok_or_else(|| meta.bad("a symbolic link without a target"))?;
                self.clear(&meta, &parent, &name)?;
                rustix::fs::symlinkat(&*target, &parent, &name).map_err(meta.disk())?;
                own(&meta, &parent, &name)?;
                let times = times(meta.mtime);
                rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(meta.disk())?;
            }
            tar::EntryType::Link => {
                let target = entry.link_name().map_err(damaged)?;
                let target = target.ok_or_else(|| meta.bad("a hard link without a target"))?;
                let target = plain(&target).map_err(|why| meta.bad(why))?;
                let Some(target_name) = target.file_name() else {
                    return Err(meta.bad("a hard link to the root"));
                };
                if target == meta.path {
                    return Err(meta.bad("a hard link to itself"));
                }
                let failed = |error: Errno| {
                    let error = io::Error::from(error);
                    meta.bad(format!("a hard link to {}: {error}", target.display()))
                };
                let folder = self.open_folder(target.parent().unwrap_or_else(|| Path::new("")));
                let folder = folder.map_err(failed)?;
                self.clear(&meta, &parent, &name)?;
                // Without AT_SYMLINK_FOLLOW: a link to a link is a link to the link.
                rustix::fs::linkat(&folder, target_name, &parent, &name, AtFlags::empty())
                    .map_err(failed)?;
            }
            tar::EntryType::Fifo => {
                self.clear(&meta, &parent, &name)?;
                let mode = Mode::from(meta.mode);
                rustix::fs::mkfifoat(&parent, &name, mode).map_err(meta.disk())?;
                own(&meta, &parent, &name)?;
            }
            tar::EntryType::Char => {
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
                let header = entry.header();
                if number(header.device_major()) == 0 && number(header.device_minor()) == 0 {
                    return Err(meta.bad("a forged whiteout"));
                }
            }
            // Containers get their devices from us.
            tar::EntryType::Block => {}
            tar::EntryType::XGlobalHeader => {}
            other => {
                return Err(meta.bad(format!("an entry of unknown type {:?}", other.as_byte())));
            }
        }
        Ok(())
    }

    /// Opens a folder inside the root.
    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), IN_ROOT)
    }

    /// Opens a folder inside the root, making it and those above it if need be.
    fn folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.open_folder(path) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        let mut reached = PathBuf::new();
        for part in path.components() {
            let parent = self.open_folder(&reached)?;
            reached.push(part);
            match rustix::fs::mkdirat(&parent, part.as_os_str(), 0o755.into()) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        self.open_folder(path)
    }

    fn whiteout(
        &mut self,
        meta: &Meta,
        parent: &OwnedFd,
        parent_path: &Path,
        hidden: &[u8],
    ) -> Result<(), UnpackError> {
        if hidden == b".wh..opq" {
            set_xattr(parent.as_fd(), OPAQUE, b"y").map_err(meta.disk())?;
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh.") {
            return Err(meta.bad("a whiteout of nothing"));
        }
        let name = OsStr::from_bytes(hidden);
        // A whiteout is about the layers below; what this layer has there stays,
        // and a folder then shows nothing of theirs.
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    let folder = self.folder(&parent_path.join(name)).map_err(meta.disk())?;
                    set_xattr(folder.as_fd(), OPAQUE, b"y").map_err(meta.disk())?;
                }
                return Ok(());
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(meta.disk()(error)),
        }
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(parent, name, kind, Mode::empty(), 0).map_err(meta.disk())?;
        self.whiteouts.insert(parent_path.join(name));
        Ok(())
    }

    fn directory(&mut self, meta: Meta, parent: &OwnedFd, name: &OsStr) -> Result<(), UnpackError> {
        let was_whiteout = self.whiteouts.contains(&meta.path);
        let is_there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !is_folder {
                    self.clear(&meta, parent, name)?;
                }
                is_folder
            }
            Err(Errno::NOENT) => false,
            Err(error) => return Err(meta.disk()(error)),
        };
        if !is_there {
            rustix::fs::mkdirat(parent, name, 0o755.into()).map_err(meta.disk())?;
        }
        if was_whiteout {
            let folder = self.folder(&meta.path).map_err(meta.disk())?;
            set_xattr(folder.as_fd(), OPAQUE, b"y").map_err(meta.disk())?;
        }
        self.keep_folder(meta);
        Ok(())
    }

    fn keep_folder(&mut self, meta: Meta) {
        let Meta { path, mode, uid, gid, mtime, xattrs } = meta;
        self.folders.insert(path, Folder { mode, uid, gid, mtime, xattrs });
    }

    /// Makes room for an entry: the last of a name wins.
    fn clear(&mut self, meta: &Meta, parent: &OwnedFd, name: &OsStr) -> Result<(), UnpackError> {
        self.whiteouts.remove(&meta.path);
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                let folder = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
                // Goes down by descriptors, without following links.
                std::fs::remove_dir_all(folder.join(name))
                    .map_err(|source| UnpackError::Disk { path: meta.path.clone(), source })?;
                self.folders.retain(|path, _| !path.starts_with(&meta.path));
                self.whiteouts.retain(|path| !path.starts_with(&meta.path));
                Ok(())
            }
            Err(error) => Err(meta.disk()(error)),
        }
    }

    fn file(
        &mut self,
        meta: &Meta,
        parent: &OwnedFd,
        name: &OsStr,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(parent, name, flags, 0o600.into(), resolve);
        let mut file = File::from(file.map_err(meta.disk())?);
        let mut buffer = [0; 32 << 10];
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(error)),
            };
            // A sparse file is longer than what was read for it.
            self.bytes_left =
                self.bytes_left.checked_sub(n as u64).ok_or(UnpackError::TooLarge {
                    limit: self.limits.unpacked_bytes,
                    unit: "bytes",
                })?;
            file.write_all(&buffer[..n])
                .map_err(|source| UnpackError::Disk { path: meta.path.clone(), source })?;
        }
        // In this order: a change of owner clears the bits and the capabilities.
        own(meta, parent, name)?;
        rustix::fs::fchmod(&file, Mode::from(meta.mode)).map_err(meta.disk())?;
        for (key, value) in &meta.xattrs {
            let set =
                rustix::fs::fsetxattr(&file, key.as_str(), value, rustix::fs::XattrFlags::empty());
            ignore_unsupported(set).map_err(meta.disk())?;
        }
        rustix::fs::futimens(&file, &times(meta.mtime)).map_err(meta.disk())
    }

    /// Owners, modes and times of folders, deepest first, now that they are full.
    fn finish_folders(self) -> Result<(), UnpackError> {
        for (path, folder) in self.folders.iter().rev() {
            let disk =
                |error: Errno| UnpackError::Disk { path: path.clone(), source: error.into() };
            let fd = self.folder(path).map_err(disk)?;
            let by_fd = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let (uid, gid) = (Uid::from_raw(folder.uid), Gid::from_raw(folder.gid));
            rustix::fs::chown(&by_fd, Some(uid), Some(gid)).map_err(disk)?;
            rustix::fs::chmod(&by_fd, Mode::from(folder.mode)).map_err(disk)?;
            for (key, value) in &folder.xattrs {
                ignore_unsupported(set_xattr(fd.as_fd(), key, value)).map_err(disk)?;
            }
            let times = times(folder.mtime);
            rustix::fs::utimensat(rustix::fs::CWD, &by_fd, &times, AtFlags::empty())
                .map_err(disk)?;
        }
        Ok(())
    }
}

fn read_meta(entry: &mut tar::Entry<'_, impl Read>) -> Result<Meta, UnpackError> {
    let raw = entry.path().map_err(damaged)?.into_owned();
    let bad = |why: &str| UnpackError::Entry { path: raw.clone(), why: why.to_owned() };
    let path = plain(&raw).map_err(bad)?;
    let header = entry.header();
    let number = |n: io::Result<u64>, what: &str| {
        n.ok().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| bad(what))
    };
    let mut meta = Meta {
        mode: header.mode().map_err(damaged)? & 0o7777,
        uid: number(header.uid(), "its owner is no user id")?,
        gid: number(header.gid(), "its group is no group id")?,
        mtime: header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
        path,
        xattrs: Vec::new(),
    };
    if let Some(extensions) = entry.pax_extensions().map_err(damaged)? {
        for extension in extensions {
            let extension = extension.map_err(damaged)?;
            let Some(key) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr."))
            else {
                continue;
            };
            // Others could speak to overlayfs, or claim what the host decides.
            if key == "security.capability" || key.starts_with("user.") {
                meta.xattrs.push((key.to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(meta)
}

/// A path of names only: no root, no `.`, and never `..`.
fn plain(path: &Path) -> Result<PathBuf, &'static str> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) if part.as_bytes().contains(&0) => {
                return Err("a NUL in its path");
            }
            Component::Normal(part) => plain.push(part),
            Component::CurDir | Component::RootDir => {}
            _ => return Err("\"..\" in its path"),
        }
    }
    Ok(plain)
}

fn own(meta: &Meta, parent: &OwnedFd, name: &OsStr) -> Result<(), UnpackError> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(meta.disk())
}

/// Sets an attribute on what a path descriptor stands for.
fn set_xattr(fd: BorrowedFd<'_>, key: &str, value: &[u8]) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::setxattr(path, key, value, rustix::fs::XattrFlags::empty())
}

/// A file system without user attributes loses them, as every runtime does.
fn ignore_unsupported(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
