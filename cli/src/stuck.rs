//! Why a workload does not come up: what its pods wait for.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::kinds::Kind;
use crate::rollout::condition;
use crate::text::printable;
use crate::urls::with_query;

/// At most so many reasons are told.
const REASONS_MAX: usize = 5;
/// Reasons that only say that it has not happened yet.
const ORDINARY: &[&str] = &["ContainerCreating", "PodInitializing", ""];

/// One line for each thing that is in the way of `object`: a pod, or a workload
/// with a selector.
pub(crate) async fn reasons(cluster: &Cluster, object: &Value) -> Result<Vec<String>, Failure> {
    let namespace = api::meta::namespace(object);
    let mut reasons = Vec::new();
    if let Some(condition) = condition(object, "ReplicaFailure")
        && condition["status"] == "True"
    {
        reasons.push(said(condition));
    }
    let pods = if object["kind"] == "Pod" {
        vec![object.clone()]
    } else {
        pods_of(cluster, object).await?
    };
    for pod in &pods {
        if reasons.len() >= REASONS_MAX {
            break;
        }
        let found = pod_reasons(pod);
        if found.is_empty() && is_unbound(pod) {
            reasons.extend(scheduling(cluster, namespace, pod).await?);
        }
        reasons.extend(found);
    }
    reasons.truncate(REASONS_MAX);
    Ok(reasons)
}

/// The pods that a workload's selector finds.
pub(crate) async fn pods_of(cluster: &Cluster, object: &Value) -> Result<Vec<Value>, Failure> {
    let selector = selector(&object["spec"]["selector"]);
    if selector.is_empty() {
        return Ok(Vec::new());
    }
    let path = Kind::pods().collection(Some(api::meta::namespace(object)));
    let query = [("labelSelector", selector.as_str()), ("limit", "500")];
    let mut list = cluster.get(&with_query(&path, &query)).await?;
    match list["items"].take() {
        Value::Array(pods) => Ok(pods),
        _ => Ok(Vec::new()),
    }
}

/// A selector of an object in the form of a query.
pub(crate) fn selector(selector: &Value) -> String {
    let mut parts = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

fn is_unbound(pod: &Value) -> bool {
    pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty()
}

/// `Reason: message` of a condition or a state.
fn said(value: &Value) -> String {
    let reason = value["reason"].as_str().unwrap_or_default();
    let message = printable(value["message"].as_str().unwrap_or_default().trim());
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

/// What a pod itself says that it waits for.
fn pod_reasons(pod: &Value) -> Vec<String> {
    let name = api::meta::name(pod);
    let mut reasons = Vec::new();
    if let Some(condition) = condition(pod, "PodScheduled")
        && condition["status"] == "False"
        && condition["message"].as_str().is_some_and(|message| !message.is_empty())
    {
        reasons.push(format!("pod {name}: {}", said(condition)));
    }
    if pod["status"]["phase"] == "Failed" && pod["status"]["reason"].is_string() {
        reasons.push(format!("pod {name}: {}", said(&pod["status"])));
    }
    for list in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][list].as_array().into_iter().flatten() {
            let container = status["name"].as_str().unwrap_or_default();
            let waiting = &status["state"]["waiting"];
            let terminated = [&status["state"]["terminated"], &status["lastState"]["terminated"]]
                .into_iter()
                .find(|state| state["exitCode"].as_i64().is_some_and(|code| code != 0));
            let mut parts = Vec::new();
            if waiting.is_object() && !ORDINARY.contains(&waiting["reason"].as_str().unwrap_or(""))
            {
                parts.push(said(waiting));
            }
            if let Some(state) = terminated {
                parts.push(format!("last exit code {}: {}", state["exitCode"], said(state)));
            }
            if !parts.is_empty() {
                reasons.push(format!("pod {name}, container {container}: {}", parts.join("; ")));
            }
        }
    }
    reasons
}

/// What the scheduler says about a pod.
async fn scheduling(
    cluster: &Cluster,
    namespace: &str,
    pod: &Value,
) -> Result<Option<String>, Failure> {
    let name = api::meta::name(pod);
    let fields = format!("involvedObject.name={name},reason=FailedScheduling");
    let path = Kind::core("events", "Event", true).collection(Some(namespace));
    let events = cluster.get(&with_query(&path, &[("fieldSelector", &fields)])).await?;
    let last = events["items"].as_array().and_then(|events| events.last());
    Ok(last.map(|event| format!("pod {name}: {}", said(event))))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_says_what_it_waits_for() {
        let pod = json!({
            "metadata": {"name": "web-1"},
            "status": {
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": "0/2 nodes are available: 2 Insufficient memory."}],
                "containerStatuses": [
                    {"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}},
                    {"name": "b", "state": {"waiting": {"reason": "ImagePullBackOff",
                        "message": "no such image: registry/x:1"}}},
                    {"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                     "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}},
                    {"name": "d", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                ],
            },
        });
        expect![[r#"
            pod web-1: Unschedulable: 0/2 nodes are available: 2 Insufficient memory.
            pod web-1, container b: ImagePullBackOff: no such image: registry/x:1
            pod web-1, container c: CrashLoopBackOff: back-off 10s; last exit code 3: Error"#]]
        .assert_eq(&pod_reasons(&pod).join("\n"));
    }

    #[test]
    fn selectors_become_queries() {
        let object = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "x", "operator": "NotIn", "values": ["c"]},
                {"key": "y", "operator": "Exists"}, {"key": "z", "operator": "DoesNotExist"},
            ],
        });
        assert_eq!(selector(&object), "app=web,tier in (a,b),x notin (c),y,!z");
        assert_eq!(selector(&Value::Null), "");
    }
}
