//! The agent's side of the data plane: keeps the proxy running, and tells it what
//! it is to do.
//!
//! ```text
//!  set, pods, static pods ──► table (pure) ──► proxy (a process of its own)
//!                     Network, findings ◄── status ──┘
//! ```
//!
//! The proxy outlives the agent, as pods do. One that is another program than
//! this agent is replaced: the new one takes over what the old one holds. With
//! the last pod and the agent gone, it is told to leave, and leaves nothing.

pub mod process;
pub mod table;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proxy::control::{self, Conflict, FromProxy, Status, ToProxy};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::set::{BodyV1, SnapshotV1};
use wire::status::{EventV1, PhaseV1, PodStatusV1};

use self::table::{Own, OwnPod, table};
use crate::manifests::Manifests;
use crate::network::Network;
use crate::pods::owner::Board;

/// Where other nodes reach this one, if nothing else is said.
pub const TUNNEL_PORT: u16 = 7443;
/// How long changes are gathered before the proxy is told.
const GATHER: Duration = Duration::from_millis(5);
/// Pause between two tries to reach the proxy, doubled to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Pause before it is looked whether a successor answers yet.
const REPLACE_PAUSE: Duration = Duration::from_millis(20);
/// After this time without an answer another one is started.
const START_WAIT: Duration = Duration::from_secs(5);
/// How long it may take to leave.
const LEAVE_WAIT: Duration = Duration::from_secs(3);
/// How often the node's own name servers are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What waits for the proxy, at most.
const REQUESTS_MAX: usize = 64;

/// What the table is made from.
#[derive(Debug)]
pub struct Inputs {
    /// The set that the agent started with.
    pub first: Option<Arc<SnapshotV1>>,
    /// Those that follow.
    pub sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
    /// How the pods are.
    pub board: Board,
    /// The static pods.
    pub manifests: watch::Receiver<Arc<Manifests>>,
    /// The node's own addresses.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
}

