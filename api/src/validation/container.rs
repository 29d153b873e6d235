//! Rules on containers: names, images, ports, variables, resources, mounts and
//! probes.

use std::collections::HashSet;

use serde_json::Value;

use super::volume::Volumes;
use super::{
    Errors, Fields, Path, fields, flag, health, items, number, object, objects, pod, text,
};
use crate::names;
use crate::quantity::Quantity;

/// What `fieldRef` may name in a variable.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What `resourceFieldRef` may name.
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// All containers of a pod; `volumes` are the ones they may mount.
pub(super) fn containers(
    path: &Path<'_>,
    spec: &Fields,
    volumes: &Volumes<'_>,
    errors: &mut Errors,
) {
    if items(spec, "containers").is_empty() {
        errors.required(&path.field("containers"), "");
    }
    let mut names = HashSet::new();
    for list in ["containers", "initContainers"] {
        let at = path.field(list);
        let mut host_ports = HashSet::new();
        for (n, container) in objects(spec, list) {
            let at = at.index(n);
            let name = text(container, "name");
            if !names.insert(name) && !name.is_empty() {
                errors.duplicate(&at.field("name"), name);
            }
            one(&at, container, volumes, errors);
            if list == "initContainers" && text(container, "restartPolicy") != "Always" {
                for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if container.get(field).is_some_and(|value| !value.is_null()) {
                        let detail =
                            "may not be set for init containers without restartPolicy=Always";
                        errors.forbidden(&at.field(field), detail);
                    }
                }
            }
            ports(&at.field("ports"), container, &mut host_ports, errors);
        }
    }
}

pub(super) fn one(path: &Path<'_>, container: &Fields, volumes: &Volumes<'_>, errors: &mut Errors) {
    let at = path.field("name");
    match text(container, "name") {
        "" => errors.required(&at, ""),
        name => errors.invalid_all(&at, name, &names::dns1123_label(name)),
    }
    let at = path.field("image");
    let image = text(container, "image");
    if image.is_empty() {
        errors.required(&at, "");
    } else if image.trim() != image {
        errors.invalid(&at, image, "must not have leading or trailing whitespace");
    }
    errors.one_of(
        &path.field("imagePullPolicy"),
        text(container, "imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        true,
    );
    errors.one_of(
        &path.field("terminationMessagePolicy"),
        text(container, "terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
        true,
    );
    env(&path.field("env"), container, errors);
    env_from(&path.field("envFrom"), container, errors);
    resources(&path.field("resources"), fields(container, "resources"), errors);
    mounts(&path.field("volumeMounts"), container, volumes, errors);
    errors.one_of(
        &path.field("restartPolicy"),
        text(container, "restartPolicy"),
        &["Always", "Never", "OnFailure"],
        false,
    );
    health::probes(path, container, errors);
    health::lifecycle(path, container, errors);
    let context = fields(container, "securityContext");
    let at = path.field("securityContext");
    pod::security(&at, context, errors);
    if flag(context, "privileged")
        && context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false))
    {
        errors.invalid_value(
            &at,
            &container["securityContext"],
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
}

fn ports<'a>(
    path: &Path<'_>,
    container: &'a Fields,
    host_ports: &mut HashSet<(i64, &'a str, &'a str)>,
    errors: &mut Errors,
) {
    let mut names_seen = HashSet::new();
    for (n, port) in objects(container, "ports") {
        let at = path.index(n);
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            errors.invalid_all(&at.field("name"), name, &wrong);
            if !names_seen.insert(name) && wrong.is_empty() {
                errors.duplicate(&at.field("name"), name);
            }
        }
        match number(port, "containerPort").unwrap_or_default() {
            0 => errors.required(&at.field("containerPort"), ""),
            number => port_number(&at.field("containerPort"), number, errors),
        }
        let protocol = text(port, "protocol");
        errors.one_of(&at.field("protocol"), protocol, &["SCTP", "TCP", "UDP"], true);
        let host_port = number(port, "hostPort").unwrap_or_default();
        if host_port != 0 {
            port_number(&at.field("hostPort"), host_port, errors);
            let key = (host_port, protocol, text(port, "hostIP"));
            if !host_ports.insert(key) {
                errors
                    .duplicate(&at.field("hostPort"), &format!("{protocol}/{}/{host_port}", key.2));
            }
        }
    }
}

pub(super) fn port_number(path: &Path<'_>, number: i64, errors: &mut Errors) {
    for detail in names::port_number(number) {
        errors.invalid_number(path, number, &detail);
    }
}

