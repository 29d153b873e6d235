//! A switch, hosts on it, and the programs on these hosts.
//!
//! ```text
//! <name>          10.98.0.1/24 on the bridge `hub`: master, registry, etcd, this program
//! <name>-<board>  10.98.0.<n>/24 on `eth0`: one board; `<board>` on the bridge is its port
//! ```
//!
//! Nothing is made in the network namespace of the machine. Data is in
//! `target/bench/<name>/` (on a disk, not on a tmpfs), the boards' run folders
//! are in `/run/<name>-<board>/`. [`clean`] removes all of that, by name, so that
//! it also works for a run that was killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::proc;

/// The hub's address.
pub(crate) const HUB: &str = "10.98.0.1";
/// The registry, as image references have it.
pub(crate) const REGISTRY: &str = "10.98.0.1:5000";
const LOG_LINES: usize = 30;
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// A switch with hosts; this program is at the hub.
#[derive(Debug)]
pub(crate) struct World {
    name: String,
    dir: PathBuf,
    registry: Option<Child>,
    master: Option<Child>,
    boards: Vec<Board>,
}

#[derive(Debug)]
struct Board {
    name: String,
    agent: Option<Child>,
}

/// A network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    namespace: PathBuf,
}

impl Host {
    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.namespace
    }

    /// Brings this thread there.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        let inside = File::open(&self.namespace).context("the namespace is gone")?;
        Ok(setns(inside, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs a line of words there.
    pub(crate) fn line(&self, words: &str) -> anyhow::Result<String> {
        line(&format!("nsenter --net={} {words}", self.namespace.display()))
    }
}

/// The workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench/ is in the workspace")
}

/// One of our programs: from `PINNACE_PROGRAMS`, else from `target/release`.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let folders = match std::env::var_os("PINNACE_PROGRAMS") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => vec![root().join("target/release"), root().join("target/release/examples")],
    };
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not in {folders:?}: run scripts/build"))
}

/// A WASM guest of `examples/guests`.
fn guest(name: &str) -> PathBuf {
    root().join(format!("examples/guests/target/wasm32-wasip1/release/{name}.wasm"))
}

fn dir(name: &str) -> PathBuf {
    root().join("target/bench").join(name)
}

/// Runs `program words…`; an error says what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}{}",
        output.status,
        text(&output.stderr),
        text(&output.stdout)
    );
    Ok(text(&output.stdout))
}

/// Runs a line of words at the hub.
pub(crate) fn line(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    run(Command::new(words.next().unwrap_or_default()).args(words))
}

/// Polls until `probe` finds something.
pub(crate) async fn until<T>(
    what: &str,
    seconds: u64,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "{what}: not within {seconds} s");
        sleep(Duration::from_millis(20)).await;
    }
}

impl World {
    /// Makes the hub, and brings this thread there.
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        clean(name)?;
        let dir = dir(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        line(&format!("ip netns add {name}")).context("namespaces need root")?;
        let inside = File::open(format!("/run/netns/{name}"))?;
        setns(inside, CloneFlags::CLONE_NEWNET)?;
        // What hosts on the switch ask routers for is not what is counted.
        fs::write(NO_IPV6, "1").context(NO_IPV6)?;
        line("ip link set lo up")?;
        line("ip link add hub address 02:00:0a:c9:00:01 type bridge")?;
        line(&format!("ip addr add {HUB}/24 dev hub"))?;
        line("ip link set hub up")?;
        Ok(Self { name: name.to_owned(), dir, registry: None, master: None, boards: Vec::new() })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn log(&self, name: &str) -> anyhow::Result<Stdio> {
        let path = self.dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&path);
        Ok(file.with_context(|| format!("cannot write {}", path.display()))?.into())
    }

