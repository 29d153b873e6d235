//! Defaults of a pod and of a template that pods are made from.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core/v1/defaults.go`.

use serde_json::{Value, json};

use super::{
    Fields, child, children, quantity, resource_list, set_if_absent, set_if_empty, set_if_zero,
};

/// Mode of files from ConfigMaps and Secrets: 0644.
const FILE_MODE: i64 = 0o644;

/// A pod: what templates get, and what only a pod itself gets.
pub(super) fn pod(spec: &mut Fields) {
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in children(spec, list) {
            requests_from_limits(container);
        }
    }
    set_if_absent(spec, "enableServiceLinks", || json!(true));
}

/// The template in a workload's `spec`.
pub(crate) fn pod_template(template: &mut Fields) {
    set_if_absent(template, "metadata", || json!({}));
    if let Some(spec) = child(template, "spec") {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Fields) {
    set_if_empty(spec, "restartPolicy", "Always");
    set_if_empty(spec, "dnsPolicy", "ClusterFirst");
    set_if_absent(spec, "terminationGracePeriodSeconds", || json!(30));
    set_if_absent(spec, "securityContext", || json!({}));
    set_if_empty(spec, "schedulerName", "default-scheduler");
    // The old name and the new one say the same; the new one wins.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|name| spec.get(*name)?.as_str().filter(|name| !name.is_empty()));
    if let Some(account) = account.map(str::to_owned) {
        spec.insert("serviceAccountName".to_owned(), account.clone().into());
        spec.insert("serviceAccount".to_owned(), account.into());
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for fields in children(spec, list) {
            container(fields, host_network);
        }
    }
    for fields in children(spec, "volumes") {
        volume(fields);
    }
    if let Some(amounts) = child(spec, "overhead") {
        resource_list(amounts);
    }
}

fn container(container: &mut Fields, host_network: bool) {
    set_if_absent(container, "resources", || json!({}));
    if let Some(resources) = child(container, "resources") {
        for list in ["limits", "requests"] {
            if let Some(amounts) = child(resources, list) {
                resource_list(amounts);
            }
        }
    }
    for port in children(container, "ports") {
        set_if_empty(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set_if_absent(port, "hostPort", || number);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(fields) = child(container, name) {
            probe(fields);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(request) = child(lifecycle, hook).and_then(|hook| child(hook, "httpGet")) {
                http_get(request);
            }
        }
    }
    for variable in children(container, "env") {
        let Some(source) = child(variable, "valueFrom") else { continue };
        reference(source);
    }
    set_if_empty(container, "terminationMessagePath", "/dev/termination-log");
    set_if_empty(container, "terminationMessagePolicy", "File");
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = image_pull_policy(image);
    set_if_empty(container, "imagePullPolicy", policy);
}

/// `Always` for an image that is `latest`, said or unsaid, else `IfNotPresent`.
#[must_use]
pub fn image_pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    let latest = match (last.contains('@'), last.split('@').next().unwrap_or(last).split_once(':'))
    {
        (_, Some((_, tag))) => tag == "latest",
        (with_digest, None) => !with_digest,
    };
    if latest { "Always" } else { "IfNotPresent" }
}

fn requests_from_limits(container: &mut Fields) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    set_if_absent(resources, "requests", || json!({}));
    if let Some(requests) = child(resources, "requests") {
        for (name, amount) in limits {
            set_if_absent(requests, &name, || amount);
        }
    }
}

fn probe(probe: &mut Fields) {
    if let Some(request) = child(probe, "httpGet") {
        http_get(request);
    }
    if let Some(call) = child(probe, "grpc") {
        set_if_absent(call, "service", || json!(""));
    }
    set_if_zero(probe, "timeoutSeconds", 1);
    set_if_zero(probe, "periodSeconds", 10);
    set_if_zero(probe, "successThreshold", 1);
    set_if_zero(probe, "failureThreshold", 3);
}

fn http_get(request: &mut Fields) {
    set_if_empty(request, "path", "/");
    set_if_empty(request, "scheme", "HTTP");
}

fn volume(volume: &mut Fields) {
    let sourceless = volume.iter().all(|(name, value)| name == "name" || value.is_null());
    if sourceless {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for name in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = child(volume, name) {
            set_if_absent(source, "defaultMode", || json!(FILE_MODE));
            for file in children(source, "items") {
                reference(file);
            }
        }
    }
    if let Some(projected) = child(volume, "projected") {
        for source in children(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                set_if_absent(token, "expirationSeconds", || json!(3600));
            }
            if let Some(api) = child(source, "downwardAPI") {
                children(api, "items").for_each(reference);
            }
        }
    }
    if let Some(path) = child(volume, "hostPath") {
        set_if_absent(path, "type", || json!(""));
    }
    if let Some(folder) = child(volume, "emptyDir") {
        quantity(folder, "sizeLimit");
    }
}

/// `fieldRef` and `resourceFieldRef`, in a variable or a downward file.
fn reference(source: &mut Fields) {
    if let Some(field) = child(source, "fieldRef") {
        set_if_empty(field, "apiVersion", "v1");
    }
    if let Some(field) = child(source, "resourceFieldRef") {
        set_if_absent(field, "divisor", || json!("0"));
        quantity(field, "divisor");
    }
}

#[cfg(test)]
mod tests {
    use super::image_pull_policy;

    #[test]
    fn only_latest_is_always_pulled() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("r:5000/a", "Always"),
            ("a:1", "IfNotPresent"),
            ("r:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
            ("a:latest@sha256:00", "Always"),
            ("", "Always"),
        ] {
            assert_eq!(image_pull_policy(image), policy, "{image}");
        }
    }
}
