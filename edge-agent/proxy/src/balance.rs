//! Which endpoint a new connection goes to: which ones may be asked, and which of
//! them is.
//!
//! As kube-proxy where it matters to users: ready endpoints, and where there is
//! none, those that end but still serve; those of this node alone where the
//! Service's policy says so; those that are near where it prefers them. Among
//! these: of two taken at random, the one with fewer connections. The plane counts
//! its own connections, so it knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::table::{Distribution, Endpoint};

/// An address that connections go to; it lives on while tables change.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    active: AtomicU32,
}

impl Backend {
    pub(crate) fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, active: AtomicU32::new(0) })
    }

    /// How many connections and flows it has from here.
    pub(crate) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts one more, until it is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(self))
    }
}

/// One connection or flow of a backend.
#[derive(Debug)]
pub(crate) struct Active(Arc<Backend>);

impl Active {
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whom endpoints are for, and where they may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference<'a> {
    /// This node.
    pub(crate) node: &'a str,
    /// Where it is; empty where not said.
    pub(crate) zone: &'a str,
    /// Only those of this node.
    pub(crate) only_here: bool,
    /// Whether they are asked that are not ready.
    pub(crate) not_ready: bool,
    /// Which are preferred.
    pub(crate) distribution: Distribution,
}

/// The endpoints that may be asked, as indices.
pub(crate) fn usable(endpoints: &[Endpoint], preference: Preference<'_>) -> Vec<usize> {
    let here = |n: &usize| endpoints[*n].node == preference.node;
    let near = |n: &usize| !preference.zone.is_empty() && endpoints[*n].zone == preference.zone;
    let all: Vec<usize> =
        (0..endpoints.len()).filter(|n| !preference.only_here || here(n)).collect();
    let those = |fits: &dyn Fn(&Endpoint) -> bool| -> Vec<usize> {
        all.iter().copied().filter(|n| fits(&endpoints[*n])).collect()
    };
    let ready = those(&|endpoint| endpoint.ready || preference.not_ready);
    let found = if ready.is_empty() {
        those(&|endpoint| endpoint.serving && endpoint.terminating)
    } else {
        ready
    };
    let nearest = |fits: &dyn Fn(&usize) -> bool| -> Option<Vec<usize>> {
        let found: Vec<usize> = found.iter().copied().filter(|n| fits(n)).collect();
        (!found.is_empty()).then_some(found)
    };
    let preferred = match preference.distribution {
        Distribution::Any => None,
        Distribution::Zone => nearest(&near),
        Distribution::Node => nearest(&here).or_else(|| nearest(&near)),
    };
    preferred.unwrap_or(found)
}

