//! The pod network: each pod its own namespaces and address, routed without a
//! bridge.
//!
//! ```text
//!  pod    eth0  10.42.N.X/32     default via 169.254.1.1 (on link)
//!          │ veth
//!  node   pn…   10.42.N.1/32, 169.254.1.1/32 (scope host, answers ARP)
//!               route 10.42.N.X/32 dev pn… src 10.42.N.1
//! ```
//!
//! Where the proxy takes all that pods send ([`Capture::SkLookup`],
//! [`Capture::Tproxy`]) nothing is forwarded, and no rule of ours is anywhere.
//! Where it cannot, the kernel forwards, behind one nftables rule:
//!
//! ```text
//!         nft   ip saddr 10.42.N.0/24, not out of lo or pn…: masquerade
//! ```
//!
//! Namespaces are held by bind mounts, without a process. Every step may be
//! repeated: what is there is left as it is. Several agents may share one
//! machine: links and the nft chain carry a tag of the agent's state folder.

mod addresses;
mod links;
mod masquerade;
mod namespaces;
mod own;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proxy::control::Capture;
use tokio::sync::watch;
use wire::Uid;
use wire::network::ClusterV1;

pub use self::addresses::{Cidr, CidrError};
pub use self::namespaces::is_namespace;
pub use self::own::follow_addresses;
pub use self::shared::{hold_ipc, set_sysctls};
use crate::id;

/// What all our links begin with, whichever agent made them.
const LINK_PREFIX: &str = "pn";

/// The address pods send everything to; answered on every link by the node.
const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// How long a pod waits for the proxy to say whether it takes what pods send.
const CAPTURE_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Packets between pods never see a wire, so they may be as large as they can be.
const CAPTURED_MTU: u32 = 65_535;

/// Where a pod asks for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDns {
    /// The servers.
    pub servers: Vec<IpAddr>,
    /// What the cluster's names end in.
    pub domain: String,
}

/// What failed on the way to a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The master has not said which addresses the node gives to pods.
    #[error("the node has no pod CIDR yet")]
    NoCidr,
    /// Every address is taken.
    #[error("no address is left in {0}")]
    NoAddress(Cidr),
    /// A system call failed.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a change of links, addresses or routes.
    #[error("cannot {operation}: {source}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: rtnetlink::Error,
    },
    /// `nft` is missing or refused the rules.
    #[error("cannot masquerade pods: {0}")]
    Masquerade(String),
}

fn io_error(operation: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let operation = operation.into();
    move |source| NetworkError::Io { operation, source }
}

/// Where a pod's namespaces are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePaths {
    /// Network namespace.
    pub net: PathBuf,
    /// IPC namespace.
    pub ipc: PathBuf,
    /// Host name.
    pub uts: PathBuf,
}

impl NamespacePaths {
    /// The three files in a folder.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { net: folder.join("net"), ipc: folder.join("ipc"), uts: folder.join("uts") }
    }
}

/// How a pod's network namespace is joined to the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) host_link: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    /// `None` for the kernel's own.
    pub(crate) mtu: Option<u32>,
}

/// The network of this node's pods.
#[derive(Debug)]
pub struct Network {
    tag: String,
    state: Mutex<State>,
    /// Held while the rules change, so that a removal and an addition do not cross.
    rules: tokio::sync::Mutex<Option<Cidr>>,
    /// How the proxy takes what pods send; `None` while it has not said so.
    capture: watch::Sender<Option<Capture>>,
}

#[derive(Debug, Default)]
struct State {
    cidr: Option<Cidr>,
    cluster: ClusterV1,
    leases: BTreeMap<Uid, Ipv4Addr>,
    last: Option<Ipv4Addr>,
    /// Why pods have no way out, if they have none.
    masquerade_error: Option<String>,
}

