//! What a board goes through alone in its cabinet: files that are damaged, a disk
//! that is full, a cold boot without a master, a clock that is wrong, and too
//! little of everything.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, condition, name, restarts};
use crate::harness::process::read_lossy;
use crate::harness::wait::{check, throughout, until};

/// How long "nothing happens" is watched.
const QUIET: Duration = Duration::from_secs(3);

const COUNT: &str = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.1; done";

/// Thresholds that a development machine does not come near by itself.
const NO_PRESSURE: &str = "--eviction-hard=memory.available<1Mi";

fn counter(world: &World, name: &str) -> Value {
    pods::pod(name, &world.registry().image("shell:1"), &["/bin/sh", "-c", COUNT], &[])
}

/// A pod that runs these lines once.
fn once(world: &World, name: &str, lines: &str) -> Value {
    let image = world.registry().image("shell:1");
    let mut pod = pods::pod(name, &image, &["/bin/sh", "-c", lines], &[]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod
}

fn is_evicted(pod: &Value) -> bool {
    pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Evicted"
}

fn ended(pod: &Value) -> bool {
    pod["status"]["phase"] == "Succeeded"
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// The log of a pod's newest run, from the board's disk.
fn log_on_disk(world: &World, pod: &Value) -> String {
    let folder = format!("default_{}_{}", name(pod), uid(pod));
    let folder = world.agents[0].state_dir().join("logs").join(folder).join("main");
    let mut runs: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    runs.sort();
    runs.last().map(|path| read_lossy(path)).unwrap_or_default()
}

type Damage = fn(&Path);

/// Ways in which a file comes to harm.
const DAMAGES: [(&str, Damage); 4] = [
    ("one bit", |path| {
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.len() * 2 / 3;
        bytes[at] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }),
    ("the second half is gone", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("empty", |path| fs::write(path, "").unwrap()),
    ("gone", |path| fs::remove_file(path).unwrap()),
];

#[test]
fn a_damaged_file_is_noticed_and_made_good_again() {
    let mut world = World::with_nodes(1);
    world.registry().push_busybox("shell:1", &[]);
    world.create_pod(&counter(&world, "counter"));
    let counter = world.pod_becomes_ready("counter");
    world.create_pod(&once(&world, "once", "echo ran"));
    let first = world.pod_becomes("once", "succeeds", ended);
    let before = world.agents[0].processes_by_container();
    assert_eq!(before.len(), 1);
    let (state, run) = (world.agents[0].state_dir(), world.agents[0].run_dir());
    let set = state.join("set");
    let result = state.join("results").join(uid(&first));
    let files: [(&str, PathBuf); 6] = [
        ("the set", set.clone()),
        ("the key of the set", state.join("identity/seal.key")),
        ("how a pod ended", result.clone()),
        ("which boot it is", run.join("boot")),
        ("a running pod's state", run.join("pods").join(uid(&counter)).join("state")),
        ("a finished pod's state", run.join("pods").join(uid(&first)).join("state")),
    ];
    for (what, file) in &files {
        for (how, damage) in DAMAGES {
            let what = format!("{what}: {how}");
            world.agents[0].kill();
            let n_logged = world.agents[0].log().len();
            damage(file);
            world.start_agent(0);
            until(&format!("{what}: the agent is ready"), || {
                let log = world.agents[0].log()[n_logged..].to_owned();
                check(log.contains("connected to the master"), || log)
            });
            until(&format!("{what}: what the master knows is there again"), || {
                let ready = world.find_pod("counter").unwrap();
                check(condition(&ready, "Ready") == "True", || ready["status"].to_string())?;
                check(set.is_file(), || "no set".to_owned())
            });
            assert_eq!(world.agents[0].processes_by_container(), before, "{what}");
            assert!(ended(&world.find_pod("once").unwrap()), "{what}");
            // A file that is gone looks like one that never was; any other is said.
            let log = world.agents[0].log()[n_logged..].to_owned();
            let is_said = log.contains("damaged") || log.contains("another key");
            let is_set = file == &set && how != "gone";
            assert!(is_said || !is_set, "{what}: {log}");
        }
    }
    // Everything at once, and the power goes: what the master knows as over stays so.
    for (how, damage) in DAMAGES {
        until("the set is stored again", || check(set.is_file(), || "no set".to_owned()));
        world.agents[0].kill();
        world.lose_power(0);
        damage(&set);
        if result.exists() {
            damage(&result);
        }
        world.boot(0);
        world.node_becomes_ready("node-1");
        world.pod_becomes_ready("counter");
        throughout("a finished pod does not run again", QUIET, || {
            let running = world.agents[0].running();
            check(running.iter().all(|one| one.pod != "once"), || format!("{how}: {running:?}"))
        });
        let now = world.find_pod("once").unwrap();
        assert!(ended(&now), "{how}: {now}");
        let state = |pod: &Value| pod["status"]["containerStatuses"][0]["state"].clone();
        assert_eq!(state(&now), state(&first), "{how}");
    }
}

#[test]
fn what_a_board_had_comes_back_without_its_master_and_one_message_levels_both() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    for (kind, fields) in [
        ("ConfigMap", json!({"data": {"color": "blue-1"}})),
        ("Secret", json!({"stringData": {"password": "open-sesame-4711"}})),
    ] {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "given"}});
        object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let path = format!("/api/v1/namespaces/default/{}s", kind.to_lowercase());
        world.api.create(&path, &object).ok();
    }
    let lines = pods::script(
        "cat /config/color; echo; cat /secret/password; echo; echo $PASSWORD; \
         echo x >/empty/x && ls /empty",
    );
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut keeper = pods::pod("keeper", &image, &lines, &[]);
    keeper["spec"]["volumes"] = json!([
        {"name": "config", "configMap": {"name": "given"}},
        {"name": "secret", "secret": {"secretName": "given"}},
        {"name": "empty", "emptyDir": {}},
    ]);
    let container = &mut keeper["spec"]["containers"][0];
    container["volumeMounts"] = json!([
        {"name": "config", "mountPath": "/config"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "empty", "mountPath": "/empty"},
    ]);
    container["env"] = json!([{"name": "PASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "given", "key": "password"}}}]);
    world.create_pod(&keeper);
    world.create_pod(&once(&world, "over", "echo ran; exit 3"));
    world.create_pod(&once(&world, "cut", "echo ran; while true; do sleep 1; done"));
    let mut on_failure = once(&world, "works", "echo ran; while true; do sleep 1; done");
    on_failure["spec"]["restartPolicy"] = json!("OnFailure");
    world.create_pod(&on_failure);
    for pod in ["keeper", "cut", "works"] {
        world.pod_becomes_ready(pod);
    }
    let over = world.pod_becomes("over", "fails", |pod| pod["status"]["phase"] == "Failed");
    let keeper = world.find_pod("keeper").unwrap();
    let works = world.find_pod("works").unwrap();
    let grep = |what: &str| {
        let folder = world.agents[0].state_dir();
        crate::harness::run_program("grep", &["-rl", what, folder.to_str().unwrap()]).out
    };
    assert!(!grep("open-sesame").contains("/set\n"), "a Secret can be read in the set");

    world.master.kill();
    world.lose_power(0);
    world.boot(0);
    until("what was there comes back", || {
        let running: Vec<String> =
            world.agents[0].running().into_iter().map(|one| one.pod).collect();
        check(running == ["keeper", "works"], || format!("{running:?}"))
    });
    until("its volumes and variables are there", || {
        let log = log_on_disk(&world, &keeper);
        let found: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
        let wanted = ["blue-1", "open-sesame-4711", "open-sesame-4711", "x"];
        check(found == wanted, || log.clone())
    });
    throughout("what is over does not run again", QUIET, || {
        let running = world.agents[0].running();
        check(running.len() == 2, || format!("{running:?}"))
    });
    let before = world.agents[0].processes_by_container();
    let stored = fs::metadata(world.agents[0].state_dir().join("set")).unwrap().modified().unwrap();

    world.restart_master();
    world.node_becomes_ready("node-1");
    let cut = world.pod_becomes("cut", "fails", |pod| pod["status"]["phase"] == "Failed");
    let end = &cut["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(end["reason"], "ContainerStatusUnknown", "{cut}");
    for pod in [&keeper, &works] {
        let now = world.pod_becomes_ready(&name(pod));
        assert_eq!((uid(&now), restarts(&now)), (uid(pod), 1), "{now}");
    }
    assert_eq!(world.find_pod("over").unwrap()["status"]["phase"], over["status"]["phase"]);
    assert_eq!(
        world.agents[0].processes_by_container(),
        before,
        "the link's return restarts nothing"
    );
    // "cut" is over, which is the one thing that the master has to send.
    let sets = world.agents[0].log();
    assert!(!sets.contains("damaged"), "{sets}");
    let now = fs::metadata(world.agents[0].state_dir().join("set")).unwrap().modified().unwrap();
    assert!(now >= stored);
}

/// Fills a disk to its last byte.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0x55; size];
        while file.write_all(&block).is_ok() {}
    }
    path
}

#[test]
fn an_agent_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() {
    let mut world = World::with_nodes(0);
    world.registry().push_busybox("shell:1", &[]);
    let at = world.add_board("node-1");
    world.agents[at].plug_in_disk(64);
    let token = world.token();
    world.agents[at].join(&world.network, &token).ok();
    world.start_agent(at);
    world.node_becomes_ready("node-1");
    world.create_pod(&counter(&world, "counter"));
    world.pod_becomes_ready("counter");
    let before = world.agents[at].processes_by_container();

    let filler = fill(&world.agents[at].state_dir());
    world.create_pod(&counter(&world, "late"));
    world.event_appears("node-1", &["DiskFull"]);
    throughout("what runs is left alone", QUIET, || {
        let now = world.agents[at].processes_by_container();
        check(before.iter().all(|(key, value)| now.get(key) == Some(value)), || format!("{now:?}"))
    });
    // Also by an agent that starts on a full disk.
    world.agents[at].kill();
    world.start_agent(at);
    world.node_becomes_ready("node-1");
    let now = world.agents[at].processes_by_container();
    assert!(before.iter().all(|(key, value)| now.get(key) == Some(value)), "{now:?}");

    fs::remove_file(filler).unwrap();
    world.pod_becomes_ready("late");
    // And it is on disk: without the master, both come back.
    let set = world.agents[at].state_dir().join("set");
    until("the set is stored", || {
        let seal = edge_agent::seal::Seal::open(&world.agents[at].state_dir(), None).unwrap();
        let stored = edge_agent::set::load(&set, &seal).map_err(|error| error.to_string())?;
        let pods: Vec<String> = stored
            .iter()
            .flat_map(edge_agent::set::pods)
            .map(|(_, desired)| desired.pod.name.clone())
            .collect();
        check(pods.len() == 2, || format!("{pods:?}"))
    });
    let now = world.agents[at].processes_by_container();
    assert!(before.iter().all(|(key, value)| now.get(key) == Some(value)), "{now:?}");
}

#[test]
fn a_master_whose_disk_is_full_answers_and_goes_on_when_there_is_room() {
    let world = World::master_with_disk(24);
    let path = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str, size: usize| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"text": "x".repeat(size)}})
    };
    world.api.create(path, &map("before", 100)).ok();
    let filler = fill(&world.master.data_dir());
    // It may have a little room of its own left; that ends.
    let refused = (0..200).find_map(|n| {
        let answer = world.api.create(path, &map(&format!("filler-{n}"), 200_000));
        (answer.status != 201).then_some(answer)
    });
    let refused = refused.expect("a full disk refuses sooner or later");
    assert_eq!(refused.status, 500, "{}", refused.text);
    assert!(refused.text.contains("no room left"), "{}", refused.text);
    assert_eq!(world.api.get(&format!("{path}/before")).status, 200, "reading goes on");
    fs::remove_file(filler).unwrap();
    until("writing goes on by itself", || {
        let answer = world.api.create(path, &map("after", 100));
        check(answer.status == 201 || answer.status == 409, || answer.text)
    });
    assert_eq!(world.api.get(&format!("{path}/before")).ok()["data"]["text"], "x".repeat(100));
}

