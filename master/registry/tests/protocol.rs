//! The protocol as clients speak it, over files in a temporary folder: the cases
//! of the conformance suite, and what it leaves out (cuts, restarts, collection).
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request};
use image::Digest;
use pinnace_registry::{Body, Config, Files, Protocol, Swept};
use serde_json::{Value, json};

struct Client {
    protocol: Protocol,
    files: Arc<Files>,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, &self.json()["errors"][0]["code"]), (status, &json!(code)));
    }
}

fn config() -> Config {
    Config { reserve_bytes: 0, ..Config::default() }
}

fn client(folder: &Path, config: Config) -> Client {
    let files = Arc::new(Files::open(folder, config).unwrap());
    Client { protocol: Protocol::new(Arc::clone(&files)), files }
}

fn body(bytes: &[u8]) -> Body {
    let pieces: Vec<io::Result<Bytes>> =
        bytes.chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    Box::pin(futures::stream::iter(pieces))
}

impl Client {
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        with: Body,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.protocol.handle(request.body(with).unwrap()).await;
        let (head, mut pieces) = answer.into_parts();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        Answer { status: head.status.as_u16(), headers: head.headers, body: bytes.into() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], body(b"")).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], body(b"")).await
    }

    async fn push_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let pushed = self.send(Method::POST, &path, &[], body(bytes)).await;
        assert_eq!(pushed.status, 201);
        digest
    }

    async fn push_manifest(&self, name: &str, reference: &str, manifest: &Value) -> Answer {
        let kind = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
        let path = format!("/v2/{name}/manifests/{reference}");
        self.send(Method::PUT, &path, &kind, body(manifest.to_string().as_bytes())).await
    }

    /// Pushes an image of one layer; returns its digest and its layer's.
    async fn push(&self, name: &str, tag: &str, layer: &[u8]) -> (Digest, Digest) {
        let config = self.push_blob(name, b"{}").await;
        let layer_digest = self.push_blob(name, layer).await;
        let manifest = image_of(config, layer_digest);
        let pushed = self.push_manifest(name, tag, &manifest).await;
        assert_eq!(pushed.status, 201, "{:?}", pushed.json());
        (Digest::of(manifest.to_string().as_bytes()), layer_digest)
    }

    async fn collect(&self) -> Swept {
        self.files.collect(&BTreeSet::new()).await.unwrap()
    }
}

fn image_of(config: Digest, layer: Digest) -> Value {
    let of = |digest: Digest| json!({"mediaType": "x", "digest": digest, "size": 1});
    json!({"schemaVersion": 2, "config": of(config), "layers": [of(layer)]})
}

