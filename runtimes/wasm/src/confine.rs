//! How the process of a guest gives up what it could do.
//!
//! In this order, because each step needs what a later one takes away:
//!
//! 1. [`enter`]: the pod's namespaces, and a root of its own that holds the
//!    container's mounts and nothing else;
//! 2. [`drop_privileges`]: user and group, every capability, no new ones ever,
//!    no core dumps, Landlock on top of the root, and the system call filter.
//!
//! Needs a process with one thread.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, path_beneath_rules,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::unistd::{Gid, Uid, pivot_root, setgroups, setresgid, setresuid};
use runtime::{ContainerSpec, Mount, Propagation, Sandbox};

use crate::seccomp::{self, Profile};

/// Who a guest runs as where nothing else is said: `nobody`.
pub(crate) const NOBODY: u32 = 65534;

/// Most open files of a guest's process. A guest that wants more is told there
/// are too many.
const FILES_MAX: u64 = 1024;

/// What could not be done, for people.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(crate) struct ConfineError {
    what: String,
    source: std::io::Error,
}

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, ConfineError>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, ConfineError> {
        self.map_err(|err| ConfineError { what: what(), source: err.into() })
    }
}

/// Joins the pod's namespaces and makes `root` the root of this process, with
/// the container's mounts in it.
pub(crate) fn enter(spec: &ContainerSpec, root: &Path) -> Result<(), ConfineError> {
    join_namespaces(&spec.sandbox)?;
    unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace".to_owned())?;
    let none: Option<&str> = None;
    // What the host mounts later arrives here, and each volume says whether it wants that.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context(|| "cannot keep mounts to itself".to_owned())?;

    fs::create_dir_all(root).context(|| format!("cannot make {}", root.display()))?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), root, Some("tmpfs"), quiet, Some("size=1m,mode=755"))
        .context(|| format!("cannot mount a root at {}", root.display()))?;
    for entry in &spec.mounts {
        bind(entry, root, quiet)?;
    }
    std::env::set_current_dir(root).context(|| format!("cannot enter {}", root.display()))?;
    pivot_root(".", ".").context(|| "cannot change the root".to_owned())?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "cannot leave the old root".to_owned())?;
    std::env::set_current_dir("/").context(|| "cannot enter the new root".to_owned())?;
    mount(
        none,
        "/",
        none,
        quiet | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        none,
    )
    .context(|| "cannot make the root read-only".to_owned())
}

fn join_namespaces(sandbox: &Sandbox) -> Result<(), ConfineError> {
    let namespaces = [
        (&sandbox.net, CloneFlags::CLONE_NEWNET),
        (&sandbox.ipc, CloneFlags::CLONE_NEWIPC),
        (&sandbox.uts, CloneFlags::CLONE_NEWUTS),
    ];
    // An empty path is the host's.
    for (path, kind) in namespaces.into_iter().filter(|(path, _)| !path.as_os_str().is_empty()) {
        let what = || format!("cannot join the pod's namespace {}", path.display());
        let file = fs::File::open(path).context(what)?;
        setns(file.as_fd(), kind).context(what)?;
    }
    Ok(())
}

