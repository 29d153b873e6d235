//! Chooses a node for each pending pod.
//!
//! Scheduling is pure: a [`Snapshot`] of the fleet is kept up to date with what
//! the caller sees, a [`Demand`] goes in, a [`Decision`] comes out. This crate
//! does no I/O, reads no clock and draws no random number, so every rule in it
//! is tested with plain values. The binding is written by
//! `controllers::scheduler_loop`.
//!
//! The two phases are the ones of kube-scheduler: [`filter`] drops nodes that
//! cannot run the pod, [`score`] ranks the ones that can, and equal scores go
//! to the name that sorts first.
//! See <https://kubernetes.io/docs/concepts/scheduling-eviction/kube-scheduler/>.
//!
//! Reading order: [`resources`], [`demand`], [`node`], [`filter`], [`score`],
//! [`volumes`], [`snapshot`].

pub mod demand;
pub mod filter;
pub mod node;
pub mod platform;
pub mod resources;
pub mod score;
pub mod snapshot;
pub mod volumes;

pub use demand::{Demand, Effect, Toleration, TolerationOperator};
pub use filter::{Rejection, summary};
pub use node::{Affinity, Node, Taint};
pub use platform::Platform;
pub use resources::Resources;
pub use snapshot::{Decision, Snapshot};
pub use volumes::{Candidate, Choice, Claims, Unbound};
