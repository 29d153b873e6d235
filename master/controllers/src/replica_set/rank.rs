//! Which pods go first when there are too many. Pure; the order is Kubernetes'.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use api::time::{Timestamp, seconds_between};

use crate::projection::{Phase, Pod};

/// The `n_pods` pods that go first.
///
/// In this order: without a node; not started; not ready; of a lower deletion
/// cost; on the node with the most related pods; ready for a shorter time; with
/// more restarts; younger; by uid. Times are compared by their power of two, so
/// that pods of about one age are spread over nodes.
pub fn victims<'a>(
    mut pods: Vec<&'a Arc<Pod>>,
    n_pods: usize,
    now: Timestamp,
    related: &HashMap<Arc<str>, usize>,
) -> Vec<&'a Arc<Pod>> {
    if n_pods < pods.len() {
        pods.sort_by_cached_key(|pod| rank(pod, now, related));
    }
    pods.truncate(n_pods);
    pods
}

type Rank = (
    bool,
    u8,
    bool,
    i32,
    Reverse<usize>,
    Option<u32>,
    Reverse<i64>,
    u32,
    Reverse<Timestamp>,
    Arc<str>,
);

fn rank(pod: &Pod, now: Timestamp, related: &HashMap<Arc<str>, usize>) -> Rank {
    let phase = match pod.phase {
        Phase::Pending => 0,
        Phase::Unknown => 1,
        _ => 2,
    };
    let age = |since: Timestamp| {
        let seconds = u64::try_from(seconds_between(since, now).max(0)).unwrap_or(0);
        u64::BITS - seconds.leading_zeros()
    };
    (
        pod.node.is_some(),
        phase,
        pod.ready_since.is_some(),
        pod.deletion_cost,
        Reverse(pod.node.as_ref().and_then(|node| related.get(node)).copied().unwrap_or(0)),
        pod.ready_since.map(age),
        Reverse(pod.restarts),
        age(pod.meta.created),
        Reverse(pod.meta.created),
        Arc::clone(&pod.meta.uid),
    )
}