    /// A host of its own, with a link `eth0` to the link of its name at the hub, on which
    /// nothing is set up yet.
    pub(crate) fn host(&self, name: &str) -> anyhow::Result<Host> {
        // By which `clean` knows it.
        fs::create_dir_all(state_dir(&self.name, name))?;
        let host = Host { namespace: PathBuf::from(format!("/run/netns/{}-{name}", self.name)) };
        line(&format!("ip netns add {}-{name}", self.name))?;
        line(&format!("ip link add {name} type veth peer name eth0 netns {}-{name}", self.name))?;
        host.line("ip link set lo up")?;
        Ok(host)
    }

    /// Starts a program at the hub.
    pub(crate) fn spawn(&self, log: &str, command: &mut Command) -> anyhow::Result<Child> {
        let started = command.stdin(Stdio::null()).stdout(self.log(log)?).stderr(self.log(log)?);
        started.spawn().with_context(|| format!("cannot start {command:?}"))
    }

    /// Starts a registry and pushes an image of each kind.
    pub(crate) async fn start_registry(&mut self) -> anyhow::Result<()> {
        let config = self.dir.join("registry.yml");
        let folder = self.dir.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{REGISTRY}'}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n",
            folder.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        self.registry = Some(self.spawn("registry", &mut command)?);
        until("the registry listens", 20, async || {
            Ok(tokio::net::TcpStream::connect(REGISTRY).await.ok())
        })
        .await?;
        let push = program("push")?;
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox = busybox.context("busybox-static is missing: run scripts/setup")?;
        let base = || {
            let mut command = Command::new(&push);
            command.args(["--insecure", REGISTRY]);
            command
        };
        run(base()
            .args(["oci", &image("oci")])
            .arg(format!("{busybox}=/bin/busybox"))
            .args(["--", "/bin/sh"]))?;
        run(base().args(["wasm", &image("wasm")]).arg(guest("greeter")))?;
        Ok(())
    }

