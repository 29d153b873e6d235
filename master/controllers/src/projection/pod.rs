//! The projection of a Pod.

use std::sync::Arc;

use api::selector::{LabelSelector, Requirement};
use api::time::Timestamp;
use api::view::{self, PodSpec, PodView, condition};
use api::{ObjectKey, Value};
use scheduler::filter::HOST_PORT;
use scheduler::{Demand, Effect, Platform, Resources, Toleration, TolerationOperator};

use super::{Meta, Projection, Reach, Term, intern, intern_demand, time};
use crate::image::ImageRecords;
pub use api::images::{RUNTIME_CLASS_OCI, RUNTIME_CLASS_WASM, Runtime};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not every container has started yet.
    Pending,
    /// Not heard of for a while.
    Unknown,
    /// At least one container runs.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
}

/// A Pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Metadata.
    pub meta: Meta,
    /// The node it is bound to.
    pub node: Option<Arc<str>>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when its condition `Ready` is `True`.
    pub ready_since: Option<Timestamp>,
    /// Whether it is not ready because its node was lost.
    pub node_was_lost: bool,
    /// The most restarts of one container.
    pub restarts: i64,
    /// Why it could not be scheduled when last tried.
    pub unschedulable: Option<Box<str>>,
    /// `spec.priority`.
    pub priority: i64,
    /// The annotation `controller.kubernetes.io/pod-deletion-cost`: lower goes first.
    pub deletion_cost: i32,
    /// Who binds it; empty for the default scheduler.
    pub scheduler_name: Arc<str>,
    /// What it asks of a node.
    pub demand: Arc<Demand>,
    /// Where it is reached.
    pub reach: Reach,
    /// Names of the claims its volumes are.
    pub claims: Box<[Arc<str>]>,
    /// Whether it is recorded what every one of its images is that may yet start.
    pub images_known: bool,
}

impl Pod {
    /// Whether its containers have ended for good.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether it counts as a replica: neither ended nor being deleted.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.is_finished() && !self.meta.is_deleting()
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.meta.key
    }
}

impl Projection for Pod {
    fn project(object: &Value) -> Self {
        let read: PodView = view::read(object).unwrap_or_default();
        let records = ImageRecords::of(object);
        let status = &read.status;
        let ready = condition(&status.conditions, "Ready");
        let node_was_lost =
            ready.is_some_and(|ready| ready.reason == crate::node_lifecycle::NODE_LOST);
        let ready = ready.filter(|ready| ready.is_true());
        let scheduled = condition(&status.conditions, "PodScheduled");
        let unschedulable = scheduled.filter(|scheduled| scheduled.status == "False");
        let phase = match status.phase.as_str() {
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            "Unknown" => Phase::Unknown,
            _ => Phase::Pending,
        };
        let known = |container: &view::Container| records.get(container).is_some();
        Self {
            meta: Meta::of(object),
            node: Some(read.spec.node_name.as_str()).filter(|name| !name.is_empty()).map(intern),
            phase,
            ready_since: ready
                .map(|ready| time(ready.last_transition_time.as_deref()).unwrap_or_default()),
            node_was_lost,
            restarts: status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or(0),
            unschedulable: unschedulable.map(|condition| condition.message.as_str().into()),
            priority: read.spec.priority.unwrap_or(0),
            deletion_cost: api::meta::annotation(object, DELETION_COST)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            scheduler_name: intern(&read.spec.scheduler_name),
            demand: intern_demand(demand(&read.spec, object, &records)),
            reach: Reach::of(&read),
            claims: read
                .spec
                .volumes
                .iter()
                .filter_map(|volume| volume.persistent_volume_claim.as_ref())
                .map(|claim| intern(&claim.claim_name))
                .collect(),
            images_known: match phase {
                Phase::Pending => read.spec.all_containers().all(known),
                // What runs stays as it is; what is added to look into it is new.
                _ => read.spec.ephemeral_containers.iter().all(known),
            },
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
        if let Some(node) = &self.node {
            each(Term::Node(Arc::clone(node)));
        }
        for claim in &self.claims {
            each(Term::Claim(ObjectKey::new(&self.meta.key.namespace, claim)));
        }
        for image in &self.demand.images {
            each(Term::Image(Arc::clone(image)));
        }
    }
}

fn demand(spec: &PodSpec, object: &Value, records: &ImageRecords) -> Demand {
    let mut demand = Demand { requests: requests(spec), ..Demand::default() };
    demand.node_selector =
        spec.node_selector.iter().map(|(key, value)| (intern(key), intern(value))).collect();
    demand.affinity = affinity(object);
    demand.tolerations = spec.tolerations.iter().map(toleration).collect();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        let record = records.get(container);
        match Runtime::of(spec.runtime_class_name.as_deref(), record) {
            Runtime::Wasm => demand.wasm = true,
            Runtime::Oci => {
                demand.oci = true;
                let platforms: Vec<Platform> = record.map_or_else(Vec::new, |record| {
                    record.platforms.iter().filter_map(|text| text.parse().ok()).collect()
                });
                if !platforms.is_empty() && !demand.platforms.contains(&platforms) {
                    demand.platforms.push(platforms);
                }
            }
        }
    }
    demand.images.extend(spec.all_containers().map(|container| intern(&container.image)));
    demand.images.sort();
    demand.images.dedup();
    demand
}

