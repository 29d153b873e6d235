//! Claims, volumes and pods through a fake cluster, with every controller.

use std::time::Duration;

use api::{Value, storage};
use serde_json::{Value as Json, json};

use super::*;
use crate::fake::FakeCluster;
use crate::testing::{World, events_of, pod_spec};

fn claim(name: &str, class: &str) -> Json {
    json!({
        "metadata": {"name": name, "finalizers": [api::strategy::CLAIM_PROTECTION]},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    })
}

fn volume(name: &str, node: &str, class: &str) -> Json {
    json!({
        "metadata": {"name": name, "finalizers": [VOLUME_PROTECTION]},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": "/mnt"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node]}]}]}}},
        "status": {"phase": "Pending"},
    })
}

fn class(name: &str, provisioner: &str, mode: &str) -> Json {
    json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
        "reclaimPolicy": "Delete"})
}

fn pod(name: &str, claims: &[&str]) -> Json {
    let mut spec = pod_spec("web:1");
    let one = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    spec["volumes"] = claims.iter().map(one).collect();
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn make(world: &World, kind: Kind, object: Json) {
    let namespace = if kind.namespaced { "ns" } else { "" };
    world.cluster.create(kind, namespace, object).await.unwrap();
}

async fn world(nodes: &[&str]) -> World {
    let world = World::start(nodes).await;
    for node in nodes {
        world.edit(kinds::nodes(), node, |object| {
            meta::set_annotation(object, storage::STORAGE_FOLDER, "/s");
            object["metadata"]["labels"][HOSTNAME] = (*node).into();
        });
    }
    make(&world, kinds::storage_classes(), class("now", storage::NO_PROVISIONER, "Immediate"))
        .await;
    let waits = "WaitForFirstConsumer";
    make(&world, kinds::storage_classes(), class("later", storage::NO_PROVISIONER, waits)).await;
    make(&world, kinds::storage_classes(), class("made", storage::LOCAL_PATH, waits)).await;
    world
}

fn of(cluster: &FakeCluster, kind: Kind, name: &str) -> Value {
    let namespace = if kind.namespaced { "ns" } else { "" };
    cluster.object(kind, &ObjectKey::new(namespace, name)).unwrap_or_default()
}

fn phase(cluster: &FakeCluster, kind: Kind, name: &str) -> String {
    of(cluster, kind, name)["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

fn node(cluster: &FakeCluster, pod: &str) -> String {
    of(cluster, kinds::pods(), pod)["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

/// Nothing is written any more, but for Events.
async fn is_quiet(world: &World) {
    world.pass(Duration::from_secs(20)).await;
    let all = || {
        let revisions =
            |kind: Kind| world.cluster.objects(kind).iter().map(revision_of).collect::<Vec<u64>>();
        (revisions(kinds::claims()), revisions(kinds::volumes()))
    };
    let before = all();
    world.pass(Duration::from_mins(10)).await;
    assert_eq!(all(), before, "after the steps the next plan is empty");
}

#[tokio::test(start_paused = true)]
async fn many_claims_and_as_many_volumes_find_each_other() {
    let mut world = world(&["a"]).await;
    for n in 0..6 {
        make(&world, kinds::claims(), claim(&format!("c{n}"), "now")).await;
        make(&world, kinds::volumes(), volume(&format!("v{n}"), "a", "now")).await;
        if n == 3 {
            // Half-way through: everything in memory is lost.
            world.restart_master();
        }
    }
    let n_bound = |cluster: &FakeCluster, kind: Kind| {
        cluster.objects(kind).iter().filter(|one| one["status"]["phase"] == "Bound").count()
    };
    world
        .until("all are bound", |cluster| {
            n_bound(cluster, kinds::claims()) == 6 && n_bound(cluster, kinds::volumes()) == 6
        })
        .await;
    for claim in world.cluster.objects(kinds::claims()) {
        let volume =
            of(&world.cluster, kinds::volumes(), claim["spec"]["volumeName"].as_str().unwrap());
        assert_eq!(volume["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
    }
    is_quiet(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_waits_for_its_first_pod_and_takes_what_is_on_its_node() {
    let world = world(&["a", "b"]).await;
    make(&world, kinds::volumes(), volume("on-b", "b", "later")).await;
    make(&world, kinds::claims(), claim("c", "later")).await;
    world
        .until("it says that it waits", |cluster| {
            !events_of(cluster, "WaitForFirstConsumer").is_empty()
        })
        .await;
    assert_eq!(phase(&world.cluster, kinds::claims(), "c"), "Pending");
    // Two pods at once: both go where the claim's volume is.
    make(&world, kinds::pods(), pod("first", &["c"])).await;
    make(&world, kinds::pods(), pod("second", &["c"])).await;
    world
        .until("both are bound", |cluster| {
            node(cluster, "first") == "b" && node(cluster, "second") == "b"
        })
        .await;
    assert_eq!(phase(&world.cluster, kinds::claims(), "c"), "Bound");
    assert_eq!(phase(&world.cluster, kinds::volumes(), "on-b"), "Bound");
    is_quiet(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_made_where_the_pod_goes_and_deleted_with_its_claim() {
    let world = world(&["a"]).await;
    make(&world, kinds::claims(), claim("c", "made")).await;
    make(&world, kinds::pods(), pod("p", &["c"])).await;
    world.until("the pod has a node", |cluster| node(cluster, "p") == "a").await;
    let claim = of(&world.cluster, kinds::claims(), "c");
    let name = claim["spec"]["volumeName"].as_str().unwrap().to_owned();
    let made = of(&world.cluster, kinds::volumes(), &name);
    assert_eq!(made["spec"]["local"]["path"], format!("/s/{name}"));
    is_quiet(&world).await;
    // The claim stays for as long as the pod does.
    let key = ObjectKey::new("ns", "c");
    world.cluster.delete(kinds::claims(), &key, DeleteOptions::default()).await.unwrap();
    world.pass(Duration::from_mins(1)).await;
    assert!(meta::is_terminating(&of(&world.cluster, kinds::claims(), "c")));
    let pod_key = ObjectKey::new("ns", "p");
    world.cluster.delete(kinds::pods(), &pod_key, DeleteOptions::default()).await.unwrap();
    world
        .until("the volume waits for its folder", |cluster| {
            let volume = of(cluster, kinds::volumes(), &name);
            meta::finalizers(&volume) == [storage::LOCAL_PATH] && meta::is_terminating(&volume)
        })
        .await;
    assert!(of(&world.cluster, kinds::claims(), "c").is_null());
    is_quiet(&world).await;
    // A node that was taken out for good has no folder any more.
    world.cluster.remove(kinds::nodes(), &ObjectKey::new("", "a"));
    world
        .until("it goes with its node", |cluster| of(cluster, kinds::volumes(), &name).is_null())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_for_one_pod_is_given_to_one_at_a_time() {
    let world = world(&["a", "b"]).await;
    let mut alone = claim("c", "made");
    alone["spec"]["accessModes"] = json!([storage::ONE_POD]);
    make(&world, kinds::claims(), alone).await;
    make(&world, kinds::pods(), pod("first", &["c"])).await;
    world.until("one has it", |cluster| !node(cluster, "first").is_empty()).await;
    make(&world, kinds::pods(), pod("second", &["c"])).await;
    world
        .until("the other is told why not", |cluster| {
            events_of(cluster, "FailedScheduling").iter().any(|m| m.contains("ReadWriteOncePod"))
        })
        .await;
    assert_eq!(node(&world.cluster, "second"), "");
    let key = ObjectKey::new("ns", "first");
    world.cluster.delete(kinds::pods(), &key, DeleteOptions::default()).await.unwrap();
    world.until("then it is the other's", |cluster| !node(cluster, "second").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_another_took_meanwhile_is_looked_for_again() {
    let world = world(&["a"]).await;
    make(&world, kinds::volumes(), volume("v", "a", "later")).await;
    make(&world, kinds::claims(), claim("c", "later")).await;
    world.pass(Duration::from_secs(5)).await;
    let named = crate::cluster::Named::new(kinds::volumes(), &ObjectKey::new("", "v"));
    world.cluster.fail_next_write(kinds::volumes(), ClusterError::Conflict(named));
    make(&world, kinds::pods(), pod("p", &["c"])).await;
    world.until("it is bound at last", |cluster| node(cluster, "p") == "a").await;
    assert_eq!(phase(&world.cluster, kinds::volumes(), "v"), "Bound");
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_its_claims_waits_and_says_why() {
    let world = world(&["a"]).await;
    make(&world, kinds::pods(), pod("p", &["c"])).await;
    let says = |text: &'static str| {
        move |cluster: &FakeCluster| {
            events_of(cluster, "FailedScheduling").iter().any(|message| message == text)
        }
    };
    let missing = "0/1 nodes are available: persistentvolumeclaim \"c\" not found.";
    world.until("the claim is missing", says(missing)).await;
    make(&world, kinds::claims(), claim("c", "now")).await;
    let unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
    world.until("the claim has no volume", says(unbound)).await;
    make(&world, kinds::volumes(), volume("v", "a", "now")).await;
    world.until("it runs", |cluster| node(cluster, "p") == "a").await;
}
