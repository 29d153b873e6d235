//! PUT, and what every change of an existing object goes through.

use std::sync::Arc;

use api::resource::Verb;
use api::{defaults, strategy};
use serde_json::Value;
use store::{Expect, StoreError, Versioned, Write};

use super::create::{check_incoming, manager};
use super::{Api, CONFLICT_TRIES, Target, Written, admission, service, store_error, stored};
use crate::identity::Identity;
use crate::managed;
use crate::object::{self, Encoded};
use crate::options::WriteOptions;
use crate::status::Status;
use crate::validate;

/// What a change makes of an object.
pub(super) struct Changed {
    pub(super) object: Value,
    pub(super) warnings: Vec<String>,
    /// `managedFields` are already what they should be (server-side apply).
    pub(super) tracked: bool,
}

impl Api {
    /// Replaces an object, its `status` or (of a namespace) its finalizers.
    ///
    /// With a `resourceVersion` in the object, only that revision of it.
    ///
    /// # Errors
    /// `Conflict`, `NotFound`, `Invalid`, `BadRequest`, `Forbidden`.
    pub async fn update(
        &self,
        who: &Identity,
        target: &Target<'_>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.authorize(who, Verb::Update, target)?;
        stored(target.resource)?;
        if target.subresource == "scale" {
            return self.update_scale(who, target, object, options).await;
        }
        self.update_checked(who, target, object, options).await
    }

    /// [`Api::update`] of `status`.
    ///
    /// # Errors
    /// As [`Api::update`].
    pub async fn update_status(
        &self,
        who: &Identity,
        target: &Target<'_>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.update(who, &target.subresource("status"), object, options).await
    }

    async fn update_checked(
        &self,
        who: &Identity,
        target: &Target<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let resource = target.resource;
        let warnings = check_incoming(target, &mut object, options)?;
        check_name(target, &mut object)?;
        let pinned = pinned_revision(&object)?;
        if pinned.is_none() && !resource.strategy.unconditional_update {
            let exists = self.read(target)?.is_some();
            if exists {
                return Err(Status::invalid_field(
                    resource,
                    target.name,
                    "FieldValueInvalid",
                    "metadata.resourceVersion",
                    "Invalid value: 0: must be specified for an update",
                ));
            }
        }
        if resource.strategy.create_on_update && pinned.is_none() && self.read(target)?.is_none() {
            self.authorize(who, Verb::Create, target)?;
            return self.create_checked(who, target, object, options, warnings, false).await;
        }
        let tries = if pinned.is_some() { 1 } else { CONFLICT_TRIES };
        let uid = object::meta(&object, "uid").to_owned();
        self.modify(who, target, options, tries, |old, stored| {
            check_uid(target, &uid, old)?;
            if pinned.is_some_and(|pinned| pinned != stored.revision) {
                return Err(Status::modified(resource, target.name));
            }
            Ok(Changed { object: object.clone(), warnings: warnings.clone(), tracked: false })
        })
        .await
    }