impl Inputs {
    async fn changed(&mut self) {
        // The senders end with the agent.
        tokio::select! {
            Ok(()) = self.sets.changed() => {}
            Ok(()) = self.board.changed() => {}
            Ok(()) = self.manifests.changed() => {}
            Ok(()) = self.addresses.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// How the proxy is started and spoken with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// The agent's folders, for the proxy's command line.
    pub state_dir: PathBuf,
    /// As `state_dir`.
    pub run_dir: PathBuf,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Where other nodes reach this one.
    pub tunnel_port: u16,
}

/// The proxy as the agent knows it.
#[derive(Clone, Debug)]
pub struct Handle {
    /// How it is; `None` until it has said so.
    pub status: watch::Receiver<Option<Status>>,
    /// For what is neither a table nor a goodbye.
    pub requests: mpsc::Sender<ToProxy>,
}

/// Makes the task that keeps the proxy; it runs while its future is polled.
pub fn keep(
    settings: Settings,
    inputs: Inputs,
    network: Arc<Network>,
    stop: CancellationToken,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (status_to, status) = watch::channel(None);
    let (requests, wanted) = mpsc::channel(REQUESTS_MAX);
    let keeper = Keeper {
        settings,
        inputs,
        network,
        status: status_to,
        requests: wanted,
        generation: 0,
        last: None,
        started: None,
        stop,
    };
    (Handle { status, requests }, keeper.run())
}

struct Keeper {
    settings: Settings,
    inputs: Inputs,
    network: Arc<Network>,
    status: watch::Sender<Option<Status>>,
    requests: mpsc::Receiver<ToProxy>,
    generation: u64,
    last: Option<proxy::table::Table>,
    /// When one was last started.
    started: Option<tokio::time::Instant>,
    stop: CancellationToken,
}

/// Why a connection with the proxy ended.
enum End {
    /// It is gone, or never was.
    Gone,
    /// It is another program.
    Old,
    /// The agent stops.
    Stop,
}

impl Keeper {
    async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            self.make_table();
            if self.last.is_some() {
                break;
            }
            // No network, no data plane; and nothing waits for one.
            self.network.set_capture(Some(control::Capture::None)).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.inputs.changed() => {}
            }
        }
        let mut replace = false;
        loop {
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = self.connect(replace) => connected,
            };
            replace = match self.serve(connected).await {
                End::Gone => false,
                End::Old => true,
                End::Stop => return,
            };
        }
    }

    /// Connects to the proxy; starts one where there is none, or `replace` asks for it.
    async fn connect(&mut self, replace: bool) -> UnixStream {
        let socket = self.settings.run_dir.join(proxy::SOCKET);
        let mut wait = RETRY_FIRST;
        let mut must_start = replace;
        loop {
            if !must_start && let Ok(stream) = UnixStream::connect(&socket).await {
                return stream;
            }
            // Between the old one and the new one nobody answers, before that the old
            // one does; one successor is enough.
            let is_on_its_way = self.started.is_some_and(|at| at.elapsed() < START_WAIT);
            if is_on_its_way {
                tokio::time::sleep(if must_start { REPLACE_PAUSE } else { wait }).await;
            } else {
                self.started = Some(tokio::time::Instant::now());
                if let Err(error) = self.start() {
                    tracing::error!(%error, "cannot start the proxy; it is tried again");
                }
                tokio::time::sleep(wait).await;
            }
            must_start = false;
            wait = RETRY_MAX.min(wait * 2);
        }
    }

    /// Starts the proxy: this program anew, in a session of its own.
    fn start(&self) -> io::Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("pinnace-agent")
            .arg("proxy")
            .arg("--state-dir")
            .arg(&self.settings.state_dir)
            .arg("--run-dir")
            .arg(&self.settings.run_dir)
            .arg("--tunnel-port")
            .arg(self.settings.tunnel_port.to_string())
            .args(&self.settings.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // What stops the agent's group leaves the proxy alone.
            .process_group(0);
        let mut child = command.spawn()?;
        // Somebody has to take its exit status while the agent lives.
        std::thread::Builder::new().name("proxy-exit".to_owned()).stack_size(64 << 10).spawn(
            move || {
                if let Ok(status) = child.wait() {
                    tracing::info!(%status, "the proxy ended");
                }
            },
        )?;
        Ok(())
    }

    /// Tells the proxy what it is to do, and hears how it is, until it is gone.
    async fn serve(&mut self, stream: UnixStream) -> End {
        let (reader, mut writer) = stream.into_split();
        let (statuses_to, mut statuses) = mpsc::channel(1);
        let reading = tokio::spawn(read_statuses(reader, statuses_to));
        let _stop_reading = Abort(reading);
        let (stop, mut told) = (self.stop.clone(), 0);
        let version = version();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut is_old = false;
        loop {
            if is_old && !self.is_draining() {
                return End::Old;
            }
            if told != self.generation
                && let Some(table) = self.last.clone()
            {
                told = self.generation;
                if control::write(&mut writer, &ToProxy::Table(Box::new(table))).await.is_err() {
                    return End::Gone;
                }
            }
            let request = tokio::select! {
                () = stop.cancelled() => {
                    if self.network.is_unused() {
                        let _ = control::write(&mut writer, &ToProxy::Leave).await;
                        let gone = async { while statuses.recv().await.is_some() {} };
                        let _ = tokio::time::timeout(LEAVE_WAIT, gone).await;
                    }
                    return End::Stop;
                }
                status = statuses.recv() => {
                    let Some(status) = status else { return End::Gone };
                    if status.version != version && !is_old {
                        is_old = true;
                        tracing::info!(old = status.version, "the proxy is to be replaced");
                        // The new one says how it is.
                        if !self.is_draining() {
                            return End::Old;
                        }
                    }
                    self.hear(status).await;
                    continue;
                }
                _ = look.tick() => None,
                () = self.inputs.changed() => {
                    tokio::time::sleep(GATHER).await;
                    None
                }
                Some(request) = self.requests.recv() => Some(request),
            };
            match request {
                Some(request) => {
                    if control::write(&mut writer, &request).await.is_err() {
                        return End::Gone;
                    }
                }
                None => self.make_table(),
            }
        }
    }

    /// Whether one that was replaced still carries connections: the next one waits.
    fn is_draining(&self) -> bool {
        proxy::is_draining(&self.settings.run_dir).unwrap_or(false)
    }

    async fn hear(&self, status: Status) {
        // A proxy that has no table yet says nothing of how traffic gets to it.
        if status.generation != 0 {
            self.network.set_capture(Some(status.capture)).await;
        }
        self.status.send_replace(Some(status));
    }

    /// Makes the table anew; a new generation where it is another one.
    fn make_table(&mut self) {
        let set = self.inputs.sets.borrow_and_update().clone();
        let Some(set) = set.or_else(|| self.inputs.first.clone()) else { return };
        let manifests = Arc::clone(&self.inputs.manifests.borrow_and_update());
        let pods = own_pods(&set, &manifests, &self.inputs.board.borrow_and_update());
        let own = Own {
            name: self.settings.node.clone(),
            addresses: self.inputs.addresses.borrow_and_update().clone(),
            upstreams: crate::sandbox::upstreams(),
            tunnel_port: self.settings.tunnel_port,
        };
        let Some(mut made) = table(&set, &own, &pods) else { return };
        made.generation = self.generation;
        if self.last.as_ref() == Some(&made) {
            return;
        }
        self.generation += 1;
        made.generation = self.generation;
        self.last = Some(made);
    }
}

