//! What every node is told of the cluster's network, kept lowered: Services,
//! where they lead, the nodes themselves, and the policies.
//!
//! One object changes, the whole list is handed to `dispatch`, which finds what is
//! new in it and sends each node that alone. Changes that come close together
//! are handed over together: the first at once, the others after [`PACE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use api::{ObjectKey, Value, meta};
use dispatch::desired::SetError;
use lower::network::{PolicyPod, Population};
use tokio::time::Instant;
use tracing::warn;
use wire::network::ClusterV1;
use wire::set::ItemV1;

use super::Nodes;

/// Least time between two lists.
const PACE: Duration = Duration::from_millis(100);

/// The ranges and names of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) service_cidrs: Vec<String>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) domain: String,
}

impl Cluster {
    /// As one node has them, which gives these ranges to its pods.
    pub(super) fn for_node(&self, pod_cidrs: &[String], labels: &Value) -> ClusterV1 {
        ClusterV1 {
            pod_cidrs: self.pod_cidrs.clone(),
            service_cidrs: self.service_cidrs.clone(),
            dns: self.dns.clone(),
            domain: self.domain.clone(),
            more_pod_cidrs: pod_cidrs.iter().skip(1).cloned().collect(),
            zone: labels["topology.kubernetes.io/zone"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

/// What every node is told.
#[derive(Debug, Default)]
pub(super) struct Network {
    services: BTreeMap<ObjectKey, ItemV1>,
    slices: BTreeMap<ObjectKey, ItemV1>,
    peers: BTreeMap<String, ItemV1>,
    /// Kept as objects: what they mean changes with the pods.
    policies: BTreeMap<ObjectKey, Value>,
    namespaces: BTreeMap<String, Vec<(String, String)>>,
    /// Pods as policies see them; only while there are policies.
    pods: BTreeMap<ObjectKey, PolicyPod>,
    is_dirty: bool,
    last: Option<Instant>,
}

impl Network {
    /// When the list is to be made again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.is_dirty.then(|| self.last.map_or_else(Instant::now, |last| last + PACE))
    }

    pub(super) fn service(&mut self, key: ObjectKey, object: Option<&Value>) {
        let item = object.and_then(|object| lowered(&key, lower::network::service(object)));
        self.is_dirty |= put(&mut self.services, key, item);
    }

    pub(super) fn slice(&mut self, key: ObjectKey, object: Option<&Value>) {
        let item = object.and_then(|object| lowered(&key, lower::network::endpoints(object)));
        self.is_dirty |= put(&mut self.slices, key, item.flatten());
    }

    pub(super) fn peer(&mut self, name: &str, object: Option<&Value>) {
        let key = ObjectKey::new("", name);
        let item = object.and_then(|object| lowered(&key, lower::network::peer(object)));
        self.is_dirty |= put(&mut self.peers, name.to_owned(), item.flatten());
    }

    pub(super) fn namespace(&mut self, name: &str, object: Option<&Value>) {
        let labels = object.map(|object| {
            let pairs = object["metadata"]["labels"].as_object().into_iter().flatten();
            pairs
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect()
        });
        let changed = put(&mut self.namespaces, name.to_owned(), labels);
        self.is_dirty |= changed && !self.policies.is_empty();
    }

    /// A pod as policies see it. Says nothing while there are none.
    pub(super) fn pod(&mut self, key: &ObjectKey, object: Option<&Value>) {
        if !self.policies.is_empty() {
            let pod = object.and_then(lower::network::policy_pod);
            self.is_dirty |= put(&mut self.pods, key.clone(), pod);
        }
    }

    /// Takes a policy; true where it is the first: all pods are to be told then.
    pub(super) fn policy(&mut self, key: ObjectKey, object: Option<Value>) -> bool {
        let was_empty = self.policies.is_empty();
        // Managed fields and the like mean nothing to nodes.
        let object = object.map(|object| {
            serde_json::json!({
                "metadata": {
                    "name": meta::name(&object),
                    "namespace": meta::namespace(&object),
                    "uid": meta::uid(&object),
                },
                "spec": object["spec"],
            })
        });
        self.is_dirty |= put(&mut self.policies, key, object);
        if self.policies.is_empty() {
            self.pods.clear();
        }
        was_empty && !self.policies.is_empty()
    }

    /// What a complete list of a kind does not name is gone.
    pub(super) fn listed(&mut self, kind: &str, named: &BTreeSet<ObjectKey>) {
        fn keep<V>(map: &mut BTreeMap<ObjectKey, V>, named: &BTreeSet<ObjectKey>) -> bool {
            let before = map.len();
            map.retain(|key, _| named.contains(key));
            map.len() != before
        }
        self.is_dirty |= match kind {
            "Service" => keep(&mut self.services, named),
            "EndpointSlice" => keep(&mut self.slices, named),
            "NetworkPolicy" => keep(&mut self.policies, named),
            _ => false,
        };
    }

    fn items(&self) -> Vec<ItemV1> {
        let maps = [&self.services, &self.slices];
        let mut items: Vec<ItemV1> = maps
            .into_iter()
            .flat_map(BTreeMap::values)
            .chain(self.peers.values())
            .cloned()
            .collect();
        let pods: Vec<&PolicyPod> = self.pods.values().collect();
        let population = Population { namespaces: &self.namespaces, pods: &pods };
        items.extend(
            self.policies.iter().filter_map(|(key, policy)| {
                lowered(key, lower::network::policy(policy, population))
            }),
        );
        items
    }
}

/// Puts or removes; whether that changed anything.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}

fn lowered<T>(key: &ObjectKey, item: Result<T, lower::LowerError>) -> Option<T> {
    item.inspect_err(|err| warn!(%key, %err, "nodes are not told of it")).ok()
}

impl Nodes {
    /// A policy changed. With the first one, all pods matter.
    pub(super) fn policy_changed(&mut self, key: ObjectKey, object: Option<Value>) {
        if self.network.policy(key, object) {
            let pods: Vec<ObjectKey> = self.index.keys().cloned().collect();
            for key in pods {
                let object = self.read("Pod", &key);
                self.network.pod(&key, object.as_ref());
            }
        }
    }

    /// Hands the list to every node's set, where it changed and its time has come.
    pub(super) fn lower_network(&mut self) {
        let is_due = self.network.due().is_some_and(|due| due <= Instant::now());
        if !is_due || !self.unlisted.is_empty() {
            return;
        }
        self.network.is_dirty = false;
        self.network.last = Some(Instant::now());
        // What changes after this comes as a change of its own.
        let revision = self.setup.api.store().revision();
        match self.dispatcher.set_common(&self.network.items(), revision) {
            Ok(_) => (),
            Err(SetError::SameRevision(_)) => {
                self.network.is_dirty = true;
                self.nudge();
            }
            Err(err) => warn!(%err, "nodes are not told of a change of the network"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn object(name: &str, spec: Value) -> Value {
        let uid = format!("01020304-0506-0708-090a-{:012x}", name.len());
        json!({"metadata": {"name": name, "namespace": "default", "uid": uid}, "spec": spec})
    }

    #[test]
    fn only_what_nodes_are_told_makes_a_new_list() {
        let mut network = Network::default();
        assert!(network.due().is_none());
        let mut service = object("web", json!({"clusterIP": "10.43.0.7"}));
        network.service(key("web"), Some(&service));
        assert!(std::mem::take(&mut network.is_dirty));
        service["metadata"]["annotations"] = json!({"note": "new"});
        network.service(key("web"), Some(&service));
        assert!(!network.is_dirty, "an annotation");
        network.namespace("default", Some(&json!({"metadata": {"labels": {"a": "b"}}})));
        network.pod(&key("pod"), Some(&object("pod", json!({}))));
        assert!(!network.is_dirty, "without policies");
        network.listed("Service", &BTreeSet::new());
        assert!(network.is_dirty && network.items().is_empty());
    }

    #[test]
    fn pods_are_kept_only_while_there_are_policies() {
        let mut network = Network::default();
        let policy = object("deny", json!({"podSelector": {}}));
        assert!(network.policy(key("deny"), Some(policy.clone())), "the first");
        assert!(!network.policy(key("other"), Some(policy)), "the second");
        let mut pod = object("pod", json!({}));
        pod["status"] = json!({"podIP": "10.42.0.2"});
        network.pod(&key("pod"), Some(&pod));
        assert_eq!(network.pods.len(), 1);
        network.policy(key("deny"), None);
        assert_eq!(network.pods.len(), 1);
        network.policy(key("other"), None);
        assert!(network.pods.is_empty());
    }
}
