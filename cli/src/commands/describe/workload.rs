//! Deployments and ReplicaSets.

use jiff::Timestamp;
use serde_json::Value;

use super::outline::{Entry, Outline, text};
use super::{conditions, pairs, pod};
use crate::stuck;

pub(super) fn describe(outline: &mut Outline, object: &Value, now: Timestamp) {
    let (spec, status) = (&object["spec"], &object["status"]);
    outline.text("Selector", &stuck::selector(&spec["selector"]));
    let count = |key: &str| status[key].as_i64().unwrap_or(0);
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    if object["kind"] == "Deployment" {
        let unavailable = (wanted - count("availableReplicas")).max(0);
        outline.text(
            "Replicas",
            &format!(
                "{wanted} desired | {} updated | {} total | {} available | {unavailable} unavailable",
                count("updatedReplicas"),
                count("replicas"),
                count("availableReplicas")
            ),
        );
        let rolling = &spec["strategy"]["rollingUpdate"];
        let mut strategy = text(&spec["strategy"]["type"]);
        if rolling.is_object() {
            strategy.push_str(&format!(
                ", {} max unavailable, {} max surge",
                text(&rolling["maxUnavailable"]),
                text(&rolling["maxSurge"])
            ));
        }
        outline.text_if("Strategy", &strategy);
        if spec["paused"] == true {
            outline.text("Paused", "true");
        }
    } else {
        let (current, ready) = (count("replicas"), count("readyReplicas"));
        outline.text("Replicas", &format!("{current} current / {wanted} desired | {ready} ready"));
    }
    let mut template = Outline::default();
    template.lines("Labels", pairs(&spec["template"]["metadata"]["labels"], "="));
    pod::template(&mut template, &spec["template"]["spec"], &Value::Null, now);
    outline.push(Entry::Block("Pod Template".to_owned(), template.0));
    outline.extend(conditions(object, now));
}
