//! Shims around plain processes: no namespaces, no image, no root needed.
//!
//! This program is its own shim (`… shim DIR`), so it has no libtest harness.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use pinnace_runtime::dir::ContainerDir;
use pinnace_runtime::exec::Entered;
use pinnace_runtime::{
    ContainerSpec, ExecHandle, Exit, LaunchError, Launcher, Observed, Pid, Resources, Runtime,
    RuntimeError, Sandbox, Security, ShimCommand, ShimRuntime, Stdio as Stdin, User, Workload,
    reason, shim_main,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(60);

/// Starts the command as it is.
struct Plain;

impl Launcher for Plain {
    fn launch(
        &self,
        spec: &ContainerSpec,
        dir: &Path,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Entered, LaunchError> {
        let stdin = pinnace_runtime::attach::container_stdin(spec, dir).unwrap();
        let child = Command::new(&spec.args[0])
            .args(&spec.args[1..])
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::from(out))
            .stderr(Stdio::from(err))
            .spawn();
        match child {
            Ok(child) => Ok(Pid(i32::try_from(child.id()).unwrap()).into()),
            Err(error) => Err(LaunchError::new(reason::START_ERROR, format!("no: {error}"))),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "shim") {
        return shim_main(Path::new(&args[2]), |_| Box::new(Plain));
    }
    let executor =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    executor.block_on(async {
        let all = async {
            exit_and_output_are_reported().await;
            a_failed_launch_is_kept().await;
            what_died_unseen_is_reported_as_unknown().await;
            a_killed_shim_is_replaced_and_the_code_found_out().await;
            a_folder_without_a_shim_is_lost().await;
            ids_never_leave_the_folder().await;
            many_start_at_once().await;
            what_is_removed_while_a_shim_is_on_its_way_stays_removed().await;
            clients_are_shown_output_and_give_input().await;
            input_that_is_given_once_ends_with_its_client().await;
            a_client_that_does_not_read_holds_up_nobody().await;
            a_client_without_input_does_not_end_it().await;
            a_client_outlives_the_shim().await;
        };
        tokio::time::timeout(DEADLINE * 3, all).await.unwrap();
    });
    ExitCode::SUCCESS
}

fn passed(name: &str) {
    println!("test {name} ... ok");
}

struct Machine {
    folder: tempfile::TempDir,
    runtime: ShimRuntime,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shim = ShimCommand::default();
        let runtime = ShimRuntime::open(folder.path(), shim).unwrap();
        Self { folder, runtime }
    }

    fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            pod_uid: "u".into(),
            namespace: "default".into(),
            pod: "p".into(),
            container: "c".into(),
            attempt: 0,
            image: "none".into(),
            workload: Workload::Oci { layers: vec![], scratch: self.folder.path().join("scratch") },
            args: ["sh", "-c", script].map(ToOwned::to_owned).into(),
            env: vec![],
            cwd: String::new(),
            user: User::default(),
            mounts: vec![],
            resources: Resources::default(),
            security: Security::default(),
            stdio: pinnace_runtime::Stdio::default(),
            sandbox: Sandbox::default(),
            cgroup: format!("/pinnace-no-such-group/{id}"),
            log: self.log(id),
        }
    }

    fn log(&self, id: &str) -> PathBuf {
        self.folder.path().join(format!("{id}.log"))
    }

    fn dir(&self, id: &str) -> ContainerDir {
        ContainerDir::new(self.folder.path().join("containers").join(id))
    }

    async fn exit_of(&self, id: &str) -> Exit {
        let mut changes = self.runtime.changes();
        loop {
            match self.runtime.observe(id) {
                Observed::Exited(exit) => return exit,
                Observed::Running(_) | Observed::Starting => {}
                other => panic!("{id}: {other:?}"),
            }
            tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill_9(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn exit_and_output_are_reported() {
    let machine = Machine::new();
    let spec = machine.spec("a-0", "echo out; echo err >&2; exit 5");
    let running = machine.runtime.start(spec).await.unwrap();
    let exit = machine.exit_of("a-0").await;
    assert_eq!((exit.code, exit.signal, exit.error), (5, None, None));
    assert_eq!(exit.started_ms, running.started_ms);
    assert!(exit.finished_ms >= exit.started_ms);
    let log = fs::read_to_string(machine.log("a-0")).unwrap();
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    // Secrets may be in there.
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(machine.dir("a-0").file("config.json")), 0o600);
    assert_eq!(mode(machine.dir("a-0").path().to_owned()), 0o700);
    machine.runtime.remove("a-0").await.unwrap();
    assert_eq!(machine.runtime.observe("a-0"), Observed::Absent);
    assert!(machine.runtime.list().is_empty());
    passed("exit_and_output_are_reported");
}

async fn a_failed_launch_is_kept() {
    let machine = Machine::new();
    let mut spec = machine.spec("a-0", "");
    spec.args = vec!["/no/such/program".into()];
    let expected = "no: No such file or directory (os error 2)";
    match machine.runtime.start(spec.clone()).await {
        Err(RuntimeError::Launch(error)) => {
            assert_eq!((error.reason.as_str(), error.message.as_str()), ("StartError", expected));
        }
        other => panic!("{other:?}"),
    }
    // Asked again, as an agent does that was killed before it could write it down.
    match machine.runtime.start(spec).await {
        Err(RuntimeError::Launch(error)) => assert_eq!(error.message, expected),
        other => panic!("{other:?}"),
    }
    let exit = machine.exit_of("a-0").await;
    assert_eq!((exit.code, exit.started_ms), (128, 0));
    passed("a_failed_launch_is_kept");
}

async fn what_died_unseen_is_reported_as_unknown() {
    let machine = Machine::new();
    let running = machine.runtime.start(machine.spec("a-0", "exec sleep 1000")).await.unwrap();
    kill_9(machine.dir("a-0").shim().unwrap());
    kill_9(running.pid.0);
    let exit = machine.exit_of("a-0").await;
    // Whoever was faster: the kernel's memory of it, or nobody knows.
    match exit.code {
        137 => assert_eq!(exit.signal, Some(9)),
        255 => assert_eq!(exit.error.unwrap().reason, reason::CONTAINER_STATUS_UNKNOWN),
        code => panic!("{code}"),
    }
    passed("what_died_unseen_is_reported_as_unknown");
}

async fn a_killed_shim_is_replaced_and_the_code_found_out() {
    let machine = Machine::new();
    let go = machine.folder.path().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.01; done; exit 6", go.display());
    let running = machine.runtime.start(machine.spec("a-0", &script)).await.unwrap();
    let first = machine.dir("a-0").shim().unwrap();
    kill_9(first);
    until("another shim", || machine.dir("a-0").shim().is_some_and(|shim| shim != first)).await;
    assert_eq!(machine.runtime.observe("a-0"), Observed::Running(running));
    fs::write(go, "").unwrap();
    let exit = machine.exit_of("a-0").await;
    match exit.code {
        6 => assert_eq!(exit.error, None),
        255 => assert_eq!(exit.error.unwrap().reason, reason::CONTAINER_STATUS_UNKNOWN),
        code => panic!("{code}"),
    }
    passed("a_killed_shim_is_replaced_and_the_code_found_out");
}

async fn a_folder_without_a_shim_is_lost() {
    let machine = Machine::new();
    let spec = machine.spec("a-0", "true");
    // As an agent leaves it that dies between the two.
    machine.dir("a-0").create(&spec).unwrap();
    assert_eq!(machine.runtime.observe("a-0"), Observed::Lost);
    match machine.runtime.start(spec.clone()).await {
        Err(RuntimeError::AlreadyRan(id)) => assert_eq!(id, "a-0"),
        other => panic!("{other:?}"),
    }
    machine.runtime.remove("a-0").await.unwrap();
    machine.runtime.start(spec).await.unwrap();
    assert_eq!(machine.exit_of("a-0").await.code, 0);
    passed("a_folder_without_a_shim_is_lost");
}

async fn ids_never_leave_the_folder() {
    let machine = Machine::new();
    for id in ["", "..", "a/b", "A", "a.b", &"a".repeat(64)] {
        match machine.runtime.start(machine.spec(id, "true")).await {
            Err(RuntimeError::BadId(found)) => assert_eq!(found, id),
            other => panic!("{other:?}"),
        }
        assert_eq!(machine.runtime.observe(id), Observed::Absent);
        machine.runtime.remove(id).await.unwrap_err();
    }
    passed("ids_never_leave_the_folder");
}

async fn many_start_at_once() {
    let machine = Machine::new();
    let ids: Vec<String> = (0..20).map(|n| format!("c-{n}")).collect();
    let mut starts = tokio::task::JoinSet::new();
    for (n, id) in ids.iter().enumerate() {
        let (runtime, spec) = (machine.runtime.clone(), machine.spec(id, &format!("exit {n}")));
        starts.spawn(async move { runtime.start(spec).await.unwrap() });
    }
    while let Some(started) = starts.join_next().await {
        started.unwrap();
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(machine.exit_of(id).await.code, i32::try_from(n).unwrap());
        machine.runtime.remove(id).await.unwrap();
    }
    passed("many_start_at_once");
}

async fn what_is_removed_while_a_shim_is_on_its_way_stays_removed() {
    let machine = Machine::new();
    for round in 0..30 {
        let id = format!("r-{round}");
        let spec = machine.spec(&id, "exec sleep 1000");
        machine.dir(&id).create(&spec).unwrap();
        // As an agent leaves it that is killed after it has started the shim.
        let mut shim = Command::new("/proc/self/exe")
            .arg("shim")
            .arg(machine.dir(&id).path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_micros(300 * round)).await;
        machine.runtime.remove(&id).await.unwrap();
        assert_eq!(machine.runtime.observe(&id), Observed::Absent);
        // Whoever was first: the shim ends, and nothing of it runs.
        until("the shim ends", || shim.try_wait().unwrap().is_some()).await;
        assert!(!machine.dir(&id).path().exists(), "round {round}");
        // What it may have launched is in no group here, where it would be found.
        processes_of(&machine, &id).into_iter().for_each(kill_9);
    }
    passed("what_is_removed_while_a_shim_is_on_its_way_stays_removed");
}

/// Processes that have the container's FIFOs open.
fn processes_of(machine: &Machine, id: &str) -> Vec<i32> {
    let folder = machine.dir(id).path().to_str().unwrap().to_owned();
    let own = i32::try_from(std::process::id()).unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some(pid) = name.parse::<i32>().ok().filter(|pid| *pid != own) else { continue };
        let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let targets = open.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        if targets
            .filter_map(|path| path.into_os_string().into_string().ok())
            .any(|path| path.starts_with(&folder))
        {
            found.push(pid);
        }
    }
    found
}

async fn read_until(handle: &mut ExecHandle, expected: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while !text.contains(expected) {
        let reader = handle.stdout.as_mut().unwrap();
        let n = tokio::time::timeout(DEADLINE, reader.read(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(n, 0, "{text:?} without {expected:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    text
}

async fn write(handle: &mut ExecHandle, text: &str) {
    handle.stdin.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
}

async fn clients_are_shown_output_and_give_input() {
    let machine = Machine::new();
    let script = "while read line; do echo \"got $line\"; [ $line = end ] && exit 9; done; exit 1";
    let mut spec = machine.spec("a-0", script);
    spec.stdio = Stdin { stdin: true, ..Stdin::default() };
    machine.runtime.start(spec).await.unwrap();
    let mut first = machine.runtime.attach("a-0", true).await.unwrap();
    let mut second = machine.runtime.attach("a-0", true).await.unwrap();
    write(&mut first, "one\n").await;
    read_until(&mut first, "got one\n").await;
    read_until(&mut second, "got one\n").await;
    // Input goes on with the next client.
    drop(first);
    write(&mut second, "two\nend\n").await;
    read_until(&mut second, "got two\ngot end\n").await;
    assert_eq!(second.wait().await.unwrap(), 9);
    let log = fs::read_to_string(machine.log("a-0")).unwrap();
    assert_eq!(log.matches(" stdout F got ").count(), 3, "{log}");
    match machine.runtime.attach("a-0", true).await {
        Err(RuntimeError::NotRunning(id)) => assert_eq!(id, "a-0"),
        other => panic!("{other:?}"),
    }
    passed("clients_are_shown_output_and_give_input");
}

async fn input_that_is_given_once_ends_with_its_client() {
    let machine = Machine::new();
    let mut spec = machine.spec("a-0", "cat; exit 7");
    spec.stdio = Stdin { stdin: true, stdin_once: true, tty: false };
    machine.runtime.start(spec).await.unwrap();
    let mut client = machine.runtime.attach("a-0", true).await.unwrap();
    write(&mut client, "hello\n").await;
    read_until(&mut client, "hello\n").await;
    drop(client);
    assert_eq!(machine.exit_of("a-0").await.code, 7);
    passed("input_that_is_given_once_ends_with_its_client");
}

async fn a_client_without_input_does_not_end_it() {
    let machine = Machine::new();
    let mut spec = machine.spec("a-0", "read line; echo \"got $line\"; exit 7");
    spec.stdio = Stdin { stdin: true, stdin_once: true, tty: false };
    machine.runtime.start(spec).await.unwrap();
    let mut watcher = machine.runtime.attach("a-0", false).await.unwrap();
    let mut client = machine.runtime.attach("a-0", true).await.unwrap();
    write(&mut client, "hello\n").await;
    read_until(&mut watcher, "got hello\n").await;
    assert_eq!(machine.exit_of("a-0").await.code, 7);
    passed("a_client_without_input_does_not_end_it");
}

async fn a_client_that_does_not_read_holds_up_nobody() {
    let machine = Machine::new();
    let go = machine.folder.path().join("go");
    let script = format!(
        "until [ -e {} ]; do sleep 0.01; done; seq 500000; echo last; exit 3",
        go.display()
    );
    machine.runtime.start(machine.spec("a-0", &script)).await.unwrap();
    let idle = machine.runtime.attach("a-0", false).await.unwrap();
    fs::write(go, "").unwrap();
    // It ends although nobody takes what the client was sent.
    assert_eq!(machine.exit_of("a-0").await.code, 3);
    let log = fs::read_to_string(machine.log("a-0")).unwrap();
    assert!(log.ends_with(" stdout F last\n"), "{}", &log[log.len().saturating_sub(200)..]);
    drop(idle);
    passed("a_client_that_does_not_read_holds_up_nobody");
}

async fn a_client_outlives_the_shim() {
    let machine = Machine::new();
    let mut spec = machine.spec("a-0", "while read line; do echo \"got $line\"; done");
    spec.stdio = Stdin { stdin: true, ..Stdin::default() };
    machine.runtime.start(spec).await.unwrap();
    let mut client = machine.runtime.attach("a-0", true).await.unwrap();
    write(&mut client, "one\n").await;
    read_until(&mut client, "got one\n").await;
    let first = machine.dir("a-0").shim().unwrap();
    kill_9(first);
    until("another shim", || machine.dir("a-0").shim().is_some_and(|shim| shim != first)).await;
    write(&mut client, "two\n").await;
    read_until(&mut client, "got two\n").await;
    machine.runtime.remove("a-0").await.unwrap();
    passed("a_client_outlives_the_shim");
}
