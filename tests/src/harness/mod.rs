//! Clusters for the tests: real programs in network namespaces.
//!
//! A [`World`] is one master, a registry and some boards, with folders, ports
//! and addresses of its own. Dropping it removes all of that, also after a
//! panic; with a panic it first prints the ends of the logs. Worlds live one at
//! a time, so that a machine with two cores is not the reason for a failure.
//!
//! `PINNACE_TEST_KEEP=1` keeps the folders of worlds, with all logs.

pub(crate) mod agent;
pub(crate) mod api;
pub(crate) mod master;
pub(crate) mod network;
pub(crate) mod pods;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod registry;
pub(crate) mod relay;
pub(crate) mod terminal;
pub(crate) mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use api::Api;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use agent::Agent;
use master::Master;
use network::Network;
use process::{Output, read_lossy, run, run_with, tail};
use registry::Registry;
use wait::{check, until};

/// Lines of each log that a failed test prints.
const LOG_LINES: usize = 60;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static N_WORLDS: AtomicU32 = AtomicU32::new(0);

/// A cluster. The thread that makes it is in the hub's network until it is dropped.
pub(crate) struct World {
    // Dropped in this order; `Drop` has killed everything before.
    pub(crate) api: Api,
    pub(crate) agents: Vec<Agent>,
    pub(crate) master: Master,
    pub(crate) registry: Option<Registry>,
    pub(crate) network: Network,
    place: Place,
}

/// A folder and the turn of a test: what it needs before it starts programs.
pub(crate) struct Place {
    dir: PathBuf,
    name: String,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        remove_stale();
        let number = N_WORLDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("pt-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).expect("the temporary folder can be written");
        let dir = fs::canonicalize(dir).expect("it was just made");
        Self { dir, name, _turn: turn }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::env::var_os("PINNACE_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl World {
    /// A master alone.
    pub(crate) fn master_only() -> Self {
        let place = Place::new();
        let network = Network::new(&place.name);
        let master = Master::start(&place.dir, None);
        let api = master.api();
        Self { api, agents: Vec::new(), master, registry: None, network, place }
    }

    /// A master whose disk has this size.
    pub(crate) fn master_with_disk(mebibytes: u32) -> Self {
        let place = Place::new();
        let network = Network::new(&place.name);
        agent::mount_disk(&place.dir.join("master"), mebibytes);
        let master = Master::start(&place.dir, None);
        let api = master.api();
        Self { api, agents: Vec::new(), master, registry: None, network, place }
    }

    /// A master, a registry and ready nodes `node-1`, `node-2` and so on.
    pub(crate) fn with_nodes(n_nodes: u8) -> Self {
        Self::with_nodes_that(n_nodes, "")
    }

    /// The same, with options for every agent.
    pub(crate) fn with_nodes_that(n_nodes: u8, options: &str) -> Self {
        let place = Place::new();
        let network = Network::new(&place.name);
        let registry = Registry::start(&place.dir);
        let master = Master::start(&place.dir, Some(registry.host()));
        let api = master.api();
        let registry = Some(registry);
        let mut world = Self { api, agents: Vec::new(), master, registry, network, place };
        for number in 1..=n_nodes {
            let at = world.add_board(&format!("node-{number}"));
            let token = world.token();
            world.agents[at].join(&world.network, &token).ok();
            world.agents[at].give(options);
            world.start_agent(at);
        }
        for number in 1..=n_nodes {
            world.node_becomes_ready(&format!("node-{number}"));
        }
        world
    }

    /// Plugs a board in that has not joined; returns its place in `agents`.
    pub(crate) fn add_board(&mut self, name: &str) -> usize {
        // The hub has the first address.
        let number = u8::try_from(self.agents.len()).expect("few boards") + 2;
        self.network.plug(number);
        let registry = self.registry.as_ref().map(Registry::host);
        self.agents.push(Agent::new(&self.place.dir, name, number, registry));
        self.agents.len() - 1
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.place.dir
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.registry.as_ref().expect("the world has a registry")
    }

    pub(crate) fn start_agent(&mut self, at: usize) {
        self.agents[at].start(&self.network);
    }

    /// Where the agent of this name is in `agents`.
    #[track_caller]
    pub(crate) fn at(&self, node: &str) -> usize {
        self.agents.iter().position(|agent| agent.name == node).expect("a node of this world")
    }

    /// The board loses power.
    pub(crate) fn lose_power(&mut self, at: usize) {
        self.agents[at].lose_power(&mut self.network);
    }

    /// The board gets power again, and its service manager starts the agent.
    pub(crate) fn boot(&mut self, at: usize) {
        self.network.plug(self.agents[at].number);
        self.start_agent(at);
    }

    /// The master comes back, on its ports and with its data.
    pub(crate) fn restart_master(&mut self) {
        self.master.restart();
        self.api = self.master.api();
    }

    /// A token for one board, good for an hour.
    pub(crate) fn token(&self) -> String {
        self.token_with(|_| ())
    }

    /// A token, changed before it is stored.
    pub(crate) fn token_with(
        &self,
        change: impl FnOnce(&mut ::api::enrolment::EnrolmentToken),
    ) -> String {
        self.token_for(vec![self.master.node_endpoint()], change)
    }

    /// A token for a board that reaches the master at these addresses.
    pub(crate) fn token_for(
        &self,
        endpoints: Vec<String>,
        change: impl FnOnce(&mut ::api::enrolment::EnrolmentToken),
    ) -> String {
        let kubeconfig: Value =
            serde_json::from_str(&read_lossy(&self.master.kubeconfig())).expect("it is JSON");
        let ca = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]
            .as_str()
            .expect("it holds the CA");
        let ca = STANDARD.decode(ca).expect("base64");
        let ca = CertificateDer::from_pem_slice(&ca).expect("PEM");
        let mut random = [0; 24];
        let rng = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&rng, &mut random).expect("the system has randomness");
        let token = dispatch::enrol::make_token(endpoints, &ca, random);
        let mut record = ::api::enrolment::EnrolmentToken {
            id: token.id.clone(),
            secret: token.secret,
            expires_s: now_s() + 3600,
            uses_left: 1,
            node_names: Vec::new(),
            labels: Vec::new(),
            issued: Vec::new(),
        };
        change(&mut record);
        self.api.create("/api/v1/namespaces/kube-system/secrets", &record.to_secret()).ok();
        token.to_text()
    }

