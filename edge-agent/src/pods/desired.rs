//! What the master wants of one pod, with the ConfigMaps and Secrets it uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wire::Uid;
use wire::pod::{
    ContainerV1, EnvValueV1, KeysV1, PodV1, RestartPolicyV1, SourceV1, VolumeSourceV1,
};

use super::state::{Container, PodState, Role, Versions};

/// One pod as the node's set has it.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The pod.
    pub pod: Arc<PodV1>,
    /// Generation of its item.
    pub generation: u64,
    /// Whether the set still holds it. If not, it is stopped and forgotten.
    pub present: bool,
    /// The ConfigMaps and Secrets it uses that exist.
    pub keys: KeySet,
    /// The node itself ends the pod, whatever the set says; see [`Eviction`].
    pub eviction: Option<Eviction>,
}

/// The node ends a pod for good: it becomes `Failed` with this reason, and its
/// controller makes another one elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// One word for `status.reason`: `Evicted`.
    pub reason: String,
    /// For people: what was short, and what the pod used of it.
    pub message: String,
    /// Most time between the stop signal and SIGKILL, in seconds; the pod's own
    /// is taken where it is less.
    pub grace_max_s: u32,
}

/// ConfigMaps and Secrets of one namespace.
pub type KeySet = BTreeMap<SourceV1, Keys>;

/// One ConfigMap or Secret, and which version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Identity of the object.
    pub uid: Uid,
    /// Generation of its item.
    pub generation: u64,
    /// Its keys and bytes.
    pub data: Arc<KeysV1>,
}

impl Keys {
    /// The bytes of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.data.data.iter().find(|(name, _)| name == key).map(|(_, bytes)| bytes.as_slice())
    }
}

impl Desired {
    /// Whether the pod is to stop: it is being deleted, the set no longer holds
    /// it, the master knows it as over, or the node ends it.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        !self.present
            || self.pod.deletion_grace_s.is_some()
            || self.pod.ended.is_some()
            || self.eviction.is_some()
    }

    /// Writes an eviction into the state, which outlives the agent, and takes it
    /// from there. A pod that is over, or about to be recorded so, is not evicted.
    pub fn settle_eviction(&mut self, state: &mut PodState) {
        if state.eviction.is_none() && state.finished.is_none() && !state.is_recording {
            state.eviction.clone_from(&self.eviction);
        }
        self.eviction.clone_from(&state.eviction);
    }

    /// Time between the stop signal and SIGKILL, in seconds.
    #[must_use]
    pub fn grace_s(&self) -> u32 {
        let grace_s = self.pod.deletion_grace_s.unwrap_or(self.pod.termination_grace_s);
        self.eviction.as_ref().map_or(grace_s, |eviction| grace_s.min(eviction.grace_max_s))
    }

    /// A container of the pod.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&ContainerV1> {
        self.pod.all_containers().find(|container| container.name == name)
    }

    /// All containers of a pod and what they are in it, in the order of the pod.
    pub fn roles(pod: &PodV1) -> impl Iterator<Item = (Role, &ContainerV1)> {
        let init = pod.init_containers.iter().map(|container| {
            let is_sidecar = container.restart_policy == Some(RestartPolicyV1::Always);
            (if is_sidecar { Role::Sidecar } else { Role::Init }, container)
        });
        let main = pod.containers.iter().map(|container| (Role::Main, container));
        let ephemeral = pod.ephemeral_containers.iter().map(|c| (Role::Ephemeral, c));
        init.chain(main).chain(ephemeral)
    }

    /// What happens after an exit of a container.
    #[must_use]
    pub fn restart_policy(&self, container: &Container) -> RestartPolicyV1 {
        let own = self.container(&container.name).and_then(|wanted| wanted.restart_policy);
        let policy = own.unwrap_or(self.pod.restart_policy);
        match container.role {
            Role::Sidecar => RestartPolicyV1::Always,
            Role::Ephemeral => RestartPolicyV1::Never,
            // One that succeeded is done, whatever the pod's policy.
            Role::Init if policy == RestartPolicyV1::Always => RestartPolicyV1::OnFailure,
            Role::Init | Role::Main => policy,
        }
    }

    /// The versions of what the pod's volumes hold.
    #[must_use]
    pub fn volume_versions(&self) -> Versions {
        self.pod
            .volumes
            .iter()
            .filter_map(|volume| match &volume.source {
                VolumeSourceV1::Keys { source, .. } => Some(source),
                _ => None,
            })
            .filter_map(|source| {
                self.keys.get(source).map(|keys| (source.clone(), (keys.uid, keys.generation)))
            })
            .collect()
    }

    /// Every ConfigMap and Secret that the pod names, whether or not it exists.
    pub fn sources(pod: &PodV1) -> impl Iterator<Item = &SourceV1> {
        let volumes = pod.volumes.iter().filter_map(|volume| match &volume.source {
            VolumeSourceV1::Keys { source, .. } => Some(source),
            _ => None,
        });
        let variables = pod.all_containers().flat_map(|container| {
            let all = container.env_from.iter().map(|from| &from.source);
            let single = container.env.iter().filter_map(|variable| match &variable.value {
                EnvValueV1::Key { source, .. } => Some(source),
                _ => None,
            });
            all.chain(single)
        });
        volumes.chain(variables)
    }

    /// Why the volumes cannot be set up yet, as the kubelet says it; `None` if they can.
    #[must_use]
    pub fn volumes_missing(&self) -> Option<String> {
        self.pod.volumes.iter().find_map(|volume| {
            let VolumeSourceV1::Keys { source, items, optional, .. } = &volume.source else {
                return None;
            };
            if *optional {
                return None;
            }
            let why = match self.keys.get(source) {
                None => missing(source),
                Some(keys) => {
                    let item = items.iter().find(|item| keys.get(&item.key).is_none())?;
                    format!("{} references non-existent key: {}", kind_word(source), item.key)
                }
            };
            Some(format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name))
        })
    }
}

/// `configmap "x" not found`, as the API server words it.
#[must_use]
pub fn missing(source: &SourceV1) -> String {
    let (kind, name) = match source {
        SourceV1::ConfigMap(name) => ("configmap", name),
        SourceV1::Secret(name) => ("secret", name),
    };
    format!("{kind} \"{name}\" not found")
}

fn kind_word(source: &SourceV1) -> &'static str {
    match source {
        SourceV1::ConfigMap(_) => "configmap",
        SourceV1::Secret(_) => "secret",
    }
}
