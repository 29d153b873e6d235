//! Rules on Services.
//!
//! Addresses and ports that the server gives are not asked for: they are filled
//! in once an object has passed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Errors, Fields, Path, Reason, SPEC, fields, items, number, object, objects, text};
use crate::names;
use crate::network::{self, Cidr};
use crate::service::{HEADLESS, is_externally_accessible, is_headless, needs_health_check};

pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const AFFINITIES: &[&str] = &["ClientIP", "None"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
/// The longest that a client stays with its endpoint: a day.
const AFFINITY_S_MAX: i64 = 86_400;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

pub(super) fn service(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    let kind = text(spec, "type");
    if items(spec, "ports").is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(&SPEC.field("ports"), "");
    }
    let cluster_ips = SPEC.field("clusterIPs");
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => errors.invalid(
            &cluster_ips.index(0),
            HEADLESS,
            &format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => external_name(spec, errors),
        _ => {}
    }
    ports(spec, errors);
    super::metadata::labels(&SPEC.field("selector"), fields(spec, "selector"), errors);
    errors.one_of(&SPEC.field("sessionAffinity"), text(spec, "sessionAffinity"), AFFINITIES, true);
    affinity(spec, errors);
    if kind != "ExternalName" {
        addresses(spec, errors);
    }
    let external = SPEC.field("externalIPs");
    for (n, address) in items(spec, "externalIPs").iter().enumerate() {
        useful_address(&external.index(n), address.as_str().unwrap_or_default(), errors);
    }
    errors.one_of(&SPEC.field("type"), kind, TYPES, true);
    load_balancer(root, spec, errors);
    traffic(spec, errors);
}

fn external_name(spec: &Fields, errors: &mut Errors) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let is_set = match spec.get(field) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if is_set {
            errors.forbidden(&SPEC.field(field), "may not be set for ExternalName services");
        }
    }
    let at = SPEC.field("externalName");
    let given = text(spec, "externalName");
    match given.strip_suffix('.').unwrap_or(given) {
        "" => errors.required(&at, ""),
        name => errors.invalid_all(&at, name, &names::dns1123_subdomain(name)),
    }
}

fn ports(spec: &Fields, errors: &mut Errors) {
    let path = SPEC.field("ports");
    let needs_names = items(spec, "ports").len() > 1;
    let (mut names_seen, mut ports_seen) = (BTreeSet::new(), BTreeSet::new());
    let mut node_ports_seen = BTreeSet::new();
    for (n, port) in objects(spec, "ports") {
        let at = path.index(n);
        match text(port, "name") {
            "" if needs_names => errors.required(&at.field("name"), ""),
            "" => {}
            name => {
                errors.invalid_all(&at.field("name"), name, &names::dns1123_label(name));
                if !names_seen.insert(name) {
                    errors.duplicate(&at.field("name"), name);
                }
            }
        }
        let value = number(port, "port").unwrap_or_default();
        port_number(&at.field("port"), value, errors);
        let protocol = text(port, "protocol");
        errors.one_of(&at.field("protocol"), protocol, PROTOCOLS, true);
        match port.get("targetPort") {
            Some(Value::String(name)) => {
                errors.invalid_all(&at.field("targetPort"), name, &names::port_name(name));
            }
            Some(Value::Number(target)) => {
                port_number(&at.field("targetPort"), target.as_i64().unwrap_or_default(), errors);
            }
            _ => {}
        }
        app_protocol(&at, port, errors);
        if let Some(node_port) = number(port, "nodePort").filter(|port| *port != 0) {
            let at = at.field("nodePort");
            if text(spec, "type") == "ClusterIP" {
                errors.forbidden(&at, "may not be used when `type` is 'ClusterIP'");
            }
            if !node_ports_seen.insert((protocol, node_port)) {
                errors.push(&at, Reason::Duplicate, &node_port.to_string(), "");
            }
        }
        if !ports_seen.insert((protocol, value)) {
            let shown = json!({"port": value, "protocol": protocol}).to_string();
            errors.push(&at, Reason::Duplicate, &shown, "");
        }
    }
}

pub(super) fn port_number(at: &Path<'_>, port: i64, errors: &mut Errors) {
    for detail in names::port_number(port) {
        errors.invalid_number(at, port, &detail);
    }
}

