//! The projections of a Service and of an EndpointSlice.

use std::net::IpAddr;
use std::sync::Arc;

use api::selector::LabelSelector;
use api::{Value, meta, service};

use super::{Meta, Projection, Term, intern};

/// A Service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Metadata.
    pub meta: Meta,
    /// Which pods are behind it; `None` where somebody else says what is.
    pub selector: Option<Arc<LabelSelector>>,
    /// A label that all of these pods have, with its value: the likeliest to tell
    /// them from others.
    pub tell_tale: Option<(Arc<str>, Arc<str>)>,
    /// `IPv4`, `IPv6` or both, in the order asked for.
    pub families: Box<[Arc<str>]>,
    /// Where its ports lead.
    pub ports: Box<[ServicePort]>,
    /// It has no address of its own.
    pub headless: bool,
    /// Pods are given out before they are ready.
    pub publish_not_ready: bool,
    /// What is to be done for it outside of the cluster.
    pub balancer: Balancer,
    /// The addresses in `status.loadBalancer`.
    pub ingress: Box<[Arc<str>]>,
}

/// What is to be done for a Service outside of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// Nothing.
    None,
    /// It is reached at every node.
    EveryNode,
    /// It is reached at nodes that have endpoints of it (`externalTrafficPolicy: Local`).
    OwnNodes,
    /// Somebody else takes care of it (`loadBalancerClass`).
    Others,
}

/// A port of a Service, as far as pods are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: Arc<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Arc<str>,
    /// Where it leads in a pod.
    pub target: Target,
    /// What is spoken there, where it says.
    pub app_protocol: Option<Arc<str>>,
}

/// Where a port of a Service leads in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a number.
    Number(u16),
    /// To the port of this name, which may be another in every pod.
    Name(Arc<str>),
}

/// Labels whose values tell an application from others, the best first.
const TELLING: [&str; 5] =
    ["app.kubernetes.io/instance", "app.kubernetes.io/name", "app", "k8s-app", "name"];

impl Projection for Service {
    fn project(object: &Value) -> Self {
        static NOTHING: std::sync::LazyLock<serde_json::Map<String, Value>> =
            std::sync::LazyLock::new(serde_json::Map::new);
        let spec = object.get("spec").and_then(Value::as_object).unwrap_or(&NOTHING);
        let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
        let labels: Vec<(&str, &str)> = spec
            .get("selector")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect();
        let selects = !labels.is_empty() && service::needs_cluster_ip(spec);
        let rank = |(key, value): &(&str, &str)| {
            let known = TELLING.iter().position(|telling| telling == key).unwrap_or(TELLING.len());
            (known, usize::MAX - value.len())
        };
        let tell_tale = labels.iter().min_by_key(|label| rank(label)).filter(|_| selects);
        let kind = text("type");
        let class = spec.get("loadBalancerClass").is_some_and(|class| !class.is_null());
        Self {
            meta: Meta::of(object),
            selector: selects.then(|| Arc::new(LabelSelector::from_labels(labels.iter().copied()))),
            tell_tale: tell_tale.map(|(key, value)| (intern(key), intern(value))),
            families: texts(spec.get("ipFamilies")).map(intern).collect(),
            ports: service::ports(spec).map(port).collect(),
            headless: service::is_headless(spec),
            publish_not_ready: spec.get("publishNotReadyAddresses") == Some(&Value::Bool(true)),
            balancer: match (kind, text("externalTrafficPolicy")) {
                ("LoadBalancer", _) if class => Balancer::Others,
                ("LoadBalancer", "Local") => Balancer::OwnNodes,
                ("LoadBalancer", _) => Balancer::EveryNode,
                _ => Balancer::None,
            },
            ingress: object
                .pointer("/status/loadBalancer/ingress")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|ingress| ingress["ip"].as_str().map(intern))
                .collect(),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
        if let Some((key, value)) = &self.tell_tale {
            each(Term::Selects(
                intern(&self.meta.key.namespace),
                Arc::clone(key),
                Arc::clone(value),
            ));
        }
    }
}

fn port(fields: &serde_json::Map<String, Value>) -> ServicePort {
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    let number = |field: &str| fields.get(field).and_then(Value::as_u64);
    let plain = || number("targetPort").or_else(|| number("port")).unwrap_or_default();
    ServicePort {
        name: intern(text("name").unwrap_or_default()),
        protocol: intern(text("protocol").unwrap_or("TCP")),
        target: match text("targetPort") {
            Some(name) => Target::Name(intern(name)),
            None => Target::Number(u16::try_from(plain()).unwrap_or_default()),
        },
        app_protocol: text("appProtocol").map(intern),
    }
}

fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// An EndpointSlice.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Metadata.
    pub meta: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub family: Arc<str>,
    /// The ports of every endpoint in it.
    pub ports: Vec<EndpointPort>,
    /// What is in it; nothing of slices that others write.
    pub endpoints: Vec<Endpoint>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointPort {
    /// The name of the Service's port; empty where it has none.
    pub name: Arc<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Arc<str>,
    /// Its number.
    pub number: Option<u16>,
    /// What is spoken there, where it is said.
    pub app_protocol: Option<Arc<str>>,
}

