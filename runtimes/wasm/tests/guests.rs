//! Real guests, compiled, signed and run behind real shims, as root, in
//! namespaces of their own.
//!
//! This program is its own shim (`… shim DIR`) and its own guest process
//! (`… guest DIR`), so it has no libtest harness: `main` runs the tests one
//! after the other, those whose name holds the first argument.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use pinnace_wasm::WasmLauncher;
use pinnace_wasm::compile::compile;
use pinnace_wasm::engine::{ENGINE_VERSION, PROFILE, local_target};
use ring::signature::{Ed25519KeyPair, KeyPair};
use runtime::dir::ContainerDir;
use runtime::{
    ArtifactSignature, ContainerSpec, Exit, Mount, Observed, Resources, Runtime, Sandbox, Security,
    ShimCommand, ShimRuntime, User, Workload,
};
use wire::artifact::ArtifactV1;
use wire::node::WasmTargetV1;

/// Far beyond what anything here takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("shim") => {
            return runtime::shim_main(Path::new(&args[2]), |_| {
                Box::new(WasmLauncher::new("/proc/self/exe".into(), vec!["guest".into()]))
            });
        }
        Some("guest") => return pinnace_wasm::guest_main(Path::new(&args[2])),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: guests are confined by root");
        return ExitCode::SUCCESS;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
    let guests = Guests::build();
    let filter = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let mut n_passed = 0;
    let mut failed = Vec::new();
    for (name, test) in tests() {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let node = Node::new(&guests);
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            node.executor.block_on(async {
                tokio::time::timeout(DEADLINE * 2, test(&node)).await.expect("in time");
            });
        }));
        println!("{}", if result.is_ok() { "ok" } else { "FAILED" });
        match result {
            Ok(()) => n_passed += 1,
            Err(_) => failed.push(name),
        }
    }
    println!("\n{n_passed} passed, {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The trial guest, as a preview 1 module and as a preview 2 component.
struct Guests {
    module: Vec<u8>,
    component: Vec<u8>,
}

impl Guests {
    fn build() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/guests");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--release", "--locked", "--quiet", "-p", "trial"])
            .args(["--target", "wasm32-wasip1", "--target", "wasm32-wasip2"])
            .current_dir(&dir)
            .env_remove("CARGO_TARGET_DIR")
            .status()
            .unwrap();
        assert!(built.success(), "the guests do not build");
        let read = |target: &str| {
            fs::read(dir.join("target").join(target).join("release/trial.wasm")).unwrap()
        };
        Self { module: read("wasm32-wasip1"), component: read("wasm32-wasip2") }
    }
}

/// One node: a key it trusts, the namespaces of a pod, a volume.
struct Node<'a> {
    guests: &'a Guests,
    folder: tempfile::TempDir,
    key: Ed25519KeyPair,
    cgroup_root: String,
    executor: tokio::runtime::Runtime,
}

type Test = for<'a> fn(&'a Node<'a>) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

impl<'a> Node<'a> {
    fn new(guests: &'a Guests) -> Self {
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
            key: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap(),
            cgroup_root: format!("/pinnace-test-{unique}"),
            folder,
            executor: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn runtime(&self) -> ShimRuntime {
        let command = ShimCommand::default();
        ShimRuntime::open(&self.path("run"), command).unwrap()
    }

    /// Compiles and signs `module` as the master does.
    fn workload(&self, module: &[u8]) -> Workload {
        let code = compile(module, local_target().unwrap()).unwrap();
        let path = self.path("code.cwasm");
        fs::write(&path, &code).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, &code);
        let mut artifact = ArtifactV1 {
            module: "sha256:00".to_owned(),
            target: WasmTargetV1 {
                engine: ENGINE_VERSION.to_owned(),
                target: local_target().unwrap().to_owned(),
                profile: PROFILE,
            },
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
                size: artifact.size,
                bytes: artifact.signature,
            },
            key: self.key.public_key().as_ref().try_into().unwrap(),
        }
    }

    fn spec(&self, module: &[u8], args: &[&str]) -> ContainerSpec {
        let name = "guest";
        let mount = |source: &str, destination: &str, read_only| Mount {
            source: self.path(source),
            destination: destination.to_owned(),
            read_only,
            ..Mount::default()
        };
        ContainerSpec {
            id: format!("pod-{name}-0"),
            pod_uid: "0000-1111".to_owned(),
            namespace: "default".to_owned(),
            pod: "trial".to_owned(),
            container: name.to_owned(),
            attempt: 0,
            image: "trial:1".to_owned(),
            workload: self.workload(module),
            args: std::iter::once("trial").chain(args.iter().copied()).map(str::to_owned).collect(),
            env: vec![("GREETING".to_owned(), "Hej".to_owned())],
            cwd: String::new(),
            user: User::default(),
            mounts: vec![mount("read-only", "/config", true), mount("writable", "/data", false)],
            resources: Resources::default(),
            security: Security::default(),
            sandbox: Sandbox {
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

    async fn until_exit(&self, runtime: &ShimRuntime, id: &str) -> Exit {
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
    async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        let runtime = self.runtime();
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        let exit = self.until_exit(&runtime, &id).await;
        let log = self.log();
        runtime.remove(&id).await.unwrap();
        (exit, log)
    }

    /// What the guest wrote, without times and streams.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("guest.log")).unwrap_or_default();
        log.lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or(""))
            .collect::<Vec<_>>()
            .join("\n")
    }

    async fn until_log(&self, text: &str) {
        while !self.log().contains(text) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        for name in ["net", "ipc", "uts"] {
            let _ = umount2(&self.path("ns").join(name), MntFlags::MNT_DETACH);
        }
    }
}

