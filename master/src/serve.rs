//! Builds the parts of the master and starts them.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use api::enrolment::{INFO_ENDPOINTS, INFO_NAME, INFO_NAMESPACE};
use api::resource::Storage;
use api::service::Ranges;
use apiserver::{Api, Identity, Reason, Server, ServerOptions, Target, TokenIssuer, WriteOptions};
use controllers::clock::Clock;
use controllers::{cluster_services, node_cidr, node_lifecycle};
use gateway::{ClockFloor, Gateway};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use store::{LmdbStore, Store};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasm::compile::child::Compiler;

use crate::artifacts::Artifacts;
use crate::backup::Backups;
use crate::blobs::Blobs;
use crate::cluster::Component;
use crate::config::{Config, LinkProfile};
use crate::enrol::{Enrolment, resource};
use crate::image_cache::ImageCache;
use crate::images::Registries;
use crate::node_events::NodeEvents;
use crate::nodes::{self, Liveness};
use crate::pki::{Pki, write_private};
use crate::relay::Relay;
use crate::streams::Streams;
use crate::usage::Usage;
use crate::{clock, kubeconfig, registry, usage};

/// Commands that wait for the node task.
const COMMANDS_WAITING_MAX: usize = 256;
/// Each node gets this much of the pods' addresses.
const NODE_PREFIX: u8 = 24;
/// How long connections get to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// The file that says that the store was restored from a backup.
const RESTORED_FILE: &str = store::archive::RESTORED_FILE;

/// A master that runs.
pub(crate) struct Master {
    /// `ready api=… nodes=…`
    pub(crate) ready_line: String,
    tasks: TaskTracker,
    gateway: Arc<Gateway>,
    store: Arc<dyn Store>,
}

impl Master {
    /// Ends once every part has, after the shutdown was asked for.
    pub(crate) async fn stopped(self) {
        self.gateway.close(GOODBYE).await;
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.store);
    }
}

