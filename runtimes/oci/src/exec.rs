//! One more command in a container that runs, in the exec process.
//!
//! ```text
//! parent: what the container has (bundle), namespaces of its first process
//!         └ fork into its pid namespace ─► child: waits to be let go
//!           parent admits it to the cgroup         │
//!                                                  ├ oom score, namespaces
//!                                                  ├ terminal or streams
//!                                                  ├ user, capabilities, filter
//!                                                  └ execve
//! ```
//!
//! Not libcontainer's tenant builder: it needs the container's state files in a
//! state it keeps, cannot say why execve failed, and does in two processes and
//! many steps what is a page here. What confines the command is the same code
//! that confines the container ([`Confined`]).
//!
//! The process is undumpable from before it can be seen in the container until
//! it has become the command, so that nothing in there can reach into it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Gid, Uid};
use oci_spec::runtime::Spec;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::DumpableBehavior;
use rustix::pty::OpenptFlags;

use runtime::exec::{Admit, Entered};
use runtime::{ContainerSpec, ExecRequest, ExecStdio, LaunchError, Pid, reason};

use crate::executor::{Confined, Failure};
use crate::launcher::{self, failed};
use crate::rootfs;

/// The namespaces of a container, in the order in which they are joined: with
/// the mounts changes what every path means.
const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// What the child needs, all made before it exists.
struct Plan {
    namespaces: Vec<(OwnedFd, CloneFlags)>,
    args: Vec<CString>,
    env: Vec<(String, String)>,
    cwd: String,
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    no_new_privileges: bool,
    oom_score_adj: i32,
    confined: Confined,
    tty: bool,
    stdio: ExecStdio,
    /// Readable once the parent has done its part.
    go: OwnedFd,
    /// Where the terminal's master goes.
    console: OwnedFd,
}

/// Starts a command beside `inside`, the container's first process.
///
/// # Errors
/// Nothing of it runs.
pub(crate) fn enter(
    spec: &ContainerSpec,
    dir: &Path,
    inside: Pid,
    request: &ExecRequest,
    stdio: ExecStdio,
    admit: Admit<'_>,
) -> Result<Entered, LaunchError> {
    let (report, theirs) = pipe(spec)?;
    let (go, let_go) = pipe(spec)?;
    let (console, their_console) = console(spec)?;
    let plan = plan(spec, dir, inside, request, stdio, theirs, go, their_console)?;
    if let Some(pids) = namespace(inside, "pid").map_err(|e| gone(spec, &e))? {
        nix::sched::setns(&pids, CloneFlags::CLONE_NEWPID)
            .map_err(|e| failed(spec, format!("cannot enter its pid namespace: {e}")))?;
    }
    let dumpable = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    dumpable.map_err(|e| failed(spec, format!("cannot become undumpable: {e}")))?;
    // SAFETY: the exec process has one thread, so that the child may do whatever
    // its parent could.
    let forked = unsafe { nix::unistd::fork() };
    match forked.map_err(|e| failed(spec, format!("cannot fork: {e}")))? {
        ForkResult::Child => {
            drop((report, let_go, console));
            plan.follow()
        }
        ForkResult::Parent { child } => {
            let tty = plan.tty;
            drop(plan);
            let child = Pid(child.as_raw());
            let result = release(spec, child, let_go, admit);
            let failure = result.map_or_else(Some, |()| {
                Failure::read(fs::File::from(report)).map(|failure| explain(request, &failure))
            });
            if let Some(error) = failure {
                let _ =
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.0), None);
                return Err(error);
            }
            let terminal = tty.then(|| receive(&console)).transpose();
            let terminal =
                terminal.map_err(|e| failed(spec, format!("has no terminal to give: {e}")))?;
            Ok(Entered { pid: child, terminal })
        }
    }
}

fn release(
    spec: &ContainerSpec,
    child: Pid,
    let_go: OwnedFd,
    admit: Admit<'_>,
) -> Result<(), LaunchError> {
    admit(child)?;
    fs::File::from(let_go)
        .write_all(b"g")
        .map_err(|e| failed(spec, format!("cannot let the command go: {e}")))
}

/// A socket for a terminal's master: where it arrives, and where it is sent.
pub(crate) fn console(spec: &ContainerSpec) -> Result<(OwnedFd, OwnedFd), LaunchError> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed(spec, format!("cannot make a socket: {e}")))
}

fn pipe(spec: &ContainerSpec) -> Result<(OwnedFd, OwnedFd), LaunchError> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|e| failed(spec, format!("cannot make a pipe: {e}")))
}

fn gone(spec: &ContainerSpec, error: &io::Error) -> LaunchError {
    failed(spec, format!("its process has ended: {error}"))
}

