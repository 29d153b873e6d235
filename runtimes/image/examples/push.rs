//! Builds small images and pushes them, for the demo and for trying things out.
//!
//! ```text
//! push --insecure HOST:PORT wasm HOST:PORT/NAME:TAG FILE.wasm
//! push --insecure HOST:PORT oci  HOST:PORT/NAME:TAG [FILE=PATH_IN_IMAGE]... -- COMMAND ARGS...
//! ```
//!
//! An OCI image gets the files, `/tmp`, and for `busybox` a link for each of the
//! few commands a small image needs.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::process::ExitCode;

use pinnace_image::build::{Built, Entry, OciImage};
use pinnace_image::{Reference, Registry, RegistryConfig};

/// Commands of busybox that small images use.
const APPLETS: &str = "cat date echo env head hostname httpd id ls mkdir ps sh sleep tail wget";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(digest) => {
            println!("{digest}");
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("push: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    let mut config = RegistryConfig::default();
    let mut args = args;
    while let [flag, registry, rest @ ..] = args
        && flag == "--insecure"
    {
        config.insecure_http.push(registry.clone());
        args = rest;
    }
    let (reference, built) = match args {
        [kind, reference, file] if kind == "wasm" => (reference, Built::wasm(std::fs::read(file)?)),
        [kind, reference, rest @ ..] if kind == "oci" => (reference, oci(rest)?),
        _ => {
            return Err(
                "say `wasm REFERENCE FILE` or `oci REFERENCE FILE=PATH... -- COMMAND`".into()
            );
        }
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let reference: Reference = reference.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let digest = runtime.block_on(built.push(&Registry::new(config), &reference))?;
    Ok(digest.to_string())
}

fn oci(args: &[String]) -> Result<Built, Box<dyn std::error::Error>> {
    let (files, command) = match args.iter().position(|arg| arg == "--") {
        Some(at) => (&args[..at], args[at + 1..].to_vec()),
        None => (args, Vec::new()),
    };
    let mut entries = vec![Entry::folder("tmp", 0o1777)];
    let mut folders = std::collections::BTreeSet::new();
    for file in files {
        let (from, to) = file.split_once('=').ok_or("a file is FILE=PATH_IN_IMAGE")?;
        let to = to.trim_start_matches('/');
        if let Some((folder, name)) = to.rsplit_once('/') {
            if folders.insert(folder.to_owned()) {
                entries.push(Entry::folder(folder, 0o755));
            }
            if name == "busybox" {
                let link = |applet: &str| Entry::symlink(&format!("{folder}/{applet}"), "busybox");
                entries.extend(APPLETS.split_whitespace().map(link));
            }
        }
        entries.push(Entry::file(to, 0o755, std::fs::read(from)?));
    }
    let image = OciImage {
        layers: vec![entries],
        cmd: command,
        env: vec!["PATH=/bin".to_owned()],
        ..OciImage::default()
    };
    Ok(Built::oci(&image))
}
