//! Images through the master: those of its own registry, and those of registries
//! that this node cannot reach. One blob connection of the node port for each part.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use image::registry::{BoxFuture, MANIFEST_BYTES_MAX, Origin, Pieces};
use image::{Digest, ImageError, Reference};
use tokio::io::AsyncReadExt;
use wire::artifact::{BlobRequestV1, BlobResponseV1, ImageRequestV1};

use crate::artifacts::{Connection, Dial, quiet, receive, send};

/// How long waiting for the master may take in all.
const WAIT_TOTAL: Duration = Duration::from_secs(300);
/// Bytes of a piece.
const PIECE_BYTES: usize = 64 << 10;

/// The master as a source of images.
pub struct MasterOrigin {
    dial: Arc<dyn Dial>,
}

impl std::fmt::Debug for MasterOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterOrigin")
    }
}

impl MasterOrigin {
    /// Over these connections.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial }
    }

    async fn ask(
        &self,
        image: &Reference,
        blob: String,
        offset: u64,
    ) -> Result<Box<dyn Connection>, ImageError> {
        let unreachable = |why: String| ImageError::Unreachable {
            image: image.to_string(),
            registry: format!("{} (through the master)", image.registry),
            why,
        };
        let io = |error: io::Error| unreachable(error.to_string());
        let deadline = tokio::time::Instant::now() + WAIT_TOTAL;
        let part = ImageRequestV1 { image: image.to_string(), blob, offset };
        let request = BlobRequestV1::Image(part);
        loop {
            let mut connection = quiet(self.dial.dial(wire::ALPN_BLOB)).await.map_err(io)?;
            quiet(send(&mut connection, &request)).await.map_err(io)?;
            match quiet(receive(&mut connection)).await.map_err(io)? {
                BlobResponseV1::Bytes => return Ok(connection),
                BlobResponseV1::Wait(_) if tokio::time::Instant::now() > deadline => {
                    return Err(unreachable("the master does not have it yet".to_owned()));
                }
                BlobResponseV1::Wait(millis) => {
                    let wait = Duration::from_millis(u64::from(millis));
                    let bounds = (Duration::from_millis(20), Duration::from_secs(10));
                    tokio::time::sleep(wait.clamp(bounds.0, bounds.1)).await;
                }
                BlobResponseV1::Failed(reason, message) => {
                    return Err(match reason.as_str() {
                        "NotFound" => ImageError::NotFound { image: image.to_string() },
                        "Unauthorized" => ImageError::Unauthorized {
                            image: image.to_string(),
                            registry: image.registry.clone(),
                        },
                        _ => unreachable(message),
                    });
                }
                BlobResponseV1::Ready(_) => {
                    return Err(unreachable("the master answers something else".to_owned()));
                }
            }
        }
    }
}

impl Origin for MasterOrigin {
    fn manifest<'a>(&'a self, image: &'a Reference) -> BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async move {
            let connection = self.ask(image, String::new(), 0).await?;
            let mut bytes = Vec::new();
            let mut bounded = connection.take(MANIFEST_BYTES_MAX + 1);
            quiet(bounded.read_to_end(&mut bytes)).await.map_err(|error| {
                ImageError::Unreachable {
                    image: image.to_string(),
                    registry: image.registry.clone(),
                    why: error.to_string(),
                }
            })?;
            if bytes.len() as u64 > MANIFEST_BYTES_MAX {
                return Err(ImageError::TooLarge {
                    image: image.to_string(),
                    what: "the manifest".to_owned(),
                    limit: MANIFEST_BYTES_MAX,
                    unit: "bytes",
                });
            }
            Ok(bytes.into())
        })
    }

    fn blob<'a>(
        &'a self,
        image: &'a Reference,
        digest: Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<(u64, Box<dyn Pieces>), ImageError>> {
        Box::pin(async move {
            let connection = self.ask(image, digest.to_string(), offset).await?;
            Ok((offset, Box::new(Coming(connection)) as Box<dyn Pieces>))
        })
    }
}

/// What follows the answer.
struct Coming(Box<dyn Connection>);

impl Pieces for Coming {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async {
            let mut piece = vec![0; PIECE_BYTES];
            let n = quiet(self.0.read(&mut piece)).await?;
            piece.truncate(n);
            Ok((n > 0).then(|| Bytes::from(piece)))
        })
    }
}
