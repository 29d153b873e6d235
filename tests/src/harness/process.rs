//! Programs that the tests start: long-lived ones whose output goes to a file,
//! and short ones that are waited for.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::{block_on, until, until_within};

/// A program that runs until it is told to stop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it writes to standard output and error is appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).expect("log opens");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("descriptor is copied"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids fit")
    }

    /// Everything it has written so far, and what ran before it with the same log.
    pub(crate) fn log(&self) -> String {
        read_lossy(&self.log)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended by itself; whoever cares asks for its status.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Waits until it ends.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let log = self.log.clone();
        let child = &mut self.child;
        until("the program ends", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("it still runs; its log ends: {}", tail(&log, 5))),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Ends it by SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a short program left.
#[derive(Debug)]
pub(crate) struct Output {
    command: String,
    /// Exit status, -1 where a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Output {
    /// Its standard output; panics with everything if it failed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.out
    }

    /// Its standard error; panics if it did not fail.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert_ne!(self.code, 0, "{self}");
        self.err
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, out, err } = self;
        write!(f, "{command}\nended with {code}\nstdout: {out}\nstderr: {err}")
    }
}

/// Runs a program to its end, with `input` as its standard input.
#[track_caller]
pub(crate) fn run_with(command: Command, input: &str) -> Output {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let input = input.to_owned();
    let work = async {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().expect("it is piped");
        let feed = async move {
            use tokio::io::AsyncWriteExt;
            // A program that does not read its input is free not to.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        output
    };
    let limit = Duration::from_secs(180);
    let output = block_on(async { tokio::time::timeout(limit, work).await })
        .unwrap_or_else(|_| panic!("{shown}: still running after {limit:?}"))
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    Output {
        command: shown,
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program to its end.
#[track_caller]
pub(crate) fn run(command: Command) -> Output {
    run_with(command, "")
}

/// Runs `program arguments…`, the words separated by spaces, and panics if it fails.
#[track_caller]
pub(crate) fn must(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    run(command).ok()
}

/// As text, whatever it is; empty if it cannot be read.
pub(crate) fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, n_lines: usize) -> String {
    let text = read_lossy(path);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}

/// Every process whose command line or cgroup holds `needle`.
pub(crate) fn processes(needle: &[&str]) -> Vec<i32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != own))
        .filter(|pid| {
            let is_zombie = read_lossy(&PathBuf::from(format!("/proc/{pid}/stat")))
                .rsplit_once(')')
                .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
            let command = read_lossy(&PathBuf::from(format!("/proc/{pid}/cmdline")));
            let cgroup = read_lossy(&PathBuf::from(format!("/proc/{pid}/cgroup")));
            !is_zombie && needle.iter().any(|one| command.contains(one) || cgroup.contains(one))
        })
        .collect()
}

/// Kills every process that [`processes`] finds, until there is none.
pub(crate) fn kill_all(needle: &[&str]) {
    until_within("the machine's processes die", Duration::from_secs(60), || {
        let left = processes(needle);
        for pid in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        super::wait::check(left.is_empty(), || format!("{left:?}"))
    });
}

/// Writes a file that others may read, and its folder.
pub(crate) fn write_file(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("it is in a folder")).expect("folder is made");
    fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
}
