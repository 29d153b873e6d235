//! DELETE of one object: at once, after a grace period, or once its finalizers
//! are gone.
//!
//! | | what happens |
//! |---|---|
//! | nothing to wait for | it is removed |
//! | grace period (pods that are bound and did not end) | `deletionTimestamp`; the node deletes again with 0 |
//! | finalizers, or propagation that needs one | `deletionTimestamp`; removed with the last finalizer |
//! | deleted again | a shorter grace period is taken over, a longer one is not |

use std::sync::Arc;

use api::resource::Verb;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use store::{Expect, StoreError, Versioned, Write};

use super::update::{check_uid, is_finished};
use super::{Api, CONFLICT_TRIES, Target, service, store_error, stored};
use crate::identity::Identity;
use crate::object::{self, Encoded};
use crate::options::{DeleteOptions, Propagation};
use crate::status::Status;

/// Keeps an object until its dependents let go of it.
pub(crate) const ORPHAN: &str = "orphan";
/// Keeps an object until its dependents are gone.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Seconds a pod gets that does not say.
const GRACE_SECONDS: i64 = 30;

/// What a delete left.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// Nothing; this was its last state.
    Gone(Bytes),
    /// An object that is going.
    Terminating(Bytes),
}

impl Deleted {
    /// The object's JSON, its last state or the present one.
    #[must_use]
    pub fn object(&self) -> &Bytes {
        match self {
            Self::Gone(bytes) | Self::Terminating(bytes) => bytes,
        }
    }
}

impl Api {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` where a precondition does not hold, `Forbidden`.
    pub async fn delete(
        &self,
        who: &Identity,
        target: &Target<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.authorize(who, Verb::Delete, target)?;
        stored(target.resource)?;
        self.delete_checked(target, options).await
    }

    /// [`Api::delete`] for somebody who may.
    pub(super) async fn delete_checked(
        &self,
        target: &Target<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        if options.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            return Err(Status::bad_request(
                "gracePeriodSeconds: must be greater than or equal to 0",
            ));
        }
        if target.resource.kind == "Namespace" && PERMANENT_NAMESPACES.contains(&target.name) {
            return Err(Status::forbidden(
                target.resource,
                target.name,
                "this namespace may not be deleted",
            ));
        }
        for _ in 0..CONFLICT_TRIES {
            let (old, stored) = self.read(target)?.ok_or_else(|| target.not_found())?;
            check_preconditions(target, options, &old, &stored)?;
            let new = terminate(target, &old, options, Timestamp::now());
            let finished = is_finished(&new);
            if !finished && new == old {
                return Ok(Deleted::Terminating(stored.value));
            }
            if options.dry_run {
                let bytes = Encoded::render_unstored(&new);
                return Ok(if finished {
                    Deleted::Gone(bytes)
                } else {
                    Deleted::Terminating(bytes)
                });
            }
            let expect = Expect::Revision(stored.revision);
            let encoded = Arc::new(Encoded::new(&new));
            let write = if finished {
                Write::delete(stored.key, expect)
            } else {
                let rendered = Arc::clone(&encoded);
                Write::put_with(stored.key, expect, move |revision| rendered.render(revision))
            };
            let mut writes = vec![write];
            if finished {
                writes.extend(service::release(target.resource, &old));
            }
            match self.inner.store.write(writes).await {
                Ok(revision) if finished => {
                    return Ok(Deleted::Gone(object::at_revision(&stored.value, revision)));
                }
                Ok(revision) => return Ok(Deleted::Terminating(encoded.render(revision))),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_error(&error)),
            }
        }
        Err(Status::modified(target.resource, target.name))
    }
}

/// Namespaces that the master needs.
const PERMANENT_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

fn check_preconditions(
    target: &Target<'_>,
    options: &DeleteOptions,
    old: &Value,
    stored: &Versioned,
) -> Result<(), Status> {
    check_uid(target, options.uid.as_deref().unwrap_or_default(), old)?;
    match options.resource_version {
        Some(asked) if asked != stored.revision => {
            let problem = format!(
                "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in \
                 object meta: {}",
                stored.revision
            );
            Err(Status::conflict(target.resource, target.name, &problem))
        }
        _ => Ok(()),
    }
}

/// The object as the delete leaves it; finished where nothing holds it back.
fn terminate(target: &Target<'_>, old: &Value, options: &DeleteOptions, now: Timestamp) -> Value {
    let mut new = old.clone();
    let deleting = object::is_deleting(old);
    set_finalizers(&mut new, options.propagation);
    let grace = if target.resource.strategy.graceful_deletion {
        pod_grace_seconds(old, options.grace_period_seconds)
    } else {
        0
    };
    if deleting {
        let current = object::at(old, &["metadata", "deletionGracePeriodSeconds"])
            .and_then(Value::as_i64)
            .unwrap_or(0);
        // Without a wish of its own a second delete changes nothing.
        let shorter = grace < current && (options.grace_period_seconds.is_some() || grace == 0);
        if !shorter {
            return new;
        }
    }
    let end = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    let metadata = object::metadata_mut(&mut new);
    metadata.insert("deletionTimestamp".to_owned(), json!(object::time_text(end)));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    if !deleting && let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
        metadata.insert("generation".to_owned(), json!(generation + 1));
    }
    if target.resource.kind == "Namespace" {
        object::child_mut(&mut new, "status").insert("phase".to_owned(), json!("Terminating"));
    }
    new
}

/// How long a pod may take to end: 0 where nothing runs that could.
fn pod_grace_seconds(pod: &Value, asked: Option<i64>) -> i64 {
    let bound = !object::text(pod, &["spec", "nodeName"]).is_empty();
    let ended = matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if !bound || ended {
        return 0;
    }
    let own = object::at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    asked.or(own).unwrap_or(GRACE_SECONDS).max(0)
}

/// Propagation is kept as a finalizer, which the garbage collector removes.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut finalizers: Vec<String> = object::finalizers(object)
        .into_iter()
        .filter(|finalizer| !matches!(*finalizer, ORPHAN | FOREGROUND))
        .map(str::to_owned)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
        Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
    }
    let finalizers = (!finalizers.is_empty()).then(|| json!(finalizers));
    object::set(object::metadata_mut(object), "finalizers", finalizers);
}
