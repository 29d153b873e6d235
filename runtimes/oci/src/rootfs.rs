//! The container's root: its image's layers under a writable one, mounted where
//! only the shim and the container can see it.
//!
//! The shim enters a mount namespace of its own, mounts the overlay there, and
//! leaves again once the container has its copy. Nothing is ever mounted on the
//! host, so nothing has to be unmounted, also after a crash.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::LinkNameSpaceType;

/// Longest option string of mount(2): one page.
const OPTIONS_BYTES_MAX: usize = 4000;

/// Longest `/etc/passwd` or `/etc/group` that is read, in bytes.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

/// A mount namespace of our own, until it is dropped.
#[derive(Debug)]
pub(crate) struct PrivateMounts {
    host: OwnedFd,
}

impl PrivateMounts {
    /// Enters a copy of the host's mounts, where ours do not spread.
    ///
    /// # Errors
    /// The process has more than one thread, or may not.
    pub(crate) fn enter() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let host = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        let entered = Self { host };
        // What the container gets of these spreads nowhere; see `propagate` for what does.
        let spread = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", spread)?;
        Ok(entered)
    }
}

impl Drop for PrivateMounts {
    fn drop(&mut self) {
        // If this failed, the namespace would live as long as the shim, no longer.
        let _ = rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&self.host),
            Some(LinkNameSpaceType::Mount),
        );
        let _ = rustix::process::chdir("/");
    }
}

/// Why there is no root.
#[derive(Debug)]
pub(crate) enum RootError {
    /// The kernel has no overlayfs.
    NoOverlay,
    /// More layers than fit into one mount.
    TooManyLayers(usize),
    /// A path that overlayfs cannot be told.
    BadPath(PathBuf),
    /// A layer is not there.
    MissingLayer(PathBuf),
    Io(&'static str, io::Error),
}

impl std::fmt::Display for RootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoOverlay => {
                f.write_str("this kernel has no overlayfs: load the module `overlay`")
            }
            Self::TooManyLayers(n) => {
                write!(f, "the image has {n} layers, more than this kernel mounts: squash it")
            }
            Self::BadPath(path) => {
                write!(f, "{} holds a comma or colon, which overlayfs cannot mount", path.display())
            }
            Self::MissingLayer(path) => {
                write!(f, "layer {} is missing: pull the image again", path.display())
            }
            Self::Io(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

/// Mounts the overlay and says where. Call inside [`PrivateMounts`].
///
/// # Errors
/// See [`RootError`].
pub(crate) fn mount(layers: &[PathBuf], scratch: &Path) -> Result<PathBuf, RootError> {
    let (upper, work, rootfs) =
        (scratch.join("upper"), scratch.join("work"), scratch.join("rootfs"));
    for folder in [&upper, &work, &rootfs] {
        fs::create_dir_all(folder).map_err(|e| RootError::Io("make the writable layer", e))?;
    }
    if let Some(missing) = layers.iter().find(|layer| !layer.is_dir()) {
        return Err(RootError::MissingLayer(missing.clone()));
    }
    // An image without layers is legal, an overlay without a lower folder is not.
    let empty = scratch.join("empty");
    let mut lower: Vec<&Path> = layers.iter().rev().map(PathBuf::as_path).collect();
    if lower.is_empty() {
        fs::create_dir_all(&empty).map_err(|e| RootError::Io("make the writable layer", e))?;
        lower.push(&empty);
    }
    // Relative names are shorter, and the option string is bounded.
    let parent = lower[0].parent().filter(|p| lower.iter().all(|l| l.parent() == Some(*p)));
    if let Some(parent) = parent {
        rustix::process::chdir(parent).map_err(|e| RootError::Io("enter the layers", e.into()))?;
        lower = lower.iter().filter_map(|l| l.file_name().map(Path::new)).collect();
    }
    for path in lower.iter().copied().chain([upper.as_path(), &work]) {
        if path.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b',' | b':' | b'\\')) {
            return Err(RootError::BadPath(path.to_owned()));
        }
    }
    let names: Vec<String> = lower.iter().map(|l| l.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        names.join(":"),
        upper.display(),
        work.display()
    );
    let result = if options.len() < OPTIONS_BYTES_MAX {
        // What a container writes dies with it: `volatile` spares the flash every
        // fsync. Kernels before 5.10 do not know it.
        match mount_with(&rootfs, &format!("{options},volatile")) {
            Err(Errno::INVAL) => mount_with(&rootfs, &options),
            result => result,
        }
    } else {
        match mount_many(&rootfs, &lower, &upper, &work) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::TOOBIG) => {
                return Err(RootError::TooManyLayers(layers.len()));
            }
            result => result,
        }
    };
    match result {
        Ok(()) => Ok(rootfs),
        Err(Errno::NODEV) => Err(RootError::NoOverlay),
        Err(error) => Err(RootError::Io("mount the overlay", error.into())),
    }
}

fn mount_with(target: &Path, options: &str) -> Result<(), Errno> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::NODEV, Some(&*options))
}

/// One layer a call, from Linux 6.5 on.
fn mount_many(target: &Path, lower: &[&Path], upper: &Path, work: &Path) -> Result<(), Errno> {
    use rustix::mount as m;
    let context = m::fsopen("overlay", m::FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower {
        m::fsconfig_set_string(&context, "lowerdir+", *layer)?;
    }
    m::fsconfig_set_string(&context, "upperdir", upper)?;
    m::fsconfig_set_string(&context, "workdir", work)?;
    m::fsconfig_set_flag(&context, "volatile")?;
    m::fsconfig_create(&context)?;
    let mounted = m::fsmount(
        &context,
        m::FsMountFlags::FSMOUNT_CLOEXEC,
        m::MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    m::move_mount(&mounted, "", CWD, target, m::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A text file of the image, found without ever leaving the image; empty where
/// there is none, or where it is anything but a file.
pub(crate) fn read_text(rootfs: &Path, path: &str) -> String {
    let read = || -> io::Result<String> {
        let root = open_root(rootfs)?;
        // Not to be stopped by a FIFO in the file's place.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), IN_ROOT)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        fs::File::from(file).take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// Makes a folder in the image, and those above it, as runtimes do for `workingDir`.
///
/// # Errors
/// Something else is in the way, or a link points nowhere.
pub(crate) fn make_folder(rootfs: &Path, path: &str) -> io::Result<()> {
    let root = open_root(rootfs)?;
    let mut reached = PathBuf::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = if reached.as_os_str().is_empty() { Path::new(".") } else { &reached };
        let parent = rustix::fs::openat2(&root, parent, flags, Mode::empty(), IN_ROOT)?;
        match rustix::fs::mkdirat(&parent, part, 0o755.into()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        reached.push(part);
    }
    Ok(())
}

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

fn open_root(rootfs: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(rootfs, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_from_inside_the_image_only() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(folder.path().join("secret"), "host").unwrap();
        fs::write(root.join("etc/real"), "image").unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link("../../../../secret", "etc/passwd");
        link("/etc/real", "etc/group");
        assert_eq!(read_text(&root, "etc/passwd"), "");
        assert_eq!(read_text(&root, "etc/group"), "image");
        assert_eq!(read_text(&root, "etc"), "");
    }

    #[test]
    fn folders_are_made_inside_the_image_only() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../..", root.join("up")).unwrap();
        make_folder(&root, "/link/a/b").unwrap();
        assert!(root.join("real/a/b").is_dir());
        make_folder(&root, "/up/inside").unwrap();
        assert!(root.join("inside").is_dir());
        assert!(!folder.path().join("inside").exists());
    }
}
