//! Where the programs under test are.
//!
//! `PINNACE_PROGRAMS` names their folder; `scripts/test` sets it to a copy of
//! what `scripts/build` made, since a test build of the whole workspace may
//! replace the files in `target/release` by ones with other features. Without
//! it they come from `target/release`, and are built if they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// The workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// `pinnace-master`, `pinnace-agent` or `pinnace`.
pub(crate) fn program(name: &str) -> PathBuf {
    match std::env::var_os("PINNACE_PROGRAMS") {
        Some(folder) => {
            let path = PathBuf::from(folder).join(name);
            assert!(path.is_file(), "PINNACE_PROGRAMS: {} does not exist", path.display());
            path
        }
        None => {
            build_missing();
            root().join("target/release").join(name)
        }
    }
}

/// A WASM program of `examples/guests`, such as `greeter`, for `wasip1` or `wasip2`.
pub(crate) fn guest(name: &str, os: &str) -> Vec<u8> {
    build_missing();
    let path = guest_path(name, os);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A tool that `scripts/setup` fetched.
pub(crate) fn tool(name: &str) -> PathBuf {
    let path = root().join("target/tools").join(name);
    assert!(path.is_file(), "{} does not exist: run scripts/setup", path.display());
    path
}

fn guest_path(name: &str, os: &str) -> PathBuf {
    root().join(format!("examples/guests/target/wasm32-{os}/release/{name}.wasm"))
}

fn build_missing() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let programs = ["pinnace-master", "pinnace-agent", "pinnace"];
        let are_there =
            programs.iter().all(|name| root().join("target/release").join(name).exists())
                && ["wasip1", "wasip2"].iter().all(|os| guest_path("greeter", os).exists())
                && guest_path("web", "wasip2").exists();
        if !are_there {
            let status = Command::new(root().join("scripts/build")).status();
            assert!(status.is_ok_and(|status| status.success()), "scripts/build fails");
        }
    });
}
