//! The process that holds the process ids of a pod whose containers share them.
//!
//! ```text
//! agent ─► `pinnace-agent pause DIR CGROUP`   unshare(NEWPID), start the next, hold
//!            │                                its namespace at DIR/ns/pid, end
//!            └─► `pinnace-agent pause DIR`    process 1 of the pod: reaps orphans,
//!                                             has no privileges, waits for SIGKILL
//! ```
//!
//! A namespace of process ids ends with its first process, so this one must
//! outlive every container, and the agent.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use runtime::cgroup::Hierarchies;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::SandboxError;
use crate::network::is_namespace;

/// Who the process is: nobody.
const NOBODY: u32 = 65534;

/// Where the namespace is held.
pub(super) fn namespace(run: &Path) -> PathBuf {
    run.join("ns/pid")
}

/// Has the namespace and its first process, made anew where it ended.
///
/// # Errors
/// It cannot be started.
pub fn ensure(run: &Path, cgroup: &str) -> Result<(), SandboxError> {
    let failed = |error: io::Error| SandboxError::Processes(error.to_string());
    // Containers of a pod are made at the same time, and ask for it together.
    let folder = File::open(run).map_err(failed)?;
    folder.lock().map_err(failed)?;
    if is_alive(run) {
        return Ok(());
    }
    let_go(run).map_err(failed)?;
    let output = Command::new("/proc/self/exe")
        .arg("pause")
        .arg(run)
        .arg(format!("{cgroup}/pause"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(SandboxError::Processes(text.trim().to_owned()))
}

/// Whether the process that was started holds the namespace that is held.
fn is_alive(run: &Path) -> bool {
    let pid = fs::read_to_string(run.join("pause")).unwrap_or_default();
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let of_process = inode(Path::new(&format!("/proc/{}/ns/pid", pid.trim())));
    is_namespace(&namespace(run)) && of_process.is_some() && of_process == inode(&namespace(run))
}

/// Lets the namespace go; its process ends with the pod's cgroup.
pub(super) fn let_go(run: &Path) -> io::Result<()> {
    let path = namespace(run);
    if is_alive(run)
        && let Ok(pid) = fs::read_to_string(run.join("pause"))
        && let Some(pid) = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    for _ in 0..8 {
        if !is_namespace(&path) {
            break;
        }
        unmount(&path, UnmountFlags::DETACH)?;
    }
    crate::durable::remove(&path)
}

/// `pause DIR CGROUP`: starts the process and holds its namespace.
#[must_use]
pub fn make(run: &Path, cgroup: &str) -> ExitCode {
    match try_make(run, cgroup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("{error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn try_make(run: &Path, cgroup: &str) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut child = Command::new("/proc/self/exe")
        .arg("pause")
        .arg(run)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let hold = || -> io::Result<()> {
        let hierarchies = Hierarchies::detect()?;
        hierarchies.create(cgroup, &runtime::Resources::default())?;
        hierarchies.add(cgroup, pid)?;
        let path = namespace(run);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        File::create(&path)?;
        fs::write(run.join("pause"), pid.to_string())?;
        Ok(mount_bind(format!("/proc/{pid}/ns/pid"), &path)?)
    };
    let held = hold();
    if held.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    held
}

/// `pause DIR`: the pod's process 1. The folder is for whoever looks at it with `ps`.
#[must_use]
pub fn wait() -> ExitCode {
    let _ = nix::sys::prctl::set_name(c"pause");
    let nobody = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let dropped = setgroups(&[])
        .and_then(|()| setresgid(nobody.1, nobody.1, nobody.1))
        .and_then(|()| setresuid(nobody.0, nobody.0, nobody.0))
        .and_then(|()| nix::sys::prctl::set_no_new_privs());
    if dropped.is_err() {
        return ExitCode::FAILURE;
    }
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    if children.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        while matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(status) if status != WaitStatus::StillAlive
        ) {}
        let _ = children.wait();
    }
}
