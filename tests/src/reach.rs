//! Reaching into pods with the real `kubectl`, through the one port that nodes
//! dial: exec, attach, cp, port-forward and logs, over WebSocket and over SPDY.
//!
//! Boards have no listening port; everything comes by their own connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use serde_json::json;

use crate::harness::World;
use crate::harness::pods::{self, script};
use crate::harness::process::{Output, Process, run_with};
use crate::harness::wait::{check, until};

type Env = [(&'static str, &'static str)];

/// How clients of Kubernetes up to 1.30 come in, and those after.
const PROTOCOLS: [(&str, &Env); 2] = [
    ("WebSocket", &[]),
    (
        "SPDY",
        &[
            ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"),
            ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false"),
        ],
    ),
];

/// A world with one board and a pod `box` that runs a shell script.
fn world_with(lines: &str) -> World {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let command = script(lines);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let image = world.registry().image("box:1");
    world.create_pod(&pods::pod("box", &image, &words, &[]));
    world.pod_becomes_ready("box");
    world
}

fn kubectl(world: &World, env: &Env, words: &[&str], input: &str) -> Output {
    let mut command = world.kubectl_command();
    command.envs(env.iter().copied()).args(words);
    run_with(command, input)
}

/// A `kubectl` that runs until it is told to stop.
fn start(world: &World, env: &Env, words: &[&str]) -> Process {
    let log = world.dir().join(format!("{}-{}.log", words[0], env.len()));
    Process::start(world.kubectl_command().envs(env.iter().copied()).args(words), &log)
}

