//! Rules on Endpoints and EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::service::{PROTOCOLS, app_protocol, port_number, useful_address};
use super::{Errors, Fields, Path, Reason, items, number, object, objects, text};
use crate::{names, network};

const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
/// Limits of one slice; Kubernetes' numbers.
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const HINTS_MAX: usize = 8;
const TOPOLOGY_MAX: usize = 16;

pub(super) fn slice(root: &Fields, errors: &mut Errors) {
    let kind = text(root, "addressType");
    errors.one_of(&Path::Root.field("addressType"), kind, ADDRESS_TYPES, true);
    let path = Path::Root.field("endpoints");
    if !too_many(&path, items(root, "endpoints").len(), ENDPOINTS_MAX, errors) {
        for (n, fields) in objects(root, "endpoints") {
            endpoint(&path.index(n), kind, fields, errors);
        }
    }
    let path = Path::Root.field("ports");
    if too_many(&path, items(root, "ports").len(), PORTS_MAX, errors) {
        return;
    }
    let mut seen = BTreeSet::new();
    for (n, port) in objects(root, "ports") {
        let at = path.index(n);
        let name = text(port, "name");
        if !name.is_empty() {
            errors.invalid_all(&at.field("name"), name, &names::dns1123_label(name));
        }
        if !seen.insert(name) {
            errors.duplicate(&at.field("name"), name);
        }
        errors.one_of(&at.field("protocol"), text(port, "protocol"), PROTOCOLS, true);
        if let Some(value) = number(port, "port") {
            port_number(&at.field("port"), value, errors);
        }
        app_protocol(&at, port, errors);
    }
}

fn endpoint(at: &Path<'_>, kind: &str, endpoint: &Fields, errors: &mut Errors) {
    let path = at.field("addresses");
    let addresses = items(endpoint, "addresses");
    if addresses.is_empty() {
        errors.required(&path, "must contain at least 1 address");
    }
    too_many(&path, addresses.len(), ADDRESSES_MAX, errors);
    for (n, address) in addresses.iter().enumerate() {
        let at = path.index(n);
        let address = address.as_str().unwrap_or_default();
        match kind {
            "IPv4" | "IPv6" => {
                let parsed = address.parse::<IpAddr>().ok();
                if parsed.is_none_or(|parsed| network::family(parsed) != kind) {
                    errors.invalid(&at, address, &format!("must be a valid {kind} address"));
                }
                useful_address(&at, address, errors);
            }
            "FQDN" => {
                let name = address.strip_suffix('.').unwrap_or(address);
                errors.invalid_all(&at, address, &names::dns1123_subdomain(name));
                if !name.contains('.') {
                    errors.invalid(
                        &at,
                        address,
                        "should be a domain with at least two segments separated by dots",
                    );
                }
            }
            _ => {}
        }
    }
    if let Some(node) = endpoint.get("nodeName").and_then(Value::as_str) {
        errors.invalid_all(&at.field("nodeName"), node, &names::dns1123_subdomain(node));
    }
    if let Some(topology) = object(endpoint, "deprecatedTopology") {
        let at = at.field("deprecatedTopology");
        too_many(&at, topology.len(), TOPOLOGY_MAX, errors);
        super::metadata::labels(&at, topology, errors);
    }
    if let Some(host) = endpoint.get("hostname").and_then(Value::as_str) {
        errors.invalid_all(&at.field("hostname"), host, &names::dns1123_label(host));
    }
    if let Some(hints) = object(endpoint, "hints") {
        let parent = at.field("hints");
        let path = parent.field("forZones");
        if too_many(&path, items(hints, "forZones").len(), HINTS_MAX, errors) {
            return;
        }
        let mut seen = BTreeSet::new();
        for (n, zone) in objects(hints, "forZones") {
            let at = path.index(n);
            let name = text(zone, "name");
            if !seen.insert(name) {
                errors.duplicate(&at.field("name"), name);
            }
            errors.invalid_all(&at.field("name"), name, &names::label_value(name));
        }
    }
}

pub(super) fn slice_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    if text(old, "addressType") != text(new, "addressType") {
        let at = Path::Root.field("addressType");
        errors.invalid(&at, text(new, "addressType"), "field is immutable");
    }
}

pub(super) fn endpoints(root: &Fields, errors: &mut Errors) {
    let path = Path::Root.field("subsets");
    for (n, subset) in objects(root, "subsets") {
        let at = path.index(n);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| items(subset, list).is_empty()) {
            errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in lists {
            let path = at.field(list);
            for (n, address) in objects(subset, list) {
                let at = path.index(n);
                useful_address(&at.field("ip"), text(address, "ip"), errors);
                let host = text(address, "hostname");
                if !host.is_empty() {
                    errors.invalid_all(&at.field("hostname"), host, &names::dns1123_label(host));
                }
                if let Some(node) = address.get("nodeName").and_then(Value::as_str) {
                    let at = at.field("nodeName");
                    errors.invalid_all(&at, node, &names::dns1123_subdomain(node));
                }
            }
        }
        let needs_names = items(subset, "ports").len() > 1;
        let path = at.field("ports");
        for (n, port) in objects(subset, "ports") {
            let at = path.index(n);
            match text(port, "name") {
                "" if needs_names => errors.required(&at.field("name"), ""),
                "" => {}
                name => errors.invalid_all(&at.field("name"), name, &names::dns1123_label(name)),
            }
            port_number(&at.field("port"), number(port, "port").unwrap_or_default(), errors);
            errors.one_of(&at.field("protocol"), text(port, "protocol"), PROTOCOLS, true);
            app_protocol(&at, port, errors);
        }
    }
}

