//! What the server itself decides about an object when it is created or
//! changed: system fields of `metadata`, which part a request may touch, and
//! what a new pod or namespace starts with.
//!
//! The order on a write is: drop unknown fields,
//! [`defaults::apply`](crate::defaults::apply), [`prepare_for_create`] or
//! [`prepare_for_update`], [`validation`](crate::validation), store. Defaults
//! come first, so that a replaced `spec` that leaves them out is no change. It
//! does not know who asks: that is the API server's admission.

use serde_json::{Map, Value, json};

use crate::meta;
use crate::quantity::Quantity;
use crate::resource::Resource;
use crate::time::{Timestamp, rfc3339};
use crate::view::{ResourceRequirements, Toleration};

/// Seconds a pod stays on a node that is not ready or not reached.
///
/// Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>.
pub const TOLERATION_SECONDS: i64 = 300;
/// The finalizer that keeps a namespace until everything in it is gone.
pub const NAMESPACE_FINALIZER: &str = "kubernetes";

/// The finalizer that keeps a claim until no pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// The finalizer that keeps a volume until no claim is bound to it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

/// Parts of `metadata` that are the server's on every write.
const SYSTEM_FIELDS: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
];

/// Turns a client's object into a new one: identity, time, generation, and the
/// part of `status` and `spec` that a new object starts with.
///
/// The caller has set name and namespace.
pub fn prepare_for_create(resource: &Resource, object: &mut Value, uid: &str, now: Timestamp) {
    let metadata = meta::metadata_mut(object);
    for field in SYSTEM_FIELDS {
        metadata.shift_remove(*field);
    }
    metadata.shift_remove("resourceVersion");
    metadata.insert("uid".to_owned(), uid.into());
    metadata.insert("creationTimestamp".to_owned(), rfc3339(now).into());
    if resource.strategy.has_generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
    match (resource.group, resource.kind) {
        ("", "Pod") => new_pod(object),
        ("", "Namespace") => {
            object["status"] = json!({"phase": "Active"});
            add_namespace_finalizer(object);
        }
        // A node is created with what it found out about itself.
        ("", "Node") => {}
        ("", "PersistentVolumeClaim") => {
            object["status"] = json!({});
            add_finalizer(object, CLAIM_PROTECTION);
        }
        ("", "PersistentVolume") => {
            object["status"] = json!({});
            add_finalizer(object, VOLUME_PROTECTION);
        }
        ("apps", "ReplicaSet") => object["status"] = json!({"replicas": 0}),
        _ if resource.has_status() => object["status"] = json!({}),
        _ => {}
    }
}

/// Keeps what a write through `subresource` (none for the object itself) must
/// not touch, and counts a change of `spec` in `generation`.
///
/// `old` is the stored object. Finalizers of an object that is being deleted
/// may only be taken away; validation refuses more.
pub fn prepare_for_update(
    resource: &Resource,
    subresource: Option<&str>,
    old: &Value,
    new: &mut Value,
) {
    match subresource {
        Some("status") => keep_all_but_status(resource, old, new),
        Some("ephemeralcontainers") => {
            let added = new.get("spec").and_then(|spec| spec.get("ephemeralContainers")).cloned();
            keep_all_but_managed_fields(old, new);
            if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
                put(spec, "ephemeralContainers", added.as_ref());
            }
        }
        Some("finalize") => {
            let finalizers = new.get("spec").and_then(|spec| spec.get("finalizers")).cloned();
            keep_all_but_managed_fields(old, new);
            if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
                put(spec, "finalizers", finalizers.as_ref());
            }
        }
        _ => {
            if resource.has_status() {
                let root = new.as_object_mut().expect("an API object is a JSON object");
                put(root, "status", old.get("status"));
            }
            if resource.kind == "Namespace" {
                new["spec"] = old.get("spec").cloned().unwrap_or_else(|| json!({}));
            }
        }
    }
    let old_metadata = meta::metadata(old);
    let metadata = meta::metadata_mut(new);
    for field in SYSTEM_FIELDS {
        put(metadata, field, old_metadata.and_then(|old| old.get(*field)));
    }
    // Neither a report nor the choice of a node asks for anything new.
    let asks = !matches!(subresource, Some("status" | "binding"));
    if resource.strategy.has_generation && asks {
        // A change of a Deployment's annotations is one too, as in Kubernetes.
        let counted = |object: &Value| {
            let annotations = (resource.kind == "Deployment")
                .then(|| object.get("metadata")?.get("annotations").cloned())
                .flatten();
            // What is asked for of a slice stands in no spec.
            let slice = (resource.kind == "EndpointSlice")
                .then(|| ["endpoints", "ports"].map(|part| object.get(part).cloned()));
            (object.get("spec").cloned(), annotations, slice)
        };
        if counted(old) != counted(new) {
            let next = meta::generation(old) + 1;
            meta::metadata_mut(new).insert("generation".to_owned(), next.into());
        }
    }
}

