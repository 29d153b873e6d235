//! What is particular to the store on disk: classes of keys, bounds, locks, full
//! and damaged disks.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pinnace_store::{
    Config, EventKind, Expect, ListOptions, LmdbStore, Retention, Store, StoreError, Write,
};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn put(key: impl Into<String>, value: impl Into<bytes::Bytes>) -> Vec<Write> {
    vec![Write::put(key, Expect::Any, value)]
}

fn with_classes() -> Config {
    Config {
        volatile_prefixes: vec!["/events/".to_owned()],
        volatile_objects_max: 10,
        memory_prefixes: vec!["/leases/".to_owned()],
        ..Config::default()
    }
}

fn keys(store: &LmdbStore, prefix: &str) -> Vec<String> {
    let list = store.list(prefix, &ListOptions::default()).unwrap();
    list.items.into_iter().map(|item| item.key).collect()
}

#[test]
fn only_the_owner_may_read_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path().join("a/b"), with_classes()).unwrap();
    runtime().block_on(store.write(put("/events/a", "x"))).unwrap();
    let mut places = vec![dir.path().join("a/b")];
    let mut n_files = 0;
    while let Some(place) = places.pop() {
        let mode = fs::metadata(&place).unwrap().permissions().mode() & 0o777;
        if place.is_dir() {
            assert_eq!(mode, 0o700, "{}", place.display());
            places.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{}", place.display());
            n_files += 1;
        }
    }
    assert_eq!(n_files, 6);
}

#[test]
fn a_second_store_in_a_directory_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), Config::default()).unwrap();
    let error = LmdbStore::open(dir.path(), Config::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "{} is in use by another store: stop the other process first",
            dir.path().display()
        )
    );
    let restored = pinnace_store::backup::restore(&mut &[][..], dir.path(), &mut |_, v, _| v);
    assert!(restored.unwrap_err().to_string().contains("is in use"));
    drop(store);
    LmdbStore::open(dir.path(), Config::default()).unwrap();
}

#[test]
fn the_map_grows_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { map_bytes_initial: 1 << 20, ..Config::default() };
    let store = Arc::new(LmdbStore::open(dir.path(), config).unwrap());
    runtime().block_on(async {
        let tasks: Vec<_> = (0..8_u8)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..50 {
                        let key = format!("/{task}/{n:02}");
                        store.write(put(&key, vec![b'a' + task; 20_000])).await.unwrap();
                        // Readers hold the map while it wants to grow.
                        assert_eq!(store.get(&key).unwrap().unwrap().value.len(), 20_000);
                        store.list(&format!("/{task}/"), &ListOptions::default()).unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(keys(&store, "").len(), 400);
    drop(store);
    let config = Config { map_bytes_initial: 1 << 20, ..Config::default() };
    let store = LmdbStore::open(dir.path(), config).unwrap();
    assert_eq!(keys(&store, "").len(), 400);
}

#[test]
fn a_store_that_may_not_grow_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { map_bytes_initial: 1 << 20, map_bytes_max: 2 << 20, ..with_classes() };
    let store = LmdbStore::open(dir.path(), config).unwrap();
    runtime().block_on(async {
        store.write(put("/a", "x")).await.unwrap();
        let mut n = 0;
        let error = loop {
            match store.write(put(format!("/big/{n}"), vec![0; 100_000])).await {
                Ok(_) => n += 1,
                Err(error) => break error,
            }
        };
        assert!((5..20).contains(&n), "{n}");
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert_eq!(store.get("/a").unwrap().unwrap().value, "x");
        // Heartbeats need no room.
        let before = store.revision();
        assert_eq!(store.write(put("/leases/a", "x")).await.unwrap(), before + 1);
    });
}

/// A small file system of its own, gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(dir.path())
            .status();
        status.is_ok_and(|status| status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_store_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("skipped: only root can mount a small disk");
        }
        return;
    };
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let dir = disk.0.path().join("store");
    let store = LmdbStore::open(&dir, with_classes()).unwrap();
    runtime().block_on(async {
        store.write(put("/leases/a", "1")).await.unwrap();
        let mut acknowledged = 0;
        let error = loop {
            match store.write(put(format!("/big/{acknowledged:02}"), vec![7; 50_000])).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert!(error.to_string().contains(dir.to_str().unwrap()));
        assert_eq!(keys(&store, "/big/").len(), acknowledged);
        store.write(put("/leases/a", "2")).await.unwrap();
        fs::remove_file(&ballast).unwrap();
        store.write(put("/after", "x")).await.unwrap();
        drop(store);
        let store = LmdbStore::open(&dir, with_classes()).unwrap();
        assert_eq!(keys(&store, "/big/").len(), acknowledged);
        assert_eq!(store.get("/after").unwrap().unwrap().value, "x");
    });
}

