//! The plan of slices as tables and as a property, and the controller over a fake
//! cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use api::{ObjectKey, Value};
use proptest::prelude::*;
use serde_json::json;

use super::legacy;
use super::slices::{Content, Desired, ENDPOINTS_MAX, Nodes, Step, desired, labels, plan, render};
use crate::cluster::kinds;
use crate::fake::FakeCluster;
use crate::projection::{Labels, Pod, Projection as _, Service, Slice, intern};
use crate::testing::World;

/// Nodes by name: zone and address.
struct Table(HashMap<&'static str, (&'static str, &'static str)>);

impl Nodes for Table {
    fn zone(&self, node: &str) -> Option<Arc<str>> {
        self.0.get(node).map(|(zone, _)| intern(zone)).filter(|zone| !zone.is_empty())
    }

    fn addresses(&self, node: &str) -> Vec<IpAddr> {
        self.0.get(node).and_then(|(_, address)| address.parse().ok()).into_iter().collect()
    }
}

fn nodes() -> Table {
    Table([("n1", ("north", "192.168.1.1")), ("n2", ("", "192.168.1.2"))].into())
}

fn service(more: Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"team": "a"}},
        "spec": {"type": "ClusterIP", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}]},
    });
    for (key, value) in more.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    Service::project(&object)
}

/// A pod as words: `name address,word,…`.
fn pod(text: &str) -> Arc<Pod> {
    let (name, words) = text.split_once(' ').unwrap();
    let mut words = words.split(',');
    let address = words.next().unwrap();
    let mut object = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    for word in words {
        match word {
            "unready" => object["status"]["conditions"][0]["status"] = "False".into(),
            "deleting" => {
                object["metadata"]["deletionTimestamp"] = "2026-11-23T07:36:35Z".into();
            }
            "failed" => object["status"]["phase"] = "Failed".into(),
            "n2" => object["spec"]["nodeName"] = "n2".into(),
            "host" => object["spec"]["hostNetwork"] = true.into(),
            "other-port" => {
                object["spec"]["containers"][0]["ports"][0]["containerPort"] = 9090.into()
            }
            "no-port" => object["spec"]["containers"][0]["ports"] = json!([]),
            "dual" => {
                object["status"]["podIPs"] = json!([{"ip": address}, {"ip": "fd00::5"}]);
            }
            "named" => {
                object["spec"]["hostname"] = "first".into();
                object["spec"]["subdomain"] = "web".into();
            }
            _ => panic!("no such word: {word}"),
        }
    }
    Arc::new(Pod::project(&object))
}

/// One line an endpoint: `family ports: address conditions more`.
fn shown(desired: &Desired) -> Vec<String> {
    let mut lines = Vec::new();
    for ((family, ports), endpoints) in desired {
        let ports: Vec<String> = ports
            .iter()
            .map(|port| format!("{}={}", port.name, port.number.unwrap_or_default()))
            .collect();
        for endpoint in endpoints {
            let mut line = format!("{family} {}: {}", ports.join(","), endpoint.address);
            for (word, is) in [
                ("ready", endpoint.ready),
                ("serving", endpoint.serving),
                ("terminating", endpoint.terminating),
            ] {
                if is {
                    line.push_str(&format!(" {word}"));
                }
            }
            for text in [&endpoint.zone, &endpoint.hostname].into_iter().flatten() {
                line.push_str(&format!(" {text}"));
            }
            lines.push(line);
        }
    }
    lines
}

