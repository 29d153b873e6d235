//! What must hold beyond the object itself: the namespace exists and stays, a
//! node writes only what is its own, and nothing a pod asks for is silently
//! dropped.

use api::resource::{self, Resource};
use serde_json::{Value, json};
use store::{Expect, Write};

use super::{Api, Target, Written};
use crate::identity::Identity;
use crate::object::{self, Encoded};
use crate::options::WriteOptions;
use crate::status::Status;

impl Api {
    /// A new object needs a namespace that exists and is not going away.
    pub(super) fn admit_namespace(&self, target: &Target<'_>) -> Result<(), Status> {
        if !target.resource.namespaced {
            return Ok(());
        }
        let namespaces = resource::by_kind("", "Namespace").expect("in the table of resources");
        let namespace = Target::object(namespaces, "", target.namespace);
        let Some((namespace, _)) = self.read(&namespace)? else {
            return Err(Status::not_found(namespaces, target.namespace));
        };
        let terminating = object::is_deleting(&namespace)
            || object::text(&namespace, &["status", "phase"]) == "Terminating";
        if terminating {
            let (resource, name) = (target.resource, target.name);
            return Err(Status::namespace_terminating(resource, name, target.namespace));
        }
        Ok(())
    }

    /// A pod without pull secrets gets those of its ServiceAccount, as Kubernetes'
    /// admission does; so controllers, nodes and users all see the same ones.
    pub(super) fn give_pull_secrets(&self, target: &Target<'_>, pod: &mut Value) {
        if (target.resource.group, target.resource.kind) != ("", "Pod") {
            return;
        }
        let own = pod["spec"]["imagePullSecrets"].as_array();
        if own.is_some_and(|own| !own.is_empty()) {
            return;
        }
        let name = match object::text(pod, &["spec", "serviceAccountName"]) {
            "" => "default",
            name => name,
        };
        let accounts = resource::by_kind("", "ServiceAccount").expect("in the table of resources");
        let account = Target::object(accounts, target.namespace, name);
        // An account that is missing is another rule's business.
        let Ok(Some((account, _))) = self.read(&account) else { return };
        let secrets = &account["imagePullSecrets"];
        if secrets.as_array().is_some_and(|secrets| !secrets.is_empty())
            && let Some(spec) = pod["spec"].as_object_mut()
        {
            spec.insert("imagePullSecrets".to_owned(), secrets.clone());
        }
    }

    /// Tells, as an Event beside the object, what was accepted but is not honoured.
    pub(super) async fn report_unsupported(
        &self,
        resource: &'static Resource,
        written: &Written,
        warnings: &[String],
    ) {
        if warnings.is_empty() || resource.kind == "Event" {
            return;
        }
        let involved = written.value();
        let namespace = match object::meta(&involved, "namespace") {
            "" => "default",
            namespace => namespace,
        };
        let name = object::meta(&involved, "name");
        let now = object::now_text();
        let event = json!({
            "metadata": {"generateName": format!("{name}."), "namespace": namespace},
            "involvedObject": {
                "kind": resource.kind, "apiVersion": resource.api_version(),
                "namespace": object::meta(&involved, "namespace"), "name": name,
                "uid": object::meta(&involved, "uid"),
                "resourceVersion": object::meta(&involved, "resourceVersion"),
            },
            "reason": "UnsupportedField", "type": "Warning", "count": 1,
            "message": warnings.join("; "),
            "source": {"component": "pinnace-apiserver"},
            "reportingComponent": "pinnace-apiserver", "reportingInstance": "",
            "firstTimestamp": now, "lastTimestamp": now,
        });
        let events = resource::by_kind("", "Event").expect("in the table of resources");
        let who = Identity::master("pinnace:apiserver");
        let options = WriteOptions::by("pinnace-apiserver");
        if let Err(error) = Box::pin(self.create(&who, events, namespace, event, &options)).await {
            tracing::warn!(%error, namespace, name, "cannot record an event");
        }
    }
}

/// A node may write only what is its own, whatever the name in the URL.
pub(super) fn admit_node(
    who: &Identity,
    target: &Target<'_>,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    let Some(node) = who.node_name() else { return Ok(()) };
    let forbid = |problem: String| Err(Status::forbidden(target.resource, target.name, &problem));
    let taints_and_labels =
        |object: &Value| (object["spec"].clone(), object["metadata"]["labels"].clone());
    match (target.resource.group, target.resource.kind) {
        ("", "Node") if object::meta(new, "name") != node => {
            forbid(format!("node \"{node}\" is not allowed to modify node \"{}\"", target.name))
        }
        // Taints and labels steer what is scheduled: they are for the masters to set.
        ("", "Node")
            if target.subresource.is_empty()
                && old.is_some_and(|old| taints_and_labels(old) != taints_and_labels(new)) =>
        {
            forbid(format!("node \"{node}\" is not allowed to modify labels, taints or spec"))
        }
        ("", "Node")
            if target.subresource == "status"
                && old
                    .is_some_and(|old| old["metadata"]["labels"] != new["metadata"]["labels"]) =>
        {
            forbid(format!("node \"{node}\" is not allowed to modify labels"))
        }
        ("", "Pod")
            if target.subresource == "status"
                && old.is_some_and(|old| labels_changed(old, new)) =>
        {
            forbid(format!("node \"{node}\" cannot update labels of pods through status"))
        }
        _ => Ok(()),
    }
}

fn labels_changed(old: &Value, new: &Value) -> bool {
    ["labels", "ownerReferences", "finalizers"]
        .iter()
        .any(|field| old["metadata"].get(*field) != new["metadata"].get(*field))
}

/// The account that every namespace has; made in the transaction that makes the namespace.
pub(super) fn default_account(namespace: &str) -> Write {
    let accounts = resource::by_kind("", "ServiceAccount").expect("in the table of resources");
    let account = json!({
        "kind": "ServiceAccount", "apiVersion": "v1",
        "metadata": {
            "name": "default", "namespace": namespace, "uid": super::create::new_uid(),
            "creationTimestamp": object::now_text(),
        },
    });
    let encoded = Encoded::new(&account);
    let render = move |revision| encoded.render(revision);
    Write::put_with(accounts.key(namespace, "default"), Expect::Any, render)
}
