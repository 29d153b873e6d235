//! What the tables hold, byte for byte.
//!
//! | table | key | value |
//! |---|---|---|
//! | objects | key | revision (8, LE), value |
//! | log | revision (8, BE) | one part for each change, one after the other |
//! | meta | `state` | revision, ceiling, compacted, log bytes (8 each, LE) |
//! | meta | `epoch` | 16 bytes, LE |
//! | meta | `format` | [`FORMAT`] (4, LE) |
//!
//! A part of a log record: kind (1: 1 put, 2 delete), key length (2, LE), length
//! of the value (4, LE), revision of what was there before or 0 (8, LE), its
//! length (4, LE), then the key, the value (none for a delete: it is the one
//! that was there before) and what was there before.

use bytes::Bytes;

use crate::{Event, EventKind, Revision, Versioned};

/// Version of the format. A store of another format is refused.
pub(crate) const FORMAT: u32 = 1;

const PART_HEADER: usize = 1 + 2 + 4 + 8 + 4;

/// A record that cannot be what this module wrote.
#[derive(Debug)]
pub(crate) struct Malformed;

/// Appends an object's record to `out`.
pub(crate) fn encode_object(out: &mut Vec<u8>, revision: Revision, value: &[u8]) {
    out.extend_from_slice(&revision.to_le_bytes());
    out.extend_from_slice(value);
}

/// The revision and the value of an object's record.
pub(crate) fn decode_object(record: &[u8]) -> Result<(Revision, &[u8]), Malformed> {
    let (revision, value) = record.split_first_chunk().ok_or(Malformed)?;
    Ok((u64::from_le_bytes(*revision), value))
}

/// The key of an object or a log part.
pub(crate) fn decode_key(key: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(key).map_err(|_| Malformed)
}

pub(crate) fn decode_log_key(key: &[u8]) -> Result<Revision, Malformed> {
    Ok(u64::from_be_bytes(key.try_into().map_err(|_| Malformed)?))
}

/// Appends the part of a log record for `event` to `out`.
pub(crate) fn encode_change(out: &mut Vec<u8>, event: &Event) {
    let (kind, value) = match event.kind {
        EventKind::Put => (1, event.value.as_ref()),
        EventKind::Delete => (2, &[][..]),
    };
    let (revision, previous) =
        event.previous.as_ref().map_or((0, &[][..]), |p| (p.revision, p.value.as_ref()));
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("values are at most 8 MiB");
    out.push(kind);
    let key_length = u16::try_from(event.key.len()).expect("keys are at most 480 bytes");
    out.extend_from_slice(&key_length.to_le_bytes());
    out.extend_from_slice(&length(value).to_le_bytes());
    out.extend_from_slice(&revision.to_le_bytes());
    out.extend_from_slice(&length(previous).to_le_bytes());
    out.extend_from_slice(event.key.as_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(previous);
}

/// One change of a log record, still in the record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a> {
    kind: EventKind,
    pub(crate) key: &'a str,
    value: &'a [u8],
    pub(crate) previous: Option<(Revision, &'a [u8])>,
}

impl Change<'_> {
    /// Bytes of its key and values.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.len() + self.previous.map_or(0, |(_, value)| value.len())
    }

    pub(crate) fn to_event(self, revision: Revision) -> Event {
        let key = self.key.to_owned();
        let previous = self.previous.map(|(revision, value)| Versioned {
            key: key.clone(),
            revision,
            value: Bytes::copy_from_slice(value),
        });
        let value = match (self.kind, &previous) {
            (EventKind::Delete, Some(previous)) => previous.value.clone(),
            _ => Bytes::copy_from_slice(self.value),
        };
        Event { kind: self.kind, key, revision, value, previous }
    }
}

/// The changes of a log record.
pub(crate) fn decode_changes(
    mut record: &[u8],
) -> impl Iterator<Item = Result<Change<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if record.is_empty() {
            return None;
        }
        let decoded = decode_change(record);
        record = decoded.as_ref().map_or(&[][..], |(_, rest)| rest);
        Some(decoded.map(|(change, _)| change))
    })
}

