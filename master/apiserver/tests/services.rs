//! What Services are given, keep and give back, over the plain model of a store.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::collections::BTreeSet;
use std::sync::Arc;

use api::resource::{Resource, by_kind};
use api::service::Ranges;
use futures::future::join_all;
use pinnace_apiserver::{
    Api, DeleteOptions, Identity, MASTERS, PatchKind, Status, Target, WriteOptions,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use store::{ListOptions, MemoryStore};

fn services() -> &'static Resource {
    by_kind("", "Service").unwrap()
}

struct Cluster {
    api: Api,
    who: Identity,
}

impl Cluster {
    async fn start(network: &str) -> Self {
        let api = Api::new(Arc::new(MemoryStore::new()));
        api.set_service_ranges(Ranges::new(network.parse().unwrap()).unwrap());
        api.bootstrap().await.unwrap();
        Self { api, who: Identity::authenticated("admin", &[MASTERS]) }
    }

    async fn create(&self, name: &str, spec: Value) -> Result<Value, Status> {
        self.create_with(name, spec, &WriteOptions::by("test")).await
    }

    async fn create_with(
        &self,
        name: &str,
        spec: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let written = self.api.create(&self.who, services(), "default", object, options).await;
        Ok(written?.value())
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<Value, Status> {
        let target = Target::object(services(), "default", name);
        let options = WriteOptions::by("test");
        let written =
            self.api.patch(&self.who, &target, PatchKind::Strategic, patch, &options).await;
        Ok(written?.value())
    }

    async fn replace(&self, object: Value) -> Result<Value, Status> {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let target = Target::object(services(), "default", &name);
        let written = self.api.update(&self.who, &target, object, &WriteOptions::by("test")).await;
        Ok(written?.value())
    }

    async fn delete(&self, name: &str) {
        let target = Target::object(services(), "default", name);
        self.api.delete(&self.who, &target, &DeleteOptions::default()).await.unwrap();
    }

    /// What the store has written down as taken.
    fn taken(&self) -> BTreeSet<String> {
        let list = self.api.store().list("/-/", &ListOptions::default()).unwrap();
        list.items.into_iter().map(|item| item.key["/-/".len()..].to_owned()).collect()
    }

    /// What Services say they have.
    fn held(&self) -> BTreeSet<String> {
        let list = self.api.store().list(&services().key_prefix(), &ListOptions::default());
        let mut all = BTreeSet::new();
        for item in list.unwrap().items {
            let service: Value = serde_json::from_slice(&item.value).unwrap();
            let held = api::service::held(&service);
            for address in held.addresses {
                assert!(all.insert(format!("clusterip/{address}")), "{address} is held twice");
            }
            for port in held.ports {
                assert!(all.insert(format!("nodeport/{port}")), "{port} is held twice");
            }
        }
        all
    }

    #[track_caller]
    fn settled(&self) {
        assert_eq!(self.taken(), self.held());
    }
}

fn plain() -> Value {
    json!({"ports": [{"port": 80}], "selector": {"app": "web"}})
}

fn typed(kind: &str) -> Value {
    json!({"type": kind, "ports": [{"port": 80}]})
}

fn failure(result: Result<Value, Status>) -> String {
    let status = result.unwrap_err();
    format!("{} {}", status.code(), status.message)
}

#[tokio::test]
async fn an_address_is_given_kept_and_given_back() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    let made = cluster.create("web", plain()).await.unwrap();
    let address = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert_eq!(made["spec"]["clusterIPs"], json!([address]));
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    let low: [u8; 4] = address.parse::<std::net::Ipv4Addr>().unwrap().octets();
    assert!(low[..2] == [10, 43] && low[2] >= 1, "{address} is in the band of those who name one");
    assert_eq!(cluster.taken(), [format!("clusterip/{address}")].into());
    // A whole object without the address keeps it.
    let new = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 81}]}});
    let replaced = cluster.replace(new).await.unwrap();
    assert_eq!(replaced["spec"]["clusterIP"], address);
    let refused = cluster.patch("web", json!({"spec": {"clusterIP": "10.43.9.9"}})).await;
    assert_eq!(
        failure(refused),
        "422 Service \"web\" is invalid: spec.clusterIPs[0]: Invalid value: [\"10.43.9.9\"]: may not \
         change once set"
    );
    cluster.delete("web").await;
    assert!(cluster.taken().is_empty());
    cluster.create("again", json!({"clusterIP": address, "ports": [{"port": 80}]})).await.unwrap();
    cluster.settled();
}

