//! What exists in every cluster before anybody asks for it.

use api::resource;
use serde_json::json;

use super::{Api, Target};
use crate::identity::Identity;
use crate::options::WriteOptions;
use crate::status::{Reason, Status};

/// Namespaces every client expects.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// What runs containers on nodes.
const RUNTIME_CLASSES: &[&str] = &["oci", "wasm"];

impl Api {
    /// Makes the runtime classes that nodes have and the namespaces that every
    /// cluster has, with their accounts, where they are missing. The master calls
    /// it before it serves.
    ///
    /// # Errors
    /// What the store says.
    pub async fn bootstrap(&self) -> Result<(), Status> {
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
        Ok(())
    }
}