impl Network {
    /// The network of the agent with this tag: at most 6 of `[a-z0-9]`. It has no proxy
    /// and waits for none.
    #[must_use]
    pub fn new(tag: &str) -> Self {
        let (capture, _) = watch::channel(Some(Capture::None));
        let tag = tag.to_owned();
        Self { tag, state: Mutex::default(), rules: tokio::sync::Mutex::default(), capture }
    }

    /// With a proxy, of which [`Self::set_capture`] will tell.
    #[must_use]
    pub fn with_proxy(self) -> Self {
        self.capture.send_replace(None);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which addresses pods get from now on. Pods that have one keep it.
    pub fn set_cidr(&self, cidr: Option<Cidr>) {
        self.state().cidr = cidr;
    }

    /// What the cluster's network is.
    pub fn set_cluster(&self, cluster: &ClusterV1) {
        let mut state = self.state();
        if state.cluster != *cluster {
            state.cluster = cluster.clone();
        }
    }

    /// Where pods ask for names, where a proxy answers them.
    #[must_use]
    pub fn dns(&self) -> Option<ClusterDns> {
        let answers = !matches!(*self.capture.borrow(), None | Some(Capture::None));
        let state = self.state();
        let cluster = &state.cluster;
        (answers && !cluster.dns.is_empty())
            .then(|| ClusterDns { servers: cluster.dns.clone(), domain: cluster.domain.clone() })
    }

    /// How the proxy takes what pods send, from now on; `None` where there is none any
    /// more that says so.
    pub async fn set_capture(&self, capture: Option<Capture>) {
        let changed = self.capture.send_if_modified(|known| {
            let is_new = *known != capture;
            *known = capture;
            is_new
        });
        if !changed {
            return;
        }
        if is_captured(capture) {
            self.remove_rule().await;
            return;
        }
        let is_unused = self.is_unused();
        let cidr = self.state().cidr.filter(|_| !is_unused);
        if let Some(cidr) = cidr {
            self.open_the_way(cidr).await;
        }
    }

    /// Whether no pod has an address.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.state().leases.is_empty()
    }

    /// How the proxy takes what pods send, once it has said so.
    async fn known_capture(&self) -> Capture {
        let mut capture = self.capture.subscribe();
        let known = async { capture.wait_for(Option::is_some).await.ok().and_then(|one| *one) };
        tokio::time::timeout(CAPTURE_WAIT, known).await.ok().flatten().unwrap_or_default()
    }

    /// An address that a pod holds since before this agent started.
    pub fn adopt(&self, uid: Uid, address: Ipv4Addr) {
        let mut state = self.state();
        state.leases.insert(uid, address);
        state.last = state.last.max(Some(address));
    }

    /// Why pods have no way out of the node, if that is so.
    #[must_use]
    pub fn masquerade_error(&self) -> Option<String> {
        self.state().masquerade_error.clone()
    }

