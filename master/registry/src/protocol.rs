//! The distribution protocol: a request becomes an operation on the files, and
//! its result an answer.
//!
//! | path below `/v2/` | methods |
//! |---|---|
//! | (nothing) | GET |
//! | `_catalog?n=&last=` | GET |
//! | `NAME/tags/list?n=&last=` | GET |
//! | `NAME/manifests/TAG-or-DIGEST` | GET, HEAD, PUT, DELETE |
//! | `NAME/blobs/DIGEST` | GET (with Range), HEAD, DELETE |
//! | `NAME/blobs/uploads/[?digest=][?mount=&from=]` | POST |
//! | `NAME/blobs/uploads/ID[?digest=]` | GET, PATCH, PUT, DELETE |
//! | `NAME/referrers/DIGEST` | GET |

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION, RANGE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use image::Digest;
use image::registry::MANIFEST_BYTES_MAX;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::{Code, Files, Name, RegistryError};

/// A body, in pieces.
pub type Body = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Most names of one page of a list.
const PAGE_MAX: usize = 1000;
/// Bytes of a piece of a blob.
const PIECE_BYTES: usize = 64 << 10;
/// How long a manifest may take to arrive.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

const DIGEST_HEADER: &str = "docker-content-digest";

/// Answers requests.
#[derive(Clone, Debug)]
pub struct Protocol {
    files: Arc<Files>,
}

type Answer = Result<Response<Body>, RegistryError>;

impl Protocol {
    /// Over these files.
    #[must_use]
    pub fn new(files: Arc<Files>) -> Self {
        Self { files }
    }

