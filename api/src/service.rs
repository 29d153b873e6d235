//! What a Service holds of the cluster, addresses and ports of nodes, and what
//! it keeps of that when it is changed.
//!
//! ```text
//! a write ─► defaults ─► prepare ─► validation ─► fill (addresses, ports) ─► store
//! ```
//!
//! [`prepare`] makes what a client left out what it was before, and drops what
//! the new type has no use for, as Kubernetes does. [`held`] says what an object
//! holds. Whether something is free is the store's to know: that is the API
//! server's part.
//!
//! Source: `k8s.io/kubernetes/pkg/registry/core/service/storage`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::network::{self, Cidr};
use crate::validation::FieldError;

/// A JSON object's fields.
type Fields = Map<String, Value>;

/// The `clusterIP` of a Service without an address of its own.
pub const HEADLESS: &str = "None";
/// Namespace and name of the Service of the API, whose address nobody else gets.
pub const API_SERVICE: (&str, &str) = ("default", "kubernetes");
/// The same of DNS.
pub const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");
/// The label that says which Service a slice of endpoints is of.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label that says who writes a slice of endpoints.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Which of the Services' addresses DNS has.
const DNS_POSITION: u128 = 10;

/// Where addresses and ports of Services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    addresses: Cidr,
    node_ports: RangeInclusive<u16>,
}

impl Default for Ranges {
    /// 10.43.0.0/16, and Kubernetes' ports: 30000 to 32767.
    fn default() -> Self {
        let addresses = Cidr::around(IpAddr::from([10, 43, 0, 0]), 16);
        Self { addresses, node_ports: 30_000..=32_767 }
    }
}

/// Why a network cannot be the Services'.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    /// It has no room for the API, DNS and some more.
    #[error("{0} is too small for Services: use one of at least 16 addresses")]
    TooSmall(Cidr),
}

impl Ranges {
    /// Addresses from `addresses`, and the default ports.
    ///
    /// # Errors
    /// Where there are less than 16 addresses.
    pub fn new(addresses: Cidr) -> Result<Self, RangesError> {
        if addresses.n_addresses() < 16 {
            return Err(RangesError::TooSmall(addresses));
        }
        Ok(Self { addresses, ..Self::default() })
    }

    /// The network of the Services.
    #[must_use]
    pub fn addresses(&self) -> Cidr {
        self.addresses
    }

    /// The ports of nodes that Services may have.
    #[must_use]
    pub fn node_ports(&self) -> RangeInclusive<u16> {
        self.node_ports.clone()
    }

    /// The address of the API, the first one.
    #[must_use]
    pub fn api_address(&self) -> IpAddr {
        self.addresses.nth(1).unwrap_or_else(|| self.addresses.first())
    }

    /// The address of DNS, the tenth one.
    #[must_use]
    pub fn dns_address(&self) -> IpAddr {
        self.addresses.nth(DNS_POSITION).unwrap_or_else(|| self.addresses.first())
    }

    /// Positions in the network that a Service may have: neither the network's
    /// own address nor the broadcast address of IPv4.
    #[must_use]
    pub fn positions(&self) -> RangeInclusive<u128> {
        // More than fit in memory are never looked through.
        let n = self.addresses.n_addresses().min(1 << 20);
        let last = if self.addresses.first().is_ipv4() { n - 2 } else { n - 1 };
        1..=last
    }

    /// The first position of the upper band, from which addresses are given to
    /// those who ask for none; the lower one is for those who name theirs, and used
    /// where the upper one is full.
    ///
    /// Source: <https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/>.
    #[must_use]
    pub fn first_dynamic_position(&self) -> u128 {
        band(self.positions().count() as u128 + 2, 16, 16, 256).max(1)
    }

    /// The same of ports.
    #[must_use]
    pub fn first_dynamic_port(&self) -> u16 {
        let n = self.node_ports.clone().count() as u128;
        let offset = u16::try_from(band(n, 32, 16, 128)).unwrap_or(0);
        self.node_ports.start().saturating_add(offset)
    }

    /// Whether a Service may have this address.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.position(address).is_some_and(|n| self.positions().contains(&n))
    }
}

/// The size of the lower band: `size / step`, but between `min` and `max`.
fn band(size: u128, step: u128, min: u128, max: u128) -> u128 {
    if size <= min { 0 } else { (size / step).clamp(min, max) }
}

/// What a Service holds of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Addresses, as they are written.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports of nodes.
    pub ports: BTreeSet<u16>,
}

