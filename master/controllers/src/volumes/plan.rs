//! What is to be done about one claim or one volume. Pure: objects go in, steps
//! come out, and after the steps the next plan is empty.
//!
//! ```text
//!  claim:   Pending ──volume set aside──► Bound ──volume gone──► Lost
//!  volume:  Available ──► Bound ──claim gone──► Released ──Delete──► (deleted)
//!                                                   └─cannot be──► Failed
//! ```
//!
//! A binding is written from both sides, the volume's first: a volume that names
//! a claim is nobody else's, so stopping half-way loses nothing. The rules and
//! the texts of Events are those of `pkg/controller/volume/persistentvolume`.

use std::sync::Arc;

use api::storage;
use api::strategy::{CLAIM_PROTECTION, VOLUME_PROTECTION};

use super::matching::{Stock, problem};
use crate::projection::{Claim, Class, Holder, Volume};

/// One write or word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The volume names its claim.
    SetAside {
        /// The volume.
        volume: String,
        /// The claim.
        claim: Holder,
        /// Whether no user had named it before.
        by_controller: bool,
    },
    /// The volume names no claim any more, or, as its user wrote it, no uid.
    Free {
        /// The volume.
        volume: String,
        /// Whether the claim's name stays.
        keep_name: bool,
    },
    /// The volume's phase, and why.
    VolumePhase {
        /// The volume.
        volume: String,
        /// The phase.
        phase: &'static str,
        /// Why, for people; may be empty.
        message: String,
    },
    /// The volume is deleted; its folder goes before it does.
    DeleteVolume {
        /// The volume.
        volume: String,
        /// The claim that must be gone.
        claim: Holder,
    },
    /// A folder on a node becomes a volume of the claim.
    Provision(Box<NewVolume>),
    /// The claim names its volume.
    Bind {
        /// The volume.
        volume: String,
        /// Whether no user had named it before.
        by_controller: bool,
    },
    /// The claim's status.
    ClaimPhase {
        /// The phase.
        phase: &'static str,
        /// Capacity and access modes of the volume; nothing for none.
        has: Option<(Arc<str>, Vec<Arc<str>>)>,
    },
    /// The claim gets the default class.
    GiveClass(String),
    /// Somebody else makes the claim's volume.
    AskProvisioner(String),
    /// The claim's node is chosen anew.
    ForgetNode,
    /// A finalizer is added.
    Protect(&'static str),
    /// A finalizer goes.
    Unprotect(&'static str),
    /// People are told.
    Tell {
        /// Whether something is wrong.
        warning: bool,
        /// One word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// A volume to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name: `pvc-<uid of the claim>`.
    pub name: String,
    /// Its folder on the node.
    pub path: String,
    /// Label `kubernetes.io/hostname` of the node.
    pub host: String,
    /// What it holds.
    pub capacity: Arc<str>,
    /// How it may be mounted.
    pub modes: Vec<Arc<str>>,
    /// Its class.
    pub class: String,
    /// Whether it goes with its claim.
    pub is_deleted_with_claim: bool,
    /// The claim.
    pub claim: Holder,
}

/// A node, as the provisioner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Label `kubernetes.io/hostname`.
    pub host: String,
    /// The folder for volumes; empty before the node has said it.
    pub folder: String,
}

fn tell(warning: bool, reason: &'static str, message: impl Into<String>) -> Step {
    Step::Tell { warning, reason, message: message.into() }
}

/// What is to be done about a claim. `is_used` says whether a pod on a node uses
/// it; `place` finds a node.
#[must_use]
pub fn claim(
    claim: &Claim,
    stock: &Stock,
    is_used: bool,
    place: impl Fn(&str) -> Option<Place>,
) -> Vec<Step> {
    let is_protected = claim.meta.finalizers.iter().any(|own| &**own == CLAIM_PROTECTION);
    if claim.meta.is_deleting() {
        let goes = is_protected && !is_used;
        return if goes { vec![Step::Unprotect(CLAIM_PROTECTION)] } else { Vec::new() };
    }
    let mut steps = Vec::new();
    if !is_protected {
        steps.push(Step::Protect(CLAIM_PROTECTION));
    }
    if claim.is_bound {
        bound(claim, stock, &mut steps);
    } else if claim.volume.is_empty() {
        unbound(claim, stock, place, &mut steps);
    } else {
        named(claim, stock, &mut steps);
    }
    steps
}

/// A claim that was bound once.
fn bound(claim: &Claim, stock: &Stock, steps: &mut Vec<Step>) {
    let mut lost = |reason, message: &str| {
        if &*claim.phase != "Lost" {
            steps.push(Step::ClaimPhase { phase: "Lost", has: None });
            steps.push(tell(true, reason, message));
        }
    };
    if claim.volume.is_empty() {
        lost(
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        );
        return;
    }
    match stock.volume(&claim.volume) {
        None => lost(
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        ),
        Some(volume) => match &volume.claim {
            Some(holder) if !holder.is(claim) => lost(
                "ClaimMisbound",
                "Two claims are bound to the same volume, this one is bound incorrectly",
            ),
            _ => bind(claim, volume, steps),
        },
    }
}

/// A claim whose volume its user named.
fn named(claim: &Claim, stock: &Stock, steps: &mut Vec<Step>) {
    let mut wait = |event: Option<Step>| {
        pending(claim, steps);
        steps.extend(event);
    };
    let Some(volume) = stock.volume(&claim.volume) else { return wait(None) };
    match &volume.claim {
        Some(holder) if holder.is(claim) => bind(claim, volume, steps),
        Some(_) => {
            let message =
                format!("volume \"{}\" already bound to a different claim.", volume.name());
            wait(Some(tell(true, "FailedBinding", message)));
        }
        None if volume.meta.is_deleting() => wait(None),
        None => match problem(claim, volume) {
            Some(problem) => {
                let message =
                    format!("Cannot bind to requested volume \"{}\": {problem}", volume.name());
                wait(Some(tell(true, "VolumeMismatch", message)));
            }
            None => bind(claim, volume, steps),
        },
    }
}

/// A claim that takes what there is.
fn unbound(
    claim: &Claim,
    stock: &Stock,
    place: impl Fn(&str) -> Option<Place>,
    steps: &mut Vec<Step>,
) {
    if claim.class.is_none()
        && let Some(class) = stock.default_class()
    {
        // It was made before there was a default class.
        steps.push(Step::GiveClass(class.meta.key.name.clone()));
        return;
    }
    let waits = stock.waits(claim);
    let found =
        if waits { stock.set_aside(claim) } else { stock.candidates(claim).into_iter().next() };
    if let Some(volume) = found {
        bind(claim, volume, steps);
        return;
    }
    pending(claim, steps);
    let name = claim.class.as_deref().unwrap_or_default();
    if waits && claim.selected_node.is_none() {
        steps.push(tell(
            false,
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        ));
    } else if name.is_empty() {
        steps.push(tell(
            false,
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ));
    } else if let Some(class) = stock.class(name) {
        provision(claim, class, stock, place, steps);
    } else {
        let message = format!("storageclass.storage.k8s.io \"{name}\" not found");
        steps.push(tell(true, "ProvisioningFailed", message));
    }
}

fn provision(
    claim: &Claim,
    class: &Class,
    stock: &Stock,
    place: impl Fn(&str) -> Option<Place>,
    steps: &mut Vec<Step>,
) {
    let provisioner = &*class.provisioner;
    if provisioner == storage::NO_PROVISIONER {
        let message = format!("no volume plugin matched name: {provisioner}");
        steps.push(tell(true, "ProvisioningFailed", message));
        return;
    }
    if provisioner != storage::LOCAL_PATH {
        if claim.provisioner.as_deref() != Some(provisioner) {
            steps.push(Step::AskProvisioner(provisioner.to_owned()));
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner \
             '{provisioner}' or manually by the system administrator. If volume creation is \
             delayed, please verify that the provisioner is running and correctly registered."
        );
        steps.push(tell(false, "ExternalProvisioning", message));
        return;
    }
    let name = format!("pvc-{}", claim.meta.uid);
    let failed = |why: &str| {
        let class = &class.meta.key.name;
        let message = format!("failed to provision volume with StorageClass \"{class}\": {why}");
        tell(true, "ProvisioningFailed", message)
    };
    if stock.volume(&name).is_some() {
        // Made already, and not free: what it says of its claim is another's doing.
        let why = format!("PersistentVolume \"{name}\" exists and does not fit the claim");
        steps.push(failed(&why));
        return;
    }
    let Some(node) = &claim.selected_node else {
        let why = "a folder is made on the node of the first pod: use a class with \
                   volumeBindingMode WaitForFirstConsumer";
        steps.push(failed(why));
        return;
    };
    if let Some(mode) = claim.modes.iter().find(|mode| !mode.starts_with("ReadWriteOnce")) {
        let why = format!(
            "access mode {mode}: a folder of one node has ReadWriteOnce and ReadWriteOncePod only"
        );
        steps.push(failed(&why));
        return;
    }
    if claim.selector.is_some() {
        steps.push(failed("a new volume has no labels for spec.selector to choose by"));
        return;
    }
    let Some(place) = place(node) else {
        steps.push(failed(&format!("node \"{node}\" not found")));
        steps.push(Step::ForgetNode);
        return;
    };
    if place.folder.is_empty() {
        let why = format!("node \"{node}\" has not said where its folder for volumes is");
        steps.push(failed(&why));
        return;
    }
    let message = format!("Successfully provisioned volume {name}");
    steps.push(Step::Provision(Box::new(NewVolume {
        path: format!("{}/{name}", place.folder.trim_end_matches('/')),
        name,
        host: place.host,
        capacity: Arc::clone(&claim.requested),
        modes: claim.modes.clone(),
        class: class.meta.key.name.clone(),
        is_deleted_with_claim: class.is_deleted_with_claim,
        claim: holder(claim),
    })));
    steps.push(tell(false, "ProvisioningSucceeded", message));
}

fn holder(claim: &Claim) -> Holder {
    Holder { key: claim.meta.key.clone(), uid: Arc::clone(&claim.meta.uid) }
}

fn pending(claim: &Claim, steps: &mut Vec<Step>) {
    if &*claim.phase != "Pending" {
        steps.push(Step::ClaimPhase { phase: "Pending", has: None });
    }
}

/// Whatever is missing of a binding.
fn bind(claim: &Claim, volume: &Volume, steps: &mut Vec<Step>) {
    let name = volume.name().to_owned();
    let own = holder(claim);
    if volume.claim.as_ref() != Some(&own) {
        let by_controller = volume.claim.is_none();
        steps.push(Step::SetAside { volume: name.clone(), claim: own, by_controller });
    }
    if &*volume.phase != "Bound" {
        steps.push(Step::VolumePhase {
            volume: name.clone(),
            phase: "Bound",
            message: String::new(),
        });
    }
    if *claim.volume != name || !claim.is_bound {
        let by_controller = claim.volume.is_empty();
        steps.push(Step::Bind { volume: name, by_controller });
    }
    let has = (&claim.has, &claim.has_modes);
    if &*claim.phase != "Bound" || has != (&volume.capacity, &volume.modes) {
        let has = Some((Arc::clone(&volume.capacity), volume.modes.clone()));
        steps.push(Step::ClaimPhase { phase: "Bound", has });
    }
}

/// What is to be done about a volume. `claim` is the one it names, where that is
/// there; `has_node` says whether the node of its folder is.
#[must_use]
pub fn volume(volume: &Volume, claim: Option<&Claim>, has_node: bool) -> Vec<Step> {
    let has = |finalizer: &str| volume.meta.finalizers.iter().any(|own| &**own == finalizer);
    let claim = claim.filter(|claim| volume.claim.as_ref().is_some_and(|held| held.is(claim)));
    if volume.meta.is_deleting() {
        let is_held = claim.is_some_and(|claim| *claim.volume == *volume.name());
        if is_held {
            return Vec::new();
        }
        let mut steps = Vec::new();
        if has(VOLUME_PROTECTION) {
            steps.push(Step::Unprotect(VOLUME_PROTECTION));
        }
        // A folder that is to stay, or whose node is gone for good.
        if has(storage::LOCAL_PATH) && (!volume.is_deleted_with_claim || !has_node) {
            steps.push(Step::Unprotect(storage::LOCAL_PATH));
        }
        return steps;
    }
    let mut steps = Vec::new();
    if !has(VOLUME_PROTECTION) {
        steps.push(Step::Protect(VOLUME_PROTECTION));
    }
    let name = || volume.name().to_owned();
    let phase = |phase, message: &str| {
        let is_new = &*volume.phase != phase;
        is_new.then(|| Step::VolumePhase { volume: name(), phase, message: message.to_owned() })
    };
    let Some(held) = volume.claim.as_ref().filter(|held| !held.uid.is_empty()) else {
        steps.extend(phase("Available", ""));
        return steps;
    };
    match claim {
        None => {
            if !matches!(&*volume.phase, "Released" | "Failed") {
                steps.extend(phase("Released", ""));
            }
            if volume.is_deleted_with_claim {
                reclaim(volume, held, &mut steps);
            }
        }
        // The claim's own turn ends the binding.
        Some(claim) if claim.volume.is_empty() => {}
        Some(claim) if *claim.volume == *volume.name() => steps.extend(phase("Bound", "")),
        Some(_) if volume.is_local_path && volume.is_deleted_with_claim => {
            // It was made for a claim that has found another volume meanwhile.
            steps.push(Step::DeleteVolume { volume: name(), claim: held.clone() });
        }
        Some(_) => {
            let keep_name = !volume.by_controller;
            steps.push(Step::Free { volume: name(), keep_name });
        }
    }
    steps
}

/// The claim of a volume with the policy Delete is gone.
fn reclaim(volume: &Volume, held: &Holder, steps: &mut Vec<Step>) {
    let name = volume.name().to_owned();
    if volume.is_local_path {
        steps.push(Step::DeleteVolume { volume: name, claim: held.clone() });
    } else if &*volume.phase != "Failed" {
        let message = format!(
            "error getting deleter volume plugin for volume \"{name}\": no deletable volume \
             plugin matched"
        );
        steps.push(Step::VolumePhase { volume: name, phase: "Failed", message: message.clone() });
        steps.push(tell(true, "VolumeFailedDelete", message));
    }
}

#[cfg(test)]
mod tests;
