//! The data plane of a node: Services, names, the pods' way to everything, and
//! the links to other nodes.
//!
//! ```text
//!  agent ── Table (whole, with a generation) ──► control ──► table ─┬─► balance, policy
//!                                                                   ├─► dns
//!  pod ── anything ──► capture ──► tcp, udp ──┬─► pod on this node  └─► tunnel ◄─► peers
//!                                             ├─► tunnel ──► pod on another node
//!                                             └─► the world
//! ```
//!
//! It runs as a process of its own, so that a restart of the agent touches no
//! connection. It knows nothing of Kubernetes' objects, of sets or of MQTT: the
//! agent tells it addresses, ports and rules. What it is told last it keeps on
//! the disk, so that after a reboot it serves before the agent has spoken.

pub mod control;
pub mod dns;
pub mod links;
pub mod table;
pub mod tunnel;

pub use capture::probe;
pub use plane::{OnTable, Parts};
pub use run::{RunError, SOCKET, Settings, is_draining, run};

mod affinity;
mod balance;
mod capture;
mod confine;
mod dial;
mod handover;
mod heap;
mod persist;
mod plane;
mod policy;
mod ports;
mod pump;
mod random;
mod routes;
mod run;
mod tcp;
mod udp;
mod view;
