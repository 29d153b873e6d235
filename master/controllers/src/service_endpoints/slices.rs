//! From the pods of a Service to its slices, with as few writes as can be. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use api::network;
use serde_json::{Value, json};

use crate::projection::{
    Endpoint, EndpointPort, Labels, Pod, Service, ServicePort, Slice, Target, intern,
};

/// Endpoints in one slice; Kubernetes' number.
pub const ENDPOINTS_MAX: usize = 100;

/// Endpoints of one family that have the same ports.
type Group = (Arc<str>, Vec<EndpointPort>);

/// What is to be in the slices of a Service.
pub type Desired = BTreeMap<Group, Vec<Endpoint>>;

/// One write.
#[derive(Clone, Debug)]
pub enum Step {
    /// Makes a slice.
    Create(Content),
    /// Changes a slice.
    Update(Arc<Slice>, Content),
    /// Removes a slice.
    Delete(Arc<Slice>),
}

/// What is in a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// `IPv4` or `IPv6`.
    pub family: Arc<str>,
    /// The ports of all endpoints.
    pub ports: Vec<EndpointPort>,
    /// At most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<Endpoint>,
}

/// What nodes say of themselves.
pub(super) trait Nodes {
    /// The zone of a node.
    fn zone(&self, node: &str) -> Option<Arc<str>>;
    /// The node's own addresses.
    fn addresses(&self, node: &str) -> Vec<IpAddr>;
}

/// Where the pods of a Service are reached.
pub(super) fn desired(service: &Service, pods: &[Arc<Pod>], nodes: &impl Nodes) -> Desired {
    let mut desired = Desired::new();
    for pod in pods.iter().filter(|pod| !pod.is_finished()) {
        let own: Vec<IpAddr> = match &pod.node {
            Some(node) if pod.reach.host_network && pod.reach.addresses.is_empty() => {
                nodes.addresses(node)
            }
            _ => pod.reach.addresses.to_vec(),
        };
        for family in &service.families {
            let usable = |address: &&IpAddr| {
                network::family(**address) == &**family && network::special(**address).is_empty()
            };
            let Some(address) = own.iter().find(usable) else { continue };
            let group = (Arc::clone(family), ports(&service.ports, pod));
            let endpoint = endpoint(service, pod, *address, nodes);
            desired.entry(group).or_default().push(endpoint);
        }
    }
    desired
}

fn endpoint(service: &Service, pod: &Pod, address: IpAddr, nodes: &impl Nodes) -> Endpoint {
    let serving = pod.ready_since.is_some();
    let terminating = pod.meta.is_deleting();
    let hostname = pod.reach.hostname.as_ref();
    Endpoint {
        address: intern(&address.to_string()),
        // Not while it is on its way out, unless all are asked for.
        ready: service.publish_not_ready || serving && !terminating,
        serving,
        terminating,
        hostname: hostname
            .filter(|(_, domain)| **domain == *service.meta.key.name)
            .map(|(name, _)| Arc::clone(name)),
        node: pod.node.clone(),
        zone: pod.node.as_ref().and_then(|node| nodes.zone(node)),
        pod: intern(&pod.meta.key.name),
        uid: Arc::clone(&pod.meta.uid),
    }
}

/// The ports of the Service in one pod; without those that it does not have.
fn ports(ports: &[ServicePort], pod: &Pod) -> Vec<EndpointPort> {
    let found = |port: &ServicePort| match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod
            .reach
            .ports
            .iter()
            .find(|(known, protocol, _)| known == name && *protocol == port.protocol)
            .map(|(_, _, number)| *number),
    };
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Arc::clone(&port.name),
                protocol: Arc::clone(&port.protocol),
                number: Some(found(port)?),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The labels of the slices of a Service, sorted: the Service's own but for those
/// that are the controller's.
pub(super) fn labels(service: &Service) -> Labels {
    let reserved =
        [api::service::SERVICE_NAME_LABEL, api::service::MANAGED_BY_LABEL, super::HEADLESS_LABEL];
    let mut labels: Vec<(Arc<str>, Arc<str>)> = service
        .meta
        .labels
        .iter()
        .filter(|(key, _)| !reserved.contains(&&**key))
        .cloned()
        .collect();
    labels.push((intern(api::service::SERVICE_NAME_LABEL), intern(&service.meta.key.name)));
    labels.push((intern(api::service::MANAGED_BY_LABEL), intern(crate::projection::SLICE_MANAGER)));
    if service.headless {
        labels.push((intern(super::HEADLESS_LABEL), intern("")));
    }
    labels.sort();
    labels.into()
}

