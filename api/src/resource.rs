//! The one table of resources: what the API server serves, under which names,
//! and how each of them behaves.
//!
//! Everything generic asks here: discovery, routing, storage keys, the verbs of
//! a URL, field selectors, whether a write bumps `metadata.generation`. A new
//! kind is a new entry in `table`, and whatever defaults and validation it
//! needs; never a new handler. It does not know the fields of a kind: that is
//! the schema table's.
//!
//! Keys in the store:
//!
//! | what | key |
//! |---|---|
//! | namespaced object | `/{group or "core"}/{plural}/{namespace}/{name}` |
//! | cluster-scoped object | `/{group or "core"}/{plural}/{name}` |
//! | all objects of a resource | prefix `/{group or "core"}/{plural}/` |
//! | all objects of a namespace | prefix `/{group or "core"}/{plural}/{namespace}/` |
//!
//! The version is not part of a key: two versions of a group share one object.
//! Keys sort by namespace, then by name, as etcd's keys do.

mod fields;
mod table;

use std::fmt;

pub use table::{ALL_VERBS, REVIEW_VERBS};

use crate::ObjectKey;

/// What a client may ask of a resource; the word RBAC rules use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// POST on the collection.
    Create,
    /// DELETE on one object.
    Delete,
    /// DELETE on the collection.
    DeleteCollection,
    /// GET on one object.
    Get,
    /// GET on the collection.
    List,
    /// PATCH on one object, whatever the patch's format.
    Patch,
    /// PUT on one object.
    Update,
    /// GET with `watch=true`.
    Watch,
}

impl Verb {
    /// The verb as discovery and RBAC spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where objects of a resource are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the store, synced before the answer.
    Durable,
    /// In the bounded environment without sync: Events.
    Volatile,
    /// In memory, gone with the process: Leases.
    Memory,
    /// Nowhere: the answer is computed from the request, as for reviews, or measured
    /// for it, as metrics are.
    Virtual,
}

/// A kind with its group and version, as constants of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupVersionKind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version inside the group, such as `v1`.
    pub version: &'static str,
    /// Kind, such as `Pod`.
    pub kind: &'static str,
}

impl GroupVersionKind {
    /// The text an object carries in `apiVersion`: `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

/// A path below an object, with a request and an answer of its own.
#[derive(Debug)]
pub struct Subresource {
    /// The path segment: `status`, `scale`, `log`, ...
    pub name: &'static str,
    /// The kind of its body; for `status` the resource's own.
    pub kind: GroupVersionKind,
    /// What it answers to.
    pub verbs: &'static [Verb],
}

/// What may happen to an object of a resource, apart from its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// `spec` changes bump `metadata.generation`, which starts at 1.
    pub has_generation: bool,
    /// A delete may leave the object in place for `gracePeriodSeconds`.
    pub graceful_deletion: bool,
    /// PUT on a name that does not exist creates the object.
    pub create_on_update: bool,
    /// PUT without `resourceVersion` replaces whatever is there.
    pub unconditional_update: bool,
    /// The default `propagationPolicy` of a delete is `Background`; only then
    /// does a delete leave dependents to the garbage collector.
    pub garbage_collected: bool,
}

/// One resource of the API.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version inside the group.
    pub version: &'static str,
    /// Kind of one object.
    pub kind: &'static str,
    /// Kind of a list of them.
    pub list_kind: &'static str,
    /// Name in URLs and RBAC rules.
    pub plural: &'static str,
    /// Name of one, as `kubectl` accepts it.
    pub singular: &'static str,
    /// Abbreviations `kubectl` accepts.
    pub short_names: &'static [&'static str],
    /// Groups of resources `kubectl` accepts, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What the collection and its objects answer to.
    pub verbs: &'static [Verb],
    /// Paths below an object.
    pub subresources: &'static [Subresource],
    /// Where objects are kept.
    pub storage: Storage,
    /// Rules of life and change.
    pub strategy: Strategy,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub field_selectors: &'static [&'static str],
}

impl Resource {
    /// Group, version and kind of one object.
    #[must_use]
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind { group: self.group, version: self.version, kind: self.kind }
    }

    /// The text objects carry in `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The name error messages use: `pods`, `deployments.apps`.
    #[must_use]
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The subresource `name`, where there is one.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Whether `status` is written through a path of its own, and so ignored on the main one.
    #[must_use]
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether `scale` reads and sets `spec.replicas`.
    #[must_use]
    pub fn has_scale(&self) -> bool {
        self.subresource("scale").is_some()
    }

    /// Whether `verb` is served on the resource itself.
    #[must_use]
    pub fn allows(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    /// The prefix that all keys of this resource share; ends in `/`.
    #[must_use]
    pub fn key_prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("/{group}/{}/", self.plural)
    }

    /// The prefix of the keys in `namespace`; of all keys where it is empty.
    #[must_use]
    pub fn namespace_prefix(&self, namespace: &str) -> String {
        let mut prefix = self.key_prefix();
        if self.namespaced && !namespace.is_empty() {
            prefix.push_str(namespace);
            prefix.push('/');
        }
        prefix
    }

    /// The key of one object; `namespace` is ignored for a cluster-scoped one.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let mut key = self.key_prefix();
        if self.namespaced {
            key.push_str(namespace);
            key.push('/');
        }
        key.push_str(name);
        key
    }

    /// The namespace and name in a key of this resource; the inverse of [`Resource::key`].
    #[must_use]
    pub fn object_key(&self, key: &str) -> Option<ObjectKey> {
        let rest = key.strip_prefix(&self.key_prefix())?;
        let (namespace, name) = if self.namespaced { rest.split_once('/')? } else { ("", rest) };
        (!name.is_empty() && !name.contains('/')).then(|| ObjectKey::new(namespace, name))
    }
}

