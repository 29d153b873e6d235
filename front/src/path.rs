//! What a URL means: its path and its query, with percent signs undone.
//!
//! ```text
//! /api/v1/pods                                  all namespaces
//! /api/v1/namespaces/{ns}/pods[/{name}[/{sub}]]
//! /apis/{group}/{version}/…                     the same below a named group
//! ```

use std::time::Duration;

use api::resource::{self, Resource};
use api::selector::{FieldSelector, LabelSelector};

use crate::options::{FieldValidation, Propagation, Selection, VersionMatch};
use crate::status::Status;

/// Longest path and query that are read, in bytes.
const URL_BYTES_MAX: usize = 64 * 1024;
/// Longest `timeoutSeconds` of a watch.
const WATCH_SECONDS_MAX: u64 = 24 * 3600;

/// What a path names.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/{group}`.
    Group(String),
    /// `/api/v1`, `/apis/{group}/{version}`.
    Resources(String, String),
    /// A collection or an object.
    Resource(ResourcePath),
    /// Anything else, by its path.
    Other(String),
}

/// A collection, an object or a subresource.
#[derive(Clone, Debug)]
pub struct ResourcePath {
    /// Of which resource.
    pub resource: &'static Resource,
    /// Empty for all, and where there is none.
    pub namespace: String,
    /// Empty for the collection.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
}

impl PartialEq for ResourcePath {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.resource, other.resource)
            && (&self.namespace, &self.name, &self.subresource)
                == (&other.namespace, &other.name, &other.subresource)
    }
}

impl Route {
    /// Reads a path as it stands in the request line.
    ///
    /// # Errors
    /// `BadRequest` or `NotFound`: it is malformed, or names nothing that is known.
    pub fn parse(path: &str) -> Result<Self, Status> {
        if path.len() > URL_BYTES_MAX {
            return Err(Status::bad_request("the path is too long"));
        }
        let trimmed = path.trim_matches('/');
        let segments: Vec<String> = if trimmed.is_empty() {
            Vec::new()
        } else {
            trimmed.split('/').map(|segment| decode(segment, false)).collect::<Result<_, _>>()?
        };
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["api"] => Ok(Self::CoreVersions),
            ["apis"] => Ok(Self::Groups),
            ["apis", group] => Ok(Self::Group((*group).to_owned())),
            ["api", version] => Ok(Self::Resources(String::new(), (*version).to_owned())),
            ["apis", group, version] => {
                Ok(Self::Resources((*group).to_owned(), (*version).to_owned()))
            }
            ["api", version, rest @ ..] => resource_path("", version, rest).map(Self::Resource),
            ["apis", group, version, rest @ ..] => {
                resource_path(group, version, rest).map(Self::Resource)
            }
            _ => Ok(Self::Other(format!("/{trimmed}"))),
        }
    }
}

fn resource_path(group: &str, version: &str, rest: &[&str]) -> Result<ResourcePath, Status> {
    let find = |plural: &str| resource::by_plural(group, version, plural);
    let (namespace, rest) = match rest {
        // Namespaces have subresources of their own.
        ["namespaces", _, "status" | "finalize"] if group.is_empty() => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return Err(Status::no_such_path()),
    };
    let resource = find(plural).ok_or_else(Status::no_such_path)?;
    // An object needs its namespace, and a cluster-scoped one has none.
    let misplaced = if resource.namespaced {
        namespace.is_empty() && !name.is_empty()
    } else {
        !namespace.is_empty()
    };
    let unknown = !subresource.is_empty() && resource.subresource(subresource).is_none();
    if misplaced || unknown {
        return Err(Status::no_such_path());
    }
    for (segment, given) in [(namespace, resource.namespaced), (name, true)] {
        let problems = api::names::path_segment(segment);
        if given && !segment.is_empty() && !problems.is_empty() {
            return Err(Status::bad_request(format!(
                "invalid name \"{segment}\": {}",
                problems.join(", ")
            )));
        }
    }
    Ok(ResourcePath {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    })
}

/// The parameters of a query, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of a URL after the question mark.
    ///
    /// # Errors
    /// `BadRequest`: it is too long or has a malformed escape.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.len() > URL_BYTES_MAX {
            return Err(Status::bad_request("the query is too long"));
        }
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(key, true)?, decode(value, true)?))
        });
        Ok(Self(pairs.collect::<Result<_, Status>>()?))
    }

    /// The first value of `key`; empty counts as absent.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(k, _)| k == key)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of `key`, in order.
    #[must_use]
    pub fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, value)| value.clone()).collect()
    }

    /// A flag: false where it is absent, true where it is there without a value.
    ///
    /// # Errors
    /// `BadRequest`: it is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<bool, Status> {
        match self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str()) {
            None | Some("false" | "0" | "False" | "FALSE" | "f" | "F") => Ok(false),
            Some("" | "true" | "1" | "True" | "TRUE" | "t" | "T") => Ok(true),
            Some(other) => Err(Status::bad_request(format!(
                "{key}: Invalid value: \"{other}\": must be true or false"
            ))),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// `BadRequest`: it is none.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Status> {
        self.get(key)
            .map(|value| {
                value.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "{key}: Invalid value: \"{value}\": must be a whole number"
                    ))
                })
            })
            .transpose()
    }

    /// `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// `BadRequest`: one of them is malformed.
    pub fn selection(&self) -> Result<Selection, Status> {
        let bad = |error: String| Status::bad_request(error);
        let labels = match self.get("labelSelector") {
            Some(text) => LabelSelector::parse(text)
                .map_err(|error| bad(format!("unable to parse label selector: {error}")))?,
            None => LabelSelector::default(),
        };
        let fields = match self.get("fieldSelector") {
            Some(text) => FieldSelector::parse(text)
                .map_err(|error| bad(format!("unable to parse field selector: {error}")))?,
            None => FieldSelector::default(),
        };
        Ok(Selection { labels, fields })
    }

    /// `resourceVersionMatch`.
    ///
    /// # Errors
    /// `BadRequest`: it is unknown.
    pub fn version_match(&self) -> Result<Option<VersionMatch>, Status> {
        match self.get("resourceVersionMatch") {
            None => Ok(None),
            Some("Exact") => Ok(Some(VersionMatch::Exact)),
            Some("NotOlderThan") => Ok(Some(VersionMatch::NotOlderThan)),
            Some(other) => Err(Status::bad_request(format!(
                "resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \
                 \"NotOlderThan\""
            ))),
        }
    }

    /// `dryRun`.
    ///
    /// # Errors
    /// `BadRequest`: it is unknown.
    pub fn dry_run(&self) -> Result<bool, Status> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Status::bad_request(format!(
                "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
            ))),
        }
    }

    /// `fieldValidation`.
    ///
    /// # Errors
    /// `BadRequest`: it is unknown.
    pub fn field_validation(&self) -> Result<FieldValidation, Status> {
        match self.get("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \
                 \"Warn\", \"Strict\""
            ))),
        }
    }

    /// `timeoutSeconds` of a watch, bounded.
    ///
    /// # Errors
    /// `BadRequest`: it is no number.
    pub fn watch_timeout(&self) -> Result<Option<Duration>, Status> {
        let seconds: Option<u64> = self.number("timeoutSeconds")?;
        let seconds = seconds.filter(|seconds| *seconds > 0);
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.min(WATCH_SECONDS_MAX))))
    }
}

