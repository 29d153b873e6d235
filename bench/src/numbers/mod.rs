//! The numbers, one module each. Every module says what exactly it measures.

pub(crate) mod apply;
pub(crate) mod cold_boot;
pub(crate) mod density;
pub(crate) mod dns;
pub(crate) mod endpoint;
pub(crate) mod fleet;
pub(crate) mod idle;
pub(crate) mod links;
pub(crate) mod memory;
pub(crate) mod node_lost;
pub(crate) mod proxy;
pub(crate) mod pull_cut;
pub(crate) mod reach;
pub(crate) mod sizes;
pub(crate) mod start;
pub(crate) mod writes;
