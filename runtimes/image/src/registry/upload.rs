//! Pushing: blobs in chunks that go on after a cut, then manifests.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::{Endpoint, MANIFEST_BYTES_MAX, Registry, Subject, check};
use crate::{Digest, ImageError, Reference};

/// Bytes of a chunk: what a cut loses at most, and what is held in memory.
const CHUNK_BYTES: u64 = 4 << 20;
/// How often a chunk is sent again before the push fails.
const TRIES: u32 = 5;
/// Wait before the first of those; each next one twice as long.
const RETRY_DELAY: Duration = Duration::from_millis(300);
/// Longest message of a registry that is shown, in bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Where a blob's bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, from a byte on.
    File {
        /// The file.
        path: PathBuf,
        /// Where the blob begins in it.
        offset: u64,
        /// Its length.
        size: u64,
    },
}

impl Content {
    /// Number of bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// Some of the bytes.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter.
    pub fn read(&self, from: u64, length: u64) -> std::io::Result<Bytes> {
        let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let end = from.checked_add(length).filter(|end| *end <= self.size()).ok_or_else(short)?;
        match self {
            Self::Bytes(bytes) => {
                let at = |n| usize::try_from(n).map_err(|_| short());
                Ok(bytes.slice(at(from)?..at(end)?))
            }
            Self::File { path, offset, .. } => {
                let mut file = std::fs::File::open(path)?;
                file.seek(SeekFrom::Start(offset + from))?;
                let mut bytes = Vec::new();
                file.take(length).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < length {
                    return Err(short());
                }
                Ok(bytes.into())
            }
        }
    }
}

/// What became of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// The registry had it.
    Present,
    /// It has it now.
    Sent,
}

impl Registry {
    /// Uploads a blob, unless the registry has it.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn push_blob(
        &self,
        image: &Reference,
        digest: Digest,
        content: &Content,
    ) -> Result<Upload, ImageError> {
        if self.has_blob(image, digest).await? {
            return Ok(Upload::Present);
        }
        let (subject, at) = (Subject { image }, self.endpoint(image));
        let url = at.url(image, "blobs/uploads/");
        let begun = self.send(subject, &at, PUSH, |client| client.post(&url)).await?;
        let mut place = location(subject, pushed(subject, &at, begun).await?)?;
        let (mut sent, mut tries) = (0, 0);
        while sent < content.size() {
            let length = CHUNK_BYTES.min(content.size() - sent);
            let chunk = read(content, sent, length).await?;
            match self.send_chunk(subject, &at, &place, sent, chunk).await {
                Ok(next) => {
                    (place, tries) = (next, 0);
                    sent += length;
                }
                Err(error) if error.is_transient() && tries < TRIES => {
                    tokio::time::sleep(RETRY_DELAY * 2_u32.pow(tries)).await;
                    tries += 1;
                    // How far it came is the registry's to say.
                    if let Ok((next, n_have)) = self.upload_status(subject, &at, &place).await {
                        (place, sent) = (next, n_have.min(content.size()));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let mut url = place;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let response = self.send(subject, &at, PUSH, |client| {
            client
                .request(Method::PUT, url.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(Bytes::new())
        });
        pushed(subject, &at, response.await?).await?;
        Ok(Upload::Sent)
    }

    async fn send_chunk(
        &self,
        subject: Subject<'_>,
        at: &Endpoint,
        place: &Url,
        start: u64,
        chunk: Bytes,
    ) -> Result<Url, ImageError> {
        let range = format!("{start}-{}", start + chunk.len() as u64 - 1);
        let response = self.send(subject, at, PUSH, |client| {
            client
                .request(Method::PATCH, place.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_RANGE, &range)
                .body(chunk.clone())
        });
        let response = response.await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // It has more or less than we think.
            return Err(subject.unreachable(&at.name, "it lost a part of the upload"));
        }
        location(subject, pushed(subject, at, response).await?)
    }

    /// Where an upload goes on, and how many bytes have arrived.
    async fn upload_status(
        &self,
        subject: Subject<'_>,
        at: &Endpoint,
        place: &Url,
    ) -> Result<(Url, u64), ImageError> {
        let response = self.send(subject, at, PUSH, |client| client.get(place.clone())).await?;
        let response = check(subject, at, response)?;
        let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
        // `0-0` is both "nothing" and "one byte": sending that one again is refused
        // where it was there, so nothing is lost.
        let last = range.and_then(|range| range.rsplit_once('-')).and_then(|(_, n)| n.parse().ok());
        let n_have = match last {
            None | Some(0) => 0,
            Some(last) => u64::saturating_add(last, 1),
        };
        let next = location(subject, response).unwrap_or_else(|_| place.clone());
        Ok((next, n_have))
    }

    /// Whether the registry has a blob already.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn has_blob(&self, image: &Reference, digest: Digest) -> Result<bool, ImageError> {
        let (subject, at) = (Subject { image }, self.endpoint(image));
        let url = at.url(image, &format!("blobs/{digest}"));
        let response = self.send(subject, &at, PUSH, |client| client.head(&url)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => check(subject, &at, response).map(|_| true),
        }
    }

    /// Uploads a manifest or index under a tag or its digest.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn push_manifest(
        &self,
        image: &Reference,
        name: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), ImageError> {
        let (subject, at) = (Subject { image }, self.endpoint(image));
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(subject.malformed("the manifest", "it is larger than 4 MiB"));
        }
        let url = at.url(image, &format!("manifests/{name}"));
        let response = self.send(subject, &at, PUSH, |client| {
            client.put(&url).header(CONTENT_TYPE, media_type).body(bytes.clone())
        });
        pushed(subject, &at, response.await?).await.map(drop)
    }
}

/// What a token for pushing allows.
const PUSH: &str = "pull,push";

async fn read(content: &Content, from: u64, length: u64) -> Result<Bytes, ImageError> {
    let path = match content {
        Content::Bytes(_) => PathBuf::new(),
        Content::File { path, .. } => path.clone(),
    };
    let content = content.clone();
    let read = tokio::task::spawn_blocking(move || content.read(from, length)).await;
    read.expect("reading does not panic").map_err(ImageError::disk("read", path))
}

fn location(subject: Subject<'_>, response: Response) -> Result<Url, ImageError> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    location
        .and_then(|location| response.url().join(location).ok())
        .ok_or_else(|| subject.malformed("the upload", "the registry names no location"))
}

/// Turns a refusal into an error that says why, in the registry's words.
async fn pushed(
    subject: Subject<'_>,
    at: &Endpoint,
    mut response: Response,
) -> Result<Response, ImageError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::UNAUTHORIZED || status.is_server_error() {
        return check(subject, at, response);
    }
    let mut body = Vec::new();
    while body.len() < MESSAGE_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let first = &json["errors"][0];
    let said = first["message"].as_str().filter(|text| !text.is_empty());
    let said: String =
        said.or_else(|| first["code"].as_str()).unwrap_or_default().chars().take(500).collect();
    if said.is_empty() {
        return check(subject, at, response);
    }
    Err(ImageError::Refused {
        image: subject.image.to_string(),
        registry: at.name.clone(),
        why: said,
    })
}
