//! Says what is behind each Service: its EndpointSlices, its Endpoints for old
//! clients, and where a load balancer is reached.
//!
//! ```text
//! pods, Services, nodes ─► members ─► desired ─► plan ─► slices, Endpoints, status
//! ```
//!
//! One look at a Service reads its pods once and writes only what differs. A
//! Service without a selector is left alone: what is behind it is somebody
//! else's. The garbage collector removes what a deleted Service leaves.

mod legacy;
mod members;
pub mod slices;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use api::{ObjectKey, Value, meta};
use serde_json::json;

use crate::cache::Cache;
use crate::cluster::{
    Cluster, ClusterError, DeleteOptions, Identity, Part, ignore_not_found, kinds, modify,
    revision_of,
};
use crate::ownership::{add_owner, reference};
use crate::projection::{Balancer, Labels, Meta, Node, Pod, Service, Slice, Term, intern};
use crate::runner::{Action, Sender};
use members::Members;
use slices::{Content, Desired, Nodes, Step};

/// The label of what belongs to a Service without an address.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Where a node is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// A node that is no part of load balancers.
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What the controller looks at.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Every Service.
    pub services: Cache<Service>,
    /// Every EndpointSlice.
    pub slices: Cache<Slice>,
    /// Every Endpoints object.
    pub endpoints: Cache<Meta>,
    /// Every pod.
    pub pods: Cache<Pod>,
    /// Every node.
    pub nodes: Cache<Node>,
}

/// The controller.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    caches: Caches,
    members: Members,
    /// The revision of the last slice written for a Service, by uid.
    written: Mutex<HashMap<Arc<str>, u64>>,
}

/// Asks for a look at the Services that a change is about, and keeps who is
/// behind them.
#[must_use]
pub fn feed(caches: &Caches, queue: &Sender<ObjectKey>) -> Members {
    let members = Members::follow(&caches.services, &caches.pods, queue);
    // What somebody changed or removed is made right again.
    let about = |found: &Meta, queue: &Sender<ObjectKey>| {
        if let Some(owner) = found.controller()
            && &*owner.kind == "Service"
        {
            queue.add(ObjectKey::new(&found.key.namespace, &owner.name));
        }
    };
    let sender = queue.clone();
    caches.slices.on_change(move |before, after| {
        for slice in [before, after].into_iter().flatten() {
            about(&slice.meta, &sender);
        }
    });
    let sender = queue.clone();
    caches.endpoints.on_change(move |before, after| {
        for endpoints in [before, after].into_iter().flatten() {
            about(endpoints, &sender);
        }
    });
    let (sender, services) = (queue.clone(), caches.services.clone());
    caches.nodes.on_change(move |before, after| {
        let zone = |node: Option<&Arc<Node>>| {
            node.and_then(|node| node.meta.label(ZONE_LABEL).map(str::to_owned))
        };
        let moved = zone(before) != zone(after);
        let balanced = |node: Option<&Arc<Node>>| node.map(|node| balancer_addresses(node));
        let reached = balanced(before) != balanced(after);
        if !moved && !reached {
            return;
        }
        for service in services.all() {
            let is_about = match service.balancer {
                Balancer::EveryNode | Balancer::OwnNodes => true,
                Balancer::None | Balancer::Others => moved && service.selector.is_some(),
            };
            if is_about {
                sender.add(service.meta.key.clone());
            }
        }
    });
    members
}

/// Where a load balancer reaches a node; nothing where it should not.
fn balancer_addresses(node: &Node) -> Vec<IpAddr> {
    let is_out = node.meta.is_deleting()
        || &*node.ready != "True"
        || node.meta.label(EXCLUDE_LABEL).is_some();
    if is_out { Vec::new() } else { node.reached_at.to_vec() }
}

struct Known<'a>(&'a Cache<Node>);

impl Nodes for Known<'_> {
    fn zone(&self, node: &str) -> Option<Arc<str>> {
        let node = self.0.get(&ObjectKey::new("", node))?;
        node.meta.label(ZONE_LABEL).filter(|zone| !zone.is_empty()).map(intern)
    }

    fn addresses(&self, node: &str) -> Vec<IpAddr> {
        let node = self.0.get(&ObjectKey::new("", node));
        node.map(|node| node.internal.to_vec()).unwrap_or_default()
    }
}

