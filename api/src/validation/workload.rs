//! Rules on Deployments and ReplicaSets, and on the templates and selectors in
//! them.

use serde_json::{Map, Value};

use super::{
    Errors, Fields, Path, SPEC, fields, items, metadata, number, object, objects, pod, text,
};
use crate::names;
use crate::selector::LabelSelector;

pub(super) fn deployment(spec: &Fields, errors: &mut Errors) {
    common(spec, errors);
    strategy(spec, errors);
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        errors.not_negative(&SPEC.field(field), number(spec, field));
    }
    if let Some(deadline) = number(spec, "progressDeadlineSeconds") {
        let at = SPEC.field("progressDeadlineSeconds");
        errors.not_negative(&at, Some(deadline));
        if deadline <= number(spec, "minReadySeconds").unwrap_or_default() {
            errors.invalid_number(&at, deadline, "must be greater than minReadySeconds");
        }
    }
}

pub(super) fn replica_set(spec: &Fields, errors: &mut Errors) {
    common(spec, errors);
    errors.not_negative(&SPEC.field("minReadySeconds"), number(spec, "minReadySeconds"));
}

/// A selector can never change: pods would be left without an owner.
pub(super) fn update(old: &Fields, new: &Fields, errors: &mut Errors) {
    if old.get("selector") != new.get("selector") {
        let value = new.get("selector").cloned().unwrap_or_default();
        errors.invalid_value(&SPEC.field("selector"), &value, "field is immutable");
    }
}

fn common(spec: &Fields, errors: &mut Errors) {
    errors.not_negative(&SPEC.field("replicas"), number(spec, "replicas"));
    let at = SPEC.field("selector");
    let before = errors.list.len();
    match object(spec, "selector") {
        None => errors.required(&at, ""),
        Some(selector) => {
            label_selector(&at, selector, errors);
            if fields(selector, "matchLabels").is_empty()
                && items(selector, "matchExpressions").is_empty()
            {
                errors.invalid_value(
                    &at,
                    &spec["selector"],
                    "empty selector is invalid for deployment",
                );
            }
        }
    }
    let selector_is_good = errors.list.len() == before;
    let at = SPEC.field("template");
    let Some(template) = object(spec, "template") else {
        errors.required(&at, "");
        return;
    };
    let meta = fields(template, "metadata");
    if selector_is_good && let Ok(selector) = LabelSelector::from_object(&spec["selector"]) {
        let labels = fields(meta, "labels");
        if !selector.matches_with(|key| labels.get(key).and_then(Value::as_str)) {
            errors.invalid_value(
                &at.field("metadata").field("labels"),
                &Value::Object(Map::clone(labels)),
                "`selector` does not match template `labels`",
            );
        }
    }
    metadata::labels_and_annotations(&at.field("metadata"), meta, errors);
    pod::spec(&at.field("spec"), fields(template, "spec"), pod::Place::Template, errors);
}

/// A selector in object form.
pub(super) fn label_selector(path: &Path<'_>, selector: &Fields, errors: &mut Errors) {
    metadata::labels(&path.field("matchLabels"), fields(selector, "matchLabels"), errors);
    let list = path.field("matchExpressions");
    for (n, expression) in objects(selector, "matchExpressions") {
        let at = list.index(n);
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &at.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                &at.field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&at.field("operator"), other, "not a valid selector operator"),
        }
        let key = text(expression, "key");
        errors.invalid_all(&at.field("key"), key, &names::qualified_name(key));
        for (n, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.invalid_all(&at.field("values").index(n), value, &names::label_value(value));
        }
    }
}

fn strategy(spec: &Fields, errors: &mut Errors) {
    let path = SPEC.field("strategy");
    let strategy = fields(spec, "strategy");
    let kind = text(strategy, "type");
    errors.one_of(&path.field("type"), kind, &["Recreate", "RollingUpdate"], true);
    let at = path.field("rollingUpdate");
    let Some(update) = object(strategy, "rollingUpdate") else { return };
    if kind == "Recreate" {
        errors.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
        return;
    }
    let unavailable = count_or_share(&at.field("maxUnavailable"), update, "maxUnavailable", errors);
    let surge = count_or_share(&at.field("maxSurge"), update, "maxSurge", errors);
    match (unavailable, surge) {
        (Some(Amount::Count(0) | Amount::Share(0)), Some(Amount::Count(0) | Amount::Share(0))) => {
            errors.invalid_value(
                &at.field("maxUnavailable"),
                &update["maxUnavailable"],
                "may not be 0 when `maxSurge` is 0",
            );
        }
        (Some(Amount::Share(share)), _) if share > 100 => {
            errors.invalid_value(
                &at.field("maxUnavailable"),
                &update["maxUnavailable"],
                "must not be greater than 100%",
            );
        }
        _ => {}
    }
}

