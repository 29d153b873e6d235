//! How one object is told from every other.

use std::fmt;

/// The part of an object's identity that never changes while it exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty for a cluster-scoped object.
    pub namespace: String,
    /// Name, unique within the namespace and resource.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace`, which is empty for a cluster-scoped object.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
