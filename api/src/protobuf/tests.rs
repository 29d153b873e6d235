//! Bodies that kubectl 1.35.2 really sent, what JSON they stand for, and damaged ones.
//!
//! `tools/schema/kubectl.py record` makes the bodies (the two of helm 4.1.4 were taken the
//! same way from an install and uninstall); `UPDATE_EXPECT=1` the JSON, which a
//! person then reads against the command in that file.

use expect_test::expect_file;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{MAGIC, MAX_BODY_BYTES, ProtobufError, decode};
use crate::schema::{strict, table, types};

macro_rules! recorded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../schema/tests/", $name, ".bin")).as_slice())),*]
    };
}

const RECORDED: [(&str, &[u8]); 21] = recorded![
    "autoscale",
    "can-i",
    "configmap",
    "cronjob",
    "deployment",
    "helm-delete",
    "helm-release",
    "ingress",
    "job",
    "namespace",
    "poddisruptionbudget",
    "priorityclass",
    "quota",
    "role",
    "rolebinding",
    "secret",
    "service",
    "service-headless",
    "serviceaccount",
    "token",
    "whoami",
];

fn recorded(name: &str) -> Value {
    let (_, body) = RECORDED.iter().find(|(recorded, _)| *recorded == name).unwrap();
    decode(body).unwrap()
}

/// One field of a message: a tag and a payload with a length.
fn bytes_field(tag: u8, payload: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    let mut length = payload.len();
    while length > 127 {
        field.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    field.push(u8::try_from(length).unwrap());
    field.extend_from_slice(payload);
    field
}

fn number_field(tag: u8, number: u8) -> Vec<u8> {
    vec![tag << 3, number]
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes_field(1, api_version.as_bytes()), bytes_field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes_field(1, &meta), bytes_field(2, raw)].concat()
}

fn check(api_version: &str, kind: &str, raw: &[u8], expected: &Value) {
    let mut value = decode(&envelope(api_version, kind, raw)).unwrap();
    let object = value.as_object_mut().unwrap();
    assert_eq!(object.remove("kind").unwrap(), kind);
    assert_eq!(object.remove("apiVersion").unwrap(), api_version);
    assert_eq!(value, *expected);
}

#[test]
fn kubectls_bodies_become_the_json_it_would_have_sent() {
    for (name, body) in RECORDED {
        let value = decode(body).unwrap();
        let text = format!("{}\n", serde_json::to_string_pretty(&value).unwrap());
        expect_file![format!("{}/schema/tests/{name}.json", env!("CARGO_MANIFEST_DIR"))]
            .assert_eq(&text);
        let (api_version, kind) = (&value["apiVersion"], &value["kind"]);
        let (group, version) = api_version.as_str().unwrap().split_once('/').unwrap_or(("", "v1"));
        let of = table().kind(group, version, kind.as_str().unwrap()).unwrap();
        assert_eq!(strict::check(of, &value), [], "{name}");
        assert_eq!(types::check(of, &value), [], "{name}");
    }
}

#[test]
fn what_the_command_said_is_in_the_json() {
    assert_eq!(recorded("configmap")["data"], json!({"a": "b", "empty": ""}));
    assert_eq!(recorded("configmap")["binaryData"], json!({"bin": "+vv8/f7/AHg="}));
    assert_eq!(recorded("secret")["data"], json!({"bin": "+vv8/f7/AHg=", "user": "YWRtaW4="}));
    assert_eq!(recorded("deployment")["spec"]["replicas"], 0);
    assert_eq!(recorded("service")["spec"]["ports"][0]["targetPort"], "http");
    assert_eq!(recorded("service-headless")["spec"]["ports"][0]["targetPort"], 5432);
    assert_eq!(
        recorded("quota")["spec"]["hard"],
        json!({"cpu": "1500m", "memory": "1Gi", "pods": "2"})
    );
    assert_eq!(recorded("poddisruptionbudget")["spec"]["minAvailable"], "50%");
    assert_eq!(recorded("priorityclass")["value"], -7);
    assert_eq!(recorded("helm-delete"), json!({"kind": "DeleteOptions", "apiVersion": "v1"}));
    let release = recorded("helm-release");
    assert_eq!(release["type"], "helm.sh/release.v1");
    assert_eq!(release["metadata"]["labels"]["owner"], "helm");
    assert!(release["data"]["release"].as_str().unwrap().len() > 500);
}

