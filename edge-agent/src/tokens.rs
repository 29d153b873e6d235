//! Tokens of pods' ServiceAccounts: what the node holds of each pod, and where
//! that outlives the agent.
//!
//! [`crate::node`] asks the master for them, [`crate::pods::owner`] keeps them
//! here and shows them to the pods, whose volumes change in place.
//!
//! | file | written | read |
//! | --- | --- | --- |
//! | `run/tokens` | at every change | after a restart of the agent |
//! | `state/tokens` | when a pod gets its first ones, else once a day | after a boot |
//!
//! Both are sealed like the set. A refresh of an hourly token so costs the flash
//! nothing: what a board shows after a boot without the master is expired most
//! likely, and stays until the link is back, as the kubelet has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wire::Uid;
use wire::pod::{PodV1, ProjectionV1, VolumeSourceV1};

use crate::config::Folders;
use crate::durable::{self, DurableError, Keep, Magic};
use crate::hooks::chain;
use crate::seal::Seal;

const MAGIC: Magic = *b"PNtok\0\0\x01";
/// Largest file, in bytes.
const BYTES_MAX: u64 = 16 << 20;
/// How old what is on the disk may become.
const DISK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Tokens of one pod, by audience (empty for the API server) and by how many
/// seconds they were asked for.
pub type PodTokens = BTreeMap<(String, u32), String>;

/// What the node holds of each pod.
pub type Table = BTreeMap<Uid, Held>;

/// What the node holds of one pod.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The newest tokens.
    pub tokens: Arc<PodTokens>,
    /// How long the shortest of them was good when it came, in seconds.
    pub lifetime_s: u32,
    /// Why the master gave none when it was last asked; empty where it did.
    pub problem: String,
}

// Tokens are secrets.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("n_tokens", &self.tokens.len())
            .field("lifetime_s", &self.lifetime_s)
            .field("problem", &self.problem)
            .finish_non_exhaustive()
    }
}

/// A token that a volume of a pod shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The volume.
    pub volume: &'a str,
    /// For whom it is; empty for the API server.
    pub audience: &'a str,
    /// How long it is to be good, in seconds.
    pub expiration_s: u32,
}

/// The tokens that a pod's volumes show.
pub fn wanted(pod: &PodV1) -> impl Iterator<Item = Wanted<'_>> {
    pod.volumes.iter().flat_map(|volume| {
        let sources = match &volume.source {
            VolumeSourceV1::Projected { sources, .. } => sources.as_slice(),
            _ => &[],
        };
        sources.iter().filter_map(|source| match source {
            ProjectionV1::Token { audience, expiration_s, .. } => {
                Some(Wanted { volume: &volume.name, audience, expiration_s: *expiration_s })
            }
            _ => None,
        })
    })
}

/// The first token that a pod's volumes show and that is not there.
#[must_use]
pub fn missing<'a>(pod: &'a PodV1, tokens: &PodTokens) -> Option<Wanted<'a>> {
    wanted(pod)
        .find(|wanted| !tokens.contains_key(&(wanted.audience.to_owned(), wanted.expiration_s)))
}

/// What was kept when the agent starts, and how old it is, where that is known.
pub type Found = BTreeMap<Uid, (Held, Option<Duration>)>;

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// When `state/tokens` was last written, in milliseconds since the boot.
    disk_ms: Option<u64>,
    pods: Vec<KeptPod>,
}

#[derive(Serialize, Deserialize)]
struct KeptPod {
    uid: Uid,
    /// When they came, in milliseconds since the boot; nothing where that was
    /// another boot.
    received_ms: Option<u64>,
    lifetime_s: u32,
    tokens: Vec<(String, u32, String)>,
}

