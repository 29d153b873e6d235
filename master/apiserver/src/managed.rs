//! Keeps `metadata.managedFields` over writes that are no server-side apply.

use api::resource::Resource;
use serde_json::Value;

/// Notes that `manager` set every field of a new object.
pub(crate) fn track_create(_resource: &Resource, _object: &mut Value, _manager: &str) {}

/// Notes which fields `manager` changed.
pub(crate) fn track_update(
    _resource: &Resource,
    _subresource: &str,
    _old: &Value,
    _new: &mut Value,
    _manager: &str,
) {
}