    /// The command that starts the master.
    pub(crate) fn master_command(&self, more: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("pinnace-master")?);
        command
            .arg("--data-dir")
            .arg(self.dir.join("master"))
            .args(["--api-listen", "10.98.0.1:6443", "--node-listen", "10.98.0.1:8883"])
            .args(["--insecure-registry", REGISTRY, "--write-kubeconfig"])
            .arg(self.kubeconfig())
            .args(more);
        Ok(command)
    }

    /// Starts the master and waits until it serves.
    pub(crate) async fn start_master(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let mut command = self.master_command(more)?;
        let before = proc::read(self.dir.join("master.log")).len();
        let child = self.spawn("master", &mut command)?;
        self.master = Some(child);
        until("the master is ready", 30, async || {
            let log = proc::read(self.dir.join("master.log"));
            Ok(log[before..].lines().any(|line| line.starts_with("ready ")).then_some(()))
        })
        .await
    }

    pub(crate) fn master_pid(&self) -> anyhow::Result<u32> {
        self.master.as_ref().map(Child::id).context("the master does not run")
    }

    /// Ends the master without a word.
    pub(crate) fn kill_master(&mut self) -> anyhow::Result<()> {
        end(self.master.take())
    }

    /// Ends a process started by [`World::spawn`].
    pub(crate) fn end(child: Child) -> anyhow::Result<()> {
        end(Some(child))
    }

    /// Plugs a board in and lets it join the cluster; its agent does not run yet.
    pub(crate) fn join(&mut self, board: &str) -> anyhow::Result<()> {
        let namespace = format!("{}-{board}", self.name);
        let number = self.boards.len() + 11;
        line(&format!("ip netns add {namespace}"))?;
        line(&format!("ip link add {board} type veth peer name eth0 netns {namespace}"))?;
        line(&format!("ip link set {board} master hub up"))?;
        let no_ipv6 = format!("echo 1 > {NO_IPV6}");
        let inside = format!("--net=/run/netns/{namespace}");
        run(Command::new("nsenter").args([&inside, "sh", "-c", &no_ipv6]))?;
        for rest in [
            "ip link set lo up".to_owned(),
            format!("ip addr add 10.98.0.{number}/24 dev eth0"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via {HUB}"),
        ] {
            line(&format!("nsenter --net=/run/netns/{namespace} {rest}"))?;
        }
        self.boards.push(Board { name: board.to_owned(), agent: None });
        let token = run(Command::new(program("pinnace")?)
            .args(["token", "create", "--node-name", board])
            .env("KUBECONFIG", self.kubeconfig()))?;
        let state = state_dir(&self.name, board);
        run(self
            .on_board(board, &program("pinnace-agent")?)
            .args(["join", &token, "--state-dir"])
            .arg(state)
            .args(["--node-name", board]))?;
        Ok(())
    }

    fn on_board(&self, board: &str, program: &Path) -> Command {
        // Not `ip netns exec`, which hides the cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}-{board}", self.name)).arg(program);
        command
    }

    /// Starts a board's agent; its run folder is a tmpfs, as on a board.
    pub(crate) fn start_agent(&mut self, board: &str) -> anyhow::Result<()> {
        let run_dir = self.run_dir(board);
        fs::create_dir_all(&run_dir)?;
        if mounts(std::slice::from_ref(&run_dir)).is_empty() {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), &run_dir, Some("tmpfs"), flags, Some("mode=711"))?;
        }
        line(&format!("ip link set {board} up"))?;
        let mut command = self.on_board(board, &program("pinnace-agent")?);
        command
            .args(["run", "--state-dir"])
            .arg(state_dir(&self.name, board))
            .arg("--run-dir")
            .arg(&run_dir)
            .args(["--node-name", board, "--insecure-registry", REGISTRY])
            // What is left on this machine's disk is not what is measured.
            .args(["--eviction-hard", "memory.available<1Mi"]);
        // `nsenter` becomes the agent, so the process is the agent's.
        let child = self.spawn(board, &mut command)?;
        let found = self.boards.iter_mut().find(|one| one.name == board);
        found.context("the board has joined")?.agent = Some(child);
        Ok(())
    }

    pub(crate) fn agent_pid(&self, board: &str) -> anyhow::Result<u32> {
        let board = self.boards.iter().find(|one| one.name == board);
        board.and_then(|one| one.agent.as_ref()).map(Child::id).context("the agent does not run")
    }

    /// The name of the agent's cgroup, above those of its pods.
    pub(crate) fn cgroup(&self, board: &str) -> String {
        cgroup(&self.name, board)
    }

    /// Where a board keeps what a loss of power takes.
    pub(crate) fn run_dir(&self, board: &str) -> PathBuf {
        run_dir(&self.name, board)
    }

    /// The board loses power: nothing of it says goodbye, and its memory is gone.
    pub(crate) fn lose_power(&mut self, board: &str) -> anyhow::Result<()> {
        let found = self.boards.iter_mut().find(|one| one.name == board);
        let agent = found.context("the board has joined")?.agent.take();
        // Before anything dies, so that the kernel cannot close the connections.
        line(&format!("ip link set {board} down"))?;
        if let Some(agent) = &agent {
            // First of all, so that it does not report the death of its pods.
            let _ = kill(raw(agent.id()), Signal::SIGKILL);
        }
        kill_all(|| board_pids(&self.name, board))?;
        end(agent)?;
        clear_board(&self.name, board)
    }
}

/// The image of a kind, `oci` or `wasm`.
pub(crate) fn image(kind: &str) -> String {
    format!("{REGISTRY}/bench-{kind}:1")
}

fn state_dir(name: &str, board: &str) -> PathBuf {
    dir(name).join(board).join("state")
}

fn run_dir(name: &str, board: &str) -> PathBuf {
    PathBuf::from(format!("/run/{name}-{board}"))
}

