//! A terminal with a program in it, and somebody who types: what a user of
//! `kubectl exec -it` has.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::{check, until};

/// A program in a terminal of its own.
pub(crate) struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts `command` in a terminal of that size.
    pub(crate) fn start(command: &Command, size: (u16, u16)) -> Self {
        let ends = openpty(None, None).expect("the system has terminals");
        let copy = |fd: &OwnedFd| fd.try_clone().expect("descriptor is copied");
        let stdio = || Stdio::from(copy(&ends.slave));
        // A session of its own, with this as its terminal.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        resize(&ends.slave, size);
        let child = session.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {session:?}: {error}"));
        let master = File::from(copy(&ends.master));
        let seen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&seen);
        let mut reader = File::from(ends.master);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Self { child, master, slave: ends.slave, seen }
    }

    /// Types. What nobody reads any more is lost, once the terminal is full of it.
    pub(crate) fn write(&self, text: &str) {
        let mut writable = [PollFd::new(self.master.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut writable, PollTimeout::ZERO) != Ok(1) {
            return;
        }
        (&self.master).write_all(text.as_bytes()).expect("the terminal takes input");
    }

    /// Everything shown so far.
    pub(crate) fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `text` is shown.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) -> String {
        until(&format!("the terminal shows {text:?}"), || {
            let seen = self.seen();
            check(seen.contains(text), || seen.clone()).map(|()| seen)
        })
    }

    /// Makes it as large, in rows and columns; what runs in it hears of that.
    pub(crate) fn resize(&self, size: (u16, u16)) {
        resize(&self.slave, size);
    }

    /// Waits for the end of the program; its exit code.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> i32 {
        let seen = Arc::clone(&self.seen);
        let child = &mut self.child;
        until("what runs in the terminal ends", || match child.try_wait() {
            Ok(Some(status)) => Ok(status.code().unwrap_or(-1)),
            Ok(None) => Err(format!("it shows {:?}", seen.lock().unwrap())),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Ends it as a closed window does.
    pub(crate) fn kill(&mut self) {
        // `setsid --wait` has it as its child; both go.
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.kill();
    }
}

fn resize(slave: &OwnedFd, (rows, columns): (u16, u16)) {
    let mut stty = Command::new("stty");
    stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
    stty.stdin(slave.try_clone().expect("descriptor is copied"));
    let status = stty.status().expect("stty is there");
    assert!(status.success(), "{stty:?}: {status}");
}
