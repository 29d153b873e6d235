//! Uploads: bytes that arrive in any number of requests, over any number of
//! connections, and across restarts of the master.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use image::Digest;
use ring::digest::{Context, SHA256};
use tokio::time::Instant;

use crate::files::{lock, names_in, random_id, unlink};
use crate::protocol::Body;
use crate::{Code, Files, Name, RegistryError};

/// Most uploads that are open at once.
const UPLOADS_MAX: usize = 512;
/// How long an upload may rest.
const LIFE: Duration = Duration::from_hours(24);
/// How long a client may be silent in the middle of a body.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How many bytes come between two looks at the disk's free space.
const ROOM_STEP: u64 = 16 << 20;

/// What memory knows of an upload; the file knows the rest.
pub(crate) struct Session {
    /// The digest so far, and of how many bytes.
    hasher: Option<(Context, u64)>,
    pub(crate) last: Instant,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("last", &self.last).finish_non_exhaustive()
    }
}

/// One request at a time writes to an upload.
struct Turn<'a> {
    files: &'a Files,
    id: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.files.in_use).remove(&self.id);
    }
}

impl Files {
    fn upload_path(&self, id: &str) -> PathBuf {
        self.root.join("uploads").join(id)
    }

    /// Begins an upload; returns its id.
    ///
    /// # Errors
    /// There is no room, or there are too many.
    pub(crate) fn begin_upload(&self, name: &Name) -> Result<String, RegistryError> {
        self.check_room(0)?;
        if lock(&self.uploads).len() >= UPLOADS_MAX {
            let message = "there are too many uploads at once: try again later";
            return Err(RegistryError::new(Code::TooManyRequests, message));
        }
        let id = random_id();
        let named = self.upload_path(&format!("{id}.name"));
        self.put(&named, name.as_str().as_bytes())?;
        self.used.fetch_add(name.as_str().len() as u64, Ordering::Relaxed);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.upload_path(&id))?;
        let hasher = Some((Context::new(&SHA256), 0));
        lock(&self.uploads).insert(id.clone(), Session { hasher, last: Instant::now() });
        Ok(id)
    }

    /// How many bytes of an upload have arrived.
    ///
    /// # Errors
    /// There is no such upload in the repository.
    pub(crate) fn upload_size(&self, name: &Name, id: &str) -> Result<u64, RegistryError> {
        let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let named = || fs::read_to_string(self.upload_path(&format!("{id}.name")));
        if !is_id || named().ok().as_deref() != Some(name.as_str()) {
            return Err(RegistryError::no_upload());
        }
        let file = fs::metadata(self.upload_path(id)).map_err(|_| RegistryError::no_upload())?;
        Ok(file.len())
    }

    fn turn(&self, id: &str) -> Result<Turn<'_>, RegistryError> {
        if !lock(&self.in_use).insert(id.to_owned()) {
            let message = "another request is writing to this upload";
            return Err(RegistryError::new(Code::BlobUploadInvalid, message));
        }
        Ok(Turn { files: self, id: id.to_owned() })
    }

    /// Appends a body, which has to begin at `start` where that is said. What has
    /// arrived stays, also where the body breaks off. Returns the size then.
    ///
    /// # Errors
    /// There is no such upload, it is at another place, or there is no room.
    pub(crate) async fn append(
        &self,
        name: &Name,
        id: &str,
        start: Option<u64>,
        mut body: Body,
    ) -> Result<u64, RegistryError> {
        let turn = self.turn(id)?;
        let mut size = self.upload_size(name, id)?;
        if start.is_some_and(|start| start != size) {
            let message = format!("the upload has {size} bytes, and the chunk begins elsewhere");
            return Err(RegistryError::new(Code::BlobUploadInvalid, message));
        }
        self.note_active(name);
        let known = lock(&self.uploads).get_mut(id).and_then(|session| session.hasher.take());
        let mut hasher = known.filter(|(_, n_bytes)| *n_bytes == size).map(|(hasher, _)| hasher);
        let mut file = OpenOptions::new().append(true).open(self.upload_path(id))?;
        let mut room_at = size;
        let result = loop {
            let piece = match tokio::time::timeout(SILENCE_MAX, body.next()).await {
                Ok(None) => break Ok(()),
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => {
                    let message = format!("the body broke off: {error}");
                    break Err(RegistryError::new(Code::SizeInvalid, message));
                }
                Err(_) => {
                    let message = "the body did not go on for 60 s";
                    break Err(RegistryError::new(Code::SizeInvalid, message));
                }
            };
            if size >= room_at || self.used_bytes() + piece.len() as u64 > self.config.quota_bytes {
                if let Err(error) = self.check_room(piece.len() as u64) {
                    break Err(error);
                }
                room_at = size + ROOM_STEP;
            }
            // Small writes into the page cache: not worth another thread.
            if let Err(error) = file.write_all(&piece) {
                break Err(error.into());
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&piece);
            }
            size += piece.len() as u64;
            self.used.fetch_add(piece.len() as u64, Ordering::Relaxed);
        };
        // What is acknowledged is on the disk.
        let synced = blocking(move || file.sync_all()).await;
        let hasher = hasher.map(|hasher| (hasher, size));
        let session = Session { hasher, last: Instant::now() };
        lock(&self.uploads).insert(id.to_owned(), session);
        drop(turn);
        result?;
        synced?;
        Ok(size)
    }

    /// Ends an upload: its content becomes a blob of the repository.
    ///
    /// # Errors
    /// The content is not what its digest says; the upload is gone then.
    pub(crate) async fn finish_upload(
        &self,
        name: &Name,
        id: &str,
        digest: Digest,
    ) -> Result<(), RegistryError> {
        let turn = self.turn(id)?;
        let size = self.upload_size(name, id)?;
        let path = self.upload_path(id);
        let known = lock(&self.uploads).get_mut(id).and_then(|session| session.hasher.take());
        let found = match known.filter(|(_, n_bytes)| *n_bytes == size) {
            Some((hasher, _)) => to_digest(hasher),
            None => {
                let path = path.clone();
                blocking(move || hash(&path)).await?
            }
        };
        if found != digest {
            drop(turn);
            self.cancel_upload(name, id)?;
            return Err(RegistryError::mismatch(digest, found));
        }
        let _relying = self.gate.read().await;
        self.note_active(name);
        self.touch(digest);
        self.take_blob(&path, digest)?;
        self.link_blob(name, digest)?;
        self.remove_name(id)?;
        lock(&self.uploads).remove(id);
        Ok(())
    }

    fn remove_name(&self, id: &str) -> io::Result<()> {
        let path = self.upload_path(&format!("{id}.name"));
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        if unlink(&path)? {
            self.used.fetch_sub(size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives an upload up.
    ///
    /// # Errors
    /// There is no such upload.
    pub(crate) fn cancel_upload(&self, name: &Name, id: &str) -> Result<(), RegistryError> {
        let _turn = self.turn(id)?;
        self.upload_size(name, id)?;
        self.drop_upload(id)?;
        Ok(())
    }

    fn drop_upload(&self, id: &str) -> io::Result<()> {
        let path = self.upload_path(id);
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        if unlink(&path)? {
            self.used.fetch_sub(size, Ordering::Relaxed);
        }
        self.remove_name(id)?;
        lock(&self.uploads).remove(id);
        Ok(())
    }

    /// Gives up uploads that have rested for a day. Those of an earlier master
    /// count from when they are first seen here.
    pub(crate) fn expire_uploads(&self) -> io::Result<usize> {
        let mut n_expired = 0;
        for file in names_in(&self.root.join("uploads"))? {
            let id = file.strip_suffix(".name").unwrap_or(&file);
            let expired = {
                let mut uploads = lock(&self.uploads);
                let new = || Session { hasher: None, last: Instant::now() };
                uploads.entry(id.to_owned()).or_insert_with(new).last.elapsed() > LIFE
            };
            if expired && let Ok(_turn) = self.turn(id) {
                self.drop_upload(id)?;
                n_expired += 1;
            }
        }
        Ok(n_expired)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic")
}

fn hash(path: &std::path::Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(to_digest(context)),
            n => context.update(&chunk[..n]),
        }
    }
}

fn to_digest(context: Context) -> Digest {
    let bytes: [u8; 32] = context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
    Digest::from_bytes(bytes)
}
