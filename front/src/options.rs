//! What a request may ask for beside the object: the query parameters of the
//! API and the `DeleteOptions`, parsed once.

use std::time::Duration;

use api::selector::{FieldSelector, LabelSelector};

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `labelSelector`.
    pub labels: LabelSelector,
    /// `fieldSelector`.
    pub fields: FieldSelector,
}

impl Selection {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    /// The state at exactly this revision.
    Exact,
    /// That state or a newer one.
    NotOlderThan,
}

/// A list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Which objects.
    pub selection: Selection,
    /// At most this many.
    pub limit: Option<usize>,
    /// Where the page before ended; from [`crate::List::continue_token`].
    pub continue_token: Option<String>,
    /// `None` where it was not given.
    pub resource_version: Option<u64>,
    /// How `resource_version` is meant.
    pub version_match: Option<VersionMatch>,
}

/// A watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Which objects.
    pub selection: Selection,
    /// Changes after this revision; `None` and 0 begin with what is there now.
    pub resource_version: Option<u64>,
    /// What is there now comes first, then the bookmark `k8s.io/initial-events-end`.
    pub send_initial_events: bool,
    /// Tell the revision once in a while.
    pub bookmarks: bool,
    /// End after this long; never, where `None`.
    pub timeout: Option<Duration>,
}

/// What to do about fields that are unknown or given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and warn.
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// A create, update or patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but store it.
    pub dry_run: bool,
    /// Who manages the fields that are set.
    ///
    /// Empty for a part of the master that claims none: nothing is noted about a
    /// create, or about a write to `status`, and objects stay small.
    pub field_manager: String,
    /// What to do about unknown fields.
    pub field_validation: FieldValidation,
    /// Take fields of a server-side apply from other managers.
    pub force: bool,
    /// Problems that only the text of the body shows: `duplicate field "spec.replicas"`.
    pub duplicate_fields: Vec<String>,
}

impl WriteOptions {
    /// A write by a part of the master.
    #[must_use]
    pub fn by(manager: &str) -> Self {
        Self { field_manager: manager.to_owned(), ..Self::default() }
    }
}

/// What becomes of the objects an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted after it.
    Background,
    /// They are deleted before it.
    Foreground,
    /// They stay.
    Orphan,
}

/// A delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds the object gets to end; its own default where `None`.
    pub grace_period_seconds: Option<i64>,
    /// What becomes of dependents.
    pub propagation: Option<Propagation>,
    /// Only if the object has this uid.
    pub uid: Option<String>,
    /// Only if the object is at this revision.
    pub resource_version: Option<u64>,
    /// Do everything but delete.
    pub dry_run: bool,
}

/// The format of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
    /// `application/apply-patch+yaml`: server-side apply.
    Apply,
}
