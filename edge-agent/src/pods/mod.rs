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
pub mod deadline;
mod desired;
mod events;
#[cfg(test)]
mod lifecycle_tests;
#[cfg(test)]
mod live_tests;
mod order;
pub mod owner;
mod plan;
#[cfg(test)]
mod probe_tests;
mod probing;
mod state;
mod status;
#[cfg(test)]
pub(crate) mod tests;
pub mod worker;
#[cfg(test)]
mod world;

pub use apply::{Happening, Outcome, Pulled, Seen};
pub use desired::{Desired, Eviction, KeySet, Keys, missing, volume_versions};
pub use events::happenings;
pub use order::{is_initialized, is_over, is_ready, is_up};
pub use owner::fresh_state;
pub use plan::{Plan, Signal, Step, finished, finished_phase, plan};
pub use probing::{Answer, ProbeKind, Probing, Question};
pub use state::{
    Container, ContainerStop, Failure, Health, Hook, Image, ImagePhase, Leftover, PodState, Role,
    Run, Sandbox, Versions, Volumes, Why,
};
pub use status::{config_error, phase, status};