/// `v1` for the core group, else `group/version`.
#[must_use]
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits the text of an object's `apiVersion` into group and version.
///
/// `None` where it is empty or has more than one slash.
#[must_use]
pub fn parse_api_version(text: &str) -> Option<(&str, &str)> {
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    (!version.is_empty() && !version.contains('/')).then_some((group, version))
}

/// Every resource, in the order discovery lists them: core first, then by group.
#[must_use]
pub fn all() -> &'static [Resource] {
    table::RESOURCES
}

/// The resource a URL names.
#[must_use]
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The resource of a kind, in whatever version of the group is served first.
#[must_use]
pub fn by_kind(group: &str, kind: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.kind == kind && r.group == group)
}

/// The resource of an object's `apiVersion` and `kind`.
#[must_use]
pub fn by_api_version(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = parse_api_version(api_version)?;
    all().iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// The resource a store key belongs to, and the object's namespace and name.
#[must_use]
pub fn by_key(key: &str) -> Option<(&'static Resource, ObjectKey)> {
    let mut segments = key.strip_prefix('/')?.splitn(3, '/');
    let (group, plural) = (segments.next()?, segments.next()?);
    let group = if group == "core" { "" } else { group };
    let resource = all().iter().find(|r| r.plural == plural && r.group == group)?;
    Some((resource, resource.object_key(key)?))
}

/// Every group with its versions, core (the empty name) first.
#[must_use]
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in all() {
        let at = groups.iter().position(|(group, _)| *group == resource.group);
        let at = at.unwrap_or_else(|| {
            groups.push((resource.group, Vec::new()));
            groups.len() - 1
        });
        if !groups[at].1.contains(&resource.version) {
            groups[at].1.push(resource.version);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_complete() {
        for (n, resource) in all().iter().enumerate() {
            assert_eq!(resource.list_kind, format!("{}List", resource.kind));
            assert_eq!(resource.singular, resource.kind.to_lowercase());
            for other in &all()[..n] {
                assert_ne!(
                    (resource.group, resource.version, resource.plural),
                    (other.group, other.version, other.plural)
                );
            }
            let by_url = by_plural(resource.group, resource.version, resource.plural);
            assert!(std::ptr::eq(by_url.unwrap(), resource));
            assert_eq!(by_kind(resource.group, resource.kind).unwrap().plural, resource.plural);
        }
    }

    #[test]
    fn keys_read_back_and_nest_under_their_prefixes() {
        for resource in all() {
            let namespace = if resource.namespaced { "shop" } else { "" };
            let key = resource.key(namespace, "web-1.x");
            assert!(key.starts_with(&resource.namespace_prefix(namespace)));
            let (found, object) = by_key(&key).unwrap();
            assert_eq!(found.plural, resource.plural);
            assert_eq!(object, ObjectKey::new(namespace, "web-1.x"));
        }
        assert_eq!(by_plural("", "v1", "pods").unwrap().key("a", "b"), "/core/pods/a/b");
        assert_eq!(by_plural("", "v1", "nodes").unwrap().key("", "n"), "/core/nodes/n");
        let deployments = by_plural("apps", "v1", "deployments").unwrap();
        assert_eq!(deployments.namespace_prefix("a"), "/apps/deployments/a/");
        assert_eq!(deployments.namespace_prefix(""), "/apps/deployments/");
        assert!(by_key("/core/pods/only").is_none());
        assert!(by_key("/nowhere/pods/a/b").is_none());
        assert!(by_key("core").is_none());
    }

    #[test]
    fn api_versions_read_back() {
        assert_eq!(parse_api_version("v1"), Some(("", "v1")));
        assert_eq!(parse_api_version("apps/v1"), Some(("apps", "v1")));
        assert_eq!(parse_api_version(""), None);
        assert_eq!(parse_api_version("a/b/c"), None);
        assert_eq!(by_api_version("apps/v1", "Deployment").unwrap().plural, "deployments");
        assert!(by_api_version("apps/v2", "Deployment").is_none());
    }

    #[test]
    fn the_schema_knows_every_kind_and_agrees_about_status() {
        let schema = crate::schema::table();
        for resource in all() {
            let of = |kind| schema.kind(resource.group, resource.version, kind);
            // Only shown, and in none of the published definitions.
            if matches!(resource.group, "metrics.k8s.io" | "net.pinnace.io") {
                continue;
            }
            let object = of(resource.kind).unwrap();
            if resource.storage == Storage::Virtual {
                continue;
            }
            assert!(of(resource.list_kind).is_some(), "{}", resource.list_kind);
            assert_eq!(object.field("status").is_some(), resource.has_status(), "{object:?}");
            for sub in resource.subresources {
                let GroupVersionKind { group, version, kind } = sub.kind;
                // Options that stand in the query and are in no body, as upstream's are.
                if matches!(sub.name, "attach" | "exec" | "portforward") {
                    continue;
                }
                assert!(schema.kind(group, version, kind).is_some(), "{}", sub.name);
            }
        }
    }

    #[test]
    fn groups_are_listed_once() {
        let groups = groups();
        assert_eq!(groups[0], ("", vec!["v1"]));
        assert!(groups.contains(&("apps", vec!["v1"])));
        let mut names: Vec<_> = groups.iter().map(|g| g.0).collect();
        names.dedup();
        assert_eq!(names.len(), groups.len());
    }
}
