//! The way back: a Pod object from what a node was sent of it, for whoever asks
//! the node itself.
//!
//! What lowers to a [`PodV1`] is raised again, so that lowering the result gives
//! the same pod. What a node is never told stays unsaid: owners, annotations that
//! nothing on the node reads, tolerations, the names of claims.

mod container;

use api::Value;
use serde_json::{Map, json};
use wire::pod::{
    DnsPolicyV1, DownwardItemV1, EnvValueV1, HostPathKindV1, KeyPathV1, PodV1, ProjectionV1,
    RestartPolicyV1, RuntimeV1, SourceV1, VolumeSourceV1,
};

/// The Pod that `pod` was lowered from, as far as the node `node` knows it, without
/// a status.
#[must_use]
pub fn raise(pod: &PodV1, node: &str) -> Value {
    let mut metadata = json!({
        "name": pod.name, "namespace": pod.namespace,
        "uid": uuid::Uuid::from_bytes(pod.uid).hyphenated().to_string(),
    });
    put_pairs(&mut metadata, "labels", &pod.labels);
    put_pairs(&mut metadata, "annotations", &pod.annotations);
    let mut spec = Map::new();
    let list = |containers| Value::Array(container::all(containers));
    if !pod.volumes.is_empty() {
        let volumes = pod.volumes.iter().map(|one| volume(&one.name, &one.source));
        spec.insert("volumes".to_owned(), volumes.collect());
    }
    if !pod.init_containers.is_empty() {
        spec.insert("initContainers".to_owned(), list(&pod.init_containers));
    }
    spec.insert("containers".to_owned(), list(&pod.containers));
    if !pod.ephemeral_containers.is_empty() {
        spec.insert("ephemeralContainers".to_owned(), list(&pod.ephemeral_containers));
    }
    let mut put = |key: &str, value: Value| spec.insert(key.to_owned(), value);
    put("restartPolicy", json!(restart_policy(pod.restart_policy)));
    put("terminationGracePeriodSeconds", json!(pod.termination_grace_s));
    if let Some(seconds) = pod.active_deadline_s {
        put("activeDeadlineSeconds", json!(seconds));
    }
    put("dnsPolicy", json!(dns_policy(pod.dns.policy)));
    if let Some(config) = dns_config(pod) {
        put("dnsConfig", config);
    }
    if !pod.service_account.is_empty() {
        put("serviceAccountName", json!(pod.service_account));
    }
    put("nodeName", json!(node));
    let namespaces = &pod.namespaces;
    for (key, is_set) in [
        ("hostNetwork", namespaces.host_network),
        ("hostPID", namespaces.host_pid),
        ("hostIPC", namespaces.host_ipc),
        ("shareProcessNamespace", namespaces.share_process),
    ] {
        if is_set {
            put(key, json!(true));
        }
    }
    put("securityContext", security_context(pod));
    if !pod.pull_secrets.is_empty() {
        put(
            "imagePullSecrets",
            pod.pull_secrets.iter().map(|name| json!({"name": name})).collect(),
        );
    }
    put_name(pod, &mut put);
    if !pod.host_aliases.is_empty() {
        let alias = |one: &wire::pod::HostAliasV1| json!({"ip": one.ip, "hostnames": one.names});
        put("hostAliases", pod.host_aliases.iter().map(alias).collect());
    }
    put("priority", json!(pod.priority));
    put("enableServiceLinks", json!(pod.service_links));
    let mut all = pod.all_containers();
    if !pod.containers.is_empty() && all.all(|one| one.runtime == RuntimeV1::Wasm) {
        put("runtimeClassName", json!("wasm"));
    }
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec})
}

/// `hostname`, `subdomain` and `setHostnameAsFQDN`, from what came of them.
fn put_name<T>(pod: &PodV1, put: &mut impl FnMut(&str, Value) -> T) {
    // `<host>.<subdomain>.<namespace>.svc.…`
    let mut labels = pod.fqdn.splitn(3, '.');
    let (host, subdomain) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
    let is_whole = !pod.fqdn.is_empty() && pod.hostname == pod.fqdn;
    let host = if is_whole { host } else { pod.hostname.as_str() };
    let cut: String = pod.name.chars().take(63).collect();
    if host != cut.trim_end_matches(['-', '.']) {
        put("hostname", json!(host));
    }
    if !subdomain.is_empty() {
        put("subdomain", json!(subdomain));
    }
    if is_whole {
        put("setHostnameAsFQDN", json!(true));
    }
}

