//! What images are and what modules hold, from their registries.

use std::sync::Arc;

use anyhow::Context;
use controllers::image::{ImageRequest, ImageResolver, ResolveError, ResolvedImage};
use controllers::projection::Runtime;
use image::{Digest, ImageError, ImageKind, Reference, Registry, RegistryConfig};

use crate::artifacts::{Failure, Modules};
use crate::config::Config;

/// Most bytes of a module.
const MODULE_BYTES_MAX: u64 = wasm::compile::MODULE_BYTES_MAX as u64;

/// The registries, as this master reaches them.
#[derive(Clone, Debug)]
pub(crate) struct Registries {
    registry: Arc<Registry>,
}

impl Registries {
    /// Reads what the configuration says of registries.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let mut ca_pem = Vec::new();
        if let Some(path) = &config.registry_ca {
            let pem = std::fs::read(path)
                .with_context(|| format!("--registry-ca {}: cannot read it", path.display()))?;
            ca_pem.push(pem);
        }
        let config = RegistryConfig {
            insecure_http: config.insecure_registry.clone(),
            ca_pem,
            ..RegistryConfig::default()
        };
        Ok(Self { registry: Arc::new(Registry::new(config)) })
    }

    async fn module(&self, image: &str, digest: &str) -> Result<(String, Vec<u8>), Failure> {
        let failed = |err: ImageError| ("ErrImagePull".to_owned(), err.to_string());
        let reference: Reference = image.parse().map_err(failed)?;
        if let Ok(wanted) = digest.parse::<Digest>() {
            // By its digest where the registry keeps it as it is: the tag may have moved on.
            let blob = self.registry.blob_bytes(&reference, wanted, MODULE_BYTES_MAX, "the module");
            if let Ok(bytes) = blob.await {
                return Ok((digest.to_owned(), bytes.to_vec()));
            }
        }
        let info =
            image::inspect(&self.registry, &reference, MODULE_BYTES_MAX).await.map_err(failed)?;
        let ImageKind::Wasm(module) = info.kind else {
            let message = format!(
                "image {image} is not a WebAssembly module: remove runtimeClassName wasm, or name a module"
            );
            return Err(("InvalidModule".to_owned(), message));
        };
        let found = module.module_digest.to_string();
        if !digest.is_empty() && found != digest {
            let message = format!(
                "image {image} now names module {found}, and the pod was made with {digest}, which the registry no longer has: delete the pod"
            );
            return Err(("ErrImagePull".to_owned(), message));
        }
        let bytes = image::fetch_wasm(&self.registry, &reference, &module).await.map_err(failed)?;
        Ok((found, bytes.to_vec()))
    }
}

impl ImageResolver for Registries {
    async fn resolve(&self, request: &ImageRequest) -> Result<ResolvedImage, ResolveError> {
        let reference: Reference = request.image.parse().map_err(resolve_error)?;
        let info = image::inspect(&self.registry, &reference, MODULE_BYTES_MAX)
            .await
            .map_err(resolve_error)?;
        Ok(match info.kind {
            ImageKind::Oci { platforms } => ResolvedImage {
                digest: info.digest.to_string(),
                runtime: Runtime::Oci,
                platforms: platforms.iter().map(ToString::to_string).collect(),
            },
            ImageKind::Wasm(module) => ResolvedImage {
                digest: module.module_digest.to_string(),
                runtime: Runtime::Wasm,
                platforms: Vec::new(),
            },
        })
    }
}

/// What a failure means to somebody who waits for the image.
fn resolve_error(err: ImageError) -> ResolveError {
    match err {
        ImageError::NotFound { image } => ResolveError::NotFound(image),
        ImageError::Unauthorized { registry, .. } => ResolveError::Unauthorized(registry),
        ImageError::Unreachable { registry, why, .. } => {
            ResolveError::Unreachable(format!("{registry}: {why}"))
        }
        other => ResolveError::Invalid(other.to_string()),
    }
}

impl Modules for Registries {
    fn fetch(
        &self,
        image: &str,
        digest: &str,
    ) -> apiserver::BoxFuture<'_, Result<(String, Vec<u8>), Failure>> {
        let (image, digest) = (image.to_owned(), digest.to_owned());
        Box::pin(async move { self.module(&image, &digest).await })
    }
}
