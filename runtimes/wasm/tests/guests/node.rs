//! One node as the tests see it: guests, a key, a pod's namespaces and volumes,
//! and the real shim.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use pinnace_wasm::compile::{Compiled, compile};
use pinnace_wasm::engine::{ENGINE_VERSION, PROFILE, local_target};
use ring::signature::{Ed25519KeyPair, KeyPair};
use runtime::{
    ArtifactSignature, ContainerSpec, Exit, Mount, Observed, Resources, Runtime, Sandbox, Security,
    ShimCommand, ShimRuntime, User, Workload, World,
};
use wire::artifact::{ArtifactV1, WorldV1};
use wire::node::WasmTargetV1;

/// The trial guest, as a preview 1 module and as a preview 2 component, and the
/// one that answers HTTP requests.
pub(crate) struct Guests {
    pub(crate) module: Vec<u8>,
    pub(crate) component: Vec<u8>,
    pub(crate) web: Vec<u8>,
}

impl Guests {
    pub(crate) fn build() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/guests");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = |package: &str, targets: &[&str]| {
            let built = Command::new(&cargo)
                .args(["build", "--release", "--locked", "--quiet", "-p", package])
                .args(targets.iter().flat_map(|target| ["--target", target]))
                .current_dir(&dir)
                .env_remove("CARGO_TARGET_DIR")
                .status()
                .unwrap();
            assert!(built.success(), "the guests do not build");
        };
        build("trial", &["wasm32-wasip1", "wasm32-wasip2"]);
        build("web", &["wasm32-wasip2"]);
        let read = |target: &str, name: &str| {
            let path = dir.join("target").join(target).join("release").join(name);
            fs::read(path.with_extension("wasm")).unwrap()
        };
        Self {
            module: read("wasm32-wasip1", "trial"),
            component: read("wasm32-wasip2", "trial"),
            web: read("wasm32-wasip2", "web"),
        }
    }
}

/// One node: a key it trusts, the namespaces of a pod, a volume.
pub(crate) struct Node<'a> {
    pub(crate) guests: &'a Guests,
    folder: tempfile::TempDir,
    pub(crate) key: Ed25519KeyPair,
    /// Compiled code by its size, which tells the guests apart.
    codes: RefCell<BTreeMap<u64, Vec<u8>>>,
    pub(crate) cgroup_root: String,
}

pub(crate) type Test = for<'a> fn(&'a Node<'a>) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

