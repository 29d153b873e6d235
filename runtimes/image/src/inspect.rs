//! What an image is, before anything of it is fetched: for the master, which
//! tells kinds and platforms apart, and fetches WebAssembly modules.
//!
//! Three layouts hold a module: the CNCF's (config `application/vnd.wasm.config.v0+json`,
//! one layer `application/wasm`), the one before it
//! (`application/vnd.wasm.content.layer.v1+wasm`), and an OCI image whose layers
//! hold the module as a file (architecture `wasm`, or an annotation), named by
//! its entrypoint.
//!
//! Source: <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>.

use std::io::Read;

use bytes::Bytes;

use crate::manifest::{self, Descriptor, Document, ImageConfig, Manifest};
use crate::unpack::decompress;
use crate::{Digest, ImageError, Platform, Reference, Registry};

/// Longest image configuration, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// What an image turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// What the reference names: the index, or the manifest where there is no index.
    pub digest: Digest,
    /// What kind of image it is.
    pub kind: ImageKind,
}

/// The two kinds of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// A file system for a container.
    Oci {
        /// Machines it can run on.
        platforms: Vec<Platform>,
    },
    /// A WebAssembly module.
    Wasm(WasmImage),
}

/// A WebAssembly module in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmImage {
    /// Digest of the module's own bytes.
    pub module_digest: Digest,
    /// Number of the module's own bytes.
    pub size: u64,
    /// Core module or component.
    pub kind: WasmKind,
    /// The manifest that holds it.
    manifest: Digest,
}

/// The two kinds of WebAssembly binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WasmKind {
    /// A core module: WASI preview 1.
    Module,
    /// A component: WASI preview 2.
    Component,
}

impl WasmKind {
    /// Tells the kinds apart by the first eight bytes; `None` if it is neither.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes.get(..8)? {
            b"\0asm\x01\0\0\0" => Some(Self::Module),
            // The component model's version, and layer 1.
            [0, b'a', b's', b'm', _, _, 1, 0] => Some(Self::Component),
            _ => None,
        }
    }
}

/// Finds out what an image is. Fetches its documents and, of a module in the
/// CNCF's layouts, the first bytes.
///
/// `module_bytes_max` bounds the module.
///
/// # Errors
/// See [`ImageError`].
pub async fn inspect(
    registry: &Registry,
    image: &Reference,
    module_bytes_max: u64,
) -> Result<ImageInfo, ImageError> {
    let raw = registry.manifest(image).await?;
    let image = &image.at(raw.digest);
    let kind = match parse(image, &raw.bytes)? {
        Document::Manifest(manifest) => {
            inspect_manifest(registry, image, &manifest, raw.digest, module_bytes_max).await?
        }
        Document::Index(entries) => {
            inspect_index(registry, image, &entries, module_bytes_max).await?
        }
    };
    Ok(ImageInfo { digest: raw.digest, kind })
}

/// Fetches a module that [`inspect`] found, verified.
///
/// # Errors
/// See [`ImageError`].
pub async fn fetch_wasm(
    registry: &Registry,
    image: &Reference,
    wasm: &WasmImage,
) -> Result<Bytes, ImageError> {
    let image = &image.at(wasm.manifest);
    let raw = registry.manifest(image).await?;
    let Document::Manifest(manifest) = parse(image, &raw.bytes)? else {
        return Err(malformed(image, "the manifest", "it is an index"));
    };
    let bytes = match manifest.module() {
        Some(layer) => registry.blob_bytes(image, layer.digest, wasm.size, "the module").await?,
        None => fetch_compat(registry, image, &manifest, wasm.size).await?,
    };
    let actual = Digest::of(&bytes);
    if actual != wasm.module_digest {
        return Err(ImageError::DigestMismatch {
            image: image.to_string(),
            what: "the module".into(),
            expected: wasm.module_digest,
            actual,
        });
    }
    Ok(bytes)
}

pub(crate) fn parse(image: &Reference, bytes: &[u8]) -> Result<Document, ImageError> {
    manifest::parse(bytes).map_err(|why| malformed(image, "the manifest", why))
}

pub(crate) fn malformed(image: &Reference, what: &str, why: impl Into<String>) -> ImageError {
    ImageError::Malformed { image: image.to_string(), what: what.to_owned(), why: why.into() }
}

/// An index that names any Linux machine is an OCI image; else a module in it counts.
async fn inspect_index(
    registry: &Registry,
    image: &Reference,
    entries: &[Descriptor],
    module_bytes_max: u64,
) -> Result<ImageKind, ImageError> {
    // Attestations are listed as platform unknown/unknown.
    let platforms: Vec<Platform> = entries
        .iter()
        .filter_map(|entry| entry.platform.clone())
        .filter(|platform| platform.os != "unknown" && !platform.is_wasm())
        .collect();
    if !platforms.is_empty() {
        return Ok(ImageKind::Oci { platforms });
    }
    let is_wasm = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(Platform::is_wasm);
    let Some(entry) = entries.iter().find(is_wasm) else {
        return Ok(ImageKind::Oci { platforms });
    };
    let image = &image.at(entry.digest);
    let raw = registry.manifest(image).await?;
    match parse(image, &raw.bytes)? {
        Document::Manifest(manifest) => {
            inspect_manifest(registry, image, &manifest, entry.digest, module_bytes_max).await
        }
        Document::Index(_) => Err(malformed(image, "the index", "it holds another index")),
    }
}

