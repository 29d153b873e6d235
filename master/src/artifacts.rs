//! Compiled WASM code for nodes: fetched and compiled on first use, signed,
//! kept on disk, served to the nodes whose pods name it.
//!
//! ```text
//! node asks ──► is it a pod of that node? ──► on disk? ──► serve
//!                                               │ no
//!                                               ▼
//!                          fetch the module ─► compile ─► sign ─► write   (one at a time)
//! ```
//!
//! The compiler is a process of its own ([`wasm::compile::child`]): a module is a
//! stranger's. What was served longest ago is removed where there is too much.
//!
//! | file in `artifacts/` | what |
//! | --- | --- |
//! | `<module sha256>-<engine>-<profile>-<target>.cwasm` | compiled code |
//! | the same with `.sig` | postcard of its [`ArtifactV1`] |
//!
//! All of it can be made again, so nothing here is synced or backed up, and what
//! is damaged is made anew.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncSeekExt;
use tokio::sync::Semaphore;
use tracing::{info, warn};
use wasm::compile::Compiled;
use wasm::compile::child::Compiler;
use wire::artifact::{ArtifactRequestV1, ArtifactV1, BlobResponseV1};
use wire::node::WasmTargetV1;
use wire::set::ImageRuleV1;

use crate::blobs::{Granted, respond};
use crate::images::Access;
use crate::pki::{Pki, sha256};

/// What a node waits before it asks again.
const WAIT_MS: u32 = 500;
/// How long a result is answered from memory before it is looked up again.
const RESULT_LIFE: Duration = Duration::from_secs(10);
/// Most modules in memory, of up to 64 MiB each: one is compiled, others are fetched.
const MODULES_MAX: usize = 3;
/// Most modules that are known to be what a namespace asks for.
const CHECKED_MAX: usize = 4096;

/// A reason in one word and a sentence for people.
pub(crate) type Failure = (String, String);

/// What names compiled code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    /// `sha256:…` of the module.
    module: String,
    target: WasmTargetV1,
}

/// Fetches modules from registries.
pub(crate) trait Modules: Send + Sync + 'static {
    /// The bytes of the module of `image` whose digest is `digest`, or the one
    /// the registry names now where it is empty; with its digest. It is what the
    /// namespace asks for.
    fn fetch(
        &self,
        image: &str,
        digest: &str,
        access: &Access,
    ) -> apiserver::BoxFuture<'_, Result<(String, Vec<u8>), Failure>>;

    /// What a namespace asks of its images.
    fn rule(&self, namespace: &str) -> Option<ImageRuleV1>;
}

/// Compiles modules.
pub(crate) trait Compile: Send + Sync + 'static {
    /// The code of a module for a target, or a sentence.
    fn compile<'a>(
        &'a self,
        module: &'a [u8],
        target: &'a str,
    ) -> apiserver::BoxFuture<'a, Result<Compiled, String>>;
}

impl Compile for Compiler {
    fn compile<'a>(
        &'a self,
        module: &'a [u8],
        target: &'a str,
    ) -> apiserver::BoxFuture<'a, Result<Compiled, String>> {
        Box::pin(async move { self.compile(module, target).await.map_err(|err| err.to_string()) })
    }
}

/// Compiled code, on disk and in the making.
pub(crate) struct Artifacts {
    dir: PathBuf,
    pki: Arc<Pki>,
    modules: Arc<dyn Modules>,
    compiler: Arc<dyn Compile>,
    bytes_max: u64,
    jobs: Mutex<HashMap<Key, Job>>,
    /// Modules that were found to be what a namespace with that rule asks for.
    checked: Mutex<HashSet<(String, String, ImageRuleV1)>>,
    /// Modules in memory.
    room: Semaphore,
    /// One compilation at a time: each takes all cores and hundreds of MB.
    turn: Semaphore,
}

/// An image that is asked for, what it is to become, and for whom.
type Key = (String, Name, Access);

#[derive(Clone)]
enum Job {
    Runs,
    Failed(Failure, tokio::time::Instant),
    /// What an image without a known digest turned out to be.
    Made(String, tokio::time::Instant),
}

