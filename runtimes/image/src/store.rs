//! The node's images on disk.
//!
//! ```text
//! blobs/sha256/<hex>     manifests and configurations
//! layers/<hex>/          unpacked layers by diff_id, immutable, shared by images
//! refs/<hex>.json        a Record: which name is (or was) which image
//! signatures/<hex>.json  signatures of what has that digest, for checks without network
//! tmp/                   unfinished downloads (*.part) and unpacked layers
//! ```
//!
//! A name that has moved on keeps its older images for as long as a pod uses
//! them: two pods made at different times may run two images of one name.
//!
//! Safe at every instant: whatever is in place is whole. A download is verified,
//! flushed and renamed; a layer is unpacked beside, flushed and renamed; the
//! record comes last. So a power cut loses work, never correctness, and a start
//! after one needs no repair but sweeping `tmp`.

mod collect;
mod pull;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::manifest::{self, Document, ImageConfig};
use crate::signature::Signature;
use crate::{Digest, ImageError, Platform, Reference};

pub use collect::{Collected, InUse, Unused};
pub use pull::Pull;

/// Pulls at once: one that crawls holds up few others, and a board's memory is short.
const PULLS_MAX: usize = 4;
/// Longest file of signatures that is read, in bytes.
const SIGNATURES_BYTES_MAX: u64 = 8 << 20;

/// How much an image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a compressed layer.
    pub layer_bytes: u64,
    /// Most bytes of an unpacked layer.
    pub unpacked_bytes: u64,
    /// Most files and folders of a layer.
    pub entries: u64,
}

impl Default for Limits {
    /// 4 GiB, 16 GiB, and a million entries.
    fn default() -> Self {
        Self { layer_bytes: 4 << 30, unpacked_bytes: 16 << 30, entries: 1_000_000 }
    }
}

/// Where layers are unpacked.
#[derive(Clone, Debug)]
pub enum Unpacker {
    /// On a thread of this process.
    InProcess,
    /// In a child process, which ends in [`crate::unpack_main`] with the arguments after these.
    Child {
        /// The program, such as `/proc/self/exe`.
        program: PathBuf,
        /// What comes first.
        args: Vec<OsString>,
    },
}

/// Which image a name stands for on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name, in full (`docker.io/library/nginx:latest`).
    pub name: String,
    /// What the name stood for when it was asked: an index or a manifest.
    pub digest: Digest,
    /// The manifest for this machine.
    pub manifest: Digest,
    /// When, by the wall clock, in milliseconds since 1970.
    pub pulled_ms: u64,
    /// Grows with every pull, whatever the clock says.
    #[serde(default)]
    pub sequence: u64,
    /// What its layers hold, in bytes; those it shares with others too.
    #[serde(default)]
    pub size: u64,
    /// Who has shown that they may use it: names and fingerprints of credentials.
    /// Empty where nobody needs any.
    #[serde(default)]
    pub access: Vec<String>,
}

/// An image that is here, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name it was asked for by.
    pub name: String,
    /// What the name stood for: an index or a manifest.
    pub digest: Digest,
    /// The manifest for this machine.
    pub manifest: Digest,
    /// How to run it.
    pub config: ImageConfig,
    /// Its unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// What they hold, in bytes.
    pub size: u64,
    /// See [`Record::access`].
    pub access: Vec<String>,
}

/// The images of a node.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    unpacker: Unpacker,
    platform: Platform,
    pulls: Semaphore,
    /// One layer at a time: unpacking takes memory.
    unpacking: tokio::sync::Mutex<()>,
    /// One fetch at a time for each layer.
    layer_locks: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// What pulls have begun to rely on and no record names yet, by how many pulls.
    /// A collection holds the lock while it decides, and leaves these.
    pins: Mutex<BTreeMap<PathBuf, usize>>,
    /// When images were last asked for, by name and digest. Since the start only:
    /// a clock that jumps must not make an image old, nor each use cost a write.
    uses: Mutex<HashMap<(String, Digest), Instant>>,
}

