//! Who may do what: the place in the request path where roles decide.
//!
//! [`Authorizer`] is asked for every request, from HTTP and from inside the
//! master alike, before anything is read. [`BuiltIn`] knows two roles: the
//! masters, who may do everything, and a node, which may touch only its own
//! objects. Everybody else who is signed in gets discovery; everybody else gets
//! health. Rules of RBAC objects will be a third role here, not elsewhere.

use std::fmt;
use std::sync::Arc;

use api::resource::{self, Resource};
use serde_json::{Value, json};
use store::Store;

use crate::identity::{Identity, MASTERS, SERVICE_ACCOUNTS};
use crate::object;

/// What somebody wants to do with a resource, in RBAC's words.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'a str,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for a cluster-scoped object and for all namespaces.
    pub namespace: &'a str,
    /// Empty for the collection.
    pub name: &'a str,
    /// The node that a field selector `spec.nodeName=` pins a list of pods to.
    pub pinned_node: &'a str,
}

/// The answer of an [`Authorizer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow,
    /// It may not; the text, if any, is shown to the user.
    Deny(String),
}

impl Decision {
    fn from_bool(allowed: bool, reason: &str) -> Self {
        if allowed { Self::Allow } else { Self::Deny(reason.to_owned()) }
    }

    /// Whether it may.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// Decides on every request.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether `who` may do that with a resource.
    fn authorize(&self, who: &Identity, what: &Attributes<'_>) -> Decision;

    /// Whether `who` may `verb` a path outside the API groups, such as `/metrics`.
    fn authorize_path(&self, who: &Identity, verb: &str, path: &str) -> Decision;

    /// The rules of `who` in `namespace`, for `kubectl auth can-i --list`:
    /// the `status` of a `SelfSubjectRulesReview`.
    fn rules(&self, who: &Identity, namespace: &str) -> Value;
}

/// The two roles that exist without any RBAC object.
#[derive(Clone)]
pub struct BuiltIn {
    store: Arc<dyn Store>,
}

impl fmt::Debug for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BuiltIn")
    }
}

/// Paths that everybody may read.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Paths that everybody who is signed in may read.
const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi"];
/// Paths that ServiceAccounts may read, as upstream's
/// `system:service-account-issuer-discovery`.
const ISSUER_PATHS: &[&str] = &["/.well-known/openid-configuration", "/openid/v1/jwks"];

impl BuiltIn {
    /// Reads from `store` which pods are bound to a node.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    fn read(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        let found = self.store.get(&resource.key(namespace, name)).ok()??;
        serde_json::from_slice(&found.value).ok()
    }

    /// The rule of nodes: own Node, own Lease, pods bound to it, and what those pods mount.
    fn authorize_node(&self, node: &str, what: &Attributes<'_>) -> Decision {
        let own_node_only = "a node may only touch its own Node";
        let own_pods_only = "a node may only touch pods bound to it";
        match (what.group, what.resource, what.subresource) {
            ("", "nodes", "") => Decision::from_bool(
                matches!(what.verb, "get" | "watch" | "patch" | "update") && what.name == node,
                own_node_only,
            ),
            ("", "nodes", "status") => Decision::from_bool(
                matches!(what.verb, "get" | "patch" | "update") && what.name == node,
                own_node_only,
            ),
            ("coordination.k8s.io", "leases", "") => Decision::from_bool(
                what.namespace == "kube-node-lease"
                    && what.name == node
                    && matches!(what.verb, "get" | "create" | "update" | "patch" | "watch"),
                "a node may only touch its own Lease",
            ),
            ("", "pods", sub @ ("" | "status")) => {
                let one = match sub {
                    "" => matches!(what.verb, "get" | "delete"),
                    _ => matches!(what.verb, "get" | "patch" | "update"),
                };
                let bound_here = || {
                    resource::by_kind("", "Pod")
                        .and_then(|pods| self.read(pods, what.namespace, what.name))
                        .is_some_and(|pod| object::text(&pod, &["spec", "nodeName"]) == node)
                };
                let pinned = matches!(what.verb, "list" | "watch") && what.pinned_node == node;
                // What it creates must be a mirror of a static pod: admission looks.
                let allowed = if what.verb == "create" {
                    sub.is_empty()
                } else if what.name.is_empty() || pinned {
                    pinned && sub.is_empty()
                } else {
                    one && bound_here()
                };
                Decision::from_bool(allowed, own_pods_only)
            }
            ("", "events", "") => {
                let allowed = matches!(what.verb, "create" | "patch" | "update");
                Decision::from_bool(allowed, "a node may only write events")
            }
            ("", "secrets" | "configmaps", "") => Decision::from_bool(
                what.verb == "get" && !what.name.is_empty() && self.is_mounted(node, what),
                "a node may only read what its own pods refer to",
            ),
            _ => Decision::Deny(String::new()),
        }
    }

    /// Whether a pod bound to `node` refers to the Secret or ConfigMap.
    fn is_mounted(&self, node: &str, what: &Attributes<'_>) -> bool {
        let Some(pods) = resource::by_kind("", "Pod") else { return false };
        let prefix = pods.namespace_prefix(what.namespace);
        if what.namespace.is_empty() {
            return false;
        }
        let Ok(list) = self.store.list(&prefix, &store::ListOptions::default()) else {
            return false;
        };
        list.items.iter().any(|item| {
            let Ok(pod) = serde_json::from_slice::<Value>(&item.value) else { return false };
            object::text(&pod, &["spec", "nodeName"]) == node
                && refers_to(&pod["spec"], what.resource, what.name)
        })
    }
}

