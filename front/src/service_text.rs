//! Services and what is behind them, as `kubectl get` shows them.
//!
//! Source: `k8s.io/kubernetes/pkg/printers/internalversion/printers.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{at, meta, text, texts};
use crate::printers::{NONE, age, or};

/// Addresses shown before the rest is only counted.
const SHOWN_MAX: usize = 3;

pub(crate) fn service(service: &Value, now: Timestamp) -> Value {
    let spec = &service["spec"];
    let addresses = texts(spec, &["clusterIPs"]);
    let address = addresses.first().copied().unwrap_or_else(|| text(spec, &["clusterIP"]));
    let ports: Vec<String> = list(&spec["ports"])
        .map(|port| {
            let (number, protocol) = (&port["port"], text(port, &["protocol"]));
            match port["nodePort"].as_i64().unwrap_or(0) {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    let mut selector: Vec<String> = at(service, &["spec", "selector"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    selector.sort();
    json!([
        meta(service, "name"),
        text(spec, &["type"]),
        or(address, NONE),
        external(service),
        or(&ports.join(","), NONE),
        age(service, now),
        or(&selector.join(","), NONE),
    ])
}

/// Where a Service is reached from outside.
fn external(service: &Value) -> String {
    let spec = &service["spec"];
    let mut addresses: Vec<&str> = Vec::new();
    match text(spec, &["type"]) {
        "ClusterIP" | "NodePort" => {}
        "LoadBalancer" => {
            addresses.extend(
                list(&service["status"]["loadBalancer"]["ingress"])
                    .map(|ingress| or(text(ingress, &["ip"]), text(ingress, &["hostname"]))),
            );
            addresses.sort_unstable();
            addresses.dedup();
        }
        "ExternalName" => return text(spec, &["externalName"]).to_owned(),
        _ => return "<unknown>".to_owned(),
    }
    addresses.extend(texts(spec, &["externalIPs"]));
    match (addresses.is_empty(), text(spec, &["type"])) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => NONE.to_owned(),
        (false, _) => addresses.join(","),
    }
}

pub(crate) fn endpoints(endpoints: &Value, now: Timestamp) -> Value {
    let mut all = Vec::new();
    for subset in list(&endpoints["subsets"]) {
        let addresses = || list(&subset["addresses"]).map(|address| text(address, &["ip"]));
        let ports: Vec<&Value> = list(&subset["ports"]).map(|port| &port["port"]).collect();
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    let shown = if list(&endpoints["subsets"]).next().is_none() { NONE } else { "" };
    let shown = if all.is_empty() { shown.to_owned() } else { few(&all) };
    json!([meta(endpoints, "name"), shown, age(endpoints, now)])
}

pub(crate) fn slice(slice: &Value, now: Timestamp) -> Value {
    const UNSET: &str = "<unset>";
    let ports: Vec<String> = list(&slice["ports"])
        .map(|port| match (&port["port"], text(port, &["name"])) {
            (Value::Number(number), _) => number.to_string(),
            (_, "") => "*".to_owned(),
            (_, name) => name.to_owned(),
        })
        .collect();
    let addresses: Vec<String> = list(&slice["endpoints"])
        .flat_map(|endpoint| texts(endpoint, &["addresses"]))
        .map(str::to_owned)
        .collect();
    json!([
        meta(slice, "name"),
        text(slice, &["addressType"]),
        or(&few(&ports), UNSET),
        or(&few(&addresses), UNSET),
        age(slice, now),
    ])
}

/// The first of a list, and how many more there are.
fn few(all: &[String]) -> String {
    let shown = all.iter().take(SHOWN_MAX).map(String::as_str).collect::<Vec<_>>().join(",");
    match all.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: fn(&Value, Timestamp) -> Value, object: Value) -> String {
        let cells = cells(&object, Timestamp::UNIX_EPOCH);
        let texts: Vec<&str> = cells.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        texts.join(" | ")
    }

    #[test]
    fn services_show_where_they_are_reached() {
        let created = "1970-01-01T00:00:00Z";
        let row = |spec: Value, ingress: Value| {
            row(
                service,
                json!({"metadata": {"name": "web", "creationTimestamp": created}, "spec": spec,
                    "status": {"loadBalancer": {"ingress": ingress}}}),
            )
        };
        let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]);
        for (spec, ingress, expected) in [
            (
                json!({"type": "ClusterIP", "clusterIPs": ["10.43.0.5"], "ports": ports, "selector": {"b": "2", "a": "1"}}),
                json!([]),
                "web | ClusterIP | 10.43.0.5 | <none> | 80:30080/TCP,53/UDP | 0s | a=1,b=2",
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["1.2.3.4"]}),
                json!([]),
                "web | ClusterIP | None | 1.2.3.4 | <none> | 0s | <none>",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.43.0.6"]}),
                json!([]),
                "web | LoadBalancer | 10.43.0.6 | <pending> | <none> | 0s | <none>",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.43.0.6"], "externalIPs": ["1.2.3.4"]}),
                json!([{"ip": "9.9.9.9"}, {"ip": "10.0.0.1"}]),
                "web | LoadBalancer | 10.43.0.6 | 10.0.0.1,9.9.9.9,1.2.3.4 | <none> | 0s | <none>",
            ),
            (
                json!({"type": "ExternalName", "externalName": "db.example.com"}),
                json!([]),
                "web | ExternalName | <none> | db.example.com | <none> | 0s | <none>",
            ),
        ] {
            assert_eq!(row(spec, ingress), expected);
        }
    }

    #[test]
    fn endpoints_are_shown_up_to_three() {
        let addresses = |n: usize| -> Vec<Value> {
            (1..=n).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect()
        };
        let old = |n: usize, ports: Value| {
            row(
                endpoints,
                json!({"metadata": {"name": "e", "creationTimestamp": "1970-01-01T00:00:00Z"},
                    "subsets": [{"addresses": addresses(n), "ports": ports}]}),
            )
        };
        assert_eq!(
            old(5, json!([{"port": 80}])),
            "e | 10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more... | 0s"
        );
        assert_eq!(old(1, json!([])), "e | 10.0.0.1 | 0s");
        assert_eq!(row(endpoints, json!({})), " | <none> | <unknown>");
        let made = json!({"metadata": {"name": "s", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "addressType": "IPv4", "ports": [{"port": 80}, {"name": "any"}, {"name": ""}],
            "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}]});
        assert_eq!(row(slice, made), "s | IPv4 | 80,any,* | 10.0.0.1,10.0.0.2 | 0s");
        let empty = json!({"metadata": {"name": "s"}, "addressType": "IPv4"});
        assert_eq!(row(slice, empty), "s | IPv4 | <unset> | <unset> | <unknown>");
    }
}
