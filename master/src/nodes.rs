//! The master's dealings with nodes: one task that owns the protocol's state.
//!
//! ```text
//!  watches ──► which sets change ──► lower ──► dispatch ──► gateway ──► node
//!  node ──► gateway ──► dispatch ──► hello: the Node object
//!                               ├──► report: Pod statuses, then the acknowledgement
//!                               └──► heartbeat: liveness, in memory
//! ```
//!
//! The task decides and hands out; whatever waits for the store runs beside it
//! and comes back as an event. Sets are made from stored objects alone, so a
//! restart makes the same ones and no pod notices.

mod changes;
mod index;
mod lease;
mod liveness;
mod mirrors;
mod network;
mod reports;
mod tokens;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, Value, meta};
use apiserver::{Api, Identity, Reason, Status, Target, WriteOptions};
use dispatch::Dispatcher;
use dispatch::desired::SetError;
use dispatch::node::{Output, Profile};
use gateway::{Gateway, GatewayEvent, JoinReply, NodeStream, StreamKind};
use std::net::SocketAddr;
use store::{Expect, Write};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wire::account::PodTokensV1;
use wire::artifact::ArtifactRequestV1;
use wire::command::CommandV1;
use wire::envelope::{self, Decoded, Message};
use wire::node::{HelloV1, NodeInfoV1, StaticPodV1};
use wire::pod::{RuntimeV1, SourceV1};
use wire::set::{BodyV1, ImagePolicyV1, ImageRuleV1, ItemV1, NodeConfigV1, PrepullV1, SnapshotV1};
use wire::status::ReportV1;
use wire::{Epoch, Uid};

use crate::blobs::{Blobs, Granted, Wanted};
use crate::clock;
use crate::enrol::{Enrolment, resource};
use crate::images::Access;
use crate::node_events::NodeEvents;
use crate::policy::{self, Prepull};
use crate::relay::Relay;
use crate::streams::Streams;
use changes::{Changed, WATCH_RETRY, watch};
use index::Index;
pub(crate) use liveness::Liveness;
pub(crate) use network::Cluster;
use network::Network;
use reports::Reports;

/// The label that gives a node its link profile.
const PROFILE_LABEL: &str = controllers::projection::labels::PROFILE;
/// The annotation by which an operator accepts a restored store for a node.
pub(crate) const CONFIRMED_ANNOTATION: &str = "pinnace.io/restore-confirmed";
/// Reports of one node that wait for those before them.
const REPORTS_WAITING_MAX: usize = 4;
/// Messages from the store's watches that may wait.
const CHANGES_WAITING_MAX: usize = 256;
/// What sets are made from.
const WATCHED: [&str; 10] = [
    "Node",
    "Pod",
    "ConfigMap",
    "Secret",
    "Namespace",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "Service",
    "EndpointSlice",
    "NetworkPolicy",
];
/// Written to give the store a new revision.
const NUDGE_KEY: &str = "/-/nudge";
/// Most images that one node is to have.
const PREPULL_MAX: usize = 256;

/// A question about what a node may fetch.
struct Question {
    node: Arc<str>,
    wanted: Wanted,
    answer: oneshot::Sender<Option<Granted>>,
}

/// How the task is set up.
pub(crate) struct Setup {
    pub(crate) api: Api,
    pub(crate) epoch: Epoch,
    /// The store was restored, and nodes hold what it does not know until an
    /// operator confirms.
    pub(crate) restored: bool,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) enrolment: Arc<Enrolment>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) artifact_key: [u8; 32],
    pub(crate) profile: Profile,
    pub(crate) cluster: Cluster,
    /// Where the API answers, on this machine.
    pub(crate) api_address: SocketAddr,
    pub(crate) recorder: NodeEvents,
}

/// What the task listens to.
pub(crate) struct Inputs {
    pub(crate) gateway: mpsc::Receiver<GatewayEvent>,
    pub(crate) commands: mpsc::Receiver<(String, CommandV1, oneshot::Sender<bool>)>,
}

/// What comes back from work beside the task.
enum Done {
    Report {
        node: String,
        boot_id: Uid,
        seq: u64,
        stored: bool,
    },
    /// The store has a new revision.
    Nudged,
    /// The mirrors of this node were looked at.
    Mirrored {
        node: String,
        made: bool,
    },
    /// Tokens that this boot of the node asked for are made.
    Tokens {
        node: String,
        boot_id: Uid,
        pods: Vec<PodTokensV1>,
    },
}

