//! The Kubernetes API of the master.
//!
//! ```text
//! kubectl ──► http ──► Api (verbs) ──► store
//! controllers, scheduler, node reports ──┘
//! ```
//!
//! * [`Api`] has one handler per verb for every resource of `api::resource`;
//!   a new kind is data, never a handler.
//! * `http` puts it behind TLS: routing, negotiation, discovery, tables.
//! * [`Status`] is every error, in the words of Kubernetes.
//!
//! It knows no node, no controller and no scheduler; what it needs from them it
//! takes through [`LogSource`], [`StreamSource`] and [`Authorizer`].

mod authorize;
mod download;
mod fields;
mod http;
mod identity;
mod managed;
mod measured;
mod mount;
pub mod patch;
mod tokens;
mod validate;
mod verbs;

pub use front::status;
use front::{logs, object, options, streams};

pub use authorize::{Attributes, Authorizer, BuiltIn, Decision};
pub use download::Download;
pub use http::{HealthCheck, Limits, Server, ServerOptions, TokenAuthenticator};
pub use identity::{
    AUTHENTICATED, Identity, MASTERS, NODE_USER_PREFIX, NODES, SERVICE_ACCOUNTS, UNAUTHENTICATED,
};
pub use logs::{BoxFuture, LogRequest, LogSource, LogStream};
pub use measured::{MeasuredRequest, MeasuredSource};
pub use mount::{Mount, MountBody};
pub use options::{
    DeleteOptions, FieldValidation, ListOptions, PatchKind, Propagation, Selection, VersionMatch,
    WatchOptions, WriteOptions,
};
pub use status::{Reason, Status};
pub use streams::{
    CommandRequest, CommandStream, ForwardedConnection, Forwarder, Input, Output, StreamSource,
    StreamTarget,
};
pub use tokens::{ISSUER, IssuedToken, KeyError, TokenIssuer, TokenKey, TokenWish};
pub use verbs::{Api, Deleted, Item, List, ListPages, Target, Watch, WatchEvent, Written};