/// The class in a pod's status: how its requests relate to its limits.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>.
#[must_use]
pub fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["containers", "initContainers"] {
        let containers = pod.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
        for container in containers.into_iter().flatten() {
            let resources: ResourceRequirements = container
                .get("resources")
                .and_then(|resources| crate::view::read(resources).ok())
                .unwrap_or_default();
            for name in ["cpu", "memory"] {
                let set = |amount: &&Quantity| !amount.is_zero();
                let limit = resources.limits.get(name).filter(set);
                let request = resources.requests.get(name).filter(set).or(limit);
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && limit == request;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn new_pod(pod: &mut Value) {
    let class = qos_class(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.get("priority").is_none_or(Value::is_null) {
        spec.insert("priority".to_owned(), json!(0));
    }
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    // A pod that says what it needs may go to a node that is short of memory.
    let memory = json!({
        "key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule",
    });
    if class != "BestEffort" && !list.contains(&memory) {
        list.push(memory);
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |value: &Value| {
            crate::view::read::<Toleration>(value).is_ok_and(|toleration| {
                (toleration.key == key || toleration.key.is_empty())
                    && (toleration.effect == "NoExecute" || toleration.effect.is_empty())
            })
        };
        if !list.iter().any(covers) {
            list.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let list = meta::metadata_mut(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|known| known == finalizer)
    {
        list.push(finalizer.into());
    }
}

fn add_namespace_finalizer(namespace: &mut Value) {
    if !namespace["spec"].is_object() {
        namespace["spec"] = json!({});
    }
    if !namespace["spec"]["finalizers"].is_array() {
        namespace["spec"]["finalizers"] = json!([]);
    }
    let list = namespace["spec"]["finalizers"].as_array_mut().expect("just made one");
    if !list.iter().any(|finalizer| finalizer == NAMESPACE_FINALIZER) {
        list.push(NAMESPACE_FINALIZER.into());
    }
}

/// A write to `status` changes nothing else; pods and nodes may be labelled by it.
fn keep_all_but_status(resource: &Resource, old: &Value, new: &mut Value) {
    let status = new.get("status").cloned();
    let metadata = meta::metadata(new).cloned().unwrap_or_default();
    keep_all_but_managed_fields(old, new);
    let root = new.as_object_mut().expect("an API object is a JSON object");
    put(root, "status", status.as_ref());
    if matches!(resource.kind, "Pod" | "Node") {
        let kept = meta::metadata_mut(new);
        for field in ["labels", "annotations", "finalizers"] {
            put(kept, field, metadata.get(field));
        }
    }
}

fn keep_all_but_managed_fields(old: &Value, new: &mut Value) {
    let sent = |object: &Value, field| meta::metadata(object).and_then(|m| m.get(field)).cloned();
    let (managed, revision) = (sent(new, "managedFields"), sent(new, "resourceVersion"));
    *new = old.clone();
    let metadata = meta::metadata_mut(new);
    put(metadata, "managedFields", managed.as_ref());
    put(metadata, "resourceVersion", revision.as_ref());
}

fn put(fields: &mut Map<String, Value>, name: &str, value: Option<&Value>) {
    match value {
        Some(value) => {
            fields.insert(name.to_owned(), value.clone());
        }
        None => {
            fields.shift_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::by_kind;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_new_pod_is_pending_tolerant_and_has_an_account() {
        let pods = by_kind("", "Pod").unwrap();
        let mut pod = json!({
            "metadata": {"name": "a", "uid": "forged", "resourceVersion": "9", "deletionTimestamp": "x"},
            "spec": {
                "containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
                "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}],
            },
            "status": {"phase": "Running", "podIP": "1.2.3.4"},
        });
        prepare_for_create(pods, &mut pod, "u1", at(0));
        assert_eq!(
            pod["metadata"],
            json!({"name": "a", "uid": "u1", "creationTimestamp": "1970-01-01T00:00:00Z", "generation": 1})
        );
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
        let keys: Vec<_> =
            pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| &t["key"]).collect();
        assert_eq!(
            keys,
            [
                "node.kubernetes.io/unreachable",
                "node.kubernetes.io/memory-pressure",
                "node.kubernetes.io/not-ready"
            ]
        );
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}});
        prepare_for_create(pods, &mut pod, "u1", at(0));
        let text = pod["spec"]["tolerations"].to_string();
        assert!(!text.contains("pressure"), "best effort: {text}");
    }

    #[test]
    fn main_and_status_writes_do_not_touch_each_other() {
        let deployments = by_kind("apps", "Deployment").unwrap();
        let old = json!({
            "metadata": {"name": "a", "uid": "u", "generation": 4, "labels": {"a": "1"}},
            "spec": {"replicas": 1}, "status": {"replicas": 1},
        });
        let mut new = json!({
            "metadata": {"name": "a", "uid": "other", "labels": {"a": "2"}, "generation": 9},
            "spec": {"replicas": 2}, "status": {"replicas": 7},
        });
        let mut status = new.clone();
        prepare_for_update(deployments, None, &old, &mut new);
        assert_eq!(new["status"], old["status"]);
        assert_eq!(
            (&new["metadata"]["uid"], &new["metadata"]["generation"]),
            (&json!("u"), &json!(5))
        );
        assert_eq!(new["metadata"]["labels"]["a"], "2");
        prepare_for_update(deployments, Some("status"), &old, &mut status);
        assert_eq!(status["spec"], old["spec"]);
        assert_eq!(status["metadata"], old["metadata"]);
        assert_eq!(status["status"]["replicas"], 7);

        let mut same = old.clone();
        same["metadata"]["labels"]["b"] = json!("x");
        prepare_for_update(deployments, None, &old, &mut same);
        assert_eq!(same["metadata"]["generation"], 4, "labels do not count");
        same["metadata"]["annotations"] = json!({"note": "x"});
        prepare_for_update(deployments, None, &old, &mut same);
        assert_eq!(same["metadata"]["generation"], 5, "annotations do");
    }

    #[test]
    fn namespaces_are_finalized_through_their_own_path() {
        let namespaces = by_kind("", "Namespace").unwrap();
        let mut namespace = json!({"metadata": {"name": "a"}});
        prepare_for_create(namespaces, &mut namespace, "u", at(0));
        assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
        assert_eq!(namespace["status"]["phase"], "Active");
        let old = namespace.clone();
        namespace["spec"]["finalizers"] = json!([]);
        let mut update = namespace.clone();
        prepare_for_update(namespaces, None, &old, &mut update);
        assert_eq!(update, old);
        prepare_for_update(namespaces, Some("finalize"), &old, &mut namespace);
        assert_eq!(namespace["spec"]["finalizers"], json!([]));
    }

    #[test]
    fn qos_classes() {
        let of = |resources: Value| {
            qos_class(&json!({"spec": {"containers": [{"resources": resources}]}}))
        };
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(of(json!({"limits": {"cpu": "1", "memory": "1"}})), "Guaranteed");
        assert_eq!(
            of(json!({"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "500m"}})),
            "Burstable"
        );
    }
}
