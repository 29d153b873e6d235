//! Rules on what a container is asked and told while it runs: probes and hooks.

use serde_json::Value;

use super::container::port_number;
use super::{Errors, Fields, Path, items, number, object, text};
use crate::names;

/// What a probe may ask.
const PROBE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
/// What a hook may do.
const HOOK_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

pub(super) fn probes(path: &Path<'_>, container: &Fields, errors: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(found) = object(container, name) else { continue };
        let at = path.field(name);
        probe(&at, found, errors);
        let grace = "terminationGracePeriodSeconds";
        if name == "readinessProbe" {
            if let Some(seconds) = number(found, grace) {
                let detail = "must not be set for readinessProbes";
                errors.invalid_number(&at.field(grace), seconds, detail);
            }
            continue;
        }
        if let Some(seconds) = number(found, grace).filter(|seconds| *seconds <= 0) {
            errors.invalid_number(&at.field(grace), seconds, "must be greater than 0");
        }
        let threshold = "successThreshold";
        if let Some(count) = number(found, threshold).filter(|count| *count > 1) {
            errors.invalid_number(&at.field(threshold), count, "must be 1");
        }
    }
}

pub(super) fn lifecycle(path: &Path<'_>, container: &Fields, errors: &mut Errors) {
    let Some(lifecycle) = object(container, "lifecycle") else { return };
    let parent = path.field("lifecycle");
    for name in ["postStart", "preStop"] {
        let Some(hook) = object(lifecycle, name) else { continue };
        let at = parent.field(name);
        handler(&at, hook, HOOK_HANDLERS, errors);
        if let Some(sleep) = object(hook, "sleep") {
            let place = at.field("sleep");
            errors.not_negative(&place.field("seconds"), number(sleep, "seconds"));
        }
    }
    let signal = text(lifecycle, "stopSignal");
    let is_name = signal.strip_prefix("SIG").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"+-".contains(&b))
    });
    if !signal.is_empty() && !is_name {
        let detail = "must be the name of a signal, such as SIGTERM or SIGRTMIN+3";
        errors.invalid(&parent.field("stopSignal"), signal, detail);
    }
}

fn probe(path: &Path<'_>, probe: &Fields, errors: &mut Errors) {
    handler(path, probe, PROBE_HANDLERS, errors);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.not_negative(&path.field(field), number(probe, field));
    }
}

/// What is asked or done: exactly one of `handlers`.
fn handler(path: &Path<'_>, probe: &Fields, handlers: &[&str], errors: &mut Errors) {
    let is_set = |name: &&&str| probe.get(**name).is_some_and(|value| !value.is_null());
    if handlers.iter().filter(is_set).count() == 0 {
        errors.required(path, "must specify a handler type");
    }
    for name in handlers.iter().filter(is_set).skip(1) {
        errors.forbidden(&path.field(name), "may not specify more than 1 handler type");
    }
    if let Some(call) = object(probe, "exec")
        && items(call, "command").is_empty()
    {
        errors.required(&path.field("exec").field("command"), "");
    }
    for name in ["httpGet", "tcpSocket", "grpc"] {
        let Some(port) = object(probe, name).and_then(|handler| handler.get("port")) else {
            continue;
        };
        let parent = path.field(name);
        let at = parent.field("port");
        match port {
            Value::Number(number) => port_number(&at, number.as_i64().unwrap_or(-1), errors),
            Value::String(name) => errors.invalid_all(&at, name, &names::port_name(name)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::super::tests::check_create;

    #[test]
    fn probes_and_hooks() {
        let main = json!({"name": "c", "image": "i",
            "livenessProbe": {"grpc": {"port": 70000}, "successThreshold": 2, "terminationGracePeriodSeconds": 0},
            "readinessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2, "terminationGracePeriodSeconds": 5},
            "lifecycle": {"postStart": {"sleep": {"seconds": -1}}, "preStop": {}, "stopSignal": "INT"},
        });
        let init = json!([
            {"name": "i", "image": "i", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}},
            {"name": "s", "image": "i", "restartPolicy": "Always",
             "startupProbe": {"exec": {"command": ["x"]}}},
            {"name": "o", "image": "i", "restartPolicy": "Sometimes"},
        ]);
        check_create(
            "",
            "Pod",
            json!({
                "metadata": {"name": "a", "namespace": "b"},
                "spec": {"initContainers": init, "containers": [main]},
            }),
            &expect![[r#"
                Invalid spec.containers[0].livenessProbe.grpc.port: Invalid value: 70000: must be between 1 and 65535, inclusive
                Invalid spec.containers[0].livenessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0
                Invalid spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
                Invalid spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes
                Invalid spec.containers[0].lifecycle.postStart.sleep.seconds: Invalid value: -1: must be greater than or equal to 0
                Required spec.containers[0].lifecycle.preStop: Required value: must specify a handler type
                Invalid spec.containers[0].lifecycle.stopSignal: Invalid value: "INT": must be the name of a signal, such as SIGTERM or SIGRTMIN+3
                Forbidden spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always
                NotSupported spec.initContainers[2].restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"
            "#]],
        );
    }
}
