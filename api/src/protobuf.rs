//! Kubernetes' protobuf bodies, read as the JSON values they stand for.
//!
//! kubectl from 1.32 on and helm 4 send these for every typed write and do not fall back
//! to JSON. The answer may be JSON, so nothing here writes protobuf. The message types
//! come from the schema [`table`]; no code is generated.
//!
//! ```text
//! "k8s\0"  then the message runtime.Unknown:
//!   1  TypeMeta { 1 apiVersion, 2 kind }
//!   2  the object's own message, without apiVersion and kind
//!   3  contentEncoding, 4 contentType: empty
//! ```
//!
//! Go writes a field that is no pointer even when it is zero, so a zero on the wire often
//! says nothing. The decoder gives what Go would print as JSON: such zeros are dropped,
//! zeros that were set (`replicas: 0`) are kept, and so are empty messages (`status: {}`);
//! an empty time is absent. Tags that the table does not know are skipped, as Go skips
//! them: there is no strict protobuf.
//!
//! Bodies come from outside: depth, size and the number of values are bounded, and no
//! input panics.

#[cfg(test)]
mod tests;
mod values;
mod wire;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::schema::{Codec, Element, Field, MAX_DEPTH, Scalar, Shape, TypeRef, table};
use values::{field_of, go_duration, int_or_string, is_unset, time, zero_payload};
use wire::{Damaged, Payload, Reader};

/// What every Kubernetes protobuf body begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// Largest body that is read; kube-apiserver's limit for a request.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// Most JSON values one body may become. A few bytes of protobuf can stand for an object
/// that takes a hundred in memory; a ConfigMap of the largest size has some ten thousand.
pub const MAX_VALUES: usize = 200_000;

/// Why a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// No `k8s\0` in front.
    #[error("body is no Kubernetes protobuf: it does not begin with \"k8s\\0\"")]
    NoMagic,
    /// Larger than [`MAX_BODY_BYTES`].
    #[error("body has {bytes} bytes, more than the {MAX_BODY_BYTES} that are read")]
    TooLarge {
        /// Size of the body.
        bytes: usize,
    },
    /// More than [`MAX_VALUES`].
    #[error("body holds more than {MAX_VALUES} values")]
    TooManyValues,
    /// Nested past [`MAX_DEPTH`].
    #[error("{at}: nested more than {MAX_DEPTH} levels deep")]
    TooDeep {
        /// Type and field.
        at: String,
    },
    /// Compressed, or not protobuf inside.
    #[error("content encoding {encoding:?} is not supported: send the object uncompressed")]
    Encoding {
        /// As the body names it.
        encoding: String,
    },
    /// The table has no such kind.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// As the body names it.
        api_version: String,
        /// As the body names it.
        kind: String,
    },
    /// Ends in the middle of a field, or has a tag that cannot be.
    #[error("{at}: protobuf is cut short or damaged")]
    Malformed {
        /// Type, and field where it is known.
        at: String,
    },
    /// The wire type is not the one the field has.
    #[error("{at}: wire type is not that of the field")]
    WireType {
        /// Type and field.
        at: String,
    },
    /// Text, time or embedded JSON that cannot be read.
    #[error("{at}: {reason}")]
    Value {
        /// Type and field.
        at: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The object in a request body, with `kind` and `apiVersion` first.
///
/// # Errors
/// See [`ProtobufError`]; all of them are the client's fault (400).
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(ProtobufError::TooLarge { bytes: body.len() });
    }
    Decoder { n_values: 0 }.envelope(body, 0)
}

struct Decoder {
    n_values: usize,
}

