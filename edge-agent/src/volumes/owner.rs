//! Gives a volume to a group, as the kubelet does for `fsGroup`.
//!
//! Containers write into volumes while this walks through them, so every step
//! goes by a descriptor of the folder it is in and follows no link: nothing
//! outside the volume ever changes hands.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawMode};

/// What the group may do with the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read them.
    Read,
    /// Read and write them.
    ReadWrite,
}

impl Access {
    /// Bits that files get.
    fn bits(self) -> RawMode {
        match self {
            Self::Read => 0o440,
            Self::ReadWrite => 0o660,
        }
    }

    /// Bits that folders get: what is made in them belongs to the group too.
    fn folder_bits(self) -> RawMode {
        self.bits() | 0o2110
    }
}

/// Deepest folder that is given; a bound against what a container can build.
const DEPTH_MAX: usize = 64;

/// Whether the root of a volume is the group's already (`OnRootMismatch`).
pub(super) fn is_given(folder: &Path, group: u32, access: Access) -> bool {
    fs::metadata(folder).is_ok_and(|found| {
        let bits = access.folder_bits();
        #[allow(clippy::unnecessary_cast)] // 16 bits wide on some targets.
        let bits = bits as u32;
        found.gid() == group && found.mode() & bits == bits
    })
}

/// Gives a folder and all that is in it to the group.
///
/// # Errors
/// The kernel refuses. What went away meanwhile is fine.
pub(super) fn give(folder: &Path, group: u32, access: Access) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(folder, flags, Mode::empty())?;
    give_below(&root, group, access, 0)?;
    // The root last: that it is given says that all is.
    give_folder(root.as_fd(), group, access)
}

fn give_folder(folder: BorrowedFd<'_>, group: u32, access: Access) -> io::Result<()> {
    rustix::fs::fchown(folder, None, Some(Gid::from_raw(group)))?;
    let mode = rustix::fs::fstat(folder)?.st_mode & 0o7777;
    Ok(rustix::fs::fchmod(folder, Mode::from_raw_mode(mode | access.folder_bits()))?)
}

fn give_below(folder: &OwnedFd, group: u32, access: Access, depth: usize) -> io::Result<()> {
    if depth == DEPTH_MAX {
        return Ok(());
    }
    let owned = Gid::from_raw(group);
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        // O_PATH neither waits for a FIFO nor wakes a device.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let below = rustix::fs::openat(&found, ".", flags, Mode::empty())?;
            give_below(&below, group, access, depth + 1)?;
            give_folder(below.as_fd(), group, access)?;
            continue;
        }
        let at = AtFlags::EMPTY_PATH;
        rustix::fs::chownat(&found, "", None, Some(owned), at)?;
        if kind != FileType::Symlink {
            let mode = rustix::fs::fstat(&found)?.st_mode & 0o7777;
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
            let mode = Mode::from_raw_mode(mode | access.bits());
            rustix::fs::chmod(path.as_str(), mode)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn everything_in_a_volume_is_given_and_nothing_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("volume");
        let outside = folder.path().join("outside");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(&outside, "").unwrap();
        fs::write(root.join("a/b/file"), "").unwrap();
        symlink(&outside, root.join("a/link")).unwrap();
        symlink("..", root.join("a/up")).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
        };
        mode(&outside, 0o600);
        mode(&root.join("a/b/file"), 0o600);
        mode(&root, 0o755);
        let seen = |path: &Path| {
            let found = fs::symlink_metadata(path).unwrap();
            (found.gid(), found.mode() & 0o7777)
        };
        let before = seen(&outside);
        assert!(!is_given(&root, 4321, Access::ReadWrite));
        give(&root, 4321, Access::ReadWrite).unwrap();
        assert!(is_given(&root, 4321, Access::ReadWrite));
        assert!(!is_given(&root, 4322, Access::ReadWrite));
        assert_eq!(seen(&root), (4321, 0o2775));
        assert_eq!(seen(&root.join("a/b")), (4321, 0o2775));
        assert_eq!(seen(&root.join("a/b/file")), (4321, 0o660));
        assert_eq!(seen(&root.join("a/link")).0, 4321);
        assert_eq!(seen(&outside), before);
        give(&root.join("a/b"), 4322, Access::Read).unwrap();
        assert_eq!(seen(&root.join("a/b/file")), (4322, 0o660));
    }
}
