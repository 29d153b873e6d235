//! Persistent volumes as a user of small boards has them: a folder of one node,
//! made by hand or for a claim, with the real `kubectl`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, node};
use crate::harness::wait::{check, until};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";

/// A world with a shell image.
fn world(n_nodes: u8) -> World {
    let world = World::with_nodes(n_nodes);
    world.registry().push_busybox("shell:1", &[]);
    world
}

/// A pod that adds its name to `/data/log`, shows the file, and goes on.
fn writer(world: &World, name: &str, claim: &str) -> Value {
    let lines = format!("echo {name} >>/data/log; cat /data/log");
    let script = pods::script(&lines);
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut pod = pods::pod(name, &world.registry().image("shell:1"), &script, &[]);
    pod["spec"]["volumes"] =
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    pod
}

fn claim(name: &str, class: Option<&str>, size: &str) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    });
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = json!(class);
    }
    claim
}

fn volume(name: &str, node: &str, path: &Path, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "disk", "local": {"path": path.display().to_string()},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
        },
    })
}

/// The class of volumes that are made by hand.
fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "disk"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

fn apply(world: &World, objects: &[Value]) {
    for object in objects {
        let applied = world.kubectl_with(&["apply", "-f", "-"], &object.to_string());
        assert_eq!(applied.err, "", "nothing is warned about: {object}");
        applied.ok();
    }
}

/// The columns of `kubectl get … --no-headers` without the age.
fn row(world: &World, words: &str) -> Vec<String> {
    let text = world.kubectl(&format!("get {words} --no-headers")).ok();
    text.split_whitespace().map(str::to_owned).collect()
}

fn phase_becomes(world: &World, path: &str, phase: &str) -> Value {
    until(&format!("{path} is {phase}"), || {
        let found = world.api.find(path).ok_or("it is not there")?;
        check(found["status"]["phase"] == phase, || found.to_string())?;
        Ok(found)
    })
}

fn is_gone(world: &World, path: &str) {
    until(&format!("{path} is gone"), || {
        let found = world.api.find(path);
        check(found.is_none(), || found.unwrap_or_default().to_string())
    });
}

#[test]
fn a_claim_gets_a_folder_of_one_node_and_keeps_its_data() {
    let world = world(2);
    let disk = world.dir().join("ssd");
    fs::create_dir(&disk).unwrap();
    // On the second node, which the scheduler would not choose first; the large one
    // is on the other.
    apply(
        &world,
        &[
            class(),
            volume("small", "node-2", &disk, "1Gi"),
            volume("large", "node-1", &disk, "9Gi"),
        ],
    );
    phase_becomes(&world, &format!("{VOLUMES}/small"), "Available");
    apply(&world, &[claim("data", Some("disk"), "500Mi")]);
    world.event_appears("data", &["WaitForFirstConsumer", "waiting for first consumer"]);
    assert_eq!(row(&world, "pvc data")[..2], ["data", "Pending"]);
    // It must go where the class finds it a volume: only the selector excludes node-1.
    let mut first = writer(&world, "first", "data");
    first["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-2"});
    apply(&world, &[first]);
    assert_eq!(node(&world.pod_becomes_ready("first")), "node-2");
    world.log_holds("first", "first\n");
    let bound = phase_becomes(&world, &format!("{CLAIMS}/data"), "Bound");
    assert_eq!(bound["spec"]["volumeName"], "small", "the smallest that fits");
    assert_eq!(
        row(&world, "pvc data")[..7],
        ["data", "Bound", "small", "1Gi", "RWO", "disk", "<unset>"]
    );
    assert_eq!(
        row(&world, "pv small")[..8],
        ["small", "1Gi", "RWO", "Retain", "Bound", "default/data", "disk", "<unset>"]
    );
    assert_eq!(row(&world, "pv large")[4], "Available");
    world.kubectl("delete pod first").ok();
    // Nothing but the volume says where the next one goes.
    for name in ["second", "third"] {
        apply(&world, &[writer(&world, name, "data")]);
        assert_eq!(node(&world.pod_becomes_ready(name)), "node-2");
    }
    let log = world.log_holds("third", "third\n");
    assert!(log.starts_with("first\n"), "{log}");
    // A pod that must not go there waits, and is told why.
    let mut stray = writer(&world, "stray", "data");
    stray["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-1"});
    apply(&world, &[stray]);
    world.event_appears(
        "stray",
        &[
            "FailedScheduling: 0/2 nodes are available",
            "1 node(s) didn't match PersistentVolume's node affinity",
            "1 node(s) didn't match Pod's node affinity/selector",
        ],
    );
    // One that is put there past the scheduler waits on the node, with nothing lost.
    let mut placed = writer(&world, "placed", "data");
    placed["spec"]["nodeName"] = json!("node-1");
    apply(&world, &[placed]);
    world.event_appears("placed", &["FailedMount", "MountVolume.NodeAffinity check failed"]);
    world.kubectl("delete pod placed").ok();
    // What is in use stays until it is not.
    world.kubectl("delete pvc data --wait=false").ok();
    assert_eq!(row(&world, "pvc data")[1], "Terminating");
    let described = world.kubectl("describe pvc data").ok();
    assert!(described.contains("kubernetes.io/pvc-protection"), "{described}");
    world.kubectl("delete pod second stray").ok();
    assert_eq!(row(&world, "pvc data")[1], "Terminating", "the third pod uses it");
    world.kubectl("delete pod third").ok();
    is_gone(&world, &format!("{CLAIMS}/data"));
    phase_becomes(&world, &format!("{VOLUMES}/small"), "Released");
    assert_eq!(fs::read_to_string(disk.join("log")).unwrap(), "first\nsecond\nthird\n");
    world.kubectl("delete pv small").ok();
    is_gone(&world, &format!("{VOLUMES}/small"));
    assert!(disk.join("log").exists(), "Retain");
}

