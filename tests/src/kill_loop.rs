//! The kill loop: agent and shims are killed at any moment, while pods are made,
//! deleted and end; nothing is orphaned, doubled or leaked, and state converges.
//!
//! ```text
//! round: churn a pod or two ─► kill agent, shims or both, once to three times
//!        ─► the service manager starts the agent ─► the machine becomes exactly
//!        what the API says (inventory) ─► logs have no gap (counters)
//! ```
//!
//! 60 kills as a test; `PINNACE_KILLS=500` asks for more, `PINNACE_KILL_SEED`
//! for another seed. `scripts/bench kill-loop` runs it at full size.

mod inventory;
mod logs;

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, name};
use crate::harness::programs::guest;
use crate::harness::wait::{block_on, check, until};
use crate::sim::rng::Rng;

const KILLS_DEFAULT: u64 = 60;
const SEED_DEFAULT: u64 = 7;
/// Pods that come and go, at most.
const CHURN_MAX: usize = 5;

/// Counts in the log, ten lines a second, and now and then a line in two pieces.
const COUNT: &str = "n=0; while true; do n=$((n+1)); echo -n \"line \"; echo $n; sleep 0.1; done";

/// What a pod that comes and goes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Runs until it is deleted, OCI and WASM side by side.
    Stays,
    /// Ends once with 7, and never runs again.
    EndsOnce,
    /// The same as a module.
    EndsOnceWasm,
    /// Ends again and again.
    Crashes,
}

const KINDS: [Kind; 4] = [Kind::Stays, Kind::EndsOnce, Kind::EndsOnceWasm, Kind::Crashes];

struct Loop {
    world: World,
    rng: Rng,
    shell: String,
    trial: String,
    churn: BTreeMap<String, Kind>,
    n_made: u64,
    counts: BTreeMap<&'static str, u64>,
}

#[test]
fn nothing_is_orphaned_doubled_or_leaked_whoever_is_killed_when() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let n_kills = number("PINNACE_KILLS").unwrap_or(KILLS_DEFAULT);
    let seed = number("PINNACE_KILL_SEED").unwrap_or(SEED_DEFAULT);
    eprintln!("kill loop: seed {seed}, {n_kills} kills");
    let mut all = Loop::new(seed);
    let before = all.counters();
    let mut done = 0;
    while done < n_kills {
        done += all.round(n_kills - done);
    }
    // What ran all the time is what ran before, and has lost no line.
    assert_eq!(all.counters(), before);
    for pod in all.churn.keys().cloned().collect::<Vec<_>>() {
        all.delete(&pod);
    }
    all.becomes_consistent();
    eprintln!("kill loop: {:?}", all.counts);
    for pod in ["counter", "module"] {
        all.world.delete(&format!("/api/v1/namespaces/default/pods/{pod}"));
    }
    all.world.agents[0].becomes_clean(&all.world.network);
}

