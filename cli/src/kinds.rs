//! The kinds a server serves, found by any name that people use for them:
//! `pod`, `pods`, `po`, `Pod`, `deploy`, `deployments.apps`, `deployments.v1.apps`, `all`.

use anyhow::{anyhow, bail};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::urls::escape;

const DISCOVERY: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) namespaced: bool,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) verbs: Vec<String>,
    pub(crate) subresources: Vec<String>,
}

impl Kind {
    /// A kind of the core group, for what commands look up themselves.
    pub(crate) fn core(plural: &str, kind: &str, namespaced: bool) -> Self {
        Self {
            version: "v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            namespaced,
            ..Self::default()
        }
    }

    /// Pods.
    pub(crate) fn pods() -> Self {
        Self::core("pods", "Pod", true)
    }

    /// EndpointSlices.
    pub(crate) fn endpoint_slices() -> Self {
        let group = "discovery.k8s.io".to_owned();
        Self { group, ..Self::core("endpointslices", "EndpointSlice", true) }
    }

    /// Nodes.
    pub(crate) fn nodes() -> Self {
        Self::core("nodes", "Node", false)
    }

    /// As objects state it: `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The collection; `namespace` is left out for cluster-scoped kinds, and
    /// `None` means all namespaces.
    pub(crate) fn collection(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{root}/namespaces/{}/{}", escape(namespace), self.plural)
            }
            _ => format!("{root}/{}", self.plural),
        }
    }

    /// One object.
    pub(crate) fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(Some(namespace)), escape(name))
    }

    /// As `-o name` and result lines show it: `pod`, `deployment.apps`.
    pub(crate) fn qualified_singular(&self) -> String {
        let singular = self.kind.to_lowercase();
        if self.group.is_empty() { singular } else { format!("{singular}.{}", self.group) }
    }

    /// `deployment.apps/web`.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}/{name}", self.qualified_singular())
    }

    fn goes_by(&self, name: &str) -> bool {
        self.plural == name
            || self.singular == name
            || self.kind.to_lowercase() == name
            || self.short_names.iter().any(|short| short == name)
    }
}

/// All kinds of a server, core first.
#[derive(Debug)]
pub(crate) struct Kinds(Vec<Kind>);

impl Kinds {
    /// Asks the server.
    pub(crate) async fn discover(cluster: &Cluster) -> Result<Self, Failure> {
        let (core, groups) = futures::future::try_join(
            cluster.get_as("/api", DISCOVERY),
            cluster.get_as("/apis", DISCOVERY),
        )
        .await?;
        let mut kinds = Vec::new();
        for list in [&core, &groups] {
            if list["kind"] != "APIGroupDiscoveryList" {
                return Err(Failure::Garbled {
                    server: cluster.server.clone(),
                    detail: "it does not list its resources in one answer: Kubernetes 1.30 or \
                             newer does"
                        .to_owned(),
                });
            }
            kinds.extend(read_groups(list));
        }
        Ok(Self(kinds))
    }

    /// The kinds a name means: one, or those of a category such as `all`.
    pub(crate) fn named(&self, name: &str) -> anyhow::Result<Vec<Kind>> {
        let lower = name.to_lowercase();
        if let Some(kind) = self.0.iter().find(|kind| kind.goes_by(&lower)) {
            return Ok(vec![kind.clone()]);
        }
        let in_category = |kind: &&Kind| kind.categories.contains(&lower);
        let category: Vec<Kind> = self.0.iter().filter(in_category).cloned().collect();
        if !category.is_empty() {
            return Ok(category);
        }
        if let Some((first, group)) = lower.split_once('.') {
            let in_group = |kind: &&Kind| {
                kind.goes_by(first)
                    && (kind.group == group
                        || group == kind.version
                        || group.strip_prefix(&format!("{}.", kind.version))
                            == Some(kind.group.as_str()))
            };
            if let Some(kind) = self.0.iter().find(in_group) {
                return Ok(vec![kind.clone()]);
            }
        }
        Err(self.unknown(name))
    }

    /// The one kind a name means.
    pub(crate) fn one(&self, name: &str) -> anyhow::Result<Kind> {
        match self.named(name)?.as_slice() {
            [kind] => Ok(kind.clone()),
            _ => bail!("\"{name}\" means several kinds: name one of them"),
        }
    }

    /// The kind of an object.
    pub(crate) fn of(&self, api_version: &str, kind: &str) -> anyhow::Result<Kind> {
        let found =
            self.0.iter().find(|known| known.kind == kind && known.api_version() == api_version);
        if let Some(found) = found {
            return Ok(found.clone());
        }
        let others: Vec<String> =
            self.0.iter().filter(|k| k.kind == kind).map(Kind::api_version).collect();
        if others.is_empty() {
            Err(anyhow!("no kind \"{kind}\" in \"{api_version}\" is served here"))
        } else {
            Err(anyhow!("{kind} is served as {}, not as {api_version}", others.join(" and ")))
        }
    }

