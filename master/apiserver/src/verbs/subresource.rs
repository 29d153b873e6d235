//! Paths below an object that are not a part of it: scale, binding, eviction
//! and log.

use std::sync::Arc;

use api::resource::Verb;
use api::selector::LabelSelector;
use front::containers;
use front::upgrade::check_command;
use serde_json::{Map, Value, json};

use super::create::check_type;
use super::update::{Changed, check_uid, pinned_revision};
use super::{Api, CONFLICT_TRIES, Deleted, Target, Written};
use crate::fields;
use crate::identity::Identity;
use crate::logs::{LogRequest, LogStream};
use crate::object::{self, Encoded};
use crate::options::{DeleteOptions, WriteOptions};
use crate::status::{Cause, Status};
use crate::streams::{CommandRequest, CommandStream, Forwarder, StreamSource, StreamTarget};

impl Api {
    /// The `Scale` of a workload, as JSON.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub fn get_scale(&self, who: &Identity, target: &Target<'_>) -> Result<Value, Status> {
        self.authorize(who, Verb::Get, &target.subresource("scale"))?;
        let (object, _) = self.read(target)?.ok_or_else(|| target.not_found())?;
        Ok(scale_of(&object))
    }

    /// Replaces the `Scale` of a workload: sets its `spec.replicas`.
    pub(super) async fn update_scale(
        &self,
        who: &Identity,
        target: &Target<'_>,
        scale: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let pinned = pinned_revision(&scale)?;
        let tries = if pinned.is_some() { 1 } else { CONFLICT_TRIES };
        let written = self
            .modify(who, target, options, tries, |old, stored| {
                if pinned.is_some_and(|pinned| pinned != stored.revision) {
                    return Err(Status::modified(target.resource, target.name));
                }
                let mut scale = scale.clone();
                let (object, warnings) = rescale(target, old, &mut scale, options)?;
                Ok(Changed { object, warnings, tracked: false })
            })
            .await?;
        Ok(scale_written(&written))
    }

    /// Binds a pod to a node, once.
    ///
    /// # Errors
    /// `Conflict` where the pod is bound or going, `NotFound`, `Invalid`.
    pub async fn bind(
        &self,
        who: &Identity,
        target: &Target<'_>,
        mut binding: Value,
        options: &WriteOptions,
    ) -> Result<(), Status> {
        let target = target.subresource("binding");
        self.authorize(who, Verb::Create, &target)?;
        fields::check("", "v1", "Binding", &mut binding, options.field_validation, &[])?;
        let node = object::text(&binding, &["target", "name"]).to_owned();
        let kind = object::text(&binding, &["target", "kind"]);
        let invalid = |reason: &str, field: &str, message: &str| {
            let cause = Cause {
                reason: reason.to_owned(),
                message: message.to_owned(),
                field: field.to_owned(),
            };
            Err(Status::invalid("", "Binding", target.name, vec![cause]))
        };
        if node.is_empty() {
            return invalid("FieldValueRequired", "target.name", "Required value");
        }
        if !kind.is_empty() && kind != "Node" {
            let message = format!("Unsupported value: \"{kind}\": supported values: \"Node\"");
            return invalid("FieldValueNotSupported", "target.kind", &message);
        }
        let pinned = pinned_revision(&binding)?;
        let uid = object::meta(&binding, "uid").to_owned();
        let annotations = binding["metadata"].get("annotations").cloned();
        let conflict = |problem: String| Status::conflict(target.resource, target.name, &problem);
        let pod = Target { subresource: "binding", ..target };
        self.modify_raw(&pod, options, |old, stored| {
            check_uid(&target, &uid, old)?;
            if pinned.is_some_and(|pinned| pinned != stored) {
                return Err(Status::modified(target.resource, target.name));
            }
            if object::is_deleting(old) {
                let problem =
                    format!("pod {} is being deleted, cannot be assigned to a host", target.name);
                return Err(conflict(problem));
            }
            let current = object::text(old, &["spec", "nodeName"]);
            if !current.is_empty() {
                let problem =
                    format!("pod {} is already assigned to node \"{current}\"", target.name);
                return Err(conflict(problem));
            }
            let mut pod = old.clone();
            object::child_mut(&mut pod, "spec").insert("nodeName".to_owned(), json!(node));
            if let Some(Value::Object(annotations)) = &annotations {
                let metadata = object::metadata_mut(&mut pod);
                let map =
                    metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.extend(annotations.clone());
                }
            }
            set_scheduled(&mut pod);
            Ok(pod)
        })
        .await?;
        Ok(())
    }

    /// Deletes a pod, as `kubectl drain` asks for. Nothing holds it back yet:
    /// there are no disruption budgets.
    ///
    /// # Errors
    /// As [`Api::delete`].
    pub async fn evict(
        &self,
        who: &Identity,
        target: &Target<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let target = target.subresource("eviction");
        self.authorize(who, Verb::Create, &target)?;
        self.delete_checked(&target, options).await
    }

    /// Opens the log of a container.
    ///
    /// # Errors
    /// `NotFound`, `BadRequest` where the pod has no such container or no log yet.
    pub async fn open_log(
        &self,
        who: &Identity,
        target: &Target<'_>,
        mut request: LogRequest,
    ) -> Result<LogStream, Status> {
        self.authorize(who, Verb::Get, &target.subresource("log"))?;
        let (pod, _) = self.read(target)?.ok_or_else(|| target.not_found())?;
        request.container = containers::choose(target.name, &pod, &request.container)?;
        request.node = object::text(&pod, &["spec", "nodeName"]).to_owned();
        if request.node.is_empty() {
            return Err(Status::bad_request(format!(
                "pod {} does not have a host assigned",
                target.name
            )));
        }
        target.namespace.clone_into(&mut request.namespace);
        target.name.clone_into(&mut request.pod);
        api::meta::uid_on_node(&pod).clone_into(&mut request.pod_uid);
        let Some(logs) = self.inner.logs.get() else {
            return Err(Status::unavailable("logs are not available: no link to the nodes"));
        };
        logs.open(request).await
    }

    /// Runs a command in a container, or attaches to it.
    ///
    /// # Errors
    /// `NotFound`, `BadRequest` where the pod has no such container or the
    /// request no command, `ServiceUnavailable` where the node is not reached.
    pub async fn open_command(
        &self,
        who: &Identity,
        verb: Verb,
        target: &Target<'_>,
        container: &str,
        mut request: CommandRequest,
    ) -> Result<CommandStream, Status> {
        let pod = self.reach(who, verb, target)?;
        check_command(&request)?;
        request.target = stream_target(target, &pod)?;
        request.target.container = containers::choose(target.name, &pod, container)?;
        self.streams()?.command(request).await
    }

    /// Reaches the ports of a pod.
    ///
    /// # Errors
    /// `NotFound`, `BadRequest` where it has no node, `ServiceUnavailable` where
    /// the node is not reached.
    pub async fn open_forward(
        &self,
        who: &Identity,
        verb: Verb,
        target: &Target<'_>,
    ) -> Result<Arc<dyn Forwarder>, Status> {
        let pod = self.reach(who, verb, target)?;
        self.streams()?.forward(stream_target(target, &pod)?).await
    }

    /// Whether somebody may reach into a pod.
    ///
    /// # Errors
    /// `Unauthorized`, `Forbidden`.
    pub fn authorize_reach(
        &self,
        who: &Identity,
        verb: Verb,
        target: &Target<'_>,
    ) -> Result<(), Status> {
        self.authorize(who, verb, target)
    }

    /// The pod, for whoever may reach into it.
    fn reach(&self, who: &Identity, verb: Verb, target: &Target<'_>) -> Result<Value, Status> {
        self.authorize(who, verb, target)?;
        let main = Target { subresource: "", ..*target };
        let (pod, _) = self.read(&main)?.ok_or_else(|| main.not_found())?;
        Ok(pod)
    }

    fn streams(&self) -> Result<&Arc<dyn StreamSource>, Status> {
        let problem = "containers cannot be reached: no link to the nodes";
        self.inner.streams.get().ok_or_else(|| Status::unavailable(problem))
    }

    /// Changes a stored object without the rules for clients; for what the server decides.
    async fn modify_raw(
        &self,
        target: &Target<'_>,
        options: &WriteOptions,
        mut change: impl FnMut(&Value, u64) -> Result<Value, Status> + Send,
    ) -> Result<(), Status> {
        for _ in 0..CONFLICT_TRIES {
            let (old, stored) = self.read(target)?.ok_or_else(|| target.not_found())?;
            let new = change(&old, stored.revision)?;
            if options.dry_run {
                return Ok(());
            }
            let encoded = Encoded::new(&new);
            let expect = store::Expect::Revision(stored.revision);
            let write = store::Write::put_with(stored.key, expect, move |revision| {
                encoded.render(revision)
            });
            match self.inner.store.write(vec![write]).await {
                Ok(_) => return Ok(()),
                Err(store::StoreError::Conflict { .. }) => {}
                Err(error) => return Err(super::store_error(&error)),
            }
        }
        Err(Status::modified(target.resource, target.name))
    }
}

