//! What clients get over TLS, byte for byte where they care.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod support;

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use api::resource::by_kind;
use pinnace_apiserver::{Identity, MASTERS, WriteOptions};
use serde_json::{Value, json};
use store::MemoryStore;
use support::{Running, read_chunk, read_head, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

const ADMIN: Option<(&str, &str)> = Some(("admin", MASTERS));
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEADLINE: Duration = Duration::from_secs(20);

async fn start() -> Running {
    support::start(Arc::new(MemoryStore::new())).await
}

async fn fill(running: &Running, n: usize, bytes: usize) {
    let who = Identity::master("test");
    let maps = by_kind("", "ConfigMap").unwrap();
    for i in 0..n {
        let object =
            json!({"metadata": {"name": format!("m{i:04}")}, "data": {"x": "y".repeat(bytes)}});
        running.api.create(&who, maps, "default", object, &WriteOptions::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_status_objects() {
    let running = start().await;
    let table = [
        ("GET", "/api/v1/namespaces/default/pods/x", "", 404, "pods \"x\" not found"),
        ("GET", "/api/v1/nonsense", "", 404, "the server could not find the requested resource"),
        ("GET", "/nonsense", "", 404, "the server could not find the requested resource"),
        (
            "POST",
            "/version",
            "",
            405,
            "the server does not allow this method on the requested resource",
        ),
        ("PUT", PODS, "{}", 405, "the server does not allow this method on the requested resource"),
        (
            "DELETE",
            "/api/v1/namespaces",
            "",
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            "POST",
            MAPS,
            "{",
            400,
            "the object provided is unrecognized: cannot read JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "POST",
            MAPS,
            "[]",
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: it is not a JSON object",
        ),
        (
            "GET",
            "/api/v1/pods?labelSelector=a%3D%3D%3Db",
            "",
            400,
            "unable to parse label selector",
        ),
        (
            "GET",
            "/api/v1/pods?limit=many",
            "",
            400,
            "limit: Invalid value: \"many\": must be a whole number",
        ),
        (
            "GET",
            "/api/v1/pods?watch=1&resourceVersion=999999",
            "",
            504,
            "Timeout: Too large resource version: 999999, current: 7",
        ),
        (
            "GET",
            "/api/v1/pods?watch=1&sendInitialEvents=true",
            "",
            422,
            "resourceVersionMatch: Forbidden",
        ),
        (
            "PATCH",
            "/api/v1/namespaces/default/configmaps/x",
            "{}",
            415,
            "the body of the request was in an unknown format",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?dryRun=Some",
            "{}",
            400,
            "dryRun: Unsupported value: \"Some\"",
        ),
    ];
    for (method, path, body, code, message) in table {
        let reply = running.ask(method, path, &[], body.as_bytes()).await;
        let status = reply.json();
        assert_eq!(reply.code, code, "{method} {path}: {status}");
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)));
        assert!(status["message"].as_str().unwrap().contains(message), "{method} {path}: {status}");
        assert!(reply.body.ends_with(b"\n"));
    }
    let only_protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    assert_eq!(running.ask("GET", PODS, &only_protobuf, b"").await.code, 406);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_decides_what_is_answered() {
    let running = start().await;
    let table = [
        ("/healthz", 200, 200, 200),
        ("/readyz", 200, 200, 200),
        ("/livez", 200, 200, 200),
        ("/version", 200, 200, 200),
        ("/api", 401, 200, 200),
        ("/apis/apps/v1", 401, 200, 200),
        ("/openapi/v3", 401, 200, 200),
        ("/metrics", 401, 403, 200),
        ("/nonsense", 401, 403, 404),
        (PODS, 401, 403, 200),
        ("/api/v1/nonsense", 401, 404, 404),
    ];
    for (path, anonymous, somebody, admin) in table {
        for (user, code) in
            [(None, anonymous), (Some(("somebody", "people")), somebody), (ADMIN, admin)]
        {
            assert_eq!(
                running.ask_as(user, "GET", path, &[], b"").await.code,
                code,
                "{path} {user:?}"
            );
        }
    }
    for (token, code) in [("Bearer open-sesame", 200), ("Bearer wrong", 401), ("Basic YTpi", 401)] {
        let reply = running.ask_as(None, "GET", PODS, &[("authorization", token)], b"").await;
        assert_eq!(reply.code, code, "{token}");
    }
    let verbose = running.ask_as(None, "GET", "/readyz?verbose", &[], b"").await;
    assert_eq!(verbose.text(), "[+]ping ok\n[+]gateway ok\nreadyz check passed\n");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_stream_stored_bytes_and_compress_when_long() {
    let running = start().await;
    let empty = running.ask("GET", MAPS, &[], b"").await;
    assert_eq!(
        empty.text(),
        "{\"kind\":\"ConfigMapList\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"7\"},\"items\":[]}\n"
    );
    fill(&running, 600, 500).await;
    let plain = running.ask("GET", MAPS, &[], b"").await;
    assert_eq!(plain.header("content-type"), "application/json");
    let list = plain.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 600);
    let one = running.ask("GET", &format!("{MAPS}/m0007"), &[], b"").await.json();
    assert_eq!(list["items"][7], one);

    let gzip = running.ask("GET", MAPS, &[("accept-encoding", "gzip")], b"").await;
    assert_eq!(gzip.header("content-encoding"), "gzip");
    assert!(gzip.body.len() < plain.body.len() / 4);
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&gzip.body[..]).read_to_end(&mut text).unwrap();
    assert_eq!(text, plain.body);

    let page = running.ask("GET", &format!("{MAPS}?limit=2"), &[], b"").await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let next =
        running.ask("GET", &format!("{MAPS}?limit=2&continue={token}"), &[], b"").await.json();
    assert_eq!(next["items"][0]["metadata"]["name"], "m0002");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_come_as_tables_and_metadata() {
    let running = start().await;
    fill(&running, 2, 10).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = running.ask("GET", MAPS, &accept, b"").await.json();
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
    assert_eq!(table["rows"][1]["cells"][0], "m0001");
    assert_eq!(table["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let with = format!("{MAPS}?includeObject=Object");
    let table = running.ask("GET", &with, &accept, b"").await.json();
    assert_eq!(table["rows"][0]["object"]["data"]["x"], "yyyyyyyyyy");
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let list = running.ask("GET", MAPS, &accept, b"").await.json();
    assert_eq!(
        (&list["kind"], &list["items"][0].get("data")),
        (&json!("PartialObjectMetadataList"), &None)
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_comes_in_both_forms_and_schemas_are_kept() {
    let running = start().await;
    let aggregated =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let reply = running.ask("GET", "/apis", &[("accept", aggregated)], b"").await;
    assert!(reply.header("content-type").contains("as=APIGroupDiscoveryList"));
    assert_eq!(reply.json()["items"][0]["metadata"]["name"], "apps");
    let old = running.ask("GET", "/apis", &[], b"").await.json();
    assert_eq!((&old["kind"], &old["groups"][0]["name"]), (&json!("APIGroupList"), &json!("apps")));
    let core = running.ask("GET", "/api/v1", &[], b"").await.json();
    assert!(core["resources"].as_array().unwrap().iter().any(|r| r["name"] == "pods/log"));
    assert_eq!(running.ask("GET", "/api", &[], b"").await.json()["versions"], json!(["v1"]));

    let index = running.ask("GET", "/openapi/v3", &[], b"").await.json();
    let path = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = running.ask("GET", &path, &[("accept-encoding", "gzip")], b"").await;
    assert_eq!(document.header("cache-control"), "public, immutable");
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&document.body[..]).read_to_end(&mut text).unwrap();
    let document_json: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(document_json["openapi"], "3.0.0");
    let tag = document.header("etag").to_owned();
    let again = running.ask("GET", &path, &[("if-none-match", &tag)], b"").await;
    assert_eq!((again.code, again.body.len()), (304, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_may_be_yaml_or_protobuf_and_must_end() {
    let running = start().await;
    let yaml = [("content-type", "application/yaml")];
    let reply = running.ask("POST", MAPS, &yaml, b"metadata:\n  name: why\ndata: {a: '1'}\n").await;
    assert_eq!(reply.code, 201, "{}", reply.text());
    // ConfigMap { metadata { name: "p" }, data { "a": "1" } }, as Go writes it.
    let mut raw = vec![0x0a, 3, 0x0a, 1, b'p', 0x12, 6];
    raw.extend([0x0a, 1, b'a', 0x12, 1, b'1']);
    let mut body = b"k8s\0".to_vec();
    body.extend([0x0a, 15, 0x0a, 2, b'v', b'1', 0x12, 9]);
    body.extend(b"ConfigMap");
    body.extend([0x12, u8::try_from(raw.len()).unwrap()]);
    body.extend(raw);
    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    let reply = running.ask("POST", MAPS, &protobuf, &body).await;
    assert_eq!(reply.code, 201, "{}", reply.text());
    assert_eq!(reply.json()["data"]["a"], "1");

    let big = format!(
        "{{\"metadata\":{{\"name\":\"big\"}},\"data\":{{\"x\":\"{}\"}}}}",
        "x".repeat(3 << 20)
    );
    let reply = running.ask("POST", MAPS, &[], big.as_bytes()).await;
    assert_eq!((reply.code, reply.json()["reason"].clone()), (413, json!("RequestEntityTooLarge")));
    let typo = b"{\"metadata\":{\"name\":\"t\"},\"dat\":{},\"data\":{},\"data\":{}}";
    let reply = running.ask("POST", MAPS, &[], typo).await;
    assert_eq!(reply.code, 201);
    assert!(
        reply.header("warning").starts_with("299 - \"duplicate field \\\"data\\\"\""),
        "{:?}",
        reply.headers
    );
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let reply = running.ask("POST", &strict, &[], typo).await;
    let message = reply.json()["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .contains("strict decoding error: duplicate field \"data\", unknown field \"dat\""),
        "{message}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sends_each_change_at_once_and_ends_with_its_client() {
    let running = start().await;
    let mut stream = running.connect(ADMIN).await;
    let path = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    send(&mut stream, "GET", &path, &[], b"").await;
    let mut reader = BufReader::new(stream);
    let (code, headers) = read_head(&mut reader).await;
    assert_eq!(code, 200);
    assert!(
        headers.iter().any(|(key, value)| key == "content-type" && value == "application/json")
    );
    let bookmark: Value = serde_json::from_slice(&read_chunk(&mut reader).await.unwrap()).unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    fill(&running, 1, 3).await;
    let chunk = timeout(DEADLINE, read_chunk(&mut reader)).await.unwrap().unwrap();
    let added: Value = serde_json::from_slice(&chunk).unwrap();
    assert_eq!(
        (&added["type"], &added["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("m0000"))
    );

    let watches = async || {
        let text = running.ask("GET", "/metrics", &[], b"").await.text();
        text.lines().find(|line| line.starts_with("pinnace_api_watches ")).unwrap().to_owned()
    };
    assert_eq!(watches().await, "pinnace_api_watches 1");
    drop(reader);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while watches().await != "pinnace_api_watches 0" {
        assert!(tokio::time::Instant::now() < deadline, "the watch outlives its client");
    }
    // A watch of tables says the columns once.
    let mut stream = running.connect(ADMIN).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    send(&mut stream, "GET", &format!("{MAPS}?watch=true"), &accept, b"").await;
    let mut reader = BufReader::new(stream);
    read_head(&mut reader).await;
    let first: Value = serde_json::from_slice(&read_chunk(&mut reader).await.unwrap()).unwrap();
    assert_eq!(first["object"]["rows"][0]["cells"][0], "m0000");
    assert!(first["object"]["columnDefinitions"].is_array());
    running.stop().await;
    assert!(
        timeout(DEADLINE, read_chunk(&mut reader)).await.unwrap().is_none(),
        "shutdown ends it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_rude_clients_hold_up_nobody() {
    let running = start().await;
    // Connects and says nothing; half a request; no TLS at all.
    let silent = tokio::net::TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let mut half = running.connect(ADMIN).await;
    half.write_all(b"GET /version HTTP/1.1\r\nhost:").await.unwrap();
    let mut rude = tokio::net::TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    rude.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(running.ask("GET", "/version", &[], b"").await.code, 200);
    let mut rest = Vec::new();
    let _ = timeout(DEADLINE, rude.read_to_end(&mut rest)).await.unwrap();

    let mut stream = running.connect(ADMIN).await;
    let long = "x".repeat(300 * 1024);
    // The server may close before everything is written.
    let head = format!("GET /version HTTP/1.1\r\nhost: a\r\nlong: {long}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    drop((silent, half));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_are_told_to_come_back() {
    let limits = pinnace_apiserver::Limits { requests_max: 0, ..Default::default() };
    let running = support::start_with(Arc::new(MemoryStore::new()), limits).await;
    let reply = running.ask("GET", PODS, &[], b"").await;
    assert_eq!((reply.code, reply.header("retry-after")), (429, "1"));
    assert_eq!(reply.json()["reason"], "TooManyRequests");
    assert_eq!(running.ask("GET", "/readyz", &[], b"").await.code, 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_on_disk_lists_pages_and_watches_alike() {
    let dir = tempfile::tempdir().unwrap();
    let running = support::start(support::on_disk(dir.path())).await;
    let who = Identity::master("test");
    let options = WriteOptions::default();
    let lease = by_kind("coordination.k8s.io", "Lease").unwrap();
    let event = by_kind("", "Event").unwrap();
    for n in 0..600 {
        let name = format!("x{n:03}");
        let object = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
        running.api.create(&who, lease, "default", object, &options).await.unwrap();
        let object = json!({
            "metadata": {"name": name}, "reason": "Test", "type": "Normal", "message": "m",
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        });
        running.api.create(&who, event, "default", object, &options).await.unwrap();
    }
    for (path, resource) in [
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", lease),
        ("/api/v1/namespaces/default/events", event),
    ] {
        let list = running.ask("GET", path, &[], b"").await.json();
        assert_eq!(list["items"].as_array().unwrap().len(), 600, "{path}");
        let page = running.ask("GET", &format!("{path}?limit=400"), &[], b"").await.json();
        let target = pinnace_apiserver::Target::object(resource, "default", "x500");
        running.api.delete(&who, &target, &Default::default()).await.unwrap();
        let token = page["metadata"]["continue"].as_str().unwrap();
        let path = format!("{path}?limit=400&continue={token}");
        let rest = running.ask("GET", &path, &[], b"").await.json();
        assert_eq!(rest["items"].as_array().unwrap().len(), 200, "{path}: as it was");
        let revision = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        let options = pinnace_apiserver::WatchOptions {
            resource_version: Some(revision),
            ..Default::default()
        };
        let mut watch = running.api.watch(&who, resource, "", &options).unwrap();
        let seen = timeout(DEADLINE, watch.next()).await.unwrap();
        assert!(matches!(seen, Some(pinnace_apiserver::WatchEvent::Deleted(_))), "{seen:?}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_answer_and_store_nothing() {
    let running = start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let body =
        json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}}).to_string();
    for (user, allowed) in [(ADMIN, true), (Some(("somebody", "people")), false)] {
        let reply = running.ask_as(user, "POST", path, &[], body.as_bytes()).await;
        assert_eq!((reply.code, &reply.json()["status"]["allowed"]), (201, &json!(allowed)));
    }
    assert_eq!(running.ask_as(None, "POST", path, &[], body.as_bytes()).await.code, 401);
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = running.ask("POST", path, &[], b"{}").await.json();
    assert_eq!(review["status"]["userInfo"]["username"], "admin");
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let review =
        running.ask("POST", path, &[], b"{\"spec\":{\"namespace\":\"default\"}}").await.json();
    assert_eq!(review["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    assert_eq!(running.ask("GET", path, &[], b"").await.code, 405);
    running.stop().await;
}
