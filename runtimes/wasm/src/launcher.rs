//! Starts the process of a guest, from the container's shim.
//!
//! ```text
//! shim    make the cgroup ► fork ► put the child into the cgroup ► begun ► "go" ► read the report
//! child                       verify, map, enter the pod, drop all ► wait for "go" ► report ► run
//! ```
//!
//! The child is a fork and no new program: the shim has one thread, so that is
//! safe, and the two share the pages that the dynamic linker has written
//! (1 MB), and the time it took. Moving a process into a cgroup waits for all
//! of the kernel's CPUs (up to 20 ms with cgroup v1), so the shim does it while
//! its child works.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use runtime::cgroup::Hierarchies;
use runtime::dir::ContainerDir;
use runtime::exec::Entered;
use runtime::{ContainerSpec, LaunchError, Launcher, Pid, Resources, reason};
use rustix::pty::OpenptFlags;

use crate::engine;
use crate::guest::{self, OOM_FILE, Report};

/// Most bytes of a guest's report.
const REPORT_BYTES_MAX: u64 = 64 << 10;
/// What the engine itself may use beside the guest's memory, in bytes.
const ENGINE_BYTES: u64 = 16 << 20;
/// Most threads of a guest's process where nothing else is said. It makes one
/// for its program and two for files.
const THREADS_MAX: u64 = 32;

/// Runs a WASM container in a child of the shim.
#[derive(Clone, Debug)]
pub struct WasmLauncher {
    target: Option<String>,
    throttled: bool,
}

impl Default for WasmLauncher {
    /// Runs what is compiled for this machine's kind.
    fn default() -> Self {
        Self { target: engine::local_target().map(str::to_owned), throttled: false }
    }
}

impl WasmLauncher {
    /// Runs what is compiled for `target`: Pulley bytecode of this machine's
    /// word size, on a machine that also has an engine for native code.
    #[must_use]
    pub fn for_target(target: &str) -> Self {
        Self { target: Some(target.to_owned()), throttled: false }
    }

    /// The same, as if the kernel had no CPU controller: the guest's process
    /// keeps to its limit by itself.
    #[must_use]
    pub fn throttled(self) -> Self {
        Self { throttled: true, ..self }
    }
}

/// What a guest's cgroup may use: its limit is of the guest's own memory.
fn limits(resources: &Resources) -> Resources {
    let or = |value: u64, other: u64| if value == 0 { other } else { value };
    Resources {
        cpu_request_millis: or(resources.cpu_request_millis, resources.cpu_limit_millis),
        memory_limit_bytes: match resources.memory_limit_bytes {
            0 => 0,
            bytes => bytes.saturating_add(ENGINE_BYTES),
        },
        pids_max: or(resources.pids_max, THREADS_MAX),
        ..*resources
    }
}

fn failed(what: &str, err: &dyn std::fmt::Display) -> LaunchError {
    LaunchError::new(reason::START_ERROR, format!("{what}: {err}"))
}