/// What a Service holds.
#[must_use]
pub fn held(service: &Value) -> Held {
    let mut held = Held::default();
    let Some(spec) = service.get("spec").and_then(Value::as_object) else { return held };
    if needs_cluster_ip(spec) {
        held.addresses = texts(spec, "clusterIPs").filter_map(|text| text.parse().ok()).collect();
    }
    let port = |value: Option<&Value>| {
        value.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).filter(|p| *p > 0)
    };
    held.ports.extend(ports(spec).filter_map(|fields| port(fields.get("nodePort"))));
    held.ports.extend(port(spec.get("healthCheckNodePort")));
    held
}

/// Whether it has an address inside the cluster, or could have one.
#[must_use]
pub fn needs_cluster_ip(spec: &Fields) -> bool {
    matches!(text(spec, "type"), "" | "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether clients get the addresses of its pods instead of one of its own.
#[must_use]
pub fn is_headless(spec: &Fields) -> bool {
    text(spec, "clusterIP") == HEADLESS || texts(spec, "clusterIPs").eq([HEADLESS])
}

/// Whether its ports are opened on nodes.
#[must_use]
pub fn needs_node_ports(spec: &Fields) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

/// Whether a port of nodes tells a load balancer which of them have endpoints.
#[must_use]
pub fn needs_health_check(spec: &Fields) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

/// Whether it is reached from outside of the cluster.
#[must_use]
pub fn is_externally_accessible(spec: &Fields) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => {
            spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
        }
        _ => false,
    }
}

/// Makes a Service on its way into the store complete but for what is to be
/// allocated; `old` is the one it replaces.
///
/// Returns what this cluster cannot give.
pub fn prepare(ranges: &Ranges, old: Option<&Value>, service: &mut Value) -> Vec<FieldError> {
    let old = old.and_then(|old| old.get("spec")).and_then(Value::as_object);
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return Vec::new();
    };
    match old {
        None => {
            let address = text(spec, "clusterIP").to_owned();
            if !address.is_empty() && is_absent(spec, "clusterIPs") {
                spec.insert("clusterIPs".to_owned(), json!([address]));
            }
        }
        Some(old) => {
            follow_cluster_ip(old, spec);
            keep_allocated(old, spec);
            drop_unused(old, spec);
        }
    }
    let mut errors = Vec::new();
    if needs_cluster_ip(spec) {
        families(ranges, spec, &mut errors);
    }
    errors
}

/// A client that knows one of `clusterIP` and `clusterIPs` changes both by it.
fn follow_cluster_ip(old: &Fields, spec: &mut Fields) {
    let (before, after) = (text(old, "clusterIP"), text(spec, "clusterIP").to_owned());
    let same_list = old.get("clusterIPs") == spec.get("clusterIPs");
    if before != after {
        if after.is_empty() && same_list {
            spec.shift_remove("clusterIPs");
        } else if same_list
            && let Some(first) = spec
                .get_mut("clusterIPs")
                .and_then(Value::as_array_mut)
                .and_then(|list| list.first_mut())
        {
            *first = after.into();
        } else if !after.is_empty() && is_absent(spec, "clusterIPs") {
            spec.insert("clusterIPs".to_owned(), json!([after]));
        }
    }
}

