//! What is on a board, against what the API says should be: processes, mounts,
//! links, cgroups, folders and files, each accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::agent::Agent;
use crate::harness::network::Network;
use crate::harness::pods::name;
use crate::harness::process::{processes, read_lossy};

/// The shims of a board's agent. A guest is a fork of its shim and has its words,
/// but a name of its own.
pub(super) fn shims(agent: &Agent) -> Vec<i32> {
    let folder = format!("{}/containers/", agent.run_dir().display());
    let mut found = processes(&[&folder]);
    let comm = |pid: i32| read_lossy(Path::new(&format!("/proc/{pid}/comm")));
    found.retain(|pid| words(*pid).any(|word| word == "shim") && comm(*pid) != "wasm-guest\n");
    found
}

fn words(pid: i32) -> impl Iterator<Item = String> {
    let text = read_lossy(Path::new(&format!("/proc/{pid}/cmdline")));
    text.split('\0').map(ToOwned::to_owned).collect::<Vec<_>>().into_iter()
}

/// What is there and should not be, or should be and is not.
pub(super) fn check(agent: &Agent, network: &Network, pods: &[Value]) -> Result<(), String> {
    let mut wrong = Vec::new();
    let known: BTreeSet<String> = pods.iter().map(uid).collect();
    let live: BTreeSet<String> =
        pods.iter().filter(|pod| pod["status"]["phase"] == "Running").map(uid).collect();
    containers(agent, pods, &mut wrong);
    processes_are_known(agent, &mut wrong);
    mounts(agent, &live, &mut wrong);
    cgroups(agent, &live, &mut wrong);
    folders(agent, &known, &live, &mut wrong);
    links(agent, network, live.len(), &mut wrong);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// Each container that the API shows running has exactly one process, and no other
/// container has one; no folder of an ended run is left.
fn containers(agent: &Agent, pods: &[Value], wrong: &mut Vec<String>) {
    let mut wanted = BTreeSet::new();
    for pod in pods {
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            if container["state"]["running"].is_object() {
                wanted.insert((name(pod), name_of(container)));
            }
        }
    }
    let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
    for one in agent.running() {
        *found.entry((one.pod, one.container)).or_default() += 1;
    }
    for (container, n) in &found {
        if *n != 1 {
            wrong.push(format!("{container:?} runs {n} times"));
        }
        if !wanted.contains(container) {
            wrong.push(format!("{container:?} runs and should not"));
        }
    }
    for container in wanted.iter().filter(|container| !found.contains_key(*container)) {
        wrong.push(format!("{container:?} should run and does not"));
    }
    let n_folders = entries(&agent.run_dir().join("containers")).len();
    if n_folders != found.len() {
        wrong.push(format!("{n_folders} folders of {} containers", found.len()));
    }
    if shims(agent).len() != found.len() {
        wrong.push(format!("{} shims of {} containers", shims(agent).len(), found.len()));
    }
}

fn name_of(container: &Value) -> String {
    container["name"].as_str().unwrap_or_default().to_owned()
}

/// Every process of the agent's is a shim, or in the cgroup of a container.
fn processes_are_known(agent: &Agent, wrong: &mut Vec<String>) {
    let inner = format!("{}/containers/", agent.run_dir().display());
    let known: Vec<i64> = agent.running().iter().map(|one| one.pid).collect();
    for pid in processes(&[&inner]) {
        let words: Vec<String> = words(pid).collect();
        let is_shim = words.iter().any(|word| word == "shim");
        if !is_shim && !known.contains(&i64::from(pid)) {
            wrong.push(format!("process {pid} {words:?} belongs to no container"));
        }
    }
    // Children that ended and that nobody has waited for.
    if let Some(agent) = agent.pid() {
        for entry in entries(Path::new("/proc")) {
            let stat = read_lossy(&Path::new("/proc").join(entry).join("stat"));
            let fields: Vec<&str> =
                stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
            if fields.first() == Some(&"Z") && fields.get(1) == Some(&agent.to_string().as_str()) {
                wrong.push(format!("a child was not waited for: {stat}"));
            }
        }
    }
}

/// Mounts are of live pods: three namespaces, `/dev/shm` and volumes, each once.
fn mounts(agent: &Agent, live: &BTreeSet<String>, wrong: &mut Vec<String>) {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for mount in agent.mounts() {
        if mount == agent.run_dir() {
            continue;
        }
        *times.entry(mount.display().to_string()).or_default() += 1;
    }
    for (mount, n) in times {
        let is_live = live.iter().any(|uid| mount.contains(uid));
        if !is_live || n > 1 {
            wrong.push(format!("mount {mount}, {n} times, of a live pod: {is_live}"));
        }
    }
}

fn cgroups(agent: &Agent, live: &BTreeSet<String>, wrong: &mut Vec<String>) {
    let runs: BTreeSet<String> = agent.cgroups_of_running();
    for root in agent.cgroups() {
        for pod in entries(&root).into_iter().filter(|name| root.join(name).is_dir()) {
            if !live.contains(pod.trim_start_matches("pod")) {
                wrong.push(format!("cgroup {} of no live pod", root.join(&pod).display()));
            }
            let folder = root.join(&pod);
            for run in entries(&folder).into_iter().filter(|name| folder.join(name).is_dir()) {
                if !runs.iter().any(|path| path.ends_with(&format!("/{pod}/{run}"))) {
                    wrong.push(format!("cgroup {} of no run", folder.join(run).display()));
                }
            }
        }
    }
}

fn folders(
    agent: &Agent,
    known: &BTreeSet<String>,
    live: &BTreeSet<String>,
    wrong: &mut Vec<String>,
) {
    let state = agent.state_dir();
    for (folder, allowed) in [
        (agent.run_dir().join("pods"), known),
        (state.join("logs"), known),
        (state.join("pods"), live),
    ] {
        for entry in entries(&folder) {
            if !allowed.iter().any(|uid| entry.ends_with(uid.as_str())) {
                wrong.push(format!("{} of no pod", folder.join(entry).display()));
            }
        }
    }
    for folder in [state.clone(), state.join("results"), agent.run_dir()] {
        for entry in entries(&folder).iter().filter(|name| name.ends_with(".tmp")) {
            wrong.push(format!("{} was left", folder.join(entry).display()));
        }
    }
}

fn links(agent: &Agent, network: &Network, n_live: usize, wrong: &mut Vec<String>) {
    let links = network.output_on_board(agent.number, "ip -o link").out;
    let n_links = links.lines().filter(|line| line.contains(": pn")).count();
    if n_links != n_live {
        wrong.push(format!("{n_links} links of {n_live} live pods: {links}"));
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
