//! What a container may not do, asked from inside and looked at from outside.

use serde_json::json;

use crate::harness::World;
use crate::harness::pods;
use crate::harness::programs::guest;

#[test]
fn a_container_cannot_reach_the_board_it_runs_on() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    // 8:0 and 254:0 are the usual disks; a node that is made may not be opened either.
    let lines = "
        for n in 'b 8 0' 'b 254 0' 'c 1 1'; do
            mknod /tmp/x $n 2>/dev/null && echo made $n
            dd if=/tmp/x of=/dev/null bs=1 count=1 2>/dev/null && echo opened $n
        done
        mount -t tmpfs none /tmp 2>/dev/null && echo mounted
        (echo none >/proc/sys/kernel/domainname) 2>/dev/null && echo wrote to /proc/sys
        (echo h >/proc/sysrq-trigger) 2>/dev/null && echo wrote to sysrq
        ls /dev | grep -E '^(sd|vd|nvme|mmcblk|mem|kmsg)' && echo saw a disk
        sh -c '[ $PPID -eq 1 ] && echo is first'
        cat /proc/1/cgroup >/dev/null && echo read its own
        hostname
        while true; do sleep 0.2; done";
    let mut pod = pods::pod("prisoner", &image, &["/bin/sh", "-c", lines], &[]);
    // As Kubernetes has it, a container may gain privileges unless told otherwise.
    pod["spec"]["containers"][0]["securityContext"] = json!({"allowPrivilegeEscalation": false});
    world.create_pod(&pod);
    world.pod_becomes_ready("prisoner");
    let log = world.log_holds("prisoner", "prisoner");
    assert_eq!(log, "is first\nread its own\nprisoner\n");

    let agent = &world.agents[0];
    let status = agent.proc("prisoner", "status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1", "{status}");
    assert_eq!(field("Seccomp"), "2", "{status}");
    let effective = u64::from_str_radix(&field("CapEff"), 16).unwrap();
    for (name, bit) in [("SYS_ADMIN", 21), ("MKNOD", 27), ("NET_ADMIN", 12), ("SYS_MODULE", 16)] {
        assert_eq!(effective >> bit & 1, 0, "CAP_{name}: {status}");
    }
    // Limits are set on its own cgroup, below the agent's.
    assert!(agent.proc("prisoner", "cgroup").contains("/pinnace-"), "{status}");
}

#[test]
fn a_user_who_is_not_root_and_a_root_that_is_read_only_are_kept() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let lines = "id -u; id -g; touch /x 2>/dev/null || echo read-only; sleep 1000";
    let mut pod = pods::pod("modest", &image, &["/bin/sh", "-c", lines], &[]);
    pod["spec"]["containers"][0]["securityContext"] =
        json!({"runAsUser": 1000, "runAsGroup": 2000, "readOnlyRootFilesystem": true});
    world.create_pod(&pod);
    let log = world.log_holds("modest", "read-only");
    assert_eq!(log, "1000\n2000\nread-only\n");

    let mut root = pods::pod("proud", &image, &["/bin/sleep", "1000"], &[]);
    root["spec"]["containers"][0]["securityContext"] = json!({"runAsNonRoot": true});
    world.create_pod(&root);
    let pod = world.pod_becomes("proud", "is refused", |pod| {
        pods::trouble(pod).0 == "CreateContainerConfigError"
    });
    assert!(pods::trouble(&pod).1.contains("runAsNonRoot"), "{:?}", pods::trouble(&pod));
}

#[test]
fn a_container_is_killed_at_its_memory_limit_and_the_reason_is_told() {
    let world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let eat = "x=1234567890; while true; do x=$x$x; done";
    let mut pod = pods::pod("hungry", &image, &["/bin/sh", "-c", eat], &[]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    world.create_pod(&pod);
    let pod = world.pod_becomes("hungry", "fails", |pod| pod["status"]["phase"] == "Failed");
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{pod}");
}

#[test]
fn a_guest_s_process_has_given_up_every_privilege() {
    let world = World::with_nodes(1);
    let image = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    let args = ["list", "/", "read", "/etc/passwd", "write", "/x", "sleep"];
    world.create_pod(&pods::pod("guest", &image, &[], &args));
    world.pod_becomes_ready("guest");
    let log = world.log_holds("guest", "sleeping");
    assert!(!log.contains("root:"), "{log}");
    assert!(!log.contains("written"), "{log}");
    let status = world.agents[0].proc("guest", "status");
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
            .unwrap_or_default()
    };
    assert_eq!(line("CapEff"), "0000000000000000", "{status}");
    assert_eq!(line("CapBnd"), "0000000000000000", "{status}");
    assert_eq!(line("NoNewPrivs"), "1", "{status}");
    assert_eq!(line("Seccomp"), "2", "{status}");
    assert!(line("Uid").split(' ').all(|id| id != "0"), "{status}");
    assert!(line("Gid").split(' ').all(|id| id != "0"), "{status}");
}
