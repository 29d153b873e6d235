//! What the proxy keeps of root's power: four capabilities for good, and a few
//! folders to write to. Whatever it runs (`nft`) keeps no more.
//!
//! | capability | for |
//! | --- | --- |
//! | `NET_ADMIN` | routes, rules, transparent sockets, attaching the program |
//! | `NET_RAW` | answers to datagrams |
//! | `NET_BIND_SERVICE` | ports below 1024: LoadBalancers, host ports, names |
//! | `BPF` | the program and its maps |
//!
//! It stays user 0, who owns its folders, without what makes user 0 mighty.
//! Holds for the thread that calls, and all that it starts.

use std::io;
use std::path::PathBuf;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const KEPT: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_BPF,
];

/// What children write to that have nothing to say.
const NOWHERE: &str = "/dev/null";

/// Takes as many descriptors as this process may have, for connections have two each.
pub(crate) fn raise_limits() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // Kernels before 5.11 count maps and programs as locked memory.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, nix::libc::RLIM_INFINITY, nix::libc::RLIM_INFINITY);
}

/// Gives up all but the above. `writable` are the folders that it goes on writing to.
/// False where the kernel has no Landlock, and other folders stay open.
///
/// # Errors
/// The kernel refuses; the process should not go on.
pub(crate) fn confine(writable: &[PathBuf]) -> io::Result<bool> {
    let failed = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    // Of a user that had fewer to begin with, nothing is asked.
    let has = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|cap| has.contains(cap)).collect();
    if has.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)? {
            if !kept.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    nix::sys::prctl::set_no_new_privs()?;
    restrict_files(writable).map_err(|error| io::Error::other(error.to_string()))
}

/// Landlock, where the kernel has it.
fn restrict_files(writable: &[PathBuf]) -> Result<bool, landlock::RulesetError> {
    let abi = ABI::V3;
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(["/"], read))?
        .add_rules(path_beneath_rules([NOWHERE], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(writable, AccessFs::from_all(abi) & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_gone_and_folders_are_closed() {
        let (open, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let writable = [open.path().to_owned()];
        let outside = closed.path().join("x");
        std::thread::spawn(move || {
            let has_landlock = confine(&writable).unwrap();
            let left = caps::read(None, CapSet::Permitted).unwrap();
            assert_eq!(left, KEPT.into_iter().collect());
            assert_eq!(caps::read(None, CapSet::Bounding).unwrap(), left);
            std::fs::write(writable[0].join("x"), "x").unwrap();
            assert_eq!(std::fs::write(outside, "x").is_err(), has_landlock);
            assert!(nix::mount::umount("/proc").is_err(), "CAP_SYS_ADMIN is gone");
        })
        .join()
        .unwrap();
    }
}
