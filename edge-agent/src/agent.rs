//! The agent as a whole: builds the parts, starts them, stops them in order.
//!
//! ```text
//!  Folders, locks ─► recover ─► Owner ◄──sets──  link ◄─► master
//!                                 │ ──news──►
//!                                 └─ workers ─► Hooks ─► runtime, images, network, volumes
//! ```
//!
//! Pods do not end with the agent.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::{BoxFuture, Runtime, ShimCommand, ShimRuntime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::node::{ADDRESSES_MAX, NodeInfoV1};
use wire::set::{NodeConfigV1, SnapshotV1};
use wire::status::EventV1;

use crate::artifacts::{Artifacts, Connection, Dial};
use crate::clock::Clock;
use crate::config::{Folders, FoldersError, Locks};
use crate::env::Facts;
use crate::hooks::{Hooks, chain};
use crate::identity::{Identity, IdentityError};
use crate::link::{self, Dialer, LinkHandle, MqttLink};
use crate::manifests::{self, Manifests};
use crate::network::{self, Cidr, Network};
use crate::node::Node;
use crate::pods::owner::{Configure, News, Owner, local_pods};
use crate::policy::Policy;
use crate::registries::{Registries, RegistrySettings, WhatIsNeeded};
use crate::results::Results;
use crate::seal::{Seal, SealError};
use crate::storage::Removals;
use crate::streams::{self, Streams};
use crate::tokens::Shelf;
use crate::{image_gc, local, nodeinfo, prepull, pressure, recover, services, storage};

/// How long the parts may take to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// How long the agent before may take to let go of its folders.
const TAKE_OVER_WAIT: Duration = Duration::from_secs(3);
/// How often the board is looked at for what is missing.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// News of the pods that wait for the link.
const NEWS_MAX: usize = 64;

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What must survive power loss.
    pub state_dir: PathBuf,
    /// What is on tmpfs.
    pub run_dir: PathBuf,
    /// The name the node must have, if that is to be checked.
    pub node_name: Option<String>,
    /// The folder of static pods.
    pub manifests: PathBuf,
    /// How registries are reached.
    pub registries: RegistrySettings,
    /// Where the key is that seals the set, if not beside the identity.
    pub seal_key_file: Option<PathBuf>,
    /// When pods are evicted.
    pub pressure: pressure::decide::Config,
    /// What the operator of this board lets pods do.
    pub config: PathBuf,
    /// Where other nodes reach this one.
    pub tunnel_port: u16,
    /// Further arguments of the proxy.
    pub proxy_arguments: Vec<String>,
    /// Where the board's own API is; nowhere where `None`.
    pub local_api: Option<SocketAddr>,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The folders cannot be used.
    #[error(transparent)]
    Folders(#[from] FoldersError),
    /// The board has not joined, or its identity is damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another name than the one it joined under.
    #[error(
        "this board joined as {joined}, not as {asked}: leave --node-name out, or join again in another --state-dir"
    )]
    Name {
        /// The name in the certificate.
        joined: String,
        /// The name that was asked for.
        asked: String,
    },
    /// A part cannot start.
    #[error("cannot {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The set cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The identity cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] link::tls::TlsError),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
    /// The image store cannot be opened, or a CA file not be read.
    #[error(transparent)]
    Registries(#[from] crate::registries::RegistriesError),
}

fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { operation, source }
}

impl Dial for Dialer {
    fn dial(&self, alpn: &'static [u8]) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            match Self::dial(self, alpn).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Connection>),
                Err(error) => Err(io::Error::other(chain(&error))),
            }
        })
    }
}

