//! Every state of a claim and of a volume, and what is done about it.

use api::Value;
use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::projection::Projection;

fn claim_of(change: impl FnOnce(&mut Value)) -> Claim {
    let mut object = json!({
        "metadata": {"name": "c", "namespace": "ns", "uid": "u1", "finalizers": [CLAIM_PROTECTION],
            "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "now",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    change(&mut object);
    Claim::project(&object)
}

fn volume_of(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Arc<Volume> {
    let mut object = json!({
        "metadata": {"name": name, "uid": name, "finalizers": [VOLUME_PROTECTION], "annotations": {}},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "now", "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": "/mnt"}},
        "status": {"phase": "Available"},
    });
    change(&mut object);
    Arc::new(Volume::project(&object))
}

fn class_of(name: &str, provisioner: &str, mode: &str, default: bool) -> Arc<Class> {
    Arc::new(Class::project(&json!({
        "metadata": {"name": name, "annotations": {storage::DEFAULT_CLASS: default.to_string()}},
        "provisioner": provisioner, "volumeBindingMode": mode, "reclaimPolicy": "Delete",
    })))
}

fn stock(volumes: Vec<Arc<Volume>>) -> Stock {
    const WAIT: &str = "WaitForFirstConsumer";
    Stock {
        volumes,
        classes: vec![
            class_of("now", storage::NO_PROVISIONER, "Immediate", false),
            class_of("later", storage::NO_PROVISIONER, WAIT, false),
            class_of("local-path", storage::LOCAL_PATH, WAIT, true),
            class_of("hasty", storage::LOCAL_PATH, "Immediate", false),
            class_of("other", "example.com/nfs", "Immediate", false),
        ],
    }
}

/// One line a step.
fn lines(steps: &[Step]) -> String {
    steps
        .iter()
        .map(|step| match step {
            Step::Tell { warning, reason, message } => {
                format!("{} {reason}: {message}\n", if *warning { "warns" } else { "says" })
            }
            Step::Provision(new) => format!(
                "makes {} {} on {} at {} for {} {}\n",
                new.name, new.capacity, new.host, new.path, new.claim.key, new.claim.uid
            ),
            other => format!("{other:?}\n"),
        })
        .collect()
}

fn check(claim: &Claim, volumes: Vec<Arc<Volume>>, expected: &Expect) {
    let place = |node: &str| {
        (node != "gone").then(|| Place {
            host: node.to_owned(),
            folder: if node == "new" { String::new() } else { "/s".to_owned() },
        })
    };
    expected.assert_eq(&lines(&super::claim(claim, &stock(volumes), false, place)));
}

#[test]
fn the_smallest_that_fits_is_taken() {
    let all = || {
        vec![
            volume_of("tiny", "1Mi", |_| ()),
            volume_of("large", "9Gi", |_| ()),
            volume_of("b", "2Gi", |_| ()),
            volume_of("a", "2Gi", |_| ()),
            volume_of("other-class", "1Gi", |v| v["spec"]["storageClassName"] = json!("x")),
            volume_of("read-only", "1Gi", |v| v["spec"]["accessModes"] = json!(["ReadOnlyMany"])),
            volume_of("taken", "1Gi", |v| {
                v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "d", "uid": "u9"});
            }),
            volume_of("used", "1Gi", |v| v["status"]["phase"] = json!("Released")),
            volume_of("leaving", "1Gi", |v| {
                v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }),
            volume_of("labelled", "5Gi", |v| v["metadata"]["labels"] = json!({"disk": "ssd"})),
        ]
    };
    check(
        &claim_of(|_| ()),
        all(),
        &expect![[r#"
        SetAside { volume: "a", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" }, by_controller: true }
        VolumePhase { volume: "a", phase: "Bound", message: "" }
        Bind { volume: "a", by_controller: true }
        ClaimPhase { phase: "Bound", has: Some(("2Gi", ["ReadWriteOnce"])) }
    "#]],
    );
    check(
        &claim_of(|c| c["spec"]["selector"] = json!({"matchLabels": {"disk": "ssd"}})),
        all(),
        &expect![[r#"
            SetAside { volume: "labelled", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" }, by_controller: true }
            VolumePhase { volume: "labelled", phase: "Bound", message: "" }
            Bind { volume: "labelled", by_controller: true }
            ClaimPhase { phase: "Bound", has: Some(("5Gi", ["ReadWriteOnce"])) }
        "#]],
    );
}

#[test]
fn a_claim_that_finds_nothing_says_why() {
    let class = |name: &'static str| claim_of(move |c| c["spec"]["storageClassName"] = json!(name));
    check(
        &class(""),
        vec![],
        &expect![[r#"
        says FailedBinding: no persistent volumes available for this claim and no storage class is set
    "#]],
    );
    check(
        &class("now"),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner
    "#]],
    );
    let later = |v: &mut Value| v["spec"]["storageClassName"] = json!("later");
    check(
        &class("later"),
        vec![volume_of("fits", "1Gi", later)],
        &expect![[r#"
        says WaitForFirstConsumer: waiting for first consumer to be created before binding
    "#]],
    );
    check(
        &class("missing"),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: storageclass.storage.k8s.io "missing" not found
    "#]],
    );
    check(
        &class("other"),
        vec![],
        &expect![[r#"
        AskProvisioner("example.com/nfs")
        says ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'example.com/nfs' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.
    "#]],
    );
    check(
        &class("hasty"),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: failed to provision volume with StorageClass "hasty": a folder is made on the node of the first pod: use a class with volumeBindingMode WaitForFirstConsumer
    "#]],
    );
    let none = claim_of(|c| {
        c["spec"].as_object_mut().unwrap().remove("storageClassName");
    });
    check(
        &none,
        vec![],
        &expect![[r#"
        GiveClass("local-path")
    "#]],
    );
}

#[test]
fn a_folder_is_made_where_the_first_pod_goes() {
    let on = |node: &'static str, change: &dyn Fn(&mut Value)| {
        claim_of(|c| {
            c["spec"]["storageClassName"] = json!("local-path");
            c["metadata"]["annotations"][storage::SELECTED_NODE] = json!(node);
            change(c);
        })
    };
    check(
        &on("", &|_| ()),
        vec![],
        &expect![[r#"
        says WaitForFirstConsumer: waiting for first consumer to be created before binding
    "#]],
    );
    check(
        &on("pi", &|_| ()),
        vec![],
        &expect![[r#"
        makes pvc-u1 1Gi on pi at /s/pvc-u1 for ns/c u1
        says ProvisioningSucceeded: Successfully provisioned volume pvc-u1
    "#]],
    );
    check(
        &on("gone", &|_| ()),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: failed to provision volume with StorageClass "local-path": node "gone" not found
        ForgetNode
    "#]],
    );
    check(
        &on("new", &|_| ()),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: failed to provision volume with StorageClass "local-path": node "new" has not said where its folder for volumes is
    "#]],
    );
    let shared = |c: &mut Value| c["spec"]["accessModes"] = json!(["ReadWriteMany"]);
    check(
        &on("pi", &shared),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: failed to provision volume with StorageClass "local-path": access mode ReadWriteMany: a folder of one node has ReadWriteOnce and ReadWriteOncePod only
    "#]],
    );
    let choosy = |c: &mut Value| c["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
    check(
        &on("pi", &choosy),
        vec![],
        &expect![[r#"
        warns ProvisioningFailed: failed to provision volume with StorageClass "local-path": a new volume has no labels for spec.selector to choose by
    "#]],
    );
    // Made and not bound yet: the binding goes on.
    let made = volume_of("pvc-u1", "1Gi", |v| {
        v["spec"]["storageClassName"] = json!("local-path");
        v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c", "uid": "u1"});
    });
    check(
        &on("pi", &|_| ()),
        vec![made],
        &expect![[r#"
        VolumePhase { volume: "pvc-u1", phase: "Bound", message: "" }
        Bind { volume: "pvc-u1", by_controller: true }
        ClaimPhase { phase: "Bound", has: Some(("1Gi", ["ReadWriteOnce"])) }
    "#]],
    );
}

#[test]
fn what_a_user_named_is_bound_or_waited_for() {
    let named = claim_of(|c| c["spec"]["volumeName"] = json!("v"));
    let held = |name: &'static str, uid: &'static str| {
        move |v: &mut Value| {
            v["spec"]["claimRef"] = json!({"namespace": "ns", "name": name, "uid": uid});
        }
    };
    check(&named, vec![], &expect![""]);
    check(
        &named,
        vec![volume_of("v", "1Gi", |_| ())],
        &expect![[r#"
        SetAside { volume: "v", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" }, by_controller: true }
        VolumePhase { volume: "v", phase: "Bound", message: "" }
        Bind { volume: "v", by_controller: false }
        ClaimPhase { phase: "Bound", has: Some(("1Gi", ["ReadWriteOnce"])) }
    "#]],
    );
    check(
        &named,
        vec![volume_of("v", "1Mi", |_| ())],
        &expect![[r#"
        warns VolumeMismatch: Cannot bind to requested volume "v": requested PV is too small
    "#]],
    );
    check(
        &named,
        vec![volume_of("v", "1Gi", held("other", "u9"))],
        &expect![[r#"
        warns FailedBinding: volume "v" already bound to a different claim.
    "#]],
    );
    // From the volume's side: before one that fits better, and only of this uid.
    let open = claim_of(|_| ());
    let set_aside = volume_of("v", "9Gi", held("c", ""));
    check(
        &open,
        vec![volume_of("fits", "1Gi", |_| ()), set_aside],
        &expect![[r#"
        SetAside { volume: "v", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" }, by_controller: false }
        VolumePhase { volume: "v", phase: "Bound", message: "" }
        Bind { volume: "v", by_controller: true }
        ClaimPhase { phase: "Bound", has: Some(("9Gi", ["ReadWriteOnce"])) }
    "#]],
    );
    check(
        &open,
        vec![volume_of("v", "1Gi", held("c", "u0"))],
        &expect![[r#"
        warns ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner
    "#]],
    );
}

#[test]
fn a_bound_claim_is_kept_so_or_lost() {
    let bound = |phase: &'static str| {
        claim_of(|c| {
            c["spec"]["volumeName"] = json!("v");
            c["metadata"]["annotations"][storage::BIND_COMPLETED] = json!("yes");
            c["status"] = json!({"phase": phase, "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"]});
        })
    };
    let whole = |v: &mut Value| {
        v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c", "uid": "u1"});
        v["status"]["phase"] = json!("Bound");
    };
    check(&bound("Bound"), vec![volume_of("v", "1Gi", whole)], &expect![""]);
    // Half of it, after a master that died or a restored store.
    check(
        &bound("Pending"),
        vec![volume_of("v", "1Gi", |_| ())],
        &expect![[r#"
        SetAside { volume: "v", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" }, by_controller: true }
        VolumePhase { volume: "v", phase: "Bound", message: "" }
        ClaimPhase { phase: "Bound", has: Some(("1Gi", ["ReadWriteOnce"])) }
    "#]],
    );
    check(
        &bound("Bound"),
        vec![],
        &expect![[r#"
        ClaimPhase { phase: "Lost", has: None }
        warns ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!
    "#]],
    );
    check(&bound("Lost"), vec![], &expect![""]);
    let other = |v: &mut Value| {
        v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "d", "uid": "u2"});
    };
    check(
        &bound("Bound"),
        vec![volume_of("v", "1Gi", other)],
        &expect![[r#"
        ClaimPhase { phase: "Lost", has: None }
        warns ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly
    "#]],
    );
}

#[test]
fn a_claim_goes_when_no_pod_uses_it() {
    let leaving = claim_of(|c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let of = |is_used| super::claim(&leaving, &stock(vec![]), is_used, |_| None);
    assert_eq!(of(true), []);
    assert_eq!(of(false), [Step::Unprotect(CLAIM_PROTECTION)]);
    let open = claim_of(|c| c["metadata"]["finalizers"] = json!([]));
    let steps = super::claim(&open, &stock(vec![]), true, |_| None);
    assert_eq!(steps[0], Step::Protect(CLAIM_PROTECTION));
}

#[test]
fn a_volume_follows_its_claim() {
    let claim = claim_of(|_| ());
    let bound = claim_of(|c| c["spec"]["volumeName"] = json!("v"));
    let elsewhere = claim_of(|c| c["spec"]["volumeName"] = json!("w"));
    let namesake = claim_of(|c| c["metadata"]["uid"] = json!("u2"));
    let held = |v: &mut Value| {
        v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c", "uid": "u1"});
    };
    let check = |what: &str, claim: Option<&Claim>, change: &dyn Fn(&mut Value)| {
        let steps = super::volume(&volume_of("v", "1Gi", change), claim, true);
        format!("{what}: {}\n", lines(&steps).trim().replace('\n', "; "))
    };
    let deleted = |v: &mut Value| {
        held(v);
        v["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
        v["status"]["phase"] = json!("Bound");
    };
    let made = |v: &mut Value| {
        deleted(v);
        v["metadata"]["annotations"][storage::PROVISIONED_BY] = json!(storage::LOCAL_PATH);
    };
    let text = [
        check("new", None, &|v| v["status"]["phase"] = json!("Pending")),
        check("free", None, &|_| ()),
        check("set aside by name", Some(&claim), &|v| {
            v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c"});
        }),
        check("being bound", Some(&claim), &held),
        check("bound", Some(&bound), &held),
        check("its claim has another", Some(&elsewhere), &held),
        check("its claim has another, it was chosen", Some(&elsewhere), &|v| {
            held(v);
            v["metadata"]["annotations"][storage::BOUND_BY_CONTROLLER] = json!("yes");
        }),
        check("its claim has another, it was made", Some(&elsewhere), &made),
        check("claim gone, retained", None, &held),
        check("claim gone, deleted by nobody", None, &deleted),
        check("claim gone, made", None, &made),
        check("claim gone, failed before", None, &|v| {
            deleted(v);
            v["status"]["phase"] = json!("Failed");
        }),
        check("another claim of that name", Some(&namesake), &held),
    ];
    expect![[r#"
        new: VolumePhase { volume: "v", phase: "Available", message: "" }
        free: 
        set aside by name: 
        being bound: 
        bound: VolumePhase { volume: "v", phase: "Bound", message: "" }
        its claim has another: Free { volume: "v", keep_name: true }
        its claim has another, it was chosen: Free { volume: "v", keep_name: false }
        its claim has another, it was made: DeleteVolume { volume: "v", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" } }
        claim gone, retained: VolumePhase { volume: "v", phase: "Released", message: "" }
        claim gone, deleted by nobody: VolumePhase { volume: "v", phase: "Released", message: "" }; VolumePhase { volume: "v", phase: "Failed", message: "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched" }; warns VolumeFailedDelete: error getting deleter volume plugin for volume "v": no deletable volume plugin matched
        claim gone, made: VolumePhase { volume: "v", phase: "Released", message: "" }; DeleteVolume { volume: "v", claim: Holder { key: ObjectKey { namespace: "ns", name: "c" }, uid: "u1" } }
        claim gone, failed before: 
        another claim of that name: VolumePhase { volume: "v", phase: "Released", message: "" }
    "#]].assert_eq(&text.concat());
}

#[test]
fn a_volume_that_is_deleted_waits_for_its_claim_and_its_folder() {
    let bound = claim_of(|c| c["spec"]["volumeName"] = json!("v"));
    let check = |claim: Option<&Claim>, has_node: bool, policy: &'static str| {
        let volume = volume_of("v", "1Gi", |v| {
            v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            v["metadata"]["finalizers"] = json!([VOLUME_PROTECTION, storage::LOCAL_PATH]);
            v["metadata"]["annotations"][storage::PROVISIONED_BY] = json!(storage::LOCAL_PATH);
            v["spec"]["claimRef"] = json!({"namespace": "ns", "name": "c", "uid": "u1"});
            v["spec"]["persistentVolumeReclaimPolicy"] = json!(policy);
        });
        super::volume(&volume, claim, has_node)
    };
    let (own, folder) = (Step::Unprotect(VOLUME_PROTECTION), Step::Unprotect(storage::LOCAL_PATH));
    assert_eq!(check(Some(&bound), true, "Delete"), []);
    assert_eq!(check(None, true, "Delete"), std::slice::from_ref(&own));
    assert_eq!(check(None, true, "Retain"), [own.clone(), folder.clone()]);
    assert_eq!(check(None, false, "Delete"), [own, folder], "its node is gone for good");
}