/// Where tokens are kept.
pub struct Shelf {
    run: PathBuf,
    disk: PathBuf,
    seal: Arc<Seal>,
    kept: BTreeMap<Uid, (Arc<PodTokens>, Option<u64>)>,
    on_disk: BTreeSet<Uid>,
    disk_ms: Option<u64>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Shelf {
    /// Reads what is kept; `now` is the time since the boot. What is damaged counts
    /// as missing: the master is asked again.
    #[must_use]
    pub fn open(folders: &Folders, seal: Arc<Seal>, now: Duration) -> (Self, Found) {
        let (run, disk) = (folders.run.join("tokens"), folders.state.join("tokens"));
        let read = |path: &PathBuf| {
            durable::read_sealed::<Kept>(path, MAGIC, BYTES_MAX, &seal).unwrap_or_else(|error| {
                tracing::error!(error = chain(&error), "tokens are asked of the master again");
                None
            })
        };
        let (of_boot, of_disk) = (read(&run), read(&disk).unwrap_or_default());
        let on_disk = of_disk.pods.iter().map(|pod| pod.uid).collect();
        let is_of_boot = of_boot.is_some();
        let newest = of_boot.unwrap_or(of_disk);
        let mut shelf = Self {
            run,
            disk,
            seal,
            kept: BTreeMap::new(),
            on_disk,
            disk_ms: newest.disk_ms.filter(|_| is_of_boot),
        };
        let mut found = Found::new();
        for pod in newest.pods {
            let received_ms = pod.received_ms.filter(|_| is_of_boot);
            let tokens = pod.tokens.into_iter();
            let tokens: Arc<PodTokens> =
                Arc::new(tokens.map(|(to, seconds, token)| ((to, seconds), token)).collect());
            shelf.kept.insert(pod.uid, (Arc::clone(&tokens), received_ms));
            let held = Held { tokens, lifetime_s: pod.lifetime_s, problem: String::new() };
            let age = received_ms.map(|at| now.saturating_sub(Duration::from_millis(at)));
            found.insert(pod.uid, (held, age));
        }
        (shelf, found)
    }

    /// Keeps what the node holds now. Blocks until it is where it has to be.
    ///
    /// # Errors
    /// A file cannot be written: it is as it was, and written with the next change.
    pub fn keep(&mut self, table: &Table, now: Duration) -> Result<(), DurableError> {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let held = table.iter().filter(|(_, held)| !held.tokens.is_empty());
        let kept: BTreeMap<Uid, _> = held
            .clone()
            .map(|(uid, held)| {
                let before = self.kept.get(uid).filter(|(tokens, _)| *tokens == held.tokens);
                (*uid, before.cloned().unwrap_or_else(|| (Arc::clone(&held.tokens), Some(now_ms))))
            })
            .collect();
        if kept == self.kept {
            return Ok(());
        }
        self.kept = kept;
        let is_old = self
            .disk_ms
            .is_none_or(|at| Duration::from_millis(now_ms.saturating_sub(at)) >= DISK_EVERY);
        let is_new = self.kept.keys().any(|uid| !self.on_disk.contains(uid));
        let pods = held.map(|(uid, held)| KeptPod {
            uid: *uid,
            received_ms: self.kept.get(uid).and_then(|(_, received_ms)| *received_ms),
            lifetime_s: held.lifetime_s,
            tokens: held
                .tokens
                .iter()
                .map(|((audience, seconds), token)| (audience.clone(), *seconds, token.clone()))
                .collect(),
        });
        let mut all = Kept { disk_ms: self.disk_ms, pods: pods.collect() };
        if is_old || is_new {
            durable::write_sealed(&self.disk, MAGIC, &all, Keep::ThroughPowerLoss, &self.seal)?;
            self.on_disk = self.kept.keys().copied().collect();
            self.disk_ms = Some(now_ms);
            all.disk_ms = self.disk_ms;
        }
        durable::write_sealed(&self.run, MAGIC, &all, Keep::ThroughRestart, &self.seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(token: &str) -> Held {
        let tokens = BTreeMap::from([((String::new(), 3607), token.to_owned())]);
        Held { tokens: Arc::new(tokens), lifetime_s: 3607, problem: String::new() }
    }

    fn table(pods: &[(u8, &str)]) -> Table {
        pods.iter().map(|(uid, token)| ([*uid; 16], held(token))).collect()
    }

    struct Board {
        _folder: tempfile::TempDir,
        folders: Folders,
        seal: Arc<Seal>,
        _locks: crate::config::Locks,
    }

    impl Board {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (folders, locks) =
                Folders::open(&folder.path().join("state"), &folder.path().join("run")).unwrap();
            let seal = Arc::new(Seal::open(&folders.state, None).unwrap());
            Self { _folder: folder, folders, seal, _locks: locks }
        }

        fn open(&self, now_s: u64) -> (Shelf, Found) {
            Shelf::open(&self.folders, Arc::clone(&self.seal), Duration::from_secs(now_s))
        }

        /// Whether the file on the disk was written since the last look.
        fn was_written(&self) -> bool {
            let path = self.folders.state.join("tokens");
            let seen = path.with_extension("seen");
            let now = std::fs::read(&path).unwrap_or_default();
            let before = std::fs::read(&seen).unwrap_or_default();
            std::fs::write(seen, &now).unwrap();
            now != before
        }
    }

    #[test]
    fn a_refresh_costs_no_write_and_a_restart_knows_the_newest() {
        let board = Board::new();
        let (mut shelf, found) = board.open(10);
        assert!(found.is_empty());
        let at = Duration::from_secs;
        shelf.keep(&table(&[(1, "first")]), at(10)).unwrap();
        assert!(board.was_written());
        // Thirty refreshes, a pod that goes, and one whose answer is a problem.
        for n in 1..=30 {
            shelf.keep(&table(&[(1, &format!("token {n}"))]), at(10 + n)).unwrap();
        }
        assert!(!board.was_written());
        let with_problem = Held { problem: "no account".into(), ..held("token 30") };
        shelf.keep(&BTreeMap::from([([1; 16], with_problem)]), at(41)).unwrap();
        assert!(!board.was_written());

        let (mut shelf, found) = board.open(50);
        assert_eq!(found[&[1; 16]], (held("token 30"), Some(at(10))));
        shelf.keep(&table(&[(1, "token 31")]), at(51)).unwrap();
        assert!(!board.was_written());
        shelf.keep(&table(&[(1, "token 31"), (2, "other")]), at(52)).unwrap();
        assert!(board.was_written(), "a pod has its first token");
        shelf.keep(&table(&[(1, "token 32"), (2, "other")]), at(53 + 24 * 3600)).unwrap();
        assert!(board.was_written(), "what is on the disk is a day old");
        shelf.keep(&table(&[(2, "other")]), at(54 + 24 * 3600)).unwrap();
        assert!(!board.was_written(), "a pod that goes is gone with the next write");
    }

    #[test]
    fn a_boot_finds_what_was_on_the_disk_and_nobody_else_reads_it() {
        let board = Board::new();
        let (mut shelf, _) = board.open(10);
        shelf.keep(&table(&[(1, "secret one")]), Duration::from_secs(10)).unwrap();
        shelf.keep(&table(&[(1, "secret two")]), Duration::from_secs(20)).unwrap();
        for path in [board.folders.state.join("tokens"), board.folders.run.join("tokens")] {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(6).any(|part| part == b"secret"), "{}", path.display());
        }
        std::fs::remove_file(board.folders.run.join("tokens")).unwrap();
        let (mut shelf, found) = board.open(5);
        assert_eq!(found[&[1; 16]], (held("secret one"), None), "its age is not known");
        board.was_written();
        shelf.keep(&table(&[(1, "secret three")]), Duration::from_secs(6)).unwrap();
        assert!(board.was_written(), "the first refresh after a boot");

        for path in [board.folders.state.join("tokens"), board.folders.run.join("tokens")] {
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        assert!(board.open(7).1.is_empty(), "what is damaged is asked for again");
    }
}
