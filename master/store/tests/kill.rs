//! SIGKILL at random moments: no acknowledged write is lost, none is half
//! applied, and the history has no hole.
//!
//! The writer is this test program, started again with [`DIR`] set; it prints
//! each revision that was acknowledged.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pinnace_store::{
    Config, EventKind, Expect, ListOptions, LmdbStore, Retention, Store, StoreError, Write,
};

const DIR: &str = "STORE_KILL_DIR";
const CLASSES: &str = "STORE_KILL_CLASSES";
const ROUNDS: u64 = 60;

fn config(classes: bool) -> Config {
    let prefix = |prefix: &str| if classes { vec![prefix.to_owned()] } else { vec![] };
    // Compaction, growth and short reads happen all the time.
    let retention =
        Retention { changes_max: 3_000, age_min: Duration::ZERO, ..Retention::default() };
    Config {
        volatile_prefixes: prefix("/events/"),
        memory_prefixes: prefix("/leases/"),
        volatile_objects_max: 50,
        retention,
        map_bytes_initial: 256 << 10,
        read_bytes_max: 10_000,
        ..Config::default()
    }
}

/// A generator that needs no crate; the seed of each round is its number.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[test]
#[ignore = "the program that is killed by the others"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let classes = std::env::var_os(CLASSES).is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(LmdbStore::open(dir, config(classes)).unwrap());
        let tasks: Vec<_> =
            (0..8).map(|task| tokio::spawn(write_forever(store.clone(), task, classes))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

async fn write_forever(store: Arc<LmdbStore>, task: u64, classes: bool) {
    let mut random = Random(store.revision().wrapping_mul(0x9e37_79b9) + task + 1);
    loop {
        let prefix = match random.below(4) {
            0 if classes => "/events",
            1 if classes => "/leases",
            _ => "/pods",
        };
        // All keys of a transaction say how many it has.
        let n_keys = 1 + random.below(4);
        let first = random.below(200);
        let writes = (first..first + n_keys).map(|n| {
            let bytes = random.below(3_000) as usize;
            Write::put_with(format!("{prefix}/{task}/{n:03}"), Expect::Any, move |revision| {
                let mut value = format!("{revision} {n_keys} ").into_bytes();
                value.resize(value.len() + bytes, b'.');
                value.into()
            })
        });
        let revision = store.write(writes.collect()).await.unwrap();
        if random.below(10) == 0 {
            let key = format!("{prefix}/{task}/{first:03}");
            store.write(vec![Write::delete(key, Expect::Any)]).await.unwrap();
        }
        // One system call, so that a line is whole or not there.
        std::io::stdout()
            .lock()
            .write_all(format!("acknowledged {revision}\n").as_bytes())
            .unwrap();
    }
}

/// Starts the child, kills it after a while, and returns the highest revision
/// that it saw acknowledged.
fn run_and_kill(dir: &Path, classes: bool, round: u64) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env(DIR, dir);
    if classes {
        command.env(CLASSES, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut random = Random(round + 1);
    // Some die while they open the store, some in the first commits, some later.
    let n_lines = match round % 4 {
        0 => random.below(3),
        _ => random.below(300),
    };
    let mut acknowledged = 0;
    let note = |line: std::io::Result<String>, acknowledged: &mut u64| {
        // The harness prints lines of its own.
        let line = line.unwrap();
        if let Some((_, revision)) = line.split_once("acknowledged ") {
            *acknowledged = revision.parse::<u64>().unwrap().max(*acknowledged);
        }
    };
    for line in lines.by_ref().take(n_lines as usize) {
        note(line, &mut acknowledged);
    }
    for _ in 0..random.below(200_000) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    // What it printed before it died counts too.
    for line in lines {
        note(line, &mut acknowledged);
    }
    let status = child.wait().unwrap();
    assert!(status.code().is_none(), "it ended before it was killed: {status}");
    acknowledged
}

#[test]
fn no_acknowledged_write_is_lost_and_none_is_half_applied() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut last, mut n_checked) = (0, 0);
    for round in 0..ROUNDS {
        let acknowledged = run_and_kill(dir.path(), false, round);
        let store = LmdbStore::open(dir.path(), config(false)).unwrap();
        assert!(store.revision() >= acknowledged, "round {round}: lost {acknowledged}");
        assert!(store.revision() >= last, "round {round}");
        last = store.revision();
        n_checked += runtime.block_on(check_history(&store));
    }
    assert!(n_checked > 1_000, "{n_checked} transactions were checked");
}

/// Replays what the store knows of its history from the oldest state it can
/// show; returns how many transactions that were.
async fn check_history(store: &LmdbStore) -> u64 {
    let compacted = store.compacted();
    let at = |at_revision| {
        let options = ListOptions { at_revision, ..ListOptions::default() };
        let items = store.list("", &options).unwrap().items;
        items.into_iter().map(|item| (item.key, (item.revision, item.value))).collect()
    };
    let mut objects: BTreeMap<_, _> = at(Some(compacted));
    let mut watcher = store.watch("", compacted).unwrap();
    let mut next = watcher.try_next().unwrap();
    for revision in compacted + 1..=store.revision() {
        let (mut n_events, mut n_said) = (0, 1);
        while let Some(event) = next.take_if(|event| event.revision == revision) {
            let previous = event.previous.clone().map(|p| (p.revision, p.value));
            let before = match event.kind {
                EventKind::Put => {
                    let value = std::str::from_utf8(&event.value).unwrap();
                    let mut words = value.split(' ');
                    assert_eq!(words.next().unwrap().parse(), Ok(revision));
                    n_said = words.next().unwrap().parse().unwrap();
                    objects.insert(event.key.clone(), (revision, event.value.clone()))
                }
                EventKind::Delete => objects.remove(&event.key),
            };
            assert_eq!(before, previous, "{event:?}");
            n_events += 1;
            next = watcher.try_next().unwrap();
        }
        assert_eq!(n_events, n_said, "keys changed at {revision}");
    }
    assert_eq!(next, None);
    assert!(objects == at(None), "the objects are not what the history made");
    store.revision() - compacted
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