#[test]
fn the_log_is_bounded_and_overtaken_watches_expire() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { changes_max: 100, age_min: Duration::ZERO, ..Retention::default() };
    let config = Config { retention, ring_bytes_max: 1_000, ..Config::default() };
    let store = LmdbStore::open(dir.path(), config).unwrap();
    runtime().block_on(async {
        store.write(put("/a", "0")).await.unwrap();
        let mut slow = store.watch("/", 0).unwrap();
        for n in 1..1_000 {
            store.write(put("/a", format!("{n}"))).await.unwrap();
        }
        let compacted = store.compacted();
        assert!((880..=900).contains(&compacted), "{compacted}");
        assert!(matches!(slow.next().await, Err(StoreError::Expired { .. })));
        assert!(matches!(store.watch("/", compacted - 1), Err(StoreError::Expired { .. })));
        let mut watcher = store.watch("/", compacted).unwrap();
        for revision in compacted + 1..=1_000 {
            assert_eq!(watcher.next().await.unwrap().revision, revision);
        }
        assert!(store.counters().events_from_log > 50, "the ring is too small for all");
    });
}

#[test]
fn young_changes_stay_unless_they_are_too_many_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { changes_max: 10, bytes_limit: 100_000, ..Retention::default() };
    let config = Config { retention, ..Config::default() };
    let store = LmdbStore::open(dir.path(), config).unwrap();
    runtime().block_on(async {
        for n in 0..100 {
            store.write(put("/a", format!("{n}"))).await.unwrap();
        }
        assert_eq!(store.compacted(), 0);
        for _ in 0..10 {
            store.write(put("/a", vec![0; 20_000])).await.unwrap();
        }
        assert!(store.compacted() > 50, "{}", store.compacted());
        store.watch("/", store.revision() - 2).unwrap();
    });
}

#[test]
fn all_classes_share_the_revision_and_the_watches() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), with_classes()).unwrap();
    runtime().block_on(async {
        let mut all = store.watch("/", 0).unwrap();
        for (n, key) in ["/events/a", "/leases/a", "/pods/a", "/leases/b"].iter().enumerate() {
            assert_eq!(store.write(put(*key, "x")).await.unwrap(), n as u64 + 1);
        }
        let put_with_old = vec![Write::put("/leases/a", Expect::Revision(1), "y")];
        assert!(matches!(store.write(put_with_old).await, Err(StoreError::Conflict { .. })));
        store.write(vec![Write::delete("/leases/a", Expect::Revision(2))]).await.unwrap();
        for (revision, key) in
            [(1, "/events/a"), (2, "/leases/a"), (3, "/pods/a"), (4, "/leases/b"), (5, "/leases/a")]
        {
            let event = all.next().await.unwrap();
            assert_eq!((event.revision, event.key.as_str()), (revision, key));
        }
        assert_eq!(keys(&store, "/"), ["/events/a", "/leases/b", "/pods/a"]);
        let at = |revision, start_after: Option<&str>, limit| {
            let start_after = start_after.map(str::to_owned);
            let options = ListOptions { at_revision: Some(revision), limit, start_after };
            let list = store.list("/", &options).unwrap();
            (list.items.into_iter().map(|item| item.key).collect::<Vec<_>>(), list.more)
        };
        assert_eq!(at(2, None, None), (vec!["/events/a".into(), "/leases/a".into()], false));
        assert_eq!(at(4, None, Some(2)), (vec!["/events/a".into(), "/leases/a".into()], true));
        assert_eq!(
            at(4, Some("/leases/a"), Some(2)),
            (vec!["/leases/b".into(), "/pods/a".into()], false)
        );
        let mixed = vec![
            Write::put("/pods/b", Expect::Any, "x"),
            Write::put("/events/b", Expect::Any, "x"),
        ];
        let error = store.write(mixed).await.unwrap_err();
        assert!(matches!(error, StoreError::MixedClasses { .. }));
        assert!(error.to_string().starts_with("\"/pods/b\" and \"/events/b\""));
    });
}

#[test]
fn heartbeats_cost_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), with_classes()).unwrap();
    runtime().block_on(async {
        for n in 0..500 {
            store.write(put(format!("/leases/{}", n % 5), format!("{n}"))).await.unwrap();
            store.write(put(format!("/events/{n}"), "x")).await.unwrap();
        }
    });
    // One, to reserve their revisions.
    assert_eq!(store.counters().commits, 1);
    assert_eq!(store.counters().transactions, 1_000);
}

