//! Objects that are not stored but measured when somebody asks, such as the
//! metrics of nodes and pods. The master gives the API server a
//! [`MeasuredSource`] that asks the nodes.

use api::resource::Resource;
use serde_json::Value;

use crate::logs::BoxFuture;
use crate::options::Selection;
use crate::status::Status;

/// Which objects of which resource.
#[derive(Clone, Debug)]
pub struct MeasuredRequest {
    /// The resource; its `storage` is `Virtual`.
    pub resource: &'static Resource,
    /// The namespace; empty for all, and for a cluster-scoped resource.
    pub namespace: String,
    /// The name of one object; empty for all that are selected.
    pub name: String,
    /// Which of them, by labels and fields.
    pub selection: Selection,
}

/// Measures.
pub trait MeasuredSource: Send + Sync + 'static {
    /// The objects, by namespace and name. One that cannot be measured is left out.
    fn measure(&self, request: MeasuredRequest) -> BoxFuture<'_, Result<Vec<Value>, Status>>;
}
