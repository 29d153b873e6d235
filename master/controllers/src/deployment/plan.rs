//! Decides what becomes of a Deployment's ReplicaSets. Pure.
//!
//! One pass takes one step, as Kubernetes does: where it scales the new set up,
//! it leaves the old ones for the next pass, which then sees what came of it.

use std::sync::Arc;
use std::time::Duration;

use api::time::Timestamp;
use api::view::{self, DeploymentStatus, DeploymentView};
use api::{Value, meta};

use super::scale;
use super::status;
use crate::projection::{
    Labels, ReplicaSet, annotations, digest, intern, own_annotation, template_digest,
};

/// A Deployment, as far as decisions go.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Name, which its ReplicaSets' names begin with.
    pub name: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Pods asked for.
    pub replicas: i64,
    /// Whether rollouts are paused.
    pub paused: bool,
    /// Whether all old pods must be gone first.
    pub recreate: bool,
    /// Pods that may be too many.
    pub max_surge: i64,
    /// Pods that may be missing.
    pub max_unavailable: i64,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i64,
    /// Old ReplicaSets kept for `kubectl rollout undo`; `None` for all.
    pub history_limit: Option<i64>,
    /// Seconds without progress until it counts as stuck; `None` for never.
    pub deadline_seconds: Option<i64>,
    /// Tells templates apart.
    pub template: u128,
    /// Annotations that its ReplicaSets carry too, sorted by key.
    pub annotations: Labels,
    /// The revision annotation.
    pub revision: Option<i64>,
    /// What was last seen.
    pub status: DeploymentStatus,
}

/// `progressDeadlineSeconds` that means never.
const NO_DEADLINE: i64 = i32::MAX as i64;

impl Desired {
    /// Reads it from the object's view.
    #[must_use]
    pub fn new(read: &DeploymentView) -> Self {
        let (own, spec) = (&read.metadata, &read.spec);
        let replicas = spec.replicas.unwrap_or(1).max(0);
        let recreate = spec.strategy.kind == "Recreate";
        let rolling = spec.strategy.rolling_update.clone().unwrap_or_default();
        let of = |value: Option<view::IntOrString>, round_up| {
            let value = value.unwrap_or_else(|| view::IntOrString::String("25%".to_owned()));
            value.of(replicas, round_up).unwrap_or(0).max(0)
        };
        let max_surge = if recreate { 0 } else { of(rolling.max_surge, true) };
        let mut max_unavailable = if recreate { 0 } else { of(rolling.max_unavailable, false) };
        if !recreate && max_surge == 0 && max_unavailable == 0 {
            // Rounding must not stop the rollout for good.
            max_unavailable = 1;
        }
        let own_annotations = own.annotations.iter().filter(|(key, _)| !own_annotation(key));
        Self {
            name: own.name.clone(),
            generation: own.generation,
            deleting: own.is_terminating(),
            replicas,
            paused: spec.paused,
            recreate,
            max_surge,
            max_unavailable: max_unavailable.min(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            history_limit: spec.revision_history_limit.filter(|limit| *limit < NO_DEADLINE),
            deadline_seconds: spec
                .progress_deadline_seconds
                .filter(|deadline| *deadline < NO_DEADLINE),
            template: template_digest(&spec.template),
            annotations: own_annotations.map(|(k, v)| (intern(k), intern(v))).collect(),
            revision: own.annotations.get(annotations::REVISION).and_then(|text| text.parse().ok()),
            status: read.status.clone(),
        }
    }

    /// Pods there may be at once.
    #[must_use]
    pub fn pods_max(&self) -> i64 {
        self.replicas + self.max_surge
    }

    /// What tells this template's ReplicaSet from the others: ten letters.
    #[must_use]
    pub fn template_hash(&self) -> String {
        let mut bytes = self.template.to_le_bytes().to_vec();
        bytes.extend(self.status.collision_count.unwrap_or(0).to_le_bytes());
        let [low, high] = halves(digest(&bytes));
        api::names::safe_suffix(low ^ high, 10)
    }
}

fn halves(value: u128) -> [u64; 2] {
    let bytes = value.to_le_bytes();
    let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    [half(0), half(8)]
}

/// A change of a ReplicaSet; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetChange {
    /// `spec.replicas`.
    pub replicas: Option<i64>,
    /// The annotations of the size: desired and most.
    pub size: Option<(i64, i64)>,
    /// The revision annotation; an earlier one goes to the history.
    pub revision: Option<i64>,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: Option<i64>,
    /// Whether the Deployment's annotations are copied.
    pub annotations: bool,
}

