//! Walks over objects along the schema: which fields a value sets, what two
//! values differ in, and how one merges into another.
//!
//! The schema's list types and map types say what is one value (*atomic*) and
//! what is many. A field that the schema does not know counts as many where it
//! is an object, and as one where it is a list.

use std::collections::{HashMap, HashSet};

use api::quantity::Quantity;
use api::schema::{Element, Field, ListType, Scalar, Shape, TypeRef};
use serde_json::{Map, Value};

use super::field_set::{self, FieldSet};
use crate::patch::MAX_DEPTH;

type Fields = Map<String, Value>;

/// What is known about a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// One value.
    Leaf(Option<Scalar>),
    /// An object with a type's fields.
    Struct(TypeRef),
    /// An object whose keys are data, all alike.
    Map(Element),
    /// A list of distinct plain values.
    Set(Option<Scalar>),
    /// A list of objects told apart by the keys of this field.
    Keyed(Field, TypeRef),
    /// Not in the schema.
    Free,
}

impl Kind {
    pub(super) fn of_field(field: Field) -> Self {
        match field.shape() {
            Shape::Scalar(Scalar::Json) => Self::Free,
            Shape::Scalar(scalar) => Self::Leaf(Some(scalar)),
            Shape::Object(_) | Shape::Map(_) if field.map_atomic() => Self::Leaf(None),
            Shape::Object(of) => Self::Struct(of),
            Shape::Map(element) => Self::Map(element),
            Shape::List(element) => match (field.list_type(), element) {
                (ListType::Map, Element::Object(of)) => Self::Keyed(field, of),
                (ListType::Set, Element::Scalar(scalar)) => Self::Set(Some(scalar)),
                (ListType::Set, _) => Self::Set(None),
                _ => Self::Leaf(None),
            },
        }
    }

    fn of_element(element: Element) -> Self {
        match element {
            Element::Object(of) if of.is_atomic() => Self::Leaf(None),
            Element::Object(of) => Self::Struct(of),
            Element::Scalar(scalar) => Self::Leaf(Some(scalar)),
            Element::Strings => Self::Leaf(None),
        }
    }

    fn of_key(self, name: &str) -> Self {
        match self {
            Self::Struct(of) => of.field(name).map_or(Self::Free, Self::of_field),
            Self::Map(element) => Self::of_element(element),
            _ => Self::Free,
        }
    }

    /// Whether `name` is a key that the schema does not list by itself.
    fn is_data(self, name: &str) -> bool {
        match self {
            Self::Struct(of) => of.field(name).is_none(),
            _ => true,
        }
    }

    /// The fields of a value of this kind, where it is many by its fields.
    fn fields(self, value: &Value) -> Option<&Fields> {
        match self {
            Self::Struct(_) | Self::Map(_) | Self::Free => value.as_object(),
            _ => None,
        }
    }

    /// The elements of a value of this kind, where it is many by its elements:
    /// path element, value, and the kind of the value.
    fn elements(self, value: &Value) -> Option<Vec<(String, &Value, Self)>> {
        let list = value.as_array()?;
        match self {
            Self::Set(scalar) => {
                Some(list.iter().map(|v| (field_set::value(v), v, Self::Leaf(scalar))).collect())
            }
            Self::Keyed(field, of) => {
                let element = |(n, v)| {
                    (key_of(field, of, v).unwrap_or_else(|| format!("i:{n}")), v, Self::Struct(of))
                };
                Some(list.iter().enumerate().map(element).collect())
            }
            _ => None,
        }
    }
}

/// The path element of a list's element; `None` where a key is missing.
fn key_of(field: Field, of: TypeRef, element: &Value) -> Option<String> {
    let fields = element.as_object()?;
    let keys = field.list_map_keys().map(|key| {
        let default = || of.field(key)?.key_default().map(Value::from);
        fields.get(key).cloned().or_else(default).map(|value| (key, value))
    });
    keys.collect::<Option<Vec<_>>>().map(field_set::keyed)
}

