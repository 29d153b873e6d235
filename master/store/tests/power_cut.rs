//! Cutting the power: what had not reached the disk is gone.
//!
//! The store is on a file system in a file in memory. At random moments the
//! writing program is stopped and the file copied: the copy holds what was
//! flushed, and nothing of the page cache. It must hold every write that had been
//! acknowledged, and none by half. `POWER_CUTS=1000` cuts more often.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr, clippy::cast_possible_truncation)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use common::{Random, check_history, config, next_acknowledged, start_child};
use pinnace_store::{LmdbStore, Store};

#[test]
#[ignore = "the program whose power is cut by the other"]
fn child() {
    common::run_child();
}

/// The output of a program that ended well.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// A file system in a file; unmounted when it goes.
struct Disk {
    device: String,
    mounted: Option<PathBuf>,
}

impl Disk {
    fn attach(image: &Path, at: &Path) -> Option<Disk> {
        let device = run("losetup", &["-f", "--show", image.to_str()?])?;
        let mut disk = Disk { device, mounted: None };
        fs::create_dir_all(at).unwrap();
        run("mount", &[&disk.device, at.to_str()?])?;
        disk.mounted = Some(at.to_owned());
        Some(disk)
    }

    /// Sectors written so far: an image that was copied while this moved is torn.
    fn written(&self) -> String {
        let name = self.device.trim_start_matches("/dev/");
        let stat = |file: &str| fs::read_to_string(format!("/sys/block/{name}/{file}")).unwrap();
        let n_sectors = stat("stat").split_whitespace().nth(6).unwrap().to_owned();
        format!("{n_sectors} {}", stat("inflight"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(at) = &self.mounted {
            run("umount", &["-l", at.to_str().unwrap()]);
        }
        run("losetup", &["-d", &self.device]);
    }
}

/// A process that must not outlive a failing test.
struct Victim(std::process::Child);

impl Victim {
    fn signal(&self, signal: &str) {
        run("kill", &[signal, &self.0.id().to_string()]).unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_acknowledged_write_is_lost_when_the_power_is_cut() {
    let n_cuts = std::env::var("POWER_CUTS").map_or(12, |n| n.parse().unwrap());
    let Ok(place) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: there is no /dev/shm");
        return;
    };
    let [image, copy] = ["disk", "copy"].map(|name| place.path().join(name));
    fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    let made = run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let disk = made.and_then(|_| Disk::attach(&image, &place.path().join("mounted")));
    let Some(disk) = disk else {
        eprintln!("skipped: only root can attach a disk image");
        return;
    };
    let (child, mut lines) = start_child(&place.path().join("mounted/store"), false);
    let victim = Victim(child);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let seen = acknowledged.clone();
    let reader = std::thread::spawn(move || {
        while let Some(revision) = next_acknowledged(&mut lines) {
            seen.fetch_max(revision, Ordering::Relaxed);
        }
    });
    let mut random = Random(1);
    let (mut n_whole, mut n_torn, mut n_checked) = (0, 0, 0);
    while n_whole < n_cuts {
        let goal = acknowledged.load(Ordering::Relaxed) + 1 + random.below(300);
        let deadline = SystemTime::now() + Duration::from_secs(60);
        while acknowledged.load(Ordering::Relaxed) < goal {
            assert!(SystemTime::now() < deadline, "the writer writes");
            std::thread::yield_now();
        }
        victim.signal("-STOP");
        let promised = acknowledged.load(Ordering::Relaxed);
        let before = disk.written();
        run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
        let torn = disk.written() != before || !before.ends_with("       0        0\n");
        victim.signal("-CONT");
        if torn {
            n_torn += 1;
            assert!(n_torn < 20 * n_cuts, "{n_torn} copies were torn");
            continue;
        }
        let cut = Disk::attach(&copy, &place.path().join("cut")).expect("the copy is mounted");
        let store = LmdbStore::open(place.path().join("cut/store"), config(false)).unwrap();
        assert!(store.revision() >= promised, "{promised} was acknowledged, {store:?}");
        n_checked += check_history(&store);
        drop(store);
        drop(cut);
        n_whole += 1;
    }
    drop(victim);
    reader.join().unwrap();
    eprintln!(
        "{n_whole} cuts ({n_torn} torn copies not counted), {n_checked} transactions checked"
    );
}
