//! Known facts about Kubernetes' types, and that nothing in the table dangles.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn core(name: &str) -> TypeRef {
    table().by_name(&format!("io.k8s.api.core.v1.{name}")).unwrap()
}

/// `spec.containers.ports` from a kind: the last field.
fn field(group: &str, version: &str, kind: &str, path: &str) -> Field {
    let mut of = table().kind(group, version, kind).unwrap();
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
    for name in parents.split('.').filter(|name| !name.is_empty()) {
        of = of.field(name).unwrap().shape().object().unwrap();
    }
    of.field(last).unwrap_or_else(|| panic!("{kind} has no {path}"))
}

fn keys(of: Field) -> Vec<&'static str> {
    of.list_map_keys().collect()
}

#[test]
fn nothing_in_the_table_dangles() {
    let mut descriptions = Descriptions::default();
    let mut n_fields = 0;
    for of in table().types() {
        assert_eq!(table().by_name(of.name()), Some(of));
        descriptions.of_type(of);
        for gvk in of.kinds() {
            assert_eq!(table().kind(gvk.group, gvk.version, gvk.kind), Some(of), "{gvk:?}");
        }
        for field in of.fields() {
            n_fields += 1;
            assert_eq!(of.field(field.name()).unwrap().tag(), field.tag());
            descriptions.of_field(field);
            if let Some(target) = field.definition() {
                assert_eq!(table().by_name(target.name()), Some(target));
            }
            if field.tag() != 0 {
                assert_eq!(of.field_by_tag(field.tag()).unwrap().name(), field.name());
            }
            assert_eq!(
                field.explicit_list_type() == Some(ListType::Map),
                field.list_map_keys().len() > 0,
                "{of:?} {field:?}"
            );
            for key in field.list_map_keys().chain(field.merge_key()) {
                let elements = field.shape().object();
                assert!(elements.is_none_or(|e| e.field(key).is_some()), "{of:?} {field:?} {key}");
            }
        }
    }
    assert!(n_fields > 2000, "{n_fields}");
}

#[test]
fn every_field_travels_in_protobuf() {
    for of in table().types().filter(|of| of.name() != "io.k8s.apimachinery.pkg.version.Info") {
        for field in of.fields().filter(|field| field.tag() == 0) {
            let inlined = (1..200)
                .filter_map(|tag| of.inlined_by_tag(tag))
                .any(|inner| inner.field(field.name()).is_some_and(|inner| inner.tag() != 0));
            assert!(inlined || ["apiVersion", "kind"].contains(&field.name()), "{of:?} {field:?}");
        }
    }
}