/// A pod in a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's address.
    pub address: Arc<str>,
    /// New connections may go there.
    pub ready: bool,
    /// It answers, be it terminating.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
    /// Its name in the Service's DNS, where it has one.
    pub hostname: Option<Arc<str>>,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// Where that node is.
    pub zone: Option<Arc<str>>,
    /// The pod's name.
    pub pod: Arc<str>,
    /// The pod's identity.
    pub uid: Arc<str>,
}

/// Who writes the slices that controllers here write, as upstream's says it.
pub const SLICE_MANAGER: &str = "endpointslice-controller.k8s.io";

impl Projection for Slice {
    fn project(object: &Value) -> Self {
        let managed = meta::label(object, service::MANAGED_BY_LABEL) == Some(SLICE_MANAGER);
        let list = |field: &str| {
            let list = object.get(field).and_then(Value::as_array);
            list.into_iter().flatten().filter(move |_| managed)
        };
        let text =
            |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(intern);
        let port = |port: &Value| EndpointPort {
            name: text(port, "name").unwrap_or_else(|| intern("")),
            protocol: text(port, "protocol").unwrap_or_else(|| intern("TCP")),
            number: port["port"].as_u64().and_then(|port| u16::try_from(port).ok()),
            app_protocol: text(port, "appProtocol"),
        };
        let endpoint = |endpoint: &Value| {
            let condition = |name: &str| endpoint["conditions"][name] == true;
            Endpoint {
                address: intern(endpoint["addresses"][0].as_str().unwrap_or_default()),
                ready: condition("ready"),
                serving: condition("serving"),
                terminating: condition("terminating"),
                hostname: text(endpoint, "hostname"),
                node: text(endpoint, "nodeName"),
                zone: text(endpoint, "zone"),
                pod: text(&endpoint["targetRef"], "name").unwrap_or_else(|| intern("")),
                uid: text(&endpoint["targetRef"], "uid").unwrap_or_else(|| intern("")),
            }
        };
        Self {
            meta: Meta::of(object),
            family: intern(object["addressType"].as_str().unwrap_or_default()),
            ports: list("ports").map(port).collect(),
            endpoints: list("endpoints").map(endpoint).collect(),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
    }
}

/// A port of a pod: name, protocol, number.
pub type NamedPort = (Arc<str>, Arc<str>, u16);

/// Where a pod is reached, and what its ports are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Its addresses, one a family.
    pub addresses: Box<[IpAddr]>,
    /// It is on the node's network.
    pub host_network: bool,
    /// Its ports that have a name.
    pub ports: Box<[NamedPort]>,
    /// Name and domain that it asks for, where it asks for both.
    pub hostname: Option<(Arc<str>, Arc<str>)>,
}

impl Reach {
    /// Reads it from a pod.
    pub(super) fn of(pod: &api::view::PodView) -> Self {
        let (spec, status) = (&pod.spec, &pod.status);
        let listed = status.pod_ips.iter().map(|address| address.ip.as_str());
        let mut addresses: Vec<IpAddr> = std::iter::once(status.pod_ip.as_str())
            .chain(listed)
            .filter_map(|text| text.parse().ok())
            .collect();
        let mut n = 0;
        while n < addresses.len() {
            let known = addresses[..n].contains(&addresses[n]);
            if known {
                addresses.remove(n);
            } else {
                n += 1;
            }
        }
        // Sidecars have ports, too.
        let ports = spec.init_containers.iter().filter(|c| c.is_sidecar()).chain(&spec.containers);
        let ports =
            ports.flat_map(|container| &container.ports).filter(|port| !port.name.is_empty());
        Self {
            addresses: addresses.into(),
            host_network: spec.host_network,
            ports: ports
                .filter_map(|port| {
                    let number = u16::try_from(port.container_port).ok()?;
                    let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
                    Some((intern(&port.name), intern(protocol), number))
                })
                .collect(),
            hostname: (!spec.hostname.is_empty() && !spec.subdomain.is_empty())
                .then(|| (intern(&spec.hostname), intern(&spec.subdomain))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_read() {
        let service = Service::project(&json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilies": ["IPv4"],
                "selector": {"tier": "a-very-long-value", "app": "web"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http", "name": "h"},
                    {"port": 53, "protocol": "UDP", "targetPort": 5353}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}},
        }));
        assert_eq!(service.tell_tale, Some(("app".into(), "web".into())));
        assert_eq!(service.balancer, Balancer::OwnNodes);
        assert_eq!(service.ports[0].target, Target::Name("http".into()));
        assert_eq!(service.ports[1].target, Target::Number(5353));
        assert_eq!(*service.ingress, ["10.0.0.1".into()]);
        assert!(!service.headless);
        for nobody in [
            json!({"spec": {"ports": []}}),
            json!({"spec": {"selector": {}}}),
            json!({"spec": {"type": "ExternalName", "selector": {"a": "b"}}}),
            json!({}),
        ] {
            assert!(Service::project(&nobody).selector.is_none(), "{nobody}");
        }
    }

    #[test]
    fn slices_of_others_are_not_looked_into() {
        let mut slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4",
            "ports": [{"port": 80, "name": "", "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true}}]});
        assert!(Slice::project(&slice).endpoints.is_empty());
        slice["metadata"]["labels"] = json!({(service::MANAGED_BY_LABEL): SLICE_MANAGER});
        let read = Slice::project(&slice);
        assert!(read.endpoints[0].ready && !read.endpoints[0].terminating);
        assert_eq!(read.ports[0].number, Some(80));
    }
}
