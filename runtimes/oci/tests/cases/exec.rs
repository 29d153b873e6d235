//! Commands run in containers that run.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use runtime::{ExecHandle, ExecOutput, ExecRequest, WindowSize, exec_output};

use super::*;

const OUTPUT_BYTES_MAX: usize = 10 << 10;

async fn start(machine: &Machine, spec: ContainerSpec) -> ShimRuntime {
    let runtime = machine.runtime();
    runtime.start(spec).await.unwrap();
    runtime
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

async fn output(runtime: &ShimRuntime, args: &[&str]) -> (Option<i32>, String) {
    let ExecOutput { code, output } =
        exec_output(runtime, "pod-a-0", words(args), DEADLINE, OUTPUT_BYTES_MAX).await.unwrap();
    (code, String::from_utf8(output).unwrap())
}

async fn open(runtime: &ShimRuntime, script: &str, stdin: bool, tty: bool) -> ExecHandle {
    let request =
        ExecRequest { args: words(&["sh", "-c", script]), stdin, tty, ..Default::default() };
    runtime.exec("pod-a-0", request).await.unwrap()
}

async fn read_until(handle: &mut ExecHandle, expected: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 1024];
    while !text.contains(expected) {
        let reader = handle.stdout.as_mut().unwrap();
        let n = tokio::time::timeout(DEADLINE, reader.read(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(n, 0, "{text:?} without {expected:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    text
}

/// What of the container's groups is left beside the container itself.
fn groups_below(machine: &Machine) -> Vec<PathBuf> {
    let hierarchies = Hierarchies::detect().unwrap();
    let cgroup = format!("{}/pod1/a-0", machine.cgroup_root);
    let folder = hierarchies
        .unified_folder(&cgroup)
        .into_iter()
        .chain(hierarchies.controller_folder("freezer", &cgroup))
        .find(|folder| folder.is_dir())
        .unwrap();
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries.filter(|e| e.file_type().unwrap().is_dir()).map(|e| e.path()).collect()
}

tests! {
    async fn a_command_gives_its_output_and_code(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let both = output(&runtime, &["sh", "-c", "echo out; echo err >&2; exit 9"]).await;
        assert_eq!(both.0, Some(9));
        assert!(both.1.contains("out\n") && both.1.contains("err\n"), "{both:?}");
        let killed = output(&runtime, &["sh", "-c", "kill -9 $$"]).await;
        assert_eq!(killed.0, Some(137));
        until("its group is gone", || groups_below(machine).is_empty()).await;
        // Far more than was asked for, and than a pipe holds.
        let long = output(&runtime, &["sh", "-c", "seq 100000; exit 3"]).await;
        assert_eq!((long.0, long.1.len()), (Some(3), OUTPUT_BYTES_MAX));
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn a_command_is_confined_as_its_container(machine: &Machine) {
        let script = "id; env | grep -v SHLVL; pwd; hostname; readlink /proc/self/ns/net; \
                      readlink /proc/self/ns/pid; readlink /proc/self/ns/mnt; \
                      readlink /proc/self/ns/cgroup; \
                      grep -E 'Cap|NoNewPrivs|Seccomp:|SigIgn|SigBlk' /proc/self/status; \
                      cat /proc/self/oom_score_adj; mount -t tmpfs x /tmp; unshare -m true; exit 5";
        let mut spec = machine.sh("a", &format!("({script}) 2>&1; sleep 1000"));
        spec.user = User { name: "app:gpio".into(), ..User::default() };
        spec.env = vec![("COLOUR".into(), "blue".into())];
        spec.cwd = "/data".into();
        spec.security.no_new_privileges = true;
        spec.security.capabilities_add = vec!["NET_ADMIN".into()];
        spec.resources.oom_score_adj = 333;
        let log = spec.log.clone();
        let runtime = start(machine, spec).await;
        until("the container has said all", || text_of(&log).contains("unshare")).await;
        let own = text_of(&log);
        let (code, found) = output(&runtime, &["sh", "-c", &format!("({script}) 2>&1")]).await;
        assert_eq!(code, Some(5));
        assert_eq!(found, own);
        assert!(found.contains("uid=1000(app) gid=997(gpio)"), "{found}");
        assert!(found.contains("HOME=/app") && found.contains("COLOUR=blue"), "{found}");
        assert!(found.contains("\n333\n"), "{found}");
        let ignored = found.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        // Signals 32 and 33 are the C library's own, which it sets as it needs them.
        let of_the_library = 0b11 << 31;
        assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & !of_the_library, 0, "{found}");
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn a_command_counts_against_its_containers_limits(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let handle = open(&runtime, "sleep 1000 & sleep 1000", false, false).await;
        let hierarchies = Hierarchies::detect().unwrap();
        let cgroup = format!("{}/pod1/a-0", machine.cgroup_root);
        // The container's sleep and the two.
        until("all are in", || hierarchies.processes(&cgroup).len() >= 3).await;
        for controller in ["memory", "pids", "cpu"] {
            let Some(folder) = hierarchies.controller_folder(controller, &cgroup) else { continue };
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
            assert!(text.lines().count() >= 3, "{controller}: {text}");
        }
        drop(handle);
        until("they are gone", || hierarchies.processes(&cgroup).len() < 2).await;
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn input_reaches_a_command_and_its_end_too(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let mut handle = open(&runtime, "cat; echo end", true, false).await;
        let mut stdin = handle.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").await.unwrap();
        assert!(read_until(&mut handle, "two\n").await.starts_with("one\n"));
        drop(stdin);
        read_until(&mut handle, "end\n").await;
        assert_eq!(handle.wait().await.unwrap(), 0);
        let mut nothing = open(&runtime, "cat; echo at once", false, false).await;
        read_until(&mut nothing, "at once\n").await;
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn a_terminal_is_one(machine: &Machine) {
        let mut spec = machine.sh("a", "sleep 1000");
        spec.user = User { name: "app".into(), ..User::default() };
        let runtime = start(machine, spec).await;
        let script = "trap 'busybox stty size' WINCH; echo $TERM; busybox tty; busybox stty size; \
                      ls -l $(busybox tty); echo ready; until read line; do :; done; echo got $line; exit 4";
        let mut handle = open(&runtime, script, true, true).await;
        handle.resize(WindowSize { columns: 100, rows: 33 }).unwrap();
        assert!(handle.stderr.is_none());
        let text = read_until(&mut handle, "ready\r\n").await;
        assert!(text.starts_with("xterm\r\n/dev/pts/0\r\n"), "{text}");
        // The user's own, and no other's.
        assert!(text.contains("crw--w---- ") || text.contains("app"), "{text}");
        handle.resize(WindowSize { columns: 120, rows: 40 }).unwrap();
        let mut stdin = handle.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        let text = read_until(&mut handle, "got hello\r\n").await;
        assert!(text.contains("40 120\r\n"), "{text}");
        assert_eq!(handle.wait().await.unwrap(), 4);
        // Nobody has it open any more: its end, not an error.
        let mut rest = Vec::new();
        handle.stdout.as_mut().unwrap().read_to_end(&mut rest).await.unwrap();
        // Control-C reaches what runs in it.
        let mut handle = open(&runtime, "echo ready; exec sleep 1000", true, true).await;
        read_until(&mut handle, "ready").await;
        handle.stdin.as_mut().unwrap().write_all(b"\x03").await.unwrap();
        assert_eq!(handle.wait().await.unwrap(), 130);
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn a_container_has_a_terminal_of_its_own(machine: &Machine) {
        let script = "trap 'busybox stty size' WINCH; echo $TERM; busybox tty; echo ready; \
                      until read line; do :; done; echo got $line; busybox seq 2000; exit 4";
        let mut spec = machine.sh("a", script);
        spec.user = User { name: "app".into(), ..User::default() };
        spec.stdio = runtime::Stdio { stdin: true, stdin_once: true, tty: true };
        let log = spec.log.clone();
        let runtime = start(machine, spec).await;
        let in_log = |text: &str| fs::read_to_string(&log).unwrap_or_default().contains(text);
        until("it is ready", || in_log("ready")).await;
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains(" stdout F xterm\r\n"), "{text}");
        assert!(text.contains(" stdout F /dev/pts/0\r\n"), "{text}");
        // One who only looks, and goes: the terminal does not end with a client.
        drop(runtime.attach("pod-a-0", true).await.unwrap());
        // And another agent, with another client.
        let runtime = machine.runtime();
        let mut handle = runtime.attach("pod-a-0", true).await.unwrap();
        assert!(handle.stderr.is_none());
        handle.resize(WindowSize { columns: 120, rows: 40 }).unwrap();
        handle.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
        let text = read_until(&mut handle, "got hello\r\n").await;
        assert!(text.contains("40 120\r\n") && !text.contains("ready"), "{text}");
        assert!(text.contains("hello\r\n"), "typed text is echoed: {text}");
        assert_eq!(handle.wait().await.unwrap(), 4);
        // All that was written before the end, also what nobody had read by then.
        assert!(in_log(" stdout F 2000\r\n"));
        runtime.remove("pod-a-0").await.unwrap();

        // Control-C is a signal to what runs in it. (Process 1 alone would not mind.)
        let mut spec = machine.sh("a", "trap 'exit 9' INT; echo ready; sleep 1000");
        spec.stdio = runtime::Stdio { stdin: true, stdin_once: false, tty: true };
        fs::remove_file(&log).unwrap();
        let log = spec.log.clone();
        let runtime = start(machine, spec).await;
        let in_log = |text: &str| fs::read_to_string(&log).unwrap_or_default().contains(text);
        until("it is ready", || in_log("ready")).await;
        let mut handle = runtime.attach("pod-a-0", true).await.unwrap();
        handle.stdin.as_mut().unwrap().write_all(b"\x03").await.unwrap();
        assert_eq!(handle.wait().await.unwrap(), 9);
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn a_container_looks_into_another(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 4321 & wait")).await;
        let beside = |id: &str| {
            let mut spec = machine.sh("b", "busybox ps; busybox killall sleep; exit 3");
            spec.sandbox.pid = runtime::PidNamespace::Container(id.to_owned());
            spec
        };
        let refused = runtime.start(beside("pod-c-0")).await.unwrap_err().to_string();
        assert!(refused.contains("\"pod-c-0\": it does not run"), "{refused}");
        runtime.remove("pod-b-0").await.unwrap();
        let refused = runtime.start(beside("../pod-a-0")).await.unwrap_err().to_string();
        assert!(refused.contains("is no container's id"), "{refused}");
        runtime.remove("pod-b-0").await.unwrap();
        let spec = beside("pod-a-0");
        let log = spec.log.clone();
        runtime.start(spec).await.unwrap();
        until("both end", || {
            ["pod-a-0", "pod-b-0"].iter().all(|id| matches!(runtime.observe(id), Observed::Exited(_)))
        })
        .await;
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("sleep 4321"), "{text}");
        for id in ["pod-a-0", "pod-b-0"] {
            runtime.remove(id).await.unwrap();
        }
        // One that sees the machine's processes has none to show.
        let mut host = machine.sh("a", "sleep 1000");
        host.sandbox.pid = runtime::PidNamespace::Host;
        runtime.start(host).await.unwrap();
        let refused = runtime.start(beside("pod-a-0")).await.unwrap_err().to_string();
        assert!(refused.contains("no process ids of its own"), "{refused}");
        for id in ["pod-a-0", "pod-b-0"] {
            runtime.remove(id).await.unwrap();
        }
    }

    async fn a_false_terminal_device_is_refused(machine: &Machine) {
        let mut spec = machine.sh("a", "sleep 1000");
        fs::create_dir_all(machine.path("trap")).unwrap();
        fs::write(machine.path("trap/ptmx"), "mine").unwrap();
        spec.mounts = vec![Mount {
            source: machine.path("trap"),
            destination: "/dev/pts".into(),
            ..Mount::default()
        }];
        let runtime = start(machine, spec).await;
        let request = ExecRequest { tty: true, ..ExecRequest::new(words(&["sh"])) };
        match runtime.exec("pod-a-0", request).await {
            Err(RuntimeError::Launch(error)) => {
                assert!(error.message.contains("is something else"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn what_cannot_be_executed_is_named(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let check = async |command: &str, expected: &str| {
            match runtime.exec("pod-a-0", ExecRequest::new(words(&[command]))).await {
                Err(RuntimeError::Launch(error)) => assert_eq!(error.message, expected),
                other => panic!("{other:?}"),
            }
        };
        check("nonsense", "exec: \"nonsense\": executable file not found in $PATH").await;
        check("/etc/passwd", "exec: \"/etc/passwd\": permission denied").await;
        check("/bin/arm", "exec: \"/bin/arm\": exec format error").await;
        check("", "you must specify at least one command for the container").await;
        until("no group stays", || groups_below(machine).is_empty()).await;
        runtime.remove("pod-a-0").await.unwrap();
        match runtime.exec("pod-a-0", ExecRequest::new(words(&["true"]))).await {
            Err(RuntimeError::NotRunning(id)) => assert_eq!(id, "pod-a-0"),
            other => panic!("{other:?}"),
        }
    }

    async fn a_command_that_takes_too_long_is_killed_with_all_it_started(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let hierarchies = Hierarchies::detect().unwrap();
        let cgroup = format!("{}/pod1/a-0", machine.cgroup_root);
        let before = hierarchies.processes(&cgroup);
        let script = "trap '' TERM HUP; (sleep 1001 &) ; (busybox setsid sleep 1002 &); sleep 1003";
        let time = Duration::from_millis(300);
        let args = words(&["sh", "-c", script]);
        let killed =
            exec_output(&runtime, "pod-a-0", args, time, OUTPUT_BYTES_MAX).await.unwrap();
        assert_eq!(killed.code, None);
        until("only the container's are left", || hierarchies.processes(&cgroup) == before).await;
        until("its group is gone", || groups_below(machine).is_empty()).await;
        // The same where the agent says it, and waits for the code.
        let handle = open(&runtime, script, false, false).await;
        handle.kill();
        assert_eq!(handle.wait().await.unwrap(), 137);
        until("only the container's are left", || hierarchies.processes(&cgroup) == before).await;
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn a_killed_exec_process_takes_its_command_along(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let mut handle = open(&runtime, "echo $$; exec sleep 1000", false, false).await;
        read_until(&mut handle, "\n").await;
        let hierarchies = Hierarchies::detect().unwrap();
        let cgroup = format!("{}/pod1/a-0", machine.cgroup_root);
        let inside = groups_below(machine);
        let pid: i32 = fs::read_to_string(inside[0].join("cgroup.procs"))
            .unwrap().trim().parse().unwrap();
        kill_9(parent_of(pid));
        match handle.wait().await {
            Err(RuntimeError::ExecLost) => {}
            other => panic!("{other:?}"),
        }
        until("the command is gone", || !hierarchies.processes(&cgroup).contains(&pid)).await;
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn what_a_command_leaves_behind_is_the_containers(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let both = output(&runtime, &["sh", "-c", "sleep 1001 >/dev/null 2>&1 & echo done"]).await;
        assert_eq!(both, (Some(0), "done\n".into()));
        until("its group is gone", || groups_below(machine).is_empty()).await;
        let (_, all) = output(&runtime, &["busybox", "ps"]).await;
        assert!(all.contains("sleep 1001"), "{all}");
        // One that keeps the streams open does not keep the command from ending.
        assert_eq!(output(&runtime, &["sh", "-c", "sleep 1002 & exit 6"]).await.0, Some(6));
        runtime.remove("pod-a-0").await.unwrap();
        assert!(Hierarchies::detect().unwrap().processes(&machine.cgroup_root).is_empty());
    }

    async fn commands_end_with_their_container(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let handle = open(&runtime, "trap '' TERM; sleep 1000", false, false).await;
        runtime.kill("pod-a-0", 9).unwrap();
        assert_eq!(handle.wait().await.unwrap(), 137);
        exit_of(&runtime, "pod-a-0").await;
        runtime.remove("pod-a-0").await.unwrap();
    }

    async fn commands_of_one_container_run_side_by_side(machine: &Machine) {
        let runtime = start(machine, machine.sh("a", "sleep 1000")).await;
        let mut all = tokio::task::JoinSet::new();
        for n in 0..8 {
            let runtime = runtime.clone();
            all.spawn(async move {
                let script = format!("echo {n}; exit {n}");
                (n, output(&runtime, &["sh", "-c", &script]).await)
            });
        }
        while let Some(ended) = all.join_next().await {
            let (n, found) = ended.unwrap();
            assert_eq!(found, (Some(n), format!("{n}\n")));
        }
        runtime.remove("pod-a-0").await.unwrap();
    }
}
