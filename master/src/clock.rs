//! The wall clock of a machine that may have none.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When this program was built.
#[must_use]
pub(crate) fn build_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(env!("PINNACE_BUILD_TIME").parse().unwrap_or(0))
}

/// The later of the clock and the time of the build: a board that boots in 1970
/// still makes certificates that are valid elsewhere.
#[must_use]
pub(crate) fn now() -> SystemTime {
    SystemTime::now().max(build_time())
}

/// [`now`], for objects.
#[must_use]
pub(crate) fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::try_from(now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
