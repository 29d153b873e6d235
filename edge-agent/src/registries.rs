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
//! What is on disk and was pulled with credentials is for those who show the same,
//! or whom the registry lets have it too. What its namespace asks of an image
//! ([`crate::image_rules`]) holds before anything else.
//!
//! The last but one goes beyond the kubelet, which fails: a board that is cut
//! off has to bring its pods back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use image::signature::{TrustedKeys, fetch_signatures};
use image::{Digest, Image, Limits, Pull, Reference, Registry, RegistryConfig, Store, Unpacker};
use image::{settings, settings::SettingsError};
use runtime::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::node::{IMAGES_MAX, NodeImageV1};
use wire::pod::{PullPolicyV1, RuntimeV1};
use wire::set::NodeConfigV1;

use crate::artifacts::{Artifacts, Dial};
use crate::env::ImageConfig;
use crate::image_gc::{self, Marks, Needed};
use crate::image_rules::{ImageRules, refused};
use crate::images::{self, ImageContent, ImageError, ImageRequest, Images, Progress, ReadyImage};
use crate::master_origin::MasterOrigin;
use crate::pods::Happening;

/// How often a long pull says how far it is, in milliseconds.
const TELL_EVERY_MS: u64 = 30_000;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistrySettings {
    /// The file that says it all, see [`image::settings`].
    pub file: Option<PathBuf>,
    /// Registries that speak plain HTTP, as `host:port`.
    pub insecure: Vec<String>,
    /// Files with further CA certificates, PEM.
    pub ca_files: Vec<PathBuf>,
    /// Between which marks the disk is kept.
    pub marks: Marks,
}

/// The images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// What the command line names cannot be read.
    #[error("{option}")]
    Settings {
        /// The option.
        option: &'static str,
        /// What is wrong with its file.
        #[source]
        source: SettingsError,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] image::ImageError),
}

/// Tells what the node needs now.
pub type WhatIsNeeded = Box<dyn Fn() -> Needed + Send + Sync>;

