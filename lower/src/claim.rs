//! What a pod's claims are on its node.
//!
//! A claim that has no volume keeps its pod waiting on the node, with the
//! kubelet's reason; the pod is sent all the same, so that nothing that runs is
//! taken for gone because an object vanished.

use std::collections::BTreeMap;

use api::view::{self, PersistentVolumeClaimView, PersistentVolumeView, Volume, VolumeClaim};
use api::{Value, meta, storage};
use wire::pod::VolumeSourceV1;

/// What the claims of a pod are, by name.
pub type Claims = BTreeMap<String, Claimed>;

/// What a claim is on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// A folder that was there before.
    Local {
        /// Its absolute path.
        path: String,
        /// Name of the PersistentVolume.
        volume: String,
    },
    /// A path of whichever node the pod is on.
    Host {
        /// Its absolute path.
        path: String,
        /// What must be there, or is made, as `hostPath.type`.
        kind: String,
    },
    /// A folder that the node makes, below its own for volumes.
    Made {
        /// Name of the PersistentVolume, and of the folder.
        volume: String,
    },
    /// Nothing yet, and why.
    Waits(String),
}

/// Names of the claims that a pod's volumes are.
#[must_use]
pub fn claim_names(pod: &Value) -> Vec<String> {
    let volumes = pod.get("spec").and_then(|spec| spec.get("volumes")).and_then(Value::as_array);
    let name = |volume: &Value| {
        let volume: Volume = view::read(volume).ok()?;
        Some(volume.persistent_volume_claim?.claim_name)
    };
    volumes.into_iter().flatten().filter_map(name).collect()
}

/// What a claim is, where `claim` is the object of that name and `find` finds a
/// PersistentVolume.
pub fn claimed(
    namespace: &str,
    name: &str,
    claim: Option<&Value>,
    find: impl FnOnce(&str) -> Option<Value>,
) -> Claimed {
    let waits =
        |why: String| Claimed::Waits(format!("error processing PVC {namespace}/{name}: {why}"));
    let Some(claim) = claim else {
        return waits(format!(
            "failed to fetch PVC from API server: persistentvolumeclaims \"{name}\" not found"
        ));
    };
    let read: PersistentVolumeClaimView = view::read(claim).unwrap_or_default();
    let volume = read.spec.volume_name;
    if volume.is_empty() || meta::annotation(claim, storage::BIND_COMPLETED).is_none() {
        return waits("PVC is not bound".to_owned());
    }
    let Some(object) = find(&volume) else {
        return waits(format!(
            "failed to fetch PV {volume:?} from API server: persistentvolumes {volume:?} not found"
        ));
    };
    let read: PersistentVolumeView = view::read(&object).unwrap_or_default();
    let is_mine = |held: &view::ClaimRef| {
        held.uid == meta::uid(claim) && held.namespace == namespace && held.name == name
    };
    if !read.spec.claim_ref.as_ref().is_some_and(is_mine) {
        return waits(format!("PV {volume:?} is bound to another claim"));
    }
    if storage::is_local_path(&object) {
        return Claimed::Made { volume };
    }
    match (read.spec.local, read.spec.host_path) {
        (Some(local), _) => Claimed::Local { path: local.path, volume },
        (None, Some(host)) => Claimed::Host { path: host.path, kind: host.kind },
        (None, None) => waits(format!("PV {volume:?} is of a type that nodes do not have")),
    }
}

