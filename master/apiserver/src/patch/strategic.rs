//! Strategic merge patch: a merge patch whose lists merge by key, as the schema
//! says, with directives for what a merge cannot say.
//!
//! | directive | where | what it does |
//! |---|---|---|
//! | `$patch: replace` | object, list | the patch stands alone |
//! | `$patch: delete` | object, list element | empties the object, drops the element |
//! | `$patch: merge` | object | merges a field that is replaced otherwise |
//! | `$retainKeys: [..]` | object | drops every other key first |
//! | `$deleteFromPrimitiveList/field` | object | drops these values from a list |
//! | `$setElementOrder/field` | object | puts a merged list into this order |
//!
//! Source: <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md>
//! and `k8s.io/apimachinery/pkg/util/strategicpatch`.

use std::collections::{HashMap, HashSet};

use api::schema::{Element, Field, Shape, TypeRef};
use serde_json::{Map, Value};

use super::PatchError;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Fields = Map<String, Value>;

/// `object`, which is of type `of`, with `patch` in it.
///
/// # Errors
/// [`PatchError::Malformed`] for a directive that makes no sense, or a list
/// element without its merge key.
pub fn apply(object: &Value, patch: &Value, of: TypeRef) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return malformed("a strategic merge patch is an object".to_owned());
    };
    let original = object.as_object().cloned().unwrap_or_default();
    merge_object(original, patch, Schema::Type(of)).map(Value::Object)
}

/// What is known about an object's fields.
#[derive(Clone, Copy)]
enum Schema {
    /// A type's.
    Type(TypeRef),
    /// A map's, all alike.
    Values(Element),
    /// Nothing: a field that will be refused or dropped, or free JSON.
    Unknown,
}

/// How one field merges.
struct Rule<'a> {
    schema: Schema,
    merges: bool,
    replaces: bool,
    key: Option<&'a str>,
}

impl Schema {
    fn rule(self, name: &str) -> Rule<'static> {
        match self {
            Self::Type(of) => of.field(name).map_or_else(Rule::unknown, Rule::of),
            Self::Values(Element::Object(of)) => Rule { schema: Self::Type(of), ..Rule::unknown() },
            Self::Values(_) | Self::Unknown => Rule::unknown(),
        }
    }
}

impl Rule<'static> {
    fn of(field: Field) -> Self {
        let schema = match field.shape() {
            Shape::Object(of) | Shape::List(Element::Object(of)) => Schema::Type(of),
            Shape::Map(element) => Schema::Values(element),
            Shape::List(_) | Shape::Scalar(_) => Schema::Unknown,
        };
        let strategy = field.patch_strategy();
        Self { schema, merges: strategy.merge, replaces: strategy.replace, key: field.merge_key() }
    }

    fn unknown() -> Self {
        Self { schema: Schema::Unknown, merges: false, replaces: false, key: None }
    }
}

fn merge_object(
    mut original: Fields,
    patch: &Fields,
    schema: Schema,
) -> Result<Fields, PatchError> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(Value::String(word)) if word == "merge" => {}
        Some(Value::String(word)) if word == "replace" => {
            let mut whole = patch.clone();
            whole.shift_remove(DIRECTIVE);
            return Ok(without_directives(&whole));
        }
        Some(Value::String(word)) if word == "delete" => return Ok(Fields::new()),
        Some(other) => return malformed(format!("unknown patch type {other} found in map")),
    }
    retain_keys(&mut original, patch)?;
    original.retain(|name, _| patch.get(name).is_none_or(|value| !value.is_null()));
    for (name, value) in patch {
        if let Some(name) = name.strip_prefix(DELETE_FROM) {
            delete_from(&mut original, name, value)?;
        }
    }
    for (name, value) in patch {
        if name.starts_with('$') {
            check_directive(name)?;
            continue;
        }
        if value.is_null() {
            continue;
        }
        let order = patch.get(&format!("{SET_ORDER}{name}"));
        let merged = merge_field(original.get(name), value, &schema.rule(name), name, order)?;
        original.insert(name.clone(), merged);
    }
    // An order for a list that the patch changes in no other way.
    for (key, order) in patch {
        let Some(name) = key.strip_prefix(SET_ORDER) else { continue };
        if patch.contains_key(name) {
            continue;
        }
        let rule = schema.rule(name);
        let order = list_of(order, key)?;
        if let Some(Value::Array(list)) = original.get_mut(name) {
            let server = list.clone();
            *list = ordered(std::mem::take(list), order, &server, rule.key);
        }
    }
    Ok(original)
}

