//! Reads and changes the kernel's routes and rules over netlink.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::{
    Kind, PRIORITY_OWN, PRIORITY_PODS, PROTOCOL, Route, Rule, State, Step, TABLE, TABLE_MAIN,
    overlap, plan, wanted,
};
use crate::capture::Ranges;
use crate::table::Net;

const LOOPBACK: &str = "lo";
const LOOPBACK_INDEX: u32 = 1;

/// Routes could not be brought to what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoutesError {
    /// The host uses addresses of ours.
    #[error(
        "the range {ours} of pods or Services overlaps with {theirs}, which this host has a \
         route or an address for: change the one or the other"
    )]
    Overlap {
        /// Of pods or Services.
        ours: Net,
        /// The host's.
        theirs: Net,
    },
    /// There is no netlink.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {operation}: {source}")]
    Netlink {
        /// What was tried.
        operation: String,
        /// Why not.
        source: rtnetlink::Error,
    },
}

fn failed(operation: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> RoutesError {
    let operation = operation.into();
    move |source| RoutesError::Netlink { operation, source }
}

/// Brings routes and rules to these ranges. Safe to repeat.
///
/// # Errors
/// The host uses addresses of ours, and nothing was changed; or the kernel refuses.
pub(crate) async fn apply(ranges: &Ranges, is_captured: bool) -> Result<(), RoutesError> {
    with_netlink(async |handle| {
        let (observed, others) = read(handle).await?;
        if let Some((ours, theirs)) = overlap(ranges, &others) {
            return Err(RoutesError::Overlap { ours, theirs });
        }
        for step in plan(&wanted(ranges, is_captured), &observed) {
            take(handle, &step).await?;
        }
        Ok(())
    })
    .await
}

/// Removes all that is ours. Goes on past errors, and returns the first.
///
/// # Errors
/// The kernel refuses.
pub(crate) async fn remove() -> Result<(), RoutesError> {
    with_netlink(async |handle| {
        let (observed, _) = read(handle).await?;
        let mut first = Ok(());
        for step in plan(&State::default(), &observed) {
            first = first.and(take(handle, &step).await);
        }
        first
    })
    .await
}

async fn with_netlink<T>(
    work: impl AsyncFnOnce(&Handle) -> Result<T, RoutesError>,
) -> Result<T, RoutesError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(RoutesError::Open)?;
    let task = tokio::spawn(connection);
    let result = work(&handle).await;
    task.abort();
    result
}

/// What is ours, and all ranges and addresses that are not.
async fn read(handle: &Handle) -> Result<(State, Vec<Net>), RoutesError> {
    let mut state = State::default();
    let mut others = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = next(routes.try_next().await).map_err(failed("list routes"))? {
            let Some(found) = route_of(&route) else { continue };
            if route.header.protocol == RouteProtocol::from(PROTOCOL) {
                state.routes.insert(found);
            } else if !matches!(route.header.kind, RouteType::Broadcast | RouteType::Multicast) {
                others.push(found.to);
            }
        }
    }
    for version in [IpVersion::V4, IpVersion::V6] {
        let mut rules = handle.rule().get(version).execute();
        while let Some(rule) = next(rules.try_next().await).map_err(failed("list rules"))? {
            state.rules.extend(rule_of(&rule));
        }
    }
    // Loopback addresses beside the kernel's own are ours where a route says so.
    let mut addresses = handle.address().get().set_link_index_filter(LOOPBACK_INDEX).execute();
    while let Some(address) = addresses.try_next().await.map_err(failed("list addresses"))? {
        let is_host = address.header.prefix_len == 32 || address.header.prefix_len == 128;
        for attribute in &address.attributes {
            if let AddressAttribute::Address(found) = attribute
                && is_host
                && state.routes.iter().any(|route| route.source == Some(*found))
            {
                state.addresses.insert(*found);
            }
        }
    }
    Ok((state, others))
}

/// What a kernel without IPv6 has of it: nothing.
fn next<T>(found: Result<Option<T>, rtnetlink::Error>) -> Result<Option<T>, rtnetlink::Error> {
    match found {
        Err(rtnetlink::Error::NetlinkError(message))
            if [libc::EAFNOSUPPORT, libc::EOPNOTSUPP].contains(&-message.raw_code()) =>
        {
            Ok(None)
        }
        other => other,
    }
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let mut to = None;
    let mut source = None;
    let mut metric = 0;
    let plain = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(address) => to = plain(address),
            RouteAttribute::PrefSource(address) => source = plain(address),
            RouteAttribute::Priority(value) => metric = *value,
            _ => (),
        }
    }
    let to = match to {
        Some(to) => Net::new(to, message.header.destination_prefix_length)?,
        None => super::everything(message.header.address_family == AddressFamily::Inet6)?,
    };
    let kind = match message.header.kind {
        RouteType::Unreachable => Kind::Unreachable,
        _ => Kind::Local,
    };
    Some(Route { table, kind, to, source, metric })
}