    /// Answers a request whose path begins with `/v2`.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let is_head = request.method() == Method::HEAD;
        let mut answer = match self.route(request).await {
            Ok(answer) => answer,
            Err(error) => failure(&error),
        };
        if is_head {
            *answer.body_mut() = empty();
        }
        answer
    }

    async fn route(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let query = query(head.uri.query().unwrap_or_default());
        let path = head.uri.path().strip_prefix("/v2").unwrap_or_default().trim_matches('/');
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        if path.is_empty() {
            return if reads {
                Ok(json_answer(&json!({})))
            } else {
                Err(RegistryError::unsupported())
            };
        }
        if path == "_catalog" && reads {
            return self.catalog(&query);
        }
        let parts: Vec<&str> = path.split('/').collect();
        let name =
            |n_last: usize| Name::parse(&parts[..parts.len().saturating_sub(n_last)].join("/"));
        match parts.as_slice() {
            [_, .., "tags", "list"] if reads => self.tags(&name(2)?, &query),
            [_, .., "manifests", reference] => {
                self.manifest(&name(2)?, reference, &head.method, &head.headers, body).await
            }
            [_, .., "blobs", "uploads"] if head.method == Method::POST => {
                self.begin(&name(2)?, &query, body).await
            }
            [_, .., "blobs", "uploads", id] => {
                self.upload(&name(3)?, id, &head.method, &head.headers, &query, body).await
            }
            [_, .., "blobs", digest] => {
                self.blob(&name(2)?, parse_digest(digest)?, &head.method, &head.headers).await
            }
            [_, .., "referrers", digest] if reads => {
                self.referrers(&name(2)?, parse_digest(digest)?, &query)
            }
            _ => Err(RegistryError::unsupported()),
        }
    }

    fn catalog(&self, query: &Query) -> Answer {
        let names = self.files.repositories()?;
        let names: Vec<&str> = names.iter().map(Name::as_str).collect();
        let (page, next) = page(&names, query)?;
        let mut answer = json_answer(&json!({"repositories": page}));
        add_link(&mut answer, "/v2/_catalog", next.as_deref());
        Ok(answer)
    }

    fn tags(&self, name: &Name, query: &Query) -> Answer {
        let tags = self.files.tags(name)?;
        let tags: Vec<&str> = tags.iter().map(crate::Tag::as_str).collect();
        let (page, next) = page(&tags, query)?;
        let mut answer = json_answer(&json!({"name": name.as_str(), "tags": page}));
        add_link(&mut answer, &format!("/v2/{name}/tags/list"), next.as_deref());
        Ok(answer)
    }

    fn referrers(&self, name: &Name, subject: Digest, query: &Query) -> Answer {
        let mut found = self.files.referrers(name, subject)?;
        let wanted = query.get("artifactType");
        if let Some(wanted) = wanted {
            found.retain(|entry| entry["artifactType"] == wanted);
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": found});
        let mut answer = json_answer(&index);
        set(&mut answer, CONTENT_TYPE, kind);
        if wanted.is_some() {
            answer
                .headers_mut()
                .insert("oci-filters-applied", http::HeaderValue::from_static("artifactType"));
        }
        Ok(answer)
    }

    async fn manifest(
        &self,
        name: &Name,
        reference: &str,
        method: &Method,
        headers: &HeaderMap,
        body: Body,
    ) -> Answer {
        match *method {
            Method::GET | Method::HEAD => {
                let (digest, kind, bytes) = self.files.manifest(name, reference)?;
                let mut answer = answer(StatusCode::OK);
                set(&mut answer, CONTENT_TYPE, &kind);
                set(&mut answer, CONTENT_LENGTH, &bytes.len().to_string());
                set(&mut answer, http::HeaderName::from_static(DIGEST_HEADER), &digest.to_string());
                *answer.body_mut() = whole(bytes);
                Ok(answer)
            }
            Method::PUT => {
                let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
                let bytes = tokio::time::timeout(MANIFEST_TIMEOUT, read_manifest(body)).await;
                let late = || {
                    RegistryError::new(Code::SizeInvalid, "the manifest did not arrive within 60 s")
                };
                let bytes = bytes.map_err(|_| late())??;
                let (digest, subject) =
                    self.files.put_manifest(name, reference, kind, &bytes).await?;
                let mut answer = answer(StatusCode::CREATED);
                set(&mut answer, LOCATION, &format!("/v2/{name}/manifests/{digest}"));
                set(&mut answer, http::HeaderName::from_static(DIGEST_HEADER), &digest.to_string());
                if let Some(subject) = subject {
                    let header = http::HeaderName::from_static("oci-subject");
                    set(&mut answer, header, &subject.to_string());
                }
                Ok(answer)
            }
            Method::DELETE => {
                self.files.delete_manifest(name, reference).await?;
                Ok(answer(StatusCode::ACCEPTED))
            }
            _ => Err(RegistryError::unsupported()),
        }
    }

    async fn blob(
        &self,
        name: &Name,
        digest: Digest,
        method: &Method,
        headers: &HeaderMap,
    ) -> Answer {
        if method == Method::DELETE {
            self.files.delete_blob(name, digest).await?;
            return Ok(answer(StatusCode::ACCEPTED));
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(RegistryError::unsupported());
        }
        let blob = self.files.open_blob(name, digest)?;
        let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
        let mut answer = answer(StatusCode::OK);
        let (start, length) = match range.map(|range| read_range(range, blob.size)) {
            None | Some(Wanted::All) => (0, blob.size),
            Some(Wanted::Part(start, length)) => {
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                let range = format!("bytes {start}-{}/{}", start + length - 1, blob.size);
                set(&mut answer, CONTENT_RANGE, &range);
                (start, length)
            }
            Some(Wanted::Nothing) => {
                *answer.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                set(&mut answer, CONTENT_RANGE, &format!("bytes */{}", blob.size));
                set(&mut answer, CONTENT_LENGTH, "0");
                return Ok(answer);
            }
        };
        set(&mut answer, CONTENT_TYPE, "application/octet-stream");
        set(&mut answer, CONTENT_LENGTH, &length.to_string());
        set(&mut answer, ACCEPT_RANGES, "bytes");
        set(&mut answer, http::HeaderName::from_static(DIGEST_HEADER), &digest.to_string());
        if method == Method::GET {
            *answer.body_mut() = pieces(blob.file, start, length).await?;
        }
        Ok(answer)
    }

    async fn begin(&self, name: &Name, query: &Query, body: Body) -> Answer {
        if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
            let digest = parse_digest(digest)?;
            if self.files.mount(&Name::parse(from)?, name, digest).await? {
                return Ok(created(name, digest));
            }
        }
        let id = self.files.begin_upload(name)?;
        if let Some(digest) = query.get("digest") {
            // All of it in this request.
            let digest = parse_digest(digest)?;
            self.files.append(name, &id, Some(0), body).await?;
            self.files.finish_upload(name, &id, digest).await?;
            return Ok(created(name, digest));
        }
        Ok(going_on(name, &id, 0, StatusCode::ACCEPTED))
    }

    async fn upload(
        &self,
        name: &Name,
        id: &str,
        method: &Method,
        headers: &HeaderMap,
        query: &Query,
        body: Body,
    ) -> Answer {
        match *method {
            Method::GET => {
                let size = self.files.upload_size(name, id)?;
                Ok(going_on(name, id, size, StatusCode::NO_CONTENT))
            }
            Method::PATCH => {
                let start = chunk_start(headers)?;
                match self.files.append(name, id, start, body).await {
                    Ok(size) => Ok(going_on(name, id, size, StatusCode::ACCEPTED)),
                    Err(error) if error.code == Code::BlobUploadInvalid => {
                        // The client is told where it is, as after a cut.
                        let size = self.files.upload_size(name, id)?;
                        let mut answer = failure(&error);
                        add_progress(&mut answer, name, id, size);
                        Ok(answer)
                    }
                    Err(error) => Err(error),
                }
            }
            Method::PUT => {
                let digest = query.get("digest").ok_or_else(|| RegistryError::bad_digest(""))?;
                let digest = parse_digest(digest)?;
                let start = chunk_start(headers)?;
                let size = self.files.append(name, id, start, body).await;
                match size {
                    Ok(_) => self.files.finish_upload(name, id, digest).await?,
                    Err(error) => return Err(error),
                }
                Ok(created(name, digest))
            }
            Method::DELETE => {
                self.files.cancel_upload(name, id)?;
                Ok(answer(StatusCode::NO_CONTENT))
            }
            _ => Err(RegistryError::unsupported()),
        }
    }
}

