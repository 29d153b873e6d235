//! What follows from how much is left: which conditions hold, and which pod goes.
//! Pure: samples and the time go in, decisions come out.
//!
//! ```text
//! below a threshold ─► condition, at once        ─► one pod is evicted, then a wait
//! above it again    ─► condition goes after the transition period
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use wire::Uid;

use super::threshold::{Pressure, Signal, Thresholds};
use crate::pods::Eviction;

/// Longest wait for an evicted pod to be gone before the next is, as the kubelet's.
const CLEAN_UP_MAX: Duration = Duration::from_secs(30);
/// Time between the stop signal and SIGKILL, in seconds: the node cannot wait.
const GRACE_S: u32 = 1;
/// Pods of this priority and above are the system's, and never evicted.
const CRITICAL: i32 = 2_000_000_000;

/// How the node deals with what runs short.
#[derive(Clone, Debug)]
pub struct Config {
    /// Below what pods are evicted.
    pub thresholds: Thresholds,
    /// How long a condition stays after its cause is gone.
    pub transition: Duration,
}

impl Default for Config {
    /// The kubelet's.
    fn default() -> Self {
        Self { thresholds: Thresholds::default(), transition: Duration::from_secs(300) }
    }
}

/// How much of something is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// What is left.
    pub available: u64,
    /// What there is in all.
    pub capacity: u64,
}

/// How much is left of everything that can be seen.
pub type Levels = BTreeMap<Signal, Level>;

/// A signal below its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// Which.
    pub signal: Signal,
    /// What is left.
    pub available: u64,
    /// What should be.
    pub least: u64,
}

/// What is remembered between two samples.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// When each signal was last below its threshold, and by how much.
    last_short: BTreeMap<Signal, (Duration, Short)>,
    /// The pod that was evicted last, until it is gone.
    going: Option<(Uid, Duration)>,
}

/// What a sample says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Conditions that hold, with their messages.
    pub conditions: Vec<(Pressure, String)>,
    /// What a pod has to go for now.
    pub short: Option<Short>,
    /// Whether something is so close to its threshold that the next look should be soon.
    pub is_close: bool,
}

/// Judges one sample.
pub fn judge(config: &Config, memory: &mut Memory, levels: &Levels, now: Duration) -> Verdict {
    let mut verdict = Verdict::default();
    for (signal, least) in config.thresholds.iter() {
        let Some(level) = levels.get(&signal) else { continue };
        let least = least.of(level.capacity);
        verdict.is_close |= level.available < least.saturating_mul(2);
        if level.available < least {
            let short = Short { signal, available: level.available, least };
            memory.last_short.insert(signal, (now, short));
            if memory.going.is_none() {
                verdict.short = verdict.short.or(Some(short));
            }
        }
    }
    memory.last_short.retain(|_, (at, _)| now.saturating_sub(*at) <= config.transition);
    for (signal, (_, short)) in &memory.last_short {
        let pressure = signal.pressure();
        if verdict.conditions.iter().any(|(other, _)| *other == pressure) {
            continue;
        }
        // Without the amount, which changes: each change would be a message to the master.
        let message = format!(
            "{} is or was below its threshold of {}; it counts as enough {} s after it is above",
            signal.name(),
            signal.show(short.least),
            config.transition.as_secs()
        );
        verdict.conditions.push((pressure, message));
    }
    verdict
}

impl Memory {
    /// A pod has been told to go.
    pub fn evicted(&mut self, uid: Uid, now: Duration) {
        self.going = Some((uid, now));
    }

    /// Looks whether the pod that was told to go is gone.
    pub fn settle(&mut self, is_gone: impl Fn(&Uid) -> bool, now: Duration) {
        self.going = self
            .going
            .filter(|(uid, since)| !is_gone(uid) && now.saturating_sub(*since) < CLEAN_UP_MAX);
    }

    /// The pod that was told to go and is not known to be gone.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.going.is_some()
    }
}

/// What one container uses of what is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// What it uses.
    pub used: u64,
    /// What it asked for.
    pub requested: u64,
}

/// What one pod uses of what is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// The pod.
    pub uid: Uid,
    /// Its priority.
    pub priority: i32,
    /// What it uses in all, volumes included.
    pub used: u64,
    /// Its containers.
    pub containers: Vec<ContainerUse>,
}

impl PodUse {
    fn requested(&self) -> u64 {
        self.containers.iter().map(|container| container.requested).sum()
    }
}

