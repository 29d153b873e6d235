//! The compiler's process: what it gives is what the compiler gives, and what
//! is too much for it costs nobody else.

use std::time::Duration;

use pinnace_wasm::compile::child::Compiler;
use pinnace_wasm::compile::compile;
use pinnace_wasm::engine::{TARGETS, local_target};
use wire::artifact::WorldV1;

use crate::node::Node;

tests! {
    every_target_is_compiled_as_without_a_process,
    refusals_are_told_as_they_are,
    broken_modules_are_refused_whatever_is_broken,
    a_module_that_takes_too_long_is_given_up,
    a_compiler_that_fails_is_told_from_a_bad_module,
    bombs_end_in_time,
}

fn compiler(verb: &str) -> Compiler {
    Compiler::new("/proc/self/exe".into(), vec![verb.into()])
}

async fn every_target_is_compiled_as_without_a_process(node: &Node<'_>) {
    for target in TARGETS {
        let there = compiler("compile").compile(&node.guests.module, target).await.unwrap();
        assert_eq!(there.world, WorldV1::Command);
        assert!(there.code.starts_with(b"\x7fELF"), "{target}");
    }
    let target = local_target().unwrap();
    let here = compile(&node.guests.web, target).unwrap();
    let there = compiler("compile").compile(&node.guests.web, target).await.unwrap();
    assert_eq!(there.world, WorldV1::Http);
    assert_eq!(here.code.len(), there.code.len());
}

async fn refusals_are_told_as_they_are(_: &Node<'_>) {
    let target = local_target().unwrap();
    for bytes in [
        b"#!/bin/sh".to_vec(),
        wat::parse_str("(module)").unwrap(),
        wat::parse_str(r#"(module (memory 1 1 shared) (func (export "_start")))"#).unwrap(),
    ] {
        let here = compile(&bytes, target).unwrap_err().to_string();
        let there = compiler("compile").compile(&bytes, target).await.unwrap_err().to_string();
        assert_eq!(here, there);
    }
}

async fn broken_modules_are_refused_whatever_is_broken(node: &Node<'_>) {
    let target = local_target().unwrap();
    let whole = &node.guests.module;
    for cut in [9, 100, whole.len() / 2, whole.len() - 1] {
        compiler("compile").compile(&whole[..cut], target).await.unwrap_err();
    }
    for at in [8, 20, 1000, whole.len() / 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        // Some damage is another valid program; none is a crash.
        if let Err(err) = compiler("compile").compile(&bytes, target).await {
            assert!(!err.to_string().contains("or failed"), "{at}: {err}");
        }
    }
}

async fn a_module_that_takes_too_long_is_given_up(node: &Node<'_>) {
    let hanging = compiler("hang").with_time(Duration::from_millis(100));
    let err = hanging.compile(&node.guests.module, TARGETS[0]).await.unwrap_err();
    assert_eq!(err.to_string(), "compiling it took more than 0.1 s");
}

async fn a_compiler_that_fails_is_told_from_a_bad_module(node: &Node<'_>) {
    let err = compiler("fail").compile(&node.guests.module, TARGETS[0]).await.unwrap_err();
    assert!(err.to_string().contains("or failed (exit status: 1)"), "{err}");
}

async fn bombs_end_in_time(_: &Node<'_>) {
    let target = local_target().unwrap();
    let bombs = [
        // As many functions as a module may have, each with as many locals.
        functions(200_000, "(local i64 i64 i64 i64)"),
        // One function of many blocks within each other.
        {
            let depth = 30_000;
            format!(
                r#"(module (func (export "_start") {}{}))"#,
                "(block ".repeat(depth),
                ")".repeat(depth)
            )
        },
    ];
    for text in bombs {
        let module = wat::parse_str(text).unwrap();
        let given = Duration::from_secs(20);
        // Compiled or given up; but soon, and without a crash of the compiler.
        if let Err(err) = compiler("compile").with_time(given).compile(&module, target).await {
            let text = err.to_string();
            assert!(text.contains("took more than") || text.contains("not a valid"), "{text}");
        }
    }
}

fn functions(n: usize, body: &str) -> String {
    format!(r#"(module (func (export "_start")) {})"#, format!("(func {body})").repeat(n))
}
