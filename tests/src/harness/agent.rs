//! A board with an agent: its folders, its process, and what it leaves on the
//! machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use edge_agent::config::Folders;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::network::Network;
use super::process::{Output, Process, kill_all, processes, read_lossy, run};
use super::programs::program;
use super::wait::until;

/// A board. Its number is its place on the switch.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) number: u8,
    /// Further flags of `run`.
    pub(crate) flags: Vec<String>,
    /// Variables that its process gets, and its shims do not.
    pub(crate) variables: Vec<(String, String)>,
    dir: PathBuf,
    registry: Option<String>,
    /// More options, separated by spaces.
    options: String,
    /// The program, where it is not the one that all have.
    program: Option<PathBuf>,
    process: Option<Process>,
}

/// The first process of a container that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Running {
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) pid: i64,
    /// Tells it apart from another process with the same number.
    pub(crate) start_ticks: i64,
}

impl Agent {
    pub(crate) fn new(dir: &Path, name: &str, number: u8, registry: Option<String>) -> Self {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).expect("the folder is made");
        // What is left on the machine that runs the tests is not what they are about.
        let flags = vec!["--eviction-hard=memory.available<1Mi".to_owned()];
        let variables = Vec::new();
        let name = name.to_owned();
        let options = String::new();
        Self {
            name,
            number,
            flags,
            variables,
            dir,
            registry,
            options,
            program: None,
            process: None,
        }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// What the operator of the board lets pods do; not there unless a test writes it.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.state_dir().with_extension("toml")
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Everything it has logged, over all its starts.
    pub(crate) fn log(&self) -> String {
        read_lossy(&self.log_file())
    }

    /// Joins the cluster with a token.
    pub(crate) fn join(&self, network: &Network, token: &str) -> Output {
        let mut command = network.on_board(self.number, &program("pinnace-agent"));
        command
            .args(["join", token, "--state-dir"])
            .arg(self.state_dir())
            .args(["--node-name", &self.name]);
        run(command)
    }

