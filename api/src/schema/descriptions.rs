//! The documentation of types and fields, which lies compressed in the table.
//!
//! A block of at most 32 KiB is inflated when something in it is asked for, and kept
//! until another one is: reading types in their order inflates each block once.

use std::io::Read;

use flate2::read::DeflateDecoder;

use super::{Field, Table, TypeRef};

/// Reads descriptions one after the other; see the module.
#[derive(Debug, Default)]
pub struct Descriptions {
    /// Number and text of the block that was read last.
    block: Option<(u16, String)>,
}

impl Descriptions {
    /// What a type is for; empty where Kubernetes says nothing.
    pub fn of_type(&mut self, of: TypeRef) -> &str {
        self.get(of.table, of.record.description())
    }

    /// What a field is for; empty where Kubernetes says nothing.
    pub fn of_field(&mut self, of: Field) -> &str {
        self.get(of.table, of.record.description())
    }

    fn get(&mut self, table: &'static Table, id: u16) -> &str {
        let place = table.sections.place(id);
        if place.range.is_empty() {
            return "";
        }
        if self.block.as_ref().is_none_or(|(number, _)| *number != place.block) {
            let (compressed, length) = table.sections.block(place.block);
            let mut text = String::with_capacity(length);
            DeflateDecoder::new(compressed)
                .read_to_string(&mut text)
                .expect("the generator writes deflated UTF-8");
            self.block = Some((place.block, text));
        }
        let (_, text) = self.block.as_ref().expect("just filled");
        &text[place.range]
    }
}
