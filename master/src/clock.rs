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

/// Notices when the wall clock jumps: a machine that booted without one and then
/// asked the network, or was set by hand.
pub(crate) struct Jumps {
    /// The two clocks when they were last found to go together.
    wall: SystemTime,
    steady: Duration,
}

impl Jumps {
    /// How far the clocks may part: what tokens forgive.
    const LEAST: Duration = Duration::from_secs(45);

    /// From now on; `steady` is time that only grows.
    pub(crate) fn new(wall: SystemTime, steady: Duration) -> Self {
        Self { wall, steady }
    }

    /// Whether the wall clock has jumped since it was last asked.
    pub(crate) fn jumped(&mut self, wall: SystemTime, steady: Duration) -> bool {
        let expected = self.wall + steady.saturating_sub(self.steady);
        let apart = match wall.duration_since(expected) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        let jumped = Self::LEAST <= apart;
        if jumped {
            *self = Self::new(wall, steady);
        }
        jumped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_the_clock_are_noticed_once_and_nothing_else_is() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let s = Duration::from_secs;
        let mut jumps = Jumps::new(at(1_000_000), s(10));
        for (wall, steady, expected) in [
            (1_000_000, 10, false),
            (1_003_600, 3_610, false),
            // Small steps, and small steps that add up.
            (1_003_640, 3_620, false),
            (1_003_690, 3_630, true),
            (1_003_690, 3_630, false),
            // From the time of the build to today, and back again.
            (9_000_000, 3_640, true),
            (9_000_010, 3_650, false),
            (1_003_720, 3_660, true),
            (1_003_730, 3_670, false),
        ] {
            assert_eq!(jumps.jumped(at(wall), s(steady)), expected, "{wall} {steady}");
        }
    }
}
