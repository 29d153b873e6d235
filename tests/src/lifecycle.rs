//! The life of a pod, as a user sees it: init containers, sidecars, probes,
//! hooks, deadlines, last words, on both runtimes.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, condition, restarts};
use crate::harness::programs::guest;
use crate::harness::wait::{check, until};

/// A pod whose containers all see the folder `/v`.
fn shared(name: &str, init: Value, containers: Value) -> Value {
    let mut pod = pods::pod(name, "", &[], &[]);
    let with_mount = |mut list: Value| {
        for one in list.as_array_mut().unwrap() {
            one["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }
        list
    };
    pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    pod["spec"]["initContainers"] = with_mount(init);
    pod["spec"]["containers"] = with_mount(containers);
    pod
}

fn shell(name: &str, image: &str, script: &str) -> Value {
    json!({"name": name, "image": image, "command": ["/bin/sh", "-c", script]})
}

/// Runs until it is told to stop, after `first`; says `last` before it goes.
fn serve(first: &str, last: &str) -> String {
    format!("trap '{last}; exit 0' TERM\n{first}\nwhile true; do sleep 0.1; done")
}

/// Where the pod's `/v` is on its board, which keeps it until the pod is over.
fn folder(world: &World, pod: &Value) -> PathBuf {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let volumes = world.agents[0].state_dir().join("pods").join(uid).join("volumes");
    until("the pod has its volume", || {
        let mut found = vec![volumes.clone()];
        while let Some(at) = found.pop() {
            for entry in fs::read_dir(&at).map_err(|error| error.to_string())?.flatten() {
                if entry.file_name() == "v" {
                    return Ok(entry.path());
                }
                found.extend(entry.path().is_dir().then(|| entry.path()));
            }
        }
        Err(format!("no folder v below {}", volumes.display()))
    })
}

fn status_of<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let all = pod["status"][list].as_array();
    all.into_iter().flatten().find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

fn reason(pod: &Value, kind: &str) -> String {
    let all = pod["status"]["conditions"].as_array();
    let one = all.into_iter().flatten().find(|one| one["type"] == kind);
    one.and_then(|one| one["reason"].as_str()).unwrap_or_default().to_owned()
}

/// The line of a pod in `kubectl get pods`, its words with one space between.
fn row(world: &World, pod: &str) -> String {
    let text = world.kubectl(&format!("get pod {pod} --no-headers")).ok();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn init_containers_sidecars_and_hooks_keep_their_order() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let say = |word: &str| format!("echo {word} >>/v/order");
    let wait = |file: &str| format!("until test -e /v/{file}; do sleep 0.05; done");
    let mut proxy = shell(
        "proxy",
        &image,
        &serve(&format!("{}; touch /v/up", say("proxy")), "cat /v/order; echo over"),
    );
    proxy["restartPolicy"] = json!("Always");
    proxy["startupProbe"] = json!({"exec": {"command": ["/bin/sh", "-c", "test -e /v/up"]}, "periodSeconds": 1, "failureThreshold": 60});
    let setup = shell("setup", &image, &format!("{}; {}", say("setup"), wait("go")));
    let mut main = shell("main", &image, &format!("{}; {}", wait("end"), say("main")));
    main["lifecycle"] = json!({"postStart": {"exec": {"command": ["/bin/sh", "-c", say("hook")]}}});
    let mut ordered = shared("ordered", json!([proxy, setup]), json!([main]));
    ordered["spec"]["restartPolicy"] = json!("Never");
    let created = world.kubectl_with(&["create", "-f", "-"], &ordered.to_string());
    assert_eq!(created.err, "", "nothing is warned about");

    let pod = world.pod_becomes("ordered", "runs its second init container", |pod| {
        status_of(pod, "initContainerStatuses", "setup")["state"]["running"].is_object()
    });
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(status_of(&pod, "initContainerStatuses", "proxy")["started"], true);
    assert_eq!(pods::trouble(&pod).0, "PodInitializing");
    assert_eq!(condition(&pod, "Initialized"), "False");
    assert_eq!(reason(&pod, "Initialized"), "ContainersNotInitialized");
    assert!(
        row(&world, "ordered").starts_with("ordered 1/2 Init:1/2 0 "),
        "{}",
        row(&world, "ordered")
    );
    let described = world.pinnace("describe pod ordered").ok();
    assert!(
        described.contains("Init Containers:")
            && described.contains("exec [/bin/sh -c test -e /v/up]"),
        "{described}"
    );

    let v = folder(&world, &pod);
    fs::write(v.join("go"), "").unwrap();
    let pod = world.pod_becomes_ready("ordered");
    assert_eq!(condition(&pod, "Initialized"), "True");
    assert!(row(&world, "ordered").starts_with("ordered 2/2 Running 0 "));
    // It ends with its main container; the sidecar sees that and goes after it.
    fs::write(v.join("end"), "").unwrap();
    let pod = world.pod_becomes("ordered", "succeeds", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(reason(&pod, "Ready"), "PodCompleted");
    assert!(
        row(&world, "ordered").starts_with("ordered 0/2 Completed 0 "),
        "{}",
        row(&world, "ordered")
    );
    let log = world.kubectl("logs ordered -c proxy").ok();
    assert_eq!(log, "proxy\nsetup\nhook\nmain\nover\n");
    let events = world.events_about("ordered").join("\n");
    for word in ["Created container: setup", "Started container proxy", "Stopping container proxy"]
    {
        assert!(events.contains(word), "{word}: {events}");
    }
}

#[test]
fn probes_restart_and_flip_what_they_ask() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let greeter = world.registry().push_wasm("greeter:1", guest("greeter", "wasip1"));
    let every_second = |mut probe: Value| {
        probe["periodSeconds"] = json!(1);
        probe["failureThreshold"] = json!(1);
        probe
    };
    let web = serve("mkdir -p /v/www; rm -f /v/sick; httpd -h /v/www -p 80", "true");
    let mut main = shell("main", &image, &web);
    main["ports"] = json!([{"name": "web", "containerPort": 80}]);
    main["readinessProbe"] = every_second(json!({"httpGet": {"path": "/ready", "port": "web"}}));
    main["livenessProbe"] =
        every_second(json!({"exec": {"command": ["/bin/sh", "-c", "test ! -e /v/sick"]}}));
    main["startupProbe"] =
        json!({"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 60});
    world.create_pod(&shared("probed", json!([]), json!([main])));
    // A module beside it, which can be asked everything but commands.
    let mut module = pods::pod("module", &greeter, &[], &["/nothing"]);
    module["spec"]["containers"][0]["livenessProbe"] =
        every_second(json!({"exec": {"command": ["true"]}}));
    world.create_pod(&module);

    let pod = world.pod_becomes("probed", "is up", |pod| {
        pod["status"]["containerStatuses"][0]["started"] == true
    });
    assert_eq!(condition(&pod, "Ready"), "False");
    assert_eq!(pod["status"]["phase"], "Running");
    world.event_appears(
        "probed",
        &["Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404"],
    );
    assert!(row(&world, "probed").starts_with("probed 0/1 Running 0 "));
    let v = folder(&world, &pod);
    fs::write(v.join("www/ready"), "yes").unwrap();
    world.pod_becomes_ready("probed");
    fs::remove_file(v.join("www/ready")).unwrap();
    let pod = world.pod_becomes("probed", "is not ready", |pod| condition(pod, "Ready") == "False");
    assert_eq!(reason(&pod, "Ready"), "ContainersNotReady");
    fs::write(v.join("www/ready"), "yes").unwrap();
    world.pod_becomes_ready("probed");
    assert_eq!(restarts(&world.find_pod("probed").unwrap()), 0, "readiness restarts nothing");

    fs::write(v.join("sick"), "").unwrap();
    world.event_appears(
        "probed",
        &["Killing", "Container main failed liveness probe, will be restarted"],
    );
    let pod = world.pod_becomes("probed", "was restarted and is ready", |pod| {
        restarts(pod) == 1 && condition(pod, "Ready") == "True"
    });
    assert!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"].is_object());

    world.event_appears(
        "module",
        &["Unhealthy", "Liveness probe errored", "no commands to execute"],
    );
    assert_eq!(restarts(&world.find_pod("module").unwrap()), 0);
}

#[test]
fn both_runtimes_live_in_one_pod_and_leave_their_last_words() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let trial = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    let module = |name: &str, args: &[&str]| json!({"name": name, "image": trial, "args": args});
    // A module prepares what a program reads, and another runs beside it.
    let init = json!([module("first", &["write", "/v/from-wasm"])]);
    let reader = shell("reader", &image, &serve("cat /v/from-wasm; echo", "true"));
    world.create_pod(&shared("mixed", init, json!([reader, module("beside", &["sleep"])])));
    let pod = world.pod_becomes_ready("mixed");
    assert_eq!(
        status_of(&pod, "initContainerStatuses", "first")["state"]["terminated"]["reason"],
        "Completed"
    );
    assert!(row(&world, "mixed").starts_with("mixed 2/2 Running 0 "));
    until("the program has read what the module wrote", || {
        let log = world.kubectl("logs mixed -c reader").ok();
        check(log == "x\n", || log.clone())
    });

    let once = |name: &str, container: Value| {
        let mut pod = pods::pod(name, "", &[], &[]);
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["spec"]["containers"] = json!([container]);
        pod
    };
    let words = |name: &str| {
        let pod = world.pod_becomes(name, "fails", |pod| pod["status"]["phase"] == "Failed");
        pods::trouble(&pod).1
    };
    world.create_pod(&once(
        "file",
        shell("main", &image, "echo -n goodbye >/dev/termination-log; exit 3"),
    ));
    let mut logs = shell("main", &image, "echo the end; exit 3");
    logs["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    world.create_pod(&once("logs", logs));
    let args = ["write", "/dev/termination-log", "exit", "3"];
    world.create_pod(&once("wasm", json!({"name": "main", "image": trial, "args": args})));
    let mut limited = once("limited", shell("main", &image, &serve("", "true")));
    limited["spec"]["activeDeadlineSeconds"] = json!(2);
    world.create_pod(&limited);
    assert_eq!(
        (words("file"), words("logs"), words("wasm")),
        ("goodbye".into(), "the end\n".into(), "x".into())
    );
    let pod = world
        .pod_becomes("limited", "comes to its deadline", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    world.event_appears("limited", &["DeadlineExceeded"]);
}

#[test]
fn an_agent_that_is_killed_while_a_pod_initializes_runs_nothing_twice() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let step = |name: &str| {
        let script = format!("echo {name} >>/v/runs; until test -e /v/{name}; do sleep 0.05; done");
        shell(name, &image, &script)
    };
    let mut main = shell("main", &image, &serve("echo main >>/v/runs", "true"));
    main["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    world.create_pod(&shared("careful", json!([step("one"), step("two")]), json!([main])));
    let runs = |name: &'static str| {
        move |pod: &Value| {
            status_of(pod, "initContainerStatuses", name)["state"]["running"].is_object()
        }
    };
    let pod = world.pod_becomes("careful", "runs its first init container", runs("one"));
    let v = folder(&world, &pod);
    let lines = || fs::read_to_string(v.join("runs")).unwrap_or_default();

    // The first one ends while nobody looks; the second is running when it happens again.
    world.agents[0].kill();
    fs::write(v.join("one"), "").unwrap();
    until("the first one has ended", || {
        check(world.agents[0].running().is_empty(), || "it runs".into())
    });
    world.start_agent(0);
    world.pod_becomes("careful", "runs its second init container", runs("two"));
    world.agents[0].kill();
    world.start_agent(0);
    fs::write(v.join("two"), "").unwrap();
    let pod = world.pod_becomes_ready("careful");
    assert_eq!(lines(), "one\ntwo\nmain\n");
    assert_eq!(restarts(&pod), 0);
    for one in pod["status"]["initContainerStatuses"].as_array().unwrap() {
        assert_eq!(one["restartCount"], 0, "{one}");
    }

    // Power off and on, with no master: everything in its order again, once.
    world.master.kill();
    world.lose_power(0);
    world.boot(0);
    until("the board has brought the pod up", || {
        let lines = lines();
        check(lines == "one\ntwo\nmain\none\ntwo\nmain\n", || lines.clone())
    });
    world.restart_master();
    let pod = world.pod_becomes("careful", "is Ready after the boot", |pod| {
        restarts(pod) == 1 && condition(pod, "Ready") == "True"
    });
    assert_eq!(pod["status"]["phase"], "Running");
    world.delete("/api/v1/namespaces/default/pods/careful");
    world.agents[0].becomes_clean(&world.network);
}
