//! All pods of the node: takes whole sets, keeps one worker a pod, passes on
//! what they say.
//!
//! ```text
//!  link ── Apply(set) ──► owner ── wish ──► worker (one a pod)
//!    ▲                      │  ◄── status, event, gone ──┘
//!    └── Applied, Statuses, Event, Running
//! ```
//!
//! Static pods come from a folder of the board, beside the set, and are no part of
//! it: no set stops them.
//!
//! A set is stored before it counts as applied. If the disk is full, it is made
//! so nevertheless, and storing it is tried again: the master hears of it later.
//! Where only the cluster's network changed it is stored within [`STORE_LATE`]:
//! any pod anywhere changes that, and flash has only so many writes. What a
//! power cut takes of it the master sends again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::pod::{PodV1, RestartPolicyV1};
use wire::set::{NodeConfigV1, SnapshotV1};
use wire::status::{EventV1, PodStatusV1, TerminatedV1};
use wire::{Epoch, Uid};

use super::worker::{FromPod, Worker, differs};
use super::{Container, Desired, Eviction, PodState, Role, Run};
use crate::clock::Clock;
use crate::hooks::{Hooks, chain};
use crate::manifests::Manifests;
use crate::progress::Progress;
use crate::tokens::{Shelf, Table};
use crate::{id, logs, set};

/// How long a full disk is left alone before the set is stored again.
const STORE_AGAIN: Duration = Duration::from_secs(30);
/// How long a change of the cluster's network alone may be kept in memory only.
const STORE_LATE: Duration = Duration::from_secs(600);
/// Messages of workers that wait for the owner, at most.
const FROM_PODS_MAX: usize = 64;
/// Restarts that wait for the owner, at most.
const RESTARTS_MAX: usize = 8;
/// Evictions that wait for the owner, at most.
const EVICTIONS_MAX: usize = 8;
/// How long pods may take to say their first word, before the link speaks without them.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// What the owner tells the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A set is on disk.
    Applied(Epoch, u64),
    /// Statuses that are new or changed.
    Statuses(Vec<PodStatusV1>),
    /// Something happened.
    Event(EventV1),
    /// Every pod on the node, as (uid, generation).
    Running(Vec<(Uid, u64)>),
}

/// Sets up the node as a set says, before any pod of it is looked at.
pub type Configure = Box<dyn Fn(&NodeConfigV1) + Send + Sync>;

/// Where the node says that it ends a pod. A pod that is gone or over is left so.
pub type Evictor = mpsc::Sender<(Uid, Eviction)>;

/// Where somebody on the board says that a pod is to begin anew. A pod that is gone or
/// over is left so.
pub type Restarter = mpsc::Sender<Uid>;

/// All pods as they are wanted, for whoever shows them.
pub type Roster = watch::Receiver<BTreeMap<Uid, Wanted>>;

/// A pod as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The pod.
    pub pod: Arc<PodV1>,
    /// Since when it is to stop and be forgotten, in milliseconds since 1970.
    pub going_ms: Option<u64>,
}

/// The statuses of all pods, for whoever serves logs.
pub type Board = watch::Receiver<BTreeMap<Uid, PodStatusV1>>;

/// A pod found when the agent started.
#[derive(Debug)]
pub struct Found {
    /// What is wanted of it.
    pub desired: Desired,
    /// What is known of it.
    pub state: PodState,
}

/// Owns all pods.
pub struct Owner {
    hooks: Arc<Hooks>,
    clock: Clock,
    pods: BTreeMap<Uid, watch::Sender<Desired>>,
    /// Pods whose first status is still to come.
    silent: BTreeSet<Uid>,
    from_pods: (mpsc::Sender<FromPod>, mpsc::Receiver<FromPod>),
    evictions: (Evictor, mpsc::Receiver<(Uid, Eviction)>),
    restarts: (Restarter, mpsc::Receiver<Uid>),
    roster: watch::Sender<BTreeMap<Uid, Wanted>>,
    board: watch::Sender<BTreeMap<Uid, PodStatusV1>>,
    news: mpsc::Sender<News>,
    configure: Configure,
    set: Option<Arc<SnapshotV1>>,
    /// The static pods.
    local: BTreeMap<Uid, Desired>,
    unstored: Option<Arc<SnapshotV1>>,
    /// When the set is to be stored that differs from the stored one in the cluster's
    /// network only.
    late: Option<tokio::time::Instant>,
    has_spoken: bool,
    /// The tokens of the pods.
    tokens: Arc<Table>,
    shelf: Option<Shelf>,
    new_tokens: Option<watch::Receiver<Arc<Table>>>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("n_pods", &self.pods.len()).finish_non_exhaustive()
    }
}

