//! POST: a new object.

use api::resource::{Resource, Verb};
use api::{defaults, names, strategy};
use serde_json::Value;
use store::{Expect, StoreError, Write};

use super::{Api, Target, Written, admission, service, store_error, stored};
use crate::identity::Identity;
use crate::managed;
use crate::object::{self, Encoded};
use crate::options::WriteOptions;
use crate::status::Status;
use crate::{fields, validate};

/// Names tried for `generateName` before giving up, as Kubernetes does.
const NAME_TRIES: usize = 8;

impl Api {
    /// Creates an object.
    ///
    /// `namespace` is the URL's; empty for a cluster-scoped object.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, `BadRequest`, `Forbidden`, `NotFound` for the namespace.
    pub async fn create(
        &self,
        who: &Identity,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let name = object::meta(&object, "name").to_owned();
        let target = Target::object(resource, namespace, &name);
        self.authorize(who, Verb::Create, &target)?;
        stored(resource)?;
        let warnings = check_incoming(&target, &mut object, options)?;
        self.create_checked(who, &target, object, options, warnings, false).await
    }

    /// Creates an object whose shape was checked, for somebody who may.
    ///
    /// `tracked` where `managedFields` are already what they should be.
    pub(super) async fn create_checked(
        &self,
        who: &Identity,
        target: &Target<'_>,
        mut object: Value,
        options: &WriteOptions,
        warnings: Vec<String>,
        tracked: bool,
    ) -> Result<Written, Status> {
        let resource = target.resource;
        if !object::meta(&object, "resourceVersion").is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let home = self.admit_namespace(target)?;
        self.admit_service_account(target, &mut object)?;
        self.give_storage_class(target, &mut object)?;
        let prefix = object::meta(&object, "generateName").to_owned();
        let generated = target.name.is_empty() && !prefix.is_empty();
        let uid = new_uid();
        let metadata = object::metadata_mut(&mut object);
        if resource.namespaced {
            metadata.insert("namespace".to_owned(), Value::from(target.namespace));
        } else {
            metadata.shift_remove("namespace");
        }
        for attempt in 1.. {
            if generated {
                let name = names::generate_name(&prefix, random());
                object::metadata_mut(&mut object).insert("name".to_owned(), Value::from(name));
            }
            let new = New {
                object: object.clone(),
                uid: &uid,
                home: &home,
                warnings: &warnings,
                tracked,
            };
            match self.create_named(who, target, new, options).await {
                Err(Conflict::Exists) if generated && attempt < NAME_TRIES => {}
                // What was chosen for it was taken meanwhile.
                Err(Conflict::Taken) if attempt < service::TRIES => {}
                Err(Conflict::Taken) => return Err(Status::modified(resource, target.name)),
                Err(Conflict::Exists) => {
                    let name = object::meta(&object, "name");
                    return Err(Status::already_exists(resource, name));
                }
                Err(Conflict::Other(status)) => return Err(status),
                Ok(written) => {
                    if !options.dry_run {
                        let unsupported = validate::unsupported_warnings(resource, &object);
                        self.report_unsupported(resource, &written, &unsupported).await;
                    }
                    return Ok(written);
                }
            }
        }
        unreachable!("the loop returns")
    }

