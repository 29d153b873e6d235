//! Rules on PersistentVolumes, PersistentVolumeClaims and StorageClasses.
//!
//! Nodes have folders and nothing else, so a volume of any other source is
//! refused: accepted, it would keep pods waiting for ever.

use serde_json::Value;

use super::{Errors, Fields, Path, SPEC, fields, items, object, objects, text};
use crate::names;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;
use crate::storage::ONE_POD;

const ACCESS_MODES: &[&str] = &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", ONE_POD];
const BINDING_MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];
const NODE_OPERATORS: &[&str] = &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
/// Fields of a volume's spec that are no source.
const NO_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];
/// Sources that nodes have.
const SOURCES: &[&str] = &["local", "hostPath"];
const RESIZE: &str = "only dynamically provisioned pvc can be resized and the storageclass that \
                      provisions the pvc must support resize";

pub(super) fn volume(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    access_modes(spec, "", errors);
    let capacity = SPEC.field("capacity");
    let amounts = fields(spec, "capacity");
    if amounts.is_empty() {
        errors.required(&capacity, "");
    }
    for (name, amount) in amounts {
        if name == "storage" {
            positive(&capacity.key(name), amount, errors);
        } else {
            errors.not_supported(&capacity, name, &["storage"]);
        }
    }
    let policy = SPEC.field("persistentVolumeReclaimPolicy");
    match text(spec, "persistentVolumeReclaimPolicy") {
        "Recycle" => errors.forbidden(
            &policy,
            "Pinnace cannot do this: volumes are not recycled, use \"Retain\" or \"Delete\"",
        ),
        other => errors.one_of(&policy, other, &["Delete", "Retain"], false),
    }
    volume_mode(spec, errors);
    class_name(spec, errors);
    sources(spec, errors);
    node_affinity(spec, errors);
}

fn sources(spec: &Fields, errors: &mut Errors) {
    let mut first = None;
    for (name, source) in spec {
        if NO_SOURCES.contains(&name.as_str()) || source.is_null() {
            continue;
        }
        let at = SPEC.field(name);
        if first.is_some() {
            errors.forbidden(&at, "may not specify more than 1 volume type");
        } else if !SOURCES.contains(&name.as_str()) {
            errors.forbidden(
                &at,
                "Pinnace cannot do this: nodes have volumes of the types local and hostPath",
            );
        }
        first = Some(name);
    }
    if first.is_none() {
        errors.required(&SPEC, "must specify a volume type");
    }
    for name in SOURCES {
        let Some(source) = object(spec, name) else { continue };
        let source_at = SPEC.field(name);
        let at = source_at.field("path");
        match text(source, "path") {
            "" => errors.required(&at, ""),
            path if path.split('/').any(|part| part == "..") => {
                errors.invalid(&at, path, "must not contain '..'");
            }
            path if !path.starts_with('/') => {
                errors.invalid(&at, path, "must be an absolute path");
            }
            _ => {}
        }
    }
    if object(spec, "local").is_some() && object(spec, "nodeAffinity").is_none() {
        errors.required(&SPEC.field("nodeAffinity"), "Local volume requires node affinity");
    }
}

fn node_affinity(spec: &Fields, errors: &mut Errors) {
    let Some(affinity) = object(spec, "nodeAffinity") else { return };
    let path = SPEC.field("nodeAffinity");
    let required = path.field("required");
    let Some(terms) = object(affinity, "required") else {
        errors.required(&required, "must specify required node constraints");
        return;
    };
    let list = required.field("nodeSelectorTerms");
    if items(terms, "nodeSelectorTerms").is_empty() {
        errors.required(&list, "must have at least one node selector term");
    }
    for (n, term) in objects(terms, "nodeSelectorTerms") {
        let at = list.index(n);
        for field in ["matchExpressions", "matchFields"] {
            let list = at.field(field);
            for (n, expression) in objects(term, field) {
                let at = list.index(n);
                let key = text(expression, "key");
                errors.invalid_all(&at.field("key"), key, &names::qualified_name(key));
                let operator = text(expression, "operator");
                errors.one_of(&at.field("operator"), operator, NODE_OPERATORS, true);
                let values = at.field("values");
                match (operator, items(expression, "values").len()) {
                    ("In" | "NotIn", 0) => errors
                        .required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
                    ("Exists" | "DoesNotExist", 1..) => errors.forbidden(
                        &values,
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ),
                    ("Gt" | "Lt", n) if n != 1 => errors.required(
                        &values,
                        "must be specified single value when `operator` is 'Lt' or 'Gt'",
                    ),
                    _ => {}
                }
            }
        }
    }
}