/// Every field that `value` sets.
pub(super) fn fields_of(value: &Value, kind: Kind) -> FieldSet {
    let mut set = FieldSet::default();
    collect(value, kind, &mut Vec::new(), &mut set);
    set
}

fn collect(value: &Value, kind: Kind, path: &mut Vec<String>, set: &mut FieldSet) {
    if path.len() > MAX_DEPTH {
        set.insert(path);
    } else if let Some(fields) = kind.fields(value) {
        for (name, value) in fields {
            path.push(field_set::field(name));
            let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
            if empty || kind.is_data(name) {
                set.insert(path);
            }
            collect(value, kind.of_key(name), path, set);
            path.pop();
        }
    } else if let Some(elements) = kind.elements(value) {
        for (element, value, kind) in elements {
            path.push(element);
            set.insert(path);
            collect(value, kind, path, set);
            path.pop();
        }
    } else {
        set.insert(path);
    }
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    pub(super) fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// All three of it, for one change to each.
    pub(super) fn for_each(&mut self, mut change: impl FnMut(&mut FieldSet)) {
        change(&mut self.added);
        change(&mut self.modified);
        change(&mut self.removed);
    }
}

/// What turned `old` into `new`.
pub(super) fn compare(old: &Value, new: &Value, kind: Kind) -> Comparison {
    let mut comparison = Comparison::default();
    compare_at(Some(old), Some(new), kind, &mut Vec::new(), &mut comparison);
    comparison
}

fn compare_at(
    old: Option<&Value>,
    new: Option<&Value>,
    kind: Kind,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    if old == new {
        return;
    }
    // What is of another type than the schema's is one value.
    let both_many =
        old.is_none_or(|old| is_many(old, kind)) && new.is_none_or(|new| is_many(new, kind));
    let empty = |value: Option<&Value>| value.is_none_or(is_empty);
    if path.len() > MAX_DEPTH || !both_many || (empty(old) && empty(new)) {
        return leaf(old, new, kind, path, found);
    }
    if matches!(kind, Kind::Set(_) | Kind::Keyed(..)) {
        compare_lists(old, new, kind, path, found);
    } else {
        let old = old.and_then(|old| kind.fields(old));
        let new = new.and_then(|new| kind.fields(new));
        compare_fields(old, new, kind, path, found);
    }
}

/// Path elements are made for what differs only: most of an object does not.
fn compare_fields(
    old: Option<&Fields>,
    new: Option<&Fields>,
    kind: Kind,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    for (name, old) in old.into_iter().flatten() {
        let new = new.and_then(|new| new.get(name));
        if new == Some(old) {
            continue;
        }
        let inner = kind.of_key(name);
        path.push(field_set::field(name));
        if new.is_none() && is_counted(kind, name, inner) && is_many(old, inner) {
            found.removed.insert(path);
        }
        compare_at(Some(old), new, inner, path, found);
        path.pop();
    }
    for (name, new) in new.into_iter().flatten() {
        if old.is_some_and(|old| old.contains_key(name)) {
            continue;
        }
        let inner = kind.of_key(name);
        path.push(field_set::field(name));
        if is_counted(kind, name, inner) && is_many(new, inner) {
            found.added.insert(path);
        }
        compare_at(None, Some(new), inner, path, found);
        path.pop();
    }
}