fn env(path: &Path<'_>, container: &Fields, errors: &mut Errors) {
    for (n, variable) in objects(container, "env") {
        let at = path.index(n);
        match text(variable, "name") {
            "" => errors.required(&at.field("name"), ""),
            name => errors.invalid_all(&at.field("name"), name, &names::env_name(name)),
        }
        if let Some(source) = object(variable, "valueFrom") {
            value_from(&at.field("valueFrom"), variable, source, errors);
        }
    }
}

fn value_from(path: &Path<'_>, variable: &Fields, source: &Fields, errors: &mut Errors) {
    let mut n_sources = 0;
    if let Some(field) = object(source, "fieldRef") {
        n_sources += 1;
        field_ref(&path.field("fieldRef"), field, errors);
    }
    if let Some(field) = object(source, "resourceFieldRef") {
        n_sources += 1;
        resource_field_ref(&path.field("resourceFieldRef"), field, false, errors);
    }
    for name in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = object(source, name) {
            n_sources += 1;
            key_ref(&path.field(name), reference, errors);
        }
    }
    n_sources += usize::from(source.contains_key("fileKeyRef"));
    if n_sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !text(variable, "value").is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if n_sources > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn field_ref(path: &Path<'_>, reference: &Fields, errors: &mut Errors) {
    let at = path.field("fieldPath");
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        errors.required(&at, "");
        return;
    }
    let subscript = ["metadata.annotations", "metadata.labels"]
        .iter()
        .find_map(|map| field.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']"));
    match subscript {
        Some(key) => errors.invalid_all(&at, key, &names::qualified_name(&key.to_lowercase())),
        None => errors.one_of(&at, field, ENV_FIELDS, true),
    }
}

