//! The plan by properties, the order of victims by a table, and whole sets
//! through a fake cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;
use api::time::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Step, plan, victims};
use crate::ClusterError;
use crate::cluster::{Cluster as _, Named, kinds};
use crate::projection::{Pod, Projection as _};
use crate::testing::{World, events_of, pod_spec};

const NOW: i64 = 1_800_000_000;

/// A pod a word: `name:word,word,…`.
fn parse_pod(text: &str) -> Arc<Pod> {
    let (name, words) = text.split_once(':').unwrap();
    let mut object = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name,
            "creationTimestamp": time(NOW - 10_000)},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": time(NOW - 5_000)}]},
    });
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "unbound" => object["spec"]["nodeName"] = "".into(),
            "node" => object["spec"]["nodeName"] = value.into(),
            "pending" => object["status"] = json!({"phase": "Pending"}),
            "unready" => object["status"]["conditions"][0]["status"] = "False".into(),
            "failed" => object["status"]["phase"] = "Failed".into(),
            "deleting" => object["metadata"]["deletionTimestamp"] = time(NOW).into(),
            "restarts" => {
                object["status"]["containerStatuses"] =
                    json!([{"restartCount": value.parse::<i64>().unwrap()}]);
            }
            "age" => {
                object["metadata"]["creationTimestamp"] =
                    time(NOW - value.parse::<i64>().unwrap()).into();
            }
            "ready" => {
                object["status"]["conditions"][0]["lastTransitionTime"] =
                    time(NOW - value.parse::<i64>().unwrap()).into();
            }
            "cost" => {
                object["metadata"]["annotations"] =
                    json!({"controller.kubernetes.io/pod-deletion-cost": value});
            }
            _ => panic!("no such word: {word}"),
        }
    }
    Arc::new(Pod::project(&object))
}

fn time(second: i64) -> String {
    api::time::rfc3339(Timestamp::from_second(second).unwrap())
}

#[test]
fn victims_go_in_kubernetes_order() {
    // Of each row the first pod goes first.
    let rows = [
        "a:unbound b:pending",
        "b:pending a:unready",
        "b:unready a:",
        "b:cost=-5 a:",
        "b:node=full a:node=empty",
        "b:ready=10 a:ready=5000",
        "b:restarts=3 a:restarts=1",
        "b:age=60 a:age=9000",
        "a: b:",
    ];
    let related: HashMap<Arc<str>, usize> = [("full".into(), 3), ("empty".into(), 1)].into();
    let now = Timestamp::from_second(NOW).unwrap();
    for row in rows {
        let pods: Vec<Arc<Pod>> = row.split(' ').map(parse_pod).collect();
        for order in [[0, 1], [1, 0]] {
            let shown: Vec<&Arc<Pod>> = order.iter().map(|n| &pods[*n]).collect();
            let gone = victims(shown, 1, now, &related);
            assert_eq!(gone[0].key(), pods[0].key(), "{row}");
        }
    }
}

proptest! {
    #[test]
    fn plan_converges_in_one_pass_and_then_rests(
        replicas in 0_i64..12, words in prop::collection::vec(0_usize..6, 0..12),
    ) {
        let kinds = ["", "unbound", "unready", "failed", "deleting", "pending"];
        let mut pods: Vec<Arc<Pod>> = words
            .iter()
            .enumerate()
            .map(|(n, word)| parse_pod(&format!("p{n}:{}", kinds[*word])))
            .collect();
        let now = Timestamp::from_second(NOW).unwrap();
        let n_active = |pods: &[Arc<Pod>]| pods.iter().filter(|pod| pod.is_active()).count();
        let before = n_active(&pods);
        match plan(replicas, &pods, now, HashMap::new) {
            None => {}
            Some(Step::Create(n)) => {
                prop_assert!(before < usize::try_from(replicas).unwrap());
                pods.extend((0..n).map(|n| parse_pod(&format!("new{n}:pending"))));
            }
            Some(Step::Delete(keys)) => {
                for key in &keys {
                    let victim = pods.iter().find(|pod| pod.key() == key).unwrap();
                    prop_assert!(victim.is_active(), "deletes what does not count");
                }
                pods.retain(|pod| !keys.contains(pod.key()));
            }
        }
        prop_assert_eq!(i64::try_from(n_active(&pods)).unwrap(), replicas);
        prop_assert_eq!(plan(replicas, &pods, now, HashMap::new), None);
    }
}

fn replica_set(name: &str, replicas: i64) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec("web:1")},
        },
    })
}

#[tokio::test(start_paused = true)]
async fn pods_are_made_once_and_follow_the_size() {
    let world = World::start(&["a", "b"]).await;
    world.create(kinds::replica_sets(), replica_set("web", 40)).await;
    let mut most = 0;
    world
        .until("ready", |cluster| {
            most = most.max(cluster.objects(kinds::pods()).len());
            let set = cluster.object(kinds::replica_sets(), &ObjectKey::new("ns", "web"));
            set.is_some_and(|set| set["status"]["readyReplicas"] == 40)
        })
        .await;
    assert_eq!(most, 40, "pods were made twice");
    for size in [3, 7, 0] {
        world.edit(kinds::replica_sets(), "web", |set| set["spec"]["replicas"] = size.into());
        world
            .until("sized", |cluster| {
                let set = cluster.object(kinds::replica_sets(), &ObjectKey::new("ns", "web"));
                let pods = crate::testing::pods_of(cluster);
                pods.len() == size
                    && set.is_some_and(|set| {
                        set["status"].get("readyReplicas").and_then(Value::as_u64).unwrap_or(0)
                            == size as u64
                    })
            })
            .await;
        world.pass(Duration::from_secs(30)).await;
        assert_eq!(world.pods().len(), size);
    }
}

