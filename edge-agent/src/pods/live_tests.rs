//! Owner and workers at work, on a machine whose containers, images and network
//! are fakes and whose files are real.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::BoxFuture;
use runtime::dir::ContainerDir;
use runtime::fake::{FakeExec, FakeRuntime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::Uid;
use wire::pod::{
    HandlerV1, MountV1, PodV1, ProbeV1, ProjectionV1, RestartPolicyV1, VolumeSourceV1, VolumeV1,
};
use wire::set::{BodyV1, ItemV1, SnapshotV1};
use wire::status::{EventV1, PhaseV1, PodStatusV1, StateV1};

use super::owner::{Evictor, News, Owner, local_pods};
use super::tests::{container, pod};
use crate::clock::Clock;
use crate::config::{Folders, Locks};
use crate::env::{Facts, ImageConfig};
use crate::hooks::Hooks;
use crate::images::{ImageContent, ImageError, ImageRequest, Images, Progress, ReadyImage};
use crate::manifests::Manifests;
use crate::network::{NamespacePaths, Network, NetworkError};
use crate::results::Results;
use crate::sandbox::PodNetwork;
use crate::seal::Seal;
use crate::tokens::{Held, Shelf, Table};
use crate::{id, recover, set, volumes};

/// Images that are all there, or none is.
#[derive(Default)]
struct FakeImages {
    error: Mutex<Option<ImageError>>,
}

impl Images for FakeImages {
    fn get<'a>(
        &'a self,
        request: ImageRequest,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>> {
        let result = match self.error.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => {
                progress(crate::images::present(&request));
                Ok(ReadyImage {
                    id: "sha256:aa".into(),
                    content: ImageContent::Oci { layers: vec!["/layers/1".into()] },
                    config: ImageConfig {
                        entrypoint: vec!["/bin/app".into()],
                        ..ImageConfig::default()
                    },
                })
            }
        };
        Box::pin(async move { result })
    }
}

#[derive(Default)]
struct FakeNetwork {
    last: AtomicU8,
}

impl PodNetwork for FakeNetwork {
    fn attach<'a>(
        &'a self,
        _: &'a Uid,
        _: &'a NamespacePaths,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Ipv4Addr, NetworkError>> {
        let last = self.last.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(Ipv4Addr::new(10, 42, 0, last + 2)) })
    }

    fn detach<'a>(
        &'a self,
        _: &'a Uid,
        _: &'a NamespacePaths,
    ) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async { Ok(()) })
    }
}

/// One machine, over several agents and boots.
struct Machine {
    _folder: tempfile::TempDir,
    folders: Folders,
    _locks: Locks,
    runtime: FakeRuntime,
    images: Arc<FakeImages>,
    manifests: watch::Sender<Arc<Manifests>>,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (folders, locks) =
            Folders::open(&folder.path().join("state"), &folder.path().join("run")).unwrap();
        let (runtime, images) = (FakeRuntime::new(), Arc::default());
        let manifests = watch::channel(Arc::default()).0;
        Self { _folder: folder, folders, _locks: locks, runtime, images, manifests }
    }

    fn hooks(&self) -> Arc<Hooks> {
        Arc::new(Hooks::new(
            self.folders.clone(),
            Arc::new(self.runtime.clone()),
            Arc::clone(&self.images) as Arc<dyn Images>,
            Arc::new(FakeNetwork::default()),
            Results::open(&self.folders.state.join("results")).unwrap(),
            Arc::new(Seal::open(&self.folders.state, None).unwrap()),
            Facts::default(),
        ))
    }

    /// Starts an agent, as `main` does.
    fn agent(&self) -> Agent {
        recover::check_boot(&self.folders).unwrap();
        let hooks = self.hooks();
        let clock = Clock::Tokio(tokio::time::Instant::now());
        let set = recover::load_set(&self.folders, &hooks.seal);
        let manifests = self.manifests.subscribe();
        let local = local_pods(&manifests.borrow());
        let found = recover::find(&hooks, set.as_deref(), local, clock.now());
        let (news_sender, news) = mpsc::channel(1000);
        let (sets, receiver) = watch::channel(set.clone());
        let stop = CancellationToken::new();
        let (owner, _board) =
            Owner::new(Arc::clone(&hooks), clock, set, news_sender, Box::new(|_| {}));
        let evictor = owner.evictor();
        let (shelf, kept) = Shelf::open(&self.folders, Arc::clone(&hooks.seal), clock.now().mono);
        let kept = kept.into_iter().map(|(uid, (held, _))| (uid, held)).collect();
        let (tokens, new_tokens) = watch::channel(Arc::default());
        let owner = owner.with_tokens(kept, shelf, new_tokens);
        let task = tokio::spawn(owner.run(found, receiver, manifests, stop.clone()));
        Agent {
            hooks,
            evictor,
            news,
            sets,
            tokens,
            stop,
            task,
            statuses: BTreeMap::new(),
            events: vec![],
            applied: vec![],
            running: None,
        }
    }

    /// Power off and on: only what is on disk is left.
    fn reboot(&mut self) {
        crate::volumes::unmount_below(&self.folders.run).unwrap();
        for below in ["pods", "containers"] {
            let _ = std::fs::remove_dir_all(self.folders.run.join(below));
        }
        let _ = std::fs::remove_file(self.folders.run.join("tokens"));
        self.runtime = FakeRuntime::new();
    }

    fn starts(&self) -> usize {
        self.runtime.calls().iter().filter(|call| call.starts_with("start")).count()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Pods that still run hold mounts and cgroups, which would outlive the folder.
        let _ = crate::volumes::unmount_below(&self.folders.run);
        recover::clear_cgroups(&self.folders, &[]);
    }
}

