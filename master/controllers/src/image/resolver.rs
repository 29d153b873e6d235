//! Asking registries what an image is. The master gives the implementation.

use super::Record;
use crate::projection::Runtime;

/// One image to look up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRequest {
    /// As the container names it.
    pub image: String,
    /// Where its pull secrets are.
    pub namespace: String,
    /// Names of the Secrets with credentials, in order.
    pub pull_secrets: Vec<String>,
}

/// What a registry said of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// `sha256:…` of the index or manifest (OCI) or of the module (WASM).
    pub digest: String,
    /// What runs it.
    pub runtime: Runtime,
    /// What it was built for, as `os/architecture[/variant]`.
    pub platforms: Vec<String>,
}

impl ResolvedImage {
    /// The record of an image that a container names `image`.
    #[must_use]
    pub(super) fn record(&self, image: &str) -> Record {
        Record {
            image: image.to_owned(),
            digest: self.digest.clone(),
            runtime: self.runtime,
            platforms: self.platforms.iter().take(api::images::PLATFORMS_MAX).cloned().collect(),
        }
    }
}

/// Why an image could not be looked up. The text names the registry and its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The registry does not answer.
    #[error("the registry cannot be reached: {0}")]
    Unreachable(String),
    /// The registry has no such image.
    #[error("the registry has no such image: {0}")]
    NotFound(String),
    /// The registry wants other credentials.
    #[error("the registry refuses access: {0}")]
    Unauthorized(String),
    /// What the registry sent is no image, or the name is no name.
    #[error("this is no image that can run: {0}")]
    Invalid(String),
}

impl ResolveError {
    /// What an operator can do about it.
    #[must_use]
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "check the registry's address and the master's network",
            Self::NotFound(_) => "check the image's name and tag",
            Self::Unauthorized(_) => "check the pod's imagePullSecrets",
            Self::Invalid(_) => "push an OCI image or a WebAssembly module under this name",
        }
    }
}

/// Looks images up. Implemented by the master over its registry client.
pub trait ImageResolver: Send + Sync + 'static {
    /// Asks the registry. The caller bounds the time and does not ask twice at once.
    fn resolve(
        &self,
        request: &ImageRequest,
    ) -> impl Future<Output = Result<ResolvedImage, ResolveError>> + Send;
}