/// The answer to something that is refused.
#[must_use]
pub fn failure(error: &RegistryError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = answer(status);
    let body = Bytes::from(error.body());
    set(&mut answer, CONTENT_TYPE, "application/json");
    set(&mut answer, CONTENT_LENGTH, &body.len().to_string());
    *answer.body_mut() = whole(body);
    answer
}

fn answer(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(empty());
    *answer.status_mut() = status;
    let version = http::HeaderName::from_static("docker-distribution-api-version");
    set(&mut answer, version, "registry/2.0");
    answer
}

fn json_answer(value: &serde_json::Value) -> Response<Body> {
    let mut answer = answer(StatusCode::OK);
    let body = Bytes::from(value.to_string());
    set(&mut answer, CONTENT_TYPE, "application/json");
    set(&mut answer, CONTENT_LENGTH, &body.len().to_string());
    *answer.body_mut() = whole(body);
    answer
}

fn created(name: &Name, digest: Digest) -> Response<Body> {
    let mut answer = answer(StatusCode::CREATED);
    set(&mut answer, LOCATION, &format!("/v2/{name}/blobs/{digest}"));
    set(&mut answer, http::HeaderName::from_static(DIGEST_HEADER), &digest.to_string());
    answer
}

fn going_on(name: &Name, id: &str, size: u64, status: StatusCode) -> Response<Body> {
    let mut answer = answer(status);
    add_progress(&mut answer, name, id, size);
    answer
}

fn add_progress(answer: &mut Response<Body>, name: &Name, id: &str, size: u64) {
    set(answer, LOCATION, &format!("/v2/{name}/blobs/uploads/{id}"));
    set(answer, RANGE, &format!("0-{}", size.saturating_sub(1)));
    set(answer, http::HeaderName::from_static("docker-upload-uuid"), id);
}

fn add_link(answer: &mut Response<Body>, path: &str, next: Option<&str>) {
    if let Some(next) = next {
        set(answer, LINK, &format!("<{path}?{next}>; rel=\"next\""));
    }
}

/// A value that cannot be a header is left out: nothing of ours is such a one.
fn set(answer: &mut Response<Body>, name: http::HeaderName, value: &str) {
    if let Ok(value) = http::HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

fn empty() -> Body {
    Box::pin(futures::stream::empty())
}

fn whole(bytes: Bytes) -> Body {
    Box::pin(futures::stream::once(async { Ok(bytes) }))
}

/// A part of a file, read while it is sent.
async fn pieces(file: std::fs::File, start: u64, length: u64) -> io::Result<Body> {
    let mut file = tokio::fs::File::from_std(file);
    file.seek(io::SeekFrom::Start(start)).await?;
    Ok(Box::pin(futures::stream::unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        match file.read(&mut piece).await {
            Ok(0) => Some((Err(io::ErrorKind::UnexpectedEof.into()), (file, 0))),
            Ok(n) => {
                piece.truncate(n);
                Some((Ok(Bytes::from(piece)), (file, left - n as u64)))
            }
            Err(error) => Some((Err(error), (file, 0))),
        }
    })))
}

async fn read_manifest(mut body: Body) -> Result<Bytes, RegistryError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let broken =
            |error| RegistryError::new(Code::SizeInvalid, format!("the body broke off: {error}"));
        bytes.extend_from_slice(&piece.map_err(broken)?);
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            let message = "a manifest has at most 4 MiB";
            return Err(RegistryError::new(Code::ManifestInvalid, message));
        }
    }
    Ok(bytes.into())
}

