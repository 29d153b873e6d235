//! A program that writes until something stops it, and the proof that what it
//! left is whole. Used by the tests that kill it and those that cut its power.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pinnace_store::{Config, EventKind, Expect, ListOptions, LmdbStore, Retention, Store, Write};

const DIR: &str = "STORE_TEST_DIR";
const CLASSES: &str = "STORE_TEST_CLASSES";

pub(crate) fn config(classes: bool) -> Config {
    let prefix = |prefix: &str| if classes { vec![prefix.to_owned()] } else { vec![] };
    // Compaction, growth and short reads happen all the time.
    let retention =
        Retention { changes_max: 1_000, age_min: Duration::ZERO, ..Retention::default() };
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

/// A generator that needs no crate.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Starts this test program again, as the one that writes to `dir`.
pub(crate) fn start_child(dir: &Path, classes: bool) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env(DIR, dir);
    if classes {
        command.env(CLASSES, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// The next acknowledged revision that the child printed; 0 for lines that the
/// test harness printed, `None` at the end.
pub(crate) fn next_acknowledged(lines: &mut impl BufRead) -> Option<u64> {
    let mut line = String::new();
    if lines.read_line(&mut line).unwrap() == 0 {
        return None;
    }
    let revision = line.split_once("acknowledged ").map_or("0", |(_, revision)| revision);
    Some(revision.trim().parse().unwrap())
}

/// What the child does: writes, and prints each revision that was acknowledged.
pub(crate) fn run_child() {
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

/// Replays what the store knows of its history from the oldest state it can
/// show; returns how many transactions that were.
pub(crate) fn check_history(store: &LmdbStore) -> u64 {
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