#[test]
fn delete_options_are_read_in_any_group() {
    let preconditions = [bytes_field(1, b"uid"), bytes_field(2, b"")].concat();
    let raw = [
        number_field(1, 0),
        bytes_field(2, &preconditions),
        bytes_field(4, b"Background"),
        bytes_field(5, b"All"),
    ]
    .concat();
    for api_version in ["v1", "meta.k8s.io/v1", "apps/v1", "example.com/v1beta3"] {
        check(
            api_version,
            "DeleteOptions",
            &raw,
            &json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "uid", "resourceVersion": ""},
                "propagationPolicy": "Background", "dryRun": ["All"]}),
        );
    }
}

#[test]
fn reviews_carry_lists_in_their_extra() {
    let extra = [
        bytes_field(1, b"scopes"),
        bytes_field(2, &[bytes_field(1, b"a"), bytes_field(1, b"")].concat()),
    ]
    .concat();
    let spec = [bytes_field(3, b"jane"), bytes_field(5, &extra), bytes_field(5, b"")].concat();
    check(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &bytes_field(2, &spec),
        &json!({"spec": {"user": "jane", "extra": {"scopes": ["a", ""], "": []}}}),
    );
}

#[test]
fn times_have_the_digits_of_their_type() {
    // 2026-11-23T07:45:00Z, once whole and once with 1,234 ns.
    let seconds = [0x08, 0xfc, 0xdd, 0x8f, 0xd8, 0x06];
    let micros = [seconds.as_slice(), &[0x10, 0xd2, 0x09]].concat();
    let spec = [bytes_field(1, b""), bytes_field(3, b""), bytes_field(4, &micros)].concat();
    let metadata = [bytes_field(1, b"l"), bytes_field(8, &micros), bytes_field(9, b"")].concat();
    let raw = [bytes_field(1, &metadata), bytes_field(2, &spec)].concat();
    let mut value = decode(&envelope("coordination.k8s.io/v1", "Lease", &raw)).unwrap();
    let created = value["metadata"]["creationTimestamp"].take();
    let renewed = value["spec"]["renewTime"].take();
    assert_eq!(created, "2026-11-23T07:45:00Z");
    assert_eq!(renewed, "2026-11-23T07:45:00.000001Z");
    assert_eq!(
        value,
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": "l", "creationTimestamp": null},
            "spec": {"holderIdentity": "", "renewTime": null}})
    );
}

#[test]
fn volumes_and_probes_are_flattened() {
    let host_path = bytes_field(1, &bytes_field(1, b"/var"));
    let volume = [bytes_field(1, b"v"), bytes_field(2, &host_path)].concat();
    let handler =
        bytes_field(2, &[bytes_field(1, b"/"), bytes_field(2, &number_field(2, 80))].concat());
    let probe = [bytes_field(1, &handler), number_field(2, 0), number_field(3, 1)].concat();
    let key = [bytes_field(1, &bytes_field(1, b"secret")), bytes_field(2, b"key")].concat();
    let env = [bytes_field(1, b"E"), bytes_field(3, &bytes_field(4, &key))].concat();
    let quantity = [bytes_field(1, b"cpu"), bytes_field(2, &bytes_field(1, b"100m"))].concat();
    let container = [
        bytes_field(1, b"c"),
        bytes_field(7, &env),
        bytes_field(8, &bytes_field(1, &quantity)),
        bytes_field(10, &probe),
        vec![0x80, 0x01, 0x00], // stdin = 16, false
    ]
    .concat();
    let spec = [bytes_field(1, &volume), bytes_field(2, &container)].concat();
    check(
        "v1",
        "Pod",
        &[bytes_field(1, b""), bytes_field(2, &spec), bytes_field(3, b"")].concat(),
        &json!({"metadata": {}, "spec": {
            "volumes": [{"name": "v", "hostPath": {"path": "/var"}}],
            "containers": [{
                "name": "c",
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "key"}}}],
                "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "timeoutSeconds": 1},
            }],
        }, "status": {}}),
    );
}