impl<'a> Node<'a> {
    pub(crate) fn new(guests: &'a Guests) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["ns", "read-only", "writable"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("read-only/greeting"), "hello").unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(root.join("writable"), everybody).unwrap();
        let namespaces = root.join("ns");
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
                .unwrap();
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            for name in ["net", "ipc", "uts"] {
                let target = namespaces.join(name);
                fs::File::create(&target).unwrap();
                let source = format!("/proc/thread-self/ns/{name}");
                mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .unwrap();
            }
        })
        .join()
        .unwrap();
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let unique = root.file_name().unwrap().to_str().unwrap().replace('.', "");
        Self {
            guests,
            codes: RefCell::default(),
            key: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap(),
            cgroup_root: format!("/pinnace-test-{unique}"),
            folder,
        }
    }

    /// Code that some spec was made with.
    pub(crate) fn code_of(&self, size: u64) -> Vec<u8> {
        self.codes.borrow()[&size].clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn runtime(&self) -> ShimRuntime {
        self.runtime_with(&["shim"])
    }

    /// Whose shims are this program with other arguments.
    pub(crate) fn runtime_with(&self, shim: &[&str]) -> ShimRuntime {
        let args = shim.iter().map(Into::into).collect();
        let command = ShimCommand { args, ..ShimCommand::default() };
        ShimRuntime::open(&self.path("run"), command).unwrap()
    }

    /// Compiles and signs `module` as the master does.
    fn workload(&self, target: &str, module: &[u8]) -> Workload {
        let Compiled { code, world } = compile(module, target).unwrap();
        let path = self.path("code.cwasm");
        fs::write(&path, &code).unwrap();
        self.codes.borrow_mut().insert(code.len() as u64, code.clone());
        let digest = ring::digest::digest(&ring::digest::SHA256, &code);
        let mut artifact = ArtifactV1 {
            module: "sha256:00".to_owned(),
            target: WasmTargetV1 {
                engine: ENGINE_VERSION.to_owned(),
                target: target.to_owned(),
                profile: PROFILE,
            },
            world,
            sha256: digest.as_ref().try_into().unwrap(),
            size: code.len() as u64,
            signature: Vec::new(),
        };
        artifact.signature = self.key.sign(&artifact.signed_bytes()).as_ref().to_vec();
        Workload::Wasm {
            artifact: path,
            sha256: artifact.sha256,
            signature: ArtifactSignature {
                module: artifact.module,
                engine: artifact.target.engine,
                target: artifact.target.target,
                profile: artifact.target.profile,
                world: match world {
                    WorldV1::Command => World::Command,
                    WorldV1::Http => World::Http,
                },
                size: artifact.size,
                bytes: artifact.signature,
            },
            key: self.key.public_key().as_ref().try_into().unwrap(),
            http_port: 80,
        }
    }

    pub(crate) fn spec(&self, module: &[u8], args: &[&str]) -> ContainerSpec {
        self.spec_for(local_target().unwrap(), module, args)
    }

    /// The same, compiled for another target.
    pub(crate) fn spec_for(&self, target: &str, module: &[u8], args: &[&str]) -> ContainerSpec {
        let name = "guest";
        let mount = |source: &str, destination: &str, read_only| Mount {
            source: self.path(source),
            destination: destination.to_owned(),
            read_only,
            ..Default::default()
        };
        ContainerSpec {
            id: format!("pod-{name}-0"),
            pod_uid: "0000-1111".to_owned(),
            namespace: "default".to_owned(),
            pod: "trial".to_owned(),
            container: name.to_owned(),
            attempt: 0,
            image: "trial:1".to_owned(),
            workload: self.workload(target, module),
            args: std::iter::once("trial").chain(args.iter().copied()).map(str::to_owned).collect(),
            env: vec![("GREETING".to_owned(), "Hej".to_owned())],
            cwd: String::new(),
            user: User::default(),
            mounts: vec![mount("read-only", "/config", true), mount("writable", "/data", false)],
            resources: Resources::default(),
            security: Security::default(),
            stdio: runtime::Stdio::default(),
            sandbox: Sandbox {
                pid: runtime::PidNamespace::default(),
                hostname: "trial".to_owned(),
                net: self.path("ns/net"),
                ipc: self.path("ns/ipc"),
                uts: self.path("ns/uts"),
                shm: PathBuf::new(),
            },
            cgroup: format!("{}/{name}", self.cgroup_root),
            log: self.path("guest.log"),
        }
    }

    pub(crate) async fn until_exit(&self, runtime: &ShimRuntime, id: &str) -> Exit {
        let mut changes = runtime.changes();
        loop {
            changes.borrow_and_update();
            if let Observed::Exited(exit) = runtime.observe(id) {
                return exit;
            }
            changes.changed().await.unwrap();
        }
    }

    /// Runs a guest to its end; returns how it ended and what it said.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        self.run_with(&["shim"], spec).await
    }

    /// The same, behind another kind of shim.
    pub(crate) async fn run_with(&self, shim: &[&str], spec: ContainerSpec) -> (Exit, String) {
        let _ = fs::remove_file(self.path("guest.log"));
        let runtime = self.runtime_with(shim);
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        let exit = self.until_exit(&runtime, &id).await;
        let log = self.log();
        runtime.remove(&id).await.unwrap();
        (exit, log)
    }

    /// What the guest wrote, without times and streams.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.path("guest.log")).unwrap_or_default();
        log.lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or(""))
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub(crate) async fn until_log(&self, text: &str) {
        while !self.log().contains(text) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Does something in the pod's network, on a thread of its own.
    pub(crate) async fn in_pod<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let net = fs::File::open(self.path("ns/net")).unwrap();
        let thread = tokio::task::spawn_blocking(move || {
            // The thread ends with the work: its namespace is nobody else's.
            std::thread::spawn(move || {
                setns(net, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
        });
        thread.await.unwrap()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        for name in ["net", "ipc", "uts"] {
            let _ = umount2(&self.path("ns").join(name), MntFlags::MNT_DETACH);
        }
        // The runtime removes a container's cgroup; the one above is the agent's to remove.
        let above = self.cgroup_root.trim_start_matches('/');
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for root in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let _ = fs::remove_dir(root.join(above));
        }
    }
}
