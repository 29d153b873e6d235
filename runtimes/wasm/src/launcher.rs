//! Starts the process of a guest, from the container's shim.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use runtime::{ContainerSpec, LaunchError, Launcher, Pid, reason};

use crate::guest::{OOM_FILE, Report};

/// Most bytes of a guest's report.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// Runs a WASM container in a process of its own: `program args… DIR`, which is
/// to call [`crate::guest_main`].
#[derive(Clone, Debug)]
pub struct WasmLauncher {
    program: PathBuf,
    args: Vec<OsString>,
}

impl WasmLauncher {
    /// A launcher that runs `program args… DIR`; the agent's are
    /// `/proc/self/exe` and `wasm-guest`.
    #[must_use]
    pub fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self { program, args }
    }
}

impl Launcher for WasmLauncher {
    fn launch(
        &self,
        _spec: &ContainerSpec,
        dir: &Path,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Pid, LaunchError> {
        let failed = |what: &str, err: std::io::Error| {
            LaunchError::new(reason::START_ERROR, format!("{what}: {err}"))
        };
        let (mut from_guest, to_shim) =
            std::io::pipe().map_err(|err| failed("cannot make a pipe", err))?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .arg(dir)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(to_shim)))
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|err| failed("cannot start the guest's process", err))?;
        let mut line = Vec::new();
        from_guest
            .by_ref()
            .take(REPORT_BYTES_MAX)
            .read_to_end(&mut line)
            .map_err(|err| failed("cannot read the guest's report", err))?;
        let report: Report = serde_json::from_slice(&line).unwrap_or_else(|_| {
            Err(LaunchError::new(
                reason::START_ERROR,
                "the guest's process ended before it started the guest",
            ))
        });
        let pid = Pid(i32::try_from(child.id()).expect("a pid is positive"));
        match report {
            Ok(()) => Ok(pid),
            Err(failure) => {
                // It is on its way out by itself.
                let mut child = child;
                let _ = child.wait();
                Err(failure)
            }
        }
    }

    fn out_of_memory(&self, dir: &Path) -> bool {
        fs::metadata(dir.join(OOM_FILE)).is_ok_and(|file| file.len() != 0)
    }
}
