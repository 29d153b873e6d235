//! Patches and who manages which field: between the verbs and [`patch`].
//!
//! [`patch`]: crate::patch

use api::schema::{TypeRef, table};
use api::time::Timestamp;
use serde_json::Value;

use crate::fields;
use crate::object;
use crate::options::{PatchKind, WriteOptions};
use crate::patch::apply::{self, ApplyError};
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
    target: &Target<'_>,
    old: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
) -> Result<Value, Status> {
    let of = type_of(target)?;
    let (manager, now) = (&options.field_manager, Timestamp::now());
    apply::apply(old, config, manager, options.force, subresource(target), now, of).map_err(
        |error| match &error {
            ApplyError::Conflicts(conflicts) => {
                let pairs = conflicts.iter().map(|c| (c.manager.as_str(), c.field.as_str()));
                Status::apply_conflict(error.to_string(), pairs)
            }
            ApplyError::Malformed(text) => Status::bad_request(text.clone()),
        },
    )
}

/// Notes that `manager` set every field of a new object.
pub(crate) fn track_create(
    target: &Target<'_>,
    object: &mut Value,
    manager: &str,
) -> Result<(), Status> {
    let of = type_of(target)?;
    apply::track_update(None, object, manager, None, Timestamp::now(), of);
    Ok(())
}

/// Notes which fields `manager` changed.
pub(crate) fn track_update(
    target: &Target<'_>,
    old: &Value,
    new: &mut Value,
    manager: &str,
) -> Result<(), Status> {
    let of = fields::type_of(target.resource);
    let of = of.ok_or_else(|| Status::internal("a resource without a schema"))?;
    let now = Timestamp::now();
    apply::track_update(Some(old), new, manager, subresource(target), now, of);
    Ok(())
}

/// Leaves `managedFields` as they are, whatever the writer sent.
pub(crate) fn keep(old: &Value, new: &mut Value) {
    let kept = object::at(old, &["metadata", "managedFields"]).cloned();
    object::set(object::metadata_mut(new), "managedFields", kept);
}

fn subresource<'a>(target: &Target<'a>) -> Option<&'a str> {
    (!target.subresource.is_empty()).then_some(target.subresource)
}