    fn unknown(&self, name: &str) -> anyhow::Error {
        let mut names: Vec<&str> = self
            .0
            .iter()
            .filter(|kind| kind.verbs.iter().any(|verb| verb == "list"))
            .map(|kind| kind.plural.as_str())
            .collect();
        names.dedup();
        anyhow!("the server doesn't have a resource type \"{name}\": it has {}", names.join(", "))
    }
}

fn read_groups(list: &Value) -> Vec<Kind> {
    let texts = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut kinds = Vec::new();
    for group in list["items"].as_array().into_iter().flatten() {
        let Some(versions) = group["versions"].as_array() else { continue };
        // The first version is the preferred one; others only count for what it lacks.
        for version in versions {
            for resource in version["resources"].as_array().into_iter().flatten() {
                let subresources = resource["subresources"].as_array().into_iter().flatten();
                kinds.push(Kind {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    namespaced: resource["scope"] == "Namespaced",
                    short_names: texts(&resource["shortNames"]),
                    categories: texts(&resource["categories"]),
                    verbs: texts(&resource["verbs"]),
                    subresources: subresources.map(|s| text(&s["subresource"])).collect(),
                });
            }
        }
    }
    kinds
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    fn group(name: &str, resources: Value) -> Value {
        json!({"metadata": {"name": name}, "versions": [{"version": "v1", "resources": resources}]})
    }

    pub(crate) fn kinds() -> Kinds {
        let core = group(
            "",
            json!([
                {"resource": "namespaces", "responseKind": {"kind": "Namespace"}, "scope": "Cluster",
                 "singularResource": "namespace", "shortNames": ["ns"], "verbs": ["list"]},
                {"resource": "pods", "responseKind": {"kind": "Pod"}, "scope": "Namespaced",
                 "singularResource": "pod", "shortNames": ["po"], "categories": ["all"],
                 "verbs": ["list"], "subresources": [{"subresource": "log"}]},
            ]),
        );
        let apps = group(
            "apps",
            json!([
                {"resource": "deployments", "responseKind": {"kind": "Deployment"},
                 "scope": "Namespaced", "singularResource": "deployment", "verbs": ["list"],
                 "shortNames": ["deploy"], "categories": ["all"],
                 "subresources": [{"subresource": "scale"}]},
            ]),
        );
        Kinds(read_groups(&json!({"items": [core, apps]})))
    }

    #[test]
    fn every_name_of_a_kind_is_understood() {
        let kinds = kinds();
        for name in ["pod", "pods", "po", "Pod", "PODS", "pods.v1"] {
            assert_eq!(kinds.one(name).unwrap().plural, "pods", "{name}");
        }
        for name in ["deploy", "Deployment", "deployment.apps", "deployments.v1.apps"] {
            assert_eq!(kinds.one(name).unwrap().plural, "deployments", "{name}");
        }
        let all: Vec<_> = kinds.named("all").unwrap().into_iter().map(|k| k.plural).collect();
        assert_eq!(all, ["pods", "deployments"]);
        kinds.one("all").unwrap_err();
        let error = kinds.one("pots").unwrap_err().to_string();
        assert_eq!(
            error,
            "the server doesn't have a resource type \"pots\": it has namespaces, pods, deployments"
        );
        kinds.named("pods.apps").unwrap_err();
    }

    #[test]
    fn objects_find_their_kind() {
        let kinds = kinds();
        assert_eq!(kinds.of("apps/v1", "Deployment").unwrap().plural, "deployments");
        let error = kinds.of("extensions/v1beta1", "Deployment").unwrap_err().to_string();
        assert_eq!(error, "Deployment is served as apps/v1, not as extensions/v1beta1");
        kinds.of("v1", "Service").unwrap_err();
    }

    #[test]
    fn paths_name_collections_and_objects() {
        let kinds = kinds();
        let pods = kinds.one("pods").unwrap();
        assert_eq!(pods.collection(None), "/api/v1/pods");
        assert_eq!(pods.object("a b", "c/d"), "/api/v1/namespaces/a%20b/pods/c%2Fd");
        assert_eq!(kinds.one("ns").unwrap().object("x", "n"), "/api/v1/namespaces/n");
        let deployments = kinds.one("deploy").unwrap();
        assert_eq!(deployments.collection(Some("n")), "/apis/apps/v1/namespaces/n/deployments");
        assert_eq!(deployments.named("web"), "deployment.apps/web");
    }
}
