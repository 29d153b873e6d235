//! ConfigMaps and Secrets as files, replaced all at once.
//!
//! ```text
//! volume/..2026-1/key     a whole version
//! volume/..data  ──► ..2026-1
//! volume/key     ──► ..data/key
//! ```
//!
//! An update writes the next version beside the current one and renames a new
//! `..data` over the old: a reader sees all of one version or all of the other.
//! This is the layout the kubelet has, which programs that watch files rely on.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

use wire::pod::KeyPathV1;

use super::VolumeError;
use super::owner::{self, Access};
use crate::pods::Keys;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// One file of a version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyFile<'a> {
    pub(super) path: String,
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) mode: u32,
    /// Whose it is; `None` for root's.
    pub(super) user: Option<u32>,
}

/// The files that an object gives to a volume.
pub(super) fn files<'a>(
    object: Option<&'a Keys>,
    items: &[KeyPathV1],
    default_mode: u32,
    optional: bool,
) -> Result<Vec<KeyFile<'a>>, VolumeError> {
    let Some(object) = object else { return Ok(Vec::new()) };
    let file = |path: &str, bytes: &'a [u8], mode| KeyFile {
        path: path.to_owned(),
        bytes: Cow::Borrowed(bytes),
        mode,
        user: None,
    };
    if items.is_empty() {
        let all = object.data.data.iter();
        return Ok(all.map(|(key, bytes)| file(key, bytes, default_mode)).collect());
    }
    let mut files = Vec::new();
    for item in items {
        match object.get(&item.key) {
            Some(bytes) => files.push(file(&item.path, bytes, item.mode.unwrap_or(default_mode))),
            None if optional => {}
            None => {
                return Err(VolumeError::Missing(format!(
                    "references non-existent key: {}",
                    item.key
                )));
            }
        }
    }
    Ok(files)
}

/// The last file of each path, none of which may leave the volume.
pub(super) fn checked<'a>(
    volume: &str,
    files: Vec<KeyFile<'a>>,
) -> Result<Vec<KeyFile<'a>>, VolumeError> {
    let mut by_path = std::collections::BTreeMap::new();
    for file in files {
        if !stays_inside(&file.path) {
            return Err(VolumeError::Escape { volume: volume.to_owned(), path: file.path });
        }
        by_path.insert(file.path.clone(), file);
    }
    Ok(by_path.into_values().collect())
}

