//! The four ways to patch an object, as pure functions over JSON.
//!
//! | module | content type | what a patch is |
//! |---|---|---|
//! | [`merge`] | `application/merge-patch+json` | the object's new parts (RFC 7386) |
//! | [`json`] | `application/json-patch+json` | a list of operations (RFC 6902) |
//! | [`strategic`] | `application/strategic-merge-patch+json` | new parts; lists merge by key |
//! | [`apply`] | `application/apply-patch+yaml` | all that one manager wants; [`apply`] remembers who wants what |
//!
//! They know the schema table, and neither defaults, validation, versions nor
//! the store: the result goes through all of these like any other write.

pub mod apply;
pub mod json;
pub mod merge;
pub mod strategic;

/// Why a patch could not be applied; the text is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself makes no sense: 400 `BadRequest`.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422 `Invalid`.
    #[error("{0}")]
    DoesNotFit(String),
    /// More than one request may ask for: 413 `RequestEntityTooLarge`.
    #[error("{0}")]
    TooLarge(String),
}

/// How deep JSON may be nested after a patch, as the schema checks allow.
pub(crate) const MAX_DEPTH: usize = api::schema::MAX_DEPTH;