impl Owner {
    /// An owner of the pods that were found, with the set that is on disk.
    #[must_use]
    pub fn new(
        hooks: Arc<Hooks>,
        clock: Clock,
        set: Option<Arc<SnapshotV1>>,
        news: mpsc::Sender<News>,
        configure: Configure,
    ) -> (Self, Board) {
        let (board, reader) = watch::channel(BTreeMap::new());
        let owner = Self {
            hooks,
            clock,
            pods: BTreeMap::new(),
            silent: BTreeSet::new(),
            from_pods: mpsc::channel(FROM_PODS_MAX),
            evictions: mpsc::channel(EVICTIONS_MAX),
            restarts: mpsc::channel(RESTARTS_MAX),
            roster: watch::Sender::default(),
            board,
            news,
            configure,
            set,
            local: BTreeMap::new(),
            unstored: None,
            late: None,
            has_spoken: false,
            tokens: Arc::default(),
            shelf: None,
            new_tokens: None,
        };
        (owner, reader)
    }

    /// With the tokens that were kept, where to keep those that come, and where
    /// they come from.
    #[must_use]
    pub fn with_tokens(self, kept: Table, shelf: Shelf, news: watch::Receiver<Arc<Table>>) -> Self {
        Self { tokens: Arc::new(kept), shelf: Some(shelf), new_tokens: Some(news), ..self }
    }

    /// Where to say that the node ends a pod.
    #[must_use]
    pub fn evictor(&self) -> Evictor {
        self.evictions.0.clone()
    }

    /// Where to say that a pod is to begin anew.
    #[must_use]
    pub fn restarter(&self) -> Restarter {
        self.restarts.0.clone()
    }

