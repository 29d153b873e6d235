//! JSON patch, RFC 6902: a list of operations, all or nothing.
//!
//! Bounded: `copy` can double a document with each operation, and `add` can
//! nest it, so operations, copied values and depth are counted.

use serde_json::Value;

use super::{MAX_DEPTH, PatchError};

/// Most operations in one patch, as kube-apiserver allows.
pub const MAX_OPERATIONS: usize = 10_000;
/// Most JSON values that one patch may put into a document.
const MAX_VALUES: usize = 1_000_000;

/// `document` after every operation of `patch`.
///
/// # Errors
/// [`PatchError::Malformed`] for a patch that is none, [`PatchError::DoesNotFit`]
/// for a missing path or a failed test, [`PatchError::TooLarge`].
pub fn apply(document: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::Malformed("a JSON patch is a list of operations".to_owned()));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut document = document.clone();
    let mut budget = MAX_VALUES;
    for operation in operations {
        step(&mut document, operation, &mut budget)?;
    }
    Ok(document)
}

fn step(document: &mut Value, operation: &Value, budget: &mut usize) -> Result<(), PatchError> {
    let text = |field: &str| {
        operation.get(field).and_then(Value::as_str).ok_or_else(|| {
            PatchError::Malformed(format!("JSON patch operation has no {field:?}: {operation}"))
        })
    };
    let value = || {
        operation.get("value").ok_or_else(|| {
            PatchError::Malformed(format!("JSON patch operation has no \"value\": {operation}"))
        })
    };
    let path = text("path")?;
    let at = pointer(path)?;
    match text("op")? {
        "add" => add(document, path, &at, value()?.clone(), budget),
        "remove" => remove(document, path, &at).map(drop),
        "replace" => {
            let new = value()?.clone();
            spend(&new, at.len(), budget)?;
            *find(document, path, &at)? = new;
            Ok(())
        }
        "move" => {
            let from = text("from")?;
            let source = pointer(from)?;
            if at.len() > source.len() && at.starts_with(&source) {
                return Err(does_not_fit("move", path, "cannot move a value into itself"));
            }
            let moved = remove(document, from, &source)?;
            add(document, path, &at, moved, budget)
        }
        "copy" => {
            let from = text("from")?;
            let copied = find(document, from, &pointer(from)?)?;
            // Before the copy is made, so that it is never larger than allowed.
            spend(copied, at.len(), budget)?;
            let copied = copied.clone();
            add(document, path, &at, copied, budget)
        }
        "test" => {
            let expected = value()?;
            let found = find(document, path, &at);
            let equal = match &found {
                Ok(found) => *found == expected,
                Err(_) => expected.is_null(),
            };
            if equal { Ok(()) } else { Err(does_not_fit("test", path, "test failed")) }
        }
        other => Err(PatchError::Malformed(format!("unexpected JSON patch operation {other:?}"))),
    }
}

/// The segments of a JSON pointer.
fn pointer(path: &str) -> Result<Vec<String>, PatchError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let Some(path) = path.strip_prefix('/') else {
        return Err(PatchError::Malformed(format!("JSON pointer {path:?} does not start with /")));
    };
    Ok(path.split('/').map(|segment| segment.replace("~1", "/").replace("~0", "~")).collect())
}

fn find<'a>(
    document: &'a mut Value,
    path: &str,
    at: &[String],
) -> Result<&'a mut Value, PatchError> {
    let mut found = document;
    for segment in at {
        found = match found {
            Value::Object(fields) => fields.get_mut(segment),
            Value::Array(list) => index(segment).and_then(|n| list.get_mut(n)),
            _ => None,
        }
        .ok_or_else(|| does_not_fit("operation", path, "missing value"))?;
    }
    Ok(found)
}

