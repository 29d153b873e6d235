//! The plan by properties, and whole fleets that lose nodes.

use std::time::Duration;

use api::ObjectKey;
use proptest::prelude::*;
use scheduler::{Effect, Taint};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Facts, Pressure, Ready, Step, plan};
use crate::cluster::{Cluster as _, kinds};
use crate::fake::FakeCluster;
use crate::testing::{World, deployment, events_of, pods_of};

fn taints() -> impl Strategy<Value = Vec<Taint>> {
    let keys = prop_oneof![
        Just("node.kubernetes.io/not-ready"),
        Just("node.kubernetes.io/unreachable"),
        Just("node.kubernetes.io/unschedulable"),
        Just("node.kubernetes.io/memory-pressure"),
        Just("gpu"),
    ];
    let effect = prop_oneof![Just(Effect::NoSchedule), Just(Effect::NoExecute)];
    prop::collection::vec((keys, effect), 0..6).prop_map(|pairs| {
        let mut taints: Vec<Taint> = Vec::new();
        for (key, effect) in pairs {
            let taint = Taint { key: key.into(), value: "".into(), effect };
            if !taints.contains(&taint) {
                taints.push(taint);
            }
        }
        taints
    })
}

proptest! {
    #[test]
    fn plan_converges_and_touches_only_its_own_taints(
        ready in prop_oneof![
            Just(Ready::True), Just(Ready::False), Just(Ready::Unknown), Just(Ready::Unsaid)],
        silent in any::<bool>(), cordoned in any::<bool>(), disrupted in any::<bool>(),
        pressures in prop::sample::subsequence(Pressure::ALL.to_vec(), 0..=3), taints in taints(),
    ) {
        let others = |taints: &[Taint]| -> Vec<Taint> {
            taints.iter().filter(|taint| &*taint.key == "gpu").cloned().collect()
        };
        let (mut ready, mut taints) = (ready, taints);
        let foreign = others(&taints);
        for pass in 0..3 {
            let facts =
                Facts { ready, silent, cordoned, disrupted, pressures: &pressures, taints: &taints };
            let steps = plan(&facts);
            if steps.is_empty() {
                break;
            }
            prop_assert!(pass < 2, "no rest: {steps:?}");
            for step in steps {
                match step {
                    Step::MarkUnknown => ready = Ready::Unknown,
                    Step::Taint { add, remove } => {
                        taints.retain(|taint| !remove.contains(taint));
                        taints.extend(add);
                    }
                }
            }
        }
        prop_assert_eq!(others(&taints), foreign);
        let has = |key: &str, effect| taints.iter().any(|t| &*t.key == key && t.effect == effect);
        prop_assert_eq!(has("node.kubernetes.io/unschedulable", Effect::NoSchedule), cordoned);
        for pressure in Pressure::ALL {
            let wanted = pressures.contains(&pressure);
            prop_assert_eq!(has(pressure.taint(), Effect::NoSchedule), wanted);
        }
        let unreachable = has("node.kubernetes.io/unreachable", Effect::NoSchedule);
        prop_assert_eq!(unreachable, ready == Ready::Unknown);
        let ready_again = ready == Ready::True;
        prop_assert!(!(ready_again && has("node.kubernetes.io/unreachable", Effect::NoExecute)));
    }
}