/// Also of a downward file, where the container must be named.
pub(super) fn resource_field_ref(
    path: &Path<'_>,
    reference: &Fields,
    needs_container: bool,
    errors: &mut Errors,
) {
    if needs_container && text(reference, "containerName").is_empty() {
        errors.required(&path.field("containerName"), "");
    }
    let resource = text(reference, "resource");
    let at = path.field("resource");
    if !resource.contains("hugepages-") {
        errors.one_of(&at, resource, RESOURCE_FIELDS, true);
    }
    let Some(divisor) = reference.get("divisor").and_then(|v| Quantity::from_json(v).ok()) else {
        return;
    };
    let good = divisor.is_zero()
        || divisor == Quantity::from_units(1)
        || if resource.ends_with(".cpu") {
            divisor == Quantity::from_millis(1)
        } else {
            ["1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]
                .contains(&divisor.to_string().as_str())
        };
    if !good {
        let detail = if resource.ends_with(".cpu") {
            "only divisor's values 1m and 1 are supported with the cpu resource"
        } else {
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
        };
        errors.invalid(&path.field("divisor"), &divisor.to_string(), detail);
    }
}

fn key_ref(path: &Path<'_>, reference: &Fields, errors: &mut Errors) {
    if text(reference, "name").is_empty() {
        errors.required(&path.field("name"), "");
    }
    match text(reference, "key") {
        "" => errors.required(&path.field("key"), ""),
        key => errors.invalid_all(&path.field("key"), key, &names::config_map_key(key)),
    }
}

fn env_from(path: &Path<'_>, container: &Fields, errors: &mut Errors) {
    for (n, source) in objects(container, "envFrom") {
        let at = path.index(n);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.invalid_all(&at.field("prefix"), prefix, &names::env_name(prefix));
        }
        let mut n_sources = 0;
        for name in ["configMapRef", "secretRef"] {
            if let Some(reference) = object(source, name) {
                n_sources += 1;
                if text(reference, "name").is_empty() {
                    errors.required(&at.field(name).field("name"), "");
                }
            }
        }
        match n_sources {
            0 => errors.invalid(&at, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(&at, "", "may not have more than one field specified at a time"),
        }
    }
}

fn resources(path: &Path<'_>, resources: &Fields, errors: &mut Errors) {
    let (limits, requests) = (fields(resources, "limits"), fields(resources, "requests"));
    for (list, amounts) in [("limits", limits), ("requests", requests)] {
        for (name, amount) in amounts {
            let parent = path.field(list);
            let at = parent.key(name);
            resource_name(&at, name, errors);
            match Quantity::from_json(amount) {
                Err(error) => errors.invalid_value(&at, amount, &error.to_string()),
                Ok(amount) if amount.is_negative() => {
                    errors.invalid(&at, &amount.to_string(), "must be greater than or equal to 0")
                }
                Ok(amount) if name.contains('/') && !amount.is_whole() => {
                    errors.invalid(&at, &amount.to_string(), "must be an integer");
                }
                Ok(_) => {}
            }
        }
    }
    for (name, request) in requests {
        let at = path.field("requests");
        let request = Quantity::from_json(request);
        let limit = limits.get(name).map(Quantity::from_json);
        match (request, limit) {
            (Ok(request), Some(Ok(limit))) if name.contains('/') && request != limit => errors
                .invalid(
                    &at,
                    &request.to_string(),
                    &format!("must be equal to {name} limit of {limit}"),
                ),
            (Ok(request), Some(Ok(limit))) if request > limit => errors.invalid(
                &at,
                &request.to_string(),
                &format!("must be less than or equal to {name} limit of {limit}"),
            ),
            (Ok(_), None) if name.contains('/') => {
                errors.required(
                    &path.field("limits"),
                    "Limit must be set for non overcommitable resources",
                );
            }
            _ => {}
        }
    }
}

fn resource_name(path: &Path<'_>, name: &str, errors: &mut Errors) {
    let wrong = names::qualified_name(name);
    errors.invalid_all(path, name, &wrong);
    let known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if wrong.is_empty() && !name.contains('/') && !known {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        errors.invalid(path, name, "must be a standard resource for containers");
    }
}

fn mounts(path: &Path<'_>, container: &Fields, volumes: &Volumes<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    let privileged = flag(fields(container, "securityContext"), "privileged");
    for (n, mount) in objects(container, "volumeMounts") {
        let at = path.index(n);
        match text(mount, "name") {
            "" => errors.required(&at.field("name"), ""),
            name if !volumes.contains(name) => errors.not_found(&at.field("name"), name),
            _ => {}
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.required(&at.field("mountPath"), "");
        } else if !seen.insert(target) {
            errors.invalid(&at.field("mountPath"), target, "must be unique");
        }
        for field in ["subPath", "subPathExpr"] {
            let inner = text(mount, field);
            if !inner.is_empty() {
                super::volume::local_path(&at.field(field), inner, errors);
            }
        }
        let propagation = text(mount, "mountPropagation");
        let modes = ["Bidirectional", "HostToContainer", "None"];
        errors.one_of(&at.field("mountPropagation"), propagation, &modes, false);
        if propagation == "Bidirectional" && !privileged {
            errors.forbidden(
                &at.field("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
        let recursive = text(mount, "recursiveReadOnly");
        let modes = ["Disabled", "Enabled", "IfPossible"];
        let field = at.field("recursiveReadOnly");
        errors.one_of(&field, recursive, &modes, false);
        if matches!(recursive, "Enabled" | "IfPossible") {
            if !flag(mount, "readOnly") {
                errors.forbidden(&field, "may only be specified when readOnly is true");
            }
            if !matches!(propagation, "" | "None") {
                errors.forbidden(
                    &field,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            errors.invalid(
                &at.field("subPathExpr"),
                text(mount, "subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::{Value, json};

    use super::super::tests::check_create;

    fn pod(containers: Value) -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"containers": containers, "volumes": [{"name": "v"}]},
        })
    }

    #[test]
    fn names_and_images() {
        check_create(
            "",
            "Pod",
            pod(json!([])),
            &expect![[r#"
            Required spec.containers: Required value
        "#]],
        );
        check_create(
            "",
            "Pod",
            pod(
                json!([{"name": "a"}, {"name": "a", "image": " i"}, {"name": "B", "image": "i", "imagePullPolicy": "Now"}, {}]),
            ),
            &expect![[r#"
                Required spec.containers[0].image: Required value
                Duplicate spec.containers[1].name: Duplicate value: "a"
                Invalid spec.containers[1].image: Invalid value: " i": must not have leading or trailing whitespace
                Invalid spec.containers[2].name: Invalid value: "B": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                NotSupported spec.containers[2].imagePullPolicy: Unsupported value: "Now": supported values: "Always", "IfNotPresent", "Never"
                Required spec.containers[3].name: Required value
                Required spec.containers[3].image: Required value
            "#]],
        );
    }

    #[test]
    fn ports_and_mounts() {
        check_create(
            "",
            "Pod",
            pod(json!([{"name": "c", "image": "i",
                "ports": [
                    {"name": "web", "containerPort": 80}, {"name": "web", "containerPort": 70000},
                    {"name": "WEB", "protocol": "ICMP"},
                ],
                "volumeMounts": [
                    {"name": "v", "mountPath": "/a"}, {"name": "w", "mountPath": "/a"},
                    {"name": "v", "subPath": "../x"},
                    {"name": "v", "mountPath": "/b", "subPath": "/x"},
                ],
            }])),
            &expect![[r#"
                NotFound spec.containers[0].volumeMounts[1].name: Not found: "w"
                Invalid spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/a": must be unique
                Required spec.containers[0].volumeMounts[2].mountPath: Required value
                Invalid spec.containers[0].volumeMounts[2].subPath: Invalid value: "../x": must not contain '..'
                Invalid spec.containers[0].volumeMounts[3].subPath: Invalid value: "/x": must be a relative path
                Duplicate spec.containers[0].ports[1].name: Duplicate value: "web"
                Invalid spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
                Invalid spec.containers[0].ports[2].name: Invalid value: "WEB": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
                Invalid spec.containers[0].ports[2].name: Invalid value: "WEB": must contain at least one letter (a-z)
                Required spec.containers[0].ports[2].containerPort: Required value
                NotSupported spec.containers[0].ports[2].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
            "#]],
        );
    }

    #[test]
    fn variables() {
        check_create(
            "",
            "Pod",
            pod(json!([{"name": "c", "image": "i",
                "env": [
                    {"value": "x"}, {"name": "A=B"}, {"name": "C", "valueFrom": {}},
                    {"name": "D", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}, "secretKeyRef": {"key": "/"}}},
                    {"name": "F", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}},
                    {"name": "G", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                    {"name": "H", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                ],
                "envFrom": [{}, {"configMapRef": {}}, {"configMapRef": {"name": "a"}, "secretRef": {"name": "b"}}],
            }])),
            &expect![[r#"
                Required spec.containers[0].env[0].name: Required value
                Invalid spec.containers[0].env[1].name: Invalid value: "A=B": a valid environment variable name must consist only of printable ASCII characters other than '='
                Invalid spec.containers[0].env[2].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`
                Invalid spec.containers[0].env[3].valueFrom: Invalid value: "": may not be specified when `value` is not empty
                NotSupported spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"
                Required spec.containers[0].env[4].valueFrom.secretKeyRef.name: Required value
                Invalid spec.containers[0].env[4].valueFrom.secretKeyRef.key: Invalid value: "/": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
                Invalid spec.containers[0].env[4].valueFrom: Invalid value: "": may not have more than one field specified at a time
                Invalid spec.containers[0].env[5].valueFrom.resourceFieldRef.divisor: Invalid value: "2": only divisor's values 1m and 1 are supported with the cpu resource
                Invalid spec.containers[0].envFrom[0]: Invalid value: "": must specify one of: `configMapRef` or `secretRef`
                Required spec.containers[0].envFrom[1].configMapRef.name: Required value
                Invalid spec.containers[0].envFrom[2]: Invalid value: "": may not have more than one field specified at a time
            "#]],
        );
    }

    #[test]
    fn resources_and_probes() {
        check_create(
            "",
            "Pod",
            pod(json!([{"name": "c", "image": "i",
                "resources": {
                    "requests": {"cpu": "2", "memory": "lots", "gpio": 1, "pinnace.io/gpio": "0.5", "pinnace.io/spi": 1},
                    "limits": {"cpu": 1, "pinnace.io/gpio": 1, "memory": "-1"},
                },
                "livenessProbe": {"periodSeconds": -1},
                "readinessProbe": {"exec": {}, "httpGet": {"port": 0}},
                "securityContext": {"privileged": true, "allowPrivilegeEscalation": false},
            }])),
            &expect![[r#"
                Invalid spec.containers[0].resources.limits[memory]: Invalid value: "-1": must be greater than or equal to 0
                Invalid spec.containers[0].resources.requests[memory]: Invalid value: "lots": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
                Invalid spec.containers[0].resources.requests[gpio]: Invalid value: "gpio": must be a standard resource type or fully qualified
                Invalid spec.containers[0].resources.requests[gpio]: Invalid value: "gpio": must be a standard resource for containers
                Invalid spec.containers[0].resources.requests[pinnace.io/gpio]: Invalid value: "500m": must be an integer
                Invalid spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1
                Invalid spec.containers[0].resources.requests: Invalid value: "500m": must be equal to pinnace.io/gpio limit of 1
                Required spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources
                Required spec.containers[0].livenessProbe: Required value: must specify a handler type
                Invalid spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0
                Forbidden spec.containers[0].readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type
                Required spec.containers[0].readinessProbe.exec.command: Required value
                Invalid spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive
                Invalid spec.containers[0].securityContext: Invalid value: {"privileged":true,"allowPrivilegeEscalation":false}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true
            "#]],
        );
    }
}