#[tokio::test]
async fn what_is_asked_for_is_given_or_refused() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    let asking = |address: &str| json!({"clusterIP": address, "ports": [{"port": 80}]});
    cluster.create("one", asking("10.43.0.7")).await.unwrap();
    let invalid =
        |problem: &str| format!("422 Service \"two\" is invalid: spec.clusterIPs: {problem}");
    assert_eq!(
        failure(cluster.create("two", asking("10.43.0.7")).await),
        invalid(
            "Invalid value: [\"10.43.0.7\"]: failed to allocate IP 10.43.0.7: provided IP is already allocated"
        )
    );
    for outside in ["10.44.0.1", "10.43.0.0", "10.43.255.255"] {
        assert_eq!(
            failure(cluster.create("two", asking(outside)).await),
            invalid(&format!(
                "Invalid value: [\"{outside}\"]: failed to allocate IP {outside}: the provided IP \
                 ({outside}) is not in the valid range. The range of valid IPs is 10.43.0.0/16"
            ))
        );
    }
    // The API's and DNS's are nobody else's, whether or not they are there.
    for kept in ["10.43.0.1", "10.43.0.10"] {
        let refused = failure(cluster.create("two", asking(kept)).await);
        assert!(refused.ends_with("provided IP is already allocated"), "{refused}");
    }
    cluster.create("kubernetes", asking("10.43.0.1")).await.unwrap();
    let headless = cluster.create("bare", json!({"clusterIP": "None"})).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let name = json!({"type": "ExternalName", "externalName": "a.example"});
    let name = cluster.create("name", name).await.unwrap();
    assert!(name["spec"].get("clusterIP").is_none());
    assert_eq!(cluster.taken().len(), 2);
    cluster.settled();
}

#[tokio::test]
async fn ports_of_nodes_are_given_shared_and_refused() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    let two = json!({"type": "NodePort", "ports": [
        {"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}, {"name": "w", "port": 80}]});
    let dns = cluster.create("dns", two).await.unwrap();
    let port =
        |service: &Value, n: usize| service["spec"]["ports"][n]["nodePort"].as_u64().unwrap();
    assert_eq!(port(&dns, 0), port(&dns, 1), "one port of two protocols");
    assert_ne!(port(&dns, 0), port(&dns, 2));
    assert!(port(&dns, 0) >= 30086, "from the upper band");
    let asked = |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    cluster.create("web", asked(30080)).await.unwrap();
    assert_eq!(
        failure(cluster.create("other", asked(30080)).await),
        "422 Service \"other\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided \
         port is already allocated"
    );
    assert_eq!(
        failure(cluster.create("other", asked(80)).await),
        "422 Service \"other\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port \
         is not in the valid range. The range of valid ports is 30000-32767"
    );
    cluster.settled();
    // The port moves, and the old one is free.
    cluster
        .patch("web", json!({"spec": {"ports": [{"port": 80, "nodePort": 30081}]}}))
        .await
        .unwrap();
    cluster.create("other", asked(30080)).await.unwrap();
    cluster.settled();
    let local =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let local = cluster.create("local", local).await.unwrap();
    let health = local["spec"]["healthCheckNodePort"].as_u64().unwrap();
    assert!(cluster.taken().contains(&format!("nodeport/{health}")));
    let none = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    let none = cluster.create("none", none).await.unwrap();
    assert!(none["spec"]["ports"][0].get("nodePort").is_none());
    cluster.settled();
}

#[tokio::test]
async fn a_change_of_type_takes_and_gives_back() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    cluster.create("web", plain()).await.unwrap();
    let node = cluster.patch("web", json!({"spec": {"type": "NodePort"}})).await.unwrap();
    assert!(node["spec"]["ports"][0]["nodePort"].is_u64());
    assert_eq!(node["spec"]["externalTrafficPolicy"], "Cluster");
    cluster.settled();
    let patch = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}});
    let balancer = cluster.patch("web", patch).await.unwrap();
    assert_eq!(balancer["spec"]["ports"], node["spec"]["ports"]);
    assert_eq!(cluster.taken().len(), 3);
    cluster.settled();
    let back = cluster.patch("web", json!({"spec": {"type": "ClusterIP"}})).await.unwrap();
    assert!(back["spec"]["ports"][0].get("nodePort").is_none());
    assert_eq!(back["spec"]["clusterIP"], node["spec"]["clusterIP"]);
    assert_eq!(cluster.taken().len(), 1);
    let patch = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
    let name = cluster.patch("web", patch).await.unwrap();
    assert!(name["spec"].get("clusterIP").is_none(), "{name}");
    assert!(cluster.taken().is_empty());
    let again = cluster.patch("web", json!({"spec": {"type": "ClusterIP"}})).await.unwrap();
    assert!(again["spec"]["clusterIP"].is_string());
    cluster.settled();
}

