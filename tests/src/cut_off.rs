//! The cut-off loop: the link is cut, loses packets, stalls, breaks in the middle
//! of messages or takes seconds, again and again, while the master wants something
//! else of the board. What runs is never touched, and both sides come level.
//!
//! ```text
//! round: the weather turns bad ─► a pod is deleted, another made ─► a while later
//!        the weather clears, unless the link works in it ─► the board has caught
//!        up ─► nothing that ran all the time was touched, no log line is missing
//! ```
//!
//! Every kind of weather once as a test; `PINNACE_CUTS=100` asks for more rounds,
//! `PINNACE_CUT_SEED` for another seed. `scripts/bench cut-off` runs it at full size.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::World;
use crate::harness::network::HUB;
use crate::harness::pods;
use crate::harness::programs::guest;
use crate::harness::relay::Relay;
use crate::harness::wait::{block_on, check, until};
use crate::sim::rng::Rng;

const SEED_DEFAULT: u64 = 11;
/// Counts in the log, ten lines a second.
const COUNT: &str = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.1; done";
/// Of each packet's chances to be lost, in each direction.
const LOSS_PERCENT: u32 = 20;
/// Of everything, in each direction.
const DELAY: Duration = Duration::from_millis(1500);

/// What is wrong with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weather {
    /// The cable is cut.
    Partition,
    /// Connections stay, and nothing goes through.
    Silence,
    /// Connections break again and again.
    Breaks,
    /// Packets are lost.
    Loss,
    /// Everything takes long.
    Delay,
}

const WEATHERS: [Weather; 5] =
    [Weather::Partition, Weather::Silence, Weather::Breaks, Weather::Loss, Weather::Delay];

struct Loop {
    // Before the world: its threads are in the world's network.
    relay: Relay,
    world: World,
    rng: Rng,
    shell: String,
    n_made: u64,
    counts: BTreeMap<Weather, u64>,
}

#[test]
fn a_link_in_any_weather_restarts_nothing_and_both_sides_come_level() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let n_rounds = number("PINNACE_CUTS").unwrap_or(WEATHERS.len() as u64);
    let seed = number("PINNACE_CUT_SEED").unwrap_or(SEED_DEFAULT);
    eprintln!("cut-off loop: seed {seed}, {n_rounds} rounds");
    let mut all = Loop::new(seed);
    let before = all.steady();
    for round in 0..n_rounds {
        let weather = match WEATHERS.get(usize::try_from(round).unwrap_or(usize::MAX)) {
            Some(weather) => *weather,
            None => WEATHERS[usize::try_from(all.rng.below(WEATHERS.len() as u64)).unwrap()],
        };
        all.round(weather);
        assert_eq!(all.steady(), before, "after {weather:?}");
        all.logs_are_whole();
    }
    eprintln!("cut-off loop: {:?}", all.counts);
}

impl Loop {
    fn new(seed: u64) -> Self {
        let mut world = World::with_nodes(0);
        let relay = Relay::start(HUB, &world.master.node_endpoint());
        let at = world.add_board("node-1");
        let token = world.token_for(vec![relay.endpoint()], |_| ());
        world.agents[at].join(&world.network, &token).ok();
        world.start_agent(at);
        world.node_becomes_ready("node-1");
        let shell = world.registry().push_busybox("shell:1", &[]);
        let trial = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
        world.create_pod(&pods::pod("counter", &shell, &["/bin/sh", "-c", COUNT], &[]));
        world.create_pod(&pods::pod("module", &trial, &[], &["count"]));
        for pod in ["counter", "module"] {
            world.pod_becomes_ready(pod);
        }
        let mut all =
            Self { relay, world, rng: Rng::new(seed), shell, n_made: 0, counts: BTreeMap::new() };
        all.want();
        all.is_level();
        all
    }

    /// The processes of the pods that are wanted all the time.
    fn steady(&self) -> BTreeMap<(String, String), (i64, i64)> {
        let mut all = self.world.agents[0].processes_by_container();
        all.retain(|(pod, _), _| pod == "counter" || pod == "module");
        assert_eq!(all.len(), 2, "{all:?}");
        all
    }

    fn round(&mut self, weather: Weather) {
        *self.counts.entry(weather).or_default() += 1;
        self.turn(weather, true);
        let mut wanted = false;
        // A while with changes at any moment of it.
        let n_steps = 2 + self.rng.below(4);
        for step in 0..n_steps {
            if !wanted && (step + 1 == n_steps || self.rng.one_in(2)) {
                self.want();
                wanted = true;
            }
            let pause = Duration::from_millis(100 + self.rng.below(4000));
            let n_breaks = if weather == Weather::Breaks { 4 } else { 1 };
            for _ in 0..n_breaks {
                block_on(async { tokio::time::sleep(pause / n_breaks).await });
                if weather == Weather::Breaks {
                    self.relay.break_all();
                }
            }
        }
        // The link works in these, if badly.
        if matches!(weather, Weather::Loss | Weather::Delay) {
            self.is_level();
            self.turn(weather, false);
        } else {
            self.turn(weather, false);
            self.is_level();
        }
        self.world.node_becomes_ready("node-1");
    }

    fn turn(&self, weather: Weather, bad: bool) {
        let number = self.world.agents[0].number;
        match weather {
            Weather::Partition if bad => self.world.network.cut(number),
            Weather::Partition => self.world.network.mend(number),
            Weather::Silence => self.relay.stall(bad),
            Weather::Breaks => {}
            Weather::Loss => self.world.network.lose(if bad { LOSS_PERCENT } else { 0 }),
            Weather::Delay => self.relay.delay(if bad { DELAY } else { Duration::ZERO }),
        }
    }

    /// The master wants another pod than the one it has wanted.
    fn want(&mut self) {
        if self.n_made > 0 {
            let path = format!("/api/v1/namespaces/default/pods/guest-{}", self.n_made);
            self.world.api.delete(&path).ok();
        }
        self.n_made += 1;
        let name = format!("guest-{}", self.n_made);
        self.world.create_pod(&pods::pod(&name, &self.shell, &["/bin/sleep", "100000"], &[]));
    }

    /// The board runs what the master wants, and the master knows.
    fn is_level(&self) {
        let wanted = format!("guest-{}", self.n_made);
        self.world.pod_becomes_ready(&wanted);
        until("the pod before is gone", || {
            let pods = self.world.api.list("/api/v1/namespaces/default/pods");
            let mut names: Vec<String> = pods.iter().map(pods::name).collect();
            names.sort();
            check(names == ["counter", &wanted, "module"], || format!("{names:?}"))?;
            let mut running: Vec<String> = self.world.agents[0]
                .processes_by_container()
                .into_keys()
                .map(|(pod, _)| pod)
                .collect();
            running.sort();
            check(running == names, || format!("the board runs {running:?}"))
        });
    }

    /// Every line that the counter has written can be read, in order.
    fn logs_are_whole(&self) {
        let log = until("the log can be read", || self.world.log_of("counter"));
        for (at, line) in log.lines().enumerate() {
            assert_eq!(line, format!("line {}", at + 1));
        }
        assert!(!log.is_empty());
    }
}
