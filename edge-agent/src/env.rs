//! The variables, command and user of a container: the manifest, the
//! ConfigMaps and Secrets it names, and the image's own configuration, merged
//! exactly as Kubernetes merges them. Pure.
//!
//! Order, a later one of the same name wins: image, `HOSTNAME`, Services,
//! `envFrom` in order, `env` in order. `$(NAME)` sees what stands before it in
//! `envFrom` and `env`, then the Services, never the image's variables; `$$` is a
//! dollar sign; a name that is not defined stays as written.

use std::collections::BTreeMap;

use wire::pod::{ContainerV1, EnvValueV1, PodV1, ResourcesV1, SourceV1};

use crate::id;
use crate::pods::{KeySet, missing as object_missing};

/// What a container can learn about its node and its pod's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Name of the node.
    pub node_name: String,
    /// Address of the node.
    pub host_ip: String,
    /// Address of the pod.
    pub pod_ip: String,
    /// Cores of the node, in millicores: the limit of a container without one.
    pub cpu_millis: u64,
    /// Memory of the node, in bytes.
    pub memory_bytes: u64,
    /// Disk of the node, in bytes.
    pub disk_bytes: u64,
    /// The variables of Services that the pod gets, see [`crate::service_env`].
    pub services: Vec<(String, String)>,
}

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or program and arguments where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// User, as `USER` of a Dockerfile.
    pub user: String,
    /// Number of the signal that asks it to stop; `None` where it names none.
    pub stop_signal: Option<u8>,
}

/// How a container is run.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Variables, each name once.
    pub env: Vec<(String, String)>,
    /// Working directory; empty for `/`.
    pub cwd: String,
}

/// Why the container cannot be configured: the first ConfigMap, Secret or key
/// that is missing and not optional, in the kubelet's words.
#[must_use]
pub fn missing(pod: &PodV1, container: &ContainerV1, keys: &KeySet) -> Option<String> {
    variables(pod, container, keys, &Facts::default()).err()
}