    /// All pods as they are wanted.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.roster.subscribe()
    }

    /// Runs until cancelled. The pods go on without it.
    pub async fn run(
        mut self,
        found: Vec<Found>,
        mut sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
        mut manifests: watch::Receiver<Arc<Manifests>>,
        stop: CancellationToken,
    ) {
        self.configure();
        self.local = local_pods(&manifests.borrow_and_update());
        let mut new_tokens = self.new_tokens.take();
        for Found { desired, state } in found {
            self.silent.insert(desired.pod.uid);
            self.spawn(desired, state);
        }
        match self.set.clone() {
            Some(set) => self.make_so(&set, None),
            None => self.make_local_so(&BTreeMap::new()),
        }
        let first_word = tokio::time::sleep(FIRST_WORD);
        tokio::pin!(first_word);
        if self.silent.is_empty() {
            self.speak().await;
        }
        loop {
            let again = self.unstored.is_some();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.store_late().await;
                    return;
                }
                Some(message) = self.from_pods.1.recv() => self.hear(message).await,
                Ok(()) = sets.changed() => {
                    let set = sets.borrow_and_update().clone();
                    if let Some(set) = set {
                        self.apply(set).await;
                    }
                }
                Some(table) = next_tokens(&mut new_tokens) => self.take_tokens(table).await,
                Some((uid, eviction)) = self.evictions.1.recv() => self.evict(&uid, eviction),
                Some(uid) = self.restarts.1.recv() => {
                    if let Some(wish) = self.pods.get(&uid) {
                        wish.send_modify(|desired| desired.restarts += 1);
                    }
                }
                Ok(()) = manifests.changed() => {
                    let local = local_pods(&manifests.borrow_and_update());
                    let before = std::mem::replace(&mut self.local, local);
                    self.make_local_so(&before);
                    if self.has_spoken {
                        self.speak().await;
                    }
                }
                () = sleep_until(self.late) => self.store_late().await,
                () = &mut first_word, if !self.has_spoken => self.speak().await,
                () = tokio::time::sleep(STORE_AGAIN), if again => {
                    if let Some(set) = self.unstored.clone() {
                        self.store(set).await;
                    }
                }
            }
        }
    }

    /// Keeps tokens that have come, and shows them to their pods.
    async fn take_tokens(&mut self, table: Arc<Table>) {
        if let Some(mut shelf) = self.shelf.take() {
            let (kept, now) = (Arc::clone(&table), self.clock.now().mono);
            let (shelf, kept) = tokio::task::spawn_blocking(move || {
                let result = shelf.keep(&kept, now);
                (shelf, result)
            })
            .await
            .expect("keeping does not panic");
            self.shelf = Some(shelf);
            if let Err(error) = kept {
                // They are used from memory; only a restart would miss them.
                tracing::error!(error = chain(&error), "cannot keep the tokens of pods");
            }
        }
        for (uid, held) in &*table {
            if let Some(wish) = self.pods.get(uid) {
                wish.send_if_modified(|desired| {
                    let is_new = desired.tokens != *held;
                    desired.tokens.clone_from(held);
                    is_new
                });
            }
        }
        self.tokens = table;
    }

    fn evict(&self, uid: &Uid, eviction: Eviction) {
        if let Some(wish) = self.pods.get(uid) {
            wish.send_modify(|desired| desired.eviction = Some(eviction));
        }
    }

    async fn tell(&self, news: News) {
        // The link is gone only when the agent stops.
        let _ = self.news.send(news).await;
    }

    /// Tells which pods there are, once each has said how it is.
    async fn speak(&mut self) {
        self.has_spoken = true;
        let running =
            self.pods.iter().map(|(uid, wish)| (*uid, wish.borrow().generation)).collect();
        self.tell(News::Running(running)).await;
    }

    async fn apply(&mut self, set: Arc<SnapshotV1>) {
        let is_same = self.set.as_deref().is_some_and(|before| has_same_own(before, &set));
        if is_same && self.unstored.is_none() {
            self.late.get_or_insert_with(|| tokio::time::Instant::now() + STORE_LATE);
            self.tell(News::Applied(set.epoch, set.revision)).await;
        } else {
            self.store(Arc::clone(&set)).await;
        }
        let before = self.set.replace(Arc::clone(&set));
        self.configure();
        self.make_so(&set, before.as_deref());
        if self.has_spoken {
            self.speak().await;
        }
    }

    /// Stores what was kept in memory only.
    async fn store_late(&mut self) {
        if self.late.is_some()
            && let Some(set) = self.set.clone()
        {
            self.store(set).await;
        }
    }

    async fn store(&mut self, set: Arc<SnapshotV1>) {
        self.late = None;
        let (path, bytes) = (self.hooks.folders.set(), Arc::clone(&set));
        let seal = Arc::clone(&self.hooks.seal);
        let stored = tokio::task::spawn_blocking(move || set::store(&path, &bytes, &seal))
            .await
            .expect("storing does not panic");
        match stored {
            Ok(()) => {
                self.unstored = None;
                self.tell(News::Applied(set.epoch, set.revision)).await;
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot store the set; it is tried again");
                if self.unstored.replace(set).is_none() {
                    self.say_not_stored(&chain(&error)).await;
                }
            }
        }
    }

    /// What runs is as the master says; but a cold boot would bring back the set before.
    async fn say_not_stored(&self, why: &str) {
        let message = format!(
            "the node's set cannot be stored, and is used from memory; it is tried again every {} s: \
             {why}",
            STORE_AGAIN.as_secs()
        );
        let event = EventV1 {
            uid: [0; 16],
            namespace: String::new(),
            name: String::new(),
            container: String::new(),
            warning: true,
            reason: "DiskFull".to_owned(),
            message,
            at_ms: self.clock.now().wall_ms,
        };
        self.tell(News::Event(event)).await;
    }

    fn configure(&self) {
        if let Some(set) = &self.set {
            self.hooks.set_is(set);
        }
        if let Some(config) = self.set.as_deref().and_then(set::node_config) {
            (self.configure)(config);
        }
    }

    /// Brings the workers to the set that follows `before`.
    fn make_so(&mut self, set: &SnapshotV1, before: Option<&SnapshotV1>) {
        let mut wanted = set::pods(set);
        wanted.extend(self.local.clone());
        let before = before.filter(|before| before.epoch == set.epoch);
        // What this store has named and names no more was deleted; what it has never
        // named may be newer than the backup it was restored from.
        let was_named = |uid: &Uid| {
            before.is_some_and(|before| before.items.iter().any(|item| item.uid == *uid))
        };
        for (uid, wish) in &self.pods {
            let old = wish.borrow().clone();
            let new = match wanted.remove(uid) {
                Some(new) => {
                    let (eviction, tokens) = (old.eviction.clone(), old.tokens.clone());
                    Desired { eviction, tokens, restarts: old.restarts, ..new }
                }
                None if set::holds_unknown(set) && !was_named(uid) => continue,
                None => Desired { present: false, ..old.clone() },
            };
            if differs(&old, &new) {
                note(&self.roster, &new, &self.clock);
                wish.send_replace(new);
            }
        }
        for (_, desired) in wanted {
            let state = self.first_state(&desired);
            self.spawn(desired, state);
        }
    }

    /// Brings the workers of static pods to the folder, which held `before`.
    fn make_local_so(&mut self, before: &BTreeMap<Uid, Desired>) {
        for uid in before.keys().filter(|uid| !self.local.contains_key(*uid)) {
            if let Some(wish) = self.pods.get(uid) {
                wish.send_modify(|desired| desired.present = false);
                note(&self.roster, &wish.borrow(), &self.clock);
            }
        }
        for (uid, desired) in self.local.clone() {
            // The uid follows from the manifest: what has a worker is the same.
            if !self.pods.contains_key(&uid) {
                let state = self.first_state(&desired);
                self.spawn(desired, state);
            }
        }
    }

    /// What is known of a pod that has no worker: how it ended, or nothing.
    fn first_state(&self, desired: &Desired) -> PodState {
        fresh_state(&self.hooks, &desired.pod, self.clock.now().wall_ms)
    }

    fn spawn(&mut self, mut desired: Desired, state: PodState) {
        if desired.eviction.is_none() {
            // As the kubelet does when it first sees a pod, which for it is every start.
            desired.eviction = self.hooks.policy.reject(&desired.pod);
        }
        let uid = desired.pod.uid;
        desired.tokens = self.tokens.get(&uid).cloned().unwrap_or_default();
        let (wish, wishes) = watch::channel(desired.clone());
        self.pods.insert(uid, wish);
        note(&self.roster, &desired, &self.clock);
        tokio::spawn(Worker::run(
            Arc::clone(&self.hooks),
            self.clock,
            desired,
            state,
            wishes,
            self.from_pods.0.clone(),
        ));
    }

    async fn hear(&mut self, message: FromPod) {
        match message {
            FromPod::Event(event) => self.tell(News::Event(event)).await,
            FromPod::Status(status) => {
                let uid = status.uid;
                self.board.send_modify(|board| {
                    board.insert(uid, status.clone());
                });
                self.tell(News::Statuses(vec![status])).await;
                if self.silent.remove(&uid) && self.silent.is_empty() && !self.has_spoken {
                    self.speak().await;
                }
            }
            FromPod::Gone(uid) => {
                self.pods.remove(&uid);
                self.silent.remove(&uid);
                self.board.send_modify(|board| {
                    board.remove(&uid);
                });
                self.roster.send_modify(|roster| {
                    roster.remove(&uid);
                });
                // It may have come back while the last of it went.
                let again = self.set.as_ref().and_then(|set| set::pods(set).remove(&uid));
                let again = again.or_else(|| self.local.get(&uid).cloned());
                if let Some(desired) = again {
                    let state = self.first_state(&desired);
                    self.spawn(desired, state);
                }
                if self.pods.is_empty() {
                    crate::hooks::remove_root_cgroup(&self.hooks.folders);
                }
                if self.has_spoken {
                    self.speak().await;
                }
            }
        }
    }
}