/// Whether a relative path names something below its start, and none of our own names.
fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Makes the folder show exactly these files; what they shall belong to is set
/// before any of them is seen. A folder that shows them already is left alone.
pub(super) fn write(folder: &Path, files: &[KeyFile<'_>], group: Option<u32>) -> io::Result<()> {
    if shows(folder, files) {
        return Ok(());
    }
    let version = next_version(folder)?;
    let new = folder.join(&version);
    DirBuilder::new().mode(0o755).create(&new)?;
    for file in files {
        let path = new.join(&file.path);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(&file.bytes)?;
        if let Some(user) = file.user {
            chown(&path, Some(user), None)?;
        }
        out.set_permissions(fs::Permissions::from_mode(file.mode & 0o777))?;
    }
    if let Some(group) = group {
        owner::give(&new, group, Access::Read)?;
    }
    let next = folder.join(DATA_NEXT);
    remove_file(&next)?;
    symlink(&version, &next)?;
    fs::rename(&next, folder.join(DATA))?;

    let wanted: BTreeSet<&str> =
        files.iter().filter_map(|file| file.path.split('/').next()).collect();
    for name in &wanted {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA || name == version || wanted.contains(name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether the folder shows these files and no others, with these modes.
fn shows(folder: &Path, files: &[KeyFile<'_>]) -> bool {
    let data = folder.join(DATA);
    let is_there = |file: &KeyFile<'_>| {
        let path = data.join(&file.path);
        let first = file.path.split('/').next().unwrap_or_default();
        fs::symlink_metadata(folder.join(first)).is_ok()
            && fs::symlink_metadata(&path).is_ok_and(|found| {
                found.is_file()
                    && found.len() == file.bytes.len() as u64
                    && found.permissions().mode() & 0o777 & file.mode == file.mode & 0o777
            })
            && fs::read(&path).is_ok_and(|bytes| bytes == *file.bytes)
    };
    data.exists() && files.iter().all(is_there) && n_files(&data) == files.len()
}

fn n_files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => n_files(&entry.path()),
            _ => 1,
        })
        .sum()
}

/// A name that no version in the folder has: `..<number>`.
fn next_version(folder: &Path) -> io::Result<String> {
    let mut highest = 0_u64;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("..")?.parse().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(format!("..{}", highest + 1))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::keys;
    use wire::pod::SourceV1;

    fn show(folder: &Path, data: &[(&str, &str)], items: &[(&str, &str, Option<u32>)]) {
        let source = SourceV1::ConfigMap("c".into());
        let all = keys(source.clone(), data);
        let items: Vec<KeyPathV1> = items
            .iter()
            .map(|(key, path, mode)| KeyPathV1 {
                key: (*key).into(),
                path: (*path).into(),
                mode: *mode,
            })
            .collect();
        let files = files(all.get(&source), &items, 0o644, true).unwrap();
        write(folder, &checked("v", files).unwrap(), None).unwrap();
    }

    fn visible(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_update_replaces_everything_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        show(at, &[("a", "1"), ("b", "1")], &[]);
        assert_eq!(visible(at), ["a", "b"]);
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "1");
        assert_eq!(fs::read_link(at.join("a")).unwrap(), Path::new("..data/a"));
        let opened = fs::File::open(at.join("a")).unwrap();
        show(at, &[("a", "2"), ("c", "2")], &[]);
        assert_eq!(visible(at), ["a", "c"]);
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "2");
        assert_eq!(io::read_to_string(opened).unwrap(), "1", "a reader keeps its version");
        let n_entries = fs::read_dir(at).unwrap().count();
        assert_eq!(n_entries, 4, "two links, ..data and one version");
        show(at, &[], &[]);
        assert_eq!(visible(at), Vec::<String>::new());
    }

    #[test]
    fn a_reader_never_sees_a_mixture() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_owned();
        show(&at, &[("a", "0"), ("b", "0")], &[]);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut n_read = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) || n_read == 0 {
                    // One version, held open by its folder.
                    let version = fs::read_link(at.join("..data")).unwrap();
                    let read = |name: &str| fs::read_to_string(at.join(&version).join(name));
                    if let (Ok(a), Ok(b)) = (read("a"), read("b")) {
                        assert_eq!(a, b);
                        n_read += 1;
                    }
                    assert!(
                        fs::read_to_string(at.join("a")).is_ok_and(|text| !text.is_empty())
                            || fs::metadata(at.join("a")).is_ok()
                    );
                }
                n_read
            });
            for n in 1..200 {
                let text = n.to_string();
                show(&at, &[("a", &text), ("b", &text)], &[]);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
    }

    #[test]
    fn items_have_their_paths_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        show(
            at,
            &[("a", "1"), ("b", "2")],
            &[("a", "deep/er/x", Some(0o400)), ("b", "y", None), ("gone", "z", None)],
        );
        assert_eq!(visible(at), ["deep", "y"]);
        assert_eq!(fs::read_to_string(at.join("deep/er/x")).unwrap(), "1");
        let mode = |path: &str| fs::metadata(at.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("deep/er/x"), mode("y")), (0o400, 0o644));
    }

    #[test]
    fn no_path_leaves_the_volume() {
        let source = SourceV1::Secret("s".into());
        let all = keys(source.clone(), &[("a", "1")]);
        for path in ["../x", "/x", "x/../../y", "", "..data", "..", "./x/../.."] {
            let items = [KeyPathV1 { key: "a".into(), path: path.into(), mode: None }];
            let result = checked("v", files(all.get(&source), &items, 0o644, false).unwrap());
            assert!(matches!(result, Err(VolumeError::Escape { .. })), "{path:?}: {result:?}");
        }
    }
}
