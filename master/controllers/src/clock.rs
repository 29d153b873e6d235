//! The wall clock, as controllers write it into objects.
//!
//! Decisions about *how long* use tokio's monotonic clock where they can; the
//! wall clock is for what objects carry: condition times, deadlines that must
//! outlive a restart.

use api::time::Timestamp;
use tokio::time::Instant;

/// Tells the time of day.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// Starts at a given time and moves with tokio's clock, so that a test that
    /// pauses tokio's time pauses this one.
    Paused {
        /// The time of day at `start`.
        base: Timestamp,
        /// When the clock was made.
        start: Instant,
    },
}

impl Clock {
    /// A clock for tests: 2026-01-01 when it is made.
    #[must_use]
    pub fn paused() -> Self {
        let base = Timestamp::from_second(1_767_225_600).expect("2026 is a year jiff knows");
        Self::Paused { base, start: Instant::now() }
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Paused { base, start } => {
                let elapsed = i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX);
                Timestamp::from_millisecond(base.as_millisecond().saturating_add(elapsed))
                    .unwrap_or(*base)
            }
        }
    }

    /// The time of day as objects carry it.
    #[must_use]
    pub fn text(&self) -> String {
        api::time::rfc3339(self.now())
    }
}
