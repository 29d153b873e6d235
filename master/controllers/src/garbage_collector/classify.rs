//! Whether an object is still wanted. Pure.

use std::sync::Arc;

use super::{FOREGROUND, ORPHAN};
use crate::cluster::Propagation;
use crate::projection::{Meta, Owner};

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It is there, or nothing can be said of it.
    Solid,
    /// It is gone.
    Gone,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// What to do with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove the references to these owners, by uid.
    Forget(Vec<Arc<str>>),
    /// Delete it.
    Delete(Propagation),
}

/// Decides about an object that is not being deleted; `None` for nothing to do.
///
/// `has_dependents` is whether other objects name it as their owner: then a
/// foreground deletion goes on with them.
#[must_use]
pub fn plan(object: &Meta, owners: &[(Owner, OwnerState)], has_dependents: bool) -> Option<Step> {
    let of = |state: OwnerState| owners.iter().filter(move |(_, other)| *other == state);
    if owners.is_empty() {
        return None;
    }
    let lost: Vec<Arc<str>> = of(OwnerState::Gone)
        .chain(of(OwnerState::Waiting))
        .map(|(owner, _)| Arc::clone(&owner.uid))
        .collect();
    if of(OwnerState::Solid).next().is_some() {
        return if lost.is_empty() { None } else { Some(Step::Forget(lost)) };
    }
    let has = |finalizer: &str| object.finalizers.iter().any(|f| &**f == finalizer);
    let foreground = of(OwnerState::Waiting).next().is_some() && has_dependents;
    Some(Step::Delete(if foreground || has(FOREGROUND) {
        Propagation::Foreground
    } else if has(ORPHAN) {
        Propagation::Orphan
    } else {
        Propagation::Background
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use OwnerState::{Gone, Solid, Waiting};

    #[test]
    fn an_object_lives_while_one_owner_does() {
        let object = Meta::of(&json!({"metadata": {"name": "x", "uid": "x"}}));
        let check = |states: &[OwnerState], has_dependents, expected: Option<Step>| {
            let owners: Vec<(Owner, OwnerState)> = states
                .iter()
                .enumerate()
                .map(|(n, state)| {
                    let owner = Owner {
                        api_version: "v1".into(),
                        kind: "ConfigMap".into(),
                        name: "o".into(),
                        uid: n.to_string().into(),
                        controller: false,
                        blocks: true,
                    };
                    (owner, *state)
                })
                .collect();
            assert_eq!(plan(&object, &owners, has_dependents), expected, "{states:?}");
        };
        let forget =
            |uids: &[&str]| Some(Step::Forget(uids.iter().map(|uid| Arc::from(*uid)).collect()));
        check(&[], false, None);
        check(&[Solid], true, None);
        check(&[Solid, Gone, Waiting], false, forget(&["1", "2"]));
        check(&[Gone], true, Some(Step::Delete(Propagation::Background)));
        check(&[Gone, Waiting], true, Some(Step::Delete(Propagation::Foreground)));
        check(&[Waiting], false, Some(Step::Delete(Propagation::Background)));
    }
}
