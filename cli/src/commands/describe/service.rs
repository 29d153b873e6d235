//! Services, with what is behind them.

use std::net::IpAddr;

use serde_json::Value;

use super::outline::{Entry, Outline, text};
use super::pairs;

/// Endpoints that are shown one by one.
const SHOWN_MAX: usize = 20;

pub(super) fn describe(outline: &mut Outline, object: &Value, slices: &[Value]) {
    let spec = &object["spec"];
    outline.lines("Selector", pairs(&spec["selector"], "="));
    outline.text("Type", &text(&spec["type"]));
    let texts = |value: &Value| -> String {
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.collect::<Vec<_>>().join(", ")
    };
    outline.text_if("External Name", &text_or_empty(&spec["externalName"]));
    outline.text_if("Addresses", &texts(&spec["clusterIPs"]));
    outline.text_if("IP Families", &texts(&spec["ipFamilies"]));
    outline.text_if("External IPs", &texts(&spec["externalIPs"]));
    let ingress = object["status"]["loadBalancer"]["ingress"].as_array();
    let reached: Vec<String> = ingress
        .into_iter()
        .flatten()
        .map(|ingress| match ingress["ip"].as_str() {
            Some(address) => address.to_owned(),
            None => text(&ingress["hostname"]),
        })
        .collect();
    outline.text_if("Load Balancer", &reached.join(", "));
    outline.extend(ports(spec));
    let affinity = text_or_empty(&spec["sessionAffinity"]);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    match timeout.as_i64() {
        Some(seconds) => outline.text("Session Affinity", &format!("{affinity} for {seconds} s")),
        None => outline.text_if("Session Affinity", &affinity),
    }
    for (name, field) in [
        ("Internal Traffic", "internalTrafficPolicy"),
        ("External Traffic", "externalTrafficPolicy"),
        ("Distribution", "trafficDistribution"),
        ("Health Check Port", "healthCheckNodePort"),
    ] {
        outline.text_if(name, &text_or_empty(&spec[field]));
    }
    outline.push(endpoints(slices));
}

fn text_or_empty(value: &Value) -> String {
    if value.is_null() { String::new() } else { text(value) }
}

fn ports(spec: &Value) -> Option<Entry> {
    let rows: Vec<Vec<String>> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let shown = |field: &str| match &port[field] {
                Value::Null => "-".to_owned(),
                value => text(value),
            };
            let number = format!("{}/{}", text(&port["port"]), text(&port["protocol"]));
            vec![shown("name"), number, shown("targetPort"), shown("nodePort")]
        })
        .collect();
    let header = ["Name", "Port", "Target", "Node Port"];
    (!rows.is_empty()).then(|| Entry::table("Ports", &header, rows))
}

fn endpoints(slices: &[Value]) -> Entry {
    let mut rows = Vec::new();
    let mut n_more = 0;
    for slice in slices {
        let ports: Vec<String> = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["port"].as_u64())
            .map(|port| port.to_string())
            .collect();
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if rows.len() >= SHOWN_MAX {
                n_more += 1;
                continue;
            }
            let address = endpoint["addresses"][0].as_str().unwrap_or("-");
            let conditions = &endpoint["conditions"];
            let state = match () {
                () if conditions["terminating"] == true => "terminating",
                () if conditions["ready"] == false => "not ready",
                () => "ready",
            };
            let is_v6 = address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
            let shown = match (ports.is_empty(), is_v6) {
                (true, _) => address.to_owned(),
                (false, true) => format!("[{address}]:{}", ports.join(",")),
                (false, false) => format!("{address}:{}", ports.join(",")),
            };
            let or_dash = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            let of = or_dash(&endpoint["targetRef"]["name"]);
            rows.push(vec![shown, state.to_owned(), or_dash(&endpoint["nodeName"]), of]);
        }
    }
    if rows.is_empty() {
        return Entry::Text("Endpoints".to_owned(), "<none>".to_owned());
    }
    rows.sort();
    let name = match n_more {
        0 => "Endpoints".to_owned(),
        n => format!("Endpoints ({n} more are not shown)"),
    };
    Entry::table(&name, &["Address", "State", "Node", "Pod"], rows)
}
