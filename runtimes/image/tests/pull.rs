//! Images pushed to Debian's `docker-registry` and pulled from it, and registries
//! that misbehave. Everything on 127.0.0.1, on ports the system chooses.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pinnace_image::build::{Built, Entry, OciImage, archive, gzip};
use pinnace_image::{
    Credential, Digest, ImageError, ImageKind, Keyring, Limits, Platform, Reference, Registry,
    RegistryConfig, Store, Unpacker, WasmKind, fetch_wasm, inspect,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

mod support;

use support::{DockerRegistry, client};

fn store(folder: &Path) -> Store {
    Store::open(folder, Unpacker::InProcess, Limits::default()).unwrap()
}

fn image(text: &str, platform: Platform) -> OciImage {
    OciImage {
        layers: vec![
            vec![Entry::file("base", 0o644, b"shared by all".to_vec())],
            vec![Entry::file("text", 0o644, text.as_bytes().to_vec())],
        ],
        platform,
        cmd: vec!["/bin/sh".into()],
        env: vec!["A=1".into()],
        user: "app".into(),
        working_dir: "/data".into(),
        ..OciImage::default()
    }
}

fn n_layers(folder: &Path) -> usize {
    fs::read_dir(folder.join("layers")).unwrap().count()
}

#[tokio::test]
async fn an_image_is_pushed_pulled_and_found_again_offline() {
    let registry = DockerRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let reference = registry.reference("team/app:v1");
    let platforms = [
        Platform::linux("arm", "v6"),
        Platform::linux("arm", "v7"),
        Platform::linux("arm64", "v8"),
        Platform::linux("amd64", ""),
    ];
    let built = platforms.clone().map(|p| Built::oci(&image(&p.to_string(), p)));
    let index = Built::index(built.to_vec());
    let digest = index.push(&registry.client(), &reference).await.unwrap();

    let info = inspect(&registry.client(), &reference, 1 << 20).await.unwrap();
    assert_eq!(info.digest, digest);
    assert_eq!(info.kind, ImageKind::Oci { platforms: platforms.to_vec() });

    for platform in platforms {
        let store = store(folder.path()).for_platform(platform.clone());
        let pulled = store.pull(&registry.client(), &reference, Some(digest)).await.unwrap();
        assert_eq!(pulled.digest, digest);
        assert_eq!(pulled.config.platform, platform);
        assert_eq!(pulled.config.user, "app");
        assert_eq!(pulled.config.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(pulled.layers.len(), 2);
        assert_eq!(
            fs::read_to_string(pulled.layers[1].join("text")).unwrap(),
            platform.to_string()
        );
    }
    // The lowest layer is the same for all.
    assert_eq!(n_layers(folder.path()), 5);

    // Without the registry: by tag, by the index' digest, by the manifest's.
    drop(registry);
    let store = store(folder.path());
    let by_tag = store.get(&reference, None).unwrap().unwrap();
    assert_eq!(by_tag.config.platform, Platform::linux("amd64", ""));
    assert_eq!(store.get(&reference, Some(digest)).unwrap().unwrap().manifest, by_tag.manifest);
    assert_eq!(store.get(&reference, Some(by_tag.manifest)).unwrap(), Some(by_tag));
    assert_eq!(store.get(&reference, Some(Digest::of(b"other"))).unwrap(), None);
    assert_eq!(store.get(&"other:v1".parse().unwrap(), None).unwrap(), None);
}

#[tokio::test]
async fn an_image_without_index_is_taken_for_its_own_machine_only() {
    let registry = DockerRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let reference = registry.reference("app:single");
    let arm = Built::oci(&image("arm", Platform::linux("arm", "v7")));
    arm.push(&registry.client(), &reference).await.unwrap();
    let store = store(folder.path()).for_platform(Platform::linux("arm64", "v8"));
    let error = store.pull(&registry.client(), &reference, None).await.unwrap_err();
    assert!(matches!(&error, ImageError::NoPlatform { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "image {reference}@{} has nothing for linux/arm64/v8, only linux/arm/v7: build it for \
             linux/arm64/v8",
            arm.digest()
        )
    );
    assert_eq!(n_layers(folder.path()), 0);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let registry = DockerRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let reference = registry.reference("no/such:image");
    let error = store.pull(&registry.client(), &reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("no/such:image does not exist"), "{error}");
    // Nobody listens there any more.
    let client = registry.client();
    drop(registry);
    let error = store.pull(&client, &reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());
    assert!(error.to_string().contains("efused"), "{error}");
}

#[tokio::test]
async fn collection_keeps_what_is_used() {
    let registry = DockerRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (old, new) = (registry.reference("app:old"), registry.reference("app:new"));
    for (reference, text) in [(&old, "old"), (&new, "new")] {
        let built = Built::oci(&image(text, Platform::host()));
        built.push(&registry.client(), reference).await.unwrap();
        store.pull(&registry.client(), reference, None).await.unwrap();
    }
    assert_eq!(n_layers(folder.path()), 3);
    let kept = store.collect(|_| true).await.unwrap();
    assert_eq!((kept.n_names, kept.n_layers), (0, 0));
    let name = new.to_string();
    let collected = store.collect(|record| record.name == name).await.unwrap();
    assert_eq!((collected.n_names, collected.n_layers), (1, 1));
    assert_eq!(n_layers(folder.path()), 2);
    assert_eq!(store.get(&old, None).unwrap(), None);
    let image = store.get(&new, None).unwrap().unwrap();
    assert_eq!(fs::read_to_string(image.layers[1].join("text")).unwrap(), "new");
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path().join("blobs/sha256")).unwrap().count(), 2);
}

#[tokio::test]
async fn a_start_sweeps_what_a_crash_left() {
    let folder = tempfile::tempdir().unwrap();
    drop(store(folder.path()));
    let tmp = folder.path().join("tmp");
    fs::create_dir_all(tmp.join("half.layer/deep")).unwrap();
    fs::write(tmp.join("half.layer/deep/file"), "x").unwrap();
    fs::write(tmp.join("download.part"), "x").unwrap();
    fs::write(folder.path().join("refs/broken.json"), "{").unwrap();
    let store = store(folder.path());
    assert_eq!(store.records().unwrap(), []);
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["download.part"]);
    // A record whose layers are gone is no image.
}

