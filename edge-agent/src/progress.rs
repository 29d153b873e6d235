//! What must outlive a power cut of a pod that goes on: for how long it has been
//! active, where a deadline counts it, and which of its containers are done.
//!
//! One file a pod, `pods/<uid>/progress`. Most pods have none: nothing is written
//! for one that has no deadline and whose containers are always restarted. How a
//! pod ended is in [`crate::results`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::{self, DurableError, Keep, Magic};
use crate::pods::PodState;
use crate::pods::deadline::keep_every;
use crate::results::ContainerRecord;

const MAGIC: Magic = *b"PNprg\0\0\x01";
const BYTES_MAX: u64 = 1 << 20;

/// What of a pod is kept while it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// For how long it had been active; zero where no deadline counts it.
    pub active: Duration,
    /// Containers that ended for good.
    pub ended: Vec<ContainerRecord>,
}

impl Progress {
    /// Reads what was kept; nothing is as good as no progress.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn load(disk: &Path) -> Result<Self, DurableError> {
        Ok(durable::read(&path(disk), MAGIC, BYTES_MAX)?.unwrap_or_default())
    }

    /// Writes it. Blocks until it is on the disk.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn store(&self, disk: &Path) -> Result<(), DurableError> {
        let path = path(disk);
        fs::create_dir_all(disk).map_err(|source| DurableError::Io {
            operation: "make the folder of",
            path: path.clone(),
            source,
        })?;
        durable::write(&path, MAGIC, self, Keep::ThroughPowerLoss)
    }

    /// Puts it into the state of a pod after a boot. How long the machine was up
    /// after the last write is not known: a whole interval is counted.
    pub fn restore(&self, state: &mut PodState, deadline_s: Option<u32>) {
        if let Some(deadline_s) = deadline_s
            && !self.active.is_zero()
        {
            state.active.before = self.active + keep_every(deadline_s);
        }
        for record in &self.ended {
            if let Some(container) = state.containers.iter_mut().find(|c| c.name == record.name) {
                record.restore(container);
            }
        }
        state.progress = self.clone();
    }
}

fn path(disk: &Path) -> PathBuf {
    disk.join("progress")
}