impl SetChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes the object. Returns whether anything is different.
    pub(super) fn apply(&self, set: &mut Value, copied: &[(String, String)]) -> bool {
        let before = set.clone();
        if let Some(replicas) = self.replicas {
            set["spec"]["replicas"] = replicas.into();
        }
        if let Some(seconds) = self.min_ready_seconds {
            set["spec"]["minReadySeconds"] = seconds.into();
        }
        if self.annotations {
            for (key, value) in copied {
                meta::set_annotation(set, key, value);
            }
        }
        if let Some((desired, max)) = self.size {
            meta::set_annotation(set, annotations::DESIRED_REPLICAS, &desired.to_string());
            meta::set_annotation(set, annotations::MAX_REPLICAS, &max.to_string());
        }
        if let Some(revision) = self.revision {
            self.set_revision(set, &revision.to_string());
        }
        *set != before
    }

    fn set_revision(&self, set: &mut Value, revision: &str) {
        let old = meta::annotation(set, annotations::REVISION).map(str::to_owned);
        if let Some(old) = old.filter(|old| old != revision) {
            let history = meta::annotation(set, annotations::REVISION_HISTORY).unwrap_or_default();
            let mut history: Vec<&str> =
                history.split(',').filter(|entry| !entry.is_empty() && **entry != old).collect();
            history.push(&old);
            while history.join(",").len() > super::REVISION_HISTORY_BYTES_MAX {
                history.remove(0);
            }
            let history = history.join(",");
            meta::set_annotation(set, annotations::REVISION_HISTORY, &history);
        }
        meta::set_annotation(set, annotations::REVISION, revision);
    }
}

/// One write.
#[derive(Clone, Debug)]
pub enum Step {
    /// Create the ReplicaSet of the newest template.
    Create {
        /// Its name.
        name: String,
        /// Its `pod-template-hash`.
        hash: String,
        /// What is set on it.
        change: SetChange,
    },
    /// Change a ReplicaSet.
    Update {
        /// Which one, as planned from.
        set: Arc<ReplicaSet>,
        /// What changes.
        change: SetChange,
    },
    /// Delete an old ReplicaSet.
    Delete(Arc<ReplicaSet>),
    /// Set the Deployment's revision annotation.
    SetRevision(i64),
}

/// What to do now.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The writes, in order.
    pub steps: Vec<Step>,
    /// The status once they are done.
    pub status: DeploymentStatus,
    /// When to look again even without a change.
    pub look_again: Option<Duration>,
}

/// A ReplicaSet and the size it is to have.
#[derive(Clone, Debug)]
pub(super) struct Sized {
    /// As it is.
    pub(super) set: Arc<ReplicaSet>,
    /// The size it is to have.
    pub(super) replicas: i64,
}

/// The sets of a Deployment, while it is planned.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    /// That of the newest template.
    pub(super) new: Option<Sized>,
    /// The others, oldest first.
    pub(super) old: Vec<Sized>,
    /// Size and name of the one that is created now.
    pub(super) created: Option<(i64, String)>,
}