/// The agent's cgroup: it names it by the hash of its state folder.
fn cgroup(name: &str, board: &str) -> String {
    let state = state_dir(name, board);
    let state = fs::canonicalize(&state).unwrap_or(state);
    let path = state.as_os_str().as_encoded_bytes();
    let hash = ring::digest::digest(&ring::digest::SHA256, path);
    let hex: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("pinnace-{hex}")
}

fn board_pids(name: &str, board: &str) -> Vec<u32> {
    let mut pids = namespace_pids(&format!("{name}-{board}"));
    let folders = [state_dir(name, board), run_dir(name, board)];
    let mut needles: Vec<String> = folders.map(|path| path.display().to_string()).to_vec();
    needles.push(format!("/{}/", cgroup(name, board)));
    pids.extend(proc::find(&needles));
    pids
}

fn namespace_pids(namespace: &str) -> Vec<u32> {
    let text = line(&format!("ip netns pids {namespace}")).unwrap_or_default();
    let pids = text.lines().filter_map(|pid| pid.trim().parse().ok());
    pids.filter(|pid| *pid != std::process::id() && proc::is_alive(*pid)).collect()
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("the kernel numbers processes below 2^22"))
}

/// Kills until nobody is left.
fn kill_all(pids: impl Fn() -> Vec<u32>) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let left = pids();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "processes do not die: {left:?}");
        for pid in left {
            let _ = kill(raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(child: Option<Child>) -> anyhow::Result<()> {
    if let Some(mut child) = child {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// What is mounted at or below these folders, innermost last.
fn mounts(folders: &[PathBuf]) -> Vec<PathBuf> {
    proc::read("/proc/self/mountinfo")
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|mount| folders.iter().any(|folder| mount.starts_with(folder)))
        .collect()
}

/// Unmounts what a board has mounted, and removes its run folder and cgroups.
fn clear_board(name: &str, board: &str) -> anyhow::Result<()> {
    let run_dir = run_dir(name, board);
    for mount in mounts(&[state_dir(name, board), run_dir.clone()]).iter().rev() {
        let _ = umount2(mount.as_path(), MntFlags::MNT_DETACH);
    }
    if run_dir.exists() {
        fs::remove_dir_all(&run_dir).with_context(|| run_dir.display().to_string())?;
    }
    let cgroup = cgroup(name, board);
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|one| one.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        remove_cgroup(&hierarchy.join(&cgroup));
    }
    Ok(())
}

fn remove_cgroup(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    for _ in 0..100 {
        // The kernel takes a moment after the last process.
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes everything of the world of this name, whether it runs or was killed.
pub(crate) fn clean(name: &str) -> anyhow::Result<()> {
    let dir = dir(name);
    let folders = fs::read_dir(&dir).into_iter().flatten().flatten();
    let boards: Vec<String> = folders
        .filter(|entry| entry.path().join("state").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    kill_all(|| {
        let boards = boards.iter().flat_map(|board| board_pids(name, board));
        boards.chain(namespace_pids(name)).collect()
    })?;
    for board in &boards {
        clear_board(name, board)?;
    }
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let namespaces: Vec<String> =
        namespaces.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let is_ours = |namespace: &str| {
        namespace == name || boards.iter().any(|board| namespace == format!("{name}-{board}"))
    };
    for namespace in namespaces.iter().filter(|namespace| is_ours(namespace)) {
        line(&format!("ip netns del {namespace}"))?;
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", dir.display())
        }
        _ => Ok(()),
    }
}

/// The ends of a world's logs.
pub(crate) fn log_ends(name: &str) -> String {
    let mut text = String::new();
    let entries = fs::read_dir(dir(name)).into_iter().flatten().flatten();
    let logs = entries.map(|entry| entry.path());
    for log in logs.filter(|path| path.extension().is_some_and(|end| end == "log")) {
        let all = proc::read(&log);
        let lines: Vec<&str> = all.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        text += &format!("-- the end of {}\n{last}\n", log.display());
    }
    text
}
