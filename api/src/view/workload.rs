//! Views of the kinds that make pods: Deployment and ReplicaSet.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Condition, IntOrString};
use crate::meta::ObjectMeta;
use crate::selector::{LabelSelector, LabelSelectorError};

/// A Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DeploymentView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: DeploymentSpec,
    /// What was last seen.
    pub status: DeploymentStatus,
}

/// What a Deployment asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentSpec {
    /// Pods to run; 1 where it is not given.
    pub replicas: Option<i64>,
    /// Which pods are its own, in object form.
    pub selector: Value,
    /// What each pod is made from, whole: it is copied, never interpreted.
    pub template: Value,
    /// How old pods make way for new ones.
    pub strategy: DeploymentStrategy,
    /// Seconds a pod must be ready before it counts as available.
    pub min_ready_seconds: i64,
    /// Old ReplicaSets to keep; 10 where it is not given.
    pub revision_history_limit: Option<i64>,
    /// Whether roll-outs wait.
    pub paused: bool,
    /// Seconds without progress after which the roll-out counts as failed.
    pub progress_deadline_seconds: Option<i64>,
}

impl DeploymentSpec {
    /// The selector, ready to compare.
    ///
    /// # Errors
    /// Where validation was passed by; the text names the label or operator.
    pub fn selector(&self) -> Result<LabelSelector, LabelSelectorError> {
        LabelSelector::from_object(&self.selector)
    }
}

/// How old pods make way for new ones.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentStrategy {
    /// `RollingUpdate` or `Recreate`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bounds of a rolling update.
    pub rolling_update: Option<RollingUpdate>,
}

/// Bounds of a rolling update.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RollingUpdate {
    /// Pods that may be missing; shares are rounded down.
    pub max_unavailable: Option<IntOrString>,
    /// Pods that may be too many; shares are rounded up.
    pub max_surge: Option<IntOrString>,
}

/// What was last seen of a Deployment; written whole by its controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentStatus {
    /// The generation the rest is about.
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// Pods there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub replicas: i64,
    /// Pods of the newest template.
    #[serde(skip_serializing_if = "is_zero")]
    pub updated_replicas: i64,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_replicas: i64,
    /// Pods ready for `minReadySeconds`.
    #[serde(skip_serializing_if = "is_zero")]
    pub available_replicas: i64,
    /// Pods missing for all to be available.
    #[serde(skip_serializing_if = "is_zero")]
    pub unavailable_replicas: i64,
    /// Pods that are being deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    /// Counts clashes of ReplicaSet names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
    /// `Available`, `Progressing`, `ReplicaFailure`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A ReplicaSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReplicaSetView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: ReplicaSetSpec,
    /// What was last seen.
    pub status: ReplicaSetStatus,
}

/// What a ReplicaSet asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaSetSpec {
    /// Pods to run; 1 where it is not given.
    pub replicas: Option<i64>,
    /// Seconds a pod must be ready before it counts as available.
    pub min_ready_seconds: i64,
    /// Which pods are its own, in object form.
    pub selector: Value,
    /// What each pod is made from, whole.
    pub template: Value,
}

impl ReplicaSetSpec {
    /// The selector, ready to compare.
    ///
    /// # Errors
    /// Where validation was passed by; the text names the label or operator.
    pub fn selector(&self) -> Result<LabelSelector, LabelSelectorError> {
        LabelSelector::from_object(&self.selector)
    }
}

/// What was last seen of a ReplicaSet; written whole by its controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaSetStatus {
    /// The generation the rest is about.
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// Pods there are; the only count that is always shown.
    pub replicas: i64,
    /// Pods that carry all labels of the template.
    #[serde(skip_serializing_if = "is_zero")]
    pub fully_labeled_replicas: i64,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_replicas: i64,
    /// Pods ready for `minReadySeconds`.
    #[serde(skip_serializing_if = "is_zero")]
    pub available_replicas: i64,
    /// Pods that are being deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    /// `ReplicaFailure`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view;

    #[test]
    fn a_deployment_is_read_and_its_status_written_as_kubernetes_does() {
        let object = json!({
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"anything": 1}},
            },
            "status": {"observedGeneration": 2, "conditions": [{"type": "Available", "status": "True"}]},
        });
        let deployment: DeploymentView = view::read(&object).unwrap();
        assert_eq!(deployment.spec.replicas, Some(0));
        assert_eq!(deployment.spec.selector().unwrap().to_string(), "app=web");
        assert_eq!(deployment.spec.template["spec"]["anything"], 1);
        let update = deployment.spec.strategy.rolling_update.unwrap();
        assert_eq!(update.max_unavailable, Some(IntOrString::Int(0)));
        assert!(view::condition(&deployment.status.conditions, "Available").unwrap().is_true());
        let written = serde_json::to_value(&deployment.status).unwrap();
        assert_eq!(written, object["status"]);
        let empty = serde_json::to_value(ReplicaSetStatus::default()).unwrap();
        assert_eq!(empty, json!({"replicas": 0}));
    }
}
