//! Which capabilities a container has.
//!
//! The default set is containerd's without `MKNOD`: a container that can make
//! a device node is one file permission away from the board's disk.

use std::str::FromStr;

use caps::Capability;
use runtime::{LaunchError, reason};

/// What a container has that asks for nothing.
pub(crate) const DEFAULT: [Capability; 13] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// A set of capabilities.
pub(crate) type Set = caps::CapsHashSet;

/// The names in OCI form (`CAP_CHOWN`), in the kernel's order.
pub(crate) fn names(set: &Set) -> Vec<String> {
    let mut sorted: Vec<Capability> = set.iter().copied().collect();
    sorted.sort_unstable_by_key(Capability::index);
    sorted.iter().map(ToString::to_string).collect()
}

/// The default set with what is added and dropped, as containerd does it:
/// `ALL` first, then single names, and a drop wins over an add.
///
/// `available` is what this process has to give.
///
/// # Errors
/// A name that is no capability.
pub(crate) fn resolve(
    add: &[String],
    drop: &[String],
    available: &Set,
) -> Result<Set, LaunchError> {
    let (add_all, add) = parse(add)?;
    let (drop_all, drop) = parse(drop)?;
    let mut set: Set = if add_all {
        available.clone()
    } else if drop_all {
        Set::new()
    } else {
        DEFAULT.into_iter().collect()
    };
    set.extend(add);
    set.retain(|capability| !drop.contains(capability) && available.contains(capability));
    Ok(set)
}

fn parse(names: &[String]) -> Result<(bool, Set), LaunchError> {
    let mut all = false;
    let mut set = Set::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || upper == "CAP_ALL" {
            all = true;
            continue;
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let capability = Capability::from_str(&full).map_err(|_| {
            LaunchError::new(
                reason::CREATE_CONTAINER_ERROR,
                format!("unknown capability {name:?} in securityContext.capabilities"),
            )
        })?;
        set.insert(capability);
    }
    Ok((all, set))
}

/// What this process may pass on.
pub(crate) fn available() -> Set {
    caps::read(None, caps::CapSet::Permitted).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], expected: &str) {
        let all = caps::all();
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let found = match resolve(&own(add), &own(drop), &all) {
            Ok(set) if set == all => "all".to_owned(),
            Ok(set) => names(&set).join(" ").replace("CAP_", ""),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_default_set_has_no_mknod() {
        let expected = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP \
                        NET_BIND_SERVICE NET_RAW SYS_CHROOT AUDIT_WRITE SETFCAP";
        check(&[], &[], expected);
    }

    #[test]
    fn adds_and_drops_follow_containerd() {
        check(&[], &["ALL"], "");
        check(&["net_bind_service"], &["ALL"], "NET_BIND_SERVICE");
        check(&["ALL"], &[], "all");
        check(&["SYS_TIME"], &["ALL", "CHOWN"], "SYS_TIME");
        check(&["SYS_TIME", "CAP_MKNOD"], &["SYS_TIME", "ALL"], "MKNOD");
        check(
            &["NONSENSE"],
            &[],
            "unknown capability \"NONSENSE\" in securityContext.capabilities",
        );
    }

    #[test]
    fn what_the_agent_lacks_is_not_given() {
        let few: Set = [Capability::CAP_CHOWN].into();
        assert_eq!(names(&resolve(&["ALL".into()], &[], &few).unwrap()), ["CAP_CHOWN"]);
    }
}
