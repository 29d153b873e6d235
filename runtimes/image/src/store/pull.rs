//! Brings an image from its registry to the disk.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Image, Record, Store, Unpacker, now_ms, remove, sync_parent};
use crate::inspect::{CONFIG_BYTES_MAX, malformed, parse};
use crate::manifest::{Descriptor, Document, ImageConfig, Manifest};
use crate::registry::Verifier;
use crate::unpack::{UnpackError, unpack};
use crate::{Digest, ImageError, Platform, Reference, Registry};

/// How often a download goes on after it broke off without a byte of progress.
const FRUITLESS_ATTEMPTS_MAX: u32 = 4;

/// How long the first of those waits; each next one twice as long.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Longest message of an unpacking process, in bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What to pull, for whom.
#[derive(Clone, Copy)]
pub struct Pull<'a> {
    /// Where from, and as whom.
    pub registry: &'a Registry,
    /// The image.
    pub reference: &'a Reference,
    /// The very image, if that is known.
    pub digest: Option<Digest>,
    /// Who may use it from now on, see [`Record::access`]; empty for everybody.
    pub access: &'a [String],
    /// Told how many bytes of its layers are here, and of how many.
    pub told: &'a (dyn Fn(u64, u64) + Send + Sync),
}

impl std::fmt::Debug for Pull<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull").field("reference", self.reference).finish_non_exhaustive()
    }
}

/// What one pull relies on; let go with it.
struct Pins<'a> {
    store: &'a Store,
    paths: Mutex<Vec<PathBuf>>,
}

impl Pins<'_> {
    fn add(&self, path: PathBuf) {
        *self.store.pins().entry(path.clone()).or_default() += 1;
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        let mut pins = self.store.pins();
        for path in self.paths.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(n) = pins.get_mut(&path) {
                *n -= 1;
                if *n == 0 {
                    pins.remove(&path);
                }
            }
        }
    }
}

