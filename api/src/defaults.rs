//! Defaults: what an object means where it says nothing.
//!
//! [`apply`] fills them in, exactly Kubernetes' own, on every write, so that
//! what is stored and compared is complete. It also makes amounts canonical
//! (`1000m` becomes `1`) and turns a Secret's `stringData` into `data`, as
//! Kubernetes' decoding does. Applying twice changes nothing.
//!
//! It expects what the schema check let through, and leaves alone what has
//! another type. What only a *new* object gets (tolerations, a service account,
//! a phase) is [`strategy`](crate::strategy)'s.
//!
//! Protobuf bodies carry `0` and `""` for fields that were never set; where
//! Kubernetes takes those for unset, so does this.

mod pod;
mod service;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

pub use pod::image_pull_policy;
pub(crate) use pod::pod_template;

use crate::quantity::Quantity;
use crate::resource::Resource;

/// A JSON object's fields.
type Fields = Map<String, Value>;

/// Fills in the defaults of `object`, which is of `resource`.
pub fn apply(resource: &Resource, object: &mut Value) {
    let Value::Object(root) = object else { return };
    match (resource.group, resource.kind) {
        ("", "Pod") => {
            set_if_absent(root, "status", || json!({}));
            if let Some(spec) = child(root, "spec") {
                pod::pod(spec);
            }
        }
        ("apps", "Deployment") => deployment(root),
        ("apps", "ReplicaSet") => replica_set(root),
        ("", "Namespace") => namespace(root),
        ("", "Secret") => secret(root),
        ("", "Node") => node(root),
        ("", "PersistentVolume") => persistent_volume(root),
        ("", "PersistentVolumeClaim") => persistent_volume_claim(root),
        ("storage.k8s.io", "StorageClass") => {
            set_if_absent(root, "reclaimPolicy", || json!("Delete"));
            set_if_absent(root, "volumeBindingMode", || json!("Immediate"));
        }
        ("coordination.k8s.io", "Lease") => set_if_absent(root, "spec", || json!({})),
        ("", "Service") => service::service(root),
        ("", "Endpoints") => service::endpoints(root),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(root),
        ("networking.k8s.io", "NetworkPolicy") => service::network_policy(root),
        _ => {}
    }
}

fn deployment(root: &mut Fields) {
    set_if_absent(root, "status", || json!({}));
    let Some(spec) = child(root, "spec") else { return };
    set_if_absent(spec, "replicas", || json!(1));
    set_if_absent(spec, "revisionHistoryLimit", || json!(10));
    set_if_absent(spec, "progressDeadlineSeconds", || json!(600));
    set_if_absent(spec, "strategy", || json!({}));
    if let Some(strategy) = child(spec, "strategy") {
        set_if_empty(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set_if_absent(strategy, "rollingUpdate", || json!({}));
            if let Some(update) = child(strategy, "rollingUpdate") {
                set_if_absent(update, "maxUnavailable", || json!("25%"));
                set_if_absent(update, "maxSurge", || json!("25%"));
            }
        }
    }
    if let Some(template) = child(spec, "template") {
        pod_template(template);
    }
}

fn replica_set(root: &mut Fields) {
    set_if_absent(root, "status", || json!({"replicas": 0}));
    let Some(spec) = child(root, "spec") else { return };
    set_if_absent(spec, "replicas", || json!(1));
    if let Some(template) = child(spec, "template") {
        pod_template(template);
    }
}