#[test]
fn the_oldest_volatile_objects_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), with_classes()).unwrap();
    runtime().block_on(async {
        for n in 0..10 {
            store.write(put(format!("/events/{n}"), "x")).await.unwrap();
        }
        // Touched, so no longer the oldest.
        store.write(put("/events/0", "y")).await.unwrap();
        let mut watcher = store.watch("/events/", store.revision()).unwrap();
        store.write(put("/events/new", "x")).await.unwrap();
        let event = watcher.next().await.unwrap();
        assert_eq!((event.kind, event.key.as_str()), (EventKind::Put, "/events/new"));
        let event = watcher.next().await.unwrap();
        assert_eq!((event.kind, event.key.as_str()), (EventKind::Delete, "/events/1"));
        assert_eq!(event.revision, store.revision());
        for n in 10..200 {
            store.write(put(format!("/events/{n}"), "x")).await.unwrap();
        }
    });
    assert_eq!(keys(&store, "/events/").len(), 10);
}

#[test]
fn a_start_keeps_volatile_objects_and_resumes_above_every_revision_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut shown = 0;
    for round in 0..5 {
        let store = LmdbStore::open(dir.path(), with_classes()).unwrap();
        assert!(store.revision() >= shown, "{} < {shown}", store.revision());
        assert_eq!(keys(&store, "/events/").len(), round);
        assert_eq!(keys(&store, "/leases/"), Vec::<String>::new());
        // What happened to them before the start is not known any more.
        if round > 0 {
            assert!(matches!(store.watch("/events/", shown - 1), Err(StoreError::Expired { .. })));
            assert!(matches!(store.watch("/", shown - 1), Err(StoreError::Expired { .. })));
            let mut pods = store.watch("/pods/", shown - 3).unwrap();
            let event = pods.try_next().unwrap().unwrap();
            assert_eq!((event.key.as_str(), event.revision), ("/pods/a", shown - 2));
        }
        runtime().block_on(async {
            for key in ["/pods/a", "/leases/a", &format!("/events/{round}")] {
                shown = store.write(put(key, "x")).await.unwrap();
            }
        });
    }
}

/// A store with two volatile objects and a durable one, closed.
fn with_events(dir: &Path) {
    let store = LmdbStore::open(dir, with_classes()).unwrap();
    runtime().block_on(async {
        for key in ["/events/a", "/events/b", "/pods/a"] {
            store.write(put(key, "x")).await.unwrap();
        }
    });
}

#[test]
fn a_damaged_volatile_database_is_discarded_and_nothing_else() {
    let garbage = |file: &Path| fs::write(file, vec![0xa5; 40_000]).unwrap();
    let cut = |file: &Path| {
        let half = fs::metadata(file).unwrap().len() / 2;
        fs::File::options().write(true).open(file).unwrap().set_len(half).unwrap();
    };
    let empty = |file: &Path| fs::write(file, []).unwrap();
    for (what, damage) in
        [("garbage", &garbage as &dyn Fn(&Path)), ("cut", &cut), ("empty", &empty)]
    {
        let dir = tempfile::tempdir().unwrap();
        with_events(dir.path());
        damage(&dir.path().join("volatile/data.mdb"));
        let store = LmdbStore::open(dir.path(), with_classes()).unwrap();
        assert_eq!(keys(&store, "/"), ["/pods/a"], "{what}");
        runtime().block_on(store.write(put("/events/c", "x"))).unwrap();
        assert_eq!(keys(&store, "/events/"), ["/events/c"], "{what}");
    }
}

#[test]
fn a_volatile_database_that_lost_power_is_discarded() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for (state, n_left) in [
        ("open 00000000-0000-0000-0000-000000000000", 0),
        ("", 0),
        ("open ", 0),
        ("clean", 0),
        ("clean 4096", 0),
        // Killed, but the machine went on.
        (&format!("open {}", boot.trim()), 2),
        ("as it is", 2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        with_events(dir.path());
        let state_file = dir.path().join("volatile/state");
        assert!(fs::read_to_string(&state_file).unwrap().starts_with("clean "));
        if state != "as it is" {
            fs::write(state_file, state).unwrap();
        }
        let store = LmdbStore::open(dir.path(), with_classes()).unwrap();
        assert_eq!(keys(&store, "/events/").len(), n_left, "{state}");
    }
}

