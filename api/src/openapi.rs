//! OpenAPI v3 documents, made from the resources and the schema table when asked for.
//!
//! kubectl reads the index `/openapi/v3`, and the document of each group and version it
//! works on: `explain` for the schemas, `apply` and `diff` for the merge keys, `create`
//! for the word that PATCH takes `fieldValidation`. Each document says what it needs
//! itself; references stay inside it.
//!
//! Documents are written to a sink piece by piece (the largest has 0.5 MB of text), so
//! that a server can compress them on the way and keep nothing else. Nothing here knows
//! HTTP; custom resources bring schemas of their own and are not here either.

mod paths;
mod schemas;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::schema::table;

/// The version that documents carry, of Kubernetes' API.
const API_VERSION: &str = "v1.35.0";

/// Writes the document of one group and version.
///
/// `resources` may hold other groups too; those are passed over. Without a resource of
/// the group the document has no paths and only the shared schemas.
///
/// # Errors
/// Those of `writer`.
pub fn write_document(
    writer: impl Write,
    resources: &[Resource],
    group: &str,
    version: &str,
) -> io::Result<()> {
    let mut document = Members::open(writer)?;
    document.member("openapi", &json!("3.0.0"))?;
    document.member("info", &json!({"title": "Kubernetes", "version": API_VERSION}))?;
    let own = || resources.iter().filter(|r| r.group == group && r.version == version);

    let mut paths = document.nested("paths")?;
    for resource in own() {
        for (path, item) in paths::of(resource) {
            paths.member(&path, &item)?;
        }
    }
    let mut document = paths.close()?;

    let mut components = document.nested("components")?;
    let mut schemas = components.nested("schemas")?;
    schemas::write(&mut schemas, own())?;
    components = schemas.close()?;
    document = components.close()?;
    document.finish()
}

/// Writes the index: where the document of each group and version is, with a hash that
/// clients take as the key of their cache. It takes some milliseconds: keep the answer.
///
/// # Errors
/// Those of `writer`.
pub fn write_index(mut writer: impl Write, resources: &[Resource]) -> io::Result<()> {
    let mut documents: BTreeMap<String, Value> = BTreeMap::new();
    for resource in resources {
        let (group, version) = (resource.group, resource.version);
        documents.entry(paths::document_path(group, version)).or_insert_with_key(|path| {
            let hash = hash(resources, group, version);
            json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")})
        });
    }
    serde_json::to_writer(&mut writer, &json!({"paths": documents}))?;
    Ok(())
}

/// Changes whenever the document of this group and version does: 16 hexadecimal digits
/// over the schema table, this crate's version and the resources. Fit for an `ETag`.
#[must_use]
pub fn hash(resources: &[Resource], group: &str, version: &str) -> String {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    hash.add(&table().digest().to_le_bytes());
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    for resource in resources.iter().filter(|r| r.group == group && r.version == version) {
        for (path, item) in paths::of(resource) {
            hash.add(path.as_bytes());
            hash.add(item.to_string().as_bytes());
        }
    }
    format!("{:016X}", hash.0)
}

/// FNV-1a: the same on every machine and in every release, which `std`'s is not.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// An object that is being written, one member after the other.
struct Members<W> {
    writer: W,
    is_empty: bool,
    /// Braces to close besides this one's.
    depth: usize,
}

impl<W: Write> Members<W> {
    fn open(mut writer: W) -> io::Result<Self> {
        writer.write_all(b"{")?;
        Ok(Self { writer, is_empty: true, depth: 0 })
    }

    fn member(&mut self, name: &str, value: &Value) -> io::Result<()> {
        self.name(name)?;
        serde_json::to_writer(&mut self.writer, value)?;
        Ok(())
    }

    /// Begins a member that is an object; [`Members::close`] comes back.
    fn nested(mut self, name: &str) -> io::Result<Self> {
        self.name(name)?;
        self.writer.write_all(b"{")?;
        Ok(Self { is_empty: true, depth: self.depth + 1, ..self })
    }

    fn close(mut self) -> io::Result<Self> {
        self.writer.write_all(b"}")?;
        Ok(Self { is_empty: false, depth: self.depth - 1, ..self })
    }

    fn finish(mut self) -> io::Result<()> {
        debug_assert_eq!(self.depth, 0, "every nested object was closed");
        self.writer.write_all(b"}\n")?;
        self.writer.flush()
    }

    fn name(&mut self, name: &str) -> io::Result<()> {
        if !std::mem::take(&mut self.is_empty) {
            self.writer.write_all(b",")?;
        }
        serde_json::to_writer(&mut self.writer, name)?;
        self.writer.write_all(b":")
    }
}
