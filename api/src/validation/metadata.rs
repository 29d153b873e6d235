//! Rules on `metadata`, the same for every kind but for what a name may be.

use serde_json::Value;

use super::{Errors, Fields, Path, fields, items, objects, text};
use crate::names;
use crate::resource::Resource;

/// Bytes that all annotations of an object may hold together.
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// Finalizers that need no domain.
const STANDARD_FINALIZERS: &[&str] = &["foregroundDeletion", "kubernetes", "orphan"];
const METADATA: Path<'static> = Path::Field(&Path::Root, "metadata");

pub(super) fn object(resource: &Resource, object: &Value, errors: &mut Errors) {
    let Some(root) = object.as_object() else { return };
    let metadata = fields(root, "metadata");
    // A node's name is a segment of MQTT topics and a certificate's common name.
    let check = match resource.kind {
        "Namespace" | "Node" => names::dns1123_label,
        // A Service's name is a label of DNS names.
        "Service" => names::dns1035_label,
        _ => names::dns1123_subdomain,
    };
    let prefix = text(metadata, "generateName");
    if !prefix.is_empty() {
        // What is generated follows the dash.
        let stem = format!("{}a", prefix.trim_end_matches('-'));
        errors.invalid_all(&METADATA.field("generateName"), prefix, &check(&stem));
    }
    match text(metadata, "name") {
        "" => {
            errors.required(&METADATA.field("name"), "name or generateName is required");
        }
        name => errors.invalid_all(&METADATA.field("name"), name, &check(name)),
    }
    let namespace = text(metadata, "namespace");
    let at = METADATA.field("namespace");
    match (resource.namespaced, namespace) {
        (true, "") => errors.required(&at, ""),
        (true, namespace) => errors.invalid_all(&at, namespace, &names::dns1123_label(namespace)),
        (false, "") => {}
        (false, _) => errors.forbidden(&at, "not allowed on this type"),
    }
    labels_and_annotations(&METADATA, metadata, errors);
    owner_references(metadata, errors);
    finalizers(metadata, errors);
}

/// Also of a pod template's `metadata`.
pub(super) fn labels_and_annotations(path: &Path<'_>, metadata: &Fields, errors: &mut Errors) {
    labels(&path.field("labels"), fields(metadata, "labels"), errors);
    let at = path.field("annotations");
    let annotations = fields(metadata, "annotations");
    let mut size = 0;
    for (key, value) in annotations {
        errors.invalid_all(&at, key, &names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        errors.too_long(&at, ANNOTATIONS_MAX);
    }
}

/// Labels, or what selects by them.
pub(super) fn labels(path: &Path<'_>, labels: &Fields, errors: &mut Errors) {
    for (key, value) in labels {
        errors.invalid_all(path, key, &names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(path, value, &names::label_value(value));
    }
}

fn owner_references(metadata: &Fields, errors: &mut Errors) {
    let path = METADATA.field("ownerReferences");
    let mut controllers = Vec::new();
    for (n, owner) in objects(metadata, "ownerReferences") {
        let at = path.index(n);
        for (field, word) in
            [("apiVersion", "version"), ("kind", "kind"), ("name", "name"), ("uid", "uid")]
        {
            if text(owner, field).is_empty() {
                errors.invalid(&at.field(field), "", &format!("{word} must not be empty"));
            }
        }
        if text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Event" {
            errors.invalid_value(
                &at,
                &items(metadata, "ownerReferences")[n],
                "/v1, Kind=Event is disallowed from being an owner",
            );
        }
        if super::flag(owner, "controller") {
            controllers.push(text(owner, "name"));
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        errors.invalid_value(
            &path,
            &metadata["ownerReferences"],
            &format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
            ),
        );
    }
}

fn finalizers(metadata: &Fields, errors: &mut Errors) {
    let path = METADATA.field("finalizers");
    let list = items(metadata, "finalizers");
    for (n, finalizer) in list.iter().enumerate() {
        finalizer_name(&path.index(n), finalizer.as_str().unwrap_or_default(), errors);
    }
    let has = |name: &str| list.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid_value(
            &path,
            &metadata["finalizers"],
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

pub(super) fn finalizer_name(path: &Path<'_>, name: &str, errors: &mut Errors) {
    let wrong = names::qualified_name(name);
    if wrong.is_empty() && !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
        errors.invalid(
            path,
            name,
            "name is neither a standard finalizer name nor is it fully qualified",
        );
    }
    errors.invalid_all(path, name, &wrong);
}

pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return };
    let (old, new) = (fields(old, "metadata"), fields(new, "metadata"));
    for field in ["name", "namespace", "uid"] {
        if text(old, field) != text(new, field) {
            errors.invalid(&METADATA.field(field), text(new, field), "field is immutable");
        }
    }
    if !text(old, "deletionTimestamp").is_empty() {
        let known = items(old, "finalizers");
        let added: Vec<String> = items(new, "finalizers")
            .iter()
            .filter(|finalizer| !known.contains(finalizer))
            .map(ToString::to_string)
            .collect();
        if !added.is_empty() {
            errors.forbidden(
                &METADATA.field("finalizers"),
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            );
        }
    }
}