/// Where `destination` lies below `root`, or `None` where it would leave it.
fn below(root: &Path, destination: &str) -> Option<PathBuf> {
    let mut path = root.to_owned();
    for component in Path::new(destination).components() {
        match component {
            Component::RootDir | Component::CurDir => (),
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn bind(entry: &Mount, root: &Path, quiet: MsFlags) -> Result<(), ConfineError> {
    let what = || format!("cannot mount {} at {}", entry.source.display(), entry.destination);
    let target =
        below(root, &entry.destination).ok_or(std::io::ErrorKind::InvalidInput).context(what)?;
    let is_dir = fs::metadata(&entry.source).context(what)?.is_dir();
    if is_dir {
        fs::create_dir_all(&target).context(what)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).context(what)?;
        }
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&target)
            .context(what)?;
    }
    let none: Option<&str> = None;
    mount(Some(&entry.source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .context(what)?;
    if entry.propagation == Propagation::None {
        mount(none, &target, none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context(what)?;
    }
    let read_only = if entry.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let flags = quiet | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | read_only;
    mount(none, &target, none, flags, none).context(what)?;
    if entry.read_only && entry.recursive_read_only {
        for below in mounts_below(&target).context(what)? {
            mount(none, &below, none, flags, none).context(what)?;
        }
    }
    Ok(())
}

/// The mounts below a folder.
fn mounts_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .map(|point| PathBuf::from(point.replace("\\040", " ").replace("\\134", "\\")))
        .filter(|point| point.starts_with(folder) && point != folder)
        .collect())
}

/// Gives up every privilege; `groups` are those it is in besides its own, and
/// `writable` the folders the guest may change.
pub(crate) fn drop_privileges(
    uid: u32,
    gid: u32,
    groups: &[u32],
    writable: &[PathBuf],
) -> Result<(), ConfineError> {
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_NOFILE, FILES_MAX)?;
    let capability = |what: &'static str| {
        move |err: caps::errors::CapsError| ConfineError {
            what: what.to_owned(),
            source: std::io::Error::other(err.to_string()),
        }
    };
    caps::clear(None, CapSet::Bounding).map_err(capability("cannot clear the bounding set"))?;
    let all: Vec<Gid> = groups.iter().chain([&gid]).copied().map(Gid::from_raw).collect();
    setgroups(&all).context(|| "cannot change the groups".to_owned())?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(group, group, group).context(|| format!("cannot become group {gid}"))?;
    setresuid(user, user, user).context(|| format!("cannot become user {uid}"))?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(capability("cannot drop capabilities"))?;
    }
    nix::sys::prctl::set_dumpable(false).context(|| "cannot become undumpable".to_owned())?;
    // The kernel has forgotten it where the user changed; user 0 stays who it was.
    nix::sys::prctl::set_pdeathsig(None).context(|| "cannot outlive the shim".to_owned())?;
    nix::sys::prctl::set_no_new_privs().context(|| "cannot set no_new_privs".to_owned())?;
    restrict_files(writable).map_err(|err| ConfineError {
        what: "cannot confine files".to_owned(),
        source: std::io::Error::other(err.to_string()),
    })?;
    seccomp::install(Profile::Guest).context(|| "cannot filter system calls".to_owned())
}

/// Lowers a limit of this process for good.
fn limit(resource: Resource, max: u64) -> Result<(), ConfineError> {
    let what = || format!("cannot limit {resource:?} to {max}");
    let (_, hard) = nix::sys::resource::getrlimit(resource).context(what)?;
    #[allow(clippy::useless_conversion)] // 32 bits wide on some targets.
    let max = rlim_t::try_from(max).unwrap_or(rlim_t::MAX).min(hard);
    setrlimit(resource, max, max).context(what)
}

/// Gives up all but memory: what the compiler of a stranger's module may have.
/// `memory_bytes` and `seconds` of CPU time are the most it may use.
#[cfg(feature = "compile")]
pub(crate) fn confine_compiler(memory_bytes: u64, seconds: u64) -> Result<(), ConfineError> {
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_AS, memory_bytes)?;
    limit(Resource::RLIMIT_CPU, seconds)?;
    nix::sys::prctl::set_dumpable(false).context(|| "cannot become undumpable".to_owned())?;
    nix::sys::prctl::set_no_new_privs().context(|| "cannot set no_new_privs".to_owned())?;
    seccomp::install(Profile::Compiler).context(|| "cannot filter system calls".to_owned())
}

/// Landlock, where the kernel has it: a second fence behind the root.
fn restrict_files(writable: &[PathBuf]) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V3;
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(["/"], AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(writable, AccessFs::from_all(abi) & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(())
}