fn merge_field(
    original: Option<&Value>,
    patch: &Value,
    rule: &Rule<'_>,
    name: &str,
    order: Option<&Value>,
) -> Result<Value, PatchError> {
    let asked_to_merge = || patch.get(DIRECTIVE).is_some_and(|word| word == "merge");
    match (original, patch) {
        (Some(Value::Object(original)), Value::Object(patch))
            if !rule.replaces || asked_to_merge() =>
        {
            merge_object(original.clone(), patch, rule.schema).map(Value::Object)
        }
        (None | Some(Value::Null), Value::Object(patch)) => {
            // Through the merge, so that bad directives are found here too.
            merge_object(Fields::new(), patch, rule.schema).map(Value::Object)
        }
        (Some(Value::Array(original)), Value::Array(patch)) if rule.merges => {
            let order = order.map(|order| list_of(order, name)).transpose()?;
            check_order(patch, order, rule.key)?;
            merge_list(original, patch, rule, name, order).map(Value::Array)
        }
        (_, Value::Array(new)) if rule.merges => {
            let order = order.map(|order| list_of(order, name)).transpose()?;
            check_order(new, order, rule.key)?;
            let Value::Array(new) = clean(patch) else { unreachable!("a list stays one") };
            Ok(Value::Array(ordered(new, order.unwrap_or_default(), &[], rule.key)))
        }
        (_, patch) => Ok(clean(patch)),
    }
}

fn merge_list(
    original: &[Value],
    patch: &[Value],
    rule: &Rule<'_>,
    name: &str,
    order: Option<&[Value]>,
) -> Result<Vec<Value>, PatchError> {
    let Some(key) = rule.key else {
        // Scalars: what is new goes to the end.
        let mut merged: Vec<Value> = original.to_vec();
        let mut known: HashSet<String> = merged.iter().map(ToString::to_string).collect();
        for value in patch {
            if value.is_object() || value.is_array() {
                return malformed(format!("{name} is a list of plain values, found {value}"));
            }
            if known.insert(value.to_string()) {
                merged.push(value.clone());
            }
        }
        return Ok(ordered(merged, order.unwrap_or(patch), original, None));
    };
    let mut merged = original.to_vec();
    let mut plain = Vec::new();
    let mut deleted = HashSet::new();
    let mut replaces = false;
    for element in patch {
        let Value::Object(fields) = element else {
            return malformed(format!("{name} is a list of objects, found {element}"));
        };
        match fields.get(DIRECTIVE).map(Value::as_str) {
            None => plain.push(fields),
            Some(Some("replace")) => {
                // The element only marks the list; it is none itself.
                replaces = true;
            }
            Some(Some("delete")) => {
                let Some(value) = fields.get(key) else {
                    return malformed(format!(
                        "delete patch type with no merge key defined: {name} needs {key:?}"
                    ));
                };
                deleted.insert(value.to_string());
            }
            Some(Some("merge")) => {
                return malformed("merging lists cannot yet be specified in the patch".to_owned());
            }
            Some(_) => {
                return malformed(format!(
                    "unknown patch type {} found in {name}",
                    fields[DIRECTIVE]
                ));
            }
        }
    }
    if replaces {
        return Ok(plain.into_iter().map(|f| Value::Object(without_directives(f))).collect());
    }
    let id = |element: &Value| element.get(key).map(ToString::to_string);
    merged.retain(|element| id(element).is_none_or(|id| !deleted.contains(&id)));
    let mut places: HashMap<String, usize> =
        merged.iter().enumerate().rev().filter_map(|(n, e)| Some((id(e)?, n))).collect();
    let mut patched = Vec::with_capacity(plain.len());
    for fields in plain {
        let Some(value) = fields.get(key) else {
            return malformed(format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object(fields.clone())
            ));
        };
        patched.push(Value::Object(fields.clone()));
        let at = places.get(&value.to_string()).copied();
        let old = at.and_then(|at| merged[at].as_object().cloned()).unwrap_or_default();
        let new = Value::Object(merge_object(old, fields, rule.schema)?);
        if let Some(at) = at {
            merged[at] = new;
        } else {
            places.insert(value.to_string(), merged.len());
            merged.push(new);
        }
    }
    Ok(ordered(merged, order.unwrap_or(&patched), original, Some(key)))
}