impl Launcher for WasmLauncher {
    #[allow(unsafe_code)]
    fn launch(
        &self,
        spec: &ContainerSpec,
        dir: &Path,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Entered, LaunchError> {
        let Some(target) = &self.target else {
            return Err(failed("cannot run WebAssembly", &std::env::consts::ARCH));
        };
        let hierarchies =
            Hierarchies::detect().map_err(|err| failed("cannot find the cgroups", &err))?;
        hierarchies
            .create(&spec.cgroup, &limits(&spec.resources))
            .map_err(|err| failed("cannot make the cgroup", &err))?;
        // Where the kernel cannot limit it, the guest's process does.
        let throttled = self.throttled || !hierarchies.support().cpu;
        let pipe = || io::pipe().map_err(|err| failed("cannot make a pipe", &err));
        let (from_guest, report) = pipe()?;
        let (go, mut say_go) = pipe()?;
        let mut stdin = runtime::attach::container_stdin(spec, dir)
            .map_err(|err| failed("cannot open its input", &err))?;
        let (mut out, mut err, mut terminal) = (out, err, None);
        if spec.stdio.tty {
            let no = |err: &dyn std::fmt::Display| failed("cannot make a terminal", err);
            let (master, slave) = open_terminal().map_err(|err| no(&err))?;
            let copy = || slave.try_clone().map_err(|err| no(&err));
            (stdin, out, err) = (spec.stdio.stdin.then(copy).transpose()?, copy()?, slave);
            terminal = Some(master);
        }
        let shim = nix::unistd::getpid();
        // SAFETY: a shim has one thread, so no lock can be held by another.
        match unsafe { fork() }.map_err(|err| failed("cannot start a process", &err))? {
            ForkResult::Child => {
                // A guest hears of a broken pipe as of any other error.
                runtime::default_signals(&[libc::SIGPIPE]);
                let streams = [stdin.as_ref(), Some(&out), Some(&err)];
                let streams = streams.map(|stream| stream.map(AsRawFd::as_raw_fd));
                let begun = die_with(shim)
                    .and_then(|()| become_guest(streams, terminal.is_some(), &report, &go));
                guest::main(spec, dir, target, throttled, begun.map(|()| (report, go)))
            }
            ForkResult::Parent { child } => {
                drop((report, go));
                let joined = hierarchies
                    .add(&spec.cgroup, child.as_raw())
                    // A module that is refused after this still says so in its report.
                    .and_then(|()| ContainerDir::new(dir).begin());
                let result = match joined {
                    Ok(()) => {
                        // A child that is gone says why in its report, or by having none.
                        let _ = say_go.write_all(b"g");
                        read_report(from_guest)
                    }
                    Err(err) => {
                        Err(failed("cannot put the guest into its cgroup and say so", &err))
                    }
                };
                if result.is_err() {
                    let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
                    let _ = waitpid(child, None);
                }
                result.map(|()| Entered { pid: Pid(child.as_raw()), terminal })
            }
        }
    }

    fn out_of_memory(&self, dir: &Path) -> bool {
        fs::metadata(dir.join(OOM_FILE)).is_ok_and(|file| file.len() != 0)
    }
}

fn read_report(from_guest: io::PipeReader) -> Report {
    let mut line = Vec::new();
    from_guest
        .take(REPORT_BYTES_MAX)
        .read_to_end(&mut line)
        .map_err(|err| failed("cannot read the guest's report", &err))?;
    serde_json::from_slice(&line).unwrap_or_else(|_| {
        Err(LaunchError::new(
            reason::START_ERROR,
            "the guest's process ended before it started the guest",
        ))
    })
}

/// A terminal's two ends. It is of the machine's `/dev/pts`: a guest has no files
/// but its volumes, and cannot come upon it by a path.
fn open_terminal() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

/// In the child: until it has dropped its privileges it ends with its shim; from
/// then on it ends where "go" does not come.
fn die_with(shim: nix::unistd::Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid() == shim { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
}

/// In the child: standard streams of its own, and nothing else of the shim's
/// but the two pipes.
fn become_guest(
    [stdin, out, err]: [Option<RawFd>; 3],
    has_terminal: bool,
    report: &io::PipeWriter,
    go: &io::PipeReader,
) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    let null_fd = null.as_raw_fd();
    nix::unistd::dup2(stdin.unwrap_or(null_fd), 0)?;
    nix::unistd::dup2(out.unwrap_or(null_fd), 1)?;
    nix::unistd::dup2(err.unwrap_or(null_fd), 2)?;
    if has_terminal {
        // Its own session's, so that ^C is a signal to the guest and nobody else.
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdout())?;
    }
    let _ = nix::sys::prctl::set_name(c"wasm-guest");
    let kept = [0, 1, 2, report.as_raw_fd(), go.as_raw_fd()];
    drop(null);
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| !kept.contains(fd))
        .collect();
    for fd in open {
        // The listing's own descriptor is gone by now, which is fine. Who owns the
        // others, in frames further up, never gets to close them: `guest::main`
        // does not return.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_has_room_beside_the_guest_and_threads_are_few() {
        let none = limits(&Resources::default());
        assert_eq!((none.memory_limit_bytes, none.pids_max), (0, THREADS_MAX));
        let some = limits(&Resources {
            memory_limit_bytes: 1 << 20,
            pids_max: 4,
            cpu_limit_millis: 500,
            ..Resources::default()
        });
        assert_eq!((some.memory_limit_bytes, some.pids_max), (17 << 20, 4));
        assert_eq!(some.cpu_request_millis, 500);
    }
}