fn compare_lists(
    old: Option<&Value>,
    new: Option<&Value>,
    kind: Kind,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    let old = old.and_then(|old| kind.elements(old)).unwrap_or_default();
    let new = new.and_then(|new| kind.elements(new)).unwrap_or_default();
    // Of equal elements the first counts.
    let new_values: HashMap<&str, &Value> =
        new.iter().rev().map(|(element, value, _)| (element.as_str(), *value)).collect();
    let old_names: HashSet<&str> = old.iter().map(|(element, ..)| element.as_str()).collect();
    for (element, old, kind) in &old {
        let new = new_values.get(element.as_str()).copied();
        path.push(element.clone());
        if new.is_none() && is_many(old, *kind) {
            found.removed.insert(path);
        }
        compare_at(Some(old), new, *kind, path, found);
        path.pop();
    }
    for (element, new, kind) in &new {
        if old_names.contains(element.as_str()) {
            continue;
        }
        path.push(element.clone());
        if is_many(new, *kind) {
            found.added.insert(path);
        }
        compare_at(None, Some(new), *kind, path, found);
        path.pop();
    }
}

/// Whether the coming and going of a whole object in `name` is a change in
/// itself: of a map, and of what the schema does not list; not of the objects
/// that it lists.
fn is_counted(kind: Kind, name: &str, inner: Kind) -> bool {
    matches!(inner, Kind::Map(_)) || kind.is_data(name)
}

/// Whether `value` is what `kind` counts as many.
fn is_many(value: &Value, kind: Kind) -> bool {
    match kind {
        Kind::Set(_) | Kind::Keyed(..) => value.is_array(),
        _ => kind.fields(value).is_some(),
    }
}

fn leaf(
    old: Option<&Value>,
    new: Option<&Value>,
    kind: Kind,
    path: &[String],
    found: &mut Comparison,
) {
    match (old, new) {
        (None, Some(_)) => found.added.insert(path),
        (Some(_), None) => found.removed.insert(path),
        (Some(old), Some(new)) if !same(old, new, kind) => found.modified.insert(path),
        _ => {}
    }
}

/// Equal, also where the same amount is written in two ways.
fn same(old: &Value, new: &Value, kind: Kind) -> bool {
    old == new
        || matches!(kind, Kind::Leaf(Some(Scalar::Quantity)))
            && Quantity::from_json(old).is_ok_and(|old| Quantity::from_json(new) == Ok(old))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// `live` with all that `config` says.
///
/// # Errors
/// The place and reason where a list of `config` repeats an element or an
/// element lacks a key.
pub(super) fn merge(live: &Value, config: &Value, kind: Kind) -> Result<Value, String> {
    merge_at(Some(live), config, kind, &mut Vec::new())
}

fn merge_at(
    live: Option<&Value>,
    config: &Value,
    kind: Kind,
    path: &mut Vec<String>,
) -> Result<Value, String> {
    if path.len() > MAX_DEPTH {
        return Err(format!("{}: nested more than {MAX_DEPTH} levels deep", readable(path)));
    }
    if let Some(fields) = kind.fields(config) {
        let mut merged = live.and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, value) in fields {
            path.push(field_set::field(name));
            let new = merge_at(merged.get(name), value, kind.of_key(name), path)?;
            path.pop();
            merged.insert(name.clone(), new);
        }
        return Ok(Value::Object(merged));
    }
    if matches!(kind, Kind::Set(_) | Kind::Keyed(..)) && config.is_array() {
        return merge_lists(live, config, kind, path).map(Value::Array);
    }
    match live {
        Some(live) if same(live, config, kind) => Ok(live.clone()),
        _ => Ok(config.clone()),
    }
}

