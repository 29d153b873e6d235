//! The door as a client finds it, without TLS: who may in, what is answered, and what
//! garbage comes to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use front::status::Status;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use runtime::BoxFuture;
use runtime::fake::FakeRuntime;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::Uid;
use wire::pod::{ContainerV1, PodV1, RuntimeV1};
use wire::status::{ContainerStatusV1, EventV1, PhaseV1, PodStatusV1, StateV1};

use super::credentials::Token;
use super::ledger::Ledger;
use super::{Diary, Door, Sources, requests};
use crate::artifacts::{Connection, Dial};
use crate::config::Folders;
use crate::pods::owner::Wanted;
use crate::streams::{self, Streams};

const TOKEN: &str = "open sesame";

struct Nowhere;

impl Dial for Nowhere {
    fn dial(&self, _: &'static [u8]) -> BoxFuture<'_, std::io::Result<Box<dyn Connection>>> {
        Box::pin(async { Err(std::io::ErrorKind::NotConnected.into()) })
    }
}

/// A door, and the hands of the agent behind it.
struct House {
    door: Arc<Door>,
    board: watch::Sender<BTreeMap<Uid, PodStatusV1>>,
    roster: watch::Sender<BTreeMap<Uid, Wanted>>,
    restarts: mpsc::Receiver<Uid>,
    diary: Arc<Diary>,
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (board, how) = watch::channel(BTreeMap::new());
        let (roster, wanted) = watch::channel(BTreeMap::new());
        let (restarter, restarts) = mpsc::channel(1);
        let (requests, _) = mpsc::channel(1);
        let (_, status) = watch::channel(None);
        let (_, info) = watch::channel(wire::node::NodeInfoV1::default());
        let folders = Folders { state: folder.path().into(), run: folder.path().join("run") };
        let streams = Streams {
            logs: folder.path().join("logs"),
            folders,
            board: how.clone(),
            runtime: Arc::new(FakeRuntime::new()),
            dial: Arc::new(Nowhere),
            proxy: crate::services::Handle { status, requests },
            free: streams::slots(),
        };
        let diary = Arc::new(Diary::default());
        let sources = Sources {
            node: "pi".into(),
            host_ip: "10.0.0.7".into(),
            board: how,
            roster: wanted,
            info,
            diary: Arc::clone(&diary),
            streams: Arc::new(streams),
            restarter,
        };
        let door = Door {
            sources,
            ledger: Mutex::new(Ledger::new(Duration::from_secs(1))),
            token: Token::new(TOKEN),
            upgraded: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { door: Arc::new(door), board, roster, restarts, diary, folder }
    }

    /// A pod with one container that runs.
    fn put(&self, n: u8, name: &str, phase: PhaseV1) {
        let mut pod = PodV1::new([n; 16], "default", name);
        pod.labels = vec![("app".into(), name.into())];
        pod.containers = vec![ContainerV1::new("main", "box:1")];
        let wanted = Wanted { pod: Arc::new(pod), going_ms: None };
        self.roster.send_modify(|roster| {
            roster.insert([n; 16], wanted);
        });
        self.say(n, name, phase, 0);
    }

    fn say(&self, n: u8, name: &str, phase: PhaseV1, restarts: u32) {
        let container = ContainerStatusV1 {
            name: "main".into(),
            image: "box:1".into(),
            image_id: "sha256:1".into(),
            runtime: RuntimeV1::Oci,
            container_id: crate::id::container_id(&[n; 16], "main", restarts),
            restarts,
            started: true,
            ready: true,
            state: StateV1::Running { started_ms: 5_000 + u64::from(restarts) },
            last: None,
        };
        let status = PodStatusV1 {
            phase,
            started_ms: 2_000,
            pod_ip: "10.42.0.2".into(),
            containers: vec![container],
            ..PodStatusV1::new([n; 16], "default", name)
        };
        self.board.send_modify(|board| {
            board.insert([n; 16], status);
        });
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, body) =
            request.body(Full::new(Bytes::from(body.to_owned()))).unwrap().into_parts();
        let answer = requests::admit(&self.door, &head, body).await;
        let answer = answer.unwrap_or_else(|status: Status| front::answer::failure(&status));
        let warning = answer.headers().get("warning").map(|w| w.to_str().unwrap().to_owned());
        let code = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes).into_owned()));
        Answered { code, warning, body }
    }

    async fn ask(&self, method: Method, path: &str) -> Answered {
        self.send(method, path, &[("authorization", &format!("Bearer {TOKEN}"))], "").await
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask(Method::GET, path).await
    }
}

