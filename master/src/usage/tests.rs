//! Metrics from answers of nodes that are played here.

use std::sync::atomic::{AtomicUsize, Ordering};

use api::resource::by_plural;
use apiserver::{Selection, WriteOptions};
use store::{LmdbStore, Store};
use wire::usage::ContainerUseV1;

use super::*;

/// Nodes that answer, except those that are away or never do.
#[derive(Default)]
struct Played {
    answers: HashMap<String, UsageV1>,
    silent: BTreeSet<String>,
    n_asked: AtomicUsize,
    n_at_once: AtomicUsize,
    n_at_once_max: AtomicUsize,
}

impl Nodes for Played {
    fn usage<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<UsageV1, Status>> {
        Box::pin(async move {
            self.n_asked.fetch_add(1, Ordering::Relaxed);
            let at_once = self.n_at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.n_at_once_max.fetch_max(at_once, Ordering::Relaxed);
            if self.silent.contains(node) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.n_at_once.fetch_sub(1, Ordering::Relaxed);
            self.answers.get(node).cloned().ok_or_else(|| Status::unavailable("away"))
        })
    }

    fn paths<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<PathsV1, Status>> {
        Box::pin(async move {
            if self.silent.contains(node) {
                std::future::pending::<()>().await;
            }
            let path = PathV1 { peer: "other".into(), rtt_us: 7, ..PathV1::default() };
            let paths = PathsV1 { paths: vec![path], ..PathsV1::default() };
            let is_known = self.answers.contains_key(node);
            is_known.then_some(paths).ok_or_else(|| Status::unavailable("away"))
        })
    }
}

struct World {
    _folder: tempfile::TempDir,
    api: Api,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = LmdbStore::open(folder.path().join("store"), store::Config::default()).unwrap();
        let api = Api::new(Arc::new(store) as Arc<dyn Store>);
        api.bootstrap().await.unwrap();
        Self { _folder: folder, api }
    }

    async fn create(&self, kind: &str, namespace: &str, object: Value) -> Value {
        let who = Identity::master("test");
        let options = WriteOptions::by("test");
        let written = self.api.create(&who, resource(kind), namespace, object, &options).await;
        written.unwrap_or_else(|status| panic!("{}", status.message)).value()
    }

    async fn node(&self, name: &str) {
        let labels = json!({"kubernetes.io/hostname": name});
        self.create("Node", "", json!({"metadata": {"name": name, "labels": labels}})).await;
    }

    /// A pod that runs on `node`; its uid.
    async fn pod(&self, name: &str, node: &str) -> Uid {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "a"}]},
        });
        let mut pod = self.create("Pod", "default", pod).await;
        pod["status"]["phase"] = json!("Running");
        let who = Identity::master("test");
        let target = Target::object(resource("Pod"), "default", name).subresource("status");
        self.api.update_status(&who, &target, pod.clone(), &WriteOptions::by("t")).await.unwrap();
        lower::uid(meta::uid(&pod)).unwrap()
    }

    async fn list(&self, usage: &Usage, plural: &str, labels: &str) -> Vec<Value> {
        usage.measure(request(plural, "", labels)).await.unwrap()
    }
}

fn request(plural: &str, name: &str, labels: &str) -> MeasuredRequest {
    let labels = api::selector::LabelSelector::parse(labels).unwrap();
    MeasuredRequest {
        resource: by_plural("metrics.k8s.io", "v1beta1", plural).unwrap(),
        namespace: if plural == "pods" { "default".to_owned() } else { String::new() },
        name: name.to_owned(),
        selection: Selection { labels, ..Selection::default() },
    }
}

