//! Little memory, disk or process ids: says so, keeps new pods away, and evicts
//! pods until there is enough, as the kubelet does.
//!
//! ```text
//! every 10, 30 or 60 s, or when the kernel says that memory stalls (PSI)
//!   levels ─► judge ─► conditions ─► the node's findings ─► master: condition, taint
//!                └─► short? ─► measure pods ─► choose ─► Evictor ─► the pod's worker
//! every minute, pods with limits on their disk ─► over_limit ─► Evictor
//! ```
//!
//! [`decide`] is pure, [`sample`] reads. The node is looked at every 10 s while
//! something is within twice its threshold, else seldom: wake-ups are a budget.

pub mod decide;
pub mod sample;
mod stall;
pub mod threshold;

use std::time::Duration;

use runtime::cgroup::Hierarchies;
use tokio::sync::watch;
use wire::Uid;
use wire::status::EventV1;

use self::decide::{Config, Memory, Short, choose, judge, over_limit};
use self::sample::Candidate;
use self::stall::{Stalls, stalled};
use crate::clock::Clock;
use crate::config::Folders;
use crate::pods::Eviction;
use crate::pods::owner::{Board, Evictor};

/// Between two looks while something is close to its threshold, as the kubelet's.
const CLOSE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks otherwise.
const CALM_EVERY: Duration = Duration::from_secs(30);
/// The same where the kernel tells of stalls by itself.
const CALM_EVERY_PSI: Duration = Duration::from_secs(60);
/// Between two measurements of pods with limits on their disk.
const LOCAL_EVERY: Duration = Duration::from_secs(60);

/// The node's conditions that hold, as (condition, message).
pub type Conditions = watch::Receiver<Vec<(String, String)>>;

/// Where the decisions go.
#[derive(Debug)]
pub struct Outlets {
    /// Ends pods.
    pub evictor: Evictor,
    /// Says which pods are gone.
    pub board: Board,
    /// Events about the node.
    pub events: tokio::sync::mpsc::Sender<EventV1>,
    /// Conditions of the node.
    pub conditions: watch::Sender<Vec<(String, String)>>,
}

/// Keeps watch until it is cancelled. Nothing of it has to outlive the agent: what
/// is short will be short again.
pub async fn run(folders: Folders, config: Config, clock: Clock, outlets: Outlets) {
    let mut stalls = Stalls::open();
    let mut memory = Memory::default();
    let mut local_at = Duration::ZERO;
    loop {
        let levels = {
            let folders = folders.clone();
            blocking(move || sample::levels(&folders)).await
        };
        let now = clock.now().mono;
        memory.settle(|uid| is_gone(&outlets.board, uid), now);
        let verdict = judge(&config, &mut memory, &levels, now);
        let conditions: Vec<(String, String)> = verdict
            .conditions
            .iter()
            .map(|(pressure, message)| (pressure.condition().to_owned(), message.clone()))
            .collect();
        outlets.conditions.send_if_modified(|held| {
            let is_new = *held != conditions;
            *held = conditions;
            is_new
        });
        if let Some(short) = verdict.short {
            evict(&folders, &short, &mut memory, &clock, &outlets).await;
        }
        if now >= local_at {
            local_at = now + LOCAL_EVERY;
            enforce_limits(&folders, &outlets).await;
        }
        let calm = if stalls.is_some() { CALM_EVERY_PSI } else { CALM_EVERY };
        let wait = if verdict.is_close || memory.is_waiting() { CLOSE_EVERY } else { calm };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stalled(&mut stalls) => {
                // A storm of stalls is one look a second.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn evict(
    folders: &Folders,
    short: &Short,
    memory: &mut Memory,
    clock: &Clock,
    outlets: &Outlets,
) {
    let (of, signal) = (folders.clone(), short.signal);
    let pods = blocking(move || {
        let hierarchies = Hierarchies::detect().unwrap_or_default();
        let usage = |pod: &Candidate| pod.usage(signal, &of, &hierarchies);
        Candidate::all(&of).iter().map(usage).collect::<Vec<_>>()
    })
    .await;
    let Some((uid, eviction)) = choose(short, &pods) else {
        // Its condition says so to everybody; here it would be a line every 10 s.
        tracing::debug!(signal = short.signal.name(), "too little is left, and no pod can go");
        return;
    };
    let message = format!("Attempting to reclaim {}", short.signal.resource());
    let event = EventV1 {
        uid: [0; 16],
        namespace: String::new(),
        name: String::new(),
        container: String::new(),
        warning: true,
        reason: "EvictionThresholdMet".to_owned(),
        message,
        at_ms: clock.now().wall_ms,
    };
    // Best effort, as all Events.
    let _ = outlets.events.try_send(event);
    send(outlets, uid, eviction).await;
    memory.evicted(uid, clock.now().mono);
}

async fn enforce_limits(folders: &Folders, outlets: &Outlets) {
    let folders = folders.clone();
    let over = blocking(move || {
        let limited = Candidate::all(&folders).into_iter().filter(Candidate::has_local_limit);
        limited
            .filter_map(|pod| {
                let used = pod.local(&folders);
                Some((used.uid, over_limit(&used)?))
            })
            .collect::<Vec<_>>()
    })
    .await;
    for (uid, eviction) in over {
        send(outlets, uid, eviction).await;
    }
}

async fn send(outlets: &Outlets, uid: Uid, eviction: Eviction) {
    let pod = crate::id::uid_text(&uid);
    tracing::warn!(pod, message = eviction.message, "evicting a pod");
    // The owner is gone only when the agent stops.
    let _ = outlets.evictor.send((uid, eviction)).await;
}

fn is_gone(board: &Board, uid: &Uid) -> bool {
    board.borrow().get(uid).is_none_or(|status| status.terminated)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("looking does not panic")
}