#[test]
fn pods_become_endpoints_as_upstream_makes_them() {
    let check = |service: &Service, pods: &[&str], expected: &[&str]| {
        let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
        assert_eq!(shown(&desired(service, &pods, &nodes())), expected, "{pods:?}");
    };
    let web = service(json!({}));
    check(&web, &["a 10.42.0.2"], &["IPv4 http=8080: 10.42.0.2 ready serving north"]);
    check(&web, &["a 10.42.0.2,n2"], &["IPv4 http=8080: 10.42.0.2 ready serving"]);
    check(&web, &["a 10.42.0.2,unready"], &["IPv4 http=8080: 10.42.0.2 north"]);
    check(
        &web,
        &["a 10.42.0.2,deleting", "b 10.42.0.3,deleting,unready"],
        &[
            "IPv4 http=8080: 10.42.0.2 serving terminating north",
            "IPv4 http=8080: 10.42.0.3 terminating north",
        ],
    );
    check(&web, &["a 10.42.0.2,failed", "b ", "c fd00::1"], &[]);
    check(&web, &["a 10.42.0.2,named"], &["IPv4 http=8080: 10.42.0.2 ready serving north first"]);
    check(&web, &["a ,host"], &["IPv4 http=8080: 192.168.1.1 ready serving north"]);
    check(&web, &["a 169.254.1.1"], &[]);
    check(
        &web,
        &["a 10.42.0.2", "b 10.42.0.3,other-port", "c 10.42.0.4,no-port"],
        &[
            "IPv4 : 10.42.0.4 ready serving north",
            "IPv4 http=8080: 10.42.0.2 ready serving north",
            "IPv4 http=9090: 10.42.0.3 ready serving north",
        ],
    );
    let early = service(json!({"publishNotReadyAddresses": true}));
    check(
        &early,
        &["a 10.42.0.2,unready", "b 10.42.0.3,unready,deleting"],
        &[
            "IPv4 http=8080: 10.42.0.2 ready north",
            "IPv4 http=8080: 10.42.0.3 ready terminating north",
        ],
    );
    let bare = service(json!({"clusterIP": "None", "ports": []}));
    check(&bare, &["a 10.42.0.2,no-port"], &["IPv4 : 10.42.0.2 ready serving north"]);
    let both = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
    check(
        &both,
        &["a 10.42.0.2,dual"],
        &[
            "IPv4 http=8080: 10.42.0.2 ready serving north",
            "IPv6 http=8080: fd00::5 ready serving north",
        ],
    );
}

#[test]
fn old_clients_see_what_is_ready_and_what_is_not() {
    let web = service(json!({}));
    let pods = ["a 10.42.0.2", "b 10.42.0.3,unready", "c 10.42.0.4,deleting"].map(pod);
    let (subsets, truncated) = legacy::subsets(&web, &desired(&web, &pods, &nodes()));
    assert!(!truncated);
    let reference =
        |name: &str| json!({"kind": "Pod", "namespace": "ns", "name": name, "uid": name});
    assert_eq!(
        subsets,
        json!([{
            "addresses": [{"ip": "10.42.0.2", "targetRef": reference("a"), "nodeName": "n1"}],
            "notReadyAddresses": [{"ip": "10.42.0.3", "targetRef": reference("b"), "nodeName": "n1"}],
            "ports": [{"port": 8080, "protocol": "TCP", "name": "http"}],
        }])
    );
    let many: Vec<_> = (0..1200)
        .map(|n| pod(&format!("p{n} 10.42.{}.{},unready", n / 200, n % 200 + 1)))
        .collect();
    let (subsets, truncated) = legacy::subsets(&web, &desired(&web, &many, &nodes()));
    assert!(truncated);
    assert_eq!(subsets[0]["notReadyAddresses"].as_array().unwrap().len(), 1000);
}

/// A store of slices, to which plans are applied as the controller does.
#[derive(Default)]
struct Slices {
    all: BTreeMap<String, Arc<Slice>>,
    n_made: usize,
    n_writes: usize,
}

impl Slices {
    fn put(&mut self, name: &str, labels: &Labels, content: &Content) {
        let (endpoints, ports) = render("ns", content);
        let slice = Slice::project(&json!({
            "metadata": {"name": name, "namespace": "ns", "labels": super::label_map(labels)},
            "addressType": &*content.family, "endpoints": endpoints, "ports": ports,
        }));
        assert_eq!(slice.endpoints, content.endpoints, "it reads back");
        assert!(slice.endpoints.len() <= ENDPOINTS_MAX);
        self.all.insert(name.to_owned(), Arc::new(slice));
        self.n_writes += 1;
    }

    fn apply(&mut self, service: &Service, desired: &Desired) {
        let labels = labels(service);
        for step in self.plan(service, desired) {
            match step {
                Step::Create(content) => {
                    self.n_made += 1;
                    let name = format!("web-{}", self.n_made);
                    self.put(&name, &labels, &content);
                }
                Step::Update(slice, content) => {
                    assert_eq!(slice.family, content.family, "a family is for life");
                    self.put(&slice.meta.key.name, &labels, &content);
                }
                Step::Delete(slice) => {
                    self.all.remove(&slice.meta.key.name).unwrap();
                    self.n_writes += 1;
                }
            }
        }
    }

    fn plan(&self, service: &Service, desired: &Desired) -> Vec<Step> {
        let existing: Vec<_> = self.all.values().cloned().collect();
        plan(desired.clone(), &labels(service), &intern("IPv4"), &existing)
    }

