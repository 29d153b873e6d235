//! What server-side apply promises, on whole objects.

use api::schema::{self, TypeRef};
use api::time::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ApplyError, apply, manager_from_user_agent, track_update};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn deployment() -> TypeRef {
    schema::table().kind("apps", "v1", "Deployment").unwrap()
}

fn config_map() -> TypeRef {
    schema::table().kind("", "v1", "ConfigMap").unwrap()
}

fn web(replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {
            "replicas": replicas,
            "template": {"spec": {"containers": [
                {"name": "web", "image": image, "ports": [{"containerPort": 80}]},
            ]}},
        },
    })
}

/// A ConfigMap with these keys.
fn data(keys: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "b"}, "data": keys})
}

fn applied(live: Option<&Value>, config: &Value, manager: &str) -> Value {
    let of = schema::table()
        .kind(
            if config["kind"] == "Deployment" { "apps" } else { "" },
            "v1",
            config["kind"].as_str().unwrap(),
        )
        .unwrap();
    apply(live, config, manager, false, None, at(100), of).unwrap()
}

fn updated(live: &Value, manager: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut new = live.clone();
    change(&mut new);
    let of = if live["kind"] == "Deployment" { deployment() } else { config_map() };
    track_update(Some(live), &mut new, manager, None, at(200), of);
    new
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let of = |entry: &Value| {
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        (format!("{} {}", text("manager"), text("operation")), entry["fieldsV1"].clone())
    };
    entries.iter().map(of).collect()
}

#[test]
fn a_first_apply_creates_and_owns_what_it_says() {
    let object = applied(None, &web(2, "i:1"), "me");
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1",
            "time": "1970-01-01T00:01:40Z", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {
                    "f:replicas": {},
                    "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {
                        ".": {}, "f:image": {}, "f:name": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                    }}}},
                },
            },
        }])
    );
    let again = apply(Some(&object), &web(2, "i:1"), "me", false, None, at(999), deployment());
    assert_eq!(again, Ok(object), "times do not change");
}

#[test]
fn what_is_no_longer_said_goes_unless_another_wants_it() {
    let live = applied(None, &data(json!({"mine": "1", "ours": "1"})), "me");
    let live = applied(Some(&live), &data(json!({"ours": "1", "theirs": "1"})), "them");
    assert_eq!(live["data"], json!({"mine": "1", "ours": "1", "theirs": "1"}));
    let live = applied(Some(&live), &data(json!({})), "me");
    assert_eq!(live["data"], json!({"ours": "1", "theirs": "1"}));
    let live = applied(Some(&live), &data(json!({"theirs": "1"})), "them");
    assert_eq!(live["data"], json!({"theirs": "1"}));
}