    /// The host's end of a pod's link: 14 characters, the kernel takes 15.
    #[must_use]
    pub fn host_link(&self, uid: &Uid) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, uid);
        format!("{LINK_PREFIX}{}{}", self.tag, &id::hex(&hash.as_ref()[..4]))
    }

    /// Makes the pod's namespaces and gives it an address.
    ///
    /// # Errors
    /// No address is left, or the kernel refuses. May be called again.
    pub async fn attach(
        &self,
        uid: &Uid,
        paths: &NamespacePaths,
        hostname: &str,
    ) -> Result<Ipv4Addr, NetworkError> {
        let (cidr, address) = self.lease(uid)?;
        let captured = is_captured(Some(self.known_capture().await));
        if !captured {
            self.open_the_way(cidr).await;
        }
        let attachment = Attachment {
            host_link: self.host_link(uid),
            address,
            gateway: cidr.gateway(),
            mtu: captured.then_some(CAPTURED_MTU),
        };
        let (paths, hostname) = (paths.clone(), hostname.to_owned());
        blocking(move || {
            namespaces::create(&paths, &hostname, &attachment)?;
            // The node speaks no IPv6 with its pods yet; this keeps the link quiet.
            // A kernel without IPv6 lacks the file.
            let link = &attachment.host_link;
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
            // What has another source than the pod's own address goes nowhere.
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "1")
                .map_err(io_error("check the source of what a pod sends"))?;
            Ok(())
        })
        .await?;
        Ok(address)
    }

    /// Removes the pod's link and namespaces, and frees its address.
    ///
    /// # Errors
    /// The kernel refuses. May be called again, also for a pod that never had any.
    pub async fn detach(&self, uid: &Uid, paths: &NamespacePaths) -> Result<(), NetworkError> {
        let (link, paths) = (self.host_link(uid), paths.clone());
        blocking(move || {
            links::remove_host_link(&link)?;
            namespaces::remove(&paths)
        })
        .await?;
        self.state().leases.remove(uid);
        Ok(())
    }

    /// Removes the links of this agent that belong to none of `known`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_strays(&self, known: &[Uid]) -> Result<Vec<String>, NetworkError> {
        let keep: Vec<String> = known.iter().map(|uid| self.host_link(uid)).collect();
        let prefix = format!("{LINK_PREFIX}{}", self.tag);
        let removed =
            blocking(move || links::remove_others(&prefix, |name| keep.iter().any(|k| k == name)))
                .await?;
        self.close().await;
        Ok(removed)
    }

    fn lease(&self, uid: &Uid) -> Result<(Cidr, Ipv4Addr), NetworkError> {
        let mut state = self.state();
        let cidr = state.cidr.ok_or(NetworkError::NoCidr)?;
        if let Some(address) = state.leases.get(uid).filter(|address| cidr.contains(**address)) {
            return Ok((cidr, *address));
        }
        let address = cidr
            .next_free(state.last, |address| state.leases.values().any(|a| *a == address))
            .ok_or(NetworkError::NoAddress(cidr))?;
        state.leases.insert(*uid, address);
        state.last = Some(address);
        Ok((cidr, address))
    }

    /// Turns on forwarding and the masquerade rule. Without them pods reach the
    /// node and each other: that is a finding, not a failure of the pod.
    async fn open_the_way(&self, cidr: Cidr) {
        let mut rules = self.rules.lock().await;
        if *rules == Some(cidr) {
            return;
        }
        let result = match masquerade::forward() {
            Ok(()) => masquerade::install(&self.tag, cidr).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => *rules = Some(cidr),
            Err(error) => tracing::warn!(%error, "pods cannot reach beyond this node"),
        }
        self.state().masquerade_error = result.err().map(|error| error.to_string());
    }

    /// Removes the rule where no pod is left, for an agent that begins or ends. In
    /// between it stays: a change of rules waits for the whole kernel, up to tens of
    /// milliseconds, and the next pod would need it again.
    pub async fn close(&self) {
        if self.is_unused() {
            self.remove_rule().await;
        }
    }

    async fn remove_rule(&self) {
        let mut rules = self.rules.lock().await;
        *rules = None;
        self.state().masquerade_error = None;
        if let Err(error) = masquerade::remove(&self.tag).await {
            tracing::debug!(%error, "the masquerade rule stays");
        }
    }
}

fn is_captured(capture: Option<Capture>) -> bool {
    matches!(capture, Some(Capture::SkLookup | Capture::Tproxy))
}

/// The addresses of this machine on its networks: not of loopback, of links to pods,
/// or of one link only. Nothing where the kernel does not say.
pub async fn own_addresses() -> Vec<IpAddr> {
    let found = blocking(|| links::addresses(LINK_PREFIX)).await;
    found.unwrap_or_else(|error| {
        tracing::debug!(%error, "the node's own addresses are not known");
        Vec::new()
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic and is not cancelled")
}

/// Whether the program that sets the masquerade rule is missing.
#[must_use]
pub fn nft_is_missing() -> bool {
    masquerade::program().is_none()
}
