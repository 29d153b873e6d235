//! Answers: bodies, their headers, and compression.

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{Stream, StreamExt, stream};
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER, VARY, WARNING,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use crate::status::Status;

/// Why a body breaks off; the connection ends with it.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub struct BrokenOff(pub String);

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BrokenOff>;
/// An answer.
pub type Answer = Response<Body>;
/// Pieces of a body that is made while it is sent.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, BrokenOff>> + Send>>;

/// Bodies of at least this many bytes are compressed for those who take it, as
/// Kubernetes does.
const GZIP_BYTES_MIN: usize = 128 * 1024;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Longest text of one warning and of all warnings, as Kubernetes has it.
const WARNING_BYTES_MAX: usize = 4 * 1024;

/// A body that is there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed_unsync()
}

fn never(never: Infallible) -> BrokenOff {
    match never {}
}

fn streamed(pieces: Pieces) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// JSON that is there, with the line end that some clients compare.
#[must_use]
pub fn json_bytes(code: StatusCode, bytes: Bytes, gzip: bool) -> Answer {
    let mut line = Vec::with_capacity(bytes.len() + 1);
    line.extend_from_slice(&bytes);
    line.push(b'\n');
    if gzip && line.len() >= GZIP_BYTES_MIN {
        let mut answer = Response::new(full(compress(&line)));
        *answer.status_mut() = code;
        mark_gzip(&mut answer);
        return as_json(answer);
    }
    let mut answer = Response::new(full(line));
    *answer.status_mut() = code;
    as_json(answer)
}

/// JSON of a value.
///
/// # Panics
/// Never: a value always serialises.
#[must_use]
pub fn json(code: StatusCode, value: &Value) -> Answer {
    let bytes = serde_json::to_vec(value).expect("a Value always serialises");
    json_bytes(code, Bytes::from(bytes), false)
}

/// JSON that is made while it is sent; compressed where the client takes that
/// and it will be long.
#[must_use]
pub fn json_pieces(pieces: Pieces, gzip: bool) -> Answer {
    let mut answer = if gzip {
        let mut answer = Response::new(streamed(compress_pieces(pieces)));
        mark_gzip(&mut answer);
        answer
    } else {
        Response::new(streamed(pieces))
    };
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    as_json(answer)
}

/// Text that is made while it is sent.
#[must_use]
pub fn text_pieces(pieces: Pieces) -> Answer {
    let mut answer = Response::new(streamed(pieces));
    let text = HeaderValue::from_static("text/plain");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    no_cache(&mut answer);
    answer
}

/// A file that is made while it is sent.
#[must_use]
pub fn binary_pieces(pieces: Pieces) -> Answer {
    let mut answer = Response::new(streamed(pieces));
    let kind = HeaderValue::from_static("application/octet-stream");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    no_cache(&mut answer);
    answer
}

/// Text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(full(text));
    *answer.status_mut() = code;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    let sniff = HeaderName::from_static("x-content-type-options");
    answer.headers_mut().insert(sniff, HeaderValue::from_static("nosniff"));
    no_cache(&mut answer);
    answer
}

/// A failure.
#[must_use]
pub fn failure(status: &Status) -> Answer {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = json(code, &status.to_json());
    if status.retry_after_seconds > 0 {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(status.retry_after_seconds));
    }
    answer
}

/// Adds a `Warning` header for each text: `299 - "unknown field …"`.
pub fn warn(answer: &mut Answer, warnings: &[String]) {
    let mut left = WARNING_BYTES_MAX;
    for warning in warnings {
        let mut quoted = String::with_capacity(warning.len());
        for c in warning.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                c if c.is_control() => quoted.push(' '),
                c => quoted.push(c),
            }
        }
        if quoted.len() > left {
            return;
        }
        left -= quoted.len();
        let text = format!("299 - \"{quoted}\"");
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            answer.headers_mut().append(WARNING, value);
        }
    }
}

fn as_json(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    no_cache(&mut answer);
    answer
}

fn no_cache(answer: &mut Answer) {
    let value = HeaderValue::from_static("no-cache, private");
    answer.headers_mut().insert(CACHE_CONTROL, value);
}

/// Says that the body is compressed.
pub fn mark_gzip(answer: &mut Answer) {
    let headers = answer.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

fn compress_pieces(pieces: Pieces) -> Pieces {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let start = (pieces, Some(encoder));
    Box::pin(stream::unfold(start, |(mut pieces, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            match pieces.next().await {
                Some(Ok(piece)) => {
                    encoder.write_all(&piece).expect("a Vec takes every byte");
                    if encoder.get_ref().len() >= 16 * 1024 {
                        let out = std::mem::take(encoder.get_mut());
                        return Some((Ok(Bytes::from(out)), (pieces, Some(encoder))));
                    }
                }
                Some(Err(error)) => return Some((Err(error), (pieces, None))),
                None => {
                    let out = encoder.finish().expect("a Vec takes every byte");
                    return Some((Ok(Bytes::from(out)), (pieces, None)));
                }
            }
        }
    }))
}