pub(super) fn volume_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let (old, new) = (fields(old, "spec"), fields(new, "spec"));
    let source = |spec: &Fields| {
        let is_source = |(name, value): &(&String, &Value)| {
            !NO_SOURCES.contains(&name.as_str()) && !value.is_null()
        };
        spec.iter().filter(is_source).map(|(n, v)| (n.clone(), v.clone())).collect::<Fields>()
    };
    if source(old) != source(new) {
        errors.forbidden(
            &SPEC.field("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    let none = Value::Null;
    for field in ["volumeMode", "nodeAffinity"] {
        let before = old.get(field).unwrap_or(&none);
        let after = new.get(field).unwrap_or(&none);
        // Where a volume is may be said later, but not changed.
        if before != after && !(field == "nodeAffinity" && before.is_null()) {
            errors.invalid_value(&SPEC.field(field), after, "field is immutable");
        }
    }
}

pub(super) fn claim(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    access_modes(spec, "at least 1 access mode is required", errors);
    if let Some(selector) = spec.get("selector").filter(|selector| !selector.is_null())
        && let Err(problem) = LabelSelector::from_object(selector)
    {
        errors.invalid_value(&SPEC.field("selector"), selector, &problem.to_string());
    }
    let resources = SPEC.field("resources");
    match fields(fields(spec, "resources"), "requests").get("storage") {
        None => errors.required(&resources.key("storage"), ""),
        Some(amount) => positive(&resources.key("storage"), amount, errors),
    }
    volume_mode(spec, errors);
    class_name(spec, errors);
    let name = text(spec, "volumeName");
    if !name.is_empty() {
        errors.invalid_all(&SPEC.field("volumeName"), name, &names::dns1123_subdomain(name));
    }
    for field in ["dataSource", "dataSourceRef"] {
        if object(spec, field).is_some() {
            errors.forbidden(
                &SPEC.field(field),
                "Pinnace cannot do this: a volume starts empty, with no snapshot or other claim \
                 copied into it",
            );
        }
    }
}

pub(super) fn claim_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let (old, new) = (fields(old, "spec"), fields(new, "spec"));
    let mut allowed = new.clone();
    // Bound once, and given a class where it named none.
    let keep_old = |allowed: &mut Fields, field: &str| match old.get(field) {
        Some(value) => {
            allowed.insert(field.to_owned(), value.clone());
        }
        None => {
            allowed.shift_remove(field);
        }
    };
    if text(old, "volumeName").is_empty() {
        keep_old(&mut allowed, "volumeName");
    }
    if old.get("storageClassName").is_none_or(Value::is_null) {
        keep_old(&mut allowed, "storageClassName");
    }
    keep_old(&mut allowed, "resources");
    if &allowed != old {
        errors.forbidden(
            &SPEC,
            "spec is immutable after creation except resources.requests and \
             volumeAttributesClassName for bound claims",
        );
    }
    if old.get("resources") != new.get("resources") {
        errors.forbidden(&SPEC.field("resources"), RESIZE);
    }
}

pub(super) fn class(root: &Fields, errors: &mut Errors) {
    let at = Path::Root.field("provisioner");
    match text(root, "provisioner") {
        "" => errors.required(&at, ""),
        name => errors.invalid_all(&at, name, &names::qualified_name(&name.to_lowercase())),
    }
    let policy = Path::Root.field("reclaimPolicy");
    errors.one_of(&policy, text(root, "reclaimPolicy"), &["Delete", "Retain"], false);
    let mode = Path::Root.field("volumeBindingMode");
    errors.one_of(&mode, text(root, "volumeBindingMode"), BINDING_MODES, true);
    let parameters = Path::Root.field("parameters");
    if text(root, "provisioner") == crate::storage::LOCAL_PATH
        && !fields(root, "parameters").is_empty()
    {
        errors.forbidden(&parameters, "the provisioner pinnace.io/local-path knows no parameters");
    }
}

pub(super) fn class_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        let said = |fields: &Fields| {
            let value = fields.get(field).cloned().unwrap_or(Value::Null);
            if value.as_object().is_some_and(Fields::is_empty) { Value::Null } else { value }
        };
        if said(old) != said(new) {
            errors
                .forbidden(&Path::Root.field(field), &format!("updates to {field} are forbidden."));
        }
    }
    if text(old, "volumeBindingMode") != text(new, "volumeBindingMode") {
        let mode = Path::Root.field("volumeBindingMode");
        errors.invalid(&mode, text(new, "volumeBindingMode"), "field is immutable");
    }
}