/// `propagationPolicy`, and the older `orphanDependents`.
///
/// # Errors
/// `BadRequest`: it is unknown.
pub fn propagation(
    policy: Option<&str>,
    orphan: Option<bool>,
) -> Result<Option<Propagation>, Status> {
    match policy {
        Some("Background") => Ok(Some(Propagation::Background)),
        Some("Foreground") => Ok(Some(Propagation::Foreground)),
        Some("Orphan") => Ok(Some(Propagation::Orphan)),
        Some(other) => Err(Status::bad_request(format!(
            "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \
             \"Foreground\", \"Orphan\""
        ))),
        None => Ok(orphan.map(
            |orphan| {
                if orphan { Propagation::Orphan } else { Propagation::Background }
            },
        )),
    }
}

/// Undoes percent signs, and in a query the plus sign.
fn decode(text: &str, query: bool) -> Result<String, Status> {
    let malformed = || Status::bad_request(format!("invalid URL escape in \"{text}\""));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || {
                    let digit = char::from(rest.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let (high, low) = (digit().ok_or_else(malformed)?, digit().ok_or_else(malformed)?);
                bytes.push(high << 4 | low);
            }
            b'+' if query => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> String {
        match Route::parse(path) {
            Ok(Route::Resource(at)) => format!(
                "{} [{}] [{}] [{}]",
                at.resource.qualified_plural(),
                at.namespace,
                at.name,
                at.subresource
            ),
            Ok(other) => format!("{other:?}"),
            Err(status) => format!("{} {}", status.code(), status.message),
        }
    }

    #[test]
    fn paths_name_collections_objects_and_subresources() {
        let table = [
            ("/api", "CoreVersions"),
            ("/apis/", "Groups"),
            ("/apis/apps", "Group(\"apps\")"),
            ("/apis/apps/v1", "Resources(\"apps\", \"v1\")"),
            ("/api/v1/pods", "pods [] [] []"),
            ("/api/v1/namespaces/a/pods", "pods [a] [] []"),
            ("/api/v1/namespaces/a/pods/b", "pods [a] [b] []"),
            ("/api/v1/namespaces/a/pods/b/log", "pods [a] [b] [log]"),
            ("/api/v1/namespaces", "namespaces [] [] []"),
            ("/api/v1/namespaces/a", "namespaces [] [a] []"),
            ("/api/v1/namespaces/a/finalize", "namespaces [] [a] [finalize]"),
            ("/api/v1/nodes/n%2D1/status", "nodes [] [n-1] [status]"),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", "deployments.apps [a] [d] [scale]"),
            ("/version", "Other(\"/version\")"),
            ("/", "Other(\"/\")"),
            ("/api/v1/pods/b", "404 the server could not find the requested resource"),
            ("/api/v1/namespaces/a/nodes", "404 the server could not find the requested resource"),
            (
                "/api/v1/namespaces/a/pods/b/exec2",
                "404 the server could not find the requested resource",
            ),
            ("/api/v2/pods", "404 the server could not find the requested resource"),
            ("/api/v1/nodes/%zz", "400 invalid URL escape in \"%zz\""),
            ("/api/v1/nodes/a%2Fb", "400 invalid name \"a/b\": may not contain '/'"),
        ];
        for (path, expected) in table {
            assert_eq!(check(path), expected, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc+in+%28d%29&watch&limit=5&x=").unwrap();
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(query.flag("watch").unwrap() && !query.flag("none").unwrap());
        assert_eq!(query.number::<usize>("limit").unwrap(), Some(5));
        assert_eq!(query.get("x"), None);
        assert_eq!(query.selection().unwrap().labels.requirements.len(), 2);
        let query = Query::parse("limit=x&watch=maybe&labelSelector=a%3D%3D%3D").unwrap();
        assert_eq!(query.number::<usize>("limit").unwrap_err().code(), 400);
        assert_eq!(query.flag("watch").unwrap_err().code(), 400);
        assert_eq!(query.selection().unwrap_err().code(), 400);
    }
}
