//! The store's changes, as the task that deals with nodes hears of them.
//!
//! One watch for each resource. A watch that breaks is set up again and begins
//! with a whole list, whose end says what was deleted meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use api::resource::Resource;
use api::{ObjectKey, Value, meta};
use apiserver::{Api, Identity, WatchEvent, WatchOptions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use wire::pod::SourceV1;

use super::index::source_of;
use crate::policy::Prepull;

/// Pause before a watch that broke is set up again.
pub(super) const WATCH_RETRY: Duration = Duration::from_secs(1);

/// A change in the store that may change sets.
pub(super) enum Changed {
    Pod(ObjectKey, Option<Box<Value>>),
    Keys(String, SourceV1),
    /// A ConfigMap that names images to have, or none of these any more.
    Prepull(ObjectKey, Option<Box<Prepull>>),
    Namespace(String, Option<Box<Value>>),
    Service(ObjectKey, Option<Box<Value>>),
    Slice(ObjectKey, Option<Box<Value>>),
    NetworkPolicy(ObjectKey, Option<Box<Value>>),
    Node(String, Option<Box<Value>>),
    Claim(ObjectKey),
    Volume(String, Option<Box<Value>>),
    /// All objects of a resource have been told: those not named are gone.
    Listed(&'static str, BTreeSet<ObjectKey>),
}

/// Feeds the changes of one resource to the task, for ever.
pub(super) async fn watch(
    api: Api,
    resource: &'static Resource,
    changes: mpsc::Sender<Changed>,
    shutdown: CancellationToken,
) {
    let who = Identity::master("pinnace:dispatch");
    while !changes.is_closed() && !shutdown.is_cancelled() {
        let options = WatchOptions { send_initial_events: true, ..WatchOptions::default() };
        match api.watch(&who, resource, "", &options) {
            Ok(watch) => {
                tokio::select! {
                    () = follow(watch, resource, &changes) => (),
                    () = shutdown.cancelled() => return,
                }
            }
            Err(status) => warn!(resource = resource.plural, error = status.message, "no watch"),
        }
        tokio::time::sleep(WATCH_RETRY).await;
    }
}

async fn follow(
    mut watch: apiserver::Watch,
    resource: &'static Resource,
    changes: &mpsc::Sender<Changed>,
) {
    let mut listed = Some(BTreeSet::new());
    while let Some(event) = watch.next().await {
        let (item, is_there) = match event {
            WatchEvent::Added(item) | WatchEvent::Modified { item, .. } => (item, true),
            WatchEvent::Deleted(item) => (item, false),
            WatchEvent::Bookmark { .. } => {
                if let Some(named) = listed.take()
                    && changes.send(Changed::Listed(resource.kind, named)).await.is_err()
                {
                    return;
                }
                continue;
            }
            WatchEvent::Error(status) => {
                debug!(resource = resource.plural, error = status.message, "watch ended");
                return;
            }
        };
        let object = item.value();
        let key = meta::object_key(&object);
        if let Some(listed) = &mut listed {
            listed.insert(key.clone());
        }
        let object = is_there.then(|| Box::new(object));
        let change = match resource.kind {
            "Pod" => Changed::Pod(key, object),
            "Node" => Changed::Node(key.name, object),
            "PersistentVolumeClaim" => Changed::Claim(key),
            "PersistentVolume" => Changed::Volume(key.name, object),
            "Namespace" => Changed::Namespace(key.name, object),
            "Service" => Changed::Service(key, object),
            "EndpointSlice" => Changed::Slice(key, object),
            "NetworkPolicy" => Changed::NetworkPolicy(key, object),
            kind => {
                if kind == "ConfigMap" {
                    let prepull = object.as_deref().map_or(Ok(None), Prepull::of);
                    let prepull = prepull.unwrap_or_else(|why| {
                        warn!(config_map = %key, why, "images to have are not taken over");
                        None
                    });
                    let change = Changed::Prepull(key.clone(), prepull.map(Box::new));
                    if changes.send(change).await.is_err() {
                        return;
                    }
                }
                Changed::Keys(key.namespace, source_of(kind, &key.name))
            }
        };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}
