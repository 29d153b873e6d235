//! Small projections of one resource's objects, kept up to date by a watch.
//!
//! ```text
//!   list ──► replace everything ──► watch ──change──► update, tell the handlers
//!    ▲                                │
//!    └────────── expired ─────────────┘   (ended: watch again from where it was)
//! ```
//!
//! One cache per resource serves every controller: an object is parsed once per
//! change. Handlers are told which object changed and turn that into keys of
//! their own queue; they must not block. [`Cache::reached`] is how a controller
//! reads its own writes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::ObjectKey;
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cluster::{Cluster, ClusterError, Kind, WatchItem};
use crate::projection::{Projection, Term};

/// Longest pause between two tries to list or watch.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a revision in [`Cache::reached`].
const REACHED_WITHIN: Duration = Duration::from_secs(10);

/// What a handler is told: the object before and after.
type Handler<T> = Box<dyn Fn(Option<&Arc<T>>, Option<&Arc<T>>) + Send + Sync>;

/// The projections of one resource. Cheap to clone.
#[derive(Debug)]
pub struct Cache<T>(Arc<Inner<T>>);

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<T> {
    resource: Kind,
    state: RwLock<State<T>>,
    handlers: RwLock<Vec<Handler<T>>>,
    /// The revision the state shows; `None` until it was listed once.
    revision: watch::Sender<Option<u64>>,
}

impl<T> std::fmt::Debug for Inner<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("resource", &self.resource.plural).finish_non_exhaustive()
    }
}

struct State<T> {
    objects: BTreeMap<ObjectKey, Arc<T>>,
    terms: HashMap<Term, Vec<Arc<T>>>,
}

impl<T: Projection> Cache<T> {
    /// An empty cache; [`Cache::run`] fills it.
    #[must_use]
    pub fn new(resource: Kind) -> Self {
        let state = State { objects: BTreeMap::new(), terms: HashMap::new() };
        Self(Arc::new(Inner {
            resource,
            state: RwLock::new(state),
            handlers: RwLock::default(),
            revision: watch::Sender::new(None),
        }))
    }

    /// The resource it holds.
    #[must_use]
    pub fn resource(&self) -> Kind {
        self.0.resource
    }

    /// Calls `handler` after every change, and now for every object there is.
    pub fn on_change(
        &self,
        handler: impl Fn(Option<&Arc<T>>, Option<&Arc<T>>) + Send + Sync + 'static,
    ) {
        let mut handlers = self.0.handlers.write().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<Arc<T>> = self.read(|state| state.objects.values().cloned().collect());
        for object in &known {
            handler(None, Some(object));
        }
        handlers.push(Box::new(handler));
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<T>> {
        self.read(|state| state.objects.get(key).cloned())
    }

    /// Every object under a term.
    #[must_use]
    pub fn find(&self, term: &Term) -> Vec<Arc<T>> {
        self.read(|state| state.terms.get(term).cloned().unwrap_or_default())
    }

    /// Whether any object is under a term.
    #[must_use]
    pub fn any(&self, term: &Term) -> bool {
        self.read(|state| state.terms.contains_key(term))
    }

    /// Every object of a namespace, by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        let from = ObjectKey::new(namespace, "");
        self.read(|state| {
            let range = state.objects.range((Bound::Included(from), Bound::Unbounded));
            range
                .take_while(|(key, _)| key.namespace == namespace)
                .map(|(_, object)| Arc::clone(object))
                .collect()
        })
    }

    /// Every object.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    /// Number of objects.
    #[must_use]
    pub fn n_objects(&self) -> usize {
        self.read(|state| state.objects.len())
    }

