//! The life of a pod on the real runtime: owner, workers, hooks, shims and
//! containers, with an image and a network of the test's own. Needs root and a
//! static busybox (`scripts/setup`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edge_agent::clock::Clock;
use edge_agent::config::{Folders, Locks};
use edge_agent::env::{Facts, ImageConfig};
use edge_agent::hooks::Hooks;
use edge_agent::images::{ImageContent, ImageError, ImageRequest, Images, Progress, ReadyImage};
use edge_agent::network::{NamespacePaths, NetworkError};
use edge_agent::pods::owner::{News, Owner};
use edge_agent::results::Results;
use edge_agent::sandbox::PodNetwork;
use edge_agent::seal::Seal;
use edge_agent::{recover, volumes};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use runtime::{BoxFuture, ShimCommand, ShimRuntime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::Uid;
use wire::pod::{
    ContainerV1, HandlerV1, MountV1, PodV1, ProbeV1, RestartPolicyV1, VolumeSourceV1, VolumeV1,
};
use wire::set::{BodyV1, ItemV1, SnapshotV1};
use wire::status::{PhaseV1, PodStatusV1, StateV1};

/// How long anything may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// One image: busybox.
struct Busybox {
    layer: PathBuf,
}

impl Images for Busybox {
    fn get<'a>(
        &'a self,
        _: ImageRequest,
        _: Progress<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>> {
        let content = ImageContent::Oci { layers: vec![self.layer.clone()] };
        let config = ImageConfig { stop_signal: Some(10), ..ImageConfig::default() };
        Box::pin(async { Ok(ReadyImage { id: "sha256:aa".into(), content, config }) })
    }
}

/// Pods that have the host's namespaces and the address 127.0.0.1.
struct HostNetwork;

impl PodNetwork for HostNetwork {
    fn attach<'a>(
        &'a self,
        _: &'a Uid,
        paths: &'a NamespacePaths,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Ipv4Addr, NetworkError>> {
        for (name, path) in [("net", &paths.net), ("ipc", &paths.ipc), ("uts", &paths.uts)] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
            let own = PathBuf::from(format!("/proc/self/ns/{name}"));
            mount(Some(&own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
        Box::pin(async { Ok(Ipv4Addr::LOCALHOST) })
    }

    fn detach<'a>(
        &'a self,
        _: &'a Uid,
        paths: &'a NamespacePaths,
    ) -> BoxFuture<'a, Result<(), NetworkError>> {
        for path in [&paths.net, &paths.ipc, &paths.uts] {
            let _ = umount2(path.as_path(), MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        }
        Box::pin(async { Ok(()) })
    }
}

struct Board {
    _folder: tempfile::TempDir,
    folders: Folders,
    _locks: Locks,
    layer: PathBuf,
}

impl Board {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer");
        for below in ["bin", "tmp", "v", "dev", "proc", "sys", "etc"] {
            fs::create_dir_all(layer.join(below)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"];
        let busybox = busybox.iter().find(|path| Path::new(path).exists()).unwrap();
        fs::copy(busybox, layer.join("bin/busybox")).unwrap();
        for name in ["sh", "cat", "sleep", "touch", "rm"] {
            symlink("busybox", layer.join("bin").join(name)).unwrap();
        }
        let (folders, locks) =
            Folders::open(&folder.path().join("state"), &folder.path().join("run")).unwrap();
        Self { _folder: folder, folders, _locks: locks, layer }
    }

    fn agent(&self, set: &SnapshotV1) -> Agent {
        recover::check_boot(&self.folders).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_pinnace-agent"));
        let command = ShimCommand { program, ..ShimCommand::default() };
        let runtime = ShimRuntime::open(&self.folders.run, command).unwrap();
        let hooks = Arc::new(Hooks::new(
            self.folders.clone(),
            Arc::new(runtime),
            Arc::new(Busybox { layer: self.layer.clone() }),
            Arc::new(HostNetwork),
            Results::open(&self.folders.state.join("results")).unwrap(),
            Arc::new(Seal::open(&self.folders.state, None).unwrap()),
            Facts::default(),
        ));
        let found = recover::find(&hooks, Some(set), BTreeMap::new(), Clock::System.now());
        let (sender, news) = mpsc::channel(1000);
        let set = Some(Arc::new(set.clone()));
        let (sets, receiver) = watch::channel(set.clone());
        let stop = CancellationToken::new();
        let (owner, _) = Owner::new(hooks, Clock::System, set, sender, Box::new(|_| {}));
        let manifests = watch::channel(Arc::default()).1;
        tokio::spawn(owner.run(found, receiver, manifests, stop.clone()));
        Agent { news, sets, stop, statuses: BTreeMap::new(), events: vec![] }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = volumes::unmount_below(&self.folders.run);
    }
}

struct Agent {
    news: mpsc::Receiver<News>,
    sets: watch::Sender<Option<Arc<SnapshotV1>>>,
    stop: CancellationToken,
    statuses: BTreeMap<Uid, PodStatusV1>,
    events: Vec<String>,
}

impl Agent {
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let listen = async {
            while !is_so(self) {
                match self.news.recv().await.unwrap() {
                    News::Statuses(all) => {
                        self.statuses.extend(all.into_iter().map(|status| (status.uid, status)));
                    }
                    News::Event(event) => self.events.push(event.message),
                    _ => {}
                }
            }
        };
        if tokio::time::timeout(PATIENCE, listen).await.is_err() {
            panic!("not {what}: {:#?} {:?}", self.statuses, self.events);
        }
    }

    fn pod(&self) -> Option<&PodStatusV1> {
        self.statuses.values().next()
    }

    fn main(&self) -> Option<&wire::status::ContainerStatusV1> {
        self.pod()?.containers.first()
    }

    /// Lets the pod go, and waits until nothing of it is left.
    async fn clear(mut self) {
        self.sets.send_replace(Some(Arc::new(set(2, &[]))));
        let gone = async {
            while !matches!(self.news.recv().await.unwrap(), News::Running(all) if all.is_empty()) {
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        self.stop.cancel();
    }
}

fn set(revision: u64, pods: &[&PodV1]) -> SnapshotV1 {
    let item = |pod: &&PodV1| ItemV1 {
        uid: pod.uid,
        generation: revision,
        body: BodyV1::Pod(Box::new((*pod).clone())),
    };
    SnapshotV1 { epoch: 1, revision, items: pods.iter().map(item).collect() }
}

fn shell(name: &str, script: &str) -> ContainerV1 {
    ContainerV1 {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        mounts: vec![MountV1::new("v", "/v")],
        ..ContainerV1::new(name, "busybox")
    }
}

fn command(script: &str) -> HandlerV1 {
    HandlerV1::Exec(vec!["/bin/sh".into(), "-c".into(), script.into()])
}

fn every_second(script: &str, failure_threshold: u32) -> ProbeV1 {
    ProbeV1 {
        handler: command(script),
        initial_delay_s: 0,
        timeout_s: 20,
        period_s: 1,
        success_threshold: 1,
        failure_threshold,
        termination_grace_s: None,
    }
}

fn pod(init: Vec<ContainerV1>, main: ContainerV1) -> PodV1 {
    let source = VolumeSourceV1::EmptyDir { memory: false, limit_bytes: 0 };
    PodV1 {
        init_containers: init,
        containers: vec![main],
        volumes: vec![VolumeV1 { name: "v".into(), source }],
        termination_grace_s: 20,
        ..PodV1::new(*uuid::Uuid::new_v4().as_bytes(), "default", "live")
    }
}

/// Runs until it is told to stop, by the image's signal, after `first`.
fn serve(first: &str, last: &str) -> String {
    format!("trap '{last}; exit 0' USR1\n{first}\nwhile true; do sleep 0.1; done")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_pod_comes_and_goes_in_its_order() {
    let board = Board::new();
    let mut proxy = shell(
        "proxy",
        &serve("echo proxy >>/v/order; touch /v/up", "cat /v/order >/dev/termination-log"),
    );
    proxy.restart_policy = Some(RestartPolicyV1::Always);
    proxy.probes.startup = Some(every_second("test -e /v/up", 60));
    let setup = shell("setup", "echo setup >>/v/order; until test -e /v/go; do sleep 0.05; done");
    let mut main = shell("main", "until test -e /v/end; do sleep 0.05; done; echo main >>/v/order");
    main.lifecycle.post_start = Some(command("echo hook >>/v/order"));
    let mut pod = pod(vec![proxy, setup], main);
    pod.restart_policy = RestartPolicyV1::Never;
    let wanted = set(1, &[&pod]);
    let mut agent = board.agent(&wanted);
    let initializes = |agent: &Agent| {
        let status = agent.pod();
        status.is_some_and(|pod| matches!(pod.init_containers[1].state, StateV1::Running { .. }))
    };
    agent.until("initializing", initializes).await;
    assert_eq!(agent.pod().unwrap().phase, PhaseV1::Pending);
    assert!(agent.pod().unwrap().init_containers[0].started);

    // Another agent takes over; nothing runs twice.
    agent.stop.cancel();
    drop(agent);
    let mut agent = board.agent(&wanted);
    agent.until("initializing still", initializes).await;
    let v = board.folders.state.join("pods").join(uuid::Uuid::from_bytes(pod.uid).to_string());
    let v = v.join("volumes/v");
    fs::write(v.join("go"), "").unwrap();
    agent.until("ready", |agent| agent.main().is_some_and(|main| main.ready)).await;
    assert_eq!(agent.pod().unwrap().phase, PhaseV1::Running);
    fs::write(v.join("end"), "").unwrap();
    agent.until("over", |agent| agent.pod().is_some_and(|pod| pod.terminated)).await;
    let over = agent.pod().unwrap();
    assert_eq!(over.phase, PhaseV1::Succeeded);
    let StateV1::Terminated(end) = &over.init_containers[0].state else { panic!("{over:?}") };
    // The image's own signal reached it, and it saw everything before it went.
    assert_eq!((end.exit_code, end.message.as_str()), (0, "proxy\nsetup\nhook\nmain\n"));
    agent.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_makes_unready_or_restarts() {
    let board = Board::new();
    let mut main = shell("main", &serve("rm -f /v/sick", "true"));
    main.probes.liveness = Some(every_second("! test -e /v/sick", 1));
    main.probes.readiness = Some(every_second("test -e /v/ready || { echo not yet; false; }", 1));
    main.lifecycle.pre_stop = Some(command("echo bye >>/v/hooks"));
    let pod = pod(vec![], main);
    let mut agent = board.agent(&set(1, &[&pod]));
    agent.until("up", |agent| agent.main().is_some_and(|main| main.started)).await;
    agent
        .until("asked", |agent| {
            agent.events.iter().any(|event| event == "Readiness probe failed: not yet\n")
        })
        .await;
    assert!(!agent.main().unwrap().ready);
    let v = board.folders.state.join("pods").join(uuid::Uuid::from_bytes(pod.uid).to_string());
    let v = v.join("volumes/v");
    fs::write(v.join("ready"), "").unwrap();
    agent.until("ready", |agent| agent.main().unwrap().ready).await;
    fs::write(v.join("sick"), "").unwrap();
    agent.until("restarted", |agent| agent.main().unwrap().restarts == 1).await;
    agent.until("ready again", |agent| agent.main().unwrap().ready).await;
    assert_eq!(fs::read_to_string(v.join("hooks")).unwrap(), "bye\n");
    let killing = "Container main failed liveness probe, will be restarted";
    assert!(agent.events.iter().any(|event| event == killing), "{:?}", agent.events);
    agent.clear().await;
}
