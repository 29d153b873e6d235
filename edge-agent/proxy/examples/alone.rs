//! The plane alone, in the network namespace that it is started in, for benches and
//! for trying things: `alone <run folder> [sk-lookup|tproxy|listeners]`. It takes
//! tables at the socket `proxy.sock` in the run folder, as [`proxy::control`] has
//! them. Other nodes, the master and names are not there.
#![allow(clippy::print_stderr)]

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proxy::links::{BoxFuture, Connection, Flow, Links, Names, Uplink};
use proxy::{Parts, Settings};
use tokio::sync::watch;

#[derive(Debug)]
struct Nobody;

impl Links for Nobody {
    fn open<'a>(&'a self, _: &'a str, _: Flow) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async { Err(io::ErrorKind::NetworkUnreachable.into()) })
    }

    fn send(&self, _: &str, _: Flow, _: &[u8]) -> bool {
        false
    }
}

impl Uplink for Nobody {
    fn dial<'a>(&'a self, _: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async { Err(io::ErrorKind::NetworkUnreachable.into()) })
    }
}

impl Names for Nobody {
    fn datagram<'a>(&'a self, _: SocketAddr, _: &'a [u8]) -> BoxFuture<'a, Option<Vec<u8>>> {
        Box::pin(async { None })
    }

    fn stream(&self, _: SocketAddr, _: Box<dyn Connection>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let usage = "alone <run folder> [sk-lookup|tproxy|listeners]";
    let run_dir = arguments.next().ok_or(usage)?;
    let capture = match arguments.next().and_then(|way| way.into_os_string().into_string().ok()) {
        Some(way) if way == "sk-lookup" => Some(proxy::control::Capture::SkLookup),
        Some(way) if way == "tproxy" => Some(proxy::control::Capture::Tproxy),
        Some(way) if way == "listeners" => Some(proxy::control::Capture::Listeners),
        _ => None,
    };
    let settings = Settings {
        table_file: run_dir.join("table"),
        run_dir,
        capture,
        version: "alone".to_owned(),
        grace: Duration::from_secs(30),
        confine: Some(Vec::new()),
    };
    let (_changes, changes) = watch::channel(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(proxy::run(settings, |_| {
        Ok(Parts {
            links: Arc::new(Nobody),
            uplink: Arc::new(Nobody),
            names: Arc::new(Nobody),
            table: Box::new(|_| ()),
            changes,
            leave: Box::new(|| ()),
            n_linked: Box::new(|| 0),
            close: Box::new(|| Box::pin(async {})),
            paths: Box::new(Vec::new),
            relay: Box::new(|_, _| ()),
        })
    }))?;
    Ok(())
}
