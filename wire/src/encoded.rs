//! Sets from items that are kept encoded, one block of bytes each.
//!
//! The master keeps the set of every node in memory. As structs, 10,000 pods are
//! tens of MB of small strings; as postcard they are a few, and since postcard
//! writes a struct as its fields one after the other, a message is put together
//! from them without decoding. A test pins that the bytes are the same.

use std::sync::Arc;

use crate::envelope::{Envelope, Kind};
use crate::set::ItemV1;
use crate::{Epoch, Uid};

/// An item as the bytes that travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedItem(Arc<[u8]>);

impl EncodedItem {
    /// Encodes `item`.
    #[must_use]
    pub fn new(item: &ItemV1) -> Self {
        let bytes = postcard::to_stdvec(item).expect("items hold only what postcard writes");
        Self(bytes.into())
    }

    /// Number of bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.0.len()
    }
}

/// The bytes of a [`crate::set::SnapshotV1`], in its envelope.
#[must_use]
pub fn encoded_snapshot<'a>(
    epoch: Epoch,
    revision: u64,
    items: impl IntoIterator<Item = &'a EncodedItem, IntoIter: ExactSizeIterator>,
) -> Vec<u8> {
    let mut plain = fields(&(epoch, revision));
    append(&mut plain, items);
    Envelope::of_plain(Kind::Snapshot, plain).to_bytes()
}

/// The bytes of a [`crate::set::DeltaV1`], in its envelope.
#[must_use]
pub fn encoded_delta<'a>(
    epoch: Epoch,
    base_revision: u64,
    revision: u64,
    upsert: impl IntoIterator<Item = &'a EncodedItem, IntoIter: ExactSizeIterator>,
    remove: &[Uid],
) -> Vec<u8> {
    let mut plain = fields(&(epoch, base_revision, revision));
    append(&mut plain, upsert);
    plain.extend(fields(&remove));
    Envelope::of_plain(Kind::Delta, plain).to_bytes()
}

/// A sequence: its length, then the items.
fn append<'a>(
    plain: &mut Vec<u8>,
    items: impl IntoIterator<Item = &'a EncodedItem, IntoIter: ExactSizeIterator>,
) {
    let items = items.into_iter();
    plain.extend(fields(&(items.len() as u64)));
    for item in items {
        plain.extend_from_slice(&item.0);
    }
}

fn fields(values: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_stdvec(values).expect("numbers and uids are what postcard writes")
}
