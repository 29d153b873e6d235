//! What kubectl looks for in a document, and that every reference in it leads somewhere.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{hash, paths, write_document, write_index};
use crate::resource::{all, groups};
use crate::schema::table;

fn document(group: &str, version: &str) -> Value {
    let mut bytes = Vec::new();
    write_document(&mut bytes, all(), group, version).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn group_versions() -> Vec<(&'static str, &'static str)> {
    groups().iter().flat_map(|(group, versions)| versions.iter().map(|v| (*group, *v))).collect()
}

fn references<'a>(value: &'a Value, into: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, into));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_to_a_schema() {
    for (group, version) in group_versions() {
        let document = document(group, version);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            let schema = &document["components"]["schemas"][name];
            assert!(schema.is_object(), "{group}/{version}: {reference}");
        }
    }
}

#[test]
fn every_resource_can_be_explained_and_patched() {
    // What is only measured is in none of the published definitions.
    let is_measured = |group: &str| matches!(group, "metrics.k8s.io" | "net.pinnace.io");
    for resource in all().iter().filter(|resource| !is_measured(resource.group)) {
        let (group, version) = (resource.group, resource.version);
        let document = document(group, version);
        let gvk = json!({"group": group, "kind": resource.kind, "version": version});
        let of = table().kind(group, version, resource.kind).unwrap();
        let schema = &document["components"]["schemas"][of.name()];
        assert_eq!(schema["x-kubernetes-group-version-kind"], json!([gvk]));
        for sub in resource.subresources {
            let kind = sub.kind;
            // Their options stand in the query and have no schema, as upstream.
            if matches!(sub.name, "attach" | "exec" | "portforward") {
                continue;
            }
            assert!(table().kind(kind.group, kind.version, kind.kind).is_some(), "{kind:?}");
        }
        let operations: Vec<_> = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|item| item.as_object().unwrap().values())
            .filter(|operation| operation["x-kubernetes-group-version-kind"] == gvk)
            .collect();
        assert!(!operations.is_empty(), "{gvk}");
        let patches = operations.iter().filter(|o| o["x-kubernetes-action"] == "patch");
        for patch in patches {
            let parameters: Vec<_> = patch["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            assert_eq!(parameters, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        }
    }
}

#[test]
fn operation_ids_are_unique() {
    for (group, version) in group_versions() {
        let document = document(group, version);
        let mut seen = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if let Some(id) = operation["operationId"].as_str() {
                    assert!(seen.insert(id.to_owned()), "{method} {path}: {id}");
                }
            }
        }
    }
}

#[test]
fn schemas_say_what_kubernetes_says() {
    let document = document("", "v1");
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    let mut without_text = containers.clone();
    without_text.as_object_mut().unwrap().remove("description");
    assert_eq!(
        without_text,
        json!({
            "type": "array",
            "items": {"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-strategy": "merge",
            "x-kubernetes-patch-merge-key": "name",
        })
    );
    let metadata = &schemas["io.k8s.api.core.v1.Pod"]["properties"]["metadata"];
    assert_eq!(
        metadata["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}])
    );
    assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
    let data = &schemas["io.k8s.api.core.v1.Secret"]["properties"]["data"];
    assert_eq!(data["additionalProperties"], json!({"type": "string", "format": "byte"}));
    let quantity = &schemas["io.k8s.apimachinery.pkg.api.resource.Quantity"];
    assert_eq!(quantity["oneOf"], json!([{"type": "string"}, {"type": "number"}]));
    let list = &document["paths"]["/api/v1/namespaces/{namespace}/pods"]["get"];
    assert_eq!(list["operationId"], "listCoreV1NamespacedPod");
    assert_eq!(
        list["responses"]["200"]["content"]["application/json"]["schema"]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.PodList"
    );
}

#[test]
fn the_index_names_every_document() {
    let mut bytes = Vec::new();
    write_index(&mut bytes, all()).unwrap();
    let index: Value = serde_json::from_slice(&bytes).unwrap();
    let paths = index["paths"].as_object().unwrap();
    assert_eq!(paths.len(), group_versions().len());
    let hash = hash(all(), "apps", "v1");
    assert_eq!(
        paths["apis/apps/v1"]["serverRelativeURL"],
        format!("/openapi/v3/apis/apps/v1?hash={hash}")
    );
    assert_ne!(hash, super::hash(all(), "", "v1"));
    assert_ne!(hash, super::hash(&[], "apps", "v1"));
}

/// Not a check: writes the documents for `tools/schema/kubectl.py explain`.
#[test]
#[ignore = "writes to the folder OPENAPI_DIR"]
fn write_documents() {
    let directory = PathBuf::from(std::env::var("OPENAPI_DIR").unwrap());
    let mut index = Vec::new();
    write_index(&mut index, all()).unwrap();
    std::fs::write(directory.join("index.json"), index).unwrap();
    for (group, version) in group_versions() {
        let mut bytes = Vec::new();
        write_document(&mut bytes, all(), group, version).unwrap();
        let name = paths::document_path(group, version).replace('/', "__");
        std::fs::write(directory.join(format!("{name}.json")), bytes).unwrap();
    }
}
