//! Where the logs of a container come from: the node that ran it. The master
//! gives the API server a [`LogSource`] that asks the node.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;

use crate::path::Query;
use crate::status::Status;

/// Which part of which log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The node that runs it; never empty.
    pub node: String,
    /// The container's name; never empty.
    pub container: String,
    /// Go on as the container writes.
    pub follow: bool,
    /// The log of the run before this one.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Only lines of the last so many seconds.
    pub since_seconds: Option<i64>,
    /// Only lines from this time on, RFC 3339.
    pub since_time: Option<String>,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

impl LogRequest {
    /// Reads the query of `log`; which pod is meant is still to be said.
    ///
    /// # Errors
    /// `BadRequest`: a parameter makes no sense.
    pub fn read(query: &Query) -> Result<Self, Status> {
        Ok(Self {
            container: query.get("container").unwrap_or_default().to_owned(),
            follow: query.flag("follow")?,
            previous: query.flag("previous")?,
            timestamps: query.flag("timestamps")?,
            since_seconds: query.number("sinceSeconds")?,
            since_time: query.get("sinceTime").map(str::to_owned),
            tail_lines: query.number("tailLines")?,
            limit_bytes: query.number("limitBytes")?,
            ..Self::default()
        })
    }
}

/// Bytes of a log, as they are read.
pub type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Reads logs from nodes.
pub trait LogSource: Send + Sync + 'static {
    /// Opens a log. Dropping the stream ends the reading.
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogStream, Status>>;
}
