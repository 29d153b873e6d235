//! Starts every controller over one set of caches.

use std::sync::Arc;

use api::resource::Storage;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::cluster::{Cluster, kinds};
use crate::events::{self, Recorder};
use crate::garbage_collector::{self, Objects, Sources};
use crate::image::{self, ImageResolver, Settled};
use crate::node_lifecycle::{self, NodeLiveness};
use crate::projection::{Deployment, Meta, Namespace, Node, Pod, ReplicaSet};
use crate::{
    cluster_services, deployment, namespace, node_cidr, pod_cleanup, replica_set, root_ca, runner,
    scheduler_loop, service_account, service_endpoints, volumes,
};

/// What may be set.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// How nodes are judged.
    pub nodes: node_lifecycle::Config,
    /// Where the nodes' pod addresses come from.
    pub pod_network: node_cidr::Config,
    /// Where the API is, and addresses of Services come from.
    pub services: cluster_services::Config,
}

/// What the controllers work with.
#[derive(Debug)]
pub struct Parts<C, L, R> {
    /// The cluster.
    pub cluster: Arc<C>,
    /// Which nodes live.
    pub liveness: Arc<L>,
    /// What images are.
    pub images: Arc<R>,
    /// The time of day.
    pub clock: Clock,
    /// Who vouches for the API server, in PEM.
    pub root_ca: Arc<str>,
    /// What may be set.
    pub config: Config,
}

/// The running controllers: what they see, for others that want to see it too.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Every pod.
    pub pods: Cache<Pod>,
    /// Every node.
    pub nodes: Cache<Node>,
    /// Every namespace.
    pub namespaces: Cache<Namespace>,
    /// Every Deployment.
    pub deployments: Cache<Deployment>,
    /// Every ReplicaSet.
    pub replica_sets: Cache<ReplicaSet>,
    /// Persistent volumes, their claims and classes, and the pods and nodes beside them.
    pub storage: volumes::Caches,
    /// Services, what is behind them, and the pods and nodes beside them.
    pub services: service_endpoints::Caches,
    /// For events of other parts of the master.
    pub recorder: Recorder,
}

impl Fleet {
    /// Starts everything on `tracker`; all of it ends on `shutdown`.
    ///
    /// No controller acts before every cache has been listed once.
    pub fn start<C: Cluster, L: NodeLiveness, R: ImageResolver>(
        parts: Parts<C, L, R>,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let (recorder, records) = events::recorder();
        let (pods, nodes) = (Cache::new(kinds::pods()), Cache::new(kinds::nodes()));
        let fleet = Self {
            storage: volumes::Caches {
                volumes: Cache::new(kinds::volumes()),
                claims: Cache::new(kinds::claims()),
                classes: Cache::new(kinds::storage_classes()),
                pods: pods.clone(),
                nodes: nodes.clone(),
            },
            services: service_endpoints::Caches {
                services: Cache::new(kinds::services()),
                slices: Cache::new(kinds::endpoint_slices()),
                endpoints: Cache::new(kinds::endpoints()),
                pods: pods.clone(),
                nodes: nodes.clone(),
            },
            pods,
            nodes,
            namespaces: Cache::new(kinds::namespaces()),
            deployments: Cache::new(kinds::deployments()),
            replica_sets: Cache::new(kinds::replica_sets()),
            recorder,
        };
        let start = Start { parts, fleet: fleet.clone(), tracker, shutdown };
        let (cluster, clock) = (Arc::clone(&start.parts.cluster), start.parts.clock);
        tracker.spawn(events::run(cluster, clock, records, shutdown.clone()));
        start.follow(&fleet.pods);
        start.follow(&fleet.nodes);
        start.follow(&fleet.namespaces);
        start.follow(&fleet.deployments);
        start.follow(&fleet.replica_sets);
        start.follow(&fleet.storage.volumes);
        start.follow(&fleet.storage.claims);
        start.follow(&fleet.storage.classes);
        start.follow(&fleet.services.services);
        start.follow(&fleet.services.slices);
        start.follow(&fleet.services.endpoints);
        let (sources, accounts, maps) = start.sources();
        start.replica_sets(&sources);
        start.deployments(&sources);
        start.nodes(&sources);
        start.namespaces(&sources, accounts, &maps);
        start.garbage(&sources);
        start.volumes(&sources);
        start.services(&sources);
        start.scheduling(&sources);
        fleet
    }
}

