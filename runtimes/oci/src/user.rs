//! Who a container runs as: the image's `USER` and the pod's `securityContext`,
//! looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! Those files are the image's, so they are read as untrusted text: bounded,
//! and lines that make no sense are skipped.

use runtime::{ContainerSpec, LaunchError, reason};

/// Numbers, as the kernel wants them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

/// Most supplementary groups taken from an image.
const GROUPS_MAX: usize = 1024;

/// Finds the user. `passwd` and `group` are empty where the image has none.
///
/// # Errors
/// The image does not know the name, or `runAsNonRoot` is broken.
pub(crate) fn resolve(spec: &ContainerSpec, passwd: &str, group: &str) -> Result<Ids, LaunchError> {
    let user = &spec.user;
    let (name, group_name) = match user.name.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (user.name.as_str(), None),
    };
    check_non_root(spec, name)?;
    let unknown = |kind: &str, name: &str| {
        LaunchError::new(
            reason::CREATE_CONTAINER_ERROR,
            format!(
                "image {:?} has no {kind} {name:?}: add it to the image or set \
                 securityContext.runAs{} to a number",
                spec.image,
                if kind == "user" { "User" } else { "Group" },
            ),
        )
    };
    let numeric = user.uid.or_else(|| if name.is_empty() { Some(0) } else { name.parse().ok() });
    let account = accounts(passwd).find(|a| match numeric {
        Some(uid) => a.uid == uid,
        None => a.name == name,
    });
    let uid = match (numeric, &account) {
        (Some(uid), _) => uid,
        (None, Some(account)) => account.uid,
        (None, None) => return Err(unknown("user", name)),
    };
    let gid = match (user.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(wanted)) if user.uid.is_none() => match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let found = groups(group).find(|g| g.name == wanted);
                found.ok_or_else(|| unknown("group", wanted))?.gid
            }
        },
        _ => account.as_ref().map_or(0, |account| account.gid),
    };
    let member = account.map(|account| account.name).unwrap_or_default();
    let mut more: Vec<u32> = if member.is_empty() {
        Vec::new()
    } else {
        let of = |g: &Group<'_>| g.members.split(',').any(|m| m.trim() == member);
        groups(group).filter(of).map(|g| g.gid).take(GROUPS_MAX).collect()
    };
    // As the kubelet's runtimes do it, the primary group is among the supplementary ones.
    more.push(gid);
    more.extend(&user.groups);
    more.sort_unstable();
    more.dedup();
    Ok(Ids { uid, gid, groups: more })
}

/// The kubelet's check, with its words.
fn check_non_root(spec: &ContainerSpec, name: &str) -> Result<(), LaunchError> {
    if !spec.user.non_root {
        return Ok(());
    }
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        spec.pod, spec.namespace, spec.pod_uid, spec.container
    );
    let message = match (spec.user.uid, name.parse::<u32>()) {
        (Some(0), _) => format!("container's runAsUser breaks non-root policy {place}"),
        (Some(_), _) => return Ok(()),
        (None, Ok(0)) => format!("container has runAsNonRoot and image will run as root {place}"),
        (None, Ok(_)) => return Ok(()),
        (None, Err(_)) if name.is_empty() => {
            format!("container has runAsNonRoot and image will run as root {place}")
        }
        (None, Err(_)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), \
             cannot verify user is non-root {place}"
        ),
    };
    Err(LaunchError::new(reason::CREATE_CONTAINER_CONFIG_ERROR, message))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.trim();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.trim();
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::spec;
    use runtime::User;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n#\nbad:x:y:0\napp:x:1000:1001:App:/:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\ngpio:x:997:other,app\nvideo:x:44:app\n";

    fn check(name: &str, uid: Option<u32>, gid: Option<u32>, non_root: bool, expected: &str) {
        let mut spec = spec();
        spec.user = User { name: name.into(), uid, gid, non_root, groups: vec![] };
        let found = match resolve(&spec, PASSWD, GROUP) {
            Ok(ids) => format!("{}:{} {:?}", ids.uid, ids.gid, ids.groups),
            Err(error) => format!("{}: {error}", error.reason),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn names_and_numbers_are_found() {
        check("", None, None, false, "0:0 [0]");
        check("app", None, None, false, "1000:1001 [44, 997, 1001]");
        check("1000", None, None, false, "1000:1001 [44, 997, 1001]");
        check("1000:5", None, None, false, "1000:5 [5, 44, 997]");
        check("app:gpio", None, None, false, "1000:997 [44, 997]");
        check("4711", None, None, false, "4711:0 [0]");
        check("app", Some(4711), Some(7), false, "4711:7 [7]");
        check("app:gpio", Some(0), None, false, "0:0 [0]");
    }

    #[test]
    fn unknown_names_say_what_to_do() {
        check(
            "nobody",
            None,
            None,
            false,
            "CreateContainerError: image \"demo:v1\" has no user \"nobody\": add it to the image \
             or set securityContext.runAsUser to a number",
        );
        check(
            "app:nogroup",
            None,
            None,
            false,
            "CreateContainerError: image \"demo:v1\" has no group \"nogroup\": add it to the \
             image or set securityContext.runAsGroup to a number",
        );
    }

    #[test]
    fn non_root_is_checked_as_the_kubelet_does() {
        let place = "(pod: \"web_default(uid-1)\", container: main)";
        let error = |text: &str| format!("CreateContainerConfigError: {text} {place}");
        check("1000", None, None, true, "1000:1001 [44, 997, 1001]");
        check("app", Some(1000), None, true, "1000:1001 [44, 997, 1001]");
        check(
            "",
            None,
            None,
            true,
            &error("container has runAsNonRoot and image will run as root"),
        );
        check(
            "0",
            None,
            None,
            true,
            &error("container has runAsNonRoot and image will run as root"),
        );
        check("app", Some(0), None, true, &error("container's runAsUser breaks non-root policy"));
        check(
            "app",
            None,
            None,
            true,
            &error(
                "container has runAsNonRoot and image has non-numeric user (app), cannot verify \
                 user is non-root",
            ),
        );
    }
}
