//! Rules on ConfigMaps and Secrets.

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine as _};
use serde_json::Value;

use super::{Errors, Fields, Path, Reason, fields, flag, text};
use crate::names;

/// Bytes that one ConfigMap or Secret may hold.
const SIZE_MAX: usize = 1024 * 1024;

const DATA: Path<'static> = Path::Field(&Path::Root, "data");
const BINARY_DATA: Path<'static> = Path::Field(&Path::Root, "binaryData");
const TYPE: Path<'static> = Path::Field(&Path::Root, "type");

pub(super) fn config_map(root: &Fields, errors: &mut Errors) {
    let (data, binary) = (fields(root, "data"), fields(root, "binaryData"));
    let mut size = 0;
    for (key, value) in data {
        errors.invalid_all(&DATA.key(key), key, &names::config_map_key(key));
        if binary.contains_key(key) {
            errors.invalid(&DATA.key(key), key, "duplicate of key present in binaryData");
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in binary {
        errors.invalid_all(&BINARY_DATA.key(key), key, &names::config_map_key(key));
        size += base64_length(&BINARY_DATA, key, value, errors);
    }
    if size > SIZE_MAX {
        // Kubernetes names no field here; its path is printed so.
        errors.too_long(&Path::Root.field("[]"), SIZE_MAX);
    }
}

pub(super) fn config_map_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    immutable(old, new, &["data", "binaryData"], errors);
}

pub(super) fn secret(root: &Fields, errors: &mut Errors) {
    let data = fields(root, "data");
    let mut size = 0;
    for (key, value) in data {
        errors.invalid_all(&DATA.key(key), key, &names::config_map_key(key));
        size += base64_length(&DATA, key, value, errors);
    }
    if size > SIZE_MAX {
        errors.too_long(&DATA, SIZE_MAX);
    }
    let needed: &[&str] = match text(root, "type") {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/basic-auth"
            if !data.contains_key("username") && !data.contains_key("password") =>
        {
            &["username", "password"]
        }
        "kubernetes.io/service-account-token" => {
            let annotations = fields(fields(root, "metadata"), "annotations");
            let account = "kubernetes.io/service-account.name";
            if text(annotations, account).is_empty() {
                let metadata = Path::Root.field("metadata");
                errors.required(&metadata.field("annotations").key(account), "");
            }
            &[]
        }
        _ => &[],
    };
    for key in needed.iter().filter(|key| !data.contains_key(**key)) {
        errors.required(&DATA.key(key), "");
    }
    for key in needed.iter().filter(|key| key.starts_with(".docker")) {
        let json = data.get(*key).and_then(Value::as_str).and_then(|t| STANDARD.decode(t).ok());
        if json.is_some_and(|json| serde_json::from_slice::<Value>(&json).is_err()) {
            // The value is a secret, so that it is not shown.
            errors.push(
                &DATA.key(key),
                Reason::Invalid,
                "\"<secret contents redacted>\"",
                "must be JSON",
            );
        }
    }
}

pub(super) fn secret_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    if text(old, "type") != text(new, "type") {
        errors.invalid(&TYPE, text(new, "type"), "field is immutable");
    }
    immutable(old, new, &["data"], errors);
}

fn immutable(old: &Fields, new: &Fields, data: &[&str], errors: &mut Errors) {
    if !flag(old, "immutable") {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if !flag(new, "immutable") {
        errors.forbidden(&Path::Root.field("immutable"), detail);
    }
    for field in data {
        if fields(old, field) != fields(new, field) {
            errors.forbidden(&Path::Root.field(field), detail);
        }
    }
}

/// Bytes behind a base64 text; an error where it is none.
fn base64_length(path: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) -> usize {
    match STANDARD.decode(value.as_str().unwrap_or_default()) {
        Ok(bytes) => bytes.len(),
        Err(error) => {
            // Without the byte itself: it is part of a secret.
            let detail = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => {
                    format!("illegal base64 data at input byte {at}")
                }
                _ => "illegal base64 data: wrong length or padding".to_owned(),
            };
            errors.push(&path.key(key), Reason::Invalid, "\"<contents redacted>\"", &detail);
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::super::tests::{check_create, check_update};

    #[test]
    fn keys_and_sizes_of_config_maps() {
        check_create(
            "",
            "ConfigMap",
            json!({"metadata": {"name": "a", "namespace": "b"},
                "data": {"a/b": "x", "ok": "y"}, "binaryData": {"ok": "AA==", "bad": "?"}}),
            &expect![[r#"
                Invalid data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
                Invalid data[ok]: Invalid value: "ok": duplicate of key present in binaryData
                Invalid binaryData[bad]: Invalid value: "<contents redacted>": illegal base64 data at input byte 0
            "#]],
        );
        check_create(
            "",
            "ConfigMap",
            json!({"metadata": {"name": "a", "namespace": "b"}, "data": {"a": "x".repeat(1024 * 1024 + 1)}}),
            &expect![[r#"
                TooLong []: Too long: may not be more than 1048576 bytes
            "#]],
        );
    }

    #[test]
    fn immutable_data_stays() {
        let old = json!({"metadata": {"name": "a", "namespace": "b"}, "immutable": true, "data": {"a": "1"}});
        let new = json!({"metadata": {"name": "a", "namespace": "b"}, "data": {"a": "2"}});
        check_update(
            "",
            "ConfigMap",
            &old,
            &new,
            &expect![[r#"
            Forbidden immutable: Forbidden: field is immutable when `immutable` is set
            Forbidden data: Forbidden: field is immutable when `immutable` is set
        "#]],
        );
        check_update("", "ConfigMap", &old, &old, &expect![""]);
        check_update("", "ConfigMap", &new, &old, &expect![""]);
    }

    #[test]
    fn typed_secrets_have_their_keys_and_are_never_shown() {
        let secret = |kind: &str, data| json!({"metadata": {"name": "a", "namespace": "b"}, "type": kind, "data": data});
        check_create(
            "",
            "Secret",
            secret("kubernetes.io/tls", json!({"tls.crt": ""})),
            &expect![[r#"
            Required data[tls.key]: Required value
        "#]],
        );
        check_create(
            "",
            "Secret",
            secret("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "c2VjcmV0"})),
            &expect![[r#"
                Invalid data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": must be JSON
            "#]],
        );
        check_create(
            "",
            "Secret",
            secret("helm.sh/release.v1", json!({"release": "AA=="})),
            &expect![""],
        );
        check_update(
            "",
            "Secret",
            &secret("a", json!({})),
            &secret("b", json!({})),
            &expect![[r#"
                Invalid type: Invalid value: "b": field is immutable
            "#]],
        );
    }
}