fn namespace(root: &mut Fields) {
    set_if_absent(root, "spec", || json!({}));
    set_if_absent(root, "status", || json!({}));
    let Some(metadata) = child(root, "metadata") else { return };
    let Some(name) = metadata.get("name").and_then(Value::as_str).map(str::to_owned) else {
        return;
    };
    if !name.is_empty() {
        set_if_absent(metadata, "labels", || json!({}));
        if let Some(labels) = child(metadata, "labels") {
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
    }
}

fn secret(root: &mut Fields) {
    fold_string_data(root);
    set_if_empty(root, "type", "Opaque");
}

/// Moves a Secret's `stringData` into its `data`.
pub fn fold_string_data(root: &mut Map<String, Value>) {
    if let Some(Value::Object(texts)) = root.remove("stringData")
        && !texts.is_empty()
    {
        set_if_absent(root, "data", || json!({}));
        if let Some(data) = child(root, "data") {
            for (key, text) in texts {
                let text = text.as_str().unwrap_or_default();
                data.insert(key, STANDARD.encode(text).into());
            }
        }
    }
}

fn node(root: &mut Fields) {
    set_if_absent(root, "spec", || json!({}));
    set_if_absent(root, "status", || json!({}));
    let Some(status) = child(root, "status") else { return };
    if let Some(capacity) = status.get("capacity").cloned() {
        set_if_absent(status, "allocatable", || capacity);
    }
    for list in ["capacity", "allocatable"] {
        if let Some(amounts) = child(status, list) {
            resource_list(amounts);
        }
    }
}

fn persistent_volume(root: &mut Fields) {
    pending(root);
    let Some(spec) = child(root, "spec") else { return };
    set_if_empty(spec, "persistentVolumeReclaimPolicy", "Retain");
    set_if_absent(spec, "volumeMode", || json!("Filesystem"));
    if let Some(capacity) = child(spec, "capacity") {
        resource_list(capacity);
    }
}

fn persistent_volume_claim(root: &mut Fields) {
    pending(root);
    let Some(spec) = child(root, "spec") else { return };
    set_if_absent(spec, "volumeMode", || json!("Filesystem"));
    let Some(resources) = child(spec, "resources") else { return };
    for list in ["requests", "limits"] {
        if let Some(amounts) = child(resources, list) {
            resource_list(amounts);
        }
    }
}

/// What a volume or claim is before its controller has seen it.
fn pending(root: &mut Fields) {
    set_if_absent(root, "status", || json!({}));
    if let Some(status) = child(root, "status") {
        set_if_empty(status, "phase", "Pending");
    }
}

/// Makes the amounts of a resource list canonical, to a thousandth at most.
fn resource_list(amounts: &mut Fields) {
    for amount in amounts.values_mut() {
        if let Ok(quantity) = Quantity::from_json(amount) {
            *amount = quantity.rounded_to_millis().to_string().into();
        }
    }
}

/// Makes one amount canonical.
fn quantity(fields: &mut Fields, name: &str) {
    if let Some(amount) = fields.get_mut(name)
        && let Ok(quantity) = Quantity::from_json(amount)
    {
        *amount = quantity.to_string().into();
    }
}

/// The object in `name`, where there is one.
fn child<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    fields.get_mut(name)?.as_object_mut()
}

/// The objects in the list `name`.
fn children<'a>(fields: &'a mut Fields, name: &str) -> impl Iterator<Item = &'a mut Fields> {
    let list = fields.get_mut(name).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn set_if_absent(fields: &mut Fields, name: &str, value: impl FnOnce() -> Value) {
    if fields.get(name).is_none_or(Value::is_null) {
        fields.insert(name.to_owned(), value());
    }
}

fn set_if_empty(fields: &mut Fields, name: &str, text: &str) {
    let empty = |value: &Value| value.is_null() || value == "";
    if fields.get(name).is_none_or(empty) {
        fields.insert(name.to_owned(), text.into());
    }
}