/// Starts a master; it serves when this returns.
pub(crate) async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Master> {
    let services = config.service_ranges().map_err(anyhow::Error::msg)?;
    let dir = &config.data_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("--data-dir {}: cannot make it", dir.display()))?;
    let lmdb = LmdbStore::open(dir.join("store"), store_config())
        .with_context(|| format!("--data-dir {}", dir.display()))?;
    let lmdb = Arc::new(lmdb);
    let store: Arc<dyn Store> = Arc::clone(&lmdb) as Arc<dyn Store>;
    let listener = TcpListener::bind(config.api_listen)
        .await
        .with_context(|| format!("--api-listen {}: cannot listen", config.api_listen))?;
    let api_port = listener.local_addr()?.port();
    let api_address = on_this_machine(listener.local_addr()?);
    let host = host(&config);
    let names = names(&host, &config, services.api_address());
    let pki = Arc::new(Pki::open(&dir.join("pki"), &names)?);
    let api = Api::new(Arc::clone(&store));
    api.set_service_ranges(services.clone());
    api.set_token_issuer(TokenIssuer::new(pki.token_key(), clock::now));
    api.bootstrap().await.map_err(|status| anyhow::anyhow!(status.message))?;

    let node_tls = gateway::server_config(
        pki.server_chain.clone(),
        pki.server_key(),
        [pki.ca.clone()],
        clock_floor(),
    )?;
    let provider: gateway::TlsProvider = Arc::new(move || Arc::clone(&node_tls));
    let (gateway, events) =
        Gateway::bind(config.node_listen, provider, gateway::Config::default()).await?;
    let gateway = Arc::new(gateway);
    let node_port = config
        .advertise
        .as_ref()
        .and_then(|advertise| advertise.node_port)
        .unwrap_or_else(|| gateway.address().port());

    let server = format!("https://{}", endpoint(&host, api_port));
    let node_endpoint = endpoint(&host, node_port);
    describe_cluster(&api, &node_endpoint, store.epoch()).await?;
    let text = kubeconfig::render(&pki, &server);
    for path in [Some(dir.join("admin.kubeconfig")), config.write_kubeconfig.clone()] {
        let Some(path) = path else { continue };
        write_private(&path, text.as_bytes())?;
    }

    let tasks = TaskTracker::new();
    let cannot = |what: &str| format!("{}: cannot open the folder of {what}", dir.display());
    let quota = ::registry::Config { quota_bytes: config.registry_quota, ..Default::default() };
    let files = ::registry::Files::open(&dir.join("registry"), quota);
    let files = Arc::new(files.with_context(|| cannot("the registry"))?);
    let passwords = registry::Passwords::open(&dir.join("pki"))?;
    let own = Arc::new(registry::Own(Arc::clone(&files)));
    let registries = Arc::new(Registries::new(&config, api.clone(), own)?);
    // This program anew, also after its file was replaced.
    let compiler = Compiler::new("/proc/self/exe".into(), vec![crate::COMPILE.into()]);
    let artifacts = Artifacts::open(
        dir.join("artifacts"),
        Arc::clone(&pki),
        registries.clone(),
        Arc::new(compiler),
        config.artifact_cache,
    )
    .with_context(|| cannot("artifacts"))?;
    let cache = ImageCache::open(dir.join("image-cache"), config.image_cache)
        .with_context(|| cannot("cached images"))?;
    let blobs = Arc::new(Blobs { artifacts, registries: registries.clone(), cache });
    let (commands, commanded) = mpsc::channel(COMMANDS_WAITING_MAX);
    let relay = Relay::new(commands.clone());
    let streams = Streams::new(commands);
    api.set_log_source(Arc::clone(&streams) as Arc<dyn apiserver::LogSource>);
    api.set_stream_source(Arc::clone(&streams) as Arc<dyn apiserver::StreamSource>);
    let usage = Usage::new(api.clone(), Arc::clone(&streams) as Arc<dyn usage::Nodes>);
    api.set_measured_source(usage);
    let liveness = Arc::new(Liveness::new());
    let network = cluster(&config, &services);
    let services = cluster_services::Config { ranges: services, api_host: host, api_port };
    let component = Arc::new(Component::new(api.clone(), "pinnace:controllers"));
    cluster_services::establish(&component, &services)
        .await
        .context("cannot make the Services of the API and of DNS")?;
    let parts = controllers::Parts {
        cluster: component,
        liveness: Arc::clone(&liveness),
        images: registries,
        clock: Clock::System,
        root_ca: pki.ca_pem.as_str().into(),
        config: controllers_config(&config, services)?,
    };
    let recorder = controllers::Fleet::start(parts, &tasks, &shutdown).recorder;
    let setup = nodes::Setup {
        api: api.clone(),
        epoch: store.epoch(),
        restored: dir.join(RESTORED_FILE).exists(),
        gateway: Arc::clone(&gateway),
        enrolment: Arc::new(Enrolment::new(api.clone(), Arc::clone(&pki))),
        blobs,
        streams,
        relay,
        liveness,
        artifact_key: pki.artifact_public_key(),
        profile: profile(config.link_profile),
        cluster: network,
        api_address,
        recorder: NodeEvents::new(recorder),
    };
    let inputs = nodes::Inputs { gateway: events, commands: commanded };
    tasks.spawn(nodes::run(setup, inputs, shutdown.clone()));

    let api_tls = api_tls(&pki)?;
    let backups = Backups::new(lmdb, dir.join("pki"));
    let mounts: Vec<Arc<dyn apiserver::Mount>> =
        vec![registry::V2::new(&files, passwords.clone()), registry::Tokens::new(passwords)];
    let tokens = Some(Arc::new(api.clone()) as Arc<dyn apiserver::TokenAuthenticator>);
    let options =
        ServerOptions { tokens, downloads: vec![backups], mounts, ..ServerOptions::default() };
    tasks.spawn(registry::tidy(files, api.clone(), shutdown.clone()));
    let http = Server::new(api, options, shutdown);
    tasks.spawn(async move { http.serve(listener, api_tls).await });
    let ready_line = format!("ready api={server} nodes=mqtts://{node_endpoint}");
    Ok(Master { ready_line, tasks, gateway, store })
}

/// Events survive the process, leases not even that: neither is worth a flush.
fn store_config() -> store::Config {
    let prefixes = |storage: Storage| -> Vec<String> {
        api::resource::all()
            .iter()
            .filter(|resource| resource.storage == storage)
            .map(api::resource::Resource::key_prefix)
            .collect()
    };
    store::Config {
        volatile_prefixes: prefixes(Storage::Volatile),
        memory_prefixes: prefixes(Storage::Memory),
        ..store::Config::default()
    }
}

