//! Builds small images and pushes them: for the demo, the tests and the CLI.
//!
//! ```no_run
//! # async fn example(registry: &pinnace_image::Registry) -> Result<(), pinnace_image::ImageError> {
//! use pinnace_image::build::{Built, Entry, OciImage};
//! let layer = vec![Entry::folder("tmp", 0o1777), Entry::file("hello", 0o755, b"#!/bin/sh\n".to_vec())];
//! let image = OciImage { layers: vec![layer], cmd: vec!["/hello".into()], ..OciImage::default() };
//! let built = Built::index(vec![Built::oci(&image)]);
//! built.push(registry, &"localhost:5000/hello:v1".parse()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The same input gives the same digests: no times, no names of this machine.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::layout::{self, LayoutError, Told};
use crate::manifest::{
    OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, WASM_CONFIG, WASM_LAYER,
};
use crate::{Digest, ImageError, Platform, Reference, Registry, WasmKind, registry, signature};

/// One file, folder or link of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path from the root, without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub content: Content,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file with these bytes.
    File(Vec<u8>),
    /// A folder.
    Folder,
    /// A symbolic link to this.
    Symlink(String),
    /// A second name of this file.
    Hardlink(String),
}

impl Entry {
    /// A file of root's.
    #[must_use]
    pub fn file(path: &str, mode: u32, bytes: Vec<u8>) -> Self {
        Self { path: path.into(), mode, uid: 0, gid: 0, content: Content::File(bytes) }
    }

    /// A folder of root's.
    #[must_use]
    pub fn folder(path: &str, mode: u32) -> Self {
        Self { path: path.into(), mode, uid: 0, gid: 0, content: Content::Folder }
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        let content = Content::Symlink(target.into());
        Self { path: path.into(), mode: 0o777, uid: 0, gid: 0, content }
    }
}

/// An image to build.
#[derive(Clone, Debug, Default)]
pub struct OciImage {
    /// Lowest first.
    pub layers: Vec<Vec<Entry>>,
    /// Machine it is for; this one where empty.
    pub platform: Platform,
    /// The command.
    pub entrypoint: Vec<String>,
    /// Its arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `USER`.
    pub user: String,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `LABEL`s.
    pub labels: BTreeMap<String, String>,
}

/// An image as a registry takes it.
#[derive(Clone, Debug)]
pub struct Built {
    /// Blobs, then inner manifests, that have to be there first.
    blobs: Vec<(Digest, Bytes)>,
    inner: Vec<Document>,
    top: Document,
    platform: Option<Platform>,
}

#[derive(Clone, Debug)]
struct Document {
    media_type: &'static str,
    bytes: Bytes,
}

impl Document {
    fn new(media_type: &'static str, value: &Value) -> Self {
        Self { media_type, bytes: value.to_string().into() }
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
}

impl Built {
    /// An OCI image for one machine.
    #[must_use]
    pub fn oci(image: &OciImage) -> Self {
        let platform =
            if image.platform.os.is_empty() { Platform::host() } else { image.platform.clone() };
        let mut blobs = Vec::new();
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for entries in &image.layers {
            let tar = archive(entries);
            diff_ids.push(Digest::of(&tar));
            layers.push(add(&mut blobs, OCI_LAYER_GZIP, gzip(&tar).into()));
        }
        let mut config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {
                "Entrypoint": image.entrypoint,
                "Cmd": image.cmd,
                "Env": image.env,
                "User": image.user,
                "WorkingDir": image.working_dir,
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        if !image.labels.is_empty() {
            config["config"]["Labels"] = json!(image.labels);
        }
        if !platform.variant.is_empty() {
            config["variant"] = json!(platform.variant);
        }
        let config = add(&mut blobs, OCI_CONFIG, config.to_string().into());
        Self::manifest(blobs, &config, &layers, Some(platform))
    }

    /// An image from blobs of any kind, however wrong: `layers` as (media type,
    /// bytes, diff_id). For tests of those who read images.
    #[must_use]
    pub fn raw(config: Value, layers: Vec<(&str, Bytes, Digest)>) -> Self {
        let mut blobs = Vec::new();
        let diff_ids: Vec<Digest> = layers.iter().map(|(_, _, diff_id)| *diff_id).collect();
        let layers: Vec<Value> = layers
            .into_iter()
            .map(|(media_type, bytes, _)| add(&mut blobs, media_type, bytes))
            .collect();
        let mut config = config;
        if !diff_ids.is_empty() {
            config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        }
        let config = add(&mut blobs, OCI_CONFIG, config.to_string().into());
        Self::manifest(blobs, &config, &layers, None)
    }

    /// The signatures of an image, as cosign pushes them: documents that were
    /// signed, and the signature of each in base64. Push it under [`signature::tag`].
    #[must_use]
    pub fn signatures(signed: Vec<(Bytes, String)>) -> Self {
        let mut blobs = Vec::new();
        let layers: Vec<Value> = signed
            .into_iter()
            .map(|(payload, text)| {
                let mut layer = add(&mut blobs, signature::PAYLOAD_MEDIA_TYPE, payload);
                layer["annotations"] = json!({ signature::SIGNATURE_ANNOTATION: text });
                layer
            })
            .collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = add(&mut blobs, OCI_CONFIG, config.to_string().into());
        Self::manifest(blobs, &config, &layers, None)
    }

    /// A WebAssembly module or component in the CNCF's layout.
    #[must_use]
    pub fn wasm(module: Vec<u8>) -> Self {
        let component = WasmKind::of(&module) == Some(WasmKind::Component);
        let module = Bytes::from(module);
        let config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": "wasm",
            "os": if component { "wasip2" } else { "wasip1" },
            "layerDigests": [Digest::of(&module)],
        });
        let mut blobs = Vec::new();
        let layer = add(&mut blobs, WASM_LAYER, module);
        let config = add(&mut blobs, WASM_CONFIG, config.to_string().into());
        Self::manifest(blobs, &config, &[layer], None)
    }