pub(super) fn app_protocol(at: &Path<'_>, port: &Fields, errors: &mut Errors) {
    if let Some(name) = port.get("appProtocol").and_then(Value::as_str) {
        errors.invalid_all(&at.field("appProtocol"), name, &names::qualified_name(name));
    }
}

/// An address that others are to send to.
pub(super) fn useful_address(at: &Path<'_>, text: &str, errors: &mut Errors) {
    match text.parse::<IpAddr>() {
        Ok(address) => errors.invalid_all(at, text, &network::special(address)),
        Err(_) => errors.invalid_all(at, text, &network::address(text)),
    }
}

fn affinity(spec: &Fields, errors: &mut Errors) {
    let at = SPEC.field("sessionAffinityConfig");
    let config = object(spec, "sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "None" if config.is_some() => {
            errors.forbidden(&at, "must not be set when session affinity is None");
        }
        "ClientIP" => {
            let client = at.field("clientIP");
            let at = client.field("timeoutSeconds");
            let client = config.map(|config| fields(config, "clientIP"));
            match client.and_then(|client| number(client, "timeoutSeconds")) {
                None => errors.required(&at, "when session affinity type is ClientIP"),
                Some(seconds) if seconds <= 0 || seconds > AFFINITY_S_MAX => {
                    errors.invalid_number(
                        &at,
                        seconds,
                        &format!("must be greater than 0 and less than {AFFINITY_S_MAX}"),
                    );
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

fn addresses(spec: &Fields, errors: &mut Errors) {
    let at = SPEC.field("clusterIPs");
    let list: Vec<&str> = items(spec, "clusterIPs").iter().filter_map(Value::as_str).collect();
    let value = json!(list);
    match (text(spec, "clusterIP"), list.first()) {
        ("", Some(_)) => {
            errors.invalid_value(&at, &value, "must be empty when `clusterIP` is not specified");
        }
        ("", None) => {}
        (_, None) => errors.required(&at, ""),
        (first, Some(other)) if first != *other => {
            errors.invalid_value(&at, &value, "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families_at = SPEC.field("ipFamilies");
    let families: Vec<&str> = items(spec, "ipFamilies").iter().filter_map(Value::as_str).collect();
    for (n, family) in families.iter().enumerate() {
        errors.one_of(&families_at.index(n), family, FAMILIES, true);
        if families[..n].contains(family) {
            errors.duplicate(&families_at.index(n), family);
        }
    }
    let policy = text(spec, "ipFamilyPolicy");
    errors.one_of(&SPEC.field("ipFamilyPolicy"), policy, FAMILY_POLICIES, false);
    let before = errors.list.len();
    for (n, address) in list.iter().enumerate() {
        if n == 0 && *address == HEADLESS {
            if list.len() > 1 {
                errors.invalid_value(&at, &value, "'None' must be the first and only value");
            }
            continue;
        }
        errors.invalid_all(&at.index(n), address, &network::address(address));
    }
    if list.len() > 2 {
        errors.invalid_value(&at, &value, "may only hold up to 2 values");
    }
    if errors.list.len() > before {
        return;
    }
    let parsed: Vec<IpAddr> = list.iter().filter_map(|text| text.parse().ok()).collect();
    if let [first, second] = parsed.as_slice()
        && first.is_ipv4() == second.is_ipv4()
    {
        errors.invalid_value(&at, &value, "may specify no more than one IP for each IP family");
    }
    for (n, (address, family)) in parsed.iter().zip(&families).enumerate() {
        if network::family(*address) != *family && FAMILIES.contains(family) {
            errors.invalid(
                &at.index(n),
                list[n],
                &format!("expected an {family} value as indicated by `ipFamilies[{n}]`"),
            );
        }
    }
}

fn load_balancer(root: &Fields, spec: &Fields, errors: &mut Errors) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balancer = text(spec, "type") == "LoadBalancer";
    let at = SPEC.field("loadBalancerSourceRanges");
    let ranges = items(spec, "loadBalancerSourceRanges");
    let annotations = fields(fields(root, "metadata"), "annotations");
    if !ranges.is_empty() {
        if !is_balancer {
            errors.forbidden(&at, ONLY);
        }
        for (n, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or_default().trim();
            errors.invalid_all(&at.index(n), range, &network::network(range));
        }
    } else if annotations.contains_key(SOURCE_RANGES) {
        let metadata = Path::Root.field("metadata");
        let parent = metadata.field("annotations");
        let at = parent.key(SOURCE_RANGES);
        if !is_balancer {
            errors.forbidden(&at, ONLY);
        }
        let given = text(annotations, SOURCE_RANGES).trim();
        for range in given.split(',').map(str::trim).filter(|_| !given.is_empty()) {
            errors.invalid_all(&at, range, &network::network(range));
        }
    }
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !is_balancer && spec.get(field).is_some_and(|value| !value.is_null()) {
            errors.forbidden(&SPEC.field(field), ONLY);
        }
    }
    if let Some(class) = spec.get("loadBalancerClass").and_then(Value::as_str)
        && is_balancer
    {
        errors.invalid_all(&SPEC.field("loadBalancerClass"), class, &names::qualified_name(class));
    }
}

fn traffic(spec: &Fields, errors: &mut Errors) {
    let at = SPEC.field("externalTrafficPolicy");
    let policy = text(spec, "externalTrafficPolicy");
    if is_externally_accessible(spec) {
        errors.one_of(&at, policy, POLICIES, true);
    } else if !policy.is_empty() {
        errors.invalid(&at, policy, "may only be set for externally-accessible services");
    }
    let at = SPEC.field("healthCheckNodePort");
    if let Some(port) = number(spec, "healthCheckNodePort").filter(|port| *port != 0) {
        if needs_health_check(spec) {
            port_number(&at, port, errors);
        } else {
            errors.invalid_number(
                &at,
                port,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    }
    let is_inside = matches!(text(spec, "type"), "NodePort" | "LoadBalancer" | "ClusterIP");
    let at = SPEC.field("internalTrafficPolicy");
    errors.one_of(&at, text(spec, "internalTrafficPolicy"), POLICIES, is_inside);
    let at = SPEC.field("trafficDistribution");
    errors.one_of(&at, text(spec, "trafficDistribution"), DISTRIBUTIONS, false);
}

pub(super) fn service_update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let (old, new) = (fields(old, "spec"), fields(new, "spec"));
    let is_name = |spec: &Fields| text(spec, "type") == "ExternalName";
    if !is_name(old) && !is_name(new) {
        for field in ["clusterIPs", "ipFamilies"] {
            let is_headless_still = is_headless(old) && is_headless(new);
            let becomes_another = is_headless(old) != is_headless(new) && field == "ipFamilies";
            if is_headless_still || becomes_another {
                continue;
            }
            let (before, after) = (items(old, field), items(new, field));
            let path = SPEC.field(field);
            let at = path.index(0);
            match (before.first(), after.first()) {
                // Nothing was given before: a Service from before there were addresses.
                (None, _) => {}
                (Some(_), None) => {
                    let what = if field == "clusterIPs" { "clusterIP" } else { "ipFamily" };
                    errors.invalid_value(
                        &at,
                        &json!(after),
                        &format!("primary {what} can not be unset"),
                    );
                }
                (Some(before), Some(first)) if before != first => {
                    errors.invalid_value(&at, &json!(after), "may not change once set");
                }
                _ => {}
            }
        }
    }
    let is_balancer = |spec: &Fields| text(spec, "type") == "LoadBalancer";
    if is_balancer(old) && is_balancer(new) {
        let class = |spec: &Fields| spec.get("loadBalancerClass").cloned().unwrap_or_default();
        if class(old) != class(new) {
            errors.invalid_value(
                &SPEC.field("loadBalancerClass"),
                &class(new),
                "may not change once set",
            );
        }
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && number(old, "healthCheckNodePort") != number(new, "healthCheckNodePort")
    {
        errors.forbidden(&SPEC.field("healthCheckNodePort"), "field is immutable");
    }
}

/// Rules on what a load balancer reports.
pub(super) fn status(root: &Fields, errors: &mut Errors) {
    let spec = fields(root, "spec");
    let status = Path::Root.field("status");
    let balancer = status.field("loadBalancer");
    let path = balancer.field("ingress");
    let list = fields(fields(root, "status"), "loadBalancer");
    if text(spec, "type") != "LoadBalancer" && !items(list, "ingress").is_empty() {
        errors.forbidden(&path, "may only be used when `spec.type` is \"LoadBalancer\"");
        return;
    }
    for (n, ingress) in objects(list, "ingress") {
        let at = path.index(n);
        let address = text(ingress, "ip");
        if !address.is_empty() {
            errors.invalid_all(&at.field("ip"), address, &network::address(address));
        }
        let host = text(ingress, "hostname");
        if !host.is_empty() {
            errors.invalid_all(&at.field("hostname"), host, &names::dns1123_subdomain(host));
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid(
                    &at.field("hostname"),
                    host,
                    "must be a DNS name, not an IP address",
                );
            }
        }
        let mode = text(ingress, "ipMode");
        errors.one_of(&at.field("ipMode"), mode, &["Proxy", "VIP"], false);
    }
}

/// Rules on the networks in `cidr` and `except` of a policy's `ipBlock`.
pub(super) fn ip_block(path: &Path<'_>, block: &Fields, errors: &mut Errors) {
    let at = path.field("cidr");
    let whole = match text(block, "cidr") {
        "" => {
            errors.required(&at, "");
            return;
        }
        given => {
            errors.invalid_all(&at, given, &network::network(given));
            Cidr::parse_any(given)
        }
    };
    let Ok(whole) = whole else { return };
    let path = path.field("except");
    for (n, given) in items(block, "except").iter().enumerate() {
        let at = path.index(n);
        let given = given.as_str().unwrap_or_default();
        errors.invalid_all(&at, given, &network::network(given));
        let Ok(part) = Cidr::parse_any(given) else { continue };
        if !whole.contains(part.first()) || whole.prefix() >= part.prefix() {
            errors.invalid(&at, given, "must be a strict subset of `cidr`");
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::super::tests::{check_create, check_update};

    fn check(spec: Value, expected: &Expect) {
        let object = json!({"metadata": {"name": "web", "namespace": "b"}, "spec": spec});
        check_create("", "Service", object, expected);
    }

    #[test]
    fn ordinary_services_pass() {
        for spec in [
            json!({"ports": [{"port": 80}], "selector": {"app": "web"}}),
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"type": "NodePort", "ports": [
                {"name": "t", "port": 53, "nodePort": 30053}, {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30053}]}),
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a.b/c",
                "loadBalancerSourceRanges": [" 10.0.0.0/8 "], "ports": [{"port": 80, "targetPort": "http"}]}),
            json!({"type": "ExternalName", "externalName": "db.example.com."}),
            json!({"sessionAffinity": "ClientIP", "trafficDistribution": "PreferSameZone", "ports": [{"port": 1}]}),
        ] {
            check(spec, &expect![""]);
        }
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        check_create(
            "",
            "Service",
            json!({"metadata": {"name": "9.web", "namespace": "b"}, "spec": {
                "type": "Other", "selector": {"a b": "c"}, "sessionAffinity": "Cookie",
                "externalIPs": ["127.0.0.1", "x"], "internalTrafficPolicy": "Near",
                "trafficDistribution": "Far", "ipFamilies": ["IPv4", "IPv4", "IPX"],
                "ports": [
                    {"port": 0, "targetPort": "UPPER_case", "protocol": "ICMP"},
                    {"name": "a", "port": 80, "targetPort": 70000, "appProtocol": "not a name"},
                    {"name": "a", "port": 80},
                ],
            }}),
            &expect![[r#"
                Invalid metadata.name: Invalid value: "9.web": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
                Required spec.ports[0].name: Required value
                Invalid spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
                NotSupported spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
                Invalid spec.ports[0].targetPort: Invalid value: "UPPER_case": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
                Invalid spec.ports[1].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive
                Invalid spec.ports[1].appProtocol: Invalid value: "not a name": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                Duplicate spec.ports[2].name: Duplicate value: "a"
                Duplicate spec.ports[2]: Duplicate value: {"port":80,"protocol":"TCP"}
                Invalid spec.selector: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                NotSupported spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"
                Duplicate spec.ipFamilies[1]: Duplicate value: "IPv4"
                NotSupported spec.ipFamilies[2]: Unsupported value: "IPX": supported values: "IPv4", "IPv6"
                Invalid spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)
                Invalid spec.externalIPs[1]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
                NotSupported spec.type: Unsupported value: "Other": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"
                NotSupported spec.internalTrafficPolicy: Unsupported value: "Near": supported values: "Cluster", "Local"
                NotSupported spec.trafficDistribution: Unsupported value: "Far": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"
            "#]],
        );
    }

    #[test]
    fn a_type_has_only_what_belongs_to_it() {
        check(
            json!({"type": "ExternalName", "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"],
                "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local"}),
            &expect![[r#"
                Forbidden spec.clusterIPs: Forbidden: may not be set for ExternalName services
                Forbidden spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services
                Required spec.externalName: Required value
                Invalid spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services
            "#]],
        );
        check(
            json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}], "healthCheckNodePort": 30099,
                "loadBalancerClass": "a/b", "allocateLoadBalancerNodePorts": true,
                "loadBalancerSourceRanges": ["10.0.0.0"], "externalTrafficPolicy": "Cluster",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}),
            &expect![[r#"
                Forbidden spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'
                Forbidden spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'
                Invalid spec.loadBalancerSourceRanges[0]: Invalid value: "10.0.0.0": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
                Forbidden spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'
                Forbidden spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'
                Invalid spec.externalTrafficPolicy: Invalid value: "Cluster": may only be set for externally-accessible services
                Invalid spec.healthCheckNodePort: Invalid value: 30099: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'
            "#]],
        );
        check(
            json!({"type": "LoadBalancer", "clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            &expect![[r#"
                Invalid spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for LoadBalancer services
                Invalid spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400
            "#]],
        );
    }

    #[test]
    fn addresses_agree_with_each_other_and_with_families() {
        check(
            json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2", "x", "y"]}),
            &expect![[r#"
                Invalid spec.clusterIPs: Invalid value: ["10.0.0.2","x","y"]: first value must match `clusterIP`
                Invalid spec.clusterIPs[1]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
                Invalid spec.clusterIPs[2]: Invalid value: "y": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
                Invalid spec.clusterIPs: Invalid value: ["10.0.0.2","x","y"]: may only hold up to 2 values
            "#]],
        );
        check(
            json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"],
                "ipFamilies": ["IPv6"]}),
            &expect![[r#"
                Invalid spec.clusterIPs: Invalid value: ["10.0.0.1","10.0.0.2"]: may specify no more than one IP for each IP family
                Invalid spec.clusterIPs[0]: Invalid value: "10.0.0.1": expected an IPv6 value as indicated by `ipFamilies[0]`
            "#]],
        );
        check(
            json!({"ports": [{"port": 80}], "clusterIPs": ["None", "10.0.0.2"]}),
            &expect![[r#"
                Invalid spec.clusterIPs: Invalid value: ["None","10.0.0.2"]: must be empty when `clusterIP` is not specified
                Invalid spec.clusterIPs: Invalid value: ["None","10.0.0.2"]: 'None' must be the first and only value
            "#]],
        );
    }

    #[test]
    fn an_address_stays_for_life() {
        let service =
            |spec: Value| json!({"metadata": {"name": "web", "namespace": "b"}, "spec": spec});
        let old = service(
            json!({"clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"], "ports": [{"port": 80}]}),
        );
        check_update(
            "",
            "Service",
            &old,
            &service(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]})),
            &expect![[r#"
                Invalid spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set
            "#]],
        );
        check_update(
            "",
            "Service",
            &old,
            &service(json!({"ports": [{"port": 80}]})),
            &expect![[r#"
                Invalid spec.clusterIPs[0]: Invalid value: []: primary clusterIP can not be unset
            "#]],
        );
        check_update(
            "",
            "Service",
            &old,
            &service(json!({"type": "ExternalName", "externalName": "a.b"})),
            &expect![""],
        );
        let balancer = |port: i64, class: &str| {
            service(
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
                "healthCheckNodePort": port, "loadBalancerClass": class}),
            )
        };
        check_update(
            "",
            "Service",
            &balancer(30001, "a/b"),
            &balancer(30002, "a/c"),
            &expect![[r#"
                Invalid spec.loadBalancerClass: Invalid value: "a/c": may not change once set
                Forbidden spec.healthCheckNodePort: Forbidden: field is immutable
            "#]],
        );
    }
}
