//! The two clocks: what time it is for people, and how long things take.
//!
//! A board may boot in 1970 and jump ten years an hour later. So every wait,
//! back-off and deadline is measured on [`Now::mono`], which only grows, and
//! [`Now::wall_ms`] is written into statuses and never compared. Where a
//! certificate has to be judged by some time, the clock is believed only while
//! the kernel says that something keeps it right ([`is_synchronised`]).
#![allow(unsafe_code)]

use std::time::Duration;

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Time since the machine booted, suspend included. Survives restarts of the agent.
    pub mono: Duration,
    /// Milliseconds since 1970 by the machine's clock, which may be wrong.
    pub wall_ms: u64,
}

/// Where the time comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The machine's clocks.
    System,
    /// tokio's clock, which tests pause; the wall clock starts at 1,000,000 ms.
    Tokio(tokio::time::Instant),
}

impl Clock {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        match self {
            Self::System => system(),
            Self::Tokio(start) => {
                let mono = start.elapsed();
                let passed_ms = u64::try_from(mono.as_millis()).unwrap_or(u64::MAX);
                Now { mono, wall_ms: 1_000_000_u64.saturating_add(passed_ms) }
            }
        }
    }
}

/// Whether the wall clock is kept right by NTP, PTP or GPS: the kernel's own word,
/// which `timedatectl` shows as "System clock synchronized".
#[must_use]
pub fn is_synchronised() -> bool {
    // SAFETY: all of `timex` is plain data, for which zero is a value; no mode
    // bits mean that nothing is set.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `clock` is writable and of the type the call fills.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    state >= 0 && state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0
}

/// The machine's clocks.
#[must_use]
pub fn system() -> Now {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(boot.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(boot.tv_nsec).unwrap_or(0);
    Now { mono: Duration::new(seconds, nanos), wall_ms: runtime::now_ms() }
}