struct Agent {
    hooks: Arc<Hooks>,
    evictor: Evictor,
    news: mpsc::Receiver<News>,
    sets: watch::Sender<Option<Arc<SnapshotV1>>>,
    tokens: watch::Sender<Arc<Table>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    statuses: BTreeMap<Uid, PodStatusV1>,
    events: Vec<EventV1>,
    applied: Vec<u64>,
    running: Option<Vec<(Uid, u64)>>,
}

impl Agent {
    fn send(&self, revision: u64, pods: &[(u64, &PodV1)]) {
        let items = pods
            .iter()
            .map(|(generation, pod)| ItemV1 {
                uid: pod.uid,
                generation: *generation,
                body: BodyV1::Pod(Box::new((*pod).clone())),
            })
            .collect();
        self.sets.send_replace(Some(Arc::new(SnapshotV1 { epoch: 1, revision, items })));
    }

    /// Listens until `is_so`, in the test's own time.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Duration::from_secs(4000);
        let listen = async {
            while !is_so(self) {
                match self.news.recv().await.expect("the owner runs") {
                    News::Applied(_, revision) => self.applied.push(revision),
                    News::Statuses(all) => {
                        self.statuses.extend(all.into_iter().map(|status| (status.uid, status)));
                    }
                    News::Event(event) => self.events.push(event),
                    News::Running(all) => self.running = Some(all),
                }
            }
        };
        if tokio::time::timeout(deadline, listen).await.is_err() {
            panic!("not {what}: {:?} {:?}", self.statuses, self.events);
        }
    }

    /// Lets everything that is due now happen.
    async fn rest(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(4), async {
            loop {
                match self.news.recv().await.expect("the owner runs") {
                    News::Statuses(all) => {
                        self.statuses.extend(all.into_iter().map(|status| (status.uid, status)));
                    }
                    News::Applied(_, revision) => self.applied.push(revision),
                    News::Event(event) => self.events.push(event),
                    News::Running(all) => self.running = Some(all),
                }
            }
        })
        .await;
    }

    fn is_running(&self, pod: &PodV1) -> bool {
        self.statuses.get(&pod.uid).is_some_and(|status| {
            status.containers.iter().all(|c| matches!(c.state, StateV1::Running { .. }))
        })
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        // Dropping the hooks' last owner is not waited for: workers end with their wishes.
        drop(self.hooks);
        tokio::task::yield_now().await;
    }
}

fn named(name: &str, uid: u8) -> PodV1 {
    PodV1 { name: name.into(), uid: [uid; 16], ..pod(vec![container("a")]) }
}

fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test(start_paused = true)]
async fn a_set_is_stored_made_so_and_reported() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let (one, two) = (named("one", 1), named("two", 2));
    agent.until("speaking", |agent| agent.running == Some(vec![])).await;
    agent.send(5, &[(3, &one), (4, &two)]);
    agent.until("applied", |agent| agent.applied == [5]).await;
    assert_eq!(set::load(&machine.folders.set(), &agent.hooks.seal).unwrap().unwrap().revision, 5);
    agent.until("running", |agent| agent.is_running(&one) && agent.is_running(&two)).await;
    assert_eq!(agent.running, Some(vec![(one.uid, 3), (two.uid, 4)]));
    let status = &agent.statuses[&one.uid];
    assert_eq!((status.phase, status.generation), (PhaseV1::Running, 3));
    assert!(status.pod_ip.starts_with("10.42.0."));
    let reasons: Vec<&str> = agent
        .events
        .iter()
        .filter(|event| event.uid == one.uid)
        .map(|event| event.reason.as_str())
        .collect();
    assert_eq!(reasons, ["Pulled", "Created", "Started"]);

    let spec = machine.runtime.specs().into_iter().find(|spec| spec.pod == "one").unwrap();
    assert_eq!(spec.args, ["/bin/app"]);
    assert_eq!(spec.id, id::container_id(&one.uid, "a", 0));
    assert_eq!(
        spec.cgroup,
        format!("{}/pod{}/a-0", machine.folders.cgroup(), id::uid_text(&one.uid))
    );
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_in_the_network_alone_is_stored_later_and_when_the_agent_ends() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let stored = |agent: &Agent| {
        set::load(&machine.folders.set(), &agent.hooks.seal).unwrap().unwrap().revision
    };
    let send = |agent: &Agent, revision| {
        let item = |uid, generation, body| ItemV1 { uid: [uid; 16], generation, body };
        let items = vec![
            item(1, 3, BodyV1::Pod(Box::new(named("one", 1)))),
            item(9, revision, BodyV1::Service(Box::default())),
        ];
        agent.sets.send_replace(Some(Arc::new(SnapshotV1 { epoch: 1, revision, items })));
    };
    send(&agent, 5);
    agent.until("applied", |agent| agent.applied == [5]).await;
    send(&agent, 6);
    agent.until("applied", |agent| agent.applied == [5, 6]).await;
    assert_eq!(stored(&agent), 5);
    agent.until("stored", |agent| agent.applied == [5, 6, 6]).await;
    assert_eq!(stored(&agent), 6);
    send(&agent, 7);
    agent.until("applied", |agent| agent.applied.last() == Some(&7)).await;
    let seal = Arc::clone(&agent.hooks.seal);
    agent.end().await;
    assert_eq!(set::load(&machine.folders.set(), &seal).unwrap().unwrap().revision, 7);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_touches_nothing() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let one = named("one", 1);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    agent.end().await;
    let calls = machine.runtime.calls();

    let mut agent = machine.agent();
    agent.until("speaking", |agent| agent.running == Some(vec![(one.uid, 3)])).await;
    assert!(agent.is_running(&one), "the first status comes before the list");
    // The same set again, and one in which only a label changed.
    agent.send(6, &[(3, &one)]);
    agent.until("applied", |agent| agent.applied == [6]).await;
    let mut relabelled = one.clone();
    relabelled.labels.push(("l".into(), "v".into()));
    agent.send(7, &[(4, &relabelled)]);
    agent.until("reported", |agent| agent.statuses[&one.uid].generation == 4).await;
    agent.rest().await;
    assert_eq!(machine.runtime.calls(), calls);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_shown_when_it_comes_replaced_in_place_and_there_after_a_boot() {
    let mut machine = Machine::new();
    let token =
        ProjectionV1::Token { audience: String::new(), expiration_s: 3607, path: "token".into() };
    let source = VolumeSourceV1::Projected { sources: vec![token], default_mode: 0o644 };
    let mut one = named("one", 1);
    one.volumes = vec![VolumeV1 { name: "api".into(), source }];
    one.containers[0].mounts = vec![MountV1::new("api", "/t")];
    let give = |agent: &Agent, token: &str| {
        let tokens = BTreeMap::from([((String::new(), 3607), token.to_owned())]);
        let held = Held { tokens: Arc::new(tokens), lifetime_s: 3607, problem: String::new() };
        agent.tokens.send_replace(Arc::new(BTreeMap::from([(one.uid, held)])));
    };
    let dirs = machine.folders.pod(&one.uid, &one.namespace, &one.name);
    let file = dirs.run.join("volumes/api/token");
    let shown = || std::fs::read_to_string(&file).unwrap_or_default();

    let mut agent = machine.agent();
    agent.send(5, &[(3, &one)]);
    agent.until("applied", |agent| agent.applied == [5]).await;
    agent.rest().await;
    assert!(machine.runtime.specs().is_empty(), "it waits");
    give(&agent, "first");
    agent.until("running", |agent| agent.is_running(&one)).await;
    assert_eq!(shown(), "first");
    let calls = machine.runtime.calls();
    give(&agent, "second");
    agent.rest().await;
    assert_eq!(shown(), "second");
    agent.end().await;

    // An agent that follows takes over what is shown, and another set changes nothing.
    let mut agent = machine.agent();
    agent.send(6, &[(3, &one)]);
    agent.until("applied", |agent| agent.applied == [6]).await;
    agent.rest().await;
    assert_eq!((shown().as_str(), machine.runtime.calls()), ("second", calls));
    agent.end().await;

    // The machine loses power; the master is away.
    machine.reboot();
    let mut agent = machine.agent();
    agent.until("running", |agent| agent.is_running(&one)).await;
    assert_eq!(shown(), "first", "a refresh is not worth a write");
    give(&agent, "third");
    agent.rest().await;
    assert_eq!(shown(), "third");
    agent.end().await;
    volumes::tear_down(&dirs).unwrap();
}