fn ready(cluster: &FakeCluster, node: &str) -> String {
    let node = cluster.object(kinds::nodes(), &ObjectKey::new("", node)).unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    ready.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

fn tainted(cluster: &FakeCluster, node: &str) -> Vec<String> {
    let node = cluster.object(kinds::nodes(), &ObjectKey::new("", node)).unwrap_or_default();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let mut shown: Vec<String> = taints
        .iter()
        .map(|t| {
            let key = t["key"].as_str().unwrap().trim_start_matches("node.kubernetes.io/");
            format!("{key}:{}", t["effect"].as_str().unwrap())
        })
        .collect();
    shown.sort();
    shown
}

/// Number of running pods on nodes other than those given.
fn running_elsewhere(cluster: &FakeCluster, not_on: &[&str]) -> usize {
    let pods = pods_of(cluster);
    pods.iter()
        .filter(|(_, node, phase)| phase == "Running" && !not_on.contains(&node.as_str()))
        .count()
}

fn ready_replicas(cluster: &FakeCluster, name: &str) -> u64 {
    let object = cluster.object(kinds::deployments(), &ObjectKey::new("ns", name));
    object.and_then(|d| d["status"]["readyReplicas"].as_u64()).unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_noticed_tainted_and_its_pods_replaced() {
    let world = World::start(&["a", "b"]).await;
    world.create(kinds::deployments(), deployment("web", 4, "web:1")).await;
    world.until("running", |cluster| running_elsewhere(cluster, &[]) == 4).await;
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(running_elsewhere(&world.cluster, &["a"]), 2, "spread over both");

    let lost = Instant::now();
    world.nodes.kill("a");
    world.until("NotReady", |cluster| ready(cluster, "a") == "Unknown").await;
    assert!(lost.elapsed() <= Duration::from_secs(16), "{:?}", lost.elapsed());
    world.until("not counted", |cluster| ready_replicas(cluster, "web") == 2).await;
    world.until("tainted", |cluster| tainted(cluster, "a").len() == 2).await;
    assert_eq!(tainted(&world.cluster, "a"), ["unreachable:NoExecute", "unreachable:NoSchedule"]);
    assert_eq!(events_of(&world.cluster, "NodeNotReady"), ["Node a status is now: NodeNotReady"]);

    world.pass(Duration::from_secs(280)).await;
    assert_eq!(running_elsewhere(&world.cluster, &["a"]), 2, "pods tolerate it for 300 s");
    world.until("replaced", |cluster| running_elsewhere(cluster, &["a"]) == 4).await;
    let took = lost.elapsed();
    assert!(took <= Duration::from_secs(16 + 300 + 2), "{took:?}");
    // What ran on the lost node is only marked: nobody knows that it stopped.
    let marked = world.cluster.objects(kinds::pods()).len();
    assert_eq!(marked, 6);

    world.nodes.revive("a");
    world.until("cleaned up", |cluster| cluster.objects(kinds::pods()).len() == 4).await;
    world.until("untainted", |cluster| tainted(cluster, "a").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_in_time_keeps_its_pods() {
    let world = World::start(&["a", "b"]).await;
    world.create(kinds::deployments(), deployment("web", 4, "web:1")).await;
    world.until("running", |cluster| ready_replicas(cluster, "web") == 4).await;
    let uids = |world: &World| -> Vec<String> {
        let pods = world.cluster.objects(kinds::pods());
        pods.iter().map(|pod| api::meta::uid(pod).to_owned()).collect()
    };
    let before = uids(&world);
    for _ in 0..3 {
        world.nodes.kill("a");
        world.pass(Duration::from_secs(200)).await;
        assert_eq!(ready(&world.cluster, "a"), "Unknown");
        assert_eq!(ready_replicas(&world.cluster, "web"), 2);
        world.nodes.revive("a");
        world.until("ready again", |cluster| ready_replicas(cluster, "web") == 4).await;
        world.until("untainted", |cluster| tainted(cluster, "a").is_empty()).await;
        world.pass(Duration::from_secs(20)).await;
    }
    assert_eq!(uids(&world), before);
}

#[tokio::test(start_paused = true)]
async fn pods_without_a_limit_stay_for_ever() {
    let world = World::start(&["a", "b"]).await;
    let mut web = deployment("web", 2, "web:1");
    web["spec"]["template"]["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    world.create(kinds::deployments(), web).await;
    world.until("running", |cluster| ready_replicas(cluster, "web") == 2).await;
    world.nodes.kill("a");
    world.pass(Duration::from_secs(3600)).await;
    assert_eq!(world.pods().len(), 2);
    assert_eq!(ready(&world.cluster, "a"), "Unknown");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_when_most_nodes_vanish_together() {
    let names = ["a", "b", "c", "d", "e"];
    let world = World::start(&names).await;
    world.create(kinds::deployments(), deployment("web", 10, "web:1")).await;
    world.until("running", |cluster| ready_replicas(cluster, "web") == 10).await;
    for name in ["a", "b", "c"] {
        world.nodes.kill(name);
    }
    world.pass(Duration::from_secs(3600)).await;
    assert_eq!(ready(&world.cluster, "a"), "Unknown");
    assert_eq!(tainted(&world.cluster, "a"), ["unreachable:NoSchedule"]);
    assert_eq!(world.pods().len(), 10);
    assert_eq!(running_elsewhere(&world.cluster, &["a", "b", "c"]), 4);
    // Two come back: now one lost node of five is given up.
    for name in ["a", "b"] {
        world.nodes.revive(name);
    }
    world.until("replaced", |cluster| running_elsewhere(cluster, &["c"]) == 10).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_are_given_up_one_after_another() {
    let names: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = World::start(&names).await;
    world.pass(Duration::from_secs(5)).await;
    for name in &names[..4] {
        world.nodes.kill(name);
    }
    let start = Instant::now();
    let n_given_up = |cluster: &FakeCluster| {
        names
            .iter()
            .filter(|name| tainted(cluster, name).contains(&"unreachable:NoExecute".to_owned()))
            .count()
    };
    let mut times = Vec::new();
    for n in 1..=4 {
        world.until("given up", |cluster| n_given_up(cluster) >= n).await;
        times.push(start.elapsed().as_secs());
    }
    assert!(times[0] <= 16, "{times:?}");
    for pair in times.windows(2) {
        assert!((9..=21).contains(&(pair[1] - pair[0])), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_start_of_the_master_every_node_counts_as_just_seen() {
    let mut world = World::start(&["a", "b"]).await;
    world.create(kinds::deployments(), deployment("web", 2, "web:1")).await;
    world.until("running", |cluster| ready_replicas(cluster, "web") == 2).await;
    world.nodes.kill("a");
    world.until("tainted", |cluster| tainted(cluster, "a").len() == 2).await;
    world.pass(Duration::from_secs(290)).await;
    // The tolerated time starts anew with the master.
    world.restart_master();
    world.pass(Duration::from_secs(290)).await;
    assert_eq!(world.pods().len(), 2);
    assert_eq!(running_elsewhere(&world.cluster, &["a"]), 1);
    world.until("replaced", |cluster| running_elsewhere(cluster, &["a"]) == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_is_tainted_and_gets_nothing() {
    let world = World::start(&["a"]).await;
    world.edit(kinds::nodes(), "a", |node| node["spec"]["unschedulable"] = true.into());
    world.until("tainted", |cluster| tainted(cluster, "a") == ["unschedulable:NoSchedule"]).await;
    world.create(kinds::deployments(), deployment("web", 1, "web:1")).await;
    world
        .until("told", |cluster| {
            events_of(cluster, "FailedScheduling").iter().any(|m| m.contains("were unschedulable"))
        })
        .await;
    world.edit(kinds::nodes(), "a", |node| node["spec"]["unschedulable"] = false.into());
    world.until("running", |cluster| ready_replicas(cluster, "web") == 1).await;
    assert!(tainted(&world.cluster, "a").is_empty());
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_deleted_node_go_after_a_while() {
    let world = World::start(&["a", "b"]).await;
    world.create(kinds::deployments(), deployment("web", 4, "web:1")).await;
    world.until("running", |cluster| ready_replicas(cluster, "web") == 4).await;
    world.nodes.kill("a");
    let key = ObjectKey::new("", "a");
    world.cluster.delete(kinds::nodes(), &key, crate::DeleteOptions::default()).await.unwrap();
    world.pass(Duration::from_secs(30)).await;
    assert_eq!(running_elsewhere(&world.cluster, &["a"]), 2);
    world.until("replaced", |cluster| running_elsewhere(cluster, &["a"]) == 4).await;
    let left: Vec<Value> = world.cluster.objects(kinds::pods());
    assert_eq!(left.len(), 4, "the old ones are gone for good");
}
