//! What values a field can hold, and how lists, maps and patches of them merge.

use super::TypeRef;
use super::binary::CODE_OBJECT;

/// What JSON value a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value without fields.
    Scalar(Scalar),
    /// An object with the fields of a type.
    Object(TypeRef),
    /// An array.
    List(Element),
    /// An object whose keys are data.
    Map(Element),
}

/// What the elements of a list or the values of a map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Values without fields.
    Scalar(Scalar),
    /// Objects with the fields of a type.
    Object(TypeRef),
    /// Lists of strings: only the values of `extra` in reviews and signing requests.
    Strings,
}

/// A JSON value without fields of its own in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// Text.
    String,
    /// Base64 in JSON, bytes in protobuf.
    Bytes,
    /// `true` or `false`.
    Bool,
    /// A whole number of 32 bits with sign.
    Int32,
    /// A whole number of 64 bits with sign.
    Int64,
    /// A number.
    Float,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with six digits after the second.
    MicroTime,
    /// Go's notation, `1h30m0s`; no field of 1.35 has it, extensions do.
    Duration,
    /// A quantity: `100m`, `1Gi`, or a plain number.
    Quantity,
    /// A whole number of 32 bits, or text.
    IntOrString,
    /// Any JSON value.
    Json,
    /// The field set of `managedFields`; any object.
    FieldsV1,
    /// An object that carries its own `apiVersion` and `kind`, or any JSON value.
    RawObject,
}

/// How server-side apply merges a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// As one value; also where Kubernetes says nothing.
    Atomic,
    /// As a set of scalars.
    Set,
    /// Element by element, told apart by [`Field::list_map_keys`].
    Map,
}

/// How strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged, by [`Field::merge_key`] if their elements are objects.
    pub merge: bool,
    /// The new value takes the place of the old one.
    pub replace: bool,
    /// `$retainKeys` is honoured: keys that the patch does not name are dropped.
    pub retain_keys: bool,
}

impl Shape {
    /// The type of the object, of the list's elements or of the map's values.
    #[must_use]
    pub fn object(self) -> Option<TypeRef> {
        match self {
            Self::Object(target)
            | Self::List(Element::Object(target))
            | Self::Map(Element::Object(target)) => Some(target),
            _ => None,
        }
    }
}

/// [`Scalar`], and the three unions of custom resource schemas that are plain JSON
/// to everyone but the protobuf decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Scalar(Scalar),
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
}

impl Codec {
    pub(super) fn of(code: u8) -> Option<Self> {
        use Scalar as S;
        Some(match code {
            0 => Self::Scalar(S::String),
            1 => Self::Scalar(S::Bytes),
            2 => Self::Scalar(S::Bool),
            3 => Self::Scalar(S::Int32),
            4 => Self::Scalar(S::Int64),
            5 => Self::Scalar(S::Float),
            6 => Self::Scalar(S::Time),
            7 => Self::Scalar(S::MicroTime),
            8 => Self::Scalar(S::Duration),
            9 => Self::Scalar(S::Quantity),
            10 => Self::Scalar(S::IntOrString),
            11 => Self::Scalar(S::Json),
            12 => Self::Scalar(S::FieldsV1),
            13 => Self::Scalar(S::RawObject),
            14 => Self::SchemaOrBool,
            15 => Self::SchemaOrArray,
            16 => Self::SchemaOrStrings,
            _ => {
                debug_assert_eq!(code, CODE_OBJECT);
                return None;
            }
        })
    }

    pub(super) fn scalar(self) -> Scalar {
        match self {
            Self::Scalar(scalar) => scalar,
            Self::SchemaOrBool | Self::SchemaOrArray | Self::SchemaOrStrings => Scalar::Json,
        }
    }
}
