//! The guest's turns on the CPU.
//!
//! wasmtime's epoch is what makes a guest that computes give its thread back.
//! It is advanced by SIGTERM; and by a timer that runs with the process' CPU
//! time, so an idle guest is never woken. The timer is there where it is
//! needed: with an HTTP server, whose requests take turns, and where the kernel
//! has no CPU controller, so that the process itself keeps to its limit.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use wasmtime::{Engine, Store, UpdateDeadline};

/// CPU time of a turn.
const TURN: Duration = Duration::from_millis(10);
/// How much unused time is saved up, as the kernel's controller does it.
const PERIOD: Duration = Duration::from_millis(100);

/// How guests are interrupted, for every store of a process.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    throttle: Option<Arc<Mutex<Throttle>>>,
}

impl Cpu {
    /// `limit_millis` is 0 where the process need not limit itself; `has_turns`
    /// where several instances share the thread.
    ///
    /// # Errors
    ///
    /// What the kernel says of the timer or the signals.
    pub(super) fn new(engine: &Engine, limit_millis: u64, has_turns: bool) -> io::Result<Self> {
        advance_epoch_on(libc::SIGTERM, engine)?;
        if has_turns || limit_millis != 0 {
            advance_epoch_on(libc::SIGPROF, engine)?;
            start_timer()?;
        }
        let start = Instant::now();
        let throttle =
            (limit_millis != 0).then(|| Arc::new(Mutex::new(Throttle::new(limit_millis, start))));
        Ok(Self { throttle })
    }

    /// Has the guest of `store` give its thread back when the epoch advances.
    pub(super) fn apply<T: 'static>(&self, store: &mut Store<T>) {
        store.set_epoch_deadline(1);
        let Some(throttle) = self.throttle.clone() else {
            store.epoch_deadline_async_yield_and_update(1);
            return;
        };
        store.epoch_deadline_callback(move |_| {
            let used = clock_gettime(ClockId::ProcessCPUTime);
            let used = Duration::try_from(used).unwrap_or_default();
            let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
            let pause = throttle.pause(Instant::now(), used);
            if pause.is_zero() {
                return Ok(UpdateDeadline::Yield(1));
            }
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::time::sleep(pause))))
        });
    }
}

fn advance_epoch_on(signal: i32, engine: &Engine) -> io::Result<()> {
    let engine = engine.clone();
    let action = move || engine.increment_epoch();
    // SAFETY: the action is one atomic addition, which is safe in a signal handler.
    unsafe { signal_hook_registry::register(signal, action) }.map(drop)
}

/// Sends SIGPROF for every [`TURN`] of CPU time the process uses.
fn start_timer() -> io::Result<()> {
    let turn = libc::timeval {
        tv_sec: 0,
        tv_usec: libc::suseconds_t::try_from(TURN.as_micros()).expect("it is below a second"),
    };
    let timer = libc::itimerval { it_interval: turn, it_value: turn };
    // SAFETY: `timer` is valid for the call, and the old value is not asked for.
    let done =
        unsafe { libc::setitimer(libc::ITIMER_PROF as _, &raw const timer, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps CPU time to a share of the time that passes.
#[derive(Debug)]
struct Throttle {
    limit_millis: u64,
    /// Since when time is counted, and what had been used by then.
    since: Instant,
    used: Duration,
}

impl Throttle {
    fn new(limit_millis: u64, since: Instant) -> Self {
        Self { limit_millis, since, used: Duration::ZERO }
    }

    /// The share of some time, in CPU time.
    fn share(&self, time: Duration) -> Duration {
        scale(time, self.limit_millis, 1000)
    }

    /// How long to wait now, with `used` of CPU time used since the process began.
    fn pause(&mut self, now: Instant, used: Duration) -> Duration {
        let allowed = self.share(now.saturating_duration_since(self.since));
        let taken = used.saturating_sub(self.used);
        let most = self.share(PERIOD);
        if allowed > taken + most {
            // Time not used is saved up for one period only.
            self.used += taken;
            self.since = now.checked_sub(PERIOD).unwrap_or(now);
            return Duration::ZERO;
        }
        scale(taken.saturating_sub(allowed), 1000, self.limit_millis)
    }
}

fn scale(time: Duration, by: u64, over: u64) -> Duration {
    let nanos = time.as_nanos() * u128::from(by) / u128::from(over.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a guest that always computes when it may, for `total`; returns what it used.
    fn run(limit_millis: u64, idle_first: Duration, total: Duration) -> Duration {
        let start = Instant::now();
        let mut throttle = Throttle::new(limit_millis, start);
        let mut now = start + idle_first;
        let mut used = Duration::ZERO;
        while now < start + idle_first + total {
            now += TURN;
            used += TURN;
            now += throttle.pause(now, used);
        }
        used
    }

    #[test]
    fn a_guest_keeps_to_its_share() {
        for limit in [50, 100, 250, 500, 900] {
            let used = run(limit, Duration::ZERO, Duration::from_secs(60)).as_millis();
            let share = u128::from(60 * limit);
            assert!(used.abs_diff(share) <= 110, "{limit}: {used} of {share}");
        }
    }

    #[test]
    fn time_is_saved_up_for_one_period_only() {
        let second = Duration::from_secs(1);
        let used = run(500, Duration::from_secs(3600), second).as_millis();
        assert!(used <= 500 + 60, "{used}");
        assert!(used >= 500, "{used}");
    }

    #[test]
    fn two_cores_are_never_reached_by_one_thread() {
        assert_eq!(run(2000, Duration::ZERO, Duration::from_secs(1)), Duration::from_secs(1));
    }
}