/// Merges the container with its image.
///
/// # Errors
/// What is missing, in the kubelet's words; or that there is no command.
pub fn command(
    pod: &PodV1,
    container: &ContainerV1,
    keys: &KeySet,
    image: &ImageConfig,
    facts: &Facts,
) -> Result<Command, String> {
    let own = variables(pod, container, keys, facts)?;
    let expand_all = |texts: &[String]| texts.iter().map(|t| expand(t, &own)).collect::<Vec<_>>();
    let (command, args) = (expand_all(&container.command), expand_all(&container.args));
    let mut all = match (command.is_empty(), args.is_empty()) {
        // A command in the manifest replaces both the entrypoint and the arguments.
        (false, _) => command,
        (true, _) => image.entrypoint.clone(),
    };
    match (container.command.is_empty(), args.is_empty()) {
        (_, false) => all.extend(args),
        (true, true) => all.extend(image.cmd.iter().cloned()),
        (false, true) => {}
    }
    let cwd = if container.working_dir.is_empty() {
        image.working_dir.clone()
    } else {
        container.working_dir.clone()
    };
    let mut env: Vec<(String, String)> = Vec::new();
    let hostname = [("HOSTNAME".to_owned(), pod.hostname.clone())];
    for (name, value) in image.env.iter().chain(&hostname).chain(&own.in_order()) {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => old.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    Ok(Command { args: all, env, cwd })
}

/// Variables by name, which remember the order they were first given in.
#[derive(Default)]
struct Variables {
    values: BTreeMap<String, String>,
    order: Vec<String>,
    /// Those of Services, for what has no other value.
    services: BTreeMap<String, String>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&String> {
        self.values.get(name).or_else(|| self.services.get(name))
    }

    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn in_order(&self) -> Vec<(String, String)> {
        let own = self.order.iter().filter_map(|name| Some((name, self.values.get(name)?)));
        let others = self.services.iter().filter(|(name, _)| !self.values.contains_key(*name));
        own.chain(others).map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

fn variables(
    pod: &PodV1,
    container: &ContainerV1,
    keys: &KeySet,
    facts: &Facts,
) -> Result<Variables, String> {
    let services = facts.services.iter().cloned().collect();
    let mut all = Variables { services, ..Variables::default() };
    for from in &container.env_from {
        let Some(object) = keys.get(&from.source) else {
            if from.optional {
                continue;
            }
            return Err(object_missing(&from.source));
        };
        for (key, value) in &object.data.data {
            let name = format!("{}{key}", from.prefix);
            // A key that cannot be a variable is left out, as upstream.
            if is_variable_name(&name) {
                all.set(name, String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    for variable in &container.env {
        let value = match &variable.value {
            EnvValueV1::Literal(text) => expand(text, &all),
            EnvValueV1::Key { source, key, optional } => {
                match (key_value(pod, keys, source, key), optional) {
                    (Ok(value), _) => value,
                    (Err(_), true) => continue,
                    (Err(why), false) => return Err(why),
                }
            }
            EnvValueV1::Field(path) => field(pod, facts, path)?,
            EnvValueV1::Resource { container: name, resource: what, divisor_millis } => {
                let of = if name.is_empty() { &container.name } else { name };
                resource(pod, of, what, *divisor_millis, facts)?
            }
        };
        all.set(variable.name.clone(), value);
    }
    Ok(all)
}

fn key_value(pod: &PodV1, keys: &KeySet, source: &SourceV1, key: &str) -> Result<String, String> {
    let object = keys.get(source).ok_or_else(|| object_missing(source))?;
    let (kind, name) = match source {
        SourceV1::ConfigMap(name) => ("ConfigMap", name),
        SourceV1::Secret(name) => ("Secret", name),
    };
    object
        .get(key)
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .ok_or_else(|| format!("couldn't find key {key} in {kind} {}/{name}", pod.namespace))
}

/// What the environment may hold: anything printable without `=`, as upstream since 1.34.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// A field of the pod, as the downward API names it.
///
/// # Errors
/// It names no field there is.
pub fn field(pod: &PodV1, facts: &Facts, path: &str) -> Result<String, String> {
    let of = |all: &[(String, String)], key: &str| {
        all.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    Ok(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => id::uid_text(&pod.uid),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.service_account.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => match (subscript(path, "metadata.labels"), subscript(path, "metadata.annotations")) {
            (Some(key), _) => of(&pod.labels, key),
            (_, Some(key)) => of(&pod.annotations, key),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        },
    })
}

/// The key of `<field>['key']`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    let inner = path.strip_prefix(field)?.strip_prefix('[')?.strip_suffix(']')?;
    [('\'', '\''), ('"', '"')]
        .into_iter()
        .find_map(|(open, close)| inner.strip_prefix(open)?.strip_suffix(close))
        .or(Some(inner))
}

/// A resource of a container of the pod, as the downward API gives it.
///
/// # Errors
/// The pod has no such container, or there is no such resource.
pub fn resource(
    pod: &PodV1,
    container: &str,
    resource: &str,
    divisor_millis: u64,
    facts: &Facts,
) -> Result<String, String> {
    let of = pod
        .all_containers()
        .find(|c| c.name == container)
        .ok_or_else(|| format!("container {container} not found"))?;
    amount(&of.resources, facts, resource, divisor_millis)
}

/// The `subPath` of each of the container's mounts, `subPathExpr` expanded.
///
/// # Errors
/// A variable that is not defined, in the kubelet's words.
pub fn sub_paths(
    pod: &PodV1,
    container: &ContainerV1,
    keys: &KeySet,
    facts: &Facts,
) -> Result<Vec<String>, String> {
    if container.mounts.iter().all(|mount| !mount.sub_path_expanded) {
        return Ok(container.mounts.iter().map(|mount| mount.sub_path.clone()).collect());
    }
    let known = variables(pod, container, keys, facts)?;
    container
        .mounts
        .iter()
        .map(|mount| {
            if !mount.sub_path_expanded {
                return Ok(mount.sub_path.clone());
            }
            let failed = || format!("failed to expand subPath for volumeMount {:?}", mount.volume);
            let path = expand_known(&mount.sub_path, &known)
                .map_err(|name| format!("{}: missing value for {name:?}", failed()))?;
            let leaves = path.starts_with('/') || path.split('/').any(|part| part == "..");
            if leaves || path.is_empty() {
                return Err(format!("{}: {path:?} is not a path inside the volume", failed()));
            }
            Ok(path)
        })
        .collect()
}

/// [`expand`], where every name must be known.
fn expand_known(text: &str, known: &Variables) -> Result<String, String> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        match (after.strip_prefix('$'), after.strip_prefix('(').and_then(|a| a.split_once(')'))) {
            (Some(tail), _) => rest = tail,
            (None, Some((name, _))) if known.get(name).is_none() => {
                return Err(name.to_owned());
            }
            (None, Some((_, tail))) => rest = tail,
            (None, None) => rest = after,
        }
    }
    Ok(expand(text, known))
}

/// An amount in the divisor's units, rounded up. A limit that is not set is the node's.
fn amount(
    resources: &ResourcesV1,
    facts: &Facts,
    resource: &str,
    divisor_millis: u64,
) -> Result<String, String> {
    let or_node = |limit: u64, node: u64| if limit == 0 { node } else { limit };
    let bytes = |bytes: u64| u128::from(bytes) * 1000;
    let thousandths = match resource {
        "requests.cpu" => u128::from(resources.cpu_request_millis),
        "limits.cpu" => u128::from(or_node(resources.cpu_limit_millis, facts.cpu_millis)),
        "requests.memory" => bytes(resources.memory_request_bytes),
        "limits.memory" => bytes(or_node(resources.memory_limit_bytes, facts.memory_bytes)),
        "requests.ephemeral-storage" => bytes(resources.disk_request_bytes),
        "limits.ephemeral-storage" => bytes(or_node(resources.disk_limit_bytes, facts.disk_bytes)),
        _ => return Err(format!("unsupported container resource: {resource}")),
    };
    Ok(thousandths.div_ceil(u128::from(divisor_millis.max(1))).to_string())
}

/// Replaces `$(NAME)` by its value.
///
/// Source: <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>.
fn expand(text: &str, known: &Variables) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) =
            after.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

// Values may be secret, so only names are shown.
impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Command")
            .field("n_args", &self.args.len())
            .field("env", &names)
            .field("cwd", &self.cwd)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let mut known = Variables::default();
        known.set("A".into(), "1".into());
        known.set("EMPTY".into(), String::new());
        known.set("R".into(), "$(A)".into());
        let table = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(EMPTY)", ""),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("$(R)", "$(A)"),
            ("ä$(A)ö$ü", "ä1ö$ü"),
            ("$(A)$(B)$(A)", "1$(B)1"),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    mod merged {
        use super::super::*;
        use crate::pods::tests::{container, keys, pod};
        use wire::pod::{EnvFromV1, EnvV1, SecurityV1};

        fn literal(name: &str, value: &str) -> EnvV1 {
            EnvV1 { name: name.into(), value: EnvValueV1::Literal(value.into()) }
        }

        fn facts() -> Facts {
            Facts {
                node_name: "board-1".into(),
                host_ip: "192.0.2.7".into(),
                pod_ip: "10.42.1.2".into(),
                cpu_millis: 4000,
                memory_bytes: 1 << 30,
                disk_bytes: 8 << 30,
                services: Vec::new(),
            }
        }

        fn env_of(c: ContainerV1, keys: &KeySet) -> Result<Vec<(String, String)>, String> {
            let image = ImageConfig {
                env: vec![("PATH".into(), "/bin".into()), ("A".into(), "image".into())],
                ..ImageConfig::default()
            };
            let pod = PodV1 { containers: vec![c.clone()], ..pod(vec![]) };
            Ok(command(&pod, &c, keys, &image, &facts())?.env)
        }

        fn text(env: &[(String, String)]) -> Vec<String> {
            env.iter().map(|(name, value)| format!("{name}={value}")).collect()
        }

        #[test]
        fn later_sources_win_and_see_earlier_ones() {
            let all = keys(SourceV1::ConfigMap("cfg".into()), &[("A", "map"), ("B", "b")]);
            let c = ContainerV1 {
                env_from: vec![
                    EnvFromV1 {
                        prefix: "P_".into(),
                        source: SourceV1::ConfigMap("cfg".into()),
                        optional: false,
                    },
                    EnvFromV1 {
                        prefix: String::new(),
                        source: SourceV1::Secret("none".into()),
                        optional: true,
                    },
                ],
                env: vec![
                    literal("C", "$(P_A)-$(LATER)-$(PATH)"),
                    literal("LATER", "x"),
                    literal("P_B", "env"),
                    EnvV1 { name: "IP".into(), value: EnvValueV1::Field("status.podIP".into()) },
                    EnvV1 {
                        name: "APP".into(),
                        value: EnvValueV1::Field("metadata.labels['app']".into()),
                    },
                    EnvV1 {
                        name: "CPUS".into(),
                        value: EnvValueV1::Resource {
                            container: String::new(),
                            resource: "limits.cpu".into(),
                            divisor_millis: 1000,
                        },
                    },
                    EnvV1 {
                        name: "MIB".into(),
                        value: EnvValueV1::Resource {
                            container: String::new(),
                            resource: "limits.memory".into(),
                            divisor_millis: 1_048_576_000,
                        },
                    },
                ],
                ..container("c")
            };
            assert_eq!(
                text(&env_of(c, &all).unwrap()),
                [
                    "PATH=/bin",
                    "A=image",
                    "HOSTNAME=web-0",
                    "P_A=map",
                    "P_B=env",
                    "C=map-$(LATER)-$(PATH)",
                    "LATER=x",
                    "IP=10.42.1.2",
                    "APP=web",
                    "CPUS=4",
                    "MIB=1024",
                ]
            );
        }

        #[test]
        fn services_are_known_where_nothing_else_has_the_name() {
            let of_services =
                [("API_HOST", "10.43.0.1"), ("API_PORT", "443"), ("PATH", "/services")];
            let services = of_services.map(|(name, value)| (name.into(), value.into())).to_vec();
            let facts = Facts { services, ..facts() };
            let image = ImageConfig {
                entrypoint: vec!["run".into()],
                env: vec![("PATH".into(), "/bin".into())],
                ..ImageConfig::default()
            };
            let c = ContainerV1 {
                args: vec!["$(URL)".into(), "$(API_HOST)".into(), "$(NONE)".into()],
                env: vec![
                    literal("URL", "$(API_HOST):$(API_PORT)"),
                    literal("API_PORT", "6443"),
                    literal("LATER", "$(API_PORT)"),
                ],
                ..container("c")
            };
            let pod = PodV1 { containers: vec![c.clone()], ..pod(vec![]) };
            let command = command(&pod, &c, &KeySet::default(), &image, &facts).unwrap();
            assert_eq!(command.args, ["run", "10.43.0.1:443", "10.43.0.1", "$(NONE)"]);
            assert_eq!(
                text(&command.env),
                [
                    "PATH=/services",
                    "HOSTNAME=web-0",
                    "URL=10.43.0.1:443",
                    "API_PORT=6443",
                    "LATER=6443",
                    "API_HOST=10.43.0.1",
                ]
            );
        }

        #[test]
        fn what_is_missing_is_named_as_the_kubelet_names_it() {
            let key = |name: &str, key: &str, optional| ContainerV1 {
                env: vec![EnvV1 {
                    name: "X".into(),
                    value: EnvValueV1::Key {
                        source: SourceV1::ConfigMap(name.into()),
                        key: key.into(),
                        optional,
                    },
                }],
                ..container("c")
            };
            let all = keys(SourceV1::ConfigMap("cfg".into()), &[("A", "1")]);
            assert_eq!(
                env_of(key("gone", "A", false), &all).unwrap_err(),
                "configmap \"gone\" not found"
            );
            assert_eq!(
                env_of(key("cfg", "B", false), &all).unwrap_err(),
                "couldn't find key B in ConfigMap default/cfg"
            );
            assert!(env_of(key("gone", "A", true), &all).unwrap().iter().all(|(n, _)| n != "X"));
            assert!(text(&env_of(key("cfg", "A", false), &all).unwrap()).contains(&"X=1".into()));
        }

        #[test]
        fn command_and_args_replace_the_image_as_documented() {
            let image = ImageConfig {
                entrypoint: vec!["/ep".into(), "e1".into()],
                cmd: vec!["c1".into()],
                working_dir: "/img".into(),
                ..ImageConfig::default()
            };
            let table: [(&[&str], &[&str], &[&str]); 4] = [
                (&[], &[], &["/ep", "e1", "c1"]),
                (&["/cmd"], &[], &["/cmd"]),
                (&[], &["a"], &["/ep", "e1", "a"]),
                (&["/cmd"], &["$(V)"], &["/cmd", "v"]),
            ];
            for (cmd, args, expected) in table {
                let c = ContainerV1 {
                    command: cmd.iter().map(ToString::to_string).collect(),
                    args: args.iter().map(ToString::to_string).collect(),
                    env: vec![literal("V", "v")],
                    security: SecurityV1::default(),
                    ..container("c")
                };
                let merged =
                    command(&pod(vec![c.clone()]), &c, &KeySet::new(), &image, &facts()).unwrap();
                assert_eq!(merged.args, expected, "{cmd:?} {args:?}");
                assert_eq!(merged.cwd, "/img");
            }
        }

        #[test]
        fn sub_paths_are_expanded_and_stay_inside() {
            let of = |expression: &str| {
                let mount = wire::pod::MountV1 {
                    sub_path: expression.into(),
                    sub_path_expanded: true,
                    ..wire::pod::MountV1::new("v", "/v")
                };
                let c = ContainerV1 {
                    env: vec![
                        literal("UP", "../.."),
                        EnvV1 {
                            name: "POD".into(),
                            value: EnvValueV1::Field("metadata.name".into()),
                        },
                    ],
                    mounts: vec![mount, wire::pod::MountV1::new("w", "/w")],
                    ..container("c")
                };
                let pod = PodV1 { containers: vec![c.clone()], ..pod(vec![]) };
                sub_paths(&pod, &c, &KeySet::new(), &facts())
            };
            assert_eq!(of("logs/$(POD)").unwrap(), ["logs/web-0", ""]);
            assert_eq!(of("$$(POD)").unwrap(), ["$(POD)", ""]);
            for (expression, expected) in [
                ("$(NONE)/x", "missing value for \"NONE\""),
                ("a/$(UP)", "not a path inside the volume"),
                ("/etc", "not a path inside the volume"),
            ] {
                let error = of(expression).unwrap_err();
                assert!(error.contains(expected), "{expression}: {error}");
            }
        }
    }
}
