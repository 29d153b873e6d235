//! What bad input gets: an error or a status that names the field or file and
//! what to do, in Kubernetes' words, while everything else goes on.

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, condition, trouble};
use crate::harness::programs::guest;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod that needs no registry.
fn plain() -> Value {
    pods::pod("plain", "registry.example.com/plain:1", &[], &[])
}

#[test]
fn objects_that_make_no_sense_are_refused_with_the_field() {
    let world = World::master_only();
    let post = |change: &dyn Fn(&mut Value)| {
        let mut pod = plain();
        change(&mut pod);
        world.api.create(PODS, &pod)
    };
    // An unknown field, and two of them at once.
    let message = post(&|pod| {
        pod["spec"]["containers"][0]["imagee"] = json!("x");
        pod["spec"]["hostnam"] = json!("x");
    })
    .refused(400, "BadRequest");
    assert!(message.contains("strict decoding error"), "{message}");
    assert!(message.contains("unknown field \"spec.containers[0].imagee\""), "{message}");
    assert!(message.contains("unknown field \"spec.hostnam\""), "{message}");

    // A wrong type.
    let message = post(&|pod| pod["spec"]["terminationGracePeriodSeconds"] = json!("soon"))
        .refused(400, "BadRequest");
    assert!(message.contains("terminationGracePeriodSeconds"), "{message}");
    let message = post(&|pod| {
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "many"}});
    })
    .refused(400, "BadRequest");
    assert!(message.contains("quantities must match"), "{message}");

    // Values that no pod may have.
    let message = post(&|pod| {
        pod["spec"]["containers"][0]["name"] = json!("Not_Valid");
        pod["spec"]["restartPolicy"] = json!("Sometimes");
    })
    .refused(422, "Invalid");
    for field in ["spec.containers[0].name", "spec.restartPolicy", "Sometimes"] {
        assert!(message.contains(field), "{message}");
    }
    assert!(message.contains("Not_Valid"), "{message}");

    // No JSON at all.
    let answer = world
        .api
        .send(http::Method::POST, PODS, "application/json", "{\"kind\": ".to_owned())
        .unwrap();
    answer.refused(400, "BadRequest");

    // Everything else goes on.
    world.api.create(PODS, &plain()).ok();
}

#[test]
fn a_field_that_bears_on_security_is_refused_and_any_other_is_warned_of() {
    let world = World::master_only();
    let mut pod = plain();
    pod["spec"]["containers"][0]["securityContext"] = json!({"seLinuxOptions": {"type": "t"}});
    let message = world.api.create(PODS, &pod).refused(422, "Invalid");
    assert!(message.contains("spec.containers[0].securityContext.seLinuxOptions"), "{message}");

    let mut pod = plain();
    pod["spec"]["volumes"] =
        json!([{"name": "far", "nfs": {"server": "nas.example", "path": "/"}}]);
    let answer = world.api.create(PODS, &pod);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let warning = answer.warnings.join("\n");
    assert!(warning.contains("spec.volumes[0].nfs"), "{warning:?}");
    assert!(warning.starts_with("299 "), "{warning:?}");
    world.event_appears("plain", &["spec.volumes[0].nfs"]);
    // Users see it, too.
    let mut pod = pod;
    pod["metadata"]["name"] = json!("again");
    let out = world.kubectl_with(&["create", "-f", "-"], &pod.to_string());
    assert!(out.err.contains("Warning:") && out.err.contains("spec.volumes[0].nfs"), "{out}");
}

#[test]
fn manifests_that_cannot_be_read_are_named_by_file_and_stop_nothing_else() {
    let world = World::master_only();
    let folder = world.dir().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {a: b}\n";
    std::fs::write(folder.join("a.yaml"), "kind: [unclosed\n").unwrap();
    std::fs::write(folder.join("b.yaml"), good).unwrap();
    let typo = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: typo}\ndatta: {a: b}\n";
    std::fs::write(folder.join("c.yaml"), typo).unwrap();
    let out = world.pinnace_with(&["apply", "-f", folder.to_str().unwrap()], "");
    assert_ne!(out.code, 0);
    let shown = format!("{out}");
    assert!(shown.contains("a.yaml"), "{shown}");
    assert!(shown.contains("datta") && shown.contains("c.yaml"), "{shown}");
    // A folder with a file that cannot be read is not half applied without a word.
    if world.api.find("/api/v1/namespaces/default/configmaps/good").is_none() {
        std::fs::remove_file(folder.join("a.yaml")).unwrap();
        let out = world.pinnace_with(&["apply", "-f", folder.to_str().unwrap()], "");
        assert_ne!(out.code, 0, "{out}");
        world.api.get("/api/v1/namespaces/default/configmaps/good").ok();
    }
    assert!(world.api.find("/api/v1/namespaces/default/configmaps/typo").is_none());
}