#[test]
fn a_folder_is_made_for_a_claim_and_goes_with_it() {
    let mut world = world(2);
    let shown = row(&world, "sc");
    assert_eq!(
        shown[..5],
        ["local-path", "(default)", "pinnace.io/local-path", "Delete", "WaitForFirstConsumer"]
    );
    // No class is named: it gets the default one.
    apply(&world, &[claim("data", None, "64Mi")]);
    assert_eq!(row(&world, "pvc data")[2], "local-path");
    let mut app = pods::deployment("app", 1, writer(&world, "app", "data"));
    let script = pods::script("echo $HOSTNAME >>/data/log; cat /data/log");
    app["spec"]["template"]["spec"]["containers"][0]["command"] = json!(script);
    app["spec"]["strategy"] = json!({"type": "Recreate"});
    world.create_deployment(&app);
    let first = world.app_becomes_ready("app", 1).remove(0);
    let at = world.at(&node(&first));
    let bound = phase_becomes(&world, &format!("{CLAIMS}/data"), "Bound");
    let name = bound["spec"]["volumeName"].as_str().unwrap().to_owned();
    let path = world.agents[at].state_dir().join("storage").join(&name);
    let made = world.api.find(&format!("{VOLUMES}/{name}")).unwrap();
    assert_eq!(PathBuf::from(made["spec"]["local"]["path"].as_str().unwrap()), path);
    assert_eq!(row(&world, &format!("pv {name}"))[3..6], ["Delete", "Bound", "default/data"]);
    world.event_appears("data", &["ProvisioningSucceeded", &name]);
    // The pod is replaced, and so is its agent: the data is there.
    world.kubectl_with(&["delete", "pod", &pods::name(&first)], "").ok();
    let second = world.app_becomes_ready("app", 1).remove(0);
    assert_eq!(node(&second), node(&first));
    let log = world.log_holds(&pods::name(&second), &pods::name(&second));
    assert!(log.starts_with(&pods::name(&first)), "{log}");
    let before = world.agents[at].processes_by_container();
    world.agents[at].kill();
    world.start_agent(at);
    world.restart_master();
    let node_name = node(&second);
    world.node_becomes_ready(&node_name);
    assert_eq!(world.agents[at].processes_by_container(), before);

    // The claim goes with its pods.
    world.kubectl("delete pvc data --wait=false").ok();
    world.kubectl("scale deployment app --replicas=0").ok();
    is_gone(&world, &format!("{CLAIMS}/data"));
    is_gone(&world, &format!("{VOLUMES}/{name}"));
    assert!(!path.exists(), "the folder goes before its volume");
    let others = path.parent().unwrap();
    assert_eq!(fs::read_dir(others).unwrap().count(), 0);
    assert!(others.exists());
}

#[test]
fn a_folder_of_a_node_that_is_away_goes_when_it_is_back() {
    let mut world = world(1);
    apply(&world, &[claim("data", None, "64Mi"), writer(&world, "writer", "data")]);
    world.pod_becomes_ready("writer");
    let bound = phase_becomes(&world, &format!("{CLAIMS}/data"), "Bound");
    let name = bound["spec"]["volumeName"].as_str().unwrap().to_owned();
    let path = world.agents[0].state_dir().join("storage").join(&name);
    // What a hostile pod leaves: a link to what is precious.
    let outside = world.dir().join("precious");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
    world.kubectl("delete pod writer").ok();
    world.agents[0].kill();
    world.kubectl("delete pvc data").ok();
    let held = until("its volume waits for the node", || {
        let held = world.api.find(&format!("{VOLUMES}/{name}")).ok_or("it is gone")?;
        let finalizers = held["metadata"]["finalizers"].clone();
        check(finalizers == json!(["pinnace.io/local-path"]), || finalizers.to_string())?;
        Ok(held)
    });
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(row(&world, "pv")[4], "Terminating");
    assert!(path.join("log").exists());
    world.start_agent(0);
    is_gone(&world, &format!("{VOLUMES}/{name}"));
    assert!(!path.exists());
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
}