fn set_if_zero(fields: &mut Fields, name: &str, number: i64) {
    let zero = |value: &Value| value.is_null() || value.as_i64() == Some(0);
    if fields.get(name).is_none_or(zero) {
        fields.insert(name.to_owned(), number.into());
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::resource;

    fn check(group: &str, kind: &str, mut object: Value, expected: &Expect) {
        let resource = resource::by_kind(group, kind).unwrap();
        apply(resource, &mut object);
        expected.assert_eq(&serde_json::to_string_pretty(&object).unwrap());
        let once = object.clone();
        apply(resource, &mut object);
        assert_eq!(object, once, "applying twice");
    }

    #[test]
    fn a_pod_says_everything() {
        check(
            "",
            "Pod",
            json!({"spec": {
                "restartPolicy": "",
                "containers": [{
                    "name": "c", "image": "registry:5000/app",
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}, "requests": {"cpu": "0.5"}},
                    "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                }],
                "volumes": [
                    {"name": "e"}, {"name": "c", "configMap": {"name": "x"}},
                    {"name": "t", "emptyDir": {"sizeLimit": "1000Mi"}},
                ],
            }}),
            &expect![[r#"
                {
                  "spec": {
                    "restartPolicy": "Always",
                    "containers": [
                      {
                        "name": "c",
                        "image": "registry:5000/app",
                        "ports": [
                          {
                            "containerPort": 80,
                            "protocol": "TCP"
                          }
                        ],
                        "resources": {
                          "limits": {
                            "cpu": "1",
                            "memory": "1Gi"
                          },
                          "requests": {
                            "cpu": "500m",
                            "memory": "1Gi"
                          }
                        },
                        "livenessProbe": {
                          "httpGet": {
                            "port": 80,
                            "path": "/",
                            "scheme": "HTTP"
                          },
                          "periodSeconds": 10,
                          "timeoutSeconds": 1,
                          "successThreshold": 1,
                          "failureThreshold": 3
                        },
                        "env": [
                          {
                            "name": "A",
                            "valueFrom": {
                              "fieldRef": {
                                "fieldPath": "metadata.name",
                                "apiVersion": "v1"
                              }
                            }
                          }
                        ],
                        "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File",
                        "imagePullPolicy": "Always"
                      }
                    ],
                    "volumes": [
                      {
                        "name": "e",
                        "emptyDir": {}
                      },
                      {
                        "name": "c",
                        "configMap": {
                          "name": "x",
                          "defaultMode": 420
                        }
                      },
                      {
                        "name": "t",
                        "emptyDir": {
                          "sizeLimit": "1000Mi"
                        }
                      }
                    ],
                    "dnsPolicy": "ClusterFirst",
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {},
                    "schedulerName": "default-scheduler",
                    "enableServiceLinks": true
                  },
                  "status": {}
                }"#]],
        );
    }

    #[test]
    fn a_deployment_rolls_by_quarters() {
        check(
            "apps",
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "c", "image": "a:1", "resources": {"limits": {"cpu": "1000m"}}}
            ], "serviceAccount": "x"}}}}),
            &expect![[r#"
                {
                  "spec": {
                    "template": {
                      "spec": {
                        "containers": [
                          {
                            "name": "c",
                            "image": "a:1",
                            "resources": {
                              "limits": {
                                "cpu": "1"
                              }
                            },
                            "terminationMessagePath": "/dev/termination-log",
                            "terminationMessagePolicy": "File",
                            "imagePullPolicy": "IfNotPresent"
                          }
                        ],
                        "serviceAccount": "x",
                        "restartPolicy": "Always",
                        "dnsPolicy": "ClusterFirst",
                        "terminationGracePeriodSeconds": 30,
                        "securityContext": {},
                        "schedulerName": "default-scheduler",
                        "serviceAccountName": "x"
                      },
                      "metadata": {}
                    },
                    "replicas": 1,
                    "revisionHistoryLimit": 10,
                    "progressDeadlineSeconds": 600,
                    "strategy": {
                      "type": "RollingUpdate",
                      "rollingUpdate": {
                        "maxUnavailable": "25%",
                        "maxSurge": "25%"
                      }
                    }
                  },
                  "status": {}
                }"#]],
        );
        let mut zero = json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
        apply(resource::by_kind("apps", "Deployment").unwrap(), &mut zero);
        assert_eq!(zero["spec"]["replicas"], 0);
        assert_eq!(zero["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn the_small_kinds() {
        check(
            "",
            "Secret",
            json!({"data": {"a": "MQ=="}, "stringData": {"a": "2", "b": "ä"}}),
            &expect![[r#"
                {
                  "data": {
                    "a": "Mg==",
                    "b": "w6Q="
                  },
                  "type": "Opaque"
                }"#]],
        );
        check(
            "",
            "Namespace",
            json!({"metadata": {"name": "shop"}}),
            &expect![[r#"
                {
                  "metadata": {
                    "name": "shop",
                    "labels": {
                      "kubernetes.io/metadata.name": "shop"
                    }
                  },
                  "spec": {},
                  "status": {}
                }"#]],
        );
        check(
            "",
            "Node",
            json!({"status": {"capacity": {"memory": "1048576Ki"}}}),
            &expect![[r#"
                {
                  "status": {
                    "capacity": {
                      "memory": "1Gi"
                    },
                    "allocatable": {
                      "memory": "1Gi"
                    }
                  },
                  "spec": {}
                }"#]],
        );
        check(
            "",
            "ConfigMap",
            json!({"data": {}}),
            &expect![[r#"
            {
              "data": {}
            }"#]],
        );
    }

    #[test]
    fn wrong_types_are_left_for_the_schema_check() {
        for kind in ["Pod", "Secret", "Namespace", "Node"] {
            let resource = resource::by_kind("", kind).unwrap();
            for mut object in [
                json!(1),
                json!({"spec": 1, "data": 1, "stringData": 1, "status": [], "metadata": "x"}),
                json!({"spec": {"containers": [1, {"image": 1, "env": {}}], "volumes": {}}}),
            ] {
                apply(resource, &mut object);
            }
        }
    }
}
