//! The columns of `kubectl get`, as its users know them, for every kind.
//!
//! Source of columns and texts: `k8s.io/kubernetes/pkg/printers/internalversion`.

use api::resource::Resource;
use api::selector::LabelSelector;
use api::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{at, meta, text};
use crate::{pod_text, service_text};

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// As it stands in the head.
    pub name: &'static str,
    /// `string` or `integer`.
    pub kind: &'static str,
    /// 0 always shown, 1 with `-o wide`.
    pub priority: u8,
    /// A sentence.
    pub description: &'static str,
}

/// How objects of a kind become rows.
#[derive(Debug)]
pub struct Printer {
    /// The columns.
    pub columns: &'static [Column],
    /// One cell a column, of an object at a time.
    pub cells: fn(&Value, Timestamp) -> Value,
}

/// What kubectl shows where there is nothing.
pub(crate) const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";
const UNSET: &str = "<unset>";

const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", priority: 0, description }
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", priority: 0, description }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", priority: 1, description }
}

const NAME: Column = column("Name", "Name must be unique within a namespace.");
const AGE: Column = column("Age", "Time since the object was created.");
const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
const IMAGES: Column = wide("Images", "Images referenced by each container in the template.");
const SELECTOR: Column = wide("Selector", "Label selector of the pods.");

/// Pods.
pub const POD: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
        column("Status", "The aggregate status of the containers in this pod."),
        column("Restarts", "How often the containers of this pod were started again."),
        AGE,
        wide("IP", "Address of the pod in the cluster."),
        wide("Node", "Node the pod is bound to."),
        wide("Nominated Node", "Node the pod is to run on once others made room."),
        wide("Readiness Gates", "Further conditions of readiness."),
    ],
    cells: |pod, now| {
        let shown = pod_text::pod_text(pod, now);
        json!([
            meta(pod, "name"),
            shown.ready,
            shown.status,
            shown.restarts,
            age(pod, now),
            or_none(pod_ip(pod)),
            or_none(text(pod, &["spec", "nodeName"])),
            or_none(text(pod, &["status", "nominatedNodeName"])),
            pod_text::readiness_gates(pod),
        ])
    },
};

const DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Number of pods that are ready, of those wanted."),
        number("Up-to-date", "Number of pods that have the newest template."),
        number("Available", "Number of pods that are ready for minReadySeconds."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |deployment, now| {
        let count = |key| int(deployment, &["status", key]);
        let wanted = int(deployment, &["spec", "replicas"]);
        let (names, images) = template_containers(deployment);
        json!([
            meta(deployment, "name"),
            format!("{}/{wanted}", count("readyReplicas")),
            count("updatedReplicas"),
            count("availableReplicas"),
            age(deployment, now),
            names,
            images,
            selector(deployment),
        ])
    },
};