fn requests(spec: &PodSpec) -> Resources {
    let amount = |value: i64| u64::try_from(value).unwrap_or(0);
    let mut requests = Resources {
        cpu_millis: amount(spec.cpu_millis()),
        memory_bytes: amount(spec.memory_bytes()),
        ephemeral_bytes: amount(spec.requested("ephemeral-storage").units()),
        extended: Vec::new(),
    };
    for name in spec.requested_resources() {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
            requests.extended.push((intern(name), amount(spec.requested(name).units())));
        }
    }
    for port in spec.containers.iter().flat_map(|container| &container.ports) {
        if port.host_port > 0 {
            let name = format!("{HOST_PORT}{}/{}", port.protocol, port.host_port);
            requests.extended.push((intern(&name), 1));
        }
    }
    // Looked up by halving.
    requests.extended.sort();
    requests.extended.dedup_by(|a, b| a.0 == b.0);
    requests
}

fn toleration(toleration: &view::Toleration) -> Toleration {
    Toleration {
        key: intern(&toleration.key),
        operator: match toleration.operator.as_str() {
            "Exists" => TolerationOperator::Exists,
            _ => TolerationOperator::Equal,
        },
        value: intern(&toleration.value),
        effect: Effect::parse(&toleration.effect),
        seconds: toleration.toleration_seconds,
    }
}

/// `requiredDuringSchedulingIgnoredDuringExecution` of the node affinity.
fn affinity(object: &Value) -> Vec<Vec<Requirement>> {
    const TERMS: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    node_terms(object.pointer(TERMS))
}

/// `nodeSelectorTerms` of pods and volumes.
pub(super) fn node_terms(terms: Option<&Value>) -> Vec<Vec<Requirement>> {
    let terms = terms.and_then(Value::as_array);
    let expressions = |term: &Value, field: &str| {
        let list = term.get(field).cloned().unwrap_or_default();
        let selector = serde_json::json!({ "matchExpressions": list });
        // What cannot be read selects nothing, rather than everything.
        match LabelSelector::from_object(&selector) {
            Ok(selector) => selector.requirements,
            Err(_) => vec![unsatisfiable()],
        }
    };
    let read = |term: &Value| {
        let mut requirements = expressions(term, "matchExpressions");
        requirements.extend(expressions(term, "matchFields"));
        // An empty term matches no object, as in Kubernetes.
        if requirements.is_empty() { vec![unsatisfiable()] } else { requirements }
    };
    terms.into_iter().flatten().map(read).collect()
}

