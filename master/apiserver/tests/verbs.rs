//! What the verbs promise, over the plain model of a store.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::sync::Arc;

use api::resource::{Resource, by_kind};
use api::selector::{FieldSelector, LabelSelector};
use futures::future::join_all;
use pinnace_apiserver::{
    Api, DeleteOptions, Deleted, FieldValidation, Identity, ListOptions, MASTERS, PatchKind,
    Propagation, Reason, Selection, Status, Target, VersionMatch, WriteOptions, Written,
};
use serde_json::{Value, json};
use store::MemoryStore;

fn kind(name: &str) -> &'static Resource {
    let group = match name {
        "Deployment" | "ReplicaSet" => "apps",
        "Lease" => "coordination.k8s.io",
        _ => "",
    };
    by_kind(group, name).unwrap()
}

async fn cluster() -> (Api, Identity) {
    let api = Api::new(Arc::new(MemoryStore::new()));
    api.bootstrap().await.unwrap();
    (api, Identity::authenticated("admin", &[MASTERS]))
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"key": value}})
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "busybox:1"}]},
    })
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "busybox:1"}]},
            },
        },
    })
}

async fn create(api: &Api, who: &Identity, of: &str, object: Value) -> Result<Written, Status> {
    let namespace = if kind(of).namespaced { "default" } else { "" };
    api.create(who, kind(of), namespace, object, &WriteOptions::by("test")).await
}

fn at<'a>(of: &str, name: &'a str) -> Target<'a> {
    Target::object(kind(of), if kind(of).namespaced { "default" } else { "" }, name)
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn failure<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.unwrap_err();
    format!("{} {}: {}", status.code(), status.reason.as_str(), status.message)
}

