//! What controllers need of the cluster: reads, writes that name the version
//! they were planned from, and watches.
//!
//! The master implements [`Cluster`] over the in-process API server, so that a
//! controller passes the same validation and authorisation as any client;
//! [`crate::fake`] implements it in memory for tests. This module knows nothing
//! of HTTP and nothing of the store.

use std::fmt;

use api::resource::Resource;
use api::{ObjectKey, Value, meta};
use futures::stream::BoxStream;

/// A resource of the API's table.
pub type Kind = &'static Resource;

/// The cluster, as a controller sees it.
pub trait Cluster: Send + Sync + 'static {
    /// Reads one object; `None` where there is none.
    fn get(
        &self,
        resource: Kind,
        key: &ObjectKey,
    ) -> impl Future<Output = Result<Option<Value>, ClusterError>> + Send;

    /// Shows `each` every object, one at a time so that a large list is never
    /// held whole, and returns the revision they were read at.
    fn list(
        &self,
        resource: Kind,
        namespace: Option<&str>,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> impl Future<Output = Result<u64, ClusterError>> + Send;

    /// Creates an object and returns it as stored. `metadata.generateName` is honoured.
    fn create(
        &self,
        resource: Kind,
        namespace: &str,
        object: Value,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Replaces an object, but for its status. With `metadata.resourceVersion`
    /// only that version; else [`ClusterError::Conflict`].
    fn update(
        &self,
        resource: Kind,
        object: Value,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Replaces an object's status, and nothing else.
    fn update_status(
        &self,
        resource: Kind,
        object: Value,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Replaces a Namespace's `spec.finalizers` (`PUT …/finalize`); the last one
    /// removed from a terminating namespace removes the namespace.
    fn finalize_namespace(
        &self,
        object: Value,
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Deletes an object, or asks for it where it has a grace period or finalizers.
    fn delete(
        &self,
        resource: Kind,
        key: &ObjectKey,
        options: DeleteOptions,
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Binds a pod to a node (`POST …/binding`). [`ClusterError::Conflict`] where
    /// the pod is another one by now, is being deleted, or has a node already.
    fn bind(
        &self,
        pod: &ObjectKey,
        uid: &str,
        node: &str,
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Every change after the revision `from`, in order. [`ClusterError::Expired`],
    /// at once or in the stream, where it is no longer known what changed.
    fn watch(
        &self,
        resource: Kind,
        from: u64,
    ) -> impl Future<Output = Result<ChangeStream, ClusterError>> + Send;
}

/// A watch. Ends when the cluster ends it; the caller then lists again.
pub type ChangeStream = BoxStream<'static, Result<WatchItem, ClusterError>>;

/// One item of a watch.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// An object changed.
    Change(Change),
    /// Nothing of the resource changed up to this revision (a bookmark).
    Progress(u64),
}

/// What an object is after a change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision of the change.
    pub revision: u64,
    /// Which object.
    pub key: ObjectKey,
    /// The object, or `None` once it is deleted.
    pub object: Option<Value>,
}

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The garbage collector deletes them afterwards.
    Background,
    /// The garbage collector deletes them first.
    Foreground,
    /// They stay, without this owner.
    Orphan,
}

impl Propagation {
    /// As `propagationPolicy` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// How an object is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Only the object with this uid; [`ClusterError::Conflict`] for another.
    pub uid: Option<String>,
    /// Only this `resourceVersion`; [`ClusterError::Conflict`] for another.
    pub revision: Option<u64>,
    /// Seconds a pod gets to stop; `None` for its own.
    pub grace_seconds: Option<u32>,
    /// What becomes of the dependents; `None` for the resource's default.
    pub propagation: Option<Propagation>,
}

impl DeleteOptions {
    /// Only the object with this uid.
    #[must_use]
    pub fn of_uid(uid: &str) -> Self {
        Self { uid: Some(uid.to_owned()), ..Self::default() }
    }
}

/// An object, for people: `pods default/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The resource's plural.
    pub resource: &'static str,
    /// Which one.
    pub key: ObjectKey,
}

impl Named {
    /// Names an object.
    #[must_use]
    pub fn new(resource: Kind, key: &ObjectKey) -> Self {
        Self { resource: resource.plural, key: key.clone() }
    }

    /// Names the object in `value`.
    #[must_use]
    pub fn of(resource: Kind, value: &Value) -> Self {
        Self { resource: resource.plural, key: meta::object_key(value) }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource, self.key)
    }
}

/// Why the cluster did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// There is no such object.
    #[error("{0} not found")]
    NotFound(Named),
    /// Another writer was first; the next try reads its result.
    #[error("{0} changed since it was read")]
    Conflict(Named),
    /// An object of that name exists.
    #[error("{0} already exists")]
    AlreadyExists(Named),
    /// Validation refused it.
    #[error("{what} is invalid: {message}")]
    Invalid {
        /// The object.
        what: Named,
        /// What is wrong, naming the field.
        message: String,
    },
    /// Authorisation or admission refused it.
    #[error("{what} is forbidden: {message}")]
    Forbidden {
        /// The object.
        what: Named,
        /// Why.
        message: String,
    },
    /// The namespace is being deleted, so nothing new is made in it.
    #[error("{0} cannot be created: its namespace is being deleted")]
    NamespaceTerminating(Named),
    /// The revision to watch from is no longer known.
    #[error("revision {0} is too old to watch from")]
    Expired(u64),
    /// The cluster cannot answer now; worth a retry.
    #[error("the cluster is unavailable: {0}")]
    Unavailable(String),
}

