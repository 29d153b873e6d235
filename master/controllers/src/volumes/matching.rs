//! Which volumes fit which claims, and what that leaves a pod for nodes. Pure.

use std::sync::Arc;

use api::{ObjectKey, storage};
use scheduler::{Candidate, Claims, Unbound};

use crate::projection::{Claim, Class, Volume};

/// Every volume and class, as they are now.
#[derive(Clone, Debug, Default)]
pub struct Stock {
    /// Volumes, by name.
    pub volumes: Vec<Arc<Volume>>,
    /// Classes, by name.
    pub classes: Vec<Arc<Class>>,
}

impl Stock {
    /// The class of that name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.iter().find(|class| class.meta.key.name == name).map(AsRef::as_ref)
    }

    /// The volume of that name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.iter().find(|volume| volume.name() == name)
    }

    /// The class that claims without one get.
    #[must_use]
    pub fn default_class(&self) -> Option<&Class> {
        let marked = self.classes.iter().filter(|class| class.is_default);
        marked
            .min_by(|a, b| {
                b.created.cmp(&a.created).then_with(|| a.meta.key.name.cmp(&b.meta.key.name))
            })
            .map(AsRef::as_ref)
    }

    /// Whether a claim waits for its first pod. One of a class that is missing does not.
    #[must_use]
    pub fn waits(&self, claim: &Claim) -> bool {
        claim.class.as_deref().and_then(|class| self.class(class)).is_some_and(|class| class.waits)
    }

    /// The volume that is set aside for a claim, by its user or because it was
    /// chosen. As upstream, only its size counts then.
    #[must_use]
    pub fn set_aside(&self, claim: &Claim) -> Option<&Arc<Volume>> {
        let mine = |volume: &&Arc<Volume>| {
            volume.claim.as_ref().is_some_and(|holder| holder.is(claim))
                && volume.bytes >= claim.bytes
                && !volume.meta.is_deleting()
        };
        self.volumes.iter().find(mine)
    }

    /// Volumes that a claim may take: the one set aside for it, else the free ones
    /// that fit, the smallest first.
    #[must_use]
    pub fn candidates(&self, claim: &Claim) -> Vec<&Arc<Volume>> {
        if let Some(volume) = self.set_aside(claim) {
            return vec![volume];
        }
        let selected = |volume: &Volume| {
            let label = |key: &str| {
                let at = volume.meta.labels.binary_search_by(|(known, _)| known.as_ref().cmp(key));
                at.ok().map(|at| volume.meta.labels[at].1.as_ref())
            };
            claim.selector.as_ref().is_none_or(|selector| selector.matches_with(label))
        };
        let mut free: Vec<&Arc<Volume>> = self
            .volumes
            .iter()
            .filter(|volume| {
                volume.claim.is_none()
                    && &*volume.phase == "Available"
                    && !volume.meta.is_deleting()
                    && selected(volume)
                    && problem(claim, volume).is_none()
            })
            .collect();
        free.sort_by(|a, b| a.bytes.cmp(&b.bytes).then_with(|| a.name().cmp(b.name())));
        free
    }
}

/// Why a volume does not do for a claim; `None` where it does.
#[must_use]
pub fn problem(claim: &Claim, volume: &Volume) -> Option<&'static str> {
    if volume.bytes < claim.bytes {
        return Some("requested PV is too small");
    }
    if *volume.class != *claim.class.as_deref().unwrap_or_default() {
        return Some("storageClassName does not match");
    }
    if !claim.modes.iter().all(|mode| volume.modes.contains(mode)) {
        return Some("incompatible accessMode");
    }
    None
}

/// What the claims of a pod leave it for nodes, and which of them are to be
/// bound: in the order of [`Claims::unbound`].
///
/// `claim` finds a claim of the pod's namespace; `used_elsewhere` says whether
/// another pod uses it.
///
/// # Errors
/// Why no node can run the pod yet, in Kubernetes' words.
pub fn of_pod<'a>(
    names: impl IntoIterator<Item = &'a str>,
    stock: &Stock,
    claim: impl Fn(&str) -> Option<Arc<Claim>>,
    used_elsewhere: impl Fn(&ObjectKey) -> bool,
) -> Result<(Claims, Vec<Arc<Claim>>), String> {
    let mut claims = Claims::default();
    let mut open: Vec<Arc<Claim>> = Vec::new();
    for name in names {
        let Some(found) = claim(name) else {
            return Err(format!("persistentvolumeclaim \"{name}\" not found"));
        };
        if found.meta.is_deleting() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if &*found.phase == "Lost" {
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"",
                found.volume
            ));
        }
        if found.is_for_one_pod() && used_elsewhere(&found.meta.key) {
            return Err("node has pod using PersistentVolumeClaim with the same name and \
                        ReadWriteOncePod access mode"
                .to_owned());
        }
        if found.is_bound && !found.volume.is_empty() {
            match stock.volume(&found.volume) {
                Some(volume) => claims.bound.push(volume.affinity.clone()),
                None => {
                    return Err(format!(
                        "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \
                         \"{}\"",
                        found.volume
                    ));
                }
            }
        } else if !found.volume.is_empty() || !stock.waits(&found) {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        } else if !open.iter().any(|other| other.meta.key == found.meta.key) {
            open.push(found);
        }
    }
    open.sort_by(|a, b| a.bytes.cmp(&b.bytes).then_with(|| a.meta.key.cmp(&b.meta.key)));
    claims.unbound = open.iter().map(|claim| unbound(claim, stock)).collect();
    Ok((claims, open))
}

fn unbound(claim: &Claim, stock: &Stock) -> Unbound {
    let class = claim.class.as_deref().and_then(|name| stock.class(name));
    let candidate = |volume: &Arc<Volume>| Candidate {
        volume: volume.name().into(),
        affinity: volume.affinity.clone(),
    };
    Unbound {
        selected: claim.selected_node.clone(),
        candidates: stock.candidates(claim).into_iter().map(candidate).collect(),
        provision: class
            .filter(|class| &*class.provisioner != storage::NO_PROVISIONER)
            // Its volume is there: no other one is made.
            .filter(|_| stock.set_aside(claim).is_none())
            .map(|class| class.topologies.clone()),
    }
}
