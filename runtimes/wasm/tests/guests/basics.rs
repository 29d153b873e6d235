//! Programs: how they are started, what they are given, how they end.

use std::fs;
use std::path::Path;

use runtime::dir::ContainerDir;
use runtime::{ContainerSpec, ExecHandle, Runtime, Stdio, User, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::artifact::{ArtifactV1, WorldV1};
use wire::node::WasmTargetV1;

use crate::node::Node;

tests! {
    both_kinds_run_with_arguments_and_variables,
    volumes_are_where_they_were_mounted_and_nothing_else_is,
    exit_codes_are_the_guests_own,
    input_comes_from_whoever_is_attached,
    a_terminal_is_one_to_the_guest,
    without_input_it_is_at_its_end,
    a_panic_is_134_and_said_in_the_log,
    the_memory_limit_ends_the_guest_as_out_of_memory,
    sigterm_stops_a_guest_that_waits,
    sigterm_stops_a_guest_that_computes,
    the_process_has_no_privilege_left,
    damaged_code_is_never_mapped,
    code_of_another_key_is_never_mapped,
    raw_bytes_that_are_signed_are_not_run,
    a_world_that_was_not_signed_is_not_run,
    non_root_refuses_user_zero,
    last_words_are_written_for_the_status,
    pulley_bytecode_runs_as_native_code_does,
    limits_are_in_the_cgroup_that_the_guest_is_in,
    a_limit_the_kernel_cannot_keep_is_kept,
    nothing_is_left_after_removal,
}

async fn both_kinds_run_with_arguments_and_variables(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let (exit, log) = node.run(node.spec(module, &["args", "env", "GREETING"])).await;
        assert_eq!(exit.code, 0, "{log}");
        assert!(log.contains(r#"["trial", "args", "env", "GREETING"]"#), "{log}");
        assert!(log.contains(r#"Ok("Hej")"#), "{log}");
    }
}

async fn volumes_are_where_they_were_mounted_and_nothing_else_is(node: &Node<'_>) {
    let args = [
        "read",
        "/config/greeting",
        "write",
        "/config/x",
        "write",
        "/data/x",
        "write",
        "/x",
        "read",
        "/etc/passwd",
        "read",
        "/data/../../etc/passwd",
        "list",
        "/",
    ];
    for module in [&node.guests.module, &node.guests.component] {
        let (_, log) = node.run(node.spec(module, &args)).await;
        assert!(log.contains(r#"/config/greeting: "hello""#), "{log}");
        assert!(log.contains("/data/x: written"), "{log}");
        for path in ["/config/x: ", "/x: ", "/etc/passwd: "] {
            let line = log.lines().find(|line| line.starts_with(path)).unwrap();
            assert!(!line.contains("written") && !line.contains("root"), "{log}");
        }
        assert!(log.contains(r#"/: ["config", "data"]"#), "{log}");
    }
    assert!(node.path("writable/x").exists());
    assert!(!node.path("read-only/x").exists());
}

async fn exit_codes_are_the_guests_own(node: &Node<'_>) {
    let (exit, _) = node.run(node.spec(&node.guests.module, &["exit", "7"])).await;
    assert_eq!(exit.code, 7);
    // Preview 2 has success and failure only.
    let (exit, _) = node.run(node.spec(&node.guests.component, &["exit", "7"])).await;
    assert_eq!(exit.code, 1);
}

/// Reads from a client until it has said `expected`.
async fn read_until(handle: &mut ExecHandle, expected: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 1024]);
    while !text.contains(expected) {
        let n = handle.stdout.as_mut().unwrap().read(&mut bytes).await.unwrap();
        assert_ne!(n, 0, "{text:?} without {expected:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    text
}

async fn input_comes_from_whoever_is_attached(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let runtime = node.runtime();
        let mut spec = node.spec(module, &["echo", "exit", "0"]);
        spec.stdio = Stdio { stdin: true, stdin_once: true, tty: false };
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        let mut client = runtime.attach(&id, true).await.unwrap();
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").await.unwrap();
        read_until(&mut client, "got one\ngot two\n").await;
        // Its only client's end is the end of input.
        drop((stdin, client));
        assert_eq!(node.until_exit(&runtime, &id).await.code, 0);
        assert!(node.log().contains("terminal: false"), "{}", node.log());
        assert!(node.log().ends_with("\nend"), "{}", node.log());
        runtime.remove(&id).await.unwrap();
    }
}

async fn a_terminal_is_one_to_the_guest(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let runtime = node.runtime();
        let mut spec = node.spec(module, &["echo", "sleep"]);
        spec.stdio = Stdio { stdin: true, stdin_once: false, tty: true };
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        let mut client = runtime.attach(&id, true).await.unwrap();
        client.stdin.as_mut().unwrap().write_all(b"one\n").await.unwrap();
        // What is typed is echoed, and lines end as a terminal shows them.
        let text = read_until(&mut client, "got one\r\n").await;
        assert!(text.contains("one\r\n"), "{text}");
        assert!(node.log().contains("terminal: true"), "{}", node.log());
        // Control-D ends the input, Control-C the guest.
        client.stdin.as_mut().unwrap().write_all(b"\x04").await.unwrap();
        read_until(&mut client, "sleeping").await;
        client.stdin.as_mut().unwrap().write_all(b"\x03").await.unwrap();
        assert_eq!(node.until_exit(&runtime, &id).await.code, 130);
        runtime.remove(&id).await.unwrap();
    }
}

async fn without_input_it_is_at_its_end(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let (exit, log) = node.run(node.spec(module, &["echo"])).await;
        assert_eq!(exit.code, 0, "{log}");
        assert_eq!(log, "terminal: false\nend");
    }
}

async fn a_panic_is_134_and_said_in_the_log(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let (exit, log) = node.run(node.spec(module, &["panic"])).await;
        assert_eq!(exit.code, 134, "{log}");
        assert!(log.contains("as asked") && log.contains("pinnace: the guest ended"), "{log}");
    }
}

async fn the_memory_limit_ends_the_guest_as_out_of_memory(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let mut spec = node.spec(module, &["allocate", "64"]);
        spec.resources.memory_limit_bytes = 16 << 20;
        let (exit, log) = node.run(spec).await;
        assert_eq!((exit.code, exit.oom_killed), (137, true), "{log}");
        let mut spec = node.spec(module, &["allocate", "4"]);
        spec.resources.memory_limit_bytes = 16 << 20;
        let (exit, log) = node.run(spec).await;
        assert_eq!((exit.code, exit.oom_killed), (0, false), "{log}");
    }
}

async fn sigterm_stops_a_guest_that_waits(node: &Node<'_>) {
    stops(node, "sleep", "sleeping").await;
}

async fn sigterm_stops_a_guest_that_computes(node: &Node<'_>) {
    stops(node, "spin", "spinning").await;
}

async fn stops(node: &Node<'_>, verb: &str, said: &str) {
    for module in [&node.guests.module, &node.guests.component] {
        let _ = fs::remove_file(node.path("guest.log"));
        let runtime = node.runtime();
        let spec = node.spec(module, &[verb]);
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        node.until_log(said).await;
        runtime.kill(&id, libc::SIGTERM).unwrap();
        let exit = node.until_exit(&runtime, &id).await;
        assert_eq!(exit.code, 143);
        runtime.remove(&id).await.unwrap();
    }
}

async fn the_process_has_no_privilege_left(node: &Node<'_>) {
    let runtime = node.runtime();
    let spec = node.spec(&node.guests.module, &["sleep"]);
    let id = spec.id.clone();
    let running = runtime.start(spec).await.unwrap();
    node.until_log("sleeping").await;
    let pid = running.pid.0;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "65534 65534 65534 65534");
    assert_eq!(field("Gid:"), "65534 65534 65534 65534");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let namespace = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    assert_eq!(
        namespace(Path::new(&format!("/proc/{pid}/ns/net"))),
        namespace(&node.path("ns/net")),
    );
    // Its variables are the guest's and not the process'.
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains("GREETING"));
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "wasm-guest\n");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(files.contains(" 1024 "), "{files}");
    // Nothing of the shim's is open in it.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    for link in open.map(|fd| fs::read_link(fd.path()).unwrap()) {
        let link = link.to_str().unwrap();
        let is_stream = link.ends_with("/out") || link.ends_with("/err");
        assert!(
            is_stream || !link.contains("/run/containers/") || link.ends_with("/oom"),
            "{link}"
        );
    }
    runtime.kill(&id, libc::SIGKILL).unwrap();
    assert_eq!(node.until_exit(&runtime, &id).await.code, 137);
    runtime.remove(&id).await.unwrap();
}

