//! Objects as rows, the way `kubectl get` prints them, and as metadata only.

use api::resource::Resource;
use serde_json::{Value, json};

use super::printers::{self, Column};
use crate::status::Status;

/// What goes into `object` of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`.
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::bad_request(format!(
                "includeObject: Unsupported value: \"{other}\": supported values: \"Metadata\", \
                 \"None\", \"Object\""
            ))),
        }
    }
}

/// A table of `objects`, with `metadata` of the list.
pub(super) fn table(
    resource: &Resource,
    objects: Vec<Value>,
    include: Include,
    metadata: &Value,
    with_columns: bool,
) -> Value {
    let printer = printers::printer(resource);
    let now = jiff::Timestamp::now();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut row = json!({"cells": (printer.cells)(&object, now)});
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = partial(object),
                Include::Object => row["object"] = object,
            }
            row
        })
        .collect();
    // A watch says the columns once.
    let columns = if with_columns {
        Value::Array(printer.columns.iter().map(column).collect())
    } else {
        Value::Null
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

fn column(column: &Column) -> Value {
    json!({
        "name": column.name, "type": column.kind,
        "format": if column.name == "Name" { "name" } else { "" },
        "description": column.description, "priority": column.priority,
    })
}

/// `PartialObjectMetadata` of an object.
pub(super) fn partial(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}