const REPLICA_SET: Printer = Printer {
    columns: &[
        NAME,
        number("Desired", "Number of pods wanted."),
        number("Current", "Number of pods that exist."),
        number("Ready", "Number of pods that are ready."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |set, now| {
        let (names, images) = template_containers(set);
        json!([
            meta(set, "name"),
            int(set, &["spec", "replicas"]),
            int(set, &["status", "replicas"]),
            int(set, &["status", "readyReplicas"]),
            age(set, now),
            names,
            images,
            selector(set),
        ])
    },
};

/// Nodes.
pub const NODE: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the node takes pods."),
        column("Roles", "The roles of the node."),
        AGE,
        column("Version", "Version of the agent on the node."),
        wide("Internal-IP", "Address of the node among nodes."),
        wide("External-IP", "Address of the node from outside."),
        wide("OS-Image", "Operating system of the node."),
        wide("Kernel-Version", "Kernel of the node."),
        wide("Container-Runtime", "What runs containers on the node."),
    ],
    cells: |node, now| {
        let info = |key| or(text(node, &["status", "nodeInfo", key]), UNKNOWN);
        json!([
            meta(node, "name"),
            node_status(node),
            node_roles(node),
            age(node, now),
            text(node, &["status", "nodeInfo", "kubeletVersion"]),
            node_address(node, "InternalIP"),
            node_address(node, "ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ])
    },
};

/// Events.
pub const EVENT: Printer = Printer {
    columns: &[
        column("Last Seen", "Time since it last happened."),
        column("Type", "Normal or Warning."),
        column("Reason", "A word for what happened."),
        column("Object", "What it happened to."),
        wide("Subobject", "Which part of it."),
        wide("Source", "Who reports it."),
        column("Message", "What happened."),
        wide("First Seen", "Time since it first happened."),
        wide("Count", "How often it happened."),
        wide("Name", "Name of the event."),
    ],
    cells: |event, now| {
        let involved = |key| text(event, &["involvedObject", key]);
        let time = |keys: &[&[&str]]| {
            keys.iter()
                .map(|path| text(event, path))
                .find(|text| !text.is_empty())
                .map_or_else(|| UNKNOWN.to_owned(), |text| since(text, now))
        };
        let last = [&["series", "lastObservedTime"][..], &["lastTimestamp"], &["eventTime"]];
        let first = [&["firstTimestamp"][..], &["eventTime"]];
        let object = format!("{}/{}", involved("kind").to_lowercase(), involved("name"));
        let component =
            or(text(event, &["source", "component"]), text(event, &["reportingComponent"]));
        let host = text(event, &["source", "host"]);
        let source =
            if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
        let count = match int(event, &["series", "count"]) {
            0 => int(event, &["count"]).max(1),
            count => count,
        };
        json!([
            time(&last),
            text(event, &["type"]),
            text(event, &["reason"]),
            object,
            involved("fieldPath"),
            source,
            text(event, &["message"]).trim(),
            time(&first),
            count,
            meta(event, "name"),
        ])
    },
};

const CONFIG_MAP: Printer = Printer {
    columns: &[NAME, column("Data", "Number of keys."), AGE],
    cells: |map, now| {
        let keys = size(&map["data"]) + size(&map["binaryData"]);
        json!([meta(map, "name"), keys.to_string(), age(map, now)])
    },
};

const SECRET: Printer = Printer {
    columns: &[NAME, column("Type", "What it is for."), column("Data", "Number of keys."), AGE],
    cells: |secret, now| {
        let keys = size(&secret["data"]).to_string();
        json!([meta(secret, "name"), text(secret, &["type"]), keys, age(secret, now)])
    },
};

const SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, column("Secrets", "Number of secrets it may mount."), AGE],
    cells: |account, now| {
        let secrets = account["secrets"].as_array().map_or(0, Vec::len);
        json!([meta(account, "name"), secrets.to_string(), age(account, now)])
    },
};

/// Namespaces.
pub const NAMESPACE: Printer = Printer {
    columns: &[NAME, column("Status", "Active or Terminating."), AGE],
    cells: |namespace, now| {
        json!([meta(namespace, "name"), text(namespace, &["status", "phase"]), age(namespace, now)])
    },
};

const RUNTIME_CLASS: Printer = Printer {
    columns: &[NAME, column("Handler", "What runs containers of this class on a node."), AGE],
    cells: |object, now| {
        json!([meta(object, "name"), text(object, &["handler"]), age(object, now)])
    },
};

const PERSISTENT_VOLUME: Printer = Printer {
    columns: &[
        NAME,
        column("Capacity", "How much the volume holds."),
        column("Access Modes", "How the volume may be mounted."),
        column("Reclaim Policy", "What becomes of the volume once its claim is gone."),
        column("Status", "Where the volume is in its life."),
        column("Claim", "The claim the volume is bound to."),
        column("StorageClass", "The class of the volume."),
        column("VolumeAttributesClass", "The class of the volume's attributes."),
        column("Reason", "Why the volume is in this state."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ],
    cells: |volume, now| {
        let claim = match text(volume, &["spec", "claimRef", "name"]) {
            "" => String::new(),
            name => format!("{}/{name}", text(volume, &["spec", "claimRef", "namespace"])),
        };
        json!([
            meta(volume, "name"),
            text(volume, &["spec", "capacity", "storage"]),
            access_modes(&volume["spec"]["accessModes"]),
            text(volume, &["spec", "persistentVolumeReclaimPolicy"]),
            terminating_or(volume, text(volume, &["status", "phase"])),
            claim,
            text(volume, &["spec", "storageClassName"]),
            or(text(volume, &["spec", "volumeAttributesClassName"]), UNSET),
            text(volume, &["status", "reason"]),
            age(volume, now),
            or(text(volume, &["spec", "volumeMode"]), UNSET),
        ])
    },
};

const PERSISTENT_VOLUME_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the claim has a volume."),
        column("Volume", "The volume the claim is bound to."),
        column("Capacity", "How much the volume holds."),
        column("Access Modes", "How the volume may be mounted."),
        column("StorageClass", "The class the claim asks for."),
        column("VolumeAttributesClass", "The class of the volume's attributes."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ],
    cells: |claim, now| {
        let volume = text(claim, &["spec", "volumeName"]);
        // Before it is bound nothing is known of the volume's size.
        let (capacity, modes) = if volume.is_empty() {
            ("", String::new())
        } else {
            let capacity = text(claim, &["status", "capacity", "storage"]);
            (capacity, access_modes(&claim["status"]["accessModes"]))
        };
        json!([
            meta(claim, "name"),
            terminating_or(claim, text(claim, &["status", "phase"])),
            volume,
            capacity,
            modes,
            text(claim, &["spec", "storageClassName"]),
            or(text(claim, &["spec", "volumeAttributesClassName"]), UNSET),
            age(claim, now),
            or(text(claim, &["spec", "volumeMode"]), UNSET),
        ])
    },
};

const STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Provisioner", "Who makes volumes of this class."),
        column("ReclaimPolicy", "What becomes of a volume once its claim is gone."),
        column("VolumeBindingMode", "When a claim gets its volume."),
        column("AllowVolumeExpansion", "Whether volumes may grow."),
        AGE,
    ],
    cells: |class, now| {
        let name = meta(class, "name");
        let shown = if api::storage::is_default_class(class) {
            format!("{name} (default)")
        } else {
            name.to_owned()
        };
        json!([
            shown,
            text(class, &["provisioner"]),
            text(class, &["reclaimPolicy"]),
            text(class, &["volumeBindingMode"]),
            (class["allowVolumeExpansion"] == true).to_string(),
            age(class, now),
        ])
    },
};

const SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "How the service is reached."),
        column("Cluster-IP", "The address of the service inside the cluster."),
        column("External-IP", "The addresses of the service outside of the cluster."),
        column("Port(s)", "The ports of the service, and those of nodes behind a colon."),
        AGE,
        wide("Selector", "Labels of the pods behind the service."),
    ],
    cells: service_text::service,
};

const ENDPOINTS: Printer = Printer {
    columns: &[NAME, column("Endpoints", "Addresses and ports behind the service."), AGE],
    cells: service_text::endpoints,
};

const ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("AddressType", "What the addresses are."),
        column("Ports", "Ports that every address in this slice has."),
        column("Endpoints", "Addresses in this slice."),
        AGE,
    ],
    cells: service_text::slice,
};

const NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, column("Pod-Selector", "Which pods the policy is about."), AGE],
    cells: |policy, now| {
        let shown = match LabelSelector::from_object(&policy["spec"]["podSelector"]) {
            Ok(selector) if selector.is_empty() => NONE.to_owned(),
            Ok(selector) => selector.to_string(),
            Err(_) => "<error>".to_owned(),
        };
        json!([meta(policy, "name"), shown, age(policy, now)])
    },
};

const LEASE: Printer = Printer {
    columns: &[NAME, column("Holder", "Who holds it."), AGE],
    cells: |lease, now| {
        json!([meta(lease, "name"), text(lease, &["spec", "holderIdentity"]), age(lease, now)])
    },
};

const OTHER: Printer = Printer {
    columns: &[NAME, AGE],
    cells: |object, now| json!([meta(object, "name"), age(object, now)]),
};

