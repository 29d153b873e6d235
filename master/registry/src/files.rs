//! The registry on disk.
//!
//! ```text
//! blobs/<hex>                              content, by SHA-256; never changes
//! repositories/<name>/_blobs/<hex>         the blob is in this repository
//! repositories/<name>/_manifests/<hex>     so is this manifest; holds its media type
//! repositories/<name>/_tags/<tag>          the digest it stands for
//! uploads/<id>, uploads/<id>.name          bytes that have arrived, and for which repository
//! tmp/                                     files on their way to their place
//! ```
//!
//! Old or new, never half: content is flushed and renamed into place before a
//! link names it, links before manifests, manifests before tags. A master that
//! was killed finds everything it has acknowledged, and uploads go on where
//! they were.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use image::Digest;
use image::registry::MANIFEST_BYTES_MAX;
use serde_json::Value;
use tokio::time::Instant;

use crate::{Code, Name, RegistryError, Tag};

/// Longest media type, in bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// How deep folders of repositories are looked for.
const DEPTH_MAX: usize = 17;

/// How much the registry may hold.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Most bytes of content and uploads together.
    pub quota_bytes: u64,
    /// Bytes of the disk that are left for others: the cluster's state is beside.
    pub reserve_bytes: u64,
    /// How long content that no tag leads to stays, for pushes that are under way.
    pub grace: Duration,
}

impl Default for Config {
    /// 10 GiB, 512 MiB, and an hour.
    fn default() -> Self {
        Self { quota_bytes: 10 << 30, reserve_bytes: 512 << 20, grace: Duration::from_secs(3600) }
    }
}

/// The files.
#[derive(Debug)]
pub struct Files {
    pub(crate) root: PathBuf,
    pub(crate) config: Config,
    /// Bytes of content and uploads.
    pub(crate) used: AtomicU64,
    /// Held for reading by writes that rely on content, for writing by a collection.
    pub(crate) gate: tokio::sync::RwLock<()>,
    /// Since when a collection has found content that nothing leads to.
    pub(crate) idle: Mutex<HashMap<Digest, Instant>>,
    /// When a repository was last written to.
    pub(crate) active: Mutex<HashMap<Name, Instant>>,
    pub(crate) uploads: Mutex<HashMap<String, crate::upload::Session>>,
    pub(crate) in_use: Mutex<HashSet<String>>,
}

/// A blob that can be read.
#[derive(Debug)]
pub struct BlobFile {
    /// The file.
    pub file: File,
    /// Its length.
    pub size: u64,
}

