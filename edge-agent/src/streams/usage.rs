//! What this node and its containers use, for `kubectl top`: two samples of the
//! kernel's counters, [`WINDOW`] apart, and nothing while nobody asks.
//!
//! [`Sample`] is read from cgroups and /proc; what two of them mean is
//! [`usage`], which reads nothing. No sample is kept.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use runtime::cgroup::Hierarchies;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::Uid;
use wire::status::StateV1;
use wire::usage::{ContainerUseV1, PodUseV1, UsageV1, UseV1};

use super::frames;
use crate::config::Folders;
use crate::pods::owner::Board;
use crate::pressure::sample;

/// Between the two samples. The kernel counts the time of whole processors in
/// hundredths of a second, so this is exact to one percent.
const WINDOW: Duration = Duration::from_secs(1);

/// Measures, and answers.
///
/// # Errors
/// The connection breaks.
pub(super) async fn serve(
    folders: &Folders,
    board: &Board,
    connection: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let running = running(folders, board);
    let (first, running) = take(running).await?;
    tokio::time::sleep(WINDOW).await;
    let (second, _) = take(running).await?;
    let bytes = postcard::to_stdvec(&usage(&first, &second)).map_err(io::Error::other)?;
    frames::answer(connection, &bytes).await
}

/// A container that runs: its pod, its name and the cgroup of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Running {
    pod: Uid,
    container: String,
    cgroup: String,
}

fn running(folders: &Folders, board: &Board) -> Vec<Running> {
    let board = board.borrow();
    let of_pod = |(uid, pod): (&Uid, &wire::status::PodStatusV1)| {
        let group = folders.pod_cgroup(uid);
        pod.all_containers()
            .filter(|status| matches!(status.state, StateV1::Running { .. }))
            .filter_map(|status| {
                let (_, attempt) = status.container_id.rsplit_once('-')?;
                let container = status.name.clone();
                let cgroup = format!("{group}/{container}-{attempt}");
                Some(Running { pod: *uid, container, cgroup })
            })
            .collect::<Vec<_>>()
    };
    board.iter().flat_map(of_pod).collect()
}

/// What the kernel has counted until one moment.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    /// Processor time of all processors together, in nanoseconds.
    cpu_ns: u64,
    memory_bytes: u64,
    containers: BTreeMap<(Uid, String), Counted>,
}

/// Of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    /// A run that has been replaced counts from 0 again.
    cgroup: String,
    cpu_ns: u64,
    memory_bytes: u64,
}

/// Reads a sample, on a thread that may block.
async fn take(running: Vec<Running>) -> io::Result<(Sample, Vec<Running>)> {
    tokio::task::spawn_blocking(move || {
        let hierarchies = Hierarchies::detect()?;
        let mut containers = BTreeMap::new();
        for Running { pod, container, cgroup } in &running {
            // One that has ended meanwhile has no group any more.
            let Some(cpu_ns) = hierarchies.cpu_time(cgroup) else { continue };
            let memory_bytes = sample::memory_used(&hierarchies, cgroup);
            let counted = Counted { cgroup: cgroup.clone(), cpu_ns, memory_bytes };
            containers.insert((*pod, container.clone()), counted);
        }
        let memory = sample::memory(&fs::read_to_string("/proc/meminfo")?);
        let sample = Sample {
            at: Instant::now(),
            cpu_ns: cpu_ns(&fs::read_to_string("/proc/stat")?, tick_ns()).unwrap_or(0),
            memory_bytes: memory.map_or(0, |level| level.capacity.saturating_sub(level.available)),
            containers,
        };
        Ok((sample, running))
    })
    .await
    .map_err(io::Error::other)?
}

/// Nanoseconds of one tick in /proc/stat.
fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// The time all processors have worked: the first line of /proc/stat without
/// `idle` and `iowait`. `guest` is in `user` already.
fn cpu_ns(stat: &str, tick_ns: u64) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let mut ticks = 0_u64;
    for (n, word) in line.split_whitespace().take(8).enumerate() {
        let value: u64 = word.parse().ok()?;
        if !matches!(n, 3 | 4) {
            ticks = ticks.saturating_add(value);
        }
    }
    ticks.checked_mul(tick_ns)
}

