//! What the API server itself reads and writes in an object: metadata, the
//! order of keys, and the bytes that are stored.
//!
//! Stored bytes are what clients read, so an object is encoded once, by
//! [`Encoded`], with a gap for the revision that only the store's writer knows.

use api::resource::Resource;
use bytes::Bytes;
use serde_json::{Map, Value};

/// Order of the first keys in `metadata`, as Kubernetes writes them.
const METADATA_ORDER: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// The text at a path of keys, or empty.
#[must_use]
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The value at a path of keys; `null` counts as absent.
#[must_use]
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// `metadata.{key}`, or empty.
#[must_use]
pub fn meta<'a>(object: &'a Value, key: &str) -> &'a str {
    text(object, &["metadata", key])
}

/// `metadata`, made if it is not there.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// The object below `key`, made if it is not there or is no object.
///
/// # Panics
/// Never: what is used as an object was made one.
pub fn child_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("made an object above");
    let child = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child.as_object_mut().expect("made an object above")
}

/// Sets or removes `key`, so that `None` leaves nothing behind.
pub fn set(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            map.insert(key.to_owned(), value);
        }
        None => {
            map.shift_remove(key);
        }
    }
}

/// `metadata.finalizers` as texts.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    texts(object, &["metadata", "finalizers"])
}

/// The texts of a list at a path.
#[must_use]
pub fn texts<'a>(object: &'a Value, path: &[&str]) -> Vec<&'a str> {
    at(object, path)
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Whether somebody asked for the object's deletion.
#[must_use]
pub fn is_deleting(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some()
}

/// The revision an object or patch says it was made from; `None` where it says nothing.
///
/// # Errors
/// It is no number.
#[allow(clippy::result_unit_err, reason = "there is one way to fail, and callers word it")]
pub fn resource_version(object: &Value) -> Result<Option<u64>, ()> {
    match meta(object, "resourceVersion") {
        "" | "0" => Ok(None),
        text => text.parse().map(Some).map_err(|_| ()),
    }
}

/// Now, as objects carry it: UTC to the second.
#[must_use]
pub fn now_text() -> String {
    time_text(jiff::Timestamp::now())
}

/// A point in time as objects carry it.
#[must_use]
pub fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The names of an object's group, version and kind.
pub fn set_type(object: &mut Value, resource: &Resource) {
    if let Some(map) = object.as_object_mut() {
        map.insert("kind".to_owned(), Value::from(resource.kind));
        map.insert("apiVersion".to_owned(), Value::from(resource.api_version()));
    }
}

/// An object as bytes, with a gap where `metadata.resourceVersion` goes.
#[derive(Debug)]
pub struct Encoded {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Encoded {
    /// Encodes `object`, whatever `resourceVersion` it carries.
    #[must_use]
    pub fn new(object: &Value) -> Self {
        let mut out = Vec::with_capacity(1024);
        out.push(b'{');
        for key in ["kind", "apiVersion"] {
            if let Some(value) = object.get(key) {
                push_entry(&mut out, key, value);
            }
        }
        let empty = Map::new();
        let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        push_key(&mut out, "metadata");
        out.push(b'{');
        for key in &METADATA_ORDER[..4] {
            push_metadata(&mut out, metadata, key);
        }
        push_key(&mut out, "resourceVersion");
        out.push(b'"');
        let before = std::mem::replace(&mut out, Vec::with_capacity(1024));

        out.push(b'"');
        for key in &METADATA_ORDER[5..] {
            push_metadata(&mut out, metadata, key);
        }
        for (key, value) in metadata {
            if !METADATA_ORDER.contains(&key.as_str()) {
                push_entry(&mut out, key, value);
            }
        }
        out.push(b'}');
        for (key, value) in object.as_object().unwrap_or(&empty) {
            if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
                push_entry(&mut out, key, value);
            }
        }
        out.push(b'}');
        Self { before, after: out }
    }

    /// The bytes of the object as `revision` stores it.
    #[must_use]
    pub fn render(&self, revision: u64) -> Bytes {
        let digits = revision.to_string();
        let length = self.before.len() + digits.len() + self.after.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&self.before);
        bytes.extend_from_slice(digits.as_bytes());
        bytes.extend_from_slice(&self.after);
        Bytes::from(bytes)
    }

    /// The bytes of an object that is not stored, so has no revision yet.
    ///
    /// # Panics
    /// Never: a value always serialises.
    #[must_use]
    pub fn render_unstored(object: &Value) -> Bytes {
        let mut bytes = Vec::with_capacity(1024);
        serde_json::to_writer(&mut bytes, object).expect("a Value always serialises");
        Bytes::from(bytes)
    }
}

/// The bytes of a deleted object: its last state, at the revision of its deletion.
#[must_use]
pub fn at_revision(bytes: &Bytes, revision: u64) -> Bytes {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(object) => Encoded::new(&object).render(revision),
        Err(_) => bytes.clone(),
    }
}

fn push_metadata(out: &mut Vec<u8>, metadata: &Map<String, Value>, key: &str) {
    if let Some(value) = metadata.get(key).filter(|value| !value.is_null()) {
        push_entry(out, key, value);
    }
}

fn push_entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    push_key(out, key);
    serde_json::to_writer(out, value).expect("a Value always serialises");
}

fn push_key(out: &mut Vec<u8>, key: &str) {
    if out.last() != Some(&b'{') && !out.is_empty() {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, key).expect("a text always serialises");
    out.push(b':');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_fills_the_gap_and_keys_are_in_order() {
        let object = json!({
            "spec": {"x": 1}, "metadata": {"labels": {"a": "b"}, "odd": 1, "name": "n",
            "resourceVersion": "old", "managedFields": []}, "apiVersion": "v1", "kind": "Pod",
        });
        assert_eq!(
            Encoded::new(&object).render(42),
            "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"n\",\
             \"resourceVersion\":\"42\",\"labels\":{\"a\":\"b\"},\"managedFields\":[],\"odd\":1},\
             \"spec\":{\"x\":1}}"
        );
        let bare = Encoded::new(&json!({})).render(1);
        assert_eq!(bare, "{\"metadata\":{\"resourceVersion\":\"1\"}}");
        assert_eq!(at_revision(&bare, 2), "{\"metadata\":{\"resourceVersion\":\"2\"}}");
    }
}
