//! Turns what a node says about itself into its Node object. Pure.

use api::{Value, meta};
use jiff::Timestamp;
use serde_json::{Map, json};
use wire::node::NodeInfoV1;

/// Labels that follow from what a node is; they are the node's to write.
fn labels(name: &str, info: &NodeInfoV1) -> Vec<(&'static str, String)> {
    let flag = |flag: bool| flag.to_string();
    let mut labels = vec![
        ("kubernetes.io/hostname", name.to_owned()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("kubernetes.io/arch", info.arch.clone()),
        ("pinnace.io/runtime-oci", flag(info.oci)),
        ("pinnace.io/runtime-wasm", flag(info.wasm.is_some())),
    ];
    if !info.arch_variant.is_empty() {
        labels.push(("pinnace.io/arch-variant", info.arch_variant.clone()));
    }
    if !info.board.is_empty() {
        labels.push(("pinnace.io/board", info.board.clone()));
    }
    if let Some(wasm) = &info.wasm {
        let engine = if wasm.target.starts_with("pulley") { "pulley" } else { "native" };
        labels.push(("pinnace.io/wasm-engine", engine.to_owned()));
    }
    labels
}

/// Brings a Node's labels up to date; whether anything changed.
pub fn set_labels(node: &mut Value, info: &NodeInfoV1) -> bool {
    let name = meta::name(node).to_owned();
    let before = node["metadata"]["labels"].clone();
    let metadata = meta::metadata_mut(node);
    let stored = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
    if let Some(stored) = stored.as_object_mut() {
        for (key, value) in labels(&name, info) {
            stored.insert(key.to_owned(), json!(value));
        }
    }
    node["metadata"]["labels"] != before
}

/// Says where the node's folder for volumes is; whether that is new.
pub fn set_storage_folder(node: &mut Value, info: &NodeInfoV1) -> bool {
    let known = meta::annotation(node, api::storage::STORAGE_FOLDER).unwrap_or_default();
    if known == info.storage_folder || info.storage_folder.is_empty() {
        return false;
    }
    meta::set_annotation(node, api::storage::STORAGE_FOLDER, &info.storage_folder);
    true
}

/// Says where the node listens for the others; whether that is new.
pub fn set_tunnel_port(node: &mut Value, info: &NodeInfoV1) -> bool {
    let port = info.tunnel_port.to_string();
    let known = meta::annotation(node, crate::network::TUNNEL_PORT).unwrap_or("0");
    if known == port {
        return false;
    }
    meta::set_annotation(node, crate::network::TUNNEL_PORT, &port);
    true
}

/// The Node's status after a hello at `now`.
#[must_use]
pub fn status(node: &Value, info: &NodeInfoV1, now: Timestamp) -> Value {
    let old = &node["status"];
    let mut status = old.as_object().cloned().unwrap_or_default();
    let mut resources = json!({
        "cpu": cpu(info.cpu_millis),
        "memory": format!("{}Ki", info.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", info.disk_bytes / 1024),
        "pods": info.pods_max.to_string(),
    });
    for (name, count) in &info.resources {
        // Of a name without a domain the node would say more than what is its own.
        if name.contains('/') {
            resources[name] = json!(count.to_string());
        }
    }
    status.insert("capacity".to_owned(), resources.clone());
    status.insert("allocatable".to_owned(), resources);
    status.insert(
        "nodeInfo".to_owned(),
        json!({
            "architecture": info.arch,
            "bootID": info.kernel_boot_id,
            "containerRuntimeVersion": format!("pinnace://{}", info.agent_version),
            "kernelVersion": info.kernel,
            "kubeProxyVersion": format!("v{}", info.agent_version),
            "kubeletVersion": format!("v{}", info.agent_version),
            "machineID": info.machine_id,
            "operatingSystem": "linux",
            "osImage": info.os_image,
            "systemUUID": info.machine_id,
        }),
    );
    let mut addresses = Vec::new();
    if !info.address.is_empty() {
        addresses.push(json!({"type": "InternalIP", "address": info.address}));
    }
    let others =
        info.more_addresses.iter().take(wire::node::ADDRESSES_MAX).map(ToString::to_string);
    for address in others.filter(|address| *address != info.address) {
        addresses.push(json!({"type": "InternalIP", "address": address}));
    }
    addresses.push(json!({"type": "Hostname", "address": info.hostname}));
    status.insert("addresses".to_owned(), Value::Array(addresses));
    let images: Vec<Value> = info
        .images
        .iter()
        .take(wire::node::IMAGES_MAX)
        .map(|image| json!({"names": image.names, "sizeBytes": image.size_bytes}))
        .collect();
    status.insert("images".to_owned(), Value::Array(images));
    status.insert("conditions".to_owned(), Value::Array(conditions(old, info, now)));
    Value::Object(status)
}

/// Cores, whole where they are.
fn cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// What a node can be short of, with Kubernetes' reasons for `True` and `False`.
const PRESSURES: [(&str, &str, &str); 3] = [
    ("MemoryPressure", "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
    ("DiskPressure", "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
    ("PIDPressure", "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
];

/// `Ready`, and what the agent found wrong on the board, one condition each.
fn conditions(old: &Value, info: &NodeInfoV1, now: Timestamp) -> Vec<Value> {
    let empty = Vec::new();
    let old = old["conditions"].as_array().unwrap_or(&empty);
    let ready = ("Ready", "True", "AgentReady", "the agent is connected");
    let found = |kind: &str| {
        info.findings.iter().find(|(other, _)| other == kind).map(|(_, message)| message.as_str())
    };
    let pressure = PRESSURES.map(|(kind, short, enough)| match found(kind) {
        Some(message) => (kind, "True", short, message),
        None => (kind, "False", enough, "the agent reports no pressure"),
    });
    let is_pressure = |kind: &str| PRESSURES.iter().any(|(other, ..)| *other == kind);
    let others = info
        .findings
        .iter()
        .filter(|(kind, _)| !is_pressure(kind))
        .map(|(kind, message)| (kind.as_str(), "True", "Found", message.as_str()));
    pressure
        .into_iter()
        .chain(others)
        .chain([ready])
        .map(|(kind, status, reason, message)| {
            let before = old.iter().find(|condition| condition["type"] == kind);
            let since = before
                .filter(|before| before["status"] == status)
                .map(|before| before["lastTransitionTime"].clone())
                .filter(|time| !time.is_null())
                .unwrap_or_else(|| json!(api::time::rfc3339(now)));
            // The heartbeat lives in the node's Lease; here it would be a write a beat.
            let heartbeat = before
                .filter(|before| before["status"] == status && before["reason"] == reason)
                .map(|before| before["lastHeartbeatTime"].clone())
                .filter(|time| !time.is_null())
                .unwrap_or_else(|| json!(api::time::rfc3339(now)));
            json!({
                "type": kind,
                "status": status,
                "lastHeartbeatTime": heartbeat,
                "lastTransitionTime": since,
                "reason": reason,
                "message": message,
            })
        })
        .collect()
}

/// Whether the Node's `Ready` condition is true.
#[must_use]
pub fn is_ready(node: &Value) -> bool {
    node["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

#[cfg(test)]
mod tests {
    use wire::node::WasmTargetV1;

    use super::*;

    fn info() -> NodeInfoV1 {
        NodeInfoV1 {
            agent_version: "0.1.0".to_owned(),
            arch: "arm64".to_owned(),
            arch_variant: "v8".to_owned(),
            hostname: "pi".to_owned(),
            address: "10.0.0.7".to_owned(),
            cpu_millis: 4000,
            memory_bytes: 512 << 20,
            pods_max: 110,
            oci: true,
            wasm: Some(WasmTargetV1 {
                target: "aarch64-unknown-linux-gnu".to_owned(),
                ..WasmTargetV1::default()
            }),
            findings: vec![(
                "MemoryCgroupMissing".to_owned(),
                "add cgroup_enable=memory".to_owned(),
            )],
            ..NodeInfoV1::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_second_hello_changes_nothing() {
        let mut node = json!({"metadata": {"name": "pi", "labels": {"zone": "north"}}});
        assert!(set_labels(&mut node, &info()));
        assert_eq!(node["metadata"]["labels"]["zone"], "north");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/arch"], "arm64");
        assert!(!set_labels(&mut node, &info()));
        node["status"] = status(&node, &info(), at(10));
        assert!(is_ready(&node));
        assert_eq!(node["status"]["capacity"]["cpu"], "4");
        assert_eq!(status(&node, &info(), at(99)), node["status"]);
    }

    #[test]
    fn pressure_is_one_condition_with_kubernetes_reasons() {
        let mut node = json!({"metadata": {"name": "pi"}});
        let short = NodeInfoV1 {
            findings: vec![("MemoryPressure".to_owned(), "50Mi are left".to_owned())],
            ..info()
        };
        for (info, status_of, reason) in [
            (info(), "False", "KubeletHasSufficientMemory"),
            (short, "True", "KubeletHasInsufficientMemory"),
            (info(), "False", "KubeletHasSufficientMemory"),
        ] {
            node["status"] = status(&node, &info, at(10));
            let all = node["status"]["conditions"].as_array().unwrap();
            let found: Vec<_> = all.iter().filter(|c| c["type"] == "MemoryPressure").collect();
            assert_eq!(found.len(), 1);
            assert_eq!(
                (&found[0]["status"], &found[0]["reason"]),
                (&json!(status_of), &json!(reason))
            );
        }
    }

    #[test]
    fn findings_are_conditions_and_go_when_they_are_mended() {
        let mut node = json!({"metadata": {"name": "pi"}});
        node["status"] = status(&node, &info(), at(10));
        let has = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().unwrap();
            conditions.iter().any(|c| c["type"] == "MemoryCgroupMissing")
        };
        assert!(has(&node));
        let mended = NodeInfoV1 { findings: Vec::new(), ..info() };
        node["status"] = status(&node, &mended, at(20));
        assert!(!has(&node));
    }
}