fn put_pairs(object: &mut Value, key: &str, pairs: &[(String, String)]) {
    if !pairs.is_empty() {
        let map: Map<String, Value> =
            pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        object[key] = Value::Object(map);
    }
}

fn restart_policy(policy: RestartPolicyV1) -> &'static str {
    match policy {
        RestartPolicyV1::Always => "Always",
        RestartPolicyV1::OnFailure => "OnFailure",
        RestartPolicyV1::Never => "Never",
    }
}

fn dns_policy(policy: DnsPolicyV1) -> &'static str {
    match policy {
        DnsPolicyV1::ClusterFirst => "ClusterFirst",
        DnsPolicyV1::Default => "Default",
        DnsPolicyV1::None => "None",
    }
}

fn dns_config(pod: &PodV1) -> Option<Value> {
    let dns = &pod.dns;
    let mut config = Map::new();
    if !dns.nameservers.is_empty() {
        config.insert("nameservers".to_owned(), json!(dns.nameservers));
    }
    if !dns.searches.is_empty() {
        config.insert("searches".to_owned(), json!(dns.searches));
    }
    if !dns.options.is_empty() {
        let option = |text: &String| match text.split_once(':') {
            Some((name, value)) => json!({"name": name, "value": value}),
            None => json!({"name": text}),
        };
        config.insert("options".to_owned(), dns.options.iter().map(option).collect());
    }
    (!config.is_empty()).then_some(Value::Object(config))
}

fn security_context(pod: &PodV1) -> Value {
    let security = &pod.security;
    let mut context = Map::new();
    if let Some(group) = security.fs_group {
        context.insert("fsGroup".to_owned(), json!(group));
    }
    if security.fs_group_on_root_mismatch {
        context.insert("fsGroupChangePolicy".to_owned(), json!("OnRootMismatch"));
    }
    if !security.supplemental_groups.is_empty() {
        context.insert("supplementalGroups".to_owned(), json!(security.supplemental_groups));
    }
    if !security.sysctls.is_empty() {
        let sysctl = |(name, value): &(String, String)| json!({"name": name, "value": value});
        context.insert("sysctls".to_owned(), security.sysctls.iter().map(sysctl).collect());
    }
    Value::Object(context)
}

fn volume(name: &str, source: &VolumeSourceV1) -> Value {
    let (kind, body) = match source {
        VolumeSourceV1::EmptyDir { memory, limit_bytes } => {
            let mut body = Map::new();
            if *memory {
                body.insert("medium".to_owned(), json!("Memory"));
            }
            if *limit_bytes > 0 {
                body.insert("sizeLimit".to_owned(), json!(container::bytes(*limit_bytes)));
            }
            ("emptyDir", Value::Object(body))
        }
        VolumeSourceV1::Keys { source, items, default_mode, optional } => {
            let (kind, key, name) = match source {
                SourceV1::ConfigMap(name) => ("configMap", "name", name),
                SourceV1::Secret(name) => ("secret", "secretName", name),
            };
            let mut body = json!({key: name, "defaultMode": default_mode});
            put_items(&mut body, items, *optional);
            (kind, body)
        }
        VolumeSourceV1::HostPath { path, kind } => {
            ("hostPath", json!({"path": path, "type": host_path_kind(*kind)}))
        }
        VolumeSourceV1::Downward { items, default_mode } => {
            ("downwardAPI", json!({"items": files(items), "defaultMode": default_mode}))
        }
        VolumeSourceV1::Projected { sources, default_mode } => {
            let sources: Vec<Value> = sources.iter().map(projection).collect();
            ("projected", json!({"sources": sources, "defaultMode": default_mode}))
        }
        // The claim's name is not sent to a node, the volume's is.
        VolumeSourceV1::Local { volume, read_only, .. }
        | VolumeSourceV1::Made { volume, read_only } => {
            ("persistentVolumeClaim", json!({"claimName": volume, "readOnly": read_only}))
        }
        VolumeSourceV1::Waits(_) => ("persistentVolumeClaim", json!({"claimName": ""})),
    };
    json!({"name": name, kind: body})
}

fn put_items(body: &mut Value, items: &[KeyPathV1], optional: bool) {
    if !items.is_empty() {
        let item = |item: &KeyPathV1| match item.mode {
            Some(mode) => json!({"key": item.key, "path": item.path, "mode": mode}),
            None => json!({"key": item.key, "path": item.path}),
        };
        body["items"] = items.iter().map(item).collect();
    }
    if optional {
        body["optional"] = json!(true);
    }
}