fn profile(profile: LinkProfile) -> dispatch::node::Profile {
    match profile {
        LinkProfile::Lan => dispatch::node::Profile::Lan,
        LinkProfile::Wan => dispatch::node::Profile::Wan,
        LinkProfile::Cellular => dispatch::node::Profile::Cellular,
    }
}

/// Where a listener is reached from its own machine.
fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The ranges and names of the cluster, as nodes are told them.
fn cluster(config: &Config, services: &Ranges) -> nodes::Cluster {
    nodes::Cluster {
        pod_cidrs: vec![config.pod_cidr.clone()],
        service_cidrs: vec![config.service_cidr.clone()],
        dns: vec![services.dns_address()],
        domain: lower::CLUSTER_DOMAIN.to_owned(),
    }
}

fn clock_floor() -> ClockFloor {
    let floor = clock::build_time().duration_since(UNIX_EPOCH).unwrap_or_default();
    ClockFloor { floor_s: floor.as_secs() }
}

/// Under which name or address users and nodes reach this master.
fn host(config: &Config) -> String {
    if let Some(advertise) = &config.advertise {
        return advertise.host.clone();
    }
    let listen = config.api_listen.ip();
    if !listen.is_unspecified() {
        return listen.to_string();
    }
    default_route_address().unwrap_or_else(|| IpAddr::from([127, 0, 0, 1])).to_string()
}

/// The address of the default route's interface. Sends nothing: connecting a UDP
/// socket only chooses a route.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))).ok()?;
    // TEST-NET-1 of RFC 5737.
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// `host:port`, with brackets around an IPv6 address.
fn endpoint(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Every name in the server's certificate.
fn names(host: &str, config: &Config, api_address: IpAddr) -> Vec<String> {
    let mut names: Vec<String> =
        [wire::MASTER_SERVER_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.push(host.to_owned());
    // Pods ask the API at its Service's address.
    names.push(api_address.to_string());
    for listen in [config.api_listen, config.node_listen] {
        if !listen.ip().is_unspecified() {
            names.push(listen.ip().to_string());
        }
    }
    names.extend(
        [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(str::to_owned),
    );
    names.sort();
    names.dedup();
    names
}

fn api_tls(pki: &Pki) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let config = rustls::ServerConfig::builder_with_details(provider, Arc::new(clock_floor()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki.server_chain.clone(), pki.server_key())?;
    Ok(Arc::new(config))
}

/// Writes what clients need to know of the cluster, where it changed.
async fn describe_cluster(api: &Api, nodes: &str, epoch: u128) -> anyhow::Result<()> {
    let who = Identity::master("pinnace:master");
    let options = WriteOptions::by("pinnace-master");
    let resource = resource("ConfigMap");
    let target = Target::object(resource, INFO_NAMESPACE, INFO_NAME);
    let data = json!({INFO_ENDPOINTS: nodes, "epoch": epoch.to_string()});
    let written = match api.get_value(&who, &target) {
        Ok(map) if map["data"] == data => return Ok(()),
        Ok(mut map) => {
            map["data"] = data;
            api.update(&who, &target, map, &options).await
        }
        Err(status) if status.reason == Reason::NotFound => {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": INFO_NAME, "namespace": INFO_NAMESPACE},
                "data": data,
            });
            api.create(&who, resource, INFO_NAMESPACE, map, &options).await
        }
        Err(status) => Err(status),
    };
    match written {
        Ok(_) => Ok(()),
        Err(status) => bail!("cannot describe the cluster: {}", status.message),
    }
}

/// How controllers are set up.
fn controllers_config(
    config: &Config,
    services: cluster_services::Config,
) -> anyhow::Result<controllers::Config> {
    let network =
        config.pod_cidr.parse().with_context(|| format!("--pod-cidr {:?}", config.pod_cidr))?;
    let pod_network = node_cidr::Config::new(network, NODE_PREFIX)
        .with_context(|| format!("--pod-cidr {:?}", config.pod_cidr))?;
    let nodes = node_lifecycle::Config {
        default_profile: match config.link_profile {
            LinkProfile::Lan => node_lifecycle::Profile::Lan,
            LinkProfile::Wan => node_lifecycle::Profile::Wan,
            LinkProfile::Cellular => node_lifecycle::Profile::Cellular,
        },
        ..node_lifecycle::Config::default()
    };
    Ok(controllers::Config { nodes, pod_network, services })
}