fn decode_change(record: &[u8]) -> Result<(Change<'_>, &[u8]), Malformed> {
    let (header, rest) = record.split_first_chunk::<PART_HEADER>().ok_or(Malformed)?;
    let [kind, k0, k1, v0, v1, v2, v3, r0, r1, r2, r3, r4, r5, r6, r7, p0, p1, p2, p3] = *header;
    let mut rest = rest;
    let mut take = |n: usize| {
        let (taken, after) = rest.split_at_checked(n).ok_or(Malformed)?;
        rest = after;
        Ok(taken)
    };
    let key = decode_key(take(u16::from_le_bytes([k0, k1]).into())?)?;
    let value = take(u32::from_le_bytes([v0, v1, v2, v3]) as usize)?;
    let previous = take(u32::from_le_bytes([p0, p1, p2, p3]) as usize)?;
    let previous_revision = u64::from_le_bytes([r0, r1, r2, r3, r4, r5, r6, r7]);
    let previous = (previous_revision != 0).then_some((previous_revision, previous));
    let kind = match kind {
        1 => EventKind::Put,
        2 => EventKind::Delete,
        _ => return Err(Malformed),
    };
    Ok((Change { kind, key, value, previous }, rest))
}

/// The counters that every durable commit stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Of the newest durable transaction.
    pub(crate) revision: Revision,
    /// No revision above was ever shown to anyone.
    pub(crate) ceiling: Revision,
    /// The log holds what is above.
    pub(crate) compacted: Revision,
    /// Keys and values of the log.
    pub(crate) log_bytes: u64,
}

impl State {
    pub(crate) fn encode(self) -> [u8; 32] {
        let mut out = [0; 32];
        let fields = [self.revision, self.ceiling, self.compacted, self.log_bytes];
        for (chunk, field) in out.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(record: &[u8]) -> Result<State, Malformed> {
        let record: &[u8; 32] = record.try_into().map_err(|_| Malformed)?;
        let mut fields = record.as_chunks::<8>().0.iter().map(|field| u64::from_le_bytes(*field));
        let mut next = || fields.next().ok_or(Malformed);
        Ok(State { revision: next()?, ceiling: next()?, compacted: next()?, log_bytes: next()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
        ("[a-z/]{1,20}", 1..u64::MAX, bytes(), proptest::option::of((1..u64::MAX, bytes())))
            .prop_map(|(key, revision, value, previous)| {
                let previous = previous.map(|(revision, value)| Versioned {
                    key: key.clone(),
                    revision,
                    value,
                });
                Event { kind: EventKind::Put, key, revision, value, previous }
            })
            .prop_map(|event| match &event.previous {
                // A deletion has what it deleted.
                Some(previous) if event.revision % 2 == 0 => {
                    let value = previous.value.clone();
                    Event { kind: EventKind::Delete, value, ..event }
                }
                _ => event,
            })
    }

    proptest! {
        #[test]
        fn a_log_record_comes_back(events in proptest::collection::vec(event(), 0..5)) {
            let mut record = Vec::new();
            for event in &events {
                encode_change(&mut record, event);
            }
            let decoded: Vec<Event> = decode_changes(&record)
                .zip(&events)
                .map(|(change, event)| change.unwrap().to_event(event.revision))
                .collect();
            prop_assert_eq!(decoded, events);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(
            record in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let n_changes = decode_changes(&record).take_while(Result::is_ok).count();
            prop_assert!(n_changes <= record.len() / PART_HEADER);
            let _ = (decode_object(&record).is_ok(), State::decode(&record).is_ok());
        }

        #[test]
        fn the_state_comes_back(fields: [u64; 4]) {
            let [revision, ceiling, compacted, log_bytes] = fields;
            let state = State { revision, ceiling, compacted, log_bytes };
            prop_assert_eq!(State::decode(&state.encode()).unwrap(), state);
        }
    }
}