/// The condition that says a pod has a node.
fn set_scheduled(pod: &mut Value) {
    let now = object::now_text();
    let status = object::child_mut(pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    match conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled") {
        Some(condition) => *condition = scheduled,
        None => conditions.push(scheduled),
    }
}

fn stream_target(target: &Target<'_>, pod: &Value) -> Result<StreamTarget, Status> {
    let node = object::text(pod, &["spec", "nodeName"]).to_owned();
    containers::check_running(object::text(pod, &["status", "phase"]))?;
    if node.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            target.name
        )));
    }
    Ok(StreamTarget {
        namespace: target.namespace.to_owned(),
        pod: target.name.to_owned(),
        pod_uid: object::meta(pod, "uid").to_owned(),
        node,
        container: String::new(),
    })
}

/// The `Scale` of a workload.
pub(super) fn scale_of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        object::set(&mut metadata, field, object["metadata"].get(field).cloned());
    }
    let replicas = |part: &str| object[part]["replicas"].as_i64().unwrap_or(0);
    let selector = LabelSelector::from_object(&object["spec"]["selector"]).unwrap_or_default();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": replicas("spec")},
        "status": {"replicas": replicas("status"), "selector": selector.to_string()},
    })
}

/// The workload with the replicas of `scale`, and warnings.
pub(super) fn rescale(
    target: &Target<'_>,
    object: &Value,
    scale: &mut Value,
    options: &WriteOptions,
) -> Result<(Value, Vec<String>), Status> {
    let validation = options.field_validation;
    let warnings = fields::check("autoscaling", "v1", "Scale", scale, validation, &[])?;
    check_uid(target, object::meta(scale, "uid"), object)?;
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".to_owned(),
        };
        return Err(Status::invalid("autoscaling", "Scale", target.name, vec![cause]));
    }
    let mut object = object.clone();
    check_type(target.resource, &mut object)?;
    object::child_mut(&mut object, "spec").insert("replicas".to_owned(), json!(replicas));
    Ok((object, warnings))
}

/// The answer to a write of a `Scale`.
pub(super) fn scale_written(written: &Written) -> Written {
    let scale = scale_of(&written.value());
    Written { object: Encoded::render_unstored(&scale), ..written.clone() }
}