#[test]
fn a_full_disk_is_a_condition_a_taint_and_the_end_of_the_pod_that_filled_it() {
    let mut world = World::with_nodes(0);
    world.registry().push_busybox("shell:1", &[]);
    let at = world.add_board("node-1");
    world.agents[at].plug_in_disk(200);
    let flags = ["--eviction-hard=nodefs.available<40%", "--eviction-pressure-transition-period=2"];
    world.agents[at].flags = flags.map(ToOwned::to_owned).into();
    let token = world.token();
    world.agents[at].join(&world.network, &token).ok();
    world.start_agent(at);
    world.node_becomes_ready("node-1");
    world.create_pod(&counter(&world, "modest"));
    world.pod_becomes_ready("modest");
    let lines = "dd if=/dev/zero of=/data/big bs=1M count=150; while true; do sleep 1; done";
    let image = world.registry().image("shell:1");
    let mut greedy = pods::pod("greedy", &image, &["/bin/sh", "-c", lines], &[]);
    greedy["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    greedy["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data"}]);
    world.create_pod(&greedy);
    let pod = world.pod_becomes("greedy", "is evicted", is_evicted);
    assert_eq!(pod["status"]["phase"], "Failed");
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage."), "{message}");
    assert_eq!(condition(&pod, "DisruptionTarget"), "True");
    world.event_appears("greedy", &["Evicted"]);
    world.event_appears("node-1", &["EvictionThresholdMet", "ephemeral-storage"]);
    // Its space is free again, so the condition and the taint go.
    let node = || world.api.get("/api/v1/nodes/node-1").ok();
    until("the pressure is over", || {
        let node = node();
        check(condition(&node, "DiskPressure") == "False", || node["status"].to_string())?;
        let taints = node["spec"]["taints"].to_string();
        check(!taints.contains("disk-pressure"), || taints)
    });
    let modest = world.find_pod("modest").unwrap();
    assert_eq!((modest["status"]["phase"].as_str(), restarts(&modest)), (Some("Running"), 0));
}

#[test]
fn too_little_memory_keeps_best_effort_pods_away_and_ends_the_hungriest() {
    let mut world = World::with_nodes(1);
    world.registry().push_busybox("shell:1", &[]);
    world.create_pod(&counter(&world, "eater"));
    world.pod_becomes_ready("eater");
    // Whatever is left is too little now.
    world.agents[0].kill();
    let flags =
        ["--eviction-hard=memory.available<100%", "--eviction-pressure-transition-period=1"];
    world.agents[0].flags = flags.map(ToOwned::to_owned).into();
    world.start_agent(0);
    let pod = world.pod_becomes("eater", "is evicted", is_evicted);
    assert!(pod["status"]["message"].as_str().unwrap().contains("low on resource: memory"));
    let node = |world: &World| world.api.get("/api/v1/nodes/node-1").ok();
    until("the node is tainted", || {
        let node = node(&world);
        check(condition(&node, "MemoryPressure") == "True", || node["status"].to_string())?;
        let taints = node["spec"]["taints"].to_string();
        check(taints.contains("node.kubernetes.io/memory-pressure"), || taints)
    });
    world.create_pod(&counter(&world, "best-effort"));
    world.event_appears("best-effort", &["FailedScheduling", "memory-pressure"]);
    let mut asks = counter(&world, "asks");
    asks["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "1Mi"}});
    world.create_pod(&asks);
    world.pod_becomes("asks", "is bound", |pod| pods::node(pod) == "node-1");
    // An agent that finds enough takes the condition back, and the master the taint.
    world.agents[0].kill();
    world.agents[0].flags = vec![NO_PRESSURE.to_owned()];
    world.start_agent(0);
    until("the pressure is over", || {
        let node = node(&world);
        check(condition(&node, "MemoryPressure") == "False", || node["status"].to_string())
    });
    world.pod_becomes_ready("best-effort");
    assert_eq!(world.find_pod("eater").unwrap()["status"]["reason"], "Evicted");
}

#[test]
fn a_pod_that_writes_more_than_it_may_is_evicted() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("shell:1", &[]);
    let image = world.registry().image("shell:1");
    let writes = |name: &str, to: &str| {
        let lines =
            format!("dd if=/dev/zero of={to}/big bs=1M count=4; while true; do sleep 1; done");
        let mut pod = pods::pod(name, &image, &["/bin/sh", "-c", &lines], &[]);
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}]);
        let container = &mut pod["spec"]["containers"][0];
        container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        container["resources"] = json!({"limits": {"ephemeral-storage": "8Mi"}});
        pod
    };
    world.create_pod(&writes("within", "/tmp"));
    world.create_pod(&writes("over", "/data"));
    let pod = world.pod_becomes("over", "is evicted", is_evicted);
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(message.contains("EmptyDir volume \"data\" exceeds the limit"), "{message}");
    let within = world.pod_becomes_ready("within");
    assert_eq!(restarts(&within), 0);
}

