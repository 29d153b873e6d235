//! The changes this controller makes to Node and Pod objects. Pure.

use api::Value;
use scheduler::Taint;
use serde_json::{Map, json};

/// The reason on pods whose node was lost.
pub(crate) const NODE_LOST: &str = "NodeNotReady";
/// Conditions that nobody knows any more once the node is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Sets what the node reported to `Unknown`. Returns whether that changed anything.
pub(super) fn unknown(node: &mut Value, now: &str) -> bool {
    let conditions = list(node, "status", "conditions");
    let mut changed = false;
    for kind in REPORTED {
        let known = conditions.iter_mut().find(|c| c.get("type") == Some(&kind.into()));
        match known {
            Some(condition) if condition.get("status") == Some(&"Unknown".into()) => {}
            Some(condition) => {
                condition["status"] = "Unknown".into();
                condition["reason"] = "NodeStatusUnknown".into();
                condition["message"] = "Kubelet stopped posting node status.".into();
                condition["lastTransitionTime"] = now.into();
                changed = true;
            }
            None if kind == "Ready" => {
                conditions.push(json!({
                    "type": kind,
                    "status": "Unknown",
                    "reason": "NodeStatusNeverUpdated",
                    "message": "Kubelet never posted node status.",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }));
                changed = true;
            }
            None => {}
        }
    }
    changed
}

/// Adds and removes taints. Returns whether that changed anything.
pub(super) fn taints(node: &mut Value, add: &[Taint], remove: &[Taint], now: &str) -> bool {
    let taints = list(node, "spec", "taints");
    let before = taints.clone();
    let same = |value: &Value, taint: &Taint| {
        value.get("key") == Some(&(*taint.key).into())
            && value.get("effect") == Some(&taint.effect.as_str().into())
    };
    taints.retain(|value| !remove.iter().any(|taint| same(value, taint)));
    for taint in add {
        if !taints.iter().any(|value| same(value, taint)) {
            let (key, effect) = (&*taint.key, taint.effect.as_str());
            taints.push(json!({"key": key, "effect": effect, "timeAdded": now}));
        }
    }
    let changed = *taints != before;
    if taints.is_empty()
        && let Some(spec) = node.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.remove("taints");
    }
    changed
}

/// Sets a pod's `Ready` to what its node's state makes it: `False` while the
/// node is lost, what its containers are once it is `back`.
pub(super) fn pod(pod: &mut Value, back: bool, now: &str) -> bool {
    let conditions = list(pod, "status", "conditions");
    let status_of = |conditions: &[Value], kind: &str| {
        let found = conditions.iter().find(|c| c.get("type") == Some(&kind.into()));
        found.and_then(|c| c.get("status")).and_then(Value::as_str).map(str::to_owned)
    };
    let containers = status_of(conditions, "ContainersReady").unwrap_or_else(|| "True".to_owned());
    let Some(ready) = conditions.iter_mut().find(|c| c.get("type") == Some(&"Ready".into())) else {
        return false;
    };
    let marked = ready.get("reason") == Some(&NODE_LOST.into());
    if back {
        if !marked {
            return false;
        }
        ready["status"] = containers.into();
        if let Some(ready) = ready.as_object_mut() {
            ready.remove("reason");
            ready.remove("message");
        }
    } else {
        if ready.get("status") != Some(&"True".into()) {
            return false;
        }
        ready["status"] = "False".into();
        ready["reason"] = NODE_LOST.into();
        ready["message"] = "the node is not heard of".into();
    }
    ready["lastTransitionTime"] = now.into();
    true
}

/// The list `object.part.field`, made where it is missing.
fn list<'a>(object: &'a mut Value, part: &str, field: &str) -> &'a mut Vec<Value> {
    let root = object.as_object_mut().expect("an API object is a JSON object");
    let part = root.entry(part).or_insert_with(|| Value::Object(Map::new()));
    if !part.is_object() {
        *part = Value::Object(Map::new());
    }
    let map = part.as_object_mut().expect("just made one");
    let list = map.entry(field).or_insert_with(|| Value::Array(Vec::new()));
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut().expect("just made one")
}