/// Runs the agent until `stop`. Its pods go on.
///
/// # Errors
/// It cannot start.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), AgentError> {
    let policy = Policy::load(&settings.config)?;
    let (folders, locks) = take_folders(&settings).await?;
    let identity = Arc::new(Identity::load(&folders.state)?);
    if let Some(asked) = settings.node_name.filter(|asked| *asked != identity.node) {
        return Err(AgentError::Name { joined: identity.node.clone(), asked });
    }
    recover::check_boot(&folders).map_err(io_error("empty the run folder of the last boot"))?;
    let mut info = nodeinfo::read(&folders, identity.labels.clone())
        .map_err(io_error("give the machine an id"))?;
    info.tunnel_port = settings.tunnel_port;
    let own_addresses = network::own_addresses().await;
    info.more_addresses.clone_from(&own_addresses);
    info.more_addresses.truncate(ADDRESSES_MAX);
    info.resources =
        policy.devices.iter().map(|(name, class)| (name.clone(), class.capacity())).collect();
    for (condition, message) in &info.findings {
        tracing::warn!(condition, "{message}");
    }

    let runtime = ShimRuntime::open(&folders.run, ShimCommand::default())
        .map_err(io_error("take over the containers"))?;
    let network = Arc::new(Network::new(&folders.tag()).with_proxy());
    let dialer: Arc<dyn Dial> = Arc::new(Dialer::new(Arc::clone(&identity)));
    let artifacts =
        Artifacts::new(folders.state.join("artifacts"), info.wasm.clone(), Arc::clone(&dialer));
    artifacts.set_key(identity.artifact_key);
    let images = Registries::open(
        &folders.state.join("images"),
        settings.registries,
        artifacts,
        Arc::clone(&dialer),
    )?;
    let images = Arc::new(images);
    let results = Results::open(&folders.state.join("results"))
        .map_err(io_error("open the folder of results"))?;
    let seal = Arc::new(Seal::open(&folders.state, settings.seal_key_file.as_deref())?);
    let facts = facts(&identity, &info);
    let host_ip = facts.host_ip.clone();
    let runtime = Arc::new(runtime) as Arc<dyn Runtime>;
    let commands = Arc::clone(&runtime);
    let hooks = Hooks::new(
        folders.clone(),
        runtime,
        Arc::clone(&images) as Arc<_>,
        Arc::clone(&network) as Arc<_>,
        results,
        Arc::clone(&seal),
        facts,
    );
    let hooks = Arc::new(hooks.with_policy(policy));

    let set = recover::load_set(&folders, &seal);
    let manifests = manifests::read(&settings.manifests, &identity.node);
    for problem in &manifests.problems {
        tracing::warn!("static pod not run: {problem}");
    }
    let local = local_pods(&manifests);
    let found = recover::find(&hooks, set.as_deref(), local, crate::clock::system());
    recover::adopt_addresses(&hooks, &network, &found);
    let tasks = TaskTracker::new();
    if set.is_some() {
        let known: Vec<wire::Uid> = found.iter().map(|pod| pod.desired.pod.uid).collect();
        // Before any pod starts: what is cleared away must not be new.
        recover::clear_strays(&hooks, &network, &known).await;
        hooks.devices.keep_only(&known);
    }

    let now = crate::clock::system().mono;
    let (shelf, kept) = Shelf::open(&folders, seal, now);
    let node = Node::new(*uuid::Uuid::new_v4().as_bytes(), set.clone(), info.clone());
    let node = node.with_tokens(&kept);
    let (link, outputs, driver) = link::drive(MqttLink::new(&identity)?, node, stop.clone());
    let (news_sender, news) = mpsc::channel(NEWS_MAX);
    let configure = configure(&network, &images, identity.artifact_key);
    let (first, sets) = (set.clone(), outputs.sets.clone());
    images.set_needed(what_is_needed(&folders, first.clone(), sets.clone()));
    let (owner, board) = Owner::new(Arc::clone(&hooks), Clock::System, set, news_sender, configure);
    let kept = kept.into_iter().map(|(uid, (held, _))| (uid, held)).collect();
    let owner = owner.with_tokens(kept, shelf, outputs.tokens);
    let (hold_conditions, conditions) = tokio::sync::watch::channel(Vec::new());
    let (node_events, events) = mpsc::channel(NEWS_MAX);
    let outlets = pressure::Outlets {
        evictor: owner.evictor(),
        board: board.clone(),
        events: node_events,
        conditions: hold_conditions,
    };
    let watching = pressure::run(folders.clone(), settings.pressure, Clock::System, outlets);
    tasks.spawn(driver);
    let diary = Arc::new(local::Diary::default());
    tasks.spawn(pass_on(news, link.clone(), Arc::clone(&diary)));
    let passing = pass_on_events(events, link.clone(), Arc::clone(&diary));
    tasks.spawn(until(stop.clone(), passing));
    tasks.spawn(until(stop.clone(), watching));
    let (manifests_to, manifests) = watch::channel(Arc::new(manifests));
    let folder_watch = manifests::watch(settings.manifests, identity.node.clone(), manifests_to);
    tasks.spawn(until(stop.clone(), folder_watch));
    let (addresses_to, addresses) = watch::channel(own_addresses);
    tasks.spawn(until(stop.clone(), network::follow_addresses(addresses_to)));
    let (removals_to, removals) = watch::channel(Removals::default());
    let clearing = storage::run(folders.clone(), first.clone(), sets.clone(), removals_to);
    tasks.spawn(until(stop.clone(), clearing));
    let services = services::Settings {
        node: identity.node.clone(),
        state_dir: folders.state.clone(),
        run_dir: folders.run.clone(),
        arguments: settings.proxy_arguments,
        tunnel_port: settings.tunnel_port,
    };
    let inputs = services::Inputs {
        first: first.clone(),
        sets: sets.clone(),
        board: board.clone(),
        manifests: manifests.clone(),
        addresses: addresses.clone(),
    };
    let (proxy, keeping) = services::keep(services, inputs, Arc::clone(&network), stop.clone());
    tasks.spawn(keeping);
    let streams = Arc::new(Streams {
        logs: folders.state.join("logs"),
        folders: folders.clone(),
        board: board.clone(),
        runtime: commands,
        dial: Arc::clone(&dialer),
        proxy: proxy.clone(),
        free: streams::slots(),
    });
    tasks.spawn(until(stop.clone(), Arc::clone(&streams).run(outputs.commands)));
    let (shown, info_now) = watch::channel(info.clone());
    match settings.local_api {
        Some(address) => {
            let sources = local::Sources {
                node: identity.node.clone(),
                host_ip,
                board,
                roster: owner.roster(),
                info: info_now,
                diary,
                streams,
                restarter: owner.restarter(),
            };
            tasks.spawn(local::run(address, folders.run.clone(), sources, stop.clone()));
        }
        None => local::remove(&folders.run),
    }
    let changes = Changes {
        short: conditions,
        manifests: manifests.clone(),
        removals,
        proxy: proxy.status,
        addresses,
        sets: sets.clone(),
        first: first.clone(),
        node: identity.node.clone(),
        shown,
    };
    let looking =
        look(folders.clone(), Arc::clone(&network), Arc::clone(&images), link, info, changes);
    tasks.spawn(until(stop.clone(), looking));
    tasks.spawn(until(stop.clone(), image_gc::run(Arc::clone(&images))));
    tasks.spawn(until(stop.clone(), prepull::run(images, first, sets)));
    tasks.spawn(owner.run(found, outputs.sets, manifests, stop.clone()));
    tasks.close();
    tracing::info!(node = identity.node, state_dir = %folders.state.display(), "ready");

    stop.cancelled().await;
    if tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait()).await.is_err() {
        tracing::warn!(n_tasks = tasks.len(), "some parts did not stop in time");
    }
    network.close().await;
    // The last thing: the next agent may come in.
    drop(locks);
    Ok(())
}

