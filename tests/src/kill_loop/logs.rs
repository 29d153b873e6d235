//! What the logs of a node must look like, however often their shims were killed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::process::read_lossy;

/// Every log of a pod that counts (`line 1`, `line 2`, …): a gap, or a line that
/// nobody wrote. Lines may come twice after a shim was killed, as a batch.
pub(super) fn problems(logs: &Path, pods: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    for pod in pods {
        let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
        let folder = logs.join(format!("default_{}_{}", text("name"), text("uid")));
        for file in files(&folder) {
            if let Err(problem) = check(&read_lossy(&file)) {
                problems.push(format!("{}: {problem}", file.display()));
            }
        }
    }
    problems
}

fn check(log: &str) -> Result<(), String> {
    let mut newest = 0_u64;
    for (at, line) in log.lines().enumerate() {
        let mut words = line.splitn(4, ' ');
        let (_, _, tag, text) = (words.next(), words.next(), words.next(), words.next());
        let bad = || format!("line {}: {line:?} after {newest}", at + 1);
        let (Some("F"), Some(text)) = (tag, text) else { return Err(bad()) };
        let Some(number) = text.strip_prefix("line ") else { continue };
        let number: u64 = number.parse().map_err(|_| bad())?;
        if number > newest + 1 {
            return Err(bad());
        }
        newest = newest.max(number);
    }
    Ok(())
}

/// How many runs of a pod's containers have written anything.
pub(super) fn runs_with_output(folder: &Path) -> usize {
    files(folder).iter().filter(|file| !read_lossy(file).is_empty()).count()
}

/// Newest logs of every run of every container of a pod.
fn files(folder: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let containers = below(folder);
    containers.iter().flat_map(|container| below(container)).collect()
}

#[test]
fn gaps_and_spoilt_lines_are_noticed_and_batches_may_come_twice() {
    let log = |numbers: &[u64]| -> String {
        numbers.iter().map(|n| format!("2026-01-01T00:00:00Z stdout F line {n}\n")).collect()
    };
    assert_eq!(check(&log(&[1, 2, 3])), Ok(()));
    assert_eq!(check(&log(&[1, 2, 1, 2, 3])), Ok(()));
    assert!(check(&log(&[1, 3])).is_err());
    assert!(check("2026-01-01T00:00:00Z stdout F line line 1\n").is_err());
}
