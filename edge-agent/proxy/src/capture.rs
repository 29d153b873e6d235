//! How traffic gets to the plane's sockets: probing for the best way, setting it
//! up, and keeping it in step with the table.
//!
//! | way | needs | what is captured |
//! | --- | --- | --- |
//! | [`program`] at the socket lookup | BPF, Linux 5.9 | everything |
//! | [`tproxy`] rules | nftables with TPROXY | everything |
//! | listeners, opened by `ports` | nothing | what is sent to Services |
//!
//! Routes and rules that bring packets to the node's own stack are `routes`' part.
//! Knows no Services, only ranges and live addresses.

mod bpf;
mod program;
pub(crate) mod sockets;
#[cfg(test)]
mod tests;
mod tproxy;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use self::bpf::Map;
use self::program::{Maps, SOCKETS};
use self::sockets::Sockets;
use crate::control::Capture;
use crate::table::{Net, Node, Protocol};

/// Most live addresses: 10,000 Services with six ports.
const LIVE_MAX: u32 = 65_536;
/// Most addresses of the node itself.
const OWN_MAX: u32 = 256;

/// What tells packets apart that do not depend on Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Of the pods of this node.
    pub(crate) pods: Vec<Net>,
    /// Of all pods.
    pub(crate) cluster: Vec<Net>,
    /// Of Services.
    pub(crate) services: Vec<Net>,
    /// The node's own addresses, gateways included.
    pub(crate) own: BTreeSet<IpAddr>,
}

impl Ranges {
    pub(crate) fn new(node: &Node) -> Self {
        let gateways = node.pod_cidrs.iter().map(gateway);
        Self {
            pods: node.pod_cidrs.clone(),
            cluster: node.cluster_cidrs.clone(),
            services: node.service_cidrs.clone(),
            own: node.addresses.iter().copied().chain(gateways).collect(),
        }
    }
}

/// The node's own address in a range of its pods: the first after the range's.
pub(crate) fn gateway(net: &Net) -> IpAddr {
    match net.address() {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().saturating_add(1).into()),
    }
}

/// Addresses, ports and protocols at which something answers.
pub(crate) type Live = BTreeSet<(IpAddr, u16, Protocol)>;

/// Removes the rules of a proxy that could not do so itself.
///
/// # Errors
/// `nft` refuses, or is gone.
pub(crate) async fn remove_rules() -> io::Result<()> {
    tproxy::remove().await
}

/// The way that is in force.
#[derive(Debug)]
pub(crate) struct Capturing {
    way: Way,
    ranges: Ranges,
    live: Live,
}

#[derive(Debug)]
enum Way {
    SkLookup(SkLookup),
    Tproxy(tproxy::Ports),
    Listeners,
}

#[derive(Debug)]
struct SkLookup {
    sockets: Map,
    live: Map,
    own: Map,
    link: OwnedFd,
    with_interface: bool,
}

/// Tries the ways in order, or only the one that is forced. Returns what works,
/// and why not the ones before it.
pub(crate) async fn choose(sockets: &Sockets, forced: Option<Capture>) -> (Capturing, String) {
    let mut reasons = Vec::new();
    let wanted = |capture| forced.is_none_or(|forced| forced == capture);
    let made = |way| Capturing { way, ranges: Ranges::default(), live: Live::new() };
    if wanted(Capture::SkLookup) {
        match SkLookup::new(sockets) {
            Ok(way) => return (made(Way::SkLookup(way)), String::new()),
            Err(error) => reasons.push(format!(
                "no program at the kernel's socket lookup (needs Linux 5.9 with \
                 CONFIG_BPF_SYSCALL, and CAP_BPF): {error}"
            )),
        }
    }
    if wanted(Capture::Tproxy) {
        let ports = sockets.ports();
        match tproxy::probe(&ports).await {
            Ok(()) => return (made(Way::Tproxy(ports)), reasons.join("; ")),
            Err(error) => reasons.push(format!(
                "no TPROXY rules (needs nft, CONFIG_NFT_TPROXY and CONFIG_NFT_SOCKET): {error}"
            )),
        }
    }
    if forced == Some(Capture::Listeners) {
        reasons.push("told to use listeners".to_owned());
    }
    (made(Way::Listeners), reasons.join("; "))
}

/// Tries which way works on this machine, and takes it away again: the way, and why
/// not the ones before it.
///
/// # Errors
/// There are no sockets to lead anything to.
pub async fn probe() -> io::Result<(Capture, String)> {
    let sockets = Sockets::new()?;
    let (capturing, reasons) = choose(&sockets, None).await;
    // Until a table is in force nothing is captured, and no rule is there to remove.
    Ok((capturing.capture(), reasons))
}

impl Capturing {
    pub(crate) fn capture(&self) -> Capture {
        match self.way {
            Way::SkLookup(_) => Capture::SkLookup,
            Way::Tproxy(_) => Capture::Tproxy,
            Way::Listeners => Capture::Listeners,
        }
    }

