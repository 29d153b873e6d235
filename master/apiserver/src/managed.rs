//! Patches and who manages which field: between the verbs and [`patch`].
//!
//! [`patch`]: crate::patch

use api::schema::{TypeRef, table};
use serde_json::Value;

use crate::fields;
use crate::options::{PatchKind, WriteOptions};
use crate::patch::{PatchError, json, merge, strategic};
use crate::status::{Reason, Status};
use crate::verbs::Target;

/// `object` after a patch that is no server-side apply.
pub(crate) fn patched(
    target: &Target<'_>,
    kind: PatchKind,
    object: &Value,
    patch: &Value,
) -> Result<Value, Status> {
    match kind {
        PatchKind::Json => json::apply(object, patch).map_err(refuse),
        _ if !patch.is_object() => Err(Status::bad_request("the patch is not a JSON object")),
        PatchKind::Merge => Ok(merge::apply(object, patch)),
        PatchKind::Strategic | PatchKind::Apply => {
            let of = type_of(target)?;
            strategic::apply(object, patch, of).map_err(refuse)
        }
    }
}

/// The schema of what is patched: the object's, or that of its `Scale`.
fn type_of(target: &Target<'_>) -> Result<TypeRef, Status> {
    let of = if target.subresource == "scale" {
        table().kind("autoscaling", "v1", "Scale")
    } else {
        fields::type_of(target.resource)
    };
    of.ok_or_else(|| Status::internal(format!("{} has no schema", target.resource.kind)))
}

fn refuse(error: PatchError) -> Status {
    match error {
        PatchError::Malformed(text) => Status::bad_request(text),
        PatchError::DoesNotFit(text) => Status::unprocessable(&text),
        PatchError::TooLarge(text) => Status::new(Reason::RequestEntityTooLarge, text),
    }
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
