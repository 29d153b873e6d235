//! Layers, good and hostile, unpacked as root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pinnace_image::build::{Content, Entry, archive, gzip};
use pinnace_image::unpack::{UnpackError, unpack};
use pinnace_image::{Digest, Limits};

struct Layer {
    folder: tempfile::TempDir,
}

impl Layer {
    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.out().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

/// Unpacks a blob whose content is `tar`, beside a secret that must stay alone.
fn try_unpack(blob: &[u8], tar: &[u8], limits: &Limits) -> (Layer, Result<(), UnpackError>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "untouched").unwrap();
    fs::create_dir(folder.path().join("target")).unwrap();
    fs::write(folder.path().join("blob"), blob).unwrap();
    let layer = Layer { folder };
    let blob = layer.folder.path().join("blob");
    let result = unpack(&blob, &layer.out(), Digest::of(tar), limits);
    // Whatever happened, nothing outside was read into the layer, made or changed.
    let names: Vec<_> =
        fs::read_dir(layer.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.len() <= 4, "{names:?}");
    assert_eq!(fs::read_to_string(layer.folder.path().join("secret")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(layer.folder.path().join("target")).unwrap().count(), 0);
    (layer, result)
}

fn unpacked(entries: &[Entry]) -> Layer {
    let tar = archive(entries);
    let (layer, result) = try_unpack(&tar, &tar, &Limits::default());
    result.unwrap();
    layer
}

/// A tar of headers that no honest program writes.
#[derive(Default)]
struct Forged(Vec<u8>);

impl Forged {
    fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        if kind == tar::EntryType::Char || kind == tar::EntryType::Block {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str) -> Self {
        self.entry(tar::EntryType::Regular, name, "", b"x")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, target, b"")
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    fn check(self, expected: &str) {
        let tar = self.end();
        let (_, result) = try_unpack(&tar, &tar, &Limits::default());
        let found = result.map_or_else(|error| error.to_string(), |()| "unpacked".to_owned());
        assert!(found.contains(expected), "{found}");
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

#[test]
fn everything_of_an_honest_layer_is_there() {
    let mut owned = Entry::file("home/app/file", 0o640, b"mine".to_vec());
    (owned.uid, owned.gid) = (1000, 1001);
    let hard = Entry {
        content: Content::Hardlink("bin/tool".into()),
        ..Entry::file("bin/same", 0, vec![])
    };
    let layer = unpacked(&[
        Entry::folder("./", 0o755),
        Entry::folder("bin", 0o555),
        Entry::file("bin/tool", 0o4755, b"tool".to_vec()),
        hard,
        Entry::symlink("sh", "bin/tool"),
        Entry::folder("tmp", 0o1777),
        owned,
    ]);
    assert_eq!(layer.read("bin/tool"), "tool");
    let mode =
        |name: &str| fs::symlink_metadata(layer.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("bin/tool"), 0o4755);
    // A folder without write permission, filled all the same.
    assert_eq!(mode("bin"), 0o555);
    assert_eq!(mode("tmp"), 0o1777);
    let inode = |name: &str| fs::metadata(layer.path(name)).unwrap().ino();
    assert_eq!(inode("bin/tool"), inode("bin/same"));
    assert_eq!(fs::read_link(layer.path("sh")).unwrap(), Path::new("bin/tool"));
    let file = fs::metadata(layer.path("home/app/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mtime()), (1000, 1001, 0));
}

#[test]
fn every_compression_is_understood() {
    let tar = archive(&[Entry::file("f", 0o644, vec![b'x'; 100_000])]);
    let zstd = |bytes: &[u8]| {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    };
    let (first, second) = tar.split_at(512);
    // Frames in a row, and one that only carries notes, as parallel compressors write.
    let mut frames = zstd(first);
    frames.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    frames.extend(zstd(second));
    let mut members = gzip(first);
    members.extend(gzip(second));
    for blob in [tar.clone(), gzip(&tar), members, zstd(&tar), frames] {
        let (layer, result) = try_unpack(&blob, &tar, &Limits::default());
        result.unwrap();
        assert_eq!(layer.read("f").len(), 100_000);
    }
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let layer = unpacked(&[
        Entry::folder("a", 0o755),
        Entry::file("a/.wh.gone", 0o644, vec![]),
        Entry::folder("b", 0o755),
        Entry::file("b/.wh..wh..opq", 0o644, vec![]),
        Entry::file("b/new", 0o644, vec![]),
        // This layer's own file is not hidden by its whiteout, in either order.
        Entry::file("kept", 0o644, b"kept".to_vec()),
        Entry::file(".wh.kept", 0o644, vec![]),
        Entry::file(".wh.folder", 0o644, vec![]),
        Entry::folder("folder", 0o755),
    ]);
    let gone = fs::symlink_metadata(layer.path("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(xattr(&layer.path("b"), "trusted.overlay.opaque"), Some(b"y".to_vec()));
    assert!(!layer.path("b/.wh..wh..opq").exists());
    assert_eq!(layer.read("kept"), "kept");
    assert!(!layer.path(".wh.kept").exists());
    assert_eq!(xattr(&layer.path("folder"), "trusted.overlay.opaque"), Some(b"y".to_vec()));
}

#[test]
fn paths_never_leave_the_layer() {
    Forged::default().file("../../escape").check("\"..\" in its path");
    Forged::default().file("a/../../escape").check("\"..\" in its path");
    // Absolute means: from the layer's root.
    Forged::default().file("/etc/inside").check("unpacked");
}

#[test]
fn links_never_lead_out_of_the_layer() {
    // A link upwards ends at the layer's root, where it leads nowhere.
    for target in ["../../../target", "../target", "/proc/self/root", "/proc/self/cwd"] {
        Forged::default().link("d", target).file("d/pwn").check("\"d/pwn\": No such file");
    }
    // Or to a folder of the same name in the layer.
    let tar = Forged::default().file("target/old").link("d", "../target").file("d/pwn").end();
    let (layer, result) = try_unpack(&tar, &tar, &Limits::default());
    result.unwrap();
    assert_eq!(layer.read("target/pwn"), "x");
    // Over a link: replaces it.
    let tar = Forged::default().link("x", "../secret").file("x").end();
    let (layer, result) = try_unpack(&tar, &tar, &Limits::default());
    result.unwrap();
    assert_eq!(layer.read("x"), "x");
    // A loop ends.
    Forged::default().link("a", "b").link("b", "a").file("a/f").check("symbolic links");
}

#[test]
fn hard_links_stay_inside() {
    Forged::default().hard("h", "../secret").check("\"..\" in its path");
    Forged::default().hard("h", "/etc/shadow").check("a hard link to etc/shadow");
    Forged::default().link("s", "/etc").hard("h", "s/passwd").check("a hard link to s/passwd");
    Forged::default().hard("h", "h").check("a hard link to itself");
    // A link to a link is the link, not what it names.
    let tar = Forged::default().link("s", "../secret").hard("h", "s").end();
    let (layer, result) = try_unpack(&tar, &tar, &Limits::default());
    result.unwrap();
    assert!(fs::symlink_metadata(layer.path("h")).unwrap().file_type().is_symlink());
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in ["a/.wh.", "a/.wh..", "a/.wh...", "a/.wh..wh.x"] {
        Forged::default().file(name).check("a whiteout of nothing");
    }
}

#[test]
fn device_nodes_are_left_out_and_forged_whiteouts_refused() {
    Forged::default().entry(tar::EntryType::Char, "dev0", "", b"").check("a forged whiteout");
    let tar = Forged::default().entry(tar::EntryType::Block, "disk", "", b"").file("f").end();
    let (layer, result) = try_unpack(&tar, &tar, &Limits::default());
    result.unwrap();
    assert!(!layer.path("disk").exists() && layer.path("f").exists());
}

#[test]
fn only_harmless_attributes_are_kept() {
    let mut builder = tar::Builder::new(Vec::new());
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"hi".as_slice()),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice()),
            ("SCHILY.xattr.security.selinux", b"x".as_slice()),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, "f", std::io::empty()).unwrap();
    let tar = builder.into_inner().unwrap();
    let (layer, result) = try_unpack(&tar, &tar, &Limits::default());
    result.unwrap();
    let f = layer.path("f");
    assert_eq!(xattr(&f, "security.capability").as_deref(), Some(capability));
    assert!(matches!(xattr(&f, "user.note").as_deref(), None | Some(b"hi")));
    assert_eq!(xattr(&f, "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&f, "security.selinux"), None);
}

#[test]
fn bombs_are_stopped() {
    let small = Limits { unpacked_bytes: 1 << 20, entries: 100, ..Limits::default() };
    let check = |blob: &[u8], expected: &str| {
        let (_, result) = try_unpack(blob, blob, &small);
        let error = result.unwrap_err();
        assert!(matches!(error, UnpackError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    // A thousandfold compression.
    check(&gzip(&archive(&[Entry::file("zeros", 0o644, vec![0; 64 << 20])])), "1048576 bytes");
    // Behind the archive's end.
    let mut tail = archive(&[]);
    tail.resize(8 << 20, 0);
    check(&gzip(&tail), "1048576 bytes");
    // Many small ones.
    let many: Vec<Entry> = (0..200).map(|n| Entry::folder(&format!("d{n}"), 0o755)).collect();
    check(&archive(&many), "100 entries");
}

#[test]
fn a_sparse_file_is_counted_in_full() {
    // 4 TiB of hole, in 1 KiB of archive.
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(512);
    header.set_entry_type(tar::EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..1].copy_from_slice(b"s");
    let octal = |field: &mut [u8; 12], n: u64| {
        field.copy_from_slice(&[0; 12]);
        // Base 256, for what eleven octal digits cannot say.
        field[0] = 0x80;
        field[4..12].copy_from_slice(&n.to_be_bytes());
    };
    octal(&mut gnu.realsize, (4 << 40) + 512);
    octal(&mut gnu.sparse[0].offset, 4 << 40);
    octal(&mut gnu.sparse[0].numbytes, 512);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.extend_from_slice(&[b'x'; 512]);
    tar.extend_from_slice(&[0; 1024]);
    let small = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let (_, result) = try_unpack(&tar, &tar, &small);
    assert!(matches!(result.unwrap_err(), UnpackError::TooLarge { .. }));
}

#[test]
fn damaged_and_wrong_content_is_refused() {
    let tar = archive(&[Entry::file("f", 0o644, vec![7; 100_000])]);
    let whole = gzip(&tar);
    let (_, result) = try_unpack(&whole[..whole.len() / 2], &tar, &Limits::default());
    assert!(matches!(result.unwrap_err(), UnpackError::Damaged(_)));
    let (_, result) = try_unpack(&tar[..50_000], &tar, &Limits::default());
    assert!(matches!(
        result.unwrap_err(),
        UnpackError::Damaged(_) | UnpackError::DigestMismatch { .. }
    ));
    let other = archive(&[Entry::file("f", 0o644, vec![8; 100_000])]);
    let (_, result) = try_unpack(&gzip(&other), &tar, &Limits::default());
    assert!(matches!(result.unwrap_err(), UnpackError::DigestMismatch { .. }));
    let (_, result) = try_unpack(b"not an archive at all", &tar, &Limits::default());
    assert!(result.is_err());
    let mut truncated = vec![0x28, 0xb5, 0x2f, 0xfd];
    truncated.write_all(&[0xff; 40]).unwrap();
    let (_, result) = try_unpack(&truncated, &tar, &Limits::default());
    assert!(result.is_err());
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let layer = unpacked(&[
        Entry::file("x", 0o644, b"first".to_vec()),
        Entry::file("x", 0o644, b"second".to_vec()),
        Entry::file("d/inner", 0o644, vec![]),
        Entry::file("d", 0o644, b"a file now".to_vec()),
        Entry::file("e", 0o644, vec![]),
        Entry::folder("e", 0o755),
    ]);
    assert_eq!(layer.read("x"), "second");
    assert_eq!(layer.read("d"), "a file now");
    assert!(layer.path("e").is_dir());
}
