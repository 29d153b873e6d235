//! What must hold beyond the object itself: the namespace exists and stays, a
//! node writes only what is its own, and nothing a pod asks for is silently
//! dropped.

use api::pod_security;
use api::resource::{self, Resource};
use api::storage;
use serde_json::{Map, Value, json};
use store::{Expect, Write};

use super::{Api, Item, Target, Written};
use crate::authorize;
use crate::identity::Identity;
use crate::object::{self, Encoded};
use crate::options::{ListOptions, WriteOptions};
use crate::status::Status;

impl Api {
    /// A new object needs a namespace that exists and is not going away. Returns
    /// it; null for an object that is in none.
    pub(super) fn admit_namespace(&self, target: &Target<'_>) -> Result<Value, Status> {
        if !target.resource.namespaced {
            return Ok(Value::Null);
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
        Ok(namespace)
    }

    /// The namespace of an object that is there already; null where it is gone.
    pub(super) fn namespace_of(&self, target: &Target<'_>) -> Result<Value, Status> {
        let namespaces = resource::by_kind("", "Namespace").expect("in the table of resources");
        let namespace = Target::object(namespaces, "", target.namespace);
        Ok(self.read(&namespace)?.map_or(Value::Null, |(namespace, _)| namespace))
    }

    /// A pod's runtime class must exist, as upstream's admission has it.
    pub(super) fn admit_runtime_class(
        &self,
        target: &Target<'_>,
        object: &Value,
    ) -> Result<(), Status> {
        let name = object::text(object, &["spec", "runtimeClassName"]);
        if (target.resource.group, target.resource.kind) != ("", "Pod") || name.is_empty() {
            return Ok(());
        }
        let classes = resource::by_kind("node.k8s.io", "RuntimeClass").expect("in the table");
        if self.read(&Target::object(classes, "", name))?.is_some() {
            return Ok(());
        }
        let problem = format!("pod rejected: RuntimeClass \"{name}\" not found");
        Err(Status::forbidden(target.resource, object::meta(object, "name"), &problem))
    }

    /// A pod runs as a ServiceAccount that exists, shows its token unless pod or
    /// account say otherwise, and without pull secrets of its own gets those of the
    /// account; so controllers, nodes and users all see the same. As upstream's
    /// admission has it.
    pub(super) fn admit_service_account(
        &self,
        target: &Target<'_>,
        pod: &mut Value,
    ) -> Result<(), Status> {
        // The node has a mirror's pod from its own folder, as it is there.
        let is_mirror = api::meta::annotation(pod, api::meta::MIRROR_ANNOTATION).is_some();
        if (target.resource.group, target.resource.kind) != ("", "Pod") || is_mirror {
            return Ok(());
        }
        let name = ["serviceAccountName", "serviceAccount"]
            .map(|field| object::text(pod, &["spec", field]))
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or(DEFAULT_ACCOUNT)
            .to_owned();
        let accounts = resource::by_kind("", "ServiceAccount").expect("in the table of resources");
        let Some((account, _)) = self.read(&Target::object(accounts, target.namespace, &name))?
        else {
            let problem = format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                target.namespace
            );
            return Err(Status::forbidden(target.resource, target.name, &problem));
        };
        // What has no spec is refused for that.
        let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
            return Ok(());
        };
        spec.insert("serviceAccountName".to_owned(), json!(name));
        // The old name of the field, which upstream keeps beside it.
        spec.insert("serviceAccount".to_owned(), json!(name));
        let automount = "automountServiceAccountToken";
        let of_pod = spec.get(automount).and_then(Value::as_bool);
        let wants = of_pod.or_else(|| account[automount].as_bool()).unwrap_or(true);
        if wants {
            mount_token(spec);
        }
        let own = spec.get("imagePullSecrets").and_then(Value::as_array);
        let secrets = &account["imagePullSecrets"];
        if own.is_none_or(Vec::is_empty)
            && secrets.as_array().is_some_and(|secrets| !secrets.is_empty())
        {
            spec.insert("imagePullSecrets".to_owned(), secrets.clone());
        }
        Ok(())
    }

    /// A claim that names no class gets the default one, as Kubernetes' admission does.
    pub(super) fn give_storage_class(
        &self,
        target: &Target<'_>,
        claim: &mut Value,
    ) -> Result<(), Status> {
        let is_claim =
            (target.resource.group, target.resource.kind) == ("", "PersistentVolumeClaim");
        if !is_claim || storage::class_of(claim).is_some() {
            return Ok(());
        }
        let resource = storage_classes();
        let who = Identity::master("pinnace:apiserver");
        let mut pages = self.list_pages(&who, resource, "", &ListOptions::default())?;
        let mut classes = Vec::new();
        while let Some(items) = pages.next_page()? {
            classes.extend(items.iter().map(Item::value));
        }
        if let Some(name) = storage::default_class(&classes)
            && let Some(spec) = claim["spec"].as_object_mut()
        {
            spec.insert("storageClassName".to_owned(), name.into());
        }
        Ok(())
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

/// The resource of storage classes.
pub(super) fn storage_classes() -> &'static Resource {
    resource::by_kind("storage.k8s.io", "StorageClass").expect("in the table of resources")
}

