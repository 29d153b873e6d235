//! What images are and what modules hold, from their registries: the master's
//! own, and others, as whoever a namespace's Secrets say we are.

use std::sync::Arc;

use anyhow::Context;
use api::view::{self, SecretView};
use apiserver::{Api, Identity, Target};
use controllers::image::{ImageRequest, ImageResolver, ResolveError, ResolvedImage};
use controllers::projection::Runtime;
use image::registry::Origin;
use image::signature::{self, TrustedKeys};
use image::{Digest, ImageError, ImageKind, Keyring, Reference, Registry, settings};
use tracing::warn;
use wire::set::ImageRuleV1;

use crate::artifacts::{Failure, Modules};
use crate::config::Config;
use crate::enrol::resource;
use crate::policy;

/// Most bytes of a module.
const MODULE_BYTES_MAX: u64 = wasm::compile::MODULE_BYTES_MAX as u64;

/// For whom an image is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Access {
    pub(crate) namespace: String,
    pub(crate) pull_secrets: Vec<String>,
}

/// The registries, as this master reaches them.
#[derive(Clone, Debug)]
pub(crate) struct Registries {
    registry: Registry,
    api: Api,
}

impl Registries {
    /// Reads what the configuration says of registries. `own` has the images of
    /// the master's registry.
    pub(crate) fn new(config: &Config, api: Api, own: Arc<dyn Origin>) -> anyhow::Result<Self> {
        let mut reached = match &config.registries {
            Some(path) => settings::read(path).context("--registries")?,
            None => image::RegistryConfig::default(),
        };
        if let Some(path) = &config.registry_ca {
            reached.ca_pem.push(settings::read_ca(path).context("--registry-ca")?);
        }
        reached.insecure_http.clone_from(&config.insecure_registry);
        // Nobody is behind the master.
        for rule in &mut reached.hosts {
            rule.through_master = image::registry::ThroughMaster::Never;
        }
        let registry = Registry::new(reached);
        registry.set_master(own);
        Ok(Self { registry, api })
    }

    /// The registries, with the credentials in a namespace's Secrets.
    pub(crate) fn as_who(&self, access: &Access) -> Registry {
        let mut keyring = Keyring::default();
        for name in &access.pull_secrets {
            let who = Identity::master("pinnace:images");
            let target = Target::object(resource("Secret"), &access.namespace, name);
            // One that is missing is passed over, as the kubelet does.
            let Ok(secret) = self.api.get_value(&who, &target) else { continue };
            let Ok(read) = view::read::<SecretView>(&secret) else { continue };
            let files = read.files();
            let data = files.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice()));
            match Keyring::from_secret(data) {
                Ok(more) => keyring.add(more),
                Err(error) => {
                    let namespace = &access.namespace;
                    warn!(namespace, secret = name, %error, "a pull secret cannot be used");
                }
            }
        }
        self.registry.with_keyring(keyring)
    }

    /// What a namespace asks of its images.
    pub(crate) fn rule(&self, namespace: &str) -> Option<ImageRuleV1> {
        let who = Identity::master("pinnace:images");
        let target = Target::object(resource("Namespace"), "", namespace);
        policy::rule(&self.api.get_value(&who, &target).unwrap_or_default())
    }

    async fn module(
        &self,
        image: &str,
        digest: &str,
        access: &Access,
    ) -> Result<(String, Vec<u8>), Failure> {
        let failed = |err: ImageError| {
            let reason = match &err {
                ImageError::Unsigned { .. } => "SignatureValidationFailed",
                _ => "ErrImagePull",
            };
            (reason.to_owned(), err.to_string())
        };
        let reference: Reference = image.parse().map_err(failed)?;
        let registry = self.as_who(access);
        let rule = self.rule(&access.namespace);
        if rule.is_none()
            && let Ok(wanted) = digest.parse::<Digest>()
        {
            // By its digest where the registry keeps it as it is: the tag may have moved on.
            let blob = registry.blob_bytes(&reference, wanted, MODULE_BYTES_MAX, "the module");
            if let Ok(bytes) = blob.await {
                return Ok((digest.to_owned(), bytes.to_vec()));
            }
        }
        let info = image::inspect(&registry, &reference, MODULE_BYTES_MAX).await.map_err(failed)?;
        if let Some(rule) = &rule {
            check(rule, &registry, &reference, info.digest).await.map_err(failed)?;
        }
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
        let reference = reference.at(info.digest);
        let bytes = image::fetch_wasm(&registry, &reference, &module).await.map_err(failed)?;
        Ok((found, bytes.to_vec()))
    }
}

/// Checks that an image is what its namespace asks for.
async fn check(
    rule: &ImageRuleV1,
    registry: &Registry,
    image: &Reference,
    digest: Digest,
) -> Result<(), ImageError> {
    let unsigned = |why: String| ImageError::Unsigned { image: image.to_string(), why };
    match rule {
        ImageRuleV1::Digest if image.digest.is_some() => Ok(()),
        ImageRuleV1::Digest => {
            Err(unsigned("its namespace wants images named by digest (NAME@sha256:…)".to_owned()))
        }
        ImageRuleV1::Invalid(why) => {
            Err(unsigned(format!("its namespace's policy is wrong: {why}")))
        }
        ImageRuleV1::Signature(keys) => {
            let keys = TrustedKeys::from_pem(keys).map_err(unsigned)?;
            let found = signature::fetch_signatures(registry, image, digest).await?;
            keys.verify(&[digest], &found).map_err(unsigned)
        }
    }
}

impl ImageResolver for Registries {
    async fn resolve(&self, request: &ImageRequest) -> Result<ResolvedImage, ResolveError> {
        let reference: Reference = request.image.parse().map_err(resolve_error)?;
        let registry = self.as_who(&Access {
            namespace: request.namespace.clone(),
            pull_secrets: request.pull_secrets.clone(),
        });
        let info =
            image::inspect(&registry, &reference, MODULE_BYTES_MAX).await.map_err(resolve_error)?;
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
        access: &Access,
    ) -> apiserver::BoxFuture<'_, Result<(String, Vec<u8>), Failure>> {
        let (image, digest, access) = (image.to_owned(), digest.to_owned(), access.clone());
        Box::pin(async move { self.module(&image, &digest, &access).await })
    }

    fn rule(&self, namespace: &str) -> Option<ImageRuleV1> {
        Self::rule(self, namespace)
    }
}