#[test]
fn a_damaged_durable_database_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    with_events(dir.path());
    fs::write(dir.path().join("objects/data.mdb"), vec![0xa5; 40_000]).unwrap();
    let error = LmdbStore::open(dir.path(), with_classes()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
}

#[test]
fn readers_see_transactions_whole_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    // Lists take many steps, and watches go through the log.
    let config = Config { read_bytes_max: 20_000, ring_bytes_max: 50_000, ..Config::default() };
    let store = Arc::new(LmdbStore::open(dir.path(), config).unwrap());
    let accounts = 20;
    let balance = |value: &[u8]| {
        std::str::from_utf8(value).unwrap().trim_end_matches('.').parse::<i64>().unwrap()
    };
    let render = |balance: i64| format!("{balance}{}", ".".repeat(3_000));
    let key = |n: usize| format!("/account/{n:02}");
    runtime().block_on(async {
        let open = (0..accounts).map(|n| Write::put(key(n), Expect::Absent, render(100)));
        store.write(open.collect()).await.unwrap();
        let mut watcher = store.watch("/account/", 1).unwrap();
        let writers: Vec<_> = (0..4_usize)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut done = 0;
                    let mut n = task;
                    while done < 60 {
                        n = (n * 7 + 3) % (accounts * 13);
                        let (from, to) = (n % accounts, (n / 3 + task + 1) % accounts);
                        if from == to {
                            n += 1;
                            continue;
                        }
                        let [from, to] = [from, to].map(|n| store.get(&key(n)).unwrap().unwrap());
                        let move_one = [(from, -1), (to, 1)].map(|(account, by)| {
                            let expect = Expect::Revision(account.revision);
                            Write::put(account.key, expect, render(balance(&account.value) + by))
                        });
                        match store.write(move_one.into()).await {
                            Ok(_) => done += 1,
                            Err(StoreError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let mut n_lists = 0;
        while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
            let list = store.list("/account/", &ListOptions::default()).unwrap();
            let total: i64 = list.items.iter().map(|item| balance(&item.value)).sum();
            assert_eq!(total, 100 * accounts as i64, "at {}", list.revision);
            assert!(list.items.iter().all(|item| item.revision <= list.revision));
            n_lists += 1;
            tokio::task::yield_now().await;
        }
        assert!(n_lists > 0);
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(store.revision(), 1 + 4 * 60);
        for revision in 2..=store.revision() {
            for _ in 0..2 {
                assert_eq!(watcher.next().await.unwrap().revision, revision);
            }
        }
        assert_eq!(watcher.try_next().unwrap(), None);
    });
}

/// KiB of the data file of the store in `dir` that are mapped in this process.
fn mapped_kib(dir: &Path) -> u64 {
    let data = dir.join("objects/data.mdb");
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let of_data = maps.lines().skip_while(|line| !line.ends_with(data.to_str().unwrap()));
    let resident = of_data.skip(1).find_map(|line| line.strip_prefix("Rss:")).unwrap();
    resident.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_idle_store_gives_its_pages_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), Config::default()).unwrap();
    runtime().block_on(async {
        for n in 0..100 {
            store.write(put(format!("/{n}"), vec![b'x'; 50_000])).await.unwrap();
            assert_eq!(store.get(&format!("/{n}")).unwrap().unwrap().value.len(), 50_000);
        }
        let given_back = async {
            while mapped_kib(dir.path()) > 100 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), given_back).await.unwrap();
    });
    assert_eq!(keys(&store, "").len(), 100);
}

#[test]
fn a_value_that_cannot_be_made_ends_the_store_and_hangs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), Config::default()).unwrap();
    runtime().block_on(async {
        store.write(put("/a", "x")).await.unwrap();
        let broken = Write::put_with("/b", Expect::Any, |_| panic!("a bug in a renderer"));
        assert!(matches!(store.write(vec![broken]).await, Err(StoreError::Closed)));
        assert!(matches!(store.write(put("/c", "x")).await, Err(StoreError::Closed)));
        assert_eq!(store.get("/a").unwrap().unwrap().value, "x");
    });
    drop(store);
    let store = LmdbStore::open(dir.path(), Config::default()).unwrap();
    assert_eq!(keys(&store, ""), ["/a"]);
}

#[test]
fn concurrent_writers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LmdbStore::open(dir.path(), Config::default()).unwrap());
    runtime().block_on(async {
        let tasks: Vec<_> = (0..100)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..10 {
                        store.write(put(format!("/{task}/{n}"), "x")).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let counters = store.counters();
    assert_eq!(counters.transactions, 1_000);
    assert!(counters.commits <= 250, "{counters:?}");
}
