//! The projections of PersistentVolumes, their claims and their classes.

use std::sync::Arc;

use api::selector::LabelSelector;
use api::time::Timestamp;
use api::view::{self, PersistentVolumeClaimView, PersistentVolumeView, StorageClassView};
use api::{ObjectKey, Value, meta, storage};
use scheduler::Affinity;

use super::pod::node_terms;
use super::{Meta, Projection, Term, intern};

/// A PersistentVolume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Metadata.
    pub meta: Meta,
    /// Bytes it holds.
    pub bytes: i64,
    /// The same as written.
    pub capacity: Arc<str>,
    /// How it may be mounted.
    pub modes: Vec<Arc<str>>,
    /// Its class; empty for none.
    pub class: Arc<str>,
    /// The claim it is, or is to be, bound to.
    pub claim: Option<Holder>,
    /// Whether a controller chose that claim, not a user.
    pub by_controller: bool,
    /// `status.phase`.
    pub phase: Arc<str>,
    /// Where it can be reached from.
    pub affinity: Affinity,
    /// Whether it goes with its claim.
    pub is_deleted_with_claim: bool,
    /// Whether the provisioner made it, as a folder of a node.
    pub is_local_path: bool,
}

/// The claim of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Identity; empty for whichever has that name.
    pub uid: Arc<str>,
}

impl Holder {
    /// Whether it means this claim.
    #[must_use]
    pub fn is(&self, claim: &Claim) -> bool {
        self.key == claim.meta.key && (self.uid.is_empty() || self.uid == claim.meta.uid)
    }
}

impl Volume {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.meta.key.name
    }
}

