//! Fields that a JSON text states twice, which a parsed value can no longer tell.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::MAX_ERRORS;

/// What kube-apiserver says about every field stated twice: `duplicate field "spec.replicas"`.
///
/// At most [`MAX_ERRORS`]. A text that is no JSON, or nested past 128, yields what was
/// found before the fault: the caller parses it too and reports that.
#[must_use]
pub fn duplicates(bytes: &[u8]) -> Vec<String> {
    let mut scan = Scan { path: String::new(), found: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    // An error leaves the rest unread; see above.
    let _ = Node(&mut scan).deserialize(&mut deserializer);
    scan.found
}

struct Scan {
    path: String,
    found: Vec<String>,
}

struct Node<'a>(&'a mut Scan);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(scan) = self;
        let parent = scan.path.len();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if parent > 0 {
                scan.path.push('.');
            }
            scan.path.push_str(&key);
            if !seen.insert(key) && scan.found.len() < MAX_ERRORS {
                let message = format!("duplicate field {:?}", scan.path);
                if !scan.found.contains(&message) {
                    scan.found.push(message);
                }
            }
            map.next_value_seed(Node(&mut *scan))?;
            scan.path.truncate(parent);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(scan) = self;
        let parent = scan.path.len();
        for index in 0.. {
            scan.path.push_str(&format!("[{index}]"));
            let element = seq.next_element_seed(Node(&mut *scan))?;
            scan.path.truncate(parent);
            if element.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
