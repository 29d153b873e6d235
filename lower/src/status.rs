//! Turns what a node says about a pod into the Pod's `status`.
//!
//! Pure: the old status, the pod and the report go in, the new status comes
//! out; equal input gives equal output, so that a repeated report writes
//! nothing. The node's clock only fills in timestamps.

use api::Value;
use jiff::Timestamp;
use serde_json::{Map, json};
use wire::status::{ContainerStatusV1, PhaseV1, PodStatusV1, StateV1, TerminatedV1};

/// The pod's status after `report`; `now` is the caller's time.
#[must_use]
pub fn pod_status(pod: &Value, report: &PodStatusV1, host_ip: &str, now: Timestamp) -> Value {
    let old = &pod["status"];
    let mut status = old.as_object().cloned().unwrap_or_default();
    if matches!(old["phase"].as_str(), Some("Succeeded" | "Failed")) {
        // How a pod ended stays as it was told first: its node may have lost that.
        set_text(&mut status, "podIP", &report.pod_ip);
        set_addresses(&mut status, "podIPs", &report.pod_ip);
        return Value::Object(status);
    }
    status.insert("phase".to_owned(), json!(phase(report.phase)));
    set_text(&mut status, "reason", &report.reason);
    set_text(&mut status, "message", &report.message);
    set_text(&mut status, "hostIP", host_ip);
    set_text(&mut status, "podIP", &report.pod_ip);
    set_addresses(&mut status, "hostIPs", host_ip);
    set_addresses(&mut status, "podIPs", &report.pod_ip);
    if report.started_ms != 0 && old["startTime"].is_null() {
        status.insert("startTime".to_owned(), json!(time(report.started_ms)));
    }
    set_containers(&mut status, "initContainerStatuses", &report.init_containers);
    set_containers(&mut status, "containerStatuses", &report.containers);
    set_containers(&mut status, "ephemeralContainerStatuses", &report.ephemeral_containers);
    status.insert("conditions".to_owned(), Value::Array(conditions(old, report, now)));
    Value::Object(status)
}

fn phase(phase: PhaseV1) -> &'static str {
    match phase {
        PhaseV1::Pending => "Pending",
        PhaseV1::Running => "Running",
        PhaseV1::Succeeded => "Succeeded",
        PhaseV1::Failed => "Failed",
    }
}

fn set_text(status: &mut Map<String, Value>, field: &str, text: &str) {
    if text.is_empty() {
        status.remove(field);
    } else {
        status.insert(field.to_owned(), json!(text));
    }
}

fn set_addresses(status: &mut Map<String, Value>, field: &str, address: &str) {
    if address.is_empty() {
        status.remove(field);
    } else {
        status.insert(field.to_owned(), json!([{"ip": address}]));
    }
}

fn set_containers(status: &mut Map<String, Value>, field: &str, containers: &[ContainerStatusV1]) {
    if containers.is_empty() {
        status.remove(field);
    } else {
        status.insert(field.to_owned(), containers.iter().map(container).collect());
    }
}

/// A node's time, in milliseconds since 1970, as Kubernetes writes times.
fn time(milliseconds: u64) -> String {
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    let time = Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    api::time::rfc3339(time)
}

fn container(status: &ContainerStatusV1) -> Value {
    let mut value = json!({
        "name": status.name,
        "image": status.image,
        "imageID": status.image_id,
        "ready": status.ready,
        "restartCount": status.restarts,
        "started": status.started,
        "state": state(&status.state),
        "lastState": {},
    });
    if !status.container_id.is_empty() {
        value["containerID"] = json!(container_id(&status.container_id));
    }
    if let Some(last) = &status.last {
        value["lastState"] = json!({"terminated": terminated(last)});
    }
    value
}

/// Kubernetes names the runtime in front of the id.
fn container_id(id: &str) -> String {
    format!("pinnace://{id}")
}

