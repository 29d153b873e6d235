//! Images as the agent needs them: on disk, and how to run them.
//!
//! Both kinds come through one trait, so that the pod's state machine does not
//! know where an image is from: OCI layers from a registry, compiled WASM from
//! the master ([`crate::artifacts`]).

use std::path::PathBuf;

use runtime::{ArtifactSignature, BoxFuture};
use wire::Uid;
use wire::pod::{PullPolicyV1, RuntimeV1};

use crate::env::ImageConfig;
use crate::pods::Happening;

/// Which image a container needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// The pod that asks.
    pub pod: Uid,
    /// Its namespace.
    pub namespace: String,
    /// The container that asks.
    pub container: String,
    /// The image as the manifest names it.
    pub reference: String,
    /// What it resolved to on the master; empty where it could not.
    pub digest: String,
    /// Which backend runs it.
    pub runtime: RuntimeV1,
    /// When it is fetched.
    pub policy: PullPolicyV1,
    /// What the pod shows to registries.
    pub keyring: image::Keyring,
    /// The Secrets it comes from, as `namespace/name`.
    pub secrets: Vec<String>,
}

/// An image on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyImage {
    /// `sha256:…` of what runs.
    pub id: String,
    /// Where it is.
    pub content: ImageContent,
    /// How to run it.
    pub config: ImageConfig,
}

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageContent {
    /// Unpacked layers, lowest first.
    Oci {
        /// Folders in overlay form.
        layers: Vec<PathBuf>,
    },
    /// Compiled code.
    Wasm {
        /// The file.
        artifact: PathBuf,
        /// SHA-256 of the file.
        sha256: [u8; 32],
        /// What the cluster signed about it.
        signature: ArtifactSignature,
        /// Who must have signed it.
        key: [u8; 32],
    },
}

/// An image cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, …
    pub reason: String,
    /// For people.
    pub message: String,
}

impl ImageError {
    /// An error with one of Kubernetes' reasons.
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    /// The registry or the master does not have it, or does not answer.
    #[must_use]
    pub fn pull(message: impl Into<String>) -> Self {
        Self::new("ErrImagePull", message)
    }
}

/// What happens on the way, for Events.
pub type Progress<'a> = &'a (dyn Fn(Happening) + Send + Sync);

/// Where images come from.
pub trait Images: Send + Sync + 'static {
    /// Has an image on disk. Several may ask for one image at the same time.
    fn get<'a>(
        &'a self,
        request: ImageRequest,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>>;
}

/// `Pulling`, as the kubelet says it.
#[must_use]
pub fn pulling(request: &ImageRequest) -> Happening {
    happening(request, "Pulling", format!("Pulling image \"{}\"", request.reference))
}

/// How far a long pull is.
#[must_use]
pub fn pulling_on(request: &ImageRequest, done: u64, total: u64) -> Happening {
    let percent = done.saturating_mul(100) / total.max(1);
    let message = format!(
        "Pulling image \"{}\": {percent}% of {:.1} MiB",
        request.reference,
        total as f64 / f64::from(1 << 20)
    );
    happening(request, "Pulling", message)
}

/// `Pulled` after a pull of this many bytes.
#[must_use]
pub fn pulled(request: &ImageRequest, took: std::time::Duration, bytes: u64) -> Happening {
    let message = format!(
        "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {bytes} bytes.",
        request.reference,
        go_millis(took),
        go_millis(took),
    );
    happening(request, "Pulled", message)
}

/// `Pulled` without a pull.
#[must_use]
pub fn present(request: &ImageRequest) -> Happening {
    let message = format!("Container image \"{}\" already present on machine", request.reference);
    happening(request, "Pulled", message)
}

fn happening(request: &ImageRequest, reason: &'static str, message: String) -> Happening {
    Happening { container: request.container.clone(), warning: false, reason, message }
}

/// A duration as Go prints it, to the millisecond: `350ms`, `1.25s`.
fn go_millis(took: std::time::Duration) -> String {
    match took.as_millis() {
        millis @ 0..1000 => format!("{millis}ms"),
        _ => {
            let text = format!("{:.3}", took.as_secs_f64());
            format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn durations_read_as_gos() {
        let text = |millis| go_millis(Duration::from_millis(millis));
        assert_eq!(
            [text(0), text(350), text(1000), text(1250), text(61_005)],
            ["0ms", "350ms", "1s", "1.25s", "61.005s"]
        );
    }
}
