//! Mirrors: Pods that show the static pods of a node.
//!
//! A node says with its hello which static pods it has, all of them. Each becomes
//! a Pod with the annotation `kubernetes.io/config.mirror`, written as that node;
//! one that the node no longer names, or that somebody deletes, goes, and comes
//! back if the node still has it. Sets never hold mirrors.

use std::sync::Arc;

use api::{ObjectKey, Value, meta};
use apiserver::{Api, DeleteOptions, Identity, Reason, Status, Target, WriteOptions};
use serde_json::json;
use tracing::warn;
use wire::node::StaticPodV1;

use crate::enrol::resource;

/// Brings the mirrors of `node` from `existing` to `pods`; whether one was made,
/// whose status the node is to say again. What fails is logged; the next hello or
/// change of a mirror tries again.
pub(super) async fn reconcile(
    api: &Api,
    node: &str,
    pods: &Arc<[StaticPodV1]>,
    existing: &[ObjectKey],
) -> bool {
    let who = Identity::node(node);
    let (mut kept, mut made) = (Vec::new(), false);
    for key in existing {
        let target = Target::object(resource("Pod"), &key.namespace, &key.name);
        match look(api, &who, &target, pods).await {
            Ok(Some(hash)) => kept.push(hash),
            Ok(None) => {}
            Err(error) => warn!(node, pod = %key, error = error.message, "mirror not removed"),
        }
    }
    for pod in pods.iter() {
        let hash = uuid::Uuid::from_bytes(pod.uid).to_string();
        if kept.contains(&hash) {
            continue;
        }
        match create(api, &who, node, pod, &hash).await {
            Ok(()) => made = true,
            Err(error) if error.reason == Reason::AlreadyExists => {}
            Err(error) => {
                warn!(node, uid = hash, error = error.message, "static pod not shown");
            }
        }
    }
    made
}

/// Keeps a mirror that is wanted and says which it is; removes any other.
async fn look(
    api: &Api,
    who: &Identity,
    target: &Target<'_>,
    pods: &Arc<[StaticPodV1]>,
) -> Result<Option<String>, Status> {
    let mirror = match api.get_value(who, target) {
        Ok(mirror) => mirror,
        Err(status) if matches!(status.reason, Reason::NotFound | Reason::Forbidden) => {
            return Ok(None);
        }
        Err(status) => return Err(status),
    };
    let Some(hash) = meta::annotation(&mirror, meta::MIRROR_ANNOTATION) else { return Ok(None) };
    let is_wanted = pods.iter().any(|pod| uuid::Uuid::from_bytes(pod.uid).to_string() == hash);
    if is_wanted && !meta::is_terminating(&mirror) {
        return Ok(Some(hash.to_owned()));
    }
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some(meta::uid(&mirror).to_owned()),
        ..DeleteOptions::default()
    };
    match api.delete(who, target, &options).await {
        Err(status) if status.reason != Reason::NotFound => Err(status),
        _ => Ok(None),
    }
}

async fn create(
    api: &Api,
    who: &Identity,
    node: &str,
    pod: &StaticPodV1,
    hash: &str,
) -> Result<(), Status> {
    let mut object: Value = serde_json::from_str(&pod.manifest)
        .map_err(|error| Status::bad_request(format!("its manifest is no JSON: {error}")))?;
    let namespace = meta::namespace(&object).to_owned();
    meta::set_annotation(&mut object, meta::MIRROR_ANNOTATION, hash);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.remove("ownerReferences");
        metadata.remove("finalizers");
    }
    object["spec"]["nodeName"] = json!(node);
    let options = WriteOptions::by("pinnace-agent");
    api.create(who, resource("Pod"), &namespace, object, &options).await.map(drop)
}