/// Puts what `order` names into that order, and leaves what it does not name
/// where the server had it, relative to the rest.
fn ordered(merged: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let id = |value: &Value| match key {
        Some(key) => value.get(key).unwrap_or(&Value::Null).to_string(),
        None => value.to_string(),
    };
    let places = |list: &[Value]| -> HashMap<String, usize> {
        list.iter().enumerate().rev().map(|(n, value)| (id(value), n)).collect()
    };
    let (order, server) = (places(order), places(server));
    let place = |list: &HashMap<String, usize>, value: &Value| list.get(&id(value)).copied();
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|value| order.contains_key(&id(value)));
    named.sort_by_cached_key(|value| place(&order, value));
    others.sort_by_cached_key(|value| place(&server, value).unwrap_or(usize::MAX));
    let mut all = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return all,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(next)) => {
                matches!((place(&server, other), place(&server, next)), (Some(a), Some(b)) if a < b)
            }
        };
        all.extend(if other_first { others.next() } else { named.next() });
    }
}

/// The elements of a patch must come in the order that `$setElementOrder` gives.
fn check_order(
    patch: &[Value],
    order: Option<&[Value]>,
    key: Option<&str>,
) -> Result<(), PatchError> {
    let Some(order) = order.filter(|order| !order.is_empty()) else { return Ok(()) };
    let id = |value: &Value| key.map_or_else(|| Some(value.clone()), |key| value.get(key).cloned());
    let mut places = order.iter().map(id);
    for element in patch.iter().filter(|element| element.get(DIRECTIVE).is_none()) {
        let wanted = id(element);
        if !places.any(|place| place == wanted) {
            return malformed(format!(
                "The order in patch list: {} doesn't match $setElementOrder list: {}",
                Value::from(patch),
                Value::from(order),
            ));
        }
    }
    Ok(())
}

fn retain_keys(original: &mut Fields, patch: &Fields) -> Result<(), PatchError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let keys = list_of(keys, RETAIN_KEYS)?;
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let kept = |name: &str| keys.contains(name);
    for (name, value) in patch {
        if !name.starts_with('$') && !value.is_null() && !kept(name) {
            return malformed(format!("{name} is in the patch, but not in its $retainKeys list"));
        }
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

fn delete_from(original: &mut Fields, name: &str, values: &Value) -> Result<(), PatchError> {
    let values: HashSet<String> =
        list_of(values, DELETE_FROM)?.iter().map(ToString::to_string).collect();
    if let Some(Value::Array(list)) = original.get_mut(name) {
        list.retain(|value| !values.contains(&value.to_string()));
    }
    Ok(())
}

fn check_directive(name: &str) -> Result<(), PatchError> {
    let known = name == DIRECTIVE
        || name == RETAIN_KEYS
        || name.starts_with(SET_ORDER)
        || name.starts_with(DELETE_FROM);
    if known { Ok(()) } else { malformed(format!("unknown patch directive {name:?}")) }
}

fn list_of<'a>(value: &'a Value, name: &str) -> Result<&'a [Value], PatchError> {
    match value {
        Value::Array(list) => Ok(list),
        _ => malformed(format!("{name} is not a list: {value}")),
    }
}

