//! The plan by properties, and whole rollouts through a fake cluster.

use std::sync::Arc;
use std::time::Duration;

use api::time::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Desired, Plan, SetChange, Step, plan};
use crate::cluster::{Cluster as _, DeleteOptions, kinds};
use crate::projection::{Projection as _, ReplicaSet, annotations};
use crate::testing::{World, deployment, events_of};

/// A Deployment and its ReplicaSets, driven by plans. Pods become available or
/// break as the test says.
#[derive(Clone, Debug)]
struct Model {
    desired: Desired,
    sets: Vec<Value>,
    now: i64,
    n_made: i64,
}

impl Model {
    fn new(replicas: i64, max_surge: i64, max_unavailable: i64, recreate: bool) -> Self {
        let mut object = deployment("web", replicas, "web:1");
        if recreate {
            object["spec"]["strategy"] = json!({"type": "Recreate"});
        } else {
            object["spec"]["strategy"]["rollingUpdate"] =
                json!({"maxSurge": max_surge, "maxUnavailable": max_unavailable});
        }
        object["metadata"]["generation"] = 1.into();
        let read = api::view::read(&object).unwrap();
        Self { desired: Desired::new(&read), sets: Vec::new(), now: 1_000_000, n_made: 0 }
    }

    fn views(&self) -> Vec<Arc<ReplicaSet>> {
        self.sets.iter().map(|set| Arc::new(ReplicaSet::project(set))).collect()
    }

    fn plan(&self) -> Plan {
        let has_pods = |set: &ReplicaSet| set.status.replicas > 0;
        let now = Timestamp::from_second(self.now).unwrap();
        plan(&self.desired, &self.views(), has_pods, now)
    }

    fn set(&mut self, name: &str) -> &mut Value {
        self.sets.iter_mut().find(|set| api::meta::name(set) == name).unwrap()
    }

    fn apply(&mut self, plan: Plan) -> bool {
        let changed = !plan.steps.is_empty() || plan.status != self.desired.status;
        for step in plan.steps {
            match step {
                Step::Create { name, hash, change } => {
                    self.n_made += 1;
                    let created = Timestamp::from_second(self.now + self.n_made).unwrap();
                    // The template is known by a number here, as its digest is.
                    let mut set = json!({
                        "metadata": {"name": name, "uid": name, "generation": 1,
                            "creationTimestamp": api::time::rfc3339(created),
                            "labels": {annotations::POD_TEMPLATE_HASH: hash}},
                        "spec": {"replicas": 0, "template": self.template()},
                        "status": {"replicas": 0},
                    });
                    change.apply(&mut set, &[]);
                    assert!(!self.sets.iter().any(|other| api::meta::name(other) == name));
                    self.sets.push(set);
                }
                Step::Update { set, change } => {
                    let object = self.set(&set.meta.key.name);
                    assert!(
                        change.apply(object, &[]),
                        "an update that changes nothing: {change:?}"
                    );
                }
                Step::Delete(set) => {
                    assert_eq!((set.replicas, set.status.replicas), (0, 0), "deletes pods");
                    self.sets.retain(|other| api::meta::name(other) != set.meta.key.name);
                }
                Step::SetRevision(revision) => self.desired.revision = Some(revision),
            }
        }
        self.desired.status = plan.status;
        changed
    }

    fn template(&self) -> Value {
        json!({"spec": {"version": self.version()}})
    }

    fn version(&self) -> String {
        format!("{:x}", self.desired.template)
    }

    /// Changes the template, and makes the digest that of [`Model::template`].
    fn set_template(&mut self, version: u64) {
        let template = json!({"spec": {"version": version}});
        self.desired.template = crate::projection::template_digest(&template);
        self.desired.generation += 1;
    }

    /// ReplicaSets make and remove pods; `available` of each become available.
    fn settle(&mut self, available: impl Fn(usize, i64) -> i64) {
        for (n, set) in self.sets.iter_mut().enumerate() {
            let replicas = set["spec"]["replicas"].as_i64().unwrap();
            let available = available(n, replicas).clamp(0, replicas);
            set["status"] = json!({"replicas": replicas, "readyReplicas": available,
                "availableReplicas": available, "observedGeneration": 1});
        }
        self.now += 1;
    }

    fn total(&self, pointer: &str) -> i64 {
        self.sets.iter().map(|set| set.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)).sum()
    }
}

/// In the model the template of a set is found by its text.
fn fix_templates(model: &mut Model, version: u64) {
    let digest = crate::projection::template_digest(&json!({"spec": {"version": version}}));
    for set in &mut model.sets {
        if set["spec"]["template"]["spec"]["version"] == format!("{digest:x}") {
            set["spec"]["template"] = json!({"spec": {"version": version}});
        }
    }
}

