//! Removing images that nobody uses.
//!
//! ```text
//! unused(): images that may go, the one used longest ago first
//! forget(): one of them ─► its layers, where no other image has them
//! sweep():  what no record names: left by pulls that failed, by names that moved on
//! ```
//!
//! Safe beside pulls: whatever a pull has begun to rely on is pinned, and the
//! decision is made under the lock of the pins. What goes is moved out of its
//! place first, so that a removal cut short leaves nothing half in place.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{Record, Store, list, remove};
use crate::manifest::{self, Document};
use crate::{Digest, ImageError};

/// Tells what is set aside apart.
static N_ASIDE: AtomicU64 = AtomicU64::new(0);

/// What must stay.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// Names, in full, that pods have; the newest image of each stays.
    pub names: BTreeSet<String>,
    /// Digests of indexes or manifests that pods have.
    pub digests: BTreeSet<Digest>,
    /// Layers that containers are mounted from.
    pub layers: BTreeSet<PathBuf>,
}

/// An image that nobody uses.
#[derive(Clone, Debug)]
pub struct Unused {
    /// Which.
    pub record: Record,
    /// When it was last asked for; `None` where that was before the start.
    pub last_used: Option<Instant>,
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images forgotten.
    pub n_names: usize,
    /// Layers removed.
    pub n_layers: usize,
}

impl Store {
    /// Images that may go, the one used longest ago first. Those asked for within
    /// `age_min` stay: a pod may be about to start on them.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn unused(&self, in_use: &InUse, age_min: Duration) -> Result<Vec<Unused>, ImageError> {
        let records = self.records()?;
        let newest = |record: &Record| {
            !records
                .iter()
                .any(|other| other.name == record.name && other.sequence > record.sequence)
        };
        let uses = self.uses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut unused: Vec<Unused> = records
            .iter()
            .filter(|record| {
                let named = in_use.names.contains(&record.name) && newest(record);
                !named
                    && !in_use.digests.contains(&record.digest)
                    && !in_use.digests.contains(&record.manifest)
            })
            .map(|record| Unused {
                record: record.clone(),
                last_used: uses.get(&(record.name.clone(), record.digest)).copied(),
            })
            .filter(|unused| unused.last_used.is_none_or(|at| at.elapsed() >= age_min))
            .collect();
        // What was not used since the start goes first, in the order it came.
        unused.sort_by_key(|unused| (unused.last_used, unused.record.sequence));
        Ok(unused)
    }

    /// Forgets one image, and removes what no other needs.
    ///
    /// # Errors
    /// The disk cannot be read or written; the rest is done at the next call.
    pub async fn forget(
        &self,
        record: &Record,
        layers_in_use: &BTreeSet<PathBuf>,
    ) -> Result<Collected, ImageError> {
        let path = self.record_path(&record.name, record.digest);
        remove(&path).map_err(ImageError::disk("remove", &path))?;
        {
            let mut uses = self.uses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            uses.remove(&(record.name.clone(), record.digest));
        }
        let collected = self.sweep(layers_in_use).await?;
        Ok(Collected { n_names: 1, ..collected })
    }

    /// Removes every record that `keep` refuses, and what nothing refers to any more.
    ///
    /// # Errors
    /// The disk cannot be read or written; the rest is done at the next call.
    pub async fn collect(&self, keep: impl Fn(&Record) -> bool) -> Result<Collected, ImageError> {
        let mut collected = Collected::default();
        for record in self.records()? {
            if !keep(&record) {
                let path = self.record_path(&record.name, record.digest);
                remove(&path).map_err(ImageError::disk("remove", &path))?;
                collected.n_names += 1;
            }
        }
        let swept = self.sweep(&BTreeSet::new()).await?;
        Ok(Collected { n_layers: swept.n_layers, ..collected })
    }

    /// Removes what no record names and no pull needs.
    ///
    /// # Errors
    /// The disk cannot be read or written; the rest is done at the next call.
    pub async fn sweep(&self, layers_in_use: &BTreeSet<PathBuf>) -> Result<Collected, ImageError> {
        let (n_layers, doomed) = self.set_aside(layers_in_use)?;
        let removed = tokio::task::spawn_blocking(move || {
            // All are tried; the first problem is told.
            let problems = doomed.into_iter().filter_map(|path| {
                remove(&path).err().map(|error| ImageError::disk("remove", path)(error))
            });
            problems.fold(None, |first, problem| first.or(Some(problem)))
        });
        match removed.await.expect("removing does not panic") {
            Some(problem) => Err(problem),
            None => Ok(Collected { n_names: 0, n_layers }),
        }
    }

    /// Moves what is to go out of its place; returns how many layers that are, and
    /// where everything is now.
    fn set_aside(
        &self,
        layers_in_use: &BTreeSet<PathBuf>,
    ) -> Result<(usize, Vec<PathBuf>), ImageError> {
        let pins = self.pins();
        let mut used: BTreeSet<PathBuf> = layers_in_use.clone();
        used.extend(pins.keys().cloned());
        for record in self.records()? {
            used.insert(self.blob(record.manifest));
            used.insert(self.blob(record.digest));
            used.insert(self.signature_path(record.digest));
            used.insert(self.signature_path(record.manifest));
            if let Some(config) = self.config_of(record.manifest) {
                used.insert(self.blob(config));
            }
            if let Some(image) = self.assemble(String::new(), &record) {
                used.extend(image.layers);
            }
        }
        let (mut n_layers, mut doomed) = (0, Vec::new());
        for folder in ["blobs/sha256", "layers", "signatures"] {
            let folder = self.root.join(folder);
            for path in list(&folder).map_err(ImageError::disk("read", &folder))? {
                if used.contains(&path) {
                    continue;
                }
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                // Another collection may be removing one of the same name.
                let n = N_ASIDE.fetch_add(1, Ordering::Relaxed);
                let aside = self.tmp(&format!("{name}.{n}.doomed"));
                fs::rename(&path, &aside).map_err(ImageError::disk("move", &path))?;
                n_layers += usize::from(aside.is_dir());
                doomed.push(aside);
            }
        }
        // Downloads that nobody goes on with.
        let tmp = self.root.join("tmp");
        for path in list(&tmp).map_err(ImageError::disk("read", &tmp))? {
            let is_part = path.extension().is_some_and(|extension| extension == "part");
            if is_part && !used.contains(&path) {
                doomed.push(path);
            }
        }
        Ok((n_layers, doomed))
    }

    fn config_of(&self, manifest: Digest) -> Option<Digest> {
        let bytes = fs::read(self.blob(manifest)).ok()?;
        match manifest::parse(&bytes) {
            Ok(Document::Manifest(manifest)) => Some(manifest.config.digest),
            _ => None,
        }
    }
}
