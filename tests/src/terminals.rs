//! Terminals of containers, and looking into pods and nodes with `kubectl debug`,
//! with the real `kubectl` in a terminal.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, script};
use crate::harness::programs::guest;
use crate::harness::terminal::Terminal;
use crate::harness::wait::{check, until};

/// The names of kubectl's two ways in, and what chooses them.
const PROTOCOLS: [(&str, &str); 2] = [("web-socket", "true"), ("spdy", "false")];

/// A `kubectl` in a terminal.
fn typed(world: &World, web_sockets: &str, words: &[&str], size: (u16, u16)) -> Terminal {
    let mut command: Command = world.kubectl_command();
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets).args(words);
    Terminal::start(&command, size)
}

fn phase(world: &World, name: &str) -> Option<Value> {
    Some(world.find_pod(name)?["status"]["phase"].clone())
}

#[test]
fn a_shell_is_run_in_a_pod_of_its_own_and_goes_with_it() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let image = format!("--image={}", world.registry().image("box:1"));
    for (name, web_sockets) in PROTOCOLS {
        let words = ["run", name, "-it", "--rm", "--restart=Never", &image, "--", "sh"];
        let mut shell = typed(&world, web_sockets, &words, (31, 97));
        // What is typed before the terminal is there is not lost.
        shell.write("echo $((40+2)); tty\n");
        shell.shows("42\r\n/dev/");
        shell.write("stty size; echo sized\n");
        shell.shows("31 97\r\nsized");
        shell.resize((50, 132));
        until("the size arrives", || {
            shell.write("stty size\n");
            let seen = shell.seen();
            check(seen.contains("50 132\r\n"), || seen)
        });
        // Control-C ends what runs in the terminal, and not the shell.
        shell.write("sleep 4321\n");
        until("the sleep ends", || {
            shell.write("\x03");
            shell.write("echo $((3*7))=alive\n");
            let seen = shell.seen();
            check(seen.contains("21=alive\r\n"), || seen)
        });
        shell.write("exit 7\n");
        let code = shell.ended();
        let seen = shell.shows(&format!("pod \"{name}\" deleted"));
        assert_eq!(code, 7, "{seen}");
        assert!(!seen.contains("couldn't attach"), "{seen}");
        until("the pod is gone", || {
            check(phase(&world, name).is_none(), || "it is there".to_owned())
        });
    }
}

#[test]
fn a_terminal_outlives_its_clients_and_the_agent() {
    let mut world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let mut pod = pods::pod("box", &world.registry().image("box:1"), &["/bin/sh"], &[]);
    for key in ["stdin", "tty"] {
        pod["spec"]["containers"][0][key] = json!(true);
    }
    world.create_pod(&pod);
    world.pod_becomes_ready("box");
    let mut first = typed(&world, "true", &["attach", "-it", "box"], (30, 90));
    first.write("kept=before; echo first=$kept\n");
    first.shows("first=before\r\n");
    // A closed window: the shell goes on.
    first.kill();
    world.agents[0].kill();
    world.start_agent(0);
    until("the new agent serves streams", || {
        let out = world.kubectl("exec box -- true");
        check(out.code == 0, || out.to_string())
    });
    let mut second = typed(&world, "false", &["attach", "-it", "box"], (40, 80));
    until("the shell is the same", || {
        second.write("echo second=$kept; stty size\n");
        let seen = second.seen();
        check(seen.contains("second=before\r\n40 80\r\n"), || seen)
    });
    second.kill();
    let pod = world.pod_becomes_ready("box");
    assert_eq!(pods::restarts(&pod), 0, "{pod}");
    let log = world.kubectl("logs box").ok();
    assert!(log.contains("first=before\r\n") && log.contains("second=before\r\n"), "{log}");
    // The shell's own end is that of the container, which is started again.
    let third = typed(&world, "true", &["attach", "-it", "box"], (40, 80));
    until("the shell ends", || {
        third.write("exit\n");
        let pod = world.find_pod("box").unwrap();
        check(pods::restarts(&pod) == 1, || pod["status"].to_string())
    });
}

