//! Objects as rows, the way `kubectl get` prints them, and as metadata only.

use serde_json::{Value, json};

use crate::printers::{Column, Printer};
use crate::status::Status;

/// What goes into `object` of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`.
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// Reads `includeObject`.
    ///
    /// # Errors
    /// `BadRequest`: it is unknown.
    pub fn parse(text: Option<&str>) -> Result<Self, Status> {
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
#[must_use]
pub fn table(
    printer: &Printer,
    objects: Vec<Value>,
    include: Include,
    metadata: &Value,
    with_columns: bool,
) -> Value {
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
#[must_use]
pub fn partial(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}