#[tokio::test]
async fn a_new_object_has_an_identity_and_reads_back() {
    let (api, who) = cluster().await;
    let made = create(&api, &who, "Deployment", deployment("web")).await.unwrap();
    assert!(made.created);
    let object = made.value();
    assert_eq!(object["metadata"]["generation"], 1);
    assert_eq!(object["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert_eq!(object["spec"]["strategy"]["type"], "RollingUpdate");
    assert_eq!(object["metadata"]["managedFields"][0]["manager"], "test");
    assert_eq!(revision(&object), api.store().revision());
    assert_eq!(api.get(&who, &at("Deployment", "web")).unwrap(), made.object);
    assert_eq!(
        failure(create(&api, &who, "Deployment", deployment("web")).await),
        "409 AlreadyExists: deployments.apps \"web\" already exists"
    );
    let mut generated = config_map("", "x");
    generated["metadata"] = json!({"generateName": "conf-"});
    let name = create(&api, &who, "ConfigMap", generated).await.unwrap().value();
    let name = name["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("conf-") && name.len() == 10, "{name}");
}

#[tokio::test]
async fn bad_objects_are_refused_with_every_cause() {
    let (api, who) = cluster().await;
    let mut object = deployment("Web_1");
    object["spec"]["template"]["spec"]["containers"] = json!([]);
    let status = create(&api, &who, "Deployment", object).await.unwrap_err();
    assert_eq!(status.code(), 422);
    let fields: Vec<&str> = status.causes.iter().map(|cause| cause.field.as_str()).collect();
    assert!(fields.contains(&"metadata.name"), "{fields:?}");
    assert!(fields.contains(&"spec.template.spec.containers"), "{fields:?}");

    let mut typo = deployment("web");
    typo["spec"]["replicaz"] = json!(2);
    let strict =
        WriteOptions { field_validation: FieldValidation::Strict, ..WriteOptions::by("test") };
    let refused = api.create(&who, kind("Deployment"), "default", typo.clone(), &strict).await;
    assert_eq!(
        failure(refused),
        "400 BadRequest: Deployment in version \"v1\" cannot be handled as a Deployment: strict \
         decoding error: unknown field \"spec.replicaz\""
    );
    let warned = create(&api, &who, "Deployment", typo).await.unwrap();
    assert_eq!(warned.warnings, ["unknown field \"spec.replicaz\""]);
    assert!(warned.value()["spec"].get("replicaz").is_none());

    let mut wrong = deployment("other");
    wrong["spec"]["replicas"] = json!("three");
    let status = create(&api, &who, "Deployment", wrong).await.unwrap_err();
    assert_eq!(status.code(), 400);
    assert!(status.message.contains("spec.replicas"), "{status}");

    let elsewhere = json!({"metadata": {"name": "a", "namespace": "kube-system"}});
    assert_eq!(create(&api, &who, "ConfigMap", elsewhere).await.unwrap_err().code(), 400);
    let other_kind = json!({"kind": "Secret", "metadata": {"name": "a"}});
    assert_eq!(create(&api, &who, "ConfigMap", other_kind).await.unwrap_err().code(), 400);
    let versioned = json!({"metadata": {"name": "a", "resourceVersion": "5"}});
    assert_eq!(create(&api, &who, "ConfigMap", versioned).await.unwrap_err().code(), 400);
    for garbage in [json!(null), json!([]), json!("x"), json!({"metadata": []})] {
        let status = create(&api, &who, "ConfigMap", garbage.clone()).await.unwrap_err();
        assert!(matches!(status.code(), 400 | 422), "{garbage}: {status}");
    }
}

#[tokio::test]
async fn what_a_pod_asks_for_in_vain_is_refused_or_told() {
    let (api, who) = cluster().await;
    let mut object = pod("host");
    object["spec"]["hostUsers"] = json!(false);
    assert_eq!(create(&api, &who, "Pod", object).await.unwrap_err().code(), 422);
    let mut object = pod("port");
    object["spec"]["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
    let written = create(&api, &who, "Pod", object).await.unwrap();
    assert_eq!(written.warnings.len(), 1, "{:?}", written.warnings);
    let events = api.list(&who, kind("Event"), "default", &ListOptions::default()).unwrap();
    let event = events.items[0].value();
    assert_eq!(event["reason"], "UnsupportedField");
    assert_eq!(event["involvedObject"]["name"], "port");
}

#[tokio::test]
async fn a_pods_runtime_class_must_exist() {
    let (api, who) = cluster().await;
    let class = by_kind("node.k8s.io", "RuntimeClass").unwrap();
    let mut modules = pod("modules");
    modules["spec"]["runtimeClassName"] = json!("wasm");
    create(&api, &who, "Pod", modules.clone()).await.unwrap();
    let target = Target::object(class, "", "wasm");
    assert_eq!(api.get_value(&who, &target).unwrap()["handler"], "wasm");
    api.delete(&who, &target, &DeleteOptions::default()).await.unwrap();
    modules["metadata"]["name"] = json!("more");
    let status = create(&api, &who, "Pod", modules).await.unwrap_err();
    let text = "pods \"more\" is forbidden: pod rejected: RuntimeClass \"wasm\" not found";
    assert_eq!((status.reason, status.message.as_str()), (Reason::Forbidden, text));
}

#[tokio::test]
async fn a_namespace_says_what_its_pods_may_ask_for() {
    let (api, who) = cluster().await;
    let labels = json!({
        "pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/warn": "restricted",
    });
    create(&api, &who, "Namespace", json!({"metadata": {"name": "strict", "labels": labels}}))
        .await
        .unwrap();
    let make = async |of: &str, object: Value| {
        api.create(&who, kind(of), "strict", object, &WriteOptions::by("test")).await
    };
    let mut bad = pod("bad");
    bad["spec"]["hostNetwork"] = json!(true);
    let refused = make("Pod", bad.clone()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
    let text = "pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": \
                host namespaces (hostNetwork=true)";
    assert_eq!(refused.message, text);
    create(&api, &who, "Pod", bad.clone()).await.expect("a namespace without a label takes it");

    let warned = make("Pod", pod("lax")).await.unwrap().warnings;
    assert!(
        warned.iter().any(|w| w.starts_with("would violate PodSecurity \"restricted:latest\": ")),
        "{warned:?}"
    );
    // A template is warned about; its pods are what is refused.
    let mut template = deployment("lax");
    template["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
    let warned = make("Deployment", template).await.unwrap().warnings;
    assert!(warned.iter().any(|warning| warning.contains("host namespaces")), "{warned:?}");
}

#[tokio::test]
async fn an_object_needs_a_namespace_that_stays() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    let created = api.create(&who, kind("ConfigMap"), "nowhere", config_map("a", "1"), &options);
    assert_eq!(failure(created.await), "404 NotFound: namespaces \"nowhere\" not found");

    create(&api, &who, "Namespace", json!({"metadata": {"name": "shop"}})).await.unwrap();
    let account = Target::object(kind("ServiceAccount"), "shop", "default");
    assert!(api.get(&who, &account).is_ok(), "every namespace has an account");
    let left = api.delete(&who, &at("Namespace", "shop"), &DeleteOptions::default()).await.unwrap();
    assert!(matches!(left, Deleted::Terminating(_)));
    let status = api
        .create(&who, kind("ConfigMap"), "shop", config_map("a", "1"), &options)
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "configmaps \"a\" is forbidden: unable to create new content in namespace shop because it \
         is being terminated"
    );
    assert_eq!(status.causes[0].reason, "NamespaceTerminating");

    let namespace = api.get_value(&who, &at("Namespace", "shop")).unwrap();
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let mut finalized = namespace.clone();
    finalized["spec"]["finalizers"] = json!([]);
    let target = at("Namespace", "shop").subresource("finalize");
    api.update(&who, &target, finalized, &options).await.unwrap();
    assert_eq!(api.get(&who, &at("Namespace", "shop")).unwrap_err().reason, Reason::NotFound);
    let permanent = api.delete(&who, &at("Namespace", "default"), &DeleteOptions::default()).await;
    assert_eq!(permanent.unwrap_err().reason, Reason::Forbidden);
}

#[tokio::test]
async fn updates_replace_what_was_read_and_nothing_else() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    let made = create(&api, &who, "Deployment", deployment("web")).await.unwrap().value();
    let target = at("Deployment", "web");

    let mut scaled = made.clone();
    scaled["spec"]["replicas"] = json!(3);
    scaled["status"] = json!({"replicas": 9});
    let scaled = api.update(&who, &target, scaled, &options).await.unwrap().value();
    assert_eq!(scaled["metadata"]["generation"], 2);
    assert_eq!(scaled["status"], json!({}), "status is written through its own path");

    let stale = api.update(&who, &target, made.clone(), &options).await;
    assert_eq!(
        failure(stale),
        "409 Conflict: Operation cannot be fulfilled on deployments.apps \"web\": the object has \
         been modified; please apply your changes to the latest version and try again"
    );
    let mut reported = scaled.clone();
    reported["spec"]["replicas"] = json!(7);
    reported["status"] = json!({"replicas": 3});
    let reported = api.update_status(&who, &target, reported, &options).await.unwrap().value();
    assert_eq!(
        (&reported["spec"]["replicas"], &reported["status"]["replicas"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(reported["metadata"]["generation"], 2);

    let before = api.store().revision();
    let same = api.update(&who, &target, reported.clone(), &options).await.unwrap();
    assert_eq!((api.store().revision(), same.value()), (before, reported.clone()), "no-op");

    let mut moved = reported.clone();
    moved["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    moved["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let status = api.update(&who, &target, moved, &options).await.unwrap_err();
    assert_eq!((status.code(), status.causes[0].field.as_str()), (422, "spec.selector"));
    let mut other = reported.clone();
    other["metadata"]["uid"] = json!("another");
    assert_eq!(api.update(&who, &target, other, &options).await.unwrap_err().code(), 409);
    let mut unconditional = reported;
    unconditional["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    unconditional["spec"]["replicas"] = json!(4);
    api.update(&who, &target, unconditional, &options).await.unwrap();
    let missing = api.update(&who, &at("Deployment", "no"), deployment("no"), &options).await;
    assert_eq!(failure(missing), "404 NotFound: deployments.apps \"no\" not found");
}

#[tokio::test]
async fn dry_runs_answer_and_change_nothing() {
    let (api, who) = cluster().await;
    create(&api, &who, "ConfigMap", config_map("a", "1")).await.unwrap();
    let before = api.store().revision();
    let dry = WriteOptions { dry_run: true, ..WriteOptions::by("test") };
    let target = at("ConfigMap", "a");
    let made =
        api.create(&who, kind("ConfigMap"), "default", config_map("b", "1"), &dry).await.unwrap();
    assert!(made.value()["metadata"]["uid"].is_string());
    let taken = api.create(&who, kind("ConfigMap"), "default", config_map("a", "1"), &dry).await;
    assert_eq!(taken.unwrap_err().reason, Reason::AlreadyExists);
    let changed = api.update(&who, &target, config_map("a", "2"), &dry).await.unwrap();
    assert_eq!(changed.value()["data"]["key"], "2");
    let patch = json!({"data": {"key": "3"}});
    for kind in [PatchKind::Merge, PatchKind::Strategic] {
        let patched = api.patch(&who, &target, kind, patch.clone(), &dry).await.unwrap();
        assert_eq!(patched.value()["data"]["key"], "3");
    }
    let mut config = config_map("new", "4");
    config["apiVersion"] = json!("v1");
    config["kind"] = json!("ConfigMap");
    let applied = api.patch(&who, &at("ConfigMap", "new"), PatchKind::Apply, config, &dry).await;
    assert!(applied.unwrap().created);
    let options = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    api.delete(&who, &target, &options).await.unwrap();
    assert_eq!(api.store().revision(), before);
    assert_eq!(api.get_value(&who, &target).unwrap()["data"]["key"], "1");
}

#[tokio::test]
async fn patches_in_four_formats() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    create(&api, &who, "Deployment", deployment("web")).await.unwrap();
    let target = at("Deployment", "web");
    let patch = |kind, patch| api.patch(&who, &target, kind, patch, &options);

    let merged = patch(PatchKind::Merge, json!({"spec": {"replicas": 2}})).await.unwrap().value();
    assert_eq!(
        (&merged["spec"]["replicas"], &merged["metadata"]["generation"]),
        (&json!(2), &json!(2))
    );
    let container = json!({"name": "d", "image": "busybox:2"});
    let strategic = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    let two = patch(PatchKind::Strategic, strategic).await.unwrap().value();
    assert_eq!(two["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    let test = json!([{"op": "test", "path": "/spec/replicas", "value": 5}]);
    assert_eq!(patch(PatchKind::Json, test).await.unwrap_err().code(), 422);
    let replace = json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]);
    assert_eq!(patch(PatchKind::Json, replace).await.unwrap().value()["spec"]["replicas"], 5);
    for garbage in [json!(1), json!([1]), json!([{"op": "fly"}])] {
        for kind in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic, PatchKind::Apply] {
            let status = patch(kind, garbage.clone()).await.unwrap_err();
            assert!(matches!(status.code(), 400 | 422), "{kind:?} {garbage}: {status}");
        }
    }
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 6}});
    assert_eq!(patch(PatchKind::Merge, stale).await.unwrap_err().reason, Reason::Conflict);
    let rename = json!({"metadata": {"name": "other"}});
    assert_eq!(patch(PatchKind::Merge, rename).await.unwrap_err().code(), 422);
}

#[tokio::test]
async fn applies_create_own_and_conflict() {
    let (api, who) = cluster().await;
    let target = at("ConfigMap", "a");
    let config = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let apply = async |manager: &str, force: bool, data: Value| {
        let options = WriteOptions { force, ..WriteOptions::by(manager) };
        api.patch(&who, &target, PatchKind::Apply, config(data), &options).await
    };
    let made = apply("one", false, json!({"x": "1", "y": "1"})).await.unwrap();
    assert!(made.created);
    let again = apply("one", false, json!({"x": "1", "y": "1"})).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.object, made.object, "applying again changes nothing");
    let dropped = apply("one", false, json!({"x": "1"})).await.unwrap();
    assert_eq!(dropped.value()["data"], json!({"x": "1"}));
    let status = apply("two", false, json!({"x": "2"})).await.unwrap_err();
    assert_eq!((status.code(), status.causes[0].reason.as_str()), (409, "FieldManagerConflict"));
    assert_eq!(status.causes[0].field, ".data.x");
    let forced = apply("two", true, json!({"x": "2"})).await.unwrap().value();
    assert_eq!(forced["data"]["x"], "2");
    let managers = forced["metadata"]["managedFields"].as_array().unwrap();
    assert!(managers.iter().any(|m| m["manager"] == "two" && m["operation"] == "Apply"));
}

#[tokio::test]
async fn concurrent_writers_lose_nothing() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    create(&api, &who, "ConfigMap", config_map("a", "0")).await.unwrap();
    let target = at("ConfigMap", "a");
    // Pinned writers: of those who read the same revision, one wins.
    let read = api.get_value(&who, &target).unwrap();
    let writes = (1..=10).map(|n| {
        let mut object = read.clone();
        object["data"]["key"] = json!(n.to_string());
        api.update(&who, &target, object, &options)
    });
    let results = join_all(writes).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().flat_map(|r| r.as_ref().err()).all(|s| s.reason == Reason::Conflict));
    // Patches that pin nothing are tried again: as many as the tries allow win.
    let patches = (0..4).map(|n| {
        let patch = json!({"data": {format!("k{n}"): "v"}});
        api.patch(&who, &target, PatchKind::Merge, patch, &options)
    });
    for result in join_all(patches).await {
        result.unwrap();
    }
    let keys = api.get_value(&who, &target).unwrap()["data"].as_object().unwrap().len();
    assert_eq!(keys, 5);
}

