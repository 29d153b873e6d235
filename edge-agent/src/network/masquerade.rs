//! The way out of the node: forwarding, and one masquerade rule in an nftables
//! table of our own.
//!
//! `oifname` matters: without it the rule would also rewrite what the node
//! sends to itself and what one pod sends to another.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Cidr, LINK_PREFIX, NetworkError};

/// Name of our table, shared by the agents of one network namespace.
const TABLE: &str = "pinnace";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// Where `nft` is.
#[must_use]
pub(crate) fn program() -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join("nft")).find(|path| path.is_file())
}

/// Lets the kernel forward. Network namespaces have a switch each; this is ours.
pub(super) fn forward() -> Result<(), NetworkError> {
    let now = std::fs::read_to_string(FORWARD).unwrap_or_default();
    if now.trim() == "1" {
        return Ok(());
    }
    std::fs::write(FORWARD, "1").map_err(|source| NetworkError::Io {
        operation: format!("turn on forwarding in {FORWARD}"),
        source,
    })
}

/// Installs the rule, or brings it to this range.
pub(super) async fn install(tag: &str, cidr: Cidr) -> Result<(), NetworkError> {
    let chain = chain(tag);
    run(&format!(
        "add table ip {TABLE}\n\
         add chain ip {TABLE} {chain} {{ type nat hook postrouting priority 100; policy accept; }}\n\
         flush chain ip {TABLE} {chain}\n\
         add rule ip {TABLE} {chain} ip saddr {cidr} oifname != \"lo\" oifname != \"{LINK_PREFIX}*\" masquerade\n"
    ))
    .await
    .map(drop)
}

/// Removes the rule, and the table with the last chain in it.
pub(super) async fn remove(tag: &str) -> Result<(), NetworkError> {
    let tables = run("list tables ip\n").await?;
    if !tables.lines().any(|line| line.trim() == format!("table ip {TABLE}")) {
        return Ok(());
    }
    let chain = chain(tag);
    let table = run(&format!("list table ip {TABLE}\n")).await?;
    let chains: Vec<&str> = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("chain ")?.split_whitespace().next())
        .collect();
    if chains.iter().all(|name| *name == chain) {
        return run(&format!("delete table ip {TABLE}\n")).await.map(drop);
    }
    if chains.contains(&chain.as_str()) {
        let script = format!("flush chain ip {TABLE} {chain}\ndelete chain ip {TABLE} {chain}\n");
        return run(&script).await.map(drop);
    }
    Ok(())
}

fn chain(tag: &str) -> String {
    format!("postrouting_{tag}")
}

async fn run(script: &str) -> Result<String, NetworkError> {
    let program = program().ok_or_else(|| {
        NetworkError::Masquerade("nft is not installed; install the package nftables".to_owned())
    })?;
    let failed = |error: io::Error| NetworkError::Masquerade(format!("nft: {error}"));
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(script.as_bytes()).await.map_err(failed)?;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(failed)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().next().unwrap_or("no message");
        return Err(NetworkError::Masquerade(format!("nft {}: {first}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