/// What was allocated and is left out stays as it is.
fn keep_allocated(old: &Fields, spec: &mut Fields) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        if text(spec, "clusterIP").is_empty()
            && let Some(address) = old.get("clusterIP")
        {
            spec.insert("clusterIP".to_owned(), address.clone());
        }
        if is_absent(spec, "clusterIPs")
            && spec.get("clusterIP") == old.get("clusterIP")
            && let Some(addresses) = old.get("clusterIPs")
        {
            spec.insert("clusterIPs".to_owned(), addresses.clone());
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if is_absent(spec, field)
                && let Some(value) = old.get(field)
            {
                spec.insert(field.to_owned(), value.clone());
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(spec) {
        let node_port = |port: &Fields| port.get("nodePort").and_then(Value::as_i64);
        let known: BTreeMap<String, i64> = ports(old)
            .filter_map(|port| Some((text(port, "name").to_owned(), node_port(port)?)))
            .collect();
        let used: BTreeSet<i64> = ports(spec).filter_map(node_port).collect();
        for port in ports_mut(spec) {
            if node_port(port).is_none()
                && let Some(known) = known.get(text(port, "name"))
                && !used.contains(known)
            {
                port.insert("nodePort".to_owned(), json!(known));
            }
        }
    }
    if needs_health_check(old)
        && needs_health_check(spec)
        && is_absent(spec, "healthCheckNodePort")
        && let Some(port) = old.get("healthCheckNodePort")
    {
        spec.insert("healthCheckNodePort".to_owned(), port.clone());
    }
}

/// A change of the type drops what the new one has no use for, unless the client
/// set it to something else at the same time: that is an error to tell of.
fn drop_unused(old: &Fields, spec: &mut Fields) {
    let drop = |spec: &mut Fields, field: &str| {
        if old.get(field) == spec.get(field) {
            spec.shift_remove(field);
        }
    };
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        let same = ["clusterIP", "clusterIPs"].iter().all(|f| old.get(*f) == spec.get(*f));
        // With a patch of the type alone the list stays; with a whole object it may not.
        if same || is_absent(spec, "clusterIP") && is_absent(spec, "clusterIPs") {
            spec.shift_remove("clusterIP");
            spec.shift_remove("clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            drop(spec, field);
        }
    }
    if needs_node_ports(old) && !needs_node_ports(spec) {
        let list = |spec: &Fields| -> Vec<Option<Value>> {
            ports(spec).map(|port| port.get("nodePort").cloned()).collect()
        };
        if list(old) == list(spec) {
            for port in ports_mut(spec) {
                port.shift_remove("nodePort");
            }
        }
    }
    if needs_health_check(old) && !needs_health_check(spec) {
        drop(spec, "healthCheckNodePort");
    }
    if is_externally_accessible(old) && !is_externally_accessible(spec) {
        drop(spec, "externalTrafficPolicy");
    }
    if text(old, "type") == "LoadBalancer" && text(spec, "type") != "LoadBalancer" {
        drop(spec, "loadBalancerClass");
        drop(spec, "allocateLoadBalancerNodePorts");
    }
}

/// Families follow the cluster's, which has one.
fn families(ranges: &Ranges, spec: &mut Fields, errors: &mut Vec<FieldError>) {
    let own = ranges.addresses.family();
    let other = if own == "IPv4" { "IPv6" } else { "IPv4" };
    let selects = spec.get("selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
    if is_headless(spec) && !selects {
        // Its endpoints are somebody else's, and may be of any family.
        if is_absent(spec, "ipFamilyPolicy") {
            spec.insert("ipFamilyPolicy".to_owned(), json!("RequireDualStack"));
        }
        if is_absent(spec, "ipFamilies") {
            spec.insert("ipFamilies".to_owned(), json!([own]));
        }
        let one: Vec<&str> = texts(spec, "ipFamilies").collect();
        if let [first] = one.as_slice()
            && text(spec, "ipFamilyPolicy") != "SingleStack"
        {
            let both = if *first == own { json!([own, other]) } else { json!([other, own]) };
            spec.insert("ipFamilies".to_owned(), both);
        }
        return;
    }
    if is_absent(spec, "ipFamilyPolicy") {
        spec.insert("ipFamilyPolicy".to_owned(), json!("SingleStack"));
    }
    if text(spec, "ipFamilyPolicy") == "RequireDualStack" {
        errors.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            &spec["ipFamilyPolicy"],
            "this cluster is not configured for dual-stack services",
        ));
    }
    if is_absent(spec, "ipFamilies") {
        let wanted = texts(spec, "clusterIPs").next().and_then(|ip| ip.parse().ok());
        let family = wanted.map_or(own, network::family);
        spec.insert("ipFamilies".to_owned(), json!([family]));
    }
    for (n, family) in texts(spec, "ipFamilies").enumerate() {
        if family == other {
            errors.push(FieldError::invalid(
                &format!("spec.ipFamilies[{n}]"),
                &spec["ipFamilies"],
                "not configured on this cluster",
            ));
        }
    }
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn texts<'a>(fields: &'a Fields, name: &str) -> impl Iterator<Item = &'a str> {
    fields.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Absent, null or empty.
fn is_absent(fields: &Fields, name: &str) -> bool {
    match fields.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}