/// The writes that make `existing` what is desired. A slice that is right is left
/// alone; what is new goes where a write is due anyway, then where there is room.
///
/// A Service without any endpoint keeps one slice, which is empty.
#[must_use]
pub fn plan(
    mut desired: Desired,
    labels: &Labels,
    family: &Arc<str>,
    existing: &[Arc<Slice>],
) -> Vec<Step> {
    let is_placeholder = desired.is_empty();
    if is_placeholder {
        desired.insert((Arc::clone(family), Vec::new()), Vec::new());
    }
    let mut of_group: HashMap<Group, Vec<&Arc<Slice>>> = HashMap::new();
    let mut unwanted: Vec<&Arc<Slice>> = Vec::new();
    for slice in existing {
        let group = (Arc::clone(&slice.family), slice.ports.clone());
        if desired.contains_key(&group) {
            of_group.entry(group).or_default().push(slice);
        } else {
            unwanted.push(slice);
        }
    }
    let (mut steps, mut creates) = (Vec::new(), Vec::new());
    for (group, endpoints) in desired {
        let slices = of_group.remove(&group).unwrap_or_default();
        let (kept, more) = group_plan(endpoints, labels, &slices);
        let content =
            |endpoints| Content { family: group.0.clone(), ports: group.1.clone(), endpoints };
        let mut n_left = 0;
        for kept in kept {
            if kept.endpoints.is_empty() && !(is_placeholder && n_left == 0) {
                unwanted.push(kept.slice);
                continue;
            }
            n_left += 1;
            if kept.changed {
                steps.push(Step::Update(Arc::clone(kept.slice), content(kept.endpoints)));
            }
        }
        let needs_empty = is_placeholder && n_left == 0 && more.is_empty();
        creates.extend(more.into_iter().map(&content));
        if needs_empty {
            creates.push(content(Vec::new()));
        }
    }
    // A slice that is no longer wanted becomes one that is.
    for content in creates {
        match unwanted.iter().position(|slice| slice.family == content.family) {
            Some(at) => steps.push(Step::Update(Arc::clone(unwanted.remove(at)), content)),
            None => steps.push(Step::Create(content)),
        }
    }
    steps.extend(unwanted.into_iter().map(|slice| Step::Delete(Arc::clone(slice))));
    steps
}

/// A slice of the group, as it should be.
struct Kept<'a> {
    slice: &'a Arc<Slice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

/// The slices of one group, and what fits into none of them.
fn group_plan<'a>(
    endpoints: Vec<Endpoint>,
    labels: &Labels,
    slices: &[&'a Arc<Slice>],
) -> (Vec<Kept<'a>>, Vec<Vec<Endpoint>>) {
    let key = |endpoint: &Endpoint| (Arc::clone(&endpoint.uid), Arc::clone(&endpoint.address));
    let order: Vec<_> = endpoints.iter().map(key).collect();
    let mut missing: HashMap<_, Endpoint> =
        endpoints.into_iter().map(|endpoint| (key(&endpoint), endpoint)).collect();
    let mut kept: Vec<Kept<'a>> = slices
        .iter()
        .map(|slice| {
            let endpoints: Vec<Endpoint> = slice
                .endpoints
                .iter()
                .filter_map(|endpoint| missing.remove(&key(endpoint)))
                .take(ENDPOINTS_MAX)
                .collect();
            let changed = endpoints != slice.endpoints || slice.meta.labels != *labels;
            Kept { slice, endpoints, changed }
        })
        .collect();
    let mut missing: Vec<Endpoint> =
        order.iter().filter_map(|key| missing.remove(key)).rev().collect();
    // First what is written anyway, then the fullest with room for something.
    let mut places: Vec<&mut Kept<'a>> =
        kept.iter_mut().filter(|kept| kept.endpoints.len() < ENDPOINTS_MAX).collect();
    places.sort_by_key(|kept| (!kept.changed, usize::MAX - kept.endpoints.len()));
    for place in places {
        let room = ENDPOINTS_MAX - place.endpoints.len();
        let taken = missing.split_off(missing.len().saturating_sub(room));
        place.changed |= !taken.is_empty();
        place.endpoints.extend(taken.into_iter().rev());
    }
    let mut more = Vec::new();
    while !missing.is_empty() {
        let taken = missing.split_off(missing.len().saturating_sub(ENDPOINTS_MAX));
        more.push(taken.into_iter().rev().collect());
    }
    (kept, more)
}

/// `endpoints` and `ports` of a slice.
pub(super) fn render(namespace: &str, content: &Content) -> (Value, Value) {
    let ports = content.ports.iter().map(|port| {
        let mut value = json!({
            "name": &*port.name, "protocol": &*port.protocol, "port": port.number,
        });
        if let Some(app) = &port.app_protocol {
            value["appProtocol"] = (&**app).into();
        }
        value
    });
    let endpoints = content.endpoints.iter().map(|endpoint| {
        let mut value = json!({
            "addresses": [&*endpoint.address],
            "conditions": {
                "ready": endpoint.ready,
                "serving": endpoint.serving,
                "terminating": endpoint.terminating,
            },
            "targetRef": {
                "kind": "Pod", "namespace": namespace,
                "name": &*endpoint.pod, "uid": &*endpoint.uid,
            },
        });
        let texts = [
            ("hostname", &endpoint.hostname),
            ("nodeName", &endpoint.node),
            ("zone", &endpoint.zone),
        ];
        for (field, text) in texts {
            if let Some(text) = text {
                value[field] = (&**text).into();
            }
        }
        value
    });
    (endpoints.collect(), ports.collect())
}
