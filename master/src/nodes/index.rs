//! Which pods are on which node, and what each of them is and names.
//!
//! Fed by watches, in any order and as often as they like. Keeps no object:
//! the generation tells whether a change means anything to the node.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use api::{ObjectKey, Value, meta};
use wire::Uid;
use wire::pod::SourceV1;

/// Where pods are.
#[derive(Debug, Default)]
pub(super) struct Index {
    pods: HashMap<ObjectKey, Pod>,
    nodes: HashMap<String, BTreeMap<ObjectKey, Uid>>,
    /// Mirrors of static pods, by node.
    mirrors: HashMap<String, BTreeSet<ObjectKey>>,
    /// Which pods name a ConfigMap or Secret, by namespace.
    users: HashMap<(String, SourceV1), HashSet<ObjectKey>>,
    /// Which pods name a claim.
    claims: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct Pod {
    node: String,
    uid: Uid,
    generation: u64,
    sources: BTreeSet<SourceV1>,
    claims: Vec<ObjectKey>,
}

impl Index {
    /// Takes a pod as it is now, or `None` once it is gone; `claims` is what its
    /// claims are. Returns the nodes whose set that changes.
    ///
    /// # Errors
    /// Where the pod cannot be lowered; it then counts as gone.
    pub(super) fn pod(
        &mut self,
        key: &ObjectKey,
        object: Option<&Value>,
        claims: &lower::Claims,
    ) -> Result<Vec<String>, lower::LowerError> {
        let node = object.and_then(|object| object["spec"]["nodeName"].as_str()).unwrap_or("");
        let lowered = match object {
            // The node has it from its own folder: it is shown, not sent.
            Some(object) if meta::annotation(object, meta::MIRROR_ANNOTATION).is_some() => Ok(None),
            Some(object) if !node.is_empty() => lower::pod_with(object, claims).map(Some),
            _ => Ok(None),
        };
        let (lowered, problem) = match lowered {
            Ok(lowered) => (lowered, None),
            Err(problem) => (None, Some(problem)),
        };
        let mut changed = Vec::new();
        let same = match (self.pods.get(key), &lowered) {
            (Some(old), Some(new)) => {
                old.node == node && old.uid == new.item.uid && old.generation == new.item.generation
            }
            (None, None) => true,
            _ => false,
        };
        if !same {
            changed.extend(self.remove(key));
            if let Some(new) = lowered {
                let claims = claims.keys().map(|name| ObjectKey::new(&key.namespace, name));
                self.insert(key, node, new, claims.collect());
                changed.push(node.to_owned());
            }
            changed.dedup();
        }
        problem.map_or(Ok(changed), Err)
    }

    /// Takes a pod as it is now; the node whose mirrors are to be looked at for it.
    pub(super) fn mirror(&mut self, key: &ObjectKey, object: Option<&Value>) -> Option<String> {
        let is_mirror =
            |object: &&Value| meta::annotation(object, meta::MIRROR_ANNOTATION).is_some();
        if let Some(object) = object.filter(is_mirror) {
            let node = object["spec"]["nodeName"].as_str().unwrap_or("").to_owned();
            let is_new = self.mirrors.entry(node.clone()).or_default().insert(key.clone());
            return (is_new || meta::is_terminating(object)).then_some(node);
        }
        let node = self.mirrors.iter().find(|(_, mirrors)| mirrors.contains(key))?.0.clone();
        let mirrors = self.mirrors.get_mut(&node)?;
        mirrors.remove(key);
        if mirrors.is_empty() {
            self.mirrors.remove(&node);
        }
        Some(node)
    }

    /// The mirrors of a node.
    pub(super) fn mirrors_of(&self, node: &str) -> Vec<ObjectKey> {
        self.mirrors.get(node).into_iter().flatten().cloned().collect()
    }

