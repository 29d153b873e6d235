//! Fields that a type does not have: found for `fieldValidation=Strict` and `Warn`,
//! dropped for all three levels before an object is stored.
//!
//! Looks at names only; what a known field holds is [`super::types`]' business, so a
//! value of the wrong type is passed over here.

use std::fmt;

use serde_json::{Map, Value};

use super::{Element, MAX_DEPTH, MAX_ERRORS, Scalar, Shape, TypeRef};

/// One reason why a strict decoder refuses an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrictError {
    /// The type has no such field. Case matters, as it does to kube-apiserver.
    #[error("unknown field {path:?}")]
    UnknownField {
        /// From the root of the object: `spec.containers[0].imagee`.
        path: String,
    },
    /// Nested past [`MAX_DEPTH`]; what lies deeper was not looked at.
    #[error("field {path:?} is nested more than {MAX_DEPTH} levels deep")]
    TooDeep {
        /// The first value that was not looked at.
        path: String,
    },
}

/// The unknown fields of `value`, in the order in which it has them; at most
/// [`MAX_ERRORS`].
#[must_use]
pub fn check(of: TypeRef, value: &Value) -> Vec<StrictError> {
    let mut walk = Walk { path: Path::default(), errors: Vec::new() };
    walk.object(of, value);
    walk.errors
}

/// Makes of a whole object what a Go server would have decoded: drops unknown fields, and
/// takes `null` for "not given".
///
/// A `null` field disappears; a `null` element of a list or map becomes the zero value of
/// its type, so that positions are kept. Not for patches, where `null` means "delete".
pub fn prune_unknown(of: TypeRef, value: &mut Value) {
    if let Value::Object(fields) = value {
        prune_object(of, fields, 0);
    }
}

fn prune_object(of: TypeRef, fields: &mut Map<String, Value>, depth: usize) {
    fields.retain(|name, value| {
        let Some(field) = of.field(name) else { return false };
        if value.is_null() {
            return false;
        }
        if depth < MAX_DEPTH {
            prune_shape(field.shape(), value, depth + 1);
        }
        true
    });
}

fn prune_shape(shape: Shape, value: &mut Value, depth: usize) {
    match (shape, value) {
        (Shape::Object(of), Value::Object(fields)) => prune_object(of, fields, depth),
        (Shape::List(element), Value::Array(items)) => {
            items.iter_mut().for_each(|item| prune_element(element, item, depth));
        }
        (Shape::Map(element), Value::Object(entries)) => {
            entries.values_mut().for_each(|entry| prune_element(element, entry, depth));
        }
        _ => {}
    }
}

fn prune_element(element: Element, value: &mut Value, depth: usize) {
    match element {
        Element::Scalar(scalar) if value.is_null() => *value = zero(scalar),
        Element::Object(_) if value.is_null() => *value = Value::Object(Map::new()),
        Element::Object(of) => {
            if let Value::Object(fields) = value
                && depth < MAX_DEPTH
            {
                prune_object(of, fields, depth + 1);
            }
        }
        Element::Scalar(_) | Element::Strings => {}
    }
}

/// What Go decodes from `null` into a value that is no pointer.
fn zero(scalar: Scalar) -> Value {
    match scalar {
        Scalar::String | Scalar::Bytes => Value::from(""),
        Scalar::Bool => Value::from(false),
        Scalar::Int32 | Scalar::Int64 | Scalar::Float | Scalar::IntOrString => Value::from(0),
        Scalar::Quantity => Value::from("0"),
        Scalar::Duration => Value::from("0s"),
        Scalar::Time | Scalar::MicroTime | Scalar::Json | Scalar::FieldsV1 | Scalar::RawObject => {
            Value::Null
        }
    }
}

struct Walk {
    path: Path,
    errors: Vec<StrictError>,
}

impl Walk {
    fn object(&mut self, of: TypeRef, value: &Value) {
        let Value::Object(fields) = value else { return };
        for (name, value) in fields {
            if self.errors.len() >= MAX_ERRORS {
                return;
            }
            let mark = self.path.push_field(name);
            match of.field(name) {
                None => {
                    self.errors.push(StrictError::UnknownField { path: self.path.to_string() });
                }
                Some(field) => self.shape(field.shape(), value),
            }
            self.path.pop(mark);
        }
    }

    fn shape(&mut self, shape: Shape, value: &Value) {
        let Some(of) = shape.object() else { return };
        if self.path.depth() >= MAX_DEPTH {
            self.errors.push(StrictError::TooDeep { path: self.path.to_string() });
            return;
        }
        match (shape, value) {
            (Shape::Object(_), value) => self.object(of, value),
            (Shape::List(_), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let mark = self.path.push_index(index);
                    self.object(of, item);
                    self.path.pop(mark);
                }
            }
            (Shape::Map(_), Value::Object(entries)) => {
                for (key, entry) in entries {
                    let mark = self.path.push_field(key);
                    self.object(of, entry);
                    self.path.pop(mark);
                }
            }
            _ => {}
        }
    }
}

/// Where a walk stands, written as kube-apiserver writes it: `spec.containers[0].image`.
#[derive(Debug, Default)]
pub(super) struct Path {
    text: String,
    depth: usize,
}

/// Gives back what [`Path`] was before a step.
pub(super) struct Mark(usize);

impl Path {
    pub(super) fn push_field(&mut self, name: &str) -> Mark {
        let mark = Mark(self.text.len());
        if !self.text.is_empty() {
            self.text.push('.');
        }
        self.text.push_str(name);
        self.depth += 1;
        mark
    }

    pub(super) fn push_index(&mut self, index: usize) -> Mark {
        let mark = Mark(self.text.len());
        self.text.push_str(&format!("[{index}]"));
        self.depth += 1;
        mark
    }

    pub(super) fn pop(&mut self, Mark(length): Mark) {
        self.text.truncate(length);
        self.depth -= 1;
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