/// Whether a list is too long, which is told.
fn too_many(at: &Path<'_>, n: usize, max: usize, errors: &mut Errors) -> bool {
    if n > max {
        let detail = format!("must have at most {max} items");
        errors.push(at, Reason::TooMany, &n.to_string(), &detail);
    }
    n > max
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::{Value, json};

    use super::super::tests::{check_create, check_update};

    fn slice(more: Value) -> Value {
        let mut slice =
            json!({"metadata": {"name": "web-1", "namespace": "b"}, "addressType": "IPv4"});
        for (key, value) in more.as_object().unwrap() {
            slice[key] = value.clone();
        }
        slice
    }

    #[test]
    fn slices_hold_addresses_of_their_type() {
        let group = "discovery.k8s.io";
        check_create(
            group,
            "EndpointSlice",
            slice(
                json!({"ports": [{"name": "http", "port": 80}, {"name": "", "port": 81}], "endpoints": [
                {"addresses": ["10.0.0.1"], "hostname": "a", "nodeName": "n1", "zone": "z",
                 "conditions": {"ready": true}, "hints": {"forZones": [{"name": "z"}]}}]}),
            ),
            &expect![""],
        );
        check_create(
            group,
            "EndpointSlice",
            slice(json!({"addressType": "IPv4", "ports": [
                    {"name": "A", "port": 0, "protocol": "X"}, {"name": "A"}],
                "endpoints": [{"addresses": []}, {"addresses": ["fd00::1", "127.0.0.1", "x"], "hostname": "a.b",
                    "nodeName": "N", "hints": {"forZones": [{"name": "z"}, {"name": "z"}]}}]})),
            &expect![[r#"
                Required endpoints[0].addresses: Required value: must contain at least 1 address
                Invalid endpoints[1].addresses[0]: Invalid value: "fd00::1": must be a valid IPv4 address
                Invalid endpoints[1].addresses[1]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)
                Invalid endpoints[1].addresses[2]: Invalid value: "x": must be a valid IPv4 address
                Invalid endpoints[1].addresses[2]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
                Invalid endpoints[1].nodeName: Invalid value: "N": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                Invalid endpoints[1].hostname: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                Duplicate endpoints[1].hints.forZones[1].name: Duplicate value: "z"
                Invalid ports[0].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                NotSupported ports[0].protocol: Unsupported value: "X": supported values: "SCTP", "TCP", "UDP"
                Invalid ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
                Invalid ports[1].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                Duplicate ports[1].name: Duplicate value: "A"
            "#]],
        );
        let endpoints: Vec<Value> = (0..1001).map(|_| json!({"addresses": []})).collect();
        check_create(
            group,
            "EndpointSlice",
            slice(json!({"addressType": "FQDN", "endpoints": endpoints})),
            &expect![[r#"
                TooMany endpoints: Too many: 1001: must have at most 1000 items
            "#]],
        );
        check_update(
            group,
            "EndpointSlice",
            &slice(json!({})),
            &slice(json!({"addressType": "IPv6"})),
            &expect![[r#"
                Invalid addressType: Invalid value: "IPv6": field is immutable
            "#]],
        );
        check_create(
            group,
            "EndpointSlice",
            slice(
                json!({"addressType": "FQDN", "endpoints": [{"addresses": ["db.example.com", "db"]}]}),
            ),
            &expect![[r#"
                Invalid endpoints[0].addresses[1]: Invalid value: "db": should be a domain with at least two segments separated by dots
            "#]],
        );
    }

    #[test]
    fn endpoints_of_the_old_kind_are_checked_too() {
        check_create(
            "",
            "Endpoints",
            json!({"metadata": {"name": "web", "namespace": "b"}, "subsets": [
                {"addresses": [{"ip": "10.0.0.1", "nodeName": "n"}], "ports": [{"port": 80}]},
                {"ports": [{"port": 80}, {"name": "b", "port": 0}]},
                {"notReadyAddresses": [{"ip": "169.254.1.1", "hostname": "A"}]},
            ]}),
            &expect![[r#"
                Required subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`
                Required subsets[1].ports[0].name: Required value
                Invalid subsets[1].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive
                Invalid subsets[2].notReadyAddresses[0].ip: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)
                Invalid subsets[2].notReadyAddresses[0].hostname: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            "#]],
        );
    }
}
