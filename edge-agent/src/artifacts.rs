//! Compiled WASM on this node: asked of the master, verified, kept.
//!
//! ```text
//! artifacts/<module hex>-<target hash>.cwasm   the compiled bytes
//! artifacts/<module hex>-<target hash>.signed  what the cluster signed about them
//! artifacts/….part                             a download that goes on where it was
//! artifacts/….checked                          keys for which the master found the image signed
//! ```
//!
//! A node that is cut off starts modules from here. The signature is checked
//! before anything is kept, and again by the guest's process before it maps the
//! code; so a broken disk is found there, and the file is fetched anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::signature::TrustedKeys;
use runtime::{ArtifactSignature, BoxFuture, World};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::artifact::{ArtifactRequestV1, ArtifactV1, BlobRequestV1, BlobResponseV1, WorldV1};
use wire::node::WasmTargetV1;

use crate::durable::{self, Keep, Magic};
use crate::env::ImageConfig;
use crate::id;
use crate::image_gc::Needed;
use crate::images::{ImageContent, ImageError, ImageRequest, Progress, ReadyImage};
use crate::images::{present, pulled, pulling};

const MAGIC: Magic = *b"PNart\0\0\x01";
const SIGNED_BYTES_MAX: u64 = 4 << 10;

/// Largest compiled module, in bytes.
const ARTIFACT_BYTES_MAX: u64 = 512 << 20;
/// Longest wait the master may ask for, before the agent asks again.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long all waiting for a compilation may take in one attempt.
const WAIT_TOTAL: Duration = Duration::from_secs(300);
/// How long the master may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A connection to the master.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Opens connections of their own to the node port.
pub trait Dial: Send + Sync + 'static {
    /// Connects with this ALPN name.
    fn dial(&self, alpn: &'static [u8]) -> BoxFuture<'_, io::Result<Box<dyn Connection>>>;
}

/// The compiled modules of this node.
pub struct Artifacts {
    folder: PathBuf,
    target: Option<WasmTargetV1>,
    key: Mutex<Option<[u8; 32]>>,
    dial: Arc<dyn Dial>,
    /// When files were last asked for, since the start.
    uses: Mutex<BTreeMap<PathBuf, tokio::time::Instant>>,
    /// One fetch at a time for each file.
    fetches: Mutex<BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifacts").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Artifacts {
    /// The modules kept in `folder`, for what this node maps.
    #[must_use]
    pub fn new(folder: PathBuf, target: Option<WasmTargetV1>, dial: Arc<dyn Dial>) -> Self {
        let (key, uses, fetches) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { folder, target, key, dial, uses, fetches }
    }

