//! What exists in every cluster before anybody asks for it.

use api::{resource, storage};
use serde_json::json;

use super::{Api, Target};
use crate::identity::Identity;
use crate::options::{ListOptions, WriteOptions};
use crate::status::{Reason, Status};

/// Namespaces every client expects.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// What runs containers on nodes.
const RUNTIME_CLASSES: &[&str] = &["oci", "wasm"];

impl Api {
    /// Makes the runtime and storage classes that nodes have and the namespaces that every
    /// cluster has, with their accounts, where they are missing. The master calls
    /// it before it serves.
    ///
    /// # Errors
    /// What the store says.
    pub async fn bootstrap(&self) -> Result<(), Status> {
        self.repair_reservations().await?;
        let who = Identity::master("pinnace:master");
        let namespaces = resource::by_kind("", "Namespace").expect("in the table of resources");
        let options = WriteOptions::by("pinnace-master");
        for name in NAMESPACES {
            if self.read(&Target::object(namespaces, "", name))?.is_some() {
                continue;
            }
            let object = json!({"metadata": {"name": name}});
            match self.create(&who, namespaces, "", object, &options).await {
                Ok(_) => {}
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
        }
        let classes = resource::by_kind("node.k8s.io", "RuntimeClass").expect("in the table");
        for name in RUNTIME_CLASSES {
            if self.read(&Target::object(classes, "", name))?.is_some() {
                continue;
            }
            let object = json!({"metadata": {"name": name}, "handler": name});
            match self.create(&who, classes, "", object, &options).await {
                Ok(_) => {}
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
        }
        self.bootstrap_storage_class(&who, &options).await
    }

    /// The class whose volumes are folders on nodes. It is the default one, unless
    /// the cluster has another.
    async fn bootstrap_storage_class(
        &self,
        who: &Identity,
        options: &WriteOptions,
    ) -> Result<(), Status> {
        let classes = super::admission::storage_classes();
        if self.read(&Target::object(classes, "", storage::LOCAL_PATH_CLASS))?.is_some() {
            return Ok(());
        }
        let mut has_default = false;
        let mut pages = self.list_pages(who, classes, "", &ListOptions::default())?;
        while let Some(items) = pages.next_page()? {
            has_default |= items.iter().any(|item| storage::is_default_class(&item.value()));
        }
        let object = json!({
            "metadata": {
                "name": storage::LOCAL_PATH_CLASS,
                "annotations": {(storage::DEFAULT_CLASS): (!has_default).to_string()},
            },
            "provisioner": storage::LOCAL_PATH,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        match self.create(who, classes, "", object, options).await {
            Err(status) if status.reason != Reason::AlreadyExists => Err(status),
            _ => Ok(()),
        }
    }
}
