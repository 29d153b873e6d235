//! Namespaces that are deleted with everything in them.

use std::time::Duration;

use api::ObjectKey;
use serde_json::json;

use crate::DeleteOptions;
use crate::cluster::{Cluster as _, kinds};
use crate::fake::FakeCluster;
use crate::testing::{World, deployment};

fn running(cluster: &FakeCluster) -> usize {
    let pods = crate::testing::pods_of(cluster);
    pods.iter().filter(|(.., phase)| phase == "Running").count()
}

async fn filled() -> World {
    let world = World::start(&["a", "b"]).await;
    world.create(kinds::deployments(), deployment("web", 4, "web:1")).await;
    world.create(kinds::config_maps(), json!({"metadata": {"name": "settings"}})).await;
    world.until("running", |cluster| running(cluster) == 4).await;
    world
}

async fn delete(world: &World) {
    let key = ObjectKey::new("", "ns");
    world.cluster.delete(kinds::namespaces(), &key, DeleteOptions::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn everything_in_it_goes_and_then_it() {
    let world = filled().await;
    delete(&world).await;
    world
        .until("gone", |cluster| {
            let gone = cluster.object(kinds::namespaces(), &ObjectKey::new("", "ns")).is_none();
            let n_pods = cluster.objects(kinds::pods()).len();
            let settings = cluster.object(kinds::config_maps(), &ObjectKey::new("ns", "settings"));
            assert!(n_pods == 0 || settings.is_some(), "a pod outlived what it uses");
            gone
        })
        .await;
    for resource in api::resource::all().iter().filter(|r| r.namespaced && r.kind != "Event") {
        let mut left = world.cluster.objects(resource);
        left.retain(|object| api::meta::namespace(object) == "ns");
        assert!(left.is_empty(), "{} is left: {left:?}", resource.plural);
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_pods_nobody_heard_of_and_says_so() {
    let world = filled().await;
    world.nodes.kill("a");
    delete(&world).await;
    world.pass(Duration::from_secs(300)).await;
    let namespace = world.get(kinds::namespaces(), "ns").expect("it waits");
    let message = namespace["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(world.get(kinds::config_maps(), "settings").is_some(), "pods may still use it");
    assert_eq!(message, "Some resources are remaining: pods. has 2 resource instances");
    world.nodes.revive("a");
    world
        .until("gone", |cluster| {
            cluster.object(kinds::namespaces(), &ObjectKey::new("", "ns")).is_none()
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn every_namespace_has_its_default_account() {
    let world = World::start(&[]).await;
    let key = ObjectKey::new("ns", "default");
    world.until("made", |c| c.object(kinds::service_accounts(), &key).is_some()).await;
    let first = world.cluster.object(kinds::service_accounts(), &key).unwrap();
    world.cluster.remove(kinds::service_accounts(), &key);
    world
        .until("made again", |cluster| {
            let account = cluster.object(kinds::service_accounts(), &key);
            account.is_some_and(|account| api::meta::uid(&account) != api::meta::uid(&first))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn every_namespace_says_who_vouches_for_the_api_server() {
    let world = World::start(&[]).await;
    let key = ObjectKey::new("ns", api::meta::ROOT_CA_NAME);
    let shown = |cluster: &FakeCluster| {
        let map = cluster.object(kinds::config_maps(), &key)?;
        Some(map["data"].to_string())
    };
    let expected = json!({"ca.crt": "test CA"}).to_string();
    world.until("made", |cluster| shown(cluster).as_ref() == Some(&expected)).await;
    world.cluster.remove(kinds::config_maps(), &key);
    world.until("made again", |cluster| shown(cluster).as_ref() == Some(&expected)).await;
    let mut map = world.cluster.object(kinds::config_maps(), &key).unwrap();
    map["data"] = json!({"ca.crt": "mine", "more": "x"});
    world.cluster.update(kinds::config_maps(), map).await.unwrap();
    world.until("changed", |cluster| shown(cluster).is_some_and(|data| data != expected)).await;
    world.until("as before", |cluster| shown(cluster).as_ref() == Some(&expected)).await;
}
