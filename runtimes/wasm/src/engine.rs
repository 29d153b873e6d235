//! The one place that configures wasmtime.
//!
//! Compiled code is only accepted by an engine with the very settings it was
//! compiled under, so master and node share this function. A change of any
//! setting is a new [`PROFILE`].

use wasmtime::Config;

/// Version of the settings below; part of what names compiled code.
pub const PROFILE: u32 = 1;

/// The version of wasmtime that this build links.
pub const ENGINE_VERSION: &str = "48.0.8";

/// What this machine's engine maps: native code, or Pulley bytecode where
/// Cranelift has no backend that works (32-bit ARM, RISC-V).
#[must_use]
pub fn local_target() -> Option<&'static str> {
    target_for(std::env::consts::ARCH)
}

/// The target for machines of `arch`, in Rust's names.
#[must_use]
pub fn target_for(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" => Some("x86_64-unknown-linux-gnu"),
        "aarch64" => Some("aarch64-unknown-linux-gnu"),
        // Cranelift 0.135 panics on real modules for riscv64gc.
        "riscv64" => Some("pulley64"),
        "arm" => Some("pulley32"),
        _ => None,
    }
}

/// What this machine's engine maps, as it tells the master.
#[must_use]
pub fn local() -> Option<wire::node::WasmTargetV1> {
    local_target().map(|target| wire::node::WasmTargetV1 {
        engine: ENGINE_VERSION.to_owned(),
        target: target.to_owned(),
        profile: PROFILE,
    })
}

/// Every target that a module is compiled for.
pub const TARGETS: [&str; 4] =
    ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "pulley32", "pulley64"];

/// The settings both sides share.
///
/// The proposals switched off need parts of wasmtime (a garbage collector,
/// shared memories) that nodes do not link.
#[must_use]
pub fn shared_config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .gc_support(false)
        .shared_memory(false)
        .concurrency_support(false);
    config
}

/// The settings of an engine that only maps code compiled for `target`, one of
/// [`TARGETS`] that this machine runs: its own, or Pulley bytecode of its word size.
///
/// # Errors
///
/// Another machine's code.
pub fn node_config(target: &str) -> wasmtime::Result<Config> {
    let mut config = shared_config();
    if target.starts_with("pulley") {
        config.target(target)?;
    }
    // A build of the whole workspace links the compiler into every program
    // (Cargo unifies features); a node must not use it even then.
    #[cfg(feature = "compile")]
    config.enable_compiler(false);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16));
    Ok(config)
}