#[test]
fn every_kind_of_the_design_is_there() {
    let kinds = [
        (
            "",
            "v1",
            "Binding ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume \
          PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service \
          ServiceAccount Status",
        ),
        ("apps", "v1", "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet"),
        ("batch", "v1", "CronJob Job"),
        ("autoscaling", "v1", "HorizontalPodAutoscaler Scale"),
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ("policy", "v1", "Eviction PodDisruptionBudget"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRole ClusterRoleBinding Role RoleBinding"),
        ("coordination.k8s.io", "v1", "Lease"),
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        ("events.k8s.io", "v1", "Event"),
        ("networking.k8s.io", "v1", "Ingress IngressClass NetworkPolicy"),
        ("node.k8s.io", "v1", "RuntimeClass"),
        ("scheduling.k8s.io", "v1", "PriorityClass"),
        ("storage.k8s.io", "v1", "CSIDriver CSINode StorageClass VolumeAttachment"),
        ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        ("apiregistration.k8s.io", "v1", "APIService"),
        ("authentication.k8s.io", "v1", "SelfSubjectReview TokenRequest TokenReview"),
        (
            "authorization.k8s.io",
            "v1",
            "LocalSubjectAccessReview SelfSubjectAccessReview \
          SelfSubjectRulesReview SubjectAccessReview",
        ),
    ];
    for (group, version, names) in kinds {
        for kind in names.split_whitespace() {
            let of = table().kind(group, version, kind);
            assert_eq!(of.map(TypeRef::short_name), Some(kind), "{group}/{version}");
        }
    }
    for group in ["", "apps", "example.com"] {
        let of = table().kind(group, "v1", "DeleteOptions").unwrap();
        assert_eq!(of.name(), "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    }
    assert!(table().kind("example.com", "v1", "Pod").is_none());
    assert!(table().kind("", "v1", "pod").is_none());
}

#[test]
fn lists_merge_as_kubernetes_merges_them() {
    let containers = field("", "v1", "Pod", "spec.containers");
    assert_eq!(containers.list_type(), ListType::Map);
    assert_eq!(keys(containers), ["name"]);
    assert_eq!(containers.merge_key(), Some("name"));
    assert_eq!(containers.patch_strategy(), PatchStrategy { merge: true, ..Default::default() });
    assert!(containers.required());
    assert_eq!(containers.shape(), Shape::List(Element::Object(core("Container"))));

    let volumes = field("", "v1", "Pod", "spec.volumes").patch_strategy();
    assert_eq!(volumes, PatchStrategy { merge: true, retain_keys: true, replace: false });
    let strategy = field("apps", "v1", "Deployment", "spec.strategy").patch_strategy();
    assert_eq!(strategy, PatchStrategy { retain_keys: true, ..Default::default() });

    let service_ports = field("", "v1", "Service", "spec.ports");
    assert_eq!(keys(service_ports), ["port", "protocol"]);
    assert_eq!(service_ports.merge_key(), Some("port"));
    let container_ports = field("apps", "v1", "Deployment", "spec.template.spec.containers.ports");
    assert_eq!(keys(container_ports), ["containerPort", "protocol"]);
    assert_eq!(container_ports.merge_key(), Some("containerPort"));
    let protocol = container_ports.shape().object().unwrap().field("protocol").unwrap();
    assert_eq!(protocol.key_default(), Some("TCP"));

    assert_eq!(field("", "v1", "Pod", "spec.tolerations").list_type(), ListType::Atomic);
    assert_eq!(field("", "v1", "Pod", "spec.containers.args").list_type(), ListType::Atomic);
    assert_eq!(keys(field("", "v1", "Pod", "spec.imagePullSecrets")), ["name"]);
    assert_eq!(field("", "v1", "Pod", "metadata.finalizers").list_type(), ListType::Set);
    assert!(field("", "v1", "Pod", "metadata.finalizers").patch_strategy().merge);
    assert_eq!(keys(field("", "v1", "Pod", "metadata.ownerReferences")), ["uid"]);
    assert_eq!(keys(field("", "v1", "Pod", "status.conditions")), ["type"]);
    assert!(field("apps", "v1", "Deployment", "spec.selector").map_atomic());
    assert!(field("", "v1", "Pod", "spec.nodeSelector").map_atomic());
    assert!(field("", "v1", "Pod", "spec.containers.env.valueFrom.fieldRef").map_atomic());
    assert!(!field("", "v1", "Pod", "metadata.labels").map_atomic());
    // ObjectReference is atomic, but this use of it is declared granular.
    assert!(!field("", "v1", "PersistentVolume", "spec.claimRef").map_atomic());
}

#[test]
fn tags_and_inlined_messages_are_those_of_the_proto_files() {
    let tags = |of: TypeRef| {
        of.fields().map(|f| (f.name(), f.tag())).filter(|(_, tag)| *tag != 0).collect::<Vec<_>>()
    };
    assert_eq!(tags(core("Pod")), [("metadata", 1), ("spec", 2), ("status", 3)]);
    assert_eq!(
        tags(core("ConfigMap")),
        [("binaryData", 3), ("data", 2), ("immutable", 4), ("metadata", 1)]
    );
    assert_eq!(field("", "v1", "Pod", "spec.initContainers").tag(), 20);
    let source = core("Volume").inlined_by_tag(2).unwrap();
    assert_eq!(source.field_by_tag(1).unwrap().name(), "hostPath");
    assert_eq!(core("Volume").field("hostPath").unwrap().tag(), 0);
    assert!(core("Probe").inlined_by_tag(1).unwrap().field("httpGet").is_some());
    assert!(core("SecretKeySelector").inlined_by_tag(1).unwrap().field("name").is_some());
    assert!(core("Pod").field_by_tag(0).is_none());
}

#[test]
fn scalars_are_told_apart() {
    let scalar = |kind: &str, path: &str| field("", "v1", kind, path).shape();
    assert_eq!(scalar("Secret", "data"), Shape::Map(Element::Scalar(Scalar::Bytes)));
    assert_eq!(scalar("Secret", "stringData"), Shape::Map(Element::Scalar(Scalar::String)));
    assert_eq!(
        scalar("Pod", "spec.containers.resources.limits"),
        Shape::Map(Element::Scalar(Scalar::Quantity))
    );
    assert_eq!(scalar("Service", "spec.ports.targetPort"), Shape::Scalar(Scalar::IntOrString));
    assert_eq!(scalar("Pod", "metadata.creationTimestamp"), Shape::Scalar(Scalar::Time));
    assert_eq!(scalar("Event", "eventTime"), Shape::Scalar(Scalar::MicroTime));
    assert_eq!(
        field("authorization.k8s.io", "v1", "SubjectAccessReview", "spec.extra").shape(),
        Shape::Map(Element::Strings)
    );
}

#[test]
fn descriptions_are_those_of_kubernetes() {
    assert!(core("Pod").description().starts_with("Pod is a collection of containers"));
    let containers = field("", "v1", "Pod", "spec.containers").description();
    assert!(containers.starts_with("List of containers belonging to the pod."), "{containers}");
}

fn deployment(spec: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec})
}

fn deployment_type() -> TypeRef {
    table().kind("apps", "v1", "Deployment").unwrap()
}

#[test]
fn unknown_fields_are_named_with_their_path() {
    let value = deployment(&json!({
        "replicaz": 1,
        "Replicas": 2,
        "template": {"metadata": {"labels": {"any": "key"}, "lables": {}}, "spec": {"containers": [
            {"name": "a"},
            {"name": "b", "imagee": "x", "resources": {"limits": {"any/thing": "1"}, "limit": {}}},
        ]}},
    }));
    let errors: Vec<_> =
        strict::check(deployment_type(), &value).iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "unknown field \"spec.replicaz\"",
            "unknown field \"spec.Replicas\"",
            "unknown field \"spec.template.metadata.lables\"",
            "unknown field \"spec.template.spec.containers[1].imagee\"",
            "unknown field \"spec.template.spec.containers[1].resources.limit\"",
        ]
    );
    let mut pruned = value;
    prune_unknown(deployment_type(), &mut pruned);
    assert_eq!(strict::check(deployment_type(), &pruned), []);
    assert_eq!(pruned["spec"]["template"]["metadata"]["labels"]["any"], "key");
}