/// Takes the folders; waits a little for an agent that is on its way out.
async fn take_folders(settings: &Settings) -> Result<(Folders, Locks), FoldersError> {
    let deadline = tokio::time::Instant::now() + TAKE_OVER_WAIT;
    loop {
        match Folders::open(&settings.state_dir, &settings.run_dir) {
            Err(FoldersError::InUse(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

fn facts(identity: &Identity, info: &NodeInfoV1) -> Facts {
    let endpoint = identity
        .endpoints
        .iter()
        // Names are looked up by the link; here a literal address is enough.
        .filter(|text| text.starts_with(|c: char| c.is_ascii_digit() || c == '['))
        .find_map(|text| text.to_socket_addrs().ok()?.next());
    Facts {
        node_name: identity.node.clone(),
        host_ip: nodeinfo::address_towards(endpoint).map(|ip| ip.to_string()).unwrap_or_default(),
        pod_ip: String::new(),
        cpu_millis: info.cpu_millis,
        memory_bytes: info.memory_bytes,
        disk_bytes: info.disk_bytes,
        services: Vec::new(),
    }
}

/// What must stay on the disk: what the newest set and the containers use.
fn what_is_needed(
    folders: &Folders,
    first: Option<Arc<SnapshotV1>>,
    sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
) -> WhatIsNeeded {
    let containers = folders.run.join("containers");
    Box::new(move || {
        let set = sets.borrow().clone().or_else(|| first.clone());
        image_gc::needed(set.as_deref(), &containers)
    })
}

fn configure(network: &Arc<Network>, images: &Arc<Registries>, pinned_key: [u8; 32]) -> Configure {
    let (network, images) = (Arc::clone(network), Arc::clone(images));
    Box::new(move |config: &NodeConfigV1| {
        images.configure(config);
        network.set_cluster(&config.cluster);
        match config.pod_cidr.parse::<Cidr>() {
            Ok(cidr) => network.set_cidr(Some(cidr)),
            Err(error) => tracing::error!(%error, "pods get no address"),
        }
        if config.artifact_key != pinned_key {
            tracing::warn!(
                "the master names another artifact key than the one this node joined with; \
                 modules signed by it are refused: join again if the master was replaced"
            );
        }
    })
}

/// Passes on to the link what the pods say.
async fn pass_on(mut news: mpsc::Receiver<News>, link: LinkHandle, diary: Arc<local::Diary>) {
    while let Some(news) = news.recv().await {
        match news {
            News::Applied(epoch, revision) => link.applied(epoch, revision).await,
            News::Statuses(statuses) => link.statuses_changed(statuses).await,
            News::Event(event) => {
                diary.note(&event);
                link.event(event);
            }
            News::Running(running) => link.running(running).await,
        }
    }
}

/// Passes on to the link what happens to the node itself.
async fn pass_on_events(
    mut events: mpsc::Receiver<EventV1>,
    link: LinkHandle,
    diary: Arc<local::Diary>,
) {
    while let Some(event) = events.recv().await {
        diary.note(&event);
        link.event(event);
    }
}

/// What changes what a node says of itself.
struct Changes {
    /// What it is short of.
    short: pressure::Conditions,
    /// Its static pods.
    manifests: watch::Receiver<Arc<Manifests>>,
    /// Folders of volumes that are gone, or cannot go.
    removals: watch::Receiver<Removals>,
    /// How the proxy is.
    proxy: watch::Receiver<Option<proxy::control::Status>>,
    /// The node's own addresses.
    addresses: watch::Receiver<Vec<IpAddr>>,
    /// What it is to know of Services.
    sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
    /// The set that it started with.
    first: Option<Arc<SnapshotV1>>,
    /// The node's name.
    node: String,
    /// What it says of itself, for the board's own API.
    shown: watch::Sender<NodeInfoV1>,
}

/// Looks again and again at what the board lacks or is short of, and says when
/// that changes.
async fn look(
    folders: Folders,
    network: Arc<Network>,
    images: Arc<Registries>,
    link: LinkHandle,
    mut info: NodeInfoV1,
    mut changes: Changes,
) {
    changes.manifests.mark_changed();
    let mut known = changes.addresses.borrow().clone();
    let mut conflicts = Vec::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = images.changed.notified() => {}
            // The senders end with the agent.
            Ok(()) = changes.short.changed() => {}
            Ok(()) = changes.manifests.changed() => {}
            Ok(()) = changes.removals.changed() => {}
            Ok(()) = changes.proxy.changed() => {}
            Ok(()) = changes.addresses.changed() => {}
        }
        let mut addresses = changes.addresses.borrow_and_update().clone();
        known.retain(|address| !addresses.contains(address));
        if !known.is_empty() {
            link.addresses_gone(known).await;
        }
        known = addresses.clone();
        addresses.truncate(ADDRESSES_MAX);
        let own = Arc::clone(&changes.manifests.borrow_and_update());
        let folders = folders.clone();
        let egress = network.masquerade_error();
        let capture = changes.proxy.borrow_and_update().as_ref().map(|status| status.capture);
        let mut findings =
            tokio::task::spawn_blocking(move || nodeinfo::findings(&folders, egress, capture))
                .await
                .expect("looking does not panic");
        findings.extend(changes.short.borrow_and_update().iter().cloned());
        findings.extend(images.findings());
        if !own.problems.is_empty() {
            findings.push(("StaticPods".to_owned(), own.problems.join("; ")));
        }
        let removals = changes.removals.borrow_and_update().clone();
        if !removals.problems.is_empty() {
            findings.push(("VolumesNotRemoved".to_owned(), removals.problems.join("; ")));
        }
        if let Some(status) = &*changes.proxy.borrow() {
            findings.extend(services::findings(status));
            let set = changes.sets.borrow().clone().or_else(|| changes.first.clone());
            let (node, now_ms) = (&changes.node, Clock::System.now().wall_ms);
            services::conflict_events(node, now_ms, status, &conflicts, set.as_deref())
                .into_iter()
                .for_each(|event| link.event(event));
            conflicts.clone_from(&status.conflicts);
        }
        let list = images.list();
        let is_new = findings != info.findings
            || own.mirrors != info.static_pods
            || list != info.images
            || addresses != info.more_addresses
            || removals.removed != info.removed_volumes;
        if is_new {
            info.removed_volumes = removals.removed;
            (info.findings, info.images) = (findings, list);
            info.more_addresses = addresses;
            info.static_pods.clone_from(&own.mirrors);
            changes.shown.send_replace(info.clone());
            link.info_changed(info.clone()).await;
        }
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