impl Decoder {
    /// `depth` is not 0 for an object inside another one.
    fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        let message = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
        let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
        for entry in Reader::new(message) {
            match entry.map_err(|Damaged| malformed("Unknown"))? {
                (1, Payload::Bytes(meta)) => {
                    for entry in Reader::new(meta) {
                        match entry.map_err(|Damaged| malformed("TypeMeta"))? {
                            (1, Payload::Bytes(text)) => api_version = string(text, "apiVersion")?,
                            (2, Payload::Bytes(text)) => kind = string(text, "kind")?,
                            _ => {}
                        }
                    }
                }
                (2, Payload::Bytes(bytes)) => raw = bytes,
                (3, Payload::Bytes(text)) if !text.is_empty() => {
                    let encoding = string(text, "contentEncoding")?;
                    return Err(ProtobufError::Encoding { encoding });
                }
                _ => {}
            }
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let Some(of) = table().kind(group, version, &kind) else {
            return Err(ProtobufError::UnknownKind { api_version, kind });
        };
        let mut object = Map::new();
        object.insert("kind".to_owned(), Value::String(kind));
        object.insert("apiVersion".to_owned(), Value::String(api_version));
        self.message(of, raw, depth, &mut object)?;
        Ok(Value::Object(object))
    }

    /// Adds the fields of one message to `object`.
    fn message(
        &mut self,
        of: TypeRef,
        bytes: &[u8],
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        if depth > MAX_DEPTH {
            return Err(ProtobufError::TooDeep { at: of.short_name().to_owned() });
        }
        for entry in Reader::new(bytes) {
            let (tag, payload) = entry.map_err(|Damaged| malformed(of.short_name()))?;
            if let Some(field) = of.field_by_tag(tag) {
                self.field(of, field, payload, depth, object)?;
            } else if let Some(inlined) = of.inlined_by_tag(tag) {
                let Payload::Bytes(inner) = payload else {
                    return Err(ProtobufError::WireType { at: of.short_name().to_owned() });
                };
                self.message(inlined, inner, depth + 1, object)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        of: TypeRef,
        field: Field,
        payload: Payload<'_>,
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        let at = At { of, field };
        match field.shape() {
            Shape::List(element) => {
                let list = object
                    .entry(field.name())
                    .or_insert_with(|| Value::Array(Vec::new()))
                    .as_array_mut()
                    .expect("a field has one shape");
                self.list(at, element, payload, depth, list)
            }
            Shape::Map(element) => {
                let Payload::Bytes(entry) = payload else { return Err(at.wire_type()) };
                let (key, value) = self.map_entry(at, element, entry, depth)?;
                object
                    .entry(field.name())
                    .or_insert_with(|| Value::Object(Map::new()))
                    .as_object_mut()
                    .expect("a field has one shape")
                    .insert(key, value);
                Ok(())
            }
            Shape::Scalar(_) | Shape::Object(_) => {
                let value = self.one(at, payload, depth)?;
                if !is_unset(&value, field) {
                    object.insert(field.name().to_owned(), value);
                }
                Ok(())
            }
        }
    }

    fn list(
        &mut self,
        at: At,
        element: Element,
        payload: Payload<'_>,
        depth: usize,
        list: &mut Vec<Value>,
    ) -> Result<(), ProtobufError> {
        match (element, payload) {
            (Element::Scalar(Scalar::String), Payload::Bytes(bytes)) if at.field.is_wrapped() => {
                self.strings(at, bytes, list)
            }
            // Numbers may come packed.
            (Element::Scalar(Scalar::Int32 | Scalar::Int64), Payload::Bytes(bytes)) => {
                for number in wire::packed(bytes) {
                    self.count()?;
                    list.push(Value::from(number.map_err(|Damaged| at.malformed())?.cast_signed()));
                }
                Ok(())
            }
            _ => {
                list.push(self.one(at, payload, depth)?);
                Ok(())
            }
        }
    }

    fn map_entry(
        &mut self,
        at: At,
        element: Element,
        entry: &[u8],
        depth: usize,
    ) -> Result<(String, Value), ProtobufError> {
        let (mut key, mut value) = (String::new(), None);
        for entry in Reader::new(entry) {
            match entry.map_err(|Damaged| at.malformed())? {
                (1, Payload::Bytes(text)) => key = at.string(text)?,
                (2, Payload::Bytes(bytes)) if element == Element::Strings => {
                    let mut list = Vec::new();
                    self.strings(at, bytes, &mut list)?;
                    value = Some(Value::Array(list));
                }
                (2, payload) => value = Some(self.one(at, payload, depth)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None if element == Element::Strings => Value::Array(Vec::new()),
            // A value that equals its type's zero may be left out.
            None => self.one(at, zero_payload(element), depth)?,
        };
        Ok((key, value))
    }

    /// The strings of a message that only wraps a list of them.
    fn strings(
        &mut self,
        at: At,
        bytes: &[u8],
        into: &mut Vec<Value>,
    ) -> Result<(), ProtobufError> {
        for entry in Reader::new(bytes) {
            if let (1, Payload::Bytes(text)) = entry.map_err(|Damaged| at.malformed())? {
                self.count()?;
                into.push(Value::String(at.string(text)?));
            }
        }
        Ok(())
    }

    /// One value of the field: itself, or an element of its list or map.
    fn one(&mut self, at: At, payload: Payload<'_>, depth: usize) -> Result<Value, ProtobufError> {
        self.count()?;
        let of = at.field.shape().object();
        match (of, at.field.codec(), payload) {
            (Some(of), _, Payload::Bytes(bytes)) => {
                let mut object = Map::new();
                self.message(of, bytes, depth + 1, &mut object)?;
                Ok(Value::Object(object))
            }
            (None, Some(Codec::Scalar(scalar)), payload) => self.scalar(at, scalar, payload, depth),
            (None, Some(codec), Payload::Bytes(bytes)) => self.schema(at, codec, bytes, depth),
            _ => Err(at.wire_type()),
        }
    }

    fn scalar(
        &mut self,
        at: At,
        scalar: Scalar,
        payload: Payload<'_>,
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        Ok(match (scalar, payload) {
            (Scalar::String, Payload::Bytes(text)) => Value::String(at.string(text)?),
            (Scalar::Bytes, Payload::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
            (Scalar::Bool, Payload::Varint(number)) => Value::Bool(number != 0),
            (Scalar::Int32, Payload::Varint(number)) => {
                let number = i32::try_from(number.cast_signed())
                    .map_err(|_| at.value("number does not fit into 32 bits"))?;
                Value::from(number)
            }
            (Scalar::Int64, Payload::Varint(number)) => Value::from(number.cast_signed()),
            // JSON has no infinity; Go refuses to print one too.
            (Scalar::Float, Payload::Fixed64(bits)) => {
                serde_json::Number::from_f64(f64::from_bits(bits))
                    .map(Value::Number)
                    .ok_or_else(|| at.value("number is not finite"))?
            }
            (Scalar::Quantity, Payload::Bytes(bytes)) => {
                let text = match field_of(bytes, 1).map_err(|Damaged| at.malformed())? {
                    Some(Payload::Bytes(text)) => at.string(text)?,
                    _ => String::new(),
                };
                Value::String(if text.is_empty() { "0".to_owned() } else { text })
            }
            (Scalar::IntOrString, Payload::Bytes(bytes)) => int_or_string(at, bytes)?,
            (Scalar::Time, Payload::Bytes(bytes)) => time(at, bytes, false)?,
            (Scalar::MicroTime, Payload::Bytes(bytes)) => time(at, bytes, true)?,
            (Scalar::Duration, Payload::Bytes(bytes)) => {
                let nanos = match field_of(bytes, 1).map_err(|Damaged| at.malformed())? {
                    Some(Payload::Varint(nanos)) => nanos.cast_signed(),
                    _ => 0,
                };
                Value::String(go_duration(nanos))
            }
            (Scalar::Json | Scalar::FieldsV1 | Scalar::RawObject, Payload::Bytes(bytes)) => {
                match field_of(bytes, 1).map_err(|Damaged| at.malformed())? {
                    Some(Payload::Bytes(raw)) => self.raw(at, raw, depth)?,
                    _ => Value::Null,
                }
            }
            _ => return Err(at.wire_type()),
        })
    }

    /// Embedded JSON, or an object in protobuf with an envelope of its own.
    fn raw(&mut self, at: At, raw: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if raw.starts_with(MAGIC) {
            if depth >= MAX_DEPTH {
                return Err(at.too_deep());
            }
            return self.envelope(raw, depth + 1);
        }
        let value: Value =
            serde_json::from_slice(raw).map_err(|_| at.value("embedded JSON cannot be read"))?;
        self.count_in(&value)?;
        Ok(value)
    }

    /// The unions of custom resource schemas: a schema, or something simpler.
    fn schema(
        &mut self,
        at: At,
        codec: Codec,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        let of = table()
            .by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .expect("the table has custom resource schemas");
        let (mut schema, mut allows, mut list) = (None, false, Vec::new());
        for entry in Reader::new(bytes) {
            let (tag, payload) = entry.map_err(|Damaged| at.malformed())?;
            self.count()?;
            let schema_tag = if codec == Codec::SchemaOrBool { 2 } else { 1 };
            match (codec, tag, payload) {
                (Codec::SchemaOrBool, 1, Payload::Varint(number)) => allows = number != 0,
                (Codec::SchemaOrStrings, 2, Payload::Bytes(text)) => {
                    list.push(Value::String(at.string(text)?));
                }
                (_, tag, Payload::Bytes(inner))
                    if tag == schema_tag || (codec == Codec::SchemaOrArray && tag == 2) =>
                {
                    let mut object = Map::new();
                    self.message(of, inner, depth + 1, &mut object)?;
                    if tag == schema_tag {
                        schema = Some(Value::Object(object));
                    } else {
                        list.push(Value::Object(object));
                    }
                }
                _ => {}
            }
        }
        Ok(match (schema, codec) {
            (Some(schema), _) if list.is_empty() => schema,
            (None, Codec::SchemaOrBool) => Value::Bool(allows),
            (None, _) if list.is_empty() => Value::Null,
            _ => Value::Array(list),
        })
    }

    fn count(&mut self) -> Result<(), ProtobufError> {
        self.n_values += 1;
        if self.n_values > MAX_VALUES { Err(ProtobufError::TooManyValues) } else { Ok(()) }
    }

    fn count_in(&mut self, value: &Value) -> Result<(), ProtobufError> {
        self.count()?;
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.count_in(item)),
            Value::Object(fields) => fields.values().try_for_each(|field| self.count_in(field)),
            _ => Ok(()),
        }
    }
}

/// The field that is being read, for errors.
#[derive(Clone, Copy)]
struct At {
    of: TypeRef,
    field: Field,
}

impl At {
    fn text(self) -> String {
        format!("{}.{}", self.of.short_name(), self.field.name())
    }

    fn malformed(self) -> ProtobufError {
        ProtobufError::Malformed { at: self.text() }
    }

    fn wire_type(self) -> ProtobufError {
        ProtobufError::WireType { at: self.text() }
    }

    fn too_deep(self) -> ProtobufError {
        ProtobufError::TooDeep { at: self.text() }
    }

    fn value(self, reason: &'static str) -> ProtobufError {
        ProtobufError::Value { at: self.text(), reason }
    }

    fn string(self, bytes: &[u8]) -> Result<String, ProtobufError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.value("text is not UTF-8")),
        }
    }
}

fn malformed(at: &str) -> ProtobufError {
    ProtobufError::Malformed { at: at.to_owned() }
}

fn string(bytes: &[u8], at: &str) -> Result<String, ProtobufError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ProtobufError::Value { at: at.to_owned(), reason: "text is not UTF-8" }),
    }
}