/// What was used between two samples. A container that is not in both, in the same
/// run, is left out: there is no rate of it yet.
fn usage(first: &Sample, second: &Sample) -> UsageV1 {
    let window = second.at.saturating_duration_since(first.at);
    let rate = |from: u64, to: u64| {
        let used = u128::from(to.saturating_sub(from)) * 1_000_000_000;
        u64::try_from(used / window.as_nanos().max(1)).unwrap_or(u64::MAX)
    };
    let mut pods: Vec<PodUseV1> = Vec::new();
    for ((uid, name), counted) in &second.containers {
        let before = first.containers.get(&(*uid, name.clone()));
        let Some(before) = before.filter(|before| before.cgroup == counted.cgroup) else {
            continue;
        };
        let usage = UseV1 {
            cpu_nanocores: rate(before.cpu_ns, counted.cpu_ns),
            memory_bytes: counted.memory_bytes,
        };
        let container = ContainerUseV1 { name: name.clone(), usage };
        match pods.last_mut() {
            Some(pod) if pod.uid == *uid => pod.containers.push(container),
            _ => pods.push(PodUseV1 { uid: *uid, containers: vec![container] }),
        }
    }
    let node = UseV1 {
        cpu_nanocores: rate(first.cpu_ns, second.cpu_ns),
        memory_bytes: second.memory_bytes,
    };
    UsageV1 { window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX), node, pods }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, cpu_ns: u64, containers: &[(u8, &str, &str, u64, u64)]) -> Sample {
        let counted = |&(pod, name, cgroup, cpu_ns, memory_bytes): &(u8, &str, &str, u64, u64)| {
            let cgroup = cgroup.to_owned();
            (([pod; 16], name.to_owned()), Counted { cgroup, cpu_ns, memory_bytes })
        };
        let containers = containers.iter().map(counted).collect();
        Sample { at, cpu_ns, memory_bytes: 1 << 30, containers }
    }

    #[test]
    fn a_rate_is_what_was_used_between_two_samples() {
        let at = Instant::now();
        let first = sample(
            at,
            100,
            &[(1, "a", "/a-0", 1000, 1), (1, "b", "/b-0", 0, 1), (2, "c", "/c-0", 9, 1)],
        );
        let second = sample(
            at + Duration::from_millis(500),
            1_000_000_100,
            &[
                (1, "a", "/a-0", 125_001_000, 77),
                (1, "b", "/b-1", 500, 2),
                (2, "c", "/c-0", 3, 3),
                (3, "new", "/new-0", 500, 2),
            ],
        );
        let found = usage(&first, &second);
        assert_eq!(found.window_ms, 500);
        assert_eq!(found.node, UseV1 { cpu_nanocores: 2_000_000_000, memory_bytes: 1 << 30 });
        type Shown<'a> = (u8, Vec<(&'a str, u64, u64)>);
        let shown: Vec<Shown<'_>> = found
            .pods
            .iter()
            .map(|pod| {
                let use_of = |c: &'_ ContainerUseV1| (c.usage.cpu_nanocores, c.usage.memory_bytes);
                let containers = pod.containers.iter();
                let all = containers.map(|c| (c.name.as_str(), use_of(c).0, use_of(c).1)).collect();
                (pod.uid[0], all)
            })
            .collect();
        // The one that was restarted and the new one are not there; a counter that
        // went back is no use.
        assert_eq!(shown, [(1, vec![("a", 250_000_000, 77)]), (2, vec![("c", 0, 3)])]);
        // Two samples at once divide by nothing.
        assert_eq!(usage(&first, &first).node.cpu_nanocores, 0);
    }

    #[test]
    fn the_time_of_all_processors_is_read() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(cpu_ns(stat, 10_000_000), Some(25 * 10_000_000));
        for bad in ["", "cpu0 1 2 3\n", "cpu  1 x 3\n", "cpu  -1\n"] {
            assert_eq!(cpu_ns(bad, 1), None, "{bad:?}");
        }
        let real = cpu_ns(&fs::read_to_string("/proc/stat").unwrap(), tick_ns()).unwrap();
        assert!(real > 0);
    }
}
