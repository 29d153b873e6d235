//! The layout of `kubernetes-1.35.bin`, and nothing about what it means.
//!
//! Written by `tools/schema/generate.py`. Little endian; no alignment.
//!
//! ```text
//! 8   magic "PNSCHEMA"
//! 8   digest of the rest, to tell two tables apart
//! 4   number of types that have a name (inlined messages follow them)
//! 80  ten sections as (offset u32, length u32), in this order:
//!     types         20 each, named ones sorted by name
//!     fields        26 each, those of one type together and sorted by name
//!     kinds         16 each: group, version, kind (strings), type u16, 2 unused
//!     kind order     2 each: indices into kinds, sorted by (group, version, kind)
//!     inlined        4 each: protobuf tag u16, type u16
//!     list keys      4 each: string
//!     places         6 each: block u16, offset u16, length u16 of a description
//!     blocks        12 each: offset u32, compressed length u32, length u32
//!     strings       one byte of length, then UTF-8; offset 0 is "no string"
//!     descriptions  raw deflate, one stream a block
//! ```
//!
//! The file is part of the binary and stays where the kernel mapped it: nothing is
//! parsed or copied at start, and a page that nobody asks for costs no memory.

use std::ops::Range;

static FILE: &[u8] = include_bytes!("../../schema/kubernetes-1.35.bin");

const N_SECTIONS: usize = 10;
const HEAD_BYTES: usize = 20;
const TYPE_BYTES: usize = 20;
const FIELD_BYTES: usize = 26;
const KIND_BYTES: usize = 16;

/// Value of a type's or field's code that stands for an object with fields.
pub(super) const CODE_OBJECT: u8 = 255;

/// The bytes of the table, cut into its sections.
#[derive(Debug)]
pub(super) struct Sections {
    pub(super) digest: u64,
    pub(super) n_named_types: u16,
    types: &'static [u8],
    fields: &'static [u8],
    kinds: &'static [u8],
    kind_order: &'static [u8],
    inlined: &'static [u8],
    list_keys: &'static [u8],
    places: &'static [u8],
    blocks: &'static [u8],
    strings: &'static [u8],
    descriptions: &'static [u8],
}

/// One record of the types section.
#[derive(Clone, Copy, Debug)]
pub(super) struct TypeRecord(&'static [u8]);

/// One record of the fields section.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldRecord(&'static [u8]);

/// One record of the kinds section.
#[derive(Clone, Copy, Debug)]
pub(super) struct KindRecord {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    pub(super) type_index: u16,
}

/// Where a description lies: the compressed block and the range in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: u16,
    pub(super) range: Range<usize>,
}

impl Sections {
    pub(super) fn read() -> Self {
        assert!(FILE.starts_with(b"PNSCHEMA"), "the schema table was built in");
        let digest = u64::from_le_bytes(FILE[8..16].try_into().expect("8 bytes"));
        let n_named_types = u16::try_from(u32_at(FILE, 16)).expect("types are counted in 16 bits");
        let section = |n: usize| {
            assert!(n < N_SECTIONS);
            let start = u32_at(FILE, HEAD_BYTES + 8 * n) as usize;
            &FILE[start..start + u32_at(FILE, HEAD_BYTES + 8 * n + 4) as usize]
        };
        Self {
            digest,
            n_named_types,
            types: section(0),
            fields: section(1),
            kinds: section(2),
            kind_order: section(3),
            inlined: section(4),
            list_keys: section(5),
            places: section(6),
            blocks: section(7),
            strings: section(8),
            descriptions: section(9),
        }
    }

    pub(super) fn type_record(&self, index: u16) -> TypeRecord {
        TypeRecord(record(self.types, index, TYPE_BYTES))
    }

    pub(super) fn field_record(&self, index: u16) -> FieldRecord {
        FieldRecord(record(self.fields, index, FIELD_BYTES))
    }

    pub(super) fn n_kinds(&self) -> usize {
        self.kinds.len() / KIND_BYTES
    }