#[derive(Debug)]
struct Answered {
    code: StatusCode,
    warning: Option<String>,
    body: Value,
}

impl Answered {
    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

#[tokio::test]
async fn nobody_gets_in_without_the_token() {
    let house = House::new();
    house.put(1, "web", PhaseV1::Running);
    let long = format!("Bearer {}", "x".repeat(10_000));
    for wrong in ["", "Bearer", "Bearer ", "Bearer open", "Basic open sesame", &long] {
        for path in ["/version", "/healthz", "/api/v1/pods", "/nonsense", "/api/v1/nodes/%zz"] {
            let answer = house.send(Method::GET, path, &[("authorization", wrong)], "").await;
            assert_eq!(answer.code, 401, "{wrong:?} {path}");
            assert_eq!(answer.body["reason"], "Unauthorized");
        }
    }
    let both = format!("Bearer {TOKEN}");
    let twice = [("authorization", "Bearer x"), ("authorization", both.as_str())];
    assert_eq!(house.send(Method::GET, "/version", &twice, "").await.code, 401);
    assert_eq!(house.get("/version").await.code, 200);
}

#[tokio::test]
async fn pods_are_what_the_agent_knows() {
    let house = House::new();
    house.put(1, "web", PhaseV1::Running);
    house.put(2, "db", PhaseV1::Running);
    let list = house.get("/api/v1/pods").await.body;
    let names: Vec<&str> = list["items"].as_array().unwrap().iter().map(api::meta::name).collect();
    assert_eq!((list["kind"].as_str(), names), (Some("PodList"), vec!["db", "web"]));
    let pod = house.get("/api/v1/namespaces/default/pods/web").await.body;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.42.0.2");
    assert_eq!(pod["status"]["hostIP"], "10.0.0.7");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert_eq!(pod["spec"]["nodeName"], "pi");
    assert_eq!(pod["metadata"]["creationTimestamp"], "1970-01-01T00:00:02Z");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let since = |kind: &str| {
        conditions.iter().find(|c| c["type"] == kind).unwrap()["lastTransitionTime"].clone()
    };
    assert_eq!(
        (since("PodScheduled"), since("Ready")),
        (json!("1970-01-01T00:00:02Z"), json!("1970-01-01T00:00:05Z"))
    );
    for (query, n) in [
        ("labelSelector=app%3Dweb", 1),
        ("labelSelector=app", 2),
        ("labelSelector=none", 0),
        ("fieldSelector=metadata.name%3Dweb", 1),
        ("fieldSelector=spec.nodeName%3Dpi", 2),
        ("fieldSelector=status.phase%21%3DRunning", 0),
    ] {
        let list = house.get(&format!("/api/v1/pods?{query}")).await.body;
        assert_eq!(list["items"].as_array().unwrap().len(), n, "{query}");
    }
    assert_eq!(house.get("/api/v1/pods?fieldSelector=spec.nonsense%3D1").await.code, 400);
    let missing = house.get("/api/v1/namespaces/default/pods/none").await;
    assert_eq!((missing.code.as_u16(), missing.message()), (404, "pods \"none\" not found"));
    let table = [
        ("authorization", &*format!("Bearer {TOKEN}")),
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
    ];
    let table = house.send(Method::GET, "/api/v1/pods", &table, "").await.body;
    let cells = &table["rows"][1]["cells"].as_array().unwrap()[..3];
    assert_eq!(cells, [json!("web"), json!("1/1"), json!("Running")]);
}

#[tokio::test]
async fn everything_else_names_the_way_out() {
    let house = House::new();
    house.put(1, "web", PhaseV1::Running);
    let of_pod = "/api/v1/namespaces/default/pods";
    for (method, path, code) in [
        (Method::GET, "/apis/apps/v1/deployments", 404),
        (Method::GET, "/apis/apps/v9", 404),
        (Method::GET, "/openapi/v3", 404),
        (Method::GET, "/metrics", 404),
        (Method::GET, "/api/v1/namespaces/kube-node-lease/leases/pi", 404),
        (Method::POST, "/apis/apps/v1/namespaces/default/deployments", 403),
        (Method::DELETE, "/api/v1/nodes/pi", 405),
        (Method::POST, of_pod, 405),
        (Method::DELETE, of_pod, 405),
        (Method::PUT, "/api/v1/namespaces/default/pods/web", 405),
        (Method::PATCH, "/api/v1/namespaces/default/pods/web", 405),
        (Method::POST, "/api/v1/namespaces/default/pods/web/eviction", 405),
        (Method::POST, "/version", 405),
        (Method::GET, "/api/v1/nodes?watch=1", 405),
    ] {
        let answer = house.ask(method.clone(), path).await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.body);
        assert_eq!(answer.body["kind"], "Status", "{method} {path}");
        let names = answer.message().contains("local API of node \"pi\"");
        assert!(names, "{method} {path}: {}", answer.body);
    }
}

