//! Binding through a fake cluster: never too much, never twice, and told why not.

use std::collections::BTreeMap;
use std::time::Duration;

use api::ObjectKey;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::ClusterError;
use crate::cluster::{Cluster as _, DeleteOptions, kinds};
use crate::fake::FakeCluster;
use crate::testing::{World, events_of, pod_spec, pods_of};

fn pod(name: &str, cpu: &str) -> Value {
    let mut spec = pod_spec("web:1");
    spec["containers"][0]["resources"]["requests"]["cpu"] = cpu.into();
    json!({"metadata": {"name": name}, "spec": spec})
}

fn n_bound(cluster: &FakeCluster) -> usize {
    pods_of(cluster).iter().filter(|(_, node, _)| !node.is_empty()).count()
}

fn condition(cluster: &FakeCluster, name: &str) -> Value {
    let pod = cluster.object(kinds::pods(), &ObjectKey::new("ns", name)).unwrap_or_default();
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "PodScheduled").unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn no_node_gets_more_than_it_has() {
    let world = World::start(&["a", "b", "c"]).await;
    // Three nodes of 4 cores: two pods of 1.5 cores each.
    for n in 0..10 {
        world.create(kinds::pods(), pod(&format!("p{n}"), "1500m")).await;
    }
    world.until("bound", |cluster| n_bound(cluster) == 6).await;
    world.pass(Duration::from_secs(60)).await;
    let mut by_node: BTreeMap<String, usize> = BTreeMap::new();
    for (_, node, _) in pods_of(&world.cluster).into_iter().filter(|(_, node, _)| !node.is_empty())
    {
        *by_node.entry(node).or_insert(0) += 1;
    }
    assert_eq!(by_node.into_values().collect::<Vec<_>>(), [2, 2, 2]);
    let waiting: Vec<String> = pods_of(&world.cluster)
        .into_iter()
        .filter(|(_, node, _)| node.is_empty())
        .map(|(name, ..)| name)
        .collect();
    assert_eq!(waiting.len(), 4);
    let condition = condition(&world.cluster, &waiting[0]);
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Unschedulable"))
    );
    let message = condition["message"].as_str().unwrap();
    assert!(message.starts_with("0/3 nodes are available: 3 Insufficient cpu. a: Insufficient cpu (1500m requested, 1000m free)."), "{message}");
    assert!(
        events_of(&world.cluster, "FailedScheduling").iter().all(|m| m.starts_with("0/3 nodes"))
    );
    assert_eq!(events_of(&world.cluster, "Scheduled").len(), 6);

    // Room is used as soon as there is some.
    let start = Instant::now();
    let bound = pods_of(&world.cluster).into_iter().find(|(_, node, _)| !node.is_empty()).unwrap();
    let key = ObjectKey::new("ns", &bound.0);
    world.cluster.delete(kinds::pods(), &key, DeleteOptions::default()).await.unwrap();
    world.until("used", |cluster| pods_of(cluster).len() == 9 && n_bound(cluster) == 6).await;
    assert!(start.elapsed() <= Duration::from_secs(11), "{:?}", start.elapsed());
    world.nodes.join("d").await;
    world.until("used too", |cluster| n_bound(cluster) == 8).await;
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_fails_is_tried_again() {
    let world = World::start(&["a"]).await;
    // Room for one pod, and a reason to wait until the faults are set.
    let mut big = pod("p", "3");
    big["spec"]["nodeSelector"] = json!({"zone": "b"});
    world.create(kinds::pods(), big).await;
    world.until("told", |cluster| condition(cluster, "p")["status"] == "False").await;
    for _ in 0..3 {
        let busy = ClusterError::Unavailable("busy".to_owned());
        world.cluster.fail_next_write(kinds::pods(), busy);
    }
    world.edit(kinds::nodes(), "a", |node| node["metadata"]["labels"]["zone"] = "b".into());
    world.until("bound", |cluster| n_bound(cluster) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_projection_that_is_behind_over_commits_nothing() {
    let world = World::start(&["a", "b"]).await;
    world.cluster.set_lag(kinds::pods(), Duration::from_secs(3));
    for n in 0..10 {
        world.create(kinds::pods(), pod(&format!("p{n}"), "1500m")).await;
        world.pass(Duration::from_millis(200)).await;
    }
    world.until("full", |cluster| n_bound(cluster) == 4).await;
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(n_bound(&world.cluster), 4);
}

#[tokio::test(start_paused = true)]
async fn pods_of_other_schedulers_and_deleted_ones_are_left_alone() {
    let world = World::start(&[]).await;
    let mut other = pod("other", "100m");
    other["spec"]["schedulerName"] = "my-scheduler".into();
    world.create(kinds::pods(), other).await;
    world.create(kinds::pods(), pod("gone", "100m")).await;
    let key = ObjectKey::new("ns", "gone");
    world.cluster.delete(kinds::pods(), &key, DeleteOptions::default()).await.unwrap();
    world.nodes.join("a").await;
    world.pass(Duration::from_secs(600)).await;
    assert_eq!(n_bound(&world.cluster), 0);
    assert!(events_of(&world.cluster, "Scheduled").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_for_something_else_is_tried_again() {
    let world = World::start(&["a"]).await;
    let mut picky = pod("p", "100m");
    picky["spec"]["nodeSelector"] = json!({"zone": "nowhere"});
    world.create(kinds::pods(), picky).await;
    world.until("told", |cluster| condition(cluster, "p")["status"] == "False").await;
    world.edit(kinds::pods(), "p", |pod| {
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "a"});
    });
    world.until("bound", |cluster| n_bound(cluster) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_nothing_is_counted_twice_or_forgotten() {
    let mut world = World::start(&["a"]).await;
    for n in 0..3 {
        world.create(kinds::pods(), pod(&format!("p{n}"), "1")).await;
    }
    world.until("bound", |cluster| n_bound(cluster) == 3).await;
    world.restart_master();
    for n in 3..6 {
        world.create(kinds::pods(), pod(&format!("p{n}"), "1")).await;
    }
    world.until("full", |cluster| n_bound(cluster) == 4).await;
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(n_bound(&world.cluster), 4);
}