#[tokio::test(start_paused = true)]
async fn a_projection_that_is_behind_makes_no_pod_twice() {
    let world = World::start(&["a", "b"]).await;
    world.cluster.set_lag(kinds::pods(), Duration::from_secs(2));
    world.create(kinds::replica_sets(), replica_set("web", 10)).await;
    let sized = |cluster: &crate::fake::FakeCluster, size: u64| {
        let set = cluster.object(kinds::replica_sets(), &ObjectKey::new("ns", "web"));
        set.is_some_and(|set| {
            set["status"].get("readyReplicas").and_then(Value::as_u64).unwrap_or(0) == size
        })
    };
    for n in 0..20 {
        // Something else about the set changes, so that it is looked at again.
        world.edit(kinds::replica_sets(), "web", |set| {
            set["metadata"]["annotations"]["n"] = n.to_string().into();
        });
        world.pass(Duration::from_millis(300)).await;
        assert!(world.pods().len() <= 10, "pods were made twice");
    }
    world.until("ready", |cluster| sized(cluster, 10)).await;
    let mut least = usize::MAX;
    world.edit(kinds::replica_sets(), "web", |set| set["spec"]["replicas"] = 6.into());
    for n in 0..20 {
        world.edit(kinds::replica_sets(), "web", |set| {
            set["metadata"]["annotations"]["n"] = n.to_string().into();
        });
        world.pass(Duration::from_millis(300)).await;
        least = least.min(world.pods().len());
    }
    world.until("smaller", |cluster| sized(cluster, 6)).await;
    assert_eq!(least, 6, "more pods were deleted than asked");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fails_or_goes_is_replaced() {
    let world = World::start(&["a"]).await;
    world.create(kinds::replica_sets(), replica_set("web", 2)).await;
    let running = |cluster: &crate::fake::FakeCluster| {
        crate::testing::pods_of(cluster).iter().filter(|(.., phase)| phase == "Running").count()
    };
    world.until("running", |cluster| running(cluster) == 2).await;
    let name = world.pods()[0].0.clone();
    world.edit(kinds::pods(), &name, |pod| pod["status"]["phase"] = "Failed".into());
    world.until("replaced", |cluster| running(cluster) == 2).await;
    let other = world.pods().iter().find(|(.., phase)| phase == "Running").unwrap().0.clone();
    world.cluster.remove(kinds::pods(), &ObjectKey::new("ns", &other));
    world.until("replaced again", |cluster| running(cluster) == 2).await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_adopted_and_let_go_by_label() {
    let world = World::start(&["a"]).await;
    let mut pod = json!({"metadata": {"name": "mine", "labels": {"app": "web"}}});
    pod["spec"] = pod_spec("web:1");
    world.create(kinds::pods(), pod).await;
    world.create(kinds::replica_sets(), replica_set("web", 2)).await;
    let owned = |cluster: &crate::fake::FakeCluster, name: &str| {
        let pod = cluster.object(kinds::pods(), &ObjectKey::new("ns", name));
        pod.is_some_and(|pod| api::meta::controller(&pod).is_some())
    };
    world.until("adopted", |cluster| owned(cluster, "mine")).await;
    world.until("two", |cluster| crate::testing::pods_of(cluster).len() == 2).await;
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.pods().len(), 2);
    world.edit(kinds::pods(), "mine", |pod| pod["metadata"]["labels"]["app"] = "debug".into());
    world
        .until("let go and replaced", |cluster| {
            !owned(cluster, "mine") && crate::testing::pods_of(cluster).len() == 3
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_cannot_be_made_are_told_and_tried_again() {
    let world = World::start(&["a"]).await;
    world.create(kinds::replica_sets(), replica_set("web", 0)).await;
    world.pass(Duration::from_secs(1)).await;
    let what = Named::new(kinds::pods(), &ObjectKey::new("ns", "web"));
    world.edit(kinds::replica_sets(), "web", |set| set["spec"]["replicas"] = 5.into());
    let refused = ClusterError::Forbidden { what, message: "exceeded quota".to_owned() };
    world.cluster.fail_next_write(kinds::pods(), refused);
    world.until("made", |cluster| crate::testing::pods_of(cluster).len() == 5).await;
    world
        .until("ready", |cluster| {
            let set = cluster.object(kinds::replica_sets(), &ObjectKey::new("ns", "web"));
            set.is_some_and(|set| {
                set["status"]["readyReplicas"] == 5 && set["status"].get("conditions").is_none()
            })
        })
        .await;
    let told = events_of(&world.cluster, "FailedCreate");
    assert_eq!(told, ["Error creating: pods ns/web is forbidden: exceeded quota"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_counts_as_available_after_min_ready_seconds() {
    let world = World::start(&["a"]).await;
    let mut set = replica_set("web", 1);
    set["spec"]["minReadySeconds"] = 20.into();
    world.create(kinds::replica_sets(), set).await;
    let count = |cluster: &crate::fake::FakeCluster, field: &str| {
        let set = cluster.object(kinds::replica_sets(), &ObjectKey::new("ns", "web")).unwrap();
        set["status"].get(field).and_then(Value::as_u64).unwrap_or(0)
    };
    world.until("ready", |cluster| count(cluster, "readyReplicas") == 1).await;
    assert_eq!(count(&world.cluster, "availableReplicas"), 0);
    let start = tokio::time::Instant::now();
    world.until("available", |cluster| count(cluster, "availableReplicas") == 1).await;
    assert!((18..=22).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let _ = world.cluster.list(kinds::pods(), None, &mut |_| ()).await;
}
