//! How large each ReplicaSet of a Deployment is to be. Pure; Kubernetes' rules.

use std::cmp::Reverse;

use super::plan::{Desired, Sets, Sized};

/// The size of the newest template's set in a rolling update.
pub(super) fn new_size(desired: &Desired, sets: &Sets) -> i64 {
    let now = sets.new.as_ref().map_or(0, |new| new.replicas);
    if now >= desired.replicas {
        return desired.replicas;
    }
    let room = desired.pods_max() - sets.n_pods();
    if room <= 0 {
        return now;
    }
    now + room.min(desired.replicas - now)
}

/// Takes pods from the old sets in a rolling update, as far as enough stay
/// available: pods that do not work first.
pub(super) fn shrink_old(desired: &Desired, sets: &mut Sets) {
    let available: i64 = sets.all().map(|sized| sized.set.status.available_replicas).sum();
    let least = desired.replicas - desired.max_unavailable;
    let coming = sets
        .new
        .as_ref()
        .map_or(0, |new| (new.replicas - new.set.status.available_replicas).max(0));
    let mut room = sets.n_pods() - least - coming;
    if room <= 0 {
        return;
    }
    for old in &mut sets.old {
        let broken = old.replicas - old.set.status.available_replicas;
        let taken = broken.min(room).max(0);
        old.replicas -= taken;
        room -= taken;
    }
    let mut spare = available - least;
    for old in &mut sets.old {
        let taken = old.replicas.min(spare).max(0);
        old.replicas -= taken;
        spare -= taken;
    }
}

/// Takes every pod from the old sets. Returns whether there was any.
pub(super) fn old_to_zero(sets: &mut Sets) -> bool {
    let mut scaled = false;
    for old in &mut sets.old {
        scaled |= old.replicas > 0;
        old.replicas = 0;
    }
    scaled
}

/// Follows a change of `spec.replicas` (or a pause): the one set that has pods
/// takes it all; during a rollout every set takes its share.
pub(super) fn to_size(desired: &Desired, sets: &mut Sets) {
    let n_active = sets.all().filter(|sized| sized.replicas > 0).count();
    if n_active <= 1 {
        let has_active = n_active == 1;
        let only = if has_active {
            sets.all_mut().find(|sized| sized.replicas > 0)
        } else if sets.new.is_some() {
            sets.new.as_mut()
        } else {
            sets.old.last_mut()
        };
        if let Some(only) = only {
            only.replicas = desired.replicas;
        }
        return;
    }
    let saturated = sets.new.as_ref().is_some_and(|new| {
        new.replicas == desired.replicas
            && new.set.desired == Some(desired.replicas)
            && new.set.status.available_replicas == desired.replicas
    });
    if saturated {
        old_to_zero(sets);
    } else if !desired.recreate {
        in_proportion(desired, sets);
    }
}

fn in_proportion(desired: &Desired, sets: &mut Sets) {
    let allowed = if desired.replicas > 0 { desired.pods_max() } else { 0 };
    let to_add = allowed - sets.n_pods();
    let status_replicas = desired.status.replicas;
    let mut active: Vec<&mut Sized> = sets.all_mut().filter(|sized| sized.replicas > 0).collect();
    // The largest first; of equals the newer when growing, the older when shrinking.
    active.sort_by_key(|sized| {
        let created = sized.set.meta.created.as_second();
        (Reverse(sized.replicas), if to_add > 0 { -created } else { created })
    });
    let mut added = 0;
    for sized in &mut active {
        let left = to_add - added;
        let share = share(desired, sized, status_replicas);
        let share = if to_add > 0 { share.min(left).max(0) } else { share.max(left).min(0) };
        sized.replicas += share;
        added += share;
    }
    if let Some(largest) = active.first_mut() {
        largest.replicas = (largest.replicas + to_add - added).max(0);
    }
}

/// How much a set's size changes when the whole changes from what its
/// annotation says to what is asked for now.
fn share(desired: &Desired, sized: &Sized, status_replicas: i64) -> i64 {
    if desired.replicas == 0 {
        return -sized.replicas;
    }
    let before = sized.set.max.filter(|max| *max > 0).unwrap_or(status_replicas);
    if before <= 0 {
        return 0;
    }
    // Rounded half up, in whole numbers.
    let scaled = i128::from(sized.replicas) * i128::from(desired.pods_max());
    let rounded = (2 * scaled + i128::from(before)).div_euclid(2 * i128::from(before));
    i64::try_from(rounded).unwrap_or(i64::MAX) - sized.replicas
}