/// A rule, where it is one of ours.
fn rule_of(message: &RuleMessage) -> Option<Rule> {
    let mut rule = (None, None, false, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => rule.0 = Some(*value),
            RuleAttribute::Source(address) => {
                rule.1 = Net::new(*address, message.header.src_len);
            }
            RuleAttribute::Iifname(name) if name == LOOPBACK => rule.2 = true,
            RuleAttribute::Table(value) => rule.3 = *value,
            _ => (),
        }
    }
    let (priority, from, from_here, table) = rule;
    let rule = Rule { priority: priority?, from: from?, from_here, table };
    let is_ours = matches!(
        (rule.priority, rule.from_here, rule.table),
        (PRIORITY_OWN, true, TABLE_MAIN) | (PRIORITY_PODS, false, TABLE)
    );
    is_ours.then_some(rule)
}

async fn take(handle: &Handle, step: &Step) -> Result<(), RoutesError> {
    let operation = format!("{step:?}");
    let result = match step {
        Step::AddAddress(address) => {
            let prefix = if address.is_ipv6() { 128 } else { 32 };
            let mut request = handle.address().add(LOOPBACK_INDEX, *address, prefix).replace();
            // Nobody else on this link has it; routes may name it at once.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            // It is no address of this machine on a network: nobody takes it for one.
            if address.is_ipv4() {
                request.message_mut().header.scope = AddressScope::Host;
            }
            request.execute().await
        }
        Step::RemoveAddress(address) => remove_address(handle, *address).await,
        Step::AddRoute(route) => handle.route().add(message(route)).replace().execute().await,
        Step::RemoveRoute(route) => handle.route().del(message(route)).execute().await,
        Step::AddRule(rule) => add_rule(handle, rule).await,
        Step::RemoveRule(rule) => remove_rule(handle, rule).await,
    };
    match result {
        Err(error) if is_done_already(&error) => Ok(()),
        other => other.map_err(failed(operation)),
    }
}

fn is_done_already(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    [libc::EEXIST, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL].contains(&-message.raw_code())
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    let is_ipv6 = route.to.address().is_ipv6();
    header.address_family = if is_ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.protocol = RouteProtocol::from(PROTOCOL);
    header.destination_prefix_length = route.to.prefix();
    let attributes = &mut message.attributes;
    match route.kind {
        Kind::Local => {
            header.kind = RouteType::Local;
            header.scope = RouteScope::Host;
            attributes.push(RouteAttribute::Oif(LOOPBACK_INDEX));
        }
        Kind::Unreachable => header.kind = RouteType::Unreachable,
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Priority(route.metric));
    if route.to.prefix() > 0 {
        let address = RouteAddress::from(route.to.address());
        attributes.push(RouteAttribute::Destination(address));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
    }
    message
}

async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), rtnetlink::Error> {
    let mut request = handle
        .rule()
        .add()
        .table_id(rule.table)
        .priority(rule.priority)
        .action(RuleAction::ToTable);
    if rule.from_here {
        request = request.input_interface(LOOPBACK);
    }
    match rule.from.address() {
        IpAddr::V4(v4) => request.v4().source_prefix(v4, rule.from.prefix()).execute().await,
        IpAddr::V6(v6) => request.v6().source_prefix(v6, rule.from.prefix()).execute().await,
    }
}

async fn remove_rule(handle: &Handle, rule: &Rule) -> Result<(), rtnetlink::Error> {
    let version = if rule.from.address().is_ipv6() { IpVersion::V6 } else { IpVersion::V4 };
    let mut rules = handle.rule().get(version).execute();
    let mut found = Vec::new();
    while let Some(message) = rules.try_next().await? {
        if rule_of(&message).as_ref() == Some(rule) {
            found.push(message);
        }
    }
    for message in found {
        handle.rule().del(message).execute().await?;
    }
    Ok(())
}

async fn remove_address(handle: &Handle, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let mut addresses = handle
        .address()
        .get()
        .set_link_index_filter(LOOPBACK_INDEX)
        .set_address_filter(address)
        .execute();
    let mut found = Vec::new();
    while let Some(message) = addresses.try_next().await? {
        found.push(message);
    }
    for message in found {
        handle.address().del(message).execute().await?;
    }
    Ok(())
}
