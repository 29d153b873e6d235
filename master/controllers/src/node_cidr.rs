//! Gives each node the addresses of its pods: `spec.podCIDR`, unique, freed
//! with the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use api::{ObjectKey, Value};
use serde_json::json;

use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterError, Identity, Part, kinds, modify};
use crate::events::{Involved, Record, Recorder};
use crate::projection::Node;
use crate::runner::{Action, Sender};

/// A network of IPv4 addresses, such as `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// The first address.
    address: u32,
    /// Length of the prefix, at most 32.
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read \"{0}\" as a network: expected an address and a prefix, such as 10.42.0.0/16")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let error = || NetworkError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > 32 {
            return Err(error());
        }
        let address = u32::from(address);
        if prefix < 32 && address & (u32::MAX >> prefix) != 0 {
            return Err(error());
        }
        Ok(Self { address, prefix })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.address), self.prefix)
    }
}

impl Network {
    /// The `n`th network of this prefix inside.
    fn inside(self, prefix: u8, n: u32) -> Self {
        let shift = 32 - u32::from(prefix);
        Self { address: self.address | n.checked_shl(shift).unwrap_or(0), prefix }
    }

    /// Number of networks of this prefix inside.
    fn n_inside(self, prefix: u8) -> u64 {
        1 << u32::from(prefix.saturating_sub(self.prefix))
    }

    /// Whether the two share an address.
    fn overlaps(self, other: Self) -> bool {
        let shorter = self.prefix.min(other.prefix);
        let differing = self.address ^ other.address;
        shorter == 0 || differing >> (32 - u32::from(shorter)) == 0
    }
}

/// Where the nodes' networks come from.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The whole.
    pub cluster: Network,
    /// Prefix of one node's part.
    pub node_prefix: u8,
}

impl Default for Config {
    /// 256 nodes of 256 addresses in 10.42.0.0/16.
    fn default() -> Self {
        Self { cluster: Network { address: 0x0a2a_0000, prefix: 16 }, node_prefix: 24 }
    }
}

impl Config {
    /// Parts of `cluster` with the prefix `node_prefix`.
    ///
    /// # Errors
    /// Where the part is larger than the whole, or leaves no address for a pod.
    pub fn new(cluster: Network, node_prefix: u8) -> Result<Self, NetworkError> {
        if node_prefix < cluster.prefix || node_prefix > 30 {
            return Err(NetworkError(format!("{cluster} in parts of /{node_prefix}")));
        }
        Ok(Self { cluster, node_prefix })
    }
}

/// The first part of the whole that overlaps none that is taken. Pure.
#[must_use]
pub fn allocate(config: &Config, taken: impl IntoIterator<Item = Network>) -> Option<Network> {
    let mut used: BTreeSet<u32> = BTreeSet::new();
    let mut wide = Vec::new();
    for network in taken {
        if network.prefix >= config.node_prefix {
            // All addresses of one part: known by the part's first.
            let mask = u32::MAX.checked_shl(32 - u32::from(config.node_prefix)).unwrap_or(0);
            used.insert(network.address & mask);
        } else {
            wide.push(network);
        }
    }
    let n_parts = config.cluster.n_inside(config.node_prefix);
    let n_parts = u32::try_from(n_parts).unwrap_or(u32::MAX);
    (0..n_parts)
        .map(|n| config.cluster.inside(config.node_prefix, n))
        .find(|part| !used.contains(&part.address) && !wide.iter().any(|w| w.overlaps(*part)))
}

/// The controller. Runs one node at a time.
#[derive(Debug)]
pub struct Controller<C> {
    cluster: Arc<C>,
    config: Config,
    nodes: Cache<Node>,
    recorder: Recorder,
    /// Given out by this process and perhaps not shown yet, by name and uid.
    given: Mutex<BTreeMap<String, (Arc<str>, Network)>>,
}

/// Asks for a look at nodes without addresses.
pub fn feed(nodes: &Cache<Node>, queue: &Sender<String>) {
    let (sender, all) = (queue.clone(), nodes.clone());
    nodes.on_change(move |before, after| match (before, after) {
        (_, Some(node)) if node.pod_cidr.is_empty() => sender.add(node.meta.key.name.clone()),
        // A freed part may be what another node waits for.
        (Some(_), None) => {
            for node in all.all().iter().filter(|node| node.pod_cidr.is_empty()) {
                sender.add(node.meta.key.name.clone());
            }
        }
        _ => {}
    });
}

impl<C: Cluster> Controller<C> {
    /// A controller over these nodes.
    #[must_use]
    pub fn new(cluster: Arc<C>, config: Config, nodes: Cache<Node>, recorder: Recorder) -> Self {
        Self { cluster, config, nodes, recorder, given: Mutex::default() }
    }