/// The pods of this node as they are now.
fn own_pods(
    set: &SnapshotV1,
    manifests: &Manifests,
    board: &BTreeMap<wire::Uid, PodStatusV1>,
) -> Vec<OwnPod> {
    let items = set.items.iter().chain(&manifests.items);
    let pods = items.filter_map(|item| match &item.body {
        BodyV1::Pod(pod) => Some(pod),
        _ => None,
    });
    pods.filter_map(|pod| {
        let status = board.get(&pod.uid)?;
        let address: Option<IpAddr> = status.pod_ip.parse().ok();
        let has_ended = matches!(status.phase, PhaseV1::Succeeded | PhaseV1::Failed);
        let is_sidecar = |name: &str| {
            pod.init_containers.iter().any(|one| one.name == name && one.restart_policy.is_some())
        };
        let sidecars = status.init_containers.iter().filter(|one| is_sidecar(&one.name));
        Some(OwnPod {
            pod: Arc::new((**pod).clone()),
            addresses: address.into_iter().collect(),
            is_ready: status.phase == PhaseV1::Running
                && status.containers.iter().chain(sidecars).all(|one| one.ready),
            is_over: has_ended || status.terminated || address.is_none(),
        })
    })
    .collect()
}

async fn read_statuses(mut reader: OwnedReadHalf, statuses: mpsc::Sender<Status>) {
    loop {
        match control::read(&mut reader).await {
            Ok(Some(FromProxy::Status(status))) => {
                if statuses.send(status).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            // It ended before it had read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => {
                tracing::warn!(%error, "the proxy says what makes no sense");
                return;
            }
        }
    }
}

/// Ends a task with what owns it.
struct Abort(tokio::task::JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the operator should know, as conditions of the Node.
#[must_use]
pub fn findings(status: &Status) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if !status.degraded.is_empty() {
        found.push(("DataPlaneDegraded".to_owned(), status.degraded.clone()));
    }
    if !status.conflicts.is_empty() {
        let all: Vec<&str> = status.conflicts.iter().map(|one| one.message.as_str()).collect();
        found.push(("PortConflict".to_owned(), all.join("; ")));
    }
    found
}

