//! The Pod Security Standards: what a namespace lets its pods ask of a node.
//!
//! | label of the Namespace | what happens to a pod that asks for more |
//! | --- | --- |
//! | `pod-security.kubernetes.io/enforce` | it is refused (403) |
//! | `pod-security.kubernetes.io/warn` | its author is warned; templates too |
//! | `pod-security.kubernetes.io/audit` | nothing here: there is no audit log |
//!
//! The value is a level: `privileged` (anything), `baseline` (nothing that is
//! known to give a pod its node) or `restricted` (what a hardened pod needs). A
//! namespace without the label is `privileged`, as upstream. A value that is no
//! level counts as `restricted`: a typing error must not open a namespace.
//!
//! Pure. Follows the published controls, version `latest`, with their words.
//!
//! Source: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.

use std::fmt;

use serde_json::{Map, Value};

type Fields = Map<String, Value>;

/// Prefix of the labels.
const LABEL: &str = "pod-security.kubernetes.io/";

/// How much a pod may ask for. A greater one asks for less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Anything.
    Privileged,
    /// Nothing that is known to give a pod its node.
    Baseline,
    /// What a hardened pod needs.
    Restricted,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

/// The level of a namespace for `mode`: `enforce` or `warn`.
#[must_use]
pub fn level(namespace: &Value, mode: &str) -> Level {
    match namespace["metadata"]["labels"][format!("{LABEL}{mode}").as_str()].as_str() {
        None | Some("privileged") => Level::Privileged,
        Some("baseline") => Level::Baseline,
        Some(_) => Level::Restricted,
    }
}

/// Why a pod is not within a level, as `violates PodSecurity "<level>:latest": …`
/// goes on; `None` where it is.
#[must_use]
pub fn violations(level: Level, pod: &Value) -> Option<String> {
    if level == Level::Privileged {
        return None;
    }
    let empty = Map::new();
    let spec = pod["spec"].as_object().unwrap_or(&empty);
    let pod = Pod { annotations: object(&pod["metadata"], "annotations"), spec };
    let is_restricted = level == Level::Restricted;
    // In the order of the names of the controls, as upstream.
    let mut found = Vec::new();
    if is_restricted {
        found.extend(pod.privilege_escalation());
    }
    found.extend(pod.app_armor());
    found.extend(if is_restricted { pod.capabilities_restricted() } else { pod.capabilities() });
    found.extend(pod.host_namespaces());
    if !is_restricted {
        found.extend(pod.host_paths());
    }
    found.extend(pod.host_ports());
    found.extend(pod.host_probes());
    found.extend(pod.privileged());
    found.extend(pod.proc_mount());
    if is_restricted {
        found.extend(pod.volume_types());
        found.extend(pod.run_as_non_root());
        found.extend(pod.run_as_user());
    }
    found.extend(pod.se_linux());
    found.extend(if is_restricted { pod.seccomp_restricted() } else { pod.seccomp() });
    found.extend(pod.sysctls());
    found.extend(pod.host_process());
    (!found.is_empty()).then(|| found.join(", "))
}

/// Capabilities that `baseline` lets containers add.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Kernel settings that every pod may have: they reach no further than the pod, as
/// Kubernetes 1.34 has them.
///
/// Source: <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>.
pub const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Volumes that `restricted` allows.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const SE_LINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

struct Pod<'a> {
    annotations: &'a Fields,
    spec: &'a Fields,
}

fn object<'a>(parent: &'a Value, name: &str) -> &'a Fields {
    static EMPTY: std::sync::OnceLock<Fields> = std::sync::OnceLock::new();
    parent.get(name).and_then(Value::as_object).unwrap_or_else(|| EMPTY.get_or_init(Map::new))
}

fn list<'a>(fields: &'a Fields, name: &str) -> &'a [Value] {
    fields.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_true(fields: &Fields, name: &str) -> bool {
    fields.get(name) == Some(&Value::Bool(true))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn context(of: &Value) -> &Fields {
    object(of, "securityContext")
}

/// `container "a"` or `containers "a", "b"`.
fn named(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("{} {}", if names.len() == 1 { "container" } else { "containers" }, quoted.join(", "))
}

fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut all: Vec<String> = words.into_iter().map(|word| format!("{word:?}")).collect();
    all.sort();
    all.dedup();
    all.join(", ")
}

