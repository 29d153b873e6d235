//! Real containers from a busybox layer, as root, in namespaces of their own.
//!
//! This program is its own shim (`… shim DIR`) and its own short-lived agent
//! (`… agent RUN_DIR SPEC`), so it has no libtest harness: `main` runs the
//! tests one after the other, those whose name holds the first argument.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use runtime::cgroup::Hierarchies;
use runtime::dir::ContainerDir;
use runtime::{
    ContainerSpec, Exit, LaunchError, Mount, Observed, Resources, Runtime, RuntimeError, Sandbox,
    ShimCommand, ShimRuntime, User, Workload, reason,
};

/// Far beyond what anything here takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs the tests, or is the shim or the agent.
pub(crate) fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("shim") => {
            return runtime::shim_main(Path::new(&args[2]), |_| Box::new(pinnace_oci::OciLauncher));
        }
        Some("exec") => {
            return runtime::exec_main(Path::new(&args[2]), |_| Box::new(pinnace_oci::OciLauncher));
        }
        Some("agent") => return agent(Path::new(&args[2]), Path::new(&args[3])),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: containers need root");
        return ExitCode::SUCCESS;
    }
    // Every mount of the tests, seen by them and their shims alone.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
    if unified() {
        // Controllers that version 1 holds are missing here, so limits go unenforced.
        let _ = nix::mount::umount2("/sys/fs/cgroup", nix::mount::MntFlags::MNT_DETACH);
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .unwrap();
        assert!(Hierarchies::detect().unwrap().unified_root().is_some());
    }
    println!("limits and device rules: {:?}", pinnace_oci::probe_cgroups().unwrap());
    let filter = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let mut failed = Vec::new();
    let (mut n_run, mut all) = (0, tests());
    all.extend(exec::tests());
    all.extend(security::tests());
    for (name, test) in &all {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        n_run += 1;
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let machine = Machine::new();
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| machine.block_on(test)));
        println!("{}", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_err() {
            failed.push(*name);
        }
    }
    println!("\ntest result: {n_run} run, {} failed: {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether this is `containers_unified`.
fn unified() -> bool {
    std::env::args().next().is_some_and(|program| program.contains("containers_unified"))
}

/// Starts one container and ends without a word, as a killed agent does.
fn agent(run_dir: &Path, spec: &Path) -> ExitCode {
    let spec: ContainerSpec = serde_json::from_slice(&fs::read(spec).unwrap()).unwrap();
    executor().block_on(async {
        let runtime = ShimRuntime::open(run_dir, shim()).unwrap();
        runtime.start(spec).await.unwrap();
        // Nothing is dropped, closed or waited for.
        std::process::exit(0)
    })
}

fn executor() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn shim() -> ShimCommand {
    ShimCommand::default()
}

/// A folder, a layer, the namespaces of one pod.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    cgroup_root: String,
    executor: tokio::runtime::Runtime,
}