    /// Starts the agent, which then runs. Its run folder is a tmpfs, as on a board.
    pub(crate) fn start(&mut self, network: &Network) {
        let run_dir = self.run_dir();
        fs::create_dir_all(&run_dir).expect("the folder is made");
        if !self.mounts().contains(&run_dir) {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), &run_dir, Some("tmpfs"), flags, Some("mode=711"))
                .expect("the tests run as root");
        }
        let mut command = network.on_board(self.number, &self.program());
        command.arg("run").arg("--state-dir").arg(self.state_dir());
        command.arg("--run-dir").arg(self.run_dir()).args(["--node-name", &self.name]);
        command.arg("--config").arg(self.config_file());
        if let Some(registry) = &self.registry {
            command.args(["--insecure-registry", registry]);
            command.args(["--insecure-registry", &super::registry::private_host()]);
        }
        command.args(&self.flags).envs(self.variables.iter().cloned());
        command.args(self.options.split_whitespace());
        self.process = Some(Process::start(&mut command, &self.log_file()));
    }

    /// Gives the board a disk of this size, for its state. Before it joins.
    pub(crate) fn plug_in_disk(&self, mebibytes: u32) {
        mount_disk(&self.state_dir(), mebibytes);
    }

    /// Nobody tells it how the world's registry is reached.
    pub(crate) fn know_no_registry(&mut self) {
        self.registry = None;
    }

    /// Options for its next start.
    pub(crate) fn give(&mut self, options: &str) {
        self.options = options.to_owned();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends the agent, and only it, without a word.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// The containers that run, by what is in the run folder and `/proc`.
    pub(crate) fn running(&self) -> Vec<Running> {
        let Ok(entries) = fs::read_dir(self.run_dir().join("containers")) else {
            return Vec::new();
        };
        let mut all: Vec<Running> =
            entries.flatten().filter_map(|entry| running(&entry.path())).collect();
        all.sort();
        all
    }

    /// The cgroups of the containers that run, as paths below a hierarchy's root.
    pub(crate) fn cgroups_of_running(&self) -> std::collections::BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.run_dir().join("containers")) else {
            return std::collections::BTreeSet::new();
        };
        entries
            .flatten()
            .filter(|entry| running(&entry.path()).is_some())
            .filter_map(|entry| fs::read(entry.path().join("config.json")).ok())
            .filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .filter_map(|spec| Some(spec["cgroup"].as_str()?.to_owned()))
            .collect()
    }

    /// What a container's process sees as `path`.
    pub(crate) fn proc(&self, pod: &str, path: &str) -> String {
        let all = self.running();
        let one = all.iter().find(|one| one.pod == pod);
        let one = one.unwrap_or_else(|| panic!("{pod} does not run on {}: {all:?}", self.name));
        read_lossy(&PathBuf::from(format!("/proc/{}/{path}", one.pid)))
    }

    /// The board loses power: nothing of it gets to say goodbye, and what was not
    /// on its disk is gone.
    pub(crate) fn lose_power(&mut self, network: &mut Network) {
        network.cut(self.number);
        self.process = None;
        self.clear();
        network.unplug(self.number);
    }

    /// Kills what runs, and unmounts, so that the folders can be removed.
    pub(crate) fn clear(&mut self) {
        self.process = None;
        kill_all(
            &[
                format!("{}/", self.text(&self.state_dir())),
                format!("{}/", self.text(&self.run_dir())),
                format!("{}/", self.cgroup()),
                // The proxy's argument, which is the folder itself.
                self.proxy_needle(),
            ]
            .each_ref()
            .map(String::as_str),
        );
        for mount in self.mounts().iter().rev() {
            let _ = umount2(mount.as_path(), MntFlags::MNT_DETACH);
        }
        for folder in self.cgroups() {
            remove_cgroup(&folder);
        }
    }

    /// What the command line of the board's proxy holds, and no other's.
    fn proxy_needle(&self) -> String {
        format!("proxy\0--state-dir\0{}\0", self.text(&self.state_dir()))
    }

    /// The proxies of the board that run.
    pub(crate) fn proxies(&self) -> Vec<i32> {
        processes(&[&self.proxy_needle()])
    }

    /// What the data plane has made on the board, by name; empty if nothing is there.
    pub(crate) fn traces_of_proxy(&self, network: &Network) -> Vec<String> {
        let mut traces: Vec<String> =
            self.proxies().iter().map(|pid| format!("process {pid}")).collect();
        for line in [
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
            "nft list tables",
        ] {
            let out = network.output_on_board(self.number, line).out;
            let is_ours = |line: &&str| {
                ["10.42.", "10.43.", "lookup 101", "table 101", "pinnace"]
                    .iter()
                    .any(|sign| line.contains(sign))
            };
            traces.extend(out.lines().filter(is_ours).map(|found| format!("{line}: {found}")));
        }
        traces
    }

    /// Starts the next time as another program, as after an upgrade.
    pub(crate) fn upgrade(&mut self) {
        let (new, copy) = (self.dir.join("new"), self.dir.join("pinnace-agent-upgraded"));
        fs::copy(self.program(), &new).expect("the program is copied");
        // Shims and the proxy may run the one that it replaces.
        fs::rename(&new, &copy).expect("the copy is renamed");
        self.program = Some(copy);
    }

    fn program(&self) -> PathBuf {
        self.program.clone().unwrap_or_else(|| program("pinnace-agent"))
    }

    /// Asks the agent to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(nix::sys::signal::Signal::SIGTERM);
            process.ended();
        }
    }

    fn text<'a>(&self, path: &'a Path) -> &'a str {
        path.to_str().expect("the tests' folders are plain")
    }

    fn cgroup(&self) -> String {
        // The agent names it by where its folder really is.
        let resolve = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
        Folders { state: resolve(self.state_dir()), run: resolve(self.run_dir()) }.cgroup()
    }

    /// Its cgroup in every hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let below = self.cgroup();
        let below = below.trim_start_matches('/');
        let root = Path::new("/sys/fs/cgroup");
        let mut all = vec![root.join(below)];
        if let Ok(hierarchies) = fs::read_dir(root) {
            all.extend(hierarchies.flatten().map(|entry| entry.path().join(below)));
        }
        all.retain(|path| path.is_dir());
        all
    }

    /// What is mounted below its folders.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let below = [self.state_dir(), self.run_dir()];
        read_lossy(Path::new("/proc/self/mountinfo"))
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from)
            .filter(|mount| below.iter().any(|folder| mount.starts_with(folder)))
            .collect()
    }

    /// Everything that pods have left on the board, by name; empty if all is clean.
    pub(crate) fn traces(&self, network: &Network) -> Vec<String> {
        let mut traces = Vec::new();
        let needle =
            [format!("{}/containers/", self.run_dir().display()), format!("{}/", self.cgroup())];
        for pid in processes(&needle.each_ref().map(String::as_str)) {
            let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
            traces.push(format!("process {pid} {}", read_lossy(&path).replace('\0', " ")));
        }
        let inner = self.mounts().into_iter().filter(|mount| *mount != self.run_dir());
        traces.extend(inner.map(|mount| format!("mount {}", mount.display())));
        for folder in self.cgroups() {
            traces.extend(folders_in(&folder).map(|path| format!("cgroup {}", path.display())));
        }
        for folder in ["run/containers", "run/pods", "state/pods", "state/logs"] {
            let names = folders_in(&self.dir.join(folder));
            traces.extend(names.map(|path| format!("folder {}", path.display())));
        }
        let links = network.output_on_board(self.number, "ip -o link").out;
        let is_ours = |line: &&str| !line.contains(": lo:") && !line.contains(": eth0@");
        traces.extend(links.lines().filter(is_ours).map(|line| format!("link {line}")));
        traces
    }

    /// Waits until the pods of the board have left nothing.
    #[track_caller]
    pub(crate) fn becomes_clean(&self, network: &Network) {
        until(&format!("{} is clean", self.name), || {
            let traces = self.traces(network);
            super::wait::check(traces.is_empty(), || traces.join("\n"))
        });
    }

    /// Which container has which process; two of these are equal if nothing was
    /// restarted in between.
    pub(crate) fn processes_by_container(&self) -> BTreeMap<(String, String), (i64, i64)> {
        self.running()
            .into_iter()
            .map(|one| ((one.pod, one.container), (one.pid, one.start_ticks)))
            .collect()
    }
}

fn running(folder: &Path) -> Option<Running> {
    let read = |name: &str| -> Option<Value> {
        serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()
    };
    let (spec, file) = (read("config.json")?, read("running.json")?);
    let pid = file["pid"].as_i64()?;
    let start_ticks = file["start_ticks"].as_i64()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let is_alive = fields[0] != "Z" && fields.get(19)?.parse() == Ok(start_ticks);
    is_alive.then(|| Running {
        pod: spec["pod"].as_str().unwrap_or_default().to_owned(),
        container: spec["container"].as_str().unwrap_or_default().to_owned(),
        pid,
        start_ticks,
    })
}

/// Mounts a tmpfs of this size, which is a disk that is soon full.
pub(crate) fn mount_disk(folder: &Path, mebibytes: u32) {
    fs::create_dir_all(folder).expect("the folder is made");
    let options = format!("mode=700,size={mebibytes}m");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options.as_str()))
        .expect("the tests run as root");
}

fn folders_in(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

/// Removes a cgroup and those in it.
fn remove_cgroup(path: &Path) {
    for inner in folders_in(path) {
        remove_cgroup(&inner);
    }
    // The kernel takes a moment after the last process.
    until("a cgroup goes", || match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    });
}
