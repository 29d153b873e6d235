//! Routes and rules that bring what pods and Services are sent to the node's own
//! stack, where the plane's sockets are.
//!
//! ```text
//! table local   local <Services> dev lo src <gateway>
//! table main    local <all pods> dev lo
//!               unreachable <pods of this node>             their own /32 routes win
//! table 101     local default dev lo
//! rule 99       from <pods of this node> iif lo lookup main   what the plane sends
//! rule 100      from <pods of this node> lookup 101           what pods send
//! dev lo        <gateway>
//! ```
//!
//! All routes of ours carry [`PROTOCOL`], so that what a predecessor left is found.
//! Where packets are not captured, only the route to Services is there. What is to
//! be and what to do is decided in [`plan`]; netlink is below.

mod netlink;

use std::collections::BTreeSet;
use std::net::IpAddr;

pub(crate) use self::netlink::{RoutesError, apply, remove};
use crate::capture::{Ranges, gateway};
use crate::table::Net;

/// Who made a route, as routes say it: `ip route` shows `proto 112`.
const PROTOCOL: u8 = 112;
/// The table in which everything is delivered locally.
const TABLE: u32 = 101;
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
const PRIORITY_OWN: u32 = 99;
const PRIORITY_PODS: u32 = 100;
/// Loses to the route of a pod, whatever its metric.
const METRIC: u32 = 4096;
/// Ranges this large are another word for "everything": the longer one wins.
const PREFIX_MIN: u8 = 8;

/// What becomes of packets by a route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// They are the node's.
    Local,
    /// Nobody's: the sender is told at once.
    Unreachable,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    table: u32,
    kind: Kind,
    to: Net,
    source: Option<IpAddr>,
    metric: u32,
}

impl Route {
    fn local(table: u32, to: Net, source: Option<IpAddr>) -> Self {
        Self { table, kind: Kind::Local, to, source, metric: METRIC }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    priority: u32,
    from: Net,
    from_here: bool,
    table: u32,
}

/// All that is ours in the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    addresses: BTreeSet<IpAddr>,
    routes: BTreeSet<Route>,
    rules: BTreeSet<Rule>,
}

/// What is to be, for these ranges.
pub(crate) fn wanted(ranges: &Ranges, is_captured: bool) -> State {
    let mut state = State::default();
    let gateway_of = |net: &Net| {
        let is_ipv6 = net.address().is_ipv6();
        ranges.pods.iter().map(gateway).find(|address| address.is_ipv6() == is_ipv6)
    };
    state.addresses = ranges.pods.iter().map(gateway).collect();
    for net in &ranges.services {
        state.routes.insert(Route::local(TABLE_LOCAL, *net, gateway_of(net)));
    }
    if !is_captured {
        return state;
    }
    for net in &ranges.cluster {
        state.routes.insert(Route::local(TABLE_MAIN, *net, gateway_of(net)));
    }
    for net in &ranges.pods {
        if let Some(to) = everything(net.address().is_ipv6()) {
            state.routes.insert(Route::local(TABLE, to, None));
        }
        // A cluster of one node may have one range for both: the shorter metric wins.
        let metric = METRIC - 1;
        let kind = Kind::Unreachable;
        state.routes.insert(Route { table: TABLE_MAIN, kind, to: *net, source: None, metric });
        let rule = |priority, from_here, table| Rule { priority, from: *net, from_here, table };
        state.rules.insert(rule(PRIORITY_OWN, true, TABLE_MAIN));
        state.rules.insert(rule(PRIORITY_PODS, false, TABLE));
    }
    state
}

fn everything(is_ipv6: bool) -> Option<Net> {
    let address = if is_ipv6 {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    };
    Net::new(address, 0)
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AddAddress(IpAddr),
    AddRoute(Route),
    AddRule(Rule),
    RemoveRule(Rule),
    RemoveRoute(Route),
    RemoveAddress(IpAddr),
}

/// From what is to what is to be: first all that is new, in the order in which one
/// needs the other, then the old, rules first.
pub(crate) fn plan(wanted: &State, observed: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    let new = wanted.addresses.difference(&observed.addresses);
    steps.extend(new.copied().map(Step::AddAddress));
    let new = wanted.routes.difference(&observed.routes);
    steps.extend(new.cloned().map(Step::AddRoute));
    let new = wanted.rules.difference(&observed.rules);
    steps.extend(new.cloned().map(Step::AddRule));
    let old = observed.rules.difference(&wanted.rules);
    steps.extend(old.cloned().map(Step::RemoveRule));
    let old = observed.routes.difference(&wanted.routes);
    steps.extend(old.cloned().map(Step::RemoveRoute));
    let old = observed.addresses.difference(&wanted.addresses);
    steps.extend(old.copied().map(Step::RemoveAddress));
    steps
}

/// The first range of ours that a route or address of the host's lies in, and that
/// route: (ours, theirs). Routes to this node's own pods and its gateway are right.
pub(crate) fn overlap(ranges: &Ranges, others: &[Net]) -> Option<(Net, Net)> {
    let is_pod = |net: &Net| {
        net.prefix() == if net.address().is_ipv6() { 128 } else { 32 }
            && ranges.pods.iter().any(|range| range.contains(net.address()))
    };
    let others: Vec<&Net> =
        others.iter().filter(|net| net.prefix() >= PREFIX_MIN && !is_pod(net)).collect();
    let ours = ranges.services.iter().chain(&ranges.cluster).chain(&ranges.pods);
    ours.flat_map(|net| others.iter().map(move |other| (*net, **other)))
        .find(|(net, other)| net.overlaps(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        Ranges {
            pods: vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()],
            cluster: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            services: vec!["10.43.0.0/16".parse().unwrap()],
            own: BTreeSet::new(),
        }
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do_and_one_for_nothing_removes_all() {
        let all = wanted(&ranges(), true);
        assert_eq!((all.addresses.len(), all.routes.len(), all.rules.len()), (2, 7, 4));
        assert_eq!(plan(&all, &all), []);
        let up = plan(&all, &State::default());
        let down = plan(&State::default(), &all);
        assert_eq!((up.len(), down.len()), (13, 13));
        assert!(matches!(up[0], Step::AddAddress(_)), "routes name it as their source");
        assert!(matches!(down[0], Step::RemoveRule(_)), "nothing is led to what is gone");
        let few = wanted(&ranges(), false);
        assert_eq!((few.routes.len(), few.rules.len()), (1, 0), "only Services");
    }

    #[test]
    fn another_range_of_the_host_is_named_and_its_own_pods_are_not() {
        let check = |other: &str, expected: Option<&str>| {
            let found = overlap(&ranges(), &[other.parse().unwrap()]);
            assert_eq!(found.map(|(ours, _)| ours.to_string()).as_deref(), expected, "{other}");
        };
        check("10.43.7.0/24", Some("10.43.0.0/16"));
        check("10.0.0.0/8", Some("10.43.0.0/16"));
        check("10.42.9.1/32", Some("10.42.0.0/16"));
        check("10.42.1.0/25", Some("10.42.0.0/16"));
        check("fd42::/64", Some("fd42::/48"));
        check("10.42.1.7/32", None);
        check("0.0.0.0/0", None);
        check("0.0.0.0/1", None);
        check("192.168.1.0/24", None);
    }
}
