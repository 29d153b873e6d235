//! OCI image layouts: a folder, or the same in a tar archive (what `skopeo`,
//! `buildah` and `docker save` write), read for pushing and written by builds.
//!
//! ```text
//! oci-layout             {"imageLayoutVersion": "1.0.0"}
//! index.json             the images in it, by the annotation org.opencontainers.image.ref.name
//! blobs/sha256/<hex>     everything else
//! ```
//!
//! Source: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::manifest::{self, Descriptor, Document, OCI_INDEX};
use crate::registry::{Content, MANIFEST_BYTES_MAX, Upload};
use crate::{Digest, ImageError, Reference, Registry};

/// The annotation that names an image of a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most files of an archive.
const ENTRIES_MAX: usize = 100_000;
/// How deep indexes may hold indexes.
const DEPTH_MAX: u32 = 4;

/// Why a layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The disk refuses.
    #[error("{}: {source}", path.display())]
    Disk {
        /// What was read or written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no layout, or not a whole one.
    #[error("{}: {why}", path.display())]
    Bad {
        /// The layout.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// An OCI layout on disk.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    /// Where each file of an archive begins, and its length; none for a folder.
    entries: Option<BTreeMap<String, (u64, u64)>>,
}

/// What is told while a layout is pushed: a blob, and what became of it.
pub type Told<'a> = &'a dyn Fn(Digest, u64, Upload);

impl Layout {
    /// Opens a folder or an archive.
    ///
    /// # Errors
    /// It is neither.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let disk = |source| LayoutError::Disk { path: path.to_owned(), source };
        let entries = if std::fs::metadata(path).map_err(disk)?.is_dir() {
            None
        } else {
            let file = File::open(path).map_err(disk)?;
            Some(
                read_archive(file)
                    .map_err(|why| LayoutError::Bad { path: path.to_owned(), why })?,
            )
        };
        let layout = Self { path: path.to_owned(), entries };
        if layout.content("oci-layout").is_none() {
            return Err(layout.bad(
                "there is no oci-layout in it: name an OCI layout or its tar, as `pinnace image \
                 build -o`, `skopeo copy … oci-archive:FILE` or `docker save` write it",
            ));
        }
        Ok(layout)
    }

    fn bad(&self, why: impl Into<String>) -> LayoutError {
        LayoutError::Bad { path: self.path.clone(), why: why.into() }
    }

    fn content(&self, name: &str) -> Option<Content> {
        match &self.entries {
            Some(entries) => {
                let (offset, size) = *entries.get(name)?;
                Some(Content::File { path: self.path.clone(), offset, size })
            }
            None => {
                let path = self.path.join(name);
                let file =
                    std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
                Some(Content::File { path, offset: 0, size: file.len() })
            }
        }
    }

    fn document(&self, name: &str) -> Result<Bytes, LayoutError> {
        let content = self.content(name).ok_or_else(|| self.bad(format!("{name} is missing")))?;
        if content.size() > MANIFEST_BYTES_MAX {
            return Err(self.bad(format!("{name} is larger than 4 MiB")));
        }
        content
            .read(0, content.size())
            .map_err(|source| LayoutError::Disk { path: self.path.clone(), source })
    }

    fn blob(&self, digest: Digest) -> Result<Content, LayoutError> {
        let name = format!("blobs/sha256/{}", digest.hex());
        self.content(&name).ok_or_else(|| self.bad(format!("{name} is missing")))
    }

    /// What is in it: names (empty where it has none) and descriptors.
    fn images(&self) -> Result<Vec<(String, Descriptor)>, LayoutError> {
        let bytes = self.document("index.json")?;
        let index: Value = serde_json::from_slice(&bytes)
            .map_err(|error| self.bad(format!("index.json: {error}")))?;
        let entries = index["manifests"].as_array().into_iter().flatten();
        let images = entries.filter_map(|entry| {
            let descriptor: Descriptor = serde_json::from_value(entry.clone()).ok()?;
            Some((descriptor.annotations.get(REF_NAME).cloned().unwrap_or_default(), descriptor))
        });
        Ok(images.take(manifest::MANIFESTS_MAX).collect())
    }

    /// The image that is meant, and its media type: the only one, or the one of that name or tag.
    fn root(&self, wanted: Option<&str>) -> Result<Descriptor, LayoutError> {
        let mut images = self.images()?;
        let is_it = |name: &str, wanted: &str| {
            name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
        };
        if let Some(wanted) = wanted
            && images.iter().any(|(name, _)| is_it(name, wanted))
        {
            images.retain(|(name, _)| is_it(name, wanted));
        }
        let digests: BTreeSet<Digest> = images.iter().map(|(_, image)| image.digest).collect();
        match (digests.len(), images.pop()) {
            (1, Some((_, image))) => Ok(image),
            (0, _) => Err(self.bad("index.json names no image")),
            (n, _) => Err(self.bad(format!(
                "it holds {n} images and none of the wanted name: split it, or tag one so"
            ))),
        }
    }

    /// Pushes the image of that name in the layout (or the only one), and gives it
    /// the reference's tag. Returns its digest.
    ///
    /// # Errors
    /// The layout is not whole, or the registry refuses.
    pub async fn push(
        &self,
        registry: &Registry,
        image: &Reference,
        name: Option<&str>,
        told: Told<'_>,
    ) -> Result<Digest, PushError> {
        let root = self.root(name.or(image.tag.as_deref()))?;
        let mut seen = BTreeSet::new();
        let mut documents = Vec::new();
        self.collect(&root, 0, &mut seen, &mut documents)?;
        let mut sent = BTreeSet::new();
        for (_, document) in &documents {
            let Ok(Document::Manifest(manifest)) = manifest::parse(document) else { continue };
            for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                if !sent.insert(blob.digest) {
                    continue;
                }
                let content = self.blob(blob.digest)?;
                let done = registry.push_blob(image, blob.digest, &content).await?;
                told(blob.digest, content.size(), done);
            }
        }
        let top = documents.len() - 1;
        for (n, (descriptor, bytes)) in documents.iter().enumerate() {
            let digest = descriptor.digest.to_string();
            let name = if n == top { image.tag.as_ref().unwrap_or(&digest) } else { &digest };
            let kind = media_type(descriptor, bytes);
            registry.push_manifest(image, name, &kind, bytes.clone()).await?;
        }
        Ok(root.digest)
    }

    /// The documents below one, inner ones first.
    fn collect(
        &self,
        descriptor: &Descriptor,
        depth: u32,
        seen: &mut BTreeSet<Digest>,
        documents: &mut Vec<(Descriptor, Bytes)>,
    ) -> Result<(), LayoutError> {
        if depth > DEPTH_MAX || seen.len() > manifest::MANIFESTS_MAX {
            return Err(self.bad("its indexes are too many or too deep"));
        }
        if !seen.insert(descriptor.digest) {
            return Ok(());
        }
        let bytes = self.document(&format!("blobs/sha256/{}", descriptor.digest.hex()))?;
        if Digest::of(&bytes) != descriptor.digest {
            return Err(self.bad(format!("{} is damaged", descriptor.digest)));
        }
        match manifest::parse(&bytes) {
            Ok(Document::Index(entries)) => {
                for entry in &entries {
                    self.collect(entry, depth + 1, seen, documents)?;
                }
            }
            Ok(Document::Manifest(_)) => {}
            Err(why) => return Err(self.bad(format!("{}: {why}", descriptor.digest))),
        }
        documents.push((descriptor.clone(), bytes));
        Ok(())
    }
}