#[test]
fn schemas_of_custom_resources_are_read() {
    let string = bytes_field(5, b"string");
    let pairs = |name: &[u8], value: &[u8]| [bytes_field(1, name), bytes_field(2, value)].concat();
    let two_byte = |tag: u16, payload: &[u8]| {
        let mut field = vec![u8::try_from((tag << 3 | 2) & 127).unwrap() | 128];
        field.push(u8::try_from(tag >> 4).unwrap());
        field.push(u8::try_from(payload.len()).unwrap());
        field.extend_from_slice(payload);
        field
    };
    let of = table()
        .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .unwrap();
    let tag = |name: &str| u16::try_from(of.field(name).unwrap().tag()).unwrap();
    let schema = [
        bytes_field(5, b"object"),
        bytes_field(8, &bytes_field(1, br#"{"a":[1]}"#)),
        two_byte(tag("enum"), &bytes_field(1, b"\"x\"")),
        two_byte(tag("items"), &bytes_field(1, &string)),
        two_byte(tag("properties"), &pairs(b"p", &string)),
        two_byte(tag("additionalProperties"), &[number_field(1, 0)].concat()),
    ]
    .concat();
    let version = bytes_field(4, &bytes_field(1, &schema));
    let version = [bytes_field(1, b"v1"), number_field(2, 1), number_field(3, 0), version].concat();
    check(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        &bytes_field(2, &bytes_field(7, &version)),
        &json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": false,
        "schema": {"openAPIV3Schema": {
            "type": "object",
            "default": {"a": [1]},
            "enum": ["x"],
            "items": {"type": "string"},
            "properties": {"p": {"type": "string"}},
            "additionalProperties": false,
        }}}]}}),
    );
}

#[test]
fn unknown_tags_are_skipped_and_unknown_kinds_are_not() {
    let raw = [vec![0xf8, 0x3f, 0x01], bytes_field(1, &bytes_field(1, b"n"))].concat();
    check("v1", "Namespace", &raw, &json!({"metadata": {"name": "n"}}));
    let error = decode(&envelope("example.com/v1", "Widget", b"")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no kind \"Widget\" is registered for version \"example.com/v1\""
    );
}

#[test]
fn damage_is_named() {
    let error = |body: &[u8]| decode(body).unwrap_err().to_string();
    assert!(error(b"{}").contains("does not begin with"));
    assert!(error(&vec![0; MAX_BODY_BYTES + 1]).contains("more than"));
    assert_eq!(
        error(&envelope("v1", "Pod", &bytes_field(2, &bytes_field(2, &bytes_field(1, &[0xff]))))),
        "Container.name: text is not UTF-8"
    );
    assert_eq!(
        error(&envelope("v1", "Pod", &number_field(1, 1))),
        "Pod.metadata: wire type is not that of the field"
    );
    assert!(error(&envelope("v1", "Pod", &[0x0a, 0x05])).contains("cut short"));
    let compressed = [envelope("v1", "Pod", b""), bytes_field(3, b"gzip")].concat();
    assert!(error(&compressed).contains("\"gzip\""));
}

#[test]
fn nesting_and_size_are_bounded() {
    let mut schema = Vec::new();
    for _ in 0..300 {
        schema = not_field(&schema);
    }
    let version = bytes_field(4, &bytes_field(1, &schema));
    let body = envelope(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        &bytes_field(2, &bytes_field(7, &version)),
    );
    assert!(matches!(decode(&body), Err(ProtobufError::TooDeep { .. })));

    let containers = bytes_field(2, b"").repeat(super::MAX_VALUES + 1);
    let body = envelope("v1", "Pod", &bytes_field(2, &containers));
    assert_eq!(decode(&body), Err(ProtobufError::TooManyValues));
}

/// A schema inside `not`.
fn not_field(schema: &[u8]) -> Vec<u8> {
    let of = table()
        .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .unwrap();
    let key = of.field("not").unwrap().tag() << 3 | 2;
    let mut field = vec![u8::try_from(key & 127).unwrap() | 128, u8::try_from(key >> 7).unwrap()];
    field.extend_from_slice(&bytes_field(1, schema)[1..]);
    field
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
        let _ = decode(&[MAGIC, &bytes].concat());
        for (api_version, kind) in [("v1", "Pod"), ("v1", "Event"), ("v1", "PersistentVolume"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition")]
        {
            let _ = decode(&envelope(api_version, kind, &bytes));
        }
    }

    #[test]
    fn real_bodies_that_were_cut_or_changed_do_not_panic(
        which in 0..RECORDED.len(), cut in 0.0..1.0_f64, at in any::<prop::sample::Index>(),
        byte in any::<u8>())
    {
        let (_, body) = RECORDED[which];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let length = (body.len() as f64 * cut) as usize;
        let _ = decode(&body[..length]);
        let mut changed = body.to_vec();
        let at = at.index(changed.len());
        changed[at] = byte;
        if let Ok(value) = decode(&changed) {
            // What is accepted can be printed and read again.
            let text = serde_json::to_vec(&value).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), value);
        }
    }
}
