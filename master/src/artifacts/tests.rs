//! The cache of compiled code, with a registry and a compiler that count.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;
use wire::artifact::WorldV1;

use super::*;

/// Both sides of the cache.
#[derive(Default)]
struct Fakes {
    n_fetched: AtomicUsize,
    n_compiled: AtomicUsize,
    /// Modules that are being compiled now, and the most there ever were.
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
}

impl Modules for Fakes {
    fn fetch(
        &self,
        image: &str,
        digest: &str,
        _: &Access,
    ) -> apiserver::BoxFuture<'_, Result<(String, Vec<u8>), Failure>> {
        self.n_fetched.fetch_add(1, Ordering::Relaxed);
        let digest = if digest.is_empty() { format!("sha256:{image}") } else { digest.to_owned() };
        let bytes = image.as_bytes().to_vec();
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok((digest, bytes))
        })
    }

    fn rule(&self, _: &str) -> Option<ImageRuleV1> {
        None
    }
}

impl Compile for Fakes {
    fn compile<'a>(
        &'a self,
        module: &'a [u8],
        target: &'a str,
    ) -> apiserver::BoxFuture<'a, Result<Compiled, String>> {
        Box::pin(async move {
            let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.at_once_max.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.at_once.fetch_sub(1, Ordering::Relaxed);
            self.n_compiled.fetch_add(1, Ordering::Relaxed);
            if module == b"bad" {
                return Err("not a valid module: bad".to_owned());
            }
            let code = format!("{} for {target}{}", module.len(), "x".repeat(1000));
            Ok(Compiled { code: code.into_bytes(), world: WorldV1::Http })
        })
    }
}

struct Master {
    folder: tempfile::TempDir,
    fakes: Arc<Fakes>,
    pki: Arc<Pki>,
    bytes_max: u64,
    artifacts: Arc<Artifacts>,
}

impl Master {
    fn new(bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names = vec![wire::MASTER_SERVER_NAME.to_owned()];
        let pki = Arc::new(Pki::open(&folder.path().join("pki"), &names).unwrap());
        let fakes = Arc::new(Fakes::default());
        let artifacts = Self::open(folder.path(), &pki, &fakes, bytes_max);
        Self { folder, fakes, pki, bytes_max, artifacts }
    }

    fn open(dir: &Path, pki: &Arc<Pki>, fakes: &Arc<Fakes>, bytes_max: u64) -> Arc<Artifacts> {
        let (dir, pki) = (dir.join("artifacts"), Arc::clone(pki));
        Artifacts::open(dir, pki, fakes.clone(), fakes.clone(), bytes_max).unwrap()
    }

    fn restart(&mut self) {
        self.artifacts = Self::open(self.folder.path(), &self.pki, &self.fakes, self.bytes_max);
    }

    /// Asks as a node does, once; returns the answer and the bytes behind it.
    async fn ask(&self, image: &str, digest: &str, offset: u64) -> (BlobResponseV1, Vec<u8>) {
        let (mut node, mut master) = tokio::io::duplex(1 << 20);
        let request =
            ArtifactRequestV1 { pod: [7; 16], container: "c".into(), target: target(), offset };
        let (image, digest) = (image.to_owned(), digest.to_owned());
        let granted = Granted { image, digest, access: Access::default() };
        self.artifacts.serve(&mut master, &request, Some(granted)).await.unwrap();
        drop(master);
        let mut answer = vec![0; usize::from(node.read_u16_le().await.unwrap())];
        node.read_exact(&mut answer).await.unwrap();
        let mut rest = Vec::new();
        node.read_to_end(&mut rest).await.unwrap();
        (postcard::from_bytes(&answer).unwrap(), rest)
    }

