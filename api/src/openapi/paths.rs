//! The `paths` part of a document: what each URL of a resource answers to.

use serde_json::{Map, Value, json};

use super::schemas::{meta, reference};
use crate::resource::{GroupVersionKind, Resource, Subresource, Verb};
use crate::schema::table;

const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

const LIST_PARAMETERS: [(&str, &str); 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE_PARAMETERS: [(&str, &str); 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// Where the document of a group and version is, below `/openapi/v3/`.
pub(super) fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// Every path of a resource with what it answers to.
pub(super) fn of(resource: &Resource) -> Vec<(String, Value)> {
    let base = format!("/{}", document_path(resource.group, resource.version));
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", resource.plural);
    let object = format!("{collection}/{{name}}");

    let mut paths = vec![
        (collection, item(resource, None, &[Verb::List, Verb::Create, Verb::DeleteCollection])),
        (
            object.clone(),
            item(resource, None, &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete]),
        ),
    ];
    for sub in resource.subresources {
        let verbs = [Verb::Create, Verb::Get, Verb::Update, Verb::Patch, Verb::Delete];
        paths.push((format!("{object}/{}", sub.name), item(resource, Some(sub), &verbs)));
    }
    if resource.namespaced && resource.allows(Verb::List) {
        let mut across = Map::new();
        let gvk = resource.gvk();
        let name = operation_name(resource, None, true);
        across.insert("get".to_owned(), operation(gvk, gvk, Verb::List, "", &name, resource));
        paths.push((format!("{base}/{}", resource.plural), Value::Object(across)));
    }
    paths.retain(|(_, item)| item.as_object().is_some_and(has_operation));
    paths
}

fn has_operation(item: &Map<String, Value>) -> bool {
    item.keys().any(|key| key != "parameters")
}

fn item(resource: &Resource, sub: Option<&Subresource>, verbs: &[Verb]) -> Value {
    let (body, served) = match sub {
        Some(sub) => (sub.kind, sub.verbs),
        None => (resource.gvk(), resource.verbs),
    };
    let mut item = Map::new();
    for verb in verbs.iter().filter(|verb| served.contains(verb)) {
        let method = match verb {
            Verb::List | Verb::Get | Verb::Watch => "get",
            Verb::Create => "post",
            Verb::Update => "put",
            Verb::Patch => "patch",
            Verb::Delete | Verb::DeleteCollection => "delete",
        };
        let name = operation_name(resource, sub, false);
        let sub = sub.map_or("", |sub| sub.name);
        let operation = operation(body, resource.gvk(), *verb, sub, &name, resource);
        item.insert(method.to_owned(), operation);
    }
    let mut parameters = Vec::new();
    if !matches!(verbs.first(), Some(Verb::List)) {
        parameters.push(path_parameter("name"));
    }
    if resource.namespaced {
        parameters.push(path_parameter("namespace"));
    }
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), Value::Array(parameters));
    }
    Value::Object(item)
}