fn answer(pods: &[(Uid, u64)]) -> UsageV1 {
    let pod = |(uid, cpu): &(Uid, u64)| PodUseV1 {
        uid: *uid,
        containers: vec![ContainerUseV1 {
            name: "main".to_owned(),
            usage: UseV1 { cpu_nanocores: *cpu, memory_bytes: 3 << 20 },
        }],
    };
    UsageV1 {
        window_ms: 1050,
        node: UseV1 { cpu_nanocores: 1_500_000_000, memory_bytes: 1 << 30 },
        pods: pods.iter().map(pod).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn pods_and_nodes_are_shown_as_their_nodes_measure_them() {
    let world = World::new().await;
    world.node("a").await;
    world.node("gone").await;
    let one = world.pod("one", "a").await;
    let other = world.pod("other", "gone").await;
    // It speaks of a pod that is not bound to it as well.
    let answers = [("a".to_owned(), answer(&[(one, 2500), (other, 7)]))].into();
    let nodes = Arc::new(Played { answers, ..Played::default() });
    let usage = Usage::new(world.api.clone(), nodes.clone());

    let pods = world.list(&usage, "pods", "").await;
    assert_eq!(pods.len(), 1, "{pods:?}");
    assert_eq!(pods[0]["metadata"]["name"], "one");
    assert_eq!(pods[0]["metadata"]["labels"], json!({"app": "one"}));
    assert_eq!(pods[0]["window"], "1.05s");
    let expected = json!([{"name": "main", "usage": {"cpu": "2500n", "memory": "3072Ki"}}]);
    assert_eq!(pods[0]["containers"], expected);
    assert!(world.list(&usage, "pods", "app=other").await.is_empty());

    let nodes_found = world.list(&usage, "nodes", "").await;
    assert_eq!(nodes_found.len(), 1, "{nodes_found:?}");
    assert_eq!(nodes_found[0]["usage"], json!({"cpu": "1500m", "memory": "1048576Ki"}));
    assert_eq!(nodes_found[0]["apiVersion"], "metrics.k8s.io/v1beta1");

    let found = usage.measure(request("pods", "one", "")).await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(usage.measure(request("pods", "nobody", "")).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_is_asked_once_in_a_while() {
    let world = World::new().await;
    world.node("a").await;
    let answers = [("a".to_owned(), answer(&[]))].into();
    let nodes = Arc::new(Played { answers, ..Played::default() });
    let usage = Usage::new(world.api.clone(), nodes.clone());
    let both = tokio::join!(world.list(&usage, "nodes", ""), world.list(&usage, "nodes", ""));
    assert_eq!((both.0.len(), both.1.len()), (1, 1));
    world.list(&usage, "nodes", "").await;
    assert_eq!(nodes.n_asked.load(Ordering::Relaxed), 1);
    tokio::time::advance(FRESH).await;
    world.list(&usage, "nodes", "").await;
    assert_eq!(nodes.n_asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fleet_is_asked_within_bounds_and_the_silent_are_left_out() {
    let world = World::new().await;
    let mut nodes = Played::default();
    for n in 0..600 {
        let name = format!("n{n:03}");
        world.node(&name).await;
        if n % 10 == 0 {
            nodes.silent.insert(name.clone());
        }
        nodes.answers.insert(name, answer(&[]));
    }
    let nodes = Arc::new(nodes);
    let usage = Usage::new(world.api.clone(), nodes.clone());
    let began = Instant::now();
    let found = world.list(&usage, "nodes", "").await;
    assert_eq!(found.len(), 540);
    assert!(nodes.n_at_once_max.load(Ordering::Relaxed) > ASKED_MAX / 2);
    // The clock is the test's own: this is how long was waited, not how fast it is.
    assert!(began.elapsed() <= OVERALL_TIMEOUT, "{:?}", began.elapsed());
    // What was asked is not kept for ever: the next new node tidies up.
    tokio::time::advance(FRESH).await;
    world.node("new").await;
    usage.slot("new");
    assert_eq!(usage.asked.lock().unwrap().len(), 1);
}

#[test]
fn quantities_are_canonical() {
    let table = [
        (0, "0"),
        (1, "1n"),
        (2000, "2u"),
        (5_000_000, "5m"),
        (3_000_000_000, "3"),
        (1001, "1001n"),
    ];
    for (nanocores, expected) in table {
        assert_eq!(cpu(nanocores), expected);
    }
    assert_eq!([window(1000), window(1), window(20_500)], ["1s", "0.001s", "20.5s"]);
}

#[tokio::test(start_paused = true)]
async fn paths_are_those_that_nodes_name_now_and_silent_nodes_are_left_out() {
    let world = World::new().await;
    for node in ["a", "gone", "silent"] {
        world.node(node).await;
    }
    let answers = [("a".to_owned(), answer(&[]))].into();
    let silent = ["silent".to_owned()].into();
    let nodes = Arc::new(Played { answers, silent, ..Played::default() });
    let usage = Usage::new(world.api.clone(), nodes);
    let request = MeasuredRequest {
        resource: by_plural("net.pinnace.io", "v1", "nodepaths").unwrap(),
        ..request("nodes", "", "")
    };
    let told = usage.measure(request).await.unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["kind"], &told[0]["metadata"]["name"]),
        (&json!("NodePaths"), &json!("a"))
    );
    assert_eq!(told[0]["paths"][0]["rttMicroseconds"], 7);
}
