//! Random work on a store on disk and on the plain model of it: nobody can tell
//! them apart, not by reading, listing the past, watching, compacting, nor by
//! closing and opening again.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use pinnace_store::{
    Config, Expect, ListOptions, LmdbStore, MemoryStore, Revision, Store, StoreError, Watcher,
    Write,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>),
    /// Several transactions at once, so that they share a commit.
    Batch(Vec<Vec<Change>>),
    List {
        prefix: &'static str,
        back: u64,
        limit: usize,
    },
    Watch {
        prefix: &'static str,
        back: u64,
    },
    Poll {
        n: usize,
    },
    Compact {
        back: u64,
    },
    Reopen,
}

#[derive(Clone, Debug)]
struct Change {
    key: String,
    delete: bool,
    expect: ExpectKind,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum ExpectKind {
    Any,
    Absent,
    Current,
    Stale,
}

const PREFIXES: [&str; 4] = ["", "/a/", "/b/1", "/none"];

fn change() -> impl Strategy<Value = Change> {
    let expect = prop_oneof![
        4 => Just(ExpectKind::Any),
        1 => Just(ExpectKind::Absent),
        3 => Just(ExpectKind::Current),
        1 => Just(ExpectKind::Stale),
    ];
    // Some values take overflow pages.
    let bytes = prop_oneof![8 => 0..60_usize, 1 => 4_000..9_000_usize];
    ("/[ab]/[0-9]", prop::bool::weighted(0.25), expect, bytes)
        .prop_map(|(key, delete, expect, bytes)| Change { key, delete, expect, bytes })
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 1..4).prop_map(|mut changes| {
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        changes.dedup_by(|a, b| a.key == b.key);
        changes
    })
}