    /// Runs `kubectl` with words separated by spaces.
    #[track_caller]
    pub(crate) fn kubectl(&self, words: &str) -> Output {
        self.kubectl_with(&words.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Runs `kubectl` with these arguments and this standard input.
    #[track_caller]
    pub(crate) fn kubectl_with(&self, words: &[&str], input: &str) -> Output {
        let mut command = self.kubectl_command();
        command.args(words);
        run_with(command, input)
    }

    pub(crate) fn kubectl_command(&self) -> Command {
        let mut command = self.client_command(&programs::tool("kubectl-1.35"));
        command.arg("--cache-dir").arg(self.place.dir.join("kubectl-cache"));
        command
    }

    /// Runs `pinnace` with words separated by spaces.
    #[track_caller]
    pub(crate) fn pinnace(&self, words: &str) -> Output {
        self.pinnace_with(&words.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Runs `pinnace` with these arguments and this standard input.
    #[track_caller]
    pub(crate) fn pinnace_with(&self, words: &[&str], input: &str) -> Output {
        let mut command = self.pinnace_command();
        command.args(words);
        run_with(command, input)
    }

    pub(crate) fn pinnace_command(&self) -> Command {
        self.client_command(&programs::program("pinnace"))
    }

    fn client_command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", self.master.kubeconfig())
            .env("HOME", &self.place.dir)
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .env_remove("HTTPS_PROXY");
        command
    }

    /// A node's `Ready` condition: `True`, `False` or `Unknown`; empty without one.
    pub(crate) fn readiness(&self, node: &str) -> String {
        let node = self.api.find(&format!("/api/v1/nodes/{node}"));
        pods::condition(&node.unwrap_or_default(), "Ready")
    }

    #[track_caller]
    pub(crate) fn node_becomes_ready(&mut self, node: &str) {
        until(&format!("{node} is Ready"), || {
            let at = self.at(node);
            assert!(
                self.agents[at].is_running(),
                "{node}: {}",
                tail(&self.agents[at].log_file(), 20)
            );
            let ready = self.readiness(node);
            check(ready == "True", || format!("Ready is {ready:?}"))
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        for agent in &mut self.agents {
            agent.clear();
        }
        self.master.kill();
        // Where it was given a disk of its own.
        let _ = nix::mount::umount2(&self.master.data_dir(), nix::mount::MntFlags::MNT_DETACH);
    }
}

impl World {
    fn print_logs(&self) {
        let mut logs = vec![self.master.log_file()];
        logs.extend(self.agents.iter().map(Agent::log_file));
        for log in logs {
            eprintln!("---- the end of {}\n{}", log.display(), tail(&log, LOG_LINES));
        }
        // The master may be dead, so nothing here may panic.
        let get = |path: &str| self.api.send(http::Method::GET, path, "", String::new());
        let Ok(events) = get("/api/v1/events") else { return };
        eprintln!("---- events");
        for event in events.body["items"].as_array().into_iter().flatten() {
            let object = &event["involvedObject"];
            let (reason, message) = (&event["reason"], &event["message"]);
            let time = &event["lastTimestamp"];
            eprintln!("{time} {} {}: {reason} {message}", object["kind"], object["name"]);
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("the clock is past 1970").as_secs()
}

/// Clears away what test runs that were killed have left: once a run.
fn remove_stale() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let is_stale = |name: &str| {
            let pid = name.strip_prefix("pt-").and_then(|rest| rest.split('-').next());
            pid.and_then(|pid| pid.parse::<u32>().ok())
                .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        };
        let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !name.to_str().is_some_and(is_stale) {
                continue;
            }
            let dir = entry.path();
            process::kill_all(&[&format!("{}/", dir.display())]);
            for agent in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if agent.path().join("state").is_dir() {
                    let name = agent.file_name();
                    Agent::new(&dir, name.to_str().unwrap_or_default(), 0, None).clear();
                }
            }
            if std::env::var_os("PINNACE_TEST_KEEP").is_none() {
                let _ = fs::remove_dir_all(&dir);
            }
        }
        network::remove_stale(is_stale);
    });
}

/// Runs a program that is not one of ours.
#[track_caller]
pub(crate) fn run_program(program: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(words);
    run(command)
}
