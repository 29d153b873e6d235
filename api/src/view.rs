//! Views: small typed projections of objects, for the programs that work with
//! them (controllers, scheduler, lowering).
//!
//! A view holds what Pinnace acts on and ignores every other field, so it is
//! **read-only**: writing one back would drop what it does not know. Writers
//! change the JSON. Parts that are written whole, such as a [`Condition`], can
//! be serialised.

mod config;
mod health;
mod node;
mod pod;
mod storage;
mod volume;
mod workload;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use config::{ConfigMapView, LeaseSpec, LeaseView, NamespaceView, SecretView};
pub use health::{
    ExecAction, GrpcAction, Handler, HttpGetAction, HttpHeader, Lifecycle, Probe, SleepAction,
    TcpSocketAction,
};
pub use node::{NodeAddress, NodeInfo, NodeSpec, NodeStatus, NodeView, Taint};
pub use pod::{
    Capabilities, Container, ContainerPort, ContainerState, ContainerStatus, DnsConfig, DnsOption,
    EnvFrom, EnvVar, EnvVarSource, FieldRef, HostAlias, KeyRef, LocalRef, PodIp,
    PodSecurityContext, PodSpec, PodStatus, PodView, ResourceFieldRef, ResourceRequirements,
    SeccompProfile, SecurityContext, StateRunning, StateTerminated, StateWaiting, Sysctl,
    Toleration, VolumeMount,
};
pub use storage::{
    ClaimRef, ClaimSpec, LocalFolder, PersistentVolumeClaimView, PersistentVolumeView, Phased,
    StorageClassView, VolumeSpec,
};
pub use volume::{
    DownwardItem, EmptyDir, HostPath, KeyToPath, ProjectedKeys, ProjectedToken, Projection, Volume,
    VolumeClaim, VolumeConfigMap, VolumeDownward, VolumeProjected, VolumeSecret,
};
pub use workload::{
    DeploymentSpec, DeploymentStatus, DeploymentStrategy, DeploymentView, ReplicaSetSpec,
    ReplicaSetStatus, ReplicaSetView, RollingUpdate,
};

/// Reads a view from an object.
///
/// # Errors
/// Where a field has another type than the view expects: the object was not
/// validated, or the view is wrong.
pub fn read<'de, T: Deserialize<'de>>(object: &'de Value) -> Result<T, serde_json::Error> {
    T::deserialize(object)
}

/// A number, or a share such as `25%`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A plain number.
    Int(i64),
    /// A number with a percent sign, or the name of a port.
    String(String),
}

impl IntOrString {
    /// The number it means of `total`; a share is rounded up or down.
    ///
    /// `None` for a text that is no share.
    #[must_use]
    pub fn of(&self, total: i64, round_up: bool) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::String(text) => {
                let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
                let share = i128::from(percent) * i128::from(total);
                let share =
                    if round_up { (share + 99).div_euclid(100) } else { share.div_euclid(100) };
                i64::try_from(share).ok()
            }
        }
    }
}

/// One entry of a `status.conditions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// What it is about: `Ready`, `Available`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The generation of `spec` it was seen at (pods).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When it was last confirmed (nodes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<String>,
    /// When it was last written (deployments).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<String>,
    /// When `status` last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// One word for programs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Condition {
    /// Whether its status is `True`.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// The condition of a type, where it is there.
#[must_use]
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_as_asked() {
        let quarter = IntOrString::String("25%".to_owned());
        assert_eq!(quarter.of(10, true), Some(3));
        assert_eq!(quarter.of(10, false), Some(2));
        assert_eq!(IntOrString::Int(4).of(10, true), Some(4));
        assert_eq!(IntOrString::String("http".to_owned()).of(10, true), None);
    }
}
