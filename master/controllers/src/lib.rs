//! Controllers: loops that move the observed state towards the desired one.
//!
//! Reading order: [`cluster`] is what they read and write, [`fake`] the same in
//! memory; [`cache`] keeps small projections ([`projection`]) of what is there;
//! [`runner`] is the loop that every controller shares; [`replica_set`] is the
//! one to copy for a new controller.
//!
//! **Invariants:**
//! - A controller is level-triggered. It is told *which* object to look at,
//!   never *what happened* to it, and reads the rest. Missing, repeating or
//!   reordering notifications is therefore harmless.
//! - No controller knows another; they meet in the store.
//! - A controller plans only once its projections show its own last write.

pub mod cache;
pub mod clock;
pub mod cluster;
pub mod cluster_services;
pub mod deployment;
pub mod events;
pub mod fake;
pub mod fleet;
pub mod garbage_collector;
pub mod image;
pub mod namespace;
pub mod node_cidr;
pub mod node_lifecycle;
mod ownership;
pub mod pod_cleanup;
pub mod projection;
pub mod replica_set;
pub mod root_ca;
pub mod runner;
pub mod scheduler_loop;
pub mod service_account;
pub mod service_endpoints;
#[cfg(test)]
mod testing;
pub mod volumes;

pub use cluster::{Change, Cluster, ClusterError, DeleteOptions, Propagation, WatchItem};
pub use fleet::{Config, Fleet, Parts};