/// A value that is taken as it is: without directives and `null`s.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(without_directives(fields)),
        Value::Array(list) => Value::Array(
            list.iter()
                .filter(|element| element.get(DIRECTIVE).is_none_or(|word| word != "delete"))
                .filter(|element| !is_only_directive(element))
                .map(clean)
                .collect(),
        ),
        other => other.clone(),
    }
}

fn is_only_directive(element: &Value) -> bool {
    element.as_object().is_some_and(|fields| fields.len() == 1 && fields.contains_key(DIRECTIVE))
}

fn without_directives(fields: &Fields) -> Fields {
    let kept = fields.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
    kept.map(|(name, value)| (name.clone(), clean(value))).collect()
}

fn malformed<T>(text: String) -> Result<T, PatchError> {
    Err(PatchError::Malformed(text))
}

#[cfg(test)]
mod tests {
    use api::schema;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod() -> TypeRef {
        schema::table().kind("", "v1", "Pod").unwrap()
    }

    fn deployment() -> TypeRef {
        schema::table().kind("apps", "v1", "Deployment").unwrap()
    }

    fn check(of: TypeRef, object: Value, patch: Value, expected: Value) {
        assert_eq!(apply(&object, &patch, of), Ok(expected), "{object} + {patch}");
    }

    #[test]
    fn maps_merge_and_null_deletes() {
        check(
            pod(),
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n"}}),
            json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": null}}, "spec": {"nodeName": null}}),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {}}, "spec": {}}),
        );
    }

    /// New elements come first, as they do with kube-apiserver.
    #[test]
    fn lists_merge_by_their_key() {
        check(
            pod(),
            json!({"spec": {"containers": [
                {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
                 "ports": [{"containerPort": 80, "protocol": "TCP"}], "args": ["a"]},
                {"name": "b", "image": "2"},
            ]}}),
            json!({"spec": {"containers": [
                {"name": "a", "image": "3", "env": [{"name": "X", "$patch": "delete"}, {"name": "Z", "value": "9"}],
                 "ports": [{"containerPort": 80, "name": "web"}], "args": ["b"]},
            ]}}),
            json!({"spec": {"containers": [
                {"name": "a", "image": "3", "env": [{"name": "Z", "value": "9"}, {"name": "Y", "value": "2"}],
                 "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}], "args": ["b"]},
                {"name": "b", "image": "2"},
            ]}}),
        );
        // Tolerations have no merge key: the list is replaced.
        check(
            pod(),
            json!({"spec": {"tolerations": [{"key": "a"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
        );
    }

    #[test]
    fn lists_and_maps_can_be_replaced() {
        check(
            pod(),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c", "image": null}],
                "nodeSelector": {"$patch": "replace", "y": "2"}}}),
            json!({"spec": {"containers": [{"name": "c"}], "nodeSelector": {"y": "2"}}}),
        );
        check(
            pod(),
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {"labels": {"$patch": "delete"}}}),
            json!({"metadata": {"labels": {}}}),
        );
    }

    #[test]
    fn retain_keys_drops_the_rest() {
        check(
            deployment(),
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
        check(
            pod(),
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}),
        );
    }