    /// Reads, changes, checks and writes, again where another writer was first.
    ///
    /// `change` is given the object as it is stored, and may be called `tries` times.
    pub(super) async fn modify(
        &self,
        who: &Identity,
        target: &Target<'_>,
        options: &WriteOptions,
        tries: usize,
        mut change: impl FnMut(&Value, &Versioned) -> Result<Changed, Status> + Send,
    ) -> Result<Written, Status> {
        for _ in 0..tries {
            let (old, stored) = self.read(target)?.ok_or_else(|| target.not_found())?;
            let changed = change(&old, &stored)?;
            match self.finish(who, target, options, (&old, &stored), changed).await {
                Ok(Some(written)) => return Ok(written),
                Ok(None) => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::modified(target.resource, target.name))
    }

    /// The common end of all changes; `None` where another writer was first.
    async fn finish(
        &self,
        who: &Identity,
        target: &Target<'_>,
        options: &WriteOptions,
        (old, stored): (&Value, &Versioned),
        changed: Changed,
    ) -> Result<Option<Written>, Status> {
        let resource = target.resource;
        let Changed { object: mut new, mut warnings, tracked } = changed;
        let subresource = (!target.subresource.is_empty() && target.subresource != "scale")
            .then_some(target.subresource);
        object::set_type(&mut new, resource);
        check_name(target, &mut new)?;
        defaults::apply(resource, &mut new);
        strategy::prepare_for_update(resource, subresource, old, &mut new);
        if resource.kind == "Pod" && subresource == Some("status") {
            api::readiness::follow_gates(&mut new, jiff::Timestamp::now());
        }
        admission::admit_node(who, target, Some(old), &new)?;
        // What a pod may ask for is settled when it is made, but for the containers
        // that are added to it; a template may change.
        let is_pod = (resource.group, resource.kind) == ("", "Pod");
        let asks_anew =
            if is_pod { subresource == Some("ephemeralcontainers") } else { subresource.is_none() };
        if asks_anew && resource.namespaced && new["spec"] != old["spec"] {
            let home = self.namespace_of(target)?;
            warnings.extend(admission::admit_pod_security(&home, target, &new)?);
        }
        let refused = match subresource {
            None => self.prepare_service(resource, Some(old), &mut new),
            Some(_) => Vec::new(),
        };
        warnings.extend(validate::update(resource, subresource, &new, old, refused)?);
        let has_managers = object::at(old, &["metadata", "managedFields"]).is_some();
        let unnamed = options.field_manager.is_empty();
        if !tracked && unnamed && (subresource.is_some() || !has_managers) {
            managed::keep(old, &mut new);
        } else if !tracked {
            managed::track_update(target, old, &mut new, &manager(who, options))?;
        }
        let revision = old["metadata"]["resourceVersion"].clone();
        object::metadata_mut(&mut new).insert("resourceVersion".to_owned(), revision);
        let unchanged =
            |object| Ok(Some(Written { object, created: false, warnings: warnings.clone() }));
        if new == *old {
            return unchanged(stored.value.clone());
        }
        for _ in 0..service::TRIES {
            let mut new = new.clone();
            let is_finished = is_finished(&new);
            let reservations = if is_finished {
                service::release(resource, old)
            } else {
                self.allocate(target, Some(old), &mut new)?
            };
            if options.dry_run {
                return unchanged(Encoded::render_unstored(&new));
            }
            let expect = Expect::Revision(stored.revision);
            let encoded = Arc::new(Encoded::new(&new));
            let write = if is_finished {
                Write::delete(stored.key.clone(), expect)
            } else {
                let rendered = Arc::clone(&encoded);
                Write::put_with(stored.key.clone(), expect, move |revision| {
                    rendered.render(revision)
                })
            };
            let mut writes = vec![write];
            writes.extend(reservations);
            match self.inner.store.write(writes).await {
                Ok(revision) => {
                    let object = encoded.render(revision);
                    return Ok(Some(Written { object, created: false, warnings }));
                }
                // What was chosen for it was taken meanwhile.
                Err(StoreError::Conflict { key, .. }) if service::is_reservation(&key) => {}
                Err(StoreError::Conflict { .. }) => return Ok(None),
                Err(error) => return Err(store_error(&error)),
            }
        }
        Ok(None)
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(super) fn is_finished(object: &Value) -> bool {
    let grace = object::at(object, &["metadata", "deletionGracePeriodSeconds"]);
    object::is_deleting(object)
        && object::finalizers(object).is_empty()
        && grace.and_then(Value::as_i64).unwrap_or(0) == 0
        && (object["kind"] != "Namespace"
            || object::texts(object, &["spec", "finalizers"]).is_empty())
}

/// The name in the object is the URL's; filled in where the object does not say.
pub(super) fn check_name(target: &Target<'_>, object: &mut Value) -> Result<(), Status> {
    let name = object::meta(object, "name");
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let metadata = object::metadata_mut(object);
    metadata.insert("name".to_owned(), Value::from(target.name));
    if target.resource.namespaced {
        metadata.insert("namespace".to_owned(), Value::from(target.namespace));
    }
    Ok(())
}

pub(super) fn check_uid(target: &Target<'_>, uid: &str, old: &Value) -> Result<(), Status> {
    let current = object::meta(old, "uid");
    if uid.is_empty() || uid == current {
        return Ok(());
    }
    let problem =
        format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current}");
    Err(Status::conflict(target.resource, target.name, &problem))
}

/// The revision an object says it was made from.
pub(super) fn pinned_revision(object: &Value) -> Result<Option<u64>, Status> {
    object::resource_version(object).map_err(|()| {
        let text = object::meta(object, "resourceVersion");
        Status::bad_request(format!("resourceVersion: Invalid value: \"{text}\": not a number"))
    })
}