impl Store {
    /// Fetches what is missing of an image, and unpacks it.
    ///
    /// With a digest (of an index or a manifest), that very image, whatever its
    /// name stands for by now; without, what the name stands for now. May be
    /// dropped at any time; the next call goes on.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn pull(
        &self,
        registry: &Registry,
        reference: &Reference,
        digest: Option<Digest>,
    ) -> Result<Image, ImageError> {
        let pull = Pull { registry, reference, digest, access: &[], told: &|_, _| () };
        self.pull_as(&pull).await
    }

    /// The same, for somebody, and telling how far it is.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn pull_as(&self, pull: &Pull<'_>) -> Result<Image, ImageError> {
        let _turn = self.pulls.acquire().await.expect("the semaphore is never closed");
        let Pull { registry, reference, digest, .. } = *pull;
        let pins = Pins { store: self, paths: Mutex::default() };
        let name = reference.to_string();
        let wanted = digest.map_or_else(|| reference.clone(), |digest| reference.at(digest));
        let raw = registry.manifest(&wanted).await?;
        let (manifest_digest, manifest) = match parse(&wanted, &raw.bytes)? {
            Document::Manifest(manifest) => {
                self.write_pinned(&pins, raw.digest, &raw.bytes)?;
                (raw.digest, manifest)
            }
            Document::Index(entries) => {
                self.manifest_of(registry, &wanted, &entries, &pins).await?
            }
        };
        let image = wanted.at(manifest_digest);
        let config = self.config(registry, &image, &manifest, &pins).await?;
        let total = manifest.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        let mut before = 0;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            let told = |n_bytes: u64| (pull.told)(before + n_bytes, total);
            self.layer_from(registry, &image, layer, *diff_id, &pins, &told).await?;
            before += layer.size;
        }
        let layers: Vec<PathBuf> = config.diff_ids.iter().map(|id| self.layer(*id)).collect();
        let size = tokio::task::spawn_blocking(move || bytes_below(&layers)).await.unwrap_or(0);
        let record = {
            // A collection sees the pins or the record, never neither.
            let _deciding = self.pins();
            let known = self.records()?;
            let last = known.iter().map(|record| record.sequence).max().unwrap_or(0);
            let mut access = pull.access.to_vec();
            let old = known.into_iter().find(|r| r.name == name && r.digest == raw.digest);
            if let Some(old) = old
                && !access.is_empty()
            {
                access.extend(old.access.into_iter().filter(|who| !pull.access.contains(who)));
            }
            let record = Record {
                name: name.clone(),
                digest: raw.digest,
                manifest: manifest_digest,
                pulled_ms: now_ms(),
                sequence: last + 1,
                size,
                access,
            };
            self.write_record(&record)?;
            record
        };
        self.touch(&record);
        self.assemble(name, &record)
            .ok_or_else(|| malformed(&image, "the image", "it vanished while it was pulled"))
    }

    fn write_pinned(
        &self,
        pins: &Pins<'_>,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        pins.add(self.blob(digest));
        self.write_blob(digest, bytes)
    }

    async fn manifest_of(
        &self,
        registry: &Registry,
        image: &Reference,
        entries: &[Descriptor],
        pins: &Pins<'_>,
    ) -> Result<(Digest, Manifest), ImageError> {
        let platforms: Vec<Platform> =
            entries.iter().map(|entry| entry.platform.clone().unwrap_or_default()).collect();
        let Some(n) = self.platform.choose(&platforms) else {
            let known = |platform: &Platform| !matches!(platform.os.as_str(), "" | "unknown");
            return Err(ImageError::NoPlatform {
                image: image.to_string(),
                wanted: self.platform.clone(),
                offered: platforms.into_iter().filter(known).collect(),
            });
        };
        let image = image.at(entries[n].digest);
        let raw = registry.manifest(&image).await?;
        match parse(&image, &raw.bytes)? {
            Document::Manifest(manifest) => {
                self.write_pinned(pins, raw.digest, &raw.bytes)?;
                Ok((raw.digest, manifest))
            }
            Document::Index(_) => Err(malformed(&image, "the index", "it holds another index")),
        }
    }

    async fn config(
        &self,
        registry: &Registry,
        image: &Reference,
        manifest: &Manifest,
        pins: &Pins<'_>,
    ) -> Result<ImageConfig, ImageError> {
        if manifest.module().is_some() {
            return Err(ImageError::WrongKind {
                image: image.to_string(),
                found: "a WebAssembly module",
                wanted: "an OCI image",
            });
        }
        let digest = manifest.config.digest;
        let what = "the configuration";
        let bytes = registry.blob_bytes(image, digest, CONFIG_BYTES_MAX, what).await?;
        let config = ImageConfig::parse(&bytes).map_err(|why| malformed(image, what, why))?;
        if self.platform.choose(std::slice::from_ref(&config.platform)).is_none() {
            return Err(ImageError::NoPlatform {
                image: image.to_string(),
                wanted: self.platform.clone(),
                offered: vec![config.platform],
            });
        }
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(malformed(
                image,
                what,
                format!(
                    "it names {} layers and the manifest {}",
                    config.diff_ids.len(),
                    manifest.layers.len()
                ),
            ));
        }
        self.write_pinned(pins, digest, &bytes)?;
        Ok(config)
    }

    /// Fetches and unpacks a layer, unless it is there.
    async fn layer_from(
        &self,
        registry: &Registry,
        image: &Reference,
        layer: &Descriptor,
        diff_id: Digest,
        pins: &Pins<'_>,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let place = self.layer(diff_id);
        pins.add(place.clone());
        if place.is_dir() {
            return Ok(());
        }
        // By both: the same bytes, or the same content in another compression.
        let locks = [self.layer_lock(layer.digest), self.layer_lock(diff_id)];
        let _download = locks[0].lock().await;
        let _layer = if layer.digest == diff_id { None } else { Some(locks[1].lock().await) };
        if place.is_dir() {
            return Ok(());
        }
        pins.add(self.part(layer.digest));
        let blob = self.download(registry, image, layer, told).await?;
        let folder = self.tmp(&format!("{}.layer", diff_id.hex()));
        let _one = self.unpacking.lock().await;
        remove(&folder).map_err(ImageError::disk("remove", &folder))?;
        let unpacked = self.unpack(image, layer, &blob, &folder, diff_id).await;
        // The compressed form is of no use any more, or of none at all.
        remove(&blob).map_err(ImageError::disk("remove", &blob))?;
        if let Err(error) = unpacked {
            let _ = remove(&folder);
            return Err(error);
        }
        let finish = || -> std::io::Result<()> {
            let opened = fs::File::open(&folder)?;
            rustix::fs::syncfs(&opened)?;
            fs::rename(&folder, &place)?;
            sync_parent(&place)
        };
        finish().map_err(ImageError::disk("write", &place))
    }

    /// Downloads a blob into `tmp`, going on where an earlier attempt stopped.
    async fn download(
        &self,
        registry: &Registry,
        image: &Reference,
        layer: &Descriptor,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PathBuf, ImageError> {
        if layer.size > self.limits.layer_bytes {
            return Err(self.too_large(image, layer));
        }
        let path = self.part(layer.digest);
        let mut verifier = verify_part(&path).map_err(ImageError::disk("read", &path))?;
        let mut fruitless = 0;
        while verifier.length < layer.size {
            let before = verifier.length;
            match self.download_on(registry, image, layer, &path, &mut verifier, told).await {
                // The answer ended early: a proxy's timeout looks like this.
                Ok(()) if verifier.length < layer.size => {}
                Ok(()) => break,
                Err(error @ ImageError::Unreachable { .. }) => {
                    if verifier.length == before {
                        fruitless += 1;
                    }
                    if fruitless > FRUITLESS_ATTEMPTS_MAX {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            if verifier.length > before {
                fruitless = 0;
                continue;
            }
            if fruitless == 0 || fruitless > FRUITLESS_ATTEMPTS_MAX {
                let why = "it sends less than the manifest says".to_owned();
                let registry = image.registry.clone();
                return Err(ImageError::Unreachable { image: image.to_string(), registry, why });
            }
            tokio::time::sleep(RETRY_DELAY * 2_u32.pow(fruitless - 1)).await;
        }
        let actual = verifier.hasher.finish();
        if actual != layer.digest {
            remove(&path).map_err(ImageError::disk("remove", &path))?;
            return Err(ImageError::DigestMismatch {
                image: image.to_string(),
                what: what(layer),
                expected: layer.digest,
                actual,
            });
        }
        Ok(path)
    }

    async fn download_on(
        &self,
        registry: &Registry,
        image: &Reference,
        layer: &Descriptor,
        path: &Path,
        verifier: &mut Verifier,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let (start, mut stream) = registry.blob(image, layer.digest, verifier.length, None).await?;
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(ImageError::disk("open", path))?;
        if start != verifier.length {
            // A registry without ranges: all of it again.
            file.set_len(0).map_err(ImageError::disk("write", path))?;
            *verifier = Verifier::default();
        }
        while let Some(bytes) = stream.next().await? {
            if verifier.length + bytes.len() as u64 > layer.size {
                let _ = remove(path);
                return Err(malformed(image, &what(layer), "it is longer than the manifest says"));
            }
            file.write_all(&bytes).map_err(ImageError::disk("write", path))?;
            verifier.update(&bytes);
            told(verifier.length);
        }
        Ok(())
    }

    fn layer_lock(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(digest).or_default())
    }

    fn part(&self, digest: Digest) -> PathBuf {
        self.tmp(&format!("{}.part", digest.hex()))
    }

    fn too_large(&self, image: &Reference, layer: &Descriptor) -> ImageError {
        ImageError::TooLarge {
            image: image.to_string(),
            what: what(layer),
            limit: self.limits.layer_bytes,
            unit: "bytes",
        }
    }

    async fn unpack(
        &self,
        image: &Reference,
        layer: &Descriptor,
        blob: &Path,
        folder: &Path,
        diff_id: Digest,
    ) -> Result<(), ImageError> {
        let limits = self.limits;
        match &self.unpacker {
            Unpacker::InProcess => {
                let (blob, folder) = (blob.to_owned(), folder.to_owned());
                let task =
                    tokio::task::spawn_blocking(move || unpack(&blob, &folder, diff_id, &limits));
                let result =
                    task.await.map_err(|_| malformed(image, &what(layer), "unpacking ended"))?;
                result.map_err(|error| unpack_error(image, layer, error))
            }
            Unpacker::Child { program, args } => {
                let output = tokio::process::Command::new(program)
                    .args(args)
                    .arg(blob)
                    .arg(folder)
                    .arg(diff_id.to_string())
                    .arg(limits.unpacked_bytes.to_string())
                    .arg(limits.entries.to_string())
                    .env_clear()
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .kill_on_drop(true)
                    .output()
                    .await
                    .map_err(ImageError::disk("start", program))?;
                if output.status.success() {
                    return Ok(());
                }
                let message = &output.stderr[..output.stderr.len().min(MESSAGE_BYTES_MAX)];
                let message = String::from_utf8_lossy(message);
                let why = if message.is_empty() {
                    format!("unpacking it ended with {}", output.status)
                } else {
                    message.into_owned()
                };
                Err(malformed(image, &what(layer), why))
            }
        }
    }
}

fn what(layer: &Descriptor) -> String {
    format!("layer {}", layer.digest)
}

fn unpack_error(image: &Reference, layer: &Descriptor, error: UnpackError) -> ImageError {
    let (image_name, what) = (image.to_string(), what(layer));
    match error {
        UnpackError::TooLarge { limit, unit } => {
            ImageError::TooLarge { image: image_name, what, limit, unit }
        }
        UnpackError::DigestMismatch { expected, actual } => {
            ImageError::DigestMismatch { image: image_name, what, expected, actual }
        }
        UnpackError::Disk { path, source } => {
            ImageError::Disk { operation: "unpack", path, source }
        }
        error => malformed(image, &what, error.to_string()),
    }
}

/// What an earlier attempt has written.
fn verify_part(path: &Path) -> std::io::Result<Verifier> {
    let mut verifier = Verifier::default();
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(verifier),
        file => file?,
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(verifier),
            n => verifier.update(&buffer[..n]),
        }
    }
}

/// What layers hold, in bytes. Best effort.
fn bytes_below(layers: &[PathBuf]) -> u64 {
    fn below(folder: &Path, depth: u32) -> u64 {
        let Ok(entries) = fs::read_dir(folder) else { return 0 };
        entries
            .flatten()
            .map(|entry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() && depth > 0 => below(&entry.path(), depth - 1),
                Ok(metadata) => metadata.len(),
                Err(_) => 0,
            })
            .sum()
    }
    layers.iter().map(|layer| below(layer, 32)).sum()
}
