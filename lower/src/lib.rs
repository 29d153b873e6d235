//! From Kubernetes' objects to what a node is sent, and from what it reports to
//! the Pod's status: the only place that knows both [`api`] and [`wire`].
//!
//! The master lowers what its store holds; a node lowers the manifests of its
//! own folder. Pure. An item's generation is made from the item's own bytes, so it depends
//! on stored objects alone: a restarted master lowers the same set again, and
//! a write that means nothing to the node (a status, a label of the owner)
//! changes nothing. Validation has been through every object already; what it
//! lets pass and a node cannot express is an error here, never a guess.

// One long manifest in a test.
#![cfg_attr(test, recursion_limit = "256")]

mod claim;
mod container;
mod health;
pub mod network;
pub mod node;
mod raise;
mod status;
mod volume;

use std::collections::BTreeSet;

use api::Value;
use api::images::ImageRecords;
use api::view::{self, ConfigMapView, PodSpec, PodView, SecretView};
use wire::Uid;
use wire::pod::{
    ContainerV1, DnsPolicyV1, DnsV1, DownwardItemV1, EnvValueV1, HostAliasV1, KeysV1, NamespacesV1,
    PodSecurityV1, PodV1, ProjectionV1, RestartPolicyV1, SourceV1, VolumeSourceV1, VolumeV1,
};
use wire::set::{BodyV1, ItemV1, NodeConfigV1};
use wire::status::PhaseV1;

pub use claim::{Claimed, Claims, claim_names, claimed};
pub use raise::raise;
pub use status::pod_status;

/// Where Services and pods have their names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Longest host name of Linux.
const HOSTNAME_BYTES_MAX: usize = 64;
/// Seconds a pod gets to stop where it does not say.
const DEFAULT_GRACE_S: u32 = 30;

/// Why an object cannot be sent to a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
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
    /// A probe or hook that says nothing a node can do.
    #[error("spec.containers[{container}].{field}: no handler that nodes have")]
    Handler {
        /// The container.
        container: String,
        /// `livenessProbe`, `lifecycle.preStop`, …
        field: &'static str,
    },
    /// A port by a name that the container does not give.
    #[error("spec.containers[{container}]: no port is named {port:?}")]
    Port {
        /// The container.
        container: String,
        /// The name.
        port: String,
    },
    /// A file of a volume that shows nothing a node knows.
    #[error("spec.volumes[{volume}]: {path:?} shows neither a field nor a resource")]
    Downward {
        /// The volume.
        volume: String,
        /// The file.
        path: String,
    },
}

/// A pod as a node is sent it, and what it needs beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoweredPod {
    /// The pod's item.
    pub item: ItemV1,
    /// ConfigMaps and Secrets of the pod's namespace that it names.
    pub sources: BTreeSet<SourceV1>,
}

/// Lowers a Pod.
///
/// # Errors
/// What validation lets pass and a node cannot express.
pub fn pod(object: &Value) -> Result<LoweredPod, LowerError> {
    pod_with(object, &Claims::new())
}

