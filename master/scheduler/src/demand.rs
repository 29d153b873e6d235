//! What a pod asks of a node.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use api::selector::Requirement;

use crate::node::Taint;
use crate::platform::Platform;
use crate::resources::Resources;

/// Everything that bears on where a pod may run.
///
/// The pods of one ReplicaSet have equal demands: the caller shares one `Arc`
/// between them, and the [`crate::Snapshot`] remembers by it which nodes pass
/// the filters that do not depend on what runs there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The sum of the containers' requests.
    pub requests: Resources,
    /// `spec.nodeSelector`: labels the node must have, sorted by key.
    pub node_selector: Vec<(Arc<str>, Arc<str>)>,
    /// Required node affinity: one of these lists must hold; empty for none asked.
    pub affinity: Vec<Vec<Requirement>>,
    /// Taints the pod puts up with.
    pub tolerations: Vec<Toleration>,
    /// Whether some container is an OCI container.
    pub oci: bool,
    /// Whether some container is a WASM module.
    pub wasm: bool,
    /// For each OCI image that is known: what it was built for.
    pub platforms: Vec<Vec<Platform>>,
    /// The images, as the manifest names them.
    pub images: Vec<Arc<str>>,
}

// Equal demands have equal hashes; the parts left out seldom tell two apart.
impl Hash for Demand {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.requests.hash(state);
        self.node_selector.hash(state);
        self.tolerations.hash(state);
        self.images.hash(state);
        self.platforms.hash(state);
    }
}

impl Demand {
    /// Whether some toleration covers `taint`.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.covers(taint))
    }
}

/// A taint's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// No new pods.
    NoSchedule,
    /// New pods only where nothing better is found.
    PreferNoSchedule,
    /// No new pods, and those that run are evicted.
    NoExecute,
}

impl Effect {
    /// The effect Kubernetes writes as `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            "NoExecute" => Some(Self::NoExecute),
            _ => None,
        }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TolerationOperator {
    /// Key and value are the taint's.
    #[default]
    Equal,
    /// The key is the taint's, or empty for every taint.
    Exists,
}

/// One of `spec.tolerations`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Key of the taint; empty with `Exists` for every taint.
    pub key: Arc<str>,
    /// How it compares.
    pub operator: TolerationOperator,
    /// Value of the taint, for `Equal`.
    pub value: Arc<str>,
    /// The effect; `None` for every effect.
    pub effect: Option<Effect>,
    /// How long a `NoExecute` taint is tolerated, in seconds; `None` for ever.
    pub seconds: Option<i64>,
}

impl Toleration {
    /// Whether it covers `taint`.
    #[must_use]
    pub fn covers(&self, taint: &Taint) -> bool {
        if self.effect.is_some_and(|effect| effect != taint.effect) {
            return false;
        }
        match self.operator {
            TolerationOperator::Exists => self.key.is_empty() || self.key == taint.key,
            TolerationOperator::Equal => self.key == taint.key && self.value == taint.value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_cover_as_kubernetes_says() {
        let taint = Taint { key: "k".into(), value: "v".into(), effect: Effect::NoSchedule };
        let row = |key: &str, operator, value: &str, effect| Toleration {
            key: key.into(),
            operator,
            value: value.into(),
            effect,
            seconds: None,
        };
        use TolerationOperator::{Equal, Exists};
        let rows = [
            (row("k", Equal, "v", None), true),
            (row("k", Equal, "w", None), false),
            (row("k", Exists, "", None), true),
            (row("", Exists, "", None), true),
            (row("", Exists, "", Some(Effect::NoExecute)), false),
            (row("k", Equal, "v", Some(Effect::NoSchedule)), true),
            (row("other", Exists, "", None), false),
        ];
        for (toleration, expected) in rows {
            assert_eq!(toleration.covers(&taint), expected, "{toleration:?}");
        }
    }
}
