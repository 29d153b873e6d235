//! Validation: what is wrong with an object, all of it at once, in Kubernetes'
//! words.
//!
//! [`create`] looks at a whole new object, [`update`] also at what may not
//! change. Both expect defaults to be filled in and system fields to be set,
//! and types to be right: the schema check comes first. What is of the wrong
//! type here reads as absent. What Pinnace understands but cannot do yet is
//! [`unsupported`]'s.
//!
//! Source of rules and texts: `k8s.io/kubernetes/pkg/apis/*/validation`.

mod config;
mod container;
mod endpoints;
mod ephemeral;
mod health;
mod metadata;
mod network_policy;
mod node;
mod pod;
mod service;
mod storage;
pub mod unsupported;
mod volume;
mod workload;

use std::fmt;

use serde_json::{Map, Value};

use crate::resource::Resource;

/// Most causes one answer lists; an object can hold thousands of wrong keys.
pub const MAX_ERRORS: usize = 100;

/// What kind of wrong a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It must be given.
    Required,
    /// It has a value it cannot have.
    Invalid,
    /// It has none of a few allowed values.
    NotSupported,
    /// It may not be given, or not be changed.
    Forbidden,
    /// Another element of the list has this value already.
    Duplicate,
    /// It names something that is not there.
    NotFound,
    /// It holds too many bytes.
    TooLong,
    /// It holds too many elements.
    TooMany,
}

impl Reason {
    /// The `reason` of a cause in a `Status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Where: `spec.containers[0].image`.
    pub path: String,
    /// What kind of wrong.
    pub reason: Reason,
    /// What is wrong: `Invalid value: "X": must be ...`; the cause's `message`.
    pub message: String,
}

impl FieldError {
    /// A field with a value it cannot have, for callers outside this module.
    #[must_use]
    pub fn invalid(path: &str, value: &Value, detail: &str) -> Self {
        Self {
            path: path.to_owned(),
            reason: Reason::Invalid,
            message: format!("Invalid value: {value}: {detail}"),
        }
    }

    /// A field that may not be given, for callers outside this module.
    #[must_use]
    pub fn forbidden(path: &str, detail: &str) -> Self {
        Self {
            path: path.to_owned(),
            reason: Reason::Forbidden,
            message: format!("Forbidden: {detail}"),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The end of a `Status` message: one error as it is, several in brackets.
#[must_use]
pub fn summary(errors: &[FieldError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Everything that is wrong with a new object of `resource`.
#[must_use]
pub fn create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::object(resource, object, &mut errors);
    whole(resource, object, None, &mut errors);
    errors.list
}

/// Everything that is wrong with `new` in the place of `old`.
///
/// `subresource` is the path it was written through. A write to `status`,
/// `binding` and the like is the server's own business with `spec`: only
/// `metadata` is looked at.
#[must_use]
pub fn update(
    resource: &Resource,
    subresource: Option<&str>,
    old: &Value,
    new: &Value,
) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::object(resource, new, &mut errors);
    metadata::update(old, new, &mut errors);
    if matches!(subresource, None | Some("scale")) {
        whole(resource, new, Some(old), &mut errors);
        changes(resource, old, new, &mut errors);
    }
    if let ("", "Service", Some("status"), Some(root)) =
        (resource.group, resource.kind, subresource, new.as_object())
    {
        service::status(root, &mut errors);
    }
    if subresource == Some("ephemeralcontainers")
        && let (Some(old), Some(new)) = (old.as_object(), new.as_object())
    {
        ephemeral::update(fields(old, "spec"), fields(new, "spec"), &mut errors);
    }
    errors.list
}

/// Rules on one state of an object; `old` is the state it replaces.
fn whole(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let Some(root) = object.as_object() else { return };
    match (resource.group, resource.kind) {
        ("", "Pod") => {
            pod::spec(
                &SPEC,
                fields(root, "spec"),
                pod::Place::Pod { update: old.is_some() },
                errors,
            );
            pod::mirror(root, errors);
        }
        ("apps", "Deployment") => workload::deployment(fields(root, "spec"), errors),
        ("apps", "ReplicaSet") => workload::replica_set(fields(root, "spec"), errors),
        ("", "ConfigMap") => config::config_map(root, errors),
        ("", "Secret") => config::secret(root, errors),
        ("", "Namespace") => node::namespace(root, errors),
        ("", "Node") => node::node(root, errors),
        ("", "Event") => node::event(root, errors),
        ("", "PersistentVolume") => storage::volume(root, errors),
        ("", "PersistentVolumeClaim") => storage::claim(root, errors),
        ("storage.k8s.io", "StorageClass") => storage::class(root, errors),
        ("coordination.k8s.io", "Lease") => node::lease(root, errors),
        ("node.k8s.io", "RuntimeClass") => node::runtime_class(root, errors),
        ("", "Service") => service::service(root, errors),
        ("", "Endpoints") => endpoints::endpoints(root, errors),
        ("discovery.k8s.io", "EndpointSlice") => endpoints::slice(root, errors),
        ("networking.k8s.io", "NetworkPolicy") => network_policy::policy(root, errors),
        _ => {}
    }
}

/// Rules on what may change.
fn changes(resource: &Resource, old: &Value, new: &Value, errors: &mut Errors) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return };
    match (resource.group, resource.kind) {
        ("", "Pod") => {
            pod::update(fields(old, "spec"), fields(new, "spec"), errors);
            pod::mirror_update(old, new, errors);
        }
        ("apps", "Deployment" | "ReplicaSet") => {
            workload::update(fields(old, "spec"), fields(new, "spec"), errors);
        }
        ("", "ConfigMap") => config::config_map_update(old, new, errors),
        ("", "Secret") => config::secret_update(old, new, errors),
        ("", "Node") => node::node_update(old, new, errors),
        ("", "PersistentVolume") => storage::volume_update(old, new, errors),
        ("", "PersistentVolumeClaim") => storage::claim_update(old, new, errors),
        ("storage.k8s.io", "StorageClass") => storage::class_update(old, new, errors),
        ("", "Service") => service::service_update(old, new, errors),
        ("discovery.k8s.io", "EndpointSlice") => endpoints::slice_update(old, new, errors),
        _ => {}
    }
}

/// A JSON object's fields.
type Fields = Map<String, Value>;

/// What every rule writes to.
#[derive(Debug, Default)]
struct Errors {
    list: Vec<FieldError>,
}

impl Errors {
    fn push(&mut self, path: &Path<'_>, reason: Reason, value: &str, detail: &str) {
        if self.list.len() >= MAX_ERRORS {
            return;
        }
        let mut message = reason.words().to_owned();
        for part in [value, detail] {
            if !part.is_empty() {
                message.push_str(": ");
                message.push_str(part);
            }
        }
        self.list.push(FieldError { path: path.to_string(), reason, message });
    }

    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.push(path, Reason::Required, "", detail);
    }

