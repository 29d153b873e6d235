//! Server-side apply: each manager says what it wants, the server remembers who
//! wants what.
//!
//! ```text
//! apply:  merge config into live ─► take out what only this manager wanted
//!         and no longer wants ─► what changed belongs to another? conflict
//! else:   compare before and after ─► what changed is the writer's now
//! ```
//!
//! [`apply`] is for `application/apply-patch`; [`track_update`] for every other
//! write. Both work on the object as the client sees it and leave defaults,
//! validation and versions to the caller. A write that changes nothing returns
//! `managedFields` as they were, times included, so that it can be dropped.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/> and
//! `sigs.k8s.io/structured-merge-diff`.

mod field_set;
mod managers;
#[cfg(test)]
mod tests;
mod typed;

use api::schema::TypeRef;
use api::time::{Timestamp, rfc3339};
use serde_json::{Map, Value, json};

pub use field_set::FieldSet;
use managers::{Manager, Managers, Operation};
use typed::Kind;

/// The manager of what was there before anyone applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// What `kubectl apply` without `--server-side` remembers.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Longest name of a manager, in bytes.
const MANAGER_MAX: usize = 128;

/// Parts of every object that nobody manages.
const UNMANAGED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:deletionTimestamp"],
    &["f:metadata", "f:deletionGracePeriodSeconds"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as Kubernetes prints it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.replicas`.
    pub field: String,
}

/// Why a configuration could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It changes fields of others and was not forced: 409 `Conflict`, one
    /// cause `FieldManagerConflict` each.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// It makes no sense: 400 `BadRequest`.
    #[error("{0}")]
    Malformed(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        );
    }
    let mut lines = Vec::new();
    let mut last = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// The object after `manager` applied `config` to `live`, which is of type `of`.
///
/// `subresource` is the path it was applied through. The result carries the new
/// `managedFields`; it equals `live` where nothing changed.
///
/// # Errors
/// [`ApplyError::Conflicts`] unless `force`, [`ApplyError::Malformed`].
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
    subresource: Option<&str>,
    now: Timestamp,
    of: TypeRef,
) -> Result<Value, ApplyError> {
    check_manager(manager)?;
    let kind = Kind::Struct(of);
    let config = prepared(config, subresource, of)?;
    let me = Manager {
        name: manager.to_owned(),
        operation: Operation::Apply,
        api_version: api::meta::object_api_version(&config).to_owned(),
        subresource: subresource.unwrap_or_default().to_owned(),
        time: Some(rfc3339(now)),
        fields: FieldSet::default(),
    };
    let base = live.map_or_else(|| json!({}), without_managed_fields);
    let mut managers = live.map(Managers::of).unwrap_or_default();
    if managers.list.is_empty() && live.is_some() {
        own_everything(&mut managers, &base, &me, kind);
    }
    let before = managers.clone();

    let merged = typed::merge(&base, &config, kind).map_err(ApplyError::Malformed)?;
    let mut fields = typed::fields_of(&config, kind);
    restrict(&mut fields, subresource);
    let entry = managers.entry(&me);
    entry.api_version.clone_from(&me.api_version);
    let last = std::mem::replace(&mut entry.fields, fields);

    let mut result = merged;
    typed::prune(&mut result, kind, &last, &managers.all_fields());
    let mut changes = typed::compare(&base, &result, kind);
    changes.for_each(|set| restrict(set, subresource));
    let unchanged = changes.is_same();
    let changed = changes.modified.union(changes.added);
    let conflicts = conflicts_of(&managers, &me, &changed);
    if !conflicts.is_empty() && !force && !from_client_side(live, manager, &conflicts, of) {
        return Err(ApplyError::Conflicts(listed(&conflicts)));
    }
    let lost = changed.union(changes.removed);
    for other in managers.list.iter_mut().filter(|other| !other.is(&me)) {
        other.fields.subtract(&lost);
    }
    managers.list.retain(|manager| !manager.fields.is_empty());
    let mine_changed = before.list.iter().find(|m| m.is(&me)).map(|m| &m.fields)
        != managers.list.iter().find(|m| m.is(&me)).map(|m| &m.fields);
    if let Some(live) = live
        && unchanged
        && !mine_changed
    {
        return Ok(live.clone());
    }
    if let Some(mine) = managers.list.iter_mut().find(|m| m.is(&me)) {
        mine.time = Some(rfc3339(now));
    }
    managers.write(&mut result);
    Ok(result)
}

/// Notes in `after` which fields `manager` changed, for every write that is no
/// apply. `before` is the live object, none for a create.
///
/// `after` is the object as it will be stored, defaults and all, with whatever
/// `managedFields` the client sent: none or `[]` keeps the live ones, `[{}]`
/// forgets them.
pub fn track_update(
    before: Option<&Value>,
    after: &mut Value,
    manager: &str,
    subresource: Option<&str>,
    now: Timestamp,
    of: TypeRef,
) {
    let kind = Kind::Struct(of);
    let sent = managers::entries(after).map(<[Value]>::to_vec).unwrap_or_default();
    let live = before.map(Managers::of).unwrap_or_default();
    let mut managers = if subresource.is_some() {
        live
    } else if managers::is_reset(&sent) {
        Managers::default()
    } else {
        Managers::read(&sent).filter(|managers| !managers.list.is_empty()).unwrap_or(live)
    };
    if before.is_some() && managers.list.is_empty() {
        // Forgotten, or from before this was kept: nobody is asked from now on.
        managers.write(after);
        return;
    }
    let me = Manager {
        name: if manager.is_empty() { "unknown" } else { manager }.to_owned(),
        operation: Operation::Update,
        api_version: api::meta::object_api_version(after).to_owned(),
        subresource: subresource.unwrap_or_default().to_owned(),
        time: Some(rfc3339(now)),
        fields: FieldSet::default(),
    };
    let nothing = json!({});
    let mut changes = typed::compare(before.unwrap_or(&nothing), after, kind);
    changes.for_each(|set| restrict(set, subresource));
    let changed = changes.modified.union(changes.added);
    for manager in &mut managers.list {
        manager.fields.subtract(&changes.removed);
        if !manager.is(&me) {
            manager.fields.subtract(&changed);
        }
    }
    if !changed.is_empty() {
        let mine = managers.entry(&me);
        mine.fields.add(changed);
        mine.time = me.time;
    }
    managers.write(after);
}

/// The manager of a write without `fieldManager`: the program in its `User-Agent`.
#[must_use]
pub fn manager_from_user_agent(user_agent: &str) -> String {
    let program = user_agent.split('/').next().unwrap_or_default();
    let printable: String = program.chars().filter(|c| !c.is_control()).collect();
    let end = printable
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= MANAGER_MAX);
    let end = end.last().unwrap_or_default();
    if end == 0 { "unknown".to_owned() } else { printable[..end].to_owned() }
}

/// What is wrong with the name of a manager, in Kubernetes' words.
///
/// # Errors
/// [`ApplyError::Malformed`] for one that is missing, too long, or not printable.
pub fn check_manager(manager: &str) -> Result<(), ApplyError> {
    let wrong = if manager.is_empty() {
        "fieldManager: Required value: is required for apply patch".to_owned()
    } else if manager.len() > MANAGER_MAX {
        format!("fieldManager: Too long: may not be more than {MANAGER_MAX} bytes")
    } else if manager.chars().any(char::is_control) {
        format!(
            "fieldManager: Invalid value: {manager:?}: should only contain printable characters"
        )
    } else {
        return Ok(());
    };
    Err(ApplyError::Malformed(wrong))
}

/// The configuration without what cannot be applied through `subresource`.
fn prepared(config: &Value, subresource: Option<&str>, of: TypeRef) -> Result<Value, ApplyError> {
    let malformed = |text: &str| Err(ApplyError::Malformed(text.to_owned()));
    let Value::Object(fields) = config else {
        return malformed("an applied configuration is an object");
    };
    if api::meta::object_api_version(config).is_empty() || api::meta::kind(config).is_empty() {
        return malformed("an applied configuration needs apiVersion and kind");
    }
    if managers::entries(config).is_some_and(|entries| !entries.is_empty()) {
        return malformed("metadata.managedFields must be nil");
    }
    let mut fields: Map<String, Value> = fields.clone();
    match subresource {
        None => {
            fields.shift_remove("status");
        }
        Some("status") => {
            fields.shift_remove("spec");
        }
        Some(_) => {}
    }
    if of.short_name() == "Secret" {
        // Owned as what it becomes, so that applying it again changes nothing.
        api::defaults::fold_string_data(&mut fields);
    }
    let mut config = Value::Object(fields);
    drop_nulls(&mut config, 0);
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "managedFields",
            "creationTimestamp",
            "resourceVersion",
            "uid",
            "generation",
            "selfLink",
        ] {
            metadata.shift_remove(field);
        }
    }
    Ok(config)
}

fn drop_nulls(value: &mut Value, depth: usize) {
    if depth > crate::patch::MAX_DEPTH {
        return;
    }
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(|value| drop_nulls(value, depth + 1));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| drop_nulls(value, depth + 1)),
        _ => {}
    }
}

/// Takes out of a set what nobody manages, or not through this path.
fn restrict(set: &mut FieldSet, subresource: Option<&str>) {
    for path in UNMANAGED {
        set.remove_subtree(path);
    }
    set.remove_member(&["f:metadata"]);
    match subresource {
        Some("status") => set.keep_only(&["f:status", "f:metadata"]),
        _ => set.remove_subtree(&["f:status"]),
    }
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    object
}

/// Whoever made an object that nobody manages yet.
fn own_everything(managers: &mut Managers, object: &Value, applier: &Manager, kind: Kind) {
    let mut fields = typed::fields_of(object, kind);
    restrict(&mut fields, None);
    managers.list.push(Manager {
        name: BEFORE_FIRST_APPLY.to_owned(),
        operation: Operation::Update,
        api_version: applier.api_version.clone(),
        subresource: String::new(),
        time: applier.time.clone(),
        fields,
    });
}

/// The managers beside `me` that own some of `changed`, and which.
fn conflicts_of<'a>(
    managers: &'a Managers,
    me: &Manager,
    changed: &FieldSet,
) -> Vec<(&'a Manager, FieldSet)> {
    let others = managers.list.iter().filter(|other| !other.is(me));
    others
        .map(|other| (other, other.fields.intersection(changed)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect()
}

fn listed(conflicts: &[(&Manager, FieldSet)]) -> Vec<Conflict> {
    let each = conflicts.iter().flat_map(|(manager, fields)| {
        fields.paths().into_iter().map(|field| Conflict { manager: manager.describe(), field })
    });
    each.collect()
}

/// Whether all conflicts are with what this user's client-side apply set: the
/// first `kubectl apply --server-side` after `kubectl apply` takes it over.
fn from_client_side(
    live: Option<&Value>,
    manager: &str,
    conflicts: &[(&Manager, FieldSet)],
    of: TypeRef,
) -> bool {
    if manager != "kubectl" {
        return false;
    }
    let Some(live) = live else { return false };
    let applied = api::meta::annotation(live, LAST_APPLIED);
    let Some(applied) = applied.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return false;
    };
    let kind = Kind::Struct(of);
    let mut applied_fields = typed::fields_of(&applied, kind);
    // Only where the live object still says what was applied.
    let since = typed::compare(&applied, live, kind);
    applied_fields = applied_fields.difference(&since.modified).difference(&since.removed);
    conflicts.iter().all(|(_, fields)| fields.clone().difference(&applied_fields).is_empty())
}
