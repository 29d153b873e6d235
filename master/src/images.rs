//! What images are and what modules hold, from their registries.

use controllers::image::{ImageRequest, ImageResolver, ResolveError, ResolvedImage};

use crate::artifacts::{Failure, Modules};
use crate::config::Config;

/// The registries, as this master reaches them.
#[derive(Debug)]
pub(crate) struct Registries {}

impl Registries {
    pub(crate) fn new(_config: &Config) -> anyhow::Result<Self> {
        Ok(Self {})
    }
}

impl ImageResolver for Registries {
    async fn resolve(&self, request: &ImageRequest) -> Result<ResolvedImage, ResolveError> {
        Err(ResolveError::Unreachable(request.image.clone()))
    }
}

impl Modules for Registries {
    fn fetch(
        &self,
        image: &str,
        _digest: &str,
    ) -> apiserver::BoxFuture<'_, Result<(String, Vec<u8>), Failure>> {
        let image = image.to_owned();
        Box::pin(async move { Err(("ErrImagePull".to_owned(), image)) })
    }
}
