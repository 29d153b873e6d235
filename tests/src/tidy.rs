//! Checks that the workspace keeps its shape: which crate knows which, that
//! every file says what it is, and that data files can be read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect;
use serde_json::Value;

use crate::harness::programs::root;

/// `crate -> crate` edges between members, from `cargo metadata`; those of tests
/// are left out, unless `of_tests`.
fn edges(of_tests: bool) -> String {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages is an array");
    let members: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let short = |name: &str| name.strip_prefix("pinnace-").unwrap_or("cli").to_owned();
    let mut edges = BTreeSet::new();
    for package in packages {
        let from = package["name"].as_str().expect("a package has a name");
        for dependency in package["dependencies"].as_array().expect("dependencies is an array") {
            let to = dependency["name"].as_str().expect("a dependency has a name");
            if members.contains(to) && (of_tests || dependency["kind"].is_null()) {
                edges.insert(format!("{} -> {}\n", short(from), short(to)));
            }
        }
    }
    edges.into_iter().collect()
}

#[test]
fn crates_depend_downwards_only() {
    expect![[r#"
        agent -> api
        agent -> front
        agent -> image
        agent -> lower
        agent -> oci
        agent -> proxy
        agent -> runtime
        agent -> wasm
        agent -> wire
        apiserver -> api
        apiserver -> front
        apiserver -> store
        bench -> image
        bench -> proxy
        cli -> api
        cli -> image
        cli -> store
        cli -> wire
        controllers -> api
        controllers -> scheduler
        dispatch -> wire
        front -> api
        front -> wire
        gateway -> wire
        lower -> api
        lower -> wire
        master -> api
        master -> apiserver
        master -> controllers
        master -> dispatch
        master -> front
        master -> gateway
        master -> image
        master -> lower
        master -> registry
        master -> store
        master -> wasm
        master -> wire
        oci -> runtime
        registry -> image
        scheduler -> api
        wasm -> runtime
        wasm -> wire
    "#]]
    .assert_eq(&edges(false));
}

#[test]
fn the_object_model_and_the_messages_know_no_other_crate_even_in_tests() {
    let edges = edges(true);
    for crate_name in ["api", "wire", "store", "scheduler"] {
        let of: Vec<&str> =
            edges.lines().filter(|line| line.starts_with(&format!("{crate_name} ->"))).collect();
        let allowed: &[&str] = if crate_name == "scheduler" { &["scheduler -> api"] } else { &[] };
        assert_eq!(of, allowed, "{crate_name}");
    }
}

/// Files of the workspace with this ending, without build output.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("it can be read").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let is_hidden = name.to_str().is_none_or(|name| name.starts_with('.'));
            if is_hidden || name == "target" {
                continue;
            }
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), ending, &mut found);
    found.sort();
    found
}

#[test]
fn every_file_says_what_it_is_and_is_short_enough_to_read() {
    let mut wrong = Vec::new();
    let sources = files(".rs");
    assert!(sources.len() > 100, "the workspace was not found");
    for path in sources {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let header = first.strip_prefix("//!").unwrap_or_default().trim();
        if header.is_empty() || header == "Stub." {
            wrong.push(format!("{}: begins with {first:?}", path.display()));
        }
        let n_lines = text.lines().count();
        if n_lines > 1000 {
            wrong.push(format!("{}: {n_lines} lines", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn boards_are_data_that_can_be_read() {
    let boards: Vec<PathBuf> = files("/board.toml");
    assert!(!boards.is_empty());
    for path in boards {
        let shown = path.display();
        let text = fs::read_to_string(&path).expect("UTF-8");
        let board: toml::Table = toml::from_str(&text).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert!(!board["name"].as_str().unwrap_or_default().is_empty(), "{shown}: name");
        let tier = board["tier"].as_integer().unwrap_or_default();
        assert!((1..=3).contains(&tier), "{shown}: tier {tier}");
        let targets = board["targets"].as_array().expect("targets is a list");
        for target in targets {
            let target = target.as_str().unwrap_or_default();
            let is_linux = target.ends_with("-linux-gnu") || target.ends_with("-linux-gnueabihf");
            assert!(is_linux || target.contains("-linux-musl"), "{shown}: {target}");
        }
        assert!(board["memory_mib"].is_array(), "{shown}: memory_mib");
        assert!(board["recognise"]["device_tree_model"].is_array(), "{shown}: recognise");
        for need in board.get("kernel").and_then(toml::Value::as_array).into_iter().flatten() {
            for key in ["needs", "check", "fix"] {
                assert!(need[key].is_str(), "{shown}: kernel.{key}");
            }
        }
        let folder = path.parent().expect("it is in a folder");
        assert!(folder.join("README.md").is_file(), "{shown}: no README.md beside it");
    }
}

#[test]
fn every_target_of_a_board_is_one_that_cross_and_the_workspace_know() {
    let text = fs::read_to_string(root().join("Cross.toml")).expect("Cross.toml is there");
    let cross: toml::Table = toml::from_str(&text).expect("Cross.toml is TOML");
    let known = cross["target"].as_table().expect("it has targets");
    for path in files("/board.toml") {
        let board: toml::Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for target in board["targets"].as_array().unwrap() {
            let target = target.as_str().unwrap();
            assert!(known.contains_key(target), "{}: {target}", path.display());
        }
    }
}

#[test]
fn members_are_listed_one_by_one_and_complete() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let workspace: toml::Table = toml::from_str(&text).unwrap();
    let listed: BTreeSet<PathBuf> = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| root().join(member.as_str().unwrap()).join("Cargo.toml"))
        .collect();
    let guests = root().join("examples/guests");
    let found: BTreeSet<PathBuf> = files("/Cargo.toml")
        .into_iter()
        .filter(|path| !path.starts_with(&guests) && path.parent() != Some(root()))
        .filter(|path| fs::read_to_string(path).unwrap().contains("[package]"))
        .collect();
    assert_eq!(found, listed);
}