macro_rules! tests {
    ($($name:ident,)*) => {
        fn tests() -> Vec<(&'static str, Test)> {
            vec![$((stringify!($name), |node| Box::pin($name(node)))),*]
        }
    };
}

tests! {
    both_kinds_run_with_arguments_and_variables,
    volumes_are_where_they_were_mounted_and_nothing_else_is,
    exit_codes_are_the_guests_own,
    a_panic_is_134_and_said_in_the_log,
    the_memory_limit_ends_the_guest_as_out_of_memory,
    sigterm_stops_a_guest_that_waits,
    sigterm_stops_a_guest_that_computes,
    the_process_has_no_privilege_left,
    damaged_code_is_never_mapped,
    code_of_another_key_is_never_mapped,
    raw_bytes_that_are_signed_are_not_run,
    non_root_refuses_user_zero,
    nothing_is_left_after_removal,
}

async fn both_kinds_run_with_arguments_and_variables(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let (exit, log) = node.run(node.spec(module, &["args", "env", "GREETING"])).await;
        assert_eq!(exit.code, 0, "{log}");
        assert!(log.contains(r#"["trial", "args", "env", "GREETING"]"#), "{log}");
        assert!(log.contains(r#"Ok("Hej")"#), "{log}");
    }
}

async fn volumes_are_where_they_were_mounted_and_nothing_else_is(node: &Node<'_>) {
    let args = [
        "read",
        "/config/greeting",
        "write",
        "/config/x",
        "write",
        "/data/x",
        "write",
        "/x",
        "read",
        "/etc/passwd",
        "read",
        "/data/../../etc/passwd",
        "list",
        "/",
    ];
    for module in [&node.guests.module, &node.guests.component] {
        let (_, log) = node.run(node.spec(module, &args)).await;
        assert!(log.contains(r#"/config/greeting: "hello""#), "{log}");
        assert!(log.contains("/data/x: written"), "{log}");
        for path in ["/config/x: ", "/x: ", "/etc/passwd: "] {
            let line = log.lines().find(|line| line.starts_with(path)).unwrap();
            assert!(!line.contains("written") && !line.contains("root"), "{log}");
        }
        assert!(log.contains(r#"/: ["config", "data"]"#), "{log}");
    }
    assert!(node.path("writable/x").exists());
    assert!(!node.path("read-only/x").exists());
}

async fn exit_codes_are_the_guests_own(node: &Node<'_>) {
    let (exit, _) = node.run(node.spec(&node.guests.module, &["exit", "7"])).await;
    assert_eq!(exit.code, 7);
    // Preview 2 has success and failure only.
    let (exit, _) = node.run(node.spec(&node.guests.component, &["exit", "7"])).await;
    assert_eq!(exit.code, 1);
}

async fn a_panic_is_134_and_said_in_the_log(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let (exit, log) = node.run(node.spec(module, &["panic"])).await;
        assert_eq!(exit.code, 134, "{log}");
        assert!(log.contains("as asked") && log.contains("pinnace: the guest ended"), "{log}");
    }
}

async fn the_memory_limit_ends_the_guest_as_out_of_memory(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let mut spec = node.spec(module, &["allocate", "64"]);
        spec.resources.memory_limit_bytes = 16 << 20;
        let (exit, log) = node.run(spec).await;
        assert_eq!((exit.code, exit.oom_killed), (137, true), "{log}");
        let mut spec = node.spec(module, &["allocate", "4"]);
        spec.resources.memory_limit_bytes = 16 << 20;
        let (exit, log) = node.run(spec).await;
        assert_eq!((exit.code, exit.oom_killed), (0, false), "{log}");
    }
}

async fn sigterm_stops_a_guest_that_waits(node: &Node<'_>) {
    stops(node, "sleep", "sleeping").await;
}

async fn sigterm_stops_a_guest_that_computes(node: &Node<'_>) {
    stops(node, "spin", "spinning").await;
}

async fn stops(node: &Node<'_>, verb: &str, said: &str) {
    for module in [&node.guests.module, &node.guests.component] {
        let _ = fs::remove_file(node.path("guest.log"));
        let runtime = node.runtime();
        let spec = node.spec(module, &[verb]);
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        node.until_log(said).await;
        runtime.kill(&id, libc::SIGTERM).unwrap();
        let exit = node.until_exit(&runtime, &id).await;
        assert_eq!(exit.code, 143);
        runtime.remove(&id).await.unwrap();
    }
}

async fn the_process_has_no_privilege_left(node: &Node<'_>) {
    let runtime = node.runtime();
    let spec = node.spec(&node.guests.module, &["sleep"]);
    let id = spec.id.clone();
    let running = runtime.start(spec).await.unwrap();
    node.until_log("sleeping").await;
    let pid = running.pid.0;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "65534 65534 65534 65534");
    assert_eq!(field("Gid:"), "65534 65534 65534 65534");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let namespace = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    assert_eq!(
        namespace(Path::new(&format!("/proc/{pid}/ns/net"))),
        namespace(&node.path("ns/net")),
    );
    assert!(fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    runtime.kill(&id, libc::SIGKILL).unwrap();
    assert_eq!(node.until_exit(&runtime, &id).await.code, 137);
    runtime.remove(&id).await.unwrap();
}

/// Starts a spec that must be refused; returns why it was.
async fn refusal(node: &Node<'_>, spec: ContainerSpec) -> String {
    let runtime = node.runtime();
    let id = spec.id.clone();
    let refused = runtime.start(spec).await.unwrap_err().to_string();
    runtime.remove(&id).await.unwrap();
    refused
}

async fn damaged_code_is_never_mapped(node: &Node<'_>) {
    let spec = node.spec(&node.guests.module, &["args"]);
    let path = node.path("code.cwasm");
    let mut code = fs::read(&path).unwrap();
    let middle = code.len() / 2;
    code[middle] ^= 1;
    fs::write(&path, &code).unwrap();
    let refused = refusal(node, spec).await;
    assert!(refused.contains("code.cwasm is damaged"), "{refused}");
}

async fn code_of_another_key_is_never_mapped(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.module, &["args"]);
    let Workload::Wasm { key, .. } = &mut spec.workload else { panic!("not WASM") };
    key[0] ^= 1;
    let refused = refusal(node, spec).await;
    assert!(refused.contains("not by this cluster's artifact key"), "{refused}");
}

async fn raw_bytes_that_are_signed_are_not_run(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.module, &["args"]);
    let bytes = &node.guests.module;
    fs::write(node.path("code.cwasm"), bytes).unwrap();
    let digest: [u8; 32] =
        ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap();
    let Workload::Wasm { sha256, signature, .. } = &mut spec.workload else { panic!("not WASM") };
    (*sha256, signature.size) = (digest, bytes.len() as u64);
    let artifact = ArtifactV1 {
        module: signature.module.clone(),
        target: WasmTargetV1 {
            engine: signature.engine.clone(),
            target: signature.target.clone(),
            profile: signature.profile,
        },
        sha256: digest,
        size: signature.size,
        signature: Vec::new(),
    };
    signature.bytes = node.key.sign(&artifact.signed_bytes()).as_ref().to_vec();
    let refused = refusal(node, spec).await;
    assert!(refused.contains("the artifact is not compiled code"), "{refused}");
}

async fn non_root_refuses_user_zero(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.module, &["args"]);
    spec.user = User { uid: Some(0), non_root: true, ..User::default() };
    let refused = refusal(node, spec).await;
    assert!(refused.contains("breaks non-root policy"), "{refused}");
}

async fn nothing_is_left_after_removal(node: &Node<'_>) {
    let spec = node.spec(&node.guests.module, &["args"]);
    let dir = ContainerDir::new(node.path("run/containers").join(&spec.id));
    node.run(spec).await;
    assert!(!dir.path().exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(node.path("run").to_str().unwrap()), "{mounts}");
    for hierarchy in ["memory", "pids", "cpu"] {
        let left = Path::new("/sys/fs/cgroup").join(hierarchy);
        let left = left.join(node.cgroup_root.trim_start_matches('/')).join("guest");
        assert!(!left.exists(), "{left:?}");
    }
}