impl<C: Cluster> Controller<C> {
    /// A controller over these projections; `members` is what [`feed`] returned.
    #[must_use]
    pub fn new(cluster: Arc<C>, caches: Caches, members: Members) -> Self {
        Self { cluster, caches, members, written: Mutex::default() }
    }

    /// Makes what one Service shows of its pods what it should be.
    ///
    /// # Errors
    /// Whatever the cluster answers.
    pub async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ClusterError> {
        let Some(service) = self.caches.services.get(key) else { return Ok(Action::AwaitChange) };
        if service.meta.is_deleting() {
            return Ok(Action::AwaitChange);
        }
        let last = self.last_written(&service.meta.uid);
        self.caches.slices.reached(last).await?;
        let existing = self.caches.slices.find(&Term::Owner(Arc::clone(&service.meta.uid)));
        let pods = self.members.of(key);
        let desired = slices::desired(&service, &pods, &Known(&self.caches.nodes));
        if service.selector.is_some() {
            let labels = slices::labels(&service);
            let any = intern("IPv4");
            let family = service.families.first().unwrap_or(&any);
            for step in slices::plan(desired.clone(), &labels, family, &existing) {
                self.write(&service, &labels, step).await?;
            }
            self.write_endpoints(&service, &desired).await?;
        } else {
            // It had a selector before: what was behind it is so no longer.
            for slice in existing {
                self.write(&service, &slice.meta.labels, Step::Delete(Arc::clone(&slice))).await?;
            }
        }
        self.write_status(&service, &desired).await?;
        self.forget_gone();
        Ok(Action::AwaitChange)
    }

