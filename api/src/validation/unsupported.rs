//! What Pinnace understands in a pod but cannot do yet.
//!
//! Nothing of it is dropped silently. A field that bears on security is
//! **refused**: a pod that believes itself confined and is not, or asks for
//! more of the machine than the agent would give, must not start. Any other
//! gets a **warning**, for a `Warning` header and an Event.
//!
//! Two tables say which is which. When the agent learns a field, its line goes;
//! nothing else changes. A field in neither table is one that the agent
//! honours, or that means nothing to a node.

use serde_json::Value;

use super::{Errors, FieldError, Fields, Path, SPEC, fields, flag, object, objects, text};
use crate::resource::Resource;

/// What to say about the pod fields of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsupported {
    /// Reasons to refuse the object (422).
    pub refused: Vec<FieldError>,
    /// Texts for `Warning` headers and an Event.
    pub warnings: Vec<String>,
}

/// When a field counts as used.
#[derive(Clone, Copy, Debug)]
enum When {
    /// It is there and not empty.
    Set,
    /// It is `true`.
    True,
    /// It is `false`.
    False,
    /// It is a text other than these.
    NotOneOf(&'static [&'static str]),
}

/// One line: where, when, and what to say.
type Line = (&'static str, When, &'static str);

/// Runtime classes there are.
const RUNTIME_CLASSES: &[&str] = &["oci", "wasm"];

/// Refused in a pod's spec.
const POD_REFUSED: &[Line] = &[
    ("hostUsers", When::False, "user namespaces are not implemented yet"),
    ("securityContext.seLinuxOptions", When::Set, "SELinux is not implemented"),
    ("securityContext.appArmorProfile", When::Set, "AppArmor is not implemented"),
    ("securityContext.windowsOptions", When::Set, "nodes run Linux"),
    ("runtimeClassName", When::NotOneOf(RUNTIME_CLASSES), "use \"oci\" or \"wasm\""),
    ("os.name", When::NotOneOf(&["linux"]), "nodes run Linux"),
];

/// Warned about in a pod's spec.
const POD_WARNED: &[Line] = &[
    ("affinity", When::Set, "use nodeSelector"),
    ("topologySpreadConstraints", When::Set, "pods are spread by free resources"),
    ("schedulingGates", When::Set, "they are never waited for"),
    ("priorityClassName", When::Set, "no pod is preempted"),
    ("resourceClaims", When::Set, "devices are requested as resources"),
    ("resources", When::Set, "use the resources of each container"),
    (
        "schedulerName",
        When::NotOneOf(&["default-scheduler"]),
        "the only scheduler is default-scheduler",
    ),
    ("overhead", When::Set, "it counts for scheduling only"),
    ("securityContext.supplementalGroupsPolicy", When::Set, "groups are merged"),
];

/// Refused in a container.
const CONTAINER_REFUSED: &[Line] = &[
    ("securityContext.seLinuxOptions", When::Set, "SELinux is not implemented"),
    ("securityContext.appArmorProfile", When::Set, "AppArmor is not implemented"),
    ("securityContext.windowsOptions", When::Set, "nodes run Linux"),
    ("volumeDevices", When::Set, "block devices are not implemented"),
];

/// Warned about in a container.
const CONTAINER_WARNED: &[Line] = &[
    ("restartPolicyRules", When::Set, "only restartPolicy counts"),
    ("resizePolicy", When::Set, "resources change with a new pod only"),
    ("resources.claims", When::Set, "devices are requested as resources"),
];

/// Sources of a volume that the agent makes.
const VOLUME_HONOURED: &[&str] = &[
    "name",
    "configMap",
    "secret",
    "emptyDir",
    "hostPath",
    "downwardAPI",
    "projected",
    "persistentVolumeClaim",
];

/// Warned about in a volume; any other source gets [`VOLUME_OTHER`].
const VOLUME_WARNED: &[Line] =
    &[("ephemeral", When::Set, "the folder is empty and goes with the pod")];
/// Warned about in a PersistentVolume's spec.
const PERSISTENT_VOLUME_WARNED: &[Line] =
    &[("mountOptions", When::Set, "a folder is mounted as it is")];
/// Warned about in a StorageClass.
const STORAGE_CLASS_WARNED: &[Line] = &[
    ("mountOptions", When::Set, "a folder is mounted as it is"),
    ("allowVolumeExpansion", When::True, "the size of a local volume is not enforced"),
];
/// What to say about every other source.
const VOLUME_OTHER: &str = "the folder stays empty";

/// Warned about in a source of a projected volume.
const PROJECTION_WARNED: &[Line] = &[
    ("clusterTrustBundle", When::Set, "the file is not there"),
    ("podCertificate", When::Set, "the file is not there"),
];

/// Warned about in a Service.
const SERVICE_WARNED: &[Line] =
    &[("loadBalancerIP", When::Set, "a load balancer has the addresses of the nodes")];
/// Warned about in a port of a Service.
const SERVICE_PORT_WARNED: &[Line] =
    &[("protocol", When::NotOneOf(&["TCP", "UDP"]), "only TCP and UDP are carried")];

