//! The user's terminal: raw while a terminal in a pod is shown in it.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal passes everything on, until this is dropped.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone, and then nobody sees it.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The size as the API wants it; `None` where there is no terminal.
pub(super) fn size() -> Option<String> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(format!("{{\"Width\":{},\"Height\":{}}}", size.ws_col, size.ws_row))
}