/// Lowers a Pod whose claims are these; one that is not among them keeps it waiting.
///
/// # Errors
/// What validation lets pass and a node cannot express.
pub fn pod_with(object: &Value, claims: &Claims) -> Result<LoweredPod, LowerError> {
    let read: PodView =
        view::read(object).map_err(|err| LowerError::Unreadable(err.to_string()))?;
    let records = ImageRecords::of(object);
    let mut sources = BTreeSet::new();
    let (spec, metadata) = (&read.spec, &read.metadata);
    let volumes = spec
        .volumes
        .iter()
        .map(|volume| match &volume.persistent_volume_claim {
            Some(claim) => Ok(VolumeV1 {
                name: volume.name.clone(),
                source: claim::lower(&metadata.namespace, claim, claims),
            }),
            None => volume::lower(volume, &mut sources),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut containers = |list: &[view::Container]| {
        let lower = |one| container::lower(one, spec, &records, &mut sources);
        list.iter().map(lower).collect::<Result<Vec<_>, _>>()
    };
    let init_containers = containers(&spec.init_containers)?;
    let ephemeral_containers = containers(&spec.ephemeral_containers)?;
    let containers = containers(&spec.containers)?;
    let pull_secrets: Vec<String> =
        spec.image_pull_secrets.iter().map(|secret| secret.name.clone()).collect();
    sources.extend(pull_secrets.iter().cloned().map(SourceV1::Secret));
    let grace = spec.termination_grace_period_seconds;
    let all = [&init_containers, &containers, &ephemeral_containers];
    let shows_annotations =
        all.into_iter().flatten().any(env_shows_annotations) || files_show_annotations(&volumes);
    let pod = PodV1 {
        uid: uid(&metadata.uid)?,
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        labels: pairs(&metadata.labels),
        // Annotations can be large, and only the downward API reads them on a node.
        annotations: if shows_annotations { pairs(&metadata.annotations) } else { Vec::new() },
        hostname: hostname(&read),
        fqdn: fqdn(&read),
        service_account: spec.service_account_name.clone(),
        init_containers,
        containers,
        ephemeral_containers,
        volumes,
        namespaces: NamespacesV1 {
            host_network: spec.host_network,
            host_pid: spec.host_pid,
            host_ipc: spec.host_ipc,
            share_process: spec.share_process_namespace,
        },
        security: security(spec)?,
        host_aliases: spec
            .host_aliases
            .iter()
            .map(|alias| HostAliasV1 { ip: alias.ip.clone(), names: alias.hostnames.clone() })
            .collect(),
        dns: dns(spec),
        is_gated: object["spec"]["readinessGates"]
            .as_array()
            .is_some_and(|gates| !gates.is_empty()),
        service_links: spec.enable_service_links.unwrap_or(true),
        pull_secrets,
        priority: i32::try_from(spec.priority.unwrap_or(0)).unwrap_or(0),
        active_deadline_s: spec.active_deadline_seconds.map(|s| u32::try_from(s).unwrap_or(0)),
        restart_policy: restart_policy(&spec.restart_policy),
        termination_grace_s: seconds(grace),
        ended: match object["status"]["phase"].as_str() {
            Some("Succeeded") => Some(PhaseV1::Succeeded),
            Some("Failed") => Some(PhaseV1::Failed),
            _ => None,
        },
        deletion_grace_s: metadata
            .deletion_timestamp
            .as_ref()
            .map(|_| seconds(metadata.deletion_grace_period_seconds.or(grace))),
        ext: Vec::new(),
    };
    Ok(LoweredPod { item: item(pod.uid, BodyV1::Pod(Box::new(pod))), sources })
}

/// Lowers a ConfigMap or Secret.
///
/// # Errors
/// The object does not read as one.
pub fn keys(object: &Value, source: SourceV1) -> Result<ItemV1, LowerError> {
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
///
/// # Errors
/// The uid is not one.
pub fn node_config(node: &str, config: NodeConfigV1) -> Result<ItemV1, LowerError> {
    Ok(item(uid(node)?, BodyV1::Node(config)))
}

/// An item whose generation names its bytes.
fn item(uid: Uid, body: BodyV1) -> ItemV1 {
    let bytes = postcard::to_stdvec(&body).expect("a body is plain data");
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let generation = u64::from_le_bytes(digest.as_ref()[..8].try_into().expect("8 of 32 bytes"));
    ItemV1 { uid, generation, body }
}

/// The 16 bytes of a UUID.
///
/// # Errors
/// It is not one.
pub fn uid(text: &str) -> Result<Uid, LowerError> {
    let uuid = uuid::Uuid::parse_str(text).map_err(|_| LowerError::Uid(text.to_owned()))?;
    Ok(*uuid.as_bytes())
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn env_shows_annotations(container: &ContainerV1) -> bool {
    container.env.iter().any(|env| is_annotation(&env.value))
}

fn files_show_annotations(volumes: &[VolumeV1]) -> bool {
    let any = |items: &[DownwardItemV1]| items.iter().any(|item| is_annotation(&item.value));
    volumes.iter().any(|volume| match &volume.source {
        VolumeSourceV1::Downward { items, .. } => any(items),
        VolumeSourceV1::Projected { sources, .. } => sources
            .iter()
            .any(|source| matches!(source, ProjectionV1::Downward(items) if any(items))),
        _ => false,
    })
}

fn is_annotation(value: &EnvValueV1) -> bool {
    matches!(value, EnvValueV1::Field(path) if path.starts_with("metadata.annotations"))
}

/// Seconds of grace; 0 and below mean the shortest there is.
fn seconds(grace: Option<i64>) -> u32 {
    grace.map_or(DEFAULT_GRACE_S, |grace| u32::try_from(grace.max(0)).unwrap_or(u32::MAX))
}

/// The name in the cluster's DNS, for a pod in a subdomain.
fn fqdn(pod: &PodView) -> String {
    let (spec, namespace) = (&pod.spec, &pod.metadata.namespace);
    if spec.subdomain.is_empty() {
        return String::new();
    }
    format!("{}.{}.{namespace}.svc.{CLUSTER_DOMAIN}", short_hostname(pod), spec.subdomain)
}

/// The host name, which is the whole name where the pod asks for that.
fn hostname(pod: &PodView) -> String {
    let whole = fqdn(pod);
    let is_asked = pod.spec.set_hostname_as_fqdn && !whole.is_empty();
    if is_asked && whole.len() <= HOSTNAME_BYTES_MAX { whole } else { short_hostname(pod) }
}

/// The pod's own name for its host, else its name up to the 63 characters of a label.
fn short_hostname(pod: &PodView) -> String {
    if !pod.spec.hostname.is_empty() {
        return pod.spec.hostname.clone();
    }
    let name: String = pod.metadata.name.chars().take(63).collect();
    name.trim_end_matches(['-', '.']).to_owned()
}

fn restart_policy(text: &str) -> RestartPolicyV1 {
    match text {
        "OnFailure" => RestartPolicyV1::OnFailure,
        "Never" => RestartPolicyV1::Never,
        _ => RestartPolicyV1::Always,
    }
}

fn security(spec: &PodSpec) -> Result<PodSecurityV1, LowerError> {
    let context = &spec.security_context;
    let group = |id: i64| {
        u32::try_from(id).map_err(|_| LowerError::Range("securityContext.supplementalGroups", id))
    };
    Ok(PodSecurityV1 {
        fs_group: context
            .fs_group
            .map(|id| {
                u32::try_from(id).map_err(|_| LowerError::Range("securityContext.fsGroup", id))
            })
            .transpose()?,
        fs_group_on_root_mismatch: context.fs_group_change_policy.as_deref()
            == Some("OnRootMismatch"),
        supplemental_groups: context
            .supplemental_groups
            .iter()
            .map(|id| group(*id))
            .collect::<Result<_, _>>()?,
        sysctls: context
            .sysctls
            .iter()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
    })
}

fn dns(spec: &PodSpec) -> DnsV1 {
    let config = &spec.dns_config;
    DnsV1 {
        policy: match spec.dns_policy.as_str() {
            "None" => DnsPolicyV1::None,
            "Default" => DnsPolicyV1::Default,
            // On the host's network the host's resolvers come with it.
            "ClusterFirst" if spec.host_network => DnsPolicyV1::Default,
            _ => DnsPolicyV1::ClusterFirst,
        },
        nameservers: config.nameservers.clone(),
        searches: config.searches.clone(),
        options: config
            .options
            .iter()
            .map(|option| match &option.value {
                Some(value) => format!("{}:{value}", option.name),
                None => option.name.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wire::pod::{HandlerV1, HostPathKindV1, PropagationV1, RuntimeV1, SeccompV1};

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
        assert_eq!((pod.deletion_grace_s, pod.ended), (None, None));
        assert_eq!(pod.containers[0].resources.memory_limit_bytes, 64 << 20);
        assert_eq!(pod.containers[0].resources.cpu_limit_millis, 250);
        assert_eq!(pod.containers[0].runtime, RuntimeV1::Oci);
        assert!(pod.annotations.is_empty(), "nothing on the node reads them");
    }

    #[test]
    fn what_is_said_of_life_and_safety_reaches_the_node() {
        let mut object = manifest();
        let spec = &mut object["spec"];
        spec["initContainers"] = json!([
            {"name": "proxy", "image": "p", "restartPolicy": "Always"},
            {"name": "first", "image": "f"},
        ]);
        spec["hostNetwork"] = json!(true);
        spec["dnsPolicy"] = json!("ClusterFirst");
        spec["dnsConfig"] =
            json!({"options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]});
        spec["imagePullSecrets"] = json!([{"name": "registry"}]);
        spec["activeDeadlineSeconds"] = json!(60);
        spec["securityContext"] = json!({"fsGroup": 5, "seccompProfile": {"type": "Unconfined"}});
        spec["volumes"] = json!([
            {"name": "v", "hostPath": {"path": "/dev/ttyS0", "type": "CharDevice"}},
            {"name": "all", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token"}},
                {"configMap": {"name": "extra"}},
                {"downwardAPI": {"items": [
                    {"path": "a", "fieldRef": {"fieldPath": "metadata.annotations"}}]}},
            ]}},
        ]);
        let main = &mut spec["containers"][0];
        main["ports"] = json!([{"containerPort": 80, "name": "http"}]);
        main["livenessProbe"] =
            json!({"httpGet": {"port": "http", "path": "ok"}, "periodSeconds": 5});
        main["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 2}}, "stopSignal": "SIGINT"});
        main["volumeMounts"] = json!([
            {"name": "v", "mountPath": "/v", "subPathExpr": "$(A)", "mountPropagation": "Bidirectional"}]);
        main["resources"] = json!({"limits": {"pinnace.io/gpio": "1", "ephemeral-storage": "1Mi"}});

        let lowered = pod(&object).unwrap();
        let named = |name: &str| SourceV1::Secret(name.to_owned());
        assert!(lowered.sources.contains(&named("registry")));
        assert!(lowered.sources.contains(&SourceV1::ConfigMap("extra".to_owned())));
        let pod = body(&lowered);
        assert_eq!(pod.init_containers[0].restart_policy, Some(RestartPolicyV1::Always));
        assert_eq!(pod.init_containers[1].restart_policy, None);
        assert!(pod.namespaces.host_network && !pod.namespaces.host_pid);
        assert_eq!(pod.dns.policy, DnsPolicyV1::Default, "the host's network has the host's");
        assert_eq!(pod.dns.options, ["ndots:2", "rotate"]);
        assert_eq!((pod.active_deadline_s, pod.security.fs_group), (Some(60), Some(5)));
        assert!(!pod.annotations.is_empty(), "a file shows them");
        let main = &pod.containers[0];
        let probe = main.probes.liveness.as_ref().unwrap();
        let HandlerV1::Http { port, path, .. } = &probe.handler else { panic!("{probe:?}") };
        assert_eq!((*port, path.as_str()), (80, "/ok"));
        assert_eq!((probe.period_s, probe.timeout_s, probe.failure_threshold), (5, 1, 1));
        assert_eq!(main.lifecycle.pre_stop, Some(HandlerV1::Sleep(2)));
        assert_eq!(main.lifecycle.stop_signal, Some(2));
        let mount = &main.mounts[0];
        assert_eq!((mount.sub_path.as_str(), mount.sub_path_expanded), ("$(A)", true));
        assert_eq!(mount.propagation, PropagationV1::Bidirectional);
        assert_eq!(main.devices, [("pinnace.io/gpio".to_owned(), 1)]);
        assert_eq!(main.resources.disk_limit_bytes, 1 << 20);
        assert_eq!(main.security.seccomp, SeccompV1::Unconfined);
        assert!(matches!(
            &pod.volumes[0].source,
            VolumeSourceV1::HostPath { kind: HostPathKindV1::CharDevice, .. }
        ));
        assert!(matches!(
            &pod.volumes[1].source,
            VolumeSourceV1::Projected { sources, default_mode: 0o644 } if sources.len() == 3
        ));
        object["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"] = json!("nope");
        let error = super::pod(&object).unwrap_err().to_string();
        assert_eq!(error, "spec.containers[main]: no port is named \"nope\"");
    }

    #[test]
    fn a_pod_in_a_subdomain_has_a_whole_name() {
        let names = |host: &str, as_fqdn: bool| {
            let mut object = manifest();
            object["spec"]["hostname"] = json!(host);
            object["spec"]["subdomain"] = json!("shop");
            object["spec"]["setHostnameAsFQDN"] = json!(as_fqdn);
            let lowered = pod(&object).unwrap();
            let pod = body(&lowered);
            (pod.hostname.clone(), pod.fqdn.clone())
        };
        let whole = "a.shop.default.svc.cluster.local".to_owned();
        assert_eq!(names("a", false), ("a".to_owned(), whole.clone()));
        assert_eq!(names("a", true), (whole.clone(), whole));
        let long = "b".repeat(40);
        assert_eq!(names(&long, true).0, long, "longer than Linux takes");
        let lowered = pod(&manifest()).unwrap();
        assert_eq!(body(&lowered).fqdn, "");
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
