//! The values that field selectors compare.

use serde_json::Value;

use super::Resource;

/// Fields that are `false` where an object does not carry them.
const BOOLEANS: &[&str] = &["spec.hostNetwork", "spec.unschedulable"];
/// Fields that are `0` where an object does not carry them.
const NUMBERS: &[&str] = &["status.replicas"];

impl Resource {
    /// Whether a list or watch of this resource may select by `field`.
    #[must_use]
    pub fn selects_field(&self, field: &str) -> bool {
        matches!(field, "metadata.name" | "metadata.namespace")
            || self.field_selectors.contains(&field)
    }

    /// The text a field selector compares: empty, `false` or `0` where the
    /// object does not carry the field.
    #[must_use]
    pub fn field_value(&self, object: &Value, field: &str) -> String {
        let path = match (self.kind, field) {
            ("Namespace", "name") => "metadata.name",
            ("Event", "source") => "source.component",
            _ => field,
        };
        match path.split('.').try_fold(object, |at, key| at.get(key)) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ if BOOLEANS.contains(&field) => "false".to_owned(),
            _ if NUMBERS.contains(&field) => "0".to_owned(),
            _ => String::new(),
        }
    }

    /// The error for a field that cannot be selected by, as Kubernetes words it.
    #[must_use]
    pub fn field_selector_error(&self, field: &str) -> String {
        if self.field_selectors.is_empty() {
            format!(
                "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        } else {
            format!("field label not supported: {field}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::resource::by_kind;

    #[test]
    fn absent_fields_have_their_zero_value() {
        let node = by_kind("", "Node").unwrap();
        let object = json!({"metadata": {"name": "n1"}, "spec": {}});
        assert!(node.selects_field("spec.unschedulable"));
        assert!(!node.selects_field("spec.podCIDR"));
        assert_eq!(node.field_value(&object, "spec.unschedulable"), "false");
        assert_eq!(node.field_value(&object, "metadata.name"), "n1");
        assert_eq!(node.field_value(&object, "metadata.namespace"), "");
        let cordoned = json!({"spec": {"unschedulable": true}});
        assert_eq!(node.field_value(&cordoned, "spec.unschedulable"), "true");
        let sets = by_kind("apps", "ReplicaSet").unwrap();
        assert_eq!(sets.field_value(&json!({}), "status.replicas"), "0");
        assert_eq!(sets.field_value(&json!({"status": {"replicas": 3}}), "status.replicas"), "3");
    }

    #[test]
    fn an_events_source_is_its_component() {
        let events = by_kind("", "Event").unwrap();
        let object = json!({"source": {"component": "scheduler"}});
        assert_eq!(events.field_value(&object, "source"), "scheduler");
    }
}
