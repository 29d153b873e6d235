//! Standard output and standard error: results, warnings and errors.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// Several failures, each of which was worth a line of its own.
#[derive(Debug)]
pub(crate) struct Failures(pub(crate) Vec<anyhow::Error>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failures", self.0.len())
    }
}

impl std::error::Error for Failures {}

/// One error for all of `failures`; success where there are none.
pub(crate) fn all(failures: Vec<anyhow::Error>) -> anyhow::Result<()> {
    if failures.is_empty() { Ok(()) } else { Err(Failures(failures).into()) }
}

/// Standard output was closed by its reader.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Whether an error only says that nobody reads the results any more.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    error.is::<Closed>()
}

/// Writes a result as it is.
pub(crate) fn write(bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => anyhow::Error::new(Closed),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    })
}

/// Writes a result as a line.
pub(crate) fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    write(format!("{text}\n"))
}

/// Writes a line for people, who may not be there.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a warning of the server, once however often it comes.
pub(crate) fn warning(text: &str) {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() < 1000 && seen.insert(text.to_owned()) {
        note(format_args!("{}Warning:{} {text}", colour("\x1b[33m"), colour("\x1b[0m")));
    }
}

/// Writes an error and what led to it, on one line; several, one a line.
pub(crate) fn error(error: &anyhow::Error) {
    if let Some(failures) = error.downcast_ref::<Failures>() {
        failures.0.iter().for_each(self::error);
        return;
    }
    note(format_args!("{}error:{} {error:#}", colour("\x1b[1;31m"), colour("\x1b[0m")));
}

/// An escape sequence, where standard error shows colours.
fn colour(sequence: &'static str) -> &'static str {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted && io::stderr().is_terminal() { sequence } else { "" }
}

/// Whether a person reads standard error.
pub(crate) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Asks on the terminal; `None` where there is nobody to ask.
pub(crate) fn confirm(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    let mut err = io::stderr().lock();
    let _ = write!(err, "{question} [y/N] ");
    let _ = err.flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).ok()?;
    Some(matches!(answer.trim(), "y" | "Y" | "yes"))
}