#[tokio::test]
async fn discovery_lists_what_is_served_and_no_more() {
    let house = House::new();
    let old = house.get("/api/v1").await.body;
    let names: Vec<&str> =
        old["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    let subs = ["pods/attach", "pods/exec", "pods/log", "pods/portforward"];
    assert_eq!(names[..4], ["events", "namespaces", "nodes", "pods"]);
    assert_eq!(names[4..], subs);
    assert_eq!(house.get("/apis").await.body["groups"], json!([]));
    // Every entry is one of the cluster's, with fewer verbs.
    for own in super::table::RESOURCES {
        let whole = api::resource::by_plural(own.group, own.version, own.plural).unwrap();
        assert_eq!((own.kind, own.namespaced), (whole.kind, whole.namespaced));
        assert!(own.verbs.iter().all(|verb| whole.verbs.contains(verb)));
    }
}

#[tokio::test]
async fn a_delete_begins_the_pod_anew_and_says_so() {
    let mut house = House::new();
    house.put(1, "web", PhaseV1::Running);
    house.put(2, "job", PhaseV1::Succeeded);
    let path = "/api/v1/namespaces/default/pods/web";
    let token = format!("Bearer {TOKEN}");
    let json = [("authorization", token.as_str()), ("content-type", "application/json")];
    let answer = house
        .send(
            Method::DELETE,
            path,
            &json,
            r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}"#,
        )
        .await;
    assert_eq!((answer.code.as_u16(), &answer.body["status"]), (200, &json!("Success")));
    // No uid of the pod: a client that waits takes what stays for another pod.
    assert_ne!(answer.body["details"]["uid"], crate::id::uid_text(&[1; 16]));
    assert!(answer.warning.as_deref().unwrap_or_default().contains("restarted on node pi"));
    assert_eq!(house.restarts.try_recv(), Ok([1; 16]));

    for body in
        [r#"{"dryRun":["All"]}"#, r#"{"preconditions":{"uid":"other"}}"#, "{", "[]", "\u{0}"]
    {
        house.send(Method::DELETE, path, &json, body).await;
        let other = r#"{"preconditions""#;
        let restarts = house.restarts.try_recv().is_ok();
        assert_eq!(restarts, body == "[]", "{body}: {other}");
    }
    let long = house.send(Method::DELETE, path, &json, &" ".repeat(100_000)).await;
    assert_eq!(long.code, 413);
    let over = house.ask(Method::DELETE, "/api/v1/namespaces/default/pods/job").await;
    assert_eq!(over.code, 409);
    assert!(over.message().contains("does not begin again"), "{}", over.body);
    assert_eq!(house.ask(Method::DELETE, "/api/v1/namespaces/default/pods/x").await.code, 404);
    // More than the agent takes at once.
    assert_eq!(house.ask(Method::DELETE, path).await.code, 200);
    assert_eq!(house.ask(Method::DELETE, path).await.code, 429);
}

/// The lines of a watch that ends by itself.
async fn lines(house: &House, query: &str) -> Vec<String> {
    let answer = house.get(&format!("/api/v1/pods?watch=1&timeoutSeconds=1&{query}")).await;
    let Value::String(text) = answer.body else {
        // One line alone reads as JSON.
        return vec![line(&answer.body)];
    };
    text.lines().map(|text| line(&serde_json::from_str(text).unwrap())).collect()
}

fn line(event: &Value) -> String {
    let object = &event["object"];
    let restarts = &object["status"]["containerStatuses"][0]["restartCount"];
    format!("{} {} {restarts}", event["type"].as_str().unwrap(), api::meta::name(object))
}

#[tokio::test(start_paused = true)]
async fn a_watch_says_what_changed_since() {
    let house = House::new();
    house.put(1, "web", PhaseV1::Running);
    house.put(2, "db", PhaseV1::Running);
    let list = house.get("/api/v1/pods").await.body;
    let seen = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(lines(&house, "").await, ["ADDED db 0", "ADDED web 0"]);
    assert_eq!(lines(&house, &format!("resourceVersion={seen}")).await, Vec::<String>::new());
    house.say(1, "web", PhaseV1::Running, 1);
    house.put(3, "new", PhaseV1::Running);
    house.roster.send_modify(|roster| {
        roster.remove(&[2; 16]);
    });
    let since = format!("resourceVersion={seen}");
    assert_eq!(lines(&house, &since).await, ["DELETED db null", "ADDED new 0", "MODIFIED web 1"]);
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=app%3Dweb";
    assert_eq!(lines(&house, initial).await, ["ADDED web 1", "BOOKMARK  null", "BOOKMARK  null"]);
    let old = house.get("/api/v1/pods?watch=1&resourceVersion=7").await;
    assert_eq!((old.code.as_u16(), &old.body["reason"]), (410, &json!("Expired")));
    assert_eq!(house.get("/api/v1/pods?watch=1&resourceVersion=x").await.code, 400);

    // While it runs.
    let door = House { ..house };
    let running = lines(&door, "fieldSelector=metadata.name%3Dweb");
    let change = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        door.say(1, "web", PhaseV1::Running, 2);
        tokio::time::sleep(Duration::from_millis(100)).await;
        door.roster.send_modify(|roster| {
            roster.remove(&[1; 16]);
        });
    };
    let (said, ()) = tokio::join!(running, change);
    assert_eq!(said, ["ADDED web 1", "MODIFIED web 2", "DELETED web 2"]);
}

