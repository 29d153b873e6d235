//! The projections of Deployments and ReplicaSets.

use std::sync::Arc;

use api::selector::LabelSelector;
use api::view::{self, DeploymentView, ReplicaSetView, condition};
use api::{Value, meta};

use super::{Labels, Meta, Projection, Term, intern};

/// Annotations and labels of Deployments and their ReplicaSets; Kubernetes' names.
pub mod annotations {
    /// Counts the templates a Deployment has had.
    pub const REVISION: &str = "deployment.kubernetes.io/revision";
    /// Earlier numbers of the same template, separated by commas.
    pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
    /// `spec.replicas` of the Deployment when the ReplicaSet was last scaled.
    pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
    /// The same with the surge.
    pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
    /// Tells the pods of one ReplicaSet of a Deployment from the others'.
    pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
}

/// A Deployment: which ReplicaSets are its own. The rest is read when it is
/// reconciled.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Metadata.
    pub meta: Meta,
    /// Which ReplicaSets and pods are its own.
    pub selector: Arc<LabelSelector>,
}

impl Projection for Deployment {
    fn project(object: &Value) -> Self {
        let read: DeploymentView = view::read(object).unwrap_or_default();
        let selector = read.spec.selector().unwrap_or_else(|_| LabelSelector::nothing());
        Self { meta: Meta::of(object), selector: Arc::new(selector) }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
    }
}

/// A ReplicaSet.
#[derive(Clone, Debug)]
pub struct ReplicaSet {
    /// Metadata.
    pub meta: Meta,
    /// Pods asked for.
    pub replicas: i64,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i64,
    /// Which pods are its own.
    pub selector: Arc<LabelSelector>,
    /// Labels of the template.
    pub template_labels: Labels,
    /// Tells templates apart, the hash label left out: see [`template_digest`].
    pub template: u128,
    /// What was last seen.
    pub status: view::ReplicaSetStatus,
    /// The revision annotation.
    pub revision: Option<i64>,
    /// The desired-replicas annotation.
    pub desired: Option<i64>,
    /// The max-replicas annotation.
    pub max: Option<i64>,
    /// Its other annotations, sorted by key.
    pub annotations: Labels,
}

impl ReplicaSet {
    /// Reason and message of its condition `ReplicaFailure`, where it is `True`.
    #[must_use]
    pub fn failure(&self) -> Option<&view::Condition> {
        condition(&self.status.conditions, "ReplicaFailure").filter(|failure| failure.is_true())
    }
}

impl Projection for ReplicaSet {
    fn project(object: &Value) -> Self {
        let read: ReplicaSetView = view::read(object).unwrap_or_default();
        let number = |key: &str| meta::annotation(object, key).and_then(|text| text.parse().ok());
        let selector = read.spec.selector().unwrap_or_else(|_| LabelSelector::nothing());
        let mut template_labels: Vec<(Arc<str>, Arc<str>)> = meta::labels(&read.spec.template)
            .map(|(key, value)| (intern(key), intern(value)))
            .collect();
        template_labels.sort();
        let other = read.metadata.annotations.iter().filter(|(key, _)| !own_annotation(key));
        Self {
            meta: Meta::of(object),
            replicas: read.spec.replicas.unwrap_or(1),
            min_ready_seconds: read.spec.min_ready_seconds,
            selector: Arc::new(selector),
            template_labels: template_labels.into(),
            template: template_digest(&read.spec.template),
            status: read.status,
            revision: number(annotations::REVISION),
            desired: number(annotations::DESIRED_REPLICAS),
            max: number(annotations::MAX_REPLICAS),
            annotations: other.map(|(key, value)| (intern(key), intern(value))).collect(),
        }
    }

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn terms(&self, each: &mut dyn FnMut(Term)) {
        self.meta.terms(each);
    }
}

/// Whether an annotation belongs to the Deployment or the ReplicaSet alone and
/// is never copied from one to the other.
#[must_use]
pub(crate) fn own_annotation(key: &str) -> bool {
    matches!(
        key,
        annotations::REVISION
            | annotations::REVISION_HISTORY
            | annotations::DESIRED_REPLICAS
            | annotations::MAX_REPLICAS
            | "kubectl.kubernetes.io/last-applied-configuration"
            | "deprecated.deployment.rollback.to"
    )
}

/// Tells pod templates apart: FNV-1a over the template with its keys sorted,
/// without the label `pod-template-hash` and without empty values, so that two
/// spellings of one template are one.
///
/// The same on every machine and for ever, since ReplicaSets are named by it.
#[must_use]
pub fn template_digest(template: &Value) -> u128 {
    let mut text = String::new();
    canonical(template, &mut Vec::new(), &mut text);
    digest(text.as_bytes())
}

/// FNV-1a, 128 bits.
#[must_use]
pub fn digest(bytes: &[u8]) -> u128 {
    digest_more(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, bytes)
}

fn digest_more(sum: u128, bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    // The length first, so that two texts in a row are not one longer text.
    let length = (bytes.len() as u64).to_le_bytes();
    length.iter().chain(bytes).fold(sum, |sum, byte| (sum ^ u128::from(*byte)).wrapping_mul(PRIME))
}

fn canonical(value: &Value, path: &mut Vec<String>, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            text.push('{');
            for key in keys {
                let inside = &map[key];
                let hash = path.len() == 2
                    && path[0] == "metadata"
                    && path[1] == "labels"
                    && key == annotations::POD_TEMPLATE_HASH;
                if hash || is_empty(inside) {
                    continue;
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                path.push(key.clone());
                canonical(inside, path, text);
                path.pop();
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            path.push("[]".to_owned());
            for inside in list {
                canonical(inside, path, text);
                text.push(',');
            }
            path.pop();
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// Empty the way an absent field is; `emptyDir: {}` and the like are kept by
/// counting only what has no meaning of its own.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_template_has_one_digest() {
        let a = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"x": 1, "y": [1, 2]}});
        let b = json!({"spec": {"y": [1, 2], "x": 1, "z": null, "w": []},
            "metadata": {"labels": {"pod-template-hash": "abc", "app": "web"}, "creationTimestamp": null}});
        assert_eq!(template_digest(&a), template_digest(&b));
        for other in [
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"x": 1, "y": [2, 1]}}),
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"x": "1", "y": [1, 2]}}),
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"x": 1, "y": [1, 2], "v": {}}}),
        ] {
            assert_ne!(template_digest(&a), template_digest(&other), "{other}");
        }
        // ReplicaSets are named by it, so it must never change.
        assert_eq!(format!("{:032x}", digest(b"pinnace")), "6d7ca31586ff0c326c238a1d27acc270");
    }
}