fn step() -> impl Strategy<Value = Step> {
    let prefix = || prop::sample::select(&PREFIXES[..]);
    prop_oneof![
        12 => changes().prop_map(Step::Write),
        3 => proptest::collection::vec(changes(), 2..6).prop_map(Step::Batch),
        5 => (prefix(), 0..12_u64, 1..8_usize)
            .prop_map(|(prefix, back, limit)| Step::List { prefix, back, limit }),
        2 => (prefix(), 0..12_u64).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        3 => (1..9_usize).prop_map(|n| Step::Poll { n }),
        1 => (0..10_u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

/// A request for the store as it is now.
fn writes(store: &dyn Store, changes: &[Change]) -> Vec<Write> {
    let one = |change: &Change| {
        let key = change.key.clone();
        let current = store.get(&key).unwrap().map_or(0, |c| c.revision);
        let expect = match change.expect {
            ExpectKind::Any => Expect::Any,
            ExpectKind::Absent => Expect::Absent,
            ExpectKind::Current => Expect::Revision(current),
            ExpectKind::Stale => Expect::Revision(current.saturating_sub(1)),
        };
        if change.delete {
            return Write::delete(key, expect);
        }
        let bytes = change.bytes;
        Write::put_with(key, expect, move |revision| {
            let mut value = revision.to_string().into_bytes();
            value.resize(value.len() + bytes, b'.');
            value.into()
        })
    };
    changes.iter().map(one).collect()
}

/// What can be said of a result for comparison.
fn said<T: std::fmt::Debug>(result: &Result<T, StoreError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => error.to_string(),
    }
}

struct Pair {
    dir: tempfile::TempDir,
    disk: Option<LmdbStore>,
    model: MemoryStore,
    watchers: Option<(Watcher, Watcher)>,
}

impl Pair {
    fn config() -> Config {
        // So small that watches often read the log, and lists take steps.
        Config { ring_bytes_max: 2_000, read_bytes_max: 400, ..Config::default() }
    }

    fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let disk = Some(LmdbStore::open(dir.path(), Pair::config()).unwrap());
        Pair { dir, disk, model: MemoryStore::new(), watchers: None }
    }

    fn disk(&self) -> &LmdbStore {
        self.disk.as_ref().unwrap()
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Write(changes) => self.batch(&[changes]).await,
            Step::Batch(batch) => self.batch(&batch).await,
            Step::List { prefix, back, limit } => self.list(prefix, back, limit),
            Step::Watch { prefix, back } => self.watch(prefix, back),
            Step::Poll { n } => self.poll(n),
            Step::Compact { back } => {
                let before = self.model.revision().saturating_sub(back);
                let disk = self.disk().compact(before).await;
                assert_eq!(said(&disk), said(&self.model.compact(before).await));
                assert_eq!(self.disk().compacted(), self.model.compacted());
            }
            Step::Reopen => {
                let resume = self.watchers.take().map(|(disk, _)| disk);
                let resume = resume.map(|w| (w.prefix().to_owned(), w.progress()));
                drop(self.disk.take());
                self.disk = Some(LmdbStore::open(self.dir.path(), Pair::config()).unwrap());
                if let Some((prefix, from)) = resume {
                    self.watch_from(&prefix, from);
                }
            }
        }
        assert_eq!(self.disk().revision(), self.model.revision());
    }

    async fn batch(&self, batch: &[Vec<Change>]) {
        // Made before any of them happens: some expectations break on the way.
        let requests = |store: &dyn Store| -> Vec<_> {
            batch.iter().map(|changes| writes(store, changes)).collect()
        };
        let mut expected = Vec::new();
        for request in requests(&self.model) {
            expected.push(said(&self.model.write(request).await));
        }
        // All are queued before the first is answered.
        let pending: Vec<_> = requests(self.disk())
            .into_iter()
            .map(|request| tokio::spawn(self.disk().write(request)))
            .collect();
        for (one, expected) in pending.into_iter().zip(expected) {
            assert_eq!(said(&one.await.unwrap()), expected);
        }
        for change in batch.iter().flatten() {
            assert_eq!(self.disk().get(&change.key).unwrap(), self.model.get(&change.key).unwrap());
        }
    }

    fn list(&self, prefix: &str, back: u64, limit: usize) {
        let at_revision = Some(self.model.revision().saturating_sub(back));
        let mut options = ListOptions { at_revision, limit: Some(limit), start_after: None };
        loop {
            let model = self.model.list(prefix, &options);
            assert_eq!(said(&self.disk().list(prefix, &options)), said(&model));
            let Ok(page) = model else { break };
            assert_eq!(self.disk().list(prefix, &options).unwrap(), page, "with values");
            if !page.more {
                break;
            }
            options.start_after = page.items.last().map(|item| item.key.clone());
        }
        let newest = ListOptions { start_after: options.start_after, ..ListOptions::default() };
        let model = self.model.list(prefix, &newest).unwrap();
        assert_eq!(self.disk().list(prefix, &newest).unwrap(), model);
    }

    fn watch(&mut self, prefix: &str, back: u64) {
        self.watch_from(prefix, self.model.revision().saturating_sub(back));
    }

    fn watch_from(&mut self, prefix: &str, from: Revision) {
        let (disk, model) = (self.disk().watch(prefix, from), self.model.watch(prefix, from));
        let error = |watch: &Result<Watcher, _>| watch.as_ref().err().map(StoreError::to_string);
        assert_eq!(error(&disk), error(&model));
        if let (Ok(disk), Ok(model)) = (disk, model) {
            self.watchers = Some((disk, model));
        }
    }

    fn poll(&mut self, n: usize) {
        let Some((disk, model)) = &mut self.watchers else { return };
        for _ in 0..n {
            // The model delivers what is compacted if it fetched it before, as
            // the store may: an expiry may come at another time.
            match disk.try_next() {
                Err(StoreError::Expired { .. }) => {
                    assert!(self.disk.as_ref().unwrap().compacted() > disk.progress());
                    self.watchers = None;
                    return;
                }
                found => match model.try_next() {
                    Err(StoreError::Expired { .. }) => {
                        self.watchers = None;
                        return;
                    }
                    expected => assert_eq!(found.unwrap(), expected.unwrap()),
                },
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        // A failing case is printed, and becomes a test of its own.
        failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn the_store_on_disk_behaves_as_the_model(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new();
            for step in steps {
                pair.run(step).await;
            }
            pair.list("", 0, 3);
        });
    }
}