/// The node's images.
pub struct Registries {
    folder: PathBuf,
    store: Store,
    registry: Registry,
    artifacts: Artifacts,
    rules: ImageRules,
    marks: Marks,
    needed: Mutex<Option<WhatIsNeeded>>,
    collecting: tokio::sync::Mutex<()>,
    /// Why the disk could not be brought below its mark.
    gc_problem: Mutex<Option<String>>,
    prepull_problems: Mutex<BTreeMap<String, String>>,
    /// Names of modules that are here before any pod names them.
    modules: Mutex<BTreeSet<String>>,
    /// Told when there are other images than before, or other problems.
    pub changed: Notify,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Registries {
    /// Opens the store. Layers are unpacked by this program, executed anew; `dial`
    /// reaches the master, for its own images and those that are out of reach.
    ///
    /// # Errors
    /// The store or a file that the settings name cannot be read.
    pub fn open(
        folder: &Path,
        settings: RegistrySettings,
        artifacts: Artifacts,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, RegistriesError> {
        let failed = |option| move |source| RegistriesError::Settings { option, source };
        let mut config = match &settings.file {
            Some(path) => settings::read(path).map_err(failed("--registries"))?,
            None => RegistryConfig::default(),
        };
        config.insecure_http = settings.insecure;
        for path in settings.ca_files {
            config.ca_pem.push(settings::read_ca(&path).map_err(failed("--registry-ca"))?);
        }
        let unpacker =
            Unpacker::Child { program: "/proc/self/exe".into(), args: vec!["unpack".into()] };
        let store = Store::open(folder, unpacker, Limits::default())?;
        let registry = Registry::new(config);
        registry.set_master(Arc::new(MasterOrigin::new(dial)));
        Ok(Self {
            folder: folder.to_owned(),
            store,
            registry,
            artifacts,
            rules: ImageRules::default(),
            marks: settings.marks,
            needed: Mutex::default(),
            collecting: tokio::sync::Mutex::default(),
            gc_problem: Mutex::default(),
            prepull_problems: Mutex::default(),
            modules: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Takes what a set says of images, before any pod of it is looked at.
    pub fn configure(&self, config: &NodeConfigV1) {
        self.rules.configure(config);
    }

    /// Says how to find out what must stay. Nothing is removed before.
    pub fn set_needed(&self, needed: WhatIsNeeded) {
        *lock(&self.needed) = Some(needed);
    }

    /// What is wrong with the node's images, as (condition, message).
    #[must_use]
    pub fn findings(&self) -> Vec<(String, String)> {
        let mut findings = Vec::new();
        if let Some(problem) = &*lock(&self.gc_problem) {
            findings.push(("ImageGC".to_owned(), problem.clone()));
        }
        let problems = lock(&self.prepull_problems);
        if let Some((image, why)) = problems.iter().next() {
            let more = problems.len() - 1;
            let message =
                format!("image \"{image}\" is to be here and is not ({more} more): {why}");
            findings.push(("ImagePrepull".to_owned(), message));
        }
        findings
    }

    pub(crate) fn prepull_problem(&self, image: &str, why: Option<String>) {
        let mut problems = lock(&self.prepull_problems);
        let before = problems.contains_key(image);
        match why {
            Some(why) => problems.insert(image.to_owned(), why),
            None => problems.remove(image),
        };
        if before != problems.contains_key(image) {
            self.changed.notify_one();
        }
    }

    /// Notes that a module is here.
    pub(crate) fn prepulled_module(&self, image: &str) {
        let Ok(name) = image.parse::<Reference>() else { return };
        lock(&self.modules).insert(name.to_string());
        self.changed.notify_one();
    }

    /// Forgets what was said of images that are not to be here any more.
    pub(crate) fn keep_prepulled(&self, images: &[String]) {
        lock(&self.prepull_problems).retain(|image, _| images.contains(image));
        let names: BTreeSet<String> = images
            .iter()
            .filter_map(|image| Some(image.parse::<Reference>().ok()?.to_string()))
            .collect();
        lock(&self.modules).retain(|name| names.contains(name));
        self.changed.notify_one();
    }

    /// The images on the disk, the largest first, as the Node tells of them.
    #[must_use]
    pub fn list(&self) -> Vec<NodeImageV1> {
        let mut by_digest: BTreeMap<Digest, NodeImageV1> = BTreeMap::new();
        for record in self.store.records().unwrap_or_default() {
            let image = by_digest.entry(record.digest).or_default();
            image.size_bytes = record.size;
            if let Ok(reference) = record.name.parse::<Reference>() {
                let by_digest =
                    format!("{}/{}@{}", reference.registry, reference.repository, record.digest);
                for name in [by_digest, record.name] {
                    if !image.names.contains(&name) {
                        image.names.push(name);
                    }
                }
            }
        }
        let mut all: Vec<NodeImageV1> = by_digest.into_values().collect();
        all.iter_mut().for_each(|image| image.names.sort());
        all.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
        let modules = lock(&self.modules).clone().into_iter();
        all.extend(modules.map(|name| NodeImageV1 { names: vec![name], size_bytes: 0 }));
        all.truncate(IMAGES_MAX);
        all
    }

    /// Removes images until the disk is below its low mark, if it is above its high one.
    pub async fn collect_if_full(&self) {
        match image_gc::used_percent(&self.folder) {
            Ok(used) if used >= self.marks.high => self.collect().await,
            _ => *lock(&self.gc_problem) = None,
        }
    }

    /// Removes images until the disk is below its low mark.
    pub async fn collect(&self) {
        let _one = self.collecting.lock().await;
        let Some(needed) = lock(&self.needed).as_ref().map(|needed| needed()) else { return };
        let result = self.collect_unneeded(&needed).await;
        if let Err(problem) = &result {
            tracing::warn!(problem, "images cannot be collected");
        }
        *lock(&self.gc_problem) = result.err();
        self.changed.notify_one();
    }

    async fn collect_unneeded(&self, needed: &Needed) -> Result<(), String> {
        let is_low = || {
            let used = image_gc::used_percent(&self.folder).map_err(|error| error.to_string())?;
            Ok::<_, String>((used < self.marks.low, used))
        };
        let text = |error: image::ImageError| crate::hooks::chain(&error);
        // First what is of no use to anybody: left by pulls that failed.
        self.store.sweep(&needed.images.layers).await.map_err(text)?;
        let mut images = self.store.unused(&needed.images, image_gc::AGE_MIN).map_err(text)?;
        let mut modules = self.artifacts.unused(needed, image_gc::AGE_MIN);
        images.reverse();
        modules.reverse();
        let (mut n_images, mut n_modules) = (0, 0);
        while !is_low()?.0 {
            // Whichever of the two was used longer ago.
            let image_goes = match (images.last(), modules.last()) {
                (None, None) => break,
                (Some(image), Some((module, _))) => image.last_used <= *module,
                (image, _) => image.is_some(),
            };
            if image_goes && let Some(image) = images.pop() {
                self.store.forget(&image.record, &needed.images.layers).await.map_err(text)?;
                n_images += 1;
            } else if let Some((_, path)) = modules.pop() {
                self.artifacts.remove(&path).map_err(|error| error.to_string())?;
                n_modules += 1;
            }
        }
        let (is_low, used) = is_low()?;
        tracing::info!(n_images, n_modules, used_percent = used, "images collected");
        if is_low || used < self.marks.high {
            return Ok(());
        }
        Err(format!(
            "the disk is {used}% full, and every image on it is needed: make room on the board"
        ))
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
        let keys = self.rules.keys(request)?;
        let keys = keys.as_ref();
        let registry = self.registry.with_keyring(request.keyring.clone());
        let asked = Asked { request, reference: &reference, registry: &registry, keys };
        let is_pinned = digest.is_some() || reference.digest.is_some();
        let local = self.store.get(&reference, digest).map_err(failed)?;
        match (request.policy, local) {
            (PullPolicyV1::Always, Some(local)) if !is_pinned => {
                match self.pull(&asked, None, progress).await {
                    Ok(image) => Ok(ready(image)),
                    Err(Failed::Image(error)) if error.is_transient() => {
                        self.may_use(&asked, &local).await?;
                        progress(stale(request, &error));
                        Ok(ready(local))
                    }
                    Err(error) => Err(error.into()),
                }
            }
            (_, Some(local)) => {
                self.may_use(&asked, &local).await?;
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
            (_, None) => match self.pull(&asked, digest, progress).await {
                Err(Failed::Image(error)) if is_disk_full(&error) => {
                    // Room is made for it, once.
                    self.collect().await;
                    self.pull(&asked, digest, progress).await.map(ready).map_err(Into::into)
                }
                result => result.map(ready).map_err(Into::into),
            },
        }
    }

    /// Whether what is on disk is for this pod, and is what its namespace asks for.
    async fn may_use(&self, asked: &Asked<'_>, local: &Image) -> Result<(), ImageError> {
        let shown = asked.shown();
        if !local.access.is_empty() && !shown.iter().any(|who| local.access.contains(who)) {
            // Pulled by somebody with credentials: the registry says whether for us too.
            if asked.request.policy == PullPolicyV1::Never {
                return Err(ImageError::new(
                    "ErrImageNeverPull",
                    format!(
                        "Container image \"{}\" was pulled with credentials that this pod does not have",
                        asked.request.reference
                    ),
                ));
            }
            let place = asked.reference.at(local.digest);
            asked.registry.resolve(&place).await.map_err(failed)?;
            self.store.grant(local, &shown).map_err(failed)?;
        }
        let Some(keys) = asked.keys else { return Ok(()) };
        let digests = [local.digest, local.manifest];
        let mut kept = self.store.signatures(local.digest);
        kept.extend(self.store.signatures(local.manifest));
        if keys.verify(&digests, &kept).is_ok() {
            return Ok(());
        }
        self.verify(asked, &digests, keys).await?;
        Ok(())
    }

    /// Fetches the signatures of an image, checks them, and keeps them.
    async fn verify(
        &self,
        asked: &Asked<'_>,
        digests: &[Digest],
        keys: &TrustedKeys,
    ) -> Result<(), ImageError> {
        let mut problem = String::new();
        for digest in digests {
            let found = fetch_signatures(asked.registry, asked.reference, *digest).await;
            let found = found.map_err(failed)?;
            match keys.verify(digests, &found) {
                Ok(()) => return self.store.put_signatures(*digest, &found).map_err(failed),
                Err(why) => problem = why,
            }
        }
        let namespace = &asked.request.namespace;
        let why = format!("{problem}, and namespace \"{namespace}\" wants one by its keys");
        Err(refused(asked.request, &why))
    }

    async fn pull(
        &self,
        asked: &Asked<'_>,
        digest: Option<Digest>,
        progress: Progress<'_>,
    ) -> Result<Image, Failed> {
        let Asked { request, reference, registry, keys } = *asked;
        let start = Instant::now();
        progress(images::pulling(request));
        let digest = match (keys, digest.or(reference.digest)) {
            (None, digest) => digest,
            (Some(keys), digest) => {
                // Nothing but its manifest is fetched of what nobody has signed.
                let digest = match digest {
                    Some(digest) => digest,
                    None => registry.resolve(reference).await?,
                };
                self.verify(asked, &[digest], keys).await.map_err(Failed::Refused)?;
                Some(digest)
            }
        };
        let told_ms = AtomicU64::new(TELL_EVERY_MS);
        let told = |done: u64, total: u64| {
            let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let due = told_ms.load(Ordering::Relaxed);
            if elapsed >= due {
                // Less and less often: each costs the link a message.
                told_ms.store(due.saturating_mul(2), Ordering::Relaxed);
                progress(images::pulling_on(request, done, total));
            }
        };
        let access = asked.shown();
        let pull = Pull { registry, reference, digest, access: &access, told: &told };
        let image = self.store.pull_as(&pull).await?;
        if keys.is_some()
            && let Some(digest) = digest
            && self.store.signatures(digest).is_empty()
        {
            // A collection may have swept them before there was an image to them.
            let found = fetch_signatures(registry, reference, digest).await?;
            self.store.put_signatures(digest, &found)?;
        }
        progress(images::pulled(request, start.elapsed(), image.size));
        self.changed.notify_one();
        Ok(image)
    }
}

/// An image that is asked for, and by whom.
#[derive(Clone, Copy)]
struct Asked<'a> {
    request: &'a ImageRequest,
    reference: &'a Reference,
    registry: &'a Registry,
    keys: Option<&'a TrustedKeys>,
}

impl Asked<'_> {
    /// Who asks, as the store notes it: nobody in particular where no credential is
    /// shown.
    fn shown(&self) -> Vec<String> {
        let fingerprints = self.registry.credentials_for(self.reference);
        let mut shown: Vec<String> = fingerprints.iter().map(ToString::to_string).collect();
        if !shown.is_empty() {
            shown.extend(self.request.secrets.iter().cloned());
        }
        shown
    }
}

/// Why there is no image.
enum Failed {
    Image(image::ImageError),
    Refused(ImageError),
}

impl From<image::ImageError> for Failed {
    fn from(error: image::ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<Failed> for ImageError {
    fn from(error: Failed) -> Self {
        match error {
            Failed::Image(error) => failed(error),
            Failed::Refused(error) => error,
        }
    }
}

fn is_disk_full(error: &image::ImageError) -> bool {
    matches!(error, image::ImageError::Disk { source, .. }
        if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
        || error.to_string().contains("No space left on device")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
                RuntimeV1::Wasm => {
                    let keys = self.rules.keys(&request)?;
                    self.artifacts.get(&request, keys.as_ref(), progress).await
                }
            }
        })
    }
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
        image::ImageError::Unsigned { .. } => "SignatureValidationFailed",
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
