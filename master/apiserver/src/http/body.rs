//! Request bodies: read with a bound, and decoded from JSON, YAML or protobuf.

use std::time::Duration;

use api::schema;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::options::PatchKind;
use crate::status::Status;

/// Longest request body, in bytes; kube-apiserver's limit.
pub(super) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Formats of objects.
const OBJECT_TYPES: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// Formats of patches.
const PATCH_TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
     application/strategic-merge-patch+json, application/apply-patch+yaml";

/// An object as a client sent it.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) object: Value,
    /// Fields that the text states twice.
    pub(super) duplicates: Vec<String>,
}

/// Reads the whole body.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Status> {
    let read = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Status::too_large(BODY_BYTES_MAX)),
        Ok(Err(error)) => {
            Err(Status::bad_request(format!("cannot read the request body: {error}")))
        }
        Err(_) => Err(Status::bad_request(format!(
            "the request body did not arrive within {} s",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}

/// Decodes an object; what has no `Content-Type` is JSON.
pub(super) fn object(headers: &HeaderMap, body: &[u8]) -> Result<Decoded, Status> {
    refuse_encoded(headers)?;
    match content_type(headers).as_str() {
        "" | "application/json" | "*/*" => json(body),
        "application/yaml" | "text/yaml" | "application/x-yaml" => yaml(body),
        "application/vnd.kubernetes.protobuf" => {
            let object = api::protobuf::decode(body)
                .map_err(|error| Status::bad_request(error.to_string()))?;
            Ok(Decoded { object, duplicates: Vec::new() })
        }
        _ => Err(Status::unsupported_media_type(OBJECT_TYPES)),
    }
}

/// The format of a patch.
pub(super) fn patch_kind(headers: &HeaderMap) -> Result<PatchKind, Status> {
    refuse_encoded(headers)?;
    match content_type(headers).as_str() {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ => Err(Status::unsupported_media_type(PATCH_TYPES)),
    }
}

/// Decodes the text of a patch.
pub(super) fn patch(kind: PatchKind, body: &[u8]) -> Result<Decoded, Status> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if kind == PatchKind::Apply && first != Some(&b'{') { yaml(body) } else { json(body) }
}

fn json(body: &[u8]) -> Result<Decoded, Status> {
    let object = serde_json::from_slice(body).map_err(|error| {
        Status::bad_request(format!(
            "the object provided is unrecognized: cannot read JSON: {error}"
        ))
    })?;
    Ok(Decoded { object, duplicates: schema::duplicates(body) })
}

/// A duplicate key in YAML is refused by the parser itself; so are aliases that explode.
fn yaml(body: &[u8]) -> Result<Decoded, Status> {
    let object = serde_saphyr::from_slice(body).map_err(|error| {
        Status::bad_request(format!(
            "the object provided is unrecognized: cannot read YAML: {error}"
        ))
    })?;
    Ok(Decoded { object, duplicates: Vec::new() })
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn refuse_encoded(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get(CONTENT_ENCODING) {
        Some(coding) if coding != "identity" => {
            Err(Status::unsupported_media_type("without Content-Encoding"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn typed(kind: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers
    }

    #[test]
    fn bodies_are_decoded_by_their_type() {
        assert_eq!(object(&HeaderMap::new(), b"{\"a\":1}").unwrap().object, json!({"a": 1}));
        let yaml = object(&typed("application/yaml; charset=utf-8"), b"a: [1, x]\n").unwrap();
        assert_eq!(yaml.object, json!({"a": [1, "x"]}));
        assert_eq!(object(&typed("text/html"), b"").unwrap_err().code(), 415);
        let twice = object(&typed("application/json"), b"{\"a\":1,\"a\":2}").unwrap();
        assert_eq!(twice.duplicates, ["duplicate field \"a\""]);
        assert_eq!(patch(PatchKind::Apply, b"\n a: 1").unwrap().object, json!({"a": 1}));
        assert_eq!(patch(PatchKind::Apply, b" {\"a\": 1}").unwrap().object, json!({"a": 1}));
    }

    #[test]
    fn garbage_is_a_bad_request() {
        let protobuf = "application/vnd.kubernetes.protobuf";
        for (kind, body) in [
            ("application/json", &b"{"[..]),
            ("application/json", b"\xff\xfe"),
            ("application/yaml", b"a: b: c"),
            ("application/yaml", b"a: 1\na: 2"),
            (protobuf, b"k8s\0\xff\xff\xff"),
            (protobuf, b"{}"),
        ] {
            assert_eq!(object(&typed(kind), body).unwrap_err().code(), 400, "{body:?}");
        }
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert_eq!(object(&typed("application/json"), &deep).unwrap_err().code(), 400);
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..12 {
            let m = n - 1;
            bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{m}"); 10].join(",")));
        }
        assert_eq!(object(&typed("application/yaml"), bomb.as_bytes()).unwrap_err().code(), 400);
    }
}
