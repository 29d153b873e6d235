//! Master and boards on simulated links, one seed a run.
//!
//! Nothing here sleeps, and nothing reads a clock or the system's randomness: a
//! failing seed fails again. The protocol is the real one, [`dispatch`] and
//! [`edge_agent::node`]; simulated are the link, the disks, and the pods.
//!
//! ```text
//! five minutes of storm   messages lost, repeated, delayed, reordered; partitions;
//!                         agents killed, disks lost; the master killed, restored
//!                         from a backup; sets and statuses change all the while
//! five minutes of calm    nothing fails, nothing changes; all must agree at the end
//! ```
//!
//! At every step (see [`ledger`]): a revision never goes back within its epoch;
//! every set a board takes is one the master made, item by item; a pod of one uid
//! and generation starts once; an acknowledged report was stored; a command runs
//! once; nothing is sent to a node that is away; queues are bounded.
//!
//! `SIM_SEED=17 cargo test --release -p pinnace-tests sim` replays one seed, and
//! `SIM_SEEDS=100000` runs as many.

mod agent;
mod ledger;
mod link;
mod master;
pub(crate) mod rng;

use std::collections::BTreeMap;
use std::time::Duration;

use wire::topic::Channel;

use self::agent::Board;
use self::ledger::Ledger;
use self::link::{Direction, Weather};
use self::master::Master;
use self::rng::Rng;

const STORM_MS: u64 = 300_000;
const CALM_MS: u64 = 300_000;
/// Faults are thrown this often while it storms.
const FAULT_EVERY_MS: u64 = 500;
/// More messages on one link at once than this is a flood.
const ON_THE_WAY_MAX: usize = 200;
/// In one seed of a hundred, sets are so large that they go in ten parts.
const LARGE_BYTES: usize = 1_800_000;
const SEEDS_DEFAULT: u64 = 1_000;

struct World {
    rng: Rng,
    now_ms: u64,
    master: Master,
    boards: Vec<Board>,
    /// To the board, and to the master.
    down: Vec<Direction>,
    up: Vec<Direction>,
    weather: Vec<Weather>,
    /// Connections as the master's side sees them.
    connected: Vec<Option<u64>>,
    n_connections: u64,
    /// With a broker of its own, a master's death does not end the boards'
    /// connections; with the embedded endpoint it does.
    broker: bool,
    ledger: Ledger,
}