    async fn create_named(
        &self,
        who: &Identity,
        target: &Target<'_>,
        new: New<'_>,
        options: &WriteOptions,
    ) -> Result<Written, Conflict> {
        let resource = target.resource;
        let New { mut object, uid, home, warnings, tracked } = new;
        strategy::prepare_for_create(resource, &mut object, uid, jiff::Timestamp::now());
        defaults::apply(resource, &mut object);
        object::set_type(&mut object, resource);
        let mut warnings = warnings.to_vec();
        let refused = self.prepare_service(resource, None, &mut object);
        warnings.extend(validate::create(resource, &object, refused).map_err(Conflict::Other)?);
        admission::admit_node(who, target, None, &object).map_err(Conflict::Other)?;
        self.admit_runtime_class(target, &object).map_err(Conflict::Other)?;
        warnings
            .extend(admission::admit_pod_security(home, target, &object).map_err(Conflict::Other)?);
        if !tracked && options.field_manager.is_empty() {
            object::metadata_mut(&mut object).shift_remove("managedFields");
        } else if !tracked {
            let manager = manager(who, options);
            managed::track_create(target, &mut object, &manager).map_err(Conflict::Other)?;
        }

        let name = object::meta(&object, "name").to_owned();
        let key = resource.key(target.namespace, &name);
        let reservations = self.allocate(target, None, &mut object).map_err(Conflict::Other)?;
        if options.dry_run {
            let exists =
                self.inner.store.get(&key).map_err(|e| Conflict::Other(store_error(&e)))?;
            if exists.is_some() {
                return Err(Conflict::Exists);
            }
            let bytes = Encoded::render_unstored(&object);
            return Ok(Written { object: bytes, created: true, warnings });
        }
        let encoded = std::sync::Arc::new(Encoded::new(&object));
        let rendered = std::sync::Arc::clone(&encoded);
        let mut writes =
            vec![Write::put_with(key.clone(), Expect::Absent, move |rev| rendered.render(rev))];
        if (resource.group, resource.kind) == ("", "Namespace") {
            writes.push(admission::default_account(&name));
        }
        writes.extend(reservations);
        match self.inner.store.write(writes).await {
            Ok(revision) => {
                Ok(Written { object: encoded.render(revision), created: true, warnings })
            }
            Err(StoreError::Conflict { key: taken, .. }) if taken == key => Err(Conflict::Exists),
            Err(StoreError::Conflict { key, .. }) if service::is_reservation(&key) => {
                Err(Conflict::Taken)
            }
            Err(error) => Err(Conflict::Other(store_error(&error))),
        }
    }
}

/// An object on its way into the store.
struct New<'a> {
    object: Value,
    uid: &'a str,
    /// The namespace it goes to; null for none.
    home: &'a Value,
    warnings: &'a [String],
    /// `managedFields` are already what they should be (server-side apply).
    tracked: bool,
}

enum Conflict {
    Exists,
    /// An address or port that it was given is another's by now.
    Taken,
    Other(Status),
}

/// Whether what a client sent is an object of the URL's kind, namespace and name.
pub(super) fn check_incoming(
    target: &Target<'_>,
    object: &mut Value,
    options: &WriteOptions,
) -> Result<Vec<String>, Status> {
    let resource = target.resource;
    check_type(resource, object)?;
    let warnings = fields::check(
        resource.group,
        resource.version,
        resource.kind,
        object,
        options.field_validation,
        &options.duplicate_fields,
    )?;
    let namespace = object::meta(object, "namespace");
    if resource.namespaced && !namespace.is_empty() && namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(warnings)
}

/// The object's type is the URL's; filled in where the object does not say.
pub(super) fn check_type(resource: &Resource, object: &mut Value) -> Result<(), Status> {
    let (api_version, kind) =
        (object::text(object, &["apiVersion"]), object::text(object, &["kind"]));
    if !api_version.is_empty() && api_version != resource.api_version() {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            resource.api_version()
        )));
    }
    if !kind.is_empty() && kind != resource.kind {
        return Err(Status::bad_request(format!(
            "the kind in the data ({kind}) does not match the expected kind ({})",
            resource.kind
        )));
    }
    if object.is_object() {
        object::set_type(object, resource);
    }
    Ok(())
}

/// Who is said to manage the fields of a write.
pub(super) fn manager(who: &Identity, options: &WriteOptions) -> String {
    let name = if options.field_manager.is_empty() { &who.user } else { &options.field_manager };
    name.chars().take(128).collect()
}

pub(super) fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(super) fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