impl Sets {
    fn of(desired: &Desired, sets: &[Arc<ReplicaSet>]) -> Self {
        let mut sorted: Vec<Arc<ReplicaSet>> = sets.to_vec();
        sorted.sort_by(|a, b| {
            (a.meta.created, &a.meta.key.name).cmp(&(b.meta.created, &b.meta.key.name))
        });
        // Where several match, the oldest: so that every look finds the same.
        let new = sorted.iter().position(|set| set.template == desired.template);
        let new = new.map(|at| sorted.remove(at));
        let sized = |set: Arc<ReplicaSet>| Sized { replicas: set.replicas, set };
        Self { new: new.map(sized), old: sorted.into_iter().map(sized).collect(), created: None }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Sized> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Sized> {
        self.old.iter_mut().chain(&mut self.new)
    }

    /// Pods asked for, over all sets.
    pub(super) fn n_pods(&self) -> i64 {
        self.all().map(|sized| sized.replicas).sum::<i64>()
            + self.created.as_ref().map_or(0, |(replicas, _)| *replicas)
    }

    pub(super) fn new_name(&self) -> Option<&str> {
        match (&self.new, &self.created) {
            (Some(new), _) => Some(&new.set.meta.key.name),
            (None, Some((_, name))) => Some(name),
            (None, None) => None,
        }
    }
}

/// Decides the next writes for a Deployment with these ReplicaSets.
///
/// `has_pods` says whether a set has pods that may still run.
#[must_use]
pub fn plan(
    desired: &Desired,
    sets: &[Arc<ReplicaSet>],
    has_pods: impl Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let mut sets = Sets::of(desired, sets);
    let mut status = desired.status.clone();
    let mut steps = Vec::new();
    if desired.deleting {
        status::count(&mut status, desired, &sets, now);
        return Plan { steps, status, look_again: None };
    }
    status::pause(&mut status, desired, now);

    let scaling = sets.all().any(|sized| {
        sized.replicas > 0 && sized.set.desired.is_some_and(|size| size != desired.replicas)
    });
    let rolling_out = !desired.paused && !scaling;
    let new_revision = 1 + sets.old.iter().filter_map(|old| old.set.revision).max().unwrap_or(0);
    let mut changes = Changes::default();
    // Whether the set of the newest template is found or made now.
    let mut found = None;
    let revision = match &sets.new {
        Some(new) => {
            found = Some(status::Found::Existing);
            changes.follow(desired, &new.set, new_revision)
        }
        None => None,
    };

    if !rolling_out {
        scale::to_size(desired, &mut sets);
        if desired.paused {
            steps.extend(cleanup(desired, &sets).into_iter().map(Step::Delete));
        }
    } else if desired.recreate {
        let scaled = scale::old_to_zero(&mut sets);
        if !scaled && !sets.old.iter().any(|old| has_pods(&old.set)) {
            found = Some(grow_or_create(desired, &mut sets, desired.replicas));
        }
    } else {
        let size = scale::new_size(desired, &sets);
        let before = sets.new.as_ref().map(|new| new.replicas);
        found = Some(grow_or_create(desired, &mut sets, size));
        if before == Some(size) {
            scale::shrink_old(desired, &mut sets);
        }
    }
    let unchanged =
        sets.created.is_none() && sets.all().all(|sized| sized.replicas == sized.set.replicas);
    if rolling_out && unchanged && status::is_complete(desired, &desired.status) {
        steps.extend(cleanup(desired, &sets).into_iter().map(Step::Delete));
    }

    if let Some((replicas, name)) = &sets.created {
        let hash = desired.template_hash();
        let change = SetChange {
            replicas: Some(*replicas),
            size: Some((desired.replicas, desired.pods_max())),
            revision: Some(new_revision),
            min_ready_seconds: Some(desired.min_ready_seconds).filter(|seconds| *seconds > 0),
            annotations: true,
        };
        steps.push(Step::Create { name: name.clone(), hash, change });
    }
    let mut updates: Vec<Step> = Vec::new();
    for sized in sets.all() {
        let mut change = changes.take(&sized.set);
        change.resize(desired, sized);
        if !change.is_empty() {
            updates.push(Step::Update { set: Arc::clone(&sized.set), change });
        }
    }
    steps.extend(updates);
    let revision = if sets.created.is_some() { Some(new_revision) } else { revision };
    if let Some(revision) = revision.filter(|revision| desired.revision != Some(*revision)) {
        steps.push(Step::SetRevision(revision));
    }

    status::count(&mut status, desired, &sets, now);
    if let Some(found) = found {
        status::found(&mut status, desired, &sets, found, now);
    }
    if rolling_out {
        status::progress(&mut status, desired, &sets, now);
    }
    let look_again = if rolling_out { status::stuck_in(&status, desired, now) } else { None };
    Plan { steps, status, look_again }
}

/// Gives the newest template's set this size, and makes it where there is none.
fn grow_or_create(desired: &Desired, sets: &mut Sets, size: i64) -> status::Found {
    match &mut sets.new {
        Some(new) => {
            new.replicas = size;
            status::Found::Existing
        }
        None => {
            let name = format!("{}-{}", desired.name, desired.template_hash());
            sets.created = Some((size, name));
            status::Found::Created
        }
    }
}

/// Old sets beyond the history limit that hold nothing any more, oldest revision first.
fn cleanup(desired: &Desired, sets: &Sets) -> Vec<Arc<ReplicaSet>> {
    let Some(limit) = desired.history_limit else {
        return Vec::new();
    };
    let mut old: Vec<&Arc<ReplicaSet>> =
        sets.old.iter().map(|old| &old.set).filter(|set| !set.meta.is_deleting()).collect();
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|set| set.revision.unwrap_or(0));
    let unused = |set: &&Arc<ReplicaSet>| {
        set.replicas == 0
            && set.status.replicas == 0
            && set.status.observed_generation >= set.meta.generation
    };
    old.into_iter().take(surplus).filter(unused).cloned().collect()
}

/// The change of the newest template's set that is not about its size.
#[derive(Debug, Default)]
struct Changes(Option<(Arc<str>, SetChange)>);

impl Changes {
    /// Makes `set` the newest in name: revision, annotations. Returns its revision.
    fn follow(&mut self, desired: &Desired, set: &ReplicaSet, new_revision: i64) -> Option<i64> {
        let newer = set.revision.is_none_or(|revision| revision < new_revision);
        let has = |pair: &(Arc<str>, Arc<str>)| set.annotations.contains(pair);
        let change = SetChange {
            revision: newer.then_some(new_revision),
            min_ready_seconds: Some(desired.min_ready_seconds)
                .filter(|seconds| *seconds != set.min_ready_seconds),
            annotations: !desired.annotations.iter().all(has),
            ..SetChange::default()
        };
        self.0 = Some((Arc::clone(&set.meta.uid), change));
        if newer { Some(new_revision) } else { set.revision }
    }

    fn take(&mut self, set: &ReplicaSet) -> SetChange {
        match self.0.take() {
            Some((uid, change)) if uid == set.meta.uid => change,
            other => {
                self.0 = other;
                SetChange::default()
            }
        }
    }
}

impl SetChange {
    fn resize(&mut self, desired: &Desired, sized: &Sized) {
        let size = (desired.replicas, desired.pods_max());
        let stale = (sized.set.desired, sized.set.max) != (Some(size.0), Some(size.1));
        if sized.replicas != sized.set.replicas {
            self.replicas = Some(sized.replicas);
            self.size = Some(size).filter(|_| stale);
        } else if sized.replicas > 0 && stale {
            self.size = Some(size);
        }
    }
}