/// `body` is the kind of the request and answer, `owner` that of the resource.
fn operation(
    body: GroupVersionKind,
    owner: GroupVersionKind,
    verb: Verb,
    sub: &str,
    name: &str,
    resource: &Resource,
) -> Value {
    let (action, prefix, success) = match verb {
        Verb::List | Verb::Watch => ("list", "list", "200"),
        Verb::Get => ("get", "read", "200"),
        Verb::Create => ("post", "create", "201"),
        Verb::Update => ("put", "replace", "200"),
        Verb::Patch => ("patch", "patch", "200"),
        Verb::Delete => ("delete", "delete", "200"),
        Verb::DeleteCollection => ("deletecollection", "deleteCollection", "200"),
    };
    // What becomes something else than HTTP.
    let connects = matches!(sub, "attach" | "exec" | "portforward");
    let (action, prefix, success) = match (connects, verb) {
        (true, Verb::Create) => ("connect", "connectPost", "200"),
        (true, _) => ("connect", "connectGet", "200"),
        _ => (action, prefix, success),
    };
    let body_schema = kind_schema(body);
    let mut parameters: Vec<Value> = Vec::new();
    let mut add = |list: &[(&str, &str)]| {
        parameters.extend(list.iter().map(|(name, kind)| query_parameter(name, kind)));
    };
    let request = match verb {
        _ if connects => None,
        Verb::List | Verb::Watch => {
            add(&LIST_PARAMETERS);
            None
        }
        Verb::Get => None,
        Verb::Create | Verb::Update => {
            add(&WRITE_PARAMETERS);
            Some(json!({"*/*": {"schema": body_schema}}))
        }
        Verb::Patch => {
            add(&WRITE_PARAMETERS);
            add(&[("force", "boolean")]);
            let patch = json!({"schema": reference(meta("Patch"))});
            Some(PATCH_TYPES.iter().map(|media| (*media, patch.clone())).collect())
        }
        Verb::Delete => {
            add(&DELETE_PARAMETERS);
            Some(json!({"*/*": {"schema": reference(meta("DeleteOptions"))}}))
        }
        Verb::DeleteCollection => {
            add(&DELETE_PARAMETERS);
            add(&LIST_PARAMETERS);
            Some(json!({"*/*": {"schema": reference(meta("DeleteOptions"))}}))
        }
    };
    let answer = match verb {
        Verb::List | Verb::Watch => {
            kind_schema(GroupVersionKind { kind: resource.list_kind, ..owner })
        }
        Verb::Delete | Verb::DeleteCollection => reference(meta("Status")),
        _ => body_schema,
    };
    let content = if connects {
        json!({"*/*": {"schema": {"type": "string"}}})
    } else if sub == "log" {
        json!({"text/plain": {"schema": {"type": "string"}}})
    } else {
        json!({"application/json": {"schema": answer}})
    };
    let mut operation = Map::new();
    operation.insert("tags".to_owned(), json!([tag(owner)]));
    operation.insert("operationId".to_owned(), json!(format!("{prefix}{name}")));
    if !parameters.is_empty() {
        operation.insert("parameters".to_owned(), Value::Array(parameters));
    }
    if let Some(request) = request {
        let is_required = !matches!(verb, Verb::Delete | Verb::DeleteCollection);
        let request = json!({"content": request, "required": is_required});
        operation.insert("requestBody".to_owned(), request);
    }
    let responses = json!({success: {"description": "OK", "content": content}});
    operation.insert("responses".to_owned(), responses);
    operation.insert("x-kubernetes-action".to_owned(), json!(action));
    operation.insert(
        "x-kubernetes-group-version-kind".to_owned(),
        json!({"group": body.group, "kind": body.kind, "version": body.version}),
    );
    Value::Object(operation)
}

fn kind_schema(of: GroupVersionKind) -> Value {
    // Every kind that is served is in the table; a test holds that.
    table().kind(of.group, of.version, of.kind).map_or_else(|| json!({"type": "object"}), reference)
}

fn query_parameter(name: &str, kind: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn path_parameter(name: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

/// `core_v1`, as the client generators name their modules.
fn tag(of: GroupVersionKind) -> String {
    let group = if of.group.is_empty() { "core" } else { of.group };
    format!("{}_{}", group.trim_end_matches(".k8s.io").replace(['.', '-'], "_"), of.version)
}

/// `CoreV1NamespacedPodStatus`: an operation's id without its verb.
fn operation_name(resource: &Resource, sub: Option<&Subresource>, all_namespaces: bool) -> String {
    let group: String = tag(resource.gvk()).split('_').map(capitalised).collect();
    let scope = if resource.namespaced && !all_namespaces { "Namespaced" } else { "" };
    let sub = sub.map_or_else(String::new, |sub| capitalised(sub.name));
    let suffix = if all_namespaces { "ForAllNamespaces" } else { "" };
    format!("{group}{scope}{}{sub}{suffix}", resource.kind)
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
