//! Layers unpacked by a child process, which is this program itself
//! (`… unpack ARGUMENTS`), so it has no libtest harness.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::process::ExitCode;

use bytes::Bytes;
use pinnace_image::build::{Built, Entry, OciImage, archive, gzip};
use pinnace_image::{Digest, Limits, Platform, Store, Unpacker, unpack_main};
use serde_json::json;
use support::DockerRegistry;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|arg| arg == "unpack") {
        return unpack_main(&args[2..]);
    }
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    executor.block_on(a_child_unpacks_and_says_what_is_wrong());
    println!("test a_child_unpacks_and_says_what_is_wrong ... ok");
    ExitCode::SUCCESS
}

async fn a_child_unpacks_and_says_what_is_wrong() {
    let registry = DockerRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let child = Unpacker::Child { program: "/proc/self/exe".into(), args: vec!["unpack".into()] };
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let store = Store::open(folder.path(), child, limits).unwrap();

    let good = registry.reference("good:v1");
    let image = OciImage {
        layers: vec![vec![Entry::file("f", 0o644, b"unpacked".to_vec())]],
        ..OciImage::default()
    };
    Built::oci(&image).push(&registry.client(), &good).await.unwrap();
    let pulled = store.pull(&registry.client(), &good, None).await.unwrap();
    assert_eq!(fs::read_to_string(pulled.layers[0].join("f")).unwrap(), "unpacked");

    let zeros = archive(&[Entry::file("f", 0o644, vec![0; 8 << 20])]);
    let config = json!({ "architecture": Platform::host().architecture, "os": "linux" });
    for (name, blob, diff_id, expected) in [
        ("bomb", gzip(&zeros), Digest::of(&zeros), "it holds more than 1048576 bytes"),
        ("forged", gzip(&archive(&[])), Digest::of(b"other"), "its content should be sha256:"),
    ] {
        let reference = registry.reference(&format!("{name}:v1"));
        let built = Built::raw(config.clone(), vec![("x", Bytes::from(blob), diff_id)]);
        built.push(&registry.client(), &reference).await.unwrap();
        let error = store.pull(&registry.client(), &reference, None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path().join("layers")).unwrap().count(), 1);
}