#[test]
fn elements_of_lists_come_and_go() {
    let mut config = web(1, "i:1");
    let containers = config["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
    containers.insert(0, json!({"name": "first", "image": "f"}));
    let live = applied(None, &config, "me");
    // Another program adds a container of its own, and defaults are filled in.
    let live = updated(&live, "injector", |object| {
        object["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "injected", "image": "x", "imagePullPolicy": "Always"}));
        object["spec"]["template"]["spec"]["containers"][1]["ports"][0]["protocol"] = json!("TCP");
    });
    let live = applied(Some(&live), &web(1, "i:2"), "me");
    let names: Vec<&Value> = live["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["web", "injected"]);
    assert_eq!(
        live["spec"]["template"]["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "protocol": "TCP"}])
    );
    assert_eq!(live["spec"]["template"]["spec"]["containers"][0]["image"], "i:2");
}

#[test]
fn another_managers_field_is_a_conflict_until_forced() {
    let live = applied(None, &web(1, "i:1"), "me");
    let live =
        updated(&live, "kubectl-client-side-apply", |object| object["spec"]["replicas"] = json!(5));
    let refused = apply(Some(&live), &web(3, "i:1"), "me", false, None, at(300), deployment());
    let error = refused.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let ApplyError::Conflicts(conflicts) = error else { panic!("not a conflict") };
    assert_eq!(conflicts[0].field, ".spec.replicas");
    // The same value is no conflict: both own it.
    let shared = applied(Some(&live), &web(5, "i:1"), "me");
    assert_eq!(owners(&shared).len(), 2);
    let forced =
        apply(Some(&live), &web(3, "i:1"), "me", true, None, at(300), deployment()).unwrap();
    assert_eq!(forced["spec"]["replicas"], 3);
    assert_eq!(owners(&forced).len(), 1);
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let live = applied(None, &data(json!({"a": "1", "b": "1"})), "me");
    let live = updated(&live, "edit", |o| o["data"] = json!({"a": "2", "b": "2"}));
    let error = apply(
        Some(&live),
        &data(json!({"a": "3", "b": "3"})),
        "me",
        false,
        None,
        at(1),
        config_map(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "Apply failed with 2 conflicts: conflicts with \"edit\" using v1:\n- .data.a\n- .data.b"
    );
}

#[test]
fn updates_own_what_they_change_and_nothing_else() {
    let mut new = data(json!({"a": "1"}));
    track_update(None, &mut new, "creator", None, at(0), config_map());
    assert_eq!(
        owners(&new),
        [("creator Update".to_owned(), json!({"f:data": {".": {}, "f:a": {}}}))]
    );
    let live = updated(&new, "editor", |o| o["data"] = json!({"a": "2", "b": "1"}));
    assert_eq!(
        owners(&live),
        [
            ("creator Update".to_owned(), json!({"f:data": {}})),
            ("editor Update".to_owned(), json!({"f:data": {"f:a": {}, "f:b": {}}})),
        ]
    );
    let same = updated(&live, "someone", |_| {});
    assert_eq!(same, live, "a write that changes nothing leaves no trace");
    let removed = updated(&live, "remover", |o| o["data"] = json!({"a": "2"}));
    assert_eq!(
        owners(&removed).last().unwrap(),
        &("editor Update".to_owned(), json!({"f:data": {"f:a": {}}}))
    );
}

#[test]
fn status_has_managers_of_its_own() {
    let live = applied(None, &web(1, "i:1"), "me");
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    track_update(Some(&live), &mut new, "controller", Some("status"), at(5), deployment());
    let entry = &new["metadata"]["managedFields"][1];
    assert_eq!(
        (&entry["manager"], &entry["subresource"]),
        (&json!("controller"), &json!("status"))
    );
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {
            "f:conditions": {"k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}},
            "f:replicas": {},
        }})
    );
    // An apply that speaks of status through the main path says nothing.
    let mut config = web(1, "i:1");
    config["status"] = json!({"replicas": 9});
    assert_eq!(apply(Some(&new), &config, "me", false, None, at(9), deployment()), Ok(new));
}

#[test]
fn managers_can_be_forgotten_but_not_lost() {
    let live = applied(None, &data(json!({"a": "1"})), "me");
    let kept = updated(&live, "old-client", |o| {
        o["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
        o["data"]["b"] = json!("1");
    });
    assert_eq!(owners(&kept).len(), 2);
    let reset = updated(&live, "kubectl", |o| o["metadata"]["managedFields"] = json!([{}]));
    assert_eq!(owners(&reset), []);
    let later = updated(&reset, "kubectl", |o| o["data"]["a"] = json!("2"));
    assert_eq!(owners(&later), [], "nobody is tracked until someone applies");
    let adopted =
        apply(Some(&later), &data(json!({"a": "2"})), "me", false, None, at(7), config_map())
            .unwrap();
    let names: Vec<String> = owners(&adopted).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["me Apply", "before-first-apply Update"]);
}

#[test]
fn old_updaters_are_taken_together() {
    let mut live = data(json!({}));
    track_update(None, &mut live, "creator", None, at(0), config_map());
    for n in 0..20 {
        let mut new = live.clone();
        new["data"][format!("k{n}")] = json!("1");
        track_update(Some(&live), &mut new, &format!("m{n}"), None, at(n), config_map());
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), 10);
    let ancient = owners.iter().find(|(name, _)| name == "ancient-changes Update").unwrap();
    assert!(ancient.1["f:data"].get("f:k0").is_some(), "{ancient:?}");
}

#[test]
fn kubectl_takes_over_from_its_own_client_side_apply() {
    let mut live = data(json!({"a": "1"}));
    let last = serde_json::to_string(&live).unwrap();
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    let mut created = live.clone();
    track_update(None, &mut created, "kubectl-client-side-apply", None, at(0), config_map());
    let config = data(json!({"a": "2"}));
    let result =
        apply(Some(&created), &config, "kubectl", false, None, at(1), config_map()).unwrap();
    assert_eq!(result["data"]["a"], "2");
    let other = apply(Some(&created), &config, "helm", false, None, at(1), config_map());
    assert!(matches!(other, Err(ApplyError::Conflicts(_))));
}

#[test]
fn the_same_amount_written_differently_is_no_change() {
    let with = |cpu: &str| {
        let mut config = web(1, "i");
        config["spec"]["template"]["spec"]["containers"][0]["resources"] =
            json!({"limits": {"cpu": cpu}});
        config
    };
    let mut live = applied(None, &with("1000m"), "me");
    live["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("1");
    assert_eq!(applied(Some(&live), &with("1000m"), "me"), live);
    let secrets = schema::table().kind("", "v1", "Secret").unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "1"}});
    let live = apply(None, &secret, "me", false, None, at(0), secrets).unwrap();
    assert_eq!(live["data"], json!({"a": "MQ=="}));
    assert_eq!(apply(Some(&live), &secret, "me", false, None, at(9), secrets), Ok(live));
}

