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
pub mod elf;
mod error;
mod inspect;
pub mod keyring;
pub mod layout;
mod manifest;
mod platform;
mod reference;
pub mod registry;
pub mod settings;
pub mod signature;
mod store;
pub mod unpack;

pub use digest::Digest;
pub use error::ImageError;
pub use inspect::{ImageInfo, ImageKind, WasmImage, WasmKind, fetch_wasm, inspect};
pub use keyring::{Credential, Keyring};
pub use manifest::ImageConfig;
pub use platform::Platform;
pub use reference::Reference;
pub use registry::{MASTER_REGISTRY, Registry, RegistryConfig};
pub use store::{Collected, Image, InUse, Limits, Pull, Record, Store, Unpacker, Unused};
pub use unpack::unpack_main;