    #[test]
    fn primitive_lists_merge_delete_and_order() {
        let finalizers = |list: &[&str]| json!({"metadata": {"finalizers": list}});
        check(
            pod(),
            finalizers(&["a", "b", "c"]),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d", "a"]}}),
            finalizers(&["d", "a", "c"]),
        );
        check(
            pod(),
            finalizers(&["a", "b"]),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            finalizers(&["b"]),
        );
        check(
            pod(),
            finalizers(&["a", "b", "c"]),
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "a"]}}),
            finalizers(&["b", "c", "a"]),
        );
    }

    /// The tutorial "Update API Objects in Place Using kubectl patch".
    #[test]
    fn the_documented_example() {
        let spec =
            |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
        check(
            deployment(),
            spec(json!([{"image": "nginx", "name": "patch-demo-ctr"}])),
            spec(json!([{"name": "patch-demo-ctr-2", "image": "redis"}])),
            spec(json!([
                {"name": "patch-demo-ctr-2", "image": "redis"},
                {"image": "nginx", "name": "patch-demo-ctr"},
            ])),
        );
        let tolerations =
            |list: Value| json!({"spec": {"template": {"spec": {"tolerations": list}}}});
        check(
            deployment(),
            tolerations(
                json!([{"effect": "NoSchedule", "key": "dedicated", "value": "test-team"}]),
            ),
            tolerations(json!([{"effect": "NoSchedule", "key": "disktype", "value": "ssd"}])),
            tolerations(json!([{"effect": "NoSchedule", "key": "disktype", "value": "ssd"}])),
        );
    }

    /// 3 MB of elements on both sides: seconds would be minutes if each were
    /// looked for in turn.
    #[test]
    fn large_lists_merge_in_one_go() {
        let env = |value: &str| -> Value {
            let list: Vec<Value> =
                (0..40_000).map(|n| json!({"name": format!("E{n}"), "value": value})).collect();
            json!({"spec": {"containers": [{"name": "c", "env": list}]}})
        };
        check(pod(), env("1"), env("2"), env("2"));
    }

    /// What `kubectl apply` sends when a container is added in front.
    #[test]
    fn the_order_of_elements_is_set() {
        check(
            pod(),
            json!({"spec": {"containers": [{"name": "a"}, {"name": "injected"}, {"name": "b"}]}}),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "new"}, {"name": "b"}, {"name": "a"}],
                "containers": [{"name": "new", "image": "i"}],
            }}),
            json!({"spec": {"containers": [
                {"name": "new", "image": "i"}, {"name": "injected"}, {"name": "b"}, {"name": "a"}]}}),
        );
    }

    #[test]
    fn bad_directives_are_named() {
        let object =
            json!({"metadata": {"finalizers": ["x/y"]}, "spec": {"containers": [{"name": "a"}]}});
        for (patch, text) in [
            (json!({"metadata": {"finalizers": [{}]}}), "plain values"),
            (json!({"spec": {"containers": [{"image": "x"}]}}), "declared merge key: name"),
            (json!({"spec": {"containers": [{"$patch": "delete"}]}}), "no merge key defined"),
            (json!({"spec": {"containers": ["x"]}}), "list of objects"),
            (json!({"spec": {"$patch": "explode"}}), "unknown patch type \"explode\""),
            (json!({"spec": {"$retainKeys": 1}}), "$retainKeys is not a list"),
            (json!({"spec": {"$retainKeys": [], "nodeName": "x"}}), "$retainKeys list"),
            (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}), "is not a list"),
            (json!({"spec": {"$what": 1}}), "unknown patch directive"),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}}),
                "The order in patch list",
            ),
            (json!([]), "is an object"),
        ] {
            let error = apply(&object, &patch, pod()).unwrap_err().to_string();
            assert!(error.contains(text), "{patch}: {error}");
        }
    }

    fn any_patch() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            Just(json!("delete")),
            Just(json!("replace")),
            Just(json!(["a"])),
            Just(json!([{"name": "a"}])),
            any::<i8>().prop_map(|n| json!(n)),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let names = prop::sample::select(vec![
                "metadata",
                "spec",
                "containers",
                "name",
                "env",
                "volumes",
                "finalizers",
                "labels",
                "$patch",
                "$retainKeys",
                "$setElementOrder/containers",
                "$deleteFromPrimitiveList/finalizers",
            ]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::vec((names, inner), 0..4).prop_map(|fields| fields
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn garbage_never_panics(object in any_patch(), patch in any_patch()) {
            let _ = apply(&object, &patch, pod());
        }

        /// No directive ever reaches the object.
        #[test]
        fn results_hold_no_directives(patch in any_patch()) {
            if let Ok(result) = apply(&json!({}), &patch, pod()) {
                prop_assert!(!result.to_string().contains("\"$"), "{result}");
            }
        }
    }
}