proptest! {
    #[test]
    fn a_rollout_ends_and_keeps_its_bounds(
        replicas in 0_i64..12,
        max_surge in 0_i64..5,
        max_unavailable in 0_i64..5,
        recreate in any::<bool>(),
        versions in prop::collection::vec(0_u64..3, 1..5),
        speed in 1_i64..4,
        interrupt in 0_usize..6,
    ) {
        let mut model = Model::new(replicas, max_surge, max_unavailable, recreate);
        let (surge, unavailable) = (model.desired.max_surge, model.desired.max_unavailable);
        let mut was_complete = false;
        let last = versions.len() - 1;
        for (n, version) in versions.into_iter().enumerate() {
            model.set_template(version);
            let mut passes = 0;
            loop {
                let before = model.clone();
                let plan = model.plan();
                let changed = model.apply(plan);
                fix_templates(&mut model, version);
                prop_assert!(
                    model.total("/spec/replicas") <= replicas + surge,
                    "too many pods: {:?}", model.sets
                );
                let speed_now = speed;
                let old: Vec<i64> = before.sets.iter()
                    .map(|set| set["status"]["availableReplicas"].as_i64().unwrap_or(0)).collect();
                let old_available: i64 = old.iter().sum();
                model.settle(|n, replicas| {
                    old.get(n).copied().unwrap_or(0).min(replicas) + speed_now.min(replicas)
                });
                if was_complete && !recreate {
                    prop_assert!(
                        old_available.min(model.total("/status/availableReplicas"))
                            >= replicas - unavailable,
                        "too few pods: {:?}", model.sets
                    );
                }
                passes += 1;
                prop_assert!(passes < 300, "no end: {:?}", model);
                let done = super::status::is_complete(&model.desired, &model.desired.status);
                was_complete |= done;
                if n < last && passes > interrupt { break; }
                if !changed && done { break; }
            }
        }
        let plan = model.plan();
        prop_assert!(plan.steps.is_empty(), "{:?}", plan.steps);
        prop_assert_eq!(&plan.status, &model.desired.status);
        prop_assert_eq!(plan.look_again, None);
        let sizes: Vec<i64> =
            model.sets.iter().filter_map(|set| set["spec"]["replicas"].as_i64()).filter(|n| *n > 0).collect();
        prop_assert_eq!(sizes, if replicas > 0 { vec![replicas] } else { vec![] });
    }

    #[test]
    fn a_change_of_size_in_a_rollout_ends_too(
        sizes in prop::collection::vec(0_i64..15, 1..5), paused in any::<bool>(), steps in 0_usize..4,
    ) {
        let mut model = Model::new(10, 3, 2, false);
        model.set_template(1);
        for _ in 0..60 {
            let plan = model.plan();
            model.apply(plan);
            fix_templates(&mut model, 1);
            model.settle(|_, replicas| replicas);
        }
        model.set_template(2);
        for size in sizes {
            for _ in 0..steps {
                let plan = model.plan();
                model.apply(plan);
                fix_templates(&mut model, 2);
                model.settle(|_, replicas| replicas);
            }
            model.desired.replicas = size;
            model.desired.max_unavailable = size.min(2);
            model.desired.paused = paused;
            model.desired.generation += 1;
        }
        let mut passes = 0;
        while { let plan = model.plan(); model.apply(plan) } {
            fix_templates(&mut model, 2);
            model.settle(|_, replicas| replicas);
            passes += 1;
            prop_assert!(passes < 200, "no end: {:?}", model.sets);
        }
        let most = if model.desired.replicas > 0 { model.desired.pods_max() } else { 0 };
        prop_assert!(model.total("/spec/replicas") <= most.max(if paused { 13 } else { 0 }), "{:?}", model.sets);
        if !paused {
            prop_assert_eq!(model.total("/spec/replicas"), model.desired.replicas);
        }
    }
}

#[test]
fn a_template_used_before_moves_to_the_front_of_the_history() {
    let mut set = json!({"metadata": {"annotations": {
        annotations::REVISION: "1", annotations::REVISION_HISTORY: "0"}}});
    let change = SetChange { revision: Some(4), ..SetChange::default() };
    assert!(change.apply(&mut set, &[]));
    assert_eq!(api::meta::annotation(&set, annotations::REVISION), Some("4"));
    assert_eq!(api::meta::annotation(&set, annotations::REVISION_HISTORY), Some("0,1"));
    assert!(!change.apply(&mut set, &[]));
}

fn status(world: &World, name: &str) -> Value {
    world.get(kinds::deployments(), name).map(|d| d["status"].clone()).unwrap_or_default()
}