/// What a run did, so that a test can tell that it did something.
#[derive(Debug, Default)]
struct Tally {
    n_starts: u64,
    n_executed: u64,
    n_connections: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let n_boards = usize::try_from(2 + rng.below(3)).unwrap();
        let names: Vec<String> = (0..n_boards).map(|at| format!("board-{at}")).collect();
        let large_bytes = if seed % 100 == 57 { LARGE_BYTES } else { 0 };
        let weather = names.iter().map(|_| Weather::storm(&mut rng)).collect();
        Self {
            master: Master::new(1 + u128::from(rng.next()), &names, large_bytes),
            boards: names.into_iter().map(Board::new).collect(),
            down: (0..n_boards).map(|_| Direction::default()).collect(),
            up: (0..n_boards).map(|_| Direction::default()).collect(),
            weather,
            connected: vec![None; n_boards],
            n_connections: 0,
            broker: rng.one_in(2),
            ledger: Ledger::default(),
            now_ms: 0,
            rng,
        }
    }

    fn run(mut self) -> Result<Tally, String> {
        let mut next_fault = 0;
        loop {
            let storm = self.now_ms < STORM_MS;
            if storm && self.now_ms >= next_fault {
                next_fault = self.now_ms + FAULT_EVERY_MS;
                self.throw_faults();
            }
            if !storm {
                self.calm_down();
            }
            self.deliver();
            self.come_back();
            self.work();
            self.check_step();
            if let Some(broken) = self.ledger.broken.take() {
                return Err(format!("at {} ms: {broken}", self.now_ms));
            }
            if self.now_ms >= STORM_MS + CALM_MS {
                return self.check_end();
            }
            let next = self.next_time().unwrap_or(u64::MAX);
            let fault = if storm { next_fault } else { STORM_MS + CALM_MS };
            self.now_ms = next.min(fault).max(self.now_ms + 1);
        }
    }

    fn throw_faults(&mut self) {
        for at in 0..self.boards.len() {
            if self.rng.one_in(20) {
                let name = self.boards[at].name.clone();
                if self.master.dispatcher.is_some() {
                    self.master.change_a_set(&mut self.rng, &name, &mut self.ledger);
                }
            }
            if self.rng.one_in(10) && self.master.dispatcher.is_some() {
                self.master.change_the_network(&mut self.rng, &mut self.ledger);
            }
            if self.rng.one_in(8) {
                self.boards[at].change_a_pod(&mut self.rng);
            }
            if self.rng.one_in(20) {
                let name = self.boards[at].name.clone();
                self.master.command(&mut self.rng, &name);
            }
            if self.rng.one_in(60) {
                self.disconnect(at);
            }
            if self.rng.one_in(150) {
                self.boards[at].partition_until = self.now_ms + self.rng.below(60_000);
            }
            if self.rng.one_in(150) {
                self.weather[at] = Weather::storm(&mut self.rng);
            }
            if self.rng.one_in(120) {
                self.disconnect(at);
                self.boards[at].kill();
                self.boards[at].start_at = self.now_ms + self.rng.below(10_000);
            }
            if self.rng.one_in(600) {
                self.disconnect(at);
                self.boards[at].lose_disk();
                self.boards[at].start_at = self.now_ms + self.rng.below(10_000);
            }
        }
        if self.rng.one_in(100) {
            self.master.back_up();
        }
        let restore = self.rng.one_in(300);
        if restore || self.rng.one_in(150) {
            self.kill_master();
            if restore {
                self.master.restore(&mut self.rng);
            }
        }
    }

    fn kill_master(&mut self) {
        self.master.kill();
        self.master.start_at = self.now_ms + self.rng.below(15_000);
        if !self.broker {
            for at in 0..self.boards.len() {
                self.disconnect(at);
            }
        }
    }

    fn calm_down(&mut self) {
        for (board, weather) in self.boards.iter_mut().zip(&mut self.weather) {
            board.partition_until = board.partition_until.min(self.now_ms);
            *weather = Weather::CALM;
        }
    }

    /// The connection of a board ends; what is on the way on it is lost.
    fn disconnect(&mut self, at: usize) {
        if self.boards[at].connection.take().is_some()
            && let Some(agent) = &mut self.boards[at].agent
        {
            agent.node.disconnected();
        }
        self.boards[at].connect_at = self.now_ms + 1_000 + self.rng.below(5_000);
        self.down[at].clear();
        self.up[at].clear();
        self.master_sees_the_end(at);
    }

    fn master_sees_the_end(&mut self, at: usize) {
        if self.connected[at].take().is_some()
            && !self.broker
            && let Some(dispatcher) = &mut self.master.dispatcher
        {
            dispatcher.disconnected(&self.boards[at].name);
        }
    }

    fn is_cut(&self, at: usize) -> bool {
        self.now_ms < self.boards[at].partition_until
    }

    /// What is down starts, and what is disconnected connects.
    fn come_back(&mut self) {
        if self.master.dispatcher.is_none() && self.now_ms >= self.master.start_at {
            self.master.start(&mut self.ledger);
        }
        for at in 0..self.boards.len() {
            let cut = self.is_cut(at);
            let endpoint = self.broker || self.master.dispatcher.is_some();
            let board = &mut self.boards[at];
            if board.agent.is_none() && self.now_ms >= board.start_at {
                board.start(&mut self.rng, &mut self.ledger);
            }
            let Some(agent) = &mut board.agent else { continue };
            if agent.node.is_stalled() {
                self.disconnect(at);
                continue;
            }
            if board.connection.is_none() && !cut && endpoint && self.now_ms >= board.connect_at {
                self.n_connections += 1;
                board.connection = Some(self.n_connections);
                self.connected[at] = Some(self.n_connections);
                agent.node.connected(Duration::from_millis(self.now_ms));
            }
        }
    }

    fn deliver(&mut self) {
        let now = Duration::from_millis(self.now_ms);
        for at in 0..self.boards.len() {
            let cut = self.is_cut(at);
            for (connection, bytes) in self.down[at].arrived(self.now_ms) {
                let board = &mut self.boards[at];
                let Some(agent) = board.agent.as_mut().filter(|_| !cut) else { continue };
                if board.connection == Some(connection) {
                    let received = agent.node.receive(now, &bytes);
                    self.ledger.check(received.is_ok(), || format!("{received:?}"));
                }
            }
            for (connection, bytes) in self.up[at].arrived(self.now_ms) {
                let Some(dispatcher) = self.master.dispatcher.as_mut().filter(|_| !cut) else {
                    continue;
                };
                if self.connected[at] == Some(connection) {
                    let topic = Channel::Report.of(&self.boards[at].name);
                    let received = dispatcher.receive(now, &topic, &bytes);
                    self.ledger.check(received.is_ok(), || format!("{received:?}"));
                }
            }
        }
    }

    fn work(&mut self) {
        for at in 0..self.boards.len() {
            let board = &mut self.boards[at];
            let sent = board.work(&mut self.rng, self.now_ms, &mut self.ledger);
            let connection = board.connection;
            self.ledger.check(sent.is_empty() || connection.is_some(), || {
                format!("board {at} sends without a connection")
            });
            for (_, bytes) in sent {
                let Some(connection) = connection.filter(|_| !self.is_cut(at)) else { continue };
                let weather = self.weather[at];
                self.up[at].send(&mut self.rng, weather, self.now_ms, connection, &bytes);
            }
        }
        let at_of: BTreeMap<String, usize> =
            self.boards.iter().enumerate().map(|(at, board)| (board.name.clone(), at)).collect();
        for message in self.master.work(&mut self.rng, self.now_ms, &mut self.ledger) {
            let at = at_of[&message.node];
            let connection = self.connected[at];
            self.ledger.check(self.broker || connection.is_some(), || {
                format!("{} is away, and yet {:?} is sent", message.node, message.channel)
            });
            let Some(connection) = connection.filter(|_| !self.is_cut(at)) else { continue };
            let weather = self.weather[at];
            self.down[at].send(&mut self.rng, weather, self.now_ms, connection, &message.bytes);
        }
    }

    fn check_step(&mut self) {
        for at in 0..self.boards.len() {
            let n = self.down[at].n_on_the_way().max(self.up[at].n_on_the_way());
            self.ledger.check(n <= ON_THE_WAY_MAX, || format!("{n} messages on link {at}"));
        }
        let n = self.master.n_storing();
        self.ledger.check(n <= self.boards.len() * 4, || format!("{n} reports wait for the store"));
    }

    fn next_time(&self) -> Option<u64> {
        let mut times: Vec<u64> = self.master.next_due().into_iter().collect();
        if self.master.dispatcher.is_none() {
            times.push(self.master.start_at);
        }
        for (at, board) in self.boards.iter().enumerate() {
            times.extend(board.next_due());
            times.extend(self.down[at].next_arrival());
            times.extend(self.up[at].next_arrival());
            if board.agent.is_none() {
                times.push(board.start_at);
            } else if board.connection.is_none() {
                times.push(board.connect_at.max(board.partition_until));
            }
        }
        times.into_iter().min()
    }

    /// Everybody agrees.
    fn check_end(self) -> Result<Tally, String> {
        let mut tally = Tally { n_executed: self.ledger.n_executed, ..Tally::default() };
        let dispatcher = self.master.dispatcher.as_ref().ok_or("the master is down")?;
        for board in &self.boards {
            let name = &board.name;
            let state = &self.master.store.nodes[name];
            let known = dispatcher.node(name).and_then(dispatch::NodeDispatcher::applied);
            let (epoch, revision) = board.applied();
            if epoch != self.master.store.epoch || known != Some(revision) {
                return Err(format!(
                    "{name} has revision {revision} of {epoch:x}, the master knows {known:?} of {:x}",
                    self.master.store.epoch
                ));
            }
            let wanted: Vec<_> =
                state.pods.iter().map(|(uid, pod)| (*uid, pod.generation)).collect();
            if board.running() != wanted {
                return Err(format!("{name} runs {:?}, not {:?}", board.running(), state.pods));
            }
            let mut told: BTreeMap<_, _> =
                board.statuses().into_iter().map(|status| (status.uid, status)).collect();
            told.retain(|uid, status| {
                let known = state.statuses.get(uid) == Some(status);
                !known
            });
            let unknown: Vec<_> = state
                .statuses
                .keys()
                .filter(|uid| !board.statuses().iter().any(|status| status.uid == **uid))
                .collect();
            if !told.is_empty() || !unknown.is_empty() {
                return Err(format!(
                    "{name}: the master does not know {told:?} and made up {unknown:?}"
                ));
            }
            tally.n_starts += board.n_starts;
        }
        tally.n_connections = self.n_connections;
        Ok(tally)
    }
}