fn access_modes(spec: &Fields, detail: &str, errors: &mut Errors) {
    let path = SPEC.field("accessModes");
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        errors.required(&path, detail);
    }
    for mode in modes.iter().filter_map(Value::as_str) {
        if !ACCESS_MODES.contains(&mode) {
            errors.not_supported(&path, mode, ACCESS_MODES);
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == ONE_POD) {
        errors.forbidden(&path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn volume_mode(spec: &Fields, errors: &mut Errors) {
    let path = SPEC.field("volumeMode");
    match text(spec, "volumeMode") {
        "Block" => {
            errors.forbidden(&path, "Pinnace cannot do this: block devices are not implemented")
        }
        mode => errors.one_of(&path, mode, &["Block", "Filesystem"], false),
    }
    if !text(spec, "volumeAttributesClassName").is_empty() {
        errors.forbidden(
            &SPEC.field("volumeAttributesClassName"),
            "Pinnace cannot do this: a folder has no attributes",
        );
    }
}

fn class_name(spec: &Fields, errors: &mut Errors) {
    let name = text(spec, "storageClassName");
    if !name.is_empty() {
        errors.invalid_all(&SPEC.field("storageClassName"), name, &names::dns1123_subdomain(name));
    }
}

fn positive(path: &Path<'_>, amount: &Value, errors: &mut Errors) {
    if Quantity::from_json(amount).is_ok_and(|amount| amount.is_negative() || amount.is_zero()) {
        errors.invalid_value(path, amount, "must be greater than zero");
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::super::tests::{check_create, check_update};
    use super::*;

    fn local() -> Value {
        json!({"metadata": {"name": "pv"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "local": {"path": "/mnt/ssd"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["pi"]}]}]}},
        }})
    }

    fn wanted() -> Value {
        json!({"metadata": {"name": "c", "namespace": "d"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    }

    #[test]
    fn volumes() {
        check_create("", "PersistentVolume", local(), &expect![""]);
        check_create(
            "",
            "PersistentVolume",
            json!({"metadata": {"name": "pv"}, "spec": {}}),
            &expect![[r#"
                Required spec.accessModes: Required value
                Required spec.capacity: Required value
                Required spec: Required value: must specify a volume type
            "#]],
        );
        let mut bad = local();
        bad["spec"]["capacity"] = json!({"storage": "0", "cpu": "1"});
        bad["spec"]["accessModes"] = json!(["ReadWriteOncePod", "Often"]);
        bad["spec"]["persistentVolumeReclaimPolicy"] = json!("Recycle");
        bad["spec"]["volumeMode"] = json!("Block");
        bad["spec"]["local"]["path"] = json!("a/../b");
        bad["spec"]["nfs"] = json!({"server": "x", "path": "/"});
        bad["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"] = json!([{"matchExpressions": [
            {"key": "", "operator": "Near"}, {"key": "a", "operator": "In"}]}]);
        check_create(
            "",
            "PersistentVolume",
            bad,
            &expect![[r#"
            NotSupported spec.accessModes: Unsupported value: "Often": supported values: "ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"
            Forbidden spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes
            Invalid spec.capacity[storage]: Invalid value: "0": must be greater than zero
            NotSupported spec.capacity: Unsupported value: "cpu": supported values: "storage"
            Forbidden spec.persistentVolumeReclaimPolicy: Forbidden: Pinnace cannot do this: volumes are not recycled, use "Retain" or "Delete"
            Forbidden spec.volumeMode: Forbidden: Pinnace cannot do this: block devices are not implemented
            Forbidden spec.nfs: Forbidden: may not specify more than 1 volume type
            Invalid spec.local.path: Invalid value: "a/../b": must not contain '..'
            Invalid spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: Invalid value: "": name part must be non-empty
            Invalid spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            NotSupported spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].operator: Unsupported value: "Near": supported values: "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"
            Required spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[1].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
        "#]],
        );
        let mut bad = local();
        bad["spec"].as_object_mut().unwrap().remove("local");
        bad["spec"].as_object_mut().unwrap().remove("nodeAffinity");
        bad["spec"]["csi"] = json!({"driver": "x"});
        check_create(
            "",
            "PersistentVolume",
            bad.clone(),
            &expect![[r#"
            Forbidden spec.csi: Forbidden: Pinnace cannot do this: nodes have volumes of the types local and hostPath
        "#]],
        );
        bad["spec"].as_object_mut().unwrap().remove("csi");
        bad["spec"]["local"] = json!({"path": "relative"});
        check_create(
            "",
            "PersistentVolume",
            bad,
            &expect![[r#"
            Invalid spec.local.path: Invalid value: "relative": must be an absolute path
            Required spec.nodeAffinity: Required value: Local volume requires node affinity
        "#]],
        );
    }

    #[test]
    fn what_a_volume_is_stays() {
        let mut new = local();
        new["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
        new["spec"]["claimRef"] = json!({"namespace": "d", "name": "c"});
        check_update("", "PersistentVolume", &local(), &new, &expect![""]);
        new["spec"]["local"]["path"] = json!("/elsewhere");
        new["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] =
            json!(["other"]);
        check_update(
            "",
            "PersistentVolume",
            &local(),
            &new,
            &expect![[r#"
            Forbidden spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation
            Invalid spec.nodeAffinity: Invalid value: {"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":["other"]}]}]}}: field is immutable
        "#]],
        );
    }

    #[test]
    fn claims() {
        check_create("", "PersistentVolumeClaim", wanted(), &expect![""]);
        check_create(
            "",
            "PersistentVolumeClaim",
            json!({"metadata": {"name": "c", "namespace": "d"}, "spec": {
                "volumeMode": "Block", "storageClassName": "A B", "volumeName": "_",
                "selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]},
                "dataSource": {"kind": "PersistentVolumeClaim", "name": "x"},
                "volumeAttributesClassName": "gold",
            }}),
            &expect![[r#"
                Required spec.accessModes: Required value: at least 1 access mode is required
                Invalid spec.selector: Invalid value: {"matchExpressions":[{"key":"a","operator":"Near"}]}: "Near" is not a valid label selector operator
                Required spec.resources[storage]: Required value
                Forbidden spec.volumeMode: Forbidden: Pinnace cannot do this: block devices are not implemented
                Forbidden spec.volumeAttributesClassName: Forbidden: Pinnace cannot do this: a folder has no attributes
                Invalid spec.storageClassName: Invalid value: "A B": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                Invalid spec.volumeName: Invalid value: "_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                Forbidden spec.dataSource: Forbidden: Pinnace cannot do this: a volume starts empty, with no snapshot or other claim copied into it
            "#]],
        );
    }

    #[test]
    fn a_claim_is_bound_once_and_never_grows() {
        let mut bound = wanted();
        bound["spec"]["volumeName"] = json!("pv");
        bound["spec"]["storageClassName"] = json!("local-path");
        check_update("", "PersistentVolumeClaim", &wanted(), &bound, &expect![""]);
        let mut other = bound.clone();
        other["spec"]["volumeName"] = json!("pv2");
        other["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        check_update(
            "",
            "PersistentVolumeClaim",
            &bound,
            &other,
            &expect![[r#"
            Forbidden spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims
            Forbidden spec.resources: Forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize
        "#]],
        );
    }

    #[test]
    fn classes() {
        let class = json!({"metadata": {"name": "c"}, "provisioner": "pinnace.io/local-path"});
        check_create("storage.k8s.io", "StorageClass", class.clone(), &expect![""]);
        let other = json!({"metadata": {"name": "c"}, "provisioner": "-/x", "reclaimPolicy": "Recycle",
            "volumeBindingMode": "Later"});
        check_create(
            "storage.k8s.io",
            "StorageClass",
            other,
            &expect![[r#"
            Invalid provisioner: Invalid value: "-/x": prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            NotSupported reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain"
            NotSupported volumeBindingMode: Unsupported value: "Later": supported values: "Immediate", "WaitForFirstConsumer"
        "#]],
        );
        let mut with = class.clone();
        with["parameters"] = json!({"path": "/"});
        with["volumeBindingMode"] = json!("WaitForFirstConsumer");
        check_update(
            "storage.k8s.io",
            "StorageClass",
            &class,
            &with,
            &expect![[r#"
            Forbidden parameters: Forbidden: the provisioner pinnace.io/local-path knows no parameters
            Forbidden parameters: Forbidden: updates to parameters are forbidden.
            Invalid volumeBindingMode: Invalid value: "WaitForFirstConsumer": field is immutable
        "#]],
        );
    }
}