fn add(
    document: &mut Value,
    path: &str,
    at: &[String],
    value: Value,
    budget: &mut usize,
) -> Result<(), PatchError> {
    spend(&value, at.len(), budget)?;
    let Some((last, parents)) = at.split_last() else {
        *document = value;
        return Ok(());
    };
    match find(document, path, parents)? {
        Value::Object(fields) => {
            fields.insert(last.clone(), value);
        }
        Value::Array(list) => {
            let n = if last == "-" { Some(list.len()) } else { index(last) };
            match n.filter(|n| *n <= list.len()) {
                Some(n) => list.insert(n, value),
                None => return Err(does_not_fit("add", path, "invalid array index")),
            }
        }
        _ => return Err(does_not_fit("add", path, "missing value")),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str, at: &[String]) -> Result<Value, PatchError> {
    let Some((last, parents)) = at.split_last() else {
        return Ok(document.take());
    };
    let removed = match find(document, path, parents)? {
        Value::Object(fields) => fields.shift_remove(last),
        Value::Array(list) => index(last).filter(|n| *n < list.len()).map(|n| list.remove(n)),
        _ => None,
    };
    removed.ok_or_else(|| does_not_fit("remove", path, "missing value"))
}

/// An array index: no sign, no leading zero.
fn index(segment: &str) -> Option<usize> {
    let plain = segment == "0" || !segment.starts_with('0');
    (plain && segment.bytes().all(|b| b.is_ascii_digit())).then(|| segment.parse().ok())?
}

/// Counts the values in `value`, which is put at `depth`.
fn spend(value: &Value, depth: usize, budget: &mut usize) -> Result<(), PatchError> {
    if depth > MAX_DEPTH {
        return Err(PatchError::DoesNotFit(format!(
            "JSON patch nests values more than {MAX_DEPTH} levels deep"
        )));
    }
    *budget = budget.checked_sub(1).ok_or_else(|| {
        PatchError::TooLarge(format!("JSON patch adds more than {MAX_VALUES} values"))
    })?;
    match value {
        Value::Array(list) => list.iter().try_for_each(|item| spend(item, depth + 1, budget)),
        Value::Object(fields) => {
            fields.values().try_for_each(|item| spend(item, depth + 1, budget))
        }
        _ => Ok(()),
    }
}

fn does_not_fit(operation: &str, path: &str, why: &str) -> PatchError {
    let what = if operation == "operation" { "path" } else { operation };
    PatchError::DoesNotFit(format!("JSON patch {what} {path:?} does not apply: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(document: Value, patch: Value, expected: Value) {
        assert_eq!(apply(&document, &patch), Ok(expected), "{patch}");
    }

    #[test]
    fn every_operation() {
        let op =
            |op: &str, path: &str, value: Value| json!([{"op": op, "path": path, "value": value}]);
        check(json!({"a": [1, 2]}), op("add", "/a/1", json!(9)), json!({"a": [1, 9, 2]}));
        check(json!({"a": [1]}), op("add", "/a/-", json!(2)), json!({"a": [1, 2]}));
        check(json!({}), op("add", "/a~1b~0", json!(2)), json!({"a/b~": 2}));
        check(json!({"a": 1}), op("add", "", json!([])), json!([]));
        check(json!({"a": {"b": 1}}), op("replace", "/a/b", json!(2)), json!({"a": {"b": 2}}));
        check(json!({"a": [1, 2]}), op("remove", "/a/0", json!(null)), json!({"a": [2]}));
        check(json!({"a": 1}), op("test", "/a", json!(1)), json!({"a": 1}));
        check(json!({}), op("test", "/a", json!(null)), json!({}));
        check(
            json!({"a": {"x": 1}}),
            json!([{"op": "move", "from": "/a/x", "path": "/b"}, {"op": "copy", "from": "/b", "path": "/a/y"}]),
            json!({"a": {"y": 1}, "b": 1}),
        );
    }

    #[test]
    fn what_does_not_fit_is_told_from_what_makes_no_sense() {
        let document = json!({"a": [1], "b": {"c": 1}});
        let one = |op: Value| apply(&document, &json!([op])).unwrap_err();
        for op in [
            json!({"op": "test", "path": "/a/0", "value": 2}),
            json!({"op": "remove", "path": "/x"}),
            json!({"op": "remove", "path": "/a/1"}),
            json!({"op": "replace", "path": "/x/y", "value": 1}),
            json!({"op": "add", "path": "/a/2", "value": 1}),
            json!({"op": "add", "path": "/a/01", "value": 1}),
            json!({"op": "add", "path": "/a/0/x", "value": 1}),
            json!({"op": "move", "from": "/b", "path": "/b/c/d"}),
        ] {
            assert!(matches!(one(op.clone()), PatchError::DoesNotFit(_)), "{op}");
        }
        for op in [
            json!({"op": "add", "path": "x", "value": 1}),
            json!({"op": "add", "path": "/x"}),
            json!({"op": "grow", "path": "/x"}),
            json!({"path": "/x"}),
            json!(1),
        ] {
            assert!(matches!(one(op.clone()), PatchError::Malformed(_)), "{op}");
        }
        assert!(matches!(apply(&document, &json!({})), Err(PatchError::Malformed(_))));
        assert_eq!(
            one(json!({"op": "test", "path": "/a/0", "value": 2})).to_string(),
            "JSON patch test \"/a/0\" does not apply: test failed"
        );
    }

    #[test]
    fn a_patch_cannot_blow_up_the_document() {
        let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        let doubled = apply(&json!({"a": [1]}), &json!(vec![double; 64]));
        assert!(matches!(doubled, Err(PatchError::TooLarge(_) | PatchError::DoesNotFit(_))));
        let copy = |to: &str| json!({"op": "copy", "from": "/a", "path": to});
        let wide: Vec<Value> =
            (0..3000).map(|n| copy(if n % 2 == 0 { "/b" } else { "/c" })).collect();
        let wide = apply(&json!({"a": vec![0; 1000]}), &json!(wide));
        assert!(matches!(wide, Err(PatchError::TooLarge(_))));
        let many = vec![json!({"op": "test", "path": "", "value": 1}); MAX_OPERATIONS + 1];
        assert!(matches!(apply(&json!(1), &json!(many)), Err(PatchError::TooLarge(_))));
        let deep: Vec<_> = (0..200)
            .map(|n| json!({"op": "add", "path": "/a".repeat(n + 1), "value": {}}))
            .collect();
        assert!(matches!(apply(&json!({}), &json!(deep)), Err(PatchError::DoesNotFit(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(ops in prop::collection::vec(
            ("(add|remove|replace|move|copy|test)", "(/[a-c0-2-]){0,4}", "(/[a-c0-2-]){0,4}"), 0..12)
        ) {
            let ops: Vec<Value> = ops
                .into_iter()
                .map(|(op, path, from)| json!({"op": op, "path": path, "from": from, "value": {"a": [1]}}))
                .collect();
            let _ = apply(&json!({"a": [1, {"b": 2}], "b": {"c": []}}), &json!(ops));
        }
    }
}
