//! Waiting: for a condition, with a deadline, and for futures, on one runtime a
//! thread. Knows nothing of Pinnace.
//!
//! Tests are plain functions. What needs a runtime (the Kubernetes client, MQTT,
//! child processes with a time limit) runs on the thread's own, so that its
//! sockets are made in the thread's network namespace.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;

/// Far beyond what anything here takes on a loaded machine with two cores.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(50);

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system has file descriptors");
}

/// Runs a future on the thread's runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Looks until `probe` succeeds and returns what it found; panics with the last
/// thing in the way once `deadline` is over.
#[track_caller]
pub(crate) fn until_within<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match probe() {
            Ok(found) => return found,
            Err(obstacle) if Instant::now() >= end => {
                panic!("{what}: not within {deadline:?}; last seen: {obstacle}")
            }
            Err(_) => block_on(async { tokio::time::sleep(INTERVAL).await }),
        }
    }
}

/// [`until_within`] the usual deadline.
#[track_caller]
pub(crate) fn until<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    until_within(what, DEADLINE, probe)
}

/// Looks again and again for `duration`; panics as soon as `probe` fails. For
/// what must *not* happen.
#[track_caller]
pub(crate) fn throughout(
    what: &str,
    duration: Duration,
    mut probe: impl FnMut() -> Result<(), String>,
) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        if let Err(seen) = probe() {
            panic!("{what}: {seen}");
        }
        block_on(async { tokio::time::sleep(INTERVAL).await });
    }
}

/// `Ok` where it holds, else what was seen instead.
pub(crate) fn check(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}