/// Why a layout was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] ImageError),
}

/// What a document says it is; else what it was found under.
fn media_type(descriptor: &Descriptor, bytes: &[u8]) -> String {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match value["mediaType"].as_str() {
        Some(kind) => kind.to_owned(),
        None => descriptor.media_type.clone(),
    }
}

/// Finds the files of an archive. Only their places are kept.
fn read_archive(file: File) -> Result<BTreeMap<String, (u64, u64)>, String> {
    let mut head = [0; 4];
    let mut at_start = &file;
    let n = at_start.read(&mut head).map_err(|error| error.to_string())?;
    if head[..n].starts_with(&[0x1f, 0x8b]) || head[..n].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err("it is compressed: unpack it first (gunzip, zstd -d)".into());
    }
    io::Seek::seek(&mut &file, io::SeekFrom::Start(0)).map_err(|error| error.to_string())?;
    let mut archive = tar::Archive::new(io::BufReader::new(&file));
    let mut found = BTreeMap::new();
    let entries = archive.entries_with_seek().map_err(|error| error.to_string())?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("it is no tar archive: {error}"))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(|error| error.to_string())?;
        let name = path.to_string_lossy().trim_start_matches("./").to_owned();
        found.insert(name, (entry.raw_file_position(), entry.size()));
        if found.len() > ENTRIES_MAX {
            return Err("it holds too many files".into());
        }
    }
    Ok(found)
}

/// The files of a layout with one image: its top document, and every blob.
pub(crate) fn files(
    top: (&str, &Bytes),
    blobs: &BTreeMap<Digest, Bytes>,
    name: &str,
) -> Vec<(String, Bytes)> {
    let (kind, bytes) = top;
    let mut entry = json!({ "mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len() });
    if !name.is_empty() {
        entry["annotations"] = json!({ REF_NAME: name });
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    let mut files = vec![
        ("oci-layout".to_owned(), Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#)),
        ("index.json".to_owned(), index.to_string().into()),
    ];
    let blob = |(digest, bytes): (&Digest, &Bytes)| {
        (format!("blobs/sha256/{}", digest.hex()), bytes.clone())
    };
    files.extend(blobs.iter().map(blob));
    files
}

/// Writes files as an archive; the same files give the same bytes.
pub(crate) fn write_archive(files: &[(String, Bytes)], out: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(out);
    for folder in ["blobs/", "blobs/sha256/"] {
        let mut header = header(0o755, 0);
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, folder, io::empty())?;
    }
    for (name, bytes) in files {
        builder.append_data(&mut header(0o644, bytes.len() as u64), name, &bytes[..])?;
    }
    builder.into_inner()?.flush()
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Writes files below a folder.
pub(crate) fn write_folder(files: &[(String, Bytes)], folder: &Path) -> Result<(), LayoutError> {
    std::fs::create_dir_all(folder.join("blobs/sha256"))
        .map_err(|source| LayoutError::Disk { path: folder.to_owned(), source })?;
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| LayoutError::Disk { path, source })?;
    }
    Ok(())
}