    /// Modules that may go, with when they were last asked for, the one used longest
    /// ago first; those used within `age_min` stay.
    #[must_use]
    pub fn unused(
        &self,
        needed: &Needed,
        age_min: Duration,
    ) -> Vec<(Option<tokio::time::Instant>, PathBuf)> {
        let Some(target) = &self.target else { return Vec::new() };
        let named: BTreeSet<PathBuf> =
            needed.modules.iter().map(|module| self.path(module, target)).collect();
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_code = path.extension().is_some_and(|extension| extension == "cwasm");
            let last = uses.get(&path).copied();
            if is_code
                && !named.contains(&path)
                && !needed.artifacts.contains(&path)
                && last.is_none_or(|at| at.elapsed() >= age_min)
            {
                let written = entry.metadata().and_then(|file| file.modified()).ok();
                unused.push((last, written, path));
            }
        }
        unused.sort();
        unused.into_iter().map(|(last, _, path)| (last, path)).collect()
    }

    /// Removes a module's code, and what is known of it.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        // The description first: code without one is nothing.
        for path in [&path.with_extension("signed"), &path.with_extension("checked"), path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whose signature counts from now on.
    pub fn set_key(&self, key: [u8; 32]) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// Has a module's compiled code on disk.
    ///
    /// # Errors
    /// The node cannot run WASM, the master does not answer or says why not, or
    /// what it sent is not signed by the cluster.
    pub async fn get(
        &self,
        request: &ImageRequest,
        keys: Option<&TrustedKeys>,
        progress: Progress<'_>,
    ) -> Result<ReadyImage, ImageError> {
        let target = self.target.clone().ok_or_else(|| {
            ImageError::pull("this node cannot run WASM; label the pod for nodes that can")
        })?;
        let key = (*self.key.lock().unwrap_or_else(PoisonError::into_inner))
            .ok_or_else(|| ImageError::pull("the artifact key of the cluster is not known yet"))?;
        if !request.digest.is_empty()
            && self.is_checked(&request.digest, &target, keys)
            && let Some(ready) = self.kept(&request.digest, &target, &key)
        {
            progress(present(request));
            return Ok(ready);
        }
        if request.policy == wire::pod::PullPolicyV1::Never {
            return Err(ImageError::new(
                "ErrImageNeverPull",
                format!(
                    "Container image \"{}\" is not present with pull policy of Never",
                    request.reference
                ),
            ));
        }
        let name = if request.digest.is_empty() { &request.reference } else { &request.digest };
        let lock = self.lock(&self.path(name, &target));
        let _one = lock.lock().await;
        if !request.digest.is_empty()
            && self.is_checked(&request.digest, &target, keys)
            && let Some(ready) = self.kept(&request.digest, &target, &key)
        {
            progress(present(request));
            return Ok(ready);
        }
        progress(pulling(request));
        let start = tokio::time::Instant::now();
        if request.digest.is_empty() || self.kept(&request.digest, &target, &key).is_some() {
            // What the name stands for, and whether it may run, is the master's to say;
            // its code may be here all the same.
            let artifact = self.fetch(request, &target, &key, false).await?;
            self.mark_checked(&artifact.module, &target, keys)?;
            if let Some(ready) = self.kept(&artifact.module, &target, &key) {
                progress(present(request));
                return Ok(ready);
            }
        }
        let artifact = self.fetch(request, &target, &key, true).await?;
        self.mark_checked(&artifact.module, &target, keys)?;
        progress(pulled(request, start.elapsed(), artifact.size));
        self.kept(&artifact.module, &target, &key)
            .ok_or_else(|| ImageError::pull("the fetched module is gone from the disk"))
    }

    /// Whether the master has found a module signed by one of these keys.
    fn is_checked(&self, module: &str, target: &WasmTargetV1, keys: Option<&TrustedKeys>) -> bool {
        let Some(keys) = keys else { return true };
        let path = self.path(module, target).with_extension("checked");
        fs::read_to_string(path).is_ok_and(|text| text == keys.fingerprint().to_string())
    }

    fn mark_checked(
        &self,
        module: &str,
        target: &WasmTargetV1,
        keys: Option<&TrustedKeys>,
    ) -> Result<(), ImageError> {
        let Some(keys) = keys else { return Ok(()) };
        let path = self.path(module, target).with_extension("checked");
        let new = path.with_extension("checked-new");
        let written = File::create(&new)
            .and_then(|mut file| {
                file.write_all(keys.fingerprint().to_string().as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| ImageError::pull(format!("{}: {error}", path.display())))
    }

    fn lock(&self, path: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        fetches.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(fetches.entry(path.to_owned()).or_default())
    }

    /// Where a module's code for a target is kept.
    fn path(&self, module: &str, target: &WasmTargetV1) -> PathBuf {
        let text = format!("{module}\n{}\n{}\n{}", target.engine, target.target, target.profile);
        let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        self.folder.join(format!("{}.cwasm", id::hex(&hash.as_ref()[..20])))
    }

    /// The code on disk, if it is there whole and still signed for this node.
    fn kept(&self, module: &str, target: &WasmTargetV1, key: &[u8; 32]) -> Option<ReadyImage> {
        let path = self.path(module, target);
        let signed: ArtifactV1 =
            durable::read(&path.with_extension("signed"), MAGIC, SIGNED_BYTES_MAX).ok()??;
        let is_ours = signed.module == module
            && signed.target == *target
            && wasm::artifact::verify_signature(&signed, key).is_ok()
            && fs::metadata(&path).is_ok_and(|file| file.len() == signed.size);
        if is_ours {
            let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
            uses.insert(path.clone(), tokio::time::Instant::now());
        }
        is_ours.then(|| ready(path, signed, *key))
    }

    async fn fetch(
        &self,
        request: &ImageRequest,
        target: &WasmTargetV1,
        key: &[u8; 32],
        with_code: bool,
    ) -> Result<ArtifactV1, ImageError> {
        let deadline = tokio::time::Instant::now() + WAIT_TOTAL;
        let part = self.path(&format!("{}/{}", id::hex(&request.pod), request.container), target);
        let part = part.with_extension("part");
        loop {
            let io = |error: io::Error| {
                ImageError::pull(format!(
                    "cannot fetch the compiled module from the master: {error}"
                ))
            };
            let offset = if with_code {
                fs::metadata(&part).map_or(0, |file| file.len())
            } else {
                // Behind every end: only what describes it.
                ARTIFACT_BYTES_MAX
            };
            let blob = BlobRequestV1::Artifact(ArtifactRequestV1 {
                pod: request.pod,
                container: request.container.clone(),
                target: target.clone(),
                offset,
            });
            let mut connection = quiet(self.dial.dial(wire::ALPN_BLOB)).await.map_err(io)?;
            quiet(send(&mut connection, &blob)).await.map_err(io)?;
            match quiet(receive(&mut connection)).await.map_err(io)? {
                BlobResponseV1::Failed(reason, message) => {
                    return Err(ImageError { reason, message });
                }
                BlobResponseV1::Wait(millis) => {
                    if tokio::time::Instant::now() > deadline {
                        return Err(ImageError::pull("the master has not compiled the module yet"));
                    }
                    let wait = Duration::from_millis(u64::from(millis)).min(WAIT_MAX);
                    tokio::time::sleep(wait.max(Duration::from_millis(20))).await;
                }
                BlobResponseV1::Bytes => {
                    return Err(ImageError::pull("the master answers something else"));
                }
                BlobResponseV1::Ready(artifact) => {
                    if let Err(error) = wasm::artifact::verify_signature(&artifact, key) {
                        return Err(ImageError::new(
                            "SignatureValidationFailed",
                            error.to_string(),
                        ));
                    }
                    if artifact.size > ARTIFACT_BYTES_MAX || artifact.target != *target {
                        return Err(ImageError::pull(format!(
                            "module {} came with {} bytes for {}, which this node does not take",
                            artifact.module, artifact.size, artifact.target.target
                        )));
                    }
                    if !with_code {
                        return Ok(artifact);
                    }
                    if offset > artifact.size {
                        // Of another module; from the start, then.
                        fs::remove_file(&part).map_err(io)?;
                        continue;
                    }
                    download(&mut connection, &part, offset, artifact.size).await.map_err(io)?;
                    let path = part.clone();
                    let sha256 = tokio::task::spawn_blocking(move || hash(&path))
                        .await
                        .expect("hashing does not panic")
                        .map_err(io)?;
                    return self.keep(&part, sha256, artifact);
                }
            }
        }
    }

    /// Takes a finished download in, once it is what was signed.
    fn keep(
        &self,
        part: &Path,
        sha256: [u8; 32],
        artifact: ArtifactV1,
    ) -> Result<ArtifactV1, ImageError> {
        let io = |error: io::Error| ImageError::pull(format!("{}: {error}", part.display()));
        if sha256 != artifact.sha256 {
            // A part of an older compilation, or damaged on the way: from the start.
            fs::remove_file(part).map_err(io)?;
            return Err(ImageError::pull(format!(
                "the compiled module {} was damaged on the way; it is fetched again",
                artifact.module
            )));
        }
        let path = self.path(&artifact.module, &artifact.target);
        File::open(part).and_then(|file| file.sync_all()).map_err(io)?;
        fs::rename(part, &path).map_err(io)?;
        durable::write(&path.with_extension("signed"), MAGIC, &artifact, Keep::ThroughPowerLoss)
            .map_err(|error| ImageError::pull(error.to_string()))?;
        Ok(artifact)
    }
}

fn ready(path: PathBuf, signed: ArtifactV1, key: [u8; 32]) -> ReadyImage {
    ReadyImage {
        id: signed.module.clone(),
        content: ImageContent::Wasm {
            artifact: path,
            sha256: signed.sha256,
            signature: ArtifactSignature {
                module: signed.module,
                engine: signed.target.engine,
                target: signed.target.target,
                profile: signed.target.profile,
                world: match signed.world {
                    WorldV1::Command => World::Command,
                    WorldV1::Http => World::Http,
                },
                size: signed.size,
                bytes: signed.signature,
            },
            key,
        },
        config: ImageConfig::default(),
    }
}

pub(crate) async fn quiet<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(SILENCE_MAX, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the master does not answer")),
    }
}

/// Sends a postcard message behind its length (u16, little-endian).
///
/// # Errors
/// The connection ends, or the message is longer than 64 KiB.
pub async fn send<T: Serialize>(
    connection: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u16::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    connection.write_all(&bytes).await?;
    connection.flush().await
}

/// Receives what [`send`] sent.
///
/// # Errors
/// The connection ends, or the message does not decode.
pub async fn receive<T: DeserializeOwned>(
    connection: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let length = connection.read_u16_le().await?;
    let mut body = vec![0; usize::from(length)];
    connection.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

async fn download(
    connection: &mut (impl AsyncRead + Unpin),
    part: &Path,
    offset: u64,
    size: u64,
) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(part)?;
    let mut left = size - offset;
    let mut chunk = vec![0; 64 << 10];
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        let n = quiet(connection.read(&mut chunk[..room])).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all(&chunk[..n])?;
        left -= n as u64;
    }
    Ok(())
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => context.update(&chunk[..n]),
        }
    }
    Ok(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Happening;
    use ring::signature::{Ed25519KeyPair, KeyPair};
    use std::collections::VecDeque;
    use wire::pod::{PullPolicyV1, RuntimeV1};

    /// What the fake master does with one connection.
    enum Answer {
        Wait,
        Failed,
        Send { cut_after: Option<usize>, damage: bool, signed: bool },
    }

    struct Master {
        answers: Mutex<VecDeque<Answer>>,
        code: Vec<u8>,
        key: Ed25519KeyPair,
        offsets: Mutex<Vec<u64>>,
    }

    impl Master {
        fn new(answers: Vec<Answer>) -> Arc<Self> {
            let key = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
            Arc::new(Self {
                answers: Mutex::new(answers.into()),
                code: (0..200_000_u32).flat_map(|n| n.to_le_bytes()).collect(),
                key,
                offsets: Mutex::default(),
            })
        }

        fn public(&self) -> [u8; 32] {
            self.key.public_key().as_ref().try_into().unwrap()
        }

        fn artifact(&self, signed: bool) -> ArtifactV1 {
            let sha256 = ring::digest::digest(&ring::digest::SHA256, &self.code);
            let mut artifact = ArtifactV1 {
                module: "sha256:m".into(),
                target: target(),
                world: WorldV1::Command,
                sha256: sha256.as_ref().try_into().unwrap(),
                size: self.code.len() as u64,
                signature: vec![0; 64],
            };
            if signed {
                artifact.signature = self.key.sign(&artifact.signed_bytes()).as_ref().to_vec();
            }
            artifact
        }
    }

    struct ToMaster(Arc<Master>);

    impl Dial for ToMaster {
        fn dial(&self, alpn: &'static [u8]) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
            assert_eq!(alpn, wire::ALPN_BLOB);
            let (ours, mut theirs) = tokio::io::duplex(4096);
            let master = Arc::clone(&self.0);
            let answer = master.answers.lock().unwrap().pop_front();
            tokio::spawn(async move {
                let request: BlobRequestV1 = receive(&mut theirs).await.unwrap();
                let BlobRequestV1::Artifact(request) = request else { panic!("not wasm") };
                master.offsets.lock().unwrap().push(request.offset);
                let response = match &answer {
                    None => return,
                    Some(Answer::Wait) => BlobResponseV1::Wait(1),
                    Some(Answer::Failed) => {
                        BlobResponseV1::Failed("InvalidModule".into(), "not wasm".into())
                    }
                    Some(Answer::Send { signed, .. }) => {
                        BlobResponseV1::Ready(master.artifact(*signed))
                    }
                };
                send(&mut theirs, &response).await.unwrap();
                if let Some(Answer::Send { cut_after, damage, .. }) = answer {
                    let start = usize::try_from(request.offset).unwrap().min(master.code.len());
                    let mut code = master.code[start..].to_vec();
                    if damage && !code.is_empty() {
                        code[0] ^= 1;
                    }
                    code.truncate(cut_after.unwrap_or(usize::MAX));
                    let _ = theirs.write_all(&code).await;
                }
            });
            Box::pin(async move { Ok(Box::new(ours) as Box<dyn Connection>) })
        }
    }

    fn target() -> WasmTargetV1 {
        WasmTargetV1 { engine: "48".into(), target: "here".into(), profile: 1 }
    }

    fn request(digest: &str) -> ImageRequest {
        ImageRequest {
            pod: [7; 16],
            namespace: "default".into(),
            container: "a".into(),
            reference: "registry/m:1".into(),
            digest: digest.into(),
            runtime: RuntimeV1::Wasm,
            policy: PullPolicyV1::IfNotPresent,
            keyring: image::Keyring::default(),
            secrets: Vec::new(),
        }
    }

    const WHOLE: Answer = Answer::Send { cut_after: None, damage: false, signed: true };

    fn node(master: &Arc<Master>, folder: &Path) -> Artifacts {
        let dial = Arc::new(ToMaster(Arc::clone(master)));
        let node = Artifacts::new(folder.to_owned(), Some(target()), dial);
        node.set_key(master.public());
        node
    }

    #[tokio::test]
    async fn a_module_is_waited_for_fetched_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::new(vec![Answer::Wait, Answer::Wait, WHOLE, WHOLE]);
        let said = Mutex::new(Vec::new());
        let say = |h: Happening| said.lock().unwrap().push(h.reason);
        let got = node(&master, folder.path()).get(&request(""), None, &say).await.unwrap();
        let ImageContent::Wasm { artifact, .. } = &got.content else { panic!("not wasm") };
        assert_eq!(fs::read(artifact).unwrap(), master.code);
        assert_eq!(*said.lock().unwrap(), ["Pulling", "Pulled"]);
        // Without the master, from disk, by another agent process.
        let again =
            node(&master, folder.path()).get(&request("sha256:m"), None, &say).await.unwrap();
        assert_eq!(again, got);
        assert_eq!(master.offsets.lock().unwrap().len(), 4);
    }

    #[tokio::test]
    async fn a_cut_download_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let cut = Answer::Send { cut_after: Some(100_000), damage: false, signed: true };
        let master = Master::new(vec![cut, WHOLE]);
        let node = node(&master, folder.path());
        let error = node.get(&request("sha256:m"), None, &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, "ErrImagePull");
        node.get(&request("sha256:m"), None, &|_| {}).await.unwrap();
        assert_eq!(*master.offsets.lock().unwrap(), [0, 100_000]);
    }

    #[tokio::test]
    async fn nothing_that_is_damaged_or_unsigned_is_kept() {
        for (answer, reason) in [
            (Answer::Send { cut_after: None, damage: true, signed: true }, "ErrImagePull"),
            (
                Answer::Send { cut_after: None, damage: false, signed: false },
                "SignatureValidationFailed",
            ),
            (Answer::Failed, "InvalidModule"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let master = Master::new(vec![answer, WHOLE]);
            let node = node(&master, folder.path());
            let error = node.get(&request("sha256:m"), None, &|_| {}).await.unwrap_err();
            assert_eq!(error.reason, reason);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{reason}");
            node.get(&request("sha256:m"), None, &|_| {}).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_lost_bytes_is_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::new(vec![WHOLE, WHOLE]);
        let node = node(&master, folder.path());
        let got = node.get(&request("sha256:m"), None, &|_| {}).await.unwrap();
        let ImageContent::Wasm { artifact, .. } = &got.content else { panic!("not wasm") };
        fs::write(artifact, "short").unwrap();
        node.get(&request("sha256:m"), None, &|_| {}).await.unwrap();
        assert_eq!(fs::read(artifact).unwrap(), master.code);
    }

    #[tokio::test]
    async fn code_that_is_here_waits_for_the_masters_word_where_keys_count() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || Answer::Failed;
        let master = Master::new(vec![WHOLE, refused(), WHOLE, refused()]);
        let node = node(&master, folder.path());
        let prefix = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
        let point = "A".repeat(86);
        let pem = format!("-----BEGIN PUBLIC KEY-----{prefix}{point}==-----END PUBLIC KEY-----");
        let keys = TrustedKeys::from_pem(&pem).unwrap();
        // For a namespace without keys.
        node.get(&request("sha256:m"), None, &|_| {}).await.unwrap();
        // With keys the master is asked, and may refuse; its word is kept.
        let request = request("sha256:m");
        let error = node.get(&request, Some(&keys), &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, "InvalidModule");
        node.get(&request, Some(&keys), &|_| {}).await.unwrap();
        node.get(&request, Some(&keys), &|_| {}).await.unwrap();
        assert_eq!(master.offsets.lock().unwrap().len(), 3);
        // Nobody needs it: it goes with all that is known of it.
        assert!(node.unused(&Needed::default(), Duration::from_secs(60)).is_empty());
        let needed = Needed { modules: BTreeSet::from(["sha256:m".into()]), ..Needed::default() };
        assert!(node.unused(&needed, Duration::ZERO).is_empty());
        let unused = node.unused(&Needed::default(), Duration::ZERO);
        assert_eq!(unused.len(), 1);
        node.remove(&unused[0].1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn never_means_never() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::new(vec![WHOLE]);
        let request = ImageRequest { policy: PullPolicyV1::Never, ..request("sha256:m") };
        let error = node(&master, folder.path()).get(&request, None, &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, "ErrImageNeverPull");
    }
}