    /// Gives one node its addresses.
    ///
    /// # Errors
    /// Whatever the cluster answers.
    pub async fn reconcile(&self, name: &str) -> Result<Action, ClusterError> {
        let key = ObjectKey::new("", name);
        let Some(node) = self.nodes.get(&key).filter(|node| node.pod_cidr.is_empty()) else {
            return Ok(Action::AwaitChange);
        };
        let Some(network) = self.choose(&node) else {
            self.recorder.record(Record {
                involved: Involved::of(kinds::nodes(), &node.meta),
                reason: "CIDRNotAvailable",
                message: format!(
                    "Node {name} gets no pod addresses: every /{} of {} is taken; start the master with a larger pod network",
                    self.config.node_prefix, self.config.cluster
                ),
                warning: true,
                component: "cidrAllocator",
            });
            return Ok(Action::AwaitChange);
        };
        let text = network.to_string();
        let change = |object: &mut Value| {
            let spec = &mut object["spec"];
            if spec.get("podCIDR").and_then(Value::as_str).is_some_and(|cidr| !cidr.is_empty()) {
                return false;
            }
            spec["podCIDR"] = text.as_str().into();
            spec["podCIDRs"] = json!([text]);
            true
        };
        let identity = Identity { uid: &node.meta.uid, revision: None };
        modify(&*self.cluster, kinds::nodes(), &key, identity, Part::Main, change).await?;
        Ok(Action::AwaitChange)
    }

    /// The addresses for a node: the same again where it was given some already.
    fn choose(&self, node: &Node) -> Option<Network> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = self.nodes.all();
        let shown: BTreeMap<&str, &Arc<Node>> =
            nodes.iter().map(|node| (node.meta.key.name.as_str(), node)).collect();
        given.retain(|name, (uid, _)| {
            shown.get(name.as_str()).is_some_and(|node| node.meta.uid == *uid)
        });
        if let Some((_, network)) = given.get(&node.meta.key.name) {
            return Some(*network);
        }
        let taken = nodes.iter().filter_map(|node| node.pod_cidr.parse().ok());
        let network = allocate(&self.config, taken.chain(given.values().map(|(_, n)| *n)))?;
        given.insert(node.meta.key.name.clone(), (Arc::clone(&node.meta.uid), network));
        Some(network)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::fake::{FakeCluster, FakeNodes};
    use crate::runner;

    proptest! {
        #[test]
        fn parts_never_overlap(taken in prop::collection::vec((0_u32..64, 20_u8..=28), 0..12)) {
            let config = Config::new("10.42.0.0/20".parse().unwrap(), 24).unwrap();
            let mut all: Vec<Network> = taken
                .into_iter()
                .map(|(n, prefix)| {
                    let address = 0x0a2a_0000 + (n << 6);
                    Network { address: address & !(u32::MAX >> prefix), prefix }
                })
                .collect();
            while let Some(next) = allocate(&config, all.iter().copied()) {
                prop_assert!(!all.iter().any(|other| other.overlaps(next)), "{} {:?}", next, all);
                prop_assert!(config.cluster.overlaps(next));
                all.push(next);
            }
        }
    }

    #[test]
    fn networks_are_read() {
        for bad in ["", "10.42.0.0", "10.42.0.0/33", "10.42.0.1/16", "x/16"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        let network: Network = "10.42.0.0/16".parse().unwrap();
        assert_eq!(network.inside(24, 255).to_string(), "10.42.255.0/24");
        assert!(Config::new(network, 31).is_err() && Config::new(network, 8).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_gets_its_own_and_a_deleted_one_frees_it() {
        let cluster = Arc::new(FakeCluster::new());
        let fake_nodes = FakeNodes::start(&cluster, Duration::ZERO);
        let nodes: Cache<Node> = Cache::new(kinds::nodes());
        let shutdown = CancellationToken::new();
        tokio::spawn(nodes.clone().run(Arc::clone(&cluster), shutdown.clone()));
        nodes.synced().await;
        let (sender, receiver) = runner::queue();
        feed(&nodes, &sender);
        let config = Config::new("10.42.0.0/22".parse().unwrap(), 24).unwrap();
        let (recorder, _records) = crate::events::recorder();
        let controller =
            Arc::new(Controller::new(Arc::clone(&cluster), config, nodes.clone(), recorder));
        let run_config = runner::Config { concurrency: 1, ..runner::Config::default() };
        tokio::spawn(runner::run(
            "cidr",
            run_config,
            receiver,
            shutdown.clone(),
            move |name: String| {
                let controller = Arc::clone(&controller);
                async move { controller.reconcile(&name).await }
            },
        ));
        let cidrs = |cluster: &FakeCluster| -> BTreeMap<String, String> {
            let nodes = cluster.objects(kinds::nodes());
            let cidr = |node: &Value| {
                Some((
                    api::meta::name(node).to_owned(),
                    node["spec"]["podCIDR"].as_str()?.to_owned(),
                ))
            };
            nodes.iter().filter_map(cidr).collect()
        };
        for name in ["a", "b", "c", "d", "e"] {
            fake_nodes.join(name).await;
        }
        cluster.until(|cluster| cidrs(cluster).len() == 4).await;
        let first = cidrs(&cluster);
        let distinct: BTreeSet<&String> = first.values().collect();
        assert_eq!(distinct.len(), 4);
        let (freed, of) = first.iter().next().map(|(n, c)| (n.clone(), c.clone())).unwrap();
        cluster.remove(kinds::nodes(), &ObjectKey::new("", &freed));
        cluster.until(|cluster| cidrs(cluster).len() == 4).await;
        assert!(cidrs(&cluster).values().any(|cidr| *cidr == of));
        shutdown.cancel();
    }
}
