//! OCI images of this node, from registries; WASM goes on to [`Artifacts`].
//!
//! | policy | digest known | on disk | what happens |
//! | --- | --- | --- | --- |
//! | any | yes | yes | used, nobody is asked |
//! | `Never` | | no | `ErrImageNeverPull` |
//! | `IfNotPresent` | no | yes | used, nobody is asked |
//! | `Always` | no | yes | the registry is asked; if it is out of reach, what is there is used |
//! | else | | no | pulled |
//!
//! The last but one goes beyond the kubelet, which fails: a board that is cut
//! off has to bring its pods back.

use std::io;
use std::path::{Path, PathBuf};

use image::{Digest, Image, Limits, Reference, Registry, RegistryConfig, Store, Unpacker};
use runtime::BoxFuture;
use tokio::time::Instant;
use wire::pod::{PullPolicyV1, RuntimeV1};

use crate::artifacts::Artifacts;
use crate::env::ImageConfig;
use crate::images::{self, ImageContent, ImageError, ImageRequest, Images, Progress, ReadyImage};
use crate::pods::Happening;

/// Largest file of CA certificates, in bytes.
const CA_BYTES_MAX: u64 = 4 << 20;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistrySettings {
    /// Registries that speak plain HTTP, as `host:port`.
    pub insecure: Vec<String>,
    /// Files with further CA certificates, PEM.
    pub ca_files: Vec<PathBuf>,
}

/// The images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// A CA file cannot be read.
    #[error("--registry-ca {}: cannot read it", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] image::ImageError),
}

/// The node's images.
#[derive(Debug)]
pub struct Registries {
    store: Store,
    registry: Registry,
    artifacts: Artifacts,
}

impl Registries {
    /// Opens the store. Layers are unpacked by this program, executed anew.
    ///
    /// # Errors
    /// The store or a CA file cannot be read.
    pub fn open(
        folder: &Path,
        settings: RegistrySettings,
        artifacts: Artifacts,
    ) -> Result<Self, RegistriesError> {
        let mut ca_pem = Vec::new();
        for path in settings.ca_files {
            let pem = read_ca(&path).map_err(|source| RegistriesError::Ca { path, source })?;
            ca_pem.push(pem);
        }
        let config = RegistryConfig {
            insecure_http: settings.insecure,
            ca_pem,
            ..RegistryConfig::default()
        };
        let unpacker =
            Unpacker::Child { program: "/proc/self/exe".into(), args: vec!["unpack".into()] };
        let store = Store::open(folder, unpacker, Limits::default())?;
        Ok(Self { store, registry: Registry::new(config), artifacts })
    }

    async fn oci(
        &self,
        request: &ImageRequest,
        progress: Progress<'_>,
    ) -> Result<ReadyImage, ImageError> {
        let invalid = |message: String| {
            ImageError::new(
                "InvalidImageName",
                format!("Failed to apply default image tag \"{}\": {message}", request.reference),
            )
        };
        let reference: Reference = request
            .reference
            .parse()
            .map_err(|error: image::ImageError| invalid(error.to_string()))?;
        let digest: Option<Digest> = match request.digest.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                invalid(format!("the master resolved it to {text:?}, which is no digest"))
            })?),
        };
        let is_pinned = digest.is_some() || reference.digest.is_some();
        let local = self.store.get(&reference, digest).map_err(failed)?;
        match (request.policy, local) {
            (PullPolicyV1::Always, Some(local)) if !is_pinned => {
                match self.pull(request, &reference, None, progress).await {
                    Ok(image) => Ok(ready(image)),
                    Err(error) if error.is_transient() => {
                        progress(stale(request, &error));
                        Ok(ready(local))
                    }
                    Err(error) => Err(failed(error)),
                }
            }
            (_, Some(local)) => {
                progress(images::present(request));
                Ok(ready(local))
            }
            (PullPolicyV1::Never, None) => Err(ImageError::new(
                "ErrImageNeverPull",
                format!(
                    "Container image \"{}\" is not present with pull policy of Never",
                    request.reference
                ),
            )),
            (_, None) => {
                self.pull(request, &reference, digest, progress).await.map(ready).map_err(failed)
            }
        }
    }

    async fn pull(
        &self,
        request: &ImageRequest,
        reference: &Reference,
        digest: Option<Digest>,
        progress: Progress<'_>,
    ) -> Result<Image, image::ImageError> {
        let start = Instant::now();
        progress(images::pulling(request));
        // The store pulls one image at a time; who waits finds shared layers there.
        let image = self.store.pull(&self.registry, reference, digest).await?;
        let took = start.elapsed();
        let layers = image.layers.clone();
        let size = tokio::task::spawn_blocking(move || bytes(&layers)).await.unwrap_or(0);
        progress(images::pulled(request, took, size));
        Ok(image)
    }
}

impl Images for Registries {
    fn get<'a>(
        &'a self,
        request: ImageRequest,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>> {
        Box::pin(async move {
            match request.runtime {
                RuntimeV1::Oci => self.oci(&request, progress).await,
                RuntimeV1::Wasm => self.artifacts.get(&request, progress).await,
            }
        })
    }
}

fn read_ca(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(CA_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn ready(image: Image) -> ReadyImage {
    ReadyImage {
        id: image.digest.to_string(),
        content: ImageContent::Oci { layers: image.layers },
        config: ImageConfig {
            entrypoint: image.config.entrypoint,
            cmd: image.config.cmd,
            env: image.config.env,
            working_dir: image.config.working_dir,
            user: image.config.user,
            stop_signal: wire::signal_number(&image.config.stop_signal),
        },
    }
}

fn failed(error: image::ImageError) -> ImageError {
    let reason = match &error {
        image::ImageError::BadReference { .. } => "InvalidImageName",
        _ => "ErrImagePull",
    };
    ImageError::new(reason, crate::hooks::chain(&error))
}

fn stale(request: &ImageRequest, error: &image::ImageError) -> Happening {
    Happening {
        container: request.container.clone(),
        warning: true,
        reason: "Pulled",
        message: format!(
            "Container image \"{}\" already present on machine is used, for the registry cannot be asked: {error}",
            request.reference
        ),
    }
}

/// What the layers of an image hold, in bytes, for the Event. Best effort.
fn bytes(layers: &[PathBuf]) -> u64 {
    fn below(folder: &Path, depth: u32) -> u64 {
        let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
        entries
            .flatten()
            .map(|entry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() && depth > 0 => below(&entry.path(), depth - 1),
                Ok(metadata) => metadata.len(),
                Err(_) => 0,
            })
            .sum()
    }
    layers.iter().map(|layer| below(layer, 32)).sum()
}