#[test]
fn a_wasm_program_is_typed_to() {
    let world = World::with_nodes(1);
    let image = world.registry().push_wasm("trial:1", guest("trial", "wasip2"));
    let mut pod = pods::pod("plain", &image, &[], &["echo"]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    pod["spec"]["containers"][0]["stdinOnce"] = json!(true);
    world.create_pod(&pod);
    world.pod_becomes_ready("plain");
    let out = world.kubectl_with(&["attach", "-i", "plain"], "one\ntwo\n");
    assert!(out.out.contains("got one\ngot two\nend\n"), "{out}");
    world.pod_becomes("plain", "ends", |pod| pod["status"]["phase"] == "Succeeded");

    let image = format!("--image={image}");
    let words = ["run", "typed", "-it", "--rm", "--restart=Never", &image, "--", "echo", "sleep"];
    let mut shell = typed(&world, "true", &words, (24, 80));
    shell.write("hello\n");
    shell.shows("got hello\r\n");
    shell.write("\x04");
    shell.shows("sleeping\r\n");
    shell.write("\x03");
    assert_eq!(shell.ended(), 130, "{}", shell.seen());
}

#[test]
fn a_debugger_sees_the_processes_of_its_target() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let image = world.registry().image("box:1");
    let command = script("sleep 4321 &");
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut pod = pods::pod("box", &image, &words, &[]);
    let side = json!({"name": "side", "image": image, "command": script("sleep 1234 &")});
    pod["spec"]["containers"].as_array_mut().unwrap().push(side);
    world.create_pod(&pod);
    world.pod_becomes_ready("box");

    let image = format!("--image={image}");
    let debug = ["debug", "box", "-it", &image, "--target=main", "-c", "look", "--", "sh"];
    let mut shell = typed(&world, "true", &debug, (24, 120));
    shell.write("ps; echo $((6*7))=seen\n");
    let seen = shell.shows("42=seen\r\n");
    assert!(seen.contains("sleep 4321") && !seen.contains("sleep 1234"), "{seen}");
    // And may do something about them.
    shell.write("killall sleep; echo $((6*8))=done\n");
    shell.shows("48=done\r\n");
    shell.write("exit\n");
    shell.ended();
    let pod = world.find_pod("box").unwrap();
    assert_eq!(pods::restarts(&pod), 0, "{pod}");

    // A copy whose containers share their processes.
    let debug = ["debug", "box", "--copy-to=copy", "--share-processes", &image, "-c", "look"];
    let words = [&debug[..], &["--", "sh", "-c", "sleep 1000"]].concat();
    world.kubectl_with(&words, "").ok();
    world.pod_becomes_ready("copy");
    let out = world.kubectl("exec copy -c look -- ps").ok();
    assert!(out.contains("sleep 4321") && out.contains("sleep 1234"), "{out}");
}

#[test]
fn a_target_that_does_not_run_is_said() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let image = world.registry().image("box:1");
    let module = world.registry().push_wasm("trial:1", guest("trial", "wasip1"));
    let mut pod = pods::pod("box", &image, &["sleep", "1000"], &[]);
    let wasm = json!({"name": "wasm", "image": module, "args": ["sleep"]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(wasm);
    world.create_pod(&pod);
    world.pod_becomes_ready("box");
    // A module is one process of the machine's: there is nothing of its own to see.
    let words = ["debug", "box", "--image", &image, "--target=wasm", "-c", "look", "--", "ps"];
    world.kubectl_with(&words, "").ok();
    until("it is said", || {
        let pod = world.find_pod("box").unwrap();
        let waiting = &pod["status"]["ephemeralContainerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default().to_owned();
        check(message.contains("no process ids of its own"), || pod["status"].to_string())
    });
    let ready = world.pod_becomes_ready("box");
    assert_eq!(pods::restarts(&ready), 0, "{ready}");
}

#[test]
fn a_node_is_looked_into() {
    let world = World::with_nodes(1);
    world.registry().push_busybox("box:1", &[]);
    let image = format!("--image={}", world.registry().image("box:1"));
    let words = ["debug", "node/node-1", "-it", &image, "--", "sh"];
    let mut shell = typed(&world, "true", &words, (24, 120));
    shell.write("ls -1d /host/etc /host/proc/1; ps | grep -c pinnace-agent; echo $((6*7))=seen\n");
    let seen = shell.shows("42=seen\r\n");
    assert!(seen.contains("/host/etc\r\n/host/proc/1\r\n"), "{seen}");
    assert!(!seen.contains("\r\n0\r\n"), "{seen}");
    shell.write("exit\n");
    shell.ended();
}