type Test = for<'a> fn(&'a Machine) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        make_layer(&root.join("layer"));
        fs::create_dir(root.join("ns")).unwrap();
        let namespaces = root.join("ns");
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
                .unwrap();
            nix::unistd::sethostname("testpod").unwrap();
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
        let unique = root.file_name().unwrap().to_str().unwrap().replace('.', "");
        Self { cgroup_root: format!("/pinnace-test-{unique}"), folder, executor: executor() }
    }

    fn block_on(&self, test: &Test) {
        self.executor
            .block_on(async { tokio::time::timeout(DEADLINE * 2, test(self)).await.unwrap() });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Must be called in a tokio runtime.
    fn runtime(&self) -> ShimRuntime {
        ShimRuntime::open(&self.path("run"), shim()).unwrap()
    }

    fn dir(&self, id: &str) -> ContainerDir {
        ContainerDir::new(self.path("run/containers").join(id))
    }

    fn spec(&self, container: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: format!("pod-{container}-0"),
            pod_uid: "0000-1111".into(),
            namespace: "default".into(),
            pod: "web".into(),
            container: container.into(),
            attempt: 0,
            image: "demo:v1".into(),
            workload: Workload::Oci {
                layers: vec![self.path("layer")],
                scratch: self.path(&format!("scratch-{container}")),
            },
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![],
            cwd: String::new(),
            user: User::default(),
            mounts: vec![],
            resources: Resources::default(),
            security: runtime::Security::default(),
            stdio: runtime::Stdio::default(),
            sandbox: Sandbox {
                hostname: "testpod".into(),
                net: self.path("ns/net"),
                ipc: self.path("ns/ipc"),
                uts: self.path("ns/uts"),
                ..Sandbox::default()
            },
            cgroup: format!("{}/pod1/{container}-0", self.cgroup_root),
            log: self.path(&format!("logs/{container}/0.log")),
        }
    }

    fn sh(&self, container: &str, script: &str) -> ContainerSpec {
        self.spec(container, &["sh", "-c", script])
    }

    /// Runs a script to its end and gives back its exit and output.
    async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        let runtime = self.runtime();
        let (id, log) = (spec.id.clone(), spec.log.clone());
        runtime.start(spec).await.unwrap();
        let exit = exit_of(&runtime, &id).await;
        let output = text_of(&log);
        runtime.remove(&id).await.unwrap();
        (exit, output)
    }

    async fn check(&self, spec: ContainerSpec, code: i32, expected: &str) {
        let (exit, output) = self.run(spec).await;
        assert_eq!((exit.code, output.as_str()), (code, expected));
    }

    async fn fails(&self, spec: ContainerSpec) -> LaunchError {
        let runtime = self.runtime();
        let id = spec.id.clone();
        let error = match runtime.start(spec).await {
            Err(RuntimeError::Launch(error)) => error,
            other => panic!("{other:?}"),
        };
        match runtime.observe(&id) {
            Observed::Exited(exit) => assert_eq!(exit.error.as_ref(), Some(&error)),
            other => panic!("{other:?}"),
        }
        runtime.remove(&id).await.unwrap();
        error
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let hierarchies = Hierarchies::detect().unwrap();
        hierarchies.kill(&self.cgroup_root);
        for _ in 0..1000 {
            if hierarchies.remove(&self.cgroup_root).is_ok() {
                break;
            }
            std::thread::yield_now();
        }
        for name in ["net", "ipc", "uts"] {
            let _ =
                nix::mount::umount2(&self.path("ns").join(name), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn make_layer(layer: &Path) {
    for folder in ["bin", "etc", "tmp", "data", "app"] {
        fs::create_dir_all(layer.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "id", "ls", "sleep", "tail", "mknod", "dd", "grep", "pwd", "hostname",
        "readlink", "unshare", "mount", "touch", "ln", "env", "seq", "true", "kill", "head", "ip",
    ] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(name)).unwrap();
    }
    fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/app:/bin/sh\n")
        .unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1000:\ngpio:x:997:app\n").unwrap();
    fs::write(layer.join("bin/text"), "just text\n").unwrap();
    fs::write(layer.join("bin/lost"), "#!/bin/no-such-interpreter\n").unwrap();
    fs::write(layer.join("bin/arm"), b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x28\0rest")
        .unwrap();
    for name in ["text", "lost", "arm"] {
        let path = layer.join("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Waits for the end of a container by the runtime's own wake-ups.
async fn exit_of(runtime: &ShimRuntime, id: &str) -> Exit {
    let mut changes = runtime.changes();
    loop {
        match runtime.observe(id) {
            Observed::Exited(exit) => return exit,
            Observed::Running(_) | Observed::Starting => {}
            other => panic!("{id}: {other:?}"),
        }
        let changed = tokio::time::timeout(DEADLINE, changes.changed());
        changed.await.expect("the container ends").unwrap();
    }
}

/// A log without its times and tags.
fn text_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| format!("{}\n", line.splitn(4, ' ').nth(3).unwrap())).collect()
}

/// Polls until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill_9(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// The parent of a process: a container's is its shim.
fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

macro_rules! tests {
    ($($(#[$attribute:meta])* async fn $name:ident($machine:ident: &Machine) $body:block)*) => {
        pub(crate) fn tests() -> Vec<(&'static str, Test)> {
            vec![$((stringify!($name), |machine| Box::pin($name(machine)))),*]
        }
        $($(#[$attribute])* async fn $name($machine: &Machine) $body)*
    };
}

#[path = "cases/exec.rs"]
mod exec;
#[path = "cases/security.rs"]
mod security;

tests! {
    async fn runs_and_exits_with_its_code(machine: &Machine) {
        machine.check(machine.sh("a", "echo out; echo err >&2; exit 7"), 7, "out\nerr\n").await;
    }

    async fn the_log_is_in_cri_form(machine: &Machine) {
        let spec = machine.sh("a", "echo out; echo err >&2; echo -n end");
        let log = spec.log.clone();
        machine.run(spec).await;
        let text = fs::read_to_string(log).unwrap();
        let tags: Vec<String> = text
            .lines()
            .map(|line| line.split(' ').skip(1).collect::<Vec<_>>().join(" "))
            .collect();
        let mut sorted = tags.clone();
        sorted.sort();
        assert_eq!(sorted, ["stderr F err", "stdout F end", "stdout F out"], "{text}");
    }

    async fn a_command_that_does_not_exist_is_named(machine: &Machine) {
        let check = async |args: &[&str], expected: &str| {
            let error = machine.fails(machine.spec("a", args)).await;
            assert_eq!(error.reason, reason::START_ERROR, "{error}");
            assert_eq!(error.message, expected);
        };
        check(
            &["nonsense"],
            "executable \"nonsense\" not found in $PATH of image \"demo:v1\": check command and args",
        )
        .await;
        check(
            &["/bin/lost"],
            "executable \"/bin/lost\" or the interpreter it names is not in image \"demo:v1\": \
             check command and args",
        )
        .await;
        check(
            &["/etc/passwd"],
            "executable \"/etc/passwd\" of image \"demo:v1\" may not be executed by this user",
        )
        .await;
        let not_here = |name: &str| format!(
            "executable {name:?} of image \"demo:v1\" is not a program for this machine ({}): is \
             the image built for another architecture?", std::env::consts::ARCH);
        check(&["/bin/arm"], &not_here("/bin/arm")).await;
    }

    async fn an_exit_by_signal_is_told_from_a_code(machine: &Machine) {
        let (exit, _) = machine.run(machine.sh("a", "kill -9 $$; echo no")).await;
        // PID 1 cannot kill itself from inside: the signal is dropped.
        assert_eq!((exit.code, exit.signal), (0, None));
        let runtime = machine.runtime();
        let spec = machine.spec("b", &["sleep", "1000"]);
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        runtime.kill(&id, 9).unwrap();
        let exit = exit_of(&runtime, &id).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    }

    async fn sigterm_reaches_the_first_process(machine: &Machine) {
        let runtime = machine.runtime();
        let spec = machine.sh("a", "trap 'echo stopping; exit 3' TERM; echo up; while :; do sleep 0.01; done");
        let (id, log) = (spec.id.clone(), spec.log.clone());
        runtime.start(spec).await.unwrap();
        until("it is up", || text_of(&log) == "up\n").await;
        runtime.kill(&id, 15).unwrap();
        let exit = exit_of(&runtime, &id).await;
        assert_eq!((exit.code, exit.signal), (3, None));
        assert_eq!(text_of(&log), "up\nstopping\n");
    }

    async fn starting_again_what_runs_changes_nothing(machine: &Machine) {
        let runtime = machine.runtime();
        let spec = machine.spec("a", &["sleep", "1000"]);
        let first = runtime.start(spec.clone()).await.unwrap();
        assert_eq!(runtime.start(spec.clone()).await.unwrap(), first);
        assert_eq!(runtime.list(), std::slice::from_ref(&spec.id));
        runtime.kill(&spec.id, 9).unwrap();
        exit_of(&runtime, &spec.id).await;
        match runtime.start(spec.clone()).await {
            Err(RuntimeError::AlreadyRan(id)) => assert_eq!(id, spec.id),
            other => panic!("{other:?}"),
        }
    }

    async fn too_much_memory_is_reported(machine: &Machine) {
        if !Hierarchies::detect().unwrap().support().memory {
            println!("(no memory controller) ");
            return;
        }
        let mut spec = machine.spec("a", &["tail", "/dev/zero"]);
        spec.resources.memory_limit_bytes = 16 << 20;
        let (exit, _) = machine.run(spec).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    }

    async fn the_number_of_processes_is_limited(machine: &Machine) {
        if !Hierarchies::detect().unwrap().support().pids {
            println!("(no pids controller) ");
            return;
        }
        let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 & done; wait";
        let mut spec = machine.sh("a", script);
        spec.resources.pids_max = 8;
        let (exit, output) = machine.run(spec).await;
        assert_ne!(exit.code, 0);
        assert!(output.contains("can't fork"), "{output}");
    }

    async fn the_disk_cannot_be_opened(machine: &Machine) {
        let disk = fs::metadata("/dev/vda").map_or(0xfe00, |m| m.rdev());
        let (major, minor) = (disk >> 8 & 0xfff, disk & 0xff);
        let script = format!("mknod /tmp/disk b {major} {minor} && head -c1 /tmp/disk; echo $?");
        let (_, output) = machine.run(machine.sh("a", &script)).await;
        assert!(output.contains("mknod: /tmp/disk: Operation not permitted"), "{output}");
        // With the capability, the rule on the cgroup still stands.
        let mut spec = machine.sh("b", &script);
        spec.security.capabilities_add = vec!["MKNOD".into()];
        let (_, output) = machine.run(spec).await;
        assert!(output.contains("Operation not permitted"), "{output}");
        // And a node that is there, in /dev, where devices work.
        let mut spec = machine.sh("c", &format!("mknod /dev/disk b {major} {minor}; mknod /dev/mem c 1 1; ls /dev/disk /dev/mem"));
        spec.security.capabilities_add = vec!["MKNOD".into()];
        let (exit, output) = machine.run(spec).await;
        assert_ne!(exit.code, 0, "{output}");
    }

    async fn devices_that_lead_nowhere_work(machine: &Machine) {
        let script = "head -c4 /dev/zero >/dev/null && head -c4 /dev/urandom >/dev/null && \
                      echo x >/dev/null && ls /dev | grep -v core";
        let expected = "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\n\
                        urandom\nzero\n";
        machine.check(machine.sh("a", script), 0, expected).await;
    }

    async fn seccomp_refuses_namespaces_and_mounts(machine: &Machine) {
        let script = "unshare -m true; mount -t tmpfs x /data; unshare -U true; \
                      grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status";
        let mut spec = machine.sh("a", script);
        let (_, output) = machine.run(spec.clone()).await;
        assert!(output.contains("unshare: unshare(0x20000): Operation not permitted"), "{output}");
        assert!(output.contains("mount: permission denied"), "{output}");
        assert!(output.contains("unshare: unshare(0x10000000): Operation not permitted"), "{output}");
        assert!(output.contains("NoNewPrivs:\t0\nSeccomp:\t2\n"), "{output}");
        spec = machine.sh("b", script);
        spec.security.no_new_privileges = true;
        let (_, output) = machine.run(spec).await;
        assert!(output.contains("NoNewPrivs:\t1\nSeccomp:\t2\n"), "{output}");
    }

    async fn capabilities_are_what_was_asked_for(machine: &Machine) {
        let script = "grep Cap /proc/self/status";
        let expected = |inherited: &str, set: &str| format!(
            "CapInh:\t{inherited}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{inherited}\n");
        let none = "0000000000000000";
        // containerd's default a80425fb without bit 27, MKNOD.
        machine.check(machine.sh("a", script), 0, &expected(none, "00000000a00425fb")).await;
        let mut spec = machine.sh("b", script);
        spec.security.capabilities_drop = vec!["ALL".into()];
        machine.check(spec, 0, &expected(none, none)).await;
        let mut spec = machine.sh("c", script);
        spec.security.capabilities_drop = vec!["ALL".into()];
        spec.security.capabilities_add = vec!["NET_ADMIN".into()];
        machine.check(spec, 0, &expected(none, "0000000000001000")).await;
        let mut spec = machine.sh("d", "true");
        spec.security.capabilities_add = vec!["NONSENSE".into()];
        let error = machine.fails(spec).await;
        assert!(error.message.contains("unknown capability \"NONSENSE\""), "{error}");
    }

    async fn the_user_is_looked_up_in_the_image(machine: &Machine) {
        let mut spec = machine.sh("a", "id; grep CapEff /proc/self/status; touch /etc/x 2>&1; echo $HOME");
        spec.user.name = "app".into();
        machine
            .check(
                spec,
                0,
                "uid=1000(app) gid=1000(app) groups=997(gpio),1000(app)\nCapEff:\t0000000000000000\n\
                 touch: /etc/x: Permission denied\n/app\n",
            )
            .await;
        let mut spec = machine.sh("b", "true");
        spec.user.non_root = true;
        let error = machine.fails(spec).await;
        assert_eq!(error.reason, reason::CREATE_CONTAINER_CONFIG_ERROR);
        assert!(error.message.starts_with("container has runAsNonRoot and image will run as root"));
    }

    async fn a_non_root_user_starts_programs_only_its_owner_may(machine: &Machine) {
        let program = machine.path("layer/bin/mine");
        fs::copy("/bin/busybox", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o500)).unwrap();
        std::os::unix::fs::chown(&program, Some(1000), Some(1000)).unwrap();
        let mut spec = machine.spec("a", &["/bin/mine"]);
        spec.user.uid = Some(1000);
        // busybox under an unknown name says so and fails; what counts is that it ran.
        let (exit, output) = machine.run(spec).await;
        assert_eq!(exit.code, 127);
        assert!(output.contains("applet not found"), "{output}");
    }

    async fn environment_and_folder_are_as_specified(machine: &Machine) {
        let mut spec = machine.sh("a", "pwd; echo $GREETING; hostname; echo $HOSTNAME");
        spec.env = vec![("GREETING".into(), "a=b c".into())];
        spec.cwd = "/made/for/this".into();
        machine.check(spec, 0, "/made/for/this\na=b c\ntestpod\ntestpod\n").await;
    }

    async fn a_read_only_root_takes_no_writes(machine: &Machine) {
        let mut spec = machine.sh("a", "exec 2>&1; touch /x; touch /data/x && echo volume; touch /ro/x; cat /ro/f");
        spec.security.read_only_root = true;
        for name in ["volume", "readonly"] {
            fs::create_dir(machine.path(name)).unwrap();
        }
        fs::write(machine.path("readonly/f"), "from the host\n").unwrap();
        let mount = |name: &str, destination: &str, read_only| Mount {
            source: machine.path(name), destination: destination.into(), read_only, ..Mount::default() };
        spec.mounts = vec![mount("volume", "/data", false), mount("readonly", "/ro", true)];
        machine.check(
            spec, 0,
            "touch: /x: Read-only file system\nvolume\ntouch: /ro/x: Read-only file system\nfrom the host\n",
        ).await;
        assert!(machine.path("volume/x").exists());
    }

    async fn the_layer_is_not_written_and_the_host_not_seen(machine: &Machine) {
        let script = "echo changed > /etc/group; touch /new; \
                      readlink /proc/1/exe; ls -d /proc/[0-9]* | head -3; cat /proc/1/cgroup | head -1 | grep -o ':/$'";
        let (_, output) = machine.run(machine.sh("a", script)).await;
        assert!(output.starts_with("/bin/busybox\n/proc/1\n"), "{output}");
        assert!(output.ends_with(":/\n"), "{output}");
        assert!(!machine.path("layer/new").exists());
        assert!(fs::read_to_string(machine.path("layer/etc/group")).unwrap().starts_with("root:"));
    }

    async fn containers_of_a_pod_share_its_network(machine: &Machine) {
        let script = "for ns in net ipc uts; do readlink /proc/self/ns/$ns; done";
        let (_, first) = machine.run(machine.sh("a", script)).await;
        let (_, second) = machine.run(machine.sh("b", script)).await;
        assert_eq!(first, second);
        let inode = fs::metadata(machine.path("ns/net")).unwrap().ino();
        assert!(first.starts_with(&format!("net:[{inode}]\n")), "{first}");
    }

    async fn a_killed_shim_loses_neither_container_nor_lines(machine: &Machine) {
        let runtime = machine.runtime();
        let script = "i=0; while [ ! -e /data/stop ]; do echo $i; i=$((i+1)); done; exit 9";
        let mut spec = machine.sh("a", script);
        fs::create_dir(machine.path("volume")).unwrap();
        spec.mounts = vec![Mount {
            source: machine.path("volume"), destination: "/data".into(), ..Mount::default() }];
        let (id, log) = (spec.id.clone(), spec.log.clone());
        let size = || fs::metadata(&log).map_or(0, |log| log.len());
        let running = runtime.start(spec).await.unwrap();
        let mut killed = Vec::new();
        for _ in 0..4 {
            let seen = size();
            until("more lines", || size() > seen + 20_000).await;
            let shim = shim_of(machine, &id).await;
            assert!(!killed.contains(&shim));
            kill_9(shim);
            killed.push(shim);
            // The next one is another process.
            until("the next shim", || machine.dir(&id).shim().is_some_and(|s| s != shim)).await;
            assert_eq!(runtime.observe(&id), Observed::Running(running));
        }
        fs::write(machine.path("volume/stop"), "").unwrap();
        let exit = exit_of(&runtime, &id).await;
        assert_eq!(exit.started_ms, running.started_ms);
        println!("(code {}) ", exit.code);
        // 9 where the kernel keeps it for strangers (6.15 on) and PID 1 reaps in time.
        match exit.code {
            9 => {}
            255 => assert_eq!(exit.error.unwrap().reason, reason::CONTAINER_STATUS_UNKNOWN),
            code => panic!("{code}"),
        }
        // A batch may come twice, none may be missing.
        let mut numbers: Vec<usize> = text_of(&log).lines().map(|l| l.parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let last = *numbers.last().unwrap();
        assert_eq!(numbers.len(), last + 1, "lines are missing");
    }

    async fn output_survives_a_gap_without_shim_and_container(machine: &Machine) {
        let runtime = machine.runtime();
        let mut spec = machine.sh("a", "until [ -e /data/go ]; do sleep 0.01; done; echo last words");
        fs::create_dir(machine.path("volume")).unwrap();
        spec.mounts = vec![Mount {
            source: machine.path("volume"), destination: "/data".into(), ..Mount::default() }];
        let (id, log) = (spec.id.clone(), spec.log.clone());
        runtime.start(spec).await.unwrap();
        // The container ends before the next shim is there.
        kill_9(shim_of(machine, &id).await);
        fs::write(machine.path("volume/go"), "").unwrap();
        exit_of(&runtime, &id).await;
        assert_eq!(text_of(&log), "last words\n");
    }

    async fn an_unfinished_line_survives_the_shim(machine: &Machine) {
        let runtime = machine.runtime();
        let spec = machine.sh("a", "echo -n 'first half, '; touch /data/now; until [ -e /data/go ]; do sleep 0.01; done; echo second half");
        let mut spec = spec;
        fs::create_dir(machine.path("volume")).unwrap();
        spec.mounts = vec![Mount { source: machine.path("volume"), destination: "/data".into(), ..Mount::default() }];
        let (id, log) = (spec.id.clone(), spec.log.clone());
        runtime.start(spec).await.unwrap();
        let partial = machine.dir(&id).file("partial.out");
        until("the half line", || fs::read(&partial).is_ok_and(|p| p.ends_with(b"first half, "))).await;
        kill_9(shim_of(machine, &id).await);
        fs::write(machine.path("volume/go"), "").unwrap();
        let exit = exit_of(&runtime, &id).await;
        let messages = fs::read_to_string(machine.dir(&id).file("shim.log")).unwrap();
        assert_eq!(text_of(&log), "first half, second half\n", "{exit:?} {messages}");
    }

    async fn the_agent_may_die_and_another_take_over(machine: &Machine) {
        let spec = machine.sh("a", "echo up; trap 'exit 4' TERM; while :; do sleep 0.01; done");
        let (id, log) = (spec.id.clone(), spec.log.clone());
        let file = machine.path("spec.json");
        fs::write(&file, serde_json::to_vec(&spec).unwrap()).unwrap();
        let agent = Command::new("/proc/self/exe")
            .arg("agent").arg(machine.path("run")).arg(&file).status().unwrap();
        assert!(agent.success());
        let runtime = machine.runtime();
        let Observed::Running(running) = runtime.observe(&id) else { panic!("not running") };
        assert_eq!(runtime.list(), std::slice::from_ref(&id));
        assert_eq!(runtime.start(spec).await.unwrap(), running);
        until("it is up", || text_of(&log) == "up\n").await;
        runtime.kill(&id, 15).unwrap();
        let exit = exit_of(&runtime, &id).await;
        assert_eq!((exit.code, exit.signal), (4, None));
    }

    async fn a_removed_container_leaves_nothing(machine: &Machine) {
        let mounts_before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let runtime = machine.runtime();
        let spec = machine.sh("a", "echo data > /file; sleep 1000 & sleep 1000");
        let (id, cgroup) = (spec.id.clone(), spec.cgroup.clone());
        runtime.start(spec).await.unwrap();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts_before);
        let hierarchies = Hierarchies::detect().unwrap();
        assert!(!hierarchies.processes(&cgroup).is_empty());
        // While it runs, and twice.
        runtime.remove(&id).await.unwrap();
        runtime.remove(&id).await.unwrap();
        assert_eq!(runtime.observe(&id), Observed::Absent);
        assert!(!machine.dir(&id).path().exists());
        assert!(!machine.path("scratch-a").exists());
        assert!(hierarchies.processes(&cgroup).is_empty());
        for controller in ["memory", "pids", "devices", "cpu", "freezer", "cpuset"] {
            if let Some(folder) = hierarchies.controller_folder(controller, &cgroup) {
                assert!(!folder.exists(), "{}", folder.display());
            }
        }
        if let Some(folder) = hierarchies.unified_folder(&cgroup) {
            assert!(!folder.exists(), "{}", folder.display());
        }
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts_before);
    }

    async fn containers_of_a_pod_share_memory_files(machine: &Machine) {
        let shm = machine.path("shm");
        fs::create_dir(&shm).unwrap();
        let mut first = machine.sh("a", "echo shared > /dev/shm/file");
        first.sandbox.shm.clone_from(&shm);
        machine.check(first, 0, "").await;
        let mut second = machine.sh("b", "cat /dev/shm/file");
        second.sandbox.shm = shm;
        machine.check(second, 0, "shared\n").await;
    }

    async fn a_shim_is_small(machine: &Machine) {
        let runtime = machine.runtime();
        let spec = machine.spec("a", &["sleep", "1000"]);
        let id = spec.id.clone();
        let before = tokio::time::Instant::now();
        runtime.start(spec).await.unwrap();
        let took = before.elapsed();
        let shim = shim_of(machine, &id).await;
        let private = || -> u64 {
            let text = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
            // What is clean is the program itself, which all shims and the agent share.
            let lines = text.lines().filter(|line| line.starts_with("Private_Dirty"));
            lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
        };
        // It gives its heap back after it has answered.
        until("the shim has shrunk", || private() < 2_000).await;
        println!("(started in {took:?}, {} kB of its own) ", private());
        if std::env::var_os("SMAPS").is_some() { println!("{}", fs::read_to_string(format!("/proc/{shim}/smaps")).unwrap()); }
    }

    async fn a_missing_layer_is_named(machine: &Machine) {
        let mut spec = machine.sh("a", "true");
        let Workload::Oci { layers, .. } = &mut spec.workload else { unreachable!() };
        layers.push(machine.path("gone"));
        let error = machine.fails(spec).await;
        assert_eq!(error.reason, reason::CREATE_CONTAINER_ERROR);
        assert!(error.message.contains("gone is missing: pull the image again"), "{error}");
    }

    async fn many_layers_lie_above_each_other(machine: &Machine) {
        let mut spec = machine.sh("a", "cat /n /marker-60");
        let Workload::Oci { layers, .. } = &mut spec.workload else { unreachable!() };
        for n in 0..120 {
            // As long as the digests that real layers are named by.
            let layer = machine.path(&format!("{n:064}"));
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join("n"), format!("{n}\n")).unwrap();
            fs::write(layer.join(format!("marker-{n}")), "here\n").unwrap();
            layers.push(layer);
        }
        machine.check(spec, 0, "119\nhere\n").await;
    }

    async fn a_pod_without_namespaces_is_told_apart(machine: &Machine) {
        let mut spec = machine.sh("a", "true");
        spec.sandbox.net = machine.path("ns/none");
        assert_eq!(machine.fails(spec).await.reason, reason::CREATE_POD_SANDBOX_ERROR);
    }
}

/// The shim of a container, once there is one.
async fn shim_of(machine: &Machine, id: &str) -> i32 {
    let dir = machine.dir(id);
    until("a shim", || dir.shim().is_some()).await;
    let shim = dir.shim().unwrap();
    // For the first one, the container is its child.
    assert_ne!(shim, 1);
    let _ = parent_of(shim);
    shim
}
