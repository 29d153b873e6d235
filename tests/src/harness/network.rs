//! A switch and the machines on it, as network namespaces.
//!
//! ```text
//! pt-<test>-hub   10.201.0.1/24 on the bridge `hub`: master, registry, the test itself
//! pt-<test>-<n>   10.201.0.<n>/24 on `eth0`: one board; a port `port<n>` on the bridge
//! ```
//!
//! Nothing is made in the namespace of the machine, so any number of tests may
//! run beside each other and beside whatever the machine does. Namespaces of a
//! test run that was killed are removed by the next.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::process::{must, run};

/// The address of the hub.
pub(crate) const HUB: &str = "10.201.0.1";

/// A switch, and the thread's way to it: the thread that makes it is at the hub
/// until it is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    boards: Vec<u8>,
    home: File,
}

impl Network {
    /// Makes the switch and brings this thread to the hub.
    pub(crate) fn new(name: &str) -> Self {
        let home = File::open("/proc/thread-self/ns/net").expect("the kernel has namespaces");
        let network = Self { name: name.to_owned(), boards: Vec::new(), home };
        let hub = network.hub();
        add(&hub);
        let inside = File::open(path(&hub)).expect("it was just made");
        setns(inside, CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        must("ip link set lo up");
        // An address of its own: else it takes the lowest of its ports', which changes
        // when a board is unplugged, and the others talk to nobody for a while.
        must("ip link add hub address 02:00:0a:c9:00:01 type bridge");
        must(&format!("ip addr add {HUB}/24 dev hub"));
        must("ip link set hub up");
        network
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    /// Name of a board's namespace.
    fn board(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    /// Plugs board `number` in; its namespace is new.
    pub(crate) fn plug(&mut self, number: u8) {
        let board = self.board(number);
        add(&board);
        if !self.boards.contains(&number) {
            self.boards.push(number);
        }
        must(&format!("ip link add port{number} type veth peer name eth0 netns {board}"));
        must(&format!("ip link set port{number} master hub up"));
        let inside = |line: &str| must(&format!("nsenter --net=/run/netns/{board} {line}"));
        inside("ip link set lo up");
        inside(&format!("ip addr add {}/24 dev eth0", Self::address(number)));
        inside("ip link set eth0 up");
        inside(&format!("ip route add default via {HUB}"));
    }

    /// Takes the board's namespace away: what it had is gone, without a goodbye.
    pub(crate) fn unplug(&mut self, number: u8) {
        self.cut(number);
        remove(&self.board(number));
        // The pair goes with the namespace, once the kernel gets to it.
        run(command(&format!("ip link del port{number}")));
        self.boards.retain(|board| *board != number);
    }

    /// Cuts the cable. The board keeps its addresses and routes.
    pub(crate) fn cut(&self, number: u8) {
        run(command(&format!("ip link set port{number} down")));
    }

    /// Mends the cable.
    pub(crate) fn mend(&self, number: u8) {
        must(&format!("ip link set port{number} up"));
    }

    /// So many of a hundred packets between the hub and the boards are lost, in each direction.
    pub(crate) fn lose(&self, percent: u32) {
        run(command("nft delete table inet weather"));
        if percent == 0 {
            return;
        }
        must("nft add table inet weather");
        for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
            must(&format!(
                "nft add chain inet weather {hook} {{ type filter hook {hook} priority 0 ; }}"
            ));
            must(&format!(
                "nft add rule inet weather {hook} ip {side} != {HUB} ip {side} 10.201.0.0/24 \
                 numgen random mod 100 < {percent} drop"
            ));
        }
    }

    /// A board's address.
    pub(crate) fn address(number: u8) -> String {
        format!("10.201.0.{number}")
    }

    /// The command that starts `program` on a board. `ip netns exec` would give
    /// it a `/sys` without cgroups.
    pub(crate) fn on_board(&self, number: u8, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.board(number))).arg("--").arg(program);
        command
    }

    /// The file of a board's network namespace.
    pub(crate) fn namespace_of(&self, number: u8) -> PathBuf {
        path(&self.board(number))
    }

    /// Runs a line on a board.
    pub(crate) fn output_on_board(&self, number: u8, line: &str) -> super::process::Output {
        run(command(&format!("nsenter --net=/run/netns/{} {line}", self.board(number))))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = setns(&self.home, CloneFlags::CLONE_NEWNET);
        for number in &self.boards {
            remove(&self.board(*number));
        }
        remove(&self.hub());
    }
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    command
}

fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn add(name: &str) {
    must(&format!("ip netns add {name}"));
}

fn remove(name: &str) {
    if path(name).exists() {
        run(command(&format!("ip netns del {name}")));
    }
}

/// Removes the namespaces of test runs that are no more.
pub(crate) fn remove_stale(is_stale: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        if let Some(name) = entry.file_name().to_str()
            && is_stale(name)
        {
            remove(name);
        }
    }
}
