//! Volumes whose later mounts are seen on the other side, and a volume at `/dev`.
//!
//! libcontainer leaves the propagation of mounts as it finds it. So the shim
//! makes all mounts private in a namespace of its own, which gives every volume
//! none at all, and puts those that want some over them, in the container's
//! namespace, once it is there and before its program starts:
//!
//! ```text
//! host's namespace        open_tree(source, CLONE): still in the host's peer group
//! container's namespace   mount_setattr(slave, or as it is) ► move_mount(destination)
//! ```
//!
//! The destination is looked up with the container's root as the root, so no
//! link of the image leads out of it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use runtime::{ContainerSpec, Mount, Propagation};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const ATTR_RDONLY: u64 = 0x1;
const ATTR_NODEV: u64 = 0x4;

/// A tree of mounts that waits for its container.
#[derive(Debug)]
pub(crate) struct Tree {
    mount: Mount,
    tree: OwnedFd,
}

/// Takes what the container wants. Call in the host's mount namespace.
///
/// # Errors
/// A sentence: the kernel is too old, or the host's mount is not shared.
pub(crate) fn take(spec: &ContainerSpec) -> Result<Vec<Tree>, String> {
    let is_ours = |mount: &&Mount| {
        mount.propagation != Propagation::None || mount.destination.trim_end_matches('/') == "/dev"
    };
    spec.mounts
        .iter()
        .filter(is_ours)
        .map(|mount| {
            let path = &mount.source;
            if mount.propagation == Propagation::Bidirectional {
                let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
                    .map_err(|error| format!("cannot read the mounts: {error}"))?;
                let path = std::fs::canonicalize(path)
                    .map_err(|error| format!("cannot find {}: {error}", path.display()))?;
                check_shared(&mountinfo, &path)?;
            }
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree = open_tree(CWD, path, flags).map_err(|error| {
                format!("cannot take the mounts at {}: {error}", path.display())
            })?;
            Ok(Tree { mount: mount.clone(), tree })
        })
        .collect()
}

/// Whether mounts below `path` spread, in the runtimes' words where they do not.
fn check_shared(mountinfo: &str, path: &Path) -> Result<(), String> {
    let mut best: Option<(&str, bool)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let is_shared = fields.skip(1).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"));
        if path.starts_with(point) && best.is_none_or(|(known, _)| known.len() <= point.len()) {
            best = Some((point, is_shared));
        }
    }
    match best {
        Some((_, true)) => Ok(()),
        Some((point, false)) => Err(format!(
            "path {:?} is mounted on {point:?} but it is not a shared mount: run `mount \
             --make-rshared {point}` on the node",
            path.display()
        )),
        None => Err(format!("path {:?} is on no mount", path.display())),
    }
}

/// Puts the trees into the mount namespace of a process that waits there.
///
/// The caller is left in that namespace and is to leave it.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn put(trees: &[Tree], pid: i32, privileged: bool) -> io::Result<()> {
    if trees.is_empty() {
        return Ok(());
    }
    let open = |path: String, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)
    };
    let namespace = open(format!("/proc/{pid}/ns/mnt"), OFlags::RDONLY)?;
    let root = open(format!("/proc/{pid}/root"), OFlags::PATH | OFlags::DIRECTORY)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    for Tree { mount, tree } in trees {
        let mut set = 0;
        if mount.read_only {
            set |= ATTR_RDONLY;
        }
        if !privileged {
            set |= ATTR_NODEV;
        }
        let propagation = match mount.propagation {
            Propagation::None => libc::MS_PRIVATE,
            Propagation::HostToContainer => libc::MS_SLAVE,
            Propagation::Bidirectional => 0,
        };
        #[allow(clippy::unnecessary_cast)] // 32 bits wide on some targets.
        set_attributes(tree, false, set, 0)
            .and_then(|()| set_attributes(tree, true, 0, propagation as u64))?;
        if mount.read_only && mount.recursive_read_only {
            set_attributes(tree, true, ATTR_RDONLY, 0)?;
        }
        let inside = mount.destination.trim_start_matches('/');
        let target = rustix::fs::openat2(
            &root,
            inside,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree, "", &target, "", flags)?;
    }
    Ok(())
}

/// `mount_setattr(2)`, from Linux 5.12 on.
fn set_attributes(tree: &OwnedFd, recursive: bool, set: u64, propagation: u64) -> io::Result<()> {
    /// `struct mount_attr`.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    if set == 0 && propagation == 0 {
        return Ok(());
    }
    let attributes = MountAttr { set, clear: 0, propagation, user_namespace: 0 };
    let empty = CString::default();
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path ends with NUL, and the kernel reads
    // `size_of::<MountAttr>()` bytes of what outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
1 0 0:1 / / rw - ext4 /dev/a rw
2 1 0:2 / /mnt rw,nosuid shared:7 master:1 - ext4 /dev/b rw
3 2 0:3 / /mnt/own rw - tmpfs tmpfs rw,shared:no
";

    #[test]
    fn only_what_is_on_a_shared_mount_spreads() {
        for (path, expected) in [
            ("/mnt/a", "shared"),
            ("/mnt", "shared"),
            ("/mnt/own/b", "/mnt/own"),
            ("/mntx", "/"),
            ("/etc", "/"),
        ] {
            let found = match check_shared(MOUNTS, Path::new(path)) {
                Ok(()) => "shared".to_owned(),
                Err(text) => text,
            };
            let wanted = if expected == "shared" {
                expected.to_owned()
            } else {
                format!("is mounted on {expected:?} but it is not a shared mount")
            };
            assert!(found.contains(&wanted), "{path}: {found}");
        }
    }
}
