//! The node's images on disk.
//!
//! ```text
//! blobs/sha256/<hex>     manifests and configurations
//! layers/<hex>/          unpacked layers by diff_id, immutable, shared by images
//! refs/<hex>.json        a Record: which name is which image
//! tmp/                   unfinished downloads (*.part) and unpacked layers
//! ```
//!
//! Safe at every instant: whatever is in place is whole. A download is verified,
//! flushed and renamed; a layer is unpacked beside, flushed and renamed; the
//! record comes last. So a power cut loses work, never correctness, and a start
//! after one needs no repair but sweeping `tmp`.

mod pull;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::manifest::{self, Document, ImageConfig};
use crate::{Digest, ImageError, Platform, Reference};

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
}

/// The images of a node.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    unpacker: Unpacker,
    platform: Platform,
    /// One pull at a time, as the kubelet does it: layers are shared, memory is
    /// short, and a collection must not run beside a pull.
    busy: Mutex<()>,
}

impl Store {
    /// Opens a folder, making it if need be, and sweeps what a crash left behind.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(root: &Path, unpacker: Unpacker, limits: Limits) -> Result<Self, ImageError> {
        for name in ["blobs/sha256", "layers", "refs", "tmp"] {
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
            busy: Mutex::new(()),
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

    fn record_path(&self, name: &str) -> PathBuf {
        // A name may be long and holds slashes; its digest is neither.
        self.root.join("refs").join(format!("{}.json", Digest::of(name.as_bytes()).hex()))
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
        let wanted = digest.or(reference.digest);
        let record = match wanted {
            Some(digest) => {
                let is_it = |record: &Record| record.digest == digest || record.manifest == digest;
                self.records()?.into_iter().find(is_it)
            }
            None => {
                let bytes = fs::read(self.record_path(&reference.to_string())).ok();
                bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok())
            }
        };
        Ok(record.and_then(|record| self.assemble(reference.to_string(), &record)))
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
        })
    }

    /// Removes every record that `keep` refuses, and what nothing refers to any more.
    ///
    /// `keep` has to accept every image that a container uses or will use.
    ///
    /// # Errors
    /// The disk cannot be read or written; the rest is done at the next call.
    pub async fn collect(&self, keep: impl Fn(&Record) -> bool) -> Result<Collected, ImageError> {
        let _guard = self.busy.lock().await;
        let mut collected = Collected::default();
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for record in self.records()? {
            if !keep(&record) {
                let path = self.record_path(&record.name);
                remove(&path).map_err(ImageError::disk("remove", &path))?;
                collected.n_names += 1;
                continue;
            }
            let Some(image) = self.assemble(String::new(), &record) else { continue };
            layers.extend(image.layers);
            blobs.insert(self.blob(record.manifest));
            blobs.insert(self.blob(record.digest));
            if let Some(config) = self.config_of(record.manifest) {
                blobs.insert(self.blob(config));
            }
        }
        for (folder, used) in [("blobs/sha256", &blobs), ("layers", &layers)] {
            let folder = self.root.join(folder);
            for path in list(&folder).map_err(ImageError::disk("read", &folder))? {
                if used.contains(&path) {
                    continue;
                }
                // Out of its place first: a removal that is cut short leaves half a layer.
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let doomed = self.tmp(&format!("{name}.doomed"));
                fs::rename(&path, &doomed).map_err(ImageError::disk("move", &path))?;
                collected.n_layers += usize::from(doomed.is_dir());
            }
        }
        self.sweep_tmp(true)?;
        Ok(collected)
    }

    fn config_of(&self, manifest: Digest) -> Option<Digest> {
        let bytes = fs::read(self.blob(manifest)).ok()?;
        match manifest::parse(&bytes) {
            Ok(Document::Manifest(manifest)) => Some(manifest.config.digest),
            _ => None,
        }
    }

    /// Puts verified bytes into place.
    fn write_blob(&self, digest: Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.write_atomically(&self.blob(digest), bytes)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = self.tmp(&name);
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

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Names forgotten.
    pub n_names: usize,
    /// Layers removed.
    pub n_layers: usize,
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
