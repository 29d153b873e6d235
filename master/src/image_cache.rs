//! Images of other registries, kept for nodes that cannot reach them.
//!
//! ```text
//! image-cache/blobs/<hex>        manifests and blobs, whole and verified
//! image-cache/parts/<hex>        a blob on its way; goes on where it stopped
//! image-cache/names/<hash>.json  what a name stood for last, and who may have it
//! ```
//!
//! A blob is sent to a node while it still arrives. One fetch serves all nodes
//! that ask for it meanwhile. Nothing here is flushed: a damaged file is found by
//! its digest when it is next fetched by a node, which then asks the registry.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use image::registry::{BoxFuture, Pieces};
use image::{Digest, ImageError, Reference, Registry};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::blobs::{FilePieces, by_age};
use crate::images::Access;

/// How often a fetch goes on after it broke off without a byte of progress.
const FRUITLESS_MAX: u32 = 3;
/// Wait before the first of those; each next one twice as long.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Largest blob that is kept.
const BLOB_BYTES_MAX: u64 = 4 << 30;

/// How far a fetch is.
#[derive(Clone, Debug, Default)]
struct Progress {
    length: u64,
    done: Option<Result<(), String>>,
}

/// The cache.
pub(crate) struct ImageCache {
    root: PathBuf,
    bytes_max: u64,
    fetches: Mutex<HashMap<Digest, watch::Receiver<Progress>>>,
    /// When blobs were last used, since the start.
    uses: Mutex<HashMap<PathBuf, tokio::time::Instant>>,
}

impl ImageCache {
    pub(crate) fn open(root: PathBuf, bytes_max: u64) -> io::Result<Arc<Self>> {
        for name in ["blobs", "parts", "names"] {
            fs::create_dir_all(root.join(name))?;
        }
        let (fetches, uses) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { root, bytes_max, fetches, uses }))
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    fn touch(&self, path: &Path) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.insert(path.to_owned(), tokio::time::Instant::now());
    }

    /// A manifest or index. The registry is asked for a name without digest, and
    /// where somebody asks who has not shown yet that they may have it; what is
    /// kept serves while the registry cannot be reached.
    pub(crate) async fn manifest(
        &self,
        registry: &Registry,
        image: &Reference,
        access: &Access,
    ) -> Result<Bytes, ImageError> {
        let named = self.root.join("names").join(Digest::of(image.to_string().as_bytes()).hex());
        let known = read_name(&named);
        let shown = shown(registry, image, access);
        let may = known
            .as_ref()
            .is_some_and(|(_, who)| who.is_empty() || who.iter().any(|one| shown.contains(one)));
        let kept = || -> Option<Bytes> {
            let (digest, _) = known.as_ref().filter(|_| may)?;
            let path = self.blob_path(*digest);
            let bytes = fs::read(&path).ok().filter(|bytes| Digest::of(bytes) == *digest)?;
            self.touch(&path);
            Some(bytes.into())
        };
        if image.digest.is_some()
            && let Some(bytes) = kept()
        {
            return Ok(bytes);
        }
        match registry.manifest_bytes(image).await {
            Ok((digest, bytes)) => {
                let mut who = shown;
                if let Some((_, others)) =
                    known.as_ref().filter(|(old, who)| *old == digest && !who.is_empty())
                {
                    who.extend(others.iter().cloned());
                    who.sort();
                    who.dedup();
                }
                let name = json!({"digest": digest, "access": who}).to_string();
                let path = self.blob_path(digest);
                let written =
                    replace(&path, &bytes).and_then(|()| replace(&named, name.as_bytes()));
                if let Err(error) = written {
                    warn!(%error, "an image cannot be kept for nodes");
                }
                self.touch(&path);
                Ok(bytes)
            }
            Err(error) if error.is_transient() => kept().ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// A blob from a byte on, from the cache or, as it comes, from its registry.
    pub(crate) async fn blob(
        self: &Arc<Self>,
        registry: Registry,
        image: &Reference,
        digest: Digest,
        offset: u64,
    ) -> Result<Box<dyn Pieces>, ImageError> {
        let path = self.blob_path(digest);
        let disk = |source| ImageError::Disk { operation: "read", path: path.clone(), source };
        if let Ok(file) = File::open(&path) {
            self.touch(&path);
            return Ok(Box::new(FilePieces::open(file, offset).await.map_err(disk)?));
        }
        let progress = self.fetch(registry, image, digest).map_err(disk)?;
        let part = self.root.join("parts").join(digest.hex());
        // Renamed once it is whole; the open file stays the same.
        let file = File::open(&part).or_else(|_| File::open(&path)).map_err(disk)?;
        let mut coming = Coming { file: tokio::fs::File::from_std(file), at: offset, progress };
        coming.file.seek(io::SeekFrom::Start(offset)).await.map_err(disk)?;
        // The first piece tells whether there is anything at all.
        match coming.wait().await {
            Ok(()) => Ok(Box::new(coming)),
            Err(why) => Err(ImageError::Unreachable {
                image: image.to_string(),
                registry: image.registry.clone(),
                why,
            }),
        }
    }

    /// Joins the fetch of a blob, or begins it.
    fn fetch(
        self: &Arc<Self>,
        registry: Registry,
        image: &Reference,
        digest: Digest,
    ) -> io::Result<watch::Receiver<Progress>> {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetches.get(&digest) {
            return Ok(running.clone());
        }
        let part = self.root.join("parts").join(digest.hex());
        let file = OpenOptions::new().append(true).create(true).open(&part)?;
        let (sender, receiver) = watch::channel(Progress::default());
        fetches.insert(digest, receiver.clone());
        drop(fetches);
        let (cache, image) = (Arc::clone(self), image.clone());
        tokio::spawn(async move {
            let result = cache.run(&registry, &image, digest, file, &part, &sender).await;
            if let Err(why) = &result {
                warn!(%image, %digest, why, "a blob cannot be fetched for nodes");
            }
            sender.send_modify(|progress| progress.done = Some(result));
            cache.fetches.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        });
        Ok(receiver)
    }

    async fn run(
        &self,
        registry: &Registry,
        image: &Reference,
        digest: Digest,
        mut file: File,
        part: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), String> {
        let text = |error: io::Error| format!("the master's disk: {error}");
        let (mut hasher, mut length) = hash(part).map_err(text)?;
        progress.send_modify(|progress| progress.length = length);
        let mut fruitless = 0;
        'asking: loop {
            let before = length;
            let problem = match registry.blob_pieces(image, digest, length).await {
                Err(error) => error,
                Ok((start, mut stream)) => {
                    if start != length {
                        file.set_len(0).map_err(text)?;
                        (hasher, length) = (Context::new(&SHA256), 0);
                    }
                    loop {
                        match stream.next().await {
                            Ok(None) => break 'asking,
                            Ok(Some(piece)) => {
                                file.write_all(&piece).map_err(text)?;
                                hasher.update(&piece);
                                length += piece.len() as u64;
                                if length > BLOB_BYTES_MAX.min(self.bytes_max) {
                                    let _ = fs::remove_file(part);
                                    return Err("it is larger than the master's cache".to_owned());
                                }
                                progress.send_modify(|progress| progress.length = length);
                            }
                            Err(error) => break error,
                        }
                    }
                }
            };
            fruitless = if length > before { 0 } else { fruitless + 1 };
            if !problem.is_transient() || fruitless > FRUITLESS_MAX {
                return Err(problem.to_string());
            }
            tokio::time::sleep(RETRY_DELAY * 2_u32.pow(fruitless)).await;
        }
        let found = Digest::from_bytes(hasher.finish().as_ref().try_into().expect("32 bytes"));
        if found != digest {
            let _ = fs::remove_file(part);
            return Err(format!("it should be {digest} and is {found}"));
        }
        let path = self.blob_path(digest);
        fs::rename(part, &path).map_err(text)?;
        self.touch(&path);
        self.shrink();
        Ok(())
    }

    /// Brings the cache below its bound; what was used longest ago goes first.
    fn shrink(&self) {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut files = by_age(&self.root.join("blobs")).unwrap_or_default();
        let mut total: u64 = files.iter().map(|(_, size)| size).sum();
        // Stable: those not used since the start stay in the order they were written.
        files.sort_by_key(|(path, _)| uses.get(path).copied());
        let mut n_removed = 0;
        for (path, size) in files {
            if total <= self.bytes_max {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                self.uses.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
                total -= size;
                n_removed += 1;
            }
        }
        if n_removed > 0 {
            info!(n_removed, total, "cache of images shrunk");
        }
    }
}

