//! Kubernetes' object model: the contract with users.
//!
//! Facts about objects and pure functions over them: names, selectors,
//! quantities, the table of resources, the schema table, defaults and
//! validation. Depends on nothing else in this workspace and does no I/O.
//!
//! Objects travel as the JSON bytes that clients read. [`Value`] is one object
//! while it is worked on; nothing keeps a `Value` for long (10,000 pods cost
//! 197 MB so, and 19 MB as bytes).

pub mod defaults;
pub mod enrolment;
pub mod images;
pub mod key;
pub mod meta;
pub mod names;
pub mod network;
pub mod openapi;
pub mod pod_security;
pub mod protobuf;
pub mod quantity;
pub mod readiness;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod service;
pub mod storage;
pub mod strategy;
pub mod time;
pub mod validation;
pub mod view;

pub use key::ObjectKey;
pub use serde_json::Value;
