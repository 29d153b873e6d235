//! Objects, lists and watched changes in the form that a client asked for.

use api::resource::Resource;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::negotiate::Form;
use crate::printers::Printer;
use crate::table::{self, Include};

/// How a client wants what it reads.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The form.
    pub form: Form,
    /// What a row of a table carries beside its cells.
    pub include: Include,
    /// How a row of a table is made.
    pub printer: &'static Printer,
}

impl Shape {
    /// One object.
    #[must_use]
    pub fn object(&self, object: Value) -> Value {
        match self.form {
            Form::Object | Form::Discovery => object,
            Form::Metadata => table::partial(object),
            Form::Table => self.row(object, true),
        }
    }

    /// One object of a watch, which names the columns `with_columns` only once.
    #[must_use]
    pub fn row(&self, object: Value, with_columns: bool) -> Value {
        let revision = object["metadata"]["resourceVersion"].clone();
        let metadata = json!({"resourceVersion": revision});
        table::table(self.printer, vec![object], self.include, &metadata, with_columns)
    }

    /// A list.
    #[must_use]
    pub fn list(&self, resource: &Resource, objects: Vec<Value>, metadata: &Value) -> Value {
        match self.form {
            Form::Object | Form::Discovery => json!({
                "kind": resource.list_kind, "apiVersion": resource.api_version(),
                "metadata": metadata, "items": objects,
            }),
            Form::Table => table::table(self.printer, objects, self.include, metadata, true),
            Form::Metadata => {
                let objects: Vec<Value> = objects.into_iter().map(table::partial).collect();
                json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": objects,
                })
            }
        }
    }
}

/// One line of a watch: `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`, and
/// the bytes of the object.
#[must_use]
pub fn watch_line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}
