//! A master: its folder, its flags and its process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::api::Api;
use super::network::HUB;
use super::process::Process;
use super::programs::program;
use super::wait::until;

/// A master at the hub, running or not.
#[derive(Debug)]
pub(crate) struct Master {
    dir: PathBuf,
    registry: Option<String>,
    /// Once it has picked its ports, it keeps them.
    listens: Option<(SocketAddr, SocketAddr)>,
    process: Option<Process>,
}

impl Master {
    /// Starts one on free ports, with its data below `dir`.
    pub(crate) fn start(dir: &Path, registry: Option<String>) -> Self {
        let mut master = Self { dir: dir.to_owned(), registry, listens: None, process: None };
        master.restart();
        master
    }

    /// Where its data is.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("master")
    }

    /// The kubeconfig it wrote.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join("master.log")
    }

    /// Everything it has logged, over all its starts.
    pub(crate) fn log(&self) -> String {
        super::process::read_lossy(&self.log_file())
    }

    /// The command that starts a master on these folders.
    pub(crate) fn command(&self) -> Command {
        let any = || format!("{HUB}:0");
        let (api, node) = self
            .listens
            .map_or_else(|| (any(), any()), |(api, node)| (api.to_string(), node.to_string()));
        let mut command = Command::new(program("pinnace-master"));
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--api-listen", &api, "--node-listen", &node, "--link-profile", "lan"])
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig());
        if let Some(registry) = &self.registry {
            command.args(["--insecure-registry", registry]);
            command.args(["--insecure-registry", &super::registry::private_host()]);
        }
        command
    }

    /// Starts it, on the ports it had, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        let before = self.log().len();
        let process = Process::start(&mut self.command(), &self.log_file());
        let process = self.process.insert(process);
        let (api, node) = until("the master is ready", || {
            let log = process.log();
            let line = log[before..].lines().find(|line| line.starts_with("ready "));
            match line {
                Some(line) => Ok(parse_ready(line)),
                None if process.is_running() => Err(log[before..].to_owned()),
                None => panic!("the master ended: {}", &log[before..]),
            }
        });
        self.listens = Some((api, node));
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it as a service manager does, and returns its exit status.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::SIGTERM);
        process.ended().code()
    }

    /// `host:port` for nodes.
    pub(crate) fn node_endpoint(&self) -> String {
        self.listens.expect("it has been started").1.to_string()
    }

    /// A client with the administrator's rights.
    pub(crate) fn api(&self) -> Api {
        Api::admin(&self.kubeconfig())
    }
}

/// The two addresses of `ready api=https://… nodes=mqtts://…`.
pub(crate) fn parse_ready(line: &str) -> (SocketAddr, SocketAddr) {
    let address = |key: &str| -> SocketAddr {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(key))
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("{key} is missing in {line:?}"))
    };
    (address("api=https://"), address("nodes=mqtts://"))
}
