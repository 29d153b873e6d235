//! Sets of fields, as `managedFields` holds them.
//!
//! A [`FieldSet`] is a tree. Each step is a path element in Kubernetes' own
//! text, which is also its key in `fieldsV1`:
//!
//! | element | text |
//! |---|---|
//! | field of an object, key of a map | `f:name` |
//! | element of a list with keys | `k:{"name":"web"}`, keys sorted |
//! | element of a set | `v:"value"` |
//! | element by place | `i:3` |
//!
//! A step may be a member itself (`"."` in `fieldsV1`, or a leaf) and lead on
//! to others. It knows no schema.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::patch::MAX_DEPTH;

/// A set of paths into an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    steps: BTreeMap<String, Step>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Step {
    member: bool,
    below: FieldSet,
}

/// The element for a field or a map's key.
pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// The element for a value of a set.
pub(super) fn value(value: &Value) -> String {
    format!("v:{value}")
}

/// The element for an element of a list with keys; sorts them.
pub(super) fn keyed(mut keys: Vec<(&str, Value)>) -> String {
    keys.sort_by(|a, b| a.0.cmp(b.0));
    let keys: Map<String, Value> = keys.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    format!("k:{}", Value::Object(keys))
}

impl FieldSet {
    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Adds one path.
    pub(super) fn insert(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else { return };
        // Most paths share their first steps with one that is there.
        if !self.steps.contains_key(first) {
            self.steps.insert(first.clone(), Step::default());
        }
        let step = self.steps.get_mut(first).expect("just put there");
        if rest.is_empty() {
            step.member = true;
        } else {
            step.below.insert(rest);
        }
    }

    /// What follows `element`, and whether it is a member itself.
    pub(super) fn step(&self, element: &str) -> Option<(bool, &Self)> {
        self.steps.get(element).map(|step| (step.member, &step.below))
    }

    /// The elements that paths start with.
    pub(super) fn elements(&self) -> impl Iterator<Item = &str> {
        self.steps.keys().map(String::as_str)
    }

    /// Everything in either.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.add(other);
        self
    }

    /// Puts everything of `other` into this one.
    pub(super) fn add(&mut self, other: Self) {
        for (element, step) in other.steps {
            match self.steps.entry(element) {
                Entry::Vacant(free) => {
                    free.insert(step);
                }
                Entry::Occupied(mut own) => {
                    own.get_mut().member |= step.member;
                    own.get_mut().below.add(step.below);
                }
            }
        }
    }

    /// Takes out everything that is in `other`.
    pub(super) fn subtract(&mut self, other: &Self) {
        for (element, taken) in &other.steps {
            let Some(own) = self.steps.get_mut(element) else { continue };
            own.member &= !taken.member;
            own.below.subtract(&taken.below);
            if !own.member && own.below.is_empty() {
                self.steps.remove(element);
            }
        }
    }

    /// What is in this one only.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        self.subtract(other);
        self
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut steps = BTreeMap::new();
        for (element, step) in &self.steps {
            let Some(other) = other.steps.get(element) else { continue };
            let both = Step {
                member: step.member && other.member,
                below: step.below.intersection(&other.below),
            };
            if both.member || !both.below.is_empty() {
                steps.insert(element.clone(), both);
            }
        }
        Self { steps }
    }

    /// Without every path that starts with `path`.
    pub(super) fn remove_subtree(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.steps.remove(*first);
            return;
        }
        if let Some(step) = self.steps.get_mut(*first) {
            step.below.remove_subtree(rest);
            if !step.member && step.below.is_empty() {
                self.steps.remove(*first);
            }
        }
    }

    /// Without the path itself; what lies below stays.
    pub(super) fn remove_member(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let Some(step) = self.steps.get_mut(*first) else { return };
        if rest.is_empty() {
            step.member = false;
        } else {
            step.below.remove_member(rest);
        }
        if !step.member && step.below.is_empty() {
            self.steps.remove(*first);
        }
    }

    /// Only the paths that start with one of `elements`.
    pub(super) fn keep_only(&mut self, elements: &[&str]) {
        self.steps.retain(|element, _| elements.contains(&element.as_str()));
    }

    /// The value of `fieldsV1`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let steps = self.steps.iter().map(|(element, step)| {
            let mut below = step.below.to_json();
            if step.member && !step.below.is_empty() {
                let fields = below.as_object_mut().expect("a set is an object");
                fields.shift_insert(0, ".".to_owned(), Value::Object(Map::new()));
            }
            (element.clone(), below)
        });
        Value::Object(steps.collect())
    }

    /// Reads the value of `fieldsV1`; `None` where it is none.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        Self::read(value, 0)
    }

    fn read(value: &Value, depth: usize) -> Option<Self> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut set = Self::default();
        for (element, below) in value.as_object()? {
            if element == "." {
                continue;
            }
            let element = canonical(element)?;
            let fields = below.as_object()?;
            let member = fields.is_empty() || fields.contains_key(".");
            set.steps.insert(element, Step { member, below: Self::read(below, depth + 1)? });
        }
        Some(set)
    }

    /// Every path as people read it: `.spec.containers[name="web"].image`.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths("", &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &str, paths: &mut Vec<String>) {
        for (element, step) in &self.steps {
            let path = format!("{prefix}{}", readable(element));
            if step.member {
                paths.push(path.clone());
            }
            step.below.collect_paths(&path, paths);
        }
    }
}