impl ClusterError {
    /// Whether the object was gone.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// Turns "not found" into success: what was to be deleted is gone.
///
/// # Errors
/// Every other error.
pub fn ignore_not_found(result: Result<(), ClusterError>) -> Result<(), ClusterError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// The revision an object carries; 0 where it carries none.
#[must_use]
pub fn revision_of(object: &Value) -> u64 {
    meta::resource_version(object).parse().unwrap_or(0)
}

/// Reads an object, checks that it is still the one that was planned for, lets
/// `change` change it, and writes it.
///
/// `revision` is the one the plan was made from; `None` where the plan does not
/// depend on the rest of the object. `change` returns `false` to write nothing.
///
/// # Errors
/// [`ClusterError::Conflict`] where the object has another uid or revision by now.
pub async fn modify<C: Cluster>(
    cluster: &C,
    resource: Kind,
    key: &ObjectKey,
    identity: Identity<'_>,
    part: Part,
    change: impl FnOnce(&mut Value) -> bool + Send,
) -> Result<Option<Value>, ClusterError> {
    let named = || Named::new(resource, key);
    let mut object =
        cluster.get(resource, key).await?.ok_or_else(|| ClusterError::NotFound(named()))?;
    let other_revision = identity.revision.is_some_and(|revision| revision != revision_of(&object));
    if meta::uid(&object) != identity.uid || other_revision {
        return Err(ClusterError::Conflict(named()));
    }
    if !change(&mut object) {
        return Ok(None);
    }
    let written = match part {
        Part::Main => cluster.update(resource, object).await?,
        Part::Status => cluster.update_status(resource, object).await?,
    };
    Ok(Some(written))
}

/// Which version of an object a write was planned from.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// Its revision; `None` for any.
    pub revision: Option<u64>,
}

/// What of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status.
    Status,
}

/// The resources controllers work with.
pub mod kinds {
    use api::resource::by_kind;

    use super::Kind;

    macro_rules! kinds {
        ($($name:ident: $group:literal $kind:literal),* $(,)?) => {
            $(
                #[doc = concat!("The resource of ", $kind, " objects.")]
                #[must_use]
                pub fn $name() -> Kind {
                    by_kind($group, $kind).expect(concat!($kind, " is in the table of resources"))
                }
            )*
        };
    }

    kinds! {
        pods: "" "Pod",
        nodes: "" "Node",
        namespaces: "" "Namespace",
        events: "" "Event",
        service_accounts: "" "ServiceAccount",
        config_maps: "" "ConfigMap",
        deployments: "apps" "Deployment",
        replica_sets: "apps" "ReplicaSet",
        volumes: "" "PersistentVolume",
        claims: "" "PersistentVolumeClaim",
        storage_classes: "storage.k8s.io" "StorageClass",
        services: "" "Service",
        endpoints: "" "Endpoints",
        endpoint_slices: "discovery.k8s.io" "EndpointSlice",
    }
}
