//! The last steps before the container's program: filter, capabilities, execve.
//!
//! They run in the container's process, after libcontainer has set up
//! everything else. libcontainer leaves the process two capabilities more than
//! it shall have, so that the filter can be set without `no_new_privs` (which
//! would break `sudo` and the like); they are dropped here.
//!
//! If a step fails, the shim learns it through a pipe that execve closes.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use caps::{CapSet, Capability};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use oci_spec::runtime::Spec;

use crate::capabilities::Set;
use crate::seccomp::{self, Program};

/// What is needed to set a filter and to shrink the bounding set.
pub(crate) const NEEDED: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SETPCAP];

/// Longest report, in bytes.
const REPORT_BYTES_MAX: u64 = 4096;

/// Does the last steps. Cloned into the container's process with the memory.
#[derive(Clone)]
pub(crate) struct Confined {
    /// `None` for none.
    pub(crate) filter: Option<Arc<Program>>,
    /// `no_new_privs` is set, so that the filter needs no capability.
    pub(crate) no_new_privileges: bool,
    pub(crate) capabilities: Set,
    pub(crate) report: Arc<OwnedFd>,
    /// Where the master of the terminal goes, if its streams are one.
    pub(crate) console: Option<Arc<OwnedFd>>,
}

/// What the container's process says when it could not become the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// execve failed with this errno.
    Exec(i32),
    /// Something before it.
    Confine(String),
}

impl Failure {
    pub(crate) fn write(&self, pipe: &OwnedFd) {
        let text = match self {
            Self::Exec(errno) => format!("exec {errno}"),
            Self::Confine(what) => format!("confine {what}"),
        };
        let _ = rustix::io::write(pipe, text.as_bytes());
    }

    /// Waits for the process to become the program (`None`) or to say why not.
    pub(crate) fn read(pipe: std::fs::File) -> Option<Self> {
        let mut text = String::new();
        if pipe.take(REPORT_BYTES_MAX).read_to_string(&mut text).is_err() {
            return Some(Self::Confine("unreadable report".into()));
        }
        match text.split_once(' ') {
            None => None,
            Some(("exec", errno)) => Some(Self::Exec(errno.parse().unwrap_or(0))),
            Some((_, what)) => Some(Self::Confine(what.to_owned())),
        }
    }
}

impl Confined {
    fn confine(&self) -> Result<(), String> {
        // Rust's runtime ignores SIGPIPE, so that the writers of a pipe would never end.
        runtime::default_signals(&[]);
        let filter = || match &self.filter {
            Some(filter) => {
                seccomp::install(filter).map_err(|error| format!("set the seccomp filter: {error}"))
            }
            None => Ok(()),
        };
        // As late as possible, so that a profile need not allow what is done here.
        if !self.no_new_privileges {
            filter()?;
        }
        let failed = |error| format!("drop capabilities: {error}");
        // The bounding set first: that takes SETPCAP.
        let bounding = caps::read(None, CapSet::Bounding).map_err(failed)?;
        for capability in bounding.difference(&self.capabilities) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
        }
        caps::set(None, CapSet::Effective, &self.capabilities).map_err(failed)?;
        caps::set(None, CapSet::Permitted, &self.capabilities).map_err(failed)?;
        caps::clear(None, CapSet::Inheritable).map_err(failed)?;
        if self.no_new_privileges { filter() } else { Ok(()) }
    }

    /// Does the last steps and becomes `args`. Returns why it could not.
    pub(crate) fn become_command(&self, args: &[CString], env: &[(String, String)]) -> Failure {
        if let Err(error) = self.confine() {
            return Failure::Confine(error);
        }
        let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path);
        let variables: Result<Vec<CString>, _> =
            env.iter().map(|(name, value)| CString::new(format!("{name}={value}"))).collect();
        match (args.first(), variables) {
            (Some(command), Ok(variables)) => {
                let failed = |path: &CString| match nix::unistd::execve(path, args, &variables) {
                    Err(errno) => errno,
                    Ok(never) => match never {},
                };
                Failure::Exec(search(command, path.as_bytes(), failed) as i32)
            }
            _ => Failure::Confine("a command without words, or with a NUL byte".into()),
        }
    }

    fn become_program(&self, spec: &Spec) -> Failure {
        // As the container's user, to whom it belongs, and before the filter.
        if let Some(console) = &self.console
            && let Err(what) = crate::exec::terminal(console, rustix::process::geteuid().as_raw())
                .and_then(|stdio| crate::exec::set_streams(&stdio))
        {
            return Failure::Confine(what);
        }
        if let Err(error) = self.confine() {
            return Failure::Confine(error);
        }
        let process = spec.process().as_ref();
        let Some(args) = process.and_then(|process| process.args().as_ref()) else {
            return Failure::Confine("no command".into());
        };
        let args: Result<Vec<CString>, _> =
            args.iter().map(|arg| CString::new(arg.as_bytes())).collect();
        match args {
            Ok(args) if !args.is_empty() => Failure::Exec(execute(&args) as i32),
            _ => Failure::Confine("a command without words, or with a NUL byte".into()),
        }
    }
}

/// Becomes the program, looked for in PATH where its name has no slash.
///
/// Not execvp, which hands a file it cannot execute (one for another
/// architecture, say) to the shell. Returns why it failed.
fn execute(args: &[CString]) -> Errno {
    let path = std::env::var_os("PATH").unwrap_or_default();
    search(&args[0], path.as_encoded_bytes(), |path| match nix::unistd::execv(path, args) {
        Err(errno) => errno,
        Ok(never) => match never {},
    })
}

/// Tries to execute `name`, or where it has no slash what is called so in the
/// folders of `path`. Returns why it failed.
fn search(name: &CString, path: &[u8], failed: impl Fn(&CString) -> Errno) -> Errno {
    let command = name;
    let name = name.as_bytes();
    if name.contains(&b'/') {
        return failed(command);
    }
    let mut result = Errno::ENOENT;
    for folder in path.split(|b| *b == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let Ok(path) = CString::new([folder, b"/", name].concat()) else { continue };
        match failed(&path) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another folder may have one that may be executed.
            Errno::EACCES => result = Errno::EACCES,
            errno => return errno,
        }
    }
    result
}

impl Executor for Confined {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failure = self.become_program(spec);
        failure.write(&self.report);
        Err(ExecutorError::Other(format!("{failure:?}")))
    }

    /// The default one looks for the program by rules of its own (it wants the
    /// others-bit, for one); execve knows best, and says so through the pipe.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let _ = std::io::stdout().flush();
        Ok(())
    }
}