async fn inspect_manifest(
    registry: &Registry,
    image: &Reference,
    manifest: &Manifest,
    digest: Digest,
    module_bytes_max: u64,
) -> Result<ImageKind, ImageError> {
    if let Some(layer) = manifest.module() {
        if layer.size > module_bytes_max {
            return Err(too_large(image, module_bytes_max));
        }
        let kind = first_bytes(registry, image, layer).await?;
        return Ok(ImageKind::Wasm(WasmImage {
            module_digest: layer.digest,
            size: layer.size,
            kind,
            manifest: digest,
        }));
    }
    let config = fetch_config(registry, image, manifest).await?;
    if config.platform.is_wasm() || manifest.is_compat() {
        let bytes = fetch_compat(registry, image, manifest, module_bytes_max).await?;
        let kind = WasmKind::of(&bytes).ok_or_else(|| not_wasm(image))?;
        return Ok(ImageKind::Wasm(WasmImage {
            module_digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            kind,
            manifest: digest,
        }));
    }
    Ok(ImageKind::Oci { platforms: vec![config.platform] })
}

pub(crate) async fn fetch_config(
    registry: &Registry,
    image: &Reference,
    manifest: &Manifest,
) -> Result<ImageConfig, ImageError> {
    let digest = manifest.config.digest;
    let bytes = registry.blob_bytes(image, digest, CONFIG_BYTES_MAX, "the configuration").await?;
    ImageConfig::parse(&bytes).map_err(|why| malformed(image, "the configuration", why))
}

fn not_wasm(image: &Reference) -> ImageError {
    malformed(image, "the module", "it does not begin as WebAssembly does")
}

fn too_large(image: &Reference, limit: u64) -> ImageError {
    ImageError::TooLarge {
        image: image.to_string(),
        what: "the module".into(),
        limit,
        unit: "bytes",
    }
}

async fn first_bytes(
    registry: &Registry,
    image: &Reference,
    layer: &Descriptor,
) -> Result<WasmKind, ImageError> {
    let (start, mut stream) = registry.blob(image, layer.digest, 0, Some(7)).await?;
    let mut head = Vec::new();
    while head.len() < 8 && start == 0 {
        match stream.next().await? {
            Some(bytes) => head.extend_from_slice(&bytes[..bytes.len().min(8)]),
            None => break,
        }
    }
    WasmKind::of(&head).ok_or_else(|| not_wasm(image))
}

/// The module among the files of an OCI image.
async fn fetch_compat(
    registry: &Registry,
    image: &Reference,
    manifest: &Manifest,
    limit: u64,
) -> Result<Bytes, ImageError> {
    let config = fetch_config(registry, image, manifest).await?;
    let entry = config.entrypoint.first().or_else(|| config.cmd.first());
    let wanted = entry.map(|entry| entry.trim_start_matches(['/', '.']).to_owned());
    // The upper layers win.
    for layer in manifest.layers.iter().rev() {
        if layer.size > limit {
            return Err(too_large(image, limit));
        }
        let blob = registry.blob_bytes(image, layer.digest, limit, "a layer").await?;
        let (wanted, image) = (wanted.clone(), image.clone());
        let found = tokio::task::spawn_blocking(move || {
            find_module(&image, &blob, wanted.as_deref(), limit)
        });
        let found = found.await.unwrap_or_else(|_| Ok(None))?;
        if let Some(bytes) = found {
            return Ok(bytes);
        }
    }
    Err(malformed(image, "the image", "no layer holds the module that its entrypoint names"))
}

fn find_module(
    image: &Reference,
    blob: &[u8],
    wanted: Option<&str>,
    limit: u64,
) -> Result<Option<Bytes>, ImageError> {
    let bad = |error: std::io::Error| malformed(image, "a layer", error.to_string());
    // The archive around the module is small; what is skipped is bounded too.
    let reader = decompress(blob).map_err(bad)?.take(limit.saturating_mul(2));
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let path = entry.path().map_err(bad)?.to_string_lossy().into_owned();
        let path = path.trim_start_matches(['/', '.']);
        let is_it = wanted.map_or_else(|| path.ends_with(".wasm"), |wanted| path == wanted);
        if !is_it || !entry.header().entry_type().is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(limit + 1).read_to_end(&mut bytes).map_err(bad)?;
        if bytes.len() as u64 > limit {
            return Err(too_large(image, limit));
        }
        return Ok(Some(bytes.into()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_apart() {
        assert_eq!(WasmKind::of(b"\0asm\x01\0\0\0rest"), Some(WasmKind::Module));
        assert_eq!(WasmKind::of(b"\0asm\x0d\0\x01\0rest"), Some(WasmKind::Component));
        for bad in [&b""[..], b"\0asm", b"\x7fELF\x01\0\0\0", b"\0asm\x02\0\0\0"] {
            assert_eq!(WasmKind::of(bad), None, "{bad:?}");
        }
    }
}
