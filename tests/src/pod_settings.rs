//! What a pod says of its volumes, its identity and its share of the host,
//! through kubectl and seen from inside.

use serde_json::json;

use crate::harness::World;
use crate::harness::pods;
use crate::harness::process::write_file;
use crate::harness::wait::{check, until};

#[test]
fn volumes_show_what_they_name_and_follow_it() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    world.kubectl("create configmap settings --from-literal=color=red").ok();
    world.kubectl("create secret generic hidden --from-literal=word=sesame").ok();
    let shared = world.dir().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("from-host"), "host\n").unwrap();
    let lines = "
        id -G; busybox stat -c '%g %a' /cache /config/..data/color /secret/..data/word
        touch /config/x 2>/dev/null || echo config is read-only
        cat /api/name /api/labels; echo
        cat /all/word /all/color /all/where; echo
        cat /host/from-host; echo pod >/host/from-pod; touch /ro/x 2>/dev/null || echo host is read-only
        grep ' /secret ' /proc/mounts | busybox cut -d' ' -f3; grep ' /memory ' /proc/mounts | busybox cut -d' ' -f3
        dd if=/dev/zero of=/memory/big bs=1M count=4 2>/dev/null || echo memory is full
        echo mine >/own/file
        old=; while true; do new=\"$(cat /config/color /secret/word /api/labels)\"
            [ \"$new\" = \"$old\" ] || echo saw $new; old=\"$new\"; sleep 0.2; done";
    let mut pod = pods::pod("shown", &image, &["/bin/sh", "-c", lines], &[]);
    pod["metadata"]["labels"] = json!({"stage": "one"});
    pod["spec"]["securityContext"] = json!({"fsGroup": 3000, "supplementalGroups": [4000]});
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!([
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    container["volumeMounts"] = json!([
        {"name": "cache", "mountPath": "/cache"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "config", "mountPath": "/config"}, {"name": "secret", "mountPath": "/secret"},
        {"name": "api", "mountPath": "/api"}, {"name": "all", "mountPath": "/all"},
        {"name": "host", "mountPath": "/host"}, {"name": "host", "mountPath": "/ro", "readOnly": true},
        {"name": "cache", "mountPath": "/own", "subPathExpr": "of/$(POD)"}]);
    let name = json!({"path": "name", "fieldRef": {"fieldPath": "metadata.name"}});
    pod["spec"]["volumes"] = json!([
        {"name": "cache", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}},
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 256}},
        {"name": "api", "downwardAPI": {"items": [
            name, {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "all", "projected": {"sources": [
            {"secret": {"name": "hidden"}}, {"configMap": {"name": "settings"}},
            {"downwardAPI": {"items": [
                {"path": "where", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}},
        {"name": "host", "hostPath": {"path": shared.display().to_string(), "type": "Directory"}}]);
    world.create_pod(&pod);
    let log = world.log_holds("shown", "saw");
    assert_eq!(
        log,
        "0 3000 4000\n3000 2777\n3000 644\n3000 440\nconfig is read-only\nshownstage=\"one\"\n\
         sesamereddefault\nhost\nhost is read-only\ntmpfs\ntmpfs\nmemory is full\n\
         saw redsesamestage=\"one\"\n"
    );
    assert_eq!(std::fs::read_to_string(shared.join("from-pod")).unwrap(), "pod\n");

    world
        .kubectl_with(&["patch", "configmap", "settings", "-p", r#"{"data":{"color":"blue"}}"#], "")
        .ok();
    world.log_holds("shown", "saw bluesesame");
    world
        .kubectl_with(&["patch", "secret", "hidden", "-p", r#"{"stringData":{"word":"open"}}"#], "")
        .ok();
    world.log_holds("shown", "saw blueopenstage=\"one\"");
    world.kubectl("label pod shown stage=two --overwrite").ok();
    world.log_holds("shown", "saw blueopenstage=\"two\"");
    let pod = world.pod_becomes_ready("shown");
    assert_eq!(pods::restarts(&pod), 0, "nothing of it restarted the container");
    world.delete("/api/v1/namespaces/default/pods/shown");
    assert!(shared.join("from-host").exists(), "the host's files stay");
    world.agents[0].becomes_clean(&world.network);
}

#[test]
fn a_pod_gets_of_the_host_what_it_asks_for() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let shell = |name: &str, lines: &str| {
        pods::pod(name, &image, &["/bin/sh", "-c", &format!("{lines}; echo end; sleep 1000")], &[])
    };
    let seen = |world: &World, pod: &serde_json::Value| {
        world.create_pod(pod);
        world.log_holds(&pods::name(pod), "end\n")
    };

    let mut pod =
        shell("tuned", "cat /proc/sys/net/ipv4/tcp_syncookies /proc/sys/kernel/shm_rmid_forced");
    pod["spec"]["securityContext"] = json!({"sysctls": [
        {"name": "net.ipv4.tcp_syncookies", "value": "0"},
        {"name": "kernel.shm_rmid_forced", "value": "1"}]});
    assert_eq!(seen(&world, &pod), "0\n1\nend\n");

    let mut pod = shell("unsafe", "true");
    pod["spec"]["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "9"}]});
    world.create_pod(&pod);
    let pod = world.pod_becomes("unsafe", "is rejected", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "SysctlForbidden", "{pod}");
    world.event_appears("unsafe", &["SysctlForbidden", "kernel.msgmax"]);

    let mut pod =
        shell("host", "hostname; cat /etc/hosts | grep -c example; ls /sys/class/net | head -3");
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["hostAliases"] = json!([{"ip": "192.0.2.9", "hostnames": ["a.example"]}]);
    let log = seen(&world, &pod);
    assert!(log.contains("\n1\n"), "{log}");
    let pod = world.pod_becomes_ready("host");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"], "{pod}");

    let mut pod = shell(
        "together",
        "cat /proc/1/comm; until grep -ql 4321 /proc/*/cmdline 2>/dev/null; do sleep 0.1; done",
    );
    pod["spec"]["shareProcessNamespace"] = json!(true);
    let mut second = pod["spec"]["containers"][0].clone();
    second["name"] = json!("second");
    second["command"] = json!(["/bin/sleep", "4321"]);
    let mut both = pod.clone();
    both["spec"]["containers"].as_array_mut().unwrap().push(second);
    world.create_pod(&both);
    until("both see each other", || {
        let said = world.kubectl("logs together -c main");
        check(said.out == "pause\nend\n", || said.to_string())
    });

    let mut pod = shell(
        "mighty",
        "grep -E '^(Seccomp|CapEff)' /proc/self/status; busybox mkdir /m; mount -t tmpfs x /m && echo mounted",
    );
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    pod["spec"]["hostPID"] = json!(true);
    let log = seen(&world, &pod);
    assert!(log.contains("Seccomp:\t0") && log.contains("mounted"), "{log}");

    // The namespace's standard.
    world.kubectl("create namespace strict").ok();
    world.kubectl("label namespace strict pod-security.kubernetes.io/enforce=baseline pod-security.kubernetes.io/warn=restricted").ok();
    let mut pod = shell("mighty", "true");
    pod["metadata"]["namespace"] = json!("strict");
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let said = world.kubectl_with(&["create", "-f", "-"], &pod.to_string()).failed();
    assert!(
        said.contains("violates PodSecurity \"baseline:latest\": privileged (container \"main\""),
        "{said}"
    );
    pod["spec"]["containers"][0]["securityContext"] = json!({});
    let said = world.kubectl_with(&["create", "-f", "-"], &pod.to_string());
    assert!(format!("{said:?}").contains("would violate PodSecurity"), "{said:?}");

    // The board's own word goes before the cluster's.
    let config = world.agents[0].config_file();
    write_file(
        &config,
        "allow_privileged = false\n[devices.\"pinnace.io/null\"]\nunits = [[\"/dev/fuse\"]]\n",
    );
    world.agents[0].kill();
    world.start_agent(0);
    let mut pod = shell("refused", "true");
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    world.create_pod(&pod);
    let pod = world.pod_becomes("refused", "is rejected", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "PrivilegedForbidden", "{pod}");
    let mut pod = shell("holder", ": </dev/fuse && echo opened");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"pinnace.io/null": "1"}});
    assert_eq!(seen(&world, &pod), "opened\nend\n");
    let mut second = shell("waiter", "true");
    second["spec"]["containers"][0]["resources"] = json!({"limits": {"pinnace.io/null": "1"}});
    world.create_pod(&second);
    world.event_appears("waiter", &["FailedScheduling", "Insufficient pinnace.io/null"]);
}
