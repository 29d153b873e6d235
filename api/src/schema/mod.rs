//! The shape of every Kubernetes type that Pinnace serves or reads.
//!
//! [`table`] answers what the Kubernetes source tree answers with generated Go code:
//! which fields a type has, how each is merged, which protobuf tag it has, what it is
//! for. It is a file made at development time by `tools/schema` and lies in the binary
//! ([`binary`] has its layout); nothing is parsed at start and a lookup allocates nothing.
//!
//! Deliberately not here: defaults and validation (which need to know what a field
//! *means*), and custom resources, whose schemas are data of the cluster.

mod binary;
mod descriptions;
pub mod duplicates;
mod shape;
pub mod strict;
#[cfg(test)]
mod tests;
pub mod types;

use std::cmp::Ordering;
use std::fmt;
use std::sync::OnceLock;

use crate::resource::GroupVersionKind;

use binary::{FieldRecord, Sections, TypeRecord};

pub use descriptions::Descriptions;
pub use duplicates::duplicates;
pub(crate) use shape::Codec;
pub use shape::{Element, ListType, PatchStrategy, Scalar, Shape};
pub use strict::prune_unknown;

/// Deepest nesting that the functions of this crate follow in an object.
///
/// The deepest real objects (a pod template's affinity terms) reach 15;
/// `serde_json` itself refuses to read past 128.
pub const MAX_DEPTH: usize = 100;

/// Most errors that one check reports, as many as kube-apiserver's decoder does.
pub const MAX_ERRORS: usize = 100;

/// The schema table of Kubernetes 1.35.
#[must_use]
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table { sections: Sections::read() })
}

/// All types; see [`table`].
#[derive(Debug)]
pub struct Table {
    sections: Sections,
}

/// One type, for example `io.k8s.api.core.v1.PodSpec`.
#[derive(Clone, Copy)]
pub struct TypeRef {
    table: &'static Table,
    index: u16,
    record: TypeRecord,
}

/// One field of a type, for example `containers` of `PodSpec`.
#[derive(Clone, Copy)]
pub struct Field {
    table: &'static Table,
    record: FieldRecord,
}

impl Table {
    /// The type that a client sends as `kind` in `group`/`version`.
    ///
    /// A list kind (`PodList`) and the kinds that every group shares (`DeleteOptions`,
    /// `WatchEvent`) are found too; the latter in any group, known or not.
    #[must_use]
    pub fn kind(&'static self, group: &str, version: &str, kind: &str) -> Option<TypeRef> {
        let wanted = (group, version, kind);
        let (mut low, mut high) = (0, self.sections.n_kinds());
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.sections.kind_in_order(middle);
            match (found.group, found.version, found.kind).cmp(&wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(self.type_at(found.type_index)),
            }
        }
        match kind {
            "DeleteOptions" | "WatchEvent" => {
                self.by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
            }
            _ => None,
        }
    }

    /// The type with the name it has in OpenAPI, `io.k8s.api.core.v1.Pod`.
    #[must_use]
    pub fn by_name(&'static self, name: &str) -> Option<TypeRef> {
        let (mut low, mut high) = (0, self.sections.n_named_types);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.type_at(middle);
            match found.name().cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(found),
            }
        }
        None
    }

    /// Every type, by name.
    pub fn types(&'static self) -> impl ExactSizeIterator<Item = TypeRef> {
        (0..self.sections.n_named_types).map(|index| self.type_at(index))
    }

    /// A number that differs between any two tables; for cache keys.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.sections.digest
    }

    fn type_at(&'static self, index: u16) -> TypeRef {
        TypeRef { table: self, index, record: self.sections.type_record(index) }
    }
}

impl TypeRef {
    /// Name in OpenAPI, `io.k8s.api.core.v1.PodSpec`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.table.sections.string(self.record.name())
    }

    /// Last part of the name, `PodSpec`.
    #[must_use]
    pub fn short_name(self) -> &'static str {
        let name = self.name();
        name.rsplit_once('.').map_or(name, |(_, last)| last)
    }

    /// What it is for. Inflates a part of the table; many in a row: [`Descriptions`].
    #[must_use]
    pub fn description(self) -> String {
        Descriptions::default().of_type(self).to_owned()
    }

    /// Fields in the order of their names.
    pub fn fields(self) -> impl ExactSizeIterator<Item = Field> {
        self.record.fields().map(move |index| self.field_at(index))
    }

    /// The field that JSON calls `json_name`; case matters.
    #[must_use]
    pub fn field(self, json_name: &str) -> Option<Field> {
        let range = self.record.fields();
        let (mut low, mut high) = (range.start, range.end);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.field_at(middle);
            match found.name().cmp(json_name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(found),
            }
        }
        None
    }

    /// The field with this protobuf tag in the type's own message.
    #[must_use]
    pub fn field_by_tag(self, tag: u32) -> Option<Field> {
        self.fields().find(|field| field.tag() == tag && tag != 0)
    }

    /// The message with this protobuf tag whose fields JSON shows as the type's own
    /// (a Go embedded struct, such as the volume source in `Volume`).
    #[must_use]
    pub fn inlined_by_tag(self, tag: u32) -> Option<TypeRef> {
        self.record
            .inlined()
            .map(|index| self.table.sections.inlined(index))
            .find(|(inlined_tag, _)| u32::from(*inlined_tag) == tag)
            .map(|(_, index)| self.table.type_at(index))
    }

    /// Whether server-side apply takes an object of this type as one value.
    #[must_use]
    pub fn is_atomic(self) -> bool {
        self.record.is_atomic()
    }

    /// What the whole type is, if it is no object with fields (`Quantity`, `Time`).
    #[must_use]
    pub fn scalar(self) -> Option<Scalar> {
        Codec::of(self.record.code()).map(Codec::scalar)
    }

    /// The kinds of this type; several for `DeleteOptions` and `WatchEvent`.
    pub fn kinds(self) -> impl ExactSizeIterator<Item = GroupVersionKind> {
        self.record.kinds().map(move |index| {
            let record = self.table.sections.kind_record(index);
            GroupVersionKind { group: record.group, version: record.version, kind: record.kind }
        })
    }

    fn field_at(self, index: u16) -> Field {
        Field { table: self.table, record: self.table.sections.field_record(index) }
    }
}

