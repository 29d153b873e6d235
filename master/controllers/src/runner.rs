//! The work queue and loop that every controller shares.
//!
//! ```text
//!              add(key)
//!   caches ───────────────────► waiting ──due──► running ──ok────► done
//!                                 ▲                │
//!                                 └── after delay ─┴──err / requeue
//! ```
//!
//! - A key waits at most once: a second notification only brings it forward.
//! - A key runs at most once at a time: a notification that arrives while it
//!   runs makes it run again afterwards.
//! - A failing key is retried after [`Config::backoff_min`], doubling up to
//!   [`Config::backoff_max`], for ever; one success resets it.
//! - [`Sender::add`] never blocks: keys not taken yet are held once each, so the
//!   queue is never longer than there are objects.
//!
//! The same rules as `client-go`'s `workqueue` and kube-rs's `controller::runner`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};
use tracing::{debug, warn};

/// What a reconcile asks for once it has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until the object changes.
    AwaitChange,
    /// Look again after this long, even without a change.
    RequeueAfter(Duration),
}

/// How one controller runs.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Most keys reconciled at once.
    pub concurrency: usize,
    /// Delay after the first failure of a key.
    pub backoff_min: Duration,
    /// Longest delay between two tries of a key.
    pub backoff_max: Duration,
}

impl Default for Config {
    /// Eight at once; 10 ms to 1 minute between tries. The first delay is short
    /// because most failures are conflicts with another writer.
    fn default() -> Self {
        Self {
            concurrency: 8,
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_mins(1),
        }
    }
}

/// Makes the two ends of a queue of keys.
#[must_use]
pub fn queue<K>() -> (Sender<K>, Receiver<K>) {
    let inbox = Arc::new(Inbox {
        keys: Mutex::new((VecDeque::new(), HashSet::new())),
        arrived: Notify::new(),
    });
    (Sender(Arc::clone(&inbox)), Receiver(inbox))
}

#[derive(Debug)]
struct Inbox<K> {
    keys: Mutex<(VecDeque<K>, HashSet<K>)>,
    arrived: Notify,
}

/// Says which keys to look at.
#[derive(Debug)]
pub struct Sender<K>(Arc<Inbox<K>>);

impl<K> Clone for Sender<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Clone + Eq + Hash> Sender<K> {
    /// Asks for a look at `key`. Never blocks.
    pub fn add(&self, key: K) {
        let mut keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.1.insert(key.clone()) {
            keys.0.push_back(key);
            self.0.arrived.notify_one();
        }
    }
}

/// Where the keys come out.
#[derive(Debug)]
pub struct Receiver<K>(Arc<Inbox<K>>);

impl<K: Eq + Hash> Receiver<K> {
    /// The next key. Never ends; safe to drop half-way.
    pub async fn recv(&mut self) -> K {
        loop {
            if let Some(key) = self.try_recv() {
                return key;
            }
            self.0.arrived.notified().await;
        }
    }

    /// The next key, where one is there already.
    pub fn try_recv(&mut self) -> Option<K> {
        let mut keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.0.pop_front()?;
        keys.1.remove(&key);
        Some(key)
    }
}

/// Runs `reconcile` for every key of `changes`, until `shutdown`.
///
/// On `shutdown` no further key is started, the running ones are waited for,
/// and the function returns. The caller bounds that wait.
///
/// # Panics
///
/// Where `reconcile` panics, so that a bug ends the process and not one loop of it.
pub async fn run<K, F, Fut, E>(
    name: &'static str,
    config: Config,
    mut changes: Receiver<K>,
    shutdown: CancellationToken,
    reconcile: F,
) where
    K: Clone + Debug + Eq + Hash + Send + 'static,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
    E: fmt::Display + Send + 'static,
{
    let mut queue: Queue<K> = Queue::default();
    let mut running: JoinSet<(K, Result<Action, E>)> = JoinSet::new();
    loop {
        while running.len() < config.concurrency
            && let Some(key) = queue.take_ready()
        {
            let work = reconcile(key.clone());
            running.spawn(async move { (key, work.await) });
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(finished) = running.join_next() => {
                let (key, result) = match finished {
                    Ok(finished) => finished,
                    Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
                    Err(_) => continue,
                };
                queue.finish(name, key, result, config);
            }
            () = queue.next_due() => (),
            key = changes.recv() => queue.add(key, Duration::ZERO),
        }
    }
    while running.join_next().await.is_some() {}
}

/// Keys that wait, are ready, or run.
struct Queue<K> {
    /// Keys that wait for their time.
    waiting: DelayQueue<K>,
    /// Where each waiting key stands in `waiting`, and when it is due.
    slots: HashMap<K, (delay_queue::Key, Instant)>,
    /// Keys whose time has come, oldest first, and the same as a set.
    ready: VecDeque<K>,
    ready_set: HashSet<K>,
    running: HashSet<K>,
    /// Running keys that changed meanwhile.
    dirty: HashSet<K>,
    /// Failures in a row, for keys whose last try failed.
    failures: HashMap<K, u32>,
}

impl<K: Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self {
            waiting: DelayQueue::new(),
            slots: HashMap::new(),
            ready: VecDeque::new(),
            ready_set: HashSet::new(),
            running: HashSet::new(),
            dirty: HashSet::new(),
            failures: HashMap::new(),
        }
    }
}