/// The source of a volume that is a claim.
pub(super) fn lower(namespace: &str, claim: &VolumeClaim, claims: &Claims) -> VolumeSourceV1 {
    let read_only = claim.read_only;
    match claims.get(&claim.claim_name).cloned() {
        Some(Claimed::Local { path, volume }) => VolumeSourceV1::Local { path, read_only, volume },
        Some(Claimed::Host { path, kind: _ }) if read_only => {
            VolumeSourceV1::Local { path, read_only, volume: claim.claim_name.clone() }
        }
        Some(Claimed::Host { path, kind }) => {
            VolumeSourceV1::HostPath { path, kind: super::volume::host_path_kind(&kind) }
        }
        Some(Claimed::Made { volume }) => VolumeSourceV1::Made { volume, read_only },
        Some(Claimed::Waits(why)) => VolumeSourceV1::Waits(why),
        None => match claimed(namespace, &claim.claim_name, None, |_| None) {
            Claimed::Waits(why) => VolumeSourceV1::Waits(why),
            _ => unreachable!("a claim that is not there is nothing else"),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim() -> Value {
        json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u1",
                "annotations": {storage::BIND_COMPLETED: "yes"}},
            "spec": {"volumeName": "pv"},
        })
    }

    fn volume(source: Value) -> Value {
        let mut object = json!({
            "metadata": {"name": "pv"},
            "spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "u1"}},
        });
        object["spec"].as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        object
    }

    fn check(claim: Option<&Value>, volume: Option<Value>, expected: &Claimed) {
        assert_eq!(claimed("ns", "c", claim, |name| volume.filter(|_| name == "pv")), *expected);
    }

    fn waits(why: &str) -> Claimed {
        Claimed::Waits(format!("error processing PVC ns/c: {why}"))
    }

    #[test]
    fn a_bound_claim_is_what_its_volume_is() {
        let local = volume(json!({"local": {"path": "/mnt/ssd"}}));
        let expected = Claimed::Local { path: "/mnt/ssd".to_owned(), volume: "pv".to_owned() };
        check(Some(&claim()), Some(local.clone()), &expected);
        let mut made = local;
        made["metadata"]["annotations"] = json!({storage::PROVISIONED_BY: storage::LOCAL_PATH});
        check(Some(&claim()), Some(made), &Claimed::Made { volume: "pv".to_owned() });
        let host = volume(json!({"hostPath": {"path": "/srv", "type": "Directory"}}));
        let expected = Claimed::Host { path: "/srv".to_owned(), kind: "Directory".to_owned() };
        check(Some(&claim()), Some(host), &expected);
    }

    #[test]
    fn what_is_missing_is_said() {
        let missing = "failed to fetch PVC from API server: persistentvolumeclaims \"c\" not found";
        check(None, None, &waits(missing));
        let mut open = claim();
        open["metadata"]["annotations"] = json!({});
        check(Some(&open), None, &waits("PVC is not bound"));
        let gone = "failed to fetch PV \"pv\" from API server: persistentvolumes \"pv\" not found";
        check(Some(&claim()), None, &waits(gone));
        let mut other = volume(json!({"local": {"path": "/mnt"}}));
        other["spec"]["claimRef"]["uid"] = json!("u2");
        check(Some(&claim()), Some(other), &waits("PV \"pv\" is bound to another claim"));
        let nfs = volume(json!({"nfs": {"server": "x", "path": "/"}}));
        check(Some(&claim()), Some(nfs), &waits("PV \"pv\" is of a type that nodes do not have"));
    }

    #[test]
    fn read_only_claims_are_mounted_so() {
        let of = |claimed: Claimed, read_only| {
            let claims = Claims::from([("c".to_owned(), claimed)]);
            lower("ns", &VolumeClaim { claim_name: "c".to_owned(), read_only }, &claims)
        };
        let made = Claimed::Made { volume: "pv".to_owned() };
        let expected = VolumeSourceV1::Made { volume: "pv".to_owned(), read_only: true };
        assert_eq!(of(made, true), expected);
        let host = || Claimed::Host { path: "/srv".to_owned(), kind: String::new() };
        assert!(matches!(of(host(), true), VolumeSourceV1::Local { read_only: true, .. }));
        assert!(matches!(of(host(), false), VolumeSourceV1::HostPath { .. }));
        let VolumeSourceV1::Waits(why) = lower(
            "ns",
            &VolumeClaim { claim_name: "x".to_owned(), read_only: false },
            &Claims::new(),
        ) else {
            panic!("a claim nobody knows");
        };
        assert!(why.contains("persistentvolumeclaims \"x\" not found"), "{why}");
    }
}