/// The pod to evict, ranked as the kubelet does: those that use more than they
/// asked for first, then by priority, then by how much more. `None` where no pod
/// may go, or none uses any of it.
#[must_use]
pub fn choose(short: &Short, pods: &[PodUse]) -> Option<(Uid, Eviction)> {
    // Nobody asks for process ids or inodes.
    let counts_requests = !matches!(short.signal.resource(), "pids" | "inodes");
    let excess = |pod: &PodUse| {
        if counts_requests { pod.used.saturating_sub(pod.requested()) } else { pod.used }
    };
    let exceeds = |pod: &PodUse| !counts_requests || pod.used > pod.requested();
    let worst = pods
        .iter()
        .filter(|pod| pod.priority < CRITICAL && pod.used > 0)
        // The uid last, so that the choice does not depend on the order given.
        .max_by_key(|pod| (exceeds(pod), std::cmp::Reverse(pod.priority), excess(pod), pod.uid))?;
    Some((worst.uid, eviction(short, worst, counts_requests)))
}

fn eviction(short: &Short, pod: &PodUse, counts_requests: bool) -> Eviction {
    let signal = short.signal;
    let mut message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        signal.resource(),
        signal.show(short.least),
        signal.show(short.available)
    );
    let over = pod.containers.iter().filter(|c| counts_requests && c.used > c.requested);
    for container in over {
        message.push_str(&format!(
            "Container {} was using {}, request is {}, has larger consumption of {}. ",
            container.name,
            signal.show(container.used),
            match container.requested {
                0 => "0".to_owned(),
                requested => signal.show(requested),
            },
            signal.resource()
        ));
    }
    Eviction { reason: "Evicted".to_owned(), message, grace_max_s: GRACE_S }
}

/// What a pod writes to the disk, against what it may. A limit of 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalUse {
    /// The pod.
    pub uid: Uid,
    /// Its emptyDir volumes on disk: name, bytes, limit.
    pub volumes: Vec<(String, u64, u64)>,
    /// Its containers, what each writes to its root and its logs: name, bytes, limit.
    pub containers: Vec<(String, u64, u64)>,
}