    fn invalid(&mut self, path: &Path<'_>, text: &str, detail: &str) {
        self.push(path, Reason::Invalid, &format!("{text:?}"), detail);
    }

    /// One error for each thing wrong with a text.
    fn invalid_all(&mut self, path: &Path<'_>, text: &str, details: &[String]) {
        for detail in details {
            self.invalid(path, text, detail);
        }
    }

    fn invalid_number(&mut self, path: &Path<'_>, number: i64, detail: &str) {
        self.push(path, Reason::Invalid, &number.to_string(), detail);
    }

    fn invalid_value(&mut self, path: &Path<'_>, value: &Value, detail: &str) {
        self.push(path, Reason::Invalid, &value.to_string(), detail);
    }

    fn not_supported(&mut self, path: &Path<'_>, text: &str, allowed: &[&str]) {
        let allowed: Vec<String> = allowed.iter().map(|value| format!("{value:?}")).collect();
        let detail = format!("supported values: {}", allowed.join(", "));
        self.push(path, Reason::NotSupported, &format!("{text:?}"), &detail);
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.push(path, Reason::Forbidden, "", detail);
    }

    fn duplicate(&mut self, path: &Path<'_>, text: &str) {
        self.push(path, Reason::Duplicate, &format!("{text:?}"), "");
    }

    fn not_found(&mut self, path: &Path<'_>, text: &str) {
        self.push(path, Reason::NotFound, &format!("{text:?}"), "");
    }

    fn too_long(&mut self, path: &Path<'_>, max: usize) {
        self.push(path, Reason::TooLong, "", &format!("may not be more than {max} bytes"));
    }

    /// `text` must be one of `allowed`; absent is [`Reason::Required`] where `required`.
    fn one_of(&mut self, path: &Path<'_>, text: &str, allowed: &[&str], required: bool) {
        if text.is_empty() {
            if required {
                self.required(path, "");
            }
        } else if !allowed.contains(&text) {
            self.not_supported(path, text, allowed);
        }
    }

    /// A number that is there must not be negative.
    fn not_negative(&mut self, path: &Path<'_>, number: Option<i64>) {
        if let Some(number) = number
            && number < 0
        {
            self.invalid_number(path, number, "must be greater than or equal to 0");
        }
    }
}

