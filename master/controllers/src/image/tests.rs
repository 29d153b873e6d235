//! Images that are known, unknown, slow and wrong.

use std::time::Duration;

use api::ObjectKey;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ImageRecords, ResolveError};
use crate::cluster::kinds;
use crate::fake::FakeCluster;
use crate::projection::Runtime;
use crate::testing::{World, events_of, pod_spec, resolved};

fn pod(name: &str, image: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"x": "y"}}, "spec": pod_spec(image)})
}

fn node_of(cluster: &FakeCluster, name: &str) -> String {
    let pod = cluster.object(kinds::pods(), &ObjectKey::new("ns", name)).unwrap_or_default();
    pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

fn is_recorded(cluster: &FakeCluster, name: &str) -> bool {
    let pod = cluster.object(kinds::pods(), &ObjectKey::new("ns", name)).unwrap_or_default();
    ImageRecords::of(&pod) != ImageRecords::default()
}

async fn world() -> World {
    let world = World::start(&["arm", "wasm"]).await;
    world.edit(kinds::nodes(), "arm", |node| {
        node["metadata"]["labels"] = json!({"kubernetes.io/arch": "arm64"});
    });
    world.edit(kinds::nodes(), "wasm", |node| {
        node["metadata"]["labels"] =
            json!({"kubernetes.io/arch": "amd64", "pinnace.io/runtime-wasm": "true"});
    });
    world.pass(Duration::from_millis(100)).await;
    world
}

#[tokio::test(start_paused = true)]
async fn what_the_image_is_decides_where_the_pod_runs() {
    let world = world().await;
    world.registry.set("arm:1", Ok(resolved(Runtime::Oci, &["linux/arm64"])));
    world.registry.set("wasm:1", Ok(resolved(Runtime::Wasm, &["wasip1/wasm"])));
    world.registry.set("odd:1", Ok(resolved(Runtime::Oci, &["linux/s390x"])));
    for (name, image) in [("a", "arm:1"), ("w", "wasm:1"), ("o", "odd:1")] {
        world.create(kinds::pods(), pod(name, image)).await;
    }
    world.until("bound", |c| !node_of(c, "a").is_empty() && !node_of(c, "w").is_empty()).await;
    assert_eq!(
        (node_of(&world.cluster, "a"), node_of(&world.cluster, "w")),
        ("arm".into(), "wasm".into())
    );
    world
        .until("told", |cluster| {
            let told = events_of(cluster, "FailedScheduling");
            told.iter().any(|message| {
                message.contains(
                    "1 node(s) with platform linux/arm64 can't run an image built for linux/s390x",
                )
            })
        })
        .await;
    assert_eq!(node_of(&world.cluster, "o"), "");
    let recorded = world.get(kinds::pods(), "w").unwrap();
    let read: api::view::PodView = api::view::read(&recorded).unwrap();
    let records = ImageRecords::of(&recorded);
    let record = records.get(&read.spec.containers[0]).unwrap();
    assert_eq!((record.runtime, record.digest.len()), (Runtime::Wasm, 71));
}

#[tokio::test(start_paused = true)]
async fn one_lookup_serves_many_pods() {
    let world = world().await;
    world.registry.set_delay(Duration::from_millis(200));
    for n in 0..20 {
        world.create(kinds::pods(), pod(&format!("p{n}"), "web:1")).await;
    }
    world.until("bound", |c| (0..20).all(|n| is_recorded(c, &format!("p{n}")))).await;
    assert_eq!(world.registry.asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_never_keeps_a_pod_waiting() {
    let world = world().await;
    world.registry.set_delay(Duration::from_secs(3600));
    let start = Instant::now();
    world.create(kinds::pods(), pod("a", "web:1")).await;
    world.until("bound", |c| !node_of(c, "a").is_empty()).await;
    assert!(start.elapsed() <= Duration::from_millis(1100), "{:?}", start.elapsed());

    // One that refuses at once does not even make it wait.
    let world = self::world().await;
    let down = ResolveError::Unreachable("connection refused".to_owned());
    world.registry.set("web:1", Err(down));
    let start = Instant::now();
    world.create(kinds::pods(), pod("a", "web:1")).await;
    world.until("bound", |c| !node_of(c, "a").is_empty()).await;
    assert!(start.elapsed() <= Duration::from_millis(500), "{:?}", start.elapsed());
    world.until("told", |c| !events_of(c, "ErrImageInspect").is_empty()).await;
    assert_eq!(
        events_of(&world.cluster, "ErrImageInspect")[0],
        "Failed to inspect image \"web:1\": the registry cannot be reached: connection refused; check the registry's address and the master's network"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failing_lookup_backs_off_and_recovers() {
    let world = World::start(&[]).await;
    let missing = ResolveError::NotFound("manifest unknown".to_owned());
    world.registry.set("web:1", Err(missing));
    world.create(kinds::pods(), pod("a", "web:1")).await;
    world.pass(Duration::from_secs(120)).await;
    let asked = world.registry.asked.lock().unwrap().len();
    assert!((5..=9).contains(&asked), "asked {asked} times in two minutes");
    // Another pod with the same image asks again, once.
    world.create(kinds::pods(), pod("b", "web:1")).await;
    world.pass(Duration::from_secs(2)).await;
    let more = world.registry.asked.lock().unwrap().len() - asked;
    assert!((1..=2).contains(&more), "{more}");
    world.registry.set("web:1", Ok(resolved(Runtime::Oci, &[])));
    world.until("known", |c| is_recorded(c, "a") && is_recorded(c, "b")).await;
}

#[tokio::test(start_paused = true)]
async fn a_bound_pod_is_told_only_that_it_is_wasm() {
    let world = world().await;
    let down = ResolveError::Unreachable("no route".to_owned());
    world.registry.set("wasm:1", Err(down.clone()));
    world.registry.set("web:1", Err(down));
    // Bound without a record, and not started: the node is silent.
    world.nodes.kill("arm");
    world.nodes.kill("wasm");
    world.create(kinds::pods(), pod("w", "wasm:1")).await;
    world.create(kinds::pods(), pod("o", "web:1")).await;
    world.until("bound", |c| !node_of(c, "w").is_empty() && !node_of(c, "o").is_empty()).await;
    world.registry.set("wasm:1", Ok(resolved(Runtime::Wasm, &[])));
    world.registry.set("web:1", Ok(resolved(Runtime::Oci, &[])));
    world.until("known", |c| is_recorded(c, "w")).await;
    world.pass(Duration::from_secs(600)).await;
    assert!(!is_recorded(&world.cluster, "o"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_digest_is_refused() {
    let world = World::start(&[]).await;
    let mut image = resolved(Runtime::Oci, &[]);
    image.digest = "../../etc/passwd".to_owned();
    world.registry.set("web:1", Ok(image));
    world.create(kinds::pods(), pod("a", "web:1")).await;
    world.until("told", |c| !events_of(c, "ErrImageInspect").is_empty()).await;
    assert!(!is_recorded(&world.cluster, "a"));
}
