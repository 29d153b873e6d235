//! Images that come from somewhere else than a registry's HTTP: over the node's
//! own connection to the master, or out of the master's own store.

use std::io;
use std::pin::Pin;

use bytes::Bytes;

use crate::{Digest, ImageError, Reference};

/// A future that can be sent to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The bytes of a blob, piece by piece.
pub trait Pieces: Send {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>>;
}

/// A blob on its way, and at which byte it begins.
pub type Begun = (u64, Box<dyn Pieces>);

/// Somebody who has images. What comes is verified by who asks.
pub trait Origin: Send + Sync + 'static {
    /// The index or manifest that `image` names: by its digest, else by its tag.
    fn manifest<'a>(&'a self, image: &'a Reference) -> BoxFuture<'a, Result<Bytes, ImageError>>;

    /// A blob of the image's repository from a byte on, and where the answer
    /// really begins.
    fn blob<'a>(
        &'a self,
        image: &'a Reference,
        digest: Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<Begun, ImageError>>;
}
