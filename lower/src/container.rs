//! Lowers a container.

use std::collections::BTreeSet;

use api::images::{ImageRecords, Runtime};
use api::view::{
    self, Container, EnvFrom, EnvVar, FieldRef, PodSecurityContext, PodSpec, ResourceFieldRef,
    VolumeMount,
};
use wire::pod::{
    ContainerV1, EnvFromV1, EnvV1, EnvValueV1, MountV1, PortV1, PropagationV1, ProtocolV1,
    PullPolicyV1, ResourcesV1, RuntimeV1, SeccompV1, SecurityV1, SourceV1, StdioV1,
    TerminationMessageV1,
};

use super::{LowerError, health, restart_policy};

pub(super) fn lower(
    container: &Container,
    spec: &PodSpec,
    records: &ImageRecords,
    sources: &mut BTreeSet<SourceV1>,
) -> Result<ContainerV1, LowerError> {
    let class = spec.runtime_class_name.as_deref();
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
    let mounts = container.volume_mounts.iter().map(lower_mount).collect();
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
        devices: lower_devices(container),
        restart_policy: container.restart_policy.as_deref().map(restart_policy),
        target: container.target_container_name.clone(),
        probes: health::probes(container)?,
        lifecycle: health::lifecycle(container)?,
        stdio: StdioV1 {
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            tty: container.tty,
        },
        termination_message: TerminationMessageV1 {
            path: match container.termination_message_path.as_str() {
                "/dev/termination-log" => String::new(),
                path => path.to_owned(),
            },
            or_logs: container.termination_message_policy == "FallbackToLogsOnError",
        },
        security: lower_security(container, &spec.security_context)?,
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
            } else if let Some(value) =
                downward(from.field_ref.as_ref(), from.resource_field_ref.as_ref())
            {
                value
            } else {
                let (container, name) = (container.to_owned(), env.name.clone());
                return Err(LowerError::Env { container, name });
            }
        }
    };
    Ok(EnvV1 { name: env.name.clone(), value })
}

/// What the downward API shows; `None` where neither is set.
pub(super) fn downward(
    field: Option<&FieldRef>,
    resource: Option<&ResourceFieldRef>,
) -> Option<EnvValueV1> {
    match (field, resource) {
        (Some(field), _) => Some(EnvValueV1::Field(field.field_path.clone())),
        (None, Some(resource)) => {
            let divisor = resource.divisor.millis();
            Some(EnvValueV1::Resource {
                container: resource.container_name.clone(),
                resource: resource.resource.clone(),
                divisor_millis: if divisor <= 0 { 1000 } else { divisor.unsigned_abs() },
            })
        }
        (None, None) => None,
    }
}

fn lower_mount(mount: &VolumeMount) -> MountV1 {
    let is_expanded = !mount.sub_path_expr.is_empty();
    MountV1 {
        volume: mount.name.clone(),
        path: mount.mount_path.clone(),
        sub_path: if is_expanded { &mount.sub_path_expr } else { &mount.sub_path }.clone(),
        sub_path_expanded: is_expanded,
        read_only: mount.read_only,
        recursive_read_only: matches!(
            mount.recursive_read_only.as_deref(),
            Some("Enabled" | "IfPossible")
        ),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => PropagationV1::HostToContainer,
            Some("Bidirectional") => PropagationV1::Bidirectional,
            _ => PropagationV1::None,
        },
    }
}

/// Resources that are counted: everything with a domain in its name.
fn lower_devices(container: &Container) -> Vec<(String, u32)> {
    let limits = container.resources.limits.iter();
    limits
        .filter(|(name, _)| name.contains('/'))
        .map(|(name, amount)| (name.clone(), u32::try_from(amount.units()).unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect()
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
        disk_request_bytes: amount(request("ephemeral-storage").units()),
        disk_limit_bytes: amount(limit("ephemeral-storage").units()),
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
        privileged: own.privileged,
        seccomp: match own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()) {
            Some(profile) if profile.kind == "Unconfined" => SeccompV1::Unconfined,
            Some(profile) if profile.kind == "Localhost" => {
                SeccompV1::Localhost(profile.localhost_profile.clone())
            }
            _ => SeccompV1::RuntimeDefault,
        },
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
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
        host_port: u16::try_from(port.host_port)
            .map_err(|_| LowerError::Range("hostPort", port.host_port))?,
        host_ip: port.host_ip.clone(),
    })
}
