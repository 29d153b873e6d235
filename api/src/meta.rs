//! `metadata`: cheap reads from an object in JSON, and [`ObjectMeta`], the
//! typed projection that controllers keep.
//!
//! Reads never fail: what is absent or has the wrong type reads as empty, since
//! objects in the store were validated when they were written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ObjectKey;
use crate::resource::{Resource, api_version};

/// The part of `metadata` that programs work with; unknown fields are ignored.
///
/// Not for writing back: `managedFields` and whatever else is not here would be lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Name, unique within namespace and resource.
    pub name: String,
    /// Prefix the server made the name from.
    pub generate_name: String,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Identity in time: a new object of the same name has another.
    pub uid: String,
    /// Revision of the last write, as text.
    pub resource_version: String,
    /// Counts changes of `spec`.
    pub generation: i64,
    /// When it was created, RFC 3339.
    pub creation_timestamp: String,
    /// When it is to be gone; set while it is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Seconds it was given to end.
    pub deletion_grace_period_seconds: Option<i64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Objects this one lives for.
    pub owner_references: Vec<OwnerReference>,
    /// Who must act before it may go.
    pub finalizers: Vec<String>,
}

impl ObjectMeta {
    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }

    /// Whether a delete was asked for.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The owner that manages this object, where there is one.
    #[must_use]
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    /// The owner's `apiVersion`.
    pub api_version: String,
    /// The owner's kind.
    pub kind: String,
    /// The owner's name, in the same namespace or cluster-scoped.
    pub name: String,
    /// The owner's uid: another object of the same name is no owner.
    pub uid: String,
    /// Whether the owner manages the object.
    pub controller: bool,
    /// Whether a foreground delete of the owner waits for the object.
    pub block_owner_deletion: bool,
}

/// `metadata` as a map, where it is one.
#[must_use]
pub fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

/// `metadata` as a map; an empty one is put there where it is missing.
///
/// # Panics
/// When `object` is no JSON object, which no caller hands in after decoding.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    let root = object.as_object_mut().expect("an API object is a JSON object");
    let entry = root.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().expect("just made one")
}

/// The typed projection; the default one where `metadata` has a wrong shape.
#[must_use]
pub fn object_meta(object: &Value) -> ObjectMeta {
    object
        .get("metadata")
        .and_then(|metadata| ObjectMeta::deserialize(metadata).ok())
        .unwrap_or_default()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object).and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// `apiVersion`.
#[must_use]
pub fn object_api_version(object: &Value) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default()
}

/// `kind`.
#[must_use]
pub fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

/// `metadata.name`.
#[must_use]
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.generateName`.
#[must_use]
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`.
#[must_use]
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`.
#[must_use]
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`.
#[must_use]
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.creationTimestamp`.
#[must_use]
pub fn creation_timestamp(object: &Value) -> &str {
    text(object, "creationTimestamp")
}

/// `metadata.deletionTimestamp`, while the object is being deleted.
#[must_use]
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|time| !time.is_empty())
}

/// Whether a delete was asked for.
#[must_use]
pub fn is_terminating(object: &Value) -> bool {
    deletion_timestamp(object).is_some()
}

/// `metadata.generation`; 0 where the kind has none.
#[must_use]
pub fn generation(object: &Value) -> i64 {
    metadata(object).and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or_default()
}

/// Namespace and name.
#[must_use]
pub fn object_key(object: &Value) -> ObjectKey {
    ObjectKey::new(namespace(object), name(object))
}

/// The value of one label.
#[must_use]
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object)?.get("labels")?.get(key)?.as_str()
}

/// The value of one annotation.
#[must_use]
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object)?.get("annotations")?.get(key)?.as_str()
}

/// The annotation of a mirror: a Pod that only shows a static pod of its node. Its
/// value is the uid of that pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The ConfigMap of every namespace that says who vouches for the API server.
pub const ROOT_CA_NAME: &str = "kube-root-ca.crt";
/// Its one key.
pub const ROOT_CA_KEY: &str = "ca.crt";

/// The uid under which its node knows a pod: a mirror's is that of the static pod.
#[must_use]
pub fn uid_on_node(pod: &Value) -> &str {
    annotation(pod, MIRROR_ANNOTATION).unwrap_or_else(|| uid(pod))
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    let entry =
        metadata_mut(object).entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().expect("just made one").insert(key.to_owned(), value.into());
}

/// `metadata.labels`, key and value.
pub fn labels(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    let labels = metadata(object).and_then(|m| m.get("labels")).and_then(Value::as_object);
    labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// `metadata.finalizers`.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = metadata(object).and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// `metadata.ownerReferences`.
#[must_use]
pub fn owner_references(object: &Value) -> Vec<OwnerReference> {
    let list = metadata(object).and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|owner| OwnerReference::deserialize(owner).ok()).collect()
}

/// The owner that manages the object, where there is one.
#[must_use]
pub fn controller(object: &Value) -> Option<OwnerReference> {
    owner_references(object).into_iter().find(|owner| owner.controller)
}

/// The reference to put into an object that `owner` is to manage.
#[must_use]
pub fn controller_reference(resource: &Resource, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version(resource.group, resource.version),
        kind: resource.kind.to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: true,
        block_owner_deletion: true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource;

    #[test]
    fn reads_of_an_object_and_its_projection_agree() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
                "generation": 3, "labels": {"app": "web"}, "annotations": {"a": "b"},
                "finalizers": ["x/y"], "deletionTimestamp": "2026-11-23T07:36:35Z",
                "managedFields": [{"manager": "kubectl"}],
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u2", "controller": true},
                ],
            },
        });
        let meta = object_meta(&object);
        assert_eq!(meta.key(), object_key(&object));
        assert_eq!((meta.uid.as_str(), meta.generation), (uid(&object), generation(&object)));
        assert!(meta.is_terminating() && is_terminating(&object));
        assert_eq!(finalizers(&object), ["x/y"]);
        assert_eq!(label(&object, "app"), Some("web"));
        assert_eq!(labels(&object).collect::<Vec<_>>(), [("app", "web")]);
        assert_eq!(annotation(&object, "a"), Some("b"));
        assert_eq!(meta.controller().cloned(), controller(&object));
        assert_eq!(controller(&object).unwrap().name, "rs");
    }

    #[test]
    fn wrong_shapes_read_as_empty() {
        for object in
            [json!({}), json!({"metadata": 1}), json!({"metadata": {"name": 1, "labels": []}})]
        {
            assert_eq!(name(&object), "");
            assert_eq!(labels(&object).count(), 0);
            assert_eq!(object_meta(&object), ObjectMeta::default());
            assert!(!is_terminating(&object));
        }
        let mut object = json!({"metadata": 1});
        set_annotation(&mut object, "a", "b");
        assert_eq!(annotation(&object, "a"), Some("b"));
    }

    #[test]
    fn a_controller_reference_names_its_owner() {
        let sets = resource::by_kind("apps", "ReplicaSet").unwrap();
        let owner =
            ObjectMeta { name: "rs".to_owned(), uid: "u".to_owned(), ..ObjectMeta::default() };
        let reference = serde_json::to_value(controller_reference(sets, &owner)).unwrap();
        assert_eq!(
            reference,
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u",
                   "controller": true, "blockOwnerDeletion": true})
        );
    }
}