/// Looks at the pod or pod template in `object`; nothing for other kinds.
#[must_use]
pub fn check(resource: &Resource, object: &Value) -> Unsupported {
    let Some(root) = object.as_object() else { return Unsupported::default() };
    let spec = fields(root, "spec");
    let mut found = Found::default();
    match (resource.group, resource.kind) {
        ("", "Pod") => {
            annotations(&Path::Root.field("metadata"), fields(root, "metadata"), &mut found);
            pod(&SPEC, spec, &mut found);
        }
        ("apps", "Deployment" | "ReplicaSet") => {
            let template = fields(spec, "template");
            let at = SPEC.field("template");
            annotations(&at.field("metadata"), fields(template, "metadata"), &mut found);
            pod(&at.field("spec"), fields(template, "spec"), &mut found);
        }
        ("", "Service") => {
            found.look(&SPEC, spec, &[], SERVICE_WARNED);
            let at = SPEC.field("ports");
            for (n, port) in objects(spec, "ports") {
                found.look(&at.index(n), port, &[], SERVICE_PORT_WARNED);
            }
        }
        ("", "PersistentVolume") => found.look(&SPEC, spec, &[], PERSISTENT_VOLUME_WARNED),
        ("storage.k8s.io", "StorageClass") => {
            found.look(&Path::Root, root, &[], STORAGE_CLASS_WARNED);
        }
        _ => {}
    }
    Unsupported { refused: found.refused.list, warnings: found.warnings }
}

#[derive(Default)]
struct Found {
    refused: Errors,
    warnings: Vec<String>,
}

impl Found {
    fn look(&mut self, path: &Path<'_>, fields: &Fields, refused: &[Line], warned: &[Line]) {
        for (field, when, detail) in refused {
            if applies(fields, field, *when) {
                let detail = format!("Pinnace cannot do this: {detail}");
                self.refused.forbidden(&path.field(field), &detail);
            }
        }
        for (field, when, detail) in warned {
            if applies(fields, field, *when) {
                self.warn(&path.field(field), detail);
            }
        }
    }

    fn warn(&mut self, place: &Path<'_>, detail: &str) {
        if self.warnings.len() < super::MAX_ERRORS {
            self.warnings.push(format!("{place}: not honoured by Pinnace yet: {detail}"));
        }
    }
}

fn applies(from: &Fields, field: &str, when: When) -> bool {
    let mut parents = from;
    let mut rest = field;
    let value = loop {
        match rest.split_once('.') {
            Some((parent, inner)) => match object(parents, parent) {
                Some(found) => (parents, rest) = (found, inner),
                None => return false,
            },
            None => break parents.get(rest),
        }
    };
    let Some(value) = value else { return false };
    match when {
        When::Set => match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty() || is_source(field),
            Value::Number(number) => number.as_i64() != Some(0),
            Value::Bool(_) => true,
        },
        When::True => value == &Value::Bool(true),
        When::False => value == &Value::Bool(false),
        When::NotOneOf(allowed) => {
            value.as_str().is_some_and(|text| !text.is_empty() && !allowed.contains(&text))
        }
    }
}

/// A volume source counts even where it is empty.
fn is_source(field: &str) -> bool {
    VOLUME_WARNED.iter().any(|(name, ..)| *name == field)
}

fn pod(path: &Path<'_>, spec: &Fields, found: &mut Found) {
    found.look(path, spec, POD_REFUSED, POD_WARNED);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let at = path.field(list);
        for (n, fields) in objects(spec, list) {
            container(&at.index(n), fields, found);
        }
    }
    let at = path.field("volumes");
    for (n, volume) in objects(spec, "volumes") {
        let at = at.index(n);
        found.look(&at, volume, &[], VOLUME_WARNED);
        let listed = |name: &str| VOLUME_HONOURED.contains(&name) || is_source(name);
        for (name, _) in volume.iter().filter(|(name, value)| !listed(name) && !value.is_null()) {
            found.warn(&at.field(name), VOLUME_OTHER);
        }
        let projected = at.field("projected");
        let sources = projected.field("sources");
        for (n, source) in objects(fields(volume, "projected"), "sources") {
            found.look(&sources.index(n), source, &[], PROJECTION_WARNED);
        }
    }
}

fn container(path: &Path<'_>, container: &Fields, found: &mut Found) {
    found.look(path, container, CONTAINER_REFUSED, CONTAINER_WARNED);
    let context = fields(container, "securityContext");
    if flag(context, "runAsNonRoot") && super::number(context, "runAsUser") == Some(0) {
        // Kubernetes leaves this to the node; here it can be said at once.
        found.refused.forbidden(
            &path.field("securityContext").field("runAsUser"),
            "must not be 0 when `runAsNonRoot` is true",
        );
    }
}