/// A namespace of a process, if it is not ours as well.
fn namespace(inside: Pid, name: &str) -> io::Result<Option<OwnedFd>> {
    let theirs = fs::File::open(format!("/proc/{}/ns/{name}", inside.0));
    let theirs = match theirs {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A kernel without this kind; or the process is gone, which /proc tells.
            fs::metadata(format!("/proc/{}/ns/mnt", inside.0))?;
            return Ok(None);
        }
        theirs => theirs?,
    };
    let (ours, meta) = (fs::metadata(format!("/proc/self/ns/{name}"))?, theirs.metadata()?);
    Ok(((ours.dev(), ours.ino()) != (meta.dev(), meta.ino())).then(|| theirs.into()))
}

#[expect(clippy::too_many_arguments, reason = "each is one of the parent's ends, used once")]
fn plan(
    spec: &ContainerSpec,
    dir: &Path,
    inside: Pid,
    request: &ExecRequest,
    stdio: ExecStdio,
    report: OwnedFd,
    go: OwnedFd,
    console: OwnedFd,
) -> Result<Plan, LaunchError> {
    let bundle = Spec::load(dir.join("state/bundle/config.json"))
        .map_err(|e| failed(spec, format!("cannot read its bundle: {e}")))?;
    let process =
        bundle.process().as_ref().ok_or_else(|| failed(spec, "its bundle has no process"))?;
    let mut namespaces = Vec::new();
    for (name, flag) in NAMESPACES {
        if let Some(fd) = namespace(inside, name).map_err(|e| gone(spec, &e))? {
            namespaces.push((fd, flag));
        }
    }
    let (capabilities, filter) = launcher::confinement(spec)?;
    let confined = Confined {
        filter: filter.map(Arc::new),
        no_new_privileges: spec.security.no_new_privileges,
        capabilities,
        report: Arc::new(report),
        // Made before the command has its user, see `prepare`.
        console: None,
    };
    if request.args.first().is_none_or(String::is_empty) {
        return Err(start_error("you must specify at least one command for the container".into()));
    }
    let args: Result<Vec<CString>, _> =
        request.args.iter().map(|arg| CString::new(arg.as_bytes())).collect();
    let args = args.map_err(|_| start_error("the command holds a NUL byte".into()))?;
    let mut env: Vec<(String, String)> = Vec::new();
    let own = process.env().iter().flatten().filter_map(|pair| pair.split_once('='));
    let terminal = request.tty.then_some(("TERM", "xterm"));
    let asked = request.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(terminal).chain(asked) {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(start_error(format!("{name:?} cannot be the name of a variable")));
        }
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value.to_owned(),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    Ok(Plan {
        namespaces,
        args,
        env,
        cwd: process.cwd().display().to_string(),
        uid: user.uid(),
        gid: user.gid(),
        groups,
        no_new_privileges: spec.security.no_new_privileges,
        oom_score_adj: spec.resources.oom_score_adj,
        confined,
        tty: request.tty,
        stdio,
        go,
        console,
    })
}

impl Plan {
    /// The child: becomes the command, or says why not.
    fn follow(mut self) -> ! {
        let failure = match self.prepare() {
            Ok(()) => self.confined.become_command(&self.args, &self.env),
            Err(what) => Failure::Confine(what),
        };
        failure.write(&self.confined.report);
        // SAFETY: ends the process, with none of the parent's clean-up.
        unsafe { libc::_exit(127) }
    }

    fn prepare(&mut self) -> Result<(), String> {
        let said =
            |what: &'static str| move |error: &dyn std::fmt::Display| format!("{what}: {error}");
        let mut byte = [0];
        fs::File::from(self.go.try_clone().map_err(|e| said("wait")(&e))?)
            .read_exact(&mut byte)
            .map_err(|e| said("wait to be let go")(&e))?;
        // Lowering it may need a capability that the agent lacks.
        let _ = fs::write("/proc/self/oom_score_adj", self.oom_score_adj.to_string());
        for (fd, flag) in self.namespaces.drain(..) {
            nix::sched::setns(&fd, flag).map_err(|e| said("join the namespaces")(&e))?;
        }
        rustix::process::setsid().map_err(|e| said("make a session")(&e))?;
        if self.tty {
            self.stdio = terminal(&self.console, self.uid)?;
        }
        set_streams(&self.stdio)?;
        rustix::process::chdir(self.cwd.as_str())
            .map_err(|e| format!("enter workingDir {:?}: {e}", self.cwd))?;
        if self.env.iter().all(|(name, value)| name != "HOME" || value.is_empty()) {
            let home = home(self.uid);
            self.env.retain(|(name, _)| name != "HOME");
            self.env.push(("HOME".into(), home));
        }
        caps::securebits::set_keepcaps(true).map_err(|e| said("keep capabilities")(&e))?;
        nix::unistd::setgroups(&self.groups).map_err(|e| said("set its groups")(&e))?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::setresgid(gid, gid, gid).map_err(|e| said("set its group")(&e))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(|e| said("set its user")(&e))?;
        // Another user loses the effective ones, which the last steps need.
        let permitted = caps::read(None, caps::CapSet::Permitted);
        permitted
            .and_then(|permitted| caps::set(None, caps::CapSet::Effective, &permitted))
            .map_err(|e| said("raise capabilities")(&e))?;
        caps::securebits::set_keepcaps(false).map_err(|e| said("drop capabilities")(&e))?;
        // After the change of user, which would undo it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|e| said("be bound to its parent")(&e))?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(|e| said("set no_new_privs")(&e))?;
        }
        Ok(())
    }
}