    /// All endpoints, each with its ports.
    fn shown(&self) -> Vec<String> {
        let mut all = Vec::new();
        for slice in self.all.values() {
            let group = (Arc::clone(&slice.family), slice.ports.clone());
            all.extend(shown(&[(group, slice.endpoints.clone())].into()));
        }
        all.sort();
        all
    }
}

fn numbered(n: usize, word: &str) -> Arc<Pod> {
    pod(&format!("p{n} 10.42.{}.{}{word}", n / 200, n % 200 + 1))
}

#[test]
fn few_slices_are_written() {
    let web = service(json!({}));
    let mut slices = Slices::default();
    let of = |pods: &[Arc<Pod>]| desired(&web, pods, &nodes());
    slices.apply(&web, &of(&[]));
    assert_eq!((slices.all.len(), slices.n_writes), (1, 1), "an empty one");
    let mut pods: Vec<_> = (0..250).map(|n| numbered(n, "")).collect();
    slices.apply(&web, &of(&pods));
    assert_eq!((slices.all.len(), slices.n_writes), (3, 4), "the empty one is used");
    // One pod of one slice becomes unready.
    pods[0] = numbered(0, ",unready");
    slices.apply(&web, &of(&pods));
    assert_eq!(slices.n_writes, 5);
    // One more finds room in the last one; a slice that is full is left alone.
    pods.push(numbered(250, ""));
    slices.apply(&web, &of(&pods));
    assert_eq!((slices.all.len(), slices.n_writes), (3, 6));
    // One goes and one comes: one write, in the same slice.
    pods[10] = numbered(300, "");
    slices.apply(&web, &of(&pods));
    assert_eq!(slices.n_writes, 7);
    slices.apply(&web, &of(&[]));
    assert_eq!(slices.all.len(), 1);
    assert!(slices.shown().is_empty());
}

