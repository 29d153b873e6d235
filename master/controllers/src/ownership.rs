//! Which objects a controller owns, adopts and lets go, as Kubernetes'
//! controller reference manager decides it. Pure.

use std::sync::Arc;

use api::meta::OwnerReference;
use api::selector::LabelSelector;
use api::{Value, meta};

use crate::projection::{Meta, Projection};

/// The objects of one owner.
#[derive(Debug)]
pub(crate) struct Claims<T> {
    /// Its own, and stay so.
    pub owned: Vec<Arc<T>>,
    /// Nobody's, and become its own.
    pub adopt: Vec<Arc<T>>,
    /// Its own, but no longer selected.
    pub release: Vec<Arc<T>>,
}

/// Sorts `candidates`: objects that have the owner as their controller, and
/// objects of the namespace that have none.
pub(crate) fn claim<T: Projection>(
    owner: &Meta,
    selector: &LabelSelector,
    candidates: impl IntoIterator<Item = Arc<T>>,
) -> Claims<T> {
    let mut claims = Claims { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for candidate in candidates {
        let found = candidate.meta();
        let selected = found.selected_by(selector);
        match found.controller() {
            Some(controller) if controller.uid != owner.uid => {}
            Some(_) if selected => claims.owned.push(candidate),
            // While the owner is deleted, the garbage collector decides.
            Some(_) if owner.is_deleting() => {}
            Some(_) => claims.release.push(candidate),
            None if selected && !owner.is_deleting() && !found.is_deleting() => {
                claims.adopt.push(candidate);
            }
            None => {}
        }
    }
    claims
}

/// Makes `reference` a controller of the object. Returns whether that changed it.
pub(crate) fn add_owner(object: &mut Value, reference: &OwnerReference) -> bool {
    if meta::controller(object).is_some() {
        return false;
    }
    let value = serde_json::to_value(reference).expect("a reference is plain data");
    let fields = meta::metadata_mut(object);
    let list = fields.entry("ownerReferences").or_insert_with(|| Value::Array(Vec::new()));
    match list.as_array_mut() {
        Some(list) => {
            list.retain(|owner| owner.get("uid").and_then(Value::as_str) != Some(&reference.uid));
            list.push(value);
        }
        None => *list = Value::Array(vec![value]),
    }
    true
}

/// Removes an owner from the object. Returns whether that changed it.
pub(crate) fn remove_owner(object: &mut Value, uid: &str) -> bool {
    let fields = meta::metadata_mut(object);
    let Some(list) = fields.get_mut("ownerReferences").and_then(Value::as_array_mut) else {
        return false;
    };
    let before = list.len();
    list.retain(|owner| owner.get("uid").and_then(Value::as_str) != Some(uid));
    let changed = list.len() != before;
    if list.is_empty() {
        fields.remove("ownerReferences");
    }
    changed
}

/// The reference that makes `owner` the controller of an object.
pub(crate) fn reference(resource: crate::cluster::Kind, owner: &Meta) -> OwnerReference {
    OwnerReference {
        api_version: resource.api_version(),
        kind: resource.kind.to_owned(),
        name: owner.key.name.clone(),
        uid: owner.uid.as_ref().to_owned(),
        controller: true,
        block_owner_deletion: true,
    }
}