/// Would take hours if each key were looked for in turn.
#[test]
fn large_objects_are_compared_in_one_go() {
    let keys = |value: &str| -> Value {
        (0..60_000)
            .map(|n| (format!("k{n}"), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let live = applied(None, &data(keys("1")), "me");
    let live = updated(&live, "editor", |o| o["data"] = keys("2"));
    let left = applied(Some(&live), &data(json!({})), "me");
    assert_eq!(left["data"].as_object().unwrap().len(), 60_000);
    assert_eq!(owners(&left)[0], ("me Apply".to_owned(), json!({"f:data": {}})));
}

#[test]
fn bad_configurations_are_refused() {
    let refuse = |config: Value, manager: &str| {
        apply(None, &config, manager, false, None, at(0), deployment()).unwrap_err().to_string()
    };
    assert!(refuse(json!({}), "m").contains("apiVersion and kind"));
    assert!(refuse(json!([]), "m").contains("is an object"));
    assert!(refuse(web(1, "i"), "").contains("is required for apply patch"));
    let mut config = web(1, "i");
    config["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(refuse(config, "m"), "metadata.managedFields must be nil");
    let mut config = web(1, "i");
    config["spec"]["template"]["spec"]["containers"] = json!([{"name": "a"}, {"name": "a"}]);
    assert_eq!(
        refuse(config, "m"),
        ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
    );
    let mut config = web(1, "i");
    config["spec"]["template"]["spec"]["containers"] = json!([{"image": "a"}]);
    assert!(refuse(config, "m").contains("omits key field \"name\""));
}

#[test]
fn user_agents_become_managers() {
    assert_eq!(manager_from_user_agent("kubectl/v1.35.0 (linux/arm64)"), "kubectl");
    assert_eq!(manager_from_user_agent(""), "unknown");
    assert_eq!(manager_from_user_agent(&"ä".repeat(100)).len(), 128);
}

/// Any configuration of a few fields of a Deployment.
fn any_config() -> impl Strategy<Value = Value> {
    let container = (0..3u8, prop::option::of(0..3u8), prop::collection::vec(0..3u8, 0..3))
        .prop_map(|(name, image, env)| {
            let mut seen = std::collections::BTreeSet::new();
            let env: Vec<Value> = env
                .into_iter()
                .filter(|n| seen.insert(*n))
                .map(|n| json!({"name": format!("E{n}"), "value": "1"}))
                .collect();
            let mut container = json!({"name": format!("c{name}")});
            if let Some(image) = image {
                container["image"] = json!(format!("i{image}"));
            }
            if !env.is_empty() {
                container["env"] = json!(env);
            }
            (name, container)
        });
    let labels = prop::collection::btree_map("[ab]", "[12]", 0..3);
    let finalizers = prop::collection::btree_set("[a-c]/x", 0..3);
    (labels, finalizers, prop::option::of(0..3i64), prop::collection::vec(container, 0..3))
        .prop_map(|(labels, finalizers, replicas, containers)| {
            let mut config = json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "a", "labels": labels, "finalizers": finalizers},
                "spec": {"selector": {"matchLabels": {"a": "b"}}},
            });
            if let Some(replicas) = replicas {
                config["spec"]["replicas"] = json!(replicas);
            }
            let mut seen = std::collections::BTreeSet::new();
            let list: Vec<Value> =
                containers.into_iter().filter(|(n, _)| seen.insert(*n)).map(|(_, c)| c).collect();
            config["spec"]["template"] = json!({"spec": {"containers": list}});
            config
        })
}

fn without_managers(object: &Value) -> Value {
    let mut object = super::without_managed_fields(object);
    // An object that is left without fields may stay or go.
    fn tidy(value: &mut Value) {
        if let Value::Object(fields) = value {
            fields.values_mut().for_each(tidy);
            fields.retain(|_, v| {
                !v.as_object().is_some_and(serde_json::Map::is_empty) && v != &json!([])
            });
        } else if let Value::Array(list) = value {
            list.iter_mut().for_each(tidy);
        }
    }
    tidy(&mut object);
    object
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(first in any_config(), second in any_config()) {
        let live = apply(None, &first, "other", false, None, at(0), deployment()).unwrap();
        let once = apply(Some(&live), &second, "me", true, None, at(1), deployment()).unwrap();
        let twice = apply(Some(&once), &second, "me", false, None, at(2), deployment()).unwrap();
        prop_assert_eq!(twice, once);
    }

    /// Alone, a manager gets exactly what it asks for, whatever it asked for before.
    #[test]
    fn the_last_configuration_alone_counts(first in any_config(), second in any_config()) {
        let live = apply(None, &first, "me", false, None, at(0), deployment()).unwrap();
        let changed = apply(Some(&live), &second, "me", false, None, at(1), deployment()).unwrap();
        let fresh = apply(None, &second, "me", false, None, at(1), deployment()).unwrap();
        prop_assert_eq!(without_managers(&changed), without_managers(&fresh));
    }

    /// Coming and going leaves the other's object as it was.
    #[test]
    fn a_manager_takes_only_its_own_away(first in any_config(), second in any_config()) {
        let live = apply(None, &first, "other", false, None, at(0), deployment()).unwrap();
        if let Ok(both) = apply(Some(&live), &second, "me", false, None, at(1), deployment()) {
            let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
            let left = apply(Some(&both), &nothing, "me", false, None, at(2), deployment()).unwrap();
            let sorted = |object: &Value| {
                let mut object = without_managers(object);
                if let Some(list) = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut) {
                    list.sort_by_key(|c| c["name"].to_string());
                    for container in list {
                        if let Some(env) = container["env"].as_array_mut() {
                            env.sort_by_key(ToString::to_string);
                        }
                        if container["env"].is_null() {
                            container.as_object_mut().unwrap().shift_remove("env");
                        }
                    }
                }
                if let Some(list) = object.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) {
                    list.sort_by_key(ToString::to_string);
                }
                object
            };
            prop_assert_eq!(sorted(&left), sorted(&live));
        }
    }

    #[test]
    fn garbage_never_panics(
        live in any_config(), field in "(spec|metadata|data|status)", value in prop_oneof![
            Just(json!([1, {"a": []}])), Just(json!({"containers": 3, "labels": [], "template": {"spec": [null]}})),
            Just(json!("x")), Just(json!({"managedFields": [{"operation": "Apply", "fieldsV1": {"x": 1}}]})),
        ]
    ) {
        let mut odd = live.clone();
        odd[&field] = value;
        let of = deployment();
        let _ = apply(Some(&odd), &live, "me", false, None, at(0), of);
        let _ = apply(Some(&live), &odd, "me", true, None, at(0), of);
        let mut new = odd.clone();
        track_update(Some(&live), &mut new, "me", Some("status"), at(0), of);
        let mut new = live.clone();
        track_update(Some(&odd), &mut new, "me", None, at(0), of);
    }
}
