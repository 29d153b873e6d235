//! Registries that lie, images that are built to hurt, and what stays of them:
//! nothing. A registry here is a table of answers by path.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pinnace_image::build::{Entry, archive, gzip};
use pinnace_image::registry::{HostRule, Mirror};
use pinnace_image::{
    Digest, ImageError, InUse, Limits, Platform, Pull, Reference, Registry, RegistryConfig, Store,
    Unpacker, inspect,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry of canned answers.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Table {
    fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.0.lock().unwrap().insert(path.to_owned(), bytes.into());
    }

    fn blob(&self, bytes: impl Into<Vec<u8>>) -> Value {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": "x", "digest": digest, "size": bytes.len()});
        self.put(&format!("/v2/a/blobs/{digest}"), bytes);
        descriptor
    }

    /// A document under its digest and a tag.
    fn document(&self, tag: &str, value: &Value, kind: &str) -> Value {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        self.put(&format!("/v2/a/manifests/{digest}"), bytes.clone());
        self.put(&format!("/v2/a/manifests/{tag}"), bytes);
        descriptor
    }

    /// An image of one layer; `change` may spoil its manifest.
    fn image(
        &self,
        tag: &str,
        tar: &[u8],
        layer: Vec<u8>,
        change: impl FnOnce(&mut Value),
    ) -> Value {
        let host = Platform::host();
        let config = json!({"architecture": host.architecture, "os": "linux", "variant": host.variant,
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(tar)]}});
        let config = self.blob(config.to_string());
        let layer = self.blob(layer);
        let mut manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        change(&mut manifest);
        self.document(tag, &manifest, MANIFEST)
    }

    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let table = self.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let table = table.clone();
                tokio::spawn(async move {
                    let (mut head, mut chunk) = (Vec::new(), [0; 4096]);
                    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                        match stream.read(&mut chunk).await {
                            Ok(n) if n > 0 => head.extend_from_slice(&chunk[..n]),
                            _ => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let found = table.0.lock().unwrap().get(path).cloned();
                    let (status, body) = match found {
                        Some(body) => ("200 OK", body),
                        None => ("404 Not Found", Vec::new()),
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&body).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        host
    }
}

fn client(hosts: &[&str]) -> Registry {
    let insecure_http = hosts.iter().map(|host| (*host).to_owned()).collect();
    Registry::new(RegistryConfig { insecure_http, ..RegistryConfig::default() })
}

fn store(folder: &Path) -> Store {
    let limits = Limits { layer_bytes: 1 << 20, unpacked_bytes: 1 << 20, entries: 1000 };
    Store::open(folder, Unpacker::InProcess, limits).unwrap()
}

fn reference(host: &str, tag: &str) -> Reference {
    format!("{host}/a:{tag}").parse().unwrap()
}

fn n_in(folder: &Path, name: &str) -> usize {
    fs::read_dir(folder.join(name)).unwrap().count()
}

fn file(text: &str) -> Vec<u8> {
    archive(&[Entry::file("f", 0o644, text.as_bytes().to_vec())])
}

#[tokio::test]
async fn documents_that_lie_or_never_end_are_refused_and_leave_nothing() {
    let table = Table::default();
    let tar = file("good");
    let zstd = |bytes: &[u8]| {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    };
    let zeros = archive(&[Entry::file("f", 0o644, vec![0; 32 << 20])]);
    table.image("zstd-bomb", &zeros, zstd(&zeros), |_| ());
    table.image("gzip-bomb", &zeros, gzip(&zeros), |_| ());
    table.image("longer", &tar, gzip(&tar), |m| m["layers"][0]["size"] = json!(10));
    table.image("huge", &tar, gzip(&tar), |m| m["layers"][0]["size"] = json!(u64::MAX));
    table.image("more", &tar, gzip(&tar), |m| {
        let layer = m["layers"][0].clone();
        m["layers"] = json!(vec![layer; 3]);
    });
    table.image("many", &tar, gzip(&tar), |m| {
        let layer = m["layers"][0].clone();
        m["layers"] = json!(vec![layer; 300]);
    });
    table.image("no-config", &tar, gzip(&tar), |m| m["config"]["digest"] = json!(Digest::of(b"?")));
    // The blob is another than its digest.
    let lie = table.image("lie", &tar, gzip(&tar), |_| ());
    let entry = |digest: &Value| {
        let host = Platform::host();
        json!({"mediaType": MANIFEST, "digest": digest, "size": 1, "platform":
            {"os": "linux", "architecture": host.architecture, "variant": host.variant}})
    };
    let inner = json!({"schemaVersion": 2, "manifests": [entry(&lie["digest"])]});
    let inner = table.document("inner", &inner, INDEX);
    let nested = json!({"schemaVersion": 2, "manifests": [entry(&inner["digest"])]});
    table.document("nested", &nested, INDEX);
    let wide = json!({"schemaVersion": 2, "manifests": vec![entry(&lie["digest"]); 2000]});
    table.document("wide", &wide, INDEX);
    let deep =
        format!("{{\"schemaVersion\":2,\"config\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    table.put("/v2/a/manifests/deep", deep);
    table.put("/v2/a/manifests/text", "hello");
    let host = table.serve().await;
    let layer = gzip(&tar);
    let mut other = layer.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let check = async |tag: &str, expected: &str| {
        let error = store.pull(&client(&[&host]), &reference(&host, tag), None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{tag}: {error}");
        assert_eq!(store.get(&reference(&host, tag), None).unwrap(), None);
        assert_eq!(n_in(folder.path(), "layers"), 0, "{tag}");
        assert_eq!(n_in(folder.path(), "refs"), 0, "{tag}");
        assert_eq!(n_in(folder.path(), "tmp"), 0, "{tag}");
    };
    check("zstd-bomb", "larger than 1048576 bytes").await;
    check("gzip-bomb", "larger than 1048576 bytes").await;
    check("longer", "longer than the manifest says").await;
    check("huge", "larger than 1048576 bytes").await;
    check("more", "it names 1 layers and the manifest 3").await;
    check("many", "more than 256 layers").await;
    check("no-config", "does not exist").await;
    check("nested", "it holds another index").await;
    check("wide", "more than 1024 manifests").await;
    check("deep", "the manifest of image").await;
    check("text", "the manifest of image").await;
    table.put(&format!("/v2/a/blobs/{}", Digest::of(&layer)), other);
    check("lie", "is damaged or forged").await;
    let error = inspect(&client(&[&host]), &reference(&host, "nested"), 1).await;
    // For the master an index of platforms is an image, whatever is below.
    assert!(error.is_ok() || matches!(error, Err(ImageError::Malformed { .. })));
    // And the store goes on.
    table.put(&format!("/v2/a/blobs/{}", Digest::of(&layer)), layer.clone());
    store.pull(&client(&[&host]), &reference(&host, "lie"), None).await.unwrap();
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_what_it_lacks_or_lies_about_of_the_registry() {
    let (mirror, origin) = (Table::default(), Table::default());
    let (good, other) = (file("good"), file("other"));
    mirror.image("both", &good, gzip(&good), |_| ());
    origin.image("origin", &other, gzip(&other), |_| ());
    let spoilt = origin.image("spoilt", &good, gzip(&good), |_| ());
    // The mirror has another blob under that name.
    let digest = Digest::of(&gzip(&other));
    mirror.put(&format!("/v2/a/blobs/{digest}"), b"poison".to_vec());
    let (mirror_host, origin_host) = (mirror.serve().await, origin.serve().await);
    let rule = HostRule {
        host: origin_host.clone(),
        http: true,
        mirrors: vec![
            Mirror { host: "127.0.0.1:1".into(), path: String::new(), http: true },
            Mirror { host: mirror_host.clone(), path: String::new(), http: true },
        ],
        ..HostRule::default()
    };
    let registry = Registry::new(RegistryConfig { hosts: vec![rule], ..RegistryConfig::default() });
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let text =
        |image: &pinnace_image::Image| fs::read_to_string(image.layers[0].join("f")).unwrap();
    let pulled = store.pull(&registry, &reference(&origin_host, "both"), None).await.unwrap();
    assert_eq!(text(&pulled), "good");
    assert_eq!(pulled.name, reference(&origin_host, "both").to_string());
    let digest: Digest = spoilt["digest"].as_str().unwrap().parse().unwrap();
    store.pull(&registry, &reference(&origin_host, "spoilt"), Some(digest)).await.unwrap();
    // What nobody has, the registry says so, not the mirror.
    let error = store.pull(&registry, &reference(&origin_host, "none"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn two_images_of_one_name_stay_for_those_who_run_them() {
    let table = Table::default();
    let (first, second) = (file("first"), file("second"));
    let folder = tempfile::tempdir().unwrap();
    let host = table.serve().await;
    let image = reference(&host, "v1");
    let mut digests = Vec::new();
    {
        let store = store(folder.path());
        for tar in [&first, &second] {
            table.image("v1", tar, gzip(tar), |_| ());
            digests.push(store.pull(&client(&[&host]), &image, None).await.unwrap().digest);
        }
    }
    // A restarted agent without network: each pod finds its own.
    let store = store(folder.path());
    for (digest, text) in digests.iter().zip(["first", "second"]) {
        let found = store.get(&image, Some(*digest)).unwrap().unwrap();
        assert_eq!(fs::read_to_string(found.layers[0].join("f")).unwrap(), text);
    }
    assert_eq!(store.get(&image, None).unwrap().unwrap().digest, digests[1]);
    // Only the newest counts as the name; an older one stays by its digest, or its mount.
    let named = InUse { names: BTreeSet::from([image.to_string()]), ..InUse::default() };
    let unused = store.unused(&named, Duration::ZERO).unwrap();
    assert_eq!(unused.iter().map(|u| u.record.digest).collect::<Vec<_>>(), [digests[0]]);
    assert!(store.unused(&named, Duration::from_secs(60)).unwrap().is_empty(), "just asked for");
    let mut both = named.clone();
    both.digests.insert(digests[0]);
    assert!(store.unused(&both, Duration::ZERO).unwrap().is_empty());
    let mounted = BTreeSet::from([folder.path().join("layers").join(Digest::of(&first).hex())]);
    store.forget(&unused[0].record, &mounted).await.unwrap();
    assert_eq!(n_in(folder.path(), "layers"), 2, "a container runs on it");
    store.sweep(&BTreeSet::new()).await.unwrap();
    assert_eq!(n_in(folder.path(), "layers"), 1);
    assert_eq!(store.get(&image, None).unwrap().unwrap().digest, digests[1]);
}

#[tokio::test]
async fn a_collection_leaves_alone_what_a_pull_relies_on() {
    let table = Table::default();
    let host = table.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(store(folder.path()));
    let sweeper = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            loop {
                store.sweep(&BTreeSet::new()).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    for n in 0..30 {
        // Every image shares its lowest layer with the others.
        let tar = file(&format!("image {}", n % 7));
        let tag = format!("v{n}");
        table.image(&tag, &tar, gzip(&tar), |_| ());
        let image = store.pull(&client(&[&host]), &reference(&host, &tag), None).await.unwrap();
        assert!(image.layers.iter().all(|layer| layer.join("f").exists()));
        if n % 3 == 0 {
            let gone = reference(&host, &tag).to_string();
            store.collect(|record| record.name != gone).await.unwrap();
        }
    }
    sweeper.abort();
    for record in store.records().unwrap() {
        let image: Reference = record.name.parse().unwrap();
        let found = store.get(&image, None).unwrap().expect("it is whole");
        assert!(found.layers[0].join("f").exists());
    }
}

#[tokio::test]
async fn who_may_use_an_image_is_kept_with_it() {
    let table = Table::default();
    let tar = file("x");
    table.image("v1", &tar, gzip(&tar), |_| ());
    let host = table.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (registry, image) = (client(&[&host]), reference(&host, "v1"));
    let told = Mutex::new(Vec::new());
    let tell = |done: u64, total: u64| told.lock().unwrap().push((done, total));
    let pull = |access: &'static [String]| Pull {
        registry: &registry,
        reference: &image,
        digest: None,
        access,
        told: &tell,
    };
    let pulled = store.pull_as(&pull(Box::leak(Box::new(["ns/a".to_owned()])))).await.unwrap();
    assert_eq!(pulled.access, ["ns/a"]);
    let size = gzip(&tar).len() as u64;
    assert_eq!(told.lock().unwrap().last(), Some(&(size, size)));
    store.grant(&pulled, &["ns/b".to_owned()]).unwrap();
    assert_eq!(store.get(&image, None).unwrap().unwrap().access, ["ns/a", "ns/b"]);
    // Somebody who needs none has shown that nobody does.
    let open = store.pull_as(&pull(&[])).await.unwrap();
    assert!(open.access.is_empty());
}