/// The account of pods that name none.
const DEFAULT_ACCOUNT: &str = "default";
/// Where containers find the token of their pod, its namespace, and who vouches for
/// the API server.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How the volume of these is named, but for a random end.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// How long the token is asked for, in seconds: upstream's number, by which such
/// tokens are told from others.
const TOKEN_S: u32 = 3607;

/// Gives every container that mounts nothing there the volume with the token.
fn mount_token(spec: &mut Map<String, Value>) {
    let named = |volume: &&Value| {
        volume["name"].as_str().is_some_and(|name| name.starts_with(TOKEN_VOLUME))
    };
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let own = volumes.into_iter().find(named).and_then(|volume| volume["name"].as_str());
    let (is_there, name) = match own {
        Some(name) => (true, name.to_owned()),
        None => (false, api::names::generate_name(TOKEN_VOLUME, super::create::random())),
    };
    let mut is_mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().all(|mount| mount["mountPath"] != TOKEN_FOLDER) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_FOLDER}));
                is_mounted = true;
            }
        }
    }
    if is_there || !is_mounted {
        return;
    }
    let volume = json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_S, "path": "token"}},
        {"configMap": {
            "name": api::meta::ROOT_CA_NAME,
            "items": [{"key": api::meta::ROOT_CA_KEY, "path": api::meta::ROOT_CA_KEY}],
        }},
        {"downwardAPI": {"items": [{
            "path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
        }]}},
    ]}});
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}

/// Refuses a pod that asks for more than the Pod Security Standards of its
/// namespace allow; returns what its author, or a template's, is warned about.
pub(super) fn admit_pod_security(
    namespace: &Value,
    target: &Target<'_>,
    object: &Value,
) -> Result<Vec<String>, Status> {
    let is_pod = (target.resource.group, target.resource.kind) == ("", "Pod");
    let template = &object["spec"]["template"];
    if !is_pod && !template.is_object() {
        return Ok(Vec::new());
    }
    let pod = if is_pod { object } else { template };
    let level = pod_security::level(namespace, "enforce");
    if is_pod && let Some(why) = pod_security::violations(level, pod) {
        let problem = format!("violates PodSecurity \"{level}:latest\": {why}");
        return Err(Status::forbidden(target.resource, target.name, &problem));
    }
    let level = pod_security::level(namespace, "warn");
    let warning = pod_security::violations(level, pod)
        .map(|why| format!("would violate PodSecurity \"{level}:latest\": {why}"));
    Ok(warning.into_iter().collect())
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
        ("", "Pod") if old.is_none() && target.subresource.is_empty() => {
            match not_a_mirror(node, new) {
                Some(problem) => forbid(problem),
                None => Ok(()),
            }
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

/// Why a node may not create this pod: it may only show static pods of its own,
/// and by those it gets at nothing of the cluster.
fn not_a_mirror(node: &str, pod: &Value) -> Option<String> {
    if api::meta::annotation(pod, api::meta::MIRROR_ANNOTATION).is_none() {
        return Some(format!("node \"{node}\" can only create mirror pods"));
    }
    if object::text(pod, &["spec", "nodeName"]) != node {
        return Some(format!(
            "node \"{node}\" can only create pods with spec.nodeName set to itself"
        ));
    }
    let volumes = pod["spec"]["volumes"].as_array();
    if volumes.into_iter().flatten().any(|volume| !volume["persistentVolumeClaim"].is_null()) {
        return Some(format!(
            "node \"{node}\" can not create pods that reference persistentvolumeclaims"
        ));
    }
    let spec = &pod["spec"];
    let names = |field: &str| !object::text(spec, &[field]).is_empty();
    if names("serviceAccountName") || names("serviceAccount") || authorize::wants_token(spec) {
        return Some(format!(
            "node \"{node}\" can not create pods that reference a service account"
        ));
    }
    ["secrets", "configmaps"]
        .into_iter()
        .find(|kind| authorize::refers_to_any(&pod["spec"], kind))
        .map(|kind| format!("node \"{node}\" can not create pods that reference {kind}"))
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
            "name": DEFAULT_ACCOUNT, "namespace": namespace, "uid": super::create::new_uid(),
            "creationTimestamp": object::now_text(),
        },
    });
    let encoded = Encoded::new(&account);
    let render = move |revision| encoded.render(revision);
    Write::put_with(accounts.key(namespace, "default"), Expect::Any, render)
}
