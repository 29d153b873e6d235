//! Compiles portable modules for a node's target. Only the master links this.
//!
//! A module is a stranger's, so the master has [`child::Compiler`] do it, in a
//! process that can be stopped and can reach nothing.

pub mod child;
mod inspect;

use wasmtime::{Engine, OptLevel};
use wire::artifact::WorldV1;

use crate::engine::{TARGETS, shared_config};
pub use inspect::world;

/// Most bytes of a module.
pub const MODULE_BYTES_MAX: usize = 64 << 20;

/// What kind of program a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A core module: WASI preview 1.
    Module,
    /// A component: WASI preview 2.
    Component,
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The bytes do not start as WebAssembly does.
    #[error("not a WebAssembly module: it starts with {0}, not with 00 61 73 6d")]
    NotWasm(String),
    /// The bytes are compiled code already.
    #[error("already compiled: submit the portable .wasm, the cluster compiles it for each node")]
    Precompiled,
    /// The bytes are too many.
    #[error("{0} bytes are more than a module may have ({MODULE_BYTES_MAX})")]
    TooLarge(usize),
    /// No engine for this target.
    #[error("target {target:?} is not one of {}", TARGETS.join(", "))]
    Target {
        /// The target as given.
        target: String,
    },
    /// The module is broken, or needs a proposal that nodes do not have.
    #[error("not a valid module: {0}")]
    Invalid(String),
    /// The module is valid, and nothing that a node can run.
    #[error("not a program: {0}")]
    NoProgram(String),
    /// What the compiler's process said of it.
    #[error("{0}")]
    Said(String),
    /// It took more than a module may take.
    #[error("compiling it {0}")]
    TooMuch(String),
}

/// Tells what `bytes` are by their first eight.
///
/// # Errors
///
/// [`CompileError::NotWasm`] or [`CompileError::Precompiled`].
pub fn kind(bytes: &[u8]) -> Result<ModuleKind, CompileError> {
    if bytes.starts_with(b"\x7fELF") {
        return Err(CompileError::Precompiled);
    }
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => Ok(ModuleKind::Module),
        Some([0, b'a', b's', b'm', 0x0d, 0, 1, 0]) => Ok(ModuleKind::Component),
        _ => {
            let head: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            Err(CompileError::NotWasm(if head.is_empty() {
                "nothing".to_owned()
            } else {
                head.join(" ")
            }))
        }
    }
}

/// Compiled code, and how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What a node of the target maps.
    pub code: Vec<u8>,
    /// What the module exports to be called by.
    pub world: WorldV1,
}

/// What can be said of a module without compiling it.
fn check(bytes: &[u8], target: &str) -> Result<ModuleKind, CompileError> {
    if MODULE_BYTES_MAX < bytes.len() {
        return Err(CompileError::TooLarge(bytes.len()));
    }
    let kind = kind(bytes)?;
    if !TARGETS.contains(&target) {
        return Err(CompileError::Target { target: target.to_owned() });
    }
    Ok(kind)
}

/// Compiles `bytes` for `target`, one of [`TARGETS`]. Takes seconds for large
/// modules, on one thread of the caller's and rayon's pool, and without bounds
/// for hostile ones: see [`child::Compiler`].
///
/// # Errors
///
/// Where the bytes are not a portable module that nodes can run.
pub fn compile(bytes: &[u8], target: &str) -> Result<Compiled, CompileError> {
    let kind = check(bytes, target)?;
    let world = world(bytes)?;
    let invalid = |err: wasmtime::Error| CompileError::Invalid(format!("{err:#}"));
    let mut config = shared_config();
    config.target(target).map_err(invalid)?;
    config.cranelift_opt_level(OptLevel::Speed);
    let engine = Engine::new(&config).map_err(invalid)?;
    let code = match kind {
        ModuleKind::Module => engine.precompile_module(bytes),
        ModuleKind::Component => engine.precompile_component(bytes),
    };
    Ok(Compiled { code: code.map_err(invalid)?, world })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest module: magic and version.
    const EMPTY: [u8; 8] = [0, b'a', b's', b'm', 1, 0, 0, 0];

    /// The smallest program.
    fn program() -> Vec<u8> {
        wat::parse_str(r#"(module (func (export "_start")))"#).unwrap()
    }

    #[test]
    fn refused_bytes_are_named() {
        let check = |bytes: &[u8], target: &str, text: &str| {
            assert_eq!(compile(bytes, target).unwrap_err().to_string(), text);
        };
        check(
            b"#!/bin/sh",
            TARGETS[0],
            "not a WebAssembly module: it starts with 23 21 2f 62 69 6e 2f 73, not with 00 61 73 6d",
        );
        check(
            b"",
            TARGETS[0],
            "not a WebAssembly module: it starts with nothing, not with 00 61 73 6d",
        );
        check(b"\x7fELF\x02\x01\x01\0\0\0", TARGETS[0], &CompileError::Precompiled.to_string());
        check(
            &EMPTY,
            "mips",
            "target \"mips\" is not one of x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu, \
             pulley32, pulley64",
        );
        check(
            &EMPTY,
            TARGETS[0],
            "not a program: the module exports no function _start: build it as a program, not as a library",
        );
        let broken = [&EMPTY[..], &[1, 0xff]].concat();
        assert!(matches!(compile(&broken, TARGETS[0]), Err(CompileError::Invalid(_))));
    }

    #[test]
    fn every_target_compiles() {
        for target in TARGETS {
            let code = compile(&program(), target).unwrap().code;
            assert!(code.starts_with(b"\x7fELF"), "{target}");
            assert!(matches!(compile(&code, target), Err(CompileError::Precompiled)));
        }
    }

    #[test]
    fn compiled_code_maps_in_a_node_engine() {
        let target = crate::engine::local_target().unwrap();
        let code = compile(&program(), target).unwrap().code;
        let engine = Engine::new(&crate::engine::node_config(target).unwrap()).unwrap();
        // SAFETY: `code` was compiled two lines above.
        #[allow(unsafe_code)]
        let module = unsafe { wasmtime::Module::deserialize(&engine, &code) };
        assert!(module.is_ok(), "{:?}", module.err());
    }
}
