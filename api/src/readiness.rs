//! Readiness gates: conditions of a pod that others write and that it waits for.
//!
//! A gate is opened by a write to the pod's status, by somebody who asks no node;
//! so `Ready` follows with that write, from `ContainersReady` and the gates.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-readiness-gate>.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::time::rfc3339;

/// The reason of a pod that is not ready because of a gate.
pub const GATES_NOT_READY: &str = "ReadinessGatesNotReady";

/// Which gates of a pod are closed, in Kubernetes' words; `None` if none is.
#[must_use]
pub fn closed_gates(pod: &Value, conditions: &[Value]) -> Option<String> {
    let gates = pod["spec"]["readinessGates"].as_array().into_iter().flatten();
    let closed: Vec<String> = gates
        .filter_map(|gate| {
            let kind = gate["conditionType"].as_str()?;
            match conditions.iter().find(|condition| condition["type"] == kind) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                )),
                Some(condition) if condition["status"] == "True" => None,
                Some(condition) => Some(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    condition["status"].as_str().unwrap_or("Unknown")
                )),
            }
        })
        .collect();
    (!closed.is_empty()).then(|| closed.join(", "))
}

/// Brings `Ready` of a pod that has gates to what they and its containers say.
pub fn follow_gates(pod: &mut Value, now: Timestamp) {
    let has_gates = pod["spec"]["readinessGates"].as_array().is_some_and(|gates| !gates.is_empty());
    let Some(conditions) = pod["status"]["conditions"].as_array().filter(|_| has_gates) else {
        return;
    };
    let find = |kind: &str| conditions.iter().position(|condition| condition["type"] == kind);
    let (Some(at), Some(containers)) = (find("Ready"), find("ContainersReady")) else { return };
    let ready = &conditions[at];
    // A node that is lost, or containers that are not ready, have their own word.
    let is_gated = ready["status"] == "True" || ready["reason"] == GATES_NOT_READY;
    if conditions[containers]["status"] != "True" || !is_gated {
        return;
    }
    let closed = closed_gates(pod, conditions);
    let status = if closed.is_none() { "True" } else { "False" };
    let is_same = ready["status"] == status;
    let ready = &mut pod["status"]["conditions"][at];
    if !is_same {
        ready["status"] = json!(status);
        ready["lastTransitionTime"] = json!(rfc3339(now));
    }
    match (closed, ready.as_object_mut()) {
        (Some(message), _) => {
            ready["reason"] = json!(GATES_NOT_READY);
            ready["message"] = json!(message);
        }
        (None, Some(fields)) => {
            fields.shift_remove("reason");
            fields.shift_remove("message");
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(gate: Option<&str>, ready: Value, containers: &str) -> Value {
        let mut conditions = vec![ready, json!({"type": "ContainersReady", "status": containers})];
        conditions.extend(gate.map(|status| json!({"type": "x/gate", "status": status})));
        json!({
            "spec": {"readinessGates": [{"conditionType": "x/gate"}]},
            "status": {"conditions": conditions},
        })
    }

    #[test]
    fn ready_follows_the_gates_of_a_pod_whose_containers_are_ready() {
        let now = Timestamp::from_second(60).unwrap();
        let ready = |status: &str, reason: &str| json!({"type": "Ready", "status": status, "reason": reason});
        for (gate, before, containers, expected) in [
            (Some("True"), ready("False", GATES_NOT_READY), "True", "True"),
            (Some("False"), ready("True", ""), "True", "False"),
            (None, ready("True", ""), "True", "False"),
            (Some("True"), ready("False", "NodeNotReady"), "True", "False"),
            (Some("True"), ready("False", "ContainersNotReady"), "False", "False"),
        ] {
            let mut pod = pod(gate, before.clone(), containers);
            follow_gates(&mut pod, now);
            assert_eq!(pod["status"]["conditions"][0]["status"], expected, "{gate:?} {before}");
            let again = pod.clone();
            follow_gates(&mut pod, Timestamp::from_second(99).unwrap());
            assert_eq!(pod, again);
        }
    }

    #[test]
    fn a_pod_without_gates_is_left_alone() {
        for mut pod in [
            json!({}),
            json!({"status": {"conditions": 3}}),
            json!({"spec": {"readinessGates": []}}),
        ] {
            let before = pod.clone();
            follow_gates(&mut pod, Timestamp::UNIX_EPOCH);
            assert_eq!(pod, before);
        }
    }
}
