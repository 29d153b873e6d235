//! Selectors: which objects a list, a watch or a controller means.
//!
//! [`LabelSelector`] compares labels, in both of its forms: the text of
//! `?labelSelector=` and the object in `spec.selector`. [`FieldSelector`]
//! compares a few fields by `?fieldSelector=`; which ones, and what their value
//! is, the table of resources knows.

mod field;
mod label;

pub use field::{FieldRequirement, FieldSelector, FieldSelectorError};
pub use label::{LabelSelector, LabelSelectorError, Operator, Requirement};

/// Longest selector text that is read, in bytes.
pub const SELECTOR_TEXT_MAX: usize = 64 * 1024;