#[derive(Default)]
struct NodeState {
    uid: String,
    pod_cidrs: Vec<String>,
    profile: Option<Profile>,
    confirmed: bool,
    ready: bool,
    info: Option<NodeInfoV1>,
    labels: Value,
    /// Images the node is to have.
    prepull: Vec<PrepullV1>,
    /// When the node's Lease was last renewed.
    leased: Option<Instant>,
    reports: VecDeque<ReportV1>,
    /// Boot and number of the newest report that was taken to be stored.
    accepted: (Uid, u64),
    storing: bool,
    /// Whether the node's mirrors are being looked at, and are to be again.
    mirroring: bool,
    mirror_again: bool,
    tokens: tokens::Wishes,
}

struct Nodes {
    setup: Setup,
    reports: Reports,
    dispatcher: Dispatcher,
    index: Index,
    /// What every node is told.
    network: Network,
    nodes: HashMap<String, NodeState>,
    /// What namespaces ask of their images, where that is anything.
    policies: HashMap<String, ImageRuleV1>,
    prepulls: BTreeMap<ObjectKey, Prepull>,
    /// Volumes whose folders are to be removed, and the node each is on.
    removals: BTreeMap<String, String>,
    /// Resources that have not been told in full since the start. No set is made
    /// before: it would lack pods, and a node stops what its set lacks.
    unlisted: BTreeSet<&'static str>,
    dirty: BTreeSet<String>,
    /// Nodes whose set waits for the store to have a new revision.
    waiting: BTreeSet<String>,
    /// The newest connection of each node.
    connections: HashMap<Arc<str>, u64>,
    done: mpsc::Sender<Done>,
    questions: mpsc::Sender<Question>,
    started: Instant,
    jumps: clock::Jumps,
}

