//! Rules on NetworkPolicies.

use serde_json::Value;

use super::service::{ip_block, port_number};
use super::workload::label_selector;
use super::{Errors, Fields, Path, SPEC, fields, items, number, object, objects, text};
use crate::names;

/// In the order Kubernetes names them here.
const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const TYPES: &[&str] = &["Ingress", "Egress"];

pub(super) fn policy(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    label_selector(&SPEC.field("podSelector"), fields(spec, "podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let path = SPEC.field(direction);
        for (n, rule) in objects(spec, direction) {
            let at = path.index(n);
            let ports = at.field("ports");
            for (n, fields) in objects(rule, "ports") {
                port(&ports.index(n), fields, errors);
            }
            let path = at.field(peers);
            for (n, fields) in objects(rule, peers) {
                peer(&path.index(n), fields, errors);
            }
        }
    }
    let path = SPEC.field("policyTypes");
    let types = items(spec, "policyTypes");
    if types.len() > TYPES.len() {
        errors.invalid_value(
            &path,
            &spec["policyTypes"],
            "may not specify more than two policyTypes",
        );
        return;
    }
    for (n, kind) in types.iter().enumerate() {
        let kind = kind.as_str().unwrap_or_default();
        if !TYPES.contains(&kind) {
            errors.not_supported(&path.index(n), kind, TYPES);
        }
    }
}

fn port(at: &Path<'_>, port: &Fields, errors: &mut Errors) {
    errors.one_of(&at.field("protocol"), text(port, "protocol"), PROTOCOLS, false);
    let end = number(port, "endPort");
    let end_at = at.field("endPort");
    match port.get("port") {
        Some(Value::Number(first)) => {
            let first = first.as_i64().unwrap_or_default();
            port_number(&at.field("port"), first, errors);
            if let Some(end) = end {
                if end < first {
                    errors.invalid_number(&end_at, end, "must be greater than or equal to `port`");
                }
                port_number(&end_at, end, errors);
            }
        }
        Some(Value::String(name)) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                errors.invalid_number(&end_at, end, detail);
            }
            errors.invalid_all(&at.field("port"), name, &names::port_name(name));
        }
        _ => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is not specified";
                errors.invalid_number(&end_at, end, detail);
            }
        }
    }
}

fn peer(at: &Path<'_>, peer: &Fields, errors: &mut Errors) {
    let mut n_selectors = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = object(peer, field) {
            n_selectors += 1;
            label_selector(&at.field(field), selector, errors);
        }
    }
    let block = object(peer, "ipBlock");
    if let Some(block) = block {
        ip_block(&at.field("ipBlock"), block, errors);
    }
    if block.is_none() && n_selectors == 0 {
        errors.required(at, "must specify a peer");
    } else if block.is_some() && n_selectors > 0 {
        errors.forbidden(at, "may not specify both ipBlock and another peer");
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::super::tests::check_create;

    fn check(spec: Value, expected: &Expect) {
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        check_create("networking.k8s.io", "NetworkPolicy", object, expected);
    }

    #[test]
    fn rules_name_ports_and_peers() {
        check(
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress", "Ingress"],
                "ingress": [{}, {"ports": [{"port": 80, "endPort": 90}, {"port": "http"}, {"protocol": "UDP"}],
                    "from": [{"podSelector": {}, "namespaceSelector": {}},
                        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}],
                "egress": [{"to": [{"namespaceSelector": {}}]}]}),
            &expect![""],
        );
        check(
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}, "policyTypes": ["Both"],
                "ingress": [{"ports": [{"port": 80, "endPort": 70}, {"port": "http", "endPort": 80},
                        {"endPort": 80}, {"port": 0, "protocol": "ICMP"}, {"port": "Not-a-Name"}],
                    "from": [{}, {"podSelector": {"matchLabels": {"a": "b c"}}, "ipBlock": {"cidr": ""}}]}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}},
                    {"ipBlock": {"cidr": "10.0.0.0/16", "except": ["x", "10.0.0.0/16", "10.1.0.0/24", "fd00::/64"]}}]}]}),
            &expect![[r#"
                Invalid spec.podSelector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator
                Invalid spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`
                Invalid spec.ingress[0].ports[1].endPort: Invalid value: 80: may not be specified when `port` is non-numeric
                Invalid spec.ingress[0].ports[2].endPort: Invalid value: 80: may not be specified when `port` is not specified
                NotSupported spec.ingress[0].ports[3].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"
                Invalid spec.ingress[0].ports[3].port: Invalid value: 0: must be between 1 and 65535, inclusive
                Invalid spec.ingress[0].ports[4].port: Invalid value: "Not-a-Name": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
                Required spec.ingress[0].from[0]: Required value: must specify a peer
                Invalid spec.ingress[0].from[1].podSelector.matchLabels: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
                Required spec.ingress[0].from[1].ipBlock.cidr: Required value
                Forbidden spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer
                Invalid spec.egress[0].to[0].ipBlock.cidr: Invalid value: "10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
                Invalid spec.egress[0].to[1].ipBlock.except[0]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
                Invalid spec.egress[0].to[1].ipBlock.except[1]: Invalid value: "10.0.0.0/16": must be a strict subset of `cidr`
                Invalid spec.egress[0].to[1].ipBlock.except[2]: Invalid value: "10.1.0.0/24": must be a strict subset of `cidr`
                Invalid spec.egress[0].to[1].ipBlock.except[3]: Invalid value: "fd00::/64": must be a strict subset of `cidr`
                NotSupported spec.policyTypes[0]: Unsupported value: "Both": supported values: "Ingress", "Egress"
            "#]],
        );
        check(
            json!({"policyTypes": ["Ingress", "Egress", "Ingress"]}),
            &expect![[r#"
                Invalid spec.policyTypes: Invalid value: ["Ingress","Egress","Ingress"]: may not specify more than two policyTypes
            "#]],
        );
    }
}