#[tokio::test]
async fn lists_select_and_page() {
    let (api, who) = cluster().await;
    for n in 0..7 {
        let mut object = config_map(&format!("m{n}"), "x");
        object["metadata"]["labels"] = json!({"parity": if n % 2 == 0 { "even" } else { "odd" }});
        create(&api, &who, "ConfigMap", object).await.unwrap();
    }
    let names = |options: &ListOptions, namespace: &str| {
        let list = api.list(&who, kind("ConfigMap"), namespace, options).unwrap();
        let names: Vec<String> = list
            .items
            .iter()
            .map(|item| item.value()["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        (names.join(" "), list.continue_token, list.revision)
    };
    let select = |labels: &str, fields: &str| Selection {
        labels: LabelSelector::parse(labels).unwrap(),
        fields: FieldSelector::parse(fields).unwrap(),
    };
    let by =
        |labels, fields| ListOptions { selection: select(labels, fields), ..Default::default() };
    assert_eq!(names(&by("parity=odd", ""), "").0, "m1 m3 m5");
    assert_eq!(names(&by("parity in (even),parity", "metadata.name!=m4"), "").0, "m0 m2 m6");
    assert_eq!(names(&by("", "metadata.name=m2"), "default").0, "m2");
    assert_eq!(names(&by("", "metadata.namespace=kube-system"), "").0, "");
    let unknown = api.list(&who, kind("ConfigMap"), "", &by("", "data.key=x"));
    assert_eq!(unknown.unwrap_err().code(), 400);

    // Pages stay as they were while others write.
    let mut options =
        ListOptions { limit: Some(2), selection: select("parity=even", ""), ..Default::default() };
    let (first, token, revision) = names(&options, "");
    assert_eq!(first, "m0 m2");
    api.delete(&who, &at("ConfigMap", "m4"), &DeleteOptions::default()).await.unwrap();
    create(&api, &who, "ConfigMap", config_map("m5b", "x")).await.unwrap();
    options.continue_token = Some(token);
    let (second, token, same) = names(&options, "");
    assert_eq!((second.as_str(), token.as_str(), same), ("m4 m6", "", revision));
    assert_eq!(names(&ListOptions::default(), "").0, "m0 m1 m2 m3 m5 m5b m6");

    let exact = ListOptions {
        resource_version: Some(revision),
        version_match: Some(VersionMatch::Exact),
        ..Default::default()
    };
    assert_eq!(names(&exact, "").0, "m0 m1 m2 m3 m4 m5 m6");
    let future = ListOptions { resource_version: Some(10_000), ..Default::default() };
    let status = api.list(&who, kind("ConfigMap"), "", &future).unwrap_err();
    assert_eq!((status.code(), status.causes[0].reason.as_str()), (504, "ResourceVersionTooLarge"));
    for garbage in ["x", "eyJ2IjoxfQ", &"A".repeat(5000)] {
        let options =
            ListOptions { continue_token: Some(garbage.to_owned()), ..Default::default() };
        assert_eq!(api.list(&who, kind("ConfigMap"), "", &options).unwrap_err().code(), 400);
    }
}

#[tokio::test]
async fn a_page_that_is_too_old_tells_how_to_go_on() {
    let (api, who) = cluster().await;
    for n in 0..4 {
        create(&api, &who, "ConfigMap", config_map(&format!("m{n}"), "x")).await.unwrap();
    }
    let mut options = ListOptions { limit: Some(2), ..Default::default() };
    let first = api.list(&who, kind("ConfigMap"), "", &options).unwrap();
    create(&api, &who, "ConfigMap", config_map("m9", "x")).await.unwrap();
    api.store().compact(api.store().revision()).await.unwrap();
    options.continue_token = Some(first.continue_token);
    let status = api.list(&who, kind("ConfigMap"), "", &options).unwrap_err();
    assert_eq!((status.code(), status.reason), (410, Reason::Expired));
    options.continue_token = Some(status.continue_token.into_string());
    let rest = api.list(&who, kind("ConfigMap"), "", &options).unwrap();
    assert_eq!(rest.items[0].value()["metadata"]["name"], "m2");
}

#[tokio::test]
async fn pods_end_gracefully_and_other_things_at_once() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    let default = DeleteOptions::default();
    create(&api, &who, "ConfigMap", config_map("a", "1")).await.unwrap();
    let Deleted::Gone(last) = api.delete(&who, &at("ConfigMap", "a"), &default).await.unwrap()
    else {
        panic!("nothing to wait for");
    };
    let last: Value = serde_json::from_slice(&last).unwrap();
    assert_eq!(revision(&last), api.store().revision(), "the revision of its deletion");

    let target = at("Pod", "p");
    create(&api, &who, "Pod", pod("p")).await.unwrap();
    assert!(matches!(api.delete(&who, &target, &default).await.unwrap(), Deleted::Gone(_)));

    create(&api, &who, "Pod", pod("p")).await.unwrap();
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    api.bind(&who, &target, binding.clone(), &options).await.unwrap();
    let bound = api.get_value(&who, &target).unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(
        failure(api.bind(&who, &target, binding, &options).await),
        "409 Conflict: Operation cannot be fulfilled on pods \"p\": pod p is already assigned to \
         node \"n1\""
    );
    let going = api.delete(&who, &target, &default).await.unwrap();
    let going: Value = serde_json::from_slice(going.object()).unwrap();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let before = api.store().revision();
    api.delete(&who, &target, &default).await.unwrap();
    assert_eq!(api.store().revision(), before, "a second delete changes nothing");
    let shorter = DeleteOptions { grace_period_seconds: Some(5), ..default.clone() };
    let going = api.delete(&who, &target, &shorter).await.unwrap();
    let going: Value = serde_json::from_slice(going.object()).unwrap();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = DeleteOptions { grace_period_seconds: Some(500), ..default.clone() };
    let same = api.delete(&who, &target, &longer).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(same.object()).unwrap(), going);
    let now = DeleteOptions { grace_period_seconds: Some(0), ..default.clone() };
    assert!(matches!(api.delete(&who, &target, &now).await.unwrap(), Deleted::Gone(_)));

    let wrong = DeleteOptions { uid: Some("other".to_owned()), ..default };
    create(&api, &who, "Pod", pod("p")).await.unwrap();
    assert_eq!(api.delete(&who, &target, &wrong).await.unwrap_err().reason, Reason::Conflict);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    let target = at("Deployment", "web");
    create(&api, &who, "Deployment", deployment("web")).await.unwrap();
    let foreground =
        DeleteOptions { propagation: Some(Propagation::Foreground), ..Default::default() };
    let left = api.delete(&who, &target, &foreground).await.unwrap();
    assert!(matches!(left, Deleted::Terminating(_)));
    let mut held = api.get_value(&who, &target).unwrap();
    assert_eq!(held["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let mut more = held.clone();
    more["metadata"]["finalizers"] = json!(["foregroundDeletion", "example.com/late"]);
    assert_eq!(api.update(&who, &target, more, &options).await.unwrap_err().code(), 422);
    held["metadata"]["finalizers"] = json!([]);
    api.update(&who, &target, held, &options).await.unwrap();
    assert_eq!(api.get(&who, &target).unwrap_err().reason, Reason::NotFound);

    create(&api, &who, "Deployment", deployment("web")).await.unwrap();
    let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..Default::default() };
    api.delete(&who, &target, &orphan).await.unwrap();
    let background =
        DeleteOptions { propagation: Some(Propagation::Background), ..Default::default() };
    let gone = api.delete(&who, &target, &background).await.unwrap();
    assert!(matches!(gone, Deleted::Gone(_)), "background takes the finalizer back");
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let (api, who) = cluster().await;
    for n in 0..300 {
        let mut object = config_map(&format!("m{n}"), "x");
        object["metadata"]["labels"] = json!({"keep": (n == 7).to_string()});
        create(&api, &who, "ConfigMap", object).await.unwrap();
    }
    let labels = LabelSelector::parse("keep!=true").unwrap();
    let selection = Selection { labels, ..Selection::all() };
    let options = DeleteOptions::default();
    let deleted = api.delete_collection(&who, kind("ConfigMap"), "default", &selection, &options);
    assert_eq!(deleted.await.unwrap().len(), 299);
    let left = api.list(&who, kind("ConfigMap"), "", &ListOptions::default()).unwrap();
    assert_eq!(left.items.len(), 1);
}

#[tokio::test]
async fn scale_is_a_view_of_replicas() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    create(&api, &who, "Deployment", deployment("web")).await.unwrap();
    let target = at("Deployment", "web");
    let mut scale = api.get_scale(&who, &target).unwrap();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(1), &json!("app=web"))
    );
    let patch = json!({"spec": {"replicas": 4}});
    let path = target.subresource("scale");
    let patched = api.patch(&who, &path, PatchKind::Merge, patch, &options).await.unwrap().value();
    assert_eq!((&patched["kind"], &patched["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    let object = api.get_value(&who, &target).unwrap();
    assert_eq!(
        (&object["spec"]["replicas"], &object["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
    let stale = api.update(&who, &path, scale.clone(), &options).await;
    assert_eq!(stale.unwrap_err().reason, Reason::Conflict);
    scale["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    scale["spec"]["replicas"] = json!(-1);
    assert_eq!(api.update(&who, &path, scale, &options).await.unwrap_err().code(), 422);
}

#[tokio::test]
async fn leases_are_made_by_put_and_never_overwritten_blindly() {
    let (api, who) = cluster().await;
    let options = WriteOptions::default();
    let target = Target::object(kind("Lease"), "kube-node-lease", "n1");
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}});
    let made = api.update(&who, &target, lease.clone(), &options).await.unwrap();
    assert!(made.created);
    assert!(made.value()["metadata"].get("managedFields").is_none(), "nobody claimed it");
    let blind = api.update(&who, &target, lease, &options).await.unwrap_err();
    assert_eq!(blind.causes[0].field, "metadata.resourceVersion");
}

#[tokio::test]
async fn each_identity_may_do_its_own() {
    let (api, who) = cluster().await;
    let options = WriteOptions::by("test");
    let node = |name: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    create(&api, &who, "Node", node("n1")).await.unwrap();
    create(&api, &who, "Node", node("n2")).await.unwrap();
    for (name, on) in [("mine", "n1"), ("other", "n2")] {
        let mut object = pod(name);
        object["spec"]["volumes"] =
            json!([{"name": "v", "secret": {"secretName": format!("{name}-secret")}}]);
        create(&api, &who, "Pod", object).await.unwrap();
        let binding = json!({"target": {"kind": "Node", "name": on}});
        api.bind(&who, &at("Pod", name), binding, &options).await.unwrap();
        let secret = json!({"metadata": {"name": format!("{name}-secret")}, "data": {}});
        create(&api, &who, "Secret", secret).await.unwrap();
    }
    let status = json!({"status": {"phase": "Running"}});
    let users = [
        Identity::authenticated("admin", &[MASTERS]),
        Identity::node("n1"),
        Identity::authenticated("somebody", &[]),
        Identity::anonymous(),
    ];
    let mut table = String::new();
    for (what, of, name, sub) in [
        ("get", "Node", "n1", ""),
        ("get", "Node", "n2", ""),
        ("list", "Node", "", ""),
        ("patch", "Node", "n1", "status"),
        ("patch", "Node", "n2", "status"),
        ("get", "Pod", "mine", ""),
        ("get", "Pod", "other", ""),
        ("list", "Pod", "", ""),
        ("patch", "Pod", "mine", "status"),
        ("patch", "Pod", "other", "status"),
        ("patch", "Pod", "mine", ""),
        ("get", "Secret", "mine-secret", ""),
        ("get", "Secret", "other-secret", ""),
        ("list", "Secret", "", ""),
        ("delete", "Pod", "other", ""),
    ] {
        let answers: Vec<String> = join_all(users.iter().map(|user| {
            let (api, status, options) = (&api, status.clone(), &options);
            async move {
                let target = at(of, name).subresource(sub);
                let dry = WriteOptions { dry_run: true, ..options.clone() };
                let result = match what {
                    "get" => api.get(user, &target).map(drop),
                    "list" => api.list(user, kind(of), "", &ListOptions::default()).map(drop),
                    "patch" => {
                        let patch = if of == "Node" { json!({}) } else { status };
                        api.patch(user, &target, PatchKind::Merge, patch, &dry).await.map(drop)
                    }
                    _ => {
                        let options = DeleteOptions { dry_run: true, ..Default::default() };
                        api.delete(user, &target, &options).await.map(drop)
                    }
                };
                result.err().map_or_else(|| "ok".to_owned(), |status| status.code().to_string())
            }
        }))
        .await;
        table.push_str(&format!("{what} {of} {name} {sub}: {}\n", answers.join(" ")));
    }
    expect_test::expect![[r#"
        get Node n1 : ok ok 403 401
        get Node n2 : ok 403 403 401
        list Node  : ok 403 403 401
        patch Node n1 status: ok ok 403 401
        patch Node n2 status: ok 403 403 401
        get Pod mine : ok ok 403 401
        get Pod other : ok 403 403 401
        list Pod  : ok 403 403 401
        patch Pod mine status: ok ok 403 401
        patch Pod other status: ok 403 403 401
        patch Pod mine : ok 403 403 401
        get Secret mine-secret : ok ok 403 401
        get Secret other-secret : ok 403 403 401
        list Secret  : ok 403 403 401
        delete Pod other : ok 403 403 401
    "#]]
    .assert_eq(&table);
    let status = api.get(&users[1], &at("Pod", "other")).unwrap_err();
    assert_eq!(
        status.message,
        "pods \"other\" is forbidden: User \"system:node:n1\" cannot get resource \"pods\" in API \
         group \"\" in the namespace \"default\": a node may only touch pods bound to it"
    );
    let taint = json!({"spec": {"taints": []}, "metadata": {"labels": {"a": "b"}}});
    let own = at("Node", "n1");
    let refused = api.patch(&users[1], &own, PatchKind::Merge, taint, &options).await;
    assert_eq!(refused.unwrap_err().code(), 403, "labels steer scheduling");
}