/// Starts a spec that must be refused; returns why it was.
pub(crate) async fn refusal(node: &Node<'_>, spec: ContainerSpec) -> String {
    let runtime = node.runtime();
    let id = spec.id.clone();
    let refused = runtime.start(spec).await.unwrap_err().to_string();
    runtime.remove(&id).await.unwrap();
    refused
}

async fn damaged_code_is_never_mapped(node: &Node<'_>) {
    let spec = node.spec(&node.guests.module, &["args"]);
    let path = node.path("code.cwasm");
    let mut code = fs::read(&path).unwrap();
    let middle = code.len() / 2;
    code[middle] ^= 1;
    fs::write(&path, &code).unwrap();
    let refused = refusal(node, spec).await;
    assert!(refused.contains("code.cwasm is damaged"), "{refused}");
    assert!(!path.exists(), "it is out of the way of a good one");
}

async fn code_of_another_key_is_never_mapped(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.module, &["args"]);
    let Workload::Wasm { key, .. } = &mut spec.workload else { panic!("not WASM") };
    key[0] ^= 1;
    let refused = refusal(node, spec).await;
    assert!(refused.contains("not by this cluster's artifact key"), "{refused}");
}

async fn raw_bytes_that_are_signed_are_not_run(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.module, &["args"]);
    let bytes = &node.guests.module;
    fs::write(node.path("code.cwasm"), bytes).unwrap();
    let digest: [u8; 32] =
        ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap();
    let Workload::Wasm { sha256, signature, .. } = &mut spec.workload else { panic!("not WASM") };
    (*sha256, signature.size) = (digest, bytes.len() as u64);
    let artifact = ArtifactV1 {
        module: signature.module.clone(),
        target: WasmTargetV1 {
            engine: signature.engine.clone(),
            target: signature.target.clone(),
            profile: signature.profile,
        },
        world: WorldV1::Command,
        sha256: digest,
        size: signature.size,
        signature: Vec::new(),
    };
    signature.bytes = node.key.sign(&artifact.signed_bytes()).as_ref().to_vec();
    let refused = refusal(node, spec).await;
    assert!(refused.contains("the artifact is not compiled code"), "{refused}");
}

