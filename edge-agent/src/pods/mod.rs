//! Pods: one small state machine each.
//!
//! ```text
//!            set of the node                 Runtime::observe, results of steps
//!                  │                                      │
//!              Desired ──────► plan ◄────── PodState ◄── apply, observe
//!                                │              │
//!                             [Step]         status ──► PodStatusV1
//!                                │
//!                         hooks do the work
//! ```
//!
//! [`plan`], [`status`] and the transitions in [`apply`] are pure: values and the time
//! go in, values come out. [`worker`] runs them for one pod, [`owner`] for
//! all. Nothing here knows MQTT, namespaces or registries.

mod apply;
pub mod backoff;
mod desired;
#[cfg(test)]
mod live_tests;
pub mod owner;
mod plan;
mod state;
mod status;
#[cfg(test)]
pub(crate) mod tests;
pub mod worker;

pub use apply::{Happening, Outcome, Seen};
pub use desired::{Desired, Eviction, KeySet, Keys, missing, volume_versions};
pub use owner::fresh_state;
pub use plan::{Plan, Signal, Step, finished, finished_phase, plan};
pub use state::{
    Container, ContainerStop, Failure, Image, ImagePhase, Leftover, PodState, Run, Sandbox,
    Versions, Volumes, Why,
};
pub use status::{config_error, happenings, phase, status};