#[test]
fn errors_are_capped() {
    let fields: serde_json::Map<_, _> = (0..500).map(|n| (format!("f{n}"), json!(1))).collect();
    let value = deployment(&Value::Object(fields));
    assert_eq!(strict::check(deployment_type(), &value).len(), MAX_ERRORS);
    let labels: serde_json::Map<_, _> = (0..500).map(|n| (format!("f{n}"), json!(1))).collect();
    let value = json!({"metadata": {"labels": labels}});
    assert_eq!(types::check(deployment_type(), &value).len(), MAX_ERRORS);
}

#[test]
fn a_schema_nested_without_end_is_refused() {
    let crd = table().kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    let mut schema = json!({});
    for _ in 0..200 {
        schema = json!({"not": schema});
    }
    let value = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
    let errors = strict::check(crd, &value);
    assert!(matches!(errors.as_slice(), [strict::StrictError::TooDeep { .. }]), "{errors:?}");
    assert_eq!(types::check(crd, &value), []);
    let mut pruned = value;
    prune_unknown(crd, &mut pruned);
}

#[test]
fn null_means_not_given() {
    let mut value = json!({
        "metadata": {"name": "a", "labels": {"a": null}, "annotations": null, "finalizers": [null]},
        "spec": {"containers": [null, {"name": "b", "command": null}], "hostNetwork": null},
    });
    let pod = table().kind("", "v1", "Pod").unwrap();
    assert_eq!(types::check(pod, &value), []);
    prune_unknown(pod, &mut value);
    assert_eq!(
        value,
        json!({
            "metadata": {"name": "a", "labels": {"a": ""}, "finalizers": [""]},
            "spec": {"containers": [{}, {"name": "b"}]},
        })
    );
}

