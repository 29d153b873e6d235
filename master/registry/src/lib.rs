//! The master's own registry of images: files, and the OCI distribution protocol
//! over them.
//!
//! ```text
//! docker, skopeo, oras ─► apiserver (/v2/, who asks) ─► Protocol ─┐
//! nodes ─► blob connections of the node port ─────────────────────┴► Files
//! ```
//!
//! Knows neither users nor connections: `apiserver` has the HTTP server and asks
//! who may; here a request is a value and a stream of bytes, and so is the answer.
//!
//! Sources: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>,
//! <https://distribution.github.io/distribution/spec/api/>.

mod collect;
mod error;
mod files;
mod name;
mod protocol;
mod upload;

pub use collect::Swept;
pub use error::{Code, RegistryError};
pub use files::{BlobFile, Config, Files};
pub use name::{Name, Tag};
pub use protocol::{Body, Protocol, failure};
