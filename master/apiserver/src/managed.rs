//! Patches and who manages which field: between the verbs and `patch`.

use serde_json::Value;

use crate::options::{PatchKind, WriteOptions};
use crate::status::Status;
use crate::verbs::Target;

/// `object` after a patch that is no server-side apply.
pub(crate) fn patched(
    _target: &Target<'_>,
    _kind: PatchKind,
    _object: &Value,
    _patch: &Value,
) -> Result<Value, Status> {
    Err(Status::internal("not yet"))
}

/// The object after a server-side apply, `managedFields` included.
pub(crate) fn applied(
    _target: &Target<'_>,
    _old: Option<&Value>,
    _patch: &Value,
    _options: &WriteOptions,
) -> Result<Value, Status> {
    Err(Status::internal("not yet"))
}

/// Notes that `manager` set every field of a new object.
pub(crate) fn track_create(_target: &Target<'_>, _object: &mut Value, _manager: &str) {}

/// Notes which fields `manager` changed.
pub(crate) fn track_update(_target: &Target<'_>, _old: &Value, _new: &mut Value, _manager: &str) {}
