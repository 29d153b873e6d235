//! Raises containers.

use api::Value;
use api::quantity::Quantity;
use serde_json::{Map, json};
use wire::pod::{
    ContainerV1, EnvFromV1, EnvV1, EnvValueV1, HandlerV1, LifecycleV1, MountV1, PortV1, ProbeV1,
    PropagationV1, ProtocolV1, PullPolicyV1, ResourcesV1, SeccompV1, SecurityV1, SourceV1,
};

use super::{downward, restart_policy};

pub(super) fn all(containers: &[ContainerV1]) -> Vec<Value> {
    containers.iter().map(container).collect()
}

/// An amount of bytes as manifests write it.
pub(super) fn bytes(amount: u64) -> String {
    Quantity::from_bytes(i64::try_from(amount).unwrap_or(i64::MAX)).to_string()
}

/// Thousandths of a unit as manifests write them.
pub(super) fn millis(amount: u64) -> String {
    Quantity::from_millis(i64::try_from(amount).unwrap_or(i64::MAX)).to_string()
}

fn container(container: &ContainerV1) -> Value {
    let mut value = Map::new();
    let mut put = |key: &str, one: Value| {
        // What is empty was not said.
        let is_empty = match &one {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(is_set) => !is_set,
            Value::Number(_) => false,
        };
        if !is_empty {
            value.insert(key.to_owned(), one);
        }
    };
    put("name", json!(container.name));
    put("image", json!(container.image));
    put("command", json!(container.command));
    put("args", json!(container.args));
    put("workingDir", json!(container.working_dir));
    put("ports", container.ports.iter().map(port).collect());
    put("envFrom", container.env_from.iter().map(env_from).collect());
    put("env", container.env.iter().map(env).collect());
    put("resources", resources(&container.resources, &container.devices));
    put("volumeMounts", container.mounts.iter().map(mount).collect());
    put(
        "restartPolicy",
        container.restart_policy.map_or(Value::Null, |p| json!(restart_policy(p))),
    );
    put("targetContainerName", json!(container.target));
    let of = |probe: &Option<ProbeV1>| probe.as_ref().map_or(Value::Null, probe_value);
    put("livenessProbe", of(&container.probes.liveness));
    put("readinessProbe", of(&container.probes.readiness));
    put("startupProbe", of(&container.probes.startup));
    put("lifecycle", lifecycle(&container.lifecycle));
    let message = &container.termination_message;
    let path = if message.path.is_empty() { "/dev/termination-log" } else { &message.path };
    put("terminationMessagePath", json!(path));
    let policy = if message.or_logs { "FallbackToLogsOnError" } else { "File" };
    put("terminationMessagePolicy", json!(policy));
    put("imagePullPolicy", json!(pull_policy(container.pull_policy)));
    put("securityContext", security(&container.security));
    put("stdin", json!(container.stdio.stdin));
    put("stdinOnce", json!(container.stdio.stdin_once));
    put("tty", json!(container.stdio.tty));
    Value::Object(value)
}

fn pull_policy(policy: PullPolicyV1) -> &'static str {
    match policy {
        PullPolicyV1::Always => "Always",
        PullPolicyV1::IfNotPresent => "IfNotPresent",
        PullPolicyV1::Never => "Never",
    }
}

fn port(port: &PortV1) -> Value {
    let protocol = match port.protocol {
        ProtocolV1::Tcp => "TCP",
        ProtocolV1::Udp => "UDP",
        ProtocolV1::Sctp => "SCTP",
    };
    let mut value = json!({"containerPort": port.port, "protocol": protocol});
    if !port.name.is_empty() {
        value["name"] = json!(port.name);
    }
    if port.host_port > 0 {
        value["hostPort"] = json!(port.host_port);
    }
    if !port.host_ip.is_empty() {
        value["hostIP"] = json!(port.host_ip);
    }
    value
}

fn env_from(from: &EnvFromV1) -> Value {
    let (kind, name) = match &from.source {
        SourceV1::ConfigMap(name) => ("configMapRef", name),
        SourceV1::Secret(name) => ("secretRef", name),
    };
    let mut value = json!({kind: {"name": name}});
    if from.optional {
        value[kind]["optional"] = json!(true);
    }
    if !from.prefix.is_empty() {
        value["prefix"] = json!(from.prefix);
    }
    value
}

fn env(env: &EnvV1) -> Value {
    let from = match &env.value {
        EnvValueV1::Literal(value) => return json!({"name": env.name, "value": value}),
        EnvValueV1::Key { source, key, optional } => {
            let (kind, name) = match source {
                SourceV1::ConfigMap(name) => ("configMapKeyRef", name),
                SourceV1::Secret(name) => ("secretKeyRef", name),
            };
            let mut body = json!({"name": name, "key": key});
            if *optional {
                body["optional"] = json!(true);
            }
            json!({kind: body})
        }
        other => downward(other).map_or(Value::Null, |(key, shown)| json!({key: shown})),
    };
    json!({"name": env.name, "valueFrom": from})
}

