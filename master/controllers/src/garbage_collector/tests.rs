//! Owners that go, in each of the three ways, and what becomes of what they own.

use std::time::Duration;

use api::ObjectKey;
use serde_json::{Value, json};

use crate::cluster::{Cluster as _, kinds};
use crate::fake::FakeCluster;
use crate::testing::{World, deployment};
use crate::{DeleteOptions, Propagation};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

async fn delete(world: &World, kind: crate::cluster::Kind, name: &str, how: Propagation) {
    let options = DeleteOptions { propagation: Some(how), ..DeleteOptions::default() };
    world.cluster.delete(kind, &key(name), options).await.unwrap();
}

fn counts(cluster: &FakeCluster) -> (usize, usize, usize) {
    (
        cluster.objects(kinds::deployments()).len(),
        cluster.objects(kinds::replica_sets()).len(),
        cluster.objects(kinds::pods()).len(),
    )
}

async fn with_deployment() -> World {
    let world = World::start(&["a"]).await;
    world.create(kinds::deployments(), deployment("web", 3, "web:1")).await;
    world
        .until("running", |cluster| {
            crate::testing::pods_of(cluster).iter().filter(|(.., phase)| phase == "Running").count()
                == 3
        })
        .await;
    world
}

#[tokio::test(start_paused = true)]
async fn in_the_background_everything_below_goes() {
    let world = with_deployment().await;
    delete(&world, kinds::deployments(), "web", Propagation::Background).await;
    assert_eq!(world.cluster.objects(kinds::deployments()).len(), 0);
    world.until("gone", |cluster| counts(cluster) == (0, 0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_goes_last() {
    let world = with_deployment().await;
    delete(&world, kinds::deployments(), "web", Propagation::Foreground).await;
    world
        .until("gone", |cluster| {
            let (deployments, sets, pods) = counts(cluster);
            assert!(deployments >= sets.min(1), "the deployment went before its sets");
            assert!(sets >= pods.min(1), "the set went before its pods");
            deployments == 0
        })
        .await;
    assert_eq!(counts(&world.cluster), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn orphans_stay_without_their_owner() {
    let world = with_deployment().await;
    delete(&world, kinds::deployments(), "web", Propagation::Orphan).await;
    world.until("gone", |cluster| cluster.objects(kinds::deployments()).is_empty()).await;
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(counts(&world.cluster), (0, 1, 3));
    let set = &world.cluster.objects(kinds::replica_sets())[0];
    assert!(api::meta::owner_references(set).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_not_shown_yet_is_not_gone() {
    let world = World::start(&[]).await;
    // Until everything there is has been listed.
    world.pass(Duration::from_secs(1)).await;
    world.cluster.set_lag(kinds::replica_sets(), Duration::from_secs(60));
    let owner = world
        .create(
            kinds::replica_sets(),
            json!({"metadata": {"name": "late"}, "spec": {"replicas": 0}}),
        )
        .await;
    let owned = json!({"metadata": {"name": "owned", "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "late", "uid": api::meta::uid(&owner)}]}});
    world.create(kinds::config_maps(), owned).await;
    world.pass(Duration::from_secs(300)).await;
    assert!(world.get(kinds::config_maps(), "owned").is_some());
}

fn config_map(name: &str, owners: &[&Value]) -> Value {
    let owners: Vec<Value> = owners
        .iter()
        .map(|owner| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": api::meta::name(owner),
                "uid": api::meta::uid(owner), "blockOwnerDeletion": true})
        })
        .collect();
    json!({"metadata": {"name": name, "ownerReferences": owners}})
}

#[tokio::test(start_paused = true)]
async fn what_another_owner_still_wants_only_forgets_the_one_that_is_gone() {
    let world = World::start(&[]).await;
    let a = world.create(kinds::config_maps(), config_map("a", &[])).await;
    let b = world.create(kinds::config_maps(), config_map("b", &[])).await;
    world.create(kinds::config_maps(), config_map("both", &[&a, &b])).await;
    world.create(kinds::config_maps(), config_map("one", &[&a])).await;
    delete(&world, kinds::config_maps(), "a", Propagation::Background).await;
    world
        .until("one is gone", |cluster| cluster.object(kinds::config_maps(), &key("one")).is_none())
        .await;
    world
        .until("both forgets", |cluster| {
            let both = cluster.object(kinds::config_maps(), &key("both")).expect("both stays");
            api::meta::owner_references(&both).len() == 1
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_owner_never_was_goes() {
    let world = World::start(&[]).await;
    let ghost = json!({"metadata": {"name": "ghost", "uid": "no-such-uid"}});
    world.create(kinds::config_maps(), config_map("left", &[&ghost])).await;
    world
        .until("gone", |cluster| cluster.object(kinds::config_maps(), &key("left")).is_none())
        .await;
    // One whose owner is of a kind nobody serves stays.
    let odd = json!({"metadata": {"name": "odd", "ownerReferences": [
        {"apiVersion": "example.com/v1", "kind": "Thing", "name": "x", "uid": "y"}]}});
    world.create(kinds::config_maps(), odd).await;
    world.pass(Duration::from_secs(60)).await;
    assert!(world.get(kinds::config_maps(), "odd").is_some());
}

#[tokio::test(start_paused = true)]
async fn an_owner_of_the_same_name_is_another() {
    let world = World::start(&[]).await;
    let a = world.create(kinds::config_maps(), config_map("a", &[])).await;
    world.create(kinds::config_maps(), config_map("child", &[&a])).await;
    // Deleted and made again before anybody looked.
    world.cluster.remove(kinds::config_maps(), &key("a"));
    world.create(kinds::config_maps(), config_map("a", &[])).await;
    world
        .until("gone", |cluster| cluster.object(kinds::config_maps(), &key("child")).is_none())
        .await;
    assert!(world.get(kinds::config_maps(), "a").is_some());
}
