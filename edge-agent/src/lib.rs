//! The node agent as a library, so that the simulator and the tests use the same code.
pub mod agent;
pub mod artifacts;
pub mod clock;
pub mod config;
pub mod durable;
pub mod env;
pub mod hooks;
pub mod id;
pub mod images;
pub mod logs;
pub mod network;
pub mod nodeinfo;
pub mod pods;
pub mod probes;
pub mod progress;
pub mod recover;
pub mod registries;
pub mod results;
pub mod sandbox;
pub mod set;
pub mod streams;
pub mod volumes;

pub mod identity;
pub mod join;
pub mod link;
pub mod node;