async fn a_world_that_was_not_signed_is_not_run(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.component, &["args"]);
    let Workload::Wasm { signature, .. } = &mut spec.workload else { panic!("not WASM") };
    signature.world = runtime::World::Http;
    let refused = refusal(node, spec).await;
    assert!(refused.contains("not by this cluster's artifact key"), "{refused}");
}

async fn non_root_refuses_user_zero(node: &Node<'_>) {
    let mut spec = node.spec(&node.guests.module, &["args"]);
    spec.user = User { uid: Some(0), non_root: true, ..User::default() };
    let refused = refusal(node, spec).await;
    assert!(refused.contains("breaks non-root policy"), "{refused}");
}

async fn last_words_are_written_for_the_status(node: &Node<'_>) {
    let file = node.path("last-words");
    for (args, expected) in [
        (&["panic"][..], "wasm trap: wasm `unreachable` instruction executed"),
        (&["recurse"], "wasm trap: call stack exhausted"),
        (&["exit", "0"], ""),
        (&["write", "/dev/termination-log", "panic"], "x"),
    ] {
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let mut spec = node.spec(&node.guests.module, args);
        spec.mounts.push(runtime::Mount {
            source: file.clone(),
            destination: "/dev/termination-log".to_owned(),
            read_only: false,
            ..Default::default()
        });
        let (_, log) = node.run(spec).await;
        assert_eq!(fs::read_to_string(&file).unwrap(), expected, "{args:?} {log}");
    }
}

