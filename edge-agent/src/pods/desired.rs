//! What the master wants of one pod, with the ConfigMaps and Secrets it uses.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wire::Uid;
use wire::pod::{
    ContainerV1, EnvValueV1, KeyPathV1, KeysV1, PodV1, ProjectionV1, RestartPolicyV1, SourceV1,
    VolumeSourceV1,
};

use crate::tokens::{self, Held, PodTokens};

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
    /// The tokens of its ServiceAccount that its volumes show, as far as they have come.
    pub tokens: Held,
    /// The node itself ends the pod, whatever the set says; see [`Eviction`].
    pub eviction: Option<Eviction>,
    /// How often somebody on the board has asked for it to begin anew, since the agent
    /// started.
    pub restarts: u64,
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
        volume_versions(&self.pod, &self.keys, &self.tokens.tokens)
    }

    /// Every ConfigMap and Secret that the pod names, whether or not it exists.
    pub fn sources(pod: &PodV1) -> impl Iterator<Item = &SourceV1> {
        let volumes = keys_of(pod).map(|keys| keys.source);
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

    /// Why the volumes cannot be set up yet, as the kubelet says it; `None` if they
    /// can. Empty while an answer of the master is on its way.
    #[must_use]
    pub fn volumes_missing(&self) -> Option<String> {
        let waits = self.pod.volumes.iter().find_map(|volume| match &volume.source {
            VolumeSourceV1::Waits(why) => Some((&volume.name, why)),
            _ => None,
        });
        if let Some((volume, why)) = waits {
            return Some(format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}"));
        }
        self.keys_missing().or_else(|| {
            let missing = tokens::missing(&self.pod, &self.tokens.tokens)?;
            Some(match self.tokens.problem.as_str() {
                "" => String::new(),
                why => format!(
                    "MountVolume.SetUp failed for volume \"{}\" : failed to fetch token: {why}",
                    missing.volume
                ),
            })
        })
    }

    fn keys_missing(&self) -> Option<String> {
        keys_of(&self.pod).filter(|wanted| !wanted.optional).find_map(|wanted| {
            let why = match self.keys.get(wanted.source) {
                None => missing(wanted.source),
                Some(keys) => {
                    let item = wanted.items.iter().find(|item| keys.get(&item.key).is_none())?;
                    format!(
                        "{} references non-existent key: {}",
                        kind_word(wanted.source),
                        item.key
                    )
                }
            };
            let volume = wanted.volume;
            Some(format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}"))
        })
    }
}

/// Keys of a ConfigMap or Secret that a volume shows.
struct WantedKeys<'a> {
    volume: &'a str,
    source: &'a SourceV1,
    items: &'a [KeyPathV1],
    optional: bool,
}

/// The keys that the pod's volumes show, those of projected ones included.
fn keys_of(pod: &PodV1) -> impl Iterator<Item = WantedKeys<'_>> {
    pod.volumes.iter().flat_map(|volume| {
        let name = volume.name.as_str();
        match &volume.source {
            VolumeSourceV1::Keys { source, items, optional, .. } => {
                vec![WantedKeys { volume: name, source, items, optional: *optional }]
            }
            VolumeSourceV1::Projected { sources, .. } => sources
                .iter()
                .filter_map(|source| match source {
                    ProjectionV1::Keys { source, items, optional } => {
                        Some(WantedKeys { volume: name, source, items, optional: *optional })
                    }
                    ProjectionV1::Downward(_) | ProjectionV1::Token { .. } => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    })
}

/// Stands in [`Versions`] for the pod's own labels and annotations, where a
/// volume shows some: no ConfigMap has an empty name.
const FIELDS: SourceV1 = SourceV1::ConfigMap(String::new());

/// Stands in [`Versions`] for the pod's tokens, where a volume shows some: no
/// Secret has an empty name.
const TOKENS: SourceV1 = SourceV1::Secret(String::new());

/// The versions of what a pod's volumes show.
#[must_use]
pub fn volume_versions(pod: &PodV1, keys: &KeySet, tokens: &PodTokens) -> Versions {
    let mut versions: Versions = keys_of(pod)
        .filter_map(|wanted| {
            let keys = keys.get(wanted.source)?;
            Some((wanted.source.clone(), (keys.uid, keys.generation)))
        })
        .collect();
    let shows_fields = pod.volumes.iter().any(|volume| match &volume.source {
        VolumeSourceV1::Downward { .. } => true,
        VolumeSourceV1::Projected { sources, .. } => {
            sources.iter().any(|source| matches!(source, ProjectionV1::Downward(_)))
        }
        _ => false,
    });
    if shows_fields {
        let mut hasher = std::hash::DefaultHasher::new();
        (&pod.labels, &pod.annotations).hash(&mut hasher);
        versions.insert(FIELDS, (pod.uid, hasher.finish()));
    }
    if tokens::wanted(pod).next().is_some() {
        let mut hasher = std::hash::DefaultHasher::new();
        tokens.hash(&mut hasher);
        versions.insert(TOKENS, (pod.uid, hasher.finish()));
    }
    versions
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
