//! Small typed projections of objects: what controllers and the scheduler act
//! on, and nothing else, so that 10,000 pods fit in a few megabytes.
//!
//! A projection is read from the JSON once, through `api::view`, and never
//! written back: writers change the JSON. Texts that many objects share (names
//! of nodes and namespaces, labels, images, whole demands) are kept once, see
//! [`intern`].

mod intern;
mod node;
mod pod;
mod service;
mod storage;
mod workload;

use std::sync::Arc;

use api::time::Timestamp;
use api::{ObjectKey, Value, meta};

pub use intern::{intern, intern_demand};
pub use node::{Node, labels};
pub use pod::{Phase, Pod, RUNTIME_CLASS_OCI, RUNTIME_CLASS_WASM, Runtime};
pub use service::{
    Balancer, Endpoint, EndpointPort, NamedPort, Reach, SLICE_MANAGER, Service, ServicePort, Slice,
    Target,
};
pub use storage::{Claim, Class, Holder, Volume};
pub(crate) use workload::own_annotation;
pub use workload::{Deployment, ReplicaSet, annotations, digest, template_digest};

/// A projection of one resource's objects.
pub trait Projection: Send + Sync + Sized + 'static {
    /// Reads it from an object. What is absent reads as empty.
    fn project(object: &Value) -> Self;
    /// The part every object has.
    fn meta(&self) -> &Meta;
    /// Under which terms [`crate::cache::Cache`] finds it, beside its key.
    fn terms(&self, each: &mut dyn FnMut(Term));
}

/// What a cache can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// Pods on a node.
    Node(Arc<str>),
    /// Objects with this owner, by uid.
    Owner(Arc<str>),
    /// Objects of a namespace that no controller owns.
    Orphan(Arc<str>),
    /// Pods that use an image.
    Image(Arc<str>),
    /// Pods that use a claim, and the volume that names it.
    Claim(ObjectKey),
    /// Services of a namespace whose pods all have this label with this value.
    Selects(Arc<str>, Arc<str>, Arc<str>),
}

/// Labels, sorted by key.
pub type Labels = Box<[(Arc<str>, Arc<str>)]>;

/// The metadata that controllers act on.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Identity.
    pub uid: Arc<str>,
    /// `resourceVersion`.
    pub revision: u64,
    /// `generation`.
    pub generation: i64,
    /// Labels, sorted by key.
    pub labels: Labels,
    /// `ownerReferences`.
    pub owners: Box<[Owner]>,
    /// `finalizers`.
    pub finalizers: Box<[Arc<str>]>,
    /// When it was created.
    pub created: Timestamp,
    /// When it is to be gone; `None` while it is not being deleted.
    pub deletion: Option<Timestamp>,
}

/// One of `ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `apps/v1`.
    pub api_version: Arc<str>,
    /// `ReplicaSet`.
    pub kind: Arc<str>,
    /// Name of the owner.
    pub name: Arc<str>,
    /// Identity of the owner.
    pub uid: Arc<str>,
    /// Whether it is the one that manages the object.
    pub controller: bool,
    /// Whether the owner waits for this object when it is deleted in the foreground.
    pub blocks: bool,
}

impl Meta {
    /// Reads the metadata of an object.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let mut labels: Vec<(Arc<str>, Arc<str>)> =
            meta::labels(object).map(|(key, value)| (intern(key), intern(value))).collect();
        labels.sort();
        let owners = meta::owner_references(object).into_iter().map(|owner| Owner {
            api_version: intern(&owner.api_version),
            kind: intern(&owner.kind),
            name: intern(&owner.name),
            uid: intern(&owner.uid),
            controller: owner.controller,
            blocks: owner.block_owner_deletion,
        });
        Self {
            key: meta::object_key(object),
            uid: intern(meta::uid(object)),
            revision: crate::cluster::revision_of(object),
            generation: meta::generation(object),
            labels: labels.into(),
            owners: owners.collect(),
            finalizers: meta::finalizers(object).into_iter().map(intern).collect(),
            created: api::time::parse(meta::creation_timestamp(object)).unwrap_or_default(),
            deletion: meta::deletion_timestamp(object)
                .map(|text| api::time::parse(text).unwrap_or_default()),
        }
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.deletion.is_some()
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// Whether a selector holds for its labels.
    #[must_use]
    pub fn selected_by(&self, selector: &api::selector::LabelSelector) -> bool {
        selector.matches_with(|key| self.label(key))
    }

    /// The owner that manages it.
    #[must_use]
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|owner| owner.controller)
    }

    /// The terms of every object: its owners, or that it has no controller.
    pub fn terms(&self, each: &mut dyn FnMut(Term)) {
        for owner in &self.owners {
            each(Term::Owner(Arc::clone(&owner.uid)));
        }
        if self.controller().is_none() {
            each(Term::Orphan(intern(&self.key.namespace)));
        }
    }
}

/// Metadata alone, for resources that nobody looks into.
impl Projection for Meta {
    fn project(object: &Value) -> Self {
        Self::of(object)
    }

    fn meta(&self) -> &Meta {
        self
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.terms(each);
    }
}

/// A Namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Metadata.
    pub meta: Meta,
    /// Whether `spec.finalizers` still names something.
    pub has_finalizers: bool,
}

impl Projection for Namespace {
    fn project(object: &Value) -> Self {
        let finalizers = object.pointer("/spec/finalizers").and_then(Value::as_array);
        Self {
            meta: Meta::of(object),
            has_finalizers: finalizers.is_some_and(|list| !list.is_empty()),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, _: &mut dyn FnMut(Term)) {}
}

/// Reads a time that an object carries.
fn time(text: Option<&str>) -> Option<Timestamp> {
    api::time::parse(text?)
}
