//! JSON merge patch, RFC 7386: objects merge, `null` deletes, all else replaces.

use serde_json::{Map, Value};

/// `target` with `patch` in it.
#[must_use]
pub fn apply(target: &Value, patch: &Value) -> Value {
    let mut merged = target.clone();
    merge(&mut merged, patch);
    merged
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let fields = target.as_object_mut().expect("just made one");
    // All at once: taking one field out moves every later one.
    fields.retain(|name, _| patch.get(name).is_none_or(|value| !value.is_null()));
    for (name, value) in patch.iter().filter(|(_, value)| !value.is_null()) {
        merge(fields.entry(name.as_str()).or_insert(Value::Null), value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    /// The examples of RFC 7386, appendix A.
    #[test]
    fn the_rfcs_examples() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), Value::Null, Value::Null),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(super::apply(&target, &patch), expected, "{target} + {patch}");
        }
    }
}