#[tokio::test]
async fn a_dry_run_takes_nothing() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    let options = WriteOptions { dry_run: true, ..WriteOptions::by("test") };
    let shown = cluster.create_with("web", typed("NodePort"), &options).await.unwrap();
    assert!(shown["spec"]["ports"][0]["nodePort"].is_u64());
    assert!(cluster.taken().is_empty());
    let asked = json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]});
    cluster.create("one", asked.clone()).await.unwrap();
    let refused = cluster.create_with("two", asked, &options).await;
    assert!(failure(refused).contains("already allocated"));
}

#[tokio::test]
async fn a_small_network_is_used_up_to_the_last_address_at_once() {
    let cluster = Cluster::start("10.43.0.0/27").await;
    let names: Vec<String> = (0..40).map(|n| format!("web-{n}")).collect();
    let all = join_all(names.iter().map(|name| cluster.create(name, plain()))).await;
    let made = all.iter().filter(|made| made.is_ok()).count();
    // 32 but for the network's own, the broadcast, the API's and DNS's.
    assert_eq!(made, 28);
    let refused = all.into_iter().find(Result::is_err).unwrap();
    assert!(
        failure(refused).contains("range is full: every address of 10.43.0.0/27 is taken"),
        "says what is full"
    );
    cluster.settled();
    cluster.delete("web-0").await;
    cluster.create("new", plain()).await.unwrap();
}

#[tokio::test]
async fn one_of_many_that_ask_for_the_same_gets_it() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.77", "ports": [{"port": 80, "nodePort": 30080}]});
    let names: Vec<String> = (0..20).map(|n| format!("web-{n}")).collect();
    let all = join_all(names.iter().map(|name| cluster.create(name, spec.clone()))).await;
    assert_eq!(all.iter().filter(|made| made.is_ok()).count(), 1);
    cluster.settled();
}

#[tokio::test]
async fn a_finalizer_holds_what_the_service_has() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    let object =
        json!({"metadata": {"name": "web", "finalizers": ["a/b"]}, "spec": typed("NodePort")});
    let options = WriteOptions::by("test");
    cluster.api.create(&cluster.who, services(), "default", object, &options).await.unwrap();
    cluster.delete("web").await;
    assert_eq!(cluster.taken().len(), 2);
    cluster.patch("web", json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert!(cluster.taken().is_empty());
}

#[tokio::test]
async fn what_is_written_down_follows_the_services_at_a_start() {
    let cluster = Cluster::start("10.43.0.0/16").await;
    cluster.create("web", typed("NodePort")).await.unwrap();
    let right = cluster.taken();
    let lost = right.iter().next().unwrap().clone();
    let writes = vec![
        store::Write::delete(format!("/-/{lost}"), store::Expect::Any),
        store::Write::put("/-/nodeport/30000", store::Expect::Any, "{}"),
    ];
    cluster.api.store().write(writes).await.unwrap();
    cluster.api.bootstrap().await.unwrap();
    assert_eq!(cluster.taken(), right);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is done, what is written down as taken is what Services have.
    #[test]
    fn nothing_leaks_and_nothing_is_given_twice(
        steps in prop::collection::vec((0_usize..4, 0_usize..6, 0_i64..4), 1..24)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::start("10.43.0.0/28").await;
            for (name, step, number) in steps {
                let name = format!("s{name}");
                let node_port = 30_000 + number;
                let address = format!("10.43.0.{}", 11 + number);
                let _ = match step {
                    0 => cluster.create(&name, plain()).await,
                    1 => cluster.create(&name, json!({"type": "NodePort", "clusterIP": address,
                        "ports": [{"port": 80, "nodePort": node_port}]})).await,
                    2 => cluster.patch(&name, json!({"spec": {"type": "LoadBalancer",
                        "externalTrafficPolicy": if number > 1 { "Local" } else { "Cluster" }}})).await,
                    3 => cluster.patch(&name, json!({"spec": {"type": "ClusterIP"}})).await,
                    4 => cluster.patch(&name, json!({"spec": {"type": "ExternalName",
                        "externalName": "a.example"}})).await,
                    _ => {
                        let target = Target::object(services(), "default", &name);
                        let _ = cluster.api.delete(&cluster.who, &target, &DeleteOptions::default()).await;
                        Ok(Value::Null)
                    }
                };
                cluster.settled();
            }
        });
    }
}
