//! The WebAssembly backend: compile on the master, run on the node.
//!
//! ```text
//! master   compile(module, target), in a process of its own ──► compiled code, signed
//! node     Launcher ──► child: verify, map, confine itself, then run the guest
//! ```
//!
//! Users submit portable modules only. Compiled code is trusted like a program
//! (mapping it is as good as running it), so it comes from the master alone and
//! is signed; a module that is already compiled is refused. A guest runs in a
//! process of its own, in its pod's namespaces, after that process has given up
//! every privilege. Nothing here knows of Kubernetes or of the link.

pub mod artifact;
#[cfg(feature = "compile")]
pub mod compile;
mod confine;
pub mod engine;
mod guest;
mod launcher;
mod seccomp;

pub use launcher::WasmLauncher;