    /// Brings what is in force to these ranges and live addresses. Safe to repeat;
    /// after an error the next call does what is left.
    ///
    /// # Errors
    /// The kernel or `nft` refuses.
    pub(crate) async fn apply(&mut self, ranges: &Ranges, live: &Live) -> io::Result<()> {
        if self.ranges == *ranges && self.live == *live {
            return Ok(());
        }
        match &self.way {
            Way::SkLookup(way) => way.apply((&self.ranges, &self.live), (ranges, live))?,
            Way::Tproxy(ports) => tproxy::apply(ports, ranges, live).await?,
            Way::Listeners => (),
        }
        self.ranges = ranges.clone();
        self.live = live.clone();
        Ok(())
    }

    /// Removes what does not go away with this process.
    ///
    /// # Errors
    /// `nft` refuses.
    pub(crate) async fn remove(self) -> io::Result<()> {
        match self.way {
            Way::Tproxy(_) => tproxy::remove().await,
            Way::SkLookup(_) | Way::Listeners => Ok(()),
        }
    }

    /// What a successor needs to take over the program as it is: the maps of
    /// sockets, live and own addresses, and the link.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match &self.way {
            Way::SkLookup(way) => {
                vec![way.sockets.as_fd(), way.live.as_fd(), way.own.as_fd(), way.link.as_fd()]
            }
            Way::Tproxy(_) | Way::Listeners => Vec::new(),
        }
    }

    /// The live addresses that are in force, for a successor.
    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    /// Takes over from a predecessor: the sockets are the ones it had, so nothing
    /// changes in the kernel. `None` where the descriptors do not fit the way.
    pub(crate) fn adopt(
        capture: Capture,
        sockets: &Sockets,
        descriptors: Vec<OwnedFd>,
        live: Live,
    ) -> Option<Self> {
        let way = match (capture, <[OwnedFd; 4]>::try_from(descriptors)) {
            (Capture::SkLookup, Ok([map, live, own, link])) => Way::SkLookup(SkLookup {
                sockets: Map::adopt(map, 4, 8),
                live: Map::adopt(live, program::KEY_BYTES, 4),
                own: Map::adopt(own, program::ADDRESS_BYTES, 4),
                link,
                with_interface: true,
            }),
            (Capture::Tproxy, _) => Way::Tproxy(sockets.ports()),
            (Capture::Listeners, _) => Way::Listeners,
            _ => return None,
        };
        // Of the ranges nothing is said: the program is loaded anew for them.
        Some(Self { way, ranges: Ranges::default(), live })
    }
}

impl SkLookup {
    /// Makes the maps, fills in the sockets, and attaches a program that captures
    /// nothing yet: whether the kernel takes it is the probe.
    fn new(sockets: &Sockets) -> io::Result<Self> {
        let map = Map::sockets("pinnace_sockets", SOCKETS)?;
        for (index, fd) in sockets.indexed() {
            map.insert(
                &index.to_ne_bytes(),
                &u64::from(fd.as_raw_fd().unsigned_abs()).to_ne_bytes(),
            )?;
        }
        let live = Map::set("pinnace_live", program::KEY_BYTES, LIVE_MAX)?;
        let own = Map::set("pinnace_own", program::ADDRESS_BYTES, OWN_MAX)?;
        let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
        let ids = Maps {
            sockets: map.as_fd().as_raw_fd(),
            live: live.as_fd().as_raw_fd(),
            own: own.as_fd().as_raw_fd(),
        };
        let (program, with_interface) = load(&Ranges::default(), ids, true)
            .or_else(|_| load(&Ranges::default(), ids, false))?;
        let link = bpf::attach(program.as_fd(), namespace.as_fd())?;
        Ok(Self { sockets: map, live, own, link, with_interface })
    }

    fn maps(&self) -> Maps {
        Maps {
            sockets: self.sockets.as_fd().as_raw_fd(),
            live: self.live.as_fd().as_raw_fd(),
            own: self.own.as_fd().as_raw_fd(),
        }
    }

    fn apply(&self, was: (&Ranges, &Live), now: (&Ranges, &Live)) -> io::Result<()> {
        const PRESENT: [u8; 4] = 1_u32.to_ne_bytes();
        for address in now.0.own.difference(&was.0.own) {
            self.own.insert(&program::address_key(*address), &PRESENT)?;
        }
        for (address, port, protocol) in now.1.difference(was.1) {
            self.live.insert(&program::live_key(*address, *port, *protocol), &PRESENT)?;
        }
        let constant = |ranges: &Ranges| {
            (ranges.pods.clone(), ranges.cluster.clone(), ranges.services.clone())
        };
        if constant(was.0) != constant(now.0) {
            let (program, _) = load(now.0, self.maps(), self.with_interface)
                .or_else(|_| load(now.0, self.maps(), false))?;
            bpf::replace(self.link.as_fd(), program.as_fd())?;
        }
        for (address, port, protocol) in was.1.difference(now.1) {
            self.live.remove(&program::live_key(*address, *port, *protocol))?;
        }
        for address in was.0.own.difference(&now.0.own) {
            self.own.remove(&program::address_key(*address))?;
        }
        Ok(())
    }
}

fn load(ranges: &Ranges, maps: Maps, with_interface: bool) -> io::Result<(OwnedFd, bool)> {
    let code = program::program(ranges, maps, with_interface);
    bpf::load("pinnace_lookup", &code).map(|program| (program, with_interface))
}