/// The ports of a Service.
pub fn ports(spec: &Fields) -> impl Iterator<Item = &Fields> {
    let list = spec.get("ports").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

fn ports_mut(spec: &mut Fields) -> impl Iterator<Item = &mut Fields> {
    let list = spec.get_mut("ports").and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{defaults, resource};

    fn prepared(old: Option<&Value>, spec: Value) -> (Value, Vec<String>) {
        let services = resource::by_kind("", "Service").unwrap();
        let mut service = json!({"spec": spec});
        defaults::apply(services, &mut service);
        let errors = prepare(&Ranges::default(), old, &mut service);
        let once = service.clone();
        assert_eq!(prepare(&Ranges::default(), old, &mut service), errors);
        assert_eq!(service, once, "preparing twice");
        (service, errors.iter().map(ToString::to_string).collect())
    }

    /// What is in the store once addresses and ports were given.
    fn stored(spec: Value) -> Value {
        prepared(None, spec).0
    }

    #[test]
    fn bands_are_kubernetes() {
        let ranges = Ranges::default();
        assert_eq!(ranges.positions(), 1..=65534);
        assert_eq!(ranges.first_dynamic_position(), 256);
        assert_eq!(ranges.first_dynamic_port(), 30086);
        assert_eq!(ranges.api_address().to_string(), "10.43.0.1");
        assert_eq!(ranges.dns_address().to_string(), "10.43.0.10");
        let of = |text: &str| Ranges::new(text.parse().unwrap());
        assert_eq!(of("10.0.0.0/24").unwrap().first_dynamic_position(), 16);
        assert_eq!(of("10.0.0.0/20").unwrap().first_dynamic_position(), 256);
        assert_eq!(of("10.0.0.0/28").unwrap().first_dynamic_position(), 1);
        let wide = of("fd00::/64").unwrap();
        assert_eq!(wide.positions(), 1..=(1 << 20) - 1);
        assert!(wide.has_address("fd00::a".parse().unwrap()));
        assert!(!ranges.has_address("10.43.0.0".parse().unwrap()));
        assert!(!ranges.has_address("10.43.255.255".parse().unwrap()));
        let error = of("10.0.0.0/29").unwrap_err().to_string();
        assert_eq!(
            error,
            "10.0.0.0/29 is too small for Services: use one of at least 16 addresses"
        );
    }

    #[test]
    fn a_service_has_the_family_of_the_cluster() {
        let (service, errors) = prepared(None, json!({"clusterIP": "10.43.0.7"}));
        assert_eq!(errors, [""; 0]);
        assert_eq!(service["spec"]["clusterIPs"], json!(["10.43.0.7"]));
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");
        let (_, errors) = prepared(None, json!({"ipFamilyPolicy": "RequireDualStack"}));
        assert_eq!(
            errors,
            [
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
            ]
        );
        let (_, errors) = prepared(None, json!({"ipFamilies": ["IPv6"]}));
        assert_eq!(
            errors,
            ["spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: not configured on this cluster"]
        );
        let (open, _) = prepared(None, json!({"clusterIP": "None"}));
        assert_eq!(open["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(open["spec"]["ipFamilyPolicy"], "RequireDualStack");
        let (name, _) =
            prepared(None, json!({"type": "ExternalName", "externalName": "a.example"}));
        assert!(name["spec"].get("ipFamilies").is_none());
    }

    #[test]
    fn what_was_given_stays_where_it_is_left_out() {
        let old = stored(json!({
            "type": "NodePort", "clusterIP": "10.43.1.1",
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}],
        }));
        let (new, _) = prepared(
            Some(&old),
            json!({"type": "NodePort", "ports": [
                {"name": "b", "port": 8081}, {"name": "a", "port": 80, "nodePort": 30081}, {"name": "c", "port": 82}]}),
        );
        assert_eq!(new["spec"]["clusterIP"], "10.43.1.1");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.1.1"]));
        let ports: Vec<_> = ports(new["spec"].as_object().unwrap())
            .map(|port| port.get("nodePort").and_then(Value::as_i64))
            .collect();
        assert_eq!(ports, [None, Some(30081), None], "b lost its to a");
        // A client that sends back what it read and drops the address asks for the same.
        let mut back = old["spec"].clone();
        back.as_object_mut().unwrap().remove("clusterIP");
        let (new, _) = prepared(Some(&old), back);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.1.1"]));
    }

    #[test]
    fn another_type_drops_what_it_has_no_use_for() {
        let mut old = stored(json!({
            "type": "LoadBalancer", "clusterIP": "10.43.1.1", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30099, "loadBalancerClass": "a/b",
            "ports": [{"port": 80, "nodePort": 30080}],
        }));
        let patched = |kind: &str| {
            let mut spec = old["spec"].clone();
            spec["type"] = kind.into();
            prepared(Some(&old), spec).0
        };
        let plain = patched("ClusterIP");
        assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
        for field in [
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "loadBalancerClass",
            "allocateLoadBalancerNodePorts",
        ] {
            assert_eq!(plain["spec"].get(field), None, "{field}");
        }
        assert_eq!(held(&plain).addresses.len(), 1);
        assert!(held(&plain).ports.is_empty());
        let node = patched("NodePort");
        assert_eq!(held(&node).ports, [30080].into());
        let name = patched("ExternalName");
        assert_eq!(held(&name), Held::default());
        assert_eq!(name["spec"].get("clusterIPs"), None);
        assert_eq!(name["spec"].get("ipFamilies"), None);
        // What is changed at the same time stays, for validation to refuse.
        let mut spec = old["spec"].take();
        spec["type"] = "ClusterIP".into();
        spec["ports"][0]["nodePort"] = 30081.into();
        old["spec"] = stored(
            json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}]}),
        )["spec"]
            .take();
        let (new, _) = prepared(Some(&old), spec);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30081);
    }
}
