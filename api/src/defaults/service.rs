//! Defaults of Services, of what is behind them, and of network policies.
//!
//! What depends on the cluster's own configuration (addresses, families) is
//! [`service`](crate::service)'s.

use serde_json::{Value, json};

use super::{Fields, child, children, set_if_absent, set_if_empty};
use crate::service;

/// Seconds that a client stays with its endpoint: three hours.
const AFFINITY_S: i64 = 10_800;

pub(super) fn service(root: &mut Fields) {
    set_if_absent(root, "status", || json!({}));
    if let Some(status) = child(root, "status") {
        set_if_absent(status, "loadBalancer", || json!({}));
    }
    let Some(spec) = child(root, "spec") else { return };
    set_if_empty(spec, "type", "ClusterIP");
    set_if_empty(spec, "sessionAffinity", "None");
    match spec["sessionAffinity"].as_str() {
        Some("None") => {
            spec.shift_remove("sessionAffinityConfig");
        }
        Some("ClientIP") => {
            set_if_absent(spec, "sessionAffinityConfig", || json!({}));
            if let Some(config) = child(spec, "sessionAffinityConfig") {
                set_if_absent(config, "clientIP", || json!({}));
                if let Some(client) = child(config, "clientIP") {
                    set_if_absent(client, "timeoutSeconds", || json!(AFFINITY_S));
                }
            }
        }
        _ => {}
    }
    for port in children(spec, "ports") {
        set_if_empty(port, "protocol", "TCP");
        let unset = |target: &Value| {
            target.is_null() || target.as_str() == Some("") || target.as_i64() == Some(0)
        };
        if port.get("targetPort").is_none_or(unset)
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".to_owned(), number);
        }
        if port.get("nodePort").is_some_and(|port| port.is_null() || port.as_i64() == Some(0)) {
            port.shift_remove("nodePort");
        }
    }
    if spec.get("healthCheckNodePort").is_some_and(|port| port.as_i64() == Some(0)) {
        spec.shift_remove("healthCheckNodePort");
    }
    // A protobuf body carries what was never set.
    for field in ["clusterIP", "loadBalancerIP", "externalName", "externalTrafficPolicy"] {
        if spec.get(field).is_some_and(|text| text.is_null() || text == "") {
            spec.shift_remove(field);
        }
    }
    if service::is_externally_accessible(spec) {
        set_if_empty(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(spec["type"].as_str(), Some("ClusterIP" | "NodePort" | "LoadBalancer")) {
        set_if_absent(spec, "internalTrafficPolicy", || json!("Cluster"));
    }
    if spec["type"] == "LoadBalancer" {
        set_if_absent(spec, "allocateLoadBalancerNodePorts", || json!(true));
    }
}

pub(super) fn endpoints(root: &mut Fields) {
    for subset in children(root, "subsets") {
        for port in children(subset, "ports") {
            set_if_empty(port, "protocol", "TCP");
        }
    }
}

pub(super) fn endpoint_slice(root: &mut Fields) {
    for port in children(root, "ports") {
        set_if_absent(port, "name", || json!(""));
        set_if_absent(port, "protocol", || json!("TCP"));
    }
    for endpoint in children(root, "endpoints") {
        set_if_absent(endpoint, "conditions", || json!({}));
    }
}

pub(super) fn network_policy(root: &mut Fields) {
    let Some(spec) = child(root, "spec") else { return };
    for direction in ["ingress", "egress"] {
        for rule in children(spec, direction) {
            for port in children(rule, "ports") {
                set_if_absent(port, "protocol", || json!("TCP"));
            }
        }
    }
    let is_empty = |list: Option<&Value>| list.and_then(Value::as_array).is_none_or(Vec::is_empty);
    if is_empty(spec.get("policyTypes")) {
        let mut types = vec!["Ingress"];
        if !is_empty(spec.get("egress")) {
            types.push("Egress");
        }
        spec.insert("policyTypes".to_owned(), json!(types));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{defaults, resource};

    fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
        let resource = resource::by_kind(group, kind).unwrap();
        defaults::apply(resource, &mut object);
        let once = object.clone();
        defaults::apply(resource, &mut object);
        assert_eq!(object, once, "applying twice");
        object
    }

    #[test]
    fn a_service_says_everything() {
        let service = |spec: Value| defaulted("", "Service", json!({"spec": spec}));
        assert_eq!(
            service(
                json!({"ports": [{"port": 80, "nodePort": 0}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]})
            ),
            json!({
                "spec": {
                    "ports": [
                        {"port": 80, "protocol": "TCP", "targetPort": 80},
                        {"port": 53, "protocol": "UDP", "targetPort": "dns"},
                    ],
                    "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                },
                "status": {"loadBalancer": {}},
            })
        );
        let external = service(json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"}));
        assert_eq!(
            external["spec"],
            json!({
                "type": "LoadBalancer", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10_800}},
                "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": true,
            })
        );
        // What a typed client sends of a Service that is only a name.
        let name = service(json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "",
            "healthCheckNodePort": 0, "externalTrafficPolicy": ""}));
        assert_eq!(
            name["spec"],
            json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"})
        );
        let outside = service(json!({"externalIPs": ["1.2.3.4"]}));
        assert_eq!(outside["spec"]["externalTrafficPolicy"], "Cluster");
    }

    #[test]
    fn a_policy_without_types_is_about_what_it_names() {
        let types = |spec: Value| {
            defaulted("networking.k8s.io", "NetworkPolicy", json!({"spec": spec}))["spec"]["policyTypes"]
                .clone()
        };
        assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": []})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"egress": [{}], "policyTypes": ["Egress"]})), json!(["Egress"]));
        let policy = defaulted(
            "networking.k8s.io",
            "NetworkPolicy",
            json!({"spec": {"ingress": [{"ports": [{"port": 80}]}]}}),
        );
        assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    fn ports_of_endpoints_have_a_protocol() {
        let slice = defaulted(
            "discovery.k8s.io",
            "EndpointSlice",
            json!({"ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        );
        assert_eq!(slice["ports"], json!([{"port": 80, "name": "", "protocol": "TCP"}]));
        assert_eq!(slice["endpoints"][0]["conditions"], json!({}));
        let old = defaulted("", "Endpoints", json!({"subsets": [{"ports": [{"port": 1}]}]}));
        assert_eq!(old["subsets"][0]["ports"][0]["protocol"], "TCP");
    }
}