fn projection(projection: &ProjectionV1) -> Value {
    match projection {
        ProjectionV1::Keys { source, items, optional } => {
            let (kind, name) = match source {
                SourceV1::ConfigMap(name) => ("configMap", name),
                SourceV1::Secret(name) => ("secret", name),
            };
            let mut body = json!({"name": name});
            put_items(&mut body, items, *optional);
            json!({kind: body})
        }
        ProjectionV1::Downward(items) => json!({"downwardAPI": {"items": files(items)}}),
        ProjectionV1::Token { audience, expiration_s, path } => {
            let mut body = json!({"expirationSeconds": expiration_s, "path": path});
            if !audience.is_empty() {
                body["audience"] = json!(audience);
            }
            json!({"serviceAccountToken": body})
        }
    }
}

fn files(items: &[DownwardItemV1]) -> Vec<Value> {
    let file = |item: &DownwardItemV1| {
        let mut file = json!({"path": item.path});
        if let Some((key, shown)) = downward(&item.value) {
            file[key] = shown;
        }
        if let Some(mode) = item.mode {
            file["mode"] = json!(mode);
        }
        file
    };
    items.iter().map(file).collect()
}

/// What the downward API shows; `None` for a value from elsewhere.
fn downward(value: &EnvValueV1) -> Option<(&'static str, Value)> {
    match value {
        EnvValueV1::Field(path) => {
            Some(("fieldRef", json!({"apiVersion": "v1", "fieldPath": path})))
        }
        EnvValueV1::Resource { container, resource, divisor_millis } => {
            let divisor = container::millis(*divisor_millis);
            let mut shown = json!({"resource": resource, "divisor": divisor});
            if !container.is_empty() {
                shown["containerName"] = json!(container);
            }
            Some(("resourceFieldRef", shown))
        }
        EnvValueV1::Literal(_) | EnvValueV1::Key { .. } => None,
    }
}

fn host_path_kind(kind: HostPathKindV1) -> &'static str {
    match kind {
        HostPathKindV1::Any => "",
        HostPathKindV1::DirectoryOrCreate => "DirectoryOrCreate",
        HostPathKindV1::Directory => "Directory",
        HostPathKindV1::FileOrCreate => "FileOrCreate",
        HostPathKindV1::File => "File",
        HostPathKindV1::Socket => "Socket",
        HostPathKindV1::CharDevice => "CharDevice",
        HostPathKindV1::BlockDevice => "BlockDevice",
    }
}

#[cfg(test)]
mod tests {
    use wire::set::BodyV1;

    use super::*;