#[tokio::test]
async fn an_image_goes_in_and_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(folder.path(), config());
    assert_eq!(client.get("/v2/").await.status, 200);
    let (digest, layer) = client.push("team/app", "v1", b"layer").await;
    for reference in ["v1".to_owned(), digest.to_string()] {
        let got = client.get(&format!("/v2/team/app/manifests/{reference}")).await;
        assert_eq!((got.status, Digest::of(&got.body)), (200, digest));
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        assert_eq!(got.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
        let path = format!("/v2/team/app/manifests/{reference}");
        let head = client.send(Method::HEAD, &path, &[], body(b"")).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), got.body.len().to_string());
    }
    let path = format!("/v2/team/app/blobs/{layer}");
    assert_eq!(client.get(&path).await.body, "layer");
    let part = client.send(Method::GET, &path, &[("range", "bytes=1-3")], body(b"")).await;
    assert_eq!((part.status, part.body), (206, Bytes::from("aye")));
    let beyond = client.send(Method::GET, &path, &[("range", "bytes=9-")], body(b"")).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */5"));
    assert_eq!(client.get("/v2/_catalog").await.json(), json!({"repositories": ["team/app"]}));
    client.push("team/app", "v2", b"other").await;
    let tags = client.get("/v2/team/app/tags/list?n=1").await;
    assert_eq!(tags.json(), json!({"name": "team/app", "tags": ["v1"]}));
    assert_eq!(tags.header("link"), "</v2/team/app/tags/list?n=1&last=v1>; rel=\"next\"");
    // Another repository has none of it, until it is mounted there.
    client.get(&format!("/v2/else/blobs/{layer}")).await.refused(404, "BLOB_UNKNOWN");
    let mount = format!("/v2/else/blobs/uploads/?mount={layer}&from=team/app");
    assert_eq!(client.send(Method::POST, &mount, &[], body(b"")).await.status, 201);
    assert_eq!(client.get(&format!("/v2/else/blobs/{layer}")).await.body, "layer");
    let missing = format!("/v2/else/blobs/uploads/?mount={}&from=team/app", Digest::of(b"?"));
    assert_eq!(client.send(Method::POST, &missing, &[], body(b"")).await.status, 202);
    // A tag goes alone, a digest takes its tags along.
    assert_eq!(client.delete("/v2/team/app/manifests/v2").await.status, 202);
    assert_eq!(client.delete(&format!("/v2/team/app/manifests/{digest}")).await.status, 202);
    client.get("/v2/team/app/manifests/v1").await.refused(404, "MANIFEST_UNKNOWN");
    client.delete("/v2/team/app/manifests/v1").await.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(client.delete(&path).await.status, 202);
    client.delete(&path).await.refused(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn an_upload_goes_on_after_a_cut_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = self::client(folder.path(), config());
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&content);
    let begun = client.send(Method::POST, "/v2/app/blobs/uploads/", &[], body(b"")).await;
    assert_eq!(begun.status, 202);
    let place = begun.header("location").to_owned();
    // The connection breaks in the middle of the first chunk.
    let cut: Vec<io::Result<Bytes>> = vec![
        Ok(Bytes::copy_from_slice(&content[..150_001])),
        Err(io::ErrorKind::ConnectionReset.into()),
    ];
    let cut: Body = Box::pin(futures::stream::iter(cut));
    client.send(Method::PATCH, &place, &[], cut).await.refused(400, "SIZE_INVALID");
    for restart in [false, true] {
        if restart {
            drop(client);
            client = self::client(folder.path(), config());
        }
        let status = client.get(&place).await;
        let n_have: usize = status.header("range").strip_prefix("0-").unwrap().parse().unwrap();
        assert_eq!(status.status, 204);
        let (start, end) = (n_have + 1, n_have + 100_000);
        // Not where it is: told so, and nothing is lost.
        let wrong = format!("{}-{end}", start + 1);
        let refused =
            client.send(Method::PATCH, &place, &[("content-range", &wrong)], body(b"x")).await;
        refused.refused(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(refused.header("range"), format!("0-{n_have}"));
        let range = format!("{start}-{}", end - 1);
        let chunk = body(&content[start..end]);
        let sent = client.send(Method::PATCH, &place, &[("content-range", &range)], chunk).await;
        assert_eq!((sent.status, sent.header("range")), (202, &*format!("0-{}", end - 1)));
    }
    let finish = format!("{place}?digest={digest}");
    let done = client.send(Method::PUT, &finish, &[], body(&content[349_999..])).await;
    assert_eq!(done.status, 201);
    assert_eq!(client.get(&format!("/v2/app/blobs/{digest}")).await.body, content);
    client.get(&place).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(client.files.used_bytes(), content.len() as u64);
    assert_eq!(Files::open(folder.path(), config()).unwrap().used_bytes(), content.len() as u64);
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(folder.path(), config());
    let begin = async |name: &str| {
        let path = format!("/v2/{name}/blobs/uploads/");
        client.send(Method::POST, &path, &[], body(b"")).await
    };
    begin("Team").await.refused(400, "NAME_INVALID");
    begin("a/../b").await.refused(400, "NAME_INVALID");
    let place = begin("app").await.header("location").to_owned();
    let other = Digest::of(b"other");
    let lie = format!("{place}?digest={other}");
    client.send(Method::PUT, &lie, &[], body(b"content")).await.refused(400, "DIGEST_INVALID");
    client.get(&place).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    // An upload belongs to its repository.
    let place = begin("app").await.header("location").replace("/app/", "/else/");
    client.get(&place).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    client.get("/v2/app/blobs/uploads/..%2f..%2fx").await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    client.get("/v2/app/blobs/sha256:12").await.refused(400, "DIGEST_INVALID");
    client.get("/v2/none/tags/list").await.refused(404, "NAME_UNKNOWN");
    client.get("/v2/app/what").await.refused(405, "UNSUPPORTED");
    let (manifest, layer) = client.push("app", "v1", b"layer").await;
    for (reference, content, code) in [
        ("v1", b"not json".to_vec(), "MANIFEST_INVALID"),
        ("v1", br#"{"schemaVersion":2}"#.to_vec(), "MANIFEST_INVALID"),
        ("v1", br#"{"schemaVersion":1,"config":{}}"#.to_vec(), "MANIFEST_INVALID"),
        (".v1", image_of(layer, layer).to_string().into_bytes(), "MANIFEST_INVALID"),
        (&*other.to_string(), image_of(layer, layer).to_string().into_bytes(), "DIGEST_INVALID"),
        ("v1", image_of(layer, other).to_string().into_bytes(), "MANIFEST_BLOB_UNKNOWN"),
        ("v1", vec![b' '; (4 << 20) + 1], "MANIFEST_INVALID"),
    ] {
        let path = format!("/v2/app/manifests/{reference}");
        let kind = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
        client.send(Method::PUT, &path, &kind, body(&content)).await.refused(400, code);
    }
    let index = json!({"schemaVersion": 2, "manifests": [{"digest": other}]});
    client.push_manifest("app", "i", &index).await.refused(400, "MANIFEST_BLOB_UNKNOWN");
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [{"digest": manifest}]});
    client.push_manifest("app", "i", &index).await.refused(400, "MANIFEST_INVALID");
    // What was there is there still.
    assert_eq!(
        client.get("/v2/app/manifests/v1").await.header("docker-content-digest"),
        manifest.to_string()
    );
}