fn resources(resources: &ResourcesV1, devices: &[(String, u32)]) -> Value {
    let list = |cpu: u64, memory: u64, disk: u64| {
        let amounts = [("cpu", cpu, millis(cpu)), ("memory", memory, bytes(memory))];
        let amounts = amounts.into_iter().chain([("ephemeral-storage", disk, bytes(disk))]);
        amounts
            .filter(|(_, amount, _)| *amount > 0)
            .map(|(name, _, text)| (name.to_owned(), json!(text)))
            .collect::<Map<String, Value>>()
    };
    let r = resources;
    let requests = list(r.cpu_request_millis, r.memory_request_bytes, r.disk_request_bytes);
    let mut limits = list(r.cpu_limit_millis, r.memory_limit_bytes, r.disk_limit_bytes);
    limits.extend(devices.iter().map(|(name, count)| (name.clone(), json!(count.to_string()))));
    let mut value = Map::new();
    for (key, amounts) in [("limits", limits), ("requests", requests)] {
        if !amounts.is_empty() {
            value.insert(key.to_owned(), Value::Object(amounts));
        }
    }
    Value::Object(value)
}

fn mount(mount: &MountV1) -> Value {
    let mut value = json!({"name": mount.volume, "mountPath": mount.path});
    if !mount.sub_path.is_empty() {
        let key = if mount.sub_path_expanded { "subPathExpr" } else { "subPath" };
        value[key] = json!(mount.sub_path);
    }
    if mount.read_only {
        value["readOnly"] = json!(true);
    }
    if mount.recursive_read_only {
        value["recursiveReadOnly"] = json!("Enabled");
    }
    match mount.propagation {
        PropagationV1::None => {}
        PropagationV1::HostToContainer => value["mountPropagation"] = json!("HostToContainer"),
        PropagationV1::Bidirectional => value["mountPropagation"] = json!("Bidirectional"),
    }
    value
}

fn probe_value(probe: &ProbeV1) -> Value {
    let mut value = handler(&probe.handler);
    value["initialDelaySeconds"] = json!(probe.initial_delay_s);
    value["timeoutSeconds"] = json!(probe.timeout_s);
    value["periodSeconds"] = json!(probe.period_s);
    value["successThreshold"] = json!(probe.success_threshold);
    value["failureThreshold"] = json!(probe.failure_threshold);
    if let Some(seconds) = probe.termination_grace_s {
        value["terminationGracePeriodSeconds"] = json!(seconds);
    }
    value
}

fn handler(handler: &HandlerV1) -> Value {
    match handler {
        HandlerV1::Exec(command) => json!({"exec": {"command": command}}),
        HandlerV1::Http { host, port, path, https, headers } => {
            let scheme = if *https { "HTTPS" } else { "HTTP" };
            let mut get = json!({"path": path, "port": port, "scheme": scheme});
            if !host.is_empty() {
                get["host"] = json!(host);
            }
            if !headers.is_empty() {
                let header =
                    |(name, value): &(String, String)| json!({"name": name, "value": value});
                get["httpHeaders"] = headers.iter().map(header).collect();
            }
            json!({"httpGet": get})
        }
        HandlerV1::Tcp { host, port } => {
            let mut socket = json!({"port": port});
            if !host.is_empty() {
                socket["host"] = json!(host);
            }
            json!({"tcpSocket": socket})
        }
        HandlerV1::Grpc { port, service } => json!({"grpc": {"port": port, "service": service}}),
        HandlerV1::Sleep(seconds) => json!({"sleep": {"seconds": seconds}}),
    }
}

fn lifecycle(lifecycle: &LifecycleV1) -> Value {
    let mut value = Map::new();
    for (key, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            value.insert(key.to_owned(), handler(hook));
        }
    }
    if let Some(signal) = lifecycle.stop_signal {
        value.insert("stopSignal".to_owned(), json!(signal.to_string()));
    }
    Value::Object(value)
}

fn security(security: &SecurityV1) -> Value {
    let mut value = Map::new();
    let mut put = |key: &str, one: Value| value.insert(key.to_owned(), one);
    if let Some(user) = security.run_as_user {
        put("runAsUser", json!(user));
    }
    if let Some(group) = security.run_as_group {
        put("runAsGroup", json!(group));
    }
    for (key, is_set) in [
        ("runAsNonRoot", security.run_as_non_root),
        ("readOnlyRootFilesystem", security.read_only_root),
        ("privileged", security.privileged),
    ] {
        if is_set {
            put(key, json!(true));
        }
    }
    if security.no_new_privileges {
        put("allowPrivilegeEscalation", json!(false));
    }
    let (add, drop) = (&security.capabilities_add, &security.capabilities_drop);
    let mut capabilities = Map::new();
    for (key, names) in [("add", add), ("drop", drop)] {
        if !names.is_empty() {
            capabilities.insert(key.to_owned(), json!(names));
        }
    }
    if !capabilities.is_empty() {
        put("capabilities", Value::Object(capabilities));
    }
    match &security.seccomp {
        SeccompV1::RuntimeDefault => {}
        SeccompV1::Unconfined => {
            put("seccompProfile", json!({"type": "Unconfined"}));
        }
        SeccompV1::Localhost(path) => {
            put("seccompProfile", json!({"type": "Localhost", "localhostProfile": path}));
        }
    }
    if security.unmasked_proc {
        put("procMount", json!("Unmasked"));
    }
    Value::Object(value)
}