/// Shows a pod as it is wanted now, if it was shown otherwise.
fn note(roster: &watch::Sender<BTreeMap<Uid, Wanted>>, desired: &Desired, clock: &Clock) {
    let is_going = !desired.present || desired.pod.deletion_grace_s.is_some();
    roster.send_if_modified(|roster| {
        let known = roster.get(&desired.pod.uid);
        let since = known.and_then(|known| known.going_ms);
        let going_ms = is_going.then(|| since.unwrap_or_else(|| clock.now().wall_ms));
        let wanted = Wanted { pod: Arc::clone(&desired.pod), going_ms };
        let is_new = known != Some(&wanted);
        if is_new {
            roster.insert(desired.pod.uid, wanted);
        }
        is_new
    });
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether two sets of one store have the same items of the node's own.
fn has_same_own(before: &SnapshotV1, after: &SnapshotV1) -> bool {
    let own = |set: &SnapshotV1| {
        let own = set.items.iter().filter(|item| !item.body.is_common());
        let mut names: Vec<(Uid, u64)> = own.map(|item| (item.uid, item.generation)).collect();
        names.sort_unstable();
        names
    };
    before.epoch == after.epoch && own(before) == own(after)
}

/// The next table of tokens; waits for ever where none comes.
async fn next_tokens(news: &mut Option<watch::Receiver<Arc<Table>>>) -> Option<Arc<Table>> {
    match news {
        Some(news) => {
            news.changed().await.ok()?;
            Some(Arc::clone(&news.borrow_and_update()))
        }
        None => std::future::pending().await,
    }
}

/// The static pods as wishes.
#[must_use]
pub fn local_pods(manifests: &Manifests) -> BTreeMap<Uid, Desired> {
    set::pods(&SnapshotV1 { epoch: 0, revision: 0, items: manifests.items.clone() })
}

/// What the disk says of a pod that nothing else is known of: how it ended, and
/// how often it has run.
#[must_use]
pub fn fresh_state(hooks: &Hooks, pod: &PodV1, wall_ms: u64) -> PodState {
    let mut state = PodState::new(pod, wall_ms);
    let dirs = hooks.dirs(pod);
    for container in &mut state.containers {
        // Each run has a log with its number, so the next one is known without a
        // write for each restart.
        if let Some(last) = logs::attempts(&dirs.logs, &container.name).last() {
            container.next_attempt = last.saturating_add(1);
            container.n_runs = last.saturating_add(1);
            if container.role == Role::Ephemeral {
                // It was there for one look, and that is over.
                let image = container.image.reference.clone();
                container.run = Run::ended(*last, &image, "", unseen_end(pod, container, *last));
            }
        }
    }
    match Progress::load(&dirs.disk) {
        Ok(progress) => progress.restore(&mut state, pod.active_deadline_s),
        Err(error) => {
            tracing::error!(error = chain(&error), "how far a pod was is not known any more");
        }
    }
    let record = hooks.results.get(&pod.uid).unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "the master is asked how a pod ended");
        None
    });
    match record {
        Some(record) => record.restore(&mut state),
        None if pod.ended.is_some() => state.finished = pod.ended,
        None if pod.restart_policy == RestartPolicyV1::Never => {
            // It may have run once, and the machine went down meanwhile.
            for container in state.containers.iter_mut().filter(|c| c.n_runs > 0) {
                let last = container.next_attempt.saturating_sub(1);
                let image = container.image.reference.clone();
                container.run = Run::ended(last, &image, "", unseen_end(pod, container, last));
            }
        }
        None => {}
    }
    state
}

/// The end of a run that the machine's end cut short.
fn unseen_end(pod: &PodV1, container: &Container, attempt: u32) -> TerminatedV1 {
    TerminatedV1 {
        exit_code: 137,
        reason: runtime::reason::CONTAINER_STATUS_UNKNOWN.to_owned(),
        message: "the node was restarted".to_owned(),
        started_ms: 0,
        finished_ms: 0,
        container_id: id::container_id(&pod.uid, &container.name, attempt),
    }
}
