//! Values of the wrong JSON type, or that their scalar cannot be read from.
//!
//! This is what Go's decoder refuses before any validation runs; whether a well-formed
//! value makes sense is not asked here. Unknown fields are passed over: they are
//! [`super::strict`]'s business.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::quantity::Quantity;
use crate::time;

use super::strict::Path;
use super::{Element, MAX_DEPTH, MAX_ERRORS, Scalar, Shape, TypeRef};

/// One value that does not fit its field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError {
    /// From the root of the object, with list indices: `spec.containers[0].image`.
    pub path: String,
    /// Type that has the field, `Container`; empty for the object itself.
    pub owner: &'static str,
    /// What was found: `string`, `number 1.5`, `object`.
    pub found: String,
    /// Go's name for what belongs there: `int32`, `[]v1.Container`.
    pub expected: String,
    /// Why the text of a value cannot be read, where its JSON type is right.
    pub reason: Option<String>,
}

impl std::error::Error for TypeError {}

impl fmt::Display for TypeError {
    /// As kube-apiserver says it, but with list indices in the path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, owner, found, expected, reason } = self;
        match reason {
            Some(reason) => write!(f, "{path}: {reason}"),
            None if path.is_empty() => {
                write!(f, "json: cannot unmarshal {found} into Go value of type {expected}")
            }
            None => write!(
                f,
                "json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {expected}"
            ),
        }
    }
}

/// Everything in `value` that cannot be decoded as `of`; at most [`MAX_ERRORS`].
/// `null` fits everywhere: it means "not given".
#[must_use]
pub fn check(of: TypeRef, value: &Value) -> Vec<TypeError> {
    let mut walk = Walk { path: Path::default(), owner: "", errors: Vec::new() };
    walk.shape(Shape::Object(of), value);
    walk.errors
}

struct Walk {
    path: Path,
    owner: &'static str,
    errors: Vec<TypeError>,
}

impl Walk {
    fn shape(&mut self, shape: Shape, value: &Value) {
        if self.errors.len() >= MAX_ERRORS || self.path.depth() > MAX_DEPTH {
            return;
        }
        match (shape, value) {
            (_, Value::Null) => {}
            (Shape::Scalar(scalar), value) => self.scalar(scalar, value),
            (Shape::Object(of), Value::Object(fields)) => {
                let outer = std::mem::replace(&mut self.owner, of.short_name());
                for (name, value) in fields {
                    if let Some(field) = of.field(name) {
                        let mark = self.path.push_field(name);
                        self.shape(field.shape(), value);
                        self.path.pop(mark);
                    }
                }
                self.owner = outer;
            }
            (Shape::List(element), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let mark = self.path.push_index(index);
                    self.shape(shape_of(element), item);
                    self.path.pop(mark);
                }
            }
            (Shape::Map(element), Value::Object(entries)) => {
                for (key, entry) in entries {
                    let mark = self.path.push_field(key);
                    self.shape(shape_of(element), entry);
                    self.path.pop(mark);
                }
            }
            (shape, value) => self.wrong_type(shape, value),
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value) {
        let fits = match scalar {
            Scalar::Json | Scalar::FieldsV1 | Scalar::RawObject => true,
            Scalar::String => value.is_string(),
            Scalar::Bool => value.is_boolean(),
            Scalar::Int32 => is_int32(value),
            Scalar::Int64 => value.is_i64(),
            Scalar::Float => value.is_number(),
            Scalar::IntOrString => value.is_string() || is_int32(value),
            Scalar::Quantity => value.is_string() || value.is_number(),
            Scalar::Bytes | Scalar::Time | Scalar::MicroTime | Scalar::Duration => {
                value.is_string()
            }
        };
        if !fits {
            self.wrong_type(Shape::Scalar(scalar), value);
        } else if let Some(reason) = unreadable(scalar, value) {
            self.push(Shape::Scalar(scalar), value, Some(reason));
        }
    }

    fn wrong_type(&mut self, shape: Shape, value: &Value) {
        self.push(shape, value, None);
    }

    fn push(&mut self, shape: Shape, value: &Value, reason: Option<String>) {
        self.errors.push(TypeError {
            path: self.path.to_string(),
            owner: self.owner,
            found: found(shape, value),
            expected: go_type(shape),
            reason,
        });
    }
}

fn shape_of(element: Element) -> Shape {
    match element {
        Element::Scalar(scalar) => Shape::Scalar(scalar),
        Element::Object(of) => Shape::Object(of),
        Element::Strings => Shape::List(Element::Scalar(Scalar::String)),
    }
}

fn is_int32(value: &Value) -> bool {
    value.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

/// Why the value, of the right JSON type, is not what its scalar says.
fn unreadable(scalar: Scalar, value: &Value) -> Option<String> {
    match (scalar, value) {
        (Scalar::Bytes, Value::String(text)) => {
            // Go's decoder skips line breaks inside base64.
            let joined = text.replace(['\r', '\n'], "");
            let error = STANDARD.decode(joined).err()?;
            Some(format!("illegal base64 data: {error}"))
        }
        (Scalar::Time | Scalar::MicroTime, Value::String(text)) => {
            let is_time = time::parse(text).is_some();
            (!is_time)
                .then(|| format!("cannot read {text:?} as a time such as \"2006-01-02T15:04:05Z\""))
        }
        (Scalar::Quantity, value) => Quantity::from_json(value).err().map(|e| e.to_string()),
        _ => None,
    }
}

fn found(shape: Shape, value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
        Value::Number(number) => match shape {
            Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString) => {
                format!("number {number}")
            }
            _ => "number".to_owned(),
        },
    }
}

fn go_type(shape: Shape) -> String {
    match shape {
        Shape::Scalar(scalar) => go_scalar(scalar).to_owned(),
        Shape::Object(of) => go_object(of),
        Shape::List(element) => format!("[]{}", go_element(element)),
        Shape::Map(element) => format!("map[string]{}", go_element(element)),
    }
}

fn go_element(element: Element) -> String {
    go_type(shape_of(element))
}

/// `v1.Container` for `io.k8s.api.core.v1.Container`.
fn go_object(of: TypeRef) -> String {
    let name = of.name();
    let start = name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
    name[start..].to_owned()
}

fn go_scalar(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::String => "string",
        Scalar::Bytes => "[]uint8",
        Scalar::Bool => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Float => "float64",
        Scalar::Time => "v1.Time",
        Scalar::MicroTime => "v1.MicroTime",
        Scalar::Duration => "v1.Duration",
        Scalar::Quantity => "resource.Quantity",
        Scalar::IntOrString => "intstr.IntOrString",
        Scalar::Json => "interface {}",
        Scalar::FieldsV1 => "v1.FieldsV1",
        Scalar::RawObject => "runtime.RawExtension",
    }
}