    /// Told after every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<u64>> {
        self.0.revision.subscribe()
    }

    /// Waits until everything there is has been listed once.
    pub async fn synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.revision.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until it shows everything up to `revision`.
    ///
    /// # Errors
    /// [`ClusterError::Unavailable`] where it lags for more than 10 s.
    pub async fn reached(&self, revision: u64) -> Result<(), ClusterError> {
        let mut shown = self.0.revision.subscribe();
        let reached = shown.wait_for(|shown| shown.is_some_and(|shown| shown >= revision));
        match tokio::time::timeout(REACHED_WITHIN, reached).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ClusterError::Unavailable(format!(
                "{} are not shown up to revision {revision} yet",
                self.0.resource.plural
            ))),
        }
    }

    /// Follows the cluster until `shutdown`.
    pub async fn run<C: Cluster>(self, cluster: Arc<C>, shutdown: CancellationToken) {
        let mut pause = Duration::from_millis(10);
        let mut from = None;
        loop {
            let before = *self.0.revision.borrow();
            let follow = self.follow(&*cluster, from);
            let error = tokio::select! {
                () = shutdown.cancelled() => return,
                result = follow => result.err(),
            };
            let now = *self.0.revision.borrow();
            from = now;
            if now != before {
                pause = Duration::from_millis(10);
            }
            match error {
                // It is no longer known what changed: list again.
                Some(ClusterError::Expired(_)) => from = None,
                Some(error) => {
                    let resource = self.0.resource.plural;
                    warn!(resource, %error, "cannot follow a resource; trying again");
                }
                None => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn follow<C: Cluster>(&self, cluster: &C, from: Option<u64>) -> Result<(), ClusterError> {
        let from = match from {
            Some(revision) => revision,
            None => {
                let mut objects = BTreeMap::new();
                let mut add = |object: api::Value| {
                    let projection = T::project(&object);
                    objects.insert(projection.meta().key.clone(), Arc::new(projection));
                };
                let revision = cluster.list(self.0.resource, None, &mut add).await?;
                self.replace(objects);
                self.shows(revision);
                revision
            }
        };
        let mut changes = cluster.watch(self.0.resource, from).await?;
        while let Some(item) = changes.next().await {
            match item? {
                WatchItem::Progress(revision) => self.shows(revision),
                WatchItem::Change(change) => {
                    let after = change.object.map(|object| Arc::new(T::project(&object)));
                    self.set(change.key, after);
                    self.shows(change.revision);
                }
            }
        }
        Ok(())
    }

    fn shows(&self, revision: u64) {
        self.0.revision.send_if_modified(|shown| {
            let newer = shown.is_none_or(|shown| shown < revision);
            if newer {
                *shown = Some(revision);
            }
            newer
        });
    }

    fn replace(&self, mut objects: BTreeMap<ObjectKey, Arc<T>>) {
        let gone: Vec<ObjectKey> = self.read(|state| {
            state.objects.keys().filter(|key| !objects.contains_key(key)).cloned().collect()
        });
        gone.into_iter().for_each(|key| self.set(key, None));
        while let Some((key, object)) = objects.pop_first() {
            let same = self.get(&key).is_some_and(|old| {
                (&old.meta().uid, old.meta().revision)
                    == (&object.meta().uid, object.meta().revision)
            });
            if !same {
                self.set(key, Some(object));
            }
        }
    }

    fn set(&self, key: ObjectKey, after: Option<Arc<T>>) {
        let before = {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            let before = match &after {
                Some(after) => state.objects.insert(key, Arc::clone(after)),
                None => state.objects.remove(&key),
            };
            if let Some(before) = &before {
                state.remove_terms(before);
            }
            if let Some(after) = &after {
                after.terms(&mut |term| {
                    state.terms.entry(term).or_default().push(Arc::clone(after));
                });
            }
            before
        };
        if before.is_none() && after.is_none() {
            return;
        }
        let handlers = self.0.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for handler in handlers.iter() {
            handler(before.as_ref(), after.as_ref());
        }
    }

    fn read<R>(&self, with: impl FnOnce(&State<T>) -> R) -> R {
        with(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: Projection> State<T> {
    fn remove_terms(&mut self, object: &Arc<T>) {
        object.terms(&mut |term| {
            if let Some(list) = self.terms.get_mut(&term) {
                list.retain(|other| !Arc::ptr_eq(other, object));
                if list.is_empty() {
                    self.terms.remove(&term);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;
    use crate::cluster::{DeleteOptions, kinds};
    use crate::fake::FakeCluster;
    use crate::projection::{Pod, intern};

    fn pod(name: &str, node: &str) -> api::Value {
        json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}})
    }

    #[tokio::test(start_paused = true)]
    async fn it_shows_what_is_there_and_what_changes() {
        let cluster = Arc::new(FakeCluster::new());
        cluster.create(kinds::pods(), "ns", pod("before", "a")).await.unwrap();
        let cache: Cache<Pod> = Cache::new(kinds::pods());
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        cache.on_change(move |before, after| {
            let name = |pod: Option<&Arc<Pod>>| pod.map(|pod| pod.key().name.clone());
            log.lock().unwrap().push((name(before), name(after)));
        });
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(cache.clone().run(Arc::clone(&cluster), shutdown.clone()));
        cache.synced().await;
        assert_eq!(cache.n_objects(), 1);

        let created = cluster.create(kinds::pods(), "ns", pod("after", "b")).await.unwrap();
        cache.reached(crate::cluster::revision_of(&created)).await.unwrap();
        assert_eq!(cache.find(&Term::Node(intern("b"))).len(), 1);
        assert_eq!(cache.in_namespace("ns").len(), 2);
        assert!(cache.in_namespace("n").is_empty());

        let key = ObjectKey::new("ns", "before");
        let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        cluster.delete(kinds::pods(), &key, now).await.unwrap();
        cache.reached(cluster.revision()).await.unwrap();
        assert!(cache.get(&key).is_none());
        assert!(!cache.any(&Term::Node(intern("a"))));
        let name = |text: &str| Some(text.to_owned());
        assert_eq!(
            *told.lock().unwrap(),
            [(None, name("before")), (None, name("after")), (name("before"), None)]
        );
        shutdown.cancel();
        run.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_watch_is_listed_again() {
        let cluster = Arc::new(FakeCluster::new());
        for name in ["a", "b"] {
            cluster.create(kinds::pods(), "ns", pod(name, "n")).await.unwrap();
        }
        let cache: Cache<Pod> = Cache::new(kinds::pods());
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(cache.clone().run(Arc::clone(&cluster), shutdown.clone()));
        cache.synced().await;
        // The watch ends, and meanwhile the log is compacted past where it was.
        cluster.break_watches();
        let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        cluster.delete(kinds::pods(), &ObjectKey::new("ns", "a"), now).await.unwrap();
        let created = cluster.create(kinds::pods(), "ns", pod("c", "n")).await.unwrap();
        cluster.compact();
        cache.reached(crate::cluster::revision_of(&created)).await.unwrap();
        let names: Vec<String> = cache.all().iter().map(|pod| pod.key().name.clone()).collect();
        assert_eq!(names, ["b", "c"]);
        shutdown.cancel();
        run.await.unwrap();
    }
}