/// Why a pod that writes more than it may is evicted; `None` if it does not.
#[must_use]
pub fn over_limit(pod: &LocalUse) -> Option<Eviction> {
    let bytes = |bytes: u64| Signal::NodefsAvailable.show(bytes);
    let volume = pod.volumes.iter().find(|(_, used, limit)| *limit > 0 && used > limit);
    let used: u64 = pod.volumes.iter().chain(&pod.containers).map(|(_, used, _)| used).sum();
    let limit: u64 = pod.containers.iter().map(|(_, _, limit)| limit).sum();
    let container = pod.containers.iter().find(|(_, used, limit)| *limit > 0 && used > limit);
    let is_limited = !pod.containers.is_empty() && pod.containers.iter().all(|c| c.2 > 0);
    let message = if let Some((name, _, limit)) = volume {
        format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ", bytes(*limit))
    } else if is_limited && used > limit {
        let limit = bytes(limit);
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    } else if let Some((name, _, limit)) = container {
        format!(
            "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
            bytes(*limit)
        )
    } else {
        return None;
    };
    Some(Eviction { reason: "Evicted".to_owned(), message, grace_max_s: GRACE_S })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(available_mib: u64) -> Levels {
        let level = Level { available: available_mib * MIB, capacity: 512 * MIB };
        Levels::from([(Signal::MemoryAvailable, level)])
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held(verdict: &Verdict) -> Vec<&'static str> {
        verdict.conditions.iter().map(|(pressure, _)| pressure.condition()).collect()
    }

    #[test]
    fn a_condition_comes_at_once_and_goes_after_its_time() {
        let (config, mut known) = (Config::default(), Memory::default());
        let mut look = |mib, seconds| judge(&config, &mut known, &memory(mib), at(seconds));
        assert_eq!(look(400, 0), Verdict::default());
        assert!(look(150, 10).is_close);
        let short = look(99, 20);
        assert_eq!(held(&short), ["MemoryPressure"]);
        assert_eq!(short.short.unwrap().available, 99 * MIB);
        // Above again: nobody else goes, but the condition stays.
        let after = look(300, 30);
        assert_eq!((held(&after), after.short), (vec!["MemoryPressure"], None));
        assert_eq!(held(&look(300, 320)), ["MemoryPressure"]);
        assert_eq!(held(&look(300, 321)), Vec::<&str>::new());
        // Flapping holds it, with the very same words.
        let first = look(99, 400);
        let later = look(98, 600);
        assert_eq!(first.conditions, later.conditions);
        assert_eq!(held(&look(300, 800)), ["MemoryPressure"]);
    }

    #[test]
    fn memory_comes_first_and_disk_is_one_condition() {
        let (config, mut known) = (Config::default(), Memory::default());
        let mut levels = memory(50);
        for signal in [Signal::NodefsAvailable, Signal::ImagefsAvailable] {
            levels.insert(signal, Level { available: 1, capacity: 100 });
        }
        let verdict = judge(&config, &mut known, &levels, at(0));
        assert_eq!(held(&verdict), ["MemoryPressure", "DiskPressure"]);
        assert_eq!(verdict.short.unwrap().signal, Signal::MemoryAvailable);
        // Unknown is not short.
        assert_eq!(
            judge(&config, &mut Memory::default(), &Levels::new(), at(0)),
            Verdict::default()
        );
    }

    #[test]
    fn one_pod_goes_at_a_time() {
        let (config, mut known) = (Config::default(), Memory::default());
        assert!(judge(&config, &mut known, &memory(50), at(0)).short.is_some());
        known.evicted([1; 16], at(0));
        assert!(judge(&config, &mut known, &memory(50), at(10)).short.is_none());
        known.settle(|_| false, at(20));
        assert!(known.is_waiting());
        known.settle(|uid| *uid == [1; 16], at(25));
        assert!(judge(&config, &mut known, &memory(50), at(25)).short.is_some());
        // One that does not go holds the next back for half a minute only.
        known.evicted([2; 16], at(30));
        known.settle(|_| false, at(61));
        assert!(judge(&config, &mut known, &memory(50), at(61)).short.is_some());
    }

    fn pod(id: u8, priority: i32, used: u64, requested: u64) -> PodUse {
        let containers = vec![ContainerUse { name: "main".into(), used, requested }];
        PodUse { uid: [id; 16], priority, used, containers }
    }

    fn first(signal: Signal, pods: &[PodUse]) -> Option<u8> {
        let short = Short { signal, available: 1, least: 2 };
        choose(&short, pods).map(|(uid, _)| uid[0])
    }

    #[test]
    fn pods_are_ranked_as_the_kubelet_ranks_them() {
        use Signal::{MemoryAvailable as M, PidAvailable as P};
        // Over its request before any priority.
        assert_eq!(first(M, &[pod(1, 0, 90, 100), pod(2, 1000, 110, 100)]), Some(2));
        // Then priority.
        assert_eq!(first(M, &[pod(1, 5, 500, 0), pod(2, 4, 10, 0)]), Some(2));
        // Then by how much: a guaranteed pod that stays within its own comes last.
        assert_eq!(first(M, &[pod(1, 0, 300, 250), pod(2, 0, 100, 0)]), Some(2));
        assert_eq!(first(M, &[pod(1, 0, 100, 200), pod(2, 0, 150, 200)]), Some(2));
        // Never the system's own, and nobody who uses none of it.
        assert_eq!(first(M, &[pod(1, CRITICAL, 500, 0), pod(2, 0, 0, 0)]), None);
        assert_eq!(first(M, &[]), None);
        // Nobody asks for process ids.
        assert_eq!(first(P, &[pod(1, 0, 10, 0), pod(2, 0, 20, 100)]), Some(2));
        // The order given does not matter.
        let pair = [pod(1, 0, 10, 0), pod(2, 0, 10, 0)];
        let turned = [pair[1].clone(), pair[0].clone()];
        assert_eq!(first(M, &pair), first(M, &turned));
    }

    #[test]
    fn the_message_is_the_kubelets() {
        let short =
            Short { signal: Signal::MemoryAvailable, available: 50 * MIB, least: 100 * MIB };
        let (_, eviction) = choose(&short, &[pod(1, 0, 300 * MIB, 0)]).unwrap();
        assert_eq!(
            (eviction.reason.as_str(), eviction.message.as_str()),
            (
                "Evicted",
                "The node was low on resource: memory. Threshold quantity: 102400Ki, available: \
                 51200Ki. Container main was using 307200Ki, request is 0, has larger consumption \
                 of memory. "
            )
        );
    }

    #[test]
    fn limits_on_local_storage_are_the_volumes_the_containers_and_their_sum() {
        let check = |volumes: &[(u64, u64)], containers: &[(u64, u64)]| -> Option<String> {
            let name = |all: &[(u64, u64)]| {
                all.iter()
                    .enumerate()
                    .map(|(n, (used, limit))| (n.to_string(), *used, *limit))
                    .collect()
            };
            let use_ =
                LocalUse { uid: [1; 16], volumes: name(volumes), containers: name(containers) };
            over_limit(&use_).map(|eviction| eviction.message)
        };
        assert_eq!(check(&[(5000, 0)], &[(5000, 0)]), None);
        assert_eq!(check(&[(1024, 1024)], &[]), None);
        assert!(check(&[(1025, 1024)], &[]).unwrap().contains("EmptyDir volume \"0\""));
        assert!(check(&[], &[(1, 0), (2049, 2048)]).unwrap().contains("Container 1 exceeded"));
        // Volumes count against the sum, where every container has a limit.
        assert!(check(&[(900, 0)], &[(100, 500), (100, 500)]).unwrap().contains("total limit"));
        assert_eq!(check(&[(900, 0)], &[(100, 500), (100, 0)]), None);
    }
}
