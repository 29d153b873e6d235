//! What every program of ours shares that answers Kubernetes' clients over HTTP:
//! the master for the whole cluster, an agent for the pods of its own board.
//!
//! ```text
//! path, options, negotiate     what a request means
//! status, answer, table        how it is answered
//! discovery                    what is served, made from a table of resources
//! upgrade, streams, logs       exec, attach, port-forward, logs
//! node                         the same streams on the node's side of the wire
//! ```
//!
//! It knows no store, no verb, no listener and no identity: those are its users'.

pub mod answer;
pub mod containers;
pub mod discovery;
pub mod logs;
pub mod negotiate;
pub mod node;
pub mod object;
pub mod options;
pub mod path;
mod pod_text;
pub mod printers;
mod service_text;
pub mod shape;
pub mod status;
pub mod streams;
pub mod table;
pub mod upgrade;
pub mod version;
