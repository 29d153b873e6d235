//! The node agent as a library, so that the simulator and the tests use the same code.
pub mod clock;
pub mod durable;
pub mod env;
pub mod id;
pub mod pods;
pub mod results;
pub mod registries;
pub mod agent;
pub mod volumes;
pub mod set;
pub mod streams;
pub mod sandbox;
pub mod recover;
pub mod nodeinfo;
pub mod network;
pub mod logs;
pub mod images;
pub mod hooks;
pub mod config;
pub mod artifacts;

pub mod node;
pub mod identity;
pub mod join;
pub mod link;