fn unsatisfiable() -> Requirement {
    Requirement {
        key: "metadata.name".to_owned(),
        operator: api::selector::Operator::In,
        values: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_bears_on_placement_is_read() {
        let pod = Pod::project(&json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
                "ownerReferences": [{"kind": "ReplicaSet", "name": "rs", "uid": "r1", "controller": true}]},
            "spec": {
                "nodeName": "board-1", "nodeSelector": {"zone": "a"}, "priority": 5,
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "disk", "operator": "Exists"}]},
                        {},
                    ]}}},
                "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                    "effect": "NoExecute", "tolerationSeconds": 300}],
                "containers": [
                    {"name": "a", "image": "r/a:1", "resources": {"requests":
                        {"cpu": "100m", "memory": "64Mi", "gpio.board/17": 1}}},
                    {"name": "b", "image": "r/b:1", "resources": {"limits": {"cpu": 1}}},
                ],
            },
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-23T07:36:35Z"}],
                "containerStatuses": [{"restartCount": 2}]},
        }));
        assert_eq!(pod.node.as_deref(), Some("board-1"));
        assert_eq!((pod.phase, pod.restarts, pod.priority), (Phase::Running, 2, 5));
        assert_eq!(pod.ready_since.map(|at| at.as_second()), Some(1_795_419_395));
        let demand = &pod.demand;
        assert_eq!((demand.requests.cpu_millis, demand.requests.memory_bytes), (1100, 64 << 20));
        assert_eq!(demand.requests.extended("gpio.board/17"), 1);
        assert!(demand.oci && !demand.wasm);
        assert_eq!(demand.affinity.len(), 2);
        assert!(!demand.affinity[1].iter().all(|r| r.matches(Some("board-1"))));
        assert_eq!(demand.tolerations[0].seconds, Some(300));
        let mut terms = Vec::new();
        pod.terms(&mut |term| terms.push(term));
        let image = |name: &str| Term::Image(name.into());
        let expected = [
            Term::Owner("r1".into()),
            Term::Node("board-1".into()),
            image("r/a:1"),
            image("r/b:1"),
        ];
        assert_eq!(terms, expected);
    }

    #[test]
    fn records_of_images_decide_runtime_and_platforms() {
        let digest = |n: u8| format!("sha256:{n:064}");
        let mut object = json!({
            "metadata": {"annotations": {"pinnace.io/images": json!({
                "a": {"image": "r/a:1", "digest": digest(1), "runtime": "wasm", "platforms": ["wasi/wasm"]},
                "b": {"image": "r/b:1", "digest": digest(2), "runtime": "oci", "platforms": ["linux/arm64"]},
            }).to_string()}},
            "spec": {"containers": [{"name": "a", "image": "r/a:1"}, {"name": "b", "image": "r/b:1"}]},
        });
        let pod = Pod::project(&object);
        assert!(pod.demand.oci && pod.demand.wasm && pod.images_known);
        assert_eq!(pod.demand.platforms, [["linux/arm64".parse().unwrap()]]);
        // A record of another image than the container has now counts for nothing.
        object["spec"]["containers"][0]["image"] = "r/a:2".into();
        let pod = Pod::project(&object);
        assert!(!pod.demand.wasm && !pod.images_known);
        object["spec"]["runtimeClassName"] = "wasm".into();
        assert!(!Pod::project(&object).demand.oci);
    }

    #[test]
    fn init_containers_count_like_the_others_and_ephemeral_ones_when_the_pod_runs() {
        let digest = format!("sha256:{}", "c".repeat(64));
        let record = |image: &str, runtime: &str| json!({"image": image, "digest": digest, "runtime": runtime, "platforms": ["linux/arm64"]});
        let records = json!({"a": record("r/a:1", "oci"), "i": record("r/i:1", "wasm")});
        let mut object = json!({
            "metadata": {"name": "x", "annotations": {"pinnace.io/images": records.to_string()}},
            "spec": {"containers": [{"name": "a", "image": "r/a:1"}],
                     "initContainers": [{"name": "i", "image": "r/i:1"}]},
        });
        let pod = Pod::project(&object);
        assert!(pod.images_known && pod.demand.wasm && pod.demand.oci);
        object["spec"]["initContainers"][0]["image"] = "r/i:2".into();
        assert!(!Pod::project(&object).images_known);
        object["status"] = json!({"phase": "Running"});
        assert!(Pod::project(&object).images_known, "what runs stays as it is");
        object["spec"]["ephemeralContainers"] = json!([{"name": "look", "image": "r/l:1"}]);
        let pod = Pod::project(&object);
        assert!(!pod.images_known && pod.demand.images.contains(&"r/l:1".into()));
    }
}