#[test]
fn commands_run_and_end_as_users_of_kubectl_know_it() {
    let world = world_with("echo ready");
    for (protocol, env) in PROTOCOLS {
        let kubectl = |words: &[&str], input: &str| kubectl(&world, env, words, input);
        let out = kubectl(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2"], "");
        assert_eq!((out.code, out.out.as_str()), (0, "out\n"), "{protocol}: {out}");
        assert!(out.err.contains("err\n"), "{protocol}: {out}");

        let out = kubectl(&["exec", "box", "--", "sh", "-c", "exit 42"], "");
        assert_eq!(out.code, 42, "{protocol}: {out}");
        assert!(out.err.contains("exit code 42"), "{protocol}: {out}");

        let out = kubectl(&["exec", "-i", "box", "--", "cat"], "one\ntwo\n");
        assert_eq!((out.code, out.out.as_str()), (0, "one\ntwo\n"), "{protocol}: {out}");

        // More than any window or pipe holds, both ways.
        let long: String = (0..400_000).map(|n| format!("{n:07}\n")).collect();
        let out = kubectl(&["exec", "-i", "box", "--", "md5sum"], &long);
        assert_eq!(out.ok(), run_with(Command::new("md5sum"), &long).ok(), "{protocol}");
        let out = kubectl(&["exec", "-i", "box", "--", "cat"], &long).ok();
        assert!(out == long, "{protocol}: {} bytes", out.len());

        let out = kubectl(&["exec", "box", "--", "nonsense"], "");
        assert_eq!(out.code, 1, "{protocol}: {out}");
        assert!(out.err.contains("executable file not found in $PATH"), "{protocol}: {out}");
    }
    let out = kubectl(&world, &[], &["exec", "box", "-c", "other", "--", "true"], "");
    assert!(out.err.contains("container other is not valid for pod box"), "{out}");
    let out = kubectl(&world, &[], &["exec", "nobody", "--", "true"], "");
    assert!(out.err.contains("pods \"nobody\" not found"), "{out}");
}

#[test]
fn a_terminal_is_one_and_is_resized() {
    let world = world_with("echo ready");
    for (protocol, env) in PROTOCOLS {
        // `script` gives kubectl a terminal of its own, as a user's shell does.
        let kubectl = world.kubectl_command();
        let line: Vec<String> = std::iter::once(kubectl.get_program())
            .chain(kubectl.get_args())
            .map(|word| word.to_str().unwrap().to_owned())
            .collect();
        let inner = "sleep 0.5; stty size; tty; echo TERM=$TERM; exit 5";
        let line =
            format!("stty rows 31 cols 97; {} exec -it box -- sh -c '{inner}'", line.join(" "));
        let mut command = Command::new("script");
        for (name, value) in kubectl.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.envs(env.iter().copied());
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let out = run_with(command, "");
        assert_eq!(out.code, 5, "{protocol}: {out}");
        assert!(out.out.contains("31 97"), "{protocol}: {out}");
        assert!(out.out.contains("/dev/pts/"), "{protocol}: {out}");
        assert!(out.out.contains("TERM=xterm"), "{protocol}: {out}");
    }
}

#[test]
fn a_client_that_goes_takes_its_command_along() {
    let world = world_with("echo ready");
    let sleeps = || {
        let out = world.kubectl("exec box -- ps").ok();
        out.lines().filter(|line| line.contains("sleep 4321")).count()
    };
    let mut client = start(&world, &[], &["exec", "box", "--", "sleep", "4321"]);
    until("the command runs", || check(sleeps() == 1, || "no sleep yet".to_owned()));
    client.kill();
    until("the command is gone", || check(sleeps() == 0, || "it still sleeps".to_owned()));
}

#[test]
fn files_are_copied_both_ways() {
    let world = world_with("echo ready");
    let folder = world.dir().join("copied");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    let long: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(folder.join("deep/file"), &long).unwrap();
    for (protocol, env) in PROTOCOLS {
        let there = folder.display().to_string();
        let out = kubectl(&world, env, &["cp", &there, "box:/tmp/copied"], "");
        assert_eq!(out.code, 0, "{protocol}: {out}");
        let back = world.dir().join(format!("back-{protocol}"));
        let here = back.display().to_string();
        let out = kubectl(&world, env, &["cp", "box:/tmp/copied", &here], "");
        assert_eq!(out.code, 0, "{protocol}: {out}");
        assert!(std::fs::read(back.join("deep/file")).unwrap() == long, "{protocol}");
    }
}

#[test]
fn ports_of_a_pod_are_reached_by_many_at_once() {
    let serve = "mkdir -p /www; seq 200000 > /www/long; echo hello > /www/short\n\
                 busybox httpd -p 127.0.0.1:8080 -h /www";
    let world = world_with(serve);
    // kubectl gives up with the first connection that is refused.
    until("the server is up", || {
        let out = world.kubectl("exec box -- wget -q -O - http://127.0.0.1:8080/short");
        check(out.out == "hello\n", || out.to_string())
    });
    for (protocol, env) in PROTOCOLS {
        let forward = start(&world, env, &["port-forward", "box", ":8080", ":9"]);
        let local = |remote: &str| {
            let log = forward.log();
            log.lines()
                .filter_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:"))
                .find_map(|rest| rest.strip_suffix(&format!(" -> {remote}")))
                .and_then(|port| port.parse::<u16>().ok())
                .ok_or(log)
        };
        let port = until("the port is open", || local("8080"));
        let get = move |path: &str| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            // A port that nobody listens on yet is a connection that breaks.
            match stream.read_to_string(&mut text) {
                Ok(_) => text,
                Err(error) => error.to_string(),
            }
        };
        until("the server answers", || {
            let text = get("/short");
            check(text.ends_with("\r\n\r\nhello\n"), || text)
        });
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let text = get("/long");
                    assert!(text.ends_with("199999\n200000\n"), "{protocol}: {} bytes", text.len());
                });
            }
        });
        // One that reads nothing holds up nobody else.
        let mut idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(idle, "GET /long HTTP/1.0\r\n\r\n").unwrap();
        assert!(get("/short").ends_with("hello\n"), "{protocol}");
        idle.shutdown(Shutdown::Both).unwrap();

        // A port that nobody listens on: the connection ends, and kubectl says why.
        let nobody = local("9").unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", nobody)).unwrap();
        let mut nothing = Vec::new();
        let _ = stream.read_to_end(&mut nothing);
        assert!(nothing.is_empty());
        until("kubectl says why", || {
            let log = forward.log();
            check(log.contains("refused"), || log)
        });
    }
}

#[test]
fn a_container_is_attached_to() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let image = world.registry().image("box:1");
    let lines = "while read line; do echo \"got $line\"; done; echo over";
    let mut pod = pods::pod("box", &image, &["/bin/sh", "-c", lines], &[]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    pod["spec"]["containers"][0]["stdinOnce"] = json!(true);
    world.create_pod(&pod);
    world.pod_becomes_ready("box");
    let out = kubectl(&world, &[], &["attach", "-i", "box"], "one\ntwo\n");
    assert!(out.out.contains("got one\ngot two\nover\n"), "{out}");
    until("the container has ended", || {
        let pod = world.api.get("/api/v1/namespaces/default/pods/box").ok();
        check(pod["status"]["phase"] == "Succeeded", || pod["status"].to_string())
    });
    // What was shown is in the log too, and is read after the end.
    assert_eq!(world.kubectl("logs box").ok(), "got one\ngot two\nover\n");
}

