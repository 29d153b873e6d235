//! The master's half of the node protocol: events and the time go in, messages
//! and news come out.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`node`] | [`NodeDispatcher`]: the protocol with one node |
//! | [`fleet`] | [`Dispatcher`]: one of those for each node, by topic |
//! | [`desired`] | the newest set of a node, and what changed since which revision |
//! | [`boots`] | which start of an agent is the current one, and cloned identities |
//! | [`enrol`] | whether a board may become a node |
//!
//! Nothing here reads a clock, a socket or the store: `master` moves the
//! messages over the gateway, and `tests::sim` over a simulated link with a
//! seeded fault plan. Nothing knows what is in an item either.
//!
//! The rules, whatever the link does (loses, repeats, delays, reorders):
//!
//! 1. Every set is whole and carries epoch and revision; a delta names its base.
//! 2. At most one set is on the way to a node; it is sent again until an
//!    `Applied` or a heartbeat shows its revision.
//! 3. Nothing is queued for a node that is away. Its hello says what it has.
//! 4. A report is acknowledged only after the caller says that it is stored.

pub mod boots;
pub mod desired;
pub mod enrol;
pub mod fleet;
pub mod node;

pub use fleet::Dispatcher;
pub use node::{NodeDispatcher, Output};

/// SHA-256, as parts and set digests use it.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The digest that a hello carries.
#[must_use]
pub fn set_digest(items: &[wire::set::ItemV1]) -> [u8; 16] {
    wire::set::set_digest(items, sha256)
}