#[test]
fn wrong_types_are_named_with_their_path() {
    let value = deployment(&json!({
        "replicas": "3",
        "minReadySeconds": 1.5,
        "revisionHistoryLimit": 3_000_000_000_u64,
        "paused": 1,
        "selector": [],
        "template": {"metadata": {"labels": {"a": 1}, "creationTimestamp": "yesterday"},
          "spec": {"containers": [
            {"name": "b", "image": {}, "args": "x", "ports": [{"containerPort": "http"}],
             "resources": {"limits": {"cpu": "1 core", "memory": 5, "x": true}},
             "livenessProbe": {"httpGet": {"port": false}}},
            7,
        ]}},
    }));
    let errors: Vec<_> =
        types::check(deployment_type(), &value).iter().map(|e| format!("{e}\n")).collect();
    expect_test::expect![[r#"
        json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32
        json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.minReadySeconds of type int32
        json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.revisionHistoryLimit of type int32
        json: cannot unmarshal number into Go struct field DeploymentSpec.spec.paused of type bool
        json: cannot unmarshal array into Go struct field DeploymentSpec.spec.selector of type v1.LabelSelector
        json: cannot unmarshal number into Go struct field ObjectMeta.spec.template.metadata.labels.a of type string
    "#]]
    .assert_eq(&errors[..6].concat());
    let rest: Vec<_> = errors[6..].iter().map(|e| e.split([':', '\n']).next().unwrap()).collect();
    assert_eq!(rest[0], "spec.template.metadata.creationTimestamp");
    let text = errors[7..].concat();
    for part in [
        "Container.spec.template.spec.containers[0].image of type string",
        "Container.spec.template.spec.containers[0].args of type []string",
        "ContainerPort.spec.template.spec.containers[0].ports[0].containerPort of type int32",
        "spec.template.spec.containers[0].resources.limits.cpu: quantities must match",
        "containers[0].resources.limits.x of type resource.Quantity",
        "HTTPGetAction.spec.template.spec.containers[0].livenessProbe.httpGet.port of type intstr",
        "PodSpec.spec.template.spec.containers[1] of type v1.Container",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(errors.len(), 14, "{text}");
    assert_eq!(types::check(deployment_type(), &json!([]))[0].path, "");
}

#[test]
fn secrets_must_be_base64() {
    let secret = table().kind("", "v1", "Secret").unwrap();
    assert_eq!(types::check(secret, &json!({"data": {"a": "aGk=", "b": "aG\nk=", "c": ""}})), []);
    let errors = types::check(secret, &json!({"data": {"key": "plain text"}}));
    assert!(errors[0].to_string().starts_with("data.key: illegal base64 data"), "{errors:?}");
    // The value may be the secret itself.
    assert!(!errors[0].to_string().contains("plain text"));
}

#[test]
fn duplicate_fields_are_named_with_their_path() {
    let text = br#"{"spec":{"replicas":1,"replicas":2,"replicas":3,
        "containers":[{},{"env":[],"name":"a","name":"b"}]},"a.b":1,"a.b":2,"spec":{"x":"{\"y\":1}"}}"#;
    assert_eq!(
        duplicates(text),
        [
            "duplicate field \"spec.replicas\"",
            "duplicate field \"spec.containers[1].name\"",
            "duplicate field \"a.b\"",
            "duplicate field \"spec\"",
        ]
    );
    assert!(duplicates(br#"{"a":{"x":1},"b":{"x":1},"c":[1,1,null,true,-1,1.5]}"#).is_empty());
    assert!(duplicates(&[b'['; 100_000]).is_empty());
    assert_eq!(duplicates(br#"{"a":1,"a":2,"b"#), ["duplicate field \"a\""]);
}

/// JSON of any shape, with keys that types have and keys that none has.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,8}".prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "metadata",
        "labels",
        "spec",
        "template",
        "containers",
        "ports",
        "env",
        "resources",
        "limits",
        "volumes",
        "secret",
        "items",
        "status",
        "replicas",
        "strategy",
        "unknown",
    ]);
    leaf.prop_recursive(8, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn nothing_unknown_is_left_after_pruning(mut value in any_json()) {
        for kind in ["Deployment", "DeploymentList"] {
            let of = table().kind("apps", "v1", kind).unwrap();
            let errors = types::check(of, &value);
            prop_assert!(errors.len() <= MAX_ERRORS);
            prune_unknown(of, &mut value);
            prop_assert_eq!(strict::check(of, &value), []);
            let once = value.clone();
            prune_unknown(of, &mut value);
            prop_assert_eq!(&value, &once);
        }
    }

    #[test]
    fn duplicates_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(duplicates(&bytes).len() <= 100);
    }

    #[test]
    fn quantities_are_told_from_other_text(number in "[+-]?[0-9]{1,5}(\\.[0-9]{1,3})?",
        suffix in "(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[+-]?[0-9]{1,2}|E[+-]?[0-9]{1,2})")
    {
        let pod = table().kind("", "v1", "ResourceQuota").unwrap();
        let value = json!({"spec": {"hard": {"a": format!("{number}{suffix}")}}});
        prop_assert_eq!(types::check(pod, &value), []);
        let value = json!({"spec": {"hard": {"a": format!("{suffix}x{number}")}}});
        prop_assert_eq!(types::check(pod, &value).len(), 1);
    }
}
