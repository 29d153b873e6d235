//! One file or folder inside a volume, found without ever leaving it.
//!
//! A container may put any link into a volume it writes, at any moment. So the
//! path is resolved by the kernel with the volume as its root
//! (`openat2(RESOLVE_IN_ROOT)`), and what was found is bind-mounted by its file
//! descriptor onto a path that only the agent writes: nothing can be put in its
//! place afterwards.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::{VolumeError, is_mount};

const IN_VOLUME: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Makes `target` show what is at `path` in the volume. Makes missing folders
/// where `make` says so, as the kubelet does.
pub(super) fn bind(
    volume: &str,
    root: &Path,
    path: &str,
    target: &Path,
    make: bool,
) -> Result<(), VolumeError> {
    let io = |operation| {
        let (volume, path) = (volume.to_owned(), root.join(path));
        move |source: io::Error| VolumeError::Io { volume, operation, path, source }
    };
    let is_inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_inside {
        return Err(VolumeError::Escape { volume: volume.to_owned(), path: path.to_owned() });
    }
    let found = find(root, path, make).map_err(io("open"))?;
    let is_folder = rustix::fs::fstat(&found)
        .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
        .map_err(io::Error::from)
        .map_err(io("look at"))?;
    prepare(target, is_folder).map_err(io("prepare the mount of"))?;
    mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), target)
        .map_err(io::Error::from)
        .map_err(io("mount"))
}

fn find(root: &Path, path: &str, make: bool) -> io::Result<OwnedFd> {
    let folder =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&folder, path, flags, Mode::empty(), IN_VOLUME)
    };
    match open(Path::new(path)) {
        Err(Errno::NOENT) if make => {}
        other => return Ok(other?),
    }
    // As the kubelet: what is made is open to whom the volume is.
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&folder)?.st_mode & 0o7777);
    let mut done = std::path::PathBuf::new();
    let mut last = folder.try_clone()?;
    for part in Path::new(path).components() {
        let Component::Normal(name) = part else { continue };
        done.push(name);
        last = match open(&done) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&last, name, Mode::from_raw_mode(0o750)) {
                    Ok(()) => {
                        let flags =
                            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let made = rustix::fs::openat(&last, name, flags, Mode::empty())?;
                        rustix::fs::chmod(format!("/proc/self/fd/{}", made.as_raw_fd()), mode)?;
                    }
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open(&done)?
            }
            other => other?,
        };
    }
    Ok(last)
}

/// An empty file or folder to mount onto, of the kind that is mounted.
fn prepare(target: &Path, is_folder: bool) -> io::Result<()> {
    while is_mount(target) {
        unmount(target, UnmountFlags::DETACH)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() == is_folder => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir(target)?,
        Ok(_) => fs::remove_file(target)?,
        Err(_) => {}
    }
    if is_folder { fs::create_dir(target) } else { fs::File::create(target).map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn check(build: impl FnOnce(&Path), path: &str, make: bool) -> Result<String, VolumeError> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("volume");
        let target = folder.path().join("target");
        fs::create_dir(&root).unwrap();
        fs::write(folder.path().join("secret"), "outside").unwrap();
        build(&root);
        bind("v", &root, path, &target, make)?;
        let seen = if target.is_dir() {
            let names = fs::read_dir(&target).unwrap();
            format!("folder {}", names.count())
        } else {
            fs::read_to_string(&target).unwrap()
        };
        unmount(&target, UnmountFlags::DETACH).unwrap();
        Ok(seen)
    }

    #[test]
    fn files_and_folders_are_found() {
        let tree = |root: &Path| {
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::write(root.join("a/b/f"), "inside").unwrap();
            symlink("a/b/f", root.join("link")).unwrap();
        };
        assert_eq!(check(tree, "a/b/f", true).unwrap(), "inside");
        assert_eq!(check(tree, "a/b", true).unwrap(), "folder 1");
        assert_eq!(check(tree, "link", true).unwrap(), "inside");
        assert_eq!(check(tree, "new/er", true).unwrap(), "folder 0");
        check(tree, "new/er", false).unwrap_err();
    }

    #[test]
    fn a_folder_that_is_made_is_open_to_whom_the_volume_is() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        find(folder.path(), "new/er", true).unwrap();
        assert_eq!(mode(&folder.path().join("new")), 0o2775);
        assert_eq!(mode(&folder.path().join("new/er")), 0o2775);
    }

    #[test]
    fn no_link_leads_out() {
        for (name, to) in [
            ("up", "../secret"),
            ("far", "../../../../../../etc/passwd"),
            ("abs", "/etc/passwd"),
            ("magic", "/proc/self/root/etc/passwd"),
        ] {
            let result = check(|root| symlink(to, root.join(name)).unwrap(), name, false);
            assert!(result.is_err(), "{name}: {result:?}");
        }
        let through = check(|root| symlink("..", root.join("d")).unwrap(), "d/secret", false);
        assert!(through.is_err(), "{through:?}");
        // Made inside, where the link points when the volume is the root.
        let made = check(|root| symlink("/etc", root.join("d")).unwrap(), "d/new", true);
        assert!(!Path::new("/etc/new").exists());
        drop(made);
        for path in ["../secret", "/etc/passwd", "a/../../secret"] {
            let result = check(|_| {}, path, true);
            assert!(matches!(result, Err(VolumeError::Escape { .. })), "{path}: {result:?}");
        }
    }
}