/// A place in an object; written out only when something is wrong there.
#[derive(Clone, Copy, Debug)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

/// `spec`.
const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");

impl<'a> Path<'a> {
    fn field(&'a self, name: &'a str) -> Path<'a> {
        Self::Field(self, name)
    }

    fn index(&'a self, index: usize) -> Path<'a> {
        Self::Index(self, index)
    }

    fn key(&'a self, key: &'a str) -> Path<'a> {
        Self::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

/// The text of a field; empty where there is none.
fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(fields: &Fields, name: &str) -> Option<i64> {
    fields.get(name).and_then(Value::as_i64)
}

fn flag(fields: &Fields, name: &str) -> bool {
    fields.get(name).and_then(Value::as_bool).unwrap_or_default()
}

/// The object in a field; an empty one where there is none.
fn fields<'a>(parent: &'a Fields, name: &str) -> &'a Fields {
    static EMPTY: std::sync::LazyLock<Fields> = std::sync::LazyLock::new(Fields::new);
    object(parent, name).unwrap_or(&EMPTY)
}

fn object<'a>(parent: &'a Fields, name: &str) -> Option<&'a Fields> {
    parent.get(name).and_then(Value::as_object)
}

/// The elements of a list; none where there is no list.
fn items<'a>(parent: &'a Fields, name: &str) -> &'a [Value] {
    parent.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The objects in a list, with their places.