enum Amount {
    Count(i64),
    Share(i64),
}

fn count_or_share(
    path: &Path<'_>,
    update: &Fields,
    field: &str,
    errors: &mut Errors,
) -> Option<Amount> {
    match update.get(field)? {
        Value::Number(count) => {
            let count = count.as_i64()?;
            errors.not_negative(path, Some(count));
            Some(Amount::Count(count))
        }
        Value::String(share) => {
            let digits = share.strip_suffix('%').filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
            let parsed = digits.and_then(|digits| digits.parse().ok());
            if parsed.is_none() {
                errors.invalid(
                    path,
                    share,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                );
            }
            parsed.map(Amount::Share)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::super::tests::{check_create, check_update};

    fn deployment() -> serde_json::Value {
        json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        })
    }

    #[test]
    fn a_good_deployment_passes() {
        check_create("apps", "Deployment", deployment(), &expect![""]);
        check_create("apps", "ReplicaSet", deployment(), &expect![""]);
    }

    #[test]
    fn selectors_must_fit_the_template() {
        let mut object = deployment();
        object["spec"]["selector"]["matchLabels"]["app"] = json!("db");
        check_create(
            "apps",
            "Deployment",
            object,
            &expect![[r#"
            Invalid spec.template.metadata.labels: Invalid value: {"app":"web"}: `selector` does not match template `labels`
        "#]],
        );
        let mut object = deployment();
        object["spec"]["selector"] = json!({});
        check_create(
            "apps",
            "ReplicaSet",
            object,
            &expect![[r#"
            Invalid spec.selector: Invalid value: {}: empty selector is invalid for deployment
        "#]],
        );
        let mut object = deployment();
        object["spec"]["selector"]["matchExpressions"] = json!([
            {"key": "a", "operator": "In"},
            {"key": "a", "operator": "Exists", "values": ["x"]},
            {"key": "", "operator": "Like"},
        ]);
        check_create(
            "apps",
            "Deployment",
            object,
            &expect![[r#"
            Required spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            Forbidden spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'
            Invalid spec.selector.matchExpressions[2].operator: Invalid value: "Like": not a valid selector operator
            Invalid spec.selector.matchExpressions[2].key: Invalid value: "": name part must be non-empty
            Invalid spec.selector.matchExpressions[2].key: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        "#]],
        );
        check_create(
            "apps",
            "Deployment",
            json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {}}),
            &expect![[r#"
            Required spec.selector: Required value
            Required spec.template: Required value
        "#]],
        );
        let mut changed = deployment();
        changed["spec"]["selector"]["matchLabels"]["tier"] = json!("x");
        changed["spec"]["template"]["metadata"]["labels"]["tier"] = json!("x");
        check_update(
            "apps",
            "Deployment",
            &deployment(),
            &changed,
            &expect![[r#"
            Invalid spec.selector: Invalid value: {"matchLabels":{"app":"web","tier":"x"}}: field is immutable
        "#]],
        );
    }

    #[test]
    fn strategies_and_numbers() {
        let mut object = deployment();
        object["spec"]["replicas"] = json!(-1);
        object["spec"]["minReadySeconds"] = json!(600);
        object["spec"]["strategy"] =
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}});
        object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        check_create(
            "apps",
            "Deployment",
            object,
            &expect![[r#"
                Invalid spec.replicas: Invalid value: -1: must be greater than or equal to 0
                NotSupported spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
                Invalid spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0
                Invalid spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds
            "#]],
        );
        let mut object = deployment();
        object["spec"]["strategy"] =
            json!({"rollingUpdate": {"maxSurge": "many", "maxUnavailable": "120%"}});
        check_create(
            "apps",
            "Deployment",
            object,
            &expect![[r#"
            Invalid spec.strategy.rollingUpdate.maxSurge: Invalid value: "many": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')
            Invalid spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "120%": must not be greater than 100%
        "#]],
        );
        let mut object = deployment();
        object["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}});
        check_create(
            "apps",
            "Deployment",
            object,
            &expect![[r#"
            Forbidden spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'
        "#]],
        );
    }
}
