//! Removing what no tag leads to.
//!
//! Marked from the tags, and from digests that pods have. Signatures, which are
//! tags of their own (`sha256-<hex>.sig`), live as long as what they sign; so do
//! manifests with a `subject`. Content that nothing leads to goes once that has
//! been so for the grace, counted by this process' own clock, and nobody has
//! written to its repository meanwhile: a push uploads first and names last.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::atomic::Ordering;

use image::Digest;
use tokio::time::Instant;

use crate::files::{Links, lock, names_in, unlink};
use crate::{Files, Name};

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs and manifests.
    pub n_blobs: usize,
    /// Their bytes.
    pub n_bytes: u64,
    /// Uploads that were given up.
    pub n_uploads: usize,
}

impl Files {
    /// Removes what nothing leads to any more. `in_use` are digests that count as
    /// if they were tagged.
    ///
    /// # Errors
    /// The disk cannot be read or written; the rest is done at the next call.
    pub async fn collect(&self, in_use: &BTreeSet<Digest>) -> io::Result<Swept> {
        let mut swept = Swept { n_uploads: self.expire_uploads()?, ..Swept::default() };
        let _alone = self.gate.write().await;
        let repositories = self.repositories()?;
        let now = Instant::now();
        let (mut live, mut resting) = (BTreeSet::new(), BTreeSet::new());
        let mut strays = Vec::new();
        for name in &repositories {
            let marked = self.mark(name, in_use)?;
            // Counted from when this process first sees it: a push may have begun before.
            let since = *lock(&self.active).entry(name.clone()).or_insert(now);
            let is_quiet = now.duration_since(since) >= self.config.grace;
            for digest in self.linked(name)? {
                match (is_quiet, marked.contains(&digest)) {
                    (false, _) => {
                        resting.insert(digest);
                    }
                    (true, false) => strays.push((name, digest)),
                    (true, true) => {}
                }
            }
            live.extend(marked);
        }
        lock(&self.active).retain(|name, _| repositories.contains(name));
        let mut doomed = Vec::new();
        {
            let mut idle = lock(&self.idle);
            let files = names_in(&self.root.join("blobs"))?;
            let digests: BTreeSet<Digest> =
                files.iter().filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect();
            idle.retain(|digest, _| digests.contains(digest) && !live.contains(digest));
            for digest in digests.difference(&live) {
                let since = *idle.entry(*digest).or_insert(now);
                if now.duration_since(since) >= self.config.grace && !resting.contains(digest) {
                    doomed.push(*digest);
                }
            }
            for digest in &doomed {
                idle.remove(digest);
            }
        }
        // Links first: what is named is there.
        for (name, digest) in strays {
            for kind in ["_manifests", "_blobs"] {
                unlink(&self.link(name, kind, &digest.hex()))?;
            }
        }
        for name in &repositories {
            for tag in self.tags(name).unwrap_or_default() {
                let is_gone =
                    |digest: Digest| !self.link(name, "_manifests", &digest.hex()).exists();
                if tag.subject().is_some() && self.tag(name, &tag).is_ok_and(is_gone) {
                    unlink(&self.link(name, "_tags", tag.as_str()))?;
                }
            }
            self.remove_empty(name);
        }
        for digest in doomed {
            let path = self.blob_path(digest);
            let size = fs::metadata(&path).map_or(0, |file| file.len());
            if unlink(&path)? {
                self.used.fetch_sub(size, Ordering::Relaxed);
                swept.n_blobs += 1;
                swept.n_bytes += size;
            }
        }
        Ok(swept)
    }

    /// Everything in a repository that something leads to.
    fn mark(&self, name: &Name, in_use: &BTreeSet<Digest>) -> io::Result<BTreeSet<Digest>> {
        let manifests = self.manifests(name)?;
        let mut live = BTreeSet::new();
        let mut about = Vec::new();
        for tag in self.tags(name).unwrap_or_default() {
            let Ok(digest) = self.tag(name, &tag) else { continue };
            match tag.subject() {
                None => self.follow(digest, &mut live),
                Some(subject) => about.push((subject, digest)),
            }
        }
        for (digest, _) in &manifests {
            if in_use.contains(digest) {
                self.follow(*digest, &mut live);
            }
            let bytes = self.document(*digest).unwrap_or_default();
            if let Some(subject) = Links::of(&bytes).ok().and_then(|links| links.subject) {
                about.push((subject, *digest));
            }
        }
        loop {
            let n_live = live.len();
            for (subject, digest) in &about {
                if live.contains(subject) {
                    self.follow(*digest, &mut live);
                }
            }
            if live.len() == n_live {
                return Ok(live);
            }
        }
    }

    /// A manifest and all that it leads to.
    fn follow(&self, digest: Digest, live: &mut BTreeSet<Digest>) {
        let mut waiting = vec![digest];
        while let Some(digest) = waiting.pop() {
            if !live.insert(digest) {
                continue;
            }
            let bytes = self.document(digest).unwrap_or_default();
            if let Ok(links) = Links::of(&bytes) {
                live.extend(links.blobs);
                waiting.extend(links.manifests);
            }
        }
    }

    fn linked(&self, name: &Name) -> io::Result<Vec<Digest>> {
        let mut digests: Vec<Digest> = Vec::new();
        for kind in ["_blobs", "_manifests"] {
            let names = names_in(&self.repository(name).join(kind))?;
            digests.extend(
                names.iter().filter_map(|hex| format!("sha256:{hex}").parse::<Digest>().ok()),
            );
        }
        Ok(digests)
    }

    /// Removes the folders of a repository that holds nothing any more.
    fn remove_empty(&self, name: &Name) {
        let folder = self.repository(name);
        let is_empty =
            |kind: &str| names_in(&folder.join(kind)).is_ok_and(|names| names.is_empty());
        if !["_blobs", "_manifests", "_tags"].iter().all(|kind| is_empty(kind)) {
            return;
        }
        for kind in ["_blobs", "_manifests", "_tags"] {
            let _ = fs::remove_dir(folder.join(kind));
        }
        let root = self.root.join("repositories");
        let mut folder = folder.as_path();
        // Up to the first that holds something else.
        while folder != root && fs::remove_dir(folder).is_ok() {
            let Some(above) = folder.parent() else { return };
            folder = above;
        }
    }
}