#[test]
fn everybody_agrees_once_the_storm_is_over() {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().expect("it is a number"))
    };
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS_DEFAULT),
    };
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (mut failed, mut tally) = (Vec::new(), Tally::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..n_threads)
            .map(|worker| {
                let seeds = seeds.clone().filter(move |seed| seed % n_threads == worker);
                scope.spawn(move || {
                    seeds.map(|seed| (seed, World::new(seed).run())).collect::<Vec<_>>()
                })
            })
            .collect();
        for (seed, result) in workers.into_iter().flat_map(|worker| worker.join().unwrap()) {
            match result {
                Ok(done) => {
                    tally.n_starts += done.n_starts;
                    tally.n_executed += done.n_executed;
                    tally.n_connections += done.n_connections;
                }
                Err(reason) => failed.push((seed, reason)),
            }
        }
    });
    failed.sort();
    if let Some((seed, reason)) = failed.first() {
        panic!("{} of {seeds:?} failed, the first SIM_SEED={seed}: {reason}", failed.len());
    }
    // A simulation in which nothing happens proves nothing.
    let n_seeds = seeds.end - seeds.start;
    assert!(tally.n_starts > n_seeds, "{tally:?}");
    assert!(n_seeds == 1 || tally.n_executed > n_seeds, "{tally:?}");
    assert!(n_seeds == 1 || tally.n_connections > n_seeds, "{tally:?}");
}