impl Artifacts {
    pub(crate) fn open(
        dir: PathBuf,
        pki: Arc<Pki>,
        modules: Arc<dyn Modules>,
        compiler: Arc<dyn Compile>,
        bytes_max: u64,
    ) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            // Half of a file whose writer was ended.
            if entry.path().extension().is_some_and(|ending| ending == "new") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Arc::new(Self {
            dir,
            pki,
            modules,
            compiler,
            bytes_max,
            jobs: Mutex::default(),
            checked: Mutex::default(),
            room: Semaphore::new(MODULES_MAX),
            turn: Semaphore::new(1),
        }))
    }

    /// Answers one request of a node; `granted` is what its pods want of it.
    pub(crate) async fn serve<S>(
        self: &Arc<Self>,
        stream: &mut S,
        request: &ArtifactRequestV1,
        granted: Option<Granted>,
    ) -> io::Result<()>
    where
        S: tokio::io::AsyncWrite + Unpin,
    {
        let response = match granted {
            None => BlobResponseV1::Failed(
                "Forbidden".to_owned(),
                "no WASM container of that name in that pod on this node".to_owned(),
            ),
            Some(granted) => {
                let response = self.get(&granted, &request.target);
                match &response {
                    // Looked at where a download begins; one that goes on is checked by the
                    // node, which then begins anew.
                    BlobResponseV1::Ready(artifact)
                        if request.offset == 0 && !self.is_whole(artifact).await =>
                    {
                        self.get(&granted, &request.target)
                    }
                    _ => response,
                }
            }
        };
        respond(stream, &response).await?;
        if let BlobResponseV1::Ready(artifact) = response {
            let name = Name { module: artifact.module, target: artifact.target };
            let file = fs::File::open(self.path(&name, "cwasm"))?;
            // What is used stays; where this fails, it goes early and is made again.
            let _ = file.set_modified(SystemTime::now());
            let mut file = tokio::fs::File::from_std(file);
            file.seek(io::SeekFrom::Start(request.offset)).await?;
            tokio::io::copy(&mut file, stream).await?;
        }
        Ok(())
    }

    /// The code, if it is there; else it is being made.
    fn get(self: &Arc<Self>, granted: &Granted, target: &WasmTargetV1) -> BlobResponseV1 {
        let Granted { image, digest, access } = granted;
        let here = target.engine == wasm::engine::ENGINE_VERSION
            && target.profile == wasm::engine::PROFILE
            && wasm::engine::TARGETS.contains(&target.target.as_str());
        if !here {
            return BlobResponseV1::Failed(
                "UnsupportedEngine".to_owned(),
                format!(
                    "the node runs wasmtime {} profile {} for {:?}, the master compiles for {} profile {}: \
                     bring agent and master to the same release",
                    target.engine,
                    target.profile,
                    target.target,
                    wasm::engine::ENGINE_VERSION,
                    wasm::engine::PROFILE
                ),
            );
        }
        let name = Name { module: digest.to_owned(), target: target.clone() };
        let rule = self.modules.rule(&access.namespace);
        if !digest.is_empty()
            && self.is_checked(image, digest, rule.as_ref())
            && let Some(artifact) = self.on_disk(&name)
        {
            return BlobResponseV1::Ready(artifact);
        }
        let key = (image.to_owned(), name, access.clone());
        let mut jobs = self.jobs.lock().expect("no panic while it is held");
        match jobs.get(&key) {
            Some(Job::Runs) => return BlobResponseV1::Wait(WAIT_MS),
            Some(Job::Failed((reason, message), at)) if at.elapsed() < RESULT_LIFE => {
                return BlobResponseV1::Failed(reason.clone(), message.clone());
            }
            Some(Job::Made(module, at))
                if at.elapsed() < RESULT_LIFE && self.is_checked(image, module, rule.as_ref()) =>
            {
                let name = Name { module: module.clone(), target: target.clone() };
                if let Some(artifact) = self.on_disk(&name) {
                    return BlobResponseV1::Ready(artifact);
                }
            }
            _ => (),
        }
        // Forgets results nobody asks for any more.
        jobs.retain(|_, job| match job {
            Job::Runs => true,
            Job::Failed(_, at) | Job::Made(_, at) => at.elapsed() < RESULT_LIFE,
        });
        jobs.insert(key.clone(), Job::Runs);
        drop(jobs);
        tokio::spawn(Arc::clone(self).make(key));
        BlobResponseV1::Wait(WAIT_MS)
    }

    /// Whether a module is known to be what a namespace asks for.
    fn is_checked(&self, image: &str, module: &str, rule: Option<&ImageRuleV1>) -> bool {
        let Some(rule) = rule else { return true };
        let checked = self.checked.lock().expect("no panic while it is held");
        checked.contains(&(image.to_owned(), module.to_owned(), rule.clone()))
    }

    async fn make(self: Arc<Self>, key: Key) {
        let (image, name, access) = &key;
        // Read before the check: one that changes meanwhile is checked again.
        let rule = self.modules.rule(&access.namespace);
        let result = self.try_make(image, name, access).await;
        if let (Ok(module), Some(rule)) = (&result, rule) {
            let mut checked = self.checked.lock().expect("no panic while it is held");
            if checked.len() >= CHECKED_MAX {
                checked.clear();
            }
            checked.insert((image.clone(), module.clone(), rule));
        }
        let mut jobs = self.jobs.lock().expect("no panic while it is held");
        match result {
            Ok(module) => {
                jobs.insert(key, Job::Made(module, tokio::time::Instant::now()));
            }
            Err(failure) => {
                warn!(image, target = name.target.target, reason = failure.0, "{}", failure.1);
                jobs.insert(key, Job::Failed(failure, tokio::time::Instant::now()));
            }
        }
    }

    /// Returns the digest of the module.
    async fn try_make(&self, image: &str, name: &Name, access: &Access) -> Result<String, Failure> {
        let _room = self.room.acquire().await.expect("the semaphore is never closed");
        let (module, bytes) = self.modules.fetch(image, &name.module, access).await?;
        let name = Name { module, target: name.target.clone() };
        let _turn = self.turn.acquire().await.expect("the semaphore is never closed");
        if self.on_disk(&name).is_some() {
            return Ok(name.module);
        }
        let started = tokio::time::Instant::now();
        let n_bytes = bytes.len();
        let compiled = self.compiler.compile(&bytes, &name.target.target).await;
        let Compiled { code, world } = compiled
            .map_err(|err| ("InvalidModule".to_owned(), format!("image {image:?}: {err}")))?;
        let mut artifact = ArtifactV1 {
            module: name.module.clone(),
            target: name.target.clone(),
            world,
            sha256: sha256(&code),
            size: code.len() as u64,
            signature: Vec::new(),
        };
        artifact.signature = self.pki.sign_artifact(&artifact.signed_bytes());
        let signature = postcard::to_stdvec(&artifact).expect("an artifact is plain data");
        let write = replace(&self.path(&name, "cwasm"), &code)
            // The signature last: it says that the code beside it is whole.
            .and_then(|()| replace(&self.path(&name, "sig"), &signature));
        write.map_err(|err| {
            let dir = self.dir.display();
            ("ArtifactStorage".to_owned(), format!("cannot write in {dir} on the master: {err}"))
        })?;
        self.make_room(&name);
        info!(
            image,
            module = name.module,
            target = name.target.target,
            n_bytes,
            compiled_bytes = code.len(),
            took = ?started.elapsed(),
            "module compiled"
        );
        Ok(name.module)
    }

    /// The signed description of what is on disk; `None` where anything of it is amiss.
    fn on_disk(&self, name: &Name) -> Option<ArtifactV1> {
        let signature = fs::read(self.path(name, "sig")).ok()?;
        let artifact: ArtifactV1 = postcard::from_bytes(&signature).ok()?;
        let size = fs::metadata(self.path(name, "cwasm")).ok()?.len();
        let fits = artifact.module == name.module
            && artifact.target == name.target
            && artifact.size == size;
        // A restored or copied folder may be of another cluster.
        let key = self.pki.artifact_public_key();
        let ours = wasm::artifact::verify_signature(&artifact, &key).is_ok();
        (fits && ours).then_some(artifact)
    }

    /// Whether the code on disk is what was signed; else it is removed.
    async fn is_whole(&self, artifact: &ArtifactV1) -> bool {
        let name = Name { module: artifact.module.clone(), target: artifact.target.clone() };
        let (path, expected) = (self.path(&name, "cwasm"), artifact.sha256);
        let code = path.clone();
        let hash = tokio::task::spawn_blocking(move || hash(&code)).await;
        let is_whole = matches!(hash, Ok(Ok(found)) if found == expected);
        if !is_whole {
            warn!(module = artifact.module, "{} is damaged, compiling anew", path.display());
            let _ = fs::remove_file(self.path(&name, "sig"));
            let _ = fs::remove_file(path);
        }
        is_whole
    }

    /// Removes what was served longest ago, but not `made`, until all fits.
    fn make_room(&self, made: &Name) {
        let made = self.path(made, "cwasm");
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut found: Vec<(SystemTime, u64, PathBuf)> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "cwasm"))
            .filter_map(|path| {
                let file = fs::metadata(&path).ok()?;
                Some((file.modified().ok()?, file.len(), path))
            })
            .collect();
        found.sort();
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in found.into_iter().filter(|(_, _, path)| *path != made) {
            if total <= self.bytes_max {
                return;
            }
            // A node that downloads it has it open and gets all of it.
            let _ = fs::remove_file(path.with_extension("sig"));
            if fs::remove_file(&path).is_ok() {
                total -= bytes;
                info!(path = %path.display(), "removed compiled code: there is too much of it");
            }
        }
    }

    fn path(&self, name: &Name, ending: &str) -> PathBuf {
        let module = name.module.strip_prefix("sha256:").unwrap_or(&name.module);
        let WasmTargetV1 { engine, target, profile } = &name.target;
        self.dir.join(format!("{module}-{engine}-{profile}-{target}.{ending}"))
    }
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = fs::File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut chunk = vec![0; 64 << 10];
    loop {
        match io::Read::read(&mut file, &mut chunk)? {
            0 => break,
            n => context.update(&chunk[..n]),
        }
    }
    Ok(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests;