    /// Asks until there is more to say than to wait.
    async fn get(&self, image: &str, digest: &str) -> (BlobResponseV1, Vec<u8>) {
        loop {
            let (answer, code) = self.ask(image, digest, 0).await;
            if !matches!(answer, BlobResponseV1::Wait(_)) {
                return (answer, code);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn ready(&self, image: &str, digest: &str) -> (ArtifactV1, Vec<u8>) {
        match self.get(image, digest).await {
            (BlobResponseV1::Ready(artifact), code) => (artifact, code),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn n_compiled(&self) -> usize {
        self.fakes.n_compiled.load(Ordering::Relaxed)
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path().join("artifacts")).unwrap().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    }
}

fn target() -> WasmTargetV1 {
    WasmTargetV1 {
        engine: wasm::engine::ENGINE_VERSION.to_owned(),
        target: wasm::engine::TARGETS[0].to_owned(),
        profile: wasm::engine::PROFILE,
    }
}

#[tokio::test(start_paused = true)]
async fn a_module_is_compiled_once_however_often_it_is_asked_for() {
    let mut master = Master::new(1 << 20);
    let asked = (0..20).map(|n| {
        // Two images may hold one module, and one image may be asked for without its digest.
        let (image, digest) = [("m", "sha256:m"), ("n", "sha256:m"), ("m", "")][n % 3];
        master.ready(image, digest)
    });
    let all = futures::future::join_all(asked).await;
    assert_eq!(master.n_compiled(), 1);
    for (artifact, code) in &all {
        assert_eq!((artifact, code), (&all[0].0, &all[0].1));
        assert_eq!(artifact.sha256, sha256(code));
        assert_eq!(artifact.world, WorldV1::Http);
    }
    // Nor after a restart.
    master.restart();
    master.ready("m", "sha256:m").await;
    assert_eq!(master.n_compiled(), 1);
    // And a download goes on where it was.
    let (_, rest) = master.ask("m", "sha256:m", 10).await;
    assert_eq!(rest, all[0].1[10..]);
}

#[tokio::test(start_paused = true)]
async fn modules_are_compiled_one_after_the_other() {
    let master = Master::new(1 << 20);
    let names: Vec<(String, String)> =
        (0..10).map(|n| (format!("m{n}"), format!("sha256:{n}"))).collect();
    let asked = names.iter().map(|(image, digest)| master.ready(image, digest));
    futures::future::join_all(asked).await;
    assert_eq!(master.n_compiled(), 10);
    assert_eq!(master.fakes.at_once_max.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_made_anew() {
    let mut master = Master::new(1 << 20);
    let (artifact, code) = master.ready("m", "sha256:m").await;
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 5] = [
        ("cwasm", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[5] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("cwasm", |path| fs::write(path, "short").unwrap()),
        ("cwasm", |path| fs::remove_file(path).unwrap()),
        ("sig", |path| fs::write(path, [0xff; 300]).unwrap()),
        ("sig", |path| {
            let mut bytes = fs::read(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (n, (ending, damage)) in damage.into_iter().enumerate() {
        damage(&master.files(ending)[0]);
        master.restart();
        assert_eq!(master.ready("m", "sha256:m").await, (artifact.clone(), code.clone()));
        assert_eq!(master.n_compiled(), n + 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_folder_is_bounded_and_what_is_used_stays() {
    // Room for three of a thousand bytes and some.
    let master = Master::new(3500);
    let age = |digest: &str, seconds: u64| {
        let name = Name { module: digest.to_owned(), target: target() };
        let file = fs::File::open(master.artifacts.path(&name, "cwasm")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    for n in 0..3 {
        master.ready("m", &format!("sha256:{n}")).await;
        age(&format!("sha256:{n}"), 100 - n);
    }
    // The oldest, but used just now.
    master.ready("m", "sha256:0").await;
    assert_eq!(master.n_compiled(), 3);
    master.ready("m", "sha256:3").await;
    assert_eq!((master.files("cwasm").len(), master.files("sig").len()), (3, 3));
    master.ready("m", "sha256:0").await;
    assert_eq!(master.n_compiled(), 4);
    master.ready("m", "sha256:1").await;
    assert_eq!(master.n_compiled(), 5);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_said_and_not_repeated_at_once() {
    let mut master = Master::new(1 << 20);
    for _ in 0..3 {
        let (answer, _) = master.get("bad", "sha256:bad").await;
        let BlobResponseV1::Failed(reason, message) = answer else { panic!("{answer:?}") };
        assert_eq!(reason, "InvalidModule");
        assert_eq!(message, "image \"bad\": not a valid module: bad");
    }
    assert_eq!(master.n_compiled(), 1);
    // What a master that was ended left half is not counted.
    fs::write(master.folder.path().join("artifacts/x.cwasm.new"), "half").unwrap();
    master.restart();
    assert!(master.files("new").is_empty());
}
