//! How a guest ended: the exit code a process would have had, a line for the
//! log, and what the shim reads afterwards.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
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

/// Name of the file in the container's folder that holds an [`Ended`].
pub(crate) const ENDED_FILE: &str = "ended";

/// What the guest's process knows of its end, for the shim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Whether the guest reached its memory limit.
    pub(crate) out_of_memory: bool,
    /// Why it ended, where not by itself.
    pub(crate) message: String,
}

/// Where [`Ended`] goes: opened before the process loses its way to the folder.
#[derive(Debug)]
pub(super) struct End {
    file: File,
}

impl End {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { file: super::create(&dir.join(ENDED_FILE))? })
    }

    pub(super) fn write(&mut self, exit: &Exit) {
        if exit.ended != Ended::default() {
            let json = serde_json::to_vec(&exit.ended).expect("it is plain data");
            // Where it cannot be written, the exit code still says the most of it.
            let _ = self.file.write_all(&json);
        }
    }
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) ended: Ended,
}

impl Exit {
    /// By itself, with this code.
    pub(super) fn with(code: i32) -> Self {
        Self { code, ended: Ended::default() }
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
        let ended = Ended { out_of_memory: out_of_memory.is_some(), message: plain(&message) };
        Self { code, ended }
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
            assert_eq!((exit.code, exit.ended.message.as_str()), (code, message));
            assert_eq!(exit.ended.out_of_memory, limit.is_some());
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
