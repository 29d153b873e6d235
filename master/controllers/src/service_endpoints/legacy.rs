//! The Endpoints object of a Service, for clients that know no slices. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::slices::Desired;
use crate::projection::{Endpoint, EndpointPort, Service};

/// Addresses in one object; Kubernetes' number.
const ADDRESSES_MAX: usize = 1000;
/// Says that there were more.
pub(super) const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Says who writes it, as upstream's controller does.
pub(super) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpoint-controller";

/// The `subsets` of a Service with these endpoints, and whether some are left out.
pub(super) fn subsets(service: &Service, desired: &Desired) -> (Value, bool) {
    let mut left = ADDRESSES_MAX;
    let mut truncated = false;
    // Only the first family: the old kind has one list of addresses.
    let first = service.families.first();
    let groups = desired.iter().filter(|((family, _), _)| Some(family) == first);
    let mut subsets: BTreeMap<&[EndpointPort], (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for ((_, ports), endpoints) in groups {
        // Those that are ready come first where there are too many.
        for ready in [true, false] {
            let some = endpoints.iter().filter(|e| e.ready == ready && (e.ready || !e.terminating));
            for endpoint in some {
                if left == 0 {
                    truncated = true;
                    continue;
                }
                left -= 1;
                let lists = subsets.entry(ports).or_default();
                let list = if ready { &mut lists.0 } else { &mut lists.1 };
                list.push(address(&service.meta.key.namespace, endpoint));
            }
        }
    }
    let subsets: Vec<Value> = subsets
        .into_iter()
        .map(|(ports, (ready, not_ready))| {
            let mut subset = json!({});
            let ports: Vec<Value> = ports.iter().map(port).collect();
            let lists = [("addresses", ready), ("notReadyAddresses", not_ready), ("ports", ports)];
            for (field, mut list) in lists {
                list.sort_by_cached_key(ToString::to_string);
                if !list.is_empty() {
                    subset[field] = list.into();
                }
            }
            subset
        })
        .collect();
    (subsets.into(), truncated)
}

fn address(namespace: &str, endpoint: &Endpoint) -> Value {
    let mut address = json!({
        "ip": &*endpoint.address,
        "targetRef": {
            "kind": "Pod", "namespace": namespace,
            "name": &*endpoint.pod, "uid": &*endpoint.uid,
        },
    });
    for (field, text) in [("hostname", &endpoint.hostname), ("nodeName", &endpoint.node)] {
        if let Some(text) = text {
            address[field] = (&**text).into();
        }
    }
    address
}

fn port(port: &EndpointPort) -> Value {
    let mut value = json!({"port": port.number, "protocol": &*port.protocol});
    if !port.name.is_empty() {
        value["name"] = (&*port.name).into();
    }
    if let Some(app) = &port.app_protocol {
        value["appProtocol"] = (&**app).into();
    }
    value
}
