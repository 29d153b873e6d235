//! Turns what `api::validation` finds into a `Status` or warnings.

use api::resource::Resource;
use serde_json::Value;

use crate::status::Status;

/// Refuses a new object that cannot be, or returns what the user should know.
pub(crate) fn create(_resource: &Resource, _object: &Value) -> Result<Vec<String>, Status> {
    Ok(Vec::new())
}

/// Refuses a change that cannot be, or returns what the user should know.
pub(crate) fn update(
    _resource: &Resource,
    _subresource: Option<&str>,
    _new: &Value,
    _old: &Value,
) -> Result<Vec<String>, Status> {
    Ok(Vec::new())
}

/// What of an accepted object is not honoured.
pub(crate) fn unsupported_warnings(_resource: &Resource, _object: &Value) -> Vec<String> {
    Vec::new()
}
