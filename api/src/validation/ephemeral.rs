//! Rules on `ephemeralcontainers`: what `kubectl debug` adds to a pod that runs.
//!
//! Source: `ValidatePodEphemeralContainersUpdate` in
//! `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::collections::HashSet;

use super::{Errors, Fields, SPEC, container, objects, text, volume};

const LIST: &str = "ephemeralContainers";

/// What such a container cannot have: it is no part of what the pod is for.
const FORBIDDEN: &[&str] = &[
    "ports",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "restartPolicy",
    "resizePolicy",
];

/// Everything wrong with the list in `new` in the place of that in `old`.
pub(super) fn update(old: &Fields, new: &Fields, errors: &mut Errors) {
    let volumes = volume::volumes(&SPEC, new, errors);
    let list = SPEC.field(LIST);
    let targets: HashSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| objects(new, list))
        .map(|(_, container)| text(container, "name"))
        .collect();
    let mut names = targets.clone();
    for (n, found) in objects(new, LIST) {
        let at = list.index(n);
        let name = text(found, "name");
        if !names.insert(name) && !name.is_empty() {
            errors.duplicate(&at.field("name"), name);
        }
        container::one(&at, found, &volumes, errors);
        for field in FORBIDDEN {
            if found.get(*field).is_some_and(|value| !value.is_null()) {
                errors.forbidden(&at.field(field), "cannot be set for an Ephemeral Container");
            }
        }
        let resources = found.get("resources").and_then(|resources| resources.as_object());
        if resources.is_some_and(|resources| !resources.is_empty()) {
            let detail = "cannot be set for an Ephemeral Container";
            errors.forbidden(&at.field("resources"), detail);
        }
        let target = text(found, "targetContainerName");
        if !target.is_empty() && !targets.contains(target) {
            errors.not_found(&at.field("targetContainerName"), target);
        }
        let mounts = found.get("volumeMounts").and_then(|mounts| mounts.as_array());
        for (m, mount) in mounts.into_iter().flatten().enumerate() {
            let sub = |name: &str| mount[name].as_str().is_some_and(|path| !path.is_empty());
            for field in ["subPath", "subPathExpr"] {
                if sub(field) {
                    let mounts = at.field("volumeMounts");
                    let detail = "cannot be set for an Ephemeral Container";
                    errors.forbidden(&mounts.index(m).field(field), detail);
                }
            }
        }
    }
    for (_, before) in objects(old, LIST) {
        let name = text(before, "name");
        let after = objects(new, LIST).find(|(_, container)| text(container, "name") == name);
        match after {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.forbidden(&list, &detail);
            }
            Some((_, after)) if after != before => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.forbidden(&list, &detail);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(ephemeral: Value) -> Value {
        json!({"containers": [{"name": "main", "image": "a"}], "ephemeralContainers": ephemeral})
    }

    fn debug(name: &str) -> Value {
        json!({
            "name": name, "image": "busybox", "imagePullPolicy": "Always", "stdin": true,
            "terminationMessagePolicy": "File", "targetContainerName": "main", "resources": {},
        })
    }

    fn check(old: Value, new: Value, expected: &[&str]) {
        let (old, new) = (spec(old), spec(new));
        let mut errors = Errors::default();
        update(old.as_object().unwrap(), new.as_object().unwrap(), &mut errors);
        let found: Vec<String> =
            errors.list.iter().map(|error| format!("{}: {}", error.path, error.message)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn containers_are_added_and_nothing_else() {
        check(json!([]), json!([debug("d")]), &[]);
        check(json!([debug("d")]), json!([debug("d"), debug("e")]), &[]);
        check(
            json!([debug("d")]),
            json!([]),
            &[
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be \
               removed\n",
            ],
        );
        let mut changed = debug("d");
        changed["image"] = json!("other");
        check(
            json!([debug("d")]),
            json!([changed]),
            &[
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be \
               changed\n",
            ],
        );
    }

    #[test]
    fn names_targets_and_fields_are_checked() {
        check(
            json!([]),
            json!([debug("main")]),
            &["spec.ephemeralContainers[0].name: Duplicate value: \"main\""],
        );
        let mut lost = debug("d");
        lost["targetContainerName"] = json!("nobody");
        check(
            json!([]),
            json!([lost]),
            &["spec.ephemeralContainers[0].targetContainerName: Not found: \"nobody\""],
        );
        let mut busy = debug("d");
        busy["ports"] = json!([{"containerPort": 80}]);
        busy["resources"] = json!({"limits": {"cpu": "1"}});
        check(
            json!([]),
            json!([busy]),
            &[
                "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral \
                 Container",
                "spec.ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral \
                 Container",
            ],
        );
    }
}
