//! [`controllers::cluster::Cluster`] over the in-process API server: what
//! controllers do passes the rules that hold for every client.

use api::{ObjectKey, Value, meta};
use apiserver::{
    Api, FieldValidation, Identity, ListOptions, Reason, Status, Target, WatchEvent, WatchOptions,
    WriteOptions,
};
use controllers::cluster::{
    Change, ChangeStream, Cluster, ClusterError, DeleteOptions, Kind, Named, Propagation, WatchItem,
};
use futures::StreamExt;
use serde_json::json;

/// The API, as one component of the master uses it.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    api: Api,
    identity: Identity,
    options: WriteOptions,
}

impl Component {
    /// The API, for the component `name`, which also manages the fields it writes.
    pub(crate) fn new(api: Api, name: &str) -> Self {
        let mut options = WriteOptions::by(name);
        options.field_validation = FieldValidation::Ignore;
        Self { api, identity: Identity::master(name), options }
    }
}

/// What a failure means to a controller.
fn error(resource: Kind, key: &ObjectKey, status: Status) -> ClusterError {
    let what = Named::new(resource, key);
    match status.reason {
        // A namespace that is missing is not the object that is missing.
        Reason::NotFound if status.kind == resource.plural || status.kind.is_empty() => {
            ClusterError::NotFound(what)
        }
        Reason::AlreadyExists => ClusterError::AlreadyExists(what),
        Reason::Conflict => ClusterError::Conflict(what),
        Reason::Expired => ClusterError::Expired(0),
        Reason::Forbidden if status.causes.iter().any(|c| c.reason == "NamespaceTerminating") => {
            ClusterError::NamespaceTerminating(what)
        }
        Reason::Forbidden | Reason::Unauthorized => {
            ClusterError::Forbidden { what, message: status.message }
        }
        Reason::Invalid
        | Reason::BadRequest
        | Reason::NotFound
        | Reason::MethodNotAllowed
        | Reason::NotAcceptable
        | Reason::UnsupportedMediaType
        | Reason::RequestEntityTooLarge => ClusterError::Invalid { what, message: status.message },
        Reason::TooManyRequests
        | Reason::InternalError
        | Reason::ServiceUnavailable
        | Reason::Timeout => ClusterError::Unavailable(status.message),
    }
}

fn target<'a>(resource: Kind, key: &'a ObjectKey) -> Target<'a> {
    Target::object(resource, &key.namespace, &key.name)
}

impl Cluster for Component {
    async fn get(&self, resource: Kind, key: &ObjectKey) -> Result<Option<Value>, ClusterError> {
        match self.api.get_value(&self.identity, &target(resource, key)) {
            Ok(value) => Ok(Some(value)),
            Err(status) if status.reason == Reason::NotFound => Ok(None),
            Err(status) => Err(error(resource, key, status)),
        }
    }

    async fn list(
        &self,
        resource: Kind,
        namespace: Option<&str>,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> Result<u64, ClusterError> {
        let failed = |status| error(resource, &ObjectKey::default(), status);
        let options = ListOptions::default();
        let mut pages = self
            .api
            .list_pages(&self.identity, resource, namespace.unwrap_or_default(), &options)
            .map_err(failed)?;
        while let Some(items) = pages.next_page().map_err(failed)? {
            items.iter().for_each(|item| each(item.value()));
        }
        Ok(pages.revision())
    }

    async fn create(
        &self,
        resource: Kind,
        namespace: &str,
        object: Value,
    ) -> Result<Value, ClusterError> {
        let key = ObjectKey::new(namespace, meta::name(&object));
        let written =
            self.api.create(&self.identity, resource, namespace, object, &self.options).await;
        written.map(|written| written.value()).map_err(|status| error(resource, &key, status))
    }

    async fn update(&self, resource: Kind, object: Value) -> Result<Value, ClusterError> {
        let key = meta::object_key(&object);
        let target = target(resource, &key);
        let written = self.api.update(&self.identity, &target, object, &self.options).await;
        written.map(|written| written.value()).map_err(|status| error(resource, &key, status))
    }

    async fn update_status(&self, resource: Kind, object: Value) -> Result<Value, ClusterError> {
        let key = meta::object_key(&object);
        let target = target(resource, &key).subresource("status");
        let written = self.api.update_status(&self.identity, &target, object, &self.options).await;
        written.map(|written| written.value()).map_err(|status| error(resource, &key, status))
    }

    async fn finalize_namespace(&self, object: Value) -> Result<(), ClusterError> {
        let resource = controllers::cluster::kinds::namespaces();
        let key = meta::object_key(&object);
        let target = target(resource, &key).subresource("finalize");
        let written = self.api.update(&self.identity, &target, object, &self.options).await;
        written.map(|_| ()).map_err(|status| error(resource, &key, status))
    }

    async fn delete(
        &self,
        resource: Kind,
        key: &ObjectKey,
        options: DeleteOptions,
    ) -> Result<(), ClusterError> {
        let options = apiserver::DeleteOptions {
            grace_period_seconds: options.grace_seconds.map(i64::from),
            propagation: options.propagation.map(|propagation| match propagation {
                Propagation::Background => apiserver::Propagation::Background,
                Propagation::Foreground => apiserver::Propagation::Foreground,
                Propagation::Orphan => apiserver::Propagation::Orphan,
            }),
            uid: options.uid,
            resource_version: options.revision,
            dry_run: false,
        };
        let deleted = self.api.delete(&self.identity, &target(resource, key), &options).await;
        deleted.map(|_| ()).map_err(|status| error(resource, key, status))
    }

    async fn bind(&self, pod: &ObjectKey, uid: &str, node: &str) -> Result<(), ClusterError> {
        let resource = controllers::cluster::kinds::pods();
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let bound =
            self.api.bind(&self.identity, &target(resource, pod), binding, &self.options).await;
        bound.map_err(|status| error(resource, pod, status))
    }

    async fn watch(&self, resource: Kind, from: u64) -> Result<ChangeStream, ClusterError> {
        let failed = move |status| error(resource, &ObjectKey::default(), status);
        // Revision 0 would replay what is there; a caller that has listed an empty
        // store goes on from the first change instead.
        let options = WatchOptions {
            resource_version: Some(from.max(1)),
            bookmarks: true,
            ..WatchOptions::default()
        };
        let watch = self.api.watch(&self.identity, resource, "", &options).map_err(failed)?;
        let changes = futures::stream::unfold(watch, move |mut watch| async move {
            let event = watch.next().await?;
            Some((item(event).map_err(failed), watch))
        });
        Ok(changes.boxed())
    }
}

fn item(event: WatchEvent) -> Result<WatchItem, Status> {
    let change = |item: &apiserver::Item, is_there: bool| {
        let object = item.value();
        let key = meta::object_key(&object);
        let object = is_there.then_some(object);
        WatchItem::Change(Change { revision: item.revision, key, object })
    };
    match event {
        WatchEvent::Added(item) | WatchEvent::Modified { item, .. } => Ok(change(&item, true)),
        WatchEvent::Deleted(item) => Ok(change(&item, false)),
        WatchEvent::Bookmark { revision, .. } => Ok(WatchItem::Progress(revision)),
        WatchEvent::Error(status) => Err(status),
    }
}