/// What `kubectl rollout status` waits for.
fn rolled_out(object: &Value) -> bool {
    let (replicas, status) = (&object["spec"]["replicas"], &object["status"]);
    let zero = json!(0);
    let count = |field: &str| status.get(field).unwrap_or(&zero).clone();
    status["observedGeneration"] == object["metadata"]["generation"]
        && count("updatedReplicas") == *replicas
        && count("replicas") == *replicas
        && count("availableReplicas") == *replicas
        && status["conditions"].as_array().is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c["type"] == "Progressing" && c["reason"] == "NewReplicaSetAvailable")
        })
}

async fn until_rolled_out(world: &World, name: &str) {
    let key = api::ObjectKey::new("ns", name);
    world
        .until("rolled out", |cluster| {
            cluster.object(kinds::deployments(), &key).is_some_and(|object| rolled_out(&object))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_keeps_pods_available() {
    let world = World::start(&["a", "b"]).await;
    world.create(kinds::deployments(), deployment("web", 4, "web:1")).await;
    until_rolled_out(&world, "web").await;
    assert_eq!(world.pods().len(), 4);
    assert_eq!(
        world.get(kinds::deployments(), "web").unwrap()["metadata"]["annotations"]
            [annotations::REVISION],
        "1"
    );

    // Watched at every write: 25 % of 4 may be missing, and 25 % too many.
    let mut least = usize::MAX;
    let mut most = 0;
    world.edit(kinds::deployments(), "web", |web| {
        web["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2".into();
    });
    let key = api::ObjectKey::new("ns", "web");
    world
        .until("updated", |cluster| {
            let pods = cluster.objects(kinds::pods());
            let alive: Vec<&Value> =
                pods.iter().filter(|p| !api::meta::is_terminating(p)).collect();
            let ready = alive.iter().filter(|p| {
                p["status"]["conditions"].as_array().is_some_and(|list| {
                    list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
            });
            least = least.min(ready.count());
            most = most.max(alive.len());
            cluster.object(kinds::deployments(), &key).is_some_and(|object| rolled_out(&object))
        })
        .await;
    assert!(least >= 3, "only {least} pods were ready at some time");
    assert!(most <= 5, "{most} pods at some time");
    let images: Vec<Value> = world
        .cluster
        .objects(kinds::pods())
        .iter()
        .map(|pod| pod["spec"]["containers"][0]["image"].clone())
        .collect();
    assert_eq!(images, vec![json!("web:2"); 4]);
    let sets = world.cluster.objects(kinds::replica_sets());
    assert_eq!(sets.len(), 2, "the old one is kept for undo");
    assert!(events_of(&world.cluster, "ScalingReplicaSet").len() >= 3);
}

#[tokio::test(start_paused = true)]
async fn an_undo_takes_the_old_set_again() {
    let world = World::start(&["a"]).await;
    world.create(kinds::deployments(), deployment("web", 2, "web:1")).await;
    until_rolled_out(&world, "web").await;
    let first = world.cluster.objects(kinds::replica_sets())[0].clone();
    let image = |image: &str| {
        let image = image.to_owned();
        move |web: &mut Value| {
            web["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        }
    };
    world.edit(kinds::deployments(), "web", image("web:2"));
    until_rolled_out(&world, "web").await;
    world.edit(kinds::deployments(), "web", image("web:1"));
    until_rolled_out(&world, "web").await;
    let sets = world.cluster.objects(kinds::replica_sets());
    assert_eq!(sets.len(), 2);
    let again = world.get(kinds::replica_sets(), api::meta::name(&first)).unwrap();
    assert_eq!(again["metadata"]["annotations"][annotations::REVISION], "3");
    assert_eq!(again["metadata"]["annotations"][annotations::REVISION_HISTORY], "1");
    assert_eq!(again["spec"]["replicas"], 2);
    let web = world.get(kinds::deployments(), "web").unwrap();
    assert_eq!(web["metadata"]["annotations"][annotations::REVISION], "3");
}

#[tokio::test(start_paused = true)]
async fn a_paused_rollout_waits_but_scales() {
    let world = World::start(&["a"]).await;
    world.create(kinds::deployments(), deployment("web", 2, "web:1")).await;
    until_rolled_out(&world, "web").await;
    world.edit(kinds::deployments(), "web", |web| {
        web["spec"]["paused"] = true.into();
        web["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2".into();
    });
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(world.cluster.objects(kinds::replica_sets()).len(), 1);
    let progressing = status(&world, "web")["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Progressing")
        .cloned()
        .unwrap();
    assert_eq!(
        (&progressing["status"], &progressing["reason"]),
        (&json!("Unknown"), &json!("DeploymentPaused"))
    );
    world.edit(kinds::deployments(), "web", |web| web["spec"]["replicas"] = 5.into());
    world.until("scaled", |cluster| crate::testing::pods_of(cluster).len() == 5).await;
    world.edit(kinds::deployments(), "web", |web| web["spec"]["paused"] = false.into());
    until_rolled_out(&world, "web").await;
    assert_eq!(world.cluster.objects(kinds::replica_sets()).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn recreate_never_runs_two_templates_at_once() {
    let world = World::start(&["a"]).await;
    let mut object = deployment("web", 3, "web:1");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    world.create(kinds::deployments(), object).await;
    until_rolled_out(&world, "web").await;
    world.edit(kinds::deployments(), "web", |web| {
        web["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2".into();
    });
    let key = api::ObjectKey::new("ns", "web");
    world
        .until("updated", |cluster| {
            let pods = cluster.objects(kinds::pods());
            let mut images: Vec<&Value> =
                pods.iter().map(|pod| &pod["spec"]["containers"][0]["image"]).collect();
            images.dedup();
            assert!(images.len() <= 1, "{images:?}");
            cluster.object(kinds::deployments(), &key).is_some_and(|object| rolled_out(&object))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_does_not_get_on_is_told() {
    let world = World::start(&["a"]).await;
    let mut object = deployment("web", 2, "web:1");
    object["spec"]["progressDeadlineSeconds"] = 30.into();
    object["spec"]["template"]["spec"]["nodeSelector"] = json!({"nowhere": "true"});
    world.create(kinds::deployments(), object).await;
    let key = api::ObjectKey::new("ns", "web");
    world
        .until("stuck", |cluster| {
            cluster.object(kinds::deployments(), &key).is_some_and(|web| {
                web["status"]["conditions"].as_array().is_some_and(|conditions| {
                    conditions.iter().any(|c| {
                        c["reason"] == "ProgressDeadlineExceeded" && c["status"] == "False"
                    })
                })
            })
        })
        .await;
    assert!(world.pods().iter().all(|(_, node, _)| node.is_empty()));
    let told = events_of(&world.cluster, "FailedScheduling");
    assert!(
        told[0].starts_with(
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
        ),
        "{told:?}"
    );
    // Once a node fits, it goes on.
    world.edit(kinds::nodes(), "a", |node| node["metadata"]["labels"]["nowhere"] = "true".into());
    until_rolled_out(&world, "web").await;
}

#[tokio::test(start_paused = true)]
async fn history_is_kept_as_long_as_asked() {
    let world = World::start(&["a"]).await;
    let mut object = deployment("web", 1, "web:0");
    object["spec"]["revisionHistoryLimit"] = 2.into();
    world.create(kinds::deployments(), object).await;
    until_rolled_out(&world, "web").await;
    for n in 1..6 {
        world.edit(kinds::deployments(), "web", |web| {
            web["spec"]["template"]["spec"]["containers"][0]["image"] = format!("web:{n}").into();
        });
        until_rolled_out(&world, "web").await;
    }
    world.until("cleaned up", |cluster| cluster.objects(kinds::replica_sets()).len() == 3).await;
    let mut revisions: Vec<String> = world
        .cluster
        .objects(kinds::replica_sets())
        .iter()
        .map(|set| {
            set["metadata"]["annotations"][annotations::REVISION].as_str().unwrap().to_owned()
        })
        .collect();
    revisions.sort();
    assert_eq!(revisions, ["4", "5", "6"]);
}

#[tokio::test(start_paused = true)]
async fn a_set_left_behind_is_adopted() {
    let world = World::start(&["a"]).await;
    world.create(kinds::deployments(), deployment("web", 2, "web:1")).await;
    until_rolled_out(&world, "web").await;
    let set = api::meta::name(&world.cluster.objects(kinds::replica_sets())[0]).to_owned();
    // `kubectl delete --cascade=orphan`, then the same manifest again.
    let options =
        DeleteOptions { propagation: Some(crate::Propagation::Orphan), ..DeleteOptions::default() };
    let key = api::ObjectKey::new("ns", "web");
    world.cluster.delete(kinds::deployments(), &key, options).await.unwrap();
    world.until("gone", |cluster| cluster.object(kinds::deployments(), &key).is_none()).await;
    let uids = |world: &World| -> Vec<String> {
        world
            .cluster
            .objects(kinds::pods())
            .iter()
            .map(|pod| api::meta::uid(pod).to_owned())
            .collect()
    };
    let before = uids(&world);
    world.pass(Duration::from_secs(30)).await;
    assert_eq!(uids(&world), before);
    world.create(kinds::deployments(), deployment("web", 2, "web:1")).await;
    until_rolled_out(&world, "web").await;
    assert_eq!(uids(&world), before, "no pod was restarted");
    assert_eq!(world.cluster.objects(kinds::replica_sets()).len(), 1);
    let owner = api::meta::controller(&world.get(kinds::replica_sets(), &set).unwrap()).unwrap();
    assert_eq!(owner.kind, "Deployment");
}