#[tokio::test]
async fn modules_are_found_and_fetched() {
    let registry = DockerRegistry::start();
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    module.resize(5000, 7);
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    component.resize(300, 1);
    for (bytes, kind, name) in
        [(&module, WasmKind::Module, "m:v1"), (&component, WasmKind::Component, "c:v1")]
    {
        let reference = registry.reference(name);
        let built = Built::wasm(bytes.clone());
        let digest = built.push(&registry.client(), &reference).await.unwrap();
        let info = inspect(&registry.client(), &reference, 1 << 20).await.unwrap();
        assert_eq!(info.digest, digest);
        let ImageKind::Wasm(wasm) = info.kind else { panic!("{info:?}") };
        assert_eq!((wasm.kind, wasm.size), (kind, bytes.len() as u64));
        assert_eq!(wasm.module_digest, Digest::of(bytes));
        assert_eq!(fetch_wasm(&registry.client(), &reference, &wasm).await.unwrap(), *bytes);
        // Larger than allowed.
        let error = inspect(&registry.client(), &reference, 100).await.unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        // A node cannot run it as a container.
        let folder = tempfile::tempdir().unwrap();
        let error =
            store(folder.path()).pull(&registry.client(), &reference, None).await.unwrap_err();
        assert!(matches!(error, ImageError::WrongKind { .. }), "{error}");
    }
    // As a file of an OCI image.
    let reference = registry.reference("compat:v1");
    let compat = OciImage {
        layers: vec![vec![
            Entry::file("other.wasm", 0o644, vec![1]),
            Entry::file("app/main.wasm", 0o755, module.clone()),
        ]],
        platform: Platform {
            os: "wasi".into(),
            architecture: "wasm".into(),
            variant: String::new(),
        },
        entrypoint: vec!["/app/main.wasm".into()],
        ..OciImage::default()
    };
    for built in [Built::oci(&compat), Built::index(vec![Built::oci(&compat)])] {
        built.push(&registry.client(), &reference).await.unwrap();
        let info = inspect(&registry.client(), &reference, 1 << 20).await.unwrap();
        let ImageKind::Wasm(wasm) = info.kind else { panic!("{info:?}") };
        assert_eq!((wasm.kind, wasm.module_digest), (WasmKind::Module, Digest::of(&module)));
        assert_eq!(fetch_wasm(&registry.client(), &reference, &wasm).await.unwrap(), module);
    }
    // What says it is one, and is not.
    let reference = registry.reference("not:wasm");
    Built::wasm(b"\x7fELF not wasm".to_vec()).push(&registry.client(), &reference).await.unwrap();
    let error = inspect(&registry.client(), &reference, 1 << 20).await.unwrap_err();
    assert!(error.to_string().contains("does not begin as WebAssembly does"), "{error}");
}

