//! Files that the master offers beside the API, such as a backup. The paths
//! are open to `system:masters` only, as every path without a rule.

use crate::logs::{BoxFuture, LogStream};
use crate::status::Status;

/// A file that is made while it is sent.
pub trait Download: Send + Sync + 'static {
    /// Where it is, such as `/pinnace/v1/backup`.
    fn path(&self) -> &'static str;

    /// Begins it. Dropping the stream ends the making.
    fn open(&self) -> BoxFuture<'_, Result<LogStream, Status>>;
}