impl<'a> Pod<'a> {
    fn context(&self) -> &'a Fields {
        self.spec
            .get("securityContext")
            .and_then(Value::as_object)
            .unwrap_or_else(|| object(&Value::Null, ""))
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|name| list(self.spec, name))
    }

    /// Names of the containers of which something holds.
    fn those(&self, holds: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|one| holds(one)).map(|one| text(one, "name")).collect()
    }

    fn say(names: &[&str], what: &str, rest: &str) -> Option<String> {
        (!names.is_empty()).then(|| format!("{what} ({} {rest})", named(names)))
    }

    fn privilege_escalation(&self) -> Option<String> {
        let bad = self
            .those(|one| context(one).get("allowPrivilegeEscalation") != Some(&Value::Bool(false)));
        let rest = "must set securityContext.allowPrivilegeEscalation=false";
        Self::say(&bad, "allowPrivilegeEscalation != false", rest)
    }

    fn app_armor(&self) -> Option<String> {
        let is_bad = |fields: &Fields| {
            fields.get("appArmorProfile").is_some_and(|profile| {
                !matches!(text(profile, "type"), "" | "RuntimeDefault" | "Localhost")
            })
        };
        let of_annotation = self.annotations.iter().any(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            key.starts_with("container.apparmor.security.beta.kubernetes.io/")
                && !(value.is_empty()
                    || value == "runtime/default"
                    || value.starts_with("localhost/"))
        });
        let bad = self.those(|one| is_bad(context(one)));
        (of_annotation || is_bad(self.context()) || !bad.is_empty()).then(|| {
            "forbidden AppArmor profile (the pod must use \"RuntimeDefault\" or \"Localhost\")"
                .to_owned()
        })
    }

    fn added(one: &Value) -> impl Iterator<Item = &str> {
        let capabilities = context(one).get("capabilities").and_then(Value::as_object);
        capabilities.map_or(&[][..], |c| list(c, "add")).iter().filter_map(Value::as_str)
    }

    fn too_many(&self, allowed: &[&str]) -> (Vec<&'a str>, String) {
        let is_bad = |name: &str| !allowed.contains(&name);
        let bad = self.those(|one| Self::added(one).any(is_bad));
        let names = self.containers().flat_map(Self::added).filter(|name| is_bad(name));
        (bad, quoted(names))
    }

    fn capabilities(&self) -> Option<String> {
        let (bad, names) = self.too_many(&CAPABILITIES);
        let rest = format!("must not include {names} in securityContext.capabilities.add");
        Self::say(&bad, "non-default capabilities", &rest)
    }

    fn capabilities_restricted(&self) -> Option<String> {
        let undropped = self.those(|one| {
            let capabilities = context(one).get("capabilities").and_then(Value::as_object);
            !capabilities.is_some_and(|c| list(c, "drop").iter().any(|name| name == "ALL"))
        });
        let (bad, names) = self.too_many(&["NET_BIND_SERVICE"]);
        let mut parts = Vec::new();
        if !undropped.is_empty() {
            let who = named(&undropped);
            parts.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
        }
        if !bad.is_empty() {
            let who = named(&bad);
            parts.push(format!(
                "{who} must not include {names} in securityContext.capabilities.add"
            ));
        }
        (!parts.is_empty()).then(|| format!("unrestricted capabilities ({})", parts.join("; ")))
    }

    fn host_namespaces(&self) -> Option<String> {
        let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
            .into_iter()
            .filter(|name| is_true(self.spec, name))
            .map(|name| format!("{name}=true"))
            .collect();
        (!used.is_empty()).then(|| format!("host namespaces ({})", used.join(", ")))
    }

    fn host_paths(&self) -> Option<String> {
        let bad: Vec<&str> = list(self.spec, "volumes")
            .iter()
            .filter(|volume| volume.get("hostPath").is_some_and(|path| !path.is_null()))
            .map(|volume| text(volume, "name"))
            .collect();
        let word = if bad.len() == 1 { "volume" } else { "volumes" };
        (!bad.is_empty()).then(|| format!("hostPath volumes ({word} {})", quoted(bad)))
    }

    fn host_ports(&self) -> Option<String> {
        let ports = |one: &'a Value| {
            let all = one.as_object().map_or(&[][..], |one| list(one, "ports")).iter();
            all.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0)
        };
        let bad = self.containers().filter(|one| ports(one).next().is_some());
        let bad: Vec<&str> = bad.map(|one| text(one, "name")).collect();
        let mut all: Vec<i64> = self.containers().flat_map(ports).collect();
        all.sort_unstable();
        all.dedup();
        let numbers: Vec<String> = all.iter().map(ToString::to_string).collect();
        let uses = if bad.len() == 1 { "uses" } else { "use" };
        let word = if all.len() == 1 { "hostPort" } else { "hostPorts" };
        Self::say(&bad, "hostPort", &format!("{uses} {word} {}", numbers.join(", ")))
    }

    fn host_probes(&self) -> Option<String> {
        let has_host = |handler: &Value| {
            ["httpGet", "tcpSocket"].iter().any(|kind| !text(&handler[*kind], "host").is_empty())
        };
        let bad = self.those(|one| {
            let probes = ["livenessProbe", "readinessProbe", "startupProbe"];
            let hooks = ["postStart", "preStop"];
            probes.iter().any(|name| has_host(&one[*name]))
                || hooks.iter().any(|name| has_host(&one["lifecycle"][*name]))
        });
        Self::say(&bad, "probe or lifecycle host", "must not set `host` in probes or lifecycle")
    }

    fn privileged(&self) -> Option<String> {
        let bad = self.those(|one| is_true(context(one), "privileged"));
        Self::say(&bad, "privileged", "must not set securityContext.privileged=true")
    }

    fn proc_mount(&self) -> Option<String> {
        let kind =
            |one: &Value| context(one).get("procMount").and_then(Value::as_str).map(str::to_owned);
        let bad = self.those(|one| kind(one).is_some_and(|kind| kind != "Default"));
        Self::say(&bad, "procMount", "must not set securityContext.procMount to \"Unmasked\"")
    }

    fn volume_types(&self) -> Option<String> {
        let mut bad = Vec::new();
        for volume in list(self.spec, "volumes") {
            let kinds = volume.as_object().into_iter().flatten();
            let kind = kinds
                .filter(|(name, value)| *name != "name" && !value.is_null())
                .map(|(name, _)| name.as_str())
                .find(|name| !VOLUMES.contains(name));
            if let Some(kind) = kind {
                bad.push(format!(
                    "volume {:?} uses restricted volume type {kind:?}",
                    text(volume, "name")
                ));
            }
        }
        (!bad.is_empty()).then(|| format!("restricted volume types ({})", bad.join("; ")))
    }

    fn run_as_non_root(&self) -> Option<String> {
        let of_pod = self.context().get("runAsNonRoot").and_then(Value::as_bool);
        let bad = self.those(|one| {
            let own = context(one).get("runAsNonRoot").and_then(Value::as_bool);
            own.or(of_pod) != Some(true)
        });
        if bad.is_empty() {
            return None;
        }
        let who = named(&bad);
        Some(format!(
            "runAsNonRoot != true (pod or {who} must set securityContext.runAsNonRoot=true)"
        ))
    }

    fn run_as_user(&self) -> Option<String> {
        let is_root = |fields: &Fields| fields.get("runAsUser").and_then(Value::as_i64) == Some(0);
        if is_root(self.context()) {
            return Some("runAsUser=0 (pod must not set runAsUser=0)".to_owned());
        }
        let bad = self.those(|one| is_root(context(one)));
        Self::say(&bad, "runAsUser=0", "must not set runAsUser=0")
    }

    fn se_linux(&self) -> Option<String> {
        let is_bad = |fields: &Fields| {
            fields.get("seLinuxOptions").is_some_and(|options| {
                !SE_LINUX_TYPES.contains(&text(options, "type"))
                    || !text(options, "user").is_empty()
                    || !text(options, "role").is_empty()
            })
        };
        let bad = is_bad(self.context()) || self.containers().any(|one| is_bad(context(one)));
        bad.then(|| {
            "seLinuxOptions (the pod set a type, user or role that is not allowed)".to_owned()
        })
    }

    fn profile(fields: &Fields) -> Option<&str> {
        Some(text(fields.get("seccompProfile")?, "type"))
    }

    fn seccomp(&self) -> Option<String> {
        let is_bad = |fields: &Fields| Self::profile(fields) == Some("Unconfined");
        let rest = "must not set securityContext.seccompProfile.type to \"Unconfined\"";
        if is_bad(self.context()) {
            return Some(format!("seccompProfile (pod {rest})"));
        }
        Self::say(&self.those(|one| is_bad(context(one))), "seccompProfile", rest)
    }

    fn seccomp_restricted(&self) -> Option<String> {
        let is_good = |kind: Option<&str>| matches!(kind, Some("RuntimeDefault" | "Localhost"));
        let of_pod = Self::profile(self.context());
        let bad = self.those(|one| !is_good(Self::profile(context(one)).or(of_pod)));
        if bad.is_empty() && (of_pod.is_none() || is_good(of_pod)) {
            return None;
        }
        let who = if bad.is_empty() { "pod".to_owned() } else { format!("pod or {}", named(&bad)) };
        Some(format!(
            "seccompProfile ({who} must set securityContext.seccompProfile.type to \
             \"RuntimeDefault\" or \"Localhost\")"
        ))
    }

    fn sysctls(&self) -> Option<String> {
        let bad: Vec<&str> = list(self.context(), "sysctls")
            .iter()
            .map(|sysctl| text(sysctl, "name"))
            .filter(|name| !SAFE_SYSCTLS.contains(name))
            .collect();
        (!bad.is_empty()).then(|| format!("forbidden sysctls ({})", bad.join(", ")))
    }

    fn host_process(&self) -> Option<String> {
        let is_bad = |fields: &Fields| {
            fields
                .get("windowsOptions")
                .and_then(Value::as_object)
                .is_some_and(|options| is_true(options, "hostProcess"))
        };
        let bad = is_bad(self.context()) || self.containers().any(|one| is_bad(context(one)));
        bad.then(|| {
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A pod that `restricted` allows, to change in a test.
    fn hardened() -> Value {
        json!({
            "metadata": {"name": "p"},
            "spec": {
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "c", "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        })
    }

    /// Each control of the standards: what breaks it, and from which level on.
    #[test]
    fn every_control_is_checked() {
        use Level::{Baseline, Restricted};
        type Change = fn(&mut Value);
        fn own(pod: &mut Value) -> &mut Value {
            &mut pod["spec"]["containers"][0]["securityContext"]
        }
        let table: &[(Level, &str, Change)] = &[
            (Baseline, "host namespaces (hostNetwork=true, hostPID=true)", |p| {
                p["spec"]["hostNetwork"] = json!(true);
                p["spec"]["hostPID"] = json!(true);
            }),
            (Baseline, "host namespaces (hostIPC=true)", |p| p["spec"]["hostIPC"] = json!(true)),
            (
                Baseline,
                "privileged (container \"c\" must not set securityContext.privileged=true)",
                |p| {
                    own(p)["privileged"] = json!(true);
                },
            ),
            (Baseline, "privileged (container \"i\" must not", |p| {
                let mut init = p["spec"]["containers"][0].clone();
                init["name"] = json!("i");
                init["securityContext"]["privileged"] = json!(true);
                p["spec"]["initContainers"] = json!([init]);
            }),
            (
                Baseline,
                "must not include \"NET_ADMIN\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
                |p| {
                    own(p)["capabilities"]["add"] = json!(["SYS_ADMIN", "NET_ADMIN"]);
                },
            ),
            (Baseline, "(volume \"v\"", |p| {
                p["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}])
            }),
            (Baseline, "hostPort (container \"c\" uses hostPort 80)", |p| {
                p["spec"]["containers"][0]["ports"] =
                    json!([{"containerPort": 80, "hostPort": 80}]);
            }),
            (Baseline, "probe or lifecycle host", |p| {
                p["spec"]["containers"][0]["livenessProbe"] =
                    json!({"httpGet": {"host": "10.0.0.1"}});
            }),
            (Baseline, "AppArmor", |p| own(p)["appArmorProfile"] = json!({"type": "Unconfined"})),
            (Baseline, "seLinuxOptions", |p| own(p)["seLinuxOptions"] = json!({"type": "spc_t"})),
            (Baseline, "procMount", |p| own(p)["procMount"] = json!("Unmasked")),
            (Baseline, "seccompProfile", |p| {
                own(p)["seccompProfile"] = json!({"type": "Unconfined"})
            }),
            (Baseline, "seccompProfile", |p| {
                p["spec"]["securityContext"]["seccompProfile"] = json!({"type": "Unconfined"});
            }),
            (Baseline, "forbidden sysctls (kernel.msgmax)", |p| {
                p["spec"]["securityContext"]["sysctls"] = json!([
                    {"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_syncookies"}]);
            }),
            (Baseline, "hostProcess", |p| own(p)["windowsOptions"] = json!({"hostProcess": true})),
            (
                Restricted,
                "restricted volume types (volume \"v\" uses restricted volume type \"nfs\")",
                |p| {
                    p["spec"]["volumes"] = json!([{"name": "v", "nfs": {}}]);
                },
            ),
            (Restricted, "allowPrivilegeEscalation != false (container \"c\" must set", |p| {
                own(p)["allowPrivilegeEscalation"] = Value::Null;
            }),
            (Restricted, "runAsNonRoot != true (pod or container \"c\" must set", |p| {
                own(p)["runAsNonRoot"] = json!(false);
            }),
            (Restricted, "runAsUser=0 (container \"c\" must not set runAsUser=0)", |p| {
                own(p)["runAsUser"] = json!(0)
            }),
            (Restricted, "runAsUser=0 (pod must not", |p| {
                p["spec"]["securityContext"]["runAsUser"] = json!(0)
            }),
            (Restricted, "seccompProfile (pod or container \"c\" must set", |p| {
                p["spec"]["securityContext"]["seccompProfile"] = Value::Null;
            }),
            (
                Restricted,
                "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
                |p| {
                    own(p)["capabilities"] = json!({"drop": ["CHOWN"]});
                },
            ),
            (Restricted, "must not include \"CHOWN\"", |p| {
                own(p)["capabilities"]["add"] = json!(["CHOWN"])
            }),
        ];
        for (level, expected, change) in table {
            let mut pod = hardened();
            change(&mut pod);
            for asked in [Level::Privileged, Baseline, Restricted] {
                let found = violations(asked, &pod);
                if asked < *level {
                    assert_eq!(found, None, "{expected} at {asked}");
                } else {
                    let text = found.unwrap_or_default();
                    assert!(text.contains(expected), "{expected} at {asked}: {text}");
                }
            }
        }
    }

    #[test]
    fn what_the_standards_allow_passes() {
        assert_eq!(violations(Level::Restricted, &hardened()), None);
        let mut pod = hardened();
        pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] =
            json!(["NET_BIND_SERVICE"]);
        assert_eq!(violations(Level::Restricted, &pod), None);
        let plain = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(violations(Level::Baseline, &plain), None);
        assert_eq!(
            violations(Level::Restricted, &plain).unwrap(),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert!(
            violations(Level::Restricted, &json!({"spec": 1})).is_none(),
            "no container breaks nothing"
        );
    }

    #[test]
    fn a_namespace_says_its_levels() {
        let of = |value: Value| {
            let namespace =
                json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": value}}});
            level(&namespace, "enforce")
        };
        assert_eq!(of(json!("baseline")), Level::Baseline);
        assert_eq!(of(json!("restricted")), Level::Restricted);
        assert_eq!(of(json!("privileged")), Level::Privileged);
        assert_eq!(of(json!("basline")), Level::Restricted);
        assert_eq!(level(&json!({}), "warn"), Level::Privileged);
    }
}
