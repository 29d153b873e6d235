//! What a pod's security context and volumes may ask of the node.

use runtime::{PidNamespace, Propagation, Seccomp};

use super::*;

/// A device node that no container has of itself, and that opens without effect.
fn odd_device() -> Option<&'static str> {
    ["/dev/fuse", "/dev/net/tun", "/dev/loop-control"]
        .into_iter()
        .find(|path| fs::File::open(path).is_ok())
}

fn volume(source: PathBuf, destination: &str) -> Mount {
    Mount { source, destination: destination.into(), ..Mount::default() }
}

fn mount_tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn unmount(at: &Path) {
    nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

tests! {
    async fn a_privileged_container_has_the_machine(machine: &Machine) {
        let script = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status; \
                      grep ' /sys ' /proc/mounts | grep -o 'sysfs rw'; \
                      mount -t tmpfs x /data && echo mounted";
        let mut spec = machine.sh("a", script);
        spec.security.privileged = true;
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let all = own.lines().find(|line| line.starts_with("CapPrm:")).unwrap().replace("Prm", "Eff");
        let expected = format!("{all}\nNoNewPrivs:\t0\nSeccomp:\t0\nsysfs rw\nmounted\n");
        machine.check(spec, 0, &expected).await;
        let Some(device) = odd_device() else { return };
        let mut spec = machine.sh("b", &format!(": <{device} && echo opened"));
        spec.security.privileged = true;
        machine.check(spec, 0, "opened\n").await;
    }

    async fn a_device_is_given_without_privileges(machine: &Machine) {
        let Some(device) = odd_device() else { return println!("(no device) ") };
        let script = format!("grep CapEff /proc/self/status; : <{device} && echo opened");
        let mut spec = machine.sh("a", &script);
        spec.security.devices = vec![device.into()];
        spec.security.capabilities_drop = vec!["ALL".into()];
        machine.check(spec, 0, "CapEff:\t0000000000000000\nopened\n").await;
        let (exit, output) = machine.run(machine.sh("b", &script)).await;
        assert_ne!(exit.code, 0, "{output}");
        // The node is there, the rule is not.
        let mut spec = machine.sh("c", ": </d/node");
        fs::File::create(machine.path("node")).unwrap();
        mount(Some(device), &machine.path("node"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        spec.mounts = vec![volume(machine.path("node"), "/d/node")];
        let (exit, output) = machine.run(spec).await;
        unmount(&machine.path("node"));
        assert_ne!(exit.code, 0, "{output}");
        let mut spec = machine.sh("d", "true");
        spec.security.devices = vec!["/dev/no-such".into()];
        let error = machine.fails(spec).await;
        assert!(error.message.contains("/dev/no-such: No such file"), "{error}");
    }

    async fn groups_of_the_pod_are_added(machine: &Machine) {
        let mut spec = machine.sh("a", "id -u; id -g; id -G");
        spec.user.uid = Some(1000);
        spec.user.groups = vec![4000, 3000];
        machine.check(spec, 0, "1000\n1000\n1000 997 3000 4000\n").await;
    }

    async fn a_seccomp_profile_of_the_node_is_used(machine: &Machine) {
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
             "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}]}"#;
        fs::write(machine.path("profile.json"), profile).unwrap();
        let script = "/bin/busybox ln -s a /tmp/b; trap 'echo usr2' USR2; kill -USR1 $$; kill -USR2 $$; \
                      grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status";
        let mut spec = machine.sh("a", &format!("exec 2>&1; {script}"));
        spec.security.seccomp = Seccomp::File(machine.path("profile.json"));
        let (_, output) = machine.run(spec.clone()).await;
        assert!(output.contains("/tmp/b: Permission denied"), "{output}");
        assert!(output.contains("Operation not permitted\nusr2\n"), "{output}");
        assert!(output.contains("NoNewPrivs:\t0\nSeccomp:\t2\n"), "{output}");
        spec.id = "pod-b-0".into();
        spec.security.no_new_privileges = true;
        let (_, output) = machine.run(spec.clone()).await;
        assert!(output.contains("NoNewPrivs:\t1\nSeccomp:\t2\n"), "{output}");
        spec.id = "pod-c-0".into();
        spec.security.seccomp = Seccomp::File(machine.path("none.json"));
        let error = machine.fails(spec).await;
        assert!(error.message.contains("none.json: No such file"), "{error}");
        let mut spec = machine.sh("d", "grep Seccomp: /proc/self/status; unshare -U true && echo unshared");
        spec.security.seccomp = Seccomp::Unconfined;
        machine.check(spec, 0, "Seccomp:\t0\nunshared\n").await;
    }

    async fn nothing_of_proc_is_hidden_where_asked(machine: &Machine) {
        let script = "grep -c . /proc/interrupts; grep -c ' /proc/sys ' /proc/mounts";
        machine.check(machine.sh("a", script), 0, "0\n1\n").await;
        let mut spec = machine.sh("b", script);
        spec.security.unmasked_proc = true;
        let (_, output) = machine.run(spec).await;
        assert!(!output.starts_with("0\n") && output.ends_with("\n0\n"), "{output}");
    }

    async fn namespaces_of_the_host_are_joined(machine: &Machine) {
        let pid = std::process::id();
        let script = format!("for ns in net ipc uts; do readlink /proc/self/ns/$ns; done; ls -d /proc/{pid}");
        let mut spec = machine.sh("a", &script);
        spec.sandbox = Sandbox { hostname: "host".into(), pid: PidNamespace::Host, ..Sandbox::default() };
        let own = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
        let expected = format!("{}\n{}\n{}\n/proc/{pid}\n", own("net"), own("ipc"), own("uts"));
        machine.check(spec, 0, &expected).await;
        // What a container leaves behind goes with it, though no namespace ends it.
        let mut spec = machine.sh("b", "sleep 1000 & echo $!");
        spec.sandbox.pid = PidNamespace::Host;
        let (_, output) = machine.run(spec).await;
        let left = format!("/proc/{}/exe", output.trim());
        until("the process left behind is gone", || fs::read_link(&left).is_err()).await;
    }

    async fn processes_of_a_pod_see_each_other(machine: &Machine) {
        let mut holder = Command::new("unshare").args(["-p", "-f", "--kill-child", "sleep", "1000"]).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let first = || fs::read_to_string(&children).ok()?.trim().parse::<i32>().ok();
        until("the holder has a child", || first().is_some()).await;
        let held = machine.path("ns/pid");
        fs::File::create(&held).unwrap();
        let source = format!("/proc/{}/ns/pid", first().unwrap());
        mount(Some(source.as_str()), &held, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let runtime = machine.runtime();
        let mut spec = machine.spec("a", &["sleep", "999"]);
        spec.sandbox.pid = PidNamespace::Pod(held.clone());
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        let mut spec = machine.sh("b", "cat /proc/1/comm; for p in /proc/[0-9]*; do grep -l 999 $p/cmdline; done | grep -c .");
        spec.sandbox.pid = PidNamespace::Pod(held.clone());
        let (_, output) = machine.run(spec).await;
        let _ = holder.kill();
        let _ = holder.wait();
        exit_of(&runtime, &id).await;
        runtime.remove(&id).await.unwrap();
        unmount(&held);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.first(), Some(&"sleep"), "{output}");
        assert!(lines.get(1).is_some_and(|n| *n != "0"), "{output}");
    }

    async fn mounts_spread_as_far_as_asked(machine: &Machine) {
        let shared = machine.path("shared");
        mount_tmpfs(&shared);
        mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        let runtime = machine.runtime();
        let script = "mount -t tmpfs x /both/inner && touch /both/inner/mine; \
                      until [ -e /in/later/f ]; do :; done; ls /in/later /both/later; ls /none/later; echo done";
        let mut spec = machine.sh("a", script);
        fs::create_dir(shared.join("inner")).unwrap();
        fs::create_dir(shared.join("later")).unwrap();
        spec.security.privileged = true;
        spec.mounts = vec![
            volume(shared.clone(), "/none"),
            Mount { propagation: Propagation::HostToContainer, ..volume(shared.clone(), "/in") },
            Mount { propagation: Propagation::Bidirectional, ..volume(shared.clone(), "/both") },
        ];
        let (id, log) = (spec.id.clone(), spec.log.clone());
        runtime.start(spec).await.unwrap();
        let inner = shared.join("inner/mine");
        until("the container's mount is on the host", || inner.exists()).await;
        mount_tmpfs(&shared.join("later"));
        fs::write(shared.join("later/f"), "").unwrap();
        let exit = exit_of(&runtime, &id).await;
        runtime.remove(&id).await.unwrap();
        unmount(&shared.join("later"));
        unmount(&shared.join("inner"));
        unmount(&shared);
        assert_eq!(text_of(&log), "/both/later:\nf\n\n/in/later:\nf\ndone\n", "{exit:?}");
        // A mount that is not shared cannot spread.
        let mut spec = machine.sh("b", "true");
        spec.mounts = vec![Mount { propagation: Propagation::Bidirectional, ..volume(machine.path("layer"), "/b") }];
        let error = machine.fails(spec).await;
        assert!(error.message.contains("but it is not a shared mount"), "{error}");
    }

    async fn read_only_holds_below_where_asked(machine: &Machine) {
        let folder = machine.path("volume");
        mount_tmpfs(&folder.join("below"));
        let script = "touch /v/x 2>&1; touch /v/below/x 2>&1 && echo written";
        let read_only = Mount { read_only: true, ..volume(folder.clone(), "/v") };
        let mut spec = machine.sh("a", script);
        spec.mounts = vec![read_only.clone()];
        machine.check(spec, 0, "touch: /v/x: Read-only file system\nwritten\n").await;
        let mut spec = machine.sh("b", script);
        spec.mounts = vec![Mount { recursive_read_only: true, ..read_only }];
        let (_, output) = machine.run(spec).await;
        unmount(&folder.join("below"));
        assert_eq!(
            output,
            "touch: /v/x: Read-only file system\ntouch: /v/below/x: Read-only file system\n"
        );
    }

    async fn the_hosts_dev_can_be_mounted(machine: &Machine) {
        let mut spec = machine.sh("a", "ls /dev/shm >/dev/null; ls /dev | grep -c .");
        spec.security.privileged = true;
        spec.mounts = vec![volume("/dev".into(), "/dev")];
        let n = fs::read_dir("/dev").unwrap().count();
        machine.check(spec, 0, &format!("{n}\n")).await;
    }
}