proptest! {
    #[test]
    fn plans_converge_in_one_pass_and_then_rest(
        rounds in prop::collection::vec(
            (prop::collection::vec((0_usize..320, 0_usize..5), 0..260), any::<bool>()), 1..5)
    ) {
        let words = ["", ",unready", ",deleting", ",other-port", ",dual"];
        let mut slices = Slices::default();
        for (pods, dual) in rounds {
            let families = if dual { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
            let web = service(json!({"ipFamilies": families}));
            let by_number: BTreeMap<usize, usize> = pods.into_iter().collect();
            let pods: Vec<_> =
                by_number.into_iter().map(|(n, word)| numbered(n, words[word])).collect();
            let wanted = desired(&web, &pods, &nodes());
            slices.apply(&web, &wanted);
            let mut expected = shown(&wanted);
            expected.sort();
            prop_assert_eq!(slices.shown(), expected);
            prop_assert!(slices.plan(&web, &wanted).is_empty(), "it rests");
            prop_assert!(!slices.all.is_empty());
        }
    }
}

fn service_object(name: &str, more: Value) -> Value {
    let mut object = json!({
        "metadata": {"name": name},
        "spec": {"type": "ClusterIP", "clusterIP": "10.43.1.1", "clusterIPs": ["10.43.1.1"],
            "ipFamilies": ["IPv4"], "selector": {"app": name},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
    });
    for (key, value) in more.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn pod_object(name: &str, app: &str, node: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i:1"}]},
        "status": {"phase": "Running", "podIP": address, "startTime": "2026-11-23T07:36:35Z",
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// Addresses in the slices of a Service that are ready.
fn ready(cluster: &FakeCluster, service: &str) -> BTreeSet<String> {
    cluster
        .objects(kinds::endpoint_slices())
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service)
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned())
        .collect()
}

fn set(addresses: &[&str]) -> BTreeSet<String> {
    addresses.iter().map(|address| (*address).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn slices_and_endpoints_follow_the_pods() {
    let world = World::start(&["n1"]).await;
    world.create(kinds::pods(), pod_object("a", "web", "n1", "10.42.0.2")).await;
    world.create(kinds::pods(), pod_object("x", "other", "n1", "10.42.0.9")).await;
    world.create(kinds::services(), service_object("web", json!({}))).await;
    world.until("a", |cluster| ready(cluster, "web") == set(&["10.42.0.2"])).await;
    world.create(kinds::pods(), pod_object("b", "web", "n1", "10.42.0.3")).await;
    world.until("b", |c| ready(c, "web") == set(&["10.42.0.2", "10.42.0.3"])).await;
    world.edit(kinds::pods(), "a", |pod| {
        pod["status"]["conditions"][0]["status"] = "False".into();
    });
    world.until("a is not ready", |cluster| ready(cluster, "web") == set(&["10.42.0.3"])).await;
    let old = |cluster: &FakeCluster| {
        cluster
            .object(kinds::endpoints(), &ObjectKey::new("ns", "web"))
            .map(|e| e["subsets"].clone())
    };
    world
        .until("Endpoints too", |cluster| {
            old(cluster).is_some_and(|subsets| {
                subsets[0]["addresses"][0]["ip"] == "10.42.0.3"
                    && subsets[0]["notReadyAddresses"][0]["ip"] == "10.42.0.2"
            })
        })
        .await;
    // A label goes, the selector changes, and somebody removes the slice.
    world.edit(kinds::pods(), "b", |pod| pod["metadata"]["labels"]["app"] = "debug".into());
    world.until("b left", |cluster| ready(cluster, "web").is_empty()).await;
    world.edit(kinds::services(), "web", |s| s["spec"]["selector"] = json!({"app": "debug"}));
    world.until("b is back", |cluster| ready(cluster, "web") == set(&["10.42.0.3"])).await;
    let slices = world.cluster.objects(kinds::endpoint_slices());
    let own = slices
        .iter()
        .find(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
    let name = api::meta::name(own.unwrap()).to_owned();
    world.cluster.remove(kinds::endpoint_slices(), &ObjectKey::new("ns", &name));
    world.until("made anew", |cluster| ready(cluster, "web") == set(&["10.42.0.3"])).await;
    // Without a selector it is somebody else's.
    world.edit(kinds::services(), "web", |service| {
        service["spec"].as_object_mut().unwrap().remove("selector");
    });
    world.until("let go", |cluster| ready(cluster, "web").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn slices_go_with_their_service_and_are_made_once() {
    let world = World::start(&["n1"]).await;
    world.cluster.set_lag(kinds::endpoint_slices(), std::time::Duration::from_secs(2));
    world.create(kinds::services(), service_object("web", json!({}))).await;
    for n in 0..10 {
        let pod = pod_object(&format!("p{n}"), "web", "n1", &format!("10.42.0.{}", n + 2));
        world.create(kinds::pods(), pod).await;
        world.pass(std::time::Duration::from_millis(300)).await;
    }
    world.until("all", |cluster| ready(cluster, "web").len() == 10).await;
    let n_slices = |cluster: &FakeCluster| {
        let slices = cluster.objects(kinds::endpoint_slices());
        slices.iter().filter(|slice| api::meta::controller(slice).is_some()).count()
    };
    assert_eq!(n_slices(&world.cluster), 1, "made twice");
    world.cluster.remove(kinds::services(), &ObjectKey::new("ns", "web"));
    world.until("collected", |cluster| n_slices(cluster) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_balancer_is_reached_at_ready_nodes() {
    let world = World::start(&["n1", "n2"]).await;
    for (node, address) in [("n1", "192.168.1.1"), ("n2", "192.168.1.2")] {
        world.cluster.edit(kinds::nodes(), &ObjectKey::new("", node), |object| {
            object["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
        });
    }
    let ingress = |cluster: &FakeCluster| -> Vec<String> {
        let service = cluster.object(kinds::services(), &ObjectKey::new("ns", "web")).unwrap();
        let list = service["status"]["loadBalancer"]["ingress"].as_array().cloned();
        list.unwrap_or_default().iter().map(|i| i["ip"].as_str().unwrap().to_owned()).collect()
    };
    let object =
        service_object("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}));
    world.create(kinds::services(), object).await;
    world.until("every node", |c| ingress(c) == ["192.168.1.1", "192.168.1.2"]).await;
    world.create(kinds::pods(), pod_object("a", "web", "n2", "10.42.1.2")).await;
    world.edit(kinds::services(), "web", |s| s["spec"]["externalTrafficPolicy"] = "Local".into());
    world.until("nodes with endpoints", |cluster| ingress(cluster) == ["192.168.1.2"]).await;
    world.nodes.kill("n2");
    world.until("not a lost one", |cluster| ingress(cluster).is_empty()).await;
    world.edit(kinds::services(), "web", |s| s["spec"]["type"] = "ClusterIP".into());
    world.until("cleared", |cluster| ingress(cluster).is_empty()).await;
}
