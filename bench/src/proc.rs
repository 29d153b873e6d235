//! Reads `/proc`: who runs, and how much memory it has.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Private pages, and its share of the shared ones.
    pub(crate) pss: u64,
    /// Pages that nobody else has.
    pub(crate) private: u64,
}

/// What the kernel says of a process's memory.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let private = field("Private_Clean:") + field("Private_Dirty:");
    Ok(Memory { pss: field("Pss:"), private })
}

/// Processor time that a process has used so far, in user and system mode.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let text = read(format!("/proc/{pid}/stat"));
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks =
        |at: usize| -> u64 { fields.get(at).and_then(|field| field.parse().ok()).unwrap_or(0) };
    // Linux shows programs 100 ticks a second, whatever it counts itself.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// How often the threads of a process went to sleep of themselves, which is how
/// often they were woken.
pub(crate) fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| {
            let text = read(task.path().join("status"));
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
        })
        .sum()
}

/// Bytes that a process has caused to be written to a disk.
pub(crate) fn disk_bytes(pid: u32) -> u64 {
    let text = read(format!("/proc/{pid}/io"));
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Every process but this one whose command line or cgroup holds one of `needles`.
pub(crate) fn find(needles: &[String]) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id() && is_alive(*pid))
        .filter(|pid| {
            let command = read(format!("/proc/{pid}/cmdline"));
            let cgroup = read(format!("/proc/{pid}/cgroup"));
            needles.iter().any(|one| command.contains(one) || cgroup.contains(one))
        })
        .collect()
}

/// Whether it exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    read(format!("/proc/{pid}/stat"))
        .rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// A file as text, whatever is in it; empty if it cannot be read.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