    fn insert(
        &mut self,
        key: &ObjectKey,
        node: &str,
        lowered: lower::LoweredPod,
        claims: Vec<ObjectKey>,
    ) {
        for claim in &claims {
            self.claims.entry(claim.clone()).or_default().insert(key.clone());
        }
        for source in &lowered.sources {
            let users = (key.namespace.clone(), source.clone());
            self.users.entry(users).or_default().insert(key.clone());
        }
        self.nodes.entry(node.to_owned()).or_default().insert(key.clone(), lowered.item.uid);
        let pod = Pod {
            node: node.to_owned(),
            uid: lowered.item.uid,
            generation: lowered.item.generation,
            sources: lowered.sources,
            claims,
        };
        self.pods.insert(key.clone(), pod);
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<String> {
        let old = self.pods.remove(key)?;
        for source in old.sources {
            let users = (key.namespace.clone(), source);
            if let Some(pods) = self.users.get_mut(&users) {
                pods.remove(key);
                if pods.is_empty() {
                    self.users.remove(&users);
                }
            }
        }
        for claim in old.claims {
            if let Some(pods) = self.claims.get_mut(&claim) {
                pods.remove(key);
                if pods.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
        if let Some(pods) = self.nodes.get_mut(&old.node) {
            pods.remove(key);
            if pods.is_empty() {
                self.nodes.remove(&old.node);
            }
        }
        Some(old.node)
    }

    /// Nodes with a pod that names this ConfigMap or Secret.
    pub(super) fn users(&self, namespace: &str, source: &SourceV1) -> BTreeSet<String> {
        let users = self.users.get(&(namespace.to_owned(), source.clone()));
        let pods = users.into_iter().flatten().filter_map(|key| self.pods.get(key));
        pods.map(|pod| pod.node.clone()).collect()
    }

    /// The pods on nodes that name this claim.
    pub(super) fn pods_with_claim(&self, claim: &ObjectKey) -> Vec<ObjectKey> {
        self.claims.get(claim).into_iter().flatten().cloned().collect()
    }

    /// The pods of a node.
    pub(super) fn pods_of(&self, node: &str) -> Vec<ObjectKey> {
        self.nodes.get(node).map(|pods| pods.keys().cloned().collect()).unwrap_or_default()
    }

    /// The pod of `node` with this uid.
    pub(super) fn find(&self, node: &str, uid: &Uid) -> Option<&ObjectKey> {
        self.nodes.get(node)?.iter().find(|(_, other)| *other == uid).map(|(key, _)| key)
    }

    /// Every pod, so that those a new list does not name can be removed.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.pods.keys().chain(self.mirrors.values().flatten())
    }
}

/// The name a ConfigMap or Secret goes by on nodes.
pub(super) fn source_of(kind: &str, object_name: &str) -> SourceV1 {
    if kind == "Secret" {
        SourceV1::Secret(object_name.to_owned())
    } else {
        SourceV1::ConfigMap(object_name.to_owned())
    }
}

/// Whether its node knows a pod by the uid.
pub(super) fn has_uid(pod: &Value, uid: &Uid) -> bool {
    lower::uid(meta::uid_on_node(pod)).is_ok_and(|other| other == *uid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, image: &str) -> (ObjectKey, Value) {
        let object = json!({
            "metadata": {
                "name": name, "namespace": "default",
                "uid": "01020304-0506-0708-090a-0b0c0d0e0f10",
            },
            "spec": {
                "nodeName": node,
                "containers": [{
                    "name": "main", "image": image,
                    "envFrom": [{"configMapRef": {"name": "c"}}],
                }],
            },
        });
        (ObjectKey::new("default", name), object)
    }

    #[test]
    fn only_changes_that_a_node_sees_touch_it() {
        let mut index = Index::default();
        let mut apply = |name: &str, node: &str, image: &str| {
            let (key, object) = pod(name, node, image);
            index.pod(&key, Some(&object), &lower::Claims::new()).unwrap()
        };
        assert_eq!(apply("a", "", "x"), Vec::<String>::new());
        assert_eq!(apply("a", "n1", "x"), ["n1"]);
        assert_eq!(apply("a", "n1", "x"), Vec::<String>::new());
        assert_eq!(apply("a", "n1", "y"), ["n1"]);
        assert_eq!(apply("a", "n2", "y"), ["n1", "n2"]);
        let source = source_of("ConfigMap", "c");
        assert_eq!(index.users("default", &source), BTreeSet::from(["n2".to_owned()]));
        let key = ObjectKey::new("default", "a");
        assert_eq!(index.pods_of("n2"), std::slice::from_ref(&key));
        assert_eq!(index.pod(&key, None, &lower::Claims::new()).unwrap(), ["n2"]);
        assert!(index.users("default", &source).is_empty());
        assert!(index.pods_of("n2").is_empty());
    }

    #[test]
    fn a_claim_that_gets_its_volume_changes_its_pods() {
        let mut index = Index::default();
        let (key, mut object) = pod("a", "n1", "x");
        object["spec"]["volumes"] =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        let claim = ObjectKey::new("default", "c");
        let mut take = |claimed: lower::Claimed| {
            let claims = lower::Claims::from([("c".to_owned(), claimed)]);
            let changed = index.pod(&key, Some(&object), &claims).unwrap();
            (changed, index.pods_with_claim(&claim))
        };
        let (n1, pods) = (vec!["n1".to_owned()], vec![key.clone()]);
        let waits = || lower::Claimed::Waits("not bound".to_owned());
        assert_eq!(take(waits()), (n1.clone(), pods.clone()));
        assert_eq!(take(waits()), (Vec::new(), pods.clone()));
        let made = || lower::Claimed::Made { volume: "pvc-1".to_owned() };
        assert_eq!(take(made()), (n1.clone(), pods.clone()));
        // A volume that is lost leaves the pod where it is, waiting for it.
        assert_eq!(take(waits()), (n1.clone(), pods));
        assert_eq!(index.pod(&key, None, &lower::Claims::new()).unwrap(), n1);
        assert!(index.pods_with_claim(&claim).is_empty());
    }

    #[test]
    fn a_pod_that_cannot_be_lowered_is_taken_from_its_node() {
        let mut index = Index::default();
        let (key, mut object) = pod("a", "n1", "x");
        index.pod(&key, Some(&object), &lower::Claims::new()).unwrap();
        object["metadata"]["uid"] = json!("damaged");
        index.pod(&key, Some(&object), &lower::Claims::new()).unwrap_err();
        assert!(index.pods_of("n1").is_empty());
    }
}
