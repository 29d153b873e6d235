//! `/openapi/v3`: the index, and one document for each group and version, made
//! when asked for and kept by clients under their hash.

use api::{openapi, resource};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::status::Status;
use front::answer::{self, Answer};
use front::negotiate::{accepts_gzip, form};
use front::path::Query;

/// Answers `/openapi/v3{rest}`.
pub(super) async fn serve(
    headers: &HeaderMap,
    query: &Query,
    rest: &str,
) -> Result<Answer, Status> {
    form(headers, &[])?;
    if rest.trim_matches('/').is_empty() {
        let mut index = Vec::new();
        openapi::write_index(&mut index, resource::all()).map_err(Status::internal)?;
        return Ok(answer::json_bytes(StatusCode::OK, index.into(), false));
    }
    let parts: Vec<&str> = rest.trim_matches('/').split('/').collect();
    let (group, version) = match parts.as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return Err(Status::no_such_path()),
    };
    let exists = resource::groups()
        .iter()
        .any(|(name, versions)| *name == group && versions.contains(&version.as_str()));
    if !exists {
        return Err(Status::no_such_path());
    }
    let hash = openapi::hash(resource::all(), &group, &version);
    let tag = format!("\"{hash}\"");
    let fresh = headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let gzip = accepts_gzip(headers);
    let mut answer = if fresh {
        let mut answer = Response::new(answer::full(Vec::new()));
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer
    } else {
        // Half a megabyte of text: not on a thread that serves others.
        let write = move || document(&group, &version, gzip);
        let bytes = tokio::task::spawn_blocking(write).await.map_err(Status::internal)??;
        let mut answer = answer::json_bytes(StatusCode::OK, Vec::new().into(), false);
        *answer.body_mut() = answer::full(bytes);
        if gzip {
            answer::mark_gzip(&mut answer);
        }
        answer
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    if query.get("hash") == Some(&hash) {
        let forever = HeaderValue::from_static("public, immutable");
        answer.headers_mut().insert(CACHE_CONTROL, forever);
    }
    Ok(answer)
}

fn document(group: &str, version: &str, gzip: bool) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::new();
    let written = if gzip {
        let mut encoder = GzEncoder::new(&mut bytes, Compression::default());
        openapi::write_document(&mut encoder, resource::all(), group, version)
            .and_then(|()| encoder.finish().map(drop))
    } else {
        openapi::write_document(&mut bytes, resource::all(), group, version)
    };
    written.map_err(Status::internal)?;
    Ok(bytes)
}