#[tokio::test(start_paused = true)]
async fn static_pods_run_without_a_set_and_no_set_stops_them() {
    let machine = Machine::new();
    let (own, other) = (named("own", 1), named("other", 2));
    let item = |pod: &PodV1| ItemV1 {
        uid: pod.uid,
        generation: 1,
        body: BodyV1::Pod(Box::new(pod.clone())),
    };
    let manifests = |items| Arc::new(Manifests { items, ..Manifests::default() });
    machine.manifests.send_replace(manifests(vec![item(&own)]));
    let mut agent = machine.agent();
    agent.until("running", |agent| agent.is_running(&own)).await;
    agent.send(5, &[(3, &other)]);
    agent.until("both running", |agent| agent.is_running(&other)).await;
    agent.send(6, &[]);
    agent.until("one left", |agent| agent.running == Some(vec![(own.uid, 1)])).await;
    agent.end().await;
    let calls = machine.runtime.calls();

    let mut agent = machine.agent();
    agent.until("speaking", |agent| agent.running == Some(vec![(own.uid, 1)])).await;
    agent.rest().await;
    assert_eq!(machine.runtime.calls(), calls, "a restarted agent touches nothing");
    machine.manifests.send_replace(manifests(vec![]));
    agent.until("gone with its file", |agent| agent.running == Some(vec![])).await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_its_set_an_agent_leaves_everything_running() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let (one, two) = (named("one", 1), named("two", 2));
    agent.send(5, &[(3, &one), (3, &two)]);
    agent.until("running", |agent| agent.is_running(&one) && agent.is_running(&two)).await;
    agent.end().await;
    let calls = machine.runtime.calls();

    let path = machine.folders.set();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut agent = machine.agent();
    agent.until("speaking", |agent| agent.running.as_ref().is_some_and(|all| all.len() == 2)).await;
    agent.rest().await;
    assert_eq!(machine.runtime.calls(), calls);
    // The master sends it again; one pod has gone meanwhile.
    agent.send(6, &[(3, &one)]);
    agent.until("gone", |agent| agent.running == Some(vec![(one.uid, 3)])).await;
    let new: Vec<String> = machine.runtime.calls()[calls.len()..].to_vec();
    assert!(new.iter().all(|call| call.contains(&id::container_id(&two.uid, "a", 0))), "{new:?}");
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_reported_terminated_and_leaves_nothing() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let mut one = named("one", 1);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    one.deletion_grace_s = Some(7);
    agent.send(6, &[(4, &one)]);
    agent.until("terminated", |agent| agent.statuses[&one.uid].terminated).await;
    assert!(agent.events.iter().any(|event| event.reason == "Killing"));
    assert_eq!(agent.statuses[&one.uid].phase, PhaseV1::Failed);
    agent.send(7, &[]);
    agent.until("gone", |agent| agent.running == Some(vec![])).await;
    assert_eq!(machine.runtime.specs().len(), 0);
    for below in ["pods", "logs"] {
        assert!(is_empty(&machine.folders.state.join(below)), "{below}");
    }
    assert!(is_empty(&machine.folders.run.join("pods")));
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_pods_come_back_and_finished_ones_do_not() {
    let mut machine = Machine::new();
    let mut agent = machine.agent();
    let mut job = named("job", 1);
    job.restart_policy = RestartPolicyV1::Never;
    let service = named("service", 2);
    agent.send(5, &[(3, &job), (3, &service)]);
    agent.until("running", |agent| agent.is_running(&job) && agent.is_running(&service)).await;
    machine.runtime.exit(&id::container_id(&job.uid, "a", 0), 0);
    agent.until("over", |agent| agent.statuses[&job.uid].terminated).await;
    agent.end().await;
    // A shim would have made it.
    let log = crate::logs::path(&machine.hooks().dirs(&service).logs, "a", 0);
    std::fs::write(log, "").unwrap();

    machine.reboot();
    // No master: the set on disk is all there is.
    let mut agent = machine.agent();
    agent.until("running", |agent| agent.is_running(&service)).await;
    agent.rest().await;
    assert_eq!(machine.starts(), 1);
    let status = &agent.statuses[&job.uid];
    assert_eq!((status.phase, status.terminated), (PhaseV1::Succeeded, true));
    let StateV1::Terminated(end) = &status.containers[0].state else { panic!("{status:?}") };
    assert_eq!((end.exit_code, end.reason.as_str()), (0, "Completed"));
    assert_eq!(agent.statuses[&service.uid].containers[0].restarts, 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_over_restarts_of_the_agent() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let one = named("one", 1);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    machine.runtime.exit(&id::container_id(&one.uid, "a", 0), 1);
    agent.until("restarted", |agent| agent.statuses[&one.uid].containers[0].restarts == 1).await;
    machine.runtime.exit(&id::container_id(&one.uid, "a", 1), 1);
    let waits = |agent: &Agent| {
        matches!(&agent.statuses[&one.uid].containers[0].state,
            StateV1::Waiting { reason, .. } if reason == "CrashLoopBackOff")
    };
    agent.until("waiting", waits).await;
    let start = tokio::time::Instant::now();
    agent.until("restarted", |agent| agent.statuses[&one.uid].containers[0].restarts == 2).await;
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(9) && waited <= Duration::from_secs(11), "{waited:?}");
    machine.runtime.exit(&id::container_id(&one.uid, "a", 2), 1);
    agent.until("waiting", waits).await;
    agent.end().await;
    let starts = machine.starts();
    let mut agent = machine.agent();
    agent.until("waiting", |agent| agent.statuses.contains_key(&one.uid) && waits(agent)).await;
    assert_eq!(machine.starts(), starts, "a new agent goes on waiting");
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_state_is_lost_is_taken_over_from_its_containers() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let one = named("one", 1);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    agent.end().await;
    for spec in machine.runtime.specs() {
        let dir = machine.folders.run.join("containers").join(&spec.id);
        ContainerDir::new(dir).create(&spec).unwrap();
    }
    let state = machine.hooks().dirs(&one).run.join("state");
    std::fs::write(state, "damaged").unwrap();
    let starts = machine.starts();

    let mut agent = machine.agent();
    agent.until("running", |agent| agent.is_running(&one)).await;
    agent.rest().await;
    assert_eq!(machine.starts(), starts);
    assert_eq!(agent.statuses[&one.uid].containers[0].restarts, 0);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_no_pod_is_cleared_away() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let (one, stray) = (named("one", 1), named("stray", 2));
    agent.send(5, &[(3, &one), (3, &stray)]);
    agent.until("running", |agent| agent.is_running(&one) && agent.is_running(&stray)).await;
    agent.end().await;
    for spec in machine.runtime.specs() {
        let dir = machine.folders.run.join("containers").join(&spec.id);
        ContainerDir::new(dir).create(&spec).unwrap();
    }
    let hooks = machine.hooks();
    let network = Network::new(&machine.folders.tag());
    recover::clear_strays(&hooks, &network, &[one.uid]).await;
    let left: Vec<String> = machine.runtime.specs().into_iter().map(|spec| spec.pod).collect();
    assert_eq!(left, ["one"]);
    for base in [&machine.folders.run, &machine.folders.state] {
        let pods = base.join("pods");
        assert!(!pods.join(id::uid_text(&stray.uid)).exists());
    }
    assert!(hooks.dirs(&one).run.join("state").exists());
    assert!(!hooks.dirs(&stray).logs.exists() && hooks.dirs(&one).logs.exists());
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_keeps_the_set_unacknowledged_and_the_pods_running() {
    let machine = Machine::new();
    // Stands in for a disk that takes no write.
    std::fs::create_dir(machine.folders.set().with_extension("tmp")).unwrap();
    let mut agent = machine.agent();
    let one = named("one", 1);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    assert!(agent.applied.is_empty());
    std::fs::remove_dir(machine.folders.set().with_extension("tmp")).unwrap();
    agent.until("applied", |agent| agent.applied == [5]).await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_is_reported_and_tried_again() {
    let machine = Machine::new();
    *machine.images.error.lock().unwrap() = Some(ImageError::pull("no such tag"));
    let mut agent = machine.agent();
    let one = named("one", 1);
    agent.send(5, &[(3, &one)]);
    let waits = |agent: &Agent, word: &str| {
        agent.statuses.get(&one.uid).is_some_and(|status| {
            matches!(&status.containers[0].state,
                StateV1::Waiting { reason, .. } if reason == word)
        })
    };
    agent.until("failed", |agent| waits(agent, "ErrImagePull")).await;
    agent.until("backing off", |agent| waits(agent, "ImagePullBackOff")).await;
    *machine.images.error.lock().unwrap() = None;
    agent.until("running", |agent| agent.is_running(&one)).await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_fails_says_why_and_never_runs_again() {
    let mut machine = Machine::new();
    let mut agent = machine.agent();
    let (one, other) = (named("one", 1), named("other", 2));
    agent.send(5, &[(3, &one), (3, &other)]);
    agent.until("running", |agent| agent.is_running(&one) && agent.is_running(&other)).await;
    machine.runtime.on_signal("a", runtime::fake::OnSignal::Exit(0));
    let eviction = super::Eviction {
        reason: "Evicted".into(),
        message: "The node was low on resource: memory.".into(),
        grace_max_s: 1,
    };
    agent.evictor.send((one.uid, eviction.clone())).await.unwrap();
    // Twice, as a decision is that was not carried out yet; and of a pod that is not there.
    agent.evictor.send((one.uid, eviction.clone())).await.unwrap();
    agent.evictor.send(([9; 16], eviction)).await.unwrap();
    agent.until("terminated", |agent| agent.statuses[&one.uid].terminated).await;
    // Also after a newer set, a restart of the agent, and a power cut.
    agent.send(6, &[(3, &one), (3, &other)]);
    agent.rest().await;
    assert_eq!(agent.events.iter().filter(|event| event.reason == "Evicted").count(), 1);
    for reboots in [false, true] {
        agent.end().await;
        if reboots {
            machine.reboot();
        }
        agent = machine.agent();
        agent.until("known", |agent| agent.is_running(&other)).await;
        agent.until("known", |agent| agent.statuses.contains_key(&one.uid)).await;
        agent.rest().await;
        let status = &agent.statuses[&one.uid];
        // Its only container ended with 0: evicted is failed nevertheless.
        assert_eq!((status.phase, status.reason.as_str()), (PhaseV1::Failed, "Evicted"));
        assert!(status.message.contains("low on resource"), "{status:?}");
        assert!(!machine.runtime.specs().iter().any(|spec| spec.pod == "one"));
    }
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn commands_are_asked_and_told_through_the_runtime() {
    let machine = Machine::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (log, sick) = (Arc::clone(&heard), Arc::new(AtomicU8::new(0)));
    let is_sick = Arc::clone(&sick);
    machine.runtime.on_exec(move |request| {
        log.lock().unwrap().push(request.args.join(" "));
        let fails = request.args[0] == "well?" && is_sick.load(Ordering::Relaxed) == 1;
        let stdout = if fails { b"not well".to_vec() } else { vec![] };
        FakeExec { stdout, ..FakeExec::exit(i32::from(fails)) }
    });
    let mut agent = machine.agent();
    let command = |word: &str| HandlerV1::Exec(vec![word.to_owned()]);
    let mut one = named("one", 1);
    let a = &mut one.containers[0];
    a.lifecycle.post_start = Some(command("hello"));
    a.lifecycle.pre_stop = Some(command("bye"));
    a.probes.liveness = Some(ProbeV1 { handler: command("well?"), ..super::probe_tests::probe() });
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    agent.rest().await;
    assert_eq!(*heard.lock().unwrap(), ["hello", "well?"]);
    assert!(agent.statuses[&one.uid].containers[0].ready);

    sick.store(1, Ordering::Relaxed);
    agent.until("restarted", |agent| agent.statuses[&one.uid].containers[0].restarts == 1).await;
    let events: Vec<&str> = agent.events.iter().map(|event| event.message.as_str()).collect();
    assert!(events.contains(&"Liveness probe failed: not well"), "{events:?}");
    assert!(events.contains(&"Container a failed liveness probe, will be restarted"), "{events:?}");
    let heard = heard.lock().unwrap().clone();
    assert!(heard.iter().any(|word| word == "bye"), "before the stop: {heard:?}");
    assert_eq!(heard.iter().filter(|word| *word == "hello").count(), 2, "{heard:?}");
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_leaves_its_last_words_in_a_file_or_in_its_log() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let mut one = named("one", 1);
    one.restart_policy = RestartPolicyV1::Never;
    let mut logs = container("logs");
    logs.termination_message.or_logs = true;
    one.containers.push(logs);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    for spec in machine.runtime.specs() {
        let mount = spec.mounts.iter().find(|m| m.destination == "/dev/termination-log").unwrap();
        assert!(!mount.read_only);
        if spec.container == "a" {
            std::fs::write(&mount.source, "goodbye").unwrap();
        }
        std::fs::write(&spec.log, "2026-01-01T00:00:00Z stdout F all\n2026-01-01T00:00:00Z stderr P lo\n2026-01-01T00:00:00Z stderr F st\n").unwrap();
        machine.runtime.exit(&spec.id, 1);
    }
    agent.until("over", |agent| agent.statuses[&one.uid].terminated).await;
    let words: Vec<String> = agent.statuses[&one.uid]
        .containers
        .iter()
        .map(|c| match &c.state {
            StateV1::Terminated(end) => end.message.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(words, ["goodbye", "all\nlost\n"]);
    agent.end().await;
    assert!(is_empty(&machine.folders.state.join("pods")), "the files went with the pod");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_goes_on_after_a_power_cut() {
    let mut machine = Machine::new();
    let mut agent = machine.agent();
    let mut one = named("one", 1);
    one.active_deadline_s = Some(1000);
    agent.send(5, &[(3, &one)]);
    agent.until("running", |agent| agent.is_running(&one)).await;
    tokio::time::sleep(Duration::from_secs(700)).await;
    agent.rest().await;
    agent.end().await;
    machine.reboot();
    let mut agent = machine.agent();
    let start = tokio::time::Instant::now();
    agent
        .until("failed", |agent| {
            agent.statuses.get(&one.uid).is_some_and(|status| status.reason == "DeadlineExceeded")
        })
        .await;
    let left = start.elapsed().as_secs();
    assert!((200..300).contains(&left), "{left} s");
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_restarted_while_a_pod_initializes_runs_nothing_twice() {
    let machine = Machine::new();
    let mut agent = machine.agent();
    let mut one = named("one", 1);
    one.init_containers = vec![container("first"), container("second")];
    let starts = || machine.runtime.calls().into_iter().filter(|c| c.starts_with("start")).count();
    agent.send(5, &[(3, &one)]);
    for (init, n_starts) in [("first", 1), ("second", 2)] {
        agent
            .until("initializing", |agent| {
                let status = agent.statuses.get(&one.uid);
                let all = status.into_iter().flat_map(|status| &status.init_containers);
                all.into_iter()
                    .any(|c| c.name == init && matches!(c.state, StateV1::Running { .. }))
            })
            .await;
        agent.end().await;
        assert_eq!(starts(), n_starts);
        machine.runtime.exit(&id::container_id(&one.uid, init, 0), 0);
        agent = machine.agent();
    }
    agent
        .until("running", |agent| agent.statuses.contains_key(&one.uid) && agent.is_running(&one))
        .await;
    agent.rest().await;
    assert_eq!(starts(), 3);
    agent.end().await;
}
