//! Single values: what of them says nothing, and those that are a message in protobuf and
//! one text or number in JSON.

use jiff::Timestamp;
use serde_json::Value;

use super::wire::{Damaged, Payload, Reader};
use super::{At, ProtobufError};
use crate::schema::{Codec, Element, Field, Scalar, Shape};
use crate::time::{rfc3339, rfc3339_micros};

/// Whether the value says nothing; see the module.
pub(super) fn is_unset(value: &Value, field: Field) -> bool {
    match value {
        Value::Null => true,
        _ if field.keeps_zero() => false,
        Value::String(text) => {
            let is_text = matches!(field.shape(), Shape::Scalar(Scalar::String | Scalar::Bytes));
            is_text && text.is_empty()
        }
        Value::Bool(flag) => !flag && matches!(field.codec(), Some(Codec::Scalar(Scalar::Bool))),
        Value::Number(number) => {
            let is_integer = matches!(field.shape(), Shape::Scalar(Scalar::Int32 | Scalar::Int64));
            is_integer && number.as_i64() == Some(0)
        }
        _ => false,
    }
}

pub(super) fn zero_payload(element: Element) -> Payload<'static> {
    match element {
        Element::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64) => Payload::Varint(0),
        Element::Scalar(Scalar::Float) => Payload::Fixed64(0),
        _ => Payload::Bytes(&[]),
    }
}

/// The last field with `tag`, as protobuf has it for one that is not repeated.
pub(super) fn field_of(bytes: &[u8], tag: u32) -> Result<Option<Payload<'_>>, Damaged> {
    let mut found = None;
    for entry in Reader::new(bytes) {
        let (entry_tag, payload) = entry?;
        if entry_tag == tag {
            found = Some(payload);
        }
    }
    Ok(found)
}

pub(super) fn int_or_string(at: At, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for entry in Reader::new(bytes) {
        match entry.map_err(|Damaged| at.malformed())? {
            (1, Payload::Varint(kind)) => is_text = kind == 1,
            (2, Payload::Varint(value)) => {
                number = i32::try_from(value.cast_signed())
                    .map_err(|_| at.value("number does not fit into 32 bits"))?;
            }
            (3, Payload::Bytes(bytes)) => text = at.string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { Value::String(text) } else { Value::from(number) })
}

/// `Timestamp { 1 seconds, 2 nanos }`; no bytes at all mean no time. `Time` has whole
/// seconds whatever the nanos say, as in Go.
pub(super) fn time(at: At, bytes: &[u8], with_micros: bool) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for entry in Reader::new(bytes) {
        match entry.map_err(|Damaged| at.malformed())? {
            (1, Payload::Varint(value)) => seconds = value.cast_signed(),
            (2, Payload::Varint(value)) => {
                nanos = i32::try_from(value.cast_signed())
                    .ok()
                    .filter(|nanos| (0..1_000_000_000).contains(nanos))
                    .ok_or_else(|| at.value("fraction of a second is out of range"))?;
            }
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| at.value("time is out of range"))?;
    Ok(Value::String(if with_micros { rfc3339_micros(time) } else { rfc3339(time) }))
}

/// Go's `time.Duration.String` for whole seconds and longer; shorter ones in decimals of
/// a second.
pub(super) fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let (seconds, fraction) = (total / 1_000_000_000, total % 1_000_000_000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = sign.to_owned();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    text.push_str(&seconds.to_string());
    if fraction > 0 {
        let digits = format!("{fraction:09}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    text.push('s');
    text
}