impl PartialEq for TypeRef {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

impl Eq for TypeRef {}

impl PartialOrd for TypeRef {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TypeRef {
    /// By name.
    fn cmp(&self, other: &Self) -> Ordering {
        self.index.cmp(&other.index)
    }
}

impl fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Field {
    /// Name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.table.sections.string(self.record.name())
    }

    /// Tag in protobuf. 0: the field travels in an inlined message
    /// ([`TypeRef::inlined_by_tag`]), or never (`apiVersion`, `kind`).
    #[must_use]
    pub fn tag(self) -> u32 {
        u32::from(self.record.tag())
    }

    /// Whether the definitions call it required.
    #[must_use]
    pub fn required(self) -> bool {
        self.has(1)
    }

    /// What it is for. Inflates a part of the table; many in a row: [`Descriptions`].
    #[must_use]
    pub fn description(self) -> String {
        Descriptions::default().of_field(self).to_owned()
    }

    /// What value it holds.
    #[must_use]
    pub fn shape(self) -> Shape {
        let element = match Codec::of(self.record.code()) {
            Some(codec) => Element::Scalar(codec.scalar()),
            None => Element::Object(self.table.type_at(self.record.type_index())),
        };
        match (self.record.container(), element) {
            (0, Element::Object(target)) => Shape::Object(target),
            (0, Element::Scalar(scalar)) => Shape::Scalar(scalar),
            (1, _) => Shape::List(element),
            (2, _) => Shape::Map(element),
            _ => Shape::Map(Element::Strings),
        }
    }

    /// How server-side apply merges the list; atomic if it is none.
    #[must_use]
    pub fn list_type(self) -> ListType {
        self.explicit_list_type().unwrap_or(ListType::Atomic)
    }

    /// The list type where Kubernetes states one.
    #[must_use]
    pub fn explicit_list_type(self) -> Option<ListType> {
        match (self.record.flags() >> 1) & 3 {
            0 => None,
            1 => Some(ListType::Atomic),
            2 => Some(ListType::Set),
            _ => Some(ListType::Map),
        }
    }

    /// The fields that tell the elements of a [`ListType::Map`] apart.
    pub fn list_map_keys(self) -> impl ExactSizeIterator<Item = &'static str> {
        self.record.list_keys().map(move |index| self.table.sections.list_key(index))
    }

    /// How strategic merge patch treats it.
    #[must_use]
    pub fn patch_strategy(self) -> PatchStrategy {
        PatchStrategy {
            merge: self.has(1 << 3),
            replace: self.has(1 << 4),
            retain_keys: self.has(1 << 5),
        }
    }

    /// The field that tells the elements of a merged list apart in strategic merge patch.
    #[must_use]
    pub fn merge_key(self) -> Option<&'static str> {
        self.table.sections.optional_string(self.record.merge_key())
    }

    /// Whether server-side apply takes the map or object as one value, by the field
    /// itself or by its type.
    #[must_use]
    pub fn map_atomic(self) -> bool {
        match self.shape() {
            _ if self.has(1 << 7) => false,
            Shape::Object(target) => self.has(1 << 6) || target.is_atomic(),
            _ => self.has(1 << 6),
        }
    }

    /// The map type where the field states one: true for atomic, false for granular.
    #[must_use]
    pub fn explicit_map_atomic(self) -> Option<bool> {
        if self.has(1 << 6) { Some(true) } else { self.has(1 << 7).then_some(false) }
    }

    /// Value that server-side apply assumes for a list map key that is absent:
    /// `TCP` for the protocol of a port.
    #[must_use]
    pub fn key_default(self) -> Option<&'static str> {
        self.table.sections.optional_string(self.record.default_value())
    }

    /// The definition that the value or its elements refer to, scalars included
    /// (`io.k8s.apimachinery.pkg.api.resource.Quantity`).
    #[must_use]
    pub fn definition(self) -> Option<TypeRef> {
        let index = self.record.type_index();
        (index != u16::MAX).then(|| self.table.type_at(index))
    }

    /// Whether a zero value in protobuf was set by the sender (a pointer in Go).
    pub(crate) fn keeps_zero(self) -> bool {
        self.has(1 << 8)
    }

    /// Whether protobuf wraps the list in a message of its own (`Verbs`).
    pub(crate) fn is_wrapped(self) -> bool {
        self.has(1 << 9)
    }

    pub(crate) fn codec(self) -> Option<Codec> {
        Codec::of(self.record.code())
    }

    fn has(self, flag: u16) -> bool {
        self.record.flags() & flag != 0
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name(), self.shape())
    }
}