/// What users are told of ports that a Service cannot have on this node: those
/// conflicts that are not among `told`. `at_ms` is now.
#[must_use]
pub fn conflict_events(
    node: &str,
    at_ms: u64,
    status: &Status,
    told: &[Conflict],
    set: Option<&SnapshotV1>,
) -> Vec<EventV1> {
    let items = || set.into_iter().flat_map(|set| &set.items);
    let uid = |conflict: &Conflict| {
        items().find_map(|item| match &item.body {
            BodyV1::Service(service)
                if service.namespace == conflict.namespace && service.name == conflict.service =>
            {
                Some(item.uid)
            }
            _ => None,
        })
    };
    let new = status.conflicts.iter().filter(|conflict| !told.contains(conflict));
    new.filter_map(|conflict| {
        Some(EventV1 {
            uid: uid(conflict)?,
            namespace: conflict.namespace.clone(),
            name: conflict.service.clone(),
            container: String::new(),
            warning: true,
            reason: "PortConflict".to_owned(),
            message: format!("node {node}: {}", conflict.message),
            at_ms,
        })
    })
    .collect()
}

/// Which program this is: its version, and when its file was made.
#[must_use]
pub fn version() -> String {
    let made = std::fs::metadata(Path::new("/proc/self/exe")).and_then(|file| file.modified());
    let made = made.ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{}+{:x}", env!("CARGO_PKG_VERSION"), made.as_nanos())
}

#[cfg(test)]
mod tests {
    use wire::pod::PodV1;
    use wire::set::ItemV1;
    use wire::status::PodStatusV1;

    use super::*;

    #[test]
    fn a_new_conflict_is_told_of_the_service_that_it_is_about() {
        let service = wire::network::ServiceV1 {
            namespace: "default".into(),
            name: "web".into(),
            ..Default::default()
        };
        let item = ItemV1 { uid: [7; 16], generation: 1, body: BodyV1::Service(Box::new(service)) };
        let set = SnapshotV1 { epoch: 1, revision: 1, items: vec![item] };
        let conflict = |service: &str, message: &str| Conflict {
            namespace: "default".into(),
            service: service.into(),
            message: message.into(),
        };
        let told = [conflict("web", "port 1")];
        // A host port is no Service's, and one that is gone is nobody's.
        let conflicts = [
            &told[0],
            &conflict("web", "port 2"),
            &conflict("", "port 3"),
            &conflict("old", "port 4"),
        ];
        let status =
            Status { conflicts: conflicts.map(Clone::clone).to_vec(), ..Status::default() };
        let events = conflict_events("pi", 5, &status, &told, Some(&set));
        let said: Vec<_> =
            events.iter().map(|event| (event.uid, event.message.as_str(), event.at_ms)).collect();
        assert_eq!(said, [([7; 16], "node pi: port 2", 5)]);
        assert!(conflict_events("pi", 5, &status, &told, None).is_empty());
    }

    #[test]
    fn a_pod_is_an_endpoint_once_it_has_an_address_and_until_it_has_ended() {
        let pod = PodV1::new([1; 16], "default", "web");
        let item = ItemV1 { uid: [1; 16], generation: 1, body: BodyV1::Pod(Box::new(pod)) };
        let set = SnapshotV1 { epoch: 1, revision: 1, items: vec![item] };
        let seen = |edit: fn(&mut PodStatusV1)| {
            let mut status = PodStatusV1::new([1; 16], "default", "web");
            status.phase = PhaseV1::Running;
            status.pod_ip = "10.42.0.2".into();
            edit(&mut status);
            let board = BTreeMap::from([([1; 16], status)]);
            let pods = own_pods(&set, &Manifests::default(), &board);
            (pods[0].is_ready, pods[0].is_over)
        };
        assert_eq!(seen(|_| {}), (true, false));
        assert_eq!(seen(|status| status.pod_ip.clear()), (true, true));
        assert_eq!(seen(|status| status.phase = PhaseV1::Pending), (false, false));
        assert_eq!(seen(|status| status.phase = PhaseV1::Failed), (false, true));
        assert_eq!(seen(|status| status.terminated = true), (true, true));
        assert!(own_pods(&set, &Manifests::default(), &BTreeMap::new()).is_empty());
    }
}
