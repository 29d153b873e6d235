//! Container images: finding, fetching, verifying, unpacking and keeping them.
//!
//! ```text
//! Reference ─► Registry (HTTP) ─► index ─► Platform::choose ─► manifest ─► layers
//!                                                                   │  sha256, size
//!               Store: blobs/ refs/ layers/<diff_id>/ ◄── unpack ◄──┘  (a child process)
//! ```
//!
//! The master uses [`inspect`] and [`fetch_wasm`]; nodes use [`Store`]. Nothing
//! that comes from a registry is believed: every body is bounded, every blob is
//! checked against its digest, and layers are unpacked without ever leaving
//! their folder.
//!
//! Knows nothing of pods, pull policies or back-off.

pub mod build;
mod digest;
mod error;
mod inspect;
mod manifest;
mod platform;
mod reference;
mod registry;
mod store;
pub mod unpack;

pub use digest::Digest;
pub use error::ImageError;
pub use inspect::{ImageInfo, ImageKind, WasmImage, WasmKind, fetch_wasm, inspect};
pub use manifest::ImageConfig;
pub use platform::Platform;
pub use reference::Reference;
pub use registry::{Registry, RegistryConfig};
pub use store::{Image, Limits, Record, Store, Unpacker};
pub use unpack::unpack_main;
