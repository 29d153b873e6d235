//! READY, STATUS and RESTARTS of a pod: many states of many containers in a word.
//!
//! Source: `printPod` in `k8s.io/kubernetes/pkg/printers/internalversion`.

use api::time;
use jiff::Timestamp;
use serde_json::Value;

use crate::object::{is_deleting, text};
use crate::printers::{NONE, or, since};

/// The words for a pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PodText {
    /// `1/2`.
    pub(crate) ready: String,
    /// `Running`, `CrashLoopBackOff`, `Init:0/1`, `Terminating`, ...
    pub(crate) status: String,
    /// `3 (5m ago)`.
    pub(crate) restarts: String,
}

/// How often containers were started again, and when the last of them had ended.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += container["restartCount"].as_i64().unwrap_or(0);
        let ended = text(container, &["lastState", "terminated", "finishedAt"]);
        self.last = self.last.max(time::parse(ended));
    }
}

/// The words for `pod` as seen at `now`.
pub(crate) fn pod_text(pod: &Value, now: Timestamp) -> PodText {
    let list =
        |part: &str, key: &str| pod[part][key].as_array().map(Vec::as_slice).unwrap_or_default();
    let specs = list("spec", "initContainers");
    let mut status = pod_reason(pod);
    let mut n_ready = 0;
    let mut n_total = list("spec", "containers").len();
    n_total += specs.iter().filter(|spec| is_restartable(spec)).count();

    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (n, container) in list("status", "initContainerStatuses").iter().enumerate() {
        restarts.add(container);
        let sidecar =
            specs.iter().any(|spec| spec["name"] == container["name"] && is_restartable(spec));
        if sidecar {
            sidecar_restarts.add(container);
        }
        let state = &container["state"];
        let terminated = &state["terminated"];
        if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            n_ready += usize::from(container["ready"] == true);
            continue;
        }
        let waiting = text(state, &["waiting", "reason"]);
        status = if terminated.is_object() {
            format!("Init:{}", terminated_reason(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{n}/{}", specs.len())
        };
        initializing = true;
        break;
    }

    if !initializing || has_condition(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        for container in list("status", "containerStatuses").iter().rev() {
            restarts.add(container);
            let state = &container["state"];
            let waiting = text(state, &["waiting", "reason"]);
            if !waiting.is_empty() {
                waiting.clone_into(&mut status);
            } else if state["terminated"].is_object() {
                status = terminated_reason(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                n_ready += 1;
            }
        }
        if status == "Completed" && running {
            let word = if has_condition(pod, "Ready") { "Running" } else { "NotReady" };
            word.clone_into(&mut status);
        }
    }

    if is_deleting(pod) {
        if text(pod, &["status", "reason"]) == "NodeLost" {
            "Unknown".clone_into(&mut status);
        } else if !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut status);
        }
    }
    let restarts = match restarts.last {
        Some(last) if restarts.count > 0 => {
            format!("{} ({} ago)", restarts.count, since(&time::rfc3339(last), now))
        }
        _ => restarts.count.to_string(),
    };
    PodText { ready: format!("{n_ready}/{n_total}"), status, restarts }
}

/// `1/2` of the readiness gates hold.
pub(crate) fn readiness_gates(pod: &Value) -> String {
    let gates = pod["spec"]["readinessGates"].as_array().map(Vec::as_slice).unwrap_or_default();
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let held = gates
        .iter()
        .filter(|gate| gate["conditionType"].as_str().is_some_and(|kind| has_condition(pod, kind)))
        .count();
    format!("{held}/{}", gates.len())
}

fn pod_reason(pod: &Value) -> String {
    let phase = or(text(pod, &["status", "phase"]), "Unknown");
    let conditions = pod["status"]["conditions"].as_array();
    let gated = conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        return "SchedulingGated".to_owned();
    }
    or(text(pod, &["status", "reason"]), phase).to_owned()
}

fn terminated_reason(terminated: &Value) -> String {
    let reason = text(terminated, &["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match terminated["signal"].as_i64() {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
    }
}

fn is_restartable(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(pod: &Value, expected: &str) {
        let now = time::parse("2026-01-01T00:10:00Z").unwrap();
        let shown = pod_text(pod, now);
        assert_eq!(format!("{} {} {}", shown.ready, shown.status, shown.restarts), expected);
    }

    fn pod(phase: &str, statuses: Value) -> Value {
        json!({
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"phase": phase, "containerStatuses": statuses},
        })
    }

    #[test]
    fn containers_speak_for_their_pod() {
        let up = json!({"ready": true, "state": {"running": {}}});
        let crash = json!({
            "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}},
        });
        let done = json!({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let killed = json!({"state": {"terminated": {"exitCode": 137, "signal": 9}}});
        let failed = json!({"state": {"terminated": {"exitCode": 2}}});
        check(&pod("Pending", json!([])), "0/2 Pending 0");
        check(&pod("Running", json!([up, up])), "2/2 Running 0");
        check(&pod("Running", json!([up, crash])), "1/2 CrashLoopBackOff 3 (5m ago)");
        check(&pod("Succeeded", json!([done, done])), "0/2 Completed 0");
        check(&pod("Running", json!([done, up])), "1/2 NotReady 0");
        check(&pod("Failed", json!([killed])), "0/2 Signal:9 0");
        check(&pod("Failed", json!([failed])), "0/2 ExitCode:2 0");
        let mut going = pod("Running", json!([up, up]));
        going["metadata"] = json!({"deletionTimestamp": "x"});
        check(&going, "2/2 Terminating 0");
        going["status"]["reason"] = json!("NodeLost");
        check(&going, "2/2 Unknown 0");
        let mut evicted = pod("Failed", json!([]));
        evicted["status"]["reason"] = json!("Evicted");
        check(&evicted, "0/2 Evicted 0");
        check(&json!({}), "0/0 Unknown 0");
    }

    #[test]
    fn init_containers_come_first() {
        let init = |statuses: Value| {
            json!({
                "spec": {"containers": [{"name": "a"}],
                         "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
                "status": {"phase": "Pending", "initContainerStatuses": statuses},
            })
        };
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        check(&init(json!([{"name": "i", "state": {"running": {}}}])), "0/2 Init:0/2 0");
        check(
            &init(
                json!([done, {"name": "s", "state": {"waiting": {"reason": "PodInitializing"}}}]),
            ),
            "0/2 Init:1/2 0",
        );
        check(
            &init(
                json!([{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "ErrImagePull"}}}]),
            ),
            "0/2 Init:ErrImagePull 2",
        );
        check(
            &init(json!([{"name": "i", "state": {"terminated": {"exitCode": 3}}}])),
            "0/2 Init:ExitCode:3 0",
        );
        check(
            &init(
                json!([done, {"name": "s", "started": true, "ready": true, "state": {"running": {}}}]),
            ),
            "1/2 Pending 0",
        );
    }
}
