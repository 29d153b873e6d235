//! The API server alone, over TLS with a throw-away authority, for trying
//! clients by hand: no nodes, no controllers, no scheduler.
//!
//! ```text
//! cargo run --release -p pinnace-apiserver --example serve -- DIR
//! kubectl --kubeconfig DIR/admin.kubeconfig get namespaces
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use pinnace_apiserver as apiserver;
use store::MemoryStore;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).context("usage: serve DIR")?);
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_writer(std::io::stderr)
        .init();
    std::fs::create_dir_all(&dir)?;
    let running = support::start(Arc::new(MemoryStore::new())).await;
    let users = [
        ("admin", "admin", Some(apiserver::MASTERS)),
        ("node", "system:node:n1", Some(apiserver::NODES)),
        ("nobody", "nobody", None),
    ];
    for (file, user, group) in users {
        running.write_kubeconfig(&dir.join(format!("{file}.kubeconfig")), user, group);
    }
    tracing::info!("ready api={}", running.url());
    tokio::signal::ctrl_c().await?;
    running.stop().await;
    Ok(())
}