/// Whether a pod's spec names the Secret or ConfigMap in a volume, in the
/// environment or for pulling images.
fn refers_to(spec: &Value, resource: &str, name: &str) -> bool {
    references(spec, resource).iter().any(|reference| *reference == name)
}

/// Whether a pod's spec names any Secret or ConfigMap.
pub(crate) fn refers_to_any(spec: &Value, resource: &str) -> bool {
    references(spec, resource).iter().any(|reference| !reference.is_null())
}

/// Whether a volume of a pod's spec shows a token of its ServiceAccount.
pub(crate) fn wants_token(spec: &Value) -> bool {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let mut sources =
        volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    sources.any(|source| source["serviceAccountToken"].is_object())
}

/// The names of all Secrets or ConfigMaps in a pod's spec, and nulls.
fn references<'a>(spec: &'a Value, resource: &str) -> Vec<&'a Value> {
    let (volume, volume_key, env, env_from) = if resource == "secrets" {
        ("secret", "secretName", "secretKeyRef", "secretRef")
    } else {
        ("configMap", "name", "configMapKeyRef", "configMapRef")
    };
    fn list(value: &Value) -> impl Iterator<Item = &Value> {
        value.as_array().into_iter().flatten()
    }
    let mut names = Vec::new();
    for v in list(&spec["volumes"]) {
        names.push(&v[volume][volume_key]);
        names.extend(list(&v["projected"]["sources"]).map(|source| &source[volume]["name"]));
    }
    if resource == "secrets" {
        names.extend(list(&spec["imagePullSecrets"]).map(|secret| &secret["name"]));
    }
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(&spec[containers]) {
            names.extend(list(&container["env"]).map(|e| &e["valueFrom"][env]["name"]));
            names.extend(list(&container["envFrom"]).map(|e| &e[env_from]["name"]));
        }
    }
    names
}

impl Authorizer for BuiltIn {
    fn authorize(&self, who: &Identity, what: &Attributes<'_>) -> Decision {
        if who.is_in(MASTERS) {
            return Decision::Allow;
        }
        let review = matches!(what.group, "authorization.k8s.io" | "authentication.k8s.io");
        if review && !who.is_anonymous() && what.resource.starts_with("selfsubject") {
            return Decision::from_bool(what.verb == "create", "");
        }
        match who.node_name() {
            Some(node) => self.authorize_node(node, what),
            None => Decision::Deny(String::new()),
        }
    }

    fn authorize_path(&self, who: &Identity, verb: &str, path: &str) -> Decision {
        let below = |roots: &[&str]| {
            roots.iter().any(|root| {
                path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let reads = matches!(verb, "get" | "head" | "options");
        let allowed = who.is_in(MASTERS)
            || reads && who.is_in(SERVICE_ACCOUNTS) && below(ISSUER_PATHS)
            || reads && below(PUBLIC_PATHS)
            || reads && !who.is_anonymous() && (path == "/" || below(DISCOVERY_PATHS));
        Decision::from_bool(allowed, "")
    }

    fn rules(&self, who: &Identity, _namespace: &str) -> Value {
        if who.is_in(MASTERS) {
            return json!({
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": false,
            });
        }
        let reviews = json!([
            {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
             "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]},
            {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"],
             "resources": ["selfsubjectreviews"]},
        ]);
        let paths: Vec<String> = PUBLIC_PATHS
            .iter()
            .chain(DISCOVERY_PATHS)
            .flat_map(|path| [(*path).to_owned(), format!("{path}/*")])
            .collect();
        // What a node may do depends on single objects, which rules cannot say.
        json!({
            "resourceRules": reviews,
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": paths}],
            "incomplete": who.node_name().is_some(),
        })
    }
}