/// Who asks, as it is kept: nobody in particular where no credential is shown.
fn shown(registry: &Registry, image: &Reference, access: &Access) -> Vec<String> {
    let mut who: Vec<String> =
        registry.credentials_for(image).iter().map(ToString::to_string).collect();
    if !who.is_empty() {
        let secrets = access.pull_secrets.iter();
        who.extend(secrets.map(|name| format!("{}/{name}", access.namespace)));
    }
    who
}

fn read_name(path: &Path) -> Option<(Digest, Vec<String>)> {
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let access = value["access"].as_array()?.iter();
    let access = access.filter_map(|one| one.as_str().map(str::to_owned)).collect();
    Some((value["digest"].as_str()?.parse().ok()?, access))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

/// What an earlier fetch has left.
fn hash(path: &Path) -> io::Result<(Context, u64)> {
    let (mut context, mut length) = (Context::new(&SHA256), 0);
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((context, length)),
            n => {
                context.update(&chunk[..n]);
                length += n as u64;
            }
        }
    }
}

/// A file that still grows.
struct Coming {
    file: tokio::fs::File,
    at: u64,
    progress: watch::Receiver<Progress>,
}

impl Coming {
    /// Waits until there is something to read, or all has been.
    async fn wait(&mut self) -> Result<(), String> {
        let at = self.at;
        let there = |progress: &Progress| progress.length > at || progress.done.is_some();
        match self.progress.wait_for(there).await {
            Ok(progress) => match &progress.done {
                Some(Err(why)) if progress.length <= at => Err(why.clone()),
                _ => Ok(()),
            },
            Err(_) => Err("the master is stopping".to_owned()),
        }
    }
}

impl Pieces for Coming {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async {
            self.wait().await.map_err(io::Error::other)?;
            let mut piece = vec![0; 64 << 10];
            let n = self.file.read(&mut piece).await?;
            if n == 0 && !matches!(self.progress.borrow().done, Some(Ok(()))) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.at += n as u64;
            piece.truncate(n);
            Ok((n > 0).then(|| Bytes::from(piece)))
        })
    }
}
