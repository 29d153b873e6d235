//! What is served, for clients to find out: discovery in both of its forms,
//! made from the table of resources.

use api::resource::{GroupVersionKind, Resource, Subresource, Verb, api_version};
use serde_json::{Value, json};

/// `/api`, old form.
#[must_use]
pub fn core_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [
            {"clientCIDR": "0.0.0.0/0", "serverAddress": server_address},
        ],
    })
}

/// `/apis`, old form.
#[must_use]
pub fn groups(table: &[Resource]) -> Value {
    let groups: Vec<Value> =
        named_groups(table).map(|(name, versions)| group_of(name, &versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`.
#[must_use]
pub fn group(table: &[Resource], name: &str) -> Option<Value> {
    let (name, versions) = named_groups(table).find(|(group, _)| *group == name)?;
    let mut group = json!({"kind": "APIGroup", "apiVersion": "v1"});
    let fields = group_of(name, &versions);
    for (key, value) in fields.as_object().into_iter().flatten() {
        group[key] = value.clone();
    }
    Some(group)
}

/// `/api/v1` and `/apis/{group}/{version}`, old form.
#[must_use]
pub fn resources(table: &[Resource], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of_version(table, group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular,
            "namespaced": resource.namespaced, "kind": resource.kind,
            "verbs": verbs(resource.verbs),
        });
        add_names(&mut entry, resource);
        list.push(entry);
        for sub in resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name), "singularName": "",
                "namespaced": resource.namespaced,
            });
            if (sub.kind.group, sub.kind.version) != (group, version) {
                entry["group"] = json!(sub.kind.group);
                entry["version"] = json!(sub.kind.version);
            }
            entry["kind"] = json!(sub.kind.kind);
            entry["verbs"] = verbs(sub.verbs);
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version(group, version), "resources": list,
    }))
}

/// `/api` (core) or `/apis`, aggregated form.
#[must_use]
pub fn aggregated(table: &[Resource], core: bool) -> Value {
    let groups = group_versions(table).into_iter().filter(|(name, _)| name.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of_version(table, name, version).map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural, "responseKind": kind(&resource.gvk()),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular, "verbs": verbs(resource.verbs),
    });
    add_names(&mut entry, resource);
    if !resource.subresources.is_empty() {
        let list: Vec<Value> = resource.subresources.iter().map(aggregated_subresource).collect();
        entry["subresources"] = Value::Array(list);
    }
    entry
}

fn aggregated_subresource(sub: &Subresource) -> Value {
    json!({"subresource": sub.name, "responseKind": kind(&sub.kind), "verbs": verbs(sub.verbs)})
}

fn kind(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn verbs(verbs: &[Verb]) -> Value {
    let mut names: Vec<&str> = verbs.iter().map(|verb| verb.as_str()).collect();
    names.sort_unstable();
    json!(names)
}

fn add_names(entry: &mut Value, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
}

/// Groups in the order of the table, each with its versions in that order.
fn group_versions(table: &[Resource]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for resource in table {
        match groups.iter_mut().find(|(name, _)| *name == resource.group) {
            Some((_, versions)) if versions.contains(&resource.version) => {}
            Some((_, versions)) => versions.push(resource.version),
            None => groups.push((resource.group, vec![resource.version])),
        }
    }
    groups
}

fn named_groups(table: &[Resource]) -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    group_versions(table).into_iter().filter(|(name, _)| !name.is_empty())
}

fn of_version<'a>(
    table: &'a [Resource],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Resource> + 'a {
    table.iter().filter(move |r| r.group == group && r.version == version)
}

fn group_of(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": api_version(name, version), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
}

#[cfg(test)]
mod tests {
    use api::resource;

    use super::*;

    #[test]
    fn both_forms_list_the_same_resources() {
        let all = resource::all();
        assert_eq!(group_versions(all), resource::groups());
        for (group, versions) in resource::groups() {
            for version in versions {
                let old = resources(all, group, version).unwrap();
                let names: Vec<&str> = old["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter_map(|r| r["name"].as_str())
                    .filter(|name| !name.contains('/'))
                    .collect();
                let new = aggregated(all, group.is_empty());
                let items = new["items"].as_array().unwrap();
                let item = items
                    .iter()
                    .find(|item| item["metadata"]["name"].as_str().unwrap_or_default() == group)
                    .unwrap();
                let listed: Vec<&str> = item["versions"][0]["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter_map(|r| r["resource"].as_str())
                    .collect();
                assert_eq!(names, listed);
            }
        }
        assert!(resources(all, "apps", "v9").is_none());
        assert_eq!(group(all, "apps").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert!(group(all, "").is_none());
    }
}
