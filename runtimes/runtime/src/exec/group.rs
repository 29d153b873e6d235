//! A command's own group below its container's, so that the command can be
//! killed with everything it has started, and nothing else.
//!
//! The group is made in one hierarchy only, version 2 where there is one:
//! without controllers it costs nothing, and leaves no memory behind in the
//! kernel when a probe makes and removes one every few seconds. The limits
//! stay the container's.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::cgroup::{Hierarchies, kill_below, processes_below};

/// The group of one command.
#[derive(Debug)]
pub(super) struct Group {
    /// `None` where nothing could be made: then only the command itself is killed.
    folder: Option<PathBuf>,
}

impl Group {
    /// Puts a process into the container's groups, and into a group of its own.
    ///
    /// # Errors
    /// It cannot be put under the container's limits.
    pub(super) fn admit(hierarchies: &Hierarchies, cgroup: &str, pid: i32) -> io::Result<Self> {
        hierarchies.add(cgroup, pid)?;
        let Some(parent) = hierarchies.tracking_folder(cgroup) else {
            return Ok(Self { folder: None });
        };
        let folder = parent.join(format!("exec-{pid}"));
        let made = fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join("cgroup.procs"), pid.to_string()));
        if made.is_err() {
            // A container may have moved its own groups about.
            let _ = fs::remove_dir(&folder);
            return Ok(Self { folder: None });
        }
        Ok(Self { folder: Some(folder) })
    }

    /// Kills everything in it.
    pub(super) fn kill(&self) {
        if let Some(folder) = &self.folder {
            kill_below(folder);
        }
    }

    /// Removes it. What the command left running goes on as the container's.
    pub(super) fn dissolve(self) {
        let Some(folder) = self.folder else { return };
        let Some(parent) = folder.parent() else { return };
        for pid in processes_below(&folder) {
            let _ = fs::write(parent.join("cgroup.procs"), pid.to_string());
        }
        let _ = fs::remove_dir(&folder);
    }
}
