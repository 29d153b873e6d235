//! Guests that mean harm. Each ends, or is ended, with a status that says why;
//! and a neighbour, an HTTP server of its own, answers all the while.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use runtime::{ContainerSpec, Exit, Runtime};

use crate::node::Node;

tests! {
    endless_loops_are_stopped_wherever_they_are,
    a_guest_that_does_not_stop_is_killed,
    memories_are_bounded_however_many_there_are,
    tables_are_bounded,
    open_files_are_bounded,
    deep_recursion_is_a_trap,
    a_flood_of_output_is_bounded,
    threads_and_strange_imports_do_not_start,
    a_neighbour_notices_nothing,
}

fn module(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// Runs a module of text to its end.
async fn run(node: &Node<'_>, text: &str, memory_mib: u64) -> (Exit, String) {
    node.run(spec(node, text, memory_mib)).await
}

fn spec(node: &Node<'_>, text: &str, memory_mib: u64) -> ContainerSpec {
    let mut spec = node.spec(&module(text), &[]);
    spec.resources.memory_limit_bytes = memory_mib << 20;
    spec
}

const LOOPS: [&str; 3] = [
    r#"(module (func (export "_start") (loop (br 0))))"#,
    // Before its first function is called.
    r#"(module (func $f (loop (br 0))) (start $f) (func (export "_start")))"#,
    // By calls, with nothing on the stack.
    r#"(module (func (export "_start") (loop (call $f) (br 0))) (func $f))"#,
];

async fn endless_loops_are_stopped_wherever_they_are(node: &Node<'_>) {
    let runtime = node.runtime();
    for text in LOOPS {
        let spec = spec(node, text, 0);
        let id = spec.id.clone();
        runtime.start(spec).await.unwrap();
        runtime.kill(&id, libc::SIGTERM).unwrap();
        assert_eq!(node.until_exit(&runtime, &id).await.code, 143, "{text}");
        runtime.remove(&id).await.unwrap();
    }
}

async fn a_guest_that_does_not_stop_is_killed(node: &Node<'_>) {
    let runtime = node.runtime();
    let spec = spec(node, LOOPS[0], 0);
    let id = spec.id.clone();
    runtime.start(spec).await.unwrap();
    runtime.kill(&id, libc::SIGKILL).unwrap();
    let exit = node.until_exit(&runtime, &id).await;
    assert_eq!((exit.code, exit.oom_killed), (137, false));
    runtime.remove(&id).await.unwrap();
}

async fn memories_are_bounded_however_many_there_are(node: &Node<'_>) {
    // Declared at once; grown; and many at a time, each below the limit.
    let many: String = "(memory 16)".repeat(40);
    for text in [
        r#"(module (memory 65536) (func (export "_start")))"#,
        r#"(module (memory 1) (func (export "_start")
            (loop (drop (memory.grow (i32.const 16))) (br 0))))"#,
        &format!(r#"(module {many} (func (export "_start")))"#),
    ] {
        let (exit, log) = run(node, text, 16).await;
        assert_eq!((exit.code, exit.oom_killed), (137, true), "{log}");
        assert!(log.contains("memory limit of 16777216 bytes reached"), "{log}");
    }
    // What is declared and not touched costs nothing where there is no limit.
    let (exit, log) = run(node, r#"(module (memory 65536) (func (export "_start")))"#, 0).await;
    assert_eq!(exit.code, 0, "{log}");
}

async fn tables_are_bounded(node: &Node<'_>) {
    for text in [
        r#"(module (table 100000000 funcref) (func (export "_start")))"#,
        &format!(r#"(module {} (func (export "_start")))"#, "(table 1000000 funcref)".repeat(20)),
    ] {
        let (exit, log) = run(node, text, 0).await;
        assert_eq!(exit.code, 1, "{log}");
        assert!(log.contains("pinnace: the guest ended: "), "{log}");
    }
    // Growing is told that it failed: -1.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (table $t 1 funcref)
        (func (export "_start")
            (call $exit (i32.eq (i32.const -1)
                (table.grow $t (ref.null func) (i32.const 100000000))))))"#;
    let (exit, log) = run(node, text, 0).await;
    assert_eq!(exit.code, 1, "{log}");
}

async fn open_files_are_bounded(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let args = ["open-all", "/config/greeting", "read", "/config/greeting"];
        let (exit, log) = node.run(node.spec(module, &args)).await;
        assert_eq!(exit.code, 0, "{log}");
        assert!(log.contains("times, then "), "{log}");
        // They are closed again, and the guest goes on.
        assert!(log.contains(r#"/config/greeting: "hello""#), "{log}");
    }
}

async fn deep_recursion_is_a_trap(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let (exit, log) = node.run(node.spec(module, &["recurse"])).await;
        assert_eq!(exit.code, 134, "{log}");
        assert!(log.contains("call stack exhausted"), "{log}");
    }
}

async fn a_flood_of_output_is_bounded(node: &Node<'_>) {
    let runtime = node.runtime();
    let spec = node.spec(&node.guests.module, &["flood"]);
    let id = spec.id.clone();
    runtime.start(spec).await.unwrap();
    let bytes = |name: &str| fs::metadata(node.path(name)).map_or(0, |file| file.len());
    // Until the file was turned over.
    while bytes("guest.log.1") == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    runtime.kill(&id, libc::SIGTERM).unwrap();
    assert_eq!(node.until_exit(&runtime, &id).await.code, 143);
    assert!(bytes("guest.log") + bytes("guest.log.1") <= 21 << 20);
    runtime.remove(&id).await.unwrap();
}

async fn threads_and_strange_imports_do_not_start(node: &Node<'_>) {
    for (text, expected) in [
        (
            r#"(module (import "wasi" "thread-spawn" (func (param i32) (result i32)))
                (func (export "_start")))"#,
            "wasi::thread-spawn",
        ),
        (r#"(module (import "env" "system" (func)) (func (export "_start")))"#, "env::system"),
    ] {
        let refused = crate::basics::refusal(node, node.spec(&module(text), &[])).await;
        assert!(refused.contains("unknown import") && refused.contains(expected), "{refused}");
    }
}

async fn a_neighbour_notices_nothing(node: &Node<'_>) {
    let neighbour = Node::new(node.guests);
    let runtime = neighbour.runtime();
    let spec = neighbour.spec(&node.guests.web, &[]);
    let id = spec.id.clone();
    runtime.start(spec).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let n_answered = Arc::new(AtomicUsize::new(0));
    let asking = neighbour.in_pod({
        let (done, n_answered) = (Arc::clone(&done), Arc::clone(&n_answered));
        move || {
            while !done.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect("127.0.0.1:80").unwrap();
                stream
                    .write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.contains("Hej from /"), "{answer}");
                n_answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let harm = async {
        let seen = |before: usize| {
            let n_answered = Arc::clone(&n_answered);
            async move {
                while n_answered.load(Ordering::Relaxed) <= before {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
        };
        for args in [&["allocate", "64"][..], &["recurse"], &["panic"], &["open-all", "/config/x"]]
        {
            let mut spec = node.spec(&node.guests.module, args);
            spec.resources.memory_limit_bytes = 16 << 20;
            let before = n_answered.load(Ordering::Relaxed);
            node.run(spec).await;
            seen(before).await;
        }
        let runtime = node.runtime();
        for args in [&["spin"][..], &["flood"]] {
            let spec = node.spec(&node.guests.module, args);
            let id = spec.id.clone();
            runtime.start(spec).await.unwrap();
            seen(n_answered.load(Ordering::Relaxed) + 5).await;
            runtime.kill(&id, libc::SIGTERM).unwrap();
            node.until_exit(&runtime, &id).await;
            runtime.remove(&id).await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(asking, harm);
    runtime.kill(&id, libc::SIGTERM).unwrap();
    assert_eq!(neighbour.until_exit(&runtime, &id).await.code, 0);
    runtime.remove(&id).await.unwrap();
}