/// Runs until `shutdown`.
pub(crate) async fn run(setup: Setup, mut inputs: Inputs, shutdown: CancellationToken) {
    let (changes_to, mut changes) = mpsc::channel(CHANGES_WAITING_MAX);
    for kind in WATCHED {
        let group = match kind {
            "EndpointSlice" => "discovery.k8s.io",
            "NetworkPolicy" => "networking.k8s.io",
            _ => "",
        };
        let watched = api::resource::by_kind(group, kind).expect("the table of resources has it");
        let watch = watch(setup.api.clone(), watched, changes_to.clone(), shutdown.clone());
        tokio::spawn(watch);
    }
    drop(changes_to);
    let (done_to, mut done) = mpsc::channel(CHANGES_WAITING_MAX);
    let (questions_to, mut questions) = mpsc::channel(CHANGES_WAITING_MAX);
    let mut nodes = Nodes {
        reports: Reports::new(setup.api.clone()),
        dispatcher: Dispatcher::new(setup.epoch),
        index: Index::default(),
        network: Network::default(),
        nodes: HashMap::new(),
        policies: HashMap::new(),
        prepulls: BTreeMap::new(),
        removals: BTreeMap::new(),
        unlisted: BTreeSet::from(WATCHED),
        dirty: BTreeSet::new(),
        waiting: BTreeSet::new(),
        connections: HashMap::new(),
        done: done_to,
        questions: questions_to,
        started: Instant::now(),
        jumps: clock::Jumps::new(clock::now(), Duration::ZERO),
        setup,
    };
    loop {
        nodes.watch_clock();
        nodes.lower_dirty();
        nodes.lower_network();
        nodes.poll();
        let due = nodes.dispatcher.next_due().map(|due| nodes.started + due);
        let network_due = nodes.network.due().filter(|_| nodes.unlisted.is_empty());
        let due = due.into_iter().chain(network_due).min();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(done) = done.recv() => nodes.finished(done),
            Some(change) = changes.recv() => {
                nodes.changed(change);
                // What is waiting already is taken with it: one set for many changes.
                while let Ok(change) = changes.try_recv() {
                    nodes.changed(change);
                }
            }
            Some(event) = inputs.gateway.recv() => nodes.heard(event),
            Some((node, command, sent)) = inputs.commands.recv() => {
                let is_sent = nodes.dispatcher.command(&node, command).is_ok();
                let _ = sent.send(is_sent);
            }
            Some(question) = questions.recv() => nodes.answer(question),
            () = sleep_until(due) => (),
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Nodes {
    /// Time since this master started, which the protocol counts by.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn changed(&mut self, change: Changed) {
        match change {
            Changed::Pod(key, object) => {
                if let Some(node) = self.index.mirror(&key, object.as_deref()) {
                    self.mirror(&node);
                }
                let claims = object.as_deref().map(|pod| self.claims_of(pod)).unwrap_or_default();
                self.network.pod(&key, object.as_deref());
                match self.index.pod(&key, object.as_deref(), &claims) {
                    Ok(nodes) => self.dirty.extend(nodes),
                    Err(err) => warn!(pod = %key, %err, "pod cannot be sent to its node"),
                }
            }
            Changed::Listed("PersistentVolume", named) => {
                self.unlisted.remove("PersistentVolume");
                self.volumes_listed(&named);
            }
            Changed::Listed(kind, named) => self.listed(kind, &named),
            Changed::Claim(key) => self.claim_changed(&key),
            Changed::Volume(name, object) => self.volume_changed(&name, object.as_deref()),
            Changed::Keys(namespace, source) => {
                self.dirty.extend(self.index.users(&namespace, &source));
                let SourceV1::Secret(secret) = source else { return };
                let names = |wish: &PrepullV1| {
                    wish.namespace == namespace && wish.pull_secrets.contains(&secret)
                };
                let users = self.nodes.iter().filter(|(_, node)| node.prepull.iter().any(names));
                self.dirty.extend(users.map(|(name, _)| name.clone()));
            }
            Changed::Prepull(key, prepull) => {
                let before = match prepull {
                    Some(prepull) => self.prepulls.insert(key, *prepull),
                    None => self.prepulls.remove(&key),
                };
                // Most ConfigMaps are none of these.
                if before.is_some() || !self.prepulls.is_empty() {
                    let names: Vec<String> = self.nodes.keys().cloned().collect();
                    names.iter().for_each(|name| self.choose_prepull(name));
                }
            }
            Changed::Service(key, object) => self.network.service(key, object.as_deref()),
            Changed::Slice(key, object) => self.network.slice(key, object.as_deref()),
            Changed::NetworkPolicy(key, object) => {
                self.policy_changed(key, object.map(|object| *object));
            }
            Changed::Namespace(name, object) => {
                self.network.namespace(&name, object.as_deref());
                let rule = object.as_deref().and_then(policy::rule);
                let before = match rule.clone() {
                    Some(rule) => self.policies.insert(name.clone(), rule),
                    None => self.policies.remove(&name),
                };
                if before != rule {
                    let concerned = self.nodes.iter().filter(|(node, state)| {
                        self.index.pods_of(node).iter().any(|pod| pod.namespace == name)
                            || state.prepull.iter().any(|wish| wish.namespace == name)
                    });
                    self.dirty.extend(concerned.map(|(node, _)| node.clone()));
                }
            }
            Changed::Node(name, None) => {
                self.nodes.remove(&name);
                self.network.peer(&name, None);
                self.dispatcher.remove(&name);
                self.setup.liveness.forget(&name);
                self.setup.gateway.kick(&name);
                info!(node = name, "node deleted");
                lease::remove(self.setup.api.clone(), name);
            }
            Changed::Node(name, Some(object)) => self.node_changed(&name, &object),
        }
    }

    /// Chooses the images that a node is to have.
    fn choose_prepull(&mut self, name: &str) {
        let Some(state) = self.nodes.get_mut(name) else { return };
        let node = serde_json::json!({"metadata": {"labels": state.labels}});
        let wishes = self.prepulls.values().flat_map(|prepull| prepull.for_node(&node));
        let chosen: BTreeSet<PrepullV1> = wishes.cloned().collect();
        let chosen: Vec<PrepullV1> = chosen.into_iter().take(PREPULL_MAX).collect();
        if state.prepull != chosen {
            state.prepull = chosen;
            self.dirty.insert(name.to_owned());
        }
    }

    /// What a complete list does not name was deleted while nobody watched.
    fn listed(&mut self, kind: &'static str, named: &BTreeSet<ObjectKey>) {
        self.unlisted.remove(kind);
        self.network.listed(kind, named);
        if kind == "Pod" {
            let gone: Vec<ObjectKey> =
                self.index.keys().filter(|key| !named.contains(*key)).cloned().collect();
            for key in gone {
                self.changed(Changed::Pod(key, None));
            }
            let waiting = self.nodes.iter().filter(|(_, state)| state.mirror_again);
            for node in waiting.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                self.mirror(&node);
            }
        } else if kind == "ConfigMap" {
            let gone: Vec<ObjectKey> =
                self.prepulls.keys().filter(|key| !named.contains(*key)).cloned().collect();
            gone.into_iter().for_each(|key| self.changed(Changed::Prepull(key, None)));
        } else if kind == "Namespace" {
            let is_named = |name: &String| named.contains(&ObjectKey::new("", name));
            let gone: Vec<String> =
                self.policies.keys().filter(|name| !is_named(name)).cloned().collect();
            gone.into_iter().for_each(|name| self.changed(Changed::Namespace(name, None)));
        } else if kind == "Node" {
            let is_named = |name: &String| named.contains(&ObjectKey::new("", name));
            let gone: Vec<String> =
                self.nodes.keys().filter(|name| !is_named(name)).cloned().collect();
            for name in gone {
                self.changed(Changed::Node(name, None));
            }
        }
    }

    fn node_changed(&mut self, name: &str, object: &Value) {
        self.network.peer(name, Some(object));
        let state = self.nodes.entry(name.to_owned()).or_default();
        let profile = meta::label(object, PROFILE_LABEL).and_then(Profile::parse);
        let epoch = self.setup.epoch.to_string();
        let confirmed = meta::annotation(object, CONFIRMED_ANNOTATION) == Some(epoch.as_str());
        let new = (
            meta::uid(object).to_owned(),
            lower::network::pod_cidrs(&object["spec"]),
            profile,
            confirmed,
        );
        state.ready = lower::node::is_ready(object);
        let old = (&state.uid, &state.pod_cidrs, state.profile, state.confirmed);
        if old != (&new.0, &new.1, new.2, new.3) {
            (state.uid, state.pod_cidrs, state.profile, state.confirmed) = new;
            self.dirty.insert(name.to_owned());
        }
        let labels = &object["metadata"]["labels"];
        if state.labels != *labels {
            // Its zone is among them; a set that is the same is not sent.
            self.dirty.insert(name.to_owned());
            state.labels = labels.clone();
            self.choose_prepull(name);
        }
    }

    /// Makes the sets of nodes to which something happened. None before all pods
    /// were listed once: a node would stop those that a partial set lacks.
    fn lower_dirty(&mut self) {
        if !self.unlisted.is_empty() {
            return;
        }
        for name in std::mem::take(&mut self.dirty) {
            let Some(set) = self.lower(&name) else { continue };
            match self.dispatcher.set(&name, &set) {
                Ok(_) => (),
                // A watch told of a change only after a set of its revision was made.
                Err(SetError::SameRevision(_)) => self.wait_for_revision(name),
                Err(err) => warn!(node = name, %err, "set not taken"),
            }
        }
    }

    /// Makes the set of a node again once the store has a new revision, and gives
    /// it one.
    fn wait_for_revision(&mut self, node: String) {
        let is_first = self.waiting.is_empty();
        self.waiting.insert(node);
        if is_first {
            self.nudge();
        }
    }

    /// Gives the store a new revision.
    fn nudge(&self) {
        let write = Write::put(NUDGE_KEY, Expect::Any, Vec::new());
        let write = self.setup.api.store().write(vec![write]);
        let done = self.done.clone();
        tokio::spawn(async move {
            if let Err(err) = write.await {
                warn!(%err, "the store takes no write");
                tokio::time::sleep(WATCH_RETRY).await;
            }
            let _ = done.send(Done::Nudged).await;
        });
    }

    /// The set of a node as the store is now; `None` while the node has no
    /// object or no addresses for pods yet.
    fn lower(&self, name: &str) -> Option<SnapshotV1> {
        let state = self.nodes.get(name).filter(|state| !state.pod_cidrs.is_empty())?;
        // Before the reads: what changes meanwhile comes as a change of its own.
        let revision = self.setup.api.store().revision();
        let pods = self.index.pods_of(name);
        let namespaces = pods.iter().map(|pod| &pod.namespace);
        let namespaces: BTreeSet<&String> =
            namespaces.chain(state.prepull.iter().map(|wish| &wish.namespace)).collect();
        let policy = |namespace: &String| {
            let rule = self.policies.get(namespace)?.clone();
            Some(ImagePolicyV1 { namespace: namespace.clone(), rule })
        };
        let config = NodeConfigV1 {
            image_policies: namespaces.into_iter().filter_map(policy).collect(),
            prepull: state.prepull.clone(),
            remove_volumes: self.removals_of(name),
            pod_cidr: state.pod_cidrs.first().cloned().unwrap_or_default(),
            cluster: self.setup.cluster.for_node(&state.pod_cidrs, &state.labels),
            heartbeat_s: state.profile.unwrap_or(self.setup.profile).heartbeat_s(),
            artifact_key: self.setup.artifact_key,
            hold_unknown: self.setup.restored && !state.confirmed,
            ext: Vec::new(),
        };
        let mut items: HashMap<Uid, ItemV1> = HashMap::new();
        let mut add = |item: Result<ItemV1, lower::LowerError>| match item {
            Ok(item) => {
                items.insert(item.uid, item);
            }
            Err(err) => warn!(node = name, %err, "item left out of a set"),
        };
        add(lower::node_config(&state.uid, config));
        let mut sources: BTreeSet<(String, SourceV1)> = BTreeSet::new();
        for wish in &state.prepull {
            let secrets = wish.pull_secrets.iter().cloned().map(SourceV1::Secret);
            sources.extend(secrets.map(|secret| (wish.namespace.clone(), secret)));
        }
        for key in pods {
            let Some(object) = self.read("Pod", &key) else { continue };
            if object["spec"]["nodeName"] != name {
                continue;
            }
            match lower::pod_with(&object, &self.claims_of(&object)) {
                Ok(lowered) => {
                    let of = |source| (key.namespace.clone(), source);
                    sources.extend(lowered.sources.into_iter().map(of));
                    add(Ok(lowered.item));
                }
                Err(err) => add(Err(err)),
            }
        }
        for (namespace, source) in sources {
            let (kind, name) = match &source {
                SourceV1::ConfigMap(name) => ("ConfigMap", name),
                SourceV1::Secret(name) => ("Secret", name),
            };
            if let Some(object) = self.read(kind, &ObjectKey::new(&namespace, name)) {
                add(lower::keys(&object, source));
            }
        }
        let mut items: Vec<ItemV1> = items.into_values().collect();
        items.sort_by_key(|item| item.uid);
        Some(SnapshotV1 { epoch: self.setup.epoch, revision, items })
    }

    fn read(&self, kind: &str, key: &ObjectKey) -> Option<Value> {
        let target = Target::object(resource(kind), &key.namespace, &key.name);
        match self.setup.api.get_value(&Identity::master("pinnace:dispatch"), &target) {
            Ok(object) => Some(object),
            Err(status) if status.reason == Reason::NotFound => None,
            Err(status) => {
                warn!(kind, %key, error = status.message, "cannot read");
                None
            }
        }
    }

    fn heard(&mut self, event: GatewayEvent) {
        match event {
            GatewayEvent::Connected { node, conn, address } => {
                debug!(node = &*node, %address, "connected");
                self.connections.insert(node, conn);
            }
            GatewayEvent::Message { node, conn, topic, bytes } => {
                // What an older connection left behind says nothing new.
                if self.connections.get(&node) != Some(&conn) {
                    return;
                }
                match self.dispatcher.receive(self.started.elapsed(), &topic, &bytes) {
                    Ok(()) => self.seen(&node),
                    Err(err) => warn!(node = &*node, topic, %err, "message refused"),
                }
            }
            GatewayEvent::Disconnected { node, conn, reason } => {
                debug!(node = &*node, reason, "disconnected");
                if self.connections.get(&node) == Some(&conn) {
                    self.connections.remove(&node);
                    self.dispatcher.disconnected(&node);
                    self.setup.liveness.disconnected(&node);
                }
            }
            GatewayEvent::Join { client, address, bytes, reply } => {
                debug!(client, %address, "asks to join");
                let enrolment = Arc::clone(&self.setup.enrolment);
                tokio::spawn(async move { join(&enrolment, address, &bytes, reply).await });
            }
            GatewayEvent::Violation(violation) => {
                warn!(
                    client = violation.client,
                    address = %violation.address,
                    "refused: it {}",
                    violation.attempt
                );
                self.setup.recorder.violation(&violation);
            }
            GatewayEvent::Stream { node, kind, stream } => self.stream(node, kind, stream),
        }
    }

    /// Serves a connection beside the task.
    fn stream(&self, node: Arc<str>, kind: StreamKind, stream: NodeStream) {
        match kind {
            StreamKind::Stream => {
                let streams = Arc::clone(&self.setup.streams);
                tokio::spawn(async move {
                    if let Err(err) = streams.accept(&node, Box::new(stream)).await {
                        debug!(node = &*node, %err, "stream refused");
                    }
                });
            }
            StreamKind::Api => {
                let api = self.setup.api_address;
                tokio::spawn(async move {
                    if let Err(err) = splice(stream, api).await {
                        debug!(node = &*node, %err, "a pod's connection to the API ended early");
                    }
                });
            }
            StreamKind::Relay => {
                let relay = Arc::clone(&self.setup.relay);
                tokio::spawn(async move {
                    if let Err(err) = relay.serve(&node, stream).await {
                        debug!(node = &*node, %err, "not relayed");
                    }
                });
            }
            StreamKind::Blob => {
                let blobs = Arc::clone(&self.setup.blobs);
                let questions = self.questions.clone();
                tokio::spawn(async move {
                    let asks = Arc::clone(&node);
                    let find = async move |wanted: Wanted| {
                        let (answer, answered) = oneshot::channel();
                        questions.send(Question { node: asks, wanted, answer }).await.ok()?;
                        answered.await.ok()?
                    };
                    if let Err(err) = blobs.serve(stream, find).await {
                        debug!(node = &*node, %err, "blob not served");
                    }
                });
            }
        }
    }

    /// A node spoke: it lives, and is ready where it was not.
    fn seen(&mut self, node: &str) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        self.setup.liveness.seen(node);
        if state.leased.is_none_or(|at| lease::RENEW_AFTER <= at.elapsed()) {
            state.leased = Some(Instant::now());
            let heartbeat_s = state.profile.unwrap_or(self.setup.profile).heartbeat_s();
            lease::renew(self.setup.api.clone(), node.to_owned(), heartbeat_s);
        }
        if state.ready {
            return;
        }
        if let Some(info) = state.info.clone() {
            // Until the watch says otherwise, so that it is written once.
            state.ready = true;
            self.write_node(node, info);
        }
    }

    fn poll(&mut self) {
        let now = self.now();
        for (node, output) in self.dispatcher.poll(now) {
            match output {
                Output::Send { channel, bytes } => {
                    // A node that is gone says hello when it is back.
                    let sent =
                        self.setup.gateway.send(&node, &channel.of(&node), channel.qos(), bytes);
                    if let Err(err) = sent {
                        debug!(node = &*node, %err, "not sent");
                    }
                }
                Output::Hello(hello) => self.hello(&node, *hello),
                Output::Applied { revision } => debug!(node = &*node, revision, "set applied"),
                Output::Report(report) => self.report(&node, report),
                Output::Tokens { boot_id, pods } => self.tokens_wanted(&node, boot_id, pods),
                Output::Gone => self.setup.liveness.disconnected(&node),
                Output::Finding(finding) => warn!(node = &*node, %finding),
            }
        }
    }

    fn hello(&mut self, node: &str, hello: HelloV1) {
        match self.nodes.get_mut(node) {
            Some(state) => {
                state.info = Some(hello.info.clone());
                if state.tokens.are_stale {
                    let _ = self.dispatcher.command(node, CommandV1::RefreshTokens);
                }
                self.write_node(node, hello.info);
                self.mirror(node);
                self.settle_removals(node);
            }
            // Enrolled under a store that this one was restored from before it knew
            // the node: its certificate is good, so its object is made again.
            None if hello.epoch != 0 && hello.epoch != self.setup.epoch => {
                info!(
                    node,
                    "unknown node of an earlier store says hello: its object is made again"
                );
                self.write_node(node, hello.info);
            }
            None => {
                warn!(node, "a node without an object says hello: enrol it again with a new token");
                self.setup.gateway.kick(node);
            }
        }
    }

    /// Brings the mirrors of a node's static pods up to date, beside the task; not
    /// before the node has said which it has, nor before all pods are known.
    fn mirror(&mut self, node: &str) {
        let existing = self.index.mirrors_of(node);
        let Some(state) = self.nodes.get_mut(node) else { return };
        let Some(info) = state.info.as_ref().filter(|_| !self.unlisted.contains("Pod")) else {
            state.mirror_again = true;
            return;
        };
        let pods: Arc<[StaticPodV1]> = info.static_pods.clone().into();
        state.mirror_again = state.mirroring;
        if state.mirroring || (pods.is_empty() && existing.is_empty()) {
            return;
        }
        state.mirroring = true;
        let (api, node, done) = (self.setup.api.clone(), node.to_owned(), self.done.clone());
        tokio::spawn(async move {
            let made = mirrors::reconcile(&api, &node, &pods, &existing).await;
            let _ = done.send(Done::Mirrored { node, made }).await;
        });
    }

    /// Brings the Node object up to date, beside the task.
    fn write_node(&self, node: &str, info: NodeInfoV1) {
        let (api, node) = (self.setup.api.clone(), node.to_owned());
        tokio::spawn(async move {
            for _ in 0..5 {
                match write_node(&api, &node, &info).await {
                    Ok(()) => return,
                    Err(status) if status.reason == Reason::Conflict => (),
                    Err(status) => {
                        warn!(node, error = status.message, "Node object not written");
                        return;
                    }
                }
            }
        });
    }

    fn report(&mut self, node: &str, report: ReportV1) {
        for event in &report.events {
            self.setup.recorder.record(node, event);
        }
        let Some(state) = self.nodes.get_mut(node) else { return };
        // Handed out again while it, or a newer one, is being stored: an older status
        // must never be written after a newer one.
        let (boot_id, accepted) = state.accepted;
        if boot_id == report.boot_id && report.seq <= accepted {
            return;
        }
        if REPORTS_WAITING_MAX <= state.reports.len() {
            // It comes again, since it is not acknowledged.
            return;
        }
        state.accepted = (report.boot_id, report.seq);
        state.reports.push_back(report);
        self.store_next(node);
    }

    /// Stores the reports of a node one after the other, so that a newer status is
    /// never overwritten by an older one.
    fn store_next(&mut self, node: &str) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        if state.storing {
            return;
        }
        let Some(report) = state.reports.pop_front() else { return };
        state.storing = true;
        let host_ip = state.info.as_ref().map(|info| info.address.clone()).unwrap_or_default();
        let (reports, done, node) = (self.reports.clone(), self.done.clone(), node.to_owned());
        tokio::spawn(async move {
            let stored = reports.store(&node, &host_ip, &report).await;
            let (boot_id, seq) = (report.boot_id, report.seq);
            let _ = done.send(Done::Report { node, boot_id, seq, stored }).await;
        });
    }

    fn finished(&mut self, done: Done) {
        let (node, boot_id, seq, stored) = match done {
            Done::Report { node, boot_id, seq, stored } => (node, boot_id, seq, stored),
            Done::Mirrored { node, made } => {
                if made {
                    // What it reported before had no Pod to go to.
                    let _ = self.dispatcher.command(&node, CommandV1::ReportAll);
                }
                let Some(state) = self.nodes.get_mut(&node) else { return };
                state.mirroring = false;
                if state.mirror_again {
                    self.mirror(&node);
                }
                return;
            }
            Done::Tokens { node, boot_id, pods } => {
                self.tokens_made(&node, boot_id, pods);
                return;
            }
            Done::Nudged => {
                self.dirty.append(&mut self.waiting);
                return;
            }
        };
        if stored {
            self.dispatcher.report_stored(&node, boot_id, seq);
        }
        if let Some(state) = self.nodes.get_mut(&node) {
            state.storing = false;
            if !stored {
                // It comes again, and those after it have to wait for it.
                state.reports.clear();
                state.accepted = (boot_id, seq.saturating_sub(1));
            }
        }
        self.store_next(&node);
    }

    fn answer(&self, question: Question) {
        let found = match &question.wanted {
            Wanted::Module(request) if request.pod == Uid::default() => {
                self.wish(&question.node, |wish| wish.image == request.container)
            }
            Wanted::Module(request) => self.module(&question.node, request),
            Wanted::Repository(registry, repository) => {
                self.repository(&question.node, registry, repository)
            }
        };
        let _ = question.answer.send(found);
    }

    /// An image that the node is to have.
    fn wish(&self, node: &str, is_it: impl Fn(&PrepullV1) -> bool) -> Option<Granted> {
        let wish = self.nodes.get(node)?.prepull.iter().find(|wish| is_it(wish))?;
        let access =
            Access { namespace: wish.namespace.clone(), pull_secrets: wish.pull_secrets.clone() };
        Some(Granted { image: wish.image.clone(), digest: String::new(), access })
    }

    /// The module of a container of one of the node's pods.
    fn module(&self, node: &str, request: &ArtifactRequestV1) -> Option<Granted> {
        let key = self.index.find(node, &request.pod)?;
        let lowered = lower::pod(&self.read("Pod", key)?).ok()?;
        let BodyV1::Pod(pod) = lowered.item.body else { return None };
        let container = pod
            .init_containers
            .iter()
            .chain(&pod.containers)
            .chain(&pod.ephemeral_containers)
            .find(|container| container.name == request.container)
            .filter(|container| container.runtime == RuntimeV1::Wasm)?;
        let (image, digest) = (container.image.clone(), container.digest.clone());
        let access = Access { namespace: pod.namespace, pull_secrets: pod.pull_secrets };
        Some(Granted { image, digest, access })
    }

    /// Whom a node may fetch from a repository for: a pod of its own, or a wish.
    fn repository(&self, node: &str, registry: &str, repository: &str) -> Option<Granted> {
        let is_it = |image: &str| {
            image
                .parse::<image::Reference>()
                .is_ok_and(|image| image.registry == registry && image.repository == repository)
        };
        let of_pod = |key: ObjectKey| {
            let read: api::view::PodView = api::view::read(&self.read("Pod", &key)?).ok()?;
            let spec = read.spec;
            let mut containers = spec
                .init_containers
                .iter()
                .chain(&spec.containers)
                .chain(&spec.ephemeral_containers);
            let image = containers.find(|container| is_it(&container.image))?.image.clone();
            let pull_secrets = spec.image_pull_secrets.iter().map(|one| one.name.clone()).collect();
            let access = Access { namespace: key.namespace, pull_secrets };
            Some(Granted { image, digest: String::new(), access })
        };
        let mut found: Vec<Granted> =
            self.index.pods_of(node).into_iter().filter_map(of_pod).collect();
        found.extend(self.wish(node, |wish| is_it(&wish.image)));
        // One that has credentials, if any does.
        found.sort_by_key(|granted| granted.access.pull_secrets.is_empty());
        found.into_iter().next()
    }
}