async fn pulley_bytecode_runs_as_native_code_does(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let args = ["args", "read", "/config/greeting", "exit", "0"];
        let spec = node.spec_for("pulley64", module, &args);
        let (exit, log) = node.run_with(&["shim-pulley"], spec).await;
        assert_eq!(exit.code, 0, "{exit:?} {log}");
        assert!(log.contains(r#"/config/greeting: "hello""#), "{log}");
        let spec = node.spec_for("pulley64", module, &["recurse"]);
        assert_eq!(node.run_with(&["shim-pulley"], spec).await.0.code, 134);
        // A node maps its own target and no other.
        let spec = node.spec_for("pulley64", module, &["args"]);
        let refused = refusal(node, spec).await;
        assert!(refused.contains("was compiled for 48.0.8 pulley64 profile"), "{refused}");
    }
}

async fn limits_are_in_the_cgroup_that_the_guest_is_in(node: &Node<'_>) {
    let runtime = node.runtime();
    let mut spec = node.spec(&node.guests.module, &["sleep"]);
    spec.resources.cpu_limit_millis = 250;
    spec.resources.memory_limit_bytes = 64 << 20;
    spec.resources.oom_score_adj = 500;
    let (id, cgroup) = (spec.id.clone(), spec.cgroup.clone());
    let running = runtime.start(spec).await.unwrap();
    let pid = running.pid.0;
    let hierarchies = runtime::cgroup::Hierarchies::detect().unwrap();
    // The engine has 16 MiB of its own.
    for (controller, v1, v1_value, v2, v2_value) in [
        ("cpu", "cpu.cfs_quota_us", "25000", "cpu.max", "25000 100000"),
        ("memory", "memory.limit_in_bytes", "83886080", "memory.max", "83886080"),
        ("pids", "pids.max", "32", "pids.max", "32"),
    ] {
        let (folder, file, expected) = match hierarchies.controller_folder(controller, &cgroup) {
            Some(folder) => (folder, v1, v1_value),
            None => (hierarchies.unified_folder(&cgroup).unwrap(), v2, v2_value),
        };
        assert_eq!(fs::read_to_string(folder.join(file)).unwrap().trim(), expected, "{file}");
        let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), pid.to_string(), "{controller}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
    runtime.kill(&id, libc::SIGTERM).unwrap();
    node.until_exit(&runtime, &id).await;
    runtime.remove(&id).await.unwrap();
}

async fn a_limit_the_kernel_cannot_keep_is_kept(node: &Node<'_>) {
    let runtime = node.runtime_with(&["shim-throttled"]);
    let mut spec = node.spec(&node.guests.module, &["spin"]);
    spec.resources.cpu_limit_millis = 100;
    let id = spec.id.clone();
    let running = runtime.start(spec).await.unwrap();
    node.until_log("spinning").await;
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid.0)).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // Ticks of 10 ms, of user and system.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (began, before) = (tokio::time::Instant::now(), used());
    while began.elapsed() < std::time::Duration::from_secs(2) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // No less than a turn is taken at a time, and a tick is one: 200 ms of 2 s and some.
    let ticks = used() - before;
    assert!(ticks * 10 <= 400, "{ticks} ticks of 10 ms in {:?}", began.elapsed());
    assert!(ticks > 0, "it goes on");
    runtime.kill(&id, libc::SIGTERM).unwrap();
    assert_eq!(node.until_exit(&runtime, &id).await.code, 143);
    runtime.remove(&id).await.unwrap();
}

async fn nothing_is_left_after_removal(node: &Node<'_>) {
    let spec = node.spec(&node.guests.module, &["args"]);
    let dir = ContainerDir::new(node.path("run/containers").join(&spec.id));
    node.run(spec).await;
    assert!(!dir.path().exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(node.path("run").to_str().unwrap()), "{mounts}");
    for hierarchy in ["memory", "pids", "cpu"] {
        let left = Path::new("/sys/fs/cgroup").join(hierarchy);
        let left = left.join(node.cgroup_root.trim_start_matches('/')).join("guest");
        assert!(!left.exists(), "{left:?}");
    }
}