    /// The kind at `index` of the list in which those of one type stand together.
    pub(super) fn kind_record(&self, index: u16) -> KindRecord {
        let bytes = record(self.kinds, index, KIND_BYTES);
        KindRecord {
            group: self.string(u32_at(bytes, 0)),
            version: self.string(u32_at(bytes, 4)),
            kind: self.string(u32_at(bytes, 8)),
            type_index: u16_at(bytes, 12),
        }
    }

    /// The kind at `position` of the order by group, version and kind.
    pub(super) fn kind_in_order(&self, position: usize) -> KindRecord {
        self.kind_record(u16_at(self.kind_order, 2 * position))
    }

    /// Protobuf tag of an inlined message in its parent, and its type.
    pub(super) fn inlined(&self, index: u16) -> (u16, u16) {
        let bytes = record(self.inlined, index, 4);
        (u16_at(bytes, 0), u16_at(bytes, 2))
    }

    pub(super) fn list_key(&self, index: u16) -> &'static str {
        self.string(u32_at(record(self.list_keys, index, 4), 0))
    }

    pub(super) fn place(&self, id: u16) -> Place {
        let bytes = record(self.places, id, 6);
        let start = usize::from(u16_at(bytes, 2));
        Place { block: u16_at(bytes, 0), range: start..start + usize::from(u16_at(bytes, 4)) }
    }

    /// Compressed bytes of a block of descriptions, and how long its text is.
    pub(super) fn block(&self, index: u16) -> (&'static [u8], usize) {
        let bytes = record(self.blocks, index, 12);
        let start = u32_at(bytes, 0) as usize;
        let compressed = &self.descriptions[start..start + u32_at(bytes, 4) as usize];
        (compressed, u32_at(bytes, 8) as usize)
    }

    pub(super) fn string(&self, offset: u32) -> &'static str {
        let start = offset as usize + 1;
        let length = usize::from(self.strings[offset as usize]);
        std::str::from_utf8(&self.strings[start..start + length])
            .expect("the generator writes UTF-8")
    }

    pub(super) fn optional_string(&self, offset: u32) -> Option<&'static str> {
        (offset != 0).then(|| self.string(offset))
    }
}

impl TypeRecord {
    pub(super) fn name(self) -> u32 {
        u32_at(self.0, 0)
    }

    pub(super) fn fields(self) -> Range<u16> {
        let start = u16_at(self.0, 4);
        start..start + u16_at(self.0, 6)
    }

    pub(super) fn kinds(self) -> Range<u16> {
        let start = u16_at(self.0, 8);
        start..start + u16::from(self.0[14])
    }

    pub(super) fn inlined(self) -> Range<u16> {
        let start = u16_at(self.0, 10);
        start..start + u16::from(self.0[15])
    }

    pub(super) fn description(self) -> u16 {
        u16_at(self.0, 12)
    }

    pub(super) fn code(self) -> u8 {
        self.0[16]
    }

    pub(super) fn is_atomic(self) -> bool {
        u16_at(self.0, 18) & 1 != 0
    }
}

impl FieldRecord {
    pub(super) fn name(self) -> u32 {
        u32_at(self.0, 0)
    }

    pub(super) fn merge_key(self) -> u32 {
        u32_at(self.0, 4)
    }

    pub(super) fn default_value(self) -> u32 {
        u32_at(self.0, 8)
    }

    pub(super) fn tag(self) -> u16 {
        u16_at(self.0, 12)
    }

    /// Index of the definition the value refers to, or 0xFFFF.
    pub(super) fn type_index(self) -> u16 {
        u16_at(self.0, 14)
    }

    pub(super) fn flags(self) -> u16 {
        u16_at(self.0, 16)
    }

    pub(super) fn description(self) -> u16 {
        u16_at(self.0, 18)
    }

    pub(super) fn list_keys(self) -> Range<u16> {
        let start = u16_at(self.0, 20);
        start..start + u16::from(self.0[22])
    }

    pub(super) fn container(self) -> u8 {
        self.0[23]
    }

    pub(super) fn code(self) -> u8 {
        self.0[24]
    }
}

fn record(section: &'static [u8], index: u16, size: usize) -> &'static [u8] {
    let start = usize::from(index) * size;
    &section[start..start + size]
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