/// Checks an element and sorts its keys.
fn canonical(element: &str) -> Option<String> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" => Some(element.to_owned()),
        "v" => Some(value(&serde_json::from_str(rest).ok()?)),
        "i" => rest.parse::<u32>().ok().map(|_| element.to_owned()),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
            Some(keyed(keys.iter().map(|(k, v)| (k.as_str(), v.clone())).collect()))
        }
        _ => None,
    }
}

fn readable(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "f" => format!(".{rest}"),
        "v" => format!("[={rest}]"),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let mut text = String::new();
            for (key, value) in &keys {
                let comma = if text.is_empty() { "" } else { "," };
                write!(text, "{comma}{key}={value}").expect("a String takes all");
            }
            format!("[{text}]")
        }
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn any_set() -> impl Strategy<Value = FieldSet> {
        let element = prop_oneof![
            "[a-d]".prop_map(|name| field(&name)),
            "[a-d]".prop_map(|name| keyed(vec![("port", json!(80)), ("name", json!(name))])),
            any::<bool>().prop_map(|b| value(&json!(b))),
            (0u8..3).prop_map(|n| format!("i:{n}")),
        ];
        prop::collection::vec(prop::collection::vec(element, 1..5), 0..12).prop_map(|paths| {
            let mut set = FieldSet::default();
            paths.iter().for_each(|path| set.insert(path));
            set
        })
    }

    #[test]
    fn text_is_kubernetes() {
        let json = json!({"f:spec": {
            "f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}}},
            "f:finalizers": {"v:\"a/b\"": {}},
        }});
        let set = FieldSet::from_json(&json).unwrap();
        assert_eq!(set.to_json(), json);
        assert_eq!(
            set.paths(),
            [
                ".spec.containers[name=\"web\"]",
                ".spec.containers[name=\"web\"].image",
                ".spec.finalizers[=\"a/b\"]",
            ]
        );
        let unsorted = json!({"k:{\"b\":1,\"a\":2}": {}});
        assert_eq!(FieldSet::from_json(&unsorted).unwrap().paths(), ["[a=2,b=1]"]);
        for bad in
            [json!(1), json!({"x": {}}), json!({"f:a": 1}), json!({"k:[]": {}}), json!({"v:{": {}})]
        {
            assert_eq!(FieldSet::from_json(&bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn json_reads_back(set in any_set()) {
            prop_assert_eq!(FieldSet::from_json(&set.to_json()).unwrap(), set);
        }

        #[test]
        fn the_laws_of_sets_hold(a in any_set(), b in any_set()) {
            let both = a.intersection(&b);
            prop_assert_eq!(&both, &b.intersection(&a));
            let only_a = a.clone().difference(&b);
            prop_assert!(only_a.intersection(&b).is_empty());
            prop_assert_eq!(only_a.union(both), a.clone());
            prop_assert_eq!(a.clone().union(b.clone()), b.union(a.clone()));
            prop_assert!(a.clone().difference(&a).is_empty());
        }

        #[test]
        fn garbage_never_panics(key in "[fvki.]:?[{}a\":0-9]{0,8}") {
            if let Some(set) = FieldSet::from_json(&json!({"f:a": {key: {}}})) {
                prop_assert_eq!(FieldSet::from_json(&set.to_json()).unwrap(), set);
            }
        }
    }
}
