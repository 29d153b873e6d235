//! Rules on Nodes, and on the small kinds around them: Namespaces, Leases and
//! Events.

use std::collections::HashSet;

use super::{Errors, Fields, Path, SPEC, fields, items, metadata, number, object, objects, text};
use crate::names;
use crate::quantity::Quantity;

const STATUS: Path<'static> = Path::Field(&Path::Root, "status");
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn node(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    let path = SPEC.field("taints");
    let mut seen = HashSet::new();
    for (n, taint) in objects(spec, "taints") {
        let at = path.index(n);
        let (key, value, effect) =
            (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        errors.invalid_all(&at.field("key"), key, &names::qualified_name(key));
        errors.invalid_all(&at.field("value"), value, &names::label_value(value));
        errors.one_of(&at.field("effect"), effect, EFFECTS, true);
        if !seen.insert((key, effect)) {
            errors.duplicate(&at, &format!("{key}:{effect}"));
        }
    }
    let status = fields(root, "status");
    for list in ["capacity", "allocatable"] {
        for (name, amount) in fields(status, list) {
            if Quantity::from_json(amount).is_ok_and(Quantity::is_negative) {
                let at = STATUS.field(list);
                errors.invalid_value(&at.key(name), amount, "must be greater than or equal to 0");
            }
        }
    }
}

/// Where pods get their addresses from is given once.
pub(super) fn node_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let (old, new) = (fields(old, "spec"), fields(new, "spec"));
    for field in ["podCIDR", "providerID"] {
        let before = text(old, field);
        if !before.is_empty() && before != text(new, field) {
            errors.forbidden(
                &SPEC.field(field),
                &format!("node updates may not change {field} except from \"\" to valid"),
            );
        }
    }
}

pub(super) fn namespace(root: &Fields, errors: &mut Errors) {
    let path = SPEC.field("finalizers");
    for (n, finalizer) in items(fields(root, "spec"), "finalizers").iter().enumerate() {
        metadata::finalizer_name(&path.index(n), finalizer.as_str().unwrap_or_default(), errors);
    }
}

/// The rules of a RuntimeClass.
pub(super) fn runtime_class(root: &Fields, errors: &mut Errors) {
    let at = super::Path::Root.field("handler");
    match text(root, "handler") {
        "" => errors.required(&at, ""),
        handler => errors.invalid_all(&at, handler, &crate::names::dns1123_label(handler)),
    }
}

pub(super) fn lease(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    if spec.contains_key("holderIdentity") && text(spec, "holderIdentity").is_empty() {
        errors.invalid(&SPEC.field("holderIdentity"), "", "must not be empty");
    }
    if let Some(seconds) = number(spec, "leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.invalid_number(
            &SPEC.field("leaseDurationSeconds"),
            seconds,
            "must be greater than 0",
        );
    }
    errors.not_negative(&SPEC.field("leaseTransitions"), number(spec, "leaseTransitions"));
}

pub(super) fn event(root: &Fields, errors: &mut Errors) {
    let path = Path::Root.field("involvedObject");
    let Some(involved) = object(root, "involvedObject") else {
        errors.required(&path, "");
        return;
    };
    let (own, other) = (text(fields(root, "metadata"), "namespace"), text(involved, "namespace"));
    // Events about cluster-scoped objects live in `default`.
    let fits =
        if other.is_empty() { matches!(own, "default" | "kube-system") } else { own == other };
    if !fits {
        errors.invalid(&path.field("namespace"), other, "does not match event.namespace");
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::super::tests::{check_create, check_update};

    #[test]
    fn nodes() {
        check_create(
            "",
            "Node",
            json!({"metadata": {"name": "a"},
                "spec": {"taints": [
                    {"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"},
                    {"key": "", "effect": "Never", "value": " "}]},
                "status": {"capacity": {"cpu": "-1"}}}),
            &expect![[r#"
                Duplicate spec.taints[1]: Duplicate value: "a:NoSchedule"
                Invalid spec.taints[2].key: Invalid value: "": name part must be non-empty
                Invalid spec.taints[2].key: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                Invalid spec.taints[2].value: Invalid value: " ": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
                NotSupported spec.taints[2].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"
                Invalid status.capacity[cpu]: Invalid value: "-1": must be greater than or equal to 0
                Invalid status.allocatable[cpu]: Invalid value: "-1": must be greater than or equal to 0
            "#]],
        );
        let node = |cidr: &str| json!({"metadata": {"name": "a"}, "spec": {"podCIDR": cidr}});
        check_update(
            "",
            "Node",
            &node("10.0.0.0/24"),
            &node("10.0.1.0/24"),
            &expect![[r#"
            Forbidden spec.podCIDR: Forbidden: node updates may not change podCIDR except from "" to valid
        "#]],
        );
        check_update("", "Node", &node(""), &node("10.0.1.0/24"), &expect![""]);
    }

    #[test]
    fn leases_and_events() {
        check_create(
            "coordination.k8s.io",
            "Lease",
            json!({"metadata": {"name": "a", "namespace": "b"},
                "spec": {"holderIdentity": "", "leaseDurationSeconds": 0, "leaseTransitions": -1}}),
            &expect![[r#"
                Invalid spec.holderIdentity: Invalid value: "": must not be empty
                Invalid spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0
                Invalid spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0
            "#]],
        );
        let event = |namespace: &str| {
            json!({"metadata": {"name": "a", "namespace": "shop"}, "type": "Loud",
                "involvedObject": {"kind": "Pod", "namespace": namespace}})
        };
        check_create(
            "",
            "Event",
            event("other"),
            &expect![[r#"
            Invalid involvedObject.namespace: Invalid value: "other": does not match event.namespace
        "#]],
        );
        check_create(
            "",
            "Namespace",
            json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["x"]}}),
            &expect![[r#"
                Invalid spec.finalizers[0]: Invalid value: "x": name is neither a standard finalizer name nor is it fully qualified
            "#]],
        );
    }
}
