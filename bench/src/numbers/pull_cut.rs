//! A node pulls an image over a link that is cut again and again: how many bytes
//! of its layers cross the link more than once. The code is the agent's own, the
//! registry Debian's; between them stands a proxy that closes each connection
//! after a number of bytes that no chunk size divides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use image::build::{Built, Entry, OciImage};
use image::{Limits, Platform, Reference, Registry, RegistryConfig, Store, Unpacker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::report::{note, value};
use crate::world::{REGISTRY, World};

/// What is cut off after so many bytes, one after the other.
const CUTS: [u64; 8] = [1, 777, 4_099, 65_537, 131_071, 262_147, 1_000_003, 3_000_017];
/// Headers of the answers, at most: they come again with each connection.
const HEAD_BYTES_MAX: u64 = 1024;

pub(crate) async fn measure(world: &mut World, mebibytes: usize) -> anyhow::Result<()> {
    world.start_registry().await?;
    // Nothing that a compression makes smaller.
    let mut state = 1_u64;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()
    };
    let content: Vec<u8> = (0..mebibytes << 18).flat_map(|_| random()[..4].to_vec()).collect();
    let image = OciImage {
        layers: vec![vec![Entry::file("content", 0o644, content)]],
        platform: Platform::host(),
        ..OciImage::default()
    };
    let config = |host: &str| RegistryConfig {
        insecure_http: vec![host.to_owned()],
        ..RegistryConfig::default()
    };
    let target: Reference = format!("{REGISTRY}/cut:1").parse()?;
    let layers = AtomicU64::new(0);
    let told = |_, size, _| {
        layers.fetch_max(size, Ordering::Relaxed);
    };
    Built::oci(&image).push_telling(&Registry::new(config(REGISTRY)), &target, &told).await?;
    let layer_bytes = layers.into_inner();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    let (crossed, n_cuts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counters = (Arc::clone(&crossed), Arc::clone(&n_cuts));
    let proxy = tokio::spawn(async move {
        let mut n = 0;
        while let Ok((client, _)) = listener.accept().await {
            let cut = CUTS[n % CUTS.len()];
            n += 1;
            tokio::spawn(pass(client, cut, (Arc::clone(&counters.0), Arc::clone(&counters.1))));
        }
    });
    let folder = world.dir().join("cut-store");
    let store = Store::open(&folder, Unpacker::InProcess, Limits::default())?;
    let reference: Reference = format!("{host}/cut:1").parse()?;
    let registry = Registry::new(config(&host));
    let mut n_pulls = 0_u64;
    // A pull gives up when nothing comes at all; a pod tries again.
    let pulled = loop {
        n_pulls += 1;
        ensure!(n_pulls < 1000, "the pull comes to no end");
        match store.pull(&registry, &reference, None).await {
            Ok(image) => break image,
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error).context("the pull failed"),
        }
    };
    proxy.abort();
    ensure!(pulled.layers[0].join("content").exists(), "the image is not whole");
    let (crossed, n_cuts) = (crossed.load(Ordering::Relaxed), n_cuts.load(Ordering::Relaxed));
    // Of each cut connection, what its end had not read yet comes again; heads do anyway.
    let twice = crossed.saturating_sub(layer_bytes + (n_cuts + n_pulls * 3) * HEAD_BYTES_MAX);
    let shown = format!("{twice} of {layer_bytes} bytes, {n_cuts} cuts, {n_pulls} tries");
    value("bytes of a layer pulled twice after cuts", &shown, "0", twice == 0);
    note("heads of answers and manifests not counted");
    Ok(())
}

/// Passes one connection on, and ends it once `left` bytes came back.
async fn pass(mut client: TcpStream, left: u64, counters: (Arc<AtomicU64>, Arc<AtomicU64>)) {
    let Ok(mut server) = TcpStream::connect(REGISTRY).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let back = async {
        let mut left = left + HEAD_BYTES_MAX;
        let mut chunk = vec![0; 16 << 10];
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(chunk.len()).min(chunk.len());
            match from_server.read(&mut chunk[..room]).await {
                Ok(n) if n > 0 => {
                    if to_client.write_all(&chunk[..n]).await.is_err() {
                        return;
                    }
                    counters.0.fetch_add(n as u64, Ordering::Relaxed);
                    left -= n as u64;
                }
                _ => return,
            }
        }
        counters.1.fetch_add(1, Ordering::Relaxed);
    };
    tokio::select! {
        () = back => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
    }
}
