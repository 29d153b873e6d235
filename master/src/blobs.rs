//! What nodes fetch over their blob connections: compiled modules, and images,
//! of the master's own registry and of others.
//!
//! ```text
//! node ─► what do its pods name? ─► own registry ─► bytes
//!                 │                 cache ────────► bytes
//!                 └─ nothing of it  └─ fetch from the registry, sending what has come
//!                    ─► Forbidden
//! ```
//!
//! So a site whose nodes reach nobody but the master needs nothing else. The
//! cache is bounded, the blob used longest ago goes first; all of it can be
//! fetched again.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use image::registry::{BoxFuture, MASTER_REGISTRY, Pieces};
use image::{Digest, ImageError, Reference};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use wire::artifact::{ArtifactRequestV1, BlobRequestV1, BlobResponseV1, ImageRequestV1};

use crate::artifacts::Artifacts;
use crate::image_cache::ImageCache;
use crate::images::{Access, Registries};

/// How long one request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a request.
const REQUEST_BYTES_MAX: usize = 4096;
/// Bytes of a piece.
const PIECE_BYTES: usize = 64 << 10;

/// What is asked of the task that knows what nodes run.
pub(crate) enum Wanted {
    /// The image of a container and the digest of its module, if it is a WASM one.
    Module(ArtifactRequestV1),
    /// Whether a pod of the node, or a wish for it, names this repository.
    Repository(String, String),
}

/// The answer: who asks for which image, and its module's digest where known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Granted {
    pub(crate) image: String,
    pub(crate) digest: String,
    pub(crate) access: Access,
}

/// Serves the blob connections of nodes.
pub(crate) struct Blobs {
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) cache: Arc<ImageCache>,
}

impl Blobs {
    /// Serves one connection of a node. `find` tells what its pods want.
    pub(crate) async fn serve<S>(
        &self,
        mut stream: S,
        find: impl AsyncFnOnce(Wanted) -> Option<Granted>,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let request = tokio::time::timeout(REQUEST_TIMEOUT, read_request(&mut stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match request {
            BlobRequestV1::Artifact(request) => {
                let granted = find(Wanted::Module(request.clone())).await;
                self.artifacts.serve(&mut stream, &request, granted).await?;
            }
            BlobRequestV1::Image(request) => {
                let found = self.find(&request, find).await;
                match found {
                    Ok(mut pieces) => {
                        respond(&mut stream, &BlobResponseV1::Bytes).await?;
                        while let Some(piece) = pieces.next().await? {
                            stream.write_all(&piece).await?;
                        }
                    }
                    Err(error) => respond(&mut stream, &failure(&error)).await?,
                }
            }
        }
        stream.shutdown().await
    }

    async fn find(
        &self,
        request: &ImageRequestV1,
        find: impl AsyncFnOnce(Wanted) -> Option<Granted>,
    ) -> Result<Box<dyn Pieces>, ImageError> {
        let image: Reference = request.image.parse()?;
        let wanted = Wanted::Repository(image.registry.clone(), image.repository.clone());
        // As if it did not exist: a node learns nothing of what is not its own.
        let Some(granted) = find(wanted).await else {
            return Err(ImageError::NotFound { image: image.to_string() });
        };
        let registry = self.registries.as_who(&granted.access);
        let blob: Option<Digest> = match request.blob.as_str() {
            "" => None,
            text => {
                Some(text.parse().map_err(|_| ImageError::NotFound { image: image.to_string() })?)
            }
        };
        if image.registry == MASTER_REGISTRY {
            return match blob {
                None => {
                    let (_, bytes) = registry.manifest_bytes(&image).await?;
                    Ok(Box::new(Whole(Some(bytes))))
                }
                Some(digest) => {
                    let (_, stream) = registry.blob_pieces(&image, digest, request.offset).await?;
                    Ok(Box::new(Passed(stream)))
                }
            };
        }
        match blob {
            None => {
                let bytes = self.cache.manifest(&registry, &image, &granted.access).await?;
                Ok(Box::new(Whole(Some(bytes))))
            }
            Some(digest) => self.cache.blob(registry, &image, digest, request.offset).await,
        }
    }
}

fn failure(error: &ImageError) -> BlobResponseV1 {
    let reason = match error {
        ImageError::NotFound { .. } => "NotFound",
        ImageError::Unauthorized { .. } => "Unauthorized",
        ImageError::Unreachable { .. } => "Unreachable",
        _ => "ErrImagePull",
    };
    BlobResponseV1::Failed(reason.to_owned(), error.to_string())
}

/// Sends a response behind its length.
pub(crate) async fn respond<S: AsyncWrite + Unpin>(
    stream: &mut S,
    response: &BlobResponseV1,
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(response).expect("a response is plain data");
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&len.to_le_bytes()).await?;
    stream.write_all(&bytes).await
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<BlobRequestV1> {
    let len = usize::from(stream.read_u16_le().await?);
    if REQUEST_BYTES_MAX < len {
        return Err(io::Error::other(format!("a request of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Bytes that are there.
struct Whole(Option<Bytes>);

impl Pieces for Whole {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        let bytes = self.0.take();
        Box::pin(async { Ok(bytes) })
    }
}

/// A blob of a registry, as it comes.
struct Passed(image::registry::BlobStream);

impl Pieces for Passed {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async { self.0.next().await.map_err(|error| io::Error::other(error.to_string())) })
    }
}

/// A file from a byte on.
pub(crate) struct FilePieces {
    file: tokio::fs::File,
}

impl FilePieces {
    pub(crate) async fn open(file: File, offset: u64) -> io::Result<Self> {
        let mut file = tokio::fs::File::from_std(file);
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok(Self { file })
    }
}

impl Pieces for FilePieces {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async {
            let mut piece = vec![0; PIECE_BYTES];
            let n = self.file.read(&mut piece).await?;
            piece.truncate(n);
            Ok((n > 0).then(|| Bytes::from(piece)))
        })
    }
}

/// Sizes of the files in a folder and when they were written, oldest first.
pub(crate) fn by_age(folder: &std::path::Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            files.push((metadata.modified()?, entry.path(), metadata.len()));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path, size)| (path, size)).collect())
}

#[cfg(test)]
mod tests {
    use wire::node::WasmTargetV1;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_none_are_refused() {
        let whole = postcard::to_stdvec(&BlobRequestV1::Artifact(ArtifactRequestV1 {
            pod: [7; 16],
            container: "c".into(),
            target: WasmTargetV1::default(),
            offset: 0,
        }))
        .unwrap();
        let length = |n: usize| u16::try_from(n).unwrap().to_le_bytes().to_vec();
        let mut all = vec![vec![], vec![1], length(0), length(u16::MAX.into())];
        for n in 0..whole.len() {
            all.push([length(n), whole[..n].to_vec()].concat());
            all.push([length(whole.len()), whole[..n].to_vec()].concat());
        }
        all.push([length(REQUEST_BYTES_MAX), vec![0xff; REQUEST_BYTES_MAX]].concat());
        for bytes in all {
            let (mut node, mut stream) = tokio::io::duplex(1 << 16);
            node.write_all(&bytes).await.unwrap();
            node.shutdown().await.unwrap();
            assert!(read_request(&mut stream).await.is_err(), "{bytes:?}");
        }
    }
}