#[tokio::test]
async fn the_quota_holds_for_every_way_in() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(folder.path(), Config { quota_bytes: 10_000, ..config() });
    client.push("app", "v1", &[7; 5000]).await;
    let path = format!("/v2/app/blobs/uploads/?digest={}", Digest::of(&[8; 6000]));
    let refused = client.send(Method::POST, &path, &[], body(&[8; 6000])).await;
    refused.refused(403, "DENIED");
    let message = refused.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("--registry-quota"), "{message}");
    // Room comes back with what is deleted, the half upload too.
    assert_eq!(client.delete("/v2/app/manifests/v1").await.status, 202);
    let uploads = std::fs::read_dir(folder.path().join("uploads")).unwrap().count();
    assert_eq!(uploads, 2, "the upload may go on once there is room");
    // A disk with less room than the cluster's state needs takes nothing.
    let full = self::client(folder.path(), Config { reserve_bytes: u64::MAX, ..config() });
    let refused = full.send(Method::POST, "/v2/app/blobs/uploads/", &[], body(b"")).await;
    refused.refused(403, "DENIED");
}

#[tokio::test(start_paused = true)]
async fn what_no_tag_leads_to_goes_after_its_grace() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(folder.path(), config());
    let (old, old_layer) = client.push("team/app", "v1", b"old").await;
    let (new, _) = client.push("team/app", "v1", b"new").await;
    let (gone, _) = client.push("gone", "v1", b"only here").await;
    client.delete(&format!("/v2/gone/manifests/{gone}")).await;
    // The signature of what stays stays, the other goes.
    for digest in [new, old] {
        client
            .push("team/app", &format!("sha256-{}.sig", digest.hex()), digest.hex().as_bytes())
            .await;
    }
    let grace = config().grace;
    assert_eq!(client.collect().await, Swept::default());
    tokio::time::advance(grace - Duration::from_secs(60)).await;
    // A push is under way: all of its repository stays.
    let kept = client.push_blob("team/app", b"under way").await;
    tokio::time::advance(Duration::from_secs(120)).await;
    let swept = client.collect().await;
    let left = client.get("/v2/_catalog").await.json();
    assert_eq!((swept.n_blobs, &left["repositories"]), (2, &json!(["team/app"])));
    assert_eq!(client.get(&format!("/v2/team/app/blobs/{kept}")).await.status, 200);
    // What a pod has stays as if it were tagged.
    let in_use = BTreeSet::from([old]);
    client.files.collect(&in_use).await.unwrap();
    tokio::time::advance(grace * 2).await;
    client.files.collect(&in_use).await.unwrap();
    tokio::time::advance(grace * 2).await;
    client.files.collect(&in_use).await.unwrap();
    assert_eq!(client.get(&format!("/v2/team/app/blobs/{old_layer}")).await.body, "old");
    client.get(&format!("/v2/team/app/blobs/{kept}")).await.refused(404, "BLOB_UNKNOWN");
    client.collect().await;
    tokio::time::advance(grace * 2).await;
    client.collect().await;
    client.get(&format!("/v2/team/app/blobs/{old_layer}")).await.refused(404, "BLOB_UNKNOWN");
    let tags = client.get("/v2/team/app/tags/list").await.json();
    assert_eq!(tags["tags"], json!([format!("sha256-{}.sig", new.hex()), "v1"]));
    assert_eq!(client.get("/v2/team/app/manifests/v1").await.status, 200);
    assert_eq!(
        client.files.used_bytes(),
        Files::open(folder.path(), config()).unwrap().used_bytes()
    );
}

#[tokio::test]
async fn referrers_are_found_by_what_they_are_about() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(folder.path(), config());
    let (subject, layer) = client.push("app", "v1", b"layer").await;
    let mut about = image_of(layer, layer);
    about["subject"] = json!({"mediaType": "x", "digest": subject, "size": 1});
    about["artifactType"] = json!("text/note");
    let digest = Digest::of(about.to_string().as_bytes());
    let pushed = client.push_manifest("app", &digest.to_string(), &about).await;
    assert_eq!((pushed.status, pushed.header("oci-subject")), (201, &*subject.to_string()));
    let found = client.get(&format!("/v2/app/referrers/{subject}")).await.json();
    assert_eq!(found["manifests"][0]["digest"], digest.to_string());
    let path = format!("/v2/app/referrers/{subject}?artifactType=other");
    assert_eq!(client.get(&path).await.json()["manifests"], json!([]));
}