impl Files {
    /// Opens the folder, making it if need be.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(root: &Path, config: Config) -> io::Result<Self> {
        for name in ["blobs", "repositories", "uploads", "tmp"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(root.join(name))?;
        }
        for entry in fs::read_dir(root.join("tmp"))? {
            fs::remove_file(entry?.path())?;
        }
        let mut used = 0;
        for name in ["blobs", "uploads"] {
            for entry in fs::read_dir(root.join(name))? {
                used += entry?.metadata()?.len();
            }
        }
        Ok(Self {
            root: root.to_owned(),
            config,
            used: AtomicU64::new(used),
            gate: tokio::sync::RwLock::default(),
            idle: Mutex::default(),
            active: Mutex::default(),
            uploads: Mutex::default(),
            in_use: Mutex::default(),
        })
    }

    /// Bytes of content and uploads.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub(crate) fn repository(&self, name: &Name) -> PathBuf {
        self.root.join("repositories").join(name.as_str())
    }

    pub(crate) fn link(&self, name: &Name, kind: &str, file: &str) -> PathBuf {
        self.repository(name).join(kind).join(file)
    }

    /// Whether `n_bytes` more may come.
    pub(crate) fn check_room(&self, n_bytes: u64) -> Result<(), RegistryError> {
        let used = self.used_bytes();
        if used.saturating_add(n_bytes) > self.config.quota_bytes {
            return Err(RegistryError::new(
                Code::Denied,
                format!(
                    "the registry holds {used} of the {} bytes it may: delete images with \
                     `pinnace image rm`, or raise --registry-quota",
                    self.config.quota_bytes
                ),
            ));
        }
        let disk = rustix::fs::statvfs(&self.root).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize)
            < self.config.reserve_bytes.saturating_add(n_bytes)
        {
            return Err(RegistryError::new(
                Code::Denied,
                format!(
                    "the master's disk is nearly full; its last {} bytes are for the cluster's \
                     state: delete images, or make room",
                    self.config.reserve_bytes
                ),
            ));
        }
        Ok(())
    }

    /// Notes that somebody relies on content, so that it is not taken for forgotten.
    pub(crate) fn touch(&self, digest: Digest) {
        lock(&self.idle).remove(&digest);
    }

    pub(crate) fn note_active(&self, name: &Name) {
        lock(&self.active).insert(name.clone(), Instant::now());
    }

    /// Puts bytes in place, flushed; what was there is replaced at once.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.root.join("tmp").join(random_id());
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let placed = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| place(&temporary, path));
        if placed.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        placed
    }

    /// Takes a finished file in as a blob.
    pub(crate) fn take_blob(&self, from: &Path, digest: Digest) -> io::Result<()> {
        let path = self.blob_path(digest);
        if path.exists() {
            let size = fs::metadata(from)?.len();
            fs::remove_file(from)?;
            self.used.fetch_sub(size, Ordering::Relaxed);
            return Ok(());
        }
        File::open(from)?.sync_all()?;
        place(from, &path)
    }

    pub(crate) fn link_blob(&self, name: &Name, digest: Digest) -> io::Result<()> {
        let path = self.link(name, "_blobs", &digest.hex());
        if path.exists() { Ok(()) } else { self.put(&path, b"") }
    }

    /// Whether a blob (or a manifest's content) is in a repository; with its length.
    ///
    /// # Errors
    /// It is not.
    pub fn blob_size(&self, name: &Name, digest: Digest) -> Result<u64, RegistryError> {
        let is_here = self.link(name, "_blobs", &digest.hex()).exists()
            || self.link(name, "_manifests", &digest.hex()).exists();
        if !is_here {
            return Err(RegistryError::no_blob(digest));
        }
        self.touch(digest);
        match fs::metadata(self.blob_path(digest)) {
            Ok(file) => Ok(file.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RegistryError::no_blob(digest))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a blob of a repository.
    ///
    /// # Errors
    /// It is not there.
    pub fn open_blob(&self, name: &Name, digest: Digest) -> Result<BlobFile, RegistryError> {
        let size = self.blob_size(name, digest)?;
        Ok(BlobFile { file: File::open(self.blob_path(digest))?, size })
    }

    /// What a tag stands for.
    ///
    /// # Errors
    /// There is no such tag.
    pub fn tag(&self, name: &Name, tag: &Tag) -> Result<Digest, RegistryError> {
        let unknown = || RegistryError::no_manifest(tag.as_str());
        match fs::read_to_string(self.link(name, "_tags", tag.as_str())) {
            Ok(text) => text.trim().parse().map_err(|_| unknown()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            Err(error) => Err(error.into()),
        }
    }

    /// A manifest by tag or digest: its digest, media type and bytes.
    ///
    /// # Errors
    /// It is not there.
    pub fn manifest(
        &self,
        name: &Name,
        reference: &str,
    ) -> Result<(Digest, String, Bytes), RegistryError> {
        let digest = match reference.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) if reference.contains(':') => return Err(RegistryError::bad_digest(reference)),
            Err(_) => self.tag(name, &Tag::parse(reference)?)?,
        };
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => RegistryError::no_manifest(reference),
            _ => error.into(),
        };
        let kind = fs::read_to_string(self.link(name, "_manifests", &digest.hex()));
        let kind = kind.map_err(missing)?;
        self.touch(digest);
        let bytes = self.document(digest).map_err(missing)?;
        if Digest::of(&bytes) != digest {
            tracing::error!(%digest, "a manifest is damaged on the master's disk");
            return Err(RegistryError::no_manifest(reference));
        }
        Ok((digest, kind, bytes))
    }

    pub(crate) fn document(&self, digest: Digest) -> io::Result<Bytes> {
        let mut bytes = Vec::new();
        File::open(self.blob_path(digest))?.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    /// Takes a manifest in, under a tag or its digest. Returns its digest, and what
    /// it is about where it says so.
    ///
    /// # Errors
    /// It is no manifest, or names what is not there.
    pub async fn put_manifest(
        &self,
        name: &Name,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(Digest, Option<Digest>), RegistryError> {
        let digest = Digest::of(bytes);
        let tag = match reference.parse::<Digest>() {
            Ok(wanted) if wanted == digest => None,
            Ok(wanted) => return Err(RegistryError::mismatch(wanted, digest)),
            Err(_) if reference.contains(':') => return Err(RegistryError::bad_digest(reference)),
            Err(_) => Some(Tag::parse(reference)?),
        };
        let links =
            Links::of(bytes).map_err(|why| RegistryError::new(Code::ManifestInvalid, why))?;
        let media_type = match (media_type, links.media_type.as_deref()) {
            ("" | "application/json" | "application/octet-stream", Some(own)) => own,
            (given, Some(own)) if given != own => {
                let message = format!("it says it is {own:?} and was sent as {given:?}");
                return Err(RegistryError::new(Code::ManifestInvalid, message));
            }
            (given, _) => given,
        };
        let is_plain = !media_type.is_empty()
            && media_type.len() <= MEDIA_TYPE_BYTES_MAX
            && media_type.bytes().all(|b| (0x20..0x7f).contains(&b));
        if !is_plain {
            let message = "the request has no usable Content-Type";
            return Err(RegistryError::new(Code::ManifestInvalid, message));
        }
        let _relying = self.gate.read().await;
        for child in &links.manifests {
            if !self.link(name, "_manifests", &child.hex()).exists() {
                let message = format!("it names manifest {child}, which is not in this repository");
                return Err(RegistryError::new(Code::ManifestBlobUnknown, message));
            }
        }
        for blob in &links.blobs {
            if self.blob_size(name, *blob).is_err() {
                let message = format!("it names blob {blob}, which is not in this repository");
                return Err(RegistryError::new(Code::ManifestBlobUnknown, message));
            }
        }
        self.note_active(name);
        if !self.blob_path(digest).exists() {
            self.check_room(bytes.len() as u64)?;
            self.put(&self.blob_path(digest), bytes)?;
            self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        self.touch(digest);
        self.put(&self.link(name, "_manifests", &digest.hex()), media_type.as_bytes())?;
        if let Some(tag) = tag {
            let path = self.link(name, "_tags", tag.as_str());
            self.put(&path, digest.to_string().as_bytes())?;
        }
        Ok((digest, links.subject))
    }

    /// Removes a tag, or a manifest with all its tags.
    ///
    /// # Errors
    /// It is not there.
    pub async fn delete_manifest(&self, name: &Name, reference: &str) -> Result<(), RegistryError> {
        let _relying = self.gate.read().await;
        let unknown = || RegistryError::no_manifest(reference);
        let Ok(digest) = reference.parse::<Digest>() else {
            let path = self.link(name, "_tags", Tag::parse(reference)?.as_str());
            return if unlink(&path)? { Ok(()) } else { Err(unknown()) };
        };
        for tag in self.tags(name)? {
            if self.tag(name, &tag).is_ok_and(|other| other == digest) {
                unlink(&self.link(name, "_tags", tag.as_str()))?;
            }
        }
        let path = self.link(name, "_manifests", &digest.hex());
        if unlink(&path)? { Ok(()) } else { Err(unknown()) }
    }

    /// Takes a blob out of a repository.
    ///
    /// # Errors
    /// It is not there.
    pub async fn delete_blob(&self, name: &Name, digest: Digest) -> Result<(), RegistryError> {
        let _relying = self.gate.read().await;
        let path = self.link(name, "_blobs", &digest.hex());
        if unlink(&path)? { Ok(()) } else { Err(RegistryError::no_blob(digest)) }
    }

    /// Makes a blob of one repository one of another, too; whether it was there.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn mount(
        &self,
        from: &Name,
        to: &Name,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let _relying = self.gate.read().await;
        if self.blob_size(from, digest).is_err() {
            return Ok(false);
        }
        self.note_active(to);
        self.link_blob(to, digest)?;
        Ok(true)
    }

    /// The tags of a repository, sorted.
    ///
    /// # Errors
    /// There is no such repository.
    pub fn tags(&self, name: &Name) -> Result<Vec<Tag>, RegistryError> {
        if !self.repository(name).join("_manifests").is_dir() {
            let message = format!("there is no repository {name}");
            return Err(RegistryError::new(Code::NameUnknown, message));
        }
        let names = names_in(&self.repository(name).join("_tags"))?;
        Ok(names.iter().filter_map(|name| Tag::parse(name).ok()).collect())
    }

    /// The manifests of a repository that are about another.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn referrers(&self, name: &Name, subject: Digest) -> io::Result<Vec<Value>> {
        let mut found = Vec::new();
        for (digest, kind) in self.manifests(name)? {
            let bytes = self.document(digest)?;
            if !Links::of(&bytes).is_ok_and(|links| links.subject == Some(subject)) {
                continue;
            }
            let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let mut entry = serde_json::json!({
                "mediaType": kind, "digest": digest, "size": bytes.len(),
            });
            let artifact =
                value["artifactType"].as_str().or_else(|| value["config"]["mediaType"].as_str());
            if let Some(artifact) = artifact {
                entry["artifactType"] = artifact.into();
            }
            if value["annotations"].is_object() {
                entry["annotations"] = value["annotations"].clone();
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// The manifests of a repository and their media types.
    pub(crate) fn manifests(&self, name: &Name) -> io::Result<Vec<(Digest, String)>> {
        let folder = self.repository(name).join("_manifests");
        let digests = names_in(&folder)?;
        let read = |hex: &String| -> Option<(Digest, String)> {
            let digest = format!("sha256:{hex}").parse().ok()?;
            Some((digest, fs::read_to_string(folder.join(hex)).ok()?))
        };
        Ok(digests.iter().filter_map(read).collect())
    }

    /// Every repository, sorted.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn repositories(&self) -> io::Result<Vec<Name>> {
        fn walk(
            root: &Path,
            path: &Path,
            depth: usize,
            found: &mut BTreeSet<Name>,
        ) -> io::Result<()> {
            for name in names_in(path)? {
                let inner = path.join(&name);
                if name == "_manifests" || name == "_blobs" {
                    let text = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
                    found.extend(Name::parse(&text).ok());
                } else if !name.starts_with('_') && depth < DEPTH_MAX && inner.is_dir() {
                    walk(root, &inner, depth + 1, found)?;
                }
            }
            Ok(())
        }
        let root = self.root.join("repositories");
        let mut found = BTreeSet::new();
        walk(&root, &root, 0, &mut found)?;
        Ok(found.into_iter().collect())
    }
}

/// What a manifest leads to.
#[derive(Debug, Default)]
pub(crate) struct Links {
    pub(crate) media_type: Option<String>,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) subject: Option<Digest>,
}

impl Links {
    /// Reads a manifest or index.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if value["schemaVersion"] != 2 {
            return Err("its schemaVersion is not 2".into());
        }
        let digest = |descriptor: &Value| -> Result<Digest, String> {
            let text = descriptor["digest"].as_str().ok_or("a descriptor has no digest")?;
            text.parse().map_err(|_| format!("{text:?} is not sha256: and 64 hexadecimal digits"))
        };
        // Content that is elsewhere is not ours to have.
        let is_here = |descriptor: &&Value| !descriptor["urls"].is_array();
        let all = |list: &Value| -> Result<Vec<Digest>, String> {
            list.as_array().into_iter().flatten().filter(is_here).map(digest).collect()
        };
        let mut links = Self {
            media_type: value["mediaType"].as_str().map(str::to_owned),
            manifests: all(&value["manifests"])?,
            blobs: all(&value["layers"])?,
            subject: match &value["subject"] {
                Value::Null => None,
                subject => Some(digest(subject)?),
            },
        };
        if value["config"].is_object() {
            links.blobs.push(digest(&value["config"])?);
        } else if !value["manifests"].is_array() {
            return Err("it has neither manifests nor a config".into());
        }
        Ok(links)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sorted names in a folder; none where there is no folder.
pub(crate) fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Renames a flushed file into its place, durably, making the folders above it.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().unwrap_or(to);
    make_folder(folder)?;
    fs::rename(from, to)?;
    File::open(folder)?.sync_all()
}

fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(folder);
    make_folder(above)?;
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(above)?.sync_all(),
    }
}

/// Removes a file, durably; whether it was there.
pub(crate) fn unlink(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(()) => File::open(path.parent().unwrap_or(path))?.sync_all().map(|()| true),
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 16];
    let rng = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&rng, &mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