#[tokio::test]
async fn logs_come_from_the_boards_own_files() {
    let house = House::new();
    house.put(1, "web", PhaseV1::Running);
    let folder = house
        .folder
        .path()
        .join("logs")
        .join(format!("default_web_{}", crate::id::uid_text(&[1; 16])));
    std::fs::create_dir_all(folder.join("main")).unwrap();
    let line = |n: u32| format!("2026-03-01T12:00:0{n}.000000000Z stdout F line {n}\n");
    std::fs::write(folder.join("main/0.log"), line(1)).unwrap();
    std::fs::write(folder.join("main/1.log"), format!("{}{}", line(2), line(3))).unwrap();
    let log = "/api/v1/namespaces/default/pods/web/log";
    assert_eq!(house.get(log).await.body, "line 2\nline 3\n");
    assert_eq!(house.get(&format!("{log}?tailLines=1&container=main")).await.body, "line 3\n");
    assert_eq!(house.get(&format!("{log}?previous=true")).await.body, "line 1\n");
    assert_eq!(house.get(&format!("{log}?container=no")).await.code, 400);
    assert_eq!(house.get(&format!("{log}?tailLines=x")).await.code, 400);
    let plain = house.get("/api/v1/namespaces/default/pods/web/exec?command=ls&stdout=1").await;
    assert_eq!((plain.code.as_u16(), plain.message()), (400, "Upgrade request required"));
}

#[tokio::test]
async fn the_node_its_events_and_namespaces_are_shown() {
    let house = House::new();
    house.put(1, "web", PhaseV1::Running);
    let nodes = house.get("/api/v1/nodes").await.body;
    assert_eq!(api::meta::name(&nodes["items"][0]), "pi");
    assert!(lower::node::is_ready(&nodes["items"][0]));
    assert_eq!(house.get("/api/v1/nodes/other").await.code, 404);
    let spaces = house.get("/api/v1/namespaces").await.body;
    assert_eq!(spaces["items"].as_array().unwrap().len(), 1);
    house.diary.note(&EventV1 {
        uid: [1; 16],
        namespace: "default".into(),
        name: "web".into(),
        container: "main".into(),
        warning: true,
        reason: "BackOff".into(),
        message: "m".into(),
        at_ms: 1_000,
    });
    let path = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dweb";
    let events = house.get(path).await.body;
    let event = &events["items"][0];
    assert_eq!((&event["reason"], &event["type"]), (&json!("BackOff"), &json!("Warning")));
    assert_eq!(event["involvedObject"]["fieldPath"], "spec.containers{main}");
    assert_eq!(house.get(&path.replace("web", "db")).await.body["items"], json!([]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_answered(path in "/[ -~&&[^#?]]{0,60}", query in "[!-~&&[^#]]{0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new();
            let target = format!("{path}?{query}").replace(' ', "+");
            if target.parse::<http::Uri>().is_ok() && !target.contains("watch") {
                let answer = house.get(&target).await;
                prop_assert!(answer.code.as_u16() < 500, "{target}: {answer:?}");
            }
            Ok(())
        })?;
    }
}
