//! What a user of the store relies on, said one by one, for both stores.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::sync::Arc;

use bytes::Bytes;
use pinnace_store::{
    Config, EventKind, Expect, ListOptions, LmdbStore, MemoryStore, Store, StoreError, Write,
};

/// Runs `check` on a store in memory and on one on disk.
fn check<F: Future<Output = ()>>(check: impl Fn(Arc<dyn Store>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(check(Arc::new(MemoryStore::new())));
    let dir = tempfile::tempdir().unwrap();
    runtime.block_on(check(Arc::new(LmdbStore::open(dir.path(), Config::default()).unwrap())));
}

fn keys(list: &pinnace_store::List) -> Vec<&str> {
    list.items.iter().map(|item| item.key.as_str()).collect()
}

#[test]
fn what_was_put_is_read_back_with_its_revision() {
    check(|store| async move {
        assert_eq!(store.revision(), 0);
        assert_eq!(store.get("/a").unwrap(), None);
        let revision = store.write(vec![Write::put("/a", Expect::Absent, "x")]).await.unwrap();
        assert_eq!((revision, store.revision()), (1, 1));
        let found = store.get("/a").unwrap().unwrap();
        assert_eq!((found.revision, found.value), (1, Bytes::from("x")));
    });
}

#[test]
fn a_value_may_carry_its_own_revision() {
    check(|store| async move {
        for n in 1..=3 {
            let render = |revision| Bytes::from(format!("revision {revision}"));
            store.write(vec![Write::put_with("/a", Expect::Any, render)]).await.unwrap();
            assert_eq!(store.get("/a").unwrap().unwrap().value, format!("revision {n}"));
        }
    });
}

#[test]
fn an_expectation_that_does_not_hold_changes_nothing_and_tells_what_is_there() {
    check(|store| async move {
        store.write(vec![Write::put("/a", Expect::Any, "x")]).await.unwrap();
        for (expect, key, revision) in [
            (Expect::Absent, "/a", Some(1)),
            (Expect::Revision(2), "/a", Some(1)),
            (Expect::Revision(1), "/b", None),
        ] {
            let first = Write::put("/other", Expect::Any, "y");
            let result = store.write(vec![first, Write::put(key, expect, "y")]).await;
            let Err(StoreError::Conflict { key: named, current }) = result else {
                panic!("{result:?}")
            };
            assert_eq!((named.as_str(), current.map(|c| c.revision)), (key, revision));
        }
        assert_eq!(store.get("/other").unwrap(), None);
        assert_eq!((store.revision(), store.counters().conflicts), (1, 3));
    });
}

#[test]
fn a_transaction_has_one_revision_for_all_its_keys() {
    check(|store| async move {
        store.write(vec![Write::put("/c", Expect::Any, "z")]).await.unwrap();
        let writes = vec![
            Write::put("/a", Expect::Absent, "x"),
            Write::put("/b", Expect::Absent, "y"),
            Write::delete("/c", Expect::Revision(1)),
        ];
        assert_eq!(store.write(writes).await.unwrap(), 2);
        let list = store.list("/", &ListOptions::default()).unwrap();
        assert_eq!((list.revision, keys(&list)), (2, vec!["/a", "/b"]));
        assert!(list.items.iter().all(|item| item.revision == 2));
        let mut watcher = store.watch("/", 1).unwrap();
        for key in ["/a", "/b", "/c"] {
            let event = watcher.next().await.unwrap();
            assert_eq!((event.key.as_str(), event.revision), (key, 2));
        }
        assert_eq!(watcher.progress(), 2);
    });
}

#[test]
fn a_transaction_that_changes_nothing_takes_no_revision() {
    check(|store| async move {
        store.write(vec![Write::put("/a", Expect::Any, "x")]).await.unwrap();
        assert_eq!(store.write(vec![]).await.unwrap(), 1);
        assert_eq!(store.write(vec![Write::delete("/b", Expect::Any)]).await.unwrap(), 1);
        store.write(vec![Write::delete("/b", Expect::Revision(1))]).await.unwrap_err();
        assert_eq!(store.revision(), 1);
    });
}

#[test]
fn requests_that_no_store_accepts_are_refused_by_name() {
    check(|store| async move {
        let put = |key: &str| Write::put(key, Expect::Any, "x");
        let long = "k".repeat(481);
        for (writes, message) in [
            (vec![put("")], "key \"\" must have 1 to 480 bytes".to_owned()),
            (vec![put(&long)], format!("key \"{long}\" must have 1 to 480 bytes")),
            (vec![put("/a"), put("/a")], "key \"/a\" is written twice in one transaction".into()),
            (
                vec![Write::put("/a", Expect::Any, vec![0; (8 << 20) + 1])],
                "/a: value of 8388609 bytes exceeds 8388608".into(),
            ),
        ] {
            assert_eq!(store.write(writes).await.unwrap_err().to_string(), message);
        }
        assert_eq!(store.revision(), 0);
        store.write(vec![put(&"k".repeat(480))]).await.unwrap();
        assert_eq!(store.get(&long).unwrap(), None);
        assert_eq!(store.get("").unwrap(), None);
        assert_eq!(keys(&store.list("", &ListOptions::default()).unwrap()).len(), 1);
        for start_after in [String::new(), "a".into(), "k".repeat(600), "z".repeat(5_000)] {
            let n_after = usize::from("k".repeat(480) > start_after);
            let options = ListOptions { start_after: Some(start_after), ..ListOptions::default() };
            assert_eq!(store.list("", &options).unwrap().items.len(), n_after);
            assert_eq!(store.list(&"k".repeat(2_000), &options).unwrap().items.len(), 0);
        }
    });
}

#[test]
fn pages_of_a_list_show_one_revision() {
    check(|store| async move {
        for n in 0..7 {
            store.write(vec![Write::put(format!("/p/{n}"), Expect::Any, "x")]).await.unwrap();
        }
        store.write(vec![Write::put("/q", Expect::Any, "x")]).await.unwrap();
        let options = ListOptions { limit: Some(3), ..ListOptions::default() };
        let first = store.list("/p/", &options).unwrap();
        assert_eq!((keys(&first), first.more), (vec!["/p/0", "/p/1", "/p/2"], true));
        // What happens meanwhile does not show.
        store.write(vec![Write::delete("/p/4", Expect::Any)]).await.unwrap();
        store.write(vec![Write::put("/p/3a", Expect::Any, "x")]).await.unwrap();
        store.write(vec![Write::put("/p/5", Expect::Any, "y")]).await.unwrap();
        let options = ListOptions {
            start_after: Some("/p/2".to_owned()),
            at_revision: Some(first.revision),
            limit: Some(4),
        };
        let second = store.list("/p/", &options).unwrap();
        assert_eq!((keys(&second), second.more), (vec!["/p/3", "/p/4", "/p/5", "/p/6"], false));
        assert_eq!(second.items[2].value, "x");
        assert_eq!(second.revision, first.revision);
    });
}

#[test]
fn a_watch_tells_what_was_there_before() {
    check(|store| async move {
        let mut watcher = store.watch("/a", 0).unwrap();
        assert_eq!(watcher.try_next().unwrap(), None);
        store.write(vec![Write::put("/a", Expect::Any, "x")]).await.unwrap();
        store.write(vec![Write::put("/b", Expect::Any, "-")]).await.unwrap();
        store.write(vec![Write::put("/a", Expect::Any, "y")]).await.unwrap();
        store.write(vec![Write::delete("/a", Expect::Any)]).await.unwrap();
        for (kind, revision, value, previous) in [
            (EventKind::Put, 1, "x", None),
            (EventKind::Put, 3, "y", Some((1, "x"))),
            (EventKind::Delete, 4, "y", Some((3, "y"))),
        ] {
            let event = watcher.next().await.unwrap();
            assert_eq!(
                (event.kind, event.revision, &event.value[..]),
                (kind, revision, value.as_bytes())
            );
            let before = event.previous.as_ref().map(|p| (p.revision, &p.value[..]));
            assert_eq!(before, previous.map(|(revision, value)| (revision, value.as_bytes())));
        }
        assert_eq!(watcher.try_next().unwrap(), None);
        assert_eq!(watcher.progress(), 4);
    });
}

#[test]
fn a_watch_wakes_up_for_a_change() {
    check(|store| async move {
        let mut watcher = store.watch("/a", 0).unwrap();
        let write = store.write(vec![Write::put("/a", Expect::Any, "x")]);
        let (event, revision) = tokio::join!(watcher.next(), write);
        assert_eq!(event.unwrap().revision, revision.unwrap());
    });
}

#[test]
fn progress_moves_without_changes_below_the_prefix() {
    check(|store| async move {
        let mut watcher = store.watch("/a", 0).unwrap();
        store.write(vec![Write::put("/b", Expect::Any, "x")]).await.unwrap();
        assert_eq!(watcher.try_next().unwrap(), None);
        assert_eq!(watcher.progress(), 1);
    });
}

#[test]
fn what_was_compacted_is_expired_and_what_was_not_reached_is_the_future() {
    check(|store| async move {
        for n in 0..10 {
            store.write(vec![Write::put("/a", Expect::Any, format!("{n}"))]).await.unwrap();
        }
        store.compact(5).await.unwrap();
        assert_eq!(store.compacted(), 5);
        let at = |revision| {
            let options = ListOptions { at_revision: Some(revision), ..ListOptions::default() };
            store.list("/", &options)
        };
        assert_eq!(at(5).unwrap().items[0].value, "4");
        assert_eq!(at(10).unwrap().items[0].value, "9");
        assert_eq!(
            at(4).unwrap_err().to_string(),
            "revision 4 is too old: changes up to 5 are compacted"
        );
        assert_eq!(
            at(11).unwrap_err().to_string(),
            "revision 11 is in the future: the newest is 10"
        );
        assert!(matches!(store.watch("/", 11), Err(StoreError::Future { .. })));
        assert!(matches!(store.compact(11).await, Err(StoreError::Future { .. })));
        store.compact(3).await.unwrap();
        assert_eq!(store.compacted(), 5);
    });
}

#[test]
fn a_closed_store_ends_its_watches() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = LmdbStore::open(dir.path(), Config::default()).unwrap();
        let mut watcher = store.watch("/", 0).unwrap();
        let write = store.write(vec![Write::put("/a", Expect::Any, "x")]);
        let late = store.write(vec![Write::put("/b", Expect::Any, "x")]);
        write.await.unwrap();
        drop(store);
        assert_eq!(watcher.next().await.unwrap().key, "/a");
        assert!(matches!(watcher.next().await, Err(StoreError::Closed)));
        assert!(matches!(late.await, Err(StoreError::Closed)));
    });
}
