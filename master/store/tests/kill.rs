//! SIGKILL at random moments: no acknowledged write is lost, none is half
//! applied, and the history has no hole.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::path::Path;

use common::{Random, check_history, config, next_acknowledged, start_child};
use pinnace_store::{Expect, ListOptions, LmdbStore, Store, StoreError, Write};

const ROUNDS: u64 = 60;

#[test]
#[ignore = "the program that is killed by the others"]
fn child() {
    common::run_child();
}

/// Starts the child, kills it after a while, and returns the highest revision
/// that it saw acknowledged.
fn run_and_kill(dir: &Path, classes: bool, round: u64) -> u64 {
    let (mut child, mut lines) = start_child(dir, classes);
    let mut random = Random(round + 1);
    // Some die while they open the store, some in the first commits, some later.
    let n_lines = match round % 4 {
        0 => random.below(3),
        _ => random.below(300),
    };
    let mut acknowledged = 0;
    for _ in 0..n_lines {
        acknowledged = next_acknowledged(&mut lines).unwrap_or(0).max(acknowledged);
    }
    for _ in 0..random.below(200_000) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    // What it printed before it died counts too.
    while let Some(revision) = next_acknowledged(&mut lines) {
        acknowledged = revision.max(acknowledged);
    }
    let status = child.wait().unwrap();
    assert!(status.code().is_none(), "it ended before it was killed: {status}");
    acknowledged
}

#[test]
fn no_acknowledged_write_is_lost_and_none_is_half_applied() {
    let dir = tempfile::tempdir().unwrap();
    let (mut last, mut n_checked) = (0, 0);
    for round in 0..ROUNDS {
        let acknowledged = run_and_kill(dir.path(), false, round);
        let store = LmdbStore::open(dir.path(), config(false)).unwrap();
        assert!(store.revision() >= acknowledged, "round {round}: lost {acknowledged}");
        assert!(store.revision() >= last, "round {round}");
        last = store.revision();
        n_checked += check_history(&store);
    }
    assert!(n_checked > 1_000, "{n_checked} transactions were checked");
}

#[test]
fn no_revision_is_given_twice_whatever_class_it_was_for() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..ROUNDS / 3 {
        let acknowledged = run_and_kill(dir.path(), true, round);
        let store = LmdbStore::open(dir.path(), config(true)).unwrap();
        assert!(store.revision() >= acknowledged, "round {round}: {acknowledged} was shown");
        // The process died, not the machine: volatile objects are still there.
        let events = store.list("/events/", &ListOptions::default()).unwrap();
        assert!(events.items.len() <= 60);
        for item in events.items {
            let value = std::str::from_utf8(&item.value).unwrap();
            assert_eq!(value.split(' ').next().unwrap().parse(), Ok(item.revision));
        }
        assert!(
            matches!(store.watch("/events/", 0), Err(StoreError::Expired { .. }))
                || acknowledged == 0
        );
        let revision = runtime
            .block_on(store.write(vec![Write::put("/leases/x", Expect::Any, "1 1 ")]))
            .unwrap();
        assert!(revision > acknowledged);
    }
}