/// Of `n` backends the one to ask, by two numbers drawn at random; those that
/// `is_tried` are left out. `active` says how many connections one has.
pub(crate) fn choose(
    n: usize,
    is_tried: impl Fn(usize) -> bool,
    active: impl Fn(usize) -> u32,
    random: u64,
) -> Option<usize> {
    let left: Vec<usize>;
    let at = if (0..n).any(&is_tried) {
        left = (0..n).filter(|i| !is_tried(*i)).collect();
        Some(left.as_slice())
    } else {
        None
    };
    let n = at.map_or(n, <[usize]>::len);
    let at = |i: usize| at.map_or(i, |left| left[i]);
    let below = |random: u64, n: usize| {
        // The remainder's bias is below one in a million for any number of endpoints.
        usize::try_from(random % n as u64).unwrap_or(0)
    };
    match n {
        0 => None,
        1 => Some(at(0)),
        _ => {
            let first = below(random & 0xffff_ffff, n);
            let second = (first + 1 + below(random >> 32, n - 1)) % n;
            let (first, second) = (at(first), at(second));
            Some(if active(second) < active(first) { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `name@node/zone state`, one a line; states: ready, ends (serving, terminating),
    /// gone (terminating), not (ready).
    fn endpoints(text: &str) -> Vec<Endpoint> {
        text.lines()
            .map(|line| {
                let (place, state) = line.trim().split_once(' ').unwrap();
                let (node, zone) = place.split_once('/').unwrap();
                Endpoint {
                    address: "10.42.1.2".parse().unwrap(),
                    port: 80,
                    node: node.to_owned(),
                    zone: zone.to_owned(),
                    hostname: String::new(),
                    ready: state == "ready",
                    serving: state == "ready" || state == "ends",
                    terminating: state == "ends" || state == "gone",
                }
            })
            .collect()
    }

    fn check(text: &str, only_here: bool, distribution: Distribution, expected: &[usize]) {
        let preference =
            Preference { node: "me", zone: "z", only_here, not_ready: false, distribution };
        assert_eq!(usable(&endpoints(text), preference), expected, "{text}");
    }

    #[test]
    fn ready_endpoints_are_asked_and_ending_ones_where_there_is_no_other() {
        let any = Distribution::Any;
        check("me/z ready\nb/y not\nb/y ends\nc/y ready", false, any, &[0, 3]);
        check("me/z not\nb/y ends\nb/y gone", false, any, &[1]);
        check("b/y not\nb/y gone", false, any, &[]);
        check("me/z ends\nb/y ready", true, any, &[0]);
        check("b/y ready", true, any, &[]);
    }

    #[test]
    fn near_endpoints_are_preferred_where_the_service_says_so() {
        let all = "b/y ready\nc/z ready\nme/z ready\nd/z ready";
        check(all, false, Distribution::Any, &[0, 1, 2, 3]);
        check(all, false, Distribution::Zone, &[1, 2, 3]);
        check(all, false, Distribution::Node, &[2]);
        check("b/y ready\nc/z ready\nme/z not", false, Distribution::Node, &[1]);
        check("b/y ready\nc/x ready", false, Distribution::Node, &[0, 1]);
        check("b/ ready\nc/ ready", false, Distribution::Zone, &[0, 1]);
    }

    #[test]
    fn not_ready_endpoints_are_asked_where_they_are_published() {
        let preference = Preference {
            node: "me",
            zone: "",
            only_here: false,
            not_ready: true,
            distribution: Distribution::Any,
        };
        assert_eq!(usable(&endpoints("b/ not\nc/ ready"), preference), [0, 1]);
    }

    proptest! {
        #[test]
        fn the_one_chosen_is_not_tried_and_not_the_busiest(
            active in proptest::collection::vec(0..9_u32, 0..6),
            tried in proptest::collection::vec(any::<bool>(), 6),
            random: u64,
        ) {
            let left: Vec<usize> = (0..active.len()).filter(|i| !tried[*i]).collect();
            let chosen = choose(active.len(), |i| tried[i], |i| active[i], random);
            prop_assert_eq!(chosen.is_some(), !left.is_empty());
            if let Some(chosen) = chosen {
                prop_assert!(left.contains(&chosen));
                let busier = left.iter().filter(|i| active[**i] > active[chosen]).count();
                let idlest = left.iter().all(|i| active[*i] >= active[chosen]);
                prop_assert!(left.len() < 2 || busier > 0 || idlest || left.iter().filter(
                    |i| active[**i] >= active[chosen]).count() > 1);
            }
        }
    }

    #[test]
    fn connections_spread_evenly_over_endpoints_that_keep_them() {
        let backends: Vec<_> =
            (1..=4).map(|n| Backend::new(SocketAddr::from(([10, 42, 1, n], 80)))).collect();
        let mut random = crate::random::Random::seeded(7);
        let held: Vec<Active> = (0..400)
            .map(|_| {
                let n = choose(4, |_| false, |n| backends[n].active(), random.next());
                backends[n.unwrap()].begin()
            })
            .collect();
        let spread: Vec<u32> = backends.iter().map(|b| b.active()).collect();
        assert!(spread.iter().all(|n| (95..=105).contains(n)), "{spread:?}");
        drop(held);
        assert!(backends.iter().all(|backend| backend.active() == 0));
    }
}