impl Loop {
    fn new(seed: u64) -> Self {
        let world = World::with_nodes(1);
        let shell = world.registry().push_busybox("shell:1", &[]);
        let trial = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
        let mut counter = pods::pod("counter", &shell, &["/bin/sh", "-c", COUNT], &[]);
        let mut second = counter["spec"]["containers"][0].clone();
        second["name"] = json!("second");
        counter["spec"]["containers"].as_array_mut().unwrap().push(second);
        // Volumes of every kind are there to be leaked.
        counter["spec"]["volumes"] = json!([
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "disk", "emptyDir": {}},
        ]);
        counter["spec"]["containers"][0]["volumeMounts"] = json!([
            {"name": "memory", "mountPath": "/m"},
            {"name": "disk", "mountPath": "/d", "subPath": "below"},
        ]);
        world.create_pod(&counter);
        world.create_pod(&pods::pod("module", &trial, &[], &["count"]));
        for pod in ["counter", "module"] {
            world.pod_becomes_ready(pod);
        }
        let (rng, churn, counts) = (Rng::new(seed), BTreeMap::new(), BTreeMap::new());
        Self { world, rng, shell, trial, churn, n_made: 0, counts }
    }

    /// The processes of the pods that are never touched.
    fn counters(&self) -> BTreeMap<(String, String), (i64, i64)> {
        let mut all = self.world.agents[0].processes_by_container();
        all.retain(|(pod, _), _| pod == "counter" || pod == "module");
        assert_eq!(all.len(), 3, "{all:?}");
        all
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// One round of at most `n_max` kills; says how many it was.
    fn round(&mut self, n_max: u64) -> u64 {
        for _ in 0..=self.rng.below(2) {
            self.churn();
        }
        let n_kills = (1 + self.rng.below(3)).min(n_max);
        for _ in 0..n_kills {
            self.rest(400);
            self.kill();
            self.rest(200);
            if !self.world.agents[0].is_running() {
                self.world.start_agent(0);
            }
        }
        self.becomes_consistent();
        n_kills
    }

    fn rest(&mut self, most_ms: u64) {
        let time = Duration::from_millis(self.rng.below(most_ms));
        block_on(async { tokio::time::sleep(time).await });
    }

    /// Makes or deletes a pod, or replaces one by another of its name.
    fn churn(&mut self) {
        let names: Vec<String> = self.churn.keys().cloned().collect();
        let picked = usize::try_from(self.rng.next() % 64).unwrap() % names.len().max(1);
        if names.len() >= CHURN_MAX || (!names.is_empty() && self.rng.one_in(3)) {
            self.delete(&names[picked]);
        } else {
            self.n_made += 1;
            let name = format!("churn-{}", self.n_made);
            let kind = KINDS[usize::try_from(self.rng.below(4)).unwrap()];
            self.make(&name, kind);
        }
    }

    fn make(&mut self, name: &str, kind: Kind) {
        self.count("pods made");
        let end = "echo ran; sleep 0.3; exit 7";
        let mut pod = match kind {
            Kind::Stays => {
                let mut pod = pods::pod(name, &self.shell, &["/bin/sh", "-c", COUNT], &[]);
                let module = json!({"name": "module", "image": self.trial, "args": ["sleep"]});
                pod["spec"]["containers"].as_array_mut().unwrap().push(module);
                pod
            }
            Kind::EndsOnce | Kind::Crashes => {
                pods::pod(name, &self.shell, &["/bin/sh", "-c", end], &[])
            }
            Kind::EndsOnceWasm => pods::pod(name, &self.trial, &[], &["args", "exit", "7"]),
        };
        if kind == Kind::EndsOnce || kind == Kind::EndsOnceWasm {
            pod["spec"]["restartPolicy"] = json!("Never");
        }
        self.world.create_pod(&pod);
        self.churn.insert(name.to_owned(), kind);
    }

    fn delete(&mut self, name: &str) {
        self.count("pods deleted");
        self.churn.remove(name);
        self.world.api.delete(&format!("/api/v1/namespaces/default/pods/{name}")).ok();
    }

    /// Kills somebody.
    fn kill(&mut self) {
        let mut shims = inventory::shims(&self.world.agents[0]);
        // Not what a shim has forked to build its container: killing that leaves the
        // shim waiting for it, which docs/limits.md owns up to.
        shims.retain(|pid| {
            let pid = Pid::from_raw(*pid);
            nix::unistd::getsid(Some(pid)).is_ok_and(|session| session == pid)
        });
        // The order of /proc is no seed's.
        shims.sort_unstable();
        let one = usize::try_from(self.rng.next() % 64).unwrap();
        let one =
            if !shims.is_empty() { vec![shims[one % shims.len()]] } else { Default::default() };
        let (agent, shims) = match self.rng.below(6) {
            0 | 1 => (true, vec![]),
            2 => (false, one),
            3 => (false, shims),
            4 => (true, one),
            _ => (true, shims),
        };
        if agent {
            self.world.agents[0].kill();
            self.count("agents killed");
        }
        for shim in shims {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
            self.count("shims killed");
        }
    }

    /// Waits until the machine is exactly what the API says.
    fn becomes_consistent(&mut self) {
        let found = until("the machine is what the API says", || {
            assert!(self.world.agents[0].is_running(), "the agent ended by itself");
            let pods = self.world.api.list("/api/v1/namespaces/default/pods");
            for pod in &pods {
                check(pod["metadata"]["deletionTimestamp"].is_null(), || {
                    format!("{} is still being deleted", name(pod))
                })?;
                self.is_as_it_should(pod)?;
            }
            inventory::check(&self.world.agents[0], &self.world.network, &pods)?;
            Ok(pods)
        });
        self.check_ends(&found);
        let gaps = logs::problems(&self.world.agents[0].state_dir().join("logs"), &found);
        assert!(gaps.is_empty(), "{gaps:#?}");
    }

    fn is_as_it_should(&self, pod: &Value) -> Result<(), String> {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let is_right = match self.churn.get(&name(pod)) {
            None | Some(Kind::Stays) => {
                phase == "Running" && pods::condition(pod, "Ready") == "True"
            }
            Some(Kind::EndsOnce | Kind::EndsOnceWasm) => phase == "Failed",
            Some(Kind::Crashes) => phase == "Running" && pods::restarts(pod) > 0,
        };
        check(is_right, || format!("{}: {}", name(pod), pod["status"]))
    }

    /// Exit codes are kept as far as the kernel allows, and what ends once ends once.
    fn check_ends(&mut self, pods: &[Value]) {
        for pod in pods {
            let kind = self.churn.get(&name(pod)).copied();
            if !matches!(kind, Some(Kind::EndsOnce | Kind::EndsOnceWasm)) {
                continue;
            }
            let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            match (end["exitCode"].as_i64(), end["reason"].as_str()) {
                (Some(7), Some("Error")) => self.count("exit codes kept"),
                (Some(_), Some("ContainerStatusUnknown")) => self.count("exit codes unknown"),
                other => panic!("{}: {other:?}: {}", name(pod), pod["status"]),
            }
            let uid = pod["metadata"]["uid"].as_str().unwrap();
            let folder = format!("default_{}_{uid}", name(pod));
            let folder = self.world.agents[0].state_dir().join("logs").join(folder);
            let n_runs = logs::runs_with_output(&folder);
            assert!(n_runs <= 1, "{} ran {n_runs} times", name(pod));
            // Counted once: the next rounds look at new ones.
            let gone = name(pod);
            self.delete(&gone);
        }
    }
}