#[test]
fn what_cannot_be_bound_says_why() {
    let world = world(1);
    apply(&world, &[writer(&world, "orphan", "nowhere")]);
    world.event_appears(
        "orphan",
        &[
            "FailedScheduling: 0/1 nodes are available",
            "persistentvolumeclaim \"nowhere\" not found",
        ],
    );
    // A claim that appears lets it go.
    apply(&world, &[claim("nowhere", None, "1Mi")]);
    world.pod_becomes_ready("orphan");
    // A class without volumes, one that is missing, and none at all.
    apply(
        &world,
        &[
            class(),
            claim("waits", Some("disk"), "1Gi"),
            claim("typo", Some("local-pth"), "1Gi"),
            claim("none", Some(""), "1Gi"),
            writer(&world, "searching", "waits"),
            writer(&world, "hoping", "typo"),
        ],
    );
    world.event_appears(
        "searching",
        &["1 node(s) didn't find available persistent volumes to bind"],
    );
    world.event_appears(
        "typo",
        &["ProvisioningFailed", "storageclass.storage.k8s.io \"local-pth\" not found"],
    );
    world.event_appears("hoping", &["pod has unbound immediate PersistentVolumeClaims"]);
    world.event_appears(
        "none",
        &["FailedBinding", "no persistent volumes available for this claim"],
    );
    // A pod that is put on a node past the scheduler waits there, and says why.
    let mut placed = writer(&world, "placed", "none");
    placed["spec"]["nodeName"] = json!("node-1");
    apply(&world, &[placed]);
    world.event_appears(
        "placed",
        &["FailedMount", "error processing PVC default/none: PVC is not bound"],
    );
    // The volume of another kind of storage is refused, with the way out.
    let mut nfs = volume("nfs", "node-1", Path::new("/mnt"), "1Gi");
    nfs["spec"].as_object_mut().unwrap().remove("local");
    nfs["spec"]["nfs"] = json!({"server": "10.0.0.1", "path": "/"});
    let refused = world.kubectl_with(&["apply", "-f", "-"], &nfs.to_string()).failed();
    assert!(refused.contains("spec.nfs: Forbidden: Pinnace cannot do this"), "{refused}");
    // What it waited for is there: a volume that its claim is set aside for by name.
    let disk = world.dir().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut mine = volume("mine", "node-1", &disk, "2Gi");
    mine["spec"]["claimRef"] = json!({"namespace": "default", "name": "none"});
    mine["spec"]["storageClassName"] = json!("");
    apply(&world, &[mine, volume("found", "node-1", &disk, "2Gi")]);
    world.pod_becomes_ready("placed");
    world.pod_becomes_ready("searching");
    assert_eq!(row(&world, "pvc none")[..4], ["none", "Bound", "mine", "2Gi"]);
}

#[test]
fn a_claim_is_mounted_like_any_other_volume() {
    let mut world = world(1);
    apply(&world, &[claim("data", None, "64Mi")]);
    // As a user of no rights, through the group of the volume, at a folder in it.
    let mut user = writer(&world, "user", "data");
    user["spec"]["securityContext"] =
        json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
    user["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = json!("deep/er");
    apply(&world, &[user]);
    world.pod_becomes_ready("user");
    world.log_holds("user", "user\n");
    let bound = phase_becomes(&world, &format!("{CLAIMS}/data"), "Bound");
    let name = bound["spec"]["volumeName"].as_str().unwrap();
    let path = world.agents[0].state_dir().join("storage").join(name);
    assert_eq!(fs::read_to_string(path.join("deep/er/log")).unwrap(), "user\n");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&fs::metadata(&path).unwrap()), 2000);
    // A second pod of the same claim on the same node, which may only read.
    let lines = "cat /data/deep/er/log; touch /data/new || echo refused";
    let script = pods::script(lines);
    let mut reader = writer(&world, "reader", "data");
    reader["spec"]["containers"][0]["command"] = json!(script);
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    apply(&world, &[reader]);
    let log = world.log_holds("reader", "refused");
    assert!(log.starts_with("user\n"), "{log}");
    assert!(!path.join("new").exists());
    // `kubectl describe` knows both sides.
    let described = world.kubectl("describe pvc data").ok();
    assert!(described.contains("Used By:") && described.contains("reader"), "{described}");
    let described = world.kubectl_with(&["describe", "pv", name], "").ok();
    for word in ["LocalVolume", "kubernetes.io/hostname in [node-1]", "default/data"] {
        assert!(described.contains(word), "{word}: {described}");
    }
    // The board comes back alone: the pods start again on what they wrote.
    world.master.kill();
    world.lose_power(0);
    world.boot(0);
    until("the pod goes on with its data", || {
        let log = fs::read_to_string(path.join("deep/er/log")).unwrap_or_default();
        check(log == "user\nuser\n", || log.clone())
    });
}
