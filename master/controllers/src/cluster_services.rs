//! The two Services that every cluster has, kept as they are whoever removes them:
//! `kubernetes` in `default`, by which pods reach the API, and `kube-dns` in
//! `kube-system`, whose address answers names.
//!
//! Nobody's pods are behind either. What is behind `kubernetes` is the master
//! itself, so its slice and its Endpoints are written here; DNS is answered by
//! every node for itself.

use std::net::IpAddr;
use std::sync::Arc;

use api::service::{API_SERVICE, DNS_SERVICE, Ranges, SERVICE_NAME_LABEL};
use api::{ObjectKey, Value, meta, network};
use serde_json::json;

use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterError, DeleteOptions, Kind, kinds};
use crate::projection::{Meta, Service, Slice};
use crate::runner::{Action, Sender};

/// Keeps a copy of the slice from being made out of the Endpoints, upstream's label.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// Where the API is.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where addresses of Services come from.
    pub ranges: Ranges,
    /// Address or name under which users reach the API.
    pub api_host: String,
    /// Its port there.
    pub api_port: u16,
}

/// One object that must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The Service of the API.
    ApiService,
    /// Where the API is.
    ApiSlice,
    /// The same for old clients.
    ApiEndpoints,
    /// The Service of DNS.
    DnsService,
}

/// All of them, Services first.
pub const ALL: [Wanted; 4] =
    [Wanted::ApiService, Wanted::DnsService, Wanted::ApiSlice, Wanted::ApiEndpoints];

impl Wanted {
    fn resource(self) -> Kind {
        match self {
            Self::ApiService | Self::DnsService => kinds::services(),
            Self::ApiSlice => kinds::endpoint_slices(),
            Self::ApiEndpoints => kinds::endpoints(),
        }
    }

    fn key(self) -> ObjectKey {
        let (namespace, name) = match self {
            Self::DnsService => DNS_SERVICE,
            _ => API_SERVICE,
        };
        ObjectKey::new(namespace, name)
    }
}

/// Asks for a look at these objects, now and whenever one changes.
pub fn feed(
    services: &Cache<Service>,
    slices: &Cache<Slice>,
    endpoints: &Cache<Meta>,
    queue: &Sender<Wanted>,
) {
    let about = |of: [Wanted; 2], key: &ObjectKey, queue: &Sender<Wanted>| {
        for wanted in of {
            if wanted.key() == *key {
                queue.add(wanted);
            }
        }
    };
    let sender = queue.clone();
    services.on_change(move |before, after| {
        if let Some(service) = after.or(before) {
            about([Wanted::ApiService, Wanted::DnsService], &service.meta.key, &sender);
        }
    });
    let sender = queue.clone();
    slices.on_change(move |before, after| {
        if let Some(slice) = after.or(before) {
            about([Wanted::ApiSlice; 2], &slice.meta.key, &sender);
        }
    });
    let sender = queue.clone();
    endpoints.on_change(move |before, after| {
        if let Some(endpoints) = after.or(before) {
            about([Wanted::ApiEndpoints; 2], &endpoints.key, &sender);
        }
    });
    ALL.into_iter().for_each(|wanted| queue.add(wanted));
}

/// Makes one of the objects what it should be.
///
/// # Errors
/// Whatever the cluster answers.
pub async fn reconcile<C: Cluster>(
    cluster: &C,
    config: &Config,
    wanted: Wanted,
) -> Result<Action, ClusterError> {
    let (resource, key) = (wanted.resource(), wanted.key());
    let goal = goal(config, wanted);
    let Some(goal) = goal else {
        // Where the API is cannot be said in this way any more.
        let deleted = cluster.delete(resource, &key, DeleteOptions::default()).await;
        crate::cluster::ignore_not_found(deleted)?;
        return Ok(Action::AwaitChange);
    };
    let written = match cluster.get(resource, &key).await? {
        Some(object) if meta::is_terminating(&object) => return Ok(Action::AwaitChange),
        Some(mut object) => {
            // What cannot be changed is made anew.
            let is_fixed = |pointer: &str| {
                goal.pointer(pointer).is_some_and(|goal| object.pointer(pointer) != Some(goal))
            };
            if is_fixed("/spec/clusterIP") || is_fixed("/addressType") {
                let options = DeleteOptions::of_uid(meta::uid(&object));
                cluster.delete(resource, &key, options).await?;
                cluster.create(resource, &key.namespace, goal).await
            } else if merge(&mut object, &goal) {
                cluster.update(resource, object).await
            } else {
                return Ok(Action::AwaitChange);
            }
        }
        None => cluster.create(resource, &key.namespace, goal).await,
    };
    match written {
        Ok(_) | Err(ClusterError::AlreadyExists(_) | ClusterError::NamespaceTerminating(_)) => {
            Ok(Action::AwaitChange)
        }
        Err(error) => Err(error),
    }
}

/// Sets what `goal` says: whole values but for labels and `spec`, which may hold more.
/// Returns whether that changed something.
fn merge(object: &mut Value, goal: &Value) -> bool {
    let before = object.clone();
    for (field, value) in goal.as_object().into_iter().flatten() {
        match field.as_str() {
            "metadata" => {
                for (label, value) in meta::labels(goal) {
                    let labels = &mut object["metadata"]["labels"];
                    if !labels.is_object() {
                        *labels = json!({});
                    }
                    labels[label] = value.into();
                }
            }
            "spec" => {
                for (field, value) in value.as_object().into_iter().flatten() {
                    object["spec"][field] = value.clone();
                }
                // With one, pods would be behind it.
                if let Some(spec) = object["spec"].as_object_mut() {
                    spec.shift_remove("selector");
                }
            }
            _ => object[field] = value.clone(),
        }
    }
    *object != before
}

