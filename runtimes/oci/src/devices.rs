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
}