impl Projection for Volume {
    fn project(object: &Value) -> Self {
        let read: PersistentVolumeView = view::read(object).unwrap_or_default();
        let spec = &read.spec;
        let capacity = spec.capacity.get("storage").copied().unwrap_or_default();
        let claim = spec.claim_ref.as_ref().map(|claim| Holder {
            key: ObjectKey::new(&claim.namespace, &claim.name),
            uid: intern(&claim.uid),
        });
        let terms =
            spec.node_affinity.as_ref().and_then(|all| all.pointer("/required/nodeSelectorTerms"));
        Self {
            meta: Meta::of(object),
            bytes: capacity.units(),
            capacity: capacity.to_string().into(),
            modes: spec.access_modes.iter().map(|mode| intern(mode)).collect(),
            class: intern(storage::class_of(object).unwrap_or_default()),
            claim,
            by_controller: meta::annotation(object, storage::BOUND_BY_CONTROLLER).is_some(),
            phase: intern(&read.status.phase),
            affinity: node_terms(terms),
            is_deleted_with_claim: spec.persistent_volume_reclaim_policy == "Delete",
            is_local_path: storage::is_local_path(object),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
        if let Some(claim) = &self.claim {
            each(Term::Claim(claim.key.clone()));
        }
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Metadata.
    pub meta: Meta,
    /// Bytes it asks for.
    pub bytes: i64,
    /// The same as written.
    pub requested: Arc<str>,
    /// How it wants to be mounted.
    pub modes: Vec<Arc<str>>,
    /// Its class; `None` where it names none, empty where it wants none.
    pub class: Option<Arc<str>>,
    /// The volume it is, or is to be, bound to; empty for any.
    pub volume: Arc<str>,
    /// Which volumes may be taken.
    pub selector: Option<LabelSelector>,
    /// Whether both sides of the binding have been written.
    pub is_bound: bool,
    /// Whether a controller chose the volume, not a user.
    pub by_controller: bool,
    /// The node that was chosen for its first pod.
    pub selected_node: Option<Arc<str>>,
    /// Who is to make its volume.
    pub provisioner: Option<Arc<str>>,
    /// `status.phase`.
    pub phase: Arc<str>,
    /// What it has, as `status.capacity` says.
    pub has: Arc<str>,
    /// How it may be mounted, as `status.accessModes` says.
    pub has_modes: Vec<Arc<str>>,
}

impl Claim {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.meta.key.name
    }

    /// Whether one pod alone may use it.
    #[must_use]
    pub fn is_for_one_pod(&self) -> bool {
        self.modes.iter().any(|mode| &**mode == storage::ONE_POD)
    }
}

impl Projection for Claim {
    fn project(object: &Value) -> Self {
        let read: PersistentVolumeClaimView = view::read(object).unwrap_or_default();
        let (spec, status) = (&read.spec, &read.status);
        let requested = spec.resources.requests.get("storage").copied().unwrap_or_default();
        let annotation = |key: &str| meta::annotation(object, key).filter(|text| !text.is_empty());
        let texts = |list: &[String]| list.iter().map(|text| intern(text)).collect();
        Self {
            meta: Meta::of(object),
            bytes: requested.units(),
            requested: requested.to_string().into(),
            modes: texts(&spec.access_modes),
            class: storage::class_of(object).map(intern),
            volume: intern(&spec.volume_name),
            selector: spec.selector.as_ref().map(|selector| {
                LabelSelector::from_object(selector).unwrap_or_else(|_| LabelSelector::nothing())
            }),
            is_bound: annotation(storage::BIND_COMPLETED).is_some(),
            by_controller: annotation(storage::BOUND_BY_CONTROLLER).is_some(),
            selected_node: annotation(storage::SELECTED_NODE).map(intern),
            provisioner: annotation(storage::PROVISIONER).map(intern),
            phase: intern(&status.phase),
            has: status
                .capacity
                .get("storage")
                .map_or_else(|| intern(""), |amount| amount.to_string().into()),
            has_modes: texts(&status.access_modes),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
    }
}

/// A StorageClass.
#[derive(Clone, Debug)]
pub struct Class {
    /// Metadata.
    pub meta: Meta,
    /// Who makes its volumes.
    pub provisioner: Arc<str>,
    /// Whether its volumes go with their claims.
    pub is_deleted_with_claim: bool,
    /// Whether a claim waits for its first pod.
    pub waits: bool,
    /// Where its volumes may be.
    pub topologies: Affinity,
    /// Whether claims without a class get it.
    pub is_default: bool,
    /// When it was made: of several default ones the newest counts.
    pub created: Timestamp,
}

impl Projection for Class {
    fn project(object: &Value) -> Self {
        let read: StorageClassView = view::read(object).unwrap_or_default();
        let own = Meta::of(object);
        Self {
            provisioner: intern(&read.provisioner),
            is_deleted_with_claim: read.reclaim_policy != "Retain",
            waits: read.volume_binding_mode == "WaitForFirstConsumer",
            topologies: topologies(&read.allowed_topologies),
            is_default: storage::is_default_class(object),
            created: own.created,
            meta: own,
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
    }
}

/// `allowedTopologies` as the terms of a node selector.
fn topologies(all: &[Value]) -> Affinity {
    let term = |term: &Value| {
        let wanted = term.get("matchLabelExpressions").and_then(Value::as_array);
        let expressions: Vec<Value> = wanted
            .into_iter()
            .flatten()
            .map(|one| {
                serde_json::json!({"key": one["key"], "operator": "In", "values": one["values"]})
            })
            .collect();
        serde_json::json!({ "matchExpressions": expressions })
    };
    node_terms(Some(&all.iter().map(term).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_says_where_it_is_and_whose() {
        let volume = Volume::project(&json!({
            "metadata": {"name": "pv", "uid": "1", "annotations": {storage::BOUND_BY_CONTROLLER: "yes"}},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "disk", "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {"namespace": "ns", "name": "c", "uid": "9"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["pi"]}]}]}}},
            "status": {"phase": "Bound"},
        }));
        assert_eq!((volume.bytes, &*volume.capacity, &*volume.class), (1 << 30, "1Gi", "disk"));
        assert!(volume.by_controller && volume.is_deleted_with_claim && !volume.is_local_path);
        assert_eq!(volume.claim.as_ref().unwrap().key, ObjectKey::new("ns", "c"));
        let node = |host: &str| scheduler::Node {
            labels: vec![("kubernetes.io/hostname".into(), host.into())],
            ..scheduler::Node::default()
        };
        assert!(node("pi").meets(&volume.affinity) && !node("other").meets(&volume.affinity));
    }

    #[test]
    fn a_class_may_be_bound_to_places() {
        let class = Class::project(&json!({
            "metadata": {"name": "c"}, "provisioner": "x", "volumeBindingMode": "WaitForFirstConsumer",
            "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}]}],
        }));
        let node = |zone: &str| scheduler::Node {
            labels: vec![("zone".into(), zone.into())],
            ..scheduler::Node::default()
        };
        assert!(class.waits && class.is_deleted_with_claim);
        assert!(node("b").meets(&class.topologies) && !node("c").meets(&class.topologies));
        assert!(Class::project(&json!({})).topologies.is_empty());
    }
}
