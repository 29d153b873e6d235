//! From Kubernetes' objects to what a node is sent: the only place that knows
//! both [`api`] and [`wire`].
//!
//! Pure. An item's generation is made from the item's own bytes, so it depends
//! on stored objects alone: a restarted master lowers the same set again, and
//! a write that means nothing to the node (a status, a label of the owner)
//! changes nothing. Validation has been through every object already; what it
//! lets pass and a node cannot express is an error here, never a guess.

use std::collections::BTreeSet;

use api::Value;
use api::view::{
    self, ConfigMapView, Container, EnvFrom, EnvVar, KeyToPath, PodSecurityContext, PodView,
    SecretView, Volume,
};
use controllers::image::ImageRecords;
use controllers::projection::Runtime;
use wire::Uid;
use wire::pod::{
    ContainerV1, EnvFromV1, EnvV1, EnvValueV1, KeyPathV1, KeysV1, MountV1, PodV1, PortV1,
    ProtocolV1, PullPolicyV1, ResourcesV1, RestartPolicyV1, RuntimeV1, SecurityV1, SourceV1,
    VolumeSourceV1, VolumeV1,
};
use wire::set::{BodyV1, ItemV1, NodeConfigV1};

/// Permission bits of a volume's files where nothing else is said.
const DEFAULT_MODE: u32 = 0o644;
/// Seconds a pod gets to stop where it does not say.
const DEFAULT_GRACE_S: u32 = 30;

/// Why an object cannot be sent to a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LowerError {
    /// The object does not read as what it is.
    #[error("it does not read: {0}")]
    Unreadable(String),
    /// The uid is not one.
    #[error("metadata.uid: {0:?} is not a UUID")]
    Uid(String),
    /// An environment variable from a source that nodes do not have.
    #[error("spec.containers[{container}].env[{name}]: a source that nodes do not have yet")]
    Env {
        /// The container.
        container: String,
        /// The variable.
        name: String,
    },
    /// A number that does not fit.
    #[error("{0}: {1} is out of range")]
    Range(&'static str, i64),
}

/// A pod as a node is sent it, and what it needs beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoweredPod {
    pub(crate) item: ItemV1,
    /// ConfigMaps and Secrets of the pod's namespace that it names.
    pub(crate) sources: BTreeSet<SourceV1>,
}