/// A library that makes a program believe in another time.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[test]
fn a_wrong_clock_changes_nothing_but_timestamps() {
    let library = [FAKETIME, "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("libfaketime is installed by scripts/setup");
    let mut world = World::with_nodes(1);
    world.registry().push_busybox("shell:1", &[]);
    world.create_pod(&counter(&world, "counter"));
    world.pod_becomes_ready("counter");
    let before = world.agents[0].processes_by_container();
    for (round, time) in ["-1970", "+10y", "-5y", "+1d"].into_iter().enumerate() {
        let time = match time {
            // A few hours after the epoch.
            "-1970" => format!("-{}", crate::harness::now_s() - 10_000),
            other => other.to_owned(),
        };
        world.agents[0].kill();
        world.agents[0].variables = [
            ("LD_PRELOAD", library.to_owned()),
            ("FAKETIME", time.clone()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        world.start_agent(0);
        world.node_becomes_ready("node-1");
        // The link works, and so does everything that runs by it.
        let late = format!("late-{round}");
        world.create_pod(&counter(&world, &late));
        world.pod_becomes_ready(&late);
        let image = world.registry().image("shell:1");
        let crashes = format!("crashes-{round}");
        world.create_pod(&pods::pod(&crashes, &image, &["/bin/sh", "-c", "exit 1"], &[]));
        world.pod_becomes(&crashes, "backs off", |pod| {
            restarts(pod) == 1 && pods::trouble(pod).0 == "CrashLoopBackOff"
        });
        for pod in [&late, &crashes] {
            world.delete(&format!("/api/v1/namespaces/default/pods/{pod}"));
        }
        assert_eq!(world.agents[0].processes_by_container(), before, "{time}");
        let node = world.api.get("/api/v1/nodes/node-1").ok();
        let said = condition(&node, "ClockImplausible");
        assert_eq!(said == "True", round < 3, "{time}: {said:?}");
    }
    let counter: BTreeMap<_, _> = world.agents[0].processes_by_container();
    assert_eq!(counter, before);
    assert_eq!(restarts(&world.find_pod("counter").unwrap()), 0);
}