fn merge_lists(
    live: Option<&Value>,
    config: &Value,
    kind: Kind,
    path: &mut Vec<String>,
) -> Result<Vec<Value>, String> {
    let wanted = kind.elements(config).expect("the caller saw a list");
    let mut is_wanted = HashSet::new();
    for (n, (element, ..)) in wanted.iter().enumerate() {
        if element.starts_with("i:") {
            let Kind::Keyed(field, _) = kind else { unreachable!("values are their own keys") };
            let keys: Vec<&str> = field.list_map_keys().collect();
            return Err(format!(
                "{}: element {n}: associative list with keys has an element that omits key field {:?} (and doesn't have default value)",
                readable(path),
                keys.join(", ")
            ));
        }
        if !is_wanted.insert(element.as_str()) {
            path.push(element.clone());
            let place = readable(path);
            let (list, entry) = place.rsplit_once('[').unwrap_or((&place, ""));
            return Err(format!("{list}: duplicate entries for key [{entry}"));
        }
    }
    let existing = live.and_then(|live| kind.elements(live)).unwrap_or_default();
    let mut merged = Vec::with_capacity(wanted.len().max(existing.len()));
    let old_values: HashMap<&str, &Value> =
        existing.iter().rev().map(|(element, old, _)| (element.as_str(), *old)).collect();
    // Elements that only the live object has stay where they are; the others
    // come in the order of the configuration.
    let mut existing_left = existing.iter().peekable();
    for (element, value, kind) in &wanted {
        while let Some((_, value, _)) =
            existing_left.next_if(|(other, ..)| !is_wanted.contains(other.as_str()))
        {
            merged.push((*value).clone());
        }
        let old = old_values.get(element.as_str()).copied();
        path.push(element.clone());
        merged.push(merge_at(old, value, *kind, path)?);
        path.pop();
        existing_left.next_if(|(other, ..)| is_wanted.contains(other.as_str()));
    }
    merged.extend(
        existing_left
            .filter(|(e, ..)| !is_wanted.contains(e.as_str()))
            .map(|(_, v, _)| (*v).clone()),
    );
    Ok(merged)
}

fn readable(path: &[String]) -> String {
    let mut set = FieldSet::default();
    set.insert(path);
    set.paths().pop().unwrap_or_default()
}

/// Takes out of `value` what is in `last` and below nothing of `owned`.
///
/// An object or list that is left empty by it goes too, unless it is owned
/// itself. The keys of an element that stays, stay.
pub(super) fn prune(value: &mut Value, kind: Kind, last: &FieldSet, owned: &FieldSet) {
    if kind.fields(value).is_some() {
        let fields = value.as_object_mut().expect("just seen");
        let mut gone = HashSet::new();
        for element in last.elements() {
            let Some(name) = element.strip_prefix("f:") else { continue };
            let Some(inner) = fields.get_mut(name) else { continue };
            let (was_member, below) = last.step(element).expect("listed");
            match owned.step(element) {
                // Objects that the schema lists go whole; a map's keys only
                // where they were members themselves.
                None if was_member || !kind.is_data(name) => {
                    gone.insert(name);
                }
                kept => {
                    let none = FieldSet::default();
                    let (is_owned, owned_below) = kept.unwrap_or((false, &none));
                    let was_empty = is_empty(inner);
                    prune(inner, kind.of_key(name), below, owned_below);
                    if !was_empty && is_empty(inner) && !is_owned {
                        gone.insert(name);
                    }
                }
            }
        }
        fields.retain(|name, _| !gone.contains(name.as_str()));
        return;
    }
    let Some(elements) = kind.elements(value) else { return };
    let names: Vec<String> = elements.into_iter().map(|(element, ..)| element).collect();
    let inner = match kind {
        Kind::Keyed(_, of) => Kind::Struct(of),
        _ => Kind::Leaf(None),
    };
    let list = value.as_array_mut().expect("just seen");
    let mut names = names.into_iter();
    list.retain_mut(|item| {
        let element = names.next().expect("as many as elements");
        let Some((was_member, below)) = last.step(&element) else { return true };
        match owned.step(&element) {
            None if was_member => false,
            kept => {
                let none = FieldSet::default();
                let owned_below = kept.map_or(&none, |(_, below)| below);
                let mut below = below.clone();
                if let Kind::Keyed(field, _) = kind {
                    field
                        .list_map_keys()
                        .for_each(|key| below.remove_subtree(&[&field_set::field(key)]));
                }
                prune(item, inner, &below, owned_below);
                true
            }
        }
    });
}