/// Carries a connection of a node's pod to the API. What is inside is the pod's own
/// TLS with it; the node proves nothing but the way.
async fn splice(mut stream: NodeStream, api: SocketAddr) -> std::io::Result<()> {
    let mut api = tokio::net::TcpStream::connect(api).await?;
    api.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut stream, &mut api).await.map(drop)
}

/// Answers a board that asks to join.
async fn join(enrolment: &Enrolment, address: SocketAddr, bytes: &[u8], reply: JoinReply) {
    match envelope::decode(bytes) {
        Ok(Decoded::Message(Message::JoinRequest(request))) => {
            let response = enrolment.join(&request).await;
            reply.send(envelope::encode(&response));
        }
        Ok(_) => warn!(%address, "something else than a join request on its topic"),
        Err(err) => warn!(%address, %err, "join request refused"),
    }
}

/// Writes what a node says about itself: its status as that node, and the labels
/// that follow from what it is as the master, since a node may not label itself.
async fn write_node(api: &Api, node: &str, info: &NodeInfoV1) -> Result<(), Status> {
    let master = Identity::master("pinnace:nodes");
    let options = WriteOptions::by("pinnace-agent");
    let target = Target::object(resource("Node"), "", node);
    let mut object = match api.get_value(&master, &target) {
        Ok(object) => object,
        Err(status) if status.reason == Reason::NotFound => {
            let new = serde_json::json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
            });
            api.create(&master, resource("Node"), "", new, &options).await?.value()
        }
        Err(status) => return Err(status),
    };
    let has_new_labels = lower::node::set_labels(&mut object, info);
    let has_new_port = lower::node::set_tunnel_port(&mut object, info);
    if lower::node::set_storage_folder(&mut object, info) || has_new_labels || has_new_port {
        object = api.update(&master, &target, object, &options).await?.value();
    }
    let status = lower::node::status(&object, info, clock::timestamp());
    if object["status"] != status {
        object["status"] = status;
        let who = Identity::node(node);
        api.update_status(&who, &target.subresource("status"), object, &options).await?;
    }
    Ok(())
}
