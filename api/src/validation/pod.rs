//! Rules on the spec of a pod, and of a template that pods are made from.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    Errors, Fields, Path, SPEC, container, fields, flag, items, metadata, number, objects, text,
    volume,
};
use crate::meta::MIRROR_ANNOTATION;
use crate::names;

/// Whose spec it is; templates allow less, updates do not undo a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Pod { update: bool },
    Template,
}

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// Largest user, group and deadline.
const INT32_MAX: i64 = 2_147_483_647;

pub(super) fn spec(path: &Path<'_>, spec: &Fields, place: Place, errors: &mut Errors) {
    let volumes = volume::volumes(path, spec, errors);
    container::containers(path, spec, &volumes, errors);
    if place == (Place::Pod { update: false }) && !items(spec, "ephemeralContainers").is_empty() {
        errors.forbidden(&path.field("ephemeralContainers"), "cannot be set on create");
    }
    let policies: &[&str] =
        if place == Place::Template { &["Always"] } else { &["Always", "OnFailure", "Never"] };
    errors.one_of(&path.field("restartPolicy"), text(spec, "restartPolicy"), policies, true);
    errors.one_of(
        &path.field("dnsPolicy"),
        text(spec, "dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        true,
    );
    let field = "terminationGracePeriodSeconds";
    errors.not_negative(&path.field(field), number(spec, field));
    deadline(path, spec, place, errors);
    metadata::labels(&path.field("nodeSelector"), fields(spec, "nodeSelector"), errors);
    for (field, check) in [
        ("hostname", names::dns1123_label as fn(&str) -> Vec<String>),
        ("subdomain", names::dns1123_label),
        ("nodeName", names::dns1123_subdomain),
        ("serviceAccountName", names::dns1123_subdomain),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        let value = text(spec, field);
        if !value.is_empty() {
            errors.invalid_all(&path.field(field), value, &check(value));
        }
    }
    tolerations(&path.field("tolerations"), spec, errors);
    let context = fields(spec, "securityContext");
    let at = path.field("securityContext");
    security(&at, context, errors);
    sysctls(&at.field("sysctls"), context, errors);
    errors.one_of(
        &at.field("fsGroupChangePolicy"),
        text(context, "fsGroupChangePolicy"),
        &["OnRootMismatch", "Always"],
        false,
    );
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        errors.invalid(
            &path.field("shareProcessNamespace"),
            "true",
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    host_aliases(&path.field("hostAliases"), spec, errors);
    dns(path, spec, errors);
}

/// Names and values of kernel settings; a node says which of them it sets.
fn sysctls(path: &Path<'_>, context: &Fields, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (n, sysctl) in objects(context, "sysctls") {
        let parent = path.index(n);
        let at = parent.field("name");
        let name = text(sysctl, "name");
        let is_segment = |part: &str| {
            let edge =
                |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(part.chars().next())
                && edge(part.chars().next_back())
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
        };
        if name.is_empty() {
            errors.required(&at, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(is_segment) {
            errors.invalid(
                &at,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !seen.insert(name) {
            errors.duplicate(&at, name);
        }
    }
}

fn host_aliases(path: &Path<'_>, spec: &Fields, errors: &mut Errors) {
    for (n, alias) in objects(spec, "hostAliases") {
        let at = path.index(n);
        let ip = text(alias, "ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(
                &at.field("ip"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
        let list = at.field("hostnames");
        for (n, name) in items(alias, "hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.invalid_all(&list.index(n), name, &names::dns1123_subdomain(name));
        }
    }
}

fn dns(path: &Path<'_>, spec: &Fields, errors: &mut Errors) {
    let config = fields(spec, "dnsConfig");
    let at = path.field("dnsConfig");
    let servers = items(config, "nameservers");
    let list = at.field("nameservers");
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        errors.required(&list, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if servers.len() > 3 {
        errors.invalid(&list, "", "must not have more than 3 nameservers");
    }
    for (n, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        if server.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(
                &list.index(n),
                server,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
    let list = at.field("searches");
    for (n, search) in items(config, "searches").iter().enumerate() {
        let search = search.as_str().unwrap_or_default().trim_end_matches('.');
        if !search.is_empty() {
            errors.invalid_all(&list.index(n), search, &names::dns1123_subdomain(search));
        }
    }
    let list = at.field("options");
    for (n, option) in objects(config, "options") {
        if text(option, "name").is_empty() {
            errors.required(&list.index(n), "must not be empty");
        }
    }
}

fn deadline(path: &Path<'_>, spec: &Fields, place: Place, errors: &mut Errors) {
    let field = "activeDeadlineSeconds";
    let Some(seconds) = number(spec, field) else { return };
    let at = path.field(field);
    if place == Place::Template {
        errors.forbidden(&at, "activeDeadlineSeconds in ReplicaSet is not Supported");
    } else if !(1..=INT32_MAX).contains(&seconds) {
        errors.invalid_number(
            &at,
            seconds,
            &format!("must be between 1 and {INT32_MAX}, inclusive"),
        );
    }
}

/// Users, groups and system call filters; a pod's or a container's.
pub(super) fn security(path: &Path<'_>, context: &Fields, errors: &mut Errors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = number(context, field).filter(|id| !(0..=INT32_MAX).contains(id)) {
            errors.invalid_number(
                &path.field(field),
                id,
                &format!("must be between 0 and {INT32_MAX}, inclusive"),
            );
        }
    }
    for (n, group) in items(context, "supplementalGroups").iter().enumerate() {
        if group.as_i64().is_some_and(|id| !(0..=INT32_MAX).contains(&id)) {
            errors.invalid_value(
                &path.field("supplementalGroups").index(n),
                group,
                &format!("must be between 0 and {INT32_MAX}, inclusive"),
            );
        }
    }
    let Some(profile) = super::object(context, "seccompProfile") else { return };
    let at = path.field("seccompProfile");
    let kind = text(profile, "type");
    errors.one_of(&at.field("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"], true);
    let file = text(profile, "localhostProfile");
    if kind == "Localhost" && file.is_empty() {
        errors
            .required(&at.field("localhostProfile"), "must be set when seccomp type is Localhost");
    } else if kind != "Localhost" && !file.is_empty() {
        errors.invalid(
            &at.field("localhostProfile"),
            file,
            "can only be set when seccomp type is Localhost",
        );
    }
}

fn tolerations(path: &Path<'_>, spec: &Fields, errors: &mut Errors) {
    for (n, toleration) in objects(spec, "tolerations") {
        let at = path.index(n);
        let key = text(toleration, "key");
        let operator = text(toleration, "operator");
        if key.is_empty() {
            if operator != "Exists" {
                errors.invalid(
                    &at.field("operator"),
                    operator,
                    "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                );
            }
        } else {
            errors.invalid_all(&at.field("key"), key, &names::qualified_name(key));
        }
        let effect = text(toleration, "effect");
        if toleration.contains_key("tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(
                &at.field("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        let value = text(toleration, "value");
        match operator {
            "" | "Equal" => {
                errors.invalid_all(&at.field("operator"), value, &names::label_value(value));
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(
                    &at.field("operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            other => errors.not_supported(&at.field("operator"), other, &["Equal", "Exists"]),
        }
        errors.one_of(&at.field("effect"), effect, EFFECTS, false);
    }
}

/// A pod's spec is fixed but for its images, a few tolerations and its deadline.
pub(super) fn update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let mut allowed = new.clone();
    for list in ["containers", "initContainers"] {
        let (before, after) = (items(old, list), items(new, list));
        if before.len() != after.len() {
            let word = if list == "containers" { "pod" } else { "init containers: pod" };
            errors.forbidden(
                &SPEC.field(list),
                &format!("{word} updates may not add or remove containers"),
            );
            return;
        }
        // From here on, as if no image had changed.
        let after = allowed.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (after, before) in after.zip(before) {
            if let (Some(after), Some(image)) = (after.as_object_mut(), before.get("image")) {
                after.insert("image".to_owned(), image.clone());
            }
        }
    }
    let field = "activeDeadlineSeconds";
    match (number(old, field), number(new, field)) {
        (Some(before), Some(after)) if after > before => errors.invalid_number(
            &SPEC.field(field),
            after,
            "must be less than or equal to previous value",
        ),
        (Some(_), None) => errors.push(
            &SPEC.field(field),
            super::Reason::Invalid,
            "null",
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    only_more_tolerations(old, new, errors);
    for field in [field, "tolerations"] {
        match old.get(field) {
            Some(value) => {
                allowed.insert(field.to_owned(), value.clone());
            }
            None => {
                allowed.shift_remove(field);
            }
        }
    }
    if &allowed != old {
        let mut changed: Vec<&str> = old
            .keys()
            .chain(allowed.keys())
            .filter(|key| old.get(*key) != allowed.get(*key))
            .map(String::as_str)
            .collect();
        changed.sort_unstable();
        changed.dedup();
        errors.forbidden(
            &SPEC,
            &format!(
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations); changed: {}",
                changed.join(", ")
            ),
        );
    }
}

fn only_more_tolerations(old: &Fields, new: &Fields, errors: &mut Errors) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(fields) = toleration.as_object_mut()
            && fields.get("effect").is_some_and(|effect| effect == "NoExecute")
        {
            fields.shift_remove("tolerationSeconds");
        }
        toleration.sort_all_objects();
        toleration.to_string()
    };
    let after: HashSet<String> = items(new, "tolerations").iter().map(without_seconds).collect();
    if items(old, "tolerations").iter().any(|t| !after.contains(&without_seconds(t))) {
        errors.forbidden(
            &SPEC.field("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// A mirror shows a static pod of a node: it is never without one.
pub(super) fn mirror(root: &Fields, errors: &mut Errors) {
    if mirrored(root).is_some() && text(fields(root, "spec"), "nodeName").is_empty() {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        let metadata = Path::Root.field("metadata");
        errors.invalid(&metadata.field("annotations").key(MIRROR_ANNOTATION), "", detail);
    }
}

/// What a pod mirrors is decided when it is made.
pub(super) fn mirror_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let problem = match (mirrored(old), mirrored(new)) {
        (None, Some(_)) => "may not add mirror pod annotation",
        (Some(_), None) => "may not remove mirror pod annotation",
        (old, new) if old != new => "may not update mirror pod annotation",
        _ => return,
    };
    let metadata = Path::Root.field("metadata");
    errors.forbidden(&metadata.field("annotations").key(MIRROR_ANNOTATION), problem);
}

fn mirrored(root: &Fields) -> Option<&str> {
    fields(fields(root, "metadata"), "annotations").get(MIRROR_ANNOTATION)?.as_str()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::{Value, json};

    use super::super::tests::{check_create, check_update};

    fn pod(spec: &Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        pod
    }

    #[test]
    fn enumerations_and_numbers() {
        check_create("", "Pod", pod(&json!({})), &expect![""]);
        check_create(
            "",
            "Pod",
            pod(&json!({
                "restartPolicy": "Sometimes", "dnsPolicy": "x", "hostname": "A.b",
                "terminationGracePeriodSeconds": -1, "activeDeadlineSeconds": 0,
                "nodeSelector": {"a": "b c"}, "securityContext": {
                    "runAsUser": -1, "seccompProfile": {"type": "Localhost"}},
                "ephemeralContainers": [{"name": "d"}],
                "tolerations": [
                    {"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "b"},
                    {"key": "a", "operator": "In", "effect": "NoSchedule", "tolerationSeconds": 3},
                    {"key": "a", "effect": "Go"},
                ],
            })),
            &expect![[r#"
                Forbidden spec.ephemeralContainers: Forbidden: cannot be set on create
                NotSupported spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
                NotSupported spec.dnsPolicy: Unsupported value: "x": supported values: "ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"
                Invalid spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0
                Invalid spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive
                Invalid spec.nodeSelector: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
                Invalid spec.hostname: Invalid value: "A.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                Invalid spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys"
                Invalid spec.tolerations[1].operator: Invalid value: "b": value must be empty when `operator` is 'Exists'
                Invalid spec.tolerations[2].effect: Invalid value: "NoSchedule": effect must be 'NoExecute' when `tolerationSeconds` is set
                NotSupported spec.tolerations[2].operator: Unsupported value: "In": supported values: "Equal", "Exists"
                NotSupported spec.tolerations[3].effect: Unsupported value: "Go": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"
                Invalid spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive
                Required spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost
            "#]],
        );
    }

    #[test]
    fn only_images_tolerations_and_deadlines_change() {
        let old = pod(
            &json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]}),
        );
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = json!("i:2");
        new["spec"]["activeDeadlineSeconds"] = json!(5);
        new["spec"]["tolerations"][0]["tolerationSeconds"] = json!(9);
        new["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"operator": "Exists"}));
        // The image's tag changes no policy here.
        check_update("", "Pod", &old, &new, &expect![""]);
        new["spec"]["tolerations"] = json!([]);
        new["spec"]["nodeName"] = json!("n1");
        new["spec"]["containers"][0]["command"] = json!(["x"]);
        check_update(
            "",
            "Pod",
            &old,
            &new,
            &expect![[r#"
            Forbidden spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds
            Forbidden spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations); changed: containers, nodeName
        "#]],
        );
        new["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "d", "image": "i"}));
        check_update(
            "",
            "Pod",
            &old,
            &new,
            &expect![[r#"
            Forbidden spec.containers: Forbidden: pod updates may not add or remove containers
        "#]],
        );
    }
}
