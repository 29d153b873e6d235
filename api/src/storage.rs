//! Words of persistent storage: annotations, finalizers and names that the API
//! server, the controllers and lowering must spell alike.
//!
//! Facts only; which claim gets which volume is `controllers::storage`'s.

use serde_json::Value;

use crate::meta;

/// Marks the class that claims get which name none.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The same under its old name, which clients still write.
pub const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// A claim's class under its old name; it counts before `spec.storageClassName`.
pub const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// On a claim: its binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On either side of a binding: the controller chose the other, no user did.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that the scheduler chose for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make its volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// On a Node: the folder that holds what is made there for claims.
pub const STORAGE_FOLDER: &str = "pinnace.io/storage-folder";

/// Provisioner that makes folders on the node a pod was scheduled to. Also the
/// finalizer that keeps such a volume until its folder is removed.
pub const LOCAL_PATH: &str = "pinnace.io/local-path";
/// Name of the class that every cluster starts with.
pub const LOCAL_PATH_CLASS: &str = "local-path";
/// Says that volumes of a class are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Mode of a volume that one pod alone may use.
pub const ONE_POD: &str = "ReadWriteOncePod";

/// Whether claims without a class get this StorageClass.
#[must_use]
pub fn is_default_class(class: &Value) -> bool {
    [DEFAULT_CLASS, DEFAULT_CLASS_BETA]
        .iter()
        .any(|annotation| meta::annotation(class, annotation) == Some("true"))
}

/// Whether a PersistentVolume is a folder that the provisioner made on a node.
#[must_use]
pub fn is_local_path(volume: &Value) -> bool {
    meta::annotation(volume, PROVISIONED_BY) == Some(LOCAL_PATH)
}

/// A claim's class; `None` where it names none, which is not the same as `""`.
#[must_use]
pub fn class_of(object: &Value) -> Option<&str> {
    meta::annotation(object, CLASS_BETA)
        .or_else(|| object.get("spec")?.get("storageClassName")?.as_str())
}

/// The class that claims without one get: of several the newest, then the first by name.
#[must_use]
pub fn default_class<'a>(classes: impl IntoIterator<Item = &'a Value>) -> Option<&'a str> {
    let marked = classes.into_iter().filter(|class| is_default_class(class));
    let newest = marked.min_by(|a, b| {
        let age = |class| meta::creation_timestamp(class);
        age(b).cmp(age(a)).then_with(|| meta::name(a).cmp(meta::name(b)))
    });
    newest.map(meta::name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_of_several_default_classes_counts() {
        let class = |name: &str, created: &str, annotation: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": created,
                "annotations": {annotation: "true"}}})
        };
        let all = [
            class("old", "2026-01-01T00:00:00Z", DEFAULT_CLASS),
            class("b", "2026-02-01T00:00:00Z", DEFAULT_CLASS),
            class("a", "2026-02-01T00:00:00Z", DEFAULT_CLASS_BETA),
            class("none", "2026-03-01T00:00:00Z", "other"),
        ];
        assert_eq!(default_class(&all), Some("a"));
        assert_eq!(default_class(&all[..1]), Some("old"));
        assert_eq!(default_class(&all[3..]), None);
    }

    #[test]
    fn no_class_is_not_the_empty_class() {
        assert_eq!(class_of(&json!({"spec": {}})), None);
        assert_eq!(class_of(&json!({"spec": {"storageClassName": ""}})), Some(""));
        let old = json!({"metadata": {"annotations": {CLASS_BETA: "x"}}, "spec": {"storageClassName": "y"}});
        assert_eq!(class_of(&old), Some("x"));
    }
}