    fn lowered(object: &Value) -> PodV1 {
        match crate::pod(object).unwrap().item.body {
            BodyV1::Pod(pod) => *pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_raised_lowers_to_the_same_pod() {
        let mut object = json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "labels": {"app": "web"},
                "annotations": {"note": "long"},
                "uid": "01020304-0506-0708-090a-0b0c0d0e0f10",
            },
            "spec": {
                "nodeName": "pi", "restartPolicy": "OnFailure", "hostNetwork": true,
                "terminationGracePeriodSeconds": 7, "activeDeadlineSeconds": 60,
                "serviceAccountName": "robot", "shareProcessNamespace": true,
                "hostname": "h", "subdomain": "sub", "priority": 5, "enableServiceLinks": false,
                "dnsPolicy": "None",
                "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["a.b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]},
                "imagePullSecrets": [{"name": "registry"}],
                "hostAliases": [{"ip": "10.0.0.2", "hostnames": ["x", "y"]}],
                "securityContext": {"fsGroup": 5, "fsGroupChangePolicy": "OnRootMismatch",
                    "supplementalGroups": [6, 7], "sysctls": [{"name": "a", "value": "1"}],
                    "runAsUser": 1000, "seccompProfile": {"type": "Unconfined"}},
                "initContainers": [
                    {"name": "proxy", "image": "p", "restartPolicy": "Always"},
                    {"name": "first", "image": "f", "imagePullPolicy": "Never"}],
                "containers": [{
                    "name": "main", "image": "web:1", "command": ["/web"], "args": ["-v"],
                    "workingDir": "/srv", "stdin": true, "stdinOnce": true, "tty": true,
                    "terminationMessagePath": "/last",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "env": [
                        {"name": "A", "value": "1"},
                        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                        {"name": "C", "valueFrom": {"secretKeyRef":
                            {"name": "c", "key": "k", "optional": true}}},
                        {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "E", "valueFrom": {"resourceFieldRef":
                            {"resource": "limits.cpu", "divisor": "1m"}}},
                    ],
                    "envFrom": [{"prefix": "P_", "secretRef": {"name": "s"}},
                        {"configMapRef": {"name": "m", "optional": true}}],
                    "resources": {
                        "requests": {"memory": "64Mi", "cpu": "250m", "ephemeral-storage": "1Mi"},
                        "limits": {"memory": "1Gi", "cpu": "2", "pinnace.io/gpio": "1"}},
                    "volumeMounts": [
                        {"name": "keys", "mountPath": "/v", "readOnly": true, "subPath": "x"},
                        {"name": "host", "mountPath": "/h", "subPathExpr": "$(A)",
                            "mountPropagation": "Bidirectional"}],
                    "ports": [{"name": "http", "containerPort": 80, "hostPort": 8080,
                        "hostIP": "10.0.0.9"}, {"containerPort": 53, "protocol": "UDP"}],
                    "securityContext": {"runAsGroup": 3, "runAsNonRoot": true,
                        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                        "procMount": "Unmasked"},
                }],
            },
        });
        let more = json!({
                    "livenessProbe": {"httpGet": {"port": "http", "path": "ok", "scheme": "HTTPS",
                        "httpHeaders": [{"name": "a", "value": "b"}]}, "periodSeconds": 5,
                        "terminationGracePeriodSeconds": 3},
                    "readinessProbe": {"tcpSocket": {"port": 80}, "initialDelaySeconds": 3},
                    "startupProbe": {"grpc": {"port": 81, "service": "s"}, "failureThreshold": 9},
                    "lifecycle": {"preStop": {"sleep": {"seconds": 2}}, "stopSignal": "SIGINT",
                        "postStart": {"exec": {"command": ["true"]}}},
        });
        for (key, value) in more.as_object().unwrap() {
            object["spec"]["containers"][0][key] = value.clone();
        }
        object["spec"]["volumes"] = json!([
            {"name": "keys", "configMap": {"name": "c", "defaultMode": 288,
                "items": [{"key": "k", "path": "p", "mode": 256}, {"key": "l", "path": "q"}]}},
            {"name": "secret", "secret": {"secretName": "s", "optional": true}},
            {"name": "host", "hostPath": {"path": "/dev/ttyS0", "type": "CharDevice"}},
            {"name": "empty", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "down", "downwardAPI": {"items": [
                {"path": "a", "fieldRef": {"fieldPath": "metadata.annotations"}},
                {"path": "m", "mode": 256, "resourceFieldRef": {"containerName": "main",
                    "resource": "limits.memory"}}]}},
            {"name": "all", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": "x"}},
                {"configMap": {"name": "extra", "optional": true}},
                {"secret": {"name": "more", "items": [{"key": "k", "path": "p"}]}},
            ]}},
        ]);
        let pod = lowered(&object);
        let raised = raise(&pod, "pi");
        assert_eq!(lowered(&raised), pod);
        // The shape is what clients read.
        assert_eq!(raised["spec"]["containers"][0]["resources"]["requests"]["memory"], "64Mi");
        assert_eq!(raised["spec"]["containers"][0]["resources"]["limits"]["cpu"], "2");
        assert_eq!(raised["metadata"]["uid"], "01020304-0506-0708-090a-0b0c0d0e0f10");
        assert_eq!(raised["spec"]["nodeName"], "pi");
    }

    #[test]
    fn a_bare_pod_and_a_module_are_raised_too() {
        let bare = PodV1::new([7; 16], "default", "bare");
        assert_eq!(lowered(&raise(&bare, "n")), bare);
        let mut module = PodV1::new([8; 16], "default", "module");
        let mut container = wire::pod::ContainerV1::new("main", "m:1");
        container.runtime = RuntimeV1::Wasm;
        container.security.privileged = true;
        module.containers = vec![container];
        assert_eq!(lowered(&raise(&module, "n")), module);
        assert_eq!(raise(&module, "n")["spec"]["runtimeClassName"], "wasm");
        let mut named = PodV1::new([9; 16], "default", "named");
        named.fqdn = "named.sub.default.svc.cluster.local".to_owned();
        named.hostname.clone_from(&named.fqdn);
        assert_eq!(lowered(&raise(&named, "n")), named);
    }
}