#[test]
fn logs_are_selected_as_kubectl_asks() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let image = world.registry().image("box:1");
    // The first run of `main` ends, so that there is a previous one.
    let lines = "if [ -e /data/again ]; then echo second; else touch /data/again; \
                 for n in 1 2 3 4 5; do echo line $n; done; exit 3; fi";
    let command = script(lines);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut pod = pods::pod("box", &image, &words, &[]);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    pod["spec"]["containers"][0]["volumeMounts"] = mounts;
    let side = script("echo beside");
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "side", "image": image, "command": side}));
    world.create_pod(&pod);
    until("the second run speaks", || {
        let log = world.kubectl("logs box -c main");
        check(log.out == "second\n", || log.to_string())
    });
    let logs = |words: &str| world.kubectl(&format!("logs box {words}")).ok();
    assert_eq!(logs("-c main --previous"), "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(logs("-c main --previous --tail=2"), "line 4\nline 5\n");
    assert_eq!(logs("-c main --previous --limit-bytes=9"), "line 1\nli");
    assert_eq!(logs("-c main --since=1h"), "second\n");
    assert_eq!(logs("-c main --since-time=2099-01-01T00:00:00Z"), "");
    let stamped = logs("-c main --timestamps");
    assert!(stamped.ends_with("Z second\n") && stamped.starts_with("20"), "{stamped}");
    let all = logs("--all-containers --prefix");
    assert!(all.contains("[pod/box/main] second\n"), "{all}");
    assert!(all.contains("[pod/box/side] beside\n"), "{all}");
    let missing = world.kubectl("logs box -c side --previous");
    assert!(missing.err.contains("previous terminated container \"side\""), "{missing}");

    // Followed to its end, and read after it.
    let mut job = pods::pod("job", &image, &["/bin/sh", "-c"], &["sleep 1; echo done"]);
    job["spec"]["restartPolicy"] = json!("Never");
    world.create_pod(&job);
    world.pod_becomes("job", "runs", |pod| {
        pod["status"]["phase"] == "Running" || pod["status"]["phase"] == "Succeeded"
    });
    assert_eq!(world.kubectl("logs -f job").ok(), "done\n");
    until("the pod has ended", || {
        let pod = world.api.get("/api/v1/namespaces/default/pods/job").ok();
        check(pod["status"]["phase"] == "Succeeded", || pod["status"].to_string())
    });
    assert_eq!(world.kubectl("logs job").ok(), "done\n");
}

#[test]
fn who_may_not_reach_in_is_refused() {
    let world = world_with("echo ready");
    let nobody = crate::harness::api::Api::nobody(&world.master.kubeconfig());
    for path in ["exec?command=true&stdout=true", "attach?stdout=true", "portforward"] {
        let path = format!("/api/v1/namespaces/default/pods/box/{path}");
        let answer = nobody.get(&path);
        assert!(matches!(answer.status, 401 | 403), "{path}: {} {}", answer.status, answer.text);
        let message = world.api.get(&path).refused(400, "BadRequest");
        assert_eq!(message, "Upgrade request required");
    }
}

#[test]
fn our_own_command_line_reaches_in_too() {
    let world = world_with("mkdir -p /www; echo hello > /www/short; httpd -p 8080 -h /www");
    let out = world.pinnace_with(&["exec", "-i", "box", "--", "cat"], "one\n");
    assert_eq!(out.ok(), "one\n");
    let out = world.pinnace_with(&["exec", "box", "--", "sh", "-c", "echo e >&2; exit 42"], "");
    assert_eq!((out.code, out.err.as_str()), (42, "e\n"), "{out}");
    let out = world.pinnace("exec box -- nonsense").failed();
    assert!(out.contains("executable file not found in $PATH"), "{out}");

    let file = world.dir().join("file");
    std::fs::write(&file, "copied\n").unwrap();
    world.pinnace(&format!("cp {} box:/tmp/there", file.display())).ok();
    let back = world.dir().join("back");
    world.pinnace(&format!("cp box:/tmp/there {}", back.display())).ok();
    assert_eq!(std::fs::read_to_string(back).unwrap(), "copied\n");

    until("the server is up", || {
        let out = world.kubectl("exec box -- wget -q -O - http://127.0.0.1:8080/short");
        check(out.out == "hello\n", || out.to_string())
    });
    let log = world.dir().join("forward.log");
    let mut command = world.pinnace_command();
    let forward = Process::start(command.args(["port-forward", "box", ":8080"]), &log);
    let port: u16 = until("the port is open", || {
        let log = forward.log();
        let port = log.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split_once(" -> "));
        port.and_then(|(port, _)| port.parse().ok()).ok_or(log)
    });
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /short HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("hello\n"), "{text}");
}
