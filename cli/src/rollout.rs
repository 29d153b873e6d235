//! How far a workload is: a pure function of the object, in the words of
//! `kubectl rollout status`.

use serde_json::Value;

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All is as wanted.
    Done(String),
    /// Not yet; what is missing, and how many of how many pods are there.
    Waiting { message: String, ready: i64, wanted: i64 },
    /// It will not come without help.
    Failed(String),
    /// There is nothing to wait for in such an object.
    Nothing,
}

/// How far `object` is.
pub(crate) fn progress(object: &Value) -> Progress {
    let kind = object["kind"].as_str().unwrap_or_default();
    match kind {
        "Deployment" => deployment(object),
        "ReplicaSet" => replica_set(object),
        "Pod" => pod(object),
        _ => Progress::Nothing,
    }
}

fn int(object: &Value, group: &str, key: &str) -> i64 {
    object[group][key].as_i64().unwrap_or(0)
}

fn name(object: &Value) -> &str {
    api::meta::name(object)
}

/// The condition of a type.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn deployment(object: &Value) -> Progress {
    let name = name(object);
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
    let available = int(object, "status", "availableReplicas");
    let waiting = |message: String| Progress::Waiting { message, ready: available, wanted };
    if int(object, "metadata", "generation") > int(object, "status", "observedGeneration") {
        return waiting("Waiting for deployment spec update to be observed...".to_owned());
    }
    let exceeded = condition(object, "Progressing")
        .is_some_and(|condition| condition["reason"] == "ProgressDeadlineExceeded");
    if exceeded {
        return Progress::Failed(format!("deployment \"{name}\" exceeded its progress deadline"));
    }
    let updated = int(object, "status", "updatedReplicas");
    let replicas = int(object, "status", "replicas");
    let prefix = format!("Waiting for deployment \"{name}\" rollout to finish:");
    if updated < wanted {
        return waiting(format!(
            "{prefix} {updated} out of {wanted} new replicas have been updated..."
        ));
    }
    if replicas > updated {
        let old = replicas - updated;
        return waiting(format!("{prefix} {old} old replicas are pending termination..."));
    }
    if available < updated {
        return waiting(format!(
            "{prefix} {available} of {updated} updated replicas are available..."
        ));
    }
    Progress::Done(format!("deployment \"{name}\" successfully rolled out"))
}

fn replica_set(object: &Value) -> Progress {
    let name = name(object);
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
    let available = int(object, "status", "availableReplicas");
    let observed =
        int(object, "metadata", "generation") <= int(object, "status", "observedGeneration");
    if observed && available >= wanted && int(object, "status", "replicas") == wanted {
        return Progress::Done(format!("replicaset \"{name}\" is complete"));
    }
    let message = format!(
        "Waiting for replicaset \"{name}\": {available} of {wanted} replicas are available..."
    );
    Progress::Waiting { message, ready: available, wanted }
}

fn pod(object: &Value) -> Progress {
    let name = name(object);
    let phase = object["status"]["phase"].as_str().unwrap_or("Pending");
    let ready = condition(object, "Ready").is_some_and(|condition| condition["status"] == "True");
    match phase {
        "Succeeded" => Progress::Done(format!("pod \"{name}\" has succeeded")),
        "Failed" => Progress::Failed(format!("pod \"{name}\" has failed")),
        _ if ready => Progress::Done(format!("pod \"{name}\" is ready")),
        _ => {
            let message = format!("Waiting for pod \"{name}\" to be ready ({phase})...");
            Progress::Waiting { message, ready: 0, wanted: 1 }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: Value) -> Progress {
        progress(&json!({
            "kind": "Deployment", "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 3}, "status": status,
        }))
    }

    fn message(progress: Progress) -> String {
        match progress {
            Progress::Waiting { message, .. } => message,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_deployment_is_followed_to_its_end() {
        let status = |observed, replicas, updated, available| {
            message(deployment(json!({
                "observedGeneration": observed, "replicas": replicas,
                "updatedReplicas": updated, "availableReplicas": available,
            })))
        };
        assert_eq!(status(1, 3, 3, 3), "Waiting for deployment spec update to be observed...");
        let prefix = "Waiting for deployment \"web\" rollout to finish:";
        assert_eq!(
            status(2, 3, 1, 3),
            format!("{prefix} 1 out of 3 new replicas have been updated...")
        );
        assert_eq!(
            status(2, 4, 3, 3),
            format!("{prefix} 1 old replicas are pending termination...")
        );
        assert_eq!(
            status(2, 3, 3, 2),
            format!("{prefix} 2 of 3 updated replicas are available...")
        );
        assert_eq!(status(2, 3, 3, 3), "Done(\"deployment \\\"web\\\" successfully rolled out\")");
        let exceeded = json!({"observedGeneration": 2, "conditions": [
            {"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]});
        assert!(matches!(deployment(exceeded), Progress::Failed(_)));
    }

    #[test]
    fn pods_and_sets_too() {
        let pod = |status: Value| {
            progress(&json!({"kind": "Pod", "metadata": {"name": "a"}, "status": status}))
        };
        assert!(matches!(pod(json!({})), Progress::Waiting { .. }));
        assert!(matches!(pod(json!({"phase": "Failed"})), Progress::Failed(_)));
        assert!(matches!(pod(json!({"phase": "Succeeded"})), Progress::Done(_)));
        let ready =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert!(matches!(pod(ready), Progress::Done(_)));
        let set = |available: i64| {
            progress(&json!({"kind": "ReplicaSet", "metadata": {"name": "a", "generation": 1},
                "spec": {"replicas": 2}, "status": {"observedGeneration": 1, "replicas": 2,
                "availableReplicas": available}}))
        };
        assert!(matches!(set(1), Progress::Waiting { ready: 1, wanted: 2, .. }));
        assert!(matches!(set(2), Progress::Done(_)));
        assert_eq!(progress(&json!({"kind": "ConfigMap"})), Progress::Nothing);
    }
}