impl<K: Clone + Debug + Eq + Hash> Queue<K> {
    fn add(&mut self, key: K, delay: Duration) {
        if self.running.contains(&key) {
            self.dirty.insert(key);
            return;
        }
        if self.ready_set.contains(&key) {
            return;
        }
        if delay.is_zero() {
            // Not through the timer, which rounds up to the next millisecond.
            if let Some((slot, _)) = self.slots.remove(&key) {
                self.waiting.remove(&slot);
            }
            self.make_ready(key);
            return;
        }
        let due = Instant::now() + delay;
        match self.slots.get_mut(&key) {
            Some((_, old_due)) if *old_due <= due => (),
            Some((slot, old_due)) => {
                self.waiting.reset_at(slot, due);
                *old_due = due;
            }
            None => {
                let slot = self.waiting.insert_at(key.clone(), due);
                self.slots.insert(key, (slot, due));
            }
        }
    }

    fn make_ready(&mut self, key: K) {
        self.ready_set.insert(key.clone());
        self.ready.push_back(key);
    }

    /// Moves one key from waiting to ready, once its time comes. Never ends while
    /// nothing waits.
    async fn next_due(&mut self) {
        match std::future::poll_fn(|cx| self.waiting.poll_expired(cx)).await {
            Some(expired) => {
                let key = expired.into_inner();
                self.slots.remove(&key);
                self.make_ready(key);
            }
            None => std::future::pending().await,
        }
    }

    fn take_ready(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.ready_set.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn finish<E: fmt::Display>(
        &mut self,
        name: &'static str,
        key: K,
        result: Result<Action, E>,
        config: Config,
    ) {
        self.running.remove(&key);
        let delay = match result {
            Ok(action) => {
                self.failures.remove(&key);
                match action {
                    Action::AwaitChange => None,
                    Action::RequeueAfter(delay) => Some(delay),
                }
            }
            Err(err) => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                let delay = backoff(*failures, config);
                *failures = failures.saturating_add(1);
                // The first tries mostly meet another writer, which is no news.
                if *failures > 3 {
                    warn!(controller = name, ?key, %err, ?delay, failures, "reconcile failed");
                } else {
                    debug!(controller = name, ?key, %err, ?delay, failures, "reconcile failed");
                }
                Some(delay)
            }
        };
        if self.dirty.remove(&key) {
            self.add(key, Duration::ZERO);
        } else if let Some(delay) = delay {
            self.add(key, delay);
        }
    }
}

/// Delay before the try that follows `failures + 1` failures in a row.
fn backoff(failures: u32, config: Config) -> Duration {
    config.backoff_min.saturating_mul(2_u32.saturating_pow(failures)).min(config.backoff_max)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use expect_test::{Expect, expect};

    use super::*;

    const CONFIG: Config = Config {
        concurrency: 2,
        backoff_min: Duration::from_secs(1),
        backoff_max: Duration::from_secs(8),
    };

    /// Sends `changes` (seconds, key), runs for `run_secs` of paused time, and
    /// compares the log of reconciles.
    async fn check(
        changes: &[(u64, &'static str)],
        run_secs: u64,
        outcome: fn(&'static str, usize) -> Result<Action, &'static str>,
        work: Duration,
        expected: Expect,
    ) {
        let (tx, rx) = queue();
        let shutdown = CancellationToken::new();
        let log = Arc::new(Mutex::new(String::new()));
        let tries = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();

        let reconcile = {
            let log = Arc::clone(&log);
            move |key: &'static str| {
                let (log, tries) = (Arc::clone(&log), Arc::clone(&tries));
                async move {
                    let at = start.elapsed().as_secs();
                    log.lock().unwrap().push_str(&format!("{at}s {key}\n"));
                    tokio::time::sleep(work).await;
                    outcome(key, tries.fetch_add(1, Ordering::Relaxed))
                }
            }
        };
        let controller = tokio::spawn(run("test", CONFIG, rx, shutdown.clone(), reconcile));
        for (at, key) in changes {
            tokio::time::sleep_until(start + Duration::from_secs(*at)).await;
            tx.add(*key);
        }
        tokio::time::sleep_until(start + Duration::from_secs(run_secs)).await;
        shutdown.cancel();
        controller.await.unwrap();
        expected.assert_eq(&log.lock().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn failing_key_backs_off_to_the_limit() {
        check(
            &[(0, "a")],
            40,
            |_, _| Err("no"),
            Duration::ZERO,
            expect![[r#"
                0s a
                1s a
                3s a
                7s a
                15s a
                23s a
                31s a
                39s a
            "#]],
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_success_resets_the_back_off() {
        check(
            &[(0, "a")],
            12,
            |_, tries| {
                if tries == 2 {
                    Ok(Action::RequeueAfter(Duration::from_secs(5)))
                } else {
                    Err("no")
                }
            },
            Duration::ZERO,
            expect![[r#"
                0s a
                1s a
                3s a
                8s a
                9s a
                11s a
            "#]],
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn change_while_running_runs_again_once() {
        check(
            &[(0, "a"), (1, "a"), (2, "a")],
            20,
            |_, _| Ok(Action::AwaitChange),
            Duration::from_secs(5),
            expect![[r#"
                0s a
                5s a
            "#]],
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_brings_a_waiting_key_forward() {
        check(
            &[(0, "a"), (4, "a")],
            20,
            |_, tries| {
                Ok(if tries == 0 {
                    Action::RequeueAfter(Duration::from_secs(10))
                } else {
                    Action::AwaitChange
                })
            },
            Duration::ZERO,
            expect![[r#"
                0s a
                4s a
            "#]],
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn concurrency_is_bounded() {
        check(
            &[(0, "a"), (0, "b"), (0, "c")],
            20,
            |_, _| Ok(Action::AwaitChange),
            Duration::from_secs(5),
            expect![[r#"
                0s a
                0s b
                5s c
            "#]],
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn requeue_runs_without_a_change() {
        check(
            &[(0, "a")],
            25,
            |_, _| Ok(Action::RequeueAfter(Duration::from_secs(10))),
            Duration::ZERO,
            expect![[r#"
                0s a
                10s a
                20s a
            "#]],
        )
        .await;
    }
}