fn state(state: &StateV1) -> Value {
    match state {
        StateV1::Waiting { reason, message } => {
            let mut waiting = json!({"reason": reason});
            if !message.is_empty() {
                waiting["message"] = json!(message);
            }
            json!({"waiting": waiting})
        }
        StateV1::Running { started_ms } => json!({"running": {"startedAt": time(*started_ms)}}),
        StateV1::Terminated(end) => json!({"terminated": terminated(end)}),
    }
}

fn terminated(end: &TerminatedV1) -> Value {
    let mut value = json!({"exitCode": end.exit_code, "reason": end.reason});
    if !end.message.is_empty() {
        value["message"] = json!(end.message);
    }
    value["startedAt"] =
        if end.started_ms == 0 { Value::Null } else { json!(time(end.started_ms)) };
    value["finishedAt"] = json!(time(end.finished_ms));
    if !end.container_id.is_empty() {
        value["containerID"] = json!(container_id(&end.container_id));
    }
    value
}

/// The conditions of a pod, in Kubernetes' order; those that others write stay.
fn conditions(old: &Value, report: &PodStatusV1, now: Timestamp) -> Vec<Value> {
    let unready: Vec<&str> =
        report.containers.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    let ready = match report.phase {
        PhaseV1::Succeeded => Err(("PodCompleted", String::new())),
        PhaseV1::Failed => Err(("PodFailed", String::new())),
        PhaseV1::Pending | PhaseV1::Running if unready.is_empty() => Ok(()),
        PhaseV1::Pending | PhaseV1::Running => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            Err(("ContainersNotReady", message))
        }
    };
    let has_sandbox = if report.pod_ip.is_empty() { Err(("", String::new())) } else { Ok(()) };
    let mine = [
        ("PodReadyToStartContainers", has_sandbox),
        ("Initialized", Ok(())),
        ("Ready", ready.clone()),
        ("ContainersReady", ready),
        ("PodScheduled", Ok(())),
    ];
    let empty = Vec::new();
    let old = old["conditions"].as_array().unwrap_or(&empty);
    let find = |kind: &str| old.iter().find(|condition| condition["type"] == kind);
    let mut conditions: Vec<Value> = mine
        .iter()
        .map(|(kind, state)| condition(kind, state.as_ref().err(), find(kind), now))
        .collect();
    if report.reason == "Evicted" && find("DisruptionTarget").is_none() {
        conditions.push(json!({
            "type": "DisruptionTarget",
            "status": "True",
            "lastProbeTime": null,
            "lastTransitionTime": api::time::rfc3339(now),
            "reason": "TerminationByKubelet",
            "message": report.message,
        }));
    }
    let is_mine = |kind: &Value| mine.iter().any(|(mine, _)| kind == mine);
    conditions.extend(old.iter().filter(|condition| !is_mine(&condition["type"])).cloned());
    conditions
}

