//! PATCH in its four formats, of objects, `status` and `scale`.

use api::resource::Verb;
use serde_json::Value;

use super::create::check_incoming;
use super::subresource::{rescale, scale_of, scale_written};
use super::update::{Changed, check_name, check_uid, pinned_revision};
use super::{Api, CONFLICT_TRIES, Target, Written, stored};
use crate::identity::Identity;
use crate::managed;
use crate::object;
use crate::options::{PatchKind, WriteOptions};
use crate::status::{Reason, Status};

impl Api {
    /// Changes an object as `patch` says; with [`PatchKind::Apply`], also
    /// creates it.
    ///
    /// Where the patch carries no `resourceVersion`, a conflict with another
    /// writer is tried again on the new state.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, `BadRequest`, `Forbidden`.
    pub async fn patch(
        &self,
        who: &Identity,
        target: &Target<'_>,
        kind: PatchKind,
        patch: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.authorize(who, Verb::Patch, target)?;
        stored(target.resource)?;
        let scale = target.subresource == "scale";
        let written = if kind == PatchKind::Apply {
            if scale {
                return Err(Status::unprocessable("server-side apply of scale is not supported"));
            }
            self.apply(who, target, patch, options).await?
        } else {
            self.modify(who, target, options, CONFLICT_TRIES, |old, stored| {
                let view = if scale { scale_of(old) } else { old.clone() };
                let mut new = managed::patched(target, kind, &view, &patch)?;
                let name = object::meta(&new, "name");
                if name != target.name {
                    let message = format!("Invalid value: \"{name}\": field is immutable");
                    let (resource, field) = (target.resource, "metadata.name");
                    let reason = "FieldValueInvalid";
                    return Err(Status::invalid_field(
                        resource,
                        target.name,
                        reason,
                        field,
                        message,
                    ));
                }
                if pinned_revision(&new)?.is_some_and(|pinned| pinned != stored.revision) {
                    return Err(Status::modified(target.resource, target.name));
                }
                check_uid(target, object::meta(&new, "uid"), old)?;
                let (object, warnings) = if scale {
                    rescale(target, old, &mut new, options)?
                } else {
                    let warnings = check_incoming(target, &mut new, options)?;
                    (new, warnings)
                };
                Ok(Changed { object, warnings, tracked: false })
            })
            .await?
        };
        Ok(if scale { scale_written(&written) } else { written })
    }

    /// Server-side apply: what `patch` says is what its manager wants, all of it.
    async fn apply(
        &self,
        who: &Identity,
        target: &Target<'_>,
        mut patch: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let resource = target.resource;
        let warnings = check_incoming(target, &mut patch, options)?;
        check_name(target, &mut patch)?;
        let managed_fields = object::at(&patch, &["metadata", "managedFields"]);
        if managed_fields.is_some_and(|list| list.as_array().is_none_or(|l| !l.is_empty())) {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        object::metadata_mut(&mut patch).shift_remove("managedFields");
        let pinned = pinned_revision(&patch)?;
        let uid = object::meta(&patch, "uid").to_owned();
        object::metadata_mut(&mut patch).shift_remove("resourceVersion");
        for _ in 0..CONFLICT_TRIES {
            if self.read(target)?.is_some() || !target.subresource.is_empty() {
                let changed = self.modify(who, target, options, CONFLICT_TRIES, |old, stored| {
                    if pinned.is_some_and(|pinned| pinned != stored.revision) {
                        return Err(Status::modified(resource, target.name));
                    }
                    check_uid(target, &uid, old)?;
                    let object = managed::applied(target, Some(old), &patch, options)?;
                    Ok(Changed { object, warnings: warnings.clone(), tracked: true })
                });
                match changed.await {
                    // It went away between the two reads.
                    Err(status)
                        if status.reason == Reason::NotFound && target.subresource.is_empty() => {}
                    other => return other,
                }
                continue;
            }
            if pinned.is_some() || !uid.is_empty() {
                return Err(Status::modified(resource, target.name));
            }
            self.authorize(who, Verb::Create, target)?;
            let object = managed::applied(target, None, &patch, options)?;
            match self.create_checked(who, target, object, options, warnings.clone(), true).await {
                // Somebody else created it first.
                Err(status) if status.reason == Reason::AlreadyExists => {}
                other => return other,
            }
        }
        Err(Status::modified(resource, target.name))
    }
}
