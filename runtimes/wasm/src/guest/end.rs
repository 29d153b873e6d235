//! How a guest ended: the exit code a process would have had, a line for the
//! log, last words for the pod's status, and what the shim reads afterwards.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

/// Exit code of a guest that was stopped: 128 + SIGTERM.
const EXIT_STOPPED: i32 = 143;
/// Exit code of a guest that reached its memory limit: 128 + SIGKILL, as a process.
const EXIT_OUT_OF_MEMORY: i32 = 137;
/// Exit code of a guest that trapped: 128 + SIGABRT.
pub(super) const EXIT_TRAPPED: i32 = 134;

/// Most bytes of a message: Kubernetes' bound for a termination message.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Name of the file in the container's folder that is not empty once the guest
/// has reached its memory limit.
pub(crate) const OOM_FILE: &str = "oom";

/// Where Kubernetes looks for the last words of a container, if the agent has
/// mounted something there.
const LAST_WORDS: &str = "/dev/termination-log";

/// Where the end is written: opened before the process may open nothing more.
#[derive(Debug)]
pub(super) struct End {
    oom: File,
    last_words: Option<File>,
}

impl End {
    /// Opens what lies in the container's folder.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { oom: File::create(dir.join(OOM_FILE))?, last_words: None })
    }

    /// Opens what lies in the guest's root, as root.
    pub(super) fn open_inside(&mut self) {
        self.last_words = OpenOptions::new().append(true).open(LAST_WORDS).ok();
    }

    /// Where something cannot be written, the exit code still says the most of it.
    pub(super) fn write(&mut self, exit: &Exit) {
        if exit.out_of_memory {
            let _ = self.oom.write_all(b"1");
        }
        if let Some(file) = &mut self.last_words
            && !exit.message.is_empty()
            // What the guest itself has to say is worth more.
            && file.metadata().is_ok_and(|file| file.len() == 0)
        {
            let _ = file.write_all(exit.message.as_bytes());
        }
    }
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) code: i32,
    /// Whether the guest reached its memory limit.
    pub(super) out_of_memory: bool,
    /// Why it ended, where not by itself.
    pub(super) message: String,
}

impl Exit {
    /// By itself, with this code.
    pub(super) fn with(code: i32) -> Self {
        Self { code, out_of_memory: false, message: String::new() }
    }

    /// By SIGTERM.
    pub(super) fn stopped() -> Self {
        Self::with(EXIT_STOPPED)
    }

    /// By an error of the guest's or the host's; `out_of_memory` where that was
    /// the memory limit.
    pub(super) fn failed(err: &wasmtime::Error, out_of_memory: Option<String>) -> Self {
        if let Some(exit) = err.downcast_ref::<I32Exit>() {
            return Self::with(exit.0);
        }
        let (code, message) = match (&out_of_memory, err.downcast_ref::<Trap>()) {
            (Some(limit), _) => (EXIT_OUT_OF_MEMORY, limit.clone()),
            (None, Some(trap)) => (EXIT_TRAPPED, trap.to_string()),
            (None, None) => (1, format!("{err:#}")),
        };
        say(&format!("the guest ended: {err:#}"));
        Self { code, out_of_memory: out_of_memory.is_some(), message: plain(&message) }
    }
}

/// Writes a line of ours into the guest's log, which is where a user looks.
pub(super) fn say(text: &str) {
    // Where it cannot be written nothing is lost but it.
    let _ = writeln!(io::stderr(), "pinnace: {}", plain(text));
}

/// Without control characters, which may be the guest's choice, and not too long.
fn plain(text: &str) -> String {
    let is_plain = |c: char| c == '\n' || !c.is_control();
    let mut plain: String = text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect();
    if MESSAGE_BYTES_MAX < plain.len() {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| plain.is_char_boundary(*at));
        plain.truncate(end.unwrap_or(0));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_process() {
        let check = |err: wasmtime::Error, limit: Option<&str>, code: i32, message: &str| {
            let exit = Exit::failed(&err, limit.map(str::to_owned));
            assert_eq!((exit.code, exit.message.as_str()), (code, message));
            assert_eq!(exit.out_of_memory, limit.is_some());
        };
        check(I32Exit(7).into(), None, 7, "");
        check(Trap::StackOverflow.into(), None, 134, "wasm trap: call stack exhausted");
        check(wasmtime::Error::msg("odd"), None, 1, "odd");
        check(wasmtime::Error::msg("odd"), Some("limit reached"), 137, "limit reached");
    }

    #[test]
    fn messages_are_plain_and_bounded() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a [2Jb\nc");
        let long = plain(&"ä".repeat(5000));
        assert_eq!(long.len(), MESSAGE_BYTES_MAX);
    }
}