/// One condition; its transition time moves only with its status.
fn condition(
    kind: &str,
    problem: Option<&(&str, String)>,
    old: Option<&Value>,
    now: Timestamp,
) -> Value {
    let status = if problem.is_none() { "True" } else { "False" };
    let since = old
        .filter(|old| old["status"] == status)
        .map(|old| old["lastTransitionTime"].clone())
        .filter(|time| !time.is_null())
        .unwrap_or_else(|| json!(api::time::rfc3339(now)));
    let mut value = json!({
        "type": kind,
        "status": status,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
    if let Some((reason, message)) = problem {
        if !reason.is_empty() {
            value["reason"] = json!(reason);
        }
        if !message.is_empty() {
            value["message"] = json!(message);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use wire::pod::RuntimeV1;

    use super::*;

    fn report(phase: PhaseV1, state: StateV1, ready: bool) -> PodStatusV1 {
        PodStatusV1 {
            uid: [1; 16],
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            generation: 1,
            phase,
            reason: String::new(),
            message: String::new(),
            pod_ip: "10.42.0.2".to_owned(),
            started_ms: 1_000,
            init_containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            containers: vec![ContainerStatusV1 {
                name: "main".to_owned(),
                image: "web:1".to_owned(),
                image_id: "sha256:00".to_owned(),
                runtime: RuntimeV1::Oci,
                container_id: "web-0".to_owned(),
                restarts: 0,
                started: ready,
                ready,
                state,
                last: None,
            }],
            terminated: false,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready_of(status: &Value) -> (&str, &str, &str) {
        let conditions = status["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
        (
            ready["status"].as_str().unwrap(),
            ready["reason"].as_str().unwrap_or(""),
            ready["lastTransitionTime"].as_str().unwrap(),
        )
    }

    #[test]
    fn a_running_pod_is_ready_and_a_repeated_report_changes_nothing() {
        let running = report(PhaseV1::Running, StateV1::Running { started_ms: 2_000 }, true);
        let first = pod_status(&json!({}), &running, "10.0.0.1", at(10));
        assert_eq!(first["phase"], "Running");
        assert_eq!(first["startTime"], "1970-01-01T00:00:01Z");
        assert_eq!(ready_of(&first), ("True", "", "1970-01-01T00:00:10Z"));
        let again = pod_status(&json!({"status": first}), &running, "10.0.0.1", at(99));
        assert_eq!(again, first);
    }

    #[test]
    fn an_evicted_pod_is_marked_as_disrupted_once() {
        let mut evicted = report(PhaseV1::Failed, StateV1::Running { started_ms: 2_000 }, false);
        evicted.reason = "Evicted".to_owned();
        evicted.message = "The node was low on resource: memory.".to_owned();
        let first = pod_status(&json!({}), &evicted, "10.0.0.1", at(10));
        let text = first["conditions"].to_string();
        assert!(text.contains("TerminationByKubelet"), "{text}");
        assert_eq!(first["reason"], "Evicted");
        assert_eq!(pod_status(&json!({"status": first}), &evicted, "10.0.0.1", at(99)), first);
    }

    #[test]
    fn how_a_pod_ended_is_not_told_anew() {
        let end = TerminatedV1 {
            exit_code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
            started_ms: 1,
            finished_ms: 2,
            container_id: "web-0".to_owned(),
        };
        let ended = report(PhaseV1::Succeeded, StateV1::Terminated(end.clone()), false);
        let first = pod_status(&json!({}), &ended, "10.0.0.1", at(10));
        let lost = StateV1::Terminated(TerminatedV1 {
            exit_code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            ..end
        });
        let mut again = report(PhaseV1::Failed, lost, false);
        again.pod_ip = String::new();
        let second = pod_status(&json!({"status": first}), &again, "10.0.0.1", at(20));
        assert_eq!(second["phase"], "Succeeded");
        assert_eq!(second["containerStatuses"], first["containerStatuses"]);
        assert_eq!(second.get("podIP"), None);
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let waiting =
            StateV1::Waiting { reason: "CrashLoopBackOff".to_owned(), message: String::new() };
        let running = report(PhaseV1::Running, StateV1::Running { started_ms: 2_000 }, true);
        let first = pod_status(&json!({}), &running, "10.0.0.1", at(10));
        let second = pod_status(
            &json!({"status": first}),
            &report(PhaseV1::Running, waiting, false),
            "10.0.0.1",
            at(20),
        );
        assert_eq!(ready_of(&second), ("False", "ContainersNotReady", "1970-01-01T00:00:20Z"));
        assert_eq!(
            second["containerStatuses"][0]["state"]["waiting"]["reason"],
            "CrashLoopBackOff"
        );
    }

    #[test]
    fn what_others_wrote_stays() {
        let old = json!({
            "qosClass": "Burstable",
            "conditions": [{"type": "example.com/gate", "status": "True"}],
        });
        let running = report(PhaseV1::Running, StateV1::Running { started_ms: 2_000 }, true);
        let status = pod_status(&json!({"status": old}), &running, "10.0.0.1", at(10));
        assert_eq!(status["qosClass"], "Burstable");
        let conditions = status["conditions"].as_array().unwrap();
        assert!(conditions.iter().any(|c| c["type"] == "example.com/gate"));
    }
}
