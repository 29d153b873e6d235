//! How long the agent waits before it tries something again.

use std::time::Duration;

/// How long a container must run before its next exit counts as the first again.
pub const RESET_AFTER: Duration = Duration::from_secs(600);

const MIN: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(300);
const SANDBOX_MIN: Duration = Duration::from_secs(1);
const SANDBOX_MAX: Duration = Duration::from_secs(60);

/// Delay between the `exits`-th exit in a row and the restart.
///
/// The first exit restarts at once; then 10 s, doubling, at most 300 s, as the
/// kubelet does while it reports `CrashLoopBackOff`. A run of [`RESET_AFTER`]
/// makes its exit the first again.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>.
///
/// ```
/// use edge_agent::pods::backoff::restart;
///
/// let secs: Vec<u64> = (1..9).map(|exits| restart(exits).as_secs()).collect();
/// assert_eq!(secs, [0, 10, 20, 40, 80, 160, 300, 300]);
/// ```
#[must_use]
pub fn restart(exits: u32) -> Duration {
    match exits {
        0 | 1 => Duration::ZERO,
        _ => retry(exits - 1),
    }
}

/// Delay after `failures` failed pulls or starts in a row: 10 s, doubling, at most 300 s.
#[must_use]
pub fn retry(failures: u32) -> Duration {
    double(MIN, MAX, failures)
}

/// Delay after `failures` failed attempts to make or remove what belongs to the
/// node itself (namespaces, mounts, files): 1 s, doubling, at most 60 s.
#[must_use]
pub fn node(failures: u32) -> Duration {
    double(SANDBOX_MIN, SANDBOX_MAX, failures)
}

fn double(min: Duration, max: Duration, failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => min.saturating_mul(2_u32.saturating_pow(failures - 1)).min(max),
    }
}
