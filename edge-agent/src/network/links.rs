//! Links, addresses and routes, over netlink.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Attachment, NetworkError, ROUTER, io_error};

/// Name of the pod's link inside the pod.
const POD_LINK: &str = "eth0";

/// A runtime for one call, on the thread that makes it.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, NetworkError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(io_error("start a runtime for netlink"))
}

/// A netlink socket in the namespace of the thread that opened it.
pub(super) struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netlink {
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(io_error("open a netlink socket"))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    pub(super) async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(source) => Err(NetworkError::Netlink { operation: "look up a link", source }),
        }
    }

    async fn remove(&self, index: u32) -> Result<(), NetworkError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(failed("remove a link")),
        }
    }

    pub(super) async fn up(&self, index: u32) -> Result<(), NetworkError> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(link).execute().await.map_err(failed("bring a link up"))
    }

    async fn address(
        &self,
        index: u32,
        address: Ipv4Addr,
        scope: AddressScope,
    ) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(index, IpAddr::V4(address), 32).replace();
        request.message_mut().header.scope = scope;
        request.execute().await.map_err(failed("give a link its address"))
    }

    async fn route(
        &self,
        builder: RouteMessageBuilder<Ipv4Addr>,
        operation: &'static str,
    ) -> Result<(), NetworkError> {
        self.handle
            .route()
            .add(builder.build())
            .replace()
            .execute()
            .await
            .map_err(failed(operation))
    }
}

/// Joins a pod's network namespace to the node's.
pub(super) async fn join(
    host: &Netlink,
    pod: &Netlink,
    namespace: BorrowedFd<'_>,
    attachment: &Attachment,
) -> Result<(), NetworkError> {
    let name = &attachment.host_link;
    let inside = pod.index(POD_LINK).await?;
    let outside = host.index(name).await?;
    let (inside, outside) = match (inside, outside) {
        (Some(inside), Some(outside)) => (inside, outside),
        (_, stale) => {
            if let Some(stale) = stale {
                host.remove(stale).await?;
            }
            make_pair(host, namespace, name, attachment.mtu).await?;
            let gone = || NetworkError::Io {
                operation: format!("find the link {name}"),
                source: std::io::ErrorKind::NotFound.into(),
            };
            (
                pod.index(POD_LINK).await?.ok_or_else(gone)?,
                host.index(name).await?.ok_or_else(gone)?,
            )
        }
    };
    host.address(outside, attachment.gateway, AddressScope::Universe).await?;
    // Scope host: it answers ARP and is never chosen as a source.
    host.address(outside, ROUTER, AddressScope::Host).await?;
    host.up(outside).await?;
    if let Some(loopback) = pod.index("lo").await? {
        pod.up(loopback).await?;
    }
    pod.address(inside, attachment.address, AddressScope::Universe).await?;
    pod.up(inside).await?;
    let on_link = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(ROUTER, 32)
        .output_interface(inside)
        .scope(RouteScope::Link);
    pod.route(on_link, "route to the node").await?;
    let default =
        RouteMessageBuilder::<Ipv4Addr>::new().gateway(ROUTER).output_interface(inside).onlink();
    pod.route(default, "route the pod's traffic").await?;
    let to_pod = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(attachment.address, 32)
        .output_interface(outside)
        .scope(RouteScope::Link)
        .pref_source(attachment.gateway);
    host.route(to_pod, "route to the pod").await
}

/// Makes both ends at once, the pod's in its namespace from the start.
async fn make_pair(
    host: &Netlink,
    namespace: BorrowedFd<'_>,
    name: &str,
    mtu: Option<u32>,
) -> Result<(), NetworkError> {
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(POD_LINK.to_owned())
        .setns_by_fd(namespace.as_raw_fd());
    let mut pair = LinkMessageBuilder::<LinkVeth>::new(name, POD_LINK);
    if let Some(mtu) = mtu {
        (peer, pair) = (peer.mtu(mtu), pair.mtu(mtu));
    }
    let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
    host.handle.link().add(pair).execute().await.map_err(failed("make the pod's link"))
}

/// Removes the node's end of a pod's link, and with it the pod's.
/// The addresses of links whose names do not begin with `prefix`: global ones, sorted.
pub(super) fn addresses(prefix: &str) -> Result<Vec<IpAddr>, NetworkError> {
    runtime()?.block_on(async {
        let host = Netlink::open()?;
        let mut links = host.handle.link().get().execute();
        let mut ours = Vec::new();
        while let Some(link) = links.try_next().await.map_err(failed("list links"))? {
            let is_ours = link.attributes.iter().any(|attribute| {
                matches!(attribute, LinkAttribute::IfName(name) if name.starts_with(prefix))
            });
            if is_ours {
                ours.push(link.header.index);
            }
        }
        let mut all = host.handle.address().get().execute();
        let mut found = Vec::new();
        while let Some(one) = all.try_next().await.map_err(failed("list addresses"))? {
            if one.header.scope != AddressScope::Universe || ours.contains(&one.header.index) {
                continue;
            }
            found.extend(
                one.attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Local(ip) => Some(*ip),
                        _ => None,
                    })
                    .or_else(|| {
                        one.attributes.iter().find_map(|attribute| match attribute {
                            AddressAttribute::Address(ip) => Some(*ip),
                            _ => None,
                        })
                    }),
            );
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    })
}

pub(super) fn remove_host_link(name: &str) -> Result<(), NetworkError> {
    runtime()?.block_on(async {
        let host = Netlink::open()?;
        match host.index(name).await? {
            Some(index) => host.remove(index).await,
            None => Ok(()),
        }
    })
}

/// Removes every link whose name begins with `prefix` and that is not to be kept.
pub(super) fn remove_others(
    prefix: &str,
    keep: impl Fn(&str) -> bool,
) -> Result<Vec<String>, NetworkError> {
    runtime()?.block_on(async {
        let host = Netlink::open()?;
        let mut links = host.handle.link().get().execute();
        let mut strays = Vec::new();
        while let Some(link) = links.try_next().await.map_err(failed("list links"))? {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            if let Some(name) = name.filter(|name| name.starts_with(prefix) && !keep(name)) {
                strays.push((link.header.index, name));
            }
        }
        for (index, _) in &strays {
            host.remove(*index).await?;
        }
        Ok(strays.into_iter().map(|(_, name)| name).collect())
    })
}

fn failed(operation: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { operation, source }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
