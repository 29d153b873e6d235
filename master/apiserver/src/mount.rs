//! Something else than the API below a path of the same port, such as the
//! master's registry of images.
//!
//! Who asks and whether they may is decided here as for every path: by their
//! certificate, their token, or a password that the mount knows, and by the
//! [`Authorizer`](crate::Authorizer). Bodies of both directions are streams
//! without a bound in time or length; the mount bounds them.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use http::{Request, Response};

use crate::identity::Identity;
use crate::logs::BoxFuture;

/// A body, in pieces.
pub type MountBody = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// What is below a path.
pub trait Mount: Send + Sync + 'static {
    /// The path, without a slash at its end: `/v2`.
    fn prefix(&self) -> &'static str;

    /// Whose password it is; `None` where it is nobody's.
    fn password(&self, user: &str, password: &str) -> Option<Identity>;

    /// Answers somebody who may.
    fn serve<'a>(
        &'a self,
        who: &'a Identity,
        request: Request<MountBody>,
    ) -> BoxFuture<'a, Response<MountBody>>;

    /// Answers somebody who may not.
    fn refuse(&self, who: &Identity) -> Response<MountBody>;
}
