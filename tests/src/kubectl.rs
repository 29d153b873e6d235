//! `kubectl` against the whole system: what [`crate::kubectl_matrix`] lists, and
//! what needs a controller or a node.

use crate::harness::World;
use crate::harness::pods::{self, name};
use crate::harness::process::{Process, read_lossy};
use crate::harness::wait::{check, until};
use crate::kubectl_matrix::CASES;

#[test]
fn every_command_of_the_matrix_answers_as_kubernetes_does() {
    let world = World::master_only();
    // Some commands change the kubeconfig.
    let kubeconfig = world.dir().join("matrix-kubeconfig");
    std::fs::copy(world.master.kubeconfig(), &kubeconfig).unwrap();
    let mut failures = Vec::new();
    for case in CASES {
        let mut command = world.kubectl_command();
        command.args(case.args).env("KUBECONFIG", &kubeconfig).envs(case.env.iter().copied());
        let output = crate::harness::process::run_with(command, case.stdin);
        let has = |text: &str, needles: &[&str]| needles.iter().all(|needle| text.contains(needle));
        let is_right = output.code == case.code
            && has(&output.out, case.stdout)
            && has(&output.err, case.stderr);
        if !is_right {
            let (out, err) = (case.stdout, case.stderr);
            failures.push(format!("{output}\nexpected {} {out:?} {err:?}", case.code));
        }
    }
    let n = failures.len();
    assert!(failures.is_empty(), "{n} of {}:\n{}", CASES.len(), failures.join("\n----\n"));
}

#[test]
fn kubectl_follows_a_deployment_from_apply_to_delete() {
    let world = World::with_nodes(2);
    let image = world.registry().push_busybox("shell:1", &[]);
    let second = world.registry().push_busybox("shell:2", &[]);
    let lines = "echo started; trap 'exit 0' TERM; while true; do sleep 0.2; done";
    let deployment =
        pods::deployment("web", 2, pods::pod("", &image, &["/bin/sh", "-c", lines], &[]));
    let kubectl = |words: &str| world.kubectl(words).ok();

    // `-w` shows what comes.
    let file = world.dir().join("watch");
    let mut command = world.kubectl_command();
    command.args(["get", "pods", "-w", "--no-headers"]);
    let watch = Process::start(&mut command, &file);

    let manifest = deployment.to_string();
    let out = world.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    assert_eq!(out, "deployment.apps/web created\n");
    let out = kubectl("rollout status deployment/web --timeout=120s");
    assert!(out.contains("successfully rolled out"), "{out}");
    let out = kubectl("wait deployment/web --for=condition=Available --timeout=60s");
    assert_eq!(out, "deployment.apps/web condition met\n");
    let out = world.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    assert_eq!(out, "deployment.apps/web unchanged\n");
    let out = world.kubectl_with(&["diff", "-f", "-"], &manifest);
    assert_eq!((out.code, out.out.as_str()), (0, ""), "{out}");

    let pods: Vec<String> = world.pods_of("web").iter().map(name).collect();
    until("the watch shows both pods run", || {
        let shown = read_lossy(&file);
        let all = pods.iter().all(|pod| {
            shown.lines().any(|line| line.starts_with(pod.as_str()) && line.contains("Running"))
        });
        check(all, || shown.clone())
    });
    drop(watch);

    let out = kubectl(&format!("describe pod {}", pods[0]));
    for needle in ["Status:           Running", "Image ID:", "Scheduled", "Pulled", "Started"] {
        assert!(out.contains(needle), "{needle}: {out}");
    }
    let out = kubectl("describe node node-1");
    for needle in ["Ready", "InternalIP", "Non-terminated Pods", "Allocatable", "cpu"] {
        assert!(out.contains(needle), "{needle}: {out}");
    }
    let out = kubectl("get nodes -o wide");
    assert!(out.contains("node-1") && out.contains("10.201.0.2"), "{out}");
    until("logs with labels", || {
        let out = kubectl("logs -l app=web --prefix");
        check(out.matches("started").count() == 2, || out.clone())
    });
    let out = kubectl("get all");
    for needle in ["pod/web-", "deployment.apps/web", "replicaset.apps/web-"] {
        assert!(out.contains(needle), "{needle}: {out}");
    }
    let out = kubectl("events");
    assert!(out.contains("ScalingReplicaSet"), "{out}");

    // A rollout, its history, and back.
    kubectl(&format!("set image deployment/web main={second}"));
    kubectl("rollout status deployment/web --timeout=120s");
    let out = kubectl("rollout history deployment/web");
    assert!(out.contains("1 ") && out.contains("2 "), "{out}");
    kubectl("rollout undo deployment/web --to-revision=1");
    kubectl("rollout status deployment/web --timeout=120s");
    let shown = kubectl("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}");
    assert_eq!(shown, image);

    // Cordoned nodes get nothing new; scaling goes to the other one.
    kubectl("cordon node-1");
    let before = world.pods_of("web");
    kubectl("scale deployment/web --replicas=4");
    let after = world.app_becomes_ready("web", 4);
    for pod in &after {
        let is_new = !before.iter().any(|old| name(old) == name(pod));
        assert!(!is_new || pods::node(pod) == "node-2", "{pod}");
    }
    kubectl("uncordon node-1");

    let out = kubectl("delete deployment web --cascade=foreground --timeout=120s");
    assert!(out.contains("deleted"), "{out}");
    until("its pods are gone", || {
        let left = world.pods_of("web").len();
        check(left == 0, || format!("{left} pods"))
    });
    for agent in &world.agents {
        agent.becomes_clean(&world.network);
    }
}