    fn manifest(
        blobs: Vec<(Digest, Bytes)>,
        config: &Value,
        layers: &[Value],
        platform: Option<Platform>,
    ) -> Self {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": layers,
        });
        let top = Document::new(OCI_MANIFEST, &manifest);
        Self { blobs, inner: Vec::new(), top, platform }
    }

    /// One name for images of several machines.
    #[must_use]
    pub fn index(images: Vec<Self>) -> Self {
        let (mut blobs, mut inner, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for image in images {
            let mut entry = json!({
                "mediaType": image.top.media_type,
                "digest": image.top.digest(),
                "size": image.top.bytes.len(),
            });
            if let Some(platform) = &image.platform {
                entry["platform"] =
                    json!({ "os": platform.os, "architecture": platform.architecture });
                if !platform.variant.is_empty() {
                    entry["platform"]["variant"] = json!(platform.variant);
                }
            }
            entries.push(entry);
            blobs.extend(image.blobs);
            inner.push(image.top);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        Self { blobs, inner, top: Document::new(OCI_INDEX, &index), platform: None }
    }

    /// Digest of the index, or of the manifest where there is no index.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.top.digest()
    }

    /// The machine it is for; `None` for an index and for what runs anywhere.
    #[must_use]
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// Writes it as an OCI layout: into a folder, or an archive where the name ends
    /// in `.tar`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write_layout(&self, path: &Path, name: &str) -> Result<(), LayoutError> {
        let mut blobs: BTreeMap<Digest, Bytes> = self.blobs.iter().cloned().collect();
        for document in self.inner.iter().chain([&self.top]) {
            blobs.insert(document.digest(), document.bytes.clone());
        }
        let files = layout::files((self.top.media_type, &self.top.bytes), &blobs, name);
        if path.extension().is_some_and(|extension| extension == "tar") {
            let disk = |source| LayoutError::Disk { path: path.to_owned(), source };
            let out = std::fs::File::create(path).map_err(disk)?;
            return layout::write_archive(&files, std::io::BufWriter::new(out)).map_err(disk);
        }
        layout::write_folder(&files, path)
    }

    /// Uploads everything that the registry lacks, and gives it the reference's tag.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn push(&self, registry: &Registry, image: &Reference) -> Result<Digest, ImageError> {
        self.push_telling(registry, image, &|_, _, _| ()).await
    }

    /// The same, telling of each blob what became of it.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn push_telling(
        &self,
        registry: &Registry,
        image: &Reference,
        told: Told<'_>,
    ) -> Result<Digest, ImageError> {
        for (digest, bytes) in &self.blobs {
            let content = registry::Content::Bytes(bytes.clone());
            let done = registry.push_blob(image, *digest, &content).await?;
            told(*digest, bytes.len() as u64, done);
        }
        for document in &self.inner {
            let name = document.digest().to_string();
            let bytes = document.bytes.clone();
            registry.push_manifest(image, &name, document.media_type, bytes).await?;
        }
        let name = image.tag.clone().unwrap_or_else(|| self.digest().to_string());
        registry.push_manifest(image, &name, self.top.media_type, self.top.bytes.clone()).await?;
        Ok(self.digest())
    }
}

fn add(blobs: &mut Vec<(Digest, Bytes)>, media_type: &str, bytes: Bytes) -> Value {
    let digest = Digest::of(&bytes);
    let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
    blobs.push((digest, bytes));
    descriptor
}

/// Writes entries as a tar archive, in their order.
///
/// # Panics
/// A path that does not fit into an archive.
#[must_use]
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(0);
        header.set_size(0);
        let path = &entry.path;
        let appended = match &entry.content {
            Content::File(bytes) => {
                header.set_size(bytes.len() as u64);
                header.set_entry_type(tar::EntryType::Regular);
                builder.append_data(&mut header, path, bytes.as_slice())
            }
            Content::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, path, std::io::empty())
            }
            Content::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target)
            }
            Content::Hardlink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target)
            }
        };
        appended.expect("the path fits, and memory takes every write");
    }
    builder.into_inner().expect("memory takes every write")
}

/// Compresses as registries expect it.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}
