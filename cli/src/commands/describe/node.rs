//! Nodes, and what the pods on them take.

use api::quantity::Quantity;
use jiff::Timestamp;
use serde_json::Value;

use super::outline::{Entry, Outline, text};
use super::{conditions, pairs};
use crate::text::since;

pub(super) fn describe(outline: &mut Outline, node: &Value, pods: &[Value], now: Timestamp) {
    let taints: Vec<String> = node["spec"]["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|taint| {
            let value = text(&taint["value"]);
            let value = if value.is_empty() { value } else { format!("={value}") };
            format!("{}{value}:{}", text(&taint["key"]), text(&taint["effect"]))
        })
        .collect();
    outline.lines("Taints", taints);
    let unschedulable = node["spec"]["unschedulable"] == true;
    outline.text("Unschedulable", &unschedulable.to_string());
    outline.text_if("Pod CIDR", &text(&node["spec"]["podCIDR"]));
    outline.extend(conditions(node, now));
    let addresses: Vec<String> = node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|address| format!("{}: {}", text(&address["type"]), text(&address["address"])))
        .collect();
    outline.lines("Addresses", addresses);
    for (title, key) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        outline.lines(title, pairs(&node["status"][key], ": "));
    }
    let info = node["status"]["nodeInfo"].as_object().into_iter().flatten();
    let info = info
        .filter(|(_, value)| value.as_str().is_some_and(|value| !value.is_empty()))
        .map(|(key, value)| Entry::Text(key.clone(), text(value)));
    outline.push(Entry::block("System Info", info.collect()));
    allocated(outline, node, pods, now);
}

/// The pods that take something of the node, and how much it is.
fn allocated(outline: &mut Outline, node: &Value, pods: &[Value], now: Timestamp) {
    let active: Vec<&Value> = pods
        .iter()
        .filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
        .collect();
    let amount = |pod: &Value, group: &str, resource: &str| -> i64 {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let quantities = containers
            .filter_map(|one| Quantity::from_json(one["resources"][group].get(resource)?).ok());
        let each = quantities.map(|q| if resource == "cpu" { q.millis() } else { q.units() });
        each.fold(0, i64::saturating_add)
    };
    let show = |resource: &str, amount: i64| {
        let quantity = if resource == "cpu" {
            Quantity::from_millis(amount)
        } else {
            Quantity::from_bytes(amount)
        };
        quantity.to_string()
    };
    let rows = active
        .iter()
        .map(|pod| {
            let cell = |group: &str, resource: &str| show(resource, amount(pod, group, resource));
            vec![
                api::meta::namespace(pod).to_owned(),
                api::meta::name(pod).to_owned(),
                cell("requests", "cpu"),
                cell("limits", "cpu"),
                cell("requests", "memory"),
                cell("limits", "memory"),
                since(api::meta::creation_timestamp(pod), now),
            ]
        })
        .collect();
    let header = [
        "Namespace",
        "Name",
        "CPU Requests",
        "CPU Limits",
        "Memory Requests",
        "Memory Limits",
        "Age",
    ];
    outline.push(Entry::table(&format!("Pods ({} in total)", active.len()), &header, rows));
    let rows = ["cpu", "memory"]
        .iter()
        .map(|resource| {
            let allocatable = Quantity::from_json(&node["status"]["allocatable"][*resource])
                .map_or(0, |q| if *resource == "cpu" { q.millis() } else { q.units() });
            let sum = |group: &str| {
                let sum = active.iter().map(|pod| amount(pod, group, resource)).sum::<i64>();
                let percent =
                    if allocatable > 0 { sum.saturating_mul(100) / allocatable } else { 0 };
                format!("{} ({percent}%)", show(resource, sum))
            };
            vec![(*resource).to_owned(), sum("requests"), sum("limits")]
        })
        .collect();
    outline.push(Entry::table("Allocated", &["Resource", "Requests", "Limits"], rows));
}
