//! The verbs of the API, for every resource alike, without HTTP.
//!
//! ```text
//! authorise ─► read ─► change ─► default ─► validate ─► track fields ─► compare and write
//!                ▲                                                            │
//!                └──────────────── conflict, where the caller pinned nothing ─┘
//! ```
//!
//! [`Api`] is what HTTP handlers, controllers, the scheduler and node reports
//! call, each with its [`Identity`], so that all of them meet the same rules.
//! It does not know where a request came from, and keeps nothing but the store.

mod admission;
mod bootstrap;
mod collection;
mod create;
mod delete;
mod patch;

mod read;
mod service;
mod subresource;
mod token;
mod update;
mod watch;

use std::fmt;
use std::sync::{Arc, OnceLock};

use api::resource::{Resource, Storage, Verb};
use api::service::Ranges;
use bytes::Bytes;
use serde_json::Value;
use store::{Store, StoreError, Versioned};

pub use delete::Deleted;
pub use read::{Item, List, ListPages};
pub(crate) use watch::bookmark;
pub use watch::{Watch, WatchEvent};

use crate::authorize::{Attributes, Authorizer, BuiltIn, Decision};
use crate::identity::Identity;
use crate::logs::LogSource;
use crate::measured::MeasuredSource;
use crate::options::Selection;
use crate::status::Status;
use crate::streams::StreamSource;
use crate::tokens::TokenIssuer;

/// Tries of a write that loses against others, as Kubernetes has for patches.
const CONFLICT_TRIES: usize = 5;

/// The API server, without its HTTP; cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    authorizer: Arc<dyn Authorizer>,
    logs: OnceLock<Arc<dyn LogSource>>,
    streams: OnceLock<Arc<dyn StreamSource>>,
    tokens: OnceLock<TokenIssuer>,
    measured: OnceLock<Arc<dyn MeasuredSource>>,
    services: OnceLock<Ranges>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("revision", &self.inner.store.revision()).finish()
    }
}

/// The result of a create, update or patch.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is stored now, as JSON.
    pub object: Bytes,
    /// It did not exist before.
    pub created: bool,
    /// What the user should know although it worked.
    pub warnings: Vec<String>,
}

impl Written {
    /// The object, parsed.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.object).unwrap_or(Value::Null)
    }
}

/// Whom a request is about, and how.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The resource.
    pub resource: &'static Resource,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: &'a str,
    /// Name of the object.
    pub name: &'a str,
    /// `""`, `status`, `scale`, `finalize`, ...
    pub subresource: &'a str,
}

impl<'a> Target<'a> {
    /// An object.
    #[must_use]
    pub fn object(resource: &'static Resource, namespace: &'a str, name: &'a str) -> Self {
        Self { resource, namespace, name, subresource: "" }
    }

    /// A subresource of it.
    #[must_use]
    pub fn subresource(self, subresource: &'a str) -> Self {
        Self { subresource, ..self }
    }

    fn key(&self) -> String {
        self.resource.key(self.namespace, self.name)
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(self.resource, self.name)
    }
}

impl Api {
    /// The API over `store`, with the two built-in roles.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let authorizer = Arc::new(BuiltIn::new(Arc::clone(&store)));
        Self::with_authorizer(store, authorizer)
    }

    /// The API over `store`, with other roles.
    #[must_use]
    pub fn with_authorizer(store: Arc<dyn Store>, authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                authorizer,
                logs: OnceLock::new(),
                streams: OnceLock::new(),
                tokens: OnceLock::new(),
                measured: OnceLock::new(),
                services: OnceLock::new(),
            }),
        }
    }

    /// Says where the streams of containers come from. The first one stays.
    pub fn set_stream_source(&self, streams: Arc<dyn StreamSource>) {
        let _ = self.inner.streams.set(streams);
    }

    /// Says who measures what is not stored. The first one stays.
    pub fn set_measured_source(&self, measured: Arc<dyn MeasuredSource>) {
        let _ = self.inner.measured.set(measured);
    }

    /// Says where logs of containers come from. The first one stays.
    pub fn set_log_source(&self, logs: Arc<dyn LogSource>) {
        let _ = self.inner.logs.set(logs);
    }

    /// Where objects are.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Who decides.
    #[must_use]
    pub fn authorizer(&self) -> &Arc<dyn Authorizer> {
        &self.inner.authorizer
    }

    /// Whether `who` may do it, as an error where not.
    pub(crate) fn authorize(
        &self,
        who: &Identity,
        verb: Verb,
        target: &Target<'_>,
    ) -> Result<(), Status> {
        self.authorize_selected(who, verb, target, None)
    }

    fn authorize_selected(
        &self,
        who: &Identity,
        verb: Verb,
        target: &Target<'_>,
        selection: Option<&Selection>,
    ) -> Result<(), Status> {
        let fields = selection.map(|selection| &selection.fields);
        // A watch or list of one name is a request for that object.
        let pinned_name = fields.and_then(|fields| fields.pinned("metadata.name"));
        let what = Attributes {
            verb: verb.as_str(),
            group: target.resource.group,
            resource: target.resource.plural,
            subresource: target.subresource,
            namespace: target.namespace,
            name: if target.name.is_empty() { pinned_name.unwrap_or("") } else { target.name },
            pinned_node: fields.and_then(|fields| fields.pinned("spec.nodeName")).unwrap_or(""),
        };
        let Decision::Deny(reason) = self.inner.authorizer.authorize(who, &what) else {
            return Ok(());
        };
        if who.is_anonymous() {
            return Err(Status::unauthorized());
        }
        let resource = if target.subresource.is_empty() {
            target.resource.plural.to_owned()
        } else {
            format!("{}/{}", target.resource.plural, target.subresource)
        };
        let place = if target.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", target.namespace)
        };
        let mut problem = format!(
            "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {place}",
            who.user, target.resource.group
        );
        if !reason.is_empty() {
            problem.push_str(": ");
            problem.push_str(&reason);
        }
        Err(Status::forbidden(target.resource, target.name, &problem))
    }

    /// The object as it is stored, if it is.
    pub(crate) fn read(&self, target: &Target<'_>) -> Result<Option<(Value, Versioned)>, Status> {
        let Some(stored) = self.inner.store.get(&target.key()).map_err(|e| store_error(&e))? else {
            return Ok(None);
        };
        let object = parse_stored(&stored.key, &stored.value)?;
        Ok(Some((object, stored)))
    }
}

/// Reads back what was stored.
fn parse_stored(key: &str, bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes)
        .map_err(|error| Status::internal(format!("stored object {key} is damaged: {error}")))
}

/// A failure of the store that the request did not cause, as a client sees it.
fn store_error(error: &StoreError) -> Status {
    match error {
        StoreError::Expired { requested, compacted } => Status::expired(*requested, *compacted),
        StoreError::Future { requested, current } => {
            Status::too_large_revision(*requested, *current)
        }
        StoreError::ValueTooLarge { bytes_max, .. } => Status::too_large(*bytes_max),
        StoreError::InvalidKey { .. } => Status::bad_request(error.to_string()),
        StoreError::Closed => Status::unavailable("the server is shutting down"),
        other => {
            tracing::error!(error = %other, "the store failed");
            Status::internal(other)
        }
    }
}

/// Refuses resources that are computed and never stored.
fn stored(resource: &Resource) -> Result<(), Status> {
    if resource.storage == Storage::Virtual {
        return Err(Status::method_not_allowed());
    }
    Ok(())
}
