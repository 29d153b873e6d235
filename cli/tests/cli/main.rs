//! The program itself against the real API server: what people type, what they
//! read, and how it ends. No nodes, no controllers: the tests play their parts.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod cluster;
mod harness;
mod objects;
#[path = "../../../master/apiserver/tests/support/mod.rs"]
mod support;
