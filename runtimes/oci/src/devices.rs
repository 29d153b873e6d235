//! Which device nodes a container may use: a handful that lead nowhere.
//!
//! On cgroup v1 the device controller enforces it. On v2 there is no such
//! controller; a BPF program on the cgroup does ([`bpf`]). libcontainer does
//! the second only with a C library, and the first with more devices than we
//! want, so both are done here, between its create and its start.

mod bpf;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use runtime::cgroup::Hierarchies;

/// How the device rules are enforced on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRules {
    /// By the device controller of cgroup v1.
    Controller,
    /// By a BPF program on the container's cgroup.
    Bpf,
    /// Not at all, and why: containers are kept from device nodes only by
    /// `nodev` mounts and the missing `CAP_MKNOD`.
    Missing(String),
}

impl fmt::Display for DeviceRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("cgroup v1 device controller"),
            Self::Bpf => f.write_str("BPF program on the cgroup"),
            Self::Missing(why) => write!(
                f,
                "device rules are not enforced ({why}): the kernel needs CONFIG_CGROUP_BPF and \
                 CONFIG_BPF_SYSCALL, or cgroup v1 with CONFIG_CGROUP_DEVICE"
            ),
        }
    }
}

/// Kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk and the like.
    Block,
    /// Everything else.
    Char,
}

/// Make a node.
pub const MKNOD: u8 = 1;
/// Open for reading.
pub const READ: u8 = 2;
/// Open for writing.
pub const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// One permission. `None` matches every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Block or character.
    pub kind: Kind,
    /// Driver.
    pub major: Option<u32>,
    /// Device of the driver.
    pub minor: Option<u32>,
    /// Some of [`MKNOD`], [`READ`] and [`WRITE`].
    pub access: u8,
}

const fn char_device(major: u32, minor: Option<u32>) -> Rule {
    Rule { kind: Kind::Char, major: Some(major), minor, access: ALL }
}

/// What every container may use.
pub(crate) const DEFAULT: [Rule; 8] = [
    char_device(1, Some(3)), // null
    char_device(1, Some(5)), // zero
    char_device(1, Some(7)), // full
    char_device(1, Some(8)), // random
    char_device(1, Some(9)), // urandom
    char_device(5, Some(0)), // tty
    char_device(5, Some(2)), // ptmx
    char_device(136, None),  // pts
];

impl fmt::Display for Rule {
    /// As `devices.allow` reads it: `c 1:3 rwm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Char { 'c' } else { 'b' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".into(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// Deepest folder of /dev that is looked into.
const DEPTH_MAX: usize = 6;

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it is, on the host as in the container.
    pub path: PathBuf,
    /// Block or character.
    pub kind: Kind,
    /// Driver.
    pub major: u32,
    /// Device of the driver.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Node {
    /// The node at a path below `/dev`.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn at(path: &Path) -> io::Result<Self> {
        let not = |what: &str| {
            let text = format!("{} {what}", path.display());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let is_plain = path.components().all(|part| {
            matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_))
        });
        if !path.starts_with("/dev/") || !is_plain {
            return Err(not("is not below /dev"));
        }
        let found = fs::metadata(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let kind = found.file_type();
        let kind = if kind.is_block_device() {
            Kind::Block
        } else if kind.is_char_device() {
            Kind::Char
        } else {
            return Err(not("is not a device node"));
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
            major: rustix::fs::major(found.rdev()),
            minor: rustix::fs::minor(found.rdev()),
            mode: found.mode() & 0o777,
            uid: found.uid(),
            gid: found.gid(),
        })
    }

    /// Every use of it.
    #[must_use]
    pub fn rule(&self) -> Rule {
        Rule { kind: self.kind, major: Some(self.major), minor: Some(self.minor), access: ALL }
    }
}

/// All device nodes of the host, but those every container has one of its own of.
pub(crate) fn all() -> Vec<Node> {
    let mut found = Vec::new();
    look_into(Path::new("/dev"), 0, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn look_into(folder: &Path, depth: usize, found: &mut Vec<Node>) {
    const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "ptmx", "console"];
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_own = depth == 0 && OWN.iter().any(|own| entry.file_name() == *own);
        // Links are left out: what they lead to is found where it is.
        let Ok(kind) = entry.file_type() else { continue };
        if is_own || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            if depth < DEPTH_MAX {
                look_into(&path, depth + 1, found);
            }
        } else if let Ok(node) = Node::at(&path) {
            found.push(node);
        }
    }
}

/// Lets a cgroup use every device that the group above it may use.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn allow_all(hierarchies: &Hierarchies, cgroup: &str) -> io::Result<()> {
    match hierarchies.controller_folder("devices", cgroup) {
        Some(folder) => fs::write(folder.join("devices.allow"), "a"),
        // Without a program a group of version 2 may do what those above it may.
        None => Ok(()),
    }
}

/// Denies a cgroup every device but those of `rules`.
///
/// # Errors
/// The kernel refuses; where it has no means at all, nothing is done and no
/// error is given (the node reports it, see [`probe_device_rules`]).
pub(crate) fn enforce(
    hierarchies: &Hierarchies,
    cgroup: &str,
    rules: &[Rule],
) -> io::Result<DeviceRules> {
    if let Some(folder) = hierarchies.controller_folder("devices", cgroup) {
        fs::write(folder.join("devices.deny"), "a")?;
        for rule in rules {
            fs::write(folder.join("devices.allow"), rule.to_string())?;
        }
        return Ok(DeviceRules::Controller);
    }
    let Some(folder) = hierarchies.unified_folder(cgroup) else {
        return Ok(DeviceRules::Missing("no cgroup file system".into()));
    };
    match bpf::load(&bpf::program(rules)) {
        Ok(program) => {
            bpf::attach(&program, &fs::File::open(folder)?)?;
            Ok(DeviceRules::Bpf)
        }
        Err(error) => Ok(DeviceRules::Missing(format!("bpf: {error}"))),
    }
}

/// How device rules would be enforced, without touching any cgroup.
#[must_use]
pub fn probe_device_rules(hierarchies: &Hierarchies) -> DeviceRules {
    if hierarchies.support().devices_v1 {
        return DeviceRules::Controller;
    }
    match bpf::load(&bpf::program(&DEFAULT)) {
        Ok(_) => DeviceRules::Bpf,
        Err(error) => DeviceRules::Missing(format!("bpf: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_the_controller_reads_them() {
        assert_eq!(DEFAULT[0].to_string(), "c 1:3 rwm");
        assert_eq!(DEFAULT[7].to_string(), "c 136:* rwm");
        let rule = Rule { kind: Kind::Block, major: None, minor: None, access: READ };
        assert_eq!(rule.to_string(), "b *:* r");
    }

    #[test]
    fn nodes_are_found_below_dev_only() {
        let null = Node::at(Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), (Kind::Char, 1, 3));
        assert_eq!(null.rule().to_string(), "c 1:3 rwm");
        for (path, expected) in [
            ("/dev", "/dev is not a device node"),
            ("/etc/passwd", "/etc/passwd is not below /dev"),
            ("/dev/../etc/passwd", "/dev/../etc/passwd is not below /dev"),
            ("/dev/pts", "/dev/pts is not a device node"),
            ("/dev/none", "/dev/none: No such file or directory (os error 2)"),
        ] {
            assert_eq!(Node::at(Path::new(path)).unwrap_err().to_string(), expected);
        }
        let all = all();
        assert!(all.contains(&null), "{all:?}");
        assert!(!all.iter().any(|node| node.path.starts_with("/dev/pts")));
    }
}