fn objects<'a>(parent: &'a Fields, name: &str) -> impl Iterator<Item = (usize, &'a Fields)> {
    items(parent, name).iter().enumerate().filter_map(|(n, v)| Some((n, v.as_object()?)))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{defaults, resource, strategy, time::Timestamp};

    /// Shared by the modules below: one line an error.
    pub(super) fn check_create(group: &str, kind: &str, mut object: Value, expected: &Expect) {
        let resource = resource::by_kind(group, kind).unwrap();
        defaults::apply(resource, &mut object);
        expected.assert_eq(&lines(&create(resource, &object)));
    }

    pub(super) fn check_update(
        group: &str,
        kind: &str,
        old: &Value,
        new: &Value,
        expected: &Expect,
    ) {
        let resource = resource::by_kind(group, kind).unwrap();
        let (mut old, mut new) = (old.clone(), new.clone());
        defaults::apply(resource, &mut old);
        defaults::apply(resource, &mut new);
        expected.assert_eq(&lines(&update(resource, None, &old, &new)));
    }

    fn lines(errors: &[FieldError]) -> String {
        errors
            .iter()
            .map(|e| format!("{} {e}\n", &e.reason.as_str()["FieldValue".len()..]))
            .collect()
    }

    #[test]
    fn a_summary_is_bracketed_only_for_several() {
        let one = FieldError::forbidden("spec.a", "no");
        assert_eq!(summary(std::slice::from_ref(&one)), "spec.a: Forbidden: no");
        assert_eq!(summary(&[one.clone(), one]), "[spec.a: Forbidden: no, spec.a: Forbidden: no]");
    }

    #[test]
    fn answers_are_bounded() {
        let data: Fields = (0..1000).map(|n| (format!("/{n}"), json!("x"))).collect();
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "data": data});
        let resource = resource::by_kind("", "ConfigMap").unwrap();
        assert_eq!(create(resource, &object).len(), MAX_ERRORS);
    }

    #[test]
    fn values_that_are_no_objects_pass_to_the_schema_check() {
        for resource in resource::all() {
            for object in
                [json!(1), json!({}), json!({"metadata": 3, "spec": [], "data": 1, "status": 2})]
            {
                let _ = create(resource, &object);
                let _ = update(
                    resource,
                    None,
                    &object,
                    &json!({"spec": {"template": 1, "containers": [1]}}),
                );
            }
        }
    }

    #[test]
    fn metadata_is_checked_for_every_kind() {
        check_create(
            "",
            "ServiceAccount",
            json!({"metadata": {
                "name": "X", "namespace": "a.b", "generateName": "y_",
                "labels": {"a b": "ok", "k": "not ok"}, "annotations": {"/": "x"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "", "controller": true},
                    {"apiVersion": "v1", "kind": "Event", "name": "b", "uid": "u", "controller": true},
                ],
                "finalizers": ["mine", "a/b", "orphan", "foregroundDeletion"],
            }}),
            &expect![[r#"
                Invalid metadata.generateName: Invalid value: "y_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                Invalid metadata.name: Invalid value: "X": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                Invalid metadata.namespace: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                Invalid metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                Invalid metadata.labels: Invalid value: "not ok": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
                Invalid metadata.annotations: Invalid value: "/": prefix part must be non-empty
                Invalid metadata.annotations: Invalid value: "/": name part must be non-empty
                Invalid metadata.annotations: Invalid value: "/": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
                Invalid metadata.ownerReferences[0].uid: Invalid value: "": uid must not be empty
                Invalid metadata.ownerReferences[1]: Invalid value: {"apiVersion":"v1","kind":"Event","name":"b","uid":"u","controller":true}: /v1, Kind=Event is disallowed from being an owner
                Invalid metadata.ownerReferences: Invalid value: [{"apiVersion":"v1","kind":"Pod","name":"a","uid":"","controller":true},{"apiVersion":"v1","kind":"Event","name":"b","uid":"u","controller":true}]: Only one reference can have Controller set to true. Found "true" in references for a and b
                Invalid metadata.finalizers[0]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified
                Invalid metadata.finalizers: Invalid value: ["mine","a/b","orphan","foregroundDeletion"]: finalizer orphan and foregroundDeletion cannot be both set
            "#]],
        );
        check_create(
            "",
            "Node",
            json!({"metadata": {"namespace": "x"}}),
            &expect![[r#"
            Required metadata.name: Required value: name or generateName is required
            Forbidden metadata.namespace: Forbidden: not allowed on this type
        "#]],
        );
        let old = json!({"metadata": {"name": "a", "namespace": "b", "deletionTimestamp": "x"}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a/b"]);
        check_update(
            "",
            "ConfigMap",
            &old,
            &new,
            &expect![[r#"
            Forbidden metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"a/b"}
        "#]],
        );
    }

    /// Objects that look a little like pods, deployments and the like.
    fn any_object() -> impl proptest::strategy::Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-zA-Z0-9%/=-]{0,8}".prop_map(Value::from),
            Just(json!("Exists")),
            Just(json!("RollingUpdate")),
        ];
        leaf.prop_recursive(8, 64, 6, |inner| {
            let names = prop::sample::select(vec![
                "metadata",
                "spec",
                "status",
                "template",
                "containers",
                "volumes",
                "name",
                "image",
                "env",
                "valueFrom",
                "fieldRef",
                "resources",
                "limits",
                "requests",
                "cpu",
                "ports",
                "securityContext",
                "tolerations",
                "strategy",
                "rollingUpdate",
                "maxSurge",
                "data",
                "selector",
                "matchLabels",
                "matchExpressions",
                "labels",
                "annotations",
                "finalizers",
                "ownerReferences",
                "stringData",
                "taints",
                "key",
                "operator",
                "values",
                "configMap",
                "items",
                "capacity",
                "livenessProbe",
                "involvedObject",
                "volumeMounts",
                "type",
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ports",
                "port",
                "targetPort",
                "nodePort",
                "endpoints",
                "addresses",
                "addressType",
                "subsets",
                "ingress",
                "egress",
                "from",
                "ipBlock",
                "cidr",
                "except",
            ]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::vec((names, inner), 0..6).prop_map(|fields| {
                    fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_object_is_judged_and_defaults_settle(old in any_object(), new in any_object()) {
            let wrap = |spec: &Value| json!({"metadata": spec, "spec": spec, "status": spec, "data": spec,
                "involvedObject": spec, "endpoints": [spec], "subsets": [spec], "ports": [spec]});
            for resource in resource::all() {
                let (mut old, mut new) = (wrap(&old), wrap(&new));
                defaults::apply(resource, &mut new);
                let once = new.clone();
                defaults::apply(resource, &mut new);
                prop_assert_eq!(&once, &new);
                strategy::prepare_for_create(resource, &mut old, "u", Timestamp::UNIX_EPOCH);
                for subresource in [None, Some("status"), Some("finalize"), Some("scale")] {
                    let mut new = new.clone();
                    strategy::prepare_for_update(resource, subresource, &old, &mut new);
                    let _ = update(resource, subresource, &old, &new);
                }
                let _ = create(resource, &new);
                let _ = unsupported::check(resource, &new);
                let ranges = crate::service::Ranges::default();
                let _ = crate::service::prepare(&ranges, Some(&old), &mut new);
                let once = new.clone();
                let _ = crate::service::prepare(&ranges, Some(&old), &mut new);
                prop_assert_eq!(&once, &new);
                let _ = crate::service::held(&new);
                let _ = crate::meta::object_meta(&new);
            }
        }
    }
}
