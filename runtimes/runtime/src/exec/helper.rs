//! The exec process: starts one command in a container, waits for it, and
//! kills it when it is told to or when the agent is gone.
//!
//! | message on the control socket | direction | with |
//! |---|---|---|
//! | [`Start`] | agent → exec process | 3 descriptors, none with a terminal |
//! | [`Told::Started`] | exec process → agent | the terminal's master, if there is one |
//! | [`Told::Failed`], [`Told::Exited`] | exec process → agent | |
//! | `kill`, or the end | agent → exec process | |
//!
//! One thread, no async runtime, as the shim.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::{PidfdFlags, WaitOptions};
use serde::{Deserialize, Serialize};

use super::group::Group;
use super::{Entered, ExecRequest, ExecStdio};
use crate::cgroup::Hierarchies;
use crate::dir::ContainerDir;
use crate::process;
use crate::state::reason;
use crate::{LaunchError, Launcher, Pid, Workload};

/// Longest message, in bytes: a command as long as HTTP headers allow, in JSON.
pub(super) const MESSAGE_BYTES_MAX: usize = 192 << 10;

/// Most descriptors that come with a message.
const DESCRIPTORS_MAX: usize = 3;

/// What the agent says when the command shall be killed.
pub(super) const KILL: &[u8] = b"kill";

/// The agent's first message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) request: ExecRequest,
}

/// What the exec process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// The command runs.
    Started,
    /// It does not, and this is why.
    Failed(LaunchError),
    /// It has ended with this code.
    Exited(i32),
}

/// Sends one message with descriptors.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags).map(drop)
}

/// Receives one message; an empty one is the end.
pub(super) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok((message.bytes, rights.flatten().collect()))
}

/// The exec process: all of it from the hidden subcommand `exec DIR` to its end.
///
/// Standard input is the control socket.
#[must_use]
pub fn exec_main(dir: &Path, launcher_for: impl Fn(&Workload) -> Box<dyn Launcher>) -> ExitCode {
    match run(dir, launcher_for) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{} exec: {error}", jiff::Timestamp::now());
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path, launcher_for: impl Fn(&Workload) -> Box<dyn Launcher>) -> io::Result<()> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    // A session of its own: no signal of the agent's terminal or service reaches it.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;

    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let (n, descriptors) = retry(|| receive(&control, &mut bytes))?;
    if n == 0 {
        return Ok(());
    }
    let Start { request } = serde_json::from_slice(&bytes[..n])?;
    drop(bytes);
    let mut group = None;
    let entered = start(dir, &request, descriptors, &launcher_for, &mut group);
    let entered = match entered {
        Ok(entered) => entered,
        Err(error) => {
            if let Some(group) = group {
                group.kill();
                group.dissolve();
            }
            return tell(&control, &Told::Failed(error), None);
        }
    };
    let told = tell(&control, &Told::Started, entered.terminal.as_ref());
    let command = Command::new(entered.pid, group)?;
    // The agent has the terminal now; ours would keep it from hanging up.
    drop(entered.terminal);
    if told.is_err() {
        command.kill();
    }
    process::trim_heap();
    let code = command.wait(&control)?;
    // The agent may be gone, which is fine.
    let _ = tell(&control, &Told::Exited(code), None);
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn tell(control: &OwnedFd, told: &Told, descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let json = serde_json::to_vec(told)?;
    let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
    retry(|| send(control, &json, &descriptors))
}

fn failed(what: impl std::fmt::Display) -> LaunchError {
    LaunchError::new(reason::CREATE_CONTAINER_ERROR, format!("cannot run a command: {what}"))
}

fn start(
    dir: &Path,
    request: &ExecRequest,
    descriptors: Vec<OwnedFd>,
    launcher_for: impl Fn(&Workload) -> Box<dyn Launcher>,
    group: &mut Option<Group>,
) -> Result<Entered, LaunchError> {
    let dir = ContainerDir::new(dir);
    let spec = dir.spec().map_err(|error| failed(format!("config.json: {error}")))?;
    let running = dir.live_process().ok_or_else(|| failed("the container's process has ended"))?;
    let hierarchies = Hierarchies::detect().map_err(failed)?;
    let stdio = match <[OwnedFd; 3]>::try_from(descriptors) {
        Ok([stdin, stdout, stderr]) => ExecStdio { stdin, stdout, stderr },
        Err(_) if request.tty => null_stdio().map_err(failed)?,
        Err(found) => return Err(failed(format!("{} descriptors instead of 3", found.len()))),
    };
    let mut admit = |pid: Pid| {
        let made = Group::admit(&hierarchies, &spec.cgroup, pid.0);
        *group = Some(made.map_err(|error| failed(format!("cannot join the cgroup: {error}")))?);
        Ok(())
    };
    let inside = Pid(running.pid);
    let entered =
        launcher_for(&spec.workload).exec(&spec, dir.path(), inside, request, stdio, &mut admit)?;
    Ok(entered)
}

fn null_stdio() -> io::Result<ExecStdio> {
    let open = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    Ok(ExecStdio { stdin: open()?, stdout: open()?, stderr: open()? })
}

/// The command, until it has ended.
struct Command {
    pid: rustix::process::Pid,
    pidfd: OwnedFd,
    group: Option<Group>,
}

impl Command {
    fn new(pid: Pid, group: Option<Group>) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_raw(pid.0)
            .ok_or_else(|| io::Error::other("the launcher gave no process"))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd, group })
    }

    fn kill(&self) {
        let _ = process::signal(&self.pidfd, 9);
        if let Some(group) = &self.group {
            group.kill();
        }
    }

    /// Waits for the end, and kills it when told to. Gives the exit code.
    fn wait(mut self, control: &OwnedFd) -> io::Result<i32> {
        let mut listen = true;
        let mut killed = false;
        loop {
            let (ended, told) = {
                let mut fds =
                    [PollFd::new(&self.pidfd, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
                let n_fds = if listen { 2 } else { 1 };
                match poll(&mut fds[..n_fds], None) {
                    Err(Errno::INTR) => continue,
                    result => result?,
                };
                (!fds[0].revents().is_empty(), listen && !fds[1].revents().is_empty())
            };
            if ended {
                break;
            }
            if told {
                let mut bytes = [0; 16];
                match retry(|| receive(control, &mut bytes)) {
                    Ok((n, _)) if &bytes[..n] == KILL => killed = true,
                    // The agent is gone, or wants no more of it.
                    Ok((0, _)) | Err(_) => (listen, killed) = (false, true),
                    Ok(_) => {}
                }
                if killed {
                    self.kill();
                }
            }
        }
        let status = loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                Ok(Some((_, status))) => break Some(status.as_raw()),
                _ => break None,
            }
        };
        if let Some(group) = self.group.take() {
            if killed {
                group.kill();
            }
            group.dissolve();
        }
        Ok(status.map_or(255, |status| process::decode_status(status).0))
    }
}