#[test]
fn images_and_commands_that_do_not_exist_say_so_in_the_pod() {
    let world = World::with_nodes(1);
    let shell = world.registry().push_busybox("shell:1", &[]);

    let missing = world.registry().image("missing:1");
    world.create_pod(&pods::pod("no-image", &missing, &[], &[]));
    world.create_pod(&pods::pod("no-command", &shell, &["/bin/missing"], &[]));
    let module = world.registry().push_wasm("text:1", b"this is no module".to_vec());
    world.create_pod(&pods::pod("no-module", &module, &[], &[]));
    let name = format!("{}/UPPER:1", world.registry().host());
    world.create_pod(&pods::pod("no-name", &name, &[], &[]));
    world.create_pod(&pods::pod("good", &shell, &["/bin/sleep", "1000"], &[]));

    // Kubernetes alternates between the two.
    let waits_for = |reasons: &'static [&'static str]| {
        move |pod: &Value| reasons.contains(&trouble(pod).0.as_str())
    };
    let pulls = &["ErrImagePull", "ImagePullBackOff"];
    world.pod_becomes("no-image", "says ErrImagePull or backs off", waits_for(pulls));
    let pod = world.pod_becomes("no-image", "backs off", waits_for(&["ImagePullBackOff"]));
    assert!(trouble(&pod).1.contains(&missing), "{:?}", trouble(&pod));
    world.event_appears("no-image", &["Failed", "missing:1"]);

    let reasons = &["StartError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"];
    let pod = world.pod_becomes("no-command", "names the command", |pod| {
        let status = pod["status"]["containerStatuses"][0].to_string();
        reasons.contains(&trouble(pod).0.as_str()) && status.contains("/bin/missing")
    });
    assert_ne!(pod["status"]["phase"], "Succeeded");

    let pod = world.pod_becomes("no-module", "says what is wrong with the module", |pod| {
        let (reason, message) = trouble(pod);
        !reason.is_empty() && reason != "ContainerCreating" && !message.is_empty()
    });
    let message = trouble(&pod).1;
    assert!(message.contains("text:1"), "{message}");
    assert!(
        message.to_lowercase().contains("wasm") || message.contains("WebAssembly"),
        "{message}"
    );

    let pod = world.pod_becomes("no-name", "says InvalidImageName", |pod| {
        trouble(pod).0 == "InvalidImageName"
    });
    assert!(trouble(&pod).1.contains("UPPER"), "{:?}", trouble(&pod));

    // Everything else goes on.
    world.pod_becomes_ready("good");
    for pod in ["no-image", "no-command", "no-module", "no-name", "good"] {
        world.delete(&format!("{PODS}/{pod}"));
    }
    world.agents[0].becomes_clean(&world.network);
}

#[test]
fn an_image_for_another_machine_never_runs_and_says_why() {
    let world = World::with_nodes(1);
    let other = if std::env::consts::ARCH == "x86_64" { "arm64" } else { "amd64" };
    let image = world.registry().push_for_architecture("other:1", other);
    world.create_pod(&pods::pod("other", &image, &[], &[]));
    // Either the scheduler knew, or the node found out.
    world.pod_becomes("other", "says which machine the image is for", |pod| {
        let scheduled = pod["status"]["conditions"].to_string();
        let text = format!("{scheduled}{:?}", trouble(pod));
        text.contains(other)
    });
    let pod = world.find_pod("other").unwrap();
    assert_eq!(pod["status"]["phase"], "Pending", "{pod}");
}

#[test]
fn a_pod_that_fits_nowhere_waits_and_says_why_for_each_node() {
    let world = World::with_nodes(2);
    let image = world.registry().push_busybox("shell:1", &[]);
    let mut pod = pods::pod("huge", &image, &["/bin/sleep", "1000"], &[]);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    world.create_pod(&pod);
    let pod = world
        .pod_becomes("huge", "is unschedulable", |pod| condition(pod, "PodScheduled") == "False");
    assert_eq!(pod["status"]["phase"], "Pending");
    let event = world.event_appears("huge", &["FailedScheduling", "cpu"]);
    for board in ["node-1", "node-2"] {
        assert!(event.contains(board), "{event}");
    }
    // A node that is made for it takes it.
    let smaller = pods::pod("small", &image, &["/bin/sleep", "1000"], &[]);
    world.create_pod(&smaller);
    world.pod_becomes_ready("small");
}

#[test]
fn a_pod_that_names_what_does_not_exist_waits_for_it() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let mut pod = pods::pod("patient", &image, &["/bin/sleep", "1000"], &[]);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "A",
        "valueFrom": {"configMapKeyRef": {"name": "words", "key": "a"}}}]);
    world.create_pod(&pod);
    let pod = world.pod_becomes("patient", "waits for the ConfigMap", |pod| {
        trouble(pod).0 == "CreateContainerConfigError"
    });
    assert!(trouble(&pod).1.contains("words"), "{:?}", trouble(&pod));
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"},
        "data": {"a": "b"}});
    world.api.create("/api/v1/namespaces/default/configmaps", &map).ok();
    world.pod_becomes_ready("patient");
}

#[test]
fn a_guest_that_traps_or_takes_too_much_hurts_only_itself() {
    let world = World::with_nodes(1);
    let trial = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    let never = |name: &str, args: &[&str]| {
        let mut pod = pods::pod(name, &trial, &[], args);
        pod["spec"]["restartPolicy"] = json!("Never");
        pod
    };
    world.create_pod(&never("neighbour", &["sleep"]));
    world.pod_becomes_ready("neighbour");
    world.create_pod(&never("panics", &["panic"]));
    let mut greedy = never("greedy", &["allocate", "256"]);
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    world.create_pod(&greedy);
    for name in ["panics", "greedy"] {
        let pod = world.pod_becomes(name, "fails", |pod| pod["status"]["phase"] == "Failed");
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_ne!(ended["exitCode"], 0, "{pod}");
    }
    world.create_pod(&never("spins", &["spin"]));
    world.log_holds("spins", "spinning");
    // A guest that never yields is stopped all the same.
    world.delete(&format!("{PODS}/spins"));
    let neighbour = world.find_pod("neighbour").unwrap();
    assert_eq!(neighbour["status"]["phase"], "Running");
    assert_eq!(pods::restarts(&neighbour), 0);
}