/// Lowers a Pod.
pub(crate) fn pod(object: &Value) -> Result<LoweredPod, LowerError> {
    let read: PodView =
        view::read(object).map_err(|err| LowerError::Unreadable(err.to_string()))?;
    let records = ImageRecords::of(object);
    let mut sources = BTreeSet::new();
    let spec = &read.spec;
    let volumes = spec.volumes.iter().map(|volume| lower_volume(volume, &mut sources)).collect();
    let containers = spec
        .containers
        .iter()
        .map(|container| {
            let class = spec.runtime_class_name.as_deref();
            lower_container(container, &spec.security_context, class, &records, &mut sources)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let metadata = &read.metadata;
    let grace = spec.termination_grace_period_seconds;
    let deletion = metadata
        .deletion_timestamp
        .as_ref()
        .map(|_| seconds(metadata.deletion_grace_period_seconds.or(grace)));
    let pod = PodV1 {
        uid: uid(&metadata.uid)?,
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        labels: pairs(&metadata.labels),
        // Annotations can be large, and only the downward API reads them on a node.
        annotations: if names_annotations(&containers) {
            pairs(&metadata.annotations)
        } else {
            Vec::new()
        },
        hostname: hostname(&read),
        service_account: spec.service_account_name.clone(),
        containers,
        volumes,
        restart_policy: match spec.restart_policy.as_str() {
            "OnFailure" => RestartPolicyV1::OnFailure,
            "Never" => RestartPolicyV1::Never,
            _ => RestartPolicyV1::Always,
        },
        termination_grace_s: seconds(grace),
        deletion_grace_s: deletion,
        ext: Vec::new(),
    };
    Ok(LoweredPod { item: item(pod.uid, BodyV1::Pod(Box::new(pod))), sources })
}

/// Lowers a ConfigMap or Secret.
pub(crate) fn keys(object: &Value, source: SourceV1) -> Result<ItemV1, LowerError> {
    let unreadable = |err: serde_json::Error| LowerError::Unreadable(err.to_string());
    let (metadata, files) = match &source {
        SourceV1::ConfigMap(_) => {
            let read: ConfigMapView = view::read(object).map_err(unreadable)?;
            let files = read.files();
            (read.metadata, files)
        }
        SourceV1::Secret(_) => {
            let read: SecretView = view::read(object).map_err(unreadable)?;
            let files = read.files();
            (read.metadata, files)
        }
    };
    let body = KeysV1 {
        namespace: metadata.namespace,
        source,
        data: files.into_iter().collect(),
        ext: Vec::new(),
    };
    Ok(item(uid(&metadata.uid)?, BodyV1::Keys(body)))
}

/// The item that configures a node itself; `node` is the Node's uid.
pub(crate) fn node_config(node: &str, config: NodeConfigV1) -> Result<ItemV1, LowerError> {
    Ok(item(uid(node)?, BodyV1::Node(config)))
}

/// An item whose generation names its bytes.
fn item(uid: Uid, body: BodyV1) -> ItemV1 {
    let bytes = postcard::to_stdvec(&body).expect("a body is plain data");
    let digest = dispatch::sha256(&bytes);
    let generation = u64::from_le_bytes(digest[..8].try_into().expect("8 of 32 bytes"));
    ItemV1 { uid, generation, body }
}

/// The 16 bytes of a UUID.
pub(crate) fn uid(text: &str) -> Result<Uid, LowerError> {
    let uuid = uuid::Uuid::parse_str(text).map_err(|_| LowerError::Uid(text.to_owned()))?;
    Ok(*uuid.as_bytes())
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn names_annotations(containers: &[ContainerV1]) -> bool {
    containers.iter().flat_map(|container| &container.env).any(|env| {
        matches!(&env.value, EnvValueV1::Field(path) if path.starts_with("metadata.annotations"))
    })
}

/// Seconds of grace; 0 and below mean the shortest there is.
fn seconds(grace: Option<i64>) -> u32 {
    grace.map_or(DEFAULT_GRACE_S, |grace| u32::try_from(grace.max(0)).unwrap_or(u32::MAX))
}

/// The host name: the pod's own, else its name up to the 63 characters of a label.
fn hostname(pod: &PodView) -> String {
    if !pod.spec.hostname.is_empty() {
        return pod.spec.hostname.clone();
    }
    let name: String = pod.metadata.name.chars().take(63).collect();
    name.trim_end_matches(['-', '.']).to_owned()
}

fn lower_volume(volume: &Volume, sources: &mut BTreeSet<SourceV1>) -> VolumeV1 {
    let mut keys = |source: SourceV1, items: &[KeyToPath], mode: Option<u32>, optional: bool| {
        sources.insert(source.clone());
        VolumeSourceV1::Keys {
            source,
            items: items
                .iter()
                .map(|item| KeyPathV1 {
                    key: item.key.clone(),
                    path: item.path.clone(),
                    mode: item.mode,
                })
                .collect(),
            default_mode: mode.unwrap_or(DEFAULT_MODE),
            optional,
        }
    };
    let source = if let Some(map) = &volume.config_map {
        let source = SourceV1::ConfigMap(map.name.clone());
        keys(source, &map.items, map.default_mode, map.optional)
    } else if let Some(secret) = &volume.secret {
        let source = SourceV1::Secret(secret.secret_name.clone());
        keys(source, &secret.items, secret.default_mode, secret.optional)
    } else if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.map_or(0, api::quantity::Quantity::units);
        VolumeSourceV1::EmptyDir {
            memory: empty.medium == "Memory",
            limit_bytes: u64::try_from(limit).unwrap_or(0),
        }
    } else {
        // A kind that nodes do not have yet: admission has warned that it stays empty.
        VolumeSourceV1::EmptyDir { memory: false, limit_bytes: 0 }
    };
    VolumeV1 { name: volume.name.clone(), source }
}

fn lower_container(
    container: &Container,
    pod: &PodSecurityContext,
    class: Option<&str>,
    records: &ImageRecords,
    sources: &mut BTreeSet<SourceV1>,
) -> Result<ContainerV1, LowerError> {
    let record = records.get(container);
    let runtime = match (class, record.map(|record| record.runtime)) {
        (Some("wasm"), _) | (None, Some(Runtime::Wasm)) => RuntimeV1::Wasm,
        _ => RuntimeV1::Oci,
    };
    // What the image is known to be counts only for the runtime that runs it.
    let digest =
        record.filter(|record| (record.runtime == Runtime::Wasm) == (runtime == RuntimeV1::Wasm));
    let env_from = container
        .env_from
        .iter()
        .filter_map(lower_env_from)
        .inspect(|from| {
            sources.insert(from.source.clone());
        })
        .collect();
    let env = container
        .env
        .iter()
        .map(|env| lower_env(env, &container.name, sources))
        .collect::<Result<_, _>>()?;
    let mounts = container
        .volume_mounts
        .iter()
        .map(|mount| MountV1 {
            volume: mount.name.clone(),
            path: mount.mount_path.clone(),
            sub_path: mount.sub_path.clone(),
            read_only: mount.read_only,
        })
        .collect();
    let ports = container.ports.iter().map(lower_port).collect::<Result<_, _>>()?;
    Ok(ContainerV1 {
        name: container.name.clone(),
        image: container.image.clone(),
        digest: digest.map_or_else(String::new, |record| record.digest.clone()),
        runtime,
        pull_policy: match container.image_pull_policy.as_str() {
            "Always" => PullPolicyV1::Always,
            "Never" => PullPolicyV1::Never,
            _ => PullPolicyV1::IfNotPresent,
        },
        command: container.command.clone(),
        args: container.args.clone(),
        working_dir: container.working_dir.clone(),
        env_from,
        env,
        mounts,
        resources: lower_resources(container),
        security: lower_security(container, pod)?,
        ports,
        ext: Vec::new(),
    })
}

fn lower_env_from(from: &EnvFrom) -> Option<EnvFromV1> {
    let (source, optional) = match (&from.config_map_ref, &from.secret_ref) {
        (Some(map), _) => (SourceV1::ConfigMap(map.name.clone()), map.optional),
        (None, Some(secret)) => (SourceV1::Secret(secret.name.clone()), secret.optional),
        (None, None) => return None,
    };
    Some(EnvFromV1 { prefix: from.prefix.clone(), source, optional })
}

fn lower_env(
    env: &EnvVar,
    container: &str,
    sources: &mut BTreeSet<SourceV1>,
) -> Result<EnvV1, LowerError> {
    let mut key = |source: SourceV1, key: &str, optional: bool| {
        sources.insert(source.clone());
        EnvValueV1::Key { source, key: key.to_owned(), optional }
    };
    let value = match &env.value_from {
        None => EnvValueV1::Literal(env.value.clone()),
        Some(from) => {
            if let Some(map) = &from.config_map_key_ref {
                key(SourceV1::ConfigMap(map.name.clone()), &map.key, map.optional)
            } else if let Some(secret) = &from.secret_key_ref {
                key(SourceV1::Secret(secret.name.clone()), &secret.key, secret.optional)
            } else if let Some(field) = &from.field_ref {
                EnvValueV1::Field(field.field_path.clone())
            } else if let Some(resource) = &from.resource_field_ref {
                let divisor = resource.divisor.millis();
                EnvValueV1::Resource {
                    container: resource.container_name.clone(),
                    resource: resource.resource.clone(),
                    divisor_millis: if divisor <= 0 { 1000 } else { divisor.unsigned_abs() },
                }
            } else {
                let (container, name) = (container.to_owned(), env.name.clone());
                return Err(LowerError::Env { container, name });
            }
        }
    };
    Ok(EnvV1 { name: env.name.clone(), value })
}

fn lower_resources(container: &Container) -> ResourcesV1 {
    let resources = &container.resources;
    let amount = |value: i64| u64::try_from(value).unwrap_or(0);
    let request = |name: &str| resources.requests.get(name).copied().unwrap_or_default();
    let limit = |name: &str| resources.limits.get(name).copied().unwrap_or_default();
    ResourcesV1 {
        cpu_request_millis: amount(request("cpu").millis()),
        cpu_limit_millis: amount(limit("cpu").millis()),
        memory_request_bytes: amount(request("memory").units()),
        memory_limit_bytes: amount(limit("memory").units()),
    }
}

/// The container's own word goes before the pod's.
fn lower_security(
    container: &Container,
    pod: &PodSecurityContext,
) -> Result<SecurityV1, LowerError> {
    let own = &container.security_context;
    let id = |field: &'static str, value: Option<i64>| {
        let id = value.map(|id| u32::try_from(id).map_err(|_| LowerError::Range(field, id)));
        id.transpose()
    };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(SecurityV1 {
        run_as_user: id("securityContext.runAsUser", own.run_as_user.or(pod.run_as_user))?,
        run_as_group: id("securityContext.runAsGroup", own.run_as_group.or(pod.run_as_group))?,
        run_as_non_root: own.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        capabilities_add: capabilities.add,
        capabilities_drop: capabilities.drop,
    })
}

fn lower_port(port: &view::ContainerPort) -> Result<PortV1, LowerError> {
    let number = port.container_port;
    Ok(PortV1 {
        name: port.name.clone(),
        port: u16::try_from(number).map_err(|_| LowerError::Range("containerPort", number))?,
        protocol: match port.protocol.as_str() {
            "UDP" => ProtocolV1::Udp,
            "SCTP" => ProtocolV1::Sctp,
            _ => ProtocolV1::Tcp,
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest() -> Value {
        json!({
            "metadata": {
                "name": "web-1", "namespace": "default",
                "uid": "01020304-0506-0708-090a-0b0c0d0e0f10",
                "labels": {"app": "web"},
                "annotations": {"note": "long"},
            },
            "spec": {
                "nodeName": "pi",
                "restartPolicy": "Always",
                "containers": [{
                    "name": "main", "image": "web:1", "args": ["-v"],
                    "env": [
                        {"name": "A", "value": "1"},
                        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                    ],
                    "envFrom": [{"secretRef": {"name": "s"}}],
                    "resources": {"limits": {"memory": "64Mi", "cpu": "250m"}},
                    "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}],
                    "ports": [{"containerPort": 80}],
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 420}}],
            },
        })
    }

    fn body(lowered: &LoweredPod) -> &PodV1 {
        match &lowered.item.body {
            BodyV1::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_pod_names_is_sent_with_it() {
        let lowered = pod(&manifest()).unwrap();
        let expected = [SourceV1::ConfigMap("c".to_owned()), SourceV1::Secret("s".to_owned())];
        assert_eq!(lowered.sources, BTreeSet::from(expected));
        let pod = body(&lowered);
        assert_eq!(pod.uid[..4], [1, 2, 3, 4]);
        assert_eq!(pod.hostname, "web-1");
        assert_eq!(pod.termination_grace_s, 30);
        assert_eq!(pod.deletion_grace_s, None);
        assert_eq!(pod.containers[0].resources.memory_limit_bytes, 64 << 20);
        assert_eq!(pod.containers[0].resources.cpu_limit_millis, 250);
        assert_eq!(pod.containers[0].runtime, RuntimeV1::Oci);
        assert!(pod.annotations.is_empty(), "nothing on the node reads them");
    }

    #[test]
    fn only_what_the_node_sees_changes_the_generation() {
        let base = pod(&manifest()).unwrap().item.generation;
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut object = manifest();
            change(&mut object);
            pod(&object).unwrap().item.generation != base
        };
        assert!(!changed(&|o| o["status"] = json!({"phase": "Running"})));
        assert!(!changed(&|o| o["metadata"]["resourceVersion"] = json!("9")));
        assert!(!changed(&|o| o["metadata"]["annotations"]["x"] = json!("y")));
        assert!(changed(&|o| o["metadata"]["labels"]["x"] = json!("y")));
        assert!(changed(&|o| o["spec"]["containers"][0]["image"] = json!("web:2")));
        assert!(changed(&|o| o["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn the_runtime_is_the_class_or_what_the_image_is() {
        let runtime = |class: Value, recorded: Option<&str>| {
            let mut object = manifest();
            object["spec"]["runtimeClassName"] = class;
            if let Some(runtime) = recorded {
                let digest = format!("sha256:{}", "a".repeat(64));
                let records = json!({"main": {
                    "image": "web:1", "digest": digest, "runtime": runtime, "platforms": [],
                }});
                object["metadata"]["annotations"]["pinnace.io/images"] = json!(records.to_string());
            }
            let lowered = pod(&object).unwrap();
            let container = &body(&lowered).containers[0];
            (container.runtime, !container.digest.is_empty())
        };
        assert_eq!(runtime(Value::Null, None), (RuntimeV1::Oci, false));
        assert_eq!(runtime(Value::Null, Some("wasm")), (RuntimeV1::Wasm, true));
        assert_eq!(runtime(Value::Null, Some("oci")), (RuntimeV1::Oci, true));
        assert_eq!(runtime(json!("wasm"), None), (RuntimeV1::Wasm, false));
        assert_eq!(runtime(json!("oci"), Some("wasm")), (RuntimeV1::Oci, false));
    }

    #[test]
    fn a_deleted_pod_carries_the_grace_it_was_given() {
        let mut object = manifest();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(3);
        assert_eq!(body(&pod(&object).unwrap()).deletion_grace_s, Some(3));
    }

    #[test]
    fn what_a_node_cannot_express_is_an_error() {
        let mut object = manifest();
        object["metadata"]["uid"] = json!("x");
        assert_eq!(pod(&object), Err(LowerError::Uid("x".to_owned())));
    }

    #[test]
    fn keys_are_bytes() {
        let uid = "01020304-0506-0708-090a-0b0c0d0e0f10";
        let metadata = json!({"name": "s", "namespace": "default", "uid": uid});
        let secret = json!({"metadata": metadata, "data": {"k": "AAE="}});
        let item = keys(&secret, SourceV1::Secret("s".to_owned())).unwrap();
        let BodyV1::Keys(keys) = item.body else { panic!("not keys") };
        assert_eq!(keys.data, [("k".to_owned(), vec![0, 1])]);
    }
}