impl Store {
    /// Opens a folder, making it if need be, and sweeps what a crash left behind.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(root: &Path, unpacker: Unpacker, limits: Limits) -> Result<Self, ImageError> {
        for name in ["blobs/sha256", "layers", "refs", "signatures", "tmp"] {
            let folder = root.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(ImageError::disk("make", &folder))?;
        }
        let store = Self {
            root: root.to_owned(),
            limits,
            unpacker,
            platform: Platform::host(),
            pulls: Semaphore::new(PULLS_MAX),
            unpacking: tokio::sync::Mutex::default(),
            layer_locks: Mutex::default(),
            pins: Mutex::default(),
            uses: Mutex::default(),
        };
        store.sweep_tmp(false)?;
        Ok(store)
    }

    /// The same store, choosing images for another machine. For tests.
    #[must_use]
    pub fn for_platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Removes unfinished work; downloads only if told to, because they go on
    /// where they stopped.
    fn sweep_tmp(&self, downloads: bool) -> Result<(), ImageError> {
        let tmp = self.root.join("tmp");
        for path in list(&tmp).map_err(ImageError::disk("read", &tmp))? {
            if downloads || path.extension().is_none_or(|extension| extension != "part") {
                remove(&path).map_err(ImageError::disk("remove", &path))?;
            }
        }
        Ok(())
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn layer(&self, diff_id: Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn tmp(&self, name: &str) -> PathBuf {
        self.root.join("tmp").join(name)
    }

    fn record_path(&self, name: &str, digest: Digest) -> PathBuf {
        // A name may be long and holds slashes; its digest is neither.
        let name = Digest::of(format!("{name} {digest}").as_bytes());
        self.root.join("refs").join(format!("{}.json", name.hex()))
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<PathBuf, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an image is used now.
    fn touch(&self, record: &Record) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.insert((record.name.clone(), record.digest), Instant::now());
    }

    /// What every known name stands for.
    ///
    /// # Errors
    /// The folder cannot be read. Damaged records are passed over.
    pub fn records(&self) -> Result<Vec<Record>, ImageError> {
        let refs = self.root.join("refs");
        let paths = list(&refs).map_err(ImageError::disk("read", &refs))?;
        let read = |path: &PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        Ok(paths.iter().filter_map(read).collect())
    }

    /// The image if it is here, without asking anybody: for starts without network.
    ///
    /// With a digest (of an index or a manifest), that very image, under any
    /// name; without, the one the name stood for last.
    ///
    /// # Errors
    /// The disk cannot be read. An image that is not whole counts as absent.
    pub fn get(
        &self,
        reference: &Reference,
        digest: Option<Digest>,
    ) -> Result<Option<Image>, ImageError> {
        let name = reference.to_string();
        let mut found = self.records()?;
        match digest.or(reference.digest) {
            Some(digest) => {
                found.retain(|record| record.digest == digest || record.manifest == digest);
                // Under its own name first: who may use it is noted by name.
                found.sort_by_key(|record| {
                    (record.name != name, std::cmp::Reverse(record.sequence))
                });
            }
            None => {
                found.retain(|record| record.name == name);
                found.sort_by_key(|record| std::cmp::Reverse(record.sequence));
                found.truncate(1);
            }
        }
        let image = found.iter().find_map(|record| {
            let image = self.assemble(name.clone(), record)?;
            self.touch(record);
            Some(image)
        });
        Ok(image)
    }

    /// Notes that somebody has shown that they may use an image.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn grant(&self, image: &Image, access: &[String]) -> Result<(), ImageError> {
        for mut record in self.records()? {
            if record.digest != image.digest || record.access.is_empty() {
                continue;
            }
            let known = record.access.len();
            for who in access {
                if !record.access.contains(who) {
                    record.access.push(who.clone());
                }
            }
            if record.access.len() != known {
                self.write_record(&record)?;
            }
        }
        Ok(())
    }

    fn write_record(&self, record: &Record) -> Result<(), ImageError> {
        let json = serde_json::to_vec(record).unwrap_or_default();
        self.write_atomically(&self.record_path(&record.name, record.digest), &json)
    }

    /// Keeps the signatures of what has a digest.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn put_signatures(
        &self,
        digest: Digest,
        signatures: &[Signature],
    ) -> Result<(), ImageError> {
        let json = serde_json::to_vec(signatures).unwrap_or_default();
        self.write_atomically(&self.signature_path(digest), &json)
    }

    /// The signatures that were kept; none where there are none, or they are damaged.
    #[must_use]
    pub fn signatures(&self, digest: Digest) -> Vec<Signature> {
        let path = self.signature_path(digest);
        let fits = fs::metadata(&path).is_ok_and(|file| file.len() <= SIGNATURES_BYTES_MAX);
        let bytes = fs::read(path).ok().filter(|_| fits);
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn signature_path(&self, digest: Digest) -> PathBuf {
        self.root.join("signatures").join(format!("{}.json", digest.hex()))
    }

    /// Builds an [`Image`] from the disk; `None` if anything is missing.
    fn assemble(&self, name: String, record: &Record) -> Option<Image> {
        let bytes = fs::read(self.blob(record.manifest)).ok()?;
        let Ok(Document::Manifest(manifest)) = manifest::parse(&bytes) else { return None };
        let bytes = fs::read(self.blob(manifest.config.digest)).ok()?;
        let config = ImageConfig::parse(&bytes).ok()?;
        let layers: Vec<PathBuf> = config.diff_ids.iter().map(|id| self.layer(*id)).collect();
        layers.iter().all(|layer| layer.is_dir()).then_some(Image {
            name,
            digest: record.digest,
            manifest: record.manifest,
            config,
            layers,
            size: record.size,
            access: record.access.clone(),
        })
    }

    /// Puts verified bytes into place.
    fn write_blob(&self, digest: Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.write_atomically(&self.blob(digest), bytes)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        static N_WRITES: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = self.tmp(&format!("{name}.{}", N_WRITES.fetch_add(1, Ordering::Relaxed)));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            sync_parent(path)
        };
        write().map_err(ImageError::disk("write", path))
    }
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn remove(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