#[tokio::test]
async fn hostile_layers_are_refused_and_leave_nothing() {
    let registry = DockerRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let store = Store::open(folder.path(), Unpacker::InProcess, limits).unwrap();
    let platform = Platform::host();
    let config = json!({ "architecture": platform.architecture, "os": "linux" });
    let tar = archive(&[Entry::file("f", 0o644, vec![9; 20_000])]);
    let zeros = archive(&[Entry::file("f", 0o644, vec![0; 8 << 20])]);
    let gzipped = gzip(&tar);
    let truncated = gzipped[..gzipped.len() / 2].to_vec();
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let cases: Vec<(&str, Vec<u8>, Digest, &str)> = vec![
        ("forged", gzipped.clone(), Digest::of(b"other"), "is damaged or forged"),
        ("bomb", gzip(&zeros), Digest::of(&zeros), "is larger than 1048576 bytes"),
        ("truncated", truncated, Digest::of(&tar), "it is damaged"),
        ("nonsense", b"no archive".to_vec(), Digest::of(b"no archive"), "it is damaged"),
    ];
    for (name, blob, diff_id, expected) in cases {
        let reference = registry.reference(&format!("evil/{name}:v1"));
        let built = Built::raw(config.clone(), vec![(kind, Bytes::from(blob), diff_id)]);
        built.push(&registry.client(), &reference).await.unwrap();
        let error = store.pull(&registry.client(), &reference, None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(error.to_string().contains(&reference.to_string()), "{name}: {error}");
        assert_eq!(store.get(&reference, None).unwrap(), None);
        assert_eq!(n_layers(folder.path()), 0, "{name}");
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0, "{name}");
    }
}

/// A registry of canned answers: `answer` gets the request's head and says what
/// to write; `None` closes the connection.
async fn canned(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut chunk = [0; 4096];
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut chunk).await {
                        Ok(n) if n > 0 => head.extend_from_slice(&chunk[..n]),
                        _ => return,
                    }
                }
                if let Some(bytes) = answer(&String::from_utf8_lossy(&head)) {
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    host
}

fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let body = br#"{"schemaVersion":2,"manifests":[]}"#;
    let host = canned(|_| Some(http("200 OK", "", body))).await;
    let wanted = Digest::of(b"what was asked for");
    let reference: Reference = format!("{host}/a@{wanted}").parse().unwrap();
    let error = inspect(&client(&host), &reference, 1).await.unwrap_err();
    match error {
        ImageError::DigestMismatch { expected, actual, .. } => {
            assert_eq!((expected, actual), (wanted, Digest::of(body)));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn endless_and_senseless_answers_end() {
    // Says nothing of its length and sends more than any manifest has.
    let endless = canned(|_| {
        let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
        answer.resize(6 << 20, b' ');
        Some(answer)
    })
    .await;
    let lying =
        canned(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{".to_vec())).await;
    let check = async |host: &str, expected: &str| {
        let reference: Reference = format!("{host}/a:v1").parse().unwrap();
        let error = inspect(&client(host), &reference, 1).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&endless, "the manifest of image").await;
    check(&lying, "is larger than 4194304 bytes").await;
    check(&canned(|_| Some(b"what?".to_vec())).await, "cannot be reached").await;
    check(&canned(|_| None).await, "cannot be reached").await;
    check(&canned(|_| Some(http("200 OK", "", b"<html>"))).await, "the manifest of image").await;
    check(&canned(|_| Some(http("429 No", "", b""))).await, "too many requests").await;
    check(&canned(|_| Some(http("503 No", "", b""))).await, "it answers 503").await;
    check(&canned(|_| Some(http("403 No", "", b""))).await, "refuses image").await;
    check(&canned(|_| Some(http("401 No", "", b""))).await, "refuses image").await;
    // Sends the client round in circles.
    check(&canned(|_| Some(http("302 There", "Location: /v2/again\r\n", b""))).await, "redirect")
        .await;
}

#[tokio::test]
async fn a_token_is_fetched_where_one_is_wanted() {
    let body = br#"{"schemaVersion":2,"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,"platform":{"os":"linux","architecture":"arm64"}}]}"#;
    let host = Arc::new(std::sync::OnceLock::<String>::new());
    let own = Arc::clone(&host);
    let address = canned(move |head| {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let lower = head.to_ascii_lowercase();
        if line.contains("/token?") {
            // The password goes to the token server, and only there.
            assert!(
                line.contains("service=reg") && line.contains("scope=repository%3Aa%3Apull"),
                "{line}"
            );
            if !lower.contains(&"authorization: basic dXNlcjpwYXNz".to_ascii_lowercase()) {
                return Some(http("401 Unauthorized", "", b""));
            }
            return Some(http("200 OK", "", br#"{"token":"t0k3n"}"#));
        }
        if lower.contains("authorization: bearer t0k3n") {
            return Some(http("200 OK", "", body));
        }
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"reg\"\r\n",
            own.get().unwrap()
        );
        Some(http("401 Unauthorized", &challenge, b""))
    })
    .await;
    host.set(address.clone()).unwrap();
    let basic = Credential::Basic { user: "user".into(), password: "pass".into() };
    let wrong = Credential::Basic { user: "user".into(), password: "old".into() };
    let config =
        RegistryConfig { insecure_http: vec![address.clone()], ..RegistryConfig::default() };
    // The wrong one is tried first, and does no harm.
    let mut keyring = Keyring::single(&address, wrong);
    keyring.add(Keyring::single(&address, basic));
    let reference: Reference = format!("{address}/a:v1").parse().unwrap();
    let registry = Registry::new(config);
    let info = inspect(&registry.with_keyring(keyring), &reference, 1).await.unwrap();
    assert_eq!(info.kind, ImageKind::Oci { platforms: vec![Platform::linux("arm64", "")] });
    // What one pod may see is not shown to another.
    let error = inspect(&registry, &reference, 1).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let tar =
        archive(&[Entry::file("f", 0o644, (0..200_000_u32).flat_map(u32::to_le_bytes).collect())]);
    let layer = gzip(&tar);
    let platform = Platform::host();
    let config =
        json!({ "architecture": platform.architecture, "os": "linux", "variant": platform.variant,
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar)] } })
        .to_string();
    let manifest = json!({ "schemaVersion": 2,
        "config": { "mediaType": "x", "digest": Digest::of(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": "y", "digest": Digest::of(&layer), "size": layer.len() }] })
    .to_string();
    let n_sent = Arc::new(AtomicUsize::new(0));
    let (sent, blob, config_digest) =
        (Arc::clone(&n_sent), layer.clone(), Digest::of(config.as_bytes()).to_string());
    let host = canned(move |head| {
        if head.contains("/manifests/") {
            return Some(http("200 OK", "", manifest.as_bytes()));
        }
        if head.contains(&config_digest) {
            return Some(http("200 OK", "", config.as_bytes()));
        }
        let range = head.lines().find_map(|l| {
            let value = l.to_ascii_lowercase();
            value
                .strip_prefix("range: bytes=")?
                .trim_end()
                .trim_end_matches('-')
                .parse::<usize>()
                .ok()
        });
        let start = range.unwrap_or(0);
        // A quarter, and the connection breaks.
        let end = (start + blob.len() / 4 + 1).min(blob.len());
        sent.fetch_add(end - start, Ordering::SeqCst);
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", blob.len() - start);
        Some([head.as_bytes(), &blob[start..end]].concat())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let reference: Reference = format!("{host}/a:v1").parse().unwrap();
    let image = store(folder.path()).pull(&client(&host), &reference, None).await.unwrap();
    assert_eq!(fs::metadata(image.layers[0].join("f")).unwrap().len(), 800_000);
    assert_eq!(n_sent.load(Ordering::SeqCst), layer.len(), "every byte once");
}

#[tokio::test]
async fn secrets_never_go_to_a_token_server_in_the_clear() {
    // A registry that is not listed as plain cannot be reached over http at all.
    let host = canned(|_| Some(http("200 OK", "", b"{}"))).await;
    let registry = Registry::new(RegistryConfig::default());
    let reference: Reference = format!("{host}/a:v1").parse().unwrap();
    let error = inspect(&registry, &reference, 1).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
}