/// What an object should be; `None` where it should not be there.
fn goal(config: &Config, wanted: Wanted) -> Option<Value> {
    let key = wanted.key();
    let service = |labels: Value, address: IpAddr, ports: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": key.name, "namespace": key.namespace, "labels": labels},
            "spec": {
                "type": "ClusterIP", "clusterIP": address.to_string(),
                "clusterIPs": [address.to_string()], "ports": ports,
            },
        })
    };
    let port = config.api_port;
    // Behind a name there may be anything, and nobody but this machine reaches loopback.
    let address = config.api_host.parse::<IpAddr>().ok();
    let address = address.filter(|address| network::special(*address).is_empty());
    match wanted {
        Wanted::ApiService => Some(service(
            json!({"component": "apiserver", "provider": "kubernetes"}),
            config.ranges.api_address(),
            json!([{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]),
        )),
        Wanted::DnsService => Some(service(
            json!({
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            }),
            config.ranges.dns_address(),
            json!([
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
            ]),
        )),
        Wanted::ApiSlice => {
            let host = config.api_host.as_str();
            let endpoint =
                |address: &str| json!([{"addresses": [address], "conditions": {"ready": true}}]);
            let (family, endpoints) = match address {
                Some(address) => (network::family(address), endpoint(&address.to_string())),
                None if host.parse::<IpAddr>().is_err() && host.contains('.') => {
                    ("FQDN", endpoint(host))
                }
                None => (config.ranges.addresses().family(), json!([])),
            };
            Some(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": key.name, "namespace": key.namespace,
                    "labels": {(SERVICE_NAME_LABEL): key.name},
                },
                "addressType": family,
                "endpoints": endpoints,
                "ports": [{"name": "https", "protocol": "TCP", "port": port}],
            }))
        }
        Wanted::ApiEndpoints => {
            let address = address?;
            Some(json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {
                    "name": key.name, "namespace": key.namespace,
                    "labels": {(SKIP_MIRROR): "true"},
                },
                "subsets": [{
                    "addresses": [{"ip": address.to_string()}],
                    "ports": [{"name": "https", "protocol": "TCP", "port": port}],
                }],
            }))
        }
    }
}

/// Makes all of them, before anything is served.
///
/// # Errors
/// Whatever the cluster answers.
pub async fn establish<C: Cluster>(cluster: &Arc<C>, config: &Config) -> Result<(), ClusterError> {
    for wanted in ALL {
        reconcile(&**cluster, config, wanted).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeCluster;

    fn config(host: &str) -> Config {
        Config { api_host: host.to_owned(), api_port: 6443, ..Config::default() }
    }

    #[tokio::test]
    async fn both_services_are_made_and_made_right_again() {
        let cluster = Arc::new(FakeCluster::new());
        let config = config("192.168.1.5");
        establish(&cluster, &config).await.unwrap();
        let of = |wanted: Wanted| cluster.object(wanted.resource(), &wanted.key());
        let api = of(Wanted::ApiService).unwrap();
        assert_eq!(api["spec"]["clusterIP"], "10.43.0.1");
        assert_eq!(of(Wanted::DnsService).unwrap()["spec"]["clusterIP"], "10.43.0.10");
        let slice = of(Wanted::ApiSlice).unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.168.1.5"]));
        assert_eq!(slice["ports"][0]["port"], 6443);
        let subsets = &of(Wanted::ApiEndpoints).unwrap()["subsets"];
        assert_eq!(subsets[0]["addresses"][0]["ip"], "192.168.1.5");
        // Nothing is written where nothing differs.
        let before = cluster.revision();
        establish(&cluster, &config).await.unwrap();
        assert_eq!(cluster.revision(), before);
        // Somebody turns it to pods, and somebody removes the other.
        cluster.edit(kinds::services(), &Wanted::ApiService.key(), |service| {
            service["spec"]["selector"] = json!({"app": "fake"});
            service["spec"]["ports"][0]["targetPort"] = 1.into();
        });
        cluster.remove(kinds::services(), &Wanted::DnsService.key());
        establish(&cluster, &config).await.unwrap();
        let api = of(Wanted::ApiService).unwrap();
        assert_eq!(api["spec"]["ports"][0]["targetPort"], 6443);
        assert!(api["spec"].get("selector").is_none());
        assert!(of(Wanted::DnsService).is_some());
    }

    #[tokio::test]
    async fn another_network_or_address_makes_them_anew() {
        let cluster = Arc::new(FakeCluster::new());
        establish(&cluster, &config("192.168.1.5")).await.unwrap();
        let ranges = Ranges::new("10.50.0.0/16".parse().unwrap()).unwrap();
        let moved = Config { ranges, ..config("master.example") };
        establish(&cluster, &moved).await.unwrap();
        let of = |wanted: Wanted| cluster.object(wanted.resource(), &wanted.key());
        assert_eq!(of(Wanted::ApiService).unwrap()["spec"]["clusterIP"], "10.50.0.1");
        let slice = of(Wanted::ApiSlice).unwrap();
        assert_eq!(
            (&slice["addressType"], &slice["endpoints"][0]["addresses"][0]),
            (&json!("FQDN"), &json!("master.example"))
        );
        assert!(of(Wanted::ApiEndpoints).is_none(), "it cannot hold a name");
        establish(&cluster, &config("127.0.0.1")).await.unwrap();
        assert_eq!(of(Wanted::ApiSlice).unwrap()["endpoints"], json!([]));
    }
}