/// Hands a controller its queue, once every cache is synced.
struct Start<'a, C, L, R> {
    parts: Parts<C, L, R>,
    fleet: Fleet,
    tracker: &'a TaskTracker,
    shutdown: &'a CancellationToken,
}

impl<C: Cluster, L: NodeLiveness, R: ImageResolver> Start<'_, C, L, R> {
    fn follow<T: crate::projection::Projection>(&self, cache: &Cache<T>) {
        let cluster = Arc::clone(&self.parts.cluster);
        self.tracker.spawn(cache.clone().run(cluster, self.shutdown.clone()));
    }

    /// Every resource that objects in the store may own or be owned by; those
    /// nobody looks into with their metadata alone. And the ServiceAccounts and
    /// ConfigMaps.
    fn sources(&self) -> (Sources, Cache<Meta>, Cache<Meta>) {
        let fleet = &self.fleet;
        let mut sources: Vec<Box<dyn Objects>> = vec![
            Box::new(fleet.pods.clone()),
            Box::new(fleet.nodes.clone()),
            Box::new(fleet.namespaces.clone()),
            Box::new(fleet.deployments.clone()),
            Box::new(fleet.replica_sets.clone()),
            Box::new(fleet.storage.volumes.clone()),
            Box::new(fleet.storage.claims.clone()),
            Box::new(fleet.storage.classes.clone()),
            Box::new(fleet.services.services.clone()),
            Box::new(fleet.services.slices.clone()),
            Box::new(fleet.services.endpoints.clone()),
        ];
        let accounts = Cache::new(kinds::service_accounts());
        self.follow(&accounts);
        sources.push(Box::new(accounts.clone()));
        let maps = Cache::new(kinds::config_maps());
        self.follow(&maps);
        sources.push(Box::new(maps.clone()));
        for resource in api::resource::all() {
            let known = sources.iter().any(|source| std::ptr::eq(source.resource(), resource));
            if !known && resource.storage == Storage::Durable {
                let cache: Cache<Meta> = Cache::new(resource);
                self.follow(&cache);
                sources.push(Box::new(cache));
            }
        }
        (Arc::new(sources), accounts, maps)
    }

    fn run<K, F, Fut, E>(
        &self,
        name: &'static str,
        config: runner::Config,
        sources: &Sources,
        receiver: runner::Receiver<K>,
        reconcile: F,
    ) where
        K: Clone + std::fmt::Debug + Eq + std::hash::Hash + Send + 'static,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<runner::Action, E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let (sources, shutdown) = (Arc::clone(sources), self.shutdown.clone());
        self.tracker.spawn(async move {
            if synced(&sources, &shutdown).await {
                runner::run(name, config, receiver, shutdown, reconcile).await;
            }
        });
    }

    fn replica_sets(&self, sources: &Sources) {
        let fleet = &self.fleet;
        let (sender, receiver) = runner::queue();
        replica_set::feed(&fleet.replica_sets, &fleet.pods, &sender);
        let controller = Arc::new(replica_set::Controller::new(
            Arc::clone(&self.parts.cluster),
            self.parts.clock,
            fleet.replica_sets.clone(),
            fleet.pods.clone(),
            fleet.recorder.clone(),
        ));
        let config = runner::Config::default();
        self.run("replica_set", config, sources, receiver, move |key: api::ObjectKey| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        });
    }

    fn deployments(&self, sources: &Sources) {
        let fleet = &self.fleet;
        let (sender, receiver) = runner::queue();
        deployment::feed(&fleet.deployments, &fleet.replica_sets, &fleet.pods, &sender);
        let controller = Arc::new(deployment::Controller::new(
            Arc::clone(&self.parts.cluster),
            self.parts.clock,
            fleet.replica_sets.clone(),
            fleet.pods.clone(),
            fleet.recorder.clone(),
        ));
        let config = runner::Config::default();
        self.run("deployment", config, sources, receiver, move |key: api::ObjectKey| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        });
    }

    fn nodes(&self, sources: &Sources) {
        let fleet = &self.fleet;
        let (sender, receiver) = runner::queue();
        node_lifecycle::feed(&fleet.nodes, &fleet.pods, &sender);
        let controller = Arc::new(node_lifecycle::Controller::new(
            Arc::clone(&self.parts.cluster),
            self.parts.clock,
            self.parts.config.nodes,
            Arc::clone(&self.parts.liveness),
            fleet.nodes.clone(),
            fleet.pods.clone(),
            fleet.recorder.clone(),
        ));
        let config = runner::Config::default();
        self.run("node_lifecycle", config, sources, receiver, move |name: String| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&name).await }
        });

        let (sender, receiver) = runner::queue();
        node_cidr::feed(&fleet.nodes, &sender);
        let controller = Arc::new(node_cidr::Controller::new(
            Arc::clone(&self.parts.cluster),
            self.parts.config.pod_network,
            fleet.nodes.clone(),
            fleet.recorder.clone(),
        ));
        // One at a time: two must not be given the same.
        let config = runner::Config { concurrency: 1, ..runner::Config::default() };
        self.run("node_cidr", config, sources, receiver, move |name: String| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&name).await }
        });

        let (sender, receiver) = runner::queue();
        pod_cleanup::feed(&fleet.nodes, &fleet.pods, &sender);
        let controller = Arc::new(pod_cleanup::Controller::new(
            Arc::clone(&self.parts.cluster),
            fleet.nodes.clone(),
            fleet.pods.clone(),
        ));
        let config = runner::Config::default();
        self.run("pod_cleanup", config, sources, receiver, move |name: String| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&name).await }
        });
    }

    fn namespaces(&self, sources: &Sources, accounts: Cache<Meta>, maps: &Cache<Meta>) {
        let fleet = &self.fleet;
        let (sender, receiver) = runner::queue();
        namespace::feed(&fleet.namespaces, &fleet.pods, &sender);
        let (cluster, clock) = (Arc::clone(&self.parts.cluster), self.parts.clock);
        let config = runner::Config::default();
        self.run("namespace", config, sources, receiver, move |name: String| {
            let cluster = Arc::clone(&cluster);
            async move { namespace::reconcile(&cluster, clock, &name).await }
        });

        let (sender, receiver) = runner::queue();
        service_account::feed(&fleet.namespaces, &accounts, &sender);
        let (cluster, namespaces) = (Arc::clone(&self.parts.cluster), fleet.namespaces.clone());
        self.run("service_account", config, sources, receiver, move |name: String| {
            let (cluster, namespaces, accounts) =
                (Arc::clone(&cluster), namespaces.clone(), accounts.clone());
            async move { service_account::reconcile(&cluster, &namespaces, &accounts, &name).await }
        });

        let (sender, receiver) = runner::queue();
        root_ca::feed(&fleet.namespaces, maps, &sender);
        let (cluster, namespaces) = (Arc::clone(&self.parts.cluster), fleet.namespaces.clone());
        let root_ca = Arc::clone(&self.parts.root_ca);
        self.run("root_ca", config, sources, receiver, move |name: String| {
            let (cluster, namespaces, root_ca) =
                (Arc::clone(&cluster), namespaces.clone(), Arc::clone(&root_ca));
            async move { root_ca::reconcile(&cluster, &namespaces, &root_ca, &name).await }
        });
    }

    fn garbage(&self, sources: &Sources) {
        let (sender, receiver) = runner::queue();
        garbage_collector::feed(sources, &sender);
        let controller = Arc::new(garbage_collector::Controller::new(
            Arc::clone(&self.parts.cluster),
            Arc::clone(sources),
        ));
        // Deletes by the thousand share commits of the store.
        let config = runner::Config { concurrency: 64, ..runner::Config::default() };
        self.run("garbage_collector", config, sources, receiver, move |item| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&item).await }
        });
    }

    fn volumes(&self, sources: &Sources) {
        let storage = &self.fleet.storage;
        let (sender, receiver) = runner::queue();
        volumes::feed(storage, &sender);
        let controller = Arc::new(volumes::Controller::new(
            Arc::clone(&self.parts.cluster),
            storage.clone(),
            self.fleet.recorder.clone(),
        ));
        // One at a time: two claims must not be given the same volume.
        let config = runner::Config { concurrency: 1, ..runner::Config::default() };
        self.run("volumes", config, sources, receiver, move |key: volumes::Key| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        });
    }

    fn services(&self, sources: &Sources) {
        let caches = &self.fleet.services;
        let (sender, receiver) = runner::queue();
        let members = service_endpoints::feed(caches, &sender);
        let controller = Arc::new(service_endpoints::Controller::new(
            Arc::clone(&self.parts.cluster),
            caches.clone(),
            members,
        ));
        let config = runner::Config::default();
        self.run("service_endpoints", config, sources, receiver, move |key: api::ObjectKey| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        });

        let (sender, receiver) = runner::queue();
        cluster_services::feed(&caches.services, &caches.slices, &caches.endpoints, &sender);
        let (cluster, own) =
            (Arc::clone(&self.parts.cluster), Arc::new(self.parts.config.services.clone()));
        self.run("cluster_services", config, sources, receiver, move |wanted| {
            let (cluster, own) = (Arc::clone(&cluster), Arc::clone(&own));
            async move { cluster_services::reconcile(&*cluster, &own, wanted).await }
        });
    }

    fn scheduling(&self, sources: &Sources) {
        let fleet = &self.fleet;
        let settled = Settled::default();
        let (schedule, to_schedule) = runner::queue();
        let (pods, pods_receiver) = runner::queue();
        let (lookups, lookups_receiver) = runner::queue();
        scheduler_loop::feed(&fleet.storage, &schedule);
        image::feed(&fleet.pods, &settled, &pods);
        let controller = Arc::new(image::Controller::new(
            Arc::clone(&self.parts.cluster),
            Arc::clone(&self.parts.images),
            fleet.pods.clone(),
            fleet.recorder.clone(),
            settled.clone(),
            Box::new(move |pod| schedule.add(scheduler_loop::Key::Pod(pod))),
            image::Queues { pods, lookups },
        ));
        let records = Arc::clone(&controller);
        let config = runner::Config::default();
        self.run("image", config, sources, pods_receiver, move |key: api::ObjectKey| {
            let controller = Arc::clone(&records);
            async move { controller.reconcile(&key).await }
        });
        let config = image::lookup_config();
        self.run("image_lookup", config, sources, lookups_receiver, move |request| {
            let controller = Arc::clone(&controller);
            async move { controller.look_up(&request).await }
        });

        let parts = scheduler_loop::Parts {
            cluster: Arc::clone(&self.parts.cluster),
            clock: self.parts.clock,
            storage: fleet.storage.clone(),
            recorder: fleet.recorder.clone(),
            settled,
        };
        let (sources, shutdown) = (Arc::clone(sources), self.shutdown.clone());
        self.tracker.spawn(async move {
            if synced(&sources, &shutdown).await {
                scheduler_loop::run(parts, to_schedule, shutdown).await;
            }
        });
    }
}

/// Waits until every source has been listed; `false` where it is to end first.
async fn synced(sources: &Sources, shutdown: &CancellationToken) -> bool {
    let all = async {
        for source in sources.iter() {
            source.synced().await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => false,
        () = all => true,
    }
}