/// Makes them the standard streams of this process.
pub(crate) fn set_streams(stdio: &ExecStdio) -> Result<(), String> {
    rustix::stdio::dup2_stdin(&stdio.stdin).map_err(|e| format!("set its input: {e}"))?;
    rustix::stdio::dup2_stdout(&stdio.stdout).map_err(|e| format!("set its output: {e}"))?;
    rustix::stdio::dup2_stderr(&stdio.stderr).map_err(|e| format!("set its output: {e}"))
}

/// Makes a terminal inside the container, takes it as this session's, and sends its master away.
///
/// `/dev/pts/ptmx` must be what it seems: the container may have put something
/// else there, and its master would be opened with our rights.
pub(crate) fn terminal(console: &OwnedFd, uid: u32) -> Result<ExecStdio, String> {
    use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
    const PTMX: (u32, u32) = (5, 2);
    const DEVPTS_MAGIC: u64 = 0x1cd1;
    // Without waiting, should it be a FIFO.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::NO_SYMLINKS;
    let said = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
    let master = rustix::fs::openat2(CWD, "/dev/pts/ptmx", flags, Mode::empty(), resolve)
        .map_err(said("make a terminal: open /dev/pts/ptmx in the container"))?;
    let stat = rustix::fs::fstat(&master).map_err(said("look at /dev/pts/ptmx"))?;
    let system = rustix::fs::fstatfs(&master).map_err(said("look at /dev/pts/ptmx"))?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    // The type of the magic number differs from libc to libc.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    let magic = system.f_type as u64;
    if !is_device || device != PTMX || magic != DEVPTS_MAGIC {
        return Err("make a terminal: /dev/pts/ptmx in the container is something else".into());
    }
    rustix::pty::unlockpt(&master).map_err(said("unlock the terminal"))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(said("open the terminal"))?;
    // As docker and containerd do: the terminal is the user's.
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    rustix::fs::fchown(&slave, owner, None).map_err(said("give the terminal away"))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(said("take the terminal"))?;
    send(console, &master).map_err(said("send the terminal"))?;
    let more = |fd: &OwnedFd| fd.try_clone().map_err(|e| format!("copy the terminal: {e}"));
    Ok(ExecStdio { stdin: more(&slave)?, stdout: more(&slave)?, stderr: slave })
}

fn send(socket: &OwnedFd, descriptor: &OwnedFd) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(b"t")], &mut ancillary, flags).map(drop)
}

pub(crate) fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
    let found = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The user's home, from the container's own accounts.
fn home(uid: u32) -> String {
    let accounts = rootfs::read_text(Path::new("/"), "etc/passwd");
    let of = |line: &str| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse() == Ok(uid);
        fields.nth(2).filter(|home| found && home.starts_with('/')).map(ToOwned::to_owned)
    };
    accounts.lines().find_map(of).unwrap_or_else(|| "/".to_owned())
}

fn start_error(message: String) -> LaunchError {
    LaunchError::new(reason::START_ERROR, message)
}

/// The words that users of other runtimes know.
fn explain(request: &ExecRequest, failure: &Failure) -> LaunchError {
    let command = request.args.first().map_or("", String::as_str);
    start_error(match failure {
        Failure::Exec(libc::ENOENT) if command.contains('/') => format!(
            "exec: {command:?}: stat {command}: no such file or directory (or the interpreter it \
             names is missing)"
        ),
        Failure::Exec(libc::ENOENT) => {
            format!("exec: {command:?}: executable file not found in $PATH")
        }
        Failure::Exec(libc::EACCES) => format!("exec: {command:?}: permission denied"),
        Failure::Exec(libc::ENOEXEC) => format!("exec: {command:?}: exec format error"),
        Failure::Exec(errno) => {
            format!("exec: {command:?}: {}", io::Error::from_raw_os_error(*errno))
        }
        Failure::Confine(what) => format!("exec: {command:?}: cannot {what}"),
    })
}