/// The old way to name security profiles, still in many manifests.
fn annotations(path: &Path<'_>, metadata: &Fields, found: &mut Found) {
    let parent = path.field("annotations");
    let annotations = fields(metadata, "annotations");
    for key in annotations.keys() {
        let profile = text(annotations, key);
        let apparmor = key.starts_with("container.apparmor.security.beta.kubernetes.io/");
        let seccomp = key.starts_with("seccomp.security.alpha.kubernetes.io/")
            || key.starts_with("container.seccomp.security.alpha.kubernetes.io/");
        if apparmor || seccomp && !matches!(profile, "runtime/default" | "docker/default") {
            found.refused.forbidden(
                &parent.key(key),
                "Pinnace cannot do this: security profiles by annotation are not implemented",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;
    use crate::{defaults, resource, schema};

    fn check_spec(spec: &Value, expected: &Expect) {
        let resource = resource::by_kind("", "Pod").unwrap();
        let mut object = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        defaults::apply(resource, &mut object);
        let found = check(resource, &object);
        let refused = found.refused.iter().map(|error| format!("refused {error}\n"));
        let warned = found.warnings.iter().map(|warning| format!("warning {warning}\n"));
        expected.assert_eq(&refused.chain(warned).collect::<String>());
    }

    #[test]
    fn what_the_agent_honours_passes_without_a_word() {
        check_spec(
            &json!({
                "containers": [{
                    "name": "c", "image": "i", "command": ["a"], "args": ["b"], "workingDir": "/",
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "envFrom": [{"configMapRef": {"name": "m"}}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                    "ports": [{"containerPort": 80}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "subPath": "a"}],
                    "securityContext": {
                        "runAsUser": 1, "runAsGroup": 1, "runAsNonRoot": true, "privileged": false,
                        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "m"}}],
                "runtimeClassName": "wasm", "nodeSelector": {"a": "b"}, "hostname": "h",
                "tolerations": [{"operator": "Exists"}], "automountServiceAccountToken": true,
            }),
            &expect![""],
        );
    }

    #[test]
    fn security_is_refused_and_the_rest_warned_about() {
        check_spec(
            &json!({
                "hostPID": false, "hostUsers": false, "runtimeClassName": "gvisor",
                "securityContext": {"fsGroup": 5, "seccompProfile": {"type": "Unconfined"}},
                "initContainers": [{"name": "i", "securityContext": {"privileged": true}}],
                "affinity": {}, "hostAliases": [{"ip": "1.2.3.4"}], "activeDeadlineSeconds": 5,
                "containers": [{
                    "livenessProbe": {"exec": {"command": ["x"]}}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                    "resources": {"limits": {"ephemeral-storage": "1Gi"}},
                    "securityContext": {"procMount": "Unmasked", "runAsNonRoot": true, "runAsUser": 0},
                    "ports": [{"containerPort": 80, "hostPort": 80}],
                    "volumeMounts": [{"mountPropagation": "Bidirectional"}],
                    "stdin": true, "tty": false,
                }],
                "volumes": [{"hostPath": {"path": "/"}}, {"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}, {"nfs": {}}],
            }),
            &expect![[r#"
                refused spec.hostUsers: Forbidden: Pinnace cannot do this: user namespaces are not implemented yet
                refused spec.runtimeClassName: Forbidden: Pinnace cannot do this: use "oci" or "wasm"
                refused spec.containers[0].securityContext.runAsUser: Forbidden: must not be 0 when `runAsNonRoot` is true
                warning spec.volumes[2].nfs: not honoured by Pinnace yet: the folder stays empty
            "#]],
        );
    }

    #[test]
    fn templates_are_looked_at_too() {
        let resource = resource::by_kind("apps", "Deployment").unwrap();
        let object = json!({"spec": {"template": {
            "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}},
            "spec": {"hostUsers": false}}}});
        let paths: Vec<_> = check(resource, &object).refused.into_iter().map(|e| e.path).collect();
        assert_eq!(
            paths,
            [
                "spec.template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]",
                "spec.template.spec.hostUsers",
            ]
        );
    }

    /// A line with a typing error would never apply.
    #[test]
    fn every_line_names_a_field_that_exists() {
        let of =
            |name: &str| schema::table().by_name(&format!("io.k8s.api.core.v1.{name}")).unwrap();
        for (kind, tables) in [
            ("PodSpec", [POD_REFUSED, POD_WARNED]),
            ("Container", [CONTAINER_REFUSED, CONTAINER_WARNED]),
            ("Volume", [&[], VOLUME_WARNED]),
            ("VolumeProjection", [&[], PROJECTION_WARNED]),
        ] {
            for (field, ..) in tables.into_iter().flatten() {
                let mut at = of(kind);
                let mut segments = field.split('.').peekable();
                while let Some(segment) = segments.next() {
                    let found = at.field(segment).unwrap_or_else(|| panic!("{kind}: {field}"));
                    match found.shape() {
                        schema::Shape::Object(inner) => at = inner,
                        schema::Shape::Map(_) => break,
                        _ => assert!(segments.peek().is_none(), "{kind}: {field}"),
                    }
                }
            }
        }
    }
}
