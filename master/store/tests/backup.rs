//! Backups: what comes back, and what is refused.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::io::{self, Read};

use bytes::Bytes;
use pinnace_store::backup::{BackupError, create, restore};
use pinnace_store::{Config, Expect, ListOptions, LmdbStore, Store, StoreError, Write};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn filled(dir: &std::path::Path, n_objects: usize) -> LmdbStore {
    let config = Config { read_bytes_max: 2_000, ..Config::default() };
    let store = LmdbStore::open(dir, config).unwrap();
    block_on(async {
        for n in 0..n_objects {
            let value = vec![b'0' + (n % 10) as u8; n * 7 % 5_000];
            let put = Write::put(format!("/o/{n:04}"), Expect::Absent, value);
            store.write(vec![put]).await.unwrap();
        }
    });
    store
}

fn as_it_is(_: &str, value: Bytes, _: u64) -> Bytes {
    value
}

#[test]
fn a_restored_store_holds_the_same_under_a_new_epoch_and_a_higher_revision() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(old.path(), 300);
    let mut archive = b"before".to_vec();
    let summary = create(&store, &mut archive).unwrap();
    archive.extend_from_slice(b"after");
    assert_eq!((summary.n_objects, summary.revision), (300, 300));
    assert_eq!(summary.epoch, store.epoch());

    let mut input = &archive[6..];
    assert_eq!(restore(&mut input, new.path(), &mut as_it_is).unwrap(), summary);
    assert_eq!(input, b"after", "nothing beyond the backup is read");

    let restored = LmdbStore::open(new.path(), Config::default()).unwrap();
    assert_ne!(restored.epoch(), store.epoch());
    assert_eq!(restored.revision(), 2 << 32);
    let (mut before, mut after) = (
        store.list("", &ListOptions::default()).unwrap(),
        restored.list("", &ListOptions::default()).unwrap(),
    );
    assert!(after.items.iter().all(|item| item.revision == 2 << 32));
    for list in [&mut before, &mut after] {
        list.items.iter_mut().for_each(|item| item.revision = 0);
    }
    assert_eq!(before.items, after.items);
    assert!(matches!(restored.watch("", 300), Err(StoreError::Expired { .. })));
    let revision = block_on(restored.write(vec![Write::put("/n", Expect::Absent, "x")])).unwrap();
    assert_eq!(revision, (2 << 32) + 1);
}

#[test]
fn values_that_carry_their_revision_are_stamped_anew() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(old.path(), 3);
    let mut archive = Vec::new();
    create(&store, &mut archive).unwrap();
    let mut stamp = |key: &str, _: Bytes, revision| Bytes::from(format!("{key} {revision}"));
    restore(&mut &archive[..], new.path(), &mut stamp).unwrap();
    let restored = LmdbStore::open(new.path(), Config::default()).unwrap();
    let object = restored.get("/o/0001").unwrap().unwrap();
    assert_eq!(object.value, format!("/o/0001 {}", object.revision));
}

/// Deletes and changes objects behind the back of a backup that is being written.
struct Meddler<'a> {
    store: &'a LmdbStore,
    out: Vec<u8>,
    n_writes: usize,
}

impl io::Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.n_writes += 1;
        if self.n_writes.is_multiple_of(20) {
            let n = self.n_writes / 20 * 7 % 320;
            let write = match n % 3 {
                0 => Write::delete(format!("/o/{n:04}"), Expect::Any),
                _ => Write::put(format!("/o/{n:04}"), Expect::Any, "meddled"),
            };
            block_on(self.store.write(vec![write])).unwrap();
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_backup_shows_one_revision_while_others_write() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(old.path(), 300);
    let expected = store.list("", &ListOptions::default()).unwrap();
    let mut meddler = Meddler { store: &store, out: Vec::new(), n_writes: 0 };
    create(&store, &mut meddler).unwrap();
    assert!(store.revision() > 320, "it was meddled with");
    restore(&mut &meddler.out[..], new.path(), &mut as_it_is).unwrap();
    let restored = LmdbStore::open(new.path(), Config::default()).unwrap();
    let found = restored.list("", &ListOptions::default()).unwrap();
    let pairs = |list: pinnace_store::List| {
        list.items.into_iter().map(|item| (item.key, item.value)).collect::<Vec<_>>()
    };
    assert_eq!(pairs(found), pairs(expected));
}

#[test]
fn a_damaged_or_short_backup_is_refused_with_its_offset_and_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Vec::new();
    create(&filled(&dir.path().join("old"), 20), &mut archive).unwrap();
    let target = dir.path().join("new");
    let refused = |bytes: &[u8]| {
        let result = restore(&mut &bytes[..], &target, &mut as_it_is);
        assert!(!target.join("objects").exists());
        assert!(!target.join("objects.restoring").exists());
        result.unwrap_err()
    };
    for length in (0..archive.len()).step_by(11).chain([archive.len() - 1]) {
        match refused(&archive[..length]) {
            BackupError::Damaged { offset, detail } => {
                assert_eq!(detail, "it ends early");
                assert!(offset <= length as u64, "{offset} of {length}");
            }
            other => panic!("{length}: {other}"),
        }
    }
    for place in (0..archive.len()).step_by(7) {
        let mut damaged = archive.clone();
        damaged[place] ^= 0x10;
        match refused(&damaged) {
            BackupError::Damaged { .. } => {}
            BackupError::Version { .. } => assert!((16..20).contains(&place)),
            other => panic!("{place}: {other}"),
        }
    }
    let mut other = archive.clone();
    other[0] = b'P';
    assert_eq!(
        refused(&other).to_string(),
        "the backup is damaged at byte 0: it is not a backup of a Pinnace store: use another one"
    );
    restore(&mut &archive[..], &target, &mut as_it_is).unwrap();
    let error = restore(&mut &archive[..], &target, &mut as_it_is).unwrap_err();
    assert!(matches!(error, BackupError::Exists { .. }), "{error}");
}

#[test]
fn an_object_left_out_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("old"), 2);
    let mut archive = Vec::new();
    create(&store, &mut archive).unwrap();
    // Head, then "/o/0000" without a value, then "/o/0001" of seven bytes.
    let (head, first) = (48, 1 + 2 + 4 + 7 + 4);
    let without = [&archive[..head], &archive[head + first..]].concat();
    let error = restore(&mut &without[..], &dir.path().join("new"), &mut as_it_is).unwrap_err();
    assert!(error.to_string().contains("the tail does not fit"), "{error}");
}

#[test]
fn a_stream_that_fails_is_not_taken_for_a_damaged_backup() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let error = restore(&mut Broken, dir.path(), &mut as_it_is).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the backup at byte 0");
}