fn parse_digest(text: &str) -> Result<Digest, RegistryError> {
    text.parse().map_err(|_| RegistryError::bad_digest(text))
}

/// Where a chunk begins: `Content-Range: START-END`, with or without `bytes `.
fn chunk_start(headers: &HeaderMap) -> Result<Option<u64>, RegistryError> {
    let Some(range) = headers.get(CONTENT_RANGE) else { return Ok(None) };
    let bad = || RegistryError::new(Code::BlobUploadInvalid, "Content-Range is not START-END");
    let text = range.to_str().map_err(|_| bad())?.trim().trim_start_matches("bytes").trim();
    let text = text.split('/').next().unwrap_or_default();
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end): (u64, u64) =
        (start.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?);
    if end < start {
        return Err(bad());
    }
    Ok(Some(start))
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From a byte on, so many.
    Part(u64, u64),
    Nothing,
}

/// Reads `bytes=…`; several ranges, and what makes no sense, count as none.
fn read_range(text: &str, size: u64) -> Wanted {
    let Some(range) = text.trim().strip_prefix("bytes=") else { return Wanted::All };
    let Some((start, end)) = range.split_once('-').filter(|_| !range.contains(',')) else {
        return Wanted::All;
    };
    let (start, end) = (start.trim(), end.trim());
    if start.is_empty() {
        return match end.parse::<u64>() {
            Ok(0) => Wanted::Nothing,
            Ok(_) if size == 0 => Wanted::Nothing,
            Ok(n) => Wanted::Part(size.saturating_sub(n), n.min(size)),
            Err(_) => Wanted::All,
        };
    }
    let Ok(start) = start.parse::<u64>() else { return Wanted::All };
    let end = match end {
        "" => u64::MAX,
        end => match end.parse::<u64>() {
            Ok(end) if end >= start => end,
            _ => return Wanted::All,
        },
    };
    if start >= size {
        return Wanted::Nothing;
    }
    Wanted::Part(start, end.min(size - 1) - start + 1)
}

/// The parameters of a query.
struct Query(Vec<(String, String)>);

impl Query {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }
}

fn query(text: &str) -> Query {
    let pairs = text.split('&').take(32).filter_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        Some((key.to_owned(), unescape(value)))
    });
    Query(pairs.collect())
}

/// Undoes percent signs; what is malformed stays, and is no digest then.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One page of a sorted list, and the query of the next.
fn page<'a>(
    names: &[&'a str],
    query: &Query,
) -> Result<(Vec<&'a str>, Option<String>), RegistryError> {
    let bad = |_| RegistryError::new(Code::Unsupported, "n is not a number");
    let n: usize = query.get("n").map_or(Ok(PAGE_MAX), str::parse).map_err(bad)?;
    let n = n.min(PAGE_MAX);
    let last = query.get("last").unwrap_or_default();
    let rest: Vec<&str> =
        names.iter().copied().filter(|name| last.is_empty() || *name > last).collect();
    let page: Vec<&str> = rest.iter().copied().take(n).collect();
    let next = match page.last() {
        Some(last) if page.len() < rest.len() => Some(format!("n={n}&last={last}")),
        _ => None,
    };
    Ok((page, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_blob() {
        for (text, expected) in [
            ("bytes=0-", Wanted::Part(0, 100)),
            ("bytes=10-19", Wanted::Part(10, 10)),
            ("bytes=10-1000", Wanted::Part(10, 90)),
            ("bytes=-5", Wanted::Part(95, 5)),
            ("bytes=-500", Wanted::Part(0, 100)),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=5-4", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes=x-", Wanted::All),
        ] {
            assert_eq!(read_range(text, 100), expected, "{text}");
        }
        assert_eq!(read_range("bytes=0-", 0), Wanted::Nothing);
    }

    #[test]
    fn lists_come_in_pages() {
        let names = ["a", "b", "c"];
        let check = |text: &str| page(&names, &query(text)).unwrap();
        assert_eq!(check(""), (vec!["a", "b", "c"], None));
        assert_eq!(check("n=2"), (vec!["a", "b"], Some("n=2&last=b".into())));
        assert_eq!(check("n=2&last=b"), (vec!["c"], None));
        assert_eq!(check("n=0"), (vec![], None));
        page(&names, &query("n=x")).unwrap_err();
        assert_eq!(query("digest=sha256%3Aab&x=%zz").get("digest"), Some("sha256:ab"));
    }
}