/// How objects of `resource` are printed.
#[must_use]
pub fn printer(resource: &Resource) -> &'static Printer {
    match (resource.group, resource.kind) {
        ("", "Pod") => &POD,
        ("", "Node") => &NODE,
        ("", "Event") => &EVENT,
        ("", "ConfigMap") => &CONFIG_MAP,
        ("", "Secret") => &SECRET,
        ("", "ServiceAccount") => &SERVICE_ACCOUNT,
        ("", "Namespace") => &NAMESPACE,
        ("apps", "Deployment") => &DEPLOYMENT,
        ("apps", "ReplicaSet") => &REPLICA_SET,
        ("coordination.k8s.io", "Lease") => &LEASE,
        ("node.k8s.io", "RuntimeClass") => &RUNTIME_CLASS,
        ("", "PersistentVolume") => &PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => &PERSISTENT_VOLUME_CLAIM,
        ("storage.k8s.io", "StorageClass") => &STORAGE_CLASS,
        ("", "Service") => &SERVICE,
        ("", "Endpoints") => &ENDPOINTS,
        ("discovery.k8s.io", "EndpointSlice") => &ENDPOINT_SLICE,
        ("networking.k8s.io", "NetworkPolicy") => &NETWORK_POLICY,
        _ => &OTHER,
    }
}

/// Time since a point in time, in kubectl's short form.
pub(crate) fn since(timestamp: &str, now: Timestamp) -> String {
    match time::parse(timestamp) {
        Some(then) => time::human_duration(time::seconds_between(then, now)),
        None => UNKNOWN.to_owned(),
    }
}

pub(crate) fn age(object: &Value, now: Timestamp) -> String {
    since(meta(object, "creationTimestamp"), now)
}

fn int(object: &Value, path: &[&str]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

fn size(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

pub(crate) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

fn or_none(text: &str) -> &str {
    or(text, NONE)
}

fn pod_ip(pod: &Value) -> &str {
    match text(pod, &["status", "podIP"]) {
        "" => pod["status"]["podIPs"][0]["ip"].as_str().unwrap_or_default(),
        ip => ip,
    }
}

/// Names and images of the containers in a template.
fn template_containers(object: &Value) -> (String, String) {
    let containers = at(object, &["spec", "template", "spec", "containers"]);
    let containers = containers.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let joined = |key: &str| {
        let texts: Vec<&str> = containers.iter().filter_map(|c| c[key].as_str()).collect();
        texts.join(",")
    };
    (joined("name"), joined("image"))
}

fn selector(object: &Value) -> String {
    match LabelSelector::from_object(&object["spec"]["selector"]) {
        Ok(selector) if selector.is_empty() => NONE.to_owned(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// `RWO,ROX` as kubectl shows access modes, each once and in its order.
fn access_modes(modes: &Value) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| modes.as_array().is_some_and(|all| all.iter().any(|one| one == mode));
    let shown: Vec<&str> =
        SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect();
    shown.join(",")
}

fn terminating_or<'a>(object: &Value, phase: &'a str) -> &'a str {
    if crate::object::is_deleting(object) { "Terminating" } else { phase }
}

fn node_status(node: &Value) -> String {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut status = match ready {
        Some(ready) if ready["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn node_address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let addresses = node["status"]["addresses"].as_array();
    let found = addresses.into_iter().flatten().find(|address| address["type"] == kind);
    found.and_then(|address| address["address"].as_str()).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for resource in api::resource::all() {
            let printer = printer(resource);
            for object in [json!({}), json!({"spec": 1, "status": [], "metadata": null})] {
                let cells = (printer.cells)(&object, Timestamp::UNIX_EPOCH);
                let n = cells.as_array().unwrap().len();
                assert_eq!(n, printer.columns.len(), "{}", resource.kind);
            }
        }
    }

    #[test]
    fn durations_are_kubectls() {
        let table = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ];
        for (seconds, expected) in table {
            assert_eq!(time::human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn nodes_say_their_state_and_roles() {
        let node = json!({
            "metadata": {"name": "n", "labels": {
                "node-role.kubernetes.io/edge": "", "kubernetes.io/role": "cam"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                       "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        });
        let cells = (NODE.cells)(&node, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[1], "Ready,SchedulingDisabled");
        assert_eq!(cells[2], "cam,edge");
        assert_eq!((&cells[5], &cells[6]), (&json!("10.0.0.1"), &json!("<none>")));
        assert_eq!(node_status(&json!({})), "Unknown");
    }
}
