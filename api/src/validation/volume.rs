//! Rules on the volumes of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Errors, Fields, Path, container, number, object, objects, text};
use crate::names;
use crate::quantity::Quantity;

/// Names of the volumes that containers may mount.
pub(super) type Volumes<'a> = BTreeSet<&'a str>;

/// What a hostPath may be.
const HOST_PATH_TYPES: &[&str] = &[
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
/// Largest mode of a file.
const MODE_MAX: i64 = 0o777;

/// Checks all volumes; returns the names of those that have one.
pub(super) fn volumes<'a>(path: &Path<'_>, spec: &'a Fields, errors: &mut Errors) -> Volumes<'a> {
    let at = path.field("volumes");
    let mut names_seen = Volumes::new();
    for (n, volume) in objects(spec, "volumes") {
        let at = at.index(n);
        let name = text(volume, "name");
        let wrong = names::dns1123_label(name);
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        } else {
            errors.invalid_all(&at.field("name"), name, &wrong);
            if !names_seen.insert(name) {
                errors.duplicate(&at.field("name"), name);
            }
        }
        source(&at, volume, errors);
    }
    names_seen
}

fn source(path: &Path<'_>, volume: &Fields, errors: &mut Errors) {
    let mut sources = volume.iter().filter(|(name, value)| *name != "name" && !value.is_null());
    if sources.next().is_none() {
        errors.required(path, "must specify a volume type");
    }
    for (name, _) in sources {
        errors.forbidden(&path.field(name), "may not specify more than 1 volume type");
    }
    if let Some(map) = object(volume, "configMap") {
        let at = path.field("configMap");
        if text(map, "name").is_empty() {
            errors.required(&at.field("name"), "");
        }
        files(&at, map, errors);
    }
    if let Some(secret) = object(volume, "secret") {
        let at = path.field("secret");
        if text(secret, "secretName").is_empty() {
            errors.required(&at.field("secretName"), "");
        }
        files(&at, secret, errors);
    }
    if let Some(folder) = object(volume, "emptyDir") {
        let at = path.field("emptyDir");
        if let Some(limit) = folder.get("sizeLimit").and_then(|v| Quantity::from_json(v).ok())
            && limit.is_negative()
        {
            errors.forbidden(
                &at.field("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            );
        }
    }
    if let Some(host) = object(volume, "hostPath") {
        let at = path.field("hostPath");
        match text(host, "path") {
            "" => errors.required(&at.field("path"), ""),
            name if name.split('/').any(|part| part == "..") => {
                errors.invalid(&at.field("path"), name, "must not contain '..'");
            }
            name if !name.starts_with('/') => {
                errors.invalid(&at.field("path"), name, "must be an absolute path");
            }
            _ => {}
        }
        errors.one_of(&at.field("type"), text(host, "type"), HOST_PATH_TYPES, false);
    }
    if let Some(projected) = object(volume, "projected") {
        let at = path.field("projected");
        mode(&at.field("defaultMode"), number(projected, "defaultMode"), errors);
        let list = at.field("sources");
        for (n, source) in objects(projected, "sources") {
            projection(&list.index(n), source, errors);
        }
    }
    if let Some(api) = object(volume, "downwardAPI") {
        downward(&path.field("downwardAPI"), api, errors);
    }
    if let Some(claim) = object(volume, "persistentVolumeClaim")
        && text(claim, "claimName").is_empty()
    {
        errors.required(&path.field("persistentVolumeClaim").field("claimName"), "");
    }
}

/// One source of a projected volume.
fn projection(path: &Path<'_>, source: &Fields, errors: &mut Errors) {
    for name in source.keys().skip(1) {
        errors.forbidden(&path.field(name), "may not specify more than 1 volume type");
    }
    for name in ["configMap", "secret"] {
        if let Some(keys) = object(source, name) {
            let at = path.field(name);
            if text(keys, "name").is_empty() {
                errors.required(&at.field("name"), "");
            }
            files(&at, keys, errors);
        }
    }
    if let Some(api) = object(source, "downwardAPI") {
        downward(&path.field("downwardAPI"), api, errors);
    }
    if let Some(token) = object(source, "serviceAccountToken") {
        let at = path.field("serviceAccountToken");
        match text(token, "path") {
            "" => errors.required(&at.field("path"), ""),
            name => local_path(&at.field("path"), name, errors),
        }
        let field = at.field("expirationSeconds");
        if let Some(seconds) = number(token, "expirationSeconds") {
            if seconds < 600 {
                errors.invalid_number(
                    &field,
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            } else if seconds > 1 << 32 {
                errors.invalid_number(
                    &field,
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
        }
    }
}

/// Files of a downwardAPI source.
fn downward(path: &Path<'_>, api: &Fields, errors: &mut Errors) {
    mode(&path.field("defaultMode"), number(api, "defaultMode"), errors);
    let list = path.field("items");
    for (n, file) in objects(api, "items") {
        let at = list.index(n);
        match text(file, "path") {
            "" => errors.required(&at.field("path"), ""),
            name => local_path(&at.field("path"), name, errors),
        }
        mode(&at.field("mode"), file.get("mode").and_then(Value::as_i64), errors);
        if let Some(field) = object(file, "resourceFieldRef") {
            container::resource_field_ref(&at.field("resourceFieldRef"), field, true, errors);
        }
    }
}

/// Modes, keys and paths of files from a ConfigMap or a Secret.
fn files(path: &Path<'_>, source: &Fields, errors: &mut Errors) {
    mode(&path.field("defaultMode"), number(source, "defaultMode"), errors);
    let list = path.field("items");
    for (n, file) in objects(source, "items") {
        let at = list.index(n);
        if text(file, "key").is_empty() {
            errors.required(&at.field("key"), "");
        }
        match text(file, "path") {
            "" => errors.required(&at.field("path"), ""),
            name => {
                local_path(&at.field("path"), name, errors);
                if name.starts_with("..") && name.split('/').all(|part| part != "..") {
                    errors.invalid(&at.field("path"), name, "must not start with '..'");
                }
            }
        }
        mode(&at.field("mode"), file.get("mode").and_then(Value::as_i64), errors);
    }
}

fn mode(path: &Path<'_>, mode: Option<i64>, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=MODE_MAX).contains(mode)) {
        errors.invalid_number(
            path,
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

/// A path that stays below where it starts.
pub(super) fn local_path(path: &Path<'_>, name: &str, errors: &mut Errors) {
    if name.starts_with('/') {
        errors.invalid(path, name, "must be a relative path");
    }
    if name.split('/').any(|part| part == "..") {
        errors.invalid(path, name, "must not contain '..'");
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::super::tests::check_create;

    #[test]
    fn volumes_have_one_source_and_safe_files() {
        check_create(
            "",
            "Pod",
            json!({
                "metadata": {"name": "a", "namespace": "b"},
                "spec": {
                    "containers": [{"name": "c", "image": "i"}],
                    "volumes": [
                        {"name": "a", "emptyDir": {"sizeLimit": "-1"}},
                        {"name": "a", "configMap": {}, "secret": {"secretName": "s", "defaultMode": 9999}},
                        {"configMap": {"name": "m", "items": [
                            {"key": "k", "path": "/etc"}, {"path": "a/../b"}, {"key": "k", "path": "..a", "mode": -1}]}},
                        {"name": "h", "hostPath": {"path": ""}},
                        {"name": "p", "persistentVolumeClaim": {}},
                    ],
                },
            }),
            &expect![[r#"
                Forbidden spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity
                Duplicate spec.volumes[1].name: Duplicate value: "a"
                Forbidden spec.volumes[1].secret: Forbidden: may not specify more than 1 volume type
                Required spec.volumes[1].configMap.name: Required value
                Invalid spec.volumes[1].secret.defaultMode: Invalid value: 9999: must be a number between 0 and 0777 (octal), both inclusive
                Required spec.volumes[2].name: Required value
                Invalid spec.volumes[2].configMap.items[0].path: Invalid value: "/etc": must be a relative path
                Required spec.volumes[2].configMap.items[1].key: Required value
                Invalid spec.volumes[2].configMap.items[1].path: Invalid value: "a/../b": must not contain '..'
                Invalid spec.volumes[2].configMap.items[2].path: Invalid value: "..a": must not start with '..'
                Invalid spec.volumes[2].configMap.items[2].mode: Invalid value: -1: must be a number between 0 and 0777 (octal), both inclusive
                Required spec.volumes[3].hostPath.path: Required value
                Required spec.volumes[4].persistentVolumeClaim.claimName: Required value
            "#]],
        );
    }
}