    async fn write(
        &self,
        service: &Service,
        labels: &Labels,
        step: Step,
    ) -> Result<(), ClusterError> {
        let namespace = &service.meta.key.namespace;
        let kind = kinds::endpoint_slices();
        let revision = match step {
            Step::Create(content) => {
                let slice = new_slice(service, labels, &content);
                match self.cluster.create(kind, namespace, slice).await {
                    Ok(created) => revision_of(&created),
                    // Everything in the namespace goes.
                    Err(ClusterError::NamespaceTerminating(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            Step::Update(slice, content) => {
                let (endpoints, ports) = slices::render(namespace, &content);
                let change = |object: &mut Value| {
                    object["endpoints"] = endpoints;
                    object["ports"] = ports;
                    meta::metadata_mut(object).insert("labels".to_owned(), label_map(labels));
                    true
                };
                let identity =
                    Identity { uid: &slice.meta.uid, revision: Some(slice.meta.revision) };
                let key = &slice.meta.key;
                let written = modify(&*self.cluster, kind, key, identity, Part::Main, change).await;
                match written {
                    Ok(written) => written.as_ref().map(revision_of).unwrap_or_default(),
                    // Somebody removed it: the watch tells, and it is made anew.
                    Err(error) if error.is_not_found() => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            Step::Delete(slice) => {
                let options = DeleteOptions {
                    revision: Some(slice.meta.revision),
                    ..DeleteOptions::of_uid(&slice.meta.uid)
                };
                return ignore_not_found(self.cluster.delete(kind, &slice.meta.key, options).await);
            }
        };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let last = written.entry(Arc::clone(&service.meta.uid)).or_default();
        *last = revision.max(*last);
        Ok(())
    }

    async fn write_endpoints(
        &self,
        service: &Service,
        desired: &Desired,
    ) -> Result<(), ClusterError> {
        let kind = kinds::endpoints();
        let key = &service.meta.key;
        let (subsets, truncated) = legacy::subsets(service, desired);
        let mut labels: Vec<(Arc<str>, Arc<str>)> = service
            .meta
            .labels
            .iter()
            .filter(|(label, _)| !matches!(&**label, HEADLESS_LABEL | legacy::MANAGED_BY))
            .cloned()
            .collect();
        labels.push((intern(legacy::MANAGED_BY), intern(legacy::MANAGER)));
        if service.headless {
            labels.push((intern(HEADLESS_LABEL), intern("")));
        }
        let labels = label_map(&labels);
        let none = json!([]);
        let written = match self.cluster.get(kind, key).await? {
            Some(object) if meta::is_terminating(&object) => return Ok(()),
            Some(mut object) => {
                let over = meta::annotation(&object, legacy::OVER_CAPACITY).is_some();
                let before = object.get("subsets").unwrap_or(&none);
                let same_labels = object["metadata"].get("labels") == Some(&labels);
                if *before == subsets && over == truncated && same_labels {
                    return Ok(());
                }
                object["subsets"] = subsets;
                add_owner(&mut object, &reference(kinds::services(), &service.meta));
                let metadata = meta::metadata_mut(&mut object);
                metadata.insert("labels".to_owned(), labels);
                if truncated {
                    meta::set_annotation(&mut object, legacy::OVER_CAPACITY, "truncated");
                } else if let Some(annotations) =
                    metadata.get_mut("annotations").and_then(Value::as_object_mut)
                {
                    annotations.shift_remove(legacy::OVER_CAPACITY);
                }
                self.cluster.update(kind, object).await
            }
            None => {
                let mut object = json!({
                    "apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {
                        "name": key.name, "namespace": key.namespace, "labels": labels,
                        "ownerReferences": [reference(kinds::services(), &service.meta)],
                    },
                    "subsets": subsets,
                });
                if truncated {
                    meta::set_annotation(&mut object, legacy::OVER_CAPACITY, "truncated");
                }
                self.cluster.create(kind, &key.namespace, object).await
            }
        };
        match written {
            Ok(_) | Err(ClusterError::NamespaceTerminating(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where a load balancer is reached: at the nodes.
    async fn write_status(&self, service: &Service, desired: &Desired) -> Result<(), ClusterError> {
        let addresses = match service.balancer {
            Balancer::Others => return Ok(()),
            Balancer::None => BTreeSet::new(),
            Balancer::EveryNode => self.node_addresses(service, None),
            Balancer::OwnNodes => {
                let own: HashSet<Arc<str>> = desired
                    .values()
                    .flatten()
                    .filter(|endpoint| endpoint.ready)
                    .filter_map(|endpoint| endpoint.node.clone())
                    .collect();
                // Who is behind a Service without a selector is not known here.
                let own = service.selector.is_some().then_some(own);
                self.node_addresses(service, own.as_ref())
            }
        };
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        if service.ingress.iter().map(|ip| &**ip).eq(texts.iter().map(String::as_str)) {
            return Ok(());
        }
        let ingress: Vec<Value> =
            texts.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let balancer = if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
        let change = |object: &mut Value| {
            let same = object.pointer("/status/loadBalancer") == Some(&balancer);
            object["status"]["loadBalancer"] = balancer;
            !same
        };
        let identity = Identity { uid: &service.meta.uid, revision: None };
        let key = &service.meta.key;
        let written =
            modify(&*self.cluster, kinds::services(), key, identity, Part::Status, change).await;
        ignore_not_found(written.map(|_| ()))
    }

    /// Addresses of the nodes that a load balancer may use; of these only, where
    /// some are named.
    fn node_addresses(
        &self,
        service: &Service,
        only: Option<&HashSet<Arc<str>>>,
    ) -> BTreeSet<IpAddr> {
        let nodes = self.caches.nodes.all();
        let some = nodes
            .iter()
            .filter(|node| only.is_none_or(|only| only.contains(node.meta.key.name.as_str())));
        let of_family = |address: &IpAddr| {
            service.families.iter().any(|family| **family == *api::network::family(*address))
        };
        some.flat_map(|node| balancer_addresses(node)).filter(of_family).collect()
    }

    fn last_written(&self, uid: &Arc<str>) -> u64 {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(uid).copied().unwrap_or_default()
    }

    fn forget_gone(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.len() > 2 * self.caches.services.n_objects() + 64 {
            let known: HashSet<Arc<str>> =
                self.caches.services.all().iter().map(|s| Arc::clone(&s.meta.uid)).collect();
            written.retain(|uid, _| known.contains(uid));
        }
    }
}

fn new_slice(service: &Service, labels: &Labels, content: &Content) -> Value {
    let key = &service.meta.key;
    let (endpoints, ports) = slices::render(&key.namespace, content);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{}-", key.name), "namespace": key.namespace,
            "labels": label_map(labels),
            "ownerReferences": [reference(kinds::services(), &service.meta)],
        },
        "addressType": &*content.family,
        "endpoints": endpoints,
        "ports": ports,
    })
}

fn label_map(labels: &[(Arc<str>, Arc<str>)]) -> Value {
    labels.iter().map(|(key, value)| ((**key).to_owned(), Value::from(&**value))).collect()
}
